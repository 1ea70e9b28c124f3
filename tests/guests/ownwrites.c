// Has whoever answers its calls write to its memory, in each way that a call or a signal has: to memory that was there
// when it was frozen. `look` says what is there.
#define REQUEST_MAX 4096
#define ANSWER_MAX 65536
#include "service.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

enum { PAGE = 4096, PAGES = 32, STACK_PAGES = 8 };
enum { READ_AT = 0, STACK_AT = 4, WAKE_AT = 12, PI_AT = 14, ROBUST_AT = 16, TID_AT = 18, STAT_AT = 20 };
enum { TIME_AT = 22, PIPE_AT = 24, WAIT_AT = 26, STORED_AT = 28 };

static _Alignas(PAGE) unsigned char area[PAGES][PAGE];
static int handled;

static void handler(int number, siginfo_t *info, void *context) {
    (void)context;
    handled += number == SIGUSR1 && info->si_code == SI_TKILL;
}

static uint32_t *word(int page) { return (uint32_t *)&area[page][PAGE / 2]; }

static void read_into_memory(void) {
    int fds[2];
    need(pipe(fds) == 0, "pipe");
    static const char text[2 * PAGE + 100] = "from a pipe";
    need(write(fds[1], text, sizeof text) == sizeof text, "write");
    // Across the end of a page, and in pieces.
    struct iovec pieces[] = {{&area[READ_AT][PAGE - 50], PAGE}, {area[READ_AT + 2], PAGE + 100}};
    say("%zd %s\n", readv(fds[0], pieces, 2), &area[READ_AT][PAGE - 50]);
    close(fds[0]);
    close(fds[1]);
}

static void take_a_signal(void) {
    stack_t stack = {.ss_sp = area[STACK_AT], .ss_size = STACK_PAGES * PAGE}, before;
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    need(sigaltstack(&stack, &before) == 0 && sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");
    raise(SIGUSR1);
    need(sigaltstack(&before, NULL) == 0, "sigaltstack");
    say("%d\n", handled);
}

static void change_futex_words(void) {
    uint32_t *wake = word(WAKE_AT), *pi = word(PI_AT);
    long op = FUTEX_OP(FUTEX_OP_SET, 77, FUTEX_OP_CMP_EQ, 0);
    long woken = syscall(SYS_futex, word(WAKE_AT + 1), FUTEX_WAKE_OP, 1, 1L, wake, op);
    long locked = syscall(SYS_futex, pi, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
    say("%ld %u %ld %d\n", woken, *wake, locked, *pi == (uint32_t)syscall(SYS_gettid));
}

static void *dies_with_a_lock(void *mutex) {
    pthread_mutex_lock(mutex);
    return NULL;
}

static void leave_a_robust_lock(void) {
    pthread_mutex_t *mutex = (pthread_mutex_t *)&area[ROBUST_AT][PAGE / 2];
    pthread_mutexattr_t robust;
    pthread_mutexattr_init(&robust);
    pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(mutex, &robust);
    pthread_t thread;
    need(pthread_create(&thread, NULL, dies_with_a_lock, mutex) == 0, "pthread_create");
    pthread_join(thread, NULL);
    say("%s\n", errno_name(pthread_mutex_lock(mutex)));
}

static void *clears_its_id(void *at) {
    syscall(SYS_set_tid_address, at);
    return NULL;
}

static void clear_an_id(void) {
    pthread_t thread;
    uint32_t *id = word(TID_AT);
    *id = 5;
    need(pthread_create(&thread, NULL, clears_its_id, id) == 0, "pthread_create");
    while (__atomic_load_n(id, __ATOMIC_SEQ_CST) != 0) sched_yield();
    say("%u\n", *id);
}

static void take_answers(void) {
    struct stat *about = (struct stat *)area[STAT_AT];
    struct timespec *time = (struct timespec *)&area[TIME_AT][PAGE - 8];
    int *fds = (int *)area[PIPE_AT], *status = (int *)area[WAIT_AT];
    say("%d ", syscall(SYS_stat, "/", about) == 0);
    say("%ld ", syscall(SYS_clock_gettime, CLOCK_MONOTONIC, time));
    say("%ld ", syscall(SYS_pipe2, fds, 0));
    close(fds[0]);
    close(fds[1]);
    pid_t child = fork();
    need(child >= 0, "fork");
    if (child == 0) _exit(3);
    say("%d ", waitpid(child, status, 0) == child && *status == 3 << 8);
    say("%ld\n", syscall(SYS_getrandom, area[STORED_AT], 64, 0));
}

static void answer(void) {
    char *rest;
    if (is_verb("read", &rest)) read_into_memory();
    else if (is_verb("signal", &rest)) take_a_signal();
    else if (is_verb("futex", &rest)) change_futex_words();
    else if (is_verb("robust", &rest)) leave_a_robust_lock();
    else if (is_verb("thread", &rest)) clear_an_id();
    else if (is_verb("answers", &rest)) take_answers();
    else if (is_verb("look", &rest)) {
        uint64_t hash = FNV_START;
        for (int page = 0; page < PAGES; page++) hash = fnv(hash, area[page], PAGE);
        say("%d %llx\n", handled, (unsigned long long)hash);
    }
}

int main(void) {
    for (int page = 0; page < PAGES; page++) memset(area[page], 'a' + page % 8, PAGE);
    for (int page = WAKE_AT; page < ROBUST_AT; page++) *word(page) = 0;
    for (;;) {
        next_request();
        answer();
        send_answer();
    }
}
