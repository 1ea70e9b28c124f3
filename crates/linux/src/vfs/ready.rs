//! Readiness (poll(2)).

use imbl::Vector;
pub use kvmlet_abi::linux::poll::{
    POLLERR, POLLHUP, POLLIN, POLLMSG, POLLNVAL, POLLOUT, POLLPRI, POLLRDBAND, POLLRDHUP,
    POLLRDNORM, POLLWRBAND, POLLWRNORM,
};

use super::epoll::{self, Asked};
use super::file;
use crate::clock;
use crate::cx::Cx;
use crate::fd::{FileKind, OpenFile, OpenFlags};
use crate::outcome::Source;

/// Reported whether asked for or not.
const ALWAYS: i16 = POLLERR | POLLHUP;

/// The events of `events` (and POLLERR, POLLHUP) that hold now for an open description.
#[must_use]
pub fn poll_ready(cx: &Cx<'_>, file: &OpenFile, events: i16) -> i16 {
    poll_ready_among(cx, file, events, &mut Asked::default())
}

/// As [`poll_ready`], in a call that looks at several descriptors.
#[must_use]
pub fn poll_ready_among(cx: &Cx<'_>, file: &OpenFile, events: i16, asked: &mut Asked) -> i16 {
    if file.flags.contains(OpenFlags::PATH) {
        return POLLNVAL;
    }
    file::poll(cx, file, events, asked) & (events | ALWAYS)
}

/// Brings what a description's readiness depends on up to date: timers that are due, inherited streams
/// that an epoll instance watches. [`poll_ready`] then only looks.
pub fn refresh(cx: &mut Cx<'_>, file: &OpenFile) {
    refresh_among(cx, file, &mut Asked::default());
}

/// As [`refresh`], in a call that looks at several descriptors. All are brought up to date before one is
/// looked at, or an event that one brings up would be missed at another.
pub fn refresh_among(cx: &mut Cx<'_>, file: &OpenFile, asked: &mut Asked) {
    if !matches!(file.kind, FileKind::Timer(_) | FileKind::Epoll(_)) {
        return;
    }
    if cx.kernel.objects.timers.next_ns().is_some() {
        let now_ns = clock::monotonic_ns(cx.host);
        cx.kernel.fire_timerfds(now_ns);
    }
    if let FileKind::Epoll(id) = file.kind {
        epoll::refresh(cx, id, asked);
    }
}

/// Adds what to wait for until `events` may hold; nothing if they always hold or never will.
pub fn add_sources(
    cx: &Cx<'_>,
    file: &OpenFile,
    events: i16,
    sources: &mut Vector<Source>,
    asked: &mut Asked,
) {
    if let FileKind::Epoll(id) = file.kind {
        epoll::wait_sources(cx, id, sources, asked);
    } else {
        sources.extend(file::wait_source(cx, file, events));
    }
}
