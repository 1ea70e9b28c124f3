//! Python as the owner of a run: its signal handlers, its callables, and whoever stops it.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvmlet_engine::{Denial, Owner, Streamed};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use signal_hook::consts::SIGTSTP;

use crate::SAY;

/// A thread's word to another that waits; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// The flag of `stop`, or one that nobody sets.
    pub(crate) fn flag(stop: Option<&Self>) -> Arc<AtomicBool> {
        stop.map_or_else(Arc::default, |stop| Arc::clone(&stop.0))
    }
}

#[pymethods]
impl Stop {
    #[new]
    fn new() -> Self {
        Self(Arc::default())
    }

    fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Python's signal handlers decide whether a run goes on; trace lines go to standard error.
pub(crate) struct PythonOwner {
    /// The exception that a handler raised.
    pub(crate) raised: Option<PyErr>,
    /// Set by a thread that wants the run to end.
    pub(crate) stop: Arc<AtomicBool>,
    /// The place that trace lines go to.
    pub(crate) errors: Option<Arc<kvmlet_engine::Inherited>>,
    /// The file that they go to instead.
    pub(crate) traces: Option<std::fs::File>,
    /// Set when the process is continued after a stop.
    pub(crate) continued: Arc<AtomicBool>,
    /// Set when the process is told to stop (SIGTSTP), while the program is on its terminal.
    pub(crate) told_to_stop: Arc<AtomicBool>,
    /// Called with what the program writes to standard output and standard error.
    pub(crate) told: [Option<Py<PyAny>>; 2],
    /// Called with the fields of each thing that the policy refuses.
    pub(crate) told_denials: Option<Py<PyAny>>,
}

impl PythonOwner {
    pub(crate) fn stopped_by(stop: Arc<AtomicBool>) -> Self {
        Self {
            raised: None,
            stop,
            errors: None,
            traces: None,
            continued: Arc::default(),
            told_to_stop: Arc::default(),
            told: [None, None],
            told_denials: None,
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

    fn was_told_to_stop(&mut self) -> bool {
        self.told_to_stop.swap(false, Ordering::SeqCst)
    }

    fn stop(&mut self) {
        // It stops by SIGSTOP, as the default action of SIGTSTP does.
        let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
    }

    fn streamed(&self) -> [bool; 2] {
        self.told.each_ref().map(Option::is_some)
    }

    fn output(&mut self, stream: Streamed, bytes: Vec<u8>) {
        let [stdout, stderr] = &self.told;
        let told = match stream {
            Streamed::Stdout => stdout,
            Streamed::Stderr => stderr,
        };
        let (Some(told), None) = (told, &self.raised) else {
            return;
        };
        self.raised =
            Python::attach(|py| told.call1(py, (PyBytes::new(py, &bytes),)).map(drop)).err();
    }

    fn wants_denials(&self) -> bool {
        self.told_denials.is_some()
    }

    fn denied(&mut self, denial: &Denial) {
        let (Some(told), None) = (&self.told_denials, &self.raised) else {
            return;
        };
        let kind = denial.remedy.name();
        let fields = (denial.what.as_str(), denial.errno, kind, denial.count);
        self.raised = Python::attach(|py| told.call1(py, fields).map(drop)).err();
    }

    fn trace(&mut self, line: &str, left: Option<Duration>) {
        if let Some(file) = &mut self.traces {
            // A full disk does not end the run: the trace ends there.
            if file.write_all(format!("{line}\n").as_bytes()).is_err() {
                self.traces = None;
                self.errors = None;
            }
            return;
        }
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
