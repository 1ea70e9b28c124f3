//! Counters for operators, in the text format of Prometheus.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// The way that a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The program's answer was handed on, whatever its status.
    Ok,
    /// What the client sent was not passed on.
    Refused,
    /// There was no fork for it.
    Full,
    /// It took too long.
    Deadline,
    /// The program ended.
    Crash,
    /// It used too much memory.
    Memory,
    /// Its answer was none, or not HTTP.
    Invalid,
    /// The client went away before it had the answer.
    Aborted,
    /// A fault of kvmlet or the host.
    Error,
}

impl Outcome {
    const ALL: [Self; 9] = [
        Self::Ok,
        Self::Refused,
        Self::Full,
        Self::Deadline,
        Self::Crash,
        Self::Memory,
        Self::Invalid,
        Self::Aborted,
        Self::Error,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Full => "full",
            Self::Deadline => "deadline",
            Self::Crash => "crash",
            Self::Memory => "memory",
            Self::Invalid => "invalid",
            Self::Aborted => "aborted",
            Self::Error => "error",
        }
    }
}

/// The way that a client's handshake of TLS ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Handshake {
    Ok,
    /// The client went away, or what it said could not be agreed to.
    Failed,
    /// It did not begin with TLS.
    NotTls,
    TimedOut,
    /// There were too many, and it was the oldest.
    Displaced,
}

impl Handshake {
    const ALL: [Self; 5] = [
        Self::Ok,
        Self::Failed,
        Self::NotTls,
        Self::TimedOut,
        Self::Displaced,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::NotTls => "not_tls",
            Self::TimedOut => "timeout",
            Self::Displaced => "displaced",
        }
    }
}

/// Upper ends of a histogram's buckets, in microseconds.
const BUCKETS_US: [u64; 16] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 5_000_000, 30_000_000,
];

/// Times, counted by their length.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    counts: [AtomicU64; BUCKETS_US.len()],
    all: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    pub(crate) fn add(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BUCKETS_US.iter().position(|end| us <= *end) {
            self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.all.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} histogram\n");
        let mut sum = 0;
        for (count, end_us) in self.counts.iter().zip(BUCKETS_US) {
            sum += count.load(Ordering::Relaxed);
            let end = seconds(end_us);
            let _ = writeln!(text, "{name}_bucket{{le=\"{end}\"}} {sum}");
        }
        // Read after the buckets, and so at least their sum.
        let all = self.all.load(Ordering::Relaxed).max(sum);
        let total = seconds(self.sum_us.load(Ordering::Relaxed));
        let _ = write!(
            text,
            "{name}_bucket{{le=\"+Inf\"}} {all}\n{name}_sum {total}\n{name}_count {all}\n"
        );
    }
}

/// Seconds as a decimal number, exact to a microsecond.
pub(crate) fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: [AtomicU64; Outcome::ALL.len()],
    handshakes: [AtomicU64; Handshake::ALL.len()],
    /// Handshakes that have begun and not ended.
    pub(crate) handshakes_open: AtomicI64,
    pub(crate) certificates: AtomicU64,
    pub(crate) proxy_headers_refused: AtomicU64,
    /// From the moment that a request was read to that when a fork took it.
    pub(crate) queued: Histogram,
    /// From then to the last byte of its answer.
    pub(crate) ran: Histogram,
    /// Of the reset after that.
    pub(crate) reset: Histogram,
    pub(crate) pages_reset: AtomicU64,
    pub(crate) forks: AtomicI64,
    pub(crate) forks_busy: AtomicI64,
    pub(crate) forks_rebuilt: AtomicU64,
    pub(crate) waiting: AtomicI64,
    pub(crate) connections: AtomicI64,
    pub(crate) upgrades: AtomicI64,
    pub(crate) reloads: AtomicU64,
    pub(crate) log_lines_dropped: AtomicU64,
}

/// Counted up while this lives.
#[derive(Debug)]
pub(crate) struct Counted<'a>(&'a AtomicI64);

impl<'a> Counted<'a> {
    pub(crate) fn new(gauge: &'a AtomicI64) -> Self {
        gauge.fetch_add(1, Ordering::Relaxed);
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn by_outcome<'a>(
    text: &mut String,
    name: &str,
    help: &str,
    counts: impl Iterator<Item = (&'static str, &'a AtomicU64)>,
) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n");
    for (outcome, count) in counts {
        let count = count.load(Ordering::Relaxed);
        let _ = writeln!(text, "{name}{{outcome=\"{outcome}\"}} {count}");
    }
}

impl Metrics {
    pub(crate) fn count(&self, outcome: Outcome) {
        if let Some(index) = Outcome::ALL.iter().position(|other| *other == outcome) {
            self.requests[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn count_handshake(&self, outcome: Handshake) {
        if let Some(index) = Handshake::ALL.iter().position(|other| *other == outcome) {
            self.handshakes[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests by the way they ended.
    pub(crate) fn requests(&self) -> Vec<(&'static str, u64)> {
        let counts = Outcome::ALL.iter().zip(&self.requests);
        counts
            .map(|(outcome, count)| (outcome.name(), count.load(Ordering::Relaxed)))
            .collect()
    }

    /// The numbers that a caller looks at.
    pub(crate) fn counts(&self) -> Vec<(&'static str, u64)> {
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let level = |number: &AtomicI64| number.load(Ordering::Relaxed).max(0).unsigned_abs();
        vec![
            ("forks", level(&self.forks)),
            ("forks_busy", level(&self.forks_busy)),
            ("forks_rebuilt", count(&self.forks_rebuilt)),
            ("waiting", level(&self.waiting)),
            ("connections", level(&self.connections)),
            ("upgrades", level(&self.upgrades)),
            ("reloads", count(&self.reloads)),
            ("pages_reset", count(&self.pages_reset)),
        ]
    }

    /// All of them as a page.
    pub(crate) fn text(&self) -> String {
        let mut text = String::with_capacity(8192);
        by_outcome(
            &mut text,
            "kvmlet_requests_total",
            "Requests by the way they ended.",
            Outcome::ALL
                .map(Outcome::name)
                .into_iter()
                .zip(&self.requests),
        );
        by_outcome(
            &mut text,
            "kvmlet_tls_handshakes_total",
            "Handshakes of TLS by the way they ended.",
            (Handshake::ALL.map(Handshake::name).into_iter()).zip(&self.handshakes),
        );
        for (histogram, name, help) in [
            (
                &self.queued,
                "kvmlet_queue_seconds",
                "Time that requests waited for a fork.",
            ),
            (
                &self.ran,
                "kvmlet_run_seconds",
                "Time that a fork took for a request.",
            ),
            (
                &self.reset,
                "kvmlet_reset_seconds",
                "Time that the reset after it took.",
            ),
        ] {
            histogram.write(&mut text, name, help);
        }
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        for (name, help, value) in [
            (
                "kvmlet_pages_reset_total",
                "Pages that resets put back.",
                count(&self.pages_reset),
            ),
            (
                "kvmlet_forks_rebuilt_total",
                "Forks that were made anew.",
                count(&self.forks_rebuilt),
            ),
            (
                "kvmlet_reloads_total",
                "Programs that took the place of another.",
                count(&self.reloads),
            ),
            (
                "kvmlet_tls_certificates_read_total",
                "Certificates that took the place of another.",
                count(&self.certificates),
            ),
            (
                "kvmlet_proxy_headers_refused_total",
                "Connections of trusted proxies that did not begin with a PROXY header.",
                count(&self.proxy_headers_refused),
            ),
            (
                "kvmlet_log_lines_dropped_total",
                "Lines that nobody read in time.",
                count(&self.log_lines_dropped),
            ),
        ] {
            let _ = write!(
                text,
                "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n"
            );
        }
        let level = |number: &AtomicI64| number.load(Ordering::Relaxed).max(0);
        for (name, help, value) in [
            ("kvmlet_forks", "Forks there are.", level(&self.forks)),
            (
                "kvmlet_forks_busy",
                "Forks that have a request or are being reset.",
                level(&self.forks_busy),
            ),
            (
                "kvmlet_queue_length",
                "Requests that wait for a fork.",
                level(&self.waiting),
            ),
            (
                "kvmlet_connections",
                "Connections of clients.",
                level(&self.connections),
            ),
            (
                "kvmlet_tls_handshakes",
                "Handshakes of TLS that have begun and not ended.",
                level(&self.handshakes_open),
            ),
            (
                "kvmlet_upgrades",
                "Connections that hold a fork: upgrades and streams of events.",
                level(&self.upgrades),
            ),
        ] {
            let _ = write!(
                text,
                "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let metrics = Metrics::default();
        metrics.count(Outcome::Ok);
        metrics.count(Outcome::Deadline);
        for us in [10, 60, 60_000_000] {
            metrics.ran.add(Duration::from_micros(us));
        }
        let text = metrics.text();
        for line in [
            "kvmlet_requests_total{outcome=\"ok\"} 1",
            "kvmlet_requests_total{outcome=\"deadline\"} 1",
            "kvmlet_run_seconds_bucket{le=\"0.00005\"} 1",
            "kvmlet_run_seconds_bucket{le=\"0.0001\"} 2",
            "kvmlet_run_seconds_bucket{le=\"30\"} 2",
            "kvmlet_run_seconds_bucket{le=\"+Inf\"} 3",
            "kvmlet_run_seconds_sum 60.00007",
            "kvmlet_run_seconds_count 3",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }

    #[test]
    fn seconds_are_decimal() {
        assert_eq!(seconds(0), "0");
        assert_eq!(seconds(1_500_000), "1.5");
        assert_eq!(seconds(10_000_000), "10");
        assert_eq!(seconds(7), "0.000007");
    }
}
