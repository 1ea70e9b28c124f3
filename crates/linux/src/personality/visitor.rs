//! The host as a client of the program's servers: its connections, and the point at which servers wait for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::futex::{
    FUTEX_CLOCK_REALTIME, FUTEX_LOCK_PI, FUTEX_LOCK_PI2, FUTEX_PRIVATE_FLAG, FUTEX_WAIT_BITSET,
    FUTEX_WAIT_REQUEUE_PI,
};
use kvmlet_abi::linux::time::TIMER_ABSTIME;

use super::Personality;
use crate::clock;
use crate::kernel::Tid;
use crate::net::{Name, client};
use crate::syscalls::table;
use crate::vfs::anon::ObjectId;
use crate::vfs::epoll;

pub use crate::net::Shut;

/// A connection of the host's to a server inside.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Connection(pub(super) ObjectId);

/// A place where the program waits for connections.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Door {
    /// A TCP port of the loopback device.
    Port(u16),
    /// A stream of AF_UNIX, by its name or none. Forks have it by the same number.
    Unix(ObjectId),
}

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

    /// As [`Personality::connect`], at a place where the program was found to wait. `peer` is not shown through a
    /// stream of AF_UNIX.
    ///
    /// # Errors
    /// As [`Personality::connect`]; `EAGAIN` if a stream of AF_UNIX has no room for it.
    pub fn connect_at(
        &mut self,
        door: Door,
        peer: Option<SocketAddr>,
    ) -> Result<Connection, Errno> {
        match door {
            Door::Port(port) => self.connect(port, peer),
            Door::Unix(id) => client::connect_unix(&mut self.cx(Tid::FIRST), id).map(Connection),
        }
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
        self.cpus[0].current.is_none() && !sched.has_ready() && self.kernel.doomed.is_empty()
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

    /// The places that a thread waits at for a connection: ports, or streams of AF_UNIX if there are no such ports.
    #[must_use]
    pub fn awaited_doors(&self) -> Vec<Door> {
        let ports = self.awaited_ports();
        if !ports.is_empty() {
            return ports.into_iter().map(Door::Port).collect();
        }
        let awaited = epoll::awaited_objects(&self.kernel);
        let streams = self.kernel.objects.sockets.listening_streams();
        let streams = streams.filter(|id| awaited.contains(id));
        let doors: BTreeSet<Door> = streams.map(Door::Unix).collect();
        doors.into_iter().collect()
    }

    /// A place for people: the number of a port, the path of a socket.
    #[must_use]
    pub fn door_name(&self, door: Door) -> String {
        let id = match door {
            Door::Port(port) => return port.to_string(),
            Door::Unix(id) => id,
        };
        let socket = self.kernel.objects.sockets.get(id).ok();
        let Some(Name::Unix(name)) = socket.and_then(|socket| socket.name.as_ref()) else {
            return "a socket without a name".to_owned();
        };
        let (mark, name) = match name.split_first() {
            Some((0, name)) => ("@", name),
            _ => ("", name.strip_suffix(b"\0").unwrap_or(name)),
        };
        let name = name.iter().map(|byte| printable(*byte));
        name.fold(mark.to_owned(), |mut text, char| {
            text.push(char);
            text
        })
    }

    /// A number that changes when a thread or process begins or ends, and when a listener does.
    #[must_use]
    pub fn shape(&self) -> (i32, usize, usize, Vec<u16>, usize) {
        let kernel = &self.kernel;
        let processes = kernel.processes.len();
        (
            kernel.next_tid,
            kernel.threads.len(),
            processes,
            self.listening_ports(),
            kernel.objects.sockets.listening_streams().count(),
        )
    }

    /// So much time has passed that CLOCK_MONOTONIC does not show: the program stood still. Waits and timers that went on
    /// meanwhile ([`clock::goes_on_frozen`]) end at their time.
    pub fn pass_over(&mut self, time_ns: u64) {
        let kernel = &mut self.kernel;
        kernel
            .sched
            .move_deadlines(time_ns, |call| goes_on(call.nr, call.args));
        if kernel.timers.has_posix() {
            kernel.timers.pass_over(time_ns);
        }
        kernel.pass_over_timerfds(time_ns);
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

/// True for a call whose wait goes on while the program is frozen.
fn goes_on(nr: u64, [first, second, ..]: [u64; 6]) -> bool {
    // Arguments of 32 bits.
    let (id, flags) = (first as u32, second as u32);
    match table::row(nr).map(|row| row.name) {
        Some("clock_nanosleep") => {
            clock::goes_on_frozen(id.cast_signed(), flags & TIMER_ABSTIME != 0)
        }
        // FUTEX_WAIT has a length of time also with that clock; FUTEX_LOCK_PI has no choice of clocks.
        Some("futex") => match flags & !(FUTEX_CLOCK_REALTIME | FUTEX_PRIVATE_FLAG) {
            FUTEX_WAIT_BITSET | FUTEX_WAIT_REQUEUE_PI | FUTEX_LOCK_PI2 => {
                flags & FUTEX_CLOCK_REALTIME != 0
            }
            command => command == FUTEX_LOCK_PI,
        },
        // Their time is one of CLOCK_REALTIME (mq_receive(3)).
        Some("mq_timedsend" | "mq_timedreceive") => true,
        _ => false,
    }
}

/// A byte of a name that the guest has chosen.
fn printable(byte: u8) -> char {
    match byte {
        b' '..=b'~' => char::from(byte),
        _ => '?',
    }
}

#[cfg(test)]
mod tests {
    use kvmlet_abi::linux::futex::FUTEX_WAIT;

    use super::*;

    #[test]
    fn waits_for_a_time_of_day_go_on_while_a_program_is_frozen() {
        let absolute = u64::from(TIMER_ABSTIME);
        let (realtime, private) = (FUTEX_CLOCK_REALTIME, FUTEX_PRIVATE_FLAG);
        for (nr, first, second, wanted) in [
            // clock_nanosleep: CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME
            (230, 0, absolute, true),
            (230, 0, 0, false),
            (230, 1, absolute, false),
            (230, 7, 0, true),
            // futex
            (
                202,
                0,
                u64::from(FUTEX_WAIT_BITSET | realtime | private),
                true,
            ),
            (202, 0, u64::from(FUTEX_WAIT_BITSET | private), false),
            (202, 0, u64::from(FUTEX_WAIT | realtime), false),
            (202, 0, u64::from(FUTEX_WAIT_REQUEUE_PI | realtime), true),
            (202, 0, u64::from(FUTEX_WAIT_REQUEUE_PI), false),
            (202, 0, u64::from(FUTEX_LOCK_PI | private), true),
            (202, 0, u64::from(FUTEX_LOCK_PI2 | private), false),
            (202, 0, u64::from(FUTEX_LOCK_PI2 | realtime), true),
            // mq_timedsend, mq_timedreceive, poll
            (242, 5, 0, true),
            (243, 5, 0, true),
            (7, 0, 0, false),
        ] {
            let args = [first, second, 0, 0, 0, 0];
            assert_eq!(goes_on(nr, args), wanted, "{nr} {first} {second:#x}");
        }
    }
}
