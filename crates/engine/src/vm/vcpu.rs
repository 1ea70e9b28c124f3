//! A vCPU as the personality needs it.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use kvmlet_hv::{HvError, Vcpu, XState};
use kvmlet_linux::Cpu;

use crate::EngineError;

/// A vCPU with a buffer for the extended state that moves in and out of it.
#[derive(Debug)]
pub(crate) struct VcpuState {
    vcpu: Vcpu,
    buffer: XState,
    /// The state that a program starts with.
    initial: XState,
    /// The first error of an extended-state call: the sandbox is broken then.
    failed: Option<HvError>,
}

impl VcpuState {
    pub fn new(vcpu: Vcpu) -> Self {
        let buffer = XState::new(vcpu.xstate_layout());
        Self {
            initial: buffer.clone(),
            vcpu,
            buffer,
            failed: None,
        }
    }

    /// The error of an extended-state call since the last look.
    pub fn check(&mut self) -> Result<(), EngineError> {
        self.failed.take().map_or(Ok(()), |error| Err(error.into()))
    }
}

impl Deref for VcpuState {
    type Target = Vcpu;

    fn deref(&self) -> &Vcpu {
        &self.vcpu
    }
}

impl DerefMut for VcpuState {
    fn deref_mut(&mut self) -> &mut Vcpu {
        &mut self.vcpu
    }
}

impl Cpu for VcpuState {
    fn save_xstate(&mut self) -> Arc<[u8]> {
        if let Err(error) = self.vcpu.save_xstate(&mut self.buffer) {
            self.failed.get_or_insert(error);
        }
        self.buffer.to_bytes().into()
    }

    fn load_xstate(&mut self, image: Option<&[u8]>) {
        if let Some(bytes) = image
            && self.buffer.set_bytes(bytes).is_ok()
            && self.vcpu.load_xstate(&self.buffer).is_ok()
        {
            return;
        }
        if let Err(error) = self.vcpu.load_initial_xstate(&self.initial) {
            self.failed.get_or_insert(error);
        }
    }
}
