//! ioctl(2).

use std::os::fd::AsFd;
use std::sync::Arc;

use kvmlet_abi::{Errno, Gva};

use super::{int, uint};
use crate::cx::Cx;
use crate::fd::{self, FileId, FileKind, OpenFile, OpenFlags};
use crate::host::HostKind;
use crate::outcome::SysResult;
use crate::vfs::terminal::{self, KernelTermios, When};
use crate::vfs::{self, attr};

const TCGETS: u32 = 0x5401;
const TCSETS: u32 = 0x5402;
const TCSETSW: u32 = 0x5403;
const TCSETSF: u32 = 0x5404;
const TCFLSH: u32 = 0x540b;
const TIOCGPGRP: u32 = 0x540f;
const TIOCSPGRP: u32 = 0x5410;
const TIOCSTI: u32 = 0x5412;
const TIOCGWINSZ: u32 = 0x5413;
const TIOCSWINSZ: u32 = 0x5414;
/// TIOCOUTQ too.
const SIOCOUTQ: u32 = 0x5411;
const FIONREAD: u32 = 0x541b;
const FIONBIO: u32 = 0x5421;
const TIOCGSID: u32 = 0x5429;
const FIONCLEX: u32 = 0x5450;
const FIOCLEX: u32 = 0x5451;
const FIOASYNC: u32 = 0x5452;
/// The process group and session that every process is in.
const GROUP: i32 = 1;

/// ioctl(2)
///
/// # Errors
/// `ENOTTY` for what the file does not know.
pub fn sys_ioctl(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, request, arg, ..] = *args;
    let (fd, request) = (int(fd), uint(request));
    let (id, file) = fd::get_io(cx, fd)?;
    match request {
        FIOCLEX | FIONCLEX => {
            cx.process()?
                .fds
                .fds
                .get_mut(&fd)
                .ok_or(Errno::EBADF)?
                .cloexec = request == FIOCLEX;
            Ok(0)
        }
        FIONBIO | FIOASYNC => {
            let on: i32 = cx.read_struct(Gva(arg))?;
            let flag = if request == FIONBIO {
                OpenFlags::NONBLOCK
            } else {
                OpenFlags::ASYNC
            };
            if flag == OpenFlags::ASYNC && on != 0 {
                cx.host.report.unsupported("ioctl", "FIOASYNC".to_owned());
                return Err(Errno::ENOTTY);
            }
            fd::file_mut(cx, id)?.flags.set(flag, on != 0);
            Ok(0)
        }
        FIONREAD => {
            let count = readable_bytes(cx, (id, &file))?;
            cx.write_struct(Gva(arg), &i32::try_from(count).unwrap_or(i32::MAX))?;
            Ok(0)
        }
        SIOCOUTQ if matches!(file.kind, FileKind::Socket(_)) => {
            let FileKind::Socket(id) = file.kind else {
                return Err(Errno::ENOTTY);
            };
            let count = cx.kernel.objects.sockets.get(id)?.unsent_bytes();
            cx.write_struct(Gva(arg), &i32::try_from(count).unwrap_or(i32::MAX))?;
            Ok(0)
        }
        _ => on_terminal(cx, &file, request, arg),
    }
}

fn readable_bytes(cx: &mut Cx<'_>, (id, file): (FileId, &OpenFile)) -> Result<u64, Errno> {
    match &file.kind {
        FileKind::Pipe(pipe) => Ok(cx.kernel.pipes.get(*pipe)?.len() as u64),
        FileKind::Socket(id) => Ok(cx.kernel.objects.sockets.get(*id)?.readable_bytes() as u64),
        FileKind::Epoll(_) => Err(Errno::EINVAL),
        FileKind::Input(bytes) => Ok((bytes.len() as u64).saturating_sub(file.offset)),
        FileKind::HostStream(host) => terminal::readable_bytes(cx.host.get(*host)?.fd.as_fd()),
        FileKind::HostFile(_) | FileKind::Tmp(_) => {
            let attr = vfs::file_attr(cx, id)?;
            if attr.kind() == attr::S_IFREG {
                Ok(attr.size.saturating_sub(file.offset))
            } else {
                Err(Errno::ENOTTY)
            }
        }
        _ => Err(Errno::ENOTTY),
    }
}

fn on_terminal(cx: &mut Cx<'_>, file: &OpenFile, request: u32, arg: u64) -> SysResult {
    let terminal = match file.kind {
        FileKind::HostStream(host) if cx.host.get(host)?.kind == HostKind::Terminal => {
            cx.host.fd(host)?
        }
        _ => {
            // What isatty(3) and stdio ask of every file is no event.
            if !matches!(request, TCGETS | TIOCGWINSZ | TIOCGPGRP) {
                cx.host
                    .report
                    .unsupported("ioctl", format!("request {request:#x}"));
            }
            return Err(Errno::ENOTTY);
        }
    };
    let fd = Arc::clone(&terminal);
    match request {
        TCGETS => {
            let termios = terminal::get(fd.as_fd())?;
            cx.write_struct(Gva(arg), &termios)?;
        }
        TCSETS | TCSETSW | TCSETSF => {
            let wanted: KernelTermios = cx.read_struct(Gva(arg))?;
            let when = match request {
                TCSETS => When::Now,
                TCSETSW => When::Drain,
                _ => When::Flush,
            };
            terminal::set(fd.as_fd(), &wanted, when)?;
        }
        TCFLSH => terminal::flush(fd.as_fd(), arg)?,
        TIOCGWINSZ => {
            let size = terminal::window_size(fd.as_fd())?;
            cx.write_struct(Gva(arg), &size)?;
        }
        TIOCGPGRP | TIOCGSID => cx.write_struct(Gva(arg), &GROUP)?,
        TIOCSPGRP => {
            let group: i32 = cx.read_struct(Gva(arg))?;
            if group != GROUP {
                return Err(Errno::EPERM);
            }
        }
        TIOCSTI | TIOCSWINSZ => {
            // They would act on the caller's terminal beyond what a program shows on it.
            cx.host.report.deny(
                format!("ioctl {request:#x}"),
                Errno::EPERM,
                "the terminal is the caller's",
            );
            return Err(Errno::EPERM);
        }
        _ => {
            cx.host
                .report
                .unsupported("ioctl", format!("request {request:#x}"));
            return Err(Errno::ENOTTY);
        }
    }
    Ok(0)
}
