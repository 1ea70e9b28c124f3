//! Forks: what they share, what each has of its own, and what their VMs are told.

use kvmlet_abi::{Gva, HUGE_PAGE_SIZE, PAGE_SIZE, SlotAccess};
use kvmlet_mem::{
    CopyStop, GuestMemory, MemError, OutOfMemory, PageSize, PageTables, PendingFlush, PteFlags,
    Spaces,
};

use crate::fixture::*;

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
        let expected = match table_ids.contains(&spec.id) {
            true => (SlotAccess::ReadWrite, old.len_bytes),
            // A block with base pages, and a 2 MiB page.
            false => (SlotAccess::ReadOnly, 2 * HUGE_PAGE_SIZE),
        };
        assert_eq!((spec.access, spec.len_bytes), expected);
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

#[test]
fn pages_that_a_sibling_wrote_are_copied_soon() {
    let frozen = frozen();
    let mut leader = Fork::of(&frozen);
    leader.set(page(1), 100);
    leader.set(page(2), 200);
    let mut written: Vec<_> = leader.spaces.written_pages().collect();
    written.sort_unstable();
    assert_eq!(written, named([page(1), page(2)]));
    let mut fork = Fork::of(&frozen);
    fork.set(page(2), 5);
    let copied = fork
        .spaces
        .copy_soon(&mut fork.mem, written.into_iter(), |_, _| true)
        .unwrap();
    assert_eq!(copied, 1, "it has the other one already");
    assert!(!first(&fork.spaces).pending().is_none());
    assert_eq!(fork.leaf(page(1)).unwrap().flags, DATA);
    assert_eq!((fork.word(page(1)), fork.word(page(2))), (2, 5));
    // Only what it has written itself makes it an example.
    assert_eq!(
        fork.spaces.written_pages().collect::<Vec<_>>(),
        named([page(2)])
    );
    let report = fork.reset();
    assert_eq!((report.kept_pages, report.copied_pages), (2, 1));
}
