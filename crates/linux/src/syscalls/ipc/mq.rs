//! POSIX message queues: mq_open(2), mq_timedsend(2), mq_timedreceive(2), mq_notify(2), mq_getsetattr(2),
//! mq_unlink(2).

use imbl::Vector;
use kvmlet_abi::linux::Sigevent;
use kvmlet_abi::linux::capability::CAP_DAC_OVERRIDE;
use kvmlet_abi::linux::mqueue::{MQ_PRIO_MAX, MqAttr, SI_MESGQ};
use kvmlet_abi::linux::signal::{SIGEV_NONE, SIGEV_SIGNAL, SIGEV_THREAD};
use kvmlet_abi::{Errno, Gva};
use kvmlet_hostfs::attr::S_IFSOCK;

use crate::clock;
use crate::cx::Cx;
use crate::fd::{self, FileKind, OnExec, OpenFile, OpenFlags};
use crate::ipc::ids::Perm;
use crate::ipc::mq::{MESSAGE_BYTES_MAX, MESSAGES_MAX, Mqueue, News, Notice, Notified};
use crate::net::{Family, netlink};
use crate::outcome::{CallState, Outcome, Resume, Source, SysResult, Wait, WaitOn};
use crate::rlimit::Resource;
use crate::signal::{NSIG, SigDetail, SigInfo};
use crate::syscalls::args::{Args, Fd, FileFlags, Int, Len, Mode, Ptr, Str, Uint};
use crate::vfs;
use crate::vfs::anon::ObjectId;
use crate::vfs::open::description;
use crate::vfs::ready::{POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM};

/// Longest name, in bytes (NAME_MAX).
const NAME_MAX: usize = 255;
const READ: u32 = 0o444;
const WRITE: u32 = 0o222;
/// The number of mq_timedreceive(2).
const RECEIVE: u64 = 243;

/// A name without the slash, which the library has taken away.
fn read_name(cx: &mut Cx<'_>, gva: Gva) -> Result<Vec<u8>, Errno> {
    let name = cx.read_cstr(gva, NAME_MAX.saturating_add(1))?;
    match name.as_slice() {
        [] => Err(Errno::ENOENT),
        b"." | b".." => Err(Errno::EACCES),
        name if name.contains(&b'/') => Err(Errno::EACCES),
        _ => Ok(name),
    }
}

/// mq_open(2)
///
/// # Errors
/// As the man page has them.
pub fn sys_mq_open(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Str(name), FileFlags(flags), Mode(mode), Ptr(attr)) = args.decode();
    let flags = OpenFlags::from_bits_truncate(flags);
    let wish = if attr.0 == 0 || !flags.contains(OpenFlags::CREAT) {
        (MESSAGES_MAX, MESSAGE_BYTES_MAX)
    } else {
        let attr: MqAttr = cx.read_struct(attr)?;
        (attr.mq_maxmsg, attr.mq_msgsize)
    };
    let name = read_name(cx, name)?;
    let who = cx.creds();
    let known = cx.kernel.ipc.mqueues.find(&name);
    let id = match known {
        Some(_) if flags.contains(OpenFlags::CREAT | OpenFlags::EXCL) => {
            return Err(Errno::EEXIST);
        }
        Some(id) => {
            let read = if flags.readable() { READ } else { 0 };
            let write = if flags.writable() { WRITE } else { 0 };
            if !who.has(CAP_DAC_OVERRIDE) {
                let queue = cx.kernel.ipc.mqueues.get(id)?;
                queue.perm.check(&who, read | write)?;
            }
            id
        }
        None if flags.contains(OpenFlags::CREAT) => create(cx, &name, mode, wish)?,
        None => return Err(Errno::ENOENT),
    };
    let path = [b"/", name.as_slice()].concat();
    let file = description(FileKind::Mqueue(id), flags, &path);
    cx.kernel.ipc.mqueues.opened(id);
    let installed = fd::install_new(cx, file, OnExec::Close);
    if installed.is_err() && known.is_none() {
        let memory = &mut cx.machine.memory;
        cx.kernel.ipc.mqueues.unlink(memory, &name);
    }
    installed.map(|number| u64::from(number.cast_unsigned()))
}

fn create(
    cx: &mut Cx<'_>,
    name: &[u8],
    mode: u32,
    (messages, bytes): (i64, i64),
) -> Result<ObjectId, Errno> {
    if !(1..=MESSAGES_MAX).contains(&messages) || !(1..=MESSAGE_BYTES_MAX).contains(&bytes) {
        return Err(Errno::EINVAL);
    }
    let (messages, bytes) = (messages.cast_unsigned(), bytes.cast_unsigned());
    let who = cx.creds();
    let limit = cx.process()?.rlimits.soft(Resource::Msgqueue);
    let used = cx.kernel.ipc.mqueues.used_bytes(who.user.effective);
    if used.saturating_add(Mqueue::limit_bytes(messages, bytes)) > limit {
        return Err(Errno::EMFILE);
    }
    let perm = Perm::new(&who, 0, mode & !cx.fs()?.umask);
    let id = cx.kernel.objects.next_id();
    let now = vfs::now(cx.host);
    let memory = &mut cx.machine.memory;
    let queues = &mut cx.kernel.ipc.mqueues;
    queues.add(memory, (id, name), perm, (messages, bytes), now)?;
    Ok(id)
}

/// mq_unlink(2)
///
/// # Errors
/// As the man page has them; `EPERM` for another's, as in a directory with the sticky bit.
pub fn sys_mq_unlink(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let Str(name) = args.decode();
    let name = read_name(cx, name)?;
    let id = cx.kernel.ipc.mqueues.find(&name).ok_or(Errno::ENOENT)?;
    let who = cx.creds();
    if !who.has(CAP_DAC_OVERRIDE) {
        cx.kernel.ipc.mqueues.get(id)?.perm.check_owner(&who)?;
    }
    let memory = &mut cx.machine.memory;
    cx.kernel.ipc.mqueues.unlink(memory, &name);
    Ok(0)
}

/// The queue behind a descriptor.
fn queue_of(cx: &mut Cx<'_>, fd: i32) -> Result<(ObjectId, OpenFile), Errno> {
    let (_, file) = fd::get(cx, fd)?;
    let FileKind::Mqueue(id) = file.kind else {
        return Err(Errno::EBADF);
    };
    Ok((id, file))
}

/// The time until which a call waits, by the guest's monotonic clock.
fn deadline(cx: &mut Cx<'_>, timeout: Gva, state: &CallState) -> Result<Option<u64>, Errno> {
    if state.deadline_ns.is_some() || timeout.0 == 0 {
        return Ok(state.deadline_ns);
    }
    let until = clock::read_timespec(cx, timeout)?;
    let left = until.saturating_sub(clock::realtime_ns(cx.host));
    Ok(Some(clock::monotonic_ns(cx.host).saturating_add(left)))
}

/// The answer of a call that cannot go on now.
fn wait(
    file: &OpenFile,
    id: ObjectId,
    deadline_ns: Option<u64>,
    state: &CallState,
) -> Result<Outcome, Errno> {
    if file.flags.contains(OpenFlags::NONBLOCK) {
        return Err(Errno::EAGAIN);
    }
    if state.expired {
        return Err(Errno::ETIMEDOUT);
    }
    Ok(Outcome::Wait(Wait {
        on: WaitOn::Sources(Vector::unit(Source::Object(id))),
        deadline_ns,
        resume: Resume::Retry(CallState {
            deadline_ns,
            has_waited: true,
            ..CallState::default()
        }),
    }))
}

/// mq_timedsend(2). Linux differs: of those who wait for room, any may be the first.
pub fn sys_mq_timedsend(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(at), Len(len), Uint(priority), Ptr(timeout)) = args.decode();
    send(cx, fd, (at, len), priority, timeout, state)
        .unwrap_or_else(|errno| Outcome::Done(Err(errno)))
}

fn send(
    cx: &mut Cx<'_>,
    fd: i32,
    (at, len): (Gva, u64),
    priority: u32,
    timeout: Gva,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let deadline_ns = deadline(cx, timeout, state)?;
    if priority >= MQ_PRIO_MAX {
        return Err(Errno::EINVAL);
    }
    let (id, file) = queue_of(cx, fd)?;
    if !file.flags.writable() {
        return Err(Errno::EBADF);
    }
    let queue = cx.kernel.ipc.mqueues.get(id)?;
    if len > queue.message_bytes_max {
        return Err(Errno::EMSGSIZE);
    }
    if queue.is_full() {
        return wait(&file, id, deadline_ns, state);
    }
    let was_empty = queue.is_empty();
    let mut text = vec![0; usize::try_from(len).map_err(|_| Errno::EMSGSIZE)?];
    cx.read(at, &mut text)?;
    let now = vfs::now(cx.host);
    let memory = &mut cx.machine.memory;
    let queue = cx.kernel.ipc.mqueues.get_mut(id)?;
    queue.push(memory, priority, &text)?;
    queue.mtime = now;
    let source = Source::Object(id);
    // Who waits in mq_receive(3) takes it, and nobody is told.
    if was_empty && !cx.kernel.sched.is_awaited_by(source, RECEIVE) {
        tell(cx, id)?;
    }
    cx.kernel.wake(source, POLLIN | POLLRDNORM);
    Ok(Outcome::Done(Ok(0)))
}

/// Tells the process that has asked to be told, once.
fn tell(cx: &mut Cx<'_>, id: ObjectId) -> Result<(), Errno> {
    let Some(notified) = cx.kernel.ipc.mqueues.get_mut(id)?.notified.take() else {
        return Ok(());
    };
    match notified.notice {
        Notice::None => {}
        Notice::Signal { signo, value } => {
            let info = SigInfo {
                signo,
                code: SI_MESGQ,
                detail: SigDetail::Sender {
                    pid: cx.process()?.pid.0,
                    uid: cx.creds().user.real,
                    value,
                },
                ..SigInfo::default()
            };
            // A signal that finds no room is lost, as on Linux.
            let _ = cx.kernel.send_to_process(notified.pid, info);
        }
        notice @ Notice::Socket { .. } => netlink::tell(cx, notice, News::Message),
    }
    Ok(())
}

/// mq_timedreceive(2). Linux differs: of those who wait for a message, any may be the first.
pub fn sys_mq_timedreceive(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Fd(fd), Ptr(at), Len(len), Ptr(priority), Ptr(timeout)) = args.decode();
    receive(cx, fd, (at, len), priority, timeout, state)
        .unwrap_or_else(|errno| Outcome::Done(Err(errno)))
}

fn receive(
    cx: &mut Cx<'_>,
    fd: i32,
    (at, len): (Gva, u64),
    priority_at: Gva,
    timeout: Gva,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let deadline_ns = deadline(cx, timeout, state)?;
    let (id, file) = queue_of(cx, fd)?;
    if !file.flags.readable() {
        return Err(Errno::EBADF);
    }
    let now = vfs::now(cx.host);
    let queue = cx.kernel.ipc.mqueues.get_mut(id)?;
    if len < queue.message_bytes_max {
        return Err(Errno::EMSGSIZE);
    }
    let Some((priority, text)) = queue.take(&mut cx.machine.memory) else {
        return wait(&file, id, deadline_ns, state);
    };
    (queue.atime, queue.mtime) = (now, now);
    cx.kernel.wake(Source::Object(id), POLLOUT | POLLWRNORM);
    // The message is gone, even if there is nowhere to put it.
    if priority_at.0 != 0 {
        cx.write_struct(priority_at, &priority)?;
    }
    cx.write(at, &text)?;
    Ok(Outcome::Done(Ok(text.len() as u64)))
}

/// The socket of netlink that the C library has a thread read notices from (SIGEV_THREAD).
///
/// # Errors
/// `EBADF`; `ENOTSOCK`; `EINVAL` for another socket; `EAGAIN` if it is full. Linux differs: it waits for room.
fn socket_of(cx: &mut Cx<'_>, number: i32) -> Result<ObjectId, Errno> {
    let (id, file) = fd::get(cx, number)?;
    let FileKind::Socket(socket) = file.kind else {
        let is_socket = vfs::file::attr(cx, id)?.kind() == S_IFSOCK;
        return Err(if is_socket {
            Errno::EINVAL
        } else {
            Errno::ENOTSOCK
        });
    };
    if cx.kernel.objects.sockets.get(socket)?.family != Family::Netlink {
        return Err(Errno::EINVAL);
    }
    match netlink::is_full(cx.kernel, socket)? {
        true => Err(Errno::EAGAIN),
        false => Ok(socket),
    }
}

/// mq_notify(2)
///
/// # Errors
/// As the man page has them; those of `socket_of`.
pub fn sys_mq_notify(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Fd(fd), Ptr(event)) = args.decode();
    let pid = cx.process()?.pid;
    if event.0 == 0 {
        let (id, _) = queue_of(cx, fd)?;
        if let Some(notice) = cx.kernel.ipc.mqueues.closed_by(id, pid) {
            netlink::tell(cx, notice, News::Removed);
        }
        return Ok(0);
    }
    let event: Sigevent = cx.read_struct(event)?;
    let notice = match event.sigev_notify {
        SIGEV_NONE => Notice::None,
        SIGEV_SIGNAL => match u8::try_from(event.sigev_signo) {
            // Signal 0 is none.
            Ok(0) => Notice::None,
            Ok(signo) if signo <= NSIG => Notice::Signal {
                signo,
                value: event.sigev_value,
            },
            _ => return Err(Errno::EINVAL),
        },
        SIGEV_THREAD => {
            let cookie = cx.read_struct(Gva(event.sigev_value))?;
            Notice::Socket {
                socket: socket_of(cx, event.sigev_signo)?,
                cookie,
            }
        }
        _ => return Err(Errno::EINVAL),
    };
    let (id, _) = queue_of(cx, fd)?;
    let queue = cx.kernel.ipc.mqueues.get_mut(id)?;
    if queue.notified.is_some() {
        return Err(Errno::EBUSY);
    }
    queue.notified = Some(Notified { pid, notice });
    Ok(0)
}

/// mq_getsetattr(2)
///
/// # Errors
/// `EBADF`, `EFAULT`; `EINVAL` for flags other than O_NONBLOCK.
pub fn sys_mq_getsetattr(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(fd), Ptr(new), Ptr(old)) = args.decode();
    let nonblock = i64::from(OpenFlags::NONBLOCK.bits());
    let wanted = if new.0 == 0 {
        None
    } else {
        let new: MqAttr = cx.read_struct(new)?;
        if new.mq_flags & !nonblock != 0 {
            return Err(Errno::EINVAL);
        }
        Some(new.mq_flags != 0)
    };
    let (id, file) = queue_of(cx, fd)?;
    let queue = cx.kernel.ipc.mqueues.get(id)?;
    let attr = MqAttr {
        mq_flags: i64::from((file.flags & OpenFlags::NONBLOCK).bits()),
        mq_maxmsg: i64::try_from(queue.messages_max).unwrap_or(0),
        mq_msgsize: i64::try_from(queue.message_bytes_max).unwrap_or(0),
        mq_curmsgs: i64::try_from(queue.len()).unwrap_or(0),
        reserved: [0; 4],
    };
    if let Some(wanted) = wanted {
        let (file, _) = fd::get(cx, fd)?;
        let file = fd::file_mut(cx, file)?;
        file.flags.set(OpenFlags::NONBLOCK, wanted);
    }
    if old.0 != 0 {
        cx.write_struct(old, &attr)?;
    }
    Ok(0)
}
