//! Windows on files in frozen memory.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd;

use kvmlet_abi::{Gva, HUGE_PAGE_SIZE, PAGE_SIZE};
use kvmlet_mem::{CopyStop, FileMapping, FileWindow, GuestMemory, MemError, PageTables, Spaces};

use crate::fixture::*;

fn file(pages: u64) -> File {
    let mut file = tempfile();
    for index in 0..pages {
        file.write_all(&[(index as u8).wrapping_add(1); PAGE_SIZE as usize])
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
    let slot = fork.mem.slots().iter().rfind(|slot| slot.gpa <= window.gpa);
    assert_eq!(
        slot.unwrap().len_bytes,
        HUGE_PAGE_SIZE,
        "no longer than needed"
    );
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
fn a_frozen_slot_reaches_to_the_end_of_its_last_window() {
    const PAGES: u64 = 513;
    let (mut mem, mut tables) = program(LIMIT);
    let file = file(PAGES);
    let len_bytes = PAGES * PAGE_SIZE;
    let window = mem
        .map_file(file.as_fd(), 0, len_bytes, FileMapping::Private)
        .unwrap();
    tables
        .map_range(&mut mem, FREE, window.gpa, PAGES, READ_ONLY)
        .unwrap();
    let frozen = mem.freeze(Spaces::new(tables), 0).unwrap();
    let fork = Fork::of(&frozen);
    let mut slots = fork.mem.slots().iter();
    let slot = slots.find(|slot| slot.gpa == window.gpa).unwrap();
    assert_eq!(slot.len_bytes, 2 * HUGE_PAGE_SIZE);
    let last = Gva(FREE.0 + (PAGES - 1) * PAGE_SIZE);
    assert_eq!(fork.word(last), u64::from_ne_bytes([PAGES as u8; 8]));
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
