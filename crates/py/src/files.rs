//! `Files` as Python sees them; see `_native.pyi`.

use kvmlet_engine::{EngineError, Errno, FileInfo, Links, OpenFlags, Personality};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::boxes::Box;
use crate::sandbox::Sandbox;

/// Type and permissions, size in bytes, time of the last modification in nanoseconds.
type Info = (u32, u64, u64);
/// Names in a directory, each with `true` for a directory.
type Entries<'py> = Vec<(Bound<'py, PyBytes>, bool)>;
/// The files of a box or of a sandbox's program; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
pub struct Files(Whose);

enum Whose {
    Box(Py<Box>),
    Program(Py<Sandbox>),
}

impl Files {
    pub(crate) fn of_box(one: Py<Box>) -> Self {
        Self(Whose::Box(one))
    }

    pub(crate) fn of_program(one: Py<Sandbox>) -> Self {
        Self(Whose::Program(one))
    }

    /// Makes calls, for a file that was opened in `epoch` if there is one.
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        epoch: Option<u64>,
        work: impl FnOnce(&mut Personality) -> Result<T, Errno> + Send,
    ) -> PyResult<T> {
        match &self.0 {
            Whose::Box(one) => one.get().with(py, |engine| {
                let done = match epoch {
                    Some(epoch) => engine.act_in(epoch, work),
                    None => engine.act(work),
                };
                done?.map_err(|errno| EngineError::File(errno.name()))
            }),
            Whose::Program(one) => one
                .get()
                .act(py, |engine| engine.act_as_program(epoch, work)),
        }
    }

    /// The number that files have which are opened now.
    fn epoch(&self, py: Python<'_>) -> PyResult<u64> {
        match &self.0 {
            Whose::Box(one) => one.get().with(py, |engine| Ok(engine.epoch())),
            Whose::Program(one) => one.get().act(py, |engine| Ok(engine.generation())),
        }
    }
}

fn info(info: FileInfo) -> Info {
    let (seconds, nanoseconds) = info.mtime;
    let mtime_ns = seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds);
    (info.mode, info.size_bytes, mtime_ns)
}

#[pymethods]
impl Files {
    #[allow(clippy::needless_pass_by_value)] // as pyo3 has it
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match &self.0 {
            Whose::Box(one) => visit.call(one),
            Whose::Program(one) => visit.call(one),
        }
    }

    fn open(&self, py: Python<'_>, path: Vec<u8>, flags: u32, mode: u32) -> PyResult<(u64, i32)> {
        let flags = OpenFlags::from_bits_truncate(flags);
        let epoch = self.epoch(py)?;
        let opened = self.call(py, Some(epoch), |personality| {
            personality.open(&path, flags, mode)
        });
        Ok((epoch, opened?))
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        epoch: u64,
        number: i32,
        max_bytes: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.call(py, Some(epoch), |personality| {
            personality.read(number, max_bytes)
        })?;
        Ok(PyBytes::new(py, &bytes))
    }

    fn write(&self, py: Python<'_>, epoch: u64, number: i32, data: &[u8]) -> PyResult<usize> {
        self.call(py, Some(epoch), |personality| {
            personality.write(number, data)
        })
    }

    fn stat(&self, py: Python<'_>, path: Vec<u8>, follow: bool) -> PyResult<Info> {
        let links = if follow {
            Links::Followed
        } else {
            Links::Shown
        };
        Ok(info(self.call(py, None, |personality| {
            personality.stat(&path, links)
        })?))
    }

    fn stat_file(&self, py: Python<'_>, epoch: u64, number: i32) -> PyResult<Info> {
        Ok(info(self.call(py, Some(epoch), |personality| {
            personality.stat_open(number)
        })?))
    }

    fn names<'py>(&self, py: Python<'py>, path: Vec<u8>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let listed = self.call(py, None, |personality| personality.list(&path))?;
        let names = listed.iter().map(|one| PyBytes::new(py, &one.name));
        Ok(names.collect())
    }

    fn open_watch(&self, py: Python<'_>) -> PyResult<(u64, i32)> {
        let epoch = self.epoch(py)?;
        let opened = self.call(py, Some(epoch), Personality::open_watch)?;
        Ok((epoch, opened))
    }

    fn add_watch<'py>(
        &self,
        py: Python<'py>,
        epoch: u64,
        number: i32,
        path: Vec<u8>,
        mask: u32,
    ) -> PyResult<(i32, Entries<'py>)> {
        let (watch, listed) = self.call(py, Some(epoch), |personality| {
            let watch = personality.add_watch(number, &path, mask)?;
            Ok((watch, personality.list(&path)))
        })?;
        // A file has no entries, and a directory may keep them to itself.
        let listed = listed.unwrap_or_default().into_iter();
        let entries = listed.map(|one| (PyBytes::new(py, &one.name), one.is_directory));
        Ok((watch, entries.collect()))
    }

    fn remove_watch(&self, py: Python<'_>, epoch: u64, number: i32, watch: i32) -> PyResult<()> {
        self.call(py, Some(epoch), |personality| {
            personality.remove_watch(number, watch)
        })
    }

    fn mkdir(&self, py: Python<'_>, path: Vec<u8>) -> PyResult<()> {
        self.call(py, None, |personality| personality.make_directory(&path))
    }

    fn remove(&self, py: Python<'_>, path: Vec<u8>) -> PyResult<()> {
        self.call(py, None, |personality| personality.remove(&path))
    }

    fn rename(&self, py: Python<'_>, source: Vec<u8>, target: Vec<u8>) -> PyResult<()> {
        self.call(py, None, |personality| personality.rename(&source, &target))
    }

    fn chmod(&self, py: Python<'_>, path: Vec<u8>, mode: u32) -> PyResult<()> {
        self.call(py, None, |personality| personality.change_mode(&path, mode))
    }

    fn close(&self, py: Python<'_>, epoch: u64, number: i32) -> PyResult<()> {
        self.call(py, Some(epoch), |personality| {
            personality.close(number);
            Ok(())
        })
    }
}
