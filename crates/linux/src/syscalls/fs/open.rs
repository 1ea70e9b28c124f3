//! open(2) and its relatives.

use imbl::Vector;
use kvmlet_abi::linux::openat2::{OPEN_HOW_SIZE_VER0, OpenHow, RESOLVE_CACHED};
use kvmlet_abi::{Errno, Gva};
use zerocopy::FromBytes;

use super::{AT_FDCWD, number, read_path};
use crate::cx::Cx;
use crate::fd::{self, OnExec, OpenFile, OpenFlags};
use crate::outcome::{CallState, Outcome, Resume, Source, Wait, WaitOn};
use crate::syscalls::args::{Args, Fd, FileFlags, Len, Mode, Ptr, Str};
use crate::syscalls::io::transfer::wait_for;
use crate::vfs::fifo::{self, Met};
use crate::vfs::notify;
use crate::vfs::open::{OpenRequest, Opened, open};
use crate::vfs::path::{self, Resolve};
use crate::vfs::pipe::{HalfOpen, LEASES_SOURCE};

/// The outcome of the first try of an open.
type Opening = Result<Outcome, Errno>;

/// Goes on with an open that waits for the other end of a named pipe, or makes it.
fn go_on(cx: &mut Cx<'_>, make: impl FnOnce(&mut Cx<'_>) -> Opening) -> Outcome {
    match fifo::take_waiting(cx) {
        Some((half, Met::Yes)) => install_new(cx, half.file, half.on_exec).map(number).into(),
        Some((half, Met::No)) => wait(cx, half),
        None => make(cx).unwrap_or_else(|errno| Outcome::Done(Err(errno))),
    }
}

fn wait(cx: &mut Cx<'_>, half: HalfOpen) -> Outcome {
    wait_for(fifo::wait(cx, half), &CallState::default(), 0)
}

/// Waits for a lease that is in the way to be given up, at most until its time is over. The call is made as anew then.
pub fn wait_for_lease(until_ns: u64) -> Outcome {
    Outcome::Wait(Wait {
        on: WaitOn::Sources(Vector::unit(Source::Pipe(LEASES_SOURCE))),
        deadline_ns: Some(until_ns),
        resume: Resume::Retry(CallState {
            has_waited: true,
            ..CallState::default()
        }),
    })
}

/// open(2)
pub fn sys_open(cx: &mut Cx<'_>, args: &Args, _state: &CallState) -> Outcome {
    let (Str(path), FileFlags(flags), Mode(mode)) = args.decode();
    let flags = OpenFlags::from_bits_truncate(flags);
    go_on(cx, |cx| open_at(cx, "open", AT_FDCWD, path, flags, mode))
}

/// creat(2)
pub fn sys_creat(cx: &mut Cx<'_>, args: &Args, _state: &CallState) -> Outcome {
    let (Str(path), Mode(mode)) = args.decode();
    let flags = OpenFlags::CREAT | OpenFlags::WRONLY | OpenFlags::TRUNC;
    go_on(cx, |cx| open_at(cx, "creat", AT_FDCWD, path, flags, mode))
}

/// openat(2)
pub fn sys_openat(cx: &mut Cx<'_>, args: &Args, _state: &CallState) -> Outcome {
    let (Fd(dirfd), Str(path), FileFlags(flags), Mode(mode)) = args.decode();
    let flags = OpenFlags::from_bits_truncate(flags);
    go_on(cx, |cx| open_at(cx, "open", dirfd, path, flags, mode))
}

fn open_at(
    cx: &mut Cx<'_>,
    call: &'static str,
    dirfd: i32,
    path: Gva,
    flags: OpenFlags,
    mode: u32,
) -> Opening {
    let path = read_path(cx, path)?;
    let start = path::start(cx, dirfd, &path)?;
    let request = OpenRequest {
        call,
        start,
        path: &path,
        flags,
        mode,
        resolve: Resolve::empty(),
    };
    install(cx, request)
}

fn install(cx: &mut Cx<'_>, request: OpenRequest<'_>) -> Opening {
    // A descriptor is reserved first: without one, nothing is created or truncated.
    let limit = fd::limit(cx)?;
    if cx.fds()?.lowest_free(0) >= limit {
        return Err(Errno::EMFILE);
    }
    let on_exec = OnExec::of(request.flags);
    let location = request.flags.contains(OpenFlags::PATH);
    let large = if location {
        OpenFlags::empty()
    } else {
        OpenFlags::LARGEFILE
    };
    let request = OpenRequest {
        flags: request.flags | large,
        ..request
    };
    let fd = match open(cx, request)? {
        Opened::New(file) => install_new(cx, file, on_exec)?,
        Opened::Existing(id) => fd::install(cx, id, 0, on_exec)?,
        Opened::Waiting(file, other_opens) => {
            let half = HalfOpen {
                file,
                on_exec,
                other_opens,
            };
            return Ok(wait(cx, half));
        }
        Opened::Leased(until_ns) => return Ok(wait_for_lease(until_ns)),
    };
    Ok(Outcome::Done(Ok(number(fd))))
}

fn install_new(cx: &mut Cx<'_>, file: OpenFile, on_exec: OnExec) -> Result<i32, Errno> {
    let number = fd::install_new(cx, file, on_exec)?;
    let id = fd::id(cx, number)?;
    notify::opened(cx, id);
    Ok(number)
}

/// openat2(2)
pub fn sys_openat2(cx: &mut Cx<'_>, args: &Args, _state: &CallState) -> Outcome {
    go_on(cx, |cx| openat2(cx, args))
}

fn openat2(cx: &mut Cx<'_>, args: &Args) -> Opening {
    const PAGE: u64 = kvmlet_abi::PAGE_SIZE;
    let (Fd(dirfd), Str(path), Ptr(how), Len(size)) = args.decode();
    if size < OPEN_HOW_SIZE_VER0 {
        return Err(Errno::EINVAL);
    }
    if size > PAGE {
        return Err(Errno::E2BIG);
    }
    let mut bytes = vec![0u8; usize::try_from(size).map_err(|_| Errno::E2BIG)?];
    cx.read(how, &mut bytes)?;
    // What a newer program sets beyond what is known must be zero (copy_struct_from_user).
    if bytes
        .iter()
        .skip(size_of::<OpenHow>())
        .any(|byte| *byte != 0)
    {
        return Err(Errno::E2BIG);
    }
    let (how, _) = OpenHow::read_from_prefix(&bytes).map_err(|_| Errno::EINVAL)?;
    let OpenHow {
        flags,
        mode,
        resolve,
    } = how;
    let flags = u32::try_from(flags)
        .ok()
        .and_then(OpenFlags::from_bits)
        .ok_or(Errno::EINVAL)?;
    let creates = flags.intersects(OpenFlags::CREAT | OpenFlags::TMPFILE);
    if mode & !0o7777 != 0 || mode != 0 && !creates {
        return Err(Errno::EINVAL);
    }
    let path_flags =
        OpenFlags::PATH | OpenFlags::DIRECTORY | OpenFlags::NOFOLLOW | OpenFlags::CLOEXEC;
    if flags.contains(OpenFlags::PATH) && !path_flags.contains(flags) {
        return Err(Errno::EINVAL);
    }
    if resolve & RESOLVE_CACHED != 0 {
        // Nothing is ever in a cache: the caller tries again without.
        return Err(Errno::EAGAIN);
    }
    let resolve = Resolve::from_bits(resolve).ok_or(Errno::EINVAL)?;
    if resolve.contains(Resolve::BENEATH | Resolve::IN_ROOT) {
        return Err(Errno::EINVAL);
    }
    let path = read_path(cx, path)?;
    let from_dirfd = resolve.intersects(Resolve::BENEATH | Resolve::IN_ROOT);
    // These two bind an absolute path to the descriptor too.
    let start = path::start(cx, dirfd, if from_dirfd { b"." } else { &path })?;
    let mode = u32::try_from(mode).unwrap_or(0);
    install(
        cx,
        OpenRequest {
            call: "open",
            start,
            path: &path,
            flags,
            mode,
            resolve,
        },
    )
}
