//! Inherited streams. They are never made non-blocking, since they are shared with the caller: a
//! transfer is made only when it cannot wait.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};

use kvmlet_abi::Errno;
use rustix::io::ReadWriteFlags;

use super::attr::S_IFREG;
use super::hostfs::{attr_of, errno};
use super::pipe::PIPE_BUF;
use super::ready::{POLLIN, POLLOUT, host_ready};
use crate::host::{Host, HostId, HostKind};

/// Largest write to a terminal that reports POLLOUT: it has room for 256 bytes then, and output
/// processing may double them (n_tty).
const TERMINAL_CHUNK: usize = 128;
/// preadv2(2): the stream's own position.
const NO_OFFSET: u64 = u64::MAX;

/// What a transfer that must not wait did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// This many bytes; 0 is the end of the file.
    Bytes(usize),
    /// Nothing: it would have to wait.
    Nothing,
}

fn retry(mut transfer: impl FnMut() -> rustix::io::Result<usize>) -> rustix::io::Result<usize> {
    loop {
        match transfer() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Reads what is there.
///
/// # Errors
/// The host's.
pub fn read(host: &Host, id: HostId, buf: &mut [u8]) -> Result<Moved, Errno> {
    let file = host.get(id)?;
    let fd = file.fd.as_fd();
    if file.kind == HostKind::FileStream {
        return retry(|| rustix::io::read(fd, &mut *buf))
            .map(Moved::Bytes)
            .map_err(errno);
    }
    if file.kind == HostKind::Stream {
        let tried = retry(|| {
            rustix::io::preadv2(
                fd,
                &mut [IoSliceMut::new(buf)],
                NO_OFFSET,
                ReadWriteFlags::NOWAIT,
            )
        });
        match tried {
            Ok(count) => return Ok(Moved::Bytes(count)),
            Err(rustix::io::Errno::AGAIN) => return Ok(Moved::Nothing),
            // Not every stream knows RWF_NOWAIT.
            Err(
                rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::SPIPE,
            ) => {}
            Err(error) => return Err(errno(error)),
        }
    }
    if host_ready(host, id, POLLIN)? == 0 {
        return Ok(Moved::Nothing);
    }
    match retry(|| rustix::io::read(fd, &mut *buf)) {
        Ok(count) => Ok(Moved::Bytes(count)),
        Err(rustix::io::Errno::AGAIN) => Ok(Moved::Nothing),
        Err(error) => Err(errno(error)),
    }
}

/// Writes as much as can be without waiting.
///
/// # Errors
/// The host's, `EPIPE` among them.
pub fn write(host: &Host, id: HostId, bytes: &[u8]) -> Result<Moved, Errno> {
    let file = host.get(id)?;
    let fd = file.fd.as_fd();
    if file.kind == HostKind::FileStream {
        return retry(|| rustix::io::write(fd, bytes))
            .map(Moved::Bytes)
            .map_err(errno);
    }
    if file.kind == HostKind::Stream {
        let tried = retry(|| {
            rustix::io::pwritev2(
                fd,
                &[IoSlice::new(bytes)],
                NO_OFFSET,
                ReadWriteFlags::NOWAIT,
            )
        });
        match tried {
            Ok(count) => return Ok(Moved::Bytes(count)),
            Err(rustix::io::Errno::AGAIN) => return Ok(Moved::Nothing),
            Err(
                rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::SPIPE,
            ) => {}
            Err(error) => return Err(errno(error)),
        }
    }
    let chunk = if file.kind == HostKind::Terminal {
        TERMINAL_CHUNK
    } else {
        PIPE_BUF
    };
    write_chunks(host, id, fd, bytes, chunk)
}

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
        match retry(|| rustix::io::write(fd, part)) {
            Ok(count) => {
                done = done.saturating_add(count);
                if count < part.len() {
                    break;
                }
            }
            Err(rustix::io::Errno::AGAIN) => break,
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

/// Where lseek(2) moves to.
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
        transfers(&mut host(), (a.into(), b.into()), HostKind::Stream);
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
