//! The system call table: dispatcher, compatibility page and trace vocabulary at once.

use kvmlet_abi::Errno;

use crate::cx::Cx;
use crate::mm;
use crate::outcome::{CallState, Outcome, Resume, SysResult, Wait, WaitOn};
use crate::report::CallKey;
use crate::sched::{AfterHandler, Call};
use crate::task::usage::Moves;

use super::args::Args;
use super::rows::ROWS;

/// A handler that answers at once.
pub type ValueHandler = fn(&mut Cx<'_>, &Args) -> SysResult;
/// A handler that may wait.
pub type WaitHandler = fn(&mut Cx<'_>, &Args, &CallState) -> Outcome;

/// The way that a call is answered.
#[derive(Clone, Copy, Debug)]
pub enum Handler {
    /// At once.
    Value(ValueHandler),
    /// Perhaps after a wait.
    Wait(WaitHandler),
    /// With this error number, whatever the arguments; an event is recorded.
    Refused(Errno),
    /// With `ENOSYS`, as a kernel built without the feature gives. Every C library tries the call and
    /// does without: no event.
    Absent,
}

/// The extent to which a row has Linux's behaviour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// As documented in its man page, within the sandbox's policy.
    Full,
    /// With the limits its note states.
    Partial,
    /// Refused with the error number that its note names or its handler holds; an event or a denial is
    /// recorded.
    Refused,
    /// Unknown, as to a kernel built without the feature: `ENOSYS`.
    None,
}

/// The fate of a wait that a signal handler interrupts (signal(7)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restart {
    /// `EINTR` always.
    Never,
    /// Restarted with SA_RESTART, else `EINTR`.
    Handler,
    /// As `Handler` without a deadline, `EINTR` with one (futex(2)).
    WithoutDeadline,
}

/// The part of the thread's state that a handler needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    /// The six arguments.
    Arguments,
    /// The general registers.
    Registers,
    /// Every register, extended state included.
    All,
}

/// One system call.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// x86-64 number, or one of kvmlet's own from 7000 on.
    pub nr: u16,
    /// Name as in its man page.
    pub name: &'static str,
    /// One letter an argument, for traces: d descriptor, s string, i int, u unsigned, o octal,
    /// x hexadecimal or pointer.
    pub signature: &'static str,
    /// Level of support.
    pub support: Support,
    /// Limits, for the compatibility page.
    pub note: &'static str,
    /// Restart class.
    pub restart: Restart,
    /// The part of the thread's state that the handler needs.
    pub needs: Needs,
    /// The way that it moves bytes, as far as they are counted.
    pub moves: Moves,
    /// The handler.
    pub handler: Handler,
}

impl Row {
    pub(super) const fn value(
        nr: u16,
        name: &'static str,
        signature: &'static str,
        handler: ValueHandler,
    ) -> Self {
        Self::new(nr, name, signature, Support::Full, Handler::Value(handler))
    }

    pub(super) const fn wait(
        nr: u16,
        name: &'static str,
        signature: &'static str,
        handler: WaitHandler,
    ) -> Self {
        Self::new(nr, name, signature, Support::Full, Handler::Wait(handler))
    }

    pub(super) const fn missing(nr: u16, name: &'static str, signature: &'static str) -> Self {
        Self::new(
            nr,
            name,
            signature,
            Support::None,
            Handler::Refused(Errno::ENOSYS),
        )
    }

    pub(super) const fn refused(
        nr: u16,
        name: &'static str,
        signature: &'static str,
        errno: Errno,
        note: &'static str,
    ) -> Self {
        Self::new(
            nr,
            name,
            signature,
            Support::Refused,
            Handler::Refused(errno),
        )
        .note(note)
    }

    /// A call that needs a privilege on Linux too.
    pub(super) const fn privileged(nr: u16, name: &'static str, signature: &'static str) -> Self {
        let note = "needs a privilege no program has";
        Self::refused(nr, name, signature, Errno::EPERM, note)
    }

    pub(super) const fn absent(
        nr: u16,
        name: &'static str,
        signature: &'static str,
        note: &'static str,
    ) -> Self {
        Self::new(nr, name, signature, Support::None, Handler::Absent).note(note)
    }

    const fn new(
        nr: u16,
        name: &'static str,
        signature: &'static str,
        support: Support,
        handler: Handler,
    ) -> Self {
        let (restart, needs) = (Restart::Never, Needs::Arguments);
        Self {
            nr,
            name,
            signature,
            support,
            note: "",
            restart,
            needs,
            moves: Moves::None,
            handler,
        }
    }

    /// Its limits as the compatibility page has them: a refusal begins with its error number.
    #[must_use]
    pub fn limits(&self) -> String {
        match self.handler {
            Handler::Refused(errno) if self.support == Support::Refused => {
                format!("{}: {}", errno.name(), self.note)
            }
            _ => self.note.to_owned(),
        }
    }

    pub(super) const fn partial(mut self, note: &'static str) -> Self {
        self.support = Support::Partial;
        self.note = note;
        self
    }

    /// The handler looks at the arguments for the error that Linux would give, and always gives one.
    pub(super) const fn refuses(mut self, note: &'static str) -> Self {
        self.support = Support::Refused;
        self.note = note;
        self
    }

    pub(super) const fn note(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }

    pub(super) const fn restarts(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    pub(super) const fn moves(mut self, moves: Moves) -> Self {
        self.moves = moves;
        self
    }

    pub(super) const fn registers(mut self) -> Self {
        self.needs = Needs::Registers;
        self
    }

    /// It changes what the stub answers by itself: its thread leaves the guest, and finds the stub told.
    pub(super) const fn stub_answers(self) -> Self {
        self.registers()
    }

    pub(super) const fn all_registers(mut self) -> Self {
        self.needs = Needs::All;
        self
    }
}

/// Numbers of x86-64 calls end below this.
const NR_END: usize = 512;
/// Numbers of kvmlet's own calls: outside Linux's table, and without the bit that marks x32 calls.
const OWN_FIRST: usize = 7000;
const OWN_END: usize = OWN_FIRST + 8;
const NO_ROW: u16 = u16::MAX;

/// The place of a number in [`INDEX`].
const fn slot(nr: usize) -> Option<usize> {
    match nr {
        0..NR_END => Some(nr),
        OWN_FIRST..OWN_END => Some(nr - OWN_FIRST + NR_END),
        _ => None,
    }
}

/// Index of each number's row.
#[allow(clippy::indexing_slicing, clippy::panic)] // evaluated by the compiler
static INDEX: [u16; NR_END + OWN_END - OWN_FIRST] = {
    let mut index = [NO_ROW; NR_END + OWN_END - OWN_FIRST];
    let mut at = 0;
    while at < ROWS.len() {
        match slot(ROWS[at].nr as usize) {
            Some(slot) => index[slot] = at as u16,
            None => panic!("a number outside both blocks"),
        }
        at += 1;
    }
    index
};

/// The row of a call number, if the table has one.
#[must_use]
pub fn row(nr: u64) -> Option<&'static Row> {
    let index = *INDEX.get(slot(usize::try_from(nr).ok()?)?)?;
    ROWS.get(usize::from(index))
}

/// True if a call can be made while its thread is still inside the guest.
///
/// Its row needs the arguments only, and it is one of Linux's.
#[must_use]
pub fn is_remote(nr: u64) -> bool {
    row(nr).is_some_and(|row| row.needs == Needs::Arguments && usize::from(row.nr) < OWN_FIRST)
}

/// All rows, by number.
#[must_use]
pub fn rows() -> &'static [Row] {
    ROWS
}

/// Makes a call.
pub fn call(cx: &mut Cx<'_>, call: &Call, state: &CallState) -> Outcome {
    let Some(row) = row(call.nr) else {
        cx.host
            .report
            .unsupported("syscall", "a number without a row".to_owned());
        return Outcome::Done(Err(Errno::ENOSYS));
    };
    if let Some((rest, answer)) = state.populate {
        let populated = mm::go_on_populating(cx, rest).map(|()| answer);
        return unless_left(cx, populated, state);
    }
    let args = Args::of(&call.args);
    match row.handler {
        Handler::Value(handler) => {
            let result = handler(cx, args);
            unless_left(cx, result, state)
        }
        Handler::Wait(handler) => {
            let mut outcome = handler(cx, args, state);
            match &mut outcome {
                Outcome::Done(result) => cx.kernel.count_io(cx.tid, row.moves, *result),
                Outcome::Wait(wait) => {
                    // A signal may end it with what it has moved.
                    if let Resume::Retry(state) = &mut wait.resume {
                        state.moves = row.moves;
                    }
                }
                Outcome::Again(state) => state.moves = row.moves,
                Outcome::Registers | Outcome::Gone => {}
            }
            outcome
        }
        Handler::Absent => Outcome::Done(Err(Errno::ENOSYS)),
        Handler::Refused(errno) => {
            cx.host.report.unsupported(row.name, String::new());
            Outcome::Done(Err(errno))
        }
    }
}

/// A call's result, unless it has left pages to be faulted in.
fn unless_left(cx: &mut Cx<'_>, result: SysResult, state: &CallState) -> Outcome {
    match (result, cx.host.budget.take_left()) {
        (Ok(answer), Some(rest)) => Outcome::Again(CallState {
            populate: Some((rest, answer)),
            ..state.kept(0)
        }),
        (result, _) => Outcome::Done(result),
    }
}

/// The key by which a call is counted.
#[must_use]
pub fn key(nr: u64) -> CallKey {
    let place = usize::try_from(nr).ok().and_then(slot);
    let index = place.and_then(|place| INDEX.get(place).copied());
    let row = index.and_then(|index| Some((index, ROWS.get(usize::from(index))?)));
    row.map_or(CallKey::default(), |(index, row)| CallKey {
        place: index.saturating_add(1),
        nr: row.nr,
    })
}

/// The fate of a wait that a handler with SA_RESTART interrupts.
#[must_use]
pub fn after_handler(call: &Call, wait: &Wait) -> AfterHandler {
    if let WaitOn::PiMutex(..) | WaitOn::Requeue(..) = wait.on {
        return AfterHandler::Restarts;
    }
    let restarts = match row(call.nr).map(|row| row.restart) {
        Some(Restart::Handler) => !matches!(wait.on, WaitOn::Nothing),
        Some(Restart::WithoutDeadline) => wait.deadline_ns.is_none(),
        Some(Restart::Never) | None => false,
    };
    if restarts {
        AfterHandler::MayRestart
    } else {
        AfterHandler::Fails
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_do_not_exist_share_a_counter() {
        let mut report = crate::report::Report::default();
        for nr in 10_000..20_000 {
            report.count_call(key(nr));
        }
        let counted: Vec<_> = report.calls().map(|c| (c.call, c.count)).collect();
        assert_eq!(counted, [(key(u64::MAX), 10_000)]);
        assert_eq!(key(39).nr(), Some(39));
    }

    #[test]
    fn rows_are_in_order_and_found() {
        for pair in ROWS.windows(2) {
            assert!(
                pair[0].nr < pair[1].nr,
                "{} then {}",
                pair[0].name,
                pair[1].name
            );
        }
        for entry in ROWS {
            assert_eq!(
                row(u64::from(entry.nr)).map(|found| found.name),
                Some(entry.name)
            );
            assert!(entry.signature.len() <= 6, "{}", entry.name);
            let answers = matches!(entry.handler, Handler::Value(_) | Handler::Wait(_));
            match entry.support {
                Support::Full | Support::Partial => assert!(answers, "{}", entry.name),
                Support::None => assert!(!answers, "{}", entry.name),
                Support::Refused => {}
            }
            let limited = matches!(entry.support, Support::Partial | Support::Refused);
            assert!(!limited || !entry.note.is_empty(), "{}", entry.name);
        }
        for nr in [335, 511, 512, 6999, 7005, 7008, 0x4000_1b58, u64::MAX] {
            assert!(row(nr).is_none(), "{nr}");
        }
    }
}
