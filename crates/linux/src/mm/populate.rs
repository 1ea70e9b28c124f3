//! Pages that get their entries before they are touched, so that touching them leaves the VM no more.
//!
//! An entry that becomes present needs no flush and costs next to nothing. A fault that leaves the VM costs
//! 25 to 45 us on software KVM. But memory of ours counts against the limit, and on software KVM every
//! entry costs up to 3 us when it is unmapped. So files are mapped as far as they may well be used, and
//! anonymous memory in steps that grow with what is in use already. Nothing of this is done in a frozen address
//! space of a fork. What a request maps there is unmapped again by the reset, and tables that it edits are private
//! to it.

use kvmlet_abi::{Gva, PAGE_SIZE};
use kvmlet_mem::FileWindow;

use super::fault::around;
use super::space::Space;
use super::vma::{Backing, FileBacking, Prot, Vma, VmaFlags};

/// Most that is mapped of a file when the program maps it. Its entries take at most five tables.
const FILE_BYTES: u64 = 8 << 20;
/// The data of a program or a library up to this size has its pages copied at once: relocation and
/// start-up write most of them. Their text is not copied. KVM on software would fault eight of its pages in
/// at a time instead of one. But to allocate and copy them costs as much as that spares.
const COPIED_BYTES: u64 = 2 << 20;
/// VMAs between the text and the data of a program at most, and one: linkers put read-only data there.
const TEXT_WITHIN: usize = 4;
/// Anonymous mappings up to this size are mapped as a whole: the zeroed data of a library, thread-local
/// memory, small buffers.
const SMALL_PAGES: u64 = 16;
/// The least that a growing heap is mapped ahead. malloc(3) extends it by 132 KiB at a time.
const HEAP_PAGES: u64 = 33;
/// The most that one step of growing memory maps.
const STEP_PAGES_MAX: u64 = 512;

impl Space<'_> {
    /// Maps ahead what a new mapping may well use.
    pub(super) fn map_ahead(&mut self, vma: &Vma) {
        if self.tables.is_frozen() || vma.prot.is_empty() {
            return;
        }
        match vma.backing {
            Backing::File(file) => self.map_file_ahead(vma, file),
            Backing::Anon if vma.len_bytes() <= SMALL_PAGES * PAGE_SIZE => {
                self.map_anon_ahead(vma, vma.start, vma.end);
            }
            Backing::Special(_) => {
                let _ = self.populate(vma.start, vma.end);
            }
            Backing::Anon | Backing::Tmp(_) => {}
        }
    }

    fn map_file_ahead(&mut self, vma: &Vma, file: FileBacking) {
        let in_file = self.file_pages_end(file.host).saturating_sub(file.offset);
        let len_bytes = vma.len_bytes().min(in_file).min(FILE_BYTES);
        if len_bytes == 0 || self.is_reserved(vma, file, in_file) {
            return;
        }
        if let Some(gpa) = file.window
            && len_bytes <= COPIED_BYTES
            && vma.is_data()
            && self.is_program(vma, file)
        {
            self.mem.copy_file_pages(FileWindow { gpa, len_bytes });
        }
        let _ = self.map_file_pages(vma, file, vma.start, vma.start.saturating_add(len_bytes));
        self.map_head_ahead(vma, file);
    }

    /// Maps ahead what is left of a mapping of all of a library before its text: the loader leaves it as it is.
    fn map_head_ahead(&mut self, text: &Vma, file: FileBacking) {
        let before = self.mm.prev_start(text.start).cloned();
        let Some(head) = before.filter(|head| head.end == text.start) else {
            return;
        };
        if let Backing::File(whole) = head.backing
            && text.prot.contains(Prot::EXEC)
            && head.prot == Prot::READ
            && (whole.host, whole.offset) == (file.host, 0)
            && head.len_bytes() <= self.file_pages_end(file.host).min(FILE_BYTES)
        {
            let _ = self.map_file_pages(&head, whole, head.start, head.end);
        }
    }

    /// True if a loader will map the parts of a library over this mapping of all of it. Entries that go again would
    /// have to be flushed, as the window stays.
    fn is_reserved(&self, vma: &Vma, file: FileBacking, in_file: u64) -> bool {
        vma.prot == Prot::READ
            && file.offset == 0
            && vma.len_bytes() >= in_file / 2
            && file.window.is_some_and(|gpa| self.mem.is_kept_text(gpa))
    }

    /// True if the program executes what the file holds: then its text lies below. Other files may be
    /// watched for what somebody else writes to them, which a copy would not show.
    fn is_program(&self, vma: &Vma, file: FileBacking) -> bool {
        let below = self.mm.vmas.range(..vma.start).rev();
        below.take(TEXT_WITHIN).any(|(_, other)| {
            let same = matches!(other.backing, Backing::File(text) if text.host == file.host);
            same && other.prot.contains(Prot::EXEC)
        })
    }

    /// Maps ahead in anonymous memory, as far as there is plenty. What cannot be had now is asked for
    /// again when it is touched.
    fn map_anon_ahead(&mut self, vma: &Vma, start: u64, end: u64) {
        if vma.prot.contains(Prot::WRITE) && self.has_plenty() {
            let _ = self.fill(vma, start, end);
        }
    }

    /// Maps ahead in a heap that has grown by `old..new`: a step at least, and as much again as is in
    /// use below.
    pub(super) fn map_heap_ahead(&mut self, old: u64, new: u64) {
        if self.tables.is_frozen() {
            return;
        }
        let Some(vma) = self.mm.find(old).cloned() else {
            return;
        };
        let used = self.used_below(&vma, Gva(old));
        // The memory below may be there for nothing: then the heap is not in use.
        if used == 0 && old > vma.start {
            return;
        }
        let end = old
            .saturating_add(used.max(HEAP_PAGES) * PAGE_SIZE)
            .min(new);
        self.map_anon_ahead(&vma, old, end);
    }

    /// Pages in use directly below `page` in its VMA, as far as a step may be long.
    fn used_below(&self, vma: &Vma, page: Gva) -> u64 {
        let most = (page.0.saturating_sub(vma.start) / PAGE_SIZE).min(STEP_PAGES_MAX);
        self.tables.present_run_below(self.mem, page, most)
    }

    /// True if memory may be given that was not asked for.
    pub(super) fn has_plenty(&self) -> bool {
        let free = self.mem.limit_bytes().saturating_sub(self.mem.used_bytes());
        free > self.mem.limit_bytes() / 8
    }

    /// The range that a fault at `page` of anonymous memory maps: the aligned block around it, of `pages` base
    /// pages. In a stack it is what lies below the page. If memory is used in sequence, it is as much again as
    /// is in use.
    pub(super) fn anon_step(&self, vma: &Vma, page: Gva, pages: u64) -> (u64, u64) {
        let (start, end) = around(vma, page, pages);
        if self.tables.is_frozen() {
            return (start, end);
        }
        let len = pages * PAGE_SIZE;
        if vma.flags.contains(VmaFlags::GROWSDOWN) {
            let below = (page.0 + PAGE_SIZE).saturating_sub(len);
            return (below.max(vma.start), page.0 + PAGE_SIZE);
        }
        let used = self.used_below(vma, page);
        let step = page.0.saturating_add(used * PAGE_SIZE).min(vma.end);
        (start, end.max(step))
    }
}
