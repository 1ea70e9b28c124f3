//! Copies between the host and a program's virtual memory, checked page by page.

use kvmlet_abi::{Gva, PAGE_SIZE};

use crate::entry::PteFlags;
use crate::error::MemError;
use crate::memory::GuestMemory;
use crate::tables::PageTables;

/// Why a copy ended early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyStop {
    /// No page is present there: the caller may fault it in and go on.
    NotPresent(Gva),
    /// A page is present but does not allow the access: read-only (perhaps copy on write) or not the
    /// program's.
    Denied(Gva),
    /// The file behind the page cannot be read or written.
    FileFault(Gva),
}

/// Progress of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyOutcome {
    /// Bytes copied, from the start on.
    pub copied_bytes: usize,
    /// Why not all of them; `None` when the copy is complete.
    pub stop: Option<CopyStop>,
    /// True if pages of a file were among those that were read: each took a host call.
    pub reads_file: bool,
}

impl PageTables {
    /// Copies from the program's memory at `gva`, as far as it goes.
    pub fn copy_in(&self, mem: &GuestMemory, gva: Gva, into: &mut [u8]) -> CopyOutcome {
        let (mut done, mut reads_file) = (0, false);
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = gva.wrapping_add(done as u64);
            let len = rest.len().min(to_page_end(at));
            let result = self.accessible(mem, at, PteFlags::USER).and_then(|gpa| {
                reads_file |= mem.is_file_backed(gpa);
                match rest.get_mut(..len) {
                    Some(part) => mem.read(gpa, part).map_err(|error| stop_of(error, at)),
                    None => Ok(()),
                }
            });
            if let Err(stop) = result {
                return CopyOutcome {
                    copied_bytes: done,
                    stop: Some(stop),
                    reads_file,
                };
            }
            done += len;
        }
        CopyOutcome {
            copied_bytes: done,
            stop: None,
            reads_file,
        }
    }

    /// Copies to the program's memory at `gva`, as far as it goes.
    pub fn copy_out(&self, mem: &mut GuestMemory, gva: Gva, from: &[u8]) -> CopyOutcome {
        let mut done = 0;
        while let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) {
            let at = gva.wrapping_add(done as u64);
            let len = rest.len().min(to_page_end(at));
            let result = self
                .accessible(mem, at, PteFlags::USER | PteFlags::WRITE)
                .and_then(|gpa| match rest.get(..len) {
                    Some(part) => mem.write(gpa, part).map_err(|error| stop_of(error, at)),
                    None => Ok(()),
                });
            if let Err(stop) = result {
                return CopyOutcome {
                    copied_bytes: done,
                    stop: Some(stop),
                    reads_file: false,
                };
            }
            done += len;
        }
        CopyOutcome {
            copied_bytes: done,
            stop: None,
            reads_file: false,
        }
    }

    fn accessible(
        &self,
        mem: &GuestMemory,
        gva: Gva,
        needed: PteFlags,
    ) -> Result<kvmlet_abi::Gpa, CopyStop> {
        let leaf = self.walk(mem, gva).ok_or(CopyStop::NotPresent(gva))?;
        if !leaf.flags.contains(needed) {
            return Err(CopyStop::Denied(gva));
        }
        Ok(leaf.gpa_of(gva))
    }
}

fn to_page_end(gva: Gva) -> usize {
    (PAGE_SIZE - gva.page_offset()) as usize
}

fn stop_of(error: MemError, gva: Gva) -> CopyStop {
    match error {
        MemError::FileFault(_) => CopyStop::FileFault(gva),
        // A present entry always points into a slot.
        _ => CopyStop::Denied(gva),
    }
}
