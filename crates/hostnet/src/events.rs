//! Events of host sockets: an epoll instance for each sandbox, and one thread of the process that looks at all of these
//! instances. It has the vCPU kicked whose guest computes while something arrives for it.
//!
//! A sandbox that waits looks at its own instance.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use kvmlet_budget::{Claim, Exhausted, Held, Resource, Share};

/// Events that are taken at once.
const EVENTS_MAX: usize = 64;

/// The things that an event tells of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ready {
    /// The number that the socket was added with.
    pub token: u64,
    /// There is something to be read, the end, or an error.
    pub readable: bool,
    /// It takes more, or has an error.
    pub writable: bool,
}

/// Stops the guest of a sandbox.
type Kick = Box<dyn Fn() + Send>;

/// The link between the thread and a sandbox.
#[derive(Default)]
struct Bell {
    /// Something has happened that the sandbox has not looked at.
    rung: AtomicBool,
    /// The guest computes, or is about to.
    computes: AtomicBool,
    kick: Mutex<Option<Kick>>,
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell")
            .field("rung", &self.rung)
            .finish_non_exhaustive()
    }
}

impl Bell {
    fn ring(&self) {
        self.rung.store(true, Ordering::SeqCst);
        if self.computes.load(Ordering::SeqCst) {
            let kick = self.kick.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(kick) = &*kick {
                kick();
            }
        }
    }
}

/// The thread's side: the instances of all sandboxes.
#[derive(Debug)]
pub struct Watch {
    epoll: OwnedFd,
    bells: Mutex<BTreeMap<u64, Weak<Bell>>>,
    next: AtomicU64,
    /// A child of fork(2) has the instance and no thread.
    process: u32,
}

static WATCH: OnceLock<Watch> = OnceLock::new();

impl Watch {
    /// The process's, and whether it is new: its thread is still to be started then, and calls [`Watch::run`].
    /// `None` in a child of fork(2) or where the host refuses it: a guest that computes learns of events late then.
    #[must_use]
    pub fn of_process() -> Option<(&'static Self, bool)> {
        let mut is_new = false;
        if WATCH.get().is_none() {
            let made = Self {
                epoll: epoll::create(CreateFlags::CLOEXEC).ok()?,
                bells: Mutex::default(),
                next: AtomicU64::new(0),
                process: std::process::id(),
            };
            is_new = WATCH.set(made).is_ok();
        }
        Self::started().map(|watch| (watch, is_new))
    }

    fn started() -> Option<&'static Self> {
        let watch = WATCH.get()?;
        (watch.process == std::process::id()).then_some(watch)
    }

    /// Waits for events, for ever.
    pub fn run(&self) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            let bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
            for event in &events {
                if let Some(bell) = bells.get(&event.data.u64()).and_then(Weak::upgrade) {
                    bell.ring();
                }
            }
        }
    }

    fn add(&self, epoll: &OwnedFd, bell: &Arc<Bell>) -> rustix::io::Result<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        let data = EventData::new_u64(number);
        epoll::add(&self.epoll, epoll, data, EventFlags::IN | EventFlags::ET)?;
        bells.insert(number, Arc::downgrade(bell));
        Ok(number)
    }

    fn remove(&self, number: u64) {
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells.remove(&number);
    }
}

/// One sandbox's sockets.
#[derive(Debug)]
pub struct Events {
    epoll: OwnedFd,
    bell: Arc<Bell>,
    /// The number that the thread knows it by.
    number: Option<u64>,
    _of_sandbox: Held,
    _of_process: Held,
}

/// Why there is no instance.
pub type NoEvents = crate::socket::OpenError;

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Events {
    /// An instance without sockets.
    ///
    /// # Errors
    /// [`NoEvents`]
    pub fn open(share: &Arc<Share>) -> Result<Self, NoEvents> {
        let held: Result<_, Exhausted> = Held::take_share(share, Resource::Descriptors, 1);
        let of_sandbox = held?;
        let of_process = Held::take(Resource::Descriptors, Claim::Guest, 1)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let bell = Arc::new(Bell::default());
        let number = Watch::started().and_then(|watch| watch.add(&epoll, &bell).ok());
        Ok(Self {
            epoll,
            bell,
            number,
            _of_sandbox: of_sandbox,
            _of_process: of_process,
        })
    }

    /// Says how the guest is stopped when something happens while it computes.
    pub fn set_kick(&self, kick: impl Fn() + Send + 'static) {
        let mut own = self
            .bell
            .kick
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *own = Some(Box::new(kick));
    }

    /// Looks out for a socket from now on, until it is closed. Each change is told once.
    ///
    /// # Errors
    /// [`NoEvents`]
    pub fn add(&self, socket: impl AsFd, token: u64) -> Result<(), NoEvents> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(
            &self.epoll,
            socket,
            EventData::new_u64(token),
            flags,
        )?)
    }

    /// The guest is about to compute. `false` if something has happened before: it is to be looked at first.
    #[must_use]
    pub fn begin_computing(&self) -> bool {
        self.bell.computes.store(true, Ordering::SeqCst);
        !self.bell.rung.load(Ordering::SeqCst)
    }

    /// The guest has left.
    pub fn end_computing(&self) {
        self.bell.computes.store(false, Ordering::SeqCst);
    }

    /// True if something has happened that has not been taken. Nothing is asked of the host.
    #[must_use]
    pub fn has_rung(&self) -> bool {
        self.bell.rung.load(Ordering::SeqCst)
    }

    /// Takes some of what has happened. None if nothing has.
    #[must_use]
    pub fn take(&self) -> Vec<Ready> {
        self.bell.rung.store(false, Ordering::SeqCst);
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Nothing else fails here.
        let _ = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&now));
        if events.len() == EVENTS_MAX {
            self.bell.rung.store(true, Ordering::SeqCst);
        }
        let ready = events.iter().map(|event| {
            let (flags, gone) = (event.flags, EventFlags::HUP | EventFlags::ERR);
            Ready {
                token: event.data.u64(),
                readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | gone),
                writable: flags.intersects(EventFlags::OUT | gone),
            }
        });
        ready.collect()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(number) = self.number
            && let Some(watch) = Watch::started()
        {
            watch.remove(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn more_events_than_are_taken_at_once_are_all_told() {
        let events = Events::open(&Arc::default()).unwrap();
        let mut sockets = Vec::new();
        let count = EVENTS_MAX as u64 + 6;
        for token in 0..count {
            let flags = SocketFlags::CLOEXEC;
            let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            events.add(&pair.0, token).unwrap();
            sockets.push(pair);
        }
        // Each is writable.
        let mut told: Vec<u64> = Vec::new();
        let first = events.take();
        assert!(first.len() < sockets.len() && events.has_rung());
        told.extend(first.iter().map(|ready| ready.token));
        while events.has_rung() {
            told.extend(events.take().iter().map(|ready| ready.token));
        }
        told.sort_unstable();
        assert!(told.into_iter().eq(0..count));
    }
}
