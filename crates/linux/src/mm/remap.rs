//! mremap(2).

use bitflags::bitflags;
use kvmlet_abi::addr::page_align_up;
use kvmlet_abi::layout::{USER_END, USER_START};
use kvmlet_abi::{Errno, Gva, HUGE_PAGE_SIZE, PAGE_SIZE};
use kvmlet_mem::{Leaf, MemError, PageSize};

use super::MAX_MAP_COUNT;
use super::space::{Space, errno};
use super::vma::{Backing, FileBacking, Low2G, Vma, VmaFlags};
use crate::budget::Failure;
use crate::cx::Cx;

bitflags! {
    /// Flags of mremap(2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct RemapFlags: u32 {
        /// MREMAP_MAYMOVE
        const MAYMOVE = 1;
        /// MREMAP_FIXED
        const FIXED = 2;
        /// MREMAP_DONTUNMAP
        const DONTUNMAP = 4;
    }
}

/// Arguments of mremap(2), as the program gave them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemapRequest {
    /// Old address.
    pub addr: u64,
    /// Old length in bytes; 0 maps shared memory a second time.
    pub old_len_bytes: u64,
    /// New length in bytes.
    pub new_len_bytes: u64,
    /// MREMAP_*.
    pub flags: u32,
    /// New address, for MREMAP_FIXED (a hint for MREMAP_DONTUNMAP).
    pub new_addr: u64,
}

/// mremap(2): answers the new address.
///
/// # Errors
/// As the man page has them.
pub fn remap(cx: &mut Cx<'_>, request: &RemapRequest) -> Result<u64, Errno> {
    Space::of(cx)?.remap(request)
}

/// The fate of the old range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Old {
    /// It is unmapped.
    Unmap,
    /// It stays mapped and loses its pages (MREMAP_DONTUNMAP).
    Empty,
    /// It stays as it is: the same shared memory is mapped twice.
    Keep,
}

impl Space<'_> {
    /// See [`remap`].
    ///
    /// # Errors
    /// See [`remap`].
    pub fn remap(&mut self, request: &RemapRequest) -> Result<u64, Errno> {
        let RemapRequest {
            addr,
            old_len_bytes,
            new_len_bytes,
            new_addr,
            ..
        } = *request;
        let flags = RemapFlags::from_bits(request.flags).ok_or(Errno::EINVAL)?;
        let must_move = flags.intersects(RemapFlags::FIXED | RemapFlags::DONTUNMAP);
        if must_move && !flags.contains(RemapFlags::MAYMOVE)
            || flags.contains(RemapFlags::DONTUNMAP) && old_len_bytes != new_len_bytes
            || !Gva(addr).is_page_aligned()
        {
            return Err(Errno::EINVAL);
        }
        let old_len = page_align_up(old_len_bytes).ok_or(Errno::EINVAL)?;
        let new_len = page_align_up(new_len_bytes)
            .filter(|&len| len != 0)
            .ok_or(Errno::EINVAL)?;
        let vma = self.mm.find(addr).ok_or(Errno::EFAULT)?.clone();
        let old_end = addr.checked_add(old_len).ok_or(Errno::EINVAL)?;
        if vma.flags.contains(VmaFlags::SEALED) || self.mm.any_sealed(addr, old_end) {
            return Err(Errno::EPERM);
        }
        if must_move {
            return self.remap_to(addr, old_len, new_len, new_addr, flags);
        }
        if old_len >= new_len {
            if old_len > new_len {
                self.unmap(addr.saturating_add(new_len), old_end)?;
            }
            return Ok(addr);
        }
        self.check_resize(&vma, addr, old_len, new_len)?;
        let new_end = addr.checked_add(new_len).ok_or(Errno::EINVAL)?;
        let room = old_len != 0
            && old_end == vma.end
            && new_end <= USER_END.0
            && self
                .mm
                .next_start(old_end)
                .is_none_or(|next| new_end <= next.gap_start());
        if room {
            self.extend(vma, new_end)?;
            self.populate_locked_tail(addr, old_end, new_end);
            return Ok(addr);
        }
        if !flags.contains(RemapFlags::MAYMOVE) {
            return Err(Errno::ENOMEM);
        }
        let target = self
            .mm
            .free_range(0, new_len, Low2G::No)
            .ok_or(Errno::ENOMEM)?;
        self.move_range(addr, old_len, target, new_len, Old::Unmap)
    }

    /// MREMAP_FIXED and MREMAP_DONTUNMAP (mremap_to in mm/mremap.c).
    fn remap_to(
        &mut self,
        addr: u64,
        old_len: u64,
        new_len: u64,
        new_addr: u64,
        flags: RemapFlags,
    ) -> Result<u64, Errno> {
        if !Gva(new_addr).is_page_aligned()
            || new_len > USER_END.0
            || new_addr > USER_END.0 - new_len
        {
            return Err(Errno::EINVAL);
        }
        let fixed = flags.contains(RemapFlags::FIXED);
        let (old_end, new_end) = (
            addr.saturating_add(old_len),
            new_addr.saturating_add(new_len),
        );
        if old_end > new_addr && new_end > addr {
            return Err(Errno::EINVAL);
        }
        if self.mm.vmas.len() >= MAX_MAP_COUNT - 5 {
            return Err(Errno::ENOMEM);
        }
        if fixed {
            if new_addr < USER_START.0 || self.mm.any_sealed(new_addr, new_end) {
                return Err(Errno::EPERM);
            }
            self.unmap(new_addr, new_end)?;
        }
        let mut kept_len = old_len;
        if old_len > new_len {
            self.unmap(addr.saturating_add(new_len), old_end)?;
            kept_len = new_len;
        }
        let vma = self.mm.find(addr).ok_or(Errno::EFAULT)?.clone();
        self.check_resize(&vma, addr, kept_len, new_len)?;
        let dont_unmap = flags.contains(RemapFlags::DONTUNMAP);
        if dont_unmap {
            self.check_address_space(new_len)?;
        }
        let target = if fixed {
            new_addr
        } else {
            self.mm
                .free_range(new_addr, new_len, Low2G::No)
                .ok_or(Errno::ENOMEM)?
        };
        let old = if dont_unmap { Old::Empty } else { Old::Unmap };
        self.move_range(addr, kept_len, target, new_len, old)
    }

    /// Checks that a part of a VMA may get a new length (vma_to_resize).
    fn check_resize(&self, vma: &Vma, addr: u64, old_len: u64, new_len: u64) -> Result<(), Errno> {
        if old_len == 0 && !vma.is_shared() {
            return Err(Errno::EINVAL);
        }
        if old_len > vma.end - addr {
            return Err(Errno::EFAULT);
        }
        if new_len <= old_len {
            return Ok(());
        }
        if matches!(vma.backing, Backing::Special(_)) {
            return Err(Errno::EFAULT);
        }
        let more = new_len - old_len;
        let locked = vma.flags.contains(VmaFlags::LOCKED);
        if locked && self.mm.locked_bytes().saturating_add(more) > self.limits.locked {
            return Err(Errno::EAGAIN);
        }
        self.check_address_space(more)?;
        if vma.is_data() {
            self.check_data(more)?;
            if !vma.flags.contains(VmaFlags::NORESERVE) {
                self.check_overcommit(new_len)?;
            }
        }
        Ok(())
    }

    /// Makes a VMA longer where it is; the space above it is free.
    fn extend(&mut self, vma: Vma, new_end: u64) -> Result<(), Errno> {
        let mut longer = Vma {
            end: new_end,
            ..vma.clone()
        };
        if let Backing::File(file) = vma.backing {
            self.cut_windows(vma.start, vma.end)?;
            longer.backing = Backing::File(self.longer_window(&longer, file, vma.len_bytes())?);
            self.drop_file_leaves(&vma)?;
            self.drop_window(file, vma.len_bytes());
        }
        self.take(vma.start);
        self.insert(longer);
        Ok(())
    }

    /// A window for a file VMA that has grown, with the private pages of the old one.
    fn longer_window(
        &mut self,
        longer: &Vma,
        file: FileBacking,
        old_len: u64,
    ) -> Result<FileBacking, Errno> {
        let mut window = self.open_window(longer, file.host, file.offset)?;
        if !file.charged {
            return Ok(window);
        }
        if !window.charged {
            if self.mem.charge(longer.len_bytes()).is_err() {
                self.drop_window(window, longer.len_bytes());
                return Err(Errno::ENOMEM);
            }
            window.charged = true;
        }
        if let Err(error) = self.copy_written(file, window, old_len) {
            self.drop_window(window, longer.len_bytes());
            return Err(error);
        }
        window.has_hidden = true;
        Ok(window)
    }

    /// Copies the pages that differ from one window to the other: those that the program has written. Pages past
    /// the end of the file cannot be read, and hold nothing.
    pub(super) fn copy_written(
        &mut self,
        from: FileBacking,
        to: FileBacking,
        len: u64,
    ) -> Result<(), Errno> {
        let (Some(from), Some(to)) = (from.window, to.window) else {
            return Ok(());
        };
        let mut old = [0; PAGE_SIZE as usize];
        let mut new = [0; PAGE_SIZE as usize];
        let mut delta = 0;
        while delta < len {
            match self.mem.read(from.wrapping_add(delta), &mut old) {
                Ok(()) => {}
                Err(MemError::FileFault(_)) => return Ok(()),
                Err(error) => return Err(errno(error)),
            }
            let target = to.wrapping_add(delta);
            self.mem.read(target, &mut new).map_err(errno)?;
            if old != new {
                self.mem.write(target, &old).map_err(errno)?;
            }
            delta += PAGE_SIZE;
        }
        Ok(())
    }

    /// Removes the leaves of a file VMA that show its window; anonymous copies stay.
    pub(super) fn drop_file_leaves(&mut self, vma: &Vma) -> Result<(), Errno> {
        let mut shown = Vec::new();
        let (start, len) = (Gva(vma.start), vma.len_bytes());
        let mem = &*self.mem;
        self.tables
            .for_each_leaf(mem, start, len, |gva, leaf| {
                if mem.is_file_backed(leaf.gpa) {
                    shown.push(gva);
                }
            })
            .map_err(errno)?;
        for gva in shown {
            self.zap(gva.0, gva.0 + PAGE_SIZE)?;
        }
        Ok(())
    }

    /// Moves `[addr, addr + old_len)` of one VMA to `target`, where nothing is mapped (move_vma).
    fn move_range(
        &mut self,
        addr: u64,
        old_len: u64,
        target: u64,
        new_len: u64,
        old: Old,
    ) -> Result<u64, Errno> {
        self.check_count(3)?;
        self.cut_windows(addr, addr.saturating_add(old_len))?;
        self.retire_trampolines(addr, addr.saturating_add(old_len))?;
        self.undo_trampolines(addr, addr.saturating_add(old_len))?;
        let vma = self.mm.find(addr).ok_or(Errno::EFAULT)?.clone();
        let old = if old_len == 0 { Old::Keep } else { old };
        let part = Vma {
            backing: vma.backing.advanced(addr - vma.start),
            start: addr,
            end: addr + old_len,
            ..vma
        };
        let mut moved = Vma {
            start: target,
            end: target.saturating_add(new_len),
            ..part.clone()
        };
        // A window of its own for whichever side cannot take over the old one.
        let mut old_backing = part.backing;
        if let Backing::File(file) = part.backing {
            match old {
                Old::Keep => {
                    moved.backing =
                        Backing::File(self.open_window(&moved, file.host, file.offset)?);
                }
                Old::Empty => {
                    old_backing = Backing::File(self.open_window(&part, file.host, file.offset)?);
                }
                Old::Unmap if new_len > old_len => {
                    moved.backing = Backing::File(self.longer_window(&moved, file, old_len)?);
                }
                Old::Unmap => {}
            }
        }
        if old != Old::Keep
            && let Err(error) = self.move_leaves(&part, &moved)
        {
            self.undo_windows(&part, old_backing, &moved);
            return Err(error);
        }
        self.retain(&moved);
        match old {
            Old::Keep => {}
            Old::Unmap => {
                // The boundaries were paid for by check_count.
                self.detach(&part);
                if let Backing::File(file) = part.backing
                    && moved.backing != part.backing
                {
                    self.drop_window(file, old_len);
                }
            }
            Old::Empty => {
                let end = part.end;
                self.update(addr, end, |vma| {
                    vma.backing = old_backing;
                    vma.flags.remove(VmaFlags::LOCKED | VmaFlags::LOCK_ON_FAULT);
                })?;
            }
        }
        self.insert(moved);
        self.populate_locked_tail(target, target + old_len, target.saturating_add(new_len));
        Ok(target)
    }

    /// Gives up windows opened for a move that failed.
    fn undo_windows(&mut self, part: &Vma, old_backing: Backing, moved: &Vma) {
        if let Backing::File(file) = old_backing
            && old_backing != part.backing
        {
            self.drop_window(file, part.len_bytes());
        }
        if let Backing::File(file) = moved.backing
            && moved.backing != part.backing
        {
            self.drop_window(file, moved.len_bytes());
        }
    }

    /// Takes a part of a VMA, whose leaves are gone, out of the map; its backing lives on elsewhere.
    fn detach(&mut self, part: &Vma) {
        self.cut(part.start);
        self.cut(part.end);
        self.take(part.start);
        self.release(part);
    }

    /// Moves leaves from one range to another, so that a failure changes nothing. Leaves of a window
    /// that the new VMA does not show are dropped.
    fn move_leaves(&mut self, from: &Vma, to: &Vma) -> Result<(), Errno> {
        let (start, len) = (Gva(from.start), from.len_bytes());
        // Cuts 2 MiB pages that lie across the ends. What mprotect(2) has given already may be given here.
        self.protect_leaves(from, from.pte()).map_err(errno)?;
        let same_backing = from.backing == to.backing;
        let mut leaves: Vec<(Gva, Leaf)> = Vec::new();
        let mem = &*self.mem;
        self.tables
            .for_each_leaf(mem, start, len, |gva, leaf| {
                if same_backing || !mem.is_file_backed(leaf.gpa) {
                    leaves.push((gva, leaf));
                }
            })
            .map_err(errno)?;
        for (done, (gva, leaf)) in leaves.iter().enumerate() {
            let target = Gva(gva.0 - from.start + to.start);
            if let Err(error) = self.map_leaf(target, *leaf) {
                for (gva, leaf) in leaves.iter().take(done) {
                    let target = Gva(gva.0 - from.start + to.start);
                    // Just mapped here, in whole leaves: nothing to split.
                    let _ =
                        self.tables
                            .unmap_range(self.mem, target, leaf.size.bytes(), |_, _, _| {});
                }
                return Err(errno(error));
            }
        }
        // The frames now belong to the new leaves. Nothing is left to split, so this cannot fail.
        self.tables
            .unmap_range(self.mem, start, len, |_, _, _| {})
            .map_err(errno)
    }

    /// Maps a leaf's frame or block at another address.
    fn map_leaf(&mut self, target: Gva, leaf: Leaf) -> Result<(), MemError> {
        let huge = leaf.size == PageSize::Huge;
        if huge && target.is_huge_aligned() && self.tables.can_map_huge(self.mem, target) {
            self.tables
                .map(self.mem, target, leaf.gpa, PageSize::Huge, leaf.flags)?;
            return Ok(());
        }
        let pages = leaf.size.bytes() / PAGE_SIZE;
        debug_assert!(!huge || pages == HUGE_PAGE_SIZE / PAGE_SIZE);
        self.tables
            .map_range(self.mem, target, leaf.gpa, pages, leaf.flags)
    }

    fn populate_locked_tail(&mut self, addr: u64, from: u64, to: u64) {
        let locked = self.mm.find(addr).is_some_and(|vma| {
            vma.flags.contains(VmaFlags::LOCKED) && !vma.flags.contains(VmaFlags::LOCK_ON_FAULT)
        });
        if locked && from < to {
            let _ = self.populate_in_turns(from, to, Failure::Ignored);
        }
    }
}
