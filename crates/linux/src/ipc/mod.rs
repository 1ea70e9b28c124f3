//! System V IPC as values: shared memory, semaphores, message queues (sysvipc(7)). POSIX message queues.
//!
//! Objects are found by key and named by id, until they are removed; no process owns one. What they take is
//! charged to the program.

pub mod ids;
pub mod mq;
pub mod msg;
pub mod sem;
pub mod shm;

use std::sync::Arc;

use self::mq::Mqueues;
use self::msg::{Message, Pick, Queues};
use self::sem::{SemOp, Semaphores};
use self::shm::Segments;

/// All objects of System V IPC.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ipc {
    /// Shared memory segments (shmget(2)).
    pub segments: Segments,
    /// Semaphore sets (semget(2)).
    pub semaphores: Semaphores,
    /// Message queues (msgget(2)).
    pub queues: Queues,
    /// POSIX message queues (mq_overview(7)).
    pub mqueues: Mqueues,
}

/// A line of threads that wait for the same object, first come first served.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Line {
    /// For operations on this semaphore set.
    Semaphores(i32),
    /// For a message in this queue.
    Receivers(i32),
    /// For room in this queue.
    Senders(i32),
}

/// The wish of a thread in a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wish {
    /// All of these operations at once.
    Operations(Arc<[SemOp]>),
    /// A message.
    Message(Pick),
    /// Room.
    Room,
}

/// The answer that a thread gets before it asks again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Handed {
    /// A message that was sent while it waited.
    Message(Arc<Message>),
    /// A message was sent that is too long for it (`E2BIG`).
    TooLong,
    /// The object was removed (`EIDRM`).
    Removed,
}
