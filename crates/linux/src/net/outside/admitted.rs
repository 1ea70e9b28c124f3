//! The addresses of names that have been looked up: for a while, the rules for a name are those for its addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 2048;
/// Names of one address that are.
const NAMES_MAX: usize = 8;
/// The time for which an answer holds, and which it names.
pub const HOLDS: Duration = Duration::from_secs(60);

/// A name of an address.
#[derive(Clone, Debug)]
struct Known {
    name: String,
    until: Instant,
    /// Its addresses are not for the program.
    is_withheld: bool,
}

/// The names that addresses are known to have.
#[derive(Clone, Debug, Default)]
pub struct Admitted {
    by_address: BTreeMap<IpAddr, Vec<Known>>,
}

impl Admitted {
    /// A name has this address; `is_withheld` says that the program has not been told.
    pub fn note(&mut self, address: IpAddr, name: &str, now: Instant, is_withheld: bool) {
        if !self.by_address.contains_key(&address) && self.by_address.len() >= ADDRESSES_MAX {
            self.by_address
                .retain(|_, names| names.iter().any(|known| known.until > now));
            if self.by_address.len() >= ADDRESSES_MAX {
                self.by_address.pop_first();
            }
        }
        let names = self.by_address.entry(address).or_default();
        names.retain(|known| known.name != name && known.until > now);
        if names.len() >= NAMES_MAX {
            names.remove(0);
        }
        names.push(Known {
            name: name.to_owned(),
            until: now.checked_add(HOLDS).unwrap_or(now),
            is_withheld,
        });
    }

    /// The names that an address has now, the latest first.
    pub fn names(&self, address: IpAddr, now: Instant) -> impl Iterator<Item = &str> {
        let names = self.by_address.get(&address).into_iter().flatten().rev();
        let valid = names.filter(move |known| known.until > now && !known.is_withheld);
        valid.map(|known| known.name.as_str())
    }

    /// The name for which an address was withheld.
    #[must_use]
    pub fn withheld(&self, address: IpAddr, now: Instant) -> Option<&str> {
        let mut names = self.by_address.get(&address)?.iter().rev();
        let known = names.find(|known| known.until > now && known.is_withheld)?;
        Some(&known.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_for_a_while() {
        let mut admitted = Admitted::default();
        let address = "8.8.8.8".parse().unwrap();
        let now = Instant::now();
        admitted.note(address, "a", now, false);
        admitted.note(address, "b", now + HOLDS / 2, false);
        let names = |at| admitted.names(address, at).collect::<Vec<_>>();
        assert_eq!(names(now), ["b", "a"]);
        assert_eq!(names(now + HOLDS), ["b"]);
        assert!(names(now + 2 * HOLDS).is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut admitted = Admitted::default();
        let now = Instant::now();
        for number in 0..5000u32 {
            admitted.note(IpAddr::V4(number.into()), "name", now, false);
            admitted.note(IpAddr::V4(1.into()), &number.to_string(), now, true);
        }
        assert!(admitted.by_address.len() <= ADDRESSES_MAX);
        assert!(
            admitted
                .by_address
                .values()
                .all(|names| names.len() <= NAMES_MAX)
        );
    }
}
