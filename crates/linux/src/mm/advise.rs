//! madvise(2), mincore(2), msync(2) and mseal(2).

use kvmlet_abi::addr::page_align_up;
use kvmlet_abi::linux::falloc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE};
use kvmlet_abi::{Errno, Gva, PAGE_SIZE};
use kvmlet_hostfs::attr::FileTime;
use kvmlet_hostfs::{HostKind, change, stream};
use kvmlet_mem::{FileWindow, MemError};

use super::space::{Space, errno};
use super::vma::{Backing, FileBacking, Prot, TmpBacking, Vma, VmaFlags};
use super::{Access, FaultError, change_files};
use crate::clock;
use crate::cx::Cx;

/// The things that a program says about its memory, with the values of MADV_* (madvise(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // named as the constants are
#[repr(i32)]
pub enum Advice {
    Normal = 0,
    Random = 1,
    Sequential = 2,
    WillNeed = 3,
    DontNeed = 4,
    Free = 8,
    Remove = 9,
    DontFork = 10,
    DoFork = 11,
    Mergeable = 12,
    Unmergeable = 13,
    HugePage = 14,
    NoHugePage = 15,
    DontDump = 16,
    DoDump = 17,
    WipeOnFork = 18,
    KeepOnFork = 19,
    Cold = 20,
    PageOut = 21,
    PopulateRead = 22,
    PopulateWrite = 23,
    DontNeedLocked = 24,
    Collapse = 25,
    HwPoison = 100,
    SoftOffline = 101,
}

impl Advice {
    /// From the number that a program gave; `None` if Linux does not know it either.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        Some(match number {
            0 => Self::Normal,
            1 => Self::Random,
            2 => Self::Sequential,
            3 => Self::WillNeed,
            4 => Self::DontNeed,
            8 => Self::Free,
            9 => Self::Remove,
            10 => Self::DontFork,
            11 => Self::DoFork,
            12 => Self::Mergeable,
            13 => Self::Unmergeable,
            14 => Self::HugePage,
            15 => Self::NoHugePage,
            16 => Self::DontDump,
            17 => Self::DoDump,
            18 => Self::WipeOnFork,
            19 => Self::KeepOnFork,
            20 => Self::Cold,
            21 => Self::PageOut,
            22 => Self::PopulateRead,
            23 => Self::PopulateWrite,
            24 => Self::DontNeedLocked,
            25 => Self::Collapse,
            100 => Self::HwPoison,
            101 => Self::SoftOffline,
            _ => return None,
        })
    }

    /// Advice that loses content: refused for sealed memory that cannot be written anyhow.
    fn discards(self) -> bool {
        matches!(
            self,
            Self::Free
                | Self::DontNeed
                | Self::DontNeedLocked
                | Self::Remove
                | Self::DontFork
                | Self::WipeOnFork
        )
    }
}

/// madvise(2)
///
/// # Errors
/// As the man page has them.
pub fn advise(cx: &mut Cx<'_>, addr: u64, len_bytes: u64, advice: Advice) -> Result<(), Errno> {
    change_files(cx, |space| space.advise(addr, len_bytes, advice))?
}

/// mincore(2) for the mapped range of `pages` pages from `addr`: one byte per page, 1 if resident.
///
/// # Errors
/// `ENOMEM` if part of the range is not mapped.
pub fn mincore(cx: &mut Cx<'_>, addr: u64, pages: u64) -> Result<Vec<u8>, Errno> {
    Space::of(cx)?.resident(addr, pages)
}

/// msync(2)
///
/// # Errors
/// `EINVAL`, `EBUSY`, `ENOMEM`.
pub fn msync(cx: &mut Cx<'_>, addr: u64, len_bytes: u64, flags: i32) -> Result<(), Errno> {
    Space::of(cx)?.sync(addr, len_bytes, flags)
}

/// mseal(2)
///
/// # Errors
/// `EINVAL`, `ENOMEM`.
pub fn seal(cx: &mut Cx<'_>, addr: u64, len_bytes: u64, flags: u64) -> Result<(), Errno> {
    Space::of(cx)?.seal(addr, len_bytes, flags)
}

/// Appends `count` times `state`; the caller has bounded the count.
fn push(states: &mut Vec<u8>, state: u8, count: u64) {
    let more = usize::try_from(count).unwrap_or(0);
    states.resize(states.len().saturating_add(more), state);
}

const MS_ASYNC: i32 = 1;
const MS_INVALIDATE: i32 = 2;
const MS_SYNC: i32 = 4;

impl Space<'_> {
    /// See [`advise`].
    ///
    /// # Errors
    /// See [`advise`].
    pub fn advise(&mut self, addr: u64, len_bytes: u64, advice: Advice) -> Result<(), Errno> {
        if matches!(advice, Advice::HwPoison | Advice::SoftOffline) {
            return Err(Errno::EPERM);
        }
        if !Gva(addr).is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        let end = page_align_up(len_bytes)
            .and_then(|len| addr.checked_add(len))
            .ok_or(Errno::EINVAL)?;
        if addr == end {
            return Ok(());
        }
        match advice {
            Advice::PopulateRead => return self.advise_populate(addr, end, Access::Read),
            Advice::PopulateWrite => return self.advise_populate(addr, end, Access::Write),
            _ => {}
        }
        // Holes do not stop the walk, but make it fail in the end.
        let whole = self.mm.covers(addr, end);
        let parts: Vec<Vma> = self.mm.parts(addr, end).collect();
        for part in parts {
            self.advise_part(&part, advice)?;
        }
        if whole { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// One VMA's share (madvise_vma_behavior in mm/madvise.c).
    fn advise_part(&mut self, part: &Vma, advice: Advice) -> Result<(), Errno> {
        let locked = part.flags.contains(VmaFlags::LOCKED);
        let special = matches!(part.backing, Backing::Special(_));
        let read_only_anon = part.backing == Backing::Anon && !part.prot.contains(Prot::WRITE);
        if part.flags.contains(VmaFlags::SEALED) && advice.discards() && read_only_anon {
            return Err(Errno::EPERM);
        }
        let hints = VmaFlags::RANDOM | VmaFlags::SEQUENTIAL;
        let (clear, set) = match advice {
            Advice::Normal => (hints, VmaFlags::empty()),
            Advice::Random => (hints, VmaFlags::RANDOM),
            Advice::Sequential => (hints, VmaFlags::SEQUENTIAL),
            // The page cache is the host's, and nothing is ever swapped out.
            Advice::WillNeed => return Ok(()),
            Advice::Cold | Advice::PageOut if locked || special => return Err(Errno::EINVAL),
            Advice::Cold | Advice::PageOut => return Ok(()),
            Advice::DontNeed if locked => return Err(Errno::EINVAL),
            Advice::DontNeed | Advice::DontNeedLocked if special => return Err(Errno::EINVAL),
            Advice::DontNeed | Advice::DontNeedLocked => return self.discard(part),
            Advice::Free if part.backing != Backing::Anon || locked => return Err(Errno::EINVAL),
            // Linux differs: it frees when memory is short, and a write before that keeps the page.
            Advice::Free => return self.discard(part),
            Advice::Remove => return self.punch_hole(part),
            Advice::DontFork => (VmaFlags::empty(), VmaFlags::DONTFORK),
            Advice::DoFork => (VmaFlags::DONTFORK, VmaFlags::empty()),
            Advice::Mergeable => (VmaFlags::empty(), VmaFlags::MERGEABLE),
            Advice::Unmergeable => (VmaFlags::MERGEABLE, VmaFlags::empty()),
            Advice::HugePage => (VmaFlags::NOHUGEPAGE, VmaFlags::HUGEPAGE),
            Advice::NoHugePage => (VmaFlags::HUGEPAGE, VmaFlags::NOHUGEPAGE),
            Advice::DontDump => (VmaFlags::empty(), VmaFlags::DONTDUMP),
            Advice::DoDump if special => return Err(Errno::EINVAL),
            Advice::DoDump => (VmaFlags::DONTDUMP, VmaFlags::empty()),
            Advice::WipeOnFork if part.backing != Backing::Anon => return Err(Errno::EINVAL),
            Advice::WipeOnFork => (VmaFlags::empty(), VmaFlags::WIPEONFORK),
            Advice::KeepOnFork => (VmaFlags::WIPEONFORK, VmaFlags::empty()),
            // A range that cannot be collapsed (madvise(2)).
            Advice::Collapse => return Err(Errno::EINVAL),
            Advice::PopulateRead
            | Advice::PopulateWrite
            | Advice::HwPoison
            | Advice::SoftOffline => return Ok(()),
        };
        if part.flags.difference(clear) | set == part.flags {
            return Ok(());
        }
        // Linux turns a lack of VMAs into EAGAIN here.
        self.update(part.start, part.end, |vma| {
            vma.flags = vma.flags.difference(clear) | set;
        })
        .map_err(|_| Errno::EAGAIN)
    }

    /// Drops the pages of a part of a VMA: private content is lost, shared content stays in its file.
    fn discard(&mut self, part: &Vma) -> Result<(), Errno> {
        self.zap(part.start, part.end)?;
        if let Backing::File(file) = part.backing
            && let Some(gpa) = file.window
            && file.charged
        {
            let len_bytes = part.len_bytes();
            match self.mem.discard_file(FileWindow { gpa, len_bytes }) {
                // What a fork shares with its snapshot stays: it gets a window of its own.
                Err(MemError::Frozen(_)) => self.open_anew(part, file)?,
                discarded => discarded.map_err(errno)?,
            }
        }
        Ok(())
    }

    /// Gives a part of a file VMA a new window.
    fn open_anew(&mut self, part: &Vma, file: FileBacking) -> Result<(), Errno> {
        self.check_count(2)?;
        let window = self.open_window(part, file.host, file.offset)?;
        self.cut(part.start);
        self.cut(part.end);
        let backing = Backing::File(window);
        self.put(Vma {
            backing,
            ..part.clone()
        });
        self.drop_window(file, part.len_bytes());
        Ok(())
    }

    /// MADV_REMOVE: frees the pages of a shared file.
    fn punch_hole(&mut self, part: &Vma) -> Result<(), Errno> {
        if part.flags.contains(VmaFlags::LOCKED) {
            return Err(Errno::EINVAL);
        }
        let writable = part.is_shared() && part.prot.contains(Prot::WRITE);
        let TmpBacking { inode, offset } = match part.backing {
            Backing::Tmp(tmp) if writable => tmp,
            Backing::File(file) if writable => {
                let mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
                let host = self.host.get(file.host)?;
                return change::allocate(host, mode, file.offset, part.len_bytes());
            }
            Backing::Tmp(_) | Backing::File(_) => return Err(Errno::EACCES),
            Backing::Anon | Backing::Special(_) => return Err(Errno::EINVAL),
        };
        let now = FileTime::from_ns(clock::realtime_ns(self.host));
        let end = offset.saturating_add(part.len_bytes());
        // Linux differs: it copies a file of an overlay when it is opened for writing. Here what lies behind the hole
        // would be copied now.
        if self.tmpfs.shows_behind(inode, end)? {
            return Err(Errno::EOPNOTSUPP);
        }
        let stale = self.tmpfs.punch_hole(self.mem, inode, offset, end, now)?;
        self.unmap_everywhere(inode, stale)
    }

    /// MADV_POPULATE_READ and MADV_POPULATE_WRITE: a failure says why (madvise(2)).
    fn advise_populate(&mut self, start: u64, end: u64, access: Access) -> Result<(), Errno> {
        let parts: Vec<Vma> = self.mm.parts(start, end).collect();
        let mut at = start;
        for part in parts {
            if part.start != at {
                return Err(Errno::ENOMEM);
            }
            if !part.prot.allows(access) {
                return Err(Errno::EINVAL);
            }
            self.populate_part(part.start, part.end, access)
                .map_err(|error| match error {
                    FaultError::OutOfMemory => Errno::ENOMEM,
                    FaultError::Segv { .. } | FaultError::Bus => Errno::EFAULT,
                })?;
            at = part.end;
        }
        if at < end { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// See [`mincore`].
    ///
    /// # Errors
    /// See [`mincore`].
    pub fn resident(&mut self, addr: u64, pages: u64) -> Result<Vec<u8>, Errno> {
        let len = pages.checked_mul(PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        let end = addr.checked_add(len).ok_or(Errno::ENOMEM)?;
        if !self.mm.covers(addr, end) {
            return Err(Errno::ENOMEM);
        }
        let mut states = Vec::new();
        let parts: Vec<Vma> = self.mm.parts(addr, end).collect();
        for part in parts {
            let pages = part.len_bytes() / PAGE_SIZE;
            match part.backing {
                Backing::File(_) | Backing::Special(_) => push(&mut states, 1, pages),
                Backing::Tmp(tmp) => self.resident_tmp(&mut states, tmp, pages),
                Backing::Anon => self.resident_anon(&mut states, &part),
            }
        }
        Ok(states)
    }

    /// Linux differs: there, a small mapping and what a heap has just gained are not resident yet.
    fn resident_anon(&self, states: &mut Vec<u8>, part: &Vma) {
        let mut at = part.start;
        while at < part.end {
            let left = (part.end - at) / PAGE_SIZE;
            let absent = self.tables.absent_run(self.mem, Gva(at), left);
            push(states, 0, absent);
            at += absent * PAGE_SIZE;
            if at < part.end {
                push(states, 1, 1);
                at += PAGE_SIZE;
            }
        }
    }

    /// Pages that the file has; private copies are of such pages or of holes.
    fn resident_tmp(&self, states: &mut Vec<u8>, tmp: TmpBacking, pages: u64) {
        let first = tmp.offset / PAGE_SIZE;
        let mut next = first;
        let end = first.saturating_add(pages);
        if let Ok(data) = self.tmpfs.get(tmp.inode).and_then(|inode| inode.file()) {
            for (&page, _) in data.pages.range(first..end) {
                push(states, 0, page.saturating_sub(next));
                push(states, 1, 1);
                next = page.saturating_add(1);
            }
        }
        push(states, 0, end.saturating_sub(next));
    }

    /// See [`msync`]. Memory files are memory: there is nothing to write back. Of the host's it writes all that
    /// is to be written, as Linux may.
    ///
    /// # Errors
    /// See [`msync`].
    pub fn sync(&mut self, addr: u64, len_bytes: u64, flags: i32) -> Result<(), Errno> {
        let both = MS_ASYNC | MS_SYNC;
        if flags & !(both | MS_INVALIDATE) != 0
            || !Gva(addr).is_page_aligned()
            || flags & both == both
        {
            return Err(Errno::EINVAL);
        }
        let end = page_align_up(len_bytes)
            .and_then(|len| addr.checked_add(len))
            .ok_or(Errno::ENOMEM)?;
        if addr == end {
            return Ok(());
        }
        let locked = self
            .mm
            .parts(addr, end)
            .any(|part| part.flags.contains(VmaFlags::LOCKED));
        if flags & MS_INVALIDATE != 0 && locked {
            return Err(Errno::EBUSY);
        }
        if flags & MS_SYNC != 0 {
            self.sync_files(addr, end)?;
        }
        if self.mm.covers(addr, end) {
            Ok(())
        } else {
            Err(Errno::ENOMEM)
        }
    }

    /// Has the host's disk take what mappings in the range have changed.
    fn sync_files(&mut self, addr: u64, end: u64) -> Result<(), Errno> {
        let changed = VmaFlags::SHARED | VmaFlags::MAYWRITE;
        let mut done = None;
        for part in self.mm.parts(addr, end) {
            let Backing::File(file) = part.backing else {
                continue;
            };
            if !part.flags.contains(changed) || done == Some(file.host) {
                continue;
            }
            let host = self.host.get(file.host)?;
            match host.kind {
                HostKind::WritableFile => change::sync_data(host)?,
                _ => stream::sync(host)?,
            }
            done = Some(file.host);
        }
        Ok(())
    }

    /// See [`seal`].
    ///
    /// # Errors
    /// See [`seal`].
    pub fn seal(&mut self, addr: u64, len_bytes: u64, flags: u64) -> Result<(), Errno> {
        if flags != 0 || !Gva(addr).is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        let end = page_align_up(len_bytes)
            .and_then(|len| addr.checked_add(len))
            .ok_or(Errno::EINVAL)?;
        if addr == end {
            return Ok(());
        }
        if !self.mm.covers(addr, end) {
            return Err(Errno::ENOMEM);
        }
        self.update(addr, end, |vma| vma.flags |= VmaFlags::SEALED)
    }
}
