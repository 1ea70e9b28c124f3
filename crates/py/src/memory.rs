//! Messages between Python's memory and the engine's: each byte is copied once, and no memory is cleared first.

use std::ptr;
use std::sync::Arc;

use pyo3::buffer::PyBuffer;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use crate::sandbox::native;

/// One message of several parts. Fails for a part with gaps.
pub fn joined(parts: &[PyBuffer<u8>]) -> PyResult<Arc<[u8]>> {
    let gaps = || native("bad_argument", "a part of a message has gaps");
    let parts: Option<Vec<_>> = parts.iter().map(PyBuffer::as_slice_ptr).collect();
    let parts = parts.ok_or_else(gaps)?;
    let total = parts.iter().map(|part| part.len()).sum();
    let mut message = Arc::<[u8]>::new_uninit_slice(total);
    let mut place: *mut u8 = Arc::get_mut(&mut message)
        .map_or(ptr::null_mut(), |rest| rest.as_mut_ptr())
        .cast();
    for part in parts {
        // SAFETY: nobody else has the message, so that the place is no null pointer. It has room for the lengths
        // of all parts. Python keeps a part's memory while its buffer is held, which the caller does.
        place = unsafe {
            place.copy_from_nonoverlapping(part.as_ptr().cast(), part.len());
            place.add(part.len())
        };
    }
    // SAFETY: the parts have as many bytes together as it has, and all have been copied.
    Ok(unsafe { message.assume_init() })
}

/// A bytearray that holds whatever was in its memory before; see `_native.pyi`.
#[pyfunction]
pub fn room(py: Python<'_>, len_bytes: usize) -> PyResult<Bound<'_, PyByteArray>> {
    let too_long = |_| native("bad_argument", "room: it is too long");
    let len_bytes = ffi::Py_ssize_t::try_from(len_bytes).map_err(too_long)?;
    // SAFETY: the interpreter's lock is held. Without bytes to copy this makes a bytearray, or raises.
    let made = unsafe { ffi::PyByteArray_FromStringAndSize(ptr::null(), len_bytes) };
    // SAFETY: it is a new reference, or null with an exception set.
    let made = unsafe { Bound::from_owned_ptr_or_err(py, made)? };
    Ok(made.cast_into::<PyByteArray>()?)
}

/// Copies a message to a place in `room`, if it fits there.
pub fn fill(room: &Bound<'_, PyByteArray>, at: usize, message: &[u8]) {
    if message.len() > room.len().saturating_sub(at) {
        return;
    }
    // SAFETY: the interpreter's lock is held, so that nobody makes it another size. `at` and the message lie in it.
    unsafe {
        let place = room.data().add(at);
        place.copy_from_nonoverlapping(message.as_ptr(), message.len());
    }
}
