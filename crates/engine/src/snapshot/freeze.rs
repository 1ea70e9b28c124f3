//! Freezing: a program that has stopped becomes a snapshot, and its VM an empty one.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use kvmlet_hv::{Kvm, KvmKind};
use kvmlet_linux::{Cx, Machine, Personality, Tid, Vdso, settle};
use kvmlet_mem::DirtyBits;

use super::vm_pool::{self, ReadyVms};
use super::{Frozen, Snapshot};
use crate::run::ending;
use crate::sandbox::{Sandbox, Setup};
use crate::{EngineError, vm};

impl Snapshot {
    /// Freezes `sandbox`, whose guest is not running.
    pub(crate) fn freeze(mut sandbox: Sandbox) -> Result<Self, EngineError> {
        // What is left is between the program and us.
        sandbox.personality.drop_connections();
        // Their answers would come to this sandbox, which is gone then.
        sandbox.personality.drop_questions();
        sandbox.personality.park(&mut sandbox.guest.vcpu);
        sandbox.guest.vcpu.check()?;
        if let Some(end) = sandbox.personality.kernel.end {
            return Err(EngineError::Ended(ending(end)));
        }
        // A fork that has not run yet has not been told of the time since its own freeze.
        let told_ns = match &sandbox.origin {
            Some(frozen) if sandbox.woken != Some(sandbox.generation()) => Some(frozen.wall_ns),
            _ => None,
        };
        let generations = match &sandbox.origin {
            Some(frozen) => Arc::clone(&frozen.generations),
            None => Arc::default(),
        };
        let Sandbox {
            personality,
            mut guest,
            transport,
            setup,
            door,
            reseeding,
            fork_memory_bytes,
            asking,
            ..
        } = sandbox;
        let Personality {
            mut kernel,
            mut machine,
            mut host,
            ..
        } = personality.into_inner()?;
        let frozen_ns = kvmlet_linux::monotonic_ns(&host);
        let wall_ns = told_ns.unwrap_or_else(|| kvmlet_linux::realtime_ns(&host));
        let tid = kernel.threads.keys().next().copied().unwrap_or(Tid::FIRST);
        let mut cx = Cx {
            kernel: &mut kernel,
            machine: &mut machine,
            host: &mut host,
            tid,
        };
        let files = settle(&mut cx).map_err(|errno| {
            EngineError::Host(format!(
                "the program's mapped files cannot be frozen: {errno}"
            ))
        })?;
        let kvm_kind = guest.vcpu.kvm_kind().unwrap_or(KvmKind::Hardware);
        let dirty_bits = match kvm_kind == KvmKind::Hardware && Kvm::open()?.has_dirty_bits() {
            true => DirtyBits::Reliable,
            false => DirtyBits::Ignored,
        };
        let Machine {
            mut memory, spaces, ..
        } = machine;
        transport.detach();
        guest.scrub(&mut memory, &setup.pages)?;
        memory.drop_text_copies();
        // A fork's text would be put back at each reset: a place without a trampoline by now gets none.
        let vdso = Vdso {
            trampolines: None,
            ..setup.vdso
        };
        let mut clock = vm::clock_of(&mut guest.vcpu);
        clock.stop_at(i64::try_from(frozen_ns).unwrap_or(i64::MAX));
        // The guest's memory is about to become read-only.
        vm_pool::give_back(guest);
        // A fork may take back anything that is charged now.
        let used_bytes = memory.used_bytes();
        if let Some(len_bytes) = fork_memory_bytes {
            memory.limit_forks(len_bytes);
        }
        let memory = memory.freeze(spaces, used_bytes)?;
        let host = host.fork();
        Ok(Self(Arc::new(Frozen {
            forks_of_process: kvmlet_hv::forks(),
            memory,
            used_bytes,
            kernel,
            host,
            files,
            setup: Setup { vdso, ..setup },
            clock,
            frozen_ns,
            wall_ns,
            kvm_kind,
            dirty_bits,
            ready: ReadyVms::default(),
            learned: Mutex::default(),
            siblings: Mutex::default(),
            symbols: Mutex::default(),
            generations,
            forks: AtomicU64::new(0),
            door,
            reseeding,
            storages: asking.map(|asking| asking.storages),
        })))
    }
}
