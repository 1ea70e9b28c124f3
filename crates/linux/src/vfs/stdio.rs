//! The first descriptors, and the working directory, of a new sandbox.

use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_hostfs::HostKind;
use kvmlet_hostfs::stdio::{Inherited, Stream};
use kvmlet_mem::GuestMemory;

use super::open::description;
use super::synth::{self, DEVICES};
use crate::console;
use crate::fd::{self, Device, Fd, FileId, FileKind, OpenFile, OpenFlags};
use crate::host::Host;
use crate::kernel::{Kernel, Pid};
use crate::tty::Ctty;

/// The kind of a standard stream.
#[derive(Clone, Debug)]
pub enum StdStream<'a> {
    /// The caller's own descriptor of the same number.
    Inherit(&'a Inherited),
    /// Kept in [`crate::host::Captured`]; for output only.
    Capture,
    /// These bytes, then the end of the file; for input only.
    Bytes(Arc<[u8]>),
}

/// Sets up descriptors 0, 1 and 2 of a new process, and those above 2 that the caller passes. A descriptor
/// that the caller itself does not have stays closed.
///
/// # Errors
/// The host's; `ESRCH` for no such process.
pub fn set_up(
    kernel: &mut Kernel,
    memory: &mut GuestMemory,
    host: &mut Host,
    pid: Pid,
    streams: &[StdStream<'_>; 3],
) -> Result<(), Errno> {
    if let [StdStream::Inherit(inherited), ..] = streams {
        console::set_up(kernel, memory, host, pid, inherited)?;
    }
    for (number, stream) in (0u8..).zip(streams) {
        let Some(file) = open(host, number, stream)? else {
            continue;
        };
        let is_terminal = super::file::host(&file.kind)
            .is_some_and(|id| host.get(id).is_ok_and(|one| one.kind == HostKind::Terminal));
        let file = fd::add_file(kernel, memory, OpenFile { refs: 1, ..file });
        let process = kernel.processes.get_mut(&pid).ok_or(Errno::ESRCH)?;
        if is_terminal {
            process.ctty = Some(Ctty::Inherited);
        }
        let table = kernel.fds_of_mut(pid).ok_or(Errno::ESRCH)?;
        table.fds.insert(i32::from(number), kept_open(file));
    }
    let [StdStream::Inherit(inherited), ..] = streams else {
        return Ok(());
    };
    for (number, stream) in inherited.take_passed() {
        let Some(file) = inherit(host, number, stream) else {
            continue;
        };
        let file = fd::add_file(kernel, memory, OpenFile { refs: 1, ..file });
        let table = kernel.fds_of_mut(pid).ok_or(Errno::ESRCH)?;
        table.fds.insert(number, kept_open(file));
    }
    Ok(())
}

fn kept_open(file: FileId) -> Fd {
    Fd {
        file,
        cloexec: false,
    }
}

fn open(host: &mut Host, number: u8, stream: &StdStream<'_>) -> Result<Option<OpenFile>, Errno> {
    let flags = if number == 0 {
        OpenFlags::empty()
    } else {
        OpenFlags::WRONLY
    };
    Ok(Some(match stream {
        StdStream::Capture => description(FileKind::Capture(number), flags, b"pipe:"),
        StdStream::Bytes(bytes) => {
            description(FileKind::Input(Arc::clone(bytes)), flags, b"pipe:[0]")
        }
        StdStream::Inherit(inherited) => match inherited.take(number) {
            Ok(stream) => return Ok(inherit(host, i32::from(number), stream)),
            Err(Errno::EBADF) => return Ok(None),
            Err(error) => return Err(error),
        },
    }))
}

/// A description of what the caller has as descriptor `number`, if a program may have it.
fn inherit(host: &mut Host, number: i32, stream: Stream) -> Option<OpenFile> {
    match stream {
        Stream::Device { rdev, flags } => {
            // Memory devices are ours; no other device is a stream.
            let device = device(rdev)?;
            let path = synth::device_path(device);
            let kind = FileKind::Device(device);
            Some(description(kind, kept(flags.bits()), &path))
        }
        Stream::Host {
            fd,
            own,
            kind,
            flags,
            link,
        } => {
            let id = host.insert_stream(fd, own, kind);
            // The host's path of a file tells a program nothing that it could use.
            let path = link.unwrap_or_else(|| format!("/dev/fd/{number}").into_bytes());
            let kind = FileKind::HostStream(id);
            Some(description(kind, kept(flags.bits()), &path))
        }
    }
}

/// The device of ours that has a device number.
fn device(rdev: u64) -> Option<Device> {
    let found = DEVICES
        .iter()
        .find(|(_, device)| synth::rdev(*device) == rdev);
    found.map(|(_, device)| *device)
}

/// The status flags of the caller's that a description of the program's has.
fn kept(status: u32) -> OpenFlags {
    let keep = OpenFlags::WRONLY
        | OpenFlags::RDWR
        | OpenFlags::APPEND
        | OpenFlags::NONBLOCK
        | OpenFlags::LARGEFILE;
    OpenFlags::from_bits_truncate(status) & keep
}

/// The policy and working directory of a sandbox started from `cwd` ([`kvmlet_policy::Policy::started_from`]).
#[cfg(test)]
#[must_use]
pub fn started_from(cwd: &[u8]) -> (kvmlet_policy::Policy, super::Dir) {
    let (policy, start) = kvmlet_policy::Policy::started_from(cwd);
    (policy, super::Dir::Path(Arc::from(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsuitable_starts_fall_back() {
        let path = |cwd: &str| match started_from(cwd.as_bytes()).1 {
            super::super::Dir::Path(path) => String::from_utf8(path.to_vec()).unwrap(),
            super::super::Dir::Tmp(_) => panic!("not a path"),
        };
        assert_eq!(path("/"), "/");
        assert_eq!(path("/etc"), "/etc");
        assert_eq!(path("/proc/self"), "/");
        assert_eq!(path("/etc/apt"), "/");
        assert_eq!(path("/tmp"), "/tmp");
        assert_eq!(path("/home/u"), "/home/u");
    }
}
