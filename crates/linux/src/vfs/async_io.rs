//! Signal-driven I/O (O_ASYNC in open(2), F_SETOWN in fcntl(2)): SIGIO for whoever owns a pipe or socket on which
//! something happens.

use std::collections::BTreeSet;

use imbl::{OrdMap, OrdSet};
use kvmlet_abi::Errno;

use crate::creds::Creds;
use crate::cx::Cx;
use crate::fd::{self, FileId, OpenFile, OpenFlags};
use crate::kernel::{Kernel, Pid, Process};
use crate::outcome::Source;
use crate::signal::{SI_KERNEL, SigInfo, signo::SIGIO};
use crate::vfs;
use crate::vfs::ready::{
    POLLIN, POLLOUT, POLLPRI, POLLRDBAND, POLLRDHUP, POLLRDNORM, POLLWRBAND, POLLWRNORM,
};

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
}

/// What a description has of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Registration {
    owner: Option<Owner>,
    /// The effective and the real user who has named the owner: its process is signalled as by them.
    sender: [u32; 2],
    /// Set while O_ASYNC is.
    source: Option<Source>,
}

/// Open file descriptions that have an owner or O_ASYNC.
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
pub fn set(cx: &mut Cx<'_>, id: FileId, file: &OpenFile, on: bool) -> Result<(), Errno> {
    let Some(source) = vfs::file::signals(&file.kind) else {
        if !on {
            return Ok(());
        }
        let what = "signal-driven I/O of another file than a pipe or socket";
        cx.host.report.unsupported("ioctl", what.to_owned());
        return Err(Errno::ENOTTY);
    };
    fd::file_mut(cx, id)?.flags.set(OpenFlags::ASYNC, on);
    cx.kernel.async_io.change(id, |registration| {
        registration.source = on.then_some(source);
    });
    Ok(())
}

impl Owner {
    /// The process of that number.
    ///
    /// # Errors
    /// `ESRCH` if there is none. Linux differs: F_SETOWN takes threads too.
    pub fn process(kernel: &Kernel, number: i32) -> Result<Self, Errno> {
        let process = kernel.processes.get(&Pid(number)).ok_or(Errno::ESRCH)?;
        Ok(Self::Process(process.pid, process.birth))
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

    /// `events` of `source` may hold from now on (0: any may): who owns a description of it gets SIGIO. Linux differs:
    /// room is told whether or not somebody has found none.
    pub(super) fn signal_owners(&mut self, source: Source, events: i16) {
        if self.async_io.sources.is_empty() {
            return;
        }
        // Each is told once, however many descriptions it owns.
        let mut owners = BTreeSet::new();
        let all = (source, FileId(0))..=(source, FileId(u64::MAX));
        for (_, id) in self.async_io.sources.range(all) {
            let Some(flags) = self.files.get(id).map(|file| file.flags) else {
                continue;
            };
            let reads = flags.readable() && (events == 0 || events & !ROOM != 0);
            let writes = flags.writable() && (events == 0 || events & !ARRIVAL != 0);
            if reads || writes {
                let one = self.async_io.files.get(id);
                owners.extend(one.and_then(|one| Some((one.owner?, one.sender))));
            }
        }
        let owns = |process: &&Process| {
            let as_one = Owner::Process(process.pid, process.birth);
            let as_member = Owner::Group(process.pgid);
            let mut owners = owners.iter();
            owners.any(|(owner, sender)| {
                let is_meant = *owner == as_one || *owner == as_member;
                is_meant && may_signal(*sender, self.creds_of(process.pid))
            })
        };
        let processes = self.processes.values().filter(owns);
        let processes: Vec<Pid> = processes.map(|process| process.pid).collect();
        let info = SigInfo {
            signo: SIGIO,
            code: SI_KERNEL,
            ..SigInfo::default()
        };
        for pid in processes {
            // It is a standard signal: there is always room.
            let _ = self.send_to_process(pid, info);
        }
    }
}
