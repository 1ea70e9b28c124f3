//! Tests of files whose pages lie on the host's disk, against files as vectors.

use std::sync::Arc;

use kvmlet_hostfs::Spill;
use proptest::prelude::*;

use super::*;

const ATTR: NewAttr = NewAttr {
    mode: 0o644,
    uid: 1,
    gid: 1,
    now: FileTime { sec: 1, nsec: 0 },
};
const NOW: FileTime = FileTime { sec: 2, nsec: 0 };
const PAGE: usize = PAGE_SIZE as usize;
const MEMORY_BYTES: u64 = 16 << 20;

/// A file system with room for `pages` pages, of which `in_memory` fit into memory's share.
fn with_disk(pages: u64, in_memory: u64) -> (TmpFs, GuestMemory) {
    let mut fs = TmpFs::new(FileTime::default());
    let mut memory = GuestMemory::new(MEMORY_BYTES).unwrap();
    let share = MEMORY_BYTES / 4;
    let taken = share - memory.used_bytes() - in_memory * PAGE_SIZE;
    memory.charge(taken).unwrap();
    fs.set_disk(Disk {
        limit_bytes: pages * PAGE_SIZE,
        spill: Some(Arc::new(Spill::open(b"/tmp").unwrap())),
    });
    (fs, memory)
}

fn file(fs: &mut TmpFs, memory: &mut GuestMemory, name: &[u8]) -> InodeId {
    fs.create(memory, TmpFs::ROOT, name, &NewBody::File(SEAL_SEAL), ATTR)
        .unwrap()
}

fn write(fs: &mut TmpFs, memory: &mut GuestMemory, id: InodeId, offset: usize, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let at = (offset + done) as u64;
        done += fs.write(memory, id, at, &bytes[done..], NOW).unwrap().0;
    }
}

fn contents(fs: &TmpFs, memory: &GuestMemory, id: InodeId) -> Vec<u8> {
    let mut bytes = vec![0xee; fs.size(id).unwrap() as usize];
    assert_eq!(fs.read(memory, id, 0, &mut bytes), Ok(bytes.len()));
    bytes
}

/// Bytes that differ by place and by `seed`.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let byte = |at: usize| (at / 7) as u8 ^ seed.wrapping_mul(37) | 1;
    (0..len).map(byte).collect()
}

#[test]
fn past_its_share_of_memory_a_file_goes_to_the_disk() {
    let (mut fs, mut memory) = with_disk(1000, 10);
    let id = file(&mut fs, &mut memory, b"a");
    let before = memory.used_bytes();
    let bytes = pattern(1, 500 * PAGE + 100);
    write(&mut fs, &mut memory, id, 0, &bytes);
    assert_eq!(contents(&fs, &memory, id), bytes);
    let data = fs.get(id).unwrap().file().unwrap();
    assert!(data.pages.len() <= 10, "{}", data.pages.len());
    assert_eq!(data.pages.len() as u64 + data.spilled.pages(), 501);
    // What is left is the knowledge of where they are.
    assert!(memory.used_bytes() - before <= 10 * PAGE_SIZE + 32 * 256);
    assert_eq!(fs.attr(id).unwrap().blocks, 501 * 8);
    assert_eq!(fs.disk_bytes(), Some((1000 * PAGE_SIZE, 501 * PAGE_SIZE)));
    fs.unlink(&mut memory, TmpFs::ROOT, b"a", NOW).unwrap();
    assert_eq!(fs.disk_bytes(), Some((1000 * PAGE_SIZE, 0)));
}

#[test]
fn there_is_no_more_room_than_the_limit() {
    let (mut fs, mut memory) = with_disk(40, 0);
    let id = file(&mut fs, &mut memory, b"a");
    let bytes = pattern(1, 100 * PAGE);
    let mut done = 0;
    let error = loop {
        match fs.write(&mut memory, id, done as u64, &bytes[done..], NOW) {
            Ok((count, _)) => done += count,
            Err(error) => break error,
        }
    };
    assert_eq!((done, error), (40 * PAGE, Errno::ENOSPC));
    assert_eq!(fs.refused_pages().1, 0);
    assert!(fs.refused_pages().0 > 0);
    // What is there may be written over, and read.
    write(&mut fs, &mut memory, id, 10, b"over");
    assert_eq!(contents(&fs, &memory, id)[10..14], *b"over");
    // A mapping gets a page of the file, and none behind it.
    assert!(fs.page_for_write(&mut memory, id, 3).is_ok());
    let refused = fs.page_for_write(&mut memory, id, 40);
    assert_eq!(refused, Err(NoPage::Room));
    // A shorter file leaves room.
    fs.set_size(&mut memory, id, 10 * PAGE_SIZE, NOW).unwrap();
    assert_eq!(fs.disk_bytes(), Some((40 * PAGE_SIZE, 10 * PAGE_SIZE)));
    let other = file(&mut fs, &mut memory, b"b");
    write(&mut fs, &mut memory, other, 0, &bytes[..30 * PAGE]);
    assert_eq!(contents(&fs, &memory, other), bytes[..30 * PAGE]);
    fs.check_allocation(&mut memory, other, (0, 30 * PAGE_SIZE))
        .unwrap();
    let refused = fs.check_allocation(&mut memory, other, (0, 31 * PAGE_SIZE));
    assert_eq!(refused, Err(Errno::ENOSPC));
}

#[test]
fn shared_memory_does_not_count() {
    let (mut fs, mut memory) = with_disk(1, 0);
    let attr = |name: &[u8], fs: &mut TmpFs, memory: &mut GuestMemory| {
        let made = fs.create(memory, TmpFs::SHM, name, &NewBody::File(SEAL_SEAL), ATTR);
        made.unwrap()
    };
    let shm = attr(b"shm", &mut fs, &mut memory);
    let memfd = fs.create_unnamed(&mut memory, 0, ATTR).unwrap();
    for id in [shm, memfd] {
        write(&mut fs, &mut memory, id, 0, &pattern(1, 20 * PAGE));
        let data = fs.get(id).unwrap().file().unwrap();
        assert_eq!((data.pages.len(), data.spilled.pages()), (20, 0));
    }
    assert_eq!(fs.disk_bytes(), Some((PAGE_SIZE, 0)));
}

#[test]
fn forks_have_the_disk_in_common_until_they_write() {
    let (mut frozen, mut memory) = with_disk(1000, 0);
    let id = file(&mut frozen, &mut memory, b"a");
    let bytes = pattern(1, 50 * PAGE);
    write(&mut frozen, &mut memory, id, 0, &bytes);
    let mut one = frozen.clone();
    let mut two = frozen.clone();
    assert_eq!(one, frozen);
    write(&mut one, &mut memory, id, 5 * PAGE + 10, b"one");
    write(&mut two, &mut memory, id, 5 * PAGE + 10, b"two");
    one.set_size(&mut memory, id, 20 * PAGE_SIZE + 5, NOW)
        .unwrap();
    one.punch_hole(&mut memory, id, 0, 2 * PAGE_SIZE, NOW)
        .unwrap();
    two.unlink(&mut memory, TmpFs::ROOT, b"a", NOW).unwrap();
    let other = file(&mut two, &mut memory, b"b");
    write(&mut two, &mut memory, other, 0, &pattern(9, 60 * PAGE));
    assert_eq!(contents(&frozen, &memory, id), bytes);
    let mut wanted = bytes[..20 * PAGE + 5].to_vec();
    wanted[5 * PAGE + 10..5 * PAGE + 13].copy_from_slice(b"one");
    wanted[..2 * PAGE].fill(0);
    assert_eq!(contents(&one, &memory, id), wanted);
    assert_eq!(contents(&two, &memory, other), pattern(9, 60 * PAGE));
    // A reset: the fork's value goes, and another clone takes its place.
    drop(one);
    let mut one = frozen.clone();
    assert_eq!(contents(&one, &memory, id), bytes);
    // The last who has it changes it in place.
    drop((frozen, two));
    write(&mut one, &mut memory, id, 0, b"mine");
    assert_eq!(contents(&one, &memory, id)[..4], *b"mine");
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, usize, usize, u8),
    SetSize(usize, usize),
    Punch(usize, usize, usize),
    Allocate(usize, usize, usize),
    Map(usize, usize),
    Remove(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let file = 0usize..3;
    // Ends of pages and of extents are where mistakes are.
    let at = || {
        prop_oneof![
            0usize..40 * PAGE,
            (0usize..40).prop_map(|page| page * PAGE),
            (0usize..3).prop_map(|extent| extent * 16 * PAGE)
        ]
    };
    prop_oneof![
        6 => (file.clone(), at(), 1usize..5 * PAGE, any::<u8>())
            .prop_map(|(file, at, len, seed)| Op::Write(file, at, len, seed)),
        2 => (file.clone(), at()).prop_map(|(file, size)| Op::SetSize(file, size)),
        2 => (file.clone(), at(), 1usize..20 * PAGE)
            .prop_map(|(file, at, len)| Op::Punch(file, at, len)),
        1 => (file.clone(), at(), 1usize..5 * PAGE)
            .prop_map(|(file, at, len)| Op::Allocate(file, at, len)),
        2 => (file.clone(), 0usize..40).prop_map(|(file, page)| Op::Map(file, page)),
        1 => file.prop_map(Op::Remove),
    ]
}

proptest! {
    #[test]
    fn files_agree_with_vectors(ops in proptest::collection::vec(op(), 1..60), in_memory in 0u64..12) {
        let (mut fs, mut memory) = with_disk(1000, in_memory);
        let names: [&[u8]; 3] = [b"x", b"y", b"z"];
        let mut ids = names.map(|name| file(&mut fs, &mut memory, name));
        let mut model = [const { Vec::<u8>::new() }; 3];
        let empty = memory.used_bytes();
        for op in ops {
            match op {
                Op::Write(at_file, at, len, seed) => {
                    let bytes = pattern(seed, len);
                    write(&mut fs, &mut memory, ids[at_file], at, &bytes);
                    let model = &mut model[at_file];
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].copy_from_slice(&bytes);
                }
                Op::SetSize(at_file, size) => {
                    fs.set_size(&mut memory, ids[at_file], size as u64, NOW).unwrap();
                    model[at_file].resize(size, 0);
                }
                Op::Punch(at_file, at, len) => {
                    let range = (at as u64, (at + len) as u64);
                    fs.punch_hole(&mut memory, ids[at_file], range.0, range.1, NOW).unwrap();
                    let model = &mut model[at_file];
                    let end = model.len().min(at + len);
                    if at < end {
                        model[at..end].fill(0);
                    }
                }
                Op::Allocate(at_file, at, len) => {
                    let range = (at as u64, (at + len) as u64);
                    fs.check_allocation(&mut memory, ids[at_file], range).unwrap();
                    fs.allocate(&mut memory, ids[at_file], range, KeepSize::No, NOW).unwrap();
                    let model = &mut model[at_file];
                    model.resize(model.len().max(at + len), 0);
                }
                Op::Map(at_file, page) => {
                    let own = fs.page_for_write(&mut memory, ids[at_file], page as u64).unwrap();
                    let at = page * PAGE;
                    let model = &mut model[at_file];
                    // What a program writes behind the end is seen by nobody else: none is written here.
                    if model.len() > at {
                        memory.write(own.frame, b"mapped!").unwrap();
                        let end = model.len().min(at + 7);
                        model[at..end].copy_from_slice(&b"mapped!"[..end - at]);
                        if end < at + 7 {
                            memory.write(own.frame.wrapping_add((end - at) as u64), &[0; 7][..at + 7 - end]).unwrap();
                        }
                    }
                }
                Op::Remove(at_file) => {
                    fs.unlink(&mut memory, TmpFs::ROOT, names[at_file], NOW).unwrap();
                    ids[at_file] = file(&mut fs, &mut memory, names[at_file]);
                    model[at_file].clear();
                }
            }
            let mut pages = 0;
            for (id, model) in ids.iter().zip(&model) {
                prop_assert!(contents(&fs, &memory, *id) == *model);
                let data = fs.get(*id).unwrap().file().unwrap();
                let twice = data.spilled.from(0).filter(|page| data.pages.contains_key(page));
                prop_assert_eq!(twice.count(), 0);
                prop_assert_eq!(data.spilled.from(0).count() as u64, data.spilled.pages());
                pages += data.pages.len() as u64 + data.spilled.pages();
                let hole = fs.seek(*id, 0, Seek::Hole);
                let first_hole = (0..).find(|page| !data.own_pages().any(|own| own == *page)).unwrap();
                if !model.is_empty() {
                    prop_assert_eq!(hole, Ok((first_hole * PAGE_SIZE).min(model.len() as u64)));
                }
            }
            prop_assert_eq!(fs.disk_bytes(), Some((1000 * PAGE_SIZE, pages * PAGE_SIZE)));
        }
        for name in names {
            fs.unlink(&mut memory, TmpFs::ROOT, name, NOW).unwrap();
        }
        prop_assert_eq!(fs.disk_bytes(), Some((1000 * PAGE_SIZE, 0)));
        prop_assert!(memory.used_bytes() <= empty);
    }
}
