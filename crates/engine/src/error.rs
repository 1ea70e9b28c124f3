//! Why a sandbox could not be run.

use std::any::Any;

use kvmlet_abi::Errno;
use kvmlet_budget::{Exhausted, Resource};
use kvmlet_hv::HvError;
use kvmlet_linux::{ExecError, PostError, SpawnError};
use kvmlet_mem::MemError;

use crate::outcome::Ending;

/// Why a program could not be started, or what of ours failed. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such program.
    #[error("{0}: not found")]
    NotFound(String),
    /// The program is there but may not be executed.
    #[error("{program}: {why}")]
    NotExecutable {
        /// Its path.
        program: String,
        /// Why not.
        why: String,
    },
    /// The program is a directory.
    #[error("{0}: is a directory, not a program")]
    IsDirectory(String),
    /// Not a program that this machine runs.
    #[error("{program}: cannot be run: {why}")]
    Format {
        /// Its path.
        program: String,
        /// The fault in it.
        why: String,
    },
    /// A setting that cannot be used.
    #[error("{0}")]
    BadArgument(String),
    /// KVM cannot be used.
    #[error("{0}")]
    Kvm(HvError),
    /// The host refused memory or a descriptor.
    #[error("{0}")]
    Host(String),
    /// The host has no descriptor left.
    #[error("no file descriptor is left for another VM")]
    Descriptors,
    /// Sandboxes have all the memory mappings that they may have.
    #[error("no memory mapping is left for another VM")]
    Mappings,
    /// The program has not come to a point where it can be called.
    #[error("the program is not ready: it does not wait for a message")]
    NotReady,
    /// The program waits, and nothing but another message can wake it.
    #[error("the program waits for a message and has not sent one")]
    Silent,
    /// The program has ended.
    #[error("the program has ended: {}", .0.describe())]
    Ended(Ending),
    /// The program does not wait for connections, or not on one port.
    #[error("{0}")]
    NotListening(String),
    /// The program's time to come to its listener is over.
    #[error("{0}")]
    NotQuiet(String),
    /// Connections of the host's are open.
    #[error("connections to the program are open: {0}")]
    Connected(usize),
    /// A connection cannot be used, with the name of the error.
    #[error("{0}")]
    Connection(&'static str),
    /// Every thread waits, and only the host can wake one.
    #[error("every thread of the program waits: nothing will come before it is sent something")]
    NoAnswer,
    /// The step's time is over. The program can go on.
    #[error("the program did not get there in time")]
    TimedOut,
    /// The owner stopped the step.
    #[error("interrupted")]
    Interrupted,
    /// The program has no such function.
    #[error("{0}")]
    UnknownSymbol(String),
    /// A message is longer than can be sent.
    #[error("{0}")]
    MessageTooLong(PostError),
    /// Too many messages wait to be received.
    #[error("{0}")]
    InboxFull(PostError),
    /// A function that seeds random generators does not do its work: why.
    #[error("the program cannot be told to seed its random generators in each fork: {0}")]
    Unseeded(String),
    /// A called function never will return.
    #[error("{0} did not return: the program ended or replaced the thread that it ran on")]
    CallLost(String),
    /// Only forks can be reset.
    #[error("only a fork of a snapshot can be reset")]
    NotFork,
    /// Guest-physical space has no room for forks of this fork.
    #[error("it goes back to too many freezes, one upon the other")]
    FrozenTooOften,
    /// A connection that leads out cannot be frozen.
    #[error("a connection is open: {0}")]
    LeadsOut(String),
    /// The box is closed.
    #[error("the box is closed")]
    Closed,
    /// A process or descriptor of a box that has been reset since.
    #[error("it is gone: the box has been reset since")]
    Reset,
    /// A limit of a box leaves no room for another command.
    #[error("the box has no room for another process: {0}")]
    BoxFull(String),
    /// A call for a file of a box, with the name of its error.
    #[error("{0}")]
    File(&'static str),
    /// A file that the snapshot shows has changed.
    #[error("{0} has changed since the program was frozen")]
    Stale(String),
    /// Made by a process that this one was forked from.
    #[error("made before this process was forked: its VMs are gone")]
    OtherProcess,
    /// A fault of kvmlet itself.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Too many open files in this process (errno(3)).
const EMFILE: i32 = 24;

/// True if the process has no descriptor left, or sandboxes have all that they may have.
pub(crate) fn is_too_few(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE)
}

impl EngineError {
    pub(crate) fn from_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("panic");
        Self::Internal(text.to_owned())
    }

    /// The kind of error, as the Python layer names it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::NotExecutable { .. } => "not_executable",
            Self::IsDirectory(_) => "is_directory",
            Self::Format { .. } => "bad_elf",
            Self::BadArgument(_) => "bad_argument",
            Self::Kvm(HvError::Missing) => "kvm_missing",
            Self::Kvm(HvError::Permission) => "kvm_permission",
            Self::Kvm(_) => "kvm_unusable",
            Self::Host(_) => "host",
            Self::Descriptors => "descriptors",
            Self::Mappings => "mappings",
            Self::NotReady | Self::Silent => "not_ready",
            Self::NotListening(_) => "not_listening",
            Self::NotQuiet(_) => "not_quiet",
            Self::Connected(_) => "connected",
            Self::Connection(_) => "connection",
            Self::NoAnswer => "no_answer",
            Self::Ended(_) => "ended",
            Self::TimedOut => "timeout",
            Self::Interrupted => "interrupted",
            Self::UnknownSymbol(_) => "unknown_symbol",
            Self::MessageTooLong(_) => "message_too_long",
            Self::InboxFull(_) => "inbox_full",
            Self::Unseeded(_) => "unseeded",
            Self::CallLost(_) => "call_lost",
            Self::NotFork => "not_a_fork",
            Self::FrozenTooOften => "frozen_too_often",
            Self::LeadsOut(_) => "leads_out",
            Self::Reset => "box_reset",
            Self::BoxFull(_) => "box_full",
            Self::File(_) => "file",
            Self::Stale(_) => "stale",
            Self::Closed | Self::OtherProcess => "closed",
            Self::Internal(_) => "internal",
        }
    }
}

impl From<HvError> for EngineError {
    fn from(error: HvError) -> Self {
        match error {
            HvError::Call { source, .. } if source.raw_os_error() == Some(EMFILE) => {
                Self::Descriptors
            }
            HvError::Exhausted(exhausted) => exhausted.into(),
            other => Self::Kvm(other),
        }
    }
}

impl From<Exhausted> for EngineError {
    fn from(exhausted: Exhausted) -> Self {
        match exhausted.resource {
            Resource::Descriptors => Self::Descriptors,
            Resource::Mappings => Self::Mappings,
        }
    }
}

impl From<MemError> for EngineError {
    fn from(error: MemError) -> Self {
        match error {
            MemError::Exhausted(exhausted) => exhausted.into(),
            // The image of the frozen page tables.
            MemError::Freeze(errno) if errno.raw_os_error() == EMFILE => Self::Descriptors,
            other => Self::Host(other.to_string()),
        }
    }
}

impl From<kvmlet_mem::OutOfMemory> for EngineError {
    fn from(error: kvmlet_mem::OutOfMemory) -> Self {
        Self::BadArgument(format!(
            "the memory limit is too small to start a program: {error}"
        ))
    }
}

impl EngineError {
    /// The error of a command `name` that cannot be started.
    #[must_use]
    pub fn of_spawn(error: SpawnError, name: &[u8]) -> Self {
        match error {
            SpawnError::Directory(errno) => Self::BadArgument(format!("cwd: {}", describe(errno))),
            SpawnError::NotFound => Self::NotFound(show(name)),
            SpawnError::Exec(ExecError::Build(errno)) => Self::of_limit(errno),
            SpawnError::Exec(error) => error.into(),
            SpawnError::Limit(errno) => Self::of_limit(errno),
        }
    }

    /// The error of a pipe of a box.
    pub(crate) fn of_exchange(errno: Errno) -> Self {
        match errno {
            // The holder's own memory is a part of the box's.
            Errno::ENOMEM | Errno::EFAULT => Self::of_limit(Errno::ENOMEM),
            errno => Self::File(errno.name()),
        }
    }

    fn of_limit(errno: Errno) -> Self {
        Self::BoxFull(match errno {
            Errno::EAGAIN => "it has as many processes as it may have".to_owned(),
            Errno::EMFILE => "it has as many pipes open as it may have".to_owned(),
            Errno::ENOMEM => "its memory limit is reached".to_owned(),
            Errno::E2BIG => "the arguments are too long".to_owned(),
            errno => errno.name().to_owned(),
        })
    }
}

fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// strerror(3) in the few cases that a person meets when starting a program.
fn describe(errno: Errno) -> String {
    match errno {
        Errno::EACCES => {
            "permission denied (not executable, or outside what the sandbox may read)".to_owned()
        }
        Errno::ENOENT => "not found".to_owned(),
        Errno::ELOOP => "too many symbolic links or interpreters".to_owned(),
        Errno::ENOTDIR => "a part of the path is not a directory".to_owned(),
        other => other.name().to_owned(),
    }
}

impl From<ExecError> for EngineError {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Open { errno, .. }
            | ExecError::Interpreter { errno, .. }
            | ExecError::Build(errno)
                if is_too_few(errno) =>
            {
                Self::Descriptors
            }
            ExecError::Open {
                path,
                errno: Errno::ENOENT,
            } => Self::NotFound(show(&path)),
            ExecError::Directory { path } => Self::IsDirectory(show(&path)),
            ExecError::Open { path, errno } => Self::NotExecutable {
                program: show(&path),
                why: describe(errno),
            },
            ExecError::Interpreter {
                program,
                path,
                errno,
            } => Self::NotExecutable {
                program: show(&program),
                why: format!("its interpreter {}: {}", show(&path), describe(errno)),
            },
            ExecError::Format { path, error } => Self::Format {
                program: show(&path),
                why: error.to_string(),
            },
            ExecError::Build(Errno::ENOMEM) => {
                Self::BadArgument("the memory limit is too small to start the program".to_owned())
            }
            ExecError::Build(errno) => Self::Host(format!("the program cannot be loaded: {errno}")),
        }
    }
}
