// sigaltstack(2): a handler on its own stack, even when the stack is gone.
#include "guest.h"
#include <setjmp.h>
#include <signal.h>

static sigjmp_buf back;
static char *alt;
static size_t alt_len;
static volatile sig_atomic_t on_alt, alt_flags;

static void where(int sig) {
    char here;
    (void)sig;
    stack_t ss;
    on_alt = &here >= alt && &here < alt + alt_len;
    alt_flags = sigaltstack(NULL, &ss) == 0 ? ss.ss_flags : -1;
}

static void overflow(int sig, siginfo_t *info, void *context) {
    (void)info;
    (void)context;
    where(sig);
    siglongjmp(back, 1);
}

__attribute__((noinline)) static int deep(volatile char *up) {
    volatile char here[4096];
    here[0] = up ? up[0] : 1;
    return deep(here) + here[0];
}

int main(void) {
    alt_len = 64 * 1024;
    alt = malloc(alt_len);
    stack_t ss = {.ss_sp = alt, .ss_size = alt_len}, old;
    SHOW(sigaltstack(NULL, &old));
    SHOW(old.ss_flags == SS_DISABLE);
    SHOW(sigaltstack(&ss, NULL));
    SHOW(sigaltstack(NULL, &old));
    CHECK(old.ss_sp == alt && old.ss_size == alt_len && old.ss_flags == 0);
    stack_t tiny = {.ss_sp = alt, .ss_size = 100};
    FAILS(sigaltstack(&tiny, NULL), ENOMEM);
    stack_t strange = {.ss_sp = alt, .ss_size = alt_len, .ss_flags = 4096};
    FAILS(sigaltstack(&strange, NULL), EINVAL);

    struct sigaction sa = {.sa_handler = where, .sa_flags = SA_ONSTACK};
    SHOW(sigaction(SIGUSR1, &sa, NULL));
    raise(SIGUSR1);
    printf("on alternate stack %d, says so %d\n", (int)on_alt, alt_flags == SS_ONSTACK);
    sa.sa_flags = 0;
    sigaction(SIGUSR1, &sa, NULL);
    raise(SIGUSR1);
    printf("on alternate stack %d, says so %d\n", (int)on_alt, alt_flags == SS_ONSTACK);

    struct sigaction so = {.sa_sigaction = overflow, .sa_flags = SA_ONSTACK | SA_SIGINFO};
    sigaction(SIGSEGV, &so, NULL);
    for (int i = 0; i < 3; i++) {
        on_alt = 0;
        if (sigsetjmp(back, 1) == 0) deep(NULL);
        printf("overflow handled on alternate stack %d\n", (int)on_alt);
    }
    ss.ss_flags = SS_DISABLE;
    SHOW(sigaltstack(&ss, NULL));
    printf("last words\n");
    fflush(stdout);
    deep(NULL);
    return 0;
}
