//! kvmlet's own calls: messages.
//!
//! Their numbers lie outside Linux's table, so that the same program gets `ENOSYS` from Linux itself. It
//! gets that here too when nobody exchanges messages with it. It then falls back on its standard streams
//! (kvmlet.h).

use std::sync::Arc;

use imbl::Vector;
use kvmlet_abi::{Errno, Gva};
use zerocopy::{Immutable, IntoBytes};

use crate::channel::MESSAGE_MAX;
use crate::clock;
use crate::cx::Cx;
use crate::outcome::{CallState, Outcome, Resume, Source, SysResult, Wait, WaitOn};
use crate::syscalls::args::{Args, Len, Ptr, Word};

/// kvmlet_receive: fail with `EAGAIN` instead of waiting.
const NOWAIT: u64 = 1;
/// kvmlet_receive: only the length; the message stays.
const PEEK: u64 = 2;

/// `struct kvmlet_fork` (kvmlet.h): what a program learns about the copy that received.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
struct ForkInfo {
    generation: u64,
    seed: [u8; 24],
}

/// kvmlet_receive(buf, cap_bytes, flags, fork): moves the next message to `buf` and returns its
/// length; waits while there is none. Unless `fork` is 0, a [`ForkInfo`] is written there. One that is
/// longer than `cap_bytes` gives `EMSGSIZE` and stays.
pub fn sys_kvmlet_receive(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Ptr(buf), Len(cap_bytes), Word(flags), Ptr(fork)) = args.decode();
    if let Err(errno) = cx.kernel.channel.attached() {
        return Outcome::Done(Err(errno));
    }
    if flags & !(NOWAIT | PEEK) != 0 {
        return Outcome::Done(Err(Errno::EINVAL));
    }
    if cx.kernel.channel.inbox.is_empty() && flags & NOWAIT == 0 {
        return Outcome::Wait(Wait {
            on: WaitOn::Message,
            deadline_ns: None,
            resume: Resume::Retry(state.clone()),
        });
    }
    Outcome::Done(receive(cx, (buf, cap_bytes), flags & PEEK != 0, fork))
}

fn receive(cx: &mut Cx<'_>, (buf, cap_bytes): (Gva, u64), peek: bool, fork: Gva) -> SysResult {
    let channel = &cx.kernel.channel;
    let message = Arc::clone(channel.inbox.front().ok_or(Errno::EAGAIN)?);
    let generation = channel.generation;
    let len_bytes = message.len() as u64;
    if peek || len_bytes > cap_bytes {
        // Whoever asked may not come back for it.
        cx.kernel.wake_receiver();
        return if peek {
            Ok(len_bytes)
        } else {
            Err(Errno::EMSGSIZE)
        };
    }
    cx.write(buf, &message)?;
    if fork.0 != 0 {
        let mut seed = [0; 24];
        clock::fill_random(&mut seed)?;
        cx.write_struct(fork, &ForkInfo { generation, seed })?;
    }
    let tid = cx.tid.0;
    cx.kernel.channel.receive(tid);
    Ok(len_bytes)
}

/// kvmlet_send(buf, len_bytes): queues a message for the host. Waits while too much is queued.
pub fn sys_kvmlet_send(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Ptr(buf), Len(len_bytes)) = args.decode();
    if let Err(errno) = cx.kernel.channel.attached() {
        return Outcome::Done(Err(errno));
    }
    let len_bytes = match usize::try_from(len_bytes) {
        Ok(len_bytes) if len_bytes <= MESSAGE_MAX => len_bytes,
        _ => return Outcome::Done(Err(Errno::EMSGSIZE)),
    };
    if !cx.kernel.channel.outbox.has_room(len_bytes) {
        return Outcome::Wait(Wait {
            on: WaitOn::Sources(Vector::unit(Source::Outbox)),
            deadline_ns: None,
            resume: Resume::Retry(state.clone()),
        });
    }
    let charged = cx.machine.memory.charge_kernel(len_bytes as u64);
    if charged.is_err() {
        return Outcome::Done(Err(Errno::ENOMEM));
    }
    let sent = send(cx, buf, len_bytes);
    if sent.is_err() {
        cx.machine.memory.uncharge_kernel(len_bytes as u64);
    }
    Outcome::Done(sent)
}

/// Queues a message, which is charged to the program until the host takes it.
fn send(cx: &mut Cx<'_>, buf: Gva, len_bytes: usize) -> SysResult {
    // In place: a large one is not there twice.
    let mut message: Arc<[u8]> = std::iter::repeat_n(0, len_bytes).collect();
    cx.read(buf, Arc::get_mut(&mut message).ok_or(Errno::ENOMEM)?)?;
    let tid = cx.tid.0;
    let sent = cx.kernel.channel.send(tid, message);
    sent.map_err(|_| Errno::EMSGSIZE)?;
    Ok(0)
}

/// kvmlet_generation(): 0 in the program that was started, another number in every fork and after
/// every reset.
///
/// # Errors
/// `ENOSYS` when the host takes no part.
pub fn sys_kvmlet_generation(cx: &mut Cx<'_>, _args: &Args) -> SysResult {
    cx.kernel.channel.attached()?;
    Ok(cx.kernel.channel.generation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{Peer, QUEUE_BYTES_MAX};
    use crate::kernel::Tid;
    use crate::sched::Call;
    use crate::testing::{Sandbox, TID, TempTree, call};
    use kvmlet_abi::Errno;

    fn sandbox(name: &str) -> Sandbox {
        let mut sandbox = Sandbox::new(&TempTree::new(name).0);
        sandbox.kernel.channel.peer = Peer::Present;
        sandbox
    }

    fn post(sandbox: &mut Sandbox, text: &str) {
        let message = Arc::from(text.as_bytes());
        sandbox.kernel.channel.inbox.push(message).unwrap();
        sandbox.kernel.wake_receiver();
    }

    #[test]
    fn without_a_peer_the_calls_are_unknown() {
        let mut s = Sandbox::new(&TempTree::new("no-peer").0);
        let unknown = Err(Errno::ENOSYS);
        assert_eq!(call!(s, "kvmlet_receive", 0, 0, 0, 0), unknown);
        assert_eq!(call!(s, "kvmlet_send", 0, 0), unknown);
        assert_eq!(call!(s, "kvmlet_generation"), unknown);
        assert!(s.host.report.events.is_empty());
    }

    #[test]
    fn a_message_is_received_whole_or_stays() {
        let mut s = sandbox("receive");
        s.kernel.channel.generation = 9;
        post(&mut s, "hello");
        post(&mut s, "");
        let (buf, fork) = (s.room(16), s.room(32));
        let nowait = NOWAIT as i64;
        assert_eq!(
            call!(s, "kvmlet_receive", buf, 4, 0, fork),
            Err(Errno::EMSGSIZE)
        );
        assert_eq!(call!(s, "kvmlet_receive", 0, 0, PEEK as i64, 0), Ok(5));
        assert_eq!(call!(s, "kvmlet_receive", 8, 5, 0, 0), Err(Errno::EFAULT));
        assert_eq!(call!(s, "kvmlet_receive", buf, 5, 0, 8), Err(Errno::EFAULT));
        assert_eq!(call!(s, "kvmlet_receive", buf, 5, 4, 0), Err(Errno::EINVAL));
        assert_eq!(call!(s, "kvmlet_receive", buf, 5, 0, fork), Ok(5));
        assert_eq!(s.get(buf, 5), b"hello");
        assert_eq!(s.get_struct::<u64>(fork), 9);
        assert_ne!(s.get(fork + 8, 24), [0; 24]);
        assert_eq!(call!(s, "kvmlet_receive", 0, 0, 0, 0), Ok(0));
        assert_eq!(
            call!(s, "kvmlet_receive", buf, 5, nowait, 0),
            Err(Errno::EAGAIN)
        );
        assert_eq!(call!(s, "kvmlet_generation"), Ok(9));
    }

    #[test]
    fn each_message_wakes_the_thread_that_has_waited_longest() {
        let mut s = sandbox("fifo");
        let outcome = s.outcome("kvmlet_receive", &[], &CallState::default());
        let Outcome::Wait(wait) = outcome else {
            panic!("{outcome:?}")
        };
        for tid in [3, 1, 2] {
            s.kernel.sched.park(Tid(tid), Call::default(), wait.clone());
        }
        post(&mut s, "a");
        post(&mut s, "b");
        let queue: Vec<Tid> = s.kernel.sched.run_queue.iter().copied().collect();
        assert_eq!(queue, [Tid(3), Tid(1)]);
        assert_eq!(s.kernel.sched.receivers, Vector::unit(Tid(2)));
        // One that does not take its message leaves it to the next.
        let peek = CallState::default();
        let args = [0, 0, PEEK as i64].map(crate::testing::Arg::Int);
        assert!(matches!(
            s.outcome("kvmlet_receive", &args, &peek),
            Outcome::Done(Ok(1))
        ));
        assert!(s.kernel.sched.receivers.is_empty());
    }

    #[test]
    fn one_that_ends_leaves_its_message_to_the_next() {
        let mut s = sandbox("ends");
        let Outcome::Wait(wait) = s.outcome("kvmlet_receive", &[], &CallState::default()) else {
            panic!("no wait")
        };
        for tid in [3, 4] {
            s.kernel.sched.park(Tid(tid), Call::default(), wait.clone());
        }
        post(&mut s, "a");
        assert_eq!(s.kernel.sched.receivers, Vector::unit(Tid(4)));
        crate::task::exit::take_out(&mut s.cx(), Tid(3));
        assert!(s.kernel.sched.receivers.is_empty());
        assert_eq!(s.kernel.sched.run_queue, Vector::unit(Tid(4)));
    }

    #[test]
    fn messages_to_the_host_are_bounded() {
        let mut s = sandbox("send");
        let text = s.put(b"answer");
        assert_eq!(call!(s, "kvmlet_send", text, 6), Ok(0));
        assert_eq!(call!(s, "kvmlet_send", 0, 0), Ok(0));
        assert_eq!(call!(s, "kvmlet_send", 8, 6), Err(Errno::EFAULT));
        for len in [MESSAGE_MAX as i64 + 1, -1] {
            assert_eq!(call!(s, "kvmlet_send", text, len), Err(Errno::EMSGSIZE));
        }
        let outbox = &mut s.kernel.channel.outbox;
        assert_eq!(outbox.pop().as_deref(), Some(&b"answer"[..]));
        assert_eq!(outbox.pop().as_deref(), Some(&b""[..]));
        let large: Arc<[u8]> = Arc::from(vec![0; MESSAGE_MAX]);
        for _ in 0..QUEUE_BYTES_MAX / MESSAGE_MAX {
            outbox.push(Arc::clone(&large)).unwrap();
        }
        let args = [text, 6].map(crate::testing::Arg::Int);
        let outcome = s.outcome("kvmlet_send", &args, &CallState::default());
        let Outcome::Wait(wait) = outcome else {
            panic!("{outcome:?}")
        };
        s.kernel.sched.park(TID, Call::default(), wait);
        s.kernel.channel.outbox.pop();
        s.kernel.sched.wake_source(Source::Outbox);
        assert!(s.kernel.sched.retries.contains_key(&TID));
    }

    #[test]
    fn the_header_has_the_numbers_of_the_table() {
        let header = include_str!("../../../../python/kvmlet/guest/include/kvmlet.h");
        let defined = |name: &str| -> u64 {
            let start = format!("#define KVMLET_{name} ");
            let line = header.lines().find_map(|line| line.strip_prefix(&start));
            let word = line.unwrap().split_whitespace().next().unwrap();
            word.trim_start_matches('(').parse().unwrap()
        };
        for name in ["receive", "send", "generation", "ask", "answer"] {
            let row = super::super::table::row(defined(&format!("NR_{}", name.to_uppercase())));
            assert_eq!(row.map(|row| row.name), Some(&*format!("kvmlet_{name}")));
        }
        assert_eq!(defined("NOWAIT"), NOWAIT);
        assert_eq!(defined("PEEK"), PEEK);
        assert_eq!(defined("DROP"), super::super::ask::DROP);
        assert!(header.contains("KVMLET_MESSAGE_MAX (16u << 20)") && MESSAGE_MAX == 16 << 20);
        assert_eq!(size_of::<ForkInfo>(), 32);
    }
}
