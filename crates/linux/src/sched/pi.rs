//! Mutexes with priority inheritance: who has each that somebody waits for (futex(2), FUTEX_LOCK_PI).
//!
//! An unlock hands the mutex to the first waiter. Only the default scheduling policies exist here, of which Linux
//! lets all wait at one priority: first come, first served, and nobody's priority changes.

use imbl::{OrdMap, OrdSet, Vector};

use super::Sched;
use crate::kernel::Tid;
use crate::outcome::{CallState, FutexKey, Resume, Wait, WaitOn};
use crate::vector;

/// Mutexes that somebody waits for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PiMutexes {
    mutexes: OrdMap<FutexKey, PiMutex>,
    owned: OrdSet<(Tid, FutexKey)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct PiMutex {
    owner: Tid,
    /// First come, first served.
    waiters: Vector<Tid>,
}

impl PiMutexes {
    /// Adds a waiter of a mutex that `owner` has.
    pub(super) fn wait(&mut self, key: FutexKey, tid: Tid, owner: Tid) {
        match self.mutexes.get_mut(&key) {
            Some(mutex) => mutex.waiters.push_back(tid),
            None => {
                let waiters = Vector::unit(tid);
                self.mutexes.insert(key, PiMutex { owner, waiters });
            }
        }
        self.owned_by(key, owner);
    }

    /// Takes a waiter out of its mutex's line.
    pub(super) fn leave(&mut self, key: FutexKey, tid: Tid) {
        let Some(mutex) = self.mutexes.get_mut(&key) else {
            return;
        };
        vector::retain(&mut mutex.waiters, |waiter| *waiter != tid);
        if mutex.waiters.is_empty() {
            self.owned.remove(&(mutex.owner, key));
            self.mutexes.remove(&key);
        }
    }

    /// The first that waits for a mutex.
    #[must_use]
    pub fn first(&self, key: FutexKey) -> Option<Tid> {
        self.mutexes.get(&key)?.waiters.front().copied()
    }

    /// Notes who has a mutex now, if somebody waits for it.
    pub fn owned_by(&mut self, key: FutexKey, owner: Tid) {
        if let Some(mutex) = self.mutexes.get_mut(&key) {
            self.owned.remove(&(mutex.owner, key));
            mutex.owner = owner;
            self.owned.insert((owner, key));
        }
    }

    /// A mutex that somebody waits for and this thread has.
    fn of(&self, owner: Tid) -> Option<FutexKey> {
        let least = FutexKey::Private(crate::kernel::MmId(0), 0);
        let (tid, key) = self.owned.range((owner, least)..).next()?;
        (*tid == owner).then_some(*key)
    }
}

impl Sched {
    /// A thread has ended. All who wait for a mutex that it had make their calls again, in their order. The first that
    /// can finds the owner gone and takes the mutex.
    pub fn pi_owner_gone(&mut self, owner: Tid) {
        while let Some(key) = self.pi.of(owner) {
            let Some(first) = self.pi.first(key) else {
                return;
            };
            self.retry(first, false);
        }
    }
}

impl Sched {
    /// Who waits for a futex, first come first.
    #[must_use]
    pub fn futex_line(&self, key: FutexKey) -> Vec<Tid> {
        let line = self.futexes.get(&key);
        line.into_iter().flatten().copied().collect()
    }

    /// True if the first who waits for a futex is to be moved to a mutex from there.
    #[must_use]
    pub fn awaits_mutex(&self, key: FutexKey) -> bool {
        let first = self.futexes.get(&key).and_then(|line| line.front());
        let parked = first.and_then(|tid| self.parked.get(tid));
        parked.is_some_and(|parked| matches!(parked.wait.on, WaitOn::Requeue(..)))
    }

    /// Has a thread that waits for a futex wait for a mutex that `owner` has, until the time it waited for.
    pub fn move_to_mutex(&mut self, tid: Tid, mutex: FutexKey, owner: Tid) {
        let Some(parked) = self.unpark(tid) else {
            return;
        };
        let deadline_ns = parked.wait.deadline_ns;
        let wait = Wait {
            on: WaitOn::PiMutex(mutex, owner),
            deadline_ns,
            resume: Resume::Retry(CallState {
                deadline_ns,
                has_waited: true,
                is_requeued: true,
                ..CallState::default()
            }),
        };
        self.park_call(tid, parked.call, wait, parked.interrupted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::MmId;

    #[test]
    fn owners_and_waiters_go_together() {
        let (key, other) = (
            FutexKey::Private(MmId(1), 8),
            FutexKey::Private(MmId(1), 16),
        );
        let mut pi = PiMutexes::default();
        pi.wait(key, Tid(2), Tid(1));
        pi.wait(key, Tid(3), Tid(1));
        pi.wait(other, Tid(4), Tid(1));
        pi.owned_by(key, Tid(2));
        assert_eq!((pi.of(Tid(1)), pi.of(Tid(2))), (Some(other), Some(key)));
        pi.leave(key, Tid(2));
        assert_eq!((pi.first(key), pi.of(Tid(3))), (Some(Tid(3)), None));
        pi.leave(key, Tid(3));
        pi.leave(other, Tid(4));
        assert_eq!(pi, PiMutexes::default());
    }
}
