//! Reading, writing and controlling pseudo-terminals (pty(7), ioctl_tty(2)).

use kvmlet_abi::linux::Winsize;
use kvmlet_abi::linux::ioctls::{
    TCFLSH, TCGETS, TCGETS2, TCSBRK, TCSBRKP, TCSETS, TCSETS2, TCSETSF, TCSETSF2, TCSETSW,
    TCSETSW2, TCXONC, TIOCCBRK, TIOCEXCL, TIOCGDEV, TIOCGETD, TIOCGEXCL, TIOCGPGRP, TIOCGPKT,
    TIOCGPTLCK, TIOCGPTN, TIOCGPTPEER, TIOCGSID, TIOCGWINSZ, TIOCNOTTY, TIOCNXCL, TIOCOUTQ,
    TIOCPKT, TIOCSBRK, TIOCSCTTY, TIOCSETD, TIOCSIG, TIOCSPGRP, TIOCSPTLCK, TIOCSTI, TIOCSWINSZ,
};
use kvmlet_abi::linux::signal::{SIGINT, SIGQUIT, SIGTSTP};
use kvmlet_abi::linux::termios::{
    TCIFLUSH, TCIOFF, TCIOFLUSH, TCION, TCOFLUSH, TCOOFF, TCOON, VSTART, VSTOP,
};
use kvmlet_abi::{Errno, Gva};
use kvmlet_hostfs::attr::makedev;
use kvmlet_hostfs::terminal::{JobSignal, KernelTermios};

use super::terminal::{Counted, deadline_ns};
use super::transfer::{self, Buffers, Until, Waiting, pause};
use crate::clock;
use crate::cx::Cx;
use crate::fd::{self, FileKind, OnExec, OpenFile, OpenFlags};
use crate::kernel::Pid;
use crate::outcome::{CallState, Outcome, Source};
use crate::report::Remedy;
use crate::tty::job::{self, Owner, Wish};
use crate::tty::{
    Ctty, Effects, Held, INPUT_MAX, Packet, Pty, PtyEnd, SLAVE_MAJOR, Side, Termios2,
};
use crate::vfs::open::{self, Opened};
use crate::vfs::synth;

/// Bytes written by a slave at once.
const CHUNK: usize = 16 << 10;
/// Bytes typed at once: each may be worth more work than a written one.
const TYPED_CHUNK: usize = 1 << 10;

/// Changes a pseudo-terminal and tells who waits for it.
fn change<T>(
    cx: &mut Cx<'_>,
    index: u32,
    act: impl FnOnce(&mut Pty, &mut Effects) -> T,
) -> Result<T, Errno> {
    let mut effects = Effects::default();
    let done = act(cx.kernel.ptys.get_mut(index)?, &mut effects);
    cx.kernel.apply_effects(index, effects);
    Ok(done)
}

/// read(2)
pub(super) fn read(
    cx: &mut Cx<'_>,
    end: PtyEnd,
    mut buffers: Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Outcome {
    buffers.advance(state.progress);
    let outcome = match end.side {
        Side::Master => read_master(cx, end, &mut buffers, waiting, state),
        Side::Slave => read_slave(cx, end, &mut buffers, waiting, state),
    };
    match outcome {
        Ok(outcome) => outcome,
        Err(_) if state.progress > 0 => Outcome::Done(Ok(state.progress)),
        Err(error) => Outcome::Done(Err(error)),
    }
}

/// What has been read cannot be put back: the buffers are tried first.
fn room(cx: &mut Cx<'_>, buffers: &Buffers) -> Result<usize, Errno> {
    let room = usize::try_from(buffers.left()).unwrap_or(INPUT_MAX);
    let room = room.min(INPUT_MAX);
    buffers.touch(cx, room)?;
    Ok(room)
}

fn read_master(
    cx: &mut Cx<'_>,
    end: PtyEnd,
    buffers: &mut Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Result<Outcome, Errno> {
    if buffers.left() == 0 {
        return Ok(Outcome::Done(Ok(0)));
    }
    let room = room(cx, buffers)?;
    let read = change(cx, end.index, |pty, effects| pty.read_master(room, effects))?;
    match read {
        Ok(bytes) => Ok(Outcome::Done(Ok(buffers.scatter(cx, &bytes)? as u64))),
        Err(Errno::EAGAIN) if waiting == Waiting::Allowed => {
            Ok(transfer::wait_for(Source::Object(end.source), state, 0))
        }
        Err(error) => Err(error),
    }
}

fn read_slave(
    cx: &mut Cx<'_>,
    end: PtyEnd,
    buffers: &mut Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let mut done = state.progress;
    if buffers.left() == 0 {
        return Ok(Outcome::Done(Ok(done)));
    }
    if !cx.kernel.ptys.get(end.index)?.has_master() {
        // The hang-up is an error for who waits, and the end of the file for who comes later.
        return match state.has_waited {
            true => Err(Errno::EIO),
            false => Ok(Outcome::Done(Ok(done))),
        };
    }
    if job::check(cx, end, JobSignal::Input)? == Owner::Theirs {
        return Ok(transfer::wait_until(cx, Until::Later, state, done));
    }
    let room = room(cx, buffers)?;
    let line = &cx.kernel.ptys.get(end.index)?.line;
    let counted = (!line.is_canonical()).then(|| line.termios().min_and_time());
    let has_moved = line.is_readable();
    if has_moved {
        cx.kernel.heeded = cx.kernel.heeded.wrapping_add(1);
        let read = |pty: &mut Pty, effects: &mut Effects| pty.line.read_slave(room, effects);
        let bytes = change(cx, end.index, read)?;
        done = done.saturating_add(buffers.scatter(cx, &bytes)? as u64);
        let wanted = counted.map_or(0, |(min, _)| u64::from(min));
        if bytes.is_empty() || done >= wanted || buffers.left() == 0 || waiting == Waiting::Refused
        {
            return Ok(Outcome::Done(Ok(done)));
        }
    }
    let now_ns = clock::monotonic_ns(cx.host);
    let deadline_ns = deadline_ns(
        Counted {
            counted,
            has_moved,
            done,
        },
        state,
        now_ns,
    );
    if deadline_ns.is_some_and(|deadline_ns| now_ns >= deadline_ns) {
        return Ok(Outcome::Done(Ok(done)));
    }
    if waiting == Waiting::Refused {
        return Err(Errno::EAGAIN);
    }
    let state = CallState {
        deadline_ns,
        ..state.clone()
    };
    Ok(transfer::wait_for(Source::Object(end.source), &state, done))
}

/// Writes as much as there is room for, or says what to wait for.
///
/// # Errors
/// `EIO` for a slave that is hung up, and for output that would stop what nobody could continue.
pub(super) fn write_step(
    cx: &mut Cx<'_>,
    end: PtyEnd,
    bytes: &[u8],
) -> Result<Result<usize, Until>, Errno> {
    let pty = cx.kernel.ptys.get(end.index)?;
    if end.side == Side::Slave {
        if !pty.has_master() {
            return Err(Errno::EIO);
        }
        if pty.line.termios().stops_output()
            && job::check(cx, end, JobSignal::Output)? == Owner::Theirs
        {
            return Ok(Err(Until::Later));
        }
    }
    let count = change(cx, end.index, |pty, effects| match end.side {
        Side::Master => {
            let piece = bytes.get(..TYPED_CHUNK).unwrap_or(bytes);
            pty.line.write_master(piece, effects)
        }
        Side::Slave => pty.line.write_slave(bytes, effects),
    })?;
    Ok(match count {
        0 => Err(Until::Ready(Source::Object(end.source))),
        count => Ok(count),
    })
}

/// write(2)
pub(super) fn write(
    cx: &mut Cx<'_>,
    end: PtyEnd,
    mut buffers: Buffers,
    waiting: Waiting,
    state: &CallState,
) -> Outcome {
    let mut done = state.progress;
    buffers.advance(done);
    let chunk = match end.side {
        Side::Master => TYPED_CHUNK,
        Side::Slave => CHUNK,
    };
    let mut bytes = Vec::new();
    let mut result = Ok(());
    while buffers.left() > 0 {
        let gathered = buffers.gather(cx, chunk, &mut bytes);
        match gathered.and_then(|()| write_step(cx, end, &bytes)) {
            Ok(Ok(count)) => {
                done = done.saturating_add(count as u64);
                buffers.advance(count as u64);
                let left = buffers.left();
                if let Some(state) = pause(cx, &FileKind::Pty(end), state, (done, left)) {
                    return Outcome::Again(state);
                }
            }
            // O_NONBLOCK does not keep the caller from being stopped in the background.
            Ok(Err(Until::Ready(_))) if waiting == Waiting::Refused => {
                result = Err(Errno::EAGAIN);
                break;
            }
            Ok(Err(until)) => return transfer::wait_until(cx, until, state, done),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    Outcome::Done(match done {
        0 => result.map(|()| 0),
        done => Ok(done),
    })
}

/// ioctl(2)
///
/// # Errors
/// `ENOTTY` for what it does not know; `EIO` for a slave that is hung up.
pub(super) fn control(
    cx: &mut Cx<'_>,
    (end, file): (PtyEnd, &OpenFile),
    (request, arg): (u32, Gva),
    state: &CallState,
) -> Result<Outcome, Errno> {
    let is_master = end.side == Side::Master;
    let is_hung_up = !cx.kernel.ptys.get(end.index)?.has_master();
    if is_hung_up {
        return Err(match request {
            TIOCSPGRP => Errno::ENOTTY,
            _ => Errno::EIO,
        });
    }
    // Attributes and groups are the slave's, also for the master; the rest asks only who has the slave itself.
    let check = match request {
        TCSETS | TCSETSW | TCSETSF | TCSETS2 | TCSETSW2 | TCSETSF2 | TIOCSPGRP => {
            job::check_slave(cx, end.index, JobSignal::Output)
        }
        TCFLSH | TCXONC | TCSBRK | TCSBRKP | TIOCSBRK | TIOCCBRK | TIOCSETD => {
            job::check(cx, end, JobSignal::Output)
        }
        _ => Ok(Owner::Ours),
    };
    match check {
        Ok(Owner::Ours) => {}
        Ok(Owner::Theirs) => return Ok(transfer::wait_until(cx, Until::Later, state, 0)),
        Err(Errno::EIO) if request == TIOCSPGRP => return Err(Errno::ENOTTY),
        Err(errno) => return Err(errno),
    }
    let only_master = match is_master {
        true => Ok(()),
        false => Err(Errno::ENOTTY),
    };
    match request {
        TCGETS | TCGETS2 | TCSETS | TCSETSW | TCSETSF | TCSETS2 | TCSETSW2 | TCSETSF2 => {
            attributes(cx, end.index, (request, arg))?;
        }
        TCFLSH => flush(cx, end, arg.0)?,
        TCXONC => flow(cx, end, arg.0)?,
        // Nothing waits to be sent, and a break is nothing that a pseudo-terminal could show.
        TCSBRK | TCSBRKP | TIOCSBRK | TIOCCBRK => {}
        TIOCOUTQ => cx.write_struct(arg, &0i32)?,
        TIOCGETD => cx.write_struct(arg, &0i32)?,
        TIOCSETD => {
            // N_TTY is the only one.
            if cx.read_struct::<i32>(arg)? != 0 {
                return Err(Errno::EINVAL);
            }
        }
        TIOCGWINSZ => {
            let size = cx.kernel.ptys.get(end.index)?.size;
            cx.write_struct(arg, &size)?;
        }
        TIOCSWINSZ => {
            let size: Winsize = cx.read_struct(arg)?;
            cx.kernel.resize_pty(end.index, size)?;
        }
        TIOCEXCL | TIOCNXCL => {
            cx.kernel.ptys.get_mut(end.index)?.is_exclusive = request == TIOCEXCL;
        }
        TIOCGEXCL => {
            let is_exclusive = cx.kernel.ptys.get(end.index)?.is_exclusive;
            cx.write_struct(arg, &i32::from(is_exclusive))?;
        }
        TIOCGDEV => {
            let device = u32::try_from(makedev(SLAVE_MAJOR, end.index)).unwrap_or(0);
            cx.write_struct(arg, &device)?;
        }
        TIOCSCTTY | TIOCNOTTY | TIOCGPGRP | TIOCSPGRP | TIOCGSID => {
            session(cx, (end, file), (request, arg))?;
        }
        TIOCSTI => {
            // Linux differs: it can be switched on there (dev.tty.legacy_tiocsti).
            let what = format!("ioctl {request:#x}");
            cx.host
                .report
                .deny(what, Errno::EIO, Remedy::CallersTerminal);
            return Err(Errno::EIO);
        }
        TIOCGPTN => {
            only_master?;
            cx.write_struct(arg, &end.index)?;
        }
        TIOCSPTLCK => {
            only_master?;
            let is_locked: i32 = cx.read_struct(arg)?;
            cx.kernel.ptys.get_mut(end.index)?.is_locked = is_locked != 0;
        }
        TIOCGPTLCK => {
            only_master?;
            let is_locked = cx.kernel.ptys.get(end.index)?.is_locked;
            cx.write_struct(arg, &i32::from(is_locked))?;
        }
        TIOCGPTPEER => {
            only_master?;
            return open_peer(cx, end.index, arg.0).map(|number| Outcome::Done(Ok(number)));
        }
        TIOCPKT => {
            only_master?;
            let packet = match cx.read_struct::<i32>(arg)? {
                0 => Packet::Off,
                _ => Packet::On,
            };
            cx.kernel.ptys.get_mut(end.index)?.set_packet(packet);
        }
        TIOCGPKT => {
            only_master?;
            let is_packet = cx.kernel.ptys.get(end.index)?.is_packet();
            cx.write_struct(arg, &i32::from(is_packet))?;
        }
        TIOCSIG => {
            only_master?;
            let signo = u8::try_from(arg.0).unwrap_or(0);
            if !matches!(signo, SIGINT | SIGQUIT | SIGTSTP) {
                return Err(Errno::EINVAL);
            }
            change(cx, end.index, |_, effects| effects.send(signo))?;
        }
        _ => {
            cx.host
                .report
                .unsupported("ioctl", format!("request {request:#x}"));
            return Err(Errno::ENOTTY);
        }
    }
    Ok(Outcome::Done(Ok(0)))
}

/// Attributes (termios(3)).
fn attributes(cx: &mut Cx<'_>, index: u32, (request, arg): (u32, Gva)) -> Result<(), Errno> {
    let pty = cx.kernel.ptys.get(index)?;
    let (termios, speeds) = (*pty.line.termios(), pty.speeds);
    match request {
        TCGETS => return cx.write_struct(arg, &termios),
        TCGETS2 => return cx.write_struct(arg, &Termios2 { termios, speeds }),
        _ => {}
    }
    let (wanted, named) = match request {
        TCSETS | TCSETSW | TCSETSF => (cx.read_struct::<KernelTermios>(arg)?, speeds),
        _ => {
            let wanted: Termios2 = cx.read_struct(arg)?;
            (wanted.termios, wanted.speeds)
        }
    };
    change(cx, index, |pty, effects| {
        if matches!(request, TCSETSF | TCSETSF2) {
            pty.line.flush_input(effects);
        }
        pty.speeds = named.of(&wanted);
        // The line discipline stays.
        let wanted = KernelTermios {
            c_line: termios.c_line,
            ..wanted
        };
        pty.set_termios(wanted, effects);
    })
}

/// tcflush(3)
fn flush(cx: &mut Cx<'_>, end: PtyEnd, queue: u64) -> Result<(), Errno> {
    let (input, output) = match queue {
        TCIFLUSH => (true, false),
        TCOFLUSH => (false, true),
        TCIOFLUSH => (true, true),
        _ => return Err(Errno::EINVAL),
    };
    change(cx, end.index, |pty, effects| match end.side {
        Side::Master => {
            if input {
                pty.line.drop_output(effects);
            }
            if output {
                pty.line.drop_typed(effects);
            }
        }
        Side::Slave => {
            if input {
                pty.line.drop_typed(effects);
                pty.line.flush_input(effects);
            }
            if output {
                pty.line.flush_output(effects);
            }
        }
    })
}

/// tcflow(3). Linux differs: a master cannot be stopped.
fn flow(cx: &mut Cx<'_>, end: PtyEnd, action: u64) -> Result<(), Errno> {
    if end.side == Side::Master {
        let what = "TCXONC of the master of a pseudo-terminal".to_owned();
        cx.host.report.unsupported("ioctl", what);
        return Err(Errno::EINVAL);
    }
    change(cx, end.index, |pty, effects| {
        match action {
            TCOOFF => pty.line.hold(Held::Off, effects),
            TCOON => pty.line.hold(Held::On, effects),
            TCIOFF => pty.line.send_special(VSTOP, effects),
            TCION => pty.line.send_special(VSTART, effects),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    })?
}

/// Sessions and process groups. A master asks for those of its slave.
fn session(
    cx: &mut Cx<'_>,
    (end, file): (PtyEnd, &OpenFile),
    (request, arg): (u32, Gva),
) -> Result<(), Errno> {
    let process = cx.process()?;
    let (pid, own, has_it) = (
        process.pid,
        process.sid,
        process.ctty == Some(Ctty::Pty(end.index)),
    );
    let pty = cx.kernel.ptys.get(end.index)?;
    let (session, foreground) = (pty.session, pty.foreground);
    let is_master = end.side == Side::Master;
    match request {
        TIOCSCTTY => {
            let is_root = cx.creds().user.effective == 0;
            if session != Some(own) && !file.flags.readable() && !is_root {
                return Err(Errno::EPERM);
            }
            let wish = match arg.0 {
                1 => Wish::Steal,
                _ => Wish::Free,
            };
            cx.kernel.take_ctty(pid, end.index, wish)
        }
        TIOCNOTTY if is_master || !has_it => Err(Errno::ENOTTY),
        TIOCNOTTY => {
            cx.kernel.leave_ctty(pid);
            Ok(())
        }
        TIOCGPGRP if is_master || has_it => {
            cx.write_struct(arg, &foreground.map_or(0, |group| group.0))
        }
        TIOCGSID if is_master || has_it => cx.write_struct(arg, &session.ok_or(Errno::ENOTTY)?.0),
        TIOCSPGRP => {
            let group: i32 = cx.read_struct(arg)?;
            if group < 0 {
                return Err(Errno::EINVAL);
            }
            if !has_it || session != Some(own) {
                return Err(Errno::ENOTTY);
            }
            job::check_group(cx.kernel, Pid(group), own)?;
            cx.kernel.ptys.get_mut(end.index)?.foreground = Some(Pid(group));
            Ok(())
        }
        _ => Err(Errno::ENOTTY),
    }
}

/// TIOCGPTPEER
fn open_peer(cx: &mut Cx<'_>, index: u32, flags: u64) -> Result<u64, Errno> {
    let flags = OpenFlags::from_bits_truncate(u32::try_from(flags).map_err(|_| Errno::EINVAL)?);
    match open::open_slave(cx, index, flags, &synth::slave_path(index))? {
        Opened::New(file) => {
            let number = fd::install_new(cx, file, OnExec::of(flags))?;
            Ok(super::number(number))
        }
        Opened::Existing(_) | Opened::Waiting(..) | Opened::Leased(_) => Err(Errno::EIO),
    }
}
