// setitimer, getitimer, alarm, pause, times: intervals of real and of CPU time.
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/times.h>
#include <time.h>

static volatile sig_atomic_t count, got, code;

static void handler(int sig, siginfo_t *info, void *context) {
    (void)context;
    got = sig;
    code = info->si_code;
    count++;
}

static void set(int sig, int flags) {
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    sigaction(sig, &sa, NULL);
}

static struct itimerval span(long value_us, long interval_us) {
    return (struct itimerval){{interval_us / 1000000, interval_us % 1000000}, {value_us / 1000000, value_us % 1000000}};
}

static int arm(int which, long value_us, long interval_us) {
    struct itimerval new = span(value_us, interval_us);
    return setitimer(which, &new, NULL);
}

static long now_ns(clockid_t clock) {
    struct timespec ts;
    clock_gettime(clock, &ts);
    return ts.tv_sec * 1000000000l + ts.tv_nsec;
}

static volatile unsigned long sum;

// Works without a call into the kernel, so that only a kick can stop it.
static void work_until(int wanted) {
    while (count < wanted) sum++;
}

static void *worker(void *arg) {
    while (!*(volatile int *)arg) sum++;
    return NULL;
}

int main(void) {
    struct itimerval it;
    section("what is refused");
    FAILS(getitimer(3, &it), EINVAL);
    FAILS(getitimer(-1, &it), EINVAL);
    it = span(1, 0);
    FAILS(setitimer(3, &it, NULL), EINVAL);
    it = span(0, 0);
    it.it_value.tv_usec = 1000000;
    FAILS(setitimer(ITIMER_REAL, &it, NULL), EINVAL);
    it.it_value.tv_usec = -1;
    FAILS(setitimer(ITIMER_PROF, &it, NULL), EINVAL);

    section("disarmed");
    static const int all[] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF};
    for (int i = 0; i < 3; i++) {
        SHOW(getitimer(all[i], &it));
        CHECK(!it.it_value.tv_sec && !it.it_value.tv_usec && !it.it_interval.tv_sec && !it.it_interval.tv_usec);
        SHOW(arm(all[i], 3600000000l, 7200000000l));
        SHOW(getitimer(all[i], &it));
        CHECK(it.it_value.tv_sec >= 3500 && it.it_value.tv_sec <= 3600 && it.it_interval.tv_sec == 7200);
        struct itimerval off = span(0, 0);
        SHOW(setitimer(all[i], &off, &it));
        CHECK(it.it_value.tv_sec >= 3500 && it.it_interval.tv_sec == 7200);
        SHOW(getitimer(all[i], &it));
        CHECK(!it.it_value.tv_sec && !it.it_value.tv_usec && !it.it_interval.tv_sec);
    }

    section("real time");
    set(SIGALRM, 0);
    count = 0;
    // Again and again, should the first come before the wait.
    SHOW(arm(ITIMER_REAL, 2000, 20000));
    FAILS(pause(), EINTR);
    SHOW(arm(ITIMER_REAL, 0, 0));
    CHECK(count >= 1 && got == SIGALRM && code == SI_KERNEL);
    sigset_t alrm, others;
    sigemptyset(&alrm);
    sigaddset(&alrm, SIGALRM);
    sigprocmask(SIG_BLOCK, &alrm, &others);
    count = 0;
    SHOW(arm(ITIMER_REAL, 2000, 0));
    FAILS(sigsuspend(&others), EINTR);
    SHOW(count);
    sigprocmask(SIG_UNBLOCK, &alrm, NULL);
    count = 0;
    SHOW(arm(ITIMER_REAL, 2000, 2000));
    work_until(5);
    SHOW(arm(ITIMER_REAL, 0, 0));
    CHECK(count >= 5);

    section("a blocked alarm comes once");
    sigprocmask(SIG_BLOCK, &alrm, NULL);
    count = 0;
    SHOW(arm(ITIMER_REAL, 1000, 1000000000));
    struct timespec ts = {0, 10000000};
    nanosleep(&ts, NULL);
    SHOW(getitimer(ITIMER_REAL, &it));
    CHECK(it.it_value.tv_sec == 0 && it.it_value.tv_usec == 0 && it.it_interval.tv_sec == 1000);
    int sig = 0;
    SHOW(sigwait(&alrm, &sig));
    SHOW(sig == SIGALRM);
    SHOW(getitimer(ITIMER_REAL, &it));
    CHECK(it.it_value.tv_sec >= 990);
    SHOW(arm(ITIMER_REAL, 0, 0));
    sigprocmask(SIG_UNBLOCK, &alrm, NULL);
    SHOW(count);

    section("alarm");
    SHOW(alarm(1000));
    SHOW(alarm(0));
    SHOW(alarm(0));

    section("a sleep goes on, and says what is left");
    SHOW(arm(ITIMER_REAL, 5000, 50000));
    ts = (struct timespec){1000, 0};
    struct timespec left = {0, 0};
    FAILS(nanosleep(&ts, &left), EINTR);
    CHECK(left.tv_sec >= 990 && left.tv_sec < 1000);
    set(SIGALRM, SA_RESTART);
    FAILS(nanosleep(&ts, &left), EINTR);

    section("an ignored timer disturbs nobody");
    signal(SIGALRM, SIG_IGN);
    SHOW(arm(ITIMER_REAL, 1000, 1000));
    ts = (struct timespec){0, 20000000};
    long start = now_ns(CLOCK_MONOTONIC);
    SHOW(nanosleep(&ts, NULL));
    CHECK(now_ns(CLOCK_MONOTONIC) - start >= 20000000);
    SHOW(arm(ITIMER_REAL, 0, 0));

    section("CPU time");
    set(SIGVTALRM, 0);
    set(SIGPROF, 0);
    static const int which[] = {ITIMER_VIRTUAL, ITIMER_PROF}, signals[] = {SIGVTALRM, SIGPROF};
    for (int i = 0; i < 2; i++) {
        count = 0;
        SHOW(arm(which[i], 10000, 10000));
        ts = (struct timespec){0, 30000000};
        nanosleep(&ts, NULL);
        SHOW(count);
        long cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
        work_until(5);
        CHECK(got == signals[i] && code == SI_KERNEL);
        CHECK(now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu >= 35000000);
        SHOW(arm(which[i], 0, 0));
        CHECK(count >= 5);
    }

    section("CPU time of other threads counts");
    count = 0;
    volatile int stop = 0;
    pthread_t thread;
    need(pthread_create(&thread, NULL, worker, (void *)&stop) == 0, "pthread_create");
    SHOW(arm(ITIMER_PROF, 10000, 0));
    while (count < 1) {
        ts = (struct timespec){0, 1000000};
        nanosleep(&ts, NULL);
    }
    stop = 1;
    pthread_join(thread, NULL);
    SHOW(count);

    section("times and getrusage");
    struct tms tms;
    struct rusage self, own;
    CHECK(times(&tms) > 0 && tms.tms_utime + tms.tms_stime > 0 && tms.tms_cutime == 0);
    SHOW(getrusage(RUSAGE_SELF, &self));
    SHOW(getrusage(RUSAGE_THREAD, &own));
    long used = self.ru_utime.tv_sec * 1000000 + self.ru_utime.tv_usec + self.ru_stime.tv_sec * 1000000 +
                self.ru_stime.tv_usec;
    CHECK(used >= 80000);
    CHECK(self.ru_maxrss > 0);
    SHOW(getrusage(RUSAGE_CHILDREN, &own));
    CHECK(own.ru_utime.tv_sec == 0 && own.ru_maxrss == 0);
    FAILS(getrusage(2, &own), EINVAL);
    return 0;
}
