//! Who and where: processes and their groups, names, limits, prctl.

use kvmlet_abi::linux::prctl::{
    ARCH_GET_FS, ARCH_GET_GS, ARCH_SET_FS, ARCH_SET_GS, PR_CAP_AMBIENT, PR_CAPBSET_DROP,
    PR_CAPBSET_READ, PR_GET_CHILD_SUBREAPER, PR_GET_DUMPABLE, PR_GET_KEEPCAPS, PR_GET_NAME,
    PR_GET_NO_NEW_PRIVS, PR_GET_PDEATHSIG, PR_GET_SECUREBITS, PR_GET_TIMERSLACK,
    PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_NAME, PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG, PR_SET_SECUREBITS, PR_SET_TIMERSLACK, PR_SET_VMA,
};
use kvmlet_abi::linux::random::{GRND_INSECURE, GRND_NONBLOCK, GRND_RANDOM};
use kvmlet_abi::linux::resource::{PRIO_PGRP, PRIO_PROCESS, PRIO_USER};
use kvmlet_abi::linux::{Rlimit, Sysinfo, Utsname};
use kvmlet_abi::regs::is_canonical;
use kvmlet_abi::{Errno, Gva};
use zerocopy::FromZeros as _;

use crate::clock;
use crate::cx::Cx;
use crate::kernel::{Kin, Pid, Thread, Tid};
use crate::outcome::SysResult;
use crate::rlimit::{self, Resource};
use crate::signal::NSIG;
use crate::syscalls::args::{Args, Flags, Int, Len, Ptr, Uint, Word};
use crate::syscalls::credentials;
use crate::uts::{NODENAME, RELEASE};

/// The bounds of nice values.
const NICE_MIN: i8 = -20;
const NICE_MAX: i8 = 19;

/// getpid(2)
///
/// # Errors
/// None for a running thread.
pub fn sys_getpid(cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    Ok(u64::from(cx.process()?.pid.0.cast_unsigned()))
}

/// getppid(2)
///
/// # Errors
/// None for a running thread.
pub fn sys_getppid(cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    Ok(u64::from(cx.process()?.ppid.0.cast_unsigned()))
}

/// The process that an id names, or the caller's for 0: its group and session.
fn group_of(cx: &mut Cx<'_>, pid: i32) -> Result<(Pid, Pid), Errno> {
    let pid = match pid {
        0 => cx.process()?.pid.0,
        pid => pid,
    };
    let named = cx.kernel.kin_of(pid).ok_or(Errno::ESRCH)?;
    Ok((named.pgid, named.sid))
}

/// getpgid(2)
///
/// # Errors
/// `ESRCH` for no such process.
pub fn sys_getpgid(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Int(pid) = args.decode();
    Ok(u64::from(group_of(cx, pid)?.0.0.cast_unsigned()))
}

/// getsid(2)
///
/// # Errors
/// `ESRCH` for no such process.
pub fn sys_getsid(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Int(pid) = args.decode();
    Ok(u64::from(group_of(cx, pid)?.1.0.cast_unsigned()))
}

/// getpgrp(2)
///
/// # Errors
/// None for a running thread.
pub fn sys_getpgrp(cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    // Nothing is changed: a look that is meant to change would copy what is shared with a snapshot.
    let kernel = &cx.kernel;
    let thread = kernel.threads.get(&cx.tid);
    let process = thread.and_then(|thread| kernel.processes.get(&thread.pid));
    let pgid = process.ok_or(Errno::ESRCH)?.pgid;
    Ok(u64::from(pgid.0.cast_unsigned()))
}

/// setpgid(2)
///
/// # Errors
/// `EINVAL` for a negative group, or another than a first thread. `ESRCH` for neither the caller nor a child of it. `EACCES` for a child that has
/// executed another program. `EPERM` for a session leader, another session, or a group that is not in it.
pub fn sys_setpgid(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(pid), Int(pgid)) = args.decode();
    if pgid < 0 {
        return Err(Errno::EINVAL);
    }
    let caller = cx.process()?;
    let (own, own_sid) = (caller.pid, caller.sid);
    let pid = if pid == 0 { own } else { Pid(pid) };
    let pgid = if pgid == 0 { pid } else { Pid(pgid) };
    let target = cx.kernel.kin_of(pid.0).ok_or(Errno::ESRCH)?;
    if target.pid != pid {
        // The id of a thread that is not the first one.
        return Err(Errno::EINVAL);
    }
    if pid != own {
        if target.ppid != own {
            return Err(Errno::ESRCH);
        }
        if target.sid != own_sid {
            return Err(Errno::EPERM);
        }
        if target.has_execed {
            return Err(Errno::EACCES);
        }
    }
    let in_session = |one: Kin| one.pgid == pgid && one.sid == own_sid;
    if target.sid == pid || pgid != pid && !cx.kernel.kin().any(in_session) {
        return Err(Errno::EPERM);
    }
    if let Some(target) = cx.kernel.processes.get_mut(&pid) {
        target.pgid = pgid;
    } else if let Some(target) = cx.kernel.zombies.get_mut(&pid) {
        target.pgid = pgid;
    }
    Ok(0)
}

/// setsid(2)
///
/// # Errors
/// `EPERM` if the caller leads a process group.
pub fn sys_setsid(cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    let own = cx.process()?.pid;
    if cx.kernel.kin().any(|one| one.pgid == own) {
        return Err(Errno::EPERM);
    }
    let process = cx.process()?;
    (process.pgid, process.sid) = (own, own);
    (process.ctty, process.former_foreground) = (None, None);
    Ok(u64::from(own.0.cast_unsigned()))
}

/// uname(2)
///
/// # Errors
/// `EFAULT`.
pub fn sys_uname(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Ptr(names_gva) = args.decode();
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
    cx.write_struct(names_gva, &names)?;
    Ok(0)
}

/// sysinfo(2): memory figures are the sandbox's own.
///
/// # Errors
/// `EFAULT`.
pub fn sys_sysinfo(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Ptr(info_gva) = args.decode();
    let total = cx.machine.memory.limit_bytes();
    let info = Sysinfo {
        uptime: (clock::monotonic_ns(cx.host) / clock::NSEC_PER_SEC).cast_signed(),
        totalram: total,
        freeram: total.saturating_sub(cx.machine.memory.resident_bytes()),
        procs: u16::try_from(cx.kernel.threads.len()).unwrap_or(u16::MAX),
        mem_unit: 1,
        ..Sysinfo::default()
    };
    cx.write_struct(info_gva, &info)?;
    Ok(0)
}

fn prlimit(cx: &mut Cx<'_>, pid: Pid, number: u32, new: Option<Rlimit>) -> Result<Rlimit, Errno> {
    let resource = Resource::from_number(number).ok_or(Errno::EINVAL)?;
    let process = cx.kernel.processes.get(&pid).ok_or(Errno::ESRCH)?;
    let old = process.rlimits.get(resource);
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

/// prlimit64(2), of any process; the id of each of its threads names it. Linux differs: one that has ended has none.
///
/// # Errors
/// `ESRCH`, `EINVAL`, `EPERM`, `EFAULT`.
pub fn sys_prlimit64(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(tid), Uint(resource), Ptr(new_gva), Ptr(old_gva)) = args.decode();
    let new = if new_gva.0 == 0 {
        None
    } else {
        Some(cx.read_struct(new_gva)?)
    };
    let pid = match tid {
        0 => cx.process()?.pid,
        tid => {
            let named = cx.kernel.kin_of(tid).ok_or(Errno::ESRCH)?.pid;
            if !cx.creds().may_limit(cx.kernel.creds_of(named)) && named != cx.process()?.pid {
                return Err(Errno::EPERM);
            }
            named
        }
    };
    // Commands must not take from the holder what the next one needs.
    if pid == Pid::INIT || new.is_some() && cx.kernel.is_holder(pid) {
        return Err(Errno::EPERM);
    }
    let old = prlimit(cx, pid, resource, new)?;
    if old_gva.0 != 0 {
        cx.write_struct(old_gva, &old)?;
    }
    Ok(0)
}

/// getrlimit(2)
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sys_getrlimit(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Uint(resource), Ptr(limit)) = args.decode();
    let pid = cx.process()?.pid;
    let old = prlimit(cx, pid, resource, None)?;
    cx.write_struct(limit, &old)?;
    Ok(0)
}

/// setrlimit(2)
///
/// # Errors
/// `EINVAL`, `EPERM`, `EFAULT`.
pub fn sys_setrlimit(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Uint(resource), Ptr(limit)) = args.decode();
    let new = cx.read_struct(limit)?;
    let pid = cx.process()?.pid;
    prlimit(cx, pid, resource, Some(new))?;
    Ok(0)
}

/// The threads that getpriority(2) and setpriority(2) are about; 0 is the caller's. A process that has ended has none.
///
/// # Errors
/// `EINVAL`; `ESRCH` for none.
fn prioritized(cx: &mut Cx<'_>, which: i32, who: i32) -> Result<Vec<Tid>, Errno> {
    let own_group = cx.process()?.pgid.0;
    let uid = match who {
        0 => cx.creds().user.real,
        who => who.cast_unsigned(),
    };
    let kernel = &*cx.kernel;
    let tid = if who == 0 { cx.tid } else { Tid(who) };
    let group = if who == 0 { own_group } else { who };
    let is_users = |thread: &Thread| thread.creds.user.real == uid;
    let exists = match which {
        PRIO_PROCESS => who == 0 || kernel.kin_of(who).is_some(),
        PRIO_PGRP => kernel.kin().any(|one| one.pgid.0 == group),
        PRIO_USER => kernel.threads.values().any(is_users),
        _ => return Err(Errno::EINVAL),
    };
    if !exists {
        return Err(Errno::ESRCH);
    }
    if which == PRIO_PROCESS {
        return Ok(vec![tid]);
    }
    let is_meant = |thread: &&Thread| {
        let process = kernel.processes.get(&thread.pid);
        match which {
            PRIO_USER => is_users(thread),
            _ => process.is_some_and(|process| process.pgid.0 == group),
        }
    };
    let found = kernel.threads.values().filter(is_meant);
    Ok(found.map(|thread| thread.tid).collect())
}

/// getpriority(2): 20 less the lowest nice value, as the raw call reports it.
///
/// # Errors
/// `EINVAL`, `ESRCH`.
pub fn sys_getpriority(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(which), Int(who)) = args.decode();
    let found = prioritized(cx, which, who)?;
    let threads = found.iter().filter_map(|tid| cx.kernel.threads.get(tid));
    let least = threads.map(|thread| thread.nice).min().unwrap_or(0);
    Ok(u64::from(NICE_MAX.saturating_add(1).abs_diff(least)))
}

/// setpriority(2): the nice value is kept, and has no effect.
///
/// # Errors
/// `EINVAL`, `ESRCH`; `EPERM` for others' processes; `EACCES` for a lower one than RLIMIT_NICE allows.
pub fn sys_setpriority(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(which), Int(who), Int(priority)) = args.decode();
    let found = prioritized(cx, which, who)?;
    let own = cx.creds();
    let nice = i8::try_from(priority.clamp(NICE_MIN.into(), NICE_MAX.into())).unwrap_or(NICE_MAX);
    let least = NICE_MAX.saturating_add(1).abs_diff(nice);
    let may_lower = u64::from(least) <= rlimit::soft(cx, Resource::Nice)?;
    let mut result = Ok(0);
    for tid in found {
        if let Some(thread) = cx.kernel.threads.get_mut(&tid) {
            if !own.may_schedule(&thread.creds) {
                result = Err(Errno::EPERM);
            } else if nice < thread.nice && !may_lower {
                result = Err(Errno::EACCES);
            } else {
                thread.nice = nice;
            }
        }
    }
    result
}

/// personality(2): PER_LINUX, and ADDR_NO_RANDOMIZE is not granted.
///
/// # Errors
/// `EINVAL` for a change.
pub fn sys_personality(_cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Flags(persona) = args.decode();
    if persona == u32::MAX || persona == 0 {
        Ok(0)
    } else {
        Err(Errno::EINVAL)
    }
}

/// arch_prctl(2)
///
/// # Errors
/// `EPERM` for a base outside the canonical space; `EINVAL` for other codes; `EFAULT`.
pub fn sys_arch_prctl(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Flags(code), Ptr(addr)) = args.decode();
    let regs = &mut cx.thread()?.regs;
    match code {
        ARCH_SET_FS | ARCH_SET_GS if !is_canonical(addr.0) || addr.0 >> 47 != 0 => {
            return Err(Errno::EPERM);
        }
        // A selector of its own would stand for another base.
        ARCH_SET_FS => (regs.fs_base, regs.selectors.fs) = (addr.0, 0),
        ARCH_SET_GS => (regs.gs_base, regs.selectors.gs) = (addr.0, 0),
        ARCH_GET_FS => {
            let base = regs.fs_base;
            cx.write_struct(addr, &base)?;
        }
        ARCH_GET_GS => {
            let base = regs.gs_base;
            cx.write_struct(addr, &base)?;
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// prctl(2): names, dumpability, no-new-privs, parent-death signal, capabilities.
///
/// # Errors
/// `EINVAL` for options that are not offered; `EFAULT`, `EPERM`.
pub fn sys_prctl(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Uint(option), Word(arg2), Word(arg3), Word(arg4), Word(arg5)) = args.decode();
    match option {
        PR_SET_NAME => {
            let mut name = [0u8; 16];
            let text = match cx.read_cstr(Gva(arg2), 16) {
                Ok(text) => text,
                Err(Errno::ENAMETOOLONG) => {
                    let mut long = vec![0u8; 15];
                    cx.read(Gva(arg2), &mut long)?;
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
            cx.write(Gva(arg2), &name)?;
            Ok(0)
        }
        PR_GET_DUMPABLE => Ok(u64::from(cx.process()?.dumpable)),
        PR_SET_DUMPABLE => {
            if arg2 > 1 {
                return Err(Errno::EINVAL);
            }
            cx.process()?.dumpable = arg2 == 1;
            Ok(0)
        }
        PR_SET_PDEATHSIG => {
            let signo = u8::try_from(arg2).ok().filter(|signo| *signo <= NSIG);
            cx.process()?.death_signal = signo.ok_or(Errno::EINVAL)?;
            Ok(0)
        }
        PR_GET_PDEATHSIG => {
            let signo = u32::from(cx.process()?.death_signal);
            cx.write_struct(Gva(arg2), &signo)?;
            Ok(0)
        }
        PR_SET_CHILD_SUBREAPER => {
            cx.process()?.is_subreaper = arg2 != 0;
            Ok(0)
        }
        PR_GET_CHILD_SUBREAPER => {
            let is_subreaper = u32::from(cx.process()?.is_subreaper);
            cx.write_struct(Gva(arg2), &is_subreaper)?;
            Ok(0)
        }
        PR_CAPBSET_READ | PR_CAPBSET_DROP | PR_GET_SECUREBITS | PR_SET_SECUREBITS
        | PR_GET_KEEPCAPS | PR_SET_KEEPCAPS | PR_CAP_AMBIENT => {
            credentials::prctl(cx, option, [arg2, arg3, arg4, arg5])
        }
        PR_SET_TIMERSLACK => Ok(0),
        PR_GET_TIMERSLACK => Ok(50_000),
        PR_SET_NO_NEW_PRIVS => {
            if arg2 == 1 && (arg3, arg4, arg5) == (0, 0, 0) {
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

/// getrandom(2), from the host's generator.
///
/// # Errors
/// `EINVAL` for unknown flags; `EFAULT`.
pub fn sys_getrandom(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    const CHUNK: usize = 4096;
    let (Ptr(buf), Len(len), Flags(flags)) = args.decode();
    let known = GRND_NONBLOCK | GRND_RANDOM | GRND_INSECURE;
    let both = GRND_RANDOM | GRND_INSECURE;
    if flags & !known != 0 || flags & both == both {
        return Err(Errno::EINVAL);
    }
    let total = len.min(0x7fff_f000);
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
        match crate::mm::user::write_some(cx, Gva(buf.0.wrapping_add(done)), piece) {
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
