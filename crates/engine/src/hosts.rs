//! Host descriptors that threads of the guest wait for, and the network.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use kvmlet_linux::Watch;

use crate::EngineError;
use crate::run::{Drive, Stop};
use crate::sandbox::Sandbox;
use crate::time::{TICK_NS, now_ns};

/// Stack of the thread that looks out for events, in bytes.
const STACK_BYTES: usize = 64 << 10;

/// The time that an ended program's last bytes have to leave, in nanoseconds.
const DRAIN_NS: u64 = 3_000_000_000;

impl Sandbox {
    /// Waits until one of them is ready, at most this long, and wakes who waits for it.
    pub(crate) fn poll_hosts(&mut self, wait: Duration) -> Result<(), EngineError> {
        let waits = self.personality.host_waits();
        if waits.is_empty() && wait.is_zero() {
            self.personality.network_ready();
            return Ok(());
        }
        let mut files = Vec::with_capacity(waits.len());
        for (id, events) in &waits {
            if let Ok(fd) = self.personality.host.fd(*id) {
                files.push((
                    *id,
                    fd,
                    PollFlags::from_bits_truncate(events.cast_unsigned()),
                ));
            }
        }
        let mut fds: Vec<PollFd<'_>> = files
            .iter()
            .map(|(_, fd, events)| PollFd::new(fd.as_ref(), *events))
            .collect();
        let network = self.personality.host.outside.as_fd();
        fds.extend(network.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let wait = match self.personality.host.outside.has_rung() {
            true => Duration::ZERO,
            false => wait,
        };
        let timeout = Timespec::try_from(wait).unwrap_or_default();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(EngineError::Host(format!("poll: {error}"))),
        }
        let ready: Vec<_> = fds
            .iter()
            .zip(&files)
            .filter(|(fd, _)| !fd.revents().is_empty())
            .map(|(_, (id, _, _))| *id)
            .collect();
        for id in ready {
            self.personality.host_ready(id);
        }
        self.personality.network_ready();
        Ok(())
    }

    /// Waits until the host has what the program has sent, for a moment: its end does not depend on those who do not
    /// read.
    pub(crate) fn drain_network(
        &mut self,
        drive: &mut Drive<'_>,
    ) -> Result<Option<Stop>, EngineError> {
        let until_ns = now_ns().saturating_add(DRAIN_NS);
        while self.personality.drain_network() {
            let wait_ns = match self.personality.kernel.objects.sockets.has_due() {
                true => 0,
                false => TICK_NS,
            };
            self.poll_hosts(Duration::from_nanos(wait_ns))?;
            let now_ns = now_ns();
            let cut = drive.check(now_ns);
            if cut.is_some() || now_ns >= until_ns {
                return Ok(cut);
            }
        }
        Ok(None)
    }

    /// Has the guest stopped when something arrives for it while it computes.
    pub(crate) fn watch_network(&mut self) {
        if !self.personality.host.has_network() {
            return;
        }
        let Some((watch, is_new)) = Watch::of_process() else {
            return;
        };
        if is_new {
            let run = move || {
                kvmlet_hv::block_signals();
                watch.run();
            };
            // Without it the guest learns of it when it leaves for another reason.
            let builder = std::thread::Builder::new().name("kvmlet-net".to_owned());
            let _ = builder.stack_size(STACK_BYTES).spawn(run);
        }
        let kicker = self.kicker();
        self.personality
            .host
            .outside
            .set_kick(move || kicker.kick());
    }
}
