//! KVM's binary statistics by name (Documentation/virt/kvm/api.rst, 4.133).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kvmlet_budget::Held;

use crate::HvError;

/// struct kvm_stats_header: flags, name_size, num_desc, id_offset, desc_offset, data_offset.
const HEADER_LEN: usize = 24;
/// struct kvm_stats_desc without the name.
const DESC_LEN: usize = 16;
/// More than any kernel has; keeps a broken descriptor from asking for much memory.
const MAX_DESCRIPTORS: usize = 4096;
const MAX_NAME_LEN: usize = 256;

/// KVM_STATS_TYPE_CUMULATIVE, in the low bits of the flags.
const CUMULATIVE: usize = 0;
const TYPE_MASK: usize = 0xf;

/// Where a descriptor's counters of one value are: the same for all descriptors of a kind.
#[derive(Debug)]
pub(crate) struct Layout {
    counters: Vec<Counter>,
}

#[derive(Debug)]
struct Counter {
    name: String,
    /// Of its first value in the file.
    offset: u64,
    /// Whether it only grows: what was there before can be taken off.
    grows: bool,
}

/// An open statistics descriptor: names resolved once, values read on demand.
#[derive(Debug)]
pub struct Stats {
    file: File,
    layout: Arc<Layout>,
    /// What counted for an earlier owner, in the layout's order; may be empty.
    before: Arc<[u64]>,
    _held: Held,
}

fn word(bytes: &[u8], at: usize) -> usize {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw) as usize
}

impl Layout {
    pub(crate) fn read(file: &File) -> Result<Self, HvError> {
        let call = |source| HvError::Call {
            what: "reading KVM's statistics",
            source,
        };
        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, 0).map_err(call)?;
        let name_len = word(&header, 4).min(MAX_NAME_LEN);
        let count = word(&header, 8).min(MAX_DESCRIPTORS);
        let mut descriptors = vec![0; count * (DESC_LEN + name_len)];
        file.read_exact_at(&mut descriptors, word(&header, 16) as u64)
            .map_err(call)?;
        let data_offset = word(&header, 20) as u64;
        let counters = descriptors
            .chunks_exact(DESC_LEN + name_len)
            .filter(|descriptor| word(descriptor, 4) >> 16 == 1)
            .map(|descriptor| {
                let name = descriptor[DESC_LEN..].split(|byte| *byte == 0).next();
                Counter {
                    name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
                    offset: data_offset + word(descriptor, 8) as u64,
                    grows: word(descriptor, 0) & TYPE_MASK == CUMULATIVE,
                }
            })
            .collect();
        Ok(Self { counters })
    }
}

impl Stats {
    pub(crate) fn new((file, held): (File, Held), layout: Arc<Layout>, before: Arc<[u64]>) -> Self {
        Self {
            file,
            layout,
            before,
            _held: held,
        }
    }

    /// The counter called `name` ("pf_taken", "tlb_flush", "exits"), or `None` if this kernel has
    /// none or it cannot be read.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        let mut all = self.all().into_iter();
        all.find_map(|(entry, value)| (entry == name).then_some(value))
    }

    /// Every counter.
    #[must_use]
    pub fn all(&self) -> Vec<(&str, u64)> {
        let before = self.before.iter().copied().chain(std::iter::repeat(0));
        self.now()
            .zip(before)
            .filter_map(|((counter, now), before)| {
                let value = match counter.grows {
                    true => now?.saturating_sub(before),
                    false => now?,
                };
                Some((counter.name.as_str(), value))
            })
            .collect()
    }

    /// All values as KVM counts them, in the layout's order: what an owner from now on starts with.
    pub(crate) fn values(&self) -> Arc<[u64]> {
        self.now()
            .map(|(_, value)| value.unwrap_or_default())
            .collect()
    }

    fn now(&self) -> impl Iterator<Item = (&Counter, Option<u64>)> {
        let counters = &self.layout.counters;
        let start = counters.iter().map(|counter| counter.offset).min();
        let start = start.unwrap_or_default();
        let end = counters.iter().map(|counter| counter.offset + 8).max();
        let len = usize::try_from(end.unwrap_or(start) - start).unwrap_or_default();
        let mut data = vec![0; len.min(MAX_DESCRIPTORS * 8 * 64)];
        let got = self.file.read_at(&mut data, start).unwrap_or_default();
        data.truncate(got);
        counters.iter().map(move |counter| {
            let at = usize::try_from(counter.offset - start).unwrap_or(usize::MAX);
            let raw = data.get(at..).and_then(|rest| rest.first_chunk::<8>());
            (counter, raw.map(|raw| u64::from_le_bytes(*raw)))
        })
    }
}
