//! The frame allocator: 2 MiB blocks, whole or divided into 512 base frames. Bookkeeping only; it
//! never touches the memory itself.

use kvmlet_abi::{Gpa, HUGE_PAGE_SIZE, PAGE_SIZE};

use crate::set::IndexSet;

/// Base frames in a block.
pub(crate) const FRAMES_PER_BLOCK: usize = (HUGE_PAGE_SIZE / PAGE_SIZE) as usize;

/// Contiguous base frames, lowest address first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameRun {
    /// First frame.
    pub gpa: Gpa,
    /// Number of base frames, at least 1.
    pub pages: u64,
}

/// Index of a block in its pool.
pub(crate) type BlockId = u32;

/// A block divided into base frames. A frame is free, held (freed, waiting for a flush) or in use.
#[derive(Clone, Debug)]
struct Divided {
    free: IndexSet,
    held: IndexSet,
    /// Free and held frames known to hold zeros.
    zero: IndexSet,
    /// Frames in use that are not counted against the limit.
    uncounted: IndexSet,
    /// References per frame in use; absent while every one of them is 1.
    refs: Option<Box<[u32; FRAMES_PER_BLOCK]>>,
    /// Place in the pool's list of blocks with free frames.
    listed_at: Option<u32>,
    /// Whether the block is in the list of blocks with held frames.
    listed_held: bool,
}

#[derive(Clone, Debug)]
enum State {
    /// In the list of clean or of resident blocks; whether it is known to hold zeros.
    Free {
        zero: bool,
    },
    /// Handed out whole.
    Whole {
        refs: u32,
    },
    /// Freed whole, waiting for a flush.
    HeldWhole {
        zero: bool,
    },
    Divided(Box<Divided>),
}

#[derive(Clone, Debug)]
struct Block {
    gpa: Gpa,
    state: State,
    /// Frames that were handed out since the host last took the block back (or ever): what may
    /// occupy host memory.
    used: IndexSet,
}

impl Block {
    fn frame(&self, index: usize) -> Gpa {
        self.gpa.wrapping_add(index as u64 * PAGE_SIZE)
    }

    /// The frames in use.
    fn in_use(&self) -> IndexSet {
        match &self.state {
            State::Free { .. } | State::HeldWhole { .. } => IndexSet::EMPTY,
            State::Whole { .. } => IndexSet::FULL,
            State::Divided(divided) => divided.free.complement().without(&divided.held),
        }
    }
}

/// A frame or block taken from the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Taken {
    pub gpa: Gpa,
    /// True if the memory is known to hold zeros already.
    pub zero: bool,
}

/// What dropping a reference did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dropped {
    /// Other references remain.
    Shared,
    /// The memory went to the quarantine.
    Freed,
    /// So it did, and it was not counted against the limit.
    FreedUncounted,
    /// Not allocated: nothing was done.
    Invalid,
}

/// What [`FramePool::reset`] asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wipe {
    /// Zeros in a base frame.
    Frame(Gpa),
    /// Zeros in a 2 MiB block that was handed out whole.
    Block(Gpa),
    /// The block's memory to go back to the host, which makes it read as zeros.
    GiveBack(Gpa),
}

/// When frames freed by a reset can be handed out again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reuse {
    /// At once: nothing translates to them.
    Now,
    /// After the next flush.
    AfterFlush,
}

/// All blocks of one kind of memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct FramePool {
    /// Free blocks kept with their host memory, so that a program that maps and unmaps in a loop, or
    /// one request after the other, does not make the host free and zero the same memory each time.
    kept_blocks: usize,
    blocks: Vec<Block>,
    /// Free blocks that hold zeros; the lowest address last.
    clean: Vec<BlockId>,
    /// Free blocks that have host memory; taken first.
    resident: Vec<BlockId>,
    /// Divided blocks with at least one free frame.
    partial: Vec<BlockId>,
    /// Divided blocks with held frames, and held whole blocks.
    held: Vec<BlockId>,
    held_bytes: u64,
    /// Frames in [`Block::used`] of all blocks.
    used_frames: u64,
}

impl FramePool {
    pub(crate) fn new(kept_blocks: usize) -> Self {
        Self {
            kept_blocks,
            ..Self::default()
        }
    }

    /// Adds `count` blocks of zeroed memory from `gpa`; answers the id of the first.
    pub(crate) fn add_blocks(&mut self, gpa: Gpa, count: u32) -> BlockId {
        let first = self.blocks.len() as BlockId;
        for index in 0..count {
            self.blocks.push(Block {
                gpa: gpa.wrapping_add(u64::from(index) * HUGE_PAGE_SIZE),
                state: State::Free { zero: true },
                used: IndexSet::EMPTY,
            });
        }
        let fresh = (first..first + count).rev();
        self.clean.splice(0..0, fresh);
        first
    }

    /// Bytes freed and not yet released.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Bytes that may occupy host memory: what was handed out and not given back to the host since.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_frames * PAGE_SIZE
    }

    /// Up to `max` consecutive frames of one block, in address order; `None` when a block must be
    /// added. `zeros` says of each in turn whether it holds zeros.
    pub(crate) fn take_run(&mut self, max: u64, zeros: impl FnMut(Taken)) -> Option<FrameRun> {
        let id = self.block_with_free_frame()?;
        self.take_from(id, max, zeros)
    }

    /// The frames that [`FramePool::take_run`] takes next: the first, and how many follow each other, at most `max`.
    pub(crate) fn next_run(&mut self, max: usize) -> Option<(Gpa, usize)> {
        let id = self.block_with_free_frame()?;
        let block = self.blocks.get(id as usize)?;
        let State::Divided(divided) = &block.state else {
            return None;
        };
        let first = divided.free.first()?;
        let run = (first..FRAMES_PER_BLOCK).take_while(|&index| divided.free.has(index));
        Some((block.frame(first), run.take(max).count()))
    }

    /// As [`FramePool::take_run`], but never divides a free block.
    pub(crate) fn take_scattered(
        &mut self,
        max: u64,
        zeros: impl FnMut(Taken),
    ) -> Option<FrameRun> {
        let id = *self.partial.last()?;
        self.take_from(id, max, zeros)
    }

    fn take_from(&mut self, id: BlockId, max: u64, zeros: impl FnMut(Taken)) -> Option<FrameRun> {
        let State::Divided(divided) = &self.blocks[id as usize].state else {
            return None;
        };
        let first = divided.free.first()?;
        let run = (first..FRAMES_PER_BLOCK).take_while(|&index| divided.free.has(index));
        let count = run
            .take(usize::try_from(max).unwrap_or(FRAMES_PER_BLOCK))
            .count();
        self.take_at(id, first, count, zeros)
    }

    /// Exactly `count` consecutive frames of one block; `None` when a block must be added.
    pub(crate) fn take_exact(
        &mut self,
        count: usize,
        zeros: impl FnMut(Taken),
    ) -> Option<FrameRun> {
        let fits = |id: &BlockId| match &self.blocks[*id as usize].state {
            State::Divided(divided) => divided.free.run_of(count).map(|first| (*id, first)),
            _ => None,
        };
        let (id, first) = match self.partial.iter().find_map(fits) {
            Some(found) => found,
            None if (1..=FRAMES_PER_BLOCK).contains(&count) => (self.divide_free_block()?, 0),
            None => return None,
        };
        self.take_at(id, first, count, zeros)
    }

    /// Takes free frames of a divided block.
    fn take_at(
        &mut self,
        id: BlockId,
        first: usize,
        count: usize,
        mut zeros: impl FnMut(Taken),
    ) -> Option<FrameRun> {
        let block = &mut self.blocks[id as usize];
        let start = block.frame(first);
        let State::Divided(divided) = &mut block.state else {
            return None;
        };
        for index in first..first + count {
            divided.free.remove(index);
            zeros(Taken {
                gpa: block.gpa.wrapping_add(index as u64 * PAGE_SIZE),
                zero: divided.zero.has(index),
            });
            divided.zero.remove(index);
            if let Some(refs) = &mut divided.refs {
                refs[index] = 1;
            }
            if !block.used.has(index) {
                block.used.add(index);
                self.used_frames += 1;
            }
        }
        if divided.free.first().is_none() {
            self.unlist(id);
        }
        let run = FrameRun {
            gpa: start,
            pages: count as u64,
        };
        (count > 0).then_some(run)
    }

    /// One whole block; one whose host memory is there already if possible.
    pub(crate) fn take_block(&mut self) -> Option<Taken> {
        let (id, zero) = self.pop_free_block()?;
        let block = &mut self.blocks[id as usize];
        block.state = State::Whole { refs: 1 };
        self.used_frames += (FRAMES_PER_BLOCK - block.used.len()) as u64;
        block.used = IndexSet::FULL;
        Some(Taken {
            gpa: block.gpa,
            zero,
        })
    }

    /// Takes a free block off its list; whether it holds zeros.
    fn pop_free_block(&mut self) -> Option<(BlockId, bool)> {
        let id = self.resident.pop().or_else(|| self.clean.pop())?;
        let zero = matches!(self.blocks[id as usize].state, State::Free { zero: true });
        Some((id, zero))
    }

    /// References to a frame or to the whole block it is in; 0 if not allocated.
    pub(crate) fn refs(&self, id: BlockId, index: usize) -> u32 {
        match self.blocks.get(id as usize).map(|block| &block.state) {
            Some(State::Whole { refs }) => *refs,
            Some(State::Divided(divided)) if divided.in_use(index) => {
                divided.refs.as_ref().map_or(1, |refs| refs[index])
            }
            _ => 0,
        }
    }

    /// Adds a reference to one frame, dividing a whole block; false if it is not allocated.
    /// A count that reaches `u32::MAX` stays there: the frame is never freed, rather than too early.
    pub(crate) fn add_ref(&mut self, id: BlockId, index: usize) -> bool {
        match self.divided_mut(id) {
            Some(divided) if divided.in_use(index) => {
                let refs = divided
                    .refs
                    .get_or_insert_with(|| Box::new([1; FRAMES_PER_BLOCK]));
                refs[index] = refs[index].saturating_add(1);
                true
            }
            _ => false,
        }
    }

    /// Adds a reference to a whole block (or to each of its frames once it has been divided).
    pub(crate) fn add_block_ref(&mut self, id: BlockId) -> bool {
        match self.blocks.get_mut(id as usize).map(|b| &mut b.state) {
            Some(State::Whole { refs }) => {
                *refs = refs.saturating_add(1);
                true
            }
            Some(State::Divided(_)) => {
                let frames = 0..FRAMES_PER_BLOCK;
                frames.filter(|&index| self.add_ref(id, index)).count() == FRAMES_PER_BLOCK
            }
            _ => false,
        }
    }

    /// Drops a reference to one frame, dividing a whole block.
    pub(crate) fn drop_ref(&mut self, id: BlockId, index: usize) -> Dropped {
        let Some(divided) = self.divided_mut(id) else {
            return Dropped::Invalid;
        };
        if !divided.in_use(index) {
            return Dropped::Invalid;
        }
        if let Some(refs) = &mut divided.refs {
            if refs[index] == u32::MAX {
                return Dropped::Shared;
            }
            refs[index] -= 1;
            if refs[index] > 0 {
                return Dropped::Shared;
            }
        }
        divided.held.add(index);
        let dropped = match divided.uncounted.has(index) {
            true => Dropped::FreedUncounted,
            false => Dropped::Freed,
        };
        divided.uncounted.remove(index);
        if !divided.listed_held {
            divided.listed_held = true;
            self.held.push(id);
        }
        self.held_bytes += PAGE_SIZE;
        dropped
    }

    /// Drops a reference to a whole block; `None` if it has been divided (its frames are dropped one
    /// by one).
    pub(crate) fn drop_block_ref(&mut self, id: BlockId) -> Option<Dropped> {
        let Some(block) = self.blocks.get_mut(id as usize) else {
            return Some(Dropped::Invalid);
        };
        match &mut block.state {
            State::Divided(_) => None,
            State::Whole { refs } if *refs == 1 => {
                block.state = State::HeldWhole { zero: false };
                self.held.push(id);
                self.held_bytes += HUGE_PAGE_SIZE;
                Some(Dropped::Freed)
            }
            State::Whole { refs } => {
                if *refs != u32::MAX {
                    *refs -= 1;
                }
                Some(Dropped::Shared)
            }
            State::Free { .. } | State::HeldWhole { .. } => Some(Dropped::Invalid),
        }
    }

    /// Ends the quarantine. `give_back` returns a wholly free block to the host and says whether it
    /// reads as zeros from then on.
    pub(crate) fn release_held(&mut self, mut give_back: impl FnMut(Gpa) -> bool) {
        self.held_bytes = 0;
        for id in core::mem::take(&mut self.held) {
            let block = &mut self.blocks[id as usize];
            let zero = match &mut block.state {
                State::Divided(divided) => {
                    divided.listed_held = false;
                    divided.free = divided.free.with(&divided.held);
                    divided.held = IndexSet::EMPTY;
                    let zero = divided.zero == IndexSet::FULL;
                    if divided.free.len() < FRAMES_PER_BLOCK {
                        self.list(id);
                        continue;
                    }
                    self.unlist(id);
                    zero
                }
                State::HeldWhole { zero } => *zero,
                State::Free { .. } | State::Whole { .. } => continue,
            };
            let block = &mut self.blocks[id as usize];
            if self.resident.len() < self.kept_blocks || !give_back(block.gpa) {
                block.state = State::Free { zero };
                self.resident.push(id);
            } else {
                block.state = State::Free { zero: true };
                self.used_frames -= block.used.len() as u64;
                block.used = IndexSet::EMPTY;
                self.clean.push(id);
            }
        }
    }

    // ---- freezing and resetting ---------------------------------------------------------------

    /// Calls `each` for every frame in use with the place of its block, and its own in that.
    pub(crate) fn for_each_used(&self, mut each: impl FnMut(BlockId, usize, Gpa)) {
        for (id, block) in self.blocks.iter().enumerate() {
            for index in block.in_use().iter() {
                each(id as BlockId, index, block.frame(index));
            }
        }
    }

    /// Gives the free blocks' memory back to the host; the pool is not used any more.
    pub(crate) fn give_back_free(&mut self, mut give_back: impl FnMut(Gpa) -> bool) {
        self.release_held(&mut give_back);
        for &id in &self.resident {
            give_back(self.blocks[id as usize].gpa);
        }
    }

    /// The pool that forks start with: what is in use stays so, uncounted; everything else is free and
    /// holds zeros. A frame that leaves have in common with its owner is never freed: resets put such leaves
    /// back, and references to them are not counted anew.
    pub(crate) fn frozen(&self) -> Self {
        let mut pool = Self::new(self.kept_blocks);
        for block in &self.blocks {
            let id = pool.add_blocks(block.gpa, 1);
            let used = block.in_use();
            if used.is_empty() {
                continue;
            }
            pool.clean.retain(|&clean| clean != id);
            let free = used.complement();
            let refs = match &block.state {
                State::Divided(divided) => divided.refs.clone().map(|mut refs| {
                    refs.iter_mut()
                        .filter(|refs| **refs > 1)
                        .for_each(|refs| *refs = u32::MAX);
                    refs
                }),
                _ => None,
            };
            pool.blocks[id as usize].state = State::Divided(Box::new(Divided {
                free,
                held: IndexSet::EMPTY,
                zero: free,
                uncounted: used,
                refs,
                listed_at: None,
                listed_held: false,
            }));
            if !free.is_empty() {
                pool.list(id);
            }
        }
        pool
    }

    /// Takes every frame in use out of the count.
    pub(crate) fn uncount_all(&mut self) {
        for block in &mut self.blocks {
            let used = block.in_use();
            if let State::Divided(divided) = &mut block.state {
                divided.uncounted = used;
            }
        }
    }

    /// Takes a frame of a divided block out of the count; whether it was in use and counted.
    pub(crate) fn uncount(&mut self, id: BlockId, index: usize) -> bool {
        match self.blocks.get_mut(id as usize).map(|b| &mut b.state) {
            Some(State::Divided(divided))
                if divided.in_use(index) && !divided.uncounted.has(index) =>
            {
                divided.uncounted.add(index);
                true
            }
            _ => false,
        }
    }

    /// True if [`FramePool::uncount`] would be true of each of these frames.
    pub(crate) fn can_uncount(&self, id: BlockId, frames: &IndexSet) -> bool {
        match self.blocks.get(id as usize).map(|block| &block.state) {
            Some(State::Divided(divided)) => {
                let unused = divided.free.with(&divided.held).with(&divided.uncounted);
                frames.without(&unused) == *frames
            }
            _ => false,
        }
    }

    /// As [`FramePool::uncount`], of frames of which it can be.
    pub(crate) fn uncount_set(&mut self, id: BlockId, frames: &IndexSet) {
        if let Some(State::Divided(divided)) =
            self.blocks.get_mut(id as usize).map(|b| &mut b.state)
        {
            divided.uncounted = divided.uncounted.with(frames);
        }
    }

    /// Takes back [`FramePool::uncount`] of one frame.
    pub(crate) fn count(&mut self, id: BlockId, index: usize) {
        if let Some(State::Divided(divided)) =
            self.blocks.get_mut(id as usize).map(|b| &mut b.state)
        {
            divided.uncounted.remove(index);
        }
    }

    /// Counts every frame again, so that [`FramePool::uncount`] can mark what a reset keeps.
    pub(crate) fn count_all(&mut self) {
        for block in &mut self.blocks {
            if let State::Divided(divided) = &mut block.state {
                divided.uncounted = IndexSet::EMPTY;
            }
        }
    }

    /// Frees everything but the uncounted frames, which are left with one reference, and has all that
    /// is free wiped. A few free blocks keep their host memory. `wipe` says whether it
    /// could; what it could not is zeroed when it is handed out. Answers the number of base frames
    /// wiped.
    pub(crate) fn reset(&mut self, reuse: Reuse, mut wipe: impl FnMut(Wipe) -> bool) -> u64 {
        self.held.clear();
        self.held_bytes = 0;
        self.resident.clear();
        self.partial.clear();
        let (mut wiped, mut blocks_kept) = (0, 0);
        let mut partial = Vec::new();
        for id in 0..self.blocks.len() as BlockId {
            let block = &mut self.blocks[id as usize];
            if let State::Divided(divided) = &mut block.state
                && !divided.uncounted.is_empty()
            {
                wiped += divided.reset(block.gpa, &block.used, reuse, &mut wipe);
                partial.push(id);
                continue;
            }
            let (dirty, was_free) = match &block.state {
                State::Free { .. } if block.used.is_empty() => continue,
                State::Free { zero: true } => (IndexSet::EMPTY, true),
                State::Free { zero: false } => (block.used, true),
                State::Whole { .. } | State::HeldWhole { zero: false } => (block.used, false),
                State::HeldWhole { zero: true } => (IndexSet::EMPTY, false),
                State::Divided(divided) => {
                    let dirty = block.used.without(&divided.zero);
                    (dirty, divided.free == IndexSet::FULL)
                }
            };
            wiped += dirty.len() as u64;
            let mut zero = true;
            if blocks_kept == self.kept_blocks && wipe(Wipe::GiveBack(block.gpa)) {
                self.used_frames -= block.used.len() as u64;
                block.used = IndexSet::EMPTY;
            } else if dirty == IndexSet::FULL {
                zero = wipe(Wipe::Block(block.gpa));
            } else {
                for index in dirty.iter() {
                    zero &= wipe(Wipe::Frame(block.frame(index)));
                }
            }
            blocks_kept += usize::from(!block.used.is_empty());
            if !was_free && reuse == Reuse::AfterFlush {
                block.state = State::HeldWhole { zero };
                self.held.push(id);
                self.held_bytes += HUGE_PAGE_SIZE;
                continue;
            }
            block.state = State::Free { zero };
            if block.used.is_empty() {
                self.clean.push(id);
            } else {
                self.resident.push(id);
            }
        }
        // Low addresses first, as in new memory: a request that is repeated finds its memory there.
        self.resident.reverse();
        for id in partial.into_iter().rev() {
            self.relist(id);
        }
        wiped
    }

    /// Puts a block that was just reset in the lists that it belongs to.
    fn relist(&mut self, id: BlockId) {
        let State::Divided(divided) = &mut self.blocks[id as usize].state else {
            return;
        };
        divided.listed_at = None;
        divided.listed_held = !divided.held.is_empty();
        let free = !divided.free.is_empty();
        if divided.listed_held {
            self.held_bytes += divided.held.len() as u64 * PAGE_SIZE;
            self.held.push(id);
        }
        if free {
            self.list(id);
        }
    }

    /// A block with a free frame, divided now if need be.
    fn block_with_free_frame(&mut self) -> Option<BlockId> {
        match self.partial.last() {
            Some(&id) => Some(id),
            None => self.divide_free_block(),
        }
    }

    fn divide_free_block(&mut self) -> Option<BlockId> {
        let (id, zero) = self.pop_free_block()?;
        let block = &mut self.blocks[id as usize];
        let dirty = if zero { IndexSet::EMPTY } else { block.used };
        block.state = State::Divided(Box::new(Divided {
            free: IndexSet::FULL,
            held: IndexSet::EMPTY,
            zero: dirty.complement(),
            uncounted: IndexSet::EMPTY,
            refs: None,
            listed_at: None,
            listed_held: false,
        }));
        self.list(id);
        Some(id)
    }

    /// The block as base frames; a whole block is divided, its references handed to every frame.
    fn divided_mut(&mut self, id: BlockId) -> Option<&mut Divided> {
        let block = self.blocks.get_mut(id as usize)?;
        if let State::Whole { refs } = block.state {
            block.state = State::Divided(Box::new(Divided {
                free: IndexSet::EMPTY,
                held: IndexSet::EMPTY,
                zero: IndexSet::EMPTY,
                uncounted: IndexSet::EMPTY,
                refs: (refs != 1).then(|| Box::new([refs; FRAMES_PER_BLOCK])),
                listed_at: None,
                listed_held: false,
            }));
        }
        match &mut block.state {
            State::Divided(divided) => Some(divided),
            _ => None,
        }
    }

    fn list(&mut self, id: BlockId) {
        let at = self.partial.len() as u32;
        if let State::Divided(divided) = &mut self.blocks[id as usize].state
            && divided.listed_at.is_none()
        {
            divided.listed_at = Some(at);
            self.partial.push(id);
        }
    }

    fn unlist(&mut self, id: BlockId) {
        let State::Divided(divided) = &mut self.blocks[id as usize].state else {
            return;
        };
        let Some(at) = divided.listed_at.take() else {
            return;
        };
        self.partial.swap_remove(at as usize);
        if let Some(&moved) = self.partial.get(at as usize)
            && let State::Divided(divided) = &mut self.blocks[moved as usize].state
        {
            divided.listed_at = Some(at);
        }
    }
}

impl Divided {
    fn in_use(&self, index: usize) -> bool {
        !self.free.has(index) && !self.held.has(index)
    }

    /// See [`FramePool::reset`]; the lists are the caller's to put right.
    fn reset(
        &mut self,
        gpa: Gpa,
        used: &IndexSet,
        reuse: Reuse,
        mut wipe: impl FnMut(Wipe) -> bool,
    ) -> u64 {
        let dirty = used.without(&self.zero).without(&self.uncounted);
        let mut wiped = 0;
        for index in dirty.iter() {
            wiped += 1;
            if wipe(Wipe::Frame(gpa.wrapping_add(index as u64 * PAGE_SIZE))) {
                self.zero.add(index);
            }
        }
        let free = self.uncounted.complement();
        match reuse {
            Reuse::Now => {
                self.held = IndexSet::EMPTY;
                self.free = free;
            }
            Reuse::AfterFlush => self.held = free.without(&self.free),
        }
        self.refs = None;
        wiped
    }
}
