// Runs hostile instructions with registers of one's choice and comes back, whatever they did.
#ifndef ATTEMPT_H
#define ATTEMPT_H
#include "hostile.h"
#include <ucontext.h>

struct attempt_regs {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15;
};

struct attempt_end {
    int sig;          // 0: it came back by itself
    int code;         // si_code
    uint64_t addr;    // si_addr
    uint64_t rip;     // where the signal found it
    uint64_t err;     // sigcontext's error code
    uint64_t trapno;  // sigcontext's vector
    uint64_t rax;     // rax at the end
};

// In attempt.S.
extern void attempt_enter(const struct attempt_regs *regs, uint64_t target);
extern void attempt_back(void);
extern uint64_t attempt_rax, attempt_fs_base;

static struct attempt_end attempt_result;

static void attempt_handler(int sig, siginfo_t *info, void *context) {
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    attempt_result.sig = sig;
    attempt_result.code = info->si_code;
    attempt_result.addr = (uint64_t)info->si_addr;
    attempt_result.rip = (uint64_t)g[REG_RIP];
    attempt_result.err = (uint64_t)g[REG_ERR];
    attempt_result.trapno = (uint64_t)g[REG_TRAPNO];
    g[REG_RIP] = (greg_t)(uintptr_t)attempt_back;
    g[REG_EFL] = 0x202;
}

static inline void attempt_start(void) {
    static char altstack[65536] __attribute__((aligned(64)));
    stack_t ss = {.ss_sp = altstack, .ss_size = sizeof altstack};
    need(sigaltstack(&ss, NULL) == 0, "sigaltstack");
    struct sigaction sa = {.sa_sigaction = attempt_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS};
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
        need(sigaction(signals[i], &sa, NULL) == 0, "sigaction");
    // ARCH_GET_FS: a null selector in FS zeroes its base on some CPUs.
    need(syscall(SYS_arch_prctl, 0x1003, &attempt_fs_base) == 0, "arch_prctl");
}

static inline struct attempt_end attempt_at(uint64_t target, const struct attempt_regs *regs) {
    memset(&attempt_result, 0, sizeof attempt_result);
    attempt_enter(regs, target);
    attempt_result.rax = attempt_rax;
    return attempt_result;
}

// A page for code; the rest of it and the page behind belong to the attempts.
static inline unsigned char *attempt_page(void) {
    static unsigned char *page;
    if (!page) page = map(4 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    return page;
}

// Copies `code` to the page, followed by a jump back.
static inline struct attempt_end attempt_code(const void *code, size_t len_bytes, const struct attempt_regs *regs) {
    unsigned char *page = attempt_page();
    // jmp *slot(%rip), the slot at the end of the page, where it is aligned.
    unsigned char jump[6] = {0xff, 0x25};
    uint64_t back = (uint64_t)(uintptr_t)attempt_back;
    uint32_t distance = (uint32_t)(PAGE - 8 - len_bytes - sizeof jump);
    memcpy(jump + 2, &distance, sizeof distance);
    memcpy(page, code, len_bytes);
    memcpy(page + len_bytes, jump, sizeof jump);
    memcpy(page + PAGE - 8, &back, sizeof back);
    return attempt_at((uint64_t)(uintptr_t)page, regs);
}

// Whether `word` is among the arguments. `emulated`: what QEMU's own CPU gets wrong natively already is
// left out; above all it reads the stack of an iretq in ring 3 as the kernel would, which SMAP refuses.
static inline int asked(int argc, char **argv, const char *word) {
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], word)) return 1;
    return 0;
}

// Registers with which stray memory accesses hit scratch memory.
static inline struct attempt_regs attempt_tame(void) {
    uint64_t scratch = (uint64_t)(uintptr_t)attempt_page() + 2 * PAGE;
    return (struct attempt_regs){.rsi = scratch, .rdi = scratch + 512, .rsp = scratch + 2048, .rbp = scratch + 2048};
}

#endif
