//! Lines that are edited while they are typed (ICANON in termios(3)): what is taken back or shown again.

use kvmlet_abi::linux::termios::{
    ECHO, ECHOCTL, ECHOE, ECHOK, ECHOKE, ECHONL, ECHOPRT, IEXTEN, VEOF, VEOL, VEOL2, VERASE, VKILL,
    VLNEXT, VREPRINT, VWERASE,
};

use super::{Discipline, Effects, Ends, TAB, is_control, is_word};

impl Discipline {
    /// A byte while lines are edited. Says if it had a meaning.
    pub(super) fn receive_editing(&mut self, byte: u8, effects: &mut Effects) -> bool {
        let extended = self.local(IEXTEN);
        if self.is(byte, VERASE) {
            self.erase(Erase::One, effects);
        } else if self.is(byte, VKILL) {
            self.kill(effects);
        } else if extended && self.is(byte, VWERASE) {
            self.erase(Erase::Word, effects);
        } else if extended && self.is(byte, VLNEXT) {
            self.takes_literally = true;
            if self.local(ECHO) {
                self.finish_erasing(effects);
                if self.local(ECHOCTL) {
                    self.echo_all(b"^\x08", effects);
                }
            }
        } else if extended && self.local(ECHO) && self.is(byte, VREPRINT) {
            self.reprint(byte, effects);
        } else if byte == b'\n' {
            if self.local(ECHO) || self.local(ECHONL) {
                self.echo_raw(b'\n', effects);
            }
            self.end_line(byte, Ends::Line, effects);
        } else if self.is(byte, VEOF) {
            self.end_line(0, Ends::File, effects);
        } else if self.is(byte, VEOL) || extended && self.is(byte, VEOL2) {
            if self.local(ECHO) {
                self.note_line_start();
                self.echo(byte, effects);
            }
            self.end_line(byte, Ends::Line, effects);
        } else {
            return false;
        }
        true
    }

    fn end_line(&mut self, byte: u8, ends: Ends, effects: &mut Effects) {
        self.push(byte, ends);
        self.lines = self.input.len();
        effects.slave_readable = true;
    }

    /// Shows the line again, as far as there is room. Linux differs: it looks at any number of bytes that show
    /// nothing.
    fn reprint(&mut self, byte: u8, effects: &mut Effects) {
        self.finish_erasing(effects);
        self.echo(byte, effects);
        self.echo_raw(b'\n', effects);
        let mut at = self.lines;
        while let Some(cell) = self.input.get(at).copied()
            && self.echo_room() > 0
            && self.look()
        {
            self.echo(cell.byte, effects);
            at = at.saturating_add(1);
        }
    }

    fn kill(&mut self, effects: &mut Effects) {
        if self.input.len() == self.lines {
            return;
        }
        if self.local(ECHO) && self.local(ECHOK) && self.local(ECHOKE) && self.local(ECHOE) {
            return self.erase(Erase::Line, effects);
        }
        self.input.truncate(self.lines);
        if self.local(ECHO) {
            self.finish_erasing(effects);
            self.echo(self.special(VKILL), effects);
            if self.local(ECHOK) {
                self.echo_raw(b'\n', effects);
            }
        }
    }

    /// Takes the last character, word or all of the line back.
    fn erase(&mut self, what: Erase, effects: &mut Effects) {
        let mut in_word = false;
        while self.input.len() > self.lines {
            let mut start = self.input.len();
            let mut first = 0u8;
            while start > self.lines {
                start = start.saturating_sub(1);
                first = self.input.get(start).map_or(0, |cell| cell.byte);
                if !self.is_continuation(first) || !self.look() {
                    break;
                }
            }
            // A character is erased as a whole or not at all.
            if self.is_continuation(first) {
                break;
            }
            if what == Erase::Word {
                if is_word(first) {
                    in_word = true;
                } else if in_word {
                    break;
                }
            }
            let erased: Vec<u8> = self.input.drain(start..).map(|cell| cell.byte).collect();
            if self.local(ECHO) {
                self.echo_erased(what, &erased, effects);
            }
            if what == Erase::One {
                break;
            }
        }
        if self.input.len() == self.lines && self.local(ECHO) {
            self.finish_erasing(effects);
        }
    }

    fn echo_erased(&mut self, what: Erase, erased: &[u8], effects: &mut Effects) {
        let Some((first, rest)) = erased.split_first() else {
            return;
        };
        if self.local(ECHOPRT) {
            if !self.is_erasing {
                self.is_erasing = true;
                self.echo_raw(b'\\', effects);
            }
            self.echo(*first, effects);
            self.echo_all(rest, effects);
        } else if what == Erase::One && !self.local(ECHOE) {
            self.echo(self.special(VERASE), effects);
        } else if *first == b'\t' {
            self.echo_erased_tab(effects);
        } else {
            if is_control(*first) && self.local(ECHOCTL) {
                self.echo_all(b"\x08 \x08", effects);
            }
            if !is_control(*first) || self.local(ECHOCTL) {
                self.echo_all(b"\x08 \x08", effects);
            }
        }
    }

    /// Goes back by as many columns as the tab took that was erased.
    fn echo_erased_tab(&mut self, effects: &mut Effects) {
        let mut columns = 0usize;
        let mut is_after_tab = false;
        let line = self.input.len().saturating_sub(self.lines);
        for cell in self.input.iter().rev().take(line) {
            if self.looks == 0 {
                return;
            }
            self.looks = self.looks.saturating_sub(1);
            if cell.byte == b'\t' {
                is_after_tab = true;
                break;
            }
            let width = match is_control(cell.byte) {
                true if self.local(ECHOCTL) => 2,
                true => 0,
                false => usize::from(!self.is_continuation(cell.byte)),
            };
            columns = columns.saturating_add(width);
        }
        if !is_after_tab {
            columns = columns.saturating_add(self.canon_column);
        }
        for _ in 0..TAB.saturating_sub(columns % TAB) {
            if self.echo_room() > 0 {
                self.push_echo(b"\x08", effects);
                self.column = self.column.saturating_sub(1);
            }
        }
    }
}

/// The part of a line that is erased.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Erase {
    /// VERASE: a character.
    One,
    /// VWERASE: a word.
    Word,
    /// VKILL: all of it.
    Line,
}
