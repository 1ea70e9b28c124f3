//! Discharging pending flushes: what makes an edit of a present page-table entry visible.
//!
//! On hardware the in-guest flush routine runs `invlpg`. On software KVM `invlpg` does not drop a
//! shadow entry whose table the host has edited; a store to the entry at CPL 0 does. A store across two
//! entries drops the shadow of the whole table, and deleting and adding again the slots that hold the
//! tables drops everything.

use kvmlet_hv::{HvError, KvmKind};
use kvmlet_linux::Machine;
use kvmlet_mem::PendingFlush;

use crate::vm::GuestVm;

/// Discharges what the page tables have recorded. Returns whether everything was flushed.
pub(crate) fn discharge(guest: &mut GuestVm, machine: &mut Machine) -> Result<bool, HvError> {
    let GuestVm { vcpu, vm } = guest;
    let pending = machine.tables.take_pending();
    let mut full = false;
    match &pending {
        PendingFlush::None => return Ok(false),
        PendingFlush::Entries(entries) => {
            let addresses: Vec<_> = match vcpu.kvm_kind() {
                Some(KvmKind::Software) => machine.memory.flush_stores(entries),
                _ => entries.iter().map(|stale| stale.gva).collect(),
            };
            if vcpu.request_flush(&addresses).is_err() {
                full = true;
            }
        }
        PendingFlush::All => full = true,
    }
    if full {
        for spec in machine.memory.table_slots() {
            vm.refresh_slot(spec.id)?;
        }
        vcpu.forget_flush();
    }
    machine
        .memory
        .flush_discharged(&if full { PendingFlush::All } else { pending });
    Ok(full)
}
