//! After a reset everything is as in a new fork. The kernel value is compared field by field, the host
//! side by what it holds, and memory page by page. Needs /dev/kvm, gcc and make.

use std::time::Duration;

use super::compare::{State, check_equal, differing_pages, first_difference, state};
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;
use crate::testing::{Nobody, program};
use crate::{EngineError, Program};

const LIMIT: Option<Duration> = Some(Duration::from_secs(60));

fn ask(sandbox: &mut Sandbox, request: &str) -> Result<Vec<u8>, EngineError> {
    sandbox.send(request.as_bytes())?;
    Ok(sandbox.recv(LIMIT, &mut Nobody)?.to_vec())
}

/// Freezes the program; its state when it was frozen.
fn freeze(program: &Program) -> (Snapshot, State) {
    let mut sandbox = Sandbox::start(program).unwrap();
    sandbox.until_ready(LIMIT, &mut Nobody).unwrap();
    let before = state(&sandbox);
    (sandbox.freeze().unwrap(), before)
}

/// Resets after each row of requests, and compares.
fn check(program: &Program, wiped_pages: usize, rows: &[&[&str]]) {
    let (snapshot, frozen) = freeze(program);
    let mut fork = snapshot.fork().unwrap();
    let clean = state(&fork);
    // What MADV_WIPEONFORK asked for is the only difference to what was frozen.
    let wiped = differing_pages(&frozen, &clean);
    assert_eq!(wiped.len(), wiped_pages, "{wiped:?}");
    for round in 0..3 {
        for row in rows {
            let after = format!("{row:?} in round {round}");
            for request in *row {
                match ask(&mut fork, request) {
                    Ok(_) | Err(EngineError::Ended(_)) => {}
                    Err(error) => panic!("{after}: {error}"),
                }
            }
            let dirty = state(&fork);
            assert!(
                first_difference(&clean.kernel, &dirty.kernel).is_some()
                    || !differing_pages(&clean, &dirty).is_empty(),
                "{after}: nothing was changed"
            );
            fork.reset().unwrap();
            let found = state(&fork);
            check_equal(&clean, &found, &after);
            // A page that may be written now was to be written, and is a copy.
            for (at, writable) in &found.writable {
                let kept = *writable && !clean.writable[at];
                assert!(!kept || frozen.writable[at], "{at:#x} after {after}");
            }
        }
    }
    let other = snapshot.fork().unwrap();
    check_equal(&clean, &state(&other), "all that, in another fork");
}

#[test]
fn a_reset_undoes_everything() {
    check(
        &program("tests/guests", "warm", &[]),
        1,
        &[
            &["echo x"],
            &["dirty 700", "churn 200", "print x"],
            &["traces"],
            &["traces", "see"],
            &["twice"],
            &["crash"],
            &["traces", "exec"],
            &["file /tmp/warm/data more", "file /tmp/new more", "push x"],
            &["exit 3"],
        ],
    );
}

#[test]
fn a_reset_puts_threads_back() {
    check(
        &program("tests/guests", "parked", &[]),
        0,
        &[&["threads"], &["wake 3"], &["wake 4", "wake 5"]],
    );
}

#[test]
fn a_reset_takes_secrets_away() {
    for threads in ["0", "8"] {
        check(
            &program("tests/escape/guests", "secrets", &[threads]),
            0,
            &[
                &["plant 8f3c19d2e57a6b04"],
                &["plant 1d2e57a6b048f3c9", "find 0123456789abcdef"],
            ],
        );
    }
}

#[test]
fn the_clock_goes_on_from_the_freeze_after_each_reset() {
    let (snapshot, _) = freeze(&program("tests/guests", "warm", &[]));
    let clock = |sandbox: &Sandbox| kvmlet_linux::monotonic_ns(&sandbox.personality.host);
    let mut fork = snapshot.fork().unwrap();
    let frozen_ns = clock(&fork);
    for _ in 0..2 {
        ask(&mut fork, "echo x").unwrap();
        assert!(clock(&fork) > frozen_ns);
        fork.reset().unwrap();
        assert_eq!(clock(&fork), frozen_ns);
    }
}
