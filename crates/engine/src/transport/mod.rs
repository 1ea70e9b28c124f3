//! How a system call travels from the guest to the personality and back.

/// Which ways a program's calls may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Calls {
    /// Whichever is cheaper now: by polling while that pays and a CPU is free, else by exit.
    #[default]
    Auto,
    /// Each call leaves the VM.
    Exit,
    /// A host thread polls for calls for as long as the guest runs.
    Poll,
}

impl Calls {
    /// The one with this name: "auto", "exit" or "poll".
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            "exit" => Some(Self::Exit),
            "poll" => Some(Self::Poll),
            _ => None,
        }
    }
}
