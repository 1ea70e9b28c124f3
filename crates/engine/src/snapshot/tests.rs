//! After a reset everything is as in a new fork. The kernel value is compared field by field, the host
//! side by what it holds, and memory page by page. Needs /dev/kvm, gcc and make.

use std::collections::BTreeMap;
use std::time::Duration;

use kvmlet_abi::layout::{USER_END, USER_START};
use kvmlet_abi::{Gva, PAGE_SIZE};
use kvmlet_mem::PteFlags;

use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;
use crate::testing::{Nobody, program};
use crate::{EngineError, Program};

const LIMIT: Option<Duration> = Some(Duration::from_secs(60));

/// A page as the program sees it: its rights but for writing, and a hash of its content. The right
/// to write is left out because copies have it and frozen pages have not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    rights: PteFlags,
    contents: u64,
}

/// All that a request could change.
#[derive(Debug)]
struct State {
    kernel: String,
    host: String,
    pages: BTreeMap<u64, Page>,
    writable: BTreeMap<u64, bool>,
    used_bytes: (u64, u64),
}

fn hash(bytes: &[u8]) -> u64 {
    bytes
        .chunks_exact(8)
        .fold(0xcbf2_9ce4_8422_2325, |hash, word| {
            let word = u64::from_le_bytes(word.try_into().unwrap());
            (hash ^ word)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(23)
        })
}

fn state(sandbox: &Sandbox) -> State {
    let personality = &sandbox.personality;
    let machine = &personality.machine;
    let mut kernel = personality.kernel.clone();
    // Meant to differ.
    kernel.channel.generation = 0;
    let mut pages = BTreeMap::new();
    let mut writable = BTreeMap::new();
    let mut bytes = vec![0; PAGE_SIZE as usize];
    let (_, tables) = machine.spaces.iter().next().unwrap();
    tables
        .for_each_leaf(
            &machine.memory,
            USER_START,
            USER_END.0 - USER_START.0,
            |start, leaf| {
                for at in (start.0..start.0 + leaf.size.bytes()).step_by(PAGE_SIZE as usize) {
                    let gpa = leaf.gpa_of(Gva(at));
                    // The time is in there.
                    if gpa == sandbox.setup.vdso.data {
                        continue;
                    }
                    machine.memory.read(gpa, &mut bytes).unwrap();
                    let page = Page {
                        rights: leaf.flags & !PteFlags::WRITE,
                        contents: hash(&bytes),
                    };
                    pages.insert(at, page);
                    writable.insert(at, leaf.flags.contains(PteFlags::WRITE));
                }
            },
        )
        .unwrap();
    let host = &personality.host;
    State {
        kernel: format!("{kernel:#?}"),
        host: format!(
            "{:#?} {} {:?} {:?}",
            host.files, host.next_id, host.captured, host.report
        ),
        pages,
        writable,
        used_bytes: (
            machine.memory.resident_bytes(),
            machine.memory.limit_bytes(),
        ),
    }
}

/// The first lines that differ.
fn first_difference(one: &str, two: &str) -> Option<String> {
    let differs = |(_, (one, two)): &(usize, (&str, &str))| one != two;
    let pairs = one.lines().zip(two.lines()).enumerate();
    let lines = pairs.filter(differs).take(5);
    let lines: Vec<String> = lines
        .map(|(number, (one, two))| format!("line {number}: {one} -> {two}"))
        .collect();
    let same = lines.is_empty() && one.lines().count() == two.lines().count();
    (!same).then(|| lines.join("\n"))
}

fn differing_pages(one: &State, two: &State) -> Vec<String> {
    let keys: std::collections::BTreeSet<_> = one.pages.keys().chain(two.pages.keys()).collect();
    keys.into_iter()
        .filter(|at| one.pages.get(at) != two.pages.get(at))
        .map(|at| {
            format!(
                "{at:#x}: {:?} -> {:?}",
                one.pages.get(at),
                two.pages.get(at)
            )
        })
        .take(20)
        .collect()
}

fn check_equal(clean: &State, found: &State, after: &str) {
    assert_eq!(
        first_difference(&clean.kernel, &found.kernel),
        None,
        "kernel, after {after}"
    );
    assert_eq!(
        first_difference(&clean.host, &found.host),
        None,
        "host, after {after}"
    );
    assert_eq!(
        differing_pages(clean, found),
        Vec::<String>::new(),
        "pages, after {after}"
    );
    assert_eq!(
        clean.used_bytes, found.used_bytes,
        "memory used, after {after}"
    );
}

fn ask(sandbox: &mut Sandbox, request: &str) -> Result<Vec<u8>, EngineError> {
    sandbox.send(request.as_bytes())?;
    sandbox.recv(LIMIT, &mut Nobody)
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
