//! Pipes (pipe(7)) as values.

use std::sync::Arc;

use imbl::{OrdMap, Vector};
use kvmlet_abi::Errno;
use kvmlet_mem::GuestMemory;

use super::attr::FileTime;

/// Writes of at most this many bytes are not mixed with others (pipe(7)).
pub const PIPE_BUF: usize = 4096;
/// Capacity of a new pipe in bytes.
pub const CAPACITY_BYTES: usize = 64 << 10;
/// Largest capacity F_SETPIPE_SZ gives (/proc/sys/fs/pipe-max-size).
pub const CAPACITY_MAX_BYTES: usize = 1 << 20;

/// Name of a pipe, also as a [`crate::outcome::Source`].
pub type PipeId = u64;

/// The source that waiters for file locks wait on; no pipe has this number.
pub const LOCKS_SOURCE: PipeId = 0;

/// All pipes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pipes {
    pipes: OrdMap<PipeId, Pipe>,
    next: PipeId,
}

impl Default for Pipes {
    fn default() -> Self {
        Self {
            pipes: OrdMap::new(),
            next: LOCKS_SOURCE.saturating_add(1),
        }
    }
}

/// One pipe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pipe {
    /// What was written and not yet read; no chunk is empty.
    chunks: Vector<Arc<[u8]>>,
    /// Bytes of the first chunk already read.
    head: usize,
    /// Bytes in the pipe.
    len: usize,
    /// Bytes of all chunks: what is charged to the memory limit.
    held: usize,
    /// Bytes it may hold.
    pub capacity: usize,
    /// Descriptions open for reading.
    pub readers: u32,
    /// Descriptions open for writing.
    pub writers: u32,
    /// Creation time.
    pub created: FileTime,
}

impl Pipe {
    /// Bytes waiting to be read (FIONREAD).
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits to be read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that can be written now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(self.len)
    }

    /// Whether poll(2) says that it cannot be written: less than a page of room is no room
    /// (pipe_full() in fs/pipe.c).
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.room() < PIPE_BUF
    }

    /// The first bytes, at most `max`, without taking them.
    #[must_use]
    pub fn peek(&self, max: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(max.min(self.len));
        let mut skip = self.head;
        for chunk in &self.chunks {
            let left = max.saturating_sub(out.len());
            if left == 0 {
                break;
            }
            let rest = chunk.get(skip..).unwrap_or_default();
            out.extend_from_slice(rest.get(..left).unwrap_or(rest));
            skip = 0;
        }
        out
    }

    /// Takes `count` bytes away from the front.
    fn consume(&mut self, count: usize) {
        let mut left = count.min(self.len);
        self.len = self.len.saturating_sub(left);
        while left > 0 {
            let Some(first) = self.chunks.front() else {
                break;
            };
            let rest = first.len().saturating_sub(self.head);
            if left < rest {
                self.head = self.head.saturating_add(left);
                break;
            }
            left = left.saturating_sub(rest);
            self.head = 0;
            self.held = self.held.saturating_sub(first.len());
            self.chunks.pop_front();
        }
    }

    /// Appends bytes; the caller has checked [`Pipe::room`].
    fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        // Small writes are gathered, so that many of them do not take many times their size.
        if let Some(last) = self.chunks.back()
            && self.chunks.len() > 1
            && last.len().saturating_add(bytes.len()) <= PIPE_BUF
        {
            let joined: Arc<[u8]> = [last, bytes].concat().into();
            self.chunks.pop_back();
            self.chunks.push_back(joined);
        } else {
            self.chunks.push_back(Arc::from(bytes));
        }
        self.len = self.len.saturating_add(bytes.len());
        self.held = self.held.saturating_add(bytes.len());
    }

    /// F_SETPIPE_SZ: rounds up to a power of two of pages.
    ///
    /// # Errors
    /// `EINVAL` for zero or too much, `EPERM` over the limit, `EBUSY` below what is in the pipe.
    pub fn resize(&mut self, wanted: u64) -> Result<usize, Errno> {
        let wanted = usize::try_from(wanted).map_err(|_| Errno::EINVAL)?;
        if wanted > i32::MAX as usize {
            return Err(Errno::EINVAL);
        }
        let size = wanted
            .max(PIPE_BUF)
            .checked_next_power_of_two()
            .ok_or(Errno::EINVAL)?;
        if size > CAPACITY_MAX_BYTES {
            return Err(Errno::EPERM);
        }
        if size < self.len {
            return Err(Errno::EBUSY);
        }
        self.capacity = size;
        Ok(size)
    }
}

impl Pipes {
    /// A new pipe with one reader and one writer.
    pub fn create(&mut self, now: FileTime) -> PipeId {
        let id = self.next;
        self.next = self.next.saturating_add(1);
        let pipe = Pipe {
            chunks: Vector::new(),
            head: 0,
            len: 0,
            held: 0,
            capacity: CAPACITY_BYTES,
            readers: 1,
            writers: 1,
            created: now,
        };
        self.pipes.insert(id, pipe);
        id
    }

    /// A pipe.
    ///
    /// # Errors
    /// `EBADF` if it is gone (never while an end is open).
    pub fn get(&self, id: PipeId) -> Result<&Pipe, Errno> {
        self.pipes.get(&id).ok_or(Errno::EBADF)
    }

    /// A pipe, to be changed.
    ///
    /// # Errors
    /// As [`Pipes::get`].
    pub fn get_mut(&mut self, id: PipeId) -> Result<&mut Pipe, Errno> {
        self.pipes.get_mut(&id).ok_or(Errno::EBADF)
    }

    /// Writes as much as has room now; writes of at most [`PIPE_BUF`] bytes are whole or not at all.
    /// What is in a pipe is charged to the memory limit.
    ///
    /// # Errors
    /// `EPIPE` without readers, `EAGAIN` without room, `ENOMEM` at the memory limit.
    pub fn write(
        &mut self,
        memory: &mut GuestMemory,
        id: PipeId,
        bytes: &[u8],
    ) -> Result<usize, Errno> {
        let pipe = self.get_mut(id)?;
        if pipe.readers == 0 {
            return Err(Errno::EPIPE);
        }
        let room = pipe.room();
        if room == 0 || bytes.len() <= PIPE_BUF && room < bytes.len() {
            return Err(Errno::EAGAIN);
        }
        let part = bytes.get(..room).unwrap_or(bytes);
        memory
            .charge(part.len() as u64)
            .map_err(|_| Errno::ENOMEM)?;
        pipe.push(part);
        Ok(part.len())
    }

    /// Takes `count` bytes away from the front of a pipe.
    ///
    /// # Errors
    /// As [`Pipes::get`].
    pub fn consume(
        &mut self,
        memory: &mut GuestMemory,
        id: PipeId,
        count: usize,
    ) -> Result<(), Errno> {
        let pipe = self.get_mut(id)?;
        let before = pipe.held;
        pipe.consume(count);
        memory.uncharge(before.saturating_sub(pipe.held) as u64);
        Ok(())
    }

    /// Removes a pipe none of whose ends is open.
    pub fn drop_if_closed(&mut self, memory: &mut GuestMemory, id: PipeId) {
        let closed = |pipe: &Pipe| pipe.readers == 0 && pipe.writers == 0;
        if self.pipes.get(&id).is_some_and(closed)
            && let Some(pipe) = self.pipes.remove(&id)
        {
            memory.uncharge(pipe.held as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn new_pipe() -> Pipe {
        let mut pipes = Pipes::default();
        let id = pipes.create(FileTime::default());
        pipes.get(id).unwrap().clone()
    }

    proptest! {
        #[test]
        fn bytes_come_out_in_order(steps in proptest::collection::vec((any::<bool>(), 0usize..9000), 1..60)) {
            let mut pipe = new_pipe();
            let mut model: Vec<u8> = Vec::new();
            let mut next = 0u8;
            for (write, count) in steps {
                if write {
                    let count = count.min(pipe.room());
                    let bytes: Vec<u8> = (0..count).map(|_| { next = next.wrapping_add(1); next }).collect();
                    pipe.push(&bytes);
                    model.extend(&bytes);
                } else {
                    let got = pipe.peek(count);
                    pipe.consume(got.len());
                    let expected: Vec<u8> = model.drain(..count.min(model.len())).collect();
                    prop_assert_eq!(got, expected);
                }
                prop_assert_eq!(pipe.len(), model.len());
                prop_assert!(pipe.len() <= pipe.capacity);
            }
        }
    }

    #[test]
    fn one_byte_writes_do_not_pile_up() {
        let mut pipe = new_pipe();
        for _ in 0..CAPACITY_BYTES {
            pipe.push(b"x");
        }
        assert!(pipe.chunks.len() < 100, "{}", pipe.chunks.len());
        assert_eq!(pipe.room(), 0);
    }

    #[test]
    fn what_is_in_a_pipe_is_charged() {
        let mut memory = GuestMemory::new(1 << 20).unwrap();
        let empty = memory.used_bytes();
        let mut pipes = Pipes::default();
        let id = pipes.create(FileTime::default());
        assert_eq!(
            pipes.write(&mut memory, id, &[1; 100_000]),
            Ok(CAPACITY_BYTES)
        );
        assert_eq!(pipes.write(&mut memory, id, b"x"), Err(Errno::EAGAIN));
        assert_eq!(memory.used_bytes(), empty + CAPACITY_BYTES as u64);
        pipes.consume(&mut memory, id, CAPACITY_BYTES - 1).unwrap();
        pipes.consume(&mut memory, id, 1).unwrap();
        assert_eq!(memory.used_bytes(), empty);
        pipes.write(&mut memory, id, b"left").unwrap();
        let pipe = pipes.get_mut(id).unwrap();
        (pipe.readers, pipe.writers) = (0, 0);
        pipes.drop_if_closed(&mut memory, id);
        assert_eq!(memory.used_bytes(), empty);
    }

    #[test]
    fn resizing() {
        let mut pipe = new_pipe();
        pipe.push(&[0; 5000]);
        assert_eq!(pipe.resize(4096), Err(Errno::EBUSY));
        assert_eq!(pipe.resize(5001), Ok(8192));
        assert_eq!(pipe.resize(2 << 20), Err(Errno::EPERM));
        assert_eq!(pipe.resize(u64::MAX), Err(Errno::EINVAL));
    }
}
