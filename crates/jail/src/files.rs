//! Landlock: which host files the process may open, and what else the kernel refuses by it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvmlet_policy::{MountMode, Opening, Policy, join};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};

/// The newest version whose rights are named here: the kernel's own version bounds what is applied.
const NEWEST: ABI = ABI::V10;

/// Rules at most: a home directory may have any number of entries. What has none cannot be opened.
const OPENED_MAX: usize = 4096;

/// A right to a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileRight {
    /// List it, or anything beneath it.
    List,
    /// Open it, or anything beneath it, for reading; list it.
    Read,
    /// That, and change it and what is beneath it: files, directories, symbolic links and names of sockets.
    Change,
}

/// A host file, or a tree of them, and what may be done with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileRule {
    /// Canonical path.
    pub path: Vec<u8>,
    /// Allowed there and beneath.
    pub right: FileRight,
}

/// A rule for each visible tree. /dev/kvm has none: it is opened before the wall.
pub(crate) fn rules(policy: &Policy) -> Vec<FileRule> {
    let trees = policy
        .mounts()
        .filter(|(path, _)| !policy.is_learning() || *path != b"/");
    let rules = trees.map(|(_, mount)| FileRule {
        path: mount.host.clone(),
        right: match mount.mode {
            // An overlay too is only read: its changes are the program's memory.
            MountMode::ReadOnly | MountMode::Overlay => FileRight::Read,
            MountMode::ReadWrite => FileRight::Change,
        },
    });
    let mut rules: Vec<_> = rules.collect();
    if policy.is_learning() {
        add_opened(policy, &mut rules);
    }
    rules
}

/// Rules for what is open while a program's needs are learned: in directories of which a part is closed, each entry
/// that is not. Names can be listed everywhere. Protected names deeper down are the first wall's alone.
#[expect(
    clippy::disallowed_methods,
    reason = "the wall is made of what the host has"
)]
fn add_opened(policy: &Policy, rules: &mut Vec<FileRule>) {
    rules.push(FileRule {
        path: b"/".to_vec(),
        right: FileRight::List,
    });
    let mut ahead = vec![b"/".to_vec()];
    while let Some(dir) = ahead.pop() {
        let Ok(entries) = std::fs::read_dir(OsStr::from_bytes(&dir)) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = join(&dir, entry.file_name().as_bytes());
            let opening = policy.opening(&path);
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if opening == Opening::Part && is_dir {
                ahead.push(path);
            } else if opening != Opening::None && rules.len() < OPENED_MAX {
                rules.push(FileRule {
                    path,
                    right: FileRight::Read,
                });
            }
        }
    }
}

impl FileRight {
    fn of_directory(self) -> BitFlags<AccessFs> {
        match self {
            Self::List => AccessFs::ReadDir.into(),
            Self::Read => AccessFs::ReadFile | AccessFs::ReadDir,
            // Neither devices nor named pipes. A socket is a name that nobody listens at: bind(2) is refused.
            Self::Change => {
                Self::Read.of_directory()
                    | AccessFs::WriteFile
                    | AccessFs::Truncate
                    | AccessFs::MakeReg
                    | AccessFs::MakeDir
                    | AccessFs::MakeSym
                    | AccessFs::MakeSock
                    | AccessFs::RemoveFile
                    | AccessFs::RemoveDir
                    | AccessFs::Refer
            }
        }
    }

    fn of_file(self) -> BitFlags<AccessFs> {
        self.of_directory() & AccessFs::from_file(NEWEST)
    }
}

/// Confines the calling thread to `rules`; in words, what that covers. `Err` says why it does not.
pub(crate) fn restrict(rules: &[FileRule], ports: Option<&[u16]>) -> Result<String, String> {
    let applied = apply(rules, ports).map_err(|error| format!("Landlock: {error}"))?;
    match applied {
        LandlockStatus::Available { effective_abi, .. } => Ok(format!(
            "Landlock ABI {effective_abi} ({})",
            landlock_rights(effective_abi as i32)
        )),
        LandlockStatus::NotEnabled => Err("Landlock is not enabled in this kernel".to_owned()),
        LandlockStatus::NotImplemented => Err("this kernel has no Landlock".to_owned()),
    }
}

fn apply(rules: &[FileRule], ports: Option<&[u16]>) -> Result<LandlockStatus, RulesetError> {
    // Ports of our own are opened before. Of hosts Landlock knows nothing but their ports: where a rule allows all of
    // them, it has no say.
    let net = match ports {
        Some(_) => AccessNet::from_all(NEWEST),
        None => AccessNet::from_all(NEWEST) & !AccessNet::ConnectTcp,
    };
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(net)?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for port in ports.unwrap_or_default() {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    for rule in rules {
        let path = Path::new(OsStr::from_bytes(&rule.path));
        // A visible link shows itself; what it leads to has a rule of its own, or none.
        if path.is_symlink() {
            continue;
        }
        // What is not there cannot be opened either.
        let Ok(fd) = PathFd::new(path) else { continue };
        let access = if path.is_dir() {
            rule.right.of_directory()
        } else {
            rule.right.of_file()
        };
        ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
    }
    Ok(ruleset.restrict_self()?.landlock)
}

/// The rights that a version of Landlock's ABI can refuse, in words; empty for 0.
#[must_use]
pub fn landlock_rights(abi: i32) -> String {
    let since = [
        (ABI::V1, "files"),
        (ABI::V3, "truncation"),
        (ABI::V4, "TCP"),
        (ABI::V5, "ioctls of devices"),
        (ABI::V6, "abstract sockets and signals"),
        (ABI::V9, "sockets by path"),
    ];
    let words: Vec<&str> = since
        .into_iter()
        .filter_map(|(first, word)| (first as i32 <= abi).then_some(word))
        .collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_names_its_rights() {
        assert_eq!(landlock_rights(0), "");
        assert_eq!(landlock_rights(2), "files");
        assert_eq!(landlock_rights(4), "files, truncation, TCP");
        assert_eq!(landlock_rights(99), landlock_rights(ABI::V10 as i32));
    }

    #[test]
    fn changing_makes_nothing_that_acts() {
        let granted = FileRight::Change.of_directory();
        let acting = AccessFs::MakeChar
            | AccessFs::MakeBlock
            | AccessFs::MakeFifo
            | AccessFs::IoctlDev
            | AccessFs::Execute;
        assert!(!granted.intersects(acting));
        let of_file = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
        assert_eq!(FileRight::Change.of_file(), of_file);
    }

    #[test]
    fn what_is_closed_to_a_program_that_is_learned_has_no_rule() {
        let mut policy = Policy::with_working_directory(b"/var/lib").unwrap();
        policy.learn(b"/root", |_| true);
        let rules = rules(&policy);
        let lists = |rule: &&FileRule| rule.right == FileRight::List;
        assert_eq!(rules.iter().filter(lists).count(), 1);
        let opened = rules.iter().filter(|rule| rule.right == FileRight::Read);
        for rule in opened {
            for closed in [
                "/proc",
                "/run",
                "/tmp",
                "/var/log",
                "/root/.ssh",
                "/etc/shadow",
            ] {
                let covers = kvmlet_policy::beneath(&rule.path, closed.as_bytes());
                assert!(!covers, "{rule:?} covers {closed}");
            }
        }
        let has = |path: &[u8]| rules.iter().any(|rule| rule.path == path);
        assert!(has(b"/var/lib") && has(b"/var/tmp") && has(b"/usr"));
        assert!(rules.iter().all(|rule| rule.right != FileRight::Change));
    }

    #[test]
    fn reading_is_not_writing_nor_executing() {
        let granted = FileRight::Read.of_directory();
        assert!(!granted.intersects(AccessFs::from_write(NEWEST)));
        assert!(!granted.contains(AccessFs::Execute));
        assert_eq!(
            FileRight::Read.of_file(),
            BitFlags::from(AccessFs::ReadFile)
        );
    }
}
