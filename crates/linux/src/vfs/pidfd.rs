//! Descriptors of processes (pidfd_open(2)).

use super::open::description;
use super::ready::{POLLIN, POLLRDNORM};
use crate::cx::Cx;
use crate::fd::{self, FileKind, OnExec, OpenFlags};
use crate::kernel::{Kernel, Pid, ProcessRef};
use crate::outcome::Source;
use kvmlet_abi::Errno;

impl Kernel {
    /// The process of an id, ended or not, told from others that have had the id.
    #[must_use]
    pub fn process_ref(&self, pid: Pid) -> Option<ProcessRef> {
        let live = self.processes.get(&pid).map(|process| process.birth);
        let birth = live.or_else(|| self.zombies.get(&pid).map(|zombie| zombie.birth))?;
        Some(ProcessRef { pid, birth })
    }

    /// True if a process has not been waited for.
    #[must_use]
    pub fn exists(&self, process: ProcessRef) -> bool {
        self.process_ref(process.pid) == Some(process)
    }

    /// True if a process has not ended.
    #[must_use]
    pub fn is_running(&self, process: ProcessRef) -> bool {
        self.exists(process) && self.processes.contains_key(&process.pid)
    }

    /// A process has ended: its descriptors are readable.
    pub fn process_ended(&mut self, pid: Pid) {
        self.wake(Source::End(pid), POLLIN | POLLRDNORM);
    }
}

/// The process that a descriptor stands for.
///
/// # Errors
/// `EBADF` for any other descriptor.
pub fn process_of(cx: &mut Cx<'_>, number: i32) -> Result<ProcessRef, Errno> {
    if let FileKind::Process(process) = fd::get_io(cx, number)?.1.kind {
        return Ok(process);
    }
    Err(Errno::EBADF)
}

/// The process that a descriptor stands for in pidfd_send_signal(2): its directory of /proc does too. Linux differs: of
/// such a directory, whichever process has the id by then.
///
/// # Errors
/// `EBADF` for any other descriptor.
pub fn signalled_by(cx: &mut Cx<'_>, number: i32) -> Result<ProcessRef, Errno> {
    let (_, file) = fd::get_io(cx, number)?;
    if let FileKind::SynthDir(_) = file.kind {
        let name = file.path.strip_prefix(b"/proc/").ok_or(Errno::EBADF)?;
        let pid = core::str::from_utf8(name)
            .ok()
            .and_then(|name| name.parse().ok());
        let pid = Pid(pid.ok_or(Errno::EBADF)?);
        return cx.kernel.process_ref(pid).ok_or(Errno::ESRCH);
    }
    process_of(cx, number)
}

/// Makes a descriptor of a process, close-on-exec as all of them. Of `flags`, O_NONBLOCK is kept.
///
/// # Errors
/// `EMFILE`
pub fn open(cx: &mut Cx<'_>, process: ProcessRef, flags: OpenFlags) -> Result<i32, Errno> {
    let flags = OpenFlags::RDWR | (flags & OpenFlags::NONBLOCK);
    let file = description(FileKind::Process(process), flags, b"anon_inode:[pidfd]");
    fd::install_new(cx, file, OnExec::of(OpenFlags::CLOEXEC))
}

/// The lines of /proc/self/fdinfo: -1 for a process that has been waited for.
#[must_use]
pub fn info(cx: &Cx<'_>, process: ProcessRef) -> String {
    let pid = if cx.kernel.exists(process) {
        process.pid.0
    } else {
        -1
    };
    format!("Pid:\t{pid}\nNSpid:\t{pid}\n")
}
