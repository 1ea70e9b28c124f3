//! Checks of host objects before a program has them: search permission on the way, and what was opened.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::{Attr, MAY_EXEC, MAY_READ};
use kvmlet_hostfs::{Credentials, Ids, attr_of, check_mode, is_kernel_file, is_same};
use kvmlet_policy::parent;

use crate::host::Host;
use crate::report::Remedy;

/// Directories that [`Searchable`] remembers at most, for each of two.
const SEARCHABLE_MAX: usize = 4096;

/// Directories of the host that are known to be searchable: by the caller, and by one other user inside. Forks share
/// what is known.
#[derive(Clone, Debug, Default)]
pub struct Searchable {
    caller: Arc<HashSet<Vec<u8>>>,
    inside: Option<(Ids, Arc<HashSet<Vec<u8>>>)>,
}

impl Searchable {
    fn contains(&self, who: &Credentials, dir: &[u8]) -> bool {
        match (&who.inside, &self.inside) {
            (None, _) => self.caller.contains(dir),
            (Some(ids), Some((theirs, known))) => ids == theirs && known.contains(dir),
            (Some(_), None) => false,
        }
    }

    fn remember(&mut self, who: &Credentials, dir: &[u8]) {
        let known = match &who.inside {
            None => &mut self.caller,
            Some(ids) => {
                if self.inside.as_ref().is_none_or(|(theirs, _)| theirs != ids) {
                    self.inside = None;
                }
                let inside = || (ids.clone(), Arc::default());
                &mut self.inside.get_or_insert_with(inside).1
            }
        };
        let known = Arc::make_mut(known);
        if known.len() >= SEARCHABLE_MAX {
            known.clear();
        }
        known.insert(dir.to_vec());
    }

    /// Forgets all: permissions may have changed.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The attributes of what [`kvmlet_hostfs::Roots::open_for_reading`] has opened for `who`, if it may stay open. By
/// its name there was something with the attributes `found`.
///
/// # Errors
/// `ESTALE` if another kind has taken the name; as what was found there would have been refused.
pub fn check_opened(
    host: &mut Host,
    who: &Credentials,
    fd: BorrowedFd<'_>,
    found: &Attr,
) -> Result<Attr, Errno> {
    let opened = attr_of(fd)?;
    if opened.kind() != found.kind() {
        return Err(Errno::ESTALE);
    }
    check_mode(who, &opened, MAY_READ)?;
    if !is_same(&opened, found) {
        refuse_kernel_files(host, "open", (b"what took a file's place", &opened), fd)?;
    }
    Ok(opened)
}

/// Refuses and records what belongs to a file system of the kernel's own
/// ([`kvmlet_hostfs::is_kernel_file`]). Such a file system may be mounted in a readable tree.
///
/// # Errors
/// `EACCES`.
pub fn refuse_kernel_files(
    host: &mut Host,
    call: &str,
    (path, attr): (&[u8], &Attr),
    fd: BorrowedFd<'_>,
) -> Result<(), Errno> {
    if !is_kernel_file(fd, attr) {
        return Ok(());
    }
    host.report.deny(
        format!("{call} {}", super::printable(path)),
        Errno::EACCES,
        Remedy::KernelFile,
    );
    Err(Errno::EACCES)
}

/// Refuses a path whose visible directories are not all searchable, when the host would not.
///
/// # Errors
/// `EACCES`; `ELOOP` for a symbolic link on the way; the host's.
pub fn check_search(host: &mut Host, who: &Credentials, path: &[u8]) -> Result<(), Errno> {
    if who.are_enforced_by_host() {
        return Ok(());
    }
    let unknown = unknown_directories(host, who, path);
    // The outermost first: whether anything is in a directory is not to be told before it may be searched.
    let mut above: Option<(&[u8], OwnedFd)> = None;
    for dir in unknown.into_iter().rev() {
        // A program chooses how deep it goes: each directory is looked up in the last one. Where a tree begins, the
        // one above may have something else.
        let (fd, attr) = match &above {
            Some((at, fd)) if *at == parent(dir) && !host.policy.is_mount_point(dir) => {
                host.roots.locate_in(fd.as_fd(), dir)?
            }
            _ => host.roots.locate(dir)?,
        };
        if attr.is_symlink() {
            return Err(Errno::ELOOP);
        }
        if !attr.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        check_mode(who, &attr, MAY_EXEC)?;
        host.searchable.remember(who, dir);
        above = Some((dir, fd));
    }
    Ok(())
}

/// The visible directories that lead to `path` and are not known to be searchable, the innermost first.
fn unknown_directories<'a>(host: &Host, who: &Credentials, path: &'a [u8]) -> Vec<&'a [u8]> {
    let mut unknown = Vec::new();
    // All that lies between a path and the root of its tree lies in that tree.
    let mut root = None;
    for dir in kvmlet_policy::ancestors(path).skip(1) {
        if root.is_none() {
            if !host.policy.classify(dir).is_on_host() {
                break;
            }
            root = host.policy.tree_of(dir);
        }
        if host.searchable.contains(who, dir) {
            break;
        }
        unknown.push(dir);
        if root == Some(dir) {
            root = None;
        }
    }
    unknown
}

/// As [`check_search`], of a directory that is open. It is asked each time: what is known of its path may
/// be another one's.
///
/// # Errors
/// `EACCES`; the host's.
pub fn check_search_in(who: &Credentials, dir: BorrowedFd<'_>) -> Result<(), Errno> {
    if who.are_enforced_by_host() {
        return Ok(());
    }
    check_mode(who, &attr_of(dir)?, MAY_EXEC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmlet_hostfs::Enforcement;

    #[test]
    fn what_one_user_may_search_is_not_told_to_another() {
        let ids = |uid| Ids {
            uid,
            gid: uid,
            groups: Arc::default(),
        };
        let who = |inside: Option<u32>| Credentials {
            ids: ids(0),
            inside: inside.map(ids),
            enforcement: Enforcement::ModeBits,
        };
        let mut searchable = Searchable::default();
        searchable.remember(&who(None), b"/root");
        assert!(searchable.contains(&who(None), b"/root"));
        assert!(!searchable.contains(&who(Some(33)), b"/root"));
        searchable.remember(&who(Some(33)), b"/srv");
        assert!(searchable.contains(&who(Some(33)), b"/srv"));
        assert!(!searchable.contains(&who(Some(34)), b"/srv"));
        assert!(!searchable.contains(&who(None), b"/srv"));
        searchable.remember(&who(Some(34)), b"/opt");
        assert!(!searchable.contains(&who(Some(33)), b"/srv"));
        assert!(!searchable.contains(&who(Some(34)), b"/srv"));
        // A fork learns for itself.
        let mut fork = searchable.clone();
        fork.remember(&who(None), b"/home");
        assert!(fork.contains(&who(None), b"/root"));
        assert!(!searchable.contains(&who(None), b"/home"));
        fork.clear();
        assert!(searchable.contains(&who(None), b"/root"));
    }
}
