//! /proc of processes without threads and memory: those that have ended, and our init.

use kvmlet_abi::Errno;

use super::process::{CGROUP, NO_SESSION, NO_TERMINAL, Rows, Stat, children, name, stat_line};
use crate::cx::Cx;
use crate::kernel::{Kin, Pid};
use crate::signal::signo::SIGCHLD;

/// Files of a process without threads and memory. Those that say nothing then are empty.
pub(super) const BARE_FILES: [&[u8]; 18] = [
    b"auxv",
    b"cgroup",
    b"cmdline",
    b"comm",
    b"environ",
    b"limits",
    b"loginuid",
    b"maps",
    b"oom_score",
    b"oom_score_adj",
    b"personality",
    b"schedstat",
    b"sessionid",
    b"smaps",
    b"stat",
    b"statm",
    b"status",
    b"wchan",
];

/// What there is to tell of a process without threads and memory: one that has ended, or our init.
pub(super) struct Bare {
    pub(super) kin: Kin,
    pub(super) state: (char, &'static str),
    pub(super) comm: String,
    pub(super) cmdline: &'static [u8],
    pub(super) cpu_time_ns: u64,
    pub(super) children_cpu_ns: u64,
    pub(super) exit_signal: u8,
    pub(super) threads: usize,
    pub(super) started_ns: u64,
}

impl Bare {
    pub(super) fn find(cx: &Cx<'_>, pid: Pid) -> Option<Self> {
        if pid == Pid::INIT {
            return Some(Self {
                kin: Kin::INIT,
                state: ('S', "sleeping"),
                comm: "kvmlet".to_owned(),
                cmdline: b"kvmlet\0",
                cpu_time_ns: 0,
                children_cpu_ns: 0,
                exit_signal: SIGCHLD,
                threads: 1,
                started_ns: cx.kernel.processes.get(&cx.kernel.main)?.started_ns,
            });
        }
        let zombie = cx.kernel.zombies.get(&pid)?;
        Some(Self {
            kin: cx.kernel.kin().find(|one| one.pid == pid)?,
            state: ('Z', "zombie"),
            comm: name(&zombie.comm),
            cmdline: b"",
            cpu_time_ns: zombie.cpu_time_ns,
            children_cpu_ns: zombie.children_cpu_ns,
            exit_signal: zombie.exit_signal,
            threads: 1,
            started_ns: zombie.started_ns,
        })
    }

    /// The answer to who follows its links: a process that has ended leads nowhere, and our init is not the
    /// program's to look into.
    pub(super) fn link_error(&self) -> Errno {
        if self.kin.pid == Pid::INIT {
            Errno::EACCES
        } else {
            Errno::ENOENT
        }
    }

    pub(super) fn text(&self, cx: &Cx<'_>, rest: &[&[u8]]) -> Option<Vec<u8>> {
        let text = match rest {
            [b"cmdline"] => return Some(self.cmdline.to_vec()),
            [b"children"] => children(cx, self.kin.pid),
            [b"comm"] => format!("{}\n", self.comm),
            [b"cgroup"] => CGROUP.to_owned(),
            [b"loginuid" | b"sessionid"] => NO_SESSION.to_owned(),
            [b"oom_score" | b"oom_score_adj"] => "0\n".to_owned(),
            [b"personality"] => "00000000\n".to_owned(),
            [b"schedstat"] => format!("{} 0 0\n", self.cpu_time_ns),
            [b"statm"] => "0 0 0 0 0 0 0\n".to_owned(),
            [b"wchan"] => "0".to_owned(),
            [b"stat"] => stat_line(&Stat {
                id: self.kin.pid.0,
                comm: &self.comm,
                state: self.state.0,
                kin: self.kin,
                terminal: NO_TERMINAL,
                ticks: [self.cpu_time_ns, self.children_cpu_ns],
                nice: 0,
                threads: self.threads,
                memory: [0; 2],
                exit_signal: self.exit_signal,
                started_ns: self.started_ns,
            }),
            [b"status"] => {
                let (letter, word) = self.state;
                let creds = cx.kernel.creds_of(self.kin.pid);
                let pid = self.kin.pid.0;
                let mut out = Rows::default();
                out.add("Name", &self.comm);
                out.add("State", format!("{letter} ({word})"));
                out.add("Tgid", pid);
                out.add("Ngid", 0);
                out.add("Pid", pid);
                out.add("PPid", self.kin.ppid.0);
                out.add("TracerPid", 0);
                out.add_ids(creds);
                out.add("FDSize", 0);
                out.add_groups(creds);
                out.add_kin(pid, self.kin);
                out.add("Threads", self.threads);
                out.0
            }
            [name] if BARE_FILES.contains(name) => String::new(),
            _ => return None,
        };
        Some(text.into_bytes())
    }
}
