//! Resets: nothing of a request is left, and nothing is lost.

use kvmlet_abi::{Gpa, Gva, HUGE_PAGE_SIZE, PAGE_SIZE};
use kvmlet_mem::{
    GuestMemory, Leaf, MemError, MmId, OutOfMemory, PageSize, PteFlags, ResetReport, Spaces,
};

use crate::fixture::*;

#[test]
fn a_reset_restores_contents_and_counts() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    let start = fork.mem.used_bytes();
    // Nothing else is private yet.
    let early_tables = fork.mem.private_bytes() / PAGE_SIZE;
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
        unknown_pages: 0,
        dropped: Vec::new(),
    };
    assert_eq!(report, expected);
    // It was given the others before it ran.
    assert_eq!(report.table_pages, early_tables + 1);
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
    assert_eq!((report.written_pages, report.unknown_pages), (1, 2));
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
fn pages_in_common_with_the_vmm_outlive_what_ends() {
    let (mut mem, mut tables) = program(LIMIT);
    // As the vDSO: a page of the VMM that a program maps too.
    let (vdso, content) = (Gva(FREE.0 + 16 * MIB), 0x0076_6473_u64);
    let frame = mem.alloc_table_frame().unwrap();
    mem.write_value(frame, &content).unwrap();
    mem.get_frame(frame);
    tables
        .map(&mut mem, vdso, frame, PageSize::Base, READ_ONLY)
        .unwrap();
    let mut fork = Fork::of(&mem.freeze(Spaces::new(tables), 0).unwrap());
    let (first, second) = (MmId::FIRST, MmId(2));
    for _ in 0..4 {
        fork.spaces.create(&mut fork.mem, second).unwrap();
        let mut removed = Vec::new();
        fork.spaces.end(&mut fork.mem, first, |mem, gva, leaf| {
            mem.free_frame(leaf.gpa);
            removed.push(gva);
        });
        assert_eq!(removed, [vdso]);
        fork.reset();
        fork.spaces.all_flushed(&mut fork.mem);
        fork.flush();
        assert_eq!(fork.word(vdso), content);
        let taken = fork.mem.alloc_table_frame().unwrap();
        assert_ne!(taken, frame, "it is still in use");
        fork.mem.free_frame(taken);
        fork.reset();
    }
    let Fork { mem, spaces } = fork;
    let again = Fork::of(&mem.freeze(spaces, 0).unwrap());
    assert_eq!(again.word(vdso), content);
}

#[test]
fn pages_behind_those_that_are_written_are_copied_with_them() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    let mut faults = Vec::new();
    for index in 0..8 {
        if fork.set_counting(page(index), 100 + index) {
            faults.push(index);
            first_mut(&mut fork.spaces).copy_following(&mut fork.mem, page(index), page(10));
        }
    }
    assert_eq!(faults, [0, 1, 3, 7]);
    assert_eq!(fork.spaces.copies(), 10, "none beyond the end");
    for index in 0..BASE_PAGES {
        let written = if index < 8 { 100 + index } else { index + 1 };
        assert_eq!(fork.word(page(index)), written);
    }
    let report = fork.reset();
    let written: Vec<_> = (0..8).map(|index| (MmId::FIRST, page(index))).collect();
    assert_eq!(report.copied_on_write, written, "two are copies in vain");
    assert_eq!((report.written_pages, report.kept_pages), (8, 10));
    assert_eq!(report.unknown_pages, 2);
    // One of the two is written at last: it is named as the others were.
    assert!(!fork.set_counting(page(9), 7));
    fork.flush();
    assert_eq!(fork.reset().copied_on_write, [(MmId::FIRST, page(9))]);
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
fn forks_have_a_limit_of_their_own() {
    let (mut mem, tables) = program(64 * MIB);
    let charged = 3 * MIB;
    mem.charge(charged).unwrap();
    mem.limit_forks(MIB);
    let frozen = mem.freeze(Spaces::new(tables), charged).unwrap();
    let mut fork = Fork::of(&frozen);
    assert_eq!(fork.mem.limit_bytes(), MIB + charged);
    for _ in 0..2 {
        let mut pages = 0;
        while fork.mem.alloc_frame().is_ok() {
            pages += 1;
        }
        assert_eq!(pages * PAGE_SIZE, MIB);
        fork.set(page(1), 1);
        fork.reset();
        assert_eq!(fork.mem.used_bytes(), charged);
    }
    // One that is frozen again leaves its forks what it has left itself, unless it is told otherwise.
    fork.mem.charge(PAGE_SIZE).unwrap();
    let Fork { mem, spaces, .. } = fork;
    let charged = charged + PAGE_SIZE;
    let Fork {
        mut mem, spaces, ..
    } = Fork::of(&mem.freeze(spaces, charged).unwrap());
    assert_eq!(mem.limit_bytes(), MIB + charged - PAGE_SIZE);
    mem.limit_forks(2 * MIB);
    let again = Fork::of(&mem.freeze(spaces, charged).unwrap());
    assert_eq!(again.mem.limit_bytes(), 2 * MIB + charged);
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

#[test]
fn the_peak_of_a_request_is_not_shown_to_the_next() {
    let frozen = frozen();
    let mut fork = Fork::of(&frozen);
    let peaks = |fork: &Fork| (fork.mem.peak_bytes(), fork.mem.peak_resident_bytes());
    let (used, resident) = peaks(&fork);
    for index in 0..40 {
        fork.add(FREE.wrapping_add(index * PAGE_SIZE), 1);
    }
    assert!(fork.mem.peak_resident_bytes() >= resident + 40 * PAGE_SIZE);
    fork.reset();
    assert_eq!(peaks(&fork), (used, resident));
}
