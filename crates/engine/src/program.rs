//! A program to run, and the rules that it runs under.

use std::sync::Arc;
use std::time::Duration;

use kvmlet_linux::Inherited;
use kvmlet_policy::Policy;

use crate::{Calls, EngineError};

/// The place that a program's standard streams lead to.
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

/// Says if calls are traced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trace {
    /// No.
    Off,
    /// Each call gives a line to [`Owner::trace`].
    On,
}

/// A program to run.
#[derive(Debug)]
pub struct Program {
    /// Arguments; the first names the program, looked up in PATH if it has no slash.
    pub argv: Vec<Vec<u8>>,
    /// Environment.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// The rules on the host's files that it may see. Whatever else confines it is made from the same value.
    pub policy: Policy,
    /// The directory that it starts in: one that the policy shows.
    pub cwd: Vec<u8>,
    /// Standard streams.
    pub streams: Streams,
    /// Wall-clock limit.
    pub timeout: Option<Duration>,
    /// Memory limit in bytes.
    pub memory_bytes: u64,
    /// Processes at most, with those that have not been waited for.
    pub processes_max: usize,
    /// Trace.
    pub trace: Trace,
    /// The way that its system calls travel; forks of a snapshot inherit it.
    pub calls: Calls,
}

/// The rules for a program that is started in `cwd`, and the directory where it starts.
///
/// The program may read the trees `readable` besides. All are absolute and canonical.
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
