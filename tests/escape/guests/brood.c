// Processes without end and without manners: brood WHAT
#include "hostile.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static void reached(const char *what, long count) { fprintf(stderr, "%s: %ld, then %s\n", what, count, strerrorname_np(errno)); }

// Every process makes more of them.
static void bomb(void) {
    for (;;) fork();
}

// Nobody waits for them.
static void zombies(void) {
    long count = 0;
    for (pid_t child; (child = fork()) >= 0; count++)
        if (!child) _exit(0);
    reached("zombies", count);
    long reaped = 0;
    while (wait(NULL) > 0) reaped++;
    pid_t child = fork();
    if (!child) _exit(0);
    need(reaped == count && child > 0, "all of them reaped, and room again");
}

// Thousands in turn, and none waited for: whoever ignores SIGCHLD has no zombies.
static void unwanted(void) {
    signal(SIGCHLD, SIG_IGN);
    for (long count = 0; count < 3000; count++) {
        pid_t child = fork();
        if (!child) _exit(0);
        need(child > 0, "fork");
    }
}

// Each the parent of the next.
static void chain(void) {
    long depth = 0;
    pid_t child;
    while ((child = fork()) == 0) depth++;
    if (child < 0) reached("chain", depth);
    else while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {}
    if (depth) _exit(0);
}

// Each parked until the next one ends.
static void parked_chain(void) {
    static volatile long depth, told;
    while (vfork() == 0) depth++;
    if (!told++) reached("parked chain", depth);
    if (--depth >= 0) _exit(0);
}

static __attribute__((noinline)) pid_t returning(void) { return vfork(); }

// A child returns from the function that made it: its parent's stack is no more what it was.
static void bad_manners(void) {
    for (int number = 0; number < 100; number++) {
        pid_t child = returning();
        char stack[256];
        memset(stack, number, sizeof stack);
        __asm__ volatile("" : : "r"(stack) : "memory");
        if (!child) _exit(0);
    }
}

static void stopped(void) {
    pid_t child = fork();
    if (!child)
        for (;;) raise(SIGSTOP);
    for (;;) raise(SIGSTOP);
}

// Signals to all, init among them, while they make more of each other.
static void war(void) {
    for (int number = 0; number < 30; number++) {
        if (fork() != 0) continue;
        for (int round = 0; round < 200; round++) {
            static const int signals[] = {SIGKILL, SIGSTOP, SIGCONT, SIGCHLD, SIGTERM, SIGHUP};
            setpgid(0, 0);
            kill(-1, signals[(round + number) % 6]);
            kill(1, SIGKILL);
            if (fork() == 0) setsid();
        }
        _exit(0);
    }
    for (;;) pause();
}

static volatile long caught;
static void count(int signo) {
    (void)signo;
    caught++;
    while (waitpid(-1, NULL, WNOHANG) > 0) {}
}

static void storm(void) {
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_NODEFER};
    sigaction(SIGCHLD, &action, NULL);
    for (int number = 0; number < 1000; number++)
        if (fork() == 0) _exit(0);
    need(caught > 0, "told");
}

// More memory than there is, if each had its own; then each takes its own.
static void heavy(int writes) {
    size_t len = 40 << 20;
    char *all = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(all != MAP_FAILED, "mmap");
    memset(all, 1, len);
    for (int number = 0; number < 50; number++) {
        pid_t child = fork();
        need(child >= 0, "fork copies nothing that it must not");
        if (child) continue;
        for (size_t at = 0; writes && at < len; at += PAGE) all[at] = 2;
        pause();
    }
}

// The first process ends at once; the others would go on for ever.
static void left(void) {
    for (int number = 0; number < 20; number++) {
        pid_t child = fork();
        if (child != 0) continue;
        if (number % 2) setsid();
        signal(SIGTERM, SIG_IGN);
        signal(SIGHUP, SIG_IGN);
        for (;;)
            if (number % 3) sched_yield();
    }
}

// Programs that start themselves again, twice each.
static void breed(const char *self) {
    for (volatile int number = 0; number < 2; number++) {
        pid_t child = number ? vfork() : fork();
        if (!child) {
            execl(self, self, "breed", NULL);
            _exit(1);
        }
    }
    while (wait(NULL) > 0) {}
}

// Each starts itself again with all arguments that there may be, and gives up the memory that it had them in.
static void arguments(const char *self, int started) {
    enum { WORDS = 40, LEN = 120 << 10 };
    if (started) {
        char here = 0;
        uintptr_t top = (uintptr_t)&here & ~(uintptr_t)(PAGE - 1);
        madvise((void *)(top + PAGE), (size_t)WORDS * LEN, MADV_DONTNEED);
        for (;;) pause();
    }
    static char word[LEN], *argv[WORDS + 3];
    memset(word, 'w', LEN - 1);
    struct rlimit limit = {64 << 20, 64 << 20};
    setrlimit(RLIMIT_STACK, &limit);
    argv[0] = (char *)self;
    argv[1] = "arguments-started";
    for (int at = 0; at < WORDS; at++) argv[at + 2] = word;
    for (int number = 0; number < 100; number++) {
        pid_t child = fork();
        if (child < 0) break;
        if (!child) {
            execv(self, argv);
            _exit(1);
        }
        struct timespec time = {.tv_nsec = 5000000};
        nanosleep(&time, NULL);
    }
}

// Threads that fork, while others execute, unmap and end.
static int meddle(void *number) {
    for (;;) {
        switch ((long)number % 4) {
            case 0:
                if (fork() == 0) _exit(0);
                break;
            case 1:
                if (vfork() == 0) _exit(0);
                break;
            case 2: {
                char *page = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                if (page == MAP_FAILED) break;
                memset(page, 1, 64 * PAGE);
                mprotect(page, 32 * PAGE, PROT_READ);
                munmap(page, 64 * PAGE);
                break;
            }
            default:
                waitpid(-1, NULL, WNOHANG);
        }
    }
    return 0;
}

static void threads(void) {
    pid_t child = fork();
    if (!child) {
        for (long number = 0; number < 12; number++) {
            char *stack = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            clone(meddle, stack + 16 * PAGE, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM, (void *)number);
        }
        struct timespec second = {.tv_sec = 1};
        nanosleep(&second, NULL);
        execl("/bin/true", "true", NULL);
        _exit(1);
    }
    int status;
    need(waitpid(child, &status, 0) == child && status == 0, "another program in the end");
}

static volatile int kept;

static int keep_a_table(void *unused) {
    (void)unused;
    if (unshare(CLONE_FILES | CLONE_FS)) {
        __atomic_store_n(&kept, -1, __ATOMIC_SEQ_CST);
        return 0;
    }
    for (int i = 0; i < 60; i++) dup(0);
    chdir("/usr/share");
    __atomic_add_fetch(&kept, 1, __ATOMIC_SEQ_CST);
    for (;;) pause();
}

// Threads, each with a descriptor table of its own, until there are no more.
static void tables(void) {
    const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    int count = 0;
    while (count < 100) {
        char *stack = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED || clone(keep_a_table, stack + 4 * PAGE, flags, NULL) < 0) break;
        count++;
        while (__atomic_load_n(&kept, __ATOMIC_SEQ_CST) >= 0 && __atomic_load_n(&kept, __ATOMIC_SEQ_CST) < count) sched_yield();
        if (__atomic_load_n(&kept, __ATOMIC_SEQ_CST) < 0) break;
    }
    reached("tables", count);
}

static pid_t branch(unsigned long flags) { return (pid_t)syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0); }

// Processes share tables, copy, execute, close and are killed, hundreds of times, and leave nothing open.
static void sharers(void) {
    static const unsigned long ways[] = {CLONE_FILES | CLONE_FS, CLONE_FILES, CLONE_FS, 0};
    int first = dup(0);
    close(first);
    for (int turn = 0; turn < 400; turn++) {
        pid_t child = branch(ways[turn % 4]);
        need(child >= 0, "a child");
        if (!child) {
            // More of them, with what is this one's by then.
            if (turn % 3 == 0 && unshare(CLONE_FILES | CLONE_FS)) _exit(1);
            pid_t inner = turn % 5 == 0 ? branch(ways[turn / 5 % 4]) : 0;
            int made = open("/dev/null", O_RDONLY | (turn % 2 ? O_CLOEXEC : 0));
            close(made);
            if (turn % 7 == 0) close_range(500, 600, CLOSE_RANGE_UNSHARE);
            if (inner > 0) waitpid(inner, NULL, 0);
            if (turn % 100 == 1) execl("/bin/true", "true", NULL);
            if (turn % 11 == 0) raise(SIGKILL);
            _exit(0);
        }
        need(waitpid(child, NULL, 0) == child, "its end");
    }
    need(dup(0) == first, "nothing is left open");
}

// Leases without end, which their holders do not give up, and many who wait for them.
static void leases(void) {
    static const char path[] = "/tmp/brood-lease";
    enum { HOLDERS = 8, OPENERS = 50 };
    volatile long *held = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    need(close(open(path, O_CREAT | O_RDWR, 0600)) == 0, "a file");
    pid_t holders[HOLDERS];
    for (int number = 0; number < HOLDERS; number++) {
        holders[number] = fork();
        if (holders[number]) continue;
        signal(SIGIO, SIG_IGN);
        for (int count = 0; count < 1000; count++) {
            int fd = open(path, O_RDONLY);
            if (fd < 0 || fcntl(fd, F_SETLEASE, F_RDLCK)) break;
            __atomic_add_fetch(&held[0], 1, __ATOMIC_SEQ_CST);
        }
        __atomic_add_fetch(&held[1], 1, __ATOMIC_SEQ_CST);
        for (;;) pause();
    }
    while (__atomic_load_n(&held[1], __ATOMIC_SEQ_CST) < HOLDERS) sched_yield();
    reached("leases", held[0]);
    for (int number = 0; number < OPENERS; number++)
        if (fork() == 0) _exit(open(path, O_WRONLY) < 0);
    struct timespec time = {.tv_nsec = 200000000};
    nanosleep(&time, NULL);
    for (int number = 0; number < HOLDERS; number++) kill(holders[number], SIGKILL);
    int status, opened = 0;
    while (wait(&status) > 0) opened += WIFEXITED(status) && WEXITSTATUS(status) == 0;
    need(opened == OPENERS, "all of them get on");
}

// Processes that lock, wait, move each other and are killed, at words that no two of them agree about.
static void mutexes(void) {
    enum { MEMBERS = 12 };
    static const int ops[] = {0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11, 12, 12, 13};
    uint32_t *words = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t members[MEMBERS];
    for (int number = 0; number < MEMBERS; number++) {
        members[number] = fork();
        if (members[number]) continue;
        unsigned seed = (unsigned)number + 1;
        for (int round = 0; round < 400; round++) {
            seed = seed * 1103515245 + 12345;
            uint32_t *one = &words[seed >> 16 & 3], *other = &words[seed >> 20 & 3];
            int op = ops[(seed >> 8) % (sizeof ops / sizeof *ops)];
            struct timespec end;
            clock_gettime(op == 6 ? CLOCK_REALTIME : CLOCK_MONOTONIC, &end);
            end.tv_nsec = (end.tv_nsec + 3000000) % 1000000000;
            if (op == 0) end = (struct timespec){.tv_nsec = 1000000};
            int counts = op == 3 || op == 4 || op == 5 || op == 12;
            syscall(SYS_futex, one, op, op == 12 ? 1 : *one, counts ? (long)(seed & 7) : (long)&end, other,
                    op == 9 || op == 10 ? ~0u : *one);
            if (seed % 13 == 0) *other = seed & 1 ? 0 : seed;
            if (seed % 17 == 0) *other = (uint32_t)members[seed % (number + 1)];
        }
        _exit(0);
    }
    for (int number = 0; number < MEMBERS; number += 3) kill(members[number], SIGKILL);
    struct timespec time = {.tv_sec = 1};
    nanosleep(&time, NULL);
    for (int number = 0; number < MEMBERS; number++) kill(members[number], SIGKILL);
    while (wait(NULL) > 0) {}
}

int main(int argc, char **argv) {
    need(argc >= 2, "arguments");
    const char *what = argv[1];
    if (!strcmp(what, "bomb")) bomb();
    else if (!strcmp(what, "zombies")) zombies();
    else if (!strcmp(what, "unwanted")) unwanted();
    else if (!strcmp(what, "chain")) chain();
    else if (!strcmp(what, "parked-chain")) parked_chain();
    else if (!strcmp(what, "bad-manners")) bad_manners();
    else if (!strcmp(what, "stopped")) stopped();
    else if (!strcmp(what, "war")) war();
    else if (!strcmp(what, "storm")) storm();
    else if (!strcmp(what, "heavy")) heavy(0);
    else if (!strcmp(what, "writing")) heavy(1), wait(NULL);
    else if (!strcmp(what, "left")) left();
    else if (!strcmp(what, "breed")) breed(argv[0]);
    else if (!strcmp(what, "arguments")) arguments(argv[0], 0);
    else if (!strcmp(what, "arguments-started")) arguments(argv[0], 1);
    else if (!strcmp(what, "threads")) threads();
    else if (!strcmp(what, "tables")) tables();
    else if (!strcmp(what, "sharers")) sharers();
    else if (!strcmp(what, "leases")) leases();
    else if (!strcmp(what, "mutexes")) mutexes();
    else need(0, "what?");
    printf("done\n");
    fflush(stdout);
    _exit(0);
}
