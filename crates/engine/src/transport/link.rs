//! The link between a vCPU's thread and its poller while the guest runs: the call page, and a lock. Under it is
//! the personality, lent for as long as the thread is inside KVM_RUN.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvmlet_abi::Gva;
use kvmlet_abi::call_page::{Closed, Exchange, Left, Ticket};
use kvmlet_hv::{CallPage, PostMode};
use kvmlet_linux::{Call, Made, Personality, Tid, Work, table};
use rustix::thread::sched_getcpu;

use crate::EngineError;
use crate::time::{host_time_ns, now_ns, ran_ns};

use super::Calls;

/// A kick is not moved for less than this, in nanoseconds: two clocks are read to compare it.
const KICK_SLACK_NS: u64 = 50_000;
/// One polled call in so many is looked at for whether its place should have a jump: each that gets one
/// leaves the VM once.
const SAMPLE: u64 = 8;
/// Polled calls before the first is looked at: a short program saves nothing.
const SETTLED: u64 = 64;

/// The personality, lent to whoever answers posted calls.
#[derive(Debug)]
struct Loan {
    personality: Box<Personality>,
    /// The thread inside the guest.
    tid: Tid,
    /// When the vCPU will be kicked, on the host's CLOCK_MONOTONIC.
    kick_ns: u64,
    /// Until when the thread has been charged for its CPU time, on the same clock.
    charged_ns: u64,
    /// A call that has been made and from which the thread has been told to leave.
    made: Option<Made>,
}

#[derive(Debug, Default)]
struct Shared {
    exchange: Exchange,
    loan: Option<Loan>,
    failed: Option<EngineError>,
}

/// Counts of one link, since it was made.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Calls answered without an exit.
    pub polled: AtomicU64,
    /// Calls that were claimed and left the VM all the same.
    pub left: AtomicU64,
    /// CPU time of the poller, in nanoseconds.
    pub cpu_ns: AtomicU64,
    /// Time it spent on calls, in nanoseconds.
    pub useful_ns: AtomicU64,
}

/// The state that the guest left behind, as the vCPU's thread finds it.
#[derive(Debug)]
pub(crate) struct Returned {
    pub personality: Box<Personality>,
    /// Until when the thread has been charged for its CPU time, on the host's CLOCK_MONOTONIC.
    pub charged_ns: u64,
    /// The fate of the call that it left from.
    pub closed: Closed,
    pub made: Option<Made>,
    /// The error of a call that the poller made.
    pub failed: Option<EngineError>,
}

/// One sandbox's link to pollers.
#[derive(Debug)]
pub(crate) struct Link {
    page: CallPage,
    pub(super) mode: Calls,
    shared: Mutex<Shared>,
    /// Whether a poller serves this link.
    attached: AtomicBool,
    /// Whether the last posted call was not looked at in time.
    stalled: AtomicBool,
    /// How long the stub waits for an answer.
    spin_ticks: AtomicU64,
    /// Whether the vCPU's thread is inside KVM_RUN.
    running: AtomicBool,
    /// The CPU on which the vCPU's thread entered the guest last.
    pub(super) vcpu_cpu: AtomicUsize,
    pub(super) counts: Counts,
}

impl Link {
    pub fn new(page: CallPage, mode: Calls) -> Self {
        Self {
            page,
            mode,
            shared: Mutex::default(),
            attached: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            spin_ticks: AtomicU64::new(0),
            running: AtomicBool::new(false),
            vcpu_cpu: AtomicUsize::new(usize::MAX),
            counts: Counts::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Acquire)
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// A poller is about to serve this link: calls are posted from the next entry on.
    pub(super) fn attach(&self, spin_ticks: u64) {
        self.spin_ticks.store(spin_ticks, Ordering::Relaxed);
        self.attached.store(true, Ordering::Release);
    }

    /// The poller goes away: calls leave the VM again.
    pub(super) fn detach(&self) {
        let _shared = self.lock();
        self.page.set_mode(PostMode::Leave);
        self.attached.store(false, Ordering::Release);
    }

    /// Under the lock: has calls posted where somebody will look at them.
    fn show_mode(&self) {
        let mode = if self.is_attached() && !self.stalled.load(Ordering::Relaxed) {
            PostMode::Post {
                spin_ticks: self.spin_ticks.load(Ordering::Relaxed),
            }
        } else {
            PostMode::Leave
        };
        self.page.set_mode(mode);
    }

    /// A call was posted and nobody looked: the poller is not on a CPU. Until it is back, calls leave at
    /// once.
    pub fn note_stall(&self) {
        self.stalled.store(true, Ordering::Relaxed);
    }

    /// The poller is on a CPU.
    pub(super) fn end_stall(&self) {
        if self.stalled.load(Ordering::Relaxed) {
            let _shared = self.lock();
            self.stalled.store(false, Ordering::Relaxed);
            self.show_mode();
        }
    }

    /// The vCPU's thread is about to enter the guest.
    pub fn lend(&self, personality: Box<Personality>, tid: Tid, kick_ns: u64, now_ns: u64) {
        self.vcpu_cpu.store(sched_getcpu(), Ordering::Relaxed);
        self.running.store(true, Ordering::Relaxed);
        let mut shared = self.lock();
        // At each entry: a reset empties the page.
        self.show_mode();
        shared.exchange.enter(self.page.posted());
        shared.loan = Some(Loan {
            personality,
            tid,
            kick_ns,
            charged_ns: now_ns,
            made: None,
        });
    }

    /// The guest has left; `waiting` is the posted call that it left from. Waits for a call that is
    /// being made.
    ///
    /// # Errors
    /// [`EngineError::Internal`] if nothing was lent.
    pub fn take_back(&self, waiting: Option<Ticket>) -> Result<Returned, EngineError> {
        self.running.store(false, Ordering::Relaxed);
        let mut shared = self.lock();
        let closed = shared.exchange.close(waiting);
        let loan = shared.loan.take();
        let failed = shared.failed.take();
        let lost = || EngineError::Internal("a lent personality is gone".to_owned());
        let loan = loan.ok_or_else(lost)?;
        Ok(Returned {
            personality: loan.personality,
            charged_ns: loan.charged_ns,
            closed,
            made: loan.made,
            failed,
        })
    }

    /// The ticket that the guest has posted last.
    pub(super) fn posted(&self) -> Ticket {
        self.page.posted()
    }

    /// Makes the call that has been posted, if one is still to be made. Returns whether that has spared an
    /// exit.
    pub(super) fn serve(&self) -> bool {
        let mut shared = self.lock();
        // Only under the lock: what was seen in the page before may have left the VM since.
        let posted = self.page.posted();
        let Shared {
            exchange,
            loan: Some(loan),
            failed,
        } = &mut *shared
        else {
            return false;
        };
        if !exchange.claim(posted) {
            return false;
        }
        let call = Call {
            nr: self.page.nr(),
            args: self.page.args(),
        };
        if !table::is_remote(call.nr) {
            self.refuse(exchange, Left::Refused);
            return false;
        }
        let back = match self.samples() {
            true => self.page.came_from(),
            false => None,
        };
        let start_ns = now_ns();
        let made = std::panic::catch_unwind(AssertUnwindSafe(|| loan.make(call, back, start_ns)));
        let answered = matches!(made, Ok(Some(_)));
        match made {
            Ok(Some(result)) => {
                let word = exchange.answer(result);
                self.page.answer(word, result);
                self.counts.polled.fetch_add(1, Ordering::Relaxed);
            }
            Ok(None) => self.refuse(exchange, Left::Made),
            Err(panic) => {
                *failed = Some(EngineError::from_panic(panic.as_ref()));
                self.refuse(exchange, Left::Made);
            }
        }
        // The guest goes on meanwhile.
        loan.charged_ns = now_ns();
        let spent_ns = loan.charged_ns.saturating_sub(start_ns);
        let host = &mut loan.personality.host;
        host.report.spend(Work::Call(table::key(call.nr)), spent_ns);
        host.finish_call();
        self.counts.useful_ns.fetch_add(spent_ns, Ordering::Relaxed);
        answered
    }

    /// Chooses the calls whose place is looked at: one in [`SAMPLE`], at no period that a program's own
    /// could fall in step with.
    fn samples(&self) -> bool {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let count = self.counts.polled.load(Ordering::Relaxed);
        count >= SETTLED && count.wrapping_mul(GOLDEN) <= u64::MAX / SAMPLE
    }

    fn refuse(&self, exchange: &mut Exchange, left: Left) {
        let word = exchange.leave(left);
        self.page.answer(word, 0);
        self.counts.left.fetch_add(1, Ordering::Relaxed);
    }
}

impl Loan {
    /// Makes a call. The result if the thread may go on with it; otherwise what is left to do is in
    /// `made`.
    fn make(&mut self, call: Call, back: Option<Gva>, now_ns: u64) -> Option<u64> {
        let spent_ns = ran_ns(self.charged_ns, now_ns);
        let (tid, kick_ns) = (self.tid, self.kick_ns);
        let made = self
            .personality
            .make(tid, call, back, spent_ns, |personality| {
                !must_leave(personality, tid, kick_ns)
            });
        made.map_err(|made| self.made = Some(made)).ok()
    }
}

/// True if a thread that could go on must leave the guest all the same. Its vCPU is kicked at `kick_ns`.
fn must_leave(personality: &Personality, tid: Tid, kick_ns: u64) -> bool {
    if personality.must_leave(tid) {
        return true;
    }
    personality.kick_ns().is_some_and(|guest_ns| {
        let wanted_ns = host_time_ns(personality, guest_ns, now_ns());
        wanted_ns.saturating_add(KICK_SLACK_NS) < kick_ns
    })
}
