//! A program behind the front: its settings, its pool of forks, and the way to the next one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::fork::{BootError, Output, Program};
use crate::log::{Lines, Log};
use crate::metrics::ProgramMetrics;
use crate::pool::{Begin, Pool, PoolSettings};
use crate::routes::Route;
use crate::warm::{WarmupRequest, warm};

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

/// Everything that an operator may set of one program.
#[derive(Clone, Debug)]
pub struct ProgramSettings {
    /// Its name in metrics and lines of the log; empty if it is the only one.
    pub name: String,
    /// The requests that it gets.
    pub route: Route,
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
    /// Of a request's body.
    pub body_bytes_max: u64,
    /// Connections that hold a fork: upgrades and streams of events.
    pub upgrades_max: usize,
    /// For all warm-up requests of a start together, each.
    pub warmup_timeout: Duration,
    /// Requests that the program answers before it is frozen.
    pub warmup: Vec<WarmupRequest>,
}

/// Starts the program, until it waits for connections. It is given the place of the program's output, and what to ask
/// whether to stop.
pub type Start = dyn Fn(&mut dyn Output, &(dyn Fn() -> bool + Sync)) -> Result<Box<dyn Program>, BootError>
    + Send
    + Sync;

/// A program behind the front.
pub(crate) struct Service {
    pub(crate) settings: ProgramSettings,
    pub(crate) metrics: Arc<ProgramMetrics>,
    pub(crate) upgrades: Arc<Semaphore>,
    start: Arc<Start>,
    pool: Mutex<Option<Arc<Pool>>>,
}

impl Service {
    pub(crate) fn new(settings: ProgramSettings, start: Arc<Start>) -> Self {
        Self {
            metrics: Arc::new(ProgramMetrics::new(&settings.name)),
            upgrades: Arc::new(Semaphore::new(settings.upgrades_max)),
            settings,
            start,
            pool: Mutex::new(None),
        }
    }

    /// The pool that takes requests now. Clients are accepted only once there is one.
    pub(crate) fn pool(&self) -> Option<Arc<Pool>> {
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.clone()
    }

    /// Has this one take all requests from here on; the one before it, if any.
    pub(crate) fn set_pool(&self, pool: Option<Arc<Pool>>) -> Option<Arc<Pool>> {
        let mut there = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *there, pool)
    }

    /// Starts the program, warms it, freezes and forks it.
    pub(crate) fn boot(
        &self,
        log: &Log,
        stop: &(dyn Fn() -> bool + Sync),
        runtime: &tokio::runtime::Handle,
    ) -> Result<Arc<Pool>, BootError> {
        let settings = &self.settings;
        log.forget_denials(&settings.name);
        let booted = || {
            let mut program = {
                let mut lines = Lines::of_start(log, &settings.name);
                (self.start)(&mut lines, stop)?
            };
            for warmup in &settings.warmup {
                if stop() {
                    break;
                }
                let mut lines = Lines::of_start(log, &settings.name);
                let timeout = settings.warmup_timeout;
                warm(program.as_mut(), warmup, timeout, runtime, &mut lines)?;
            }
            let of_pool = PoolSettings {
                name: settings.name.clone(),
                forks: settings.forks,
                queue_max: settings.queue_max,
                begin: match settings.isolate {
                    Isolate::None => Begin::AsLeft,
                    Isolate::Request | Isolate::Connection => Begin::Clean,
                },
            };
            Pool::start(program.freeze()?, of_pool, &self.metrics, log)
                .map(Arc::new)
                .map_err(|error| BootError::new("host", error))
        };
        booted().map_err(|error: BootError| match settings.name.as_str() {
            "" => error,
            name => BootError {
                message: format!("program {name}: {}", error.message),
                ..error
            },
        })
    }
}
