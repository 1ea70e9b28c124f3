// Random calls with random arguments: fuzz SEED COUNT. For a VM only: some of them would hurt a host.
//
// Ends by itself, or by a signal when a call took away what the program stands on. A second thread
// interrupts calls that would wait for ever.
#include "hostile.h"
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <time.h>

static unsigned char *arena;
#define ARENA_PAGES 64ul
static volatile unsigned long done;
static int main_tid;

static void nothing(int sig) { (void)sig; }

static int poker(void *unused) {
    (void)unused;
    unsigned long seen = 0, stuck = 0;
    for (;;) {
        struct timespec t = {0, 20000000};
        raw6(SYS_nanosleep, (uint64_t)(uintptr_t)&t, 0, 0, 0, 0, 0);
        if (done == ~0ul) raw6(SYS_exit, 0, 0, 0, 0, 0, 0);
        if (done != seen) {
            seen = done;
            stuck = 0;
            continue;
        }
        // A real-time signal: it is queued, and hardly any mask of the fuzzer blocks it for long.
        raw6(SYS_tgkill, (uint64_t)getpid(), (uint64_t)main_tid, SIGRTMIN + 5, 0, 0, 0);
        if (++stuck > 50) raw6(SYS_exit_group, 7, 0, 0, 0, 0, 0);
    }
    return 0;
}

int main(int argc, char **argv) {
    need(argc == 3, "arguments");
    uint64_t state = strtoull(argv[1], NULL, 0) * 0x9e3779b97f4a7c15ul + 1;
    unsigned long count = strtoul(argv[2], NULL, 0);
    arena = map(ARENA_PAGES * PAGE, PROT_READ | PROT_WRITE);
    mprotect(arena + 20 * PAGE, 2 * PAGE, PROT_READ);
    mprotect(arena + 30 * PAGE, 2 * PAGE, PROT_NONE);
    struct sigaction sa = {.sa_handler = nothing};
    sigaction(SIGRTMIN + 5, &sa, NULL);
    main_tid = (int)syscall(SYS_gettid);
    for (int i = 0; i < 8; i++) {
        char name[] = "/tmp/fuzz0";
        name[9] = (char)('0' + i);
        open(name, O_RDWR | O_CREAT, 0600);
    }
    int fds[2];
    for (int i = 0; i < 3; i++) {
        if (pipe(fds) == 0) fcntl(fds[0], F_SETFL, O_NONBLOCK);
    }
    char *stack = map(16 * PAGE, PROT_READ | PROT_WRITE);
    if (clone(poker, stack + 16 * PAGE, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM, NULL) < 0)
        need(0, "clone");
    // Words that calls take for paths, vectors, times, sets: half of the arena.
    uint64_t *words = (uint64_t *)arena;
    for (unsigned long i = 0; i < count; i++) {
        done = i;
        uint64_t r = next_random(&state);
        long nr = (long)(r % 470);
        if ((r >> 40) % 64 == 0) nr = (long)next_random(&state);
        switch ((int)nr) {
            // What ends the program, or another one's life, by right.
            case SYS_exit: case SYS_exit_group: case SYS_execve: case SYS_execveat: case SYS_kill: case SYS_tkill:
            case SYS_tgkill: case SYS_rt_sigqueueinfo: case SYS_rt_tgsigqueueinfo: case SYS_rt_sigreturn:
            case SYS_rt_sigaction: case SYS_pause: case SYS_alarm: case SYS_setitimer: continue;
            // Threads with random stacks end it too; a separate guest makes them.
            case SYS_clone: case SYS_clone3: case SYS_fork: case SYS_vfork: continue;
        }
        // New words to point at.
        for (int k = 0; k < 6; k++) {
            uint64_t v = next_random(&state);
            uint64_t w;
            switch (v % 8) {
                case 0: w = 0; break;
                case 1: w = v >> 60; break;
                case 2: w = (uint64_t)(uintptr_t)arena + (v >> 20) % (ARENA_PAGES * PAGE); break;
                case 3: w = ~0ul >> (v >> 58); break;
                case 4: w = 1ul << (v >> 58); break;
                case 5: w = 0x706d742f00000000ul >> 32 | v << 40; break;
                case 6: w = VMM_AREA + (v >> 20) % 0x200000; break;
                default: w = v;
            }
            words[(v >> 8) % (20 * PAGE / 8)] = w;
        }
        uint64_t a[6];
        for (int k = 0; k < 6; k++) {
            uint64_t v = next_random(&state);
            switch (v % 16) {
                case 0: a[k] = 0; break;
                case 1: a[k] = (v >> 8) % 16; break;
                case 2: a[k] = 1ul << (v >> 58); break;
                case 3: a[k] = ~0ul >> (v >> 58); break;
                case 4: a[k] = (uint64_t)-(long)((v >> 8) % 5000); break;
                case 5: a[k] = VMM_AREA + (v >> 8) % 0x200000; break;
                case 6: a[k] = 0xffff800000000000ul | v >> 8; break;
                case 7: a[k] = 0x7fffffffffffffff; break;
                case 8: a[k] = (v >> 8) % 4096 * PAGE; break;
                case 9: a[k] = v; break;
                case 10: a[k] = (uint64_t)AT_FDCWD; break;
                default: a[k] = (uint64_t)(uintptr_t)arena + ((v >> 8) % (ARENA_PAGES * PAGE) & (v & 1 << 30 ? ~0ul : ~(PAGE - 1)));
            }
        }
        switch ((int)nr) {
            // Only the arena is moved about: else little would be left to go on with.
            case SYS_mmap: case SYS_munmap: case SYS_mprotect: case SYS_madvise: case SYS_mremap:
                if (r >> 50 & 3) {
                    a[0] = (uint64_t)(uintptr_t)arena + (24 + (r >> 20) % 40) * PAGE;
                    a[1] = (r >> 30) % 30 * PAGE;
                    if (a[0] + a[1] > (uint64_t)(uintptr_t)arena + ARENA_PAGES * PAGE) a[1] = PAGE;
                } else if (a[0] < (uint64_t)(uintptr_t)arena && a[1] > 1 << 20 && nr != SYS_mmap) continue;
                break;
            case SYS_arch_prctl: a[0] &= ~2ul; break;  // the thread's own base stays
            case SYS_close_range: case SYS_close: case SYS_dup2: case SYS_dup3: break;
            // Times to wait are short.
            case SYS_nanosleep: case SYS_clock_nanosleep: words[0] = 0, words[1] = 1000; break;
            case SYS_prlimit64: case SYS_setrlimit: if (r >> 50 & 1) continue;
        }
        raw6(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
        if (i % 16 == 0) {
            // Signals that the fuzzer blocked.
            uint64_t none = 0;
            raw6(SYS_rt_sigprocmask, SIG_SETMASK, (uint64_t)(uintptr_t)&none, 0, 8, 0, 0);
        }
    }
    done = ~0ul;
    raw6(SYS_exit_group, 0, 0, 0, 0, 0, 0);
    return 0;
}
