//! Queues that nobody will read any more, and what is still to be dropped of them.
//!
//! A socket may go with very many messages, which may have descriptions of others in turn. They are not dropped where
//! it goes, but in pieces before any thread runs again.

use imbl::Vector;

use super::queue::{self, Queue};
use super::rights;
use crate::cx::Cx;
use crate::fd;

/// Messages that are dropped at a stretch.
const PIECE_MESSAGES: usize = 128;

/// Queues to be dropped.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Dead {
    /// None of them is empty.
    queues: Vector<Queue>,
    /// References to descriptions in them.
    files: u64,
}

impl Dead {
    /// Adds all that is queued.
    pub(super) fn add(&mut self, queue: Queue) {
        if !queue.is_empty() {
            self.files = self.files.saturating_add(queue.files_count());
            self.queues.push_back(queue);
        }
    }

    /// References to descriptions in them.
    pub(super) fn files(&self) -> u64 {
        self.files
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }
}

/// Drops a piece of what has been left, or looks for lost descriptions if nothing has: says if there was something to
/// do.
pub fn drop_piece(cx: &mut Cx<'_>) -> bool {
    if cx.kernel.objects.sockets.dead.is_empty() {
        return rights::collect_if_due(cx);
    }
    cx.kernel.hold_wakes();
    for _ in 0..PIECE_MESSAGES {
        let dead = &mut cx.kernel.objects.sockets.dead;
        let Some(first) = dead.queues.front_mut() else {
            break;
        };
        let message = first.pop();
        if first.is_empty() {
            dead.queues.pop_front();
        }
        let Some(message) = message else { continue };
        let files = queue::received(cx.kernel, &mut cx.machine.memory, message);
        let dead = &mut cx.kernel.objects.sockets.dead;
        dead.files = dead.files.saturating_sub(files.len() as u64);
        // A socket that goes with it leaves its own messages here.
        for file in files {
            fd::unref(cx, file);
        }
    }
    cx.kernel.release_wakes();
    true
}
