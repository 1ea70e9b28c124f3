//! Pages of a file that lie on the host's disk. A page is in memory, on the disk, or neither.
//!
//! Forks have the disk's pages in common, as they have frozen frames. Each value of the file system holds a share of the
//! extents. Who writes one that others have too gets a copy. What is mapped is in memory first.

use core::ops::Range;
use std::sync::Arc;

use imbl::OrdMap;
use kvmlet_abi::{Errno, PAGE_SIZE};
use kvmlet_hostfs::{EXTENT_BYTES, EXTENT_PAGES, Extent, Spill};
use kvmlet_mem::GuestMemory;

use super::FileData;
use super::data::{Old, by_page};
use super::room::{Means, NoPage};

/// Host memory charged for an extent: more than one takes.
const EXTENT_COST_BYTES: u64 = 256;
const PAGE: usize = PAGE_SIZE as usize;

/// The pages of a file that lie on the disk, by the stretch of the file that an extent holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Spilled {
    parts: OrdMap<u64, Part>,
    pages: u64,
}

/// An extent, and the pages in it that are the file's, a bit each.
#[derive(Clone, Debug)]
struct Part {
    has: u16,
    extent: Arc<Extent>,
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        self.has == other.has && Arc::ptr_eq(&self.extent, &other.extent)
    }
}

impl Eq for Part {}

/// The extent's number in its file, and the page's in it.
fn split(page: u64) -> (u64, u32) {
    (page / EXTENT_PAGES, (page % EXTENT_PAGES) as u32)
}

/// Bits of pages `from` to `to` of an extent.
fn bits(from: u64, to: u64) -> u16 {
    let below = |page: u64| match page {
        0..EXTENT_PAGES => (1u16 << page) - 1,
        _ => u16::MAX,
    };
    below(to) & !below(from)
}

impl Spilled {
    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// True if this page is one.
    #[must_use]
    pub fn has(&self, page: u64) -> bool {
        let (index, at) = split(page);
        let part = self.parts.get(&index);
        part.is_some_and(|part| part.has & 1 << at != 0)
    }

    /// Memory charged for them, in bytes.
    pub(super) fn cost_bytes(&self) -> u64 {
        (self.parts.len() as u64).saturating_mul(EXTENT_COST_BYTES)
    }

    /// The pages by index, ascending, from `page` on.
    pub fn from(&self, page: u64) -> impl Iterator<Item = u64> {
        let parts = self.parts.range(page / EXTENT_PAGES..);
        let pages = parts.flat_map(|(index, part)| {
            let first = index.saturating_mul(EXTENT_PAGES);
            let has = part.has;
            (0..EXTENT_PAGES)
                .filter(move |at| has & 1 << at != 0)
                .map(move |at| first.saturating_add(at))
        });
        pages.skip_while(move |at| *at < page)
    }

    /// The host's file that a page lies in.
    pub(super) fn spill_of(&self, page: u64) -> Option<Arc<Spill>> {
        let part = self.parts.get(&split(page).0)?;
        Some(Arc::clone(part.extent.spill()))
    }

    /// Number of pages in a range.
    #[must_use]
    pub fn count(&self, range: Range<u64>) -> u64 {
        let pages = self.from(range.start);
        pages.take_while(|page| *page < range.end).count() as u64
    }

    /// Pages from `page` on that lie one behind the other: 0 if it is none.
    fn run(&self, page: u64) -> u64 {
        let (index, at) = split(page);
        let has = self.parts.get(&index).map_or(0, |part| part.has);
        u64::from((!(has >> at)).trailing_zeros()).min(EXTENT_PAGES.saturating_sub(u64::from(at)))
    }

    /// The first page from `page` on that is none.
    #[must_use]
    pub fn end_of_run(&self, page: u64) -> u64 {
        let mut end = page;
        loop {
            match self.run(end) {
                0 => return end,
                pages => end = end.saturating_add(pages),
            }
        }
    }

    /// Reads bytes at an offset of the file that lie on the disk, as far as they go on there: the count.
    ///
    /// # Errors
    /// The host's.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let (page, in_page) = (offset / PAGE_SIZE, offset % PAGE_SIZE);
        let (index, at) = split(page);
        let len_bytes = self.run(page).saturating_mul(PAGE_SIZE);
        let len = into.len().min(len_bytes.saturating_sub(in_page) as usize);
        let (Some(part), Some(into)) = (self.parts.get(&index), into.get_mut(..len)) else {
            return Ok(0);
        };
        let at = u64::from(at)
            .saturating_mul(PAGE_SIZE)
            .saturating_add(in_page);
        part.extent.read(at, into)?;
        Ok(len)
    }

    /// Writes bytes at an offset of the file, which lie in one extent. A page of which they are a part lies on the disk
    /// already.
    fn write(
        &mut self,
        memory: &mut GuestMemory,
        spill: &Arc<Spill>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        let (index, _) = split(offset / PAGE_SIZE);
        let start = offset % EXTENT_BYTES;
        let end = start.saturating_add(bytes.len() as u64);
        let written = bits(start / PAGE_SIZE, end.div_ceil(PAGE_SIZE));
        let whole = bits(start.div_ceil(PAGE_SIZE), end / PAGE_SIZE);
        if !self.parts.contains_key(&index) {
            memory
                .charge(EXTENT_COST_BYTES)
                .map_err(|_| Errno::ENOSPC)?;
            let Some(extent) = spill.extent() else {
                memory.uncharge(EXTENT_COST_BYTES);
                return Err(Errno::ENOSPC);
            };
            let extent = Arc::new(extent);
            self.parts.insert(index, Part { has: 0, extent });
        }
        // Looked up to be changed: this value has the part for itself from here on, if no fork has it.
        let part = self.parts.get_mut(&index).ok_or(Errno::EIO)?;
        let done = part
            .own(whole)
            .and_then(|extent| extent.write(start, bytes));
        if let Err(error) = done {
            if part.has == 0 {
                self.parts.remove(&index);
                memory.uncharge(EXTENT_COST_BYTES);
            }
            return Err(error);
        }
        let added = written & !part.has;
        part.has |= written;
        self.pages = self.pages.saturating_add(u64::from(added.count_ones()));
        Ok(())
    }

    /// Drops the pages of a range; how many there were.
    pub(super) fn forget(&mut self, memory: &mut GuestMemory, range: Range<u64>) -> u64 {
        if range.is_empty() || self.pages == 0 {
            return 0;
        }
        let last = range.end.saturating_sub(1) / EXTENT_PAGES;
        let inside = self.parts.range(range.start / EXTENT_PAGES..=last);
        let indexes: Vec<u64> = inside.map(|(index, _)| *index).collect();
        let mut dropped = 0u64;
        for index in indexes {
            let first = index.saturating_mul(EXTENT_PAGES);
            let from = range.start.saturating_sub(first).min(EXTENT_PAGES);
            let to = range.end.saturating_sub(first).min(EXTENT_PAGES);
            let gone = bits(from, to);
            let Some(part) = self.parts.get_mut(&index) else {
                continue;
            };
            let count = (part.has & gone).count_ones();
            part.has &= !gone;
            dropped = dropped.saturating_add(u64::from(count));
            if part.has == 0 {
                self.parts.remove(&index);
                memory.uncharge(EXTENT_COST_BYTES);
            } else if count > 0
                && let Some(extent) = Arc::get_mut(&mut part.extent)
            {
                let len = to.saturating_sub(from).saturating_mul(PAGE_SIZE);
                extent.punch(from.saturating_mul(PAGE_SIZE), len);
            }
        }
        self.pages = self.pages.saturating_sub(dropped);
        dropped
    }
}

impl Part {
    /// The extent, to be written. One that a fork has too is copied, but for the pages `whole`, which are written over.
    fn own(&mut self, whole: u16) -> Result<&mut Extent, Errno> {
        if Arc::get_mut(&mut self.extent).is_none() {
            let mut copy = self.extent.spill().extent().ok_or(Errno::ENOSPC)?;
            let mut bytes = [0; PAGE];
            for at in (0..EXTENT_PAGES).filter(|at| self.has & !whole & 1 << at != 0) {
                let offset = at.saturating_mul(PAGE_SIZE);
                self.extent.read(offset, &mut bytes)?;
                copy.write(offset, &bytes)?;
            }
            self.extent = Arc::new(copy);
        }
        Arc::get_mut(&mut self.extent).ok_or(Errno::EIO)
    }
}

impl FileData {
    /// The bytes that a page shows which is not in memory.
    pub(super) fn show(&self, page: u64, into: &mut [u8; PAGE]) -> Result<(), Errno> {
        if self.spilled.has(page) {
            return self
                .spilled
                .read(page.saturating_mul(PAGE_SIZE), into)
                .map(drop);
        }
        let lower = self.lower.as_ref().filter(|_| page < self.lower_end());
        let count = match lower {
            Some(lower) => lower.read(page.saturating_mul(PAGE_SIZE), into)?,
            None => 0,
        };
        into.iter_mut().skip(count).for_each(|byte| *byte = 0);
        Ok(())
    }

    /// Bytes of `bytes` from `offset` on that go to the disk: those of pages which are not in memory, in one extent.
    pub(super) fn disk_stretch<'a>(&self, offset: u64, bytes: &'a [u8]) -> &'a [u8] {
        let parts = by_page(offset, bytes.len());
        let first = offset / PAGE_SIZE / EXTENT_PAGES;
        let fits = |(page, ..): &(u64, u64, usize, usize)| {
            page / EXTENT_PAGES == first && !self.pages.contains_key(page)
        };
        let end = parts.take_while(fits).last();
        let len = end.map_or(0, |(_, _, at, count)| at.saturating_add(count));
        bytes.get(..len).unwrap_or_default()
    }

    /// Writes to the disk what [`FileData::disk_stretch`] has found, as far as there is room: the count.
    pub(super) fn write_to_disk(
        &mut self,
        means: &mut Means<'_>,
        spill: &Arc<Spill>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<usize, Errno> {
        let first = offset / PAGE_SIZE;
        let mut end = first;
        let mut taken = 0u64;
        for (page, ..) in by_page(offset, bytes.len()) {
            if !self.spilled.has(page) {
                if means.take_page().is_err() {
                    break;
                }
                taken = taken.saturating_add(1);
            }
            end = page.saturating_add(1);
        }
        let most = end.saturating_mul(PAGE_SIZE).saturating_sub(offset);
        let len = bytes.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let bytes = bytes.get(..len).filter(|bytes| !bytes.is_empty());
        let bytes = bytes.ok_or(Errno::ENOSPC)?;
        let written = self.whole_pages(offset, bytes).and_then(|whole| {
            let (at, bytes) = match &whole {
                Some(whole) => (first.saturating_mul(PAGE_SIZE), whole.as_slice()),
                None => (offset, bytes),
            };
            self.spilled.write(means.memory, spill, at, bytes)
        });
        if let Err(error) = written {
            means.give_pages(taken);
            if error == Errno::ENOSPC {
                means.note_full_disk();
            }
            return Err(error);
        }
        Ok(len)
    }

    /// The pages that `bytes` at `offset` are written to, with what else is in them. `None` if they may be written as
    /// they are.
    fn whole_pages(&self, offset: u64, bytes: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        let in_page = (offset % PAGE_SIZE) as usize;
        let end = in_page.saturating_add(bytes.len());
        let behind = offset.saturating_add(bytes.len() as u64);
        let is_there = |at: u64| at.is_multiple_of(PAGE_SIZE) || self.spilled.has(at / PAGE_SIZE);
        if is_there(offset) && is_there(behind) {
            return Ok(None);
        }
        let first = offset / PAGE_SIZE;
        let mut whole = vec![0; end.next_multiple_of(PAGE)];
        let last = (whole.len() / PAGE).saturating_sub(1);
        for (number, page) in whole.as_chunks_mut::<PAGE>().0.iter_mut().enumerate() {
            if number == 0 || number == last {
                self.show(first.saturating_add(number as u64), page)?;
            }
        }
        if let Some(into) = whole.get_mut(in_page..end) {
            into.copy_from_slice(bytes);
        }
        Ok(Some(whole))
    }

    /// Makes a page the file's own, with what it shows: in memory, or past memory's share on the disk. True if it was not
    /// before.
    pub(super) fn hold(&mut self, means: &mut Means<'_>, page: u64) -> Result<bool, Errno> {
        if self.pages.contains_key(&page) || self.spilled.has(page) {
            return Ok(false);
        }
        if let Some(spill) = means.spill_past_share() {
            let mut bytes = [0; PAGE];
            self.show(page, &mut bytes)?;
            self.write_to_disk(means, &spill, page.saturating_mul(PAGE_SIZE), &bytes)?;
        } else {
            let own = self.own(means, page, Old::Kept);
            own.map_err(|_: NoPage| Errno::ENOSPC)?;
        }
        Ok(true)
    }

    /// Gives up a page that the file holds.
    pub(super) fn let_go(&mut self, means: &mut Means<'_>, page: u64) {
        let mut count = self
            .spilled
            .forget(means.memory, page..page.saturating_add(1));
        if let Some(frame) = self.pages.remove(&page) {
            means.memory.free_frame(frame);
            count = count.saturating_add(1);
        }
        means.give_pages(count);
    }
}

impl FileData {
    /// The pages that the file has for itself, by index. The order is none.
    pub fn own_pages(&self) -> impl Iterator<Item = u64> {
        self.pages.keys().copied().chain(self.spilled.from(0))
    }

    /// The first page from `page` on that the file has for itself.
    #[must_use]
    pub fn next_own(&self, page: u64) -> Option<u64> {
        let frame = self.pages.range(page..).next().map(|(found, _)| *found);
        let spilled = self.spilled.from(page).next();
        frame.into_iter().chain(spilled).min()
    }

    /// Reads a page that the file has for itself.
    ///
    /// # Errors
    /// `EIO`; the host's.
    pub fn read_own(&self, memory: &GuestMemory, page: u64, into: &mut [u8]) -> Result<(), Errno> {
        match self.pages.get(&page) {
            Some(frame) => memory.read(*frame, into).map_err(|_| Errno::EIO),
            None => self
                .spilled
                .read(page.saturating_mul(PAGE_SIZE), into)
                .map(drop),
        }
    }
}
