//! The server: programs are started, warmed, frozen and forked; clients are accepted until it is told to stop.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use crate::access_log::AccessLog;
use crate::answer::Failure;
use crate::budget::Budget;
use crate::fork::BootError;
use crate::id::Ids;
use crate::keeper::Keeper;
use crate::listener::{Bound, Listener, SetupError};
use crate::log::Log;
use crate::metrics::{self, Metrics, ProgramMetrics, StorageMetrics};
use crate::peer::{Peer, TrustedProxies};
use crate::pool::Pool;
use crate::routes::{self, NoRoute};
use crate::service::{Isolate, ProgramSettings, Service, Start};
use crate::socket::Stream;
use crate::storage::Storage;
use crate::tls::Tls;
use crate::{arrival, connection, control, stream};

/// After an accept that failed, as it does when there are too many descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Clients of each socket that are still taken when the server is being stopped: what its backlog may hold.
const LATE_MAX: u32 = 4096;
/// Time for handshakes that are under way when the server is being stopped.
const LAST_ARRIVAL_PATIENCE: Duration = Duration::from_secs(1);
/// Time for clients to come who connected before the end was asked for.
const LAST_ACCEPT_PATIENCE: Duration = Duration::from_millis(5);
/// Time for forks that have been told to end.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// Everything that an operator may set, beside what is of one program.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For a proxy's header and a handshake; for a request's head; for a client that takes nothing; for a body at its slowest.
    pub header_timeout: Duration,
    /// Between two requests of a client.
    pub keepalive: Duration,
    /// For bodies of requests that wait; as much again for answers that clients have not yet taken.
    pub buffer_bytes: usize,
    /// Connections of clients.
    pub connections_max: usize,
    /// For requests that are under way when the server is told to stop.
    pub grace: Duration,
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

/// Said to the operator as it happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// Messages on standard error.
    Say,
    /// Only failures.
    Quiet,
}

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
    /// Another process takes the clients from here on.
    gives_way: AtomicBool,
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
            gives_way: AtomicBool::new(false),
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

    /// As [`Commands::stop`]: another process has the same sockets and takes the clients, those of the control address
    /// too.
    pub fn give_way(&self) {
        self.0.gives_way.store(true, Ordering::SeqCst);
        self.stop();
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

    pub(crate) fn stops(&self) -> u32 {
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
    services: Vec<Arc<Service>>,
    storages: Vec<Storage>,
    /// Of requests that are for no program.
    unrouted: Arc<ProgramMetrics>,
    phase: watch::Sender<Phase>,
}

impl Front {
    /// A front before at least one program.
    pub(crate) fn new(settings: Settings, services: Vec<Service>) -> io::Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let services: Vec<_> = services.into_iter().map(Arc::new).collect();
        let only = services.iter().find(|one| one.settings.name.is_empty());
        Ok(Self {
            log: Log::start(Arc::clone(&metrics))?,
            bodies: Budget::new(settings.buffer_bytes),
            answers: Budget::new(settings.buffer_bytes),
            unrouted: only.map_or_else(Arc::default, |only| Arc::clone(&only.metrics)),
            services,
            storages: Vec::new(),
            settings,
            metrics,
            ids: Ids::new(),
            phase: watch::Sender::new(Phase::Open),
        })
    }

    /// This one, with storages that its programs may ask.
    fn with_storages(self, storages: Vec<Storage>) -> Self {
        Self { storages, ..self }
    }

    pub(crate) fn storage_metrics(&self) -> Vec<Arc<StorageMetrics>> {
        let storages = self.storages.iter();
        storages.map(|one| Arc::clone(one.metrics())).collect()
    }

    pub(crate) fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// The program that a request is for.
    pub(crate) fn service(&self, host: &str, path: &str) -> Result<Arc<Service>, Failure> {
        let routes = self.services.iter().map(|one| &one.settings.route);
        match routes::find(routes, host, path) {
            Ok(place) => Ok(Arc::clone(&self.services[place])),
            Err(NoRoute::Nobody) => Err(Failure::no_route()),
            Err(NoRoute::GoesUp) => Err(Failure::unclear_path()),
        }
    }

    /// The program that gets connections of any protocol, if it is one of those.
    pub(crate) fn of_streams(&self) -> Option<&Arc<Service>> {
        let first = self.services.first();
        first.filter(|first| first.settings.isolate == Isolate::Connection)
    }

    /// Of each program, and of what is for none.
    pub(crate) fn program_metrics(&self) -> Vec<Arc<ProgramMetrics>> {
        let of_services = self.services.iter().map(|one| Arc::clone(&one.metrics));
        let mut all: Vec<_> = of_services.collect();
        if !all.iter().any(|one| Arc::ptr_eq(one, &self.unrouted)) {
            all.push(Arc::clone(&self.unrouted));
        }
        all
    }

    /// Where requests are counted whose program is not known.
    pub(crate) fn unrouted(&self) -> &Arc<ProgramMetrics> {
        &self.unrouted
    }

    pub(crate) fn is_ending(&self) -> bool {
        *self.phase.borrow() != Phase::Open
    }

    pub(crate) fn readiness(&self) -> Result<(), &'static str> {
        let has_pool = |one: &Arc<Service>| one.pool().is_some();
        match (self.is_ending(), self.services.iter().all(has_pool)) {
            (true, _) => Err("it is being stopped"),
            (false, false) => Err("the program is being started"),
            (false, true) => Ok(()),
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
    programs: Vec<Arc<ProgramMetrics>>,
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
        metrics::requests(&self.programs)
    }

    /// Numbers of things that there are now, and that there have been.
    #[must_use]
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        self.metrics.counts(&self.programs)
    }
}

/// A server that has its listeners and its threads.
pub struct Server {
    runtime: tokio::runtime::Runtime,
    listeners: Vec<Bound>,
    control: Option<Bound>,
    front: Arc<Front>,
    notice: Notice,
    keeper: Option<Keeper>,
}

impl Server {
    /// Starts the threads that serve clients; nobody is accepted yet.
    ///
    /// # Errors
    /// The host's, of threads and descriptors.
    pub fn new(
        settings: Settings,
        programs: Vec<(ProgramSettings, Arc<Start>)>,
        storages: Vec<Storage>,
        listeners: Vec<Bound>,
        control: Option<Bound>,
        notice: Notice,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(settings.threads.max(1))
            .thread_name("kvmlet-front")
            .thread_stack_size(1 << 20)
            .enable_all()
            .build()?;
        let services = programs
            .into_iter()
            .map(|(settings, start)| Service::new(settings, start))
            .collect();
        Ok(Self {
            runtime,
            listeners,
            control,
            front: Arc::new(Front::new(settings, services)?.with_storages(storages)),
            notice,
            keeper: None,
        })
    }

    /// Has it be one of several processes, one after the other.
    #[must_use]
    pub fn kept_by(self, keeper: Keeper) -> Self {
        Self {
            keeper: Some(keeper),
            ..self
        }
    }

    /// For looking at it while it runs.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch {
            front: Arc::downgrade(&self.front),
            metrics: Arc::clone(&self.front.metrics),
            programs: self.front.program_metrics(),
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
            notice,
            keeper,
        } = self;
        let course = Course {
            front: Arc::clone(&front),
            commands: commands.clone(),
            notice,
            answering: Arc::default(),
        };
        let result = runtime.block_on(course.run(listeners, control, keeper));
        let answering = std::mem::take(&mut *lock(&course.answering));
        drop(course);
        let services = front.services().iter();
        let pools: Vec<_> = services.filter_map(|one| one.set_pool(None)).collect();
        // What is still under way is dropped, and with it each fork's reason to go on.
        runtime.shutdown_timeout(Duration::from_millis(500));
        pools.iter().for_each(|pool| pool.close());
        let until = Instant::now() + END_PATIENCE;
        let left = || until.saturating_duration_since(Instant::now());
        let late = pools.iter().filter(|pool| !pool.join(left())).count();
        if late > 0 {
            front.log.say("some forks did not end in time");
        }
        // Forks may ask them to the end.
        front.storages.iter().for_each(Storage::close);
        while !answering.iter().all(std::thread::JoinHandle::is_finished) && !left().is_zero() {
            std::thread::park_timeout(Duration::from_millis(2));
        }
        if let Some(front) = Arc::into_inner(front) {
            front.log.close(Duration::from_secs(1));
        }
        result
    }
}

/// A certificate that was read and programs that were started, or why not.
type Reloaded = (Result<(), BootError>, Result<Vec<Arc<Pool>>, BootError>);

struct Course {
    front: Arc<Front>,
    commands: Commands,
    notice: Notice,
    /// The threads of storages.
    answering: Arc<Mutex<Vec<std::thread::JoinHandle<()>>>>,
}

impl Course {
    fn note(&self, text: &str) {
        if self.notice == Notice::Say {
            self.front.log.say(text);
        }
    }

    fn control(&self, bound: Option<&Bound>) -> io::Result<Option<JoinHandle<()>>> {
        let Some(bound) = bound else { return Ok(None) };
        let listener = bound.listener()?;
        self.note(&format!("control at {}", bound.name()));
        let serving = control::serve(Arc::clone(&self.front), listener);
        Ok(Some(tokio::spawn(serving)))
    }

    async fn run(
        &self,
        bound: Vec<Bound>,
        control: Option<Bound>,
        keeper: Option<Keeper>,
    ) -> Result<(), BootError> {
        let host = |error: io::Error| BootError::new("host", error.to_string());
        // Until then the other one answers at the control address.
        let waits = keeper.as_ref().is_some_and(Keeper::has_another);
        let early = control.as_ref().filter(|_| !waits);
        let mut controlled = self.control(early).map_err(host)?;
        let started = async {
            self.start_storages().await?;
            self.boot().await
        };
        let booted = tokio::select! {
            booted = started => booted?,
            () = self.commands.stopped(1) => return Ok(()),
        };
        for (service, pool) in self.front.services().iter().zip(booted) {
            service.set_pool(Some(pool));
        }
        if waits {
            controlled = self.control(control.as_ref()).map_err(host)?;
        }
        let (alive, mut ended) = mpsc::channel::<()>(1);
        let mut accepting = Vec::new();
        let mut names = Vec::new();
        let room = Arc::new(Semaphore::new(self.front.settings.connections_max));
        let closing = watch::Sender::new(false);
        for one in &bound {
            let listener = one.listener().map_err(host)?;
            names.push(one.name().to_owned());
            accepting.push(tokio::spawn(accept(
                Arc::clone(&self.front),
                listener,
                Arc::clone(&room),
                alive.clone(),
                closing.subscribe(),
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
            (self.front.services().iter())
                .map(|one| one.settings.forks)
                .sum::<usize>()
        ));
        if let Some(keeper) = keeper {
            keeper.tell();
        }
        self.obey().await;
        // From here on nobody can connect any more.
        closing.send_replace(true);
        for task in accepting {
            let _ = task.await;
        }
        drop(bound);
        if let Some(controlled) = controlled
            && self.commands.0.gives_way.load(Ordering::SeqCst)
        {
            controlled.abort();
            drop(control);
        }
        self.front.phase.send_replace(Phase::Draining);
        let drained = async {
            let _ = ended.recv().await;
            // Lines for the log are written once the forks are reset.
            let busy = |one: &Arc<Service>| one.metrics.forks_busy.load(Ordering::Relaxed) > 0;
            while self.front.services().iter().any(busy) {
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
    fn reloaded(&self, (certificate, pools): Reloaded) -> Result<(), BootError> {
        if let Err(error) = &certificate {
            self.front.log.say(&format!(
                "the certificate was not read again, and the one before it is shown: {error}"
            ));
        }
        match pools {
            Ok(pools) => {
                self.replace(pools);
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

    fn replace(&self, pools: Vec<Arc<Pool>>) {
        let services = self.front.services().iter().zip(pools);
        let before: Vec<_> = services
            .filter_map(|(service, pool)| service.set_pool(Some(pool)))
            .collect();
        self.front.metrics.reloads.fetch_add(1, Ordering::Relaxed);
        self.note("reloaded");
        // They serve what they have, and go.
        before.iter().for_each(|pool| pool.close());
    }

    /// Starts all storages, one after another: programs may ask them while they start.
    fn start_storages(&self) -> impl Future<Output = Result<(), BootError>> + Send + use<> {
        let front = Arc::clone(&self.front);
        let commands = self.commands.clone();
        let answering = Arc::clone(&self.answering);
        let starting = tokio::task::spawn_blocking(move || {
            for storage in &front.storages {
                let thread = storage.start(&front.log, &|| commands.stops() > 0)?;
                lock(&answering).push(thread);
            }
            Ok(())
        });
        async {
            let fault = |_| BootError::new("internal", "a fault in kvmlet while it started");
            starting.await.map_err(fault)?
        }
    }

    /// Starts all programs, each in a thread of its own.
    fn boot(&self) -> impl Future<Output = Result<Vec<Arc<Pool>>, BootError>> + Send + use<> {
        let runtime = tokio::runtime::Handle::current();
        // The first one that does not come up, for which no other goes on.
        let failed = Arc::new(OnceLock::new());
        let services = self.front.services().iter();
        let booting: Vec<_> = services
            .map(|service| {
                let service = Arc::clone(service);
                let log = self.front.log.clone();
                let commands = self.commands.clone();
                let runtime = runtime.clone();
                let failed = Arc::clone(&failed);
                tokio::task::spawn_blocking(move || {
                    let stop = || commands.stops() > 0 || failed.get().is_some();
                    let booted = service.boot(&log, &stop, &runtime);
                    booted.map_err(|error| failed.get_or_init(|| error).clone())
                })
            })
            .collect();
        async {
            let fault = |_| BootError::new("internal", "a fault in kvmlet while it started");
            let mut pools = Vec::new();
            for one in booting {
                pools.push(one.await.map_err(fault)?);
            }
            pools.into_iter().collect()
        }
    }
}

/// Waits until there shall be no more clients.
async fn told(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

/// The next client and its place; `None` once there shall be no more.
async fn next_client(
    listener: &Listener,
    room: &Arc<Semaphore>,
    closing: &mut watch::Receiver<bool>,
) -> Option<(OwnedSemaphorePermit, Stream, Peer)> {
    loop {
        let permit = tokio::select! {
            permit = Arc::clone(room).acquire_owned() => permit.ok()?,
            () = told(closing) => Arc::clone(room).try_acquire_owned().ok()?,
        };
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            // Who has connected before the end was asked for is served.
            () = told(closing) => {
                tokio::time::timeout(LAST_ACCEPT_PATIENCE, listener.accept()).await.ok()?
            }
        };
        match accepted {
            Ok((stream, peer)) => return Some((permit, stream, peer)),
            Err(_) if *closing.borrow() => return None,
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn accept(
    front: Arc<Front>,
    listener: Listener,
    room: Arc<Semaphore>,
    alive: mpsc::Sender<()>,
    mut closing: watch::Receiver<bool>,
) {
    let mut late = 0;
    while late < LATE_MAX
        && let Some((permit, stream, peer)) = next_client(&listener, &room, &mut closing).await
    {
        late += u32::from(*closing.borrow());
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
            match (arrived, front.of_streams().map(Arc::clone)) {
                (None, _) => {}
                (Some(arrived), Some(service)) => {
                    stream::serve(front, service, arrived, phase).await;
                }
                (Some(arrived), None) => connection::serve(front, arrived, phase).await,
            }
            drop((permit, alive));
        });
    }
}
