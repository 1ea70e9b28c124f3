//! Page tables, looked at through an independent walker that follows the manual.

use std::collections::BTreeSet;

use kvmlet_abi::layout::{EXC_STACK, USER_END};
use kvmlet_abi::{Gpa, Gva, HUGE_PAGE_SIZE, PAGE_SIZE};
use kvmlet_mem::{
    CopyOutcome, CopyStop, GuestMemory, Leaf, MAX_STALE_ENTRIES, MemError, MmId, OutOfMemory,
    PageSize, PageTables, PendingFlush, PteFlags, Spaces, StaleEntry, TABLE_WINDOW,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DATA: PteFlags = PteFlags::USER.union(PteFlags::WRITE).union(PteFlags::NX);
const READ_ONLY: PteFlags = PteFlags::USER.union(PteFlags::NX);

/// What hardware finds at `gva` (SDM vol. 3A, 4.5.4, bits of table 4-15 on): the leaf entry, its level,
/// and whether every level allows user access and writes.
fn hardware_walk(mem: &GuestMemory, root: Gpa, gva: u64) -> Option<(u64, u32, bool, bool)> {
    let (mut table, mut user, mut write) = (root.0, true, true);
    for level in (1..=4).rev() {
        let index = gva >> (12 + 9 * (level - 1)) & 511;
        let entry: u64 = mem.read_value(Gpa(table + index * 8)).unwrap();
        if entry & 1 == 0 {
            return None;
        }
        assert_ne!(entry & 1 << 5, 0, "accessed is set beforehand");
        user &= entry & 4 != 0;
        write &= entry & 2 != 0;
        let leaf = level == 1 || entry & 1 << 7 != 0 && level < 4;
        if leaf {
            assert_eq!(entry & 1 << 6 != 0, write, "dirty goes with writable");
            return Some((entry, level as u32, user, write));
        }
        table = entry & 0x000f_ffff_ffff_f000;
    }
    unreachable!("level 1 is a leaf");
}

fn space(limit_bytes: u64) -> (GuestMemory, PageTables) {
    let mut mem = GuestMemory::new(limit_bytes).unwrap();
    let tables = PageTables::new(&mut mem).unwrap();
    (mem, tables)
}

fn free_leaf(mem: &mut GuestMemory, leaf: Leaf) {
    match leaf.size {
        PageSize::Base => mem.free_frame(leaf.gpa),
        PageSize::Huge => mem.free_huge(leaf.gpa),
    }
}

fn stale(pending: &PendingFlush) -> &[StaleEntry] {
    match pending {
        PendingFlush::Entries(entries) => entries,
        other => panic!("{other:?} instead of entries"),
    }
}

#[test]
fn entries_say_what_was_asked() {
    let (mut mem, mut tables) = space(64 * MIB);
    let every = [
        PteFlags::empty(),
        PteFlags::WRITE,
        PteFlags::USER,
        PteFlags::NX,
        READ_ONLY,
        DATA,
    ];
    for (index, flags) in every.into_iter().enumerate() {
        let gva = Gva(GIB * 513 * (index as u64 + 1) + 0x5000);
        let gpa = mem.alloc_frame().unwrap();
        assert_eq!(
            tables
                .map(&mut mem, gva, gpa, PageSize::Base, flags)
                .unwrap(),
            None
        );
        let (entry, level, user, write) = hardware_walk(&mem, tables.root(), gva.0).unwrap();
        assert_eq!((entry & 0x000f_ffff_ffff_f000, level), (gpa.0, 1));
        assert_eq!(user, flags.contains(PteFlags::USER));
        assert_eq!(write, flags.contains(PteFlags::WRITE));
        assert_eq!(entry >> 63 == 1, flags.contains(PteFlags::NX));
        let leaf = Leaf {
            gpa,
            size: PageSize::Base,
            flags,
        };
        assert_eq!(tables.walk(&mem, gva.wrapping_add(7)), Some(leaf));
        assert_eq!(
            tables.translate(&mem, gva.wrapping_add(7)),
            Some(gpa.wrapping_add(7))
        );
    }
    assert!(tables.pending().is_none(), "nothing present was changed");
    let huge = mem.alloc_huge().unwrap();
    let gva = Gva(0x7fff_0000_0000);
    tables
        .map(&mut mem, gva, huge, PageSize::Huge, DATA)
        .unwrap();
    let (entry, level, user, write) = hardware_walk(&mem, tables.root(), gva.0 + 0x1234).unwrap();
    assert_eq!((entry & 0x000f_ffff_ffe0_0000, level), (huge.0, 2));
    assert!(user && write);
    assert_eq!(
        tables.translate(&mem, Gva(gva.0 + 0x12_3456)),
        Some(Gpa(huge.0 + 0x12_3456))
    );
    assert!(tables.pending().is_none());
}

#[test]
fn only_changes_of_present_entries_are_recorded_and_widening_is_not() {
    let (mut mem, mut tables) = space(64 * MIB);
    let gva = Gva(0x40_0000);
    let (a, b) = (mem.alloc_frame().unwrap(), mem.alloc_frame().unwrap());
    let base = PageSize::Base;
    tables.map(&mut mem, gva, a, base, READ_ONLY).unwrap();
    tables.map(&mut mem, gva, a, base, DATA).unwrap();
    tables
        .protect_range(&mut mem, gva, PAGE_SIZE, PteFlags::USER | PteFlags::WRITE)
        .unwrap();
    tables
        .protect_range(&mut mem, gva, PAGE_SIZE, PteFlags::USER | PteFlags::WRITE)
        .unwrap();
    assert!(tables.pending().is_none(), "wider or equal");
    // Narrower: W removed, U removed, NX added; then another frame; then nothing.
    for flags in [PteFlags::USER, PteFlags::empty(), PteFlags::NX] {
        tables
            .protect_range(&mut mem, gva, PAGE_SIZE, flags)
            .unwrap();
        let pending = tables.take_pending();
        let entries = stale(&pending);
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].gva, entries[0].size), (gva, base));
        let raw: u64 = mem.read_value(entries[0].entry).unwrap();
        assert_eq!(raw & 0x000f_ffff_ffff_f000, a.0, "the entry is named");
        assert!(tables.pending().is_none());
    }
    // More rights and another frame at once is no widening.
    let old = tables.map(&mut mem, gva, b, base, DATA).unwrap().unwrap();
    assert_eq!((old.gpa, old.flags), (a, PteFlags::NX));
    assert!(!tables.take_pending().is_none());
    let mut removed = Vec::new();
    tables
        .unmap_range(&mut mem, gva, PAGE_SIZE, |_, at, leaf| {
            removed.push((at, leaf.gpa));
        })
        .unwrap();
    assert_eq!(removed, [(gva, b)]);
    assert!(!tables.take_pending().is_none());
    tables
        .unmap_range(&mut mem, gva, PAGE_SIZE, |_, _, _| panic!("nothing there"))
        .unwrap();
    assert!(tables.take_pending().is_none());
}

#[test]
fn many_stale_entries_become_a_full_flush() {
    let (mut mem, mut tables) = space(64 * MIB);
    let gva = Gva(0x20_0000 - 8 * PAGE_SIZE);
    let pages = MAX_STALE_ENTRIES as u64 + 1;
    for page in 0..pages {
        let gpa = mem.alloc_frame().unwrap();
        let at = gva.wrapping_add(page * PAGE_SIZE);
        tables.map_range(&mut mem, at, gpa, 1, DATA).unwrap();
    }
    let len = pages * PAGE_SIZE;
    tables
        .protect_range(&mut mem, gva, len - PAGE_SIZE, READ_ONLY)
        .unwrap();
    assert_eq!(stale(tables.pending()).len(), MAX_STALE_ENTRIES);
    tables
        .unmap_range(&mut mem, gva, len, |_, _, _| {})
        .unwrap();
    assert_eq!(tables.take_pending(), PendingFlush::All);
}

#[test]
fn a_split_keeps_every_translation_and_names_the_directory_entry() {
    let (mut mem, mut tables) = space(64 * MIB);
    let gva = Gva(6 * HUGE_PAGE_SIZE);
    let huge = mem.alloc_huge().unwrap();
    tables
        .map(&mut mem, gva, huge, PageSize::Huge, DATA)
        .unwrap();
    let frames = tables.table_frames();
    let cut = gva.wrapping_add(16 * PAGE_SIZE);
    tables
        .unmap_range(&mut mem, cut, 2 * PAGE_SIZE, |mem, _, leaf| {
            free_leaf(mem, leaf);
        })
        .unwrap();
    assert_eq!(tables.table_frames(), frames + 1);
    assert_eq!(mem.used_bytes(), (510 + frames + 1) * PAGE_SIZE);
    let pending = tables.take_pending();
    let entries = stale(&pending);
    assert_eq!(
        (entries[0].gva, entries[0].size),
        (gva, PageSize::Huge),
        "the old 2 MiB translation"
    );
    assert_eq!(entries.len(), 3);
    for page in 0..512 {
        let at = gva.wrapping_add(page * PAGE_SIZE);
        let expected = (!(16..18).contains(&page)).then(|| huge.wrapping_add(page * PAGE_SIZE));
        assert_eq!(tables.translate(&mem, at), expected);
    }
    // The table stays, so no 2 MiB entry can come back, even when it is empty.
    tables
        .unmap_range(&mut mem, gva, HUGE_PAGE_SIZE, |mem, _, leaf| {
            free_leaf(mem, leaf);
        })
        .unwrap();
    assert_eq!(mem.used_bytes(), (frames + 1) * PAGE_SIZE, "no frame leaks");
    assert!(!tables.can_map_huge(&mem, gva));
    let huge = mem.alloc_huge().unwrap();
    assert_eq!(
        tables.map(&mut mem, gva, huge, PageSize::Huge, DATA),
        Err(MemError::HasTable(gva))
    );
    let next = gva.wrapping_add(HUGE_PAGE_SIZE);
    assert!(tables.can_map_huge(&mem, next));
    tables
        .map(&mut mem, next, huge, PageSize::Huge, DATA)
        .unwrap();
    assert!(!tables.can_map_huge(&mem, next));
    // Whole in range: no split. Even more rights must be recorded for a 2 MiB page. Then the place is free for another one.
    tables
        .protect_range(&mut mem, next, HUGE_PAGE_SIZE, READ_ONLY)
        .unwrap();
    let _ = tables.take_pending();
    tables
        .protect_range(&mut mem, next, HUGE_PAGE_SIZE, DATA)
        .unwrap();
    assert_eq!(stale(&tables.take_pending())[0].gva, next);
    tables
        .unmap_range(&mut mem, next, HUGE_PAGE_SIZE, |_, at, leaf| {
            assert_eq!((at, leaf.size, leaf.gpa), (next, PageSize::Huge, huge));
        })
        .unwrap();
    assert!(tables.can_map_huge(&mem, next));
}

#[test]
fn ranges_stop_at_nothing_and_change_nothing_on_error() {
    let (mut mem, mut tables) = space(64 * MIB);
    let gva = Gva(GIB - 4 * PAGE_SIZE);
    let run = mem.alloc_run(8).unwrap();
    assert_eq!(tables.absent_run(&mem, gva, 8), 8);
    tables.map_range(&mut mem, gva, run.gpa, 8, DATA).unwrap();
    let mut seen = Vec::new();
    tables
        .for_each_leaf(&mem, Gva(0), 1 << 47, |at, leaf| seen.push((at, leaf.gpa)))
        .unwrap();
    let expected: Vec<_> = (0..8)
        .map(|page| {
            let offset = page * PAGE_SIZE;
            (gva.wrapping_add(offset), run.gpa.wrapping_add(offset))
        })
        .collect();
    assert_eq!(seen, expected);
    let before = gva.wrapping_add(0u64.wrapping_sub(4 * PAGE_SIZE));
    assert_eq!(tables.absent_run(&mem, before, 100), 4);
    assert_eq!(tables.absent_run(&mem, gva, 100), 0);
    assert_eq!(
        tables.map_range(&mut mem, before, run.gpa, 5, DATA),
        Err(MemError::AlreadyMapped(gva))
    );
    assert_eq!(tables.walk(&mem, before), None, "nothing was mapped");
    assert_eq!(tables.absent_run(&mem, Gva(0), u64::MAX), gva.0 / PAGE_SIZE);
    assert!(tables.pending().is_none());
}

#[test]
fn bad_addresses_are_errors() {
    let (mut mem, mut tables) = space(64 * MIB);
    let gpa = mem.alloc_frame().unwrap();
    let base = PageSize::Base;
    let beyond = [1 << 47, !4095, 0xffff_8000_0000_0000];
    for at in beyond.map(Gva) {
        assert_eq!(
            tables.map(&mut mem, at, gpa, base, DATA),
            Err(MemError::BeyondUserHalf(at))
        );
        assert!(tables.map_range(&mut mem, at, gpa, 1, DATA).is_err());
        assert!(
            tables
                .unmap_range(&mut mem, at, PAGE_SIZE, |_, _, _| {})
                .is_err()
        );
        assert!(tables.protect_range(&mut mem, at, PAGE_SIZE, DATA).is_err());
        assert!(
            tables
                .for_each_leaf(&mem, at, PAGE_SIZE, |_, _| {})
                .is_err()
        );
        assert_eq!(tables.walk(&mem, at), None);
        assert_eq!(tables.absent_run(&mem, at, 10), 0);
        assert!(!tables.can_map_huge(&mem, at));
    }
    for len in [0, 1, PAGE_SIZE + 8] {
        assert!(
            tables
                .unmap_range(&mut mem, Gva(0x1000), len, |_, _, _| {})
                .is_err()
        );
    }
    assert!(
        tables
            .unmap_range(&mut mem, Gva(0x1000), !4095, |_, _, _| {})
            .is_err()
    );
    assert!(tables.map_range(&mut mem, Gva(0), gpa, 0, DATA).is_err());
    assert!(
        tables
            .map_range(&mut mem, Gva(0), gpa, u64::MAX, DATA)
            .is_err()
    );
    let odd = Gva(0x1008);
    assert_eq!(
        tables.map(&mut mem, odd, gpa, base, DATA),
        Err(MemError::Misaligned(odd.0))
    );
    assert_eq!(
        tables.map(&mut mem, Gva(0), Gpa(gpa.0 + 1), base, DATA),
        Err(MemError::Misaligned(gpa.0 + 1))
    );
    let huge = PageSize::Huge;
    assert!(
        tables
            .map(&mut mem, Gva(0x1000), Gpa(0), huge, DATA)
            .is_err()
    );
    assert!(
        tables
            .map(&mut mem, Gva(0), Gpa(0x1000), huge, DATA)
            .is_err()
    );
}

#[test]
fn tables_count_against_the_limit() {
    let limit = 4 * MIB;
    let (mut mem, mut tables) = space(limit);
    let gpa = mem.alloc_frame().unwrap();
    let mut mapped = 0;
    let error = loop {
        // One page per GiB: a page table and a page directory each.
        let gva = Gva(mapped * GIB);
        match tables.map(&mut mem, gva, gpa, PageSize::Base, READ_ONLY) {
            Ok(_) => mapped += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, MemError::OutOfMemory(OutOfMemory::Limit));
    assert_eq!(mem.used_bytes(), limit);
    let slots: u64 = mem.table_slots().map(|slot| slot.len_bytes).sum();
    assert!(slots <= limit + 4 * MIB);
    assert_eq!(tables.translate(&mem, Gva((mapped - 1) * GIB)), Some(gpa));
    assert_eq!(tables.translate(&mem, Gva(mapped * GIB)), None);
}

#[test]
fn an_address_space_ends_without_the_pages_of_the_vmm() {
    let mut mem = GuestMemory::new(64 * MIB).unwrap();
    let mut tables = PageTables::new(&mut mem).unwrap();
    let stack = mem.alloc_table_frame().unwrap();
    let supervisor = PteFlags::WRITE | PteFlags::NX;
    tables
        .map(&mut mem, EXC_STACK, stack, PageSize::Base, supervisor)
        .unwrap();
    let (first, second) = (MmId::FIRST, MmId(2));
    let mut spaces = Spaces::new(tables);
    let used = mem.used_bytes();
    spaces.create(&mut mem, second).unwrap();
    // Its root and two tables: the last one is in common.
    assert_eq!(mem.used_bytes(), used + 3 * PAGE_SIZE);
    let top = Gva(USER_END.0 - PAGE_SIZE);
    let tables = spaces.get_mut(second).unwrap();
    for gva in [Gva(0x1_0000), Gva(77 * GIB), top] {
        let gpa = mem.alloc_frame().unwrap();
        tables
            .map(&mut mem, gva, gpa, PageSize::Base, DATA)
            .unwrap();
    }
    let huge = mem.alloc_huge().unwrap();
    tables
        .map(&mut mem, Gva(3 * GIB), huge, PageSize::Huge, DATA)
        .unwrap();
    let tables = spaces.get(first).unwrap();
    assert_eq!(tables.translate(&mem, top), None);
    let mut removed = 0;
    spaces.end(&mut mem, second, |mem, _, leaf| {
        assert!(leaf.flags.contains(PteFlags::USER));
        free_leaf(mem, leaf);
        removed += 1;
    });
    assert_eq!(removed, 4);
    assert!(mem.used_bytes() > used, "its tables are not free yet");
    assert!(!spaces.has_many_dead());
    let stores = spaces.dead_stores(usize::MAX);
    assert_eq!(mem.used_bytes(), used + stores.len() as u64 * PAGE_SIZE);
    assert!(
        stores
            .iter()
            .all(|at| at.0 % PAGE_SIZE == 1 && at.0 > TABLE_WINDOW.0)
    );
    spaces.dead_flushed(&mut mem);
    assert_eq!(mem.used_bytes(), used);
    let tables = spaces.get(first).unwrap();
    assert_eq!(tables.translate(&mem, EXC_STACK), Some(stack));
}

#[test]
fn tables_are_handed_out_again_after_the_flush_only() {
    let mut mem = GuestMemory::new(64 * MIB).unwrap();
    let mut spaces = Spaces::new(PageTables::new(&mut mem).unwrap());
    let mut dead: BTreeSet<Gpa> = BTreeSet::new();
    for number in 2..200 {
        let id = MmId(number);
        spaces.create(&mut mem, id).unwrap();
        let root = spaces.get(id).unwrap().root();
        assert!(dead.insert(root), "{root:?} before its flush");
        spaces.end(&mut mem, id, |_, _, _| {});
        if spaces.has_many_dead() {
            let stores = spaces.dead_stores(usize::MAX);
            assert_eq!(stores.len(), dead.len());
            // Not before it has happened.
            assert!(spaces.has_leaving());
            let probe = mem.alloc_table_frame().unwrap();
            assert!(!dead.contains(&probe));
            mem.free_frame(probe);
            spaces.dead_flushed(&mut mem);
            dead.clear();
        }
    }
    assert!(dead.len() < 100);
}

#[test]
fn the_window_shows_all_tables_to_the_supervisor_only() {
    let mut mem = GuestMemory::new(64 * MIB).unwrap();
    let mut early = PageTables::new(&mut mem).unwrap();
    assert_eq!(hardware_walk(&mem, early.root(), TABLE_WINDOW.0), None);
    mem.expose_tables().unwrap();
    mem.expose_tables().unwrap();
    early.attach_window(&mut mem);
    let late = PageTables::new(&mut mem).unwrap();
    // More table memory than one slot holds.
    while mem.table_slots().count() < 3 {
        mem.alloc_table_frame().unwrap();
    }
    let slots: Vec<_> = mem.table_slots().copied().collect();
    for tables in [&early, &late] {
        for slot in &slots {
            for offset in [0, 0x1238, slot.len_bytes - 8] {
                let gpa = slot.gpa.wrapping_add(offset);
                let gva = TABLE_WINDOW.wrapping_add(gpa.0);
                let (entry, level, user, write) =
                    hardware_walk(&mem, tables.root(), gva.0).unwrap();
                assert_eq!(level, 2);
                assert_eq!(
                    (entry & 0x000f_ffff_ffe0_0000) + (gpa.0 & (HUGE_PAGE_SIZE - 1)),
                    gpa.0
                );
                assert!(!user && write && entry >> 63 == 1);
            }
        }
        let ram = mem.slots()[1].gpa.0;
        assert_eq!(
            hardware_walk(&mem, tables.root(), TABLE_WINDOW.0 + ram),
            None,
            "nothing but tables"
        );
    }
    assert!(early.pending().is_none());
    let entry = StaleEntry {
        gva: Gva(0),
        entry: Gpa(0x1_0000_2018),
        size: PageSize::Base,
        window: None,
    };
    assert_eq!(entry.window_gva(), Gva(0xffff_8001_0000_2018));
}

#[test]
fn program_copies_respect_the_rights_of_each_page() {
    let (mut mem, mut tables) = space(64 * MIB);
    let gva = Gva(0x40_0000);
    let run = mem.alloc_run(3).unwrap();
    tables.map_range(&mut mem, gva, run.gpa, 2, DATA).unwrap();
    let third = gva.wrapping_add(2 * PAGE_SIZE);
    let third_frame = run.gpa.wrapping_add(2 * PAGE_SIZE);
    tables
        .map(&mut mem, third, third_frame, PageSize::Base, READ_ONLY)
        .unwrap();
    let at = gva.wrapping_add(PAGE_SIZE - 3);
    assert_eq!(
        tables.copy_out(&mut mem, at, b"across"),
        CopyOutcome {
            copied_bytes: 6,
            stop: None,
            reads_file: false,
        }
    );
    let mut bytes = [0; 6];
    assert_eq!(tables.copy_in(&mem, at, &mut bytes).copied_bytes, 6);
    assert_eq!(&bytes, b"across");
    // Into the read-only page: as far as it goes.
    let edge = Gva(third.0 - 2);
    assert_eq!(
        tables.copy_out(&mut mem, edge, b"edge"),
        CopyOutcome {
            copied_bytes: 2,
            stop: Some(CopyStop::Denied(third)),
            reads_file: false,
        }
    );
    let after = third.wrapping_add(PAGE_SIZE);
    assert_eq!(
        tables.copy_in(&mem, Gva(after.0 - 1), &mut bytes),
        CopyOutcome {
            copied_bytes: 1,
            stop: Some(CopyStop::NotPresent(after)),
            reads_file: false,
        }
    );
    // The VMM's pages are not the program's.
    let frame = mem.alloc_table_frame().unwrap();
    tables
        .map(&mut mem, EXC_STACK, frame, PageSize::Base, PteFlags::WRITE)
        .unwrap();
    let denied = Some(CopyStop::Denied(EXC_STACK));
    assert_eq!(tables.copy_in(&mem, EXC_STACK, &mut bytes).stop, denied);
    assert_eq!(tables.copy_out(&mut mem, EXC_STACK, &bytes).stop, denied);
    for wild in [1 << 47, u64::MAX - 2, !4095, TABLE_WINDOW.0] {
        let stop = Some(CopyStop::NotPresent(Gva(wild)));
        assert_eq!(tables.copy_in(&mem, Gva(wild), &mut bytes).stop, stop);
        assert_eq!(tables.copy_out(&mut mem, Gva(wild), &bytes).stop, stop);
    }
    assert_eq!(tables.copy_in(&mem, Gva(1 << 60), &mut []).stop, None);
}
