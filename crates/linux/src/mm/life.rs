//! The beginning and the end of address spaces.

use kvmlet_abi::Errno;

use super::space::{Space, release_leaf};
use super::{Mm, MmId};
use crate::cx::Cx;

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
    let old = core::mem::replace(&mut cx.process()?.mm, id);
    end_unused(cx, old)
}

/// Ends an address space if no process has it.
fn end_unused(cx: &mut Cx<'_>, id: MmId) -> Result<(), Errno> {
    if cx.kernel.processes.values().any(|process| process.mm == id) {
        return Ok(());
    }
    Space::by_id(cx, id)?.forget_all();
    cx.kernel.mms.remove(&id);
    let machine = &mut *cx.machine;
    machine.spaces.end(&mut machine.memory, id, |mem, _, leaf| {
        release_leaf(mem, leaf)
    });
    Ok(())
}
