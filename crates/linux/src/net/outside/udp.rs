//! Datagrams to and from the outside.
//!
//! For each address that a socket of the program's sends to there is a socket of the host with that one peer. Nobody
//! else's datagrams come in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Bound;

use kvmlet_abi::Errno;
use kvmlet_hostnet::{HostSocket, Moved};

use super::{ENDS_MAX, UDP_TOKEN, reach};
use crate::cx::Cx;
use crate::id::ObjectId;
use crate::net::Shut;
use crate::net::header::IpHeader;
use crate::net::queue::{self, Message};
use crate::outcome::Source;
use crate::vfs::ready::POLLERR;

/// Addresses that one socket sends to before it forgets the first of them.
const PEERS_MAX: usize = 32;
/// Datagrams that are taken at a stretch of one peer.
const ARRIVALS_MAX: usize = 32;
/// Peers that are looked at in a stretch. Others wait for the next one.
const ARRIVING_MAX: usize = 64;
/// Longest datagram, in bytes.
const DATAGRAM_MAX: usize = 65_535;

/// A peer of a socket.
#[derive(Debug)]
struct Peer {
    socket: HostSocket,
    /// The program's socket.
    owner: ObjectId,
    /// The address that the program knows it by.
    at: SocketAddr,
}

/// All peers, by the tokens of their events.
#[derive(Debug, Default)]
pub struct Peers {
    by_token: BTreeMap<u64, Peer>,
    tokens: BTreeMap<(ObjectId, SocketAddr), u64>,
    next: u64,
    /// Those that have sent what has not been taken.
    arriving: BTreeSet<u64>,
    /// The one that was looked at last: all have their turn.
    last: u64,
}

impl Peers {
    pub(super) fn is_empty(&self) -> bool {
        self.by_token.is_empty()
    }

    pub(super) fn has_arrivals(&self) -> bool {
        !self.arriving.is_empty()
    }

    /// Those that are looked at next, in a ring.
    fn turn(&mut self) -> Vec<u64> {
        let after = (Bound::Excluded(self.last), Bound::Unbounded);
        let (later, earlier) = (
            self.arriving.range(after),
            self.arriving.range(..=self.last),
        );
        let turn: Vec<u64> = later.chain(earlier).copied().take(ARRIVING_MAX).collect();
        self.last = turn.last().copied().unwrap_or(self.last);
        turn
    }

    /// The host has told of an event.
    pub(super) fn note(&mut self, token: u64) {
        if self.by_token.contains_key(&token) {
            self.arriving.insert(token);
        }
    }

    fn of(&self, owner: ObjectId) -> Vec<(SocketAddr, u64)> {
        let found = self.tokens.iter().filter(|((other, _), _)| *other == owner);
        found.map(|((_, at), token)| (*at, *token)).collect()
    }

    fn remove(&mut self, token: u64) {
        if let Some(peer) = self.by_token.remove(&token) {
            self.tokens.remove(&(peer.owner, peer.at));
            self.arriving.remove(&token);
        }
    }

    /// A socket of the program's is gone.
    pub(super) fn forget(&mut self, owner: ObjectId) {
        if self.by_token.is_empty() {
            return;
        }
        for (_, token) in self.of(owner) {
            self.remove(token);
        }
    }
}

/// The socket of the host that sends to an address for the program's socket.
fn open(cx: &mut Cx<'_>, call: &str, owner: ObjectId, at: SocketAddr) -> Result<u64, Errno> {
    let peers = &cx.host.outside.peers;
    if let Some(token) = peers.tokens.get(&(owner, at)) {
        return Ok(*token);
    }
    let reached = reach::reach(cx.host, call, at)?;
    let own = cx.host.outside.peers.of(owner);
    if own.len() >= PEERS_MAX
        && let Some(oldest) = own.iter().map(|(_, token)| *token).min()
    {
        cx.host.outside.peers.remove(oldest);
    }
    if cx.host.outside.peers.by_token.len() >= ENDS_MAX {
        return Err(Errno::ENOBUFS);
    }
    let host = &mut *cx.host;
    let opened = HostSocket::with_peer(reached.at, &host.share);
    let socket = opened.map_err(|error| host.no_socket(error))?;
    let token = UDP_TOKEN | host.outside.peers.next;
    let added = host
        .outside
        .events(&host.share)
        .and_then(|events| events.add(&socket, token));
    added.map_err(|error| host.no_socket(error))?;
    let peers = &mut cx.host.outside.peers;
    peers.next = peers.next.saturating_add(1);
    peers.tokens.insert((owner, at), token);
    peers.by_token.insert(token, Peer { socket, owner, at });
    Ok(token)
}

/// Connects the program's socket: the host says now if there is a way.
///
/// # Errors
/// As [`reach::reach`]; the host's.
pub fn connect_datagrams(cx: &mut Cx<'_>, owner: ObjectId, at: SocketAddr) -> Result<(), Errno> {
    open(cx, "connect", owner, at).map(drop)
}

/// Sends a datagram to an address outside.
///
/// # Errors
/// As [`reach::reach`]; the host's.
pub fn send_datagram(
    cx: &mut Cx<'_>,
    owner: ObjectId,
    at: SocketAddr,
    bytes: &[u8],
) -> Result<usize, Errno> {
    let token = open(cx, "sendto", owner, at)?;
    let is_connected = cx.kernel.objects.sockets.get(owner)?.remote().is_some();
    let Some(peer) = cx.host.outside.peers.by_token.get(&token) else {
        return Err(Errno::ENOBUFS);
    };
    match peer.socket.write(bytes) {
        // What the host has no room for is lost, as on its way.
        Ok(Moved::Bytes(_) | Moved::NotYet) => Ok(bytes.len()),
        // Of an earlier datagram, which only a connected socket is told of.
        Err(Errno::ECONNREFUSED) if !is_connected => {
            let _ = peer.socket.write(bytes);
            Ok(bytes.len())
        }
        Err(errno) => Err(errno),
    }
}

/// Takes datagrams that have come.
pub(super) fn arrivals(cx: &mut Cx<'_>) {
    let arriving = cx.host.outside.peers.turn();
    let mut bytes = Vec::new();
    for token in arriving {
        bytes.resize(DATAGRAM_MAX, 0);
        for _ in 0..ARRIVALS_MAX {
            let peers = &mut cx.host.outside.peers;
            let Some(peer) = peers.by_token.get(&token) else {
                break;
            };
            let (owner, at) = (peer.owner, peer.at);
            match peer.socket.read(&mut bytes) {
                Ok(Moved::Bytes(count)) => {
                    deliver(cx, owner, at, bytes.get(..count).unwrap_or_default());
                }
                Ok(Moved::NotYet) => {
                    peers.arriving.remove(&token);
                    break;
                }
                Err(errno) => note_error(cx, owner, at, errno),
            }
        }
    }
}

/// True if the program's socket takes what comes from there.
fn takes(cx: &Cx<'_>, owner: ObjectId, at: SocketAddr) -> bool {
    let socket = cx.kernel.objects.sockets.get(owner);
    socket.is_ok_and(|socket| match socket.remote() {
        None => true,
        Some(remote) => SocketAddr::new(remote.ip().to_canonical(), remote.port()) == at,
    })
}

/// Queues a datagram. What there is no room for is lost.
pub(super) fn deliver(cx: &mut Cx<'_>, owner: ObjectId, at: SocketAddr, bytes: &[u8]) {
    if !takes(cx, owner, at) {
        return;
    }
    let Ok(socket) = cx.kernel.objects.sockets.get(owner) else {
        return;
    };
    let is_full = socket.queue.weight() > u64::from(socket.options.rcvbuf);
    if is_full || socket.shut.contains(Shut::RECEIVE) {
        return;
    }
    let name = socket.shown(at.ip(), at.port());
    let own = socket.local().map(|local| local.ip().to_canonical());
    let message = Message::datagram(bytes, name, own.map(IpHeader::usual));
    if cx.machine.memory.charge(message.charged_bytes()).is_err() {
        return;
    }
    // The socket is there: it has just been looked at.
    let _ = queue::deliver(cx.kernel, owner, message);
}

fn note_error(cx: &mut Cx<'_>, owner: ObjectId, at: SocketAddr, errno: Errno) {
    if !takes(cx, owner, at) {
        return;
    }
    if let Ok(socket) = cx.kernel.objects.sockets.get_mut(owner)
        && socket.remote().is_some()
    {
        socket.error = Some(errno);
        cx.kernel.wake(Source::Object(owner), POLLERR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_that_send_at_once_have_their_turns() {
        let mut peers = Peers {
            arriving: (0..160).map(|number| UDP_TOKEN | number).collect(),
            ..Peers::default()
        };
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let turn = peers.turn();
            assert_eq!(turn.len(), ARRIVING_MAX);
            seen.extend(turn);
        }
        assert_eq!(seen, peers.arriving);
        peers.arriving.clear();
        assert!(peers.turn().is_empty());
    }
}
