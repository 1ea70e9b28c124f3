//! Windows of programs' text: they stay mapped, show the file, and are nobody's to write.

mod pages;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use kvmlet_abi::{Gva, PAGE_SIZE};
use kvmlet_mem::{
    FileMapping, FileVersion, FileWindow, FrozenMemory, GuestMemory, PageSize, PageTables,
    PteFlags, Spaces,
};

use pages::text;

const MIB: u64 = 1 << 20;

fn file_of(pages: u64) -> (File, FileVersion) {
    let file = pages::file_of(pages);
    let version = version_of(&file);
    (file, version)
}

fn version_of(file: &File) -> FileVersion {
    let attr = file.metadata().unwrap();
    let nanoseconds = |ns: i64| u32::try_from(ns).unwrap();
    FileVersion {
        dev: attr.dev(),
        ino: attr.ino(),
        len_bytes: attr.size(),
        modified: (attr.mtime(), nanoseconds(attr.mtime_nsec())),
        changed: (attr.ctime(), nanoseconds(attr.ctime_nsec())),
    }
}

fn keep(mem: &mut GuestMemory, file: &(File, FileVersion), page: u64, pages: u64) -> FileWindow {
    let (offset, len_bytes) = (page * PAGE_SIZE, pages * PAGE_SIZE);
    let kept = mem.keep_text(&file.1, file.0.as_fd(), offset, len_bytes);
    kept.unwrap().unwrap()
}

#[test]
fn what_was_unmapped_is_found_again() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let file = file_of(8);
    assert_eq!(mem.find_text(&file.1, 0, PAGE_SIZE), Ok(None));
    let first = keep(&mut mem, &file, 2, 3);
    assert_eq!(text(&mem, first.gpa), "page 2");
    let host_mappings = mem.file_host_mappings();
    mem.unmap_file(first).unwrap();
    assert_eq!(text(&mem, first.gpa), "page 2");
    // Any part of it, and what lies after its end.
    for (page, pages) in [(2, 3), (0, 1), (7, 1), (0, 8), (0, 20)] {
        let (offset, len_bytes) = (page * PAGE_SIZE, pages * PAGE_SIZE);
        let again = mem.find_text(&file.1, offset, len_bytes).unwrap().unwrap();
        assert_eq!(again.gpa.0 - offset, first.gpa.0 - 2 * PAGE_SIZE);
        assert!(mem.is_shared_window(again.gpa) && mem.is_text_of_one(again.gpa));
        mem.unmap_file(again).unwrap();
    }
    assert_eq!(
        mem.file_host_mappings(),
        host_mappings - 2,
        "no piece is left over"
    );
    assert_eq!(mem.find_text(&file.1, 0, 100 * PAGE_SIZE), Ok(None));
    assert_eq!(mem.find_text(&file.1, u64::MAX, PAGE_SIZE), Ok(None));
}

#[test]
fn another_version_of_a_file_is_another_file() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let mut file = file_of(2);
    let old = keep(&mut mem, &file, 0, 1);
    file.0.set_len(4 * PAGE_SIZE).unwrap();
    file.1 = version_of(&file.0);
    assert_eq!(mem.find_text(&file.1, 0, PAGE_SIZE), Ok(None));
    let new = keep(&mut mem, &file, 3, 1);
    assert_ne!(new.gpa, old.gpa);
    assert_eq!(text(&mem, new.gpa), "");
}

#[test]
fn beyond_the_end_of_a_file_nothing_is_kept() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let (file, version) = file_of(2);
    for (page, pages) in [(2, 1), (0, 3), (1, u64::MAX / PAGE_SIZE)] {
        let kept = mem.keep_text(&version, file.as_fd(), page * PAGE_SIZE, pages * PAGE_SIZE);
        assert_eq!(kept, Ok(None), "{page} {pages}");
    }
    let huge = FileVersion {
        len_bytes: 1 << 40,
        ..version
    };
    assert_eq!(mem.keep_text(&huge, file.as_fd(), 0, PAGE_SIZE), Ok(None));
    let endless = FileVersion {
        len_bytes: u64::MAX,
        ..version
    };
    assert_eq!(
        mem.keep_text(&endless, file.as_fd(), 0, PAGE_SIZE),
        Ok(None)
    );
}

#[test]
fn who_writes_has_it_alone() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let file = file_of(4);
    let one = keep(&mut mem, &file, 0, 2);
    let other = keep(&mut mem, &file, 1, 2);
    assert!(mem.is_text_of_one(one.gpa));
    assert!(!mem.is_text_of_one(other.gpa), "both have page 1");
    mem.unmap_file(other).unwrap();
    assert!(mem.is_text_of_one(other.gpa));
    mem.give_up_text(one.gpa);
    assert!(!mem.is_shared_window(one.gpa));
    mem.write(one.gpa, b"mine").unwrap();
    // The next one gets the file's.
    let next = keep(&mut mem, &file, 0, 1);
    assert_ne!(next.gpa, one.gpa);
    assert_eq!(text(&mem, next.gpa), "page 0");
    assert_eq!(text(&mem, one.gpa), "mine 0");
    mem.unmap_file(one).unwrap();
    assert!(mem.unmap_file(one).is_err(), "nobody has it any more");
    mem.unmap_file(next).unwrap();
}

#[test]
fn they_are_few() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let files: Vec<_> = (0..40).map(|_| file_of(1)).collect();
    for file in &files {
        let window = keep(&mut mem, file, 0, 1);
        mem.unmap_file(window).unwrap();
    }
    let is_kept = |mem: &mut GuestMemory, index: usize| {
        let found = mem.find_text(&files[index].1, 0, PAGE_SIZE).unwrap();
        found
            .inspect(|window| mem.unmap_file(*window).unwrap())
            .is_some()
    };
    assert!(!is_kept(&mut mem, 7) && is_kept(&mut mem, 8));
    // What was used last stays for longest.
    let more = file_of(1);
    keep(&mut mem, &more, 0, 1);
    assert!(is_kept(&mut mem, 8) && !is_kept(&mut mem, 9));
    while mem.give_up_oldest_text() {}
    assert!(!is_kept(&mut mem, 39));
}

#[test]
fn forks_have_the_frozen_ones_and_forget_their_own() {
    let mut mem = GuestMemory::new(4 * MIB).unwrap();
    let tables = PageTables::new(&mut mem).unwrap();
    let file = file_of(4);
    let window = keep(&mut mem, &file, 0, 4);
    mem.unmap_file(window).unwrap();
    let charged = mem.used_bytes();
    let frozen: Arc<FrozenMemory> = mem.freeze(Spaces::new(tables), charged).unwrap();
    let (mut fork, mut spaces) = frozen.fork().unwrap();
    let own = file_of(2);
    for _ in 0..3 {
        assert_eq!(keep(&mut fork, &file, 0, 4), window);
        assert_eq!(text(&fork, window.gpa), "page 0");
        assert_eq!(fork.find_text(&own.1, 0, PAGE_SIZE), Ok(None));
        let mapped = keep(&mut fork, &own, 1, 1);
        assert_eq!(text(&fork, mapped.gpa), "page 1");
        // Frozen text is kept, whoever asks.
        fork.give_up_text(window.gpa);
        assert!(fork.write(window.gpa, b"mine").is_err());
        spaces.reset(&mut fork, |_, _| false).unwrap();
    }
    while fork.give_up_oldest_text() {}
    assert_eq!(fork.find_text(&file.1, 0, PAGE_SIZE), Ok(None));
    assert_eq!(text(&fork, window.gpa), "page 0");
    let (mut other, _) = frozen.fork().unwrap();
    assert_eq!(keep(&mut other, &file, 0, 4), window);
}

#[test]
fn the_windows_of_a_flush_are_told_if_they_are_all() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let mut tables = PageTables::new(&mut mem).unwrap();
    let (file, _) = file_of(8);
    let map =
        |mem: &mut GuestMemory, mapping| mem.map_file(file.as_fd(), 0, 4 * PAGE_SIZE, mapping);
    let window = map(&mut mem, FileMapping::Private).unwrap();
    let shared = map(&mut mem, FileMapping::SharedReadOnly).unwrap();
    let frame = mem.alloc_frame().unwrap();
    let all = PteFlags::USER | PteFlags::WRITE;
    let gva = Gva(0x20_0000);
    tables.map_range(&mut mem, gva, window.gpa, 4, all).unwrap();
    for (page, gpa) in [(4, shared.gpa), (5, frame)] {
        let at = gva.wrapping_add(page * PAGE_SIZE);
        tables.map(&mut mem, at, gpa, PageSize::Base, all).unwrap();
    }
    mem.write(window.gpa, b"data").unwrap();
    let mut protect = |mem: &mut GuestMemory, page: u64, pages: u64, flags| {
        let at = gva.wrapping_add(page * PAGE_SIZE);
        tables
            .protect_range(mem, at, pages * PAGE_SIZE, flags)
            .unwrap();
        tables.take_pending()
    };
    // Two runs of pages, whatever the order.
    let pending = {
        let first = protect(&mut mem, 0, 2, PteFlags::USER);
        assert_eq!(first.windows().unwrap().len(), 1);
        let _widened = protect(&mut mem, 0, 2, all);
        protect(&mut mem, 3, 1, PteFlags::USER)
    };
    let last = FileWindow {
        gpa: window.gpa.wrapping_add(3 * PAGE_SIZE),
        len_bytes: PAGE_SIZE,
    };
    assert_eq!(pending.windows(), Some(vec![last]));
    mem.renew_file(last).unwrap();
    mem.renew_file(window).unwrap();
    assert_eq!(text(&mem, window.gpa), "data 0");
    mem.write(window.gpa, b"more").unwrap();
    assert_eq!(text(&mem, window.gpa), "more 0");
    // With a page of another kind the guest has to flush.
    assert_eq!(protect(&mut mem, 0, 6, PteFlags::USER).windows(), None);
    let _widened = protect(&mut mem, 0, 6, all);
    assert_eq!(protect(&mut mem, 4, 1, PteFlags::USER).windows(), None);
    assert!(
        mem.renew_file(shared).is_err(),
        "it may not be made writable"
    );
}

#[test]
fn copies_are_charged_and_go_when_they_are_dear() {
    let mut mem = GuestMemory::new(64 * MIB).unwrap();
    let file = file_of(8);
    let used = mem.used_bytes();
    for turn in 0..3 {
        let window = keep(&mut mem, &file, 0, 8);
        mem.unmap_file(window).unwrap();
        assert_eq!(mem.used_bytes(), used, "KVM has no shadows: turn {turn}");
    }
    mem.expose_tables().unwrap();
    let used = mem.used_bytes();
    let window = keep(&mut mem, &file, 0, 8);
    assert_eq!(mem.used_bytes(), used + 8 * PAGE_SIZE);
    assert_eq!(text(&mem, window.gpa), "page 0");
    let large = file_of(600);
    for _ in 0..2 {
        keep(&mut mem, &large, 0, 600);
    }
    assert_eq!(mem.used_bytes(), used + 8 * PAGE_SIZE, "too large");
    mem.drop_text_copies();
    assert_eq!(mem.used_bytes(), used);
    assert_eq!(text(&mem, window.gpa), "page 0");
    // They go with the window too.
    keep(&mut mem, &file, 0, 8);
    assert_eq!(mem.used_bytes(), used + 8 * PAGE_SIZE);
    mem.give_up_text(window.gpa);
    assert_eq!(mem.used_bytes(), used);
    // Near the limit there are none.
    keep(&mut mem, &file, 0, 1);
    mem.charge(60 * MIB).unwrap();
    keep(&mut mem, &file, 0, 1);
    assert_eq!(mem.used_bytes(), used + 60 * MIB);
}
