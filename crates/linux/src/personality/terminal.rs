//! Terminals of a box's commands: pseudo-terminals whose masters are descriptors of the holder's.

use kvmlet_abi::Errno;
use kvmlet_abi::linux::Winsize;
use kvmlet_abi::linux::fcntl::F_DUPFD_CLOEXEC;
use kvmlet_abi::linux::poll::{POLLHUP, POLLIN, POLLOUT};

use super::Personality;
use super::files::{nr, word};
use super::holder::STREAMS;
use crate::fd::{FileKind, OpenFlags};
use crate::kernel::{Pid, Tid};
use crate::tty::{PtyEnd, Side};

/// The size of a terminal, in characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl From<TerminalSize> for Winsize {
    fn from(size: TerminalSize) -> Self {
        Self {
            ws_row: size.rows,
            ws_col: size.columns,
            ..Self::default()
        }
    }
}

impl Personality {
    /// Makes a terminal of its own the standard streams of a child, and its controlling terminal. The first two of
    /// `streams` are the holder's ends: to type, and to read what is shown. Once both are closed it is hung up.
    pub(super) fn give_terminal(
        &mut self,
        child: Tid,
        size: TerminalSize,
        streams: &mut [Option<i32>; STREAMS],
    ) -> Result<(), Errno> {
        let [to_type, shown, ..] = streams;
        let master = self.open(b"/dev/ptmx", OpenFlags::RDWR, 0)?;
        *to_type = Some(master);
        let args = [word(master), u64::from(F_DUPFD_CLOEXEC), 0];
        let copy = self.host_call(nr::FCNTL, &args)?;
        *shown = Some(i32::try_from(copy).map_err(|_| Errno::EBADF)?);
        let index = self.master_of(master).ok_or(Errno::ENOTTY)?.index;
        self.kernel.resize_pty(index, size.into())?;
        let memory = &mut self.machine.memory;
        self.kernel
            .give_slave(memory, Pid(child.0), index, &[0, 1, 2])
    }

    /// Gives the terminal that a descriptor of the holder's leads to another size, and tells the foreground of it.
    ///
    /// # Errors
    /// `ENOTTY` for what is none.
    pub fn resize(&mut self, number: i32, size: TerminalSize) -> Result<(), Errno> {
        let end = self.master_of(number).ok_or(Errno::ENOTTY)?;
        self.kernel.resize_pty(end.index, size.into())
    }

    /// The master that a descriptor of the holder's leads to.
    pub(super) fn master_of(&self, number: i32) -> Option<PtyEnd> {
        let FileKind::Pty(end) = self.kind_of(number)? else {
            return None;
        };
        (end.side == Side::Master).then_some(*end)
    }

    /// True if nobody has the slave open any more: nothing more is shown, and nobody reads what is typed.
    pub(super) fn is_hung_up(&self, master: PtyEnd) -> bool {
        self.master_events(master) & POLLHUP != 0
    }

    /// True if there is something to read from a master.
    pub(super) fn is_shown(&self, master: PtyEnd) -> bool {
        self.master_events(master) & (POLLIN | POLLHUP) != 0
    }

    /// True if a master takes bytes, or nobody reads them.
    pub(super) fn takes_keys(&self, master: PtyEnd) -> bool {
        self.master_events(master) & (POLLOUT | POLLHUP) != 0
    }

    fn master_events(&self, master: PtyEnd) -> i16 {
        let pty = self.kernel.ptys.get(master.index);
        pty.map_or(POLLHUP, |pty| pty.poll(Side::Master))
    }
}
