//! Pairs of connected sockets (socketpair(2), unix(7)) as values.
//!
//! Bytes that are sent lie in the receiver's queue and count against the sender's SO_SNDBUF, overhead
//! included, until they are received, as in net/unix/af_unix.c.

use std::sync::Arc;

use bitflags::bitflags;
use imbl::{OrdMap, Vector};
use kvmlet_abi::Errno;
use kvmlet_mem::GuestMemory;

use super::anon::ObjectId;
use super::ready::{
    POLLERR, POLLHUP, POLLIN, POLLOUT, POLLPRI, POLLRDBAND, POLLRDHUP, POLLRDNORM, POLLWRBAND,
    POLLWRNORM,
};
use crate::kernel::Kernel;
use crate::outcome::Source;

/// SO_SNDBUF and SO_RCVBUF of a new socket and the most that can be asked for, in bytes
/// (/proc/sys/net/core/wmem_default, wmem_max and so on).
pub const BUFFER_BYTES: u32 = 212_992;
/// Smallest SO_SNDBUF (SOCK_MIN_SNDBUF).
const SNDBUF_MIN: u32 = 4608;
/// Smallest SO_RCVBUF (SOCK_MIN_RCVBUF).
const RCVBUF_MIN: u32 = 2304;
/// Most bytes of a stream that are queued as one message.
pub const STREAM_MESSAGE_MAX: usize = 48_832;

/// The traffic that a socket carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketKind {
    /// SOCK_STREAM
    Stream,
    /// SOCK_DGRAM
    Datagram,
    /// SOCK_SEQPACKET
    SeqPacket,
}

impl SocketKind {
    /// SO_TYPE
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Stream => 1,
            Self::Datagram => 2,
            Self::SeqPacket => 5,
        }
    }

    /// True if the end of one side is the end of the other.
    #[must_use]
    pub fn is_connection(self) -> bool {
        self != Self::Datagram
    }
}

bitflags! {
    /// Directions that are shut down.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Shut: u32 {
        /// RCV_SHUTDOWN
        const RECEIVE = 1;
        /// SEND_SHUTDOWN
        const SEND = 2;
    }
}

/// The other socket of a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Peer {
    Open(ObjectId),
    /// Closed; a datagram socket finds out when it sends.
    Closed,
    /// No longer connected.
    None,
}

/// Something sent and not yet received.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Message {
    bytes: Arc<[u8]>,
    /// The bytes that it counts as.
    weight: u64,
}

/// Settings that setsockopt(2) changes and that change nothing else are kept by number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// SO_SNDBUF as getsockopt(2) shows it.
    pub sndbuf: u32,
    /// SO_RCVBUF as getsockopt(2) shows it.
    pub rcvbuf: u32,
    /// SO_RCVTIMEO in nanoseconds; `None` waits for ever.
    pub receive_timeout_ns: Option<u64>,
    /// SO_SNDTIMEO in nanoseconds; `None` waits for ever.
    pub send_timeout_ns: Option<u64>,
    /// Others that are not 0.
    pub flags: OrdMap<i32, i32>,
    /// SO_LINGER: l_onoff and l_linger.
    pub linger: [i32; 2],
}

/// One socket of a pair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Socket {
    /// The traffic that it carries.
    pub kind: SocketKind,
    /// SO_PEERCRED: who made the pair.
    pub creator: [u32; 3],
    /// Settings.
    pub options: Options,
    peer: Peer,
    queue: Vector<Message>,
    /// Bytes of the first message of a stream already received.
    head: usize,
    /// Weight of what was sent and is not yet received.
    sent: u64,
    shut: Shut,
    /// SO_ERROR
    error: Option<Errno>,
}

/// All sockets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sockets {
    sockets: OrdMap<ObjectId, Socket>,
}

/// The message that a receiver finds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrived {
    /// The bytes asked for, as far as they are there.
    pub bytes: Vec<u8>,
    /// Length of the message before it was cut, in bytes; of a stream, that of `bytes`.
    pub len_bytes: usize,
    /// There is nothing, and will be nothing.
    pub is_end: bool,
}

/// The bytes that a message counts as (skb->truesize): a header of 256 bytes, and its content. Up to a page,
/// the content takes a power of two of bytes, with 320 of them for its end. Beyond, it takes whole pages.
fn weight(len_bytes: usize) -> u64 {
    const HEADER: usize = 256;
    const TAIL: usize = 320;
    const HEAD_MAX: usize = 4096 - TAIL;
    let beyond = len_bytes.saturating_sub(HEAD_MAX).next_multiple_of(4096);
    let head = len_bytes.saturating_sub(beyond);
    let head = head.saturating_add(TAIL).max(512).next_power_of_two();
    HEADER.saturating_add(head).saturating_add(beyond) as u64
}

impl Socket {
    fn new(kind: SocketKind, peer: ObjectId, creator: [u32; 3]) -> Self {
        Self {
            kind,
            creator,
            options: Options {
                sndbuf: BUFFER_BYTES,
                rcvbuf: BUFFER_BYTES,
                receive_timeout_ns: None,
                send_timeout_ns: None,
                flags: OrdMap::new(),
                linger: [0; 2],
            },
            peer: Peer::Open(peer),
            queue: Vector::new(),
            head: 0,
            sent: 0,
            shut: Shut::empty(),
            error: None,
        }
    }

    /// unix_writable()
    fn is_writable(&self) -> bool {
        self.sent.saturating_mul(4) <= u64::from(self.options.sndbuf)
    }

    /// poll(2) events that hold (unix_poll, unix_dgram_poll).
    #[must_use]
    pub fn poll(&self) -> i16 {
        let mut state = 0;
        if self.error.is_some() {
            state |= POLLERR;
        }
        if self.shut.is_all() {
            state |= POLLHUP;
        }
        if self.shut.contains(Shut::RECEIVE) {
            state |= POLLRDHUP | POLLIN | POLLRDNORM;
        }
        if !self.queue.is_empty() {
            state |= POLLIN | POLLRDNORM;
        }
        if self.is_writable() {
            state |= POLLOUT | POLLWRNORM | POLLWRBAND;
        }
        state
    }

    /// True if getpeername(2) has an answer.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        // A connection keeps its peer's name after the peer has closed.
        self.kind.is_connection() || self.peer != Peer::None
    }

    /// SO_ERROR, which asking clears.
    pub fn take_error(&mut self) -> Option<Errno> {
        self.error.take()
    }

    /// Bytes that FIONREAD tells: all of a stream, the first datagram.
    #[must_use]
    pub fn readable_bytes(&self) -> usize {
        if self.kind == SocketKind::Datagram {
            return self.queue.front().map_or(0, |first| first.bytes.len());
        }
        let all = self.queue.iter().fold(0usize, |sum, message| {
            sum.saturating_add(message.bytes.len())
        });
        all.saturating_sub(self.head)
    }

    /// The number that TIOCOUTQ tells: the weight of what was sent and is not yet received.
    #[must_use]
    pub fn unsent_bytes(&self) -> u64 {
        self.sent
    }

    /// SO_SNDBUF: Linux doubles it.
    pub fn set_sndbuf(&mut self, wanted: u32) {
        self.options.sndbuf = (wanted.min(BUFFER_BYTES).saturating_mul(2)).max(SNDBUF_MIN);
    }

    /// SO_RCVBUF: Linux doubles it.
    pub fn set_rcvbuf(&mut self, wanted: u32) {
        self.options.rcvbuf = (wanted.min(BUFFER_BYTES).saturating_mul(2)).max(RCVBUF_MIN);
    }

    /// The first bytes, at most `max`, without taking them. `Ok(None)` if there is nothing yet; of a
    /// socket whose peer will send no more, nothing at all.
    ///
    /// # Errors
    /// `ECONNRESET` once, if the peer closed without receiving everything.
    pub fn arrived(&mut self, max: usize) -> Result<Option<Arrived>, Errno> {
        // Of a stream what is queued comes first, of messages the error does (af_unix.c, datagram.c).
        if self.kind != SocketKind::Stream
            && let Some(error) = self.error.take()
        {
            return Err(error);
        }
        let Some(first) = self.queue.front() else {
            if let Some(error) = self.error.take() {
                return Err(error);
            }
            let nothing = Arrived {
                bytes: Vec::new(),
                len_bytes: 0,
                is_end: true,
            };
            return Ok(self.shut.contains(Shut::RECEIVE).then_some(nothing));
        };
        if self.kind != SocketKind::Stream {
            let bytes = first.bytes.get(..max).unwrap_or(&first.bytes).to_vec();
            let len_bytes = first.bytes.len();
            return Ok(Some(Arrived {
                bytes,
                len_bytes,
                is_end: false,
            }));
        }
        let mut bytes = Vec::with_capacity(max.min(self.readable_bytes()));
        let mut skip = self.head;
        for message in &self.queue {
            let left = max.saturating_sub(bytes.len());
            if left == 0 {
                break;
            }
            let rest = message.bytes.get(skip..).unwrap_or_default();
            bytes.extend_from_slice(rest.get(..left).unwrap_or(rest));
            skip = 0;
        }
        let len_bytes = bytes.len();
        Ok(Some(Arrived {
            bytes,
            len_bytes,
            is_end: false,
        }))
    }

    /// Takes `count` bytes of a stream or the first message away: the weight that is received.
    fn consume(&mut self, count: usize) -> u64 {
        let mut received = 0u64;
        let mut left = count;
        while let Some(first) = self.queue.front() {
            let rest = first.bytes.len().saturating_sub(self.head);
            if self.kind == SocketKind::Stream && left < rest {
                self.head = self.head.saturating_add(left);
                break;
            }
            left = left.saturating_sub(rest);
            self.head = 0;
            received = received.saturating_add(first.weight);
            self.queue.pop_front();
            if self.kind != SocketKind::Stream || left == 0 {
                break;
            }
        }
        received
    }

    /// Why nothing can be sent, if so.
    fn send_error(&mut self) -> Option<Errno> {
        if self.kind != SocketKind::Stream
            && let Some(error) = self.error.take()
        {
            return Some(error);
        }
        if self.shut.contains(Shut::SEND) {
            return Some(Errno::EPIPE);
        }
        match self.peer {
            Peer::Open(_) => None,
            Peer::Closed => {
                self.peer = Peer::None;
                Some(Errno::ECONNREFUSED)
            }
            Peer::None => Some(Errno::ENOTCONN),
        }
    }
}

impl Sockets {
    /// Adds a connected pair.
    pub fn pair(&mut self, ids: [ObjectId; 2], kind: SocketKind, creator: [u32; 3]) {
        let [a, b] = ids;
        self.sockets.insert(a, Socket::new(kind, b, creator));
        self.sockets.insert(b, Socket::new(kind, a, creator));
    }

    /// A socket.
    ///
    /// # Errors
    /// `EBADF` if it is gone (never while a description refers to it).
    pub fn get(&self, id: ObjectId) -> Result<&Socket, Errno> {
        self.sockets.get(&id).ok_or(Errno::EBADF)
    }

    /// A socket, to be changed.
    ///
    /// # Errors
    /// As [`Sockets::get`].
    pub fn get_mut(&mut self, id: ObjectId) -> Result<&mut Socket, Errno> {
        self.sockets.get_mut(&id).ok_or(Errno::EBADF)
    }
}

/// The events that a receiver's wait queue is woken with (sock_def_readable).
const ARRIVAL: i16 = POLLIN | POLLPRI | POLLRDNORM | POLLRDBAND;
/// The events that a sender's is woken with (unix_write_space).
const SPACE: i16 = POLLOUT | POLLWRNORM | POLLWRBAND;

/// Sends one message, or as much of a stream as has room: the number of bytes.
///
/// # Errors
/// `EAGAIN` without room, `EMSGSIZE`, `EPIPE` where the peer receives no more. For a datagram to a closed
/// peer `ECONNREFUSED`, and then `ENOTCONN`. `ENOMEM` at the memory limit.
pub fn send(
    kernel: &mut Kernel,
    memory: &mut GuestMemory,
    id: ObjectId,
    bytes: &[u8],
) -> Result<usize, Errno> {
    let socket = kernel.objects.sockets.get_mut(id)?;
    let is_stream = socket.kind == SocketKind::Stream;
    let limit = socket.options.sndbuf as usize;
    if !is_stream && bytes.len() > limit.saturating_sub(32) {
        return Err(Errno::EMSGSIZE);
    }
    if let Some(error) = socket.send_error() {
        return Err(error);
    }
    let Peer::Open(to) = socket.peer else {
        return Err(Errno::ENOTCONN);
    };
    let peer = kernel.objects.sockets.get(to)?;
    if peer.shut.contains(Shut::RECEIVE) {
        return Err(Errno::EPIPE);
    }
    let most = (limit / 2).saturating_sub(64).min(STREAM_MESSAGE_MAX);
    let mut done = 0usize;
    while done < bytes.len() || !is_stream {
        let socket = kernel.objects.sockets.get_mut(id)?;
        let rest = bytes.get(done..).unwrap_or_default();
        let part = if is_stream {
            rest.get(..most).unwrap_or(rest)
        } else {
            rest
        };
        let weight = weight(part.len());
        let failed = if socket.sent >= limit as u64 {
            Some(Errno::EAGAIN)
        } else {
            memory.charge(weight).err().map(|_| Errno::ENOMEM)
        };
        match failed {
            Some(error) if done == 0 => return Err(error),
            Some(_) => break,
            None => {}
        }
        socket.sent = socket.sent.saturating_add(weight);
        let bytes = Arc::from(part);
        let peer = kernel.objects.sockets.get_mut(to)?;
        peer.queue.push_back(Message { bytes, weight });
        done = done.saturating_add(part.len());
        kernel.wake(Source::Object(to), ARRIVAL);
        if !is_stream {
            break;
        }
    }
    Ok(done)
}

/// Takes `count` bytes of a stream, or the first message, away.
///
/// # Errors
/// As [`Sockets::get`].
pub fn consume(
    kernel: &mut Kernel,
    memory: &mut GuestMemory,
    id: ObjectId,
    count: usize,
) -> Result<(), Errno> {
    let socket = kernel.objects.sockets.get_mut(id)?;
    let weight = socket.consume(count);
    let peer = socket.peer;
    received(kernel, memory, peer, weight);
    Ok(())
}

/// Notes that something that `from` sent has been received or dropped.
fn received(kernel: &mut Kernel, memory: &mut GuestMemory, from: Peer, weight: u64) {
    if weight == 0 {
        return;
    }
    memory.uncharge(weight);
    if let Peer::Open(from) = from
        && let Ok(sender) = kernel.objects.sockets.get_mut(from)
    {
        sender.sent = sender.sent.saturating_sub(weight);
        if sender.is_writable() {
            kernel.wake(Source::Object(from), SPACE);
        }
    }
}

/// shutdown(2)
///
/// # Errors
/// As [`Sockets::get`].
pub fn shut_down(kernel: &mut Kernel, id: ObjectId, how: Shut) -> Result<(), Errno> {
    let socket = kernel.objects.sockets.get_mut(id)?;
    socket.shut |= how;
    let peer = socket.peer;
    let is_connection = socket.kind.is_connection();
    if is_connection && let Peer::Open(to) = peer {
        let mut theirs = Shut::empty();
        theirs.set(Shut::SEND, how.contains(Shut::RECEIVE));
        theirs.set(Shut::RECEIVE, how.contains(Shut::SEND));
        kernel.objects.sockets.get_mut(to)?.shut |= theirs;
        kernel.wake(Source::Object(to), 0);
    }
    kernel.wake(Source::Object(id), 0);
    Ok(())
}

/// Removes a socket whose description is gone.
pub fn released(kernel: &mut Kernel, memory: &mut GuestMemory, id: ObjectId) {
    let Some(socket) = kernel.objects.sockets.sockets.remove(&id) else {
        return;
    };
    let unread = !socket.queue.is_empty();
    let weight = socket
        .queue
        .iter()
        .fold(0u64, |sum, message| sum.saturating_add(message.weight));
    if let Peer::Open(to) = socket.peer
        && let Ok(peer) = kernel.objects.sockets.get_mut(to)
        && peer.kind.is_connection()
    {
        peer.shut = Shut::all();
        if unread {
            peer.error = Some(Errno::ECONNRESET);
        }
        kernel.wake(Source::Object(to), 0);
    }
    received(kernel, memory, socket.peer, weight);
    if let Peer::Open(to) = socket.peer
        && let Ok(peer) = kernel.objects.sockets.get_mut(to)
    {
        peer.peer = Peer::Closed;
    }
}
