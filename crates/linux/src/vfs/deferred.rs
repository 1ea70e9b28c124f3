//! Work that is done for a call when the program has its answer. If calls are polled, the program goes on
//! meanwhile; everywhere it is done before the program's next call.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvmlet_hostfs::attr::Attr;
use kvmlet_hostfs::{Credentials, HostFd};

use super::access;
use crate::host::{Host, HostId};

/// For how long the attributes of a file that has just been opened are told again. Programs ask for them
/// as the next thing that they do.
const FRESH: Duration = Duration::from_micros(200);

/// The work that is left to do, and what came of it last.
#[derive(Debug, Default)]
pub struct Deferred {
    /// Descriptors without a reference.
    closing: Vec<Arc<HostFd>>,
    opened: Option<Opened>,
    /// Calls made so far.
    calls: u64,
    told: Option<Told>,
}

/// A file that has been opened, and what was found by its name just before.
#[derive(Debug)]
struct Opened {
    id: HostId,
    found: Attr,
    /// Who asked for it.
    who: Credentials,
    /// The call that opened it.
    call: u64,
}

#[derive(Debug)]
struct Told {
    id: HostId,
    attr: Attr,
    /// The call that opened it.
    call: u64,
    at: Instant,
}

impl Deferred {
    /// A descriptor has lost its last reference.
    pub fn close(&mut self, fd: Arc<HostFd>) {
        self.closing.push(fd);
    }

    /// `id` has been opened for `who`, by the name of what had `found`.
    pub fn check(&mut self, id: HostId, found: &Attr, who: Credentials) {
        self.opened = Some(Opened {
            id,
            found: *found,
            who,
            call: self.calls,
        });
    }
}

impl Host {
    /// The attributes of `id`, if the call before has opened it, a moment ago.
    #[must_use]
    pub fn told(&self, id: HostId) -> Option<Attr> {
        let told = self.deferred.told.as_ref()?;
        let next = told.id == id && told.call.saturating_add(1) == self.deferred.calls;
        (next && (self.now)().duration_since(told.at) < FRESH).then_some(told.attr)
    }

    /// A call begins, or is made again. What another one has left to do comes first.
    pub fn begin_call(&mut self) {
        self.finish_call();
        self.deferred.calls = self.deferred.calls.saturating_add(1);
    }

    /// Does what the last call has left to do.
    pub fn finish_call(&mut self) {
        self.deferred.closing.clear();
        if let Some(opened) = self.deferred.opened.take() {
            self.check_opened(&opened);
        }
    }

    /// Another file may have taken the name between the look and the open.
    fn check_opened(&mut self, opened: &Opened) {
        let Opened {
            id,
            found,
            who,
            call,
        } = opened;
        let Ok(fd) = self.fd(*id) else { return };
        match access::check_opened(self, who, fd.as_fd(), found) {
            Ok(attr) => {
                self.share_file(*id, &attr);
                self.deferred.told = Some(Told {
                    id: *id,
                    attr,
                    call: *call,
                    at: (self.now)(),
                });
            }
            // Linux differs: the call has been answered, so that the descriptor is of no use instead.
            Err(_) => drop(self.files.remove(id)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make their own files")]

    use super::*;
    use crate::personality::{Cpu, Personality};
    use crate::testing::{Sandbox, TempTree};
    use kvmlet_hostfs::HostKind;
    use kvmlet_hostfs::attr::S_IFREG;

    /// No thread has run: nothing is asked of it.
    struct NoCpu;

    impl Cpu for NoCpu {
        fn save_xstate(&mut self) -> Arc<[u8]> {
            unreachable!("no thread has run")
        }

        fn load_xstate(&mut self, _: Option<&[u8]>) {
            unreachable!("no thread has run")
        }
    }

    /// A directory that has been opened as a file, and the calls that must not find it.
    fn unchecked(name: &str, act: impl FnOnce(&mut Personality)) {
        let tree = TempTree::new(name);
        let Sandbox {
            kernel,
            machine,
            mut host,
            ..
        } = Sandbox::new(&tree.0);
        let directory = std::fs::File::open(&tree.0).unwrap();
        let id = host.insert(directory.into(), HostKind::File);
        let found = Attr {
            mode: S_IFREG | 0o644,
            ..Attr::default()
        };
        let who = host.credentials.clone();
        host.deferred.check(id, &found, who);
        let mut personality = Personality::new(kernel, machine, host);
        act(&mut personality);
        assert!(personality.host.get(id).is_err());
    }

    #[test]
    fn what_was_opened_is_checked_before_a_freeze() {
        unchecked("parked", |personality| personality.park(&mut NoCpu));
    }

    #[test]
    fn what_was_opened_is_checked_before_the_next_call() {
        unchecked("next-call", |personality| personality.host.begin_call());
    }
}
