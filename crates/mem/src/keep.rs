//! Memory of a program that has ended: a part of it is kept for a while.

use std::collections::BTreeSet;

use kvmlet_abi::{Gpa, PAGE_SIZE};

use crate::GuestMemory;
use crate::slots::Store;

impl GuestMemory {
    /// Gives the host all memory back but the pages `frames`. The rest is only read from then on: no program runs in
    /// it any more.
    pub fn keep_only(&mut self, frames: &BTreeSet<Gpa>) {
        for (slot, spec) in self.slots.iter_mut().zip(&self.specs) {
            let map = match &mut slot.store {
                Store::Tables { map, .. } | Store::Ram { map, .. } => map,
                // They are the host's page cache, or shared with other sandboxes.
                Store::Files(_) | Store::FrozenRam(_) | Store::FrozenFiles(_) => continue,
            };
            let end = spec.gpa.wrapping_add(spec.len_bytes);
            let mut from = spec.gpa;
            for kept in frames.range(spec.gpa..end).chain([&end]) {
                let gap = kept.0.saturating_sub(from.0);
                let offset = from.0.saturating_sub(spec.gpa.0);
                if let Ok(len) = usize::try_from(gap)
                    && len > 0
                {
                    // What is not given back now is given back with the rest.
                    let _ = map.release(offset, len);
                }
                from = kept.wrapping_add(PAGE_SIZE);
            }
        }
    }
}
