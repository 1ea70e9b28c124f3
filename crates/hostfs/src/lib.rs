//! Files of the host: this room alone opens them. It knows nothing of the personality that asks for them.
//!
//! Host calls on files are denied everywhere else (clippy.toml).
#![forbid(unsafe_code)]
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

pub mod attr;
mod credentials;

pub use credentials::{Credentials, Enforcement, caller, check_mode};
