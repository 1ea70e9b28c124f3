// Made by `cargo run -p kvmlet-abi --example layout`; a test of that crate compares it.
#ifndef LAYOUT_H
#define LAYOUT_H
#define VMM_AREA 0x7fffffe00000ul
#define VMM_END 0x800000000000ul
#define GDT_PAGE (VMM_AREA + 0x10000)
#define IDT_PAGE (VMM_AREA + 0x11000)
#define TSS_PAGE (VMM_AREA + 0x12000)
#define EXC_STACK (VMM_AREA + 0x14000)
#define DF_STACK (VMM_AREA + 0x16000)
#define FLUSH_STACK (VMM_AREA + 0x18000)
#define EXC_CODE (VMM_AREA + 0x20000)
#define SYSCALL_CODE (VMM_AREA + 0x22000)
#define STUB_DATA (VMM_AREA + 0x24000)
#define PROBE_CODE (VMM_AREA + 0x26000)
#define CALL_PAGE (VMM_AREA + 0x28000)
// Offsets in the call page.
#define CALL_NR 0
#define CALL_ARGS 8
#define CALL_POSTED 56
#define CALL_ANSWERED 64
#define CALL_ANSWER 72
#define CALL_MODE 80
#define CALL_SPIN_TICKS 88
#define CALL_DEADLINE 128
#define CALL_CAME_FROM 136
#define CALL_ASK 144
#endif
