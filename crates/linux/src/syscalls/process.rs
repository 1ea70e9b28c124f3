//! Processes: execve(2), waiting for children.

use kvmlet_abi::linux::fcntl::{AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW};
use kvmlet_abi::linux::limits::{MAX_ARG_STRLEN, PATH_MAX};
use kvmlet_abi::linux::wait::{
    __WALL, __WCLONE, __WNOTHREAD, P_ALL, P_PGID, P_PID, P_PIDFD, WCONTINUED, WEXITED, WNOHANG,
    WNOWAIT, WSTOPPED, WUNTRACED,
};
use kvmlet_abi::{Errno, Gva};

use crate::cx::Cx;
use crate::exec::{self, ExecRequest, Named, OpenProgram, PathAfter};
use crate::fd::{self, OpenFlags};
use crate::kernel::Pid;
use crate::outcome::{CallState, Outcome, Resume, Source, Wait, WaitOn};
use crate::signal::signo::SIGCHLD;
use crate::syscalls::args::{Args, Fd, Flags, Int, Ptr, Str};
use crate::syscalls::time::rusage;
use crate::task::wait::{self, Found, Whose};
use crate::vfs::path::Last;
use crate::vfs::{self, pidfd};

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
    let request = read_request(cx, path, argv, envp);
    let result = request.and_then(|request| exec::replace(cx, request, None));
    match result {
        Ok(()) => Outcome::Registers,
        Err(errno) => Outcome::Done(Err(errno)),
    }
}

fn read_request(cx: &mut Cx<'_>, path: Gva, argv: Gva, envp: Gva) -> Result<ExecRequest, Errno> {
    let mut left = usize::try_from(exec::arguments_max(cx)?).unwrap_or(usize::MAX);
    let path = cx.read_cstr(path, PATH_MAX)?;
    let argv = read_strings(cx, argv, &mut left)?;
    let envp = read_strings(cx, envp, &mut left)?;
    Ok(ExecRequest { path, argv, envp })
}

/// execveat(2)
pub fn sys_execveat(cx: &mut Cx<'_>, args: &Args, _state: &CallState) -> Outcome {
    let (Fd(dirfd), Str(path), Ptr(argv), Ptr(envp), Flags(flags)) = args.decode();
    match execute_at(cx, dirfd, (path, argv, envp), flags) {
        Ok(()) => Outcome::Registers,
        Err(errno) => Outcome::Done(Err(errno)),
    }
}

fn execute_at(
    cx: &mut Cx<'_>,
    dirfd: i32,
    (path, argv, envp): (Gva, Gva, Gva),
    flags: u32,
) -> Result<(), Errno> {
    let mut request = read_request(cx, path, argv, envp)?;
    if flags & !(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    let last = match flags & AT_SYMLINK_NOFOLLOW {
        0 => Last::Follow,
        _ => Last::NoFollow,
    };
    let is_empty = request.path.is_empty();
    if is_empty && flags & AT_EMPTY_PATH == 0 {
        return Err(Errno::ENOENT);
    }
    let (file, named) = if is_empty {
        // The working directory is no program.
        let file = match dirfd {
            AT_FDCWD => return Err(Errno::EACCES),
            _ => vfs::open_exec_fd(cx, dirfd)?,
        };
        (file, Named::ByProgram)
    } else {
        let file = vfs::open_exec_at(cx, dirfd, &request.path, last)?;
        (file, Named::ByPath)
    };
    let mut after = PathAfter::Kept;
    if dirfd != AT_FDCWD && !request.path.starts_with(b"/") {
        let descriptor = format!("/dev/fd/{dirfd}").into_bytes();
        request.path = match is_empty {
            true => descriptor,
            false => [&descriptor, b"/".as_slice(), &request.path].concat(),
        };
        let entry = cx.fds()?.fds.get(&dirfd);
        if entry.is_some_and(|entry| entry.cloexec) {
            after = PathAfter::Lost;
        }
    }
    let opened = OpenProgram {
        file,
        path: after,
        named,
    };
    exec::replace(cx, request, Some(opened))
}

/// wait4(2)
pub fn sys_wait4(cx: &mut Cx<'_>, args: &Args, _state: &CallState) -> Outcome {
    const KNOWN: u32 = WNOHANG | WUNTRACED | WCONTINUED | __WNOTHREAD | __WALL | __WCLONE;
    let (Int(pid), Ptr(status), Flags(options), Ptr(usage)) = args.decode();
    let whose = match pid {
        _ if options & !KNOWN != 0 => return Outcome::Done(Err(Errno::EINVAL)),
        i32::MIN => return Outcome::Done(Err(Errno::ESRCH)),
        -1 => Ok(Whose::Any),
        0 => cx.process().map(|process| Whose::Group(process.pgid)),
        group if group < 0 => Ok(Whose::Group(Pid(group.saturating_neg()))),
        pid => Ok(Whose::Child(Pid(pid))),
    };
    // Only waitid(2) can do without news of an end.
    let found = whose.and_then(|whose| wait::look(cx, whose, options | WEXITED));
    let tell = |cx: &mut Cx<'_>, found: &Found| {
        wait::told(cx.kernel, found);
        if status.0 != 0 {
            cx.write_struct(status, &found.news.wait_word())?;
        }
        if usage.0 != 0 {
            cx.write_struct(usage, &rusage(found.cpu_time_ns, found.peak_bytes))?;
        }
        Ok(u64::from(found.pid.0.cast_unsigned()))
    };
    match found {
        Ok(Some(found)) => Outcome::Done(tell(cx, &found)),
        Ok(None) if options & WNOHANG != 0 => Outcome::Done(Ok(0)),
        Ok(None) => wait_for_child(cx),
        Err(errno) => Outcome::Done(Err(errno)),
    }
}

/// waitid(2)
pub fn sys_waitid(cx: &mut Cx<'_>, args: &Args, _state: &CallState) -> Outcome {
    let (Int(kind), Int(id), Ptr(info), Flags(options), Ptr(usage)) = args.decode();
    let events = WSTOPPED | WEXITED | WCONTINUED;
    let known = events | WNOHANG | WNOWAIT | __WNOTHREAD | __WALL | __WCLONE;
    let mut refuses_to_wait = false;
    let whose = match (kind, id) {
        _ if options & events == 0 || options & !known != 0 => Err(Errno::EINVAL),
        (P_ALL, _) => Ok(Whose::Any),
        (P_PID, pid) if pid > 0 => Ok(Whose::Child(Pid(pid))),
        (P_PGID, 0) => cx.process().map(|process| Whose::Group(process.pgid)),
        (P_PGID, group) if group > 0 => Ok(Whose::Group(Pid(group))),
        (P_PIDFD, fd) if fd >= 0 => whose_descriptor(cx, fd).map(|(whose, flags)| {
            refuses_to_wait = flags.contains(OpenFlags::NONBLOCK);
            whose
        }),
        _ => Err(Errno::EINVAL),
    };
    let found = whose.and_then(|whose| wait::look(cx, whose, options));
    let tell = |cx: &mut Cx<'_>, found: &Found| {
        let uid = cx.kernel.creds_of(found.pid).user.real;
        if options & WNOWAIT == 0 {
            wait::told(cx.kernel, found);
        }
        if usage.0 != 0 {
            cx.write_struct(usage, &rusage(found.cpu_time_ns, found.peak_bytes))?;
        }
        if info.0 != 0 {
            let (code, status) = found.news.child_code();
            let pid = found.pid.0.cast_unsigned();
            let code = code.cast_unsigned();
            let words = [u32::from(SIGCHLD), 0, code, 0, pid, uid, u32::from(status)];
            cx.write_struct(info, &words)?;
        }
        Ok(0)
    };
    match found {
        Ok(Some(found)) => Outcome::Done(tell(cx, &found)),
        Ok(None) if options & WNOHANG == 0 && !refuses_to_wait => wait_for_child(cx),
        // Linux clears the words it would report in, whatever the answer.
        other => {
            let cleared = match info.0 {
                0 => Ok(()),
                _ => cx.write_struct(info, &[0u32; 7]),
            };
            let other = match other {
                Ok(_) if options & WNOHANG == 0 => Err(Errno::EAGAIN),
                other => other.map(|_| 0),
            };
            Outcome::Done(cleared.and(other))
        }
    }
}

/// The child that a descriptor stands for, and the descriptor's flags.
fn whose_descriptor(cx: &mut Cx<'_>, number: i32) -> Result<(Whose, OpenFlags), Errno> {
    let process = pidfd::process_of(cx, number)?;
    let (_, file) = fd::get_io(cx, number)?;
    let flags = file.flags;
    match cx.kernel.exists(process) {
        true => Ok((Whose::Child(process.pid), flags)),
        false => Err(Errno::ECHILD),
    }
}

/// Parks the caller until a child of its process has news; the call is then made again.
fn wait_for_child(cx: &mut Cx<'_>) -> Outcome {
    match cx.process().map(|process| process.pid) {
        Ok(pid) => Outcome::Wait(Wait {
            on: WaitOn::Sources([Source::Children(pid)].into_iter().collect()),
            deadline_ns: None,
            resume: Resume::Retry(CallState::default()),
        }),
        Err(errno) => Outcome::Done(Err(errno)),
    }
}
