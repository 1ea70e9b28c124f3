//! Connections to sockets of the host that have a path (unix(7)).
//!
//! A filter of system calls sees no paths: a process that may connect by one may connect to every daemon of the host.
//! So a process whose program is confined asks another one, [`serve`], which was started before and knows the paths. It
//! asks by number, and gets the descriptor of a connection.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvmlet_abi::Errno;
use kvmlet_budget::{Held, Resource, Share};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::socket::{FLAGS, HostSocket, OpenError, errno_of};

/// The time that an answer may take. Nobody waits for a server there: it is the host's file systems that take it.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// SO_SNDBUF, which Linux doubles: as large as the largest of a program's.
const SEND_BUFFER_BYTES: usize = 212_992;
/// A question, and an answer without its descriptor: the question's number, and what is asked for or an error.
const WORD_BYTES: usize = 8;

/// The traffic that a connection is to carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Traffic {
    /// SOCK_STREAM
    Stream,
    /// SOCK_SEQPACKET
    Packets,
    /// SOCK_DGRAM, without a name: the server sees nobody that it could answer.
    Datagrams,
    /// SOCK_DGRAM with a name that Linux chooses, so that the server can answer.
    NamedDatagrams,
}

impl Traffic {
    const ALL: [Self; 4] = [
        Self::Stream,
        Self::Packets,
        Self::Datagrams,
        Self::NamedDatagrams,
    ];

    fn kind(self) -> SocketType {
        match self {
            Self::Stream => SocketType::STREAM,
            Self::Packets => SocketType::SEQPACKET,
            Self::Datagrams | Self::NamedDatagrams => SocketType::DGRAM,
        }
    }
}

/// What is asked for: the traffic in the lowest two bits, the number of a path above.
fn ask(index: u32, traffic: Traffic) -> u32 {
    let number = Traffic::ALL.iter().position(|each| *each == traffic);
    let number = number.and_then(|number| u32::try_from(number).ok());
    index << 2 | number.unwrap_or(0)
}

fn asked(value: u32) -> Option<(usize, Traffic)> {
    let traffic = Traffic::ALL.get(usize::try_from(value & 3).ok()?)?;
    Some((usize::try_from(value >> 2).ok()?, *traffic))
}

fn encode(id: u32, value: u32) -> [u8; WORD_BYTES] {
    (u64::from(id) << 32 | u64::from(value)).to_le_bytes()
}

fn decode(bytes: &[u8]) -> Option<(u32, u32)> {
    let word = u64::from_le_bytes(bytes.try_into().ok()?);
    let halves = (u32::try_from(word >> 32), u32::try_from(word & 0xffff_ffff));
    halves.0.ok().zip(halves.1.ok())
}

/// Connects to the socket at canonical `path`. Symbolic links are not followed: what has become one leads elsewhere. A
/// server that has made its socket anew is found.
///
/// # Errors
/// The host's: `ENOENT`, `EACCES`, `ECONNREFUSED` if nobody listens or it is no socket, `EAGAIN` if its backlog is full,
/// `EPROTOTYPE` if it carries other traffic, `EPERM` if it takes datagrams from another only.
fn connect(path: &[u8], traffic: Traffic) -> Result<OwnedFd, Errno> {
    let location = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = || {
        let mut at = rustix::fs::open("/", location, Mode::empty())?;
        for name in path.split(|byte| *byte == b'/') {
            if !name.is_empty() {
                at = rustix::fs::openat(&at, name, location, Mode::empty())?;
            }
        }
        let stat = rustix::fs::fstat(&at)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(rustix::io::Errno::CONNREFUSED);
        }
        // What was looked at is what is connected to, whatever happens to its name.
        let name = format!("/proc/self/fd/{}", at.as_raw_fd());
        let to = SocketAddrUnix::new(name)?;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, traffic.kind(), FLAGS, None)?;
        // The program's own SO_SNDBUF limits its messages. Where the host allows less, it says EMSGSIZE.
        rustix::net::sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER_BYTES)?;
        rustix::net::connect(&fd, &to)?;
        if traffic == Traffic::NamedDatagrams {
            // By now nobody but the server can send there.
            rustix::net::bind(&fd, &SocketAddrUnix::new_unnamed())?;
        }
        Ok(fd)
    };
    found().map_err(errno_of)
}

/// An answer: its question's number, and a connection or why there is none.
struct Answer {
    id: u32,
    made: Result<OwnedFd, Errno>,
}

/// The end of who asks.
#[derive(Debug)]
pub(crate) struct Connector {
    fd: OwnedFd,
    next: u32,
    _held: Held,
}

/// The two ends: who asks, and who connects.
pub(crate) fn pair() -> Result<(Connector, OwnedFd), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let (fd, other) = pair.map_err(errno_of)?;
    let connector = Connector {
        fd,
        next: 0,
        _held: Held::promised(Resource::Descriptors, 1),
    };
    Ok((connector, other))
}

impl Connector {
    /// Has a connection made to the path of this number.
    ///
    /// # Errors
    /// As [`connect`]; `EPIPE` if who connects is gone, `ETIMEDOUT` if it does not answer.
    fn connect(&mut self, index: u32, traffic: Traffic) -> Result<OwnedFd, Errno> {
        let id = self.next;
        self.next = id.wrapping_add(1);
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let word = encode(id, ask(index, traffic));
        rustix::net::send(&self.fd, &word, flags).map_err(errno_of)?;
        let until = Instant::now().checked_add(ANSWER_MAX);
        loop {
            let left = until.and_then(|until| until.checked_duration_since(Instant::now()));
            let left = left
                .and_then(|left| Timespec::try_from(left).ok())
                .ok_or(Errno::ETIMEDOUT)?;
            let mut ready = [PollFd::new(&self.fd, PollFlags::IN)];
            match rustix::event::poll(&mut ready, Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno_of(errno)),
            }
            // An answer that came too late is another question's.
            if let Some(answer) = self.answer()?
                && answer.id == id
            {
                return answer.made;
            }
        }
    }

    /// An answer that has come.
    fn answer(&self) -> Result<Option<Answer>, Errno> {
        let mut word = [0; WORD_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let parts = &mut [IoSliceMut::new(&mut word)];
        let count = match rustix::net::recvmsg(&self.fd, parts, &mut control, flags) {
            Ok(received) if received.bytes == 0 => return Err(Errno::EPIPE),
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno_of(errno)),
        };
        let mut given = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut files) = message {
                given = files.next();
            }
        }
        let Some((id, error)) = decode(word.get(..count).unwrap_or_default()) else {
            return Err(Errno::EIO);
        };
        let made = match (error, given) {
            (0, Some(fd)) => Ok(fd),
            (0, None) => Err(Errno::EMFILE),
            (error, _) => Err(Errno::from_raw(i32::try_from(error).unwrap_or(0))),
        };
        Ok(Some(Answer { id, made }))
    }
}

/// Connects to one of `paths` as often as it is asked at this end, until the other one is closed.
pub fn serve(end: &OwnedFd, paths: &[Vec<u8>]) {
    let mut question = [0; WORD_BYTES];
    loop {
        let mut ready = [PollFd::new(end, PollFlags::IN)];
        match rustix::event::poll(&mut ready, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        let count = match rustix::net::recv(end, &mut question[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return,
            Ok((count, _)) => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        };
        let Some((id, value)) = decode(question.get(..count).unwrap_or_default()) else {
            continue;
        };
        let found = asked(value).and_then(|(index, traffic)| Some((paths.get(index)?, traffic)));
        let made = found
            .ok_or(Errno::ENOENT)
            .and_then(|(path, traffic)| connect(path, traffic));
        tell(end, id, made.as_ref().map_err(|errno| *errno));
    }
}

/// Who has gone needs no answer.
fn tell(end: &OwnedFd, id: u32, made: Result<&OwnedFd, Errno>) {
    let word = encode(id, made.err().map_or(0, |errno| errno.raw().unsigned_abs()));
    let fds = made.ok().map(|fd| [fd.as_fd()]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let _ = rustix::net::sendmsg(end, &[IoSlice::new(&word)], &mut control, flags);
}

/// A connection to the socket at `path`, made by who is asked, if there is one: it knows the path as number `index`.
pub(crate) fn open(
    connector: Option<&mut Connector>,
    (index, path): (usize, &[u8]),
    traffic: Traffic,
    share: &Arc<Share>,
) -> Result<HostSocket, OpenError> {
    let made = match connector {
        Some(connector) => {
            connector.connect(u32::try_from(index).unwrap_or(u32::MAX >> 2), traffic)
        }
        None => connect(path, traffic),
    };
    Ok(HostSocket::of(made.map_err(OpenError::Host)?, share)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    fn place(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().canonicalize().unwrap();
        let path = folder.join(format!("kvmlet-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    fn bytes(path: &std::path::Path) -> &[u8] {
        path.as_os_str().as_bytes()
    }

    #[test]
    fn another_one_connects_to_what_it_knows() {
        let path = place("known");
        let listener = UnixListener::bind(&path).unwrap();
        let (mut connector, other) = pair().unwrap();
        let paths = vec![bytes(&path).to_vec()];
        let thread = std::thread::spawn(move || serve(&other, &paths));
        for _ in 0..3 {
            let client = connector.connect(0, Traffic::Stream);
            let mut client = UnixStream::from(client.unwrap());
            client.write_all(b"x").unwrap();
            let mut taken = [0; 1];
            let (mut server, _) = listener.accept().unwrap();
            server.read_exact(&mut taken).unwrap();
            assert_eq!(&taken, b"x");
        }
        let mut fails = |index| connector.connect(index, Traffic::Stream).unwrap_err();
        assert_eq!(fails(1), Errno::ENOENT);
        drop(listener);
        assert_eq!(fails(0), Errno::ECONNREFUSED);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(fails(0), Errno::ENOENT);
        drop(connector);
        thread.join().unwrap();
    }

    #[test]
    fn who_connects_is_gone() {
        let (mut connector, other) = pair().unwrap();
        drop(other);
        let made = connector.connect(0, Traffic::Stream);
        assert_eq!(made.unwrap_err(), Errno::EPIPE);
    }

    #[test]
    fn a_link_is_not_followed_nor_a_file_connected_to() {
        let (path, link) = (place("socket"), place("link"));
        let _listener = UnixListener::bind(&path).unwrap();
        let connect = |path| connect(path, Traffic::Stream);
        connect(bytes(&path)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(connect(bytes(&link)).unwrap_err(), Errno::ECONNREFUSED);
        std::fs::remove_file(&link).unwrap();
        std::fs::write(&link, "").unwrap();
        assert_eq!(connect(bytes(&link)).unwrap_err(), Errno::ECONNREFUSED);
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(path.parent().unwrap(), &link).unwrap();
        let through = link.join(path.file_name().unwrap());
        assert_eq!(connect(bytes(&through)).unwrap_err(), Errno::ENOTDIR);
        std::fs::remove_file(&link).unwrap();
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn datagrams_are_another_kind() {
        let path = place("datagrams");
        let server = UnixDatagram::bind(&path).unwrap();
        for other in [Traffic::Stream, Traffic::Packets] {
            let made = connect(bytes(&path), other);
            assert_eq!(made.unwrap_err(), Errno::EPROTOTYPE);
        }
        let (mut connector, other) = pair().unwrap();
        let paths = vec![bytes(&path).to_vec()];
        let thread = std::thread::spawn(move || serve(&other, &paths));
        for traffic in [Traffic::Datagrams, Traffic::NamedDatagrams] {
            let client = UnixDatagram::from(connector.connect(0, traffic).unwrap());
            client.send(b"asked").unwrap();
            let (count, from) = server.recv_from(&mut [0; 9]).unwrap();
            assert_eq!(count, 5);
            assert_eq!(from.is_unnamed(), traffic == Traffic::Datagrams);
            if traffic == Traffic::NamedDatagrams {
                server.send_to_addr(b"answered", &from).unwrap();
                assert_eq!(client.recv(&mut [0; 9]).unwrap(), 8);
                let stranger = UnixDatagram::unbound().unwrap();
                let sent = stranger.send_to_addr(b"x", &from).unwrap_err();
                assert_eq!(sent.raw_os_error(), Some(Errno::EPERM.raw()));
            }
        }
        drop(connector);
        thread.join().unwrap();
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_question_is_read_as_it_was_asked() {
        for index in [0, 1, 77, u32::MAX >> 2] {
            for traffic in Traffic::ALL {
                let read = asked(ask(index, traffic));
                assert_eq!(read, Some((index as usize, traffic)));
            }
        }
    }
}
