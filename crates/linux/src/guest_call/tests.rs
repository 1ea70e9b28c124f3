//! Calls on a program without a CPU.

use super::*;
use crate::channel::Peer;
use crate::personality::Step;
use crate::signal::{SI_USER, SigInfo, bit};
use crate::testing::{Sandbox, TID, TempTree};
use kvmlet_abi::Trap;

const RSP: u64 = 0x18_0000;
const FUNCTION: Gva = Gva(0x40_1000);
const RECEIVE: u64 = 7000;
/// The next thread after the first one.
const CHILD: Tid = Tid(TID.0 + 1);

/// A vCPU whose extended state is one image.
#[derive(Default)]
struct FakeCpu {
    image: Option<Arc<[u8]>>,
    saves: usize,
}

impl Cpu for FakeCpu {
    fn save_xstate(&mut self) -> Arc<[u8]> {
        self.saves += 1;
        self.image.clone().unwrap_or_else(|| Arc::from([0; 832]))
    }

    fn load_xstate(&mut self, image: Option<&[u8]>) {
        self.image = image.map(Arc::from);
    }
}

struct Guest {
    p: Personality,
    cpu: FakeCpu,
}

impl Guest {
    /// A program that has made a system call with these registers.
    fn in_call(nr: u64, args: [u64; 3]) -> Self {
        let tree = TempTree::new(&format!("call-{nr}-{:x}", args[0]));
        let Sandbox {
            mut kernel,
            machine,
            mut host,
            ..
        } = Sandbox::new(&tree.0);
        host.xstate_len = 832;
        kernel.channel.peer = Peer::Present;
        kernel.sched.make_ready(TID);
        let regs = UserRegs {
            rax: nr,
            rdi: args[0],
            rsi: args[1],
            rdx: args[2],
            rbx: 0xb0b,
            rsp: RSP,
            rip: 0x40_0002,
            rflags: 0x602,
            fs_base: 0x7000,
            ..UserRegs::default()
        };
        let mut guest = Self {
            p: Personality::new(kernel, machine, host),
            cpu: FakeCpu::default(),
        };
        assert_eq!(guest.next(), Step::Run(TID));
        guest.cpu.image = Some(Arc::from([7; 832]));
        guest.thread().regs = regs;
        guest.p.handle(TID, Some(Trap::Syscall), 0, &mut guest.cpu);
        guest
    }

    fn receiving() -> Self {
        let mut guest = Self::in_call(RECEIVE, [0x11_0000, 64, 0]);
        assert!(matches!(guest.next(), Step::Idle { .. }));
        assert!(guest.p.is_ready());
        guest
    }

    fn next(&mut self) -> Step {
        self.p.next(&mut self.cpu)
    }

    fn thread(&mut self) -> &mut Thread {
        self.p.kernel.threads.get_mut(&TID).unwrap()
    }

    fn begin(&mut self, args: &[CallArg], returns: Returns) -> Result<(), CallError> {
        self.p.begin_call(FUNCTION, args, returns, &mut self.cpu)
    }

    fn read(&mut self, gva: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.p.cx(TID).read(Gva(gva), &mut bytes).unwrap();
        bytes
    }

    /// The function returns.
    fn returns(&mut self, rax: u64) {
        let rsp = self.thread().regs.rsp;
        let to = self.read(rsp, 8);
        let thread = self.thread();
        thread.regs.rip = u64::from_le_bytes(to.try_into().unwrap());
        thread.regs.rsp += 8;
        thread.regs.rax = rax;
        thread.regs.rbx = 0xdead;
        let fault = Trap::Exception {
            vector: 14,
            error_code: 0x14,
            fault_gva: Gva(RETURN_ADDRESS),
        };
        self.p.handle(TID, Some(fault), 0, &mut self.cpu);
    }
}

fn bytes(text: &str) -> Arc<[u8]> {
    Arc::from(text.as_bytes())
}

#[test]
fn the_frame_is_what_the_abi_says() {
    let args = [
        CallArg::Int(11),
        CallArg::Bytes(bytes("sixteen bytes...")),
        CallArg::Float(2.5),
        CallArg::Buffer(bytes("xy")),
        CallArg::Int(u64::MAX),
        CallArg::Bytes(bytes("")),
        CallArg::Int(6),
    ];
    let layout = Layout::new(RSP + 3, &args).unwrap();
    assert_eq!((layout.rsp + 8) % 16, 0);
    assert!(layout.rsp + layout.block.len() as u64 <= RSP + 3 - RED_ZONE);
    assert_eq!(layout.block[..8], [0; 8]);
    let regs = layout.regs(FUNCTION, &UserRegs::default());
    assert_eq!((regs.rdi, regs.r8, regs.r9), (11, regs.r8, 6));
    assert_eq!((regs.rcx, regs.rax), (u64::MAX, 1));
    let at = |gva: u64, len: usize| {
        let from = (gva - layout.rsp) as usize;
        &layout.block[from..from + len]
    };
    assert_eq!(at(regs.rsi, 17), b"sixteen bytes...\0");
    assert_eq!(at(regs.rdx, 3), b"xy\0");
    assert_eq!(at(regs.r8, 1), b"\0");
    assert!([regs.rsi, regs.rdx, regs.r8].iter().all(|at| at % 16 == 0));
    assert_eq!(layout.buffers, Vector::unit((Gva(regs.rdx), 2)));
    assert_eq!(regs.rflags, FIXED_RFLAGS, "DF is clear");
}

#[test]
fn what_does_not_fit_is_refused() {
    let int = CallArg::Int(0);
    let float = CallArg::Float(0.0);
    let large = CallArg::Bytes(Arc::from(vec![0; ARG_BYTES_MAX]));
    let too_many = Err(CallError::TooManyArgs);
    assert_eq!(Layout::new(RSP, &vec![int.clone(); 7]), too_many);
    assert_eq!(Layout::new(RSP, &vec![float.clone(); 9]), too_many);
    assert!(Layout::new(RSP, &[vec![int; 6], vec![float; 8]].concat()).is_ok());
    let one_more = [large.clone(), CallArg::Bytes(bytes("x"))];
    assert_eq!(Layout::new(1 << 40, &one_more), Err(CallError::TooLarge));
    assert!(Layout::new(1 << 40, std::slice::from_ref(&large)).is_ok());
    for rsp in [0, 127, 128, 1000] {
        assert_eq!(
            Layout::new(rsp, std::slice::from_ref(&large)),
            Err(CallError::NoStack)
        );
    }
}

#[test]
fn a_receiver_is_lent_and_comes_back_as_it_was() {
    let mut guest = Guest::receiving();
    let before = guest.thread().clone();
    let sched = guest.p.kernel.sched.clone();
    guest
        .begin(
            &[CallArg::Int(7), CallArg::Buffer(bytes("in"))],
            Returns::Integer,
        )
        .unwrap();
    assert_eq!(guest.p.call_status(), CallStatus::Running);
    assert_eq!(guest.begin(&[], Returns::Integer), Err(CallError::Busy));
    assert!(!guest.p.is_ready());
    assert_eq!(guest.next(), Step::Run(TID));
    let regs = guest.thread().regs;
    assert_eq!((regs.rip, regs.rdi, regs.rbx), (FUNCTION.0, 7, 0));
    assert_eq!((regs.fs_base, guest.cpu.image.clone()), (0x7000, None));
    assert_eq!(guest.read(regs.rsi, 3), b"in\0");
    guest.p.cx(TID).write(Gva(regs.rsi), b"OUT").unwrap();

    guest.returns(99);
    assert!(matches!(guest.next(), Step::Idle { .. }));
    assert_eq!(guest.p.call_status(), CallStatus::Returned);
    let saves = guest.cpu.saves;
    assert_eq!(
        guest.p.take_return(),
        Some(CallReturn {
            rax: 99,
            xmm0: None,
            buffers: vec![b"OU".to_vec()]
        })
    );
    assert_eq!(guest.p.take_return(), None);
    assert!(guest.p.is_ready());
    assert_eq!(guest.p.kernel.sched, sched);
    let after = guest.thread().clone();
    assert_eq!(after.regs, before.regs);
    assert_eq!(after.xstate, XState::Saved(Arc::from([7; 832])));

    // It goes on: a message comes.
    guest.p.post(bytes("hello")).unwrap();
    assert_eq!(guest.next(), Step::Run(TID));
    assert_eq!(guest.thread().regs.rax, 5);
    assert_eq!(guest.read(0x11_0000, 5), b"hello");
    assert_eq!(guest.cpu.image, Some(Arc::from([7; 832])));
    assert_eq!(guest.cpu.saves, saves);
}

#[test]
fn floats_travel_in_vector_registers() {
    let mut guest = Guest::receiving();
    let args = [CallArg::Float(1.5), CallArg::Int(3), CallArg::Float(-2.0)];
    guest.begin(&args, Returns::Float).unwrap();
    assert_eq!(guest.next(), Step::Run(TID));
    let image = guest.cpu.image.clone().unwrap();
    assert_eq!(image.len(), 832);
    assert_eq!(image[160..168], 1.5f64.to_le_bytes());
    assert_eq!(image[176..184], (-2.0f64).to_le_bytes());
    assert_eq!(image[24..28], INITIAL_MXCSR.to_le_bytes());
    assert_eq!(image[512..520], X87_SSE.to_le_bytes());
    let regs = guest.thread().regs;
    assert_eq!((regs.rax, regs.rdi), (2, 3));
    let mut result = image.to_vec();
    result[160..168].copy_from_slice(&8.25f64.to_le_bytes());
    guest.cpu.image = Some(result.into());
    guest.returns(0);
    guest.next();
    let returned = guest.p.take_return().unwrap();
    assert_eq!(returned.xmm0.map(f64::from_bits), Some(8.25));
}

#[test]
fn a_message_that_came_during_the_call_is_received_after_it() {
    let mut guest = Guest::receiving();
    guest.begin(&[], Returns::Integer).unwrap();
    guest.p.post(bytes("queued")).unwrap();
    assert_eq!(guest.next(), Step::Run(TID));
    guest.returns(1);
    assert_eq!(guest.next(), Step::Run(TID));
    assert_eq!(guest.thread().regs.rax, 6);
    assert_eq!(guest.p.call_status(), CallStatus::Returned);
}

#[test]
fn a_sleeper_is_lent_and_sleeps_on() {
    let mut guest = Guest::in_call(39, [0; 3]);
    guest
        .p
        .cx(TID)
        .write(Gva(0x11_0000), &3600u64.to_le_bytes())
        .unwrap();
    let thread = guest.thread();
    (thread.regs.rax, thread.regs.rdi) = (35, 0x11_0000);
    guest.p.handle(TID, Some(Trap::Syscall), 0, &mut guest.cpu);
    let step = guest.next();
    assert!(matches!(
        step,
        Step::Idle {
            deadline_ns: Some(_)
        }
    ));
    guest.begin(&[], Returns::Integer).unwrap();
    assert_eq!(guest.next(), Step::Run(TID));
    guest.returns(1);
    assert_eq!(guest.next(), step);
    assert!(guest.p.take_return().is_some());
}

#[test]
fn a_futex_waiter_looks_again() {
    let futex_wait = [0x11_0000, 128, 0];
    let mut guest = Guest::in_call(202, futex_wait);
    assert!(matches!(guest.next(), Step::Idle { deadline_ns: None }));
    guest.begin(&[], Returns::Integer).unwrap();
    assert!(guest.p.kernel.sched.futexes.is_empty());
    assert_eq!(guest.next(), Step::Run(TID));
    guest.returns(1);
    assert_eq!(guest.next(), Step::Run(TID));
    let regs = guest.thread().regs;
    assert_eq!((regs.rax, regs.rip, regs.rsp), (0, 0x40_0002, RSP));
}

#[test]
fn a_signal_that_came_during_the_call_interrupts_the_wait() {
    let mut guest = Guest::receiving();
    guest.begin(&[], Returns::Integer).unwrap();
    assert_eq!(guest.next(), Step::Run(TID));
    guest.thread().signals.mask = bit(10);
    let info = SigInfo {
        signo: 10,
        code: SI_USER,
        ..SigInfo::default()
    };
    guest.p.kernel.send_to_thread(TID, info).unwrap();
    guest.returns(5);
    // The mask of before does not block it; its default is the end.
    assert!(matches!(guest.next(), Step::Ended(_)));
    assert_eq!(guest.p.take_return().map(|result| result.rax), Some(5));
}

#[test]
fn who_is_not_waiting_is_not_lent() {
    let mut guest = Guest::in_call(39, [0; 3]);
    assert_eq!(guest.next(), Step::Run(TID));
    assert_eq!(guest.begin(&[], Returns::Integer), Err(CallError::NotReady));
    let mut guest = Guest::receiving();
    let beyond = guest
        .p
        .begin_call(USER_END, &[], Returns::Integer, &mut guest.cpu);
    assert_eq!(beyond, Err(CallError::BadFunction(USER_END)));
    guest.thread().regs.rsp = 0x9000_0000;
    assert_eq!(guest.begin(&[], Returns::Integer), Err(CallError::NoStack));
    assert!(guest.p.is_ready());
    assert_eq!(guest.p.call_status(), CallStatus::Idle);
}

#[test]
fn a_parent_in_vfork_is_not_lent() {
    let mut guest = Guest::in_call(58, [0; 3]);
    assert_eq!(guest.next(), Step::Run(CHILD));
    assert_eq!(guest.begin(&[], Returns::Integer), Err(CallError::NotReady));
    assert_eq!(guest.p.kernel.processes.len(), 2);
}

#[test]
fn a_child_is_not_lent() {
    let mut guest = Guest::in_call(57, [0; 3]);
    assert_eq!(guest.next(), Step::Run(CHILD));
    let child = guest.p.kernel.threads.get_mut(&CHILD).unwrap();
    child.regs.rax = RECEIVE;
    (child.regs.rdi, child.regs.rsi) = (0x11_0000, 64);
    guest
        .p
        .handle(CHILD, Some(Trap::Syscall), 0, &mut guest.cpu);
    assert_eq!(guest.next(), Step::Run(TID));
    assert_eq!(guest.p.kernel.sched.receivers.front(), Some(&CHILD));
    assert_eq!(guest.begin(&[], Returns::Integer), Err(CallError::NotReady));
    guest.thread().regs.rax = 34;
    guest.p.handle(TID, Some(Trap::Syscall), 0, &mut guest.cpu);
    guest.begin(&[], Returns::Integer).unwrap();
    assert_eq!(guest.next(), Step::Run(TID));
    assert_eq!(guest.thread().regs.rip, FUNCTION.0);
}

#[test]
fn a_call_whose_thread_ends_is_lost() {
    let mut guest = Guest::receiving();
    guest.begin(&[], Returns::Integer).unwrap();
    assert_eq!(guest.next(), Step::Run(TID));
    guest.thread().regs.rax = 60;
    guest.p.handle(TID, Some(Trap::Syscall), 0, &mut guest.cpu);
    assert_eq!(guest.p.call_status(), CallStatus::Lost);
    assert!(matches!(guest.next(), Step::Ended(_)));
    assert_eq!(guest.begin(&[], Returns::Integer), Err(CallError::Ended));
}

#[test]
fn a_call_of_a_null_pointer_is_no_return() {
    let mut guest = Guest::receiving();
    guest.begin(&[], Returns::Integer).unwrap();
    assert_eq!(guest.next(), Step::Run(TID));
    let rsp = guest.thread().regs.rsp;
    for rsp in [rsp, rsp - 16] {
        guest.thread().regs.rsp = rsp;
        guest.thread().regs.rip = 0;
        assert_eq!(guest.next(), Step::Run(TID));
    }
    let fault = Trap::Exception {
        vector: 14,
        error_code: 0x14,
        fault_gva: Gva(0),
    };
    guest.p.handle(TID, Some(fault), 0, &mut guest.cpu);
    assert_eq!(guest.next(), Step::Ended(crate::kernel::End::Signal(11)));
    assert_eq!(guest.p.call_status(), CallStatus::Running);
}
