//! The share of sandboxes in the limits that the host sets to this process as a whole. These are
//! descriptors (RLIMIT_NOFILE) and mappings (vm.max_map_count). Half of each is the application's own.
//!
//! Everything that lasts is counted here, by a [`Held`] that lives as long as the thing itself. What one
//! call opens and closes again is not, nor are pollers' stacks: there are fewer than CPUs.
//! A child of fork(2) has copies of all that is counted, and of the counts.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::process::{Resource as HostLimit, getrlimit};

/// Linux's default of vm.max_map_count.
const MAX_MAP_COUNT_DEFAULT: usize = 65_530;
/// While no more descriptors are held the limit on them is not asked for: half of the lowest one that a
/// process with sandboxes can do with.
const UNASKED: usize = 32;

/// A thing that there is a limit on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resource {
    /// File descriptors.
    Descriptors,
    /// Mappings: lines of /proc/self/maps.
    Mappings,
}

/// The purpose that something is held for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// A guest asks for it. An eighth of the budget is kept from guests, so that there is room for VMs.
    Guest,
    /// A VM or what belongs to one.
    Vm,
    /// It must be had: memory that a guest has been promised, in few mappings however much it is.
    Promised,
}

/// Whose budget it is that is exhausted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// The sandbox's.
    Sandbox,
    /// That of all sandboxes together.
    Process,
}

/// A budget is exhausted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exhausted {
    /// Of what.
    pub resource: Resource,
    /// Whose.
    pub whose: Whose,
    /// The size of the budget.
    pub most: usize,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match self.whose {
            Whose::Sandbox => "a sandbox may have",
            Whose::Process => "all sandboxes together may have",
        };
        let what = match self.resource {
            Resource::Descriptors => "host descriptors",
            Resource::Mappings => "host mappings",
        };
        write!(f, "{who} {} {what}", self.most)
    }
}

impl std::error::Error for Exhausted {}

/// The amounts that are held: by one sandbox, or by all.
#[derive(Debug, Default)]
pub struct Share {
    descriptors: AtomicUsize,
    mappings: AtomicUsize,
}

static PROCESS: Share = Share {
    descriptors: AtomicUsize::new(0),
    mappings: AtomicUsize::new(0),
};

impl Share {
    /// The amount of it that is held.
    #[must_use]
    pub fn held(&self, resource: Resource) -> usize {
        self.count(resource).load(Ordering::Relaxed)
    }

    fn count(&self, resource: Resource) -> &AtomicUsize {
        match resource {
            Resource::Descriptors => &self.descriptors,
            Resource::Mappings => &self.mappings,
        }
    }

    fn give_back(&self, resource: Resource, count: usize) {
        self.count(resource).fetch_sub(count, Ordering::Relaxed);
    }
}

/// The amount that all sandboxes of this process hold.
#[must_use]
pub fn held(resource: Resource) -> usize {
    PROCESS.held(resource)
}

/// The process's limits do not change from now on, and are not asked for again: what asks is behind the
/// second wall.
pub fn fix_limits() {
    let _ = max_map_count();
    let _ = FIXED_NOFILE.set(nofile());
}

/// True once [`fix_limits`] has been called.
#[must_use]
pub fn are_limits_fixed() -> bool {
    FIXED_NOFILE.get().is_some()
}

static FIXED_NOFILE: OnceLock<usize> = OnceLock::new();

/// RLIMIT_NOFILE, as it is in force now.
fn nofile() -> usize {
    let soft = getrlimit(HostLimit::Nofile).current;
    soft.map_or(usize::MAX, |soft| {
        usize::try_from(soft).unwrap_or(usize::MAX)
    })
}

fn max_map_count() -> usize {
    static READ: OnceLock<usize> = OnceLock::new();
    *READ.get_or_init(|| {
        #[expect(
            clippy::disallowed_methods,
            reason = "a fact about the host, not a file for a guest"
        )]
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count");
        text.ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(MAX_MAP_COUNT_DEFAULT)
    })
}

/// What all sandboxes together may hold: half of what the process may have now.
fn of_process(resource: Resource) -> usize {
    let limit = match resource {
        Resource::Descriptors => FIXED_NOFILE.get().copied().unwrap_or_else(nofile),
        Resource::Mappings => max_map_count(),
    };
    limit / 2
}

/// The part of a process's budget that something is held from.
fn part(whole: usize, claim: Claim) -> usize {
    match claim {
        Claim::Guest => whole - whole / 8,
        Claim::Vm => whole,
        Claim::Promised => usize::MAX,
    }
}

/// Who has it.
#[derive(Debug)]
enum Holder {
    Process,
    Sandbox(Arc<Share>),
}

impl Holder {
    fn share(&self) -> &Share {
        match self {
            Self::Process => &PROCESS,
            Self::Sandbox(share) => share,
        }
    }

    fn most(&self, resource: Resource, claim: Claim) -> usize {
        match self {
            Self::Process => part(of_process(resource), claim),
            // So that one alone leaves something to others.
            Self::Sandbox(_) => of_process(resource) / 2,
        }
    }
}

/// A count of something that is held. It is given back when this is dropped.
#[derive(Debug)]
pub struct Held {
    holder: Holder,
    resource: Resource,
    claim: Claim,
    count: AtomicUsize,
}

impl Held {
    /// Takes `count` from the process's budget.
    ///
    /// # Errors
    /// [`Exhausted`]; never for [`Claim::Promised`].
    pub fn take(resource: Resource, claim: Claim, count: usize) -> Result<Self, Exhausted> {
        Self::new(Holder::Process, resource, claim, count)
    }

    /// Takes `count`, which cannot be refused, from the process's budget.
    #[must_use]
    pub fn promised(resource: Resource, count: usize) -> Self {
        PROCESS.count(resource).fetch_add(count, Ordering::Relaxed);
        Self {
            holder: Holder::Process,
            resource,
            claim: Claim::Promised,
            count: AtomicUsize::new(count),
        }
    }

    /// Takes `count` from a sandbox's budget. The process's is another matter.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub fn take_share(
        share: &Arc<Share>,
        resource: Resource,
        count: usize,
    ) -> Result<Self, Exhausted> {
        let holder = Holder::Sandbox(Arc::clone(share));
        Self::new(holder, resource, Claim::Guest, count)
    }

    fn new(
        holder: Holder,
        resource: Resource,
        claim: Claim,
        count: usize,
    ) -> Result<Self, Exhausted> {
        let held = Self {
            holder,
            resource,
            claim,
            count: AtomicUsize::new(0),
        };
        held.resize(count)?;
        Ok(held)
    }

    /// The amount it holds.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Holds `count` from now on. Only the owner of what is counted calls this, one call at a time.
    ///
    /// # Errors
    /// [`Exhausted`], and nothing changes; never for less than before.
    pub fn resize(&self, count: usize) -> Result<(), Exhausted> {
        let before = self.count();
        let share = self.holder.share();
        if count <= before {
            share.give_back(self.resource, before - count);
        } else {
            self.add(count - before)?;
        }
        self.count.store(count, Ordering::Relaxed);
        Ok(())
    }

    fn add(&self, more: usize) -> Result<(), Exhausted> {
        let counter = self.holder.share().count(self.resource);
        let mut most = None;
        let added = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            let after = held.checked_add(more)?;
            if self.resource == Resource::Descriptors && after <= UNASKED {
                return Some(after);
            }
            let most = most.get_or_insert_with(|| self.holder.most(self.resource, self.claim));
            (after <= *most).then_some(after)
        });
        let exhausted = |_| Exhausted {
            resource: self.resource,
            whose: match self.holder {
                Holder::Process => Whose::Process,
                Holder::Sandbox(_) => Whose::Sandbox,
            },
            most: most.unwrap_or(usize::MAX),
        };
        added.map(drop).map_err(exhausted)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let count = *self.count.get_mut();
        self.holder.share().give_back(self.resource, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_has_its_part_and_gives_it_back() {
        let share = Arc::new(Share::default());
        let most = of_process(Resource::Mappings) / 2;
        let one = Held::take_share(&share, Resource::Mappings, most - 1).unwrap();
        let other = Held::take_share(&share, Resource::Mappings, 1).unwrap();
        let refused = Held::take_share(&share, Resource::Mappings, 1).unwrap_err();
        assert_eq!((refused.whose, refused.most), (Whose::Sandbox, most));
        assert_eq!(one.resize(most), Err(refused));
        one.resize(5).unwrap();
        drop(other);
        assert_eq!(share.held(Resource::Mappings), 5);
        // Another sandbox's is its own.
        let second = Arc::new(Share::default());
        assert!(Held::take_share(&second, Resource::Mappings, most).is_ok());
        drop(one);
        assert_eq!(share.held(Resource::Mappings), 0);
        assert_eq!(second.held(Resource::Mappings), 0);
        assert_eq!(share.held(Resource::Descriptors), 0);
    }

    #[test]
    fn half_of_a_limit_is_the_applications() {
        assert!(of_process(Resource::Mappings) * 2 <= max_map_count());
        let whole = 1000;
        assert_eq!(part(whole, Claim::Guest), 875);
        assert_eq!(part(whole, Claim::Vm), whole);
        assert_eq!(part(0, Claim::Guest), 0);
        let too_many = of_process(Resource::Mappings) + 1;
        let refused = Held::take(Resource::Mappings, Claim::Vm, too_many).unwrap_err();
        assert_eq!(refused.whose, Whose::Process);
        assert!(Held::take(Resource::Mappings, Claim::Vm, usize::MAX).is_err());
    }
}
