//! Memory calls: arguments in, [`crate::mm`] does the work.

use kvmlet_abi::addr::page_align_up;
use kvmlet_abi::linux::mman::{
    MLOCK_ONFAULT, PKEY_DISABLE_ACCESS, PKEY_DISABLE_WRITE, PROT_GROWSDOWN, PROT_GROWSUP,
};
use kvmlet_abi::{Errno, Gva, PAGE_SIZE};

use crate::cx::Cx;
use crate::fd;
use crate::mm::{self, Advice, MapFlags, MapRequest, RemapRequest, VmaFlags};
use crate::outcome::{CallState, Outcome, SysResult};
use crate::syscalls::args::{Args, Fd, Flags, Int, Len, Offset, Ptr, Word};
use crate::vfs;

/// Pages whose residence mincore(2) reports in one go.
const MINCORE_CHUNK: u64 = 65_536;

/// Bytes whose pages are faulted in between two looks at the budget.
const POPULATE_BYTES: u64 = 2 << 20;

/// mmap(2)
///
/// # Errors
/// As the man page has them.
pub fn sys_mmap(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(Gva(addr)), Len(len_bytes), Flags(prot), Flags(flags), Fd(file), Offset(offset)) =
        args.decode();
    if !offset.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let file = if flags & MapFlags::ANONYMOUS.bits() == 0 {
        let (id, _) = fd::get(cx, file)?;
        Some(vfs::map_file(cx, id)?)
    } else {
        None
    };
    mm::mmap(
        cx,
        &MapRequest {
            addr,
            len_bytes,
            prot,
            flags,
            file,
            offset,
        },
    )
}

/// Does `act(cx, at, len_bytes)` for a range, for one piece after another where it is long. The call is
/// one step all the same.
fn in_pieces(
    cx: &mut Cx<'_>,
    (addr, len_bytes, longest_bytes): (u64, u64, u64),
    state: &CallState,
    mut act: impl FnMut(&mut Cx<'_>, u64, u64) -> Result<(), Errno>,
) -> Result<Outcome, Errno> {
    if state.progress == 0 && !mm::can_be_parted(cx, addr, len_bytes)? {
        act(cx, addr, len_bytes)?;
        return Ok(Outcome::Done(Ok(0)));
    }
    let end = addr.saturating_add(page_align_up(len_bytes).ok_or(Errno::EINVAL)?);
    let mut at = addr.saturating_add(state.progress);
    while at < end {
        let stop = mm::piece_end(cx, at, end)?;
        let stop = stop.min(at.saturating_add(longest_bytes));
        act(cx, at, stop.saturating_sub(at))?;
        at = stop;
        if at < end && cx.host.budget.is_spent() {
            return Ok(Outcome::Again(state.kept(at.saturating_sub(addr))));
        }
    }
    Ok(Outcome::Done(Ok(0)))
}

fn outcome(result: Result<Outcome, Errno>) -> Outcome {
    result.unwrap_or_else(|error| Outcome::Done(Err(error)))
}

/// munmap(2)
pub fn sys_munmap(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Ptr(Gva(addr)), Len(len_bytes)) = args.decode();
    outcome(in_pieces(
        cx,
        (addr, len_bytes, u64::MAX),
        state,
        mm::munmap,
    ))
}

/// mprotect(2)
pub fn sys_mprotect(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Ptr(Gva(addr)), Len(len_bytes), Word(prot)) = args.decode();
    protect(cx, (addr, len_bytes), prot, state)
}

fn protect(
    cx: &mut Cx<'_>,
    (addr, len_bytes): (u64, u64),
    prot: u64,
    state: &CallState,
) -> Outcome {
    const GROWS: u32 = PROT_GROWSDOWN | PROT_GROWSUP;
    // Linux takes an unsigned long: high bits are invalid, not ignored.
    let prot = u32::try_from(prot).unwrap_or(u32::MAX);
    if prot & GROWS != 0 {
        // The range is another than the arguments say.
        return mm::mprotect(cx, addr, len_bytes, prot).map(|()| 0).into();
    }
    let range = (addr, len_bytes, u64::MAX);
    outcome(in_pieces(cx, range, state, |cx, at, len| {
        mm::mprotect(cx, at, len, prot)
    }))
}

/// pkey_mprotect(2) on a CPU without protection keys: as mprotect(2) for key -1, `EINVAL` for others.
pub fn sys_pkey_mprotect(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Ptr(Gva(addr)), Len(len_bytes), Word(prot), Int(key)) = args.decode();
    if key != -1 {
        return Outcome::Done(Err(Errno::EINVAL));
    }
    protect(cx, (addr, len_bytes), prot, state)
}

/// pkey_alloc(2) on a CPU without protection keys: there is none to have.
///
/// # Errors
/// `EINVAL` for bad arguments, else `ENOSPC`.
pub fn sys_pkey_alloc(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Word(flags), Word(access)) = args.decode();
    let access_rights = PKEY_DISABLE_ACCESS | PKEY_DISABLE_WRITE;
    if flags != 0 || access & !access_rights != 0 {
        return Err(Errno::EINVAL);
    }
    cx.host.report.unsupported("pkey_alloc", String::new());
    Err(Errno::ENOSPC)
}

/// pkey_free(2): no key was ever allocated.
///
/// # Errors
/// `EINVAL`.
pub fn sys_pkey_free(cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    cx.host.report.unsupported("pkey_free", String::new());
    Err(Errno::EINVAL)
}

/// brk(2): the program break in force; the call itself does not fail.
///
/// # Errors
/// None that a running program sees.
pub fn sys_brk(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Ptr(Gva(end)) = args.decode();
    mm::brk(cx, end)
}

/// mremap(2)
///
/// # Errors
/// As the man page has them.
pub fn sys_mremap(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(Gva(addr)), Len(old_len_bytes), Len(new_len_bytes), Word(flags), Ptr(Gva(new_addr))) =
        args.decode();
    let flags = u32::try_from(flags).map_err(|_| Errno::EINVAL)?;
    mm::remap(
        cx,
        &RemapRequest {
            addr,
            old_len_bytes,
            new_len_bytes,
            flags,
            new_addr,
        },
    )
}

/// madvise(2)
pub fn sys_madvise(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    outcome(advise(cx, args, state))
}

fn advise(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Result<Outcome, Errno> {
    let (Ptr(Gva(addr)), Len(len_bytes), Int(number)) = args.decode();
    let Some(advice) = Advice::from_number(number) else {
        cx.host
            .report
            .unsupported("madvise", format!("advice {number}"));
        return Err(Errno::EINVAL);
    };
    if advice == Advice::Collapse {
        cx.host
            .report
            .unsupported("madvise", "MADV_COLLAPSE".to_owned());
    }
    let populates = matches!(advice, Advice::PopulateRead | Advice::PopulateWrite);
    let longest_bytes = if populates { POPULATE_BYTES } else { u64::MAX };
    let mut has_hole = false;
    let range = (addr, len_bytes, longest_bytes);
    let advised = in_pieces(cx, range, state, |cx, at, len| {
        match mm::advise(cx, at, len, advice) {
            // A hole does not stop the walk, but makes it fail in the end.
            Err(Errno::ENOMEM) if !populates && !mm::covers(cx, at, at.saturating_add(len))? => {
                has_hole = true;
                Ok(())
            }
            advised => advised,
        }
    })?;
    let is_over = matches!(advised, Outcome::Done(_));
    let parted = has_hole || state.progress > 0;
    if is_over && parted && !mm::covers(cx, addr, addr.saturating_add(len_bytes))? {
        return Err(Errno::ENOMEM);
    }
    Ok(advised)
}

/// mincore(2)
pub fn sys_mincore(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    outcome(residence(cx, args, state))
}

fn residence(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Result<Outcome, Errno> {
    let (Ptr(Gva(addr)), Len(len_bytes), Ptr(vector)) = args.decode();
    if !Gva(addr).is_page_aligned() {
        return Err(Errno::EINVAL);
    }
    if !mm::user::in_user_space(addr, len_bytes) {
        return Err(Errno::ENOMEM);
    }
    let pages = len_bytes.div_ceil(PAGE_SIZE);
    let mut done = state.progress;
    while done < pages {
        let count = MINCORE_CHUNK.min(pages - done);
        let at = addr.saturating_add(done.saturating_mul(PAGE_SIZE));
        let states = mm::mincore(cx, at, count)?;
        let to = vector.0.checked_add(done).ok_or(Errno::EFAULT)?;
        cx.write(Gva(to), &states)?;
        done += count;
        if done < pages && cx.host.budget.is_spent() {
            return Ok(Outcome::Again(state.kept(done)));
        }
    }
    Ok(Outcome::Done(Ok(0)))
}

/// msync(2)
///
/// # Errors
/// `EINVAL`, `EBUSY`, `ENOMEM`.
pub fn sys_msync(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(Gva(addr)), Len(len_bytes), Flags(flags)) = args.decode();
    mm::msync(cx, addr, len_bytes, flags.cast_signed()).map(|()| 0)
}

/// mseal(2)
///
/// # Errors
/// `EINVAL`, `ENOMEM`.
pub fn sys_mseal(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(Gva(addr)), Len(len_bytes), Word(flags)) = args.decode();
    mm::seal(cx, addr, len_bytes, flags).map(|()| 0)
}

/// mlock(2)
///
/// # Errors
/// As the man page has them.
pub fn sys_mlock(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(Gva(addr)), Len(len_bytes)) = args.decode();
    mm::lock(cx, addr, len_bytes, VmaFlags::LOCKED).map(|()| 0)
}

/// mlock2(2)
///
/// # Errors
/// As the man page has them.
pub fn sys_mlock2(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(Gva(addr)), Len(len_bytes), Flags(flags)) = args.decode();
    let flags = match flags {
        0 => VmaFlags::LOCKED,
        MLOCK_ONFAULT => VmaFlags::LOCKED | VmaFlags::LOCK_ON_FAULT,
        _ => return Err(Errno::EINVAL),
    };
    mm::lock(cx, addr, len_bytes, flags).map(|()| 0)
}

/// munlock(2)
///
/// # Errors
/// `EINVAL`, `ENOMEM`.
pub fn sys_munlock(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(Gva(addr)), Len(len_bytes)) = args.decode();
    mm::lock(cx, addr, len_bytes, VmaFlags::empty()).map(|()| 0)
}

/// mlockall(2)
///
/// # Errors
/// `EINVAL`, `EPERM`, `ENOMEM`.
pub fn sys_mlockall(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Flags(flags) = args.decode();
    mm::lock_all(cx, flags).map(|()| 0)
}

/// munlockall(2)
///
/// # Errors
/// `ENOMEM`.
pub fn sys_munlockall(cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    mm::unlock_all(cx).map(|()| 0)
}
