//! The vDSO: clock functions that a program calls without leaving the VM, and the host clock that
//! feeds their data page.
//!
//! The engine maps, in this order: one page for [`kvmlet_abi::vdso_data::VdsoData`] (readable), then
//! [`image`] (readable and executable); AT_SYSINFO_EHDR points at the image. [`HostClock`] keeps the
//! data page.

mod clock;
mod host;
mod rate;

pub use clock::{ClockConfig, GuestTimeOffsets, GuestTsc, HostClock};

/// Length of the data page, which lies directly before the image.
pub const DATA_LEN_BYTES: u64 = kvmlet_abi::PAGE_SIZE;

static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vdso.so"));

/// The vDSO as an ELF shared object of at most two pages, without relocations or writable data; it
/// is mapped as it is.
pub fn image() -> &'static [u8] {
    IMAGE
}
