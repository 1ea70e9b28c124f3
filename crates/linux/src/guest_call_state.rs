//! A function of the program's that the host has called ([`crate::guest_call`]), as a part of the kernel value.

use std::sync::Arc;

use imbl::Vector;
use kvmlet_abi::{Gva, UserRegs};

use crate::kernel::{Kernel, Tid, XState};
use crate::outcome::CallState;
use crate::sched::{Call, Parked};
use crate::signal::Interrupted;

/// The kind of value that the function returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Returns {
    /// An integer, a pointer or nothing: `rax`.
    Integer,
    /// A float or double: `xmm0`.
    Float,
}

/// The values that a function has returned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CallReturn {
    /// `rax`: an integer or pointer in as many low bytes as its type has.
    pub rax: u64,
    /// The low half of `xmm0`; `None` unless [`Returns::Float`] was asked for.
    pub xmm0: Option<u64>,
    /// The [`crate::guest_call::CallArg::Buffer`] arguments as they are now, in order.
    pub buffers: Vec<Vec<u8>>,
}

/// The host's call, as a part of the kernel value.
#[derive(Clone, Debug, Default)]
pub enum HostCall {
    /// There is none.
    #[default]
    Idle,
    /// It has not returned.
    Running(Arc<CallFrame>),
    /// It has.
    Returned(CallReturn),
    /// It never will.
    Lost,
}

impl HostCall {
    /// The thread that it runs on.
    #[must_use]
    pub fn tid(&self) -> Option<Tid> {
        match self {
            Self::Running(frame) => Some(frame.tid),
            Self::Idle | Self::Returned(_) | Self::Lost => None,
        }
    }

    /// True if it runs on this thread and gets no child.
    #[must_use]
    pub fn is_childless(&self, tid: Tid) -> bool {
        match self {
            Self::Running(frame) => frame.tid == tid && frame.is_childless,
            Self::Idle | Self::Returned(_) | Self::Lost => false,
        }
    }
}

impl Kernel {
    /// A thread ends, or its program is replaced: a call that runs on it is lost.
    pub fn lose_call(&mut self, tid: Tid) {
        if self.call.tid() == Some(tid) {
            self.call = HostCall::Lost;
        }
    }
}

/// The state that a borrowed thread gets back, and the results that are asked of the call.
#[derive(Clone, Debug)]
pub struct CallFrame {
    pub(crate) tid: Tid,
    pub(crate) regs: UserRegs,
    pub(crate) xstate: XState,
    pub(crate) mask: u64,
    pub(crate) saved_mask: Option<u64>,
    pub(crate) interrupted: Option<Interrupted>,
    pub(crate) suspended: Suspended,
    /// Its stack pointer when the function has returned.
    pub(crate) returned_rsp: u64,
    pub(crate) returns: Returns,
    pub(crate) buffers: Vector<(Gva, usize)>,
    /// It gets no child, as if there were too many processes.
    pub(crate) is_childless: bool,
}

/// The system call that the thread was in.
#[derive(Clone, Debug)]
pub(crate) enum Suspended {
    /// It waited.
    Wait(Parked),
    /// It was woken and was about to be made again.
    Again(Call, CallState),
}
