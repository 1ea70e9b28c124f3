//! Protected names, as Python asks for them; see `_native.pyi`.

use std::cell::RefCell;

use kvmlet_engine::Guard;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// A function of Python's that says if something is there. If it fails, nothing else counts.
struct Asked<'a, 'py> {
    function: &'a Bound<'py, PyAny>,
    failed: RefCell<Option<PyErr>>,
}

impl<'a, 'py> Asked<'a, 'py> {
    fn of(function: &'a Bound<'py, PyAny>) -> Self {
        let failed = RefCell::new(None);
        Self { function, failed }
    }

    fn ask(&self, path: &[u8]) -> bool {
        let path = PyBytes::new(self.function.py(), path);
        let answer = self.function.call1((path,));
        let answer = answer.and_then(|answer| answer.extract::<bool>());
        answer.unwrap_or_else(|error| {
            self.failed.replace(Some(error));
            true
        })
    }

    fn or_failed<T>(self, answer: T) -> PyResult<T> {
        self.failed.into_inner().map_or(Ok(answer), Err)
    }
}

#[pyfunction]
pub fn guard_of(path: &[u8], exists: &Bound<'_, PyAny>) -> PyResult<&'static str> {
    let exists = Asked::of(exists);
    let guard = kvmlet_engine::guard_of(path, |path| exists.ask(path), |_| false);
    exists.or_failed(match guard {
        Guard::None => "none",
        Guard::Nested => "nested",
        Guard::Leading => "leading",
        Guard::Settings => "settings",
        Guard::Whole => "whole",
    })
}

#[pyfunction]
pub fn makes_repository(
    path: &[u8],
    exists: &Bound<'_, PyAny>,
    acts: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    let (exists, acts) = (Asked::of(exists), Asked::of(acts));
    let answer =
        kvmlet_engine::makes_repository(path, |path| exists.ask(path), |path| acts.ask(path));
    exists.or_failed(())?;
    acts.or_failed(answer)
}

#[pyfunction]
pub fn is_saved_set(path: &[u8]) -> bool {
    kvmlet_engine::is_saved_set(path)
}
