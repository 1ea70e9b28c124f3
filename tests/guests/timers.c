// timer_create and its kin: what is refused, what a signal carries, overruns, clocks, threads, exec.
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static volatile sig_atomic_t count, handler_tid;
static siginfo_t last;

static void handler(int sig, siginfo_t *info, void *context) {
    (void)sig;
    (void)context;
    last = *info;
    count++;
    handler_tid = (sig_atomic_t)syscall(SYS_gettid);
}

// The calls themselves: the C library's ids are its own.
static int create(clockid_t clock, struct sigevent *event, int *id) {
    return (int)syscall(SYS_timer_create, clock, event, id);
}

static int settime(int id, int flags, const struct itimerspec *new, struct itimerspec *old) {
    return (int)syscall(SYS_timer_settime, id, flags, new, old);
}

static int gettime(int id, struct itimerspec *now) { return (int)syscall(SYS_timer_gettime, id, now); }
static int overrun(int id) { return (int)syscall(SYS_timer_getoverrun, id); }
static int delete(int id) { return (int)syscall(SYS_timer_delete, id); }

static struct itimerspec span(long value_ns, long interval_ns) {
    return (struct itimerspec){{interval_ns / 1000000000, interval_ns % 1000000000},
                               {value_ns / 1000000000, value_ns % 1000000000}};
}

static int arm(int id, long value_ns, long interval_ns) {
    struct itimerspec new = span(value_ns, interval_ns);
    return settime(id, 0, &new, NULL);
}

static long now_ns(clockid_t clock) {
    struct timespec ts;
    clock_gettime(clock, &ts);
    return ts.tv_sec * 1000000000l + ts.tv_nsec;
}

static void burn(long ns) {
    long end = now_ns(CLOCK_THREAD_CPUTIME_ID) + ns;
    while (now_ns(CLOCK_THREAD_CPUTIME_ID) < end) {
    }
}

static void sleep_ns(long ns) {
    struct timespec ts = {ns / 1000000000, ns % 1000000000};
    while (nanosleep(&ts, &ts) && errno == EINTR) {
    }
}

static void wait_for(int wanted) {
    while (count < wanted) sleep_ns(1000000);
}

static void set(int sig) {
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigaction(sig, &sa, NULL);
}

static void *receiver(void *arg) {
    *(int *)arg = (int)syscall(SYS_gettid);
    while (count == 0) sleep_ns(1000000);
    return NULL;
}

static void *cpu_clock_of(void *arg) {
    clockid_t clock;
    pthread_getcpuclockid(pthread_self(), &clock);
    *(clockid_t *)arg = clock;
    while (count == 0) {
    }
    return NULL;
}

int main(int argc, char **argv) {
    int id = -1, second = -1;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 4711};
    struct sigevent quiet = {.sigev_notify = SIGEV_NONE};
    struct itimerspec its;
    sigset_t usr1, usr2, alrm;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigemptyset(&usr2);
    sigaddset(&usr2, SIGUSR2);
    sigemptyset(&alrm);
    sigaddset(&alrm, SIGALRM);

    if (argc > 1) {
        section("after exec");
        FAILS(gettime(0, &its), EINVAL);
        FAILS(gettime(atoi(argv[1]), &its), EINVAL);
        sigset_t pending;
        sigpending(&pending);
        SHOW(sigismember(&pending, SIGUSR1));
        SHOW(sigismember(&pending, SIGUSR2));
        SHOW(sigismember(&pending, SIGALRM));
        int ignored;
        SHOW(sigwait(&alrm, &ignored));
        SHOW(ignored == SIGALRM);
        return 0;
    }

    section("what is refused");
    FAILS(create(10, NULL, &id), EINVAL);
    FAILS(create(77, NULL, &id), EINVAL);
    FAILS(create(CLOCK_MONOTONIC_RAW, NULL, &id), EOPNOTSUPP);
    FAILS(create(CLOCK_REALTIME_COARSE, NULL, &id), EOPNOTSUPP);
    FAILS(create(CLOCK_MONOTONIC_COARSE, NULL, &id), EOPNOTSUPP);
    FAILS(create(CLOCK_MONOTONIC, (void *)8, &id), EFAULT);
    FAILS(create(CLOCK_MONOTONIC, &(struct sigevent){.sigev_notify = 3}, &id), EINVAL);
    FAILS(create(CLOCK_MONOTONIC, &(struct sigevent){.sigev_signo = 0}, &id), EINVAL);
    FAILS(create(CLOCK_MONOTONIC, &(struct sigevent){.sigev_signo = 65}, &id), EINVAL);
    FAILS(create(CLOCK_MONOTONIC, &(struct sigevent){.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1}, &id),
          EINVAL);
    FAILS(gettime(77, &its), EINVAL);
    FAILS(overrun(77), EINVAL);
    FAILS(delete(77), EINVAL);
    FAILS(settime(77, 0, &its, NULL), EINVAL);
    FAILS(settime(77, 0, NULL, NULL), EINVAL);

    section("a timer that tells nobody");
    SHOW(create(CLOCK_MONOTONIC, &quiet, &id));
    SHOW(gettime(id, &its));
    CHECK(its.it_value.tv_sec == 0 && its.it_value.tv_nsec == 0 && its.it_interval.tv_sec == 0);
    SHOW(arm(id, 3600l * 1000000000, 7200l * 1000000000));
    SHOW(gettime(id, &its));
    CHECK(its.it_value.tv_sec >= 3500 && its.it_value.tv_sec <= 3600 && its.it_interval.tv_sec == 7200);
    struct itimerspec old, bad = {{0, 0}, {0, 1000000000}};
    FAILS(settime(id, 0, &bad, NULL), EINVAL);
    bad = (struct itimerspec){{-1, 0}, {0, 0}};
    FAILS(settime(id, 0, &bad, NULL), EINVAL);
    FAILS(settime(id, 0, (void *)8, NULL), EFAULT);
    FAILS(gettime(id, (void *)8), EFAULT);
    its = span(0, 0);
    SHOW(settime(id, 0, &its, &old));
    CHECK(old.it_value.tv_sec >= 3500 && old.it_interval.tv_sec == 7200);
    SHOW(gettime(id, &its));
    CHECK(its.it_interval.tv_sec == 0);
    arm(id, 1, 0);
    sleep_ns(1000000);
    SHOW(gettime(id, &its));
    CHECK(its.it_value.tv_sec == 0 && its.it_value.tv_nsec == 0);
    arm(id, 1, 1000000000);
    sleep_ns(1000000);
    SHOW(gettime(id, &its));
    CHECK(its.it_value.tv_sec <= 1 && (its.it_value.tv_sec || its.it_value.tv_nsec) && its.it_interval.tv_sec == 1);
    SHOW(overrun(id));
    SHOW(delete(id));
    FAILS(delete(id), EINVAL);

    section("what the signal carries");
    set(SIGUSR1);
    set(SIGALRM);
    SHOW(create(CLOCK_MONOTONIC, &event, &id));
    SHOW(arm(id, 1000000, 0));
    wait_for(1);
    CHECK(last.si_signo == SIGUSR1 && last.si_code == SI_TIMER && last.si_value.sival_int == 4711);
    CHECK(last.si_timerid == id && last.si_overrun == 0 && last.si_errno == 0);
    SHOW(overrun(id));
    SHOW(gettime(id, &its));
    CHECK(its.it_value.tv_sec == 0 && its.it_value.tv_nsec == 0);
    SHOW(create(CLOCK_REALTIME, NULL, &second));
    CHECK(second == id + 1);
    count = 0;
    SHOW(arm(second, 1, 0));
    wait_for(1);
    CHECK(last.si_signo == SIGALRM && last.si_value.sival_int == second && last.si_timerid == second);
    SHOW(delete(second));

    section("overruns");
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    count = 0;
    SHOW(arm(id, 2000000, 2000000));
    sleep_ns(50000000);
    SHOW(gettime(id, &its));
    CHECK(its.it_value.tv_sec == 0 && its.it_value.tv_nsec > 0 && its.it_value.tv_nsec <= 2000000);
    siginfo_t info;
    SHOW(sigwaitinfo(&usr1, &info) == SIGUSR1);
    CHECK(info.si_code == SI_TIMER && info.si_overrun >= 23 && info.si_overrun < 100000);
    CHECK(overrun(id) == info.si_overrun);
    SHOW(sigwaitinfo(&usr1, &info) == SIGUSR1);
    CHECK(info.si_overrun == overrun(id));
    SHOW(arm(id, 0, 0));
    struct timespec none = {0, 0};
    while (sigtimedwait(&usr1, &info, &none) > 0) {
    }
    SHOW(overrun(id));
    SHOW(count);
    sigprocmask(SIG_UNBLOCK, &usr1, NULL);

    section("two timers with one signal");
    SHOW(create(CLOCK_BOOTTIME, &event, &second));
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    arm(id, 1, 0);
    arm(second, 1, 0);
    sleep_ns(5000000);
    int seen = 0;
    while (sigtimedwait(&usr1, &info, &none) > 0) seen += 1;
    SHOW(seen);
    sigprocmask(SIG_UNBLOCK, &usr1, NULL);
    SHOW(delete(second));

    section("many expiries");
    count = 0;
    SHOW(arm(id, 1000000, 1000000));
    wait_for(20);
    SHOW(arm(id, 0, 0));
    CHECK(count >= 20);

    section("absolute times");
    static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI};
    for (int i = 0; i < 4; i++) {
        SHOW(create(clocks[i], &event, &second));
        count = 0;
        long until = now_ns(clocks[i]) + 5000000;
        its = span(until, 0);
        SHOW(settime(second, TIMER_ABSTIME, &its, NULL));
        wait_for(1);
        CHECK(now_ns(clocks[i]) >= until);
        its = span(1, 0);
        SHOW(settime(second, TIMER_ABSTIME, &its, NULL));
        wait_for(2);
        SHOW(delete(second));
    }

    section("a chosen thread");
    pthread_t thread;
    volatile int tid = 0;
    count = 0;
    need(pthread_create(&thread, NULL, receiver, (void *)&tid) == 0, "pthread_create");
    while (!tid) sleep_ns(1000000);
    struct sigevent directed = event;
    directed.sigev_notify = SIGEV_THREAD_ID;
    directed.sigev_notify_thread_id = tid;
    SHOW(create(CLOCK_MONOTONIC, &directed, &second));
    SHOW(arm(second, 1000000, 0));
    pthread_join(thread, NULL);
    CHECK(handler_tid == tid);
    SHOW(delete(second));

    section("CPU time");
    count = 0;
    SHOW(create(CLOCK_PROCESS_CPUTIME_ID, &event, &second));
    SHOW(arm(second, 20000000, 0));
    sleep_ns(30000000);
    SHOW(count);
    // A busy host looks at such timers late.
    for (int tries = 0; tries < 100 && !count; tries++) burn(60000000);
    SHOW(count);
    SHOW(delete(second));
    count = 0;
    SHOW(create(CLOCK_THREAD_CPUTIME_ID, &event, &second));
    SHOW(arm(second, 10000000, 10000000));
    while (count < 3) burn(1000000);
    SHOW(delete(second));
    count = 0;
    volatile clockid_t clock = 0;
    need(pthread_create(&thread, NULL, cpu_clock_of, (void *)&clock) == 0, "pthread_create");
    while (!clock) sleep_ns(1000000);
    SHOW(create(clock, &event, &second));
    SHOW(arm(second, 20000000, 0));
    pthread_join(thread, NULL);
    CHECK(count == 1);

    section("sleeps on clocks");
    static const clockid_t sleeping[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI};
    for (int i = 0; i < 4; i++) {
        long until = now_ns(sleeping[i]) + 3000000;
        struct timespec ts = {until / 1000000000, until % 1000000000};
        SHOW(syscall(SYS_clock_nanosleep, sleeping[i], TIMER_ABSTIME, &ts, NULL));
        CHECK(now_ns(sleeping[i]) >= until);
    }
    struct timespec ts = {0, 1};
    FAILS(syscall(SYS_clock_nanosleep, CLOCK_THREAD_CPUTIME_ID, 0, &ts, NULL), EOPNOTSUPP);
    FAILS(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC_RAW, 0, &ts, NULL), EOPNOTSUPP);
    FAILS(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC_COARSE, 0, &ts, NULL), EOPNOTSUPP);
    FAILS(syscall(SYS_clock_nanosleep, 10, 0, &ts, NULL), EINVAL);
    FAILS(syscall(SYS_clock_nanosleep, 99, 0, &ts, NULL), EINVAL);
    pthread_getcpuclockid(pthread_self(), (clockid_t *)&clock);
    FAILS(syscall(SYS_clock_nanosleep, clock, 0, &ts, NULL), EINVAL);

    section("a sleep on the process's clock, while another thread works");
    count = 0;
    clock = 0;
    need(pthread_create(&thread, NULL, cpu_clock_of, (void *)&clock) == 0, "pthread_create");
    long until = now_ns(CLOCK_PROCESS_CPUTIME_ID) + 30000000;
    ts = (struct timespec){0, 30000000};
    SHOW(syscall(SYS_clock_nanosleep, CLOCK_PROCESS_CPUTIME_ID, 0, &ts, NULL));
    CHECK(now_ns(CLOCK_PROCESS_CPUTIME_ID) >= until);
    count = 1;
    pthread_join(thread, NULL);

    section("exec");
    char number[16];
    snprintf(number, sizeof number, "%d", id);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    sigprocmask(SIG_BLOCK, &alrm, NULL);
    sigprocmask(SIG_BLOCK, &usr2, NULL);
    raise(SIGUSR2);
    arm(id, 1, 0);
    sleep_ns(2000000);
    alarm(1);
    execv("/proc/self/exe", (char *[]){argv[0], number, NULL});
    printf("FAIL exec\n");
    return 1;
}
