//! Signal-driven I/O (O_ASYNC in open(2), F_SETOWN and F_SETSIG in fcntl(2)): a signal for whoever owns a pipe,
//! socket, terminal or watch on which something happens.

use std::collections::BTreeSet;

use imbl::{OrdMap, OrdSet};
use kvmlet_abi::Errno;

use crate::creds::Creds;
use crate::cx::Cx;
use crate::fd::{self, FileId, FileKind, OpenFile, OpenFlags};
use crate::kernel::{Kernel, Pid, Tid};
use crate::outcome::Source;
use crate::signal::signo::{
    SI_SIGIO, SIGBUS, SIGCHLD, SIGFPE, SIGILL, SIGIO, SIGSEGV, SIGSYS, SIGTRAP,
};
use crate::signal::{SI_KERNEL, SigDetail, SigInfo};
use crate::vfs;
use crate::vfs::ready::{
    POLLERR, POLLHUP, POLLIN, POLLMSG, POLLOUT, POLLPRI, POLLRDBAND, POLLRDHUP, POLLRDNORM,
    POLLWRBAND, POLLWRNORM,
};

/// Signals whose codes mean something else (SIG_SPECIFIC_SICODES_MASK in linux/signal.h).
const OWN_CODES: [u8; 8] = [
    SIGILL, SIGFPE, SIGSEGV, SIGBUS, SIGTRAP, SIGCHLD, SIGIO, SIGSYS,
];

/// Descriptions of one thing whose own signals are sent when something happens to it. Linux differs: all are. The
/// owners of others get SIGIO, as if there were no room for their signals.
const TOLD_MAX: usize = 32;
/// Events that a reader does not wait for.
const ROOM: i16 = POLLOUT | POLLWRNORM | POLLWRBAND;
/// Events that a writer does not wait for.
const ARRIVAL: i16 = POLLIN | POLLPRI | POLLRDNORM | POLLRDBAND | POLLRDHUP;

/// Those who get the signal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Owner {
    /// The process of that id which was born with that number ([`crate::kernel::Process::birth`]).
    Process(Pid, u64),
    /// A process group.
    Group(Pid),
    /// That thread of a process that was born with that number.
    Thread(Tid, u64),
}

/// The news that a signal tells (si_code; POLL_IN and so on in asm-generic/siginfo.h).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Reason {
    /// POLL_IN
    Arrival = 1,
    /// POLL_OUT
    Room = 2,
    /// POLL_MSG: a lease is to be given up.
    Lease = 3,
    /// POLL_HUP
    End = 6,
}

impl Reason {
    /// si_band
    fn band(self) -> i16 {
        match self {
            Self::Arrival => POLLIN | POLLRDNORM,
            Self::Room => POLLOUT | POLLWRNORM | POLLWRBAND,
            Self::Lease => POLLIN | POLLRDNORM | POLLMSG,
            Self::End => POLLHUP | POLLERR,
        }
    }
}

/// What a description has of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
struct Registration {
    owner: Option<Owner>,
    /// The effective and the real user who has named the owner: its process is signalled as by them.
    sender: [u32; 2],
    /// The signal (F_SETSIG); `None` for SIGIO without more.
    signo: Option<u8>,
    /// The descriptor by which it was asked for (si_fd).
    fd: i32,
    /// Set while O_ASYNC is.
    source: Option<Source>,
}

/// Open file descriptions that have an owner, a signal or O_ASYNC.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AsyncIo {
    files: OrdMap<FileId, Registration>,
    /// The descriptions with O_ASYNC, by what they are open on.
    sources: OrdSet<(Source, FileId)>,
}

/// Sets or takes O_ASYNC.
///
/// # Errors
/// `ENOTTY` for a file that sends no signals.
pub fn set(
    cx: &mut Cx<'_>,
    (fd, id): (i32, FileId),
    file: &OpenFile,
    on: bool,
) -> Result<(), Errno> {
    let Some(source) = vfs::file::signals(&file.kind) else {
        if !on {
            return Ok(());
        }
        let what = "signal-driven I/O of another file than a pipe, socket, terminal or watch";
        cx.host.report.unsupported("ioctl", what.to_owned());
        return Err(Errno::ENOTTY);
    };
    fd::file_mut(cx, id)?.flags.set(OpenFlags::ASYNC, on);
    cx.kernel.async_io.change(id, |registration| {
        registration.source = on.then_some(source);
        registration.fd = if on { fd } else { 0 };
    });
    if on && let FileKind::Pty(end) = &file.kind {
        // Whoever has the terminal is told, unless somebody else was named (__tty_fasync in drivers/tty/tty_io.c).
        let foreground = cx.kernel.ptys.get(end.index)?.foreground;
        own_unless_owned(cx, id, foreground.map(Owner::Group))?;
    }
    Ok(())
}

impl Owner {
    /// The process of that number.
    ///
    /// # Errors
    /// `ESRCH` if there is none. Linux differs: F_SETOWN takes threads too, which are not signalled.
    pub fn process(kernel: &Kernel, number: i32) -> Result<Self, Errno> {
        let process = kernel.processes.get(&Pid(number)).ok_or(Errno::ESRCH)?;
        Ok(Self::Process(process.pid, process.birth))
    }

    /// The thread of that number (F_OWNER_TID).
    ///
    /// # Errors
    /// `ESRCH` if there is none.
    pub fn thread(kernel: &Kernel, number: i32) -> Result<Self, Errno> {
        let thread = kernel.threads.get(&Tid(number)).ok_or(Errno::ESRCH)?;
        let process = kernel.processes.get(&thread.pid).ok_or(Errno::ESRCH)?;
        Ok(Self::Thread(thread.tid, process.birth))
    }

    /// The process group of that number.
    ///
    /// # Errors
    /// `ESRCH` if there is none.
    pub fn group(kernel: &Kernel, number: i32) -> Result<Self, Errno> {
        let mut processes = kernel.processes.values();
        match processes.any(|one| one.pgid.0 == number) {
            true => Ok(Self::Group(Pid(number))),
            false => Err(Errno::ESRCH),
        }
    }
}

/// Gives a description an owner (F_SETOWN), or none, in the name of `who`.
pub fn set_owner(kernel: &mut Kernel, id: FileId, owner: Option<Owner>, who: &Creds) {
    let sender = match owner {
        Some(_) => [who.user.effective, who.user.real],
        None => Default::default(),
    };
    kernel.async_io.change(id, |registration| {
        (registration.owner, registration.sender) = (owner, sender);
    });
}

/// Makes `owner` that of a description which has none; the calling process without one.
///
/// # Errors
/// `ESRCH` if the process is gone.
pub fn own_unless_owned(cx: &mut Cx<'_>, id: FileId, owner: Option<Owner>) -> Result<(), Errno> {
    if self::owner(cx.kernel, id).is_none() {
        let process = cx.process()?;
        let caller = Owner::Process(process.pid, process.birth);
        let creds = cx.creds();
        set_owner(cx.kernel, id, Some(owner.unwrap_or(caller)), &creds);
    }
    Ok(())
}

/// Chooses the signal of a description (F_SETSIG); `None` for SIGIO without more.
pub fn set_signal(kernel: &mut Kernel, id: FileId, signo: Option<u8>) {
    kernel.async_io.change(id, |one| one.signo = signo);
}

/// The signal of a description (F_GETSIG).
#[must_use]
pub fn signal(kernel: &Kernel, id: FileId) -> Option<u8> {
    kernel.async_io.files.get(&id)?.signo
}

/// True if a process may be signalled for a description (sigio_perm in fs/fcntl.c).
fn may_signal([effective, real]: [u32; 2], target: &Creds) -> bool {
    let theirs = [target.user.saved, target.user.real];
    effective == 0 || theirs.contains(&effective) || theirs.contains(&real)
}

/// The owner of a description, if that process has not ended.
#[must_use]
pub fn owner(kernel: &Kernel, id: FileId) -> Option<Owner> {
    let owner = kernel.async_io.files.get(&id)?.owner?;
    match owner {
        Owner::Process(pid, birth) => kernel.is_born(pid, birth).then_some(owner),
        Owner::Thread(tid, birth) => kernel.has_thread(tid, birth).then_some(owner),
        Owner::Group(_) => Some(owner),
    }
}

impl AsyncIo {
    fn change(&mut self, id: FileId, change: impl FnOnce(&mut Registration)) {
        let mut registration = self.files.get(&id).copied().unwrap_or_default();
        self.file_released(id);
        change(&mut registration);
        if let Some(source) = registration.source {
            self.sources.insert((source, id));
        }
        if registration != Registration::default() {
            self.files.insert(id, registration);
        }
    }

    /// A description is gone.
    pub fn file_released(&mut self, id: FileId) {
        let source = self.files.remove(&id).and_then(|known| known.source);
        if let Some(source) = source {
            self.sources.remove(&(source, id));
        }
    }
}

impl Kernel {
    fn is_born(&self, pid: Pid, birth: u64) -> bool {
        let process = self.processes.get(&pid);
        process.is_some_and(|process| process.birth == birth)
    }

    fn has_thread(&self, tid: Tid, birth: u64) -> bool {
        let thread = self.threads.get(&tid);
        thread.is_some_and(|thread| self.is_born(thread.pid, birth))
    }

    /// `events` of `source` may hold from now on (0: any may): who owns a description of it is told. Linux differs:
    /// room is told whether or not somebody has found none.
    pub(super) fn signal_owners(&mut self, source: Source, events: i16) {
        if self.async_io.sources.is_empty() {
            return;
        }
        // Who wants nothing but SIGIO is told once, however many descriptions it owns.
        let mut news = BTreeSet::new();
        let mut left = TOLD_MAX;
        let all = (source, FileId(0))..=(source, FileId(u64::MAX));
        for (_, id) in self.async_io.sources.range(all) {
            let Some(file) = self.files.get(id) else {
                continue;
            };
            let reads = file.flags.readable() && (events == 0 || events & !ROOM != 0);
            let writes = file.flags.writable() && (events == 0 || events & !ARRIVAL != 0);
            let ends = events == 0 && matches!(file.kind, FileKind::Socket(_));
            let reason = match (reads, writes) {
                (false, false) => continue,
                _ if ends => Reason::End,
                (true, _) => Reason::Arrival,
                (false, true) => Reason::Room,
            };
            let Some(one) = self.async_io.files.get(id).copied() else {
                continue;
            };
            news.insert(match one.signo {
                Some(_) if left > 0 => {
                    left = left.saturating_sub(1);
                    (one, reason)
                }
                _ => {
                    let plain = Registration {
                        owner: one.owner,
                        sender: one.sender,
                        ..Registration::default()
                    };
                    (plain, Reason::Arrival)
                }
            });
        }
        for (one, reason) in news {
            self.tell_owner(one, reason);
        }
    }

    /// Tells the owner of a description that its lease is to be given up.
    pub(super) fn tell_of_lease(&mut self, id: FileId, fd: i32) {
        if let Some(one) = self.async_io.files.get(&id).copied() {
            self.tell_owner(Registration { fd, ..one }, Reason::Lease);
        }
    }

    /// A description has given up its lease, and has no owner and no signal any more (lease_modify in fs/locks.c).
    pub(super) fn disown(&mut self, id: FileId) {
        self.async_io.change(id, |one| {
            (one.owner, one.sender, one.signo) = (None, [0; 2], None);
        });
    }

    /// Sends the signal of a description to its owner (send_sigio in fs/fcntl.c).
    fn tell_owner(&mut self, one: Registration, reason: Reason) {
        let targets: Vec<Target> = match one.owner {
            None => return,
            Some(Owner::Thread(tid, birth)) => {
                let there = self.has_thread(tid, birth);
                there.then_some(Target::Thread(tid)).into_iter().collect()
            }
            Some(Owner::Process(pid, birth)) => {
                let there = self.is_born(pid, birth);
                there.then_some(Target::Process(pid)).into_iter().collect()
            }
            Some(Owner::Group(group)) => {
                let processes = self.processes.values();
                let members = processes.filter(|process| process.pgid == group);
                members
                    .map(|process| Target::Process(process.pid))
                    .collect()
            }
        };
        let plain = SigInfo {
            signo: SIGIO,
            code: SI_KERNEL,
            ..SigInfo::default()
        };
        let chosen = one.signo.map(|signo| SigInfo {
            signo,
            code: match OWN_CODES.contains(&signo) && signo != SIGIO {
                true => SI_SIGIO,
                false => i32::from(reason as u8),
            },
            detail: SigDetail::Poll {
                band: reason.band(),
                fd: one.fd,
            },
            ..SigInfo::default()
        });
        for target in targets {
            let creds = match target {
                Target::Process(pid) => Some(self.creds_of(pid)),
                Target::Thread(tid) => self.threads.get(&tid).map(|thread| &thread.creds),
            };
            if !creds.is_some_and(|creds| may_signal(one.sender, creds)) {
                continue;
            }
            // One that finds no room is replaced by the standard signal, which always does.
            if chosen.is_none_or(|info| self.send_to(target, info).is_err()) {
                let _ = self.send_to(target, plain);
            }
        }
    }

    fn send_to(&mut self, target: Target, info: SigInfo) -> Result<(), Errno> {
        match target {
            Target::Process(pid) => self.send_to_process(pid, info),
            Target::Thread(tid) => self.send_to_thread(tid, info),
        }
    }
}

/// Who gets a signal.
#[derive(Clone, Copy, Debug)]
enum Target {
    Process(Pid),
    Thread(Tid),
}
