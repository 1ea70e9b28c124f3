//! Inherited streams. They are never made non-blocking, since they are shared with the caller. A
//! transfer uses a description of our own, or is made only when it cannot wait.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::S_IFREG;
use kvmlet_hostfs::{HostFile, HostKind, attr_of, errno};
use rustix::io::ReadWriteFlags;
use rustix::net::{RecvFlags, SendFlags};

use super::pipe::PIPE_BUF;
use super::ready::{POLLERR, POLLHUP, POLLIN, POLLOUT, host_ready};
use super::terminal::{self, JobSignal};
use crate::host::{Host, HostId};

/// preadv2(2): the stream's own position.
const NO_OFFSET: u64 = u64::MAX;
/// Number of times that a host call is made at most, if signals interrupt it. The signal may be a kick:
/// who sent it waits.
const TRIES: u32 = 4;

/// The result of a transfer that must not wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// This many bytes; 0 is the end of the file.
    Bytes(usize),
    /// Nothing: it would have to wait.
    Nothing,
    /// Nothing, although poll(2) may say otherwise: no event tells when to try again.
    NotYet,
}

/// Makes a host call that does not wait, again if a signal interrupts it, but not for ever.
pub(super) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    for _ in 1..TRIES {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other,
        }
    }
    call()
}

/// Says what a transfer that does not wait came to.
fn moved(result: rustix::io::Result<usize>) -> Result<Moved, Errno> {
    match retry_later(result) {
        Ok(Some(count)) => Ok(Moved::Bytes(count)),
        Ok(None) => Ok(Moved::Nothing),
        Err(error) => Err(errno(error)),
    }
}

fn retry_later(result: rustix::io::Result<usize>) -> rustix::io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads what is there.
///
/// # Errors
/// The host's.
pub fn read(host: &Host, id: HostId, buf: &mut [u8]) -> Result<Moved, Errno> {
    let file = host.get(id)?;
    let fd = file.fd.as_fd();
    match file.kind {
        HostKind::Socket => {
            let read = retry(|| {
                rustix::net::recv(fd, &mut *buf, RecvFlags::DONTWAIT).map(|(count, _)| count)
            });
            return told(host, id, POLLIN, moved(read)?);
        }
        HostKind::Terminal => return read_terminal(host, id, file, buf),
        HostKind::Stream => {}
        _ => {
            return retry(|| rustix::io::read(fd, &mut *buf))
                .map(Moved::Bytes)
                .map_err(errno);
        }
    }
    if let Some(own) = &file.own {
        return moved(retry(|| rustix::io::read(own, &mut *buf)));
    }
    let tried = retry(|| {
        rustix::io::preadv2(
            fd,
            &mut [IoSliceMut::new(buf)],
            NO_OFFSET,
            ReadWriteFlags::NOWAIT,
        )
    });
    if !is_unknown(tried) {
        return moved(tried);
    }
    // Another reader may take it between the two calls: a kick ends the wait then.
    if host_ready(host, id, POLLIN)? == 0 {
        return Ok(Moved::Nothing);
    }
    moved(rustix::io::read(fd, &mut *buf))
}

/// Not every stream knows RWF_NOWAIT, nor does every kernel.
fn is_unknown(tried: rustix::io::Result<usize>) -> bool {
    matches!(
        tried,
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::SPIPE)
    )
}

/// Marks a transfer that poll(2) tells of too early. Such are a datagram that is larger than the room there
/// is, and the two bytes that a terminal makes of a newline.
fn told(host: &Host, id: HostId, events: i16, moved: Moved) -> Result<Moved, Errno> {
    if moved == Moved::Nothing && host_ready(host, id, events)? & events != 0 {
        return Ok(Moved::NotYet);
    }
    Ok(moved)
}

fn read_terminal(host: &Host, id: HostId, file: &HostFile, buf: &mut [u8]) -> Result<Moved, Errno> {
    let fd = file.fd.as_fd();
    let read = terminal::unstopped(fd, JobSignal::Input, || match &file.own {
        Some(own) => moved(retry(|| rustix::io::read(own, &mut *buf))),
        None => read_shared_terminal(host, id, fd, &mut *buf),
    });
    match read {
        // What the kernel answers instead of stopping us: the terminal has just changed hands.
        Err(Errno::EIO) if terminal::is_background(fd) => Ok(Moved::NotYet),
        Err(error) => Err(error),
        Ok(moved) => told(host, id, POLLIN, moved),
    }
}

/// Reads from a terminal that cannot be opened again. A line is read when there is one; in other modes
/// only bytes that are there, whatever the program has made VMIN and VTIME.
fn read_shared_terminal(
    host: &Host,
    id: HostId,
    fd: BorrowedFd<'_>,
    buf: &mut [u8],
) -> Result<Moved, Errno> {
    let ready = host_ready(host, id, POLLIN)?;
    let into = if ready & (POLLHUP | POLLERR) != 0
        || terminal::get(fd).map_or(true, |termios| termios.is_canonical())
    {
        if ready == 0 {
            return Ok(Moved::Nothing);
        }
        buf
    } else {
        let there = usize::try_from(terminal::readable_bytes(fd)?).unwrap_or(usize::MAX);
        match buf.get_mut(..there) {
            Some(part) => part,
            None => buf,
        }
    };
    if into.is_empty() {
        return Ok(Moved::Nothing);
    }
    moved(rustix::io::read(fd, into))
}

/// Writes as much as can be without waiting.
///
/// # Errors
/// The host's, `EPIPE` among them.
pub fn write(host: &Host, id: HostId, bytes: &[u8]) -> Result<Moved, Errno> {
    let file = host.get(id)?;
    let fd = file.fd.as_fd();
    match file.kind {
        HostKind::Socket => {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let written = retry(|| rustix::net::send(fd, bytes, flags));
            return told(host, id, POLLOUT, moved(written)?);
        }
        HostKind::Terminal => {
            let written = terminal::unstopped(fd, JobSignal::Output, || match &file.own {
                Some(own) => moved(retry(|| rustix::io::write(own, bytes))),
                // A byte has room where poll(2) says so; only a newline may need that of two, and a kick
                // ends that wait.
                None => write_chunks(host, id, fd, bytes, 1),
            });
            return told(host, id, POLLOUT, written?);
        }
        HostKind::Stream => {}
        _ => {
            return retry(|| rustix::io::write(fd, bytes))
                .map(Moved::Bytes)
                .map_err(errno);
        }
    }
    if let Some(own) = &file.own {
        return moved(retry(|| rustix::io::write(own, bytes)));
    }
    let tried = retry(|| {
        rustix::io::pwritev2(
            fd,
            &[IoSlice::new(bytes)],
            NO_OFFSET,
            ReadWriteFlags::NOWAIT,
        )
    });
    if !is_unknown(tried) {
        return moved(tried);
    }
    write_chunks(host, id, fd, bytes, PIPE_BUF)
}

/// Writes to what has no description of our own and does not know RWF_NOWAIT, piece by piece as poll(2)
/// says that there is room.
fn write_chunks(
    host: &Host,
    id: HostId,
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    chunk: usize,
) -> Result<Moved, Errno> {
    let mut done = 0usize;
    for part in bytes.chunks(chunk) {
        if host_ready(host, id, POLLOUT)? == 0 {
            break;
        }
        match retry_later(rustix::io::write(fd, part)) {
            Ok(Some(count)) => {
                done = done.saturating_add(count);
                if count < part.len() {
                    break;
                }
            }
            Ok(None) => break,
            Err(error) if done == 0 => return Err(errno(error)),
            Err(_) => break,
        }
    }
    Ok(if done == 0 {
        Moved::Nothing
    } else {
        Moved::Bytes(done)
    })
}

/// Writes at an offset of a stream that is a file.
///
/// # Errors
/// The host's.
pub fn write_at(host: &Host, id: HostId, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
    let fd = host.get(id)?.fd.as_fd();
    retry(|| rustix::io::pwrite(fd, bytes, offset)).map_err(errno)
}

/// Reads at an offset of a file. What the host gives at once is the answer: a second call, to see that
/// the file has ended, is the program's to make.
///
/// # Errors
/// The host's.
pub fn read_at(host: &Host, id: HostId, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let fd = host.get(id)?.fd.as_fd();
    retry(|| rustix::io::pread(fd, &mut *buf, offset)).map_err(errno)
}

/// The place that lseek(2) moves to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeekTo {
    /// SEEK_SET
    Start(u64),
    /// SEEK_CUR
    Current(i64),
    /// SEEK_END
    End(i64),
    /// SEEK_DATA
    Data(u64),
    /// SEEK_HOLE
    Hole(u64),
}

/// Moves the position of an inherited stream, which is shared with the caller as it is natively.
///
/// # Errors
/// The host's: `ESPIPE` for what has no position.
pub fn seek(host: &Host, id: HostId, to: SeekTo) -> Result<u64, Errno> {
    seek_fd(host.get(id)?.fd.as_fd(), to)
}

/// lseek(2)
///
/// # Errors
/// The host's.
pub fn seek_fd(fd: BorrowedFd<'_>, to: SeekTo) -> Result<u64, Errno> {
    let to = match to {
        SeekTo::Start(at) => rustix::fs::SeekFrom::Start(at),
        SeekTo::Current(by) => rustix::fs::SeekFrom::Current(by),
        SeekTo::End(by) => rustix::fs::SeekFrom::End(by),
        SeekTo::Data(at) => rustix::fs::SeekFrom::Data(at),
        SeekTo::Hole(at) => rustix::fs::SeekFrom::Hole(at),
    };
    rustix::fs::seek(fd, to).map_err(errno)
}

/// ftruncate(2) of a stream that is a file.
///
/// # Errors
/// The host's.
pub fn set_size(host: &Host, id: HostId, size: u64) -> Result<(), Errno> {
    rustix::fs::ftruncate(host.get(id)?.fd.as_fd(), size).map_err(errno)
}

/// Size of a stream that is a regular file; nothing else has one.
///
/// # Errors
/// The host's.
pub fn file_size(host: &Host, id: HostId) -> Result<Option<u64>, Errno> {
    let file = host.get(id)?;
    if file.kind != HostKind::FileStream {
        return Ok(None);
    }
    let attr = attr_of(file.fd.as_fd())?;
    Ok((attr.kind() == S_IFREG).then_some(attr.size))
}

/// fsync(2) of a stream.
///
/// # Errors
/// The host's: `EINVAL` for what cannot be synchronised.
pub fn sync(host: &Host, id: HostId) -> Result<(), Errno> {
    rustix::fs::fsync(host.get(id)?.fd.as_fd()).map_err(errno)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::vfs::started_from;

    fn host() -> Host {
        Host::new(started_from(b"/usr").0, 0).unwrap()
    }

    /// An inherited stream's transfers must not wait, whatever the host offers to say so.
    fn transfers(host: &mut Host, (reader, writer): (OwnedFd, OwnedFd), kind: HostKind) {
        let reader = host.insert(reader, kind);
        let writer = host.insert(writer, kind);
        let mut buf = [0u8; 8];
        assert_eq!(read(host, reader, &mut buf), Ok(Moved::Nothing));
        assert_eq!(write(host, writer, b"abc"), Ok(Moved::Bytes(3)));
        assert_eq!(read(host, reader, &mut buf), Ok(Moved::Bytes(3)));
        assert_eq!(&buf[..3], b"abc");
        let block = vec![1u8; 64 << 10];
        let mut filled = 0usize;
        while let Moved::Bytes(count) = write(host, writer, &block).unwrap() {
            filled += count;
            assert!(filled < 64 << 20);
        }
        assert!(filled > 0);
        let mut drained = 0usize;
        let mut buf = vec![0u8; 64 << 10];
        while let Moved::Bytes(count) = read(host, reader, &mut buf).unwrap() {
            drained += count;
        }
        assert_eq!(drained, filled);
        host.decref(reader);
        host.finish_call();
        assert_eq!(write(host, writer, b"x"), Err(Errno::EPIPE));
    }

    #[test]
    fn pipes_never_wait() {
        let mut host = host();
        let ends = || rustix::pipe::pipe().unwrap();
        transfers(&mut host, ends(), HostKind::Stream);
        // The way for what does not know RWF_NOWAIT.
        transfers(&mut host, ends(), HostKind::Terminal);
    }

    #[test]
    fn sockets_never_wait() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        transfers(&mut host(), (a.into(), b.into()), HostKind::Socket);
    }

    #[test]
    fn the_descriptor_stays_blocking() {
        let mut host = host();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let copy = rustix::io::dup(&reader).unwrap();
        let id = host.insert(reader, HostKind::Stream);
        assert_eq!(read(&host, id, &mut [0; 4]), Ok(Moved::Nothing));
        let flags = rustix::fs::fcntl_getfl(&copy).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    }
}
