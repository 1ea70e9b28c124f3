//! The caller's standard streams, and what else it passes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvmlet_abi::Errno;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PIPE_BUF;

use crate::attr::{Attr, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFREG, S_IFSOCK, makedev};
use crate::error::errno;
use crate::file::HostKind;
use crate::object::attr_of;
use crate::passed::{Offer, Unfit, pass};
use crate::terminal::{self, JobSignal};

/// The caller's standard streams, duplicated and, where that can be, opened again.
#[derive(Debug)]
pub struct Inherited {
    streams: Mutex<[Result<Stream, Errno>; 3]>,
    /// Descriptors above 2 that a program gets, by their numbers.
    passed: Mutex<BTreeMap<i32, Stream>>,
    /// Standard error once more, for lines of our own: a description of ours where there is one.
    errors: Option<Errors>,
}

#[derive(Debug)]
struct Errors {
    fd: OwnedFd,
    /// True if a write may wait all the same.
    waits: bool,
}

/// One of them.
#[derive(Debug)]
pub enum Stream {
    /// A character device that is no terminal. It is not held open: a program may have one of ours.
    Device {
        /// Its device number.
        rdev: u64,
        /// Status flags of the caller's descriptor.
        flags: OFlags,
    },
    /// Anything else that a stream can be.
    Host {
        /// The caller's descriptor, duplicated.
        fd: OwnedFd,
        /// A description of our own, where there can be one.
        own: Option<OwnedFd>,
        /// The kind of file that it is open on.
        kind: HostKind,
        /// Status flags of the caller's descriptor.
        flags: OFlags,
        /// The text of its link in /proc/self/fd, if it is an anonymous pipe or a socket.
        link: Option<Vec<u8>>,
    },
}

impl Inherited {
    /// Opens descriptors 0, 1 and 2 as they are now. After the process has given up what opening takes,
    /// they can still be given to a program.
    #[must_use]
    pub fn open() -> Self {
        let stderr = inherit(rustix::stdio::stderr());
        let errors = match &stderr {
            Ok(Stream::Host { fd, own, kind, .. }) => {
                let copy = rustix::io::fcntl_dupfd_cloexec(own.as_ref().unwrap_or(fd), 3);
                let waits = own.is_none() && *kind != HostKind::FileStream;
                copy.ok().map(|fd| Errors { fd, waits })
            }
            _ => None,
        };
        Self {
            streams: Mutex::new([
                inherit(rustix::stdio::stdin()),
                inherit(rustix::stdio::stdout()),
                stderr,
            ]),
            passed: Mutex::default(),
            errors,
        }
    }

    /// Adds a descriptor of ours that a program gets as `number`, which is above 2.
    ///
    /// # Errors
    /// [`Unfit`]; it is closed.
    pub fn add(&self, number: i32, fd: OwnedFd, offer: Offer) -> Result<(), Unfit> {
        let stream = pass(fd, offer)?;
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.insert(number, stream);
        Ok(())
    }

    /// The descriptors above 2, once: they belong to the program then, which may close them.
    #[must_use]
    pub fn take_passed(&self) -> BTreeMap<i32, Stream> {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *passed)
    }

    /// True if a program that gets them is on the caller's terminal: both standard input and standard output are.
    #[must_use]
    pub fn has_console(&self) -> bool {
        self.on_terminal().contains(&true)
    }

    /// The streams that are the caller's terminal, if both standard input and standard output are.
    #[must_use]
    pub fn on_terminal(&self) -> [bool; 3] {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let device = |stream: &Result<Stream, Errno>| match stream {
            Ok(Stream::Host {
                fd,
                kind: HostKind::Terminal,
                ..
            }) => attr_of(fd.as_fd()).ok().map(|attr| attr.rdev),
            _ => None,
        };
        let [input, output, errors] = streams.each_ref().map(device);
        let is_console = input.is_some() && input == output;
        [is_console, is_console, is_console && errors == input]
    }

    /// Writes to standard error, waits at most `wait` for room, and gives the number of bytes written.
    /// A terminal that nobody reads must not hold us up. Not stopped in the background either.
    ///
    /// # Errors
    /// The host's; `EBADF` without a standard error.
    pub fn say(&self, bytes: &[u8], wait: Duration) -> Result<usize, Errno> {
        let Errors { fd, waits } = self.errors.as_ref().ok_or(Errno::EBADF)?;
        let end = Instant::now() + wait;
        let mut done = 0usize;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let (rest, stands_for) = piece(fd, rest);
            let left = end.saturating_duration_since(Instant::now());
            if *waits && !has_room(fd, left) {
                break;
            }
            let write = || rustix::io::write(fd, rest);
            match terminal::unstopped(fd.as_fd(), JobSignal::Output, write) {
                Ok(count) => done = done.saturating_add(stands_for.unwrap_or(count)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    has_room(fd, left.min(PAUSE));
                }
                Err(error) => return Err(errno(error)),
            }
            if end <= Instant::now() {
                break;
            }
        }
        Ok(done)
    }

    /// One of the three, once: it belongs to the program then, which may close it.
    ///
    /// # Errors
    /// `EBADF` for one that the caller does not have; the host's.
    pub fn take(&self, number: u8) -> Result<Stream, Errno> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = streams.get_mut(usize::from(number)).ok_or(Errno::EBADF)?;
        std::mem::replace(slot, Err(Errno::EBADF))
    }
}

/// The longest that a write waits at a time.
const PAUSE: Duration = Duration::from_millis(10);

/// The next bytes to write, and the number of those that they stand for if that differs: a terminal that is raw
/// does not go back to the start of a line by itself.
fn piece<'a>(fd: &OwnedFd, rest: &'a [u8]) -> (&'a [u8], Option<usize>) {
    let rest = rest.get(..PIPE_BUF).unwrap_or(rest);
    if !terminal::get(fd.as_fd()).is_ok_and(|termios| termios.is_raw_output()) {
        return (rest, None);
    }
    match rest.iter().position(|byte| *byte == b'\n') {
        Some(0) => (b"\r\n", Some(1)),
        Some(at) => (rest.get(..at).unwrap_or(rest), None),
        None => (rest, None),
    }
}

fn has_room(fd: &OwnedFd, wait: Duration) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::OUT)];
    let wait = Timespec::try_from(wait).unwrap_or_default();
    rustix::event::poll(&mut fds, Some(&wait)).is_ok_and(|ready| ready > 0)
}

/// Duplicates an inherited descriptor; its status flags are the caller's.
///
/// When the caller was started without one of the three, the number may have been given to something
/// else that it has opened since. That is not the program's: such a descriptor is close-on-exec, an
/// inherited one never is. It counts as closed.
fn inherit(fd: BorrowedFd<'_>) -> Result<Stream, Errno> {
    let descriptor = rustix::io::fcntl_getfd(fd).map_err(errno)?;
    if descriptor.contains(rustix::io::FdFlags::CLOEXEC) {
        return Err(Errno::EBADF);
    }
    stream_of(rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(errno)?)
}

/// The stream of a descriptor of ours; its status flags are the caller's.
pub(crate) fn stream_of(fd: OwnedFd) -> Result<Stream, Errno> {
    let status = rustix::fs::fcntl_getfl(&fd).map_err(errno)?;
    let attr = attr_of(fd.as_fd())?;
    let kind = match attr.kind() {
        S_IFREG | S_IFBLK | S_IFDIR => HostKind::FileStream,
        S_IFIFO => HostKind::Stream,
        S_IFSOCK => HostKind::Socket,
        S_IFCHR if rustix::termios::isatty(&fd) => HostKind::Terminal,
        S_IFCHR => {
            return Ok(Stream::Device {
                rdev: attr.rdev,
                flags: status,
            });
        }
        _ => return Err(Errno::EBADF),
    };
    let own = match kind {
        HostKind::Stream | HostKind::Terminal => open_again(fd.as_fd(), status, &attr),
        _ => None,
    };
    let link = match kind {
        HostKind::Stream | HostKind::Socket => link_of(fd.as_fd()),
        _ => None,
    };
    Ok(Stream::Host {
        fd,
        own,
        kind,
        flags: status,
        link,
    })
}

/// The text of a descriptor's link in /proc/self/fd, if it is no path of the host's.
fn link_of(fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let text = rustix::fs::readlink(path, Vec::new()).ok()?.into_bytes();
    let is_name = text.starts_with(b"pipe:[") || text.starts_with(b"socket:[");
    is_name.then_some(text)
}

/// A description of our own of an inherited pipe or terminal, non-blocking. There is none
/// - for the master side of a pseudo-terminal: opening it makes a new one;
/// - for a pipe of another user's (after su(1)): only RWF_NOWAIT or poll(2) say if a transfer waits;
/// - for a FIFO without a reader, which cannot be opened for writing: a write fails at once;
/// - without /proc.
fn open_again(fd: BorrowedFd<'_>, status: OFlags, attr: &Attr) -> Option<OwnedFd> {
    /// /dev/ptmx
    const PTMX: u64 = makedev(5, 2);
    /// Flags that a pipe, of packets perhaps, or a terminal keeps of how it was opened.
    const KEPT: OFlags = OFlags::APPEND.union(OFlags::DIRECT);
    if attr.rdev == PTMX {
        return None;
    }
    let mode = status & OFlags::RWMODE | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |path: &str| rustix::fs::open(path, mode, Mode::empty()).ok();
    let is_same = |own: &OwnedFd| {
        attr_of(own.as_fd()).is_ok_and(|found| {
            (found.dev, found.ino, found.rdev) == (attr.dev, attr.ino, attr.rdev)
        })
    };
    let number = fd.as_raw_fd();
    let own = open(&format!("/proc/self/fd/{number}"))
        .filter(is_same)
        // Of another user's terminal (after su(1)) only this name can be opened.
        .or_else(|| {
            rustix::termios::tcgetsid(fd)
                .ok()
                .and_then(|_| open("/dev/tty"))
        })?;
    if status.intersects(KEPT) {
        rustix::fs::fcntl_setfl(&own, status & KEPT | OFlags::NONBLOCK).ok()?;
    }
    Some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_inherited_is_passed_on() {
        let file = std::fs::File::open("/usr/bin/env").unwrap();
        assert!(matches!(inherit(file.as_fd()), Err(Errno::EBADF)));
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        let Ok(Stream::Host { kind, flags, .. }) = inherit(file.as_fd()) else {
            panic!("not inherited")
        };
        assert_eq!(kind, HostKind::FileStream);
        assert_eq!(flags & OFlags::RWMODE, OFlags::RDONLY);
    }

    #[test]
    fn a_pipe_is_opened_again_and_its_own_description_left_alone() {
        let flags = rustix::pipe::PipeFlags::DIRECT;
        let (_reader, writer) = rustix::pipe::pipe_with(flags).unwrap();
        let Ok(Stream::Host { own: Some(own), .. }) = inherit(writer.as_fd()) else {
            panic!("not opened again")
        };
        let flags = |fd: &OwnedFd| rustix::fs::fcntl_getfl(fd).unwrap();
        let all = OFlags::RWMODE | OFlags::NONBLOCK | OFlags::DIRECT;
        assert_eq!(flags(&writer) & all, OFlags::WRONLY | OFlags::DIRECT);
        assert_eq!(
            flags(&own) & all,
            OFlags::WRONLY | OFlags::DIRECT | OFlags::NONBLOCK
        );
    }
}
