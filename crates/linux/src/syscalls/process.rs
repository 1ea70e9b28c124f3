//! Processes: execve(2), waiting for children (there are none yet).

use kvmlet_abi::linux::limits::{MAX_ARG_STRLEN, PATH_MAX};
use kvmlet_abi::linux::wait::{
    __WALL, __WCLONE, __WNOTHREAD, P_ALL, P_PIDFD, WCONTINUED, WEXITED, WNOHANG, WNOWAIT, WSTOPPED,
    WUNTRACED,
};
use kvmlet_abi::{Errno, Gva};

use crate::cx::Cx;
use crate::exec::{self, ExecRequest};
use crate::outcome::{CallState, Outcome, SysResult};
use crate::syscalls::args::{Args, Flags, Int, Ptr, Str};

fn read_strings(cx: &mut Cx<'_>, array: Gva, left: &mut usize) -> Result<Vec<Vec<u8>>, Errno> {
    let mut strings = Vec::new();
    if array.0 == 0 {
        return Ok(strings);
    }
    let mut at = array.0;
    loop {
        let pointer: u64 = cx.read_struct(Gva(at))?;
        if pointer == 0 {
            return Ok(strings);
        }
        let string = match cx.read_cstr(Gva(pointer), MAX_ARG_STRLEN) {
            Err(Errno::ENAMETOOLONG) => return Err(Errno::E2BIG),
            other => other?,
        };
        // Each string also costs its NUL and its pointer.
        *left = left
            .checked_sub(string.len().saturating_add(9))
            .ok_or(Errno::E2BIG)?;
        strings.push(string);
        at = at.checked_add(8).ok_or(Errno::EFAULT)?;
    }
}

/// execve(2)
pub fn sys_execve(cx: &mut Cx<'_>, args: &Args, _state: &CallState) -> Outcome {
    let (Str(path), Ptr(argv), Ptr(envp)) = args.decode();
    let request = |cx: &mut Cx<'_>| -> Result<ExecRequest, Errno> {
        let mut left = usize::try_from(exec::arguments_max(cx)?).unwrap_or(usize::MAX);
        let path = cx.read_cstr(path, PATH_MAX)?;
        let argv = read_strings(cx, argv, &mut left)?;
        let envp = read_strings(cx, envp, &mut left)?;
        Ok(ExecRequest { path, argv, envp })
    };
    let result = request(cx).and_then(|request| exec::replace(cx, request));
    match result {
        Ok(()) => Outcome::Registers,
        Err(errno) => Outcome::Done(Err(errno)),
    }
}

/// wait4(2): there are no children.
///
/// # Errors
/// `ECHILD`; `EINVAL` for unknown options.
pub fn sys_wait4(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    const KNOWN: u32 = WNOHANG | WUNTRACED | WCONTINUED | __WNOTHREAD | __WALL | __WCLONE;
    let (Int(_), Ptr(_), Flags(options), Ptr(_)) = args.decode();
    if options & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    cx.host.report.unsupported("wait4", String::new());
    Err(Errno::ECHILD)
}

/// waitid(2): there are no children.
///
/// # Errors
/// `ECHILD`; `EINVAL` for unknown options or no event asked for; `EFAULT`.
pub fn sys_waitid(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(kind), Int(_), Ptr(info), Flags(options), Ptr(_)) = args.decode();
    let events = WSTOPPED | WEXITED | WCONTINUED;
    let known = events | WNOHANG | WNOWAIT | __WNOTHREAD | __WALL | __WCLONE;
    let invalid =
        options & events == 0 || options & !known != 0 || !(P_ALL..=P_PIDFD).contains(&kind);
    if info.0 != 0 {
        // Linux clears the seven words it would report in, whatever the answer.
        cx.write_struct(info, &[0u32; 7])?;
    }
    if invalid {
        return Err(Errno::EINVAL);
    }
    cx.host.report.unsupported("waitid", String::new());
    Err(Errno::ECHILD)
}
