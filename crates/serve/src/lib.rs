//! The front of `kvmlet serve`: HTTP for an unmodified server whose every request meets it as it was frozen.
//!
//! Clients are served here, by hyper. A request is read as a whole before a fork of the program is taken, so
//! that a slow client costs no fork. The fork gets it as one connection of HTTP/1.1 ([`wire`]). Its answer is
//! handed on as it comes, and it is reset once the last byte is there ([`pool`]). This room does not know what
//! a fork is: [`fork::Fork`] is all that it asks of one.
#![forbid(unsafe_code)]

mod access_log;
mod answer;
mod arrival;
mod body;
mod budget;
mod certificate;
mod connection;
mod control;
pub mod engine;
mod exchange;
mod fork;
#[cfg(test)]
mod front_tests;
mod guard;
mod head;
mod id;
mod keeper;
mod listener;
mod log;
mod metrics;
mod peer;
mod pool;
mod proxy_header;
mod response;
mod routes;
mod server;
mod service;
mod socket;
mod storage;
mod stream;
mod syntax;
#[cfg(test)]
mod testing;
mod tls;
mod upgrade;
mod warm;
mod wire;

pub use access_log::AccessLog;
pub use certificate::CertificateFiles;
pub use fork::{BootError, Ending, Fork, Master, Output, Program, Refusal, Reset};
pub use keeper::Keeper;
pub use listener::{Bound, Place, SetupError, raise_descriptor_limit};
pub use peer::{Cidr, TrustedProxies};
pub use routes::Route;
pub use server::{Commands, Notice, Server, Settings, Watch};
pub use service::{Isolate, ProgramSettings, Start};
pub use storage::{Storage, StorageSettings};
pub use tls::Tls;
pub use warm::WarmupRequest;
pub use wire::{Input, Wire};
