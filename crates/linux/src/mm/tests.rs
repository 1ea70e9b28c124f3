//! Address-space operations one by one.

use kvmlet_abi::layout::{USER_END, USER_START};
use kvmlet_abi::{Errno, Gva, HUGE_PAGE_SIZE, PAGE_SIZE};
use kvmlet_hostfs::attr::FileTime;
use kvmlet_mem::PendingFlush;

use super::fixture::{Fixture, MIB};
use super::remap_tests::remap;
use super::*;
use crate::fd::OpenFlags;

const RW: u32 = 3;
const R: u32 = 1;
const NONE: u32 = 0;
const SHARED: u32 = 1;
const PRIVATE: u32 = 2;
const FIXED: u32 = 0x10;
const NORESERVE: u32 = 0x4000;

fn pages(count: u64) -> u64 {
    count * PAGE_SIZE
}

#[test]
fn bad_arguments_get_linux_errors() {
    let mut f = Fixture::new(64 * MIB);
    let private = PRIVATE | FIXED;
    assert_eq!(f.map(0, 0, RW, PRIVATE), Err(Errno::EINVAL));
    assert_eq!(f.map(0, u64::MAX, RW, PRIVATE), Err(Errno::ENOMEM));
    assert_eq!(f.map(0, USER_END.0 + 1, RW, PRIVATE), Err(Errno::ENOMEM));
    assert_eq!(f.map(0, PAGE_SIZE, RW, 0), Err(Errno::EINVAL));
    assert_eq!(f.map(0, PAGE_SIZE, RW, 3), Err(Errno::EINVAL));
    assert_eq!(f.map(1, PAGE_SIZE, RW, private), Err(Errno::EINVAL));
    assert_eq!(f.map(0, PAGE_SIZE, RW, private), Err(Errno::EPERM));
    assert_eq!(
        f.map(USER_END.0, PAGE_SIZE, RW, private),
        Err(Errno::ENOMEM)
    );
    assert_eq!(
        f.map(u64::MAX - 4095, PAGE_SIZE, RW, private),
        Err(Errno::ENOMEM)
    );
    assert_eq!(f.map(0, 128 << 30, RW, PRIVATE), Err(Errno::ENOMEM));
    assert!(
        f.map(0, 128 << 30, RW, PRIVATE | 0x4000).is_ok(),
        "MAP_NORESERVE"
    );
    assert_eq!(
        f.map(0, PAGE_SIZE, RW, PRIVATE | 0x4_0000),
        Err(Errno::ENOMEM)
    );
    assert_eq!(f.map(0, PAGE_SIZE, RW, SHARED | 0x100), Err(Errno::EINVAL));
    let at = f.map(0, PAGE_SIZE, RW, PRIVATE).unwrap();
    assert_eq!(
        f.map(at, PAGE_SIZE, RW, PRIVATE | 0x10_0000),
        Err(Errno::EEXIST)
    );
    let mut s = f.space();
    assert_eq!(s.munmap(at + 1, PAGE_SIZE), Err(Errno::EINVAL));
    assert_eq!(s.munmap(at, 0), Err(Errno::EINVAL));
    assert_eq!(s.munmap(at, u64::MAX), Err(Errno::EINVAL));
    assert_eq!(s.mprotect(at + 1, PAGE_SIZE, R), Err(Errno::EINVAL));
    assert_eq!(s.mprotect(at, 0, R), Ok(()));
    assert_eq!(s.mprotect(at, PAGE_SIZE, 0x10), Err(Errno::EINVAL));
    assert_eq!(s.mprotect(at, pages(2), R), Err(Errno::ENOMEM));
    assert_eq!(s.mprotect(at, u64::MAX, R), Err(Errno::ENOMEM));
    f.check_no_leak();
}

#[test]
fn memory_is_zero_keeps_what_is_written_and_goes_with_munmap() {
    let mut f = Fixture::new(64 * MIB);
    let at = f.map(0, pages(8), RW, PRIVATE).unwrap();
    assert_eq!(f.load(at + 5), Ok(0));
    f.store(at + 5, 7).unwrap();
    assert_eq!(f.load(at + 5), Ok(7));
    f.space().munmap(at, pages(1)).unwrap();
    assert_eq!(f.load(at + 5), Err(FaultError::MAPERR));
    assert_eq!(f.store(at + pages(8), 1), Err(FaultError::MAPERR));
    f.map(at, pages(1), RW, PRIVATE | FIXED).unwrap();
    assert_eq!(f.load(at + 5), Ok(0), "mapped anew, it is zero again");
    assert_eq!(f.mm.vmas.len(), 1, "joined with its neighbour");
    f.check();
    f.check_no_leak();
}

#[test]
fn rights_are_enforced_and_prot_none_keeps_contents() {
    let mut f = Fixture::new(64 * MIB);
    let at = f.map(0, pages(4), RW, PRIVATE).unwrap();
    f.store(at, 1).unwrap();
    f.space().mprotect(at, pages(1), R).unwrap();
    assert_eq!(f.store(at, 2), Err(FaultError::ACCERR));
    assert_eq!(f.load(at), Ok(1));
    assert_eq!(f.touch(at, Access::Exec), Err(FaultError::ACCERR));
    f.space().mprotect(at, pages(2), NONE).unwrap();
    assert_eq!(f.load(at), Err(FaultError::ACCERR));
    f.check();
    f.space().mprotect(at, pages(4), RW | 4).unwrap();
    assert_eq!(f.load(at), Ok(1));
    f.store(at, 3).unwrap();
    f.touch(at, Access::Exec).unwrap();
    assert_eq!(f.mm.vmas.len(), 1);
    f.check();
    f.check_no_leak();
}

#[test]
fn narrowing_a_present_entry_records_a_flush() {
    let mut f = Fixture::new(64 * MIB);
    let at = f.map(0, pages(1), RW, PRIVATE).unwrap();
    f.store(at, 1).unwrap();
    assert_eq!(f.take_pending(), PendingFlush::None);
    f.space().mprotect(at, pages(1), R).unwrap();
    assert!(!f.take_pending().is_none());
}

#[test]
fn large_memory_gets_huge_pages_and_they_split() {
    let mut f = Fixture::new(256 * MIB);
    let at = f.map(0, 8 * MIB, RW, PRIVATE).unwrap();
    assert!(Gva(at).is_huge_aligned());
    f.store(at + 3 * MIB, 9).unwrap();
    assert_eq!(f.huge_leaves(), 1);
    f.space().munmap(at + 2 * MIB + pages(1), pages(1)).unwrap();
    assert_eq!(f.huge_leaves(), 0);
    assert_eq!(f.load(at + 3 * MIB), Ok(9));
    assert_eq!(f.load(at + 2 * MIB + pages(1)), Err(FaultError::MAPERR));
    f.store(at + 4 * MIB, 5).unwrap();
    f.space().mprotect(at + 4 * MIB, pages(1), R).unwrap();
    assert_eq!(f.load(at + 4 * MIB), Ok(5));
    f.check();
    f.check_no_leak();
}

#[test]
fn sequential_use_maps_ahead() {
    let mut f = Fixture::new(256 * MIB);
    let at = f.map(0, 32 * MIB, RW, PRIVATE).unwrap();
    f.store(at + 9 * MIB, 1).unwrap();
    f.store(at + 5 * MIB, 1).unwrap();
    assert_eq!(f.huge_leaves(), 2, "scattered use maps what is touched");
    f.store(at + 10 * MIB, 1).unwrap();
    assert_eq!(f.huge_leaves(), 6);
    f.check();
    f.check_no_leak();
}

#[test]
fn huge_pages_are_refused_and_asked_for_by_advice() {
    let mut f = Fixture::new(256 * MIB);
    let large = f.map(0, 8 * MIB, RW, PRIVATE).unwrap();
    f.space()
        .advise(large, 8 * MIB, Advice::NoHugePage)
        .unwrap();
    f.store(large, 1).unwrap();
    assert_eq!(f.huge_leaves(), 0);
    let small = f.map(0x4000_0000, 2 * MIB, RW, PRIVATE | FIXED).unwrap();
    f.space().advise(small, 2 * MIB, Advice::HugePage).unwrap();
    f.store(small, 1).unwrap();
    assert_eq!(f.huge_leaves(), 1);
    f.check_no_leak();
}

#[test]
fn the_limit_ends_in_out_of_memory_and_nothing_is_lost() {
    let mut f = Fixture::new(8 * MIB);
    let at = f.map(0, 64 * MIB, RW, PRIVATE | NORESERVE).unwrap();
    let mut touched = 0;
    let error = loop {
        match f.store(at + touched, 1) {
            Ok(()) => touched += PAGE_SIZE,
            Err(error) => break error,
        }
    };
    assert_eq!(error, FaultError::OutOfMemory);
    assert!(
        touched > 6 * MIB,
        "only {touched} bytes of 8 MiB were to be had"
    );
    assert_eq!(f.load(at), Ok(1));
    f.check_no_leak();
}

#[test]
fn what_the_sandbox_could_never_have_is_refused() {
    let (total, more) = (64 * MIB, 64 * MIB + PAGE_SIZE);
    let mut f = Fixture::new(total);
    let refused = Err(Errno::ENOMEM);
    assert_eq!(f.map(0, more, RW, PRIVATE), refused);
    assert_eq!(f.map(0, more, RW, SHARED), refused);
    assert!(f.map(0, total, RW, PRIVATE).is_ok());
    assert!(f.map(0, more, RW, PRIVATE | NORESERVE).is_ok());
    assert!(f.map(0, more, R, PRIVATE).is_ok());
    let none = f.map(0, more, NONE, PRIVATE).unwrap();
    assert_eq!(f.space().mprotect(none, more, RW), Err(Errno::ENOMEM));
    assert_eq!(f.space().mprotect(none, more, R), Ok(()));
    assert_eq!(f.space().mprotect(none, total, RW), Ok(()));
    let free = f.map(0, more, NONE, PRIVATE | NORESERVE).unwrap();
    assert_eq!(f.space().mprotect(free, more, RW), Ok(()));
    let small = f.map(0, pages(1), RW, PRIVATE).unwrap();
    let longer = |addr, old_len_bytes| RemapRequest {
        addr,
        old_len_bytes,
        new_len_bytes: more + pages(9),
        flags: RemapFlags::MAYMOVE.bits(),
        new_addr: 0,
    };
    assert_eq!(f.space().remap(&longer(small, pages(1))), refused);
    assert!(f.space().remap(&longer(free, more)).is_ok());
    f.mm.set_brk_start(0x1000_0000);
    assert_eq!(f.space().brk(0x1000_0000 + more), 0x1000_0000);
    assert_eq!(f.space().brk(0x1000_0000 + total), 0x1000_0000 + total);
    f.check_no_leak();
}

#[test]
fn a_sparse_reader_is_not_charged_for_what_it_skips() {
    let mut f = Fixture::new(8 * MIB);
    let at = f.map(0, 32 * MIB, RW, PRIVATE | NORESERVE).unwrap();
    for page in 0..64 {
        f.load(at + page * 128 * PAGE_SIZE).unwrap();
    }
    f.check_no_leak();
}

#[test]
fn the_stack_grows_to_its_limit_and_keeps_its_gap() {
    let mut f = Fixture::new(64 * MIB);
    let top = 0x7000_0000_0000;
    let stack = Region {
        start: Gva(top - pages(4)),
        len_bytes: pages(4),
        prot: Prot::READ | Prot::WRITE,
        flags: VmaFlags::GROWSDOWN | VmaFlags::MAYWRITE,
        source: Source::Anon,
        offset: 0,
        name: None,
    };
    f.space().map_region(&stack).unwrap();
    f.store(top - MIB, 1).unwrap();
    assert_eq!(f.mm.find(top - 1).unwrap().start, top - MIB);
    assert_eq!(f.store(top - 8 * MIB - 1, 1), Err(FaultError::MAPERR));
    f.map(top - 4 * MIB, PAGE_SIZE, RW, PRIVATE | FIXED)
        .unwrap();
    assert_eq!(f.store(top - 3 * MIB, 1), Err(FaultError::MAPERR));
    f.store(top - 2 * MIB, 1).unwrap();
    f.mm.layout.mmap_top = top;
    let placed = f.map(0, PAGE_SIZE, RW, PRIVATE).unwrap();
    assert!(placed + PAGE_SIZE <= top - 2 * MIB - STACK_GUARD_GAP);
    f.check();
    f.check_no_leak();
}

#[test]
fn private_files_are_shared_until_written() {
    let mut f = Fixture::new(64 * MIB);
    let mut contents = vec![1; PAGE_SIZE as usize];
    contents.extend([2; 10]);
    let (_, file) = f.host_file(&contents);
    let at = f
        .map_at(0, pages(4), RW, PRIVATE, Some(file.clone()), 0)
        .unwrap();
    let charged = f.mem.used_bytes() - f.empty_bytes;
    assert!(charged >= pages(4), "what may be written is charged");
    assert_eq!(f.load(at), Ok(1));
    assert_eq!(f.load(at + PAGE_SIZE + 9), Ok(2));
    assert_eq!(f.load(at + PAGE_SIZE + 10), Ok(0));
    assert_eq!(f.load(at + pages(2)), Err(FaultError::Bus));
    f.store(at, 5).unwrap();
    let other = f.map_at(0, pages(1), R, PRIVATE, Some(file), 0).unwrap();
    assert_eq!((f.load(at), f.load(other)), (Ok(5), Ok(1)));
    f.space().advise(at, pages(4), Advice::DontNeed).unwrap();
    assert_eq!(f.load(at), Ok(1), "the file is read again");
    f.space().munmap(at, pages(1)).unwrap();
    assert_eq!(f.load(at + PAGE_SIZE), Ok(2));
    f.check();
    f.check_no_leak();
    assert_eq!(f.mem.used_bytes(), f.empty_bytes);
}

#[test]
fn files_open_for_reading_are_not_written_through_shared_mappings() {
    let mut f = Fixture::new(64 * MIB);
    let (_, file) = f.host_file(&[1; 100]);
    let map = |f: &mut Fixture, prot, flags, file: &MapFile| {
        f.map_at(0, pages(1), prot, flags, Some(file.clone()), 0)
    };
    assert_eq!(map(&mut f, RW, SHARED, &file), Err(Errno::EACCES));
    assert_eq!(map(&mut f, R, 3 | 0x8_0000, &file), Err(Errno::EOPNOTSUPP));
    let at = map(&mut f, R, SHARED, &file).unwrap();
    assert_eq!(f.load(at), Ok(1));
    assert_eq!(f.space().mprotect(at, pages(1), RW), Err(Errno::EACCES));
    let write_only = MapFile {
        flags: OpenFlags::WRONLY,
        ..file
    };
    assert_eq!(map(&mut f, R, PRIVATE, &write_only), Err(Errno::EACCES));
    f.check_no_leak();
    assert_eq!(f.mem.used_bytes(), f.empty_bytes);
}

#[test]
fn a_private_file_is_charged_when_it_becomes_writable() {
    let mut f = Fixture::new(64 * MIB);
    let (_, file) = f.host_file(&[1; 100]);
    let at = f.map_at(0, 100 * MIB, R, PRIVATE, Some(file), 0).unwrap();
    assert_eq!(f.space().mprotect(at, 100 * MIB, RW), Err(Errno::ENOMEM));
    f.space().mprotect(at, MIB, RW).unwrap();
    f.store(at, 3).unwrap();
    assert!(f.mem.used_bytes() >= MIB);
    f.space().mprotect(at, MIB, R).unwrap();
    f.check();
    f.check_no_leak();
    assert_eq!(f.mem.used_bytes(), f.empty_bytes);
}

#[test]
fn a_file_that_shrinks_is_a_bus_error() {
    let mut f = Fixture::new(64 * MIB);
    let (host, file) = f.host_file(&vec![1; 3 * PAGE_SIZE as usize]);
    let at = f.map_at(0, pages(3), R, PRIVATE, Some(file), 0).unwrap();
    assert_eq!(f.load(at + pages(2)), Ok(1));
    assert!(!f.space().drop_truncated());
    host.set_len(PAGE_SIZE).unwrap();
    assert_eq!(
        f.load(at + pages(2)),
        Err(FaultError::Bus),
        "the copy fails, not the process"
    );
    assert!(f.space().drop_truncated());
    assert_eq!(f.touch(at + pages(1), Access::Read), Err(FaultError::Bus));
    assert_eq!(f.load(at), Ok(1));
    f.check_no_leak();
}

#[test]
fn memory_files_are_seen_by_all_and_copied_by_private_writers() {
    let mut f = Fixture::new(64 * MIB);
    let file = f.tmp_file(&[1; 2 * PAGE_SIZE as usize]);
    let Source::Tmp(inode) = file.source else {
        unreachable!()
    };
    let shared = f
        .map_at(0, pages(3), RW, SHARED, Some(file.clone()), 0)
        .unwrap();
    let private = f
        .map_at(0, pages(3), RW, PRIVATE, Some(file.clone()), 0)
        .unwrap();
    assert_eq!((f.load(shared), f.load(private)), (Ok(1), Ok(1)));
    f.store(shared, 2).unwrap();
    assert_eq!(f.load(private), Ok(2));
    f.store(private, 3).unwrap();
    assert_eq!((f.load(shared), f.load(private)), (Ok(2), Ok(3)));
    let mut byte = [0];
    f.tmpfs.read(&f.mem, inode, 0, &mut byte).unwrap();
    assert_eq!(byte, [2]);
    assert_eq!(f.load(shared + pages(2)), Err(FaultError::Bus));
    f.check();
    let gone = f
        .tmpfs
        .set_size(&mut f.mem, inode, PAGE_SIZE, FileTime::from_ns(0))
        .unwrap();
    f.space().unmap_stale(inode, &gone).unwrap();
    assert_eq!(f.load(shared + pages(1)), Err(FaultError::Bus));
    assert_eq!(f.load(shared), Ok(2));
    let sealed = MapFile {
        seals: crate::vfs::tmpfs::SEAL_WRITE,
        ..file
    };
    assert_eq!(
        f.map_at(0, pages(1), RW, SHARED, Some(sealed.clone()), 0),
        Err(Errno::EPERM)
    );
    let read_only = f.map_at(0, pages(1), R, SHARED, Some(sealed), 0).unwrap();
    assert_eq!(
        f.space().mprotect(read_only, pages(1), RW),
        Err(Errno::EACCES)
    );
    f.tmpfs.close_ref(&mut f.mem, inode);
    f.check_no_leak();
    assert_eq!(f.mem.used_bytes(), f.empty_bytes);
}

#[test]
fn shared_anonymous_memory_is_one_object() {
    let mut f = Fixture::new(64 * MIB);
    let at = f.map(0, pages(4), RW, SHARED).unwrap();
    f.store(at + pages(1), 4).unwrap();
    let again = f
        .space()
        .remap(&RemapRequest {
            addr: at,
            old_len_bytes: 0,
            new_len_bytes: pages(4),
            flags: 1,
            new_addr: 0,
        })
        .unwrap();
    assert_ne!(again, at);
    assert_eq!(f.load(again + pages(1)), Ok(4));
    f.store(again, 6).unwrap();
    assert_eq!(f.load(at), Ok(6));
    f.space().advise(at, pages(4), Advice::DontNeed).unwrap();
    assert_eq!(f.load(at), Ok(6), "shared contents stay");
    f.space().advise(at, pages(1), Advice::Remove).unwrap();
    assert_eq!((f.load(again), f.load(at + pages(1))), (Ok(0), Ok(4)));
    f.check();
    f.check_no_leak();
    assert_eq!(f.mem.used_bytes(), f.empty_bytes);
}

#[test]
fn the_heap_follows_the_break() {
    let mut f = Fixture::new(64 * MIB);
    f.mm.set_brk_start(0x10_0001);
    let start = f.space().brk(0);
    assert_eq!(start, 0x10_1000);
    assert_eq!(f.space().brk(start + 100), start + 100);
    f.store(start + 4095, 1).unwrap();
    assert_eq!(f.store(start + 4096, 1), Err(FaultError::MAPERR));
    assert_eq!(f.space().brk(start + pages(3)), start + pages(3));
    f.store(start + pages(2), 2).unwrap();
    assert_eq!(f.mm.vmas.len(), 1);
    f.map(start + pages(5), PAGE_SIZE, RW, PRIVATE | FIXED)
        .unwrap();
    assert_eq!(
        f.space().brk(start + pages(5)),
        start + pages(3),
        "a page is kept free"
    );
    assert_eq!(f.space().brk(start + 1), start + 1);
    assert_eq!(f.load(start + 4095), Ok(1));
    assert_eq!(f.load(start + 4096), Err(FaultError::MAPERR));
    f.limits.data.soft = pages(2);
    assert_eq!(f.space().brk(start + pages(3)), start + 1);
    assert_eq!(f.space().brk(start - 1), start + 1);
    f.check_no_leak();
}

#[test]
fn advice_has_linux_errors() {
    let mut f = Fixture::new(64 * MIB);
    let at = f.map(0, pages(4), RW, PRIVATE).unwrap();
    f.store(at, 1).unwrap();
    let shared = f.map(0, pages(1), RW, SHARED).unwrap();
    let mut s = f.space();
    assert_eq!(s.advise(at + 1, 1, Advice::DontNeed), Err(Errno::EINVAL));
    assert_eq!(s.advise(at, u64::MAX, Advice::DontNeed), Err(Errno::EINVAL));
    assert_eq!(s.advise(at, 0, Advice::DontNeed), Ok(()));
    assert_eq!(s.advise(0x1000_0000, 1, Advice::Normal), Err(Errno::ENOMEM));
    assert_eq!(s.advise(at, pages(4), Advice::HwPoison), Err(Errno::EPERM));
    assert_eq!(s.advise(shared, pages(1), Advice::Free), Err(Errno::EINVAL));
    assert_eq!(
        s.advise(shared, pages(1), Advice::WipeOnFork),
        Err(Errno::EINVAL)
    );
    assert_eq!(s.advise(at, pages(1), Advice::Remove), Err(Errno::EINVAL));
    assert_eq!(s.advise(at, pages(4), Advice::PopulateWrite), Ok(()));
    assert_eq!(s.advise(at, pages(4), Advice::DontFork), Ok(()));
    s.lock(at, pages(1), VmaFlags::LOCKED).unwrap();
    assert_eq!(s.advise(at, pages(1), Advice::DontNeed), Err(Errno::EINVAL));
    assert_eq!(s.advise(at, pages(1), Advice::DontNeedLocked), Ok(()));
    assert_eq!(f.load(at), Ok(0));
    f.check();
    f.check_no_leak();
}

#[test]
fn locking_is_limited() {
    let mut f = Fixture::new(64 * MIB);
    f.limits.locked = pages(4);
    let at = f.map(0, pages(20), RW, PRIVATE).unwrap();
    assert_eq!(
        f.space().lock(at, pages(5), VmaFlags::LOCKED),
        Err(Errno::ENOMEM)
    );
    f.space().lock(at + 1, pages(2), VmaFlags::LOCKED).unwrap();
    assert_eq!(
        f.mm.locked_bytes(),
        pages(3),
        "every page touched by the range"
    );
    f.space().lock(at, pages(3), VmaFlags::LOCKED).unwrap();
    assert_eq!(f.space().resident(at, 4), Ok(vec![1, 1, 1, 0]));
    assert_eq!(f.space().resident(at, 21), Err(Errno::ENOMEM));
    let shared = f.map(0, pages(4), RW, SHARED).unwrap();
    f.store(shared + pages(2), 1).unwrap();
    assert_eq!(f.space().resident(shared + pages(1), 3), Ok(vec![0, 1, 0]));
    assert_eq!(f.space().lock_all(1), Err(Errno::ENOMEM));
    f.space().lock_all(2).unwrap();
    assert_eq!(f.map(0, pages(2), RW, PRIVATE), Err(Errno::EAGAIN));
    f.space().unlock_all().unwrap();
    assert_eq!(f.mm.locked_bytes(), 0);
    f.limits.locked = 0;
    assert_eq!(f.space().lock(at, 1, VmaFlags::LOCKED), Err(Errno::EPERM));
    f.check_no_leak();
}

#[test]
fn sealed_memory_stays_as_it_is() {
    let mut f = Fixture::new(64 * MIB);
    let at = f.map(0, pages(3), R, PRIVATE).unwrap();
    f.space().seal(at + pages(1), pages(1), 0).unwrap();
    assert_eq!(f.space().munmap(at, pages(3)), Err(Errno::EPERM));
    assert_eq!(f.space().mprotect(at, pages(3), RW), Err(Errno::EPERM));
    assert_eq!(f.map(at, pages(3), RW, PRIVATE | FIXED), Err(Errno::EPERM));
    assert_eq!(
        f.space().advise(at, pages(3), Advice::DontNeed),
        Err(Errno::EPERM)
    );
    assert_eq!(
        remap(&mut f, at + pages(1), pages(1), pages(2), 1, 0),
        Err(Errno::EPERM)
    );
    assert_eq!(f.space().seal(at, pages(9), 0), Err(Errno::ENOMEM));
    f.space().munmap(at, pages(1)).unwrap();
    f.check_no_leak();
}

#[test]
fn the_number_of_areas_is_limited() {
    let mut f = Fixture::new(64 * MIB);
    let template = Vma {
        start: 0,
        end: 0,
        prot: Prot::empty(),
        flags: VmaFlags::empty(),
        backing: Backing::Anon,
        name: None,
    };
    for index in 0..MAX_MAP_COUNT as u64 - 1 {
        let start = USER_START.0 + index * pages(4);
        let end = start + pages(3);
        f.mm.vmas.insert(
            start,
            Vma {
                start,
                end,
                ..template.clone()
            },
        );
    }
    let at = f.map(0, pages(3), RW, PRIVATE).unwrap();
    assert_eq!(f.map(0, pages(3), R, PRIVATE), Err(Errno::ENOMEM));
    assert_eq!(
        f.space().munmap(at + pages(1), pages(1)),
        Err(Errno::ENOMEM)
    );
    assert_eq!(f.space().mprotect(at, pages(1), R), Err(Errno::ENOMEM));
    f.space().munmap(at, pages(1)).unwrap();
    f.check();
}

#[test]
fn maps_are_printed_as_linux_does() {
    let mut f = Fixture::new(64 * MIB);
    f.map(0x1000_0000, pages(1), RW, PRIVATE | FIXED).unwrap();
    let file = f.tmp_file(&[0; 1]);
    f.map_at(
        0x2000_0000,
        pages(1),
        5,
        SHARED | FIXED,
        Some(file),
        PAGE_SIZE,
    )
    .unwrap();
    f.mm.set_brk_start(0x3000_0000);
    f.space().brk(0x3000_1000);
    let text = maps_text(&f.mm, (0, 0), 0);
    assert_eq!((text.at, text.next), (0, None));
    let text = String::from_utf8(text.bytes.to_vec()).unwrap();
    let name = format!(
        "{:<73}/tmp/file",
        "20000000-20001000 r-xs 00001000 00:7f 4 "
    );
    let heap = format!("{:<73}[heap]", "30000000-30001000 rw-p 00000000 00:00 0 ");
    let expected = format!("10000000-10001000 rw-p 00000000 00:00 0 \n{name}\n{heap}\n");
    assert_eq!(text, expected);
}

#[test]
fn maps_are_made_in_parts() {
    let mut f = Fixture::new(64 * MIB);
    let file = f.tmp_file(&[0; 1]);
    let long = super::MapFile {
        name: Arc::from(format!("/tmp/{}\n", "n".repeat(20_000)).as_bytes()),
        ..file
    };
    for index in 0..600 {
        let at = 0x1000_0000 + pages(2) * index;
        let named = index % 50 == 49;
        f.map_at(
            at,
            pages(1),
            5,
            SHARED | FIXED,
            named.then(|| long.clone()),
            0,
        )
        .unwrap();
    }
    let mut whole = Vec::new();
    let mut parts = vec![maps_text(&f.mm, (0, 0), 0)];
    while let Some(last) = parts.last().cloned() {
        assert!(last.bytes.len() < 64 << 10);
        assert_eq!(last.at, whole.len() as u64);
        whole.extend_from_slice(&last.bytes);
        let Some(next) = last.next else { break };
        parts.push(maps_text(&f.mm, (next, last.end()), last.end()));
    }
    assert!(parts.len() > 10);
    assert_eq!(whole.iter().filter(|byte| **byte == b'\n').count(), 600);
    assert_eq!(
        whole.windows(5).filter(|bytes| bytes == b"n\\012").count(),
        12
    );
    // A read anywhere finds what one from the start would have found there.
    for offset in (0..whole.len() + 100).step_by(997) {
        let part = maps_text(&f.mm, (0, 0), offset as u64);
        assert!(part.covers(offset as u64));
        let inside = usize::try_from(offset as u64 - part.at).unwrap();
        let found = part.bytes.get(inside..).unwrap_or_default();
        let expected = whole.get(offset..).unwrap_or_default();
        assert!(expected.starts_with(found) && found.is_empty() == expected.is_empty());
    }
    // A name counts in each mapping that has it.
    let used = f.mem.used_bytes();
    f.space().munmap(0x1000_0000, pages(1200)).unwrap();
    assert!(used - f.mem.used_bytes() > 600 * 200 + 12 * 20_000);
}

#[test]
fn layouts_differ_and_stay_in_bounds() {
    for word in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
        let seed = AslrSeed {
            mmap: word,
            stack: word,
            exe: word,
            brk: word,
        };
        let layout = Layout::draw(seed, 8 * MIB);
        assert!(layout.stack_top <= USER_END.0 && layout.mmap_top < layout.stack_top - 8 * MIB);
        for limit in [8 * MIB, 3 << 30, 1 << 40, u64::MAX] {
            let layout = Layout::draw(seed, limit);
            let space = limit.min(USER_END.0 / 6 * 5);
            assert!(layout.mmap_top < layout.stack_top - space, "{limit:#x}");
            assert!(layout.mmap_top > USER_END.0 / 8, "{limit:#x}");
        }
        assert!(layout.exe_base + (1 << 40) < layout.mmap_top);
        assert!(Gva(layout.mmap_top).is_page_aligned() && Gva(layout.exe_base).is_page_aligned());
    }
    let draw = |mmap| {
        let seed = AslrSeed {
            mmap,
            ..AslrSeed::default()
        };
        Layout::draw(seed, 8 * MIB)
    };
    assert_ne!(draw(1), draw(2));
}

#[test]
fn placement_honours_hints_and_the_low_range() {
    let mut f = Fixture::new(64 * MIB);
    assert_eq!(f.map(0x1234_5001, pages(1), RW, PRIVATE), Ok(0x1234_6000));
    let other = f.map(0x1234_6000, pages(1), RW, PRIVATE).unwrap();
    assert_eq!(other, f.mm.layout.mmap_top - pages(1), "the hint is taken");
    assert_eq!(
        f.map(0, pages(1), RW, PRIVATE),
        Ok(other - pages(1)),
        "top down"
    );
    let low = f.map(0, pages(1), RW, PRIVATE | 0x40).unwrap();
    assert!((0x4000_0000..0x8000_0000).contains(&low));
    f.mm.layout.mmap_top = USER_START.0 + HUGE_PAGE_SIZE;
    let up = f.map(0, 4 * HUGE_PAGE_SIZE, NONE, PRIVATE).unwrap();
    assert!(
        up >= USER_END.0 / 3 / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE,
        "bottom up as a last resort"
    );
}
