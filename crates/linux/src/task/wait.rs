//! Waiting for children (wait(2)).

use kvmlet_abi::Errno;
use kvmlet_abi::linux::wait::{__WALL, __WCLONE};

use crate::cx::Cx;
use crate::kernel::{Kernel, Pid, Zombie};
use crate::signal::signo::SIGCHLD;

/// Whose end is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// Any child's.
    Any,
    /// This child's.
    Child(Pid),
    /// That of a child in this process group.
    Group(Pid),
}

/// The result of a look at the children.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// One that has ended.
    Ended(Zombie),
    /// None of them has ended.
    Running,
}

impl Whose {
    fn matches(self, pid: Pid, pgid: Pid) -> bool {
        match self {
            Self::Any => true,
            Self::Child(child) => child == pid,
            Self::Group(group) => group == pgid,
        }
    }
}

/// Looks for a child of the calling process that has ended. `options` says which kinds of children count.
///
/// # Errors
/// `ECHILD` if there is no such child.
pub fn look(cx: &mut Cx<'_>, whose: Whose, options: u32) -> Result<Found, Errno> {
    let parent = cx.process()?.pid;
    let counts = |pid, pgid, exit_signal: u8| {
        let is_clone = exit_signal != SIGCHLD;
        let kind = options & __WALL != 0 || is_clone == (options & __WCLONE != 0);
        kind && whose.matches(pid, pgid)
    };
    let mut zombies = cx.kernel.zombies.values();
    let ended =
        zombies.find(|one| one.ppid == parent && counts(one.pid, one.pgid, one.exit_signal));
    if let Some(zombie) = ended {
        return Ok(Found::Ended(zombie.clone()));
    }
    let mut running = cx.kernel.processes.values();
    match running.any(|one| one.ppid == parent && counts(one.pid, one.pgid, one.exit_signal)) {
        true => Ok(Found::Running),
        false => Err(Errno::ECHILD),
    }
}

/// A parent has learned of its child's end: nothing of the child is left.
pub fn reap(kernel: &mut Kernel, zombie: &Zombie) {
    kernel.zombies.remove(&zombie.pid);
    if let Some(parent) = kernel.processes.get_mut(&zombie.ppid) {
        parent.children_cpu_ns = parent.children_cpu_ns.saturating_add(zombie.cpu_time_ns);
    }
}
