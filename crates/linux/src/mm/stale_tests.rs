//! Memory files that change while shared and private mappings show them.

use kvmlet_abi::{Errno, Gva, PAGE_SIZE};
use kvmlet_hostfs::attr::FileTime;

use super::fixture::{Fixture, MIB};
use super::*;
use crate::vfs::tmpfs::InodeId;

const RW: u32 = 3;
const SHARED: u32 = 1;
const PRIVATE: u32 = 2;

fn pages(count: u64) -> u64 {
    count * PAGE_SIZE
}

/// Two pages of a memory file, shared and private mappings of it, and a private copy of page 1.
fn seen_twice() -> (Fixture, InodeId, u64, u64) {
    let mut f = Fixture::new(64 * MIB);
    let file = f.tmp_file(&[1; 2 * PAGE_SIZE as usize]);
    let Source::Tmp(inode) = file.source else {
        unreachable!()
    };
    let shared = f.map_at(0, pages(2), RW, SHARED, Some(file.clone()), 0);
    let private = f.map_at(0, pages(2), RW, PRIVATE, Some(file), 0);
    let (shared, private) = (shared.unwrap(), private.unwrap());
    for at in [shared, shared + pages(1), private, private + pages(1)] {
        assert_eq!(f.load(at), Ok(1));
    }
    f.store(private + pages(1), 2).unwrap();
    (f, inode, shared, private)
}

#[test]
fn private_copies_outlive_a_hole_but_not_a_truncation() {
    let (mut f, inode, shared, private) = seen_twice();
    let now = FileTime::from_ns(0);
    let stale = f.tmpfs.punch_hole(&mut f.mem, inode, 0, pages(2), now);
    f.space().unmap_stale(inode, &stale.unwrap()).unwrap();
    assert_eq!((f.load(shared), f.load(shared + pages(1))), (Ok(0), Ok(0)));
    assert_eq!(
        (f.load(private), f.load(private + pages(1))),
        (Ok(0), Ok(2))
    );
    for size in [pages(1), pages(2)] {
        let stale = f.tmpfs.set_size(&mut f.mem, inode, size, now).unwrap();
        f.space().unmap_stale(inode, &stale).unwrap();
    }
    assert_eq!(f.load(private + pages(1)), Ok(0));
    f.tmpfs.close_ref(&mut f.mem, inode);
    f.check_no_leak();
    assert_eq!(f.mem.used_bytes(), f.empty_bytes);
}

#[test]
fn private_copies_outlive_the_copy_of_a_frozen_page() {
    let (f, _, shared, private) = seen_twice();
    let mut f = f.fork();
    f.store(shared, 3).unwrap();
    f.store(shared + pages(1), 4).unwrap();
    assert_eq!(
        (f.load(private), f.load(private + pages(1))),
        (Ok(3), Ok(2))
    );
    // Part of a page, which is copied for it: the private copy of that page stays too.
    let (f, inode, shared, private) = seen_twice();
    let mut f = f.fork();
    let now = FileTime::from_ns(0);
    let stale = f
        .tmpfs
        .set_size(&mut f.mem, inode, pages(1) + 1, now)
        .unwrap();
    f.space().unmap_stale(inode, &stale).unwrap();
    let _nothing_ran = f.take_pending();
    assert_eq!((f.load(shared + pages(1)), f.load(private)), (Ok(1), Ok(1)));
    assert_eq!(f.load(private + pages(1)), Ok(2));
}

#[test]
fn a_reset_keeps_no_copy_that_would_hide_a_memory_file() {
    let (mut f, _, shared, private) = seen_twice();
    let anonymous = f.map(0, pages(1), RW, PRIVATE).unwrap();
    let mut keeps = f.mm.copy_keeper();
    for (at, kept) in [(anonymous, true), (shared, false), (private, false)] {
        assert_eq!(keeps(Gva(at)), kept, "{at:#x}");
    }
}

#[test]
fn a_hole_at_the_memory_limit_changes_nothing() {
    let (f, inode, shared, _) = seen_twice();
    let mut f = f.fork();
    let free = f.mem.limit_bytes() - f.mem.used_bytes();
    // Room for one of the two pages that are partly in the hole.
    f.mem.charge(free - PAGE_SIZE).unwrap();
    let now = FileTime::from_ns(0);
    let refused = f.tmpfs.punch_hole(&mut f.mem, inode, 1, pages(2) - 1, now);
    assert_eq!(refused, Err(Errno::ENOMEM));
    f.mem.uncharge(free - PAGE_SIZE);
    f.store(shared, 5).unwrap();
    let mut byte = [0];
    f.tmpfs.read(&f.mem, inode, 0, &mut byte).unwrap();
    assert_eq!(byte, [5]);
    assert_eq!((f.load(shared), f.load(shared + 1)), (Ok(5), Ok(1)));
}
