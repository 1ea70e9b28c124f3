//! What the run tells its owner: denials, unsupported things, counters.

use std::collections::BTreeMap;

use kvmlet_abi::Errno;

/// Denials and events kept at most; further ones are only counted.
const KEPT_MAX: usize = 1000;

/// Something the policy refused.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Denial {
    /// What was tried ("open /etc/shadow").
    pub what: String,
    /// The error the guest got.
    pub errno: &'static str,
    /// The flag or setting that would allow it; empty when none does.
    pub remedy: String,
}

/// Collected while the guest runs. Bounded, whatever the guest does.
#[derive(Debug, Default)]
pub struct Report {
    /// Distinct denials in order of first occurrence.
    pub denials: Vec<Denial>,
    /// Unsupported things: (name, detail) to count.
    pub events: BTreeMap<(String, String), u64>,
    /// Whether calls are traced to standard error.
    pub trace: bool,
    /// Trace lines not yet taken by the owner.
    pub trace_lines: Vec<String>,
    /// Calls by number.
    pub calls: BTreeMap<u64, u64>,
}

impl Report {
    /// Records a denial once.
    pub fn deny(&mut self, what: String, errno: Errno, remedy: &str) {
        let denial = Denial {
            what,
            errno: errno.name(),
            remedy: remedy.to_owned(),
        };
        if self.denials.len() < KEPT_MAX && !self.denials.contains(&denial) {
            self.denials.push(denial);
        }
    }

    /// Counts a call. Numbers without a row share one counter, so that a guest cannot grow the map.
    pub fn count_call(&mut self, nr: u64) {
        let key = if crate::syscalls::table::row(nr).is_some() {
            nr
        } else {
            u64::MAX
        };
        let count = self.calls.entry(key).or_insert(0);
        *count = count.saturating_add(1);
    }

    /// Records an unsupported call, option or flag.
    pub fn unsupported(&mut self, name: &str, detail: String) {
        let key = (name.to_owned(), detail);
        if self.events.len() < KEPT_MAX || self.events.contains_key(&key) {
            let count = self.events.entry(key).or_insert(0);
            *count = count.saturating_add(1);
        }
    }
}
