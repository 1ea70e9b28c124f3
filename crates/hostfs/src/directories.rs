//! The directories that were looked at last, open as locations.

use std::sync::Arc;

use crate::hostfd::HostFd;

/// Directories kept at most.
const KEPT_MAX: usize = 16;

/// Directories by the path that they were opened by, the one used last at the end.
#[derive(Debug, Default)]
pub struct Directories(Vec<(Arc<[u8]>, Arc<HostFd>)>);

impl Directories {
    /// The directory that was opened by `path`.
    pub fn get(&mut self, path: &[u8]) -> Option<Arc<HostFd>> {
        let at = self.0.iter().position(|(kept, _)| **kept == *path)?;
        let found = self.0.remove(at);
        let fd = Arc::clone(&found.1);
        self.0.push(found);
        Some(fd)
    }

    /// Keeps a directory in the place of the one that has not been used for longest.
    pub fn keep(&mut self, path: &Arc<[u8]>, fd: &Arc<HostFd>) {
        if self.0.len() >= KEPT_MAX {
            self.0.remove(0);
        }
        self.0.push((Arc::clone(path), Arc::clone(fd)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_used_last_are_kept() {
        let root = std::fs::File::open("/").unwrap();
        let fd = Arc::new(HostFd::given(root.into()));
        let mut kept = Directories::default();
        let path = |number: usize| Arc::<[u8]>::from(format!("/{number}").as_bytes());
        for number in 0..KEPT_MAX {
            kept.keep(&path(number), &fd);
        }
        assert!(kept.get(b"/0").is_some());
        kept.keep(&path(KEPT_MAX), &fd);
        assert!(kept.get(b"/1").is_none());
        assert!(kept.get(b"/0").is_some() && kept.get(b"/16").is_some());
    }
}
