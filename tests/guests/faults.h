// Tries one access and says which signal it raised, if any.
#ifndef FAULTS_H
#define FAULTS_H
#include "guest.h"
#include <setjmp.h>
#include <signal.h>

static sigjmp_buf fault_back;
static volatile sig_atomic_t fault_code;
static void *volatile fault_addr;

static void fault_handler(int sig, siginfo_t *info, void *context) {
    (void)context;
    fault_code = info->si_code;
    fault_addr = info->si_addr;
    siglongjmp(fault_back, sig);
}

static inline void catch_faults(void) {
    struct sigaction sa = {.sa_sigaction = fault_handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &sa, NULL);
    sigaction(SIGBUS, &sa, NULL);
}

static const char *fault_name(int sig) {
    switch (sig) {
        case 0: return "fine";
        case SIGSEGV: return fault_code == SEGV_MAPERR ? "SEGV_MAPERR" : fault_code == SEGV_ACCERR ? "SEGV_ACCERR" : "SEGV";
        case SIGBUS: return fault_code == BUS_ADRERR ? "BUS_ADRERR" : "BUS";
    }
    return "other";
}

static inline const char *try_read(const volatile void *p) {
    int sig = sigsetjmp(fault_back, 1);
    if (sig == 0) (void)*(const volatile char *)p;
    else if (fault_addr != p) return "wrong si_addr";
    return fault_name(sig);
}

static inline const char *try_write(volatile void *p) {
    int sig = sigsetjmp(fault_back, 1);
    if (sig == 0) *(volatile char *)p = 'w';
    else if (fault_addr != p) return "wrong si_addr";
    return fault_name(sig);
}

// The page must begin with a `ret` (0xc3) for the call to come back.
static inline const char *try_call(void *p) {
    int sig = sigsetjmp(fault_back, 1);
    if (sig == 0) ((void (*)(void))p)();
    else if (fault_addr != p) return "wrong si_addr";
    return fault_name(sig);
}

#define READ(p) printf("read %s: %s\n", #p, try_read(p))
#define WRITE(p) printf("write %s: %s\n", #p, try_write(p))
#define CALL(p) printf("call %s: %s\n", #p, try_call(p))
#endif
