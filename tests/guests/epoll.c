// epoll(7): levels and edges, one-shot, exclusive and nested items, duplicates, waits of threads.
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>

static struct epoll_event got[64];

static const char *bits(uint32_t events) {
    static const struct { uint32_t bit; const char *name; } names[] = {
        {EPOLLIN, "IN"}, {EPOLLPRI, "PRI"}, {EPOLLOUT, "OUT"}, {EPOLLERR, "ERR"}, {EPOLLHUP, "HUP"}, {EPOLLRDHUP, "RDHUP"},
        {EPOLLRDNORM, "RDNORM"}, {EPOLLWRNORM, "WRNORM"},
    };
    static char out[128];
    out[0] = 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (events & names[i].bit) {
            if (out[0]) strcat(out, "|");
            strcat(out, names[i].name);
        }
    return out;
}

// Everything an instance reports at once.
static void report(const char *what, int ep, int max) {
    int n = epoll_wait(ep, got, max, 0);
    printf("%s: %d", what, n);
    for (int i = 0; i < n; i++) printf(" %llu=%s", (unsigned long long)got[i].data.u64, bits(got[i].events));
    printf("\n");
    fflush(stdout);
}

static int ctl(int ep, int op, int fd, uint32_t events, uint64_t data) {
    struct epoll_event e = {.events = events, .data.u64 = data};
    return epoll_ctl(ep, op, fd, &e);
}

static int add(int ep, int fd, uint32_t events, uint64_t data) { return ctl(ep, EPOLL_CTL_ADD, fd, events, data); }
static int mod(int ep, int fd, uint32_t events, uint64_t data) { return ctl(ep, EPOLL_CTL_MOD, fd, events, data); }
static int del(int ep, int fd) { return epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL); }

static void put(int fd, const char *text) { need(write(fd, text, strlen(text)) == (ssize_t)strlen(text), "write"); }

static void take(int fd, int count) {
    char buf[70000];
    need(read(fd, buf, count) == count, "read");
}

static void errors(void) {
    section("errors");
    int ep = epoll_create1(0), ev = eventfd(0, 0), other = epoll_create(1), p[2];
    need(pipe(p) == 0, "pipe");
    struct epoll_event e = {.events = EPOLLIN};
    FAILS(epoll_create(0), EINVAL);
    FAILS(epoll_create(-1), EINVAL);
    FAILS(epoll_create1(1), EINVAL);
    CHECK((fcntl(epoll_create1(EPOLL_CLOEXEC), F_GETFD) & FD_CLOEXEC) != 0);
    CHECK(fcntl(ep, F_GETFD) == 0);
    CHECK((fcntl(ep, F_GETFL) & ~0100000) == O_RDWR);
    FAILS(add(-1, ev, EPOLLIN, 0), EBADF);
    FAILS(add(ep, -1, EPOLLIN, 0), EBADF);
    FAILS(add(ev, p[0], EPOLLIN, 0), EINVAL);
    FAILS(add(ep, ep, EPOLLIN, 0), EINVAL);
    FAILS(epoll_ctl(ep, 9, ev, &e), EINVAL);
    FAILS(epoll_ctl(ep, 9, ev, NULL), EFAULT);
    FAILS(epoll_ctl(ep, EPOLL_CTL_ADD, ev, NULL), EFAULT);
    FAILS(epoll_ctl(-1, EPOLL_CTL_ADD, ev, NULL), EFAULT);
    FAILS(mod(ep, ev, EPOLLIN, 0), ENOENT);
    FAILS(del(ep, ev), ENOENT);
    CHECK(add(ep, ev, EPOLLIN, 0) == 0);
    FAILS(add(ep, ev, EPOLLIN, 0), EEXIST);
    CHECK(del(ep, ev) == 0);
    FAILS(add(ep, open("/tmp", O_RDONLY), EPOLLIN, 0), EPERM);
    FAILS(add(ep, open("/tmp/epoll-file", O_RDWR | O_CREAT, 0600), EPOLLIN, 0), EPERM);
    unlink("/tmp/epoll-file");
    FAILS(add(ep, open("/dev/null", O_RDWR), EPOLLIN, 0), EPERM);
    FAILS(add(ep, open("/dev/zero", O_RDWR), EPOLLIN, 0), EPERM);
    FAILS(add(ep, open("/tmp", O_PATH), EPOLLIN, 0), EBADF);
    FAILS(epoll_wait(ep, got, 0, 0), EINVAL);
    FAILS(epoll_wait(ep, got, -1, 0), EINVAL);
    FAILS(epoll_wait(ep, got, 0x7fffffff, 0), EINVAL);
    FAILS(epoll_wait(ev, got, 1, 0), EINVAL);
    FAILS(epoll_wait(-1, got, 1, 0), EBADF);
    FAILS(epoll_wait(ep, (void *)-1, 1, 0), EFAULT);
    SHOW(epoll_wait(ep, (void *)8, 1, 0));
    need(write(ev, &(uint64_t){1}, 8) == 8, "write");
    CHECK(add(ep, ev, EPOLLIN, 5) == 0);
    FAILS(epoll_wait(ep, (void *)8, 1, 0), EFAULT);
    report("not lost by the fault", ep, 8);
    CHECK(del(ep, ev) == 0);
    FAILS(add(ep, other, EPOLLIN | EPOLLEXCLUSIVE, 0), EINVAL);
    FAILS(add(ep, ev, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 0), EINVAL);
    FAILS(add(ep, ev, EPOLLIN | EPOLLEXCLUSIVE | EPOLLRDHUP, 0), EINVAL);
    CHECK(add(ep, ev, EPOLLIN | EPOLLEXCLUSIVE, 0) == 0);
    FAILS(mod(ep, ev, EPOLLIN, 0), EINVAL);
    FAILS(mod(ep, ev, EPOLLIN | EPOLLEXCLUSIVE, 0), EINVAL);
    char b[8];
    FAILS(read(ep, b, 8), EINVAL);
    FAILS(write(ep, b, 8), EINVAL);
    FAILS(pread(ep, b, 8, 0), ESPIPE);
    SHOW(lseek(ep, 0, SEEK_SET));
    struct stat st;
    CHECK(fstat(ep, &st) == 0 && (st.st_mode & 07777) == 0600 && st.st_size == 0);
    char link[64] = {0}, name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", ep);
    need(readlink(name, link, 63) > 0, "readlink");
    printf("%s\n", link);
    // Nobody but root gets as far as the file (anonymous inodes belong to root, mode 0600).
    FAILS(open(name, O_RDWR), geteuid() ? EACCES : ENXIO);
}

static void levels(void) {
    section("levels");
    int ep = epoll_create1(0), p[2];
    need(pipe(p) == 0, "pipe");
    CHECK(add(ep, p[0], EPOLLIN, 1) == 0);
    CHECK(add(ep, p[1], EPOLLOUT, 2) == 0);
    report("empty pipe", ep, 8);
    put(p[1], "abc");
    report("written", ep, 8);
    report("again", ep, 8);
    take(p[0], 1);
    report("read in part", ep, 8);
    take(p[0], 2);
    report("read whole", ep, 8);
    CHECK(mod(ep, p[1], 0, 2) == 0);
    report("nothing asked", ep, 8);
    CHECK(close(p[1]) == 0);
    report("writer closed", ep, 8);
    CHECK(mod(ep, p[0], 0, 1) == 0);
    report("hang-up is always told", ep, 8);
    close(p[0]);
    report("both closed", ep, 8);
    need(pipe(p) == 0, "pipe");
    CHECK(add(ep, p[1], EPOLLOUT, 3) == 0);
    close(p[0]);
    report("reader closed", ep, 8);
}

static void edges(void) {
    section("edges");
    int ep = epoll_create1(0), p[2];
    need(pipe2(p, O_NONBLOCK) == 0, "pipe");
    put(p[1], "before");
    CHECK(add(ep, p[0], EPOLLIN | EPOLLET, 1) == 0);
    report("what holds already", ep, 8);
    report("once", ep, 8);
    put(p[1], "more");
    report("another write", ep, 8);
    take(p[0], 3);
    report("a read is no edge", ep, 8);
    put(p[1], "x");
    put(p[1], "y");
    report("two writes, one event", ep, 8);
    put(p[1], "z");
    take(p[0], 10);
    report("raised but gone", ep, 8);
    CHECK(mod(ep, p[0], EPOLLIN | EPOLLET, 7) == 0);
    report("nothing to see", ep, 8);
    put(p[1], "q");
    report("new data", ep, 8);
    CHECK(mod(ep, p[0], EPOLLIN | EPOLLET, 8) == 0);
    report("changed, so asked again", ep, 8);
    CHECK(del(ep, p[0]) == 0);
    put(p[1], "unseen");
    report("deleted", ep, 8);
    take(p[0], 7);

    CHECK(add(ep, p[1], EPOLLOUT | EPOLLET, 2) == 0);
    report("room", ep, 8);
    report("once", ep, 8);
    char block[4096] = {0};
    while (write(p[1], block, sizeof block) > 0) {}
    report("full", ep, 8);
    take(p[0], 7);
    report("a little room is none", ep, 8);
    take(p[0], 4089);
    report("a page of room", ep, 8);
    take(p[0], 4096);
    report("more of it is no edge", ep, 8);
    close(p[0]);
    report("reader closed", ep, 8);

    int ev = eventfd(0, EFD_NONBLOCK);
    CHECK(add(ep, ev, EPOLLIN | EPOLLOUT | EPOLLET, 3) == 0);
    report("counter", ep, 8);
    need(eventfd_write(ev, 1) == 0, "eventfd_write");
    report("up", ep, 8);
    need(eventfd_write(ev, 1) == 0, "eventfd_write");
    report("up again", ep, 8);
    eventfd_t v;
    need(eventfd_read(ev, &v) == 0, "eventfd_read");
    report("down", ep, 8);
    report("once", ep, 8);

    int sv[2];
    need(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv) == 0, "socketpair");
    CHECK(add(ep, sv[0], EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, 4) == 0);
    report("socket", ep, 8);
    put(sv[1], "hello");
    report("arrival", ep, 8);
    report("once", ep, 8);
    put(sv[1], "!");
    report("another", ep, 8);
    CHECK(shutdown(sv[1], SHUT_WR) == 0);
    report("end", ep, 8);
    close(sv[1]);
    report("closed", ep, 8);
    report("once", ep, 8);
}

static void oneshot(void) {
    section("one-shot");
    int ep = epoll_create1(0), p[2];
    need(pipe(p) == 0, "pipe");
    CHECK(add(ep, p[0], EPOLLIN | EPOLLONESHOT, 1) == 0);
    put(p[1], "a");
    report("first", ep, 8);
    report("disabled", ep, 8);
    put(p[1], "b");
    report("still", ep, 8);
    CHECK(mod(ep, p[0], EPOLLIN | EPOLLONESHOT, 2) == 0);
    report("armed again", ep, 8);
    CHECK(mod(ep, p[0], EPOLLIN | EPOLLONESHOT | EPOLLET, 3) == 0);
    report("with edges", ep, 8);
    close(p[1]);
    report("not even a hang-up", ep, 8);
    CHECK(mod(ep, p[0], EPOLLONESHOT, 4) == 0);
    report("hang-up alone", ep, 8);
    report("once", ep, 8);
}

static void duplicates(void) {
    section("duplicates");
    int ep = epoll_create1(0), p[2];
    need(pipe(p) == 0, "pipe");
    CHECK(add(ep, p[0], EPOLLIN, 1) == 0);
    int copy = dup(p[0]);
    CHECK(add(ep, copy, EPOLLIN, 2) == 0);
    FAILS(add(ep, copy, EPOLLIN, 2), EEXIST);
    put(p[1], "x");
    report("both", ep, 8);
    int old = p[0];
    close(p[0]);
    report("the description lives", ep, 8);
    FAILS(del(ep, old), EBADF);
    int q[2];
    need(pipe(q) == 0, "pipe");
    CHECK(q[0] == old);
    FAILS(del(ep, q[0]), ENOENT);
    CHECK(add(ep, q[0], EPOLLIN, 3) == 0);
    put(q[1], "y");
    report("one number, two items", ep, 8);
    close(copy);
    report("the description is gone", ep, 8);
    CHECK(dup2(q[1], q[0]) == q[0]);
    report("replaced", ep, 8);
    int ep2 = dup(ep), r[2];
    need(pipe(r) == 0, "pipe");
    CHECK(add(ep2, r[0], EPOLLIN, 4) == 0);
    FAILS(add(ep, r[0], EPOLLIN, 4), EEXIST);
    put(r[1], "z");
    close(ep);
    report("a duplicate of the instance", ep2, 8);
}

static void turns(void) {
    section("turns");
    int ep = epoll_create1(0), ev[5];
    for (int i = 0; i < 5; i++) {
        ev[i] = eventfd(1, 0);
        need(add(ep, ev[i], EPOLLIN, i) == 0, "add");
    }
    for (int i = 0; i < 5; i++) report("two of five", ep, 2);
    eventfd_t v;
    need(eventfd_read(ev[1], &v) == 0 && eventfd_read(ev[4], &v) == 0, "read");
    for (int i = 0; i < 3; i++) report("two of three", ep, 2);
}

static void nested(void) {
    section("nested");
    int e[7], ev = eventfd(0, 0);
    for (int i = 0; i < 7; i++) e[i] = epoll_create1(0);
    CHECK(add(e[0], ev, EPOLLIN, 1) == 0);
    CHECK(add(e[1], e[0], EPOLLIN, 2) == 0);
    FAILS(add(e[0], e[1], EPOLLIN, 3), ELOOP);
    CHECK(add(e[2], e[1], EPOLLIN, 4) == 0);
    FAILS(add(e[0], e[2], EPOLLIN, 3), ELOOP);
    report("quiet", e[2], 8);
    struct pollfd p = {e[2], POLLIN, 0};
    CHECK(poll(&p, 1, 0) == 0);
    need(eventfd_write(ev, 1) == 0, "eventfd_write");
    report("through two", e[2], 8);
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLIN);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(e[2], &set);
    CHECK(select(e[2] + 1, &set, NULL, NULL, &(struct timeval){0, 0}) == 1);
    eventfd_t v;
    need(eventfd_read(ev, &v) == 0, "eventfd_read");
    CHECK(poll(&p, 1, 0) == 0);
    report("quiet again", e[2], 8);
    CHECK(mod(e[2], e[1], EPOLLIN | EPOLLET, 5) == 0);
    need(eventfd_write(ev, 1) == 0, "eventfd_write");
    report("an edge through two", e[2], 8);
    report("once", e[2], 8);
    need(eventfd_write(ev, 1) == 0, "eventfd_write");
    report("another", e[2], 8);
    CHECK(add(e[3], e[2], EPOLLIN, 6) == 0);
    CHECK(add(e[4], e[3], EPOLLIN, 7) == 0);
    close(e[0]);
    report("the innermost is gone", e[4], 8);
}

struct waiter {
    int ep;
    int result;
    uint64_t data;
};

static void *wait_for_one(void *arg) {
    struct waiter *w = arg;
    struct epoll_event e;
    int result = epoll_wait(w->ep, &e, 1, -1);
    w->data = e.data.u64;
    __atomic_store_n(&w->result, result, __ATOMIC_RELEASE);
    return NULL;
}

// Waits until as many have been woken as should be, then gives the others time to be woken wrongly.
static int woken(struct waiter *w, int count, int wanted) {
    for (int tries = 0;; tries++) {
        int now = 0;
        for (int i = 0; i < count; i++) now += __atomic_load_n(&w[i].result, __ATOMIC_ACQUIRE) == 1;
        if (tries > 100 || (now >= wanted && tries > 2)) return now;
        pause_ms(20);
    }
}

static void threads(void) {
    section("threads");
    int ep = epoll_create1(0), ev = eventfd(0, 0), late = eventfd(0, 0);
    need(add(ep, ev, EPOLLIN, 1) == 0, "add");
    pthread_t t[4];
    struct waiter w[4];
    w[0] = (struct waiter){.ep = ep};
    pthread_create(&t[0], NULL, wait_for_one, &w[0]);
    pause_ms(20);
    need(eventfd_write(ev, 1) == 0, "eventfd_write");
    pthread_join(t[0], NULL);
    printf("woken: %d %llu\n", w[0].result, (unsigned long long)w[0].data);
    eventfd_t v;
    need(eventfd_read(ev, &v) == 0, "eventfd_read");

    pthread_create(&t[0], NULL, wait_for_one, &w[0]);
    pause_ms(20);
    need(eventfd_write(late, 1) == 0 && add(ep, late, EPOLLIN, 2) == 0, "add");
    pthread_join(t[0], NULL);
    printf("woken by an addition: %d %llu\n", w[0].result, (unsigned long long)w[0].data);
    need(del(ep, late) == 0, "del");

    // One edge wakes one of several.
    int one = epoll_create1(0), p[2];
    need(pipe(p) == 0 && add(one, p[0], EPOLLIN | EPOLLET, 3) == 0, "add");
    for (int i = 0; i < 4; i++) {
        w[i] = (struct waiter){.ep = one, .result = -2};
        pthread_create(&t[i], NULL, wait_for_one, &w[i]);
    }
    pause_ms(50);
    for (int round = 1; round <= 4; round++) {
        put(p[1], "x");
        printf("after %d edges: %d\n", round, woken(w, 4, round));
    }
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);

    // One event wakes one of several instances that watch exclusively.
    int q[2];
    need(pipe(q) == 0, "pipe");
    for (int i = 0; i < 3; i++) {
        w[i] = (struct waiter){.ep = epoll_create1(0), .result = -2};
        need(add(w[i].ep, q[0], EPOLLIN | EPOLLEXCLUSIVE | EPOLLET, 4) == 0, "add");
        pthread_create(&t[i], NULL, wait_for_one, &w[i]);
        pause_ms(50);
    }
    for (int round = 1; round <= 3; round++) {
        put(q[1], "x");
        printf("after %d exclusive events: %d\n", round, woken(w, 3, round));
    }
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
}

static volatile sig_atomic_t caught;
static void on_signal(int s) { caught = s; }

static long elapsed_ms(struct timespec from) {
    struct timespec to;
    clock_gettime(CLOCK_MONOTONIC, &to);
    return (to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000;
}

static void timeouts(void) {
    section("timeouts and signals");
    int ep = epoll_create1(0), ev = eventfd(0, 0);
    struct timespec from;
    clock_gettime(CLOCK_MONOTONIC, &from);
    CHECK(epoll_wait(ep, got, 1, 0) == 0);
    CHECK(epoll_wait(ep, got, 1, 30) == 0);
    CHECK(elapsed_ms(from) >= 29);
    CHECK(add(ep, ev, EPOLLIN, 1) == 0);
    clock_gettime(CLOCK_MONOTONIC, &from);
    CHECK(epoll_pwait2(ep, got, 1, &(struct timespec){0, 30000000}, NULL) == 0);
    CHECK(elapsed_ms(from) >= 29);
    FAILS(epoll_pwait2(ep, got, 1, &(struct timespec){0, 1000000000}, NULL), EINVAL);
    FAILS(epoll_pwait2(ep, got, 1, &(struct timespec){-1, 0}, NULL), EINVAL);

    // Even SA_RESTART does not start it again.
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &act, NULL);
    int tfd = timerfd_create(CLOCK_MONOTONIC, 0);
    alarm(1);
    FAILS(epoll_wait(ep, got, 1, -1), EINTR);
    CHECK(caught == SIGALRM);

    // The mask holds for the wait only.
    sigset_t none, blocked, now;
    sigemptyset(&none);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigaction(SIGUSR1, &act, NULL);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    raise(SIGUSR1);
    CHECK(epoll_wait(ep, got, 1, 0) == 0 && caught == SIGALRM);
    FAILS(epoll_pwait(ep, got, 1, -1, &none), EINTR);
    CHECK(caught == SIGUSR1);
    sigprocmask(SIG_SETMASK, NULL, &now);
    CHECK(sigismember(&now, SIGUSR1) == 1);

    // A timer ends the wait.
    CHECK(add(ep, tfd, EPOLLIN, 2) == 0);
    struct itimerspec its = {.it_value = {0, 20000000}};
    need(timerfd_settime(tfd, 0, &its, NULL) == 0, "timerfd_settime");
    CHECK(epoll_wait(ep, got, 1, -1) == 1 && got[0].data.u64 == 2);
    uint64_t ticks = 0;
    CHECK(read(tfd, &ticks, 8) == 8 && ticks == 1);
    CHECK(epoll_wait(ep, got, 1, 0) == 0);
}

int main(void) {
    errors();
    levels();
    edges();
    oneshot();
    duplicates();
    turns();
    nested();
    threads();
    timeouts();
    return 0;
}
