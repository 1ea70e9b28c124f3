//! Places of file mappings: ranges inside the slots reserved for them.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvmlet_abi::{Gpa, HUGE_PAGE_SIZE, PAGE_SIZE};
use kvmlet_budget::{Exhausted, Resource, Share};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::entry::Leaf;
use crate::error::MemError;
use crate::host::{FileArea, FrozenFiles};
use crate::memory::{CHUNK, GuestMemory};
use crate::slots::Store;
use crate::texts::Texts;

const FILE_SLOT: u64 = CHUNK;
/// Address space for file mappings; bounds what KVM spends on the pages of these slots (64 MiB).
const MAX_FILE_SPACE: u64 = 32 << 30;

/// Ways to map a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileMapping {
    /// MAP_PRIVATE, readable and writable: the host copies a page on the first write. The caller
    /// charges what may be written ([`crate::GuestMemory::charge`]).
    Private,
    /// MAP_SHARED, readable.
    SharedReadOnly,
    /// MAP_SHARED, readable and writable: what is written is the file's.
    Shared,
}

/// A file mapping in guest-physical space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileWindow {
    /// Start.
    pub gpa: Gpa,
    /// Length, a multiple of the page size.
    pub len_bytes: u64,
}

/// One file slot: a reservation and what is free in it. Offsets are in bytes from the slot's start.
#[derive(Debug)]
pub(crate) struct FileSlot {
    area: FileArea,
    /// Free ranges, start to length; neighbours are joined.
    free: BTreeMap<u64, u64>,
    /// Mapped ranges, by start. The host may hold neighbours as one.
    pieces: BTreeMap<u64, Piece>,
    /// No free range is longer than this (kept so that a full slot is passed over quickly).
    longest_free_at_most: u64,
}

/// A mapped range of a file slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    len_bytes: u64,
    /// Windows that it is part of: address spaces may have one in common.
    users: u32,
    /// Start of what was mapped with it.
    of: u64,
    is_private: bool,
}

impl FileSlot {
    pub(crate) fn new(len_bytes: u64, share: &Arc<Share>) -> Result<Self, Errno> {
        Ok(Self {
            area: FileArea::new(len_bytes, share)?,
            free: BTreeMap::from([(0, len_bytes)]),
            pieces: BTreeMap::new(),
            longest_free_at_most: len_bytes,
        })
    }

    pub(crate) fn area(&self) -> &FileArea {
        &self.area
    }

    pub(crate) fn area_mut(&mut self) -> &mut FileArea {
        &mut self.area
    }

    /// Host mappings that it consists of, beyond the first. The host may join some of them.
    fn parts(&self) -> usize {
        (self.pieces.len() + self.free.len()).saturating_sub(1)
    }

    /// Maps into the first free range that is long enough; answers its offset, or `None` if there
    /// is none.
    pub(crate) fn map(
        &mut self,
        fd: BorrowedFd<'_>,
        file_offset: u64,
        len_bytes: u64,
        mapping: FileMapping,
    ) -> Result<Option<u64>, MemError> {
        if len_bytes > self.longest_free_at_most {
            return Ok(None);
        }
        let fit = self.free.iter().find(|(_, len)| **len >= len_bytes);
        let Some((&start, &free_len)) = fit else {
            self.longest_free_at_most = len_bytes - PAGE_SIZE;
            return Ok(None);
        };
        let (prot, share) = match mapping {
            FileMapping::Private => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE),
            FileMapping::SharedReadOnly => (ProtFlags::READ, MapFlags::SHARED),
            FileMapping::Shared => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
        };
        let len = usize::try_from(len_bytes).map_err(|_| MemError::MapFile(Errno::NOMEM))?;
        let before = self.parts();
        let is_split = free_len > len_bytes;
        self.area.count_pieces(before + usize::from(is_split))?;
        if let Err(error) = self.area.place(start, len, fd, file_offset, prot, share) {
            self.area.count_pieces(before)?;
            return Err(MemError::MapFile(error));
        }
        self.free.remove(&start);
        if is_split {
            self.free.insert(start + len_bytes, free_len - len_bytes);
        }
        let piece = Piece {
            len_bytes,
            users: 1,
            of: start,
            is_private: mapping == FileMapping::Private,
        };
        self.pieces.insert(start, piece);
        Ok(Some(start))
    }

    /// Gives a range, all of which must be mapped, one more user: it stays mapped until each has unmapped it.
    pub(crate) fn share(&mut self, start: u64, len_bytes: u64) -> Result<(), UnmapError> {
        let end = start.checked_add(len_bytes).ok_or(UnmapError::NotMapped)?;
        self.covered(start, end)?;
        for edge in [start, end] {
            self.cut(edge).map_err(UnmapError::Exhausted)?;
        }
        for (_, piece) in self.pieces.range_mut(start..end) {
            piece.users = piece.users.saturating_add(1);
        }
        Ok(())
    }

    /// The piece that has the page at `offset`.
    fn piece(&self, offset: u64) -> Option<&Piece> {
        let piece = self.pieces.range(..=offset).next_back();
        let piece = piece.filter(|(start, piece)| offset - *start < piece.len_bytes);
        piece.map(|(_, piece)| piece)
    }

    /// Takes one user from the pieces of a range that have others. Answers the rest: stretches (start, end) that
    /// nobody else has.
    fn leave(&mut self, start: u64, end: u64) -> Result<Vec<(u64, u64)>, UnmapError> {
        self.covered(start, end)?;
        let is_shared = |piece: &Piece| piece.users > 1;
        let first = self.pieces.range(..=start).next_back();
        let from = first.map_or(start, |(at, _)| *at);
        if !self
            .pieces
            .range(from..end)
            .any(|(_, piece)| is_shared(piece))
        {
            return Ok(vec![(start, end)]);
        }
        for edge in [start, end] {
            self.cut(edge).map_err(UnmapError::Exhausted)?;
        }
        let mut rest: Vec<(u64, u64)> = Vec::new();
        for (&at, piece) in self.pieces.range_mut(start..end) {
            if is_shared(piece) {
                piece.users -= 1;
            } else if let Some(last) = rest.last_mut().filter(|last| last.1 == at) {
                last.1 = at + piece.len_bytes;
            } else {
                rest.push((at, at + piece.len_bytes));
            }
        }
        Ok(rest)
    }

    /// Unmaps a range, all of which must be mapped, but for what is shared. Host mappings that this divides
    /// are paid for first.
    pub(crate) fn unmap(&mut self, start: u64, len_bytes: u64) -> Result<(), UnmapError> {
        let end = start.checked_add(len_bytes).ok_or(UnmapError::NotMapped)?;
        for (start, end) in self.leave(start, end)? {
            self.unmap_own(start, end)?;
        }
        self.join(start, end);
        Ok(())
    }

    /// Makes one of neighbours in and at a range that were mapped together and have as many users.
    fn join(&mut self, start: u64, end: u64) {
        let before = self.pieces.range(..start).next_back();
        let from = before.map_or(start, |(at, _)| *at);
        let pieces: Vec<(u64, Piece)> = self
            .pieces
            .range(from..=end)
            .map(|(at, piece)| (*at, *piece))
            .collect();
        let mut pieces = pieces.into_iter();
        let Some(mut last) = pieces.next() else {
            return;
        };
        let mut is_changed = false;
        for (at, piece) in pieces {
            let (first, joined) = &mut last;
            let touch = *first + joined.len_bytes == at;
            if touch && joined.users == piece.users && joined.of == piece.of {
                joined.len_bytes += piece.len_bytes;
                self.pieces.remove(&at);
                self.pieces.insert(*first, *joined);
                is_changed = true;
            } else {
                last = (at, piece);
            }
        }
        if is_changed {
            // Fewer than were paid for.
            let _ = self.area.count_pieces(self.parts());
        }
    }

    fn unmap_own(&mut self, start: u64, end: u64) -> Result<(), UnmapError> {
        let len_bytes = end - start;
        let covered = self.covered(start, end)?;
        let len = usize::try_from(len_bytes).map_err(|_| UnmapError::NotMapped)?;
        let before = self.parts();
        let cuts = covered
            .iter()
            .map(|&(at, len)| usize::from(at < start) + usize::from(at + len > end));
        let divided = before + cuts.sum::<usize>();
        self.area
            .count_pieces(divided)
            .map_err(UnmapError::Exhausted)?;
        if let Err(error) = self.area.clear(start, len) {
            let _ = self.area.count_pieces(before);
            return Err(UnmapError::Host(error));
        }
        for (at, len) in covered {
            let Some(piece) = self.pieces.remove(&at) else {
                continue;
            };
            let part = |len_bytes| Piece { len_bytes, ..piece };
            if at < start {
                self.pieces.insert(at, part(start - at));
            }
            if at + len > end {
                self.pieces.insert(end, part(at + len - end));
            }
        }
        self.give_back(start, end);
        // No more than was paid for: this cannot be refused.
        let _ = self.area.count_pieces(self.parts());
        Ok(())
    }

    /// Makes `at` a boundary between pieces, if it lies in one.
    fn cut(&mut self, at: u64) -> Result<(), Exhausted> {
        let Some((&start, &piece)) = self.pieces.range(..at).next_back() else {
            return Ok(());
        };
        if start + piece.len_bytes > at {
            self.area.count_pieces(self.parts() + 1)?;
            let part = |len_bytes| Piece { len_bytes, ..piece };
            self.pieces.insert(start, part(at - start));
            self.pieces.insert(at, part(start + piece.len_bytes - at));
        }
        Ok(())
    }

    /// Drops private copies in a range, all of which must be mapped.
    pub(crate) fn discard(&mut self, start: u64, len_bytes: u64) -> Result<(), UnmapError> {
        let end = start.checked_add(len_bytes).ok_or(UnmapError::NotMapped)?;
        self.covered(start, end)?;
        let len = usize::try_from(len_bytes).map_err(|_| UnmapError::NotMapped)?;
        self.area.discard(start, len).map_err(UnmapError::Host)
    }

    /// Has KVM drop what it holds of a range of a private mapping.
    fn renew(&mut self, start: u64, len_bytes: u64) -> Result<(), UnmapError> {
        let end = start.checked_add(len_bytes).ok_or(UnmapError::NotMapped)?;
        let covered = self.covered(start, end)?;
        let is_private = |at| self.pieces.get(at).is_some_and(|piece| piece.is_private);
        if !covered.iter().all(|(at, _)| is_private(at)) {
            return Err(UnmapError::Host(Errno::ACCESS));
        }
        let len = usize::try_from(len_bytes).map_err(|_| UnmapError::NotMapped)?;
        let before = self.parts();
        // Meanwhile it may be three mappings.
        let divided = self.area.count_pieces(before + 2);
        divided.map_err(UnmapError::Exhausted)?;
        let renewed = self.area.renew(start, len).map_err(UnmapError::Host);
        let _ = self.area.count_pieces(before);
        renewed
    }

    /// Copies the pages of a private mapping.
    fn copy_pages(&mut self, start: u64, len_bytes: u64) {
        if let Ok(len) = usize::try_from(len_bytes) {
            self.area.copy_pages(start, len);
        }
    }

    /// Unmaps everything.
    fn clear(&mut self, len_bytes: u64) -> Result<(), Errno> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let len = usize::try_from(len_bytes).map_err(|_| Errno::NOMEM)?;
        self.area.clear(0, len)?;
        self.pieces.clear();
        self.free = BTreeMap::from([(0, len_bytes)]);
        self.longest_free_at_most = len_bytes;
        let _ = self.area.count_pieces(0);
        Ok(())
    }

    /// The end of the last mapped range.
    pub(crate) fn used_end(&self) -> u64 {
        let last = self.pieces.last_key_value();
        last.map_or(0, |(start, piece)| start + piece.len_bytes)
    }

    /// Ends all writing and unmapping.
    pub(crate) fn freeze(self) -> Result<FrozenFiles, Errno> {
        // Neighbours are one host mapping each, but change together in one call.
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (&start, piece) in &self.pieces {
            let len = piece.len_bytes;
            match ranges.last_mut() {
                Some((first, joined)) if *first + *joined == start => *joined += len,
                _ => ranges.push((start, len)),
            }
        }
        self.area.freeze(ranges.into_iter())
    }

    /// The pieces (start, length) that make up a range without a hole.
    fn covered(&self, start: u64, end: u64) -> Result<Vec<(u64, u64)>, UnmapError> {
        let pieces: Vec<(u64, u64)> = self
            .pieces
            .range(..end)
            .rev()
            .map(|(&at, piece)| (at, piece.len_bytes))
            .take_while(|&(at, len)| at + len > start)
            .collect();
        let bytes: u64 = pieces
            .iter()
            .map(|&(at, len)| (at + len).min(end) - at.max(start))
            .sum();
        if bytes == end - start {
            Ok(pieces)
        } else {
            Err(UnmapError::NotMapped)
        }
    }

    fn give_back(&mut self, mut start: u64, mut end: u64) {
        if let Some((&at, &len)) = self.free.range(..start).next_back()
            && at + len == start
        {
            self.free.remove(&at);
            start = at;
        }
        if let Some(len) = self.free.remove(&end) {
            end += len;
        }
        self.free.insert(start, end - start);
        self.longest_free_at_most = self.longest_free_at_most.max(end - start);
    }
}

/// Why a range could not be unmapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum UnmapError {
    /// Part of it is not mapped.
    NotMapped,
    /// It would take too many host mappings.
    Exhausted(Exhausted),
    /// The host refused.
    Host(Errno),
}

impl UnmapError {
    pub(crate) fn at(self, window: FileWindow) -> MemError {
        match self {
            Self::NotMapped => MemError::Outside {
                gpa: window.gpa,
                len_bytes: window.len_bytes,
            },
            Self::Exhausted(exhausted) => MemError::Exhausted(exhausted),
            Self::Host(errno) => MemError::MapFile(errno),
        }
    }
}

impl GuestMemory {
    /// Maps `len_bytes` (rounded up to pages) of a file from `file_offset` (a multiple of the page
    /// size) somewhere in guest-physical space.
    pub fn map_file(
        &mut self,
        fd: BorrowedFd<'_>,
        file_offset: u64,
        len_bytes: u64,
        mapping: FileMapping,
    ) -> Result<FileWindow, MemError> {
        let len_bytes = kvmlet_abi::addr::page_align_up(len_bytes)
            .filter(|&len| len != 0 && file_offset.is_multiple_of(PAGE_SIZE))
            .ok_or(MemError::Misaligned(file_offset))?;
        for slot in &mut self.slots {
            if let Store::Files(files) = &mut slot.store
                && let Some(offset) = files.map(fd, file_offset, len_bytes, mapping)?
            {
                let gpa = Gpa(slot.gpa + offset);
                return Ok(FileWindow { gpa, len_bytes });
            }
        }
        let size = len_bytes
            .max(FILE_SLOT)
            .checked_next_multiple_of(HUGE_PAGE_SIZE)
            .filter(|&size| size <= MAX_FILE_SPACE - self.file_bytes)
            .ok_or(MemError::TooManyFileMappings)?;
        let mut files = FileSlot::new(size, &self.share).map_err(MemError::MapFile)?;
        let mapped = files.map(fd, file_offset, len_bytes, mapping)?.unwrap_or(0);
        let host_addr = files.area().addr();
        let gpa = self.add_slot(size, host_addr, Store::Files(files))?;
        self.file_bytes += size;
        Ok(FileWindow {
            gpa: Gpa(gpa + mapped),
            len_bytes,
        })
    }

    /// Unmaps a page-aligned part of a window, all of which must be mapped. The host drops what KVM
    /// knows of these frames, so the range can be used again at once. A frozen window stays mapped for
    /// the other forks: nothing is done.
    pub fn unmap_file(&mut self, window: FileWindow) -> Result<(), MemError> {
        let (files, offset) = match self.files_mut(window) {
            Err(MemError::Frozen(_)) => return Ok(()),
            found => found?,
        };
        files
            .unmap(offset, window.len_bytes)
            .map_err(|error| error.at(window))
    }

    /// As [`GuestMemory::unmap_file`], of all windows of an address space that ends. Neighbours cost the host one call.
    ///
    /// # Errors
    /// The last one; all others are unmapped.
    pub fn unmap_files(&mut self, mut windows: Vec<FileWindow>) -> Result<(), MemError> {
        windows.sort_unstable_by_key(|window| window.gpa);
        let slots: Vec<_> = windows
            .iter()
            .map(|window| (self.slot_index(window.gpa), *window))
            .collect();
        let touch = |(slot, one): &(_, FileWindow), (next_slot, next): &(_, FileWindow)| {
            slot == next_slot && one.gpa.wrapping_add(one.len_bytes) == next.gpa
        };
        let mut result = Ok(());
        for run in slots.chunk_by(touch) {
            let Some((_, first)) = run.first() else {
                continue;
            };
            let joined = FileWindow {
                gpa: first.gpa,
                len_bytes: run.iter().map(|(_, window)| window.len_bytes).sum(),
            };
            match self.unmap_file(joined) {
                // One of them is not mapped: nothing has been done.
                Err(MemError::Outside { .. }) if run.len() > 1 => {
                    for (_, window) in run {
                        result = self.unmap_file(*window).and(result);
                    }
                }
                unmapped => result = unmapped.and(result),
            }
        }
        result
    }

    /// Lets another address space have a window too: it stays mapped until both have unmapped it. Neither may
    /// write it. A frozen window belongs to everybody: nothing is done.
    ///
    /// # Errors
    /// [`MemError::Exhausted`]; [`MemError::Outside`] if part of it is not mapped.
    pub fn share_file(&mut self, window: FileWindow) -> Result<(), MemError> {
        let (files, offset) = match self.files_mut(window) {
            Err(MemError::Frozen(_)) => return Ok(()),
            found => found?,
        };
        files
            .share(offset, window.len_bytes)
            .map_err(|error| error.at(window))
    }

    /// True if this page of a file window stays mapped when one address space has given it up. Others have it
    /// too, or it is kept for them ([`GuestMemory::keep_text`]).
    #[must_use]
    pub fn is_shared_window(&self, gpa: Gpa) -> bool {
        self.window_users(gpa) > 1
    }

    /// Users of a page of a window that is not frozen.
    pub(crate) fn window_users(&self, gpa: Gpa) -> u32 {
        self.window_piece(gpa).map_or(0, |piece| piece.users)
    }

    /// The page of a leaf, if it is one of a private file window that is not frozen.
    pub(crate) fn private_window(&self, leaf: Leaf) -> Option<Gpa> {
        let piece = self.window_piece(leaf.gpa);
        piece.filter(|piece| piece.is_private).map(|_| leaf.gpa)
    }

    fn window_piece(&self, gpa: Gpa) -> Option<&Piece> {
        self.slot(gpa).and_then(|slot| match &slot.store {
            Store::Files(files) => files.piece(gpa.0 - slot.gpa),
            _ => None,
        })
    }

    /// Has the host take back what KVM knows of the pages of a private window: a flush of all entries that show
    /// them. The pages stay as they are. A VM that runs meanwhile is interrupted twice.
    ///
    /// # Errors
    /// [`MemError::MapFile`], [`MemError::Exhausted`]; [`MemError::Frozen`] for a frozen window. Nothing has been flushed
    /// then.
    pub fn renew_file(&mut self, window: FileWindow) -> Result<(), MemError> {
        let (files, offset) = self.files_mut(window)?;
        files
            .renew(offset, window.len_bytes)
            .map_err(|error| error.at(window))
    }

    /// Divides what is mapped at both ends of a part of a window, so that the part can be unmapped
    /// without another host mapping. Nothing is done for a frozen one.
    ///
    /// # Errors
    /// [`MemError::Exhausted`].
    pub fn cut_file(&mut self, part: FileWindow) -> Result<(), MemError> {
        let (files, offset) = match self.files_mut(part) {
            Err(MemError::Frozen(_)) => return Ok(()),
            found => found?,
        };
        files.cut(offset)?;
        Ok(files.cut(offset + part.len_bytes)?)
    }

    /// Drops the pages that a private file mapping has copied on write: they read as the file again
    /// (MADV_DONTNEED). All of the page-aligned range must be mapped. [`MemError::Frozen`] for a frozen
    /// window: map the file anew.
    pub fn discard_file(&mut self, window: FileWindow) -> Result<(), MemError> {
        let (files, offset) = self.files_mut(window)?;
        files
            .discard(offset, window.len_bytes)
            .map_err(|error| error.at(window))
    }

    /// Copies the pages of a private window ahead of their first write. Many at once cost a fraction of
    /// what they cost one by one, and KVM maps several with one fault of its own. It may do nothing, and
    /// does nothing past the end of the file.
    pub fn copy_file_pages(&mut self, window: FileWindow) {
        if let Ok((files, offset)) = self.files_mut(window) {
            files.copy_pages(offset, window.len_bytes);
        }
    }

    /// The file slot of a page-aligned window and its offset there.
    fn files_mut(&mut self, window: FileWindow) -> Result<(&mut FileSlot, u64), MemError> {
        let FileWindow { gpa, len_bytes } = window;
        if !gpa.is_page_aligned() || !len_bytes.is_multiple_of(PAGE_SIZE) || len_bytes == 0 {
            return Err(MemError::Misaligned(gpa.0));
        }
        let (slot, offset) = self.locate_mut(gpa, len_bytes)?;
        match &mut slot.store {
            Store::Files(files) => Ok((files, offset)),
            Store::FrozenFiles(_) => Err(MemError::Frozen(gpa)),
            _ => Err(MemError::Outside { gpa, len_bytes }),
        }
    }

    /// Mappings of the host that the files of this VM take, as they are counted.
    #[must_use]
    pub fn file_host_mappings(&self) -> usize {
        let slots = self.slots.iter();
        let files = slots.filter(|slot| matches!(slot.store, Store::Files(_)));
        files.count() + self.share.held(Resource::Mappings)
    }

    /// True if the address lies in space for file mappings.
    #[must_use]
    pub fn is_file_backed(&self, gpa: Gpa) -> bool {
        self.slot(gpa)
            .is_some_and(|slot| matches!(slot.store, Store::Files(_) | Store::FrozenFiles(_)))
    }

    /// Unmaps every file mapped by a fork itself.
    pub(crate) fn clear_files(&mut self) -> Result<(), MemError> {
        for slot in &mut self.slots {
            if let Store::Files(files) = &mut slot.store {
                files.clear(slot.len_bytes).map_err(MemError::MapFile)?;
            }
        }
        self.texts = self
            .fork
            .as_ref()
            .map_or_else(Texts::default, |fork| fork.frozen.texts.clone());
        Ok(())
    }
}
