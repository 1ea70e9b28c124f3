//! Page images: code assembled at build time, descriptor tables and the constants page.

use kvmlet_abi::layout::{
    DF_STACK_TOP, EXC_CODE, EXC_STACK_TOP, EXCEPTION_VECTORS, KERNEL_CS, PORT_SYSCALL,
    StubConstant, TSS, TSS_SELECTOR,
};

use crate::KvmKind;
use crate::geometry::{
    ENTRY_STRIDE_BYTES, FLUSH_HARDWARE_BYTES, FLUSH_SOFTWARE_BYTES, FLUSH_STEP_BYTES,
    MAX_FLUSH_PAGES,
};

/// Bytes in an image.
pub const PAGE_LEN: usize = 4096;
/// Slots of the constants page, in the order of [`StubConstant`].
pub const CONSTANT_SLOTS: usize = StubConstant::Tid as usize + 1;
/// Offset of the I/O permission bitmap in the TSS: directly behind its 104 bytes (SDM vol. 3A, 8.7).
const IO_MAP_BASE: u16 = 0x68;
/// Limit of the TSS: the bitmap ends behind [`PORT_SYSCALL`] (the CPU always reads two bytes of it),
/// and ports beyond the limit are denied.
pub const TSS_LIMIT: u16 = IO_MAP_BASE + PORT_SYSCALL / 8 + 1;
/// Limit of the GDT: up to the 16-byte TSS descriptor.
pub const GDT_LIMIT: u16 = TSS_SELECTOR + 15;
/// Limit of the IDT: 32 gates, so that any other `int n` raises #GP.
pub const IDT_LIMIT: u16 = EXCEPTION_VECTORS * 16 - 1;

/// One page of bytes.
#[repr(C, align(4096))]
pub struct PageImage(pub [u8; PAGE_LEN]);

unsafe extern "C" {
    static kvmlet_stub_exception_code: PageImage;
    static kvmlet_stub_probe_code: PageImage;
}

/// The page for [`EXC_CODE`]: exception entries and the flush routine.
#[must_use]
pub fn exception_code() -> &'static [u8] {
    // SAFETY: the symbol is an immutable page image of exactly PAGE_LEN bytes in .rodata.
    unsafe { &kvmlet_stub_exception_code.0 }
}

/// The page for [`kvmlet_abi::layout::PROBE_CODE`]: one `syscall` with a number that nothing answers.
#[must_use]
pub fn probe_code() -> &'static [u8] {
    // SAFETY: the symbol is an immutable page image of exactly PAGE_LEN bytes in .rodata.
    unsafe { &kvmlet_stub_probe_code.0 }
}

/// Offset of the entry of exception `vector` (0 to 31) in [`EXC_CODE`], in bytes.
#[must_use]
pub const fn exception_entry_offset(vector: u8) -> u64 {
    vector as u64 * ENTRY_STRIDE_BYTES
}

/// Offset in [`EXC_CODE`] at which the flush routine is entered to make changes of `pages` table entries
/// visible, in bytes; `None` above [`MAX_FLUSH_PAGES`].
///
/// It runs at CPL 0 on a stack that holds `pages` operands, the program's `rax` and an `iretq` frame
/// (rip, cs, rflags, rsp, ss). It changes no other register. An operand is the address of the page
/// on hardware, and the address at which its table entry is mapped on software KVM.
#[must_use]
pub const fn flush_entry_offset(kvm_kind: KvmKind, pages: usize) -> Option<u64> {
    if pages > MAX_FLUSH_PAGES {
        return None;
    }
    let start = match kvm_kind {
        KvmKind::Hardware => FLUSH_HARDWARE_BYTES,
        KvmKind::Software => FLUSH_SOFTWARE_BYTES,
    };
    Some(start + (MAX_FLUSH_PAGES - pages) as u64 * FLUSH_STEP_BYTES)
}

fn put(page: &mut [u8; PAGE_LEN], offset: usize, bytes: &[u8]) {
    page[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// The global descriptor table. Accessed bits are preset, so that the CPU never writes it. Slot 0x20
/// stays empty: with a 32-bit code segment ring 3 could enter CPL 0 through CSTAR.
#[must_use]
pub fn gdt_image() -> [u8; PAGE_LEN] {
    let tss_base = TSS.0;
    let tss_low = u64::from(TSS_LIMIT)
        | (tss_base & 0xff_ffff) << 16
        | 0x8b << 40 // present, DPL 0, busy 64-bit TSS
        | (tss_base >> 24 & 0xff) << 56;
    let entries: [(usize, u64); 6] = [
        (0x10, 0x00af_9b00_0000_ffff), // kernel code, 64-bit
        (0x18, 0x00cf_9300_0000_ffff), // kernel data
        (0x28, 0x00cf_f300_0000_ffff), // user data
        (0x30, 0x00af_fb00_0000_ffff), // user code, 64-bit
        (TSS_SELECTOR as usize, tss_low),
        (TSS_SELECTOR as usize + 8, tss_base >> 32),
    ];
    let mut page = [0; PAGE_LEN];
    for (offset, descriptor) in entries {
        put(&mut page, offset, &descriptor.to_le_bytes());
    }
    page
}

/// The interrupt descriptor table: interrupt gates to the entries of [`EXC_CODE`]. All are on IST 1
/// except double fault on IST 2. Only `int3` and `into` may be raised by software.
#[must_use]
pub fn idt_image() -> [u8; PAGE_LEN] {
    let mut page = [0; PAGE_LEN];
    for vector in 0..EXCEPTION_VECTORS as u8 {
        let handler = EXC_CODE.0 + exception_entry_offset(vector);
        let ist = if vector == 8 { 2 } else { 1 };
        let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
        let low = handler & 0xffff
            | u64::from(KERNEL_CS) << 16
            | ist << 32
            | (0x8e | dpl << 5) << 40
            | (handler >> 16 & 0xffff) << 48;
        let at = usize::from(vector) * 16;
        put(&mut page, at, &low.to_le_bytes());
        put(&mut page, at + 8, &(handler >> 32).to_le_bytes());
    }
    page
}

/// The task state segment: RSP0 and IST 1 are the exception stack, IST 2 the double-fault stack.
///
/// On software KVM the syscall entry runs at ring 3, so that ring 3 must own the one port it leaves
/// through. Software KVM consults this bitmap. On hardware ring 3 owns none. The kind of KVM is probed with
/// the software image.
#[must_use]
pub fn tss_image(kvm_kind: KvmKind) -> [u8; PAGE_LEN] {
    let mut page = [0; PAGE_LEN];
    put(&mut page, 0x04, &EXC_STACK_TOP.0.to_le_bytes());
    put(&mut page, 0x24, &EXC_STACK_TOP.0.to_le_bytes());
    put(&mut page, 0x2c, &DF_STACK_TOP.0.to_le_bytes());
    put(&mut page, 0x66, &IO_MAP_BASE.to_le_bytes());
    page[usize::from(IO_MAP_BASE)..=usize::from(TSS_LIMIT)].fill(0xff);
    if kvm_kind == KvmKind::Software {
        page[usize::from(IO_MAP_BASE + PORT_SYSCALL / 8)] &= !(1 << (PORT_SYSCALL % 8));
    }
    page
}

/// The constants page: one u64 per [`StubConstant`], in its order.
#[must_use]
pub fn stub_data_image(values: &[u64; CONSTANT_SLOTS]) -> [u8; PAGE_LEN] {
    let mut page = [0; PAGE_LEN];
    for (slot, value) in values.iter().enumerate() {
        put(&mut page, slot * 8, &value.to_le_bytes());
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{CLEAN_BYTES, CLEAN_RELOAD_BYTES, INITIAL_XSTATE_BYTES, RELOAD_BYTES};
    use kvmlet_abi::layout::PORT_EXCEPTION;

    #[test]
    fn every_vector_leaves_through_its_port() {
        let code = exception_code();
        for vector in 0..32u8 {
            let at = exception_entry_offset(vector) as usize;
            assert_eq!(code[at..at + 2], [0xe6, PORT_EXCEPTION as u8 + vector]);
        }
    }

    #[test]
    fn the_flush_routine_takes_as_many_pages_as_asked() {
        let code = exception_code();
        for (kvm_kind, step) in [
            (KvmKind::Hardware, [0x58, 0x0f, 0x01, 0x38]),
            (KvmKind::Software, [0x58, 0x80, 0x08, 0x00]),
        ] {
            for pages in [0, 1, 5, 64, MAX_FLUSH_PAGES] {
                let mut at = flush_entry_offset(kvm_kind, pages).unwrap() as usize;
                for _ in 0..pages {
                    assert_eq!(code[at..at + 4], step);
                    at += 4;
                }
                assert_eq!(code[at..at + 3], [0x58, 0x48, 0xcf]);
            }
            assert_eq!(flush_entry_offset(kvm_kind, MAX_FLUSH_PAGES + 1), None);
        }
    }

    #[test]
    fn the_reload_routine_writes_cr3_and_goes_to_ring_3() {
        let at = RELOAD_BYTES as usize;
        let wanted = [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x58, 0x48, 0xcf, 0xcc];
        assert_eq!(exception_code()[at..at + 10], wanted);
    }

    #[test]
    fn the_clean_routine_loads_the_initial_state() {
        let code = exception_code();
        let at = CLEAN_RELOAD_BYTES as usize;
        assert_eq!(code[at..at + 6], [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8]);
        let at = CLEAN_BYTES as usize;
        let list = [0x59, 0xe3, 6, 0x58, 0x0f, 0x01, 0x38, 0xe2, 0xfa];
        assert_eq!(code[at..at + 9], list);
        let image = INITIAL_XSTATE_BYTES as usize;
        let points_to_image = |end: usize| {
            let distance = i32::from_le_bytes(code[end - 4..end].try_into().unwrap());
            assert_eq!(end + distance as usize, image);
        };
        let pointers = [0xdb, 0xe3, 0xdb, 0x05];
        assert_eq!(code[at + 9..at + 13], pointers);
        points_to_image(at + 17);
        assert_eq!(code[at + 17..at + 19], pointers[..2]);
        let mask = [0xb8, 0xff, 0xff, 0xff, 0xff, 0x89, 0xc2];
        assert_eq!(code[at + 19..at + 26], mask);
        assert_eq!(code[at + 26..at + 30], [0x48, 0x0f, 0xae, 0x2d]);
        points_to_image(at + 34);
        assert_eq!(code[at + 34..at + 40], [0x59, 0x5a, 0x58, 0x48, 0xcf, 0xcc]);
        let mut wanted = [0; 576];
        wanted[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        wanted[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        wanted[512] = 3;
        assert_eq!(code[image..image + 576], wanted);
        assert!(image.is_multiple_of(64));
        // The longest list of the routine before ends below it, and the next one begins above.
        let end = flush_entry_offset(KvmKind::Software, 0).unwrap() as usize + 3;
        let reload = RELOAD_BYTES as usize;
        for gap in [
            end..CLEAN_RELOAD_BYTES as usize,
            at + 39..image,
            image + 576..reload,
        ] {
            assert!(code[gap].iter().all(|&byte| byte == 0xcc));
        }
    }

    #[test]
    fn only_breakpoint_and_overflow_gates_are_open_to_ring_3() {
        let idt = idt_image();
        for vector in 0..32usize {
            let kind = idt[vector * 16 + 5];
            assert_eq!(kind & 0x9f, 0x8e);
            assert_eq!(kind >> 5 & 3 == 3, matches!(vector, 3 | 4));
            let ist = idt[vector * 16 + 4];
            assert_eq!(ist, if vector == 8 { 2 } else { 1 });
        }
    }

    #[test]
    fn no_32_bit_code_segment_exists() {
        let gdt = gdt_image();
        for entry in gdt[..0x40].chunks_exact(8) {
            let raw = u64::from_le_bytes(entry.try_into().unwrap());
            let code = raw >> 44 & 1 == 1 && raw >> 43 & 1 == 1;
            assert!(!code || raw >> 53 & 1 == 1, "{raw:#x}");
        }
    }
}
