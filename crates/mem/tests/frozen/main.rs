//! Frozen memory, forks of it, and resets.

mod fixture;
mod forks;
mod resets;
mod windows;
