// POSIX message queues: names, order, limits, waiting, notices, descriptors.
#include "guest.h"
#include <fcntl.h>
#include <linux/netlink.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static char name[64], other[64];

static mqd_t make(const char *queue, int flags, long messages, long bytes) {
    struct mq_attr attr = {.mq_maxmsg = messages, .mq_msgsize = bytes};
    return mq_open(queue, O_CREAT | O_EXCL | O_RDWR | flags, 0600, &attr);
}

static struct timespec after_ms(long ms) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_nsec += ms * 1000000;
    at.tv_sec += at.tv_nsec / 1000000000;
    at.tv_nsec %= 1000000000;
    return at;
}

static void show_attr(mqd_t queue) {
    struct mq_attr attr;
    NEED(mq_getattr(queue, &attr) == 0);
    printf("flags %lx, %ld of %ld messages of %ld bytes\n", attr.mq_flags, attr.mq_curmsgs, attr.mq_maxmsg,
           attr.mq_msgsize);
    fflush(stdout);
}

static void show_status(mqd_t queue) {
    char text[128] = "";
    ssize_t len = pread((int)queue, text, sizeof text - 1, 0);
    char *pid = strstr(text, " NOTIFY_PID:");
    if (pid) *pid = 0;
    printf("%zd bytes: %s, pid %s\n", len, text, !pid ? "?" : atoi(pid + 12) == getpid() ? "own" : "none");
    fflush(stdout);
}

static void names(void) {
    section("names");
    FAILS(mq_open("/no-such-queue-here", O_RDWR), ENOENT);
    FAILS(mq_open("no-slash", O_RDWR | O_CREAT, 0600, NULL), EINVAL);
    FAILS(mq_open("/a/b", O_RDWR | O_CREAT, 0600, NULL), EACCES);
    FAILS(mq_open("/", O_RDWR | O_CREAT, 0600, NULL), ENOENT);
    char longest[400] = "/";
    memset(longest + 1, 'x', 300);
    FAILS(mq_open(longest, O_RDWR | O_CREAT, 0600, NULL), ENAMETOOLONG);
    FAILS(make(other, 0, 0, 10), EINVAL);
    FAILS(make(other, 0, 10, 0), EINVAL);
    FAILS(make(other, 0, -1, 10), EINVAL);
    FAILS(mq_unlink(other), ENOENT);
    mqd_t queue = make(name, 0, 4, 32);
    CHECK(queue != (mqd_t)-1);
    FAILS(make(name, 0, 4, 32), EEXIST);
    show_attr(queue);
    CHECK(fcntl((int)queue, F_GETFD) == FD_CLOEXEC);
    CHECK((fcntl((int)queue, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == O_RDWR);
    struct stat st;
    CHECK(fstat((int)queue, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 07777) == 0600 && st.st_size == 80);
    mqd_t defaults = mq_open(other, O_CREAT | O_RDONLY, 0644, NULL);
    show_attr(defaults);
    CHECK(mq_close(defaults) == 0 && mq_unlink(other) == 0);
    CHECK(mq_close(queue) == 0);
    FAILS(mq_close(queue), EBADF);
    queue = mq_open(name, O_RDWR);
    CHECK(mq_unlink(name) == 0);
    FAILS(mq_open(name, O_RDWR), ENOENT);
    CHECK(mq_send(queue, "still there", 11, 0) == 0);
    show_attr(queue);
    CHECK(mq_close(queue) == 0);
}

static void order(void) {
    section("order");
    mqd_t queue = make(name, O_NONBLOCK, 4, 16);
    char text[16];
    unsigned priority = 0;
    FAILS(mq_receive(queue, text, sizeof text, NULL), EAGAIN);
    CHECK(mq_send(queue, "low", 3, 1) == 0);
    CHECK(mq_send(queue, "high 1", 6, 32767) == 0);
    CHECK(mq_send(queue, "", 0, 5) == 0);
    CHECK(mq_send(queue, "high 2", 6, 32767) == 0);
    FAILS(mq_send(queue, "more", 4, 1), EAGAIN);
    FAILS(mq_send(queue, "wrong", 5, 32768), EINVAL);
    FAILS(mq_send(queue, "longer than sixteen", 19, 1), EMSGSIZE);
    FAILS(mq_receive(queue, text, 15, NULL), EMSGSIZE);
    FAILS(mq_receive(-1, text, 16, NULL), EBADF);
    FAILS(mq_receive(1, text, 16, NULL), EBADF);
    show_attr(queue);
    show_status(queue);
    for (int i = 0; i < 4; i++) {
        ssize_t len = mq_receive(queue, text, sizeof text, &priority);
        printf("%zd bytes of priority %u: %.*s\n", len, priority, (int)len, text);
    }
    show_status(queue);
    FAILS(mq_send(queue, (char *)8, 4, 1), EFAULT);
    mqd_t reads = mq_open(name, O_RDONLY), writes = mq_open(name, O_WRONLY);
    FAILS(mq_send(reads, "x", 1, 0), EBADF);
    FAILS(mq_receive(writes, text, sizeof text, NULL), EBADF);
    struct mq_attr attr = {.mq_flags = O_NONBLOCK, .mq_maxmsg = 99}, old;
    CHECK(mq_setattr(reads, &attr, &old) == 0 && old.mq_flags == 0);
    show_attr(reads);
    attr.mq_flags = O_APPEND;
    FAILS(mq_setattr(reads, &attr, NULL), EINVAL);
    CHECK(mq_close(reads) == 0 && mq_close(writes) == 0 && mq_close(queue) == 0 && mq_unlink(name) == 0);
}

static mqd_t shared;

static void *send_later(void *text) {
    usleep(30000);
    NEED(mq_send(shared, text, strlen(text), 3) == 0);
    return NULL;
}

static void *receive_later(void *unused) {
    char text[16];
    (void)unused;
    usleep(30000);
    NEED(mq_receive(shared, text, sizeof text, NULL) >= 0);
    return NULL;
}

static volatile sig_atomic_t signals, code, value, sender;
static void on_signal(int signo, siginfo_t *info, void *context) {
    (void)signo;
    (void)context;
    signals++;
    code = info->si_code;
    value = info->si_value.sival_int;
    sender = info->si_pid == getpid();
}

static void waiting(void) {
    section("waiting");
    shared = make(name, 0, 1, 16);
    char text[16];
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, send_later, "later") == 0);
    CHECK(mq_receive(shared, text, sizeof text, NULL) == 5);
    NEED(pthread_join(thread, NULL) == 0);
    CHECK(mq_send(shared, "first", 5, 0) == 0);
    NEED(pthread_create(&thread, NULL, receive_later, NULL) == 0);
    CHECK(mq_send(shared, "second", 6, 0) == 0);
    NEED(pthread_join(thread, NULL) == 0);
    struct timespec soon = after_ms(20), past = {1, 0}, wrong = {0, 1000000000};
    FAILS(mq_timedsend(shared, "third", 5, 0, &soon), ETIMEDOUT);
    FAILS(mq_timedsend(shared, "third", 5, 0, &past), ETIMEDOUT);
    FAILS(mq_timedsend(shared, "third", 5, 0, &wrong), EINVAL);
    CHECK(mq_timedreceive(shared, text, sizeof text, NULL, &past) == 6);
    FAILS(mq_timedreceive(shared, text, sizeof text, NULL, &past), ETIMEDOUT);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    NEED(sigaction(SIGALRM, &action, NULL) == 0);
    alarm(1);
    FAILS(mq_receive(shared, text, sizeof text, NULL), EINTR);
    struct pollfd poll_of = {.fd = (int)shared, .events = POLLIN | POLLOUT};
    CHECK(poll(&poll_of, 1, 0) == 1 && poll_of.revents == POLLOUT);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, (int)shared, &event) == 0);
    CHECK(epoll_wait(epoll, &event, 1, 0) == 0);
    NEED(pthread_create(&thread, NULL, send_later, "polled") == 0);
    CHECK(epoll_wait(epoll, &event, 1, 5000) == 1 && event.events == EPOLLIN);
    NEED(pthread_join(thread, NULL) == 0);
    CHECK(poll(&poll_of, 1, 0) == 1 && poll_of.revents == POLLIN);
    CHECK(close(epoll) == 0 && mq_close(shared) == 0 && mq_unlink(name) == 0);
}

static void notices(void) {
    section("notices");
    mqd_t queue = make(name, O_NONBLOCK, 4, 16);
    char text[16];
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    action.sa_flags |= SA_RESTART;
    NEED(sigaction(SIGUSR1, &action, NULL) == 0);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 77};
    signals = 0;
    CHECK(mq_notify(queue, &event) == 0);
    FAILS(mq_notify(queue, &event), EBUSY);
    show_status(queue);
    CHECK(mq_send(queue, "one", 3, 0) == 0);
    CHECK(signals == 1 && code == SI_MESGQ && value == 77 && sender == 1);
    CHECK(mq_send(queue, "two", 3, 0) == 0 && signals == 1);
    CHECK(mq_notify(queue, &event) == 0);
    CHECK(mq_send(queue, "three", 5, 0) == 0 && signals == 1);
    while (mq_receive(queue, text, sizeof text, NULL) >= 0) {}
    pid_t child = fork();
    if (!child) {
        NEED(mq_send(queue, "by a child", 10, 0) == 0);
        _exit(0);
    }
    NEED(waitpid(child, NULL, 0) == child);
    CHECK(signals == 2 && code == SI_MESGQ && sender == 0);
    NEED(mq_receive(queue, text, sizeof text, NULL) == 10);
    CHECK(mq_notify(queue, &event) == 0 && mq_notify(queue, NULL) == 0);
    CHECK(mq_send(queue, "unheard", 7, 0) == 0 && signals == 2);
    NEED(mq_receive(queue, text, sizeof text, NULL) == 7);
    CHECK(mq_notify(queue, &event) == 0);
    mqd_t again = mq_open(name, O_RDWR);
    CHECK(mq_close(again) == 0);
    CHECK(mq_notify(queue, &event) == 0);
    event.sigev_signo = 99;
    FAILS(mq_notify(queue, &event), EINVAL);
    event.sigev_notify = 42;
    FAILS(mq_notify(queue, &event), EINVAL);
    CHECK(mq_close(queue) == 0 && mq_unlink(name) == 0);
}

static pthread_mutex_t told_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t told_change = PTHREAD_COND_INITIALIZER;
static int told;

static void on_message(union sigval given) {
    pthread_mutex_lock(&told_lock);
    told += given.sival_int;
    pthread_cond_signal(&told_change);
    pthread_mutex_unlock(&told_lock);
}

static int wait_until_told(int wanted) {
    struct timespec end = after_ms(10000);
    pthread_mutex_lock(&told_lock);
    while (told < wanted && pthread_cond_timedwait(&told_change, &told_lock, &end) == 0) {}
    int seen = told;
    pthread_mutex_unlock(&told_lock);
    return seen;
}

// The library has a thread of its own that reads notices from a socket of netlink (SIGEV_THREAD).
static void threads(void) {
    section("notices to threads");
    mqd_t queue = make(name, O_NONBLOCK, 4, 16);
    char text[16];
    struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_message,
                             .sigev_value.sival_int = 5};
    CHECK(mq_notify(queue, &event) == 0);
    FAILS(mq_notify(queue, &event), EBUSY);
    show_status(queue);
    CHECK(mq_send(queue, "one", 3, 0) == 0);
    CHECK(wait_until_told(5) == 5);
    NEED(mq_receive(queue, text, sizeof text, NULL) == 3);
    CHECK(mq_notify(queue, &event) == 0);
    pid_t child = fork();
    if (!child) {
        NEED(mq_send(queue, "by a child", 10, 0) == 0);
        _exit(0);
    }
    NEED(waitpid(child, NULL, 0) == child);
    CHECK(wait_until_told(10) == 10);
    NEED(mq_receive(queue, text, sizeof text, NULL) == 10);
    CHECK(mq_notify(queue, &event) == 0 && mq_notify(queue, NULL) == 0);
    show_status(queue);

    // The same as the library does it.
    unsigned char cookie[32], read_back[40];
    for (int i = 0; i < 32; i++) cookie[i] = (unsigned char)(i + 1);
    int reader = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0);
    struct sigevent raw = {.sigev_notify = SIGEV_THREAD, .sigev_signo = reader, .sigev_value.sival_ptr = cookie};
    CHECK(syscall(SYS_mq_notify, queue, &raw) == 0);
    CHECK(recv(reader, read_back, sizeof read_back, MSG_DONTWAIT) == -1);
    CHECK(mq_send(queue, "two", 3, 0) == 0);
    CHECK(recv(reader, read_back, sizeof read_back, MSG_WAITALL) == 32);
    CHECK(memcmp(cookie, read_back, 31) == 0 && read_back[31] == 1);
    NEED(mq_receive(queue, text, sizeof text, NULL) == 3);
    CHECK(syscall(SYS_mq_notify, queue, &raw) == 0);
    CHECK(mq_notify(queue, NULL) == 0);
    CHECK(recv(reader, read_back, sizeof read_back, 0) == 32 && read_back[31] == 2);
    CHECK(syscall(SYS_mq_notify, queue, &raw) == 0);
    mqd_t again = mq_open(name, O_RDWR);
    CHECK(mq_close(again) == 0);
    CHECK(recv(reader, read_back, sizeof read_back, 0) == 32 && read_back[31] == 2);
    // The notice of a process that ends is for whoever has the socket then.
    child = fork();
    if (!child) _exit(syscall(SYS_mq_notify, queue, &raw) != 0);
    NEED(waitpid(child, NULL, 0) == child);
    CHECK(recv(reader, read_back, sizeof read_back, 0) == 32 && read_back[31] == 2);
    // One that nobody reads any more is lost.
    CHECK(syscall(SYS_mq_notify, queue, &raw) == 0);
    CHECK(close(reader) == 0);
    CHECK(mq_send(queue, "three", 5, 0) == 0);
    NEED(mq_receive(queue, text, sizeof text, NULL) == 5);
    FAILS(syscall(SYS_mq_notify, queue, &raw), EBADF);
    raw.sigev_signo = (int)queue;
    FAILS(syscall(SYS_mq_notify, queue, &raw), ENOTSOCK);
    raw.sigev_value.sival_ptr = (void *)8;
    FAILS(syscall(SYS_mq_notify, queue, &raw), EFAULT);
    int pair[2];
    NEED(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    raw.sigev_signo = pair[0];
    raw.sigev_value.sival_ptr = cookie;
    FAILS(syscall(SYS_mq_notify, queue, &raw), EINVAL);
    CHECK(close(pair[0]) == 0 && close(pair[1]) == 0);
    CHECK(mq_close(queue) == 0 && mq_unlink(name) == 0);
}

static void limits(void) {
    section("limits");
    struct rlimit few = {4096, 4096};
    pid_t child = fork();
    if (!child) {
        NEED(setrlimit(RLIMIT_MSGQUEUE, &few) == 0);
        FAILS(make(name, 0, 10, 8192), EMFILE);
        _exit(0);
    }
    NEED(waitpid(child, NULL, 0) == child);
    // One that gets no descriptor is not made.
    child = fork();
    if (!child) {
        struct rlimit none = {0, 0};
        NEED(setrlimit(RLIMIT_NOFILE, &none) == 0);
        FAILS(make(name, 0, 2, 16), EMFILE);
        _exit(0);
    }
    NEED(waitpid(child, NULL, 0) == child);
    FAILS(mq_open(name, O_RDONLY), ENOENT);
    // A queue lives on while it has a name, whoever ends.
    child = fork();
    if (!child) {
        mqd_t queue = make(name, 0, 2, 16);
        NEED(mq_send(queue, "from the dead", 13, 9) == 0);
        _exit(0);
    }
    NEED(waitpid(child, NULL, 0) == child);
    char text[16];
    unsigned priority;
    mqd_t queue = mq_open(name, O_RDONLY);
    CHECK(mq_receive(queue, text, sizeof text, &priority) == 13 && priority == 9);
    CHECK(mq_close(queue) == 0 && mq_unlink(name) == 0);
}

int main(void) {
    snprintf(name, sizeof name, "/kvmlet-%d", getpid());
    snprintf(other, sizeof other, "/kvmlet-other-%d", getpid());
    names();
    order();
    waiting();
    notices();
    threads();
    limits();
    return 0;
}
