//! The server: a program is started, warmed, frozen and forked; clients are accepted until it is told to stop.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use crate::access_log::AccessLog;
use crate::budget::Budget;
use crate::fork::{BootError, Output, Program};
use crate::id::Ids;
use crate::listener::{Bound, Listener, SetupError};
use crate::log::{Lines, Log};
use crate::metrics::Metrics;
use crate::peer::TrustedProxies;
use crate::pool::{Begin, Pool, PoolSettings};
use crate::tls::Tls;
use crate::warm::{WarmupRequest, warm};
use crate::{arrival, connection, control, stream};

/// After an accept that failed, as it does when there are too many descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time for handshakes that are under way when the server is being stopped.
const LAST_ARRIVAL_PATIENCE: Duration = Duration::from_secs(1);
/// Time for forks that have been told to end.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// The unit of work that begins in the frozen state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolate {
    /// A request of HTTP.
    Request,
    /// A connection, of any protocol.
    Connection,
    /// None: a fork is reset only after it failed.
    None,
}

/// Everything that an operator may set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The unit of isolation.
    pub isolate: Isolate,
    /// Forks at one time.
    pub forks: usize,
    /// Requests that may wait for a fork.
    pub queue_max: usize,
    /// From the moment that a request was read to the end of its answer.
    pub timeout: Duration,
    /// Of a connection, where that is the unit; `None` for no limit.
    pub connection_timeout: Option<Duration>,
    /// Without a byte, of an upgrade or a connection that has a fork.
    pub idle_timeout: Duration,
    /// For a proxy's header and a handshake; for a request's head; for a client that takes nothing; for a body at its slowest.
    pub header_timeout: Duration,
    /// Between two requests of a client.
    pub keepalive: Duration,
    /// Of a request's body.
    pub body_bytes_max: u64,
    /// For bodies of requests that wait; as much again for answers that clients have not yet taken.
    pub buffer_bytes: usize,
    /// Connections of clients.
    pub connections_max: usize,
    /// Of them, those that hold a fork: upgrades and streams of events.
    pub upgrades_max: usize,
    /// For requests that are under way when the server is told to stop.
    pub grace: Duration,
    /// For all warm-up requests of a start together, each.
    pub warmup_timeout: Duration,
    /// Requests that the program answers before it is frozen.
    pub warmup: Vec<WarmupRequest>,
    /// Lines for requests.
    pub access_log: AccessLog,
    /// Who may say for whom it asks.
    pub trusted_proxies: TrustedProxies,
    /// Those of them who hand streams on begin each with a header that names the client.
    pub proxy_protocol: bool,
    /// For all clients, if there is one.
    pub tls: Option<Arc<Tls>>,
    /// Threads that serve clients.
    pub threads: usize,
}

impl Settings {
    /// A request that has no fork by then is given up.
    pub(crate) fn queue_timeout(&self) -> Duration {
        self.timeout
    }
}

/// Said to the operator as it happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// Messages on standard error.
    Say,
    /// Only failures.
    Quiet,
}

/// Starts the program, until it waits for connections. It is given the place of the program's output, and what to ask
/// whether to stop.
pub type Start = dyn Fn(&mut dyn Output, &(dyn Fn() -> bool + Sync)) -> Result<Box<dyn Program>, BootError>
    + Send
    + Sync;

/// How far the server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Open,
    Draining,
    Ended,
}

/// Tells a server what to do, from any thread.
#[derive(Clone, Debug, Default)]
pub struct Commands(Arc<Told>);

#[derive(Debug)]
struct Told {
    stops: AtomicU32,
    /// The reloads that have been asked for.
    reloads: AtomicU64,
    /// The number of the last one that has ended, and how.
    reloaded: Mutex<(u64, Result<(), BootError>)>,
    changed: Notify,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            stops: AtomicU32::new(0),
            reloads: AtomicU64::new(0),
            reloaded: Mutex::new((0, Ok(()))),
            changed: Notify::new(),
        }
    }
}

impl Commands {
    /// Ends it once its requests are answered; the second time, at once.
    pub fn stop(&self) {
        self.0.stops.fetch_add(1, Ordering::SeqCst);
        self.0.changed.notify_one();
    }

    /// Starts the program anew beside the one there is, and then has it take its place; reads the certificate again.
    /// The number of this reload: one that waits for another to end may be done with the next.
    pub fn reload(&self) -> u64 {
        let number = self.0.reloads.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.changed.notify_one();
        number
    }

    /// The end of the reload with this number, once it has come.
    #[must_use]
    pub fn reloaded(&self, number: u64) -> Option<Result<(), BootError>> {
        let (last, how) = &*lock(&self.0.reloaded);
        (*last >= number).then(|| how.clone())
    }

    fn stops(&self) -> u32 {
        self.0.stops.load(Ordering::SeqCst)
    }

    async fn stopped(&self, times: u32) {
        while self.stops() < times {
            self.0.changed.notified().await;
        }
    }
}

/// All that connections share.
pub(crate) struct Front {
    pub(crate) settings: Settings,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Log,
    pub(crate) ids: Ids,
    pub(crate) bodies: Budget,
    pub(crate) answers: Budget,
    pub(crate) upgrades: Arc<Semaphore>,
    pool: Mutex<Option<Arc<Pool>>>,
    phase: watch::Sender<Phase>,
}

impl Front {
    pub(crate) fn new(settings: Settings, metrics: Arc<Metrics>, log: Log) -> Self {
        Self {
            bodies: Budget::new(settings.buffer_bytes),
            answers: Budget::new(settings.buffer_bytes),
            upgrades: Arc::new(Semaphore::new(settings.upgrades_max)),
            settings,
            metrics,
            log,
            ids: Ids::new(),
            pool: Mutex::new(None),
            phase: watch::Sender::new(Phase::Open),
        }
    }

    /// The pool that takes requests now. Clients are accepted only once there is one.
    pub(crate) fn pool(&self) -> Option<Arc<Pool>> {
        lock(&self.pool).clone()
    }

    /// Has this one take all requests from here on; the one before it, if any.
    pub(crate) fn set_pool(&self, pool: Option<Arc<Pool>>) -> Option<Arc<Pool>> {
        std::mem::replace(&mut *lock(&self.pool), pool)
    }

    pub(crate) fn is_ending(&self) -> bool {
        *self.phase.borrow() != Phase::Open
    }

    pub(crate) fn readiness(&self) -> Result<(), &'static str> {
        match (self.is_ending(), self.pool()) {
            (true, _) => Err("it is being stopped"),
            (false, None) => Err("the program is being started"),
            (false, Some(_)) => Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at a server from any thread, also when it has ended.
#[derive(Clone)]
pub struct Watch {
    front: Weak<Front>,
    metrics: Arc<Metrics>,
}

impl Watch {
    /// True while it takes requests.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        (self.front.upgrade()).is_some_and(|front| front.readiness().is_ok())
    }

    /// Requests by the way they ended.
    #[must_use]
    pub fn requests(&self) -> Vec<(&'static str, u64)> {
        self.metrics.requests()
    }

    /// Numbers of things that there are now, and that there have been.
    #[must_use]
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        self.metrics.counts()
    }
}

/// A server that has its listeners and its threads.
pub struct Server {
    runtime: tokio::runtime::Runtime,
    listeners: Vec<Bound>,
    control: Option<Bound>,
    front: Arc<Front>,
    start: Arc<Start>,
    notice: Notice,
}

impl Server {
    /// Starts the threads that serve clients; nobody is accepted yet.
    ///
    /// # Errors
    /// The host's, of threads and descriptors.
    pub fn new(
        settings: Settings,
        listeners: Vec<Bound>,
        control: Option<Bound>,
        start: Arc<Start>,
        notice: Notice,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(settings.threads.max(1))
            .thread_name("kvmlet-front")
            .thread_stack_size(1 << 20)
            .enable_all()
            .build()?;
        let metrics = Arc::new(Metrics::default());
        let log = Log::start(Arc::clone(&metrics))?;
        Ok(Self {
            runtime,
            listeners,
            control,
            front: Arc::new(Front::new(settings, metrics, log)),
            start,
            notice,
        })
    }

    /// For looking at it while it runs.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch {
            front: Arc::downgrade(&self.front),
            metrics: Arc::clone(&self.front.metrics),
        }
    }

    /// Serves until it is told to stop.
    ///
    /// # Errors
    /// [`BootError`] if the program does not come so far that it serves.
    pub fn run(self, commands: &Commands) -> Result<(), BootError> {
        let Self {
            runtime,
            listeners,
            control,
            front,
            start,
            notice,
        } = self;
        let course = Course {
            front: Arc::clone(&front),
            start,
            commands: commands.clone(),
            notice,
        };
        let result = runtime.block_on(course.run(listeners, control));
        let pool = front.set_pool(None);
        // What is still under way is dropped, and with it each fork's reason to go on.
        runtime.shutdown_timeout(Duration::from_millis(500));
        if let Some(pool) = pool {
            pool.close();
            if !pool.join(END_PATIENCE) {
                front.log.say("some forks did not end in time");
            }
        }
        if let Some(front) = Arc::into_inner(front) {
            front.log.close(Duration::from_secs(1));
        }
        result
    }
}

/// A certificate that was read and a program that was started, or why not.
type Reloaded = (Result<(), BootError>, Result<Arc<Pool>, BootError>);

struct Course {
    front: Arc<Front>,
    start: Arc<Start>,
    commands: Commands,
    notice: Notice,
}

impl Course {
    fn note(&self, text: &str) {
        if self.notice == Notice::Say {
            self.front.log.say(text);
        }
    }

    async fn run(&self, bound: Vec<Bound>, control: Option<Bound>) -> Result<(), BootError> {
        let host = |error: io::Error| BootError::new("host", error.to_string());
        if let Some(control) = &control {
            let listener = control.listener().map_err(host)?;
            tokio::spawn(control::serve(Arc::clone(&self.front), listener));
            self.note(&format!("control at {}", control.name()));
        }
        let booted = tokio::select! {
            booted = self.boot() => booted?,
            () = self.commands.stopped(1) => return Ok(()),
        };
        self.front.set_pool(Some(booted));
        let (alive, mut ended) = mpsc::channel::<()>(1);
        let mut accepting = Vec::new();
        let mut names = Vec::new();
        let room = Arc::new(Semaphore::new(self.front.settings.connections_max));
        for one in &bound {
            let listener = one.listener().map_err(host)?;
            names.push(one.name().to_owned());
            accepting.push(tokio::spawn(accept(
                Arc::clone(&self.front),
                listener,
                Arc::clone(&room),
                alive.clone(),
            )));
        }
        drop(alive);
        self.note(&format!(
            "serving at {}{} with {} forks",
            names.join(", "),
            if self.front.settings.tls.is_some() {
                " by TLS"
            } else {
                ""
            },
            self.front.settings.forks
        ));
        self.obey().await;
        // From here on nobody can connect any more.
        for task in &accepting {
            task.abort();
        }
        for task in accepting {
            let _ = task.await;
        }
        drop(bound);
        self.front.phase.send_replace(Phase::Draining);
        let drained = async {
            let _ = ended.recv().await;
            // Lines for the log are written once the forks are reset.
            while self.front.metrics.forks_busy.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        tokio::select! {
            () = drained => {}
            () = tokio::time::sleep(self.front.settings.grace) => {
                self.note("some requests were not done in time");
            }
            () = self.commands.stopped(2) => {}
        }
        self.front.phase.send_replace(Phase::Ended);
        Ok(())
    }

    /// Does as it is told until it is told to stop.
    async fn obey(&self) {
        let mut reloading: Option<(u64, JoinHandle<Reloaded>)> = None;
        loop {
            if self.commands.stops() > 0 {
                // Whatever it starts ends with the runtime.
                return;
            }
            let asked = self.commands.0.reloads.load(Ordering::SeqCst);
            let ended = lock(&self.commands.0.reloaded).0;
            if asked > ended && reloading.is_none() {
                let certificate = self.read_certificate();
                let boot = self.boot();
                let both = async move { (certificate.await, boot.await) };
                reloading = Some((asked, tokio::spawn(both)));
            }
            let reloaded = async {
                match &mut reloading {
                    Some((number, task)) => (*number, task.await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.commands.0.changed.notified() => {}
                (number, done) = reloaded => {
                    reloading = None;
                    let how = match done {
                        Ok(reloaded) => self.reloaded(reloaded),
                        Err(_) => {
                            self.front.log.say("it was not reloaded: a fault in kvmlet");
                            Err(BootError::new("internal", "a fault in kvmlet while it was reloaded"))
                        }
                    };
                    *lock(&self.commands.0.reloaded) = (number, how);
                }
            }
        }
    }

    /// Takes what a reload has made, and says what it has not.
    fn reloaded(&self, (certificate, pool): Reloaded) -> Result<(), BootError> {
        if let Err(error) = &certificate {
            self.front.log.say(&format!(
                "the certificate was not read again, and the one before it is shown: {error}"
            ));
        }
        match pool {
            Ok(pool) => {
                self.replace(pool);
                certificate
            }
            Err(error) => {
                self.front.log.say(&format!(
                    "the program was not reloaded, and the one before it serves on: {error}"
                ));
                Err(error)
            }
        }
    }

    /// Has later handshakes show the certificate that is in its files now, if there is one.
    fn read_certificate(&self) -> impl Future<Output = Result<(), BootError>> + Send + use<> {
        let front = Arc::clone(&self.front);
        let reading = tokio::task::spawn_blocking(move || {
            let Some(tls) = &front.settings.tls else {
                return Ok(());
            };
            tls.read_again().map_err(|SetupError { message, remedy }| {
                BootError::new("bad_argument", format!("{message}; {remedy}"))
            })?;
            front.metrics.certificates.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        async {
            let fault = |_| BootError::new("internal", "a fault in kvmlet");
            reading.await.map_err(fault)?
        }
    }

    fn replace(&self, pool: Arc<Pool>) {
        let before = self.front.set_pool(Some(pool));
        self.front.metrics.reloads.fetch_add(1, Ordering::Relaxed);
        self.note("reloaded");
        // It serves what it has, and goes.
        if let Some(before) = before {
            before.close();
        }
    }

    /// Starts the program, warms it, freezes and forks it.
    fn boot(&self) -> impl Future<Output = Result<Arc<Pool>, BootError>> + Send + use<> {
        let front = Arc::clone(&self.front);
        let start = Arc::clone(&self.start);
        let commands = self.commands.clone();
        let runtime = tokio::runtime::Handle::current();
        let booting = tokio::task::spawn_blocking(move || {
            let stop = || commands.stops() > 0;
            let mut lines = Lines::of_start(&front.log);
            let mut program = start(&mut lines, &stop)?;
            drop(lines);
            for warmup in &front.settings.warmup {
                if stop() {
                    break;
                }
                let timeout = front.settings.warmup_timeout;
                warm(program.as_mut(), warmup, timeout, &runtime, &front.log)?;
            }
            let master = program.freeze()?;
            let settings = PoolSettings {
                forks: front.settings.forks,
                queue_max: front.settings.queue_max,
                begin: match front.settings.isolate {
                    Isolate::None => Begin::AsLeft,
                    Isolate::Request | Isolate::Connection => Begin::Clean,
                },
            };
            Pool::start(master, settings, &front.metrics, &front.log)
                .map(Arc::new)
                .map_err(|error| BootError::new("host", error))
        });
        async {
            let fault = |_| BootError::new("internal", "a fault in kvmlet while it started");
            booting.await.map_err(fault)?
        }
    }
}

async fn accept(
    front: Arc<Front>,
    listener: Listener,
    room: Arc<Semaphore>,
    alive: mpsc::Sender<()>,
) {
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let front = Arc::clone(&front);
        let alive = alive.clone();
        let mut phase = front.phase.subscribe();
        tokio::spawn(async move {
            // One that came before the end was asked for is served, unless it takes its time.
            let is_late = async {
                let _ = phase.wait_for(|phase| *phase != Phase::Open).await;
                tokio::time::sleep(LAST_ARRIVAL_PATIENCE).await;
            };
            let arrived = tokio::select! {
                biased;
                arrived = arrival::arrive(&front, stream, peer) => arrived,
                () = is_late => None,
            };
            match (arrived, front.settings.isolate) {
                (None, _) => {}
                (Some(arrived), Isolate::Connection) => {
                    stream::serve(front, arrived, phase).await;
                }
                (Some(arrived), Isolate::Request | Isolate::None) => {
                    connection::serve(front, arrived, phase).await;
                }
            }
            drop((permit, alive));
        });
    }
}
