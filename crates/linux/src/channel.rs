//! Messages between the program and its host: two bounded queues and the count of forks.
//!
//! The program asks for its next message with kvmlet_receive and answers with kvmlet_send
//! ([`crate::syscalls::channel`]). A thread that waits for a message while there is none is at the
//! **ready point**. The program then has nothing to do but to be given work.
//!
//! A message may be a question that somebody waits for the answer of. The host gives it a number other than 0. The
//! thread that has received it answers with what it sends next.

use std::sync::Arc;

use imbl::{OrdMap, Vector};
use kvmlet_abi::Errno;

use crate::asks::Asks;

/// Bytes of one message at most.
pub const MESSAGE_MAX: usize = 16 << 20;
/// Bytes waiting in one direction at most.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Messages waiting in one direction at most.
pub const QUEUE_LEN_MAX: usize = 65_536;

/// Why a message was not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PostError {
    /// It is longer than [`MESSAGE_MAX`].
    #[error("the message has {len_bytes} bytes; the limit is {MESSAGE_MAX}: send it in parts")]
    TooLong {
        /// Its length in bytes.
        len_bytes: usize,
    },
    /// Too much is waiting already.
    #[error(
        "the program has not received {waiting} earlier messages ({waiting_bytes} bytes): \
         wait for its answers first"
    )]
    Full {
        /// Messages waiting.
        waiting: usize,
        /// Their bytes.
        waiting_bytes: usize,
    },
}

/// Messages in one direction, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Queue {
    /// Each with the number of its question, 0 if it belongs to none.
    messages: Vector<(u64, Arc<[u8]>)>,
    bytes: usize,
}

impl Queue {
    /// True if a message of `len_bytes` (at most [`MESSAGE_MAX`]) may be added.
    #[must_use]
    pub fn has_room(&self, len_bytes: usize) -> bool {
        self.messages.len() < QUEUE_LEN_MAX
            && self.bytes.saturating_add(len_bytes) <= QUEUE_BYTES_MAX
    }

    /// Adds a message.
    ///
    /// # Errors
    /// [`PostError`]; the queue is unchanged then.
    pub fn push(&mut self, message: Arc<[u8]>) -> Result<(), PostError> {
        self.push_numbered(0, message)
    }

    /// Adds a message that belongs to the question with this number.
    ///
    /// # Errors
    /// As [`Queue::push`].
    pub fn push_numbered(&mut self, number: u64, message: Arc<[u8]>) -> Result<(), PostError> {
        let len_bytes = message.len();
        if len_bytes > MESSAGE_MAX {
            return Err(PostError::TooLong { len_bytes });
        }
        if !self.has_room(len_bytes) {
            return Err(PostError::Full {
                waiting: self.messages.len(),
                waiting_bytes: self.bytes,
            });
        }
        self.bytes = self.bytes.saturating_add(len_bytes);
        self.messages.push_back((number, message));
        Ok(())
    }

    /// The next message, which stays.
    #[must_use]
    pub fn front(&self) -> Option<&Arc<[u8]>> {
        self.messages.front().map(|(_, message)| message)
    }

    /// Takes the next message.
    pub fn pop(&mut self) -> Option<Arc<[u8]>> {
        self.pop_numbered().map(|(_, message)| message)
    }

    /// Takes the next message with the number of its question.
    pub fn pop_numbered(&mut self) -> Option<(u64, Arc<[u8]>)> {
        let (number, message) = self.messages.pop_front()?;
        self.bytes = self.bytes.saturating_sub(message.len());
        Some((number, message))
    }

    /// Messages waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// True if no message is waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

/// Says if there is anybody to exchange messages with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Peer {
    /// Nobody: the calls give `ENOSYS`, as Linux does, and the program uses its standard streams.
    #[default]
    Absent,
    /// The host sends and takes messages.
    Present,
}

/// The channel of one program.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Channel {
    /// Says if the host takes part.
    pub peer: Peer,
    /// Messages for the program.
    pub inbox: Queue,
    /// Messages from the program.
    pub outbox: Queue,
    /// 0 in the program that was started; the owner gives every fork, and every fork after each
    /// reset, a number that no other has (kvmlet_generation).
    pub generation: u64,
    /// The questions that threads have received and not answered, by the thread's id.
    held: OrdMap<i32, u64>,
    /// Questions that nobody will answer any more.
    pub unanswered: Vector<u64>,
    /// The program's own questions to others.
    pub asks: Asks,
}

impl Channel {
    /// Takes the next message for a thread. It does not answer any more what it had received before.
    pub fn receive(&mut self, tid: i32) -> Option<Arc<[u8]>> {
        let (number, message) = self.inbox.pop_numbered()?;
        self.let_go(tid);
        if number != 0 {
            self.held.insert(tid, number);
        }
        Some(message)
    }

    /// Queues a message of a thread: the answer to what it has received, if that was a question.
    ///
    /// # Errors
    /// As [`Queue::push`].
    pub fn send(&mut self, tid: i32, message: Arc<[u8]>) -> Result<(), PostError> {
        let number = self.held.get(&tid).copied().unwrap_or(0);
        self.outbox.push_numbered(number, message)?;
        self.held.remove(&tid);
        Ok(())
    }

    /// A thread answers no more what it has received.
    pub fn let_go(&mut self, tid: i32) {
        if let Some(number) = self.held.remove(&tid) {
            self.unanswered.push_back(number);
        }
    }

    /// Succeeds if the program's calls have anybody to serve them.
    ///
    /// # Errors
    /// `ENOSYS` when the host does not take part.
    pub fn attached(&self) -> Result<(), Errno> {
        match self.peer {
            Peer::Present => Ok(()),
            Peer::Absent => Err(Errno::ENOSYS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_leave_in_order_and_give_their_room_back() {
        let mut queue = Queue::default();
        for text in [&b"one"[..], b"", b"three"] {
            queue.push(Arc::from(text)).unwrap();
        }
        assert_eq!((queue.len(), queue.bytes), (3, 8));
        let all: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(all.len(), 3);
        assert_eq!(&*all[2], b"three");
        assert_eq!(queue, Queue::default());
    }

    #[test]
    fn a_thread_answers_what_it_has_received() {
        let text = |text: &str| -> Arc<[u8]> { Arc::from(text.as_bytes()) };
        let mut channel = Channel::default();
        for (number, word) in [(7, "a"), (8, "b"), (9, "c"), (0, "d")] {
            channel.inbox.push_numbered(number, text(word)).unwrap();
        }
        assert_eq!(channel.receive(1), Some(text("a")));
        assert_eq!(channel.receive(2), Some(text("b")));
        channel.send(2, text("to b")).unwrap();
        channel.send(2, text("to nobody")).unwrap();
        // One that asks for the next message has no answer to the last, and neither has one that ends.
        assert_eq!(channel.receive(1), Some(text("c")));
        channel.let_go(1);
        assert_eq!(channel.receive(1), Some(text("d")));
        channel.send(1, text("to d")).unwrap();
        let sent: Vec<_> = std::iter::from_fn(|| channel.outbox.pop_numbered()).collect();
        let expected = [(8, "to b"), (0, "to nobody"), (0, "to d")];
        assert_eq!(sent, expected.map(|(number, word)| (number, text(word))));
        assert_eq!(channel.unanswered, Vector::from(vec![7, 9]));
    }

    #[test]
    fn a_queue_is_bounded_in_bytes_and_in_messages() {
        let mut queue = Queue::default();
        let large: Arc<[u8]> = Arc::from(vec![0; MESSAGE_MAX]);
        let too_long: Arc<[u8]> = Arc::from(vec![0; MESSAGE_MAX + 1]);
        assert_eq!(
            queue.push(too_long),
            Err(PostError::TooLong {
                len_bytes: MESSAGE_MAX + 1
            })
        );
        for _ in 0..QUEUE_BYTES_MAX / MESSAGE_MAX {
            queue.push(Arc::clone(&large)).unwrap();
        }
        assert!(matches!(
            queue.push(Arc::from(&b"x"[..])),
            Err(PostError::Full { waiting: 4, .. })
        ));
        assert!(queue.has_room(0));
        let mut queue = Queue::default();
        let empty: Arc<[u8]> = Arc::from(&b""[..]);
        for _ in 0..QUEUE_LEN_MAX {
            queue.push(Arc::clone(&empty)).unwrap();
        }
        assert!(queue.push(empty).is_err());
    }
}
