//! The frame allocator: 2 MiB blocks, whole or divided into 512 base frames. Bookkeeping only; it
//! never touches the memory itself.

use kvmlet_abi::{Gpa, HUGE_PAGE_SIZE, PAGE_SIZE};

/// Base frames in a block.
pub(crate) const FRAMES_PER_BLOCK: usize = (HUGE_PAGE_SIZE / PAGE_SIZE) as usize;
const WORDS: usize = FRAMES_PER_BLOCK / 64;
/// Free blocks kept with their host memory, so that a program that maps and unmaps in a loop does
/// not make the host free and zero the same memory each time.
const KEPT_BLOCKS: usize = 4;

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

/// A set of frames of one block.
#[derive(Clone, PartialEq, Eq, Debug)]
struct FrameSet([u64; WORDS]);

impl FrameSet {
    const EMPTY: Self = Self([0; WORDS]);
    const FULL: Self = Self([u64::MAX; WORDS]);

    fn has(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 != 0
    }

    fn add(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    fn remove(&mut self, index: usize) {
        self.0[index / 64] &= !(1 << (index % 64));
    }

    fn first(&self) -> Option<usize> {
        self.0
            .iter()
            .position(|&word| word != 0)
            .map(|at| at * 64 + self.0[at].trailing_zeros() as usize)
    }

    fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
}

/// A block divided into base frames. A frame is free, held (freed, waiting for a flush) or in use.
#[derive(Clone, Debug)]
struct Divided {
    free: FrameSet,
    held: FrameSet,
    /// Free frames known to hold zeros.
    zero: FrameSet,
    /// References per frame in use; absent while every one of them is 1.
    refs: Option<Box<[u32; FRAMES_PER_BLOCK]>>,
    /// Place in the pool's list of blocks with free frames.
    listed_at: Option<u32>,
    /// Whether the block is in the list of blocks with held frames.
    listed_held: bool,
}

#[derive(Clone, Debug)]
enum State {
    /// In the list of clean or of dirty blocks.
    Free,
    /// Handed out whole.
    Whole {
        refs: u32,
    },
    /// Freed whole, waiting for a flush.
    HeldWhole,
    Divided(Box<Divided>),
}

#[derive(Clone, Debug)]
struct Block {
    gpa: Gpa,
    state: State,
}

/// A frame or block taken from the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Taken {
    pub gpa: Gpa,
    /// Whether the memory is known to hold zeros already.
    pub zero: bool,
}

/// What dropping a reference did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dropped {
    /// Other references remain.
    Shared,
    /// The memory went to the quarantine.
    Freed,
    /// Not allocated: nothing was done.
    Invalid,
}

/// All blocks of one kind of memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct FramePool {
    blocks: Vec<Block>,
    /// Free blocks that hold zeros; the lowest address last.
    clean: Vec<BlockId>,
    /// Free blocks with old contents.
    dirty: Vec<BlockId>,
    /// Divided blocks with at least one free frame.
    partial: Vec<BlockId>,
    /// Divided blocks with held frames, and held whole blocks.
    held: Vec<BlockId>,
    held_bytes: u64,
}

impl FramePool {
    /// Adds `count` blocks of zeroed memory from `gpa`; answers the id of the first.
    pub(crate) fn add_blocks(&mut self, gpa: Gpa, count: u32) -> BlockId {
        let first = self.blocks.len() as BlockId;
        for index in 0..count {
            self.blocks.push(Block {
                gpa: gpa.wrapping_add(u64::from(index) * HUGE_PAGE_SIZE),
                state: State::Free,
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

    /// Up to `max` consecutive frames of one block, in address order; `None` when a block must be
    /// added. `zeros` says of each in turn whether it holds zeros.
    pub(crate) fn take_run(&mut self, max: u64, mut zeros: impl FnMut(Taken)) -> Option<FrameRun> {
        let id = self.block_with_free_frame()?;
        let block = &mut self.blocks[id as usize];
        let State::Divided(divided) = &mut block.state else {
            return None;
        };
        let first = divided.free.first()?;
        let mut pages = 0;
        while pages < max && first + (pages as usize) < FRAMES_PER_BLOCK {
            let index = first + pages as usize;
            if !divided.free.has(index) {
                break;
            }
            divided.free.remove(index);
            zeros(Taken {
                gpa: block.gpa.wrapping_add(index as u64 * PAGE_SIZE),
                zero: divided.zero.has(index),
            });
            divided.zero.remove(index);
            if let Some(refs) = &mut divided.refs {
                refs[index] = 1;
            }
            pages += 1;
        }
        let gpa = block.gpa.wrapping_add(first as u64 * PAGE_SIZE);
        if divided.free.first().is_none() {
            self.unlist(id);
        }
        (pages > 0).then_some(FrameRun { gpa, pages })
    }

    /// One whole block; one whose host memory is there already if possible.
    pub(crate) fn take_block(&mut self) -> Option<Taken> {
        let (id, zero) = match self.dirty.pop() {
            Some(id) => (id, false),
            None => (self.clean.pop()?, true),
        };
        let block = &mut self.blocks[id as usize];
        block.state = State::Whole { refs: 1 };
        Some(Taken {
            gpa: block.gpa,
            zero,
        })
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
        if !divided.listed_held {
            divided.listed_held = true;
            self.held.push(id);
        }
        self.held_bytes += PAGE_SIZE;
        Dropped::Freed
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
                block.state = State::HeldWhole;
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
            State::Free | State::HeldWhole => Some(Dropped::Invalid),
        }
    }

    /// Ends the quarantine. `give_back` returns a wholly free block to the host and says whether it
    /// reads as zeros from then on.
    pub(crate) fn release_held(&mut self, mut give_back: impl FnMut(Gpa) -> bool) {
        self.held_bytes = 0;
        for id in core::mem::take(&mut self.held) {
            let block = &mut self.blocks[id as usize];
            if let State::Divided(divided) = &mut block.state {
                divided.listed_held = false;
                for (free, held) in divided.free.0.iter_mut().zip(&mut divided.held.0) {
                    *free |= core::mem::take(held);
                }
                if divided.free.len() < FRAMES_PER_BLOCK {
                    self.list(id);
                    continue;
                }
                self.unlist(id);
            }
            let block = &mut self.blocks[id as usize];
            block.state = State::Free;
            if self.dirty.len() >= KEPT_BLOCKS && give_back(block.gpa) {
                self.clean.push(id);
            } else {
                self.dirty.push(id);
            }
        }
    }

    /// A block with a free frame, divided now if need be.
    fn block_with_free_frame(&mut self) -> Option<BlockId> {
        if let Some(&id) = self.partial.last() {
            return Some(id);
        }
        let (id, zero) = match self.dirty.pop() {
            Some(id) => (id, FrameSet::EMPTY),
            None => (self.clean.pop()?, FrameSet::FULL),
        };
        self.blocks[id as usize].state = State::Divided(Box::new(Divided {
            free: FrameSet::FULL,
            held: FrameSet::EMPTY,
            zero,
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
                free: FrameSet::EMPTY,
                held: FrameSet::EMPTY,
                zero: FrameSet::EMPTY,
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
}
