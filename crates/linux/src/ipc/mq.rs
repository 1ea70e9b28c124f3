//! POSIX message queues (mq_overview(7)) as values. They are found by name; one lives while it has a name or is
//! open.

use std::cmp::Reverse;
use std::sync::Arc;

use imbl::OrdMap;
use kvmlet_abi::Errno;
use kvmlet_abi::linux::signal::{SIGEV_NONE, SIGEV_SIGNAL, SIGEV_THREAD};
use kvmlet_hostfs::attr::FileTime;
use kvmlet_mem::GuestMemory;

use super::ids::Perm;
use crate::id::{ObjectId, Pid};
use crate::vfs::ready::{POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM};

/// Queues that there may be (/proc/sys/fs/mqueue/queues_max).
pub const QUEUES_MAX: usize = 256;
/// Messages of a queue at most, and without a wish (msg_max, msg_default). Linux differs: with
/// CAP_SYS_RESOURCE they may be more.
pub const MESSAGES_MAX: i64 = 10;
/// Bytes of a message at most, and without a wish (msgsize_max, msgsize_default).
pub const MESSAGE_BYTES_MAX: i64 = 8192;
/// Bytes that count against RLIMIT_MSGQUEUE for a message beside its text (struct msg_msg and
/// struct posix_msg_tree_node).
const TREE_BYTES: u64 = 96;
/// Host memory charged to the program for a queue, and for a message beside its text: more than each takes.
const QUEUE_COST_BYTES: u64 = 1024;
const MESSAGE_COST_BYTES: u64 = 192;

/// Bytes that a notice to a socket has (NOTIFY_COOKIE_LEN in ipc/mqueue.c).
pub const COOKIE_BYTES: usize = 32;

/// The way of telling of a message (mq_notify(3)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// Nobody is told (SIGEV_NONE).
    None,
    /// A signal.
    Signal {
        /// Its number.
        signo: u8,
        /// si_value
        value: u64,
    },
    /// A datagram to a socket of netlink, which a thread of the C library reads (SIGEV_THREAD).
    Socket {
        /// The socket.
        socket: ObjectId,
        /// The datagram, without its last byte.
        cookie: [u8; COOKIE_BYTES],
    },
}

/// The one who is told of the next message that comes into an empty queue (mq_notify(3)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notified {
    /// The process.
    pub pid: Pid,
    /// The way of telling it.
    pub notice: Notice,
}

/// The news for who reads notices from a socket: the last byte of the datagram (ipc/mqueue.c).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum News {
    /// There is a message.
    Message = 1,
    /// It is not told any more.
    Removed = 2,
}

/// A queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mqueue {
    /// Owner and permissions.
    pub perm: Perm,
    /// Messages that it may have.
    pub messages_max: u64,
    /// Bytes that a message may have.
    pub message_bytes_max: u64,
    /// The texts, highest priority first, then oldest first.
    messages: OrdMap<(Reverse<u32>, u64), Arc<[u8]>>,
    /// Bytes of the texts.
    bytes: u64,
    /// Messages that there have been.
    sent: u64,
    /// Open descriptions.
    opens: u64,
    is_named: bool,
    /// The one who is told of a message.
    pub notified: Option<Notified>,
    /// Last reading.
    pub atime: FileTime,
    /// Last message that came or went.
    pub mtime: FileTime,
}

impl Mqueue {
    /// Bytes that count against its creator's RLIMIT_MSGQUEUE.
    #[must_use]
    pub fn limit_bytes(messages_max: u64, message_bytes_max: u64) -> u64 {
        messages_max.saturating_mul(message_bytes_max.saturating_add(TREE_BYTES))
    }

    /// Number of messages.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.messages.len() as u64
    }

    /// True if it has no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// True if another message has to wait.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len() >= self.messages_max
    }

    /// Adds a message.
    ///
    /// # Errors
    /// `ENOMEM` at the memory limit.
    pub fn push(
        &mut self,
        memory: &mut GuestMemory,
        priority: u32,
        text: &[u8],
    ) -> Result<(), Errno> {
        let cost_bytes = cost_bytes(text);
        if !memory.has_room(cost_bytes) {
            return Err(Errno::ENOMEM);
        }
        memory.charge_kernel_anyway(cost_bytes);
        self.bytes = self.bytes.saturating_add(text.len() as u64);
        self.messages
            .insert((Reverse(priority), self.sent), Arc::from(text));
        self.sent = self.sent.saturating_add(1);
        Ok(())
    }

    /// Takes the oldest message of the highest priority.
    pub fn take(&mut self, memory: &mut GuestMemory) -> Option<(u32, Arc<[u8]>)> {
        let (key, text) = self.messages.get_min().cloned()?;
        self.messages.remove(&key);
        self.bytes = self.bytes.saturating_sub(text.len() as u64);
        memory.uncharge_kernel(cost_bytes(&text));
        Some((key.0.0, text))
    }

    /// poll(2) events that hold.
    #[must_use]
    pub fn poll(&self) -> i16 {
        let readable = if self.is_empty() {
            0
        } else {
            POLLIN | POLLRDNORM
        };
        let writable = if self.is_full() {
            0
        } else {
            POLLOUT | POLLWRNORM
        };
        readable | writable
    }

    /// The text that read(2) gives (mqueue_read_file in ipc/mqueue.c).
    #[must_use]
    pub fn status(&self) -> String {
        let pid = self.notified.map_or(0, |notified| notified.pid.0);
        let (notify, signo) = match self.notified.map(|notified| notified.notice) {
            Some(Notice::Signal { signo, .. }) => (SIGEV_SIGNAL, signo),
            Some(Notice::None) => (SIGEV_NONE, 0),
            Some(Notice::Socket { .. }) => (SIGEV_THREAD, 0),
            None => (0, 0),
        };
        format!(
            "QSIZE:{:<10} NOTIFY:{notify:<5} SIGNO:{signo:<5} NOTIFY_PID:{pid:<6}\n",
            self.bytes
        )
    }
}

fn cost_bytes(text: &[u8]) -> u64 {
    MESSAGE_COST_BYTES.saturating_add(text.len() as u64)
}

/// All queues.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mqueues {
    names: OrdMap<Arc<[u8]>, ObjectId>,
    queues: OrdMap<ObjectId, Mqueue>,
}

impl Mqueues {
    /// The queue of a name.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<ObjectId> {
        self.names.get(name).copied()
    }

    /// A queue.
    ///
    /// # Errors
    /// `EBADF` if it is gone (never while a description refers to it).
    pub fn get(&self, id: ObjectId) -> Result<&Mqueue, Errno> {
        self.queues.get(&id).ok_or(Errno::EBADF)
    }

    /// A queue, to be changed.
    ///
    /// # Errors
    /// As [`Mqueues::get`].
    pub fn get_mut(&mut self, id: ObjectId) -> Result<&mut Mqueue, Errno> {
        self.queues.get_mut(&id).ok_or(Errno::EBADF)
    }

    /// Bytes that a user's queues count against RLIMIT_MSGQUEUE.
    #[must_use]
    pub fn used_bytes(&self, uid: u32) -> u64 {
        let own = self.queues.values().filter(|queue| queue.perm.cuid == uid);
        own.map(|queue| Mqueue::limit_bytes(queue.messages_max, queue.message_bytes_max))
            .fold(0, u64::saturating_add)
    }

    /// Adds a queue, charged to the program. Nobody has it open yet.
    ///
    /// # Errors
    /// `ENOSPC` if there are too many; `ENOMEM` at the memory limit.
    pub fn add(
        &mut self,
        memory: &mut GuestMemory,
        (id, name): (ObjectId, &[u8]),
        perm: Perm,
        (messages_max, message_bytes_max): (u64, u64),
        now: FileTime,
    ) -> Result<(), Errno> {
        if self.queues.len() >= QUEUES_MAX {
            return Err(Errno::ENOSPC);
        }
        if !memory.has_room(QUEUE_COST_BYTES) {
            return Err(Errno::ENOMEM);
        }
        memory.charge_kernel_anyway(QUEUE_COST_BYTES);
        let queue = Mqueue {
            perm,
            messages_max,
            message_bytes_max,
            messages: OrdMap::new(),
            bytes: 0,
            sent: 0,
            opens: 0,
            is_named: true,
            notified: None,
            atime: now,
            mtime: now,
        };
        self.names.insert(Arc::from(name), id);
        self.queues.insert(id, queue);
        Ok(())
    }

    /// Takes a queue's name away.
    pub fn unlink(&mut self, memory: &mut GuestMemory, name: &[u8]) {
        if let Some(id) = self.names.remove(name)
            && let Some(queue) = self.queues.get_mut(&id)
        {
            queue.is_named = false;
            self.drop_unused(memory, id);
        }
    }

    /// Counts one more description.
    pub fn opened(&mut self, id: ObjectId) {
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.opens = queue.opens.saturating_add(1);
        }
    }

    /// Counts one description less.
    pub fn released(&mut self, memory: &mut GuestMemory, id: ObjectId) {
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.opens = queue.opens.saturating_sub(1);
            self.drop_unused(memory, id);
        }
    }

    fn drop_unused(&mut self, memory: &mut GuestMemory, id: ObjectId) {
        let unused = |queue: &Mqueue| queue.opens == 0 && !queue.is_named;
        if !self.queues.get(&id).is_some_and(unused) {
            return;
        }
        if let Some(queue) = self.queues.remove(&id) {
            let texts = queue.messages.values().map(|text| cost_bytes(text));
            memory.uncharge_kernel(texts.fold(QUEUE_COST_BYTES, u64::saturating_add));
        }
    }

    /// A process closes a descriptor of a queue: it is not told of messages any more (mqueue_flush_file). Returns
    /// the notice that is not given.
    pub fn closed_by(&mut self, id: ObjectId, pid: Pid) -> Option<Notice> {
        let told = |queue: &Mqueue| queue.notified.is_some_and(|notified| notified.pid == pid);
        if !self.queues.get(&id).is_some_and(told) {
            return None;
        }
        let queue = self.queues.get_mut(&id)?;
        queue.notified.take().map(|notified| notified.notice)
    }

    /// A process has ended. Returns the notices that are not given.
    pub fn process_gone(&mut self, pid: Pid) -> Vec<Notice> {
        let ids: Vec<ObjectId> = self.queues.keys().copied().collect();
        let gone = ids.into_iter().filter_map(|id| self.closed_by(id, pid));
        gone.collect()
    }
}
