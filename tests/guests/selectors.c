// Data segment selectors belong to a thread: others keep theirs, a new one inherits, arch_prctl(2) and
// execve(2) put them back.
#include "guest.h"

#include <asm/prctl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

static void show(const char *when) {
    unsigned ds, es, fs, gs;
    __asm__ volatile("mov %%ds, %0; mov %%es, %1; mov %%fs, %2; mov %%gs, %3" : "=r"(ds), "=r"(es), "=r"(fs), "=r"(gs));
    printf("%s: ds %#x es %#x fs %#x gs %#x\n", when, ds, es, fs, gs);
    fflush(stdout);
}

// FS keeps its base, which is the C library's.
static void load(unsigned ds, unsigned es, unsigned fs, unsigned gs) {
    uint64_t base;
    syscall(SYS_arch_prctl, ARCH_GET_FS, &base);
    __asm__ volatile("mov %0, %%ds; mov %1, %%es; mov %2, %%fs; wrfsbase %4; mov %3, %%gs"
                     : : "r"(ds), "r"(es), "r"(fs), "r"(gs), "r"(base));
}

static volatile int turn;

static void await(int wanted) {
    while (turn != wanted) sched_yield();
}

static void *other(void *unused) {
    show("inherited");
    load(0x33, 0, 0x28, 0x30);
    turn = 1;
    await(2);
    show("second thread");
    load(0, 0x2b, 0, 0);
    turn = 3;
    await(4);
    show("second thread again");
    return unused;
}

static void on_signal(int number) {
    (void)number;
    show("handler");
    load(0x30, 0x28, 0, 0x2b);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        show("after execve");
        return 0;
    }
    show("start");
    load(0x2b, 0x33, 0x2b, 0x28);
    show("loaded");
    pthread_t thread;
    need(pthread_create(&thread, NULL, other, NULL) == 0, "pthread_create");
    await(1);
    show("first thread");
    turn = 2;
    await(3);
    show("first thread again");
    turn = 4;
    pthread_join(thread, NULL);
    signal(SIGUSR1, on_signal);
    raise(SIGUSR1);
    show("after the handler");
    uint64_t base;
    syscall(SYS_arch_prctl, ARCH_SET_GS, 0x5000);
    show("GS base set");
    // Of two bases one after the other, each is in force.
    static uint64_t words[2] = {77, 78};
    for (int i = 0; i < 2; i++) {
        uint64_t word = 0;
        syscall(SYS_arch_prctl, ARCH_SET_GS, &words[i]);
        __asm__ volatile("movq %%gs:0, %0" : "=r"(word));
        printf("at the GS base: %d\n", (int)word);
    }
    syscall(SYS_arch_prctl, ARCH_SET_GS, 0x5000);
    syscall(SYS_arch_prctl, ARCH_GET_FS, &base);
    load(0x2b, 0x33, 0x2b, 0);
    syscall(SYS_arch_prctl, ARCH_SET_FS, base);
    show("FS base set");
    load(0x2b, 0x33, 0x2b, 0x28);
    execv("/proc/self/exe", (char *[]){argv[0], "again", NULL});
    execv(argv[0], (char *[]){argv[0], "again", NULL});
    return 1;
}
