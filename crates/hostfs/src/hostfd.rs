//! Host descriptors: counted, and one for each file however often it is opened or mapped.
//!
//! Regular files only are shared: they are read at explicit positions, so that nobody can tell whose
//! descriptor it is. What a directory shows may depend on the mount that it was reached by.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};

use kvmlet_budget::{Claim, Exhausted, Held, Resource, Share};

use crate::attr::{Attr, FileTime};

/// Tables are rid of what was closed when they have grown to twice what was open, and beyond this.
const PRUNED_FROM: usize = 64;

/// A host descriptor (close-on-exec), counted while it is open.
#[derive(Debug)]
pub struct HostFd {
    file: Arc<Counted>,
    _of_sandbox: Option<Held>,
}

#[derive(Debug)]
struct Counted {
    fd: OwnedFd,
    _of_process: Held,
}

impl AsFd for HostFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.fd.as_fd()
    }
}

impl HostFd {
    /// A descriptor that a sandbox is made of.
    ///
    /// # Errors
    /// [`Exhausted`]; the descriptor is closed.
    pub fn of_vm(fd: OwnedFd) -> Result<Self, Exhausted> {
        let held = Held::take(Resource::Descriptors, Claim::Vm, 1)?;
        Ok(Self::new(fd, held, None))
    }

    /// A descriptor that the caller gave.
    #[must_use]
    pub fn given(fd: OwnedFd) -> Self {
        let held = Held::promised(Resource::Descriptors, 1);
        Self::new(fd, held, None)
    }

    /// A descriptor that a guest has had opened.
    ///
    /// # Errors
    /// [`Exhausted`]; the descriptor is closed.
    pub fn of_guest(fd: OwnedFd, share: &Arc<Share>) -> Result<Self, Exhausted> {
        let of_sandbox = Held::take_share(share, Resource::Descriptors, 1)?;
        let held = Held::take(Resource::Descriptors, Claim::Guest, 1)?;
        Ok(Self::new(fd, held, Some(of_sandbox)))
    }

    fn new(fd: OwnedFd, of_process: Held, of_sandbox: Option<Held>) -> Self {
        let file = Arc::new(Counted {
            fd,
            _of_process: of_process,
        });
        Self {
            file,
            _of_sandbox: of_sandbox,
        }
    }
}

/// Which file it is, in which state. One that has changed is another: a file system of layers may show
/// the old state by an old descriptor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct FileKey {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, u32),
    ctime: (i64, u32),
}

impl FileKey {
    fn of(attr: &Attr) -> Self {
        let time = |time: FileTime| (time.sec, time.nsec);
        Self {
            dev: attr.dev,
            ino: attr.ino,
            size: attr.size,
            mtime: time(attr.mtime),
            ctime: time(attr.ctime),
        }
    }
}

/// Files that are open for reading, none of them by this.
#[derive(Debug)]
struct Known<T> {
    files: BTreeMap<FileKey, Weak<T>>,
    /// The size at which the closed ones are looked for.
    prune_at: usize,
}

impl<T> Known<T> {
    const fn new() -> Self {
        Self {
            files: BTreeMap::new(),
            prune_at: PRUNED_FROM,
        }
    }

    fn get(&self, key: &FileKey) -> Option<Arc<T>> {
        self.files.get(key)?.upgrade()
    }

    fn insert(&mut self, key: FileKey, file: &Arc<T>) {
        if self.files.len() >= self.prune_at {
            self.files.retain(|_, file| file.strong_count() > 0);
            self.prune_at = self.files.len().saturating_mul(2).max(PRUNED_FROM);
        }
        self.files.insert(key, Arc::downgrade(file));
    }
}

/// Those of all sandboxes. Never waited for: in a child of fork(2) it may be locked for ever.
static OF_PROCESS: Mutex<Known<Counted>> = Mutex::new(Known::new());

/// The regular files that one sandbox has open.
#[derive(Debug)]
pub struct OpenFiles(Known<HostFd>);

impl Default for OpenFiles {
    fn default() -> Self {
        Self(Known::new())
    }
}

impl OpenFiles {
    /// The descriptor to use for a regular file: an older one of the same file, if there is one, else `own`.
    /// The file has been opened for reading as `own`, and has `attr`.
    pub fn share(&mut self, own: Arc<HostFd>, attr: &Attr, share: &Arc<Share>) -> Arc<HostFd> {
        let key = FileKey::of(attr);
        if let Some(known) = self.0.get(&key) {
            return known;
        }
        let file = Self::of_process(&own, key, share).map_or(own, Arc::new);
        self.0.insert(key, &file);
        file
    }

    /// The descriptor that another sandbox has of it.
    fn of_process(own: &HostFd, key: FileKey, share: &Arc<Share>) -> Option<HostFd> {
        let mut known = OF_PROCESS.try_lock().ok()?;
        let Some(file) = known.get(&key) else {
            known.insert(key, &own.file);
            return None;
        };
        drop(known);
        let of_sandbox = Held::take_share(share, Resource::Descriptors, 1).ok()?;
        Some(HostFd {
            file,
            _of_sandbox: Some(of_sandbox),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use rustix::fs::fstat;

    use super::*;
    use crate::object::attr_of;
    use crate::testing::TempTree;

    fn open(files: &mut OpenFiles, path: &std::path::Path, share: &Arc<Share>) -> Arc<HostFd> {
        let fd = OwnedFd::from(std::fs::File::open(path).unwrap());
        let own = Arc::new(HostFd::of_guest(fd, share).unwrap());
        let attr = attr_of(own.as_fd()).unwrap();
        files.share(own, &attr, share)
    }

    fn text(fd: &HostFd) -> String {
        let mut file = std::fs::File::from(fd.as_fd().try_clone_to_owned().unwrap());
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_file_has_one_descriptor_until_it_is_replaced_or_changed() {
        let tree = TempTree::new("one-descriptor");
        let path = tree.0.join("file");
        std::fs::write(&path, "old").unwrap();
        let share = Arc::new(Share::default());
        let mut files = OpenFiles::default();
        let held = || share.held(Resource::Descriptors);
        let first = open(&mut files, &path, &share);
        let second = open(&mut files, &path, &share);
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(held(), 1);
        // Another of the same name.
        std::fs::write(tree.0.join("new"), "new").unwrap();
        std::fs::rename(tree.0.join("new"), &path).unwrap();
        let replaced = open(&mut files, &path, &share);
        assert_eq!(
            (text(&first), text(&replaced)),
            ("old".into(), "new".into())
        );
        // The same with other contents.
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap();
        file.write_all(b"er").unwrap();
        let changed = open(&mut files, &path, &share);
        assert!(!Arc::ptr_eq(&changed, &replaced));
        assert_eq!(text(&changed), "newer");
        assert_eq!(held(), 3);
        drop((first, second, replaced, changed));
        assert_eq!(held(), 0);
        assert_eq!(text(&open(&mut files, &path, &share)), "newer");
    }

    #[test]
    fn sandboxes_share_a_file_and_each_is_charged() {
        let tree = TempTree::new("shared-descriptor");
        let path = tree.0.join("file");
        std::fs::write(&path, "x").unwrap();
        let shares = [(); 2].map(|()| Arc::new(Share::default()));
        // Another test may hold the lock for a moment: then it is not shared.
        let [one, two] = (0..1000)
            .map(|_| {
                shares
                    .each_ref()
                    .map(|share| open(&mut OpenFiles::default(), &path, share))
            })
            .find(|[one, two]| Arc::ptr_eq(&one.file, &two.file))
            .unwrap();
        drop(one);
        // It stays open for the other.
        assert!(fstat(two.as_fd()).is_ok());
        let held = shares.map(|share| share.held(Resource::Descriptors));
        assert_eq!(held, [0, 1]);
    }

    #[test]
    fn what_was_closed_is_forgotten() {
        let tree = TempTree::new("forgotten");
        let share = Arc::new(Share::default());
        let mut files = OpenFiles::default();
        for number in 0..300 {
            let path = tree.0.join(format!("{number}"));
            std::fs::write(&path, "x").unwrap();
            open(&mut files, &path, &share);
        }
        assert!(files.0.files.len() <= PRUNED_FROM);
    }
}
