//! A bare VM with one page of code, one of data and one of stack, for programs of a few instructions.
#![allow(unsafe_code, dead_code)]

use kvmlet_abi::regs::FIXED_RFLAGS;
use kvmlet_abi::{Gpa, Gva, Trap, UserRegs};
use kvmlet_hv::bare::BareVm;
use kvmlet_hv::{HvError, Kvm, KvmKind};
use kvmlet_mem::PteFlags;

pub const USER_CODE: PteFlags = PteFlags::USER;
pub const USER_READ: PteFlags = PteFlags::USER.union(PteFlags::NX);
pub const USER_WRITE: PteFlags = USER_READ.union(PteFlags::WRITE);

pub const CODE: Gva = Gva(0x40_0000);
pub const DATA: Gva = Gva(0x50_0000);
pub const READ_ONLY: Gva = Gva(0x51_0000);
pub const STACK: Gva = Gva(0x60_0000);
pub const STACK_TOP: u64 = STACK.0 + 0x1000;
pub const UNMAPPED: Gva = Gva(0x77_0000_0000);
/// Answers of the stub, in slot order.
pub const CONSTANTS: [u64; 7] = [4242, 1001, 1002, 1003, 1004, 17, 4243];
/// A call number that the stub does not answer.
pub const CALL: u64 = 1000;

/// Assembles a guest program into this test's read-only data.
macro_rules! program {
    ($name:ident, $($line:literal),+ $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata.guest, \"a\", @progbits",
            concat!("guest_", stringify!($name), "_begin:"),
            $($line,)+
            concat!("guest_", stringify!($name), "_end:"),
            ".popsection",
            options(att_syntax)
        );
        fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!("guest_", stringify!($name), "_begin")]
                static BEGIN: u8;
                #[link_name = concat!("guest_", stringify!($name), "_end")]
                static END: u8;
            }
            // SAFETY: both symbols bound one block of bytes in .rodata.
            unsafe {
                let begin = std::ptr::addr_of!(BEGIN);
                let len = std::ptr::addr_of!(END) as usize - begin as usize;
                std::slice::from_raw_parts(begin, len)
            }
        }
    };
}
pub(crate) use program;

pub struct Guest {
    pub vm: BareVm,
    pub regs: UserRegs,
    pub code: Gpa,
    pub data: Gpa,
}

impl Guest {
    /// `None`, with the reason printed, where there is no KVM.
    pub fn new(program: &[u8]) -> Option<Self> {
        let kvm = match Kvm::open() {
            Ok(kvm) => kvm,
            Err(error @ (HvError::Missing | HvError::Permission)) => {
                println!("skipped: {error}");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let mut vm = BareVm::new(&kvm).unwrap();
        let code = vm.map_page(CODE, program, USER_CODE).unwrap();
        let data = vm.map_page(DATA, &[], USER_WRITE).unwrap();
        vm.map_page(READ_ONLY, &[], USER_READ).unwrap();
        vm.map_page(STACK, &[], USER_WRITE).unwrap();
        vm.set_constants(&CONSTANTS).unwrap();
        let regs = UserRegs {
            rip: CODE.0,
            rsp: STACK_TOP - 64,
            rflags: FIXED_RFLAGS,
            ..UserRegs::default()
        };
        Some(Self {
            vm,
            regs,
            code,
            data,
        })
    }

    pub fn run(&mut self) -> Trap {
        self.vm.run(&mut self.regs).unwrap()
    }

    /// Runs past kicks.
    pub fn run_on(&mut self) -> Trap {
        loop {
            let trap = self.run();
            if trap != Trap::Interrupted {
                return trap;
            }
        }
    }

    /// Replaces the program and starts over.
    pub fn restart(&mut self, program: &[u8]) {
        self.vm.write(self.code, program).unwrap();
        self.regs = UserRegs {
            rip: CODE.0,
            rsp: STACK_TOP - 64,
            rflags: FIXED_RFLAGS,
            ..UserRegs::default()
        };
    }

    pub fn software(&self) -> bool {
        self.vm.kvm_kind() == KvmKind::Software
    }
}

/// The exception in `trap`: vector and error code.
pub fn exception(trap: Trap) -> (u8, u32) {
    match trap {
        Trap::Exception {
            vector, error_code, ..
        } => (vector, error_code),
        other => panic!("not an exception: {other:?}"),
    }
}
