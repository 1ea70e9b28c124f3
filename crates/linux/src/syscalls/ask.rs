//! kvmlet's own calls: questions to others on the host, by their names.
//!
//! To ask and to take the answer are two calls, so that a signal handler between them has nothing asked twice.

use std::sync::Arc;

use imbl::Vector;
use kvmlet_abi::{Errno, Gva};

use crate::asks::NAME_MAX;
use crate::channel::MESSAGE_MAX;
use crate::cx::Cx;
use crate::outcome::{CallState, Outcome, Resume, Source, SysResult, Wait, WaitOn};
use crate::syscalls::args::{Args, Len, Ptr, Str, Word};

/// kvmlet_answer: fail with `EAGAIN` instead of waiting.
const NOWAIT: u64 = 1;
/// kvmlet_answer: only the length; the answer stays.
const PEEK: u64 = 2;
/// kvmlet_answer: the answer is not wanted any more.
pub(super) const DROP: u64 = 4;

fn wait(source: Source, state: &CallState) -> Outcome {
    Outcome::Wait(Wait {
        on: WaitOn::Sources(Vector::unit(source)),
        deadline_ns: None,
        resume: Resume::Retry(state.clone()),
    })
}

/// kvmlet_ask(name, buf, len_bytes): sends a question to whoever has that name, and returns a ticket for its answer.
/// Waits while too many are open. `ENOENT` if nobody has the name.
pub fn sys_kvmlet_ask(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Str(name), Ptr(buf), Len(len_bytes)) = args.decode();
    if let Err(errno) = cx.kernel.channel.attached() {
        return Outcome::Done(Err(errno));
    }
    let to = match find(cx, name) {
        Ok(to) => to,
        Err(errno) => return Outcome::Done(Err(errno)),
    };
    let len_bytes = match usize::try_from(len_bytes) {
        Ok(len_bytes) if len_bytes <= MESSAGE_MAX => len_bytes,
        _ => return Outcome::Done(Err(Errno::EMSGSIZE)),
    };
    if !cx.kernel.channel.asks.has_room() {
        return wait(Source::AskRoom, state);
    }
    Outcome::Done(ask(cx, to, buf, len_bytes))
}

fn find(cx: &mut Cx<'_>, name: Gva) -> Result<usize, Errno> {
    match cx.read_cstr(name, NAME_MAX.saturating_add(1)) {
        Ok(name) => cx.kernel.channel.asks.find(&name).ok_or(Errno::ENOENT),
        Err(Errno::ENAMETOOLONG) => Err(Errno::ENOENT),
        Err(errno) => Err(errno),
    }
}

fn ask(cx: &mut Cx<'_>, to: usize, buf: Gva, len_bytes: usize) -> SysResult {
    let charged = cx.machine.memory.charge_kernel(len_bytes as u64);
    charged.map_err(|_| Errno::ENOMEM)?;
    let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, len_bytes).collect();
    let read = match Arc::get_mut(&mut bytes) {
        Some(into) => cx.read(buf, into),
        None => Err(Errno::ENOMEM),
    };
    if let Err(errno) = read {
        cx.machine.memory.uncharge_kernel(len_bytes as u64);
        return Err(errno);
    }
    Ok(cx.kernel.channel.asks.ask(to, bytes))
}

/// kvmlet_answer(ticket, buf, cap_bytes, flags): waits for the answer to a question, moves it to `buf`, and returns its
/// length. One that is longer than `cap_bytes` gives `EMSGSIZE` and stays.
///
/// `EINVAL` for no ticket. There will be no answer after `EPIPE`: who was asked has ended meanwhile. Nor after `EPROTO`:
/// it went on without one. Nor after `ETIMEDOUT`, after `EBUSY` (too many wait), and after `ENOMEM`.
pub fn sys_kvmlet_answer(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Word(ticket), Ptr(buf), Len(cap_bytes), Word(flags)) = args.decode();
    if let Err(errno) = cx.kernel.channel.attached() {
        return Outcome::Done(Err(errno));
    }
    if flags & !(NOWAIT | PEEK | DROP) != 0 {
        return Outcome::Done(Err(Errno::EINVAL));
    }
    let answer = match cx.kernel.channel.asks.answer_of(ticket) {
        Err(errno) => return Outcome::Done(Err(errno)),
        Ok(_) if flags & DROP != 0 => Some(Ok(Arc::from([]))),
        Ok(answer) => answer.cloned(),
    };
    let done = match answer {
        None if flags & NOWAIT != 0 => return Outcome::Done(Err(Errno::EAGAIN)),
        None => return wait(Source::Answer(ticket), state),
        Some(_) if flags & DROP != 0 => Ok(0),
        Some(Ok(bytes)) if flags & PEEK != 0 => return Outcome::Done(Ok(bytes.len() as u64)),
        Some(Ok(bytes)) if bytes.len() as u64 > cap_bytes => {
            return Outcome::Done(Err(Errno::EMSGSIZE));
        }
        Some(Ok(bytes)) => match cx.write(buf, &bytes) {
            Ok(()) => Ok(bytes.len() as u64),
            Err(errno) => return Outcome::Done(Err(errno)),
        },
        Some(Err(errno)) => Err(errno),
    };
    let charged_bytes = cx.kernel.channel.asks.end(ticket);
    cx.machine.memory.uncharge_kernel(charged_bytes);
    // Others that wait for the same one are told that it is gone.
    cx.kernel.sched.wake_source(Source::Answer(ticket));
    cx.kernel.sched.wake_source(Source::AskRoom);
    Outcome::Done(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asks::OPEN_MAX;
    use crate::channel::Peer;
    use crate::sched::Call;
    use crate::testing::{Arg, Sandbox, TID, TempTree, call};

    fn sandbox(name: &str) -> Sandbox {
        let mut sandbox = Sandbox::new(&TempTree::new(name).0);
        sandbox.kernel.channel.peer = Peer::Present;
        sandbox.kernel.channel.asks.names = ["cart"].map(Box::<str>::from).into();
        sandbox
    }

    fn answer(sandbox: &mut Sandbox, ticket: u64, answer: Result<&str, Errno>) {
        let asks = &mut sandbox.kernel.channel.asks;
        asks.answer(ticket, answer.map(|text| Arc::from(text.as_bytes())), 0);
        sandbox.kernel.sched.wake_source(Source::Answer(ticket));
    }

    #[test]
    fn a_question_and_its_answer() {
        let mut s = sandbox("ask");
        let (cart, other) = (s.put(b"cart\0"), s.put(b"carts\0"));
        let (text, buf) = (s.put(b"hello"), s.room(16));
        assert_eq!(call!(s, "kvmlet_ask", other, text, 5), Err(Errno::ENOENT));
        assert_eq!(call!(s, "kvmlet_ask", 8, text, 5), Err(Errno::EFAULT));
        assert_eq!(call!(s, "kvmlet_ask", cart, 8, 5), Err(Errno::EFAULT));
        let too_long = MESSAGE_MAX as i64 + 1;
        for len in [too_long, -1] {
            let asked = call!(s, "kvmlet_ask", cart, text, len);
            assert_eq!(asked, Err(Errno::EMSGSIZE));
        }
        assert!(!s.kernel.channel.asks.are_awaited());
        assert_eq!(call!(s, "kvmlet_ask", cart, text, 5), Ok(1));
        let question = s.kernel.channel.asks.take_new().unwrap();
        assert_eq!((question.to, &*question.bytes), (0, &b"hello"[..]));
        let nowait = NOWAIT as i64;
        assert_eq!(
            call!(s, "kvmlet_answer", 1, buf, 16, nowait),
            Err(Errno::EAGAIN)
        );
        assert_eq!(call!(s, "kvmlet_answer", 1, buf, 16, 8), Err(Errno::EINVAL));
        assert_eq!(call!(s, "kvmlet_answer", 2, buf, 16, 0), Err(Errno::EINVAL));
        let args = [1, buf, 16, 0].map(Arg::Int);
        let Outcome::Wait(wait) = s.outcome("kvmlet_answer", &args, &CallState::default()) else {
            panic!("no wait")
        };
        s.kernel.sched.park(TID, Call::default(), wait);
        answer(&mut s, 1, Ok("good day"));
        assert!(s.kernel.sched.retries.contains_key(&TID));
        assert_eq!(
            call!(s, "kvmlet_answer", 1, buf, 7, 0),
            Err(Errno::EMSGSIZE)
        );
        assert_eq!(call!(s, "kvmlet_answer", 1, 0, 0, PEEK as i64), Ok(8));
        assert_eq!(call!(s, "kvmlet_answer", 1, 8, 8, 0), Err(Errno::EFAULT));
        assert_eq!(call!(s, "kvmlet_answer", 1, buf, 16, 0), Ok(8));
        assert_eq!(s.get(buf, 8), b"good day");
        assert_eq!(call!(s, "kvmlet_answer", 1, buf, 16, 0), Err(Errno::EINVAL));
    }

    #[test]
    fn no_answer_is_an_error_of_its_own() {
        let mut s = sandbox("no-answer");
        let cart = s.put(b"cart\0");
        assert_eq!(call!(s, "kvmlet_ask", cart, 0, 0), Ok(1));
        answer(&mut s, 1, Err(Errno::EPIPE));
        assert_eq!(call!(s, "kvmlet_answer", 1, 0, 0, 0), Err(Errno::EPIPE));
        assert_eq!(call!(s, "kvmlet_answer", 1, 0, 0, 0), Err(Errno::EINVAL));
    }

    #[test]
    fn questions_that_are_open_are_bounded() {
        let mut s = sandbox("open");
        let cart = s.put(b"cart\0");
        for ticket in 1..=OPEN_MAX as u64 {
            assert_eq!(call!(s, "kvmlet_ask", cart, 0, 0), Ok(ticket));
        }
        let args = [cart, 0, 0].map(Arg::Int);
        let Outcome::Wait(wait) = s.outcome("kvmlet_ask", &args, &CallState::default()) else {
            panic!("no wait")
        };
        s.kernel.sched.park(TID, Call::default(), wait);
        // One that is given up is open until its answer comes.
        assert_eq!(call!(s, "kvmlet_answer", 2, 0, 0, DROP as i64), Ok(0));
        assert!(!s.kernel.channel.asks.has_room());
        answer(&mut s, 2, Ok("late"));
        s.kernel.sched.wake_source(Source::AskRoom);
        assert!(s.kernel.sched.retries.contains_key(&TID));
        assert_eq!(call!(s, "kvmlet_ask", cart, 0, 0), Ok(OPEN_MAX as u64 + 1));
    }

    #[test]
    fn without_a_peer_nobody_is_asked() {
        let mut s = Sandbox::new(&TempTree::new("ask-no-peer").0);
        assert_eq!(call!(s, "kvmlet_ask", 0, 0, 0), Err(Errno::ENOSYS));
        assert_eq!(call!(s, "kvmlet_answer", 0, 0, 0, 0), Err(Errno::ENOSYS));
    }
}
