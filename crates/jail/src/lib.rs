//! The second wall: what the host process of `kvmlet run` gives up before the guest starts.
//!
//! The first wall is the VM and the personality. Should a guest get past both, it finds itself in a
//! confined process. That may read the trees of the policy, and make the system calls that this crate lists.
//! [`wall`] makes both lists from the policy, as values; [`Wall::raise`] applies them. They hold for the
//! calling thread and those it starts later. They hold for all other threads where the kernel lets them
//! (landlock(7), seccomp(2)). Nothing takes them back.
#![forbid(unsafe_code)]

mod calls;
mod files;
mod filter;
mod process;

use kvmlet_policy::Policy;

pub use calls::{Answer, Call, When};
pub use files::{FileRight, FileRule, landlock_rights};
pub use filter::seccomp_is_available;

/// The rights that the process still has, once it is raised.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wall {
    /// Host files that may be opened (Landlock). Every other access right that the kernel can refuse is
    /// refused. Among them are changes of any kind, ioctls of devices, TCP ports, abstract UNIX sockets
    /// and signals of other processes.
    pub files: Vec<FileRule>,
    /// The ports of TCP that may be connected to (Landlock); `None` for any.
    pub ports: Option<Vec<u16>>,
    /// System calls that may be made (seccomp). Any other one kills the process.
    pub calls: Vec<Call>,
}

/// The outcome of raising a [`Wall`].
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Report {
    /// The parts that are on now, each in a few words.
    pub on: Vec<String>,
    /// The parts that are not, and why.
    pub missing: Vec<String>,
}

/// The wall around a process whose guest has this policy. It has a rule for each readable tree, and the
/// calls that a guest with nothing but these takes. An option that allows more adds its rules here.
#[must_use]
pub fn wall(policy: &Policy) -> Wall {
    let mut calls = calls::ALWAYS.to_vec();
    if policy.changes_host() {
        calls.extend_from_slice(calls::CHANGES);
    }
    let reaches = !policy.net().is_empty();
    let is_reached = !policy.published().is_empty();
    if reaches {
        calls.extend_from_slice(calls::NETWORK);
    }
    let has_sockets = policy.sockets().next().is_some();
    if has_sockets {
        calls.extend_from_slice(calls::UNIX);
    }
    if reaches || is_reached || has_sockets {
        calls.extend_from_slice(calls::CONNECTIONS);
    }
    if is_reached {
        calls.extend_from_slice(calls::PUBLISHED);
    }
    Wall {
        files: files::rules(policy),
        ports: policy.net().ports(),
        calls,
    }
}

/// The same around a process that serves clients, by programs with these policies: it may what any of them takes.
/// Sockets that listen were made before, and those of clients come from them. It connects to nobody.
#[must_use]
pub fn wall_of_server<'a>(policies: impl IntoIterator<Item = &'a Policy>) -> Wall {
    let mut all = Wall {
        files: Vec::new(),
        ports: Some(Vec::new()),
        calls: Vec::new(),
    };
    for policy in policies {
        let Wall {
            files,
            ports,
            calls,
        } = wall(policy);
        let new = |rule: &FileRule| !all.files.contains(rule);
        let files: Vec<_> = files.into_iter().filter(new).collect();
        all.files.extend(files);
        all.ports = all.ports.zip(ports).map(|(mut before, more)| {
            before.extend(more);
            before
        });
        for call in calls {
            if !all.calls.contains(&call) {
                all.calls.push(call);
            }
        }
    }
    all.calls.extend_from_slice(calls::OF_SERVER);
    all
}

impl Wall {
    /// Applies the rules to this process, and takes its capabilities and its core dumps away. What the
    /// kernel cannot do is left out: [`Report::missing`] says what.
    #[must_use]
    pub fn raise(&self) -> Report {
        let mut report = Report::default();
        report.note("no new privileges", process::refuse_new_privileges());
        report.note("no core dumps", process::refuse_core_dumps());
        match files::restrict(&self.files, self.ports.as_deref()) {
            Ok(rights) => report.on.push(rights),
            Err(reason) => report.missing.push(reason),
        }
        // Only now: they may be what opens the trees that Landlock is told of.
        report.note("no capabilities", process::drop_capabilities());
        // Last: what the steps above take is not on the list.
        match filter::install(&self.calls) {
            Ok(()) => report
                .on
                .push(format!("seccomp with {} rules", self.calls.len())),
            Err(reason) => report.missing.push(reason),
        }
        report
    }
}

impl Report {
    fn note(&mut self, what: &str, done: rustix::io::Result<()>) {
        match done {
            Ok(()) => self.on.push(what.to_owned()),
            Err(error) => self.missing.push(format!("{what}: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_more_adds_its_rule_and_nothing_else() {
        let plain = wall(&Policy::default());
        let mut with_tree = wall(&Policy::with_working_directory(b"/var/lib").unwrap());
        assert_eq!(with_tree.calls, plain.calls);
        with_tree.files.retain(|rule| !plain.files.contains(rule));
        let added = FileRule {
            path: b"/var/lib".to_vec(),
            right: FileRight::Read,
        };
        assert_eq!(with_tree.files, [added]);
    }

    #[test]
    fn a_tree_to_change_adds_its_rule_and_the_calls() {
        let plain = wall(&Policy::default());
        let mut policy = Policy::default();
        policy.write_tree(b"/var/lib").unwrap();
        let mut with_tree = wall(&policy);
        with_tree.files.retain(|rule| !plain.files.contains(rule));
        let added = FileRule {
            path: b"/var/lib".to_vec(),
            right: FileRight::Change,
        };
        assert_eq!(with_tree.files, [added]);
        with_tree.calls.retain(|call| !plain.calls.contains(call));
        assert_eq!(with_tree.calls, calls::CHANGES);
    }

    #[test]
    fn a_socket_of_the_host_adds_no_way_to_connect() {
        let mut policy = Policy::default();
        policy.allow_socket(b"/run/x.sock").unwrap();
        let wall = wall(&policy);
        let names: Vec<_> = wall.calls.iter().map(Call::name).collect();
        assert!(names.contains(&"recvmsg"));
        for never in ["socket", "connect", "sendmsg", "accept4", "bind"] {
            assert!(!names.contains(&never), "{never}");
        }
        assert_eq!(wall.ports, Some(Vec::new()));
    }

    #[test]
    fn a_server_accepts_and_does_not_connect() {
        let policy = Policy::default();
        let names = |wall: Wall| wall.calls.iter().map(Call::name).collect::<Vec<_>>();
        let (plain, server) = (names(wall(&policy)), names(wall_of_server([&policy])));
        assert!(!plain.contains(&"accept4") && server.contains(&"accept4"));
        for never in [
            "socket",
            "connect",
            "bind",
            "listen",
            "socketpair",
            "execve",
            "ptrace",
        ] {
            assert!(!server.contains(&never), "{never}");
        }
        assert_eq!(wall_of_server([&policy]).files, wall(&policy).files);
    }

    #[test]
    fn a_server_of_several_programs_may_what_each_may() {
        let policies = [b"/var/lib".as_slice(), b"/srv"]
            .map(|tree| Policy::with_working_directory(tree).unwrap());
        let (first, both) = (
            wall_of_server([&policies[0]]),
            wall_of_server([&policies[0], &policies[1]]),
        );
        assert_eq!((&both.calls, &both.ports), (&first.calls, &first.ports));
        let more: Vec<_> = both.files.iter().skip(first.files.len()).collect();
        assert_eq!(both.files[..first.files.len()], first.files);
        assert_eq!(more.len(), 1);
        assert_eq!(more[0].path, b"/srv");
    }

    #[test]
    fn without_a_tree_to_change_nothing_is_changed() {
        let wall = wall(&Policy::default());
        assert!(wall.files.iter().all(|rule| rule.right == FileRight::Read));
        assert!(!wall.files.is_empty());
    }
}
