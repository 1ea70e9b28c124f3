//! openat2(2) (linux/openat2.h).

pub const RESOLVE_CACHED: u64 = 0x20;
/// Size of the first struct open_how, in bytes.
pub const OPEN_HOW_SIZE_VER0: u64 = 24;

guest_struct! {
    /// struct open_how (openat2(2))
    pub struct OpenHow { pub flags: u64, pub mode: u64, pub resolve: u64, }
}
