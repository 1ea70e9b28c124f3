//! Frozen memory, forks of it, and resets.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::sync::Arc;

use kvmlet_abi::{Gpa, Gva, HUGE_PAGE_SIZE, PAGE_SIZE, SlotAccess};
use kvmlet_mem::{
    CopyStop, FileMapping, FileWindow, FrozenMemory, GuestMemory, Leaf, MemError, MmId,
    OutOfMemory, PageSize, PageTables, PendingFlush, PteFlags, ResetReport, Spaces,
};

const MIB: u64 = 1 << 20;
const DATA: PteFlags = PteFlags::USER.union(PteFlags::WRITE).union(PteFlags::NX);
const READ_ONLY: PteFlags = PteFlags::USER.union(PteFlags::NX);
const LIMIT: u64 = 64 * MIB;

/// Where the program has 16 base pages, one 2 MiB page, and a page of the VMM.
const BASE: Gva = Gva(0x40_0000);
const BASE_PAGES: u64 = 16;
const HUGE: Gva = Gva(0x1000_0000);
const VMM: Gva = Gva(0x7fff_ffff_e000);
/// Where nothing is.
const FREE: Gva = Gva(0x2000_0000);

fn page(index: u64) -> Gva {
    BASE.wrapping_add(index * PAGE_SIZE)
}

/// A program in memory: word 0 of base page `i` is `i + 1`, word 0 of page `i` of the 2 MiB page is
/// `1000 + i`.
fn program(limit_bytes: u64) -> (GuestMemory, PageTables) {
    let mut mem = GuestMemory::new(limit_bytes).unwrap();
    let mut tables = PageTables::new(&mut mem).unwrap();
    let vmm = mem.alloc_table_frame().unwrap();
    mem.write_value(vmm, &0x0077_u64).unwrap();
    let kernel = PteFlags::WRITE | PteFlags::NX;
    tables
        .map(&mut mem, VMM, vmm, PageSize::Base, kernel)
        .unwrap();
    for index in 0..BASE_PAGES {
        let gpa = mem.alloc_frame().unwrap();
        mem.write_value(gpa, &(index + 1)).unwrap();
        tables
            .map(&mut mem, page(index), gpa, PageSize::Base, DATA)
            .unwrap();
    }
    let block = mem.alloc_huge().unwrap();
    for index in 0..HUGE_PAGE_SIZE / PAGE_SIZE {
        let at = block.wrapping_add(index * PAGE_SIZE);
        mem.write_value(at, &(1000 + index)).unwrap();
    }
    tables
        .map(&mut mem, HUGE, block, PageSize::Huge, DATA)
        .unwrap();
    (mem, tables)
}

fn frozen() -> Arc<FrozenMemory> {
    let (mem, tables) = program(LIMIT);
    mem.freeze(Spaces::new(tables), 0).unwrap()
}

/// Pages of the first address space.
fn named<const N: usize>(pages: [Gva; N]) -> Vec<(MmId, Gva)> {
    pages.map(|page| (MmId::FIRST, page)).to_vec()
}

/// The frame of the VMM's page in a fork that has not run.
fn fork_vmm(frozen: &Arc<FrozenMemory>) -> Gpa {
    let (mem, spaces) = frozen.fork().unwrap();
    first(&spaces).translate(&mem, VMM).unwrap()
}

fn first(spaces: &Spaces) -> &PageTables {
    spaces.get(MmId::FIRST).unwrap()
}

fn first_mut(spaces: &mut Spaces) -> &mut PageTables {
    spaces.get_mut(MmId::FIRST).unwrap()
}

struct Fork {
    mem: GuestMemory,
    spaces: Spaces,
}

impl Fork {
    fn of(frozen: &Arc<FrozenMemory>) -> Self {
        let (mem, spaces) = frozen.fork().unwrap();
        Self { mem, spaces }
    }

    fn word(&self, gva: Gva) -> u64 {
        let mut bytes = [0; 8];
        let outcome = first(&self.spaces).copy_in(&self.mem, gva, &mut bytes);
        assert_eq!(outcome.stop, None, "{gva:?}");
        u64::from_ne_bytes(bytes)
    }

    /// Writes as a program does: a frozen page is copied first.
    fn set(&mut self, gva: Gva, value: u64) {
        let leaf = first(&self.spaces).walk(&self.mem, gva).unwrap();
        if self.mem.is_frozen(leaf.gpa) {
            let flags = leaf.flags | PteFlags::WRITE;
            first_mut(&mut self.spaces)
                .copy_frozen(&mut self.mem, gva, flags)
                .unwrap();
        }
        let bytes = value.to_ne_bytes();
        let outcome = first(&self.spaces).copy_out(&mut self.mem, gva, &bytes);
        assert_eq!(outcome.stop, None, "{gva:?}");
    }

    /// Writes as a program does; whether that copied a frozen page.
    fn set_counting(&mut self, gva: Gva, value: u64) -> bool {
        let copies = self.spaces.copies();
        self.set(gva, value);
        self.spaces.copies() > copies
    }

    /// New memory at a free place.
    fn add(&mut self, gva: Gva, value: u64) -> Gpa {
        let gpa = self.mem.alloc_frame().unwrap();
        assert_eq!(self.mem.read_value::<u64>(gpa).unwrap(), 0);
        self.mem.write_value(gpa, &value).unwrap();
        let old = first_mut(&mut self.spaces)
            .map(&mut self.mem, gva, gpa, PageSize::Base, DATA)
            .unwrap();
        assert_eq!(old, None);
        gpa
    }

    fn reset(&mut self) -> ResetReport {
        self.spaces.reset(&mut self.mem, |_, _| true).unwrap()
    }

    fn flush(&mut self) {
        let pending = first_mut(&mut self.spaces).take_pending();
        self.mem.flush_discharged(&pending);
    }

    fn leaf(&self, gva: Gva) -> Option<Leaf> {
        first(&self.spaces).walk(&self.mem, gva)
    }

    /// The frames of private program memory that hold something, by brute force.
    fn dirty_frames(&self) -> Vec<Gpa> {
        let mut dirty = Vec::new();
        let tables: Vec<_> = self.mem.table_slots().map(|spec| spec.id).collect();
        for spec in self.mem.slots() {
            if spec.access == SlotAccess::ReadOnly || tables.contains(&spec.id) {
                continue;
            }
            for at in (0..spec.len_bytes).step_by(PAGE_SIZE as usize) {
                let gpa = spec.gpa.wrapping_add(at);
                let mut bytes = [0; PAGE_SIZE as usize];
                let read = self.mem.read(gpa, &mut bytes);
                if read.is_ok() && bytes.iter().any(|&byte| byte != 0) {
                    dirty.push(gpa);
                }
            }
        }
        dirty
    }
}

#[test]
fn a_fork_sees_what_was_frozen_and_writes_for_itself() {
    let frozen = frozen();
    let (mut one, mut two) = (Fork::of(&frozen), Fork::of(&frozen));
    assert_eq!(first(&one.spaces).root(), first(&two.spaces).root());
    for index in 0..BASE_PAGES {
        assert_eq!(one.word(page(index)), index + 1);
        let leaf = one.leaf(page(index)).unwrap();
        assert_eq!(leaf.flags, READ_ONLY);
        assert!(one.mem.is_frozen(leaf.gpa));
        assert_eq!(one.mem.frame_refs(leaf.gpa), 0);
    }
    assert_eq!(one.leaf(HUGE).unwrap().size, PageSize::Huge);
    assert_eq!(one.word(Gva(HUGE.0 + 5 * PAGE_SIZE)), 1005);
    one.set(page(3), 33);
    two.set(page(3), 44);
    two.set(page(4), 55);
    assert_eq!((one.word(page(3)), one.word(page(4))), (33, 5));
    assert_eq!((two.word(page(3)), two.word(page(4))), (44, 55));
    let three = Fork::of(&frozen);
    assert_eq!((three.word(page(3)), three.word(page(4))), (4, 5));
    // The VMM's pages are each fork's own, writable as before.
    let vmm = one.leaf(VMM).unwrap();
    assert!(vmm.flags.contains(PteFlags::WRITE) && !one.mem.is_frozen(vmm.gpa));
    one.mem.write_value(vmm.gpa, &0x88_u64).unwrap();
    assert_eq!(one.mem.read_value::<u64>(vmm.gpa).unwrap(), 0x88);
    assert_eq!(two.mem.read_value::<u64>(vmm.gpa).unwrap(), 0x77);
}

#[test]
fn slots_keep_their_places_and_frozen_ones_are_read_only() {
    let (mut mem, tables) = program(LIMIT);
    let before = mem.slots().to_vec();
    let table_ids: Vec<_> = mem.table_slots().map(|spec| spec.id).collect();
    drop(mem.take_new_slots());
    let frozen = mem.freeze(Spaces::new(tables), 0).unwrap();
    let mut fork = Fork::of(&frozen);
    let slots = fork.mem.take_new_slots();
    assert!(slots.len() > before.len(), "frozen slots and a bank");
    for (slot, old) in slots.iter().zip(&before) {
        let spec = slot.spec();
        assert_eq!((spec.id, spec.gpa), (old.id, old.gpa));
        assert_eq!(spec.len_bytes, old.len_bytes);
        let expected = match table_ids.contains(&spec.id) {
            true => SlotAccess::ReadWrite,
            false => SlotAccess::ReadOnly,
        };
        assert_eq!(spec.access, expected);
    }
    assert!(fork.mem.take_new_slots().is_empty());
    fork.mem.alloc_huge().unwrap();
    assert_eq!(fork.mem.take_new_slots().len(), 1, "a bank of blocks");
}

#[test]
fn memory_that_a_vm_may_write_is_not_frozen() {
    let (mut mem, tables) = program(LIMIT);
    let slots = mem.take_new_slots();
    let busy = MemError::Freeze(rustix::io::Errno::BUSY);
    assert_eq!(mem.freeze(Spaces::new(tables), 0).map(drop), Err(busy));
    drop(slots);
}

#[test]
fn no_call_writes_frozen_memory() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    let gpa = fork.leaf(page(0)).unwrap().gpa;
    let denied = MemError::Frozen(gpa);
    let own = fork.mem.alloc_frame().unwrap();
    assert_eq!(fork.mem.write(gpa, &[1]), Err(denied));
    assert_eq!(fork.mem.zero(gpa, 8), Err(denied));
    assert_eq!(fork.mem.compare_exchange_u32(gpa, 1, 2), Err(denied));
    assert_eq!(fork.mem.copy_frame(own, gpa), Err(denied));
    assert_eq!(fork.mem.load_u32(gpa), Ok(1));
    assert!(fork.mem.host_page(gpa).is_none());
    let outcome = first(&fork.spaces).copy_out(&mut fork.mem, page(0), &[9]);
    assert_eq!(outcome.stop, Some(CopyStop::Denied(page(0))));
    let used = fork.mem.used_bytes();
    fork.mem.get_frame(gpa);
    fork.mem.free_frame(gpa);
    fork.mem.free_frame(gpa);
    let huge = fork.leaf(HUGE).unwrap().gpa;
    fork.mem.get_huge(huge);
    fork.mem.free_huge(huge);
    assert_eq!(fork.mem.used_bytes(), used);
    assert_eq!(fork.mem.read_value::<u64>(gpa).unwrap(), 1);
}

#[test]
fn a_leaf_over_a_frozen_frame_never_gets_the_right_to_write() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    let Fork { mem, spaces } = &mut fork;
    let tables = first_mut(spaces);
    let gpa = tables.walk(mem, page(0)).unwrap().gpa;
    let huge = tables.walk(mem, HUGE).unwrap().gpa;
    let read_only = |tables: &PageTables, mem: &GuestMemory, gva| {
        assert_eq!(tables.walk(mem, gva).unwrap().flags, READ_ONLY, "{gva:?}");
    };
    tables
        .protect_range(mem, BASE, 4 * PAGE_SIZE, DATA)
        .unwrap();
    read_only(tables, mem, page(1));
    tables.map(mem, FREE, gpa, PageSize::Base, DATA).unwrap();
    read_only(tables, mem, FREE);
    let run = Gva(FREE.0 + 16 * PAGE_SIZE);
    tables.map_range(mem, run, huge, 8, DATA).unwrap();
    read_only(tables, mem, Gva(run.0 + 7 * PAGE_SIZE));
    let other = Gva(FREE.0 + 8 * HUGE_PAGE_SIZE);
    tables.map(mem, other, huge, PageSize::Huge, DATA).unwrap();
    read_only(tables, mem, other);
    tables
        .protect_range(mem, HUGE, HUGE_PAGE_SIZE, DATA)
        .unwrap();
    read_only(tables, mem, HUGE);
    tables.protect_range(mem, HUGE, PAGE_SIZE, DATA).unwrap();
    read_only(tables, mem, HUGE);
    read_only(tables, mem, Gva(HUGE.0 + PAGE_SIZE));
    fork.reset();
    assert_eq!(fork.leaf(FREE), None);
    assert_eq!(fork.leaf(other), None);
}

#[test]
fn a_reset_restores_contents_and_counts() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    let start = fork.mem.used_bytes();
    fork.set(page(1), 11);
    fork.set(page(2), 22);
    let flags = DATA;
    first_mut(&mut fork.spaces)
        .copy_frozen(&mut fork.mem, page(3), flags)
        .unwrap();
    let extra = fork.add(FREE, 99);
    assert_eq!(fork.mem.used_bytes() - start, 2 * PAGE_SIZE, "with a table");
    assert_eq!(
        fork.mem.resident_bytes() - start,
        PAGE_SIZE,
        "copies and tables do not count"
    );
    let report = fork.reset();
    let expected = ResetReport {
        copied_pages: 2,
        compared_equal_pages: 1,
        dropped_pages: 0,
        kept_pages: 3,
        scrubbed_pages: 1,
        table_pages: report.table_pages,
        // The third was written with what it held.
        copied_on_write: named([page(1), page(2), page(3)]),
        written_again: Vec::new(),
        written_pages: 3,
        dropped: Vec::new(),
    };
    assert_eq!(report, expected);
    // The table of the base pages, the new one, and the one that links to it.
    assert_eq!(report.table_pages, 3);
    assert_eq!(fork.mem.used_bytes(), start);
    assert_eq!(fork.mem.peak_bytes(), start);
    assert_eq!(fork.mem.read_value::<u64>(extra).unwrap(), 0, "wiped");
    assert_eq!(fork.leaf(FREE), None);
    for index in 0..BASE_PAGES {
        assert_eq!(fork.word(page(index)), index + 1);
        let kept = (1..=3).contains(&index);
        assert_eq!(fork.leaf(page(index)).unwrap().flags == DATA, kept);
    }
    assert!(fork.dirty_frames().len() == 3, "the copies only");
    // The next request writes without a fault.
    let before = first(&fork.spaces).pending().clone();
    fork.set(page(2), 222);
    assert_eq!(first(&fork.spaces).pending(), &before);
    fork.flush();
    let report = fork.reset();
    assert_eq!((report.copied_pages, report.compared_equal_pages), (1, 2));
    assert_eq!(
        report.named().collect::<Vec<_>>(),
        named([page(2)]),
        "once more"
    );
    assert_eq!(report.written_pages, 1);
    assert!(first(&fork.spaces).pending().is_none(), "nothing to flush");
    assert_eq!(fork.word(page(2)), 3);
    // A steady load names none.
    fork.set(page(2), 333);
    assert_eq!((fork.spaces.copies(), fork.spaces.written_copies()), (3, 0));
    let report = fork.reset();
    assert_eq!((report.named().count(), report.written_pages), (0, 1));
    fork.set(page(4), 5);
    assert_eq!((fork.spaces.copies(), fork.spaces.written_copies()), (4, 1));
}

#[test]
fn a_copy_that_is_not_written_for_long_is_given_up() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    fork.set(page(5), 1);
    assert_eq!(fork.reset().copied_pages, 1);
    for round in 1..512 {
        let report = fork.reset();
        assert_eq!((report.kept_pages, report.dropped_pages), (1, 0), "{round}");
        fork.flush();
    }
    let report = fork.reset();
    assert_eq!((report.kept_pages, report.dropped_pages), (0, 1));
    assert!(
        !first(&fork.spaces).pending().is_none(),
        "a present entry changed"
    );
    assert_eq!(fork.leaf(page(5)).unwrap().flags, READ_ONLY);
    assert_eq!(fork.word(page(5)), 6);
    assert!(fork.dirty_frames().is_empty());
    fork.flush();
    assert_eq!(fork.reset().dropped_pages, 0);
    // It was written after all, if only with what it held: it may be idle twice as long.
    fork.set(page(5), 6);
    let report = fork.reset();
    assert_eq!((report.compared_equal_pages, report.kept_pages), (1, 1));
    assert_eq!(report.copied_on_write, named([page(5)]));
    for round in 1..1023 {
        assert_eq!(fork.reset().kept_pages, 1, "{round}");
    }
    assert_eq!(fork.reset().dropped_pages, 1);
    fork.flush();
    // Written now and then, it stays.
    for round in 0..60_u64 {
        if round.is_multiple_of(15) {
            fork.set(page(5), round + 100);
        }
        assert_eq!(fork.reset().kept_pages, 1);
    }
}

#[test]
fn copies_are_kept_only_where_allowed_and_still_mapped() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    for index in 0..4 {
        fork.set(page(index), 77);
    }
    // Page 1 goes, page 2 moves over page 3.
    let unmapped = |mem: &mut GuestMemory, _: Gva, leaf: Leaf| mem.free_frame(leaf.gpa);
    first_mut(&mut fork.spaces)
        .unmap_range(&mut fork.mem, page(1), PAGE_SIZE, unmapped)
        .unwrap();
    let moved = fork.leaf(page(2)).unwrap();
    first_mut(&mut fork.spaces)
        .unmap_range(&mut fork.mem, page(2), PAGE_SIZE, |_, _, _| {})
        .unwrap();
    let old = first_mut(&mut fork.spaces)
        .map(&mut fork.mem, page(3), moved.gpa, PageSize::Base, DATA)
        .unwrap();
    fork.mem.free_frame(old.unwrap().gpa);
    let report = fork
        .spaces
        .reset(&mut fork.mem, |_, gva| gva != page(0))
        .unwrap();
    assert_eq!((report.kept_pages, report.dropped_pages), (0, 4));
    for index in 0..BASE_PAGES {
        assert_eq!(fork.word(page(index)), index + 1);
        assert_eq!(fork.leaf(page(index)).unwrap().flags, READ_ONLY);
    }
    assert!(fork.dirty_frames().is_empty());
}

#[test]
fn what_a_reset_has_found_of_a_copy_holds_no_longer_than_the_copy() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    let kept = 0..6;
    let unmap = |fork: &mut Fork, index| {
        let unmapped = |mem: &mut GuestMemory, _: Gva, leaf: Leaf| mem.free_frame(leaf.gpa);
        first_mut(&mut fork.spaces)
            .unmap_range(&mut fork.mem, page(index), PAGE_SIZE, unmapped)
            .unwrap();
    };
    let asked = |fork: &mut Fork| {
        let mut asked = Vec::new();
        let may_keep = |_, gva| {
            asked.push(gva);
            true
        };
        let report = fork.spaces.reset(&mut fork.mem, may_keep).unwrap();
        fork.flush();
        (report.kept_pages, asked.len())
    };
    for index in kept.clone() {
        fork.set(page(index), 77);
    }
    assert_eq!(asked(&mut fork), (6, 6));
    assert_eq!(asked(&mut fork), (6, 0), "only of new copies");
    // Unmapped.
    unmap(&mut fork, 0);
    // Unmapped, and other memory mapped.
    unmap(&mut fork, 1);
    fork.add(page(1), 99);
    // Written, and only to be read from then on.
    fork.set(page(2), 88);
    first_mut(&mut fork.spaces)
        .protect_range(&mut fork.mem, page(2), PAGE_SIZE, READ_ONLY)
        .unwrap();
    // Moved away, to where a reset knows another copy.
    unmap(&mut fork, 4);
    let moved = fork.leaf(page(3)).unwrap();
    first_mut(&mut fork.spaces)
        .unmap_range(&mut fork.mem, page(3), PAGE_SIZE, |_, _, _| {})
        .unwrap();
    first_mut(&mut fork.spaces)
        .map(&mut fork.mem, page(4), moved.gpa, PageSize::Base, DATA)
        .unwrap();
    assert_eq!(asked(&mut fork), (2, 0), "pages 2 and 5");
    for index in kept.clone() {
        assert_eq!(fork.word(page(index)), index + 1);
        let kept = [2, 5].contains(&index);
        assert_eq!(fork.leaf(page(index)).unwrap().flags == DATA, kept);
    }
    assert_eq!(fork.dirty_frames().len(), 2);
    // Copied again, to other frames than before.
    for index in kept.clone().rev() {
        fork.set(page(index), 66);
    }
    assert_eq!(asked(&mut fork), (6, 4));
    for index in kept {
        assert_eq!(fork.word(page(index)), index + 1);
    }
}

#[test]
fn one_frame_is_never_kept_for_two_pages() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    fork.set(page(1), 1);
    let copy = fork.leaf(page(1)).unwrap().gpa;
    first_mut(&mut fork.spaces)
        .unmap_range(&mut fork.mem, page(1), PAGE_SIZE, |mem, _, leaf| {
            mem.free_frame(leaf.gpa);
        })
        .unwrap();
    fork.flush();
    // The same frame becomes the copy of page 2, and page 1 maps it as well.
    fork.set(page(2), 2);
    assert_eq!(fork.leaf(page(2)).unwrap().gpa, copy);
    fork.mem.get_frame(copy);
    first_mut(&mut fork.spaces)
        .map(&mut fork.mem, page(1), copy, PageSize::Base, DATA)
        .unwrap();
    let report = fork.reset();
    assert_eq!((report.kept_pages, report.dropped_pages), (1, 1));
    fork.flush();
    fork.set(page(1), 10);
    fork.set(page(2), 20);
    assert_eq!((fork.word(page(1)), fork.word(page(2))), (10, 20));
}

#[test]
fn freed_memory_waits_for_the_flush_that_a_reset_records() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    let gpa = fork.add(FREE, 5);
    fork.reset();
    assert!(!first(&fork.spaces).pending().is_none());
    let next = fork.mem.alloc_frame().unwrap();
    assert_ne!(next, gpa, "a translation may lead to it still");
    fork.flush();
    fork.reset();
    assert!(first(&fork.spaces).pending().is_none());
    assert_eq!(fork.mem.alloc_frame().unwrap(), gpa, "the lowest again");
}

#[test]
fn nothing_waits_after_a_reset_that_needs_no_flush() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    let gpa = fork.mem.alloc_frame().unwrap();
    fork.mem.free_frame(gpa);
    assert!(fork.mem.has_quarantine());
    fork.reset();
    assert!(first(&fork.spaces).pending().is_none());
    assert!(!fork.mem.has_quarantine());
}

#[test]
fn nothing_of_a_request_is_left_in_private_memory() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    for round in 0..3 {
        fork.set(page(0), 1);
        // Frames in use, frames freed but not flushed, frames freed and flushed; blocks likewise, more
        // of them than are kept.
        let mark = |mem: &mut GuestMemory, gpa: Gpa| {
            mem.write(gpa.wrapping_add(8), &[0xaa; 4000]).unwrap();
            gpa
        };
        let frames: Vec<Gpa> = (0..600)
            .map(|_| {
                let gpa = fork.mem.alloc_frame().unwrap();
                mark(&mut fork.mem, gpa)
            })
            .collect();
        let blocks: Vec<Gpa> = (0..7)
            .map(|_| {
                let gpa = fork.mem.alloc_huge().unwrap();
                mark(&mut fork.mem, gpa);
                mark(&mut fork.mem, gpa.wrapping_add(HUGE_PAGE_SIZE - PAGE_SIZE))
            })
            .collect();
        frames[..50]
            .iter()
            .for_each(|&gpa| fork.mem.free_frame(gpa));
        fork.mem.free_huge(blocks[0].huge_down());
        fork.mem.free_frame(blocks[1]);
        fork.flush();
        frames[50..99]
            .iter()
            .for_each(|&gpa| fork.mem.free_frame(gpa));
        fork.mem.free_huge(blocks[2].huge_down());
        let report = fork.reset();
        assert!(report.scrubbed_pages >= 599, "{round}: {report:?}");
        assert_eq!(fork.dirty_frames().len(), 1, "the copy of page 0");
        assert_eq!(fork.mem.used_bytes(), 0);
        fork.flush();
    }
    // 600 base frames and 4 blocks keep their host memory, and the table pages.
    let private = fork.mem.private_bytes();
    assert!(private <= 620 * PAGE_SIZE + 4 * HUGE_PAGE_SIZE, "{private}");
}

#[test]
fn a_split_stays_and_its_pages_are_restored() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    let inside = |index: u64| Gva(HUGE.0 + index * PAGE_SIZE);
    fork.set(inside(7), 1);
    first_mut(&mut fork.spaces)
        .unmap_range(&mut fork.mem, inside(20), 3 * PAGE_SIZE, |_, _, _| {})
        .unwrap();
    let report = fork.reset();
    assert_eq!((report.copied_pages, report.kept_pages), (1, 1));
    assert_eq!(report.copied_on_write, named([inside(7)]));
    for index in 0..512 {
        assert_eq!(fork.word(inside(index)), 1000 + index);
        let leaf = fork.leaf(inside(index)).unwrap();
        assert_eq!(leaf.size, PageSize::Base);
        assert_eq!(leaf.flags.contains(PteFlags::WRITE), index == 7);
    }
    // A 2 MiB page that was removed before a base page took a part of its place.
    let mut fork = Fork::of(&frozen);
    first_mut(&mut fork.spaces)
        .unmap_range(&mut fork.mem, HUGE, HUGE_PAGE_SIZE, |_, _, _| {})
        .unwrap();
    fork.add(inside(5), 1);
    fork.reset();
    for index in 0..512 {
        assert_eq!(fork.word(inside(index)), 1000 + index);
    }
    // One that was changed as a whole before it was split.
    let mut fork = Fork::of(&frozen);
    first_mut(&mut fork.spaces)
        .unmap_range(&mut fork.mem, HUGE, HUGE_PAGE_SIZE, |_, _, _| {})
        .unwrap();
    let block = fork.mem.alloc_huge().unwrap();
    first_mut(&mut fork.spaces)
        .map(&mut fork.mem, HUGE, block, PageSize::Huge, DATA)
        .unwrap();
    first_mut(&mut fork.spaces)
        .protect_range(&mut fork.mem, inside(3), PAGE_SIZE, READ_ONLY)
        .unwrap();
    assert_eq!(fork.word(inside(3)), 0);
    let nowhere = Gva(FREE.0 & !(HUGE_PAGE_SIZE - 1));
    let block = fork.mem.alloc_huge().unwrap();
    first_mut(&mut fork.spaces)
        .map(&mut fork.mem, nowhere, block, PageSize::Huge, DATA)
        .unwrap();
    first_mut(&mut fork.spaces)
        .protect_range(&mut fork.mem, nowhere, PAGE_SIZE, READ_ONLY)
        .unwrap();
    fork.reset();
    for index in 0..512 {
        assert_eq!(fork.word(inside(index)), 1000 + index);
        assert_eq!(fork.leaf(Gva(nowhere.0 + index * PAGE_SIZE)), None);
    }
}

#[test]
fn an_address_space_that_has_ended_is_there_again_after_a_reset() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    let (first, second) = (MmId::FIRST, MmId(2));
    for round in 0..3 {
        let copied = fork.set_counting(page(1), 5);
        assert_eq!(copied, round == 0, "the copy is kept");
        let added = fork.add(FREE, 1);
        // As execve(2): the new one first.
        fork.spaces.create(&mut fork.mem, second).unwrap();
        let mut removed = Vec::new();
        fork.spaces.end(&mut fork.mem, first, |mem, gva, leaf| {
            mem.free_frame(leaf.gpa);
            removed.push(gva);
        });
        assert_eq!(removed, [FREE], "what is frozen, and copies, stay");
        assert!(fork.spaces.get(first).is_none());
        let tables = fork.spaces.get_mut(second).unwrap();
        assert_eq!(tables.translate(&fork.mem, VMM), Some(fork_vmm(&frozen)));
        let frame = fork.mem.alloc_frame().unwrap();
        assert_ne!(frame, added, "not before the flush");
        tables
            .map(&mut fork.mem, page(0), frame, PageSize::Base, DATA)
            .unwrap();
        let report = fork.reset();
        assert_eq!((report.kept_pages, report.copied_pages), (1, 1));
        assert!(fork.spaces.get(second).is_none());
        assert_eq!((fork.word(page(0)), fork.word(page(1))), (1, 2));
        assert_eq!(fork.leaf(FREE), None);
        fork.flush();
    }
}

#[test]
fn only_a_fork_is_reset() {
    let (mut mem, tables) = program(LIMIT);
    let mut spaces = Spaces::new(tables);
    let result = spaces.reset(&mut mem, |_, _| true);
    assert_eq!(result, Err(MemError::NeedsRebuild));
    let result = first_mut(&mut spaces).copy_frozen(&mut mem, page(0), DATA);
    assert_eq!(result, Err(MemError::NotFrozen(page(0))));
}

#[test]
fn the_limit_bounds_what_a_fork_adds() {
    let limit = 8 * MIB;
    let (mut mem, tables) = program(limit);
    let charged = MIB;
    mem.charge(charged).unwrap();
    let frozen = mem.freeze(Spaces::new(tables), charged).unwrap();
    let mut fork = Fork::of(&frozen);
    assert_eq!(fork.mem.used_bytes(), charged);
    assert_eq!(fork.mem.limit_bytes(), limit + charged);
    for round in 0..3 {
        fork.set(page(0), 1);
        let mut pages = 0;
        while fork.mem.alloc_frame().is_ok() {
            pages += 1;
        }
        assert_eq!(pages * PAGE_SIZE, limit, "{round}");
        assert_eq!(fork.mem.charge(1), Err(OutOfMemory::Limit));
        // A copy takes the place of what is frozen: it costs the program nothing.
        fork.set(page(1 + round), 1);
        assert_eq!(fork.mem.used_bytes(), limit + charged);
        fork.mem.uncharge(charged);
        fork.reset();
        assert_eq!(fork.mem.used_bytes(), charged);
        fork.flush();
    }
    // A copy does not count when it is freed either.
    first_mut(&mut fork.spaces)
        .unmap_range(&mut fork.mem, page(0), PAGE_SIZE, |mem, _, leaf| {
            mem.free_frame(leaf.gpa);
        })
        .unwrap();
    assert_eq!(fork.mem.used_bytes(), charged);
}

fn file(pages: u64) -> File {
    let mut file = tempfile();
    for index in 0..pages {
        file.write_all(&[index as u8 + 1; PAGE_SIZE as usize])
            .unwrap();
    }
    file
}

fn tempfile() -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    File::from(rustix::fs::memfd_create("test", flags).unwrap())
}

#[test]
fn file_windows_show_what_was_written_before_the_freeze() {
    let (mut mem, mut tables) = program(LIMIT);
    let file = file(4);
    let window = mem
        .map_file(file.as_fd(), 0, 4 * PAGE_SIZE, FileMapping::Private)
        .unwrap();
    mem.write(window.gpa.wrapping_add(PAGE_SIZE), &[0xee; 16])
        .unwrap();
    tables
        .map_range(&mut mem, FREE, window.gpa, 4, DATA)
        .unwrap();
    let frozen = mem.freeze(Spaces::new(tables), 0).unwrap();
    let mut fork = Fork::of(&frozen);
    let at = |index: u64| Gva(FREE.0 + index * PAGE_SIZE);
    let bytes = |byte: u8| u64::from_ne_bytes([byte; 8]);
    assert!(fork.mem.is_frozen(window.gpa) && fork.mem.is_file_backed(window.gpa));
    assert_eq!(fork.word(at(0)), bytes(1));
    assert_eq!(fork.word(at(1)), bytes(0xee));
    assert_eq!(fork.leaf(at(1)).unwrap().flags, READ_ONLY);
    let denied = MemError::Frozen(window.gpa);
    assert_eq!(fork.mem.write(window.gpa, &[1]), Err(denied));
    assert_eq!(fork.mem.compare_exchange_u32(window.gpa, 0, 1), Err(denied));
    assert_eq!(fork.mem.discard_file(window), Err(denied));
    assert_eq!(fork.mem.unmap_file(window), Ok(()));
    let odd = FileWindow {
        len_bytes: 5,
        ..window
    };
    assert!(matches!(
        fork.mem.unmap_file(odd),
        Err(MemError::Misaligned(_))
    ));
    fork.set(at(1), 7);
    fork.set(at(2), 8);
    // The fork's own window goes with the reset; the frozen one stays.
    let own = fork
        .mem
        .map_file(file.as_fd(), 0, 4 * PAGE_SIZE, FileMapping::Private)
        .unwrap();
    assert!(!fork.mem.is_frozen(own.gpa));
    let place = Gva(FREE.0 + HUGE_PAGE_SIZE);
    first_mut(&mut fork.spaces)
        .map_range(&mut fork.mem, place, own.gpa, 4, DATA)
        .unwrap();
    fork.set(place, 0xdead);
    let report = fork.reset();
    assert_eq!((report.copied_pages, report.kept_pages), (2, 2));
    assert_eq!(fork.word(at(1)), bytes(0xee));
    assert_eq!(fork.word(at(2)), bytes(3));
    assert_eq!(fork.leaf(place), None);
    let gone = MemError::FileFault(own.gpa);
    assert_eq!(fork.mem.read(own.gpa, &mut [0]), Err(gone));
    assert_eq!(fork.reset().compared_equal_pages, 2);
    // A page that the file loses cannot be restored: its copy goes.
    fork.set(at(2), 9);
    file.set_len(2 * PAGE_SIZE).unwrap();
    let report = fork.reset();
    assert_eq!((report.kept_pages, report.dropped_pages), (1, 1));
    let outcome = first(&fork.spaces).copy_in(&fork.mem, at(2), &mut [0]);
    assert_eq!(outcome.stop, Some(CopyStop::FileFault(at(2))));
}

#[test]
fn a_frozen_window_stays_and_so_its_leaves_need_a_flush() {
    let (mut mem, mut tables) = program(LIMIT);
    let file = file(1);
    let map = |mem: &mut GuestMemory, tables: &mut PageTables, gva| {
        let window = mem
            .map_file(file.as_fd(), 0, PAGE_SIZE, FileMapping::Private)
            .unwrap();
        tables
            .map_range(mem, gva, window.gpa, 1, READ_ONLY)
            .unwrap();
    };
    map(&mut mem, &mut tables, FREE);
    let frozen = mem.freeze(Spaces::new(tables), 0).unwrap();
    let mut fork = Fork::of(&frozen);
    let own = Gva(FREE.0 + PAGE_SIZE);
    map(&mut fork.mem, first_mut(&mut fork.spaces), own);
    for (gva, needs_flush) in [(own, false), (FREE, true)] {
        first_mut(&mut fork.spaces)
            .unmap_with_windows(&mut fork.mem, gva, PAGE_SIZE, |_, _, _| {})
            .unwrap();
        assert_eq!(
            !first(&fork.spaces).pending().is_none(),
            needs_flush,
            "{gva:?}"
        );
    }
}

#[test]
fn pages_are_copied_ahead_without_a_trace() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    let inside = Gva(HUGE.0 + 9 * PAGE_SIZE);
    let pages = [page(1), page(2), FREE, page(3), VMM, inside, page(1)];
    let copied = fork
        .spaces
        .copy_ahead(&mut fork.mem, named(pages).into_iter(), |_, gva| {
            gva != page(3)
        })
        .unwrap();
    assert_eq!(copied, 3);
    assert!(first(&fork.spaces).pending().is_none());
    assert_eq!((fork.mem.used_bytes(), fork.mem.peak_bytes()), (0, 0));
    for gva in [page(1), page(2), inside] {
        assert_eq!(fork.leaf(gva).unwrap().flags, DATA);
    }
    assert_eq!(fork.leaf(page(3)).unwrap().flags, READ_ONLY);
    fork.set(page(1), 5);
    let report = fork.reset();
    assert_eq!((report.copied_pages, report.copied_on_write.len()), (1, 0));
    assert_eq!(report.written_again, named([page(1)]), "as was expected");
    assert_eq!(report.kept_pages, 3);
    assert_eq!(fork.word(page(1)), 2);
    assert_eq!(fork.word(inside), 1009);
}

#[test]
fn a_fork_can_be_frozen() {
    let frozen = frozen();
    let mut first = Fork::of(&frozen);
    first.set(page(1), 100);
    first.set(Gva(HUGE.0 + PAGE_SIZE), 200);
    first.add(FREE, 300);
    let again = first.mem.freeze(first.spaces, 0).unwrap();
    drop(frozen);
    let (mut one, two) = (Fork::of(&again), Fork::of(&again));
    for fork in [&one, &two] {
        let own = Gva(HUGE.0 + PAGE_SIZE);
        assert_eq!((fork.word(page(0)), fork.word(page(1))), (1, 100));
        assert_eq!((fork.word(own), fork.word(FREE)), (200, 300));
        assert_eq!(fork.leaf(page(1)).unwrap().flags, READ_ONLY);
    }
    one.set(FREE, 1);
    one.set(page(0), 2);
    assert_eq!(one.reset().copied_pages, 2);
    assert_eq!((one.word(FREE), one.word(page(0))), (300, 1));
    assert_eq!(two.word(FREE), 300);
    assert_eq!(one.mem.limit_bytes(), LIMIT);
}

#[test]
fn table_runs_are_consecutive_zeroed_and_counted() {
    let mut mem = GuestMemory::new(LIMIT).unwrap();
    let used = mem.used_bytes();
    for _ in 0..3 {
        mem.alloc_table_frame().unwrap();
    }
    let first = mem.alloc_table_run(5).unwrap();
    assert_eq!(mem.used_bytes() - used, 8 * PAGE_SIZE);
    mem.write(first, &[0xff; 5 * PAGE_SIZE as usize]).unwrap();
    for index in 0..5 {
        mem.free_frame(first.wrapping_add(index * PAGE_SIZE));
    }
    mem.flush_discharged(&PendingFlush::All);
    let run = mem.alloc_table_run(512).unwrap();
    assert_eq!(run.huge_down(), run);
    let mut bytes = vec![0; 512 * PAGE_SIZE as usize];
    mem.read(run, &mut bytes).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0));
    assert_eq!(mem.alloc_table_run(5).unwrap(), first);
    for pages in [0, 513, u64::MAX] {
        assert_eq!(mem.alloc_table_run(pages), Err(OutOfMemory::Exhausted));
    }
}
