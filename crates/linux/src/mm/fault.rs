//! Demand mapping: what happens when a program touches a page that has no suitable entry.

use kvmlet_abi::layout::{USER_END, USER_START};
use kvmlet_abi::{Gpa, Gva, HUGE_PAGE_SIZE, PAGE_SIZE};
use kvmlet_mem::{Leaf, MemError, PageSize, PteFlags};

use super::space::Space;
use super::vma::{Backing, FileBacking, Prot, TmpBacking, Vma, VmaFlags};
use super::{
    AROUND_FILE_PAGES, AROUND_LARGE_FROM, AROUND_LARGE_PAGES, AROUND_PAGES, Access, FaultError,
    HUGE_AHEAD, STACK_GUARD_GAP,
};

impl From<MemError> for FaultError {
    fn from(error: MemError) -> Self {
        match error {
            MemError::FileFault(_) => Self::Bus,
            MemError::BeyondUserHalf(_) | MemError::Misaligned(_) => Self::MAPERR,
            _ => Self::OutOfMemory,
        }
    }
}

impl Space<'_> {
    /// See [`super::fault`].
    ///
    /// # Errors
    /// See [`FaultError`].
    pub fn fault(&mut self, gva: Gva, access: Access) -> Result<(), FaultError> {
        if gva.0 >= USER_END.0 {
            return Err(FaultError::MAPERR);
        }
        let vma = match self.mm.find(gva.0) {
            Some(vma) => vma.clone(),
            None => self.grow_stack(gva)?,
        };
        if !vma.prot.allows(access) {
            return Err(FaultError::ACCERR);
        }
        match self.tables.walk(self.mem, gva) {
            Some(leaf) => self.fault_present(&vma, gva.page_down(), leaf, access),
            None => self.fault_absent(&vma, gva.page_down(), access),
        }
    }

    /// The page is there, but its entry may lack a right: the first write to a page of a private
    /// mapping of a memory file. An entry that allows the access means that the fault was spurious.
    fn fault_present(
        &mut self,
        vma: &Vma,
        page: Gva,
        leaf: Leaf,
        access: Access,
    ) -> Result<(), FaultError> {
        let mut wanted = vma.prot.pte();
        if access != Access::Write {
            // A read gives no right to write: the frame may be shared.
            wanted.set(PteFlags::WRITE, leaf.flags.contains(PteFlags::WRITE));
        }
        if leaf.flags == wanted {
            return Ok(());
        }
        let frame = leaf.gpa_of(page);
        if access == Access::Write && self.mem.is_frozen(frame) {
            return self.fault_frozen(vma, page, frame, wanted);
        }
        // The host copies pages of its files: these have no references here.
        if access == Access::Write && !vma.is_shared() && self.mem.frame_refs(frame) > 1 {
            let copy = self.mem.alloc_copy(frame)?;
            return self.replace(page, copy, wanted);
        }
        // The last owner of a 2 MiB page gets all of it back. Where it is cut by the end of the mapping, or where
        // others have a part, only this page.
        let block = page.huge_down();
        let is_whole = leaf.size == PageSize::Huge
            && vma.start <= block.0
            && block.0.saturating_add(HUGE_PAGE_SIZE) <= vma.end
            && !self.mem.is_shared(leaf);
        let (start, len) = match is_whole {
            true => (block, HUGE_PAGE_SIZE),
            false => (page, PAGE_SIZE),
        };
        self.tables.protect_range(self.mem, start, len, wanted)?;
        Ok(())
    }

    /// The first write of a fork to a page that it shares with its snapshot.
    fn fault_frozen(
        &mut self,
        vma: &Vma,
        page: Gva,
        frame: Gpa,
        wanted: PteFlags,
    ) -> Result<(), FaultError> {
        let Backing::Tmp(tmp) = vma.backing else {
            self.tables.copy_frozen(self.mem, page, wanted)?;
            self.tables.copy_following(self.mem, page, Gva(vma.end));
            return Ok(());
        };
        if !vma.is_shared() {
            // Counted: any number of mappings may show one frozen page of a memory file.
            let copy = self.mem.alloc_copy(frame)?;
            return self.replace(page, copy, wanted);
        }
        let index = tmp.offset.saturating_add(page.0 - vma.start) / PAGE_SIZE;
        let frame = self.own_tmp_page(tmp.inode, index)?;
        self.map_shared_frame(page, frame, wanted)
    }

    /// Maps a frame whose reference we hold instead of the present one.
    pub fn replace(&mut self, page: Gva, frame: Gpa, flags: PteFlags) -> Result<(), FaultError> {
        match self
            .tables
            .map(self.mem, page, frame, PageSize::Base, flags)
        {
            Ok(old) => {
                if let Some(old) = old {
                    self.mem.free_leaf(old);
                }
                Ok(())
            }
            Err(error) => {
                self.mem.free_frame(frame);
                Err(error.into())
            }
        }
    }

    fn fault_absent(&mut self, vma: &Vma, page: Gva, access: Access) -> Result<(), FaultError> {
        match vma.backing {
            Backing::Anon => self.fault_anon(vma, page),
            Backing::File(file) => self.fault_file(vma, file, page),
            Backing::Tmp(tmp) => self.fault_tmp(vma, tmp, page, access),
            Backing::Special(first) => {
                let frame = first.wrapping_add(page.0 - vma.start);
                self.map_shared_frame(page, frame, vma.pte())
            }
        }
    }

    // ---- anonymous memory -----------------------------------------------------------------------

    fn fault_anon(&mut self, vma: &Vma, page: Gva) -> Result<(), FaultError> {
        let block = page.huge_down();
        if self.wants_huge(vma, block.0) && self.map_huge(vma, block) {
            self.map_huge_ahead(vma, block);
            return Ok(());
        }
        let large = vma.len_bytes() >= AROUND_LARGE_FROM;
        let pages = if large || vma.flags.contains(VmaFlags::GROWSDOWN) {
            AROUND_LARGE_PAGES
        } else {
            AROUND_PAGES
        };
        // Near the limit only what is touched: memory that was not asked for must not end the run.
        if self.has_plenty() {
            let (start, end) = self.anon_step(vma, page, pages);
            if self.fill(vma, start, end).is_ok() {
                return Ok(());
            }
        }
        if self.tables.walk(self.mem, page).is_none() {
            self.fill(vma, page.0, page.0 + PAGE_SIZE)?;
        }
        Ok(())
    }

    /// Further 2 MiB pages if the one before is in use: memory that is filled in sequence.
    fn map_huge_ahead(&mut self, vma: &Vma, block: Gva) {
        let before = block.0.checked_sub(HUGE_PAGE_SIZE).map(Gva);
        let in_sequence = before.is_some_and(|before| {
            before.0 >= vma.start && self.tables.walk(self.mem, before).is_some()
        });
        if !in_sequence {
            return;
        }
        for index in 1..HUGE_AHEAD {
            let next = block.wrapping_add(index * HUGE_PAGE_SIZE);
            if !self.wants_huge(vma, next.0) || !self.map_huge(vma, next) {
                return;
            }
        }
    }

    /// One 2 MiB page; false if there is no memory for it.
    fn map_huge(&mut self, vma: &Vma, block: Gva) -> bool {
        let Ok(gpa) = self.mem.alloc_huge() else {
            return false;
        };
        let mapped = self
            .tables
            .map(self.mem, block, gpa, PageSize::Huge, vma.pte());
        if mapped.is_err() {
            self.mem.free_huge(gpa);
        }
        mapped.is_ok()
    }

    /// Maps zeroed frames wherever the range has none.
    pub(super) fn fill(&mut self, vma: &Vma, start: u64, end: u64) -> Result<(), FaultError> {
        let mut at = start;
        while at < end {
            let absent = self
                .tables
                .absent_run(self.mem, Gva(at), (end - at) / PAGE_SIZE);
            if absent == 0 {
                at += PAGE_SIZE;
                continue;
            }
            let run = self.mem.alloc_run(absent)?;
            let mapped = self
                .tables
                .map_range(self.mem, Gva(at), run.gpa, run.pages, vma.pte());
            if let Err(error) = mapped {
                for index in 0..run.pages {
                    self.mem.free_frame(run.gpa.wrapping_add(index * PAGE_SIZE));
                }
                return Err(error.into());
            }
            at += run.pages * PAGE_SIZE;
        }
        Ok(())
    }

    // ---- files ----------------------------------------------------------------------------------

    fn fault_file(&mut self, vma: &Vma, file: FileBacking, page: Gva) -> Result<(), FaultError> {
        let in_file = self.file_pages_end(file.host).saturating_sub(file.offset);
        let file_end = vma.start.saturating_add(in_file);
        if page.0 >= file_end {
            return Err(FaultError::Bus);
        }
        let file = match file.window {
            Some(_) => file,
            None => self.open_again(vma, file)?,
        };
        let (start, end) = around(vma, page, AROUND_FILE_PAGES);
        self.map_file_pages(vma, file, start, end.min(file_end))
    }

    /// Gives a VMA of a file that is changed on the host a window in this fork.
    fn open_again(&mut self, vma: &Vma, file: FileBacking) -> Result<FileBacking, FaultError> {
        let opened = self.open_window(vma, file.host, file.offset);
        let opened = opened.map_err(|_| FaultError::Bus)?;
        self.put(Vma {
            backing: Backing::File(opened),
            ..vma.clone()
        });
        Ok(opened)
    }

    /// Maps the pages of a file window wherever the range, which must lie in the file, has none.
    pub(super) fn map_file_pages(
        &mut self,
        vma: &Vma,
        file: FileBacking,
        start: u64,
        end: u64,
    ) -> Result<(), FaultError> {
        let Some(window) = file.window else {
            return Ok(());
        };
        let mut at = start;
        while at < end {
            let absent = self
                .tables
                .absent_run(self.mem, Gva(at), (end - at) / PAGE_SIZE);
            if absent == 0 {
                at += PAGE_SIZE;
                continue;
            }
            let gpa = window.wrapping_add(at - vma.start);
            self.tables
                .map_range(self.mem, Gva(at), gpa, absent, vma.pte())?;
            at += absent * PAGE_SIZE;
        }
        Ok(())
    }

    fn fault_tmp(
        &mut self,
        vma: &Vma,
        tmp: TmpBacking,
        page: Gva,
        access: Access,
    ) -> Result<(), FaultError> {
        let size = self.tmpfs.size(tmp.inode).unwrap_or(0);
        let in_file = size
            .div_ceil(PAGE_SIZE)
            .saturating_mul(PAGE_SIZE)
            .saturating_sub(tmp.offset);
        let file_end = vma.start.saturating_add(in_file);
        if page.0 >= file_end {
            return Err(FaultError::Bus);
        }
        let index = |at: u64| tmp.offset.saturating_add(at - vma.start) / PAGE_SIZE;
        if access == Access::Write && !vma.is_shared() {
            let frame = match self.tmpfs.page_for_read(tmp.inode, index(page.0)) {
                Some(frame) => self.mem.alloc_copy(frame)?,
                None => self.tmpfs.copy_absent(self.mem, tmp.inode, index(page.0))?,
            };
            return self.replace(page, frame, vma.prot.pte());
        }
        let frame = if access == Access::Write {
            self.own_tmp_page(tmp.inode, index(page.0))?
        } else {
            self.tmp_page(tmp.inode, index(page.0))?
        };
        self.map_shared_frame(page, frame, vma.pte())?;
        let (start, end) = around(vma, page, AROUND_PAGES);
        let mut at = start;
        while at < end.min(file_end) {
            if self.tables.walk(self.mem, Gva(at)).is_none()
                && let Some(frame) = self.tmpfs.page_for_read(tmp.inode, index(at))
            {
                self.map_shared_frame(Gva(at), frame, vma.pte())?;
            }
            at += PAGE_SIZE;
        }
        Ok(())
    }

    /// Maps a frame that somebody else owns, with a reference of our own.
    fn map_shared_frame(
        &mut self,
        page: Gva,
        frame: Gpa,
        flags: PteFlags,
    ) -> Result<(), FaultError> {
        self.mem.get_frame(frame);
        self.replace(page, frame, flags)
    }

    /// Makes the page at `page` (present, in a private writable VMA) an anonymous frame of ours. An atomic
    /// update is not possible in a file's page.
    ///
    /// # Errors
    /// See [`FaultError`].
    pub fn privatise(&mut self, page: Gva) -> Result<(), FaultError> {
        let vma = self.mm.find(page.0).ok_or(FaultError::MAPERR)?;
        if vma.is_shared() || !vma.prot.contains(Prot::WRITE) {
            return Err(FaultError::ACCERR);
        }
        let flags = vma.prot.pte();
        let gpa = self
            .tables
            .translate(self.mem, page.page_down())
            .ok_or(FaultError::MAPERR)?;
        let copy = self.mem.alloc_copy(gpa)?;
        self.replace(page.page_down(), copy, flags)
    }

    // ---- the stack ------------------------------------------------------------------------------

    /// Extends the stack above `gva` down to it (expand_downwards in mm/mmap.c).
    fn grow_stack(&mut self, gva: Gva) -> Result<Vma, FaultError> {
        let start = gva.page_down().0;
        let stack = self.mm.next_start(gva.0).ok_or(FaultError::MAPERR)?.clone();
        if !stack.flags.contains(VmaFlags::GROWSDOWN) || start < USER_START.0 {
            return Err(FaultError::MAPERR);
        }
        // A step at a time where there is room for it, as its pages are mapped.
        let step = start & !(AROUND_LARGE_PAGES * PAGE_SIZE - 1);
        let start = if step >= USER_START.0 && self.may_grow_stack(&stack, step) {
            step
        } else if self.may_grow_stack(&stack, start) {
            start
        } else {
            return Err(FaultError::MAPERR);
        };
        let mut vma = stack;
        self.take(vma.start);
        vma.start = start;
        self.put(vma.clone());
        Ok(vma)
    }

    /// True if the limits and what lies below let the stack begin at `start` (acct_stack_growth).
    fn may_grow_stack(&self, stack: &Vma, start: u64) -> bool {
        let blocked = self.mm.prev_start(stack.start).is_some_and(|prev| {
            let gap = if prev.flags.contains(VmaFlags::GROWSDOWN) || prev.prot.is_empty() {
                0
            } else {
                STACK_GUARD_GAP
            };
            start < prev.end.saturating_add(gap)
        });
        let grown = stack.start - start;
        let locked = stack.flags.contains(VmaFlags::LOCKED)
            && self.mm.locked_bytes().saturating_add(grown) > self.limits.locked;
        !blocked
            && !locked
            && stack.end - start <= self.limits.stack
            && self.check_address_space(grown).is_ok()
            && self.check_overcommit(grown).is_ok()
    }
}

/// The aligned block of `pages` (a power of two) around `page`, inside the VMA.
pub(super) fn around(vma: &Vma, page: Gva, pages: u64) -> (u64, u64) {
    let len = pages * PAGE_SIZE;
    debug_assert!(len <= HUGE_PAGE_SIZE, "a block lies under one page table");
    let start = page.0 & !(len - 1);
    (start.max(vma.start), start.saturating_add(len).min(vma.end))
}
