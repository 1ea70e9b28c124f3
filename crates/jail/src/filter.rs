//! seccomp: the list of calls as programs of the kernel's filter machine.

use std::collections::BTreeMap;

use rustix::process::getpid;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

use crate::calls::{Answer, Call, When};

/// Confines all threads of this process to `calls`; `Err` says why it does not.
pub(crate) fn install(calls: &[Call]) -> Result<(), String> {
    let text = |error: seccompiler::Error| format!("seccomp: {error}");
    for program in programs(calls).map_err(|error| format!("seccomp: {error}"))? {
        apply_filter_all_threads(&program).map_err(text)?;
    }
    Ok(())
}

/// True if this kernel filters calls and kills a process for one; `None` if it does not say.
#[must_use]
pub fn seccomp_is_available() -> Option<bool> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a fact about the host, not a file for a guest"
    )]
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail");
    match actions {
        Ok(actions) => Some(
            actions
                .split_whitespace()
                .any(|word| word == "kill_process"),
        ),
        Err(error) => (error.kind() == std::io::ErrorKind::NotFound).then_some(false),
    }
}

/// Two programs, of which the stricter answer counts: one answers calls that shall seem not to exist, the
/// other kills for what is not on the list.
fn programs(calls: &[Call]) -> Result<[BpfProgram; 2], BackendError> {
    let pid = getpid().as_raw_nonzero().get().unsigned_abs();
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut absent: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut whole = Vec::new();
    for call in calls {
        if call.answer == Answer::NoSuchCall {
            absent.entry(call.number).or_default();
        }
        let rules = allowed.entry(call.number).or_default();
        if call.when.is_empty() {
            whole.push(call.number);
        } else {
            let conditions: Result<_, _> =
                call.when.iter().map(|when| condition(*when, pid)).collect();
            rules.push(SeccompRule::new(conditions?)?);
        }
    }
    // No rule at all means any arguments.
    for number in whole {
        allowed.entry(number).or_default().clear();
    }
    let compile = |rules, other, listed| {
        SeccompFilter::new(rules, other, listed, TargetArch::x86_64)?.try_into()
    };
    let no_such_call = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    Ok([
        compile(absent, SeccompAction::Allow, no_such_call)?,
        compile(allowed, SeccompAction::KillProcess, SeccompAction::Allow)?,
    ])
}

/// Of each argument that is looked at, the kernel takes the lower 32 bits only.
fn condition(when: When, pid: u32) -> Result<SeccompCondition, BackendError> {
    let (argument, operator, value) = match when {
        When::Is(argument, value) => (argument, SeccompCmpOp::Eq, value),
        When::Masked(argument, mask, value) => {
            (argument, SeccompCmpOp::MaskedEq(u64::from(mask)), value)
        }
        When::OwnProcess(argument) => (argument, SeccompCmpOp::Eq, pid),
        When::Null(argument) => {
            return SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0);
        }
    };
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::{ALWAYS, CHANGES, OF_SERVER};

    fn lists() -> [Vec<Call>; 3] {
        [
            ALWAYS.to_vec(),
            [ALWAYS, CHANGES].concat(),
            [ALWAYS, CHANGES, OF_SERVER].concat(),
        ]
    }

    #[test]
    fn the_list_compiles_and_fits() {
        for list in lists() {
            for program in programs(&list).unwrap() {
                assert!(program.len() < 1024, "{} instructions", program.len());
            }
        }
    }

    #[test]
    fn a_call_has_either_conditions_in_each_rule_or_one_rule_only() {
        let [_, _, all] = lists();
        for call in &all {
            let rules = all.iter().filter(|other| other.number == call.number);
            assert!(
                rules.count() == 1 || !call.when.is_empty(),
                "{} is allowed with any arguments beside another rule of its",
                call.name()
            );
        }
    }
}
