//! kvmlet's own calls: messages. Their numbers lie outside Linux's table, so that the same program
//! gets `ENOSYS` from Linux itself, and here when nobody exchanges messages with it, and falls back
//! on its standard streams (kvmlet.h).

use std::sync::Arc;

use imbl::Vector;
use kvmlet_abi::{Errno, Gva};

use crate::channel::MESSAGE_MAX;
use crate::cx::Cx;
use crate::outcome::{CallState, Outcome, Resume, Source, SysResult, Wait, WaitOn};

/// kvmlet_receive: fail with `EAGAIN` instead of waiting.
const NOWAIT: u64 = 1;

/// kvmlet_receive(buf, cap_bytes, flags, generation): the length of the next message. If it is at
/// most `cap_bytes` the message is in `buf` and gone from the queue; else nothing was copied and it
/// stays. Waits while there is none. Unless `generation` is 0, the u64 there becomes
/// kvmlet_generation's value.
pub fn sys_kvmlet_receive(cx: &mut Cx<'_>, args: &[u64; 6], state: &CallState) -> Outcome {
    if let Err(errno) = cx.kernel.channel.attached() {
        return Outcome::Done(Err(errno));
    }
    if args[2] & !NOWAIT != 0 {
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
    if len_bytes > args[1] {
        // Whoever asked may not come back for it.
        cx.kernel.wake_receiver();
        return Ok(len_bytes);
    }
    cx.write(Gva(args[0]), &message)?;
    if args[3] != 0 {
        cx.write_struct(Gva(args[3]), &generation)?;
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
