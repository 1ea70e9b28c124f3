//! Kicks and deadlines: they stop any guest, none is lost, and none shows in the guest's registers.
#![allow(unsafe_code)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::{CALL, CODE, CONSTANTS, DATA, Guest, UNMAPPED, USER_READ, program};
use kvmlet_abi::{Gva, Trap};

program!(spin, "1: jmp 1b");
program!(call, "mov $1000, %eax", "syscall");

fn monotonic_ns() -> u64 {
    // SAFETY: timespec is plain data, filled by the call.
    let now = unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        assert_eq!(libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now), 0);
        now
    };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[test]
fn a_kick_stops_a_spinning_guest() {
    let Some(mut guest) = Guest::new(spin()) else {
        return;
    };
    let kicker = guest.vm.vcpu().kicker();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        kicker.kick();
    });
    assert_eq!(guest.run(), Trap::Interrupted);
    assert_eq!(guest.regs.rip, CODE.0);
    thread.join().unwrap();
}

#[test]
fn a_kick_before_the_run_is_kept() {
    let Some(mut guest) = Guest::new(call()) else {
        return;
    };
    let kicker = guest.vm.vcpu().kicker();
    kicker.kick();
    kicker.kick();
    let runs = guest.vm.vcpu().counters().runs;
    assert_eq!(guest.run(), Trap::Interrupted);
    assert_eq!(guest.regs.rip, CODE.0);
    assert_eq!(
        guest.vm.vcpu().counters().runs,
        runs,
        "KVM was not even asked"
    );
    assert_eq!(guest.run_on(), Trap::Syscall);
    drop(guest);
    kicker.kick();
}

#[test]
fn a_deadline_stops_a_spinning_guest_and_can_be_disarmed() {
    let Some(mut guest) = Guest::new(spin()) else {
        return;
    };
    guest
        .vm
        .vcpu()
        .arm(Some(monotonic_ns() + 30_000_000))
        .unwrap();
    assert_eq!(guest.run(), Trap::Interrupted);
    guest.vm.vcpu().arm(Some(0)).unwrap();
    assert_eq!(guest.run(), Trap::Interrupted, "a deadline in the past");
    guest
        .vm
        .vcpu()
        .arm(Some(monotonic_ns() + 3_600_000_000_000))
        .unwrap();
    guest.vm.vcpu().arm(None).unwrap();
    guest.restart(call());
    assert_eq!(guest.run_on(), Trap::Syscall);
}

#[test]
fn a_deadline_follows_the_vcpu_to_another_thread() {
    let Some(mut guest) = Guest::new(spin()) else {
        return;
    };
    guest
        .vm
        .vcpu()
        .arm(Some(monotonic_ns() + 10_000_000))
        .unwrap();
    assert_eq!(guest.run(), Trap::Interrupted);
    thread::scope(|scope| {
        scope.spawn(|| {
            guest
                .vm
                .vcpu()
                .arm(Some(monotonic_ns() + 10_000_000))
                .unwrap();
            assert_eq!(guest.run(), Trap::Interrupted);
        });
    });
}

/// Kicks as fast as the machine lets it until dropped.
struct Hammer {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Hammer {
    fn new(guest: &mut Guest) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let kicker = guest.vm.vcpu().kicker();
        let seen = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut pause = 1u64;
            while !seen.load(Ordering::Relaxed) {
                kicker.kick();
                // Differing pauses, so that kicks fall everywhere.
                pause = pause * 13 % 97;
                thread::sleep(Duration::from_micros(pause));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Hammer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

program!(
    answered_loop,
    "1: mov $39, %eax",
    "syscall",
    "cmp %rdi, %rax",
    "jne 2f",
    "inc %rbx",
    "dec %rsi",
    "jnz 1b",
    "mov $1000, %eax",
    "syscall",
    "2: ud2",
);

#[test]
fn kicks_in_the_stub_do_not_show() {
    let Some(mut guest) = Guest::new(answered_loop()) else {
        return;
    };
    let rounds = 200_000;
    guest.regs.rdi = CONSTANTS[0];
    guest.regs.rsi = rounds;
    let hammer = Hammer::new(&mut guest);
    assert_eq!(guest.run_on(), Trap::Syscall);
    drop(hammer);
    assert_eq!((guest.regs.rax, guest.regs.rbx), (CALL, rounds));
    println!("{:?}", guest.vm.vcpu().counters());
}

program!(
    mixed_loop,
    "1: mov $1000, %eax",
    "syscall",
    "mov (%rdi), %r8",
    "inc %rbx",
    "mov $39, %eax",
    "syscall",
    "jmp 1b",
);

/// Two threads share the vCPU, each makes calls and takes page faults, and kicks switch between them.
#[test]
fn kicks_switch_threads_anywhere() {
    let Some(mut guest) = Guest::new(mixed_loop()) else {
        return;
    };
    let start = guest.regs;
    let mut threads = [start, start];
    for (number, regs) in threads.iter_mut().enumerate() {
        regs.rdi = UNMAPPED.0;
        regs.r12 = 100 + number as u64;
        regs.fs_base = DATA.0 + number as u64 * 8;
    }
    let mut calls = [0u64; 2];
    let mut faults = [0u64; 2];
    let mut switches = 0;
    let hammer = Hammer::new(&mut guest);
    let mut now = 0;
    while calls[0] + calls[1] < 2000 {
        let regs = &mut threads[now];
        match guest.vm.run(regs).unwrap() {
            Trap::Syscall => {
                assert_eq!(regs.rax, CALL);
                calls[now] += 1;
                regs.rax = 0;
                regs.rdi = if calls[now] % 2 == 0 {
                    DATA.0
                } else {
                    UNMAPPED.0
                };
            }
            Trap::Exception {
                vector: 14,
                fault_gva,
                ..
            } => {
                assert_eq!(fault_gva, UNMAPPED);
                faults[now] += 1;
                regs.rdi = DATA.0;
            }
            Trap::Interrupted => {
                switches += 1;
                now = 1 - now;
            }
            other => panic!("{other:?} with {regs:x?}"),
        }
    }
    drop(hammer);
    for (number, regs) in threads.iter().enumerate() {
        assert_eq!(regs.r12, 100 + number as u64);
        assert_eq!(regs.fs_base, DATA.0 + number as u64 * 8);
        assert!(calls[number] - regs.rbx <= 1, "{calls:?} {regs:x?}");
        assert!(
            faults[number].abs_diff(calls[number].div_ceil(2)) <= 1,
            "{calls:?} {faults:?}"
        );
    }
    assert!(switches > 0);
    println!("{switches} switches, {:?}", guest.vm.vcpu().counters());
}

program!(breakpoint, "int3", "1: jmp 1b");
program!(overflow, "int $4", "1: jmp 1b");

/// KVM does not report a software exception that it has not delivered yet.
fn hits_no_other_thread(program: &[u8], expected: u8) {
    let Some(mut guest) = Guest::new(program) else {
        return;
    };
    let raising = guest.regs;
    let spin = CODE.0 + program.len() as u64 - 2;
    let (mut raised, mut switches) = (0, 0);
    let hammer = Hammer::new(&mut guest);
    while raised < 5_000 {
        guest.regs = raising;
        match guest.run() {
            Trap::Exception { vector, .. } => {
                assert_eq!((vector, guest.regs.rip), (expected, spin));
                raised += 1;
            }
            Trap::Interrupted => assert_eq!(guest.regs.rip, CODE.0, "none is lost"),
            other => panic!("{other:?} with {:x?}", guest.regs),
        }
        guest.regs.rip = spin;
        assert_eq!(guest.run(), Trap::Interrupted);
        assert_eq!(guest.regs.rip, spin);
        switches += 1;
    }
    drop(hammer);
    println!("{switches} switches, {:?}", guest.vm.vcpu().counters());
}

#[test]
fn a_breakpoint_hits_no_other_thread() {
    hits_no_other_thread(breakpoint(), 3);
}

#[test]
fn an_overflow_hits_no_other_thread() {
    hits_no_other_thread(overflow(), 4);
}

program!(read_loop, "mov (%rdi), %rbx", "mov $1000, %eax", "syscall",);

#[test]
fn kicks_never_drop_a_flush() {
    let Some(mut guest) = Guest::new(read_loop()) else {
        return;
    };
    let page = Gva(0x5_0000_0000);
    let other = Gva(page.0 + 0x1000);
    let frames = [
        guest
            .vm
            .map_page(page, &0u64.to_le_bytes(), USER_READ)
            .unwrap(),
        guest
            .vm
            .map_page(other, &1u64.to_le_bytes(), USER_READ)
            .unwrap(),
    ];
    let start = guest.regs;
    let hammer = Hammer::new(&mut guest);
    for round in 0..400u64 {
        let want = round % 2;
        guest
            .vm
            .map(page, frames[want as usize], USER_READ)
            .unwrap();
        guest.regs = start;
        guest.regs.rdi = page.0;
        assert_eq!(guest.run_on(), Trap::Syscall);
        assert_eq!(guest.regs.rbx, want, "round {round}");
        assert_eq!(guest.vm.vcpu().pending_flush(), 0);
    }
    drop(hammer);
    // The first pass also discharged what building the VM had queued.
    assert_eq!(guest.vm.vcpu().counters().flushes, 400);
}
