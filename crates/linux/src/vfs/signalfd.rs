//! Signals that are read (signalfd(2)). A description is only a set: what it reads is pending for the
//! thread that reads.

use kvmlet_abi::linux::SignalfdSiginfo;

use super::ready::POLLIN;
use crate::kernel::{Kernel, Tid};
use crate::outcome::Source;
use crate::signal::{SigDetail, SigInfo};

/// Size of struct signalfd_siginfo, in bytes.
pub const SIGINFO_BYTES: usize = size_of::<SignalfdSiginfo>();

impl Kernel {
    /// The signals pending for a thread, blocked ones included.
    #[must_use]
    pub fn pending_set(&self, tid: Tid) -> u64 {
        let Some(thread) = self.threads.get(&tid) else {
            return 0;
        };
        let process = self.processes.get(&thread.pid);
        let process = process.map_or(0, |process| process.signals.pending.set());
        thread.signals.pending.set() | process
    }

    /// A signal has become pending: who reads signals looks (signalfd_notify).
    pub fn signal_pending(&mut self) {
        self.wake(Source::Signals, POLLIN);
    }
}

/// A signal as struct signalfd_siginfo (signalfd_copyinfo in fs/signalfd.c).
#[must_use]
pub fn siginfo(info: &SigInfo) -> SignalfdSiginfo {
    let mut out = SignalfdSiginfo {
        ssi_signo: u32::from(info.signo),
        ssi_errno: info.errno,
        ssi_code: info.code,
        ..SignalfdSiginfo::default()
    };
    let sent = match info.detail {
        SigDetail::None => return out,
        SigDetail::Fault(address) => {
            out.ssi_addr = address;
            return out;
        }
        SigDetail::Sender { pid, uid, value } => {
            (out.ssi_pid, out.ssi_uid) = (pid, uid);
            value
        }
        SigDetail::Child {
            pid,
            uid,
            status,
            utime,
        } => {
            (out.ssi_pid, out.ssi_uid) = (pid, uid);
            (out.ssi_status, out.ssi_utime) = (status, utime);
            return out;
        }
        SigDetail::Poll { band, fd } => {
            (out.ssi_band, out.ssi_fd) = (u32::from(band.cast_unsigned()), fd);
            return out;
        }
        SigDetail::Timer { id, overrun, value } => {
            (out.ssi_tid, out.ssi_overrun) = (id, overrun);
            value
        }
    };
    out.ssi_int = (sent & u64::from(u32::MAX)) as u32;
    out.ssi_ptr = sent;
    out
}
