//! Sockets that clients connect to.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::keeper::own_descriptor;
use crate::peer::Peer;
use crate::socket::Stream;

/// A place to listen at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// `[ADDR:]PORT`.
    Inet(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `fd:N`: a socket that listens already.
    Inherited(i32),
}

/// A setting that cannot be used, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct SetupError {
    /// In words.
    pub message: String,
    /// In words.
    pub remedy: &'static str,
}

const FORMS: &str = "write [ADDR:]PORT, as 8080 or 0.0.0.0:8080, or unix:PATH, or fd:N";

impl std::str::FromStr for Place {
    type Err = SetupError;

    fn from_str(text: &str) -> Result<Self, SetupError> {
        let wrong = || SetupError {
            message: format!("'{text}' is no place to listen at"),
            remedy: FORMS,
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(wrong()),
                path => Ok(Self::Unix(path.into())),
            };
        }
        if let Some(number) = text.strip_prefix("fd:") {
            let number: i32 = number.parse().map_err(|_| wrong())?;
            return if number >= 0 {
                Ok(Self::Inherited(number))
            } else {
                Err(wrong())
            };
        }
        let (address, port) = match text.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), text),
            Some(("localhost", port)) => (IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            Some((address, port)) => {
                let bare = address
                    .strip_prefix('[')
                    .and_then(|address| address.strip_suffix(']'));
                let address = match bare {
                    Some(address) => IpAddr::V6(address.parse::<Ipv6Addr>().map_err(|_| wrong())?),
                    None => IpAddr::V4(address.parse::<Ipv4Addr>().map_err(|_| wrong())?),
                };
                (address, port)
            }
        };
        if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let port: u16 = port.parse().map_err(|_| wrong())?;
        Ok(Self::Inet(SocketAddr::new(address, port)))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Inherited(number) => write!(f, "fd:{number}"),
        }
    }
}

/// A socket that listens, not yet waited for.
#[derive(Debug)]
pub struct Bound {
    listening: Listening,
    name: String,
}

#[derive(Debug)]
enum Listening {
    Inet(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl From<Bound> for OwnedFd {
    fn from(bound: Bound) -> Self {
        match bound.listening {
            Listening::Inet(listener) => listener.into(),
            Listening::Unix(listener) => listener.into(),
        }
    }
}

impl Place {
    /// Listens there.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn bind(&self) -> Result<Bound, SetupError> {
        let listening = match self {
            Self::Inet(address) => self.bind_inet(*address)?,
            Self::Unix(path) => self.bind_unix(path)?,
            Self::Inherited(number) => self.inherit(*number)?,
        };
        Ok(Bound {
            name: name(&listening),
            listening,
        })
    }

    fn error(&self, error: &io::Error) -> SetupError {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "end what listens there, or choose another with --listen",
            io::ErrorKind::PermissionDenied => {
                "choose a port above 1023, or a directory where you may write"
            }
            io::ErrorKind::AddrNotAvailable => "choose an address that this machine has",
            _ => FORMS,
        };
        SetupError {
            message: format!("cannot listen at {self}: {}", reason(error)),
            remedy,
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the listeners of serve are made here"
    )]
    fn bind_inet(&self, address: SocketAddr) -> Result<Listening, SetupError> {
        std::net::TcpListener::bind(address)
            .map(Listening::Inet)
            .map_err(|error| self.error(&error))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the listeners of serve are made here"
    )]
    fn bind_unix(&self, path: &std::path::Path) -> Result<Listening, SetupError> {
        use std::os::unix::fs::FileTypeExt;
        use std::os::unix::net::{UnixListener, UnixStream};
        let error = match UnixListener::bind(path) {
            Ok(listener) => return Ok(Listening::Unix(listener)),
            Err(error) => error,
        };
        // One that nobody listens at was left by a server that is gone.
        let is_left = error.kind() == io::ErrorKind::AddrInUse
            && std::fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket())
            && UnixStream::connect(path)
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if !is_left {
            return Err(self.error(&error));
        }
        std::fs::remove_file(path)
            .and_then(|()| UnixListener::bind(path))
            .map(Listening::Unix)
            .map_err(|error| self.error(&error))
    }

    fn inherit(&self, number: i32) -> Result<Listening, SetupError> {
        let wrong = |what: &str| SetupError {
            message: format!("cannot listen at {self}: {what}"),
            remedy: "hand on a stream socket that listens, as systemd does",
        };
        let fd = own_descriptor(number).map_err(|error| wrong(&reason(&error)))?;
        let listens = sockopt::socket_acceptconn(&fd).unwrap_or(false);
        if !listens || sockopt::socket_type(&fd) != Ok(SocketType::STREAM) {
            return Err(wrong("it is no stream socket that listens"));
        }
        match sockopt::socket_domain(&fd) {
            Ok(AddressFamily::UNIX) => Ok(Listening::Unix(fd.into())),
            Ok(AddressFamily::INET | AddressFamily::INET6) => Ok(Listening::Inet(fd.into())),
            _ => Err(wrong("it is neither TCP nor UNIX")),
        }
    }
}

/// As many descriptors as this process may have: each client takes one.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // It serves fewer clients then.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// An error's text without the number that Rust adds.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_lowercase(),
        None => text,
    }
}

/// The address, as a client names it.
fn name(listening: &Listening) -> String {
    match listening {
        Listening::Inet(listener) => match listener.local_addr() {
            Ok(address) => address.to_string(),
            Err(_) => "tcp".to_owned(),
        },
        Listening::Unix(listener) => {
            let address = listener.local_addr().ok();
            let path = address.as_ref().and_then(|address| address.as_pathname());
            match path {
                Some(path) => format!("unix:{}", path.display()),
                None => "unix".to_owned(),
            }
        }
    }
}

impl Bound {
    /// The address, as a client names it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Inside of a runtime: as a listener that can be waited for.
    pub(crate) fn listener(&self) -> io::Result<Listener> {
        // Another descriptor: after a reload it is listened at once more.
        let fd = match &self.listening {
            Listening::Inet(listener) => listener.as_fd().try_clone_to_owned()?,
            Listening::Unix(listener) => listener.as_fd().try_clone_to_owned()?,
        };
        Listener::new(&self.listening, fd)
    }
}

/// A listener of the runtime.
#[derive(Debug)]
pub(crate) enum Listener {
    Inet(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

impl Listener {
    fn new(listening: &Listening, fd: OwnedFd) -> io::Result<Self> {
        match listening {
            Listening::Inet(_) => {
                let listener = std::net::TcpListener::from(fd);
                listener.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(listener).map(Self::Inet)
            }
            Listening::Unix(_) => {
                let listener = std::os::unix::net::UnixListener::from(fd);
                listener.set_nonblocking(true)?;
                tokio::net::UnixListener::from_std(listener).map(Self::Unix)
            }
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Inet(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are written as a whole; one that waits for an acknowledgement is late.
                let _ = stream.set_nodelay(true);
                Ok((Stream::Left(stream), Peer::Inet(address)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Right(stream), Peer::Unix))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let place = |text: &str| text.parse::<Place>().ok().map(|place| place.to_string());
        let same = |text: &str| Some(text.to_owned());
        assert_eq!(place("8080"), same("127.0.0.1:8080"));
        assert_eq!(place("localhost:1"), same("127.0.0.1:1"));
        assert_eq!(place("0.0.0.0:80"), same("0.0.0.0:80"));
        assert_eq!(place("[::1]:80"), same("[::1]:80"));
        assert_eq!(place("unix:/run/x"), same("unix:/run/x"));
        assert_eq!(place("fd:3"), same("fd:3"));
        for wrong in [
            "", ":80", "80:", "x:80", "::1:80", "65536", "-1", "+1", "fd:", "fd:-1", "unix:",
            "1.2.3:80",
        ] {
            assert_eq!(place(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_port_in_use_is_said_to_be() {
        let first = Place::Inet(SocketAddr::from(([127, 0, 0, 1], 0)))
            .bind()
            .unwrap();
        let taken: Place = first.name().parse().unwrap();
        let error = taken.bind().unwrap_err();
        assert!(error.message.ends_with("address already in use"), "{error}");
        assert!(error.remedy.contains("--listen"));
    }

    #[test]
    fn a_descriptor_that_is_no_listener_is_refused() {
        let error = Place::Inherited(0).bind().unwrap_err();
        assert!(
            error.message.starts_with("cannot listen at fd:0"),
            "{error}"
        );
        assert!(Place::Inherited(100_000).bind().is_err());
    }

    #[test]
    fn a_listener_is_inherited_by_its_number() {
        use std::os::fd::AsRawFd;
        let first = Place::Inet(SocketAddr::from(([127, 0, 0, 1], 0)))
            .bind()
            .unwrap();
        let Listening::Inet(listener) = &first.listening else {
            unreachable!()
        };
        let second = Place::Inherited(listener.as_raw_fd()).bind().unwrap();
        assert_eq!(first.name(), second.name());
    }
}
