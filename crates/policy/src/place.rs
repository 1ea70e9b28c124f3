//! The trees of a policy, as the look-up of a path sees them.

/// The tree a canonical path belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// A host file or directory that may be read.
    Readable,
    /// A host tree that may be read, and changed in memory: the host's own stays as it is.
    Overlay,
    /// A host tree that may be read, and changed itself.
    Writable,
    /// A directory that only leads to something visible: ours, listing [`crate::Policy::children`].
    Leading,
    /// The memory file system.
    Tmp,
    /// The process file system, ours.
    Proc,
    /// Devices, ours.
    Dev,
    /// The system file system, ours.
    Sys,
    /// A file of the host's settings in whose place there is one of ours, or one of [`LINKS`].
    Made,
    /// Everything else.
    Outside,
}

impl Place {
    /// The name that the library knows it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Readable => "readable",
            Self::Overlay => "overlay",
            Self::Writable => "writable",
            Self::Leading => "leading",
            Self::Tmp => "tmp",
            Self::Proc => "proc",
            Self::Dev => "dev",
            Self::Sys => "sys",
            Self::Made => "made",
            Self::Outside => "outside",
        }
    }

    /// True if it is a host tree, in whatever way it may be changed.
    #[must_use]
    pub fn is_of_host(self) -> bool {
        matches!(self, Self::Readable | Self::Overlay | Self::Writable)
    }

    /// True if what is there is the host's own: changes, if there are any, are not in memory.
    #[must_use]
    pub fn is_on_host(self) -> bool {
        matches!(self, Self::Readable | Self::Writable)
    }
}
