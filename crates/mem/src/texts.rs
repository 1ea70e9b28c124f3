//! Windows of programs' text that stay mapped: the next execve(2) finds them.
//!
//! A short program is mapped anew each time that it is executed. Each of its libraries would cost the host several
//! mappings, and KVM would look up each page. So the text of a file is mapped once, as a whole, and stays when no
//! address space has it any more. Nobody writes to such a window. Who wants to ([`GuestMemory::give_up_text`]) has it alone
//! from then on.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvmlet_abi::addr::page_align_up;
use kvmlet_abi::{Gpa, PAGE_SIZE};

use crate::error::MemError;
use crate::files::{FileMapping, FileWindow};
use crate::memory::GuestMemory;

/// Most windows that are kept.
const COUNT_MAX: usize = 32;
/// Files beyond this size are not kept, and the windows that are have this size at most in all.
const FILE_BYTES_MAX: u64 = 32 << 20;
const BYTES_MAX: u64 = 128 << 20;
/// A loader maps a library with the zeroed memory that follows it, then the parts over that.
const BEYOND_BYTES: u64 = 256 << 10;
/// Files up to this size are copied. All copies have this share of the limit on memory at most, as a divisor.
const COPIED_BYTES_MAX: u64 = 2 << 20;
const COPIED_SHARE: u64 = 64;
/// The share of the limit that is free while memory is plenty, as a divisor.
const FREE_SHARE: u64 = 4;

/// A file of the host's as it was at one time. While it is mapped, no other file has its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileVersion {
    /// Device number of the file system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub len_bytes: u64,
    /// Last modification: seconds and nanoseconds.
    pub modified: (i64, u32),
    /// Last change of its status: seconds and nanoseconds.
    pub changed: (i64, u32),
}

/// A kept window: all of a file, and some space after it.
#[derive(Clone, Copy, Debug)]
struct Text {
    file: FileVersion,
    window: FileWindow,
    /// What of it the host has copied. It is charged.
    copied_bytes: u64,
}

impl Text {
    fn part(&self, offset: u64, len_bytes: u64) -> Option<FileWindow> {
        let end = offset.checked_add(len_bytes)?;
        (end <= self.window.len_bytes).then_some(FileWindow {
            gpa: self.window.gpa.checked_add(offset)?,
            len_bytes,
        })
    }

    /// Without the space after its end.
    const fn in_file(&self) -> FileWindow {
        FileWindow {
            gpa: self.window.gpa,
            len_bytes: self.window.len_bytes - BEYOND_BYTES,
        }
    }

    fn has(&self, gpa: Gpa) -> bool {
        let offset = gpa.0.checked_sub(self.window.gpa.0);
        offset.is_some_and(|offset| offset < self.window.len_bytes)
    }
}

/// The kept windows, the one that was used last at the end. Forks have those of the frozen program in common.
#[derive(Clone, Debug, Default)]
pub(crate) struct Texts(Arc<Vec<Text>>);

impl GuestMemory {
    /// A part of a kept window of the file, if there is one. It is the caller's to unmap, and nobody may write it.
    ///
    /// # Errors
    /// [`MemError::Exhausted`].
    pub fn find_text(
        &mut self,
        file: &FileVersion,
        offset: u64,
        len_bytes: u64,
    ) -> Result<Option<FileWindow>, MemError> {
        let Some(index) = self.texts.0.iter().position(|text| text.file == *file) else {
            return Ok(None);
        };
        let part = self
            .texts
            .0
            .get(index)
            .and_then(|text| text.part(offset, len_bytes));
        let Some(part) = part else {
            return Ok(None);
        };
        self.share_file(part)?;
        if index + 1 < self.texts.0.len() {
            let texts = Arc::make_mut(&mut self.texts.0);
            let text = texts.remove(index);
            texts.push(text);
        }
        Ok(Some(part))
    }

    /// As [`GuestMemory::find_text`], of a file that is mapped and kept if it is not yet. `None` if it is too large, or the
    /// part lies beyond its end.
    ///
    /// # Errors
    /// As [`GuestMemory::map_file`].
    pub fn keep_text(
        &mut self,
        file: &FileVersion,
        fd: BorrowedFd<'_>,
        offset: u64,
        len_bytes: u64,
    ) -> Result<Option<FileWindow>, MemError> {
        if let Some(part) = self.find_text(file, offset, len_bytes)? {
            self.copy_last_text();
            return Ok(Some(part));
        }
        let is_kept = self.texts.0.iter().any(|text| text.file == *file);
        let end = offset.checked_add(len_bytes);
        let in_file =
            page_align_up(file.len_bytes).filter(|len| end.is_some_and(|end| end <= *len));
        let Some(file_bytes) = in_file.filter(|len| *len <= FILE_BYTES_MAX && !is_kept) else {
            return Ok(None);
        };
        let whole_bytes = file_bytes + BEYOND_BYTES;
        self.make_room_for_text(whole_bytes);
        let window = self.map_file(fd, 0, whole_bytes, FileMapping::Private)?;
        Arc::make_mut(&mut self.texts.0).push(Text {
            file: *file,
            window,
            copied_bytes: 0,
        });
        self.find_text(file, offset, len_bytes)
    }

    /// Gives up the windows that were not used for longest, until another one may come.
    fn make_room_for_text(&mut self, len_bytes: u64) {
        loop {
            let all_bytes: u64 = self.texts.0.iter().map(|text| text.window.len_bytes).sum();
            let is_room = self.texts.0.len() < COUNT_MAX && all_bytes + len_bytes <= BYTES_MAX;
            if is_room || !self.give_up_oldest_text() {
                return;
            }
        }
    }

    /// Gives up the kept window that was not used for longest. False if there is none.
    pub fn give_up_oldest_text(&mut self) -> bool {
        if self.texts.0.is_empty() {
            return false;
        }
        self.give_up(0);
        true
    }

    fn give_up(&mut self, index: usize) {
        let text = Arc::make_mut(&mut self.texts.0).remove(index);
        self.drop_copies(text);
        // What the host refuses to unmap stays, unused.
        let _ = self.unmap_file(text.window);
    }

    /// Has the host copy the text that was used last, if that is worth it. Where KVM keeps shadows of tables, it fills in
    /// eight pages at a time, but only such as the host could write.
    fn copy_last_text(&mut self) {
        let copied_bytes: u64 = self.texts.0.iter().map(|text| text.copied_bytes).sum();
        let Some(text) = self.texts.0.last().copied() else {
            return;
        };
        let window = text.in_file();
        let room_bytes = (self.limit_bytes() / COPIED_SHARE).saturating_sub(copied_bytes);
        let is_worth_it = self.table_window().is_some()
            && text.copied_bytes == 0
            && window.len_bytes <= COPIED_BYTES_MAX.min(room_bytes)
            && !self.is_frozen(window.gpa)
            && self.is_plenty()
            && self.charge_kernel(window.len_bytes).is_ok();
        if !is_worth_it {
            return;
        }
        self.copy_file_pages(window);
        if let Some(text) = Arc::make_mut(&mut self.texts.0).last_mut() {
            text.copied_bytes = window.len_bytes;
        }
    }

    fn drop_copies(&mut self, text: Text) {
        if text.copied_bytes != 0 {
            // If the host refuses, they go with the window.
            let _ = self.discard_file(text.in_file());
            self.uncharge_kernel(text.copied_bytes);
        }
    }

    /// Drops all copies of text. For a freeze, and when memory is not plenty any more.
    pub fn drop_text_copies(&mut self) {
        let texts = self.texts.clone();
        texts.0.iter().for_each(|text| self.drop_copies(*text));
        drop(texts);
        if self.texts.0.iter().any(|text| text.copied_bytes != 0) {
            let texts = Arc::make_mut(&mut self.texts.0).iter_mut();
            texts.for_each(|text| text.copied_bytes = 0);
        }
    }

    /// True while a good part of the limit is free: memory may be kept that nobody needs.
    #[must_use]
    pub fn is_plenty(&self) -> bool {
        let free_bytes = self.limit_bytes().saturating_sub(self.used_bytes());
        free_bytes >= self.limit_bytes() / FREE_SHARE
    }

    /// True if the page lies in a kept window.
    #[must_use]
    pub fn is_kept_text(&self, gpa: Gpa) -> bool {
        self.texts.0.iter().any(|text| text.has(gpa))
    }

    /// True if one address space alone has this page of a window, kept or not.
    #[must_use]
    pub fn is_text_of_one(&self, gpa: Gpa) -> bool {
        self.window_users(gpa) <= 1 + u32::from(self.is_kept_text(gpa))
    }

    /// The page is about to be written: the window that it is part of is kept no more.
    pub fn give_up_text(&mut self, gpa: Gpa) {
        let index = self.texts.0.iter().position(|text| text.has(gpa));
        if let Some(index) = index.filter(|_| !self.is_frozen(gpa)) {
            self.give_up(index);
        }
    }
}

const _: () = assert!(BEYOND_BYTES.is_multiple_of(PAGE_SIZE));
