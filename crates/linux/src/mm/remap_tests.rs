//! mremap(2).

use kvmlet_abi::{Errno, Gva, PAGE_SIZE};

use super::fixture::{Fixture, MIB};
use super::*;

const RW: u32 = 3;
const R: u32 = 1;
const PRIVATE: u32 = 2;
const FIXED: u32 = 0x10;

fn pages(count: u64) -> u64 {
    count * PAGE_SIZE
}

pub(super) fn remap(
    f: &mut Fixture,
    addr: u64,
    old: u64,
    new: u64,
    flags: u32,
    to: u64,
) -> Result<u64, Errno> {
    let result = f.space().remap(&RemapRequest {
        addr,
        old_len_bytes: old,
        new_len_bytes: new,
        flags,
        new_addr: to,
    });
    f.check();
    result
}

#[test]
fn mremap_moves_contents() {
    let mut f = Fixture::new(64 * MIB);
    let at = f.map(0x1000_0000, pages(4), RW, PRIVATE | FIXED).unwrap();
    f.store(at + pages(3), 8).unwrap();
    f.map(at + pages(4), pages(1), R, PRIVATE | FIXED).unwrap();
    assert_eq!(
        remap(&mut f, at, pages(4), pages(8), 0, 0),
        Err(Errno::ENOMEM)
    );
    let moved = remap(&mut f, at, pages(4), pages(8), 1, 0).unwrap();
    assert_eq!(f.load(moved + pages(3)), Ok(8));
    assert_eq!(f.load(moved + pages(7)), Ok(0));
    assert_eq!(f.load(at), Err(FaultError::MAPERR));
    let target = 0x2000_0000;
    assert_eq!(
        remap(&mut f, moved + pages(3), pages(1), pages(1), 3, target),
        Ok(target)
    );
    assert_eq!(f.load(target), Ok(8));
    assert_eq!(
        remap(&mut f, target, pages(1), pages(1), 5, 0).map(|_| ()),
        Ok(())
    );
    assert_eq!(
        f.load(target),
        Ok(0),
        "MREMAP_DONTUNMAP leaves empty memory"
    );
    assert_eq!(
        remap(&mut f, target, pages(1), pages(2), 0, 0),
        Ok(target),
        "grows in place"
    );
    assert_eq!(remap(&mut f, target, pages(2), pages(1), 0, 0), Ok(target));
    assert_eq!(f.load(target + pages(1)), Err(FaultError::MAPERR));
    for (flags, old, new, to, errno) in [
        (8, pages(1), pages(1), 0, Errno::EINVAL),
        (2, pages(1), pages(1), 0, Errno::EINVAL),
        (1, pages(1), 0, 0, Errno::EINVAL),
        (1, 0, pages(1), 0, Errno::EINVAL),
        (1, pages(2), pages(3), 0, Errno::EFAULT),
        (3, pages(1), pages(1), target, Errno::EINVAL),
        (3, pages(1), pages(1), 1, Errno::EINVAL),
        (5, pages(1), pages(2), 0, Errno::EINVAL),
        (1, pages(1), u64::MAX, 0, Errno::EINVAL),
        (1, pages(1), 1 << 47, 0, Errno::ENOMEM),
    ] {
        assert_eq!(
            remap(&mut f, target, old, new, flags, to),
            Err(errno),
            "{flags} {old} {new}"
        );
    }
    assert_eq!(
        remap(&mut f, 0x5000_0000, PAGE_SIZE, PAGE_SIZE, 1, 0),
        Err(Errno::EFAULT)
    );
    f.check_no_leak();
    assert_eq!(f.mem.used_bytes(), f.empty_bytes);
}

#[test]
fn mremap_moves_huge_pages() {
    let mut f = Fixture::new(256 * MIB);
    let at = f.map(0, 8 * MIB, RW, PRIVATE).unwrap();
    f.store(at, 1).unwrap();
    f.store(at + 5 * MIB, 2).unwrap();
    assert_eq!(f.huge_leaves(), 2);
    let whole = remap(&mut f, at, 8 * MIB, 8 * MIB, 3, 0x4000_0000).unwrap();
    assert_eq!(f.huge_leaves(), 2);
    let cut = remap(&mut f, whole + PAGE_SIZE, 6 * MIB, 6 * MIB, 3, 0x5000_0000).unwrap();
    assert_eq!(f.load(whole), Ok(1));
    assert_eq!(f.load(cut + 5 * MIB - PAGE_SIZE), Ok(2));
    f.check_no_leak();
    assert_eq!(f.mem.used_bytes(), f.empty_bytes);
}

#[test]
fn mremap_of_a_file_keeps_private_pages() {
    let mut f = Fixture::new(64 * MIB);
    let contents: Vec<u8> = (1..=4)
        .flat_map(|byte| [byte; PAGE_SIZE as usize])
        .collect();
    let (_, file) = f.host_file(&contents);
    let at = f.map_at(0, pages(2), RW, PRIVATE, Some(file), 0).unwrap();
    f.store(at + pages(1), 9).unwrap();
    f.map(at + pages(2), PAGE_SIZE, R, PRIVATE | FIXED).unwrap();
    let moved = remap(&mut f, at, pages(2), pages(3), 1, 0).unwrap();
    let seen = |f: &mut Fixture, at| [0, 1, 2].map(|page| f.load(at + pages(page)).unwrap());
    assert_eq!(seen(&mut f, moved), [1, 9, 3]);
    f.space().munmap(moved + pages(3), PAGE_SIZE).unwrap();
    assert_eq!(
        remap(&mut f, moved, pages(3), pages(4), 0, 0),
        Ok(moved),
        "grows in place"
    );
    assert_eq!(seen(&mut f, moved), [1, 9, 3]);
    assert_eq!(f.load(moved + pages(3)), Ok(4));
    let second = remap(&mut f, moved, pages(4), pages(4), 5, 0).unwrap();
    assert_eq!(seen(&mut f, second), [1, 9, 3]);
    assert_eq!(seen(&mut f, moved), [1, 2, 3], "the file again");
    f.space().privatise(Gva(second)).unwrap();
    assert_eq!(seen(&mut f, second), [1, 9, 3]);
    f.check_no_leak();
    assert_eq!(f.mem.used_bytes(), f.empty_bytes);
}
