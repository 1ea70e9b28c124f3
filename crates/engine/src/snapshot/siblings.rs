//! Forks of a box mostly do the same at first. A page that one of them has written in its first moments is copied for
//! each younger one before that runs. It would be a fault otherwise.
//!
//! [`super::learned`] is about requests, one after the other, with a reset behind each. Here there is no reset yet.

use std::collections::BTreeSet;

use kvmlet_abi::Gva;
use kvmlet_mem::MmId;

use super::{copy_keeper_of, lock};
use crate::sandbox::Sandbox;

/// Pages that are known of a snapshot's forks at most: so much memory may each of them have ahead.
const PAGES_MAX: usize = 512;
/// A fork that has so many copies has begun with what it is for.
const YOUNG_MAX: u64 = 64;
/// A fork that has written so many pages is no example: one alone could fill the list.
const EXAMPLE_MAX: u64 = PAGES_MAX as u64;
/// A fork is an example so often: each time that it stops and has written more.
const NOTES_MAX: u32 = 8;

/// A page of an address space.
type Page = (MmId, Gva);

/// The pages that forks of a snapshot have written in their first moments.
#[derive(Debug, Default)]
pub(crate) struct Siblings(BTreeSet<Page>);

impl Siblings {
    fn note(&mut self, pages: impl Iterator<Item = Page>) {
        for page in pages {
            if self.0.len() == PAGES_MAX {
                return;
            }
            self.0.insert(page);
        }
    }
}

/// The first moments of a fork.
#[derive(Debug)]
pub(crate) struct Youth {
    is_young: bool,
    notes_left: u32,
    /// Pages that it had written when it was an example last.
    noted_pages: u64,
}

impl Youth {
    /// A fork that has not run.
    pub fn begins() -> Self {
        Self {
            is_young: true,
            notes_left: NOTES_MAX,
            noted_pages: 0,
        }
    }

    /// Of what is no fork.
    pub fn none() -> Self {
        Self {
            is_young: false,
            notes_left: 0,
            noted_pages: 0,
        }
    }
}

impl Sandbox {
    /// Before a fork runs: copies what its siblings have written, if it has done next to nothing yet.
    pub(crate) fn follow_siblings(&mut self, youth: &mut Youth) {
        let Some(frozen) = self.origin.clone().filter(|_| youth.is_young) else {
            return;
        };
        youth.is_young = self.personality.machine.spaces.copies() < YOUNG_MAX;
        if !youth.is_young || self.ended.is_some() {
            return;
        }
        let pages = lock(&frozen.siblings).0.clone();
        // Without memory for them it has its faults.
        let _ = self.guarded(|sandbox| {
            // Private memory that may be written, in the frozen program and still: it may have run a little.
            let mut may_be_kept = frozen.copy_keeper();
            let personality = &mut *sandbox.personality;
            let mut may_be_written = copy_keeper_of(&personality.kernel);
            let keeper = |id, gva| may_be_kept(id, gva) && may_be_written(id, gva);
            let machine = &mut personality.machine;
            let pages = pages.into_iter();
            Ok(machine
                .spaces
                .copy_soon(&mut machine.memory, pages, keeper)?)
        });
    }

    /// A fork has run and stops: what it has written is an example for its siblings.
    pub(crate) fn lead_siblings(&mut self, youth: &mut Youth) {
        let Some(frozen) = self.origin.as_ref().filter(|_| youth.notes_left > 0) else {
            return;
        };
        let spaces = &self.personality.machine.spaces;
        let written_pages = spaces.written_copies();
        let is_young = written_pages <= EXAMPLE_MAX;
        if is_young && written_pages > youth.noted_pages && self.ended.is_none() {
            youth.noted_pages = written_pages;
            youth.notes_left -= 1;
            lock(&frozen.siblings).note(spaces.written_pages());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PAGES_MAX, Page, Siblings};
    use kvmlet_abi::Gva;
    use kvmlet_mem::MmId;

    fn pages(from: u64, count: usize) -> impl Iterator<Item = Page> {
        (from..).take(count).map(|page| (MmId(1), Gva(page << 12)))
    }

    #[test]
    fn what_is_known_is_bounded() {
        let mut siblings = Siblings::default();
        siblings.note(pages(0, 10));
        siblings.note(pages(5, 10));
        assert_eq!(siblings.0.len(), 15);
        siblings.note(pages(0, 10 * PAGES_MAX));
        siblings.note(pages(1 << 20, 1));
        assert_eq!(siblings.0.len(), PAGES_MAX);
    }
}
