//! Names that the host does not have either. For reports to the caller: a program would learn of hidden names.

use std::os::fd::AsFd;

use kvmlet_abi::Errno;

use crate::object::{is_mounting, read_link};
use crate::roots::Roots;

/// Longer paths are not looked at, in names.
const NAMES_MAX: usize = 24;
/// As many symbolic links are followed.
const LINKS_MAX: usize = 4;

impl Roots {
    /// True if nothing is at absolute `path`. False too if that cannot be told. The caller may not be allowed to search
    /// there, there may be many names or links, and looking may mount something (autofs).
    #[must_use]
    pub fn is_absent(&self, path: &[u8]) -> bool {
        let mut at = Vec::new();
        let mut links = 0usize;
        let mut pending: Vec<Vec<u8>> = names(path).rev().collect();
        while let Some(name) = pending.pop() {
            if name == b".." || pending.len() >= NAMES_MAX {
                return false;
            }
            let next = [at.as_slice(), b"/", &name].concat();
            let attr = match self.locate(&next) {
                Err(Errno::ENOENT | Errno::ENOTDIR) => return true,
                Err(_) => return false,
                Ok((fd, attr)) if attr.is_symlink() => {
                    links = links.saturating_add(1);
                    let Ok(target) = read_link(fd.as_fd()) else {
                        return false;
                    };
                    if links > LINKS_MAX {
                        return false;
                    }
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    pending.extend(names(&target).rev());
                    continue;
                }
                Ok((fd, attr)) if is_mounting(fd.as_fd(), &attr) => return false,
                Ok((_, attr)) => attr,
            };
            if !attr.is_dir() {
                return !pending.is_empty();
            }
            at = next;
        }
        false
    }
}

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    let names = path.split(|byte| *byte == b'/');
    let names = names.filter(|name| !name.is_empty() && *name != b".");
    names.map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use kvmlet_policy::Policy;

    use super::*;
    use crate::testing::TempTree;

    #[test]
    fn what_is_there_and_what_is_not() {
        let dir = TempTree::new("absent");
        let at = dir.0.canonicalize().unwrap();
        std::fs::create_dir(at.join("folder")).unwrap();
        std::fs::write(at.join("folder/file"), "").unwrap();
        symlink("folder", at.join("near")).unwrap();
        symlink(at.join("folder"), at.join("far")).unwrap();
        symlink("nowhere", at.join("broken")).unwrap();
        symlink("loop", at.join("loop")).unwrap();
        let roots = Roots::open(&Policy::default()).unwrap();
        let deep = "folder/".repeat(100);
        for (name, is_absent) in [
            ("folder", false),
            ("folder/file", false),
            ("near/file", false),
            ("far//./file", false),
            ("folder/none", true),
            ("near/none", true),
            ("far/none/more", true),
            ("folder/file/below", true),
            ("broken", true),
            ("loop", false),
            ("folder/../none", false),
            (deep.as_str(), false),
        ] {
            let path = at.join(name);
            assert_eq!(
                roots.is_absent(path.as_os_str().as_bytes()),
                is_absent,
                "{name}"
            );
        }
    }
}
