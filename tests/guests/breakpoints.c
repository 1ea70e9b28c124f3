// int3 and int $4 under a storm of timer signals: each gives one SIGTRAP or SIGSEGV, at its own place.
//
//   breakpoints ROUNDS ALARMS INTERVAL_US
#include "guest.h"
#include <signal.h>
#include <sys/time.h>
#include <ucontext.h>

extern const char behind_int3[], behind_int4[];

static volatile unsigned long traps, overflows, misplaced, alarms;

static void handler(int sig, siginfo_t *info, void *context) {
    (void)info;
    uint64_t rip = (uint64_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    if (sig == SIGTRAP) traps++;
    else overflows++;
    if (rip != (uint64_t)(uintptr_t)(sig == SIGTRAP ? behind_int3 : behind_int4)) misplaced++;
}

static void on_alarm(int sig) {
    (void)sig;
    alarms++;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    unsigned long rounds = strtoul(argv[1], NULL, 10), wanted = strtoul(argv[2], NULL, 10), done = 0, lost = 0;
    long interval_us = strtol(argv[3], NULL, 10);
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGTRAP, &sa, NULL) == 0);
    CHECK(sigaction(SIGSEGV, &sa, NULL) == 0);
    struct sigaction alarm = {.sa_handler = on_alarm};
    CHECK(sigaction(SIGALRM, &alarm, NULL) == 0);
    struct itimerval never = {{0, 0}, {0, 0}};
    unsigned long armed = 0;
    for (; done < rounds || alarms < wanted; done++) {
        // Each alarm anew, so that on a busy machine some rounds pass between two; at differing times.
        if (armed == alarms) {
            struct itimerval once = {{0, 0}, {0, 1 + interval_us * (long)(armed++ % 8 + 1) / 8}};
            if (setitimer(ITIMER_REAL, &once, NULL)) break;
        }
        unsigned long before = traps;
        __asm__ volatile("int3\nbehind_int3:" ::: "memory");
        if (traps != before + 1) lost++;
        before = overflows;
        __asm__ volatile("int $4\nbehind_int4:" ::: "memory");
        if (overflows != before + 1) lost++;
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    CHECK(lost == 0);
    CHECK(misplaced == 0);
    CHECK(traps == done && overflows == done);
    return 0;
}
