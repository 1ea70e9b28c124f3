//! Lines for the log, written by a thread of their own: a reader that stands still holds nobody up.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::fork::{Output, Refusal};
use crate::metrics::Metrics;

/// Lines that wait to be written; more are dropped, and counted.
const LINES_MAX: usize = 4096;
/// Of them, those of the program: one that writes without end leaves room for ours, the access log among them.
const PROGRAM_LINES_MAX: usize = LINES_MAX / 2;
/// Refusals of one program that are told; it can think of any number. A reload begins anew, for storages a new server.
const DENIED_MAX: usize = 1024;
/// A longer line of the program's is cut into several.
const LINE_BYTES_MAX: usize = 4096;

/// The stream that a line is written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum To {
    Stdout,
    Stderr,
}

/// Who wrote a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum By {
    Us,
    Program,
}

type Line = (By, To, String);

/// Where lines go.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    lines: SyncSender<Line>,
    /// Lines of the program that wait.
    of_program: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
    writer: Arc<Mutex<Option<JoinHandle<()>>>>,
    /// The refusals that have been told, by program.
    denied: Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>,
}

/// The things to be told of a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum News {
    None,
    Refusal,
    /// It, and that it is the last one.
    Last,
}

impl Log {
    /// Writes to standard output and error.
    pub(crate) fn start(metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let (lines, waiting) = sync_channel(LINES_MAX);
        let of_program = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&of_program);
        let writer = std::thread::Builder::new()
            .name("kvmlet-log".to_owned())
            .stack_size(256 << 10)
            .spawn(move || write_all(&waiting, &counted))?;
        Ok(Self {
            lines,
            of_program,
            metrics,
            writer: Arc::new(Mutex::new(Some(writer))),
            denied: Arc::default(),
        })
    }

    pub(crate) fn line(&self, to: To, text: String) {
        if self.lines.try_send((By::Us, to, text)).is_err() {
            self.note_dropped();
        }
    }

    /// A line of the program's.
    fn line_of_program(&self, text: String) {
        let before = self.of_program.fetch_add(1, Ordering::Relaxed);
        let line = (By::Program, To::Stderr, text);
        if before >= PROGRAM_LINES_MAX || self.lines.try_send(line).is_err() {
            self.of_program.fetch_sub(1, Ordering::Relaxed);
            self.note_dropped();
        }
    }

    /// Each refusal is told once, and not without end: a program that has used up its part takes none from others.
    fn news(&self, program: &str, refusal: &str) -> News {
        let mut denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        let told = denied.entry(program.to_owned()).or_default();
        if told.len() >= DENIED_MAX || !told.insert(refusal.to_owned()) {
            return News::None;
        }
        match told.len() {
            DENIED_MAX => News::Last,
            _ => News::Refusal,
        }
    }

    /// Tells the refusals of a program again, which has been started anew.
    pub(crate) fn forget_denials(&self, program: &str) {
        let mut denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        denied.remove(program);
    }

    fn note_dropped(&self) {
        let dropped = &self.metrics.log_lines_dropped;
        dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// A message of ours.
    pub(crate) fn say(&self, text: &str) {
        self.line(To::Stderr, format!("kvmlet: {}", printable(text)));
    }

    /// Gives the writer a moment for what is left.
    pub(crate) fn close(self, patience: Duration) {
        let Self { lines, writer, .. } = self;
        drop(lines);
        let writer = writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let until = Instant::now() + patience;
        while let Some(writer) = &writer
            && !writer.is_finished()
            && Instant::now() < until
        {
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }
}

fn write_all(waiting: &Receiver<Line>, of_program: &AtomicUsize) {
    while let Ok((by, to, mut text)) = waiting.recv() {
        if by == By::Program {
            of_program.fetch_sub(1, Ordering::Relaxed);
        }
        text.push('\n');
        // Closed or full: there is nowhere else to say so.
        let _ = match to {
            To::Stdout => {
                let mut stdout = std::io::stdout().lock();
                stdout
                    .write_all(text.as_bytes())
                    .and_then(|()| stdout.flush())
            }
            To::Stderr => std::io::stderr().lock().write_all(text.as_bytes()),
        };
    }
}

/// Characters that make a line look like another one: they control a terminal, or the order in which it shows the rest.
fn is_misleading(char: char) -> bool {
    let reorders =
        matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    char.is_control() || reorders
}

/// `text` without such characters: it comes from a guest or a client, and must not forge lines of ours.
pub(crate) fn printable(text: &str) -> String {
    if !text.chars().any(is_misleading) {
        return text.to_owned();
    }
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\t' => safe.push('\t'),
            char if char.is_control() => {
                safe.push_str(&format!("\\x{:02x}", u32::from(char)));
            }
            char if is_misleading(char) => {
                safe.push_str(&format!("\\u{{{:04x}}}", u32::from(char)));
            }
            char => safe.push(char),
        }
    }
    safe
}

/// The name of a program as lines begin with it.
pub(crate) fn named(program: &str) -> String {
    if program.is_empty() {
        String::new()
    } else {
        format!("{program} ")
    }
}

/// What the program writes while it answers a request, as lines that say which.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    log: &'a Log,
    program: String,
    prefix: String,
    partial: [Vec<u8>; 2],
    /// Refusals so far.
    denials: u64,
}

impl<'a> Lines<'a> {
    /// Of the program with this name, empty if it is the only one.
    pub(crate) fn new(log: &'a Log, program: &str, fork: usize, id: &str) -> Self {
        Self::of(
            log,
            program,
            format!("[{}fork {fork} {id}] ", named(program)),
        )
    }

    /// Of the program before it is frozen.
    pub(crate) fn of_start(log: &'a Log, program: &str) -> Self {
        Self::of(log, program, format!("[{}start] ", named(program)))
    }

    /// Of a storage.
    pub(crate) fn of_storage(log: &'a Log, storage: &str) -> Self {
        let storage = format!("storage {storage}");
        Self::of(log, &storage, format!("[{storage}] "))
    }

    fn of(log: &'a Log, program: &str, prefix: String) -> Self {
        Self {
            log,
            program: program.to_owned(),
            prefix,
            partial: [Vec::new(), Vec::new()],
            denials: 0,
        }
    }

    /// Refusals so far.
    pub(crate) fn denials(&self) -> u64 {
        self.denials
    }

    fn write(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = text.strip_suffix('\r').unwrap_or(&text);
        let text = format!("{}{}", self.prefix, printable(text));
        self.log.line_of_program(text);
    }
}

impl Output for Lines<'_> {
    fn denied(&mut self, refusal: &Refusal) {
        self.denials += 1;
        let Refusal { what, only_asked } = refusal;
        if *only_asked {
            return;
        }
        let news = self.log.news(&self.program, what);
        if news != News::None {
            let text = format!("{}denied: {}", self.prefix, printable(what));
            self.log.line(To::Stderr, text);
        }
        if news == News::Last {
            let text = format!(
                "{}denied: {DENIED_MAX} different things so far; more are not told",
                self.prefix
            );
            self.log.line(To::Stderr, text);
        }
    }

    fn wrote(&mut self, stream: u8, bytes: &[u8]) {
        let index = usize::from(stream == 2);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            for part in piece.chunks(LINE_BYTES_MAX) {
                let mut line = std::mem::take(&mut self.partial[index]);
                line.extend_from_slice(part);
                match line.strip_suffix(b"\n") {
                    Some(line) => self.write(line),
                    None if line.len() >= LINE_BYTES_MAX => self.write(&line),
                    None => self.partial[index] = line,
                }
            }
        }
    }
}

impl Drop for Lines<'_> {
    fn drop(&mut self) {
        for line in std::mem::take(&mut self.partial) {
            if !line.is_empty() {
                self.write(&line);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A log whose lines can be looked at.
    pub(crate) fn kept() -> (Log, Receiver<Line>) {
        let (lines, waiting) = sync_channel(LINES_MAX);
        let log = Log {
            lines,
            of_program: Arc::default(),
            metrics: Arc::default(),
            writer: Arc::default(),
            denied: Arc::default(),
        };
        (log, waiting)
    }

    #[test]
    fn lines_are_whole_and_cannot_be_forged() {
        let (log, waiting) = kept();
        let mut lines = Lines::new(&log, "", 3, "id");
        lines.wrote(1, b"ab");
        lines.wrote(2, b"error\x1b[1m\r\n");
        lines.wrote(1, b"c\n\nlast");
        drop(lines);
        let all: Vec<String> = waiting.try_iter().map(|(_, _, line)| line).collect();
        assert_eq!(
            all,
            [
                "[fork 3 id] error\\x1b[1m",
                "[fork 3 id] abc",
                "[fork 3 id] ",
                "[fork 3 id] last"
            ]
        );
    }

    #[test]
    fn a_refusal_is_told_once() {
        let (log, waiting) = kept();
        let refusal = |what: String| Refusal {
            what,
            only_asked: false,
        };
        for id in ["one", "two"] {
            let mut lines = Lines::new(&log, "shop", 0, id);
            lines.denied(&refusal("open /x (ENOENT)".to_owned()));
            lines.denied(&Refusal {
                only_asked: true,
                ..refusal("stat /y (ENOENT)".to_owned())
            });
            assert_eq!(lines.denials(), 2);
        }
        let all: Vec<String> = waiting.try_iter().map(|(_, _, line)| line).collect();
        assert_eq!(all, ["[shop fork 0 one] denied: open /x (ENOENT)"]);
        let mut lines = Lines::new(&log, "", 0, "id");
        for number in 0..2 * DENIED_MAX {
            lines.denied(&refusal(format!("open /{number}")));
        }
        let all: Vec<String> = waiting.try_iter().map(|(_, _, line)| line).collect();
        assert_eq!(all.len(), DENIED_MAX + 1);
        assert!(all[DENIED_MAX].contains("more are not told"));
        assert_eq!(lines.denials(), 2 * DENIED_MAX as u64);
        // It has taken nothing from others, and is told of again when it is started anew.
        Lines::new(&log, "shop", 0, "id").denied(&refusal("open /z".to_owned()));
        log.forget_denials("");
        lines.denied(&refusal("open /1".to_owned()));
        let all: Vec<String> = waiting.try_iter().map(|(_, _, line)| line).collect();
        assert_eq!(
            all,
            [
                "[shop fork 0 id] denied: open /z",
                "[fork 0 id] denied: open /1"
            ]
        );
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        let (log, waiting) = kept();
        let mut lines = Lines::new(&log, "", 0, "id");
        lines.wrote(1, &[b'a'; 3 * LINE_BYTES_MAX + 7]);
        drop(lines);
        assert_eq!(waiting.try_iter().count(), 4);
    }

    #[test]
    fn a_program_that_writes_without_end_leaves_room_for_our_lines() {
        let (log, waiting) = kept();
        let mut lines = Lines::new(&log, "", 0, "id");
        for _ in 0..2 * LINES_MAX {
            lines.wrote(1, b"x\n");
        }
        log.line(To::Stdout, "ours".to_owned());
        let last = waiting.try_iter().last();
        assert_eq!(last, Some((By::Us, To::Stdout, "ours".to_owned())));
    }

    #[test]
    fn what_changes_the_order_of_a_line_is_shown_as_a_number() {
        assert_eq!(printable("a\u{202e}b\u{2028}"), "a\\u{202e}b\\u{2028}");
        assert_eq!(printable("\t\u{e9}\u{9b}"), "\t\u{e9}\\x9b");
    }

    #[test]
    fn more_lines_than_can_wait_are_counted() {
        let (log, _waiting) = kept();
        for _ in 0..LINES_MAX + 3 {
            log.line(To::Stdout, String::new());
        }
        let dropped = log.metrics.log_lines_dropped.load(Ordering::Relaxed);
        assert_eq!(dropped, 3);
    }
}
