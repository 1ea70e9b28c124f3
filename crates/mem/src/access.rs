//! Checked access to guest memory by guest-physical address.

use core::ops::Range;

use kvmlet_abi::{Gpa, PAGE_SIZE};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::error::MemError;
use crate::host::HostFault;
use crate::memory::GuestMemory;
use crate::set::IndexSet;
use crate::slots::Store;

impl GuestMemory {
    /// Copies out of guest memory.
    pub fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemError> {
        let len = into.len() as u64;
        let (slot, offset) = self.locate(gpa, len)?;
        match &slot.store {
            Store::Tables { map, .. } | Store::Ram { map, .. } => map.read(offset, into),
            Store::Files(files) => files.area().read(offset, into),
            Store::FrozenRam(map) => map.read(offset, into),
            Store::FrozenFiles(files) => files.read(offset, into),
        }
        .map_err(|fault| failed(fault, gpa, len))
    }

    /// Copies into guest memory. [`MemError::Frozen`] if it is frozen.
    pub fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), MemError> {
        let len = from.len() as u64;
        let (slot, offset) = self.locate_mut(gpa, len)?;
        match &mut slot.store {
            Store::Tables { map, written, .. } => {
                let result = map.write(offset, from);
                written.add(offset, len);
                result
            }
            Store::Ram { map, .. } => map.write(offset, from),
            Store::Files(files) => files.area_mut().write(offset, from),
            Store::FrozenRam(_) | Store::FrozenFiles(_) => return Err(MemError::Frozen(gpa)),
        }
        .map_err(|fault| failed(fault, gpa, len))
    }

    /// Writes to the program's memory as a guest does: no page is marked. True if it could.
    pub(crate) fn write_unmarked(&mut self, gpa: Gpa, from: &[u8]) -> bool {
        match self.locate_mut(gpa, from.len() as u64) {
            Ok((slot, offset)) => match &mut slot.store {
                Store::Ram { map, .. } => map.write_unmarked(offset, from).is_ok(),
                _ => false,
            },
            Err(_) => false,
        }
    }

    /// Reads a value; it must not lie across the end of a slot.
    pub fn read_value<T: FromBytes + IntoBytes>(&self, gpa: Gpa) -> Result<T, MemError> {
        let mut value = T::new_zeroed();
        self.read(gpa, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes a value; it must not lie across the end of a slot.
    pub fn write_value<T: IntoBytes + Immutable>(
        &mut self,
        gpa: Gpa,
        value: &T,
    ) -> Result<(), MemError> {
        self.write(gpa, value.as_bytes())
    }

    /// Fills with zeros. [`MemError::Frozen`] if it is frozen.
    pub fn zero(&mut self, gpa: Gpa, len_bytes: u64) -> Result<(), MemError> {
        let (slot, offset) = self.locate_mut(gpa, len_bytes)?;
        match &mut slot.store {
            Store::Tables { map, written, .. } => {
                written.add(offset, len_bytes);
                map.zero(offset, len_bytes as usize)
                    .map_err(|fault| failed(fault, gpa, len_bytes))
            }
            Store::Ram { map, .. } => map
                .zero(offset, len_bytes as usize)
                .map_err(|fault| failed(fault, gpa, len_bytes)),
            Store::FrozenRam(_) | Store::FrozenFiles(_) => Err(MemError::Frozen(gpa)),
            Store::Files(files) => {
                let zeros = [0; PAGE_SIZE as usize];
                let mut done = 0;
                while done < len_bytes {
                    let part = (len_bytes - done).min(PAGE_SIZE) as usize;
                    let from = zeros.get(..part).unwrap_or(&zeros);
                    files
                        .area_mut()
                        .write(offset + done, from)
                        .map_err(|fault| failed(fault, gpa, len_bytes))?;
                    done += part as u64;
                }
                Ok(())
            }
        }
    }

    /// Copies one base frame to an anonymous one; both addresses are rounded down to the page.
    pub fn copy_frame(&mut self, from: Gpa, to: Gpa) -> Result<(), MemError> {
        let (from, to) = (from.page_down(), to.page_down());
        let len = PAGE_SIZE as usize;
        let (map, offset) = self.anon_mut(to, PAGE_SIZE)?;
        let target = map
            .range_mut(offset, len)
            .map_err(|fault| failed(fault, to, PAGE_SIZE))?;
        let (slot, offset) = self.locate(from, PAGE_SIZE)?;
        match &slot.store {
            Store::Tables { map, .. } | Store::Ram { map, .. } => map.copy_to(offset, target),
            Store::Files(files) => files.area().copy_to(offset, target),
            Store::FrozenRam(map) => map.copy_to(offset, target),
            Store::FrozenFiles(files) => files.copy_to(offset, target),
        }
        .map_err(|fault| failed(fault, from, PAGE_SIZE))
    }

    /// Reads an aligned 32-bit word atomically (a futex).
    pub fn load_u32(&self, gpa: Gpa) -> Result<u32, MemError> {
        let (slot, offset) = self.locate(gpa, 4)?;
        if !gpa.0.is_multiple_of(4) {
            return Err(MemError::Misaligned(gpa.0));
        }
        match &slot.store {
            Store::Tables { map, .. } | Store::Ram { map, .. } => map.load_u32(offset),
            Store::FrozenRam(map) => map.load_u32(offset),
            Store::Files(_) | Store::FrozenFiles(_) => {
                // The kernel moves an aligned word in one piece.
                let mut word = [0; 4];
                return self.read(gpa, &mut word).map(|()| u32::from_ne_bytes(word));
            }
        }
        .map_err(|fault| failed(fault, gpa, 4))
    }

    /// Stores `new` in an aligned 32-bit word if it holds `current`. `Ok(Err(found))` if it does not.
    pub fn compare_exchange_u32(
        &mut self,
        gpa: Gpa,
        current: u32,
        new: u32,
    ) -> Result<Result<u32, u32>, MemError> {
        if !gpa.0.is_multiple_of(4) {
            return Err(MemError::Misaligned(gpa.0));
        }
        let (map, offset) = self.anon_mut(gpa, 4)?;
        map.compare_exchange_u32(offset, current, new)
            .map_err(|fault| failed(fault, gpa, 4))
    }

    /// As [`GuestMemory::compare_exchange_u32`] of a word in a file mapping, in two steps. The page may vanish: only calls
    /// of the host can touch it.
    ///
    /// # Errors
    /// [`MemError::FileFault`] if it has vanished.
    pub fn exchange_in_file(
        &mut self,
        gpa: Gpa,
        current: u32,
        new: u32,
    ) -> Result<Result<u32, u32>, MemError> {
        let found = self.load_u32(gpa)?;
        if found != current {
            return Ok(Err(found));
        }
        self.write(gpa, &new.to_ne_bytes())?;
        Ok(Ok(found))
    }

    /// Host address behind a guest-physical address: for pages of the VMM that a virtual CPU reads
    /// directly. Valid as long as this value lives.
    #[must_use]
    pub fn host_addr(&self, gpa: Gpa) -> Option<usize> {
        let slot = self.slot(gpa)?;
        let base = match &slot.store {
            Store::Tables { map, .. } | Store::Ram { map, .. } => map.addr(),
            Store::Files(files) => files.area().addr(),
            Store::FrozenRam(map) => map.addr(),
            Store::FrozenFiles(files) => files.addr(),
        };
        usize::try_from(gpa.0 - slot.gpa)
            .ok()
            .and_then(|offset| base.checked_add(offset))
    }

    /// A page-table entry; 0 (not present) outside table memory.
    pub(crate) fn load_entry(&self, gpa: Gpa) -> u64 {
        match self.locate(gpa, 8) {
            Ok((slot, offset)) => match &slot.store {
                Store::Tables { map, .. } => map.load_u64(offset).unwrap_or(0),
                _ => 0,
            },
            Err(_) => 0,
        }
    }

    pub(crate) fn store_entry(&mut self, gpa: Gpa, entry: u64) {
        if let Ok((slot, offset)) = self.locate_mut(gpa, 8)
            && let Store::Tables { map, written, .. } = &mut slot.store
        {
            written.add(offset, 8);
            // Aligned and inside: the address was computed from a table frame.
            let _ = map.store_u64(offset, entry);
        }
    }
}

impl GuestMemory {
    /// Takes `bits` out of those entries of some stretches of one table that have one. Answers their indices; `None` if it
    /// is no table.
    pub(crate) fn take_bits(
        &mut self,
        table: Gpa,
        stretches: &[Range<usize>],
        bits: u64,
    ) -> Option<IndexSet> {
        let (slot, offset) = self.locate_mut(table, PAGE_SIZE).ok()?;
        let Store::Tables { map, written, .. } = &mut slot.store else {
            return None;
        };
        let found = map.take_bits(offset, stretches, bits).ok()?;
        if !found.is_empty() {
            written.add(offset, PAGE_SIZE);
        }
        Some(found)
    }
}

pub(crate) fn failed(fault: HostFault, gpa: Gpa, len_bytes: u64) -> MemError {
    match fault {
        HostFault::Outside => MemError::Outside { gpa, len_bytes },
        HostFault::Fault => MemError::FileFault(gpa),
    }
}
