//! Calls that jump. On software KVM the `syscall` instruction alone costs more than a polled call. So a
//! place in a program's text that makes many calls is given a jump to the stub instead.
//!
//! Only what stands before the `syscall` is replaced, by a jump of its length or shorter, to a slot of
//! the process's trampoline page. The slot executes what was replaced, does what a `syscall` leaves behind
//! (rcx the return address, r11 the flags) and enters the stub at [`crate::trampoline_entry`]. The `syscall`
//! itself stays where it is: whoever is put back to it, jumps to it or returns behind it finds what was
//! there before.
//!
//! Few forms of text are known; they are nearly all that C libraries and Go have.

use kvmlet_abi::{Gva, PAGE_SIZE, UserRegs};

use crate::pages::PAGE_LEN;
use crate::syscall::trampoline_entry;

/// Bytes of a slot.
const SLOT_BYTES: usize = 40;
/// Slots of a trampoline page. Its last word is the address that all of them jump to.
pub const SLOTS: usize = (PAGE_LEN - WORD) / SLOT_BYTES;
const WORD: usize = 8;
/// Length of the jump that is written.
pub const JUMP_BYTES: usize = 5;
/// Bytes before the return address that [`Site::recognise`] looks at, at most.
pub const LOOK_BYTES: usize = 16;

const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// `mov $imm32, %eax; syscall`
const NUMBER_BYTES: usize = 7;
/// `cmpb $0, disp32(%rip); je rel8; xor %eax, %eax; syscall`
const READ_BYTES: usize = 13;
/// Most bytes that are moved to a slot as they are.
const MOVED_MAX: usize = 6;
/// From where to where, behind what was moved, rcx holds what rax did.
const RAX_SAVED: u64 = 3;
const RAX_BACK: u64 = 14;
/// Offsets in the slot of a read: its `je`, and what comes behind.
const READ_JE: u64 = 7;
const READ_CALL: u64 = 13;
/// Length of `cmpb $0, disp32(%rip)`.
const CMPB_BYTES: u64 = 7;
/// What r11 holds of the flags that `xor %eax, %eax` leaves: ZF, PF and the bit that is always set.
const ZERO_FLAGS: u32 = 0x4600;

/// Shape of a place in a program's text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// `mov $number, %eax; syscall`
    Number(u32),
    /// The start of read(2) in glibc: `cmpb $0, flag(%rip); je slow; xor %eax, %eax; syscall`
    Read {
        /// The byte that is compared.
        flag: Gva,
        /// Where the conditional jump goes.
        slow: Gva,
    },
    /// Instructions that do the same anywhere and as often as they are executed.
    Moved(Moved),
}

/// Instructions before a `syscall` that can be executed elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    bytes: [u8; MOVED_MAX],
    len: usize,
}

impl Moved {
    /// What `code` ends in, if that is known.
    fn recognise(code: &[u8]) -> Option<Self> {
        let len = match *code {
            // glibc's syscall(2): mov 8(%rsp), %r9
            [.., before, 0x4c, 0x8b, 0x4c, 0x24, 0x08] if !is_prefix(before) => 5,
            // The last two of Go's Syscall6: mov %rsi, %r10; mov %rdi, %rdx; mov %rcx, %rsi; mov %rbx, %rdi
            [
                ..,
                0x49,
                0x89,
                0xf2,
                0x48,
                0x89,
                0xfa,
                0x48,
                0x89,
                0xce,
                0x48,
                0x89,
                0xdf,
            ] => 6,
            _ => return None,
        };
        let mut bytes = [0; MOVED_MAX];
        let from = code.get(code.len().checked_sub(len)?..)?;
        bytes.get_mut(..len)?.copy_from_slice(from);
        Some(Self { bytes, len })
    }

    fn code(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// Why a thread has stopped in a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// It single-steps, and has done one instruction.
    Step,
    /// For anything else.
    Otherwise,
}

/// A place in a program's text that makes a system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Site {
    /// The instruction that a jump replaces.
    pub start: Gva,
    /// Behind the `syscall`.
    pub back: Gva,
    /// Shape of the code between them.
    pub form: Form,
}

/// Whether an instruction that begins behind this byte may begin with it instead.
fn is_prefix(byte: u8) -> bool {
    matches!(byte, 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 | 0x0f)
}

fn word(bytes: &[u8], at: usize) -> Option<[u8; 4]> {
    bytes.get(at..at + 4)?.try_into().ok()
}

/// The distance from `from` to `to` as an instruction holds it.
fn distance(from: Gva, to: Gva) -> Option<[u8; 4]> {
    let distance = to.0.wrapping_sub(from.0).cast_signed();
    Some(i32::try_from(distance).ok()?.to_le_bytes())
}

impl Site {
    /// The place whose `syscall` returns to `back`, if the bytes before it are of a known form and make
    /// call `nr`. They are at most [`LOOK_BYTES`], the last one directly before `back`.
    #[must_use]
    pub fn recognise(before: &[u8], back: Gva, nr: u64) -> Option<Self> {
        let code = before.strip_suffix(&SYSCALL)?;
        let site = Self::recognise_moved(code, back)
            .or_else(|| Self::recognise_number(code, back, nr))
            .or_else(|| Self::recognise_read(code, back).filter(|_| nr == 0))?;
        (site.start.0 / PAGE_SIZE == (back.0 - 1) / PAGE_SIZE).then_some(site)
    }

    fn recognise_moved(code: &[u8], back: Gva) -> Option<Self> {
        let moved = Moved::recognise(code)?;
        let len = moved.len + SYSCALL.len();
        Some(Self {
            start: Gva(back.0.checked_sub(len as u64)?),
            back,
            form: Form::Moved(moved),
        })
    }

    fn recognise_number(code: &[u8], back: Gva, nr: u64) -> Option<Self> {
        let (earlier, load) = code.split_at_checked(code.len().checked_sub(5)?)?;
        let number = u32::from_le_bytes(word(load, 1)?);
        if load.first() != Some(&0xb8) || u64::from(number) != nr {
            return None;
        }
        // The end of a longer instruction may look the same: one with a prefix, or a store, a
        // comparison or a product of the number with a displacement that ends in this byte.
        let [.., third, second, first] = earlier else {
            return None;
        };
        let longer = |byte: &u8| matches!(byte, 0xc7 | 0x81 | 0x69);
        if is_prefix(*first) || longer(second) || longer(third) {
            return None;
        }
        Some(Self {
            start: Gva(back.0.checked_sub(NUMBER_BYTES as u64)?),
            back,
            form: Form::Number(number),
        })
    }

    fn recognise_read(code: &[u8], back: Gva) -> Option<Self> {
        let start = Gva(back.0.checked_sub(READ_BYTES as u64)?);
        let code = code.get(code.len().checked_sub(READ_BYTES - SYSCALL.len())?..)?;
        let [0x80, 0x3d, _, _, _, _, 0, 0x74, je, 0x31, 0xc0] = *code else {
            return None;
        };
        let behind_cmpb = start.0 + CMPB_BYTES;
        let disp = i32::from_le_bytes(word(code, 2)?);
        Some(Self {
            start,
            back,
            form: Form::Read {
                flag: Gva(behind_cmpb.wrapping_add_signed(i64::from(disp))),
                slow: Gva((behind_cmpb + 2).wrapping_add_signed(i64::from(je.cast_signed()))),
            },
        })
    }

    /// The bytes at `start` when it has not been replaced.
    #[must_use]
    pub fn original(&self) -> Option<[u8; JUMP_BYTES]> {
        let (head, tail): (&[u8], _) = match self.form {
            Form::Moved(moved) => return moved.code().first_chunk().copied(),
            Form::Number(number) => (&[0xb8], number.to_le_bytes()),
            Form::Read { flag, .. } => (
                &[0x80, 0x3d],
                distance(self.start.wrapping_add(CMPB_BYTES), flag)?,
            ),
        };
        let bytes = head.iter().chain(&tail).copied();
        let mut code = [0; JUMP_BYTES];
        for (to, from) in code.iter_mut().zip(bytes) {
            *to = from;
        }
        Some(code)
    }

    /// The jump to slot `index` of the trampoline page at `page`; `None` if that is out of reach.
    #[must_use]
    pub fn jump(&self, page: Gva, index: usize) -> Option<[u8; JUMP_BYTES]> {
        let behind = self.start.wrapping_add(JUMP_BYTES as u64);
        let [a, b, c, d] = distance(behind, slot(page, index))?;
        Some([0xe9, a, b, c, d])
    }

    /// The code of slot `index` of the trampoline page at `page`; `None` if something is out of its reach.
    #[must_use]
    pub fn code(&self, page: Gva, index: usize) -> Option<Vec<u8>> {
        let at = slot(page, index);
        let mut code = Vec::with_capacity(SLOT_BYTES);
        // An instruction that ends in a distance from its end, and maybe an operand behind it.
        let relative = |code: &mut Vec<u8>, head: &[u8], to: Gva, tail: &[u8]| {
            let end = code.len() + head.len() + 4 + tail.len();
            let distance = distance(at.wrapping_add(end as u64), to)?;
            for part in [head, &distance, tail] {
                code.extend_from_slice(part);
            }
            Some(())
        };
        let load: &[u8] = match self.form {
            Form::Number(number) => {
                // seto %al; lahf; movzwl %ax, %r11d
                code.extend([0x0f, 0x90, 0xc0, 0x9f, 0x44, 0x0f, 0xb7, 0xd8]);
                &[&[0xb8], number.to_le_bytes().as_slice()].concat()
            }
            Form::Read { flag, slow } => {
                // cmpb $0, flag(%rip); je slow; mov $ZERO_FLAGS, %r11d
                relative(&mut code, &[0x80, 0x3d], flag, &[0])?;
                relative(&mut code, &[0x0f, 0x84], slow, &[])?;
                code.extend([0x41, 0xbb]);
                code.extend(ZERO_FLAGS.to_le_bytes());
                &[0x31, 0xc0]
            }
            Form::Moved(moved) => {
                code.extend_from_slice(moved.code());
                // mov %rax, %rcx; seto %al; lahf; movzwl %ax, %r11d; mov %rcx, %rax
                code.extend([0x48, 0x89, 0xc1, 0x0f, 0x90, 0xc0, 0x9f]);
                code.extend([0x44, 0x0f, 0xb7, 0xd8, 0x48, 0x89, 0xc8]);
                &[]
            }
        };
        // lea back(%rip), %rcx; the number, if it is known; jmp *entry(%rip)
        relative(&mut code, &[0x48, 0x8d, 0x0d], self.back, &[])?;
        code.extend_from_slice(load);
        relative(&mut code, &[0xff, 0x25], entry_word(page), &[])?;
        Some(code)
    }

    /// True if a thread at `rip` is between two instructions that the jump replaces. It may be put to
    /// [`Site::start`]: they can be executed again.
    #[must_use]
    pub fn splits(&self, rip: u64) -> bool {
        let inside = rip.wrapping_sub(self.start.0);
        let is_several = matches!(self.form, Form::Moved(moved) if moved.len > JUMP_BYTES);
        is_several && (1..JUMP_BYTES as u64).contains(&inside)
    }

    /// Puts a thread that stopped in this site's slot, `offset` bytes behind its start, to where it is in
    /// the program. A thread that stopped for its single step stays in the slot if it would have to jump
    /// there again.
    pub fn unwind(&self, offset: u64, stopped: Stopped, regs: &mut UserRegs) {
        let syscall = self.back.0.wrapping_sub(SYSCALL.len() as u64);
        let is_stepping = stopped == Stopped::Step;
        regs.rip = match self.form {
            Form::Number(number) => {
                regs.rax = u64::from(number);
                syscall
            }
            // To the xor before the syscall: the slot may have executed it or not.
            Form::Read { .. } if offset >= READ_CALL => syscall.wrapping_sub(2),
            Form::Read { .. } if offset >= READ_JE => self.start.0.wrapping_add(CMPB_BYTES),
            Form::Moved(moved) if offset >= moved.len as u64 => {
                let behind = offset - moved.len as u64;
                if (RAX_SAVED..RAX_BACK).contains(&behind) {
                    regs.rax = regs.rcx;
                }
                syscall
            }
            Form::Read { .. } | Form::Moved(_) if is_stepping => regs.rip,
            Form::Read { .. } | Form::Moved(_) => self.start.0,
        };
    }
}

fn slot(page: Gva, index: usize) -> Gva {
    page.wrapping_add((index * SLOT_BYTES) as u64)
}

fn entry_word(page: Gva) -> Gva {
    page.wrapping_add((PAGE_LEN - WORD) as u64)
}

/// Offset of slot `index` in a trampoline page.
#[must_use]
pub const fn slot_offset(index: usize) -> u64 {
    (index * SLOT_BYTES) as u64
}

/// The slot at an offset in a trampoline page, and how far behind its start that is.
#[must_use]
pub fn slot_at(offset: u64) -> (usize, u64) {
    let bytes = SLOT_BYTES as u64;
    ((offset / bytes) as usize, offset % bytes)
}

/// A trampoline page without a site.
#[must_use]
pub fn page_image() -> [u8; PAGE_LEN] {
    /// int3
    const TRAP: u8 = 0xcc;
    let mut page = [TRAP; PAGE_LEN];
    if let Some(word) = page.last_chunk_mut::<WORD>() {
        *word = trampoline_entry().0.to_le_bytes();
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACK: Gva = Gva(0x40_1100);
    const PAGE: Gva = Gva(0x3f_f000);
    const NUMBER: [u8; 12] = [0x90, 0x90, 0xff, 0xc3, 0x90, 0xb8, 3, 1, 0, 0, 0x0f, 0x05];
    const READ: [u8; 13] = [
        0x80, 0x3d, 0x10, 0, 0, 0, 0, 0x74, 0x20, 0x31, 0xc0, 0x0f, 0x05,
    ];
    const ANY: [u8; 8] = [0xc8, 0x4c, 0x8b, 0x4c, 0x24, 8, 0x0f, 0x05];
    const GO: [u8; 14] = [
        0x49, 0x89, 0xf2, 0x48, 0x89, 0xfa, 0x48, 0x89, 0xce, 0x48, 0x89, 0xdf, 0x0f, 0x05,
    ];

    fn sites() -> [(Site, &'static [u8]); 4] {
        let recognise = |bytes, nr| Site::recognise(bytes, BACK, nr).unwrap();
        [
            (recognise(&NUMBER, 0x103), &NUMBER[5..]),
            (recognise(&READ, 0), &READ),
            (recognise(&ANY, 202), &ANY[1..]),
            (recognise(&GO, 1), &GO[6..]),
        ]
    }

    #[test]
    fn known_forms_are_recognised() {
        let [(number, _), (read, _), moved @ ..] = sites();
        assert_eq!(number.form, Form::Number(0x103));
        assert_eq!(number.start, Gva(BACK.0 - 7));
        let start = BACK.0 - 13;
        let form = Form::Read {
            flag: Gva(start + 7 + 0x10),
            slow: Gva(start + 9 + 0x20),
        };
        assert_eq!((read.start.0, read.form), (start, form));
        for (site, text) in moved {
            assert!(matches!(site.form, Form::Moved(_)), "{text:x?}");
            assert_eq!(site.start.0 + text.len() as u64, BACK.0);
        }
        let zero = [0x90, 0x90, 0x90, 0xb8, 0, 0, 0, 0, 0x0f, 0x05];
        let site = Site::recognise(&zero, BACK, 0).unwrap();
        assert_eq!(site.form, Form::Number(0));
    }

    #[test]
    fn other_text_is_left_alone() {
        let refused = |bytes: &[u8], back: u64, nr| {
            assert_eq!(Site::recognise(bytes, Gva(back), nr), None, "{bytes:x?}");
        };
        refused(&NUMBER, BACK.0, 0x104);
        refused(&NUMBER, BACK.0, 0);
        refused(&NUMBER[3..], BACK.0, 0x103);
        refused(&NUMBER[..11], BACK.0, 0x103);
        refused(&READ, BACK.0, 1);
        refused(&READ[1..], BACK.0, 0);
        refused(&[], BACK.0, 0);
        refused(&ANY, 3, 1);
        refused(&ANY[1..], BACK.0, 1);
        refused(&GO[1..], BACK.0, 1);
        for prefix in [0x4c, 0x66, 0xf3] {
            let mut longer = ANY;
            longer[0] = prefix;
            refused(&longer, BACK.0, 1);
        }
        // Across a page's end.
        refused(&NUMBER, 0x40_1005, 0x103);
        for (at, byte) in [
            (4, 0x41),
            (4, 0x66),
            (3, 0xc7),
            (2, 0xc7),
            (3, 0x81),
            (2, 0x69),
        ] {
            let mut longer = NUMBER;
            longer[at] = byte;
            refused(&longer, BACK.0, 0x103);
        }
    }

    #[test]
    fn a_change_can_be_taken_back() {
        for (site, text) in sites() {
            assert_eq!(site.original().unwrap(), text[..JUMP_BYTES]);
        }
    }

    #[test]
    fn a_jump_leads_to_its_slot_and_the_slot_to_the_stub_and_back() {
        let relative = |code: &[u8], at: usize, end: u64| {
            let distance = i32::from_le_bytes(code[at..at + 4].try_into().unwrap());
            end.wrapping_add_signed(i64::from(distance))
        };
        for (site, _) in sites() {
            for index in [0, SLOTS - 1] {
                let slot = PAGE.0 + slot_offset(index);
                let jump = site.jump(PAGE, index).unwrap();
                assert_eq!(jump[0], 0xe9);
                assert_eq!(relative(&jump, 1, site.start.0 + 5), slot);
                let code = site.code(PAGE, index).unwrap();
                assert!(code.len() <= SLOT_BYTES);
                let end = slot + code.len() as u64;
                let entry = relative(&code, code.len() - 4, end);
                let at = (entry - PAGE.0) as usize;
                let word = page_image()[at..at + 8].try_into().unwrap();
                assert_eq!(u64::from_le_bytes(word), trampoline_entry().0);
                let lea = code.windows(3).position(|part| part == [0x48, 0x8d, 0x0d]);
                let lea = lea.unwrap() + 3;
                assert_eq!(relative(&code, lea, slot + lea as u64 + 4), BACK.0);
                assert_eq!(slot_at(slot_offset(index) + 7), (index, 7));
            }
        }
    }

    #[test]
    fn what_is_out_of_reach_stays() {
        for (site, _) in sites() {
            assert_eq!(site.jump(Gva(1 << 40), 0), None);
            assert_eq!(site.code(Gva(1 << 40), 0), None);
        }
    }

    #[test]
    fn a_stopped_thread_is_put_back() {
        use Stopped::{Otherwise, Step};
        let stopped = |site: &Site, offset: u64, why| {
            let mut regs = UserRegs {
                rip: 7,
                rax: 1,
                rcx: 202,
                ..UserRegs::default()
            };
            site.unwind(offset, why, &mut regs);
            (regs.rip, regs.rax)
        };
        let [(number, _), (read, _), (any, _), (go, _)] = sites();
        let (syscall, xor) = (BACK.0 - 2, BACK.0 - 4);
        for offset in [0, 3, 4, 8, 15, 20] {
            for why in [Otherwise, Step] {
                assert_eq!(stopped(&number, offset, why), (syscall, 0x103));
            }
        }
        for (offset, rip) in [
            (0, read.start.0),
            (7, read.start.0 + 7),
            (13, xor),
            (28, xor),
        ] {
            assert_eq!(stopped(&read, offset, Otherwise), (rip, 1));
        }
        assert_eq!(stopped(&read, 0, Step), (7, 1));
        assert_eq!(stopped(&read, 7, Step), (read.start.0 + 7, 1));
        let start = any.start.0;
        for (offset, to) in [
            (0, (start, 1)),
            (5, (syscall, 1)),
            (8, (syscall, 202)),
            (11, (syscall, 202)),
            (12, (syscall, 202)),
            (16, (syscall, 202)),
            (19, (syscall, 1)),
            (26, (syscall, 1)),
        ] {
            assert_eq!(stopped(&any, offset, Otherwise), to, "{offset}");
        }
        assert_eq!(stopped(&any, 0, Step), (7, 1));
        assert_eq!(stopped(&any, 8, Step), (syscall, 202));
        assert_eq!(stopped(&go, 3, Otherwise), (go.start.0, 1));
        assert_eq!(stopped(&go, 6, Otherwise), (syscall, 1));
        assert!(go.splits(go.start.0 + 3) && !go.splits(go.start.0));
        assert!(!go.splits(go.start.0 + 5) && !number.splits(number.start.0 + 3));
        assert!(!any.splits(any.start.0 + 3), "one instruction");
    }
}
