//! Calls on paths.

mod attrs;
mod change;
mod dirs;
mod open;
mod stat;
mod xattr;

pub use attrs::{
    sys_chmod, sys_chown, sys_fchmod, sys_fchmodat, sys_fchmodat2, sys_fchown, sys_fchownat,
    sys_futimesat, sys_lchown, sys_truncate, sys_umask, sys_utime, sys_utimensat, sys_utimes,
};
pub use change::{
    sys_link, sys_linkat, sys_mkdir, sys_mkdirat, sys_mknod, sys_mknodat, sys_rename, sys_renameat,
    sys_renameat2, sys_rmdir, sys_symlink, sys_symlinkat, sys_unlink, sys_unlinkat,
};
pub use dirs::{sys_chdir, sys_fchdir, sys_getcwd, sys_getdents, sys_getdents64};
use kvmlet_abi::linux::fcntl::{
    AT_EMPTY_PATH, AT_FDCWD, AT_NO_AUTOMOUNT, AT_SYMLINK_FOLLOW, AT_SYMLINK_NOFOLLOW,
};
use kvmlet_abi::{Errno, Gva};
pub use open::{sys_creat, sys_open, sys_openat, sys_openat2};
pub use stat::{
    sys_access, sys_faccessat, sys_faccessat2, sys_fstat, sys_fstatfs, sys_lstat, sys_newfstatat,
    sys_readlink, sys_readlinkat, sys_stat, sys_statfs, sys_statx,
};
pub use xattr::{
    sys_fgetxattr, sys_flistxattr, sys_fremovexattr, sys_fsetxattr, sys_getxattr, sys_lgetxattr,
    sys_listxattr, sys_llistxattr, sys_lremovexattr, sys_lsetxattr, sys_removexattr, sys_setxattr,
};

use super::io::number;
use crate::cx::Cx;
use crate::vfs::path::{self, Found, Intent, Last, Missing, Node, Request, Resolve, Walked};
use kvmlet_abi::linux::limits::PATH_MAX;

/// Reads a path argument.
fn read_path(cx: &mut Cx<'_>, gva: Gva) -> Result<Vec<u8>, Errno> {
    cx.read_cstr(gva, PATH_MAX)
}

/// A call's path argument, and what it is for.
#[derive(Clone, Copy)]
struct Target {
    call: &'static str,
    dirfd: i32,
    path: Gva,
    intent: Intent,
}

impl Target {
    fn new(call: &'static str, dirfd: i32, path: Gva) -> Self {
        Self {
            call,
            dirfd,
            path,
            intent: Intent::Read,
        }
    }

    fn to_change(self) -> Self {
        Self {
            intent: Intent::Write,
            ..self
        }
    }

    /// The existing object. With AT_EMPTY_PATH an empty path is the descriptor itself.
    fn find(self, cx: &mut Cx<'_>, at_flags: u32) -> Result<Found, Errno> {
        let mut path = read_path(cx, self.path)?;
        if path.is_empty() && at_flags & AT_EMPTY_PATH != 0 {
            if self.dirfd != AT_FDCWD {
                let (id, file) = crate::fd::get(cx, self.dirfd)?;
                return Ok(Found {
                    path: file.path.to_vec(),
                    node: Node::Open(id),
                });
            }
            path = b".".to_vec();
        }
        let last = if at_flags & AT_SYMLINK_NOFOLLOW == 0 {
            Last::Follow
        } else {
            Last::NoFollow
        };
        match self.walk(cx, &path, last)? {
            Walked::Found(found) => Ok(found),
            Walked::Missing(_) => Err(Errno::ENOENT),
        }
    }

    /// The directory and the name of what is to be removed or renamed.
    fn parent(self, cx: &mut Cx<'_>) -> Result<Missing, Errno> {
        let path = read_path(cx, self.path)?;
        match self.walk(cx, &path, Last::Parent)? {
            Walked::Missing(missing) => Ok(missing),
            Walked::Found(_) => Err(Errno::ENOENT),
        }
    }

    /// The directory and name of something new.
    fn vacant(self, cx: &mut Cx<'_>) -> Result<Missing, Errno> {
        let path = read_path(cx, self.path)?;
        match self.walk(cx, &path, Last::CreateExclusive)? {
            Walked::Missing(missing) => Ok(missing),
            Walked::Found(_) => Err(Errno::EEXIST),
        }
    }

    fn walk(self, cx: &mut Cx<'_>, path: &[u8], last: Last) -> Result<Walked, Errno> {
        let start = path::start(cx, self.dirfd, path)?;
        let (call, intent) = (self.call, self.intent);
        path::walk(
            cx,
            Request {
                call,
                start,
                path,
                last,
                intent,
                resolve: Resolve::empty(),
            },
        )
    }
}

/// Refuses flags outside `known`.
fn only(flags: u32, known: u32) -> Result<(), Errno> {
    if flags & !known == 0 {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

#[cfg(test)]
mod tests;
