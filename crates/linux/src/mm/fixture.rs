//! An address space on plain host memory, used through its page tables as a CPU would.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvmlet_abi::layout::USER_END;
use kvmlet_abi::{Errno, Gva};
use kvmlet_hostfs::HostKind;
use kvmlet_hostfs::attr::FileTime;
use kvmlet_mem::{GuestMemory, MmId, PageSize, PageTables, PendingFlush, PteFlags, Spaces};
use kvmlet_policy::Policy;

use super::space::Limits;
use super::*;
use crate::creds::Creds;
use crate::fd::OpenFlags;
use crate::host::Host;
use crate::ipc::shm::Segments;
use crate::kernel::Pid;
use crate::rlimit::{INFINITY, Rlimit};
use crate::vfs::tmpfs::{InodeId, NewAttr, Stale, TmpFs};

/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;

/// An address space and all it needs.
pub struct Fixture {
    pub mm: Mm,
    pub mem: GuestMemory,
    pub spaces: Spaces,
    pub host: Host,
    pub tmpfs: TmpFs,
    pub segments: Segments,
    pub limits: Limits,
    pub empty_bytes: u64,
    stale_files: Vec<(InodeId, Stale)>,
}

impl Fixture {
    pub fn new(limit_bytes: u64) -> Self {
        let mut mem = GuestMemory::new(limit_bytes).unwrap();
        let spaces = Spaces::new(PageTables::new(&mut mem).unwrap());
        let policy = Policy::with_working_directory(b"/usr").unwrap();
        Self {
            mm: Mm::new(AslrSeed::default(), 8 << 20),
            empty_bytes: mem.used_bytes(),
            stale_files: Vec::new(),
            mem,
            spaces,
            host: Host::new(policy, 0).unwrap(),
            tmpfs: TmpFs::new(FileTime::from_ns(0)),
            segments: Segments::default(),
            limits: Limits {
                address_space: INFINITY,
                data: Rlimit {
                    soft: INFINITY,
                    hard: INFINITY,
                },
                stack: 8 * MIB,
                locked: 8 * MIB,
            },
        }
    }

    /// A fork of it, as of now.
    pub fn fork(self) -> Self {
        let Self { mem, spaces, .. } = self;
        let charged_bytes = mem.used_bytes();
        let (mem, spaces) = mem.freeze(spaces, charged_bytes).unwrap().fork().unwrap();
        Self {
            mem,
            spaces,
            ..self
        }
    }

    pub fn space(&mut self) -> Space<'_> {
        Space {
            mm: &mut self.mm,
            mem: &mut self.mem,
            tables: self.spaces.get_mut(MmId::FIRST).unwrap(),
            host: &mut self.host,
            tmpfs: &mut self.tmpfs,
            segments: &mut self.segments,
            pid: Pid::FIRST,
            limits: self.limits,
            creds: Arc::new(Creds::of_user(0)),
            stale_files: &mut self.stale_files,
        }
    }

    pub fn tables(&self) -> &PageTables {
        self.spaces.get(MmId::FIRST).unwrap()
    }

    pub fn take_pending(&mut self) -> PendingFlush {
        self.spaces.take_pending(MmId::FIRST)
    }

    pub fn map(&mut self, addr: u64, len: u64, prot: u32, flags: u32) -> Result<u64, Errno> {
        self.map_at(addr, len, prot, flags | 0x20, None, 0)
    }

    pub fn map_at(
        &mut self,
        addr: u64,
        len_bytes: u64,
        prot: u32,
        flags: u32,
        file: Option<MapFile>,
        offset: u64,
    ) -> Result<u64, Errno> {
        self.space().mmap(&MapRequest {
            addr,
            len_bytes,
            prot,
            flags,
            file,
            offset,
        })
    }

    /// One access as a CPU makes it: the entry decides, and a fault is handled once.
    pub fn touch(&mut self, addr: u64, access: Access) -> Result<(), FaultError> {
        for _ in 0..2 {
            let leaf = self.tables().walk(&self.mem, Gva(addr));
            let allowed = leaf.is_some_and(|leaf| {
                leaf.flags.contains(PteFlags::USER)
                    && match access {
                        Access::Read => true,
                        Access::Write => leaf.flags.contains(PteFlags::WRITE),
                        Access::Exec => !leaf.flags.contains(PteFlags::NX),
                    }
            });
            if allowed {
                return Ok(());
            }
            self.space().fault(Gva(addr), access)?;
        }
        panic!("the fault at {addr:#x} was not resolved");
    }

    pub fn store(&mut self, addr: u64, byte: u8) -> Result<(), FaultError> {
        self.touch(addr, Access::Write)?;
        let tables = self.spaces.get(MmId::FIRST).unwrap();
        let outcome = tables.copy_out(&mut self.mem, Gva(addr), &[byte]);
        assert_eq!(outcome.stop, None);
        Ok(())
    }

    pub fn load(&mut self, addr: u64) -> Result<u8, FaultError> {
        self.touch(addr, Access::Read)?;
        let mut byte = [0];
        let outcome = self.tables().copy_in(&self.mem, Gva(addr), &mut byte);
        if outcome.stop.is_some() {
            return Err(FaultError::Bus);
        }
        Ok(byte[0])
    }

    /// Every leaf lies in a VMA and grants no more than it.
    pub fn check(&self) {
        let mut leaves = Vec::new();
        self.tables()
            .for_each_leaf(&self.mem, Gva(0), USER_END.0, |gva, leaf| {
                leaves.push((gva, leaf))
            })
            .unwrap();
        for (gva, leaf) in leaves {
            let vma = self
                .mm
                .find(gva.0)
                .unwrap_or_else(|| panic!("{gva:?} has no VMA"));
            assert!(
                gva.0 + leaf.size.bytes() <= vma.end,
                "{gva:?} reaches past its VMA"
            );
            let most = vma.prot.pte();
            assert_eq!(
                leaf.flags.contains(PteFlags::USER),
                most.contains(PteFlags::USER)
            );
            assert_eq!(
                leaf.flags.contains(PteFlags::NX),
                most.contains(PteFlags::NX)
            );
            assert!(
                most.contains(leaf.flags - PteFlags::NX),
                "{gva:?} grants too much"
            );
        }
        let vmas: Vec<&Vma> = self.mm.vmas.values().collect();
        for pair in vmas.windows(2) {
            assert!(pair[0].end <= pair[1].start, "VMAs overlap");
            assert!(!pair[0].joins(pair[1]), "neighbours are not joined");
        }
    }

    /// Unmaps everything: then nothing may be in use.
    pub fn check_no_leak(&mut self) {
        self.space().forget_all();
        let (first, other) = (MmId::FIRST, MmId(2));
        self.spaces.create(&mut self.mem, other).unwrap();
        let release = |mem: &mut GuestMemory, _, leaf| mem.free_leaf(leaf);
        self.spaces.end(&mut self.mem, first, release);
        self.spaces.all_flushed(&mut self.mem);
        self.mem.flush_discharged(&PendingFlush::All);
        self.tmpfs.free_all(&mut self.mem);
        assert!(self.mm.vmas.is_empty());
        assert_eq!(self.spaces.get(other).unwrap().table_frames(), 1);
    }

    pub fn huge_leaves(&self) -> usize {
        let mut count = 0;
        self.tables()
            .for_each_leaf(&self.mem, Gva(0), USER_END.0, |_, leaf| {
                count += usize::from(leaf.size == PageSize::Huge);
            })
            .unwrap();
        count
    }

    /// A host file with these contents, open for reading.
    pub fn host_file(&mut self, contents: &[u8]) -> (std::fs::File, MapFile) {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(fd);
        file.write_all(contents).unwrap();
        let host = self
            .host
            .insert(OwnedFd::from(file.try_clone().unwrap()), HostKind::File);
        let map = MapFile {
            source: Source::Host(host),
            flags: OpenFlags::empty(),
            seals: 0,
            name: Arc::from(&b"/usr/file"[..]),
        };
        (file, map)
    }

    pub fn tmp_file(&mut self, contents: &[u8]) -> MapFile {
        let now = FileTime::from_ns(0);
        let attr = NewAttr {
            mode: 0o600,
            uid: 0,
            gid: 0,
            now,
        };
        let inode = self.tmpfs.create_unnamed(&mut self.mem, 0, attr).unwrap();
        self.tmpfs
            .write(&mut self.mem, inode, 0, contents, now)
            .unwrap();
        MapFile {
            source: Source::Tmp(inode),
            flags: OpenFlags::RDWR,
            seals: 0,
            name: Arc::from(&b"/tmp/file"[..]),
        }
    }
}
