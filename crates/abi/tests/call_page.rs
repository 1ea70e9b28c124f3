//! The exchange of calls in every interleaving that loom finds: the guest with its vCPU's thread on one
//! side, the poller on the other. Each call is made once, and the guest gets its own result.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // a test

use kvmlet_abi::call_page::{Closed, Exchange, Left, Ticket};
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// Calls that the guest makes.
const CALLS: u64 = 2;

/// When the poller reads the ticket that it claims.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TicketRead {
    UnderLock,
    BeforeLock,
}

/// What the poller does with a claimed call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Serves {
    Answers,
    Refuses,
    HandsOver,
}

/// The call page.
#[derive(Default)]
struct Page {
    nr: AtomicU64,
    posted: AtomicU32,
    answered: AtomicU64,
    answer: AtomicU64,
}

/// What only the host has: the exchange, and how often each call has been made.
#[derive(Default)]
struct Host {
    exchange: Exchange,
    made: [u32; CALLS as usize],
    /// The result of a call that was handed over.
    kept: Option<u64>,
}

#[derive(Default)]
struct World {
    page: Page,
    host: Mutex<Host>,
}

fn result_of(nr: u64) -> u64 {
    nr + 100
}

impl Host {
    fn make(&mut self, nr: u64) -> u64 {
        self.made[nr as usize] += 1;
        result_of(nr)
    }
}

impl Page {
    fn ticket(&self) -> Ticket {
        Ticket(self.posted.load(Ordering::Acquire))
    }
}

/// The stub's post and a bounded wait. `None` when it gives up or is told to leave.
fn post(page: &Page, nr: u64, patience: u32) -> Option<u64> {
    page.nr.store(nr, Ordering::Relaxed);
    let ticket = page.posted.load(Ordering::Relaxed) + 1;
    page.posted.store(ticket, Ordering::Release);
    for _ in 0..patience {
        let word = page.answered.load(Ordering::Acquire);
        if word as u32 == ticket {
            return (word >> 32 == 0).then(|| page.answer.load(Ordering::Relaxed));
        }
        thread::yield_now();
    }
    None
}

/// The vCPU's thread: enters, and does by exit what was not answered.
fn run_guest(world: &World, patience: u32) {
    let mut entered = false;
    for nr in 0..CALLS {
        if !entered {
            let mut host = world.host.lock().unwrap();
            host.exchange.enter(world.page.ticket());
            entered = true;
        }
        let result = post(&world.page, nr, patience).unwrap_or_else(|| {
            let mut host = world.host.lock().unwrap();
            entered = false;
            match host.exchange.close(Some(world.page.ticket())) {
                Closed::Answered(result) => result,
                Closed::Made => host.kept.take().unwrap(),
                Closed::Stray => panic!("the stub waits for what it posts"),
                Closed::Unclaimed | Closed::Refused => host.make(nr),
            }
        });
        assert_eq!(result, result_of(nr), "the result of another call");
    }
    // It goes on without calls.
    if !entered {
        let mut host = world.host.lock().unwrap();
        host.exchange.enter(world.page.ticket());
    }
    thread::yield_now();
    let mut host = world.host.lock().unwrap();
    let closed = host.exchange.close(None);
    assert_eq!(
        host.made, [1; CALLS as usize],
        "how often each call was made"
    );
    assert_eq!(closed, Closed::Unclaimed);
}

fn poll(world: &World, looks: u32, read: TicketRead, serves: Serves) {
    let mut last = Ticket(0);
    for _ in 0..looks {
        let seen = world.page.ticket();
        if seen == last {
            thread::yield_now();
            continue;
        }
        last = seen;
        let mut host = world.host.lock().unwrap();
        let posted = match read {
            TicketRead::UnderLock => world.page.ticket(),
            TicketRead::BeforeLock => seen,
        };
        if !host.exchange.claim(posted) {
            continue;
        }
        let nr = world.page.nr.load(Ordering::Relaxed);
        let (word, result) = match serves {
            Serves::Answers => {
                let result = host.make(nr);
                (host.exchange.answer(result), result)
            }
            Serves::Refuses => (host.exchange.leave(Left::Refused), 0),
            Serves::HandsOver => {
                let result = host.make(nr);
                host.kept = Some(result);
                (host.exchange.leave(Left::Made), 0)
            }
        };
        world.page.answer.store(result, Ordering::Relaxed);
        world.page.answered.store(word, Ordering::Release);
    }
}

fn check(patience: u32, looks: u32, read: TicketRead, serves: Serves) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let world = Arc::new(World::default());
        let poller = thread::spawn({
            let world = Arc::clone(&world);
            move || poll(&world, looks, read, serves)
        });
        run_guest(&world, patience);
        poller.join().unwrap();
    });
}

#[test]
fn each_call_is_made_once() {
    for patience in [0, 1, 2] {
        for serves in [Serves::Answers, Serves::Refuses, Serves::HandsOver] {
            check(patience, 3, TicketRead::UnderLock, serves);
        }
    }
}

/// What a call that left the VM has been taken for again: why the ticket is read under the lock.
#[test]
#[should_panic(expected = "how often each call was made")]
fn a_ticket_read_before_the_lock_is_stale() {
    check(1, 3, TicketRead::BeforeLock, Serves::Answers);
}
