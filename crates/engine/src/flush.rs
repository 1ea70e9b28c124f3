//! Discharging pending flushes: what makes an edit of a present page-table entry visible.
//!
//! On hardware the in-guest flush routine runs `invlpg`. On software KVM `invlpg` does not drop a
//! shadow entry whose table the host has edited; a store to the entry at CPL 0 does. A store across two
//! entries drops the shadow of the whole table, and deleting and adding again the slots that hold the
//! tables drops everything.

use kvmlet_hv::{HvError, KvmKind};
use kvmlet_linux::Machine;
use kvmlet_mem::{DirtyBits, GuestMemory, MmId, PendingFlush, RELOAD_FROM};
use kvmlet_stub::MAX_FLUSH_PAGES;

use crate::vm::{GuestVm, VcpuState};

/// Discharges what the page tables of an address space, which is entered next, have recorded. Returns whether
/// everything was flushed.
pub(crate) fn discharge(
    guest: &mut GuestVm,
    machine: &mut Machine,
    space: MmId,
) -> Result<bool, HvError> {
    let GuestVm { vcpu, vm } = guest;
    let Machine { memory, spaces, .. } = machine;
    let pending = spaces.take_pending(space);
    let mut full = false;
    // Without nested paging, a reload of CR3 leaves what KVM has in place of our tables.
    let can_reload = spaces.dirty_bits() == DirtyBits::Reliable;
    match &pending {
        PendingFlush::None => {}
        PendingFlush::Entries(entries) if can_reload && entries.len() > RELOAD_FROM => full = true,
        PendingFlush::Entries(_) if renew_windows(vcpu, memory, &pending) => {}
        PendingFlush::Entries(entries) => {
            let addresses: Vec<_> = match vcpu.kvm_kind() {
                Some(KvmKind::Software) => memory.flush_stores(entries),
                _ => entries.iter().map(|stale| stale.gva).collect(),
            };
            full = vcpu.request_flush(&addresses).is_err();
        }
        PendingFlush::All => full = true,
    }
    if full {
        vcpu.forget_flush();
        if can_reload {
            vcpu.request_reload();
        } else {
            for spec in memory.table_slots() {
                vm.refresh_slot(spec.id)?;
            }
        }
        spaces.all_flushed(memory);
        memory.flush_discharged(&PendingFlush::All);
    } else {
        // What an address space that has ended gave back is waited for by nobody else.
        if !pending.is_none() || memory.has_freed_frames() {
            memory.flush_discharged(&pending);
        }
        free_dead_tables(vcpu, machine);
    }
    Ok(full)
}

/// On software KVM: discharges a flush by way of the host, if it is about a few pages of files. A loader takes the right
/// to write from the data of each library that it has relocated. False if nothing was discharged.
fn renew_windows(vcpu: &VcpuState, memory: &mut GuestMemory, pending: &PendingFlush) -> bool {
    if vcpu.kvm_kind() != Some(KvmKind::Software) {
        return false;
    }
    // What could not be renewed is flushed by the guest, with what was.
    let mut renew = |window| memory.renew_file(window).is_ok();
    let windows = pending.windows();
    windows.is_some_and(|windows| windows.into_iter().all(&mut renew))
}

/// Frees tables of address spaces that are gone, once their shadows are.
fn free_dead_tables(vcpu: &mut VcpuState, machine: &mut Machine) {
    let Machine { memory, spaces, .. } = machine;
    // What was asked for at an earlier entry has been done when nothing is left to do.
    if spaces.has_leaving() && vcpu.pending_flush() == 0 {
        spaces.dead_flushed(memory);
    }
    if !spaces.has_many_dead() {
        return;
    }
    let room = MAX_FLUSH_PAGES.saturating_sub(vcpu.pending_flush());
    let stores = spaces.dead_stores(room);
    match vcpu.kvm_kind() {
        Some(KvmKind::Software) if !skips_dead_stores() => {
            // There is room for as many.
            let _ = vcpu.request_flush(&stores);
        }
        // No TLB has anything of an address space that is not loaded.
        _ => spaces.dead_flushed(memory),
    }
}

#[cfg(test)]
thread_local! {
    /// True to hand out dead tables although software KVM still has their shadows.
    pub(crate) static SKIPS_DEAD_STORES: core::cell::Cell<bool> = const { core::cell::Cell::new(false) };
}

#[cfg(test)]
fn skips_dead_stores() -> bool {
    SKIPS_DEAD_STORES.get()
}

#[cfg(not(test))]
const fn skips_dead_stores() -> bool {
    false
}
