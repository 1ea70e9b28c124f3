//! A sandbox: a program in its own VM, run until it ends or a limit ends it.
//!
//! This room joins the others: it builds the VM ([`boot`]), carries traps between the vCPU and the
//! personality ([`run`]), enforces limits, and reports.
#![forbid(unsafe_code)]

mod asking;
mod boot;
mod clones;
mod connection;
mod console;
mod entry;
mod error;
mod flush;
mod hosts;
mod limit;
mod listening;
mod outcome;
mod prepare;
#[cfg(test)]
mod process_tests;
mod program;
mod resident;
mod run;
mod sandbox;
mod serving;
#[cfg(test)]
mod serving_tests;
mod session;
mod snapshot;
mod stats;
mod storage;
#[cfg(test)]
mod testing;
mod time;
mod transport;
mod vm;
mod why;

pub use asking::{NoAnswer, Question, Storages};
pub use connection::ConnectionId;
pub use error::EngineError;
pub use kvmlet_abi::Errno;
pub use kvmlet_hv::probe::{ProbeReport, probe};
pub use kvmlet_hv::{Kicker, forks};
pub use kvmlet_linux::table::{Support, rows};
pub use kvmlet_linux::{
    Access, Attributes, Become, CallArg, Change, ChangeKind, ChangeSet, Changes, Command, Denial,
    Disk, Door, ExitStatus, FILES_MOST, FileInfo, FileTime, Inherited, Links, Offer, OpenFlags,
    Personality, Pid, Refusal, STREAMS, Seen, SetEntry, Shut, Spawned, Spill, Stdio, TerminalSize,
    Thing, Verdict, resolver, unix,
};
pub use kvmlet_policy::net::{NetError, Reach};
pub use kvmlet_policy::{
    Guard, MountMode, Opening, Place, Policy, guard_of, is_saved_set, makes_repository,
};
pub use outcome::{Ending, RunOutcome};
pub use prepare::prepare;
pub use program::{Program, Streams, Trace, Trees, learning, policy_for, policy_for_box};
pub use resident::{Exchange, Exchanged, Resident, Waited};
pub use run::{Owner, Streamed};
pub use sandbox::Sandbox;
pub use serving::{Feed, Flow, Input, Output, Request, Served, ServerFork, Waker};
pub use session::{CallResult, CallReturns, CallValue, Connections};
pub use snapshot::{Snapshot, forget_vms};
pub use stats::Stat;
pub use storage::{Left, Questions, Storage};
pub use transport::Calls;
pub use why::why;

/// Runs a program in a new VM until it ends. The VM and all it held are gone when this returns.
///
/// # Errors
/// [`EngineError`]: the program could not be started, or kvmlet failed; never what the program did.
pub fn run(program: &Program, owner: &mut dyn Owner) -> Result<RunOutcome, EngineError> {
    caught(|| {
        let mut sandbox = boot::build(program)?;
        let limits = run::Limits::of(program, sandbox.started_ns);
        sandbox.run(limits, owner)
    })
}

/// The same, and the program's changes with their contents.
///
/// # Errors
/// As [`run`].
pub fn run_for_changes(
    program: &Program,
    owner: &mut dyn Owner,
) -> Result<(RunOutcome, ChangeSet), EngineError> {
    caught(|| {
        let mut sandbox = boot::build(program)?;
        let limits = run::Limits::of(program, sandbox.started_ns);
        let outcome = sandbox.run(limits, owner)?;
        Ok((outcome, sandbox.into_changes()?))
    })
}

fn caught<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    caught.unwrap_or_else(|panic| Err(EngineError::from_panic(panic.as_ref())))
}
