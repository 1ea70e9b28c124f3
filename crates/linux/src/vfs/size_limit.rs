//! RLIMIT_FSIZE: how far a program may write regular files.

use kvmlet_abi::Errno;
use kvmlet_hostfs::stream;

use super::file::{self, Positions};
use crate::cx::Cx;
use crate::fd::{FileKind, OpenFile, OpenFlags};
use crate::rlimit::{self, INFINITY, Resource};
use crate::signal::{send_to_self, signo};

fn refuse<T>(cx: &mut Cx<'_>) -> Result<T, Errno> {
    send_to_self(cx, signo::SIGXFSZ);
    Err(Errno::EFBIG)
}

/// Bytes of the `len_bytes` that a call still has to write which may be written to a file at `at`
/// (generic_write_check_limits in fs/read_write.c). Streams that are no regular files have no limit; the
/// others' own position is the host's.
///
/// # Errors
/// `EFBIG`, with SIGXFSZ, if not a single byte may be and the call has `done` none before; the host's.
pub fn writable_bytes(
    cx: &mut Cx<'_>,
    file: &OpenFile,
    at: WriteAt,
    (done, len_bytes): (u64, u64),
) -> Result<u64, Errno> {
    let limit = rlimit::soft(cx, Resource::Fsize)?;
    if limit == INFINITY {
        return Ok(len_bytes);
    }
    let Some(size) = file::limited_size(cx, &file.kind)? else {
        return Ok(len_bytes);
    };
    let offset = match (file::positions(cx, file), at) {
        (Positions::Host(_), _) if file.flags.contains(OpenFlags::APPEND) => size,
        (_, WriteAt::Offset(offset)) => offset,
        (Positions::Host(host), WriteAt::OwnPosition) => {
            stream::seek(cx.host.get(host)?, stream::SeekTo::Current(0))?
        }
        (_, WriteAt::OwnPosition) => file.offset,
    };
    match limit.saturating_sub(offset) {
        0 if done == 0 => refuse(cx),
        room => Ok(len_bytes.min(room)),
    }
}

/// The place that a write goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteAt {
    /// At the description's position.
    OwnPosition,
    /// At this offset.
    Offset(u64),
}

/// Checks that a file may be given this size (inode_newsize_ok in fs/attr.c).
///
/// # Errors
/// `EFBIG`, with SIGXFSZ, if it would grow beyond the limit; what tells its size gives.
pub fn check_size(cx: &mut Cx<'_>, kind: &FileKind, size: u64) -> Result<(), Errno> {
    if size <= rlimit::soft(cx, Resource::Fsize)? {
        return Ok(());
    }
    match file::limited_size(cx, kind)? {
        Some(present) if size > present => refuse(cx),
        _ => Ok(()),
    }
}
