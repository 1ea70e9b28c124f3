//! What to run, and under which rules.

use std::sync::Arc;
use std::time::Duration;

use kvmlet_linux::Inherited;
use kvmlet_policy::Policy;

use crate::{Calls, EngineError};

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
    /// What it may see of the host's files. Whatever else confines it is made from the same value.
    pub policy: Policy,
    /// Where it starts: a directory that the policy shows.
    pub cwd: Vec<u8>,
    /// Standard streams.
    pub streams: Streams,
    /// Wall-clock limit.
    pub timeout: Option<Duration>,
    /// Memory limit in bytes.
    pub memory_bytes: u64,
    /// Trace.
    pub trace: Trace,
    /// How its system calls travel; forks of a snapshot inherit it.
    pub calls: Calls,
}

/// The rules for a program that is started in `cwd` and may read the trees `readable` besides, all absolute
/// and canonical; and the directory where it starts.
///
/// # Errors
/// [`EngineError::BadArgument`] for a tree that cannot be made readable.
pub fn policy_for(cwd: &[u8], readable: &[Vec<u8>]) -> Result<(Policy, Vec<u8>), EngineError> {
    let (mut policy, start) = Policy::started_from(cwd);
    for tree in readable {
        policy.allow_tree(tree).map_err(|error| {
            EngineError::BadArgument(format!("{}: {error}", String::from_utf8_lossy(tree)))
        })?;
    }
    Ok((policy, start.to_vec()))
}
