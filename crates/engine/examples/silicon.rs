//! Counts the instructions that requests, resets and forks cost, on a machine whose clock counts them: `make
//! bench-silicon` runs it in the emulated one. Elsewhere it shows nanoseconds.
//!
//!     silicon GUEST [ROW [TIMES]]
//!
//! GUEST is tests/guests/build/silicon. Of a ROW of requests alone there are so many TIMES, 20,000 if nobody
//! says: a profiler then has something to see. Another ROW alone is measured that often, or once. Each row is a
//! line of JSON. Counts are medians, so that the ticks of the machine's kernel are in none but the longest.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use kvmlet_engine::{
    CallArg, CallReturns, Calls, EngineError, Owner, Program, Sandbox, Snapshot, Stat, Streams,
    Trace, Trees, forget_vms, policy_for,
};
use kvmlet_hv::bare::BareVm;
use kvmlet_hv::{Kvm, KvmKind, VcpuConfig};
use kvmlet_mem::HostPage;

/// No request takes nearly as long.
const LIMIT: Option<Duration> = Some(Duration::from_secs(60));
/// Requests until what they write is known.
const WARM_ROUNDS: usize = 8;
const ROUNDS: usize = 15;
const ROUNDS_ALONE: usize = 20_000;
const FORKS: usize = 100;
/// In the order of measuring.
const ROWS: [&str; 12] = [
    "bare_exit",
    "call_to_host",
    "call_reset_0",
    "call_reset_16",
    "call_reset_113",
    "call_reset_581",
    "request_reset_0",
    "mixed",
    "idle_reset_beside_sibling",
    "fork_new_vm_and_call",
    "fork_bound",
    "forks_100",
];
/// Of the mixed load: each such request writes more.
const LARGE_EVERY: usize = 50;

struct Nobody;

impl Owner for Nobody {
    fn stop_requested(&mut self) -> bool {
        false
    }

    fn trace(&mut self, _line: &str, _left: Option<Duration>) {}
}

/// Counters of a sandbox, by name.
type Counts = BTreeMap<String, u64>;

fn counts(sandbox: &Sandbox) -> Counts {
    let stats = sandbox.stats().into_iter();
    let counts = stats.filter_map(|(name, stat)| match stat {
        Stat::Count(count) => Some((name, count)),
        Stat::Microseconds(_) => None,
    });
    counts.collect()
}

fn count(counts: &Counts, name: &str) -> f64 {
    counts.get(name).copied().unwrap_or_default() as f64
}

fn print(row: &str, fields: &[(&str, f64)]) {
    let fields = fields.iter();
    let fields: String = fields
        .map(|(name, value)| format!(", \"{name}\": {value:.1}"))
        .collect();
    println!("{{\"row\": \"{row}\"{fields}}}");
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

fn timed<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<(f64, T), EngineError> {
    let start = Instant::now();
    let made = work()?;
    Ok((start.elapsed().as_nanos() as f64, made))
}

fn program(guest: &str) -> Result<Program, EngineError> {
    let directory = Path::new(guest).parent().unwrap_or(Path::new("/"));
    let directory = directory.as_os_str().as_encoded_bytes();
    let (policy, cwd) = policy_for(directory, Trees::default())?;
    Ok(Program {
        argv: vec![guest.as_bytes().to_vec()],
        env: Vec::new(),
        policy,
        access: Default::default(),
        cwd,
        streams: Streams::Capture {
            input: Vec::new(),
            output_limit_bytes: 1 << 20,
        },
        timeout: None,
        cpu_time: None,
        memory_bytes: 256 << 20,
        disk: None,
        processes_max: 256,
        files_max: kvmlet_engine::FILES_MOST,
        trace: Trace::Off,
        calls: Calls::Exit,
    })
}

fn freeze(guest: &str) -> Result<Snapshot, EngineError> {
    let mut sandbox = Sandbox::start(&program(guest)?)?;
    sandbox.until_ready(LIMIT, &mut Nobody)?;
    sandbox.freeze()
}

fn call(fork: &mut Sandbox, function: &str, args: &[u64]) -> Result<(), EngineError> {
    let args: Vec<CallArg> = args.iter().copied().map(CallArg::Int).collect();
    fork.call(function, &args, CallReturns::Int, LIMIT, &mut Nobody)?;
    Ok(())
}

fn write_pages(fork: &mut Sandbox, pages: u64) -> Result<(), EngineError> {
    call(fork, "write_pages", &[0, pages])
}

fn request(fork: &mut Sandbox, pages: u64) -> Result<(), EngineError> {
    let mut message = [0; 16];
    message[8..].copy_from_slice(&pages.to_le_bytes());
    fork.send(&message)?;
    fork.recv(LIMIT, &mut Nobody)?;
    Ok(())
}

/// A row of requests with their resets, all alike.
fn steady(
    row: &str,
    guest: &str,
    rounds: usize,
    mut work: impl FnMut(&mut Sandbox) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let mut fork = freeze(guest)?.fork()?;
    for _ in 0..WARM_ROUNDS {
        work(&mut fork)?;
        fork.reset()?;
    }
    let mut all = Vec::new();
    let before = counts(&fork);
    for _ in 0..rounds {
        let (ns, ()) = timed(|| {
            work(&mut fork)?;
            fork.reset()
        })?;
        all.push(ns);
    }
    let after = counts(&fork);
    let each = |name| (count(&after, name) - count(&before, name)) / rounds as f64;
    let fields = [
        ("instructions", median(all)),
        ("exits", each("exits")),
        ("ioctls", each("ioctls")),
        ("bytes_copied", count(&after, "reset_pages_copied") * 4096.0),
    ];
    print(row, &fields);
    Ok(())
}

fn calls_to_host(guest: &str) -> Result<(), EngineError> {
    const CALLS: u64 = 1000;
    let mut fork = freeze(guest)?.fork()?;
    let mut taken = |calls| -> Result<f64, EngineError> {
        let all: Result<Vec<f64>, EngineError> = (0..5)
            .map(|_| Ok(timed(|| call(&mut fork, "call_host", &[calls]))?.0))
            .collect();
        Ok(median(all?))
    };
    let (none, many) = (taken(0)?, taken(CALLS)?);
    let each = (many - none) / CALLS as f64;
    print("call_to_host", &[("instructions", each), ("exits", 1.0)]);
    Ok(())
}

fn mixed(guest: &str) -> Result<(), EngineError> {
    const LOADS: usize = 4;
    const WARM_LOADS: usize = 2;
    let mut fork = freeze(guest)?.fork()?;
    let mut total_ns = 0.0;
    for number in 0..LARGE_EVERY * (LOADS + WARM_LOADS) {
        let is_large = number % LARGE_EVERY == LARGE_EVERY - 1;
        let (ns, ()) = timed(|| {
            write_pages(&mut fork, if is_large { 500 } else { 5 })?;
            fork.reset()
        })?;
        if number >= LARGE_EVERY * WARM_LOADS {
            total_ns += ns;
        }
    }
    let each = total_ns / (LARGE_EVERY * LOADS) as f64;
    print("mixed", &[("instructions", each)]);
    Ok(())
}

/// The reset of a fork that has written nothing, after another one has written much.
fn beside_a_sibling(guest: &str, rounds: usize) -> Result<(), EngineError> {
    let snapshot = freeze(guest)?;
    let mut sibling = snapshot.fork()?;
    for _ in 0..WARM_ROUNDS {
        write_pages(&mut sibling, 581)?;
        sibling.reset()?;
    }
    let mut fork = snapshot.fork()?;
    write_pages(&mut fork, 0)?;
    fork.reset()?;
    let mut all = Vec::new();
    for _ in 0..rounds {
        all.push(timed(|| fork.reset())?.0);
    }
    print(
        "idle_reset_beside_sibling",
        &[("instructions", median(all))],
    );
    Ok(())
}

/// KVM_CREATE_VM, KVM_CREATE_VCPU and what a vCPU needs to run. The slots of a fork are not among them.
fn creation() -> Result<f64, EngineError> {
    let kvm = Kvm::open()?;
    let page = HostPage::unbound()?;
    let mut all = Vec::new();
    // As the forks that are compared with it, they live to the end.
    let mut live = Vec::new();
    for _ in 0..5 {
        let config = VcpuConfig {
            cr3: kvmlet_abi::Gpa(0),
            exc_stack: page.clone(),
            flush_stack: page.clone(),
            call_page: page.clone(),
            kvm_kind: Some(KvmKind::Hardware),
        };
        let start = Instant::now();
        let vm = kvm.create_vm()?;
        let vcpu = vm.create_vcpu(config)?;
        all.push(start.elapsed().as_nanos() as f64);
        live.push((vm, vcpu));
    }
    Ok(median(all))
}

fn new_forks(guest: &str) -> Result<(), EngineError> {
    let snapshot = freeze(guest)?;
    forget_vms();
    print("vm_creation", &[("instructions", creation()?)]);
    let (mut all, mut counted) = (Vec::new(), Counts::new());
    // They live to the end: none is given the VM of another, and none waits while one is taken down.
    let mut live = Vec::new();
    for _ in 0..5 {
        let (ns, fork) = timed(|| {
            let mut fork = snapshot.fork()?;
            write_pages(&mut fork, 16)?;
            Ok(fork)
        })?;
        counted = counts(&fork);
        all.push(ns);
        live.push(fork);
    }
    let fields = [
        ("instructions", median(all)),
        ("exits", count(&counted, "exits")),
        ("ioctls", count(&counted, "ioctls")),
    ];
    print("fork_new_vm_and_call", &fields);
    Ok(())
}

fn bound_forks(guest: &str) -> Result<(), EngineError> {
    let snapshot = freeze(guest)?;
    let (mut forks, mut calls, mut counted) = (Vec::new(), Vec::new(), Counts::new());
    snapshot.prepare(ROUNDS)?;
    let mut live = Vec::new();
    for _ in 0..ROUNDS {
        let (ns, mut fork) = timed(|| snapshot.fork())?;
        forks.push(ns);
        calls.push(timed(|| write_pages(&mut fork, 16))?.0);
        counted = counts(&fork);
        live.push(fork);
    }
    print("fork_bound", &[("instructions", median(forks))]);
    let fields = [
        ("instructions", median(calls)),
        ("exits", count(&counted, "exits")),
        ("ioctls", count(&counted, "ioctls")),
    ];
    print("first_call_bound", &fields);
    Ok(())
}

/// Anonymous memory of this process, in bytes.
#[expect(clippy::disallowed_methods, reason = "no file that a guest sees")]
fn anonymous_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) * 1024.0
}

fn live_forks(guest: &str) -> Result<(), EngineError> {
    let snapshot = freeze(guest)?;
    forget_vms();
    let mut live = Vec::with_capacity(FORKS);
    let add = |live: &mut Vec<Sandbox>| -> Result<(), EngineError> {
        let mut fork = snapshot.fork()?;
        write_pages(&mut fork, 16)?;
        live.push(fork);
        Ok(())
    };
    // What the first one needs for all is not theirs.
    add(&mut live)?;
    let before_bytes = anonymous_bytes();
    let (ns, ()) = timed(|| {
        while live.len() < FORKS {
            add(&mut live)?;
        }
        Ok(())
    })?;
    let grown_bytes = anonymous_bytes() - before_bytes;
    let others = live.iter().skip(1);
    let pages_bytes: f64 = others
        .map(|fork| count(&counts(fork), "private_bytes"))
        .sum();
    let added = (FORKS - 1) as f64;
    let fields = [
        ("instructions", ns / added * FORKS as f64),
        ("bytes_beside_pages", (grown_bytes - pages_bytes) / added),
    ];
    print("forks_100", &fields);
    Ok(())
}

/// X.
fn bare_exit() -> Result<(), EngineError> {
    let mut bare = BareVm::new(&Kvm::open()?)?;
    let exit_ns = bare.measure_exit_us(9, 200)? * 1000.0;
    print("bare_exit", &[("instructions", exit_ns), ("exits", 1.0)]);
    Ok(())
}

/// The measurement of a row, with those that it is made together with. `rounds` are those of requests.
fn measure(row: &str, guest: &str, rounds: usize) -> Result<(), EngineError> {
    let pages = row.strip_prefix("call_reset_");
    match (row, pages.and_then(|pages| pages.parse().ok())) {
        (_, Some(pages)) => steady(row, guest, rounds, |fork| write_pages(fork, pages)),
        ("bare_exit", _) => bare_exit(),
        ("call_to_host", _) => calls_to_host(guest),
        ("request_reset_0", _) => steady(row, guest, rounds, |fork| request(fork, 0)),
        ("mixed", _) => mixed(guest),
        ("idle_reset_beside_sibling", _) => beside_a_sibling(guest, rounds),
        ("fork_new_vm_and_call", _) => new_forks(guest),
        ("fork_bound", _) => bound_forks(guest),
        ("forks_100", _) => live_forks(guest),
        _ => {
            eprintln!("silicon: {row} is no row: name one of {}", ROWS.join(", "));
            std::process::exit(2)
        }
    }
}

fn main() -> Result<(), EngineError> {
    let mut arguments = std::env::args().skip(1);
    let Some(guest) = arguments.next() else {
        eprintln!("silicon: name the guest program, tests/guests/build/silicon");
        std::process::exit(2);
    };
    let Some(row) = arguments.next() else {
        return ROWS.iter().try_for_each(|row| measure(row, &guest, ROUNDS));
    };
    let times: Option<usize> = arguments.next().and_then(|times| times.parse().ok());
    let others = ["request_reset_0", "idle_reset_beside_sibling"];
    let is_of_requests = row.starts_with("call_reset_") || others.contains(&row.as_str());
    match is_of_requests {
        true => measure(&row, &guest, times.unwrap_or(ROUNDS_ALONE)),
        false => (0..times.unwrap_or(1)).try_for_each(|_| measure(&row, &guest, ROUNDS)),
    }
}
