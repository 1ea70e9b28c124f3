//! Random requests in a fork. Whatever they did, a reset leaves the frozen state. No translation that a
//! processor may still hold leads to memory with a new owner.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kvmlet_abi::{Gpa, Gva, HUGE_PAGE_SIZE, PAGE_SIZE, SlotAccess};
use kvmlet_mem::{
    DirtyBits, FrozenMemory, GuestMemory, Leaf, MmId, PageSize, PageTables, PendingFlush, PteFlags,
    Spaces,
};
use proptest::prelude::*;

const PAGES_PER_BLOCK: u64 = HUGE_PAGE_SIZE / PAGE_SIZE;
/// A block of base pages with holes, one 2 MiB page, two empty blocks (one in a page directory of its
/// own).
const BLOCKS: [u64; 4] = [2, 3, 4, 512];
const PAGES: u64 = BLOCKS.len() as u64 * PAGES_PER_BLOCK;
const LIMIT: u64 = 24 << 20;
const DATA: PteFlags = PteFlags::USER.union(PteFlags::WRITE).union(PteFlags::NX);

fn address(page: u64) -> Gva {
    let block = BLOCKS[(page / PAGES_PER_BLOCK) as usize];
    Gva(block * HUGE_PAGE_SIZE + page % PAGES_PER_BLOCK * PAGE_SIZE)
}

#[derive(Clone, Debug)]
enum Step {
    /// Writes, copying what is frozen.
    Write {
        page: u64,
        value: u64,
    },
    Map {
        page: u64,
        flags: PteFlags,
    },
    MapRun {
        page: u64,
        pages: u64,
        flags: PteFlags,
    },
    MapHuge {
        block: usize,
        flags: PteFlags,
    },
    /// Maps the frame of one page at another too.
    Alias {
        from: u64,
        to: u64,
        flags: PteFlags,
    },
    Unmap {
        page: u64,
        pages: u64,
    },
    Protect {
        page: u64,
        pages: u64,
        flags: PteFlags,
    },
    Flush,
    Reset,
}

fn flags() -> impl Strategy<Value = PteFlags> {
    (0u8..8).prop_map(|bits| {
        let every = [PteFlags::WRITE, PteFlags::USER, PteFlags::NX];
        let chosen = every.into_iter().enumerate();
        chosen
            .filter(|(bit, _)| bits >> bit & 1 != 0)
            .map(|(_, flag)| flag)
            .collect()
    })
}

/// Few pages, so that steps meet.
fn page() -> impl Strategy<Value = u64> {
    (0..BLOCKS.len() as u64, 0..12u64).prop_map(|(block, page)| block * PAGES_PER_BLOCK + page)
}

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1..6u64, 1 => Just(PAGES_PER_BLOCK), 1 => 1..PAGES_PER_BLOCK + 9]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (page(), 1..4u64).prop_map(|(page, value)| Step::Write { page, value }),
        2 => (page(), flags()).prop_map(|(page, flags)| Step::Map { page, flags }),
        2 => (page(), 1..20u64, flags())
            .prop_map(|(page, pages, flags)| Step::MapRun { page, pages, flags }),
        2 => (0..BLOCKS.len(), flags()).prop_map(|(block, flags)| Step::MapHuge { block, flags }),
        2 => (page(), page(), flags()).prop_map(|(from, to, flags)| Step::Alias { from, to, flags }),
        3 => (page(), pages()).prop_map(|(page, pages)| Step::Unmap { page, pages }),
        3 => (page(), pages(), flags())
            .prop_map(|(page, pages, flags)| Step::Protect { page, pages, flags }),
        2 => Just(Step::Flush),
        3 => Just(Step::Reset),
    ]
}

fn frozen() -> Arc<FrozenMemory> {
    let mut mem = GuestMemory::new(LIMIT).unwrap();
    let mut tables = PageTables::new(&mut mem).unwrap();
    for page in (0..PAGES_PER_BLOCK).filter(|page| page % 5 != 4) {
        let gpa = mem.alloc_frame().unwrap();
        mem.write(gpa.wrapping_add(page % 7 * 512), &[page as u8 | 1; 64])
            .unwrap();
        let flags = match page % 3 {
            0 => PteFlags::USER,
            _ => DATA,
        };
        tables
            .map(&mut mem, address(page), gpa, PageSize::Base, flags)
            .unwrap();
    }
    let block = mem.alloc_huge().unwrap();
    for page in 0..PAGES_PER_BLOCK {
        let at = block.wrapping_add(page * PAGE_SIZE + page % 5 * 800);
        mem.write(at, &[page as u8 | 1; 64]).unwrap();
    }
    let at = address(PAGES_PER_BLOCK);
    tables
        .map(&mut mem, at, block, PageSize::Huge, DATA)
        .unwrap();
    mem.freeze(Spaces::new(tables), 0).unwrap()
}

fn first(spaces: &Spaces) -> &PageTables {
    spaces.get(MmId::FIRST).unwrap()
}

fn first_mut(spaces: &mut Spaces) -> &mut PageTables {
    spaces.get_mut(MmId::FIRST).unwrap()
}

/// What one page translates to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Translation {
    gpa: Gpa,
    flags: u64,
    huge: bool,
}

struct World {
    frozen: Arc<FrozenMemory>,
    mem: GuestMemory,
    spaces: Spaces,
    /// Copies of pages whose number has one of these bits are not kept.
    deny: u64,
    /// Every translation that was true since the last flush, by page.
    cached: BTreeMap<u64, BTreeSet<Translation>>,
    /// Frames that those lead to.
    reachable: BTreeSet<Gpa>,
    /// Whether resets go by dirty bits: the program's writes are a CPU's then, which nobody takes note of.
    dirty_bits: DirtyBits,
    /// Pages of which a TLB has a translation with a dirty bit.
    dirty_in_tlb: BTreeSet<u64>,
}

fn release(mem: &mut GuestMemory, leaf: Leaf) {
    match leaf.size {
        PageSize::Base => mem.free_frame(leaf.gpa),
        PageSize::Huge => mem.free_huge(leaf.gpa),
    }
}

impl World {
    fn new(deny: u64, dirty_bits: DirtyBits) -> Self {
        let frozen = frozen();
        let (mem, mut spaces) = frozen.fork().unwrap();
        spaces.rely_on_dirty_bits(dirty_bits);
        let mut world = Self {
            frozen,
            mem,
            spaces,
            deny,
            cached: BTreeMap::new(),
            reachable: BTreeSet::new(),
            dirty_bits,
            dirty_in_tlb: BTreeSet::new(),
        };
        world.remember();
        world
    }

    fn translation(&self, page: u64) -> Option<Translation> {
        let gva = address(page);
        let leaf = first(&self.spaces).walk(&self.mem, gva)?;
        Some(Translation {
            gpa: leaf.gpa_of(gva),
            flags: leaf.flags.bits(),
            huge: leaf.size == PageSize::Huge,
        })
    }

    fn remember(&mut self) {
        for page in 0..PAGES {
            if let Some(now) = self.translation(page) {
                self.cached.entry(page).or_default().insert(now);
                self.reachable.insert(now.gpa);
            }
        }
    }

    /// New memory is zero, and no processor can reach it.
    fn took(&mut self, gpa: Gpa, pages: u64) {
        for page in 0..pages {
            let gpa = gpa.wrapping_add(page * PAGE_SIZE);
            assert!(!self.reachable.contains(&gpa), "{gpa:?} before its flush");
            let mut bytes = [0; PAGE_SIZE as usize];
            self.mem.read(gpa, &mut bytes).unwrap();
            assert!(
                bytes.iter().all(|&byte| byte == 0),
                "{gpa:?} has old contents"
            );
            self.mem.write(gpa, &[0x55; 3000]).unwrap();
        }
    }

    fn map(&mut self, gva: Gva, gpa: Gpa, size: PageSize, flags: PteFlags) {
        match first_mut(&mut self.spaces).map(&mut self.mem, gva, gpa, size, flags) {
            Ok(old) => {
                if let Some(old) = old {
                    release(&mut self.mem, old);
                }
            }
            Err(_) => release(&mut self.mem, Leaf { gpa, size, flags }),
        }
    }

    /// A write of the program's to a page that it may write.
    fn store(&mut self, page: u64, gpa: Gpa, value: u64) {
        let bytes = [value as u8; 8];
        if self.dirty_bits == DirtyBits::Ignored || value.is_multiple_of(4) {
            // Or the host's for it, as by read(2).
            self.mem.write(gpa.wrapping_add(8), &bytes).unwrap();
            return;
        }
        // The guest does not run before what is due has been flushed.
        self.flush();
        let is_known = self.dirty_in_tlb.contains(&page);
        let tables = first_mut(&mut self.spaces);
        let gva = address(page).wrapping_add(8);
        if tables.write_as_guest(&mut self.mem, gva, &bytes, is_known) {
            self.dirty_in_tlb.insert(page);
        }
    }

    /// Discharges what is pending, and no more.
    fn flush(&mut self) {
        let pending = first_mut(&mut self.spaces).take_pending();
        self.mem.flush_discharged(&pending);
        let gone = |page: u64| match &pending {
            PendingFlush::None => false,
            PendingFlush::All => true,
            PendingFlush::Entries(entries) => entries.iter().any(|stale| {
                let at = address(page).0;
                (stale.gva.0..stale.gva.0 + stale.size.bytes()).contains(&at)
            }),
        };
        self.dirty_in_tlb.retain(|page| !gone(*page));
        if !pending.is_none() {
            let still = |page: &u64| !gone(*page);
            self.cached.retain(|page, _| still(page));
            self.reachable = self.cached.values().flatten().map(|one| one.gpa).collect();
            self.remember();
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Write { page, value } => {
                let gva = address(page);
                let Some(leaf) = first(&self.spaces).walk(&self.mem, gva) else {
                    return;
                };
                let gpa = leaf.gpa_of(gva);
                if !self.mem.is_frozen(gpa) {
                    self.store(page, gpa, value);
                    return;
                }
                let flags = leaf.flags | PteFlags::WRITE;
                let reachable = self.reachable.clone();
                if let Ok(copy) = first_mut(&mut self.spaces).copy_frozen(&mut self.mem, gva, flags)
                {
                    assert!(!reachable.contains(&copy), "{copy:?} before its flush");
                    assert_eq!(self.translation(page).unwrap().gpa, copy);
                    self.store(page, copy, value);
                }
            }
            Step::Map { page, flags } => {
                if let Ok(gpa) = self.mem.alloc_frame() {
                    self.took(gpa, 1);
                    self.map(address(page), gpa, PageSize::Base, flags);
                }
            }
            Step::MapRun { page, pages, flags } => {
                let Ok(run) = self.mem.alloc_run(pages) else {
                    return;
                };
                self.took(run.gpa, run.pages);
                let result = first_mut(&mut self.spaces).map_range(
                    &mut self.mem,
                    address(page),
                    run.gpa,
                    run.pages,
                    flags,
                );
                if result.is_err() {
                    for index in 0..run.pages {
                        self.mem.free_frame(run.gpa.wrapping_add(index * PAGE_SIZE));
                    }
                }
            }
            Step::MapHuge { block, flags } => {
                let Ok(gpa) = self.mem.alloc_huge() else {
                    return;
                };
                self.took(gpa, PAGES_PER_BLOCK);
                let gva = Gva(BLOCKS[block] * HUGE_PAGE_SIZE);
                self.map(gva, gpa, PageSize::Huge, flags);
            }
            Step::Alias { from, to, flags } => {
                if let Some(translation) = self.translation(from) {
                    self.mem.get_frame(translation.gpa);
                    self.map(address(to), translation.gpa, PageSize::Base, flags);
                }
            }
            Step::Unmap { page, pages } => {
                let len = pages * PAGE_SIZE;
                // An error changes nothing.
                let _ = first_mut(&mut self.spaces).unmap_range(
                    &mut self.mem,
                    address(page),
                    len,
                    |mem, _, leaf| {
                        release(mem, leaf);
                    },
                );
            }
            Step::Protect { page, pages, flags } => {
                let len = pages * PAGE_SIZE;
                let _ = first_mut(&mut self.spaces).protect_range(
                    &mut self.mem,
                    address(page),
                    len,
                    flags,
                );
            }
            Step::Flush => {
                let pending = first_mut(&mut self.spaces).take_pending();
                self.mem.flush_discharged(&pending);
                self.cached.clear();
                self.reachable.clear();
                self.dirty_in_tlb.clear();
            }
            Step::Reset => self.reset(),
        }
    }

    fn reset(&mut self) {
        let denied: BTreeSet<Gva> = (0..PAGES)
            .filter(|page| page & self.deny != 0)
            .map(address)
            .collect();
        let report = self
            .spaces
            .reset(&mut self.mem, |_, gva| !denied.contains(&gva))
            .unwrap();
        let (reference, spaces) = self.frozen.fork().unwrap();
        let tables = first(&spaces);
        let (mut kept, mut kept_pages) = (BTreeSet::new(), BTreeSet::new());
        for page in 0..PAGES {
            let gva = address(page);
            let now = first(&self.spaces).walk(&self.mem, gva);
            let then = tables.walk(&reference, gva);
            let (Some(now), Some(then)) = (now, then) else {
                assert_eq!(now, then, "{gva:?}");
                continue;
            };
            assert!(now.size == then.size || now.size == PageSize::Base);
            let (at, frozen_at) = (now.gpa_of(gva), then.gpa_of(gva));
            if at == frozen_at {
                assert_eq!(now.flags, then.flags, "{gva:?}");
                continue;
            }
            assert!(!self.mem.is_frozen(at) && !denied.contains(&gva));
            assert_eq!(now.flags, then.flags | PteFlags::WRITE);
            assert!(kept.insert(at), "{at:?} is kept for two pages");
            kept_pages.insert(gva);
            let (mut copy, mut original) = ([0; 4096], [0; 4096]);
            self.mem.read(at, &mut copy).unwrap();
            reference.read(frozen_at, &mut original).unwrap();
            assert!(copy == original, "{gva:?} is not restored");
            assert_eq!(self.mem.frame_refs(at), 1);
        }
        assert_eq!(report.kept_pages, kept.len() as u64);
        let written: BTreeSet<Gva> = report.copied_on_write.iter().map(|(_, gva)| *gva).collect();
        assert_eq!(
            written.len(),
            report.copied_on_write.len(),
            "a page is named twice"
        );
        assert!(written.is_subset(&kept_pages));
        assert_eq!((self.mem.used_bytes(), self.mem.peak_bytes()), (0, 0));
        assert_eq!(self.dirty_frames(), kept, "private memory holds something");
    }

    /// Private frames that hold something. Every kept page of the frozen program does.
    fn dirty_frames(&self) -> BTreeSet<Gpa> {
        let tables: Vec<_> = self.mem.table_slots().map(|spec| spec.id).collect();
        let private = self
            .mem
            .slots()
            .iter()
            .filter(|spec| spec.access == SlotAccess::ReadWrite && !tables.contains(&spec.id));
        let mut dirty = BTreeSet::new();
        let mut bytes = vec![0; HUGE_PAGE_SIZE as usize];
        let zeros = vec![0; HUGE_PAGE_SIZE as usize];
        for spec in private {
            for block in (0..spec.len_bytes).step_by(HUGE_PAGE_SIZE as usize) {
                let gpa = spec.gpa.wrapping_add(block);
                self.mem.read(gpa, &mut bytes).unwrap();
                if bytes == zeros {
                    continue;
                }
                let frames = bytes.chunks(PAGE_SIZE as usize).enumerate();
                dirty.extend(
                    frames
                        .filter(|(_, frame)| frame != &&zeros[..PAGE_SIZE as usize])
                        .map(|(index, _)| gpa.wrapping_add(index as u64 * PAGE_SIZE)),
                );
            }
        }
        dirty
    }

    /// No leaf over a frozen frame is writable, and each translation that is no longer true is
    /// harmless or about to be flushed.
    fn check(&self) {
        let pending = first(&self.spaces).pending();
        let covered = |gva: Gva| match pending {
            PendingFlush::None => false,
            PendingFlush::All => true,
            PendingFlush::Entries(entries) => entries
                .iter()
                .any(|stale| (stale.gva.0..stale.gva.0 + stale.size.bytes()).contains(&gva.0)),
        };
        let grants = |flags: u64| PteFlags::from_bits_truncate(flags) ^ PteFlags::NX;
        for page in 0..PAGES {
            let now = self.translation(page);
            if let Some(now) = now {
                let writable = now.flags & PteFlags::WRITE.bits() != 0;
                assert!(!writable || !self.mem.is_frozen(now.gpa), "page {page}");
            }
            for then in self.cached.get(&page).into_iter().flatten() {
                let harmless = now.is_some_and(|now| {
                    let wider = !now.huge && !then.huge && now.gpa == then.gpa;
                    now == *then || wider && grants(now.flags).contains(grants(then.flags))
                });
                assert!(harmless || covered(address(page)), "page {page}: {then:?}");
            }
        }
    }
}

proptest! {
    // By default 16: each case is long. PROPTEST_CASES is what the default is counted from.
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases / 16,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_request_ends_in_the_frozen_state(
        deny in prop_oneof![2 => Just(0), 1 => Just(1), 1 => Just(6)],
        dirty_bits in prop_oneof![Just(DirtyBits::Ignored), Just(DirtyBits::Reliable)],
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new(deny, dirty_bits);
        for step in steps.iter().chain([&Step::Reset]) {
            world.apply(step);
            world.check();
            world.remember();
        }
    }
}

/// With dirty bits: each way to write a kept copy beside the one that sets its entry's bit.
#[test]
fn kept_copies_are_restored_whoever_has_written_them() {
    const HOST: u64 = 4;
    const GUEST: u64 = 5;
    let write = |page, value| Step::Write { page, value };
    let alias = Step::Alias {
        from: 0,
        to: 9,
        flags: DATA,
    };
    let after_unmap = [
        alias.clone(),
        write(9, GUEST),
        Step::Unmap { page: 9, pages: 1 },
    ];
    let requests: [&[Step]; 6] = [
        &[write(0, GUEST)],
        &[write(0, HOST)],
        &[],
        &[write(0, GUEST), write(0, HOST)],
        &[alias, write(9, GUEST)],
        &after_unmap,
    ];
    for deny in [0, 6] {
        let mut world = World::new(deny, DirtyBits::Reliable);
        // Twice: a reset that finds the copies as it has left them takes a shorter way.
        let rounds = (0..2).flat_map(|_| requests);
        for steps in [requests[0], &[]].into_iter().chain(rounds) {
            for step in steps.iter().chain([&Step::Reset]) {
                world.apply(step);
                world.check();
                world.remember();
            }
        }
    }
}
