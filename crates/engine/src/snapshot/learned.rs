//! The pages that requests write, as their resets report it. They decide which pages are copied ahead for a
//! new fork, and how many copies a fork may keep. One request decides neither.

use std::collections::BTreeMap;

use kvmlet_abi::Gva;
use kvmlet_mem::MmId;

use super::sizes::{Size, Sizes};

/// A page is learned when this many of the last [`RECENT_REPORTS`] reports named it.
const NAMED_MIN: u32 = 2;
/// At most 64: a report is a bit.
const RECENT_REPORTS: u32 = 8;
/// Reports without its name after which a learned page is forgotten. More than above: a page that is written
/// with what it held is named only while it is not copied ahead.
const FORGOTTEN_AFTER: u64 = 64;
/// Pages learned at most.
const LEARNED_MAX: u64 = 16_384;
/// Pages known of at most, learned ones among them.
const KNOWN_MAX: usize = 65_536;
/// Copies that each fork may keep, in pages: comparing them costs a reset less than 0.3 ms.
const KEPT_MIN: u64 = 1024;
/// Copies that a fork may keep, as a multiple of the median: mixed loads write several sets in turn.
const KEPT_MEDIANS: u64 = 4;

/// A page of an address space.
type Page = (MmId, Gva);

/// The knowledge of the pages that requests write.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    pages: BTreeMap<Page, Named>,
    /// Reports so far that named pages.
    reports: u64,
    sizes: Sizes,
}

/// When a page was named.
#[derive(Clone, Copy, Debug)]
struct Named {
    /// The last report that named it.
    last: u64,
    /// Which reports did: bit n is the one n before `last`.
    history: u64,
    is_learned: bool,
}

impl Named {
    /// As of a later report.
    fn history_at(&self, report: u64) -> u64 {
        let age = u32::try_from(report.saturating_sub(self.last)).unwrap_or(u32::MAX);
        self.history.checked_shl(age).unwrap_or_default()
    }
}

fn times(history: u64) -> u32 {
    (history & ((1 << RECENT_REPORTS) - 1)).count_ones()
}

impl Learned {
    /// The size of a request's written set.
    pub fn note_size(&mut self, size: Size) {
        self.sizes.note(size);
    }

    /// A reset has found pages that were written for the first or the second time in its fork. It has found
    /// others that have not been written for long.
    pub fn note_pages(
        &mut self,
        written: impl Iterator<Item = Page>,
        dropped: impl Iterator<Item = Page>,
    ) {
        for page in dropped {
            self.pages.remove(&page);
        }
        let mut written = written.peekable();
        if written.peek().is_none() {
            return;
        }
        self.reports += 1;
        let now = self.reports;
        for page in written {
            if !self.pages.contains_key(&page) && self.pages.len() >= KNOWN_MAX {
                continue;
            }
            let named = self.pages.entry(page).or_insert(Named {
                last: now,
                history: 0,
                is_learned: false,
            });
            named.history = named.history_at(now) | 1;
            named.last = now;
            named.is_learned |= times(named.history) >= NAMED_MIN;
        }
        self.pages.retain(|_, named| {
            let after = match named.is_learned {
                true => FORGOTTEN_AFTER,
                false => u64::from(RECENT_REPORTS),
            };
            now - named.last < after
        });
    }

    /// The pages to copy ahead, in order: at most one and a half times what a request writes. If there are
    /// more, those that most of the recent reports named.
    pub fn ahead(&self) -> Vec<Page> {
        let median = self.sizes.median().unwrap_or_default();
        let budget = (median + median / 2).min(LEARNED_MAX);
        let mut pages: Vec<_> = self
            .pages
            .iter()
            .filter(|(_, named)| named.is_learned)
            .map(|(page, named)| (times(named.history_at(self.reports)), named.last, *page))
            .collect();
        pages.sort_unstable_by(|one, other| other.cmp(one));
        pages.truncate(usize::try_from(budget).unwrap_or(usize::MAX));
        let mut pages: Vec<Page> = pages.into_iter().map(|(_, _, page)| page).collect();
        pages.sort_unstable();
        pages
    }

    /// The number of copies that a fork may keep through a reset. One with more was left so by an unusual
    /// request, or by a load that is over.
    pub fn kept_max(&self) -> u64 {
        match self.sizes.median() {
            Some(median) => median.saturating_mul(KEPT_MEDIANS).max(KEPT_MIN),
            None => u64::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: std::iter::Empty<Page> = std::iter::empty();

    fn pages(numbers: std::ops::Range<u64>) -> impl Iterator<Item = Page> {
        numbers.map(|number| (MmId::FIRST, Gva(number)))
    }

    /// The numbers of the pages to copy ahead.
    fn ahead(learned: &Learned) -> Vec<u64> {
        let pages = learned.ahead().into_iter();
        pages.map(|(_, page)| page.0).collect()
    }

    /// A request in a new fork that wrote these pages.
    fn note(learned: &mut Learned, numbers: std::ops::Range<u64>) {
        learned.note_size(Size {
            is_first: true,
            ..Size::known(numbers.end - numbers.start)
        });
        learned.note_pages(pages(numbers), NONE);
    }

    #[test]
    fn what_two_requests_wrote_is_learned() {
        let mut learned = Learned::default();
        note(&mut learned, 0..10);
        assert_eq!(ahead(&learned), [0; 0]);
        note(&mut learned, 5..15);
        assert_eq!(ahead(&learned), [5, 6, 7, 8, 9]);
        learned.note_pages(NONE, pages(5..8));
        assert_eq!(ahead(&learned), [8, 9]);
    }

    #[test]
    fn two_that_are_far_apart_do_not_count() {
        let mut learned = Learned::default();
        for first in 0..8 {
            note(&mut learned, first * 100..first * 100 + 10);
        }
        note(&mut learned, 0..10);
        assert_eq!(ahead(&learned), [0; 0]);
        note(&mut learned, 700..710);
        assert_eq!(ahead(&learned).len(), 10);
    }

    #[test]
    fn a_hostile_request_among_ordinary_ones_changes_nothing() {
        for at in 0..20 {
            let mut learned = Learned::default();
            for number in 0..20 {
                if number == at {
                    note(&mut learned, 10_000..25_000);
                    assert!(ahead(&learned).len() <= 45, "{at}");
                }
                note(&mut learned, 0..30);
            }
            assert_eq!(ahead(&learned), (0..30).collect::<Vec<_>>(), "{at}");
            assert_eq!(learned.kept_max(), KEPT_MIN);
        }
    }

    #[test]
    fn hostile_requests_stay_within_the_budget() {
        let mut learned = Learned::default();
        for number in 0..60 {
            note(&mut learned, 0..30);
            if number % 2 == 0 {
                note(&mut learned, 10_000..25_000);
            }
            if number > 3 {
                assert!(ahead(&learned).len() <= 45, "{number}");
                assert_eq!(ahead(&learned)[..30], (0..30).collect::<Vec<_>>());
            }
        }
        // Nothing new: as many again are forgotten.
        for first in 0..FORGOTTEN_AFTER {
            note(&mut learned, 40_000 + first..40_001 + first);
        }
        assert!(learned.pages.len() <= 10, "{}", learned.pages.len());
    }

    #[test]
    fn a_change_of_load_is_followed() {
        let mut learned = Learned::default();
        for _ in 0..20 {
            note(&mut learned, 0..500);
        }
        assert_eq!(ahead(&learned).len(), 500);
        assert_eq!(learned.kept_max(), 2000);
        for _ in 0..8 {
            note(&mut learned, 1000..1020);
        }
        assert!(ahead(&learned).len() <= 30);
        assert_eq!(learned.kept_max(), KEPT_MIN);
        let wanted: Vec<u64> = (1000..1020).collect();
        assert!(wanted.iter().all(|page| ahead(&learned).contains(page)));
        // And back: most of the last fifteen are large again after eight.
        for _ in 0..8 {
            note(&mut learned, 0..500);
        }
        assert!((500..=750).contains(&ahead(&learned).len()));
    }

    #[test]
    fn a_steady_load_that_names_none_is_remembered() {
        let mut learned = Learned::default();
        note(&mut learned, 0..10);
        note(&mut learned, 0..10);
        for _ in 0..1000 {
            learned.note_size(Size::known(10));
            learned.note_size(Size::known(0));
            learned.note_pages(NONE, NONE);
        }
        assert_eq!(ahead(&learned).len(), 10);
    }

    #[test]
    fn pages_that_are_written_with_what_they_held_are_copied_ahead_too() {
        let mut learned = Learned::default();
        for _ in 0..2 {
            note(&mut learned, 0..100);
        }
        for _ in 0..100 {
            learned.note_size(Size {
                written_pages: 40,
                unknown_pages: 60,
                is_first: false,
            });
        }
        assert_eq!(ahead(&learned).len(), 100);
    }

    #[test]
    fn what_is_known_is_bounded() {
        let mut learned = Learned::default();
        for number in 0..8 {
            note(&mut learned, number * 16_000..(number + 1) * 16_000);
            assert!(learned.pages.len() <= KNOWN_MAX);
        }
        assert_eq!(ahead(&learned), [0; 0]);
    }
}
