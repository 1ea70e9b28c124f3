//! Pseudo-terminals (pty(7)) as values, and whose terminal is whose (credentials(7), "Sessions").

use std::sync::Arc;

use imbl::OrdMap;
use kvmlet_abi::Errno;
use kvmlet_abi::linux::Winsize;
use kvmlet_abi::linux::poll::{POLLHUP, POLLIN, POLLOUT, POLLPRI, POLLRDNORM, POLLWRNORM};
use kvmlet_mem::GuestMemory;

use crate::creds::Creds;
use crate::fd::{self, Fd, FileKind, OpenFile, OpenFlags};
use crate::id::{ObjectId, Pid};
use crate::kernel::Kernel;
use crate::outcome::Source;
use crate::vfs::synth;

mod discipline;
#[cfg(test)]
mod discipline_tests;
pub mod job;
mod pty;
mod termios;
#[cfg(test)]
mod tests;

pub use discipline::{Effects, Held, INPUT_MAX};
pub use pty::{Packet, Pty};
pub use termios::Termios2;

/// Pseudo-terminals at most (/proc/sys/kernel/pty/max).
pub const PTYS_MAX: usize = 4096;
/// Host memory charged to the program for a pseudo-terminal: more than one takes whose queues are full and have doubled
/// their room for it.
const PTY_COST_BYTES: u64 = 80 << 10;
/// Major device number of slaves.
pub const SLAVE_MAJOR: u32 = 136;
/// The group that owns slaves (group `tty` of Debian).
pub const SLAVE_GID: u32 = 5;
/// Permission bits of slaves.
pub const SLAVE_MODE: u32 = 0o620;

/// The controlling terminal of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ctty {
    /// The caller's, inherited as a standard stream.
    Inherited,
    /// The slave of this pseudo-terminal.
    Pty(u32),
}

/// One of the two ends of a pseudo-terminal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// /dev/ptmx
    Master,
    /// /dev/pts/N
    Slave,
}

/// An end of a pseudo-terminal, as a description refers to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PtyEnd {
    /// Its number N in /dev/pts.
    pub index: u32,
    /// The end.
    pub side: Side,
    /// The name of the end as a source of events.
    pub source: ObjectId,
}

/// All pseudo-terminals.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ptys {
    ptys: OrdMap<u32, Arc<Pty>>,
}

impl Ptys {
    /// A pseudo-terminal.
    ///
    /// # Errors
    /// `EIO` if it is gone (never while an end is open).
    pub fn get(&self, index: u32) -> Result<&Pty, Errno> {
        self.ptys.get(&index).map(Arc::as_ref).ok_or(Errno::EIO)
    }

    /// A pseudo-terminal, to be changed.
    ///
    /// # Errors
    /// As [`Ptys::get`].
    pub fn get_mut(&mut self, index: u32) -> Result<&mut Pty, Errno> {
        let pty = self.ptys.get_mut(&index).ok_or(Errno::EIO)?;
        Ok(Arc::make_mut(pty))
    }

    /// Numbers of those that /dev/pts shows: their masters are open.
    pub fn shown(&self) -> impl Iterator<Item = u32> {
        let shown = self.ptys.iter().filter(|(_, pty)| pty.has_master());
        shown.map(|(index, _)| *index)
    }

    /// True if /dev/pts shows a number.
    #[must_use]
    pub fn is_shown(&self, index: u32) -> bool {
        self.ptys.get(&index).is_some_and(|pty| pty.has_master())
    }

    /// The process groups in the foreground, which need not have members any more.
    pub fn foreground_groups(&self) -> impl Iterator<Item = Pid> {
        self.ptys.values().filter_map(|pty| pty.foreground)
    }

    /// The lowest unused number.
    fn lowest_free(&self) -> u32 {
        let mut free = 0u32;
        for index in self.ptys.keys() {
            if *index != free {
                break;
            }
            free = free.saturating_add(1);
        }
        free
    }
}

impl Kernel {
    /// open(2) of /dev/ptmx: a new pseudo-terminal, whose slave is locked. It is charged to the program.
    ///
    /// # Errors
    /// `ENOSPC` for too many, `ENOMEM` at the memory limit.
    pub fn open_pty(&mut self, memory: &mut GuestMemory) -> Result<PtyEnd, Errno> {
        if self.ptys.ptys.len() >= PTYS_MAX {
            return Err(Errno::ENOSPC);
        }
        memory
            .charge_kernel(PTY_COST_BYTES)
            .map_err(|_| Errno::ENOMEM)?;
        let index = self.ptys.lowest_free();
        let (master, slave) = (self.objects.next_id(), self.objects.next_id());
        self.ptys
            .ptys
            .insert(index, Arc::new(Pty::new(master, slave)));
        Ok(PtyEnd {
            index,
            side: Side::Master,
            source: master,
        })
    }

    /// The slave is opened once more.
    ///
    /// # Errors
    /// `EIO` if it is locked or the master is closed, `EBUSY` after TIOCEXCL.
    pub fn open_slave(&mut self, index: u32, lock: Lock, who: &Creds) -> Result<PtyEnd, Errno> {
        let is_root = who.user.effective == 0;
        let pty = self.ptys.get_mut(index)?;
        if !pty.has_master() || pty.is_locked && lock == Lock::Heeded {
            return Err(Errno::EIO);
        }
        if pty.is_exclusive && !is_root {
            return Err(Errno::EBUSY);
        }
        pty.slave_opened();
        Ok(PtyEnd {
            index,
            side: Side::Slave,
            source: pty.source(Side::Slave),
        })
    }

    /// Has descriptors of a new process lead to the slave, which becomes its controlling terminal if it leads a session.
    /// Whoever asks has the master.
    ///
    /// # Errors
    /// As [`Kernel::open_slave`]; `ESRCH`.
    pub fn give_slave(
        &mut self,
        memory: &mut GuestMemory,
        pid: Pid,
        index: u32,
        numbers: &[u8],
    ) -> Result<(), Errno> {
        self.fds_of(pid).ok_or(Errno::ESRCH)?;
        let caller = Arc::clone(&self.caller);
        let slave = self.open_slave(index, Lock::Passed, &caller)?;
        self.ptys.get_mut(index)?.is_locked = false;
        let file = OpenFile {
            kind: FileKind::Pty(slave),
            offset: 0,
            flags: OpenFlags::RDWR | OpenFlags::LARGEFILE,
            refs: u32::try_from(numbers.len()).unwrap_or(u32::MAX),
            path: synth::slave_path(index).into(),
        };
        let file = fd::add_file(self, memory, file);
        let table = self.fds_of_mut(pid).ok_or(Errno::ESRCH)?;
        for number in numbers {
            let fd = Fd {
                file,
                cloexec: false,
            };
            table.fds.insert(i32::from(*number), fd);
        }
        self.take_ctty_on_open(pid, index);
        Ok(())
    }

    /// A description of an end is closed. The last one of the master hangs the slave up.
    pub fn close_pty(&mut self, memory: &mut GuestMemory, end: PtyEnd) {
        let Ok(pty) = self.ptys.get_mut(end.index) else {
            return;
        };
        let ends = match end.side {
            Side::Master => {
                pty.master_closed();
                true
            }
            Side::Slave => pty.slave_closed(),
        };
        let is_unused = pty.is_unused();
        let other = match end.side {
            Side::Master => pty.source(Side::Slave),
            Side::Slave => pty.source(Side::Master),
        };
        if end.side == Side::Master {
            self.hang_up(end.index);
        }
        if is_unused {
            self.ptys.ptys.remove(&end.index);
            memory.uncharge_kernel(PTY_COST_BYTES);
        }
        if ends {
            let all = POLLIN | POLLRDNORM | POLLOUT | POLLWRNORM | POLLHUP;
            self.wake(Source::Object(other), all);
        }
    }

    /// Sends the signals that a change of a pseudo-terminal brings, and wakes who waits for it.
    pub fn apply_effects(&mut self, index: u32, effects: Effects) {
        let Ok(pty) = self.ptys.get_mut(index) else {
            return;
        };
        let is_packet_news = pty.note_packet(effects.packet);
        let foreground = pty.foreground;
        let (master, slave) = (pty.source(Side::Master), pty.source(Side::Slave));
        for signo in effects.signals {
            if let Some(group) = foreground {
                self.send_to_group(group, signo);
            }
        }
        let pick = |is_set: bool, events: i16| if is_set { events } else { 0 };
        let news = pick(effects.slave_readable, POLLIN | POLLRDNORM)
            | pick(effects.slave_writable, POLLOUT | POLLWRNORM);
        if news != 0 {
            self.wake(Source::Object(slave), news);
        }
        let news = pick(effects.master_readable, POLLIN | POLLRDNORM)
            | pick(effects.master_writable, POLLOUT | POLLWRNORM)
            | pick(is_packet_news, POLLIN | POLLRDNORM | POLLPRI);
        if news != 0 {
            self.wake(Source::Object(master), news);
        }
    }

    /// TIOCSWINSZ: another size is told to the foreground process group.
    ///
    /// # Errors
    /// As [`Ptys::get`].
    pub fn resize_pty(&mut self, index: u32, size: Winsize) -> Result<(), Errno> {
        let pty = self.ptys.get_mut(index)?;
        if pty.size == size {
            return Ok(());
        }
        pty.size = size;
        if let Some(group) = pty.foreground {
            self.send_to_group(group, kvmlet_abi::linux::signal::SIGWINCH);
        }
        Ok(())
    }

    /// The controlling terminal of a process, and its foreground process group.
    #[must_use]
    pub fn terminal_of(&self, pid: Pid) -> Option<(Ctty, Option<Pid>)> {
        let ctty = self.processes.get(&pid)?.ctty?;
        let foreground = match ctty {
            Ctty::Inherited => Some(self.foreground),
            Ctty::Pty(index) => self.ptys.get(index).ok()?.foreground,
        };
        Some((ctty, foreground))
    }
}

/// Says if TIOCSPTLCK keeps a slave from being opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lock {
    /// It does.
    Heeded,
    /// It does not: /dev/tty is opened.
    Passed,
}
