//! Memory for what clients have sent and not yet taken: one budget for all of them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Parts in which the budget is given.
const UNIT_BYTES: usize = 1 << 10;

/// A number of bytes that all connections share.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Semaphore>);

/// A part of the budget, until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Share {
    permit: Option<OwnedSemaphorePermit>,
    /// Of the permit, the bytes that are in use.
    used_bytes: usize,
    held_bytes: usize,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(units)))
    }

    /// A share of this size, if there is as much.
    pub(crate) fn take(&self, bytes: usize) -> Option<Share> {
        let mut share = Share::default();
        self.extend(&mut share, bytes).then_some(share)
    }

    /// Makes a share larger, or leaves it as it is and says false.
    pub(crate) fn extend(&self, share: &mut Share, bytes: usize) -> bool {
        let used_bytes = share.used_bytes + bytes;
        let missing = used_bytes.saturating_sub(share.held_bytes);
        let units = missing.div_ceil(UNIT_BYTES);
        if units > 0 {
            let Ok(units_32) = u32::try_from(units) else {
                return false;
            };
            let Ok(more) = Arc::clone(&self.0).try_acquire_many_owned(units_32) else {
                return false;
            };
            match &mut share.permit {
                Some(permit) => permit.merge(more),
                None => share.permit = Some(more),
            }
            share.held_bytes += units * UNIT_BYTES;
        }
        share.used_bytes = used_bytes;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let budget = Budget::new(10 << 10);
        let mut first = budget.take(6 << 10).unwrap();
        assert!(budget.take(5 << 10).is_none());
        assert!(budget.extend(&mut first, 4 << 10));
        assert!(!budget.extend(&mut first, 1));
        drop(first);
        assert!(budget.take(10 << 10).is_some());
    }

    #[test]
    fn small_pieces_share_a_unit() {
        let budget = Budget::new(2 << 10);
        let mut share = budget.take(1).unwrap();
        for _ in 0..2047 {
            assert!(budget.extend(&mut share, 1));
        }
        assert!(!budget.extend(&mut share, 1));
    }
}
