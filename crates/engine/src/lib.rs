//! A sandbox: a program in its own VM, run until it ends or a limit ends it.
//!
//! This room joins the others: it builds the VM ([`boot`]), carries traps between the vCPU and the
//! personality ([`run`]), enforces limits, and reports.
#![forbid(unsafe_code)]

mod boot;
mod entry;
mod error;
mod flush;
mod hosts;
mod limit;
mod outcome;
mod prepare;
#[cfg(test)]
mod process_tests;
mod program;
mod run;
mod sandbox;
mod session;
mod snapshot;
mod stats;
#[cfg(test)]
mod testing;
mod time;
mod transport;
mod vm;

pub use error::EngineError;
pub use kvmlet_hv::Kicker;
pub use kvmlet_hv::probe::{ProbeReport, probe};
pub use kvmlet_linux::table::{Support, rows};
pub use kvmlet_linux::{CallArg, Inherited};
pub use kvmlet_policy::Policy;
pub use outcome::{Ending, RunOutcome};
pub use prepare::prepare;
pub use program::{Program, Streams, Trace, policy_for};
pub use run::Owner;
pub use sandbox::Sandbox;
pub use session::{CallResult, CallReturns, CallValue};
pub use snapshot::{Snapshot, forget_vms};
pub use stats::Stat;
pub use transport::Calls;

/// Runs a program in a new VM until it ends. The VM and all it held are gone when this returns.
///
/// # Errors
/// [`EngineError`]: the program could not be started, or kvmlet failed; never what the program did.
pub fn run(program: &Program, owner: &mut dyn Owner) -> Result<RunOutcome, EngineError> {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut sandbox = boot::build(program)?;
        let deadline_ns = program.timeout.map(|timeout| {
            let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
            sandbox.started_ns.saturating_add(timeout_ns)
        });
        sandbox.run(deadline_ns, owner)
    }));
    caught.unwrap_or_else(|panic| Err(EngineError::from_panic(panic.as_ref())))
}
