//! Tests of the memory file system as a value.

use kvmlet_abi::linux::fcntl::{F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE};
use std::collections::BTreeMap;

use kvmlet_mem::PendingFlush;
use proptest::prelude::*;

use super::*;

const ATTR: NewAttr = NewAttr {
    mode: 0o644,
    uid: 1,
    gid: 1,
    now: FileTime { sec: 1, nsec: 0 },
};
const NOW: FileTime = FileTime { sec: 2, nsec: 0 };

fn new() -> (TmpFs, GuestMemory) {
    (
        TmpFs::new(FileTime::default()),
        GuestMemory::new(64 << 20).unwrap(),
    )
}

fn file(fs: &mut TmpFs, memory: &mut GuestMemory, dir: InodeId, name: &[u8]) -> InodeId {
    fs.create(memory, dir, name, &NewBody::File(F_SEAL_SEAL), ATTR)
        .unwrap()
}

fn dir(fs: &mut TmpFs, memory: &mut GuestMemory, at: InodeId, name: &[u8]) -> InodeId {
    fs.create(memory, at, name, &NewBody::Dir, ATTR).unwrap()
}

#[test]
fn an_open_file_outlives_its_name() {
    let (mut fs, mut memory) = new();
    let empty = memory.used_bytes();
    let id = file(&mut fs, &mut memory, TmpFs::ROOT, b"a");
    fs.open_ref(id);
    fs.write(&mut memory, id, 5000, b"late", NOW).unwrap();
    fs.unlink(&mut memory, TmpFs::ROOT, b"a", NOW).unwrap();
    let mut buf = [1; 8];
    assert_eq!(fs.read(&memory, id, 4998, &mut buf), Ok(6));
    assert_eq!(&buf[..6], b"\0\0late");
    fs.map_ref(id, MapKind::ReadOnly);
    fs.close_ref(&mut memory, id);
    assert!(fs.get(id).is_ok());
    fs.map_unref(&mut memory, id, MapKind::ReadOnly);
    assert_eq!(fs.get(id).err(), Some(Errno::ENOENT));
    assert_eq!(memory.used_bytes(), empty);
}

#[test]
fn links_and_counts() {
    let (mut fs, mut memory) = new();
    let d = dir(&mut fs, &mut memory, TmpFs::ROOT, b"d");
    let id = file(&mut fs, &mut memory, d, b"a");
    fs.link(&mut memory, TmpFs::ROOT, b"b", id, NOW).unwrap();
    assert_eq!(fs.attr(id).unwrap().nlink, 2);
    assert_eq!(fs.attr(TmpFs::ROOT).unwrap().nlink, 3);
    assert_eq!(
        fs.link(&mut memory, TmpFs::ROOT, b"c", d, NOW),
        Err(Errno::EPERM)
    );
    assert_eq!(
        fs.rmdir(&mut memory, TmpFs::ROOT, b"d", NOW),
        Err(Errno::ENOTEMPTY)
    );
    assert_eq!(
        fs.unlink(&mut memory, TmpFs::ROOT, b"d", NOW),
        Err(Errno::EISDIR)
    );
    fs.unlink(&mut memory, d, b"a", NOW).unwrap();
    assert_eq!(fs.attr(id).unwrap().nlink, 1);
    fs.rmdir(&mut memory, TmpFs::ROOT, b"d", NOW).unwrap();
    assert_eq!(fs.attr(TmpFs::ROOT).unwrap().nlink, 2);
}

#[test]
fn renames() {
    let (mut fs, mut memory) = new();
    let root = TmpFs::ROOT;
    let a = dir(&mut fs, &mut memory, root, b"a");
    let b = dir(&mut fs, &mut memory, a, b"b");
    let f = file(&mut fs, &mut memory, root, b"f");
    let replace = Exchange::Replace;
    assert_eq!(
        fs.rename(&mut memory, (root, b"a"), (b, b"x"), replace, NOW),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        fs.rename(&mut memory, (root, b"f"), (root, b"a"), replace, NOW),
        Err(Errno::EISDIR)
    );
    assert_eq!(
        fs.rename(&mut memory, (root, b"a"), (root, b"f"), replace, NOW),
        Err(Errno::ENOTDIR)
    );
    fs.rename(&mut memory, (a, b"b"), (root, b"b2"), replace, NOW)
        .unwrap();
    assert_eq!(fs.path_of(b).unwrap(), b"/tmp/b2");
    assert_eq!(fs.attr(a).unwrap().nlink, 2);
    assert_eq!(fs.attr(root).unwrap().nlink, 4);
    fs.rename(&mut memory, (root, b"f"), (b, b"f"), replace, NOW)
        .unwrap();
    assert_eq!(
        fs.rename(&mut memory, (root, b"a"), (root, b"b2"), replace, NOW),
        Err(Errno::ENOTEMPTY)
    );
    fs.rename(&mut memory, (root, b"a"), (b, b"f"), Exchange::Swap, NOW)
        .unwrap();
    assert_eq!(fs.lookup(root, b"a"), Ok(f));
    assert_eq!(fs.path_of(a).unwrap(), b"/tmp/b2/f");
    assert_eq!(fs.attr(root).unwrap().nlink, 3);
    assert_eq!(fs.attr(b).unwrap().nlink, 3);
    fs.pin(b).unwrap();
    assert_eq!(
        fs.rename(&mut memory, (root, b"b2"), (root, b"c"), replace, NOW),
        Err(Errno::EBUSY)
    );
}

#[test]
fn a_listing_goes_on_where_it_stopped() {
    let (mut fs, mut memory) = new();
    for name in [b"a", b"b", b"c", b"d"] {
        file(&mut fs, &mut memory, TmpFs::ROOT, name);
    }
    let names = |fs: &TmpFs, from| -> Vec<(u64, Vec<u8>)> {
        let dir = fs.get(TmpFs::ROOT).unwrap().dir().unwrap();
        dir.entries_from(from)
            .map(|(at, name, _)| (at, name.to_vec()))
            .collect()
    };
    let first = names(&fs, 0);
    fs.unlink(&mut memory, TmpFs::ROOT, b"b", NOW).unwrap();
    file(&mut fs, &mut memory, TmpFs::ROOT, b"0");
    let rest: Vec<Vec<u8>> = names(&fs, first[1].0 + 1)
        .into_iter()
        .map(|(_, name)| name)
        .collect();
    assert_eq!(rest, [b"c", b"d", b"0"]);
}

#[test]
fn the_memory_limit_is_no_space() {
    let mut memory = GuestMemory::new(2 << 20).unwrap();
    let mut fs = TmpFs::new(FileTime::default());
    let id = file(&mut fs, &mut memory, TmpFs::ROOT, b"a");
    let block = vec![7u8; 64 << 10];
    let mut written = 0u64;
    let error = loop {
        match fs.write(&mut memory, id, written, &block, NOW) {
            Ok((count, _)) => written += count as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(error, Errno::ENOSPC);
    assert_eq!(fs.size(id), Ok(written));
    assert_eq!(
        fs.allocate(&mut memory, id, (0, 4 << 20), KeepSize::No, NOW),
        Err(Errno::ENOSPC)
    );
    assert_eq!(fs.size(id), Ok(written));
    // Names cost too: they do not grow the host's memory without bound.
    let mut names = 0u32;
    while fs
        .create(
            &mut memory,
            TmpFs::ROOT,
            &names.to_le_bytes(),
            &NewBody::Dir,
            ATTR,
        )
        .is_ok()
    {
        names += 1;
        assert!(names < 10_000);
    }
    fs.set_size(&mut memory, id, 0, NOW).unwrap();
    memory.flush_discharged(&PendingFlush::All);
    assert!(fs.write(&mut memory, id, 0, &block, NOW).is_ok());
}

#[test]
fn seals() {
    let (mut fs, mut memory) = new();
    let id = fs.create_unnamed(&mut memory, 0, ATTR).unwrap();
    fs.write(&mut memory, id, 0, b"12345", NOW).unwrap();
    let seal = |fs: &mut TmpFs, seals| fs.get_mut(id).unwrap().file_mut().unwrap().seals = seals;
    seal(&mut fs, F_SEAL_GROW);
    assert_eq!(
        fs.write(&mut memory, id, 3, b"xyz", NOW).map(|done| done.0),
        Ok(2)
    );
    assert_eq!(fs.set_size(&mut memory, id, 6, NOW), Err(Errno::EPERM));
    seal(&mut fs, F_SEAL_SHRINK);
    assert_eq!(fs.set_size(&mut memory, id, 4, NOW), Err(Errno::EPERM));
    seal(&mut fs, F_SEAL_WRITE);
    assert_eq!(fs.write(&mut memory, id, 0, b"x", NOW), Err(Errno::EPERM));
    assert_eq!(
        fs.punch_hole(&mut memory, id, 0, 4096, NOW),
        Err(Errno::EPERM)
    );
}

#[test]
fn data_and_holes() {
    let (mut fs, mut memory) = new();
    let id = file(&mut fs, &mut memory, TmpFs::ROOT, b"a");
    fs.write(&mut memory, id, 8192, b"x", NOW).unwrap();
    fs.set_size(&mut memory, id, 20_000, NOW).unwrap();
    assert_eq!(fs.seek(id, 0, Seek::Data), Ok(8192));
    assert_eq!(fs.seek(id, 0, Seek::Hole), Ok(0));
    assert_eq!(fs.seek(id, 8200, Seek::Data), Ok(8200));
    assert_eq!(fs.seek(id, 8200, Seek::Hole), Ok(12_288));
    assert_eq!(fs.seek(id, 12_288, Seek::Data), Err(Errno::ENXIO));
    assert_eq!(fs.seek(id, 20_000, Seek::Hole), Err(Errno::ENXIO));
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, usize, u8),
    Size(u64),
    Punch(u64, u64),
    Allocate(u64, u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0u64..40_000, 1usize..9000, any::<u8>())
            .prop_map(|(at, len, byte)| Op::Write(at, len, byte)),
        (0u64..40_000).prop_map(Op::Size),
        (0u64..40_000, 1u64..20_000).prop_map(|(at, len)| Op::Punch(at, len)),
        (0u64..40_000, 1u64..20_000).prop_map(|(at, len)| Op::Allocate(at, len)),
    ]
}

proptest! {
    #[test]
    fn contents_agree_with_a_byte_vector(ops in proptest::collection::vec(op(), 1..40)) {
        let (mut fs, mut memory) = new();
        let empty = memory.used_bytes();
        let id = file(&mut fs, &mut memory, TmpFs::ROOT, b"a");
        let mut model: Vec<u8> = Vec::new();
        for op in ops {
            match op {
                Op::Write(at, len, byte) => {
                    fs.write(&mut memory, id, at, &vec![byte; len], NOW).unwrap();
                    let end = at as usize + len;
                    if model.len() < end {
                        model.resize(end, 0);
                    }
                    model[at as usize..end].fill(byte);
                }
                Op::Size(size) => {
                    fs.set_size(&mut memory, id, size, NOW).unwrap();
                    model.resize(size as usize, 0);
                }
                Op::Punch(at, len) => {
                    fs.punch_hole(&mut memory, id, at, at + len, NOW).unwrap();
                    let (from, to) = (model.len().min(at as usize), model.len().min((at + len) as usize));
                    model[from..to].fill(0);
                }
                Op::Allocate(at, len) => {
                    fs.allocate(&mut memory, id, (at, at + len), KeepSize::No, NOW).unwrap();
                    let end = (at + len) as usize;
                    if model.len() < end {
                        model.resize(end, 0);
                    }
                }
            }
            prop_assert_eq!(fs.size(id), Ok(model.len() as u64));
            let mut all = vec![9u8; model.len() + 10];
            prop_assert_eq!(fs.read(&memory, id, 0, &mut all), Ok(model.len()));
            prop_assert_eq!(&all[..model.len()], &model[..]);
        }
        fs.unlink(&mut memory, TmpFs::ROOT, b"a", NOW).unwrap();
        prop_assert_eq!(memory.used_bytes(), empty);
    }

    /// Random creations, removals and renames against a map from path to kind.
    #[test]
    fn the_tree_agrees_with_a_map_of_paths(ops in proptest::collection::vec((0u8..4, 0usize..6, 0usize..6, 0usize..3), 1..80)) {
        let (mut fs, mut memory) = new();
        let empty = memory.used_bytes();
        // Directories by slot; slot 0 is the root.
        let mut dirs = vec![Some(TmpFs::ROOT); 1];
        dirs.resize(6, None);
        let names: [&[u8]; 3] = [b"x", b"y", b"z"];
        let mut model: BTreeMap<(InodeId, &[u8]), InodeId> = BTreeMap::new();
        for (what, one, two, name) in ops {
            let (Some(at), name) = (dirs[one], names[name]) else { continue };
            match what {
                0 => {
                    let made = fs.create(&mut memory, at, name, &NewBody::Dir, ATTR);
                    match made {
                        Ok(id) => {
                            prop_assert!(model.insert((at, name), id).is_none());
                            fs.open_ref(id);
                            if let Some(slot) = dirs.iter_mut().find(|slot| slot.is_none()) {
                                *slot = Some(id);
                            }
                        }
                        Err(Errno::EEXIST) => prop_assert!(model.contains_key(&(at, name))),
                        Err(Errno::ENOENT) => prop_assert_eq!(fs.attr(at).unwrap().nlink, 0),
                        Err(other) => prop_assert!(false, "{:?}", other),
                    }
                }
                1 => match fs.rmdir(&mut memory, at, name, NOW) {
                    Ok(()) => {
                        let id = model.remove(&(at, name)).unwrap();
                        prop_assert!(!model.keys().any(|(dir, _)| *dir == id));
                    }
                    Err(Errno::ENOENT) => prop_assert!(!model.contains_key(&(at, name))),
                    Err(Errno::ENOTEMPTY) => {
                        let id = model[&(at, name)];
                        prop_assert!(model.keys().any(|(dir, _)| *dir == id));
                    }
                    Err(other) => prop_assert!(false, "{:?}", other),
                },
                _ => {
                    let (Some(to), to_name) = (dirs[two], names[two % 3]) else { continue };
                    let how = if what == 2 { Exchange::Replace } else { Exchange::Swap };
                    let done = fs.rename(&mut memory, (at, name), (to, to_name), how, NOW);
                    if done.is_ok() && (at, name) != (to, to_name) {
                        let source = model.remove(&(at, name)).unwrap();
                        let target = model.insert((to, to_name), source);
                        if let (Exchange::Swap, Some(target)) = (how, target) {
                            model.insert((at, name), target);
                        }
                    }
                }
            }
            for ((dir, name), id) in &model {
                prop_assert_eq!(fs.lookup(*dir, name), Ok(*id));
                prop_assert!(fs.path_of(*id).is_ok() || fs.attr(*dir).unwrap().nlink == 0);
                let below = model.keys().filter(|(parent, _)| parent == id).count() as u64;
                prop_assert_eq!(fs.attr(*id).unwrap().nlink, 2 + below);
            }
        }
        fs.free_all(&mut memory);
        prop_assert!(memory.used_bytes() >= empty);
    }
}
