//! Host descriptors that threads of the guest wait for.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::EngineError;
use crate::sandbox::Sandbox;

impl Sandbox {
    /// Waits until one of them is ready, at most this long, and wakes who waits for it.
    pub(crate) fn poll_hosts(&mut self, wait: Duration) -> Result<(), EngineError> {
        let waits = self.personality.host_waits();
        if waits.is_empty() && wait.is_zero() {
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
        Ok(())
    }
}
