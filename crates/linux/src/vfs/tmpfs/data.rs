//! File contents: frames by page index.

use core::ops::Range;

use kvmlet_abi::linux::fcntl::{F_SEAL_FUTURE_WRITE, F_SEAL_GROW, F_SEAL_SHRINK, F_SEAL_WRITE};
use kvmlet_abi::linux::stat::S_ISUID;

use kvmlet_abi::{Errno, Gpa, PAGE_SIZE};
use kvmlet_hostfs::attr::FileTime;
use kvmlet_mem::{GuestMemory, OutOfMemory};

use super::room::{Means, NoPage};
use super::{FileData, InodeId, TmpFs};

/// Largest file size, in bytes (MAX_LFS_FILESIZE).
const SIZE_MAX: u64 = i64::MAX as u64;
/// S_ISGID with group execution: what a write clears (chmod(2)).
const S_ISGID_EXEC: u32 = 0o2010;

/// The pages that a change has taken out of a file: mappings that show them are stale.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stale {
    /// Pages by index, ascending, and the frames that were theirs. What a private mapping has copied
    /// lies in other frames and stays.
    left: Vec<(u64, Gpa)>,
    /// The file is cut off here: pages from this one on are gone, private copies included
    /// (unmap_mapping_range with even_cows in mm/memory.c).
    cut_from: Option<u64>,
}

impl Stale {
    /// One page, which lies in another frame now.
    #[must_use]
    pub fn page(page: u64, frame: Gpa) -> Self {
        Self {
            left: vec![(page, frame)],
            cut_from: None,
        }
    }

    /// True if there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left.is_empty() && self.cut_from.is_none()
    }

    /// The first page that is gone with its private copies.
    #[must_use]
    pub fn cut_from(&self) -> Option<u64> {
        self.cut_from
    }

    /// Pages of a range of page indexes that lie in another frame now or in none, with the frames
    /// that were theirs.
    #[must_use]
    pub fn left_in(&self, range: Range<u64>) -> &[(u64, Gpa)] {
        let first = self.left.partition_point(|(page, _)| *page < range.start);
        let end = self.left.partition_point(|(page, _)| *page < range.end);
        self.left.get(first..end).unwrap_or_default()
    }
}

/// A page that may be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnPage {
    /// Its frame.
    pub frame: Gpa,
    /// The frozen frame that it lay in before: mappings of it are stale.
    pub left: Option<Gpa>,
}

/// What becomes of a page's old bytes when it gets a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Old {
    /// They are in the frame.
    Kept,
    /// All of them are about to be written over.
    Replaced,
}

impl FileData {
    /// The first page that no byte of the host's file shows in.
    pub(super) fn lower_end(&self) -> u64 {
        let shown = self.lower.as_ref().map_or(0, |lower| lower.shown);
        shown.div_ceil(PAGE_SIZE)
    }

    /// Pages that take room here or on the host.
    #[must_use]
    pub fn pages_in_use(&self) -> u64 {
        let end = self.lower_end();
        if end == 0 {
            return (self.pages.len() as u64).saturating_add(self.spilled.pages());
        }
        end.saturating_add(self.pages.range(end..).count() as u64)
            .saturating_add(self.spilled.count(end..u64::MAX))
    }

    /// The frame of a page, to be written. A page that lies on the disk comes into memory.
    pub(super) fn own(
        &mut self,
        means: &mut Means<'_>,
        page: u64,
        bytes: Old,
    ) -> Result<OwnPage, NoPage> {
        let old = self.pages.get(&page).copied();
        let (frame, left) = match old {
            Some(frame) if !means.memory.is_frozen(frame) => {
                return Ok(OwnPage { frame, left: None });
            }
            Some(frozen) => {
                let copy = means.memory.alloc_copy(frozen);
                (copy.map_err(|_| OutOfMemory::Limit)?, Some(frozen))
            }
            None if self.spilled.has(page) => {
                let frame = self.new_frame(means.memory, page, bytes)?;
                self.spilled
                    .forget(means.memory, page..page.saturating_add(1));
                (frame, None)
            }
            None => {
                means.take_page()?;
                let made = self.new_frame(means.memory, page, bytes);
                (made.inspect_err(|_| means.give_pages(1))?, None)
            }
        };
        self.pages.insert(page, frame);
        Ok(OwnPage { frame, left })
    }

    fn new_frame(
        &self,
        memory: &mut GuestMemory,
        page: u64,
        bytes: Old,
    ) -> Result<Gpa, OutOfMemory> {
        let frame = memory.alloc_frame()?;
        if bytes == Old::Kept && self.fill(memory, page, frame).is_err() {
            memory.free_frame(frame);
            return Err(OutOfMemory::Exhausted);
        }
        Ok(frame)
    }

    /// Writes the first of `bytes` at `offset`: what goes to one page in memory, or to one stretch of the disk. The
    /// count, and the frozen frame that a page has left.
    fn write_part(
        &mut self,
        means: &mut Means<'_>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(usize, Option<(u64, Gpa)>), Errno> {
        let (page, in_page) = (offset / PAGE_SIZE, offset % PAGE_SIZE);
        let in_memory = self.pages.contains_key(&page);
        let lies_there = self.spilled.has(page);
        let spill = match in_memory {
            true => None,
            false if lies_there => self.spilled.spill_of(page),
            false => means.spill_past_share(),
        };
        if let Some(spill) = spill {
            let stretch = self.disk_stretch(offset, bytes);
            match self.write_to_disk(means, &spill, offset, stretch) {
                Ok(count) => return Ok((count, None)),
                Err(error) if lies_there => return Err(error),
                // The host's disk is full: there may still be memory.
                Err(_) => {}
            }
        }
        let count = bytes.len().min((PAGE_SIZE - in_page) as usize);
        let old = match count as u64 {
            PAGE_SIZE => Old::Replaced,
            _ => Old::Kept,
        };
        let OwnPage { frame, left } = match self.own(means, page, old) {
            Ok(own) => own,
            Err(NoPage::Room) => return Err(Errno::ENOSPC),
            Err(NoPage::Memory(_)) => {
                let spill = means.spill().filter(|_| !in_memory);
                let spill = spill.ok_or(Errno::ENOSPC)?;
                let stretch = self.disk_stretch(offset, bytes);
                let count = self.write_to_disk(means, &spill, offset, stretch)?;
                return Ok((count, None));
            }
        };
        let from = bytes.get(..count).unwrap_or_default();
        means
            .memory
            .write(frame.wrapping_add(in_page), from)
            .map_err(|_| Errno::EIO)?;
        Ok((count, left.map(|frozen| (page, frozen))))
    }

    /// From this offset on the host's file no longer shows.
    fn hide_lower(&mut self, from: u64) {
        if let Some(lower) = &mut self.lower {
            lower.shown = lower.shown.min(from);
        }
    }

    /// Puts the bytes of a page that is not in memory into a zeroed frame.
    fn fill(&self, memory: &mut GuestMemory, page: u64, frame: Gpa) -> Result<(), Errno> {
        if page >= self.lower_end() && !self.spilled.has(page) {
            return Ok(());
        }
        let mut bytes = [0; PAGE_SIZE as usize];
        self.show(page, &mut bytes)?;
        memory.write(frame, &bytes).map_err(|_| Errno::EIO)
    }
}

/// The parts of `len` bytes at `offset` by page: (page index, offset in page, offset in buffer, count).
pub(super) fn by_page(offset: u64, len: usize) -> impl Iterator<Item = (u64, u64, usize, usize)> {
    let mut done = 0usize;
    std::iter::from_fn(move || {
        let left = len.checked_sub(done).filter(|left| *left > 0)?;
        let at = offset.checked_add(done as u64)?;
        let in_page = at % PAGE_SIZE;
        let count = left.min((PAGE_SIZE - in_page) as usize);
        let part = (at / PAGE_SIZE, in_page, done, count);
        done = done.saturating_add(count);
        Some(part)
    })
}

impl TmpFs {
    /// Size of a regular file in bytes.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for what is none.
    pub fn size(&self, id: InodeId) -> Result<u64, Errno> {
        Ok(self.get(id)?.file()?.size)
    }

    /// The frame of a page, or `None` for a hole. Pages past the end of the file have none.
    #[must_use]
    pub fn page_for_read(&self, id: InodeId, page_index: u64) -> Option<Gpa> {
        self.get(id)
            .ok()?
            .file()
            .ok()?
            .pages
            .get(&page_index)
            .copied()
    }

    /// A frame with what an absent page shows, for a private mapping.
    ///
    /// # Errors
    /// At the memory limit; when the host's file cannot be read.
    pub fn copy_absent(
        &self,
        memory: &mut GuestMemory,
        id: InodeId,
        page_index: u64,
    ) -> Result<Gpa, OutOfMemory> {
        let frame = memory.alloc_frame()?;
        let data = self.get(id).and_then(|inode| inode.file());
        match data.and_then(|data| data.fill(memory, page_index, frame)) {
            Ok(()) => Ok(frame),
            Err(_) => {
                memory.free_frame(frame);
                Err(OutOfMemory::Exhausted)
            }
        }
    }

    /// The frame of a page, to be written. A page that had none gets one, with the host's bytes or zeros; one in
    /// frozen memory, which forks share, is copied. The file keeps one reference; a mapping takes its own with
    /// [`GuestMemory::get_frame`].
    ///
    /// # Errors
    /// At the memory limit, and where files may take no more room; also for an inode that is no regular file.
    pub fn page_for_write(
        &mut self,
        memory: &mut GuestMemory,
        id: InodeId,
        page_index: u64,
    ) -> Result<OwnPage, NoPage> {
        let gone = |_| NoPage::Memory(OutOfMemory::Exhausted);
        let (inode, mut means) = self.with_means(memory, id).map_err(gone)?;
        let data = inode.file_mut().map_err(gone)?;
        data.own(&mut means, page_index, Old::Kept)
    }

    /// Reads at `offset`; the count is short only at the end of the file.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for what is no regular file.
    pub fn read(
        &self,
        memory: &GuestMemory,
        id: InodeId,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize, Errno> {
        let data = self.get(id)?.file()?;
        let left = usize::try_from(data.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = buf.len().min(left);
        if let Some(lower) = &data.lower {
            // The host's bytes first, in one call; those in memory over them.
            let buf = buf.get_mut(..len).unwrap_or_default();
            let count = lower.read(offset, buf)?;
            buf.iter_mut().skip(count).for_each(|byte| *byte = 0);
        }
        let mut done = 0usize;
        while let Some(left) = buf.get_mut(done..len).filter(|left| !left.is_empty()) {
            let at = offset.saturating_add(done as u64);
            let in_page = at % PAGE_SIZE;
            let count = left.len().min((PAGE_SIZE - in_page) as usize);
            let from_disk = match data.pages.get(&(at / PAGE_SIZE)) {
                Some(_) => 0,
                // Several pages at once, where they lie side by side.
                None => data.spilled.read(at, left)?,
            };
            done = done.saturating_add(from_disk.max(count));
            let Some(into) = left.get_mut(..count).filter(|_| from_disk == 0) else {
                continue;
            };
            match data.pages.get(&(at / PAGE_SIZE)) {
                Some(frame) => {
                    memory
                        .read(frame.wrapping_add(in_page), into)
                        .map_err(|_| Errno::EIO)?;
                }
                None if data.lower.is_some() => {}
                None => into.fill(0),
            }
        }
        Ok(len)
    }

    /// Updates the access time as relatime mounts do (mount(8)).
    pub fn accessed(&mut self, id: InodeId, now: FileTime) {
        const DAY_S: i64 = 24 * 60 * 60;
        let Ok(inode) = self.get(id) else { return };
        let old = inode.atime <= inode.mtime || inode.atime <= inode.ctime;
        if (old || now.sec.saturating_sub(inode.atime.sec) >= DAY_S)
            && inode.atime != now
            && let Ok(inode) = self.get_mut(id)
        {
            inode.atime = now;
        }
    }

    /// Writes at `offset`, growing the file. Answers the bytes written and what has become stale.
    ///
    /// # Errors
    /// `ENOSPC` when nothing could be written, `EFBIG`, `EPERM` for a sealed file, `EISDIR`.
    pub fn write(
        &mut self,
        memory: &mut GuestMemory,
        id: InodeId,
        offset: u64,
        bytes: &[u8],
        now: FileTime,
    ) -> Result<(usize, Stale), Errno> {
        let data = self.get(id)?.file()?;
        if data.seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) != 0 {
            return Err(Errno::EPERM);
        }
        if bytes.is_empty() {
            return Ok((0, Stale::default()));
        }
        let room = SIZE_MAX
            .checked_sub(offset)
            .filter(|room| *room > 0)
            .ok_or(Errno::EFBIG)?;
        let mut len = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if data.seals & F_SEAL_GROW != 0 {
            // As shmem_write_begin: what would grow the file is refused, what comes before is not.
            let inside = data.size.saturating_sub(offset);
            len = len.min(usize::try_from(inside).unwrap_or(usize::MAX));
            if len == 0 {
                return Err(Errno::EPERM);
            }
        }
        let (inode, mut means) = self.with_means(memory, id)?;
        let data = inode.file_mut()?;
        let mut done = 0usize;
        let mut stale = Stale::default();
        let mut failure = Errno::ENOSPC;
        while let Some(rest) = bytes.get(done..len).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(done as u64);
            match data.write_part(&mut means, at, rest) {
                Ok((count, left)) => {
                    done = done.saturating_add(count);
                    stale.left.extend(left);
                }
                Err(error) => {
                    failure = error;
                    break;
                }
            }
        }
        if done == 0 {
            return Err(failure);
        }
        data.size = data.size.max(offset.saturating_add(done as u64));
        inode.written(now);
        Ok((done, stale))
    }

    /// Sets the size (truncate(2)); the answer says what has become stale.
    ///
    /// # Errors
    /// `EINVAL` beyond the largest size is left to the caller (`EFBIG` here); `EPERM` for a sealed
    /// file; `EISDIR`.
    pub fn set_size(
        &mut self,
        memory: &mut GuestMemory,
        id: InodeId,
        size: u64,
        now: FileTime,
    ) -> Result<Stale, Errno> {
        let data = self.get(id)?.file()?;
        if size > SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        if size < data.size && data.seals & F_SEAL_SHRINK != 0
            || size > data.size && data.seals & F_SEAL_GROW != 0
        {
            return Err(Errno::EPERM);
        }
        let shrinks = size < data.size;
        let mut stale = Stale::default();
        if shrinks {
            stale = self.drop_bytes(memory, id, size, SIZE_MAX)?;
            let first = size.div_ceil(PAGE_SIZE);
            stale.left.retain(|(page, _)| *page < first);
            stale.cut_from = Some(first);
        }
        let inode = self.get_mut(id)?;
        inode.file_mut()?.size = size;
        inode.written(now);
        Ok(stale)
    }

    /// Makes a hole of `start..end` bytes: whole pages lose their frames, parts of pages are zeroed.
    /// If it fails, the contents are as they were.
    fn drop_bytes(
        &mut self,
        memory: &mut GuestMemory,
        id: InodeId,
        start: u64,
        end: u64,
    ) -> Result<Stale, Errno> {
        let (inode, mut means) = self.with_means(memory, id)?;
        let data = inode.file_mut()?;
        let first = start.div_ceil(PAGE_SIZE);
        let last = end / PAGE_SIZE;
        let lower_end = data.lower_end();
        // The host's file shows up to one place: what it has behind the hole is copied.
        let behind = if first < last { last..lower_end } else { 0..0 };
        for page in behind {
            data.hold(&mut means, page)?;
        }
        let mut edges: Vec<(u64, u64, u64)> = Vec::new();
        if first > last {
            // Both ends lie in one page.
            edges.push((start / PAGE_SIZE, start % PAGE_SIZE, end % PAGE_SIZE));
        } else {
            if !start.is_multiple_of(PAGE_SIZE) {
                edges.push((start / PAGE_SIZE, start % PAGE_SIZE, PAGE_SIZE));
            }
            edges.push((last, 0, end % PAGE_SIZE));
        }
        edges.retain(|(page, from, to)| {
            let has = *page < lower_end || data.pages.contains_key(page);
            from < to && (has || data.spilled.has(*page))
        });
        let (on_disk, edges): (Vec<_>, Vec<_>) = edges
            .into_iter()
            .partition(|(page, ..)| data.spilled.has(*page));
        let mut owned: Vec<(u64, OwnPage)> = Vec::new();
        let mut failure = None;
        for &(page, ..) in &edges {
            match data.own(&mut means, page, Old::Kept) {
                Ok(own) => owned.push((page, own)),
                Err(_) => failure = Some(Errno::ENOMEM),
            }
        }
        for (page, from, to) in on_disk {
            if failure.is_none()
                && let Some(spill) = data.spilled.spill_of(page)
            {
                let zeros = vec![0; to.saturating_sub(from) as usize];
                let at = page.saturating_mul(PAGE_SIZE).saturating_add(from);
                let zeroed = data.write_to_disk(&mut means, &spill, at, &zeros);
                failure = zeroed.err();
            }
        }
        if let Some(error) = failure {
            for (page, own) in owned {
                if let Some(frozen) = own.left {
                    data.pages.insert(page, frozen);
                    means.memory.free_frame(own.frame);
                }
            }
            return Err(error);
        }
        let mut stale = Stale::default();
        for ((page, own), (_, from, to)) in owned.into_iter().zip(edges) {
            stale.left.extend(own.left.map(|frozen| (page, frozen)));
            means
                .memory
                .zero(own.frame.wrapping_add(from), to.saturating_sub(from))
                .map_err(|_| Errno::EIO)?;
        }
        if first >= last {
            return Ok(stale);
        }
        data.hide_lower(first.saturating_mul(PAGE_SIZE));
        let gone: Vec<(u64, Gpa)> = data
            .pages
            .range(first..last)
            .map(|(page, frame)| (*page, *frame))
            .collect();
        let spilled = data.spilled.forget(means.memory, first..last);
        means.give_pages((gone.len() as u64).saturating_add(spilled));
        for (page, frame) in gone {
            data.pages.remove(&page);
            means.memory.free_frame(frame);
            stale.left.push((page, frame));
        }
        stale.left.sort_unstable_by_key(|(page, _)| *page);
        if spilled > 0 {
            self.give_back_room();
        }
        Ok(stale)
    }

    /// Copies pages of the host's file that lie behind `end`, from page number `from` on, at most `max` of them. The
    /// host's file shows up to one place: a hole before them needs it. The answer is the page to go on with.
    ///
    /// # Errors
    /// `ENOSPC`; `EISDIR`.
    pub fn copy_behind(
        &mut self,
        memory: &mut GuestMemory,
        id: InodeId,
        (end, from, max): (u64, u64, u64),
    ) -> Result<Option<u64>, Errno> {
        let (inode, mut means) = self.with_means(memory, id)?;
        let data = inode.file_mut()?;
        let first = from.max(end / PAGE_SIZE);
        let stop = first.saturating_add(max).min(data.lower_end());
        for page in first..stop {
            data.hold(&mut means, page)?;
        }
        Ok((stop < data.lower_end() && first < stop).then_some(stop))
    }

    /// True if the host's file shows behind `end`: a hole up to there is much work.
    ///
    /// # Errors
    /// `EISDIR`.
    pub fn shows_behind(&self, id: InodeId, end: u64) -> Result<bool, Errno> {
        let data = self.get(id)?.file()?;
        Ok(end / PAGE_SIZE < data.lower_end())
    }

    /// fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE). The answer says what has become stale. Pages of the
    /// host's file behind it are copied: [`TmpFs::copy_behind`] does so in pieces before.
    ///
    /// # Errors
    /// `EPERM` for a sealed file; `EISDIR`.
    pub fn punch_hole(
        &mut self,
        memory: &mut GuestMemory,
        id: InodeId,
        start: u64,
        end: u64,
        now: FileTime,
    ) -> Result<Stale, Errno> {
        if self.get(id)?.file()?.seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) != 0 {
            return Err(Errno::EPERM);
        }
        let stale = self.drop_bytes(memory, id, start, end)?;
        self.get_mut(id)?.written(now);
        Ok(stale)
    }

    /// Checks that [`TmpFs::allocate`] can give `start..end` frames, one part after another.
    ///
    /// # Errors
    /// `ENOSPC`; `EPERM` for a file sealed against growing; `EISDIR`.
    pub fn check_allocation(
        &mut self,
        memory: &mut GuestMemory,
        id: InodeId,
        (start, end): (u64, u64),
    ) -> Result<(), Errno> {
        let (inode, means) = self.with_means(memory, id)?;
        let data = inode.file()?;
        if data.seals & F_SEAL_GROW != 0 && end > data.size {
            return Err(Errno::EPERM);
        }
        let pages = start / PAGE_SIZE..end.div_ceil(PAGE_SIZE);
        let there = (data.pages.range(pages.clone()).count() as u64)
            .saturating_add(data.spilled.count(pages.clone()));
        let wanted = pages.end.saturating_sub(pages.start).saturating_sub(there);
        if wanted > means.free_pages() {
            return Err(Errno::ENOSPC);
        }
        Ok(())
    }

    /// fallocate(0) and fallocate(FALLOC_FL_KEEP_SIZE): gives `start..end` frames.
    ///
    /// # Errors
    /// `ENOSPC`, and then nothing has been allocated; `EPERM` for a file sealed against growing;
    /// `EISDIR`.
    pub fn allocate(
        &mut self,
        memory: &mut GuestMemory,
        id: InodeId,
        (start, end): (u64, u64),
        keep_size: KeepSize,
        now: FileTime,
    ) -> Result<(), Errno> {
        let (inode, mut means) = self.with_means(memory, id)?;
        let data = inode.file_mut()?;
        if data.seals & F_SEAL_GROW != 0 && end > data.size {
            return Err(Errno::EPERM);
        }
        let mut added = Vec::new();
        for page in start / PAGE_SIZE..end.div_ceil(PAGE_SIZE) {
            match data.hold(&mut means, page) {
                Ok(true) => added.push(page),
                Ok(false) => {}
                Err(_) => {
                    for page in added {
                        data.let_go(&mut means, page);
                    }
                    return Err(Errno::ENOSPC);
                }
            }
        }
        if keep_size == KeepSize::No {
            data.size = data.size.max(end);
        }
        inode.ctime = now;
        Ok(())
    }

    /// The next offset at or after `offset` that holds data or, with [`Seek::Hole`], none (lseek(2)).
    ///
    /// # Errors
    /// `ENXIO` at or past the end of the file, or when no data follows.
    pub fn seek(&self, id: InodeId, offset: u64, seek: Seek) -> Result<u64, Errno> {
        let data = self.get(id)?.file()?;
        if offset >= data.size {
            return Err(Errno::ENXIO);
        }
        // The host's file counts as data, as far as it shows.
        let page = offset / PAGE_SIZE;
        let lower_end = data.lower_end();
        match seek {
            Seek::Data if page < lower_end => Ok(offset),
            Seek::Data => {
                let found = data.next_own(page).ok_or(Errno::ENXIO)?;
                let at = offset.max(found.saturating_mul(PAGE_SIZE));
                if at < data.size {
                    Ok(at)
                } else {
                    Err(Errno::ENXIO)
                }
            }
            Seek::Hole => {
                let mut hole = page.max(lower_end);
                loop {
                    for (found, _) in data.pages.range(hole..) {
                        if *found != hole {
                            break;
                        }
                        hole = hole.saturating_add(1);
                    }
                    match data.spilled.end_of_run(hole) {
                        end if end == hole => break,
                        end => hole = end,
                    }
                }
                Ok(offset.max(hole.saturating_mul(PAGE_SIZE)).min(data.size))
            }
        }
    }
}

/// Says if allocation may grow the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeepSize {
    /// It may.
    No,
    /// FALLOC_FL_KEEP_SIZE
    Yes,
}

/// The kind of range that lseek(2) looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    /// SEEK_DATA
    Data,
    /// SEEK_HOLE
    Hole,
}

impl super::Inode {
    /// Contents changed: times, and the set-id bits go. Linux differs: they stay for CAP_FSETID.
    fn written(&mut self, now: FileTime) {
        self.touch(now);
        self.mode &= !S_ISUID;
        if self.mode & S_ISGID_EXEC == S_ISGID_EXEC {
            self.mode &= !0o2000;
        }
    }
}
