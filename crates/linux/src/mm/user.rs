//! Access to a program's memory on behalf of its system calls: what Linux's copy_from_user,
//! copy_to_user and futex code do.

use kvmlet_abi::layout::USER_END;
use kvmlet_abi::{Errno, Gva, PAGE_SIZE};
use kvmlet_mem::{CopyOutcome, CopyStop, MemError, PteFlags};

use super::hot_pages::note_read;
use super::{Access, Backing, FaultError, Space, Vma, fault};
use crate::cx::Cx;
use crate::outcome::{FutexKey, SharedObject};

/// True if `len_bytes` at `addr` lie in the part of the address space that a program may map.
#[must_use]
pub fn in_user_space(addr: u64, len_bytes: u64) -> bool {
    addr.checked_add(len_bytes)
        .is_some_and(|end| end <= USER_END.0)
}

/// Copies from the program's memory as far as it goes; answers the bytes copied. Pages are faulted in
/// as a read would.
///
/// # Errors
/// `EFAULT` if not even the first byte can be read.
pub fn read_some(cx: &mut Cx<'_>, gva: Gva, buf: &mut [u8]) -> Result<usize, Errno> {
    let len = buf.len();
    let mut reads_file = false;
    let copied = copy(cx, gva, len, Access::Read, |cx, at, done| {
        let rest = buf.get_mut(done..).unwrap_or_default();
        let (tables, memory) = cx.tables()?;
        let outcome = tables.copy_in(memory, at, rest);
        reads_file |= outcome.reads_file;
        Ok(outcome)
    })?;
    if reads_file {
        note_read(cx, gva, len);
    }
    Ok(copied)
}

/// Copies to the program's memory as far as it goes; answers the bytes copied. Pages are faulted in
/// (and copied on write) as a write would.
///
/// # Errors
/// `EFAULT` if not even the first byte can be written.
pub fn write_some(cx: &mut Cx<'_>, gva: Gva, bytes: &[u8]) -> Result<usize, Errno> {
    copy(cx, gva, bytes.len(), Access::Write, |cx, at, done| {
        let rest = bytes.get(done..).unwrap_or_default();
        let (tables, memory) = cx.tables()?;
        Ok(tables.copy_out(memory, at, rest))
    })
}

/// Copies from the program's memory.
///
/// # Errors
/// `EFAULT` if a byte cannot be read.
pub fn read(cx: &mut Cx<'_>, gva: Gva, buf: &mut [u8]) -> Result<(), Errno> {
    whole(read_some(cx, gva, buf)?, buf.len())
}

/// Copies to the program's memory.
///
/// # Errors
/// `EFAULT` if a byte cannot be written; earlier ones may have been.
pub fn write(cx: &mut Cx<'_>, gva: Gva, bytes: &[u8]) -> Result<(), Errno> {
    whole(write_some(cx, gva, bytes)?, bytes.len())
}

fn whole(copied: usize, len: usize) -> Result<(), Errno> {
    if copied == len {
        Ok(())
    } else {
        Err(Errno::EFAULT)
    }
}

fn copy(
    cx: &mut Cx<'_>,
    gva: Gva,
    len: usize,
    access: Access,
    mut step: impl FnMut(&mut Cx<'_>, Gva, usize) -> Result<CopyOutcome, Errno>,
) -> Result<usize, Errno> {
    if len == 0 {
        return Ok(0);
    }
    if !in_user_space(gva.0, len as u64) {
        return Err(Errno::EFAULT);
    }
    let mut done = 0usize;
    let mut last_stop = None;
    loop {
        let outcome = step(cx, gva.wrapping_add(done as u64), done)?;
        done = done.saturating_add(outcome.copied_bytes);
        let stop = match outcome.stop {
            None => return Ok(done),
            Some(CopyStop::NotPresent(at) | CopyStop::Denied(at)) => at,
            Some(CopyStop::FileFault(_)) => return some(done),
        };
        // A fault that was resolved lets the copy go on; the same one twice never will.
        if last_stop == Some(stop) || resolve(cx, stop, access).is_err() {
            return some(done);
        }
        last_stop = Some(stop);
    }
}

fn some(done: usize) -> Result<usize, Errno> {
    if done == 0 {
        Err(Errno::EFAULT)
    } else {
        Ok(done)
    }
}

/// Faults a page in for a system call. Running out of memory ends the run, as it does when the
/// program touches the page itself.
fn resolve(cx: &mut Cx<'_>, gva: Gva, access: Access) -> Result<(), Errno> {
    fault(cx, gva, access).map_err(|error| {
        if error == FaultError::OutOfMemory {
            cx.kernel.out_of_memory(cx.tid);
        }
        Errno::EFAULT
    })
}

/// Reads a NUL-terminated string; the answer is without its NUL, which counts towards `max_len`.
///
/// # Errors
/// `EFAULT` for a bad pointer, `ENAMETOOLONG` when the first `max_len` bytes hold no NUL.
pub fn read_cstr(cx: &mut Cx<'_>, gva: Gva, max_len: usize) -> Result<Vec<u8>, Errno> {
    /// Most names are shorter than this: the rest of their page need be neither copied nor cleared.
    const FIRST: usize = 128;
    let mut text = Vec::new();
    if push_part(cx, gva, max_len, &mut [0; FIRST], &mut text)? {
        return Ok(text);
    }
    let mut page = [0; PAGE_SIZE as usize];
    while text.len() < max_len {
        if push_part(cx, gva, max_len, &mut page, &mut text)? {
            return Ok(text);
        }
    }
    Err(Errno::ENAMETOOLONG)
}

/// Reads on in the string at `gva`, by as much as `part` holds and its page has; whether its NUL was met.
fn push_part(
    cx: &mut Cx<'_>,
    gva: Gva,
    max_len: usize,
    part: &mut [u8],
    text: &mut Vec<u8>,
) -> Result<bool, Errno> {
    let at = gva
        .checked_add(text.len() as u64)
        .filter(|at| at.0 < USER_END.0)
        .ok_or(Errno::EFAULT)?;
    let to_page_end = PAGE_SIZE.saturating_sub(at.page_offset());
    let left = max_len.saturating_sub(text.len()).min(part.len());
    let len = usize::try_from(to_page_end).unwrap_or(left).min(left);
    let part = part.get_mut(..len).ok_or(Errno::EFAULT)?;
    read(cx, at, part)?;
    let nul = part.iter().position(|&byte| byte == 0);
    text.extend_from_slice(part.get(..nul.unwrap_or(len)).unwrap_or_default());
    Ok(nul.is_some())
}

/// The word at `gva`, read atomically.
///
/// # Errors
/// `EFAULT`; `EINVAL` if it is not aligned.
pub fn load_u32(cx: &mut Cx<'_>, gva: Gva) -> Result<u32, Errno> {
    on_word(cx, gva, Access::Read, |cx, gpa| {
        cx.machine.memory.load_u32(gpa)
    })
}

/// Tries to change a word, each after another has changed it meanwhile. No other thread of the program's runs then. A
/// word of a file that is shared with other processes of the host may change at any time.
pub const EXCHANGES_MAX: usize = 128;

/// Stores `new` in the word at `gva` if it holds `old`; answers whether it did.
///
/// # Errors
/// `EFAULT` if it may not be written; `EINVAL` if it is not aligned.
pub fn compare_exchange_u32(cx: &mut Cx<'_>, gva: Gva, old: u32, new: u32) -> Result<bool, Errno> {
    let is_shared = cx.mm()?.find(gva.0).is_some_and(Vma::is_shared);
    let found = on_word(cx, gva, Access::Write, |cx, gpa| {
        let memory = &mut cx.machine.memory;
        match memory.compare_exchange_u32(gpa, old, new) {
            // Linux differs: another process of the host may come between.
            Err(MemError::FileBacked(_)) if is_shared => memory.exchange_in_file(gpa, old, new),
            exchanged => exchanged,
        }
    })?;
    Ok(found.is_ok())
}

/// Runs `action` on the word's place once its page allows `access`.
fn on_word<T>(
    cx: &mut Cx<'_>,
    gva: Gva,
    access: Access,
    mut action: impl FnMut(&mut Cx<'_>, kvmlet_abi::Gpa) -> Result<T, MemError>,
) -> Result<T, Errno> {
    if !gva.0.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    if !in_user_space(gva.0, 4) {
        return Err(Errno::EFAULT);
    }
    let mut needed = PteFlags::USER;
    needed.set(PteFlags::WRITE, access == Access::Write);
    // First as it is, then faulted in, then taken out of its file: no step is needed twice.
    for _ in 0..3 {
        let (tables, memory) = cx.tables()?;
        let leaf = tables.walk(memory, gva);
        let Some(leaf) = leaf.filter(|leaf| leaf.flags.contains(needed)) else {
            resolve(cx, gva, access)?;
            continue;
        };
        match action(cx, leaf.gpa_of(gva)) {
            Ok(value) => return Ok(value),
            Err(MemError::FileBacked(_)) => {
                Space::of(cx)?.privatise(gva).map_err(|_| Errno::EFAULT)?
            }
            Err(_) => return Err(Errno::EFAULT),
        }
    }
    Err(Errno::EFAULT)
}

/// The key that a shared futex at `gva` is known by. Private memory is known by address space and address, shared
/// memory by its file and the place of the word in it (futex(2)).
///
/// # Errors
/// `EFAULT` for a bad pointer.
pub fn futex_key(cx: &mut Cx<'_>, gva: Gva) -> Result<FutexKey, Errno> {
    load_u32(cx, gva)?;
    let private = FutexKey::Private(cx.process()?.mm, gva.0);
    let Some(vma) = cx.mm()?.find(gva.0).filter(|vma| vma.is_shared()) else {
        return Ok(private);
    };
    // Never the frame's address: a fork's copy of a frame lies elsewhere, and waiters stay the same.
    let (object, offset) = match vma.backing {
        Backing::Tmp(tmp) => (SharedObject::Memory(tmp.inode), tmp.offset),
        Backing::File(file) => {
            let (dev, ino) = (file.dev, file.ino);
            (SharedObject::Host { dev, ino }, file.offset)
        }
        Backing::Anon | Backing::Special(_) => return Ok(private),
    };
    let offset = offset.wrapping_add(gva.0.wrapping_sub(vma.start));
    Ok(FutexKey::Shared(object, offset))
}
