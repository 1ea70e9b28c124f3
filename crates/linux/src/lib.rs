//! The Linux personality: what a system call means, in safe Rust, without KVM.
//!
//! Everything the guest can observe of its kernel is one [`Kernel`] value; a handler gets a [`Cx`]
//! and returns an [`Outcome`]: it never blocks. How a call reached us (an exit, a shared page) is
//! unknown here: a call is a thread's registers.
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod apart;
mod asks;
mod budget;
mod by_id;
mod channel;
mod clock;
mod console;
mod creds;
mod cx;
mod exec;
mod fd;
mod frame;
mod guest_call;
mod guest_call_state;
mod host;
mod id;
mod ipc;
mod kernel;
mod mm;
mod net;
mod outcome;
mod personality;
mod report;
mod rlimit;
mod sched;
mod shared;
mod signal;
mod symbols;
mod syscalls;
mod task;
#[cfg(test)]
mod testing;
mod timer;
mod trace;
mod tty;
mod uts;
mod vector;
mod vfs;

// The engine's view of the personality. All else is for this crate alone, so that rustc names what nothing uses.
pub use asks::{Answer, NAME_MAX as ASKED_NAME_MAX, Question};
pub use channel::{MESSAGE_MAX, Peer, PostError};
pub use clock::{GuestClock, boottime_ns, monotonic_ns, realtime_ns};
pub use console::{Wish, stop_job};
pub use creds::Creds;
pub use cx::{CpuInfo, Cx, Machine, Vdso};
pub use exec::{ExecError, ExecRequest, boot as load, search as search_path};
pub use fd::OpenFlags;
pub use guest_call::{CallArg, CallError, CallStatus, Returns};
pub use host::{Host, STREAMED_BATCH_BYTES};
pub use kernel::{End, ExitStatus, Kernel, NewKernel, Pid, Process, Thread, Tid};
pub use kvmlet_hostfs::attr::FileTime;
pub use kvmlet_hostfs::passed::{Offer, Unfit};
pub use kvmlet_hostfs::stdio::Inherited;
pub use kvmlet_hostfs::{Spill, cpuinfo};
pub use kvmlet_hostnet::{Access, Watch, resolver, unix};
pub use mm::freeze::{MappedFile, settle};
pub use personality::{
    Command, Connection, Cpu, CpuTimes, Door, FileInfo, Links, Listed, Made, News, Personality,
    STREAMS, Shut, SpawnError, Spawned, Stdio, Step, TerminalSize,
};
pub use report::{CallKey, Denial, Report, Work};
pub use rlimit::FILES_MOST;
pub use sched::Call;
pub use signal::signo::SIGBUS;
pub use symbols::SymbolError;
pub use syscalls::table;
pub use task::fork::THREADS_MAX;
pub use vfs::attributes::Attributes;
pub use vfs::change_set::{Become, ChangeSet, SetEntry};
pub use vfs::changes::{Change, ChangeKind, Changes, changes};
pub use vfs::learn::{Use, Uses};
pub use vfs::stdio::{StdStream, set_up as set_up_streams};
pub use vfs::tmpfs::Disk;
pub use vfs::tmpfs::lower::Seen;
pub use vfs::verdict::{Refusal, Thing, Verdict, verdict};
pub use vfs::{Dir, enter_cwd, new_tmpfs};

#[cfg(test)]
mod rooms {
    /// Modules by height: one may use those of its own height and below.
    const HEIGHTS: [&[&str]; 5] = [
        &[
            "apart", "asks", "budget", "by_id", "channel", "creds", "id", "shared", "uts", "vector",
        ],
        // The value, its rooms, and the host that they are given: each holds or is handed parts of the others.
        &[
            "clock",
            "console",
            "cx",
            "fd",
            "guest_call_state",
            "host",
            "ipc",
            "kernel",
            "mm",
            "net",
            "outcome",
            "report",
            "rlimit",
            "sched",
            "signal",
            "task",
            "timer",
            "tty",
            "vfs",
        ],
        &["exec", "frame"],
        &["syscalls"],
        &["guest_call", "personality", "symbols", "trace"],
    ];

    fn height(module: &str) -> Option<usize> {
        HEIGHTS.iter().position(|modules| modules.contains(&module))
    }

    /// The code of a file without its tests.
    fn code(text: &str) -> &str {
        text.split("#[cfg(test)]\nmod tests").next().unwrap()
    }

    #[test]
    fn dependency_goes_down() {
        for (name, text) in crate::testing::sources() {
            let module = name.split(['/', '.']).next().unwrap();
            // Tests may use everything.
            if matches!(module, "lib" | "testing")
                || name.contains("test")
                || name.contains("fixture")
            {
                continue;
            }
            let own = height(module).unwrap_or_else(|| panic!("{module} has no height"));
            for line in code(&text).lines() {
                if line.trim_start().starts_with("//") {
                    continue;
                }
                assert!(!line.contains("crate::{"), "{name}: a path each: {line}");
                for (at, _) in line.match_indices("crate::") {
                    let used = line[at + 7..]
                        .split(|letter: char| !letter.is_alphanumeric() && letter != '_')
                        .next()
                        .unwrap();
                    let Some(theirs) = height(used) else { continue };
                    assert!(
                        theirs <= own,
                        "{name} uses {used}, which is above it: {line}"
                    );
                }
            }
        }
    }
}
