//! Message queues (msgget(2)). A message that somebody waits for is handed to the first who does.

use std::sync::Arc;

use imbl::Vector;
use kvmlet_abi::Errno;
use kvmlet_mem::GuestMemory;

use super::ids::{Ids, Perm};
use super::{Handed, Line, Wish};
use crate::id::{Pid, Tid};
use crate::kernel::Kernel;
use crate::outcome::{Resume, WaitOn};

/// Queues that there may be (MSGMNI).
pub const QUEUES_MAX: u32 = 32_000;
/// Longest message, in bytes (MSGMAX).
pub const MESSAGE_MAX: u64 = 8192;
/// Bytes, and messages, of a queue at most (MSGMNB).
pub const QUEUE_BYTES: u64 = 16_384;
/// Host memory charged to the program for a queue, and for a message beside its text: more than each takes.
const QUEUE_COST_BYTES: u64 = 1024;
const MESSAGE_COST_BYTES: u64 = 128;

/// A message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Its type, at least 1.
    pub kind: i64,
    /// Its text.
    pub text: Vec<u8>,
}

impl Message {
    fn cost_bytes(&self) -> u64 {
        MESSAGE_COST_BYTES.saturating_add(self.text.len() as u64)
    }
}

/// A queue.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Queue {
    /// Its messages, oldest first.
    pub messages: Vector<Arc<Message>>,
    /// Bytes of their texts.
    pub bytes: u64,
    /// Bytes, and messages, that it may have.
    pub bytes_max: u64,
    /// Last msgsnd(2), in seconds since the Epoch.
    pub stime: i64,
    /// Last msgrcv(2).
    pub rtime: i64,
    /// Creation or last IPC_SET.
    pub ctime: i64,
    /// The last one that sent; 0 for none.
    pub sender: i32,
    /// The last one that received; 0 for none.
    pub receiver: i32,
}

/// The types of messages that are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kinds {
    /// Any.
    Any,
    /// This one.
    Only(i64),
    /// All others (MSG_EXCEPT).
    Except(i64),
    /// The lowest of those up to this one.
    UpTo(i64),
}

/// The message that a receiver wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pick {
    /// Types.
    pub kinds: Kinds,
    /// Longest text that it takes; others are `E2BIG`.
    pub len_max: u64,
}

impl Kinds {
    fn fits(self, kind: i64) -> bool {
        match self {
            Self::Any => true,
            Self::Only(wanted) => kind == wanted,
            Self::Except(unwanted) => kind != unwanted,
            Self::UpTo(highest) => kind <= highest,
        }
    }
}

/// All queues.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Queues {
    /// By id.
    pub ids: Ids<Queue>,
    /// Messages in all queues.
    pub messages: u64,
    /// Bytes of their texts.
    pub bytes: u64,
}

impl Queue {
    /// True if a text of this length fits (msg_fits_inqueue in ipc/msg.c).
    #[must_use]
    pub fn has_room(&self, len: u64) -> bool {
        let messages = self.messages.len() as u64;
        len.saturating_add(self.bytes) <= self.bytes_max && messages < self.bytes_max
    }

    /// Index of the message that a receiver gets.
    #[must_use]
    pub fn find(&self, kinds: Kinds) -> Option<usize> {
        let mut fitting = self
            .messages
            .iter()
            .enumerate()
            .filter(|(_, message)| kinds.fits(message.kind));
        let found = match kinds {
            // The first of the lowest.
            Kinds::UpTo(_) => fitting.min_by_key(|(_, message)| message.kind),
            _ => fitting.next(),
        };
        found.map(|(index, _)| index)
    }
}

impl Queues {
    /// Adds a queue, charged to the program.
    ///
    /// # Errors
    /// `ENOSPC` if there are too many; `ENOMEM` at the memory limit.
    pub fn add(&mut self, memory: &mut GuestMemory, perm: Perm, now: i64) -> Result<i32, Errno> {
        if !memory.has_room(QUEUE_COST_BYTES) {
            return Err(Errno::ENOMEM);
        }
        let queue = Queue {
            bytes_max: QUEUE_BYTES,
            ctime: now,
            ..Queue::default()
        };
        let id = self.ids.add(perm, queue, QUEUES_MAX)?;
        memory.charge_kernel_anyway(QUEUE_COST_BYTES);
        Ok(id)
    }

    /// Puts a message at the end of a queue that has room for it.
    ///
    /// # Errors
    /// As [`Ids::get`]; `ENOMEM` at the memory limit.
    fn push(&mut self, memory: &mut GuestMemory, id: i32, message: Message) -> Result<(), Errno> {
        let queue = &mut self.ids.get_mut(id)?.object;
        if !memory.has_room(message.cost_bytes()) {
            return Err(Errno::ENOMEM);
        }
        memory.charge_kernel_anyway(message.cost_bytes());
        let len = message.text.len() as u64;
        queue.bytes = queue.bytes.saturating_add(len);
        queue.messages.push_back(Arc::new(message));
        self.bytes = self.bytes.saturating_add(len);
        self.messages = self.messages.saturating_add(1);
        Ok(())
    }

    /// Takes a message out of a queue.
    pub fn take(
        &mut self,
        memory: &mut GuestMemory,
        id: i32,
        index: usize,
    ) -> Option<Arc<Message>> {
        let queue = &mut self.ids.get_mut(id).ok()?.object;
        if index >= queue.messages.len() {
            return None;
        }
        let message = queue.messages.remove(index);
        let len = message.text.len() as u64;
        queue.bytes = queue.bytes.saturating_sub(len);
        memory.uncharge_kernel(message.cost_bytes());
        self.bytes = self.bytes.saturating_sub(len);
        self.messages = self.messages.saturating_sub(1);
        Some(message)
    }
}

/// Sends a message into a queue that has room for it: to the first who waits for it, or to its end (pipelined_send in
/// ipc/msg.c).
///
/// # Errors
/// As [`Ids::get`]; `ENOMEM` at the memory limit.
pub fn send(
    kernel: &mut Kernel,
    memory: &mut GuestMemory,
    (id, now): (i32, i64),
    (sender, message): (Pid, Message),
) -> Result<(), Errno> {
    let queue = &mut kernel.ipc.queues.ids.get_mut(id)?.object;
    (queue.sender, queue.stime) = (sender.0, now);
    let line: Vec<Tid> = kernel.sched.in_line(Line::Receivers(id)).collect();
    for tid in line {
        let parked = kernel.sched.parked.get(&tid);
        let Some(WaitOn::Line(_, Wish::Message(pick))) = parked.map(|parked| &parked.wait.on)
        else {
            continue;
        };
        if !pick.kinds.fits(message.kind) {
            continue;
        }
        if message.text.len() as u64 > pick.len_max {
            hand(kernel, tid, Handed::TooLong);
            continue;
        }
        let pid = kernel.threads.get(&tid).map_or(0, |thread| thread.pid.0);
        let queue = &mut kernel.ipc.queues.ids.get_mut(id)?.object;
        (queue.receiver, queue.rtime) = (pid, now);
        hand(kernel, tid, Handed::Message(Arc::new(message)));
        return Ok(());
    }
    kernel.ipc.queues.push(memory, id, message)
}

/// A thread's wait ends with this answer.
fn hand(kernel: &mut Kernel, tid: Tid, handed: Handed) {
    if let Some(parked) = kernel.sched.parked.get_mut(&tid)
        && let Resume::Retry(state) = &mut parked.wait.resume
    {
        state.handed = Some(handed);
    }
    kernel.sched.retry(tid, false);
}

/// A queue has room, or another limit: who waits for that tries again.
pub fn wake_line(kernel: &mut Kernel, line: Line) {
    let waiting: Vec<Tid> = kernel.sched.in_line(line).collect();
    for tid in waiting {
        kernel.sched.retry(tid, false);
    }
}

/// IPC_RMID: the queue goes with its messages, and who waits for it is told so.
pub fn remove(kernel: &mut Kernel, memory: &mut GuestMemory, id: i32) {
    while kernel.ipc.queues.take(memory, id, 0).is_some() {}
    if kernel.ipc.queues.ids.remove(id).is_none() {
        return;
    }
    memory.uncharge_kernel(QUEUE_COST_BYTES);
    for line in [Line::Receivers(id), Line::Senders(id)] {
        let waiting: Vec<Tid> = kernel.sched.in_line(line).collect();
        for tid in waiting {
            hand(kernel, tid, Handed::Removed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_by_type() {
        let mut queue = Queue {
            bytes_max: 3,
            ..Queue::default()
        };
        assert_eq!(queue.find(Kinds::Any), None);
        for kind in [3, 1, 2, 1] {
            let text = Vec::new();
            queue.messages.push_back(Arc::new(Message { kind, text }));
        }
        assert_eq!(queue.find(Kinds::Any), Some(0));
        assert_eq!(queue.find(Kinds::Only(1)), Some(1));
        assert_eq!(queue.find(Kinds::Only(9)), None);
        assert_eq!(queue.find(Kinds::Except(3)), Some(1));
        assert_eq!(queue.find(Kinds::UpTo(3)), Some(1));
        assert_eq!(queue.find(Kinds::UpTo(0)), None);
        assert!(!queue.has_room(0));
    }
}
