//! /proc/self/maps.

use std::io::Write;

use kvmlet_abi::PAGE_SIZE;

use super::Mm;
use super::vma::{Backing, Prot, Vma};
use crate::vfs::attr::{major, minor};
use crate::vfs::tmpfs::TMP_DEV;

/// Column at which the path starts (show_map_vma in fs/proc/task_mmu.c: 25 + 8 * 6 - 1, then a
/// space).
const NAME_COLUMN: usize = 73;

/// The text of /proc/self/maps (proc_pid_maps(5)).
#[must_use]
pub fn maps_text(mm: &Mm) -> Vec<u8> {
    let mut text = Vec::new();
    for vma in mm.vmas.values() {
        line(&mut text, mm, vma);
    }
    text
}

fn line(text: &mut Vec<u8>, mm: &Mm, vma: &Vma) {
    let (dev, ino, offset) = match vma.backing {
        Backing::File(file) => (file.dev, file.ino, file.offset),
        Backing::Tmp(tmp) => (TMP_DEV, tmp.inode.0, tmp.offset),
        Backing::Anon | Backing::Special(_) => (0, 0, 0),
    };
    let right = |prot: Prot, letter: char| if vma.prot.contains(prot) { letter } else { '-' };
    let begin = text.len();
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
    if let Some(name) = label(mm, vma) {
        while text.len() - begin < NAME_COLUMN {
            text.push(b' ');
        }
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
