//! ioctl(2).

use kvmlet_abi::Errno;
use kvmlet_abi::linux::ioctls::{FIOASYNC, FIOCLEX, FIONBIO, FIONCLEX, FIONREAD, TIOCOUTQ};

use super::{pty, terminal};
use crate::cx::Cx;
use crate::fd::{self, FileKind, OpenFlags};
use crate::outcome::{CallState, Outcome};
use crate::syscalls::args::{Args, Fd, Flags, Ptr};
use crate::syscalls::net::interfaces;
use crate::vfs::{async_io, file};

/// ioctl(2): `ENOTTY` for what the file does not know.
pub fn sys_ioctl(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    control(cx, args, state).unwrap_or_else(|error| Outcome::Done(Err(error)))
}

fn control(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Result<Outcome, Errno> {
    let (Fd(fd), Flags(request), Ptr(arg)) = args.decode();
    let (id, file) = fd::get_io(cx, fd)?;
    match request {
        FIOCLEX | FIONCLEX => {
            cx.fds()?.fds.get_mut(&fd).ok_or(Errno::EBADF)?.cloexec = request == FIOCLEX;
        }
        FIONBIO => {
            let on: i32 = cx.read_struct(arg)?;
            let flags = &mut fd::file_mut(cx, id)?.flags;
            flags.set(OpenFlags::NONBLOCK, on != 0);
        }
        FIOASYNC => {
            let on: i32 = cx.read_struct(arg)?;
            async_io::set(cx, (fd, id), &file, on != 0)?;
        }
        FIONREAD => {
            let count = file::readable_bytes(cx, (id, &file))?;
            cx.write_struct(arg, &i32::try_from(count).unwrap_or(i32::MAX))?;
        }
        TIOCOUTQ if matches!(file.kind, FileKind::Socket(_)) => {
            let FileKind::Socket(id) = file.kind else {
                return Err(Errno::ENOTTY);
            };
            let count = cx.kernel.objects.sockets.get(id)?.unsent_bytes();
            cx.write_struct(arg, &i32::try_from(count).unwrap_or(i32::MAX))?;
        }
        _ if let FileKind::Socket(socket) = file.kind => {
            let family = cx.kernel.objects.sockets.get(socket)?.family;
            if interfaces::control(cx, family, (request, arg))?.is_none() {
                return terminal::control(cx, &file, (request, arg), state);
            }
        }
        _ => {
            if let FileKind::Pty(end) = file.kind {
                return pty::control(cx, (end, &file), (request, arg), state);
            }
            return terminal::control(cx, &file, (request, arg), state);
        }
    }
    Ok(Outcome::Done(Ok(0)))
}
