//! The first three descriptors, and the working directory, of a new sandbox.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_mem::GuestMemory;
use kvmlet_policy::{Place, Policy};

use super::attr::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFREG, S_IFSOCK};
use super::synth::{self, DEVICES};
use super::{Dir, hostfs};
use crate::fd::{self, Device, Fd, FileKind, OpenFile, OpenFlags};
use crate::host::{Host, HostKind};
use crate::kernel::{Kernel, Pid};

/// What a standard stream is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StdStream {
    /// The caller's own descriptor of the same number.
    Inherit,
    /// /dev/null.
    Null,
    /// Kept in [`crate::host::Captured`]; for output only.
    Capture,
    /// These bytes, then the end of the file; for input only.
    Bytes(Arc<[u8]>),
    /// Closed.
    Closed,
}

/// Sets up descriptors 0, 1 and 2 of a new process. A descriptor that the caller itself does not
/// have stays closed.
///
/// # Errors
/// The host's; `ESRCH` for no such process.
pub fn set_up(
    kernel: &mut Kernel,
    memory: &mut GuestMemory,
    host: &mut Host,
    pid: Pid,
    streams: &[StdStream; 3],
) -> Result<(), Errno> {
    for (number, stream) in (0u8..).zip(streams) {
        let Some(file) = open(host, number, stream)? else {
            continue;
        };
        let file = fd::add_file(kernel, memory, OpenFile { refs: 1, ..file });
        let process = kernel.processes.get_mut(&pid).ok_or(Errno::ESRCH)?;
        process.fds.fds.insert(
            i32::from(number),
            Fd {
                file,
                cloexec: false,
            },
        );
    }
    Ok(())
}

fn open(host: &mut Host, number: u8, stream: &StdStream) -> Result<Option<OpenFile>, Errno> {
    let flags = if number == 0 {
        OpenFlags::empty()
    } else {
        OpenFlags::WRONLY
    };
    let file = |kind, flags, path: &[u8]| OpenFile {
        kind,
        offset: 0,
        flags,
        refs: 0,
        path: Arc::from(path),
    };
    Ok(Some(match stream {
        StdStream::Closed => return Ok(None),
        StdStream::Null => file(
            FileKind::Device(Device::Null),
            OpenFlags::RDWR,
            b"/dev/null",
        ),
        StdStream::Capture => file(FileKind::Capture(number), flags, b"pipe:"),
        StdStream::Bytes(bytes) => file(FileKind::Input(Arc::clone(bytes)), flags, b"pipe:[0]"),
        StdStream::Inherit => {
            let inherited = match number {
                0 => rustix::stdio::stdin(),
                1 => rustix::stdio::stdout(),
                _ => rustix::stdio::stderr(),
            };
            match inherit(host, inherited) {
                Ok((kind, flags)) => {
                    let path = match &kind {
                        FileKind::Device(device) => synth::device_path(*device),
                        _ => format!("/dev/fd/{number}").into_bytes(),
                    };
                    file(kind, flags, &path)
                }
                Err(Errno::EBADF) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }))
}

/// Duplicates an inherited descriptor; its status flags are the caller's.
///
/// When the caller was started without one of the three, the number may have been given to something
/// else that it has opened since, which is not the program's: such a descriptor is close-on-exec, an
/// inherited one never is. It counts as closed.
fn inherit(host: &mut Host, fd: BorrowedFd<'_>) -> Result<(FileKind, OpenFlags), Errno> {
    let descriptor = rustix::io::fcntl_getfd(fd).map_err(hostfs::errno)?;
    if descriptor.contains(rustix::io::FdFlags::CLOEXEC) {
        return Err(Errno::EBADF);
    }
    let own = rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(hostfs::errno)?;
    let status = rustix::fs::fcntl_getfl(&own).map_err(hostfs::errno)?;
    let keep = OpenFlags::WRONLY
        | OpenFlags::RDWR
        | OpenFlags::APPEND
        | OpenFlags::NONBLOCK
        | OpenFlags::LARGEFILE;
    let flags = OpenFlags::from_bits_truncate(status.bits()) & keep;
    let attr = hostfs::attr_of(own.as_fd())?;
    let kind = match attr.kind() {
        S_IFREG | S_IFBLK | S_IFDIR => HostKind::FileStream,
        S_IFIFO | S_IFSOCK => HostKind::Stream,
        S_IFCHR if rustix::termios::isatty(&own) => HostKind::Terminal,
        // Memory devices are ours; no other device is a stream.
        S_IFCHR => {
            let device = DEVICES
                .iter()
                .find(|(_, device)| synth::rdev(*device) == attr.rdev);
            let (_, device) = device.ok_or(Errno::EBADF)?;
            return Ok((FileKind::Device(*device), flags));
        }
        _ => return Err(Errno::EBADF),
    };
    Ok((FileKind::HostStream(host.insert(own, kind)), flags))
}

/// The policy and working directory of a sandbox started from the caller's working directory.
///
/// # Errors
/// The host's, when there is no working directory.
pub fn working_directory() -> Result<(Policy, Dir), Errno> {
    Ok(started_from(&hostfs::working_directory()?))
}

/// The policy and working directory of a sandbox started from `cwd`: its tree is readable, unless
/// showing it would show too much ([`Policy::allow_tree`]). Then the program starts there as far as
/// the directory is visible anyway (`/`, /etc), and in `/` otherwise.
#[must_use]
pub fn started_from(cwd: &[u8]) -> (Policy, Dir) {
    let mut policy = Policy::default();
    let shown = policy.allow_tree(cwd).is_ok();
    let visible =
        shown || kvmlet_policy::is_canonical(cwd) && policy.classify(cwd) == Place::Leading;
    (
        policy,
        Dir::Path(Arc::from(if visible { cwd } else { b"/" })),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_directory_is_readable() {
        let (policy, dir) = working_directory().unwrap();
        let Dir::Path(path) = dir else {
            panic!("not a path")
        };
        assert_eq!(policy.classify(&path), Place::Readable);
    }

    #[test]
    fn only_what_was_inherited_is_passed_on() {
        let (policy, _) = started_from(b"/usr");
        let mut host = Host::new(policy, 0).unwrap();
        let file = std::fs::File::open("/usr/bin/env").unwrap();
        assert_eq!(inherit(&mut host, file.as_fd()), Err(Errno::EBADF));
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        let (kind, flags) = inherit(&mut host, file.as_fd()).unwrap();
        assert!(
            matches!(kind, FileKind::HostStream(id) if host.get(id).unwrap().kind == HostKind::FileStream)
        );
        assert!(flags.readable() && !flags.writable());
    }

    #[test]
    fn unsuitable_starts_fall_back() {
        let path = |cwd: &str| match started_from(cwd.as_bytes()).1 {
            Dir::Path(path) => String::from_utf8(path.to_vec()).unwrap(),
            Dir::Tmp(_) => panic!("not a path"),
        };
        assert_eq!(path("/"), "/");
        assert_eq!(path("/etc"), "/etc");
        assert_eq!(path("/proc/self"), "/");
        assert_eq!(path("/etc/apt"), "/");
        assert_eq!(path("/tmp"), "/tmp");
        assert_eq!(path("/home/u"), "/home/u");
    }
}
