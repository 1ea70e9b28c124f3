//! Users, groups and capabilities of the calling thread (credentials(7), capabilities(7)).
//!
//! Each call is for one thread; setuid(3) of a C library has every thread make it.

use std::sync::Arc;

use kvmlet_abi::linux::capability::{
    LINUX_CAPABILITY_VERSION_1, LINUX_CAPABILITY_VERSION_2, LINUX_CAPABILITY_VERSION_3,
    SECBIT_KEEP_CAPS,
};
use kvmlet_abi::linux::prctl::{
    PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, PR_CAP_AMBIENT_IS_SET, PR_CAP_AMBIENT_LOWER,
    PR_CAP_AMBIENT_RAISE, PR_CAPBSET_DROP, PR_CAPBSET_READ, PR_GET_KEEPCAPS, PR_GET_SECUREBITS,
    PR_SET_KEEPCAPS, PR_SET_SECUREBITS,
};
use kvmlet_abi::{Errno, Gva};
use zerocopy::IntoBytes as _;

use crate::creds::{Caps, Change, Creds, GROUPS_MAX, Quad, capability};
use crate::cx::Cx;
use crate::kernel::Tid;
use crate::outcome::SysResult;
use crate::syscalls::args::{Args, Id, Int, Ptr};

/// Gives the calling thread new credentials (commit_creds in kernel/cred.c).
fn commit(cx: &mut Cx<'_>, new: Creds) -> SysResult {
    let old = cx.creds();
    if new == *old {
        return Ok(0);
    }
    if new.closes_memory(&old) {
        let process = cx.process()?;
        (process.dumpable, process.death_signal) = (false, 0);
    }
    cx.thread()?.creds = Arc::new(new);
    Ok(0)
}

// ---- users and groups ----

/// getuid(2)
///
/// # Errors
/// None.
pub fn sys_getuid(cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    Ok(u64::from(cx.creds().user.real))
}

/// geteuid(2)
///
/// # Errors
/// None.
pub fn sys_geteuid(cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    Ok(u64::from(cx.creds().user.effective))
}

/// getgid(2)
///
/// # Errors
/// None.
pub fn sys_getgid(cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    Ok(u64::from(cx.creds().group.real))
}

/// getegid(2)
///
/// # Errors
/// None.
pub fn sys_getegid(cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    Ok(u64::from(cx.creds().group.effective))
}

fn write_three(cx: &mut Cx<'_>, args: &Args, ids: Quad) -> SysResult {
    let (Ptr(real), Ptr(effective), Ptr(saved)) = args.decode();
    for (gva, id) in [
        (real, ids.real),
        (effective, ids.effective),
        (saved, ids.saved),
    ] {
        cx.write_struct(gva, &id)?;
    }
    Ok(0)
}

/// getresuid(2)
///
/// # Errors
/// `EFAULT`.
pub fn sys_getresuid(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let ids = cx.creds().user;
    write_three(cx, args, ids)
}

/// getresgid(2)
///
/// # Errors
/// `EFAULT`.
pub fn sys_getresgid(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let ids = cx.creds().group;
    write_three(cx, args, ids)
}

fn set_user(cx: &mut Cx<'_>, change: Change) -> SysResult {
    let new = cx.creds().with_user(change)?;
    commit(cx, new)
}

fn set_group(cx: &mut Cx<'_>, change: Change) -> SysResult {
    let new = cx.creds().with_group(change)?;
    commit(cx, new)
}

/// setuid(2)
///
/// # Errors
/// `EPERM`; `EINVAL` for -1.
pub fn sys_setuid(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Id(uid) = args.decode();
    set_user(cx, Change::One(uid))
}

/// setgid(2)
///
/// # Errors
/// `EPERM`; `EINVAL` for -1.
pub fn sys_setgid(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Id(gid) = args.decode();
    set_group(cx, Change::One(gid))
}

/// setreuid(2)
///
/// # Errors
/// `EPERM`.
pub fn sys_setreuid(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Id(real), Id(effective)) = args.decode();
    set_user(cx, Change::Two(real, effective))
}

/// setregid(2)
///
/// # Errors
/// `EPERM`.
pub fn sys_setregid(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Id(real), Id(effective)) = args.decode();
    set_group(cx, Change::Two(real, effective))
}

/// setresuid(2)
///
/// # Errors
/// `EPERM`.
pub fn sys_setresuid(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Id(real), Id(effective), Id(saved)) = args.decode();
    set_user(cx, Change::Three([real, effective, saved]))
}

/// setresgid(2)
///
/// # Errors
/// `EPERM`.
pub fn sys_setresgid(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Id(real), Id(effective), Id(saved)) = args.decode();
    set_group(cx, Change::Three([real, effective, saved]))
}

/// setfsuid(2) returns the id before, changed or not.
///
/// # Errors
/// None.
pub fn sys_setfsuid(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Id(uid) = args.decode();
    let old = cx.creds().user.fs;
    set_user(cx, Change::Fs(uid))?;
    Ok(u64::from(old))
}

/// setfsgid(2) returns the id before, changed or not.
///
/// # Errors
/// None.
pub fn sys_setfsgid(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Id(gid) = args.decode();
    let old = cx.creds().group.fs;
    set_group(cx, Change::Fs(gid))?;
    Ok(u64::from(old))
}

/// getgroups(2)
///
/// # Errors
/// `EINVAL` for a negative size or one that is too small; `EFAULT`.
pub fn sys_getgroups(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(size), Ptr(list)) = args.decode();
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    let groups = Arc::clone(&cx.creds().groups);
    if size > 0 {
        if size < groups.len() {
            return Err(Errno::EINVAL);
        }
        cx.write(list, groups.as_bytes())?;
    }
    Ok(groups.len() as u64)
}

/// setgroups(2). Linux differs: 1024 groups at most.
///
/// # Errors
/// `EPERM`; `EINVAL` for too many, and for a group that nobody is in; `EFAULT`.
pub fn sys_setgroups(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(size), Ptr(list)) = args.decode();
    // Who may not is told so first.
    cx.creds().with_groups(Vec::new())?;
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    if size > GROUPS_MAX {
        return Err(Errno::EINVAL);
    }
    let mut groups = vec![0u32; size];
    cx.read(list, groups.as_mut_bytes())?;
    if groups.contains(&u32::MAX) {
        return Err(Errno::EINVAL);
    }
    let new = cx.creds().with_groups(groups)?;
    commit(cx, new)
}

// ---- capabilities ----

/// The words of a capability set that a version of capget(2) has.
///
/// # Errors
/// `EINVAL` for an unknown version, with the preferred one written back; `EFAULT`.
fn words(cx: &mut Cx<'_>, header_gva: Gva) -> Result<(usize, i32), Errno> {
    let [version, pid]: [u32; 2] = cx.read_struct(header_gva)?;
    let words = match version {
        LINUX_CAPABILITY_VERSION_1 => 1,
        LINUX_CAPABILITY_VERSION_2 | LINUX_CAPABILITY_VERSION_3 => 2,
        _ => {
            cx.write_struct(header_gva, &LINUX_CAPABILITY_VERSION_3)?;
            return Err(Errno::EINVAL);
        }
    };
    Ok((words, pid.cast_signed()))
}

/// capget(2), of any thread.
///
/// # Errors
/// `EINVAL` for an unknown version, with the preferred one written back, and for a negative id; `EFAULT`, `ESRCH`.
pub fn sys_capget(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(header_gva), Ptr(data_gva)) = args.decode();
    let (words, pid) = match words(cx, header_gva) {
        // So the version is asked for.
        Err(Errno::EINVAL) if data_gva.0 == 0 => return Ok(0),
        words => words?,
    };
    if pid < 0 {
        return Err(Errno::EINVAL);
    }
    let creds = match cx.kernel.threads.get(&Tid(pid)) {
        _ if pid == 0 => cx.creds(),
        Some(thread) => Arc::clone(&thread.creds),
        None => {
            let named = cx.kernel.kin_of(pid).ok_or(Errno::ESRCH)?.pid;
            Arc::clone(cx.kernel.creds_of(named))
        }
    };
    if data_gva.0 == 0 {
        return Ok(0);
    }
    let sets = [creds.effective, creds.permitted, creds.inheritable].map(Caps::bits);
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
    let data = [sets.map(half), sets.map(|bits| half(bits >> 32))];
    let bytes = data.get(..words).unwrap_or_default().as_bytes();
    cx.write(data_gva, bytes)?;
    Ok(0)
}

/// capset(2), of the calling thread.
///
/// # Errors
/// `EPERM` for more than there may be, and for another thread; `EINVAL`, `EFAULT`.
pub fn sys_capset(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(header_gva), Ptr(data_gva)) = args.decode();
    let (words, pid) = words(cx, header_gva)?;
    if pid != 0 && pid != cx.tid.0 {
        return Err(Errno::EPERM);
    }
    let mut data = [[0u32; 3]; 2];
    let given = data.get_mut(..words).unwrap_or_default();
    cx.read(data_gva, given.as_mut_bytes())?;
    let [low, high] = data;
    let set = |low: u32, high: u32| Caps::from_bits(u64::from(high) << 32 | u64::from(low));
    let [effective, permitted, inheritable] = low;
    let [effective_high, permitted_high, inheritable_high] = high;
    let new = cx.creds().with_caps((
        set(effective, effective_high),
        set(permitted, permitted_high),
        set(inheritable, inheritable_high),
    ))?;
    commit(cx, new)
}

/// The options of prctl(2) that are about capabilities.
///
/// # Errors
/// `EPERM`, `EINVAL`.
pub fn prctl(cx: &mut Cx<'_>, option: u32, args: [u64; 4]) -> SysResult {
    let own = cx.creds();
    let [arg, cap, rest @ ..] = args;
    let new = match (option, arg) {
        (PR_CAPBSET_READ, _) => return Ok(u64::from(own.bounding.has(capability(arg)?))),
        (PR_CAPBSET_DROP, _) => own.without_bound(arg)?,
        (PR_GET_SECUREBITS, _) => return Ok(u64::from(own.securebits)),
        (PR_SET_SECUREBITS, _) => own.with_securebits(arg)?,
        (PR_GET_KEEPCAPS, _) => return Ok(u64::from(own.securebits & SECBIT_KEEP_CAPS != 0)),
        (PR_SET_KEEPCAPS, _) => own.with_keepcaps(arg)?,
        (PR_CAP_AMBIENT, _) if rest != [0, 0] => return Err(Errno::EINVAL),
        (PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL) if cap == 0 => Creds {
            ambient: Caps::default(),
            ..Creds::clone(&own)
        },
        (PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET) => {
            return Ok(u64::from(own.ambient.has(capability(cap)?)));
        }
        (PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE) => own.with_ambient(cap)?,
        (PR_CAP_AMBIENT, PR_CAP_AMBIENT_LOWER) => own.without_ambient(cap)?,
        _ => return Err(Errno::EINVAL),
    };
    commit(cx, new)
}
