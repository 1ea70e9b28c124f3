//! The process's pollers: threads that answer posted calls, at most one fewer than CPUs.

use std::hint::spin_loop;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, getpid};
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use super::admission::QUIET_X;
use super::link::Link;
use super::{Calls, x_ns};
use crate::time::now_ns;

/// Pauses between two looks at the page. Each look takes the cache line from the guest, which needs it
/// for the rest of its request.
const PAUSES: u32 = 4;
/// Looks at the page between two looks at the clock.
const SPINS: u32 = 16;
/// Looks at the clock, at least, before the guest is taken to be quiet. A thread that had no CPU for a
/// while has not looked.
const LOOKS_MIN: u32 = 256;
/// The time that a poller of [`Calls::Poll`] stays with a guest that computes, in nanoseconds.
const PATIENT_NS: u64 = 5_000_000;
/// Looks at the clock between two looks at the CPUs.
const CLOCKS: u32 = 64;
/// A poller without work ends after this time.
const IDLE_END: Duration = Duration::from_secs(1);
/// Beyond this many busy vCPUs and pollers for each CPU, measured with 1 to 8 VMs on 2 CPUs, polling
/// costs more than it saves.
const THREADS_PER_CPU: usize = 5;
/// The time for which the number of usable CPUs is believed, in nanoseconds.
const CPUS_FRESH_NS: u64 = 1_000_000_000;

/// vCPUs of this process that are inside KVM_RUN now.
pub(super) static BUSY_VCPUS: AtomicUsize = AtomicUsize::new(0);
/// Pollers that serve a link now.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

static POLLERS: Mutex<Pollers> = Mutex::new(Pollers {
    process: 0,
    count: 0,
    idle: Vec::new(),
});

#[derive(Debug)]
struct Pollers {
    /// Threads do not survive fork(2): the process that these belong to.
    process: u32,
    count: usize,
    idle: Vec<Arc<Seat>>,
}

/// The place at which a poller waits for its next link.
#[derive(Debug, Default)]
struct Seat {
    link: Mutex<Option<Arc<Link>>>,
    given: Condvar,
    /// The poller's thread id, once it runs.
    tid: OnceLock<Pid>,
}

impl Seat {
    /// Keeps the poller off the caller's CPU before it is woken: there it would wait for the caller to
    /// give the CPU up.
    fn keep_off_this_cpu(&self) {
        if let Some(tid) = self.tid.get() {
            // A poller that stays there is noticed by `keep_apart`.
            let _ = move_off(Some(*tid), sched_getcpu());
        }
    }
}

/// [`usable_cpus`] as it was last.
static CPUS: AtomicUsize = AtomicUsize::new(1);

/// The number of CPUs that [`note_cpus`] has found.
static CPUS_MAX: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Remembers how many CPUs affinity and control group allow, for a process that is about to lose sight of
/// the files that say so.
pub(crate) fn note_cpus() {
    let cpus = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    CPUS_MAX.store(cpus, Ordering::Relaxed);
}

/// CPUs that the calling thread may use, by affinity and control group. Not for pollers, which confine
/// themselves.
fn usable_cpus() -> usize {
    static READ_NS: AtomicU64 = AtomicU64::new(0);
    let (known, now) = (CPUS.load(Ordering::Relaxed), now_ns());
    let read_ns = READ_NS.load(Ordering::Relaxed);
    if read_ns != 0 && now.saturating_sub(read_ns) < CPUS_FRESH_NS {
        return known;
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let cpus = cpus.min(CPUS_MAX.load(Ordering::Relaxed));
    CPUS.store(cpus, Ordering::Relaxed);
    READ_NS.store(now, Ordering::Relaxed);
    cpus
}

/// True if so many threads want a CPU, `more` threads included, that a poller and its vCPU hardly ever
/// have one at the same time.
fn is_crowded(more: usize) -> bool {
    let busy = BUSY_VCPUS.load(Ordering::Relaxed);
    let wanted = busy
        .saturating_add(ACTIVE.load(Ordering::Relaxed))
        .saturating_add(more);
    wanted > CPUS.load(Ordering::Relaxed).saturating_mul(THREADS_PER_CPU)
}

/// In a child of fork(2): the threads that were counted are the parent's.
pub(super) fn forget() {
    BUSY_VCPUS.store(0, Ordering::Relaxed);
    ACTIVE.store(0, Ordering::Relaxed);
}

fn count_down(counter: &AtomicUsize) {
    // Never below zero: a child of fork(2) starts anew.
    let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
        count.checked_sub(1)
    });
}

/// A vCPU of this process leaves KVM_RUN.
pub(super) fn end_busy() {
    count_down(&BUSY_VCPUS);
}

/// Finds a poller for `link`. The caller's vCPU is not counted as busy at this moment. Returns whether
/// there is one.
pub(super) fn ask(link: &Arc<Link>, spin_ticks: u64) -> bool {
    let cpus = usable_cpus();
    if cpus < 2 || (link.mode == Calls::Auto && is_crowded(2)) {
        return false;
    }
    // Held only for moments, or for ever in a child of fork(2) that came at the wrong one.
    let Ok(mut pollers) = POLLERS.try_lock() else {
        return false;
    };
    let process = std::process::id();
    if pollers.process != process {
        *pollers = Pollers {
            process,
            count: 0,
            idle: Vec::new(),
        };
    }
    if let Some(seat) = pollers.idle.pop() {
        seat.keep_off_this_cpu();
        link.attach(spin_ticks);
        *seat.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(link));
        seat.given.notify_one();
        return true;
    }
    if pollers.count >= cpus - 1 {
        return false;
    }
    let (seat, first) = (Arc::new(Seat::default()), Arc::clone(link));
    // Before the thread, which detaches when it finds nothing to do.
    link.attach(spin_ticks);
    let thread = std::thread::Builder::new()
        .name("kvmlet-poller".to_owned())
        .spawn(move || live(&seat, first));
    match thread {
        Ok(_) => pollers.count += 1,
        Err(_) => link.detach(),
    }
    thread.is_ok()
}

fn live(seat: &Arc<Seat>, first: Arc<Link>) {
    kvmlet_hv::block_signals();
    let _ = seat.tid.set(gettid());
    let mut next = Some(first);
    while let Some(link) = next.take() {
        ACTIVE.fetch_add(1, Ordering::Relaxed);
        // A fault of ours must not take the process's pollers away.
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| poll(&link)));
        link.detach();
        count_down(&ACTIVE);
        drop(link);
        next = wait(seat);
    }
}

/// The next link, or `None` after a while without one.
fn wait(seat: &Arc<Seat>) -> Option<Arc<Link>> {
    let mut pollers = POLLERS.lock().unwrap_or_else(PoisonError::into_inner);
    pollers.idle.push(Arc::clone(seat));
    drop(pollers);
    let link = seat.link.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut link, _) = seat
        .given
        .wait_timeout_while(link, IDLE_END, |link| link.is_none())
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(link) = link.take() {
        return Some(link);
    }
    drop(link);
    let mut pollers = POLLERS.lock().unwrap_or_else(PoisonError::into_inner);
    match pollers.idle.iter().position(|idle| Arc::ptr_eq(idle, seat)) {
        Some(at) => {
            pollers.idle.swap_remove(at);
            pollers.count -= 1;
            None
        }
        // Given one in this moment.
        None => seat
            .link
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(),
    }
}

fn cpu_time_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec
        .unsigned_abs()
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec.unsigned_abs())
}

/// Answers `link`'s calls until the guest has been quiet for a while.
fn poll(link: &Link) {
    let began_ns = cpu_time_ns();
    let before_ns = link.counts.cpu_ns.load(Ordering::Relaxed);
    let count_time = || {
        let spent_ns = cpu_time_ns().saturating_sub(began_ns);
        link.counts
            .cpu_ns
            .store(before_ns.saturating_add(spent_ns), Ordering::Relaxed);
    };
    let quiet_ns = x_ns().saturating_mul(QUIET_X);
    let mut last = link.posted();
    // What was posted before this thread came is still to be answered.
    link.serve();
    let mut useful_ns = now_ns();
    let mut looks = 0u32;
    'polling: while keep_apart(link) {
        for _ in 0..CLOCKS {
            link.end_stall();
            for _ in 0..SPINS {
                let posted = link.posted();
                if posted == last {
                    for _ in 0..PAUSES {
                        spin_loop();
                    }
                    continue;
                }
                last = posted;
                if link.serve() {
                    useful_ns = now_ns();
                    looks = 0;
                }
            }
            looks = looks.saturating_add(1);
            let idle_ns = now_ns().saturating_sub(useful_ns);
            let patience_ns = match link.mode {
                Calls::Poll if link.is_running() => PATIENT_NS,
                _ => quiet_ns,
            };
            if idle_ns > patience_ns && looks >= LOOKS_MIN {
                break 'polling;
            }
        }
        count_time();
        if link.mode == Calls::Auto && is_crowded(0) {
            break;
        }
    }
    count_time();
}

/// Moves this thread off the vCPU's CPU. `false` if it cannot.
fn keep_apart(link: &Link) -> bool {
    let vcpu_cpu = link.vcpu_cpu.load(Ordering::Relaxed);
    if sched_getcpu() != vcpu_cpu {
        return true;
    }
    move_off(None, vcpu_cpu)
}

/// Lets a thread run on every CPU that the process may use, except one. `false` if there is no other.
fn move_off(thread: Option<Pid>, cpu: usize) -> bool {
    // The first thread's: pollers have moved.
    let Ok(mut cpus) = sched_getaffinity(Some(getpid())) else {
        return false;
    };
    if cpu < CpuSet::MAX_CPU {
        cpus.unset(cpu);
    }
    cpus.count() > 0 && sched_setaffinity(thread, &cpus).is_ok()
}
