//! The process file system: generated from the kernel value when asked.

use kvmlet_abi::PAGE_SIZE;
use kvmlet_abi::linux::param::USER_HZ;
use kvmlet_hostfs::attr::{S_IFDIR, S_IFLNK, S_IFREG, d_type};
use kvmlet_policy::file_name;

use super::synth::Synth;
use crate::clock::{self, NSEC_PER_SEC};
use crate::cx::Cx;
use crate::fd::Text;
use crate::kernel::{Kin, Pid, Process, Thread, Tid};
use crate::mm::{self, Mm};
use crate::rlimit::{INFINITY, Resource, Rlimit};
use crate::signal::signo::SIGCHLD;
use crate::timer::Notify;
use crate::uts::{NODENAME, RELEASE};

/// Longest part of the host's /proc/cpuinfo that is read, in bytes.
const CPUINFO_MAX: usize = 16 << 10;

const TOP_FILES: [&[u8]; 13] = [
    b"cmdline",
    b"cpuinfo",
    b"devices",
    b"filesystems",
    b"loadavg",
    b"meminfo",
    b"stat",
    b"swaps",
    b"uptime",
    b"version",
    b"vmstat",
    b"partitions",
    b"sys",
];

const SYS_FILES: [(&[u8], &str); 18] = [
    (b"fs/file-max", "1048576\n"),
    (b"fs/nr_open", "1048576\n"),
    (b"fs/pipe-max-size", "1048576\n"),
    (b"kernel/cap_last_cap", "40\n"),
    (b"kernel/domainname", "(none)\n"),
    (b"kernel/hostname", ""),
    (b"kernel/ngroups_max", "65536\n"),
    (b"kernel/osrelease", ""),
    (b"kernel/ostype", "Linux\n"),
    (b"kernel/pid_max", "32768\n"),
    (b"kernel/random/boot_id", ""),
    (b"kernel/random/uuid", ""),
    (b"kernel/randomize_va_space", "2\n"),
    (b"kernel/threads-max", "32768\n"),
    (b"kernel/version", ""),
    (b"vm/max_map_count", "65530\n"),
    (b"vm/mmap_min_addr", "65536\n"),
    (b"vm/overcommit_memory", "0\n"),
];

const PROCESS_FILES: [&[u8]; 18] = [
    b"auxv",
    b"cgroup",
    b"cmdline",
    b"comm",
    b"environ",
    b"io",
    b"limits",
    b"maps",
    b"mountinfo",
    b"mounts",
    b"oom_score",
    b"oom_score_adj",
    b"personality",
    b"stat",
    b"statm",
    b"status",
    b"timers",
    b"wchan",
];
/// Files of a process without threads and memory. Those that say nothing then are empty.
const BARE_FILES: [&[u8]; 8] = [
    b"auxv", b"cmdline", b"comm", b"environ", b"limits", b"maps", b"stat", b"status",
];
const PROCESS_LINKS: [&[u8]; 3] = [b"cwd", b"exe", b"root"];
const PROCESS_DIRS: [&[u8]; 3] = [b"fd", b"fdinfo", b"task"];

/// A path below /proc, taken apart.
enum Entry<'a> {
    Root,
    Top(&'a [u8]),
    Sys(Vec<u8>),
    Process(Pid, Option<Tid>, Vec<&'a [u8]>),
    /// A process without threads and memory.
    Bare(Bare, Vec<&'a [u8]>),
}

/// What there is to tell of a process without threads and memory: one that has ended, or our init.
struct Bare {
    kin: Kin,
    state: (char, &'static str),
    comm: String,
    cmdline: &'static [u8],
    cpu_time_ns: u64,
    children_cpu_ns: u64,
    exit_signal: u8,
    threads: usize,
}

impl Bare {
    fn find(cx: &Cx<'_>, pid: Pid) -> Option<Self> {
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
        })
    }

    fn text(&self, cx: &Cx<'_>, rest: &[&[u8]]) -> Option<Vec<u8>> {
        let text = match rest {
            [b"cmdline"] => return Some(self.cmdline.to_vec()),
            [b"children"] => children(cx, self.kin.pid),
            [b"comm"] => format!("{}\n", self.comm),
            [b"stat"] => stat_line(&Stat {
                id: self.kin.pid.0,
                comm: &self.comm,
                state: self.state.0,
                kin: self.kin,
                ticks: [self.cpu_time_ns, self.children_cpu_ns],
                threads: self.threads,
                memory: [0; 2],
                exit_signal: self.exit_signal,
            }),
            [b"status"] => {
                let (letter, word) = self.state;
                let ids = cx.kernel.ids;
                let pid = self.kin.pid.0;
                let mut out = Rows::default();
                out.add("Name", &self.comm);
                out.add("State", format!("{letter} ({word})"));
                out.add("Tgid", pid);
                out.add("Ngid", 0);
                out.add("Pid", pid);
                out.add("PPid", self.kin.ppid.0);
                out.add("TracerPid", 0);
                out.add("Uid", format!("{0}\t{0}\t{0}\t{0}", ids.uid));
                out.add("Gid", format!("{0}\t{0}\t{0}\t{0}", ids.gid));
                out.add("FDSize", 0);
                out.add("Groups", " ");
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

/// The lines of /proc/self/status.
#[derive(Default)]
struct Rows(String);

impl Rows {
    fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        self.0.push_str(&format!("{name}:\t{value}\n"));
    }

    /// The ids in the only PID namespace.
    fn add_kin(&mut self, tid: i32, kin: Kin) {
        self.add("NStgid", kin.pid.0);
        self.add("NSpid", tid);
        self.add("NSpgid", kin.pgid.0);
        self.add("NSsid", kin.sid.0);
    }
}

fn number(name: &[u8]) -> Option<i32> {
    if name.first().is_none_or(|digit| !digit.is_ascii_digit()) || name.first() == Some(&b'0') {
        return None;
    }
    std::str::from_utf8(name).ok()?.parse().ok()
}

fn entry<'a>(cx: &Cx<'_>, path: &'a [u8]) -> Option<Entry<'a>> {
    let mut parts = path.split(|byte| *byte == b'/').skip(2);
    let Some(first) = parts.next().filter(|name| !name.is_empty()) else {
        return Some(Entry::Root);
    };
    if first == b"sys" {
        let rest: Vec<&[u8]> = parts.collect();
        return Some(Entry::Sys(rest.join(&b'/')));
    }
    let Some(pid) = number(first) else {
        return parts.next().is_none().then_some(Entry::Top(first));
    };
    let pid = Pid(pid);
    let mut rest: Vec<&[u8]> = parts.collect();
    if !cx.kernel.processes.contains_key(&pid) {
        let bare = Bare::find(cx, pid)?;
        if rest.first() == Some(&b"task".as_slice()) && rest.len() > 1 {
            // Its only thread has its id.
            number(rest.get(1)?).filter(|tid| *tid == pid.0)?;
            rest.drain(..2);
            if rest.first() == Some(&b"task".as_slice()) {
                return None;
            }
        } else if rest == [b"children".as_slice()] {
            return None;
        }
        return Some(Entry::Bare(bare, rest));
    }
    if rest.first() == Some(&b"task".as_slice()) && rest.len() > 1 {
        let tid = Tid(number(rest.get(1)?)?);
        cx.kernel
            .threads
            .get(&tid)
            .filter(|thread| thread.pid == pid)?;
        rest.drain(..2);
        return Some(Entry::Process(pid, Some(tid), rest));
    }
    Some(Entry::Process(pid, None, rest))
}

/// True if a path belongs to a process's directory, and so to its user.
#[must_use]
pub fn is_per_process(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/')
        .nth(2)
        .and_then(number)
        .is_some()
}

/// The object at a canonical path below /proc.
#[must_use]
pub fn lookup(cx: &Cx<'_>, path: &[u8]) -> Option<Synth> {
    match entry(cx, path)? {
        Entry::Root => Some(Synth::Dir),
        Entry::Top(b"self") => {
            let pid = cx.kernel.threads.get(&cx.tid)?.pid;
            Some(Synth::Link(pid.0.to_string().into_bytes()))
        }
        Entry::Top(b"thread-self") => {
            let pid = cx.kernel.threads.get(&cx.tid)?.pid;
            Some(Synth::Link(
                format!("{}/task/{}", pid.0, cx.tid.0).into_bytes(),
            ))
        }
        Entry::Top(b"mounts") => Some(Synth::Link(b"self/mounts".to_vec())),
        Entry::Top(name) => TOP_FILES.contains(&name).then_some(Synth::Text),
        Entry::Sys(rest) => sys_entry(&rest),
        Entry::Process(_, Some(_), rest) if rest == [b"children"] => Some(Synth::Text),
        Entry::Process(pid, _, rest) => process_entry(cx, pid, &rest),
        Entry::Bare(bare, rest) => match rest.as_slice() {
            [] | [b"task"] => Some(Synth::Dir),
            _ => bare.text(cx, &rest).map(|_| Synth::Text),
        },
    }
}

fn sys_entry(rest: &[u8]) -> Option<Synth> {
    if SYS_FILES.iter().any(|(name, _)| *name == rest) {
        return Some(Synth::Text);
    }
    let is_dir = SYS_FILES.iter().any(|(name, _)| {
        rest.is_empty()
            || name
                .strip_prefix(rest)
                .is_some_and(|more| more.first() == Some(&b'/'))
    });
    is_dir.then_some(Synth::Dir)
}

fn process_entry(cx: &Cx<'_>, pid: Pid, rest: &[&[u8]]) -> Option<Synth> {
    let process = cx.kernel.processes.get(&pid)?;
    match rest {
        [] => Some(Synth::Dir),
        [b"cwd"] => Some(Synth::Link(super::path_text(cx, &process.cwd))),
        [b"root"] => Some(Synth::Link(b"/".to_vec())),
        [b"exe"] => Some(Synth::Link(process.exe.to_vec())),
        [name] if PROCESS_FILES.contains(name) => Some(Synth::Text),
        [name] if PROCESS_DIRS.contains(name) => Some(Synth::Dir),
        [b"fd", fd] => process
            .fds
            .fds
            .get(&fd_number(fd)?)
            .map(|fd| Synth::FdLink(fd.file)),
        [b"fdinfo", fd] => process.fds.fds.get(&fd_number(fd)?).map(|_| Synth::Text),
        _ => None,
    }
}

fn fd_number(name: &[u8]) -> Option<i32> {
    if name == b"0" { Some(0) } else { number(name) }
}

/// Names and types in a directory below /proc.
#[must_use]
pub fn list(cx: &Cx<'_>, path: &[u8]) -> Vec<(Vec<u8>, u8)> {
    let (dir, link, file) = (d_type(S_IFDIR), d_type(S_IFLNK), d_type(S_IFREG));
    let mut out: Vec<(Vec<u8>, u8)> = Vec::new();
    let mut add = |names: &mut dyn Iterator<Item = Vec<u8>>, kind: u8| {
        out.extend(names.map(|name| (name, kind)))
    };
    match entry(cx, path) {
        Some(Entry::Root) => {
            add(
                &mut std::iter::once(Pid::INIT)
                    .chain(cx.kernel.kin().map(|one| one.pid))
                    .map(|pid| pid.0.to_string().into_bytes()),
                dir,
            );
            add(
                &mut TOP_FILES
                    .iter()
                    .filter(|name| **name != b"sys")
                    .map(|name| name.to_vec()),
                file,
            );
            add(&mut [b"sys".to_vec()].into_iter(), dir);
            add(
                &mut [
                    b"self".to_vec(),
                    b"thread-self".to_vec(),
                    b"mounts".to_vec(),
                ]
                .into_iter(),
                link,
            );
        }
        Some(Entry::Sys(rest)) => {
            let prefix = if rest.is_empty() {
                Vec::new()
            } else {
                [rest.as_slice(), b"/"].concat()
            };
            let mut names = std::collections::BTreeMap::new();
            for (name, _) in SYS_FILES {
                let Some(below) = name.strip_prefix(prefix.as_slice()) else {
                    continue;
                };
                let mut parts = below.split(|byte| *byte == b'/');
                if let Some(first) = parts.next() {
                    names.insert(
                        first.to_vec(),
                        if parts.next().is_some() { dir } else { file },
                    );
                }
            }
            out.extend(names);
        }
        Some(Entry::Process(pid, tid, rest)) => match rest.as_slice() {
            [] => {
                add(&mut PROCESS_FILES.iter().map(|name| name.to_vec()), file);
                add(&mut tid.map(|_| b"children".to_vec()).into_iter(), file);
                add(&mut PROCESS_LINKS.iter().map(|name| name.to_vec()), link);
                let dirs = PROCESS_DIRS
                    .iter()
                    .filter(|name| tid.is_none() || **name != b"task");
                add(&mut dirs.map(|name| name.to_vec()), dir);
            }
            [b"fd" | b"fdinfo"] => {
                let fds = cx
                    .kernel
                    .processes
                    .get(&pid)
                    .map(|process| process.fds.fds.clone())
                    .unwrap_or_default();
                let kind = if rest == [b"fd".as_slice()] {
                    link
                } else {
                    file
                };
                add(&mut fds.keys().map(|fd| fd.to_string().into_bytes()), kind);
            }
            [b"task"] => {
                let threads = cx
                    .kernel
                    .threads
                    .values()
                    .filter(|thread| thread.pid == pid);
                add(
                    &mut threads.map(|thread| thread.tid.0.to_string().into_bytes()),
                    dir,
                );
            }
            _ => {}
        },
        Some(Entry::Bare(bare, rest)) => match rest.as_slice() {
            [] => {
                add(&mut BARE_FILES.iter().map(|name| name.to_vec()), file);
                add(&mut [b"task".to_vec()].into_iter(), dir);
            }
            [b"task"] => {
                let tid = bare.kin.pid.0.to_string().into_bytes();
                add(&mut [tid].into_iter(), dir);
            }
            _ => {}
        },
        Some(Entry::Top(_)) | None => {}
    }
    out
}

/// The contents of a file below /proc as of now: their start, if they are long.
#[must_use]
pub fn text(cx: &Cx<'_>, path: &[u8]) -> Option<Text> {
    if let Some(mm) = mapped(cx, path) {
        return Some(mm::maps_text(mm, (0, 0), 0));
    }
    whole_text(cx, path).map(Text::whole)
}

/// The part after `kept` that has `offset`, or the last one.
#[must_use]
pub fn more_text(cx: &Cx<'_>, path: &[u8], kept: &Text, offset: u64) -> Option<Text> {
    let mm = mapped(cx, path)?;
    Some(mm::maps_text(mm, (kept.next?, kept.end()), offset))
}

/// The address space that a path shows the mappings of.
fn mapped<'a>(cx: &'a Cx<'_>, path: &[u8]) -> Option<&'a Mm> {
    match entry(cx, path)? {
        Entry::Process(pid, _, rest) if rest == [b"maps"] => cx.kernel.mm(pid),
        _ => None,
    }
}

fn whole_text(cx: &Cx<'_>, path: &[u8]) -> Option<Vec<u8>> {
    match entry(cx, path)? {
        Entry::Root => None,
        Entry::Top(name) => top_text(cx, name).map(String::into_bytes),
        Entry::Sys(rest) => sys_text(&rest).map(String::into_bytes),
        Entry::Process(pid, tid, rest) => {
            let process = cx.kernel.processes.get(&pid)?;
            let thread = cx.kernel.threads.get(&tid.unwrap_or(Tid(pid.0)));
            let thread =
                thread.or_else(|| cx.kernel.threads.values().find(|thread| thread.pid == pid))?;
            if tid.is_some() && rest == [b"children"] {
                return Some(children_of(cx, pid, thread.tid).into_bytes());
            }
            process_text(cx, process, thread, &rest)
        }
        Entry::Bare(bare, rest) => bare.text(cx, &rest),
    }
}

/// /proc/PID/task/TID/children. Linux differs: a child is that of the thread that made it, not of the first one.
fn children_of(cx: &Cx<'_>, pid: Pid, tid: Tid) -> String {
    match cx.kernel.threads_of(pid).next() == Some(tid) {
        true => children(cx, pid),
        false => String::new(),
    }
}

fn children(cx: &Cx<'_>, pid: Pid) -> String {
    let mut found: Vec<i32> = cx
        .kernel
        .kin()
        .filter(|one| one.ppid == pid)
        .map(|one| one.pid.0)
        .collect();
    found.sort_unstable();
    found.iter().map(|pid| format!("{pid} ")).collect()
}

fn top_text(cx: &Cx<'_>, name: &[u8]) -> Option<String> {
    let memory = &cx.machine.memory;
    let kib = |bytes: u64| bytes / 1024;
    Some(match name {
        b"cmdline" => "\n".to_owned(),
        b"cpuinfo" => cpuinfo(cx),
        b"devices" => "Character devices:\n  1 mem\n  5 /dev/tty\n\nBlock devices:\n".to_owned(),
        b"filesystems" => "nodev\tsysfs\nnodev\ttmpfs\nnodev\tproc\nnodev\tdevtmpfs\n".to_owned(),
        b"loadavg" => {
            let ready = cx.kernel.sched.run_queue.len().saturating_add(1);
            let all = cx.kernel.threads.len();
            let last = cx.kernel.threads.keys().next_back().map_or(1, |tid| tid.0);
            format!("0.00 0.00 0.00 {ready}/{all} {last}\n")
        }
        b"meminfo" => {
            let (total, used) = (memory.limit_bytes(), memory.resident_bytes());
            let free = kib(total.saturating_sub(used));
            let rows = [
                ("MemTotal", kib(total)),
                ("MemFree", free),
                ("MemAvailable", free),
                ("Buffers", 0),
                ("Cached", 0),
                ("SwapCached", 0),
                ("Active", kib(used)),
                ("Inactive", 0),
                ("SwapTotal", 0),
                ("SwapFree", 0),
                ("AnonPages", kib(used)),
                ("Shmem", 0),
                ("CommitLimit", kib(total)),
                ("Committed_AS", kib(used)),
            ];
            let line =
                |(name, kib): &(&str, u64)| format!("{:<16}{kib:>8} kB\n", format!("{name}:"));
            rows.iter()
                .map(line)
                .chain(["HugePages_Total:       0\nHugepagesize:       2048 kB\n".to_owned()])
                .collect()
        }
        b"partitions" => "major minor  #blocks  name\n\n".to_owned(),
        b"stat" => {
            let user = cx.kernel.threads.values().fold(0u64, |sum, thread| {
                sum.saturating_add(ticks(thread.cpu_time_ns))
            });
            let booted = clock::realtime_ns(cx.host).saturating_sub(uptime_ns(cx)) / NSEC_PER_SEC;
            let total = cx.kernel.next_tid.saturating_sub(1);
            let idle = ticks(uptime_ns(cx)).saturating_sub(user);
            format!(
                "cpu  {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 {user} 0 0 {idle} 0 0 0 0 0 0\nintr 0\nctxt 0\nbtime {booted}\nprocesses {total}\nprocs_running 1\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n"
            )
        }
        b"swaps" => "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".to_owned(),
        b"uptime" => {
            let centi = uptime_ns(cx) / (NSEC_PER_SEC / 100);
            format!("{0}.{1:02} {0}.{1:02}\n", centi / 100, centi % 100)
        }
        b"version" => format!("Linux version {RELEASE} (kvmlet@kvmlet) #1 SMP kvmlet\n"),
        b"vmstat" => "nr_free_pages 0\npgfault 0\npgmajfault 0\n".to_owned(),
        _ => return None,
    })
}

fn uptime_ns(cx: &Cx<'_>) -> u64 {
    clock::read_ns(cx.host, 7).unwrap_or(0)
}

fn ticks(ns: u64) -> u64 {
    ns / (NSEC_PER_SEC / USER_HZ)
}

/// The host's description of one processor: the guest sees the same CPUID.
fn cpuinfo(cx: &Cx<'_>) -> String {
    let mut text = vec![0u8; CPUINFO_MAX];
    let len = cx
        .host
        .roots
        .read_start(b"/proc/cpuinfo", &mut text)
        .unwrap_or(0);
    text.truncate(len);
    let text = String::from_utf8_lossy(&text);
    match text.split_once("\n\n") {
        Some((first, _)) => first
            .lines()
            .map(|line| match line.split_once(':') {
                Some((name, _)) if ["siblings", "cpu cores"].contains(&name.trim()) => {
                    format!("{name}: 1\n")
                }
                Some((name, _))
                    if ["core id", "apicid", "initial apicid"].contains(&name.trim()) =>
                {
                    format!("{name}: 0\n")
                }
                _ => format!("{line}\n"),
            })
            .chain(["\n".to_owned()])
            .collect(),
        None => "processor\t: 0\nvendor_id\t: unknown\nmodel name\t: unknown\n\n".to_owned(),
    }
}

fn sys_text(rest: &[u8]) -> Option<String> {
    let (_, fixed) = SYS_FILES.iter().find(|(name, _)| *name == rest)?;
    Some(match file_name(&[b"/", rest].concat()) {
        b"hostname" => format!("{NODENAME}\n"),
        b"osrelease" => format!("{RELEASE}\n"),
        b"version" => "#1 SMP kvmlet\n".to_owned(),
        // Linux differs: a boot has no identity that would tell sandboxes apart, so both are fresh.
        b"boot_id" | b"uuid" => uuid()?,
        _ => (*fixed).to_owned(),
    })
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> Option<String> {
    let mut bytes = [0u8; 16];
    clock::fill_random(&mut bytes).ok()?;
    let value = u128::from_be_bytes(bytes);
    let value = (value & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{value:032x}");
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default();
    Some(format!(
        "{}-{}-{}-{}-{}\n",
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32)
    ))
}

fn process_text(
    cx: &Cx<'_>,
    process: &Process,
    thread: &Thread,
    rest: &[&[u8]],
) -> Option<Vec<u8>> {
    let text = match rest {
        [b"cmdline"] => return Some(process.cmdline.to_vec()),
        [b"environ"] => return Some(process.environ.to_vec()),
        [b"auxv"] => return Some(process.auxv.to_vec()),
        [b"timers"] => timers(cx, process.pid),
        [b"comm"] => format!("{}\n", comm(thread)),
        [b"cgroup"] => "0::/\n".to_owned(),
        [b"io"] => "rchar: 0\nwchar: 0\nsyscr: 0\nsyscw: 0\nread_bytes: 0\nwrite_bytes: 0\ncancelled_write_bytes: 0\n".to_owned(),
        [b"limits"] => limits(process),
        [b"mounts"] => mounts(cx),
        [b"mountinfo"] => mountinfo(cx),
        [b"oom_score" | b"oom_score_adj"] => "0\n".to_owned(),
        [b"personality"] => "00000000\n".to_owned(),
        [b"wchan"] => "0".to_owned(),
        [b"stat"] => stat(cx, process, thread)?,
        [b"statm"] => {
            let mm = cx.kernel.mm(process.pid)?;
            let (size, resident) = (mm.total_bytes() / PAGE_SIZE, resident_pages(cx));
            let data = mm.data_bytes().saturating_add(mm.stack_bytes()) / PAGE_SIZE;
            format!("{size} {resident} 0 0 0 {data} 0\n")
        }
        [b"status"] => status(cx, process, thread)?,
        [b"fdinfo", fd] => {
            let fd = process.fds.fds.get(&fd_number(fd)?)?;
            let file = cx.kernel.files.get(&fd.file)?;
            let flags = file.flags.bits() | if fd.cloexec { 0o2_000_000 } else { 0 };
            let (position, more) = super::file::info(cx, file);
            format!("pos:\t{}\nflags:\t0{flags:o}\nmnt_id:\t{}\n{more}", position, super::synth::mount_number(cx.host.policy.classify(&file.path)))
        }
        _ => return None,
    };
    Some(text.into_bytes())
}

fn comm(thread: &Thread) -> String {
    name(&thread.comm)
}

fn name(comm: &[u8]) -> String {
    let name = comm.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

fn resident_pages(cx: &Cx<'_>) -> u64 {
    cx.machine.memory.resident_bytes() / PAGE_SIZE
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
struct Stat<'a> {
    id: i32,
    comm: &'a str,
    state: char,
    kin: Kin,
    /// CPU time of its own and of children that it waited for, in nanoseconds.
    ticks: [u64; 2],
    threads: usize,
    /// Bytes of its address space, and resident pages.
    memory: [u64; 2],
    exit_signal: u8,
}

fn stat_line(stat: &Stat<'_>) -> String {
    let Kin {
        ppid, pgid, sid, ..
    } = stat.kin;
    let [own, children] = stat.ticks.map(ticks);
    let [bytes, pages] = stat.memory;
    let mut out = format!("{} ({}) {}", stat.id, stat.comm, stat.state);
    // Terminal: none. Its foreground group is -1 then.
    out.push_str(&format!(" {} {} {} 0 -1 0 0 0 0 0", ppid.0, pgid.0, sid.0));
    out.push_str(&format!(" {own} 0 {children} 0 20 0 {} 0 0", stat.threads));
    out.push_str(&format!(" {bytes} {pages} {}", u64::MAX));
    out.push_str(&" 0".repeat(12));
    out.push_str(&format!(" {}", stat.exit_signal));
    out.push_str(&" 0".repeat(14));
    out.push('\n');
    out
}

/// proc_pid_stat(5)
fn stat(cx: &Cx<'_>, process: &Process, thread: &Thread) -> Option<String> {
    let mm = cx.kernel.mm(process.pid)?;
    Some(stat_line(&Stat {
        id: thread.tid.0,
        comm: &comm(thread),
        state: state(cx, thread).0,
        kin: cx.kernel.kin_of(process.pid.0)?,
        ticks: [process.cpu_time_ns, process.children_cpu_ns],
        threads: cx.kernel.threads_of(process.pid).count(),
        memory: [mm.total_bytes(), resident_pages(cx)],
        exit_signal: process.exit_signal,
    }))
}

/// proc_pid_status(5)
fn status(cx: &Cx<'_>, process: &Process, thread: &Thread) -> Option<String> {
    let mm = cx.kernel.mm(process.pid)?;
    let (letter, word) = state(cx, thread);
    let ids = cx.kernel.ids;
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
    let resident = kib(resident_pages(cx).saturating_mul(PAGE_SIZE));
    let mut out = Rows::default();
    let size = |bytes: u64| format!("{bytes:>8} kB");
    out.add("Name", comm(thread));
    out.add("Umask", format!("{:04o}", process.umask));
    out.add("State", format!("{letter} ({word})"));
    out.add("Tgid", process.pid.0.to_string());
    out.add("Ngid", "0".to_owned());
    out.add("Pid", thread.tid.0.to_string());
    out.add("PPid", process.ppid.0.to_string());
    out.add("TracerPid", "0".to_owned());
    out.add("Uid", format!("{0}\t{0}\t{0}\t{0}", ids.uid));
    out.add("Gid", format!("{0}\t{0}\t{0}\t{0}", ids.gid));
    out.add("FDSize", process.fds.lowest_free(0).max(64).to_string());
    out.add("Groups", " ".to_owned());
    out.add_kin(thread.tid.0, cx.kernel.kin_of(process.pid.0)?);
    out.add("VmPeak", size(kib(mm.total_bytes())));
    out.add("VmSize", size(kib(mm.total_bytes())));
    out.add("VmLck", size(kib(mm.locked_bytes())));
    out.add("VmPin", size(0));
    out.add("VmHWM", size(kib(cx.machine.memory.peak_resident_bytes())));
    out.add("VmRSS", size(resident));
    out.add("RssAnon", size(resident));
    out.add("RssFile", size(0));
    out.add("RssShmem", size(0));
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
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        out.add(name, format!("{:016x}", 0));
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

/// The mounted file systems: (mount point, type, options).
fn mount_table(_cx: &Cx<'_>) -> [(&'static str, &'static str, &'static str); 6] {
    [
        ("/", "kvmlet", "ro,nosuid,nodev"),
        ("/tmp", "tmpfs", "rw,nosuid,nodev,relatime"),
        ("/proc", "proc", "ro,nosuid,nodev,noexec"),
        ("/dev", "devtmpfs", "ro,nosuid"),
        ("/sys", "sysfs", "ro,nosuid,nodev,noexec"),
        ("/dev/shm", "tmpfs", "rw,nosuid,nodev"),
    ]
}

fn mounts(cx: &Cx<'_>) -> String {
    mount_table(cx)
        .iter()
        .map(|(at, kind, options)| format!("{kind} {at} {kind} {options} 0 0\n"))
        .collect()
}

fn mountinfo(cx: &Cx<'_>) -> String {
    let mut out = String::new();
    for (index, (at, kind, options)) in (1u32..).zip(mount_table(cx)) {
        let parent = match at {
            "/" => 0,
            "/dev/shm" => 4,
            _ => 1,
        };
        let rights = options.split(',').next().unwrap_or("ro");
        out.push_str(&format!(
            "{index} {parent} 0:{} / {at} {options} - {kind} {kind} {rights}\n",
            0x70 | index
        ));
    }
    out
}
