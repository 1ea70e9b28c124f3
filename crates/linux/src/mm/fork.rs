//! fork(2): a copy of an address space.
//!
//! Small programs are copied at once: a page that is copied later costs an exit for each side that writes it.
//! Of larger ones the pages are shared read-only, and the first write copies one.
//!
//! A small program's next child gets the tables of one that has ended (a spare). What KVM has filled for them stays.

use kvmlet_abi::layout::USER_END;
use kvmlet_abi::{Errno, Gpa, Gva, PAGE_SIZE};
use kvmlet_mem::{FileWindow, GuestMemory, Leaf, MemError, MmId, PageSize, PageTables, PteFlags};

use super::life::end;
use super::space::{Space, errno};
use super::vma::{Backing, Vma, VmaFlags};
use super::{Mapped, Mm};
use crate::cx::Cx;

/// Private pages of a program that is copied at once, at most.
const EAGER_PAGES: u64 = 2048;

/// Makes a copy of the calling process's address space, which no process has yet. What madvise(2) has
/// excluded is left out (MADV_DONTFORK) or empty (MADV_WIPEONFORK); nothing is locked in it.
///
/// # Errors
/// `ENOMEM` at the memory limit: nothing has changed then.
pub fn fork(cx: &mut Cx<'_>) -> Result<MmId, Errno> {
    let parent = cx.process()?.mm;
    let id = MmId(cx.kernel.next_mm);
    let vmas: Vec<Vma> = cx.mm()?.vmas.values().cloned().collect();
    let pairs = Space::of(cx)?.fork_vmas(vmas)?;
    let machine = &mut *cx.machine;
    let (memory, spaces) = (&mut machine.memory, &mut machine.spaces);
    let tables = spaces.get(parent).ok_or(Errno::ESRCH);
    let plan = tables.and_then(|tables| Plan::of(tables, memory, &pairs));
    let made = plan.and_then(|plan| {
        let is_revived = plan.takes_spare && spaces.revive(id, parent);
        if !is_revived {
            spaces.create(memory, id).map_err(|_| Errno::ENOMEM)?;
        }
        Ok((plan, is_revived))
    });
    let (plan, is_revived) = match made {
        Ok(made) => made,
        Err(errno) => {
            let mut space = Space::of(cx)?;
            pairs.iter().for_each(|(_, child)| space.forget(child));
            return Err(errno);
        }
    };
    cx.kernel.next_mm = cx.kernel.next_mm.saturating_add(1);
    let mapped_bytes = pairs.iter().map(|(_, vma)| vma.len_bytes()).sum();
    let mm = Mm {
        mapped: Mapped::of(mapped_bytes),
        vmas: pairs
            .iter()
            .map(|(_, vma)| (vma.start, vma.clone()))
            .collect(),
        new_flags: VmaFlags::empty(),
        copy_of: plan.takes_spare.then_some(parent),
        ..cx.mm()?.clone()
    };
    for vma in mm.vmas.values() {
        // There is room for all of them.
        cx.machine.memory.charge_kernel_anyway(vma.cost_bytes());
    }
    cx.kernel.mms.insert(id, mm);
    let machine = &mut *cx.machine;
    let memory = &mut machine.memory;
    let copied = match machine.spaces.pair_mut(parent, id) {
        Some((parent, child)) => Leaves {
            parent,
            child,
            memory,
            is_eager: plan.is_eager,
            mapped: is_revived.then(Vec::new),
        }
        .copy(&pairs)
        .map_err(errno),
        None => Err(Errno::ESRCH),
    };
    if let Err(errno) = copied {
        end(cx, id)?;
        return Err(errno);
    }
    Ok(id)
}

impl Space<'_> {
    /// The VMAs of a copy beside those that they are copied from, with their windows and references.
    fn fork_vmas(&mut self, vmas: Vec<Vma>) -> Result<Vec<(Vma, Vma)>, Errno> {
        let cost_bytes = vmas.iter().map(Vma::cost_bytes).sum();
        if !self.mem.has_room(cost_bytes) {
            return Err(Errno::ENOMEM);
        }
        let mut pairs: Vec<(Vma, Vma)> = Vec::with_capacity(vmas.len());
        for vma in vmas {
            // Text that jumps to our trampoline page needs it.
            let is_ours = matches!(vma.backing, Backing::Special(_));
            if vma.flags.contains(VmaFlags::DONTFORK) && !is_ours {
                continue;
            }
            match self.fork_vma(&vma) {
                Ok(child) => pairs.push((vma, child)),
                Err(errno) => {
                    pairs.iter().for_each(|(_, child)| self.forget(child));
                    return Err(errno);
                }
            }
        }
        Ok(pairs)
    }

    fn fork_vma(&mut self, vma: &Vma) -> Result<Vma, Errno> {
        let mut child = vma.clone();
        child
            .flags
            .remove(VmaFlags::LOCKED | VmaFlags::LOCK_ON_FAULT);
        if let Backing::File(file) = vma.backing
            && let Some(gpa) = file.window
        {
            let window = FileWindow {
                gpa,
                len_bytes: vma.len_bytes(),
            };
            // Pages that the host has copied for one are not the other's.
            let is_shared = !file.charged && self.mem.share_file(window).is_ok();
            if !is_shared {
                let own = self.open_window(&child, file.host, file.offset)?;
                child.backing = Backing::File(own);
                if file.has_hidden
                    && let Err(error) = self.copy_written(file, own, vma.len_bytes())
                {
                    self.drop_window(own, vma.len_bytes());
                    return Err(error);
                }
            }
        }
        self.retain(&child);
        Ok(child)
    }
}

/// The way that a child gets what its parent has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Plan {
    /// True if private pages are copied at once, false if both have them until one writes.
    is_eager: bool,
    /// True if the child may have the tables of another that has ended, and leave its own to a later one.
    takes_spare: bool,
}

impl Plan {
    /// Copying is for what is small, and where there is plenty of memory. Spares have no 2 MiB pages.
    fn of(tables: &PageTables, memory: &GuestMemory, pairs: &[(Vma, Vma)]) -> Result<Self, Errno> {
        let (mut pages, mut has_huge) = (0u64, false);
        for (vma, _) in pairs.iter().filter(|(vma, _)| is_copied(vma)) {
            let count = |_, leaf: Leaf| {
                has_huge |= leaf.size == PageSize::Huge;
                if leaf.flags.contains(PteFlags::WRITE) && !memory.is_frozen(leaf.gpa) {
                    pages = pages.saturating_add(leaf.size.bytes() / PAGE_SIZE);
                }
            };
            let (start, len_bytes) = (Gva(vma.start), vma.len_bytes());
            tables
                .for_each_leaf(memory, start, len_bytes, count)
                .map_err(errno)?;
        }
        let free_bytes = memory.limit_bytes().saturating_sub(memory.used_bytes());
        let is_plenty = free_bytes / 4 >= pages.saturating_mul(PAGE_SIZE);
        let is_eager = pages <= EAGER_PAGES && is_plenty;
        Ok(Self {
            is_eager,
            takes_spare: is_eager && !has_huge,
        })
    }
}

/// The pages of an address space that is being copied.
struct Leaves<'a> {
    parent: &'a mut PageTables,
    child: &'a mut PageTables,
    memory: &'a mut GuestMemory,
    /// True if private pages are copied, false if they are shared.
    is_eager: bool,
    /// For a spare: the pages that it is to have, in order. Others that it has go.
    mapped: Option<Vec<u64>>,
}

impl Leaves<'_> {
    fn copy(&mut self, pairs: &[(Vma, Vma)]) -> Result<(), MemError> {
        for (vma, child) in pairs {
            if !vma.flags.contains(VmaFlags::WIPEONFORK) {
                self.copy_vma(vma, child)?;
            }
        }
        match self.mapped.take() {
            Some(mapped) => self.drop_others(mapped),
            None => Ok(()),
        }
    }

    /// Unmaps what a spare has beside the pages that have just been mapped.
    fn drop_others(&mut self, mut mapped: Vec<u64>) -> Result<(), MemError> {
        mapped.sort_unstable();
        let mut mapped = mapped.into_iter().peekable();
        let mut others = Vec::new();
        let sort = |gva: Gva, _| {
            while mapped.next_if(|at| *at < gva.0).is_some() {}
            if mapped.next_if_eq(&gva.0).is_none() {
                others.push(gva);
            }
        };
        self.child
            .for_each_leaf(self.memory, Gva(0), USER_END.0, sort)?;
        for gva in others {
            self.child
                .unmap_range(self.memory, gva, PAGE_SIZE, |mem, _, leaf| {
                    mem.free_leaf(leaf)
                })?;
        }
        self.child.forget_peak();
        Ok(())
    }

    /// The present leaves of a VMA. Of a 2 MiB page that lies across its end, those pages that are its own.
    fn of(&self, vma: &Vma) -> Result<Vec<(Gva, Leaf)>, MemError> {
        let mut leaves = Vec::new();
        let add = |gva: Gva, leaf: Leaf| {
            let end = gva.0.saturating_add(leaf.size.bytes());
            if vma.start <= gva.0 && end <= vma.end {
                leaves.push((gva, leaf));
                return;
            }
            let pages = gva.0.max(vma.start)..end.min(vma.end);
            leaves.extend(pages.step_by(PAGE_SIZE as usize).map(|at| {
                let page = Leaf {
                    gpa: leaf.gpa_of(Gva(at)),
                    size: PageSize::Base,
                    ..leaf
                };
                (Gva(at), page)
            }));
        };
        self.parent
            .for_each_leaf(self.memory, Gva(vma.start), vma.len_bytes(), add)?;
        Ok(leaves)
    }

    fn copy_vma(&mut self, vma: &Vma, child: &Vma) -> Result<(), MemError> {
        for (gva, leaf) in self.of(vma)? {
            if self.memory.is_frozen(leaf.gpa) {
                self.map(gva, leaf)?;
            } else if self.memory.is_file_backed(leaf.gpa) {
                self.copy_file_page(vma, child, gva, leaf)?;
            } else if is_copied(vma) && leaf.flags.contains(PteFlags::WRITE) {
                self.copy_private(gva, leaf)?;
            } else {
                // Whoever may write it first takes a copy, or it is meant to be seen by both.
                self.map_counted(gva, leaf)?;
            }
        }
        Ok(())
    }

    fn copy_file_page(
        &mut self,
        vma: &Vma,
        child: &Vma,
        gva: Gva,
        leaf: Leaf,
    ) -> Result<(), MemError> {
        if vma.backing == child.backing {
            return self.map(gva, leaf);
        }
        if matches!(child.backing, Backing::File(file) if file.has_hidden) {
            // The child's window has a copy already.
            return Ok(());
        }
        if vma.is_shared() {
            // A copy would not be the file's page: the child maps that when it touches it.
            return Ok(());
        }
        match self.copy_page(gva, leaf) {
            // The file has lost it: the child finds that out by itself.
            Err(MemError::FileFault(_)) => Ok(()),
            copied => copied,
        }
    }

    /// A page or block that one of the two will write.
    fn copy_private(&mut self, gva: Gva, leaf: Leaf) -> Result<(), MemError> {
        if self.is_eager && leaf.size == PageSize::Base {
            return self.copy_page(gva, leaf);
        }
        let flags = leaf.flags - PteFlags::WRITE;
        self.map_counted(gva, Leaf { flags, ..leaf })?;
        self.parent
            .protect_range(self.memory, gva, leaf.size.bytes(), flags)
    }

    /// Gives the child a copy of a base page: in the frame that a spare has there, or else in a new one.
    fn copy_page(&mut self, gva: Gva, leaf: Leaf) -> Result<(), MemError> {
        let Some(gpa) = self.frame_of_spare(gva) else {
            let gpa = self.memory.alloc_copy(leaf.gpa)?;
            return self.map_owned(gva, Leaf { gpa, ..leaf });
        };
        self.memory.copy_frame(leaf.gpa, gpa)?;
        // It stays: its reference is that of the entry.
        let _itself = self
            .child
            .map(self.memory, gva, gpa, leaf.size, leaf.flags)?;
        self.note(gva);
        Ok(())
    }

    /// The frame that a spare has at `gva`, if it is nobody else's.
    fn frame_of_spare(&self, gva: Gva) -> Option<Gpa> {
        self.mapped.as_ref()?;
        let leaf = self.child.walk(self.memory, gva)?;
        let is_own = leaf.size == PageSize::Base
            && !self.memory.is_file_backed(leaf.gpa)
            && !self.memory.is_frozen(leaf.gpa)
            && self.memory.frame_refs(leaf.gpa) == 1;
        is_own.then_some(leaf.gpa)
    }

    fn note(&mut self, gva: Gva) {
        if let Some(mapped) = &mut self.mapped {
            mapped.push(gva.0);
        }
    }

    /// Maps a frame with a reference of its own.
    fn map_counted(&mut self, gva: Gva, leaf: Leaf) -> Result<(), MemError> {
        match leaf.size {
            PageSize::Base => self.memory.get_frame(leaf.gpa),
            PageSize::Huge => self.memory.get_huge(leaf.gpa),
        }
        self.map_owned(gva, leaf)
    }

    /// Maps a frame whose reference is the leaf's.
    fn map_owned(&mut self, gva: Gva, leaf: Leaf) -> Result<(), MemError> {
        self.map(gva, leaf)
            .inspect_err(|_| self.memory.free_leaf(leaf))
    }

    fn map(&mut self, gva: Gva, leaf: Leaf) -> Result<(), MemError> {
        let old = self
            .child
            .map(self.memory, gva, leaf.gpa, leaf.size, leaf.flags)?;
        debug_assert!(
            old.is_none() || self.mapped.is_some(),
            "two leaves at {gva:?}"
        );
        if let Some(old) = old {
            self.memory.free_leaf(old);
        }
        self.note(gva);
        Ok(())
    }
}

/// True for memory that the two must not see each other's writes in.
fn is_copied(vma: &Vma) -> bool {
    !vma.is_shared() && !matches!(vma.backing, Backing::Special(_))
}
