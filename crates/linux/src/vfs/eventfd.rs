//! Event counters (eventfd(2)) as values.

use kvmlet_abi::Errno;

use super::ready::{POLLERR, POLLIN, POLLOUT};

/// An event counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EventFd {
    /// The count; `u64::MAX` cannot be reached by write(2).
    pub count: u64,
    /// The amount that read(2) takes.
    pub mode: EventMode,
}

/// The amount that a read takes from the count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventMode {
    /// All of it.
    Counter,
    /// EFD_SEMAPHORE: one.
    Semaphore,
}

impl EventFd {
    /// Takes and returns what read(2) answers, or `None` if it has to wait.
    pub fn take(&mut self) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let taken = match self.mode {
            EventMode::Counter => self.count,
            EventMode::Semaphore => 1,
        };
        self.count = self.count.saturating_sub(taken);
        Some(taken)
    }

    /// Adds to the count; `None` if that has to wait.
    ///
    /// # Errors
    /// `EINVAL` for `u64::MAX`.
    pub fn add(&mut self, value: u64) -> Result<Option<()>, Errno> {
        if value == u64::MAX {
            return Err(Errno::EINVAL);
        }
        let sum = self.count.checked_add(value).filter(|sum| *sum < u64::MAX);
        Ok(sum.map(|sum| self.count = sum))
    }

    /// poll(2) events that hold (eventfd_poll in fs/eventfd.c).
    #[must_use]
    pub fn poll(&self) -> i16 {
        let mut state = 0;
        if self.count > 0 {
            state |= POLLIN;
        }
        if self.count == u64::MAX {
            state |= POLLERR;
        }
        if self.count < u64::MAX - 1 {
            state |= POLLOUT;
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_overflow() {
        let mut event = EventFd {
            count: 3,
            mode: EventMode::Counter,
        };
        assert_eq!(event.poll(), POLLIN | POLLOUT);
        assert_eq!(event.take(), Some(3));
        assert_eq!(event.take(), None);
        assert_eq!(event.poll(), POLLOUT);
        assert_eq!(event.add(u64::MAX), Err(Errno::EINVAL));
        assert_eq!(event.add(u64::MAX - 1), Ok(Some(())));
        assert_eq!(event.poll(), POLLIN);
        assert_eq!(event.add(1), Ok(None));
        assert_eq!(event.add(0), Ok(Some(())));
        event.mode = EventMode::Semaphore;
        assert_eq!(event.take(), Some(1));
        assert_eq!(event.count, u64::MAX - 2);
        assert_eq!(event.poll(), POLLIN | POLLOUT);
    }
}
