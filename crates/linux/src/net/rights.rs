//! Descriptions in messages (SCM_RIGHTS in unix(7)).
//!
//! A description in a message has a reference from there. One whose only references are in messages of sockets that
//! nobody else can reach is lost: it is found and dropped, as net/unix/garbage.c does.

use std::collections::{BTreeMap, BTreeSet};

use imbl::OrdMap;

use super::{Link, Socket, Sockets};
use crate::cx::Cx;
use crate::fd::{self, FileKind};
use crate::id::{FileId, ObjectId};
use crate::kernel::Kernel;

/// Descriptions of one message at most (SCM_MAX_FD).
pub const MESSAGE_FILES_MAX: usize = 253;
/// Descriptions in all messages at most, or as many as RLIMIT_NOFILE allows. Linux differs: it has that limit only, and
/// for programs without privileges. So much can be dropped in one call.
pub const IN_FLIGHT_MAX: u64 = 4096;
/// With as many in messages, lost ones are looked for after each call that may have lost one; with more, not each time.
const FEW: u64 = 64;

/// Descriptions in messages.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct InFlight {
    /// References from messages.
    refs: OrdMap<FileId, u32>,
    total: u64,
    /// Times that one has lost its last reference from elsewhere since lost ones were looked for.
    stranded: u64,
}

impl InFlight {
    /// All references.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// True if lost ones are to be looked for before any thread runs. With many in messages, the looks cost as much
    /// as a fixed part of them for each time that one may have been lost.
    pub(super) fn is_due(&self) -> bool {
        self.stranded > 0 && self.total <= self.stranded.saturating_mul(FEW)
    }
}

/// Adds a reference from a message to each of `files`.
pub(super) fn hold(kernel: &mut Kernel, files: &[FileId]) {
    for file in files {
        if let Some(open) = kernel.files.get_mut(file) {
            open.refs = open.refs.saturating_add(1);
            let in_flight = &mut kernel.objects.sockets.in_flight;
            let refs = in_flight.refs.get(file).copied().unwrap_or(0);
            in_flight.refs.insert(*file, refs.saturating_add(1));
            in_flight.total = in_flight.total.saturating_add(1);
        }
    }
}

/// `files` are no longer in a message; their references are the caller's.
pub(super) fn taken(kernel: &mut Kernel, files: &[FileId]) -> Vec<FileId> {
    let in_flight = &mut kernel.objects.sockets.in_flight;
    for file in files {
        match in_flight.refs.get_mut(file) {
            Some(refs) if *refs > 1 => *refs = refs.saturating_sub(1),
            _ => drop(in_flight.refs.remove(file)),
        }
        in_flight.total = in_flight.total.saturating_sub(1);
    }
    files.to_vec()
}

/// A description has lost a reference, and has `refs` left: it may be lost now. It is looked for later, once for all
/// that a call closes.
pub fn lost_reference(kernel: &mut Kernel, file: FileId, refs: u32) {
    let in_flight = &mut kernel.objects.sockets.in_flight;
    if in_flight.refs.get(&file) == Some(&refs) {
        in_flight.stranded = in_flight.stranded.saturating_add(1);
    }
}

/// Looks for lost descriptions if it is time to: says if it was.
pub(super) fn collect_if_due(cx: &mut Cx<'_>) -> bool {
    let is_due = cx.kernel.objects.sockets.in_flight.is_due();
    if is_due {
        collect(cx);
    }
    is_due
}

/// Lets the descriptions that are lost be dropped, if there may be any.
pub fn collect(cx: &mut Cx<'_>) {
    let in_flight = &mut cx.kernel.objects.sockets.in_flight;
    if in_flight.stranded == 0 {
        return;
    }
    in_flight.stranded = 0;
    for id in lost_sockets(cx.kernel) {
        let sockets = &mut cx.kernel.objects.sockets;
        let members: Vec<ObjectId> = match sockets.sockets.get(&id) {
            Some(socket) => members(id, socket).collect(),
            None => continue,
        };
        for member in members {
            if let Ok(socket) = sockets.get_mut(member) {
                let queue = core::mem::take(&mut socket.queue);
                sockets.dead.add(queue);
            }
        }
    }
}

/// A socket, and the connections on it that nobody has accepted: their messages are its own.
fn members(id: ObjectId, socket: &Socket) -> impl Iterator<Item = ObjectId> {
    let pending = match &socket.link {
        Link::Listening(listener) => Some(&listener.pending),
        _ => None,
    };
    core::iter::once(id).chain(pending.into_iter().flatten().copied())
}

/// The sockets in messages that cannot be reached from outside of messages.
fn lost_sockets(kernel: &Kernel) -> Vec<ObjectId> {
    let sockets = &kernel.objects.sockets;
    // Those whose references are all in messages, and the number of them from messages of others.
    let mut outside: BTreeMap<ObjectId, u32> = BTreeMap::new();
    for (file, refs) in &sockets.in_flight.refs {
        if let Some(open) = kernel.files.get(file)
            && let FileKind::Socket(id) = open.kind
            && open.refs == *refs
        {
            outside.insert(id, *refs);
        }
    }
    let candidates: BTreeSet<ObjectId> = outside.keys().copied().collect();
    for id in &candidates {
        for held in held_by(kernel, sockets, *id) {
            if let Some(refs) = outside.get_mut(&held) {
                *refs = refs.saturating_sub(1);
            }
        }
    }
    // What has a reference from elsewhere can be reached, and all that its own messages lead to.
    let mut reached: BTreeSet<ObjectId> = BTreeSet::new();
    let mut next: Vec<ObjectId> = outside
        .iter()
        .filter(|(_, refs)| **refs > 0)
        .map(|(id, _)| *id)
        .collect();
    while let Some(id) = next.pop() {
        if reached.insert(id) {
            let held = held_by(kernel, sockets, id);
            next.extend(held.filter(|held| candidates.contains(held)));
        }
    }
    candidates.difference(&reached).copied().collect()
}

/// The sockets in the messages of a socket.
fn held_by(
    kernel: &Kernel,
    sockets: &Sockets,
    id: ObjectId,
) -> impl Iterator<Item = ObjectId> + use<> {
    let mut held = Vec::new();
    if let Some(socket) = sockets.sockets.get(&id) {
        for member in members(id, socket) {
            let Some(member) = sockets.sockets.get(&member) else {
                continue;
            };
            for file in member.queue.files() {
                if let Some(open) = kernel.files.get(&file)
                    && let FileKind::Socket(id) = open.kind
                {
                    held.push(id);
                }
            }
        }
    }
    held.into_iter()
}

/// Gives up the references to `files` that a message had.
pub fn give_up(cx: &mut Cx<'_>, files: Vec<FileId>) {
    for file in files {
        fd::unref(cx, file);
    }
}
