//! The ports of TCP and UDP that sockets are bound to.

use imbl::OrdSet;

use super::inet::Transport;
use crate::id::ObjectId;

/// Ports that are given to sockets which ask for none (/proc/sys/net/ipv4/ip_local_port_range).
const EPHEMERAL: core::ops::RangeInclusive<u16> = 32_768..=60_999;

/// The ports that sockets are bound to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ports {
    pub(super) bound: OrdSet<(Transport, u16, ObjectId)>,
    /// Those of TCP that listen.
    pub(super) listening: OrdSet<(u16, ObjectId)>,
    /// Ports given so far.
    given: u16,
}

impl Ports {
    /// The next port to be given, in turn.
    pub(super) fn next(&mut self) -> u16 {
        let first = *EPHEMERAL.start();
        let count = EPHEMERAL.end().saturating_sub(first).saturating_add(1);
        let next = first.saturating_add(self.given % count);
        self.given = (self.given % count).saturating_add(1);
        next
    }

    /// The lowest port for sockets which ask for none that nobody has.
    pub(super) fn unused(&self, transport: Transport) -> Option<u16> {
        let (first, last) = (*EPHEMERAL.start(), *EPHEMERAL.end());
        let range = (transport, first, ObjectId(0))..=(transport, last, ObjectId(u64::MAX));
        let mut free = first;
        for (_, port, _) in self.bound.range(range) {
            if *port > free {
                break;
            }
            free = port.saturating_add(1);
        }
        (free <= last).then_some(free)
    }

    pub(super) fn at(&self, transport: Transport, port: u16) -> impl Iterator<Item = ObjectId> {
        let (first, last) = (ObjectId(0), ObjectId(u64::MAX));
        let range = (transport, port, first)..=(transport, port, last);
        self.bound.range(range).map(|(_, _, id)| *id)
    }

    pub(super) fn listening(&self) -> impl Iterator<Item = (u16, ObjectId)> {
        self.listening.iter().copied()
    }

    pub(super) fn listening_at(&self, port: u16) -> impl Iterator<Item = ObjectId> {
        let range = (port, ObjectId(0))..=(port, ObjectId(u64::MAX));
        self.listening.range(range).map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_unused_port_is_found() {
        let mut ports = Ports::default();
        assert_eq!(ports.unused(Transport::Tcp), Some(32_768));
        for port in [32_768, 32_769, 32_769, 32_771] {
            let id = ObjectId(ports.bound.len() as u64);
            ports.bound.insert((Transport::Tcp, port, id));
        }
        assert_eq!(ports.unused(Transport::Tcp), Some(32_770));
        assert_eq!(ports.unused(Transport::Udp), Some(32_768));
        for port in EPHEMERAL {
            ports.bound.insert((Transport::Udp, port, ObjectId(1)));
        }
        assert_eq!(ports.unused(Transport::Udp), None);
    }
}
