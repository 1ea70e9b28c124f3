// Clocks never run backwards, whichever way they are asked; sleeps are at
// least as long as asked: clock [ROUNDS].
#include "guest.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

static long rounds = 20000;
static atomic_long newest;
static atomic_int back_steps;

static long ns(const struct timespec *ts) { return ts->tv_sec * 1000000000l + ts->tv_nsec; }

static long by_vdso(clockid_t id) {
    struct timespec ts;
    if (clock_gettime(id, &ts)) return -1;
    return ns(&ts);
}

static long by_call(clockid_t id) {
    struct timespec ts;
    if (syscall(SYS_clock_gettime, id, &ts)) return -1;
    return ns(&ts);
}

static void *race(void *arg) {
    for (long i = 0; i < rounds; i++) {
        // What another thread has already published is in the past.
        long seen = atomic_load(&newest);
        long now = (i & 63) == 63 ? by_call(CLOCK_MONOTONIC) : by_vdso(CLOCK_MONOTONIC);
        if (now < seen) atomic_fetch_add(&back_steps, 1);
        while (seen < now && !atomic_compare_exchange_weak(&newest, &seen, now)) {
        }
    }
    return arg;
}

int main(int argc, char **argv) {
    if (argc > 1) rounds = atol(argv[1]);
    struct timespec ts, res;
    static const struct {
        clockid_t id;
        const char *name;
    } clocks[] = {{CLOCK_REALTIME, "REALTIME"}, {CLOCK_MONOTONIC, "MONOTONIC"}, {CLOCK_MONOTONIC_RAW, "MONOTONIC_RAW"},
                  {CLOCK_REALTIME_COARSE, "REALTIME_COARSE"}, {CLOCK_MONOTONIC_COARSE, "MONOTONIC_COARSE"},
                  {CLOCK_BOOTTIME, "BOOTTIME"}, {CLOCK_PROCESS_CPUTIME_ID, "PROCESS_CPUTIME_ID"},
                  {CLOCK_THREAD_CPUTIME_ID, "THREAD_CPUTIME_ID"}, {CLOCK_TAI, "TAI"}};
    for (size_t c = 0; c < sizeof clocks / sizeof *clocks; c++) {
        long prev = by_vdso(clocks[c].id), steps = 0;
        for (long i = 0; i < rounds / 10; i++) {
            long a = by_vdso(clocks[c].id);
            if (a < prev) steps++;
            prev = a;
            if (i % 16 == 0) {
                long b = by_call(clocks[c].id);
                if (b < prev) steps++;
                prev = b;
            }
        }
        printf("%s: steps back %ld\n", clocks[c].name, steps);
        CHECK(prev > 0 && steps == 0);
        CHECK(clock_getres(clocks[c].id, &res) == 0 && res.tv_sec == 0 && res.tv_nsec > 0);
    }
    FAILS(clock_gettime(77, &ts), EINVAL);
    FAILS(clock_getres(77, &ts), EINVAL);
    FAILS(syscall(SYS_clock_gettime, CLOCK_REALTIME, (void *)8), EFAULT);

    section("the ways to ask agree on the order");
    struct timeval tv;
    long before = by_vdso(CLOCK_REALTIME) / 1000;
    CHECK(gettimeofday(&tv, NULL) == 0);
    long middle = tv.tv_sec * 1000000l + tv.tv_usec;
    long after = by_vdso(CLOCK_REALTIME) / 1000;
    CHECK(before <= middle && middle <= after);
    // time(2) is the coarse clock: it may still show the second before.
    CHECK(time(NULL) >= before / 1000000 - 1 && time(NULL) <= by_vdso(CLOCK_REALTIME) / 1000000000);
    CHECK(by_call(CLOCK_REALTIME) > 1600000000000000000l);
    CHECK(by_vdso(CLOCK_BOOTTIME) >= by_vdso(CLOCK_MONOTONIC_COARSE));

    section("threads see one clock");
    pthread_t t[4];
    for (int i = 0; i < 4; i++) need(pthread_create(&t[i], NULL, race, NULL) == 0, "pthread_create");
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    SHOW(back_steps);

    section("sleep");
    static const long lengths[] = {1, 1000, 1000000, 20000000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        long start = by_vdso(CLOCK_MONOTONIC);
        ts = (struct timespec){0, lengths[i]};
        SHOW(nanosleep(&ts, NULL));
        CHECK(by_vdso(CLOCK_MONOTONIC) - start >= lengths[i]);
        long until = by_vdso(CLOCK_MONOTONIC) + lengths[i];
        ts = (struct timespec){until / 1000000000, until % 1000000000};
        SHOW(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL));
        CHECK(by_vdso(CLOCK_MONOTONIC) >= until);
    }
    ts = (struct timespec){0, 1000000000};
    FAILS(nanosleep(&ts, NULL), EINVAL);
    ts = (struct timespec){-1, 0};
    FAILS(nanosleep(&ts, NULL), EINVAL);
    ts = (struct timespec){0, 0};
    SHOW(nanosleep(&ts, NULL));
    SHOW(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL));

    section("processor time moves while working");
    long cpu = by_vdso(CLOCK_PROCESS_CPUTIME_ID);
    while (by_vdso(CLOCK_PROCESS_CPUTIME_ID) < cpu + 1000000) {
    }
    CHECK(clock() > 0);
    printf("done\n");
    return 0;
}
