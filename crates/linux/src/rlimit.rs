//! Resource limits (getrlimit(2)): what a program may set for itself, within the sandbox's own limits.
//!
//! Nobody here has capabilities: a hard limit never rises. Limits belong to the process, are shared by
//! its threads and stay over execve(2).

use kvmlet_abi::Errno;

use crate::cx::Cx;

pub use kvmlet_abi::linux::resource::RLIM_INFINITY as INFINITY;

/// A resource that is limited; the numbers are Linux's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resource {
    /// RLIMIT_CPU, in seconds
    Cpu = 0,
    /// RLIMIT_FSIZE, in bytes
    Fsize = 1,
    /// RLIMIT_DATA, in bytes
    Data = 2,
    /// RLIMIT_STACK, in bytes
    Stack = 3,
    /// RLIMIT_CORE, in bytes. There are no core dumps.
    Core = 4,
    /// RLIMIT_RSS, in bytes. It has no effect on Linux either.
    Rss = 5,
    /// RLIMIT_NPROC: threads
    Nproc = 6,
    /// RLIMIT_NOFILE: one more than the highest descriptor
    Nofile = 7,
    /// RLIMIT_MEMLOCK, in bytes
    Memlock = 8,
    /// RLIMIT_AS, in bytes
    AddressSpace = 9,
    /// RLIMIT_LOCKS. It has no effect on Linux either.
    Locks = 10,
    /// RLIMIT_SIGPENDING: queued signals and POSIX timers
    Sigpending = 11,
    /// RLIMIT_MSGQUEUE, in bytes of a user's POSIX message queues.
    Msgqueue = 12,
    /// RLIMIT_NICE. Priorities have no effect on one vCPU.
    Nice = 13,
    /// RLIMIT_RTPRIO
    Rtprio = 14,
    /// RLIMIT_RTTIME, in microseconds. Nobody has a real-time policy.
    Rttime = 15,
}

impl Resource {
    /// Every resource, by number.
    pub const ALL: [Self; 16] = [
        Self::Cpu,
        Self::Fsize,
        Self::Data,
        Self::Stack,
        Self::Core,
        Self::Rss,
        Self::Nproc,
        Self::Nofile,
        Self::Memlock,
        Self::AddressSpace,
        Self::Locks,
        Self::Sigpending,
        Self::Msgqueue,
        Self::Nice,
        Self::Rtprio,
        Self::Rttime,
    ];

    /// The resource with this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}

/// A limit on one resource.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rlimit {
    /// The limit that is enforced.
    pub soft: u64,
    /// The highest that `soft` may be set to.
    pub hard: u64,
}

impl Rlimit {
    const UNLIMITED: Self = Self {
        soft: INFINITY,
        hard: INFINITY,
    };

    const fn both(value: u64) -> Self {
        Self {
            soft: value,
            hard: value,
        }
    }
}

/// The limits of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rlimits {
    by_number: [Rlimit; 16],
}

/// The stack of a fresh login, in bytes.
const STACK: u64 = 8 << 20;
/// Threads, descriptors and queued signals, each: what a sandbox is allowed at all. A descriptor may cost
/// the host one, a thread and a queued signal cost it memory.
const COUNTED: u64 = 1024;
/// Descriptors that a process may have at most, whatever the caller says.
pub const FILES_MOST: u64 = COUNTED;
/// Locked memory of a fresh login, in bytes.
const MEMLOCK: u64 = 8 << 20;
/// Message queues of a fresh login, in bytes.
const MSGQUEUE: u64 = 819_200;

impl Rlimits {
    /// The limits of a sandbox's first process: a fresh login's, where no limit of the sandbox itself is
    /// tighter.
    #[must_use]
    pub fn initial() -> Self {
        let by_number = Resource::ALL.map(|resource| match resource {
            Resource::Stack => Rlimit {
                soft: STACK,
                hard: INFINITY,
            },
            Resource::Core => Rlimit {
                soft: 0,
                hard: INFINITY,
            },
            Resource::Nproc | Resource::Nofile | Resource::Sigpending => Rlimit::both(COUNTED),
            Resource::Memlock => Rlimit::both(MEMLOCK),
            Resource::Msgqueue => Rlimit::both(MSGQUEUE),
            Resource::Nice | Resource::Rtprio => Rlimit::both(0),
            Resource::Cpu
            | Resource::Fsize
            | Resource::Data
            | Resource::Rss
            | Resource::AddressSpace
            | Resource::Locks
            | Resource::Rttime => Rlimit::UNLIMITED,
        });
        Self { by_number }
    }

    /// The limit on a resource.
    #[must_use]
    pub fn get(&self, resource: Resource) -> Rlimit {
        let limit = self.by_number.get(resource as usize);
        limit.copied().unwrap_or(Rlimit::UNLIMITED)
    }

    /// The soft limit on a resource.
    #[must_use]
    pub fn soft(&self, resource: Resource) -> u64 {
        self.get(resource).soft
    }

    /// Sets the limit on a resource (do_prlimit in kernel/sys.c).
    ///
    /// # Errors
    /// `EINVAL` for a soft limit above the hard one; `EPERM` for a higher hard limit.
    pub fn set(&mut self, resource: Resource, new: Rlimit) -> Result<(), Errno> {
        if new.soft > new.hard {
            return Err(Errno::EINVAL);
        }
        if new.hard > self.get(resource).hard {
            return Err(Errno::EPERM);
        }
        self.put(resource, new);
        Ok(())
    }

    /// Limits the descriptors of a sandbox's first process, and so of all.
    pub(crate) fn limit_files(&mut self, most: u64) {
        self.put(Resource::Nofile, Rlimit::both(most.min(FILES_MOST)));
    }

    /// Sets the limit on a resource as the kernel does by itself.
    pub(crate) fn put(&mut self, resource: Resource, new: Rlimit) {
        if let Some(limit) = self.by_number.get_mut(resource as usize) {
            *limit = new;
        }
    }
}

/// The calling process's soft limit on a resource.
///
/// # Errors
/// `ESRCH` if the process is gone.
pub fn soft(cx: &mut Cx<'_>, resource: Resource) -> Result<u64, Errno> {
    Ok(cx.process()?.rlimits.soft(resource))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_linux_numbers() {
        for (number, resource) in (0u32..).zip(Resource::ALL) {
            assert_eq!(resource as u32, number);
            assert_eq!(Resource::from_number(number), Some(resource));
        }
        assert_eq!(Resource::from_number(16), None);
        assert_eq!(Resource::from_number(u32::MAX), None);
    }

    #[test]
    fn hard_limits_never_rise() {
        let mut limits = Rlimits::initial();
        let set =
            |limits: &mut Rlimits, soft, hard| limits.set(Resource::Locks, Rlimit { soft, hard });
        assert_eq!(set(&mut limits, 2, 1), Err(Errno::EINVAL));
        assert_eq!(set(&mut limits, INFINITY, 5), Err(Errno::EINVAL));
        assert_eq!(set(&mut limits, 5, 5), Ok(()));
        assert_eq!(set(&mut limits, 0, 6), Err(Errno::EPERM));
        assert_eq!(set(&mut limits, INFINITY, INFINITY), Err(Errno::EPERM));
        assert_eq!(set(&mut limits, 0, 5), Ok(()));
        assert_eq!(limits.get(Resource::Locks), Rlimit { soft: 0, hard: 5 });
    }

    #[test]
    fn initial_soft_limits_are_within_the_hard_ones() {
        let limits = Rlimits::initial();
        for resource in Resource::ALL {
            let limit = limits.get(resource);
            assert!(limit.soft <= limit.hard, "{resource:?}");
        }
    }
}
