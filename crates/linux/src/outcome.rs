//! A handler's answer: a result, or a wait as data.

use imbl::Vector;
use kvmlet_abi::Errno;

use crate::budget::Populate;
use crate::host::HostId;
use crate::ipc::{Handed, Line, Wish};
use crate::task::usage::Moves;
use crate::vfs::anon::ObjectId;
use crate::vfs::tmpfs::InodeId;

/// The result of a call: the value of `rax` or an error number.
pub type SysResult = Result<u64, Errno>;

/// A handler's decision. It never blocks.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The call is complete.
    Done(SysResult),
    /// The thread parks; [`Wait`] says until when and what then.
    Wait(Wait),
    /// The call has worked for long enough: it is made again at once, with this in hand, after the engine
    /// has looked at its limits. Its [`CallState::turn`] says what may happen in between.
    Again(CallState),
    /// The handler has set the thread's registers itself (rt_sigreturn, execve).
    Registers,
    /// The calling thread no longer exists.
    Gone,
}

impl From<SysResult> for Outcome {
    fn from(result: SysResult) -> Self {
        Self::Done(result)
    }
}

/// A parked call, as a plain value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The event that ends the wait early.
    pub on: WaitOn,
    /// Absolute time on the guest's monotonic clock, in nanoseconds; `None` waits for ever.
    pub deadline_ns: Option<u64>,
    /// The action at a wake, a timeout and a signal.
    pub resume: Resume,
}

/// The event that a parked thread waits for (besides its deadline and signals).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitOn {
    /// A futex wake. The waker delivers 0.
    Futex(FutexKey, u32),
    /// A mutex with priority inheritance, which this thread has. The one who unlocks it delivers 0.
    PiMutex(FutexKey, crate::kernel::Tid),
    /// The same as [`WaitOn::Futex`], but a wake only moves this thread to the line of a mutex with priority
    /// inheritance, the second (FUTEX_WAIT_REQUEUE_PI).
    Requeue(FutexKey, FutexKey),
    /// Any of these sources becoming ready; the call is then made again.
    Sources(Vector<Source>),
    /// A signal of this set (rt_sigtimedwait(2)): the call is made again and takes it.
    Signals(u64),
    /// A message in the inbox, first come first served; the call is then made again.
    Message,
    /// A turn in a line for an object of System V IPC.
    Line(Line, Wish),
    /// CPU time reaching this many nanoseconds ([`crate::timer::Timers::sleep`]).
    CpuTime(crate::timer::Timeline, i64),
    /// This child's end or its execve(2), whatever signals come (vfork(2)). It delivers the child's id.
    Vfork(crate::kernel::Pid),
    /// Only a signal or the deadline.
    Nothing,
}

/// A futex: the word's home, not its address (futex(2)).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FutexKey {
    /// A private futex: address space and guest-virtual address.
    Private(crate::kernel::MmId, u64),
    /// A shared futex: the file that is mapped and the word's offset in it.
    Shared(SharedObject, u64),
}

/// The object that a shared mapping shows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SharedObject {
    /// A file of the memory file system, shared anonymous memory included.
    Memory(InodeId),
    /// A host file.
    Host {
        /// Device number.
        dev: u64,
        /// Inode number.
        ino: u64,
    },
}

/// Something that can become ready.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    /// A host descriptor, for these poll(2) events.
    Host(HostId, i16),
    /// A pipe of ours.
    Pipe(u64),
    /// Room for a message to the host.
    Outbox,
    /// Room for one more question to a storage.
    AskRoom,
    /// The answer to the question with this ticket.
    Answer(u64),
    /// An event counter, timer, epoll instance or socket of ours.
    Object(ObjectId),
    /// A signal becoming pending (signalfd(2)).
    Signals,
    /// News of a child of this process (wait(2)).
    Children(crate::kernel::Pid),
    /// The end of this process (pidfd_open(2)).
    End(crate::kernel::Pid),
}

/// The way that a parked thread goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Make the same call again, with `state` in hand. At the deadline the call is made again too,
    /// with [`CallState::expired`] set. A signal ends it by the row's restart class.
    Retry(CallState),
    /// Deliver: a wake gives 0, the deadline gives `at_deadline`; a signal ends it by the row's
    /// restart class.
    Deliver {
        /// Result when the deadline passes.
        at_deadline: SysResult,
        /// nanosleep(2): where to write the remaining time when a signal ends it; 0 for none.
        remain_gva: u64,
    },
}

/// The memory that a call made again has of its first try.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CallState {
    /// Absolute deadline computed at the first try, guest monotonic nanoseconds.
    pub deadline_ns: Option<u64>,
    /// Bytes already transferred.
    pub progress: u64,
    /// The call has waited for its source to be ready.
    pub has_waited: bool,
    /// The way that the call moves them.
    pub moves: Moves,
    /// The thread was moved from a futex to a mutex (FUTEX_CMP_REQUEUE_PI).
    pub is_requeued: bool,
    /// The deadline has passed: answer now.
    pub expired: bool,
    /// Signal mask to put back when the call ends (ppoll, pselect6, rt_sigsuspend).
    pub saved_mask: Option<u64>,
    /// The things that may happen before the call goes on.
    pub turn: Turn,
    /// Pages to fault in, and the result once they are there: the rest of a call that has done all else.
    pub populate: Option<(Populate, u64)>,
    /// Messages that a call of several has moved: `progress` is of the one after them.
    pub messages: u64,
    /// The answer that has ended the wait (msgrcv(2), msgsnd(2)).
    pub handed: Option<Handed>,
}

impl CallState {
    /// The state of a call that goes on after `progress`, as one step that nothing comes between.
    #[must_use]
    pub fn kept(&self, progress: u64) -> Self {
        Self {
            progress,
            turn: Turn::Kept,
            ..self.clone()
        }
    }
}

/// The things that may happen before a call goes on that has worked for long enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Turn {
    /// It has not, but has waited.
    #[default]
    Waited,
    /// Nothing of the guest's: the call is one step, as where Linux holds a lock meanwhile.
    Kept,
    /// Other threads run, and a signal ends the call with what it has moved.
    Shared,
}
