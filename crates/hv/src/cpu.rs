//! The state a vCPU starts in: CPUID, control registers, segments and MSRs.

use std::arch::x86_64::__cpuid_count;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_dtable, kvm_msr_entry, kvm_segment,
    kvm_sregs,
};
use kvmlet_abi::Gpa;
use kvmlet_abi::layout::{
    GDT, IDT, KERNEL_CS, KERNEL_DS, SFMASK, STAR, SYSCALL_CODE, TSS, TSS_SELECTOR, USER_CS, USER_DS,
};
use kvmlet_stub::CSTAR_OFFSET_BYTES;
use kvmlet_stub::pages::{GDT_LIMIT, IDT_LIMIT, TSS_LIMIT};

use crate::HvError;

/// PE, MP, ET, NE, WP, AM, PG (SDM vol. 3A, 2.5).
const CR0: u64 = 0x8005_0033;
/// PAE, OSFXSR, OSXMMEXCPT.
const CR4_BASE: u64 = 1 << 5 | 1 << 9 | 1 << 10;
const CR4_UMIP: u64 = 1 << 11;
const CR4_FSGSBASE: u64 = 1 << 16;
pub const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
/// SCE, LME, LMA, NXE.
const EFER: u64 = 0xd01;
/// XCR0: x87 and SSE always; AVX; the three AVX-512 components together.
const XCR0_LEGACY: u64 = 0x3;
const XCR0_AVX: u64 = 0x4;
const XCR0_AVX512: u64 = 0xe0;

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_CSTAR: u32 = 0xc000_0083;
const MSR_SFMASK: u32 = 0xc000_0084;

/// The part that does not depend on the VM: the CPUID table and the features derived from it.
pub struct CpuTemplate {
    pub cpuid: CpuId,
    /// XCR0, or 0 when the CPU has no XSAVE.
    pub xcr0: u64,
    pub cr4: u64,
    /// Bytes of a standard-format XSAVE area with `xcr0` enabled.
    pub xsave_len_bytes: usize,
}

impl CpuTemplate {
    pub fn new(kvm: &kvm_ioctls::Kvm) -> Result<Self, HvError> {
        let mut cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| HvError::from_errno("KVM_GET_SUPPORTED_CPUID", error))?;
        let entries = cpuid.as_mut_slice();
        let leaf = |function: u32, index: u32| -> kvm_cpuid_entry2 {
            entries
                .iter()
                .find(|entry| entry.function == function && entry.index == index)
                .copied()
                .unwrap_or_default()
        };
        let features = leaf(1, 0);
        let extended = leaf(7, 0);
        // Leaf 0DH counts too, not only the XSAVE bit: software KVM hides the bit, but ring 3 runs on the
        // host's XCR0 there, and KVM saves what the leaf names. Without OSXSAVE in CR4 programs would be
        // told that there is no AVX (SDM vol. 1, 14.3).
        let state = leaf(0xd, 0);
        let supported = u64::from(state.eax) | u64::from(state.edx) << 32;
        let has_xsave = features.ecx >> 26 & 1 == 1 || supported & XCR0_LEGACY == XCR0_LEGACY;
        let mut cr4 = CR4_BASE;
        for (present, bit) in [
            (extended.ebx & 1, CR4_FSGSBASE),
            (extended.ebx >> 7 & 1, CR4_SMEP),
            (extended.ebx >> 20 & 1, CR4_SMAP),
            (extended.ecx >> 2 & 1, CR4_UMIP),
            (u32::from(has_xsave), CR4_OSXSAVE),
        ] {
            if present == 1 {
                cr4 |= bit;
            }
        }
        let mut xcr0 = 0;
        let mut xsave_len_bytes = XSAVE_LEGACY_LEN;
        if supported & XCR0_LEGACY == XCR0_LEGACY {
            xcr0 = XCR0_LEGACY | supported & XCR0_AVX;
            if xcr0 & XCR0_AVX != 0 && supported & XCR0_AVX512 == XCR0_AVX512 {
                xcr0 |= XCR0_AVX512;
            }
            // CPUID.0DH sub-leaf i: EAX = length, EBX = offset of component i (SDM vol. 1, 13.2).
            for component in 2..63 {
                if xcr0 >> component & 1 == 1 {
                    let entry = leaf(0xd, component);
                    let end = entry.eax as usize + entry.ebx as usize;
                    xsave_len_bytes = xsave_len_bytes.max(end);
                }
            }
        }
        for entry in entries.iter_mut() {
            hide(entry, xcr0);
        }
        Ok(Self {
            cpuid,
            xcr0,
            cr4,
            xsave_len_bytes,
        })
    }
}

/// CPUID.01H:EDX as Linux reports it to programs (AT_HWCAP, getauxval(3)).
#[must_use]
pub fn cpuid_1_edx() -> u32 {
    // Not getauxval(3): glibc answers AT_HWCAP with a word of its own on x86-64.
    core::arch::x86_64::__cpuid(1).edx
}

/// The legacy region and the XSAVE header (SDM vol. 1, 13.4).
pub const XSAVE_LEGACY_LEN: usize = 512 + 64;

/// Clears what the personality does not provide: state that is not switched (protection keys, CET,
/// AMX), virtualisation, the other CPUs of the host, KVM's own interface.
fn hide(entry: &mut kvm_cpuid_entry2, xcr0: u64) {
    match (entry.function, entry.index) {
        (1, _) => {
            // One logical CPU with APIC id 0; no MONITOR, VMX, x2APIC, TSC deadline.
            entry.ebx = entry.ebx & 0xffff | 1 << 16;
            entry.ecx &= !(1 << 3 | 1 << 5 | 1 << 21 | 1 << 24);
            entry.edx &= !(1 << 28);
        }
        (7, 0) => {
            entry.ecx &= !(1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 16); // PKU, OSPKE, WAITPKG, CET, LA57
            entry.edx &= !(1 << 5 | 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25); // UINTR, IBT, AMX
        }
        (7, 1) => entry.eax &= !(1 << 21), // AMX-FP16
        (0xb | 0x1f, _) => entry.edx = 0,
        (0xd, 0) => {
            entry.eax &= xcr0 as u32;
            entry.edx &= (xcr0 >> 32) as u32;
        }
        (0xd, 1) => {
            entry.eax &= 0x7; // XSAVEOPT, XSAVEC, XGETBV with ECX=1; supervisor states are not used
            entry.ecx = 0;
            entry.edx = 0;
        }
        (0xd, component) if component >= 63 || xcr0 >> component & 1 == 0 => {
            entry.eax = 0;
            entry.ebx = 0;
            entry.ecx = 0;
            entry.edx = 0;
        }
        (0x4000_0001, _) => {
            entry.eax = 0;
            entry.edx = 0;
        }
        (0x8000_0001, _) => entry.ecx &= !(1 << 2), // SVM
        _ => {}
    }
}

fn segment(selector: u16, kind: u8, dpl: u8) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

/// 64-bit code for ring 3 or ring 0.
pub fn code_segment(privilege: Privilege) -> kvm_segment {
    let (selector, dpl) = match privilege {
        Privilege::User => (USER_CS, 3),
        Privilege::Kernel => (KERNEL_CS, 0),
    };
    kvm_segment {
        l: 1,
        ..segment(selector, 0xb, dpl)
    }
}

/// The stack segment that goes with [`code_segment`].
pub fn stack_segment(privilege: Privilege) -> kvm_segment {
    let (selector, dpl) = match privilege {
        Privilege::User => (USER_DS, 3),
        Privilege::Kernel => (KERNEL_DS, 0),
    };
    kvm_segment {
        db: 1,
        ..segment(selector, 0x3, dpl)
    }
}

/// Contents of a data segment register of ring 3 by its selector, beside its base: a null selector, or one
/// of user data or code.
pub fn data_segment(selector: u16) -> kvm_segment {
    match selector | 3 {
        USER_DS => kvm_segment {
            db: 1,
            ..segment(selector, 0x3, 3)
        },
        USER_CS => kvm_segment {
            l: 1,
            ..segment(selector, 0xb, 3)
        },
        _ => kvm_segment {
            selector,
            unusable: 1,
            ..kvm_segment::default()
        },
    }
}

/// Privilege level that the vCPU is entered at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// CPL 3: the program.
    User,
    /// CPL 0: the flush routine.
    Kernel,
}

/// `sregs` as KVM reset it, turned into 64-bit ring 3 over the tables of [`kvmlet_abi::layout`].
pub fn initial_sregs(mut sregs: kvm_sregs, template: &CpuTemplate, cr3: Gpa) -> kvm_sregs {
    sregs.cr0 = CR0;
    sregs.cr3 = cr3.0;
    sregs.cr4 = template.cr4;
    sregs.efer = EFER;
    sregs.cs = code_segment(Privilege::User);
    sregs.ss = stack_segment(Privilege::User);
    // Null selectors, as Linux starts a 64-bit program.
    let null = data_segment(0);
    sregs.ds = null;
    sregs.es = null;
    sregs.fs = null;
    sregs.gs = null;
    sregs.ldt = kvm_segment {
        type_: 2,
        unusable: 1,
        ..kvm_segment::default()
    };
    sregs.tr = kvm_segment {
        base: TSS.0,
        limit: u32::from(TSS_LIMIT),
        selector: TSS_SELECTOR,
        type_: 0xb,
        present: 1,
        ..kvm_segment::default()
    };
    sregs.gdt = kvm_dtable {
        base: GDT.0,
        limit: GDT_LIMIT,
        ..kvm_dtable::default()
    };
    sregs.idt = kvm_dtable {
        base: IDT.0,
        limit: IDT_LIMIT,
        ..kvm_dtable::default()
    };
    sregs
}

/// Offset of a state component in an area of the standard format, in bytes (CPUID.0DH.n:EBX).
pub fn component_offset(feature: u64) -> usize {
    __cpuid_count(0xd, feature.trailing_zeros()).ebx as usize
}

/// True if this host's programs have protection keys (CPUID.7:ECX.OSPKE).
pub fn has_protection_keys() -> bool {
    __cpuid_count(7, 0).ecx & 1 << 4 != 0
}

/// The MSRs of the system call entry. The compatibility entry faults, wherever a forged 32-bit
/// segment comes from.
pub fn syscall_msrs() -> Result<Msrs, HvError> {
    let entry = |index: u32, data: u64| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    };
    Msrs::from_entries(&[
        entry(MSR_STAR, STAR),
        entry(MSR_LSTAR, SYSCALL_CODE.0),
        entry(MSR_CSTAR, SYSCALL_CODE.0 + CSTAR_OFFSET_BYTES),
        entry(MSR_SFMASK, SFMASK),
    ])
    .map_err(|_| HvError::MissingCapability("room for four MSRs"))
}
