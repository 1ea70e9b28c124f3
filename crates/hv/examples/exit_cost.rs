//! Prints the cost of leaving the VM here. Measured are a bare exit (X), a system call through
//! [`Vcpu::run`], a call answered in the stub, a page fault, and a flush. Medians of interleaved batches.

use std::time::Instant;

use kvmlet_abi::regs::FIXED_RFLAGS;
use kvmlet_abi::{Gva, Trap, UserRegs};
use kvmlet_hv::bare::BareVm;
use kvmlet_hv::{HvError, Kvm};
use kvmlet_mem::PteFlags;

const CODE: Gva = Gva(0x40_0000);
const DATA: Gva = Gva(0x50_0000);
const BATCHES: usize = 15;
const ROUNDS: u32 = 200;

/// `1: mov $1000,%eax; syscall; jmp 1b`
const CALLS: [u8; 9] = [0xb8, 0xe8, 0x03, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
/// `1: mov $39,%eax; syscall; dec %ebx; jnz 1b; mov $1000,%eax; syscall`
const ANSWERED: [u8; 18] = [
    0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xff, 0xcb, 0x75, 0xf5, 0xb8, 0xe8, 0x03, 0, 0, 0x0f, 0x05,
];
/// `mov (%rdi),%rax`
const LOAD: [u8; 3] = [0x48, 0x8b, 0x07];

fn regs(offset: u64) -> UserRegs {
    UserRegs {
        rip: CODE.0 + offset,
        rflags: FIXED_RFLAGS,
        ..UserRegs::default()
    }
}

fn timed(rounds: u32, mut work: impl FnMut() -> Result<(), HvError>) -> Result<f64, HvError> {
    let start = Instant::now();
    for _ in 0..rounds {
        work()?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds))
}

fn main() -> Result<(), HvError> {
    let mut vm = BareVm::new(&Kvm::open()?)?;
    let code = [&CALLS[..], &ANSWERED, &LOAD].concat();
    vm.map_page(CODE, &code, PteFlags::USER)?;
    let user_read = PteFlags::USER | PteFlags::NX;
    let frame = vm.map_page(DATA, &[], user_read)?;
    let mut samples: [Vec<f64>; 6] = Default::default();
    for _ in 0..BATCHES {
        samples[0].push(vm.measure_exit_us(1, ROUNDS)?);
        let mut at = regs(0);
        samples[1].push(timed(ROUNDS, || {
            let trap = vm.vcpu().run(&mut at);
            assert_eq!(trap, Trap::Syscall);
            at.rax = 0;
            Ok(())
        })?);
        samples[2].push(timed(ROUNDS, || {
            let mut at = UserRegs { rdi: 8, ..regs(27) };
            assert!(matches!(
                vm.vcpu().run(&mut at),
                Trap::Exception { vector: 14, .. }
            ));
            Ok(())
        })?);
        let mut at = UserRegs {
            rbx: 10_000,
            ..regs(9)
        };
        let whole = timed(1, || {
            assert_eq!(vm.run(&mut at)?, Trap::Syscall);
            Ok(())
        })?;
        samples[3].push(whole / 10_000.0);
        for (pages, sample) in [(1u64, 4), (64, 5)] {
            samples[sample].push(timed(20, || {
                for page in 0..pages {
                    vm.map(Gva(DATA.0 + page * 4096), frame, user_read)?;
                    vm.unmap(Gva(DATA.0 + page * 4096))?;
                }
                assert_eq!(vm.run(&mut regs(0))?, Trap::Syscall);
                Ok(())
            })?);
        }
    }
    let names = [
        "bare exit (X)",
        "system call by Vcpu::run",
        "page fault by Vcpu::run",
        "getpid in the stub",
        "system call and flush of 1 page",
        "system call and flush of 64 pages",
    ];
    println!("{:?} KVM", vm.kvm_kind());
    let mut x = 0.0;
    for (name, times) in names.iter().zip(&mut samples) {
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        if x == 0.0 {
            x = median;
        }
        println!("{name:34} {median:9.2} us  {:5.2} X", median / x);
    }
    Ok(())
}
