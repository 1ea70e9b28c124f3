//! Signals that are read (signalfd(2)). A description is only a set: what it reads is pending for the
//! thread that reads.

use super::ready::POLLIN;
use crate::kernel::{Kernel, Tid};
use crate::outcome::Source;
use crate::signal::{SigDetail, SigInfo};

/// Size of struct signalfd_siginfo, in bytes.
pub const SIGINFO_BYTES: usize = 128;

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
pub fn siginfo(info: &SigInfo) -> [u8; SIGINFO_BYTES] {
    let mut out = [0u8; SIGINFO_BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(into) = out.get_mut(at..at.saturating_add(bytes.len())) {
            into.copy_from_slice(bytes);
        }
    };
    put(0, &u32::from(info.signo).to_le_bytes());
    put(4, &info.errno.to_le_bytes());
    put(8, &info.code.to_le_bytes());
    let mut value = |value: u64| {
        // ssi_int is its low half, ssi_ptr all of it.
        put(44, value.to_le_bytes().get(..4).unwrap_or_default());
        put(48, &value.to_le_bytes());
    };
    match info.detail {
        SigDetail::None => {}
        SigDetail::Fault(address) => put(72, &address.to_le_bytes()),
        SigDetail::Sender {
            pid,
            uid,
            value: sent,
        } => {
            value(sent);
            put(12, &pid.to_le_bytes());
            put(16, &uid.to_le_bytes());
        }
        SigDetail::Timer {
            id,
            overrun,
            value: sent,
        } => {
            value(sent);
            put(24, &id.to_le_bytes());
            put(32, &overrun.to_le_bytes());
        }
    }
    out
}
