//! Connections of the host's to servers in a sandbox.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kvmlet_abi::Errno;
use kvmlet_linux::{Connection, Door, News, Personality, Shut};

use crate::resident::Wish;
use crate::sandbox::Sandbox;
use crate::{EngineError, Owner, Resident, Waited};

/// A connection of the host's to a server in a sandbox. One of a sandbox that has been reset since leads nowhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ConnectionId {
    /// The sandbox's generation when it was made, or the box's epoch.
    generation: u64,
    pub(crate) connection: Connection,
}

/// The error of a call for a connection.
pub(crate) fn failed(errno: Errno) -> EngineError {
    EngineError::Connection(errno.name())
}

/// One try of a call that may have to wait: `None` if so.
pub(crate) fn tried<T>(result: Result<T, Errno>) -> Result<Option<T>, EngineError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::EAGAIN) => Ok(None),
        Err(errno) => Err(failed(errno)),
    }
}

impl Sandbox {
    /// Connects to whoever listens on a TCP port inside. The program is shown `peer` as the client's address, or one of
    /// the loopback device. Nothing runs, but in a fork of a server OpenSSL's RAND_poll before the first connection.
    ///
    /// # Errors
    /// [`EngineError::Unseeded`] if that does not return; [`EngineError::Connection`] if nobody listens, or at the memory
    /// limit; [`EngineError::Ended`].
    pub fn connect(
        &mut self,
        port: u16,
        peer: Option<SocketAddr>,
    ) -> Result<ConnectionId, EngineError> {
        self.connect_at(Door::Port(port), peer)
    }

    /// The place where the program was last found to wait for connections.
    #[must_use]
    pub fn door(&self) -> Option<Door> {
        self.door
    }

    /// As [`Sandbox::connect`], at the place of [`Sandbox::until_listening`]. `peer` is not shown through a stream of
    /// AF_UNIX.
    ///
    /// # Errors
    /// As [`Sandbox::connect`].
    pub fn connect_at(
        &mut self,
        door: Door,
        peer: Option<SocketAddr>,
    ) -> Result<ConnectionId, EngineError> {
        self.check_alive()?;
        self.reseed()?;
        let connected = self.guarded(|sandbox| Ok(sandbox.personality.connect_at(door, peer)))?;
        Ok(ConnectionId {
            generation: self.generation(),
            connection: connected.map_err(failed)?,
        })
    }

    /// Runs until bytes have been sent to a connection: how many, at most all.
    ///
    /// # Errors
    /// [`EngineError::Connection`], [`EngineError::NoAnswer`], [`EngineError::TimedOut`],
    /// [`EngineError::Interrupted`], [`EngineError::Ended`].
    pub fn send_to(
        &mut self,
        to: ConnectionId,
        bytes: &[u8],
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<usize, EngineError> {
        self.check_alive()?;
        let connection = self.connection(to)?;
        let news = News::Sendable(connection);
        self.until_done(news, timeout, owner, |personality| {
            personality.send(connection, bytes)
        })
    }

    /// Runs until bytes have come from a connection, `max_bytes` at most: none if no more will come. The bytes that
    /// a program has sent before it ended still come.
    ///
    /// # Errors
    /// As [`Sandbox::send_to`].
    pub fn receive_from(
        &mut self,
        from: ConnectionId,
        max_bytes: usize,
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<Vec<u8>, EngineError> {
        let connection = self.connection(from)?;
        let news = News::Received(connection);
        self.until_done(news, timeout, owner, |personality| {
            personality.receive(connection, max_bytes)
        })
    }

    /// Shuts directions of a connection down. Nothing runs.
    ///
    /// # Errors
    /// [`EngineError::Connection`].
    pub fn shut_down(&mut self, id: ConnectionId, how: Shut) -> Result<(), EngineError> {
        let connection = self.connection(id)?;
        self.guarded(|sandbox| Ok(sandbox.personality.shut_down(connection, how)))?
            .map_err(failed)
    }

    /// Ends a connection, if it is there. Nothing runs: the program learns of it when it runs next.
    pub fn hang_up(&mut self, id: ConnectionId) {
        if let Ok(connection) = self.connection(id) {
            let _ = self.guarded(|sandbox| {
                sandbox.personality.hang_up(connection);
                Ok(())
            });
        }
    }

    pub(crate) fn connection(&self, id: ConnectionId) -> Result<Connection, EngineError> {
        match id.generation == self.generation() {
            true => Ok(id.connection),
            false => Err(failed(Errno::EBADF)),
        }
    }

    /// Runs until a call has not to wait any more.
    fn until_done<T>(
        &mut self,
        news: News,
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
        call: impl Fn(&mut Personality) -> Result<T, Errno>,
    ) -> Result<T, EngineError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let done = self.guarded(|sandbox| tried(call(&mut sandbox.personality)))?;
            if let Some(value) = done {
                return Ok(value);
            }
            self.check_alive()?;
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match self.until_news_within(&[news], left, owner) {
                // The last bytes of a program may be there.
                Ok(()) | Err(EngineError::Ended(_)) => {}
                Err(EngineError::NotReady) => return Err(EngineError::NoAnswer),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Resident {
    /// As [`Sandbox::connect`]. The box goes on meanwhile.
    ///
    /// # Errors
    /// [`EngineError::Connection`], [`EngineError::Closed`], [`EngineError::Ended`].
    pub fn connect(
        &self,
        port: u16,
        peer: Option<SocketAddr>,
    ) -> Result<ConnectionId, EngineError> {
        let generation = self.epoch();
        let connected = self.act_in(generation, |personality| personality.connect(port, peer))?;
        Ok(ConnectionId {
            generation,
            connection: connected.map_err(failed)?,
        })
    }

    /// Sends bytes as soon as there is room: how many, at most all.
    ///
    /// # Errors
    /// [`EngineError::Connection`], [`EngineError::Reset`], [`EngineError::Closed`], [`EngineError::Ended`].
    pub fn send_to(
        &self,
        to: ConnectionId,
        bytes: &[u8],
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<Waited<usize>, EngineError> {
        let wish = Wish {
            epoch: to.generation,
            news: vec![News::Sendable(to.connection)],
        };
        let mut send =
            |personality: &mut Personality| tried(personality.send(to.connection, bytes));
        self.until_made(&wish, &mut send, timeout, owner)
    }

    /// Takes bytes as soon as there are some, `max_bytes` at most: none if no more will come.
    ///
    /// # Errors
    /// As [`Resident::send_to`].
    pub fn receive_from(
        &self,
        from: ConnectionId,
        max_bytes: usize,
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<Waited<Vec<u8>>, EngineError> {
        let wish = Wish {
            epoch: from.generation,
            news: vec![News::Received(from.connection)],
        };
        let mut receive =
            |personality: &mut Personality| tried(personality.receive(from.connection, max_bytes));
        self.until_made(&wish, &mut receive, timeout, owner)
    }

    /// As [`Sandbox::shut_down`].
    ///
    /// # Errors
    /// As [`Resident::send_to`].
    pub fn shut_down(&self, id: ConnectionId, how: Shut) -> Result<(), EngineError> {
        self.act_in(id.generation, |personality| {
            personality.shut_down(id.connection, how)
        })?
        .map_err(failed)
    }

    /// Ends a connection, if it is there.
    pub fn hang_up(&self, id: ConnectionId) {
        let _ = self.act_in(id.generation, |personality| {
            personality.hang_up(id.connection);
        });
    }

    /// Waits until a process in the box listens on a TCP port.
    ///
    /// # Errors
    /// [`EngineError::Closed`], [`EngineError::Ended`].
    pub fn wait_listening(
        &self,
        port: u16,
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<Waited<()>, EngineError> {
        let news = News::Listening(port);
        let wish = Wish {
            epoch: self.epoch(),
            news: vec![news],
        };
        let mut look = |personality: &mut Personality| Ok(personality.is_news(news).then_some(()));
        self.until_made(&wish, &mut look, timeout, owner)
    }
}
