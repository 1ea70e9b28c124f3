//! Waiting for children (wait(2)).

use kvmlet_abi::Errno;
use kvmlet_abi::linux::signal::{CLD_CONTINUED, CLD_STOPPED};
use kvmlet_abi::linux::wait::{__WALL, __WCLONE, WCONTINUED, WEXITED, WSTOPPED};

use crate::cx::Cx;
use crate::kernel::{Job, Kernel, Pid, Zombie};
use crate::signal::signo::{SIGCHLD, SIGCONT};

/// Whose news are waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// Any child's.
    Any,
    /// This child's.
    Child(Pid),
    /// That of a child in this process group.
    Group(Pid),
}

/// News of a child.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// It has ended.
    Ended(Zombie),
    /// A signal has stopped it.
    Stopped(u8),
    /// SIGCONT has continued it.
    Continued,
}

impl News {
    /// The status word of wait(2).
    #[must_use]
    pub fn wait_word(&self) -> u32 {
        match self {
            Self::Ended(zombie) => zombie.status.wait_word(),
            Self::Stopped(signo) => u32::from(*signo) << 8 | 0x7f,
            Self::Continued => 0xffff,
        }
    }

    /// si_code and si_status of SIGCHLD (sigaction(2)).
    #[must_use]
    pub fn child_code(&self) -> (i32, u8) {
        match self {
            Self::Ended(zombie) => zombie.status.child_code(),
            Self::Stopped(signo) => (CLD_STOPPED, *signo),
            Self::Continued => (CLD_CONTINUED, SIGCONT),
        }
    }
}

/// A child of which there are news.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its id.
    pub pid: Pid,
    /// The news.
    pub news: News,
    /// CPU time, its own and that of children that it waited for, in nanoseconds.
    pub cpu_time_ns: u64,
    /// The memory that it had at most, or one of those children, in bytes.
    pub peak_bytes: u64,
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

/// Looks for a child of the calling process that has news. `options` says which children and which news count.
/// `None` if there may be some later.
///
/// # Errors
/// `ECHILD` if no child will ever have any.
pub fn look(cx: &mut Cx<'_>, whose: Whose, options: u32) -> Result<Option<Found>, Errno> {
    let parent = cx.process()?.pid;
    let counts = |pid, pgid, exit_signal: u8| {
        let is_clone = exit_signal != SIGCHLD;
        let kind = options & __WALL != 0 || is_clone == (options & __WCLONE != 0);
        kind && whose.matches(pid, pgid)
    };
    let ended = cx.kernel.zombies.values().find(|one| {
        options & WEXITED != 0 && one.ppid == parent && counts(one.pid, one.pgid, one.exit_signal)
    });
    let ended = ended.map(|zombie| Found {
        pid: zombie.pid,
        news: News::Ended(zombie.clone()),
        cpu_time_ns: zombie.cpu_time_ns.saturating_add(zombie.children_cpu_ns),
        peak_bytes: zombie.peak_bytes,
    });
    let processes = cx.kernel.processes.values();
    let mut running = processes
        .filter(|one| one.ppid == parent && counts(one.pid, one.pgid, one.exit_signal))
        .peekable();
    let has_running = running.peek().is_some();
    let job = running.find_map(|process| {
        let news = match process.job {
            Job::Stopped { signo, is_told } if options & WSTOPPED != 0 && !is_told => {
                News::Stopped(signo)
            }
            Job::Continued if options & WCONTINUED != 0 => News::Continued,
            _ => return None,
        };
        let cpu_time_ns = process.cpu_time_ns.saturating_add(process.children_cpu_ns);
        Some(Found {
            pid: process.pid,
            news,
            cpu_time_ns,
            peak_bytes: process
                .peak_bytes(&cx.machine.spaces)
                .max(process.children_peak_bytes),
        })
    });
    // The older child first, as Linux goes through them.
    let found = match (ended, job) {
        (Some(ended), Some(job)) if job.pid < ended.pid => Some(job),
        (ended, job) => ended.or(job),
    };
    match found {
        None if !has_running => Err(Errno::ECHILD),
        found => Ok(found),
    }
}

/// A parent has learned of its child's news. Nothing is left of a child that has ended.
pub fn told(kernel: &mut Kernel, found: &Found) {
    match &found.news {
        News::Ended(zombie) => {
            kernel.zombies.remove(&zombie.pid);
            if let Some(parent) = kernel.processes.get_mut(&zombie.ppid) {
                parent.children_cpu_ns = parent.children_cpu_ns.saturating_add(found.cpu_time_ns);
                parent.children_peak_bytes = parent.children_peak_bytes.max(zombie.peak_bytes);
                parent.io.add(zombie.io);
            }
        }
        News::Stopped(_) | News::Continued => {
            let Some(child) = kernel.processes.get_mut(&found.pid) else {
                return;
            };
            child.job = match child.job {
                Job::Stopped { signo, .. } => Job::Stopped {
                    signo,
                    is_told: true,
                },
                Job::Continued | Job::Running => Job::Running,
            };
        }
    }
}
