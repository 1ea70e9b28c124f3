// Descriptors and credentials that come with messages (SCM_RIGHTS, SCM_CREDENTIALS), and what is refused of them.
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#define MANY 260

static int sv[2];
static char data[100];
static _Alignas(struct cmsghdr) char control[8192];

static void fresh(int type) {
    close(sv[0]);
    close(sv[1]);
    need(socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, sv) == 0, "socketpair");
}

// Sends text with a control message of this kind over these bytes.
static ssize_t post(int fd, const char *text, int type, const void *bytes, size_t len) {
    struct iovec iov = {(void *)text, strlen(text)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(len)};
    memset(control, 0, sizeof control);
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = type;
    c->cmsg_len = CMSG_LEN(len);
    memcpy(CMSG_DATA(c), bytes, len);
    return sendmsg(fd, &msg, MSG_NOSIGNAL);
}

static int got[MANY], count;

// Receives into `room` bytes of control data, says what came, and keeps the descriptors.
static void take(const char *what, int fd, size_t len, size_t room, int flags) {
    struct iovec iov = {data, len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = room};
    memset(control, 0, sizeof control);
    count = 0;
    ssize_t n = recvmsg(fd, &msg, flags);
    if (n < 0) {
        printf("%s: %s\n", what, errno_name(errno));
        return;
    }
    printf("%s: \"%.*s\" flags %#x control %zu:", what, (int)n, data, msg.msg_flags, msg.msg_controllen);
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        printf(" %d/%d of %zu", c->cmsg_level, c->cmsg_type, (size_t)c->cmsg_len);
        if (c->cmsg_type == SCM_RIGHTS) {
            count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(got, CMSG_DATA(c), count * sizeof(int));
            printf(" (%d descriptors)", count);
        } else if (c->cmsg_type == SCM_CREDENTIALS && c->cmsg_len == CMSG_LEN(sizeof(struct ucred))) {
            struct ucred cred;
            memcpy(&cred, CMSG_DATA(c), sizeof cred);
            printf(cred.pid == getpid() && cred.uid == getuid() && cred.gid == getgid() ? " (ours)"
                   : cred.pid == 0                                                      ? " (nobody's)"
                                                                                        : " (another's)");
        }
    }
    printf("\n");
}

static void drop(void) {
    for (int i = 0; i < count; i++) close(got[i]);
    count = 0;
}

static int open_now(void) {
    int n = 0;
    for (int fd = 0; fd < 1100; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void passing(int type) {
    printf("# type %d\n", type);
    fresh(type);
    int before = open_now(), p[2];
    need(pipe(p) == 0, "pipe");
    CHECK(post(sv[0], "abc", SCM_RIGHTS, p, sizeof p) == 3);
    close(p[0]);
    close(p[1]);
    CHECK(open_now() == before);
    take("looked at", sv[1], 10, sizeof control, MSG_PEEK);
    CHECK(count == 2 && write(got[1], "through", 7) == 7);
    drop();
    take("taken", sv[1], 10, sizeof control, MSG_CMSG_CLOEXEC);
    CHECK(count == 2 && fcntl(got[0], F_GETFD) == FD_CLOEXEC && read(got[0], data, 10) == 7);
    drop();
    CHECK(open_now() == before);
    // What nobody takes is closed: the pipe breaks.
    for (int way = 0; way < 5; way++) {
        need(pipe(p) == 0, "pipe");
        NEED(post(sv[0], "abc", SCM_RIGHTS, &p[0], sizeof(int)) == 3);
        close(p[0]);
        if (way == 0) NEED(read(sv[1], data, 10) == 3);
        if (way == 1) NEED(recv(sv[1], data, 10, 0) == 3);
        if (way == 2) take("without control data", sv[1], 10, 0, 0);
        if (way == 3) take("with little control data", sv[1], 10, CMSG_LEN(0), 0);
        if (way == 4) fresh(type);
        FAILS(write(p[1], "x", 1), EPIPE);
        close(p[1]);
    }
    CHECK(open_now() == before);
    // As many as have room.
    int many[MANY];
    for (int i = 0; i < MANY; i++) many[i] = 0;
    CHECK(post(sv[0], "x", SCM_RIGHTS, many, 253 * sizeof(int)) == 1);
    take("all", sv[1], 10, sizeof control, 0);
    drop();
    FAILS(post(sv[0], "x", SCM_RIGHTS, many, 254 * sizeof(int)), EINVAL);
    CHECK(post(sv[0], "x", SCM_RIGHTS, many, 5 * sizeof(int)) == 1);
    take("three of five", sv[1], 10, CMSG_LEN(3 * sizeof(int)), 0);
    drop();
    CHECK(post(sv[0], "x", SCM_RIGHTS, many, 5 * sizeof(int)) == 1);
    struct rlimit limit, low;
    getrlimit(RLIMIT_NOFILE, &limit);
    low = limit;
    int lowest = dup(0);
    close(lowest);
    low.rlim_cur = lowest + 2;
    setrlimit(RLIMIT_NOFILE, &low);
    take("as many as may be open", sv[1], 10, sizeof control, 0);
    drop();
    setrlimit(RLIMIT_NOFILE, &limit);
    many[2] = 99;
    FAILS(post(sv[0], "x", SCM_RIGHTS, many, 5 * sizeof(int)), EBADF);
    CHECK(post(sv[0], "none", SCM_RIGHTS, many, 0) == 4);
    take("none", sv[1], 10, sizeof control, 0);
    FAILS(post(sv[0], "x", 77, many, 4), EINVAL);
    take("nothing", sv[1], 10, sizeof control, 0);
    CHECK(open_now() == before);
}

static void boundaries(void) {
    section("where a stream ends a read");
    fresh(SOCK_STREAM);
    int fd = 0;
    NEED(send(sv[0], "before", 6, 0) == 6);
    NEED(post(sv[0], "with", SCM_RIGHTS, &fd, sizeof fd) == 4);
    NEED(send(sv[0], "after", 5, 0) == 5);
    int n = 0;
    CHECK(ioctl(sv[1], FIONREAD, &n) == 0 && n == 15);
    take("up to it", sv[1], 5, sizeof control, 0);
    take("as much as it has", sv[1], 100, sizeof control, 0);
    drop();
    take("the rest", sv[1], 100, sizeof control, 0);
    NEED(post(sv[0], "with", SCM_RIGHTS, &fd, sizeof fd) == 4);
    take("a part", sv[1], 2, sizeof control, 0);
    drop();
    take("another part", sv[1], 100, sizeof control, 0);
    NEED(post(sv[0], "one", SCM_RIGHTS, &fd, sizeof fd) == 3);
    NEED(post(sv[0], "two", SCM_RIGHTS, &fd, sizeof fd) == 3);
    take("all that is asked for", sv[1], 6, sizeof control, MSG_WAITALL);
    drop();
    take("and again", sv[1], 6, sizeof control, 0);
    drop();
}

static void credentials(int type) {
    printf("# credentials, type %d\n", type);
    fresh(type);
    int on = 1;
    struct ucred cred = {getpid(), getuid(), getgid()};
    NEED(send(sv[0], "earlier", 7, 0) == 7);
    CHECK(setsockopt(sv[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    socklen_t len = sizeof on;
    CHECK(getsockopt(sv[1], SOL_SOCKET, SO_PASSCRED, &on, &len) == 0 && on == 1);
    NEED(send(sv[0], "later", 5, 0) == 5);
    CHECK(post(sv[0], "given", SCM_CREDENTIALS, &cred, sizeof cred) == 5);
    take("first", sv[1], 100, sizeof control, 0);
    take("second", sv[1], 100, sizeof control, 0);
    take("third", sv[1], 100, sizeof control, 0);
    take("nothing", sv[1], 100, sizeof control, 0);
    fflush(stdout);
    if (fork() == 0) {
        NEED(send(sv[0], "child", 5, 0) == 5);
        _exit(0);
    }
    wait(NULL);
    int fd = 1;
    NEED(post(sv[0], "parent", SCM_RIGHTS, &fd, sizeof fd) == 6);
    take("a child", sv[1], 100, sizeof control, 0);
    take("we, with a descriptor", sv[1], 100, sizeof control, 0);
    drop();
    NEED(send(sv[0], "short", 5, 0) == 5);
    take("with little control data", sv[1], 100, 20, 0);
    FAILS(post(sv[0], "x", SCM_CREDENTIALS, &cred, 8), EINVAL);
    if (getuid() != 0) {
        cred.pid++;
        FAILS(post(sv[0], "x", SCM_CREDENTIALS, &cred, sizeof cred), EPERM);
    }
}

static void malformed(void) {
    section("malformed");
    fresh(SOCK_STREAM);
    struct iovec iov = {"x", 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = 24};
    memset(control, 0, sizeof control);
    struct cmsghdr *c = (void *)control;
    *c = (struct cmsghdr){15, SOL_SOCKET, SCM_RIGHTS};
    FAILS(sendmsg(sv[0], &msg, 0), EINVAL);
    c->cmsg_len = 25;
    FAILS(sendmsg(sv[0], &msg, 0), EINVAL);
    c->cmsg_len = (size_t)-1;
    FAILS(sendmsg(sv[0], &msg, 0), EINVAL);
    *c = (struct cmsghdr){20, 12345, SCM_RIGHTS};
    CHECK(sendmsg(sv[0], &msg, 0) == 1);
    msg.msg_controllen = 8;
    CHECK(sendmsg(sv[0], &msg, 0) == 1);
    msg.msg_controllen = 1 << 20;
    FAILS(sendmsg(sv[0], &msg, 0), ENOBUFS);
    msg.msg_control = (void *)8;
    msg.msg_controllen = 24;
    FAILS(sendmsg(sv[0], &msg, 0), EFAULT);
    take("what has come", sv[1], 100, sizeof control, 0);
    // Control data that cannot be written: the descriptor is closed.
    int p[2];
    need(pipe(p) == 0, "pipe");
    NEED(post(sv[0], "abc", SCM_RIGHTS, &p[0], sizeof(int)) == 3);
    close(p[0]);
    iov = (struct iovec){data, sizeof data};
    msg.msg_controllen = 100;
    SHOW(recvmsg(sv[1], &msg, 0));
    FAILS(write(p[1], "x", 1), EPIPE);
    close(p[1]);
}

// The reading end of the pipe that this is an end of goes. Linux looks for it when some other socket goes.
static void breaks(int fd) {
    struct pollfd polled = {fd, 0, 0};
    for (int tries = 0; tries < 500 && polled.revents != POLLERR; tries++) {
        close(socket(AF_UNIX, SOCK_STREAM, 0));
        poll(&polled, 1, 10);
    }
    CHECK(polled.revents == POLLERR);
    close(fd);
}

static void cycles(void) {
    section("descriptors that only messages have");
    int before = open_now(), p[2];
    // A socket in its own queue, beside the end of a pipe.
    need(pipe(p) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, sv) == 0, "pipe and sockets");
    int both[] = {sv[1], p[0]};
    NEED(post(sv[0], "x", SCM_RIGHTS, both, sizeof both) == 1);
    close(p[0]);
    struct pollfd polled = {p[1], POLLOUT, 0};
    CHECK(poll(&polled, 1, 0) == 1 && polled.revents == POLLOUT);
    close(sv[0]);
    close(sv[1]);
    breaks(p[1]);
    // A listener in a message of a connection that it will not accept any more.
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un un = {.sun_family = AF_UNIX, .sun_path = "\0kvmlet cycle"};
    need(bind(listener, (void *)&un, 20) == 0 && listen(listener, 5) == 0, "listen");
    need(connect(client, (void *)&un, 20) == 0, "connect");
    need(pipe(p) == 0, "pipe");
    int three[] = {listener, client, p[0]};
    NEED(post(client, "x", SCM_RIGHTS, three, sizeof three) == 1);
    close(listener);
    close(p[0]);
    breaks(p[1]);
    close(client);
    // A long chain, dropped at once.
    need(pipe(p) == 0, "pipe");
    int last = p[0];
    for (int i = 0; i < 300; i++) {
        need(socketpair(AF_UNIX, SOCK_STREAM, 0, sv) == 0, "socketpair");
        NEED(post(sv[0], "x", SCM_RIGHTS, &last, sizeof last) == 1);
        close(last);
        close(sv[0]);
        last = sv[1];
    }
    CHECK(open_now() == before + 2);
    close(last);
    breaks(p[1]);
    sv[0] = sv[1] = -1;
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    sv[0] = sv[1] = -1;
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    for (int i = 0; i < 3; i++) passing(types[i]);
    boundaries();
    for (int i = 0; i < 3; i++) credentials(types[i]);
    malformed();
    fresh(SOCK_STREAM);
    close(sv[0]);
    close(sv[1]);
    cycles();
    return 0;
}
