//! Faulting memory in ahead of use, and locking it: mlock(2), mlockall(2).
//!
//! All of a program's memory stays resident anyhow; locking populates and is counted against
//! RLIMIT_MEMLOCK. Nobody here has CAP_IPC_LOCK.

use kvmlet_abi::addr::page_align_up;
use kvmlet_abi::layout::USER_END;
use kvmlet_abi::{Errno, Gva, PAGE_SIZE};

use super::space::Space;
use super::vma::{Prot, Vma, VmaFlags};
use super::{Access, FaultError};
use crate::budget::{Failure, Populate};
use crate::cx::Cx;
use crate::rlimit::INFINITY;

/// mlockall(2): what is mapped now.
pub const MCL_CURRENT: u32 = 1;
/// mlockall(2): what will be mapped.
pub const MCL_FUTURE: u32 = 2;
/// mlockall(2): pages are locked when they are first touched.
pub const MCL_ONFAULT: u32 = 4;

/// mlock(2), mlock2(2) and munlock(2): gives the range these locking flags (none, `LOCKED`, or
/// `LOCKED` with `LOCK_ON_FAULT`).
///
/// # Errors
/// As the man page has them.
pub fn lock(cx: &mut Cx<'_>, addr: u64, len_bytes: u64, flags: VmaFlags) -> Result<(), Errno> {
    Space::of(cx)?.lock(addr, len_bytes, flags)
}

/// mlockall(2)
///
/// # Errors
/// `EINVAL`, `EPERM`, `ENOMEM`.
pub fn lock_all(cx: &mut Cx<'_>, flags: u32) -> Result<(), Errno> {
    Space::of(cx)?.lock_all(flags)
}

/// munlockall(2)
///
/// # Errors
/// `ENOMEM`.
pub fn unlock_all(cx: &mut Cx<'_>) -> Result<(), Errno> {
    Space::of(cx)?.unlock_all()
}

/// Goes on with what a call has left of its pages to fault in, again as far as the budget goes.
///
/// # Errors
/// As mlock(2), where a page that cannot be had is a failure.
pub fn go_on_populating(cx: &mut Cx<'_>, rest: Populate) -> Result<(), Errno> {
    let mut space = Space::of(cx)?;
    let populated = space.populate_in_turns(rest.at, rest.end, rest.failure);
    match rest.failure {
        Failure::Fails => populated.map_err(lock_error),
        Failure::Ignored => Ok(()),
    }
}

/// The errno of mlock(2) for a page that cannot be had.
fn lock_error(error: FaultError) -> Errno {
    match error {
        FaultError::OutOfMemory => Errno::EAGAIN,
        FaultError::Segv { .. } | FaultError::Bus => Errno::ENOMEM,
    }
}

/// Bytes that are populated between two looks at the budget.
const PIECE_BYTES: u64 = 2 << 20;

const LOCKING: VmaFlags = VmaFlags::LOCKED.union(VmaFlags::LOCK_ON_FAULT);

impl Space<'_> {
    /// Faults in every page of the range that may be accessed, for writing where a write would copy.
    ///
    /// # Errors
    /// The error of the first page that cannot be had; `ENOMEM` for a hole is left to the caller.
    pub fn populate(&mut self, start: u64, end: u64) -> Result<(), FaultError> {
        let parts: Vec<Vma> = self.mm.parts(start, end).collect();
        for part in parts {
            let private_write = part.prot.contains(Prot::WRITE) && !part.is_shared();
            let access = if private_write {
                Access::Write
            } else {
                Access::Read
            };
            if !part.prot.is_empty() {
                self.populate_part(part.start, part.end, access)?;
            }
        }
        Ok(())
    }

    /// As [`Space::populate`], as far as the budget goes: the rest is left to the call's next turn.
    ///
    /// # Errors
    /// As [`Space::populate`].
    pub fn populate_in_turns(
        &mut self,
        start: u64,
        end: u64,
        failure: Failure,
    ) -> Result<(), FaultError> {
        let mut at = start;
        loop {
            let part = self.mm.parts(at, end).next();
            let Some(part) = part else {
                return Ok(());
            };
            at = part.end;
            if part.prot.is_empty() {
                continue;
            }
            at = at.min(part.start.saturating_add(PIECE_BYTES));
            self.populate(part.start, at)?;
            if at < end && self.host.budget.is_spent() {
                self.host.budget.leave(Populate { at, end, failure });
                return Ok(());
            }
        }
    }

    /// Faults in every page of a part of one VMA.
    ///
    /// # Errors
    /// The error of the first page that cannot be had.
    pub fn populate_part(
        &mut self,
        start: u64,
        end: u64,
        access: Access,
    ) -> Result<(), FaultError> {
        let mut at = start;
        while at < end {
            let Some(leaf) = self.tables.walk(self.mem, Gva(at)) else {
                self.fault(Gva(at), access)?;
                at += PAGE_SIZE;
                continue;
            };
            if access == Access::Write && !leaf.flags.contains(kvmlet_mem::PteFlags::WRITE) {
                self.fault(Gva(at), access)?;
            }
            at = (at | (leaf.size.bytes() - 1)).saturating_add(1);
        }
        Ok(())
    }

    /// See [`lock`].
    ///
    /// # Errors
    /// See [`lock`].
    pub fn lock(&mut self, addr: u64, len_bytes: u64, flags: VmaFlags) -> Result<(), Errno> {
        let locking = flags.contains(VmaFlags::LOCKED);
        if locking && self.limits.locked == 0 {
            return Err(Errno::EPERM);
        }
        let start = Gva(addr).page_down().0;
        let end = len_bytes
            .checked_add(addr - start)
            .and_then(page_align_up)
            .and_then(|len| start.checked_add(len))
            .ok_or(Errno::EINVAL)?;
        if locking && self.limits.locked != INFINITY {
            let already: u64 = self
                .mm
                .parts(start, end)
                .filter(|part| part.flags.contains(VmaFlags::LOCKED))
                .map(|part| part.len_bytes())
                .sum();
            let more = (end - start).saturating_sub(already);
            if self.mm.locked_bytes().saturating_add(more) > self.limits.locked {
                return Err(Errno::ENOMEM);
            }
        }
        if start == end {
            return Ok(());
        }
        let covered = self.mm.covers(start, end);
        self.update(start, end, |vma| {
            vma.flags = vma.flags.difference(LOCKING) | flags;
        })?;
        if !covered {
            return Err(Errno::ENOMEM);
        }
        if locking && !flags.contains(VmaFlags::LOCK_ON_FAULT) {
            self.populate_locked(start, end)?;
        }
        Ok(())
    }

    /// Populates for mlock(2), which fails where a page cannot be had.
    fn populate_locked(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        // Linux: __mlock_posix_error_return maps both kinds of failure.
        if self.mm.parts(start, end).any(|part| part.prot.is_empty()) {
            return Err(Errno::ENOMEM);
        }
        self.populate_in_turns(start, end, Failure::Fails)
            .map_err(lock_error)
    }

    /// See [`lock_all`].
    ///
    /// # Errors
    /// See [`lock_all`].
    pub fn lock_all(&mut self, flags: u32) -> Result<(), Errno> {
        if flags == 0
            || flags & !(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0
            || flags == MCL_ONFAULT
        {
            return Err(Errno::EINVAL);
        }
        if self.limits.locked == 0 {
            return Err(Errno::EPERM);
        }
        let current = flags & MCL_CURRENT != 0;
        if current && self.mm.total_bytes() > self.limits.locked {
            return Err(Errno::ENOMEM);
        }
        let mut how = VmaFlags::LOCKED;
        how.set(VmaFlags::LOCK_ON_FAULT, flags & MCL_ONFAULT != 0);
        self.mm.new_flags = if flags & MCL_FUTURE != 0 {
            how
        } else {
            VmaFlags::empty()
        };
        if !current {
            return Ok(());
        }
        self.update_all(how)?;
        if flags & MCL_ONFAULT == 0 {
            // mlockall ignores pages that cannot be had.
            let _ = self.populate_in_turns(0, USER_END.0, Failure::Ignored);
        }
        Ok(())
    }

    /// See [`unlock_all`].
    ///
    /// # Errors
    /// See [`unlock_all`].
    pub fn unlock_all(&mut self) -> Result<(), Errno> {
        self.mm.new_flags = VmaFlags::empty();
        self.update_all(VmaFlags::empty())
    }

    fn update_all(&mut self, flags: VmaFlags) -> Result<(), Errno> {
        self.update(0, USER_END.0, |vma| {
            vma.flags = vma.flags.difference(LOCKING) | flags;
        })
    }
}
