//! Pages of files that system calls read again and again: the empty path of fstat(3) in a C library's
//! constants. A read from a file's page takes a host call, because the file may shrink meanwhile; a
//! page that is ours takes none. For a private mapping mmap(2) leaves it unspecified whether changes to
//! the file are seen, so the page may become ours.

use kvmlet_abi::{Gva, PAGE_SIZE};

use super::space::Space;
use super::vma::{Backing, Prot};
use crate::cx::Cx;

/// Reads of a page after which it becomes ours.
const READS: u8 = 16;
/// Pages that are counted at a time.
const PAGES: usize = 4;
/// Longer reads cost more than the host call.
const READ_MAX_BYTES: usize = 256;

/// The pages that were read last, and how often.
#[derive(Clone, Debug, Default)]
pub struct HotPages {
    pages: [(u64, u8); PAGES],
    next: usize,
}

impl HotPages {
    /// Counts a read; whether it was one too many.
    fn count(&mut self, page: u64) -> bool {
        if let Some((_, reads)) = self.pages.iter_mut().find(|(known, _)| *known == page) {
            *reads = reads.saturating_add(1);
            return *reads >= READS;
        }
        if let Some(slot) = self.pages.get_mut(self.next) {
            *slot = (page, 1);
        }
        self.next = (self.next + 1) % PAGES;
        false
    }

    fn forget(&mut self, page: u64) {
        for slot in &mut self.pages {
            if slot.0 == page {
                *slot = (0, 0);
            }
        }
    }
}

/// A system call has read `len` bytes at `gva`.
pub(super) fn note_read(cx: &mut Cx<'_>, gva: Gva, len: usize) {
    if len > READ_MAX_BYTES {
        return;
    }
    let page = gva.page_down();
    let Ok((tables, memory)) = cx.tables() else {
        return;
    };
    let Some(gpa) = tables.translate(memory, page) else {
        return;
    };
    // A fork's copy would go at each reset.
    if !memory.is_file_backed(gpa) || memory.is_frozen(gpa) {
        return;
    }
    let machine = &mut *cx.machine;
    if machine.hot_pages.count(page.0) {
        machine.hot_pages.forget(page.0);
        if let Ok(mut space) = Space::of(cx) {
            space.take_out(page);
        }
    }
}

impl Space<'_> {
    /// Makes a file's page that is only read ours. Without effect where that is not allowed, or where there
    /// is no memory for it.
    fn take_out(&mut self, page: Gva) {
        let Some(vma) = self.mm.find(page.0) else {
            return;
        };
        // Program text stays the file's: trampolines are written into the host's copy.
        let may = matches!(vma.backing, Backing::File(_))
            && !vma.is_shared()
            && !vma.prot.contains(Prot::EXEC);
        let flags = vma.pte();
        if !may || !self.has_plenty() {
            return;
        }
        let Some(gpa) = self.tables.translate(self.mem, page) else {
            return;
        };
        if let Ok(copy) = self.mem.alloc_copy(gpa) {
            // What cannot be mapped has been given back: the page stays as it was.
            let _ = self.replace(page, copy, flags);
        }
    }
}

const _: () = assert!(READ_MAX_BYTES as u64 <= PAGE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_taken_at_its_last_read() {
        let mut hot = HotPages::default();
        for _ in 1..READS {
            assert!(!hot.count(0x1000));
        }
        assert!(hot.count(0x1000));
        hot.forget(0x1000);
        assert!(!hot.count(0x1000));
    }

    #[test]
    fn pages_that_are_read_in_turn_push_each_other_out() {
        let mut hot = HotPages::default();
        for _ in 0..2 * u64::from(READS) {
            for page in 1..=PAGES as u64 + 1 {
                assert!(!hot.count(page << 12));
            }
        }
    }
}
