// Port access from ring 3, every port. Linux: #GP, SIGSEGV, whichever port. ports [STEP]
#include "attempt.h"

static unsigned long tried, wrong, moved;

static void try_port(const char *name, const char *code, size_t len, unsigned port) {
    struct attempt_regs regs = attempt_tame();
    regs.rdx = port;
    regs.rax = 0x1234567890ul;
    regs.rcx = 3;
    struct attempt_end end = attempt_code(code, len, &regs);
    tried++;
    if (end.sig != SIGSEGV || end.code != SI_KERNEL || end.addr != 0) {
        if (wrong++ < 20)
            printf("FAIL %s port %#x: %s code %d addr %#lx\n", name, port, signal_name(end.sig), end.code, end.addr);
    }
    if (end.rip != (uint64_t)(uintptr_t)attempt_page()) moved++;
}

#define TRY(name, code, port) try_port(name, code, sizeof(code) - 1, port)

int main(int argc, char **argv) {
    unsigned step = argc > 1 ? (unsigned)atoi(argv[1]) : 1;
    attempt_start();
    for (unsigned port = 0; port < 65536; port += port < 256 ? 1 : step) {
        TRY("out %al,%dx", "\xee", port);
        if (port < 512 || port % 61 == 0) {
            TRY("in %dx,%al", "\xec", port);
            TRY("in %dx,%ax", "\x66\xed", port);
            TRY("in %dx,%eax", "\xed", port);
            TRY("out %ax,%dx", "\x66\xef", port);
            TRY("out %eax,%dx", "\xef", port);
            TRY("insb", "\x6c", port);
            TRY("insl", "\x6d", port);
            TRY("outsb", "\x6e", port);
            TRY("outsl", "\x6f", port);
            TRY("rep insb", "\xf3\x6c", port);
            TRY("rep outsb", "\xf3\x6e", port);
            TRY("rep outsl", "\xf3\x6f", port);
        }
    }
    // Immediate forms: those that the stub itself uses, and their neighbours.
    for (unsigned port = 0; port < 256; port++) {
        char out[] = {(char)0xe6, (char)port}, in[] = {(char)0xe4, (char)port};
        try_port("out %al,imm", out, 2, port);
        try_port("in imm,%al", in, 2, port);
    }
    // Far too many, from and to nowhere.
    struct attempt_regs regs = attempt_tame();
    regs.rcx = UINT64_MAX;
    regs.rdx = 0x40;
    regs.rsi = regs.rdi = 0xffff800000000000ul;
    struct attempt_end end = attempt_code("\xf3\x6e", 2, &regs);
    printf("rep outsb from the kernel's half: %s\n", signal_name(end.sig));
    end = attempt_code("\xf3\x6c", 2, &regs);
    printf("rep insb to the kernel's half: %s\n", signal_name(end.sig));
    regs.rsi = regs.rdi = 0x1000;
    end = attempt_code("\xf3\x6f", 2, &regs);
    printf("rep outsl from nowhere: %s\n", signal_name(end.sig));
    end = attempt_code("\xf3\x6d", 2, &regs);
    printf("rep insl to nowhere: %s\n", signal_name(end.sig));
    printf("%lu tried, %lu wrong\n", tried, wrong);
    // Kept apart: on software KVM an `out` has retired when it is refused.
    fprintf(stderr, "%lu behind the instruction\n", moved);
    return 0;
}
