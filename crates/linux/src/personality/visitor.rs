//! The host as a client of the program's servers: its connections, and the point at which servers wait for them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kvmlet_abi::Errno;

use super::Personality;
use crate::kernel::Tid;
use crate::net::client;
use crate::vfs::anon::ObjectId;
use crate::vfs::epoll;

pub use crate::net::Shut;

/// A connection of the host's to a server inside.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Connection(pub(super) ObjectId);

/// The CPU time that threads have had, in nanoseconds.
pub type CpuTimes = BTreeMap<Tid, u64>;

impl Personality {
    /// Connects to whoever listens on a TCP port inside. The program is shown `peer` as the client's address, or one of
    /// the loopback device. The connection waits where the listener has no room for it.
    ///
    /// # Errors
    /// `ECONNREFUSED` if nobody listens; `EADDRNOTAVAIL` without a free port; `ENOMEM`.
    pub fn connect(&mut self, port: u16, peer: Option<SocketAddr>) -> Result<Connection, Errno> {
        client::connect(&mut self.cx(Tid::FIRST), port, peer).map(Connection)
    }

    /// Sends as many bytes as have room.
    ///
    /// # Errors
    /// `EAGAIN` without room; `EPIPE`, `ECONNRESET` and `ECONNREFUSED` if the program takes no more; `ENOMEM`.
    pub fn send(&mut self, to: Connection, bytes: &[u8]) -> Result<usize, Errno> {
        client::send(&mut self.cx(Tid::FIRST), to.0, bytes)
    }

    /// Takes bytes that the program has sent: none if it will send no more.
    ///
    /// # Errors
    /// `EAGAIN` if there are none yet; `ECONNRESET` and `ECONNREFUSED` once, if the program has ended the connection.
    pub fn receive(&mut self, from: Connection, max_bytes: usize) -> Result<Vec<u8>, Errno> {
        client::receive(&mut self.cx(Tid::FIRST), from.0, max_bytes)
    }

    /// Shuts directions of a connection down.
    ///
    /// # Errors
    /// `ENOTCONN` if the program has ended it.
    pub fn shut_down(&mut self, connection: Connection, how: Shut) -> Result<(), Errno> {
        client::shut_down(&mut self.cx(Tid::FIRST), connection.0, how)
    }

    /// Ends a connection.
    pub fn hang_up(&mut self, connection: Connection) {
        client::close(&mut self.cx(Tid::FIRST), connection.0);
    }

    /// Connections of the host's that are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.kernel.objects.sockets.clients()
    }

    // ---- the ready point ----

    /// True if no thread can run.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        let sched = &self.kernel.sched;
        self.current.is_none() && sched.run_queue.is_empty() && self.kernel.doomed.is_empty()
    }

    /// True if nothing but the host can wake a thread: no deadline and no timer will.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.is_parked() && self.earliest_ns().is_none() && !self.waits_for_host()
    }

    /// The TCP ports that the program listens on, in order.
    #[must_use]
    pub fn listening_ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self
            .kernel
            .objects
            .sockets
            .listening()
            .map(|(port, _)| port)
            .collect();
        ports.dedup();
        ports
    }

    /// Those of them that a thread waits on for a connection, by itself or through an epoll instance.
    #[must_use]
    pub fn awaited_ports(&self) -> Vec<u16> {
        let awaited = epoll::awaited_objects(&self.kernel);
        let listening = self.kernel.objects.sockets.listening();
        let awaited = listening.filter(|(_, id)| awaited.contains(id));
        let mut ports: Vec<u16> = awaited.map(|(port, _)| port).collect();
        ports.dedup();
        ports
    }

    /// A number that changes when a thread or process begins or ends, and when a listener does.
    #[must_use]
    pub fn shape(&self) -> (i32, usize, usize, Vec<u16>) {
        let kernel = &self.kernel;
        let processes = kernel.processes.len();
        (
            kernel.next_tid,
            kernel.threads.len(),
            processes,
            self.listening_ports(),
        )
    }

    /// The CPU time that each thread has had.
    #[must_use]
    pub fn cpu_times(&self) -> CpuTimes {
        let threads = self.kernel.threads.iter();
        threads
            .map(|(tid, thread)| (*tid, thread.cpu_time_ns))
            .collect()
    }

    /// The thread that has had the most CPU time since `before`, for people.
    #[must_use]
    pub fn busiest(&self, before: &CpuTimes) -> Option<String> {
        let threads = self.kernel.threads.iter().map(|(tid, thread)| {
            let had_ns = before.get(tid).copied().unwrap_or(0);
            (thread.cpu_time_ns.saturating_sub(had_ns), thread)
        });
        let (_, thread) = threads.max_by_key(|(ns, _)| *ns)?;
        let name = thread.comm.split(|byte| *byte == 0).next()?;
        let name: String = name.iter().map(|byte| printable(*byte)).collect();
        let (tid, pid) = (thread.tid.0, thread.pid.0);
        Some(match tid == pid {
            true => format!("process {pid} ({name})"),
            false => format!("thread {tid} ({name}) of process {pid}"),
        })
    }
}

/// A byte of a name that the guest has chosen.
fn printable(byte: u8) -> char {
    match byte {
        b' '..=b'~' => char::from(byte),
        _ => '?',
    }
}
