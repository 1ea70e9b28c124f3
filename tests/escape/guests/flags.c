// Flags that ring 3 may or may not hold: popf with IOPL, NT, AC, TF and the rest; single steps over
// calls; alignment checks.
#include "attempt.h"

// The arithmetic flags; and NT, which Linux keeps over a call and kvmlet clears.
#define IGNORED 0x48d5ul

static struct attempt_regs base;
static uint64_t steps[64];
static unsigned step_count;

static void set_flags(uint64_t flags, const char *after, size_t len, struct attempt_end *end) {
    // mov %rbx flags: push %rbx; popfq; after
    unsigned char code[64] = {0x53, 0x9d};
    struct attempt_regs regs = base;
    regs.rbx = flags;
    memcpy(code + 2, after, len);
    *end = attempt_code(code, 2 + len, &regs);
}

static void show(const char *name, struct attempt_end end) {
    if (end.sig == 0) printf("%s: fine\n", name);
    else printf("%s: %s code %d\n", name, signal_name(end.sig), end.code);
    fflush(stdout);
}

#define KEPT(name, flags, after) \
    do { \
        struct attempt_end end_; \
        set_flags(flags, after, sizeof(after) - 1, &end_); \
        if (end_.sig) show(name, end_); \
        else printf("%s: flags %#lx\n", name, end_.rax & ~IGNORED); \
        fflush(stdout); \
    } while (0)

static void step_handler(int sig, siginfo_t *info, void *context) {
    (void)sig;
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    if (step_count < sizeof steps / sizeof *steps)
        steps[step_count++] = (uint64_t)g[REG_RIP] << 8 | (uint64_t)(info->si_code & 0xff);
}

static void steps_over(const char *name, const char *code, size_t len) {
    step_count = 0;
    struct sigaction sa = {.sa_sigaction = step_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK}, old;
    sigaction(SIGTRAP, &sa, &old);
    // Ends by clearing TF: push $0x202; popfq
    unsigned char all[128] = {0x53, 0x9d};
    memcpy(all + 2, code, len);
    memcpy(all + 2 + len, "\x68\x02\x02\x00\x00\x9d", 6);
    struct attempt_regs regs = base;
    regs.rbx = 0x302;
    regs.rax = 0x1000;
    struct attempt_end end = attempt_code(all, len + 8, &regs);
    sigaction(SIGTRAP, &old, NULL);
    printf("%s: %s, %u steps:", name, signal_name(end.sig), step_count);
    uint64_t page = (uint64_t)(uintptr_t)attempt_page();
    for (unsigned i = 0; i < step_count; i++) {
        uint64_t at = (steps[i] >> 8) - page;
        if (at < PAGE) printf(" +%lu", at);
        else printf(" elsewhere");
        printf("/%lu", steps[i] & 0xff);
    }
    printf("\n");
    fflush(stdout);
}
#define STEPS(name, code) steps_over(name, code, sizeof(code) - 1)

int main(int argc, char **argv) {
    attempt_start();
    base = attempt_tame();
    if (argc > 1 && !strcmp(argv[1], "step")) {
        STEPS("two nops", "\x90\x90");
        STEPS("a call", "\x90\x0f\x05\x90\x90");
        STEPS("getpid", "\xb8\x27\x00\x00\x00\x0f\x05\x90\x90");
        STEPS("two calls", "\x0f\x05\xb8\x00\x10\x00\x00\x0f\x05\x90");
        STEPS("cpuid", "\x0f\xa2\x90");
        STEPS("pushfq; pop", "\x9c\x58\x90");
        STEPS("a page fault on the way", "\x48\x8b\x07\x90");
        STEPS("mov to ss", "\xb8\x2b\x00\x00\x00\x8e\xd0\x90\x90");
        STEPS("mov to ss; a call", "\xb8\x2b\x00\x00\x00\x8e\xd0\x0f\x05\x90\x90");
        STEPS("int3", "\x90\xcc\x90");
        STEPS("ud2", "\x90\x0f\x0b\x90");
        printf("alive\n");
        return 0;
    }
    if (argc > 1 && !strcmp(argv[1], "ac")) {
        struct attempt_end end;
        // mov 1(%rdi),%rax with AC
        set_flags(0x40202, "\x48\x8b\x47\x01", 4, &end);
        show("AC, odd read", end);
        set_flags(0x40202, "\x48\x89\x47\x01", 4, &end);
        show("AC, odd write", end);
        set_flags(0x40202, "\x48\x8b\x07", 3, &end);
        show("AC, even read", end);
        set_flags(0x40202, "\xb8\x00\x10\x00\x00\x0f\x05\x48\x8b\x47\x01", 11, &end);
        show("AC, a call, odd read", end);
        set_flags(0x40202, "\xb8\x27\x00\x00\x00\x0f\x05\x48\x8b\x47\x01", 11, &end);
        show("AC, getpid, odd read", end);
        printf("alive\n");
        return 0;
    }
    static const struct { const char *name; uint64_t bits; } flags[] = {
        {"none", 0}, {"IOPL", 0x3000}, {"NT", 0x4000}, {"RF", 0x10000}, {"VM", 0x20000}, {"VIF", 0x80000},
        {"VIP", 0x100000}, {"ID", 0x200000}, {"no IF", 0}, {"DF", 0x400}, {"AC", 0x40000}, {"all but TF", ~0x100ul}};
    for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++) {
        char name[64];
        uint64_t value = flags[i].bits | (strcmp(flags[i].name, "no IF") ? 0x202 : 2);
        snprintf(name, sizeof name, "popf %s", flags[i].name);
        KEPT(name, value, "\x9c\x58");  // pushfq; pop %rax
        snprintf(name, sizeof name, "popf %s; a call", flags[i].name);
        KEPT(name, value, "\xb8\x00\x10\x00\x00\x0f\x05\x9c\x58");
        snprintf(name, sizeof name, "popf %s; getpid", flags[i].name);
        KEPT(name, value, "\xb8\x27\x00\x00\x00\x0f\x05\x9c\x58");
        snprintf(name, sizeof name, "popf %s; gettid", flags[i].name);
        KEPT(name, value, "\xb8\xba\x00\x00\x00\x0f\x05\x9c\x58");
        struct attempt_end end;
        set_flags(value, "\x0f\x0b", 2, &end);
        snprintf(name, sizeof name, "popf %s; ud2", flags[i].name);
        show(name, end);
        set_flags(value, "\xfa", 1, &end);
        snprintf(name, sizeof name, "popf %s; cli", flags[i].name);
        show(name, end);
        if (asked(argc, argv, "emulated")) continue;
        // iretq with these flags: push $0x2b; push %rsi; push %rbx; push $0x33; lea 2(%rip); iretq
        snprintf(name, sizeof name, "iretq %s", flags[i].name);
        struct attempt_regs regs = base;
        regs.rbx = value;
        regs.rsi = base.rsp;
        end = attempt_code("\x6a\x2b\x56\x53\x6a\x33\x48\x8d\x05\x03\x00\x00\x00\x50\x48\xcf\x9c\x58", 18, &regs);
        if (end.sig) show(name, end);
        else printf("%s: flags %#lx\n", name, end.rax & ~IGNORED);
    }
    // The arithmetic flags survive a call: all set, all clear.
    for (unsigned i = 0; i < 2; i++) {
        static const long calls[] = {0x1000, SYS_getpid, SYS_gettid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getppid};
        for (unsigned c = 0; c < sizeof calls / sizeof *calls; c++) {
            unsigned char code[] = {0xb8, (unsigned char)calls[c], (unsigned char)(calls[c] >> 8), 0, 0, 0x0f, 0x05, 0x9c, 0x58};
            struct attempt_end end;
            set_flags(i ? 0xad7 : 0x202, (char *)code, sizeof code, &end);
            printf("arithmetic flags %s, call %ld: %#lx\n", i ? "set" : "clear", calls[c], end.rax);
        }
    }
    printf("alive\n");
    return 0;
}
