//! Messages on their way: what is queued on a socket, and sending and receiving.
//!
//! Bytes that are sent lie in the receiver's queue and count against the sender's SO_SNDBUF, overhead
//! included, until they are received, as in net/unix/af_unix.c.

use std::sync::Arc;

use imbl::Vector;
use kvmlet_abi::Errno;
use kvmlet_mem::{BLOCK_BYTES, Bytes, GuestMemory, SpareBlocks};

use super::header::{IpHeader, IpWishes};
use super::pieces::Pieces;
use super::{Credentials, Link, Name, SPACE, Shut, Socket, SocketKind};
use crate::id::{FileId, ObjectId};
use crate::kernel::Kernel;
use crate::outcome::Source;
use crate::vfs::ready::{POLLIN, POLLPRI, POLLRDBAND, POLLRDNORM};

/// Most bytes of a stream that are queued as one message.
pub const STREAM_MESSAGE_MAX: usize = BLOCK_BYTES;
/// Host memory charged for a description in a message: more than one takes.
const FILE_COST_BYTES: u64 = 64;

/// The things that come with the bytes of a message.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ancillary {
    /// SCM_RIGHTS: descriptions, each with a reference while it is queued.
    pub files: Vec<FileId>,
    /// SCM_CREDENTIALS, if they are given.
    pub given: Option<Credentials>,
    /// The sender, for whom asks for it.
    pub sender: Credentials,
    /// For the header of a datagram of IP.
    pub ip: IpWishes,
}

/// Something sent and not yet received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    bytes: Bytes,
    /// The bytes that it counts as.
    weight: u64,
    /// The socket that it counts against, if it is not the receiver.
    sender: Option<ObjectId>,
    /// The sender's name, if it has one.
    from: Option<Name>,
    files: Arc<[FileId]>,
    credentials: Option<Credentials>,
    /// The header that it came with.
    ip: Option<IpHeader>,
}

impl Message {
    /// A datagram that counts against its receiver.
    pub(super) fn datagram(bytes: &[u8], from: Name, ip: Option<IpHeader>) -> Self {
        Self {
            bytes: Bytes::copied(bytes),
            weight: weight(bytes.len()),
            sender: None,
            from: Some(from),
            files: Arc::default(),
            credentials: None,
            ip,
        }
    }

    pub(super) fn charged_bytes(&self) -> u64 {
        charged_bytes(self.weight, self.bytes.unused_bytes(), self.files.len())
    }
}

/// Bytes to be sent: anywhere, or in host memory that the queue can keep.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    block: Option<&'a Bytes>,
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, block: None }
    }
}

impl<'a> From<&'a Bytes> for Payload<'a> {
    fn from(bytes: &'a Bytes) -> Self {
        let block = Some(bytes);
        Self { bytes, block }
    }
}

impl Payload<'_> {
    /// The host memory that a part of it takes beyond its length, once it is queued.
    fn unused_bytes(&self, part: &[u8]) -> usize {
        match self.block {
            Some(block) if part.len() == block.len() => block.unused_bytes(),
            _ => SpareBlocks::unused_bytes(part.len()),
        }
    }

    /// A part of it, to be queued.
    fn queued(&self, memory: &mut GuestMemory, part: &[u8]) -> Bytes {
        match self.block {
            Some(block) if part.len() == block.len() => block.clone(),
            _ => memory.spare_blocks.copied(part),
        }
    }
}

fn charged_bytes(weight: u64, unused: usize, files: usize) -> u64 {
    let files = FILE_COST_BYTES.saturating_mul(files as u64);
    weight.saturating_add(unused as u64).saturating_add(files)
}

/// Messages, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Queue {
    /// Each in an allocation of its own: the vector keeps room for 64 elements, which are to be small.
    messages: Vector<Arc<Message>>,
    /// Bytes of the first message of a stream already received.
    head: usize,
    /// The messages with descriptions: how many came before each, and the descriptions. Who looks for them does not
    /// look at all messages.
    files: Vector<(u64, Arc<[FileId]>)>,
    /// Messages that have been taken away.
    popped: u64,
    /// The bytes that all messages count as.
    weight: u64,
}

/// The message that a receiver finds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Arrived {
    /// The bytes asked for, as far as they are there.
    pub bytes: Pieces,
    /// Length of the message before it was cut, in bytes; of a stream, that of `bytes`.
    pub len_bytes: usize,
    /// There is nothing, and will be nothing.
    pub is_end: bool,
    /// The name of who sent it.
    pub from: Option<Name>,
    /// SCM_RIGHTS
    pub files: Vec<FileId>,
    /// Bytes before the first of the message that they come with.
    pub files_at: usize,
    /// Who sent it, if that is known.
    pub credentials: Option<Credentials>,
    /// The header that it came with.
    pub ip: Option<IpHeader>,
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

impl Queue {
    /// True if nothing is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Bytes of the first message.
    #[must_use]
    pub fn first_len(&self) -> usize {
        self.messages.front().map_or(0, |first| first.bytes.len())
    }

    /// The first message, whole.
    pub(super) fn first(&self) -> Option<&[u8]> {
        self.messages.front().map(|first| &*first.bytes)
    }

    /// Bytes of all.
    #[must_use]
    pub fn readable_bytes(&self) -> usize {
        let all = self.messages.iter().fold(0usize, |sum, message| {
            sum.saturating_add(message.bytes.len())
        });
        all.saturating_sub(self.head)
    }

    /// The bytes that all messages count as.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// The descriptions in messages.
    pub fn files(&self) -> impl Iterator<Item = FileId> {
        self.files
            .iter()
            .flat_map(|(_, files)| files.iter().copied())
    }

    /// The number of them.
    pub(super) fn files_count(&self) -> u64 {
        self.files.iter().fold(0u64, |sum, (_, files)| {
            sum.saturating_add(files.len() as u64)
        })
    }

    /// The descriptions in the first message are no longer there.
    fn forget_first_files(&mut self) {
        if self.files.front().is_some_and(|(at, _)| *at == self.popped) {
            self.files.pop_front();
        }
    }

    fn push(&mut self, message: Message) {
        if !message.files.is_empty() {
            let at = self.popped.saturating_add(self.messages.len() as u64);
            self.files.push_back((at, Arc::clone(&message.files)));
        }
        self.weight = self.weight.saturating_add(message.weight);
        self.messages.push_back(Arc::new(message));
    }

    /// Takes the first message away.
    pub fn pop(&mut self) -> Option<Arc<Message>> {
        let first = self.messages.pop_front()?;
        self.head = 0;
        self.forget_first_files();
        self.popped = self.popped.saturating_add(1);
        self.weight = self.weight.saturating_sub(first.weight);
        Some(first)
    }

    /// The first bytes of a stream, at most `max`, of one sender if `by_sender`. What follows descriptions waits.
    fn stream_bytes(&self, max: usize, by_sender: BySender) -> Arrived {
        let mut arrived = Arrived::default();
        let mut skip = self.head;
        for (index, message) in self.messages.iter().enumerate() {
            let left = max.saturating_sub(arrived.bytes.len());
            let is_other = by_sender == BySender::Yes && message.credentials != arrived.credentials;
            if index > 0 && (left == 0 || is_other) {
                break;
            }
            if index == 0 {
                arrived.credentials = message.credentials;
                arrived.from.clone_from(&message.from);
            }
            let at = arrived.bytes.len();
            let end = skip.saturating_add(left);
            arrived.bytes.push(&message.bytes, skip..end);
            skip = 0;
            if !message.files.is_empty() {
                arrived.files = message.files.to_vec();
                arrived.files_at = at;
                break;
            }
        }
        arrived.len_bytes = arrived.bytes.len();
        arrived
    }
}

/// Says if a read of a stream ends where another sender's bytes begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum BySender {
    No,
    Yes,
}

impl Socket {
    /// The first bytes, at most `max`, without taking them. `Ok(None)` if there is nothing yet; of a
    /// socket whose peer will send no more, nothing at all.
    ///
    /// # Errors
    /// `ECONNRESET` once, if the peer closed without receiving everything. `EINVAL` or `ENOTCONN` of one that was never
    /// connected and should be.
    pub fn arrived(&mut self, max: usize) -> Result<Option<Arrived>, Errno> {
        if self.is_tcp() {
            return self.tcp_arrived(max);
        }
        if !self.is_connected() {
            match self.kind {
                SocketKind::Stream => return Err(Errno::EINVAL),
                SocketKind::SeqPacket => return Err(Errno::ENOTCONN),
                SocketKind::Datagram => {}
            }
        }
        // Of a stream what is queued comes first, of messages the error does (af_unix.c, datagram.c).
        if self.kind != SocketKind::Stream
            && let Some(error) = self.error.take()
        {
            return Err(error);
        }
        let Some(first) = self.queue.messages.front() else {
            if let Some(error) = self.error.take() {
                return Err(error);
            }
            let nothing = Arrived {
                is_end: true,
                ..Arrived::default()
            };
            return Ok(self.shut.contains(Shut::RECEIVE).then_some(nothing));
        };
        if self.kind == SocketKind::Stream {
            let by_sender = match self.options.passes_credentials() {
                true => BySender::Yes,
                false => BySender::No,
            };
            return Ok(Some(self.queue.stream_bytes(max, by_sender)));
        }
        let mut bytes = Pieces::default();
        bytes.push(&first.bytes, 0..max);
        Ok(Some(Arrived {
            bytes,
            len_bytes: first.bytes.len(),
            is_end: false,
            from: first.from.clone(),
            files: first.files.to_vec(),
            files_at: 0,
            credentials: first.credentials,
            ip: first.ip,
        }))
    }

    /// As [`Socket::arrived`], of TCP (tcp_recvmsg).
    fn tcp_arrived(&mut self, max: usize) -> Result<Option<Arrived>, Errno> {
        if self.is_listening() {
            return Err(Errno::ENOTCONN);
        }
        if !self.queue.is_empty() {
            return Ok(Some(Arrived {
                from: None,
                ..self.queue.stream_bytes(max, BySender::No)
            }));
        }
        let end = Arrived {
            is_end: true,
            ..Arrived::default()
        };
        if self.is_done {
            return Ok(Some(end));
        }
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if self.shut.contains(Shut::RECEIVE) {
            return Ok(Some(end));
        }
        match self.link {
            Link::None => Err(Errno::ENOTCONN),
            Link::Connecting(_) | Link::Open(_) | Link::Closed | Link::Listening(_) => Ok(None),
        }
    }

    /// The answer to bytes that a TCP socket sends, if they go nowhere (tcp_sendmsg).
    fn tcp_unsent(&mut self, id: ObjectId, len: usize) -> Option<Result<usize, Unsent>> {
        if self.error.is_some() || self.shut.contains(Shut::SEND) {
            let error = self.error.take().unwrap_or(Errno::EPIPE);
            return Some(Err(error.into()));
        }
        match self.link {
            Link::Open(_) => None,
            Link::None | Link::Listening(_) => Some(Err(Errno::EPIPE.into())),
            Link::Connecting(_) => Some(Err(Unsent::NoRoom(Source::Object(id)))),
            // The other side is gone, and answers by RST.
            Link::Closed => {
                self.reset();
                Some(Ok(len))
            }
        }
    }

    /// True if messages to it are to tell who sends them (unix_maybe_add_creds).
    fn asks_for_sender(&self) -> bool {
        self.is_pending || self.options.passes_credentials()
    }

    /// Why nothing can be sent to whom it is connected to, if so.
    fn send_error(&mut self) -> Option<Errno> {
        if self.kind != SocketKind::Stream
            && let Some(error) = self.error.take()
        {
            return Some(error);
        }
        let is_shut = self.shut.contains(Shut::SEND);
        match self.link {
            Link::None | Link::Listening(_) | Link::Connecting(_) if self.kind.is_connection() => {
                Some(Errno::ENOTCONN)
            }
            _ if is_shut => Some(Errno::EPIPE),
            Link::Open(_) => None,
            Link::Closed => {
                (self.link, self.peer_name) = (Link::None, None);
                Some(Errno::ECONNREFUSED)
            }
            Link::None | Link::Listening(_) | Link::Connecting(_) => Some(Errno::ENOTCONN),
        }
    }
}

/// The events that a receiver's wait queue is woken with (sock_def_readable).
const ARRIVAL: i16 = POLLIN | POLLPRI | POLLRDNORM | POLLRDBAND;

/// The reason why a message is not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsent {
    /// The call fails.
    Failed(Errno),
    /// There is no room before this source is ready.
    NoRoom(Source),
}

impl From<Errno> for Unsent {
    fn from(error: Errno) -> Self {
        Self::Failed(error)
    }
}

/// Sends one message, or as much of a stream as has room: the number of bytes. It goes to `to`, or to whom the socket
/// is connected to. The descriptions in `ancillary` gain a reference each.
///
/// # Errors
/// `EMSGSIZE`, `EPIPE` where the peer receives no more. For a datagram to a closed peer `ECONNREFUSED`, and then
/// `ENOTCONN`. `EPERM` for one to a socket that is connected to another. `ENOMEM` at the memory limit.
pub fn send(
    kernel: &mut Kernel,
    memory: &mut GuestMemory,
    ends: (ObjectId, Option<ObjectId>),
    payload: Payload<'_>,
    ancillary: &Ancillary,
) -> Result<usize, Unsent> {
    // However many messages it makes, the receiver is woken once.
    kernel.with_wakes_held(|kernel| queue_bytes(kernel, memory, ends, payload, ancillary))
}

fn queue_bytes(
    kernel: &mut Kernel,
    memory: &mut GuestMemory,
    (id, to): (ObjectId, Option<ObjectId>),
    payload: Payload<'_>,
    ancillary: &Ancillary,
) -> Result<usize, Unsent> {
    let bytes = payload.bytes;
    let socket = kernel.objects.sockets.get_mut(id)?;
    let is_stream = socket.kind == SocketKind::Stream;
    let limit = match socket.is_tcp() {
        true => usize::try_from(socket.in_flight_max()).unwrap_or(usize::MAX),
        false => socket.options.sndbuf as usize,
    };
    if socket.is_tcp()
        && let Some(answer) = socket.tcp_unsent(id, bytes.len())
    {
        if answer.is_ok() {
            // It has been reset.
            kernel.wake(Source::Object(id), 0);
        }
        return answer;
    }
    if !is_stream && bytes.len() > limit.saturating_sub(32) {
        return Err(Errno::EMSGSIZE.into());
    }
    let to = match to {
        Some(to) => {
            if let Some(error) = socket.error.take() {
                return Err(error.into());
            }
            if socket.shut.contains(Shut::SEND) {
                return Err(Errno::EPIPE.into());
            }
            to
        }
        None => {
            if let Some(error) = socket.send_error() {
                return Err(error.into());
            }
            let Link::Open(to) = socket.link else {
                return Err(Errno::ENOTCONN.into());
            };
            to
        }
    };
    let from = socket.name.clone();
    let tells_sender =
        socket.options.passes_credentials() || kernel.objects.sockets.get(to)?.asks_for_sender();
    // Linux differs: descriptions stay in the sandbox.
    if !ancillary.files.is_empty() && kernel.objects.sockets.ends.contains(&to) {
        return Err(Errno::EOPNOTSUPP.into());
    }
    let credentials = ancillary
        .given
        .or_else(|| tells_sender.then_some(ancillary.sender));
    check_receiver(kernel, id, to)?;
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
        // Descriptions come with the first bytes.
        let files: &[FileId] = if done == 0 { &ancillary.files } else { &[] };
        let weight = weight(part.len());
        let failed = if socket.sent >= limit as u64 {
            Some(Unsent::NoRoom(Source::Object(id)))
        } else {
            let unused = payload.unused_bytes(part);
            let charged = memory.charge(charged_bytes(weight, unused, files.len()));
            charged.err().map(|_| Errno::ENOMEM.into())
        };
        match failed {
            Some(error) if done == 0 => return Err(error),
            Some(_) => break,
            None => {}
        }
        socket.sent = socket.sent.saturating_add(weight);
        super::rights::hold(kernel, files);
        let peer = kernel.objects.sockets.get_mut(to)?;
        peer.queue.push(Message {
            bytes: payload.queued(memory, part),
            weight,
            sender: Some(id),
            from: from.clone(),
            files: match files {
                [] => Arc::default(),
                files => Arc::from(files),
            },
            credentials,
            ip: None,
        });
        done = done.saturating_add(part.len());
        kernel.wake(Source::Object(to), ARRIVAL);
        if !is_stream {
            break;
        }
    }
    Ok(done)
}

/// Queues a message that is charged already, and wakes who waits for it.
///
/// # Errors
/// As [`super::Sockets::get`].
pub(super) fn deliver(kernel: &mut Kernel, to: ObjectId, message: Message) -> Result<(), Errno> {
    kernel.objects.sockets.get_mut(to)?.queue.push(message);
    kernel.wake(Source::Object(to), ARRIVAL);
    Ok(())
}

/// Refuses what a receiver does not take from this sender, or not now.
fn check_receiver(kernel: &Kernel, id: ObjectId, to: ObjectId) -> Result<(), Unsent> {
    let peer = kernel.objects.sockets.get(to)?;
    if peer.kind == SocketKind::Datagram {
        // unix_may_send()
        if matches!(peer.link, Link::Open(other) if other != id) {
            return Err(Errno::EPERM.into());
        }
    }
    // TCP goes on receiving what nobody will read.
    if peer.shut.contains(Shut::RECEIVE) && !peer.is_tcp() {
        return Err(Errno::EPIPE.into());
    }
    if to != id && peer.link != Link::Open(id) && peer.is_crowded() {
        return Err(Unsent::NoRoom(Source::Object(to)));
    }
    Ok(())
}

/// Takes `count` bytes of a stream, or the first message, away. The descriptions in what has been taken are the
/// caller's, with a reference each.
///
/// # Errors
/// As [`super::Sockets::get`].
pub fn consume(
    kernel: &mut Kernel,
    memory: &mut GuestMemory,
    id: ObjectId,
    count: usize,
) -> Result<Vec<FileId>, Errno> {
    // However many messages are taken, each sender is woken once.
    kernel.with_wakes_held(|kernel| take(kernel, memory, id, count))
}

fn take(
    kernel: &mut Kernel,
    memory: &mut GuestMemory,
    id: ObjectId,
    count: usize,
) -> Result<Vec<FileId>, Errno> {
    let mut files = Vec::new();
    let mut left = count;
    loop {
        let socket = kernel.objects.sockets.get_mut(id)?;
        let is_stream = socket.kind == SocketKind::Stream;
        let was_crowded = socket.is_crowded();
        let Some(first) = socket.queue.messages.front_mut() else {
            break;
        };
        let rest = first.bytes.len().saturating_sub(socket.queue.head);
        // Who asks for no bytes gets the descriptions that come with the first (unix_stream_read_generic).
        if is_stream && left == 0 && count > 0 {
            break;
        }
        if is_stream && left < rest {
            // The first byte takes them all.
            let taken = core::mem::take(&mut Arc::make_mut(first).files);
            socket.queue.head = socket.queue.head.saturating_add(left);
            socket.queue.forget_first_files();
            memory.uncharge(charged_bytes(0, 0, taken.len()));
            files.extend(super::rights::taken(kernel, &taken));
            break;
        }
        left = left.saturating_sub(rest);
        let Some(message) = socket.queue.pop() else {
            break;
        };
        let is_crowded = socket.is_crowded();
        files.extend(received(kernel, memory, message));
        if was_crowded && !is_crowded {
            has_room(kernel, id);
        }
        if !is_stream {
            break;
        }
    }
    Ok(files)
}

/// Notes that a message has been received or dropped: the descriptions that were in it.
pub(super) fn received(
    kernel: &mut Kernel,
    memory: &mut GuestMemory,
    message: Arc<Message>,
) -> Vec<FileId> {
    memory.uncharge(message.charged_bytes());
    if let Some(id) = message.sender
        && let Ok(sender) = kernel.objects.sockets.get_mut(id)
    {
        sender.sent = sender.sent.saturating_sub(message.weight);
        if sender.is_writable() {
            kernel.wake(Source::Object(id), SPACE);
        }
    }
    let files = super::rights::taken(kernel, &message.files);
    // A frozen program or another fork may still have it.
    if let Some(message) = Arc::into_inner(message) {
        memory.spare_blocks.give_back(message.bytes);
    }
    files
}

/// A datagram socket takes messages again: wakes who waits to send to it.
pub(super) fn has_room(kernel: &mut Kernel, id: ObjectId) {
    kernel.sched.wake_source(Source::Object(id));
    let Ok(socket) = kernel.objects.sockets.get(id) else {
        return;
    };
    for sender in socket.connected.clone() {
        kernel.wake(Source::Object(sender), SPACE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_takes_no_more_than_it_is_charged() {
        // Both counts of an Arc, and what an allocator adds.
        const OVERHEAD: usize = 32;
        // What a vector allocates beyond the few elements that lie in it.
        let chunk = 64 * size_of_val(Queue::default().messages.iter().next().unwrap_or(&one()));
        let each = size_of::<Message>() + 3 * OVERHEAD + 1;
        assert!(each as u64 <= weight(1), "{each}");
        assert!(chunk as u64 <= weight(1), "{chunk}");
    }

    fn one() -> Arc<Message> {
        let name = Name::Netlink(0);
        Arc::new(Message::datagram(b"x", name, None))
    }
}
