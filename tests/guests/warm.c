// A warmed program: it fills its heap, then serves messages, and has functions to be called by name.
#include "service.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#define WARM_PAGES 4096
#define PAGE 4096

static unsigned char *heap;
static unsigned long requests;
static __thread unsigned long thread_requests = 7;
static unsigned char *wiped;
static int data_fd = -1;
static int pipe_fds[2];
static int event_fd;

// ---- called by name ----

int add(int a, int b) { return a + b; }
long add_eight(long a, long b, long c, long d, long e, long f) { return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f; }
unsigned long sum(const char *data, size_t len) {
    unsigned long total = 0;
    for (size_t i = 0; i < len; i++) total += (unsigned char)data[i];
    return total;
}
int upper(char *text) {
    int changed = 0;
    for (; *text; text++)
        if (*text >= 'a' && *text <= 'z') *text -= 32, changed++;
    return changed;
}
const char *name(void) { return "warm"; }
double scale(double value, double factor) { return value * factor; }
double mixed(double a, int b, double c, const char *text) { return a + b + c + (double)strlen(text); }
unsigned long count_call(void) { return ++requests; }
long call_and_print(const char *text) {
    printf("called with %s\n", text);
    fflush(stdout);
    return (long)strlen(text);
}
void nothing(void) {}
int is_null(const void *pointer) { return pointer == NULL; }
void spin_for_ever(void) {
    for (volatile unsigned long i = 0;; i++) {}
}
void crash(void) { *(volatile int *)8 = 1; }
long sleep_ms(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    return nanosleep(&time, NULL);
}
int answer_from_call(const char *text) { return kvmlet_send(text, strlen(text)); }
const char *no_string(void) { return (const char *)16; }

// ---- requests ----

// Writes `count` pages of the warmed heap and answers what was in them: always what the warm-up wrote.
static void dirty(unsigned long count) {
    unsigned long wrong = 0;
    if (count > WARM_PAGES) count = WARM_PAGES;
    for (unsigned long i = 0; i < count; i++) {
        unsigned char *page = heap + (i * 1021 % WARM_PAGES) * PAGE;
        if (page[i % PAGE] != (unsigned char)(i * 1021 % WARM_PAGES * 7 + i % PAGE)) wrong++;
        page[i % PAGE] ^= 0xff;
        page[(i + 2048) % PAGE]++;
    }
    say("dirty %lu wrong %lu", count, wrong);
}

static void churn(unsigned long rounds) {
    enum { SLOTS = 64 };
    unsigned char *blocks[SLOTS] = {0};
    size_t sizes[SLOTS] = {0};
    uint64_t state = 88172645463325252ull, hash = FNV_START;
    for (unsigned long i = 0; i < rounds; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        unsigned slot = state % SLOTS;
        if (blocks[slot]) hash = fnv(hash, blocks[slot], sizes[slot] < 64 ? sizes[slot] : 64);
        free(blocks[slot]);
        sizes[slot] = (state >> 8) % (i % 16 == 0 ? 300000 : 3000) + 1;
        blocks[slot] = malloc(sizes[slot]);
        memset(blocks[slot], (int)(state >> 20), sizes[slot]);
    }
    for (unsigned slot = 0; slot < SLOTS; slot++) free(blocks[slot]);
    say("churn %016llx", (unsigned long long)hash);
}

static void write_file(char *rest) {
    char *text = strchr(rest, ' ');
    if (!text) text = rest + strlen(rest);
    else *text++ = 0;
    int fd = open(rest, O_RDWR | O_CREAT | O_APPEND, 0600);
    if (fd < 0) {
        say("%s: %s", rest, errno_name(errno));
        return;
    }
    ssize_t put = write(fd, text, strlen(text));
    char back[256];
    ssize_t got = pread(fd, back, sizeof back, 0);
    say("file %zd %zd %.*s", put, got, (int)(got < 0 ? 0 : got), back);
    close(fd);
}

static void *idle_thread(void *unused) {
    while (unused == NULL) pause();
    return NULL;
}

static void on_signal(int number) { (void)number; }

// Changes all that a program can change of itself, and leaves it so.
static void leave_traces(void) {
    mkdir("/tmp/traces", 0700);
    chdir("/tmp/traces");
    for (int i = 0; i < 20; i++) {
        char path[64];
        snprintf(path, sizeof path, "/tmp/traces/file%d", i);
        int fd = open(path, O_RDWR | O_CREAT, 0644);
        for (int j = 0; j < i; j++) write(fd, path, sizeof path);
        ftruncate(fd, 3 * PAGE);
        if (i % 3 == 0) mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (i % 2) close(fd);
    }
    int ends[2];
    if (pipe(ends) == 0) write(ends[1], "traces", 6);
    write(pipe_fds[1], "more", 4);
    write(event_fd, &(uint64_t){5}, 8);
    lseek(data_fd, 17, SEEK_SET);
    fcntl(data_fd, F_SETFL, O_APPEND | O_NONBLOCK);
    flock(data_fd, LOCK_EX);
    rename("/tmp/warm/data", "/tmp/warm/renamed");
    int fd = open("/tmp/warm/second", O_RDWR);
    ftruncate(fd, 3);
    dup2(fd, 100);
    close(event_fd);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    for (int number = 20; number < 40; number++) sigaction(number, &action, NULL);
    sigset_t set;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR1);
    sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 77});
    stack_t stack = {.ss_sp = malloc(SIGSTKSZ), .ss_size = SIGSTKSZ};
    sigaltstack(&stack, NULL);
    struct itimerval interval = {{1000, 0}, {1000, 0}};
    setitimer(ITIMER_REAL, &interval, NULL);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2};
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    struct itimerspec spec = {{500, 0}, {500, 0}};
    timer_settime(timer, 0, &spec, NULL);
    struct rlimit limit = {64, 64};
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){512, 512});
    setrlimit(RLIMIT_STACK, &limit);
    prctl(PR_SET_NAME, "traces");
    umask(0123);
    setenv("TRACES", "left", 1);
    for (int i = 0; i < 4; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, idle_thread, NULL);
    }
    sbrk(1 << 20);
    memset((char *)sbrk(0) - 70000, 9, 60000);
    munmap(heap + 100 * PAGE, 50 * PAGE);
    mprotect(heap + 300 * PAGE, 30 * PAGE, PROT_READ);
    mprotect(heap + 400 * PAGE, 30 * PAGE, PROT_NONE);
    madvise(heap + 500 * PAGE, 100 * PAGE, MADV_DONTNEED);
    mremap(heap + 700 * PAGE, 100 * PAGE, 200 * PAGE, MREMAP_MAYMOVE);
    mmap(heap + 900 * PAGE, 20 * PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(heap + 900 * PAGE, 0xee, 20 * PAGE);
    mmap(heap + 1000 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE, fd, 0);
    char *fresh = mmap(NULL, 6 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(fresh, 0xdd, 6 << 20);
    mprotect((void *)((uintptr_t)say_self & ~(PAGE - 1ul)), PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    unsigned mxcsr = 0x7f80;
    unsigned short control = 0x0b7f;
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    __asm__ volatile("fldcw %0" : : "m"(control));
    thread_requests = 99;
    memset(wiped, 0x77, 2 * PAGE);
    say("left");
}

static void eat(void) {
    for (;;) {
        char *more = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (more == MAP_FAILED) {
            say("eat: %s", errno_name(errno));
            return;
        }
        memset(more, 1, 1 << 20);
    }
}

static int all_are(const unsigned char *data, size_t len, unsigned char want) {
    for (size_t i = 0; i < len; i++)
        if (data[i] != want) return 0;
    return 1;
}

static void serve(void) {
    char *rest;
    requests++;
    thread_requests++;
    if (is_verb("echo", &rest)) say_bytes(rest, request_len - (size_t)(rest - request_text));
    else if (is_verb("count", &rest)) say("count %lu %lu", requests, thread_requests);
    else if (is_verb("dirty", &rest)) dirty(strtoul(rest, NULL, 0));
    else if (is_verb("churn", &rest)) churn(strtoul(rest, NULL, 0));
    else if (is_verb("file", &rest)) write_file(rest);
    else if (is_verb("see", &rest)) say_self(rest);
    else if (is_verb("traces", &rest)) leave_traces();
    else if (is_verb("generation", &rest)) say("%llu", (unsigned long long)kvmlet_generation());
    else if (is_verb("peek", &rest)) {
        char *len;
        const void *from = (const void *)strtoul(rest, &len, 16);
        say_bytes(from, strtoul(len, NULL, 16));
    } else if (is_verb("wiped", &rest))
        say("first %s second %s", all_are(wiped, PAGE, 0) ? "zero" : "kept",
            all_are(wiped + PAGE, PAGE, 0x55) ? "kept" : "changed");
    else if (is_verb("seek", &rest)) say("seek %ld", (long)lseek(atoi(rest), strchr(rest, ' ') ? atol(strchr(rest, ' ')) : 0, SEEK_SET));
    else if (is_verb("where", &rest)) say("where %ld", (long)lseek(atoi(rest), 0, SEEK_CUR));
    else if (is_verb("pull", &rest)) {
        char bytes[64];
        ssize_t got = read(atoi(rest), bytes, 8);
        say("pull %zd %.*s", got, (int)(got < 0 ? 0 : got), bytes);
    } else if (is_verb("data", &rest)) say("%d %d %d", data_fd, pipe_fds[0], pipe_fds[1]);
    else if (is_verb("push", &rest)) say("push %zd", write(pipe_fds[1], rest, strlen(rest)));
    else if (is_verb("print", &rest)) {
        printf("%s\n", rest);
        fflush(stdout);
        fprintf(stderr, "err %s\n", rest);
        say("printed");
    } else if (is_verb("crash", &rest)) crash();
    else if (is_verb("abort", &rest)) abort();
    else if (is_verb("exit", &rest)) exit(atoi(rest));
    else if (is_verb("spin", &rest)) spin_for_ever();
    else if (is_verb("eat", &rest)) eat();
    else if (is_verb("silent", &rest)) return;
    else if (is_verb("twice", &rest)) {
        say("first");
        send_answer();
        say("second");
    } else if (is_verb("exec", &rest)) {
        char *words[] = {"/proc/self/exe", "again", NULL};
        execv(words[0], words);
        say("exec: %s", errno_name(errno));
    } else if (is_verb("pid", &rest)) say("%d", getpid());
    else say("what? %s", request_text);
    send_answer();
}

int main(int argc, char **argv) {
    (void)argv;
    if (argc > 1) {
        // What an execve made of a fork: no warm-up.
        say("executed");
        send_answer();
        for (;;) next_request();
    }
    heap = mmap(NULL, WARM_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < WARM_PAGES * (size_t)PAGE; i++) heap[i] = (unsigned char)(i / PAGE * 7 + i % PAGE);
    wiped = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(wiped, 0x55, 2 * PAGE);
    if (madvise(wiped, PAGE, MADV_WIPEONFORK) != 0) say("MADV_WIPEONFORK: %s\n", errno_name(errno));
    mkdir("/tmp/warm", 0755);
    data_fd = open("/tmp/warm/data", O_RDWR | O_CREAT, 0644);
    write(data_fd, "0123456789abcdefghijklmnopqrstuvwxyz", 36);
    lseek(data_fd, 5, SEEK_SET);
    int second = open("/tmp/warm/second", O_RDWR | O_CREAT, 0644);
    write(second, "second file", 11);
    close(second);
    if (pipe(pipe_fds) != 0) return 96;
    write(pipe_fds[1], "pipe", 4);
    event_fd = eventfd(3, EFD_NONBLOCK);
    void *blocks[200];
    for (int i = 0; i < 200; i++) blocks[i] = malloc((size_t)(i * 37 % 5000 + 1));
    for (int i = 0; i < 200; i += 2) free(blocks[i]);
    for (;;) {
        next_request();
        serve();
    }
}
