//! Semaphores: semget(2), semop(2), semctl(2).

use std::sync::Arc;

use imbl::Vector;
use kvmlet_abi::linux::Timespec;
use kvmlet_abi::linux::ipc::{
    GETALL, GETNCNT, GETPID, GETVAL, GETZCNT, IPC_INFO, IPC_RMID, IPC_SET, IPC_STAT, SEM_INFO,
    SEM_STAT, SEM_STAT_ANY, SETALL, SETVAL, Sembuf, Semid64Ds, Seminfo,
};
use kvmlet_abi::{Errno, Gva};
use zerocopy::{FromZeros, IntoBytes};

use super::{field, find, result};
use crate::clock;
use crate::cx::Cx;
use crate::ipc::ids::Perm;
use crate::ipc::sem::{
    self, ForZero, OPERATIONS_MAX, SEMAPHORES_MAX, SET_LEN_MAX, SETS_MAX, SemOp, Semaphore, Set,
    Tried, VALUE_MAX,
};
use crate::ipc::{Line, Wish};
use crate::outcome::{CallState, Outcome, Resume, SysResult, Wait, WaitOn};
use crate::syscalls::args::{Args, Argument, Flags, Int, Ptr, Uint, Word};

const READ: u32 = 0o444;
const WRITE: u32 = 0o222;
/// SEMUSZ: the size of an undo structure, as semctl(2) has always told it.
const UNDO_SIZE: i32 = 20;

/// semget(2)
///
/// # Errors
/// As the man page has them.
pub fn sys_semget(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(key), Int(len), Flags(flags)) = args.decode();
    let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
    if len > SET_LEN_MAX {
        return Err(Errno::EINVAL);
    }
    let ids = &cx.kernel.ipc.semaphores.ids;
    let who = &*cx.creds();
    if let Some(id) = find(ids, who, (key, flags), |set| set.semaphores.len() >= len)? {
        return Ok(result(id));
    }
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    let perm = Perm::new(who, key, flags);
    let now = clock::realtime_s(cx.host);
    let semaphores = &mut cx.kernel.ipc.semaphores;
    semaphores
        .add(&mut cx.machine.memory, perm, len, now)
        .map(result)
}

/// semop(2)
pub fn sys_semop(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Int(id), Ptr(ops), Uint(count)) = args.decode();
    operate(cx, id, (ops, count), Gva(0), state).unwrap_or_else(|errno| Outcome::Done(Err(errno)))
}

/// semtimedop(2)
pub fn sys_semtimedop(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Int(id), Ptr(ops), Uint(count), Ptr(timeout)) = args.decode();
    operate(cx, id, (ops, count), timeout, state).unwrap_or_else(|errno| Outcome::Done(Err(errno)))
}

fn operate(
    cx: &mut Cx<'_>,
    id: i32,
    (ops, count): (Gva, u32),
    timeout: Gva,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let timeout = match timeout.0 {
        0 => None,
        _ => Some(cx.read_struct::<Timespec>(timeout)?),
    };
    let ops = read_operations(cx, ops, u64::from(count))?;
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    let timeout_ns = timeout.map(clock::timespec_ns).transpose()?;
    let pid = cx.process()?.pid;
    let entry = cx.kernel.ipc.semaphores.ids.get(id)?;
    let len = entry.object.semaphores.len();
    if ops.iter().any(|op| usize::from(op.number) >= len) {
        return Err(Errno::EFBIG);
    }
    let wanted = match ops.iter().any(|op| op.change != 0) {
        true => WRITE,
        false => READ,
    };
    entry.perm.check(&cx.creds(), wanted)?;
    let semaphores = &mut cx.kernel.ipc.semaphores;
    let memory = &mut cx.machine.memory;
    semaphores.check_undo(memory, pid, &ops)?;
    match semaphores.attempt(memory, id, (pid, &ops))? {
        Tried::Done => {
            let now = clock::realtime_s(cx.host);
            semaphores.ids.get_mut(id)?.object.otime = now;
            sem::settle(cx.kernel, memory, id, now);
            Ok(Outcome::Done(Ok(0)))
        }
        Tried::Failed(errno) => Err(errno),
        Tried::Waits(_) if !sem::may_wait(cx.kernel, id, &ops) => Err(Errno::ENOMEM),
        Tried::Waits(_) => {
            let until = |ns: u64| clock::monotonic_ns(cx.host).saturating_add(ns);
            Ok(Outcome::Wait(Wait {
                on: WaitOn::Line(Line::Semaphores(id), Wish::Operations(Arc::from(ops))),
                // Interrupted for nothing: the time it has begun with goes on.
                deadline_ns: state.deadline_ns.or(timeout_ns.map(until)),
                resume: Resume::Deliver {
                    at_deadline: Err(Errno::EAGAIN),
                    remain_gva: 0,
                },
            }))
        }
    }
}

fn read_operations(cx: &mut Cx<'_>, at: Gva, count: u64) -> Result<Vec<SemOp>, Errno> {
    if count > OPERATIONS_MAX {
        return Err(Errno::E2BIG);
    }
    if count == 0 {
        return Err(Errno::EINVAL);
    }
    let count = usize::try_from(count).map_err(|_| Errno::E2BIG)?;
    let mut raw = vec![Sembuf::new_zeroed(); count];
    cx.read(at, raw.as_mut_bytes())?;
    let op = |raw: &Sembuf| SemOp {
        number: raw.sem_num,
        change: raw.sem_op,
        flags: raw.sem_flg,
    };
    Ok(raw.iter().map(op).collect())
}

/// semctl(2)
///
/// # Errors
/// As the man page has them.
pub fn sys_semctl(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(id), Int(number), Int(command), Word(arg)) = args.decode();
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    match command {
        IPC_INFO | SEM_INFO => info(cx, command, Gva(arg)),
        IPC_STAT | SEM_STAT | SEM_STAT_ANY => status(cx, id, command, Gva(arg)),
        GETALL | GETVAL | GETPID | GETNCNT | GETZCNT => look(cx, id, number, (command, Gva(arg))),
        SETALL => set_all(cx, id, Gva(arg)),
        SETVAL => {
            let Int(value) = Argument::of(arg);
            set_value(cx, id, number, value)
        }
        IPC_SET => {
            let new: Semid64Ds = cx.read_struct(Gva(arg))?;
            let now = clock::realtime_s(cx.host);
            let creds = cx.creds();
            let entry = cx.kernel.ipc.semaphores.ids.get_mut(id)?;
            entry.perm.check_owner(&creds)?;
            entry.perm.update(&new.sem_perm)?;
            entry.object.ctime = now;
            Ok(0)
        }
        IPC_RMID => {
            let entry = cx.kernel.ipc.semaphores.ids.get(id)?;
            entry.perm.check_owner(&cx.creds())?;
            sem::remove(cx.kernel, &mut cx.machine.memory, id);
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn info(cx: &mut Cx<'_>, command: i32, buf: Gva) -> SysResult {
    let semaphores = &cx.kernel.ipc.semaphores;
    let all = field(SEMAPHORES_MAX as u64);
    let mut info = Seminfo {
        semmap: all,
        semmni: field(u64::from(SETS_MAX)),
        semmns: all,
        semmnu: all,
        semmsl: field(SET_LEN_MAX as u64),
        semopm: field(OPERATIONS_MAX),
        semume: field(OPERATIONS_MAX),
        semusz: UNDO_SIZE,
        semvmx: VALUE_MAX,
        semaem: VALUE_MAX,
    };
    if command == SEM_INFO {
        info.semusz = field(u64::from(semaphores.ids.len()));
        info.semaem = field(semaphores.count as u64);
    }
    let highest = semaphores.ids.highest();
    cx.write_struct(buf, &info)?;
    Ok(highest)
}

fn status(cx: &mut Cx<'_>, id: i32, command: i32, buf: Gva) -> SysResult {
    let ids = &cx.kernel.ipc.semaphores.ids;
    let id = match command {
        IPC_STAT => id,
        _ => ids.at_index(id)?,
    };
    let entry = ids.get(id)?;
    if command != SEM_STAT_ANY {
        entry.perm.check(&cx.creds(), READ)?;
    }
    let status = Semid64Ds {
        sem_perm: entry.perm.to_struct(),
        sem_otime: entry.object.otime,
        sem_ctime: entry.object.ctime,
        sem_nsems: entry.object.semaphores.len() as u64,
        ..Semid64Ds::default()
    };
    cx.write_struct(buf, &status)?;
    Ok(if command == IPC_STAT { 0 } else { result(id) })
}

fn look(cx: &mut Cx<'_>, id: i32, number: i32, (command, buf): (i32, Gva)) -> SysResult {
    let entry = cx.kernel.ipc.semaphores.ids.get(id)?;
    entry.perm.check(&cx.creds(), READ)?;
    let semaphores = &entry.object.semaphores;
    if command == GETALL {
        let value = |semaphore: &Semaphore| u16::try_from(semaphore.value).unwrap_or(0);
        let values: Vec<u16> = semaphores.iter().map(value).collect();
        cx.write(buf, values.as_bytes())?;
        return Ok(0);
    }
    let index = usize::try_from(number).map_err(|_| Errno::EINVAL)?;
    let semaphore = *semaphores.get(index).ok_or(Errno::EINVAL)?;
    let number = u16::try_from(index).map_err(|_| Errno::EINVAL)?;
    Ok(match command {
        GETVAL => u64::from(semaphore.value.cast_unsigned()),
        GETPID => u64::from(semaphore.pid.cast_unsigned()),
        GETNCNT => sem::waiters(cx.kernel, id, number, ForZero::No),
        _ => sem::waiters(cx.kernel, id, number, ForZero::Yes),
    })
}

fn set_value(cx: &mut Cx<'_>, id: i32, number: i32, value: i32) -> SysResult {
    if !(0..=VALUE_MAX).contains(&value) {
        return Err(Errno::ERANGE);
    }
    let entry = cx.kernel.ipc.semaphores.ids.get(id)?;
    let index = usize::try_from(number).map_err(|_| Errno::EINVAL)?;
    if index >= entry.object.semaphores.len() {
        return Err(Errno::EINVAL);
    }
    entry.perm.check(&cx.creds(), WRITE)?;
    let number = u16::try_from(index).map_err(|_| Errno::EINVAL)?;
    let pid = cx.process()?.pid.0;
    let set = &mut cx.kernel.ipc.semaphores.ids.get_mut(id)?.object;
    set.semaphores.set(index, Semaphore { value, pid });
    changed(cx, id, Some(number))
}

fn set_all(cx: &mut Cx<'_>, id: i32, buf: Gva) -> SysResult {
    let entry = cx.kernel.ipc.semaphores.ids.get(id)?;
    entry.perm.check(&cx.creds(), WRITE)?;
    let mut values = vec![0u16; entry.object.semaphores.len()];
    cx.read(buf, values.as_mut_bytes())?;
    if values.iter().any(|value| i32::from(*value) > VALUE_MAX) {
        return Err(Errno::ERANGE);
    }
    let pid = cx.process()?.pid.0;
    let semaphore = |value: u16| Semaphore {
        value: i32::from(value),
        pid,
    };
    let semaphores: Vector<Semaphore> = values.into_iter().map(semaphore).collect();
    let set: &mut Set = &mut cx.kernel.ipc.semaphores.ids.get_mut(id)?.object;
    set.semaphores = semaphores;
    changed(cx, id, None)
}

/// A semaphore, or all of a set, have values by decree.
fn changed(cx: &mut Cx<'_>, id: i32, number: Option<u16>) -> SysResult {
    let now = clock::realtime_s(cx.host);
    let memory = &mut cx.machine.memory;
    let semaphores = &mut cx.kernel.ipc.semaphores;
    semaphores.forget_undo(memory, id, number)?;
    semaphores.ids.get_mut(id)?.object.ctime = now;
    sem::settle(cx.kernel, memory, id, now);
    Ok(0)
}
