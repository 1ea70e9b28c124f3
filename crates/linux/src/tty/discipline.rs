//! The line discipline of a terminal (termios(3)): what becomes of typed bytes and of written ones, as N_TTY has it.

use std::collections::VecDeque;

use kvmlet_abi::linux::signal::{SIGINT, SIGQUIT, SIGTSTP};
use kvmlet_abi::linux::termios::{
    B38400, CREAD, CS8, ECHO, ECHOCTL, ECHOE, ECHOK, ECHOKE, EXTPROC, ICANON, ICRNL, IEXTEN, IGNCR,
    INLCR, ISIG, ISTRIP, IUCLC, IUTF8, IXANY, IXON, NCCS, NOFLSH, OCRNL, OLCUC, ONLCR, ONLRET,
    ONOCR, OPOST, PARMRK, TABDLY, TIOCPKT_FLUSHREAD, TIOCPKT_FLUSHWRITE, TIOCPKT_START,
    TIOCPKT_STOP, VEOL2, VINTR, VMIN, VQUIT, VSTART, VSTOP, VSUSP, VTIME, XTABS,
};
use kvmlet_hostfs::terminal::KernelTermios;

mod editing;

/// Bytes that a terminal keeps for its reader, the end of a line counted (N_TTY_BUF_SIZE).
pub const INPUT_MAX: usize = 4096;
/// Typed bytes that wait until there is room for them, and written bytes on the way to the master.
const QUEUE_MAX: usize = 8192;
/// Written bytes that the master has not read, at most.
const OUTPUT_MAX: usize = INPUT_MAX + QUEUE_MAX;
/// Echoed bytes at most: those on top of [`OUTPUT_MAX`], and those that wait while output is stopped.
const ECHO_MAX: usize = 4096;
/// Bytes of a line that are looked at again at most, for all that is typed at once.
const LOOKS_MAX: usize = OUTPUT_MAX + ECHO_MAX;
/// Columns between two tab stops.
const TAB: usize = 8;

/// Attributes of a new terminal (tty_std_termios).
pub const INITIAL: KernelTermios = KernelTermios {
    c_iflag: ICRNL | IXON,
    c_oflag: OPOST | ONLCR,
    c_cflag: B38400 | CS8 | CREAD,
    c_lflag: ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN,
    c_line: 0,
    c_cc: [
        3, 0o34, 0o177, 0o25, 4, 0, 1, 0, 0o21, 0o23, 0o32, 0, 0o22, 0o17, 0o27, 0o26, 0, 0, 0,
    ],
};

/// A typed byte that waits for its reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cell {
    byte: u8,
    ends: Ends,
}

/// Says if a byte ends a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ends {
    /// It does not.
    No,
    /// It does.
    Line,
    /// It does, and is no byte itself: VEOF.
    File,
}

/// Signals to the foreground process group, and news for the two ends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Effects {
    /// Numbers of the signals, each once, in the order of their first arrival: a standard signal that is pending
    /// already is lost.
    pub signals: Vec<u8>,
    /// The slave may have become readable.
    pub slave_readable: bool,
    /// The slave may have become writable.
    pub slave_writable: bool,
    /// The master may have become readable.
    pub master_readable: bool,
    /// The master may have become writable.
    pub master_writable: bool,
    /// TIOCPKT_* for a master in packet mode.
    pub packet: u8,
}

impl Effects {
    /// Has a signal sent.
    pub fn send(&mut self, signo: u8) {
        if !self.signals.contains(&signo) {
            self.signals.push(signo);
        }
    }
}

/// The queues and the state of a terminal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Discipline {
    /// Its attributes.
    termios: KernelTermios,
    /// Typed bytes that there was no room for yet.
    typed: VecDeque<u8>,
    /// Typed bytes for the reader.
    input: VecDeque<Cell>,
    /// The first bytes of `input` that are whole lines.
    lines: usize,
    /// Written and echoed bytes for the master.
    output: VecDeque<u8>,
    /// Echoes that wait while output is stopped.
    echoes: VecDeque<u8>,
    /// Column of the cursor, and the one where the line began.
    column: usize,
    canon_column: usize,
    /// The place before what has been echoed for bytes typed at once: a signal takes it back.
    unshown: Place,
    /// Bytes of a line that may still be looked at again before others have their turn.
    looks: usize,
    /// VLNEXT has been typed: the next byte has no meaning.
    takes_literally: bool,
    /// ECHOPRT is in the middle of erased bytes.
    is_erasing: bool,
    /// Output is stopped by VSTOP.
    is_stopped: bool,
    /// Output is stopped by tcflow(3).
    is_held: bool,
}

impl Default for Discipline {
    fn default() -> Self {
        Self {
            termios: INITIAL,
            typed: VecDeque::new(),
            input: VecDeque::new(),
            lines: 0,
            output: VecDeque::new(),
            echoes: VecDeque::new(),
            column: 0,
            canon_column: 0,
            unshown: Place::default(),
            looks: 0,
            takes_literally: false,
            is_erasing: false,
            is_stopped: false,
            is_held: false,
        }
    }
}

/// A place in the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Place {
    /// Bytes before it in the queue.
    bytes: usize,
    column: usize,
    canon_column: usize,
}

/// Control characters (iscntrl() in lib/ctype.c).
fn is_control(byte: u8) -> bool {
    byte < 0x20 || byte == 0x7f
}

/// Letters and digits of Latin-1, and `_`.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0xc0 && !matches!(byte, 0xd7 | 0xf7)
}

impl Discipline {
    // ---- attributes ----

    /// Its attributes.
    #[must_use]
    pub fn termios(&self) -> &KernelTermios {
        &self.termios
    }

    /// Changes its attributes. Bytes that have been typed change between lines and no lines with ICANON
    /// (n_tty_set_termios in drivers/tty/n_tty.c).
    pub fn set_termios(&mut self, wanted: KernelTermios, effects: &mut Effects) {
        let old = core::mem::replace(&mut self.termios, wanted);
        if (old.c_lflag ^ wanted.c_lflag) & (ICANON | EXTPROC) != 0 {
            self.input.iter_mut().for_each(|cell| cell.ends = Ends::No);
            self.lines = 0;
            if self.local(ICANON)
                && let Some(last) = self.input.back_mut()
            {
                last.ends = Ends::Line;
                self.lines = self.input.len();
            }
            self.is_erasing = false;
            self.takes_literally = false;
        }
        if old.c_iflag & IXON != 0 && !self.is_input(IXON) {
            self.start(effects);
        }
        self.pump(effects);
        (effects.slave_readable, effects.slave_writable) = (true, true);
    }

    fn local(&self, flag: u32) -> bool {
        self.termios.c_lflag & flag != 0
    }

    fn is_input(&self, flag: u32) -> bool {
        self.termios.c_iflag & flag != 0
    }

    fn is_output(&self, flag: u32) -> bool {
        self.termios.c_oflag & flag != 0
    }

    /// A special character of the terminal's; 0 for none.
    #[must_use]
    pub fn special(&self, which: usize) -> u8 {
        const _: () = assert!(VEOL2 < NCCS);
        self.termios.c_cc.get(which).copied().unwrap_or(0)
    }

    fn is(&self, byte: u8, which: usize) -> bool {
        byte != 0 && byte == self.special(which)
    }

    fn is_continuation(&self, byte: u8) -> bool {
        self.is_input(IUTF8) && byte & 0xc0 == 0x80
    }

    /// True if a reader gets lines.
    #[must_use]
    pub fn is_canonical(&self) -> bool {
        self.local(ICANON) && !self.local(EXTPROC)
    }

    // ---- the master's side ----

    /// Takes bytes that are typed, as many as there is room for; returns how many.
    pub fn write_master(&mut self, bytes: &[u8], effects: &mut Effects) -> usize {
        let mut done = 0usize;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let room = QUEUE_MAX.saturating_sub(self.typed.len()).min(rest.len());
            if room == 0 {
                break;
            }
            self.typed.extend(rest.iter().take(room));
            done = done.saturating_add(room);
            self.pump(effects);
        }
        done
    }

    /// Bytes that the master can write now.
    #[must_use]
    pub fn room_for_master(&self) -> usize {
        QUEUE_MAX.saturating_sub(self.typed.len())
    }

    /// Bytes that the master can read now.
    #[must_use]
    pub fn output_bytes(&self) -> usize {
        self.output.len()
    }

    /// The bytes that the master reads next, at most `max`, without taking them.
    #[must_use]
    pub fn peek_output(&self, max: usize) -> Vec<u8> {
        self.output.iter().take(max).copied().collect()
    }

    /// Takes `count` bytes that the master has read.
    pub fn consume_output(&mut self, count: usize, effects: &mut Effects) {
        self.output.drain(..count.min(self.output.len()));
        effects.slave_writable = true;
    }

    // ---- the slave's side ----

    /// Writes as much as there is room for; returns how many bytes. Nothing while output is stopped.
    pub fn write_slave(&mut self, bytes: &[u8], effects: &mut Effects) -> usize {
        let mut done = 0usize;
        for byte in bytes {
            if self.stops_output() || !self.put(*byte, OUTPUT_MAX) {
                break;
            }
            done = done.saturating_add(1);
        }
        effects.master_readable |= done > 0;
        done
    }

    /// True if the slave cannot write: output is stopped or the queue is full.
    #[must_use]
    pub fn is_write_blocked(&self) -> bool {
        self.stops_output() || self.output.len() >= OUTPUT_MAX
    }

    fn stops_output(&self) -> bool {
        self.is_stopped || self.is_held
    }

    /// True if a read by the slave has an answer.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        match self.is_canonical() {
            true => self.lines > 0,
            false => !self.input.is_empty(),
        }
    }

    /// True if poll(2) says that the slave can be read: without a timeout only VMIN bytes are worth it.
    #[must_use]
    pub fn is_poll_readable(&self) -> bool {
        let (min, time) = (self.special(VMIN), self.special(VTIME));
        match self.is_canonical() {
            true => self.lines > 0,
            false if time == 0 && min > 0 => self.input.len() >= usize::from(min),
            false => !self.input.is_empty(),
        }
    }

    /// Bytes that FIONREAD tells of.
    #[must_use]
    pub fn input_bytes(&self) -> usize {
        match self.is_canonical() {
            true => {
                let cells = self.input.iter().take(self.lines);
                cells.filter(|cell| cell.ends != Ends::File).count()
            }
            false => self.input.len(),
        }
    }

    /// Takes at most `max` bytes for the slave, in lines at most one; nothing read is the end of the file.
    /// The caller has asked [`Discipline::is_readable`], and `max` is not 0.
    pub fn read_slave(&mut self, max: usize, effects: &mut Effects) -> Vec<u8> {
        let mut out = Vec::new();
        let is_canonical = self.is_canonical();
        while let Some(cell) = self.input.front().copied() {
            if is_canonical && self.lines == 0 {
                break;
            }
            // The end of the file goes with the bytes before it also if they fill the buffer.
            if out.len() >= max && !(is_canonical && cell.ends == Ends::File) {
                break;
            }
            self.input.pop_front();
            self.lines = self.lines.saturating_sub(1);
            if cell.ends != Ends::File {
                out.push(cell.byte);
            }
            if is_canonical && cell.ends != Ends::No {
                break;
            }
        }
        self.pump(effects);
        effects.master_writable = true;
        out
    }

    // ---- queues ----

    /// TCIFLUSH: drops what was typed.
    pub fn flush_input(&mut self, effects: &mut Effects) {
        self.input.clear();
        self.lines = 0;
        self.is_erasing = false;
        effects.packet |= TIOCPKT_FLUSHREAD;
        effects.master_writable = true;
    }

    /// TCOFLUSH: drops what was written and is not in the master's own buffer yet.
    pub fn flush_output(&mut self, effects: &mut Effects) {
        self.output.truncate(INPUT_MAX);
        effects.packet |= TIOCPKT_FLUSHWRITE;
        effects.slave_writable = true;
    }

    /// TCFLSH of the master's: drops what it has not read.
    pub fn drop_output(&mut self, effects: &mut Effects) {
        self.output.clear();
        effects.slave_writable = true;
    }

    /// TCFLSH: drops what the master has written and there was no room for yet.
    pub fn drop_typed(&mut self, effects: &mut Effects) {
        self.typed.clear();
        effects.master_writable = true;
    }

    /// TCOOFF and TCOON.
    pub fn hold(&mut self, held: Held, effects: &mut Effects) {
        match held {
            Held::Off if !self.is_held => {
                self.is_held = true;
                self.stop(effects);
            }
            Held::On if self.is_held => {
                self.is_held = false;
                self.start(effects);
            }
            Held::Off | Held::On => {}
        }
    }

    /// A byte that the terminal itself sends to the master (TCIOFF, TCION).
    pub fn send_special(&mut self, which: usize, effects: &mut Effects) {
        let byte = self.special(which);
        if byte != 0 && self.output.len() < OUTPUT_MAX.saturating_add(ECHO_MAX) {
            self.output.push_back(byte);
            effects.master_readable = true;
        }
    }

    // ---- output ----

    fn stop(&mut self, effects: &mut Effects) {
        self.is_stopped = true;
        effects.packet = effects.packet & !TIOCPKT_START | TIOCPKT_STOP;
    }

    fn start(&mut self, effects: &mut Effects) {
        if !self.is_stopped || self.is_held {
            return;
        }
        self.is_stopped = false;
        let echoes = core::mem::take(&mut self.echoes);
        effects.master_readable |= !echoes.is_empty();
        let room = self.echo_room();
        self.output.extend(echoes.into_iter().take(room));
        effects.packet = effects.packet & !TIOCPKT_STOP | TIOCPKT_START;
        effects.slave_writable = true;
    }

    /// Writes one byte as the output modes say. False, and nothing done, if `max` bytes would not hold it.
    fn put(&mut self, byte: u8, max: usize) -> bool {
        let room = max.saturating_sub(self.output.len());
        let mut out = [0u8; TAB];
        let Some(count) = self.processed(byte, room, &mut out) else {
            return false;
        };
        self.output.extend(out.iter().take(count));
        true
    }

    /// The bytes that one byte becomes; `None`, and no column changed, if `room` is too small for them.
    fn processed(&mut self, mut byte: u8, room: usize, out: &mut [u8; TAB]) -> Option<usize> {
        let spaces = TAB.saturating_sub(self.column % TAB);
        let needed = match byte {
            b'\n' if self.is_output(OPOST) && self.is_output(ONLCR) => 2,
            b'\t' if self.is_output(OPOST) && self.termios.c_oflag & TABDLY == XTABS => spaces,
            _ => 1,
        };
        if room < needed {
            return None;
        }
        if self.is_output(OPOST) {
            match byte {
                b'\n' => {
                    if self.is_output(ONLRET) {
                        self.column = 0;
                    }
                    if self.is_output(ONLCR) {
                        (self.column, self.canon_column) = (0, 0);
                        *out = *b"\r\n\0\0\0\0\0\0";
                        return Some(2);
                    }
                    self.canon_column = self.column;
                }
                b'\r' if self.is_output(ONOCR) && self.column == 0 => return Some(0),
                b'\r' if self.is_output(OCRNL) => {
                    byte = b'\n';
                    if self.is_output(ONLRET) {
                        (self.column, self.canon_column) = (0, 0);
                    }
                }
                b'\r' => (self.column, self.canon_column) = (0, 0),
                b'\t' => {
                    self.column = self.column.saturating_add(spaces);
                    if self.termios.c_oflag & TABDLY == XTABS {
                        *out = [b' '; TAB];
                        return Some(spaces);
                    }
                }
                b'\x08' => self.column = self.column.saturating_sub(1),
                _ if is_control(byte) => {}
                _ => {
                    if self.is_output(OLCUC) {
                        byte = byte.to_ascii_uppercase();
                    }
                    if !self.is_continuation(byte) {
                        self.column = self.column.saturating_add(1);
                    }
                }
            }
        }
        out[0] = byte;
        Some(1)
    }

    // ---- echo ----

    /// Room for echoes. Those beyond it are lost.
    fn echo_room(&self) -> usize {
        match self.stops_output() {
            true => ECHO_MAX.saturating_sub(self.echoes.len()),
            false => OUTPUT_MAX
                .saturating_add(ECHO_MAX)
                .saturating_sub(self.output.len()),
        }
    }

    fn push_echo(&mut self, bytes: &[u8], effects: &mut Effects) {
        match self.stops_output() {
            true => self.echoes.extend(bytes),
            false => {
                self.output.extend(bytes);
                effects.master_readable = true;
            }
        }
    }

    /// Echoes a byte as it is, but for output modes.
    fn echo_raw(&mut self, byte: u8, effects: &mut Effects) {
        let mut out = [0u8; TAB];
        let room = self.echo_room();
        if let Some(count) = self.processed(byte, room, &mut out) {
            self.push_echo(out.get(..count).unwrap_or_default(), effects);
        }
    }

    fn echo_all(&mut self, bytes: &[u8], effects: &mut Effects) {
        bytes.iter().for_each(|byte| self.echo_raw(*byte, effects));
    }

    /// Echoes a byte, a control character as `^X`.
    fn echo(&mut self, byte: u8, effects: &mut Effects) {
        if self.local(ECHOCTL) && is_control(byte) && byte != b'\t' {
            if self.echo_room() >= 2 {
                self.column = self.column.saturating_add(2);
                self.push_echo(&[b'^', byte ^ 0o100], effects);
            }
        } else {
            self.echo_raw(byte, effects);
        }
    }

    fn finish_erasing(&mut self, effects: &mut Effects) {
        if core::mem::take(&mut self.is_erasing) {
            self.echo_raw(b'/', effects);
        }
    }

    /// The first byte of a line is about to be echoed.
    fn note_line_start(&mut self) {
        if self.lines == self.input.len() {
            self.canon_column = self.column;
        }
    }

    // ---- input ----

    #[cfg(test)]
    pub(super) fn looks(&self) -> usize {
        self.looks
    }

    /// A byte of the line is looked at again. False if that has been done too often for what is typed at once.
    fn look(&mut self) -> bool {
        let has_some = self.looks > 0;
        self.looks = self.looks.saturating_sub(1);
        has_some
    }

    /// Takes typed bytes while there is room. A line that is too long loses bytes before its end, so that the end
    /// has room.
    fn pump(&mut self, effects: &mut Effects) {
        self.unshown = Place {
            bytes: self.output.len(),
            column: self.column,
            canon_column: self.canon_column,
        };
        self.looks = LOOKS_MAX;
        while !self.typed.is_empty() {
            let most = match self.is_input(PARMRK) {
                true => INPUT_MAX.saturating_sub(3),
                false => INPUT_MAX.saturating_sub(1),
            };
            if self.input.len() >= most {
                if !self.local(ICANON) || self.lines > 0 {
                    break;
                }
                if self.input.len() > most {
                    self.input.pop_back();
                }
            }
            let Some(byte) = self.typed.pop_front() else {
                break;
            };
            self.receive(byte, effects);
        }
    }

    fn push(&mut self, byte: u8, ends: Ends) {
        if self.input.len() < INPUT_MAX {
            self.input.push_back(Cell { byte, ends });
        }
    }

    fn receive(&mut self, mut byte: u8, effects: &mut Effects) {
        if self.is_input(ISTRIP) {
            byte &= 0x7f;
        }
        if self.is_input(IUCLC) && self.local(IEXTEN) {
            byte = byte.to_ascii_lowercase();
        }
        if self.local(EXTPROC) {
            self.push(byte, Ends::No);
            effects.slave_readable = true;
            return;
        }
        if core::mem::take(&mut self.takes_literally) {
            return self.receive_plain(byte, effects);
        }
        if self.is_input(IXON) {
            if self.is(byte, VSTART) {
                return self.start(effects);
            }
            if self.is(byte, VSTOP) {
                if !self.is_stopped {
                    self.stop(effects);
                }
                return;
            }
        }
        if self.local(ISIG) {
            let signals = [(VINTR, SIGINT), (VQUIT, SIGQUIT), (VSUSP, SIGTSTP)];
            let found = signals.iter().find(|(which, _)| self.is(byte, *which));
            if let Some((_, signo)) = found {
                return self.receive_signal(byte, *signo, effects);
            }
        }
        match byte {
            b'\r' if self.is_input(IGNCR) => return,
            b'\r' if self.is_input(ICRNL) => byte = b'\n',
            b'\n' if self.is_input(INLCR) => byte = b'\r',
            _ => {}
        }
        if !self.local(ICANON) || !self.receive_editing(byte, effects) {
            self.receive_plain(byte, effects);
        }
    }

    fn receive_signal(&mut self, byte: u8, signo: u8, effects: &mut Effects) {
        if !self.local(NOFLSH) {
            self.echoes.clear();
            self.output.truncate(self.unshown.bytes);
            self.column = self.unshown.column;
            self.canon_column = self.unshown.canon_column;
            self.flush_output(effects);
            self.flush_input(effects);
        }
        effects.send(signo);
        if self.is_input(IXON) {
            self.start(effects);
        }
        if self.local(ECHO) {
            self.echo(byte, effects);
        }
    }

    /// A byte without a meaning.
    fn receive_plain(&mut self, byte: u8, effects: &mut Effects) {
        if self.is_input(IXON) && self.is_input(IXANY) {
            self.start(effects);
        }
        if self.local(ECHO) {
            self.finish_erasing(effects);
            self.note_line_start();
            match byte {
                b'\n' => self.echo_raw(byte, effects),
                _ => self.echo(byte, effects),
            }
        }
        if byte == 0xff && self.is_input(PARMRK) {
            self.push(byte, Ends::No);
        }
        self.push(byte, Ends::No);
        // A line that is not complete is nobody's yet.
        effects.slave_readable |= !self.local(ICANON);
    }
}

/// A change by tcflow(3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// TCOOFF
    Off,
    /// TCOON
    On,
}
