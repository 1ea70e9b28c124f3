//! The number of pages that a request writes, by the median of the last ones.
//!
//! Dirty bits may tell nothing. Then a page that is written with what it held is seen only by the fault that copies it.
//! Requests that find their pages copied seem to write fewer than they do. Those of a program that counts references
//! seem to write half. The first requests of forks for which nothing was copied say by how much.

use std::collections::VecDeque;

use kvmlet_mem::ResetReport;

/// Requests whose written sets make the median.
const LAST: usize = 15;
/// Written sets of each kind that are compared. They are of the program's first requests: later ones have no say, so
/// that few of them cannot make much of it.
const COMPARED: usize = 15;
/// Pages that a request is taken to write for each that it was seen to write, at most.
const FACTOR_MAX: u64 = 4;

/// The written set of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Size {
    pub written_pages: u64,
    /// Further ones that may have been written, with what they held.
    pub unknown_pages: u64,
    /// True if it found no page copied, so that each write was a fault.
    pub is_first: bool,
}

impl Size {
    /// That of a request of which nothing is unknown.
    pub fn known(written_pages: u64) -> Self {
        Self {
            written_pages,
            unknown_pages: 0,
            is_first: false,
        }
    }

    /// As a reset has found it.
    pub fn of(report: &ResetReport) -> Self {
        let faults = report.copied_on_write.len() as u64;
        Self {
            written_pages: report.written_pages,
            unknown_pages: report.unknown_pages,
            // Few copies were made beside those that were written.
            is_first: faults == report.written_pages && report.unknown_pages <= faults,
        }
    }

    /// True if more may have been written than was seen.
    fn is_part(self) -> bool {
        self.unknown_pages != 0 && !self.is_first
    }
}

/// The sizes of written sets.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    last: VecDeque<Size>,
    /// Of the program's first requests that found no page copied.
    first: Vec<u64>,
    /// Of the first ones that did, as they were seen.
    parts: Vec<u64>,
    median: Option<u64>,
}

impl Sizes {
    /// Adds that of a request. One that wrote nothing tells nothing.
    pub fn note(&mut self, size: Size) {
        if size.written_pages == 0 {
            return;
        }
        let gone = match self.last.len() {
            LAST => self.last.pop_front(),
            _ => None,
        };
        self.last.push_back(size);
        let compared = match (size.is_first, size.is_part()) {
            (true, _) => Some(&mut self.first),
            (false, true) => Some(&mut self.parts),
            (false, false) => None,
        };
        let compared = compared.filter(|compared| compared.len() < COMPARED);
        if compared.is_none() && gone == Some(size) {
            return;
        }
        if let Some(compared) = compared {
            compared.push(size.written_pages);
        }
        self.median = self.calculate();
    }

    /// The pages that a request writes; `None` while nobody knows.
    pub fn median(&self) -> Option<u64> {
        self.median
    }

    fn calculate(&self) -> Option<u64> {
        let mut last: Vec<Size> = self.last.iter().copied().collect();
        last.sort_unstable_by_key(|size| (size.written_pages, size.unknown_pages));
        let size = lower_median(&last)?;
        let seen = size.written_pages;
        if !size.is_part() {
            return Some(seen);
        }
        let sorted = |sizes: &[u64]| {
            let mut sizes = sizes.to_vec();
            sizes.sort_unstable();
            lower_median(&sizes)
        };
        let (Some(whole), Some(part)) = (sorted(&self.first), sorted(&self.parts)) else {
            return Some(seen);
        };
        let most = seen.saturating_mul(FACTOR_MAX);
        let all = seen.saturating_mul(whole).checked_div(part).unwrap_or(seen);
        // No more than may have been.
        let most = most.min(seen.saturating_add(size.unknown_pages));
        Some(all.clamp(seen, most))
    }
}

/// The middle one, the lower of two.
fn lower_median<T: Copy>(sorted: &[T]) -> Option<T> {
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(written_pages: u64) -> Size {
        Size {
            is_first: true,
            ..Size::known(written_pages)
        }
    }

    fn part(written_pages: u64, unknown_pages: u64) -> Size {
        Size {
            written_pages,
            unknown_pages,
            is_first: false,
        }
    }

    fn median(all: impl IntoIterator<Item = Size>) -> Option<u64> {
        let mut sizes = Sizes::default();
        all.into_iter().for_each(|size| sizes.note(size));
        sizes.median()
    }

    #[test]
    fn what_is_known_counts_as_it_is() {
        assert_eq!(median([]), None);
        assert_eq!(median([Size::known(0)]), None);
        assert_eq!(median([3, 9, 5, 4].map(Size::known)), Some(4));
        let many = (0..100).map(|_| Size::known(7));
        assert_eq!(median(many.chain([Size::known(500)])), Some(7));
    }

    #[test]
    fn what_is_seen_in_part_is_made_up_for() {
        assert_eq!(median([part(60, 80)]), Some(60), "nothing to compare with");
        let steady = (0..100).map(|_| part(60, 80));
        assert_eq!(median([first(120)].into_iter().chain(steady)), Some(120));
        let less = (0..100).map(|number| part(if number < 15 { 60 } else { 20 }, 80));
        let less = [first(120)].into_iter().chain(less);
        assert_eq!(median(less), Some(40), "a change of load is followed");
        let few_unknown = [first(120), part(60, 80), part(60, 5), part(60, 5)];
        assert_eq!(median(few_unknown), Some(65), "never more than may be");
        let hardly_any = (0..100).map(|_| part(1, 500));
        let hardly_any = [first(120)].into_iter().chain(hardly_any);
        assert_eq!(median(hardly_any), Some(FACTOR_MAX));
    }

    #[test]
    fn later_requests_do_not_change_by_how_much() {
        let usual = (0..20).flat_map(|_| [first(100), part(50, 60)]);
        let hostile = (0..20).map(|_| first(15_000));
        let again = (0..15).map(|_| part(50, 60));
        assert_eq!(median(usual.chain(hostile).chain(again)), Some(100));
    }
}
