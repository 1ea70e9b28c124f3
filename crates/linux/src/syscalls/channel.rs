//! kvmlet's own calls: messages. Their numbers lie outside Linux's table, so that the same program
//! gets `ENOSYS` from Linux itself, and here when nobody exchanges messages with it, and falls back
//! on its standard streams (kvmlet.h).

use std::sync::Arc;

use imbl::Vector;
use kvmlet_abi::{Errno, Gva};
use zerocopy::{Immutable, IntoBytes};

use crate::channel::MESSAGE_MAX;
use crate::clock;
use crate::cx::Cx;
use crate::outcome::{CallState, Outcome, Resume, Source, SysResult, Wait, WaitOn};

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
pub fn sys_kvmlet_receive(cx: &mut Cx<'_>, args: &[u64; 6], state: &CallState) -> Outcome {
    if let Err(errno) = cx.kernel.channel.attached() {
        return Outcome::Done(Err(errno));
    }
    if args[2] & !(NOWAIT | PEEK) != 0 {
        return Outcome::Done(Err(Errno::EINVAL));
    }
    if cx.kernel.channel.inbox.is_empty() && args[2] & NOWAIT == 0 {
        return Outcome::Wait(Wait {
            on: WaitOn::Message,
            deadline_ns: None,
            resume: Resume::Retry(state.clone()),
        });
    }
    Outcome::Done(receive(cx, args))
}

fn receive(cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let channel = &cx.kernel.channel;
    let message = Arc::clone(channel.inbox.front().ok_or(Errno::EAGAIN)?);
    let generation = channel.generation;
    let len_bytes = message.len() as u64;
    let peek = args[2] & PEEK != 0;
    if peek || len_bytes > args[1] {
        // Whoever asked may not come back for it.
        cx.kernel.wake_receiver();
        return if peek {
            Ok(len_bytes)
        } else {
            Err(Errno::EMSGSIZE)
        };
    }
    cx.write(Gva(args[0]), &message)?;
    if args[3] != 0 {
        let mut seed = [0; 24];
        clock::fill_random(&mut seed)?;
        cx.write_struct(Gva(args[3]), &ForkInfo { generation, seed })?;
    }
    cx.kernel.channel.inbox.pop();
    Ok(len_bytes)
}

/// kvmlet_send(buf, len_bytes): queues a message for the host. Waits while too much is queued.
pub fn sys_kvmlet_send(cx: &mut Cx<'_>, args: &[u64; 6], state: &CallState) -> Outcome {
    if let Err(errno) = cx.kernel.channel.attached() {
        return Outcome::Done(Err(errno));
    }
    let len_bytes = match usize::try_from(args[1]) {
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
    Outcome::Done(send(cx, Gva(args[0]), len_bytes))
}

fn send(cx: &mut Cx<'_>, buf: Gva, len_bytes: usize) -> SysResult {
    let mut message = vec![0; len_bytes];
    cx.read(buf, &mut message)?;
    cx.kernel
        .channel
        .outbox
        .push(message.into())
        .map_err(|_| Errno::EMSGSIZE)?;
    Ok(0)
}

/// kvmlet_generation(): 0 in the program that was started, another number in every fork and after
/// every reset.
///
/// # Errors
/// `ENOSYS` when the host takes no part.
pub fn sys_kvmlet_generation(cx: &mut Cx<'_>, _args: &[u64; 6]) -> SysResult {
    cx.kernel.channel.attached()?;
    Ok(cx.kernel.channel.generation)
}
