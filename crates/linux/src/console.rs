//! The caller's terminal, and the pseudo-terminal that stands for it: bytes, sizes and stops go from one to the
//! other. The host's is raw meanwhile, so that its keys are the program's own.

use std::os::fd::AsFd;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::poll::{POLLIN, POLLOUT};
use kvmlet_abi::linux::signal::SIGCONT;
use kvmlet_abi::linux::termios::ECHO;
use kvmlet_hostfs::stdio::{Inherited, Stream};
use kvmlet_hostfs::stream::{self, Moved};
use kvmlet_hostfs::terminal::{self, KernelTermios, When};
use kvmlet_mem::GuestMemory;

use crate::clock::{self, NSEC_PER_SEC};
use crate::host::{Host, HostId};
use crate::kernel::{Job, Kernel, Outside, Pid};
use crate::tty::{Effects, PtyEnd};

/// The key that interrupts, in a terminal that nobody has set otherwise.
const CTRL_C: u8 = 3;
/// Interrupts without any effect that end a run.
const INTERRUPTS: usize = 3;
/// The time within which they come, in nanoseconds.
const WITHIN_NS: u64 = NSEC_PER_SEC;
/// The time that a program has to heed the last one, in nanoseconds.
const GRACE_NS: u64 = NSEC_PER_SEC / 10;
/// Bytes moved at once.
const CHUNK: usize = 4096;

/// The host's side of a pseudo-terminal whose master is ours.
#[derive(Debug)]
pub struct Console {
    /// The caller's terminal, for reading.
    input: HostId,
    /// The same, for writing.
    output: HostId,
    /// The number of the pseudo-terminal.
    index: u32,
    /// The end that stays open as long as the program.
    master: PtyEnd,
    /// The settings of the host's terminal while it is ours.
    raw: KernelTermios,
    /// True while it has them.
    is_raw: bool,
    /// The host's terminal takes no more at the moment.
    is_blocked: bool,
    /// When Ctrl-C was typed last, in nanoseconds, and [`Kernel::heeded`] then.
    interrupts: Vec<u64>,
    heeded: u64,
}

/// Gives descriptors of a new process that are the caller's terminal a pseudo-terminal instead. Both standard input
/// and standard output have to be that terminal. Nobody else that writes to it in the same pipeline finds it raw then.
///
/// # Errors
/// The host's; `ENOMEM` at the memory limit.
pub fn set_up(
    kernel: &mut Kernel,
    memory: &mut GuestMemory,
    host: &mut Host,
    pid: Pid,
    inherited: &Inherited,
) -> Result<(), Errno> {
    let on_terminal = inherited.on_terminal();
    if !on_terminal.contains(&true) {
        return Ok(());
    }
    let mut ids = Vec::new();
    for (number, _) in (0u8..).zip(on_terminal).filter(|(_, is_on)| *is_on) {
        if let Stream::Host { fd, own, kind, .. } = inherited.take(number)? {
            ids.push((number, host.insert_stream(fd, own, kind)));
        }
    }
    let [(_, input), (_, output), ..] = ids.as_slice() else {
        return Ok(());
    };
    let (input, output) = (*input, *output);
    let settings = terminal::get(host.fd(input)?.as_fd())?;
    let size = terminal::window_size(host.fd(input)?.as_fd())?;
    let master = kernel.open_pty(memory)?;
    let index = master.index;
    let pty = kernel.ptys.get_mut(index)?;
    let mut effects = Effects::default();
    let line = KernelTermios {
        c_line: 0,
        ..settings
    };
    pty.set_termios(line, &mut effects);
    pty.size = size;
    let numbers: Vec<u8> = ids.iter().map(|(number, _)| *number).collect();
    kernel.give_slave(memory, pid, index, &numbers)?;
    if terminal::is_orphaned() {
        kernel.outside = Outside::Nobody;
    }
    host.console = Some(Console {
        input,
        output,
        index,
        master,
        raw: settings.raw(),
        is_raw: false,
        is_blocked: false,
        interrupts: Vec::new(),
        heeded: 0,
    });
    Ok(())
}

/// The things that a console asks of who runs the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// Nothing.
    None,
    /// To be stopped, as the program has been.
    Stop,
    /// To end the run: Ctrl-C has no effect.
    End,
}

/// Stops the rest of the caller's job, and says if somebody could continue it. The process itself stops by other
/// means.
#[must_use]
pub fn stop_job() -> bool {
    let can_go_on = !terminal::is_orphaned();
    if can_go_on {
        terminal::stop_job();
    }
    can_go_on
}

/// A console together with what it works on.
pub struct Pump<'a> {
    /// The kernel value.
    pub(crate) kernel: &'a mut Kernel,
    /// Guest memory.
    pub(crate) memory: &'a mut GuestMemory,
    /// The host's side.
    pub(crate) host: &'a mut Host,
}

impl Pump<'_> {
    /// Takes the console out while it is worked with.
    fn with<T>(&mut self, act: impl FnOnce(&mut Self, &mut Console) -> T) -> Option<T> {
        let mut console = self.host.console.take()?;
        let done = act(self, &mut console);
        self.host.console = Some(console);
        Some(done)
    }

    /// Shows what the program has written, as much as the host's terminal takes.
    pub fn show(&mut self) {
        self.with(|this, console| console.show(this));
    }

    /// Types what has come from the host's terminal, and shows what waits.
    pub fn ready(&mut self, now_ns: u64) {
        self.with(|this, console| {
            console.is_blocked = false;
            console.type_keys(this, now_ns, Echo::Ours);
            console.show(this);
        });
    }

    /// Brings the host's terminal and the program's together: raw in the foreground, and one size.
    pub fn tend(&mut self) -> Wish {
        self.with(|this, console| {
            console.is_blocked = false;
            console.tend(this);
            console.show(this);
            console.wish(this)
        })
        .unwrap_or(Wish::None)
    }

    /// True if the program has been stopped, and so is to be the process.
    pub fn wants_stop(&mut self) -> bool {
        self.with(|this, console| console.wish(this) == Wish::Stop)
            .unwrap_or(false)
    }

    /// True if all that the program has written is shown.
    pub fn is_drained(&mut self) -> bool {
        self.with(|this, console| console.is_drained(this.kernel))
            .unwrap_or(true)
    }

    /// Puts the host's terminal back, before a stop or at the end.
    pub fn restore(&mut self) {
        self.host.settings.restore();
        if let Some(console) = &mut self.host.console {
            console.is_raw = false;
        }
    }

    /// The process has been continued, and so is the program if it was stopped.
    pub fn go_on(&mut self) {
        self.tend();
        let main = self.kernel.processes.get(&self.kernel.main);
        let Some(main) = main.filter(|main| matches!(main.job, Job::Stopped { .. })) else {
            return;
        };
        let own = main.pgid;
        let foreground = self.with(|this, console| {
            let pty = this.kernel.ptys.get(console.index).ok()?;
            pty.foreground.filter(|group| *group != own)
        });
        for group in [Some(own), foreground.flatten()].into_iter().flatten() {
            self.kernel.send_to_group(group, SIGCONT);
        }
    }
}

impl Console {
    /// Host descriptors to wait for, with their poll(2) events.
    pub fn waits(&self, kernel: &Kernel) -> [Option<(HostId, i16)>; 2] {
        let Ok(pty) = kernel.ptys.get(self.index) else {
            return [None, None];
        };
        let types = self.is_raw && pty.line.room_for_master() > 0;
        let shows = self.is_blocked && pty.line.output_bytes() > 0;
        [
            types.then_some((self.input, POLLIN)),
            shows.then_some((self.output, POLLOUT)),
        ]
    }

    /// True for its host descriptors.
    pub fn has(&self, id: HostId) -> bool {
        id == self.input || id == self.output
    }

    /// True if the program has written what can be shown.
    pub fn has_news(&self, kernel: &Kernel) -> bool {
        let pty = kernel.ptys.get(self.index);
        !self.is_blocked && pty.is_ok_and(|pty| pty.line.output_bytes() > 0)
    }

    /// True if all that the program has written is shown.
    pub fn is_drained(&self, kernel: &Kernel) -> bool {
        let pty = kernel.ptys.get(self.index);
        pty.is_ok_and(|pty| pty.line.output_bytes() == 0) || pty.is_err()
    }

    fn show(&mut self, pump: &mut Pump<'_>) {
        while self.has_news(pump.kernel) {
            if self.show_some(pump).is_err() {
                // The host's terminal has gone: nobody sees it any more.
                let mut effects = Effects::default();
                if let Ok(pty) = pump.kernel.ptys.get_mut(self.index) {
                    pty.line.drop_output(&mut effects);
                }
                pump.kernel.apply_effects(self.index, effects);
                return;
            }
        }
    }

    fn show_some(&mut self, pump: &mut Pump<'_>) -> Result<(), Errno> {
        let file = pump.host.get(self.output)?;
        if terminal::is_background(file.fd.as_fd())
            && terminal::get(file.fd.as_fd()).is_ok_and(|termios| termios.stops_output())
        {
            self.is_blocked = true;
            return Ok(());
        }
        let bytes = pump.kernel.ptys.get(self.index)?.line.peek_output(CHUNK);
        let (piece, taken) = match self.is_raw {
            true => (bytes.as_slice(), None),
            false => cooked(&bytes),
        };
        let moved = stream::write(file, piece)?;
        let Moved::Bytes(count) = moved else {
            self.is_blocked = true;
            return Ok(());
        };
        let mut effects = Effects::default();
        let count = taken.unwrap_or(count);
        let line = &mut pump.kernel.ptys.get_mut(self.index)?.line;
        line.consume_output(count, &mut effects);
        pump.kernel.apply_effects(self.index, effects);
        Ok(())
    }

    fn type_keys(&mut self, pump: &mut Pump<'_>, now_ns: u64, echo: Echo) {
        if !self.is_raw {
            return;
        }
        let Ok(pty) = pump.kernel.ptys.get(self.index) else {
            return;
        };
        let mut keys = vec![0u8; pty.line.room_for_master().min(CHUNK)];
        if keys.is_empty() {
            return;
        }
        let read = pump.host.get(self.input);
        match read.and_then(|file| stream::read(file, &mut keys)) {
            Ok(Moved::Bytes(0)) | Err(_) => self.hang_up(pump),
            Ok(Moved::Bytes(count)) => {
                keys.truncate(count);
                for _ in keys.iter().filter(|key| **key == CTRL_C) {
                    self.note_interrupt(pump.kernel.heeded, now_ns);
                }
                let mut effects = Effects::default();
                if let Ok(pty) = pump.kernel.ptys.get_mut(self.index) {
                    let termios = *pty.line.termios();
                    if echo == Echo::Theirs {
                        let silent = KernelTermios {
                            c_lflag: termios.c_lflag & !ECHO,
                            ..termios
                        };
                        pty.line.set_termios(silent, &mut effects);
                    }
                    pty.line.write_master(&keys, &mut effects);
                    if echo == Echo::Theirs {
                        pty.line.set_termios(termios, &mut effects);
                    }
                }
                pump.kernel.apply_effects(self.index, effects);
            }
            Ok(Moved::Nothing | Moved::NotYet) => {}
        }
    }

    /// The host's terminal has gone: so does the program's, as Linux hangs up the one that is behind it.
    fn hang_up(&mut self, pump: &mut Pump<'_>) {
        self.is_raw = false;
        if pump.kernel.ptys.is_shown(self.index) {
            pump.kernel.close_pty(pump.memory, self.master);
        }
    }

    fn note_interrupt(&mut self, heeded: u64, now_ns: u64) {
        if heeded != self.heeded {
            self.interrupts.clear();
            self.heeded = heeded;
        }
        self.interrupts
            .retain(|at_ns| now_ns.saturating_sub(*at_ns) < WITHIN_NS);
        self.interrupts.push(now_ns);
    }

    fn wish(&self, pump: &Pump<'_>) -> Wish {
        if let Some(last_ns) = self.interrupts.last()
            && self.interrupts.len() >= INTERRUPTS
            && self.heeded == pump.kernel.heeded
            && clock::monotonic_ns(pump.host).saturating_sub(*last_ns) >= GRACE_NS
        {
            return Wish::End;
        }
        let main = pump.kernel.processes.get(&pump.kernel.main);
        match main.map(|main| main.job) {
            Some(Job::Stopped { .. }) => Wish::Stop,
            _ => Wish::None,
        }
    }

    fn tend(&mut self, pump: &mut Pump<'_>) {
        let Ok(fd) = pump.host.fd(self.input) else {
            return;
        };
        let Ok(settings) = terminal::get(fd.as_fd()) else {
            return self.hang_up(pump);
        };
        let is_ours = !terminal::is_background(fd.as_fd());
        if is_ours && settings != self.raw {
            let has_echoed = settings.echoes();
            let set = pump.host.settings.set(&fd, &self.raw, When::Now);
            self.is_raw = set.is_ok();
            if has_echoed {
                let now_ns = clock::monotonic_ns(pump.host);
                self.type_keys(pump, now_ns, Echo::Theirs);
            }
        } else if !is_ours && self.is_raw {
            pump.host.settings.restore();
            self.is_raw = false;
        }
        if let Ok(size) = terminal::window_size(fd.as_fd()) {
            // It changes nothing if it is the same.
            let _ = pump.kernel.resize_pty(self.index, size);
        }
    }
}

/// The one who shows typed keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Echo {
    /// The program's terminal.
    Ours,
    /// The host's, which was not raw yet when they were typed.
    Theirs,
}

/// The first bytes of `bytes` for a terminal that makes two of a newline itself, and the number of bytes that they
/// stand for if that differs.
fn cooked(bytes: &[u8]) -> (&[u8], Option<usize>) {
    let at = bytes.windows(2).position(|pair| pair == b"\r\n");
    match at {
        Some(0) => (bytes.get(1..2).unwrap_or_default(), Some(2)),
        Some(at) => (bytes.get(..at).unwrap_or_default(), None),
        None => (bytes, None),
    }
}
