// Lies in the call page, through which calls are answered without an exit: callpage WHAT ROUNDS [SEED]
//
// On software KVM the page is the program's to write; on hardware and on Linux it is not, and the first
// access ends this program. Nothing in it may do more than a plain call could, and none is made twice.
#include "hostile.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/time.h>

#define WORD(offset) (*(volatile uint64_t *)(CALL_PAGE + (offset)))
#define HALF(offset) (*(volatile uint32_t *)(CALL_PAGE + (offset)))
#define NR WORD(CALL_NR)
#define ARG(i) WORD(CALL_ARGS + 8 * (i))
#define POSTED HALF(CALL_POSTED)
#define ANSWERED WORD(CALL_ANSWERED)
#define ANSWER WORD(CALL_ANSWER)
#define MODE HALF(CALL_MODE)
#define SPIN WORD(CALL_SPIN_TICKS)
#define DEADLINE WORD(CALL_DEADLINE)
#define CAME_FROM WORD(CALL_CAME_FROM)

static volatile int stop, stopped;
static uint64_t seed = 1;

static void not_ours(int sig) {
    (void)sig;
    static const char text[] = "the page is not the program's\n";
    write(1, text, sizeof text - 1);
    _exit(0);
}

static void post(uint64_t nr, uint64_t a, uint64_t b, uint64_t c) {
    NR = nr;
    ARG(0) = a;
    ARG(1) = b;
    ARG(2) = c;
    POSTED++;
}

static void pause_for(int turns) {
    for (int i = 0; i < turns; i++) __asm__ volatile("pause");
}

static int bytes_in(int fd) {
    int n = -1;
    ioctl(fd, FIONREAD, &n);
    return n;
}

// Posts from outside of the stub and rewrites the request at once: at most one byte for each post.
static void rewrite(unsigned long rounds) {
    int ends[2];
    need(pipe(ends) == 0, "pipe");
    char *text = map(PAGE, PROT_READ | PROT_WRITE);
    unsigned long posts = 0, bytes = 0;
    for (unsigned long i = 0; i < rounds; i++) {
        post(SYS_write, (uint64_t)ends[1], (uint64_t)(uintptr_t)text, 1);
        posts++;
        for (int k = 0; k < 20; k++) {
            ARG(0) = k & 1 ? (uint64_t)ends[1] : ~0ul;
            ARG(1) = k & 2 ? 0xffff800000000000ul : CALL_PAGE;
            ARG(2) = k & 1;
            NR = k & 4 ? SYS_write : SYS_getpgrp;
            ANSWERED = (uint64_t)k << 32 | POSTED;
            ANSWER = ~0ul;
            pause_for(20);
        }
        if (i % 64 == 63) {
            sched_yield();
            int n = bytes_in(ends[0]);
            need(n >= 0, "FIONREAD");
            char sink[65536];
            if (n > 0) bytes += (unsigned long)read(ends[0], sink, sizeof sink);
        }
    }
    int n = bytes_in(ends[0]);
    bytes += n > 0 ? (unsigned long)n : 0;
    printf("%s\n", bytes <= posts ? "no more bytes than posts" : "MORE BYTES THAN POSTS");
}

// Every call number with odd arguments, posted and not waited for.
static void numbers(unsigned long rounds) {
    uint64_t state = seed;
    for (unsigned long i = 0; i < rounds; i++) {
        uint64_t nr = next_random(&state) % 600;
        // Not those that end or stop the program by themselves.
        switch (nr) {
            case SYS_exit: case SYS_exit_group: case SYS_kill: case SYS_tgkill: case SYS_tkill: case SYS_pause:
            case SYS_rt_sigsuspend: case SYS_rt_sigqueueinfo: case SYS_rt_tgsigqueueinfo: case SYS_munmap:
            case SYS_mprotect: case SYS_mmap: case SYS_mremap: case SYS_madvise: case SYS_brk: case SYS_alarm:
            case SYS_setitimer: case SYS_timer_settime: case SYS_rt_sigprocmask: case SYS_close:
            case SYS_close_range: case SYS_dup2: case SYS_dup3: case SYS_setrlimit: case SYS_prlimit64:
                nr = SYS_getpgrp;
        }
        post(nr, next_random(&state) >> (next_random(&state) & 63), next_random(&state) & 0xffff, 0);
        pause_for((int)(i % 200));
        if (i % 16 == 0) POSTED = (uint32_t)next_random(&state);
        if (i % 64 == 0) need(syscall(SYS_getpgrp) >= 0, "getpgrp");
    }
    printf("posted\n");
}

extern const unsigned char __executable_start[], etext[];

// Says of every place in the text, and of some elsewhere, that calls come from there. The text is changed
// only where it makes that very call: everything still works.
static void places(unsigned long rounds) {
    uint64_t state = seed;
    uint64_t start = (uint64_t)(uintptr_t)__executable_start, end = (uint64_t)(uintptr_t)etext;
    uint64_t odd[] = {1, PAGE, start, end, CALL_PAGE, SYSCALL_CODE + 64, 0xffffffff81000000ul, ~0ul, 1ul << 47};
    char *copy = map(PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    memcpy(copy, "\x90\x90\x90\x90\xb8\x6f\0\0\0\x0f\x05\xc3", 12);
    for (unsigned long i = 0; i < rounds; i++) {
        for (uint64_t k = 0; k < 64; k++) {
            static const uint64_t numbers[] = {SYS_getpgrp, SYS_read, SYS_write, 0xffff};
            CAME_FROM = k == 0   ? odd[i % (sizeof odd / sizeof *odd)]
                        : k == 1 ? (uint64_t)(uintptr_t)copy + 11
                                 : start + next_random(&state) % (end - start);
            post(numbers[i % 4], ~0ul, 0, 0);
            pause_for(50);
        }
        need(syscall(SYS_getpgrp) >= 0 && getpgid(0) >= 0, "getpgrp");
        need(read(-1, copy, 1) < 0 && errno == EBADF, "read");
    }
    need(!memcmp(copy, "\x90\x90\x90\x90\xb8", 5), "what is not a file's text is not changed");
    printf("placed\n");
}

static void *scribble(void *unused) {
    (void)unused;
    uint64_t state = ~seed;
    while (!stop) {
        for (uint64_t at = 0; at < 160; at += 8) WORD(at) = next_random(&state);
        ANSWERED = POSTED;
        SPIN = next_random(&state) & 0xffffff;
        MODE = (uint32_t)next_random(&state) & 1;
    }
    stopped = 1;
    return NULL;
}

// Threads that make plain calls while another writes nonsense into the page.
static void threads(unsigned long rounds) {
    pthread_t thread;
    need(pthread_create(&thread, NULL, scribble, NULL) == 0, "pthread_create");
    unsigned long wrong = 0;
    for (unsigned long i = 0; i < rounds; i++) {
        // The stub's own waits may be cut short or answered wrongly: the program did that to itself.
        long r = raw6(SYS_getpgrp, 0, 0, 0, 0, 0, 0);
        if (r < 0) wrong++;
        if (i % 32 == 0) sched_yield();
    }
    stop = 1;
    // A new ticket has whatever call stands in the page made for its thread. That must not be one that
    // waits, as pthread_join's: the thread would wait for its own end.
    while (!stopped) sched_yield();
    pthread_join(thread, NULL);
    fprintf(stderr, "%lu wrong\n", wrong);
    printf("done\n");
}

// Has file contents read into memory that nobody has touched, in steps, and uses it at once, also when
// told to leave: its pages may lie in a slot that the VM does not know yet.
static void stay(unsigned long rounds) {
    int fd = open("callpage", O_RDONLY);
    need(fd >= 0, "open");
    enum { STEP = 256 << 10 };
    size_t len = 96ul << 20;
    char *memory = map(len, PROT_READ | PROT_WRITE);
    unsigned long told = 0, sum = 0;
    for (size_t at = 0; at < len && rounds--; at += STEP) {
        NR = SYS_pread64;
        ARG(0) = (uint64_t)fd;
        ARG(1) = (uint64_t)(uintptr_t)(memory + at);
        ARG(2) = STEP;
        ARG(3) = 0;
        uint32_t ticket = ++POSTED;
        for (int i = 0; i < 100000 && (uint32_t)ANSWERED != ticket; i++) __asm__ volatile("pause");
        if ((uint32_t)ANSWERED != ticket) {
            // Nobody looked: by exit then.
            pread(fd, memory + at, STEP, 0);
            continue;
        }
        // What was mapped ahead with it, too.
        size_t more = ANSWERED >> 32 ? 8ul << 20 : STEP;
        told += more != STEP;
        for (size_t page = 0; page < more && at + page < len; page += PAGE) sum += (unsigned char)memory[at + page];
    }
    fprintf(stderr, "told to leave %lu times, %lu\n", told, sum);
}

int main(int argc, char **argv) {
    need(argc >= 3, "arguments");
    if (argc > 3) seed = strtoul(argv[3], NULL, 0) | 1;
    struct sigaction action = {.sa_handler = not_ours};
    sigaction(SIGSEGV, &action, NULL);
    (void)POSTED;
    POSTED = POSTED;
    action.sa_handler = SIG_DFL;
    sigaction(SIGSEGV, &action, NULL);
    unsigned long rounds = strtoul(argv[2], NULL, 0);
    const char *what = argv[1];
    if (!strcmp(what, "rewrite")) rewrite(rounds);
    else if (!strcmp(what, "numbers")) numbers(rounds);
    else if (!strcmp(what, "threads")) threads(rounds);
    else if (!strcmp(what, "places")) places(rounds);
    else if (!strcmp(what, "stay")) stay(rounds);
    else if (!strcmp(what, "never-stop")) {
        for (;;) post(SYS_getpgrp, 0, 0, 0);
    } else if (!strcmp(what, "wait-for-ever")) {
        // The stub waits without a limit for an answer to a ticket that moves away.
        SPIN = ~0ul >> 1;
        MODE = 1;
        for (;;) raw6(SYS_getpgrp, 0, 0, 0, 0, 0, 0);
    } else need(0, "what");
    need(getpid() > 0 && raw6(SYS_getpgrp, 0, 0, 0, 0, 0, 0) >= 0, "getpgrp");
    printf("alive\n");
    return 0;
}
