//! Semaphore sets (semget(2)), with the operations that wait and those that a process's end takes back.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};
use kvmlet_abi::Errno;
use kvmlet_abi::linux::ipc::{IPC_NOWAIT, SEM_UNDO};
use kvmlet_mem::GuestMemory;

use super::ids::{Ids, Perm};
use super::{Line, Wish};
use crate::id::{Pid, Tid};
use crate::kernel::Kernel;
use crate::outcome::WaitOn;

/// Sets that there may be (SEMMNI).
pub const SETS_MAX: u32 = 32_000;
/// Semaphores of a set (SEMMSL).
pub const SET_LEN_MAX: usize = 32_000;
/// Semaphores of all sets (SEMMNS).
pub const SEMAPHORES_MAX: usize = 1_024_000_000;
/// Operations of one call (SEMOPM).
pub const OPERATIONS_MAX: u64 = 500;
/// Highest value of a semaphore (SEMVMX), and of an adjustment (SEMAEM).
pub const VALUE_MAX: i32 = 32_767;
/// Operations that may wait for a set, of all threads together. Linux differs: it has no such limit.
const WAITING_MAX: usize = 16_384;
/// Those times the threads. A change looks at all operations that wait, and again for each thread that goes on: half
/// of this is one piece of work. Linux differs: it has no such limit.
const LOOKS_MAX: usize = 2_500_000;
/// Adjustments of a process at its end (SEM_UNDO): they are one piece of work. Linux differs: it has no such limit.
const UNDO_MAX: usize = 32_768;
/// Host memory charged to the program for a set, a semaphore and an adjustment: more than each takes.
const SET_COST_BYTES: u64 = 1024;
const SEMAPHORE_COST_BYTES: u64 = 24;
const UNDO_COST_BYTES: u64 = 128;

/// An operation of semop(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SemOp {
    /// The semaphore.
    pub number: u16,
    /// The amount that is added, or 0 to wait for 0.
    pub change: i16,
    /// IPC_NOWAIT, SEM_UNDO.
    pub flags: i16,
}

impl SemOp {
    /// True if the end of the process takes it back.
    #[must_use]
    pub fn is_undone(&self) -> bool {
        self.flags & SEM_UNDO != 0
    }

    fn must_not_wait(&self) -> bool {
        u32::from(self.flags.cast_unsigned()) & IPC_NOWAIT != 0
    }
}

/// A semaphore.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Semaphore {
    /// Its value, 0 to [`VALUE_MAX`].
    pub value: i32,
    /// The process that last changed it; 0 for none.
    pub pid: i32,
}

/// A set of semaphores.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// Its semaphores.
    pub semaphores: Vector<Semaphore>,
    /// Last semop(2), in seconds since the Epoch.
    pub otime: i64,
    /// Creation or last change by semctl(2).
    pub ctime: i64,
    /// Adjustments by process and semaphore, without zeros.
    undo: OrdMap<Pid, OrdMap<u16, i16>>,
}

/// The result of trying operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tried {
    /// All are done.
    Done,
    /// This one has to wait; none is done.
    Waits(usize),
    /// None is done.
    Failed(Errno),
}

/// All sets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Semaphores {
    /// By id.
    pub ids: Ids<Set>,
    /// Semaphores in all sets.
    pub count: usize,
    /// The sets in which a process has adjustments.
    undoing: OrdMap<Pid, OrdSet<i32>>,
    /// Adjustments of each process.
    undo_counts: OrdMap<Pid, usize>,
}

impl Set {
    /// A set of semaphores of value 0.
    #[must_use]
    pub fn new(len: usize, now: i64) -> Self {
        Self {
            semaphores: std::iter::repeat_n(Semaphore::default(), len).collect(),
            otime: 0,
            ctime: now,
            undo: OrdMap::new(),
        }
    }

    /// Host memory that a set of `len` semaphores takes, in bytes.
    #[must_use]
    pub fn cost_bytes(len: usize) -> u64 {
        SET_COST_BYTES.saturating_add(SEMAPHORE_COST_BYTES.saturating_mul(len as u64))
    }

    fn adjustment(&self, pid: Pid, number: u16) -> i32 {
        let of_process = self.undo.get(&pid);
        let adjustment = of_process.and_then(|numbers| numbers.get(&number));
        adjustment.map_or(0, |adjustment| i32::from(*adjustment))
    }

    /// Does all of the operations or none (perform_atomic_semop in ipc/sem.c). Adjustments are the caller's.
    fn attempt(&mut self, ops: &[SemOp], pid: Pid) -> Tried {
        let mut before: Vec<(usize, i32)> = Vec::with_capacity(ops.len());
        let mut undone: OrdMap<u16, i32> = OrdMap::new();
        let mut result = Tried::Done;
        for (at, op) in ops.iter().enumerate() {
            let number = usize::from(op.number);
            let Some(semaphore) = self.semaphores.get(number).copied() else {
                result = Tried::Failed(Errno::EFBIG);
                break;
            };
            let change = i32::from(op.change);
            let value = semaphore.value.saturating_add(change);
            if value < 0 || change == 0 && value != 0 {
                result = match op.must_not_wait() {
                    true => Tried::Failed(Errno::EAGAIN),
                    false => Tried::Waits(at),
                };
                break;
            }
            let mut is_in_range = value <= VALUE_MAX;
            if op.is_undone() {
                let old = undone.get(&op.number).copied();
                let old = old.unwrap_or_else(|| self.adjustment(pid, op.number));
                let adjustment = old.saturating_sub(change);
                is_in_range &= (-VALUE_MAX - 1..=VALUE_MAX).contains(&adjustment);
                undone.insert(op.number, adjustment);
            }
            if !is_in_range {
                result = Tried::Failed(Errno::ERANGE);
                break;
            }
            before.push((number, semaphore.value));
            if change != 0
                && let Some(semaphore) = self.semaphores.get_mut(number)
            {
                semaphore.value = value;
            }
        }
        if result == Tried::Done {
            for (number, _) in before {
                if let Some(semaphore) = self.semaphores.get_mut(number) {
                    semaphore.pid = pid.0;
                }
            }
            return result;
        }
        for (number, value) in before.into_iter().rev() {
            if let Some(semaphore) = self.semaphores.get_mut(number)
                && semaphore.value != value
            {
                semaphore.value = value;
            }
        }
        result
    }
}

impl Semaphores {
    /// Adds a set, charged to the program.
    ///
    /// # Errors
    /// `ENOSPC` if there are too many; `ENOMEM` at the memory limit.
    pub fn add(
        &mut self,
        memory: &mut GuestMemory,
        perm: Perm,
        len: usize,
        now: i64,
    ) -> Result<i32, Errno> {
        if len > SEMAPHORES_MAX.saturating_sub(self.count) {
            return Err(Errno::ENOSPC);
        }
        let cost_bytes = Set::cost_bytes(len);
        if !memory.has_room(cost_bytes) {
            return Err(Errno::ENOMEM);
        }
        let id = self.ids.add(perm, Set::new(len, now), SETS_MAX)?;
        memory.charge_kernel_anyway(cost_bytes);
        self.count = self.count.saturating_add(len);
        Ok(id)
    }

    /// Checks that a process may have as many adjustments more as operations have SEM_UNDO.
    ///
    /// # Errors
    /// `ENOMEM`
    pub fn check_undo(&self, memory: &GuestMemory, pid: Pid, ops: &[SemOp]) -> Result<(), Errno> {
        let more = ops.iter().filter(|op| op.is_undone()).count();
        if more == 0 {
            return Ok(());
        }
        let count = self.undo_counts.get(&pid).copied().unwrap_or(0);
        let cost_bytes = UNDO_COST_BYTES.saturating_mul(more as u64);
        if count.saturating_add(more) > UNDO_MAX || !memory.has_room(cost_bytes) {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    /// True if the end of a process takes anything back.
    #[must_use]
    pub fn has_undo(&self, pid: Pid) -> bool {
        self.undo_counts.contains_key(&pid)
    }

    /// Does all of the operations or none, and remembers what the end of the process takes back.
    ///
    /// # Errors
    /// As [`Ids::get`].
    pub fn attempt(
        &mut self,
        memory: &mut GuestMemory,
        id: i32,
        (pid, ops): (Pid, &[SemOp]),
    ) -> Result<Tried, Errno> {
        let set = &mut self.ids.get_mut(id)?.object;
        let tried = set.attempt(ops, pid);
        if tried != Tried::Done {
            return Ok(tried);
        }
        for op in ops.iter().filter(|op| op.is_undone() && op.change != 0) {
            let set = &mut self.ids.get_mut(id)?.object;
            let adjustment = set.adjustment(pid, op.number) - i32::from(op.change);
            let numbers = set.undo.entry(pid).or_default();
            let had = numbers.len();
            match i16::try_from(adjustment) {
                Ok(0) | Err(_) => numbers.remove(&op.number),
                Ok(adjustment) => numbers.insert(op.number, adjustment),
            };
            let (has, is_empty) = (numbers.len(), numbers.is_empty());
            if is_empty {
                set.undo.remove(&pid);
            }
            self.count_undo(memory, pid, (had, has));
            let sets = self.undoing.entry(pid).or_default();
            if is_empty {
                sets.remove(&id);
            } else {
                sets.insert(id);
            }
        }
        Ok(tried)
    }

    /// A process has another number of adjustments than it had.
    fn count_undo(&mut self, memory: &mut GuestMemory, pid: Pid, (had, has): (usize, usize)) {
        let more = has.saturating_sub(had);
        let fewer = had.saturating_sub(has);
        memory.charge_kernel_anyway(UNDO_COST_BYTES.saturating_mul(more as u64));
        memory.uncharge_kernel(UNDO_COST_BYTES.saturating_mul(fewer as u64));
        let count = self.undo_counts.entry(pid).or_default();
        *count = count.saturating_add(more).saturating_sub(fewer);
        if *count == 0 {
            self.undo_counts.remove(&pid);
        }
    }

    /// SETVAL: a semaphore has a new value, and nobody takes back what he did to it. SETALL: all have.
    ///
    /// # Errors
    /// As [`Ids::get`].
    pub fn forget_undo(
        &mut self,
        memory: &mut GuestMemory,
        id: i32,
        number: Option<u16>,
    ) -> Result<(), Errno> {
        let set = &mut self.ids.get_mut(id)?.object;
        let of_processes: Vec<Pid> = set.undo.keys().copied().collect();
        for pid in of_processes {
            let set = &mut self.ids.get_mut(id)?.object;
            let Some(numbers) = set.undo.get_mut(&pid) else {
                continue;
            };
            let had = numbers.len();
            match number {
                Some(number) => drop(numbers.remove(&number)),
                None => *numbers = OrdMap::new(),
            }
            let has = numbers.len();
            if has == 0 {
                set.undo.remove(&pid);
                if let Some(sets) = self.undoing.get_mut(&pid) {
                    sets.remove(&id);
                }
            }
            self.count_undo(memory, pid, (had, has));
        }
        Ok(())
    }
}

/// The operations that threads wait to do on a set, first come first.
fn waiting(kernel: &Kernel, id: i32) -> Vec<(Tid, Arc<[SemOp]>)> {
    let line = kernel.sched.in_line(Line::Semaphores(id));
    let wish = |tid: Tid| match &kernel.sched.parked.get(&tid)?.wait.on {
        WaitOn::Line(_, Wish::Operations(ops)) => Some((tid, Arc::clone(ops))),
        _ => None,
    };
    line.filter_map(wish).collect()
}

/// True if another thread may wait with these operations.
#[must_use]
pub fn may_wait(kernel: &Kernel, id: i32, ops: &[SemOp]) -> bool {
    let waiting = waiting(kernel, id);
    let all: usize = waiting.iter().map(|(_, ops)| ops.len()).sum();
    let all = all.saturating_add(ops.len());
    let threads = waiting.len().saturating_add(1);
    all <= WAITING_MAX && all.saturating_mul(threads) <= LOOKS_MAX
}

/// Threads that wait for a semaphore to become 0 (GETZCNT), or for it to grow (GETNCNT).
#[must_use]
pub fn waiters(kernel: &Kernel, id: i32, number: u16, for_zero: ForZero) -> u64 {
    let Ok(entry) = kernel.ipc.semaphores.ids.get(id) else {
        return 0;
    };
    let mut set = entry.object.clone();
    let mut count = 0u64;
    for (tid, ops) in waiting(kernel, id) {
        let Some(pid) = kernel.threads.get(&tid).map(|thread| thread.pid) else {
            continue;
        };
        let Tried::Waits(at) = set.attempt(&ops, pid) else {
            continue;
        };
        let is_it = ops.get(at).is_some_and(|op| {
            op.number == number && (op.change == 0) == (for_zero == ForZero::Yes)
        });
        count = count.saturating_add(u64::from(is_it));
    }
    count
}

/// Says what is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForZero {
    /// The value 0.
    Yes,
    /// A value that is high enough.
    No,
}

/// Does what threads wait to do and can now be done: first those who wait for 0, then in the order in which they came.
/// Each that changes something begins the search anew (update_queue in ipc/sem.c). Nothing is searched where nobody
/// waits.
pub fn settle(kernel: &mut Kernel, memory: &mut GuestMemory, id: i32, now: i64) {
    let mut left = waiting(kernel, id);
    // Those who change nothing come first.
    left.sort_by_key(|(_, ops)| ops.iter().any(|op| op.change != 0));
    loop {
        let mut changed = None;
        for (at, (tid, ops)) in left.iter().enumerate() {
            let Some(pid) = kernel.threads.get(tid).map(|thread| thread.pid) else {
                continue;
            };
            let tried = attempt_later(kernel, memory, id, (pid, ops));
            let result = match tried {
                Ok(Tried::Waits(_)) => continue,
                Ok(Tried::Done) => Ok(0),
                Ok(Tried::Failed(errno)) | Err(errno) => Err(errno),
            };
            if result.is_ok()
                && let Ok(entry) = kernel.ipc.semaphores.ids.get_mut(id)
            {
                entry.object.otime = now;
            }
            kernel.deliver(*tid, result);
            changed = Some(at);
            break;
        }
        match changed {
            Some(at) => drop(left.remove(at)),
            None => return,
        }
    }
}

/// Does what a thread has waited to do, if it can be done and taken back now.
fn attempt_later(
    kernel: &mut Kernel,
    memory: &mut GuestMemory,
    id: i32,
    (pid, ops): (Pid, &[SemOp]),
) -> Result<Tried, Errno> {
    let semaphores = &mut kernel.ipc.semaphores;
    if let Err(errno) = semaphores.check_undo(memory, pid, ops) {
        let mut set = semaphores.ids.get(id)?.object.clone();
        return Ok(match set.attempt(ops, pid) {
            Tried::Done => Tried::Failed(errno),
            tried => tried,
        });
    }
    semaphores.attempt(memory, id, (pid, ops))
}

/// IPC_RMID: the set goes, and who waits for it is told so.
pub fn remove(kernel: &mut Kernel, memory: &mut GuestMemory, id: i32) {
    // It is there.
    let _ = kernel.ipc.semaphores.forget_undo(memory, id, None);
    let Some(entry) = kernel.ipc.semaphores.ids.remove(id) else {
        return;
    };
    let len = entry.object.semaphores.len();
    memory.uncharge_kernel(Set::cost_bytes(len));
    kernel.ipc.semaphores.count = kernel.ipc.semaphores.count.saturating_sub(len);
    for (tid, _) in waiting(kernel, id) {
        kernel.deliver(tid, Err(Errno::EIDRM));
    }
}

/// A process ends: what it did with SEM_UNDO is taken back (exit_sem in ipc/sem.c).
pub fn process_gone(kernel: &mut Kernel, memory: &mut GuestMemory, pid: Pid, now: i64) {
    let sets = kernel.ipc.semaphores.undoing.remove(&pid);
    for id in sets.unwrap_or_default() {
        let Ok(entry) = kernel.ipc.semaphores.ids.get_mut(id) else {
            continue;
        };
        let set = &mut entry.object;
        let numbers = set.undo.remove(&pid).unwrap_or_default();
        for (number, adjustment) in &numbers {
            if let Some(semaphore) = set.semaphores.get_mut(usize::from(*number)) {
                let value = semaphore.value.saturating_add(i32::from(*adjustment));
                semaphore.value = value.clamp(0, VALUE_MAX);
                semaphore.pid = pid.0;
            }
        }
        set.otime = now;
        let had = numbers.len();
        kernel.ipc.semaphores.count_undo(memory, pid, (had, 0));
        settle(kernel, memory, id, now);
    }
}
