//! Storages: programs that are not reset, and that forks ask for what they share on purpose.
//!
//! Each has a VM and a thread of its own, and one queue. A question whose asker is gone is passed over; one that the
//! storage has been given already is answered to nobody. One that ends is started anew.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvmlet_engine::{Left, NoAnswer, Program, Question, Questions};

use crate::engine::{self, how};
use crate::fork::BootError;
use crate::log::{Lines, Log};
use crate::metrics::{Asked, StorageMetrics};

/// Questions that wait at most, without those whose askers are gone.
const QUEUE_MAX: usize = 65_536;
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A storage that has answered and run for so long did not end by what it was started with.
const LASTING: Duration = Duration::from_secs(10);
/// Host memory for a storage's thread.
const STACK_BYTES: usize = 2 << 20;

/// Everything that an operator may set of a storage, beside its program.
#[derive(Clone, Debug)]
pub struct StorageSettings {
    /// The name that it is asked by.
    pub name: String,
    /// Questions that it answers at one time.
    pub concurrent: usize,
    /// From the moment that it is given a question to the answer.
    pub timeout: Duration,
    /// Until it waits for its first question.
    pub boot_timeout: Duration,
}

struct Waiting {
    question: Question,
    since: Instant,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    is_closed: bool,
    /// Calls the thread of a storage that runs.
    waker: Option<Arc<dyn Fn() + Send + Sync>>,
}

struct Shared {
    settings: StorageSettings,
    program: Program,
    queue: Mutex<Queue>,
    /// There will be no more.
    closing: Condvar,
    metrics: Arc<StorageMetrics>,
}

/// A program that forks ask by its name.
#[derive(Clone)]
pub struct Storage(Arc<Shared>);

impl std::fmt::Debug for Storage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let settings = &self.0.settings;
        formatter.debug_tuple("Storage").field(settings).finish()
    }
}

/// The storages that one program may ask.
#[derive(Debug)]
pub struct Askable(pub Vec<Storage>);

impl kvmlet_engine::Storages for Askable {
    fn names(&self) -> Vec<String> {
        let names = self.0.iter().map(|one| one.name().to_owned());
        names.collect()
    }

    fn ask(&self, to: usize, question: Question) {
        match self.0.get(to) {
            Some(storage) => storage.0.ask(question),
            None => question.answer(Err(NoAnswer::Ended)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pause before that many starts in a row of a storage that has answered nothing.
fn pause_after(failures: u32) -> Duration {
    PAUSE_MIN
        .saturating_mul(1 << failures.min(8))
        .min(PAUSE_MAX)
}

impl Storage {
    /// A storage that has not been started. What it is asked meanwhile waits.
    #[must_use]
    pub fn new(settings: StorageSettings, program: Program) -> Self {
        let metrics = Arc::new(StorageMetrics::new(&settings.name));
        Self(Arc::new(Shared {
            settings,
            program,
            queue: Mutex::default(),
            closing: Condvar::new(),
            metrics,
        }))
    }

    pub(crate) fn name(&self) -> &str {
        &self.0.settings.name
    }

    pub(crate) fn metrics(&self) -> &Arc<StorageMetrics> {
        &self.0.metrics
    }

    /// Starts it, and returns once it waits for its first question: its thread.
    pub(crate) fn start(
        &self,
        log: &Log,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<JoinHandle<()>, BootError> {
        let first = self.0.boot(log, stop)?;
        let shared = Arc::clone(&self.0);
        let log = log.clone();
        std::thread::Builder::new()
            .name(format!("kvmlet-storage-{}", self.name()))
            .stack_size(STACK_BYTES)
            .spawn(move || shared.run(first, &log))
            .map_err(|error| BootError::new("host", format!("a thread for a storage: {error}")))
    }

    /// It answers no more, and its thread ends.
    pub(crate) fn close(&self) {
        let mut queue = self.0.lock();
        queue.is_closed = true;
        let waiting = std::mem::take(&mut queue.waiting);
        let waker = queue.waker.clone();
        drop(queue);
        drop(waiting);
        self.0.closing.notify_all();
        if let Some(waker) = waker {
            waker();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    fn note_waiting(&self, queue: &Queue) {
        let waiting = i64::try_from(queue.waiting.len()).unwrap_or(i64::MAX);
        self.metrics.waiting.store(waiting, Ordering::Relaxed);
    }

    fn ask(&self, question: Question) {
        let mut queue = self.lock();
        if queue.waiting.len() >= QUEUE_MAX {
            queue.waiting.retain(|one| one.question.is_wanted());
        }
        if queue.is_closed || queue.waiting.len() >= QUEUE_MAX {
            drop(queue);
            self.metrics.count(Asked::Full);
            question.answer(Err(NoAnswer::Full));
            return;
        }
        let since = Instant::now();
        queue.waiting.push_back(Waiting { question, since });
        self.note_waiting(&queue);
        let waker = queue.waker.clone();
        drop(queue);
        if let Some(waker) = waker {
            waker();
        }
    }

    /// The next question that somebody still waits for and that has not waited too long.
    fn next(&self) -> Option<Question> {
        loop {
            let mut queue = self.lock();
            let one = queue.waiting.pop_front()?;
            self.note_waiting(&queue);
            drop(queue);
            let waited = one.since.elapsed();
            if !one.question.is_wanted() {
                self.metrics.count(Asked::Gone);
            } else if waited >= self.settings.timeout {
                self.metrics.count(Asked::TimedOut);
                one.question.answer(Err(NoAnswer::TimedOut));
            } else {
                self.metrics.queued.add(waited);
                return Some(one.question);
            }
        }
    }

    /// Those that have waited too long are told so.
    fn expire(&self) {
        let mut queue = self.lock();
        let mut late = Vec::new();
        while let Some(first) = queue.waiting.front()
            && first.since.elapsed() >= self.settings.timeout
        {
            late.extend(queue.waiting.pop_front());
        }
        self.note_waiting(&queue);
        drop(queue);
        for one in late {
            self.metrics.count(Asked::TimedOut);
            one.question.answer(Err(NoAnswer::TimedOut));
        }
    }

    fn boot(
        &self,
        log: &Log,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<engine::Storage, BootError> {
        let mut lines = Lines::of_start(log, &format!("storage {}", self.settings.name));
        let booted = std::panic::catch_unwind(AssertUnwindSafe(|| {
            engine::start_storage(&self.program, &self.settings, &mut lines, stop)
        }));
        let fault = |_| Err(BootError::new("internal", "a fault in kvmlet"));
        booted
            .unwrap_or_else(fault)
            .map_err(|BootError { kind, message }| {
                let message = format!("storage {}: {message}", self.settings.name);
                BootError::new(&format!("serve_{kind}"), message)
            })
    }

    fn run(self: Arc<Self>, first: engine::Storage, log: &Log) {
        let mut storage = Some(first);
        let mut failures = 0;
        while !self.is_closed() {
            let booted = match storage.take() {
                Some(first) => Ok(first),
                None => self.boot(log, &|| self.is_closed()),
            };
            let why = match booted {
                Ok(storage) => {
                    let (before, began) = (self.metrics.answered(), Instant::now());
                    let why = self.answer(storage, log);
                    // Who crashes it may ask it something harmless before.
                    if self.metrics.answered() > before && began.elapsed() > LASTING {
                        failures = 0;
                    }
                    format!("storage {}: {why}", self.settings.name)
                }
                Err(error) => error.message,
            };
            if self.is_closed() {
                return;
            }
            log.say(&format!("{why}; it is started anew, without what it knew"));
            self.metrics.restarts.fetch_add(1, Ordering::Relaxed);
            self.expire();
            self.pause(pause_after(failures));
            failures += 1;
        }
    }

    /// Answers until it ends: why it did, in words.
    fn answer(&self, mut storage: engine::Storage, log: &Log) -> String {
        self.lock().waker = Some(storage.waker());
        let mut lines = Lines::of_storage(log, &self.settings.name);
        let mut desk = Desk {
            shared: self,
            has_strayed: false,
            log,
        };
        let left = std::panic::catch_unwind(AssertUnwindSafe(|| {
            storage.answer(&mut desk, &|| self.is_closed(), &mut lines)
        }));
        self.lock().waker = None;
        self.metrics.memory_bytes.store(0, Ordering::Relaxed);
        match left {
            Ok(Ok(Left::Stopped)) => "it has been stopped".to_owned(),
            Ok(Ok(Left::TimedOut)) => {
                format!("it has not answered within {:?}", self.settings.timeout)
            }
            Ok(Ok(Left::Ended(ending))) => how(ending),
            Ok(Err(error)) => error,
            Err(_) => "a fault in kvmlet".to_owned(),
        }
    }

    /// Waits, unless it is closed.
    fn pause(&self, time: Duration) {
        let queue = self.lock();
        let waited = self
            .closing
            .wait_timeout_while(queue, time, |queue| !queue.is_closed);
        drop(waited);
    }
}

/// The questions of a storage, as the engine asks for them.
struct Desk<'a> {
    shared: &'a Shared,
    has_strayed: bool,
    log: &'a Log,
}

impl Questions for Desk<'_> {
    fn next(&mut self) -> Option<Question> {
        self.shared.next()
    }

    fn done(&mut self, how: Result<(), NoAnswer>, ran: Duration, used_bytes: u64) {
        let used_bytes = i64::try_from(used_bytes).unwrap_or(i64::MAX);
        let memory = &self.shared.metrics.memory_bytes;
        memory.store(used_bytes, Ordering::Relaxed);
        self.shared.metrics.count(match how {
            Ok(()) => Asked::Ok,
            Err(NoAnswer::Full) => Asked::Full,
            Err(NoAnswer::Ended) => Asked::Ended,
            Err(NoAnswer::Silent) => Asked::Silent,
            Err(NoAnswer::TimedOut) => Asked::TimedOut,
        });
        self.shared.metrics.ran.add(ran);
    }

    fn stray(&mut self) {
        if !std::mem::replace(&mut self.has_strayed, true) {
            self.log.say(&format!(
                "storage {}: it has sent a message that answers no question: the thread that receives one answers it, \
                 once",
                self.shared.settings.name
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_to_a_second() {
        assert_eq!(pause_after(0), PAUSE_MIN);
        assert_eq!(pause_after(2), 4 * PAUSE_MIN);
        assert_eq!(pause_after(u32::MAX), PAUSE_MAX);
    }
}
