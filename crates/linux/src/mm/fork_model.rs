//! The expectations of `fork_model_tests`: one entry per page of each address space, and the operations on them.

use std::collections::BTreeMap;

use kvmlet_abi::PAGE_SIZE;
use kvmlet_mem::MmId;
use proptest::prelude::*;

use super::*;

/// The window that calls work in: two 2 MiB blocks, so that a mapping of all of it gets huge pages.
pub(super) const BASE: u64 = 0x4000_0000;
pub(super) const PAGES: u64 = 1024;
pub(super) const PROCESSES_MAX: usize = 5;
/// Pages of each memory file at first.
pub(super) const FILE_PAGES: u64 = 12;
pub(super) const FILES: u64 = 2;
pub(super) const SHARED: u32 = 1;
pub(super) const PRIVATE: u32 = 2;
pub(super) const FIXED: u32 = 0x10;
pub(super) const ANONYMOUS: u32 = 0x20;

pub(super) fn addr(page: u64) -> u64 {
    BASE + page * PAGE_SIZE
}

/// A page of a memory file, or of shared anonymous memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct FilePage {
    pub(super) file: u64,
    pub(super) index: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Page {
    pub(super) prot: u32,
    pub(super) file: Option<FilePage>,
    pub(super) shared: bool,
    /// The byte that a private mapping has written.
    pub(super) own: Option<u8>,
    pub(super) dont_fork: bool,
    pub(super) wipe: bool,
}

/// The pages of each address space, and the contents and sizes of files.
#[derive(Clone, Default)]
pub(super) struct Model {
    pub(super) spaces: BTreeMap<MmId, BTreeMap<u64, Page>>,
    pub(super) contents: BTreeMap<FilePage, u8>,
    pub(super) sizes: BTreeMap<u64, u64>,
}

impl Model {
    pub(super) fn access(&self, id: MmId, page: u64, write: bool) -> Result<Page, FaultError> {
        let page = *self.spaces[&id].get(&page).ok_or(FaultError::MAPERR)?;
        if page.prot == 0 || write && page.prot & 2 == 0 {
            return Err(FaultError::ACCERR);
        }
        match page.file {
            Some(FilePage { file, index }) if index >= self.sizes[&file] => Err(FaultError::Bus),
            _ => Ok(page),
        }
    }

    pub(super) fn byte(&self, page: Page) -> u8 {
        let of_file = page.file.and_then(|file| self.contents.get(&file).copied());
        page.own.or(of_file).unwrap_or(0)
    }

    pub(super) fn load(&self, id: MmId, page: u64) -> Result<u8, FaultError> {
        self.access(id, page, false).map(|page| self.byte(page))
    }

    pub(super) fn store(&mut self, id: MmId, at: u64, byte: u8) -> Result<u8, FaultError> {
        let page = self.access(id, at, true)?;
        match page.file {
            Some(file) if page.shared => {
                self.contents.insert(file, byte);
            }
            _ => {
                let pages = self.spaces.get_mut(&id).unwrap();
                pages.get_mut(&at).unwrap().own = Some(byte);
            }
        }
        Ok(byte)
    }

    /// Makes a private page what a write would make it; whether it can be written.
    pub(super) fn populate(&mut self, id: MmId, at: u64) -> bool {
        let Ok(page) = self.access(id, at, true) else {
            return false;
        };
        let byte = self.byte(page);
        page.shared || self.store(id, at, byte).is_ok()
    }

    pub(super) fn fork(&mut self, parent: MmId, child: MmId) {
        let mut pages = self.spaces[&parent].clone();
        pages.retain(|_, page| !page.dont_fork);
        pages
            .values_mut()
            .filter(|page| page.wipe)
            .for_each(|page| page.own = None);
        self.spaces.insert(child, pages);
    }

    pub(super) fn resize(&mut self, file: u64, pages: u64) {
        self.sizes.insert(file, pages);
        self.contents
            .retain(|page, _| page.file != file || page.index < pages);
        for page in self.spaces.values_mut().flat_map(BTreeMap::values_mut) {
            if page
                .file
                .is_some_and(|at| at.file == file && at.index >= pages)
            {
                page.own = None;
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Anon,
    SharedAnon,
    SharedFile(u64),
    PrivateFile(u64),
}

/// Memory that is left for a fork.
#[derive(Clone, Copy, Debug)]
pub(super) enum Room {
    /// So much that small programs are copied.
    Plenty,
    /// So little that nothing is copied.
    Little,
    /// This many frames: it may fail.
    Frames(u64),
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    Map {
        start: u64,
        len: u64,
        prot: u32,
        kind: Kind,
    },
    Unmap {
        start: u64,
        len: u64,
    },
    Protect {
        start: u64,
        len: u64,
        prot: u32,
    },
    DontNeed {
        start: u64,
        len: u64,
    },
    DontFork {
        start: u64,
        len: u64,
    },
    WipeOnFork {
        start: u64,
        len: u64,
    },
    /// madvise(MADV_REMOVE): a hole in the file that is mapped.
    Remove {
        start: u64,
        len: u64,
    },
    PopulateWrite {
        start: u64,
        len: u64,
    },
    /// The program's own access.
    Store {
        page: u64,
        byte: u8,
    },
    Load {
        page: u64,
    },
    /// A system call's access.
    CallStores {
        page: u64,
        byte: u8,
    },
    CallLoads {
        page: u64,
    },
    WriteFile {
        file: u64,
        page: u64,
        byte: u8,
    },
    PunchHole {
        file: u64,
        page: u64,
    },
    Resize {
        file: u64,
        pages: u64,
    },
    Fork(Room),
    Vfork,
    Exec,
    Exit,
    /// The vCPU is kicked before the flush routine has run.
    Kicked,
    Freeze,
    Reset,
}

pub(super) fn range() -> impl Strategy<Value = (u64, u64)> {
    let small = (0..2u64, 0..24u64, 1..20u64)
        .prop_map(|(block, start, len)| (block * (PAGES / 2) + start, len));
    let large = prop_oneof![
        2 => Just((0, PAGES)),
        1 => Just((PAGES / 2, PAGES / 2)),
        1 => Just((0, PAGES / 2)),
    ];
    prop_oneof![4 => small, 1 => large]
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let prot = prop_oneof![6 => Just(3u32), 3 => Just(1), 1 => Just(0)];
    let kind = prop_oneof![
        4 => Just(Kind::Anon),
        1 => Just(Kind::SharedAnon),
        2 => (0..FILES).prop_map(Kind::SharedFile),
        2 => (0..FILES).prop_map(Kind::PrivateFile),
    ];
    let page = (0..2u64, 0..28u64).prop_map(|(block, page)| block * (PAGES / 2) + page);
    let room = prop_oneof![
        3 => Just(Room::Plenty),
        3 => Just(Room::Little),
        1 => (0..40u64).prop_map(Room::Frames),
    ];
    let in_file = (0..FILES, 0..FILE_PAGES);
    let mapping = prop_oneof![
        3 => (range(), prot.clone(), kind)
            .prop_map(|((start, len), prot, kind)| Op::Map { start, len, prot, kind }),
        2 => range().prop_map(|(start, len)| Op::Unmap { start, len }),
        3 => (range(), prot).prop_map(|((start, len), prot)| Op::Protect { start, len, prot }),
        1 => range().prop_map(|(start, len)| Op::DontNeed { start, len }),
        1 => range().prop_map(|(start, len)| Op::DontFork { start, len }),
        1 => range().prop_map(|(start, len)| Op::WipeOnFork { start, len }),
        1 => range().prop_map(|(start, len)| Op::Remove { start, len }),
        1 => range().prop_map(|(start, len)| Op::PopulateWrite { start, len }),
    ];
    let access = prop_oneof![
        8 => (page.clone(), any::<u8>()).prop_map(|(page, byte)| Op::Store { page, byte }),
        6 => page.clone().prop_map(|page| Op::Load { page }),
        1 => (page.clone(), any::<u8>()).prop_map(|(page, byte)| Op::CallStores { page, byte }),
        1 => page.prop_map(|page| Op::CallLoads { page }),
    ];
    let file = prop_oneof![
        2 => (in_file.clone(), any::<u8>())
            .prop_map(|((file, page), byte)| Op::WriteFile { file, page, byte }),
        1 => in_file.clone().prop_map(|(file, page)| Op::PunchHole { file, page }),
        1 => in_file.prop_map(|(file, pages)| Op::Resize { file, pages }),
    ];
    let process = prop_oneof![
        6 => room.prop_map(Op::Fork),
        1 => Just(Op::Vfork),
        2 => Just(Op::Exec),
        3 => Just(Op::Exit),
        1 => Just(Op::Kicked),
        1 => Just(Op::Freeze),
        2 => Just(Op::Reset),
    ];
    prop_oneof![4 => mapping, 8 => access, 2 => file, 5 => process]
}

/// A process by the place in a list of those that live.
pub(super) fn step() -> impl Strategy<Value = (usize, Op)> {
    (0..PROCESSES_MAX, op())
}
