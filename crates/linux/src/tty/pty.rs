//! One pseudo-terminal: its two ends, and what they have in common.

use kvmlet_abi::Errno;
use kvmlet_abi::linux::Winsize;
use kvmlet_abi::linux::poll::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLPRI, POLLRDNORM, POLLWRNORM};
use kvmlet_abi::linux::termios::{
    CREAD, CS8, CSIZE, EXTPROC, IXON, PARENB, TIOCPKT_DATA, TIOCPKT_DOSTOP, TIOCPKT_IOCTL,
    TIOCPKT_NOSTOP, TIOCPKT_START, TIOCPKT_STOP, VSTART, VSTOP,
};
use kvmlet_hostfs::terminal::KernelTermios;

use super::discipline::{Discipline, Effects};
use super::termios::Speeds;
use super::{INPUT_MAX, Side};
use crate::id::{ObjectId, Pid};

/// VSTOP and VSTART that a master in packet mode may handle itself.
const CTRL_S: u8 = 0o23;
const CTRL_Q: u8 = 0o21;

/// A pseudo-terminal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pty {
    /// Its queues.
    pub line: Discipline,
    /// Its line speeds, which nothing depends on.
    pub speeds: Speeds,
    /// Its window size.
    pub size: Winsize,
    /// The session whose controlling terminal it is.
    pub session: Option<Pid>,
    /// The process group in the foreground.
    pub foreground: Option<Pid>,
    /// TIOCSPTLCK: the slave cannot be opened.
    pub is_locked: bool,
    /// TIOCEXCL: the slave cannot be opened once more.
    pub is_exclusive: bool,
    /// TIOCPKT: the master reads news of the slave too.
    is_packet: bool,
    /// TIOCPKT_* that the master has not read.
    packet_news: u8,
    /// Their names as sources of events.
    master: ObjectId,
    slave: ObjectId,
    has_master: bool,
    /// Descriptions of the slave.
    slaves: u32,
    /// The slave has been open and is not now.
    has_lost_slave: bool,
}

impl Pty {
    pub(super) fn new(master: ObjectId, slave: ObjectId) -> Self {
        Self {
            line: Discipline::default(),
            speeds: Speeds::default(),
            size: Winsize::default(),
            session: None,
            foreground: None,
            is_locked: true,
            is_exclusive: false,
            is_packet: false,
            packet_news: 0,
            master,
            slave,
            has_master: true,
            slaves: 0,
            has_lost_slave: false,
        }
    }

    /// The name of an end as a source of events.
    #[must_use]
    pub fn source(&self, side: Side) -> ObjectId {
        match side {
            Side::Master => self.master,
            Side::Slave => self.slave,
        }
    }

    /// False once the master is closed: the slave is hung up.
    #[must_use]
    pub fn has_master(&self) -> bool {
        self.has_master
    }

    pub(super) fn slave_opened(&mut self) {
        self.slaves = self.slaves.saturating_add(1);
        self.has_lost_slave = false;
    }

    /// Says if it was the last one.
    pub(super) fn slave_closed(&mut self) -> bool {
        self.slaves = self.slaves.saturating_sub(1);
        if self.slaves > 0 {
            return false;
        }
        self.has_lost_slave = true;
        true
    }

    pub(super) fn master_closed(&mut self) {
        self.has_master = false;
    }

    pub(super) fn is_unused(&self) -> bool {
        !self.has_master && self.slaves == 0
    }

    /// TIOCGPKT
    #[must_use]
    pub fn is_packet(&self) -> bool {
        self.is_packet
    }

    /// TIOCPKT
    pub fn set_packet(&mut self, packet: Packet) {
        let is_packet = packet == Packet::On;
        if is_packet && !self.is_packet {
            self.packet_news = 0;
        }
        self.is_packet = is_packet;
    }

    /// Keeps TIOCPKT_* for the master. Says if it wants them.
    pub(super) fn note_packet(&mut self, news: u8) -> bool {
        if !self.is_packet || news == 0 {
            return false;
        }
        // The later one of two that are opposites holds.
        for (one, other) in [
            (TIOCPKT_STOP, TIOCPKT_START),
            (TIOCPKT_NOSTOP, TIOCPKT_DOSTOP),
        ] {
            if news & (one | other) != 0 {
                self.packet_news &= !(one | other);
            }
        }
        self.packet_news |= news;
        true
    }

    /// TCSETS: the bits that a pseudo-terminal cannot change stay as they are (pty_set_termios in
    /// drivers/tty/pty.c).
    pub fn set_termios(&mut self, wanted: KernelTermios, effects: &mut Effects) {
        let old = *self.line.termios();
        let wanted = KernelTermios {
            c_cflag: wanted.c_cflag & !(CSIZE | PARENB) | CS8 | CREAD,
            ..wanted
        };
        self.line.set_termios(wanted, effects);
        let flow = |termios: &KernelTermios| {
            let special = |which: usize| termios.c_cc.get(which).copied();
            termios.c_iflag & IXON != 0
                && special(VSTOP) == Some(CTRL_S)
                && special(VSTART) == Some(CTRL_Q)
        };
        let (before, after) = (flow(&old), flow(&wanted));
        if before != after {
            effects.packet |= match after {
                true => TIOCPKT_DOSTOP,
                false => TIOCPKT_NOSTOP,
            };
        }
        if (old.c_lflag | wanted.c_lflag) & EXTPROC != 0 {
            effects.packet |= TIOCPKT_IOCTL;
        }
    }

    /// A read by the master. In packet mode the first byte says what follows.
    ///
    /// # Errors
    /// `EIO` if the slave is closed and there is nothing left, `EAGAIN` if there is nothing.
    pub fn read_master(&mut self, max: usize, effects: &mut Effects) -> Result<Vec<u8>, Errno> {
        if self.is_packet && self.packet_news != 0 {
            return Ok(vec![core::mem::take(&mut self.packet_news)]);
        }
        if self.line.output_bytes() == 0 {
            return Err(match self.has_lost_slave {
                true => Errno::EIO,
                false => Errno::EAGAIN,
            });
        }
        let head = usize::from(self.is_packet);
        let max = max.min(INPUT_MAX).saturating_sub(head);
        let bytes = self.line.peek_output(max);
        self.line.consume_output(bytes.len(), effects);
        Ok(match self.is_packet {
            true => [&[TIOCPKT_DATA], bytes.as_slice()].concat(),
            false => bytes,
        })
    }

    /// Bytes that FIONREAD tells of.
    #[must_use]
    pub fn readable_bytes(&self, side: Side) -> usize {
        match side {
            Side::Master => self.line.output_bytes().min(INPUT_MAX),
            Side::Slave => self.line.input_bytes(),
        }
    }

    /// The events that hold now.
    #[must_use]
    pub fn poll(&self, side: Side) -> i16 {
        let (readable, writable) = (POLLIN | POLLRDNORM, POLLOUT | POLLWRNORM);
        let pick = |holds: bool, events: i16| if holds { events } else { 0 };
        match side {
            Side::Master => {
                let has_news = self.is_packet && self.packet_news != 0;
                pick(self.line.output_bytes() > 0, readable)
                    | pick(has_news, readable | POLLPRI)
                    | pick(self.has_lost_slave, POLLHUP)
                    | pick(self.line.room_for_master() > 0, writable)
            }
            Side::Slave if !self.has_master => readable | writable | POLLERR | POLLHUP,
            Side::Slave => {
                pick(self.line.is_poll_readable(), readable)
                    | pick(!self.line.is_write_blocked(), writable)
            }
        }
    }
}

/// Packet mode of a master.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packet {
    /// It reads news of the slave too.
    On,
    /// It reads bytes only.
    Off,
}
