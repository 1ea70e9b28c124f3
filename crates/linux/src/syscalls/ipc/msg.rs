//! Messages: msgget(2), msgsnd(2), msgrcv(2), msgctl(2).

use kvmlet_abi::linux::ipc::{
    IPC_INFO, IPC_NOWAIT, IPC_RMID, IPC_SET, IPC_STAT, MSG_COPY, MSG_EXCEPT, MSG_INFO, MSG_NOERROR,
    MSG_STAT, MSG_STAT_ANY, Msginfo, Msqid64Ds,
};
use kvmlet_abi::{Errno, Gva};

use super::{field, find, result};
use crate::clock;
use crate::cx::Cx;
use crate::ipc::ids::Perm;
use crate::ipc::msg::{self, Kinds, MESSAGE_MAX, Message, Pick, QUEUE_BYTES, QUEUES_MAX};
use crate::ipc::{Handed, Line, Wish};
use crate::outcome::{CallState, Outcome, Resume, SysResult, Wait, WaitOn};
use crate::syscalls::args::{Args, Flags, Int, Len, Ptr, Word};

const READ: u32 = 0o444;
const WRITE: u32 = 0o222;
/// Bytes of the type before a message's text.
const KIND_BYTES: u64 = 8;
/// MSGSSZ and MSGSEG, which mean nothing.
const SEGMENT_SIZE: i32 = 16;
const SEGMENTS: u16 = 0xffff;

/// msgget(2)
///
/// # Errors
/// As the man page has them.
pub fn sys_msgget(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(key), Flags(flags)) = args.decode();
    let who = &*cx.creds();
    let queues = &mut cx.kernel.ipc.queues;
    if let Some(id) = find(&queues.ids, who, (key, flags), |_| true)? {
        return Ok(result(id));
    }
    let now = clock::realtime_s(cx.host);
    let perm = Perm::new(who, key, flags);
    queues.add(&mut cx.machine.memory, perm, now).map(result)
}

/// msgsnd(2). Linux differs: the text is read again when there is room at last.
pub fn sys_msgsnd(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Int(id), Ptr(at), Len(len), Flags(flags)) = args.decode();
    send(cx, id, (at, len), flags, state).unwrap_or_else(|errno| Outcome::Done(Err(errno)))
}

fn send(
    cx: &mut Cx<'_>,
    id: i32,
    (at, len): (Gva, u64),
    flags: u32,
    state: &CallState,
) -> Result<Outcome, Errno> {
    if state.handed == Some(Handed::Removed) {
        return Err(Errno::EIDRM);
    }
    let kind: i64 = cx.read_struct(at)?;
    if len > MESSAGE_MAX || id < 0 || kind < 1 {
        return Err(Errno::EINVAL);
    }
    let mut text = vec![0; usize::try_from(len).map_err(|_| Errno::EINVAL)?];
    let text_at = at.0.checked_add(KIND_BYTES).ok_or(Errno::EFAULT)?;
    cx.read(Gva(text_at), &mut text)?;
    let entry = cx.kernel.ipc.queues.ids.get(id)?;
    entry.perm.check(&cx.creds(), WRITE)?;
    if !entry.object.has_room(len) {
        return match flags & IPC_NOWAIT {
            0 => Ok(wait(Line::Senders(id), Wish::Room)),
            _ => Err(Errno::EAGAIN),
        };
    }
    let now = clock::realtime_s(cx.host);
    let sender = cx.process()?.pid;
    let memory = &mut cx.machine.memory;
    let message = (sender, Message { kind, text });
    msg::send(cx.kernel, memory, (id, now), message)?;
    Ok(Outcome::Done(Ok(0)))
}

fn wait(line: Line, wish: Wish) -> Outcome {
    Outcome::Wait(Wait {
        on: WaitOn::Line(line, wish),
        deadline_ns: None,
        resume: Resume::Retry(CallState::default()),
    })
}

/// msgrcv(2)
pub fn sys_msgrcv(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Int(id), Ptr(at), Len(len), Word(kind), Flags(flags)) = args.decode();
    let kind = kind.cast_signed();
    receive(cx, id, (at, len), (kind, flags), state)
        .unwrap_or_else(|errno| Outcome::Done(Err(errno)))
}

fn receive(
    cx: &mut Cx<'_>,
    id: i32,
    (at, len): (Gva, u64),
    (kind, flags): (i64, u32),
    state: &CallState,
) -> Result<Outcome, Errno> {
    match &state.handed {
        Some(Handed::Message(message)) => return deliver(cx, (at, len), message),
        Some(Handed::TooLong) => return Err(Errno::E2BIG),
        Some(Handed::Removed) => return Err(Errno::EIDRM),
        None => {}
    }
    if id < 0 || len > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    let copies = flags & MSG_COPY != 0;
    if copies && (flags & MSG_EXCEPT != 0 || flags & IPC_NOWAIT == 0) {
        return Err(Errno::EINVAL);
    }
    let kinds = match kind {
        0 => Kinds::Any,
        // Of the lowest number there is no opposite.
        ..0 => Kinds::UpTo(kind.checked_neg().unwrap_or(i64::MAX)),
        _ if flags & MSG_EXCEPT != 0 => Kinds::Except(kind),
        _ => Kinds::Only(kind),
    };
    let len_max = match flags & MSG_NOERROR {
        0 => len,
        _ => u64::MAX,
    };
    let entry = cx.kernel.ipc.queues.ids.get(id)?;
    entry.perm.check(&cx.creds(), READ)?;
    let queue = &entry.object;
    let index = match copies {
        true => usize::try_from(kind)
            .ok()
            .filter(|index| *index < queue.messages.len()),
        false => queue.find(kinds),
    };
    let Some(index) = index else {
        let pick = Pick { kinds, len_max };
        return match flags & IPC_NOWAIT {
            0 => Ok(wait(Line::Receivers(id), Wish::Message(pick))),
            _ => Err(Errno::ENOMSG),
        };
    };
    let message = queue.messages.get(index).ok_or(Errno::ENOMSG)?;
    if message.text.len() as u64 > len_max {
        return Err(Errno::E2BIG);
    }
    if copies {
        let message = std::sync::Arc::clone(message);
        return deliver(cx, (at, len), &message);
    }
    let now = clock::realtime_s(cx.host);
    let receiver = cx.process()?.pid.0;
    let queues = &mut cx.kernel.ipc.queues;
    let message = queues.take(&mut cx.machine.memory, id, index);
    let message = message.ok_or(Errno::ENOMSG)?;
    let queue = &mut queues.ids.get_mut(id)?.object;
    (queue.receiver, queue.rtime) = (receiver, now);
    msg::wake_line(cx.kernel, Line::Senders(id));
    deliver(cx, (at, len), &message)
}

/// Writes a message to user memory. One that cannot be written is lost, as on Linux.
fn deliver(cx: &mut Cx<'_>, (at, len): (Gva, u64), message: &Message) -> Result<Outcome, Errno> {
    cx.write_struct(at, &message.kind)?;
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let text = message.text.get(..len).unwrap_or(&message.text);
    let text_at = at.0.checked_add(KIND_BYTES).ok_or(Errno::EFAULT)?;
    cx.write(Gva(text_at), text)?;
    Ok(Outcome::Done(Ok(text.len() as u64)))
}

/// msgctl(2)
///
/// # Errors
/// As the man page has them.
pub fn sys_msgctl(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(id), Int(command), Ptr(buf)) = args.decode();
    if id < 0 || command < 0 {
        return Err(Errno::EINVAL);
    }
    match command {
        IPC_INFO | MSG_INFO => info(cx, command, buf),
        IPC_STAT | MSG_STAT | MSG_STAT_ANY => status(cx, id, command, buf),
        IPC_SET => {
            let new: Msqid64Ds = cx.read_struct(buf)?;
            let now = clock::realtime_s(cx.host);
            let creds = cx.creds();
            let entry = cx.kernel.ipc.queues.ids.get_mut(id)?;
            entry.perm.check_owner(&creds)?;
            if new.msg_qbytes > QUEUE_BYTES {
                return Err(Errno::EPERM);
            }
            entry.perm.update(&new.msg_perm)?;
            (entry.object.bytes_max, entry.object.ctime) = (new.msg_qbytes, now);
            for line in [Line::Receivers(id), Line::Senders(id)] {
                msg::wake_line(cx.kernel, line);
            }
            Ok(0)
        }
        IPC_RMID => {
            let entry = cx.kernel.ipc.queues.ids.get(id)?;
            entry.perm.check_owner(&cx.creds())?;
            msg::remove(cx.kernel, &mut cx.machine.memory, id);
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn info(cx: &mut Cx<'_>, command: i32, buf: Gva) -> SysResult {
    let queues = &cx.kernel.ipc.queues;
    let most = u64::from(QUEUES_MAX);
    let mut info = Msginfo {
        msgpool: field(most.saturating_mul(QUEUE_BYTES) / 1024),
        msgmap: field(QUEUE_BYTES),
        msgmax: field(MESSAGE_MAX),
        msgmnb: field(QUEUE_BYTES),
        msgmni: field(most),
        msgssz: SEGMENT_SIZE,
        msgtql: field(QUEUE_BYTES),
        msgseg: SEGMENTS,
        ..Msginfo::default()
    };
    if command == MSG_INFO {
        info.msgpool = field(u64::from(queues.ids.len()));
        (info.msgmap, info.msgtql) = (field(queues.messages), field(queues.bytes));
    }
    let highest = queues.ids.highest();
    cx.write_struct(buf, &info)?;
    Ok(highest)
}

fn status(cx: &mut Cx<'_>, id: i32, command: i32, buf: Gva) -> SysResult {
    let ids = &cx.kernel.ipc.queues.ids;
    let id = match command {
        IPC_STAT => id,
        _ => ids.at_index(id)?,
    };
    let entry = ids.get(id)?;
    if command != MSG_STAT_ANY {
        entry.perm.check(&cx.creds(), READ)?;
    }
    let queue = &entry.object;
    let status = Msqid64Ds {
        msg_perm: entry.perm.to_struct(),
        msg_stime: queue.stime,
        msg_rtime: queue.rtime,
        msg_ctime: queue.ctime,
        msg_cbytes: queue.bytes,
        msg_qnum: queue.messages.len() as u64,
        msg_qbytes: queue.bytes_max,
        msg_lspid: queue.sender,
        msg_lrpid: queue.receiver,
        ..Msqid64Ds::default()
    };
    cx.write_struct(buf, &status)?;
    Ok(if command == IPC_STAT { 0 } else { result(id) })
}
