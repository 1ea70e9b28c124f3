//! This machine's offer, for `kvmlet doctor`. Never fails: what cannot be found out says so.

// Reads what the host's kernel says about itself, with no guest around.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kvmlet_stub::KvmKind;

use crate::bare::BareVm;
use crate::{HvError, Kvm};

/// Batches and rounds of the measurement of X: some 20 ms on software KVM.
const X_BATCHES: u32 = 5;
const X_ROUNDS: u32 = 100;

/// Capabilities reported, by KVM's number (linux/kvm.h).
const CAPS: [(&str, std::ffi::c_ulong); 16] = [
    ("user_memory", 3),
    ("nr_memslots", 10),
    ("sync_mmu", 16),
    ("xsave", 55),
    ("xcrs", 56),
    ("tsc_control", 60),
    ("sync_regs", 74),
    ("readonly_mem", 81),
    ("immediate_exit", 136),
    ("manual_dirty_log_protect2", 168),
    ("x86_user_space_msr", 188),
    ("x86_msr_filter", 189),
    ("dirty_log_ring", 192),
    ("binary_stats_fd", 203),
    ("xsave2", 208),
    ("memory_fault_info", 232),
];

/// State of `/dev/kvm`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvmState {
    /// It opens and has what is needed.
    Ok,
    /// No device.
    Missing,
    /// No permission.
    Permission,
    /// It opens, but cannot be used.
    Unusable,
}

impl KvmState {
    /// The word that reports use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Permission => "permission",
            Self::Unusable => "unusable",
        }
    }
}

/// Findings about this machine.
#[derive(Clone, Debug)]
pub struct ProbeReport {
    /// State of `/dev/kvm`.
    pub kvm: KvmState,
    /// The fault of it or of the probe VM, in one line.
    pub kvm_error: Option<String>,
    /// KVM_GET_API_VERSION.
    pub api_version: Option<i32>,
    /// Which kind of KVM it is.
    pub kvm_kind: Option<KvmKind>,
    /// True if a program ran in a VM, at ring 3, and left it by a system call.
    pub vm_ran: bool,
    /// Cost of one bare exit and re-entry, in microseconds.
    pub x_us: Option<f64>,
    /// Landlock's ABI version; 0 when it is off.
    pub landlock: i32,
    /// The setting of transparent huge pages ("always", "madvise", "never" or "unknown").
    pub huge_pages: String,
    /// True if this machine is itself a virtual machine.
    pub nested: bool,
    /// The container runtime around this process, if one shows.
    pub container: Option<String>,
    /// The group that owns `/dev/kvm`.
    pub group: Option<String>,
    /// KVM_CHECK_EXTENSION by name: 0 absent, else KVM's value.
    pub caps: Vec<(&'static str, i32)>,
}

/// Looks at this machine: opens KVM, runs a small VM, reads what the kernel says.
#[must_use]
pub fn probe() -> ProbeReport {
    let mut report = ProbeReport {
        kvm: KvmState::Ok,
        kvm_error: None,
        api_version: None,
        kvm_kind: None,
        vm_ran: false,
        x_us: None,
        landlock: landlock_abi(),
        huge_pages: huge_pages(),
        nested: is_virtual_machine(),
        container: container(),
        group: device_group(),
        caps: Vec::new(),
    };
    match Kvm::open() {
        Ok(kvm) => {
            report.api_version = Some(kvm.api_version());
            report.caps = CAPS
                .iter()
                .map(|(name, cap)| (*name, kvm.check_extension(*cap).max(0)))
                .collect();
            if let Err(error) = run_vm(&kvm, &mut report) {
                report.kvm = KvmState::Unusable;
                report.kvm_error = Some(error.to_string());
            }
        }
        Err(error) => {
            report.kvm = match error {
                HvError::Missing => KvmState::Missing,
                HvError::Permission => KvmState::Permission,
                _ => KvmState::Unusable,
            };
            if let HvError::ApiVersion(version) = error {
                report.api_version = Some(version);
            }
            report.kvm_error = Some(error.to_string());
        }
    }
    report
}

fn run_vm(kvm: &Kvm, report: &mut ProbeReport) -> Result<(), HvError> {
    let mut vm = BareVm::new(kvm)?;
    report.kvm_kind = Some(vm.kvm_kind());
    report.vm_ran = true;
    report.x_us = Some(vm.measure_exit_us(X_BATCHES, X_ROUNDS)?);
    Ok(())
}

/// landlock_create_ruleset(2) with LANDLOCK_CREATE_RULESET_VERSION.
fn landlock_abi() -> i32 {
    // SAFETY: with this flag the call takes no memory and makes no ruleset.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            1u32,
        )
    };
    i32::try_from(version).unwrap_or(0).max(0)
}

fn huge_pages() -> String {
    let setting =
        fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    // "always [madvise] never": the choice is in brackets.
    setting
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or_else(|| "unknown".to_owned(), |(choice, _)| choice.to_owned())
}

fn is_virtual_machine() -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

fn container() -> Option<String> {
    if Path::new("/run/.containerenv").exists() {
        return Some("podman".to_owned());
    }
    if Path::new("/.dockerenv").exists() {
        return Some("docker".to_owned());
    }
    std::env::var("container")
        .ok()
        .filter(|name| !name.is_empty())
}

fn device_group() -> Option<String> {
    let gid = fs::metadata("/dev/kvm").ok()?.gid();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let name = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    });
    Some(name.unwrap_or_else(|| gid.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_agrees_with_itself() {
        let report = probe();
        assert_eq!(report.kvm == KvmState::Ok, report.kvm_error.is_none());
        assert_eq!(report.vm_ran, report.kvm_kind.is_some());
        if report.kvm == KvmState::Ok {
            assert!(report.vm_ran);
            assert_eq!(report.api_version, Some(12));
            assert!(report.x_us.is_some_and(|x| x > 0.0));
        }
        println!("{report:#?}");
    }
}
