//! Reading from an inherited terminal and controlling it (ioctl_tty(2)). The processes of the sandbox have their jobs
//! among themselves. All of them together are a part of the caller's job, and are never stopped with it.

use kvmlet_abi::linux::ioctls::{
    FICLONE, FICLONERANGE, TCFLSH, TCGETS, TCSETS, TCSETSF, TCSETSW, TIOCGPGRP, TIOCGSID,
    TIOCGWINSZ, TIOCSPGRP, TIOCSTI, TIOCSWINSZ,
};
use std::os::fd::AsFd;

use kvmlet_abi::{Errno, Gva, PAGE_SIZE};
use kvmlet_hostfs::HostKind;
use kvmlet_hostfs::stream::{self, Moved};
use kvmlet_hostfs::terminal::{self, JobSignal, KernelTermios, When};

use super::transfer::{self, Buffers, Until, Waiting};
use crate::clock;
use crate::cx::Cx;
use crate::fd::OpenFile;
use crate::host::HostId;
use crate::kernel::Pid;
use crate::outcome::{CallState, Outcome, Source};
use crate::report::Remedy;
use crate::tty::Ctty;
use crate::tty::job::{self, Background, Owner};
use crate::vfs::file;
use crate::vfs::ready::POLLIN;

/// Most bytes that a terminal keeps for its reader (N_TTY_BUF_SIZE).
const INPUT_MAX: usize = PAGE_SIZE as usize;
/// The unit of VTIME, in nanoseconds.
const TENTH_NS: u64 = 100_000_000;

pub(super) fn is_terminal(cx: &Cx<'_>, host: HostId) -> bool {
    cx.host
        .get(host)
        .is_ok_and(|file| file.kind == HostKind::Terminal)
}

/// Says if the caller may use an inherited terminal now: the job in the sandbox is asked for, and then the caller's.
/// Linux differs: where the caller's job would be stopped, the call alone waits, so that a limit ends it.
fn turn(cx: &mut Cx<'_>, host: HostId, signal: JobSignal) -> Result<Owner, Errno> {
    let fd = cx.host.fd(host)?;
    let is_theirs = terminal::is_background(fd.as_fd());
    let process = cx.process()?;
    let (group, ctty) = (process.pgid, process.ctty);
    let is_background = ctty == Some(Ctty::Inherited) && group != cx.kernel.foreground;
    let background = match (is_background, is_theirs) {
        (false, false) => return Ok(Owner::Ours),
        (true, _) if !cx.kernel.is_led(group) => Background::Orphaned,
        (true, _) => Background::Group,
        (false, true) if terminal::is_orphaned() => Background::Orphaned,
        (false, true) => Background::Sandbox,
    };
    job::use_from_background(cx, signal, background)
}

/// TIOCGPGRP, TIOCGSID and TIOCSPGRP are for the session of the terminal.
fn in_session(cx: &mut Cx<'_>) -> Result<Pid, Errno> {
    let process = cx.process()?;
    match process.ctty {
        Some(Ctty::Inherited) => Ok(process.sid),
        _ => Err(Errno::ENOTTY),
    }
}

/// tcsetpgrp(3)
fn set_foreground(cx: &mut Cx<'_>, group: i32) -> Result<(), Errno> {
    let session = in_session(cx)?;
    if group < 0 {
        return Err(Errno::EINVAL);
    }
    job::check_group(cx.kernel, Pid(group), session)?;
    cx.kernel.foreground = Pid(group);
    Ok(())
}

/// Says if a stream can be written to now. Output from the background is stopped with TOSTOP only.
///
/// # Errors
/// `EIO` where nobody could continue the job; the host's.
pub(super) fn may_write(cx: &mut Cx<'_>, host: HostId) -> Result<Owner, Errno> {
    if !is_terminal(cx, host) {
        return Ok(Owner::Ours);
    }
    // First: asking whose turn it is may send a signal.
    let fd = cx.host.fd(host)?;
    match terminal::get(fd.as_fd()) {
        Ok(termios) if termios.stops_output() => turn(cx, host, JobSignal::Output),
        _ => Ok(Owner::Ours),
    }
}

/// read(2). A description of our own does not wait, whatever VMIN and VTIME (termios(3)): they are made
/// here, as n_tty_read in drivers/tty/n_tty.c does it.
pub(super) fn read(
    cx: &mut Cx<'_>,
    from: (HostId, Waiting),
    mut buffers: Buffers,
    state: &CallState,
) -> Outcome {
    buffers.advance(state.progress);
    match read_on(cx, from, &mut buffers, state) {
        Ok(outcome) => outcome,
        Err(_) if state.progress > 0 => Outcome::Done(Ok(state.progress)),
        Err(error) => Outcome::Done(Err(error)),
    }
}

fn read_on(
    cx: &mut Cx<'_>,
    (host, waiting): (HostId, Waiting),
    buffers: &mut Buffers,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let mut done = state.progress;
    if buffers.left() == 0 {
        return Ok(Outcome::Done(Ok(done)));
    }
    if turn(cx, host, JobSignal::Input)? == Owner::Theirs {
        return Ok(transfer::wait_until(cx, Until::Later, state, done));
    }
    let fd = cx.host.fd(host)?;
    // A terminal that has been hung up has no settings; a read gives what it still has to say.
    let counted = terminal::get(fd.as_fd())
        .ok()
        .filter(|termios| !termios.is_canonical())
        .map(|termios| termios.min_and_time());
    let room = usize::try_from(buffers.left())
        .unwrap_or(INPUT_MAX)
        .min(INPUT_MAX);
    // What has been read cannot be put back: the buffers are tried first.
    buffers.touch(cx, room)?;
    let mut buf = vec![0u8; room];
    let moved = stream::read(cx.host.get(host)?, &mut buf)?;
    if let Moved::Bytes(count) = moved {
        cx.kernel.objects.epolls.stream_read(host, count as u64);
        let copied = buffers.scatter(cx, buf.get(..count).unwrap_or_default())?;
        done = done.saturating_add(copied as u64);
        let wanted = counted.map_or(1, |(min, _)| u64::from(min).max(1));
        if count == 0 || done >= wanted || buffers.left() == 0 || waiting == Waiting::Refused {
            return Ok(Outcome::Done(Ok(done)));
        }
    }
    let now_ns = clock::monotonic_ns(cx.host);
    let counted_read = Counted {
        counted,
        has_moved: matches!(moved, Moved::Bytes(_)),
        done,
    };
    let deadline_ns = deadline_ns(counted_read, state, now_ns);
    if deadline_ns.is_some_and(|deadline_ns| now_ns >= deadline_ns) {
        return Ok(Outcome::Done(Ok(done)));
    }
    if waiting == Waiting::Refused {
        return Err(Errno::EAGAIN);
    }
    let until = match (moved, counted) {
        // Without VTIME, poll(2) tells of VMIN bytes at once and not of the next one.
        (_, Some((2.., 0))) => Until::Later,
        (Moved::Bytes(_), _) => Until::Ready(Source::Host(host, POLLIN)),
        (moved, _) => transfer::blocked(cx, host, POLLIN, moved),
    };
    let state = CallState {
        deadline_ns,
        ..state.clone()
    };
    Ok(transfer::wait_until(cx, until, &state, done))
}

/// The state of a read that VMIN and VTIME may end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counted {
    /// VMIN and VTIME; `None` where lines are read.
    pub counted: Option<(u8, u8)>,
    /// True if bytes have come just now.
    pub has_moved: bool,
    /// Bytes read by the call.
    pub done: u64,
}

/// The time at which a read ends with what it has (termios(3)), in guest monotonic nanoseconds.
pub(super) fn deadline_ns(read: Counted, state: &CallState, now_ns: u64) -> Option<u64> {
    let (min, time) = read.counted?;
    let time_ns = TENTH_NS.saturating_mul(u64::from(time));
    match (min, time) {
        // From the beginning of the call.
        (0, _) => state.deadline_ns.or(Some(now_ns.saturating_add(time_ns))),
        // From the byte before; the first one has no deadline.
        (_, 1..) if read.has_moved => Some(now_ns.saturating_add(time_ns)),
        (_, 1..) if read.done > 0 => state.deadline_ns,
        _ => None,
    }
}

/// ioctl(2) for terminals.
///
/// # Errors
/// `ENOTTY` for what is none, and for what a terminal does not know.
pub(super) fn control(
    cx: &mut Cx<'_>,
    file: &OpenFile,
    (request, arg): (u32, Gva),
    state: &CallState,
) -> Result<Outcome, Errno> {
    let terminal = file::host(&file.kind).filter(|host| is_terminal(cx, *host));
    let Some(host) = terminal else {
        // Programs ask if a file shares its blocks, and go on by copying (ioctl_ficlone(2)).
        if matches!(request, FICLONE | FICLONERANGE) {
            return Err(Errno::EOPNOTSUPP);
        }
        // Questions to a terminal have their true answer: it is none.
        if request >> 8 != u32::from(b'T') {
            cx.host
                .report
                .unsupported("ioctl", format!("request {request:#x}"));
        }
        return Err(Errno::ENOTTY);
    };
    let changes = matches!(request, TCSETS | TCSETSW | TCSETSF | TCFLSH | TIOCSPGRP);
    if changes {
        match turn(cx, host, JobSignal::Output) {
            Ok(Owner::Ours) => {}
            Ok(Owner::Theirs) => return Ok(transfer::wait_until(cx, Until::Later, state, 0)),
            Err(Errno::EIO) if request == TIOCSPGRP => return Err(Errno::ENOTTY),
            Err(errno) => return Err(errno),
        }
    }
    let fd = cx.host.fd(host)?;
    match request {
        TCGETS => {
            let termios = terminal::get(fd.as_fd())?;
            cx.write_struct(arg, &termios)?;
        }
        TCSETS | TCSETSW | TCSETSF => {
            let wanted: KernelTermios = cx.read_struct(arg)?;
            let when = match request {
                TCSETSF => When::Flush,
                _ => When::Now,
            };
            cx.host.settings.set(&fd, &wanted, when)?;
        }
        TCFLSH => terminal::flush(fd.as_fd(), arg.0)?,
        TIOCGWINSZ => {
            let size = terminal::window_size(fd.as_fd())?;
            cx.write_struct(arg, &size)?;
        }
        TIOCGPGRP => {
            in_session(cx)?;
            let group = cx.kernel.foreground.0;
            cx.write_struct(arg, &group)?;
        }
        TIOCGSID => {
            let session = in_session(cx)?.0;
            cx.write_struct(arg, &session)?;
        }
        TIOCSPGRP => {
            in_session(cx)?;
            let group = cx.read_struct(arg)?;
            set_foreground(cx, group)?;
        }
        TIOCSTI | TIOCSWINSZ => {
            // They would act on the caller's terminal beyond what a program shows on it.
            cx.host.report.deny(
                format!("ioctl {request:#x}"),
                Errno::EPERM,
                Remedy::CallersTerminal,
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
    Ok(Outcome::Done(Ok(0)))
}
