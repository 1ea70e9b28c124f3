//! Who and where: ids, groups, names, limits, capabilities, prctl.

use kvmlet_abi::linux::{Rlimit, Sysinfo, Utsname};
use kvmlet_abi::regs::is_canonical;
use kvmlet_abi::{Errno, Gva};
use zerocopy::{FromZeros as _, IntoBytes as _};

use crate::clock;
use crate::cx::Cx;
use crate::outcome::SysResult;
use crate::rlimit::{self, Resource};
use crate::uts::{NODENAME, RELEASE};

/// getpid(2)
///
/// # Errors
/// None for a running thread.
pub fn sys_getpid(cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(u64::from(cx.process()?.pid.0.cast_unsigned()))
}

/// getppid(2)
///
/// # Errors
/// None for a running thread.
pub fn sys_getppid(cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(u64::from(cx.process()?.ppid.0.cast_unsigned()))
}

/// getuid(2) and geteuid(2)
///
/// # Errors
/// None.
pub fn sys_getuid(cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(u64::from(cx.kernel.ids.uid))
}

/// getgid(2) and getegid(2)
///
/// # Errors
/// None.
pub fn sys_getgid(cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(u64::from(cx.kernel.ids.gid))
}

fn write_three(cx: &mut Cx<'_>, args: &[u64; 6], id: u32) -> SysResult {
    for gva in [args[0], args[1], args[2]] {
        cx.write_struct(Gva(gva), &id)?;
    }
    Ok(0)
}

/// getresuid(2)
///
/// # Errors
/// `EFAULT`.
pub fn sys_getresuid(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let uid = cx.kernel.ids.uid;
    write_three(cx, args, uid)
}

/// getresgid(2)
///
/// # Errors
/// `EFAULT`.
pub fn sys_getresgid(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let gid = cx.kernel.ids.gid;
    write_three(cx, args, gid)
}

/// Without capabilities an id may only be set to what it is; -1 keeps it where the call allows that.
#[allow(clippy::cast_possible_truncation)]
fn set_ids(wanted: &[u64], current: u32) -> SysResult {
    let allowed = wanted
        .iter()
        .all(|id| *id as u32 == current || *id as u32 == u32::MAX);
    if allowed { Ok(0) } else { Err(Errno::EPERM) }
}

/// setuid(2)
///
/// # Errors
/// `EPERM` for another id; `EINVAL` for -1.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_setuid(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if args[0] as u32 == u32::MAX {
        return Err(Errno::EINVAL);
    }
    set_ids(&args[..1], cx.kernel.ids.uid)
}

/// setgid(2)
///
/// # Errors
/// `EPERM` for another id; `EINVAL` for -1.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_setgid(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if args[0] as u32 == u32::MAX {
        return Err(Errno::EINVAL);
    }
    set_ids(&args[..1], cx.kernel.ids.gid)
}

/// setreuid(2)
///
/// # Errors
/// `EPERM` for another id.
pub fn sys_setreuid(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    set_ids(&args[..2], cx.kernel.ids.uid)
}

/// setregid(2)
///
/// # Errors
/// `EPERM` for another id.
pub fn sys_setregid(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    set_ids(&args[..2], cx.kernel.ids.gid)
}

/// setresuid(2)
///
/// # Errors
/// `EPERM` for another id.
pub fn sys_setresuid(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    set_ids(&args[..3], cx.kernel.ids.uid)
}

/// setresgid(2)
///
/// # Errors
/// `EPERM` for another id.
pub fn sys_setresgid(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    set_ids(&args[..3], cx.kernel.ids.gid)
}

/// setfsuid(2) returns the present id, changed or not.
///
/// # Errors
/// None.
pub fn sys_setfsuid(cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(u64::from(cx.kernel.ids.uid))
}

/// setfsgid(2) returns the present id, changed or not.
///
/// # Errors
/// None.
pub fn sys_setfsgid(cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(u64::from(cx.kernel.ids.gid))
}

/// getgroups(2): the caller's.
///
/// # Errors
/// `EINVAL` for a negative size or one that is too small; `EFAULT`.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_getgroups(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let size = usize::try_from(args[0] as i32).map_err(|_| Errno::EINVAL)?;
    let groups = cx.host.credentials.groups.clone();
    if size > 0 {
        if size < groups.len() {
            return Err(Errno::EINVAL);
        }
        cx.write(Gva(args[1]), groups.as_bytes())?;
    }
    Ok(groups.len() as u64)
}

/// getpgrp(2), getpgid(2), getsid(2): every process is in group and session 1.
///
/// # Errors
/// `ESRCH` for no such process.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_getpgid(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let pid = crate::kernel::Pid(args[0] as i32);
    if pid.0 != 0 && !cx.kernel.processes.contains_key(&pid) {
        return Err(Errno::ESRCH);
    }
    Ok(1)
}

/// getpgrp(2)
///
/// # Errors
/// None.
pub fn sys_getpgrp(_cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    Ok(1)
}

/// setpgid(2): the first process leads its session and so keeps its group.
///
/// # Errors
/// `EPERM`; `EINVAL` for a negative group; `ESRCH`.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_setpgid(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if (args[1] as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    sys_getpgid(cx, args)?;
    cx.host.report.unsupported("setpgid", String::new());
    Err(Errno::EPERM)
}

/// uname(2)
///
/// # Errors
/// `EFAULT`.
pub fn sys_uname(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let mut names = Utsname::new_zeroed();
    let values = [
        "Linux",
        NODENAME,
        RELEASE,
        "#1 SMP kvmlet",
        "x86_64",
        "(none)",
    ];
    for (field, value) in names.fields.iter_mut().zip(values) {
        for (to, from) in field.iter_mut().zip(value.bytes()) {
            *to = from;
        }
    }
    cx.write_struct(Gva(args[0]), &names)?;
    Ok(0)
}

/// sysinfo(2): memory figures are the sandbox's own.
///
/// # Errors
/// `EFAULT`.
pub fn sys_sysinfo(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let total = cx.machine.memory.limit_bytes();
    let info = Sysinfo {
        uptime: (clock::monotonic_ns(cx.host) / clock::NSEC_PER_SEC).cast_signed(),
        totalram: total,
        freeram: total.saturating_sub(cx.machine.memory.resident_bytes()),
        procs: u16::try_from(cx.kernel.threads.len()).unwrap_or(u16::MAX),
        mem_unit: 1,
        ..Sysinfo::default()
    };
    cx.write_struct(Gva(args[0]), &info)?;
    Ok(0)
}

#[allow(clippy::cast_possible_truncation)]
fn prlimit(cx: &mut Cx<'_>, number: u64, new: Option<Rlimit>) -> Result<Rlimit, Errno> {
    let resource = Resource::from_number(number as u32).ok_or(Errno::EINVAL)?;
    let process = cx.process()?;
    let (pid, old) = (process.pid, process.rlimits.get(resource));
    if let Some(Rlimit { rlim_cur, rlim_max }) = new {
        let new = rlimit::Rlimit {
            soft: rlim_cur,
            hard: rlim_max,
        };
        cx.kernel.set_rlimit(pid, resource, new)?;
    }
    Ok(Rlimit {
        rlim_cur: old.soft,
        rlim_max: old.hard,
    })
}

/// prlimit64(2), of the own process, which every thread's id names.
///
/// # Errors
/// `ESRCH`, `EINVAL`, `EPERM`, `EFAULT`.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_prlimit64(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let new = if args[2] == 0 {
        None
    } else {
        Some(cx.read_struct(Gva(args[2]))?)
    };
    let own = cx.process()?.pid;
    let named = crate::kernel::Tid(args[0] as i32);
    let thread = cx.kernel.threads.get(&named);
    if named.0 != 0 && named.0 != own.0 && thread.is_none_or(|thread| thread.pid != own) {
        return Err(Errno::ESRCH);
    }
    let old = prlimit(cx, args[1], new)?;
    if args[3] != 0 {
        cx.write_struct(Gva(args[3]), &old)?;
    }
    Ok(0)
}

/// getrlimit(2)
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sys_getrlimit(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let old = prlimit(cx, args[0], None)?;
    cx.write_struct(Gva(args[1]), &old)?;
    Ok(0)
}

/// setrlimit(2)
///
/// # Errors
/// `EINVAL`, `EPERM`, `EFAULT`.
pub fn sys_setrlimit(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let new = cx.read_struct(Gva(args[1]))?;
    prlimit(cx, args[0], Some(new))?;
    Ok(0)
}

/// getpriority(2): nice 0, which the raw call reports as 20.
///
/// # Errors
/// `EINVAL`.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_getpriority(_cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if args[0] as u32 > 2 {
        Err(Errno::EINVAL)
    } else {
        Ok(20)
    }
}

/// setpriority(2): raising the nice value is allowed and has no effect on one vCPU; lowering it is not.
///
/// # Errors
/// `EACCES` for a negative nice value; `EINVAL`.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_setpriority(_cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    match (args[0] as u32, args[2] as i32) {
        (3.., _) => Err(Errno::EINVAL),
        (_, nice) if nice < 0 => Err(Errno::EACCES),
        _ => Ok(0),
    }
}

/// personality(2): PER_LINUX, and ADDR_NO_RANDOMIZE is not granted.
///
/// # Errors
/// `EINVAL` for a change.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_personality(_cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    if args[0] as u32 == u32::MAX || args[0] as u32 == 0 {
        Ok(0)
    } else {
        Err(Errno::EINVAL)
    }
}

/// arch_prctl(2)
///
/// # Errors
/// `EPERM` for a base outside the canonical space; `EINVAL` for other codes; `EFAULT`.
pub fn sys_arch_prctl(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const ARCH_SET_GS: u64 = 0x1001;
    const ARCH_SET_FS: u64 = 0x1002;
    const ARCH_GET_FS: u64 = 0x1003;
    const ARCH_GET_GS: u64 = 0x1004;
    let regs = &mut cx.thread()?.regs;
    match args[0] {
        ARCH_SET_FS | ARCH_SET_GS if !is_canonical(args[1]) || args[1] >> 47 != 0 => {
            return Err(Errno::EPERM);
        }
        // A selector of its own would stand for another base.
        ARCH_SET_FS => (regs.fs_base, regs.selectors.fs) = (args[1], 0),
        ARCH_SET_GS => (regs.gs_base, regs.selectors.gs) = (args[1], 0),
        ARCH_GET_FS => {
            let base = regs.fs_base;
            cx.write_struct(Gva(args[1]), &base)?;
        }
        ARCH_GET_GS => {
            let base = regs.gs_base;
            cx.write_struct(Gva(args[1]), &base)?;
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// prctl(2): names, dumpability, no-new-privs, parent-death signal, capabilities as held (none).
///
/// # Errors
/// `EINVAL` for options that are not offered; `EFAULT`, `EPERM`.
#[allow(clippy::cast_possible_truncation)]
pub fn sys_prctl(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const PR_SET_PDEATHSIG: u32 = 1;
    const PR_GET_PDEATHSIG: u32 = 2;
    const PR_GET_DUMPABLE: u32 = 3;
    const PR_SET_DUMPABLE: u32 = 4;
    const PR_SET_NAME: u32 = 15;
    const PR_GET_NAME: u32 = 16;
    const PR_CAPBSET_READ: u32 = 23;
    const PR_SET_TIMERSLACK: u32 = 29;
    const PR_GET_TIMERSLACK: u32 = 30;
    const PR_SET_NO_NEW_PRIVS: u32 = 38;
    const PR_GET_NO_NEW_PRIVS: u32 = 39;
    const PR_SET_VMA: u32 = 0x5356_4d41;
    match args[0] as u32 {
        PR_SET_NAME => {
            let mut name = [0u8; 16];
            let text = match cx.read_cstr(Gva(args[1]), 16) {
                Ok(text) => text,
                Err(Errno::ENAMETOOLONG) => {
                    let mut long = vec![0u8; 15];
                    cx.read(Gva(args[1]), &mut long)?;
                    long
                }
                Err(errno) => return Err(errno),
            };
            for (to, from) in name.iter_mut().zip(text.iter().take(15)) {
                *to = *from;
            }
            cx.thread()?.comm = name;
            Ok(0)
        }
        PR_GET_NAME => {
            let name = cx.thread()?.comm;
            cx.write(Gva(args[1]), &name)?;
            Ok(0)
        }
        PR_GET_DUMPABLE => Ok(u64::from(cx.process()?.dumpable)),
        PR_SET_DUMPABLE => {
            if args[1] > 1 {
                return Err(Errno::EINVAL);
            }
            cx.process()?.dumpable = args[1] == 1;
            Ok(0)
        }
        PR_SET_PDEATHSIG => {
            if args[1] <= 64 {
                Ok(0)
            } else {
                Err(Errno::EINVAL)
            }
        }
        PR_GET_PDEATHSIG => {
            cx.write_struct(Gva(args[1]), &0u32)?;
            Ok(0)
        }
        PR_CAPBSET_READ => {
            if args[1] <= 40 {
                Ok(0)
            } else {
                Err(Errno::EINVAL)
            }
        }
        PR_SET_TIMERSLACK => Ok(0),
        PR_GET_TIMERSLACK => Ok(50_000),
        PR_SET_NO_NEW_PRIVS => {
            if args[1] == 1 && args[2..5] == [0, 0, 0] {
                Ok(0)
            } else {
                Err(Errno::EINVAL)
            }
        }
        PR_GET_NO_NEW_PRIVS => Ok(1),
        // Naming anonymous memory needs CONFIG_ANON_VMA_NAME; without it Linux says EINVAL.
        PR_SET_VMA => Err(Errno::EINVAL),
        option => {
            cx.host
                .report
                .unsupported("prctl", format!("option {option}"));
            Err(Errno::EINVAL)
        }
    }
}

/// capget(2): no capabilities.
///
/// # Errors
/// `EINVAL` for an unknown version, with the preferred one written back; `EFAULT`, `ESRCH`.
pub fn sys_capget(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = cx.read_struct(Gva(args[0]))?;
    let sets = match header[0] {
        0x1998_0330 => 1usize,
        0x2007_1026 | VERSION_3 => 2,
        _ => {
            cx.write_struct(Gva(args[0]), &VERSION_3)?;
            return if args[1] == 0 {
                Ok(0)
            } else {
                Err(Errno::EINVAL)
            };
        }
    };
    if args[1] != 0 {
        let zeros = [0u8; 24];
        cx.write(
            Gva(args[1]),
            zeros.get(..sets.saturating_mul(12)).unwrap_or_default(),
        )?;
    }
    Ok(0)
}

/// capset(2): capabilities may only be given up, and there are none.
///
/// # Errors
/// `EPERM` for any capability; `EINVAL`, `EFAULT`.
pub fn sys_capset(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let header: [u32; 2] = cx.read_struct(Gva(args[0]))?;
    let sets = match header[0] {
        0x1998_0330 => 12usize,
        0x2007_1026 | 0x2008_0522 => 24,
        _ => return Err(Errno::EINVAL),
    };
    let mut data = [0u8; 24];
    cx.read(Gva(args[1]), data.get_mut(..sets).unwrap_or_default())?;
    if data.iter().any(|byte| *byte != 0) {
        Err(Errno::EPERM)
    } else {
        Ok(0)
    }
}

/// getrandom(2), from the host's generator.
///
/// # Errors
/// `EINVAL` for unknown flags; `EFAULT`.
pub fn sys_getrandom(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    const CHUNK: usize = 4096;
    let flags = args[2] & 0xffff_ffff;
    if flags & !7 != 0 || flags & 6 == 6 {
        return Err(Errno::EINVAL);
    }
    let total = args[1].min(0x7fff_f000);
    // One call answers a bounded piece, as Linux does when a signal is pending.
    let total = total.min(1 << 20);
    let mut done = 0u64;
    let mut chunk = [0u8; CHUNK];
    while done < total {
        let len = usize::try_from(total.saturating_sub(done))
            .unwrap_or(CHUNK)
            .min(CHUNK);
        let piece = chunk.get_mut(..len).ok_or(Errno::EINVAL)?;
        crate::clock::fill_random(piece)?;
        match crate::mm::user::write_some(cx, Gva(args[0].wrapping_add(done)), piece) {
            Ok(copied) => {
                done = done.saturating_add(copied as u64);
                if copied < len {
                    break;
                }
            }
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(done)
}
