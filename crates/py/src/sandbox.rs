//! `Sandbox` and `Snapshot` as Python sees them; see `_native.pyi`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use kvmlet_engine::{
    CallArg, CallReturns, CallValue, ConnectionId, Door, EngineError, Kicker, Program, Shut,
    Streams, Trace, forks,
};
use pyo3::IntoPyObjectExt;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyString, PyTuple};

use crate::files::Files;
use crate::memory;
use crate::{
    Denials, Disk, Events, NativeError, NotPlain, Outcome, Policy, PythonOwner, calls_named,
    connections_named, denials_to_py, duration, stats_to_py, to_py,
};

/// The number of a place that is no TCP port; no program listens on that one.
const UNIX_DOOR: u16 = 0;

pub(crate) fn native(kind: &'static str, message: &'static str) -> PyErr {
    NativeError::new_err((kind, message))
}

pub(crate) fn forked() -> PyErr {
    native(
        "forked",
        "it was made before this process was forked: its VM stays with the parent",
    )
}

/// A program in its own VM; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
pub struct Sandbox {
    /// `None` once closed.
    engine: Mutex<Option<kvmlet_engine::Sandbox>>,
    /// Set by `interrupt`: every step stops until a reset.
    stop: Arc<AtomicBool>,
    /// Called with what the program writes to standard output and standard error.
    told: Mutex<Told>,
    /// Stops the vCPU of now; a reset may bring another one.
    kicker: Mutex<Kicker>,
    /// The process that made it, as [`forks`] has it.
    process: u32,
}

/// Callables for standard output and standard error.
type Told = [Option<Py<PyAny>>; 2];

/// Why the engine cannot be had now.
enum Refusal {
    Forked,
    Busy,
    Closed,
}

impl From<Refusal> for PyErr {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Forked => forked(),
            Refusal::Busy => native("busy", "the sandbox is being used by another thread"),
            Refusal::Closed => native("closed", "the sandbox is closed"),
        }
    }
}

impl Sandbox {
    fn new(engine: kvmlet_engine::Sandbox) -> Self {
        Self {
            told: Mutex::default(),
            kicker: Mutex::new(engine.kicker()),
            engine: Mutex::new(Some(engine)),
            stop: Arc::default(),
            process: forks(),
        }
    }

    fn slot(&self) -> Result<MutexGuard<'_, Option<kvmlet_engine::Sandbox>>, Refusal> {
        if self.process != forks() {
            return Err(Refusal::Forked);
        }
        match self.engine.try_lock() {
            Ok(slot) => Ok(slot),
            // The engine has caught the panic and knows that this sandbox is broken.
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(Refusal::Busy),
        }
    }

    /// `work` with the engine, if nobody else uses it.
    fn with<T>(
        &self,
        work: impl FnOnce(&mut kvmlet_engine::Sandbox) -> Result<T, EngineError>,
    ) -> PyResult<T> {
        let mut slot = self.slot()?;
        let engine = slot.as_mut().ok_or(Refusal::Closed)?;
        work(engine).map_err(|error| to_py(&error))
    }

    /// `step` without the interpreter's lock. What a signal handler raised goes before its result.
    fn step<T: Send>(
        &self,
        py: Python<'_>,
        step: impl FnOnce(&mut kvmlet_engine::Sandbox, &mut PythonOwner) -> Result<T, EngineError>
        + Send,
    ) -> PyResult<T> {
        let mut owner = PythonOwner::stopped_by(Arc::clone(&self.stop));
        owner.told = lock(&self.told)
            .each_ref()
            .map(|told| told.as_ref().map(|told| told.clone_ref(py)));
        let result = py.detach(|| {
            let mut slot = self.slot()?;
            let engine = slot.as_mut().ok_or(Refusal::Closed)?;
            let done = step(engine, &mut owner);
            engine.tell_rest(&mut owner);
            Ok(done)
        });
        if let Some(raised) = owner.raised {
            return Err(raised);
        }
        let result: Result<_, Refusal> = result;
        result?.map_err(|error| to_py(&error))
    }
}

impl Sandbox {
    /// `work` without the interpreter's lock, if nobody else uses the engine.
    pub(crate) fn act<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut kvmlet_engine::Sandbox) -> Result<T, EngineError> + Send,
    ) -> PyResult<T> {
        py.detach(|| self.with(work))
    }
}

/// A connection to a server in a sandbox; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
pub struct Connection(pub(crate) ConnectionId);

/// The address of a client that the caller gives.
pub(crate) fn address(peer: Option<(String, u16)>) -> PyResult<Option<SocketAddr>> {
    let Some((host, port)) = peer else {
        return Ok(None);
    };
    match host.parse() {
        Ok(ip) => Ok(Some(SocketAddr::new(ip, port))),
        Err(_) => Err(native("bad_argument", "peer: it is no IP address")),
    }
}

/// The directions that shutdown(2) means: SHUT_RD, SHUT_WR, SHUT_RDWR.
pub(crate) fn directions(how: i32) -> Shut {
    match how {
        0 => Shut::RECEIVE,
        1 => Shut::SEND,
        _ => Shut::all(),
    }
}

/// An argument of `call`. Raises TypeError, OverflowError.
fn argument(value: &Bound<'_, PyAny>) -> PyResult<CallArg> {
    if value.is_instance_of::<PyInt>() {
        let bits = match value.extract::<i64>() {
            Ok(signed) => signed.cast_unsigned(),
            Err(_) => value.extract::<u64>()?,
        };
        Ok(CallArg::Int(bits))
    } else if let Ok(float) = value.cast::<PyFloat>() {
        Ok(CallArg::Float(float.value()))
    } else if let Ok(bytes) = value.cast::<PyBytes>() {
        Ok(CallArg::Bytes(bytes.as_bytes().into()))
    } else if let Ok(buffer) = value.cast::<PyByteArray>() {
        Ok(CallArg::Buffer(buffer.to_vec().into()))
    } else {
        Err(PyTypeError::new_err("int, float, bytes or bytearray"))
    }
}

/// An argument of `call_plain`; `None` if it is not plain.
fn plain_argument(value: &Bound<'_, PyAny>) -> Option<CallArg> {
    if value.is_none() {
        return Some(CallArg::Int(0));
    }
    if let Ok(int) = value.cast_exact::<PyInt>() {
        let signed = int.extract::<i64>().map(i64::cast_unsigned);
        return signed.or_else(|_| int.extract()).ok().map(CallArg::Int);
    }
    if let Ok(float) = value.cast_exact::<PyFloat>() {
        return Some(CallArg::Float(float.value()));
    }
    let bytes = value.cast_exact::<PyBytes>().ok()?;
    Some(CallArg::Bytes(bytes.as_bytes().into()))
}

/// The kind of value that a type stands for in `call_plain`; `None` if it is not plain.
fn plain_returns(kind: &Bound<'_, PyAny>) -> Option<CallReturns> {
    let py = kind.py();
    if kind.is(py.get_type::<PyInt>()) {
        Some(CallReturns::Int)
    } else if kind.is_none() {
        Some(CallReturns::Nothing)
    } else if kind.is(py.get_type::<PyFloat>()) {
        Some(CallReturns::Float)
    } else if kind.is(py.get_type::<PyBytes>()) {
        Some(CallReturns::Bytes)
    } else {
        None
    }
}

fn returns(kind: &str) -> PyResult<CallReturns> {
    match kind {
        "int" => Ok(CallReturns::Int),
        "float" => Ok(CallReturns::Float),
        "bytes" => Ok(CallReturns::Bytes),
        "none" => Ok(CallReturns::Nothing),
        _ => Err(native("bad_argument", "no such kind of return value")),
    }
}

fn value_to_py(py: Python<'_>, value: CallValue) -> PyResult<Py<PyAny>> {
    match value {
        CallValue::Int(int) => int.into_py_any(py),
        CallValue::Float(float) => float.into_py_any(py),
        CallValue::Bytes(bytes) => Ok(PyBytes::new(py, &bytes).into_any().unbind()),
        CallValue::Nothing => Ok(py.None()),
    }
}

type Called<'py> = (Py<PyAny>, Vec<Bound<'py, PyBytes>>);
type Written<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>);

#[pymethods]
impl Sandbox {
    #[staticmethod]
    #[pyo3(signature = (argv, *, env, policy, input, memory_bytes, disk, processes_max, output_limit_bytes, calls, files_max=kvmlet_engine::FILES_MOST))]
    #[allow(clippy::too_many_arguments)] // the keywords of one Python call
    fn start(
        py: Python<'_>,
        argv: Vec<Vec<u8>>,
        env: Vec<(Vec<u8>, Vec<u8>)>,
        policy: PyRef<'_, Policy>,
        input: Vec<u8>,
        memory_bytes: u64,
        disk: Option<PyRef<'_, Disk>>,
        processes_max: usize,
        output_limit_bytes: u64,
        calls: &str,
        files_max: u64,
    ) -> PyResult<Self> {
        let calls = calls_named(calls)?;
        let program = Program {
            argv,
            env,
            policy: policy.policy.clone(),
            access: Arc::clone(&policy.access),
            cwd: policy.cwd.clone(),
            streams: Streams::Capture {
                input,
                output_limit_bytes,
            },
            timeout: None,
            cpu_time: None,
            memory_bytes,
            disk: disk.map(|disk| disk.0.clone()),
            processes_max,
            files_max,
            trace: Trace::Off,
            calls,
        };
        let started = py.detach(|| kvmlet_engine::Sandbox::start(&program));
        let engine = started.map_err(|error| to_py(&error))?;
        Ok(Self::new(engine))
    }

    #[pyo3(signature = (timeout_s))]
    fn until_ready(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<()> {
        let timeout = duration(timeout_s)?;
        self.step(py, |engine, owner| engine.until_ready(timeout, owner))
    }

    /// Has output given to these from now on; see `_native.pyi`.
    #[pyo3(signature = (stdout, stderr))]
    fn tell(&self, stdout: Option<Py<PyAny>>, stderr: Option<Py<PyAny>>) {
        let before = std::mem::replace(&mut *lock(&self.told), [stdout, stderr]);
        // Their end may run code of the caller's that comes here again: without the lock.
        drop(before);
    }

    /// The callables may lead back to this object: a cycle that the collector must see.
    #[allow(clippy::needless_pass_by_value)] // as pyo3 has it
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // A traversal must not wait. A place that is being changed now is used by somebody.
        if let Ok(told) = self.told.try_lock() {
            for one in told.iter().flatten() {
                visit.call(one)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        self.tell(None, None);
    }

    fn files(slf: Py<Self>) -> Files {
        Files::of_program(slf)
    }

    #[pyo3(signature = (timeout_s))]
    fn wait(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<()> {
        let timeout = duration(timeout_s)?;
        self.step(py, |engine, owner| engine.wait(timeout, owner))
    }

    fn run_for(&self, py: Python<'_>, time_s: f64) -> PyResult<()> {
        let time = duration(Some(time_s))?.unwrap_or(Duration::ZERO);
        self.step(py, |engine, owner| engine.run_for(time, owner))
    }

    fn send(&self, message: &Bound<'_, PyBytes>) -> PyResult<()> {
        self.with(|engine| engine.send(message.as_bytes()))
    }

    #[pyo3(signature = (timeout_s))]
    fn recv<'py>(&self, py: Python<'py>, timeout_s: Option<f64>) -> PyResult<Bound<'py, PyBytes>> {
        let timeout = duration(timeout_s)?;
        let message = self.step(py, |engine, owner| engine.recv(timeout, owner))?;
        Ok(PyBytes::new(py, &message))
    }

    #[pyo3(signature = (message, timeout_s))]
    fn request<'py>(
        &self,
        py: Python<'py>,
        message: &Bound<'py, PyBytes>,
        timeout_s: Option<f64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let timeout = duration(timeout_s)?;
        let message = message.as_bytes();
        let answer = self.step(py, |engine, owner| {
            engine.send(message)?;
            engine.recv(timeout, owner)
        })?;
        Ok(PyBytes::new(py, &answer))
    }

    fn send_parts(&self, parts: Vec<PyBuffer<u8>>) -> PyResult<()> {
        let message = memory::joined(&parts)?;
        self.with(|engine| engine.post(message))
    }

    #[pyo3(signature = (parts, timeout_s))]
    fn request_parts<'py>(
        &self,
        py: Python<'py>,
        parts: Vec<PyBuffer<u8>>,
        timeout_s: Option<f64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let timeout = duration(timeout_s)?;
        let message = memory::joined(&parts)?;
        drop(parts);
        let answer = self.step(py, |engine, owner| {
            engine.post(message)?;
            engine.recv(timeout, owner)
        })?;
        Ok(PyBytes::new(py, &answer))
    }

    #[pyo3(signature = (room, at, timeout_s))]
    fn recv_into(
        &self,
        py: Python<'_>,
        room: &Bound<'_, PyByteArray>,
        at: usize,
        timeout_s: Option<f64>,
    ) -> PyResult<usize> {
        let timeout = duration(timeout_s)?;
        let message = self.step(py, |engine, owner| engine.recv(timeout, owner))?;
        memory::fill(room, at, &message);
        Ok(message.len())
    }

    #[pyo3(signature = (symbol, args, returns, timeout_s))]
    fn call<'py>(
        &self,
        py: Python<'py>,
        symbol: &str,
        args: Vec<Bound<'py, PyAny>>,
        returns: &str,
        timeout_s: Option<f64>,
    ) -> PyResult<Called<'py>> {
        let timeout = duration(timeout_s)?;
        let kind = self::returns(returns)?;
        let args = args.iter().map(argument).collect::<PyResult<Vec<_>>>()?;
        let result = self.step(py, |engine, owner| {
            engine.call(symbol, &args, kind, timeout, owner)
        })?;
        let buffers = result.buffers.iter().map(|bytes| PyBytes::new(py, bytes));
        Ok((value_to_py(py, result.value)?, buffers.collect()))
    }

    #[pyo3(signature = (symbol, args, returns, timeout_s))]
    fn call_plain(
        &self,
        py: Python<'_>,
        symbol: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        returns: &Bound<'_, PyAny>,
        timeout_s: Option<f64>,
    ) -> PyResult<Py<PyAny>> {
        let not_plain = || NotPlain::new_err(());
        let name = symbol.cast_exact::<PyString>().ok();
        let name = name.and_then(|name| name.to_str().ok());
        let name = name.filter(|name| !name.is_empty() && !name.contains('\0'));
        let name = name.ok_or_else(not_plain)?;
        let kind = plain_returns(returns).ok_or_else(not_plain)?;
        let args: Option<Vec<CallArg>> = args
            .iter_borrowed()
            .map(|arg| plain_argument(&arg))
            .collect();
        let args = args.ok_or_else(not_plain)?;
        let timeout = duration(timeout_s)?;
        let result = self.step(py, |engine, owner| {
            engine.call(name, &args, kind, timeout, owner)
        })?;
        value_to_py(py, result.value)
    }

    #[pyo3(signature = (port, timeout_s))]
    fn until_listening(
        &self,
        py: Python<'_>,
        port: Option<u16>,
        timeout_s: Option<f64>,
    ) -> PyResult<u16> {
        let timeout = duration(timeout_s)?;
        let door = self.step(py, |engine, owner| {
            engine.until_listening(port, timeout, owner)
        })?;
        Ok(match door {
            Door::Port(port) => port,
            Door::Unix(_) => UNIX_DOOR,
        })
    }

    fn connect(
        &self,
        py: Python<'_>,
        port: u16,
        peer: Option<(String, u16)>,
    ) -> PyResult<Connection> {
        let peer = address(peer)?;
        // A function of the program's may run first, which seeds its generators.
        self.act(py, |engine| match (port, engine.door()) {
            (UNIX_DOOR, Some(door)) => engine.connect_at(door, peer),
            (port, _) => engine.connect(port, peer),
        })
        .map(Connection)
    }

    #[pyo3(signature = (to, data, timeout_s))]
    fn send_to(
        &self,
        py: Python<'_>,
        to: &Connection,
        data: &[u8],
        timeout_s: Option<f64>,
    ) -> PyResult<usize> {
        let timeout = duration(timeout_s)?;
        self.step(py, |engine, owner| {
            engine.send_to(to.0, data, timeout, owner)
        })
    }

    #[pyo3(signature = (source, max_bytes, timeout_s))]
    fn receive_from<'py>(
        &self,
        py: Python<'py>,
        source: &Connection,
        max_bytes: usize,
        timeout_s: Option<f64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let timeout = duration(timeout_s)?;
        let bytes = self.step(py, |engine, owner| {
            engine.receive_from(source.0, max_bytes, timeout, owner)
        })?;
        Ok(PyBytes::new(py, &bytes))
    }

    fn shut_down(&self, connection: &Connection, how: i32) -> PyResult<()> {
        self.with(|engine| engine.shut_down(connection.0, directions(how)))
    }

    fn hang_up(&self, connection: &Connection) -> PyResult<()> {
        self.with(|engine| {
            engine.hang_up(connection.0);
            Ok(())
        })
    }

    fn freeze(&self, py: Python<'_>, connections: &str) -> PyResult<Snapshot> {
        let connections = connections_named(connections)?;
        let frozen = py.detach(|| {
            let mut slot = self.slot()?;
            let mut engine = slot.take().ok_or(Refusal::Closed)?;
            // What cannot be frozen stays what it was.
            if let Some(ending) = engine.ending() {
                *slot = Some(engine);
                return Err(to_py(&EngineError::Ended(ending)));
            }
            if let Err(error) = engine.prepare_to_freeze(connections) {
                *slot = Some(engine);
                return Err(to_py(&error));
            }
            let frozen = engine.freeze().map_err(|error| to_py(&error))?;
            Ok::<_, PyErr>(Snapshot::new(frozen))
        })?;
        self.tell(None, None);
        Ok(frozen)
    }

    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            self.with(|engine| {
                engine.reset()?;
                *lock(&self.kicker) = engine.kicker();
                self.stop.store(false, Ordering::SeqCst);
                Ok(())
            })
        })
    }

    fn interrupt(&self) {
        // In a child of the process that made it, the thread's number is somebody else's.
        if self.process == forks() {
            self.stop.store(true, Ordering::SeqCst);
            lock(&self.kicker).kick();
        }
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            let engine = self.slot()?.take();
            if let Some(engine) = engine {
                engine.retire();
            }
            Ok::<_, PyErr>(())
        })?;
        // They may lead back here.
        self.tell(None, None);
        Ok(())
    }

    fn abandon(&self) {
        // Held by a thread that is not in this process, it stays as it is.
        if let Ok(mut slot) = self.engine.try_lock() {
            slot.take();
        }
    }

    fn take_output<'py>(&self, py: Python<'py>) -> PyResult<Written<'py>> {
        let (stdout, stderr) = self.with(|engine| Ok(engine.take_output()))?;
        Ok((PyBytes::new(py, &stdout), PyBytes::new(py, &stderr)))
    }

    fn take_report(&self) -> PyResult<(Denials, Events)> {
        let (denials, events) = self.with(|engine| Ok(engine.take_report()))?;
        Ok((denials_to_py(&denials), events))
    }

    fn outcome(&self) -> PyResult<Option<Outcome>> {
        self.with(|engine| Ok(engine.outcome().map(Outcome)))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.with(|engine| Ok(engine.stats()))?;
        stats_to_py(py, &stats)
    }

    fn memory_limit(&self) -> PyResult<u64> {
        self.with(|engine| Ok(engine.memory_limit_bytes()))
    }

    fn memory_left(&self) -> PyResult<u64> {
        self.with(|engine| Ok(engine.memory_left_bytes()))
    }

    fn generation(&self) -> PyResult<u64> {
        self.with(|engine| Ok(engine.generation()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A frozen program; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
pub struct Snapshot {
    /// `None` once closed. Held for moments only.
    engine: Mutex<Option<kvmlet_engine::Snapshot>>,
    process: u32,
}

impl Snapshot {
    pub(crate) fn new(engine: kvmlet_engine::Snapshot) -> Self {
        Self {
            engine: Mutex::new(Some(engine)),
            process: forks(),
        }
    }

    pub(crate) fn get(&self) -> PyResult<kvmlet_engine::Snapshot> {
        if self.process != forks() {
            return Err(forked());
        }
        lock(&self.engine)
            .clone()
            .ok_or_else(|| native("closed", "the snapshot is closed"))
    }
}

#[pymethods]
impl Snapshot {
    fn fork(&self, py: Python<'_>) -> PyResult<Sandbox> {
        let engine = self.get()?;
        let fork = py.detach(|| engine.fork());
        let fork = fork.map_err(|error| to_py(&error))?;
        Ok(Sandbox::new(fork))
    }

    fn prepare(&self, py: Python<'_>, count: usize) -> PyResult<()> {
        let engine = self.get()?;
        py.detach(|| engine.prepare(count))
            .map_err(|error| to_py(&error))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        stats_to_py(py, &self.get()?.stats())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if self.process != forks() {
            return Err(forked());
        }
        py.detach(|| drop(lock(&self.engine).take()));
        Ok(())
    }

    fn abandon(&self) {
        if let Ok(mut slot) = self.engine.try_lock() {
            slot.take();
        }
    }
}
