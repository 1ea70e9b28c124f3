//! Objects without a name in any file system: event counters, timers, epoll instances, sockets.
//! Each has exactly one open file description, and dies with it; but see [`crate::net`].

use imbl::OrdMap;
use kvmlet_abi::Errno;

use super::epoll::Epolls;
use super::eventfd::EventFd;
use super::inotify::Inotifies;
use super::timerfd::TimerFds;
pub use crate::id::ObjectId;
use crate::net::Sockets;

/// All of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Objects {
    /// Last number given.
    last: u64,
    /// eventfd(2)
    pub events: OrdMap<ObjectId, EventFd>,
    /// timerfd_create(2)
    pub timers: TimerFds,
    /// epoll(7)
    pub epolls: Epolls,
    /// inotify(7)
    pub inotifies: Inotifies,
    /// socket(2), socketpair(2)
    pub sockets: Sockets,
}

impl Objects {
    /// A number that no object had before.
    pub fn next_id(&mut self) -> ObjectId {
        self.last = self.last.saturating_add(1);
        ObjectId(self.last)
    }

    /// An event counter, to be changed.
    ///
    /// # Errors
    /// `EBADF` if it is gone (never while a description refers to it).
    pub fn event_mut(&mut self, id: ObjectId) -> Result<&mut EventFd, Errno> {
        self.events.get_mut(&id).ok_or(Errno::EBADF)
    }
}
