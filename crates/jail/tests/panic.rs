//! A panic behind the wall is reported and caught: no call on that way kills the process instead.
//!
//! The wall is for good, so it is raised in a process of its own: this program, started anew.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, abort};

use kvmlet_jail::wall;
use kvmlet_policy::Policy;

const INSIDE: &str = "KVMLET_TEST_INSIDE";
const READABLE: &str = "KVMLET_TEST_READABLE";

fn main() -> ExitCode {
    if std::env::var_os(INSIDE).is_some() {
        panic_behind_the_wall();
    }
    let program = std::env::current_exe().expect("a program has a path");
    let cases = [
        ("0", None),
        ("1", None),
        ("full", None),
        ("full", Some(READABLE)),
    ];
    for (backtrace, readable) in cases {
        let output = Command::new(&program)
            .env(INSIDE, "1")
            .env("RUST_BACKTRACE", backtrace)
            .envs(readable.map(|name| (name, "1")))
            .output()
            .expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        let aborted = output.status.signal() == Some(libc::SIGABRT);
        let reported = said.contains("behind the wall") && said.contains("caught");
        let traced = said.contains("stack backtrace:") == (backtrace != "0");
        if !aborted || !reported || !traced {
            eprintln!("RUST_BACKTRACE={backtrace}: {:?}\n{said}", output.status);
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn panic_behind_the_wall() -> ! {
    // What a backtrace looks into is readable once, and once it is not.
    let program = std::env::current_exe().expect("a program has a path");
    let here = program.parent().expect("it lies in a directory");
    let policy = match std::env::var_os(READABLE) {
        Some(_) => Policy::with_working_directory(here.as_os_str().as_bytes()),
        None => Ok(Policy::default()),
    };
    let report = wall(&policy.expect("it may be readable")).raise();
    let caught = std::panic::catch_unwind(|| {
        assert!(report.on.is_empty(), "behind the wall: {report:?}");
    });
    if caught.is_err() {
        eprintln!("caught");
    }
    // Not by exit: a program of Rust's own gives its signal stack back there, which no extension has.
    abort()
}
