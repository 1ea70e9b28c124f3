//! The extension module `kvmlet._native`: conversions, the GIL, errors. No logic.
#![allow(unsafe_code)] // what PyO3's macros expand to

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvmlet_engine::{
    Calls, Ending, EngineError, Owner, Program, RunOutcome, Stat, Streams, Support, Trace,
};
use kvmlet_jail::{Answer, Call, When};
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use signal_hook::consts::SIGCONT;

mod doctor;
mod sandbox;

create_exception!(
    _native,
    NativeError,
    PyException,
    "What was asked for cannot be done: (kind, message)."
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
    fn denials(&self) -> Vec<(String, &'static str, &'static str)> {
        let denials = self.0.denials.iter();
        denials
            .map(|denial| (denial.what.clone(), denial.errno, denial.remedy.wording()))
            .collect()
    }

    #[getter]
    fn events(&self) -> Vec<(String, String)> {
        self.0.events.clone()
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
    fn new() -> Self {
        Self(Arc::new(kvmlet_engine::Inherited::open()))
    }

    /// Writes to standard error what it takes within a moment.
    fn say(&self, py: Python<'_>, data: Vec<u8>) {
        // What cannot be said is lost: there is nowhere else.
        let _ = py.detach(|| self.0.say(&data, SAY));
    }
}

/// The rules on the host's files that a program may see; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
struct Policy {
    policy: kvmlet_engine::Policy,
    /// The directory that the program starts in.
    cwd: Vec<u8>,
}

#[pymethods]
impl Policy {
    #[new]
    fn new(cwd: Vec<u8>) -> PyResult<Self> {
        let made = kvmlet_engine::policy_for(&cwd, &[]);
        let (policy, cwd) = made.map_err(|error| to_py(&error))?;
        Ok(Self { policy, cwd })
    }
}

/// Python's signal handlers decide whether a run goes on; trace lines go to standard error.
struct PythonOwner {
    /// The exception that a handler raised.
    raised: Option<PyErr>,
    /// Set by a thread that wants the run to end.
    stop: Arc<AtomicBool>,
    /// The place that trace lines go to.
    errors: Option<Arc<kvmlet_engine::Inherited>>,
    /// Set when the process is continued after a stop.
    continued: Arc<AtomicBool>,
}

impl PythonOwner {
    fn stopped_by(stop: Arc<AtomicBool>) -> Self {
        Self {
            raised: None,
            stop,
            errors: None,
            continued: Arc::default(),
        }
    }
}

impl Owner for PythonOwner {
    fn stop_requested(&mut self) -> bool {
        if self.stop.load(Ordering::SeqCst) {
            return true;
        }
        if self.raised.is_none() {
            self.raised = Python::attach(|py| py.check_signals()).err();
        }
        self.raised.is_some()
    }

    fn was_continued(&mut self) -> bool {
        self.continued.swap(false, Ordering::SeqCst)
    }

    fn trace(&mut self, line: &str, left: Option<Duration>) {
        let until = left.and_then(|left| Instant::now().checked_add(left));
        let Some(errors) = self.errors.clone() else {
            return;
        };
        let line = format!("{line}\n").into_bytes();
        let mut rest = line.as_slice();
        // A slow reader holds the program up, but neither its limit nor a signal.
        while !rest.is_empty() && until.is_none_or(|until| Instant::now() < until) {
            let Ok(count) = errors.say(rest, SAY) else {
                return;
            };
            rest = rest.get(count..).unwrap_or_default();
            if !rest.is_empty() && self.stop_requested() {
                return;
            }
        }
    }
}

/// Runs a program in its own VM; see `_native.pyi`.
#[pyfunction]
#[pyo3(signature = (argv, *, env, policy, input, streams, timeout_s, memory_bytes, processes_max, output_limit_bytes, trace, calls))]
#[allow(clippy::too_many_arguments)] // the keywords of one Python call
fn run(
    py: Python<'_>,
    argv: Vec<Vec<u8>>,
    env: Vec<(Vec<u8>, Vec<u8>)>,
    policy: &Policy,
    input: Option<Vec<u8>>,
    streams: Option<&Inherited>,
    timeout_s: Option<f64>,
    memory_bytes: u64,
    processes_max: usize,
    output_limit_bytes: u64,
    trace: bool,
    calls: &str,
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
        cwd: policy.cwd.clone(),
        streams,
        timeout,
        memory_bytes,
        processes_max,
        trace,
        calls,
    };
    let mut owner = PythonOwner::stopped_by(Arc::default());
    let mut watch = None;
    if let Streams::Inherit(inherited) = &program.streams {
        owner.errors = Some(Arc::clone(inherited));
        // A process of ours alone. An application's signals are its own.
        watch = signal_hook::flag::register(SIGCONT, Arc::clone(&owner.continued)).ok();
    }
    let result = py.detach(|| kvmlet_engine::run(&program, &mut owner));
    if let Some(watch) = watch {
        signal_hook::low_level::unregister(watch);
    }
    if let Some(raised) = owner.raised {
        return Err(raised);
    }
    result.map(Outcome).map_err(|error| to_py(&error))
}

/// Gives up what a run does not need; see `_native.pyi`.
#[pyfunction]
fn harden(policy: &Policy) -> PyResult<(Vec<String>, Vec<String>)> {
    kvmlet_engine::prepare().map_err(|error| to_py(&error))?;
    let report = kvmlet_jail::wall(&policy.policy).raise();
    Ok((report.on, report.missing))
}

/// A condition on an argument: its place, the bits looked at, their value (None: this process's id).
type Condition = (u8, u32, Option<u32>);
/// A rule: the call's name, its conditions, whether it is made, what for.
type CallRule = (&'static str, Vec<Condition>, bool, &'static str);

/// The system calls that are left after `harden`; see `_native.pyi`.
#[pyfunction]
fn calls_after_harden(policy: &Policy) -> Vec<CallRule> {
    let condition = |when: &When| match *when {
        When::Is(argument, value) => (argument, u32::MAX, Some(value)),
        When::Masked(argument, mask, value) => (argument, mask, Some(value)),
        When::OwnProcess(argument) => (argument, u32::MAX, None),
        When::Null(argument) => (argument, u32::MAX, Some(0)),
    };
    let calls = kvmlet_jail::wall(&policy.policy).calls;
    let row = |call: &Call| {
        let conditions = call.when.iter().map(condition).collect();
        (
            call.name(),
            conditions,
            call.answer == Answer::Allow,
            call.why,
        )
    };
    calls.iter().map(row).collect()
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
    module.add_class::<Policy>()?;
    module.add_class::<sandbox::Sandbox>()?;
    module.add_class::<sandbox::Snapshot>()?;
    module.add("NativeError", module.py().get_type::<NativeError>())?;
    module.add_function(wrap_pyfunction!(run, module)?)?;
    module.add_function(wrap_pyfunction!(harden, module)?)?;
    module.add_function(wrap_pyfunction!(calls_after_harden, module)?)?;
    module.add_function(wrap_pyfunction!(forget_vms, module)?)?;
    module.add_function(wrap_pyfunction!(syscalls, module)?)?;
    module.add_function(wrap_pyfunction!(doctor::probe, module)?)?;
    Ok(())
}
