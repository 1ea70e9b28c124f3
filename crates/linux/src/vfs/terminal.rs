//! Terminal attributes of an inherited terminal (termios(3)), in the kernel's layout.

use std::os::fd::BorrowedFd;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::Winsize;
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::hostfs::errno;

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

/// When new attributes take effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// TCSETS
    Now,
    /// TCSETSW
    Drain,
    /// TCSETSF
    Flush,
}

/// TCGETS
///
/// # Errors
/// The host's: `ENOTTY` for what is no terminal.
pub fn get(fd: BorrowedFd<'_>) -> Result<KernelTermios, Errno> {
    let host = rustix::termios::tcgetattr(fd).map_err(errno)?;
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

/// TCSETS, TCSETSW, TCSETSF. The line discipline and the speeds stay as they are.
///
/// # Errors
/// The host's.
pub fn set(fd: BorrowedFd<'_>, wanted: &KernelTermios, when: When) -> Result<(), Errno> {
    const CBAUD: u32 = 0o010_017;
    let mut host: Termios = rustix::termios::tcgetattr(fd).map_err(errno)?;
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
    let when = match when {
        When::Now => OptionalActions::Now,
        When::Drain => OptionalActions::Drain,
        When::Flush => OptionalActions::Flush,
    };
    rustix::termios::tcsetattr(fd, when, &host).map_err(errno)
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
        0 => QueueSelector::IFlush,
        1 => QueueSelector::OFlush,
        2 => QueueSelector::IOFlush,
        _ => return Err(Errno::EINVAL),
    };
    rustix::termios::tcflush(fd, queue).map_err(errno)
}
