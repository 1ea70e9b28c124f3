//! The running address space: the value together with frames, page tables and files, and the
//! primitive edits of it. Every edit keeps the value and the page tables in step.

use std::os::fd::AsFd;
use std::sync::Arc;

use kvmlet_abi::addr::page_align_up;
use kvmlet_abi::layout::{USER_END, USER_START};
use kvmlet_abi::{Errno, Gpa, Gva, HUGE_PAGE_SIZE, PAGE_SIZE};
use kvmlet_hostfs::attr::{FileTime, S_IFREG};
use kvmlet_hostfs::attr_of;
use kvmlet_mem::{FileMapping, FileVersion, FileWindow, GuestMemory, MemError, PageTables};

use super::vma::{Backing, FileBacking, Prot, TmpBacking, VMA_COST_BYTES, Vma, VmaFlags};
use super::{FaultError, MAX_MAP_COUNT, Mm, MmId, Region, Source};
use crate::clock;
use crate::creds::Creds;
use crate::cx::Cx;
use crate::host::{Host, HostId};
use crate::ipc::shm::{Change, ChangeKind, Segments};
use crate::kernel::Pid;
use crate::rlimit::{INFINITY, Resource, Rlimit};
use crate::vfs::tmpfs::{InodeId, NewAttr, SEAL_SEAL, Stale, TmpFs};

/// Seconds after which a file is known by its times.
const SETTLED_S: i64 = 2;

/// Resource limits that bear on memory, in bytes; soft ones, if not said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// RLIMIT_AS
    pub address_space: u64,
    /// RLIMIT_DATA, the hard limit too
    pub data: Rlimit,
    /// RLIMIT_STACK
    pub stack: u64,
    /// RLIMIT_MEMLOCK
    pub locked: u64,
}

/// The calling process's address space, with everything its edits touch.
#[derive(Debug)]
pub struct Space<'a> {
    /// The value.
    pub mm: &'a mut Mm,
    /// Frames.
    pub mem: &'a mut GuestMemory,
    /// Page tables.
    pub tables: &'a mut PageTables,
    /// Host files.
    pub host: &'a mut Host,
    /// Memory files.
    pub tmpfs: &'a mut TmpFs,
    /// Those of them that are shared memory segments.
    pub segments: &'a mut Segments,
    /// The calling process.
    pub pid: Pid,
    /// Resource limits.
    pub limits: Limits,
    /// Owner of new memory files.
    pub creds: Arc<Creds>,
    /// Changes of memory files that other address spaces have not followed yet.
    pub stale_files: &'a mut Vec<(InodeId, Stale)>,
}

/// The errno of a failed memory operation.
pub fn errno(error: MemError) -> Errno {
    match error {
        MemError::MapFile(errno) => Errno::from_raw(errno.raw_os_error()),
        MemError::FileFault(_) => Errno::EFAULT,
        MemError::Misaligned(_) | MemError::BeyondUserHalf(_) => Errno::EINVAL,
        _ => Errno::ENOMEM,
    }
}

impl<'a> Space<'a> {
    /// The calling thread's address space.
    ///
    /// # Errors
    /// `ESRCH` if the thread is gone.
    pub fn of(cx: &'a mut Cx<'_>) -> Result<Self, Errno> {
        let id = cx.process()?.mm;
        Self::by_id(cx, id)
    }

    /// The address space `id`, with the limits of the calling process.
    ///
    /// # Errors
    /// `ESRCH` if the thread or the address space is gone.
    pub fn by_id(cx: &'a mut Cx<'_>, id: MmId) -> Result<Self, Errno> {
        let pid = cx.kernel.threads.get(&cx.tid).ok_or(Errno::ESRCH)?.pid;
        let process = cx.kernel.processes.get(&pid).ok_or(Errno::ESRCH)?;
        let rlimits = &process.rlimits;
        let limits = Limits {
            data: rlimits.get(Resource::Data),
            stack: rlimits.soft(Resource::Stack),
            locked: rlimits.soft(Resource::Memlock),
            address_space: rlimits.soft(Resource::AddressSpace),
        };
        let creds = cx.creds();
        Ok(Self {
            mm: cx.kernel.mms.get_mut(&id).ok_or(Errno::ESRCH)?,
            mem: &mut cx.machine.memory,
            tables: cx.machine.spaces.get_mut(id).ok_or(Errno::ESRCH)?,
            host: cx.host,
            tmpfs: &mut cx.kernel.tmpfs,
            segments: &mut cx.kernel.ipc.segments,
            pid,
            limits,
            creds,
            stale_files: &mut cx.machine.stale_files,
        })
    }

    // ---- references to files ------------------------------------------------------------------

    pub(super) fn retain(&mut self, vma: &Vma) {
        match vma.backing {
            Backing::File(file) => self.host.incref(file.host),
            Backing::Tmp(tmp) => {
                self.tmpfs.map_ref(tmp.inode, vma.map_kind());
                self.tell_segment(tmp.inode, ChangeKind::Attached);
            }
            Backing::Anon | Backing::Special(_) => {}
        }
    }

    pub(super) fn release(&mut self, vma: &Vma) {
        match vma.backing {
            Backing::File(file) => self.host.decref(file.host),
            Backing::Tmp(tmp) => {
                self.tmpfs.map_unref(self.mem, tmp.inode, vma.map_kind());
                self.tell_segment(tmp.inode, ChangeKind::Detached);
            }
            Backing::Anon | Backing::Special(_) => {}
        }
    }

    /// Tells a shared memory segment, if a file is one's, of a mapping that has come or gone.
    fn tell_segment(&mut self, inode: InodeId, kind: ChangeKind) {
        if self.segments.of_inode(inode).is_none() {
            return;
        }
        let change = Change {
            kind,
            pid: self.pid,
            now: clock::realtime_s(self.host),
        };
        self.segments.mapped((self.tmpfs, self.mem), inode, change);
    }

    // ---- the map itself -------------------------------------------------------------------------

    /// Puts a VMA into the map, in place of one with the same start. Its host memory is charged; there
    /// is room for it, but for a long name ([`Space::check_count`]).
    pub(super) fn put(&mut self, vma: Vma) {
        let cost_bytes = vma.cost_bytes();
        let len_bytes = vma.len_bytes();
        if let Some(old) = self.mm.vmas.insert(vma.start, vma) {
            self.mm.mapped.remove(old.len_bytes());
            self.mem.uncharge_kernel(old.cost_bytes());
        }
        self.mm.mapped.add(len_bytes);
        self.mem.charge_kernel_anyway(cost_bytes);
    }

    /// Takes the VMA that starts at `start` out of the map.
    pub(super) fn take(&mut self, start: u64) {
        if let Some(old) = self.mm.vmas.remove(&start) {
            self.mm.mapped.remove(old.len_bytes());
            self.mem.uncharge_kernel(old.cost_bytes());
        }
    }

    // ---- cutting and joining --------------------------------------------------------------------

    /// Makes `at` a boundary between VMAs.
    pub(super) fn cut(&mut self, at: u64) {
        let Some(vma) = self.mm.find(at).filter(|vma| vma.start < at).cloned() else {
            return;
        };
        self.retain(&vma);
        self.put(vma.part(vma.start, at));
        self.put(vma.part(at, vma.end));
    }

    /// Joins neighbours that touch the range, its ends included.
    fn join(&mut self, start: u64, end: u64) {
        let first = self.mm.prev_start(start).map_or(start, |vma| vma.start);
        let Some(mut left) = self.mm.next_start(first).cloned() else {
            return;
        };
        while let Some(right) = self.mm.next_start(left.end).cloned() {
            if right.start > end {
                return;
            }
            if left.joins(&right) {
                self.take(right.start);
                left.end = right.end;
                self.put(left.clone());
                self.release(&right);
            } else {
                left = right;
            }
        }
    }

    /// Puts a VMA where nothing is mapped and joins it to its neighbours. The caller has counted the
    /// reference to its file.
    pub fn insert(&mut self, vma: Vma) {
        let (start, end) = (vma.start, vma.end);
        self.put(vma);
        self.join(start, end);
    }

    /// Changes every VMA in the range, cutting those that lie across its ends.
    ///
    /// # Errors
    /// `ENOMEM` if that makes too many VMAs.
    pub fn update(&mut self, start: u64, end: u64, change: impl Fn(&mut Vma)) -> Result<(), Errno> {
        self.check_count(self.mm.cuts(start, end))?;
        self.cut(start);
        self.cut(end);
        let parts: Vec<Vma> = self.mm.parts(start, end).collect();
        for mut vma in parts {
            change(&mut vma);
            self.put(vma);
        }
        self.join(start, end);
        Ok(())
    }

    /// Checks that `more` VMAs may be added.
    ///
    /// # Errors
    /// `ENOMEM` if not.
    pub fn check_count(&self, more: usize) -> Result<(), Errno> {
        let cost_bytes = VMA_COST_BYTES.saturating_mul(more as u64);
        if self.mm.vmas.len().saturating_add(more) > MAX_MAP_COUNT
            || more > 0 && !self.mem.has_room(cost_bytes)
        {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    /// Checks that the address space may grow by `more_bytes` (RLIMIT_AS).
    ///
    /// # Errors
    /// `ENOMEM` if not.
    pub fn check_address_space(&self, more_bytes: u64) -> Result<(), Errno> {
        let limit = self.limits.address_space;
        if limit != INFINITY && self.mm.total_bytes().saturating_add(more_bytes) > limit {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    /// Checks that private writable memory may grow by `more_bytes` (RLIMIT_DATA).
    ///
    /// # Errors
    /// `ENOMEM` if not.
    pub fn check_data(&self, more_bytes: u64) -> Result<(), Errno> {
        let Rlimit { soft, hard } = self.limits.data;
        // Linux lets 0 pass: Valgrind sets it to have no break (may_expand_vm in mm/mmap.c).
        let limit = if soft == 0 { hard } else { soft };
        if limit != INFINITY && self.mm.data_bytes().saturating_add(more_bytes) > limit {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    // ---- unmapping ------------------------------------------------------------------------------

    /// Removes the leaves of a range; the content of private memory is lost.
    ///
    /// # Errors
    /// `ENOMEM` if a 2 MiB page cannot be split; nothing is removed then.
    pub fn zap(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        self.tables
            .unmap_range(self.mem, Gva(start), end - start, |mem, _, leaf| {
                mem.free_leaf(leaf);
            })
            .map_err(errno)
    }

    /// True if unmapping the range would leave two parts of one VMA.
    fn lies_inside(&self, start: u64, end: u64) -> bool {
        let around = self.mm.find(start);
        around.is_some_and(|vma| vma.start < start && vma.end > end)
    }

    /// Unmaps a page-aligned, non-empty range, whether or not anything is mapped there.
    ///
    /// # Errors
    /// `ENOMEM` if too many VMAs arise or a 2 MiB page cannot be split; nothing is unmapped then.
    pub fn unmap(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        if !self.mm.any_in(start, end) {
            return Ok(());
        }
        self.check_count(usize::from(self.lies_inside(start, end)))?;
        self.cut_windows(start, end)?;
        self.retire_trampolines(start, end)?;
        // The windows go below.
        self.tables
            .unmap_with_windows(self.mem, Gva(start), end - start, |mem, _, leaf| {
                mem.free_leaf(leaf);
            })
            .map_err(errno)?;
        self.cut(start);
        self.cut(end);
        let parts: Vec<Vma> = self.mm.parts(start, end).collect();
        for vma in parts {
            self.take(vma.start);
            self.forget(&vma);
        }
        Ok(())
    }

    /// Divides the windows that lie across the ends of a range, so that the part inside can go without
    /// another mapping of the host.
    ///
    /// # Errors
    /// `ENOMEM` when sandboxes have all that they may have.
    pub fn cut_windows(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let parts = self.mm.parts(start, end);
        let windows: Vec<FileWindow> = parts
            .filter_map(|part| match part.backing {
                Backing::File(file) => file.window.map(|gpa| FileWindow {
                    gpa,
                    len_bytes: part.len_bytes(),
                }),
                _ => None,
            })
            .collect();
        for window in windows {
            let cut = self.mem.cut_file(window);
            cut.map_err(|error| self.refused("unmapping a file", error))?;
        }
        Ok(())
    }

    /// The errno of a failed memory operation. The person who runs the sandbox is told of a budget that
    /// is exhausted.
    fn refused(&mut self, what: &str, error: MemError) -> Errno {
        let errno = errno(error);
        if let MemError::Exhausted(exhausted) = error {
            let what = format!("{what}: {exhausted}");
            self.host.report.deny(what, errno, exhausted.into());
        }
        errno
    }

    /// Gives up what a VMA whose leaves are gone holds: its window, its charge, its file.
    pub fn forget(&mut self, vma: &Vma) {
        if let Backing::File(file) = vma.backing {
            self.drop_window(file, vma.len_bytes());
        }
        self.release(vma);
    }

    /// Gives up a window and its charge.
    pub fn drop_window(&mut self, file: FileBacking, len_bytes: u64) {
        // The host refuses only when it has no room to split one of its own mappings; the range then
        // stays mapped, unused, until the VM goes.
        if let Some(gpa) = file.window
            && self.mem.unmap_file(FileWindow { gpa, len_bytes }).is_err()
        {
            self.tables.require_full_flush();
        }
        if file.charged {
            self.mem.uncharge(len_bytes);
        }
    }

    /// Gives up what all mappings hold, and forgets the layout: the address space ends.
    pub fn forget_all(&mut self) {
        let mm = core::mem::take(self.mm);
        let mut windows = Vec::new();
        for vma in mm.vmas.values() {
            self.mem.uncharge_kernel(vma.cost_bytes());
            if let Backing::File(file) = vma.backing {
                let len_bytes = vma.len_bytes();
                windows.extend(file.window.map(|gpa| FileWindow { gpa, len_bytes }));
                if file.charged {
                    self.mem.uncharge(len_bytes);
                }
            }
            self.release(vma);
        }
        // Nothing is entered through this space any more: what the host refuses to unmap stays, unused.
        let _ = self.mem.unmap_files(windows);
    }

    // ---- mapping --------------------------------------------------------------------------------

    /// See [`super::map_region`].
    ///
    /// # Errors
    /// See [`super::map_region`].
    pub fn map_region(&mut self, region: &Region) -> Result<(), Errno> {
        let start = region.start.0;
        let aligned = region.start.is_page_aligned()
            && region.len_bytes != 0
            && region.len_bytes.is_multiple_of(PAGE_SIZE)
            && region.offset.is_multiple_of(PAGE_SIZE);
        let end = start
            .checked_add(region.len_bytes)
            .filter(|&end| aligned && end <= USER_END.0 && start >= USER_START.0)
            .ok_or(Errno::EINVAL)?;
        self.check_count(1 + usize::from(self.lies_inside(start, end)))?;
        let vma = Vma {
            start,
            end,
            prot: region.prot,
            flags: region.flags,
            backing: Backing::Anon,
            name: region.name.clone(),
        };
        let vma = self.back(vma, region.source, region.offset)?;
        if let Err(errno) = self.unmap(start, end) {
            self.forget(&vma);
            return Err(errno);
        }
        self.insert(vma.clone());
        self.map_ahead(&vma);
        Ok(())
    }

    /// Gives a new VMA its backing, counting the reference to its file and charging it.
    fn back(&mut self, vma: Vma, source: Source, offset: u64) -> Result<Vma, Errno> {
        let backing = match source {
            Source::Anon if vma.is_shared() => {
                return self.back_shared(vma);
            }
            Source::Anon => Backing::Anon,
            Source::Host(host) => Backing::File(self.open_any_window(&vma, host, offset)?),
            Source::Tmp(inode) => Backing::Tmp(TmpBacking { inode, offset }),
            Source::Special(gpa) => Backing::Special(gpa),
        };
        let vma = Vma { backing, ..vma };
        self.retain(&vma);
        Ok(vma)
    }

    /// Shared anonymous memory: a memory file without a name (shmem_zero_setup in mm/shmem.c).
    fn back_shared(&mut self, vma: Vma) -> Result<Vma, Errno> {
        let attr = NewAttr {
            mode: 0o777,
            uid: self.creds.user.fs,
            gid: self.creds.group.fs,
            now: FileTime::from_ns(clock::realtime_ns(self.host)),
        };
        let inode = self
            .tmpfs
            .create_unnamed(self.mem, SEAL_SEAL, attr)
            .map_err(|_| Errno::ENOMEM)?;
        let sized = self
            .tmpfs
            .set_size(self.mem, inode, vma.len_bytes(), attr.now);
        let vma = Vma {
            backing: Backing::Tmp(TmpBacking { inode, offset: 0 }),
            name: Some(Arc::from(&b"/dev/zero (deleted)"[..])),
            ..vma
        };
        self.retain(&vma);
        self.tmpfs.close_ref(self.mem, inode);
        match sized {
            Ok(_) => Ok(vma),
            Err(errno) => {
                self.release(&vma);
                Err(errno)
            }
        }
    }

    /// Places a host mapping for a VMA and charges it if its pages may be written.
    pub fn open_window(
        &mut self,
        vma: &Vma,
        host: HostId,
        offset: u64,
    ) -> Result<FileBacking, Errno> {
        let fd = self.host.fd(host)?;
        let attr = attr_of(fd.as_fd())?;
        let charged = vma.is_data();
        let len_bytes = vma.len_bytes();
        if charged {
            self.mem.charge(len_bytes).map_err(|_| Errno::ENOMEM)?;
        }
        let mapping = match vma.is_shared() {
            true if vma.flags.contains(VmaFlags::MAYWRITE) => FileMapping::Shared,
            true => FileMapping::SharedReadOnly,
            false => FileMapping::Private,
        };
        let fd = fd.as_fd();
        let mut window = self.mem.map_file(fd, offset, len_bytes, mapping);
        while matches!(window, Err(MemError::Exhausted(_))) && self.mem.give_up_oldest_text() {
            window = self.mem.map_file(fd, offset, len_bytes, mapping);
        }
        match window {
            Ok(window) => Ok(FileBacking {
                window: Some(window.gpa),
                host,
                dev: attr.dev,
                ino: attr.ino,
                offset,
                charged,
                has_hidden: false,
            }),
            Err(error) => {
                if charged {
                    self.mem.uncharge(len_bytes);
                }
                Err(self.refused("mapping a file", error))
            }
        }
    }

    /// As [`Space::open_window`], for a new mapping: one that is not written may lie in a kept window of the file,
    /// which others have too. What is executed is kept from then on.
    fn open_any_window(
        &mut self,
        vma: &Vma,
        host: HostId,
        offset: u64,
    ) -> Result<FileBacking, Errno> {
        if vma.is_shared() || vma.is_data() {
            return self.open_window(vma, host, offset);
        }
        let fd = self.host.fd(host)?;
        let attr = attr_of(fd.as_fd())?;
        let time = |time: FileTime| (time.sec, time.nsec);
        let file = FileVersion {
            dev: attr.dev,
            ino: attr.ino,
            len_bytes: attr.size,
            modified: time(attr.mtime),
            changed: time(attr.ctime),
        };
        let len_bytes = vma.len_bytes();
        // Times of files are coarse: what was written just now may be written again and look the same.
        let is_settled = attr.ctime.sec.saturating_add(SETTLED_S) < clock::realtime_s(self.host);
        let is_text = attr.kind() == S_IFREG && is_settled && vma.prot.contains(Prot::EXEC);
        let found = match is_text {
            true => self.mem.keep_text(&file, fd.as_fd(), offset, len_bytes),
            false => self.mem.find_text(&file, offset, len_bytes),
        };
        match found {
            Ok(Some(window)) => Ok(FileBacking {
                window: Some(window.gpa),
                host,
                dev: attr.dev,
                ino: attr.ino,
                offset,
                charged: false,
                has_hidden: false,
            }),
            // A window of its own may do with less.
            Ok(None) | Err(_) => self.open_window(vma, host, offset),
        }
    }

    // ---- files that change ----------------------------------------------------------------------

    /// Length of a host file in bytes, rounded up to pages; 0 if it cannot be told.
    pub fn file_pages_end(&self, host: HostId) -> u64 {
        self.host
            .get(host)
            .and_then(|file| attr_of(file.fd.as_fd()))
            .ok()
            .and_then(|attr| page_align_up(attr.size))
            .unwrap_or(0)
    }

    /// See [`super::host_fault`].
    pub fn drop_truncated(&mut self) -> bool {
        let vmas: Vec<Vma> = self.mm.vmas.values().cloned().collect();
        let mut dropped = false;
        let mut known: Option<(HostId, u64)> = None;
        for vma in vmas {
            let Backing::File(file) = vma.backing else {
                continue;
            };
            let size = match known {
                Some((host, size)) if host == file.host => size,
                _ => self.file_pages_end(file.host),
            };
            known = Some((file.host, size));
            let kept = size.saturating_sub(file.offset).min(vma.len_bytes());
            let from = vma.start.saturating_add(kept);
            let pages = (vma.end - from) / PAGE_SIZE;
            if self.tables.absent_run(self.mem, Gva(from), pages) < pages {
                dropped |= self.zap(from, vma.end).is_ok();
            }
        }
        dropped
    }

    /// See [`super::unmap_stale`].
    ///
    /// # Errors
    /// See [`super::unmap_stale`].
    pub fn unmap_stale(&mut self, inode: InodeId, stale: &Stale) -> Result<(), Errno> {
        let mut hit: Vec<(u64, u64)> = Vec::new();
        for vma in self.mm.vmas.values() {
            let Backing::Tmp(tmp) = vma.backing else {
                continue;
            };
            if tmp.inode != inode {
                continue;
            }
            let first = tmp.offset / PAGE_SIZE;
            let end = first.saturating_add(vma.len_bytes() / PAGE_SIZE);
            let at = |page: u64| {
                let in_vma = page.saturating_sub(first).saturating_mul(PAGE_SIZE);
                vma.start.saturating_add(in_vma).min(vma.end)
            };
            for &(page, frame) in stale.left_in(first..end) {
                let shown = self.tables.walk(self.mem, Gva(at(page)));
                if shown.is_some_and(|leaf| leaf.gpa == frame) {
                    hit.push((at(page), at(page.saturating_add(1))));
                }
            }
            let cut = stale.cut_from().map_or(vma.end, at);
            if cut < vma.end {
                hit.push((cut, vma.end));
            }
        }
        for (start, end) in hit {
            self.zap(start, end)?;
        }
        Ok(())
    }

    /// As [`Space::unmap_stale`]; other address spaces follow ([`super::change_files`]).
    ///
    /// # Errors
    /// See [`super::unmap_stale`].
    pub fn unmap_everywhere(&mut self, inode: InodeId, stale: Stale) -> Result<(), Errno> {
        let unmapped = self.unmap_stale(inode, &stale);
        self.stale_files.push((inode, stale));
        unmapped
    }

    /// True if the 2 MiB block at `block` may get a 2 MiB page.
    pub fn wants_huge(&self, vma: &Vma, block: u64) -> bool {
        let inside = vma.start <= block
            && block
                .checked_add(HUGE_PAGE_SIZE)
                .is_some_and(|end| end <= vma.end);
        let asked = vma.flags.contains(VmaFlags::HUGEPAGE);
        let large = vma.len_bytes() >= super::HUGE_FROM;
        let free = self.mem.limit_bytes().saturating_sub(self.mem.used_bytes());
        // Memory that may never be used must not be what ends the run: large pages only while there
        // is plenty.
        let plenty = free >= self.mem.limit_bytes() / 4 && free >= HUGE_PAGE_SIZE;
        inside
            && vma.prot.contains(Prot::WRITE)
            && !vma.flags.contains(VmaFlags::NOHUGEPAGE)
            && (asked || large)
            && plenty
            && self.tables.can_map_huge(self.mem, Gva(block))
    }

    /// Frame of a memory file's page, allocated if it is a hole.
    ///
    /// # Errors
    /// Out of memory.
    pub fn tmp_page(&mut self, inode: InodeId, page: u64) -> Result<Gpa, FaultError> {
        match self.tmpfs.page_for_read(inode, page) {
            Some(gpa) => Ok(gpa),
            None => self.own_tmp_page(inode, page),
        }
    }

    /// Frame of a memory file's page, to be written through a shared mapping. Mappings of the frozen
    /// frame that it leaves are unmapped.
    ///
    /// # Errors
    /// Out of memory.
    pub fn own_tmp_page(&mut self, inode: InodeId, page: u64) -> Result<Gpa, FaultError> {
        let own = self.tmpfs.page_for_write(self.mem, inode, page)?;
        if let Some(frozen) = own.left {
            self.unmap_everywhere(inode, Stale::page(page, frozen))
                .map_err(|_| FaultError::OutOfMemory)?;
        }
        Ok(own.frame)
    }
}
