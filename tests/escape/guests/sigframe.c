// Forged signal frames: sigframe [loose | mxcsr]
//
// Without the argument the cases that Linux answers the same way on every CPU. With it, those where
// kvmlet differs (selectors are its own) or the outcome depends on the CPU.
#include "hostile.h"
#include <setjmp.h>
#include <ucontext.h>

// struct _fpstate_64's software-reserved bytes (sigcontext.h).
#define SW_RESERVED 464
#define XSTATE_HEADER 512

static sigjmp_buf back;
static void (*volatile forge)(ucontext_t *);
static uint64_t forged_value;
static unsigned char copy[32768] __attribute__((aligned(64)));
static unsigned char *edge;  // the last mapped page before a hole

static void user_handler(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)info;
    if (forge) forge(context);
}

static volatile sig_atomic_t fault_code;

static void fault_handler(int sig, siginfo_t *info, void *context) {
    (void)context;
    fault_code = info->si_code;
    siglongjmp(back, sig);
}

static void attempt(const char *name, void (*how)(ucontext_t *), uint64_t value) {
    forge = how;
    forged_value = value;
    int sig = sigsetjmp(back, 1);
    if (sig == 0) {
        // Some state to lose.
        double d = 1.5;
        __asm__ volatile("movq %0, %%xmm9\n" : : "r"(d) : "xmm9");
        raise(SIGUSR1);
    }
    // What the frame left behind: alignment checks, direction.
    __asm__ volatile("pushfq\n andl $~0x40400, (%%rsp)\n popfq\n" : : : "memory", "cc");
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    uint32_t mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0\n fninit" : : "m"(mxcsr));
    if (sig) printf("%s %#lx: %s code %d\n", name, value, signal_name(sig), (int)fault_code);
    else printf("%s %#lx: fine\n", name, value);
    fflush(stdout);
}

static greg_t *regs_of(ucontext_t *uc) { return uc->uc_mcontext.gregs; }

static void nothing(ucontext_t *uc) { (void)uc; }
static void set_rip(ucontext_t *uc) { regs_of(uc)[REG_RIP] = (greg_t)forged_value; }
static void set_rsp(ucontext_t *uc) { regs_of(uc)[REG_RSP] = (greg_t)forged_value; }
static void set_flags(ucontext_t *uc) { regs_of(uc)[REG_EFL] = (greg_t)forged_value; }
static void set_cs(ucontext_t *uc) {
    regs_of(uc)[REG_CSGSFS] = (regs_of(uc)[REG_CSGSFS] & ~0xffffl) | (greg_t)forged_value;
}
static void set_ss(ucontext_t *uc) {
    regs_of(uc)[REG_CSGSFS] = (greg_t)(((uint64_t)regs_of(uc)[REG_CSGSFS] & 0xfffffffffffful) | forged_value << 48);
}
static void set_fpstate(ucontext_t *uc) { uc->uc_mcontext.fpregs = (void *)(uintptr_t)forged_value; }
static void set_mask(ucontext_t *uc) { memcpy(&uc->uc_sigmask, &forged_value, 8); }
static void set_uc_flags(ucontext_t *uc) { uc->uc_flags = forged_value; }
static void set_altstack(ucontext_t *uc) {
    uc->uc_stack.ss_sp = (void *)(uintptr_t)forged_value;
    uc->uc_stack.ss_size = forged_value;
    uc->uc_stack.ss_flags = 0;
}
static unsigned char *fp(ucontext_t *uc) { return (unsigned char *)uc->uc_mcontext.fpregs; }
static void word32(ucontext_t *uc, unsigned offset, uint32_t v) { memcpy(fp(uc) + offset, &v, 4); }
static void word64(ucontext_t *uc, unsigned offset, uint64_t v) { memcpy(fp(uc) + offset, &v, 8); }
static void set_mxcsr(ucontext_t *uc) { word32(uc, 24, (uint32_t)forged_value); }
static void set_mxcsr_mask(ucontext_t *uc) { word32(uc, 28, (uint32_t)forged_value); }
static void set_magic1(ucontext_t *uc) { word32(uc, SW_RESERVED, (uint32_t)forged_value); }
static void set_extended_size(ucontext_t *uc) { word32(uc, SW_RESERVED + 4, (uint32_t)forged_value); }
static void set_xfeatures(ucontext_t *uc) { word64(uc, SW_RESERVED + 8, forged_value); }
static void set_xstate_size(ucontext_t *uc) { word32(uc, SW_RESERVED + 16, (uint32_t)forged_value); }
static void set_xstate_bv(ucontext_t *uc) { word64(uc, XSTATE_HEADER, forged_value); }
static void set_xcomp_bv(ucontext_t *uc) { word64(uc, XSTATE_HEADER + 8, forged_value); }
static void set_reserved(ucontext_t *uc) { word64(uc, XSTATE_HEADER + 16, forged_value); }
static void fill_state(ucontext_t *uc) {
    uint32_t size;
    memcpy(&size, fp(uc) + SW_RESERVED + 16, 4);
    memset(fp(uc), (int)forged_value, SW_RESERVED);
    word32(uc, 24, 0x1f80);
    if (size > 832) size = 832;  // up to AVX: PKRU behind it would take the stack away
    if (size > 576) memset(fp(uc) + 576, (int)forged_value, size - 576);
}
static void elsewhere(ucontext_t *uc) {
    uint32_t size;
    memcpy(&size, fp(uc) + SW_RESERVED + 4, 4);
    memcpy(copy + forged_value, fp(uc), size < 16384 ? size : 16384);
    uc->uc_mcontext.fpregs = (void *)(copy + forged_value);
}
static void at_the_edge(ucontext_t *uc) {
    unsigned char *to = edge + PAGE - forged_value;
    memcpy(to, fp(uc), forged_value);
    uc->uc_mcontext.fpregs = (void *)to;
}
static void all_wild(ucontext_t *uc) {
    uint64_t state = forged_value;
    for (int i = 0; i < 23; i++) regs_of(uc)[i] = (greg_t)next_random(&state);
    uc->uc_mcontext.fpregs = (void *)(uintptr_t)next_random(&state);
}

// rt_sigreturn with a stack of one's choice, without any signal.
static void bare_sigreturn(const char *name, uint64_t rsp) {
    int sig = sigsetjmp(back, 1);
    if (sig == 0) {
        __asm__ volatile("mov %0, %%rsp\n mov $15, %%eax\n syscall\n ud2" : : "r"(rsp) : "rax", "rcx", "r11", "memory");
    }
    printf("sigreturn on %s: %s code %d\n", name, signal_name(sig), (int)fault_code);
    fflush(stdout);
}

// A handler that cannot have a frame.
static void no_room(const char *name, uint64_t rsp) {
    int sig = sigsetjmp(back, 1);
    if (sig == 0) __asm__ volatile("mov %0, %%rsp\n ud2" : : "r"(rsp) : "memory");
    printf("a fault on stack %s: %s\n", name, signal_name(sig));
    fflush(stdout);
}

int main(int argc, char **argv) {
    static unsigned char altstack[65536] __attribute__((aligned(64)));
    stack_t ss = {.ss_sp = altstack, .ss_size = sizeof altstack};
    need(sigaltstack(&ss, NULL) == 0, "sigaltstack");
    struct sigaction sa = {.sa_sigaction = fault_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS};
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++) sigaction(signals[i], &sa, NULL);
    struct sigaction user = {.sa_sigaction = user_handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &user, NULL);
    edge = map(2 * PAGE, PROT_READ | PROT_WRITE);
    mprotect(edge + PAGE, PAGE, PROT_NONE);
    unsigned char *ud = map(PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    memcpy(ud, "\x0f\x0b", 2);

    attempt("nothing", nothing, 0);
    if (argc > 1 && !strcmp(argv[1], "mxcsr")) {
        // Bit 17 (misaligned SSE) exists on some CPUs only.
        for (unsigned bit = 0; bit < 32; bit++)
            if (bit != 17) attempt("MXCSR", set_mxcsr, 1u << bit);
        attempt("MXCSR", set_mxcsr, 0xffffffff);
    } else if (argc == 1) {
        static const uint64_t nowhere[] = {0, 1, 0x12345000, 0x800000000000ul, 0x8000000000000000ul, 0xffff800000000000ul,
                                           0xffffffff81000000ul, ~0ul};
        for (unsigned i = 0; i < sizeof nowhere / sizeof *nowhere; i++) {
            attempt("rip", set_rip, nowhere[i]);
            attempt("fpstate", set_fpstate, nowhere[i]);
        }
        attempt("fpstate", set_fpstate, EXC_STACK);
        attempt("fpstate", set_fpstate, SYSCALL_CODE);
        static const uint64_t flags[] = {0, 2, 0x202, 0x3202, 0x4202, 0x20202, 0x10202, 0x600, 0x40202, 0x180202, 0x200202,
                                         ~0x40100ul};
        for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++) attempt("flags", set_flags, flags[i]);
        attempt("MXCSR", set_mxcsr, 0x1f80);
        attempt("MXCSR", set_mxcsr, 0xffff);
        attempt("MXCSR mask", set_mxcsr_mask, 0);
        attempt("MXCSR mask", set_mxcsr_mask, 0xffffffff);
        attempt("magic", set_magic1, 0);
        attempt("magic", set_magic1, 0x12345678);
        attempt("extended size", set_extended_size, 0);
        attempt("extended size", set_extended_size, 0xffffffff);
        attempt("xstate size", set_xstate_size, 0);
        attempt("xstate size", set_xstate_size, 575);
        attempt("xstate size", set_xstate_size, 0xffffffff);
        attempt("xstate size", set_xstate_size, 0x80000000);
        attempt("XSTATE_BV", set_xstate_bv, 0);
        attempt("XSTATE_BV", set_xstate_bv, 3);
        attempt("XSTATE_BV", set_xstate_bv, 1ul << 63);
        attempt("XSTATE_BV", set_xstate_bv, ~0ul);
        attempt("XCOMP_BV", set_xcomp_bv, 1);
        attempt("XCOMP_BV", set_xcomp_bv, 1ul << 63);
        attempt("XCOMP_BV", set_xcomp_bv, ~0ul);
        attempt("reserved words", set_reserved, ~0ul);
        attempt("state filled with", fill_state, 0x00);
        attempt("state filled with", fill_state, 0xff);
        attempt("state moved by", elsewhere, 0);
        attempt("state moved by", elsewhere, 64);
        attempt("state cut to", at_the_edge, 511);
        attempt("state cut to", at_the_edge, 512);
        attempt("state cut to", at_the_edge, 576);
        attempt("mask", set_mask, ~0ul);
        bare_sigreturn("nothing", 8);
        bare_sigreturn("the kernel's half", 0xffff800000001000ul);
        bare_sigreturn("what is not canonical", 0x8000000000001000ul);
        bare_sigreturn("the end of a mapping", (uint64_t)(uintptr_t)edge + PAGE);
        no_room("nowhere", 8);
        no_room("not canonical", 0x8000000000000000ul);
    } else {
        static const uint64_t selectors[] = {0, 3, 0x10, 0x13, 0x18, 0x1b, 0x2b, 0x33, 0x3b, 0x40, 0x43, 7, 0xffff};
        for (unsigned i = 0; i < sizeof selectors / sizeof *selectors; i++) {
            attempt("cs", set_cs, selectors[i]);
            attempt("ss", set_ss, selectors[i]);
        }
        for (uint64_t offset = 1; offset < 64; offset += 9) attempt("state moved by", elsewhere, offset);
        attempt("xfeatures", set_xfeatures, 0);
        attempt("xfeatures", set_xfeatures, ~0ul);
        attempt("uc_flags", set_uc_flags, 0);
        attempt("uc_flags", set_uc_flags, ~0ul);
        attempt("flags", set_flags, ~0ul);
        attempt("flags", set_flags, 0x302);
        attempt("rip", set_rip, SYSCALL_CODE);
        attempt("rip", set_rip, EXC_CODE);
        attempt("rip", set_rip, VMM_AREA);
        static const uint64_t stacks[] = {0, 8, EXC_STACK + PAGE, SYSCALL_CODE, 0x800000000000ul, 0xffff800000000000ul, 0x8000000000000000ul};
        for (unsigned i = 0; i < sizeof stacks / sizeof *stacks; i++) attempt("rsp", set_rsp, stacks[i]);
        attempt("altstack", set_altstack, ~0ul);
        sigaltstack(&ss, NULL);
        attempt("altstack", set_altstack, EXC_STACK);
        sigaltstack(&ss, NULL);
        attempt("altstack", set_altstack, 0xffff800000000000ul);
        sigaltstack(&ss, NULL);
        attempt("XCOMP_BV", set_xcomp_bv, 1ul << 63 | 7);
        for (uint64_t xcomp = 0; xcomp < 64; xcomp++) {
            attempt("XSTATE_BV bit", set_xstate_bv, 1ul << xcomp);
            attempt("XCOMP_BV bit", set_xcomp_bv, 1ul << 63 | 1ul << xcomp);
        }
        for (uint64_t seed = 1; seed < 100; seed++) attempt("all wild", all_wild, seed * 0x9e3779b97f4a7c15ul);
    }
    printf("alive\n");
    return 0;
}
