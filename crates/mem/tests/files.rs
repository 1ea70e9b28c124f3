//! File mappings: contents, privacy, truncation under a mapping, reuse of space.

#![expect(clippy::disallowed_methods, reason = "tests make their own files")]

mod pages;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use kvmlet_abi::{Gva, PAGE_SIZE};
use kvmlet_budget::Whose;
use kvmlet_mem::{
    CopyStop, FileMapping, FileWindow, GuestMemory, MemError, PageSize, PageTables, PteFlags,
};

use pages::{file_of, text};

const MIB: u64 = 1 << 20;

fn part(window: FileWindow, first: u64, pages: u64) -> FileWindow {
    FileWindow {
        gpa: window.gpa.wrapping_add(first * PAGE_SIZE),
        len_bytes: pages * PAGE_SIZE,
    }
}

#[test]
fn private_pages_are_copied_on_write_and_can_be_discarded() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let file = file_of(4);
    let window = mem
        .map_file(file.as_fd(), PAGE_SIZE, 2 * PAGE_SIZE, FileMapping::Private)
        .unwrap();
    assert!(mem.is_file_backed(window.gpa));
    assert_eq!(text(&mem, window.gpa), "page 1");
    assert_eq!(text(&mem, window.gpa.wrapping_add(PAGE_SIZE)), "page 2");
    mem.write(window.gpa, b"mine\0\0\0\0").unwrap();
    assert_eq!(text(&mem, window.gpa), "mine");
    let mut bytes = [0; 6];
    file.read_at(&mut bytes, PAGE_SIZE).unwrap();
    assert_eq!(&bytes, b"page 1", "the file is untouched");
    mem.discard_file(part(window, 0, 1)).unwrap();
    assert_eq!(text(&mem, window.gpa), "page 1");
    mem.zero(window.gpa.wrapping_add(2), PAGE_SIZE).unwrap();
    assert_eq!(text(&mem, window.gpa), "pa");
    assert_eq!(mem.used_bytes(), 0, "charging is the caller's");
}

#[test]
fn shared_pages_follow_the_file_and_refuse_writes() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let file = file_of(1);
    let window = mem
        .map_file(file.as_fd(), 0, 100, FileMapping::SharedReadOnly)
        .unwrap();
    assert_eq!(window.len_bytes, PAGE_SIZE, "rounded up");
    file.write_at(b"news", 0).unwrap();
    assert_eq!(text(&mem, window.gpa), "news 0");
    assert_eq!(
        mem.write(window.gpa, b"x"),
        Err(MemError::FileFault(window.gpa))
    );
    assert_eq!(
        mem.load_u32(window.gpa).unwrap(),
        u32::from_ne_bytes(*b"news")
    );
    assert_eq!(
        mem.compare_exchange_u32(window.gpa, 0, 1),
        Err(MemError::FileBacked(window.gpa))
    );
    let copy = mem.alloc_copy(window.gpa).unwrap();
    assert!(!mem.is_file_backed(copy));
    assert_eq!(text(&mem, copy), "news 0");
}

#[test]
fn what_is_written_to_a_shared_window_is_the_files() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let file = file_of(2);
    let map = |mem: &mut GuestMemory| {
        let window = mem.map_file(file.as_fd(), 0, 2 * PAGE_SIZE, FileMapping::Shared);
        window.unwrap()
    };
    let (one, two) = (map(&mut mem), map(&mut mem));
    let used = mem.used_bytes();
    mem.write(one.gpa, b"ours").unwrap();
    assert_eq!(text(&mem, two.gpa), "ours 0");
    let mut bytes = [0; 6];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"ours 0");
    assert_eq!(mem.used_bytes(), used, "it is the host's memory");
    let (old, new) = (u32::from_ne_bytes(*b"ours"), u32::from_ne_bytes(*b"news"));
    assert_eq!(
        mem.compare_exchange_u32(two.gpa, old, new),
        Err(MemError::FileBacked(two.gpa))
    );
    assert_eq!(mem.exchange_in_file(two.gpa, 1, 2), Ok(Err(old)));
    assert_eq!(mem.exchange_in_file(two.gpa, old, new), Ok(Ok(old)));
    assert_eq!(text(&mem, one.gpa), "news 0");
    mem.unmap_file(one).unwrap();
    assert_eq!(text(&mem, two.gpa), "news 0");
    file.set_len(0).unwrap();
    let gone = MemError::FileFault(two.gpa);
    assert_eq!(mem.write(two.gpa, b"x"), Err(gone));
    assert_eq!(mem.exchange_in_file(two.gpa, new, 1), Err(gone));
}

#[test]
fn truncation_under_a_mapping_is_an_error_not_a_signal() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    for mapping in [
        FileMapping::Private,
        FileMapping::SharedReadOnly,
        FileMapping::Shared,
    ] {
        let file = file_of(3);
        let window = mem
            .map_file(file.as_fd(), 0, 3 * PAGE_SIZE, mapping)
            .unwrap();
        let last = window.gpa.wrapping_add(2 * PAGE_SIZE);
        assert_eq!(text(&mem, last), "page 2");
        file.set_len(PAGE_SIZE).unwrap();
        let fault = Err(MemError::FileFault(last));
        let mut bytes = [0; 8];
        assert_eq!(mem.read(last, &mut bytes), fault);
        assert_eq!(mem.write(last, &bytes), fault);
        assert_eq!(mem.zero(last, 8), fault);
        assert_eq!(mem.load_u32(last), Err(MemError::FileFault(last)));
        let used = mem.used_bytes();
        assert_eq!(mem.alloc_copy(last), Err(MemError::FileFault(last)));
        assert_eq!(mem.used_bytes(), used, "the frame for the copy is freed");
        assert_eq!(text(&mem, window.gpa), "page 0", "the rest is still there");
        // A read that begins well and ends past the file fails as a whole.
        let mut long = vec![0; 2 * PAGE_SIZE as usize];
        assert!(mem.read(window.gpa, &mut long).is_err());
    }
}

#[test]
fn a_program_copy_stops_where_the_file_ends() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let mut tables = PageTables::new(&mut mem).unwrap();
    let file = file_of(2);
    let window = mem
        .map_file(file.as_fd(), 0, 2 * PAGE_SIZE, FileMapping::Private)
        .unwrap();
    let gva = Gva(0x10_0000);
    let flags = PteFlags::USER | PteFlags::WRITE | PteFlags::NX;
    tables
        .map_range(&mut mem, gva, window.gpa, 2, flags)
        .unwrap();
    file.set_len(PAGE_SIZE).unwrap();
    let mut bytes = vec![0; 2 * PAGE_SIZE as usize];
    let outcome = tables.copy_in(&mem, gva, &mut bytes);
    assert_eq!(outcome.copied_bytes, PAGE_SIZE as usize);
    let stop = Some(CopyStop::FileFault(gva.wrapping_add(PAGE_SIZE)));
    assert_eq!(outcome.stop, stop);
    assert_eq!(tables.copy_out(&mut mem, gva, &bytes).stop, stop);
}

#[test]
fn parts_are_unmapped_once_and_their_space_is_used_again() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let file = file_of(8);
    let map = |mem: &mut GuestMemory, pages: u64| {
        mem.map_file(file.as_fd(), 0, pages * PAGE_SIZE, FileMapping::Private)
            .unwrap()
    };
    let window = map(&mut mem, 8);
    mem.unmap_file(part(window, 2, 3)).unwrap();
    let mut bytes = [0; 1];
    let hole = window.gpa.wrapping_add(3 * PAGE_SIZE);
    assert_eq!(mem.read(hole, &mut bytes), Err(MemError::FileFault(hole)));
    assert_eq!(text(&mem, window.gpa.wrapping_add(5 * PAGE_SIZE)), "page 5");
    for (first, pages) in [(2, 3), (0, 8), (4, 2), (1, 2)] {
        assert!(
            matches!(
                mem.unmap_file(part(window, first, pages)),
                Err(MemError::Outside { .. })
            ),
            "pages {first}..{} are not all mapped",
            first + pages
        );
    }
    assert_eq!(map(&mut mem, 3).gpa, window.gpa.wrapping_add(2 * PAGE_SIZE));
    // A range may span several mappings.
    mem.unmap_file(window).unwrap();
    let big = 64 * MIB / PAGE_SIZE;
    assert_eq!(map(&mut mem, big).gpa, window.gpa, "the whole slot is free");
    let slots = mem.slots().len();
    assert_ne!(map(&mut mem, 1).gpa, window.gpa);
    assert_eq!(mem.slots().len(), slots + 1);
}

#[test]
fn bad_ranges_and_files_are_refused() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let file = file_of(1);
    let fd = file.as_fd();
    let private = FileMapping::Private;
    assert_eq!(
        mem.map_file(fd, 1, PAGE_SIZE, private),
        Err(MemError::Misaligned(1))
    );
    assert_eq!(
        mem.map_file(fd, 0, 0, private),
        Err(MemError::Misaligned(0))
    );
    assert!(mem.map_file(fd, 0, u64::MAX, private).is_err());
    assert_eq!(
        mem.map_file(fd, 0, 1 << 40, private),
        Err(MemError::TooManyFileMappings)
    );
    let directory = File::open("/").unwrap();
    assert!(matches!(
        mem.map_file(directory.as_fd(), 0, PAGE_SIZE, private),
        Err(MemError::MapFile(_))
    ));
    let ram = mem.slots()[1].gpa;
    let not_a_file = FileWindow {
        gpa: ram,
        len_bytes: PAGE_SIZE,
    };
    assert!(mem.unmap_file(not_a_file).is_err());
    assert!(mem.discard_file(not_a_file).is_err());
    let window = mem.map_file(fd, 0, PAGE_SIZE, private).unwrap();
    for len_bytes in [0, 1, PAGE_SIZE + 1, u64::MAX, !4095, 1 << 40] {
        let gpa = window.gpa;
        assert!(mem.unmap_file(FileWindow { gpa, len_bytes }).is_err());
    }
    mem.unmap_file(window).unwrap();
}

#[test]
fn mappings_are_bounded_in_number() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let file = file_of(1);
    let mut windows = Vec::new();
    let error = loop {
        match mem.map_file(file.as_fd(), 0, PAGE_SIZE, FileMapping::SharedReadOnly) {
            Ok(window) => windows.push(window),
            Err(error) => break error,
        }
        assert!(windows.len() < 1 << 20);
    };
    let MemError::Exhausted(exhausted) = error else {
        panic!("{error:?}");
    };
    assert_eq!(exhausted.whose, Whose::Sandbox);
    // One or the other is free: two new mappings of the host each time.
    mem.unmap_file(windows[7]).unwrap();
    let again = mem
        .map_file(file.as_fd(), 0, PAGE_SIZE, FileMapping::SharedReadOnly)
        .unwrap();
    assert_eq!(again.gpa, windows[7].gpa);
    // Another VM has its own.
    let mut other = GuestMemory::new(MIB).unwrap();
    other
        .map_file(file.as_fd(), 0, PAGE_SIZE, FileMapping::SharedReadOnly)
        .unwrap();
}

/// Mappings of the host at addresses in the VM's slots for files, and how many of them are counted.
fn host_mappings(mem: &GuestMemory) -> usize {
    let slots: Vec<(u64, u64)> = mem
        .slots()
        .iter()
        .filter(|slot| mem.is_file_backed(slot.gpa))
        .map(|slot| {
            (
                slot.host_addr as u64,
                slot.host_addr as u64 + slot.len_bytes,
            )
        })
        .collect();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter(|line| {
            let (start, rest) = line.split_once('-').unwrap();
            let end = rest.split_once(' ').unwrap().0;
            let (start, end) = (
                u64::from_str_radix(start, 16).unwrap(),
                u64::from_str_radix(end, 16).unwrap(),
            );
            slots.iter().any(|&(from, to)| start < to && from < end)
        })
        .count()
}

#[test]
fn no_mapping_of_the_host_is_uncounted() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let file = file_of(16);
    let mut windows: Vec<FileWindow> = Vec::new();
    let mut random = 88_172_645_463_325_252_u64;
    for step in 0..4000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let pick = (random >> 20) as usize;
        if windows.is_empty() || pick % 5 < 3 {
            let pages = 1 + (random >> 40) % 5;
            let mapping = match pick % 2 {
                0 => FileMapping::Private,
                _ => FileMapping::SharedReadOnly,
            };
            let offset = (random >> 50) % 4 * PAGE_SIZE;
            let mapped = mem.map_file(file.as_fd(), offset, pages * PAGE_SIZE, mapping);
            windows.push(mapped.unwrap());
        } else {
            let index = pick % windows.len();
            let window = windows.swap_remove(index);
            let pages = window.len_bytes / PAGE_SIZE;
            let from = (random >> 45) % pages;
            let len = 1 + (random >> 52) % (pages - from);
            let part = |from: u64, pages: u64| FileWindow {
                gpa: window.gpa.wrapping_add(from * PAGE_SIZE),
                len_bytes: pages * PAGE_SIZE,
            };
            if pick.is_multiple_of(7) {
                mem.cut_file(part(from, len)).unwrap();
            }
            mem.unmap_file(part(from, len)).unwrap();
            let rest = [part(0, from), part(from + len, pages - from - len)];
            windows.extend(rest.into_iter().filter(|rest| rest.len_bytes != 0));
        }
        if step % 50 == 0 {
            let counted = mem.file_host_mappings();
            let there = host_mappings(&mem);
            // The host's neighbours join; the slot may touch another mapping of its kind.
            assert!(there <= counted, "{there} of {counted} counted");
        }
    }
    for window in windows {
        mem.unmap_file(window).unwrap();
    }
    assert_eq!(mem.file_host_mappings(), 1);
}

#[test]
fn a_frame_of_a_file_has_no_owner_here() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let mut tables = PageTables::new(&mut mem).unwrap();
    let file = file_of(1);
    let window = mem
        .map_file(file.as_fd(), 0, PAGE_SIZE, FileMapping::Private)
        .unwrap();
    let gva = Gva(0x20_0000);
    tables
        .map(&mut mem, gva, window.gpa, PageSize::Base, PteFlags::USER)
        .unwrap();
    let used = mem.used_bytes();
    tables
        .unmap_range(&mut mem, gva, PAGE_SIZE, |mem, _, leaf| {
            mem.free_frame(leaf.gpa);
        })
        .unwrap();
    assert_eq!(mem.used_bytes(), used);
    assert_eq!(text(&mem, window.gpa), "page 0");
}

#[test]
fn windows_that_go_together_leave_what_others_have() {
    let mut mem = GuestMemory::new(MIB).unwrap();
    let file = file_of(6);
    let windows: Vec<FileWindow> = (0..6)
        .map(|page| {
            let offset = page * PAGE_SIZE;
            mem.map_file(file.as_fd(), offset, PAGE_SIZE, FileMapping::Private)
                .unwrap()
        })
        .collect();
    mem.share_file(windows[2]).unwrap();
    mem.unmap_file(windows[4]).unwrap();
    // One of them is not mapped, and the others go all the same.
    assert!(mem.unmap_files(windows.clone()).is_err());
    assert_eq!(text(&mem, windows[2].gpa), "page 2");
    assert!(!mem.is_shared_window(windows[2].gpa));
    for gone in [0, 1, 3, 4, 5] {
        assert!(mem.unmap_file(windows[gone]).is_err(), "{gone}");
    }
    mem.unmap_files(vec![windows[2]]).unwrap();
    let whole = mem
        .map_file(file.as_fd(), 0, 6 * PAGE_SIZE, FileMapping::Private)
        .unwrap();
    assert_eq!(whole.gpa, windows[0].gpa, "their space is used again");
    mem.unmap_files(Vec::new()).unwrap();
}
