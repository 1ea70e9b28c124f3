// Queued signals: order, contents, who takes them, and what a wait that they pass by makes of it.
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static volatile sig_atomic_t taken, order[16], takers[16];
static siginfo_t last;

static void handler(int sig, siginfo_t *info, void *context) {
    (void)context;
    int at = taken;
    if (at < 16) {
        order[at] = sig;
        takers[at] = (int)syscall(SYS_gettid);
    }
    last = *info;
    taken = at + 1;
}

static void set(int sig, int flags, sigset_t *mask) {
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    if (mask) sa.sa_mask = *mask;
    sigaction(sig, &sa, NULL);
}

static long now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000l + ts.tv_nsec;
}

static void sleep_ms(long ms) {
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&ts, &ts) && errno == EINTR) {
    }
}

static volatile int ready, tid;

static void *blocked_sleeper(void *arg) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    ready = 1;
    struct timespec ts = {0, 60000000}, left;
    long start = now_ns();
    *(int *)arg = nanosleep(&ts, &left);
    if (now_ns() - start < 60000000) *(int *)arg = 77;
    return NULL;
}

static void *taker(void *arg) {
    tid = (int)syscall(SYS_gettid);
    ready = 1;
    while (taken == 0) sleep_ms(1);
    return arg;
}

static void *waiter(void *arg) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    tid = (int)syscall(SYS_gettid);
    ready = 1;
    siginfo_t *info = arg;
    return (void *)(long)sigwaitinfo(&set, info);
}

static void *sender(void *arg) {
    while (!ready) sleep_ms(1);
    sleep_ms(10);
    kill(getpid(), *(int *)arg);
    return NULL;
}

static pthread_t start(void *(*run)(void *), void *arg) {
    pthread_t thread;
    ready = 0;
    need(pthread_create(&thread, NULL, run, arg) == 0, "pthread_create");
    while (!ready) sleep_ms(1);
    return thread;
}

static int queue_to(int target, int sig, int code, int value) {
    siginfo_t info;
    memset(&info, 0, sizeof info);
    info.si_code = code;
    info.si_pid = getpid();
    info.si_value.sival_int = value;
    return (int)syscall(SYS_rt_tgsigqueueinfo, getpid(), target, sig, &info);
}

int main(void) {
    sigset_t all, some, old;
    siginfo_t info;
    struct timespec none = {0, 0}, soon = {0, 20000000};
    sigfillset(&all);

    section("order");
    const int sent[] = {SIGRTMIN + 3, SIGUSR2, SIGRTMIN + 1, SIGUSR1, SIGRTMIN + 3, SIGUSR1, SIGTERM};
    sigprocmask(SIG_BLOCK, &all, &old);
    for (int i = 0; i < 7; i++) {
        set(sent[i], 0, &all);
        SHOW(sigqueue(getpid(), sent[i], (union sigval){.sival_int = i}));
    }
    sigprocmask(SIG_SETMASK, &old, NULL);
    for (int i = 0; i < taken; i++) printf("%d ", order[i]);
    printf("\n");

    section("taken one by one");
    sigprocmask(SIG_BLOCK, &all, &old);
    for (int i = 0; i < 7; i++) sigqueue(getpid(), sent[i], (union sigval){.sival_int = i});
    int sig;
    while ((sig = sigtimedwait(&all, &info, &none)) > 0)
        printf("%d code %d value %d\n", sig, info.si_code, info.si_value.sival_int);
    SHOW(errno == EAGAIN);

    section("what may be queued");
    int self = (int)syscall(SYS_gettid);
    SHOW(queue_to(self, SIGUSR1, SI_QUEUE, 11));
    SHOW(sigtimedwait(&all, &info, &none) == SIGUSR1);
    printf("code %d value %d\n", info.si_code, info.si_value.sival_int);
    SHOW(queue_to(self, SIGUSR1, SI_USER, 12));
    SHOW(sigtimedwait(&all, &info, &none) == SIGUSR1);
    SHOW(queue_to(self, 0, SI_QUEUE, 0));
    FAILS(queue_to(self, 65, SI_QUEUE, 0), EINVAL);
    FAILS(queue_to(0x7ffffff0, SIGUSR1, SI_QUEUE, 0), ESRCH);
    FAILS(queue_to(-1, SIGUSR1, SI_QUEUE, 0), EINVAL);
    FAILS(syscall(SYS_rt_tgsigqueueinfo, getpid(), self, SIGUSR1, (void *)8), EFAULT);
    FAILS(syscall(SYS_tgkill, getpid(), 0x7ffffff0, SIGUSR1), ESRCH);
    FAILS(syscall(SYS_tgkill, -1, self, SIGUSR1), EINVAL);

    section("a signal that is ignored by default can be waited for");
    SHOW(kill(getpid(), SIGURG));
    SHOW(sigtimedwait(&all, &info, &none) == SIGURG);
    sigprocmask(SIG_SETMASK, &old, NULL);
    sigemptyset(&some);
    sigaddset(&some, SIGWINCH);
    sigprocmask(SIG_BLOCK, &some, NULL);
    int winch = SIGWINCH;
    ready = 1;
    pthread_t thread;
    pthread_create(&thread, NULL, sender, &winch);
    SHOW(sigwaitinfo(&some, &info) == SIGWINCH);
    pthread_join(thread, NULL);
    FAILS(sigtimedwait(&some, &info, &soon), EAGAIN);
    sigprocmask(SIG_UNBLOCK, &some, NULL);

    section("a wait for others is interrupted");
    taken = 0;
    set(SIGUSR1, SA_RESTART, NULL);
    int usr1 = SIGUSR1;
    pthread_create(&thread, NULL, sender, &usr1);
    sigemptyset(&some);
    sigaddset(&some, SIGRTMIN + 7);
    sigprocmask(SIG_BLOCK, &some, NULL);
    FAILS(sigwaitinfo(&some, &info), EINTR);
    SHOW(taken);
    pthread_join(thread, NULL);
    FAILS(sigtimedwait(&some, NULL, &(struct timespec){0, 1000000000}), EINVAL);

    section("a thread that waits takes it");
    sigemptyset(&some);
    sigaddset(&some, SIGRTMIN + 5);
    sigprocmask(SIG_BLOCK, &some, NULL);
    memset(&info, 0, sizeof info);
    thread = start(waiter, &info);
    sleep_ms(10);
    SHOW(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 99}));
    void *result;
    pthread_join(thread, &result);
    SHOW((long)result == SIGRTMIN + 5);
    SHOW(info.si_value.sival_int);

    section("to a thread");
    taken = 0;
    thread = start(taker, NULL);
    SHOW(queue_to(tid, SIGUSR1, SI_QUEUE, 5));
    pthread_join(thread, NULL);
    CHECK(takers[0] == tid && last.si_value.sival_int == 5);

    section("to whoever does not block it");
    taken = 0;
    sigemptyset(&some);
    sigaddset(&some, SIGUSR1);
    thread = start(taker, NULL);
    sigprocmask(SIG_BLOCK, &some, NULL);
    SHOW(kill(getpid(), SIGUSR1));
    pthread_join(thread, NULL);
    CHECK(takers[0] == tid);
    sigprocmask(SIG_UNBLOCK, &some, NULL);

    section("a thread that blocks everything sleeps on");
    taken = 0;
    int slept = -1;
    thread = start(blocked_sleeper, &slept);
    for (int i = 0; i < 5; i++) {
        kill(getpid(), SIGUSR1);
        sleep_ms(2);
    }
    pthread_join(thread, NULL);
    SHOW(slept);
    SHOW(taken);

    section("a thread's pending signals go with it, the process's stay");
    sigprocmask(SIG_BLOCK, &all, &old);
    raise(SIGUSR1);
    kill(getpid(), SIGUSR2);
    sigset_t pending;
    sigpending(&pending);
    SHOW(sigismember(&pending, SIGUSR1) && sigismember(&pending, SIGUSR2));
    signal(SIGUSR1, SIG_IGN);
    sigpending(&pending);
    SHOW(sigismember(&pending, SIGUSR1));
    SHOW(sigismember(&pending, SIGUSR2));
    SHOW(sigtimedwait(&all, &info, &none) == SIGUSR2);
    sigprocmask(SIG_SETMASK, &old, NULL);

    section("what comes while a wait for signals has one already stays pending");
    pid_t waiter = fork();
    if (!waiter) {
        signal(SIGUSR1, SIG_DFL);
        sigset_t both;
        sigemptyset(&both);
        sigaddset(&both, SIGUSR1);
        sigaddset(&both, SIGTERM);
        sigaddset(&both, SIGCHLD);
        sigprocmask(SIG_BLOCK, &both, NULL);
        int sum = 0;
        for (int i = 0; i < 3; i++) {
            int sig = 0;
            sigwait(&both, &sig);
            sum = sum * 32 + sig;
        }
        _exit(sum == (SIGUSR1 * 32 + SIGTERM) * 32 + SIGCHLD ? 5 : 6);
    }
    sleep_ms(30);
    kill(waiter, SIGUSR1);
    kill(waiter, SIGTERM);
    kill(waiter, SIGCHLD);
    int status = 0;
    CHECK(waitpid(waiter, &status, 0) == waiter);
    SHOW(status);
    return 0;
}
