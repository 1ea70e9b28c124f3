//! Each row of the table of vCPU state: nothing that one program leaves reaches the next.
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic)]

mod common;

use std::arch::x86_64::__cpuid_count;
use std::ops::Range;

use common::{CODE, Guest, STACK_TOP, exception, program};
use kvmlet_abi::regs::FIXED_RFLAGS;
use kvmlet_abi::{Trap, UserRegs};
use kvmlet_hv::{Counters, Piece, PutBack, STATE, XState};

/// Where `show` stands in the page of code, behind `fill`.
const SHOW_AT: usize = 0x800;
/// Where `show` stores the XSAVE area in the page of data.
const AREA: usize = 0x400;

// Fills what ring 3 can fill. Data at 0x500800: the secret, twice 16 bytes. DF, AC and ID are set last: with
// AC every access is aligned.
program!(
    fill,
    "mov $0x2b, %eax",
    "mov %eax, %ds",
    "mov $0x33, %eax",
    "mov %eax, %es",
    "mov $0x28, %eax",
    "mov %eax, %fs",
    "mov $0x30, %eax",
    "mov %eax, %gs",
    "mov $0x5ec1e7005000, %rax",
    "wrfsbase %rax",
    "mov $0x5ec1e7006000, %rax",
    "wrgsbase %rax",
    "fldcw 0x500820",
    "fldl 0x500800",
    "fldl 0x500808",
    "fldl 0x500800",
    "ldmxcsr 0x500824",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "movups 0x500800, %xmm\\n",
    ".endr",
    "testl $1, 0x500828",
    "jz 1f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vbroadcastf128 0x500800, %ymm\\n",
    ".endr",
    "1: testl $2, 0x500828",
    "jz 1f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vbroadcasti32x4 0x500800, %zmm\\n",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7",
    "kmovw 0x500800, %k\\n",
    ".endr",
    "1: testl $4, 0x500828",
    "jz 1f",
    "mov 0x500800, %eax",
    "shl $2, %eax",
    "xor %ecx, %ecx",
    "xor %edx, %edx",
    ".byte 0x0f, 0x01, 0xef", // wrpkru
    "1: mov 0x500800, %rbx",
    "mov %rbx, %rdx",
    "mov %rbx, %rsi",
    "mov %rbx, %rdi",
    "mov %rbx, %rbp",
    "mov %rbx, %r8",
    "mov %rbx, %r9",
    "mov %rbx, %r10",
    "mov %rbx, %r12",
    "mov %rbx, %r13",
    "mov %rbx, %r14",
    "mov %rbx, %r15",
    "pushq $0x240ed7",
    "popfq",
    "mov $1000, %eax",
    "syscall",
);

// Stores all of it from 0x500000 on before anything else.
program!(
    show,
    "mov %rax, 0x500000",
    "mov %rcx, 0x500008",
    "mov %rdx, 0x500010",
    "mov %rbx, 0x500018",
    "mov %rsp, 0x500020",
    "mov %rbp, 0x500028",
    "mov %rsi, 0x500030",
    "mov %rdi, 0x500038",
    "mov %r8, 0x500040",
    "mov %r9, 0x500048",
    "mov %r10, 0x500050",
    "mov %r11, 0x500058",
    "mov %r12, 0x500060",
    "mov %r13, 0x500068",
    "mov %r14, 0x500070",
    "mov %r15, 0x500078",
    "lea (%rip), %rax",
    "mov %rax, 0x500080",
    "pushfq",
    "popq 0x500088",
    "mov %ds, %eax",
    "mov %eax, 0x500090",
    "mov %es, %eax",
    "mov %eax, 0x500094",
    "mov %fs, %eax",
    "mov %eax, 0x500098",
    "mov %gs, %eax",
    "mov %eax, 0x50009c",
    "mov %cs, %eax",
    "mov %eax, 0x5000a0",
    "mov %ss, %eax",
    "mov %eax, 0x5000a4",
    "rdfsbase %rax",
    "mov %rax, 0x5000a8",
    "rdgsbase %rax",
    "mov %rax, 0x5000b0",
    "xor %ecx, %ecx",
    "xgetbv",
    "mov %eax, 0x5000b8",
    "mov %edx, 0x5000bc",
    "mov $0x2e7, %eax",
    "xor %edx, %edx",
    "xsave 0x500400",
    "mov $1000, %eax",
    "syscall",
);

program!(write_cr2, "mov %rax, %cr2");
program!(write_cr4, "mov %rax, %cr4");
program!(write_cr8, "mov %rax, %cr8");
program!(write_xcr0, "xsetbv");
program!(write_dr0, "mov %rax, %dr0");
program!(write_dr7, "mov %rax, %dr7");
program!(read_dr6, "mov %dr6, %rax");
program!(write_msr, "wrmsr");
program!(swap_gs, "swapgs");
program!(halt, "hlt");
program!(output, "mov $0x5ec1e7, %eax", "out %eax, $0x77");
program!(input, "in $0x77, %eax");

#[allow(clippy::single_range_in_vec_init)] // a stretch of bytes, as the others are
fn bytes(piece: Piece) -> Vec<Range<usize>> {
    let component = |number: u32| {
        let leaf = __cpuid_count(0xd, number);
        let start = AREA + leaf.ebx as usize;
        start..start + leaf.eax as usize
    };
    match piece {
        Piece::General => vec![0..0x80],
        Piece::Rip => vec![0x80..0x88],
        Piece::Rflags => vec![0x88..0x90],
        Piece::DataSelectors => vec![0x90..0xa0],
        Piece::CodeAndStack => vec![0xa0..0xa8],
        Piece::FsGsBases => vec![0xa8..0xb8],
        Piece::Xcr0 => vec![0xb8..0xc0],
        // And which components are in use.
        Piece::X87 => vec![
            AREA..AREA + 24,
            AREA + 32..AREA + 160,
            AREA + 512..AREA + 576,
        ],
        Piece::Sse => vec![AREA + 24..AREA + 28, AREA + 160..AREA + 416],
        Piece::Avx if has(1) => vec![component(2)],
        Piece::Avx512 if has(2) => (5..8).map(component).collect(),
        Piece::Pkru if has(4) => vec![component(9)],
        _ => Vec::new(),
    }
}

/// What `fill` is told of this CPU: bit 0 AVX, 1 AVX-512, 2 protection keys.
fn features(software: bool) -> u32 {
    let keys = __cpuid_count(7, 0).ecx & 1 << 4 != 0;
    u32::from(is_x86_feature_detected!("avx"))
        | u32::from(is_x86_feature_detected!("avx512f")) << 1
        | u32::from(software && keys) << 2
}

fn has(feature: u32) -> bool {
    let software =
        kvmlet_hv::Kvm::open().unwrap().known_kvm_kind() == Some(kvmlet_hv::KvmKind::Software);
    features(software) & feature != 0
}

/// One VM with both programs.
fn guest() -> Option<Guest> {
    let mut code = fill().to_vec();
    assert!(code.len() <= SHOW_AT);
    code.resize(SHOW_AT, 0xcc);
    code.extend_from_slice(show());
    Guest::new(&code)
}

fn start_show(regs: &mut UserRegs) {
    regs.rip = CODE.0 + SHOW_AT as u64;
    // `popq` and `pushfq` are aligned.
    regs.rsp = STACK_TOP - 64;
}

/// What `show` stores, run with `regs`.
fn shown(guest: &mut Guest, regs: UserRegs) -> Vec<u8> {
    guest.vm.write(guest.data, &[0; 4096]).unwrap();
    guest.regs = regs;
    start_show(&mut guest.regs);
    assert_eq!(guest.run_on(), Trap::Syscall);
    let mut page = vec![0; 4096];
    guest.vm.memory().read(guest.data, &mut page).unwrap();
    page
}

fn load_initial(guest: &mut Guest) {
    let vcpu = guest.vm.vcpu();
    let image = XState::new(vcpu.xstate_layout());
    vcpu.load_initial_xstate(&image).unwrap();
}

/// Runs `fill` with a secret, up to its call.
fn filled(guest: &mut Guest) {
    let mut data = Vec::new();
    for word in [0x5ec1_e7c0_ffee_1235_u64, 0x3fe5_ec1e_7bad_f00d, 0, 0] {
        data.extend_from_slice(&word.to_le_bytes());
    }
    data.extend_from_slice(&0x0000_0a7f_u32.to_le_bytes()); // x87 control: round down
    data.extend_from_slice(&0x0000_7fbf_u32.to_le_bytes()); // MXCSR: round to zero, flags
    data.extend_from_slice(&features(guest.software()).to_le_bytes());
    let mut page = vec![0; 4096];
    page[0x800..0x800 + data.len()].copy_from_slice(&data);
    guest.vm.write(guest.data, &page).unwrap();
    guest.regs = next();
    guest.regs.rip = CODE.0;
    assert_eq!(guest.run_on(), Trap::Syscall, "{:x?}", guest.regs);
}

/// The registers of the next program.
fn next() -> UserRegs {
    UserRegs {
        rax: 11,
        rcx: 12,
        r11: 13,
        rsp: STACK_TOP - 64,
        rflags: FIXED_RFLAGS,
        fs_base: 0x1000,
        ..UserRegs::default()
    }
}

fn refused(guest: &mut Guest, program: &[u8]) {
    guest.vm.write(guest.code, program).unwrap();
    guest.regs = next();
    guest.regs.rip = CODE.0;
    let trap = guest.run_on();
    assert!(
        matches!(exception(trap), (13 | 6, 0)),
        "{trap:?} {program:x?}"
    );
}

#[test]
fn nothing_of_a_program_reaches_the_next() {
    let Some(mut fresh) = guest() else { return };
    // By KVM. Where the stub can do it for the others, it must come to the same.
    let image = XState::new(fresh.vm.vcpu().xstate_layout());
    fresh.vm.vcpu().load_xstate(&image).unwrap();
    let clean = shown(&mut fresh, next());
    let Some(mut used) = guest() else { return };
    load_initial(&mut used);
    let offset = used.vm.vcpu().tsc_offset().ok();

    // It is all there while the program itself goes on.
    filled(&mut used);
    let regs = used.regs;
    let own = shown(&mut used, regs);
    for row in STATE {
        let by_load = matches!(row.at_switch, PutBack::Entry | PutBack::Image);
        for range in bytes(row.piece) {
            let fixed = matches!(row.piece, Piece::Rip | Piece::CodeAndStack);
            // A CPU may call every component in use, whatever it holds (SDM vol. 1, 13.6).
            let is_header = range.start == AREA + 512;
            if by_load && !fixed && !is_header {
                assert_ne!(
                    own[range.clone()],
                    clean[range],
                    "{:?} is not filled",
                    row.piece
                );
            }
        }
    }

    // Another thread; and the next request or tenant, in this vCPU or in another of this host thread.
    filled(&mut used);
    load_initial(&mut used);
    let other_thread = shown(&mut used, next());
    filled(&mut used);
    used.vm.vcpu().hand_on();
    load_initial(&mut used);
    let handed_on = shown(&mut used, next());
    // The bases of a program that has set none are those of a new vCPU.
    filled(&mut used);
    used.vm.vcpu().hand_on();
    let regs = UserRegs {
        fs_base: 0,
        ..next()
    };
    let bases = shown(&mut used, regs)[bytes(Piece::FsGsBases)[0].clone()].to_vec();
    assert_eq!(bases, [0; 16], "FsGsBases reaches the next request");
    filled(&mut used);
    let elsewhere = shown(&mut fresh, next());
    for row in STATE {
        for range in bytes(row.piece) {
            for (found, when) in [
                (&other_thread, "thread"),
                (&handed_on, "request"),
                (&elsewhere, "VM of the thread"),
            ] {
                assert_eq!(
                    found[range.clone()],
                    clean[range.clone()],
                    "{:?} reaches the next {when}",
                    row.piece
                );
            }
        }
    }

    // What the table calls out of reach is.
    for row in STATE {
        let guest = &mut used;
        match row.piece {
            Piece::General
            | Piece::Rip
            | Piece::Rflags
            | Piece::DataSelectors
            | Piece::FsGsBases
            | Piece::CodeAndStack
            | Piece::Xcr0
            | Piece::X87
            | Piece::Sse
            | Piece::Avx
            | Piece::Avx512
            | Piece::Pkru => {}
            // kicks.rs has them.
            Piece::Events => {}
            // The program of tests/escape/test_leaks.py has them, where the CPU does.
            Piece::Tiles => {}
            // Nobody else's word: CPUID hides them, and ring 3 cannot turn them on.
            Piece::OtherComponents => {}
            Piece::KernelGsBase => refused(guest, swap_gs()),
            Piece::Control => {
                refused(guest, write_cr4());
                refused(guest, write_cr8());
            }
            Piece::Cr2 => refused(guest, write_cr2()),
            Piece::Breakpoints => {
                refused(guest, write_dr0());
                refused(guest, write_dr7());
            }
            Piece::DebugStatus => refused(guest, read_dr6()),
            Piece::SyscallMsrs | Piece::OtherMsrs => refused(guest, write_msr()),
            Piece::TscOffset => assert_eq!(guest.vm.vcpu().tsc_offset().ok(), offset),
            Piece::RunState => refused(guest, halt()),
            Piece::PortData => {
                refused(guest, output());
                refused(guest, input());
                assert_eq!(guest.regs.rax, next().rax);
            }
            Piece::PostedCalls => {
                guest.vm.vcpu().hand_on();
                assert_eq!(guest.vm.vcpu().waiting(), None);
            }
            Piece::Counts => {
                let vcpu = guest.vm.vcpu();
                vcpu.reset_counters();
                assert_eq!(vcpu.counters(), Counters::default());
                if let Ok(stats) = vcpu.stats() {
                    assert_eq!(stats.get("exits"), Some(0));
                }
            }
        }
    }
    refused(&mut used, write_xcr0());
}
