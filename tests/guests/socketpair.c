// socketpair(2): streams, datagrams, sequenced packets.
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>

static int sv[2];
static char buf[300000];
static int pipes_broken;

static void on_sigpipe(int s) {
    (void)s;
    pipes_broken++;
}

static void fresh(int type) {
    close(sv[0]);
    close(sv[1]);
    need(socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, sv) == 0, "socketpair");
}

static void state(const char *what) {
    struct pollfd p[2] = {{sv[0], 0x7fff & ~POLLNVAL, 0}, {sv[1], 0x7fff & ~POLLNVAL, 0}};
    poll(p, 2, 0);
    printf("%s: %#x %#x\n", what, p[0].revents, p[1].revents);
}

static void sigpipes(void) {
    printf("SIGPIPE %d\n", pipes_broken);
    pipes_broken = 0;
}

static int option(int fd, int name) {
    int value = -1;
    socklen_t len = sizeof value;
    return getsockopt(fd, SOL_SOCKET, name, &value, &len) ? -errno : value;
}

static void creation(void) {
    section("creation");
    FAILS(socketpair(AF_UNIX, 9, 0, sv), ESOCKTNOSUPPORT);
    FAILS(socketpair(AF_UNIX, SOCK_STREAM, 2, sv), EPROTONOSUPPORT);
    FAILS(socketpair(AF_UNIX, SOCK_STREAM | 0x100, 0, sv), EINVAL);
    FAILS(socketpair(AF_UNIX, SOCK_STREAM, 0, (void *)8), EFAULT);
    FAILS(socketpair(99, SOCK_STREAM, 0, sv), EAFNOSUPPORT);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, AF_UNIX, sv) == 0);
    CHECK((fcntl(sv[0], F_GETFD) & FD_CLOEXEC) != 0 && (fcntl(sv[1], F_GETFD) & FD_CLOEXEC) != 0);
    CHECK(fcntl(sv[0], F_GETFL) == O_RDWR);
    struct stat st;
    CHECK(fstat(sv[0], &st) == 0 && S_ISSOCK(st.st_mode) && (st.st_mode & 07777) == 0777 && st.st_size == 0);
    char name[64], link[64] = {0}, want[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", sv[0]);
    snprintf(want, sizeof want, "socket:[%lu]", (unsigned long)st.st_ino);
    CHECK(readlink(name, link, 63) > 0 && strcmp(link, want) == 0);
    FAILS(open(name, O_RDWR), ENXIO);
    FAILS(lseek(sv[0], 0, SEEK_SET), ESPIPE);
    FAILS(pread(sv[0], buf, 1, 0), ESPIPE);
    FAILS(ftruncate(sv[0], 0), EINVAL);
    FAILS(fsync(sv[0]), EINVAL);
    SHOW(read(sv[0], buf, 0));
    int p[2];
    need(pipe(p) == 0, "pipe");
    FAILS(send(p[1], "x", 1, 0), ENOTSOCK);
    FAILS(recv(99, buf, 1, 0), EBADF);
    FAILS(getsockname(p[0], NULL, NULL), ENOTSOCK);
}

static void options(int type) {
    fresh(type);
    CHECK(option(sv[0], SO_TYPE) == type);
    CHECK(option(sv[0], SO_DOMAIN) == AF_UNIX);
    CHECK(option(sv[0], SO_PROTOCOL) == 0);
    CHECK(option(sv[0], SO_ERROR) == 0);
    CHECK(option(sv[0], SO_ACCEPTCONN) == 0);
    CHECK(option(sv[0], SO_SNDBUF) == 212992 && option(sv[0], SO_RCVBUF) == 212992);
    CHECK(option(sv[0], SO_RCVLOWAT) == 1);
    CHECK(option(sv[0], 99) == -ENOPROTOOPT);
    int n = 10000;
    CHECK(setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &n, sizeof n) == 0 && option(sv[0], SO_SNDBUF) == 20000);
    n = 1;
    CHECK(setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &n, sizeof n) == 0 && option(sv[0], SO_SNDBUF) == 4608);
    CHECK(setsockopt(sv[0], SOL_SOCKET, SO_KEEPALIVE, &n, sizeof n) == 0 && option(sv[0], SO_KEEPALIVE) == 1);
    FAILS(setsockopt(sv[0], SOL_SOCKET, SO_KEEPALIVE, &n, 3), EINVAL);
    FAILS(setsockopt(sv[0], SOL_SOCKET, 99, &n, 4), ENOPROTOOPT);
    FAILS(setsockopt(sv[0], 6, 1, &n, 4), EOPNOTSUPP);
    struct ucred cred = {0};
    socklen_t len = sizeof cred;
    CHECK(getsockopt(sv[0], SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && len == sizeof cred);
    CHECK(cred.pid == getpid() && cred.uid == getuid() && cred.gid == getgid());
    struct sockaddr_un un = {.sun_family = 99};
    len = sizeof un;
    CHECK(getsockname(sv[0], (void *)&un, &len) == 0 && len == 2 && un.sun_family == AF_UNIX);
    len = sizeof un;
    CHECK(getpeername(sv[0], (void *)&un, &len) == 0 && len == 2);
    struct timeval tv = {0, 30000};
    CHECK(setsockopt(sv[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) == 0);
    CHECK(fcntl(sv[0], F_SETFL, O_RDWR) == 0);
    FAILS(recv(sv[0], buf, 1, 0), EAGAIN);
    FAILS(listen(sv[0], 1), type == SOCK_DGRAM ? EOPNOTSUPP : EINVAL);
    FAILS(accept(sv[0], NULL, NULL), type == SOCK_DGRAM ? EOPNOTSUPP : EINVAL);
}

static void transfers(int type) {
    fresh(type);
    state("new");
    SHOW(send(sv[0], "hello", 5, 0));
    SHOW(send(sv[0], "world!", 6, MSG_EOR));
    state("sent");
    int n = 0;
    CHECK(ioctl(sv[1], FIONREAD, &n) == 0);
    printf("FIONREAD %d\n", n);
    SHOW(recv(sv[1], buf, 3, MSG_PEEK));
    SHOW(recv(sv[1], buf, 3, MSG_TRUNC));
    printf("%.3s\n", buf);
    SHOW(recv(sv[1], buf, 100, 0));
    printf("%.2s\n", buf);
    SHOW(recv(sv[1], buf, 100, MSG_DONTWAIT));
    SHOW(recv(sv[1], buf, 0, 0));
    SHOW(send(sv[0], "", 0, 0));
    SHOW(recv(sv[1], buf, 100, 0));
    struct iovec iov[2] = {{"ab", 2}, {"cdef", 4}};
    SHOW(writev(sv[0], iov, 2));
    char a[3] = {0}, b[3] = {0};
    struct iovec into[2] = {{a, 2}, {b, 2}};
    char name[32];
    struct msghdr msg = {.msg_iov = into, .msg_iovlen = 2, .msg_name = name, .msg_namelen = sizeof name};
    SHOW(recvmsg(sv[1], &msg, 0));
    printf("%s %s flags %#x name %d control %zu\n", a, b, msg.msg_flags, msg.msg_namelen, msg.msg_controllen);
    SHOW(recv(sv[1], buf, 10, 0));
    msg = (struct msghdr){.msg_iov = iov, .msg_iovlen = 2};
    SHOW(sendmsg(sv[0], &msg, 0));
    struct sockaddr_storage from;
    socklen_t len = sizeof from;
    SHOW(recvfrom(sv[1], buf, 100, 0, (void *)&from, &len));
    printf("from %d\n", len);
    FAILS(send(sv[0], (void *)8, 5, 0), EFAULT);
    SHOW(send(sv[0], "fault", 5, 0));
    FAILS(recv(sv[1], (void *)8, 5, 0), EFAULT);
    SHOW(recv(sv[1], buf, 10, 0));
    struct sockaddr_un to = {.sun_family = AF_UNIX, .sun_path = "/tmp/nobody"};
    if (type == SOCK_STREAM) FAILS(sendto(sv[0], "x", 1, 0, (void *)&to, sizeof to), EISCONN);
    SHOW(shutdown(sv[0], 3));
    // Full, and room again.
    while (send(sv[0], buf, 1000, 0) > 0) n++;
    printf("full: %s\n", errno_name(errno));
    state("full");
    while (recv(sv[1], buf, sizeof buf, 0) > 0) {}
    state("drained");
    if (type == SOCK_STREAM)
        CHECK(send(sv[0], buf, sizeof buf, 0) < (int)sizeof buf);
    else
        SHOW(send(sv[0], buf, sizeof buf, 0) == -1 && errno == EMSGSIZE);
}

static void shutdowns(int type) {
    fresh(type);
    SHOW(send(sv[0], "left", 4, 0));
    SHOW(shutdown(sv[1], SHUT_RD));
    state("the other reads no more");
    SHOW(send(sv[0], "x", 1, 0));
    SHOW(send(sv[0], "x", 1, MSG_NOSIGNAL));
    sigpipes();
    SHOW(recv(sv[1], buf, 10, 0));
    SHOW(recv(sv[1], buf, 10, 0));
    SHOW(send(sv[1], "x", 1, 0));
    SHOW(recv(sv[0], buf, 10, 0));
    SHOW(shutdown(sv[1], SHUT_WR));
    state("nor writes");
    SHOW(recv(sv[0], buf, 10, 0));
    SHOW(write(sv[1], "x", 1));
    sigpipes();

    fresh(type);
    SHOW(send(sv[0], "abc", 3, 0));
    SHOW(send(sv[1], "xyz", 3, 0));
    close(sv[1]);
    sv[1] = -1;
    state("closed with something unread");
    for (int i = 0; i < 3; i++) SHOW(recv(sv[0], buf, 10, 0));
    CHECK(option(sv[0], SO_ERROR) == 0);
    SHOW(send(sv[0], "x", 1, 0));
    SHOW(send(sv[0], "x", 1, MSG_NOSIGNAL));
    SHOW(write(sv[0], "x", 1));
    sigpipes();
    state("after it");
    struct sockaddr_un un;
    socklen_t len = sizeof un;
    SHOW(getpeername(sv[0], (void *)&un, &len));

    fresh(type);
    SHOW(send(sv[1], "last", 4, 0));
    close(sv[1]);
    sv[1] = -1;
    state("closed");
    SHOW(recv(sv[0], buf, 10, 0));
    SHOW(recv(sv[0], buf, 10, 0));
}

static long total;

static void *receive_all(void *arg) {
    int fd = *(int *)arg;
    static char chunk[7000];
    for (ssize_t n; (n = read(fd, chunk, sizeof chunk)) > 0;)
        for (ssize_t i = 0; i < n; i++) total += (unsigned char)chunk[i];
    return NULL;
}

static void *send_parts(void *arg) {
    for (int i = 0; i < 4; i++) {
        nanosleep(&(struct timespec){0, 10000000}, NULL);
        need(write(*(int *)arg, "part", 4) == 4, "write");
    }
    return NULL;
}

static void waits(void) {
    section("waits");
    need(socketpair(AF_UNIX, SOCK_STREAM, 0, sv) == 0, "socketpair");
    long sum = 0;
    for (size_t i = 0; i < sizeof buf; i++) {
        buf[i] = i * 7;
        sum += (unsigned char)buf[i];
    }
    pthread_t t;
    pthread_create(&t, NULL, receive_all, &sv[1]);
    for (int i = 0; i < 3; i++) CHECK(write(sv[0], buf, sizeof buf) == sizeof buf);
    shutdown(sv[0], SHUT_WR);
    pthread_join(t, NULL);
    CHECK(total == 3 * sum);
    close(sv[0]);
    close(sv[1]);
    need(socketpair(AF_UNIX, SOCK_STREAM, 0, sv) == 0, "socketpair");
    pthread_create(&t, NULL, send_parts, &sv[0]);
    SHOW(recv(sv[1], buf, 16, MSG_WAITALL));
    pthread_join(t, NULL);
    printf("%.16s\n", buf);
}

int main(void) {
    signal(SIGPIPE, on_sigpipe);
    creation();
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    for (int i = 0; i < 3; i++) {
        printf("# type %d\n", types[i]);
        options(types[i]);
        transfers(types[i]);
        shutdowns(types[i]);
    }
    waits();
    return 0;
}
