//! /proc/PID/smaps and smaps_rollup (proc_pid_smaps(5)), and the memory that a process has.
//!
//! Linux differs: a page that several processes map counts in full for each. A written page of a private file mapping
//! is one of the file's. Of very much memory in small pages, the last part does not count.

use std::fmt::Write;

use kvmlet_abi::{Gva, PAGE_SIZE};
use kvmlet_mem::{GuestMemory, PageTables};

use super::Mm;
use super::text::{PART_BYTES, put_line};
use super::vma::{Backing, Prot, Vma, VmaFlags};
use crate::fd::Text;

/// Entries of page tables that are looked at for one answer: 8 GiB in small pages, some 20 ms of work.
const ENTRIES_MAX: u64 = 2 << 20;

/// An address space with its page tables.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its mappings.
    pub mm: &'a Mm,
    /// Its page tables.
    pub tables: &'a PageTables,
    /// The memory that those lie in.
    pub memory: &'a GuestMemory,
}

/// Memory that an address space has, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Resident {
    /// Of the process alone.
    pub anon: u64,
    /// Of files of the host.
    pub file: u64,
    /// Of files in memory, shared anonymous memory among them.
    pub shmem: u64,
    /// Pages of the VMM, which do not count for a process.
    special: u64,
    /// Part of `file` and `shmem` that others see changes of.
    shared: u64,
    locked: u64,
}

impl Resident {
    /// All of it, as a process is charged for it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.anon.saturating_add(self.of_files())
    }

    /// The part that is files'.
    #[must_use]
    pub fn of_files(&self) -> u64 {
        self.file.saturating_add(self.shmem)
    }

    fn add(&mut self, other: Self) {
        let sum = |to: &mut u64, more: u64| *to = to.saturating_add(more);
        sum(&mut self.anon, other.anon);
        sum(&mut self.file, other.file);
        sum(&mut self.shmem, other.shmem);
        sum(&mut self.special, other.special);
        sum(&mut self.shared, other.shared);
        sum(&mut self.locked, other.locked);
    }

    /// The lines that mappings and their sum have in common.
    fn put(&self, out: &mut String, is_rollup: bool) {
        let kib = |bytes: u64| bytes / 1024;
        let all = self.total().saturating_add(self.special);
        let clean = self.of_files().saturating_sub(self.shared);
        let mut line = |name: &str, bytes: u64| {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name:<15} {:>8} kB", kib(bytes));
        };
        line("Rss:", all);
        line("Pss:", all);
        line("Pss_Dirty:", self.anon.saturating_add(self.shared));
        if is_rollup {
            line("Pss_Anon:", self.anon);
            line("Pss_File:", self.file);
            line("Pss_Shmem:", self.shmem);
        }
        line("Shared_Clean:", self.special);
        line("Shared_Dirty:", self.shared);
        line("Private_Clean:", clean);
        line("Private_Dirty:", self.anon);
        line("Referenced:", all);
        line("Anonymous:", self.anon);
        for name in [
            "KSM:",
            "LazyFree:",
            "AnonHugePages:",
            "ShmemPmdMapped:",
            "FilePmdMapped:",
        ] {
            line(name, 0);
        }
        line("Shared_Hugetlb:", 0);
        let _ = writeln!(out, "Private_Hugetlb: {:>7} kB", 0);
        let mut line = |name: &str, bytes: u64| {
            let _ = writeln!(out, "{name:<15} {:>8} kB", kib(bytes));
        };
        line("Swap:", 0);
        line("SwapPss:", 0);
        line("Locked:", self.locked);
    }
}

impl View<'_> {
    fn resident_of(&self, vma: &Vma, entries_left: &mut u64) -> Resident {
        let range = (Gva(vma.start), vma.len_bytes());
        let bytes = self.tables.present_bytes(self.memory, range, entries_left);
        let mut found = Resident::default();
        match vma.backing {
            Backing::Anon => found.anon = bytes,
            Backing::File(_) => found.file = bytes,
            Backing::Tmp(_) => found.shmem = bytes,
            Backing::Special(_) => found.special = bytes,
        }
        if vma.is_shared() {
            found.shared = bytes;
        }
        if vma.flags.contains(VmaFlags::LOCKED) {
            found.locked = bytes;
        }
        found
    }

    /// The memory of all its mappings.
    #[must_use]
    pub fn resident(&self) -> Resident {
        let mut sum = Resident::default();
        let mut entries_left = ENTRIES_MAX;
        for vma in self.mm.vmas.values() {
            sum.add(self.resident_of(vma, &mut entries_left));
        }
        sum
    }

    /// The part of smaps that has `offset`. `from` is an address, and the offset in the text of the first mapping
    /// that lies there or above.
    #[must_use]
    pub fn smaps_text(&self, from: (u64, u64), offset: u64) -> Text {
        let (addr, mut at) = from;
        let mut bytes = Vec::new();
        let mut next = None;
        let mut entries_left = ENTRIES_MAX;
        for (_, vma) in self.mm.vmas.range(addr..) {
            if bytes.len() >= PART_BYTES {
                next = Some(vma.start);
                break;
            }
            let start = bytes.len();
            put_line(&mut bytes, self.mm, vma);
            bytes.extend_from_slice(self.details(vma, &mut entries_left).as_bytes());
            if start == 0 && at.saturating_add(bytes.len() as u64) <= offset {
                at = at.saturating_add(bytes.len() as u64);
                bytes.clear();
            }
        }
        Text {
            bytes: bytes.into(),
            at,
            next,
        }
    }

    fn details(&self, vma: &Vma, entries_left: &mut u64) -> String {
        let mut out = String::new();
        let page_kib = PAGE_SIZE / 1024;
        // Writing to a String cannot fail.
        let _ = writeln!(out, "Size:           {:>8} kB", vma.len_bytes() / 1024);
        let _ = writeln!(out, "KernelPageSize: {page_kib:>8} kB");
        let _ = writeln!(out, "MMUPageSize:    {page_kib:>8} kB");
        self.resident_of(vma, entries_left).put(&mut out, false);
        let _ = writeln!(out, "THPeligible:    {:>8}", 0);
        let _ = writeln!(out, "VmFlags: {}", letters(vma));
        out
    }

    /// The text of smaps_rollup: empty without mappings.
    #[must_use]
    pub fn rollup_text(&self) -> String {
        let first = self.mm.vmas.values().next();
        let last = self.mm.vmas.values().next_back();
        let (Some(first), Some(last)) = (first, last) else {
            return String::new();
        };
        let mut out = format!(
            "{:08x}-{:08x} ---p 00000000 00:00 0 ",
            first.start, last.end
        );
        let _ = writeln!(
            out,
            "{:>width$}[rollup]",
            "",
            width = 73usize.saturating_sub(out.len())
        );
        self.resident().put(&mut out, true);
        out
    }
}

/// The flags of a mapping, two letters each.
fn letters(vma: &Vma) -> String {
    let prot = |prot: Prot, letters| vma.prot.contains(prot).then_some(letters);
    let flag = |flag: VmaFlags, letters| vma.flags.contains(flag).then_some(letters);
    let known = [
        prot(Prot::READ, "rd"),
        prot(Prot::WRITE, "wr"),
        prot(Prot::EXEC, "ex"),
        flag(VmaFlags::SHARED, "sh"),
        Some("mr"),
        flag(VmaFlags::MAYWRITE, "mw"),
        Some("me"),
        flag(VmaFlags::SHARED, "ms"),
        flag(VmaFlags::GROWSDOWN, "gd"),
        flag(VmaFlags::LOCKED, "lo"),
        flag(VmaFlags::SEQUENTIAL, "sr"),
        flag(VmaFlags::RANDOM, "rr"),
        flag(VmaFlags::DONTFORK, "dc"),
        flag(VmaFlags::NORESERVE, "nr"),
        flag(VmaFlags::WIPEONFORK, "wf"),
        flag(VmaFlags::DONTDUMP, "dd"),
        flag(VmaFlags::HUGEPAGE, "hg"),
        flag(VmaFlags::NOHUGEPAGE, "nh"),
        flag(VmaFlags::MERGEABLE, "mg"),
        flag(VmaFlags::SEALED, "sl"),
    ];
    known.iter().flatten().fold(String::new(), |mut text, two| {
        text.push_str(two);
        text.push(' ');
        text
    })
}
