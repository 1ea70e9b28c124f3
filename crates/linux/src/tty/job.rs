//! Job control: the rules for uses of a terminal from the background, and controlling terminals
//! (drivers/tty/tty_jobctrl.c).

use kvmlet_abi::Errno;
use kvmlet_abi::linux::signal::{SIG_IGN, SIGCONT, SIGHUP, SIGTTIN, SIGTTOU};
use kvmlet_hostfs::terminal::JobSignal;

use super::{Ctty, PtyEnd, Side};
use crate::cx::Cx;
use crate::id::Pid;
use crate::kernel::Kernel;
use crate::signal::{SI_KERNEL, SigInfo, bit};

/// Whose job has the terminal in the foreground.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The caller's, or nobody asks.
    Ours,
    /// Another one: the caller is stopped until it is continued in the foreground, and its call is made again then.
    Theirs,
}

/// A use from the background: it is refused, or passes, or brings the signal, as [`Background`] says.
///
/// # Errors
/// `EIO` where the signal would not stop the caller.
pub fn use_from_background(
    cx: &mut Cx<'_>,
    signal: JobSignal,
    background: Background,
) -> Result<Owner, Errno> {
    let signo = match signal {
        JobSignal::Input => SIGTTIN,
        JobSignal::Output => SIGTTOU,
    };
    let is_blocked = cx.thread()?.signals.mask & bit(signo) != 0;
    let process = cx.process()?;
    let group = process.pgid;
    if is_blocked || process.signals.action(signo).handler == SIG_IGN {
        return match signal {
            JobSignal::Input => Err(Errno::EIO),
            JobSignal::Output => Ok(Owner::Ours),
        };
    }
    match background {
        Background::Orphaned => Err(Errno::EIO),
        Background::Group => {
            cx.kernel.send_to_group(group, signo);
            Ok(Owner::Theirs)
        }
        Background::Sandbox => Ok(Owner::Theirs),
    }
}

/// The jobs that are in the background.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Background {
    /// The caller's process group, which gets the signal.
    Group,
    /// A group that nobody would continue.
    Orphaned,
    /// All of the sandbox, which gets no signal.
    Sandbox,
}

/// Says if the caller may use an end of a pseudo-terminal now. Only the controlling terminal asks.
///
/// # Errors
/// As [`use_from_background`].
pub fn check(cx: &mut Cx<'_>, end: PtyEnd, signal: JobSignal) -> Result<Owner, Errno> {
    if end.side == Side::Master {
        return Ok(Owner::Ours);
    }
    check_slave(cx, end.index, signal)
}

/// As [`check`], for the slave of what a master controls.
///
/// # Errors
/// As [`use_from_background`].
pub fn check_slave(cx: &mut Cx<'_>, index: u32, signal: JobSignal) -> Result<Owner, Errno> {
    let process = cx.process()?;
    let (group, ctty) = (process.pgid, process.ctty);
    let foreground = cx.kernel.ptys.get(index)?.foreground;
    if ctty != Some(Ctty::Pty(index)) || foreground.is_none_or(|one| one == group) {
        return Ok(Owner::Ours);
    }
    let background = match cx.kernel.is_orphaned(group) {
        true => Background::Orphaned,
        false => Background::Group,
    };
    use_from_background(cx, signal, background)
}

/// Says if a process group may get the foreground of a session's terminal (tcsetpgrp(3)).
///
/// # Errors
/// `ESRCH` for no such group, `EPERM` for one of another session.
pub fn check_group(kernel: &Kernel, group: Pid, session: Pid) -> Result<(), Errno> {
    let mut members = kernel.kin().filter(|one| one.pgid == group);
    match members.next() {
        Some(one) if one.sid == session => Ok(()),
        Some(_) => Err(Errno::EPERM),
        // A number of a process that is no group is one all the same.
        None if kernel.kin().any(|one| one.pid == group) => Err(Errno::EPERM),
        None => Err(Errno::ESRCH),
    }
}

impl Kernel {
    /// A session leader without a controlling terminal gets one (__proc_set_tty).
    fn set_ctty(&mut self, pid: Pid, index: u32) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        process.ctty = Some(Ctty::Pty(index));
        process.former_foreground = None;
        let (session, group) = (process.sid, process.pgid);
        if let Ok(pty) = self.ptys.get_mut(index) {
            (pty.session, pty.foreground) = (Some(session), Some(group));
        }
    }

    /// A slave has been opened for reading without O_NOCTTY: a session leader without a controlling terminal gets
    /// it if no other session has it.
    pub fn take_ctty_on_open(&mut self, pid: Pid, index: u32) {
        let is_free = |pty: &super::Pty| pty.session.is_none();
        let process = self.processes.get(&pid);
        if process.is_some_and(|one| one.sid == one.pid && one.ctty.is_none())
            && self.ptys.get(index).is_ok_and(is_free)
        {
            self.set_ctty(pid, index);
        }
    }

    /// TIOCSCTTY. `is_stolen` asks for that of another session, which takes root.
    ///
    /// # Errors
    /// `EPERM` for a process that leads no session or has a terminal, and for a terminal of another session.
    pub fn take_ctty(&mut self, pid: Pid, index: u32, wish: Wish) -> Result<(), Errno> {
        let process = self.processes.get(&pid).ok_or(Errno::ESRCH)?;
        let (is_leader, own) = (process.sid == process.pid, process.sid);
        let has_one = process.ctty.is_some();
        let session = self.ptys.get(index)?.session;
        if is_leader && session == Some(own) {
            return Ok(());
        }
        if !is_leader || has_one {
            return Err(Errno::EPERM);
        }
        if let Some(other) = session {
            if wish != Wish::Steal || self.creds_of(pid).user.effective != 0 {
                return Err(Errno::EPERM);
            }
            self.clear_ctty(other, index);
        }
        self.set_ctty(pid, index);
        Ok(())
    }

    /// TIOCNOTTY: a process gives its controlling terminal up. A session leader does it for all of its session.
    pub fn leave_ctty(&mut self, pid: Pid) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let (sid, ctty) = (process.sid, process.ctty.take());
        if let Some(Ctty::Pty(index)) = ctty
            && sid == pid
        {
            self.disassociate(sid, index, &[SIGHUP, SIGCONT]);
        }
    }

    /// The leader of a session has ended: the foreground process group gets SIGHUP, and nobody of the session has
    /// a controlling terminal any more (disassociate_ctty).
    pub fn session_leader_gone(&mut self, sid: Pid, ctty: Option<Ctty>, former: Option<Pid>) {
        match (ctty, former) {
            (Some(Ctty::Pty(index)), _) => self.disassociate(sid, index, &[SIGHUP]),
            (None, Some(group)) => {
                self.send_to_group(group, SIGHUP);
                self.send_to_group(group, SIGCONT);
            }
            _ => {}
        }
    }

    fn disassociate(&mut self, sid: Pid, index: u32, signals: &[u8]) {
        let Ok(pty) = self.ptys.get_mut(index) else {
            return;
        };
        if pty.session != Some(sid) {
            return;
        }
        pty.session = None;
        if let Some(group) = pty.foreground.take() {
            for signo in signals {
                self.send_to_group(group, *signo);
            }
        }
        self.clear_ctty(sid, index);
    }

    /// Nobody of a session has this controlling terminal any more.
    fn clear_ctty(&mut self, sid: Pid, index: u32) {
        let members = self.processes.values().filter(|one| one.sid == sid);
        let members: Vec<Pid> = members
            .filter(|one| one.ctty == Some(Ctty::Pty(index)))
            .map(|one| one.pid)
            .collect();
        for pid in members {
            if let Some(process) = self.processes.get_mut(&pid) {
                process.ctty = None;
            }
        }
    }

    /// The master of a pseudo-terminal is closed: the leader of its session gets SIGHUP and SIGCONT, and the session
    /// has no controlling terminal any more (__tty_hangup).
    pub(super) fn hang_up(&mut self, index: u32) {
        let Ok(pty) = self.ptys.get_mut(index) else {
            return;
        };
        let (session, foreground) = (pty.session.take(), pty.foreground.take());
        let Some(sid) = session else {
            return;
        };
        self.clear_ctty(sid, index);
        if let Some(leader) = self.processes.get_mut(&sid) {
            leader.former_foreground = foreground;
            for signo in [SIGHUP, SIGCONT] {
                let info = SigInfo {
                    signo,
                    code: SI_KERNEL,
                    ..SigInfo::default()
                };
                // They are standard signals: there is always room.
                let _ = self.send_to_process(sid, info);
            }
        }
    }
}

/// A wish of TIOCSCTTY.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// A terminal that no session has.
    Free,
    /// This one, whoever has it.
    Steal,
}
