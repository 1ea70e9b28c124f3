//! Signal delivery: the frame on the user stack and the way back (rt_sigreturn(2)).
//!
//! Layout: `struct rt_sigframe` of arch/x86/include/asm/sigframe.h, an XSAVE image above it with the
//! software-reserved bytes of arch/x86/include/uapi/asm/sigcontext.h.

use kvmlet_abi::linux::signal;
use kvmlet_abi::linux::signal::{
    SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SA_RESTORER, SS_AUTODISARM, SS_DISABLE,
};
use std::sync::Arc;

use kvmlet_abi::linux::{Sigaction, StackT};
use kvmlet_abi::{Errno, Gva, UserRegs};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cx::Cx;
use crate::kernel::XState;
use crate::outcome::Outcome;
use crate::sched::AfterHandler;
use crate::signal::{AltStack, SI_KERNEL, SIG_DFL, SigDetail, SigInfo, UNBLOCKABLE, bit, signo};
use crate::task;

const RED_ZONE: u64 = 128;
/// RFLAGS cleared on handler entry: TF, DF, RF.
const HANDLER_CLEARS: u64 = 0x1_0500;
/// Flags a sigcontext may set (FIX_EFLAGS of arch/x86/kernel/signal.c).
const SIGCONTEXT_RFLAGS: u64 = 0x5_0dd5;
/// UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
const UC_FLAGS: u64 = 7;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Legacy region of an XSAVE image (SDM vol. 1, 13.4.1).
const FXSAVE_LEN: usize = 512;
/// Offset of the software-reserved bytes in the legacy region.
const SW_RESERVED: usize = 464;
/// Legacy region and header.
const XSAVE_HEADER_END: usize = 576;

/// `struct rt_sigframe`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Frame {
    pretcode: u64,
    uc_flags: u64,
    uc_link: u64,
    uc_stack: StackT,
    context: SigContext,
    uc_sigmask: u64,
    info: [u8; 128],
}

/// `struct sigcontext_64`
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SigContext {
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
    rflags: u64,
    cs: u16,
    gs: u16,
    fs: u16,
    ss: u16,
    err: u64,
    trapno: u64,
    oldmask: u64,
    cr2: u64,
    fpstate: u64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Frame>() == 440 && size_of::<SigContext>() == 256);

impl SigContext {
    fn capture(regs: &UserRegs) -> Self {
        Self {
            r8: regs.r8,
            r9: regs.r9,
            r10: regs.r10,
            r11: regs.r11,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
            rdi: regs.rdi,
            rsi: regs.rsi,
            rbp: regs.rbp,
            rbx: regs.rbx,
            rdx: regs.rdx,
            rax: regs.rax,
            rcx: regs.rcx,
            rsp: regs.rsp,
            rip: regs.rip,
            rflags: regs.rflags,
            cs: kvmlet_abi::layout::USER_CS,
            ss: kvmlet_abi::layout::USER_DS,
            ..Self::default()
        }
    }

    /// Registers to go on with. Selectors are ours whatever the frame says.
    fn restore(&self, regs: &mut UserRegs) {
        regs.r8 = self.r8;
        regs.r9 = self.r9;
        regs.r10 = self.r10;
        regs.r11 = self.r11;
        regs.r12 = self.r12;
        regs.r13 = self.r13;
        regs.r14 = self.r14;
        regs.r15 = self.r15;
        regs.rdi = self.rdi;
        regs.rsi = self.rsi;
        regs.rbp = self.rbp;
        regs.rbx = self.rbx;
        regs.rdx = self.rdx;
        regs.rax = self.rax;
        regs.rcx = self.rcx;
        regs.rsp = self.rsp;
        regs.rip = self.rip;
        regs.rflags = (regs.rflags & !SIGCONTEXT_RFLAGS) | (self.rflags & SIGCONTEXT_RFLAGS);
        regs.sanitise();
    }
}

/// A siginfo_t (sigaction(2)).
#[must_use]
pub fn siginfo_bytes(info: &SigInfo) -> [u8; 128] {
    let mut words = [0u32; 32];
    words[0] = u32::from(info.signo);
    words[1] = info.errno.cast_unsigned();
    words[2] = info.code.cast_unsigned();
    let split = |value: u64| ((value & 0xffff_ffff) as u32, (value >> 32) as u32);
    match info.detail {
        SigDetail::None => {}
        SigDetail::Fault(addr) => (words[4], words[5]) = split(addr),
        SigDetail::Sender { pid, uid, value } => {
            words[4] = pid.cast_unsigned();
            words[5] = uid;
            (words[6], words[7]) = split(value);
        }
        SigDetail::Child {
            pid,
            uid,
            status,
            utime,
        } => {
            words[4] = pid.cast_unsigned();
            words[5] = uid;
            words[6] = status.cast_unsigned();
            (words[8], words[9]) = split(utime);
        }
        SigDetail::Poll { band, fd } => {
            words[4] = u32::from(band.cast_unsigned());
            words[6] = fd.cast_unsigned();
        }
        SigDetail::Timer { id, overrun, value } => {
            words[4] = id.cast_unsigned();
            words[5] = overrun.cast_unsigned();
            (words[6], words[7]) = split(value);
        }
    }
    let mut bytes = [0u8; 128];
    for (to, from) in bytes
        .iter_mut()
        .zip(words.iter().flat_map(|word| word.to_le_bytes()))
    {
        *to = from;
    }
    bytes
}

/// True if `rsp` lies on the alternate stack.
#[must_use]
pub fn on_altstack(stack: &StackT, rsp: u64) -> bool {
    stack.ss_flags & SS_AUTODISARM == 0
        && stack.ss_flags & SS_DISABLE == 0
        && rsp > stack.ss_sp
        && rsp.wrapping_sub(stack.ss_sp) <= stack.ss_size
}

/// The effect that a signal had on its thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivered {
    /// The thread goes on, in its handler or as before.
    Continue,
    /// Its process has ended by this signal.
    Killed,
    /// Its process has been stopped.
    Stopped,
}

/// Delivers one signal already taken from the pending sets. The thread's extended state must be
/// [`XState::Saved`] or [`XState::Initial`].
pub fn deliver(cx: &mut Cx<'_>, info: &SigInfo) -> Delivered {
    let Ok(process) = cx.process() else {
        return Delivered::Killed;
    };
    let action = process.signals.action(info.signo);
    if process.signals.ignores(info.signo) {
        finish_without_handler(cx);
        return Delivered::Continue;
    }
    if action.handler == SIG_DFL && task::stop::STOPS & bit(info.signo) != 0 {
        let pid = process.pid;
        if cx.kernel.stop_process(pid, info.signo) {
            return Delivered::Stopped;
        }
        finish_without_handler(cx);
        return Delivered::Continue;
    }
    if action.handler == SIG_DFL || info.signo == signo::SIGKILL {
        task::exit::kill_self(cx, info.signo);
        return Delivered::Killed;
    }
    match push_frame(cx, info, &action) {
        Ok(()) => {
            if info.signo == signal::SIGINT {
                cx.kernel.heeded = cx.kernel.heeded.wrapping_add(1);
            }
            Delivered::Continue
        }
        Err(_) => {
            // signal(7): no room for the frame is a SIGSEGV that cannot be caught twice.
            force_sigsegv(cx, info.signo);
            Delivered::Killed
        }
    }
}

/// A forced SIGSEGV ends the program when it is blocked, ignored, or came from its own delivery.
/// Linux differs: it tries the SIGSEGV handler once when another signal's frame did not fit. Here
/// the program ends, since that handler's frame would not fit on the same stack either.
fn force_sigsegv(cx: &mut Cx<'_>, _failed: u8) {
    task::exit::kill_self(cx, signo::SIGSEGV);
}

/// A taken signal that does nothing leaves the interrupted call as if never interrupted.
fn finish_without_handler(cx: &mut Cx<'_>) {
    if !cx.kernel.resume_interrupted(cx.tid)
        && let Ok(thread) = cx.thread()
        && let Some(mask) = thread.signals.saved_mask.take()
    {
        thread.signals.mask = mask;
    }
}

fn push_frame(cx: &mut Cx<'_>, info: &SigInfo, action: &Sigaction) -> Result<(), Errno> {
    let now_ns = crate::clock::monotonic_ns(cx.host);
    let thread = cx.thread()?;
    let mut regs = thread.regs;
    let xstate = match &thread.xstate {
        XState::Saved(image) => Some(Arc::clone(image)),
        XState::Initial | XState::Live => None,
    };
    let altstack = thread.signals.altstack.0;
    let mask = thread
        .signals
        .saved_mask
        .take()
        .unwrap_or(thread.signals.mask);
    let interrupted = thread.interrupted.take();
    if let Some(call) = interrupted {
        let restarts = match call.after_handler {
            AfterHandler::Fails => false,
            AfterHandler::MayRestart => action.flags & SA_RESTART != 0,
            AfterHandler::Restarts => true,
        };
        if restarts {
            regs.rax = call.call.nr;
            regs.rip = regs.rip.wrapping_sub(2);
        } else if let Some((timeline, at_ns)) = call.until
            && call.remain_gva != 0
        {
            let now = cx.kernel.time_on(timeline, now_ns).unwrap_or(at_ns);
            let left = u64::try_from(at_ns.saturating_sub(now)).unwrap_or(0);
            // nanosleep(2) gives EFAULT for a bad `rem`.
            if cx
                .write_struct(Gva(call.remain_gva), &crate::clock::timespec(left))
                .is_err()
            {
                regs.rax = Errno::EFAULT.as_rax();
            }
        }
    }

    let mut sp = regs.rsp.wrapping_sub(RED_ZONE);
    let already = on_altstack(&altstack, regs.rsp);
    let use_altstack = action.flags & SA_ONSTACK != 0 && altstack.ss_flags & SS_DISABLE == 0;
    if use_altstack && !already {
        sp = altstack.ss_sp.wrapping_add(altstack.ss_size);
    }
    let mut fpstate = 0u64;
    if let Some(image) = &xstate {
        let total = (image.len() as u64).saturating_add(4);
        sp = sp.wrapping_sub(total) & !63;
        fpstate = sp;
    }
    let frame_gva = (sp.wrapping_sub(size_of::<Frame>() as u64) & !15).wrapping_sub(8);
    if (use_altstack || already) && frame_gva <= altstack.ss_sp {
        return Err(Errno::EFAULT);
    }
    if let Some(image) = &xstate {
        write_xstate(cx, fpstate, image)?;
    }
    let mut context = SigContext::capture(&regs);
    context.err = info.trap.err;
    context.trapno = info.trap.trapno;
    context.cr2 = info.trap.cr2;
    context.oldmask = mask;
    context.fpstate = fpstate;
    let frame = Frame {
        pretcode: action.restorer,
        uc_flags: if fpstate == 0 {
            UC_FLAGS & !1
        } else {
            UC_FLAGS
        },
        uc_link: 0,
        uc_stack: altstack,
        context,
        uc_sigmask: mask,
        info: siginfo_bytes(info),
    };
    if action.flags & SA_RESTORER == 0 {
        // The x86-64 ABI requires SA_RESTORER (arch/x86/kernel/signal_64.c).
        return Err(Errno::EFAULT);
    }
    cx.write_struct(Gva(frame_gva), &frame)?;

    regs.rdi = u64::from(info.signo);
    regs.rax = 0;
    regs.rsi = frame_gva.wrapping_add(core::mem::offset_of!(Frame, info) as u64);
    regs.rdx = frame_gva.wrapping_add(8);
    regs.rip = action.handler;
    regs.rsp = frame_gva;
    regs.rflags &= !HANDLER_CLEARS;
    regs.sanitise();
    let thread = cx.thread()?;
    thread.regs = regs;
    thread.xstate = XState::Initial;
    thread.signals.mask |= action.mask & !UNBLOCKABLE;
    if action.flags & SA_NODEFER == 0 {
        thread.signals.mask |= bit(info.signo) & !UNBLOCKABLE;
    }
    if altstack.ss_flags & SS_AUTODISARM != 0 {
        thread.signals.altstack = AltStack::default();
    }
    if action.flags & SA_RESETHAND != 0 {
        cx.process()?.signals.actions.remove(&info.signo);
    }
    Ok(())
}

/// Writes an XSAVE image with `struct _fpx_sw_bytes` and the trailing magic.
fn write_xstate(cx: &mut Cx<'_>, gva: u64, image: &[u8]) -> Result<(), Errno> {
    let len = u32::try_from(image.len()).map_err(|_| Errno::EFAULT)?;
    cx.write(Gva(gva), image)?;
    let xfeatures = cx.host.xfeatures;
    let mut sw_bytes = [0u32; 12];
    sw_bytes[0] = FP_XSTATE_MAGIC1;
    sw_bytes[1] = len.saturating_add(4);
    sw_bytes[2] = (xfeatures & 0xffff_ffff) as u32;
    sw_bytes[3] = (xfeatures >> 32) as u32;
    sw_bytes[4] = len;
    cx.write(
        Gva(gva.wrapping_add(SW_RESERVED as u64)),
        sw_bytes.as_bytes(),
    )?;
    cx.write_struct(Gva(gva.wrapping_add(u64::from(len))), &FP_XSTATE_MAGIC2)
}

/// Reads an XSAVE image back, and refuses what XRSTOR and FXRSTOR would fault on.
fn read_xstate(cx: &mut Cx<'_>, gva: u64) -> Result<XState, Errno> {
    let full_len = cx.host.xstate_len;
    let mut image = vec![0u8; full_len.max(XSAVE_HEADER_END)];
    cx.read(Gva(gva), image.get_mut(..FXSAVE_LEN).ok_or(Errno::EFAULT)?)?;
    let sw_bytes: [u32; 12] = cx.read_struct(Gva(gva.wrapping_add(SW_RESERVED as u64)))?;
    let len = sw_bytes[4] as usize;
    let extended = sw_bytes[0] == FP_XSTATE_MAGIC1
        && (XSAVE_HEADER_END..=full_len).contains(&len)
        && sw_bytes[1] as usize >= len
        && cx.read_struct::<u32>(Gva(gva.wrapping_add(len as u64)))? == FP_XSTATE_MAGIC2;
    if extended {
        cx.read(Gva(gva), image.get_mut(..len).ok_or(Errno::EFAULT)?)?;
    } else if let Some(header) = image.get_mut(FXSAVE_LEN..XSAVE_HEADER_END) {
        // Only the legacy part: x87 and SSE state are valid, the rest is initial.
        header.fill(0);
        if let Some(first) = header.first_mut() {
            *first = 3;
        }
    }
    let alignment = if extended { 64 } else { 16 };
    if !gva.is_multiple_of(alignment) || !is_loadable(&image, cx.host.xfeatures) {
        return Err(Errno::EFAULT);
    }
    if let Some(reserved) = image.get_mut(SW_RESERVED..FXSAVE_LEN) {
        reserved.fill(0);
    }
    Ok(XState::Saved(image.into()))
}

/// True if the CPU would take `image` (SDM vol. 1, 13.8, and vol. 2B, FXRSTOR).
/// Linux differs: it takes a compacted image from a CPU that knows them.
fn is_loadable(image: &[u8], xfeatures: u64) -> bool {
    /// MXCSR bits that a CPU may have: DAZ and below (SDM vol. 1, 11.6.6), and AMD's misaligned
    /// exception mask (APM vol. 1, 4.2.2).
    const MXCSR_KNOWN: u32 = 0x2_ffff;
    const MXCSR: usize = 24;
    let Some(mxcsr) = image.get(MXCSR..).and_then(|rest| rest.first_chunk()) else {
        return false;
    };
    let Some(([xstate_bv, reserved @ ..], [])) = image
        .get(FXSAVE_LEN..XSAVE_HEADER_END)
        .map(<[u8]>::as_chunks::<8>)
    else {
        return false;
    };
    u32::from_le_bytes(*mxcsr) & !MXCSR_KNOWN == 0
        && u64::from_le_bytes(*xstate_bv) & !xfeatures == 0
        && reserved.iter().all(|word| *word == [0; 8])
}

/// rt_sigreturn(2): a frame that cannot be read is a SIGSEGV.
pub fn sigreturn(cx: &mut Cx<'_>) -> Outcome {
    match restore(cx) {
        Ok(()) => Outcome::Registers,
        Err(_) => {
            let tid = cx.tid;
            let info = SigInfo {
                signo: signo::SIGSEGV,
                code: SI_KERNEL,
                ..SigInfo::default()
            };
            force(cx, tid, info);
            Outcome::Registers
        }
    }
}

fn restore(cx: &mut Cx<'_>) -> Result<(), Errno> {
    let frame_gva = cx.thread()?.regs.rsp.wrapping_sub(8);
    let frame: Frame = cx.read_struct(Gva(frame_gva))?;
    let xstate = match frame.context.fpstate {
        0 => XState::Initial,
        gva => read_xstate(cx, gva)?,
    };
    let thread = cx.thread()?;
    thread.signals.mask = frame.uc_sigmask & !UNBLOCKABLE;
    frame.context.restore(&mut thread.regs);
    thread.xstate = xstate;
    thread.interrupted = None;
    let flags = frame.uc_stack.ss_flags & !SS_AUTODISARM;
    if !on_altstack(&thread.signals.altstack.0, thread.regs.rsp) && matches!(flags, 0..=2) {
        let value = if flags == SS_DISABLE {
            AltStack::default()
        } else {
            let ss_flags = frame.uc_stack.ss_flags & SS_AUTODISARM;
            AltStack(StackT {
                ss_flags,
                pad: 0,
                ..frame.uc_stack
            })
        };
        thread.signals.altstack = value;
    }
    let mut regs = thread.regs;
    crate::mm::trampoline::realign(cx, &mut regs);
    cx.thread()?.regs = regs;
    Ok(())
}

/// Raises a synchronous signal: one that is blocked or ignored ends the program
/// (force_sig_info in the kernel; signal(7), "synchronously generated").
pub fn force(cx: &mut Cx<'_>, tid: crate::kernel::Tid, info: SigInfo) {
    let Some(thread) = cx.kernel.threads.get_mut(&tid) else {
        return;
    };
    let blocked = thread.signals.mask & bit(info.signo) != 0;
    let ignored =
        cx.kernel.processes.get(&thread.pid).is_none_or(|process| {
            process.signals.action(info.signo).handler == crate::signal::SIG_IGN
        });
    if blocked || ignored {
        let caller = core::mem::replace(&mut cx.tid, tid);
        task::exit::kill_self(cx, info.signo);
        cx.tid = caller;
        return;
    }
    thread.signals.pending.discard(bit(info.signo));
    thread.signals.pending.add(info);
}
