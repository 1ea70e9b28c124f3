//! Names of the objects inside a kernel value. They are numbers, so that a copy of the value refers to its own.

/// A process id as the guest sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pid(pub i32);

impl Pid {
    /// The parent of processes whose own has ended. It is ours, and waits for every child at once.
    pub const INIT: Self = Self(1);
    /// The first process of a sandbox.
    pub const FIRST: Self = Self(2);
}

pub use kvmlet_mem::MmId;

/// A thread id as the guest sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tid(pub i32);

impl Tid {
    /// The first thread of the first process.
    pub const FIRST: Self = Self(Pid::FIRST.0);
}

/// Name of an open file description.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(pub u64);

/// Name of a host descriptor inside the kernel value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostId(pub u64);

/// Name of an inode of the memory file system.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InodeId(pub u64);

/// Name of a descriptor table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FilesId(pub u64);

impl From<u64> for FilesId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// Name of a working directory with its mask.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FsId(pub u64);

impl From<u64> for FsId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// Name of a pipe, also as a `Source`.
pub type PipeId = u64;

/// Name of an event counter, timer, epoll instance or socket, also as a `Source`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectId(pub u64);
