//! A box: a sandbox whose commands go on while nobody asks. A host thread of its own runs it; callers take turns
//! with that thread, each for a moment.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvmlet_abi::Errno;
use kvmlet_hv::Kicker;
use kvmlet_linux::{ExitStatus, News, Personality, Pid};

use crate::snapshot::Youth;
use crate::{Connections, EngineError, Owner, Program, Sandbox, Snapshot, Stat, boot, stats};

/// The time after which a waiting caller asks its owner again.
const ASK: Duration = Duration::from_millis(40);
/// Stack of the thread that runs a box, in bytes.
const STACK_BYTES: usize = 1 << 20;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it is held has been caught by the sandbox, which knows that it is broken.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes that a caller wants to be moved, and the end that it waits for.
#[derive(Debug, Default)]
pub struct Exchange<'a> {
    /// Descriptors of the holder's to read from.
    pub read: &'a [i32],
    /// The most that is read of each, in bytes.
    pub max_bytes: usize,
    /// A descriptor of the holder's to write to, and the bytes.
    pub write: Option<(i32, &'a [u8])>,
    /// The child whose end is waited for.
    pub child: Option<Pid>,
    /// [`Resident::epoch`] when descriptors and child were made.
    pub epoch: u64,
}

/// The outcome of an exchange: as much as could be done at once.
#[derive(Debug, Default)]
pub struct Exchanged {
    /// Bytes of each descriptor that had some, or its end: none.
    pub read: Vec<(i32, Vec<u8>)>,
    /// Bytes written; `None` in `Some` if nobody reads them any more.
    pub written: Option<Option<usize>>,
    /// The way that the child has ended. Nothing is left of it.
    pub ended: Option<ExitStatus>,
}

impl Exchanged {
    fn is_empty(&self) -> bool {
        self.read.is_empty() && self.written.is_none() && self.ended.is_none()
    }
}

impl Exchange<'_> {
    fn news(&self) -> Vec<News> {
        let read = self.read.iter().copied().map(News::Readable);
        let write = self.write.map(|(number, _)| News::Writable(number));
        let child = self.child.map(News::Ended);
        read.chain(write).chain(child).collect()
    }

    /// Does as much as can be done now.
    fn make(&self, personality: &mut Personality) -> Result<Exchanged, EngineError> {
        let mut done = Exchanged::default();
        for number in self.read {
            if !personality.is_news(News::Readable(*number)) {
                continue;
            }
            match personality.read(*number, self.max_bytes) {
                Ok(bytes) => done.read.push((*number, bytes)),
                Err(Errno::EAGAIN) => {}
                // A terminal that no process has any more.
                Err(Errno::EIO) => done.read.push((*number, Vec::new())),
                Err(errno) => return Err(EngineError::of_exchange(errno)),
            }
        }
        if let Some((number, bytes)) = self.write {
            match personality.write(number, bytes) {
                Ok(count) => done.written = Some(Some(count)),
                Err(Errno::EAGAIN) => {}
                Err(Errno::EPIPE) => done.written = Some(None),
                Err(errno) => return Err(EngineError::of_exchange(errno)),
            }
        }
        if let Some(child) = self.child {
            done.ended = personality
                .wait(child)
                .map_err(|errno| EngineError::File(errno.name()))?;
        }
        Ok(done)
    }
}

/// The end of a wait.
#[derive(Debug)]
pub enum Waited<T> {
    /// Something has been done.
    Done(T),
    /// The time is over.
    TimedOut,
    /// The owner asked for it.
    Interrupted,
}

/// The things that a caller waits for.
#[derive(Debug)]
pub(crate) struct Wish {
    /// [`Resident::epoch`] when what it names was made.
    pub epoch: u64,
    pub news: Vec<News>,
}

/// A call that gives nothing as long as it has to wait.
pub(crate) type Make<'a, T> = dyn FnMut(&mut Personality) -> Result<Option<T>, EngineError> + 'a;

/// The sandbox, and those who wait for its news. Whoever holds it uses the sandbox.
#[derive(Debug)]
struct Turn {
    /// `None` once closed.
    sandbox: Option<Sandbox>,
    /// News that callers wait for, by caller.
    waits: Vec<(u64, Vec<News>)>,
    next_wait: u64,
    /// True until a caller has done something: nothing can happen before, or a caller has news to look at.
    is_idle: bool,
    /// The snapshot that a reset goes back to; `None` for the start.
    base: Option<Snapshot>,
    youth: Youth,
    /// The number of resets: descriptors and processes of an earlier one are others now.
    epoch: u64,
}

#[derive(Debug)]
struct Shared {
    turn: Mutex<Turn>,
    /// Callers that wait for their turn.
    callers: AtomicUsize,
    /// True while the thread runs the guest, or is about to.
    is_running: AtomicBool,
    /// For the thread: a caller has had its turn.
    over: Condvar,
    /// Waits of which there are news.
    rung: Mutex<BTreeSet<u64>>,
    /// For callers: there are some.
    bell: Condvar,
    kicker: Mutex<Kicker>,
}

/// A box that goes on by itself. Any number of threads may use it.
#[derive(Debug)]
pub struct Resident {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The process that made it: threads and VMs do not survive fork(2).
    process: u32,
    program: Arc<Program>,
}

/// The thread that runs a box stops for callers.
struct Polite<'a>(&'a Shared);

impl Owner for Polite<'_> {
    fn stop_requested(&mut self) -> bool {
        self.0.callers.load(Ordering::SeqCst) > 0
    }

    fn trace(&mut self, _line: &str, _left: Option<Duration>) {}
}

impl Shared {
    /// Runs the box until it is closed.
    fn run(&self) {
        let mut turn = lock(&self.turn);
        loop {
            self.is_running.store(false, Ordering::SeqCst);
            let Turn {
                sandbox: Some(sandbox),
                waits,
                is_idle,
                youth,
                ..
            } = &mut *turn
            else {
                return;
            };
            self.is_running.store(!*is_idle, Ordering::SeqCst);
            if *is_idle || self.callers.load(Ordering::SeqCst) > 0 {
                self.is_running.store(false, Ordering::SeqCst);
                turn = self.over.wait(turn).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            sandbox.follow_siblings(youth);
            let news: Vec<News> = waits.iter().flat_map(|(_, news)| news).copied().collect();
            let reached = sandbox.until_news(&news, &mut Polite(self));
            sandbox.lead_siblings(youth);
            match reached {
                Err(EngineError::Interrupted) => continue,
                Ok(()) => {
                    let waits = waits.iter().filter(|(_, news)| {
                        news.iter().any(|news| sandbox.personality.is_news(*news))
                    });
                    self.ring(waits.map(|(wait, _)| *wait));
                }
                Err(EngineError::NotReady) => {}
                // The box has ended: each caller is told.
                Err(_) => self.ring(waits.iter().map(|(wait, _)| *wait)),
            }
            *is_idle = true;
        }
    }

    fn ring(&self, waits: impl Iterator<Item = u64>) {
        lock(&self.rung).extend(waits);
        self.bell.notify_all();
    }

    /// Takes the turn from the thread, for a moment.
    fn take_turn<T>(&self, work: impl FnOnce(&mut Turn) -> T) -> T {
        self.callers.fetch_add(1, Ordering::SeqCst);
        if self.is_running.load(Ordering::SeqCst) {
            lock(&self.kicker).kick();
        }
        let mut turn = lock(&self.turn);
        self.callers.fetch_sub(1, Ordering::SeqCst);
        let done = work(&mut turn);
        turn.is_idle = false;
        drop(turn);
        self.over.notify_one();
        done
    }
}

impl Turn {
    fn sandbox(&mut self) -> Result<&mut Sandbox, EngineError> {
        self.sandbox.as_mut().ok_or(EngineError::Closed)
    }

    fn sandbox_of(&mut self, epoch: u64) -> Result<&mut Sandbox, EngineError> {
        let is_this = self.epoch == epoch;
        let sandbox = self.sandbox()?;
        is_this.then_some(sandbox).ok_or(EngineError::Reset)
    }
}

impl Resident {
    /// A box without a command. Commands have the limits of `program`, which has no arguments.
    ///
    /// # Errors
    /// As [`crate::run`].
    pub fn start(program: Program) -> Result<Self, EngineError> {
        let sandbox = start(&program)?;
        Self::of(sandbox, None, Arc::new(program))
    }

    fn of(
        sandbox: Sandbox,
        base: Option<Snapshot>,
        program: Arc<Program>,
    ) -> Result<Self, EngineError> {
        let is_published = sandbox.personality.host.outside.is_published();
        let shared = Arc::new(Shared {
            kicker: Mutex::new(sandbox.kicker()),
            turn: Mutex::new(Turn {
                sandbox: Some(sandbox),
                waits: Vec::new(),
                next_wait: 0,
                // A fork of one with ports of the host can be asked for something by others than its callers.
                is_idle: !is_published,
                youth: base.as_ref().map_or_else(Youth::none, |_| Youth::begins()),
                base,
                epoch: 0,
            }),
            callers: AtomicUsize::new(0),
            is_running: AtomicBool::new(false),
            over: Condvar::new(),
            rung: Mutex::default(),
            bell: Condvar::new(),
        });
        let runner = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("kvmlet-box".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || runner.run())
            .map_err(|error| EngineError::Host(format!("a thread for the box: {error}")))?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
            process: std::process::id(),
            program,
        })
    }

    /// True in the process that made it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    /// Acts for the holder. No command runs meanwhile.
    ///
    /// # Errors
    /// [`EngineError::Closed`], [`EngineError::Ended`].
    pub fn act<T>(&self, work: impl FnOnce(&mut Personality) -> T) -> Result<T, EngineError> {
        self.shared.take_turn(|turn| turn.sandbox()?.act(work))
    }

    /// As [`Resident::act`], with descriptors or processes that were made in `epoch`.
    ///
    /// # Errors
    /// [`EngineError::Reset`] if the box has been reset since, and those of [`Resident::act`].
    pub fn act_in<T>(
        &self,
        epoch: u64,
        work: impl FnOnce(&mut Personality) -> T,
    ) -> Result<T, EngineError> {
        self.shared
            .take_turn(|turn| turn.sandbox_of(epoch)?.act(work))
    }

    /// The number of resets so far.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.shared.take_turn(|turn| turn.epoch)
    }

    /// Moves bytes as soon as any can be, or learns that a child has ended.
    ///
    /// # Errors
    /// [`EngineError::Closed`], [`EngineError::Ended`], [`EngineError::File`] for a descriptor that is gone,
    /// [`EngineError::BoxFull`] at the memory limit.
    pub fn exchange(
        &self,
        exchange: &Exchange<'_>,
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<Waited<Exchanged>, EngineError> {
        let mut make = |personality: &mut Personality| {
            let done = exchange.make(personality)?;
            Ok((!done.is_empty()).then_some(done))
        };
        let wish = Wish {
            epoch: exchange.epoch,
            news: exchange.news(),
        };
        self.until_made(&wish, &mut make, timeout, owner)
    }

    /// Makes a call as soon as it has something to give. It is made again at each of the news that are waited for.
    pub(crate) fn until_made<T>(
        &self,
        wish: &Wish,
        make: &mut Make<'_, T>,
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<Waited<T>, EngineError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut wait = None;
        let result = self.make_until(wish, make, deadline, owner, &mut wait);
        if let Some(wait) = wait {
            self.shared
                .take_turn(|turn| turn.waits.retain(|(known, _)| *known != wait));
            lock(&self.shared.rung).remove(&wait);
        }
        result
    }

    fn make_until<T>(
        &self,
        wish: &Wish,
        make: &mut Make<'_, T>,
        deadline: Option<Instant>,
        owner: &mut dyn Owner,
        wait: &mut Option<u64>,
    ) -> Result<Waited<T>, EngineError> {
        loop {
            let done = self.shared.take_turn(|turn| {
                let done = turn.sandbox_of(wish.epoch)?.act(&mut *make)??;
                if done.is_none() && wait.is_none() {
                    let id = turn.next_wait;
                    turn.next_wait = id.wrapping_add(1);
                    turn.waits.push((id, wish.news.clone()));
                    *wait = Some(id);
                } else if done.is_some()
                    && let Some(id) = wait.take()
                {
                    turn.waits.retain(|(known, _)| *known != id);
                }
                Ok::<_, EngineError>(done)
            })?;
            if let Some(done) = done {
                return Ok(Waited::Done(done));
            }
            let Some(id) = *wait else { continue };
            let mut rung = lock(&self.shared.rung);
            while !rung.remove(&id) {
                let left =
                    deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                if left == Some(Duration::ZERO) {
                    return Ok(Waited::TimedOut);
                }
                let slice = left.map_or(ASK, |left| left.min(ASK));
                let waited = self.shared.bell.wait_timeout(rung, slice);
                rung = waited.unwrap_or_else(PoisonError::into_inner).0;
                if !rung.contains(&id) {
                    // It may need a lock that another caller holds.
                    drop(rung);
                    if owner.stop_requested() {
                        return Ok(Waited::Interrupted);
                    }
                    rung = lock(&self.shared.rung);
                }
            }
        }
    }

    /// Keeps the box as it is now. It goes on, and goes back to this with [`Resident::reset`].
    ///
    /// # Errors
    /// [`EngineError::Closed`], [`EngineError::Ended`], and what the host refuses; the box is lost then.
    pub fn snapshot(&self, connections: Connections) -> Result<Snapshot, EngineError> {
        self.shared.take_turn(|turn| {
            let mut sandbox = turn.sandbox.take().ok_or(EngineError::Closed)?;
            if let Some(ending) = sandbox.ending() {
                turn.sandbox = Some(sandbox);
                return Err(EngineError::Ended(ending));
            }
            if let Err(error) = sandbox.prepare_to_freeze(connections) {
                turn.sandbox = Some(sandbox);
                return Err(error);
            }
            let frozen = sandbox.freeze();
            let forked = frozen.and_then(|snapshot| Ok((snapshot.fork()?, snapshot)));
            let (sandbox, snapshot) = forked.inspect_err(|_| self.ring_all(turn))?;
            *lock(&self.shared.kicker) = sandbox.kicker();
            turn.sandbox = Some(sandbox);
            turn.youth = Youth::begins();
            turn.base = Some(snapshot.clone());
            Ok(snapshot)
        })
    }

    /// Another box that goes on from a snapshot of this one.
    ///
    /// # Errors
    /// As [`Snapshot::fork`].
    pub fn fork(&self, snapshot: &Snapshot) -> Result<Self, EngineError> {
        let sandbox = snapshot.fork()?;
        Self::of(sandbox, Some(snapshot.clone()), Arc::clone(&self.program))
    }

    /// Back to the snapshot that was taken last or that this is a fork of, else to the start.
    ///
    /// # Errors
    /// [`EngineError::Closed`], and what the host refuses.
    pub fn reset(&self) -> Result<(), EngineError> {
        self.shared.take_turn(|turn| {
            let is_fork = turn.base.is_some();
            let sandbox = turn.sandbox()?;
            if is_fork {
                sandbox.reset()?;
            } else {
                *sandbox = start(&self.program)?;
            }
            *lock(&self.shared.kicker) = sandbox.kicker();
            turn.epoch = turn.epoch.wrapping_add(1);
            self.ring_all(turn);
            Ok(())
        })
    }

    /// Has all who wait look again: their box is another now, or gone.
    fn ring_all(&self, turn: &Turn) {
        self.shared.ring(turn.waits.iter().map(|(wait, _)| *wait));
    }

    /// Counters, and the number of processes with those that have not been waited for.
    ///
    /// # Errors
    /// [`EngineError::Closed`].
    pub fn stats(&self) -> Result<Vec<(String, Stat)>, EngineError> {
        self.shared.take_turn(|turn| {
            let sandbox = turn.sandbox()?;
            let mut stats = sandbox.stats();
            let kernel = &sandbox.personality.kernel;
            // The holder is none of the user's.
            let processes = kernel.kin().count().saturating_sub(1) as u64;
            let memory = &sandbox.personality.machine.memory;
            let mut counts = vec![
                ("processes", processes),
                ("memory_bytes", memory.used_bytes()),
                ("memory_limit_bytes", memory.limit_bytes()),
                ("files", kernel.tmpfs.files()),
            ];
            if let Some((limit_bytes, used_bytes)) = kernel.tmpfs.disk_bytes() {
                counts.push(("files_bytes", used_bytes));
                counts.push(("files_limit_bytes", limit_bytes));
            }
            let counts = counts.into_iter();
            stats.extend(counts.map(|(name, count)| (name.to_owned(), Stat::Count(count))));
            let cpu_ns = sandbox
                .times
                .guest_ns
                .saturating_add(sandbox.times.personality_ns);
            stats.push(("cpu_us".to_owned(), stats::us(cpu_ns)));
            Ok(stats)
        })
    }

    /// Ends everything in it and gives the VM up.
    pub fn close(&self) {
        if !self.is_ours() {
            return;
        }
        let sandbox = self.shared.take_turn(|turn| turn.sandbox.take());
        // Those who wait learn that it is closed.
        self.shared.take_turn(|turn| self.ring_all(turn));
        if let Some(thread) = lock(&self.thread).take() {
            // A panic of it has been caught before.
            let _ = thread.join();
        }
        if let Some(sandbox) = sandbox {
            sandbox.retire();
        }
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        if self.is_ours() {
            return self.close();
        }
        // The thread is the parent's: here is nothing to detach.
        if let Ok(mut thread) = self.thread.try_lock() {
            std::mem::forget(thread.take());
        }
    }
}

fn start(program: &Program) -> Result<Sandbox, EngineError> {
    let caught =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| boot::build_box(program)));
    caught.unwrap_or_else(|panic| Err(EngineError::from_panic(panic.as_ref())))
}
