//! uname(2) (linux/utsname.h).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// struct new_utsname (uname(2)): six NUL-padded fields of 65 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Utsname {
    pub fields: [[u8; 65]; 6],
}
