//! Futexes of threads that end: robust lists, and the word that a joining thread waits for.

use kvmlet_abi::linux::futex::{
    FUTEX_BITSET_MATCH_ANY, FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS, ROBUST_LIST_LIMIT,
};
use kvmlet_abi::{Errno, Gva};

use crate::cx::Cx;
use crate::mm::user::{self, EXCHANGES_MAX};
use crate::outcome::FutexKey;

/// The key of a futex at `uaddr`, private to the address space or not.
///
/// # Errors
/// `EINVAL` if it is not aligned, `EFAULT` for a bad pointer.
pub fn key_of(cx: &mut Cx<'_>, uaddr: Gva, private: bool) -> Result<FutexKey, Errno> {
    if uaddr.0 & 3 != 0 {
        return Err(Errno::EINVAL);
    }
    if private {
        if !user::in_user_space(uaddr.0, 4) {
            return Err(Errno::EFAULT);
        }
        let mm = cx.process()?.mm;
        return Ok(FutexKey::Private(mm, uaddr.0));
    }
    user::futex_key(cx, uaddr)
}

/// Entries of robust lists that are walked for the threads that end together. Linux differs: it walks
/// [`ROBUST_LIST_LIMIT`] entries for each of them, however many they are.
const WALK_MAX: usize = 8 * ROBUST_LIST_LIMIT;

/// The futexes of threads that end together: of one thread, or of all of a process.
#[derive(Debug)]
pub struct Walk {
    /// Entries that may still be walked.
    left: usize,
}

impl Default for Walk {
    fn default() -> Self {
        Self { left: WALK_MAX }
    }
}

impl Walk {
    /// The kernel's work for the calling thread, which ends.
    ///
    /// Its robust mutexes are marked and one waiter of each woken (get_robust_list(2)). Then clear_child_tid is
    /// cleared and woken (set_tid_address(2)). Bad pointers in the guest's list end the walk.
    pub fn thread_exit(&mut self, cx: &mut Cx<'_>) {
        let Some(thread) = cx.kernel.threads.get(&cx.tid) else {
            return;
        };
        let (robust, clear) = (thread.robust_list, thread.clear_child_tid);
        if robust != 0 {
            let _ = self.walk_robust_list(cx, robust);
        }
        cx.kernel.sched.pi_owner_gone(cx.tid);
        if clear != 0 && cx.write_struct(Gva(clear), &0u32).is_ok() {
            wake_word(cx, clear, 1);
        }
    }

    fn walk_robust_list(&mut self, cx: &mut Cx<'_>, head: u64) -> Result<(), Errno> {
        let mut entry: u64 = cx.read_struct(Gva(head))?;
        let offset: u64 = cx.read_struct(Gva(head.wrapping_add(8)))?;
        let pending: u64 = cx.read_struct(Gva(head.wrapping_add(16)))?;
        for _ in 0..ROBUST_LIST_LIMIT.min(self.left) {
            self.left = self.left.saturating_sub(1);
            let node = entry & !1;
            if node == head {
                break;
            }
            let next = cx.read_struct(Gva(node));
            if node != pending & !1 {
                robust_death(cx, node.wrapping_add(offset), false)?;
            }
            entry = next?;
        }
        if pending & !1 != 0 {
            robust_death(cx, (pending & !1).wrapping_add(offset), true)?;
        }
        Ok(())
    }
}

fn robust_death(cx: &mut Cx<'_>, uaddr: u64, pending: bool) -> Result<(), Errno> {
    if uaddr & 3 != 0 {
        return Err(Errno::EINVAL);
    }
    for _ in 0..EXCHANGES_MAX {
        let old = user::load_u32(cx, Gva(uaddr))?;
        if pending && old & FUTEX_TID_MASK == 0 {
            wake_word(cx, uaddr, 1);
            return Ok(());
        }
        if old & FUTEX_TID_MASK != u32::try_from(cx.tid.0).unwrap_or(0) {
            return Ok(());
        }
        let new = (old & FUTEX_WAITERS) | FUTEX_OWNER_DIED;
        if user::compare_exchange_u32(cx, Gva(uaddr), old, new)? {
            if old & FUTEX_WAITERS != 0 {
                wake_word(cx, uaddr, 1);
            }
            return Ok(());
        }
    }
    // Others change it all the time: it is no mutex.
    Ok(())
}

/// Wakes waiters of a word whether they wait privately or shared.
fn wake_word(cx: &mut Cx<'_>, uaddr: u64, max: u64) {
    for private in [true, false] {
        if let Ok(key) = key_of(cx, Gva(uaddr), private)
            && cx.kernel.wake_futex(key, FUTEX_BITSET_MATCH_ANY, max) >= max
        {
            return;
        }
    }
}
