// CPU time between calls: clocks that advance while nothing but arithmetic is done, timers and sleeps on
// them that are not early, and a sleep that another thread's work ends.
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>

static volatile sig_atomic_t fired;
static volatile int stop;

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

// Computes for so long of wall time; the clock of the vDSO costs no call.
static void compute(double ms) {
    double end = now(CLOCK_MONOTONIC) + ms;
    while (now(CLOCK_MONOTONIC) < end)
        for (volatile int i = 0; i < 1000; i++) {
        }
}

static void fire(int sig) {
    (void)sig;
    fired++;
}

static void *work(void *arg) {
    while (!stop) compute(1);
    return arg;
}

int main(void) {
    // A little less than was computed: a busy machine gives less CPU time than wall time.
    double process = now(CLOCK_PROCESS_CPUTIME_ID), thread = now(CLOCK_THREAD_CPUTIME_ID);
    for (int i = 0; i < 40; i++) compute(5);
    CHECK(now(CLOCK_PROCESS_CPUTIME_ID) - process > 20);
    CHECK(now(CLOCK_THREAD_CPUTIME_ID) - thread > 20);
    struct rusage usage;
    CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
    CHECK(usage.ru_utime.tv_sec * 1000000 + usage.ru_utime.tv_usec + usage.ru_stime.tv_sec * 1000000 + usage.ru_stime.tv_usec > 20000);

    struct sigaction action = {.sa_handler = fire};
    CHECK(sigaction(SIGPROF, &action, NULL) == 0);
    compute(5);  // not what the timer counts
    process = now(CLOCK_PROCESS_CPUTIME_ID);
    struct itimerval once = {{0, 0}, {0, 30000}};
    CHECK(setitimer(ITIMER_PROF, &once, NULL) == 0);
    while (!fired) compute(0.1);
    double used = now(CLOCK_PROCESS_CPUTIME_ID) - process;
    // ITIMER_PROF counts ticks of the kernel, more of them than the time in CPUTIME on a busy machine.
    if (used < 12) printf("FAIL early: after %.3f ms\n", used);

    for (int i = 0; i < 20; i++) {
        stop = 0;
        pthread_t worker;
        pthread_create(&worker, NULL, work, NULL);
        compute(3);
        struct timespec a_moment = {0, 1000000};
        int error = clock_nanosleep(CLOCK_PROCESS_CPUTIME_ID, 0, &a_moment, NULL);
        if (error) printf("FAIL clock_nanosleep: %s\n", errno_name(error));
        stop = 1;
        pthread_join(worker, NULL);
    }
    printf("slept\n");
    return 0;
}
