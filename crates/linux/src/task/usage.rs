//! The resources that threads and processes have used beside CPU time: what they have read and written
//! (proc_pid_io(5)), and memory at most (getrusage(2)).

use kvmlet_abi::Errno;
use kvmlet_mem::Spaces;

use crate::kernel::{Kernel, Process, Tid};
use crate::outcome::SysResult;

/// The way that a call moves bytes, for [`Io`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Moves {
    /// It moves none that are counted.
    #[default]
    None,
    /// It reads.
    In,
    /// It writes.
    Out,
    /// It reads and writes the same bytes.
    Through,
}

/// The bytes that calls have read and written, and those calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Io {
    read_bytes: u64,
    written_bytes: u64,
    reads: u64,
    writes: u64,
}

impl Io {
    /// Adds what another one has counted.
    pub fn add(&mut self, other: Self) {
        let sum = |to: &mut u64, more: u64| *to = to.saturating_add(more);
        sum(&mut self.read_bytes, other.read_bytes);
        sum(&mut self.written_bytes, other.written_bytes);
        sum(&mut self.reads, other.reads);
        sum(&mut self.writes, other.writes);
    }

    fn count(&mut self, moves: Moves, bytes: u64) {
        if matches!(moves, Moves::In | Moves::Through) {
            self.read_bytes = self.read_bytes.saturating_add(bytes);
            self.reads = self.reads.saturating_add(1);
        }
        if matches!(moves, Moves::Out | Moves::Through) {
            self.written_bytes = self.written_bytes.saturating_add(bytes);
            self.writes = self.writes.saturating_add(1);
        }
    }

    /// The text of /proc/PID/io. Linux differs: it also tells what a disk has given and taken.
    #[must_use]
    pub fn text(&self) -> String {
        let Self {
            read_bytes,
            written_bytes,
            reads,
            writes,
        } = self;
        format!(
            "rchar: {read_bytes}\nwchar: {written_bytes}\nsyscr: {reads}\nsyscw: {writes}\n\
             read_bytes: 0\nwrite_bytes: 0\ncancelled_write_bytes: 0\n"
        )
    }
}

impl Kernel {
    /// A thread's call that moves bytes has ended. One without an open file is not counted (fs/read_write.c).
    pub fn count_io(&mut self, tid: Tid, moves: Moves, result: SysResult) {
        if moves == Moves::None || result == Err(Errno::EBADF) {
            return;
        }
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.io.count(moves, result.unwrap_or(0));
        }
    }

    /// The bytes that a process, its threads and the children that it has waited for have moved.
    #[must_use]
    pub fn io_of(&self, process: &Process) -> Io {
        let mut sum = process.io;
        for tid in self.threads_of(process.pid) {
            if let Some(thread) = self.threads.get(&tid) {
                sum.add(thread.io);
            }
        }
        sum
    }
}

impl Process {
    /// The memory that it has had at most, in bytes, in this address space and those before.
    #[must_use]
    pub fn peak_bytes(&self, spaces: &Spaces) -> u64 {
        let now = spaces.get(self.mm);
        let now = now.map_or(0, |tables| tables.shown().peak_bytes);
        self.former_peak_bytes.max(now)
    }
}
