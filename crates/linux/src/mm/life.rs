//! The beginning and the end of address spaces.

use kvmlet_abi::Errno;

use super::space::Space;
use super::{Mm, MmId};
use crate::cx::{Cx, Machine};

/// Gives the calling process a new, empty address space (execve(2)). The one that it had goes, unless
/// another process has it too.
///
/// # Errors
/// `ENOMEM`: nothing has changed.
pub fn start_anew(cx: &mut Cx<'_>) -> Result<(), Errno> {
    let id = MmId(cx.kernel.next_mm);
    let machine = &mut *cx.machine;
    machine
        .spaces
        .create(&mut machine.memory, id)
        .map_err(|_| Errno::ENOMEM)?;
    cx.kernel.next_mm = cx.kernel.next_mm.saturating_add(1);
    cx.kernel.mms.insert(id, Mm::default());
    let pid = cx.process()?.pid;
    let process = cx.kernel.processes.get(&pid).ok_or(Errno::ESRCH)?;
    let peak_bytes = process.peak_bytes(&cx.machine.spaces);
    leave(cx)?;
    let process = cx.process()?;
    (process.mm, process.former_peak_bytes) = (id, peak_bytes);
    Ok(())
}

/// The calling process gives up its address space, which ends unless another process has it too. The process
/// gets another one, or ends itself.
///
/// # Errors
/// `ESRCH` if the calling thread is gone.
pub fn leave(cx: &mut Cx<'_>) -> Result<(), Errno> {
    let (pid, id) = (cx.process()?.pid, cx.process()?.mm);
    let mut others = cx.kernel.processes.values();
    if others.any(|process| process.mm == id && process.pid != pid) {
        return Ok(());
    }
    end(cx, id)
}

/// Ends an address space that no process uses any more. The tables of a copy may be kept for the next one.
///
/// # Errors
/// `ESRCH` if the calling thread is gone.
pub(super) fn end(cx: &mut Cx<'_>, id: MmId) -> Result<(), Errno> {
    let copy_of = cx.kernel.mms.get(&id).and_then(|mm| mm.copy_of);
    Space::by_id(cx, id)?.forget_all();
    cx.kernel.mms.remove(&id);
    let Machine { memory, spaces, .. } = &mut *cx.machine;
    match copy_of {
        Some(of) => spaces.end_copy(memory, (id, of), |mem, _, leaf| mem.free_leaf(leaf)),
        None => spaces.end(memory, id, |mem, _, leaf| mem.free_leaf(leaf)),
    }
    Ok(())
}
