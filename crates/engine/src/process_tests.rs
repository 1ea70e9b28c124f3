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

/// Pages with which a program's children leave no tables to each other: they die.
const TOO_LARGE: u32 = 600;

fn guest(name: &str, args: &[u32]) -> Program {
    let words: Vec<String> = args.iter().map(u32::to_string).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Program {
        timeout: Some(Duration::from_secs(300)),
        calls: Calls::Exit,
        ..program("tests/guests", name, &words)
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
    let (_, ending, output) = run(&guest("forkmarks", &[children, TOO_LARGE]));
    assert_eq!((ending, output), (Ending::Exited(0), all_well(children)));
}

#[test]
fn a_child_with_the_tables_of_another_sees_each_page_as_it_is_now() {
    let children = children();
    let (_, ending, output) = run(&guest("forkmarks", &[children]));
    assert_eq!((ending, output), (Ending::Exited(0), all_well(children)));
}

#[test]
fn a_table_used_again_too_early_shows_the_address_space_that_is_gone() {
    SKIPS_DEAD_STORES.set(true);
    let (sandbox, ending, output) = run(&guest("forkmarks", &[200, TOO_LARGE]));
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
        let (sandbox, _, output) = run(&guest("forkmarks", &[children]));
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

/// The runs of the vCPU and the fills of KVM's own tables (`pf_fixed`) over all of a program's life. `None` where KVM does
/// not count them.
fn cost(program: &Program, expected: &str) -> Option<(u64, u64)> {
    let (mut sandbox, ending, output) = run(program);
    assert_eq!((ending, output.as_str()), (Ending::Exited(0), expected));
    let counters = sandbox.kvm_stats().unwrap();
    let fixed = counters.iter().find(|(name, _)| name == "pf_fixed");
    let runs = count(&sandbox, "exits");
    let cost = fixed.map(|(_, fills)| (runs, *fills));
    if cost.is_none() {
        println!("skipped: this KVM does not count its fills");
    }
    cost
}

#[test]
fn a_switch_between_64_processes_needs_no_fill() {
    let of = |rounds: u32| {
        let last = rounds * 64 % 256;
        let expected = format!("{rounds} rounds, {last} at the end, 63 ended\n");
        cost(&guest("ring", &[rounds]), &expected)
    };
    let Some(((_, few), (_, many))) = of(10).zip(of(60)) else {
        return;
    };
    println!("{few} fills with 10 rounds, {many} with 60");
    // 3,200 switches more. The host's clock interrupts at other places.
    assert!(many <= few + 64, "{few} and {many} fills");
}

#[test]
fn a_small_child_like_the_one_before_needs_no_fill() {
    let of = |children: u32| {
        let expected = format!("{children} of {children} children\n");
        cost(&guest("children", &[children]), &expected)
    };
    let Some(((runs, few), (runs_later, many))) = of(20).zip(of(120)) else {
        return;
    };
    println!("{few} fills with 20 children, {many} with 120; {runs} and {runs_later} runs");
    assert!(many <= few + 20, "{few} and {many} fills");
    // fork, a call of the library's in the child, exit, wait.
    assert!(runs_later <= runs + 100 * 5, "{runs} and {runs_later} runs");
}
