// Handlers, masks, siginfo and machine faults.
#include "guest.h"
#include <poll.h>
#include <sys/select.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <time.h>
#include <ucontext.h>

static volatile sig_atomic_t got, count, depth, deepest;
static siginfo_t last;
static sigjmp_buf back;

static void simple(int sig) {
    got = sig;
    count++;
}

static void full(int sig, siginfo_t *info, void *context) {
    (void)context;
    got = sig;
    count++;
    last = *info;
}

static void fault(int sig, siginfo_t *info, void *context) {
    (void)context;
    last = *info;
    siglongjmp(back, sig);
}

static void nested(int sig) {
    depth++;
    if (depth > deepest) deepest = depth;
    count++;
    if (count < 4) raise(sig);
    depth--;
}

static int set(int sig, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    return sigaction(sig, &sa, NULL);
}

static int set_simple(int sig, void (*handler)(int), int flags) {
    struct sigaction sa = {.sa_handler = handler, .sa_flags = flags};
    return sigaction(sig, &sa, NULL);
}

// Resumes behind the faulting instruction by changing the saved registers.
static void skip_fault(int sig, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    got = sig;
    last = *info;
    uc->uc_mcontext.gregs[REG_RAX] = 77;
    uc->uc_mcontext.gregs[REG_RIP] += 2;  // the length of ud2
}

static const char *code_name(int sig, int code) {
    static char text[32];
    if (code == SI_USER) return "SI_USER";
    if (code == SI_TKILL) return "SI_TKILL";
    if (code == SI_QUEUE) return "SI_QUEUE";
    if (code == SI_KERNEL) return "SI_KERNEL";
    if (sig == SIGSEGV && code == SEGV_MAPERR) return "SEGV_MAPERR";
    if (sig == SIGSEGV && code == SEGV_ACCERR) return "SEGV_ACCERR";
    if (sig == SIGFPE && code == FPE_INTDIV) return "FPE_INTDIV";
    if (sig == SIGFPE && code == FPE_FLTDIV) return "FPE_FLTDIV";
    if (sig == SIGILL && code == ILL_ILLOPN) return "ILL_ILLOPN";
    if (sig == SIGTRAP && code == TRAP_BRKPT) return "TRAP_BRKPT";
    if (sig == SIGTRAP && code == TRAP_TRACE) return "TRAP_TRACE";
    snprintf(text, sizeof text, "code %d", code);
    return text;
}

#define FAULT(sig, action) \
    do { \
        int fault_sig_ = sigsetjmp(back, 1); \
        if (fault_sig_ == 0) { \
            set(sig, fault, 0); \
            action; \
            printf("no signal from %s\n", #action); \
        } else \
            printf("%s: signal %d %s\n", #action, fault_sig_, code_name(fault_sig_, last.si_code)); \
    } while (0)

int main(void) {
    sigset_t s, old, pending;
    volatile int zero = 0;

    section("handlers");
    SHOW(set_simple(SIGUSR1, simple, 0));
    SHOW(raise(SIGUSR1));
    SHOW(got == SIGUSR1);
    SHOW(kill(getpid(), SIGUSR1));
    SHOW(count);
    SHOW(set(SIGUSR1, full, 0));
    kill(getpid(), SIGUSR1);
    printf("%s\n", code_name(SIGUSR1, last.si_code));
    CHECK(last.si_pid == getpid() && last.si_uid == getuid() && last.si_signo == SIGUSR1);
    raise(SIGUSR1);
    printf("%s\n", code_name(SIGUSR1, last.si_code));
    SHOW(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 1234}));
    printf("%s %d\n", code_name(SIGUSR1, last.si_code), last.si_value.sival_int);
    struct sigaction sa;
    SHOW(sigaction(SIGUSR1, NULL, &sa));
    CHECK(sa.sa_sigaction == full && (sa.sa_flags & SA_SIGINFO));
    FAILS(sigaction(SIGKILL, &(struct sigaction){.sa_handler = simple}, NULL), EINVAL);
    FAILS(sigaction(SIGSTOP, &(struct sigaction){.sa_handler = simple}, NULL), EINVAL);
    FAILS(kill(getpid(), 65), EINVAL);
    SHOW(kill(getpid(), 0));
    FAILS(kill(0x7ffffff0, 0), ESRCH);

    section("SA_RESETHAND and ignoring");
    set_simple(SIGUSR2, simple, SA_RESETHAND);
    raise(SIGUSR2);
    SHOW(got == SIGUSR2);
    sigaction(SIGUSR2, NULL, &sa);
    CHECK(sa.sa_handler == SIG_DFL);
    signal(SIGUSR2, SIG_IGN);
    got = 0;
    raise(SIGUSR2);
    SHOW(got);

    section("masks");
    count = 0;
    set_simple(SIGUSR1, simple, 0);
    sigemptyset(&s);
    sigaddset(&s, SIGUSR1);
    SHOW(sigprocmask(SIG_BLOCK, &s, &old));
    raise(SIGUSR1);
    raise(SIGUSR1);
    SHOW(count);
    SHOW(sigpending(&pending));
    SHOW(sigismember(&pending, SIGUSR1));
    SHOW(sigprocmask(SIG_SETMASK, &old, NULL));
    SHOW(count);
    sigpending(&pending);
    SHOW(sigismember(&pending, SIGUSR1));
    FAILS(sigprocmask(77, &s, NULL), EINVAL);

    section("real-time signals queue");
    count = 0;
    set(SIGRTMIN + 1, full, 0);
    sigemptyset(&s);
    sigaddset(&s, SIGRTMIN + 1);
    sigprocmask(SIG_BLOCK, &s, NULL);
    for (int i = 0; i < 5; i++) sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = i});
    SHOW(count);
    sigprocmask(SIG_UNBLOCK, &s, NULL);
    SHOW(count);
    SHOW(last.si_value.sival_int);

    section("a signal is blocked while its handler runs");
    count = depth = deepest = 0;
    set_simple(SIGUSR1, nested, 0);
    raise(SIGUSR1);
    printf("count %d deepest %d\n", (int)count, (int)deepest);
    count = depth = deepest = 0;
    set_simple(SIGUSR1, nested, SA_NODEFER);
    raise(SIGUSR1);
    printf("count %d deepest %d\n", (int)count, (int)deepest);

    section("sigsuspend and sigtimedwait");
    set_simple(SIGUSR1, simple, 0);
    sigemptyset(&s);
    sigaddset(&s, SIGUSR1);
    sigprocmask(SIG_BLOCK, &s, NULL);
    raise(SIGUSR1);
    count = 0;
    sigset_t none;
    sigemptyset(&none);
    FAILS(sigsuspend(&none), EINTR);
    SHOW(count);
    sigprocmask(SIG_BLOCK, NULL, &pending);
    SHOW(sigismember(&pending, SIGUSR1));
    raise(SIGUSR1);
    struct pollfd nothing = {.fd = -1};
    struct timespec a_while = {5, 0};
    FAILS(ppoll(&nothing, 1, &a_while, &none), EINTR);
    FAILS(pselect(0, NULL, NULL, NULL, &a_while, (raise(SIGUSR1), &none)), EINTR);
    SHOW(count);
    sigprocmask(SIG_BLOCK, NULL, &pending);
    SHOW(sigismember(&pending, SIGUSR1));
    raise(SIGUSR1);
    siginfo_t info;
    struct timespec soon = {0, 1000000};
    SHOW(sigtimedwait(&s, &info, &soon) == SIGUSR1);
    FAILS(sigtimedwait(&s, &info, &soon), EAGAIN);
    SHOW(count);
    sigprocmask(SIG_UNBLOCK, &s, NULL);

    section("machine faults");
    char *page = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    FAULT(SIGSEGV, *(volatile char *)(page + 4096));
    CHECK(last.si_addr == page + 4096);
    FAULT(SIGSEGV, *(volatile char *)(page + 123) = 1);
    CHECK(last.si_addr == page + 123);
    FAULT(SIGSEGV, *(volatile char *)(uintptr_t)(zero + 0x8000000000000000ull));
    CHECK(last.si_addr == NULL);
    FAULT(SIGFPE, __asm__ volatile("idivl %0" : : "r"(zero), "a"(1), "d"(0) : "cc"));
    CHECK(last.si_addr != NULL);
    FAULT(SIGFPE, __asm__ volatile("idivl %0" : : "r"(-1), "a"(0x80000000), "d"(-1) : "cc"));
    FAULT(SIGILL, __asm__ volatile("ud2"));
    FAULT(SIGTRAP, __asm__ volatile("int3"));
    FAULT(SIGTRAP, __asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq; nop; nop" : : : "cc", "memory"));
    FAULT(SIGSEGV, __asm__ volatile("hlt"));
    FAULT(SIGSEGV, __asm__ volatile("cli"));
    unsigned mxcsr = 0x1f80 & ~0x200u;
    FAULT(SIGFPE, __asm__ volatile("ldmxcsr %0; xorps %%xmm0, %%xmm0; mov $0x3f800000, %%eax; movd %%eax, %%xmm1;"
                                   "divss %%xmm0, %%xmm1" : : "m"(mxcsr) : "eax", "xmm0", "xmm1"));
    // The mask in force before the fault is back, and so faults repeat.
    volatile int times = 0;
    for (volatile int i = 0; i < 100; i++)
        if (sigsetjmp(back, 1) == 0) {
            set(SIGSEGV, fault, 0);
            *(volatile char *)(page + 4096) = 1;
        } else times++;
    SHOW(times);

    section("a handler changes the registers");
    set(SIGILL, skip_fault, 0);
    long rax = 0;
    __asm__ volatile("ud2" : "=a"(rax) : "a"(1L) : "memory");
    SHOW(rax);
    SHOW(got == SIGILL);

    section("vector registers survive a handler");
    double in[2] = {1.5, -2.25}, out[2];
    set_simple(SIGUSR1, simple, 0);
    long pid = getpid();
    long ret;
    __asm__ volatile("movupd %[in], %%xmm13\n\tsyscall\n\tmovupd %%xmm13, %[out]"
                     : [out] "=m"(out), "=a"(ret)
                     : [in] "m"(in), "a"((long)SYS_kill), "D"(pid), "S"((long)SIGUSR1)
                     : "rcx", "r11", "xmm13", "memory");
    printf("%ld %g %g\n", ret, out[0], out[1]);

    section("a fault while its signal is blocked ends the program");
    sigemptyset(&s);
    sigaddset(&s, SIGSEGV);
    sigprocmask(SIG_BLOCK, &s, NULL);
    printf("last words\n");
    fflush(stdout);
    *(volatile char *)(page + 4096) = 1;
    printf("FAIL still here\n");
    return 0;
}
