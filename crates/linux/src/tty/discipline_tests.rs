//! The line discipline by itself: what is typed, what is shown, what is read.

use kvmlet_abi::linux::signal::{SIGINT, SIGTSTP};
use kvmlet_abi::linux::termios::{
    ECHO, ECHOCTL, ECHOKE, ECHOPRT, ICANON, ISIG, IUTF8, NOFLSH, OCRNL, ONLRET, ONOCR, OPOST,
    TABDLY, VEOL, VMIN,
};
use proptest::prelude::*;

use super::discipline::{Discipline, Effects, Held, INITIAL, INPUT_MAX};

/// A terminal and what has happened to it.
struct Line {
    line: Discipline,
    effects: Effects,
}

impl Line {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut kvmlet_hostfs::terminal::KernelTermios)) -> Self {
        let mut this = Self {
            line: Discipline::default(),
            effects: Effects::default(),
        };
        this.change(change);
        this.effects = Effects::default();
        this
    }

    fn change(&mut self, change: impl FnOnce(&mut kvmlet_hostfs::terminal::KernelTermios)) {
        let mut termios = *self.line.termios();
        change(&mut termios);
        self.line.set_termios(termios, &mut self.effects);
    }

    fn typed(&mut self, bytes: &[u8]) {
        let count = self.line.write_master(bytes, &mut self.effects);
        assert_eq!(count, bytes.len());
    }

    fn shown(&mut self) -> String {
        let bytes = self.line.peek_output(usize::MAX);
        self.line.consume_output(bytes.len(), &mut self.effects);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn read(&mut self, max: usize) -> Option<String> {
        let readable = self.line.is_readable();
        readable.then(|| {
            let bytes = self.line.read_slave(max, &mut self.effects);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
}

#[test]
fn lines_are_edited_before_they_are_read() {
    for (typed, shown, read) in [
        ("ab\x7fc\r", "ab\x08 \x08c\r\n", "ac\n"),
        (
            "one two\x17x\n",
            "one two\x08 \x08\x08 \x08\x08 \x08x\r\n",
            "one x\n",
        ),
        (
            "abc\x15de\n",
            "abc\x08 \x08\x08 \x08\x08 \x08de\r\n",
            "de\n",
        ),
        ("a\x01\x7fb\n", "a^A\x08 \x08\x08 \x08b\r\n", "ab\n"),
        ("a\x16\x7fb\n", "a^\x08^?b\r\n", "a\x7fb\n"),
        ("ab\x12c\n", "ab^R\r\nabc\r\n", "abc\n"),
        (
            "a\tb\x7f\x7f\x7f\n",
            "a\tb\x08 \x08\x08\x08\x08\x08\x08\x08\x08\x08 \x08\r\n",
            "\n",
        ),
        ("\x7f\x15\x17x\n", "x\r\n", "x\n"),
    ] {
        let mut line = Line::new();
        line.typed(typed.as_bytes());
        assert_eq!(line.shown(), shown, "{typed:?}");
        assert_eq!(line.read(100).as_deref(), Some(read), "{typed:?}");
        assert_eq!(line.read(100), None);
    }
}

#[test]
fn characters_of_several_bytes_are_erased_as_one() {
    let mut line = Line::with(|termios| termios.c_iflag |= IUTF8);
    line.typed("aé€\x7f\x7fb\n".as_bytes());
    assert_eq!(line.read(100).as_deref(), Some("ab\n"));
    assert_eq!(line.shown(), "aé€\x08 \x08\x08 \x08b\r\n");
}

#[test]
fn a_read_takes_one_line_and_parts_of_it() {
    let mut line = Line::with(|termios| termios.c_cc[VEOL] = b';');
    line.typed(b"ab\nc;d");
    assert_eq!(line.line.input_bytes(), 5);
    assert_eq!(line.read(1).as_deref(), Some("a"));
    assert_eq!(line.read(10).as_deref(), Some("b\n"));
    assert_eq!(line.read(10).as_deref(), Some("c;"));
    assert_eq!(line.read(10), None);
    line.typed(b"\x04");
    // The end of the file is taken with the bytes before it, also if they fill the buffer.
    assert_eq!(line.read(1).as_deref(), Some("d"));
    assert_eq!(line.read(10), None);
    line.typed(b"\x04");
    assert_eq!(line.read(10).as_deref(), Some(""));
}

#[test]
fn signals_flush_unless_told_not_to() {
    let mut line = Line::new();
    line.typed(b"ab");
    line.typed(b"c\x03d\x1a");
    assert_eq!(line.effects.signals, [SIGINT, SIGTSTP]);
    // What was typed together with the signal has not been shown yet.
    assert_eq!(line.shown(), "ab^Z");
    line.typed(b"\n");
    assert_eq!(line.read(10).as_deref(), Some("\n"));
    let mut line = Line::with(|termios| termios.c_lflag |= NOFLSH);
    line.typed(b"abc\x03d\n");
    assert_eq!(line.read(10).as_deref(), Some("abcd\n"));
    let mut line = Line::with(|termios| termios.c_lflag &= !ISIG);
    line.typed(b"a\x03\n");
    assert_eq!(line.read(10).as_deref(), Some("a\x03\n"));
    assert_eq!(line.effects.signals, []);
}

#[test]
fn echo_is_as_the_modes_say() {
    let mut line = Line::with(|termios| termios.c_lflag &= !ECHO);
    line.typed(b"secret\n");
    assert_eq!(line.shown(), "");
    let mut line = Line::with(|termios| termios.c_lflag &= !ECHOCTL);
    line.typed(b"\x01\n");
    assert_eq!(line.shown(), "\x01\r\n");
    let mut line = Line::with(|termios| termios.c_lflag |= ECHOPRT);
    line.typed(b"ab\x7f\x7fc\n");
    assert_eq!(line.shown(), "ab\\ba/c\r\n");
    let mut line = Line::with(|termios| termios.c_lflag &= !ECHOKE);
    line.typed(b"ab\x15c\n");
    assert_eq!(line.shown(), "ab^U\r\nc\r\n");
}

#[test]
fn output_is_as_the_modes_say() {
    let mut line = Line::new();
    assert_eq!(line.line.write_slave(b"a\nb\tc", &mut line.effects), 5);
    assert_eq!(line.shown(), "a\r\nb\tc");
    let mut line = Line::with(|termios| termios.c_oflag |= TABDLY | OCRNL);
    line.line.write_slave(b"ab\tc\rd", &mut line.effects);
    assert_eq!(line.shown(), "ab      c\nd");
    let mut line = Line::with(|termios| termios.c_oflag &= !OPOST);
    line.line.write_slave(b"a\nb\t", &mut line.effects);
    assert_eq!(line.shown(), "a\nb\t");
}

#[test]
fn output_stops_and_starts() {
    let mut line = Line::new();
    line.typed(b"\x13ab");
    assert_eq!(line.line.write_slave(b"x", &mut line.effects), 0);
    assert_eq!(line.shown(), "");
    line.typed(b"\x11");
    assert_eq!(line.shown(), "ab");
    assert_eq!(line.line.write_slave(b"x", &mut line.effects), 1);
    line.line.hold(Held::Off, &mut line.effects);
    line.typed(b"\x11");
    assert!(line.line.is_write_blocked());
    line.line.hold(Held::On, &mut line.effects);
    assert!(!line.line.is_write_blocked());
}

#[test]
fn echoes_that_waited_have_no_more_room_than_others() {
    let mut line = Line::new();
    for _ in 0..100 {
        line.typed(b"\x13");
        line.typed(&[b'a'; 4000]);
        line.typed(b"\x11");
        assert!(line.line.output_bytes() <= 4 * INPUT_MAX);
    }
}

#[test]
fn a_signal_typed_often_is_sent_once() {
    let mut line = Line::new();
    line.typed(&b"\x1a\x03\x03".repeat(1000));
    assert_eq!(line.effects.signals, [SIGTSTP, SIGINT]);
}

#[test]
fn bytes_that_show_nothing_are_work_all_the_same() {
    let mut line = Line::with(|termios| {
        termios.c_iflag = 0;
        termios.c_oflag = OPOST | ONOCR | ONLRET;
        termios.c_lflag &= !ECHOCTL;
    });
    line.typed(&[b'\r'; 4000]);
    let before = line.line.looks();
    line.typed(b"\x12");
    assert_eq!(before - line.line.looks(), 4000);
    line.typed(&[0x12; 1024]);
    assert_eq!(line.line.looks(), 0);
    // The next piece may show the line again.
    line.shown();
    line.typed(b"\x12");
    assert_eq!(before - line.line.looks(), 4000);

    let mut line = Line::new();
    line.typed(&[b'a'; 4000]);
    line.typed(&b"\t\x7f".repeat(512));
    assert_eq!(line.line.looks(), 0);
    let mut line = Line::with(|termios| termios.c_iflag |= IUTF8);
    line.typed(&[0x80; 4000]);
    line.typed(&[0x7f; 1024]);
    assert_eq!(line.line.looks(), 0);
}

#[test]
fn a_line_that_is_too_long_loses_bytes_before_its_end() {
    let mut line = Line::new();
    line.typed(&[b'x'; 6000]);
    assert_eq!(line.read(10_000), None);
    line.typed(b"yz\n");
    let read = line.read(10_000).unwrap();
    assert_eq!(read.len(), INPUT_MAX);
    assert!(read.ends_with("x\n"), "{:?}", &read[4080..]);
}

#[test]
fn what_has_no_room_waits() {
    let mut line = Line::with(|termios| termios.c_lflag &= !(ICANON | ECHO));
    let effects = &mut line.effects;
    assert_eq!(
        line.line.write_master(&[b'x'; 40_000], effects),
        4095 + 8192
    );
    assert_eq!(line.line.write_master(b"x", effects), 0);
    let mut total = 0;
    while let Some(read) = line.read(1000) {
        total += read.len();
    }
    assert_eq!(total, 4095 + 8192);
}

#[test]
fn lines_come_and_go_with_icanon() {
    let mut line = Line::new();
    line.typed(b"ab");
    assert_eq!(line.read(10), None);
    line.change(|termios| termios.c_lflag &= !ICANON);
    assert_eq!(line.read(1).as_deref(), Some("a"));
    line.change(|termios| termios.c_lflag |= ICANON);
    assert_eq!(line.read(10).as_deref(), Some("b"));
    line.change(|termios| {
        termios.c_lflag &= !ICANON;
        termios.c_cc[VMIN] = 3;
    });
    line.typed(b"xy");
    assert!(line.line.is_readable() && !line.line.is_poll_readable());
    line.typed(b"z");
    assert!(line.line.is_poll_readable());
}

proptest! {
    /// Whatever is typed, with whatever modes: queues keep their bounds, and lines are as long as they say.
    #[test]
    fn bounds_hold(steps in proptest::collection::vec(
        (0u8..5, any::<[u32; 3]>(), any::<[u8; 19]>(), proptest::collection::vec(any::<u8>(), 0..3000)), 1..20,
    )) {
        let mut line = Line::new();
        for (what, [input, output, local], c_cc, bytes) in steps {
            match what {
                0 => line.change(|termios| {
                    *termios = INITIAL;
                    (termios.c_iflag, termios.c_oflag, termios.c_lflag) = (input, output, local);
                    termios.c_cc = c_cc;
                }),
                1 => {
                    line.line.write_master(&bytes, &mut line.effects);
                }
                2 => {
                    let count = line.line.write_slave(&bytes, &mut line.effects);
                    prop_assert!(count <= bytes.len());
                }
                3 => {
                    let max = bytes.len().max(1);
                    if line.line.is_readable() {
                        prop_assert!(line.line.read_slave(max, &mut line.effects).len() <= max);
                    }
                }
                _ => line.line.consume_output(bytes.len(), &mut line.effects),
            }
            prop_assert!(line.line.input_bytes() <= INPUT_MAX);
            prop_assert!(line.line.output_bytes() <= 4 * INPUT_MAX);
            line.effects = Effects::default();
        }
    }
}
