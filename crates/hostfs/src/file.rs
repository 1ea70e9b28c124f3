//! A host descriptor and what we know of it.

use std::sync::Arc;

use crate::hostfd::HostFd;
use crate::listing::Listing;

/// The kind of file that a host descriptor is open on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostKind {
    /// A regular file, open for reading.
    File,
    /// A regular file of a tree that may be changed, open for writing.
    WritableFile,
    /// A directory, open for reading.
    Directory,
    /// Anything, opened as a mere location (O_PATH).
    Location,
    /// An inherited stream that is a regular file or block device: reads and writes do not wait.
    FileStream,
    /// An inherited stream that is a terminal.
    Terminal,
    /// An inherited pipe.
    Stream,
    /// An inherited socket.
    Socket,
}

/// A host descriptor and what we know of it. Used at explicit positions only; never made
/// non-blocking.
#[derive(Clone, Debug)]
pub struct HostFile {
    /// The descriptor.
    pub fd: Arc<HostFd>,
    /// The same terminal or pipe, opened again for us alone and non-blocking: a transfer by it never
    /// waits. Readiness is asked of `fd`, which may have seen more (a writer that has gone since).
    pub own: Option<Arc<HostFd>>,
    /// The kind of file that it is open on.
    pub kind: HostKind,
    /// Names of a directory as last listed.
    pub listing: Option<Arc<Listing>>,
}

impl HostFile {
    /// True if both share what they refer to. All forks share it, so their counts of references, which
    /// the processors would pass on to one another, are left alone where they can be.
    #[must_use]
    pub fn same_objects(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.fd, &other.fd)
            && match (&self.listing, &other.listing) {
                (None, None) => true,
                (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs),
                _ => false,
            }
    }
}
