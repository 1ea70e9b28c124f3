//! Memory calls: arguments in, [`crate::mm`] does the work.

use kvmlet_abi::{Errno, Gva, PAGE_SIZE};

use crate::cx::Cx;
use crate::fd;
use crate::mm::{self, Advice, MapFlags, MapRequest, RemapRequest, VmaFlags};
use crate::outcome::SysResult;
use crate::vfs;

/// Pages whose residence mincore(2) reports in one go.
const MINCORE_CHUNK: u64 = 65_536;

const MLOCK_ONFAULT: u32 = 1;

/// mmap(2)
///
/// # Errors
/// As the man page has them.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_mmap(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [addr, len_bytes, prot, flags, file, offset] = *args;
    if !offset.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let flags = flags as u32;
    let file = if flags & MapFlags::ANONYMOUS.bits() == 0 {
        let (id, _) = fd::get(cx, file as i32)?;
        Some(vfs::map_file(cx, id)?)
    } else {
        None
    };
    let prot = prot as u32;
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

/// munmap(2)
///
/// # Errors
/// `EINVAL`, `ENOMEM`, `EPERM` (mseal(2)).
pub fn sys_munmap(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    mm::munmap(cx, args[0], args[1]).map(|()| 0)
}

/// mprotect(2)
///
/// # Errors
/// `EINVAL`, `EACCES`, `ENOMEM`, `EPERM` (mseal(2)).
pub fn sys_mprotect(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    // Linux takes an unsigned long: high bits are invalid, not ignored.
    let prot = u32::try_from(args[2]).unwrap_or(u32::MAX);
    mm::mprotect(cx, args[0], args[1], prot).map(|()| 0)
}

/// pkey_mprotect(2) on a CPU without protection keys: as mprotect(2) for key -1.
///
/// # Errors
/// As mprotect(2); `EINVAL` for every other key.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_pkey_mprotect(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if args[3] as i32 != -1 {
        return Err(Errno::EINVAL);
    }
    sys_mprotect(cx, args)
}

/// pkey_alloc(2) on a CPU without protection keys: there is none to have.
///
/// # Errors
/// `EINVAL` for bad arguments, else `ENOSPC`.
pub fn sys_pkey_alloc(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let access_rights = 3;
    if args[0] != 0 || args[1] & !access_rights != 0 {
        return Err(Errno::EINVAL);
    }
    cx.host.report.unsupported("pkey_alloc", String::new());
    Err(Errno::ENOSPC)
}

/// pkey_free(2): no key was ever allocated.
///
/// # Errors
/// `EINVAL`.
pub fn sys_pkey_free(cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    cx.host.report.unsupported("pkey_free", String::new());
    Err(Errno::EINVAL)
}

/// brk(2): the program break in force; the call itself does not fail.
///
/// # Errors
/// None that a running program sees.
pub fn sys_brk(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    mm::brk(cx, args[0])
}

/// mremap(2)
///
/// # Errors
/// As the man page has them.
pub fn sys_mremap(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [addr, old_len_bytes, new_len_bytes, flags, new_addr, _] = *args;
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
///
/// # Errors
/// As the man page has them.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_madvise(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let number = args[2] as i32;
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
    mm::advise(cx, args[0], args[1], advice).map(|()| 0)
}

/// mincore(2)
///
/// # Errors
/// `EINVAL`, `ENOMEM`, `EFAULT`.
pub fn sys_mincore(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [addr, len_bytes, vector, ..] = *args;
    if !Gva(addr).is_page_aligned() {
        return Err(Errno::EINVAL);
    }
    if !mm::user::in_user_space(addr, len_bytes) {
        return Err(Errno::ENOMEM);
    }
    let pages = len_bytes.div_ceil(PAGE_SIZE);
    let mut done = 0;
    while done < pages {
        let count = MINCORE_CHUNK.min(pages - done);
        let at = addr.saturating_add(done.saturating_mul(PAGE_SIZE));
        let states = mm::mincore(cx, at, count)?;
        let to = vector.checked_add(done).ok_or(Errno::EFAULT)?;
        cx.write(Gva(to), &states)?;
        done += count;
    }
    Ok(0)
}

/// msync(2)
///
/// # Errors
/// `EINVAL`, `EBUSY`, `ENOMEM`.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_msync(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    mm::msync(cx, args[0], args[1], args[2] as i32).map(|()| 0)
}

/// mseal(2)
///
/// # Errors
/// `EINVAL`, `ENOMEM`.
pub fn sys_mseal(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    mm::seal(cx, args[0], args[1], args[2]).map(|()| 0)
}

/// mlock(2)
///
/// # Errors
/// As the man page has them.
pub fn sys_mlock(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    mm::lock(cx, args[0], args[1], VmaFlags::LOCKED).map(|()| 0)
}

/// mlock2(2)
///
/// # Errors
/// As the man page has them.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_mlock2(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let flags = match args[2] as u32 {
        0 => VmaFlags::LOCKED,
        MLOCK_ONFAULT => VmaFlags::LOCKED | VmaFlags::LOCK_ON_FAULT,
        _ => return Err(Errno::EINVAL),
    };
    mm::lock(cx, args[0], args[1], flags).map(|()| 0)
}

/// munlock(2)
///
/// # Errors
/// `EINVAL`, `ENOMEM`.
pub fn sys_munlock(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    mm::lock(cx, args[0], args[1], VmaFlags::empty()).map(|()| 0)
}

/// mlockall(2)
///
/// # Errors
/// `EINVAL`, `EPERM`, `ENOMEM`.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_mlockall(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    mm::lock_all(cx, args[0] as u32).map(|()| 0)
}

/// munlockall(2)
///
/// # Errors
/// `ENOMEM`.
pub fn sys_munlockall(cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    mm::unlock_all(cx).map(|()| 0)
}
