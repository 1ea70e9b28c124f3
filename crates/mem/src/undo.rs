//! Which entries of a fork's page tables may differ from the frozen ones.
//!
//! Nothing is stored per entry but a bit: what it was is known from where its table comes.

use std::collections::{BTreeMap, HashMap};

use kvmlet_abi::{Gpa, Gva};

use crate::MmId;
use crate::entry::{DIRTY, Leaf, PRESENT, entry_at, leaf_at, span};
use crate::host::Restore;
use crate::kept::Kept;
use crate::memory::GuestMemory;
use crate::present::Shown;
use crate::reset::ResetReport;
use crate::set::IndexSet;
use crate::slots::Place;

/// Resets in a row that find a copy equal to the frozen page, after which it is given up: by then the
/// comparisons have cost about what the fault costs that brings the copy back.
pub(crate) const IDLE_RESETS_MAX: u32 = 512;
/// Each time that a page comes back it may be idle twice as long, so often: a page that is written with
/// what it held, as a count of references goes up and down again, costs a fault ever more rarely.
const IDLE_DOUBLINGS_MAX: u32 = 10;

/// Where a table comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// It is in the frozen image.
    Image,
    /// The fork added it where nothing was.
    Added,
    /// The fork put it in the place of this 2 MiB leaf.
    Split(Leaf),
}

/// A private copy of a frozen page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageCopy {
    pub(crate) index: usize,
    pub(crate) frame: Gpa,
    /// Resets in a row that found it equal to the frozen page.
    pub(crate) idle: u32,
    /// Which requests are known to have written it.
    pub(crate) cause: Cause,
    /// What resets keep of it, once one has found that it may be kept.
    pub(crate) kept: Option<KeptCopy>,
    /// How the reset that is under way makes it equal to the frozen page; `None` if nothing has written it.
    pub(crate) restore: Option<Restore>,
}

impl PageCopy {
    /// True of a copy that was made since the last reset because its page, or one before it, was written.
    pub(crate) fn is_of_write(&self) -> bool {
        matches!(self.cause, Cause::Write | Cause::Near)
    }

    /// A reset has made it equal to the frozen page, from which it may have differed.
    #[inline]
    pub(crate) fn note(
        &mut self,
        differed: bool,
        page: impl FnOnce() -> (MmId, Gva),
        report: &mut ResetReport,
    ) {
        if differed {
            report.copied_pages += 1;
            self.idle = 0;
        } else {
            report.compared_equal_pages += 1;
            self.idle = self.idle.saturating_add(1);
        }
        let is_written = differed || self.cause == Cause::Write;
        let is_told = self.restore != Some(Restore::Compare);
        report.written_pages += u64::from(is_written);
        report.unknown_pages += u64::from(!is_written && !is_told);
        match self.cause {
            Cause::Write => {
                report.copied_on_write.push(page());
                self.cause = Cause::Once;
            }
            Cause::Near if is_written => {
                report.copied_on_write.push(page());
                self.cause = Cause::Once;
            }
            Cause::Once if is_written => {
                report.written_again.push(page());
                self.cause = Cause::Again;
            }
            Cause::Near | Cause::Once | Cause::Again => {}
        }
    }
}

/// What stays true of a copy from one reset to the next, whatever the guest does: where things are, and
/// what the frozen program has there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct KeptCopy {
    /// The entry that a reset leaves: it maps the copy.
    pub(crate) entry: u64,
    /// Where the copy is.
    pub(crate) copy: Place,
    /// Where the frozen page is.
    pub(crate) frozen: Place,
    /// Resets in a row that find the copy equal, after which it is given up.
    pub(crate) idle_max: u32,
}

/// Why a page was copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    /// It was written since the last reset.
    Write,
    /// It lies behind one that was written, and is not known to have been written.
    Near,
    /// It was expected to be written, or one request before the last reset wrote it.
    Once,
    /// A later request wrote it too.
    Again,
}

/// A table whose leaves were edited, or that the fork added.
#[derive(Debug)]
pub(crate) struct TableLog {
    pub(crate) table: Gpa,
    /// First address that it maps.
    pub(crate) base: Gva,
    pub(crate) level: u32,
    origin: Origin,
    /// Leaf entries that may differ from what a reset puts there.
    pub(crate) touched: IndexSet,
    /// By index.
    pub(crate) copies: Vec<PageCopy>,
    /// The same, as the last reset has left them.
    pub(crate) kept: Option<Kept>,
    /// How often a copy of a page was given up, by index. A page that comes back was written all the
    /// time, with what it held before.
    given_up: BTreeMap<usize, u32>,
}

impl TableLog {
    #[inline]
    pub(crate) fn entry(&self, index: usize) -> Gpa {
        self.table.wrapping_add(index as u64 * 8)
    }

    #[inline]
    pub(crate) fn gva(&self, index: usize) -> Gva {
        self.addresses()(index)
    }

    /// The addresses that entries map, by their index.
    #[inline]
    pub(crate) fn addresses(&self) -> impl Fn(usize) -> Gva + use<> {
        let (base, level) = (self.base, self.level);
        move |index| base.wrapping_add(index as u64 * span(level))
    }

    /// True if a reset finds nothing to do.
    pub(crate) fn is_untouched(&self) -> bool {
        self.copies.is_empty() && self.touched.is_empty()
    }

    /// What a reset puts there.
    pub(crate) fn original(&self, mem: &GuestMemory, index: usize) -> u64 {
        match self.origin {
            Origin::Image => mem.frozen_entry(self.entry(index)),
            Origin::Added => 0,
            Origin::Split(huge) => huge.piece(index as u64).entry(),
        }
    }

    /// Resets in a row after which a copy that equals the frozen page is given up.
    pub(crate) fn idle_max(&self, index: usize) -> u32 {
        let times = self.given_up.get(&index).copied().unwrap_or_default();
        IDLE_RESETS_MAX << times.min(IDLE_DOUBLINGS_MAX)
    }

    /// Notes that the copy of a page is given up.
    pub(crate) fn give_up(&mut self, index: usize, (id, report): (MmId, &mut ResetReport)) {
        let times = self.given_up.entry(index).or_default();
        *times = times.saturating_add(1);
        report.dropped_pages += 1;
        report.dropped.push((id, self.gva(index)));
    }

    /// The place of the copy with this index among the copies, or the one where it would be.
    pub(crate) fn place_of(&self, index: usize) -> Result<usize, usize> {
        self.copies.binary_search_by_key(&index, |copy| copy.index)
    }

    /// True if the entries of kept copies are as the last reset has left them, but for dirty bits.
    pub(crate) fn has_kept_entries(&self, mem: &GuestMemory) -> bool {
        self.copies.iter().all(|copy| {
            let now = mem.load_entry(self.entry(copy.index));
            copy.kept
                .is_some_and(|kept| (now ^ kept.entry) & !DIRTY == 0)
        })
    }

    /// Copies of the pages right before one, as far as each of them is one.
    pub(crate) fn copies_before(&self, index: usize) -> usize {
        let before = self
            .copies
            .get(..self.place_of(index).unwrap_or_else(|at| at));
        let before = before.unwrap_or_default().iter().rev();
        let in_sequence = before
            .zip(1..)
            .take_while(|(copy, back)| copy.index + back == index);
        in_sequence.count()
    }

    pub(crate) fn set_copy(&mut self, copy: PageCopy) {
        self.kept = None;
        match self.place_of(copy.index) {
            Ok(place) => {
                if let Some(old) = self.copies.get_mut(place) {
                    *old = copy;
                }
            }
            Err(place) => self.copies.insert(place, copy),
        }
    }
}

/// The tables of one fork's address space.
#[derive(Debug, Default)]
pub(crate) struct UndoLog {
    pub(crate) tables: Vec<TableLog>,
    by_table: HashMap<Gpa, usize>,
    /// The table found last: edits come in runs.
    last: Option<(Gpa, usize)>,
    /// The pages that the frozen address space shows.
    shown: Shown,
}

impl UndoLog {
    /// That of a new fork, of a program that shows this much.
    pub(crate) fn of(shown: Shown) -> Self {
        Self {
            shown,
            ..Self::default()
        }
    }

    /// The pages that the frozen address space shows.
    pub(crate) fn shown(&self) -> Shown {
        self.shown
    }

    /// Makes a table of the fork known before its entries are edited.
    pub(crate) fn add_table(&mut self, table: Gpa, gva: Gva, level: u32, origin: Origin) {
        let base = Gva(gva.0 & !(span(level + 1) - 1));
        let log = TableLog {
            table,
            base,
            level,
            origin,
            touched: IndexSet::EMPTY,
            copies: Vec::new(),
            kept: None,
            given_up: BTreeMap::new(),
        };
        self.by_table.insert(table, self.tables.len());
        self.tables.push(log);
    }

    /// The log of the table that holds `entry`, which maps `gva` at `level`; and the entry's index.
    pub(crate) fn log_of(&mut self, entry: Gpa, gva: Gva, level: u32) -> (&mut TableLog, usize) {
        let table = entry.page_down();
        let at = match self.last {
            Some((last, at)) if last == table => at,
            _ => {
                if !self.by_table.contains_key(&table) {
                    self.add_table(table, gva, level, Origin::Image);
                }
                self.by_table.get(&table).copied().unwrap_or_default()
            }
        };
        self.last = Some((table, at));
        let index = (entry.page_offset() / 8) as usize;
        (&mut self.tables[at], index)
    }

    /// True if `frame` is the copy of the frozen page that `entry` mapped.
    pub(crate) fn has_copy(&self, entry: Gpa, frame: Gpa) -> bool {
        let at = self.by_table.get(&entry.page_down());
        let index = (entry.page_offset() / 8) as usize;
        at.and_then(|&at| self.tables.get(at)).is_some_and(|log| {
            log.place_of(index)
                .is_ok_and(|at| log.copies[at].frame == frame)
        })
    }

    /// Notes that a leaf entry is about to change.
    pub(crate) fn touch(&mut self, entry: Gpa, gva: Gva, level: u32) {
        let (log, index) = self.log_of(entry, gva, level);
        log.touched.add(index);
        if let Some(kept) = &mut log.kept {
            kept.note_edit(index);
        }
    }

    /// Notes that `table` takes the place of what `entry`, of a page directory, is `now`: nothing, or a
    /// 2 MiB leaf whose pieces the table holds. It stays there; resets give its entries what the frozen
    /// entry said of their pages, which may be a leaf that is gone by now.
    pub(crate) fn add_last_level(
        &mut self,
        mem: &GuestMemory,
        entry: Gpa,
        gva: Gva,
        table: Gpa,
        now: u64,
    ) {
        let (log, index) = self.log_of(entry, gva, 2);
        let original = match log.touched.has(index) {
            true => log.original(mem, index),
            false => now,
        };
        log.touched.remove(index);
        let origin = match original & PRESENT {
            0 => Origin::Added,
            _ => Origin::Split(leaf_at(original, 2)),
        };
        self.add_table(table, gva, 1, origin);
        if original != now
            && let Some(log) = self.tables.last_mut()
        {
            log.touched = IndexSet::FULL;
        }
        debug_assert_eq!(entry, entry_at(entry.page_down(), gva.0, 2));
    }
}
