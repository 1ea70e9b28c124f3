//! Calls that change the tree.

use std::path::Path;
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::{Stat, Statfs, Statx};

use crate::creds::Creds;
use crate::testing::{CWD, Sandbox, call};

const O_CREAT_EXCL: i64 = 0o301;
const O_TMPFILE_RDWR: i64 = 0o20_200_002;

fn sandbox() -> Sandbox {
    Sandbox::new(Path::new("/usr/share"))
}

#[test]
fn directories_come_and_go() {
    let mut s = sandbox();
    assert_eq!(call!(s, "mkdir", "/tmp/d", 0o777), Ok(0));
    assert_eq!(s.stat("/tmp/d").unwrap().st_mode, 0o040_755);
    for path in [
        "/tmp/d",
        "/tmp/d/",
        "/tmp/d/.",
        "/tmp/d/..",
        "/",
        "/usr/bin",
    ] {
        assert_eq!(call!(s, "mkdir", path, 0o777), Err(Errno::EEXIST), "{path}");
    }
    assert_eq!(call!(s, "mkdir", "/tmp/no/d", 0o777), Err(Errno::ENOENT));
    assert_eq!(call!(s, "mkdir", "/tmp/d/e/", 0o777), Ok(0));
    assert_eq!(call!(s, "rmdir", "/tmp/d"), Err(Errno::ENOTEMPTY));
    assert_eq!(call!(s, "rmdir", "/tmp/d/e/."), Err(Errno::EINVAL));
    assert_eq!(call!(s, "rmdir", "/tmp/d/e/.."), Err(Errno::ENOTEMPTY));
    assert_eq!(call!(s, "rmdir", "/"), Err(Errno::EBUSY));
    assert_eq!(call!(s, "unlink", "/tmp/d/e"), Err(Errno::EISDIR));
    assert_eq!(call!(s, "rmdir", "/tmp/d/e"), Ok(0));
    let long = format!("/tmp/{}", "x".repeat(256));
    assert_eq!(
        call!(s, "mkdir", long.as_str(), 0),
        Err(Errno::ENAMETOOLONG)
    );
}

#[test]
fn a_working_directory_follows_its_inode() {
    let mut s = sandbox();
    let buf = s.room(64);
    let cwd = |s: &mut Sandbox| {
        let len = call!(s, "getcwd", buf, 64)?;
        Ok::<_, Errno>(String::from_utf8(s.get(buf, len as usize - 1)).unwrap())
    };
    call!(s, "mkdir", "/tmp/d", 0o777).unwrap();
    call!(s, "chdir", "/tmp/d").unwrap();
    s.spill("f", b"x").unwrap();
    call!(s, "rename", "/tmp/d", "/tmp/e").unwrap();
    assert_eq!(cwd(&mut s).unwrap(), "/tmp/e");
    assert_eq!(s.slurp("f").unwrap(), b"x");
    call!(s, "unlink", "f").unwrap();
    call!(s, "rmdir", "/tmp/e").unwrap();
    assert_eq!(cwd(&mut s), Err(Errno::ENOENT));
    assert_eq!(s.open("f", 0o101), Err(Errno::ENOENT));
    assert_eq!(call!(s, "chdir", ".."), Err(Errno::ENOENT));
    call!(s, "chdir", "/").unwrap();
    assert_eq!(cwd(&mut s).unwrap(), "/");
    assert_eq!(call!(s, "getcwd", buf, 1), Err(Errno::ERANGE));
    assert_eq!(call!(s, "chdir", "/etc/passwd"), Err(Errno::ENOTDIR));
}

#[test]
fn creation() {
    let mut s = sandbox();
    assert_eq!(call!(s, "umask", 0o027), Ok(0o022));
    let fd = s.open("/tmp/a", O_CREAT_EXCL).unwrap();
    let stat = s.room(144);
    call!(s, "fstat", fd, stat).unwrap();
    assert_eq!(s.get_struct::<Stat>(stat).st_mode, 0o100_640);
    assert_eq!(s.open("/tmp/a", O_CREAT_EXCL), Err(Errno::EEXIST));
    assert_eq!(s.open("/tmp/b/", 0o101), Err(Errno::EISDIR));
    assert_eq!(s.open("/tmp/a", 0o200_101), Err(Errno::EINVAL));
    call!(s, "symlink", "/tmp/target", "/tmp/link").unwrap();
    assert_eq!(s.open("/tmp/link", O_CREAT_EXCL), Err(Errno::EEXIST));
    assert_eq!(s.open("/tmp/link", 0o400_101), Err(Errno::ELOOP));
    s.spill("/tmp/link", b"through").unwrap();
    assert_eq!(s.slurp("/tmp/target").unwrap(), b"through");
    assert_eq!(call!(s, "mknod", "/tmp/n", 0o100_644, 0), Ok(0));
    assert_eq!(call!(s, "mknod", "/tmp/p", 0o010_644, 0), Ok(0));
    assert_eq!(call!(s, "mknod", "/tmp/s", 0o140_644, 0), Ok(0));
    assert_eq!(s.open("/tmp/s", 0), Err(Errno::ENXIO));
    assert_eq!(call!(s, "mknod", "/tmp/c", 0o020_644, 1), Err(Errno::EPERM));
}

#[test]
fn an_unnamed_file_gets_a_name() {
    let mut s = sandbox();
    let fd = s.open("/tmp", O_TMPFILE_RDWR).unwrap();
    s.write(fd, b"late").unwrap();
    assert_eq!(s.names("/tmp").unwrap(), [""; 0]);
    let link = format!("/proc/self/fd/{fd}");
    assert_eq!(
        call!(s, "linkat", CWD, link.as_str(), CWD, "/tmp/named", 0x400),
        Ok(0)
    );
    assert_eq!(s.slurp("/tmp/named").unwrap(), b"late");
    assert_eq!(s.open("/usr", O_TMPFILE_RDWR), Err(Errno::EROFS));
    assert_eq!(s.open("/tmp", 0o20_200_000), Err(Errno::EINVAL));
}

#[test]
fn renames_and_links() {
    let mut s = sandbox();
    s.spill("/tmp/a", b"a").unwrap();
    s.spill("/tmp/b", b"b").unwrap();
    let fd = s.open("/tmp/a", 0).unwrap();
    const NOREPLACE: i64 = 1;
    const EXCHANGE: i64 = 2;
    assert_eq!(
        call!(s, "renameat2", CWD, "/tmp/a", CWD, "/tmp/b", NOREPLACE),
        Err(Errno::EEXIST)
    );
    assert_eq!(
        call!(s, "renameat2", CWD, "/tmp/a", CWD, "/tmp/b", EXCHANGE),
        Ok(0)
    );
    assert_eq!(s.slurp("/tmp/a").unwrap(), b"b");
    let buf = s.room(64);
    let link = format!("/proc/self/fd/{fd}");
    let len = call!(s, "readlink", link.as_str(), buf, 64).unwrap();
    assert_eq!(s.get(buf, len as usize), b"/tmp/b");
    assert_eq!(
        call!(s, "renameat2", CWD, "/tmp/a", CWD, "/tmp/b", 3),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        call!(s, "renameat2", CWD, "/tmp/a", CWD, "/tmp/c", EXCHANGE),
        Err(Errno::ENOENT)
    );
    assert_eq!(call!(s, "rename", "/tmp/a/", "/tmp/c"), Err(Errno::ENOTDIR));
    assert_eq!(call!(s, "rename", "/tmp/.", "/tmp/c"), Err(Errno::EBUSY));
    assert_eq!(call!(s, "rename", "/tmp/a", "/tmp/b"), Ok(0));
    assert_eq!(s.names("/tmp").unwrap(), ["b"]);
    assert_eq!(call!(s, "link", "/tmp/b", "/tmp/c"), Ok(0));
    assert_eq!(s.stat("/tmp/c").unwrap().st_nlink, 2);
    assert_eq!(call!(s, "link", "/tmp/b", "/tmp/c"), Err(Errno::EEXIST));
    assert_eq!(call!(s, "link", "/etc/passwd", "/tmp/p"), Err(Errno::EXDEV));
    assert_eq!(call!(s, "unlink", "/tmp/b/"), Err(Errno::ENOTDIR));
    assert_eq!(call!(s, "unlink", "/tmp/b"), Ok(0));
    assert_eq!(call!(s, "unlink", "/tmp/b"), Err(Errno::ENOENT));
    assert_eq!(s.slurp("/tmp/c").unwrap(), b"b");
}

#[test]
fn another_owners_files() {
    let mut s = sandbox();
    s.spill("/tmp/mine", b"x").unwrap();
    call!(s, "chmod", "/tmp/mine", 0o600).unwrap();
    call!(s, "mkdir", "/tmp/d", 0o700).unwrap();
    s.spill("/tmp/d/f", b"x").unwrap();
    // From now on someone else.
    let other = s.kernel.caller.user.real + 1000;
    s.cx().thread().unwrap().creds = Arc::new(Creds::of_user(other));
    assert_eq!(s.open("/tmp/mine", 0), Err(Errno::EACCES));
    assert_eq!(s.open("/tmp/d/f", 0), Err(Errno::EACCES));
    assert_eq!(s.open("/tmp/d/new", 0o101), Err(Errno::EACCES));
    assert_eq!(call!(s, "unlink", "/tmp/mine"), Err(Errno::EPERM));
    assert_eq!(
        call!(s, "rename", "/tmp/mine", "/tmp/yours"),
        Err(Errno::EPERM)
    );
    assert_eq!(call!(s, "chmod", "/tmp/mine", 0o666), Err(Errno::EPERM));
    assert_eq!(call!(s, "chown", "/tmp/mine", 1000, -1), Err(Errno::EPERM));
    assert_eq!(
        call!(s, "utimensat", CWD, "/tmp/mine", 0, 0),
        Err(Errno::EACCES)
    );
    assert_eq!(call!(s, "chdir", "/tmp/d"), Err(Errno::EACCES));
    s.spill("/tmp/theirs", b"x").unwrap();
    assert_eq!(s.stat("/tmp/theirs").unwrap().st_uid, other);
    assert_eq!(call!(s, "unlink", "/tmp/theirs"), Ok(0));
}

#[test]
fn attributes_are_set() {
    let mut s = sandbox();
    s.spill("/tmp/a", b"x").unwrap();
    assert_eq!(call!(s, "fchmodat", CWD, "/tmp/a", 0o4711), Ok(0));
    assert_eq!(s.stat("/tmp/a").unwrap().st_mode, 0o104_711);
    assert_eq!(call!(s, "chown", "/tmp/a", -1, -1), Ok(0));
    assert_eq!(s.stat("/tmp/a").unwrap().st_mode, 0o100_711);
    let times = s.put_struct(&[1i64, 2, 3, 4]);
    assert_eq!(call!(s, "utimensat", CWD, "/tmp/a", times, 0), Ok(0));
    let stat = s.stat("/tmp/a").unwrap();
    assert_eq!(
        (
            stat.st_atime,
            stat.st_atime_nsec,
            stat.st_mtime,
            stat.st_mtime_nsec
        ),
        (1, 2, 3, 4)
    );
    let omit = s.put_struct(&[0i64, 0x3fff_fffe, 9, 0]);
    let fd = s.open("/tmp/a", 0).unwrap();
    assert_eq!(call!(s, "utimensat", fd, 0, omit, 0), Ok(0));
    let stat = s.stat("/tmp/a").unwrap();
    assert_eq!((stat.st_atime, stat.st_mtime), (1, 9));
    let bad = s.put_struct(&[0i64, 1_000_000_000, 0, 0]);
    assert_eq!(
        call!(s, "utimensat", CWD, "/tmp/a", bad, 0),
        Err(Errno::EINVAL)
    );
    call!(s, "symlink", "a", "/tmp/l").unwrap();
    assert_eq!(
        call!(s, "fchmodat2", CWD, "/tmp/l", 0o600, 0x100),
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(call!(s, "truncate", "/tmp/l", 100), Ok(0));
    assert_eq!(s.stat("/tmp/a").unwrap().st_size, 100);
    assert_eq!(call!(s, "truncate", "/tmp", 0), Err(Errno::EISDIR));
    assert_eq!(
        call!(s, "getxattr", "/tmp/a", "user.x", 0, 0),
        Err(Errno::ENODATA)
    );
    assert_eq!(
        call!(s, "setxattr", "/tmp/a", "user.x", "value", 5, 0),
        Ok(0)
    );
    assert_eq!(call!(s, "getxattr", "/tmp/l", "user.x", 0, 0), Ok(5));
    assert_eq!(call!(s, "listxattr", "/tmp/a", 0, 0), Ok(7));
    assert_eq!(
        call!(s, "getxattr", "/etc/passwd", "security.selinux", 0, 0),
        Err(Errno::ENODATA)
    );
    assert_eq!(call!(s, "listxattr", "/etc/passwd", 0, 0), Ok(0));
}

#[test]
fn directory_reading_fits_the_buffer() {
    let mut s = sandbox();
    for index in 0..100 {
        s.spill(&format!("/tmp/file-{index}"), b"").unwrap();
    }
    let names = s.names("/tmp").unwrap();
    assert_eq!(names.len(), 100);
    assert_eq!(
        (names[0].as_str(), names[99].as_str()),
        ("file-0", "file-99")
    );
    let fd = s.open("/tmp", 0).unwrap();
    let buf = s.room(4096);
    assert_eq!(call!(s, "getdents64", fd, buf, 20), Err(Errno::EINVAL));
    assert_eq!(call!(s, "getdents", fd, buf, 24), Ok(24));
    assert_eq!(s.get(buf, 24)[23], 4);
    assert_eq!(call!(s, "lseek", fd, 0, 0), Ok(0));
    assert_eq!(call!(s, "getdents64", fd, buf, 24), Ok(24));
    assert!(
        s.names("/usr/bin")
            .unwrap()
            .iter()
            .any(|name| name == "env")
    );
}

#[test]
fn statx_and_statfs() {
    let mut s = sandbox();
    s.spill("/tmp/a", b"12345").unwrap();
    let buf = s.room(256);
    assert_eq!(call!(s, "statx", CWD, "/tmp/a", 0, 0xfff, buf), Ok(0));
    let statx: Statx = s.get_struct(buf);
    assert_eq!((statx.stx_size, statx.stx_mask & 0xfff), (5, 0xfff));
    assert_eq!(
        call!(s, "statx", CWD, "/tmp/a", 0x6000, 0xfff, buf),
        Err(Errno::EINVAL)
    );
    assert_eq!(call!(s, "statfs", "/tmp", buf), Ok(0));
    assert_eq!(s.get_struct::<Statfs>(buf).f_type, 0x0102_1994);
    assert_eq!(call!(s, "statfs", "/usr", buf), Ok(0));
    assert_eq!(s.get_struct::<Statfs>(buf).f_flags & 1, 1);
    assert_eq!(call!(s, "statfs", "/proc/self", buf), Ok(0));
    assert_eq!(s.get_struct::<Statfs>(buf).f_type, 0x9fa0);
}
