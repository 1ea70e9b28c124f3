//! Files whose pages say which they are.

use std::fs::File;
use std::os::unix::fs::FileExt;

use kvmlet_abi::{Gpa, PAGE_SIZE};
use kvmlet_mem::GuestMemory;

/// A file of so many pages, each of which begins with its number.
pub fn file_of(pages: u64) -> File {
    let fd = rustix::fs::memfd_create("contents", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    for page in 0..pages {
        let text = format!("page {page}");
        file.write_at(text.as_bytes(), page * PAGE_SIZE).unwrap();
    }
    file.set_len(pages * PAGE_SIZE).unwrap();
    file
}

/// The words that a page begins with.
pub fn text(mem: &GuestMemory, gpa: Gpa) -> String {
    let mut bytes = [0; 8];
    mem.read(gpa, &mut bytes).unwrap();
    String::from_utf8_lossy(&bytes)
        .trim_end_matches('\0')
        .to_owned()
}
