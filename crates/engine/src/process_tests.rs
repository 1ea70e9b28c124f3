//! Address spaces that come and go: page tables that are used again, and what an entry costs then. Needs
//! /dev/kvm, gcc and make.

use std::time::Duration;

use kvmlet_hv::KvmKind;

use crate::flush::SKIPS_DEAD_STORES;
use crate::run::Limits;
use crate::testing::{Nobody, program};
use crate::{Calls, Ending, Program, Sandbox, Stat, boot};

/// Children of one program, each with tables of its own: 64 dead tables are those of some eight of them.
fn children() -> u32 {
    match std::env::var("KVMLET_LONG").as_deref() {
        Ok("1") => 10_000,
        _ => 300,
    }
}

fn forks(children: u32) -> Program {
    Program {
        timeout: Some(Duration::from_secs(300)),
        calls: Calls::Exit,
        ..program("tests/guests", "forkmarks", &[&children.to_string()])
    }
}

/// The sandbox after its program's end, the way that it ended and its output.
fn run(program: &Program) -> (Sandbox, Ending, String) {
    let mut sandbox = boot::build(program).unwrap();
    let limits = Limits::of(program, sandbox.started_ns);
    let outcome = sandbox.run(limits, &mut Nobody).unwrap();
    let output = String::from_utf8_lossy(&outcome.stdout).into_owned();
    (sandbox, outcome.ending, output)
}

fn all_well(children: u32) -> String {
    format!("{children} children, 0 stale, 0 killed\n")
}

#[test]
fn a_table_used_again_shows_nothing_of_the_address_space_that_is_gone() {
    let children = children();
    let (_, ending, output) = run(&forks(children));
    assert_eq!((ending, output), (Ending::Exited(0), all_well(children)));
}

#[test]
fn a_table_used_again_too_early_shows_the_address_space_that_is_gone() {
    SKIPS_DEAD_STORES.set(true);
    let (sandbox, ending, output) = run(&forks(200));
    SKIPS_DEAD_STORES.set(false);
    if sandbox.guest.vcpu.kvm_kind() != Some(KvmKind::Software) {
        println!("skipped: hardware KVM has no shadows of tables");
        return;
    }
    println!("{ending:?}: {output}");
    // Programs that get each other's stacks may end in any way.
    assert_ne!((ending, output), (Ending::Exited(0), all_well(200)));
}

fn count(sandbox: &Sandbox, name: &str) -> u64 {
    let stats = sandbox.stats();
    let found = stats.iter().find(|(known, _)| known == name);
    match found {
        Some((_, Stat::Count(count))) => *count,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn children_like_others_before_need_no_slot_and_no_full_flush() {
    let counts = |children| {
        let (sandbox, _, output) = run(&forks(children));
        assert_eq!(output, all_well(children));
        let names = ["exits", "flushes", "flushes_full"];
        let [runs, flushes, full] = names.map(|name| count(&sandbox, name));
        println!("{children} children: {runs} runs, {flushes} flushes, {full} full");
        (sandbox.guest.vm.ioctls(), runs, flushes, full)
    };
    // Until dead tables come back for the first time, memory grows.
    let (ioctls, runs, flushes, full) = counts(60);
    let (ioctls_later, runs_later, flushes_later, full_later) = counts(120);
    assert_eq!((ioctls_later, full, full_later), (ioctls, 0, 0));
    // fork, write of the parent's marks, exit, wait: some runs for each child, and a flush for some.
    let per_child = (runs_later - runs) / 60;
    assert!(per_child <= 12, "{per_child} runs for each child");
    assert!(
        flushes_later - flushes <= 120,
        "{flushes} and {flushes_later} flushes"
    );
}
