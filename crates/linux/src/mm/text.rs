//! /proc/self/maps.

use std::io::Write;

use kvmlet_abi::PAGE_SIZE;
use kvmlet_hostfs::attr::{major, minor};

use super::Mm;
use super::vma::{Backing, Prot, Vma};
use crate::fd::Text;
use crate::vfs::tmpfs::TMP_DEV;

/// Column at which the path starts (show_map_vma in fs/proc/task_mmu.c: 25 + 8 * 6 - 1, then a
/// space).
const NAME_COLUMN: usize = 73;

/// A part of the text has at least so many bytes, unless it is the last.
pub(super) const PART_BYTES: usize = 16 << 10;

/// The part of /proc/self/maps (proc_pid_maps(5)) that has `offset`. `from` is an address, and the offset
/// in the text of the first mapping that lies there or above.
#[must_use]
pub fn maps_text(mm: &Mm, from: (u64, u64), offset: u64) -> Text {
    let (addr, mut at) = from;
    let mut bytes = Vec::new();
    let mut next = None;
    let mut start = Vec::new();
    for (_, vma) in mm.vmas.range(addr..) {
        if bytes.len() >= PART_BYTES {
            next = Some(vma.start);
            break;
        }
        start.clear();
        line_start(&mut start, vma);
        let label = label(mm, vma);
        if bytes.is_empty() {
            // What lies before is not made.
            let end = at.saturating_add(line_len(&start, label));
            if end <= offset {
                at = end;
                continue;
            }
        }
        bytes.extend_from_slice(&start);
        put_label(&mut bytes, start.len(), label);
    }
    Text {
        bytes: bytes.into(),
        at,
        next,
    }
}

/// The line of a mapping.
pub(super) fn put_line(text: &mut Vec<u8>, mm: &Mm, vma: &Vma) {
    let from = text.len();
    line_start(text, vma);
    let len = text.len().saturating_sub(from);
    put_label(text, len, label(mm, vma));
}

/// The length of what [`line_start`] and [`put_label`] make, in bytes.
fn line_len(start: &[u8], label: Option<&[u8]>) -> u64 {
    let len = label.map_or(start.len(), |name| {
        let newlines = name.iter().filter(|byte| **byte == b'\n').count();
        let shown = name.len().saturating_add(newlines.saturating_mul(3));
        start.len().max(NAME_COLUMN).saturating_add(shown)
    });
    len.saturating_add(1) as u64
}

fn line_start(text: &mut Vec<u8>, vma: &Vma) {
    let (dev, ino, offset) = match vma.backing {
        Backing::File(file) => (file.dev, file.ino, file.offset),
        Backing::Tmp(tmp) => (TMP_DEV, tmp.inode.0, tmp.offset),
        Backing::Anon | Backing::Special(_) => (0, 0, 0),
    };
    let right = |prot: Prot, letter: char| if vma.prot.contains(prot) { letter } else { '-' };
    // Writing to a Vec cannot fail.
    let _ = write!(
        text,
        "{:08x}-{:08x} {}{}{}{} {:08x} {:02x}:{:02x} {} ",
        vma.start,
        vma.end,
        right(Prot::READ, 'r'),
        right(Prot::WRITE, 'w'),
        right(Prot::EXEC, 'x'),
        if vma.is_shared() { 's' } else { 'p' },
        offset,
        major(dev),
        minor(dev),
        ino,
    );
}

/// The path of a line whose start has `len` bytes, and its end.
fn put_label(text: &mut Vec<u8>, len: usize, label: Option<&[u8]>) {
    if let Some(name) = label {
        text.extend(std::iter::repeat_n(b' ', NAME_COLUMN.saturating_sub(len)));
        // A newline in a path is shown as its octal escape (mangle_path).
        for &byte in name {
            match byte {
                b'\n' => text.extend_from_slice(b"\\012"),
                _ => text.push(byte),
            }
        }
    }
    text.push(b'\n');
}

fn label<'a>(mm: &'a Mm, vma: &'a Vma) -> Option<&'a [u8]> {
    if let Some(name) = &vma.name {
        return Some(name);
    }
    if vma.start < mm.brk.end.next_multiple_of(PAGE_SIZE) && vma.end > mm.brk.start {
        return Some(b"[heap]");
    }
    (vma.start <= mm.stack_addr && mm.stack_addr < vma.end).then_some(b"[stack]")
}
