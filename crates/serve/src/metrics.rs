//! Counters for operators, in the text format of Prometheus.

use std::fmt::Write as _;
use std::sync::Arc;
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

/// The way that a question to a storage ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    Ok,
    /// Too many waited.
    Full,
    /// The storage ended meanwhile.
    Ended,
    /// The storage went on without an answer.
    Silent,
    TimedOut,
    /// Its asker was gone before the storage was given it.
    Gone,
}

impl Asked {
    const ALL: [Self; 6] = [
        Self::Ok,
        Self::Full,
        Self::Ended,
        Self::Silent,
        Self::TimedOut,
        Self::Gone,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Full => "full",
            Self::Ended => "ended",
            Self::Silent => "silent",
            Self::TimedOut => "timeout",
            Self::Gone => "gone",
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

    fn write(&self, text: &mut String, name: &str, whose: (&str, &str)) {
        let mut sum = 0;
        for (count, end_us) in self.counts.iter().zip(BUCKETS_US) {
            sum += count.load(Ordering::Relaxed);
            let labels = labels(whose, Some(("le", &seconds(end_us))));
            let _ = writeln!(text, "{name}_bucket{labels} {sum}");
        }
        // Read after the buckets, and so at least their sum.
        let all = self.all.load(Ordering::Relaxed).max(sum);
        let total = seconds(self.sum_us.load(Ordering::Relaxed));
        let every = labels(whose, Some(("le", "+Inf")));
        let labels = labels(whose, None);
        let _ = write!(
            text,
            "{name}_bucket{every} {all}\n{name}_sum{labels} {total}\n{name}_count{labels} {all}\n"
        );
    }
}

/// The label of values of the program with this name.
fn of_program(name: &str) -> (&'static str, &str) {
    ("program", name)
}

/// The labels of a value: whose it is, if that has a name, and one more.
fn labels(whose: (&str, &str), more: Option<(&str, &str)>) -> String {
    let whose = (!whose.1.is_empty()).then_some(whose);
    let all: Vec<String> = (whose.into_iter().chain(more))
        .map(|(name, value)| format!("{name}=\"{value}\""))
        .collect();
    if all.is_empty() {
        String::new()
    } else {
        format!("{{{}}}", all.join(","))
    }
}

/// Seconds as a decimal number, exact to a microsecond.
pub(crate) fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Those of the front.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    handshakes: [AtomicU64; Handshake::ALL.len()],
    /// Handshakes that have begun and not ended.
    pub(crate) handshakes_open: AtomicI64,
    pub(crate) certificates: AtomicU64,
    pub(crate) proxy_headers_refused: AtomicU64,
    pub(crate) connections: AtomicI64,
    pub(crate) reloads: AtomicU64,
    pub(crate) log_lines_dropped: AtomicU64,
}

/// Those of one program.
#[derive(Debug, Default)]
pub(crate) struct ProgramMetrics {
    program: String,
    requests: [AtomicU64; Outcome::ALL.len()],
    /// From the moment that a request was read to that when a fork took it.
    pub(crate) queued: Histogram,
    /// From then to the last byte of its answer.
    pub(crate) ran: Histogram,
    /// Of the reset after that.
    pub(crate) reset: Histogram,
    pub(crate) pages_reset: AtomicU64,
    pub(crate) exits: AtomicU64,
    poller_cpu_us: AtomicU64,
    /// Things that the policy refused.
    pub(crate) denials: AtomicU64,
    pub(crate) forks: AtomicI64,
    pub(crate) forks_busy: AtomicI64,
    pub(crate) forks_rebuilt: AtomicU64,
    pub(crate) waiting: AtomicI64,
    pub(crate) upgrades: AtomicI64,
}

/// Those of one storage.
#[derive(Debug, Default)]
pub(crate) struct StorageMetrics {
    storage: String,
    questions: [AtomicU64; Asked::ALL.len()],
    /// From the moment that a question was asked to that when the storage was given it.
    pub(crate) queued: Histogram,
    /// From then to its end.
    pub(crate) ran: Histogram,
    pub(crate) restarts: AtomicU64,
    pub(crate) waiting: AtomicI64,
    /// After its last answer.
    pub(crate) memory_bytes: AtomicI64,
}

impl StorageMetrics {
    pub(crate) fn new(storage: &str) -> Self {
        Self {
            storage: storage.to_owned(),
            ..Self::default()
        }
    }

    pub(crate) fn count(&self, how: Asked) {
        if let Some(index) = Asked::ALL.iter().position(|other| *other == how) {
            self.questions[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Questions that it has answered.
    pub(crate) fn answered(&self) -> u64 {
        count(&self.questions[0])
    }

    /// The name of the storage.
    pub(crate) fn storage(&self) -> &str {
        &self.storage
    }

    /// The numbers that a caller looks at.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 4] {
        [
            ("answered", self.answered()),
            ("waiting", level(&self.waiting)),
            ("restarts", count(&self.restarts)),
            ("memory_bytes", level(&self.memory_bytes)),
        ]
    }
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

fn level(number: &AtomicI64) -> u64 {
    number.load(Ordering::Relaxed).max(0).unsigned_abs()
}

fn count(number: &AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

/// The lines that come before the values of a metric.
fn begin(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

impl ProgramMetrics {
    /// Of the program with this name; empty if it is the only one.
    pub(crate) fn new(program: &str) -> Self {
        Self {
            program: program.to_owned(),
            ..Self::default()
        }
    }

    pub(crate) fn count(&self, outcome: Outcome) {
        if let Some(index) = Outcome::ALL.iter().position(|other| *other == outcome) {
            self.requests[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// CPU time of threads that answer system calls without an exit.
    pub(crate) fn add_poller_cpu(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.poller_cpu_us.fetch_add(us, Ordering::Relaxed);
    }

    /// The name of the program.
    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    /// The numbers that a caller looks at.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 6] {
        [
            ("forks", level(&self.forks)),
            ("forks_busy", level(&self.forks_busy)),
            ("forks_rebuilt", count(&self.forks_rebuilt)),
            ("waiting", level(&self.waiting)),
            ("upgrades", level(&self.upgrades)),
            ("pages_reset", count(&self.pages_reset)),
        ]
    }
}

/// Requests by the way they ended, of all of `programs` together.
pub(crate) fn requests(programs: &[Arc<ProgramMetrics>]) -> Vec<(&'static str, u64)> {
    let all = Outcome::ALL.iter().enumerate();
    all.map(|(place, outcome)| {
        let counts = programs.iter().map(|one| count(&one.requests[place]));
        (outcome.name(), counts.sum())
    })
    .collect()
}

impl Metrics {
    pub(crate) fn count_handshake(&self, outcome: Handshake) {
        if let Some(index) = Handshake::ALL.iter().position(|other| *other == outcome) {
            self.handshakes[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The numbers that a caller looks at, those of programs of all of them together.
    pub(crate) fn counts(&self, programs: &[Arc<ProgramMetrics>]) -> Vec<(&'static str, u64)> {
        let mut all = ProgramMetrics::default().counts();
        for one in programs {
            for (sum, (_, value)) in all.iter_mut().zip(one.counts()) {
                sum.1 += value;
            }
        }
        let mut all = all.to_vec();
        all.push(("connections", level(&self.connections)));
        all.push(("reloads", count(&self.reloads)));
        all
    }

    /// All of them as a page, with those of `programs` and `storages`.
    pub(crate) fn text(
        &self,
        programs: &[Arc<ProgramMetrics>],
        storages: &[Arc<StorageMetrics>],
    ) -> String {
        let mut text = String::with_capacity(8192);
        let name = "kvmlet_requests_total";
        begin(
            &mut text,
            name,
            "counter",
            "Requests by the way they ended.",
        );
        for one in programs {
            for (outcome, number) in Outcome::ALL.iter().zip(&one.requests) {
                let labels = labels(of_program(&one.program), Some(("outcome", outcome.name())));
                let _ = writeln!(text, "{name}{labels} {}", count(number));
            }
        }
        of_programs(&mut text, programs);
        if !storages.is_empty() {
            of_storages(&mut text, storages);
        }
        self.of_front(&mut text);
        text
    }

    fn of_front(&self, text: &mut String) {
        let name = "kvmlet_tls_handshakes_total";
        begin(
            text,
            name,
            "counter",
            "Handshakes of TLS by the way they ended.",
        );
        for (outcome, number) in Handshake::ALL.iter().zip(&self.handshakes) {
            let labels = labels(of_program(""), Some(("outcome", outcome.name())));
            let _ = writeln!(text, "{name}{labels} {}", count(number));
        }
        for (name, kind, help, value) in [
            (
                "kvmlet_reloads_total",
                "counter",
                "Programs that took the place of others.",
                count(&self.reloads),
            ),
            (
                "kvmlet_tls_certificates_read_total",
                "counter",
                "Certificates that took the place of another.",
                count(&self.certificates),
            ),
            (
                "kvmlet_proxy_headers_refused_total",
                "counter",
                "Connections of trusted proxies that did not begin with a PROXY header.",
                count(&self.proxy_headers_refused),
            ),
            (
                "kvmlet_log_lines_dropped_total",
                "counter",
                "Lines that nobody read in time.",
                count(&self.log_lines_dropped),
            ),
            (
                "kvmlet_connections",
                "gauge",
                "Connections of clients.",
                level(&self.connections),
            ),
            (
                "kvmlet_tls_handshakes",
                "gauge",
                "Handshakes of TLS that have begun and not ended.",
                level(&self.handshakes_open),
            ),
        ] {
            begin(text, name, kind, help);
            let _ = writeln!(text, "{name} {value}");
        }
    }
}

/// Metrics of which there may be several, told apart by a label.
trait Labelled {
    fn label(&self) -> (&'static str, &str);
}

impl Labelled for ProgramMetrics {
    fn label(&self) -> (&'static str, &str) {
        of_program(&self.program)
    }
}

impl Labelled for StorageMetrics {
    fn label(&self) -> (&'static str, &str) {
        ("storage", &self.storage)
    }
}

/// A histogram: its name, what it is of, and where it is.
type Time<T> = (&'static str, &'static str, fn(&T) -> &Histogram);
/// A number: its name, kind, what it is of, and where it is.
type Value<T> = (&'static str, &'static str, &'static str, fn(&T) -> u64);

fn write_times<T: Labelled>(text: &mut String, all: &[Arc<T>], times: &[Time<T>]) {
    for (name, help, time) in times {
        begin(text, name, "histogram", help);
        for one in all {
            time(one).write(text, name, one.label());
        }
    }
}

fn write_values<T: Labelled>(text: &mut String, all: &[Arc<T>], values: &[Value<T>]) {
    for (name, kind, help, value) in values {
        begin(text, name, kind, help);
        for one in all {
            let labels = labels(one.label(), None);
            let _ = writeln!(text, "{name}{labels} {}", value(one));
        }
    }
}

/// The metrics that each program has for itself.
fn of_programs(text: &mut String, programs: &[Arc<ProgramMetrics>]) {
    let times: [Time<ProgramMetrics>; 3] = [
        (
            "kvmlet_queue_seconds",
            "Time that requests waited for a fork.",
            |one| &one.queued,
        ),
        (
            "kvmlet_run_seconds",
            "Time that a fork took for a request.",
            |one| &one.ran,
        ),
        (
            "kvmlet_reset_seconds",
            "Time that the reset after it took.",
            |one| &one.reset,
        ),
    ];
    write_times(text, programs, &times);
    let name = "kvmlet_poller_cpu_seconds_total";
    let help = "CPU time of threads that answer system calls without an exit.";
    begin(text, name, "counter", help);
    for one in programs {
        let labels = labels(of_program(&one.program), None);
        let time = seconds(count(&one.poller_cpu_us));
        let _ = writeln!(text, "{name}{labels} {time}");
    }
    let values: [Value<ProgramMetrics>; 8] = [
        (
            "kvmlet_denials_total",
            "counter",
            "Things that the policy refused to requests.",
            |one| count(&one.denials),
        ),
        (
            "kvmlet_pages_reset_total",
            "counter",
            "Pages that resets put back.",
            |one| count(&one.pages_reset),
        ),
        (
            "kvmlet_exits_total",
            "counter",
            "Exits from VMs for requests and the resets after them.",
            |one| count(&one.exits),
        ),
        (
            "kvmlet_forks_rebuilt_total",
            "counter",
            "Forks that were made anew.",
            |one| count(&one.forks_rebuilt),
        ),
        ("kvmlet_forks", "gauge", "Forks there are.", |one| {
            level(&one.forks)
        }),
        (
            "kvmlet_forks_busy",
            "gauge",
            "Forks that have a request or are being reset.",
            |one| level(&one.forks_busy),
        ),
        (
            "kvmlet_queue_length",
            "gauge",
            "Requests that wait for a fork.",
            |one| level(&one.waiting),
        ),
        (
            "kvmlet_upgrades",
            "gauge",
            "Connections that hold a fork: upgrades and streams of events.",
            |one| level(&one.upgrades),
        ),
    ];
    write_values(text, programs, &values);
}

/// The metrics that each storage has for itself.
fn of_storages(text: &mut String, storages: &[Arc<StorageMetrics>]) {
    let name = "kvmlet_storage_questions_total";
    let help = "Questions to storages by the way they ended.";
    begin(text, name, "counter", help);
    for one in storages {
        for (how, number) in Asked::ALL.iter().zip(&one.questions) {
            let labels = labels(one.label(), Some(("outcome", how.name())));
            let _ = writeln!(text, "{name}{labels} {}", count(number));
        }
    }
    let times: [Time<StorageMetrics>; 2] = [
        (
            "kvmlet_storage_queue_seconds",
            "Time that questions waited for a storage.",
            |one| &one.queued,
        ),
        (
            "kvmlet_storage_run_seconds",
            "Time that a storage took for a question.",
            |one| &one.ran,
        ),
    ];
    write_times(text, storages, &times);
    let values: [Value<StorageMetrics>; 3] = [
        (
            "kvmlet_storage_restarts_total",
            "counter",
            "Storages that were started anew.",
            |one| count(&one.restarts),
        ),
        (
            "kvmlet_storage_queue_length",
            "gauge",
            "Questions that wait for a storage.",
            |one| level(&one.waiting),
        ),
        (
            "kvmlet_storage_memory_bytes",
            "gauge",
            "Memory of a storage after its last answer.",
            |one| level(&one.memory_bytes),
        ),
    ];
    write_values(text, storages, &values);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let metrics = Arc::new(ProgramMetrics::default());
        metrics.count(Outcome::Ok);
        metrics.count(Outcome::Deadline);
        for us in [10, 60, 60_000_000] {
            metrics.ran.add(Duration::from_micros(us));
        }
        let text = Metrics::default().text(&[metrics], &[]);
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
    fn each_program_has_its_label() {
        let named = |name| Arc::new(ProgramMetrics::new(name));
        let programs = [named("a"), named("b"), named("")];
        programs[1].count(Outcome::Crash);
        programs[1].forks.store(3, Ordering::Relaxed);
        let storage = Arc::new(StorageMetrics::new("cart"));
        storage.count(Asked::Ended);
        storage.ran.add(Duration::from_micros(60));
        let text = Metrics::default().text(&programs, &[storage]);
        for line in [
            "kvmlet_requests_total{program=\"b\",outcome=\"crash\"} 1",
            "kvmlet_requests_total{outcome=\"crash\"} 0",
            "kvmlet_run_seconds_bucket{program=\"a\",le=\"+Inf\"} 0",
            "kvmlet_run_seconds_count{program=\"a\"} 0",
            "kvmlet_forks{program=\"b\"} 3",
            "kvmlet_forks 0",
            "kvmlet_connections 0",
            "kvmlet_storage_questions_total{storage=\"cart\",outcome=\"ended\"} 1",
            "kvmlet_storage_run_seconds_bucket{storage=\"cart\",le=\"0.0001\"} 1",
            "kvmlet_storage_restarts_total{storage=\"cart\"} 0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        for start in ["# TYPE ", "# HELP "] {
            let mut heads: Vec<_> = text.lines().filter(|it| it.starts_with(start)).collect();
            let count = heads.len();
            heads.dedup();
            assert_eq!(heads.len(), count);
        }
        assert!(requests(&programs).contains(&("crash", 1)));
        let counts = Metrics::default().counts(&programs);
        assert!(counts.contains(&("forks", 3)) && counts.contains(&("reloads", 0)));
    }

    #[test]
    fn seconds_are_decimal() {
        assert_eq!(seconds(0), "0");
        assert_eq!(seconds(1_500_000), "1.5");
        assert_eq!(seconds(10_000_000), "10");
        assert_eq!(seconds(7), "0.000007");
    }
}
