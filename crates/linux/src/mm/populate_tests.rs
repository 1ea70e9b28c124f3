//! Tests of the pages that are present before they are touched, and of what that costs.

use kvmlet_abi::vdso_data::{VdsoClock, VdsoTimestamp};
use kvmlet_abi::{Gva, PAGE_SIZE};
use kvmlet_mem::PendingFlush;

use super::fixture::{Fixture, MIB};
use super::*;
use crate::clock::{GuestClock, HostClocks};

const R: u32 = 1;
const RW: u32 = 3;
const RX: u32 = 5;
const PRIVATE: u32 = 2;
const NORESERVE: u32 = 0x4000;
const FIXED: u32 = 0x10;

fn pages(count: u64) -> u64 {
    count * PAGE_SIZE
}

/// Pages from `at` on that touching would not fault.
fn present(f: &Fixture, at: u64, count: u64) -> u64 {
    let there = |page: &u64| f.tables().walk(&f.mem, Gva(at + pages(*page))).is_some();
    (0..count).filter(there).count() as u64
}

/// Faults that a program takes which writes so many pages one after the other.
fn faults_of_filling(f: &mut Fixture, at: u64, count: u64) -> u64 {
    let mut faults = 0;
    for page in 0..count {
        faults += u64::from(present(f, at + pages(page), 1) == 0);
        f.store(at + pages(page), 1).unwrap();
    }
    faults
}

#[test]
fn a_file_is_mapped_at_once_up_to_its_end_and_not_charged() {
    let mut f = Fixture::new(64 * MIB);
    let (file, map) = f.host_file(&[7; 5 * PAGE_SIZE as usize + 1]);
    let before = f.mem.resident_bytes();
    let at = f.map_at(0, pages(8), R, PRIVATE, Some(map), 0).unwrap();
    assert_eq!(present(&f, at, 8), 6, "and nothing past the end");
    assert_eq!(f.mem.resident_bytes(), before);
    assert_eq!(f.load(at + pages(5)), Ok(7));
    assert_eq!(f.load(at + pages(6)), Err(FaultError::Bus));
    file.set_len(PAGE_SIZE).unwrap();
    assert!(f.space().drop_truncated());
    assert_eq!(f.load(at + pages(1)), Err(FaultError::Bus));
    assert_eq!(f.load(at), Ok(7));
    f.check_no_leak();
}

#[test]
fn a_library_is_mapped_over_itself_without_a_flush() {
    let mut f = Fixture::new(64 * MIB);
    let (_file, map) = f.host_file(&[7; 8 * PAGE_SIZE as usize]);
    let whole = Some(map.clone());
    let at = f.map_at(0, pages(8), R, PRIVATE, whole, 0).unwrap();
    let text = Some(map.clone());
    f.map_at(at + pages(1), pages(4), RX, PRIVATE | FIXED, text, pages(1))
        .unwrap();
    let data = Some(map);
    f.map_at(at + pages(5), pages(3), RW, PRIVATE | FIXED, data, pages(5))
        .unwrap();
    assert_eq!(present(&f, at, 8), 8);
    assert_eq!(f.tables().pending(), &PendingFlush::None);
    f.touch(at + pages(2), Access::Exec).unwrap();
    f.store(at + pages(6), 9).unwrap();
    assert_eq!(f.load(at + pages(6) + 1), Ok(7));
    f.check();
    f.space().munmap(at, pages(6)).unwrap();
    assert_eq!(f.tables().pending(), &PendingFlush::None);
    assert_eq!(f.load(at), Err(FaultError::MAPERR));
    assert_eq!(f.load(at + pages(6)), Ok(9));
    // What stays in its window needs one.
    f.space().mprotect(at + pages(6), pages(1), R).unwrap();
    assert!(!f.take_pending().is_none());
    f.check_no_leak();
}

/// A clock that is ahead of the host's: all files were written long ago.
#[derive(Debug)]
struct Ahead;

impl GuestClock for Ahead {
    fn read(&self, clock: VdsoClock) -> VdsoTimestamp {
        let now = HostClocks.read(clock);
        VdsoTimestamp {
            sec: now.sec + 3600,
            ..now
        }
    }
    fn update(&mut self, _: &mut dyn FnMut(usize, &[u8])) {}
    fn stop_at(&mut self, _: u64) {}
    fn start(&mut self) {}
}

#[test]
fn a_library_that_was_mapped_before_is_where_it_was() {
    let mut f = Fixture::new(64 * MIB);
    f.host.clock = Box::new(Ahead);
    let (file, map) = f.host_file(&[7; 8 * PAGE_SIZE as usize]);
    let mut places = Vec::new();
    for turn in 0..3 {
        let at = f
            .map_at(0, pages(9), R, PRIVATE, Some(map.clone()), 0)
            .unwrap();
        let is_mapped_ahead = present(&f, at, 9);
        assert_eq!(is_mapped_ahead, if turn == 0 { 8 } else { 0 });
        let (text, data) = (Some(map.clone()), Some(map.clone()));
        f.map_at(at + pages(1), pages(4), RX, PRIVATE | FIXED, text, pages(1))
            .unwrap();
        f.map_at(at + pages(5), pages(3), RW, PRIVATE | FIXED, data, pages(5))
            .unwrap();
        assert_eq!(present(&f, at, 8), 8, "with what is left before the text");
        assert_eq!(f.tables().pending(), &PendingFlush::None);
        f.store(at + pages(6), 9).unwrap();
        f.touch(at + pages(2), Access::Exec).unwrap();
        places.push(f.tables().translate(&f.mem, Gva(at + pages(2))));
        // Text that is to be written gets a window of its own.
        f.space().mprotect(at + pages(2), pages(1), RW).unwrap();
        f.store(at + pages(2), 5).unwrap();
        f.check();
        f.space().munmap(at, pages(9)).unwrap();
        let flushed = f.take_pending();
        assert!(!flushed.is_none(), "the text stays in its window");
    }
    assert_eq!(places.first(), places.get(2));
    drop(file);
    f.check_no_leak();
}

#[test]
fn another_file_shows_what_somebody_writes_to_it() {
    use std::os::unix::fs::FileExt as _;
    let mut f = Fixture::new(64 * MIB);
    let (file, map) = f.host_file(&[7; PAGE_SIZE as usize]);
    let at = f.map_at(0, pages(1), RW, PRIVATE, Some(map), 0).unwrap();
    file.write_all_at(&[8], 5).unwrap();
    assert_eq!(f.load(at + 5), Ok(8));
    f.check_no_leak();
}

#[test]
fn a_page_of_a_large_mapping_costs_no_more_than_a_large_page() {
    let mut f = Fixture::new(256 * MIB);
    let before = f.mem.resident_bytes();
    let at = f.map(0, 1 << 30, RW, PRIVATE | NORESERVE).unwrap();
    assert_eq!(f.mem.resident_bytes(), before);
    f.store(at + (500 << 20), 1).unwrap();
    assert_eq!(f.mem.resident_bytes() - before, 2 * MIB);
    let medium = f.map(0x10_0000_0000, 3 * MIB, RW, PRIVATE).unwrap();
    assert_eq!(present(&f, medium, 768), 0);
    f.store(medium + MIB, 1).unwrap();
    assert!(present(&f, medium, 768) <= 64);
    f.check_no_leak();
}

#[test]
fn memory_filled_in_sequence_faults_ever_more_rarely() {
    let mut f = Fixture::new(256 * MIB);
    let at = f.map(0, 3 * MIB, RW, PRIVATE).unwrap();
    let before = f.mem.resident_bytes();
    let faults = faults_of_filling(&mut f, at, 384);
    assert!(faults <= 4, "{faults}");
    let resident = f.mem.resident_bytes() - before;
    assert!(resident <= 2 * pages(384), "{resident}");
    f.check_no_leak();
}

#[test]
fn a_heap_in_use_grows_without_faults_and_an_unused_one_without_memory() {
    let mut f = Fixture::new(256 * MIB);
    f.mm.set_brk_start(0x1000_0000);
    let start = f.mm.brk.start;
    let mut end = start;
    for _ in 0..20 {
        end = f.space().brk(end + pages(33));
    }
    assert_eq!(end, start + pages(660));
    assert_eq!(faults_of_filling(&mut f, start, 660), 0);
    // Far more at once: a step as long as what is in use below, at most 2 MiB.
    let before = f.mem.resident_bytes();
    let far = f.space().brk(end + 64 * MIB);
    assert_eq!(far, end + 64 * MIB);
    assert_eq!(f.mem.resident_bytes() - before, 2 * MIB);
    let before = f.mem.resident_bytes();
    let further = f.space().brk(far + 64 * MIB);
    assert_eq!(further, far + 64 * MIB);
    assert_eq!(f.mem.resident_bytes(), before, "the end is not in use");
    f.check_no_leak();
}

#[test]
fn nothing_is_mapped_ahead_near_the_limit() {
    let mut f = Fixture::new(MIB);
    let at = f.map(0, MIB, RW, PRIVATE).unwrap();
    let room = (f.mem.limit_bytes() - f.mem.used_bytes()) / PAGE_SIZE;
    let mut written = 0;
    while f.store(at + pages(written), 1).is_ok() {
        written += 1;
    }
    // One table, and every other page was for use.
    assert!(written + 4 >= room, "{written} of {room}");
    let small = f.map(0, pages(4), RW, PRIVATE).unwrap();
    assert_eq!(present(&f, small, 4), 0);
    f.check_no_leak();
}
