// Named pipes, packets, and what fcntl and ioctl say of pipes.
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

static char name[64];
static volatile sig_atomic_t alarms;

static void on_alarm(int sig) {
    (void)sig;
    alarms++;
}

static void sleep_ms(long ms) {
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&ts, &ts) && errno == EINTR) {
    }
}

static void *writer(void *arg) {
    sleep_ms(20);
    int fd = open(name, O_WRONLY);
    if (fd < 0) return (void *)-1l;
    for (int i = 0; i < 3; i++) {
        write(fd, "tick ", 5);
        sleep_ms(2);
    }
    close(fd);
    return arg;
}

static void *reader(void *arg) {
    sleep_ms(20);
    int fd = open(name, O_RDONLY);
    if (fd < 0) return (void *)-1l;
    char buf[64];
    ssize_t n, all = 0;
    while ((n = read(fd, buf, sizeof buf)) > 0) all += n;
    close(fd);
    *(long *)arg = all;
    return arg;
}

static void show_poll(int fd) {
    struct pollfd p = {fd, POLLIN | POLLOUT, 0};
    int n = poll(&p, 1, 0);
    printf("poll %d%s%s%s%s\n", n, p.revents & POLLIN ? " in" : "", p.revents & POLLOUT ? " out" : "",
           p.revents & POLLHUP ? " hup" : "", p.revents & POLLERR ? " err" : "");
}

int main(void) {
    char buf[10000];
    struct stat st;
    pthread_t thread;
    signal(SIGPIPE, SIG_IGN);
    snprintf(name, sizeof name, "/tmp/fifo-%d", getpid());
    unlink(name);

    section("as a file");
    umask(022);
    SHOW(mkfifo(name, 0666));
    FAILS(mkfifo(name, 0666), EEXIST);
    SHOW(stat(name, &st));
    printf("mode %o size %ld\n", st.st_mode, (long)st.st_size);
    SHOW(chmod(name, 0600));
    FAILS(truncate(name, 0), EINVAL);
    FAILS(open(name, O_RDONLY | O_DIRECTORY), ENOTDIR);
    FAILS(open(name, O_WRONLY | O_CREAT | O_EXCL, 0600), EEXIST);

    section("opening without waiting");
    FAILS(open(name, O_WRONLY | O_NONBLOCK), ENXIO);
    int r = open(name, O_RDONLY | O_NONBLOCK);
    CHECK(r >= 0);
    show_poll(r);
    SHOW(read(r, buf, 10));
    int w = open(name, O_WRONLY | O_NONBLOCK);
    CHECK(w >= 0);
    FAILS(read(r, buf, 10), EAGAIN);
    show_poll(r);
    show_poll(w);
    SHOW(write(w, "abc", 3));
    show_poll(r);
    SHOW(close(w));
    show_poll(r);
    SHOW(read(r, buf, 10));
    SHOW(read(r, buf, 10));
    show_poll(r);
    w = open(name, O_WRONLY);
    CHECK(w >= 0);
    show_poll(r);
    SHOW(close(r));
    show_poll(w);
    FAILS(write(w, "abc", 3), EPIPE);
    SHOW(close(w));

    section("contents go with the last end");
    int both = open(name, O_RDWR);
    CHECK(both >= 0);
    SHOW(write(both, "left", 4));
    int waiting;
    SHOW(ioctl(both, FIONREAD, &waiting));
    SHOW(waiting);
    SHOW(close(both));
    both = open(name, O_RDWR | O_NONBLOCK);
    FAILS(read(both, buf, 10), EAGAIN);
    FAILS(lseek(both, 0, SEEK_SET), ESPIPE);
    SHOW(fstat(both, &st));
    printf("mode %o\n", st.st_mode);
    SHOW(close(both));

    section("a reader waits for a writer");
    pthread_create(&thread, NULL, writer, NULL);
    r = open(name, O_RDONLY);
    CHECK(r >= 0);
    ssize_t n, all = 0;
    while ((n = read(r, buf, sizeof buf)) > 0) all += n;
    SHOW(all);
    void *result;
    pthread_join(thread, &result);
    SHOW(result == NULL);
    SHOW(close(r));

    section("a writer waits for a reader");
    long got = 0;
    pthread_create(&thread, NULL, reader, &got);
    w = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(w >= 0);
    memset(buf, 'x', sizeof buf);
    SHOW(write(w, buf, sizeof buf));
    SHOW(close(w));
    pthread_join(thread, NULL);
    SHOW(got);

    section("a signal ends the wait");
    struct sigaction sa = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &sa, NULL);
    struct itimerspec every = {{0, 30000000}, {0, 30000000}};
    timer_t timer;
    timer_create(CLOCK_MONOTONIC, NULL, &timer);
    timer_settime(timer, 0, &every, NULL);
    FAILS(open(name, O_RDONLY), EINTR);
    FAILS(open(name, O_WRONLY), EINTR);
    timer_delete(timer);
    CHECK(alarms >= 2);
    FAILS(open(name, O_WRONLY | O_NONBLOCK), ENXIO);

    section("with SA_RESTART it goes on");
    alarms = 0;
    sa.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &sa, NULL);
    every = (struct itimerspec){{0, 5000000}, {0, 5000000}};
    timer_create(CLOCK_MONOTONIC, NULL, &timer);
    timer_settime(timer, 0, &every, NULL);
    pthread_create(&thread, NULL, writer, NULL);
    r = open(name, O_RDONLY);
    CHECK(r >= 0);
    timer_delete(timer);
    while ((n = read(r, buf, sizeof buf)) > 0) {
    }
    pthread_join(thread, &result);
    SHOW(close(r));
    SHOW(unlink(name));

    section("packets");
    int p[2];
    SHOW(pipe2(p, O_DIRECT | O_NONBLOCK));
    SHOW(write(p[1], "first", 5));
    SHOW(write(p[1], "second", 6));
    SHOW(write(p[1], buf, 5000));
    SHOW(ioctl(p[0], FIONREAD, &waiting));
    SHOW(waiting);
    SHOW(read(p[0], buf, 3));
    SHOW(read(p[0], buf, sizeof buf));
    CHECK(!memcmp(buf, "second", 6));
    SHOW(read(p[0], buf, sizeof buf));
    SHOW(read(p[0], buf, sizeof buf));
    FAILS(read(p[0], buf, sizeof buf), EAGAIN);
    char a[4], b[4];
    struct iovec parts[] = {{a, 4}, {b, 4}};
    SHOW(write(p[1], "sevenup", 7));
    SHOW(write(p[1], "x", 1));
    SHOW(readv(p[0], parts, 2));
    CHECK(!memcmp(a, "seve", 4) && !memcmp(b, "nup", 3));
    SHOW(read(p[0], buf, sizeof buf));
    int count = 0;
    while (write(p[1], "y", 1) == 1) count++;
    SHOW(count);
    SHOW(fcntl(p[1], F_GETFL) & O_DIRECT ? 1 : 0);
    while (read(p[0], buf, sizeof buf) > 0) {
    }
    SHOW(fcntl(p[1], F_SETFL, O_NONBLOCK));
    SHOW(write(p[1], "one", 3));
    SHOW(write(p[1], "two", 3));
    SHOW(read(p[0], buf, sizeof buf));
    close(p[0]);
    close(p[1]);

    section("size");
    SHOW(pipe2(p, O_CLOEXEC | O_NONBLOCK));
    SHOW(fcntl(p[0], F_GETPIPE_SZ));
    SHOW(fcntl(p[1], F_SETPIPE_SZ, 5000));
    count = 0;
    while (write(p[1], "z", 1) == 1) count++;
    SHOW(count);
    FAILS(fcntl(p[1], F_SETPIPE_SZ, 4096), EBUSY);
    FAILS(fcntl(p[1], F_SETPIPE_SZ, 1 << 30), EPERM);
    SHOW(fcntl(p[1], F_SETPIPE_SZ, 1 << 20));
    SHOW(fcntl(p[0], F_GETFD));
    int zero = 0;
    SHOW(ioctl(p[0], FIONBIO, &zero));
    SHOW(fcntl(p[0], F_GETFL) & O_NONBLOCK);
    FAILS(pipe2(p, O_APPEND), EINVAL);
    FAILS(pipe2((int *)8, 0), EFAULT);
    return 0;
}
