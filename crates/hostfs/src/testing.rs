//! Host directories for tests.

use std::path::PathBuf;

/// A host directory that is removed at the end.
pub(crate) struct TempTree(pub PathBuf);

impl TempTree {
    /// A fresh directory under /tmp.
    pub(crate) fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/tmp/kvmlet-hostfs-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempTree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
