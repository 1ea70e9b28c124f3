// eventfd(2) and signalfd(2).
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

static int events_of(int fd) {
    struct pollfd p = {fd, POLLIN | POLLOUT, 0};
    return poll(&p, 1, 0) < 0 ? -1 : p.revents;
}

static void show(int fd) { printf("poll %#x\n", events_of(fd)); }

static long get(int fd) {
    uint64_t v = 0;
    return read(fd, &v, 8) == 8 ? (long)v : -1;
}

static long put(int fd, uint64_t v) { return write(fd, &v, 8); }

static void *write_later(void *arg) {
    pause_ms(30);
    put(*(int *)arg, 5);
    return NULL;
}

static void *read_later(void *arg) {
    pause_ms(30);
    get(*(int *)arg);
    return NULL;
}

static void describe(int fd) {
    char name[64], link[64] = {0}, b[16];
    struct stat st;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    need(readlink(name, link, 63) > 0 && fstat(fd, &st) == 0, "readlink");
    printf("%s %o %ld\n", link, st.st_mode, (long)st.st_size);
    // Nobody but root gets as far as the file (anonymous inodes belong to root, mode 0600).
    FAILS(open(name, O_RDWR), geteuid() ? EACCES : ENXIO);
    FAILS(pread(fd, b, 8, 0), ESPIPE);
    SHOW(lseek(fd, 0, SEEK_SET));
    FAILS(ftruncate(fd, 0), EINVAL);
    FAILS(fsync(fd), EINVAL);
    int n;
    FAILS(ioctl(fd, FIONREAD, &n), ENOTTY);
    n = 1;
    CHECK(ioctl(fd, FIONBIO, &n) == 0 && (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    n = 0;
    CHECK(ioctl(fd, FIONBIO, &n) == 0 && (fcntl(fd, F_GETFL) & O_NONBLOCK) == 0);
}

static void counters(void) {
    section("counters");
    char b[16] = {0};
    FAILS(eventfd(0, 0x10), EINVAL);
    CHECK((fcntl(eventfd(0, EFD_CLOEXEC), F_GETFD) & FD_CLOEXEC) != 0);
    int fd = eventfd(7, EFD_NONBLOCK);
    show(fd);
    SHOW(get(fd));
    show(fd);
    FAILS(get(fd), EAGAIN);
    FAILS(read(fd, b, 7), EINVAL);
    FAILS(read(fd, b, 0), EINVAL);
    FAILS(write(fd, b, 7), EINVAL);
    FAILS(write(fd, b, 0), EINVAL);
    FAILS(write(fd, (void *)8, 8), EFAULT);
    SHOW(put(fd, 0));
    FAILS(get(fd), EAGAIN);
    SHOW(put(fd, 3));
    SHOW(put(fd, 4));
    SHOW(get(fd));
    SHOW(put(fd, 9));
    SHOW(read(fd, b, 16));
    printf("%d\n", b[0]);
    FAILS(put(fd, UINT64_MAX), EINVAL);
    SHOW(put(fd, UINT64_MAX - 1));
    show(fd);
    FAILS(put(fd, 1), EAGAIN);
    SHOW(put(fd, 0));
    uint64_t v = 0;
    CHECK(read(fd, &v, 8) == 8 && v == UINT64_MAX - 1);
    uint64_t two[2] = {10, 20};
    struct iovec iov[2] = {{&two[0], 8}, {&two[1], 8}};
    SHOW(writev(fd, iov, 2));
    SHOW(get(fd));
    SHOW(put(fd, 0x0807060504030201));
    struct iovec halves[2] = {{b, 3}, {b + 3, 5}};
    SHOW(readv(fd, halves, 2));
    printf("%d %d %d\n", b[0], b[3], b[7]);

    section("semaphores");
    int sem = eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK);
    SHOW(get(sem));
    SHOW(get(sem));
    FAILS(get(sem), EAGAIN);

    section("waits");
    int slow = eventfd(0, 0);
    pthread_t t;
    pthread_create(&t, NULL, write_later, &slow);
    SHOW(get(slow));
    pthread_join(t, NULL);
    SHOW(put(slow, UINT64_MAX - 1));
    pthread_create(&t, NULL, read_later, &slow);
    SHOW(put(slow, 2));
    pthread_join(t, NULL);
    SHOW(get(slow));
    pthread_create(&t, NULL, write_later, &slow);
    struct pollfd p = {slow, POLLIN, 0};
    CHECK(poll(&p, 1, -1) == 1 && p.revents == POLLIN);
    pthread_join(t, NULL);
    describe(slow);
}

static void signals(void) {
    section("signals");
    sigset_t set, wrong;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    sigemptyset(&wrong);
    FAILS(syscall(SYS_signalfd4, -1, &set, 4, 0), EINVAL);
    FAILS(syscall(SYS_signalfd4, -1, &set, 8, 1), EINVAL);
    FAILS(syscall(SYS_signalfd4, -1, NULL, 8, 0), EFAULT);
    FAILS(syscall(SYS_signalfd4, 0, &set, 8, 0), EINVAL);
    FAILS(syscall(SYS_signalfd4, 999, &set, 8, 0), EBADF);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    struct signalfd_siginfo info[4];
    FAILS(read(fd, info, sizeof info[0] - 1), EINVAL);
    FAILS(read(fd, info, sizeof info), EAGAIN);
    show(fd);
    raise(SIGUSR2);
    raise(SIGUSR1);
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 42});
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 43});
    show(fd);
    int n = read(fd, info, 3 * sizeof info[0]) / sizeof info[0];
    for (int i = 0; i < n; i++)
        printf("%d code %d value %d own %d %d\n", info[i].ssi_signo, info[i].ssi_code, info[i].ssi_int,
               info[i].ssi_pid == (uint32_t)getpid(), info[i].ssi_uid == getuid());
    n = read(fd, info, sizeof info) / sizeof info[0];
    printf("%d left: %d\n", n, info[0].ssi_int);
    show(fd);
    raise(SIGUSR1);
    CHECK(signalfd(fd, &wrong, 0) == fd);
    FAILS(read(fd, info, sizeof info), EAGAIN);
    CHECK(signalfd(fd, &set, 0) == fd);
    CHECK(read(fd, info, sizeof info) == sizeof info[0] && info[0].ssi_signo == SIGUSR1);
    timer_t timer;
    struct sigevent se = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 5};
    need(timer_create(CLOCK_MONOTONIC, &se, &timer) == 0, "timer_create");
    struct itimerspec its = {.it_value = {0, 20000000}};
    need(timer_settime(timer, 0, &its, NULL) == 0, "timer_settime");
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, -1) == 1);
    CHECK(read(fd, info, sizeof info) == sizeof info[0] && info[0].ssi_code == SI_TIMER && info[0].ssi_int == 5);
    describe(fd);
}

int main(void) {
    counters();
    signals();
    return 0;
}
