//! The way that a system call travels from the guest to the personality and back.
//!
//! A call is a value: a number, arguments, the thread that makes it. By exit, the vCPU's thread finds it
//! in the registers of a guest that has left. By polling, a [`poller`] finds it in the call page of a
//! guest that waits inside ([`kvmlet_abi::call_page`]). The personality is lent to it for the time
//! ([`link`]). [`admission`] decides if a poller is worth its CPU.

mod admission;
mod link;
mod poller;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvmlet_hv::CallPage;
use kvmlet_linux::{Personality, table};

use crate::EngineError;
use admission::Admission;
pub(crate) use link::{Link, Returned};
pub(crate) use poller::note_cpus;

/// Which ways a program's calls may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Calls {
    /// Whichever is cheaper now: by polling while that pays and a CPU is free, else by exit.
    #[default]
    Auto,
    /// Each call leaves the VM.
    Exit,
    /// A host thread polls for calls for as long as the guest runs.
    Poll,
}

impl Calls {
    /// The one with this name: "auto", "exit" or "poll".
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            "exit" => Some(Self::Exit),
            "poll" => Some(Self::Poll),
            _ => None,
        }
    }
}

/// The cost of an exit on this machine, in nanoseconds: the least that a call has taken.
static X_NS: AtomicU64 = AtomicU64::new(0);

/// No exit is faster.
const X_MIN_NS: u64 = 200;

/// The estimate of X, in nanoseconds.
fn x_ns() -> u64 {
    match X_NS.load(Ordering::Relaxed) {
        0 => 30_000,
        known => known,
    }
}

fn note_x(spent_ns: u64) {
    let known = X_NS.load(Ordering::Relaxed);
    if known == 0 || spent_ns < known {
        X_NS.store(spent_ns.max(X_MIN_NS), Ordering::Relaxed);
    } else if spent_ns < known.saturating_mul(2) {
        // The machine has become slower, perhaps; a guest that computes between calls tells nothing.
        X_NS.store(
            known.saturating_add((known >> 10).max(1)),
            Ordering::Relaxed,
        );
    }
}

/// Counts of calls by their way, and of what polling cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct TransportCounts {
    /// Answered without an exit.
    pub polled: u64,
    /// Claimed by a poller and finished by an exit.
    pub left: u64,
    /// The stub gave up waiting and nobody had claimed the call.
    pub timed_out: u64,
    /// CPU time of pollers, in nanoseconds.
    pub poller_cpu_ns: u64,
    /// The part of it spent on calls.
    pub poller_useful_ns: u64,
}

/// One sandbox's ways for calls.
#[derive(Debug)]
pub(crate) struct Transport {
    mode: Calls,
    admission: Admission,
    link: Option<Arc<Link>>,
    /// The link's count of answers when its poller came.
    session_start: u64,
    in_session: bool,
    last_exit_ns: u64,
    timed_out: u64,
    /// Of links before this one.
    earlier: TransportCounts,
}

impl Transport {
    pub fn new(mode: Calls) -> Self {
        Self {
            mode,
            admission: Admission::new(mode),
            link: None,
            session_start: 0,
            in_session: false,
            last_exit_ns: 0,
            timed_out: 0,
            earlier: TransportCounts::default(),
        }
    }

    /// Has calls leave from the next entry on, and no poller change the call page any more.
    pub fn detach(&self) {
        if let Some(link) = &self.link {
            link.detach();
        }
    }

    /// The VM has other memory now: its call page is another one.
    pub fn forget_link(&mut self) {
        self.earlier = self.counts();
        self.timed_out = 0;
        self.link = None;
        self.in_session = false;
    }

    /// The link to lend through for the next entry, if a poller serves it; asks for one if that pays.
    pub fn link_for_entry(
        &mut self,
        page: &CallPage,
        tsc_khz: impl FnOnce() -> Option<u32>,
    ) -> Option<Arc<Link>> {
        if self.mode == Calls::Exit {
            return None;
        }
        if let Some(link) = &self.link
            && link.is_attached()
        {
            return Some(Arc::clone(link));
        }
        if self.in_session {
            self.in_session = false;
            let answered = self.answered().saturating_sub(self.session_start);
            self.admission.note_session(answered);
        }
        if !self.admission.wants_poller() {
            return None;
        }
        let mode = self.mode;
        let link = Arc::clone(
            self.link
                .get_or_insert_with(|| Arc::new(Link::new(page.clone(), mode))),
        );
        let ticks = x_ns().saturating_mul(u64::from(tsc_khz().unwrap_or(2_500_000))) / 1_000_000;
        if poller::ask(&link, ticks) {
            self.in_session = true;
            self.session_start = self.answered();
            Some(link)
        } else {
            self.admission.note_refused();
            None
        }
    }

    fn answered(&self) -> u64 {
        self.link
            .as_ref()
            .map_or(0, |link| link.counts.polled.load(Ordering::Relaxed))
    }

    /// A run has ended in this call: learns from it.
    pub fn note_call(&mut self, nr: u64, waited: Waited, spent_ns: u64, now_ns: u64) {
        match waited {
            // A poller would be of no use to it.
            Waited::No if !table::is_remote(nr) => {}
            Waited::No => {
                note_x(spent_ns);
                let gap_ns = now_ns.saturating_sub(self.last_exit_ns);
                self.admission.note_exit(gap_ns, x_ns());
            }
            Waited::Unclaimed => self.timed_out += 1,
            Waited::Claimed => {}
        }
        self.last_exit_ns = now_ns;
    }

    /// Counts so far.
    pub fn counts(&self) -> TransportCounts {
        let mut counts = self.earlier;
        counts.timed_out += self.timed_out;
        if let Some(link) = &self.link {
            let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
            counts.polled += read(&link.counts.polled);
            counts.left += read(&link.counts.left);
            counts.poller_cpu_ns += read(&link.counts.cpu_ns);
            counts.poller_useful_ns += read(&link.counts.useful_ns);
        }
        counts
    }
}

/// In a child of fork(2): forgets the parent's threads.
pub(crate) fn forget_threads() {
    poller::forget();
}

/// The relation of a run that ended in a call to the call page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waited {
    /// The call was not posted.
    No,
    /// It was, and nobody had claimed it.
    Unclaimed,
    /// It was, and had been claimed.
    Claimed,
}

/// Marks this thread's vCPU as busy.
pub(crate) struct Busy(());

impl Busy {
    pub fn enter() -> Self {
        poller::BUSY_VCPUS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        poller::end_busy();
    }
}

/// A personality that can be lent: whoever holds a sandbox has it, except inside KVM_RUN.
#[derive(Debug)]
pub(crate) struct Lendable(Option<Box<Personality>>);

impl Lendable {
    pub fn new(personality: Personality) -> Self {
        Self(Some(Box::new(personality)))
    }

    pub fn lend(&mut self) -> Option<Box<Personality>> {
        self.0.take()
    }

    pub fn give_back(&mut self, personality: Box<Personality>) {
        self.0 = Some(personality);
    }

    pub fn into_inner(self) -> Result<Personality, EngineError> {
        let personality = self.0.map(|personality| *personality);
        personality.ok_or_else(|| EngineError::Internal(LENT.to_owned()))
    }
}

const LENT: &str = "the personality is lent";

impl Deref for Lendable {
    type Target = Personality;

    fn deref(&self) -> &Personality {
        self.0.as_deref().expect(LENT)
    }
}

impl DerefMut for Lendable {
    fn deref_mut(&mut self) -> &mut Personality {
        self.0.as_deref_mut().expect(LENT)
    }
}
