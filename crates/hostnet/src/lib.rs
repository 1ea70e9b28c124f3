//! Sockets of the host: the only room that opens any.
//!
//! It takes plain values and decides nothing: `linux` has asked the rules before. All sockets are close-on-exec and
//! never block. They are counted as host descriptors of the sandbox that they are opened for. A thread of the process
//! looks out for all of them ([`events`]).
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
#![allow(
    clippy::disallowed_methods,
    reason = "this is the room for sockets; the host's files belong to another"
)]

pub mod access;
pub mod events;
pub mod listener;
pub mod resolver;
pub mod socket;
pub mod unix;

pub use access::Access;
pub use events::{Events, Ready, Watch};
pub use listener::Listener;
pub use resolver::{Answer, Found, Resolver};
pub use socket::{Connected, HostSocket, Moved, OpenError};
pub use unix::Traffic;
