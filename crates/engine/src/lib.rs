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
mod run;
mod sandbox;
mod session;
mod snapshot;
mod stats;
mod time;
mod transport;
mod vm;

use std::sync::Arc;
use std::time::Duration;

pub use error::EngineError;
pub use kvmlet_hv::Kicker;
pub use kvmlet_hv::probe::{ProbeReport, probe};
pub use kvmlet_linux::guest_call::CallArg;
pub use kvmlet_linux::syscalls::table::{Support, rows};
pub use kvmlet_linux::vfs::stdio::Inherited;
pub use outcome::{Ending, RunOutcome};
pub use prepare::prepare;
pub use run::Owner;
pub use sandbox::Sandbox;
pub use session::{CallResult, CallReturns, CallValue};
pub use snapshot::{Snapshot, forget_vms};
pub use stats::Stat;
pub use transport::Calls;

/// Where a program's standard streams go.
#[derive(Debug)]
pub enum Streams {
    /// To the caller's own descriptors 0, 1 and 2, opened before; one that is closed stays closed.
    Inherit(Arc<Inherited>),
    /// Input from these bytes; output collected up to a limit in bytes (both streams together).
    Capture {
        /// All of standard input.
        input: Vec<u8>,
        /// Limit on what is collected.
        output_limit_bytes: u64,
    },
}

/// Whether calls are traced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trace {
    /// No.
    Off,
    /// Each call gives a line to [`Owner::trace`].
    On,
}

/// What to run.
#[derive(Debug)]
pub struct Program {
    /// Arguments; the first names the program, looked up in PATH if it has no slash.
    pub argv: Vec<Vec<u8>>,
    /// Environment.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working directory: absolute, canonical, readable to the program.
    pub cwd: Vec<u8>,
    /// Standard streams.
    pub streams: Streams,
    /// Wall-clock limit.
    pub timeout: Option<Duration>,
    /// Memory limit in bytes.
    pub memory_bytes: u64,
    /// Directories that the program may read besides those of the policy: absolute and canonical.
    pub readable: Vec<Vec<u8>>,
    /// Trace.
    pub trace: Trace,
    /// How its system calls travel; forks of a snapshot inherit it.
    pub calls: Calls,
}

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
