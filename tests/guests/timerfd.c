// timerfd_create(2).
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>

#define MS 1000000L

static struct itimerspec spec(long value_ns, long interval_ns) {
    return (struct itimerspec){
        .it_value = {value_ns / 1000000000, value_ns % 1000000000},
        .it_interval = {interval_ns / 1000000000, interval_ns % 1000000000},
    };
}

static int set(int fd, int flags, long value_ns, long interval_ns) {
    struct itimerspec new = spec(value_ns, interval_ns);
    return timerfd_settime(fd, flags, &new, NULL);
}

static int64_t ns(struct timespec t) { return t.tv_sec * 1000000000L + t.tv_nsec; }

static int64_t now(int clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return ns(t);
}

static long get(int fd) {
    uint64_t v = 0;
    return read(fd, &v, 8) == 8 ? (long)v : -1;
}

static int readable(int fd, int timeout_ms) {
    struct pollfd p = {fd, POLLIN | POLLOUT, 0};
    int n = poll(&p, 1, timeout_ms);
    return n > 0 ? p.revents : n;
}

static void errors(void) {
    section("errors");
    FAILS(timerfd_create(2, 0), EINVAL);
    FAILS(timerfd_create(99, 0), EINVAL);
    FAILS(timerfd_create(-1, 0), EINVAL);
    FAILS(timerfd_create(CLOCK_MONOTONIC, 1), EINVAL);
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    struct itimerspec s;
    FAILS(set(fd, 4, 1, 0), EINVAL);
    FAILS(set(0, 0, 1, 0), EINVAL);
    FAILS(set(-1, 0, 1, 0), EBADF);
    FAILS(timerfd_gettime(0, &s), EINVAL);
    FAILS(timerfd_gettime(-1, &s), EBADF);
    FAILS(timerfd_gettime(fd, (void *)8), EFAULT);
    FAILS(timerfd_settime(fd, 0, NULL, NULL), EFAULT);
    s = (struct itimerspec){.it_value = {0, 1000000000}};
    FAILS(timerfd_settime(fd, 0, &s, NULL), EINVAL);
    s = (struct itimerspec){.it_value = {-1, 0}};
    FAILS(timerfd_settime(fd, 0, &s, NULL), EINVAL);
    s = (struct itimerspec){.it_interval = {0, -1}};
    FAILS(timerfd_settime(fd, 0, &s, NULL), EINVAL);
    char b[8] = {0};
    FAILS(read(fd, b, 8), EAGAIN);
    FAILS(read(fd, b, 7), EINVAL);
    FAILS(write(fd, b, 8), EINVAL);
    FAILS(pread(fd, b, 8, 0), ESPIPE);
    SHOW(lseek(fd, 0, SEEK_SET));
    char name[64], link[64] = {0};
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    need(readlink(name, link, 63) > 0, "readlink");
    printf("%s\n", link);
    char info[512] = {0};
    snprintf(name, sizeof name, "/proc/self/fdinfo/%d", fd);
    int f = open(name, O_RDONLY);
    need(read(f, info, sizeof info - 1) > 0, "fdinfo");
    printf("%s", strstr(info, "clockid"));
}

static void single(int clock) {
    int fd = timerfd_create(clock, 0);
    struct itimerspec s;
    CHECK(timerfd_gettime(fd, &s) == 0 && ns(s.it_value) == 0 && ns(s.it_interval) == 0);
    CHECK(readable(fd, 0) == 0);
    int64_t from = now(CLOCK_MONOTONIC);
    CHECK(set(fd, 0, 30 * MS, 0) == 0);
    CHECK(timerfd_gettime(fd, &s) == 0 && ns(s.it_value) > 0 && ns(s.it_value) <= 30 * MS);
    CHECK(readable(fd, -1) == POLLIN);
    CHECK(now(CLOCK_MONOTONIC) - from >= 30 * MS);
    CHECK(timerfd_gettime(fd, &s) == 0 && ns(s.it_value) == 0);
    CHECK(get(fd) == 1);
    CHECK(readable(fd, 0) == 0);
    CHECK(set(fd, 0, 20 * MS, 0) == 0 && get(fd) == 1);
    // Absolute, in the future and in the past.
    from = now(clock);
    CHECK(set(fd, TFD_TIMER_ABSTIME, from + 20 * MS, 0) == 0 && get(fd) == 1 && now(clock) >= from + 20 * MS);
    CHECK(set(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, from, 0) == 0 && get(fd) == 1);
    // A new setting forgets the old expirations, and tells the old time.
    CHECK(set(fd, 0, 1, 0) == 0 && readable(fd, -1) == POLLIN);
    s = spec(5000 * MS, 0);
    struct itimerspec old;
    CHECK(timerfd_settime(fd, 0, &s, &old) == 0 && ns(old.it_value) == 0);
    CHECK(readable(fd, 0) == 0);
    s = spec(0, 0);
    CHECK(timerfd_settime(fd, 0, &s, &old) == 0 && ns(old.it_value) > 4000 * MS && ns(old.it_value) <= 5000 * MS);
    CHECK(readable(fd, 50) == 0);
    close(fd);
}

static void intervals(void) {
    section("intervals");
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec s;
    int64_t from = now(CLOCK_MONOTONIC);
    CHECK(set(fd, 0, 10 * MS, 20 * MS) == 0);
    pause_ms(100);
    long count = get(fd);
    int64_t passed = now(CLOCK_MONOTONIC) - from;
    CHECK(count >= 5 && count <= (passed - 10 * MS) / (20 * MS) + 1);
    // 0 where a busy machine is late with an expiry (timerfd_get_remaining in fs/timerfd.c).
    CHECK(timerfd_gettime(fd, &s) == 0 && ns(s.it_interval) == 20 * MS && ns(s.it_value) >= 0 && ns(s.it_value) <= 20 * MS);
    pause_ms(50);
    CHECK(timerfd_gettime(fd, &s) == 0 && ns(s.it_value) >= 0 && ns(s.it_value) <= 20 * MS);
    CHECK(readable(fd, 0) == POLLIN && get(fd) >= 2);
    CHECK(readable(fd, 1000) == POLLIN && get(fd) >= 1);
    CHECK(set(fd, 0, 10 * MS, 1000 * MS) == 0 && readable(fd, 1000) == POLLIN && get(fd) == 1);
    FAILS(get(fd), EAGAIN);
    // The value of 0 disarms, whatever the interval.
    CHECK(set(fd, 0, 0, 20 * MS) == 0 && readable(fd, 60) == 0);
    CHECK(set(fd, 0, 1, 1000000000L * 1000000000L) == 0 && readable(fd, -1) == POLLIN && get(fd) == 1);
}

int main(void) {
    errors();
    section("monotonic");
    single(CLOCK_MONOTONIC);
    section("real time");
    single(CLOCK_REALTIME);
    section("boot time");
    single(CLOCK_BOOTTIME);
    intervals();
    return 0;
}
