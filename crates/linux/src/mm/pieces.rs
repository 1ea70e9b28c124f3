//! Ranges in pieces: what a call does to a large part of the address space, with looks at the limits in
//! between.

use core::ops::Bound;

use kvmlet_abi::addr::page_align_up;
use kvmlet_abi::layout::USER_END;
use kvmlet_abi::{Errno, Gva, HUGE_PAGE_SIZE};

use super::MAX_MAP_COUNT;
use super::space::Space;
use crate::cx::Cx;

/// Longest piece whose page tables are walked, in bytes.
const WALK_BYTES: u64 = 1 << 30;
/// Most areas of one piece.
const AREAS: usize = 512;

/// True if what is done to the range may be done to one part after another, with the same end.
///
/// # Errors
/// `ESRCH` if the calling thread is gone.
pub fn can_be_parted(cx: &mut Cx<'_>, addr: u64, len_bytes: u64) -> Result<bool, Errno> {
    let space = Space::of(cx)?;
    let end = page_align_up(len_bytes).and_then(|len| addr.checked_add(len));
    if len_bytes <= HUGE_PAGE_SIZE {
        return Ok(false);
    }
    let within = end.filter(|end| *end > addr && *end <= USER_END.0);
    let Some(end) = within.filter(|_| Gva(addr).is_page_aligned()) else {
        return Ok(false);
    };
    // A cut makes two areas of one for a moment, and what is sealed keeps all of the range as it is.
    let has_room = space.mm.vmas.len().saturating_add(2) <= MAX_MAP_COUNT;
    Ok(has_room && !space.mm.any_sealed(addr, end))
}

/// The end of a piece of the page-aligned range from `at` that takes some milliseconds at most. No 2 MiB
/// page is cut by it.
///
/// # Errors
/// `ESRCH` if the calling thread is gone.
pub fn piece_end(cx: &mut Cx<'_>, at: u64, end: u64) -> Result<u64, Errno> {
    if end.saturating_sub(at) <= HUGE_PAGE_SIZE {
        return Ok(end);
    }
    let space = Space::of(cx)?;
    let first = space.tables.skip_untabled(space.mem, Gva(at), end);
    let walked = first.saturating_add(WALK_BYTES) & !(HUGE_PAGE_SIZE - 1);
    let walked = walked.min(end);
    let after = (Bound::Excluded(at), Bound::Excluded(walked));
    let more = space.mm.vmas.range(after).nth(AREAS);
    Ok(more.map_or(walked, |(start, _)| *start))
}

/// True if all of the range is mapped.
///
/// # Errors
/// `ESRCH` if the calling thread is gone.
pub fn covers(cx: &mut Cx<'_>, addr: u64, end: u64) -> Result<bool, Errno> {
    Ok(Space::of(cx)?.mm.covers(addr, end))
}
