//! Descriptors: close, dup, fcntl, pipes, memfd.

use kvmlet_abi::linux::capability::CAP_FOWNER;
use kvmlet_abi::linux::fcntl::{
    F_SEAL_EXEC, F_SEAL_FUTURE_WRITE, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE,
};
use kvmlet_abi::linux::{
    close_range::{CLOSE_RANGE_CLOEXEC, CLOSE_RANGE_UNSHARE},
    fcntl::{
        DN_MULTISHOT, F_ADD_SEALS, F_DUPFD, F_DUPFD_CLOEXEC, F_DUPFD_QUERY, F_GET_SEALS, F_GETFD,
        F_GETFL, F_GETLEASE, F_GETOWN, F_GETOWN_EX, F_GETPIPE_SZ, F_GETSIG, F_NOTIFY, F_OWNER_PGRP,
        F_OWNER_PID, F_OWNER_TID, F_SETFD, F_SETFL, F_SETLEASE, F_SETOWN, F_SETOWN_EX,
        F_SETPIPE_SZ, F_SETSIG, FD_CLOEXEC,
    },
    memfd::{MFD_ALLOW_SEALING, MFD_CLOEXEC, MFD_EXEC, MFD_HUGETLB, MFD_NOEXEC_SEAL},
};
use std::sync::Arc;

use kvmlet_abi::{Errno, Gva};

use super::{int, locking, number, uint};
use crate::cx::Cx;
use crate::fd::{self, FileId, FileKind, OnExec, OpenFile, OpenFlags};
use crate::outcome::{CallState, Outcome, SysResult};
use crate::signal::NSIG;
use crate::syscalls::args::{Args, Fd, FileFlags, Flags, Ptr, Str, Uint, Word};
use crate::task::share::{self, Payer};
use crate::vfs;
use crate::vfs::async_io::{self, Owner};
use crate::vfs::leases;
use crate::vfs::open::description;
use crate::vfs::tmpfs::NewAttr;

/// close(2)
///
/// # Errors
/// `EBADF`.
pub fn sys_close(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Fd(fd) = args.decode();
    fd::close(cx, fd)?;
    Ok(0)
}

/// close_range(2)
///
/// # Errors
/// `EINVAL` for unknown flags or an empty range; `ENOMEM` for a table of the caller's own.
pub fn sys_close_range(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Uint(first), Uint(last), Flags(flags)) = args.decode();
    if flags & !(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC) != 0 || first > last {
        return Err(Errno::EINVAL);
    }
    if flags & CLOSE_RANGE_UNSHARE != 0 {
        share::unshare_files(cx, Payer::Apart)?;
    }
    let within = |fd: &i32| (first..=last).contains(&fd.cast_unsigned());
    let fds: Vec<i32> = cx
        .fds()?
        .fds
        .keys()
        .filter(|fd| within(fd))
        .copied()
        .collect();
    cx.kernel.hold_wakes();
    for number in fds {
        if flags & CLOSE_RANGE_CLOEXEC == 0 {
            // Each is open: there is nothing to fail.
            let _ = fd::close(cx, number);
        } else if let Ok(table) = cx.fds()
            && let Some(entry) = table.fds.get_mut(&number)
        {
            entry.cloexec = true;
        }
    }
    cx.kernel.release_wakes();
    Ok(0)
}

/// dup(2)
///
/// # Errors
/// `EBADF`, `EMFILE`.
pub fn sys_dup(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Fd(fd) = args.decode();
    let (id, _) = fd::get(cx, fd)?;
    Ok(number(fd::install(cx, id, 0, OnExec::Keep)?))
}

/// dup2(2)
///
/// # Errors
/// `EBADF`.
pub fn sys_dup2(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(old), Fd(new)) = args.decode();
    let (id, _) = fd::get(cx, old)?;
    if old != new {
        fd::install_at(cx, id, new, OnExec::Keep)?;
    }
    Ok(number(new))
}

/// dup3(2)
///
/// # Errors
/// `EINVAL` for equal descriptors or unknown flags, `EBADF`.
pub fn sys_dup3(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(old), Fd(new), FileFlags(flags)) = args.decode();
    let flags = OpenFlags::from_bits_retain(flags);
    if !OpenFlags::CLOEXEC.contains(flags) || old == new {
        return Err(Errno::EINVAL);
    }
    let (id, _) = fd::get(cx, old)?;
    fd::install_at(cx, id, new, OnExec::of(flags))?;
    Ok(number(new))
}

/// fcntl(2)
pub fn sys_fcntl(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Uint(command), Word(arg)) = args.decode();
    let (id, file) = match fd::get(cx, fd) {
        Ok(found) => found,
        Err(error) => return Outcome::Done(Err(error)),
    };
    let on_location = matches!(
        command,
        F_DUPFD | F_DUPFD_CLOEXEC | F_GETFD | F_SETFD | F_GETFL | F_DUPFD_QUERY
    );
    if file.flags.contains(OpenFlags::PATH) && !on_location {
        return Outcome::Done(Err(Errno::EBADF));
    }
    if let Some(request) = locking::Request::of(command) {
        return locking::fcntl(cx, (id, &file), request, arg, state);
    }
    control(cx, fd, (id, &file), command, arg).into()
}

fn control(
    cx: &mut Cx<'_>,
    fd: i32,
    (id, file): (FileId, &OpenFile),
    command: u32,
    arg: u64,
) -> SysResult {
    match command {
        F_DUPFD | F_DUPFD_CLOEXEC => {
            let min = int(arg);
            if min < 0 || min >= fd::limit(cx)? {
                return Err(Errno::EINVAL);
            }
            let on_exec = if command == F_DUPFD {
                OnExec::Keep
            } else {
                OnExec::Close
            };
            Ok(number(fd::install(cx, id, min, on_exec)?))
        }
        F_GETFD => Ok(u64::from(
            cx.fds()?.fds.get(&fd).is_some_and(|fd| fd.cloexec),
        )),
        F_SETFD => {
            cx.fds()?.fds.get_mut(&fd).ok_or(Errno::EBADF)?.cloexec = uint(arg) & FD_CLOEXEC != 0;
            Ok(0)
        }
        F_GETFL => Ok(u64::from(file.flags.bits())),
        F_SETFL => {
            let wanted = OpenFlags::from_bits_truncate(uint(arg)) & OpenFlags::SETTABLE;
            if wanted.contains(OpenFlags::NOATIME) && !file.flags.contains(OpenFlags::NOATIME) {
                let owner = vfs::file::attr(cx, id)?.uid;
                let creds = cx.creds();
                if owner != creds.user.fs && !creds.has(CAP_FOWNER) {
                    return Err(Errno::EPERM);
                }
            }
            if file.flags.contains(OpenFlags::ASYNC) != wanted.contains(OpenFlags::ASYNC) {
                // As on Linux it is no error here: the flag is not set.
                let _ = async_io::set(cx, (fd, id), file, wanted.contains(OpenFlags::ASYNC));
            }
            let changed = OpenFlags::SETTABLE.difference(OpenFlags::ASYNC);
            let open = fd::file_mut(cx, id)?;
            open.flags = open.flags.difference(changed) | (wanted & changed);
            Ok(0)
        }
        F_DUPFD_QUERY => {
            let other = fd::get(cx, int(arg)).map(|(other, _)| other)?;
            Ok(u64::from(other == id))
        }
        F_GETOWN | F_SETOWN | F_GETOWN_EX | F_SETOWN_EX => own(cx, id, command, arg),
        // 0 is SIGIO without more.
        F_GETSIG => Ok(async_io::signal(cx.kernel, id).map_or(0, u64::from)),
        F_SETSIG => {
            let signo = u8::try_from(arg).ok().filter(|signo| *signo <= NSIG);
            let signo = signo.ok_or(Errno::EINVAL)?;
            async_io::set_signal(cx.kernel, id, (signo != 0).then_some(signo));
            Ok(0)
        }
        F_GETLEASE => Ok(u64::from(leases::get(cx, id)?.cast_unsigned())),
        F_SETLEASE => leases::set(cx, (fd, id), file, int(arg)).map(|()| 0),
        F_NOTIFY => {
            if !vfs::file::attr(cx, id)?.is_dir() {
                return Err(Errno::ENOTDIR);
            }
            // No event at all takes back what was asked for before, which is never anything.
            if uint(arg) & !DN_MULTISHOT == 0 {
                return Ok(0);
            }
            let what = "signals about changes of a directory";
            cx.host.report.unsupported("fcntl", what.to_owned());
            Err(Errno::EINVAL)
        }
        F_GETPIPE_SZ | F_SETPIPE_SZ => pipe_size(cx, file, command, arg),
        F_ADD_SEALS | F_GET_SEALS => seals(cx, file, command, uint(arg)),
        _ => {
            cx.host
                .report
                .unsupported("fcntl", format!("command {command}"));
            Err(Errno::EINVAL)
        }
    }
}

/// F_GETOWN and its like: who gets signals of what happens to a file.
fn own(cx: &mut Cx<'_>, id: FileId, command: u32, arg: u64) -> SysResult {
    let owner = match command {
        F_GETOWN | F_GETOWN_EX => {
            let (kind, number) = match async_io::owner(cx.kernel, id) {
                None => (F_OWNER_TID, 0),
                Some(Owner::Thread(tid, _)) => (F_OWNER_TID, tid.0),
                Some(Owner::Process(pid, _)) => (F_OWNER_PID, pid.0),
                Some(Owner::Group(group)) => (F_OWNER_PGRP, group.0),
            };
            if command == F_GETOWN_EX {
                cx.write_struct(Gva(arg), &[kind, number])?;
                return Ok(0);
            }
            let sign = if kind == F_OWNER_PGRP { -1 } else { 1 };
            return Ok((i64::from(number) * sign).cast_unsigned());
        }
        F_SETOWN => match int(arg) {
            0 => None,
            number @ 1.. => Some(Owner::process(cx.kernel, number)?),
            number => {
                let group = number.checked_neg().ok_or(Errno::EINVAL)?;
                Some(Owner::group(cx.kernel, group)?)
            }
        },
        _ => match cx.read_struct::<[i32; 2]>(Gva(arg))? {
            [F_OWNER_TID | F_OWNER_PID | F_OWNER_PGRP, 0] => None,
            [F_OWNER_PID, number] => Some(Owner::process(cx.kernel, number)?),
            [F_OWNER_PGRP, number] => Some(Owner::group(cx.kernel, number)?),
            [F_OWNER_TID, number] => Some(Owner::thread(cx.kernel, number)?),
            _ => return Err(Errno::EINVAL),
        },
    };
    let creds = cx.creds();
    async_io::set_owner(cx.kernel, id, owner, &creds);
    Ok(0)
}

fn pipe_size(cx: &mut Cx<'_>, file: &OpenFile, command: u32, arg: u64) -> SysResult {
    let FileKind::Pipe(id) = file.kind else {
        return Err(Errno::EBADF);
    };
    let pipe = cx.kernel.pipes.get_mut(id)?;
    let size = if command == F_GETPIPE_SZ {
        pipe.capacity
    } else {
        pipe.resize(u64::from(uint(arg)))?
    };
    let space = vfs::ready::POLLOUT | vfs::ready::POLLWRNORM;
    cx.kernel.wake(crate::outcome::Source::Pipe(id), space);
    Ok(size as u64)
}

fn seals(cx: &mut Cx<'_>, file: &OpenFile, command: u32, wanted: u32) -> SysResult {
    const ALL: u32 = F_SEAL_SEAL
        | F_SEAL_SHRINK
        | F_SEAL_GROW
        | F_SEAL_WRITE
        | F_SEAL_FUTURE_WRITE
        | F_SEAL_EXEC;
    let FileKind::Tmp(inode) = file.kind else {
        return Err(Errno::EINVAL);
    };
    let inode = cx.kernel.tmpfs.get_mut(inode)?;
    let (mapped, mode) = (inode.writable_maps, inode.mode);
    let data = inode.file_mut().map_err(|_| Errno::EINVAL)?;
    if command == F_GET_SEALS {
        return Ok(u64::from(data.seals));
    }
    if !file.flags.writable() {
        return Err(Errno::EPERM);
    }
    if wanted & !ALL != 0 {
        return Err(Errno::EINVAL);
    }
    if data.seals & F_SEAL_SEAL != 0 {
        return Err(Errno::EPERM);
    }
    if wanted & F_SEAL_WRITE != 0 && data.seals & F_SEAL_WRITE == 0 && mapped > 0 {
        return Err(Errno::EBUSY);
    }
    // Sealing the mode of an executable file seals its contents too (memfd_add_seals).
    let implied = if wanted & F_SEAL_EXEC != 0 && mode & 0o111 != 0 {
        F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE
    } else {
        0
    };
    data.seals |= wanted | implied;
    Ok(0)
}

/// pipe(2)
///
/// # Errors
/// `EFAULT`, `EMFILE`.
pub fn sys_pipe(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Ptr(fds) = args.decode();
    pipe(cx, fds, OpenFlags::empty())
}

/// pipe2(2)
///
/// # Errors
/// `EINVAL` for unknown flags, `EFAULT`, `EMFILE`.
pub fn sys_pipe2(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(fds), FileFlags(flags)) = args.decode();
    let known = OpenFlags::CLOEXEC | OpenFlags::NONBLOCK | OpenFlags::DIRECT;
    if flags & !known.bits() != 0 {
        return Err(Errno::EINVAL);
    }
    pipe(cx, fds, OpenFlags::from_bits_truncate(flags))
}

fn pipe(cx: &mut Cx<'_>, fds_gva: Gva, flags: OpenFlags) -> SysResult {
    let now = vfs::now(cx.host);
    let id = cx.kernel.pipes.create(now);
    let path = format!("pipe:[{id}]");
    let kept = flags & (OpenFlags::NONBLOCK | OpenFlags::DIRECT);
    let end = |access| description(FileKind::Pipe(id), kept | access, path.as_bytes());
    let read_end = fd::install_new(cx, end(OpenFlags::empty()), OnExec::of(flags));
    let write_end = fd::install_new(cx, end(OpenFlags::WRONLY), OnExec::of(flags));
    let written = match (read_end, write_end) {
        (Ok(read_end), Ok(write_end)) => cx.write_struct(fds_gva, &[read_end, write_end]),
        _ => Err(Errno::EMFILE),
    };
    if written.is_err() {
        for number in [read_end, write_end].into_iter().flatten() {
            fd::close(cx, number)?;
        }
    }
    written.map(|()| 0)
}

/// memfd_create(2)
///
/// # Errors
/// `EINVAL` for unknown flags or a long name, `EFAULT`, `EMFILE`, `ENOMEM`.
pub fn sys_memfd_create(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    /// Longest name with its NUL: NAME_MAX less "memfd:", and the NUL.
    const NAME_MAX: usize = 250;
    let (Str(name_gva), Flags(flags)) = args.decode();
    if flags & MFD_HUGETLB != 0 {
        cx.host
            .report
            .unsupported("memfd_create", "MFD_HUGETLB".to_owned());
        return Err(Errno::EINVAL);
    }
    let known = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | MFD_EXEC;
    if flags & !known != 0 || flags & (MFD_EXEC | MFD_NOEXEC_SEAL) == MFD_EXEC | MFD_NOEXEC_SEAL {
        return Err(Errno::EINVAL);
    }
    let name = cx
        .read_cstr(name_gva, NAME_MAX)
        .map_err(|error| match error {
            Errno::ENAMETOOLONG => Errno::EINVAL,
            other => other,
        })?;
    let no_exec = flags & MFD_NOEXEC_SEAL != 0;
    let seals = match (no_exec, flags & MFD_ALLOW_SEALING != 0) {
        (true, _) => F_SEAL_EXEC,
        (false, true) => 0,
        (false, false) => F_SEAL_SEAL,
    };
    let creds = cx.creds();
    let mode = if no_exec { 0o666 } else { 0o777 };
    let attr = NewAttr {
        mode,
        uid: creds.user.fs,
        gid: creds.group.fs,
        now: vfs::now(cx.host),
    };
    let inode = cx
        .kernel
        .tmpfs
        .create_unnamed(&mut cx.machine.memory, seals, attr)
        .map_err(|_| Errno::ENOMEM)?;
    let path: Arc<[u8]> = [b"/memfd:".as_slice(), &name].concat().into();
    let flags = if flags & MFD_CLOEXEC == 0 {
        OpenFlags::RDWR
    } else {
        OpenFlags::RDWR | OpenFlags::CLOEXEC
    };
    let file = description(FileKind::Tmp(inode), flags | OpenFlags::LARGEFILE, &path);
    Ok(number(fd::install_new(cx, file, OnExec::of(flags))?))
}
