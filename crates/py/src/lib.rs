//! The extension module `kvmlet._native`: conversions, the GIL, errors. No logic.
#![allow(unsafe_code)] // what PyO3's macros expand to, descriptors that Python gives away, and Python's memory

use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use kvmlet_engine::{
    Calls, Change, ChangeKind, Connections, Denial, Ending, EngineError, Offer, Program,
    RunOutcome, Spill, Stat, Streams, Support, Trace, resolver, unix,
};
use kvmlet_jail::{Answer, Call, When};
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use signal_hook::consts::{SIGCONT, SIGTSTP};

mod boxes;
mod changes;
mod doctor;
mod files;
mod memory;
mod owner;
mod protected;
mod sandbox;
mod serve;

use owner::{PythonOwner, Stop};

create_exception!(
    _native,
    NativeError,
    PyException,
    "What was asked for cannot be done: (kind, message)."
);

create_exception!(
    _native,
    NotPlain,
    PyException,
    "An argument has to be converted first, or is wrong. Nothing has happened."
);

fn to_py(error: &EngineError) -> PyErr {
    NativeError::new_err((error.kind(), error.to_string()))
}

/// A time limit from Python.
fn duration(timeout_s: Option<f64>) -> PyResult<Option<Duration>> {
    timeout_s
        .map(Duration::try_from_secs_f64)
        .transpose()
        .map_err(|error| NativeError::new_err(("bad_argument", format!("timeout: {error}"))))
}

/// The way that calls travel, by name.
fn calls_named(name: &str) -> PyResult<Calls> {
    Calls::named(name)
        .ok_or_else(|| NativeError::new_err(("bad_argument", "no such way for calls to travel")))
}

/// What becomes of connections at a freeze, by name.
fn connections_named(name: &str) -> PyResult<Connections> {
    match name {
        "refuse" => Ok(Connections::Refuse),
        "drop" => Ok(Connections::Drop),
        _ => Err(NativeError::new_err((
            "bad_argument",
            format!("connections: {name:?} is neither \"refuse\" nor \"drop\""),
        ))),
    }
}

/// (what, errno name, remedy or "", count) of each.
type Denials = Vec<(String, &'static str, &'static str, u64)>;
/// (name, detail) of each.
type Events = Vec<(String, String)>;

fn denials_to_py(denials: &[Denial]) -> Denials {
    let denials = denials.iter();
    denials
        .map(|denial| {
            let kind = denial.remedy.name();
            (denial.what.clone(), denial.errno, kind, denial.count)
        })
        .collect()
}

fn stats_to_py<'py>(py: Python<'py>, stats: &[(String, Stat)]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, stat) in stats {
        match stat {
            Stat::Count(count) => dict.set_item(name, count)?,
            Stat::Microseconds(us) => dict.set_item(name, us)?,
        }
    }
    Ok(dict)
}

/// The outcome of a run; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
struct Outcome(RunOutcome);

#[pymethods]
impl Outcome {
    #[getter]
    fn exit_code(&self) -> Option<u8> {
        match self.0.ending {
            Ending::Exited(status) => Some(status),
            _ => None,
        }
    }

    #[getter]
    fn signal(&self) -> Option<u8> {
        match self.0.ending {
            Ending::Signal(signo) => Some(signo),
            _ => None,
        }
    }

    #[getter]
    fn reason(&self) -> &'static str {
        self.0.ending.reason()
    }

    #[getter]
    fn stdout<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.stdout)
    }

    #[getter]
    fn stderr<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.stderr)
    }

    #[getter]
    fn denials(&self) -> Denials {
        denials_to_py(&self.0.denials)
    }

    #[getter]
    fn events(&self) -> Events {
        self.0.events.clone()
    }

    #[getter]
    fn changes_are_cut(&self) -> bool {
        self.0.changes.is_cut
    }

    #[getter]
    fn changes<'py>(&self, py: Python<'py>) -> Vec<(&'static str, Bound<'py, PyBytes>)> {
        let kind = |change: &Change| match change.kind {
            ChangeKind::Added => "A",
            ChangeKind::Modified => "M",
            ChangeKind::Removed => "D",
        };
        let changes = self.0.changes.found.iter();
        changes
            .map(|change| (kind(change), PyBytes::new(py, &change.path)))
            .collect()
    }

    #[getter]
    fn uses<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>, u8)> {
        let uses = self.0.uses.found();
        uses.map(|(path, given, ways)| {
            let (path, given) = (PyBytes::new(py, path), PyBytes::new(py, given));
            (path, given, ways.bits())
        })
        .collect()
    }

    #[getter]
    fn uses_not_kept(&self) -> u64 {
        self.0.uses.not_kept
    }

    #[getter]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        stats_to_py(py, &self.0.stats)
    }
}

/// The time that standard error may hold up a line of ours before limits and signals are looked at.
const SAY: Duration = Duration::from_millis(100);

/// The caller's standard streams; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
struct Inherited(Arc<kvmlet_engine::Inherited>);

#[pymethods]
impl Inherited {
    #[new]
    #[pyo3(signature = (left_open=Vec::new(), named=Vec::new()))]
    fn new(left_open: Vec<(i32, i32)>, named: Vec<(i32, i32)>) -> PyResult<Self> {
        let inherited = kvmlet_engine::Inherited::open();
        for (number, own) in left_open {
            // One that is unfit is closed, as if the caller had kept it.
            let _ = inherited.add(number, owned(own)?, Offer::LeftOpen);
        }
        for (number, own) in named {
            let added = inherited.add(number, owned(own)?, Offer::Named);
            added.map_err(|unfit| {
                NativeError::new_err(("bad_argument", format!("--fd {number}: {unfit}")))
            })?;
        }
        Ok(Self(Arc::new(inherited)))
    }

    /// Writes to standard error what it takes within a moment.
    fn say(&self, py: Python<'_>, data: Vec<u8>) {
        // What cannot be said is lost: there is nowhere else.
        let _ = py.detach(|| self.0.say(&data, SAY));
    }
}

/// A limit on a program's files, with the host's file for those that memory has no room for; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
struct Disk(kvmlet_engine::Disk);

#[pymethods]
impl Disk {
    #[new]
    #[pyo3(signature = (limit_bytes, directory))]
    fn new(limit_bytes: u64, directory: Option<Vec<u8>>) -> PyResult<Self> {
        let spill = directory.map(|directory| {
            Spill::open(&directory).map(Arc::new).map_err(|errno| {
                let directory = String::from_utf8_lossy(&directory);
                let message = format!("no file can be made in {directory} ({errno})");
                NativeError::new_err(("host", message))
            })
        });
        Ok(Self(kvmlet_engine::Disk {
            limit_bytes,
            spill: spill.transpose()?,
        }))
    }
}

/// A descriptor that Python has duplicated and gives away.
fn owned(number: i32) -> PyResult<OwnedFd> {
    if number < 3 {
        let message = format!("{number} is no descriptor to give away");
        return Err(NativeError::new_err(("bad_argument", message)));
    }
    // SAFETY: `kvmlet.cli._descriptors`, the one caller, has just made it by dup(2) and uses it no more.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The rules on the host's files that a program may see; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
struct Policy {
    policy: kvmlet_engine::Policy,
    /// The directory that the program starts in.
    cwd: Vec<u8>,
    /// What has been opened for its network.
    access: Arc<kvmlet_engine::Access>,
}

/// A refusal: the error's name; the thing and the kind of the denial, both empty if it is none of the policy's.
type Refused = (&'static str, String, &'static str);

fn refused(refusal: kvmlet_engine::Refusal) -> Refused {
    let errno = refusal.errno.name();
    match refusal.denial {
        Some(denial) => (errno, denial.what, denial.remedy.name()),
        None => (errno, String::new(), ""),
    }
}

impl Policy {
    fn new_with(
        (mut policy, cwd): (kvmlet_engine::Policy, Vec<u8>),
        net: &[String],
        publish: &[String],
        sockets: &[Vec<u8>],
    ) -> PyResult<Self> {
        for path in sockets {
            let allowed = policy.allow_socket(path);
            allowed.map_err(|error| {
                NativeError::new_err(("bad_argument", format!("unix: {error}")))
            })?;
        }
        let wrong = |word: &'static str| {
            move |error: kvmlet_engine::NetError| {
                NativeError::new_err(("bad_argument", format!("{word}: {error}")))
            }
        };
        for rule in net {
            policy.allow_net(rule).map_err(wrong("net"))?;
        }
        let mut access = kvmlet_engine::Access::default();
        for text in publish {
            let published = policy.publish(text).map_err(wrong("publish"))?;
            let at = published.host;
            access.publish(at, published.port).map_err(|errno| {
                let message = format!("publish: {text}: the host refuses {at}: {errno}");
                NativeError::new_err(("host", message))
            })?;
        }
        let access = Arc::new(access);
        Ok(Self {
            policy,
            cwd,
            access,
        })
    }
}

#[pymethods]
impl Policy {
    #[new]
    #[pyo3(signature = (cwd, readable, overlay=None, writable=Vec::new(), bound=Vec::new(), memory=Vec::new(), net=Vec::new(), publish=Vec::new(), sockets=Vec::new()))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        cwd: Vec<u8>,
        readable: Vec<Vec<u8>>,
        overlay: Option<Vec<u8>>,
        writable: Vec<Vec<u8>>,
        bound: Vec<(Vec<u8>, Vec<u8>, String)>,
        memory: Vec<Vec<u8>>,
        net: Vec<String>,
        publish: Vec<String>,
        sockets: Vec<Vec<u8>>,
    ) -> PyResult<Self> {
        let bound = bound.into_iter().map(|(host, path, mode)| {
            let mode = match mode.as_str() {
                "ro" => kvmlet_engine::MountMode::ReadOnly,
                "rw" => kvmlet_engine::MountMode::ReadWrite,
                "overlay" => kvmlet_engine::MountMode::Overlay,
                _ => return Err(PyValueError::new_err("unknown mode of a mount")),
            };
            Ok((host, path, mode))
        });
        let bound: Vec<_> = bound.collect::<PyResult<_>>()?;
        let trees = kvmlet_engine::Trees {
            readable: &readable,
            overlay: overlay.as_deref(),
            writable: &writable,
            bound: &bound,
            memory: &memory,
        };
        let made = kvmlet_engine::policy_for(&cwd, trees);
        let made = made.map_err(|error| to_py(&error))?;
        Self::new_with(made, &net, &publish, &sockets)
    }

    #[staticmethod]
    #[pyo3(signature = (readable, writable=Vec::new(), net=Vec::new(), publish=Vec::new(), sockets=Vec::new()))]
    fn of_box(
        readable: Vec<Vec<u8>>,
        writable: Vec<Vec<u8>>,
        net: Vec<String>,
        publish: Vec<String>,
        sockets: Vec<Vec<u8>>,
    ) -> PyResult<Self> {
        let trees = kvmlet_engine::Trees {
            readable: &readable,
            writable: &writable,
            ..kvmlet_engine::Trees::default()
        };
        let made = kvmlet_engine::policy_for_box(trees);
        let made = made.map_err(|error| to_py(&error))?;
        Self::new_with(made, &net, &publish, &sockets)
    }

    /// The end of a process that is to look names up; `None` if no rule is about names.
    fn names_end(&self) -> PyResult<Option<i32>> {
        if !self.policy.net().has_names() {
            return Ok(None);
        }
        let end = self.access.helper().map_err(|errno| {
            NativeError::new_err(("host", format!("a process for names: {errno}")))
        })?;
        Ok(Some(end.into_raw_fd()))
    }

    /// The end of a process that is to connect to sockets of the host; `None` if no rule names one.
    fn sockets_end(&self) -> PyResult<Option<i32>> {
        if self.policy.sockets().next().is_none() {
            return Ok(None);
        }
        let end = self.access.connecting_helper().map_err(|errno| {
            NativeError::new_err(("host", format!("a process for sockets: {errno}")))
        })?;
        Ok(Some(end.into_raw_fd()))
    }

    /// Connects to these sockets for another process, for as long as that lives; see `_native.pyi`.
    fn serve_sockets(&self, py: Python<'_>) {
        // The end is standard input: the process has nothing else.
        if let Ok(end) = std::io::stdin().as_fd().try_clone_to_owned() {
            let paths: Vec<Vec<u8>> = self.policy.sockets().map(<[u8]>::to_vec).collect();
            py.detach(|| unix::serve(&end, &paths));
        }
    }

    fn reaches_socket(&self, path: &[u8]) -> bool {
        self.policy.socket_at(path).is_some()
    }

    /// The ports of the host that have been opened, in order.
    fn published(&self) -> Vec<String> {
        let listeners = self.access.listeners().iter();
        listeners
            .map(|(listener, _)| listener.at().to_string())
            .collect()
    }

    #[allow(clippy::type_complexity)] // a tuple of Python's
    fn why<'py>(
        &self,
        py: Python<'py>,
        path: &[u8],
    ) -> PyResult<(
        Bound<'py, PyBytes>,
        Option<&'static str>,
        Option<Bound<'py, PyBytes>>,
        &'static str,
        Option<Refused>,
        Option<Refused>,
    )> {
        let found = kvmlet_engine::why(&self.policy, path).map_err(|error| to_py(&error))?;
        let thing = match found.thing {
            kvmlet_engine::Thing::Absent => "absent",
            kvmlet_engine::Thing::Directory => "directory",
            kvmlet_engine::Thing::File => "file",
        };
        Ok((
            PyBytes::new(py, &found.path),
            found.place.map(kvmlet_engine::Place::name),
            found.tree.map(|tree| PyBytes::new(py, &tree)),
            thing,
            found.read.err().map(refused),
            found.write.err().map(refused),
        ))
    }

    fn reach(&self, host: &str, port: u16) -> Option<&'static str> {
        let reach = self.policy.net().reach(host, port)?;
        Some(match reach {
            kvmlet_engine::Reach::Refused => "refused",
            kvmlet_engine::Reach::Named => "named",
            kvmlet_engine::Reach::Public => "public",
        })
    }

    fn learning(&self, home: &[u8]) -> PyResult<Self> {
        let policy = kvmlet_engine::learning(&self.policy, home).map_err(|error| to_py(&error))?;
        Ok(Self {
            policy,
            cwd: self.cwd.clone(),
            access: Arc::clone(&self.access),
        })
    }

    fn is_closed(&self, path: &[u8]) -> bool {
        self.policy.is_closed(path)
    }

    fn opens_all(&self, path: &[u8]) -> bool {
        self.policy.opening(path) == kvmlet_engine::Opening::All
    }

    fn shows_host(&self, path: &[u8]) -> bool {
        self.policy.classify(path).is_of_host()
    }

    fn shows(&self, path: &[u8]) -> bool {
        self.policy.classify(path) != kvmlet_engine::Place::Outside
    }
}

/// Runs a program in its own VM; see `_native.pyi`.
#[pyfunction]
#[pyo3(signature = (argv, *, env, policy, input, streams, timeout_s, cpu_time_s, memory_bytes, disk, processes_max, output_limit_bytes, trace, calls, on_stdout=None, on_stderr=None, on_denial=None, stop=None, changes=None, files_max=kvmlet_engine::FILES_MOST, trace_to=None))]
#[allow(clippy::too_many_arguments)] // the keywords of one Python call
fn run(
    py: Python<'_>,
    argv: Vec<Vec<u8>>,
    env: Vec<(Vec<u8>, Vec<u8>)>,
    policy: &Policy,
    input: Option<Vec<u8>>,
    streams: Option<&Inherited>,
    timeout_s: Option<f64>,
    cpu_time_s: Option<f64>,
    memory_bytes: u64,
    disk: Option<&Disk>,
    processes_max: usize,
    output_limit_bytes: u64,
    trace: bool,
    calls: &str,
    on_stdout: Option<Py<PyAny>>,
    on_stderr: Option<Py<PyAny>>,
    on_denial: Option<Py<PyAny>>,
    stop: Option<&Stop>,
    changes: Option<&changes::Changes>,
    files_max: u64,
    trace_to: Option<i32>,
) -> PyResult<Outcome> {
    let timeout = duration(timeout_s)?;
    let calls = calls_named(calls)?;
    let streams = match streams {
        Some(inherited) => Streams::Inherit(Arc::clone(&inherited.0)),
        None => Streams::Capture {
            input: input.unwrap_or_default(),
            output_limit_bytes,
        },
    };
    let trace = if trace { Trace::On } else { Trace::Off };
    let program = Program {
        argv,
        env,
        policy: policy.policy.clone(),
        access: Arc::clone(&policy.access),
        cwd: policy.cwd.clone(),
        streams,
        timeout,
        cpu_time: duration(cpu_time_s)?,
        memory_bytes,
        disk: disk.map(|disk| disk.0.clone()),
        processes_max,
        files_max,
        trace,
        calls,
    };
    let mut owner = PythonOwner::stopped_by(Stop::flag(stop));
    owner.traces = trace_to.map(|fd| {
        // SAFETY: the caller hands this descriptor over, as `_native.pyi` says.
        unsafe { std::fs::File::from_raw_fd(fd) }
    });
    owner.told = [on_stdout, on_stderr];
    owner.told_denials = on_denial;
    let mut watches = Vec::new();
    if let Streams::Inherit(inherited) = &program.streams {
        owner.errors = Some(Arc::clone(inherited));
        // A process of ours alone. An application's signals are its own.
        watches.push(signal_hook::flag::register(
            SIGCONT,
            Arc::clone(&owner.continued),
        ));
        if inherited.has_console() {
            let told = Arc::clone(&owner.told_to_stop);
            watches.push(signal_hook::flag::register(SIGTSTP, told));
        }
    }
    let result = py.detach(|| match changes {
        None => kvmlet_engine::run(&program, &mut owner),
        Some(held) => {
            let ended = kvmlet_engine::run_for_changes(&program, &mut owner);
            ended.map(|(outcome, set)| {
                held.put(set);
                outcome
            })
        }
    });
    for watch in watches.into_iter().flatten() {
        signal_hook::low_level::unregister(watch);
    }
    if let Some(raised) = owner.raised {
        return Err(raised);
    }
    result.map(Outcome).map_err(|error| to_py(&error))
}

/// Gives up what a run does not need; see `_native.pyi`.
#[pyfunction]
#[pyo3(signature = (*policies, purpose="run"))]
fn harden(policies: Vec<PyRef<'_, Policy>>, purpose: &str) -> PyResult<(Vec<String>, Vec<String>)> {
    let policies: Vec<&Policy> = policies.iter().map(|one| &**one).collect();
    let wall = wall_for(&policies, purpose)?;
    kvmlet_engine::prepare().map_err(|error| to_py(&error))?;
    let report = wall.raise();
    Ok((report.on, report.missing))
}

/// Opens KVM, and what else a process must before it gives rights up; see `_native.pyi`.
#[pyfunction]
fn prepare() -> PyResult<()> {
    kvmlet_engine::prepare().map_err(|error| to_py(&error))
}

/// The wall of a process that does this.
fn wall_for(policies: &[&Policy], purpose: &str) -> PyResult<kvmlet_jail::Wall> {
    match (purpose, policies) {
        ("run", [policy]) => Ok(kvmlet_jail::wall(&policy.policy)),
        ("serve", [_, ..]) => Ok(kvmlet_jail::wall_of_server(
            policies.iter().map(|one| &one.policy),
        )),
        _ => Err(NativeError::new_err(("bad_argument", "no such purpose"))),
    }
}

/// Looks up names for another process, for as long as that lives; see `_native.pyi`.
#[pyfunction]
fn serve_names(py: Python<'_>) {
    // The end is standard input: the process has nothing else.
    if let Ok(end) = std::io::stdin().as_fd().try_clone_to_owned() {
        py.detach(|| resolver::serve(&Arc::new(end), resolver::look_up));
    }
}

/// A condition on an argument: its place, the bits looked at, their value (None: this process's id).
type Condition = (u8, u32, Option<u32>);
/// A rule: the call's name, its conditions, whether it is made, what for.
type CallRule = (&'static str, Vec<Condition>, bool, &'static str);

/// The system calls that are left after `harden`; see `_native.pyi`.
#[pyfunction]
#[pyo3(signature = (policy, purpose="run"))]
fn calls_after_harden(policy: &Policy, purpose: &str) -> PyResult<Vec<CallRule>> {
    let condition = |when: &When| match *when {
        When::Is(argument, value) => (argument, u32::MAX, Some(value)),
        When::Masked(argument, mask, value) => (argument, mask, Some(value)),
        When::OwnProcess(argument) => (argument, u32::MAX, None),
        When::Null(argument) => (argument, u32::MAX, Some(0)),
    };
    let calls = wall_for(&[policy], purpose)?.calls;
    let row = |call: &Call| {
        let conditions = call.when.iter().map(condition).collect();
        (
            call.name(),
            conditions,
            call.answer == Answer::Allow,
            call.why,
        )
    };
    Ok(calls.iter().map(row).collect())
}

/// In a child of `os.fork()`: closes what it has of the parent's unused VMs.
#[pyfunction]
fn forget_vms() {
    kvmlet_engine::forget_vms();
}

/// Every system call: number, name, level of support, note.
#[pyfunction]
fn syscalls() -> Vec<(u16, &'static str, &'static str, String)> {
    let level = |support| match support {
        Support::Full => "full",
        Support::Partial => "partial",
        Support::Refused => "refused",
        Support::None => "none",
    };
    kvmlet_engine::rows()
        .iter()
        .map(|row| (row.nr, row.name, level(row.support), row.limits()))
        .collect()
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Outcome>()?;
    module.add_class::<Inherited>()?;
    module.add_class::<Disk>()?;
    module.add_class::<Policy>()?;
    module.add_class::<Stop>()?;
    module.add_class::<boxes::Box>()?;
    module.add_class::<files::Files>()?;
    module.add_class::<changes::Changes>()?;
    module.add_class::<sandbox::Sandbox>()?;
    module.add_class::<sandbox::Connection>()?;
    module.add_class::<sandbox::Snapshot>()?;
    module.add_class::<serve::CertificateFiles>()?;
    module.add_class::<serve::Storage>()?;
    module.add_class::<serve::ServedProgram>()?;
    module.add_class::<serve::Server>()?;
    module.add("NativeError", module.py().get_type::<NativeError>())?;
    module.add("NotPlain", module.py().get_type::<NotPlain>())?;
    module.add_function(wrap_pyfunction!(run, module)?)?;
    module.add_function(wrap_pyfunction!(prepare, module)?)?;
    module.add_function(wrap_pyfunction!(harden, module)?)?;
    module.add_function(wrap_pyfunction!(calls_after_harden, module)?)?;
    module.add_function(wrap_pyfunction!(forget_vms, module)?)?;
    module.add_function(wrap_pyfunction!(serve_names, module)?)?;
    module.add_function(wrap_pyfunction!(serve::check_places, module)?)?;
    module.add_function(wrap_pyfunction!(serve::listen, module)?)?;
    module.add_function(wrap_pyfunction!(memory::room, module)?)?;
    module.add_function(wrap_pyfunction!(syscalls, module)?)?;
    module.add_function(wrap_pyfunction!(doctor::probe, module)?)?;
    module.add_function(wrap_pyfunction!(protected::guard_of, module)?)?;
    module.add_function(wrap_pyfunction!(protected::is_saved_set, module)?)?;
    module.add_function(wrap_pyfunction!(protected::makes_repository, module)?)?;
    Ok(())
}
