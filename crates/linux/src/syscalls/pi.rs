//! Mutexes with priority inheritance (futex(2)): the word has its owner's thread id, and the kernel knows
//! who waits.

use kvmlet_abi::linux::futex::{FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS};
use kvmlet_abi::{Errno, Gva};

use crate::cx::Cx;
use crate::kernel::Tid;
use crate::mm::user::{self, EXCHANGES_MAX};
use crate::outcome::{CallState, FutexKey, Outcome, Resume, Wait, WaitOn};

fn word_of(tid: Tid) -> u32 {
    u32::try_from(tid.0).unwrap_or(0) & FUTEX_TID_MASK
}

/// The thread that is to have a mutex.
#[derive(Clone, Copy)]
struct Taker {
    tid: Tid,
    /// It has waited: an owner that is gone has left the mutex to it.
    has_waited: bool,
    /// FUTEX_WAITERS if others are about to wait.
    waiters: u32,
}

impl Taker {
    fn caller(cx: &Cx<'_>, has_waited: bool) -> Self {
        Self {
            tid: cx.tid,
            has_waited,
            waiters: 0,
        }
    }
}

/// The outcome of a try to take a mutex.
enum Taken {
    Yes,
    /// This thread has it, and FUTEX_WAITERS is set in the word.
    No(Tid),
    /// The word is changed all the time.
    Unsettled,
}

fn take(cx: &mut Cx<'_>, uaddr: Gva, key: FutexKey, taker: Taker) -> Result<Taken, Errno> {
    let own = word_of(taker.tid);
    for _ in 0..EXCHANGES_MAX {
        let old = user::load_u32(cx, uaddr)?;
        let owner = old & FUTEX_TID_MASK;
        if owner == own {
            return Err(Errno::EDEADLK);
        }
        let tid = Tid(i32::try_from(owner).unwrap_or(0));
        let is_there = cx.kernel.threads.contains_key(&tid);
        let died = match (owner, is_there) {
            (0, _) => old & FUTEX_OWNER_DIED,
            (_, false) if taker.has_waited => FUTEX_OWNER_DIED,
            (_, false) => return Err(Errno::ESRCH),
            (_, true) => {
                if user::compare_exchange_u32(cx, uaddr, old, old | FUTEX_WAITERS)? {
                    return Ok(Taken::No(tid));
                }
                continue;
            }
        };
        let waiters = match cx.kernel.sched.pi.first(key) {
            Some(_) => FUTEX_WAITERS,
            None => taker.waiters,
        };
        if user::compare_exchange_u32(cx, uaddr, old, own | died | waiters)? {
            cx.kernel.sched.pi.owned_by(key, taker.tid);
            return Ok(Taken::Yes);
        }
    }
    Ok(Taken::Unsettled)
}

/// FUTEX_LOCK_PI and FUTEX_LOCK_PI2. Linux differs: a circle of owners that wait for each other is not found.
///
/// # Errors
/// `EDEADLK` if the caller has it, `ESRCH` if its owner is no thread, `ETIMEDOUT`, `EFAULT`.
pub fn lock(
    cx: &mut Cx<'_>,
    uaddr: Gva,
    key: FutexKey,
    deadline_ns: Option<u64>,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let taker = Taker::caller(cx, state.has_waited);
    match take(cx, uaddr, key, taker)? {
        Taken::Yes => Ok(Outcome::Done(Ok(0))),
        Taken::Unsettled => Ok(Outcome::Again(state.kept(0))),
        Taken::No(_) if state.expired => Err(Errno::ETIMEDOUT),
        Taken::No(owner) => Ok(Outcome::Wait(Wait {
            on: WaitOn::PiMutex(key, owner),
            deadline_ns,
            resume: Resume::Retry(CallState {
                deadline_ns,
                has_waited: true,
                is_requeued: state.is_requeued,
                ..CallState::default()
            }),
        })),
    }
}

/// FUTEX_TRYLOCK_PI.
///
/// # Errors
/// `EAGAIN` if another thread has it, else as [`lock`].
pub fn try_lock(
    cx: &mut Cx<'_>,
    uaddr: Gva,
    key: FutexKey,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let taker = Taker::caller(cx, false);
    match take(cx, uaddr, key, taker)? {
        Taken::Yes => Ok(Outcome::Done(Ok(0))),
        Taken::No(_) => Err(Errno::EAGAIN),
        Taken::Unsettled => Ok(Outcome::Again(state.kept(0))),
    }
}

/// FUTEX_UNLOCK_PI: the first who waits has the mutex then.
///
/// # Errors
/// `EPERM` if the caller does not have it, `EFAULT`.
pub fn unlock(
    cx: &mut Cx<'_>,
    uaddr: Gva,
    key: FutexKey,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let own = word_of(cx.tid);
    for _ in 0..EXCHANGES_MAX {
        let old = user::load_u32(cx, uaddr)?;
        if old & FUTEX_TID_MASK != own {
            return Err(Errno::EPERM);
        }
        let next = cx.kernel.sched.pi.first(key);
        let new = next.map_or(0, |tid| FUTEX_WAITERS | word_of(tid));
        if !user::compare_exchange_u32(cx, uaddr, old, new)? {
            continue;
        }
        if let Some(next) = next {
            cx.kernel.sched.pi.owned_by(key, next);
            cx.kernel.deliver(next, Ok(0));
        }
        return Ok(Outcome::Done(Ok(0)));
    }
    Ok(Outcome::Again(state.kept(0)))
}

/// FUTEX_CMP_REQUEUE_PI: the first who waits for `from` gets the mutex if nobody has it. The others wait for it
/// from now on, `max` of them, and one more if the first does too. Returns how many these are.
///
/// # Errors
/// `EINVAL` for a waiter that does not wait to be moved there; `EDEADLK` for one that has the mutex. Those before it
/// have been moved. `ESRCH` if the owner is no thread; `EFAULT`.
pub fn requeue(
    cx: &mut Cx<'_>,
    from: FutexKey,
    (uaddr, mutex): (Gva, FutexKey),
    max: u64,
    state: &CallState,
) -> Result<Outcome, Errno> {
    user::load_u32(cx, uaddr)?;
    let waiting = cx.kernel.sched.futex_line(from);
    let Some(first) = waiting.first().copied() else {
        return Ok(Outcome::Done(Ok(0)));
    };
    movable(cx, first, mutex)?;
    let taker = Taker {
        tid: first,
        has_waited: false,
        waiters: if max > 0 { FUTEX_WAITERS } else { 0 },
    };
    let (owner, mut moved) = match take(cx, uaddr, mutex, taker)? {
        Taken::Yes => {
            cx.kernel.deliver(first, Ok(0));
            (first, 1u64)
        }
        Taken::No(owner) => (owner, 0),
        Taken::Unsettled => return Ok(Outcome::Again(state.kept(0))),
    };
    let already = usize::from(moved > 0);
    for tid in waiting.into_iter().skip(already) {
        if moved > max {
            break;
        }
        movable(cx, tid, mutex)?;
        if tid == owner {
            return Err(Errno::EDEADLK);
        }
        cx.kernel.sched.move_to_mutex(tid, mutex, owner);
        moved = moved.saturating_add(1);
    }
    Ok(Outcome::Done(Ok(moved)))
}

fn movable(cx: &Cx<'_>, tid: Tid, mutex: FutexKey) -> Result<(), Errno> {
    let parked = cx.kernel.sched.parked.get(&tid);
    match parked.map(|parked| &parked.wait.on) {
        Some(WaitOn::Requeue(_, wanted)) if *wanted == mutex => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}
