//! The record of what a program uses of the host beyond its rules, while they are learned ([`Policy::learn`]).
//!
//! [`Policy::learn`]: kvmlet_policy::Policy::learn

use std::collections::BTreeMap;

use bitflags::bitflags;
use kvmlet_policy::join;

use super::path::{Found, Node};
use super::tmpfs::InodeId;
use crate::cx::Cx;

/// Things kept at most; further ones are only counted.
const KEPT_MAX: usize = 20_000;
/// Bytes of all their paths at most.
const BYTES_MAX: usize = 8 << 20;

bitflags! {
    /// The ways that a path has been used.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Use: u8 {
        /// Something other than a directory was found there.
        const FILE = 1;
        /// A directory was found there.
        const DIRECTORY = 2;
        /// Its names were listed.
        const LISTED = 4;
        /// It was opened to be changed, or its attributes were.
        const CHANGED = 8;
        /// The name was made, removed or given to something else.
        const NAMED = 16;
    }
}

/// Paths that were used, and the ways of it. Bounded, whatever a program does.
#[derive(Debug, Default)]
pub struct Uses {
    /// By canonical path, and the path that the program gave if that led through a symbolic link, else nothing.
    found: BTreeMap<(Vec<u8>, Vec<u8>), Use>,
    bytes: usize,
    /// Uses of paths that are not among them, because there were too many.
    pub not_kept: u64,
}

impl Uses {
    /// They, sorted: canonical path, path as given, ways.
    pub fn found(&self) -> impl Iterator<Item = (&[u8], &[u8], Use)> {
        let found = self.found.iter();
        found.map(|((path, given), uses)| (path.as_slice(), given.as_slice(), *uses))
    }

    fn note(&mut self, path: &[u8], given: &[u8], new: Use) {
        let key = (path.to_vec(), given.to_vec());
        if let Some(known) = self.found.get_mut(&key) {
            known.insert(new);
            return;
        }
        let bytes = self
            .bytes
            .saturating_add(path.len())
            .saturating_add(given.len());
        if self.found.len() >= KEPT_MAX || bytes > BYTES_MAX {
            self.not_kept = self.not_kept.saturating_add(1);
            return;
        }
        self.bytes = bytes;
        self.found.insert(key, new);
    }
}

/// A canonical path has been used.
pub fn used(cx: &mut Cx<'_>, path: &[u8], new: Use) {
    if cx.host.policy.is_learned(path) {
        cx.host.report.uses.note(path, b"", new);
    }
}

/// A path has led to something, through symbolic links if it is `given`.
pub fn found(cx: &mut Cx<'_>, found: &Found, given: Option<&[u8]>) {
    if !cx.host.policy.is_learned(&found.path) {
        return;
    }
    let is_dir = match &found.node {
        Node::Host(_, attr) => attr.is_dir(),
        Node::Tmp(inode) => {
            let inode = cx.kernel.tmpfs.get(*inode);
            inode.is_ok_and(|inode| inode.dir().is_ok())
        }
        Node::Synth(_) | Node::Open(_) => return,
    };
    let new = if is_dir { Use::DIRECTORY } else { Use::FILE };
    let given = given.unwrap_or_default();
    cx.host.report.uses.note(&found.path, given, new);
}

/// A name in a directory has come, gone or become another's.
pub fn named(cx: &mut Cx<'_>, dir: InodeId, name: &[u8]) {
    if !cx.host.policy.is_learning() {
        return;
    }
    if let Ok(dir) = cx.kernel.tmpfs.path_of(dir) {
        used(cx, &join(&dir, name), Use::NAMED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_bounded_in_number_and_length() {
        let mut uses = Uses::default();
        for number in 0..KEPT_MAX + 10 {
            uses.note(format!("/{number}").as_bytes(), b"", Use::FILE);
        }
        uses.note(b"/5", b"", Use::CHANGED);
        assert_eq!((uses.found.len(), uses.not_kept), (KEPT_MAX, 10));
        let ways = uses.found().find(|(path, ..)| *path == b"/5").unwrap().2;
        assert_eq!(ways, Use::FILE | Use::CHANGED);
        let mut uses = Uses::default();
        for number in 0..3000 {
            let path = format!("/{}/{number}", "x".repeat(4000));
            uses.note(path.as_bytes(), path.as_bytes(), Use::FILE);
        }
        assert!(uses.bytes <= BYTES_MAX && uses.not_kept > 0);
    }
}
