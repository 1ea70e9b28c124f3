//! /sys: one processor and its place, as runtimes and lscpu(1) ask for it, and the control group of the sandbox with its
//! limits (cgroup-v2.rst). Nothing there can be changed.

use std::collections::BTreeMap;

use kvmlet_hostfs::attr::{S_IFDIR, S_IFREG, d_type};
use kvmlet_policy::{SYS, beneath};

use super::synth::Synth;
use crate::clock::NSEC_PER_SEC;
use crate::cx::Cx;
use crate::fd::Text;

/// Mount point of the control groups, of which there is one.
pub const CGROUPS: &[u8] = b"/sys/fs/cgroup";

const NSEC_PER_USEC: u64 = NSEC_PER_SEC / 1_000_000;

/// The contents of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Says {
    /// Always the same.
    Fixed(&'static str),
    /// Processes, one a line.
    Processes,
    /// Threads.
    Threads,
    /// Most processes.
    ProcessesMax,
    /// CPU time.
    CpuTime,
    /// Bytes of memory in use.
    Memory,
    /// Bytes of memory at most so far.
    MemoryPeak,
    /// Bytes of memory at most.
    MemoryMax,
    /// Memory in use by kind.
    MemoryKinds,
    /// Memory of the node in KiB.
    NodeMemory,
}

use Says::Fixed;

/// The files, by path, sorted by directory.
const FILES: [(&str, Says); 43] = [
    (
        "/sys/devices/system/cpu/cpu0/topology/core_cpus",
        Fixed("1\n"),
    ),
    (
        "/sys/devices/system/cpu/cpu0/topology/core_cpus_list",
        Fixed("0\n"),
    ),
    (
        "/sys/devices/system/cpu/cpu0/topology/core_id",
        Fixed("0\n"),
    ),
    (
        "/sys/devices/system/cpu/cpu0/topology/core_siblings",
        Fixed("1\n"),
    ),
    (
        "/sys/devices/system/cpu/cpu0/topology/core_siblings_list",
        Fixed("0\n"),
    ),
    (
        "/sys/devices/system/cpu/cpu0/topology/die_cpus",
        Fixed("1\n"),
    ),
    (
        "/sys/devices/system/cpu/cpu0/topology/die_cpus_list",
        Fixed("0\n"),
    ),
    ("/sys/devices/system/cpu/cpu0/topology/die_id", Fixed("0\n")),
    (
        "/sys/devices/system/cpu/cpu0/topology/package_cpus",
        Fixed("1\n"),
    ),
    (
        "/sys/devices/system/cpu/cpu0/topology/package_cpus_list",
        Fixed("0\n"),
    ),
    (
        "/sys/devices/system/cpu/cpu0/topology/physical_package_id",
        Fixed("0\n"),
    ),
    (
        "/sys/devices/system/cpu/cpu0/topology/thread_siblings",
        Fixed("1\n"),
    ),
    (
        "/sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
        Fixed("0\n"),
    ),
    ("/sys/devices/system/cpu/isolated", Fixed("\n")),
    ("/sys/devices/system/cpu/kernel_max", Fixed("0\n")),
    ("/sys/devices/system/cpu/offline", Fixed("\n")),
    ("/sys/devices/system/cpu/online", Fixed("0\n")),
    ("/sys/devices/system/cpu/possible", Fixed("0\n")),
    ("/sys/devices/system/cpu/present", Fixed("0\n")),
    ("/sys/devices/system/cpu/smt/active", Fixed("0\n")),
    (
        "/sys/devices/system/cpu/smt/control",
        Fixed("notsupported\n"),
    ),
    ("/sys/devices/system/node/has_cpu", Fixed("0\n")),
    ("/sys/devices/system/node/has_memory", Fixed("0\n")),
    ("/sys/devices/system/node/node0/cpulist", Fixed("0\n")),
    ("/sys/devices/system/node/node0/cpumap", Fixed("1\n")),
    ("/sys/devices/system/node/node0/distance", Fixed("10\n")),
    ("/sys/devices/system/node/node0/meminfo", Says::NodeMemory),
    ("/sys/devices/system/node/online", Fixed("0\n")),
    ("/sys/devices/system/node/possible", Fixed("0\n")),
    (
        "/sys/fs/cgroup/cgroup.controllers",
        Fixed("cpuset cpu memory pids\n"),
    ),
    ("/sys/fs/cgroup/cgroup.procs", Says::Processes),
    ("/sys/fs/cgroup/cgroup.type", Fixed("domain\n")),
    ("/sys/fs/cgroup/cpu.max", Fixed("max 100000\n")),
    ("/sys/fs/cgroup/cpu.stat", Says::CpuTime),
    ("/sys/fs/cgroup/cpuset.cpus.effective", Fixed("0\n")),
    ("/sys/fs/cgroup/memory.current", Says::Memory),
    ("/sys/fs/cgroup/memory.high", Fixed("max\n")),
    ("/sys/fs/cgroup/memory.max", Says::MemoryMax),
    ("/sys/fs/cgroup/memory.peak", Says::MemoryPeak),
    ("/sys/fs/cgroup/memory.stat", Says::MemoryKinds),
    ("/sys/fs/cgroup/memory.swap.max", Fixed("0\n")),
    ("/sys/fs/cgroup/pids.current", Says::Threads),
    ("/sys/fs/cgroup/pids.max", Says::ProcessesMax),
];

/// The object at canonical `path` below /sys, if there is one.
#[must_use]
pub fn lookup(path: &[u8]) -> Option<Synth> {
    if FILES.iter().any(|(file, _)| file.as_bytes() == path) {
        return Some(Synth::Text);
    }
    let mut files = FILES.iter();
    let is_dir = files.any(|(file, _)| beneath(path, file.as_bytes()));
    (is_dir || path == SYS).then_some(Synth::Dir)
}

/// The contents of a file as of now.
#[must_use]
pub fn text(cx: &Cx<'_>, path: &[u8]) -> Option<Text> {
    let (_, says) = FILES.iter().find(|(file, _)| file.as_bytes() == path)?;
    let memory = &cx.machine.memory;
    let (limit, used) = (memory.limit_bytes(), memory.resident_bytes());
    let kernel = &cx.kernel;
    let said = match says {
        Fixed(text) => (*text).to_owned(),
        Says::Processes => kernel
            .processes
            .keys()
            .map(|pid| format!("{}\n", pid.0))
            .collect(),
        Says::Threads => format!("{}\n", kernel.threads.len()),
        Says::ProcessesMax => format!("{}\n", kernel.processes_max),
        Says::CpuTime => {
            let usage = kernel.cpu_time_ns / NSEC_PER_USEC;
            format!(
                "usage_usec {usage}\nuser_usec {usage}\nsystem_usec 0\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n"
            )
        }
        Says::Memory => format!("{used}\n"),
        Says::MemoryPeak => format!("{}\n", memory.peak_bytes()),
        Says::MemoryMax => format!("{limit}\n"),
        Says::MemoryKinds => format!("anon {used}\nfile 0\nkernel 0\nshmem 0\n"),
        Says::NodeMemory => {
            let (total, used) = (limit / 1024, used / 1024);
            let row = |name: &str, kib: u64| {
                let name = format!("{name}:");
                format!("Node 0 {name:<16}{kib:>8} kB\n")
            };
            let free = total.saturating_sub(used);
            [("MemTotal", total), ("MemFree", free), ("MemUsed", used)]
                .map(|(name, kib)| row(name, kib))
                .concat()
        }
    };
    Some(Text::whole(said.into_bytes()))
}

/// Names and types (d_type) in a directory, without `.` and `..`.
#[must_use]
pub fn list(path: &[u8]) -> Vec<(Vec<u8>, u8)> {
    let mut names = BTreeMap::new();
    for (file, _) in FILES {
        let below = file
            .as_bytes()
            .strip_prefix(path)
            .and_then(|rest| rest.strip_prefix(b"/"));
        let Some(below) = below else { continue };
        let mut parts = below.split(|byte| *byte == b'/');
        if let Some(name) = parts.next() {
            let kind = match parts.next() {
                Some(_) => S_IFDIR,
                None => S_IFREG,
            };
            names.insert(name.to_vec(), d_type(kind));
        }
    }
    names.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listed_is_there() {
        let (mut ahead, mut files) = (vec![SYS.to_vec()], 0);
        while let Some(dir) = ahead.pop() {
            assert_eq!(lookup(&dir), Some(Synth::Dir));
            for (name, kind) in list(&dir) {
                let path = kvmlet_policy::join(&dir, &name);
                if kind == d_type(S_IFDIR) {
                    ahead.push(path);
                } else {
                    assert_eq!(lookup(&path), Some(Synth::Text));
                    files += 1;
                }
            }
        }
        assert_eq!(files, FILES.len());
        assert_eq!(lookup(b"/sys/fs/cgroup/none"), None);
        assert_eq!(lookup(b"/sys/devices/system/cpu/cpu1"), None);
    }
}
