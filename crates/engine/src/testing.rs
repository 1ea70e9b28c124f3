//! Guest programs of the tests, and somebody to run them for.

use std::path::PathBuf;
use std::process::Command;

pub(crate) use crate::run::Nobody;
use crate::{Calls, Program, Streams, Trace, Trees, policy_for};

/// A guest program, built if need be: under the lock of its directory, for others build there at the same
/// time, and not as a part of the make that runs the tests.
pub(crate) fn program(directory: &str, name: &str, args: &[&str]) -> Program {
    let guests = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(directory)
        .canonicalize()
        .unwrap();
    let made = Command::new("flock")
        .arg(&guests)
        .args(["make", "--silent", "-C"])
        .arg(&guests)
        .env_remove("MAKEFLAGS")
        .arg(format!("build/{name}"))
        .status()
        .unwrap();
    assert!(made.success(), "{name} does not build");
    let build = guests.join("build");
    let words =
        std::iter::once(format!("./{name}")).chain(args.iter().map(|arg| (*arg).to_owned()));
    let build = build.into_os_string().into_encoded_bytes();
    let (policy, cwd) = policy_for(&build, Trees::default()).unwrap();
    Program {
        argv: words.map(String::into_bytes).collect(),
        env: Vec::new(),
        policy,
        access: Default::default(),
        cwd,
        streams: Streams::Capture {
            input: Vec::new(),
            output_limit_bytes: 1 << 20,
        },
        timeout: None,
        cpu_time: None,
        memory_bytes: 256 << 20,
        disk: None,
        processes_max: 256,
        files_max: kvmlet_linux::FILES_MOST,
        trace: Trace::Off,
        calls: Calls::default(),
    }
}
