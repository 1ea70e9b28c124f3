//! inotify instances (inotify(7)) as values: watches, and the events that nobody has read yet.
//!
//! A watch is on an inode, as on Linux. A file of the host's and one of a synthetic directory have none of ours:
//! they are watched by their canonical paths.
//! Linux differs: changes that others make on the host raise no events. Mappings, execve(2) and changes of trees that
//! are changed on the host raise none either.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};
use kvmlet_abi::Errno;
use kvmlet_abi::linux::inotify::{
    IN_ALL_EVENTS, IN_DELETE_SELF, IN_EXCL_UNLINK, IN_IGNORED, IN_ISDIR, IN_MASK_ADD,
    IN_MASK_CREATE, IN_MOVE_SELF, IN_ONESHOT, IN_Q_OVERFLOW, InotifyEvent,
};
use kvmlet_mem::GuestMemory;
use zerocopy::IntoBytes;

use super::anon::ObjectId;
use super::tmpfs::InodeId;

/// Unread events of an instance at most (/proc/sys/fs/inotify/max_queued_events).
pub const EVENTS_MAX: usize = 16_384;
/// Instances at most (max_user_instances).
pub const INSTANCES_MAX: usize = 128;
/// Watches of all instances together at most (max_user_watches): as many as Linux gives where memory is short.
pub const WATCHES_MAX: usize = 8192;
/// Charged to the memory limit for each watch, in bytes, besides its path.
const WATCH_BYTES: u64 = 768;
/// Charged for each event, in bytes, besides its name.
const EVENT_BYTES: u64 = 128;
/// Size of an event without a name; the length of its name is a multiple of it (round_event_name_len).
const HEADER_BYTES: usize = size_of::<InotifyEvent>();

/// The thing that is watched.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Subject {
    /// In the memory file system or an overlay.
    Inode(InodeId),
    /// By canonical path.
    Path(Arc<[u8]>),
}

impl Subject {
    fn cost_bytes(&self) -> u64 {
        match self {
            Self::Inode(_) => WATCH_BYTES,
            Self::Path(path) => WATCH_BYTES.saturating_add(path.len() as u64),
        }
    }
}

/// Something that has happened to a watched object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Happened<'a> {
    /// IN_*: one event, and IN_ISDIR.
    pub mask: u32,
    /// Joins the two events of a rename; else 0.
    pub cookie: u32,
    /// The name of the directory's entry that it has happened to; empty for the object itself.
    pub name: &'a [u8],
    /// True if the object has no name any more (IN_EXCL_UNLINK).
    pub is_unlinked: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Watch {
    subject: Subject,
    /// Events, IN_ONESHOT and IN_EXCL_UNLINK.
    mask: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Event {
    wd: i32,
    mask: u32,
    cookie: u32,
    name: Arc<[u8]>,
    charged_bytes: u64,
}

impl Event {
    /// Bytes that read(2) gives for it.
    fn len(&self) -> usize {
        HEADER_BYTES.saturating_add(self.padded_name_len())
    }

    /// With at least one NUL behind it.
    fn padded_name_len(&self) -> usize {
        match self.name.len() {
            0 => 0,
            len => len.saturating_add(1).next_multiple_of(HEADER_BYTES),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let header = InotifyEvent {
            wd: self.wd,
            mask: self.mask,
            cookie: self.cookie,
            len: u32::try_from(self.padded_name_len()).unwrap_or(0),
        };
        let mut bytes = [header.as_bytes(), &self.name].concat();
        bytes.resize(self.len(), 0);
        bytes
    }

    /// True if the newer event says nothing that this one has not (event_compare in
    /// fs/notify/inotify/inotify_fsnotify.c).
    fn covers(&self, newer: &Self) -> bool {
        self.mask & IN_IGNORED == 0
            && (self.wd, self.mask, &self.name) == (newer.wd, newer.mask, &newer.name)
    }
}

/// One instance.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Inotify {
    watches: OrdMap<i32, Watch>,
    by_subject: OrdMap<Subject, i32>,
    /// The last number given: they are not given again.
    last_wd: i32,
    /// Unread events, oldest first.
    queue: Vector<Event>,
    /// Their length as read.
    queue_bytes: usize,
    /// True while one of them says that others were lost.
    has_overflowed: bool,
}

impl Inotify {
    fn push(&mut self, memory: &mut GuestMemory, mut event: Event) {
        if self.queue.back().is_some_and(|last| last.covers(&event)) {
            return;
        }
        event.charged_bytes = EVENT_BYTES.saturating_add(event.name.len() as u64);
        let fits = self.queue.len() < EVENTS_MAX && memory.charge(event.charged_bytes).is_ok();
        if !fits {
            if self.has_overflowed {
                return;
            }
            self.has_overflowed = true;
            event = Event {
                wd: -1,
                mask: IN_Q_OVERFLOW,
                cookie: 0,
                name: Arc::default(),
                charged_bytes: 0,
            };
        }
        self.queue_bytes = self.queue_bytes.saturating_add(event.len());
        self.queue.push_back(event);
    }

    fn pop(&mut self, memory: &mut GuestMemory) {
        if let Some(event) = self.queue.pop_front() {
            self.queue_bytes = self.queue_bytes.saturating_sub(event.len());
            memory.uncharge(event.charged_bytes);
            if event.mask & IN_Q_OVERFLOW != 0 {
                self.has_overflowed = false;
            }
        }
    }
}

/// All instances.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inotifies {
    instances: OrdMap<ObjectId, Inotify>,
    watchers: OrdSet<(Subject, ObjectId)>,
    last_cookie: u32,
}

impl Inotifies {
    /// Adds an instance.
    ///
    /// # Errors
    /// `EMFILE` if there are too many.
    pub fn create(&mut self, id: ObjectId) -> Result<(), Errno> {
        if self.instances.len() >= INSTANCES_MAX {
            return Err(Errno::EMFILE);
        }
        self.instances.insert(id, Inotify::default());
        Ok(())
    }

    /// True if nothing is watched.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.watchers.is_empty()
    }

    /// True if somebody watches an inode.
    #[must_use]
    pub fn is_watched(&self, subject: &Subject) -> bool {
        !self.watchers_of(subject).is_empty()
    }

    /// The instances that watch something.
    #[must_use]
    pub fn watchers_of(&self, subject: &Subject) -> Vec<ObjectId> {
        let first = (subject.clone(), ObjectId(0));
        let all = self.watchers.range(first..);
        all.take_while(|(watched, _)| watched == subject)
            .map(|(_, id)| *id)
            .collect()
    }

    /// A number for the two events of a rename.
    pub fn next_cookie(&mut self) -> u32 {
        self.last_cookie = self.last_cookie.wrapping_add(1).max(1);
        self.last_cookie
    }

    /// Adds or changes the watch on `subject` (inotify_add_watch(2)); its number.
    ///
    /// # Errors
    /// `EEXIST` with IN_MASK_CREATE; `ENOSPC` if there are too many; `ENOMEM`.
    pub fn watch(
        &mut self,
        memory: &mut GuestMemory,
        id: ObjectId,
        subject: Subject,
        asked: u32,
    ) -> Result<i32, Errno> {
        let mask = asked & (IN_ALL_EVENTS | IN_ONESHOT | IN_EXCL_UNLINK);
        let all = self.watchers.len();
        let instance = self.instances.get_mut(&id).ok_or(Errno::EINVAL)?;
        if let Some(wd) = instance.by_subject.get(&subject).copied() {
            if asked & IN_MASK_CREATE != 0 {
                return Err(Errno::EEXIST);
            }
            let watch = instance.watches.get_mut(&wd).ok_or(Errno::EINVAL)?;
            let kept = if asked & IN_MASK_ADD != 0 {
                watch.mask
            } else {
                0
            };
            watch.mask = kept | mask;
            return Ok(wd);
        }
        let wd = instance.last_wd.checked_add(1).ok_or(Errno::ENOSPC)?;
        if all >= WATCHES_MAX {
            return Err(Errno::ENOSPC);
        }
        let charged = memory.charge(subject.cost_bytes());
        charged.map_err(|_| Errno::ENOMEM)?;
        instance.last_wd = wd;
        instance.by_subject.insert(subject.clone(), wd);
        let watch = Watch {
            subject: subject.clone(),
            mask,
        };
        instance.watches.insert(wd, watch);
        self.watchers.insert((subject, id));
        Ok(wd)
    }

    /// Removes a watch, and says so in the queue; what it was on.
    ///
    /// # Errors
    /// `EINVAL` if there is no such watch.
    pub fn unwatch(
        &mut self,
        memory: &mut GuestMemory,
        id: ObjectId,
        wd: i32,
    ) -> Result<Subject, Errno> {
        let instance = self.instances.get_mut(&id).ok_or(Errno::EINVAL)?;
        let watch = instance.watches.remove(&wd).ok_or(Errno::EINVAL)?;
        instance.by_subject.remove(&watch.subject);
        memory.uncharge(watch.subject.cost_bytes());
        let ignored = Event {
            wd,
            mask: IN_IGNORED,
            cookie: 0,
            name: Arc::default(),
            charged_bytes: 0,
        };
        instance.push(memory, ignored);
        self.watchers.remove(&(watch.subject.clone(), id));
        Ok(watch.subject)
    }

    /// Tells an instance, if its watch on `subject` is for that. True if there is something to read.
    pub fn raise(
        &mut self,
        memory: &mut GuestMemory,
        (id, subject): (ObjectId, &Subject),
        happened: Happened<'_>,
    ) -> bool {
        let Some(instance) = self.instances.get_mut(&id) else {
            return false;
        };
        let Some(wd) = instance.by_subject.get(subject).copied() else {
            return false;
        };
        let wanted = instance.watches.get(&wd).map_or(0, |watch| watch.mask);
        let is_left_out = happened.is_unlinked && wanted & IN_EXCL_UNLINK != 0;
        if happened.mask & wanted & IN_ALL_EVENTS == 0 || is_left_out {
            return false;
        }
        // For compatibility (inotify_handle_inode_event).
        let hidden = match happened.mask & (IN_DELETE_SELF | IN_MOVE_SELF) {
            0 => 0,
            _ => IN_ISDIR,
        };
        let event = Event {
            wd,
            mask: happened.mask & !hidden,
            cookie: happened.cookie,
            name: Arc::from(happened.name),
            charged_bytes: 0,
        };
        instance.push(memory, event);
        if wanted & IN_ONESHOT != 0 {
            // Never fails: there is such a watch.
            self.unwatch(memory, id, wd).is_ok()
        } else {
            true
        }
    }

    /// The number of an instance's watch on `subject`.
    #[must_use]
    pub fn watch_on(&self, id: ObjectId, subject: &Subject) -> Option<i32> {
        self.instances.get(&id)?.by_subject.get(subject).copied()
    }

    /// The oldest event as read(2) gives it; `None` if there is none.
    #[must_use]
    pub fn first(&self, id: ObjectId) -> Option<Vec<u8>> {
        let event = self.instances.get(&id)?.queue.front()?;
        Some(event.to_bytes())
    }

    /// The oldest event has been read.
    pub fn take_first(&mut self, memory: &mut GuestMemory, id: ObjectId) {
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.pop(memory);
        }
    }

    /// Bytes of all unread events (FIONREAD).
    #[must_use]
    pub fn readable_bytes(&self, id: ObjectId) -> usize {
        let instance = self.instances.get(&id);
        instance.map_or(0, |instance| instance.queue_bytes)
    }

    /// The watches of an instance: number, subject, events.
    pub fn watches(&self, id: ObjectId) -> impl Iterator<Item = (i32, &Subject, u32)> {
        let watches = self.instances.get(&id).map(|instance| &instance.watches);
        let all = watches.into_iter().flatten();
        all.map(|(wd, watch)| (*wd, &watch.subject, watch.mask & IN_ALL_EVENTS))
    }

    /// An instance is gone; what it has watched.
    pub fn released(&mut self, memory: &mut GuestMemory, id: ObjectId) -> Vec<Subject> {
        let Some(instance) = self.instances.remove(&id) else {
            return Vec::new();
        };
        for event in &instance.queue {
            memory.uncharge(event.charged_bytes);
        }
        let subjects: Vec<_> = instance.by_subject.keys().cloned().collect();
        for subject in &subjects {
            memory.uncharge(subject.cost_bytes());
            self.watchers.remove(&(subject.clone(), id));
        }
        subjects
    }
}
