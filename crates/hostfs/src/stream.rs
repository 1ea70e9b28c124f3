//! Inherited streams. They are never made non-blocking, since they are shared with the caller. A
//! transfer uses a description of our own, or is made only when it cannot wait.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsFd;

use kvmlet_abi::Errno;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::ReadWriteFlags;
use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::PIPE_BUF;

use crate::attr::S_IFREG;
use crate::error::errno;
use crate::file::{HostFile, HostKind};
use crate::object::attr_of;
use crate::terminal::{self, JobSignal};

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
pub(crate) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
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
pub fn read(file: &HostFile, buf: &mut [u8]) -> Result<Moved, Errno> {
    let fd = file.fd.as_fd();
    match file.kind {
        HostKind::Socket => {
            let read = retry(|| {
                rustix::net::recv(fd, &mut *buf, RecvFlags::DONTWAIT).map(|(count, _)| count)
            });
            return told(file, PollFlags::IN, moved(read)?);
        }
        HostKind::Terminal => return read_terminal(file, buf),
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
    if polled(file, PollFlags::IN)?.is_empty() {
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
fn told(file: &HostFile, events: PollFlags, moved: Moved) -> Result<Moved, Errno> {
    if moved == Moved::Nothing && polled(file, events)?.intersects(events) {
        return Ok(Moved::NotYet);
    }
    Ok(moved)
}

fn read_terminal(file: &HostFile, buf: &mut [u8]) -> Result<Moved, Errno> {
    let fd = file.fd.as_fd();
    let read = terminal::unstopped(fd, JobSignal::Input, || match &file.own {
        Some(own) => moved(retry(|| rustix::io::read(own, &mut *buf))),
        None => read_shared_terminal(file, &mut *buf),
    });
    match read {
        // What the kernel answers instead of stopping us: the terminal has just changed hands.
        Err(Errno::EIO) if terminal::is_background(fd) => Ok(Moved::NotYet),
        Err(error) => Err(error),
        Ok(moved) => told(file, PollFlags::IN, moved),
    }
}

/// Reads from a terminal that cannot be opened again. A line is read when there is one; in other modes
/// only bytes that are there, whatever the program has made VMIN and VTIME.
fn read_shared_terminal(file: &HostFile, buf: &mut [u8]) -> Result<Moved, Errno> {
    let fd = file.fd.as_fd();
    let ready = polled(file, PollFlags::IN)?;
    let into = if ready.intersects(PollFlags::HUP | PollFlags::ERR)
        || terminal::get(fd).map_or(true, |termios| termios.is_canonical())
    {
        if ready.is_empty() {
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
pub fn write(file: &HostFile, bytes: &[u8]) -> Result<Moved, Errno> {
    let fd = file.fd.as_fd();
    match file.kind {
        HostKind::Socket => {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let written = retry(|| rustix::net::send(fd, bytes, flags));
            return told(file, PollFlags::OUT, moved(written)?);
        }
        HostKind::Terminal => {
            let written = terminal::unstopped(fd, JobSignal::Output, || match &file.own {
                Some(own) => moved(retry(|| rustix::io::write(own, bytes))),
                // A byte has room where poll(2) says so; only a newline may need that of two, and a kick
                // ends that wait.
                None => write_chunks(file, bytes, 1),
            });
            return told(file, PollFlags::OUT, written?);
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
    write_chunks(file, bytes, PIPE_BUF)
}

/// Writes to what has no description of our own and does not know RWF_NOWAIT, piece by piece as poll(2)
/// says that there is room.
fn write_chunks(file: &HostFile, bytes: &[u8], chunk: usize) -> Result<Moved, Errno> {
    let fd = file.fd.as_fd();
    let mut done = 0usize;
    for part in bytes.chunks(chunk) {
        if polled(file, PollFlags::OUT)?.is_empty() {
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
pub fn write_at(file: &HostFile, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
    retry(|| rustix::io::pwrite(&file.fd, bytes, offset)).map_err(errno)
}

/// Reads at an offset of a file. What the host gives at once is the answer: a second call, to see that
/// the file has ended, is the program's to make.
///
/// # Errors
/// The host's.
pub fn read_at(file: &HostFile, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
    retry(|| rustix::io::pread(&file.fd, &mut *buf, offset)).map_err(errno)
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

/// Moves the position (lseek(2)), which an inherited stream shares with the caller as it does natively.
///
/// # Errors
/// The host's: `ESPIPE` for what has no position.
pub fn seek(file: &HostFile, to: SeekTo) -> Result<u64, Errno> {
    let to = match to {
        SeekTo::Start(at) => rustix::fs::SeekFrom::Start(at),
        SeekTo::Current(by) => rustix::fs::SeekFrom::Current(by),
        SeekTo::End(by) => rustix::fs::SeekFrom::End(by),
        SeekTo::Data(at) => rustix::fs::SeekFrom::Data(at),
        SeekTo::Hole(at) => rustix::fs::SeekFrom::Hole(at),
    };
    rustix::fs::seek(&file.fd, to).map_err(errno)
}

/// ftruncate(2) of a stream that is a file.
///
/// # Errors
/// The host's.
pub fn set_size(file: &HostFile, size: u64) -> Result<(), Errno> {
    rustix::fs::ftruncate(&file.fd, size).map_err(errno)
}

/// Size of a stream that is a regular file; nothing else has one.
///
/// # Errors
/// The host's.
pub fn file_size(file: &HostFile) -> Result<Option<u64>, Errno> {
    if file.kind != HostKind::FileStream {
        return Ok(None);
    }
    let attr = attr_of(file.fd.as_fd())?;
    Ok((attr.kind() == S_IFREG).then_some(attr.size))
}

/// True if every write to it is at its end, whatever its offset: the caller has opened it so.
#[must_use]
pub fn appends(file: &HostFile) -> bool {
    rustix::fs::fcntl_getfl(&file.fd).is_ok_and(|status| status.contains(OFlags::APPEND))
}

/// fsync(2) of a stream.
///
/// # Errors
/// The host's: `EINVAL` for what cannot be synchronised.
pub fn sync(file: &HostFile) -> Result<(), Errno> {
    rustix::fs::fsync(&file.fd).map_err(errno)
}

/// poll(2), without waiting: `events`, and those that are always told.
///
/// # Errors
/// The host's.
pub fn ready(file: &HostFile, events: i16) -> Result<i16, Errno> {
    let wanted = PollFlags::from_bits_retain(events.cast_unsigned());
    polled(file, wanted).map(|found| found.bits().cast_signed())
}

fn polled(file: &HostFile, wanted: PollFlags) -> Result<PollFlags, Errno> {
    let mut fds = [PollFd::from_borrowed_fd(file.fd.as_fd(), wanted)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    retry(|| rustix::event::poll(&mut fds, Some(&now))).map_err(errno)?;
    let [polled] = fds;
    Ok(polled.revents())
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use super::*;
    use crate::hostfd::HostFd;

    fn inherited(fd: OwnedFd, kind: HostKind) -> HostFile {
        HostFile {
            fd: Arc::new(HostFd::given(fd)),
            own: None,
            kind,
            listing: None,
        }
    }

    /// An inherited stream's transfers must not wait, whatever the host offers to say so.
    fn transfers((reader, writer): (OwnedFd, OwnedFd), kind: HostKind) {
        let reader = inherited(reader, kind);
        let writer = inherited(writer, kind);
        let mut buf = [0u8; 8];
        assert_eq!(read(&reader, &mut buf), Ok(Moved::Nothing));
        assert_eq!(write(&writer, b"abc"), Ok(Moved::Bytes(3)));
        assert_eq!(read(&reader, &mut buf), Ok(Moved::Bytes(3)));
        assert_eq!(&buf[..3], b"abc");
        let block = vec![1u8; 64 << 10];
        let mut filled = 0usize;
        while let Moved::Bytes(count) = write(&writer, &block).unwrap() {
            filled += count;
            assert!(filled < 64 << 20);
        }
        assert!(filled > 0);
        let mut drained = 0usize;
        let mut buf = vec![0u8; 64 << 10];
        while let Moved::Bytes(count) = read(&reader, &mut buf).unwrap() {
            drained += count;
        }
        assert_eq!(drained, filled);
        drop(reader);
        assert_eq!(write(&writer, b"x"), Err(Errno::EPIPE));
    }

    #[test]
    fn pipes_never_wait() {
        let ends = || rustix::pipe::pipe().unwrap();
        transfers(ends(), HostKind::Stream);
        // The way for what does not know RWF_NOWAIT.
        transfers(ends(), HostKind::Terminal);
    }

    #[test]
    fn sockets_never_wait() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        transfers((a.into(), b.into()), HostKind::Socket);
    }

    #[test]
    fn the_descriptor_stays_blocking() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let copy = rustix::io::dup(&reader).unwrap();
        let reader = inherited(reader, HostKind::Stream);
        assert_eq!(read(&reader, &mut [0; 4]), Ok(Moved::Nothing));
        let flags = rustix::fs::fcntl_getfl(&copy).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    }
}
