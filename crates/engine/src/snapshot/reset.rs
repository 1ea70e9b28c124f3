//! Putting a fork back to its snapshot, and handing its VM on.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use kvmlet_hv::Kvm;
use kvmlet_linux::Machine;
use kvmlet_mem::{MemError, ResetReport};

use super::sizes::Size;
use super::vm_pool;
use super::{ForkMemory, Frozen, lock};
use crate::EngineError;
use crate::outcome::Ending;
use crate::sandbox::Sandbox;
use crate::vm::{self, BoundVm, GuestVm};

/// Private memory that a fork may keep from one request to the next, in bytes; beyond it the fork is
/// built anew.
const KEPT_MAX_BYTES: u64 = 64 << 20;

impl Sandbox {
    /// Puts a fork back to its snapshot's state: nothing of what it did since is left.
    pub(crate) fn reset_to(&mut self, frozen: &Arc<Frozen>) -> Result<(), EngineError> {
        frozen.check_process()?;
        // What ended badly may have left the vCPU or the tables in any state.
        let report = match self.ended {
            Some(_) => None,
            None => self.reset_memory(frozen)?,
        };
        let Some(report) = report else {
            return self.rebuild(frozen);
        };
        let memory = &mut self.personality.machine.memory;
        self.guest.scrub(memory, &self.setup.pages)?;
        self.guest.forget_younger_space(&frozen.kernel);
        self.personality.assign(frozen.next_kernel());
        self.personality.host.reset(&frozen.host);
        self.personality.host.clock.stop_at(frozen.frozen_ns);
        lock(&frozen.learned).note_pages(report.named(), report.dropped.iter().copied());
        self.last_reset = report;
        self.door = frozen.door;
        Ok(())
    }

    /// `None` if the fork must be built anew.
    fn reset_memory(&mut self, frozen: &Frozen) -> Result<Option<ResetReport>, EngineError> {
        let machine = &mut self.personality.machine;
        // What an unusual request has written would be compared by every later reset.
        if machine.spaces.copies() > lock(&frozen.learned).kept_max() {
            let written_pages = machine.spaces.written_copies();
            lock(&frozen.learned).note_size(Size::known(written_pages));
            return Ok(None);
        }
        let reset = machine
            .spaces
            .reset(&mut machine.memory, frozen.copy_keeper());
        if let Ok(report) = &reset {
            lock(&frozen.learned).note_size(Size::of(report));
        }
        match reset {
            Ok(report) if machine.memory.private_bytes() <= KEPT_MAX_BYTES => Ok(Some(report)),
            Ok(_) | Err(MemError::NeedsRebuild) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A new fork in the same VM. It is in a new VM if a fault of ours has left this one in a state that
    /// nobody knows.
    fn rebuild(&mut self, frozen: &Frozen) -> Result<(), EngineError> {
        // Until all is done there is nothing to run.
        let was = self.ended.replace(Ending::Broken);
        let ForkMemory {
            memory,
            spaces,
            slots,
            config,
        } = frozen.fork_memory()?;
        if was == Some(Ending::Broken) || self.is_suspect {
            self.guest = GuestVm::create(&Kvm::open()?, slots, config)?;
            self.is_suspect = false;
        } else {
            self.guest.bind(slots, config)?;
        }
        self.transport.forget_link();
        let clock = vm::clock_for(&frozen.clock, &mut self.guest.vcpu);
        self.personality.machine.memory = memory;
        self.personality.machine.spaces = spaces;
        self.personality.host.clock = clock;
        self.personality.assign(frozen.next_kernel());
        self.personality.host.reset(&frozen.host);
        self.watch_network();
        self.last_reset = ResetReport::default();
        self.ended = None;
        self.door = frozen.door;
        Ok(())
    }

    /// Ends this sandbox. The VM of a fork is kept: for the next fork of its snapshot if it can be put
    /// back, else for another program.
    pub fn retire(self) {
        // After a fault of ours the VM is closed with the sandbox.
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| self.hand_on()));
    }

    fn hand_on(mut self) {
        let Some(frozen) = self.origin.take() else {
            return;
        };
        let broken = self.is_suspect || self.ended == Some(Ending::Broken);
        if broken || frozen.check_process().is_err() {
            return;
        }
        let clean = self.ended.is_none() && matches!(self.reset_memory(&frozen), Ok(Some(_)));
        let Self {
            mut guest,
            personality,
            setup,
            ..
        } = self;
        let Ok(personality) = personality.into_inner() else {
            return;
        };
        let Machine {
            mut memory, spaces, ..
        } = personality.machine;
        if !clean || guest.scrub(&mut memory, &setup.pages).is_err() {
            return vm_pool::give_back(guest);
        }
        guest.forget_younger_space(&frozen.kernel);
        guest.start_count();
        frozen.ready.give_back(BoundVm {
            guest,
            memory,
            spaces,
            clock: personality.host.clock,
        });
    }
}
