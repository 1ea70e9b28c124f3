//! Prints where the VMM's pages are and what the call page holds, as the C header of the hostile guests:
//!
//! `cargo run -p kvmlet-abi --example layout > tests/escape/guests/layout.h`

use std::fmt::Write as _;

use kvmlet_abi::layout::{
    CALL_PAGE, DF_STACK, EXC_CODE, EXC_STACK, FLUSH_STACK, GDT, IDT, PROBE_CODE, STUB_DATA,
    SYSCALL_CODE, TSS, VMM_AREA,
};
use kvmlet_abi::{Gva, call_page};

const PAGES: [(&str, Gva); 11] = [
    ("GDT_PAGE", GDT),
    ("IDT_PAGE", IDT),
    ("TSS_PAGE", TSS),
    ("EXC_STACK", EXC_STACK),
    ("DF_STACK", DF_STACK),
    ("FLUSH_STACK", FLUSH_STACK),
    ("EXC_CODE", EXC_CODE),
    ("SYSCALL_CODE", SYSCALL_CODE),
    ("STUB_DATA", STUB_DATA),
    ("PROBE_CODE", PROBE_CODE),
    ("CALL_PAGE", CALL_PAGE),
];

const CALL: [(&str, u64); 10] = [
    ("CALL_NR", call_page::NR),
    ("CALL_ARGS", call_page::ARGS),
    ("CALL_POSTED", call_page::POSTED),
    ("CALL_ANSWERED", call_page::ANSWERED),
    ("CALL_ANSWER", call_page::ANSWER),
    ("CALL_MODE", call_page::MODE),
    ("CALL_SPIN_TICKS", call_page::SPIN_TICKS),
    ("CALL_DEADLINE", call_page::DEADLINE),
    ("CALL_CAME_FROM", call_page::CAME_FROM),
    ("CALL_ASK", call_page::ASK),
];

/// The end of the lower canonical half, up to which the VMM's pages go.
const VMM_END: u64 = 1 << 47;

/// The header's text.
pub fn header() -> String {
    let mut text = String::from(
        "// Made by `cargo run -p kvmlet-abi --example layout`; a test of that crate compares it.\n",
    );
    text += "#ifndef LAYOUT_H\n#define LAYOUT_H\n";
    let _ = writeln!(text, "#define VMM_AREA {:#x}ul", VMM_AREA.0);
    let _ = writeln!(text, "#define VMM_END {VMM_END:#x}ul");
    for (name, page) in PAGES {
        let offset = page.0 - VMM_AREA.0;
        let _ = writeln!(text, "#define {name} (VMM_AREA + {offset:#x})");
    }
    text += "// Offsets in the call page.\n";
    for (name, offset) in CALL {
        let _ = writeln!(text, "#define {name} {offset}");
    }
    text + "#endif\n"
}

#[allow(
    dead_code,
    reason = "the test that includes this file has a main of its own"
)]
fn main() {
    print!("{}", header());
}
