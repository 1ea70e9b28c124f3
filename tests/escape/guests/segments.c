// Segment registers and far transfers. segments [32-bit] [emulated]
//
// Without the argument nothing enters 32-bit code. In kvmlet no 32-bit code segment exists; on
// software KVM the CPU may use another table than the VM's, so outcomes are bounded, not compared.
#include "attempt.h"

static struct attempt_regs base;
static int emulated;

static void show(const char *name, unsigned selector, struct attempt_end end) {
    if (end.sig == 0) printf("%s %#x: fine\n", name, selector);
    else printf("%s %#x: %s\n", name, selector, signal_name(end.sig));
    fflush(stdout);
}

static void load(const char *name, unsigned char modrm, unsigned selector) {
    unsigned char code[] = {0xb8, (unsigned char)selector, (unsigned char)(selector >> 8), 0, 0, 0x8e, modrm};
    show(name, selector, attempt_code(code, sizeof code, &base));
}

// Far transfer to `selector`:`offset` by lret, ljmp and iretq.
static void far(unsigned selector, uint64_t offset) {
    struct attempt_regs regs = base;
    regs.rax = offset;
    regs.rbx = selector;
    regs.rdx = base.rsp;
    // mov %rax,(%rdi); mov %bx,8(%rdi); rex.W ljmp *(%rdi)
    show("ljmp to", selector, attempt_code("\x48\x89\x07\x66\x89\x5f\x08\x48\xff\x2f", 10, &regs));
    if (emulated) return;
    show("lret to", selector, attempt_code("\x53\x50\x48\xcb", 4, &regs));        // push %rbx; push %rax; lretq
    show("lretl to", selector, attempt_code("\x48\xc1\xe3\x20\x48\x09\xc3\x53\xcb", 9, &regs));  // 32-bit operands
    // push $0x2b; push %rdx; pushfq; push %rbx; push %rax; iretq
    show("iretq to", selector, attempt_code("\x6a\x2b\x52\x9c\x53\x50\x48\xcf", 8, &regs));
    show("lcall to", selector, attempt_code("\x48\x89\x07\x66\x89\x5f\x08\x48\xff\x1f", 10, &regs));
    // iretq with this as the stack's selector: push %rbx; push %rdx; pushfq; push $0x33; push %rax; iretq
    show("iretq with ss", selector, attempt_code("\x53\x52\x9c\x6a\x33\x50\x48\xcf", 8, &regs));
}

int main(int argc, char **argv) {
    attempt_start();
    emulated = asked(argc, argv, "emulated");
    base = attempt_tame();
    uint64_t back = (uint64_t)(uintptr_t)attempt_back;
    static const unsigned selectors[] = {0, 1, 2, 3, 0x2b, 0x33, 0x28, 0x30, 0x10, 0x13, 0x18, 0x1b, 0x08, 0x0b,
                                         0x38, 0x3b, 0x40, 0x43, 0x48, 0x4b, 0x7b, 0x83, 0x2f, 0x37, 4, 7, 0x1000, 0xfff8, 0xffff};
    static const struct { const char *name; unsigned char modrm; } registers[] = {
        {"mov to ds", 0xd8}, {"mov to es", 0xc0}, {"mov to fs", 0xe0}, {"mov to gs", 0xe8}, {"mov to ss", 0xd0}, {"mov to cs", 0xc8}};
    for (unsigned r = 0; r < sizeof registers / sizeof *registers; r++)
        for (unsigned s = 0; s < sizeof selectors / sizeof *selectors; s++)
            load(registers[r].name, registers[r].modrm, selectors[s]);
    // A call with odd selectors loaded, and a fault with them.
    base.rax = 0x1000;
    show("ds es null; call", 0, attempt_code("\x31\xdb\x8e\xdb\x8e\xc3\x0f\x05", 8, &base));
    show("ds es null; ud2", 0, attempt_code("\x31\xdb\x8e\xdb\x8e\xc3\x0f\x0b", 8, &base));
    show("gs 0x2b; call", 0, attempt_code("\xbb\x2b\x00\x00\x00\x8e\xeb\x0f\x05", 9, &base));
    show("gs 0x2b; ud2", 0, attempt_code("\xbb\x2b\x00\x00\x00\x8e\xeb\x0f\x0b", 9, &base));
    base.rax = 0;
    // 0x20 and 0x23 are the 32-bit code of Linux.
    for (unsigned s = 0; s < sizeof selectors / sizeof *selectors; s++) far(selectors[s], back);
    far(0x33, 0x8000000000000000ul);
    far(0x10, SYSCALL_CODE);
    far(0x10, EXC_CODE);
    far(0x13, 0xffff800000000000ul);
    if (asked(argc, argv, "32-bit")) {
        static unsigned char *low;
        low = mmap((void *)0x20000, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        need(low == (void *)0x20000, "mapping low memory");
        // In 32-bit mode: syscall, then sysenter, then int 0x80, then ud2.
        static const unsigned char wide[] = {0xb8, 0, 0x10, 0, 0, 0x0f, 0x05, 0x0f, 0x34, 0xcd, 0x80, 0x0f, 0x0b};
        for (unsigned start = 0; start < sizeof wide; start++) {
            memcpy(low, wide, sizeof wide);
            far(0x23, 0x20000 + start);
            far(0x20, 0x20000 + start);
        }
        load("mov to ds", 0xd8, 0x23);
        load("mov to ss", 0xd0, 0x23);
        show("int", 0x80, attempt_code("\xcd\x80", 2, &base));
        base.rax = 20;  // getpid of i386
        show("int", 0x80, attempt_code("\xcd\x80", 2, &base));
        show("sysenter", 0, attempt_code("\x0f\x34", 2, &base));
    }
    printf("alive\n");
    return 0;
}
