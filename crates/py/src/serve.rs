//! `Server` as Python sees it; see `_native.pyi`.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use kvmlet_engine::{Program, Streams, Trace};
use kvmlet_serve::{
    AccessLog, BootError, Bound, Commands, Isolate, Keeper, Notice, Output, Place, ProgramSettings,
    Route, Settings, SetupError, Start, StorageSettings, Tls, TrustedProxies, WarmupRequest, Watch,
    raise_descriptor_limit,
};
use pyo3::prelude::*;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::sandbox::native;
use crate::{NativeError, Policy, calls_named, duration};

fn bad(message: impl Into<String>) -> PyErr {
    NativeError::new_err(("bad_argument", message.into()))
}

fn unusable(error: &SetupError) -> PyErr {
    let SetupError { message, remedy } = error;
    bad(format!("{message}; {remedy}"))
}

fn bind(text: &str) -> PyResult<Bound> {
    let place: Place = text.parse().map_err(|error| unusable(&error))?;
    place.bind().map_err(|error| unusable(&error))
}

/// What was said, where words of Python's name it.
fn named<T: Copy>(name: &str, all: &[(&str, T)]) -> PyResult<T> {
    let found = all.iter().find(|(known, _)| *known == name);
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| bad(format!("'{name}' is none of the words that stand here")))
}

fn time(seconds: f64) -> PyResult<Duration> {
    Ok(duration(Some(seconds))?.unwrap_or(Duration::ZERO))
}

/// Signals that stop a server or have it reload.
#[derive(Debug)]
struct Signals {
    stops: Vec<Arc<AtomicBool>>,
    reload: Arc<AtomicBool>,
    come: UnixStream,
}

impl Signals {
    /// From here on they do what a server does with them.
    fn take() -> std::io::Result<Self> {
        #[expect(
            clippy::disallowed_methods,
            reason = "a pipe of this process, for its signals"
        )]
        let (come, tell) = UnixStream::pair()?;
        let watch = |signal| {
            let flag = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
            signal_hook::low_level::pipe::register(signal, tell.try_clone()?)?;
            Ok::<_, std::io::Error>(flag)
        };
        let stops = vec![watch(SIGTERM)?, watch(SIGINT)?];
        let reload = watch(SIGHUP)?;
        Ok(Self {
            stops,
            reload,
            come,
        })
    }

    /// Hands them on for as long as the process lives.
    fn hand_on(mut self, commands: &Commands, is_kept: bool) {
        let mut byte = [0];
        while matches!(self.come.read(&mut byte), Ok(1)) {
            for stop in &self.stops {
                if stop.swap(false, Ordering::SeqCst) {
                    commands.stop();
                }
            }
            match (self.reload.swap(false, Ordering::SeqCst), is_kept) {
                (false, _) => {}
                (true, false) => {
                    commands.reload();
                }
                // Another process has been started in the place of this one.
                (true, true) => commands.give_way(),
            }
        }
    }
}

/// The certificate of a server and its key, as files; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
pub struct CertificateFiles {
    files: Arc<kvmlet_serve::CertificateFiles>,
}

#[pymethods]
impl CertificateFiles {
    #[new]
    fn new(certificate: &[u8], key: &[u8]) -> Self {
        let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
        let files = kvmlet_serve::CertificateFiles::new(path(certificate), path(key));
        Self {
            files: Arc::new(files),
        }
    }

    fn helper_end(&self) -> PyResult<i32> {
        let end = self.files.helper().map_err(|error| {
            NativeError::new_err(("host", format!("a process for certificates: {error}")))
        })?;
        Ok(OwnedFd::from(end).into_raw_fd())
    }

    fn serve(&self, py: Python<'_>) {
        // The end is standard input: the process has nothing else.
        if let Ok(end) = std::io::stdin().as_fd().try_clone_to_owned() {
            py.detach(|| self.files.serve(UnixStream::from(end)));
        }
    }

    fn warning(&self) -> Option<String> {
        self.files.warning()
    }
}

/// Names and values of the environment.
type Variables = Vec<(Vec<u8>, Vec<u8>)>;

/// A program, its environment and its limits: memory, processes, open files, and output that is held.
fn program(
    (argv, env): (Vec<Vec<u8>>, Variables),
    policy: &Policy,
    (memory_bytes, processes_max, files_max, output_limit_bytes): (u64, usize, u64, u64),
    calls: &str,
) -> PyResult<Program> {
    Ok(Program {
        argv,
        env,
        policy: policy.policy.clone(),
        access: Arc::clone(&policy.access),
        cwd: policy.cwd.clone(),
        streams: Streams::Capture {
            input: Vec::new(),
            output_limit_bytes,
        },
        timeout: None,
        cpu_time: None,
        memory_bytes,
        disk: None,
        processes_max,
        files_max,
        trace: Trace::Off,
        calls: calls_named(calls)?,
    })
}

/// A program that others ask, and that is not reset; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
pub struct Storage {
    storage: kvmlet_serve::Storage,
}

#[pymethods]
impl Storage {
    #[new]
    #[pyo3(signature = (argv, *, env, policy, memory_bytes, processes_max, output_limit_bytes, calls, name, concurrent, timeout_s, boot_timeout_s))]
    #[allow(clippy::too_many_arguments)] // the keywords of one Python call
    fn new(
        argv: Vec<Vec<u8>>,
        env: Vec<(Vec<u8>, Vec<u8>)>,
        policy: PyRef<'_, Policy>,
        memory_bytes: u64,
        processes_max: usize,
        output_limit_bytes: u64,
        calls: &str,
        name: String,
        concurrent: usize,
        timeout_s: f64,
        boot_timeout_s: f64,
    ) -> PyResult<Self> {
        let settings = StorageSettings {
            name,
            concurrent,
            timeout: time(timeout_s)?,
            boot_timeout: time(boot_timeout_s)?,
        };
        let limits = (
            memory_bytes,
            processes_max,
            kvmlet_engine::FILES_MOST,
            output_limit_bytes,
        );
        let program = program((argv, env), &policy, limits, calls)?;
        Ok(Self {
            storage: kvmlet_serve::Storage::new(settings, program),
        })
    }
}

/// A warm-up request: its line, fields, body and status.
type Warmup = (String, Vec<String>, Vec<u8>, Option<u16>);

/// A program as a server gets it; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
pub struct ServedProgram {
    settings: ProgramSettings,
    program: Arc<Program>,
    guest_port: Option<u16>,
    request_memory_bytes: Option<u64>,
    boot_timeout: Duration,
    storages: Vec<kvmlet_serve::Storage>,
}

#[pymethods]
impl ServedProgram {
    #[new]
    #[pyo3(signature = (argv, *, env, policy, memory_bytes, request_memory_bytes, processes_max, output_limit_bytes, calls, name, hosts, path, guest_port, isolate, forks, queue_max, timeout_s, connection_timeout_s, idle_timeout_s, boot_timeout_s, body_bytes_max, upgrades_max, warmup, storages, files_max=kvmlet_engine::FILES_MOST))]
    #[allow(clippy::too_many_arguments)] // the keywords of one Python call
    fn new(
        argv: Vec<Vec<u8>>,
        env: Vec<(Vec<u8>, Vec<u8>)>,
        policy: PyRef<'_, Policy>,
        memory_bytes: u64,
        request_memory_bytes: Option<u64>,
        processes_max: usize,
        output_limit_bytes: u64,
        calls: &str,
        name: String,
        hosts: Vec<String>,
        path: &str,
        guest_port: Option<u16>,
        isolate: &str,
        forks: usize,
        queue_max: usize,
        timeout_s: f64,
        connection_timeout_s: Option<f64>,
        idle_timeout_s: f64,
        boot_timeout_s: f64,
        body_bytes_max: u64,
        upgrades_max: usize,
        warmup: Vec<Warmup>,
        storages: Vec<PyRef<'_, Storage>>,
        files_max: u64,
    ) -> PyResult<Self> {
        let boot_timeout = time(boot_timeout_s)?;
        let warmup = warmup
            .into_iter()
            .map(|(line, fields, body, status)| WarmupRequest::new(&line, &fields, body, status))
            .collect::<Result<Vec<_>, String>>()
            .map_err(bad)?;
        let isolate = named(
            isolate,
            &[
                ("request", Isolate::Request),
                ("connection", Isolate::Connection),
                ("none", Isolate::None),
            ],
        )?;
        let settings = ProgramSettings {
            name,
            route: Route::new(hosts, path),
            isolate,
            forks,
            queue_max,
            timeout: time(timeout_s)?,
            connection_timeout: duration(connection_timeout_s)?,
            idle_timeout: time(idle_timeout_s)?,
            body_bytes_max,
            upgrades_max,
            warmup_timeout: boot_timeout,
            warmup,
        };
        let limits = (memory_bytes, processes_max, files_max, output_limit_bytes);
        Ok(Self {
            settings,
            program: Arc::new(program((argv, env), &policy, limits, calls)?),
            guest_port,
            request_memory_bytes,
            boot_timeout,
            storages: storages.iter().map(|one| one.storage.clone()).collect(),
        })
    }
}

impl ServedProgram {
    fn behind_a_front(&self) -> (ProgramSettings, Arc<Start>) {
        let program = Arc::clone(&self.program);
        let (guest_port, boot_timeout) = (self.guest_port, self.boot_timeout);
        let request_memory_bytes = self.request_memory_bytes;
        let storages = self.storages.clone();
        let start = move |output: &mut dyn Output, stop: &(dyn Fn() -> bool + Sync)| {
            let started = kvmlet_serve::engine::start(
                &program,
                guest_port,
                request_memory_bytes,
                &storages,
                boot_timeout,
                output,
                stop,
            );
            started.map_err(|error| BootError {
                kind: format!("serve_{}", error.kind),
                ..error
            })
        };
        (self.settings.clone(), Arc::new(start))
    }
}

/// Everything that a run of a server takes.
struct Parts {
    settings: Settings,
    listeners: Vec<Bound>,
    control: Option<Bound>,
    programs: Vec<(ProgramSettings, Arc<Start>)>,
    storages: Vec<kvmlet_serve::Storage>,
    notice: Notice,
    signals: Option<Signals>,
    keeper: Option<Keeper>,
}

/// A server that stands before programs; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
pub struct Server {
    /// `None` once it has run.
    parts: Mutex<Option<Parts>>,
    commands: Commands,
    names: Vec<String>,
    /// There is one once it runs.
    watch: Arc<OnceLock<Watch>>,
}

#[pymethods]
impl Server {
    #[new]
    #[pyo3(signature = (programs, *, storages, listen, control, header_timeout_s, keepalive_s, grace_s, buffer_bytes, connections_max, access_log, trusted_proxies, proxy_protocol, tls, threads, quiet, signals, keeper=None, takes_over=false))]
    #[allow(clippy::too_many_arguments)] // the keywords of one Python call
    fn new(
        programs: Vec<PyRef<'_, ServedProgram>>,
        storages: Vec<PyRef<'_, Storage>>,
        listen: Vec<String>,
        control: Option<String>,
        header_timeout_s: f64,
        keepalive_s: f64,
        grace_s: f64,
        buffer_bytes: usize,
        connections_max: usize,
        access_log: &str,
        trusted_proxies: Vec<String>,
        proxy_protocol: bool,
        tls: Option<PyRef<'_, CertificateFiles>>,
        threads: usize,
        quiet: bool,
        signals: bool,
        keeper: Option<i32>,
        takes_over: bool,
    ) -> PyResult<Self> {
        let first = programs.first().ok_or_else(|| bad("no program"))?;
        let isolate = first.settings.isolate;
        let tls = tls
            .map(|tls| Tls::new(Arc::clone(&tls.files), isolate).map(Arc::new))
            .transpose()
            .map_err(|error| unusable(&error))?;
        let settings = Settings {
            header_timeout: time(header_timeout_s)?,
            keepalive: time(keepalive_s)?,
            buffer_bytes,
            connections_max,
            grace: time(grace_s)?,
            access_log: named(
                access_log,
                &[
                    ("off", AccessLog::Off),
                    ("common", AccessLog::Common),
                    ("json", AccessLog::Json),
                ],
            )?,
            trusted_proxies: proxies(&trusted_proxies)?,
            proxy_protocol,
            tls,
            threads,
        };
        // The limit of a caller's process is the caller's.
        if signals {
            raise_descriptor_limit();
        }
        let listeners = listen
            .iter()
            .map(|place| bind(place))
            .collect::<PyResult<Vec<_>>>()?;
        let control = control.as_deref().map(bind).transpose()?;
        let failed = |what: &str, error: std::io::Error| {
            NativeError::new_err(("host", format!("{what}: {error}")))
        };
        let keeper = keeper
            .map(|end| Keeper::of_parent(end, takes_over))
            .transpose()
            .map_err(|error| failed("the process that keeps it", error))?;
        let signals = signals
            .then(Signals::take)
            .transpose()
            .map_err(|error| failed("signals", error))?;
        let names = listeners.iter().map(|one| one.name().to_owned()).collect();
        Ok(Self {
            parts: Mutex::new(Some(Parts {
                settings,
                listeners,
                control,
                programs: programs.iter().map(|one| one.behind_a_front()).collect(),
                storages: storages.iter().map(|one| one.storage.clone()).collect(),
                notice: if quiet { Notice::Quiet } else { Notice::Say },
                signals,
                keeper,
            })),
            commands: Commands::default(),
            names,
            watch: Arc::default(),
        })
    }

    fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    fn run(&self, py: Python<'_>) -> PyResult<()> {
        let parts = self
            .parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let parts = parts.ok_or_else(|| native("closed", "the server has run"))?;
        let commands = self.commands.clone();
        py.detach(|| run(parts, &commands, &self.watch))
            .map_err(|BootError { kind, message }| NativeError::new_err((kind, message)))
    }

    fn stop(&self) {
        self.commands.stop();
    }

    fn discard(&self) {
        let parts = (self.parts.lock())
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(parts);
    }

    fn reload(&self) -> u64 {
        self.commands.reload()
    }

    fn reloaded(&self, number: u64) -> PyResult<bool> {
        match self.commands.reloaded(number) {
            None => Ok(false),
            Some(Ok(())) => Ok(true),
            Some(Err(BootError { kind, message })) => Err(NativeError::new_err((kind, message))),
        }
    }

    fn is_ready(&self) -> bool {
        self.watch.get().is_some_and(Watch::is_ready)
    }

    fn requests(&self) -> Vec<(&'static str, u64)> {
        self.watch.get().map(Watch::requests).unwrap_or_default()
    }

    fn counts(&self) -> Vec<(&'static str, u64)> {
        self.watch.get().map(Watch::counts).unwrap_or_default()
    }
}

fn run(parts: Parts, commands: &Commands, watch: &OnceLock<Watch>) -> Result<(), BootError> {
    let Parts {
        settings,
        listeners,
        control,
        programs,
        storages,
        notice,
        signals,
        keeper,
    } = parts;
    let host = |error: std::io::Error| BootError::new("host", error.to_string());
    let is_kept = keeper.is_some();
    if let Some(signals) = signals {
        let commands = commands.clone();
        std::thread::Builder::new()
            .name("kvmlet-signals".to_owned())
            .stack_size(128 << 10)
            .spawn(move || signals.hand_on(&commands, is_kept))
            .map_err(host)?;
    }
    let mut server =
        kvmlet_serve::Server::new(settings, programs, storages, listeners, control, notice)
            .map_err(host)?;
    if let Some(keeper) = keeper {
        server = server.kept_by(keeper);
    }
    // It runs once.
    let _ = watch.set(server.watch());
    server.run(commands)
}

/// Listens at a place, for other processes: the descriptor; see `_native.pyi`.
#[pyfunction]
pub fn listen(place: &str) -> PyResult<i32> {
    Ok(OwnedFd::from(bind(place)?).into_raw_fd())
}

/// Refuses what is no place to listen at; see `_native.pyi`.
#[pyfunction]
pub fn check_places(places: Vec<String>) -> PyResult<()> {
    for place in places {
        place.parse::<Place>().map_err(|error| unusable(&error))?;
    }
    Ok(())
}

fn proxies(words: &[String]) -> PyResult<TrustedProxies> {
    let mut trusted = TrustedProxies::default();
    for word in words {
        if word == "unix" {
            trusted.unix = true;
            continue;
        }
        let range = word.parse().map_err(|()| {
            bad(format!(
                "--trusted-proxy: '{word}' is no range of addresses; write 10.0.0.0/8, ::1 or unix"
            ))
        })?;
        trusted.ranges.push(range);
    }
    Ok(trusted)
}
