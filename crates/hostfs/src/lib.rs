//! Files of the host: this room alone opens them. It knows nothing of the personality that asks for them.
//!
//! Host calls on files are denied everywhere else (clippy.toml).
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "the only opener of host files")]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod absent;
pub mod attr;
pub mod change;
mod credentials;
mod directories;
mod error;
mod file;
mod handle;
mod hostfd;
mod listing;
pub mod locks;
mod lookup_cache;
mod machine;
mod object;
pub mod passed;
mod roots;
mod spill;
pub mod stdio;
pub mod stream;
pub mod terminal;
#[cfg(test)]
mod testing;
pub mod xattr;

pub use credentials::{Credentials, Enforcement, Ids, caller, check_mode};
pub use directories::Directories;
pub use file::{HostFile, HostKind};
pub use handle::{Handle, attr_in, locate_in};
pub use hostfd::{HostFd, OpenFiles};
pub use listing::{Listing, list};
pub use lookup_cache::LookupCache;
pub use machine::cpuinfo;
pub use object::{
    Shown, attr_of, birth_time, birth_time_in, file_system, is_kernel_file, is_same, read_at,
    read_link,
};
pub use roots::{Lookup, PATH_MAX, Roots, working_directory};
pub use spill::{EXTENT_BYTES, EXTENT_PAGES, Extent, Spill};
