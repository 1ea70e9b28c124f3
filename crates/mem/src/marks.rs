//! Which pages of a mapping the host may have written.

use kvmlet_abi::PAGE_SIZE;

use crate::set::IndexSet;

/// A set of the pages of a mapping, by what they hold at byte offsets.
#[derive(Debug, Default)]
pub(crate) struct PageMarks {
    words: Vec<u64>,
    /// Indices of the words that are not 0.
    used: Vec<usize>,
}

impl PageMarks {
    /// Adds the pages of a range that lies in the mapping.
    pub(crate) fn add(&mut self, offset: u64, len: usize) {
        let Some(last) = (len as u64).checked_sub(1) else {
            return;
        };
        for page in offset / PAGE_SIZE..=offset.saturating_add(last) / PAGE_SIZE {
            let at = (page / 64) as usize;
            if at >= self.words.len() {
                self.words.resize(at + 1, 0);
            }
            if self.words[at] == 0 {
                self.used.push(at);
            }
            self.words[at] |= 1 << (page % 64);
        }
    }

    pub(crate) fn has(&self, offset: u64) -> bool {
        let page = offset / PAGE_SIZE;
        let word = self.words.get((page / 64) as usize);
        word.is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    /// Those of the 512 pages from one with a number that is a multiple of 512.
    pub(crate) fn block(&self, page: u64) -> IndexSet {
        let first = (page / 64) as usize;
        let words = self.words.get(first..).unwrap_or_default();
        IndexSet::of_words(words)
    }

    pub(crate) fn clear(&mut self) {
        for at in self.used.drain(..) {
            self.words[at] = 0;
        }
    }
}
