//! The changes that a freeze makes to an address space, and what forks and resets must know of it.

use std::os::fd::AsFd;

use kvmlet_abi::{Errno, Gva, PAGE_SIZE};
use kvmlet_hostfs::attr::Attr;
use kvmlet_hostfs::attr_of;
use kvmlet_policy::Place;

use super::space::{Space, errno};
use super::vma::{Backing, FileBacking, Prot, Vma, VmaFlags};
use super::{FaultError, Mm};
use crate::cx::{Cx, Machine};
use crate::host::{Host, HostId};
use crate::kernel::Tid;

/// A host file whose pages a snapshot shows, as it was at the freeze.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MappedFile {
    host: HostId,
    attr: Attr,
    name: Vec<u8>,
}

impl MappedFile {
    /// True if the file is as it was: device, inode, size and times. The time of the last access does
    /// not count.
    #[must_use]
    pub fn is_unchanged(&self, host: &Host) -> bool {
        let known = |attr: &Attr| (attr.dev, attr.ino, attr.size, attr.mtime, attr.ctime);
        host.get(self.host)
            .and_then(|file| attr_of(file.fd.as_fd()))
            .is_ok_and(|now| known(&now) == known(&self.attr))
    }

    /// Its path, for messages.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }
}

/// True if somebody other than the superuser may change the file.
fn may_change(attr: &Attr) -> bool {
    const GROUP_OR_OTHER_WRITE: u32 = 0o022;
    attr.uid != 0 || attr.mode & GROUP_OR_OTHER_WRITE != 0
}

/// Prepares the address space of every process for a freeze. Written pages of private file mappings,
/// and all pages of files that may change, become memory of ours. Memory that the program wants wiped
/// in a child (madvise(2), MADV_WIPEONFORK) is wiped: every fork finds zeros there. Shared mappings of files that
/// the program changes on the host stay the host's. Answers the files whose pages are still shown.
///
/// # Errors
/// `ENOMEM` at the memory limit; the host's error for a file that cannot be read.
pub fn settle(cx: &mut Cx<'_>) -> Result<Vec<MappedFile>, Errno> {
    let Machine { memory, spaces, .. } = &mut *cx.machine;
    spaces.give_up_spares(memory, |mem, _, leaf| mem.free_leaf(leaf));
    let mut leaders: Vec<Tid> = Vec::new();
    let mut seen = Vec::new();
    for thread in cx.kernel.threads.values() {
        if !seen.contains(&thread.pid) {
            seen.push(thread.pid);
            leaders.push(thread.tid);
        }
    }
    let mut shown: Vec<MappedFile> = Vec::new();
    for tid in leaders {
        let mut of_process = Cx {
            kernel: &mut *cx.kernel,
            machine: &mut *cx.machine,
            host: &mut *cx.host,
            tid,
        };
        Space::of(&mut of_process)?.settle(&mut shown)?;
    }
    Ok(shown)
}

impl Space<'_> {
    fn settle(&mut self, shown: &mut Vec<MappedFile>) -> Result<(), Errno> {
        let vmas: Vec<Vma> = self.mm.vmas.values().cloned().collect();
        for vma in vmas {
            if vma.flags.contains(VmaFlags::WIPEONFORK) {
                self.zap(vma.start, vma.end)?;
                continue;
            }
            let Backing::File(file) = vma.backing else {
                continue;
            };
            if self.is_changed_on_host(&vma) {
                self.zap(vma.start, vma.end)?;
                self.drop_window(file, vma.len_bytes());
                let window = None;
                let backing = Backing::File(FileBacking { window, ..file });
                self.put(Vma { backing, ..vma });
                continue;
            }
            let attr = attr_of(self.host.fd(file.host)?.as_fd())?;
            if may_change(&attr) {
                self.take_out_all(&vma, file)?;
                self.clean_window(&vma);
                continue;
            }
            if vma.is_data() {
                self.take_out_present(&vma)?;
            }
            if !shown.iter().any(|known| known.host == file.host) {
                let name = vma.name.as_deref().unwrap_or_default().to_vec();
                let host = file.host;
                shown.push(MappedFile { host, attr, name });
            }
        }
        Ok(())
    }

    /// True if a mapping shows a file that the program changes on the host itself: it is no part of a snapshot, and
    /// each fork maps it anew.
    fn is_changed_on_host(&self, vma: &Vma) -> bool {
        let name = vma.name.as_deref().unwrap_or_default();
        vma.is_shared()
            && (vma.flags.contains(VmaFlags::MAYWRITE)
                || self.host.policy.classify(name) == Place::Writable)
    }

    /// Copies the present pages of a file mapping to memory of ours.
    fn take_out_present(&mut self, vma: &Vma) -> Result<(), Errno> {
        let mut present = Vec::new();
        let mem = &*self.mem;
        self.tables
            .for_each_leaf(mem, Gva(vma.start), vma.len_bytes(), |gva, leaf| {
                if mem.is_file_backed(leaf.gpa) {
                    present.push((gva, leaf.gpa));
                }
            })
            .map_err(errno)?;
        for (gva, gpa) in present {
            let copy = self.mem.alloc_copy(gpa).map_err(errno)?;
            self.replace(gva, copy, vma.pte()).map_err(out_of_memory)?;
        }
        Ok(())
    }

    /// Copies every page of a file mapping that lies in the file to memory of ours.
    fn take_out_all(&mut self, vma: &Vma, file: FileBacking) -> Result<(), Errno> {
        let Some(window) = file.window else {
            return Ok(());
        };
        let in_file = self.file_pages_end(file.host).saturating_sub(file.offset);
        let end = vma.start.saturating_add(in_file).min(vma.end);
        let mut at = vma.start;
        while at < end {
            let leaf = self.tables.walk(self.mem, Gva(at));
            if leaf.is_none_or(|leaf| self.mem.is_file_backed(leaf.gpa)) {
                let page = window.wrapping_add(at - vma.start);
                let copy = self.mem.alloc_copy(page).map_err(errno)?;
                self.replace(Gva(at), copy, vma.pte())
                    .map_err(out_of_memory)?;
            }
            at += PAGE_SIZE;
        }
        Ok(())
    }
}

fn out_of_memory(_: FaultError) -> Errno {
    Errno::ENOMEM
}

impl Mm {
    /// Says of frozen pages, quickest in address order, if a fork's copy may stay mapped writable through a
    /// reset. It may if the page is private memory that the frozen program may write. A private page of a
    /// memory file may not: until it is written, it shows what others write to the file.
    pub fn copy_keeper(&self) -> impl FnMut(Gva) -> bool {
        let mut last: Option<&Vma> = None;
        move |gva| {
            if last.is_none_or(|vma| gva.0 < vma.start || gva.0 >= vma.end) {
                last = self.find(gva.0);
            }
            last.is_some_and(keeps_copies)
        }
    }
}

fn keeps_copies(vma: &Vma) -> bool {
    vma.prot.contains(Prot::WRITE)
        && !vma.is_shared()
        && matches!(vma.backing, Backing::Anon | Backing::File(_))
}
