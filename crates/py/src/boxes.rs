//! `Box` as Python sees it; see `_native.pyi`.

use std::sync::Arc;
use std::time::Duration;

use kvmlet_engine::{
    Command, EngineError, Exchange, ExitStatus, Pid, Program, Resident, STREAMS, Stdio, Streams,
    TerminalSize, Trace, Waited,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::files::Files;
use crate::sandbox::{Connection, Snapshot, address, directions, forked, native};
use crate::{
    Denials, Disk, Events, Policy, PythonOwner, Stop, calls_named, connections_named,
    denials_to_py, duration, stats_to_py, to_py,
};

/// A sandbox that keeps files and processes over many commands; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
pub struct Box {
    /// In a child of the process that made it, its locks may be held for ever: nothing is done with it then.
    engine: Resident,
}

/// Bytes by descriptor; bytes written, -1 if nobody reads them; exit status, signal.
type Exchanged<'py> = (
    Vec<(i32, Bound<'py, PyBytes>)>,
    Option<i64>,
    Option<(Option<u8>, Option<u8>)>,
);

impl Box {
    fn new(engine: Resident) -> Self {
        Self { engine }
    }

    pub(crate) fn engine(&self) -> PyResult<&Resident> {
        if self.engine.is_ours() {
            Ok(&self.engine)
        } else {
            Err(forked())
        }
    }

    /// Uses the engine without the interpreter's lock.
    pub(crate) fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Resident) -> Result<T, EngineError> + Send,
    ) -> PyResult<T> {
        let engine = self.engine()?;
        py.detach(|| work(engine)).map_err(|error| to_py(&error))
    }

    /// Waits in the engine, until a signal handler raises: `None` if the time is over. No time at all is a look.
    fn wait<T: Send>(
        &self,
        py: Python<'_>,
        timeout_s: Option<f64>,
        stop: Option<&Stop>,
        wait: impl FnOnce(
            &Resident,
            Option<Duration>,
            &mut PythonOwner,
        ) -> Result<Waited<T>, EngineError>
        + Send,
    ) -> PyResult<Option<T>> {
        let timeout = match timeout_s {
            Some(seconds) if seconds <= 0.0 => Some(Duration::ZERO),
            other => duration(other)?,
        };
        let mut owner = PythonOwner::stopped_by(Stop::flag(stop));
        let waited = self.with(py, |engine| wait(engine, timeout, &mut owner));
        if let Some(raised) = owner.raised {
            return Err(raised);
        }
        match waited? {
            Waited::Done(done) => Ok(Some(done)),
            Waited::TimedOut => Ok(None),
            Waited::Interrupted => Err(native("interrupted", "the wait was interrupted")),
        }
    }
}

/// A terminal's size as columns and rows.
fn terminal_size((columns, rows): (u16, u16)) -> TerminalSize {
    TerminalSize { columns, rows }
}

#[pymethods]
impl Box {
    #[staticmethod]
    #[pyo3(signature = (*, policy, memory_bytes, disk, processes_max, calls, files_max=kvmlet_engine::FILES_MOST))]
    fn start(
        py: Python<'_>,
        policy: PyRef<'_, Policy>,
        memory_bytes: u64,
        disk: Option<PyRef<'_, Disk>>,
        processes_max: usize,
        calls: &str,
        files_max: u64,
    ) -> PyResult<Self> {
        let program = Program {
            argv: Vec::new(),
            env: Vec::new(),
            policy: policy.policy.clone(),
            access: Arc::clone(&policy.access),
            cwd: policy.cwd.clone(),
            streams: Streams::Capture {
                input: Vec::new(),
                output_limit_bytes: 0,
            },
            timeout: None,
            cpu_time: None,
            memory_bytes,
            disk: disk.map(|disk| disk.0.clone()),
            processes_max,
            files_max,
            trace: Trace::Off,
            calls: calls_named(calls)?,
        };
        let started = py.detach(|| Resident::start(program));
        Ok(Self::new(started.map_err(|error| to_py(&error))?))
    }

    #[pyo3(signature = (argv, *, env, cwd, stdio, terminal))]
    #[allow(clippy::type_complexity)] // a tuple for Python
    #[allow(clippy::too_many_arguments)] // the keywords of one Python call
    fn spawn(
        &self,
        py: Python<'_>,
        argv: Vec<Vec<u8>>,
        env: Vec<(Vec<u8>, Vec<u8>)>,
        cwd: Vec<u8>,
        stdio: [String; STREAMS],
        terminal: Option<(u16, u16)>,
    ) -> PyResult<(u64, i32, u64, [Option<i32>; STREAMS])> {
        let stdio = stdio.map(|name| match name.as_str() {
            "pipe" => Stdio::Pipe,
            "stdout" => Stdio::Stdout,
            "absent" => Stdio::Absent,
            _ => Stdio::Null,
        });
        let name = argv.first().cloned().unwrap_or_default();
        let command = Command {
            argv,
            env,
            cwd,
            stdio,
            terminal: terminal.map(terminal_size),
        };
        self.with(py, |engine| {
            let epoch = engine.epoch();
            let spawned = engine.act_in(epoch, |personality| personality.spawn(&command))?;
            let spawned = spawned.map_err(|error| EngineError::of_spawn(error, &name))?;
            Ok((epoch, spawned.pid.0, spawned.command, spawned.streams))
        })
    }

    #[pyo3(signature = (epoch, *, read, max_bytes, write, child, timeout_s, stop=None))]
    #[allow(clippy::too_many_arguments)] // the keywords of one Python call
    fn exchange<'py>(
        &self,
        py: Python<'py>,
        epoch: u64,
        read: Vec<i32>,
        max_bytes: usize,
        write: Option<(i32, Vec<u8>)>,
        child: Option<i32>,
        timeout_s: Option<f64>,
        stop: Option<&Stop>,
    ) -> PyResult<Option<Exchanged<'py>>> {
        let exchange = Exchange {
            read: &read,
            max_bytes,
            write: write
                .as_ref()
                .map(|(number, bytes)| (*number, bytes.as_slice())),
            child: child.map(Pid),
            epoch,
        };
        let done = self.wait(py, timeout_s, stop, |engine, timeout, owner| {
            engine.exchange(&exchange, timeout, owner)
        })?;
        let Some(done) = done else {
            return Ok(None);
        };
        let read = done.read.iter();
        let read = read.map(|(number, bytes)| (*number, PyBytes::new(py, bytes)));
        let written = done
            .written
            .map(|count| count.map_or(-1, |count| count.cast_signed() as i64));
        let ended = done.ended.map(|status| match status {
            ExitStatus::Exited(status) => (Some(status), None),
            ExitStatus::Signal(signo) => (None, Some(signo)),
        });
        Ok(Some((read.collect(), written, ended)))
    }

    fn signal(&self, py: Python<'_>, epoch: u64, pid: i32, signo: u8) -> PyResult<()> {
        self.with(py, |engine| {
            let sent = engine.act_in(epoch, |personality| personality.signal(Pid(pid), signo))?;
            sent.map_err(|errno| EngineError::File(errno.name()))
        })
    }

    fn resize(&self, py: Python<'_>, epoch: u64, number: i32, size: (u16, u16)) -> PyResult<()> {
        let size = terminal_size(size);
        self.with(py, |engine| {
            let resized = engine.act_in(epoch, |personality| personality.resize(number, size))?;
            resized.map_err(|errno| EngineError::File(errno.name()))
        })
    }

    fn end_command(&self, py: Python<'_>, epoch: u64, command: u64) -> PyResult<()> {
        self.with(py, |engine| {
            engine.act_in(epoch, |personality| personality.end_command(command))
        })
    }

    fn was_out_of_memory(&self, py: Python<'_>, epoch: u64, command: u64) -> PyResult<bool> {
        self.with(py, |engine| {
            engine.act_in(epoch, |personality| personality.was_out_of_memory(command))
        })
    }

    fn close_stream(&self, py: Python<'_>, epoch: u64, number: i32) -> PyResult<()> {
        self.with(py, |engine| {
            engine.act_in(epoch, |personality| personality.close(number))
        })
    }

    fn take_report(&self, py: Python<'_>) -> PyResult<(Denials, Events)> {
        let (denials, events) = self.with(py, |engine| {
            engine.act(|personality| personality.take_report())
        })?;
        Ok((denials_to_py(&denials), events))
    }

    fn files(slf: Py<Self>) -> Files {
        Files::of_box(slf)
    }

    fn connect(
        &self,
        py: Python<'_>,
        port: u16,
        peer: Option<(String, u16)>,
    ) -> PyResult<Connection> {
        let peer = address(peer)?;
        self.with(py, |engine| engine.connect(port, peer))
            .map(Connection)
    }

    #[pyo3(signature = (to, data, timeout_s, stop))]
    fn send_to(
        &self,
        py: Python<'_>,
        to: &Connection,
        data: &[u8],
        timeout_s: Option<f64>,
        stop: Option<&Stop>,
    ) -> PyResult<Option<usize>> {
        self.wait(py, timeout_s, stop, |engine, timeout, owner| {
            engine.send_to(to.0, data, timeout, owner)
        })
    }

    #[pyo3(signature = (source, max_bytes, timeout_s, stop))]
    fn receive_from<'py>(
        &self,
        py: Python<'py>,
        source: &Connection,
        max_bytes: usize,
        timeout_s: Option<f64>,
        stop: Option<&Stop>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let bytes = self.wait(py, timeout_s, stop, |engine, timeout, owner| {
            engine.receive_from(source.0, max_bytes, timeout, owner)
        })?;
        Ok(bytes.map(|bytes| PyBytes::new(py, &bytes)))
    }

    fn shut_down(&self, py: Python<'_>, connection: &Connection, how: i32) -> PyResult<()> {
        self.with(py, |engine| engine.shut_down(connection.0, directions(how)))
    }

    fn hang_up(&self, py: Python<'_>, connection: &Connection) -> PyResult<()> {
        self.with(py, |engine| {
            engine.hang_up(connection.0);
            Ok(())
        })
    }

    #[pyo3(signature = (port, timeout_s, stop))]
    fn wait_listening(
        &self,
        py: Python<'_>,
        port: u16,
        timeout_s: Option<f64>,
        stop: Option<&Stop>,
    ) -> PyResult<bool> {
        let listens = self.wait(py, timeout_s, stop, |engine, timeout, owner| {
            engine.wait_listening(port, timeout, owner)
        })?;
        Ok(listens.is_some())
    }

    fn snapshot(&self, py: Python<'_>, connections: &str) -> PyResult<Snapshot> {
        let connections = connections_named(connections)?;
        Ok(Snapshot::new(
            self.with(py, |engine| engine.snapshot(connections))?,
        ))
    }

    fn fork(&self, py: Python<'_>, snapshot: &Snapshot) -> PyResult<Self> {
        let snapshot = snapshot.get()?;
        Ok(Self::new(self.with(py, |engine| engine.fork(&snapshot))?))
    }

    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, Resident::reset)
    }

    fn epoch(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |engine| Ok(engine.epoch()))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.with(py, Resident::stats)?;
        stats_to_py(py, &stats)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |engine| {
            engine.close();
            Ok(())
        })
    }
}
