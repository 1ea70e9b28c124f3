//! Pipes (pipe(7)) as values.

use std::sync::Arc;

use imbl::{OrdMap, Vector};
use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::FileTime;
use kvmlet_mem::GuestMemory;

use super::tmpfs::InodeId;
use crate::fd::{OnExec, OpenFile};
pub use crate::id::PipeId;
use crate::kernel::Tid;

/// Writes of at most this many bytes are not mixed with others (pipe(7)).
pub const PIPE_BUF: usize = 4096;
/// Capacity of a new pipe in bytes.
pub const CAPACITY_BYTES: usize = 64 << 10;
/// Largest capacity F_SETPIPE_SZ gives (/proc/sys/fs/pipe-max-size).
pub const CAPACITY_MAX_BYTES: usize = 1 << 20;

/// The source that waiters for file locks wait on; no pipe has this number.
pub const LOCKS_SOURCE: PipeId = 0;
/// The source that opens wait on which leases are in the way of; no pipe gets as far.
pub const LEASES_SOURCE: PipeId = PipeId::MAX;

/// All pipes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pipes {
    pipes: OrdMap<PipeId, Pipe>,
    next: PipeId,
    /// Pipes of the named pipes that are open.
    pub(super) named: OrdMap<InodeId, PipeId>,
    /// Threads that wait in open(2) for the other end of a named pipe.
    pub(super) opening: OrdMap<Tid, HalfOpen>,
}

/// A named pipe one end of which is being opened: it counts as open already (fifo(7)).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HalfOpen {
    /// The description it will have.
    pub file: OpenFile,
    /// Says if the descriptor is closed by execve(2).
    pub on_exec: OnExec,
    /// Number of times that the other end had been opened when the wait began.
    pub other_opens: u64,
}

/// Bytes written together.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Chunk {
    bytes: Arc<[u8]>,
    /// Written with O_DIRECT: one read takes it, and drops what it does not take (pipe(2)).
    packet: bool,
}

/// The form in which bytes are written (pipe(2), O_DIRECT).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteAs {
    /// Without limits between writes.
    Stream,
    /// As packets of at most [`PIPE_BUF`] bytes.
    Packets,
}

impl Default for Pipes {
    fn default() -> Self {
        Self {
            pipes: OrdMap::new(),
            next: LOCKS_SOURCE.saturating_add(1),
            named: OrdMap::new(),
            opening: OrdMap::new(),
        }
    }
}

/// One pipe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pipe {
    /// Bytes that were written and not yet read; no chunk is empty.
    chunks: Vector<Chunk>,
    /// Bytes of the first chunk already read.
    head: usize,
    /// Bytes in the pipe.
    len: usize,
    /// Bytes of its capacity in use: a packet takes a page.
    used: usize,
    /// Packets in the pipe.
    packets: usize,
    /// Bytes of all chunks: what is charged to the memory limit.
    held: usize,
    /// Bytes it may hold.
    pub capacity: usize,
    /// Descriptions open for reading.
    pub readers: u32,
    /// Descriptions open for writing.
    pub writers: u32,
    /// Number of times that an end was opened for reading.
    pub reader_opens: u64,
    /// Number of times that an end was opened for writing.
    pub writer_opens: u64,
    /// The inode of a named pipe.
    pub inode: Option<InodeId>,
    /// Creation time.
    pub created: FileTime,
}

impl Pipe {
    /// Bytes waiting to be read (FIONREAD).
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if nothing waits to be read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that can be written now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(self.used)
    }

    /// True if any packet waits to be read.
    #[must_use]
    pub fn has_packets(&self) -> bool {
        self.packets > 0
    }

    /// True if poll(2) says that it cannot be written: less than a page of room is no room
    /// (pipe_full() in fs/pipe.c).
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.room() < PIPE_BUF
    }

    /// The bytes that the next read takes, at most `max` and at most one packet, without taking them.
    #[must_use]
    pub fn peek(&self, max: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(max.min(self.len));
        let mut skip = self.head;
        for chunk in &self.chunks {
            let left = max.saturating_sub(out.len());
            if left == 0 {
                break;
            }
            let rest = chunk.bytes.get(skip..).unwrap_or_default();
            out.extend_from_slice(rest.get(..left).unwrap_or(rest));
            skip = 0;
            if chunk.packet {
                break;
            }
        }
        out
    }

    /// Takes `count` bytes away from the front, and the whole of a packet of which any is taken.
    fn consume(&mut self, count: usize) {
        let mut left = count.min(self.len);
        while left > 0 {
            let Some(first) = self.chunks.front() else {
                break;
            };
            let (len, packet) = (first.bytes.len(), first.packet);
            let rest = len.saturating_sub(self.head);
            let taken = if packet { rest } else { left.min(rest) };
            self.len = self.len.saturating_sub(taken);
            let used = if packet { PIPE_BUF } else { taken };
            self.used = self.used.saturating_sub(used);
            self.packets = self.packets.saturating_sub(usize::from(packet));
            if taken < rest {
                self.head = self.head.saturating_add(taken);
                break;
            }
            left = left.saturating_sub(rest);
            self.head = 0;
            self.held = self.held.saturating_sub(len);
            self.chunks.pop_front();
        }
    }

    fn push_packet(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.len = self.len.saturating_add(bytes.len());
        self.held = self.held.saturating_add(bytes.len());
        self.used = self.used.saturating_add(PIPE_BUF);
        self.packets = self.packets.saturating_add(1);
        self.chunks.push_back(Chunk {
            bytes: Arc::from(bytes),
            packet: true,
        });
    }

    /// Appends bytes; the caller has checked [`Pipe::room`].
    fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        // Small writes are gathered, so that many of them do not take many times their size.
        if let Some(last) = self.chunks.back()
            && self.chunks.len() > 1
            && !last.packet
            && last.bytes.len().saturating_add(bytes.len()) <= PIPE_BUF
        {
            let joined: Arc<[u8]> = [&last.bytes, bytes].concat().into();
            self.chunks.pop_back();
            self.chunks.push_back(Chunk {
                bytes: joined,
                packet: false,
            });
        } else {
            self.chunks.push_back(Chunk {
                bytes: Arc::from(bytes),
                packet: false,
            });
        }
        self.len = self.len.saturating_add(bytes.len());
        self.used = self.used.saturating_add(bytes.len());
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
        if size < self.used {
            return Err(Errno::EBUSY);
        }
        self.capacity = size;
        Ok(size)
    }
}

impl Pipes {
    /// A new pipe with one reader and one writer.
    pub fn create(&mut self, now: FileTime) -> PipeId {
        self.insert(now, None, 1)
    }

    /// The pipe of a named pipe; a new one has no open end.
    pub(super) fn of_inode(&mut self, inode: InodeId, now: FileTime) -> PipeId {
        if let Some(id) = self.named.get(&inode) {
            return *id;
        }
        let id = self.insert(now, Some(inode), 0);
        self.named.insert(inode, id);
        id
    }

    fn insert(&mut self, created: FileTime, inode: Option<InodeId>, ends: u32) -> PipeId {
        let id = self.next;
        self.next = self.next.saturating_add(1);
        let pipe = Pipe {
            chunks: Vector::new(),
            head: 0,
            len: 0,
            used: 0,
            packets: 0,
            held: 0,
            capacity: CAPACITY_BYTES,
            readers: ends,
            writers: ends,
            reader_opens: u64::from(ends),
            writer_opens: u64::from(ends),
            inode,
            created,
        };
        self.pipes.insert(id, pipe);
        id
    }

    /// True if any thread waits for the other end of a named pipe.
    #[must_use]
    pub fn is_opening(&self) -> bool {
        !self.opening.is_empty()
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
    /// The content of a pipe is charged to the memory limit.
    ///
    /// # Errors
    /// `EPIPE` without readers, `EAGAIN` without room, `ENOMEM` at the memory limit.
    pub fn write(
        &mut self,
        memory: &mut GuestMemory,
        id: PipeId,
        bytes: &[u8],
        how: WriteAs,
    ) -> Result<usize, Errno> {
        let pipe = self.get_mut(id)?;
        if pipe.readers == 0 {
            return Err(Errno::EPIPE);
        }
        let room = pipe.room();
        if room == 0 || bytes.len() <= PIPE_BUF && room < bytes.len() {
            return Err(Errno::EAGAIN);
        }
        let room = match how {
            WriteAs::Stream => room,
            // A packet needs a page whatever its length.
            WriteAs::Packets if room < PIPE_BUF => return Err(Errno::EAGAIN),
            WriteAs::Packets => room - room % PIPE_BUF,
        };
        let part = bytes.get(..room).unwrap_or(bytes);
        memory
            .charge(part.len() as u64)
            .map_err(|_| Errno::ENOMEM)?;
        match how {
            WriteAs::Stream => pipe.push(part),
            WriteAs::Packets => part
                .chunks(PIPE_BUF)
                .for_each(|packet| pipe.push_packet(packet)),
        }
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
            if let Some(inode) = pipe.inode {
                self.named.remove(&inode);
            }
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
            pipes.write(&mut memory, id, &[1; 100_000], WriteAs::Stream),
            Ok(CAPACITY_BYTES)
        );
        assert_eq!(
            pipes.write(&mut memory, id, b"x", WriteAs::Stream),
            Err(Errno::EAGAIN)
        );
        assert_eq!(memory.used_bytes(), empty + CAPACITY_BYTES as u64);
        pipes.consume(&mut memory, id, CAPACITY_BYTES - 1).unwrap();
        pipes.consume(&mut memory, id, 1).unwrap();
        assert_eq!(memory.used_bytes(), empty);
        pipes
            .write(&mut memory, id, b"left", WriteAs::Stream)
            .unwrap();
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

    #[test]
    fn a_read_takes_one_packet_and_a_packet_takes_a_page() {
        let mut memory = GuestMemory::new(1 << 20).unwrap();
        let mut pipes = Pipes::default();
        let id = pipes.create(FileTime::default());
        let mut write =
            |pipes: &mut Pipes, bytes: &[u8]| pipes.write(&mut memory, id, bytes, WriteAs::Packets);
        assert_eq!(write(&mut pipes, b"first"), Ok(5));
        assert_eq!(write(&mut pipes, b"second"), Ok(6));
        assert_eq!(write(&mut pipes, &[7; 5000]), Ok(5000));
        for _ in 4..16 {
            assert_eq!(write(&mut pipes, b"x"), Ok(1));
        }
        assert_eq!(write(&mut pipes, b"x"), Err(Errno::EAGAIN));
        let pipe = pipes.get_mut(id).unwrap();
        assert_eq!(pipe.len(), 5 + 6 + 5000 + 12);
        assert_eq!(pipe.peek(3), b"fir");
        pipe.consume(3);
        assert_eq!(pipe.peek(100), b"second");
        pipe.consume(6);
        assert_eq!(pipe.peek(10_000).len(), 4096);
        pipe.consume(4096);
        assert_eq!(pipe.peek(10_000).len(), 5000 - 4096);
        pipe.consume(904);
        for _ in 4..16 {
            pipe.consume(1);
        }
        assert!(pipe.is_empty());
        assert_eq!((pipe.room(), pipe.held), (CAPACITY_BYTES, 0));
    }
}
