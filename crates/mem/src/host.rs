//! The only module that touches host memory: mappings, raw copies, atomics.
//!
//! Every method checks its range against the mapping and is safe to call. Callers outside see
//! offsets and byte counts, never pointers.

use core::ffi::c_void;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use kvmlet_abi::{HUGE_PAGE_SIZE, PAGE_SIZE};
use kvmlet_budget::{Claim, Exhausted, Held, Resource, Share};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

use crate::marks::PageMarks;
use crate::set::IndexSet;

const HUGE: usize = HUGE_PAGE_SIZE as usize;

/// A host memory access that cannot be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HostFault {
    /// Outside the mapping, or misaligned for an atomic access.
    Outside,
    /// The page cannot be reached (EFAULT).
    Fault,
}

/// How the host should back an anonymous mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Backing {
    /// 2 MiB pages where it can (MADV_HUGEPAGE).
    Huge,
    /// 4 KiB pages only (MADV_NOHUGEPAGE).
    Base,
}

/// Whether the host may back any memory by 2 MiB pages, asked for or not
/// (Documentation/admin-guide/mm/transhuge.rst). Looked up once; yes if it cannot be told.
fn huge_pages_come_unasked() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        const ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
        #[expect(
            clippy::disallowed_methods,
            reason = "a fact about the host, not a file for a guest"
        )]
        let mode = std::fs::read_to_string(ENABLED);
        !mode.is_ok_and(|mode| mode.contains("[madvise]") || mode.contains("[never]"))
    })
}

/// Looks up how the host gives huge pages, for a process that is about to lose sight of the file that says
/// so.
pub fn note_huge_pages() {
    let _ = huge_pages_come_unasked();
}

/// An owned stretch of host address space, 2 MiB-aligned unless it says otherwise.
#[derive(Debug)]
pub(crate) struct Reservation {
    addr: usize,
    len: usize,
    /// One mapping of the host.
    _held: Held,
    /// What file mappings inside have made of it.
    pieces: Option<Pieces>,
}

/// Host mappings that lie in one range, beyond the first.
#[derive(Debug)]
struct Pieces {
    of_sandbox: Held,
    of_process: Held,
}

impl Pieces {
    fn new(share: &Arc<Share>) -> Result<Self, Exhausted> {
        let mappings = Resource::Mappings;
        Ok(Self {
            of_sandbox: Held::take_share(share, mappings, 0)?,
            of_process: Held::take(mappings, Claim::Guest, 0)?,
        })
    }

    fn resize(&self, count: usize) -> Result<(), Exhausted> {
        let before = self.of_sandbox.count();
        self.of_sandbox.resize(count)?;
        self.of_process.resize(count).inspect_err(|_| {
            // Less than a moment ago: this cannot be refused.
            let _ = self.of_sandbox.resize(before);
        })
    }
}

impl Reservation {
    /// Page-aligned only: what never has 2 MiB pages takes fewer host calls.
    fn base(len_bytes: u64, prot: ProtFlags) -> Result<Self, Errno> {
        let len = usize::try_from(len_bytes).map_err(|_| Errno::NOMEM)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice; it replaces nothing.
        let at = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len, prot, flags) }?;
        Ok(Self::owned(at.expose_provenance(), len))
    }

    fn new(len_bytes: u64, prot: ProtFlags) -> Result<Self, Errno> {
        let len = usize::try_from(len_bytes).map_err(|_| Errno::NOMEM)?;
        if len == 0 || !len_bytes.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::INVAL);
        }
        let padded = len.checked_add(HUGE).ok_or(Errno::NOMEM)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice; it replaces nothing.
        let start = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), padded, prot, flags) }?
            .expose_provenance();
        let addr = start.next_multiple_of(HUGE);
        let head = addr - start;
        let tail = padded - head - len;
        for (at, cut) in [(start, head), (addr + len, tail)] {
            if cut != 0 {
                // SAFETY: the part lies inside the mapping made above and nobody knows its address.
                // A failure (too many mappings) only leaves unused address space behind.
                let _ = unsafe { rustix::mm::munmap(pointer(at).cast(), cut) };
            }
        }
        Ok(Self::owned(addr, len))
    }

    fn owned(addr: usize, len: usize) -> Self {
        Self {
            addr,
            len,
            _held: Held::promised(Resource::Mappings, 1),
            pieces: None,
        }
    }

    /// A mapping of a file that never shrinks; page-aligned only.
    fn of_file(
        fd: BorrowedFd<'_>,
        offset: u64,
        len_bytes: u64,
        prot: ProtFlags,
        share: MapFlags,
    ) -> Result<Self, Errno> {
        let len = usize::try_from(len_bytes).map_err(|_| Errno::NOMEM)?;
        let flags = share | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing.
        let at = unsafe { rustix::mm::mmap(ptr::null_mut(), len, prot, flags, fd, offset) }?;
        Ok(Self::owned(at.expose_provenance(), len))
    }

    /// Makes `len` bytes at `offset` read-only for the host.
    fn make_read_only(&self, offset: u64, len: usize) -> Result<(), Errno> {
        let at = self.at(offset, len).map_err(|_| Errno::INVAL)?;
        // SAFETY: an owned range. Its memory stays what it was; who made it read-only offers no way to
        // write it any more.
        unsafe { rustix::mm::mprotect(pointer(at).cast(), len, MprotectFlags::READ) }
    }

    /// Takes [`Reservation::make_read_only`] back.
    fn make_writable(&self, offset: u64, len: usize) -> Result<(), Errno> {
        let at = self.at(offset, len).map_err(|_| Errno::INVAL)?;
        let rights = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: an owned range, which was writable before.
        unsafe { rustix::mm::mprotect(pointer(at).cast(), len, rights) }
    }

    /// Has the host copy the pages of a private mapping now. Without effect on a kernel before 5.14, or
    /// where the file has no page.
    fn copy_pages(&self, offset: u64, len: usize) {
        if let Ok(at) = self.at(offset, len) {
            let advice = Advice::LinuxPopulateWrite;
            // SAFETY: an owned range; its content stays.
            let _ = unsafe { rustix::mm::madvise(pointer(at).cast(), len, advice) };
        }
    }

    /// Host address of `len` bytes at `offset`, if all of it is inside.
    fn at(&self, offset: u64, len: usize) -> Result<usize, HostFault> {
        let offset = usize::try_from(offset).map_err(|_| HostFault::Outside)?;
        let end = offset.checked_add(len).ok_or(HostFault::Outside)?;
        if end > self.len {
            return Err(HostFault::Outside);
        }
        Ok(self.addr + offset)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the range is owned by this value, and no pointer into it outlives a method call
        // here. A VM that was given the memory holds a share of this value (`SlotMemory`).
        let _ = unsafe { rustix::mm::munmap(pointer(self.addr).cast(), self.len) };
    }
}

fn pointer(addr: usize) -> *mut u8 {
    ptr::with_exposed_provenance_mut(addr)
}

/// Anonymous host memory: every byte can be read and written.
#[derive(Debug)]
pub(crate) struct AnonMapping {
    range: Arc<Reservation>,
    marks: Option<PageMarks>,
}

impl AnonMapping {
    /// `len_bytes` of zeroed memory, allocated by the host on first touch.
    pub(crate) fn new(len_bytes: u64, backing: Backing) -> Result<Self, Errno> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let (range, advice) = match backing {
            Backing::Huge => (Reservation::new(len_bytes, prot)?, Advice::LinuxHugepage),
            Backing::Base => (Reservation::base(len_bytes, prot)?, Advice::LinuxNoHugepage),
        };
        if backing == Backing::Huge || huge_pages_come_unasked() {
            // SAFETY: advice on an owned range; it changes no content. A kernel without transparent
            // huge pages answers EINVAL, which costs speed only.
            let _ = unsafe { rustix::mm::madvise(pointer(range.addr).cast(), range.len, advice) };
        }
        Ok(Self::of(range))
    }

    fn of(range: Reservation) -> Self {
        Self {
            range: Arc::new(range),
            marks: None,
        }
    }

    /// Has each write by the host mark its pages from now on ([`AnonMapping::is_marked`]).
    pub(crate) fn mark_writes(&mut self) {
        self.marks = Some(PageMarks::default());
    }

    /// True if the host may have written the page at `offset` since [`AnonMapping::clear_marks`]. What a guest writes
    /// is not marked.
    pub(crate) fn is_marked(&self, offset: u64) -> bool {
        self.marks.as_ref().is_none_or(|marks| marks.has(offset))
    }

    /// The marks of a block whose first page has this number.
    pub(crate) fn marks_from(&self, page: u64) -> IndexSet {
        match &self.marks {
            Some(marks) => marks.block(page),
            None => IndexSet::FULL,
        }
    }

    /// Takes all marks away.
    pub(crate) fn clear_marks(&mut self) {
        if let Some(marks) = &mut self.marks {
            marks.clear();
        }
    }

    /// Marks the page at `offset` as if the host had written it.
    pub(crate) fn mark(&mut self, offset: u64) {
        let _outside = self.at_mut(offset, 1);
    }

    /// Where the host is about to write.
    fn at_mut(&mut self, offset: u64, len: usize) -> Result<usize, HostFault> {
        let at = self.range.at(offset, len)?;
        if let Some(marks) = &mut self.marks {
            marks.add(offset, len);
        }
        Ok(at)
    }

    /// `len_bytes` of an image from `offset`; the host copies a page when it is first written.
    pub(crate) fn of_image(image: &Image, offset: u64, len_bytes: u64) -> Result<Self, Errno> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let fd = image.fd.as_fd();
        let range = Reservation::of_file(fd, offset, len_bytes, prot, MapFlags::PRIVATE)?;
        Ok(Self::of(range))
    }

    /// See [`Reservation::copy_pages`].
    pub(crate) fn copy_pages(&mut self, offset: u64, len: usize) {
        self.range.copy_pages(offset, len);
    }

    /// Ends all writing: the host mapping becomes read-only as a whole, so that it stays one mapping of
    /// huge pages. EBUSY when somebody has a share, who may write.
    pub(crate) fn freeze(mut self) -> Result<FrozenMapping, Errno> {
        Arc::get_mut(&mut self.range).ok_or(Errno::BUSY)?;
        self.range.make_read_only(0, self.range.len)?;
        Ok(FrozenMapping(self.range))
    }

    pub(crate) fn addr(&self) -> usize {
        self.range.addr
    }

    /// A share that keeps the range mapped.
    pub(crate) fn share(&self) -> Arc<Reservation> {
        Arc::clone(&self.range)
    }

    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), HostFault> {
        let from = self.range.at(offset, into.len())?;
        // SAFETY: the source range was checked; the destination is a private buffer outside it. The
        // guest may write the source meanwhile: the copy then holds a mixture, which is what a
        // system call on racing memory may see.
        unsafe { ptr::copy_nonoverlapping(pointer(from), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    pub(crate) fn write(&mut self, offset: u64, from: &[u8]) -> Result<(), HostFault> {
        self.at_mut(offset, from.len())?;
        self.write_unmarked(offset, from)
    }

    /// As [`AnonMapping::write`], but no page is marked.
    pub(crate) fn write_unmarked(&mut self, offset: u64, from: &[u8]) -> Result<(), HostFault> {
        let to = self.range.at(offset, from.len())?;
        // SAFETY: as in `read`, the other way.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), pointer(to), from.len()) };
        Ok(())
    }

    pub(crate) fn zero(&mut self, offset: u64, len: usize) -> Result<(), HostFault> {
        let to = self.at_mut(offset, len)?;
        // SAFETY: the range was checked and is memory of this mapping.
        unsafe { ptr::write_bytes(pointer(to), 0, len) };
        Ok(())
    }

    /// As [`AnonMapping::zero`], but only reads what is zero already: a page that was never touched
    /// gets no memory.
    pub(crate) fn wipe(&mut self, offset: u64, len: usize) -> Result<(), HostFault> {
        let at = self.at_mut(offset, len)?;
        if !is_zero(at, len) {
            // SAFETY: the range was checked and is memory of this mapping.
            unsafe { ptr::write_bytes(pointer(at), 0, len) };
        }
        Ok(())
    }

    /// Copies to another place of this or another anonymous mapping.
    pub(crate) fn copy_to(&self, offset: u64, to: HostRange) -> Result<(), HostFault> {
        let from = self.range.at(offset, to.len)?;
        // SAFETY: the source was checked here, the destination when the range was made; `copy` allows
        // them to overlap.
        unsafe { ptr::copy(pointer(from), pointer(to.addr), to.len) };
        Ok(())
    }

    /// As [`AnonMapping::range_mut`], but no page is marked: for a reset, at whose end no page is.
    #[inline]
    pub(crate) fn range_unmarked(
        &mut self,
        offset: u64,
        len: usize,
    ) -> Result<HostRange, HostFault> {
        Ok(HostRange {
            addr: self.range.at(offset, len)?,
            len,
        })
    }

    /// A checked range of this mapping as destination of a copy.
    pub(crate) fn range_mut(&mut self, offset: u64, len: usize) -> Result<HostRange, HostFault> {
        Ok(HostRange {
            addr: self.at_mut(offset, len)?,
            len,
        })
    }

    fn atomic_u64(&self, offset: u64) -> Result<&AtomicU64, HostFault> {
        let at = self.range.at(offset, 8)?;
        if !at.is_multiple_of(8) {
            return Err(HostFault::Outside);
        }
        // SAFETY: in range, aligned, alive as long as `self`; an atomic may be changed by others.
        Ok(unsafe { AtomicU64::from_ptr(pointer(at).cast()) })
    }

    fn atomic_u32(&self, offset: u64) -> Result<&AtomicU32, HostFault> {
        let at = self.range.at(offset, 4)?;
        if !at.is_multiple_of(4) {
            return Err(HostFault::Outside);
        }
        // SAFETY: in range, aligned, alive as long as `self`; an atomic may be changed by others.
        Ok(unsafe { AtomicU32::from_ptr(pointer(at).cast()) })
    }

    pub(crate) fn load_u64(&self, offset: u64) -> Result<u64, HostFault> {
        Ok(self.atomic_u64(offset)?.load(Ordering::Acquire))
    }

    pub(crate) fn store_u64(&mut self, offset: u64, value: u64) -> Result<(), HostFault> {
        self.at_mut(offset, 8)?;
        self.atomic_u64(offset)?.store(value, Ordering::Release);
        Ok(())
    }

    /// Takes `bits` out of those words of the page at `offset` that have one. Answers their indices. They lie in
    /// `stretches`, which are ranges of indices. For words that nobody else changes meanwhile.
    pub(crate) fn take_bits(
        &mut self,
        offset: u64,
        stretches: &[Range<usize>],
        bits: u64,
    ) -> Result<IndexSet, HostFault> {
        /// Looked at together: mostly none has the bit.
        const TOGETHER: usize = 8;
        let page = self.range.at(offset, PAGE_SIZE as usize)?;
        if !page.is_multiple_of(8) {
            return Err(HostFault::Outside);
        }
        let words: *const [AtomicU64; PAGE_SIZE as usize / 8] = pointer(page).cast();
        // SAFETY: the page was checked, is aligned, and alive as long as `self`; atomics may be changed by others.
        let words = unsafe { &*words };
        let mut found = IndexSet::EMPTY;
        for stretch in stretches {
            let of_stretch = words.get(stretch.clone()).ok_or(HostFault::Outside)?;
            let mut take = |some: &[AtomicU64], first: usize| {
                for (word, index) in some.iter().zip(first..) {
                    let now = word.load(Ordering::Relaxed);
                    if now & bits != 0 {
                        word.store(now & !bits, Ordering::Release);
                        found.add(index);
                    }
                }
            };
            let (groups, rest) = of_stretch.as_chunks::<TOGETHER>();
            let mut first = stretch.start;
            for group in groups {
                let mut all = 0;
                for word in group {
                    all |= word.load(Ordering::Relaxed);
                }
                if all & bits != 0 {
                    take(group, first);
                }
                first += TOGETHER;
            }
            take(rest, first);
        }
        Ok(found)
    }

    pub(crate) fn load_u32(&self, offset: u64) -> Result<u32, HostFault> {
        Ok(self.atomic_u32(offset)?.load(Ordering::SeqCst))
    }

    pub(crate) fn compare_exchange_u32(
        &mut self,
        offset: u64,
        current: u32,
        new: u32,
    ) -> Result<Result<u32, u32>, HostFault> {
        self.at_mut(offset, 4)?;
        let atomic = self.atomic_u32(offset)?;
        Ok(atomic.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst))
    }

    /// Gives the memory back to the host; it reads as zeros afterwards.
    pub(crate) fn release(&mut self, offset: u64, len: usize) -> Result<(), HostFault> {
        let at = self.at_mut(offset, len)?;
        // SAFETY: an owned range of private anonymous memory; the content is lost, as intended.
        unsafe { rustix::mm::madvise(pointer(at).cast(), len, Advice::LinuxDontNeed) }
            .map_err(|_| HostFault::Fault)
    }
}

/// Whether `len` bytes at a checked place of a mapping are all zero.
fn is_zero(at: usize, len: usize) -> bool {
    const ZEROS: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(ZEROS.len());
        let from = pointer(at + done).cast::<c_void>();
        // SAFETY: the caller checked the range; the other side is that long too.
        if unsafe { libc::memcmp(from, ZEROS.as_ptr().cast(), part) } != 0 {
            return false;
        }
        done += part;
    }
    true
}

/// Makes `len` bytes at `to` equal to those at `from`; both were checked by the caller and do not
/// overlap. Whether they differed; yes if that was not looked at.
fn restore(from: usize, to: usize, len: usize, how: Restore) -> bool {
    let (from, to) = (pointer(from), pointer(to));
    let differs = match how {
        Restore::Copy => true,
        // SAFETY: valid for `len` bytes, says the caller; no guest runs while its memory is restored.
        Restore::Compare => unsafe { libc::memcmp(from.cast(), to.cast(), len) != 0 },
    };
    if differs {
        // SAFETY: as above, and apart from each other.
        unsafe { ptr::copy_nonoverlapping(from, to, len) };
    }
    differs
}

/// How a page is made equal to its frozen one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Restore {
    /// It is compared first, and copied if it differs.
    Compare,
    /// It is known to have been written: it is copied.
    Copy,
}

/// Host memory that is never written again: any number of VMs read it.
#[derive(Clone, Debug)]
pub(crate) struct FrozenMapping(Arc<Reservation>);

impl FrozenMapping {
    pub(crate) fn addr(&self) -> usize {
        self.0.addr
    }

    /// A share that keeps the range mapped.
    pub(crate) fn share(&self) -> Arc<Reservation> {
        Arc::clone(&self.0)
    }

    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), HostFault> {
        let from = self.0.at(offset, into.len())?;
        // SAFETY: the source range was checked; the destination is a private buffer outside it.
        unsafe { ptr::copy_nonoverlapping(pointer(from), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    pub(crate) fn load_u32(&self, offset: u64) -> Result<u32, HostFault> {
        let mut word = [0; 4];
        self.read(offset, &mut word)?;
        Ok(u32::from_ne_bytes(word))
    }

    pub(crate) fn load_u64(&self, offset: u64) -> Result<u64, HostFault> {
        let mut word = [0; 8];
        self.read(offset, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    /// Copies to an anonymous mapping.
    pub(crate) fn copy_to(&self, offset: u64, to: HostRange) -> Result<(), HostFault> {
        let from = self.0.at(offset, to.len)?;
        // SAFETY: both ranges were checked; frozen memory is apart from what can be written.
        unsafe { ptr::copy_nonoverlapping(pointer(from), pointer(to.addr), to.len) };
        Ok(())
    }

    /// Makes a range of an anonymous mapping equal to this one; whether it differed.
    #[inline]
    pub(crate) fn restore(
        &self,
        offset: u64,
        to: HostRange,
        how: Restore,
    ) -> Result<bool, HostFault> {
        let from = self.0.at(offset, to.len)?;
        Ok(restore(from, to.addr, to.len, how))
    }
}

/// Bytes in a sealed memory file, which any number of private mappings can show.
#[derive(Debug)]
pub(crate) struct Image {
    fd: OwnedFd,
    map: FrozenMapping,
    _held: Held,
}

impl Image {
    /// Makes an image of `len_bytes` (a multiple of the page size, not 0), filled by `fill` at byte
    /// offsets.
    pub(crate) fn new<E>(
        len_bytes: u64,
        fill: impl FnOnce(&mut dyn FnMut(u64, &[u8])) -> Result<(), E>,
    ) -> Result<Self, E>
    where
        E: From<Errno>,
    {
        let held = Held::take(Resource::Descriptors, Claim::Vm, 1).map_err(|_| Errno::MFILE)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("kvmlet-tables", flags)?;
        #[expect(
            clippy::disallowed_methods,
            reason = "memory of our own, not a file of the host's"
        )]
        rustix::fs::ftruncate(&fd, len_bytes)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let range = Reservation::of_file(fd.as_fd(), 0, len_bytes, prot, MapFlags::SHARED)?;
        let mut map = AnonMapping::of(range);
        let mut outside = false;
        fill(&mut |offset, bytes| outside |= map.write(offset, bytes).is_err())?;
        drop(map);
        if outside {
            return Err(Errno::RANGE.into());
        }
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals)?;
        let range =
            Reservation::of_file(fd.as_fd(), 0, len_bytes, ProtFlags::READ, MapFlags::PRIVATE)?;
        let map = FrozenMapping(Arc::new(range));
        Ok(Self {
            fd,
            map,
            _held: held,
        })
    }

    pub(crate) fn load_u64(&self, offset: u64) -> Result<u64, HostFault> {
        self.map.load_u64(offset)
    }
}

/// A checked destination inside an [`AnonMapping`]; used at once, while the mapping is borrowed.
pub(crate) struct HostRange {
    addr: usize,
    len: usize,
}

impl HostRange {
    /// Makes the range hold `wanted`, as far as that goes; whether it held something else.
    pub(crate) fn restore(self, wanted: &[u8], how: Restore) -> bool {
        let len = self.len.min(wanted.len());
        restore(wanted.as_ptr().expose_provenance(), self.addr, len, how)
    }
}

/// Host address space in which file mappings are placed. Its pages may vanish at any time (somebody
/// truncates the file), so it is only accessed by system calls that answer EFAULT.
#[derive(Debug)]
pub(crate) struct FileArea(Arc<Reservation>);

impl FileArea {
    /// Reserves `len_bytes` that cannot be accessed. What is mapped there is counted as the sandbox's.
    pub(crate) fn new(len_bytes: u64, share: &Arc<Share>) -> Result<Self, Errno> {
        let mut range = Reservation::new(len_bytes, ProtFlags::empty())?;
        range.pieces = Some(Pieces::new(share).map_err(|_| Errno::NOMEM)?);
        Ok(Self(Arc::new(range)))
    }

    /// Counts the host mappings beyond the first that the range consists of. Those that come are counted
    /// before they are made, those that go when they are gone.
    pub(crate) fn count_pieces(&self, count: usize) -> Result<(), Exhausted> {
        match &self.0.pieces {
            Some(pieces) => pieces.resize(count),
            None => Ok(()),
        }
    }

    pub(crate) fn addr(&self) -> usize {
        self.0.addr
    }

    /// A share that keeps the range mapped.
    pub(crate) fn share(&self) -> Arc<Reservation> {
        Arc::clone(&self.0)
    }

    /// Places a file mapping over `len` bytes at `offset` of the area.
    pub(crate) fn place(
        &mut self,
        offset: u64,
        len: usize,
        fd: BorrowedFd<'_>,
        file_offset: u64,
        prot: ProtFlags,
        share: MapFlags,
    ) -> Result<(), Errno> {
        let at = self.0.at(offset, len).map_err(|_| Errno::INVAL)?;
        let flags = share | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: MAP_FIXED replaces pages inside a range owned by this value, which nobody
        // dereferences.
        unsafe { rustix::mm::mmap(pointer(at).cast(), len, prot, flags, fd, file_offset) }?;
        Ok(())
    }

    /// Ends all writing: makes the mapped ranges (start, length in bytes) read-only for the host. EBUSY
    /// when somebody has a share.
    pub(crate) fn freeze(
        mut self,
        ranges: impl Iterator<Item = (u64, u64)>,
    ) -> Result<FrozenFiles, Errno> {
        Arc::get_mut(&mut self.0).ok_or(Errno::BUSY)?;
        for (start, len_bytes) in ranges {
            let len = usize::try_from(len_bytes).map_err(|_| Errno::NOMEM)?;
            self.0.make_read_only(start, len)?;
        }
        Ok(FrozenFiles(Arc::new(self)))
    }

    /// Makes the range inaccessible again.
    pub(crate) fn clear(&mut self, offset: u64, len: usize) -> Result<(), Errno> {
        let at = self.0.at(offset, len).map_err(|_| Errno::INVAL)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: as in `place`.
        unsafe { rustix::mm::mmap_anonymous(pointer(at).cast(), len, ProtFlags::empty(), flags) }?;
        Ok(())
    }

    /// Drops private copies of file pages.
    pub(crate) fn discard(&mut self, offset: u64, len: usize) -> Result<(), Errno> {
        let at = self.0.at(offset, len).map_err(|_| Errno::INVAL)?;
        // SAFETY: an owned range that nobody dereferences.
        unsafe { rustix::mm::madvise(pointer(at).cast(), len, Advice::LinuxDontNeed) }
    }

    /// See [`Reservation::copy_pages`].
    pub(crate) fn copy_pages(&mut self, offset: u64, len: usize) {
        self.0.copy_pages(offset, len);
    }

    /// Makes a range of private mappings read-only and writable again. In between KVM forgets it.
    pub(crate) fn renew(&mut self, offset: u64, len: usize) -> Result<(), Errno> {
        self.0.make_read_only(offset, len)?;
        self.0.make_writable(offset, len)
    }

    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), HostFault> {
        let remote = self.0.at(offset, into.len())?;
        let local = into.as_mut_ptr();
        // SAFETY: the local side is a private buffer of that length, the remote side is only
        // touched by the kernel, which reports a bad page.
        unsafe { vm_transfer(libc::process_vm_readv, local, remote, into.len()) }
    }

    pub(crate) fn write(&mut self, offset: u64, from: &[u8]) -> Result<(), HostFault> {
        let remote = self.0.at(offset, from.len())?;
        let local = from.as_ptr().cast_mut();
        // SAFETY: the local side is only read; else as in `read`.
        unsafe { vm_transfer(libc::process_vm_writev, local, remote, from.len()) }
    }

    /// Copies from the file page straight into anonymous memory.
    pub(crate) fn copy_to(&self, offset: u64, to: HostRange) -> Result<(), HostFault> {
        let remote = self.0.at(offset, to.len)?;
        // SAFETY: the destination is anonymous memory, checked when the range was made.
        unsafe { vm_transfer(libc::process_vm_readv, pointer(to.addr), remote, to.len) }
    }
}

/// File mappings that are never written again nor unmapped before the last VM is gone. Its pages may
/// vanish as those of a [`FileArea`].
#[derive(Clone, Debug)]
pub(crate) struct FrozenFiles(Arc<FileArea>);

impl FrozenFiles {
    pub(crate) fn addr(&self) -> usize {
        self.0.addr()
    }

    /// A share that keeps the range mapped.
    pub(crate) fn share(&self) -> Arc<Reservation> {
        self.0.share()
    }

    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), HostFault> {
        self.0.read(offset, into)
    }

    /// Copies from the file page straight into anonymous memory.
    pub(crate) fn copy_to(&self, offset: u64, to: HostRange) -> Result<(), HostFault> {
        self.0.copy_to(offset, to)
    }
}

type VmTransfer = unsafe extern "C" fn(
    libc::pid_t,
    *const libc::iovec,
    libc::c_ulong,
    *const libc::iovec,
    libc::c_ulong,
    libc::c_ulong,
) -> libc::ssize_t;

/// One of process_vm_readv(2), process_vm_writev(2) on the own process.
///
/// # Safety
/// `local` must be valid for `len` bytes in the direction of the call.
unsafe fn vm_transfer(
    call: VmTransfer,
    local: *mut u8,
    remote: usize,
    len: usize,
) -> Result<(), HostFault> {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let mut done = 0;
    while done < len {
        let local_vec = libc::iovec {
            iov_base: local.wrapping_add(done).cast::<c_void>(),
            iov_len: len - done,
        };
        let remote_vec = libc::iovec {
            iov_base: pointer(remote + done).cast::<c_void>(),
            iov_len: len - done,
        };
        // SAFETY: the local range is vouched for by the caller; the kernel checks the remote one.
        let moved = unsafe { call(pid, &raw const local_vec, 1, &raw const remote_vec, 1, 0) };
        match usize::try_from(moved) {
            Ok(0) | Err(_) => return Err(HostFault::Fault),
            Ok(count) => done += count,
        }
    }
    Ok(())
}
