//! The changes of a run, with their contents, as Python sees them; see `_native.pyi`.

use std::sync::{Mutex, PoisonError};

use kvmlet_engine::{Become, ChangeSet, Errno, Seen};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::NativeError;

/// Bytes read at once at most.
const READ_MAX: usize = 1 << 20;

/// The host's object: device, inode, mode, links, size, times of modification and status change in nanoseconds.
type SeenRow = (u64, u64, u32, u64, u64, i128, i128);
/// Kind, path, mode, times of modification and status change, size, target, seen, whether it is late, same as, extended
/// attributes.
type Row<'py> = (
    &'static str,
    Bound<'py, PyBytes>,
    u32,
    i128,
    i128,
    u64,
    Bound<'py, PyBytes>,
    Option<SeenRow>,
    bool,
    Option<usize>,
    Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)>,
);

/// The changes of a run; see `_native.pyi`.
#[pyclass(frozen, module = "kvmlet._native")]
pub struct Changes(Mutex<Option<ChangeSet>>);

impl Changes {
    pub(crate) fn put(&self, set: ChangeSet) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(set);
    }

    fn with<T>(&self, ask: impl FnOnce(&mut ChangeSet) -> PyResult<T>) -> PyResult<T> {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let set = set.as_mut();
        set.map_or_else(
            || {
                let why = "no changes are held";
                Err(NativeError::new_err(("bad_argument", why)))
            },
            ask,
        )
    }
}

#[pymethods]
impl Changes {
    #[new]
    fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn __len__(&self) -> usize {
        let set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        set.as_ref().map_or(0, |set| set.entries.len())
    }

    #[getter]
    fn is_held(&self) -> bool {
        let set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        set.is_some()
    }

    #[getter]
    fn is_cut(&self) -> PyResult<bool> {
        self.with(|set| Ok(set.is_cut))
    }

    fn entry<'py>(&self, py: Python<'py>, place: usize) -> PyResult<Row<'py>> {
        self.with(|set| {
            let entry = set.entries.get(place);
            let entry = entry.ok_or_else(|| {
                NativeError::new_err(("bad_argument", "no change has this place"))
            })?;
            let ns = |time: kvmlet_engine::FileTime| {
                i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec)
            };
            let row = |seen: &Seen| {
                let Seen {
                    dev,
                    ino,
                    mode,
                    nlink,
                    size,
                    mtime,
                    ctime,
                    ..
                } = *seen;
                (dev, ino, mode, nlink, size, ns(mtime), ns(ctime))
            };
            let (kind, size, target) = match &entry.made {
                Become::Removed => ("removed", 0, b"".as_slice()),
                Become::File(size) => ("file", *size, b"".as_slice()),
                Become::Symlink(target) => ("symlink", 0, target.as_slice()),
                Become::Directory => ("directory", 0, b"".as_slice()),
                Become::Special => ("special", 0, b"".as_slice()),
                Become::Mode => ("mode", 0, b"".as_slice()),
            };
            let attributes = match (&entry.made, entry.same_as) {
                (Become::File(_), None) => set.attributes(place),
                _ => kvmlet_engine::Attributes::default(),
            };
            let attributes = attributes.iter();
            let attributes = attributes
                .map(|(name, value)| (PyBytes::new(py, name), PyBytes::new(py, value)))
                .collect();
            Ok((
                kind,
                PyBytes::new(py, &entry.path),
                entry.mode,
                ns(entry.mtime),
                ns(entry.ctime),
                size,
                PyBytes::new(py, target),
                entry.seen.as_ref().map(row),
                entry.is_late,
                entry.same_as,
                attributes,
            ))
        })
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        place: usize,
        offset: u64,
        size: usize,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let read = py.detach(|| {
            self.with(|set| {
                let mut bytes = vec![0; size.min(READ_MAX)];
                match set.read(place, offset, &mut bytes) {
                    Ok(count) => {
                        bytes.truncate(count);
                        Ok(Some(bytes))
                    }
                    Err(Errno::ESTALE) => Ok(None),
                    Err(error) => {
                        let why = format!("the bytes of a changed file cannot be read: {error:?}");
                        Err(NativeError::new_err(("host", why)))
                    }
                }
            })
        });
        Ok(read?.map(|bytes| PyBytes::new(py, &bytes)))
    }

    fn next_data(&self, place: usize, offset: u64) -> PyResult<u64> {
        self.with(|set| Ok(set.next_data(place, offset)))
    }

    fn release(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
