//! Forks, each on a thread of its own, and the requests that wait for one.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::fork::{Ending, Fork, Master};
use crate::log::{Lines, Log, named};
use crate::metrics::{Counted, ProgramMetrics};
use crate::wire::{Handle, Wire};

/// A fork that fails so often without a success between is made anew.
const FAILURES_MAX: u32 = 3;
/// Failures of all forks without a success between, after which they take their time.
const CALM_AFTER: u32 = 8;
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Host memory for a fork's thread.
const STACK_BYTES: usize = 2 << 20;

/// The state that a fork begins a unit of work in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Begin {
    /// As it was frozen.
    Clean,
    /// As the last one has left it, unless that failed.
    AsLeft,
}

#[derive(Clone, Debug)]
pub(crate) struct PoolSettings {
    /// Of the program, empty if it is the only one.
    pub(crate) name: String,
    pub(crate) forks: usize,
    pub(crate) queue_max: usize,
    pub(crate) begin: Begin,
}

/// A fork has taken a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    pub(crate) fork: usize,
    pub(crate) queued: Duration,
}

/// A fork has ended a request.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) ending: Ending,
    pub(crate) ran: Duration,
}

/// The course of a request that waits for a fork or has one. If a sender is gone, the pool is.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) started: oneshot::Receiver<Started>,
    pub(crate) ended: oneshot::Receiver<Ended>,
    /// The time of the reset and its pages; no value if there was none.
    pub(crate) reset: oneshot::Receiver<(Duration, u64)>,
}

/// The reason that a request was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotTaken {
    /// As many wait as may.
    Full,
    /// Another pool has taken the place of this one.
    Closed,
}

struct Job {
    wire: Wire,
    id: String,
    queued: Instant,
    started: oneshot::Sender<Started>,
    ended: oneshot::Sender<Ended>,
    reset: oneshot::Sender<(Duration, u64)>,
}

impl Job {
    fn is_late(&self) -> bool {
        let deadline = self.wire.deadline();
        deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// The state of a fork, for those who ask if there is room.
enum Place {
    /// It has no request: it waits for one, is being reset, or is being made.
    Free,
    /// It has a request. Once that is over the fork is as good as free, also before it knows.
    Serving(Handle),
    /// It could not be made.
    Missing,
}

struct Queue {
    jobs: VecDeque<Job>,
    /// Of each fork, by its number.
    places: Vec<Place>,
    /// Forks that wait for a request, by their numbers. The one that began last is the first to get one: its memory is
    /// in the processor's caches, and KVM has its tables.
    waiting: Vec<usize>,
    is_closed: bool,
}

impl Queue {
    /// Forks that take a request now, or as soon as they are reset or made.
    fn free(&self) -> usize {
        let is_free = |place: &&Place| match place {
            Place::Free => true,
            Place::Serving(handle) => handle.is_over(),
            Place::Missing => false,
        };
        self.places.iter().filter(is_free).count()
    }

    fn set(&mut self, number: usize, place: Place) {
        if let Some(there) = self.places.get_mut(number) {
            *there = place;
        }
    }
}

struct Shared {
    master: Box<dyn Master>,
    settings: PoolSettings,
    queue: Mutex<Queue>,
    /// Of each fork, by its number. For one that waits: there is a request, or there will be no more.
    changed: Vec<Condvar>,
    /// For forks that pause: there will be no more.
    closing: Condvar,
    /// Failures since the last success of any fork.
    failures: AtomicU32,
    metrics: Arc<ProgramMetrics>,
    log: Log,
}

/// Forks of one frozen program.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    /// Makes the forks, each in its thread, and returns once the first is there.
    pub(crate) fn start(
        master: Box<dyn Master>,
        settings: PoolSettings,
        metrics: &Arc<ProgramMetrics>,
        log: &Log,
    ) -> Result<Self, String> {
        // This one shows that it can be done.
        let first = master.fork()?;
        let count = settings.forks.max(1);
        let shared = Arc::new(Shared {
            master,
            settings,
            queue: Mutex::new(Queue {
                jobs: VecDeque::new(),
                places: (0..count).map(|_| Place::Free).collect(),
                waiting: Vec::with_capacity(count),
                is_closed: false,
            }),
            changed: (0..count).map(|_| Condvar::new()).collect(),
            closing: Condvar::new(),
            failures: AtomicU32::new(0),
            metrics: Arc::clone(metrics),
            log: log.clone(),
        });
        let pool = Self {
            shared: Arc::clone(&shared),
            threads: Mutex::default(),
        };
        let mut first = Some(first);
        for number in 0..count {
            let worker = Worker {
                shared: Arc::clone(&shared),
                number,
                fork: first.take(),
                failures: 0,
            };
            let thread = std::thread::Builder::new()
                .name(format!("kvmlet-fork-{number}"))
                .stack_size(STACK_BYTES)
                .spawn(move || worker.run());
            match thread {
                Ok(thread) => lock(&pool.threads).push(thread),
                Err(error) => {
                    pool.close();
                    return Err(format!("a thread for a fork: {error}"));
                }
            }
        }
        Ok(pool)
    }

    /// Has a connection served by the next fork that is free.
    pub(crate) fn submit(&self, wire: Wire, id: &str) -> Result<Lease, (NotTaken, Wire)> {
        let mut queue = self.shared.lock();
        if queue.is_closed {
            return Err((NotTaken::Closed, wire));
        }
        let queue_max = self.shared.settings.queue_max;
        if queue.jobs.len() >= queue_max {
            // Those whose clients are gone take no place.
            queue.jobs.retain(|job| !job.wire.is_over());
            if queue.jobs.len() >= queue_max.saturating_add(queue.free()) {
                return Err((NotTaken::Full, wire));
            }
        }
        let (started, has_started) = oneshot::channel();
        let (ended, has_ended) = oneshot::channel();
        let (reset, was_reset) = oneshot::channel();
        queue.jobs.push_back(Job {
            wire,
            id: id.to_owned(),
            queued: Instant::now(),
            started,
            ended,
            reset,
        });
        self.shared.note_waiting(&queue);
        let next = queue.waiting.pop();
        drop(queue);
        if let Some(changed) = next.and_then(|number| self.shared.changed.get(number)) {
            changed.notify_one();
        }
        Ok(Lease {
            started: has_started,
            ended: has_ended,
            reset: was_reset,
        })
    }

    /// Takes no more requests. The forks go once they have served those that wait.
    pub(crate) fn close(&self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.iter().for_each(Condvar::notify_one);
        self.shared.closing.notify_all();
    }

    /// Waits for the forks to be gone; false if some are not.
    pub(crate) fn join(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut threads = lock(&self.threads);
        while !threads.iter().all(JoinHandle::is_finished) {
            if Instant::now() >= until {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
        for thread in threads.drain(..) {
            // A panic in it has been said.
            let _ = thread.join();
        }
        true
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    fn note_waiting(&self, queue: &Queue) {
        let waiting = i64::try_from(queue.jobs.len()).unwrap_or(i64::MAX);
        self.metrics.waiting.store(waiting, Ordering::Relaxed);
    }

    /// The next request whose client is still there, for the fork with this number; `None` once there will be no more.
    fn next(&self, number: usize) -> Option<Job> {
        let changed = self.changed.get(number)?;
        let mut queue = self.lock();
        loop {
            let job = queue.jobs.pop_front();
            self.note_waiting(&queue);
            match job {
                Some(job) if job.wire.is_over() || job.is_late() => {}
                Some(job) => {
                    queue.set(number, Place::Serving(job.wire.handle()));
                    return Some(job);
                }
                None if queue.is_closed => return None,
                None => {
                    queue.waiting.push(number);
                    queue = changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                    // It may have woken by itself.
                    queue.waiting.retain(|waiting| *waiting != number);
                }
            }
        }
    }

    /// Waits, unless the pool is closed.
    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut queue = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if queue.is_closed || left.is_zero() {
                return;
            }
            let waited = self.closing.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    number: usize,
    fork: Option<Box<dyn Fork>>,
    /// Without a success between.
    failures: u32,
}

/// The pause after that many failures of all forks together.
fn pause_after(failures: u32) -> Option<Duration> {
    let over = failures.checked_sub(CALM_AFTER)?;
    Some(PAUSE_MIN.saturating_mul(1 << over.min(8)).min(PAUSE_MAX))
}

impl Worker {
    fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut attempts = 0;
        loop {
            let Some(mut fork) = self.fork.take().or_else(|| self.make()) else {
                attempts += 1;
                let mut queue = shared.lock();
                if queue.is_closed {
                    return;
                }
                queue.set(self.number, Place::Missing);
                drop(queue);
                shared.pause(
                    PAUSE_MIN
                        .saturating_mul(1 << attempts.min(8))
                        .min(PAUSE_MAX),
                );
                continue;
            };
            attempts = 0;
            shared.lock().set(self.number, Place::Free);
            let there = Counted::new(&shared.metrics.forks);
            while let Some(job) = shared.next(self.number) {
                let busy = Counted::new(&shared.metrics.forks_busy);
                let before = (fork.exits(), fork.poller_cpu());
                let is_usable = self.serve(fork.as_mut(), job);
                let exits = fork.exits().saturating_sub(before.0);
                shared.metrics.exits.fetch_add(exits, Ordering::Relaxed);
                let polled = fork.poller_cpu().saturating_sub(before.1);
                shared.metrics.add_poller_cpu(polled);
                drop(busy);
                if !is_usable {
                    break;
                }
                if self.failures > 0
                    && let Some(pause) = pause_after(shared.failures.load(Ordering::Relaxed))
                {
                    shared.pause(pause);
                }
            }
            drop(there);
            drop(fork);
            let queue = shared.lock();
            if queue.is_closed && queue.jobs.is_empty() {
                return;
            }
            drop(queue);
            let rebuilt = &shared.metrics.forks_rebuilt;
            rebuilt.fetch_add(1, Ordering::Relaxed);
            self.failures = 0;
        }
    }

    /// A message about this fork.
    fn say(&self, text: &str) {
        let program = named(&self.shared.settings.name);
        let log = &self.shared.log;
        log.say(&format!("{program}fork {}{text}", self.number));
    }

    fn make(&self) -> Option<Box<dyn Fork>> {
        let made = std::panic::catch_unwind(AssertUnwindSafe(|| self.shared.master.fork()));
        let made = made.unwrap_or_else(|_| Err("a fault in kvmlet".to_owned()));
        made.inspect_err(|error| {
            self.say(&format!(": {error}"));
        })
        .ok()
    }

    /// Serves one; false if the fork is of no use any more.
    fn serve(&mut self, fork: &mut dyn Fork, job: Job) -> bool {
        let Job {
            wire,
            id,
            queued,
            started,
            ended,
            reset,
        } = job;
        let shared = Arc::clone(&self.shared);
        let metrics = &shared.metrics;
        let queued = queued.elapsed();
        metrics.queued.add(queued);
        // Nobody may wait for it any more.
        let _ = started.send(Started {
            fork: self.number,
            queued,
        });
        let begun = Instant::now();
        let served = std::panic::catch_unwind(AssertUnwindSafe(|| {
            wire.set_waker(Some(fork.waker()));
            let mut lines = Lines::new(&shared.log, &shared.settings.name, self.number, &id);
            let ending = fork.serve(&wire, &mut lines);
            (metrics.denials).fetch_add(lines.denials(), Ordering::Relaxed);
            ending
        }));
        let panicked = served.is_err();
        let ending = served.unwrap_or_else(|_| Ending::Failed("a fault in kvmlet".to_owned()));
        wire.set_waker(None);
        let ran = begun.elapsed();
        metrics.ran.add(ran);
        let is_failure = ending.is_failure();
        if let Ending::Failed(error) = &ending {
            self.say(&format!(", request {id}: {error}"));
        }
        let keeps_state = shared.settings.begin == Begin::AsLeft && !is_failure;
        // Its client, who sees the end of the answer, may ask again at once.
        shared.lock().set(self.number, Place::Free);
        // Before the end of its output, which is the end of its answer only if this says so.
        let _ = ended.send(Ended { ending, ran });
        wire.end_output();
        drop(wire);
        if is_failure {
            self.failures += 1;
            shared.failures.fetch_add(1, Ordering::Relaxed);
        } else {
            self.failures = 0;
            shared.failures.store(0, Ordering::Relaxed);
        }
        if panicked || self.failures >= FAILURES_MAX {
            return false;
        }
        if keeps_state {
            return true;
        }
        let begun = Instant::now();
        let done = std::panic::catch_unwind(AssertUnwindSafe(|| fork.reset()));
        let done = done.unwrap_or_else(|_| Err("a fault in kvmlet".to_owned()));
        let time = begun.elapsed();
        match done {
            Ok(work) => {
                metrics.reset.add(time);
                metrics.pages_reset.fetch_add(work.pages, Ordering::Relaxed);
                let _ = reset.send((time, work.pages));
                true
            }
            Err(error) => {
                self.say(&format!(": reset: {error}"));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::testing::{Act, FakeMaster};
    use crate::wire::wire;

    fn pool(act: Act, forks: usize, queue_max: usize, begin: Begin) -> (Pool, Arc<ProgramMetrics>) {
        let metrics = Arc::new(ProgramMetrics::default());
        let (log, _) = crate::log::tests::kept();
        let settings = PoolSettings {
            name: String::new(),
            forks,
            queue_max,
            begin,
        };
        let pool = Pool::start(Box::new(FakeMaster::new(act)), settings, &metrics, &log);
        (pool.unwrap(), metrics)
    }

    fn until(mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !holds() {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[tokio::test]
    async fn one_more_than_may_wait_is_not_taken() {
        let (pool, _) = pool(Act::Hang, 1, 1, Begin::Clean);
        let (first, _, one) = wire(None, None);
        let lease = pool.submit(one, "1").unwrap();
        lease.started.await.unwrap();
        let (second, _, two) = wire(None, None);
        let waits = pool.submit(two, "2").unwrap();
        let (_third, _, three) = wire(None, None);
        let (reason, three) = pool.submit(three, "3").unwrap_err();
        assert_eq!(reason, NotTaken::Full);
        // The client of the second has gone: its place is free.
        drop(second);
        let third = pool.submit(three, "3").unwrap();
        assert!(waits.started.await.is_err());
        drop(first);
        assert_eq!(lease.ended.await.unwrap().ending, Ending::Done);
        lease.reset.await.unwrap();
        third.started.await.unwrap();
    }

    #[tokio::test]
    async fn the_fork_that_began_last_to_wait_is_the_first_to_get_one() {
        let (pool, _) = pool(Act::Hang, 3, 1, Begin::AsLeft);
        until(|| pool.shared.lock().waiting.len() == 3);
        let last = *pool.shared.lock().waiting.last().unwrap();
        for _ in 0..5 {
            let (front, _, wire) = wire(None, None);
            let lease = pool.submit(wire, "1").unwrap();
            assert_eq!(lease.started.await.unwrap().fork, last);
            drop(front);
            lease.ended.await.unwrap();
            until(|| pool.shared.lock().waiting.len() == 3);
        }
    }

    /// Forks that are made, but for the first, and reset once the gate is open.
    struct Gated {
        forks: AtomicU32,
        is_open: Arc<AtomicBool>,
        can_fork: bool,
    }

    struct GatedFork(Arc<AtomicBool>);

    impl Master for Gated {
        fn fork(&self) -> Result<Box<dyn Fork>, String> {
            if self.forks.fetch_add(1, Ordering::SeqCst) > 0 {
                if !self.can_fork {
                    return Err("no memory".to_owned());
                }
                until(|| self.is_open.load(Ordering::SeqCst));
            }
            Ok(Box::new(GatedFork(Arc::clone(&self.is_open))))
        }
    }

    impl Fork for GatedFork {
        fn serve(&mut self, wire: &Wire, _: &mut dyn crate::fork::Output) -> Ending {
            while !wire.is_over() {
                wire.wait(Duration::from_secs(1));
                wire.take_news();
            }
            Ending::Done
        }

        fn reset(&mut self) -> Result<crate::fork::Reset, String> {
            until(|| self.0.load(Ordering::SeqCst));
            Ok(crate::fork::Reset::default())
        }

        fn poller_cpu(&mut self) -> Duration {
            Duration::ZERO
        }

        fn exits(&mut self) -> u64 {
            0
        }

        fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
            Arc::new(|| {})
        }
    }

    fn gated(is_open: &Arc<AtomicBool>, forks: usize, can_fork: bool) -> Pool {
        let master = Gated {
            forks: AtomicU32::new(0),
            is_open: Arc::clone(is_open),
            can_fork,
        };
        let settings = PoolSettings {
            name: String::new(),
            forks,
            queue_max: 0,
            begin: Begin::Clean,
        };
        let (log, _) = crate::log::tests::kept();
        Pool::start(Box::new(master), settings, &Arc::default(), &log).unwrap()
    }

    #[tokio::test]
    async fn a_fork_that_is_being_made_or_reset_has_room() {
        let is_open = Arc::default();
        let pool = gated(&is_open, 2, true);
        // At once: its threads may not run yet.
        let (first, _, one) = wire(None, None);
        let served = pool.submit(one, "1").unwrap();
        served.started.await.unwrap();
        let (_second, _, two) = wire(None, None);
        let waits = pool.submit(two, "2").unwrap();
        let (_third, _, three) = wire(None, None);
        let (reason, three) = pool.submit(three, "3").unwrap_err();
        assert_eq!(reason, NotTaken::Full);
        // Its client needs nothing more: the fork is to be reset, whether it knows or not.
        drop(first);
        let third = pool.submit(three, "3").unwrap();
        is_open.store(true, Ordering::SeqCst);
        waits.started.await.unwrap();
        third.started.await.unwrap();
    }

    #[tokio::test]
    async fn a_fork_that_cannot_be_made_has_none() {
        let pool = gated(&Arc::default(), 2, false);
        until(|| {
            let places = &pool.shared.lock().places;
            matches!(places[1], Place::Missing)
        });
        let (_first, _, one) = wire(None, None);
        let served = pool.submit(one, "1").unwrap();
        served.started.await.unwrap();
        let (_second, _, two) = wire(None, None);
        assert_eq!(pool.submit(two, "2").unwrap_err().0, NotTaken::Full);
    }

    #[tokio::test]
    async fn a_fork_that_fails_again_and_again_is_made_anew_and_takes_its_time() {
        let (pool, metrics) = pool(Act::Crash, 1, 99, Begin::Clean);
        for number in 1..=CALM_AFTER + 2 {
            let (_front, _, one) = wire(None, None);
            let lease = pool.submit(one, "id").unwrap();
            let ended = lease.ended.await.unwrap();
            assert!(matches!(ended.ending, Ending::Crashed(_)));
            let rebuilt = u64::from(number / FAILURES_MAX);
            until(|| metrics.forks_rebuilt.load(Ordering::Relaxed) == rebuilt);
        }
        assert_eq!(pause_after(CALM_AFTER - 1), None);
        assert_eq!(pause_after(CALM_AFTER), Some(PAUSE_MIN));
        assert_eq!(pause_after(u32::MAX), Some(PAUSE_MAX));
    }

    #[tokio::test]
    async fn a_closed_pool_serves_those_who_wait_and_ends() {
        let (pool, _) = pool(Act::Close, 2, 99, Begin::Clean);
        let mut leases = Vec::new();
        let mut fronts = Vec::new();
        for _ in 0..10 {
            let (front, _, one) = wire(None, None);
            fronts.push(front);
            leases.push(pool.submit(one, "id").unwrap());
        }
        pool.close();
        let (_front, _, late) = wire(None, None);
        let (reason, _) = pool.submit(late, "late").unwrap_err();
        assert_eq!(reason, NotTaken::Closed);
        for lease in leases {
            assert_eq!(lease.ended.await.unwrap().ending, Ending::Done);
        }
        assert!(pool.join(Duration::from_secs(10)));
    }

    #[tokio::test]
    async fn without_isolation_only_a_failure_is_reset() {
        let (pool, metrics) = pool(Act::Close, 1, 9, Begin::AsLeft);
        let (_front, _, one) = wire(None, None);
        let lease = pool.submit(one, "id").unwrap();
        assert!(lease.reset.await.is_err());
        let text = crate::metrics::Metrics::default().text(&[metrics], &[]);
        assert!(text.contains("kvmlet_reset_seconds_count 0"));
    }

    #[tokio::test]
    async fn who_has_waited_too_long_gets_no_fork() {
        let (pool, metrics) = pool(Act::Hang, 1, 9, Begin::Clean);
        until(|| metrics.forks.load(Ordering::Relaxed) == 1);
        let (first, _, one) = wire(None, None);
        let lease = pool.submit(one, "1").unwrap();
        lease.started.await.unwrap();
        let (_late, _, two) = wire(Some(Instant::now()), None);
        let late = pool.submit(two, "2").unwrap();
        let (_third, _, three) = wire(None, None);
        let third = pool.submit(three, "3").unwrap();
        drop(first);
        third.started.await.unwrap();
        assert!(late.started.await.is_err());
    }
}
