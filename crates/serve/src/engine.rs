//! The programs of the engine, as the front asks for them, and its storages.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use kvmlet_engine::{
    Denial, Door, Ending as Ended, EngineError, Errno, Feed, Flow, Left, Owner, Questions, Sandbox,
    Served, ServerFork, Snapshot, Streamed,
};

use crate::fork::{BootError, Ending, Fork, Master, Output, Program, Refusal, Reset};
use crate::storage::{Askable, StorageSettings};
use crate::wire::{Input, Wire};

/// Bytes of a client that are taken over at one time.
const PIECE_BYTES: usize = 64 << 10;
/// Calls that only ask. A program that goes on without has lost nothing.
const ASKING: [&str; 6] = [
    "stat",
    "access",
    "readlink",
    "statfs",
    "getxattr",
    "listxattr",
];
/// Said to the client whose request took all that there was.
const NO_MEMORY: &str = "the program has reached its memory limit";

impl From<EngineError> for BootError {
    fn from(error: EngineError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

/// Starts a program, which runs until it waits for connections: on `port`, or at the only place there is. A request may
/// use `request_memory_bytes` beyond what it uses then, or as much as the program if that is not given. It may ask
/// `storages`.
///
/// # Errors
/// [`BootError`].
pub fn start(
    program: &kvmlet_engine::Program,
    port: Option<u16>,
    request_memory_bytes: Option<u64>,
    storages: &[crate::storage::Storage],
    timeout: Duration,
    output: &mut dyn Output,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Box<dyn Program>, BootError> {
    let mut sandbox = Sandbox::start(program)?;
    if let Some(len_bytes) = request_memory_bytes {
        sandbox.limit_forks(len_bytes);
    }
    if !storages.is_empty() {
        sandbox.let_ask(Arc::new(Askable(storages.to_vec())));
    }
    let mut owner = Told { output, stop };
    let listening = sandbox.until_listening(port, Some(timeout), &mut owner);
    hand_on(sandbox.take_output(), output);
    let refused = tell_denials(&mut sandbox, output);
    let door = listening.map_err(|error| {
        let ended = matches!(error, EngineError::Ended(_));
        let mut error = not_started(error, "it listened");
        if let Some(refused) = refused.filter(|_| ended) {
            error.message.push_str(&format!("; denied: {refused}"));
        }
        error
    })?;
    Ok(Box::new(Listening {
        sandbox,
        door,
        timeout,
    }))
}

fn not_started(error: EngineError, before: &str) -> BootError {
    match error {
        EngineError::Ended(ending) => BootError::new(
            "ended",
            format!("the program has ended before {before}: {}", how(ending)),
        ),
        other => other.into(),
    }
}

fn hand_on((stdout, stderr): (Vec<u8>, Vec<u8>), output: &mut dyn Output) {
    for (stream, bytes) in [(1, stdout), (2, stderr)] {
        if !bytes.is_empty() {
            output.wrote(stream, &bytes);
        }
    }
}

/// Hands on what the policy has refused: the first of it that the program wanted to use.
fn tell_denials(sandbox: &mut Sandbox, output: &mut dyn Output) -> Option<String> {
    let (denials, _) = sandbox.take_report();
    let refusals: Vec<Refusal> = denials.iter().map(refusal).collect();
    refusals.iter().for_each(|one| output.denied(one));
    let used = refusals.into_iter().find(|one| !one.only_asked);
    used.map(|one| one.what)
}

fn refusal(denial: &Denial) -> Refusal {
    let call = denial.what.split(' ').next().unwrap_or_default();
    Refusal {
        what: format!("{} ({})", denial.what, denial.errno),
        only_asked: ASKING.contains(&call),
    }
}

/// An ending of the program in words.
pub(crate) fn how(ending: Ended) -> String {
    match ending {
        Ended::Exited(status) => format!("it exited with status {status}"),
        Ended::Signal(number) => match signal_name(number) {
            Some(name) => format!("{name} killed it"),
            None => format!("signal {number} killed it"),
        },
        Ended::Memory => "it reached its memory limit".to_owned(),
        Ended::Output => "it reached the limit on its output".to_owned(),
        Ended::CpuTime => "it used its CPU time".to_owned(),
        Ended::Timeout => "its time was over".to_owned(),
        Ended::Interrupted => "it was interrupted".to_owned(),
        Ended::Broken => "a fault of kvmlet ended it".to_owned(),
    }
}

/// Those that end programs by themselves.
fn signal_name(number: u8) -> Option<&'static str> {
    Some(match number {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        31 => "SIGSYS",
        _ => return None,
    })
}

/// A storage whose program waits for questions.
pub(crate) struct Storage(kvmlet_engine::Storage);

/// Starts the program of a storage, which runs until it waits for its first question.
pub(crate) fn start_storage(
    program: &kvmlet_engine::Program,
    settings: &StorageSettings,
    output: &mut dyn Output,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Storage, BootError> {
    let mut owner = Told { output, stop };
    let started = kvmlet_engine::Storage::start(
        program,
        settings.concurrent,
        settings.timeout,
        settings.boot_timeout,
        &mut owner,
    );
    let storage = started.map_err(|error| match error {
        EngineError::TimedOut | EngineError::NotReady => {
            BootError::new("not_ready", "it does not wait for questions")
        }
        other => not_started(other, "it waited for questions"),
    })?;
    Ok(Storage(storage))
}

impl Storage {
    pub(crate) fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let waker = self.0.waker();
        Arc::new(move || waker.wake())
    }

    /// Answers questions until it ends, or is told to stop.
    pub(crate) fn answer(
        &mut self,
        questions: &mut dyn Questions,
        stop: &(dyn Fn() -> bool + Sync),
        output: &mut dyn Output,
    ) -> Result<Left, String> {
        let mut owner = Told {
            output: &mut *output,
            stop,
        };
        // What it was denied before its first question.
        let (denials, _) = self.0.sandbox().take_report();
        denials.iter().for_each(|one| owner.denied(one));
        let left = self.0.answer(questions, &mut owner);
        hand_on(self.0.take_output(), output);
        left.map_err(|error| error.to_string())
    }
}

/// The owner of a program that is being started.
struct Told<'a> {
    output: &'a mut dyn Output,
    stop: &'a (dyn Fn() -> bool + Sync),
}

impl Owner for Told<'_> {
    fn stop_requested(&mut self) -> bool {
        (self.stop)()
    }

    fn streamed(&self) -> [bool; 2] {
        [true; 2]
    }

    fn output(&mut self, stream: Streamed, bytes: Vec<u8>) {
        wrote(self.output, stream, &bytes);
    }

    fn denied(&mut self, denial: &Denial) {
        self.output.denied(&refusal(denial));
    }

    fn trace(&mut self, _line: &str, _left: Option<Duration>) {}
}

fn wrote(output: &mut dyn Output, stream: Streamed, bytes: &[u8]) {
    let number = match stream {
        Streamed::Stdout => 1,
        Streamed::Stderr => 2,
    };
    output.wrote(number, bytes);
}

/// The owner of an exchange: stops it when its wire is over, or has another deadline.
struct Watch<'a> {
    wire: &'a Wire,
    deadline: Option<Instant>,
    output: &'a mut dyn Output,
    /// Nothing else makes the exchange look at its wire.
    stops_for_news: bool,
}

impl Owner for Watch<'_> {
    fn stop_requested(&mut self) -> bool {
        self.wire.is_over()
            || self.wire.deadline() != self.deadline
            || (self.stops_for_news && self.wire.has_news())
    }

    fn streamed(&self) -> [bool; 2] {
        [true; 2]
    }

    fn output(&mut self, stream: Streamed, bytes: Vec<u8>) {
        wrote(self.output, stream, &bytes);
    }

    fn trace(&mut self, _line: &str, _left: Option<Duration>) {}
}

/// What the client sends, as the engine takes it.
struct FromWire<'a> {
    wire: &'a Wire,
    piece: Bytes,
}

impl kvmlet_engine::Input for FromWire<'_> {
    fn next(&mut self) -> Feed<'_> {
        if self.piece.is_empty() {
            match self.wire.read(PIECE_BYTES) {
                Input::Bytes(bytes) => self.piece = bytes,
                Input::Pending => return Feed::Later,
                Input::End => return Feed::Shut,
            }
        }
        Feed::Bytes(&self.piece)
    }

    fn taken(&mut self, count_bytes: usize) {
        self.piece.advance(count_bytes.min(self.piece.len()));
    }
}

/// The client, as the engine gives to it.
struct ToWire<'a>(&'a Wire);

impl kvmlet_engine::Output for ToWire<'_> {
    fn room_bytes(&mut self) -> usize {
        self.0.room()
    }

    fn write(&mut self, bytes: &[u8]) -> Flow {
        self.0.write(Bytes::copy_from_slice(bytes));
        if self.0.is_over() {
            Flow::Enough
        } else {
            Flow::More
        }
    }
}

/// Has `exchange` move bytes until the wire or the connection is over.
fn serve(
    wire: &Wire,
    output: &mut dyn Output,
    stops_for_news: bool,
    mut exchange: impl FnMut(
        &mut FromWire<'_>,
        &mut ToWire<'_>,
        Option<Instant>,
        &mut Watch<'_>,
    ) -> Result<Served, EngineError>,
) -> Ending {
    let mut input = FromWire {
        wire,
        piece: Bytes::new(),
    };
    loop {
        if wire.is_over() {
            return Ending::Done;
        }
        wire.take_news();
        let deadline = wire.deadline();
        let mut watch = Watch {
            wire,
            deadline,
            output: &mut *output,
            stops_for_news,
        };
        match exchange(&mut input, &mut ToWire(wire), deadline, &mut watch) {
            Ok(Served::Stopped) => {}
            Ok(Served::TimedOut) if wire.deadline() != deadline => {}
            Ok(Served::TimedOut) => return Ending::TimedOut,
            Ok(Served::Enough | Served::End | Served::Reset | Served::Silent) => {
                return Ending::Done;
            }
            Ok(Served::Full) | Ok(Served::Ended(Ended::Memory)) => {
                return Ending::Memory(NO_MEMORY.to_owned());
            }
            Ok(Served::Ended(ending)) => return Ending::Crashed(how(ending)),
            Err(EngineError::Connection(_)) => return Ending::NotListening,
            Err(error) => return Ending::Failed(error.to_string()),
        }
    }
}

/// The address of a client, for one that has none too.
fn address(wire: &Wire) -> SocketAddr {
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    wire.peer().unwrap_or(nowhere)
}

/// A program that waits for connections.
struct Listening {
    sandbox: Sandbox,
    door: Door,
    timeout: Duration,
}

impl Program for Listening {
    fn serve(&mut self, wire: &Wire, output: &mut dyn Output) -> Ending {
        let connection = match self.sandbox.connect_at(self.door, Some(address(wire))) {
            Ok(connection) => connection,
            Err(EngineError::Connection(errno)) if errno == Errno::ENOMEM.name() => {
                return Ending::Memory(NO_MEMORY.to_owned());
            }
            Err(EngineError::Connection(_)) => return Ending::NotListening,
            Err(EngineError::Ended(ending)) => return Ending::Crashed(how(ending)),
            Err(error) => return Ending::Failed(error.to_string()),
        };
        let sandbox = &mut self.sandbox;
        let ending = serve(wire, output, true, |input, to, deadline, watch| {
            sandbox.exchange(connection, input, to, deadline, watch)
        });
        sandbox.hang_up(connection);
        let mut owner = Told {
            output: &mut *output,
            stop: &|| false,
        };
        let again = match ending {
            Ending::Done => {
                let port = match self.door {
                    Door::Port(port) => Some(port),
                    Door::Unix(_) => None,
                };
                sandbox.until_listening(port, Some(self.timeout), &mut owner)
            }
            _ => Ok(self.door),
        };
        hand_on(self.sandbox.take_output(), output);
        match again {
            Ok(_) => ending,
            Err(EngineError::Ended(ending)) => Ending::Crashed(how(ending)),
            Err(error) => Ending::Failed(error.to_string()),
        }
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let kicker = self.sandbox.kicker();
        Arc::new(move || kicker.kick())
    }

    fn freeze(self: Box<Self>) -> Result<Box<dyn Master>, BootError> {
        Ok(Box::new(Frozen(self.sandbox.freeze()?)))
    }
}

struct Frozen(Snapshot);

impl Master for Frozen {
    fn fork(&self) -> Result<Box<dyn Fork>, String> {
        let fork = ServerFork::new(&self.0).map_err(|error| error.to_string())?;
        Ok(Box::new(Forked { fork }))
    }
}

struct Forked {
    fork: ServerFork,
}

impl Fork for Forked {
    fn serve(&mut self, wire: &Wire, output: &mut dyn Output) -> Ending {
        let connection = match self.fork.open(address(wire)) {
            Ok(connection) => connection,
            Err(EngineError::Connection(_)) => return Ending::NotListening,
            Err(EngineError::Ended(ending)) => return Ending::Crashed(how(ending)),
            Err(error) => return Ending::Failed(error.to_string()),
        };
        let fork = &mut self.fork;
        let ending = serve(wire, output, false, |input, to, deadline, watch| {
            fork.exchange(connection, input, to, deadline, watch)
        });
        self.fork.close(connection);
        hand_on(self.fork.take_output(), output);
        tell_denials(self.fork.sandbox(), output);
        ending
    }

    fn reset(&mut self) -> Result<Reset, String> {
        self.fork.reset().map_err(|error| error.to_string())?;
        let pages = self.fork.sandbox().pages_reset();
        Ok(Reset { pages })
    }

    fn exits(&mut self) -> u64 {
        self.fork.sandbox().exits()
    }

    fn poller_cpu(&mut self) -> Duration {
        self.fork.sandbox().poller_cpu()
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let waker = self.fork.waker();
        Arc::new(move || waker.wake())
    }
}
