//! Names in a directory of the host.

use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvmlet_abi::Errno;
use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom};

use crate::attr::d_type;
use crate::error::errno;

/// Names of one directory listed at most.
const LISTING_MAX: usize = 1 << 20;
/// Memory for the names of one part of a directory, in bytes: some ten thousand of them.
const LISTING_PART_BYTES: usize = 1 << 20;

/// A part of one directory's names, in an order that stays: all of them, unless there are very many.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listing {
    /// Names that come before it.
    first: usize,
    /// (inode number, d_type, end of the name), without `.` and `..`.
    entries: Vec<(u64, u8, usize)>,
    /// All names, one after the other.
    names: Vec<u8>,
    /// The place where the host's directory goes on (d_off), if it does.
    next: Option<u64>,
}

impl Listing {
    /// Memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let entries = self
            .entries
            .capacity()
            .saturating_mul(size_of::<(u64, u8, usize)>());
        self.names.capacity().saturating_add(entries)
    }

    /// The entries from that number on, counted from the start of the directory: inode number, d_type
    /// and name.
    pub fn from(&self, number: usize) -> impl Iterator<Item = (u64, u8, &[u8])> {
        let skip = number.saturating_sub(self.first);
        let before = skip.checked_sub(1).and_then(|last| self.entries.get(last));
        let mut start = before.map_or(0, |(_, _, end)| *end);
        self.entries.iter().skip(skip).map(move |(ino, kind, end)| {
            let name = self.names.get(start..*end).unwrap_or_default();
            start = *end;
            (*ino, *kind, name)
        })
    }

    /// The part that has entry `number`, or is the last: this one, or one after it.
    ///
    /// # Errors
    /// The host's.
    pub fn reach(self: &Arc<Self>, fd: BorrowedFd<'_>, number: usize) -> Result<Arc<Self>, Errno> {
        let mut part = Arc::clone(self);
        while let Some(next) = part.next {
            let end = part.first.saturating_add(part.entries.len());
            if number < end {
                break;
            }
            part = Arc::new(list_part(fd, end, next)?);
        }
        Ok(part)
    }

    /// True if entry `number` is in it or after it.
    #[must_use]
    pub fn starts_by(&self, number: usize) -> bool {
        self.first <= number
    }
}

/// Lists a directory.
///
/// # Errors
/// The host's.
pub fn list(fd: BorrowedFd<'_>) -> Result<Listing, Errno> {
    list_part(fd, 0, 0)
}

/// The part that begins with entry `first`, at the host's offset `at`.
fn list_part(fd: BorrowedFd<'_>, first: usize, at: u64) -> Result<Listing, Errno> {
    // A descriptor of our own, so that its position is ours alone.
    let own = rustix::fs::openat(
        fd,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(errno)?;
    let mut buf = vec![MaybeUninit::<u8>::uninit(); 32 << 10];
    if at != 0 {
        rustix::fs::seek(&own, SeekFrom::Start(at)).map_err(errno)?;
    }
    let mut dir = RawDir::new(own, &mut buf);
    let mut listing = Listing {
        first,
        ..Listing::default()
    };
    while let Some(entry) = dir.next() {
        let entry = entry.map_err(errno)?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if first.saturating_add(listing.entries.len()) >= LISTING_MAX {
            break;
        }
        listing.names.extend_from_slice(name);
        let kind = type_number(entry.file_type());
        let end = listing.names.len();
        listing.entries.push((entry.ino(), kind, end));
        if listing.size_bytes() >= LISTING_PART_BYTES {
            listing.next = Some(entry.next_entry_cookie());
            break;
        }
    }
    Ok(listing)
}

fn type_number(kind: FileType) -> u8 {
    match kind {
        FileType::Unknown => 0,
        known => d_type(known.as_raw_mode()),
    }
}
