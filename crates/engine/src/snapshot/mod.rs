//! Frozen programs and their forks.

#[cfg(test)]
pub(crate) mod compare;
mod freeze;
mod learned;
mod reset;
mod siblings;
mod sizes;
mod symbols;
#[cfg(test)]
mod tests;
mod vm_pool;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvmlet_abi::Gva;
use kvmlet_hv::{Kvm, KvmKind, VcpuConfig};
use kvmlet_linux::{Door, Host, Kernel, MappedFile};
use kvmlet_mem::{DirtyBits, FrozenMemory, GuestMemory, MmId, SlotMemory, Spaces};
use kvmlet_stub::vdso::HostClock;

use crate::asking::{Asking, Storages};
use crate::clones::Reseeding;
use crate::prepare::raise_descriptor_limit;
use crate::sandbox::{Sandbox, Setup};
use crate::time::now_ns;
use crate::vm::{self, BoundVm, GuestVm};
use crate::{EngineError, Stat};
use learned::Learned;
use siblings::Siblings;
use symbols::Symbols;

pub(crate) use siblings::Youth;
use vm_pool::ReadyVms;

pub use vm_pool::forget_vms;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The part of a snapshot that all its forks share.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// [`kvmlet_hv::forks`] in the process that froze it.
    forks_of_process: u32,
    memory: Arc<FrozenMemory>,
    /// The memory that the program used when it was frozen.
    used_bytes: u64,
    pub kernel: Kernel,
    pub host: Host,
    files: Vec<MappedFile>,
    setup: Setup,
    /// The value that the clocks of forks begin as.
    clock: HostClock,
    /// The time that its monotonic clock shows.
    frozen_ns: u64,
    /// CLOCK_REALTIME when it was frozen.
    pub wall_ns: u64,
    kvm_kind: KvmKind,
    dirty_bits: DirtyBits,
    ready: ReadyVms,
    learned: Mutex<Learned>,
    siblings: Mutex<Siblings>,
    symbols: Mutex<Symbols>,
    /// Forks and resets of this program. A fork that is frozen has forks that differ from it, and from its siblings; what
    /// other programs do is not seen.
    generations: Arc<AtomicU64>,
    forks: AtomicU64,
    /// The place where the program waited for connections.
    door: Option<Door>,
    /// The functions that a fork calls before its first connection.
    pub reseeding: Vec<Reseeding>,
    /// Those whom forks may ask.
    storages: Option<Arc<dyn Storages>>,
}

/// A fork's memory, and what its VM is bound to.
#[derive(Debug)]
struct ForkMemory {
    memory: GuestMemory,
    spaces: Spaces,
    slots: Vec<SlotMemory>,
    config: VcpuConfig,
}

/// A frozen program: any number of forks can be made of it, one after another or at once.
#[derive(Clone, Debug)]
pub struct Snapshot(Arc<Frozen>);

impl Snapshot {
    /// A sandbox that goes on where this snapshot was frozen.
    ///
    /// # Errors
    /// [`EngineError::Stale`] when a mapped file has changed since the freeze,
    /// [`EngineError::Descriptors`], [`EngineError::Host`] or [`EngineError::Kvm`] when the host
    /// refuses what a VM needs.
    pub fn fork(&self) -> Result<Sandbox, EngineError> {
        let frozen = &self.0;
        frozen.check_process()?;
        frozen.check_files()?;
        let started_ns = now_ns();
        let bound = match frozen.ready.take() {
            Some(bound) => bound,
            None => frozen.bind()?,
        };
        frozen.forks.fetch_add(1, Ordering::Relaxed);
        frozen.start(bound, started_ns)
    }

    /// Binds VMs ahead, until `count` wait to be forks. From now on as many forks that are given up are
    /// kept, clean, for the next ones.
    ///
    /// # Errors
    /// As [`Snapshot::fork`]; those bound before stay.
    pub fn prepare(&self, count: usize) -> Result<(), EngineError> {
        self.0.check_process()?;
        self.0.ready.keep_at_least(count);
        while self.0.ready.len() < count {
            self.0.ready.add(self.0.bind()?);
        }
        Ok(())
    }

    /// Gives up bound VMs beyond `count`, and keeps no more from now on.
    pub fn trim(&self, count: usize) {
        self.0.ready.trim(count);
    }

    /// The place where the program was last found to wait for connections, before it was frozen
    /// ([`Sandbox::until_listening`]).
    #[must_use]
    pub fn door(&self) -> Option<Door> {
        self.0.door
    }

    /// Counts, for people and benches.
    #[must_use]
    pub fn stats(&self) -> Vec<(String, Stat)> {
        let frozen = &self.0;
        let ready = frozen.ready.len() as u64;
        let learned = lock(&frozen.learned).ahead().len() as u64;
        [
            ("forks", frozen.forks.load(Ordering::Relaxed)),
            ("ready", ready),
            ("learned_pages", learned),
            ("frozen_bytes", frozen.used_bytes),
        ]
        .into_iter()
        .map(|(name, count)| (name.to_owned(), Stat::Count(count)))
        .collect()
    }
}

impl Frozen {
    fn check_process(&self) -> Result<(), EngineError> {
        if self.forks_of_process == kvmlet_hv::forks() {
            Ok(())
        } else {
            Err(EngineError::OtherProcess)
        }
    }

    fn check_files(&self) -> Result<(), EngineError> {
        match self
            .files
            .iter()
            .find(|file| !file.is_unchanged(&self.host))
        {
            None => Ok(()),
            Some(file) => Err(EngineError::Stale(
                String::from_utf8_lossy(file.name()).into_owned(),
            )),
        }
    }

    /// A VM with the snapshot's memory: an emptied one or a new one. Out of descriptors, the limit on
    /// them is raised as far as it may be.
    fn bind(&self) -> Result<BoundVm, EngineError> {
        let caught = std::panic::catch_unwind(AssertUnwindSafe(|| match self.bind_once() {
            Err(EngineError::Descriptors) if raise_descriptor_limit() => self.bind_once(),
            other => other,
        }));
        caught.unwrap_or_else(|panic| Err(EngineError::from_panic(panic.as_ref())))
    }

    fn bind_once(&self) -> Result<BoundVm, EngineError> {
        let blank = vm_pool::take_blank();
        let ForkMemory {
            memory,
            spaces,
            slots,
            config,
        } = self.fork_memory()?;
        let mut guest = match blank {
            Some(mut guest) => {
                guest.bind(slots, config)?;
                guest
            }
            None => GuestVm::create(&Kvm::open()?, slots, config)?,
        };
        let clock = vm::clock_for(&self.clock, &mut guest.vcpu);
        Ok(BoundVm {
            guest,
            memory,
            spaces,
            clock,
        })
    }

    /// A fork's memory, with the pages that requests are known to write copied ahead.
    fn fork_memory(&self) -> Result<ForkMemory, EngineError> {
        let (mut memory, mut spaces) = self.memory.fork()?;
        let first = spaces.iter().next().map(|(_, tables)| tables.root());
        let root = first.ok_or_else(|| EngineError::Internal("nothing was frozen".to_owned()))?;
        let pages = lock(&self.learned).ahead().into_iter();
        spaces.rely_on_dirty_bits(self.dirty_bits);
        spaces.copy_ahead(&mut memory, pages, self.copy_keeper())?;
        let pages = &self.setup.pages;
        Ok(ForkMemory {
            slots: memory.take_new_slots(),
            config: pages.vcpu_config(&memory, root, Some(self.kvm_kind))?,
            memory,
            spaces,
        })
    }

    /// Chooses the copies of frozen pages that may stay mapped through a reset.
    fn copy_keeper(&self) -> impl FnMut(MmId, Gva) -> bool {
        copy_keeper_of(&self.kernel)
    }

    fn next_kernel(&self) -> Kernel {
        let mut kernel = self.kernel.clone();
        // Never 0, which is the program before its first freeze.
        kernel.channel.generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        kernel
    }

    fn start(
        self: &Arc<Self>,
        mut bound: BoundVm,
        started_ns: u64,
    ) -> Result<Sandbox, EngineError> {
        // It goes on in a VM that was a fork's before.
        bound.clock.stop_at(self.frozen_ns);
        let host = self.host.fork();
        let mut sandbox = Sandbox::new(bound, host, &self.setup, started_ns, |_, _| {
            Ok(self.next_kernel())
        })?;
        sandbox.origin = Some(Arc::clone(self));
        sandbox.door = self.door;
        sandbox.asking = self.storages.clone().map(Asking::of);
        Ok(sandbox)
    }
}

/// Says of pages, by the address spaces of `kernel`, if a copy may be mapped writable for them.
fn copy_keeper_of(kernel: &Kernel) -> impl FnMut(MmId, Gva) -> bool {
    let mut keepers: BTreeMap<MmId, _> = BTreeMap::new();
    move |id, gva| {
        let of_space = || kernel.mms.get(&id).map(|mm| mm.copy_keeper());
        let keeper = keepers.entry(id).or_insert_with(of_space);
        keeper.as_mut().is_some_and(|keeps| keeps(gva))
    }
}
