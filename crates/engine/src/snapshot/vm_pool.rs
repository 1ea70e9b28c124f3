//! VMs kept for their next tenant: emptied ones for any program, bound ones for forks of one snapshot.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::lock;
use crate::transport::forget_threads;
use crate::vm::{BoundVm, GuestVm};

/// VMs without a program that a process keeps for the next snapshot.
const BLANK_VMS_MAX: usize = 16;
/// Forks that have been given up and wait, clean, to be forks again, unless the owner wants another
/// number.
const READY_KEPT: usize = 8;

/// VMs that have been used and hold nothing: creating one costs many times an exit.
static BLANK: Mutex<BlankVms> = Mutex::new(BlankVms {
    process: 0,
    vms: Vec::new(),
});

#[derive(Debug)]
struct BlankVms {
    /// VM descriptors do not survive fork(2): the process that these belong to.
    process: u32,
    vms: Vec<GuestVm>,
}

fn blank_vms() -> MutexGuard<'static, BlankVms> {
    let mut blank = lock(&BLANK);
    let process = std::process::id();
    if blank.process != process {
        blank.process = process;
        // Dead copies of the parent's.
        blank.vms.clear();
    }
    blank
}

/// In a child of fork(2): closes the copies of the parent's emptied VMs. Does nothing if another thread
/// of the parent was using them at the fork; they are closed when the child looks for one then.
pub fn forget_vms() {
    forget_threads();
    if let Ok(mut blank) = BLANK.try_lock() {
        blank.vms.clear();
        blank.process = std::process::id();
    }
}

/// An emptied VM, if one is kept.
pub(super) fn take_blank() -> Option<GuestVm> {
    blank_vms().vms.pop()
}

/// Takes the program out of a VM, which is kept for another. One that cannot be emptied is closed.
pub(super) fn give_back(mut guest: GuestVm) {
    if guest.empty().is_err() {
        return;
    }
    let mut blank = blank_vms();
    if blank.vms.len() < BLANK_VMS_MAX {
        blank.vms.push(guest);
    }
}

/// VMs that are bound to a snapshot and wait, clean, to be its forks.
#[derive(Debug)]
pub(super) struct ReadyVms {
    vms: Mutex<Vec<BoundVm>>,
    /// The number of given-up forks that are taken.
    kept_max: AtomicUsize,
}

impl Default for ReadyVms {
    fn default() -> Self {
        Self {
            vms: Mutex::default(),
            kept_max: AtomicUsize::new(READY_KEPT),
        }
    }
}

impl ReadyVms {
    pub fn len(&self) -> usize {
        lock(&self.vms).len()
    }

    pub fn take(&self) -> Option<BoundVm> {
        lock(&self.vms).pop()
    }

    /// Adds one that has been bound ahead.
    pub fn add(&self, bound: BoundVm) {
        lock(&self.vms).push(bound);
    }

    /// Takes a clean VM that has been a fork. Where there are enough, its program is taken out.
    pub fn give_back(&self, bound: BoundVm) {
        let mut vms = lock(&self.vms);
        if vms.len() < self.kept_max.load(Ordering::Relaxed) {
            vms.push(bound);
        } else {
            drop(vms);
            give_back(bound.guest);
        }
    }

    /// From now on at least `count` given-up forks are taken.
    pub fn keep_at_least(&self, count: usize) {
        self.kept_max.fetch_max(count, Ordering::Relaxed);
    }

    /// Gives up those beyond `count`, and takes no more from now on.
    pub fn trim(&self, count: usize) {
        self.kept_max.store(count, Ordering::Relaxed);
        let surplus = {
            let mut vms = lock(&self.vms);
            let keep = count.min(vms.len());
            vms.split_off(keep)
        };
        for bound in surplus {
            give_back(bound.guest);
        }
    }
}
