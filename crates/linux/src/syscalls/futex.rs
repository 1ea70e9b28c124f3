//! futex(2) as operations on the kernel value.

use kvmlet_abi::linux::futex::{
    FUTEX_BITSET_MATCH_ANY, FUTEX_CLOCK_REALTIME, FUTEX_CMP_REQUEUE, FUTEX_CMP_REQUEUE_PI,
    FUTEX_LOCK_PI, FUTEX_LOCK_PI2, FUTEX_PRIVATE_FLAG, FUTEX_REQUEUE, FUTEX_TRYLOCK_PI,
    FUTEX_UNLOCK_PI, FUTEX_WAIT, FUTEX_WAIT_BITSET, FUTEX_WAIT_REQUEUE_PI, FUTEX_WAKE,
    FUTEX_WAKE_BITSET, FUTEX_WAKE_OP,
};
use kvmlet_abi::{Errno, Gva};

use crate::clock;
use crate::cx::Cx;
use crate::mm::user::{self, EXCHANGES_MAX};
use crate::outcome::{CallState, FutexKey, Outcome, Resume, SysResult, Wait, WaitOn};
use crate::syscalls::args::{Args, Int, Len, Ptr, Uint};
use crate::syscalls::pi;
use crate::task::robust;

/// futex(2)
pub fn sys_futex(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    match futex(cx, args, state) {
        Ok(outcome) => outcome,
        Err(errno) => Outcome::Done(Err(errno)),
    }
}

#[allow(clippy::cast_possible_truncation)]
fn futex(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Result<Outcome, Errno> {
    let (Ptr(uaddr), Uint(op), Uint(val), Ptr(timeout), Ptr(uaddr2), Uint(val3)) = args.decode();
    // Operations on two words take a count in the timeout's place.
    let second_count = timeout.0 as u32;
    let command = op & !(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME);
    let private = op & FUTEX_PRIVATE_FLAG != 0;
    let realtime = op & FUTEX_CLOCK_REALTIME != 0;
    let has_clock = matches!(
        command,
        FUTEX_WAIT | FUTEX_WAIT_BITSET | FUTEX_WAIT_REQUEUE_PI | FUTEX_LOCK_PI2
    );
    if realtime && !has_clock {
        return Err(Errno::ENOSYS);
    }
    match command {
        FUTEX_LOCK_PI | FUTEX_LOCK_PI2 => {
            let deadline_ns = match state.deadline_ns {
                Some(deadline_ns) => Some(deadline_ns),
                // The one without a choice of clocks has always meant this clock.
                None => wait_deadline(cx, timeout, true, realtime || command == FUTEX_LOCK_PI)?,
            };
            let key = robust::key_of(cx, uaddr, private)?;
            pi::lock(cx, uaddr, key, deadline_ns, state)
        }
        FUTEX_TRYLOCK_PI => {
            let key = robust::key_of(cx, uaddr, private)?;
            pi::try_lock(cx, uaddr, key, state)
        }
        FUTEX_UNLOCK_PI => {
            let key = robust::key_of(cx, uaddr, private)?;
            pi::unlock(cx, uaddr, key, state)
        }
        FUTEX_WAIT | FUTEX_WAIT_BITSET => {
            let bitset = if command == FUTEX_WAIT {
                FUTEX_BITSET_MATCH_ANY
            } else {
                val3
            };
            if bitset == 0 {
                return Err(Errno::EINVAL);
            }
            let deadline_ns = match state.deadline_ns {
                // Interrupted for nothing: the time it has begun with goes on.
                Some(deadline_ns) => Some(deadline_ns),
                None => wait_deadline(cx, timeout, command == FUTEX_WAIT_BITSET, realtime)?,
            };
            let key = robust::key_of(cx, uaddr, private)?;
            if user::load_u32(cx, uaddr)? != val {
                return Err(Errno::EAGAIN);
            }
            Ok(Outcome::Wait(Wait {
                on: WaitOn::Futex(key, bitset),
                deadline_ns,
                resume: Resume::Deliver {
                    at_deadline: Err(Errno::ETIMEDOUT),
                    remain_gva: 0,
                },
            }))
        }
        FUTEX_WAKE | FUTEX_WAKE_BITSET => {
            let bitset = if command == FUTEX_WAKE {
                FUTEX_BITSET_MATCH_ANY
            } else {
                val3
            };
            if bitset == 0 {
                return Err(Errno::EINVAL);
            }
            let key = robust::key_of(cx, uaddr, private)?;
            let max = wake_count(val);
            no_mutex(cx, key)?;
            Ok(Outcome::Done(Ok(cx.kernel.wake_futex(key, bitset, max))))
        }
        FUTEX_REQUEUE | FUTEX_CMP_REQUEUE => {
            if (val as i32) < 0 || (second_count as i32) < 0 {
                return Err(Errno::EINVAL);
            }
            let from = robust::key_of(cx, uaddr, private)?;
            let to = robust::key_of(cx, uaddr2, private)?;
            if command == FUTEX_CMP_REQUEUE && user::load_u32(cx, uaddr)? != val3 {
                return Err(Errno::EAGAIN);
            }
            no_mutex(cx, from)?;
            no_mutex(cx, to)?;
            let woken = cx
                .kernel
                .wake_futex(from, FUTEX_BITSET_MATCH_ANY, u64::from(val));
            let moved = (cx.kernel).requeue_futex(from, to, u64::from(second_count))?;
            Ok(Outcome::Done(Ok(woken.saturating_add(moved))))
        }
        FUTEX_WAIT_REQUEUE_PI => {
            if uaddr == uaddr2 {
                return Err(Errno::EINVAL);
            }
            let deadline_ns = match state.deadline_ns {
                Some(deadline_ns) => Some(deadline_ns),
                None => wait_deadline(cx, timeout, true, realtime)?,
            };
            let mutex = robust::key_of(cx, uaddr2, private)?;
            if state.is_requeued {
                return pi::lock(cx, uaddr2, mutex, deadline_ns, state);
            }
            let key = robust::key_of(cx, uaddr, private)?;
            if user::load_u32(cx, uaddr)? != val {
                return Err(Errno::EAGAIN);
            }
            if key == mutex {
                return Err(Errno::EINVAL);
            }
            Ok(Outcome::Wait(Wait {
                on: WaitOn::Requeue(key, mutex),
                deadline_ns,
                resume: Resume::Deliver {
                    at_deadline: Err(Errno::ETIMEDOUT),
                    remain_gva: 0,
                },
            }))
        }
        FUTEX_CMP_REQUEUE_PI => {
            if val != 1 || (second_count as i32) < 0 || uaddr == uaddr2 {
                return Err(Errno::EINVAL);
            }
            let from = robust::key_of(cx, uaddr, private)?;
            let mutex = robust::key_of(cx, uaddr2, private)?;
            if from == mutex {
                return Err(Errno::EINVAL);
            }
            if user::load_u32(cx, uaddr)? != val3 {
                return Err(Errno::EAGAIN);
            }
            pi::requeue(cx, from, (uaddr2, mutex), u64::from(second_count), state)
        }
        FUTEX_WAKE_OP => {
            let first = robust::key_of(cx, uaddr, private)?;
            let second = robust::key_of(cx, uaddr2, private)?;
            no_mutex(cx, first)?;
            let Some(old) = apply_op(cx, uaddr2, val3)? else {
                return Ok(Outcome::Again(state.kept(0)));
            };
            let mut woken = cx
                .kernel
                .wake_futex(first, FUTEX_BITSET_MATCH_ANY, wake_count(val));
            if compare_op(old, val3)? {
                no_mutex(cx, second)?;
                let max = wake_count(second_count);
                woken =
                    woken.saturating_add(cx.kernel.wake_futex(second, FUTEX_BITSET_MATCH_ANY, max));
            }
            Ok(Outcome::Done(Ok(woken)))
        }
        _ => {
            cx.host
                .report
                .unsupported("futex", format!("operation {command}"));
            Err(Errno::ENOSYS)
        }
    }
}

/// A plain wake is not for who waits for a mutex with priority inheritance, or to be moved to one.
///
/// # Errors
/// `EINVAL` if the first in the line does. Linux differs: a wake fails at any of those that it would wake, and here passes
/// over them.
fn no_mutex(cx: &Cx<'_>, key: FutexKey) -> Result<(), Errno> {
    let sched = &cx.kernel.sched;
    match sched.pi.first(key).is_some() || sched.awaits_mutex(key) {
        true => Err(Errno::EINVAL),
        false => Ok(()),
    }
}

/// Linux wakes one waiter for a count of 0 or less (futex(2) takes an int).
fn wake_count(val: u32) -> u64 {
    u64::from(val.clamp(1, i32::MAX as u32))
}

fn wait_deadline(
    cx: &mut Cx<'_>,
    gva: Gva,
    absolute: bool,
    realtime: bool,
) -> Result<Option<u64>, Errno> {
    if gva.0 == 0 {
        return Ok(None);
    }
    let time = clock::read_timespec(cx, gva)?;
    let now = clock::monotonic_ns(cx.host);
    if !absolute {
        return Ok(Some(now.saturating_add(time)));
    }
    if realtime {
        let wall = clock::realtime_ns(cx.host);
        return Ok(Some(now.saturating_add(time.saturating_sub(wall))));
    }
    Ok(Some(time))
}

/// FUTEX_WAKE_OP's read-modify-write of the second word; returns its old value, or `None` if others change it all
/// the time.
fn apply_op(cx: &mut Cx<'_>, gva: Gva, encoded: u32) -> Result<Option<u32>, Errno> {
    let mut operand = sign_extend_12(encoded >> 12);
    if encoded & (8 << 28) != 0 {
        operand = 1i32.wrapping_shl(operand as u32 & 31);
    }
    let operand = operand as u32;
    for _ in 0..EXCHANGES_MAX {
        let old = user::load_u32(cx, gva)?;
        let new = match (encoded >> 28) & 7 {
            0 => operand,
            1 => old.wrapping_add(operand),
            2 => old | operand,
            3 => old & !operand,
            4 => old ^ operand,
            _ => return Err(Errno::ENOSYS),
        };
        if user::compare_exchange_u32(cx, gva, old, new)? {
            return Ok(Some(old));
        }
    }
    Ok(None)
}

fn compare_op(old: u32, encoded: u32) -> Result<bool, Errno> {
    let argument = sign_extend_12(encoded);
    let old = old as i32;
    Ok(match (encoded >> 24) & 15 {
        0 => old == argument,
        1 => old != argument,
        2 => old < argument,
        3 => old <= argument,
        4 => old > argument,
        5 => old >= argument,
        _ => return Err(Errno::ENOSYS),
    })
}

fn sign_extend_12(value: u32) -> i32 {
    ((value << 20) as i32) >> 20
}

/// set_robust_list(2)
///
/// # Errors
/// `EINVAL` for a wrong length.
pub fn sys_set_robust_list(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(head), Len(len)) = args.decode();
    if len != 24 {
        return Err(Errno::EINVAL);
    }
    cx.thread()?.robust_list = head.0;
    Ok(0)
}

/// get_robust_list(2)
///
/// # Errors
/// `ESRCH`, `EFAULT`; `EPERM` for a thread of another user.
pub fn sys_get_robust_list(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(tid), Ptr(head_gva), Ptr(len_gva)) = args.decode();
    let tid = match tid {
        0 => cx.tid,
        tid => crate::kernel::Tid(tid),
    };
    let head = cx.kernel.threads.get(&tid).ok_or(Errno::ESRCH)?.robust_list;
    if tid != cx.tid {
        super::peer::accessible(cx, tid.0)?;
    }
    cx.write_struct(len_gva, &24u64)?;
    cx.write_struct(head_gva, &head)?;
    Ok(0)
}
