//! [`GuestMemory`]: the slots of one VM and who may use how much.

use std::sync::{Arc, Mutex, PoisonError};

use kvmlet_abi::{Gpa, HUGE_PAGE_SIZE, PAGE_SIZE, SlotAccess, SlotId, SlotSpec};
use kvmlet_budget::Share;

use crate::access::failed;
use crate::blocks::SpareBlocks;
use crate::entry::{Leaf, PageSize};
use crate::error::{MemError, OutOfMemory};
use crate::frames::{Dropped, FramePool, FrameRun, Taken};
use crate::frozen::FrozenMemory;
use crate::host::{AnonMapping, Backing, Reservation};
use crate::pending::PendingFlush;
use crate::slots::{Bank, FrameAt, Place, Pool, Slot, Store, TABLES_SLOT, WrittenPages};
use crate::texts::Texts;

mod charges;

/// Guest-physical space is dealt in chunks of this size, so that an address finds its slot by one
/// table look-up.
const CHUNK_SHIFT: u32 = 26;
pub(crate) const CHUNK: u64 = 1 << CHUNK_SHIFT;
/// First guest-physical address. Below lie the APIC's and other addresses that KVM gives a meaning.
const GPA_BASE: u64 = 4 << 30;
/// End of guest-physical space: the smallest MAXPHYADDR of CPUs with nested paging in use is 39.
const GPA_END: u64 = 1 << 39;
/// Memory beyond the limit that may be free in places too small for what is asked for.
const SCATTERED_BYTES: u64 = 32 << 20;
pub(crate) const NO_SLOT: u16 = u16::MAX;
/// Chunks that a fork is to find free: four gigabytes, since a slot takes a whole one at least.
pub(crate) const FORK_CHUNKS_MIN: u64 = 64;
/// All chunks.
pub(crate) const CHUNKS_MAX: u64 = (GPA_END - GPA_BASE) / CHUNK;
/// Entries of the table window: present, writable, accessed; a leaf is also dirty, 2 MiB and not
/// executable (SDM vol. 3A, 4.5).
const WINDOW_LINK: u64 = 0x23;
const WINDOW_LEAF: u64 = 0xe3 | 1 << 63;

/// What a fork knows of its origin.
#[derive(Debug)]
pub(crate) struct Fork {
    pub(crate) frozen: Arc<FrozenMemory>,
    /// The bytes that count as used from the start.
    pub(crate) charged_bytes: u64,
    /// What of these bytes is page tables.
    pub(crate) table_bytes: u64,
}

/// A slot and a share of the host memory behind it: the range stays mapped while this value lives.
/// Only [`GuestMemory`] makes one, and it forms no Rust reference to guest memory, so a VM may be given
/// the range.
#[derive(Clone, Debug)]
pub struct SlotMemory {
    spec: SlotSpec,
    _keep: Arc<Reservation>,
}

impl SlotMemory {
    /// Place of the slot.
    #[must_use]
    pub fn spec(&self) -> &SlotSpec {
        &self.spec
    }
}

/// A page of host memory that stays mapped, readable and writable while this value lives.
#[derive(Clone, Debug)]
pub struct HostPage {
    addr: usize,
    _keep: Arc<Reservation>,
}

impl HostPage {
    /// A page that belongs to no VM's memory: what a vCPU without a program refers to.
    ///
    /// # Errors
    /// [`OutOfMemory::Host`] when the host has no memory.
    pub fn unbound() -> Result<Self, MemError> {
        static PAGE: Mutex<Option<HostPage>> = Mutex::new(None);
        let mut page = PAGE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = &*page {
            return Ok(page.clone());
        }
        let map = AnonMapping::new(PAGE_SIZE, Backing::Base).map_err(OutOfMemory::Host)?;
        let made = Self {
            addr: map.addr(),
            _keep: map.share(),
        };
        *page = Some(made.clone());
        Ok(made)
    }

    /// Its host address, page-aligned.
    #[must_use]
    pub fn addr(&self) -> usize {
        self.addr
    }
}

/// All host memory of one VM.
///
/// The memory is freed when this value and every [`SlotMemory`] of it are dropped.
#[derive(Debug)]
pub struct GuestMemory {
    pub(crate) slots: Vec<Slot>,
    pub(crate) specs: Vec<SlotSpec>,
    /// Specs already handed out by [`GuestMemory::take_new_slots`].
    pub(crate) announced: usize,
    /// Chunk number to index in `slots`.
    pub(crate) chunks: Vec<u16>,
    pub(crate) tables: FramePool,
    /// The page-directory-pointer table of the window, once the tables are exposed.
    pub(crate) window: Option<Gpa>,
    pub(crate) ram: Bank,
    /// Used in a fork only.
    pub(crate) blocks: Bank,
    pub(crate) file_bytes: u64,
    pub(crate) texts: Texts,
    /// What its file mappings take of the host's mappings.
    pub(crate) share: Arc<Share>,
    pub(crate) limit_bytes: u64,
    /// Beyond what is frozen, if forks are to have a limit of their own.
    pub(crate) forks_add_bytes: Option<u64>,
    pub(crate) used_bytes: u64,
    pub(crate) peak_bytes: u64,
    /// What of the bytes used is page tables and pages of the VMM.
    pub(crate) table_bytes: u64,
    pub(crate) peak_resident_bytes: u64,
    /// Host memory that messages on their way have been in.
    pub spare_blocks: SpareBlocks,
    pub(crate) fork: Option<Fork>,
}

impl GuestMemory {
    /// Memory for one VM, whose program may use `limit_bytes` (anonymous and tmpfs memory, written
    /// private file pages, page tables).
    pub fn new(limit_bytes: u64) -> Result<Self, MemError> {
        let mut memory = Self {
            slots: Vec::new(),
            specs: Vec::new(),
            announced: 0,
            chunks: Vec::new(),
            tables: FramePool::new(4),
            window: None,
            ram: Bank::whole(),
            blocks: Bank::blocks(),
            file_bytes: 0,
            texts: Texts::default(),
            share: Arc::default(),
            limit_bytes,
            forks_add_bytes: None,
            used_bytes: 0,
            peak_bytes: 0,
            table_bytes: 0,
            peak_resident_bytes: 0,
            spare_blocks: SpareBlocks::default(),
            fork: None,
        };
        memory.grow_tables()?;
        memory.grow(Pool::Ram)?;
        Ok(memory)
    }

    /// Every slot, in the order of creation. The id of a slot is its place here.
    #[must_use]
    pub fn slots(&self) -> &[SlotSpec] {
        &self.specs
    }

    /// True if slots have been added since [`GuestMemory::take_new_slots`].
    #[must_use]
    pub fn has_new_slots(&self) -> bool {
        self.announced < self.specs.len()
    }

    /// The slots added since the last call; the VM must know them before the guest runs.
    #[must_use]
    pub fn take_new_slots(&mut self) -> Vec<SlotMemory> {
        let new = self.specs.get(self.announced..).unwrap_or_default();
        let new = new
            .iter()
            .filter_map(|spec| self.slot_memory(spec.id))
            .collect();
        self.announced = self.specs.len();
        new
    }

    /// A slot with a share of its host memory.
    #[must_use]
    pub fn slot_memory(&self, id: SlotId) -> Option<SlotMemory> {
        let index = usize::try_from(id.0).ok()?;
        let keep = match &self.slots.get(index)?.store {
            Store::Tables { map, .. } | Store::Ram { map, .. } => map.share(),
            Store::Files(files) => files.area().share(),
            Store::FrozenRam(map) => map.share(),
            Store::FrozenFiles(files) => files.share(),
        };
        Some(SlotMemory {
            spec: *self.specs.get(index)?,
            _keep: keep,
        })
    }

    /// The host page behind the page-aligned frame `gpa`, with a share of its memory. `None` for
    /// file-backed frames, whose pages may vanish, and for frozen ones.
    #[must_use]
    pub fn host_page(&self, gpa: Gpa) -> Option<HostPage> {
        let addr = self.host_addr(gpa.page_down())?;
        let spec = self.specs.iter().find(|spec| {
            gpa.0
                .checked_sub(spec.gpa.0)
                .is_some_and(|offset| offset < spec.len_bytes)
        })?;
        if !gpa.is_page_aligned() || self.is_file_backed(gpa) || self.is_frozen(gpa) {
            return None;
        }
        Some(HostPage {
            addr,
            _keep: self.slot_memory(spec.id)?._keep,
        })
    }

    /// The slots that hold page tables: what [`PendingFlush::All`] deletes and adds again on software
    /// KVM.
    pub fn table_slots(&self) -> impl Iterator<Item = &SlotSpec> {
        self.slots
            .iter()
            .zip(&self.specs)
            .filter(|(slot, _)| matches!(slot.store, Store::Tables { .. }))
            .map(|(_, spec)| spec)
    }

    /// Maps all table memory, now and later, at [`crate::TABLE_WINDOW`] of the address spaces made from
    /// now on, for supervisor code only. Needed where KVM uses shadow paging, and only there: with
    /// nested paging the guest has no way to its tables.
    pub fn expose_tables(&mut self) -> Result<(), OutOfMemory> {
        if self.window.is_some() {
            return Ok(());
        }
        let taken = self.take_table_frame()?;
        self.window = Some(self.zeroed(taken));
        let slots: Vec<Gpa> = self.table_slots().map(|spec| spec.gpa).collect();
        slots
            .into_iter()
            .try_for_each(|slot| self.add_to_window(slot))
    }

    /// The table that covers the window, if tables are exposed.
    pub(crate) fn table_window(&self) -> Option<Gpa> {
        self.window
    }

    /// Maps one table slot in the window, if there is one.
    fn add_to_window(&mut self, slot: Gpa) -> Result<(), OutOfMemory> {
        let Some(window) = self.window else {
            return Ok(());
        };
        for block in 0..TABLES_SLOT / HUGE_PAGE_SIZE {
            let gpa = slot.wrapping_add(block * HUGE_PAGE_SIZE);
            let at = window.wrapping_add((gpa.0 >> 30) % 512 * 8);
            let mut directory = Gpa(self.load_entry(at) & !(PAGE_SIZE - 1));
            if directory == Gpa(0) {
                let taken = self.take_table_frame()?;
                directory = self.zeroed(taken);
                self.store_entry(at, directory.0 | WINDOW_LINK);
            }
            let at = directory.wrapping_add((gpa.0 >> 21) % 512 * 8);
            self.store_entry(at, gpa.0 | WINDOW_LEAF);
        }
        Ok(())
    }

    // ---- frames -----------------------------------------------------------------------------

    /// A zeroed base frame for a page table or a page of the VMM, one reference.
    pub fn alloc_table_frame(&mut self) -> Result<Gpa, OutOfMemory> {
        self.charge_tables(PAGE_SIZE)?;
        match self.take_table_frame() {
            Ok(taken) => Ok(self.zeroed(taken)),
            Err(error) => {
                self.uncharge_tables(PAGE_SIZE);
                Err(error)
            }
        }
    }

    /// `pages` zeroed table frames, consecutive and inside one 2 MiB block, one reference each, charged:
    /// for what must be contiguous and private to each fork.
    pub fn alloc_table_run(&mut self, pages: u64) -> Result<Gpa, OutOfMemory> {
        let count = usize::try_from(pages)
            .ok()
            .filter(|_| (1..=HUGE_PAGE_SIZE / PAGE_SIZE).contains(&pages))
            .ok_or(OutOfMemory::Exhausted)?;
        self.charge_tables(pages * PAGE_SIZE)?;
        let mut stale = Vec::new();
        loop {
            let keep = |taken: Taken| {
                if !taken.zero {
                    stale.push(taken);
                }
            };
            if let Some(run) = self.tables.take_exact(count, keep) {
                for taken in stale {
                    self.zeroed(taken);
                }
                return Ok(run.gpa);
            }
            if let Err(error) = self.grow_tables() {
                self.uncharge_tables(pages * PAGE_SIZE);
                return Err(error);
            }
        }
    }

    fn take_table_frame(&mut self) -> Result<Taken, OutOfMemory> {
        loop {
            let mut taken = None;
            if self
                .tables
                .take_run(1, |frame| taken = Some(frame))
                .is_none()
            {
                self.grow_tables()?;
            } else if let Some(taken) = taken {
                return Ok(taken);
            }
        }
    }

    /// A zeroed base frame, one reference.
    pub fn alloc_frame(&mut self) -> Result<Gpa, OutOfMemory> {
        Ok(self.alloc_run(1)?.gpa)
    }

    /// Between 1 and `max_pages` zeroed base frames, one reference each, consecutive and inside one
    /// 2 MiB block. They are as many as are free at the next place. `max_pages` 0 counts as 1.
    pub fn alloc_run(&mut self, max_pages: u64) -> Result<FrameRun, OutOfMemory> {
        let room = (self.limit_bytes - self.used_bytes.min(self.limit_bytes)) / PAGE_SIZE;
        if room == 0 {
            return Err(OutOfMemory::Limit);
        }
        let mut stale = Vec::new();
        let run = self.take_run(max_pages.clamp(1, room), |taken| {
            if !taken.zero {
                stale.push(taken);
            }
        })?;
        self.charge(run.pages * PAGE_SIZE)?;
        for taken in stale {
            self.zeroed(taken);
        }
        Ok(run)
    }

    fn take_run(
        &mut self,
        max_pages: u64,
        mut zeros: impl FnMut(Taken),
    ) -> Result<FrameRun, OutOfMemory> {
        loop {
            if let Some(run) = self.ram.pool.take_run(max_pages, &mut zeros) {
                return Ok(run);
            }
            if let Err(error) = self.grow(Pool::Ram) {
                // What is left of blocks that a fork has freed in part.
                let scattered = self.blocks.pool.take_scattered(max_pages, &mut zeros);
                return scattered.ok_or(error);
            }
        }
    }

    /// A base frame with the contents of another frame (anonymous or file-backed), one reference:
    /// what copy on write needs.
    pub fn alloc_copy(&mut self, from: Gpa) -> Result<Gpa, MemError> {
        if self.used_bytes.saturating_add(PAGE_SIZE) > self.limit_bytes {
            return Err(OutOfMemory::Limit.into());
        }
        let gpa = self.take_run(1, |_| {})?.gpa;
        self.charge(PAGE_SIZE)?;
        if let Err(error) = self.copy_frame(from, gpa) {
            self.free_frame(gpa);
            return Err(error);
        }
        Ok(gpa)
    }

    /// As [`GuestMemory::alloc_copy`] of a frozen frame, not counted: like the frozen frame itself, whose
    /// place it takes. There are never more such copies than frozen frames.
    pub(crate) fn alloc_uncounted_copy(&mut self, from: Gpa) -> Result<Gpa, MemError> {
        let gpa = self.take_run(1, |_| {})?.gpa;
        self.place(gpa).map(|place| self.keep_frame(place));
        if let Err(error) = self.copy_frame(from, gpa) {
            self.free_frame(gpa);
            return Err(error);
        }
        Ok(gpa)
    }

    /// 2 MiB of zeroed memory, aligned, one reference. When it fails, base frames may still be had.
    pub fn alloc_huge(&mut self) -> Result<Gpa, OutOfMemory> {
        self.charge(HUGE_PAGE_SIZE)?;
        let pool = match self.fork {
            Some(_) => Pool::Blocks,
            None => Pool::Ram,
        };
        let taken = loop {
            if let Some(taken) = self.pool(pool).take_block() {
                break taken;
            }
            if let Err(error) = self.grow(pool) {
                self.uncharge(HUGE_PAGE_SIZE);
                return Err(error);
            }
        };
        if !taken.zero {
            let _ = self.zero(taken.gpa, HUGE_PAGE_SIZE);
        }
        Ok(taken.gpa)
    }

    /// Zeroes a frame just taken unless it is known to be zero.
    fn zeroed(&mut self, taken: Taken) -> Gpa {
        if !taken.zero {
            // A frame handed out by a pool lies in a slot of anonymous memory: this cannot fail.
            let _ = self.zero(taken.gpa, PAGE_SIZE);
        }
        taken.gpa
    }

    /// One more reference to a base frame. A frame of a 2 MiB block divides the block for good. Frozen
    /// frames have no owner in a fork: nothing happens, here as in the methods that follow.
    pub fn get_frame(&mut self, gpa: Gpa) {
        if let Some(at) = self.frame_at(gpa) {
            // From now on it may be written by another entry than the one that a reset looks at.
            if let Ok((map, offset)) = self.anon_mut(gpa, 1) {
                map.mark(offset);
            }
            let known = self.pool(at.pool).add_ref(at.block, at.index);
            debug_assert!(known, "reference to a free frame {gpa:?}");
        }
    }

    /// One more reference to a 2 MiB block.
    pub fn get_huge(&mut self, gpa: Gpa) {
        if let Some(at) = self.frame_at(gpa) {
            let known = self.pool(at.pool).add_block_ref(at.block);
            debug_assert!(known, "reference to a free block {gpa:?}");
        }
    }

    /// References to the frame (or to the 2 MiB block it is part of); 0 if it is not allocated, is
    /// file-backed or is frozen.
    #[must_use]
    pub fn frame_refs(&self, gpa: Gpa) -> u32 {
        self.frame_at(gpa).map_or(0, |at| {
            let pool = match at.pool {
                Pool::Tables => &self.tables,
                Pool::Ram => &self.ram.pool,
                Pool::Blocks => &self.blocks.pool,
            };
            pool.refs(at.block, at.index)
        })
    }

    /// True if a frame of a leaf has more than one reference.
    #[must_use]
    pub fn is_shared(&self, leaf: Leaf) -> bool {
        let offsets = (0..leaf.size.bytes()).step_by(PAGE_SIZE as usize);
        offsets
            .into_iter()
            .any(|offset| self.frame_refs(leaf.gpa.wrapping_add(offset)) > 1)
    }

    /// Drops a reference to a base frame. The last one frees it: it is not handed out again before
    /// [`GuestMemory::flush_discharged`]. A frame of a 2 MiB block divides the block for good.
    /// File-backed frames have no owner here: nothing happens.
    pub fn free_frame(&mut self, gpa: Gpa) {
        if let Some(at) = self.frame_at(gpa) {
            let dropped = self.pool(at.pool).drop_ref(at.block, at.index);
            self.account(gpa, dropped, PAGE_SIZE);
        }
    }

    /// Drops a reference to a 2 MiB block (to each of its frames if it has been divided); else as
    /// [`GuestMemory::free_frame`].
    pub fn free_huge(&mut self, gpa: Gpa) {
        let Some(at) = self.frame_at(gpa) else {
            return;
        };
        match self.pool(at.pool).drop_block_ref(at.block) {
            Some(dropped) => self.account(gpa, dropped, HUGE_PAGE_SIZE),
            None => {
                let block = gpa.huge_down();
                for page in 0..HUGE_PAGE_SIZE / PAGE_SIZE {
                    self.free_frame(block.wrapping_add(page * PAGE_SIZE));
                }
            }
        }
    }

    /// Drops a removed leaf's reference to its frame.
    pub fn free_leaf(&mut self, leaf: Leaf) {
        match leaf.size {
            PageSize::Base => self.free_frame(leaf.gpa),
            PageSize::Huge => self.free_huge(leaf.gpa),
        }
    }

    fn account(&mut self, gpa: Gpa, dropped: Dropped, len_bytes: u64) {
        debug_assert!(dropped != Dropped::Invalid, "{gpa:?} freed twice");
        if dropped == Dropped::Freed {
            if self.is_table_memory(gpa) {
                self.uncharge_tables(len_bytes);
            } else {
                self.uncharge(len_bytes);
            }
        }
    }

    /// True if freed memory waits for a flush.
    #[must_use]
    pub fn has_quarantine(&self) -> bool {
        self.ram.pool.held_bytes() + self.blocks.pool.held_bytes() + self.tables.held_bytes() > 0
    }

    /// True if freed memory of the program waits for a flush. Tables wait for one of their own.
    #[must_use]
    pub fn has_freed_frames(&self) -> bool {
        self.ram.pool.held_bytes() + self.blocks.pool.held_bytes() > 0
    }

    /// Bytes of page tables that only a [`PendingFlush::All`] makes usable again.
    #[must_use]
    pub fn table_quarantine_bytes(&self) -> u64 {
        self.tables.held_bytes()
    }

    /// To be called after `discharged` (taken from the address space that is entered next) has
    /// been flushed: memory freed before may be handed out again. Page tables wait for
    /// [`PendingFlush::All`], since KVM's shadow of a table is dropped by nothing less.
    pub fn flush_discharged(&mut self, discharged: &PendingFlush) {
        self.with_pool(Pool::Ram, |mem, pool| {
            pool.release_held(|block| mem.give_back(block));
        });
        self.with_pool(Pool::Blocks, |mem, pool| {
            pool.release_held(|block| mem.give_back(block));
        });
        if *discharged == PendingFlush::All {
            self.release_tables();
        }
    }

    /// Ends the quarantine of freed table frames.
    pub(crate) fn release_tables(&mut self) {
        self.tables.release_held(|_| false);
    }

    /// Calls `act` with a pool taken out of `self`, which is put back afterwards.
    pub(crate) fn with_pool<T>(
        &mut self,
        which: Pool,
        act: impl FnOnce(&mut Self, &mut FramePool) -> T,
    ) -> T {
        let mut pool = core::mem::take(self.pool(which));
        let result = act(self, &mut pool);
        *self.pool(which) = pool;
        result
    }

    /// Returns a free block's memory to the host; whether it reads as zeros now.
    pub(crate) fn give_back(&mut self, block: Gpa) -> bool {
        self.anon_mut(block, HUGE_PAGE_SIZE)
            .and_then(|(map, offset)| {
                map.release(offset, HUGE_PAGE_SIZE as usize)
                    .map_err(|fault| failed(fault, block, HUGE_PAGE_SIZE))
            })
            .is_ok()
    }

    // ---- slots ------------------------------------------------------------------------------

    pub(crate) fn slot_index(&self, gpa: Gpa) -> Option<usize> {
        let chunk = gpa.0.checked_sub(GPA_BASE)? >> CHUNK_SHIFT;
        let index = usize::from(*self.chunks.get(chunk as usize)?);
        let slot = self.slots.get(index)?;
        (gpa.0 - slot.gpa < slot.len_bytes).then_some(index)
    }

    pub(crate) fn slot(&self, gpa: Gpa) -> Option<&Slot> {
        self.slots.get(self.slot_index(gpa)?)
    }

    pub(crate) fn locate(&self, gpa: Gpa, len_bytes: u64) -> Result<(&Slot, u64), MemError> {
        match self.slot(gpa) {
            Some(slot) if len_bytes <= slot.len_bytes - (gpa.0 - slot.gpa) => {
                Ok((slot, gpa.0 - slot.gpa))
            }
            _ => Err(MemError::Outside { gpa, len_bytes }),
        }
    }

    pub(crate) fn locate_mut(
        &mut self,
        gpa: Gpa,
        len_bytes: u64,
    ) -> Result<(&mut Slot, u64), MemError> {
        let outside = MemError::Outside { gpa, len_bytes };
        let index = self.slot_index(gpa).ok_or(outside)?;
        match self.slots.get_mut(index) {
            Some(slot) if len_bytes <= slot.len_bytes - (gpa.0 - slot.gpa) => {
                let offset = gpa.0 - slot.gpa;
                Ok((slot, offset))
            }
            _ => Err(outside),
        }
    }

    pub(crate) fn anon_mut(
        &mut self,
        gpa: Gpa,
        len_bytes: u64,
    ) -> Result<(&mut AnonMapping, u64), MemError> {
        let (slot, offset) = self.locate_mut(gpa, len_bytes)?;
        match &mut slot.store {
            Store::Tables { map, .. } | Store::Ram { map, .. } => Ok((map, offset)),
            Store::Files(_) => Err(MemError::FileBacked(gpa)),
            Store::FrozenRam(_) | Store::FrozenFiles(_) => Err(MemError::Frozen(gpa)),
        }
    }

    /// Where a frame is, if in a slot.
    pub(crate) fn place(&self, gpa: Gpa) -> Option<Place> {
        let slot = self.slot_index(gpa)?;
        let offset = gpa.0 - self.slots.get(slot)?.gpa;
        Some(Place { slot, offset })
    }

    pub(crate) fn frame_at(&self, gpa: Gpa) -> Option<FrameAt> {
        let place = self.place(gpa)?;
        self.slots.get(place.slot)?.frame_at(place.offset)
    }

    pub(crate) fn pool(&mut self, which: Pool) -> &mut FramePool {
        match which {
            Pool::Tables => &mut self.tables,
            Pool::Ram => &mut self.ram.pool,
            Pool::Blocks => &mut self.blocks.pool,
        }
    }

    pub(crate) fn pool_ref(&self, which: Pool) -> &FramePool {
        match which {
            Pool::Tables => &self.tables,
            Pool::Ram => &self.ram.pool,
            Pool::Blocks => &self.blocks.pool,
        }
    }

    /// Table pages that we have written: those that a fork does not share.
    pub(crate) fn written_table_pages(&self) -> u64 {
        let pages = self.slots.iter().map(|slot| match &slot.store {
            Store::Tables { written, .. } => written.pages(),
            _ => 0,
        });
        pages.sum()
    }

    fn grow_tables(&mut self) -> Result<(), OutOfMemory> {
        let map = AnonMapping::new(TABLES_SLOT, Backing::Base).map_err(OutOfMemory::Host)?;
        let gpa = self.next_gpa(TABLES_SLOT)?;
        let first = self
            .tables
            .add_blocks(Gpa(gpa), (TABLES_SLOT / HUGE_PAGE_SIZE) as u32);
        let host_addr = map.addr();
        let written = WrittenPages::default();
        let store = Store::Tables {
            map,
            first,
            written,
        };
        self.add_slot(TABLES_SLOT, host_addr, store)?;
        self.add_to_window(Gpa(gpa))
    }

    /// Adds a slot of program memory: as much as there is already, so that a program of any size
    /// ends with few slots. The total is bounded, because one frame in use keeps the host memory of
    /// its whole block: the limit, some for scattered free frames, and what is freed but not yet
    /// flushed.
    pub(crate) fn grow(&mut self, pool: Pool) -> Result<(), OutOfMemory> {
        let bank = match pool {
            Pool::Tables => return self.grow_tables(),
            Pool::Ram => &self.ram,
            Pool::Blocks => &self.blocks,
        };
        // A fork's limit is raised by what is frozen, and copies of that lie here.
        let most = self
            .limit_bytes
            .saturating_add(self.limit_bytes / 8)
            .saturating_add(SCATTERED_BYTES)
            .saturating_add(bank.pool.held_bytes());
        let size = bank
            .bytes
            .clamp(bank.first_slot_bytes, bank.max_slot_bytes)
            .min(most.saturating_sub(bank.bytes))
            / HUGE_PAGE_SIZE
            * HUGE_PAGE_SIZE;
        if size == 0 {
            return Err(OutOfMemory::Exhausted);
        }
        let mut map = AnonMapping::new(size, bank.backing).map_err(OutOfMemory::Host)?;
        // Copies of frozen pages lie there, and a reset restores those that were written.
        if self.fork.is_some() && pool == Pool::Ram {
            map.mark_writes();
        }
        let gpa = self.next_gpa(size)?;
        let first = self
            .pool(pool)
            .add_blocks(Gpa(gpa), (size / HUGE_PAGE_SIZE) as u32);
        let host_addr = map.addr();
        self.add_slot(size, host_addr, Store::Ram { map, first, pool })?;
        match pool {
            Pool::Blocks => self.blocks.bytes += size,
            Pool::Ram | Pool::Tables => self.ram.bytes += size,
        }
        Ok(())
    }

    /// Chunks of guest-physical space that no slot takes.
    pub(crate) fn chunks_left(&self) -> u64 {
        CHUNKS_MAX.saturating_sub(self.chunks.len() as u64)
    }

    /// Where the next slot will lie.
    fn next_gpa(&self, len_bytes: u64) -> Result<u64, OutOfMemory> {
        let gpa = GPA_BASE + self.chunks.len() as u64 * CHUNK;
        let fits = len_bytes <= GPA_END - gpa && self.slots.len() < usize::from(NO_SLOT);
        fits.then_some(gpa).ok_or(OutOfMemory::Exhausted)
    }

    pub(crate) fn add_slot(
        &mut self,
        len_bytes: u64,
        host_addr: usize,
        store: Store,
    ) -> Result<u64, OutOfMemory> {
        let gpa = self.next_gpa(len_bytes)?;
        let access = match store {
            Store::FrozenRam(_) | Store::FrozenFiles(_) => SlotAccess::ReadOnly,
            Store::Tables { .. } | Store::Ram { .. } | Store::Files(_) => SlotAccess::ReadWrite,
        };
        let index = self.slots.len() as u16;
        let chunks = len_bytes.div_ceil(CHUNK) as usize;
        self.chunks.resize(self.chunks.len() + chunks, index);
        self.specs.push(SlotSpec {
            id: SlotId(u32::from(index)),
            gpa: Gpa(gpa),
            host_addr,
            len_bytes,
            access,
        });
        self.slots.push(Slot {
            gpa,
            len_bytes,
            store,
        });
        Ok(gpa)
    }
}
