//! Random edits of an address space against a map of pages.

use std::collections::{BTreeMap, BTreeSet};

use kvmlet_abi::{Gpa, Gva, HUGE_PAGE_SIZE, PAGE_SIZE};
use kvmlet_mem::{
    GuestMemory, Leaf, MemError, MmId, PageSize, PageTables, PendingFlush, PteFlags, Spaces,
};
use proptest::prelude::*;

const PAGES_PER_BLOCK: u64 = HUGE_PAGE_SIZE / PAGE_SIZE;
/// Blocks of the address space that the edits use: neighbours, and both sides of a change of page
/// directory (1 GiB) and of page-directory-pointer table (512 GiB).
const BLOCKS: [u64; 6] = [0, 1, 511, 512, (1 << 18) - 1, 1 << 18];
const LIMIT: u64 = 48 << 20;

#[derive(Clone, Debug)]
enum Edit {
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
    Unmap {
        page: u64,
        pages: u64,
    },
    Protect {
        page: u64,
        pages: u64,
        flags: PteFlags,
    },
    CopyOnWrite {
        page: u64,
    },
    Clear,
    Flush,
}

/// Pages are numbered over all of [`BLOCKS`], one after the other.
fn address(page: u64) -> u64 {
    let block = BLOCKS[(page / PAGES_PER_BLOCK) as usize];
    block * HUGE_PAGE_SIZE + page % PAGES_PER_BLOCK * PAGE_SIZE
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

/// A page near the edges of blocks more often than not.
fn page() -> impl Strategy<Value = u64> {
    let last = BLOCKS.len() as u64 * PAGES_PER_BLOCK;
    prop_oneof![
        0..last,
        (0..BLOCKS.len() as u64, 0..4u64).prop_map(|(block, page)| block * PAGES_PER_BLOCK + page),
        (1..=BLOCKS.len() as u64, 1..4u64).prop_map(|(block, page)| block * PAGES_PER_BLOCK - page),
    ]
}

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![1..6u64, Just(PAGES_PER_BLOCK), 1..3 * PAGES_PER_BLOCK,]
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        3 => (page(), flags()).prop_map(|(page, flags)| Edit::Map { page, flags }),
        3 => (page(), 1..40u64, flags())
            .prop_map(|(page, pages, flags)| Edit::MapRun { page, pages, flags }),
        3 => (0..BLOCKS.len(), flags()).prop_map(|(block, flags)| Edit::MapHuge { block, flags }),
        3 => (page(), pages()).prop_map(|(page, pages)| Edit::Unmap { page, pages }),
        3 => (page(), pages(), flags())
            .prop_map(|(page, pages, flags)| Edit::Protect { page, pages, flags }),
        2 => page().prop_map(|page| Edit::CopyOnWrite { page }),
        1 => Just(Edit::Clear),
        1 => Just(Edit::Flush),
    ]
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    gpa: Gpa,
    flags: PteFlags,
    size: PageSize,
}

impl Page {
    fn rights(self) -> PteFlags {
        self.flags ^ PteFlags::NX
    }
}

struct World {
    mem: GuestMemory,
    spaces: Spaces,
    /// Name of the only one.
    space: MmId,
    /// What is mapped, by page address.
    model: BTreeMap<u64, Page>,
    /// Every translation a processor may hold: all that were true since the last flush.
    cached: BTreeMap<u64, Vec<Page>>,
    /// Frames freed and not flushed.
    freed: BTreeSet<Gpa>,
    /// Whether a present entry has changed since the last flush.
    changed: bool,
}

fn release(mem: &mut GuestMemory, freed: &mut BTreeSet<Gpa>, leaf: Leaf) {
    for page in 0..leaf.size.bytes() / PAGE_SIZE {
        freed.insert(leaf.gpa.wrapping_add(page * PAGE_SIZE));
    }
    match leaf.size {
        PageSize::Base => mem.free_frame(leaf.gpa),
        PageSize::Huge => mem.free_huge(leaf.gpa),
    }
}

/// The tables of the only address space, to be changed beside other fields.
macro_rules! tables_of {
    ($world:expr) => {
        $world.spaces.get_mut($world.space).unwrap()
    };
}

impl World {
    fn tables(&self) -> &PageTables {
        self.spaces.get(self.space).unwrap()
    }

    fn new() -> Self {
        let mut mem = GuestMemory::new(LIMIT).unwrap();
        let tables = PageTables::new(&mut mem).unwrap();
        Self {
            mem,
            spaces: Spaces::new(tables),
            space: MmId::FIRST,
            model: BTreeMap::new(),
            cached: BTreeMap::new(),
            freed: BTreeSet::new(),
            changed: false,
        }
    }

    /// New frames are zero, were not freed since the last flush, and get a mark.
    fn took(&mut self, gpa: Gpa, pages: u64) {
        for page in 0..pages {
            let gpa = gpa.wrapping_add(page * PAGE_SIZE);
            assert!(!self.freed.contains(&gpa), "{gpa:?} before its flush");
            for offset in [0, 2048, PAGE_SIZE - 8] {
                let at = gpa.wrapping_add(offset);
                assert_eq!(self.mem.read_value::<u64>(at).unwrap(), 0);
                self.mem.write_value(at, &u64::MAX).unwrap();
            }
        }
    }

    fn mapped(&mut self, gva: u64, leaf: Leaf) {
        for page in 0..leaf.size.bytes() / PAGE_SIZE {
            let new = Page {
                gpa: leaf.gpa.wrapping_add(page * PAGE_SIZE),
                flags: leaf.flags,
                size: leaf.size,
            };
            self.model.insert(gva + page * PAGE_SIZE, new);
        }
    }

    /// The 2 MiB page around a base page becomes base pages in the model.
    fn divided(&mut self, gva: u64) {
        let start = gva & !(HUGE_PAGE_SIZE - 1);
        for (_, page) in self.model.range_mut(start..start + HUGE_PAGE_SIZE) {
            page.size = PageSize::Base;
        }
    }

    fn is_huge(&self, gva: u64) -> bool {
        self.model
            .get(&gva)
            .is_some_and(|page| page.size == PageSize::Huge)
    }

    /// Divides the 2 MiB pages that a range cuts.
    fn cut(&mut self, gva: u64, end: u64) {
        for edge in [gva, end] {
            if !edge.is_multiple_of(HUGE_PAGE_SIZE) && self.is_huge(edge) {
                self.divided(edge);
            }
        }
    }

    fn apply(&mut self, edit: &Edit) {
        match *edit {
            Edit::Map { page, flags } => {
                let gva = address(page);
                let Ok(gpa) = self.mem.alloc_frame() else {
                    return;
                };
                self.took(gpa, 1);
                let size = PageSize::Base;
                match tables_of!(self).map(&mut self.mem, Gva(gva), gpa, size, flags) {
                    Ok(old) => {
                        assert_eq!(
                            old.map(|leaf| leaf.gpa),
                            self.model.get(&gva).map(|page| page.gpa)
                        );
                        self.divided(gva);
                        self.mapped(gva, Leaf { gpa, size, flags });
                        if let Some(old) = old {
                            release(&mut self.mem, &mut self.freed, old);
                        }
                    }
                    Err(error) => {
                        assert!(matches!(error, MemError::OutOfMemory(_)), "{error}");
                        self.mem.free_frame(gpa);
                        self.freed.insert(gpa);
                    }
                }
            }
            Edit::MapRun { page, pages, flags } => {
                let gva = address(page);
                let Ok(run) = self.mem.alloc_run(pages) else {
                    return;
                };
                self.took(run.gpa, run.pages);
                let end = gva + run.pages * PAGE_SIZE;
                let first = self.model.range(gva..end).next().map(|(&at, _)| at);
                let absent = first.map_or(run.pages, |at| (at - gva) / PAGE_SIZE);
                assert_eq!(
                    self.tables().absent_run(&self.mem, Gva(gva), run.pages),
                    absent
                );
                let result =
                    tables_of!(self).map_range(&mut self.mem, Gva(gva), run.gpa, run.pages, flags);
                for index in 0..run.pages {
                    let gpa = run.gpa.wrapping_add(index * PAGE_SIZE);
                    let size = PageSize::Base;
                    if result.is_ok() {
                        self.mapped(gva + index * PAGE_SIZE, Leaf { gpa, size, flags });
                    } else {
                        self.mem.free_frame(gpa);
                        self.freed.insert(gpa);
                    }
                }
                match (result, first) {
                    (Err(MemError::AlreadyMapped(at)), Some(first)) => assert_eq!(at.0, first),
                    (Ok(()), None) | (Err(MemError::OutOfMemory(_)), None) => {}
                    other => panic!("{other:?}"),
                }
            }
            Edit::MapHuge { block, flags } => {
                let gva = BLOCKS[block] * HUGE_PAGE_SIZE;
                let Ok(gpa) = self.mem.alloc_huge() else {
                    return;
                };
                self.took(gpa, PAGES_PER_BLOCK);
                let size = PageSize::Huge;
                let possible = self.tables().can_map_huge(&self.mem, Gva(gva));
                match tables_of!(self).map(&mut self.mem, Gva(gva), gpa, size, flags) {
                    Ok(old) => {
                        assert_eq!(possible, old.is_none());
                        self.mapped(gva, Leaf { gpa, size, flags });
                        if let Some(old) = old {
                            assert_eq!(old.size, size);
                            release(&mut self.mem, &mut self.freed, old);
                        }
                    }
                    Err(error) => {
                        assert!(
                            matches!(error, MemError::HasTable(_) | MemError::OutOfMemory(_)),
                            "{error}"
                        );
                        assert!(!possible || error != MemError::HasTable(Gva(gva)));
                        release(&mut self.mem, &mut self.freed, Leaf { gpa, size, flags });
                    }
                }
            }
            Edit::Unmap { page, pages } => {
                let (gva, end) = (address(page), address(page) + pages * PAGE_SIZE);
                let mut removed = Vec::new();
                let freed = &mut self.freed;
                let result = tables_of!(self).unmap_range(
                    &mut self.mem,
                    Gva(gva),
                    end - gva,
                    |mem, at, leaf| {
                        release(mem, freed, leaf);
                        removed.push((at.0, leaf));
                    },
                );
                if result.is_err() {
                    assert!(removed.is_empty(), "all or nothing");
                    self.sync_sizes();
                    return;
                }
                self.cut(gva, end);
                let mut expected = self.model.clone();
                let gone = expected.split_off(&gva);
                let (mut gone, mut rest) = (gone.clone(), gone);
                gone.retain(|&at, _| at < end);
                rest.retain(|&at, _| at >= end);
                expected.append(&mut rest);
                let mut seen = BTreeMap::new();
                for (at, leaf) in removed {
                    for page in 0..leaf.size.bytes() / PAGE_SIZE {
                        let page = page * PAGE_SIZE;
                        seen.insert(at + page, leaf.gpa.wrapping_add(page));
                    }
                }
                let gone: BTreeMap<u64, Gpa> =
                    gone.into_iter().map(|(at, page)| (at, page.gpa)).collect();
                assert_eq!(seen, gone);
                self.model = expected;
            }
            Edit::Protect { page, pages, flags } => {
                let (gva, end) = (address(page), address(page) + pages * PAGE_SIZE);
                let result =
                    tables_of!(self).protect_range(&mut self.mem, Gva(gva), end - gva, flags);
                if result.is_err() {
                    self.sync_sizes();
                    return;
                }
                self.cut(gva, end);
                for (_, page) in self.model.range_mut(gva..end) {
                    page.flags = flags;
                }
            }
            Edit::CopyOnWrite { page } => {
                let gva = address(page);
                let Some(&old) = self.model.get(&gva) else {
                    return;
                };
                let Ok(gpa) = self.mem.alloc_copy(old.gpa) else {
                    return;
                };
                assert!(!self.freed.contains(&gpa));
                let mark = self.mem.read_value::<u64>(gpa.wrapping_add(2048)).unwrap();
                assert_eq!(mark, u64::MAX);
                let (size, flags) = (PageSize::Base, old.flags | PteFlags::WRITE);
                match tables_of!(self).map(&mut self.mem, Gva(gva), gpa, size, flags) {
                    Ok(replaced) => {
                        let replaced = replaced.unwrap();
                        assert_eq!(replaced.gpa, old.gpa);
                        self.divided(gva);
                        self.mapped(gva, Leaf { gpa, size, flags });
                        release(&mut self.mem, &mut self.freed, replaced);
                    }
                    Err(_) => {
                        self.mem.free_frame(gpa);
                        self.freed.insert(gpa);
                    }
                }
            }
            Edit::Clear => {
                let freed = &mut self.freed;
                let next = MmId(self.space.0 + 1);
                self.spaces.create(&mut self.mem, next).unwrap();
                let old = core::mem::replace(&mut self.space, next);
                self.spaces.end(&mut self.mem, old, |mem, _, leaf| {
                    release(mem, freed, leaf);
                });
                // The CPU goes to other tables: it has nothing of these any more.
                self.spaces.all_flushed(&mut self.mem);
                self.cached.clear();
                self.model.clear();
                assert_eq!(self.tables().table_frames(), 1);
            }
            Edit::Flush => {}
        }
    }

    /// After a failed range edit: 2 MiB pages at its edges may have been divided, nothing else.
    fn sync_sizes(&mut self) {
        let tables = self.spaces.get(self.space).unwrap();
        for (&gva, page) in &mut self.model {
            let leaf = tables.walk(&self.mem, Gva(gva)).unwrap();
            assert!(page.size == leaf.size || leaf.size == PageSize::Base);
            page.size = leaf.size;
        }
    }

    fn check(&self) {
        let mut found = BTreeMap::new();
        let each = |at: Gva, leaf: Leaf| {
            for page in 0..leaf.size.bytes() / PAGE_SIZE {
                let (gva, gpa) = (at.0 + page * PAGE_SIZE, leaf.gpa.0 + page * PAGE_SIZE);
                let Leaf { flags, size, .. } = leaf;
                let gpa = Gpa(gpa);
                found.insert(gva, Page { gpa, flags, size });
            }
        };
        self.tables()
            .for_each_leaf(&self.mem, Gva(0), 1 << 47, each)
            .unwrap();
        assert!(
            found == self.model,
            "{found:x?}\ninstead of {:x?}",
            self.model
        );
        // One by one too, unmapped pages included.
        for page in 0..BLOCKS.len() as u64 * PAGES_PER_BLOCK {
            let gva = address(page);
            let gpa = self.model.get(&gva).map(|page| page.gpa);
            assert_eq!(
                self.tables().translate(&self.mem, Gva(gva)),
                gpa,
                "{gva:#x}"
            );
        }
        let distinct: BTreeSet<Gpa> = self.model.values().map(|page| page.gpa).collect();
        assert_eq!(distinct.len(), self.model.len(), "a frame is mapped twice");
        assert!(distinct.is_disjoint(&self.freed));
        let reachable = self.model.len() as u64 + self.tables().table_frames();
        assert_eq!(
            self.mem.used_bytes(),
            reachable * PAGE_SIZE,
            "a frame leaks"
        );
    }

    /// Every translation that was true at some time and is not what the tables say now must be
    /// covered by the pending flush, and nothing else may be.
    fn check_pending(&mut self, before: &BTreeMap<u64, Page>, cleared: bool) {
        for (&gva, &page) in before {
            let seen = self.cached.entry(gva).or_default();
            if !seen.contains(&page) {
                seen.push(page);
            }
        }
        let pending = self.tables().pending().clone();
        let covered = |gva: u64| match &pending {
            PendingFlush::None => false,
            PendingFlush::All => true,
            PendingFlush::Entries(entries) => entries
                .iter()
                .any(|stale| (stale.gva.0..stale.gva.0 + stale.size.bytes()).contains(&gva)),
        };
        self.changed |= cleared;
        for (&gva, seen) in &self.cached {
            let now = self.model.get(&gva);
            for page in seen {
                let harmless = now.is_some_and(|now| {
                    let wider = now.gpa == page.gpa
                        && now.size == PageSize::Base
                        && page.size == PageSize::Base
                        && now.rights().contains(page.rights());
                    wider || now == page
                });
                if !harmless {
                    self.changed = true;
                    assert!(covered(gva), "stale {page:?} at {gva:#x}: {pending:?}");
                }
            }
        }
        assert!(self.changed || pending.is_none(), "{pending:?} for nothing");
    }

    fn flush(&mut self) {
        let pending = self.spaces.take_pending(self.space);
        self.mem.flush_discharged(&pending);
        self.cached.clear();
        self.freed.clear();
        self.changed = false;
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
    fn any_sequence_of_edits_agrees_with_the_model(
        edits in proptest::collection::vec(edit(), 1..40),
    ) {
        let mut world = World::new();
        for edit in &edits {
            let before = match edit {
                Edit::Clear => BTreeMap::new(),
                _ => world.model.clone(),
            };
            world.apply(edit);
            world.check();
            world.check_pending(&before, matches!(edit, Edit::Clear));
            if matches!(edit, Edit::Flush) {
                world.flush();
            }
        }
        let empty = MmId(u64::MAX);
        let World { mut mem, mut spaces, space, mut freed, .. } = world;
        spaces.create(&mut mem, empty).unwrap();
        spaces.end(&mut mem, space, |mem, _, leaf| release(mem, &mut freed, leaf));
        spaces.all_flushed(&mut mem);
        prop_assert_eq!(mem.used_bytes(), PAGE_SIZE, "an empty root");
        mem.flush_discharged(&PendingFlush::All);
        prop_assert!(!mem.has_quarantine());
    }
}
