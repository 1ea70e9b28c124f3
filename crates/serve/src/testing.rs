//! Programs that tests stand before: one that does the same with each connection, and a server of the host.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::fork::{BootError, Ending, Fork, Master, Output, Program, Reset};
use crate::wire::{Input, Wire};

/// What a fake does with a connection.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Closes it.
    Close,
    /// Never answers.
    Hang,
    /// Ends at once.
    Crash,
    /// Has no memory left.
    Memory,
    /// Writes this, and closes it.
    Say(Bytes),
    /// Writes this once it has read a whole head, and ends before it has closed the connection.
    SayAndCrash(Bytes),
    /// Writes this again and again.
    SayForever(Bytes),
    /// Reads a head and a body by its length, and answers with all of it and the number of its requests so far
    /// since it was reset.
    Mirror,
    /// Hands it to a server of the host, without isolation.
    Host(SocketAddr),
}

#[derive(Debug)]
pub(crate) struct FakeMaster {
    act: Act,
    forks: AtomicU64,
}

impl FakeMaster {
    pub(crate) fn new(act: Act) -> Self {
        Self {
            act,
            forks: AtomicU64::new(0),
        }
    }
}

impl Master for FakeMaster {
    fn fork(&self) -> Result<Box<dyn Fork>, String> {
        self.forks.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Fake {
            act: self.act.clone(),
            requests: 0,
        }))
    }
}

impl Program for FakeMaster {
    fn serve(&mut self, wire: &Wire, output: &mut dyn Output) -> Ending {
        let mut fake = Fake {
            act: self.act.clone(),
            requests: 0,
        };
        fake.serve(wire, output)
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        Arc::new(|| {})
    }

    fn freeze(self: Box<Self>) -> Result<Box<dyn Master>, BootError> {
        Ok(self)
    }
}

#[derive(Debug)]
struct Fake {
    act: Act,
    requests: u64,
}

impl Fork for Fake {
    fn serve(&mut self, wire: &Wire, output: &mut dyn Output) -> Ending {
        self.requests += 1;
        match &self.act {
            Act::Close => Ending::Done,
            Act::Hang => wait_for(wire, || None),
            Act::Crash => Ending::Crashed("SIGSEGV".to_owned()),
            Act::Memory => Ending::Memory("it used more memory than its 64m".to_owned()),
            Act::Say(bytes) => {
                output.wrote(1, b"said\n");
                wire.write(bytes.clone());
                Ending::Done
            }
            Act::SayAndCrash(bytes) => match read_head(wire) {
                Ok(_) => {
                    wire.write(bytes.clone());
                    Ending::Crashed("SIGSEGV".to_owned())
                }
                Err(ending) => ending,
            },
            Act::SayForever(bytes) => wait_for(wire, || {
                if wire.room() >= bytes.len() {
                    wire.write(bytes.clone());
                }
                None
            }),
            Act::Mirror => mirror(wire, self.requests),
            Act::Host(address) => hand_on(wire, *address),
        }
    }

    fn reset(&mut self) -> Result<Reset, String> {
        self.requests = 0;
        Ok(Reset { pages: 3 })
    }

    fn poller_cpu(&mut self) -> Duration {
        Duration::ZERO
    }

    fn exits(&mut self) -> u64 {
        0
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        Arc::new(|| {})
    }
}

/// Looks again and again until `done`, the deadline or the end.
fn wait_for(wire: &Wire, mut done: impl FnMut() -> Option<Ending>) -> Ending {
    loop {
        if let Some(ending) = done() {
            return ending;
        }
        if wire.is_over() {
            return Ending::Done;
        }
        if (wire.deadline()).is_some_and(|deadline| Instant::now() >= deadline) {
            return Ending::TimedOut;
        }
        wire.wait(Duration::from_millis(5));
        wire.take_news();
    }
}

fn read_more(wire: &Wire, into: &mut Vec<u8>) -> Result<(), Ending> {
    let before = into.len();
    let ending = wait_for(wire, || match wire.read(usize::MAX) {
        Input::Bytes(bytes) => {
            into.extend_from_slice(&bytes);
            Some(Ending::Done)
        }
        Input::Pending => None,
        Input::End => Some(Ending::Done),
    });
    if into.len() == before {
        Err(ending)
    } else {
        Ok(())
    }
}

fn read_head(wire: &Wire) -> Result<Vec<u8>, Ending> {
    let mut read = Vec::new();
    while !read.windows(4).any(|end| end == b"\r\n\r\n") {
        read_more(wire, &mut read)?;
    }
    Ok(read)
}

fn mirror(wire: &Wire, requests: u64) -> Ending {
    let mut read = match read_head(wire) {
        Ok(read) => read,
        Err(ending) => return ending,
    };
    let end = read.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse::<usize>().unwrap());
    while read.len() < end + length {
        if let Err(ending) = read_more(wire, &mut read) {
            return ending;
        }
    }
    if head.contains("transfer-encoding: chunked") {
        while !read.ends_with(b"\r\n\r\n") || !read[end..].windows(5).any(|it| it == b"\r\n0\r\n") {
            if let Err(ending) = read_more(wire, &mut read) {
                return ending;
            }
        }
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Requests: {requests}\r\nKeep-Alive: timeout=5\r\n\r\n",
        read.len()
    );
    wire.write(head.into());
    if head_is(&read, b"HEAD ") {
        return Ending::Done;
    }
    wire.write(read.into());
    Ending::Done
}

fn head_is(read: &[u8], start: &[u8]) -> bool {
    read.starts_with(start)
}

/// An ordinary server of the host in place of a guest.
#[expect(
    clippy::disallowed_methods,
    reason = "a server of the host stands for a guest"
)]
fn hand_on(wire: &Wire, address: SocketAddr) -> Ending {
    let failed = |error: std::io::Error| Ending::Failed(error.to_string());
    let mut server = match TcpStream::connect(address) {
        Ok(server) => server,
        Err(error) => return failed(error),
    };
    let timeout = server.set_read_timeout(Some(Duration::from_millis(2)));
    timeout.unwrap();
    let mut is_shut = false;
    let mut space = vec![0; 64 << 10];
    wait_for(wire, || {
        match wire.read(usize::MAX) {
            Input::Bytes(bytes) => {
                if let Err(error) = server.write_all(&bytes) {
                    return Some(failed(error));
                }
            }
            Input::End if !is_shut => {
                is_shut = true;
                let _ = server.shutdown(Shutdown::Write);
            }
            Input::Pending | Input::End => {}
        }
        let room = wire.room().min(space.len());
        match server.read(&mut space[..room]) {
            Ok(0) if room > 0 => Some(Ending::Done),
            Ok(length) => {
                wire.write(Bytes::copy_from_slice(&space[..length]));
                None
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => None,
            Err(error) => Some(failed(error)),
        }
    })
}
