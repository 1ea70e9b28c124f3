//! Named pipes (fifo(7)): an inode of the memory file system, and a pipe while an end is open.

use kvmlet_abi::Errno;

use super::file::Transfer;
use super::open::{Opened, description};
use super::pipe::HalfOpen;
use super::ready::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM};
use super::tmpfs::InodeId;
use crate::cx::Cx;
use crate::fd::{FileKind, OpenFile, OpenFlags};
use crate::outcome::Source;

/// The inode of a description's named pipe; `None` for anything else.
#[must_use]
pub fn inode_of(cx: &Cx<'_>, kind: &FileKind) -> Option<InodeId> {
    let FileKind::Pipe(id) = kind else {
        return None;
    };
    cx.kernel.pipes.get(*id).ok()?.inode
}

/// Opens a named pipe. Its end counts as open at once, also if the call has to wait for the other one.
///
/// # Errors
/// `ENXIO` for writing without waiting while nobody reads.
pub fn open(
    cx: &mut Cx<'_>,
    inode: InodeId,
    flags: OpenFlags,
    path: &[u8],
) -> Result<Opened, Errno> {
    let now = super::now(cx.host);
    let id = cx.kernel.pipes.of_inode(inode, now);
    let pipe = cx.kernel.pipes.get_mut(id)?;
    let (reads, writes) = (flags.readable(), flags.writable());
    let waits = !flags.contains(OpenFlags::NONBLOCK);
    if writes && !reads && !waits && pipe.readers == 0 {
        cx.kernel.pipes.drop_if_closed(&mut cx.machine.memory, id);
        return Err(Errno::ENXIO);
    }
    if reads {
        pipe.readers = pipe.readers.saturating_add(1);
        pipe.reader_opens = pipe.reader_opens.saturating_add(1);
    }
    if writes {
        pipe.writers = pipe.writers.saturating_add(1);
        pipe.writer_opens = pipe.writer_opens.saturating_add(1);
    }
    let (others, other_opens) = match (reads, writes) {
        (true, false) => (pipe.writers, pipe.writer_opens),
        (false, true) => (pipe.readers, pipe.reader_opens),
        _ => (1, 0),
    };
    let mut file = description(FileKind::Pipe(id), flags, path);
    if reads && others == 0 {
        // No hang-up is reported before a first writer has come (pipe_poll in fs/pipe.c).
        file.offset = other_opens;
    }
    cx.kernel.tmpfs.open_ref(inode);
    cx.kernel.sched.wake_source(Source::Pipe(id));
    Ok(if others == 0 && waits {
        Opened::Waiting(file, other_opens)
    } else {
        Opened::New(file)
    })
}

/// The calling thread waits for the other end; the source it waits on.
pub fn wait(cx: &mut Cx<'_>, half: HalfOpen) -> Source {
    let source = match super::file::transfer(&half.file.kind) {
        Transfer::Pipe(id) => Source::Pipe(id),
        // Never: only an end of a pipe is half open.
        _ => Source::Pipe(super::pipe::LOCKS_SOURCE),
    };
    cx.kernel.pipes.opening.insert(cx.tid, half);
    source
}

/// Takes from the calling thread what it waits for in open(2); `None` if it does not wait. Also says if the
/// other end has been opened meanwhile.
pub fn take_waiting(cx: &mut Cx<'_>) -> Option<(HalfOpen, Met)> {
    let half = cx.kernel.pipes.opening.remove(&cx.tid)?;
    let FileKind::Pipe(id) = half.file.kind else {
        return None;
    };
    let opens = cx.kernel.pipes.get(id).map(|pipe| {
        if half.file.flags.readable() {
            pipe.writer_opens
        } else {
            pipe.reader_opens
        }
    });
    let met = if opens == Ok(half.other_opens) {
        Met::No
    } else {
        Met::Yes
    };
    Some((half, met))
}

/// Says if the other end of a named pipe has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Met {
    /// It has, though it may have gone again.
    Yes,
    /// Not yet.
    No,
}

/// The calling thread's open(2) has been interrupted, or the thread ends: its end is closed.
pub fn abandon(cx: &mut Cx<'_>) {
    if let Some(half) = cx.kernel.pipes.opening.remove(&cx.tid) {
        close(cx, &half.file);
    }
}

/// An end of a pipe, named or not, is closed.
pub fn close(cx: &mut Cx<'_>, file: &OpenFile) {
    let FileKind::Pipe(id) = file.kind else {
        return;
    };
    let mut inode = None;
    if let Ok(pipe) = cx.kernel.pipes.get_mut(id) {
        if file.flags.readable() {
            pipe.readers = pipe.readers.saturating_sub(1);
        }
        if file.flags.writable() {
            pipe.writers = pipe.writers.saturating_sub(1);
        }
        inode = pipe.inode;
    }
    let memory = &mut cx.machine.memory;
    cx.kernel.pipes.drop_if_closed(memory, id);
    if let Some(inode) = inode {
        cx.kernel.tmpfs.close_ref(memory, inode);
    }
    let both = POLLIN | POLLRDNORM | POLLOUT | POLLWRNORM;
    cx.kernel.wake(Source::Pipe(id), both | POLLERR | POLLHUP);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kvmlet_abi::Errno;

    use super::*;
    use crate::outcome::{CallState, Outcome, WaitOn};
    use crate::testing::{Arg, Sandbox, TID, call};
    use kvmlet_hostfs::attr::S_IFIFO;

    const O_WRONLY: i64 = 1;
    const O_RDWR: i64 = 2;
    const O_NONBLOCK: i64 = 0o4000;
    const NAME: &str = "/tmp/fifo";

    fn sandbox() -> Sandbox {
        let mut s = Sandbox::new(Path::new("/usr"));
        call!(s, "mknod", NAME, i64::from(S_IFIFO | 0o600), 0).unwrap();
        s
    }

    /// Opens the pipe in a call that must wait; it is parked as the personality does.
    fn open_waiting(s: &mut Sandbox, flags: i64) {
        let args = [Arg::Str(NAME), Arg::Int(flags)];
        let Outcome::Wait(wait) = s.outcome("open", &args, &CallState::default()) else {
            panic!("it does not wait")
        };
        assert!(matches!(wait.on, WaitOn::Sources(_)));
        s.kernel.sched.park(TID, Default::default(), wait);
    }

    fn ends(s: &Sandbox) -> Option<(u32, u32)> {
        let id = s.kernel.pipes.named.values().next()?;
        let pipe = s.kernel.pipes.get(*id).unwrap();
        Some((pipe.readers, pipe.writers))
    }

    #[test]
    fn a_reader_waits_for_a_writer() {
        let mut s = sandbox();
        let before = s.machine.memory.used_bytes();
        open_waiting(&mut s, 0);
        assert_eq!(ends(&s), Some((1, 0)));
        // Another thread opens the other end: it need not wait.
        let mut cx = s.cx();
        cx.tid = crate::kernel::Tid(2);
        let inode = inode_by_name(&mut cx);
        let flags = OpenFlags::WRONLY;
        let Ok(Opened::New(writer)) = open(&mut cx, inode, flags, NAME.as_bytes()) else {
            panic!("the writer waits")
        };
        assert!(s.kernel.sched.parked.is_empty());
        // The writer may go before the reader gets to run.
        close(&mut s.cx(), &writer);
        let fd = s.open(NAME, 0).unwrap();
        assert_eq!(s.read(fd, 4), Ok(vec![]));
        call!(s, "close", fd).unwrap();
        assert_eq!(ends(&s), None);
        assert!(!s.kernel.pipes.is_opening());
        assert_eq!(s.machine.memory.used_bytes(), before);
    }

    fn inode_by_name(cx: &mut Cx<'_>) -> InodeId {
        cx.kernel
            .tmpfs
            .lookup(crate::vfs::tmpfs::TmpFs::ROOT, b"fifo")
            .unwrap()
    }

    #[test]
    fn an_interrupted_open_leaves_no_end_behind() {
        let mut s = sandbox();
        open_waiting(&mut s, O_WRONLY);
        assert_eq!(ends(&s), Some((0, 1)));
        s.kernel.interrupt(TID);
        assert!(s.kernel.is_interrupted(TID));
        abandon(&mut s.cx());
        assert_eq!(ends(&s), None);
        let inode = inode_by_name(&mut s.cx());
        assert_eq!(s.kernel.tmpfs.get(inode).unwrap().opens, 0);
    }

    #[test]
    fn without_waiting() {
        let mut s = sandbox();
        assert_eq!(s.open(NAME, O_WRONLY | O_NONBLOCK), Err(Errno::ENXIO));
        assert_eq!(ends(&s), None);
        let reader = s.open(NAME, O_NONBLOCK).unwrap();
        let polled = |s: &mut Sandbox, fd: i64| {
            let fd = fd as i32;
            let (_, file) = crate::fd::get(&mut s.cx(), fd).unwrap();
            super::super::poll_ready(&s.cx(), &file, POLLIN)
        };
        // No hang-up before the first writer, and one after the last.
        assert_eq!(polled(&mut s, reader), 0);
        let writer = s.open(NAME, O_WRONLY | O_NONBLOCK).unwrap();
        assert_eq!(s.read(reader, 4), Err(Errno::EAGAIN));
        assert_eq!(s.write(writer, b"ab"), Ok(2));
        assert_eq!(polled(&mut s, reader), POLLIN);
        call!(s, "close", writer).unwrap();
        assert_eq!(s.read(reader, 4), Ok(b"ab".to_vec()));
        assert_eq!(polled(&mut s, reader), POLLHUP);
        assert_eq!(s.read(reader, 4), Ok(vec![]));
        let both = s.open(NAME, O_RDWR).unwrap();
        assert_eq!(ends(&s), Some((2, 1)));
        assert_eq!(s.write(both, b"x"), Ok(1));
        assert_eq!(s.read(both, 4), Ok(b"x".to_vec()));
    }

    #[test]
    fn it_is_a_file_too() {
        let mut s = sandbox();
        let stat = s.stat(NAME).unwrap();
        assert_eq!(stat.st_mode, S_IFIFO | 0o600);
        let fd = s.open(NAME, O_RDWR).unwrap();
        let buf = s.room(144);
        call!(s, "fstat", fd, buf).unwrap();
        let open: kvmlet_abi::linux::Stat = s.get_struct(buf);
        assert_eq!((open.st_ino, open.st_dev), (stat.st_ino, stat.st_dev));
        call!(s, "fchmod", fd, 0o640).unwrap();
        call!(s, "unlink", NAME).unwrap();
        assert_eq!(s.write(fd, b"y"), Ok(1));
        let link = s.room(64);
        let len = call!(s, "readlink", "/proc/self/fd/3", link, 64).unwrap();
        assert_eq!(s.get(link, len as usize), b"/tmp/fifo (deleted)");
        let again = s.open("/proc/self/fd/3", 0).unwrap();
        assert_eq!(s.read(again, 4), Ok(b"y".to_vec()));
        call!(s, "chmod", "/proc/self/fd/3", 0o400).unwrap();
        let location = s.open("/proc/self/fd/3", 0o10_000_000).unwrap();
        call!(s, "close", fd).unwrap();
        call!(s, "close", again).unwrap();
        call!(s, "fstat", location, buf).unwrap();
        call!(s, "close", location).unwrap();
        let inode = InodeId(stat.st_ino);
        assert!(s.kernel.tmpfs.get(inode).is_err());
    }
}
