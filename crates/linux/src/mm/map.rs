//! mmap(2), munmap(2), mprotect(2) and brk(2).

use std::sync::Arc;

use bitflags::bitflags;
use kvmlet_abi::addr::page_align_up;
use kvmlet_abi::layout::{USER_END, USER_START};
use kvmlet_abi::{Errno, Gva, PAGE_SIZE};
use kvmlet_mem::{MemError, PteFlags};

use super::space::{Space, errno};
use super::vma::{Backing, FileBacking, Low2G, Prot, Vma, VmaFlags};
use super::{Region, Source};
use crate::budget::Failure;
use crate::cx::Cx;
use crate::fd::OpenFlags;
use crate::vfs::tmpfs::{SEAL_FUTURE_WRITE, SEAL_WRITE};

bitflags! {
    /// Flags of mmap(2) beside the mapping type.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct MapFlags: u32 {
        /// MAP_FIXED
        const FIXED = 0x10;
        /// MAP_ANONYMOUS
        const ANONYMOUS = 0x20;
        /// MAP_32BIT
        const LOW_2G = 0x40;
        /// MAP_ABOVE4G: no effect, mappings lie there anyhow
        const ABOVE_4G = 0x80;
        /// MAP_GROWSDOWN
        const GROWSDOWN = 0x100;
        /// MAP_DENYWRITE: ignored since long
        const DENYWRITE = 0x800;
        /// MAP_EXECUTABLE: ignored since long
        const EXECUTABLE = 0x1000;
        /// MAP_LOCKED
        const LOCKED = 0x2000;
        /// MAP_NORESERVE
        const NORESERVE = 0x4000;
        /// MAP_POPULATE
        const POPULATE = 0x8000;
        /// MAP_NONBLOCK
        const NONBLOCK = 0x1_0000;
        /// MAP_STACK: no effect
        const STACK = 0x2_0000;
        /// MAP_HUGETLB
        const HUGETLB = 0x4_0000;
        /// MAP_SYNC
        const SYNC = 0x8_0000;
        /// MAP_FIXED_NOREPLACE
        const FIXED_NOREPLACE = 0x10_0000;
        /// MAP_UNINITIALIZED: ignored with an MMU
        const UNINITIALIZED = 0x400_0000;
    }
}

/// Bits of the flags that hold the mapping type (MAP_TYPE).
pub const MAP_TYPE: u32 = 0xf;
const MAP_SHARED: u32 = 1;
const MAP_PRIVATE: u32 = 2;
const MAP_SHARED_VALIDATE: u32 = 3;
/// Bits that hold log2 of a huge page size.
const HUGE_SIZE_SHIFT: u32 = 26;
const HUGE_SIZE_MASK: u32 = 0x3f;
/// Sizes of huge pages on x86-64, as log2: unspecified, 2 MiB, 1 GiB.
const HUGE_SIZES: [u32; 3] = [0, 21, 30];
/// The flags that MAP_SHARED_VALIDATE accepts (LEGACY_MAP_MASK): those older than it, huge page sizes
/// included.
const VALIDATED: u32 = 0x1f
    | 0x20
    | 0x40
    | 0x80
    | 0x100
    | 0x1800
    | 0x2000
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000
    | 0x4_0000
    | 0x400_0000
    | (21 << HUGE_SIZE_SHIFT)
    | (30 << HUGE_SIZE_SHIFT);

const PROT_SEM: u32 = 8;
const PROT_GROWSDOWN: u32 = 0x0100_0000;
const PROT_GROWSUP: u32 = 0x0200_0000;

/// The file of a mapping.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapFile {
    /// The source of its pages; [`Source::Anon`] for /dev/zero.
    pub source: Source,
    /// The flags that it is open with.
    pub flags: OpenFlags,
    /// F_SEAL_* in force.
    pub seals: u32,
    /// Its path, for /proc/self/maps.
    pub name: Arc<[u8]>,
}

/// Arguments of mmap(2), as the program gave them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapRequest {
    /// Address or hint.
    pub addr: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// PROT_*.
    pub prot: u32,
    /// MAP_*.
    pub flags: u32,
    /// The file, without MAP_ANONYMOUS.
    pub file: Option<MapFile>,
    /// Offset in the file, a multiple of the page size.
    pub offset: u64,
}

/// mmap(2): answers the address.
///
/// # Errors
/// As the man page has them.
pub fn mmap(cx: &mut Cx<'_>, request: &MapRequest) -> Result<u64, Errno> {
    Space::of(cx)?.mmap(request)
}

/// munmap(2)
///
/// # Errors
/// `EINVAL`, `ENOMEM`; `EPERM` for a sealed range.
pub fn munmap(cx: &mut Cx<'_>, addr: u64, len_bytes: u64) -> Result<(), Errno> {
    Space::of(cx)?.munmap(addr, len_bytes)
}

/// mprotect(2)
///
/// # Errors
/// `EINVAL`, `EACCES`, `ENOMEM`; `EPERM` for a sealed range.
pub fn mprotect(cx: &mut Cx<'_>, addr: u64, len_bytes: u64, prot: u32) -> Result<(), Errno> {
    Space::of(cx)?.mprotect(addr, len_bytes, prot)
}

/// brk(2): answers the program break in force, which is the old one if it cannot be moved.
///
/// # Errors
/// `ESRCH` if the calling thread is gone.
pub fn brk(cx: &mut Cx<'_>, addr: u64) -> Result<u64, Errno> {
    Ok(Space::of(cx)?.brk(addr))
}

impl Space<'_> {
    /// See [`mmap`].
    ///
    /// # Errors
    /// See [`mmap`].
    pub fn mmap(&mut self, request: &MapRequest) -> Result<u64, Errno> {
        let flags = MapFlags::from_bits_truncate(request.flags);
        if flags.contains(MapFlags::HUGETLB) {
            self.refuse_huge_tlb(request)?;
        }
        if request.len_bytes == 0 {
            return Err(Errno::EINVAL);
        }
        let len = page_align_up(request.len_bytes).ok_or(Errno::ENOMEM)?;
        if request.file.is_some() && request.offset > (i64::MAX as u64).saturating_sub(len) {
            return Err(Errno::EOVERFLOW);
        }
        self.check_count(1)?;
        let start = self.place(request.addr, len, flags)?;
        let end = start.saturating_add(len);
        let vma_flags = self.map_flags(request, flags, len)?;
        let prot = Prot::from_bits_truncate(request.prot);
        let source = request
            .file
            .as_ref()
            .map_or(Source::Anon, |file| file.source);
        let replaced: u64 = self.mm.parts(start, end).map(|part| part.len_bytes()).sum();
        self.check_address_space(len.saturating_sub(replaced))?;
        let private_write = prot.contains(Prot::WRITE) && !vma_flags.contains(VmaFlags::SHARED);
        if private_write && !vma_flags.contains(VmaFlags::GROWSDOWN) {
            self.check_data(len.saturating_sub(replaced))?;
        }
        let shared_anon = source == Source::Anon && vma_flags.contains(VmaFlags::SHARED);
        if (private_write || shared_anon) && !vma_flags.contains(VmaFlags::NORESERVE) {
            self.check_overcommit(len)?;
        }
        if self.mm.any_sealed(start, end) {
            return Err(Errno::EPERM);
        }
        // Private memory of /dev/zero is anonymous memory with a name.
        let name = request.file.as_ref().map(|file| Arc::clone(&file.name));
        self.map_region(&Region {
            start: Gva(start),
            len_bytes: len,
            prot,
            flags: vma_flags,
            source,
            offset: if source == Source::Anon {
                0
            } else {
                request.offset
            },
            name,
        })?;
        let locked =
            vma_flags.contains(VmaFlags::LOCKED) && !vma_flags.contains(VmaFlags::LOCK_ON_FAULT);
        if locked || flags.contains(MapFlags::POPULATE) && !flags.contains(MapFlags::NONBLOCK) {
            // mmap does not fail if it cannot populate (mmap(2), MAP_LOCKED).
            let _ = self.populate_in_turns(start, end, Failure::Ignored);
        }
        Ok(start)
    }

    /// No huge pages are reserved here: mmap(2) gives ENOMEM for them.
    fn refuse_huge_tlb(&self, request: &MapRequest) -> Result<(), Errno> {
        let size = (request.flags >> HUGE_SIZE_SHIFT) & HUGE_SIZE_MASK;
        if request.file.is_some() || !HUGE_SIZES.contains(&size) {
            return Err(Errno::EINVAL);
        }
        Err(Errno::ENOMEM)
    }

    /// The address that a mapping goes to (get_unmapped_area in mm/mmap.c).
    fn place(&self, addr: u64, len: u64, flags: MapFlags) -> Result<u64, Errno> {
        if !flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE) {
            let hint = page_align_up(addr).unwrap_or(0);
            let low_2g = if flags.contains(MapFlags::LOW_2G) {
                Low2G::Yes
            } else {
                Low2G::No
            };
            return self.mm.free_range(hint, len, low_2g).ok_or(Errno::ENOMEM);
        }
        if len > USER_END.0 || addr > USER_END.0 - len {
            return Err(Errno::ENOMEM);
        }
        if !Gva(addr).is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        if addr < USER_START.0 {
            return Err(Errno::EPERM);
        }
        if flags.contains(MapFlags::FIXED_NOREPLACE) && self.mm.any_in(addr, addr + len) {
            return Err(Errno::EEXIST);
        }
        Ok(addr)
    }

    /// Checks the mapping's type against its file and answers the VMA's flags (do_mmap).
    fn map_flags(
        &self,
        request: &MapRequest,
        flags: MapFlags,
        len: u64,
    ) -> Result<VmaFlags, Errno> {
        let mut vma_flags = self.mm.new_flags | VmaFlags::MAYWRITE;
        if flags.contains(MapFlags::LOCKED) {
            if self.limits.locked == 0 {
                return Err(Errno::EPERM);
            }
            vma_flags |= VmaFlags::LOCKED;
        }
        if vma_flags.contains(VmaFlags::LOCKED)
            && self.mm.locked_bytes().saturating_add(len) > self.limits.locked
        {
            return Err(Errno::EAGAIN);
        }
        vma_flags.set(VmaFlags::NORESERVE, flags.contains(MapFlags::NORESERVE));
        let kind = request.flags & MAP_TYPE;
        let Some(file) = &request.file else {
            match kind {
                MAP_SHARED if flags.contains(MapFlags::GROWSDOWN) => return Err(Errno::EINVAL),
                MAP_SHARED => vma_flags |= VmaFlags::SHARED,
                MAP_PRIVATE => {
                    vma_flags.set(VmaFlags::GROWSDOWN, flags.contains(MapFlags::GROWSDOWN));
                }
                _ => return Err(Errno::EINVAL),
            }
            return Ok(vma_flags);
        };
        let write = request.prot & Prot::WRITE.bits() != 0;
        match kind {
            MAP_SHARED | MAP_SHARED_VALIDATE => {
                if kind == MAP_SHARED_VALIDATE && request.flags & !VALIDATED != 0 {
                    return Err(Errno::EOPNOTSUPP);
                }
                if write && !file.flags.writable() {
                    return Err(Errno::EACCES);
                }
                vma_flags |= VmaFlags::SHARED;
                let sealed = file.seals & (SEAL_WRITE | SEAL_FUTURE_WRITE) != 0;
                if sealed && write {
                    return Err(Errno::EPERM);
                }
                if sealed || !file.flags.writable() {
                    vma_flags.remove(VmaFlags::MAYWRITE);
                }
            }
            MAP_PRIVATE => {}
            _ => return Err(Errno::EINVAL),
        }
        if !file.flags.readable() {
            return Err(Errno::EACCES);
        }
        Ok(vma_flags)
    }

    /// Checks that a mapping may promise that much memory. It must not be more than the sandbox could
    /// ever have, as Linux's heuristic overcommit has it (__vm_enough_memory in mm/util.c). Who asks counts
    /// neither mappings that cannot be written nor those with MAP_NORESERVE.
    ///
    /// # Errors
    /// `ENOMEM` if not.
    pub fn check_overcommit(&self, len: u64) -> Result<(), Errno> {
        if len > self.mem.limit_bytes() {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    /// See [`munmap`].
    ///
    /// # Errors
    /// See [`munmap`].
    pub fn munmap(&mut self, addr: u64, len_bytes: u64) -> Result<(), Errno> {
        let len = page_align_up(len_bytes).unwrap_or(0);
        let outside = addr > USER_END.0 || len_bytes > USER_END.0 - addr;
        if !Gva(addr).is_page_aligned() || len == 0 || outside {
            return Err(Errno::EINVAL);
        }
        let end = addr.saturating_add(len);
        if self.mm.any_sealed(addr, end) {
            return Err(Errno::EPERM);
        }
        self.unmap(addr, end)
    }

    /// See [`mprotect`].
    ///
    /// # Errors
    /// See [`mprotect`].
    pub fn mprotect(&mut self, addr: u64, len_bytes: u64, prot: u32) -> Result<(), Errno> {
        let grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP);
        let prot = prot & !(PROT_GROWSDOWN | PROT_GROWSUP);
        if grows == PROT_GROWSDOWN | PROT_GROWSUP || !Gva(addr).is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        if len_bytes == 0 {
            return Ok(());
        }
        let end = page_align_up(len_bytes)
            .and_then(|len| addr.checked_add(len))
            .ok_or(Errno::ENOMEM)?;
        if prot & !(Prot::all().bits() | PROT_SEM) != 0 {
            return Err(Errno::EINVAL);
        }
        let prot = Prot::from_bits_truncate(prot);
        let first = self.mm.find_from(addr).ok_or(Errno::ENOMEM)?;
        let mut start = addr;
        match grows {
            PROT_GROWSDOWN => {
                if first.start >= end {
                    return Err(Errno::ENOMEM);
                }
                if !first.flags.contains(VmaFlags::GROWSDOWN) {
                    return Err(Errno::EINVAL);
                }
                start = first.start;
            }
            PROT_GROWSUP if first.start > addr => return Err(Errno::ENOMEM),
            PROT_GROWSUP => return Err(Errno::EINVAL),
            _ if first.start > addr => return Err(Errno::ENOMEM),
            _ => {}
        }
        let parts: Vec<Vma> = self.mm.parts(start, end).collect();
        if parts
            .iter()
            .any(|part| part.flags.contains(VmaFlags::SEALED))
        {
            return Err(Errno::EPERM);
        }
        let mut at = start;
        for part in parts {
            if part.start != at {
                return Err(Errno::ENOMEM);
            }
            self.protect_part(&part, prot)?;
            at = part.end;
        }
        if at < end { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Changes the rights of a part of one VMA (mprotect_fixup).
    fn protect_part(&mut self, part: &Vma, prot: Prot) -> Result<(), Errno> {
        if part.prot == prot {
            return Ok(());
        }
        if prot.contains(Prot::WRITE) && !part.flags.contains(VmaFlags::MAYWRITE) {
            return Err(Errno::EACCES);
        }
        self.retire_trampolines(part.start, part.end)?;
        if prot.contains(Prot::WRITE) {
            self.undo_trampolines(part.start, part.end)?;
        }
        let changed = Vma {
            prot,
            ..part.clone()
        };
        let len = part.len_bytes();
        if changed.is_data() && !part.is_data() {
            self.check_data(len)?;
            if !part.flags.contains(VmaFlags::NORESERVE) {
                self.check_overcommit(len)?;
            }
        }
        self.check_count(self.mm.cuts(part.start, part.end))?;
        let charge =
            matches!(part.backing, Backing::File(file) if !file.charged) && changed.is_data();
        if charge {
            self.mem.charge(len).map_err(|_| Errno::ENOMEM)?;
        }
        if charge && let Err(errno) = self.own_window(part) {
            self.mem.uncharge(len);
            return Err(errno);
        }
        let protected = self.protect_leaves(part, changed.pte());
        if let Err(error) = protected {
            if charge {
                self.mem.uncharge(len);
            }
            return Err(errno(error));
        }
        self.update(part.start, part.end, |vma| {
            vma.prot = prot;
            if let Backing::File(file) = vma.backing
                && charge
            {
                vma.backing = Backing::File(FileBacking {
                    charged: true,
                    ..file
                });
            }
        })
    }

    /// Gives the leaves of a part of a VMA these rights, as far as their frames allow it.
    pub(super) fn protect_leaves(&mut self, part: &Vma, flags: PteFlags) -> Result<(), MemError> {
        let (start, len) = (Gva(part.start), part.len_bytes());
        if part.is_shared() {
            self.tables.protect_range(self.mem, start, len, flags)
        } else {
            self.tables
                .protect_private_range(self.mem, start, len, flags)
        }
    }

    /// Gives a file mapping, which is about to become writable, a window that no other address space has.
    fn own_window(&mut self, part: &Vma) -> Result<(), Errno> {
        let Backing::File(file) = part.backing else {
            return Ok(());
        };
        let Some(window) = file.window else {
            return Ok(());
        };
        let pages = (0..part.len_bytes()).step_by(PAGE_SIZE as usize);
        let is_shared = |offset| self.mem.is_shared_window(window.wrapping_add(offset));
        if !pages.into_iter().any(is_shared) {
            return Ok(());
        }
        self.check_count(self.mm.cuts(part.start, part.end))?;
        let opened = self.open_window(part, file.host, file.offset)?;
        // Pages of our own stay: they are what has been written.
        self.drop_file_leaves(part)?;
        self.cut(part.start);
        self.cut(part.end);
        self.drop_window(file, part.len_bytes());
        let vma = Vma {
            backing: Backing::File(FileBacking {
                charged: false,
                ..opened
            }),
            ..part.clone()
        };
        self.put(vma);
        Ok(())
    }

    /// See [`brk`].
    pub fn brk(&mut self, addr: u64) -> u64 {
        let heap = self.mm.brk;
        match self.move_break(addr) {
            Ok(()) => addr,
            Err(_) => heap.end,
        }
    }

    fn move_break(&mut self, addr: u64) -> Result<(), Errno> {
        let heap = self.mm.brk;
        if addr < heap.start {
            return Err(Errno::ENOMEM);
        }
        if addr.saturating_sub(heap.start) > self.limits.data.soft {
            return Err(Errno::ENOMEM);
        }
        let new = page_align_up(addr)
            .filter(|&new| new <= USER_END.0)
            .ok_or(Errno::ENOMEM)?;
        let old = page_align_up(heap.end).ok_or(Errno::ENOMEM)?;
        if new < old {
            if self.mm.any_sealed(new, old) {
                return Err(Errno::EPERM);
            }
            self.unmap(new, old)?;
        } else if new > old {
            self.grow_heap(old, new)?;
        }
        self.mm.brk.end = addr;
        Ok(())
    }

    fn grow_heap(&mut self, old: u64, new: u64) -> Result<(), Errno> {
        let len = new - old;
        // A page is kept free above the heap, as Linux does.
        if self
            .mm
            .find_from(old)
            .is_some_and(|next| new.saturating_add(PAGE_SIZE) > next.gap_start())
        {
            return Err(Errno::ENOMEM);
        }
        self.check_address_space(len)?;
        self.check_data(len)?;
        self.check_overcommit(len)?;
        self.check_count(1)?;
        let flags = self.mm.new_flags | VmaFlags::MAYWRITE;
        let locked = flags.contains(VmaFlags::LOCKED);
        if locked && self.mm.locked_bytes().saturating_add(len) > self.limits.locked {
            return Err(Errno::EAGAIN);
        }
        self.insert(Vma {
            start: old,
            end: new,
            prot: Prot::READ | Prot::WRITE,
            flags,
            backing: Backing::Anon,
            name: None,
        });
        if locked {
            let _ = self.populate_in_turns(old, new, Failure::Ignored);
        }
        self.map_heap_ahead(old, new);
        Ok(())
    }
}
