//! The Linux personality: what a system call means, in safe Rust, without KVM.
//!
//! Everything the guest can observe of its kernel is one [`Kernel`] value; a handler gets a [`Cx`]
//! and returns an [`Outcome`]: it never blocks. How a call reached us (an exit, a shared page) is
//! unknown here: a call is a thread's registers.
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

pub mod budget;
pub mod cx;
pub mod fd;
pub mod host;
pub mod hostfd;
pub mod id;
pub mod kernel;
pub mod outcome;
pub mod report;

pub mod channel;
pub mod clock;
pub mod exec;
pub mod frame;
pub mod guest_call;
pub mod guest_call_state;
pub mod mm;
pub mod personality;
pub mod rlimit;
pub mod sched;
pub mod signal;
pub mod symbols;
pub mod syscalls;
#[cfg(test)]
pub(crate) mod testing;
pub mod timer;
pub mod trace;
pub mod uts;
pub mod vfs;
pub use cx::Cx;
pub use host::Host;
pub use kernel::{Kernel, Pid, Tid};
pub use outcome::{Outcome, Wait};

#[cfg(test)]
mod rooms {
    use std::path::{Path, PathBuf};

    /// Modules by height: one may use those of its own height and below.
    const HEIGHTS: [&[&str]; 4] = [
        &["id", "uts"],
        &[
            "budget",
            "channel",
            "clock",
            "cx",
            "exec",
            "fd",
            "frame",
            "guest_call_state",
            "host",
            "hostfd",
            "kernel",
            "mm",
            "outcome",
            "report",
            "rlimit",
            "sched",
            "signal",
            "timer",
            "vfs",
        ],
        &["syscalls"],
        &["guest_call", "personality", "symbols", "trace"],
    ];

    fn height(module: &str) -> Option<usize> {
        HEIGHTS.iter().position(|modules| modules.contains(&module))
    }

    #[allow(clippy::disallowed_methods)]
    fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else {
                found.push(path);
            }
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn dependency_goes_down() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut found = Vec::new();
        sources(&root, &mut found);
        for path in &found {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
            let module = name.split(['/', '.']).next().unwrap();
            // Tests may use everything.
            if matches!(module, "lib" | "testing")
                || name.contains("test")
                || name.contains("fixture")
            {
                continue;
            }
            let own = height(module).unwrap_or_else(|| panic!("{module} has no height"));
            let text = std::fs::read_to_string(path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for line in code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
            {
                for (at, _) in line.match_indices("crate::") {
                    let used = line[at + 7..]
                        .split(|letter: char| !letter.is_alphanumeric() && letter != '_')
                        .next()
                        .unwrap();
                    let Some(theirs) = height(used) else { continue };
                    assert!(
                        theirs <= own,
                        "{name} uses {used}, which is above it: {line}"
                    );
                }
            }
        }
    }
}
