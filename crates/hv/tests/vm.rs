//! The reasons to leave the VM, and the registers then: the same on hardware and on software KVM.
#![allow(unsafe_code)]

mod common;

use std::os::fd::{AsFd, FromRawFd};

use common::{
    CALL, CODE, CONSTANTS, DATA, Guest, READ_ONLY, STACK_TOP, UNMAPPED, USER_READ, USER_WRITE,
    exception, program,
};
use kvmlet_abi::layout::{
    DF_STACK, EXC_CODE, EXC_STACK, FLUSH_STACK, GDT, IDT, PROBE_CODE, STUB_DATA, SYSCALL_CODE, TSS,
};
use kvmlet_abi::trap::{PF_FETCH, PF_PRESENT, PF_USER, PF_WRITE};
use kvmlet_abi::{Gva, Trap, UserRegs};
use kvmlet_hv::KvmKind;
use kvmlet_mem::FileMapping;
use kvmlet_stub::leave_offset;

program!(
    two_calls,
    "mov $1000, %eax",
    "mov $1, %edi",
    "stc",
    "syscall",
    "mov %rax, %rbx",
    "mov $1000, %eax",
    "mov $2, %edi",
    "syscall",
    "ud2",
);

#[test]
fn a_system_call_leaves_with_its_registers_and_returns() {
    let Some(mut guest) = Guest::new(two_calls()) else {
        return;
    };
    assert_eq!(guest.run_on(), Trap::Syscall);
    assert_eq!(guest.regs.rax, CALL);
    assert_eq!(guest.regs.rdi, 1);
    assert_eq!(guest.regs.rip, CODE.0 + 13);
    assert_eq!(
        guest.regs.rcx, guest.regs.rip,
        "rcx holds the return address"
    );
    assert_eq!(guest.regs.rflags & 1, 1, "carry survives");
    assert_eq!(guest.regs.rsp, STACK_TOP - 64);
    guest.regs.rax = 77;
    let runs = guest.vm.vcpu().counters().runs;
    assert_eq!(guest.run_on(), Trap::Syscall);
    assert_eq!(guest.vm.vcpu().counters().runs, runs + 1);
    assert_eq!((guest.regs.rbx, guest.regs.rdi), (77, 2));
    assert_eq!(exception(guest.run_on()), (6, 0));
    let counters = guest.vm.vcpu().counters();
    assert_eq!((counters.syscalls, counters.exceptions), (2, 1));
}

program!(
    constants,
    "mov $39, %eax",
    "syscall",
    "mov %rax, %r8",
    "mov $102, %eax",
    "syscall",
    "mov %rax, %r9",
    "mov $107, %eax",
    "syscall",
    "mov %rax, %r10",
    "mov $104, %eax",
    "syscall",
    "mov %rax, %r12",
    "mov $108, %eax",
    "syscall",
    "mov %rax, %r13",
    "mov $110, %eax",
    "syscall",
    "mov %rax, %r14",
    "mov $186, %eax",
    "syscall",
    "mov %rax, %r15",
    "mov $1000, %ebx",
    "1: mov $39, %eax",
    "syscall",
    "dec %ebx",
    "jnz 1b",
    "mov $1000, %eax",
    "syscall",
);

#[test]
fn constant_calls_never_leave() {
    let Some(mut guest) = Guest::new(constants()) else {
        return;
    };
    assert_eq!(guest.run_on(), Trap::Syscall);
    assert_eq!(guest.regs.rax, CALL);
    let regs = guest.regs;
    assert_eq!(
        [
            regs.r8, regs.r9, regs.r10, regs.r12, regs.r13, regs.r14, regs.r15
        ],
        CONSTANTS
    );
    assert_eq!(guest.vm.vcpu().counters().syscalls, 1);
}

program!(
    flags_across,
    "push %rdi",
    "popfq",
    "mov $39, %eax",
    "syscall",
    "pushfq",
    "pop %rbx",
    "mov $1000, %eax",
    "syscall",
);

#[test]
fn a_call_answered_in_the_stub_preserves_every_flag() {
    let Some(mut guest) = Guest::new(flags_across()) else {
        return;
    };
    // CF PF AF ZF SF OF and ID in every combination of the first six.
    for pattern in 0..64u64 {
        guest.restart(flags_across());
        let flags = [0, 2, 4, 6, 7, 11]
            .iter()
            .enumerate()
            .fold(0x202, |flags, (bit, at)| flags | (pattern >> bit & 1) << at);
        guest.regs.rdi = flags;
        assert_eq!(guest.run_on(), Trap::Syscall);
        assert_eq!(guest.regs.rax, CALL);
        assert_eq!(guest.regs.rbx & !0x20_0000, flags, "pattern {pattern:#x}");
    }
    // The direction flag is cleared on entry: software KVM leaves to have it set again.
    guest.restart(flags_across());
    guest.regs.rdi = 0x602;
    assert_eq!(guest.run_on(), Trap::Syscall);
    if guest.software() {
        assert_eq!(guest.regs.rax, 39);
        guest.regs.rax = CONSTANTS[0];
        assert_eq!(guest.run_on(), Trap::Syscall);
    }
    assert_eq!(guest.regs.rbx & 0x400, 0x400);
}

program!(load, "mov (%rdi), %rax", "ud2");
program!(store, "mov %rax, (%rdi)", "ud2");
program!(jump, "jmp *%rdi");

#[test]
fn page_faults_tell_address_and_cause() {
    let Some(mut guest) = Guest::new(load()) else {
        return;
    };
    let mut fault = |program: &[u8], address: u64| {
        guest.restart(program);
        guest.regs.rdi = address;
        let trap = guest.run_on();
        let Trap::Exception {
            vector: 14,
            error_code,
            fault_gva,
        } = trap
        else {
            panic!("{trap:?} at {address:#x}")
        };
        assert_eq!(fault_gva, Gva(address));
        (error_code, guest.regs.rip)
    };
    assert_eq!(fault(load(), UNMAPPED.0 + 5), (PF_USER, CODE.0));
    assert_eq!(fault(store(), UNMAPPED.0), (PF_USER | PF_WRITE, CODE.0));
    assert_eq!(
        fault(store(), READ_ONLY.0),
        (PF_USER | PF_WRITE | PF_PRESENT, CODE.0)
    );
    assert_eq!(
        fault(jump(), DATA.0),
        (PF_USER | PF_FETCH | PF_PRESENT, DATA.0)
    );
    assert_eq!(fault(jump(), UNMAPPED.0), (PF_USER | PF_FETCH, UNMAPPED.0));
    for page in [GDT, IDT, TSS, EXC_STACK, DF_STACK, FLUSH_STACK] {
        assert_eq!(fault(load(), page.0).0, PF_USER | PF_PRESENT, "{page:?}");
        let write = PF_USER | PF_PRESENT | PF_WRITE;
        assert_eq!(fault(store(), page.0).0, write, "{page:?}");
        let fetch = PF_USER | PF_PRESENT | PF_FETCH;
        assert_eq!(fault(jump(), page.0).0, fetch, "{page:?}");
    }
    assert_eq!(fault(load(), EXC_CODE.0).0, PF_USER | PF_PRESENT);
    assert_eq!(fault(jump(), EXC_CODE.0).0, PF_USER | PF_PRESENT | PF_FETCH);
    for page in [SYSCALL_CODE, STUB_DATA] {
        let write = PF_USER | PF_PRESENT | PF_WRITE;
        assert_eq!(fault(store(), page.0).0, write, "{page:?}");
    }
    assert_eq!(fault(load(), PROBE_CODE.0).0, PF_USER, "unmapped after use");
    assert_eq!(fault(load(), 0).0, PF_USER);
}

program!(divide, "xor %ecx, %ecx", "div %ecx");
program!(undefined, "ud2");
program!(breakpoint, "int3", "nop");
program!(halt, "hlt");
program!(disable, "cli");
program!(foreign_int, "int $0x21");
program!(gate_int, "int $14");
program!(wrmsr, "mov $0xc0000082, %ecx", "wrmsr");
program!(mov_cr3, "mov %cr3, %rax");
program!(out_exception, "out %al, $0x8e");
program!(out_dx, "mov $0x3f8, %edx", "out %eax, (%dx)");
program!(in_dx, "mov $0x60, %edx", "in (%dx), %al");
program!(iopl, "pushq $0x3202", "popfq", "out %al, $0x80");

#[test]
fn exceptions_arrive_at_the_instruction() {
    let Some(mut guest) = Guest::new(undefined()) else {
        return;
    };
    type Case = (fn() -> &'static [u8], u8, u32, u64);
    let cases: [Case; 13] = [
        (divide, 0, 0, 2),
        (undefined, 6, 0, 0),
        (breakpoint, 3, 0, 1),
        (halt, 13, 0, 0),
        (disable, 13, 0, 0),
        (foreign_int, 13, 0x21 << 3 | 2, 0),
        (gate_int, 13, 14 << 3 | 2, 0),
        (wrmsr, 13, 0, 5),
        (mov_cr3, 13, 0, 0),
        (out_exception, 13, 0, 0),
        (out_dx, 13, 0, 5),
        (in_dx, 13, 0, 5),
        (iopl, 13, 0, 6),
    ];
    for (number, (program, vector, error_code, offset)) in cases.into_iter().enumerate() {
        // Software KVM has no emulation of `int n`: #UD instead.
        let (vector, error_code) = match error_code {
            1.. if guest.software() => (6, 0),
            _ => (vector, error_code),
        };
        guest.restart(program());
        let found = exception(guest.run_on());
        // The bit that says "from the IDT" is what can be relied on: an emulated CPU may multiply the
        // vector by another number.
        assert_eq!(
            (found.0, found.1 & 2),
            (vector, error_code & 2),
            "case {number}"
        );
        assert_eq!(guest.regs.rip, CODE.0 + offset, "case {number}");
        assert_eq!(guest.regs.rsp, STACK_TOP - 64, "case {number}");
    }
}

program!(legacy_int, "int $0x80");
program!(compat, "push $0x23", "push $0x400000", "lretq", "ud2");

#[test]
fn no_way_leads_into_32_bit_code() {
    let Some(mut guest) = Guest::new(compat()) else {
        return;
    };
    if guest.software() {
        println!("skipped: ring 3 meets the host's own descriptor tables there");
        return;
    }
    // #GP for the empty slot; an emulated CPU may already fail to read the stack as it should.
    let (vector, _) = exception(guest.run_on());
    assert!(matches!(vector, 13 | 14), "{vector}");
    assert_eq!(guest.regs.rip, CODE.0 + 7, "at the far return");
    guest.restart(legacy_int());
    assert_eq!(exception(guest.run_on()).0, 13);
    assert_eq!(guest.regs.rip, CODE.0);
}

program!(
    read_tsc,
    "rdtsc",
    "shl $32, %rdx",
    "or %rax, %rdx",
    "mov $1000, %eax",
    "syscall",
);

#[test]
fn the_guests_tsc_is_the_hosts_plus_the_offset() {
    let Some(mut guest) = Guest::new(read_tsc()) else {
        return;
    };
    let offset = match guest.vm.vcpu().tsc_offset() {
        Ok(offset) => offset,
        Err(error) => return println!("skipped: {error}"),
    };
    // SAFETY: rdtsc has no preconditions.
    let before = unsafe { std::arch::x86_64::_rdtsc() };
    assert_eq!(guest.run_on(), Trap::Syscall);
    // SAFETY: as above.
    let after = unsafe { std::arch::x86_64::_rdtsc() };
    let seen = guest.regs.rdx.wrapping_sub(offset.cast_unsigned());
    assert!((before..=after).contains(&seen), "{before} {seen} {after}");
}

program!(out_call, "mov $39, %eax", "out %al, $0x40", "ud2");
program!(in_call, "mov $0x1234, %eax", "in $0x40, %al", "ud2");
program!(
    ins_call,
    "mov $0x40, %edx",
    "mov $64, %ecx",
    "rep insb",
    "ud2"
);
program!(
    outs_call,
    "mov $0x40, %edx",
    "mov $64, %ecx",
    "rep outsb",
    "ud2"
);
program!(wide_call, "mov $0x40, %edx", "out %eax, (%dx)", "ud2");
program!(good, "mov $1000, %eax", "syscall");

#[test]
fn the_stubs_port_is_not_a_system_call_elsewhere() {
    let Some(mut guest) = Guest::new(out_call()) else {
        return;
    };
    let programs = [out_call(), in_call(), ins_call(), outs_call(), wide_call()];
    for (number, program) in programs.into_iter().enumerate() {
        guest.restart(program);
        guest.regs.rdi = DATA.0;
        guest.regs.rsi = DATA.0;
        // A forged return address and flags must not count.
        guest.regs.rcx = UNMAPPED.0;
        guest.regs.r11 = u64::MAX;
        assert_eq!(exception(guest.run_on()), (13, 0), "program {number}");
        let offset = guest.regs.rip - CODE.0;
        assert!((5..=12).contains(&offset), "program {number}: {offset}");
        // Nothing of the access is left for the next thread.
        guest.restart(good());
        guest.regs.rbx = 5;
        assert_eq!(guest.run_on(), Trap::Syscall, "program {number}");
        assert_eq!(
            (guest.regs.rax, guest.regs.rbx),
            (CALL, 5),
            "program {number}"
        );
        assert_eq!(guest.regs.rip, CODE.0 + 7);
    }
    assert!(guest.software() == (guest.vm.vcpu().counters().forged_io > 0));
}

#[test]
fn a_jump_into_the_stub_gains_nothing() {
    let Some(mut guest) = Guest::new(jump()) else {
        return;
    };
    let kvm_kind = guest.vm.kvm_kind();
    for offset in [0, leave_offset(kvm_kind)] {
        guest.restart(jump());
        guest.regs.rdi = SYSCALL_CODE.0 + offset;
        guest.regs.rax = CALL;
        guest.regs.rcx = 0x1234_5678;
        guest.regs.r11 = u64::MAX;
        let trap = guest.run_on();
        if guest.software() {
            // The same as `syscall` itself, with a return address of the program's choice.
            assert_eq!(trap, Trap::Syscall);
            assert_eq!(guest.regs.rip, 0x1234_5678);
            assert_eq!(guest.regs.rflags & 0x3000, 0);
        } else {
            assert_eq!(exception(trap), (14, PF_USER | PF_PRESENT | PF_FETCH));
        }
    }
    // Past the out, into the padding, onto the compatibility entry.
    for offset in [
        leave_offset(kvm_kind) + 2,
        4000,
        kvmlet_stub::CSTAR_OFFSET_BYTES,
    ] {
        guest.restart(jump());
        guest.regs.rdi = SYSCALL_CODE.0 + offset;
        let (vector, _) = exception(guest.run_on());
        assert_eq!(vector == 14, kvm_kind == KvmKind::Hardware, "{vector}");
    }
}

program!(
    show_flags,
    "pushfq",
    "pop %rbx",
    "mov $1000, %eax",
    "syscall"
);

#[test]
fn forged_registers_gain_no_privilege() {
    let Some(mut guest) = Guest::new(show_flags()) else {
        return;
    };
    guest.regs.rflags = !0x100;
    guest.regs.fs_base = 0x8000_0000_0000_0000;
    assert_eq!(guest.run_on(), Trap::Syscall);
    assert_eq!(
        guest.regs.rbx & 0x3_7000,
        0,
        "IOPL, NT, VM: {:#x}",
        guest.regs.rbx
    );
    assert_eq!(guest.regs.fs_base, 0);
    for rip in [0x8000_0000_0000u64, 1 << 63, u64::MAX - 1] {
        guest.restart(show_flags());
        guest.regs.rip = rip;
        let trap = guest.run_on();
        let (vector, _) = exception(trap);
        assert!(matches!(vector, 13 | 14), "{trap:?}");
        assert_eq!(guest.regs.rip, rip);
    }
}

program!(
    bases,
    "mov %fs:0, %rbx",
    "mov %gs:8, %rbp",
    "mov $0x500010, %eax",
    "wrfsbase %rax",
    "mov $0x500020, %eax",
    "wrgsbase %rax",
    "mov $1000, %eax",
    "syscall",
    "mov %fs:0, %rbx",
    "ud2",
);

#[test]
fn segment_bases_travel_both_ways() {
    let Some(mut guest) = Guest::new(bases()) else {
        return;
    };
    for (at, value) in [(0, 11u64), (8, 22), (0x10, 33)] {
        let at = kvmlet_abi::Gpa(guest.data.0 + at);
        guest.vm.write(at, &value.to_le_bytes()).unwrap();
    }
    guest.regs.fs_base = DATA.0;
    guest.regs.gs_base = DATA.0;
    let trap = guest.run_on();
    assert_eq!((guest.regs.rbx, guest.regs.rbp), (11, 22));
    if trap
        == (Trap::Exception {
            vector: 6,
            error_code: 0,
            fault_gva: Gva(0),
        })
    {
        println!("skipped the rest: no FSGSBASE");
        return;
    }
    assert_eq!(trap, Trap::Syscall);
    assert_eq!(guest.regs.fs_base, DATA.0 + 0x10);
    assert_eq!(guest.regs.gs_base, DATA.0 + 0x20);
    assert_eq!(exception(guest.run_on()).0, 6);
    assert_eq!(guest.regs.rbx, 33);
}

program!(
    single_step,
    "pushfq",
    "orl $0x100, (%rsp)",
    "mov $1000, %eax",
    "popfq",
    "syscall",
    "nop",
    "nop",
);

#[test]
fn a_single_stepped_call_is_a_call() {
    let Some(mut guest) = Guest::new(single_step()) else {
        return;
    };
    let mut steps = 0;
    loop {
        match guest.run_on() {
            Trap::Syscall => break,
            trap => assert_eq!(exception(trap), (1, 0)),
        }
        steps += 1;
        assert!(steps < 4, "rip {:#x}", guest.regs.rip);
    }
    assert_eq!(guest.regs.rax, CALL);
    assert_eq!(guest.regs.rflags & 0x100, 0x100, "TF comes back");
    let after = guest.regs.rip;
    assert_eq!(exception(guest.run_on()), (1, 0));
    assert!((after..=after + 1).contains(&guest.regs.rip));
}

#[test]
fn a_changed_entry_is_seen_after_the_flush_routine() {
    let Some(mut guest) = Guest::new(load()) else {
        return;
    };
    let page = Gva(0x5_0000_0000);
    let first = guest
        .vm
        .map_page(page, &1u64.to_le_bytes(), USER_WRITE)
        .unwrap();
    let second = guest
        .vm
        .map_page(Gva(page.0 + 0x1000), &2u64.to_le_bytes(), USER_WRITE)
        .unwrap();
    let read = |guest: &mut Guest| {
        guest.restart(load());
        guest.regs.rdi = page.0;
        guest.regs.r12 = 0xabc;
        let trap = guest.run_on();
        assert_eq!(guest.regs.r12, 0xabc);
        (exception(trap).0, guest.regs.rax)
    };
    assert_eq!(read(&mut guest), (6, 1));
    guest.vm.map(page, second, USER_WRITE).unwrap();
    assert_eq!(read(&mut guest), (6, 2));
    assert_eq!(guest.vm.vcpu().pending_flush(), 0);
    guest.vm.unmap(page).unwrap();
    assert_eq!(read(&mut guest).0, 14);
    guest.vm.map(page, first, USER_READ).unwrap();
    assert_eq!(read(&mut guest), (6, 1));
    // As many as fit, and one more: the operand of the changed entry, many times over.
    guest.vm.map(page, second, USER_WRITE).unwrap();
    assert_eq!(read(&mut guest), (6, 2));
    let before = guest.vm.vcpu().counters();
    let operand = if guest.software() {
        // Some entry of some table, in the window that shows them all.
        let table = guest.vm.memory().table_slots().next().unwrap().gpa;
        kvmlet_mem::TABLE_WINDOW.wrapping_add(table.0)
    } else {
        page
    };
    let vcpu = guest.vm.vcpu();
    vcpu.request_flush(&[operand; kvmlet_stub::MAX_FLUSH_PAGES])
        .unwrap();
    assert!(vcpu.request_flush(&[operand]).is_err());
    assert_eq!(vcpu.pending_flush(), kvmlet_stub::MAX_FLUSH_PAGES);
    assert_eq!(read(&mut guest), (6, 2));
    let counters = guest.vm.vcpu().counters();
    assert_eq!(counters.flushes, before.flushes + 1);
    assert_eq!(counters.flushed_pages, before.flushed_pages + 256);
}

#[test]
fn many_changes_in_one_table_are_seen_at_once() {
    let Some(mut guest) = Guest::new(load()) else {
        return;
    };
    const PAGES: u64 = 40;
    let page = |index: u64| Gva(0x5_0000_0000 + index * 0x1000);
    let frames: Vec<_> = (0..PAGES)
        .map(|index| {
            let value = (100 + index).to_le_bytes();
            guest.vm.map_page(page(index), &value, USER_WRITE).unwrap()
        })
        .collect();
    let read = |guest: &mut Guest, index: u64| {
        guest.restart(load());
        guest.regs.rdi = page(index).0;
        let trap = guest.run_on();
        (exception(trap).0, guest.regs.rax)
    };
    for index in 0..PAGES {
        assert_eq!(read(&mut guest, index), (6, 100 + index));
    }
    // Most of them show the next one's frame from now on, some nothing; the others are as they were.
    let before = guest.vm.vcpu().counters();
    for index in 0..30 {
        match index % 5 {
            0 => guest.vm.unmap(page(index)).unwrap(),
            _ => guest
                .vm
                .map(page(index), frames[index as usize + 1], USER_WRITE)
                .unwrap(),
        }
    }
    for index in (0..PAGES).rev() {
        match read(&mut guest, index) {
            (14, _) => assert!(index < 30 && index % 5 == 0, "{index}"),
            seen if index < 30 => assert_eq!(seen, (6, 101 + index)),
            seen => assert_eq!(seen, (6, 100 + index)),
        }
    }
    let flushed = guest.vm.vcpu().counters().flushed_pages - before.flushed_pages;
    assert_eq!(flushed, if guest.software() { 1 } else { 30 });
}

program!(
    vectors,
    "movq %rdi, %xmm5",
    "mov $1000, %eax",
    "syscall",
    "movq %xmm5, %rbx",
    "mov %rbx, %rbp",
    "mov $1000, %eax",
    "syscall",
);
program!(
    wide_vectors,
    "vmovq %rdi, %xmm5",
    "vpunpcklqdq %xmm5, %xmm5, %xmm5",
    "vinsertf128 $1, %xmm5, %ymm5, %ymm6",
    "mov $1000, %eax",
    "syscall",
    "vmovq %xmm5, %rbx",
    "vextractf128 $1, %ymm6, %xmm7",
    "vmovq %xmm7, %rbp",
    "mov $1000, %eax",
    "syscall",
);

#[test]
fn extended_state_follows_its_thread() {
    let Some(mut guest) = Guest::new(vectors()) else {
        return;
    };
    let layout = guest.vm.vcpu().xstate_layout();
    assert!(
        layout.xcr0 & 3 == 3 && layout.len_bytes >= 576,
        "{layout:?}"
    );
    if layout.xcr0 & 4 == 4 {
        guest.restart(wide_vectors());
    } else {
        println!("without AVX");
    }
    let start = guest.regs;
    let mut threads: Vec<_> = [111u64, 222]
        .into_iter()
        .map(|value| {
            let mut regs = start;
            regs.rdi = value;
            (regs, kvmlet_hv::XState::new(layout))
        })
        .collect();
    let mut between = 0;
    for pass in 0..2 {
        for (regs, state) in &mut threads {
            let vcpu = guest.vm.vcpu();
            vcpu.load_xstate(state).unwrap();
            while vcpu.run(regs) == Trap::Interrupted {}
            assert_eq!(regs.rax, CALL);
            vcpu.save_xstate(state).unwrap();
            if pass == 0 {
                between = regs.rip;
            }
        }
    }
    assert_eq!((threads[0].0.rbx, threads[0].0.rbp), (111, 111));
    assert_eq!((threads[1].0.rbx, threads[1].0.rbp), (222, 222));
    // An image goes out to a signal frame and comes back.
    let image = threads[0].1.to_bytes();
    assert_eq!(image.len(), layout.len_bytes);
    threads[1].1.set_bytes(&image).unwrap();
    guest.vm.vcpu().load_xstate(&threads[1].1).unwrap();
    guest.regs = start;
    guest.regs.rip = between;
    assert_eq!(guest.run_on(), Trap::Syscall);
    assert_eq!((guest.regs.rbx, guest.regs.rbp), (111, 111));
}

#[test]
fn a_truncated_file_behind_a_page_is_a_host_fault() {
    let Some(mut guest) = Guest::new(load()) else {
        return;
    };
    // SAFETY: the call takes a name and flags; the descriptor is owned by `file` alone.
    let file = unsafe {
        let fd = libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        std::fs::File::from_raw_fd(fd)
    };
    file.set_len(4096).unwrap();
    let window = guest
        .vm
        .memory()
        .map_file(file.as_fd(), 0, 4096, FileMapping::Private)
        .unwrap();
    let page = Gva(0x5_0000_0000);
    guest.vm.map(page, window.gpa, USER_READ).unwrap();
    guest.regs.rdi = page.0;
    let start = guest.regs;
    assert_eq!(exception(guest.run_on()).0, 6);
    file.set_len(0).unwrap();
    guest.regs = start;
    assert_eq!(guest.run_on(), Trap::HostFault);
    // The resume flag may show that the instruction was tried.
    guest.regs.rflags &= !0x1_0000;
    assert_eq!(guest.regs, start);
    // The thread goes on once something is there.
    file.set_len(4096).unwrap();
    assert_eq!(exception(guest.run_on()).0, 6);
}

#[test]
fn a_slot_can_be_refreshed_and_taken_away() {
    let Some(mut guest) = Guest::new(load()) else {
        return;
    };
    guest.regs.rdi = DATA.0;
    let start = guest.regs;
    assert_eq!(exception(guest.run_on()).0, 6);
    let slots: Vec<_> = guest
        .vm
        .memory()
        .slots()
        .iter()
        .map(|spec| spec.id)
        .collect();
    for id in &slots {
        guest.vm.vm().refresh_slot(*id).unwrap();
    }
    guest.regs = start;
    assert_eq!(exception(guest.run_on()).0, 6);
    for id in &slots {
        guest.vm.vm().delete_slot(*id).unwrap();
        assert!(guest.vm.vm().delete_slot(*id).is_err());
        let memory = guest.vm.memory().slot_memory(*id).unwrap();
        guest.vm.vm().set_slot(memory).unwrap();
    }
    guest.regs = start;
    assert_eq!(exception(guest.run_on()).0, 6);
}

#[test]
fn an_access_outside_of_all_slots_ends_the_vm() {
    let Some(mut guest) = Guest::new(store()) else {
        return;
    };
    let page = Gva(0x5_0000_0000);
    let hole = guest
        .vm
        .memory()
        .slots()
        .iter()
        .map(|spec| spec.gpa.0 + spec.len_bytes)
        .max()
        .unwrap();
    guest
        .vm
        .map(page, kvmlet_abi::Gpa(hole + (1 << 30)), USER_WRITE)
        .unwrap();
    guest.regs.rdi = page.0;
    assert!(matches!(guest.run_on(), Trap::Broken { .. }));
    assert_eq!(guest.vm.vcpu().counters().broken, 1);
}

#[test]
fn kvm_counts_by_name() {
    let Some(mut guest) = Guest::new(good()) else {
        return;
    };
    assert_eq!(guest.run_on(), Trap::Syscall);
    match guest.vm.vcpu().stats() {
        Ok(stats) => {
            assert!(stats.get("exits").is_some_and(|exits| exits > 0));
            assert_eq!(stats.get("no such counter"), None);
            assert!(stats.all().iter().any(|(name, _)| *name == "pf_taken"));
        }
        Err(error) => println!("skipped: {error}"),
    }
    assert!(guest.vm.vm().ioctls() >= 2);
    assert_ne!(guest.regs, UserRegs::default());
}
