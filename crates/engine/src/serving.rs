//! Forks that serve connections. Bytes go to a server and come from it while it runs, until the response is complete or
//! something ends it. Then the fork is reset.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvmlet_abi::Errno;
use kvmlet_hv::Kicker;
use kvmlet_linux::{Connection, Denial, Door, News, Shut};

use crate::connection::ConnectionId;
use crate::outcome::Ending;
use crate::run::Streamed;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;
use crate::{EngineError, Owner};

/// The time after which the owner is asked again while nothing in the sandbox can run.
const ASK: Duration = Duration::from_millis(40);

/// The things that a client sends, as far as they are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feed<'a> {
    /// The next bytes. As many as the connection has room for are taken.
    Bytes(&'a [u8]),
    /// Nothing yet: [`Waker::wake`] says when to ask again.
    Later,
    /// Nothing more will come. The client still listens, and its direction stays open.
    Done,
    /// Nothing more will come, and the server is told (shutdown(2) of the client's direction).
    Shut,
}

/// The source of what a client sends.
pub trait Input {
    /// The next bytes that have not been taken.
    fn next(&mut self) -> Feed<'_>;
    /// So many of the bytes of [`Input::next`] have been taken.
    fn taken(&mut self, count_bytes: usize);
}

/// Says if more of a response is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// There may be more.
    More,
    /// It is complete.
    Enough,
}

/// The place of what a server sends.
pub trait Output {
    /// Bytes that it takes now, at most: 0 for none, until [`Waker::wake`]. The server waits once the connection is
    /// full.
    fn room_bytes(&mut self) -> usize;
    /// Takes bytes: as many as there is room for, or fewer.
    fn write(&mut self, bytes: &[u8]) -> Flow;
}

/// A request that is known as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    rest: &'a [u8],
}

impl<'a> Request<'a> {
    /// The client sends these bytes and waits for the answer.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl Input for Request<'_> {
    fn next(&mut self) -> Feed<'_> {
        match self.rest {
            [] => Feed::Done,
            rest => Feed::Bytes(rest),
        }
    }

    fn taken(&mut self, count_bytes: usize) {
        self.rest = self.rest.get(count_bytes..).unwrap_or_default();
    }
}

/// All that is sent, to the end of the connection.
impl Output for Vec<u8> {
    fn room_bytes(&mut self) -> usize {
        usize::MAX
    }

    fn write(&mut self, bytes: &[u8]) -> Flow {
        self.extend_from_slice(bytes);
        Flow::More
    }
}

/// The end of an exchange. All that the server had sent by then has been written, unless [`Output`] had no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served {
    /// The response is complete, says [`Flow::Enough`]. The connection is open.
    Enough,
    /// The server has ended its direction.
    End,
    /// The server has reset the connection or refused it.
    Reset,
    /// The time is over.
    TimedOut,
    /// Nothing in the sandbox can run, and nothing more will be sent: no answer will ever come.
    Silent,
    /// The program has ended.
    Ended(Ending),
    /// The program is at its memory limit: what the client sends has no room.
    Full,
    /// [`Owner::stop_requested`]
    Stopped,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls the thread that exchanges bytes, wherever it is.
#[derive(Debug)]
pub(crate) struct Bell {
    is_rung: Mutex<bool>,
    rings: Condvar,
    /// True while the guest may run.
    is_running: AtomicBool,
    /// Of the vCPU of now: a reset may bring another one.
    kicker: Mutex<Kicker>,
}

impl Bell {
    pub(crate) fn new(kicker: Kicker) -> Arc<Self> {
        Arc::new(Self {
            is_rung: Mutex::new(false),
            rings: Condvar::new(),
            is_running: AtomicBool::new(false),
            kicker: Mutex::new(kicker),
        })
    }

    fn ring(&self) {
        *lock(&self.is_rung) = true;
        self.rings.notify_all();
        // The flag is set: one that begins to run after this look sees it.
        if self.is_running.load(Ordering::SeqCst) {
            lock(&self.kicker).kick();
        }
    }

    fn is_rung(&self) -> bool {
        *lock(&self.is_rung)
    }

    pub(crate) fn answer(&self) {
        *lock(&self.is_rung) = false;
    }

    /// Runs the guest by `step`, unless it has rung: that ends the step as soon as it rings.
    pub(crate) fn run(
        &self,
        step: impl FnOnce() -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        self.is_running.store(true, Ordering::SeqCst);
        let reached = match self.is_rung() {
            true => Ok(()),
            false => step(),
        };
        self.is_running.store(false, Ordering::SeqCst);
        reached
    }

    /// Waits for a time, or until it rings.
    pub(crate) fn wait(&self, time: Duration) {
        let is_rung = lock(&self.is_rung);
        let waited = self
            .rings
            .wait_timeout_while(is_rung, time, |is_rung| !*is_rung);
        drop(waited);
    }
}

/// Has [`ServerFork::exchange`] look at its input and output again, from any thread, whatever the guest does. It never
/// waits, and no call of it is lost.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Bell>);

impl Waker {
    pub(crate) fn of(bell: &Arc<Bell>) -> Self {
        Self(Arc::clone(bell))
    }

    /// There is news.
    pub fn wake(&self) {
        self.0.ring();
    }
}

/// The owner of a step of an exchange: the caller's, and the bell.
pub(crate) struct Listener<'a> {
    bell: &'a Bell,
    owner: &'a mut dyn Owner,
    /// The caller's owner has asked for the stop.
    is_stopped: bool,
}

impl<'a> Listener<'a> {
    pub(crate) fn of(bell: &'a Bell, owner: &'a mut dyn Owner) -> Self {
        Self {
            bell,
            owner,
            is_stopped: false,
        }
    }
}

impl Owner for Listener<'_> {
    fn stop_requested(&mut self) -> bool {
        self.is_stopped = self.is_stopped || self.owner.stop_requested();
        self.is_stopped || self.bell.is_rung()
    }

    fn was_continued(&mut self) -> bool {
        self.owner.was_continued()
    }

    fn streamed(&self) -> [bool; 2] {
        self.owner.streamed()
    }

    fn output(&mut self, stream: Streamed, bytes: Vec<u8>) {
        self.owner.output(stream, bytes);
    }

    fn wants_denials(&self) -> bool {
        self.owner.wants_denials()
    }

    fn denied(&mut self, denial: &Denial) {
        self.owner.denied(denial);
    }

    fn wait(&mut self, time: Duration) -> bool {
        self.bell.wait(time);
        true
    }

    fn trace(&mut self, line: &str, left: Option<Duration>) {
        self.owner.trace(line, left);
    }
}

/// One exchange.
struct Exchange<'a> {
    sandbox: &'a mut Sandbox,
    bell: &'a Bell,
    connection: Connection,
    input: &'a mut dyn Input,
    output: &'a mut dyn Output,
    /// Nothing more will be sent.
    is_done: bool,
    /// The server has reset the connection: what it had sent before still comes.
    is_reset: bool,
}

/// The outcome of moving as many bytes as can be moved.
#[derive(Default)]
struct Moved {
    served: Option<Served>,
    /// More could be received.
    wants_received: bool,
    /// More could be sent.
    wants_sent: bool,
}

impl Exchange<'_> {
    fn run(
        mut self,
        deadline: Option<Instant>,
        owner: &mut dyn Owner,
    ) -> Result<Served, EngineError> {
        loop {
            // What rings from now on is seen by the step.
            self.bell.answer();
            let Moved {
                served,
                wants_received,
                wants_sent,
            } = self.move_bytes()?;
            if let Some(served) = served {
                return Ok(served);
            }
            if let Some(ending) = self.sandbox.ending() {
                return Ok(Served::Ended(ending));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(Served::TimedOut);
            }
            let received = wants_received.then_some(News::Received(self.connection));
            let sent = wants_sent.then_some(News::Sendable(self.connection));
            let news: Vec<News> = received.into_iter().chain(sent).collect();
            let mut listener = Listener::of(self.bell, owner);
            let sandbox = &mut *self.sandbox;
            let reached = self
                .bell
                .run(|| sandbox.until_news_within(&news, left, &mut listener));
            let is_stopped = listener.is_stopped;
            match reached {
                // The last of what was sent is still there.
                Ok(()) | Err(EngineError::Ended(_) | EngineError::TimedOut) => {}
                Err(EngineError::Interrupted) if is_stopped => return Ok(Served::Stopped),
                Err(EngineError::Interrupted) => {}
                Err(EngineError::NotReady) if self.is_done && wants_received => {
                    return Ok(Served::Silent);
                }
                Err(EngineError::NotReady) => {
                    self.bell.wait(left.map_or(ASK, |left| left.min(ASK)));
                    if owner.stop_requested() {
                        return Ok(Served::Stopped);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Moves as many bytes as can be moved at once. The guest does not run meanwhile, so that they are bounded by what
    /// a connection holds.
    fn move_bytes(&mut self) -> Result<Moved, EngineError> {
        let mut moved = Moved::default();
        self.receive(&mut moved)?;
        if moved.served.is_none() && self.sandbox.ending().is_none() {
            self.send(&mut moved)?;
        }
        Ok(moved)
    }

    fn receive(&mut self, moved: &mut Moved) -> Result<(), EngineError> {
        loop {
            let room_bytes = self.output.room_bytes();
            if room_bytes == 0 {
                return Ok(());
            }
            let connection = self.connection;
            let received = self
                .sandbox
                .guarded(|sandbox| Ok(sandbox.personality.receive(connection, room_bytes)))?;
            moved.served = match received {
                Ok(bytes) if bytes.is_empty() && self.is_reset => Some(Served::Reset),
                Ok(bytes) if bytes.is_empty() => Some(Served::End),
                Ok(bytes) => match self.output.write(&bytes) {
                    Flow::More => continue,
                    Flow::Enough => Some(Served::Enough),
                },
                Err(Errno::EAGAIN) => {
                    moved.wants_received = true;
                    None
                }
                Err(_) => Some(Served::Reset),
            };
            return Ok(());
        }
    }

    fn send(&mut self, moved: &mut Moved) -> Result<(), EngineError> {
        let connection = self.connection;
        while !self.is_done {
            let bytes = match self.input.next() {
                Feed::Bytes([]) | Feed::Later => return Ok(()),
                Feed::Bytes(bytes) => bytes,
                Feed::Done => {
                    self.is_done = true;
                    return Ok(());
                }
                Feed::Shut => {
                    self.is_done = true;
                    // One that the server has ended needs no end.
                    let _ = self.sandbox.guarded(|sandbox| {
                        Ok(sandbox.personality.shut_down(connection, Shut::SEND))
                    })?;
                    return Ok(());
                }
            };
            let sent = self
                .sandbox
                .guarded(|sandbox| Ok(sandbox.personality.send(connection, bytes)))?;
            match sent {
                Ok(count) => self.input.taken(count),
                Err(Errno::EAGAIN) => {
                    moved.wants_sent = true;
                    return Ok(());
                }
                Err(Errno::ENOMEM) => {
                    moved.served = Some(Served::Full);
                    return Ok(());
                }
                Err(_) => {
                    self.is_reset = true;
                    self.is_done = true;
                }
            }
        }
        Ok(())
    }
}

impl Sandbox {
    /// Exchanges bytes over a connection while the program runs, as [`ServerFork::exchange`] does. Nothing but a
    /// signal to this thread wakes it from outside: input and output are always at hand.
    ///
    /// # Errors
    /// As [`ServerFork::exchange`].
    pub fn exchange(
        &mut self,
        connection: ConnectionId,
        input: &mut dyn Input,
        output: &mut dyn Output,
        deadline: Option<Instant>,
        owner: &mut dyn Owner,
    ) -> Result<Served, EngineError> {
        let bell = Bell::new(self.kicker());
        self.exchange_with(&bell, connection, (input, output), deadline, owner)
    }

    fn exchange_with(
        &mut self,
        bell: &Arc<Bell>,
        id: ConnectionId,
        (input, output): (&mut dyn Input, &mut dyn Output),
        deadline: Option<Instant>,
        owner: &mut dyn Owner,
    ) -> Result<Served, EngineError> {
        if let Some(asking) = &self.asking {
            let bell = Arc::clone(bell);
            asking.rings(move || bell.ring());
        }
        let exchange = Exchange {
            connection: self.connection(id)?,
            sandbox: self,
            bell,
            input,
            output,
            is_done: false,
            is_reset: false,
        };
        exchange.run(deadline, owner)
    }
}

/// A fork of a server that was frozen where it waits for connections. It serves one thread at a time, which the guest
/// runs on; any thread may own it.
#[derive(Debug)]
pub struct ServerFork {
    sandbox: Sandbox,
    door: Door,
    bell: Arc<Bell>,
}

impl ServerFork {
    /// A fork that goes on where the server was frozen. No guest code has run.
    ///
    /// # Errors
    /// [`EngineError::NotListening`] of a program that was not run to its listener ([`Sandbox::until_listening`]); as
    /// [`Snapshot::fork`].
    pub fn new(snapshot: &Snapshot) -> Result<Self, EngineError> {
        let Some(door) = snapshot.door() else {
            return Err(EngineError::NotListening(
                "the program was frozen before it was known to wait for connections".to_owned(),
            ));
        };
        let sandbox = snapshot.fork()?;
        Ok(Self {
            bell: Bell::new(sandbox.kicker()),
            sandbox,
            door,
        })
    }

    /// Puts a connection where the server accepts it. The program is shown `peer` as the client's address; one of IPv6
    /// is shown to a listener of IPv4 with its port and 127.0.0.1. Nothing runs.
    ///
    /// # Errors
    /// [`EngineError::Connection`] if the server listens no more, or at the memory limit; [`EngineError::Ended`].
    pub fn open(&mut self, peer: SocketAddr) -> Result<ConnectionId, EngineError> {
        self.sandbox.connect_at(self.door, Some(peer))
    }

    /// Exchanges bytes over a connection while the guest runs, on this thread, until one of [`Served`]. It may be
    /// called again for the same connection: what has been moved is not moved again.
    ///
    /// # Errors
    /// Faults of kvmlet and the host only. The fork can be reset after each of them.
    pub fn exchange(
        &mut self,
        connection: ConnectionId,
        input: &mut dyn Input,
        output: &mut dyn Output,
        deadline: Option<Instant>,
        owner: &mut dyn Owner,
    ) -> Result<Served, EngineError> {
        let bell = Arc::clone(&self.bell);
        self.sandbox
            .exchange_with(&bell, connection, (input, output), deadline, owner)
    }

    /// Ends a connection. The server learns of it when it runs next.
    pub fn close(&mut self, connection: ConnectionId) {
        self.sandbox.hang_up(connection);
    }

    /// Puts the server back to where it was frozen. All connections are gone, without a trace in the guest.
    ///
    /// # Errors
    /// Those of [`Sandbox::reset`]. Another reset may succeed.
    pub fn reset(&mut self) -> Result<(), EngineError> {
        let reset = self.sandbox.reset();
        *lock(&self.bell.kicker) = self.sandbox.kicker();
        reset
    }

    /// Wakes [`ServerFork::exchange`]: for whoever has more input, or room for more output. It lasts as long as the
    /// fork, resets included.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker::of(&self.bell)
    }

    /// Standard output and error of the program since this was last called.
    pub fn take_output(&mut self) -> (Vec<u8>, Vec<u8>) {
        self.sandbox.take_output()
    }

    /// The sandbox: for its statistics, its end, what it was denied.
    pub fn sandbox(&mut self) -> &mut Sandbox {
        &mut self.sandbox
    }

    /// Gives the fork up; its VM is kept for the next one.
    pub fn retire(self) {
        self.sandbox.retire();
    }
}
