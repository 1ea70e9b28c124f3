//! An inherited terminal: its attributes (termios(3)) in the kernel's layout, put back when the program
//! ends, and whose turn it is (job control, credentials(7)).

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::Winsize;
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::errno;
use crate::hostfd::HostFd;
use crate::stream;

/// Special characters in the kernel's struct termios.
const NCCS: usize = 19;

/// The kernel's struct termios (ioctl_tty(2) TCGETS).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KernelTermios {
    /// Input modes
    pub c_iflag: u32,
    /// Output modes
    pub c_oflag: u32,
    /// Control modes
    pub c_cflag: u32,
    /// Local modes
    pub c_lflag: u32,
    /// Line discipline
    pub c_line: u8,
    /// Special characters
    pub c_cc: [u8; NCCS],
}

impl KernelTermios {
    /// True if input comes in lines.
    #[must_use]
    pub fn is_canonical(&self) -> bool {
        self.c_lflag & LocalModes::ICANON.bits() != 0
    }

    /// True if output from the background stops a job.
    #[must_use]
    pub fn stops_output(&self) -> bool {
        self.c_lflag & LocalModes::TOSTOP.bits() != 0
    }

    /// The same for a terminal that hands on each key as it is, and each byte that is written (cfmakeraw(3)).
    #[must_use]
    pub fn raw(&self) -> Self {
        let input = InputModes::IGNBRK
            | InputModes::BRKINT
            | InputModes::PARMRK
            | InputModes::ISTRIP
            | InputModes::INLCR
            | InputModes::IGNCR
            | InputModes::ICRNL
            | InputModes::IXON;
        let local = LocalModes::ECHO
            | LocalModes::ECHONL
            | LocalModes::ICANON
            | LocalModes::ISIG
            | LocalModes::IEXTEN;
        let mut raw = *self;
        raw.c_iflag &= !input.bits();
        raw.c_oflag &= !OutputModes::OPOST.bits();
        raw.c_lflag &= !local.bits();
        let [_, _, _, _, _, time, min, ..] = &mut raw.c_cc;
        (*min, *time) = (1, 0);
        raw
    }

    /// True if typed keys are shown.
    #[must_use]
    pub fn echoes(&self) -> bool {
        self.c_lflag & LocalModes::ECHO.bits() != 0
    }

    /// True if a newline that is written becomes nothing else.
    #[must_use]
    pub fn is_raw_output(&self) -> bool {
        self.c_oflag & OutputModes::OPOST.bits() == 0
    }

    /// VMIN and VTIME: bytes, and tenths of a second.
    #[must_use]
    pub fn min_and_time(&self) -> (u8, u8) {
        let [_, _, _, _, _, time, min, ..] = self.c_cc;
        (min, time)
    }
}

/// In the order of the kernel's c_cc (asm-generic/termbits.h); the last two are unused there.
const CODES: [SpecialCodeIndex; 17] = [
    SpecialCodeIndex::VINTR,
    SpecialCodeIndex::VQUIT,
    SpecialCodeIndex::VERASE,
    SpecialCodeIndex::VKILL,
    SpecialCodeIndex::VEOF,
    SpecialCodeIndex::VTIME,
    SpecialCodeIndex::VMIN,
    SpecialCodeIndex::VSWTC,
    SpecialCodeIndex::VSTART,
    SpecialCodeIndex::VSTOP,
    SpecialCodeIndex::VSUSP,
    SpecialCodeIndex::VEOL,
    SpecialCodeIndex::VREPRINT,
    SpecialCodeIndex::VDISCARD,
    SpecialCodeIndex::VWERASE,
    SpecialCodeIndex::VLNEXT,
    SpecialCodeIndex::VEOL2,
];

/// TCFLSH: the input queue.
const TCIFLUSH: u64 = 0;

/// When new attributes take effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// TCSETS, TCSETSW
    Now,
    /// TCSETSF: input that was not read is discarded.
    Flush,
}

/// TCGETS
///
/// # Errors
/// The host's: `ENOTTY` for what is no terminal.
pub fn get(fd: BorrowedFd<'_>) -> Result<KernelTermios, Errno> {
    let host = rustix::termios::tcgetattr(fd.as_fd()).map_err(errno)?;
    let mut c_cc = [0; NCCS];
    for (to, code) in c_cc.iter_mut().zip(CODES) {
        #[allow(clippy::indexing_slicing)] // the index type has only valid values
        let value = host.special_codes[code];
        *to = value;
    }
    Ok(KernelTermios {
        c_iflag: host.input_modes.bits(),
        c_oflag: host.output_modes.bits(),
        c_cflag: host.control_modes.bits(),
        c_lflag: host.local_modes.bits(),
        c_line: host.line_discipline,
        c_cc,
    })
}

/// The signal that a use of its terminal brings to a job in the background.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobSignal {
    /// SIGTTIN
    Input,
    /// SIGTTOU
    Output,
}

impl JobSignal {
    fn number(self) -> i32 {
        match self {
            Self::Input => rustix::process::Signal::TTIN.as_raw(),
            Self::Output => rustix::process::Signal::TTOU.as_raw(),
        }
    }
}

/// True if `fd` is this process's controlling terminal and another job has it in the foreground.
#[must_use]
pub fn is_background(fd: BorrowedFd<'_>) -> bool {
    rustix::termios::tcgetpgrp(fd).is_ok_and(|group| group != rustix::process::getpgrp())
}

/// True if nobody could continue this process's job if it was stopped (setpgid(2), "orphaned").
/// Seen by the parent alone: the rest of the job mostly has the same one.
#[must_use]
pub fn is_orphaned() -> bool {
    let session = |pid| rustix::process::getsid(pid).ok();
    let parent = rustix::process::getppid();
    parent.is_none_or(|parent| session(Some(parent)) != session(None))
}

/// Stops the job that this process is a part of, as Ctrl-Z does; this process handles the signal itself.
pub fn stop_job() {
    // There is always a group: our own.
    let _ = rustix::process::kill_current_process_group(rustix::process::Signal::TSTP);
}

/// Uses a terminal without being stopped: who owns it has been looked at before, and only a change since
/// would bring the signal. With the signal blocked the kernel lets output and settings pass, and input
/// fail with `EIO`.
pub(crate) fn unstopped<T>(fd: BorrowedFd<'_>, signal: JobSignal, act: impl FnOnce() -> T) -> T {
    use vmm_sys_util::signal::{block_signal, unblock_signal};
    // Job control is about the controlling terminal only.
    let was_blocked =
        rustix::termios::tcgetsid(fd).is_err() || block_signal(signal.number()).is_err();
    let result = act();
    if !was_blocked {
        // It was there to be blocked: it can be unblocked.
        let _ = unblock_signal(signal.number());
    }
    result
}

/// Settings of the caller's terminals that the program has changed. They are put back when this is
/// dropped.
#[derive(Debug, Default)]
pub struct Settings(Vec<Changed>);

#[derive(Debug)]
struct Changed {
    fd: Arc<HostFd>,
    before: Termios,
    /// The settings that the program made last.
    after: KernelTermios,
}

impl Settings {
    /// TCSETS, TCSETSW, TCSETSF. The line discipline and the speeds stay as they are.
    /// Linux differs: output that a line has not sent yet is not waited for, which nothing would bound.
    ///
    /// # Errors
    /// The host's.
    pub fn set(
        &mut self,
        fd: &Arc<HostFd>,
        wanted: &KernelTermios,
        when: When,
    ) -> Result<(), Errno> {
        let before = rustix::termios::tcgetattr(fd.as_fd()).map_err(errno)?;
        if when == When::Flush {
            flush(fd.as_fd(), TCIFLUSH)?;
        }
        apply(fd.as_fd(), &changed(before.clone(), wanted))?;
        let after = get(fd.as_fd())?;
        match self
            .0
            .iter_mut()
            .find(|changed| Arc::ptr_eq(&changed.fd, fd))
        {
            Some(changed) => changed.after = after,
            None => self.0.push(Changed {
                fd: Arc::clone(fd),
                before,
                after,
            }),
        }
        Ok(())
    }

    /// Puts everything back as it was, the last change first. In the background only what nobody else
    /// has changed since: a shell that has taken its terminal back has settings of its own.
    pub fn restore(&mut self) {
        while let Some(Changed { fd, before, after }) = self.0.pop() {
            if is_background(fd.as_fd()) && get(fd.as_fd()) != Ok(after) {
                continue;
            }
            // A terminal that has gone has no settings.
            let _ = apply(fd.as_fd(), &before);
        }
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        self.restore();
    }
}

fn apply(fd: BorrowedFd<'_>, termios: &Termios) -> Result<(), Errno> {
    let set = || rustix::termios::tcsetattr(fd, OptionalActions::Now, termios);
    unstopped(fd, JobSignal::Output, || stream::retry(set)).map_err(errno)
}

fn changed(mut host: Termios, wanted: &KernelTermios) -> Termios {
    const CBAUD: u32 = 0o010_017;
    let speed = host.control_modes.bits() & CBAUD;
    host.input_modes = InputModes::from_bits_retain(wanted.c_iflag);
    host.output_modes = OutputModes::from_bits_retain(wanted.c_oflag);
    host.control_modes = ControlModes::from_bits_retain(wanted.c_cflag & !CBAUD | speed);
    host.local_modes = LocalModes::from_bits_retain(wanted.c_lflag);
    for (value, code) in wanted.c_cc.into_iter().zip(CODES) {
        #[allow(clippy::indexing_slicing)] // the index type has only valid values
        let to = &mut host.special_codes[code];
        *to = value;
    }
    host
}

/// TIOCGWINSZ
///
/// # Errors
/// The host's.
pub fn window_size(fd: BorrowedFd<'_>) -> Result<Winsize, Errno> {
    let size = rustix::termios::tcgetwinsize(fd).map_err(errno)?;
    Ok(Winsize {
        ws_row: size.ws_row,
        ws_col: size.ws_col,
        ws_xpixel: size.ws_xpixel,
        ws_ypixel: size.ws_ypixel,
    })
}

/// FIONREAD of a host stream, in bytes.
///
/// # Errors
/// The host's.
pub fn readable_bytes(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    rustix::io::ioctl_fionread(fd).map_err(errno)
}

/// TCFLSH: discards what was not read or not sent.
///
/// # Errors
/// `EINVAL` for an unknown queue; the host's.
pub fn flush(fd: BorrowedFd<'_>, queue: u64) -> Result<(), Errno> {
    use rustix::termios::QueueSelector;
    let queue = match queue {
        TCIFLUSH => QueueSelector::IFlush,
        1 => QueueSelector::OFlush,
        2 => QueueSelector::IOFlush,
        _ => return Err(Errno::EINVAL),
    };
    unstopped(fd, JobSignal::Output, || {
        rustix::termios::tcflush(fd, queue)
    })
    .map_err(errno)
}
