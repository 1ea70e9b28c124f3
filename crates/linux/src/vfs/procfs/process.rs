//! The files of /proc that tell of one process or thread.

use kvmlet_abi::PAGE_SIZE;
use kvmlet_hostfs::attr::makedev;

use super::system::{mountinfo, mounts, ticks};
use super::{fd_number, view};
use crate::creds::{Creds, Quad};
use crate::cx::Cx;
use crate::kernel::{Kin, Pid, Process, Thread, Tid};
use crate::mm::smaps::Resident;
use crate::rlimit::{INFINITY, Resource, Rlimit};
use crate::timer::Notify;
use crate::tty::{Ctty, SLAVE_MAJOR};
use crate::vfs::{file, synth};

pub(super) const PROCESS_FILES: [&[u8]; 28] = [
    b"auxv",
    b"cgroup",
    b"cmdline",
    b"comm",
    b"coredump_filter",
    b"environ",
    b"gid_map",
    b"io",
    b"limits",
    b"loginuid",
    b"maps",
    b"mountinfo",
    b"mounts",
    b"oom_score",
    b"oom_score_adj",
    b"personality",
    b"schedstat",
    b"sessionid",
    b"setgroups",
    b"smaps",
    b"smaps_rollup",
    b"stack",
    b"stat",
    b"statm",
    b"status",
    b"timers",
    b"uid_map",
    b"wchan",
];

/// /proc/PID/cgroup: there is one, the root.
pub(super) const CGROUP: &str = "0::/\n";
/// /proc/PID/loginuid and sessionid of who has not logged in.
pub(super) const NO_SESSION: &str = "4294967295";

/// The lines of /proc/self/status.
#[derive(Default)]
pub(super) struct Rows(pub(super) String);

impl Rows {
    pub(super) fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        self.0.push_str(&format!("{name}:\t{value}\n"));
    }

    pub(super) fn add_ids(&mut self, creds: &Creds) {
        for (name, ids) in [("Uid", creds.user), ("Gid", creds.group)] {
            let Quad {
                real,
                effective,
                saved,
                fs,
            } = ids;
            self.add(name, format!("{real}\t{effective}\t{saved}\t{fs}"));
        }
    }

    pub(super) fn add_groups(&mut self, creds: &Creds) {
        let groups: Vec<String> = creds.groups.iter().map(u32::to_string).collect();
        self.add("Groups", format!("{} ", groups.join(" ")));
    }

    /// The ids in the only PID namespace.
    pub(super) fn add_kin(&mut self, tid: i32, kin: Kin) {
        self.add("NStgid", kin.pid.0);
        self.add("NSpid", tid);
        self.add("NSpgid", kin.pgid.0);
        self.add("NSsid", kin.sid.0);
    }
}

pub(super) fn process_text(
    cx: &Cx<'_>,
    process: &Process,
    (thread, tid): (&Thread, Option<Tid>),
    rest: &[&[u8]],
) -> Option<Vec<u8>> {
    let text = match rest {
        [b"cmdline"] => return Some(process.cmdline.to_vec()),
        [b"environ"] => return Some(process.environ.to_vec()),
        [b"auxv"] => return Some(process.auxv.to_vec()),
        [b"timers"] => timers(cx, process.pid),
        [b"comm"] => format!("{}\n", comm(thread)),
        [b"cgroup"] => CGROUP.to_owned(),
        [b"coredump_filter"] => "00000033\n".to_owned(),
        [b"loginuid" | b"sessionid"] => NO_SESSION.to_owned(),
        [b"schedstat"] => format!("{} 0 0\n", cpu_time_ns(process, thread, tid)),
        [b"setgroups"] => "allow\n".to_owned(),
        [b"gid_map" | b"uid_map"] => format!("{:10} {:10} {:10}\n", 0, 0, u32::MAX),
        [b"io"] => match tid {
            Some(_) => thread.io.text(),
            None => cx.kernel.io_of(process).text(),
        },
        [b"limits"] => limits(process),
        [b"mounts"] => mounts(cx),
        [b"mountinfo"] => mountinfo(cx),
        [b"oom_score" | b"oom_score_adj"] => "0\n".to_owned(),
        [b"personality"] => "00000000\n".to_owned(),
        [b"wchan"] => "0".to_owned(),
        [b"smaps_rollup"] => view(cx, process.pid)?.rollup_text(),
        [b"stat"] => stat(cx, process, (thread, tid))?,
        [b"statm"] => {
            let mm = cx.kernel.mm(process.pid)?;
            let pages = |bytes: u64| bytes / PAGE_SIZE;
            let resident = resident(cx, process)?;
            let (all, files) = (pages(resident.total()), pages(resident.of_files()));
            let size = pages(mm.total_bytes());
            let data = mm.data_bytes().saturating_add(mm.stack_bytes()) / PAGE_SIZE;
            format!("{size} {all} {files} 0 0 {data} 0\n")
        }
        [b"status"] => status(cx, process, thread)?,
        [b"fdinfo", fd] => {
            let table = cx.kernel.fd_tables.get(thread.share.files)?;
            let fd = table.fds.get(&fd_number(fd)?)?;
            let file = cx.kernel.files.get(&fd.file)?;
            let flags = file.flags.bits() | if fd.cloexec { 0o2_000_000 } else { 0 };
            let (position, more) = file::info(cx, file);
            format!(
                "pos:\t{}\nflags:\t0{flags:o}\nmnt_id:\t{}\n{more}",
                position,
                synth::mount_number(cx.host.policy.classify(&file.path))
            )
        }
        _ => return None,
    };
    Some(text.into_bytes())
}

fn comm(thread: &Thread) -> String {
    name(&thread.comm)
}

pub(super) fn name(comm: &[u8]) -> String {
    let name = comm.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// The memory that a process has.
fn resident(cx: &Cx<'_>, process: &Process) -> Option<Resident> {
    view(cx, process.pid).map(|view| view.resident())
}

fn state(cx: &Cx<'_>, thread: &Thread) -> (char, &'static str) {
    if cx.kernel.is_stopped(thread.tid) {
        ('T', "stopped")
    } else if cx.kernel.sched.parked.contains_key(&thread.tid) {
        ('S', "sleeping")
    } else {
        ('R', "running")
    }
}

/// What a line of proc_pid_stat(5) says.
pub(super) struct Stat<'a> {
    pub(super) id: i32,
    pub(super) comm: &'a str,
    pub(super) state: char,
    pub(super) kin: Kin,
    /// Device number and foreground process group of its controlling terminal.
    pub(super) terminal: (u64, i32),
    /// CPU time of its own and of children that it waited for, in nanoseconds.
    pub(super) ticks: [u64; 2],
    pub(super) nice: i8,
    pub(super) threads: usize,
    /// Bytes of its address space, and resident pages.
    pub(super) memory: [u64; 2],
    pub(super) exit_signal: u8,
    /// Time since the system's start when it began, in nanoseconds.
    pub(super) started_ns: u64,
}

pub(super) fn stat_line(stat: &Stat<'_>) -> String {
    let Kin {
        ppid, pgid, sid, ..
    } = stat.kin;
    let [own, children] = stat.ticks.map(ticks);
    let [bytes, pages] = stat.memory;
    let mut out = format!("{} ({}) {}", stat.id, stat.comm, stat.state);
    let (device, foreground) = stat.terminal;
    out.push_str(&format!(" {} {} {}", ppid.0, pgid.0, sid.0));
    out.push_str(&format!(" {device} {foreground} 0 0 0 0 0"));
    let started = ticks(stat.started_ns);
    out.push_str(&format!(
        " {own} 0 {children} 0 {} {} {} 0 {started}",
        20i8.saturating_add(stat.nice),
        stat.nice,
        stat.threads
    ));
    out.push_str(&format!(" {bytes} {pages} {}", u64::MAX));
    out.push_str(&" 0".repeat(12));
    out.push_str(&format!(" {}", stat.exit_signal));
    out.push_str(&" 0".repeat(14));
    out.push('\n');
    out
}

/// The controlling terminal of a process that has none.
pub(super) const NO_TERMINAL: (u64, i32) = (0, -1);

/// Device number and foreground process group of a process's controlling terminal. That of an inherited one is the
/// host's, and not told.
fn terminal(cx: &Cx<'_>, pid: Pid) -> (u64, i32) {
    match cx.kernel.terminal_of(pid) {
        Some((Ctty::Pty(index), foreground)) => {
            let device = makedev(SLAVE_MAJOR, index);
            (device, foreground.map_or(0, |group| group.0))
        }
        Some((Ctty::Inherited, _)) | None => NO_TERMINAL,
    }
}

/// CPU time of a process, or of one of its threads if that was asked for.
fn cpu_time_ns(process: &Process, thread: &Thread, tid: Option<Tid>) -> u64 {
    match tid {
        Some(_) => thread.cpu_time_ns,
        None => process.cpu_time_ns,
    }
}

/// proc_pid_stat(5)
fn stat(cx: &Cx<'_>, process: &Process, (thread, tid): (&Thread, Option<Tid>)) -> Option<String> {
    let mm = cx.kernel.mm(process.pid)?;
    Some(stat_line(&Stat {
        id: thread.tid.0,
        comm: &comm(thread),
        state: state(cx, thread).0,
        kin: cx.kernel.kin_of(process.pid.0)?,
        terminal: terminal(cx, process.pid),
        ticks: [cpu_time_ns(process, thread, tid), process.children_cpu_ns],
        nice: thread.nice,
        threads: cx.kernel.threads_of(process.pid).count(),
        memory: [mm.total_bytes(), resident(cx, process)?.total() / PAGE_SIZE],
        exit_signal: process.exit_signal,
        started_ns: process.started_ns,
    }))
}

/// proc_pid_status(5)
fn status(cx: &Cx<'_>, process: &Process, thread: &Thread) -> Option<String> {
    let mm = cx.kernel.mm(process.pid)?;
    let (letter, word) = state(cx, thread);
    let creds = &thread.creds;
    let threads = cx
        .kernel
        .threads
        .values()
        .filter(|other| other.pid == process.pid)
        .count();
    let kib = |bytes: u64| bytes / 1024;
    let (ignored, caught) =
        process
            .signals
            .actions
            .iter()
            .fold((0u64, 0u64), |(ignored, caught), (signo, action)| {
                let bit = 1u64
                    .checked_shl(u32::from(*signo).saturating_sub(1))
                    .unwrap_or(0);
                match action.handler {
                    0 => (ignored, caught),
                    1 => (ignored | bit, caught),
                    _ => (ignored, caught | bit),
                }
            });
    let resident = resident(cx, process)?;
    let mut out = Rows::default();
    let size = |bytes: u64| format!("{bytes:>8} kB");
    out.add("Name", comm(thread));
    out.add(
        "Umask",
        format!("{:04o}", cx.kernel.fs.get(thread.share.fs)?.umask),
    );
    out.add("State", format!("{letter} ({word})"));
    out.add("Tgid", process.pid.0.to_string());
    out.add("Ngid", "0".to_owned());
    out.add("Pid", thread.tid.0.to_string());
    out.add("PPid", process.ppid.0.to_string());
    out.add("TracerPid", "0".to_owned());
    out.add_ids(creds);
    out.add(
        "FDSize",
        cx.kernel
            .fd_tables
            .get(thread.share.files)?
            .lowest_free(0)
            .max(64)
            .to_string(),
    );
    out.add_groups(creds);
    out.add_kin(thread.tid.0, cx.kernel.kin_of(process.pid.0)?);
    out.add("VmPeak", size(kib(mm.mapped.peak_bytes)));
    out.add("VmSize", size(kib(mm.total_bytes())));
    out.add("VmLck", size(kib(mm.locked_bytes())));
    out.add("VmPin", size(0));
    let peak_bytes = cx.machine.spaces.get(process.mm)?.shown().peak_bytes;
    out.add("VmHWM", size(kib(peak_bytes.max(resident.total()))));
    out.add("VmRSS", size(kib(resident.total())));
    out.add("RssAnon", size(kib(resident.anon)));
    out.add("RssFile", size(kib(resident.file)));
    out.add("RssShmem", size(kib(resident.shmem)));
    out.add("VmData", size(kib(mm.data_bytes())));
    out.add("VmStk", size(kib(mm.stack_bytes())));
    out.add("VmSwap", size(0));
    out.add("Threads", threads.to_string());
    out.add("SigQ", "0/1024".to_owned());
    out.add("SigPnd", format!("{:016x}", thread.signals.pending.set()));
    out.add("ShdPnd", format!("{:016x}", process.signals.pending.set()));
    out.add("SigBlk", format!("{:016x}", thread.signals.mask));
    out.add("SigIgn", format!("{ignored:016x}"));
    out.add("SigCgt", format!("{caught:016x}"));
    for (name, caps) in [
        ("CapInh", creds.inheritable),
        ("CapPrm", creds.permitted),
        ("CapEff", creds.effective),
        ("CapBnd", creds.bounding),
        ("CapAmb", creds.ambient),
    ] {
        out.add(name, format!("{:016x}", caps.bits()));
    }
    out.add("NoNewPrivs", "1".to_owned());
    out.add("Seccomp", "0".to_owned());
    out.add("Cpus_allowed", "1".to_owned());
    out.add("Cpus_allowed_list", "0".to_owned());
    out.add("Mems_allowed", "1".to_owned());
    out.add("Mems_allowed_list", "0".to_owned());
    out.add("voluntary_ctxt_switches", "0".to_owned());
    out.add("nonvoluntary_ctxt_switches", "0".to_owned());
    Some(out.0)
}

/// /proc/PID/task/TID/children. Linux differs: a child is that of the thread that made it, not of the first one.
pub(super) fn children_of(cx: &Cx<'_>, pid: Pid, tid: Tid) -> String {
    match cx.kernel.threads_of(pid).next() == Some(tid) {
        true => children(cx, pid),
        false => String::new(),
    }
}

pub(super) fn children(cx: &Cx<'_>, pid: Pid) -> String {
    let mut found: Vec<i32> = cx
        .kernel
        .kin()
        .filter(|one| one.ppid == pid)
        .map(|one| one.pid.0)
        .collect();
    found.sort_unstable();
    found.iter().map(|pid| format!("{pid} ")).collect()
}

/// /proc/self/timers (proc_pid_timers(5))
fn timers(cx: &Cx<'_>, pid: Pid) -> String {
    let mut timers: Vec<_> = cx.kernel.timers.posix_of(pid).collect();
    // The newest comes first.
    timers.reverse();
    let mut out = String::new();
    for (id, timer) in timers {
        // The caller's own CPU clocks show as those of clock_getcpuclockid(3).
        let clock_id = match timer.clock_id {
            2 => -6,
            3 => -2,
            id => id,
        };
        let how = match timer.sigev_notify & !4 {
            0 => "signal",
            1 => "none",
            _ => "thread",
        };
        let whom = match timer.notify {
            Notify::Thread(tid) => format!("tid.{}", tid.0),
            Notify::Process | Notify::Nobody => format!("pid.{}", pid.0),
        };
        out.push_str(&format!(
            "ID: {id}\nsignal: {}/{:016x}\nnotify: {how}/{whom}\nClockID: {}\n",
            timer.signo, timer.value, clock_id
        ));
    }
    out
}

/// /proc/self/limits
fn limits(process: &Process) -> String {
    const NAMES: [(&str, &str); 16] = [
        ("Max cpu time", "seconds"),
        ("Max file size", "bytes"),
        ("Max data size", "bytes"),
        ("Max stack size", "bytes"),
        ("Max core file size", "bytes"),
        ("Max resident set", "bytes"),
        ("Max processes", "processes"),
        ("Max open files", "files"),
        ("Max locked memory", "bytes"),
        ("Max address space", "bytes"),
        ("Max file locks", "locks"),
        ("Max pending signals", "signals"),
        ("Max msgqueue size", "bytes"),
        ("Max nice priority", ""),
        ("Max realtime priority", ""),
        ("Max realtime timeout", "us"),
    ];
    let value = |value: u64| {
        if value == INFINITY {
            "unlimited".to_owned()
        } else {
            value.to_string()
        }
    };
    let mut out = format!(
        "{:<26}{:<21}{:<21}{:<10}\n",
        "Limit", "Soft Limit", "Hard Limit", "Units"
    );
    for ((name, unit), resource) in NAMES.iter().zip(Resource::ALL) {
        let Rlimit { soft, hard } = process.rlimits.get(resource);
        let unit = if unit.is_empty() {
            String::new()
        } else {
            format!("{unit:<10}")
        };
        out.push_str(&format!(
            "{name:<26}{:<21}{:<21}{unit}\n",
            value(soft),
            value(hard)
        ));
    }
    out
}
