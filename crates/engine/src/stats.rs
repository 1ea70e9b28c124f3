//! Counters of a run, flat and named, for people and programs.

use kvmlet_hv::Counters;
use kvmlet_linux::{CallKey, Report, table};
use kvmlet_mem::ResetReport;

use crate::transport::TransportCounts;

/// One figure.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Stat {
    /// A count.
    Count(u64),
    /// A time in microseconds.
    Microseconds(f64),
}

/// Times of a run by what was done, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Building the VM and loading the program.
    pub setup_ns: u64,
    /// Inside KVM_RUN: guest code and the cost of exits.
    pub guest_ns: u64,
    /// Answering traps.
    pub personality_ns: u64,
    /// Waiting with nothing to run.
    pub idle_ns: u64,
    /// From the start of the build to the end of the program.
    pub wall_ns: u64,
}

/// Figures of a reset.
pub(crate) fn of_reset(report: &ResetReport, private_bytes: u64) -> Vec<(String, Stat)> {
    [
        ("reset_pages_copied", report.copied_pages),
        ("reset_pages_equal", report.compared_equal_pages),
        ("reset_pages_dropped", report.dropped_pages),
        ("reset_pages_kept", report.kept_pages),
        ("reset_pages_scrubbed", report.scrubbed_pages),
        ("private_table_pages", report.table_pages),
        ("private_bytes", private_bytes),
    ]
    .into_iter()
    .map(|(name, count)| (name.to_owned(), Stat::Count(count)))
    .collect()
}

pub(crate) fn us(time_ns: u64) -> Stat {
    Stat::Microseconds(time_ns as f64 / 1e3)
}

fn call_name(call: CallKey) -> &'static str {
    let row = call.nr().and_then(|nr| table::row(u64::from(nr)));
    row.map_or("unknown", |row| row.name)
}

/// All figures of a run, in a fixed order; calls by name last, most frequent first.
pub(crate) fn collect(
    counters: Counters,
    vm_ioctls: u64,
    full_flushes: u64,
    times: &Times,
    transport: &TransportCounts,
    peak_bytes: u64,
    report: &Report,
) -> Vec<(String, Stat)> {
    let syscalls: u64 = report.calls().map(|counted| counted.count).sum();
    let counts = [
        ("exits", counters.runs),
        ("exits_syscall", counters.syscalls),
        ("exits_fault", counters.page_faults),
        (
            "exits_exception",
            counters.exceptions.saturating_sub(counters.page_faults),
        ),
        ("exits_kick", counters.interrupted),
        ("syscalls", syscalls),
        ("calls_polled", transport.polled),
        ("calls_exit", syscalls.saturating_sub(transport.polled)),
        ("calls_left", transport.left),
        ("trampolines", report.trampolines),
        ("polls_timed_out", transport.timed_out),
        ("faults", counters.page_faults),
        ("flushes", counters.flushes),
        ("flushes_full", full_flushes),
        ("ioctls", counters.ioctls.saturating_add(vm_ioctls)),
        ("memory_peak_bytes", peak_bytes),
        ("denials_not_kept", report.denials_not_kept),
    ];
    let mut stats: Vec<(String, Stat)> = counts
        .iter()
        .map(|(name, value)| ((*name).to_owned(), Stat::Count(*value)))
        .collect();
    let timed = [
        ("setup_us", times.setup_ns),
        ("guest_us", times.guest_ns),
        ("personality_us", times.personality_ns),
        ("idle_us", times.idle_ns),
        ("wall_us", times.wall_ns),
        ("poller_cpu_us", transport.poller_cpu_ns),
        ("poller_useful_us", transport.poller_useful_ns),
    ];
    stats.extend(
        timed
            .iter()
            .map(|(name, time)| ((*name).to_owned(), us(*time))),
    );
    stats.extend(
        report
            .calls()
            .filter(|counted| counted.spent_ns != 0)
            .map(|counted| {
                let name = format!("time_{}_us", call_name(counted.call));
                (name, us(counted.spent_ns))
            }),
    );
    if report.fault_ns != 0 {
        stats.push(("fault_us".to_owned(), us(report.fault_ns)));
    }
    let mut calls: Vec<(&str, u64)> = report
        .calls()
        .map(|counted| (call_name(counted.call), counted.count))
        .collect();
    calls.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    stats.extend(
        calls
            .into_iter()
            .map(|(name, count)| (format!("call_{name}"), Stat::Count(count))),
    );
    stats
}

/// The bytes that files have taken, where there is a limit on them, and the pages that they were refused.
pub(crate) fn of_files(
    disk_bytes: Option<(u64, u64)>,
    (by_limit, by_host): (u64, u64),
) -> Vec<(String, Stat)> {
    let Some((_, used_bytes)) = disk_bytes else {
        return Vec::new();
    };
    let refused = [
        ("files_refused", by_limit),
        ("files_refused_by_host", by_host),
    ];
    let refused = refused.into_iter().filter(|(_, count)| *count > 0);
    [("files_bytes", used_bytes)]
        .into_iter()
        .chain(refused)
        .map(|(name, count)| (name.to_owned(), Stat::Count(count)))
        .collect()
}
