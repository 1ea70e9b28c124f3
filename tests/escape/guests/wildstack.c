// Calls made on stack pointers that lead nowhere, one after another, then what only ring 0 may do.
//
// Software KVM emulates ring 3 while its stack pointer is not canonical, calls included: whoever
// comes back from one must still be at ring 3.
#include "attempt.h"

static unsigned long wrong;

static void at_ring_3(const char *what, uint64_t stack, long first, long second) {
    struct attempt_regs regs = attempt_tame();
    regs.rbx = regs.rsp;
    regs.rsp = stack;
    regs.rax = (uint64_t)first;
    unsigned char code[64] = {0x0f, 0x05, 0xb8};  // syscall; mov $second,%eax; syscall
    uint32_t number = (uint32_t)second;
    memcpy(code + 3, &number, 4);
    memcpy(code + 7, "\x0f\x05", 2);
    // mov %cs,%eax, before and after the stack is a good one again
    memcpy(code + 9, "\x8c\xc8", 2);
    struct attempt_end end = attempt_code(code, 11, &regs);
    int bad = end.sig == 0 && (end.rax & 3) != 3;
    memcpy(code + 9, "\x48\x89\xdc\x8c\xc8", 5);
    end = attempt_code(code, 14, &regs);
    bad |= end.sig == 0 && (end.rax & 3) != 3;
    // mov %cr3,%rax; cli; hlt; out; mov from the constants page's neighbour
    static const struct { const char *code; size_t len; } forbidden[] = {
        {"\x0f\x20\xd8", 3}, {"\xfa", 1}, {"\xf4", 1}, {"\xe6\x8e", 2}, {"\x0f\x22\xd8", 3}, {"\x0f\x01\xf8", 3}, {"\x0f\x30", 2}};
    for (unsigned i = 0; i < sizeof forbidden / sizeof *forbidden; i++) {
        memcpy(code + 9, forbidden[i].code, forbidden[i].len);
        end = attempt_code(code, 9 + forbidden[i].len, &regs);
        bad |= end.sig == 0;
    }
    // A page that only ring 0 may read.
    regs.rdi = EXC_CODE;
    memcpy(code + 9, "\x48\x8b\x07", 3);
    end = attempt_code(code, 12, &regs);
    bad |= end.sig != SIGSEGV;
    if (bad) {
        wrong++;
        printf("FAIL ring 0 after %s, stack %#lx, calls %ld and %ld\n", what, stack, first, second);
    }
}

int main(void) {
    attempt_start();
    static const uint64_t stacks[] = {0x800000000000ul, 0x7ffffffffffful, 0x8000000000000000ul, 0xffff7ffffffffffful,
                                      0xffff800000000000ul, 0x1234567890abcdeful, ~0ul, 0};
    static const long calls[] = {0x1000, SYS_getpid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getppid, SYS_gettid, SYS_sched_yield};
    for (unsigned s = 0; s < sizeof stacks / sizeof *stacks; s++)
        for (unsigned a = 0; a < sizeof calls / sizeof *calls; a++)
            for (unsigned b = 0; b < sizeof calls / sizeof *calls; b++)
                if (a == 0 || b <= 1 || a == b) at_ring_3("two calls", stacks[s], calls[a], calls[b]);
    printf("%lu wrong\n", wrong);
    return wrong != 0;
}
