//! A run's report to its owner: denials, unsupported things, counters.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use kvmlet_abi::Errno;
use kvmlet_budget::{Exhausted, Resource};

use crate::vfs::learn::Uses;

/// Denials and events kept at most; further ones are only counted.
const KEPT_MAX: usize = 1000;
/// Names that were looked for in memory and were not there, at most: the last ones.
const MISSED_MAX: usize = 64;
/// Longest text kept of one, in bytes: of a longer one its start and its end.
const TEXT_MAX: usize = 512;
/// The length of that end, in bytes.
const TEXT_END: usize = 128;

/// Something the policy refused.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Denial {
    /// The thing that was tried ("open /etc/shadow").
    pub what: String,
    /// The error the guest got.
    pub errno: &'static str,
    /// The change that would allow it, or the reason why nothing does.
    pub remedy: Remedy,
    /// Times that it was refused.
    pub count: u64,
}

/// The change that would allow something that was refused, or the reason why nothing does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Remedy {
    /// Nothing of the host's may be changed.
    ReadOnlyTree,
    /// It is protected in the trees that may be changed ([`kvmlet_policy::guard_of`]).
    Protected,
    /// A directory that leads to what is protected stays, and nothing else may be there.
    LeadsToProtected,
    /// Where git directories of submodules are, there are no links, and directories stay.
    NestedRepository,
    /// Files of the host get no set-user-ID and set-group-ID bits.
    SetId,
    /// It lies outside of what is visible.
    HiddenTree,
    /// Neither a regular file nor a directory.
    SpecialFile,
    /// It belongs to the host's kernel, wherever it is mounted.
    KernelFile,
    /// Sandboxes have no such sockets.
    NoNetwork,
    /// No rule allows this host.
    Address,
    /// It is a socket of the host's.
    HostSocket,
    /// The same in a tree where the program could put another one in its place.
    ReplaceableSocket,
    /// It would act on the caller's terminal.
    CallersTerminal,
    /// Sandboxes have all the host descriptors that they may have.
    MoreDescriptors,
    /// Sandboxes have all the host mappings that they may have.
    MoreMappings,
    /// It has come too often within a short time.
    Rate,
}

impl Denial {
    /// The path that was refused, if it is one and is told as it is.
    pub(crate) fn path(&self) -> Option<&[u8]> {
        let (_, path) = self.what.split_once(' ')?;
        let is_whole = path.len() < TEXT_MAX - TEXT_END && !path.contains(['\\', '\u{fffd}']);
        (path.starts_with('/') && is_whole).then_some(path.as_bytes())
    }
}

impl Remedy {
    /// True if the program was told that nothing is there.
    pub(crate) fn is_hidden(self) -> bool {
        matches!(self, Self::HiddenTree | Self::HostSocket)
    }

    /// The name that the library knows it by, which has the words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadOnlyTree => "read-only",
            Self::Protected => "protected",
            Self::LeadsToProtected => "leads-to-protected",
            Self::NestedRepository => "nested-repository",
            Self::SetId => "set-id",
            Self::HiddenTree => "hidden",
            Self::SpecialFile => "special-file",
            Self::KernelFile => "kernel-file",
            Self::NoNetwork => "network",
            Self::Address => "address",
            Self::HostSocket => "host-socket",
            Self::ReplaceableSocket => "replaceable-socket",
            Self::CallersTerminal => "terminal",
            Self::MoreDescriptors => "descriptors",
            Self::MoreMappings => "mappings",
            Self::Rate => "rate",
        }
    }
}

impl From<Exhausted> for Remedy {
    fn from(exhausted: Exhausted) -> Self {
        match exhausted.resource {
            Resource::Descriptors => Self::MoreDescriptors,
            Resource::Mappings => Self::MoreMappings,
        }
    }
}

/// A call, as it is counted. Those without a row in the table share one key, so that a guest cannot
/// grow a map ([`crate::syscalls::table::key`] makes it).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CallKey {
    /// The place of its row in the table, from 1 on; 0 for those without one.
    pub(crate) place: u16,
    pub(crate) nr: u16,
}

impl CallKey {
    /// The number of its row.
    #[must_use]
    pub fn nr(self) -> Option<u16> {
        (self.place != 0).then_some(self.nr)
    }
}

/// The figures of a call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// The call.
    pub call: CallKey,
    /// Times that it was made.
    pub count: u64,
    /// Time spent on it outside of guest code, in nanoseconds.
    pub spent_ns: u64,
}

/// Figures of the calls that were made. A map would be searched twice for each call, and a list of all calls would be
/// made anew by each reset.
#[derive(Default)]
pub(crate) struct Counts {
    /// In the order of their first.
    made: Vec<Counted>,
    /// Where each is in it, by the place of its key; 0 for one that was not made, else one more.
    places: Vec<u16>,
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.made, f)
    }
}

impl Counts {
    fn of(&mut self, call: CallKey) -> &mut Counted {
        let at = usize::from(call.place);
        if at >= self.places.len() {
            self.places.resize(at.saturating_add(1), 0);
        }
        let made = self.made.len();
        let place = self.places.get_mut(at);
        let place = match place {
            Some(place) if *place != 0 => usize::from(*place).saturating_sub(1),
            new => {
                if let (Some(new), Ok(number)) = (new, u16::try_from(made.saturating_add(1))) {
                    *new = number;
                }
                self.made.push(Counted {
                    call,
                    ..Counted::default()
                });
                made
            }
        };
        #[allow(clippy::indexing_slicing)] // it is there, or has just been added
        &mut self.made[place]
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        for counted in self.made.drain(..) {
            if let Some(place) = self.places.get_mut(usize::from(counted.call.place)) {
                *place = 0;
            }
        }
    }
}

/// The host's work for a guest between two of its steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Answering a call.
    Call(CallKey),
    /// Answering a page fault.
    Fault,
}

/// Collected while the guest runs. Bounded, whatever the guest does.
#[derive(Debug, Default)]
pub struct Report {
    /// Distinct denials in order of first occurrence.
    pub denials: Vec<Denial>,
    /// Refusals that are not among them, because there were too many.
    pub denials_not_kept: u64,
    /// Names that were not there where the sandbox has a tree of its own in the place of the host's. They are refusals if
    /// the host has them.
    pub(crate) missed: VecDeque<Denial>,
    /// Unsupported things: (name, detail) to count.
    pub events: BTreeMap<(String, String), u64>,
    /// Says if calls are traced to standard error.
    pub trace: bool,
    /// Trace lines not yet taken by the owner.
    pub trace_lines: Vec<String>,
    pub(crate) counted: Counts,
    /// Places in program text that have been given a jump to the stub.
    pub trampolines: u64,
    /// Time spent on page faults outside of guest code, in nanoseconds.
    pub fault_ns: u64,
    /// Paths used beyond the rules, while these are learned.
    pub uses: Uses,
}

impl Report {
    /// Records a denial, or counts it if it is known.
    pub fn deny(&mut self, what: String, errno: Errno, remedy: Remedy) {
        self.deny_as(what, errno.name(), remedy);
    }

    /// As [`Report::deny`], of an error that is no errno.
    pub fn deny_as(&mut self, what: String, error: &'static str, remedy: Remedy) {
        let denial = Denial {
            what: shortened(what),
            errno: error,
            remedy,
            count: 1,
        };
        let known = self.denials.iter_mut().find(|known| {
            (&known.what, known.errno, known.remedy) == (&denial.what, denial.errno, denial.remedy)
        });
        if let Some(known) = known {
            known.count = known.count.saturating_add(1);
            return;
        }
        if self.denials.len() < KEPT_MAX {
            self.denials.push(denial);
        } else {
            self.denials_not_kept = self.denials_not_kept.saturating_add(1);
        }
    }

    /// Notes a name that is not there in a tree of memory.
    pub(crate) fn miss(&mut self, what: String, remedy: Remedy) {
        let what = shortened(what);
        if let Some(known) = self.missed.iter_mut().find(|known| known.what == what) {
            known.count = known.count.saturating_add(1);
            return;
        }
        if self.missed.len() >= MISSED_MAX {
            self.missed.pop_front();
        }
        self.missed.push_back(Denial {
            what,
            errno: Errno::ENOENT.name(),
            remedy,
            count: 1,
        });
    }

    /// As it was when the program was frozen: empty, and calls are traced if they were.
    pub fn reset(&mut self) {
        let Self {
            denials,
            denials_not_kept,
            missed,
            events,
            trace: _,
            trace_lines,
            counted,
            trampolines,
            fault_ns,
            uses,
        } = self;
        denials.clear();
        missed.clear();
        events.clear();
        trace_lines.clear();
        counted.clear();
        *uses = Uses::default();
        (*denials_not_kept, *trampolines, *fault_ns) = (0, 0, 0);
    }

    /// Takes the denials, and (name, detail) of the unsupported things.
    pub fn take(&mut self) -> (Vec<Denial>, Vec<(String, String)>) {
        let events = std::mem::take(&mut self.events).into_keys().collect();
        (std::mem::take(&mut self.denials), events)
    }

    /// Counts a call.
    pub fn count_call(&mut self, call: CallKey) {
        let counted = self.counted.of(call);
        counted.count = counted.count.saturating_add(1);
    }

    /// Adds to the time that was spent on a kind of work.
    pub fn spend(&mut self, work: Work, time_ns: u64) {
        let spent_ns = match work {
            Work::Call(call) => &mut self.counted.of(call).spent_ns,
            Work::Fault => &mut self.fault_ns,
        };
        *spent_ns = spent_ns.saturating_add(time_ns);
    }

    /// The calls that were made, in the order of the first of each.
    pub fn calls(&self) -> impl Iterator<Item = &Counted> {
        self.counted
            .made
            .iter()
            .filter(|counted| counted.count != 0)
    }

    /// Records an unsupported call, option or flag.
    pub fn unsupported(&mut self, name: &str, detail: String) {
        let key = (name.to_owned(), shortened(detail));
        if self.events.len() < KEPT_MAX || self.events.contains_key(&key) {
            let count = self.events.entry(key).or_insert(0);
            *count = count.saturating_add(1);
        }
    }
}

/// A text of at most [`TEXT_MAX`] bytes: a guest may make paths of any length.
fn shortened(mut text: String) -> String {
    if text.len() > TEXT_MAX {
        let boundary = |at: usize| (at..text.len()).find(|at| text.is_char_boundary(*at));
        let start = boundary(TEXT_MAX - TEXT_END).unwrap_or(text.len());
        let end = boundary(text.len().saturating_sub(TEXT_END)).unwrap_or(text.len());
        text.replace_range(start..end, "...");
        text.shrink_to_fit();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_adds_up_by_kind_of_work() {
        let mut report = Report::default();
        let call = CallKey { place: 3, nr: 2 };
        report.count_call(call);
        report.spend(Work::Call(call), 5);
        report.spend(Work::Fault, 7);
        report.spend(Work::Call(call), 10);
        report.spend(Work::Fault, u64::MAX);
        let spent: Vec<_> = report
            .calls()
            .map(|c| (c.call, c.count, c.spent_ns))
            .collect();
        assert_eq!((spent, report.fault_ns), (vec![(call, 1, 15)], u64::MAX));
    }

    #[test]
    fn counts_that_were_cleared_are_those_of_a_new_report() {
        let mut report = Report::default();
        let calls = [7, 0, 3, 7].map(|place| CallKey { place, nr: place });
        for round in 1..4 {
            for call in calls {
                report.count_call(call);
            }
            let counted = report
                .calls()
                .map(|counted| (counted.call.place, counted.count));
            assert_eq!(
                counted.collect::<Vec<_>>(),
                [(7, 2), (0, 1), (3, 1)],
                "{round}"
            );
            report.counted.clear();
            assert_eq!(format!("{report:?}"), format!("{:?}", Report::default()));
        }
    }

    #[test]
    fn denials_are_bounded_in_number_and_length() {
        let mut report = Report::default();
        for number in 0..3000 {
            let what = format!("open /{}/{number}", "\u{e9}".repeat(4000));
            report.deny(what, Errno::EACCES, Remedy::HiddenTree);
        }
        assert_eq!(
            (report.denials.len(), report.denials_not_kept),
            (1000, 2000)
        );
        for (number, denial) in report.denials.iter().enumerate() {
            assert!(denial.what.len() <= TEXT_MAX + 8 && denial.what.starts_with("open /\u{e9}"));
            assert!(denial.what.ends_with(&format!("\u{e9}/{number}")));
        }
        let known = report.denials[5].what.clone();
        report.deny(known, Errno::EACCES, Remedy::HiddenTree);
        assert_eq!(report.denials_not_kept, 2000);
        assert_eq!((report.denials[5].count, report.denials[6].count), (2, 1));
    }

    #[test]
    fn the_last_names_that_were_missed_are_kept() {
        let mut report = Report::default();
        for number in 0..3000 {
            let what = format!("stat /tmp/{}{number}", "\u{e9}".repeat(4000));
            report.miss(what.clone(), Remedy::HiddenTree);
            report.miss(what, Remedy::HiddenTree);
        }
        assert_eq!(report.missed.len(), MISSED_MAX);
        let last = report.missed.back().unwrap();
        assert!(last.what.len() <= TEXT_MAX + 8 && last.what.ends_with("2999"));
        assert_eq!(last.count, 2);
        assert_eq!(report.denials, []);
    }
}
