//! Mutexes with priority inheritance (futex(2)): the word has its owner's thread id, and the kernel knows
//! who waits.

use kvmlet_abi::linux::futex::{FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS};
use kvmlet_abi::{Errno, Gva};

use crate::cx::Cx;
use crate::kernel::Tid;
use crate::mm::user::{self, EXCHANGES_MAX};
use crate::outcome::{CallState, FutexKey, Outcome, Resume, Wait, WaitOn};

fn own_word(cx: &Cx<'_>) -> u32 {
    u32::try_from(cx.tid.0).unwrap_or(0) & FUTEX_TID_MASK
}

/// The outcome of a try to take a mutex.
enum Taken {
    Yes,
    /// This thread has it, and FUTEX_WAITERS is set in the word.
    No(Tid),
    /// The word is changed all the time.
    Unsettled,
}

fn take(cx: &mut Cx<'_>, uaddr: Gva, key: FutexKey, has_waited: bool) -> Result<Taken, Errno> {
    let own = own_word(cx);
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
            (_, false) if has_waited => FUTEX_OWNER_DIED,
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
            None => 0,
        };
        if user::compare_exchange_u32(cx, uaddr, old, own | died | waiters)? {
            cx.kernel.sched.pi.owned_by(key, cx.tid);
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
    match take(cx, uaddr, key, state.has_waited)? {
        Taken::Yes => Ok(Outcome::Done(Ok(0))),
        Taken::Unsettled => Ok(Outcome::Again(state.kept(0))),
        Taken::No(_) if state.expired => Err(Errno::ETIMEDOUT),
        Taken::No(owner) => Ok(Outcome::Wait(Wait {
            on: WaitOn::PiMutex(key, owner),
            deadline_ns,
            resume: Resume::Retry(CallState {
                deadline_ns,
                has_waited: true,
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
    match take(cx, uaddr, key, false)? {
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
    let own = own_word(cx);
    for _ in 0..EXCHANGES_MAX {
        let old = user::load_u32(cx, uaddr)?;
        if old & FUTEX_TID_MASK != own {
            return Err(Errno::EPERM);
        }
        let next = cx.kernel.sched.pi.first(key);
        let new = next.map_or(0, |tid| FUTEX_WAITERS | u32::try_from(tid.0).unwrap_or(0));
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
