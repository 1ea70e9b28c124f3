//! The extended state of the thread that runs: read, loaded, and made anew.

use std::io;

use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_ptr};

use super::Vcpu;
use crate::cpu::CR4_OSXSAVE;
use crate::ioctl::{KVM_GET_XSAVE, KVM_GET_XSAVE2, KVM_SET_XSAVE};
use crate::{HvError, XState, XStateLayout};
use kvmlet_stub::KvmKind;

impl Vcpu {
    /// Shape of the extended state.
    #[must_use]
    pub fn xstate_layout(&self) -> XStateLayout {
        self.xstate
    }

    /// Reads the extended state of the thread that ran last. Costs an ioctl.
    ///
    /// # Errors
    /// [`HvError::Call`] when KVM refuses.
    pub fn save_xstate(&mut self, state: &mut XState) -> Result<(), HvError> {
        self.check_layout(state)?;
        if self.is_clean_due {
            *state = XState::new(self.xstate);
            return Ok(());
        }
        self.counters.ioctls += 1;
        let request = if self.has_xsave2 {
            KVM_GET_XSAVE2()
        } else {
            KVM_GET_XSAVE()
        };
        // SAFETY: the buffer has the length that KVM reported for this VM (4096 for the old call).
        let ret = unsafe { ioctl_with_mut_ptr(&self.fd, request, state.as_mut_ptr()) };
        if ret == 0 {
            state.keep_enabled();
            Ok(())
        } else {
            Err(HvError::last("KVM_GET_XSAVE2"))
        }
    }

    /// Loads the extended state that a program starts with, for the next run: `initial`, an [`XState::new`]. On hardware the
    /// stub does it on its way to ring 3; elsewhere it costs an ioctl.
    ///
    /// # Errors
    /// As [`Vcpu::load_xstate`].
    pub fn load_initial_xstate(&mut self, initial: &XState) -> Result<(), HvError> {
        let in_stub = self.kvm_kind == Some(KvmKind::Hardware)
            && self.xstate.xcr0 != 0
            && self.initial.cr4 & CR4_OSXSAVE != 0;
        if !in_stub {
            return self.load_xstate(initial);
        }
        self.is_clean_due = true;
        Ok(())
    }

    /// Loads the extended state for the next run. Costs an ioctl.
    ///
    /// # Errors
    /// [`HvError::BadXState`] for an image that KVM rejects, [`HvError::Call`] otherwise.
    pub fn load_xstate(&mut self, state: &XState) -> Result<(), HvError> {
        self.check_layout(state)?;
        self.counters.ioctls += 1;
        // SAFETY: the buffer has the length that KVM reported for this VM.
        let ret = unsafe { ioctl_with_ptr(&self.fd, KVM_SET_XSAVE(), state.as_ptr()) };
        if ret == 0 {
            self.is_clean_due = false;
            return Ok(());
        }
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::EINVAL) => Err(HvError::BadXState("KVM rejects it")),
            _ => Err(HvError::last("KVM_SET_XSAVE")),
        }
    }

    fn check_layout(&self, state: &XState) -> Result<(), HvError> {
        if state.layout() == self.xstate {
            Ok(())
        } else {
            Err(HvError::BadXState("made for another kind of vCPU"))
        }
    }
}
