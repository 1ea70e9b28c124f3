//! KVM's binary statistics by name (Documentation/virt/kvm/api.rst, 4.133).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use kvmlet_mem::budget::Held;

use crate::HvError;

/// struct kvm_stats_header: flags, name_size, num_desc, id_offset, desc_offset, data_offset.
const HEADER_LEN: usize = 24;
/// struct kvm_stats_desc without the name.
const DESC_LEN: usize = 16;
/// More than any kernel has; keeps a broken descriptor from asking for much memory.
const MAX_DESCRIPTORS: usize = 4096;
const MAX_NAME_LEN: usize = 256;

/// An open statistics descriptor: names resolved once, values read on demand.
#[derive(Debug)]
pub struct Stats {
    file: File,
    /// Name and file offset of the first value, for counters of one value.
    entries: Vec<(String, u64)>,
    _held: Held,
}

fn word(bytes: &[u8], at: usize) -> usize {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw) as usize
}

impl Stats {
    pub(crate) fn new(fd: OwnedFd, held: Held) -> Result<Self, HvError> {
        let file = File::from(fd);
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
        let entries = descriptors
            .chunks_exact(DESC_LEN + name_len)
            .filter(|descriptor| word(descriptor, 4) >> 16 == 1)
            .map(|descriptor| {
                let name = descriptor[DESC_LEN..].split(|byte| *byte == 0).next();
                let name = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
                (name, data_offset + word(descriptor, 8) as u64)
            })
            .collect();
        Ok(Self {
            file,
            entries,
            _held: held,
        })
    }

    /// The counter called `name` ("pf_taken", "tlb_flush", "exits"), or `None` if this kernel has
    /// none or it cannot be read.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        let (_, offset) = self.entries.iter().find(|(entry, _)| entry == name)?;
        self.value(*offset)
    }

    /// Every counter.
    #[must_use]
    pub fn all(&self) -> Vec<(&str, u64)> {
        self.entries
            .iter()
            .filter_map(|(name, offset)| Some((name.as_str(), self.value(*offset)?)))
            .collect()
    }

    fn value(&self, offset: u64) -> Option<u64> {
        let mut raw = [0; 8];
        self.file.read_exact_at(&mut raw, offset).ok()?;
        Some(u64::from_le_bytes(raw))
    }
}
