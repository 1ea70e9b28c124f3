//! The files of /proc that tell of the whole system.

use kvmlet_abi::PAGE_SIZE;
use kvmlet_abi::linux::param::USER_HZ;
use kvmlet_policy::{TMP, beneath, file_name};

use super::super::synth::Synth;
use crate::clock::{self, NSEC_PER_SEC};
use crate::cx::Cx;
use crate::uts::{NODENAME, RELEASE};

pub(super) const TOP_FILES: [&[u8]; 17] = [
    b"cgroups",
    b"cmdline",
    b"cpuinfo",
    b"devices",
    b"diskstats",
    b"filesystems",
    b"interrupts",
    b"loadavg",
    b"meminfo",
    b"modules",
    b"partitions",
    b"stat",
    b"swaps",
    b"sys",
    b"uptime",
    b"version",
    b"vmstat",
];

pub(super) const SYS_FILES: [(&[u8], &str); 56] = [
    (b"fs/epoll/max_user_watches", "65536\n"),
    (b"fs/file-max", "1048576\n"),
    (b"fs/file-nr", "0\t0\t1048576\n"),
    (b"fs/inotify/max_queued_events", "16384\n"),
    (b"fs/inotify/max_user_instances", "128\n"),
    (b"fs/inotify/max_user_watches", "8192\n"),
    (b"fs/lease-break-time", "45\n"),
    (b"fs/leases-enable", "1\n"),
    (b"fs/mqueue/msg_default", "10\n"),
    (b"fs/mqueue/msg_max", "10\n"),
    (b"fs/mqueue/msgsize_default", "8192\n"),
    (b"fs/mqueue/msgsize_max", "8192\n"),
    (b"fs/mqueue/queues_max", "256\n"),
    (b"fs/nr_open", "1048576\n"),
    (b"fs/pipe-max-size", "1048576\n"),
    (b"kernel/cap_last_cap", "40\n"),
    (b"kernel/core_pattern", "core\n"),
    (b"kernel/core_uses_pid", "0\n"),
    (b"kernel/domainname", "(none)\n"),
    (b"kernel/hostname", ""),
    (b"kernel/msgmax", "8192\n"),
    (b"kernel/msgmnb", "16384\n"),
    (b"kernel/msgmni", "32000\n"),
    (b"kernel/ngroups_max", "65536\n"),
    (b"kernel/osrelease", ""),
    (b"kernel/ostype", "Linux\n"),
    (b"kernel/pid_max", "32768\n"),
    (b"kernel/pty/max", "4096\n"),
    (b"kernel/random/boot_id", ""),
    (b"kernel/random/entropy_avail", "256\n"),
    (b"kernel/random/poolsize", "256\n"),
    (b"kernel/random/uuid", ""),
    (b"kernel/randomize_va_space", "2\n"),
    (b"kernel/sem", "32000\t1024000000\t500\t32000\n"),
    (b"kernel/shmall", "18446744073692774399\n"),
    (b"kernel/shmmax", "18446744073692774399\n"),
    (b"kernel/shmmni", "4096\n"),
    (b"kernel/tainted", "0\n"),
    (b"kernel/threads-max", "32768\n"),
    (b"kernel/version", ""),
    (b"net/core/rmem_default", "212992\n"),
    (b"net/core/rmem_max", "212992\n"),
    (b"net/core/somaxconn", "4096\n"),
    (b"net/core/wmem_default", "212992\n"),
    (b"net/core/wmem_max", "212992\n"),
    (b"net/ipv4/ip_forward", "0\n"),
    (b"net/ipv4/ip_local_port_range", "32768\t60999\n"),
    (b"net/ipv4/ip_unprivileged_port_start", "0\n"),
    (b"net/ipv6/bindv6only", "0\n"),
    (b"net/unix/max_dgram_qlen", "10\n"),
    (b"vm/max_map_count", "65530\n"),
    (b"vm/mmap_min_addr", "65536\n"),
    (b"vm/nr_hugepages", "0\n"),
    (b"vm/overcommit_memory", "0\n"),
    (b"vm/overcommit_ratio", "50\n"),
    (b"vm/swappiness", "60\n"),
];

pub(super) fn sys_entry(rest: &[u8]) -> Option<Synth> {
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

pub(super) fn top_text(cx: &Cx<'_>, name: &[u8]) -> Option<String> {
    let memory = &cx.machine.memory;
    let kib = |bytes: u64| bytes / 1024;
    Some(match name {
        b"cgroups" => {
            let head = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n";
            let row = |name: &str| format!("{name}\t0\t1\t1\n");
            let controllers = ["cpuset", "cpu", "cpuacct", "memory", "pids"].map(row);
            format!("{head}{}", controllers.concat())
        }
        b"cmdline" => "\n".to_owned(),
        b"cpuinfo" => cpuinfo(),
        b"devices" => "Character devices:\n  1 mem\n  5 /dev/tty\n\nBlock devices:\n".to_owned(),
        // There are none.
        b"diskstats" | b"modules" => String::new(),
        b"interrupts" => "           CPU0       \n".to_owned(),
        b"filesystems" => {
            "nodev\tsysfs\nnodev\ttmpfs\nnodev\tproc\nnodev\tdevtmpfs\nnodev\tcgroup2\n".to_owned()
        }
        b"loadavg" => {
            let ready = cx.kernel.sched.ready_count().saturating_add(1);
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
                ("Active(anon)", kib(used)),
                ("Inactive(anon)", 0),
                ("Active(file)", 0),
                ("Inactive(file)", 0),
                ("Unevictable", 0),
                ("Mlocked", 0),
                ("SwapTotal", 0),
                ("SwapFree", 0),
                ("Dirty", 0),
                ("Writeback", 0),
                ("AnonPages", kib(used)),
                ("Mapped", 0),
                ("Shmem", 0),
                ("KReclaimable", 0),
                ("Slab", 0),
                ("SReclaimable", 0),
                ("SUnreclaim", 0),
                ("PageTables", 0),
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
            let user = ticks(cx.kernel.cpu_time_ns);
            let booted = clock::realtime_ns(cx.host).saturating_sub(uptime_ns(cx)) / NSEC_PER_SEC;
            let total = cx.kernel.next_tid.saturating_sub(1);
            let running = cx.kernel.sched.ready_count().saturating_add(1);
            let idle = ticks(uptime_ns(cx)).saturating_sub(user);
            format!(
                "cpu  {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 {user} 0 0 {idle} 0 0 0 0 0 0\nintr 0\nctxt 0\nbtime {booted}\nprocesses {total}\nprocs_running {running}\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n"
            )
        }
        b"swaps" => "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".to_owned(),
        b"uptime" => {
            let centi = uptime_ns(cx) / (NSEC_PER_SEC / 100);
            format!("{0}.{1:02} {0}.{1:02}\n", centi / 100, centi % 100)
        }
        b"version" => format!("Linux version {RELEASE} (kvmlet@kvmlet) #1 SMP kvmlet\n"),
        b"vmstat" => {
            let free = memory.limit_bytes().saturating_sub(memory.resident_bytes());
            let pages = free / PAGE_SIZE;
            format!(
                "nr_free_pages {pages}\npgpgin 0\npgpgout 0\npswpin 0\npswpout 0\npgfault 0\npgmajfault 0\noom_kill 0\n"
            )
        }
        _ => return None,
    })
}

fn uptime_ns(cx: &Cx<'_>) -> u64 {
    clock::boottime_ns(cx.host)
}

pub(super) fn ticks(ns: u64) -> u64 {
    ns / (NSEC_PER_SEC / USER_HZ)
}

/// The host's description of one processor: the guest sees the same CPUID.
fn cpuinfo() -> String {
    match kvmlet_hostfs::cpuinfo().split_once("\n\n") {
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

pub(super) fn sys_text(rest: &[u8]) -> Option<String> {
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

/// One mounted file system.
struct Mount {
    /// Its mount point, as it is shown there.
    at: String,
    kind: &'static str,
    options: &'static str,
    /// The number of the one that it is mounted on.
    parent: u32,
}

/// The mounted file systems: the overlays come last.
fn mount_table(cx: &Cx<'_>) -> Vec<Mount> {
    let fixed = [
        ("/", "kvmlet", "ro,nosuid,nodev", 0),
        ("/tmp", "tmpfs", "rw,nosuid,nodev,relatime", 1),
        ("/proc", "proc", "ro,nosuid,nodev,noexec", 1),
        ("/dev", "devtmpfs", "ro,nosuid", 1),
        ("/sys", "sysfs", "ro,nosuid,nodev,noexec", 1),
        ("/dev/shm", "tmpfs", "rw,nosuid,nodev", 4),
        ("/sys/fs/cgroup", "cgroup2", "ro,nosuid,nodev,noexec", 5),
    ];
    let fixed = fixed.map(|(at, kind, options, parent)| Mount {
        at: at.to_owned(),
        kind,
        options,
        parent,
    });
    let memory = cx.host.policy.memory().map(|(path, _)| (path, "tmpfs"));
    let overlays = cx.host.policy.overlays();
    let overlays = overlays.map(|path| (path, "overlay"));
    let more = memory.chain(overlays).map(|(at, kind)| Mount {
        at: mangled(at),
        kind,
        options: "rw,nosuid,nodev",
        parent: if beneath(TMP, at) { 2 } else { 1 },
    });
    fixed.into_iter().chain(more).collect()
}

/// A path with what separates fields as octal escapes (mangle_path).
fn mangled(path: &[u8]) -> String {
    let mut shown = String::new();
    for part in String::from_utf8_lossy(path).chars() {
        match part {
            ' ' => shown.push_str("\\040"),
            '\t' => shown.push_str("\\011"),
            '\n' => shown.push_str("\\012"),
            '\\' => shown.push_str("\\134"),
            part => shown.push(part),
        }
    }
    shown
}

pub(super) fn mounts(cx: &Cx<'_>) -> String {
    let line = |mount: &Mount| {
        let Mount {
            at, kind, options, ..
        } = mount;
        format!("{kind} {at} {kind} {options} 0 0\n")
    };
    mount_table(cx).iter().map(line).collect()
}

pub(super) fn mountinfo(cx: &Cx<'_>) -> String {
    let mut out = String::new();
    for (index, mount) in (1u32..).zip(mount_table(cx)) {
        let Mount {
            at,
            kind,
            options,
            parent,
        } = mount;
        let rights = options.split(',').next().unwrap_or("ro");
        out.push_str(&format!(
            "{index} {parent} 0:{} / {at} {options} - {kind} {kind} {rights}\n",
            0x70_u32.saturating_add(index)
        ));
    }
    out
}
