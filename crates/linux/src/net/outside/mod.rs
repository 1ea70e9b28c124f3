//! Connections that lead out of the sandbox.
//!
//! A socket of the program's is always one of the kernel value. What it is connected to is another socket of that value,
//! an *end*, whose bytes are moved to and from a socket of the host. So every call on the program's socket works as on a
//! loopback connection, and what is queued is charged as there. An end is an entry in [`Sockets::ends`] and one in
//! [`Outside`], by the same number. The first is part of the kernel value, the second is not. In a fork or after a
//! reset the second is not there: such a connection has been reset.
//!
//! Something is done for an end when it is *due*: its queue has changed, or the host has told of an event.

mod admitted;
mod names;
mod packets;
mod rate;
mod reach;
mod tcp;
mod udp;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use kvmlet_abi::Errno;
use kvmlet_budget::Share;
use kvmlet_hostnet::{Access, Events, OpenError, Resolver};

use super::Sockets;
use crate::cx::Cx;
use crate::host::Host;
use crate::id::ObjectId;
use crate::report::Remedy;
use admitted::Admitted;
use names::Question;
pub use names::ask;
pub use packets::{connect_packets, datagram_end, send_packet};
use rate::Rate;
pub use reach::{OWN_V4, OWN_V6, Place, Reached, place_of, reach};
use tcp::End;
pub use tcp::{connect, connect_names, connect_unix};
pub use udp::{connect_datagrams, send_datagram};

/// Connections and questions of one sandbox at the same time, besides the limit on host descriptors.
const ENDS_MAX: usize = 4096;
/// Tokens of events: those of ends are their numbers, which are below all of these.
const UDP_TOKEN: u64 = 1 << 61;
const LISTENER_TOKEN: u64 = 1 << 62;
const RESOLVER_TOKEN: u64 = 1 << 63;

/// Stops the guest when something happens while it computes.
#[derive(Clone)]
struct Kick(Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for Kick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kick")
    }
}

/// The host's side of all connections of a sandbox.
#[derive(Debug, Default)]
pub struct Outside {
    access: Arc<Access>,
    kick: Option<Kick>,
    /// `None` until the first socket of the host is opened.
    events: Option<Events>,
    resolver: Option<Resolver>,
    ends: BTreeMap<ObjectId, End>,
    peers: udp::Peers,
    /// Listeners with connections that have not been taken.
    arriving: BTreeSet<usize>,
    /// Names that are being looked up.
    questions: BTreeMap<u32, Question>,
    next_question: u32,
    admitted: Admitted,
    rate: Rate,
}

impl Outside {
    /// That of a new sandbox.
    #[must_use]
    pub fn new(access: Arc<Access>) -> Self {
        Self {
            access,
            ..Self::default()
        }
    }

    /// That of a fork: what has been looked up is known, and nothing is open.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            access: Arc::clone(&self.access),
            admitted: self.admitted.clone(),
            ..Self::default()
        }
    }

    /// Closes all that is open, and knows what `frozen` knows.
    pub fn reset(&mut self, frozen: &Self) {
        // Without these it has opened nothing and asked for nothing.
        if self.events.is_none() && self.resolver.is_none() {
            self.access = Arc::clone(&frozen.access);
            self.admitted = frozen.admitted.clone();
            return;
        }
        let (kick, rate) = (self.kick.take(), self.rate);
        *self = Self {
            kick,
            rate,
            ..frozen.fork()
        };
    }

    /// True if ports of the host lead to the program's.
    #[must_use]
    pub fn is_published(&self) -> bool {
        !self.access.listeners().is_empty()
    }

    /// Says how the guest is stopped.
    pub fn set_kick(&mut self, kick: impl Fn() + Send + Sync + 'static) {
        let kick = Kick(Arc::new(kick));
        if let Some(events) = &self.events {
            let own = kick.clone();
            events.set_kick(move || (own.0)());
        }
        self.kick = Some(kick);
    }

    /// The events of its sockets, from the first one on.
    fn events(&mut self, share: &Arc<Share>) -> Result<&Events, OpenError> {
        if self.events.is_none() {
            let events = Events::open(share)?;
            if let Some(Kick(kick)) = self.kick.clone() {
                events.set_kick(move || kick());
            }
            for (index, (listener, _)) in self.access.listeners().iter().enumerate() {
                events.add(listener, LISTENER_TOKEN | index as u64)?;
            }
            self.events = Some(events);
        }
        self.events.as_ref().ok_or(OpenError::Host(Errno::EIO))
    }

    /// The descriptor that is ready for reading when something has happened.
    #[must_use]
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(AsFd::as_fd)
    }

    /// True if something may still happen that the program waits for.
    #[must_use]
    pub fn is_open(&self) -> bool {
        // In a fork nobody looks out for its ports yet.
        self.is_published()
            || self.events.is_some()
                && !(self.ends.is_empty() && self.peers.is_empty() && self.questions.is_empty())
    }

    /// The names of connections of TCP that are open.
    #[must_use]
    pub fn connections(&self) -> Vec<String> {
        self.ends.values().filter_map(End::label).collect()
    }

    /// The guest is about to compute. `false` if something has happened that is to be looked at first.
    #[must_use]
    pub fn begin_computing(&self) -> bool {
        self.events.as_ref().is_none_or(Events::begin_computing)
    }

    /// The guest has left.
    pub fn end_computing(&self) {
        if let Some(events) = &self.events {
            events.end_computing();
        }
    }

    /// True if something has happened, or is still to be done, that no end is due for.
    #[must_use]
    pub fn has_rung(&self) -> bool {
        self.events.as_ref().is_some_and(Events::has_rung)
            || !self.arriving.is_empty()
            || self.peers.has_arrivals()
    }

    /// A socket of the program's is gone.
    pub(super) fn forget(&mut self, id: ObjectId) {
        self.peers.forget(id);
        self.questions
            .values_mut()
            .for_each(|question| question.forget(id));
    }
}

impl Host {
    /// Counts a socket of the host's, or a question for names, that the program is about to have opened.
    ///
    /// # Errors
    /// `ENOBUFS`, recorded, if there have been too many lately. EAGAIN would say that a connection is under way.
    fn keep_rate(&mut self) -> Result<(), Errno> {
        if self.outside.rate.take(Instant::now()) {
            return Ok(());
        }
        let what = "opening sockets of the host without end".to_owned();
        self.report.deny(what, Errno::ENOBUFS, Remedy::Rate);
        Err(Errno::ENOBUFS)
    }

    /// The error that a program gets where the host has no socket for it.
    fn no_socket(&mut self, error: OpenError) -> Errno {
        match error {
            OpenError::Host(errno) => errno,
            OpenError::Exhausted(exhausted) => {
                let what = format!("opening a socket: {exhausted}");
                self.report
                    .deny(what, Errno::ENOBUFS, Remedy::from(exhausted));
                Errno::ENOBUFS
            }
        }
    }
}

impl Sockets {
    /// True if something is to be done for an end.
    #[must_use]
    pub fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The state of a socket has changed.
    pub fn note_change(&mut self, id: ObjectId) {
        if self.ends.contains(&id) {
            self.due.insert(id);
        }
    }
}

/// Begins to look out for connections from outside, if there may be any.
pub fn start(cx: &mut Cx<'_>) {
    let host = &mut *cx.host;
    if host.outside.events.is_none() && host.outside.is_published() {
        // Without a descriptor for it nobody can connect; the next step tries again.
        let _ = host.outside.events(&host.share);
    }
}

/// Does a piece of what is due. Says if there was something.
pub fn work(cx: &mut Cx<'_>) -> bool {
    if cx.host.outside.has_rung() {
        look(cx);
    }
    let Some(id) = cx.kernel.objects.sockets.due.get_min().copied() else {
        return false;
    };
    cx.kernel.objects.sockets.due.remove(&id);
    cx.kernel.hold_wakes();
    tcp::step(cx, id);
    cx.kernel.release_wakes();
    true
}

/// Asks the host what has happened.
pub fn look(cx: &mut Cx<'_>) {
    start(cx);
    let Some(events) = &cx.host.outside.events else {
        return;
    };
    for ready in events.take() {
        let token = ready.token;
        if token & RESOLVER_TOKEN != 0 {
            names::answers(cx);
        } else if token & LISTENER_TOKEN != 0 {
            let index = usize::try_from(token & !LISTENER_TOKEN).unwrap_or(usize::MAX);
            cx.host.outside.arriving.insert(index);
        } else if token & UDP_TOKEN != 0 {
            cx.host.outside.peers.note(token);
        } else if let Some(end) = cx.host.outside.ends.get_mut(&ObjectId(token)) {
            end.note(ready);
            cx.kernel.objects.sockets.due.insert(ObjectId(token));
        }
    }
    for (id, end) in &cx.host.outside.ends {
        if end.holds_bytes() {
            cx.kernel.objects.sockets.due.insert(*id);
        }
    }
    tcp::arrivals(cx);
    udp::arrivals(cx);
}

/// Bytes that the program has sent are not with the host yet.
#[must_use]
pub fn has_unsent(cx: &Cx<'_>) -> bool {
    let sockets = &cx.kernel.objects.sockets;
    let mut ends = cx.host.outside.ends.iter();
    ends.any(|(id, end)| end.is_host() && sockets.get(*id).is_ok_and(|end| !end.queue.is_empty()))
}

/// Ends all connections, as if each other side had reset it. Datagram sockets stay; what waited in them is lost.
pub fn drop_all(cx: &mut Cx<'_>) {
    let ends: Vec<ObjectId> = cx.kernel.objects.sockets.ends.iter().copied().collect();
    cx.kernel.hold_wakes();
    for id in ends {
        cx.host.outside.ends.remove(&id);
        packets::lose(cx, id);
    }
    cx.kernel.release_wakes();
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use kvmlet_abi::Errno;

    use super::{Outside, connect_packets, connect_unix};
    use crate::id::ObjectId;
    use crate::testing::{Sandbox, call};

    #[test]
    fn too_many_sockets_of_the_host_are_refused_whatever_their_kind() {
        let mut s = Sandbox::new(Path::new("/usr/share"));
        let policy = std::sync::Arc::make_mut(&mut s.host.policy);
        policy.allow_net("host.kvmlet.internal:9").unwrap();
        // Up to a later time, so that none comes back meanwhile.
        let later = Instant::now() + Duration::from_secs(60);
        while s.host.outside.rate.take(later) {}
        // AF_INET, port 9 of 127.0.0.54.
        let mut address = [2, 0, 0, 9, 127, 0, 0, 54].to_vec();
        address.resize(16, 0);
        let to = s.put(&address);
        let stream = call!(s, "socket", 2, 1, 0).unwrap().cast_signed();
        assert_eq!(call!(s, "connect", stream, to, 16), Err(Errno::ENOBUFS));
        let datagrams = call!(s, "socket", 2, 2, 0).unwrap().cast_signed();
        assert_eq!(
            call!(s, "sendto", datagrams, to, 1, 0, to, 16),
            Err(Errno::ENOBUFS)
        );
        assert!(s.denied("opening sockets of the host without end"));
        let (mut cx, at) = (s.cx(), (0, b"/socket".as_slice()));
        let ends = [
            connect_unix(&mut cx, ObjectId(1), at),
            connect_packets(&mut cx, ObjectId(1), at),
        ];
        assert_eq!(ends, [Err(Errno::ENOBUFS); 2]);
    }

    #[test]
    fn a_reset_keeps_count_of_what_has_been_opened() {
        let (now, frozen) = (Instant::now(), Outside::default());
        let mut fork = frozen.fork();
        while fork.rate.take(now) {}
        fork.reset(&frozen);
        assert!(!fork.rate.take(now));
        assert!(frozen.fork().rate.take(now));
    }

    #[test]
    fn a_reset_forgets_the_names_that_a_request_has_looked_up() {
        let now = Instant::now();
        let (known, asked): (IpAddr, IpAddr) = ([8, 8, 8, 8].into(), [9, 9, 9, 9].into());
        let mut frozen = Outside::default();
        frozen.admitted.note(known, "known", now, false);
        let mut fork = frozen.fork();
        fork.admitted.note(asked, "secret", now, false);
        fork.admitted.note(known, "secret", now, true);
        let names = |of: &Outside, at| {
            of.admitted
                .names(at, now)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&fork, asked), ["secret"]);
        fork.reset(&frozen);
        assert_eq!(names(&fork, known), ["known"]);
        assert!(names(&fork, asked).is_empty());
        assert_eq!(fork.admitted.withheld(known, now), None);
    }
}
