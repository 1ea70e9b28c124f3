//! The syscall entry in its two forms, and what an interrupted pc inside it means.

use kvmlet_abi::layout::SYSCALL_CODE;
use kvmlet_abi::{Gva, PAGE_SIZE};

#[cfg(test)]
use crate::geometry::CSTAR_OFFSET_BYTES;
use crate::pages::{PAGE_LEN, PageImage};

/// Effect of `syscall` at ring 3 on this KVM: the only difference between the two that the stub sees.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KvmKind {
    /// VT-x, AMD-V: enters LSTAR at CPL 0, and port access from ring 3 raises #GP.
    Hardware,
    /// Software KVM (PVM): jumps to LSTAR at CPL 3, and port access from ring 3 leaves the VM.
    Software,
}

impl KvmKind {
    /// The word that reports use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hardware => "hardware",
            Self::Software => "software",
        }
    }
}

/// Meaning of a pc for a thread stopped in or near the syscall entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StubPc {
    /// Nothing done yet: unwind to the `syscall` instruction, `rip = rcx - 2`, flags from `r11`.
    Entry,
    /// `rax` may already be lost while an answer is made: unwind as for [`StubPc::Entry`], with this
    /// call number in `rax`.
    Answering {
        /// The call number.
        number: u64,
    },
    /// The answer is in `rax`: roll forward to `rip = rcx`, flags from `r11`.
    Answered,
    /// Exactly at the `out` that leaves the VM: nothing done, as for [`StubPc::Entry`].
    AtLeave,
    /// Behind that `out`: the call has been handed over.
    AfterLeave,
    /// The request is in the call page but not posted: unwind as for [`StubPc::Entry`], with the call
    /// number from that page in `rax`.
    Posting,
    /// The call has been posted, and perhaps answered: hand it over, with `rax` and `rdx` from the call
    /// page and everything else as at the entry.
    Posted,
    /// At the `out` of a posted call, or behind it: handed over, and `rax` and `rdx` are back.
    PostLeave,
    /// Not code that a system call runs through.
    Outside,
}

/// Call numbers answered by the stub, in the order of [`kvmlet_abi::layout::StubConstant`].
const NUMBERS: [u64; 7] = [39, 102, 107, 104, 108, 110, 186];
/// Length of `out imm8, al` (SDM vol. 2B).
const OUT_LEN_BYTES: u64 = 2;

/// Offsets into a syscall page, as the assembler counted them.
#[repr(C)]
struct Marks {
    entry: u32,
    leave: u32,
    /// Where a call to be posted begins.
    post: u32,
    /// From here on `rax`, then `rdx` are in the call page only.
    stored: u32,
    /// From here on the call is posted.
    posted: u32,
    /// Its `out`, if it leaves after all.
    post_leave: u32,
    /// The instruction that returns with its answer.
    post_return: u32,
    answers: [[u32; 2]; NUMBERS.len()],
}

unsafe extern "C" {
    static kvmlet_stub_syscall_hardware: PageImage;
    static kvmlet_stub_syscall_software: PageImage;
    static kvmlet_stub_marks_hardware: Marks;
    static kvmlet_stub_marks_software: Marks;
    static kvmlet_stub_marks_trampoline: Marks;
}

/// The page for [`SYSCALL_CODE`]; the entry (LSTAR) is its first byte.
#[must_use]
pub fn syscall_code(kvm_kind: KvmKind) -> &'static [u8] {
    // SAFETY: both symbols are immutable page images of exactly PAGE_LEN bytes in .rodata.
    unsafe {
        match kvm_kind {
            KvmKind::Hardware => &kvmlet_stub_syscall_hardware.0,
            KvmKind::Software => &kvmlet_stub_syscall_software.0,
        }
    }
}

fn marks(kvm_kind: KvmKind) -> &'static Marks {
    // SAFETY: both symbols are immutable tables of 7 + 2 * 7 u32 in .rodata, written by MARKS.
    unsafe {
        match kvm_kind {
            KvmKind::Hardware => &kvmlet_stub_marks_hardware,
            KvmKind::Software => &kvmlet_stub_marks_software,
        }
    }
}

fn trampoline_marks() -> &'static Marks {
    // SAFETY: as in `marks`.
    unsafe { &kvmlet_stub_marks_trampoline }
}

/// Entry of a call that jumps instead of executing `syscall`: software KVM only, see
/// [`crate::trampoline`].
#[must_use]
pub fn trampoline_entry() -> Gva {
    SYSCALL_CODE.wrapping_add(u64::from(trampoline_marks().entry))
}

/// Offset of the `out` that leaves the VM with a call that was not posted, in bytes from [`SYSCALL_CODE`].
#[must_use]
pub fn leave_offset(kvm_kind: KvmKind) -> u64 {
    u64::from(marks(kvm_kind).leave)
}

/// Offset of a `sysretq`, in bytes from [`SYSCALL_CODE`]. It returns from a system call to ring 3 on hardware, where the
/// stub is at CPL 0.
#[must_use]
pub fn return_offset() -> u64 {
    u64::from(marks(KvmKind::Hardware).post_return)
}

/// Classifies `pc`. The thread may have jumped there by itself. The answer then still names a state
/// that ring 3 could have reached with the registers it has.
#[must_use]
pub fn classify(kvm_kind: KvmKind, pc: Gva) -> StubPc {
    let offset = pc.0.wrapping_sub(SYSCALL_CODE.0);
    if offset >= PAGE_SIZE {
        return StubPc::Outside;
    }
    match classify_by(marks(kvm_kind), offset) {
        StubPc::Outside if kvm_kind == KvmKind::Software => classify_by(trampoline_marks(), offset),
        place => place,
    }
}

fn classify_by(marks: &Marks, offset: u64) -> StubPc {
    let leave = u64::from(marks.leave);
    if (u64::from(marks.entry)..leave).contains(&offset) {
        return StubPc::Entry;
    }
    if offset == leave {
        return StubPc::AtLeave;
    }
    if offset == leave + OUT_LEN_BYTES {
        return StubPc::AfterLeave;
    }
    let [post, stored, posted, post_leave, post_return] = [
        marks.post,
        marks.stored,
        marks.posted,
        marks.post_leave,
        marks.post_return,
    ]
    .map(u64::from);
    if offset == post_leave || offset == post_leave + OUT_LEN_BYTES {
        return StubPc::PostLeave;
    }
    if offset == post_return {
        return StubPc::Answered;
    }
    if (post..post_return).contains(&offset) {
        return match offset {
            offset if offset < stored => StubPc::Entry,
            offset if offset < posted => StubPc::Posting,
            _ => StubPc::Posted,
        };
    }
    for (number, answer) in NUMBERS.iter().zip(&marks.answers) {
        let [start, end] = answer.map(u64::from);
        if offset == end {
            return StubPc::Answered;
        }
        if (start..end).contains(&offset) {
            return StubPc::Answering { number: *number };
        }
    }
    StubPc::Outside
}

const _: () = assert!(PAGE_LEN as u64 == PAGE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind of KVM's table of marks, and the one of calls that jump.
    fn tables() -> [(KvmKind, &'static Marks); 3] {
        [
            (KvmKind::Hardware, marks(KvmKind::Hardware)),
            (KvmKind::Software, marks(KvmKind::Software)),
            (KvmKind::Software, trampoline_marks()),
        ]
    }

    #[test]
    fn classification_follows_the_code() {
        for (kvm_kind, marks) in tables() {
            let code = syscall_code(kvm_kind);
            let leave = u64::from(marks.leave);
            let at = leave as usize;
            assert_eq!(
                code[at..at + 2],
                [0xe6, kvmlet_abi::layout::PORT_SYSCALL as u8]
            );
            let pc = |offset: u64| classify(kvm_kind, Gva(SYSCALL_CODE.0 + offset));
            assert_eq!(pc(u64::from(marks.entry)), StubPc::Entry);
            assert_eq!(pc(leave), StubPc::AtLeave);
            assert_eq!(pc(leave + 2), StubPc::AfterLeave);
            assert_eq!(pc(4095), StubPc::Outside);
            assert_eq!(classify(kvm_kind, Gva(0x1000)), StubPc::Outside);
            assert_eq!(classify(kvm_kind, Gva(SYSCALL_CODE.0 - 1)), StubPc::Outside);
            let marks_of_post = marks;
            let at = marks_of_post.post_leave as usize;
            assert_eq!(
                code[at..at + 2],
                [0xe6, kvmlet_abi::layout::PORT_SYSCALL as u8]
            );
            for (offset, expected) in [
                (marks_of_post.post, StubPc::Entry),
                (marks_of_post.stored, StubPc::Posting),
                (marks_of_post.posted, StubPc::Posted),
                (marks_of_post.post_leave, StubPc::PostLeave),
                (marks_of_post.post_leave + 2, StubPc::PostLeave),
                (marks_of_post.post_return - 1, StubPc::Posted),
                (marks_of_post.post_return, StubPc::Answered),
            ] {
                assert_eq!(pc(u64::from(offset)), expected, "{kvm_kind:?} {offset}");
            }
            if kvm_kind == KvmKind::Hardware {
                let at = return_offset() as usize;
                assert_eq!(code[at..at + 3], [0x48, 0x0f, 0x07]);
            }
            let cstar = CSTAR_OFFSET_BYTES as usize;
            assert_eq!(code[cstar..cstar + 2], [0x0f, 0x0b]);
            for (number, [start, end]) in NUMBERS.iter().zip(marks.answers) {
                assert_eq!(
                    pc(u64::from(start)),
                    StubPc::Answering { number: *number },
                    "{kvm_kind:?} {number}"
                );
                assert_eq!(pc(u64::from(end)), StubPc::Answered);
                let end = end as usize;
                let expected: &[u8] = match kvm_kind {
                    KvmKind::Hardware => &[0x48, 0x0f, 0x07],
                    KvmKind::Software => &[0xff, 0xe1],
                };
                assert_eq!(&code[end..end + expected.len()], expected);
            }
        }
    }

    #[test]
    fn each_answer_loads_its_own_constant() {
        for (kvm_kind, marks) in tables() {
            let code = syscall_code(kvm_kind);
            for (slot, [_, end]) in marks.answers.iter().enumerate() {
                // mov disp32(%rip), %rax = 48 8b 05 disp32, directly before the return.
                let end = *end as usize;
                assert_eq!(code[end - 7..end - 4], [0x48, 0x8b, 0x05]);
                let disp = i32::from_le_bytes(code[end - 4..end].try_into().unwrap());
                let target = SYSCALL_CODE
                    .0
                    .wrapping_add(end as u64)
                    .wrapping_add_signed(i64::from(disp));
                assert_eq!(target, kvmlet_abi::layout::STUB_DATA.0 + 8 * slot as u64);
            }
        }
    }
}
