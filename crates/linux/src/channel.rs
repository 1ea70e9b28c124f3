//! Messages between the program and its host: two bounded queues and the count of forks.
//!
//! The program asks for its next message with kvmlet_receive and answers with kvmlet_send
//! ([`crate::syscalls::channel`]). A thread that waits for a message while there is none is at the
//! **ready point**. The program then has nothing to do but to be given work.

use std::sync::Arc;

use imbl::Vector;
use kvmlet_abi::Errno;

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
    messages: Vector<Arc<[u8]>>,
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
        self.messages.push_back(message);
        Ok(())
    }

    /// The next message, which stays.
    #[must_use]
    pub fn front(&self) -> Option<&Arc<[u8]>> {
        self.messages.front()
    }

    /// Takes the next message.
    pub fn pop(&mut self) -> Option<Arc<[u8]>> {
        let message = self.messages.pop_front()?;
        self.bytes = self.bytes.saturating_sub(message.len());
        Some(message)
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
}

impl Channel {
    /// Drops all messages, in both directions. A sender that waits for room is not woken.
    pub fn clear(&mut self) {
        self.inbox = Queue::default();
        self.outbox = Queue::default();
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
