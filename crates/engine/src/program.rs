//! A program to run, and the rules that it runs under.

use std::sync::Arc;
use std::time::Duration;

use kvmlet_linux::{Access, Disk, Host, Inherited};
use kvmlet_policy::{MountMode, Policy, PolicyError, WORK};

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
    /// Things that have been opened for its network.
    pub access: Arc<Access>,
    /// The directory that it starts in: one that the policy shows.
    pub cwd: Vec<u8>,
    /// Standard streams.
    pub streams: Streams,
    /// Wall-clock limit.
    pub timeout: Option<Duration>,
    /// Limit on CPU time, its own and that of the work for it.
    pub cpu_time: Option<Duration>,
    /// Memory limit in bytes.
    pub memory_bytes: u64,
    /// Limit on its files, and the host's file for those that memory has no room for; forks of a snapshot have it too.
    pub disk: Option<Disk>,
    /// Processes at most, with those that have not been waited for.
    pub processes_max: usize,
    /// Descriptors that each of them may have at most (RLIMIT_NOFILE).
    pub files_max: u64,
    /// Trace.
    pub trace: Trace,
    /// The way that its system calls travel; forks of a snapshot inherit it.
    pub calls: Calls,
}

/// The host trees that a program sees besides those of every program, absolute and canonical.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trees<'a> {
    /// It may read these.
    pub readable: &'a [Vec<u8>],
    /// It may change this one in memory.
    pub overlay: Option<&'a [u8]>,
    /// It may change these themselves.
    pub writable: &'a [Vec<u8>],
    /// It sees these at other paths, or in other ways: host path, path, changes that it may make.
    pub bound: &'a [(Vec<u8>, Vec<u8>, MountMode)],
    /// There it has empty trees in memory. They need not be on the host.
    pub memory: &'a [Vec<u8>],
}

/// The rules for a box, whose commands may use these trees besides the system's, and the directory where
/// they start: an empty one.
///
/// # Errors
/// As [`policy_for`].
pub fn policy_for_box(trees: Trees<'_>) -> Result<(Policy, Vec<u8>), EngineError> {
    let mut policy = Policy::default();
    policy.show_work();
    allow(&mut policy, trees)?;
    Ok((policy, WORK.to_vec()))
}

fn refused(tree: &[u8], error: &PolicyError) -> EngineError {
    EngineError::BadArgument(format!("{}: {error}", String::from_utf8_lossy(tree)))
}

fn allow(policy: &mut Policy, trees: Trees<'_>) -> Result<(), EngineError> {
    for tree in trees.readable {
        policy
            .allow_named_tree(tree)
            .map_err(|error| refused(tree, &error))?;
    }
    if let Some(tree) = trees.overlay {
        policy
            .overlay_tree(tree)
            .map_err(|error| refused(tree, &error))?;
    }
    // The last, since it takes what lies in it.
    for tree in trees.writable {
        policy
            .write_tree(tree)
            .map_err(|error| refused(tree, &error))?;
    }
    for (host, path, mode) in trees.bound {
        policy
            .bind_tree(host, path, *mode)
            .map_err(|error| refused(path, &error))?;
    }
    for path in trees.memory {
        policy
            .show_memory(path)
            .map_err(|error| refused(path, &error))?;
    }
    Ok(())
}

/// The rules for a program that is started in `cwd`, which may use these trees besides, and the directory where it
/// starts.
///
/// # Errors
/// [`EngineError::BadArgument`] for a tree that cannot be made visible so.
pub fn policy_for(cwd: &[u8], trees: Trees<'_>) -> Result<(Policy, Vec<u8>), EngineError> {
    let (mut policy, start) = Policy::started_from(cwd);
    let start = start.to_vec();
    allow(&mut policy, trees)?;
    Ok((policy, start))
}

/// `policy`, by which the needs of a program are learned ([`Policy::learn`]). `home` is the caller's home directory.
///
/// # Errors
/// [`EngineError::Host`]
pub fn learning(policy: &Policy, home: &[u8]) -> Result<Policy, EngineError> {
    let host =
        Host::new(policy.clone(), 0).map_err(|error| EngineError::Host(error.to_string()))?;
    let is_directory =
        |path: &[u8]| matches!(host.roots.locate(path), Ok((_, attr)) if attr.is_dir());
    let mut policy = policy.clone();
    policy.learn(home, is_directory);
    Ok(policy)
}
