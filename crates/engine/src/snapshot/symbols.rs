//! Functions of a frozen program that were found by name: each fork has them at the same addresses.

use std::collections::BTreeMap;

use kvmlet_abi::Gva;
use kvmlet_linux::Personality;

use super::{Frozen, lock};

/// Names remembered at most.
const NAMES_MAX: usize = 4096;

/// Addresses by name.
pub(super) type Symbols = BTreeMap<String, Gva>;

impl Frozen {
    /// The address of a function in a fork, if it was found before and the fork still has the frozen program's code.
    pub(crate) fn symbol(&self, name: &str, fork: &Personality) -> Option<Gva> {
        let known = lock(&self.symbols).get(name).copied()?;
        fork.has_code_of(&self.kernel).then_some(known)
    }

    /// Remembers the address of a function that was found in a fork.
    pub(crate) fn note_symbol(&self, name: &str, found: Gva, fork: &Personality) {
        let is_frozen_code = fork.has_code_of(&self.kernel) && self.check_files().is_ok();
        if !is_frozen_code || fork.has_code_of_its_own() {
            return;
        }
        let mut symbols = lock(&self.symbols);
        if symbols.len() < NAMES_MAX {
            symbols.insert(name.to_owned(), found);
        }
    }
}
