//! Frames, limits and checked access.

#![expect(clippy::disallowed_methods, reason = "tests read the host's accounts")]

use std::collections::BTreeSet;

use kvmlet_abi::{Gpa, HUGE_PAGE_SIZE, PAGE_SIZE};
use kvmlet_mem::{GuestMemory, MemError, OutOfMemory, PendingFlush};

const MIB: u64 = 1 << 20;
const FRAMES_PER_BLOCK: u64 = HUGE_PAGE_SIZE / PAGE_SIZE;

fn memory(limit_bytes: u64) -> GuestMemory {
    GuestMemory::new(limit_bytes).unwrap()
}

fn all_zero(mem: &GuestMemory, gpa: Gpa, len_bytes: u64) -> bool {
    let mut bytes = vec![1; len_bytes as usize];
    mem.read(gpa, &mut bytes).unwrap();
    bytes.iter().all(|&byte| byte == 0)
}

#[test]
fn slots_are_congruent_disjoint_and_announced_once() {
    let mut mem = memory(512 * MIB);
    let first = mem.take_new_slots();
    assert_eq!(first.len(), 2, "tables and the first memory slot");
    assert!(mem.take_new_slots().is_empty());
    while mem.alloc_huge().is_ok() {}
    let more = mem.take_new_slots();
    assert!(!more.is_empty());
    let slots = mem.slots().to_vec();
    let announced: Vec<_> = [first, more]
        .concat()
        .iter()
        .map(|slot| *slot.spec())
        .collect();
    assert_eq!(slots, announced);
    for (place, slot) in slots.iter().enumerate() {
        assert_eq!(slot.id.0 as usize, place);
        assert_eq!(slot.gpa.0 % HUGE_PAGE_SIZE, 0);
        assert_eq!(slot.host_addr as u64 % HUGE_PAGE_SIZE, 0);
        assert_eq!(mem.host_addr(slot.gpa), Some(slot.host_addr));
        let end = slot.gpa.wrapping_add(slot.len_bytes);
        assert!(
            slots
                .iter()
                .all(|other| other.gpa <= slot.gpa || other.gpa >= end)
        );
    }
    assert_eq!(mem.table_slots().count(), 1);
}

#[test]
fn the_limit_is_exact_and_freed_memory_counts_again() {
    let pages = 1000;
    let mut mem = memory(pages * PAGE_SIZE);
    let frames: Vec<Gpa> = (0..pages).map(|_| mem.alloc_frame().unwrap()).collect();
    assert_eq!(frames.iter().collect::<BTreeSet<_>>().len(), frames.len());
    assert_eq!(mem.used_bytes(), mem.limit_bytes());
    assert_eq!(mem.alloc_frame(), Err(OutOfMemory::Limit));
    assert_eq!(mem.alloc_table_frame(), Err(OutOfMemory::Limit));
    assert_eq!(mem.alloc_huge(), Err(OutOfMemory::Limit));
    assert_eq!(mem.charge(1), Err(OutOfMemory::Limit));
    assert_eq!(mem.charge(u64::MAX), Err(OutOfMemory::Limit));
    assert_eq!(mem.alloc_copy(frames[0]), Err(OutOfMemory::Limit.into()));
    mem.free_frame(frames[0]);
    mem.charge(PAGE_SIZE).unwrap();
    assert_eq!(mem.alloc_frame(), Err(OutOfMemory::Limit));
    mem.uncharge(PAGE_SIZE);
    for frame in &frames[1..] {
        mem.free_frame(*frame);
    }
    assert_eq!(mem.used_bytes(), 0);
    assert_eq!(mem.peak_bytes(), mem.limit_bytes());
}

#[test]
fn a_limit_of_zero_allows_nothing() {
    let mut mem = memory(0);
    assert_eq!(mem.alloc_frame(), Err(OutOfMemory::Limit));
    assert_eq!(mem.alloc_table_frame(), Err(OutOfMemory::Limit));
}

#[test]
fn freed_frames_wait_for_the_flush_and_come_back_zeroed() {
    let mut mem = memory(64 * MIB);
    let frame = mem.alloc_frame().unwrap();
    mem.write(frame, b"secret").unwrap();
    mem.free_frame(frame);
    assert!(mem.has_quarantine());
    let others: BTreeSet<Gpa> = (0..2 * FRAMES_PER_BLOCK)
        .map(|_| mem.alloc_frame().unwrap())
        .collect();
    assert!(!others.contains(&frame));
    mem.flush_discharged(&PendingFlush::None);
    assert!(!mem.has_quarantine());
    let again: Vec<Gpa> = (0..FRAMES_PER_BLOCK)
        .map(|_| mem.alloc_frame().unwrap())
        .collect();
    assert!(again.contains(&frame));
    assert!(all_zero(&mem, frame, PAGE_SIZE));
}

#[test]
fn table_frames_wait_for_a_full_flush() {
    let mut mem = memory(16 * MIB);
    let frame = mem.alloc_table_frame().unwrap();
    mem.free_frame(frame);
    mem.flush_discharged(&PendingFlush::None);
    assert_eq!(mem.table_quarantine_bytes(), PAGE_SIZE);
    for _ in 0..2 * FRAMES_PER_BLOCK {
        assert_ne!(mem.alloc_table_frame().unwrap(), frame);
    }
    mem.flush_discharged(&PendingFlush::All);
    assert_eq!(mem.table_quarantine_bytes(), 0);
    assert_eq!(mem.alloc_table_frame().unwrap(), frame);
}

#[test]
fn huge_blocks_are_aligned_zeroed_and_coalesce_from_frames() {
    let mut mem = memory(64 * MIB);
    let mut blocks = Vec::new();
    while let Ok(block) = mem.alloc_huge() {
        assert!(block.is_huge_aligned());
        mem.write(block.wrapping_add(HUGE_PAGE_SIZE - 8), &[0xff; 8])
            .unwrap();
        blocks.push(block);
    }
    assert_eq!(blocks.len() as u64, 64 * MIB / HUGE_PAGE_SIZE);
    // One block in base frames: free memory of the right amount, but not in one piece until the last
    // frame of it is free.
    let block = blocks.pop().unwrap();
    for page in 0..FRAMES_PER_BLOCK {
        mem.free_frame(block.wrapping_add(page * PAGE_SIZE));
    }
    for block in blocks {
        mem.free_huge(block);
    }
    assert_eq!(mem.used_bytes(), 0);
    mem.flush_discharged(&PendingFlush::None);
    let slots = mem.slots().len();
    let mut count = 0;
    while let Ok(block) = mem.alloc_huge() {
        assert!(all_zero(&mem, block, HUGE_PAGE_SIZE));
        count += 1;
    }
    assert_eq!(count, 64 * MIB / HUGE_PAGE_SIZE);
    assert_eq!(mem.slots().len(), slots, "the same memory was used again");
}

/// Resident bytes of this process's mapping that contains `addr` (proc(5), smaps).
fn resident_bytes(addr: usize) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().unwrap_or_default();
        if let Some((start, end)) = range.split_once('-') {
            let start = usize::from_str_radix(start, 16).unwrap();
            let end = usize::from_str_radix(end, 16).unwrap();
            inside = (start..end).contains(&addr);
        } else if inside && line.starts_with("Rss:") {
            let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
            return kib * 1024;
        }
    }
    panic!("{addr:#x} is not mapped");
}

#[test]
fn free_blocks_go_back_to_the_host() {
    let mut mem = memory(64 * MIB);
    let mut blocks = Vec::new();
    for _ in 0..24 {
        let block = mem.alloc_huge().unwrap();
        for page in 0..FRAMES_PER_BLOCK {
            mem.write(block.wrapping_add(page * PAGE_SIZE), &[1])
                .unwrap();
        }
        blocks.push(block);
    }
    let slot = mem.slots()[1].host_addr;
    assert!(resident_bytes(slot) >= 48 * MIB);
    for block in blocks {
        mem.free_huge(block);
    }
    mem.flush_discharged(&PendingFlush::None);
    let left = resident_bytes(slot);
    assert!(left <= 12 * MIB, "{left} bytes still resident");
}

#[test]
fn one_frame_in_each_block_does_not_multiply_host_memory() {
    let limit = 64 * MIB;
    let mut mem = memory(limit);
    // Keep one base frame of every block that can be had, give the rest back, repeat.
    for _ in 0..2000 {
        let Ok(block) = mem.alloc_huge() else { break };
        for page in 1..FRAMES_PER_BLOCK {
            mem.free_frame(block.wrapping_add(page * PAGE_SIZE));
        }
        mem.flush_discharged(&PendingFlush::None);
    }
    let ram: u64 = mem.slots().iter().map(|slot| slot.len_bytes).sum();
    assert!(ram <= 2 * limit, "{ram} bytes of slots");
    // Base frames up to the limit can still be had.
    while mem.alloc_frame().is_ok() {}
    assert_eq!(mem.used_bytes(), limit);
}

#[test]
fn runs_are_consecutive_and_bounded() {
    let mut mem = memory(20 * PAGE_SIZE);
    let run = mem.alloc_run(16).unwrap();
    assert_eq!(run.pages, 16);
    assert_eq!(mem.used_bytes(), 16 * PAGE_SIZE);
    let rest = mem.alloc_run(u64::MAX).unwrap();
    assert_eq!(rest.pages, 4, "no further than the limit");
    assert_eq!(rest.gpa, run.gpa.wrapping_add(16 * PAGE_SIZE));
    assert_eq!(mem.alloc_run(1), Err(OutOfMemory::Limit));
    let mut mem = memory(64 * MIB);
    assert_eq!(mem.alloc_run(u64::MAX).unwrap().pages, FRAMES_PER_BLOCK);
    assert_eq!(mem.alloc_run(0).unwrap().pages, 1);
}

#[test]
fn references_keep_frames_and_blocks() {
    let mut mem = memory(64 * MIB);
    let frame = mem.alloc_frame().unwrap();
    assert_eq!(mem.frame_refs(frame), 1);
    mem.get_frame(frame);
    mem.get_frame(frame);
    assert_eq!(mem.frame_refs(frame), 3);
    mem.free_frame(frame);
    mem.free_frame(frame);
    assert_eq!((mem.frame_refs(frame), mem.used_bytes()), (1, PAGE_SIZE));
    mem.free_frame(frame);
    assert_eq!((mem.frame_refs(frame), mem.used_bytes()), (0, 0));

    let block = mem.alloc_huge().unwrap();
    mem.get_huge(block);
    // Dividing a shared block hands its references to every frame.
    mem.free_frame(block.wrapping_add(PAGE_SIZE));
    assert_eq!(mem.frame_refs(block), 2);
    assert_eq!(mem.frame_refs(block.wrapping_add(PAGE_SIZE)), 1);
    assert_eq!(mem.used_bytes(), HUGE_PAGE_SIZE);
    for page in (0..FRAMES_PER_BLOCK).filter(|&page| page != 1) {
        mem.free_frame(block.wrapping_add(page * PAGE_SIZE));
    }
    mem.free_huge(block);
    assert_eq!(mem.used_bytes(), 0);
    mem.flush_discharged(&PendingFlush::None);
    assert_eq!(mem.alloc_huge().unwrap(), block);
    assert_eq!(mem.frame_refs(block), 1, "old counts are gone");
}

#[test]
fn access_outside_the_slots_is_an_error() {
    let mut mem = memory(MIB);
    let slot = mem.slots()[1];
    let end = slot.gpa.wrapping_add(slot.len_bytes);
    let mut bytes = [0; 16];
    let bad = [
        Gpa(0),
        Gpa(0xfee0_0000),
        end,
        end.wrapping_add(64 * MIB),
        Gpa(u64::MAX),
        Gpa(u64::MAX - 7),
        end.wrapping_add(0u64.wrapping_sub(8)),
    ];
    for gpa in bad {
        let outside = MemError::Outside { gpa, len_bytes: 16 };
        assert_eq!(mem.read(gpa, &mut bytes), Err(outside));
        assert_eq!(mem.write(gpa, &bytes), Err(outside));
        assert_eq!(mem.zero(gpa, 16), Err(outside));
        assert!(!mem.is_file_backed(gpa));
    }
    assert_eq!(
        mem.zero(slot.gpa, u64::MAX),
        Err(MemError::Outside {
            gpa: slot.gpa,
            len_bytes: u64::MAX
        })
    );
    for gpa in [Gpa(0), end, Gpa(!4095)] {
        assert!(mem.load_u32(gpa).is_err());
        assert!(mem.compare_exchange_u32(gpa, 0, 1).is_err());
        assert!(mem.copy_frame(gpa, slot.gpa).is_err());
        assert!(mem.copy_frame(slot.gpa, gpa).is_err());
        assert_eq!(mem.host_addr(gpa), None);
        assert_eq!(mem.frame_refs(gpa), 0);
        mem.free_frame(gpa);
        mem.free_huge(gpa);
        mem.get_frame(gpa);
    }
}

#[test]
fn values_words_and_frames_are_copied() {
    let mut mem = memory(64 * MIB);
    let a = mem.alloc_frame().unwrap();
    mem.write_value(a.wrapping_add(8), &0x1122_3344_5566_7788_u64)
        .unwrap();
    assert_eq!(
        mem.read_value::<u64>(a.wrapping_add(8)).unwrap(),
        0x1122_3344_5566_7788
    );
    let b = mem.alloc_copy(a.wrapping_add(100)).unwrap();
    assert_eq!(
        mem.read_value::<u32>(b.wrapping_add(8)).unwrap(),
        0x5566_7788
    );
    assert_eq!(mem.load_u32(b.wrapping_add(12)).unwrap(), 0x1122_3344);
    let word = b.wrapping_add(12);
    assert_eq!(
        mem.compare_exchange_u32(word, 7, 9).unwrap(),
        Err(0x1122_3344)
    );
    assert_eq!(
        mem.compare_exchange_u32(word, 0x1122_3344, 9).unwrap(),
        Ok(0x1122_3344)
    );
    assert_eq!(mem.load_u32(word).unwrap(), 9);
    assert_eq!(
        mem.load_u32(b.wrapping_add(2)),
        Err(MemError::Misaligned(b.0 + 2))
    );
    assert_eq!(
        mem.compare_exchange_u32(b.wrapping_add(1), 0, 0),
        Err(MemError::Misaligned(b.0 + 1))
    );
    mem.zero(b, PAGE_SIZE).unwrap();
    assert!(all_zero(&mem, b, PAGE_SIZE));
    assert_eq!(
        mem.load_u32(a.wrapping_add(12)).unwrap(),
        0x1122_3344,
        "the original is untouched"
    );
}
