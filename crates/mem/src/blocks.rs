//! [`SpareBlocks`]: host memory for what is on its way, which is used again instead of given back.
//!
//! An allocator gives large buffers back to the host as soon as they are free. The next message then pays for their
//! pages anew: faults, clearing and the host's accounts cost more than the copy.

use core::fmt;
use core::ops::Deref;
use std::sync::Arc;

/// Length of a block, in bytes: the longest piece of a stream.
pub const BLOCK_BYTES: usize = 48_832;
/// Shorter contents have an allocation of their own length, in bytes. Allocators keep those.
const BLOCK_LEAST_BYTES: usize = 12 << 10;
/// Most blocks that are kept for one VM: a little more than the queue of one connection.
const SPARE_MAX: usize = 12;

/// Host memory that is to be filled, and that nobody else has.
pub struct Block(Arc<[u8]>);

impl Block {
    /// Its memory. It may have bytes of earlier messages of the same program: only what has been filled is to be shown.
    pub fn memory(&mut self) -> &mut [u8] {
        Arc::get_mut(&mut self.0).unwrap_or(&mut [])
    }

    /// Its first `len_bytes`, which have been filled.
    #[must_use]
    pub fn filled(self, len_bytes: usize) -> Bytes {
        Bytes {
            len_bytes: len_bytes.min(self.0.len()),
            memory: self.0,
        }
    }
}

/// Bytes in host memory that never change. Clones share them.
#[derive(Clone)]
pub struct Bytes {
    memory: Arc<[u8]>,
    len_bytes: usize,
}

impl Bytes {
    /// A copy, in an allocation of its own.
    #[must_use]
    pub fn copied(bytes: &[u8]) -> Self {
        Self {
            memory: Arc::from(bytes),
            len_bytes: bytes.len(),
        }
    }

    /// The host memory that it takes beyond its length, in bytes.
    #[must_use]
    pub fn unused_bytes(&self) -> usize {
        self.memory.len().saturating_sub(self.len_bytes)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.get(..self.len_bytes).unwrap_or_default()
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not what else lies in the block.
        fmt::Debug::fmt(&**self, f)
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Bytes {}

/// Blocks that nobody uses now. They are not charged: there are few, and each was charged when it was in use.
#[derive(Default)]
pub struct SpareBlocks(Vec<Arc<[u8]>>);

impl fmt::Debug for SpareBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SpareBlocks").field(&self.0.len()).finish()
    }
}

impl SpareBlocks {
    /// True if contents of this length are put in blocks.
    #[must_use]
    pub fn is_for(len_bytes: usize) -> bool {
        (BLOCK_LEAST_BYTES..=BLOCK_BYTES).contains(&len_bytes)
    }

    /// The host memory that contents of this length take beyond it, in bytes.
    #[must_use]
    pub fn unused_bytes(len_bytes: usize) -> usize {
        match Self::is_for(len_bytes) {
            true => BLOCK_BYTES.saturating_sub(len_bytes),
            false => 0,
        }
    }

    /// A block: one that was used before, if there is one.
    #[must_use]
    pub fn take(&mut self) -> Block {
        let made = || core::iter::repeat_n(0, BLOCK_BYTES).collect();
        Block(self.0.pop().unwrap_or_else(made))
    }

    /// A copy of `bytes`, in a block if they are for one.
    #[must_use]
    pub fn copied(&mut self, bytes: &[u8]) -> Bytes {
        if !Self::is_for(bytes.len()) {
            return Bytes::copied(bytes);
        }
        let mut block = self.take();
        if let Some(memory) = block.memory().get_mut(..bytes.len()) {
            memory.copy_from_slice(bytes);
        }
        block.filled(bytes.len())
    }

    /// Keeps the block of bytes that are no longer needed, unless somebody shares them or there are enough.
    pub fn give_back(&mut self, bytes: Bytes) {
        let mut memory = bytes.memory;
        let is_block = memory.len() == BLOCK_BYTES && Arc::get_mut(&mut memory).is_some();
        if is_block && self.0.len() < SPARE_MAX {
            self.0.push(memory);
        }
    }

    /// Gives all of them back to the host.
    pub fn clear(&mut self) {
        self.0 = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_used_again_and_shows_only_what_was_filled() {
        let mut spare = SpareBlocks::default();
        let secret = spare.copied(&[7; BLOCK_BYTES]);
        let place = secret.as_ptr();
        spare.give_back(secret);
        let next = spare.copied(&[1; BLOCK_LEAST_BYTES]);
        assert_eq!(next.as_ptr(), place);
        assert_eq!(*next, [1; BLOCK_LEAST_BYTES]);
        assert_eq!(next.unused_bytes(), BLOCK_BYTES - BLOCK_LEAST_BYTES);
        assert_eq!(next, Bytes::copied(&[1; BLOCK_LEAST_BYTES]));
    }

    #[test]
    fn what_somebody_shares_is_never_written_again() {
        let mut spare = SpareBlocks::default();
        let bytes = spare.copied(&[7; BLOCK_BYTES]);
        let shared = bytes.clone();
        spare.give_back(bytes);
        assert!(spare.0.is_empty());
        let _other = spare.copied(&[1; BLOCK_BYTES]);
        assert_eq!(*shared, [7; BLOCK_BYTES]);
    }

    #[test]
    fn few_are_kept_and_none_after_they_were_cleared() {
        let mut spare = SpareBlocks::default();
        let all: Vec<_> = (0..2 * SPARE_MAX)
            .map(|_| spare.copied(&[7; BLOCK_BYTES]))
            .collect();
        all.into_iter().for_each(|each| spare.give_back(each));
        assert_eq!(spare.0.len(), SPARE_MAX);
        spare.clear();
        assert!(spare.take().memory().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn short_and_very_long_contents_have_allocations_of_their_own() {
        let mut spare = SpareBlocks::default();
        for len in [0, 1, BLOCK_LEAST_BYTES - 1, BLOCK_BYTES + 1] {
            let bytes = spare.copied(&vec![3; len]);
            assert_eq!((bytes.len(), bytes.unused_bytes()), (len, 0));
            spare.give_back(bytes);
            assert!(spare.0.is_empty());
        }
    }
}
