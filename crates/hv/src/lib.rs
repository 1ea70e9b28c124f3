//! The only user of KVM: virtual machines, virtual CPUs, and a run loop. It turns every exit into a
//! [`kvmlet_abi::Trap`] with user-mode registers, on hardware and on software KVM alike.
//!
//! Errors are [`HvError`]; nothing a guest does panics or hangs the host: [`Vcpu::run`] always
//! returns, at the latest at the next kick.
#![allow(unsafe_code)]

pub mod bare;
mod call_page;
mod cpu;
mod error;
mod ioctl;
mod kick;
mod kvm;
pub mod probe;
mod selectors;
mod state;
mod stats;
mod vcpu;
mod vm;
mod xstate;

pub use call_page::{CallPage, PostMode};
pub use cpu::cpuid_1_edx;
pub use error::HvError;
pub use kick::{Kicker, block_signals, forks};
pub use kvm::Kvm;
pub use kvmlet_stub::KvmKind;

pub use state::{Piece, PutBack, Row, STATE};
pub use stats::Stats;
pub use vcpu::{Counters, FlushFull, Vcpu, VcpuConfig};
pub use vm::Vm;
pub use xstate::{XState, XStateLayout};
