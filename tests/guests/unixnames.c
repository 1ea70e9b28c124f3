// AF_UNIX sockets with names in a directory (/tmp): bind, listen, connect, accept, datagrams; what each call refuses, what poll(2) shows.
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#define BASE offsetof(struct sockaddr_un, sun_path)

#define LEN(text) (socklen_t)(BASE + strlen(text) + 1)
#define AT(path) at(path), LEN(path)

static struct sockaddr_un to;
static char buf[4096];

static struct sockaddr *at(const char *path) {
    to = (struct sockaddr_un){.sun_family = AF_UNIX};
    strcpy(to.sun_path, path);
    return (void *)&to;
}

static struct sockaddr *abstract(const char *name) {
    to = (struct sockaddr_un){.sun_family = AF_UNIX};
    strcpy(to.sun_path + 1, name);
    return (void *)&to;
}

static int make(int type) {
    int fd = socket(AF_UNIX, type, 0);
    need(fd >= 0, "socket");
    return fd;
}

static void name_of(const char *what, int (*ask)(int, struct sockaddr *, socklen_t *), int fd) {
    struct sockaddr_un un;
    memset(&un, '#', sizeof un);
    socklen_t len = sizeof un;
    if (ask(fd, (void *)&un, &len) != 0) {
        printf("%s: %s\n", what, errno_name(errno));
        return;
    }
    printf("%s: %d bytes, family %d: ", what, len, un.sun_family);
    for (unsigned i = BASE; i < len && i < sizeof un; i++) printf(un.sun_path[i - BASE] ? "%c" : "@", un.sun_path[i - BASE]);
    printf("\n");
}

static void state(const char *what, int fd) {
    struct pollfd p = {fd, 0x7fff & ~POLLNVAL, 0};
    poll(&p, 1, 0);
    printf("%s: %#x\n", what, p.revents);
}

static int option(int fd, int name) {
    int value = -1;
    socklen_t len = sizeof value;
    return getsockopt(fd, SOL_SOCKET, name, &value, &len) ? -errno : value;
}

static void creation(void) {
    section("creation");
    FAILS(socket(AF_UNIX, 9, 0), ESOCKTNOSUPPORT);
    FAILS(socket(AF_UNIX, SOCK_STREAM, 5), EPROTONOSUPPORT);
    FAILS(socket(AF_UNIX, SOCK_STREAM | 0x100, 0), EINVAL);
    FAILS(socket(-1, SOCK_STREAM, 0), EAFNOSUPPORT);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 1);
    CHECK(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(fd, F_GETFL) == (O_RDWR | O_NONBLOCK));
    for (int i = 0; i < 3; i++) {
        static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
        int fd = make(types[i] | SOCK_NONBLOCK);
        printf("type %d domain %d protocol %d listens %d\n", option(fd, SO_TYPE), option(fd, SO_DOMAIN),
               option(fd, SO_PROTOCOL), option(fd, SO_ACCEPTCONN));
        state("new", fd);
        name_of("own", getsockname, fd);
        name_of("peer", getpeername, fd);
        struct ucred cred;
        socklen_t len = sizeof cred;
        CHECK(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && cred.pid == 0 && cred.uid == (uid_t)-1);
        SHOW(send(fd, "x", 1, MSG_NOSIGNAL));
        SHOW(send(fd, "", 0, MSG_NOSIGNAL));
        SHOW(recv(fd, buf, 1, 0));
        SHOW(shutdown(fd, SHUT_RDWR));
        state("shut down", fd);
        // Kernels do not agree on which of the two comes first.
        CHECK(send(fd, "x", 1, MSG_NOSIGNAL) == -1 && (errno == EPIPE || errno == ENOTCONN));
        SHOW(listen(fd, 1));
        SHOW(accept(fd, NULL, NULL));
        SHOW(connect(fd, AT("./nobody")));
        close(fd);
    }
    close(fd);
}

static void binding(void) {
    section("binding");
    int fd = make(SOCK_STREAM), other = make(SOCK_STREAM), packets = make(SOCK_DGRAM);
    umask(027);
    FAILS(bind(fd, AT("./none/s")), ENOENT);
    FAILS(bind(fd, at("./s"), BASE - 1), EINVAL);
    FAILS(bind(fd, at("./s"), 129), EINVAL);
    FAILS(bind(fd, at("./s"), 111), EINVAL);
    FAILS(bind(fd, at("./s"), -1), EINVAL);
    FAILS(bind(fd, (void *)8, 16), EFAULT);
    at("./s");
    to.sun_family = AF_INET;
    FAILS(bind(fd, (void *)&to, LEN(to.sun_path)), EINVAL);
    FAILS(bind(99, AT("./s")), EBADF);
    FAILS(bind(open("/dev/null", O_RDONLY), AT("./s")), ENOTSOCK);
    CHECK(bind(fd, AT("./s")) == 0);
    name_of("own", getsockname, fd);
    struct stat st;
    CHECK(stat("./s", &st) == 0 && st.st_mode == (S_IFSOCK | 0750) && st.st_size == 0 && st.st_nlink == 1);
    CHECK(fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode));
    FAILS(open("./s", O_RDWR), ENXIO);
    FAILS(open("./s", O_RDONLY | O_DIRECTORY), ENOTDIR);
    FAILS(bind(fd, AT("./t")), EINVAL);
    FAILS(stat("./t", &st), ENOENT);
    FAILS(bind(other, AT("./s")), EADDRINUSE);
    FAILS(bind(packets, AT("./s")), EADDRINUSE);
    FAILS(bind(other, AT("./s/x")), ENOTDIR);
    FAILS(bind(other, AT(".")), EADDRINUSE);
    FAILS(connect(other, AT("./s")), ECONNREFUSED);
    FAILS(connect(other, AT("./none")), ENOENT);
    FAILS(connect(other, AT(".")), ECONNREFUSED);
    FAILS(connect(packets, AT("./s")), EPROTOTYPE);
    CHECK(close(open("./file", O_CREAT | O_RDWR, 0600)) == 0);
    FAILS(connect(other, AT("./file")), ECONNREFUSED);
    // Another name, a moved name, a removed one.
    CHECK(listen(fd, 5) == 0);
    CHECK(link("./s", "./linked") == 0 && rename("./s", "./moved") == 0);
    CHECK(connect(other, AT("./linked")) == 0);
    name_of("peer", getpeername, other);
    CHECK(unlink("./linked") == 0);
    int again = make(SOCK_STREAM);
    FAILS(connect(again, AT("./s")), ENOENT);
    CHECK(symlink("./moved", "./symlink") == 0 && connect(again, AT("./symlink")) == 0);
    CHECK(unlink("./moved") == 0 && unlink("./symlink") == 0 && unlink("./file") == 0);
    close(fd);
    // Without a NUL in its 108 bytes.
    fd = make(SOCK_STREAM);
    memset(&to, 0, sizeof to);
    to.sun_family = AF_UNIX;
    memset(to.sun_path, 'a', sizeof to.sun_path);
    memcpy(to.sun_path, "./", 2);
    CHECK(bind(fd, (void *)&to, sizeof to) == 0);
    struct sockaddr_storage longer;
    socklen_t len = sizeof longer;
    CHECK(getsockname(fd, (void *)&longer, &len) == 0 && len == sizeof to + 1);
    len = 5;
    CHECK(getsockname(fd, (void *)&longer, &len) == 0 && len == sizeof to + 1);
    len = -1;
    FAILS(getsockname(fd, (void *)&longer, &len), EINVAL);
    FAILS(getsockname(fd, (void *)8, &len), EINVAL);
    char path[110] = {0};
    memcpy(path, to.sun_path, sizeof to.sun_path);
    CHECK(unlink(path) == 0);
    close(fd);
    // A name that its socket has left behind.
    fd = make(SOCK_STREAM);
    CHECK(bind(fd, AT("./left")) == 0 && listen(fd, 1) == 0 && close(fd) == 0);
    fd = make(SOCK_STREAM);
    FAILS(connect(fd, AT("./left")), ECONNREFUSED);
    FAILS(bind(fd, AT("./left")), EADDRINUSE);
    CHECK(unlink("./left") == 0 && bind(fd, AT("./left")) == 0 && unlink("./left") == 0);
    // The mode that it has before, and later ones.
    close(other);
    fd = make(SOCK_STREAM), other = make(SOCK_STREAM);
    CHECK(fchmod(fd, 0666) == 0 && bind(fd, AT("./own")) == 0 && listen(fd, 1) == 0);
    CHECK(stat("./own", &st) == 0 && st.st_mode == (S_IFSOCK | 0640));
    CHECK(chmod("./own", 0722) == 0 && stat("./own", &st) == 0 && st.st_mode == (S_IFSOCK | 0722));
    int place = open("./own", O_PATH);
    CHECK(place >= 0 && fstat(place, &st) == 0 && st.st_mode == (S_IFSOCK | 0722));
    CHECK(chown("./own", -1, getgid()) == 0 && utimensat(AT_FDCWD, "./own", NULL, 0) == 0);
    // By a descriptor of its name, and after another one has had that name.
    char name[40];
    sprintf(name, "/proc/self/fd/%d", place);
    int more = make(SOCK_STREAM), last = make(SOCK_STREAM);
    CHECK(connect(more, AT(name)) == 0 && bind(last, AT("./last")) == 0 && rename("./last", "./own") == 0);
    FAILS(connect(other, AT("./own")), ECONNREFUSED);
    FAILS(stat("./last", &st), ENOENT);
    CHECK(listen(last, 1) == 0 && connect(other, AT("./own")) == 0 && close(other) == 0 && (other = make(SOCK_STREAM)));
    CHECK(close(last) == 0 && close(fd) == 0 && close(more) == 0 && close(place) == 0);
    FAILS(connect(other, AT("./own")), ECONNREFUSED);
    CHECK(unlink("./own") == 0);
    CHECK(mknod("./made", S_IFSOCK | 0700, 0) == 0);
    FAILS(connect(again, AT("./made")), ECONNREFUSED);
    CHECK(unlink("./made") == 0);
    close(fd);
    close(other);
    close(again);
    close(packets);
}

static void abstract_names(void) {
    section("abstract names");
    int fd = make(SOCK_STREAM), other = make(SOCK_STREAM), packets = make(SOCK_DGRAM);
    CHECK(bind(fd, abstract("kvmlet one"), LEN("kvmlet one")) == 0);
    name_of("own", getsockname, fd);
    FAILS(bind(other, abstract("kvmlet one"), LEN("kvmlet one")), EADDRINUSE);
    CHECK(bind(packets, abstract("kvmlet one"), LEN("kvmlet one")) == 0);
    FAILS(bind(fd, abstract("kvmlet two"), LEN("kvmlet two")), EINVAL);
    CHECK(bind(fd, (void *)&to, BASE) == 0);
    FAILS(connect(other, abstract("kvmlet one"), LEN("kvmlet one")), ECONNREFUSED);
    CHECK(listen(fd, 0) == 0);
    FAILS(connect(other, abstract("kvmlet one"), LEN("kvmlet one") + 1), ECONNREFUSED);
    CHECK(connect(other, abstract("kvmlet one"), LEN("kvmlet one")) == 0);
    name_of("peer", getpeername, other);
    close(fd);
    fd = make(SOCK_STREAM);
    CHECK(bind(fd, abstract("kvmlet one"), LEN("kvmlet one")) == 0);
    close(fd);
    fd = make(SOCK_STREAM);
    CHECK(bind(fd, (void *)&to, BASE) == 0);
    struct sockaddr_un un;
    socklen_t len = sizeof un;
    CHECK(getsockname(fd, (void *)&un, &len) == 0 && len == BASE + 6 && un.sun_path[0] == 0);
    CHECK(strspn(un.sun_path + 1, "0123456789abcdef") >= 5);
    close(fd);
    close(other);
    close(packets);
}

static void connections(int type) {
    section(type == SOCK_STREAM ? "streams" : "packets");
    int listener = make(type | SOCK_NONBLOCK), client = make(type | SOCK_NONBLOCK);
    FAILS(listen(listener, 1), EINVAL);
    CHECK(bind(listener, AT("./s")) == 0 && listen(listener, 1) == 0);
    CHECK(option(listener, SO_ACCEPTCONN) == 1);
    state("listens", listener);
    FAILS(accept(listener, NULL, NULL), EAGAIN);
    SHOW(recv(listener, buf, 1, 0));
    SHOW(send(listener, "x", 1, MSG_NOSIGNAL));
    int n = 5;
    SHOW(ioctl(listener, FIONREAD, &n));
    FAILS(connect(listener, AT("./s")), EINVAL);
    FAILS(accept(client, NULL, NULL), EINVAL);
    FAILS(accept4(listener, NULL, NULL, 7), EINVAL);
    FAILS(accept4(99, NULL, NULL, 0), EBADF);
    CHECK(connect(client, AT("./s")) == 0);
    state("something to accept", listener);
    state("connected", client);
    FAILS(connect(client, AT("./s")), EISCONN);
    FAILS(listen(client, 1), EINVAL);
    CHECK(send(client, "early", 5, 0) == 5);
    // The backlog is as long as was asked for, and one more.
    int second = make(type | SOCK_NONBLOCK), third = make(type | SOCK_NONBLOCK);
    CHECK(connect(second, AT("./s")) == 0);
    FAILS(connect(third, AT("./s")), EAGAIN);
    struct timeval tv = {0, 30000};
    fcntl(third, F_SETFL, 0);
    CHECK(setsockopt(third, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv) == 0);
    FAILS(connect(third, AT("./s")), EAGAIN);
    struct sockaddr_un un;
    socklen_t len = sizeof un;
    int server = accept4(listener, (void *)&un, &len, SOCK_CLOEXEC);
    CHECK(server >= 0 && len == BASE && fcntl(server, F_GETFD) == FD_CLOEXEC && fcntl(server, F_GETFL) == O_RDWR);
    CHECK(connect(third, AT("./s")) == 0);
    name_of("own", getsockname, server);
    name_of("peer", getpeername, server);
    name_of("client's own", getsockname, client);
    name_of("client's peer", getpeername, client);
    CHECK(recv(server, buf, 10, 0) == 5 && !memcmp(buf, "early", 5));
    SHOW(send(client, "to", 2, 0));
    SHOW(sendto(client, "where", 5, 0, AT("./s")));
    struct ucred cred;
    len = sizeof cred;
    CHECK(getsockopt(client, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && cred.pid == getpid() && cred.uid == getuid());
    CHECK(getsockopt(server, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && cred.pid == getpid());
    close(client);
    state("the client has gone", server);
    SHOW(recv(server, buf, 10, 0));
    SHOW(recv(server, buf, 10, 0));
    SHOW(recv(server, buf, 10, 0));
    SHOW(send(server, "x", 1, MSG_NOSIGNAL));
    name_of("peer that has gone", getpeername, server);
    // Nobody accepts any more.
    close(listener);
    state("the listener has gone", second);
    SHOW(recv(second, buf, 10, 0));
    SHOW(recv(second, buf, 10, 0));
    SHOW(connect(second, AT("./s")));
    state("and the third", third);
    CHECK(unlink("./s") == 0);
    // shutdown(2) of a listener.
    listener = make(type | SOCK_NONBLOCK);
    CHECK(bind(listener, AT("./s")) == 0 && listen(listener, 1) == 0);
    CHECK(listen(listener, 5) == 0);
    close(client = make(type));
    client = make(type | SOCK_NONBLOCK);
    CHECK(shutdown(listener, SHUT_RD) == 0);
    state("listener shut down", listener);
    FAILS(connect(client, AT("./s")), ECONNREFUSED);
    FAILS(accept(listener, NULL, NULL), EAGAIN);
    fcntl(listener, F_SETFL, 0);
    FAILS(accept(listener, NULL, NULL), EINVAL);
    CHECK(unlink("./s") == 0);
    close(listener);
    close(client);
    close(server);
    close(second);
    close(third);
}

static int listener, served;

static void *serve(void *arg) {
    for (int i = 0; i < *(int *)arg; i++) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) break;
        ssize_t n = recv(fd, buf, sizeof buf, 0);
        if (n > 0 && send(fd, buf, n, 0) == n) served++;
        close(fd);
    }
    return NULL;
}

static void waits(void) {
    section("waits");
    listener = make(SOCK_STREAM);
    CHECK(bind(listener, AT("./s")) == 0 && listen(listener, 0) == 0);
    pthread_t t;
    int count = 10;
    pthread_create(&t, NULL, serve, &count);
    for (int i = 0; i < count; i++) {
        int fd = make(SOCK_STREAM);
        NEED(connect(fd, AT("./s")) == 0);
        NEED(send(fd, "hello", 5, 0) == 5);
        NEED(recv(fd, buf, 10, 0) == 5);
        close(fd);
    }
    pthread_join(t, NULL);
    CHECK(served == count);
    // Children connect, more than have room: their parent accepts.
    fflush(stdout);
    for (int i = 0; i < 8; i++) {
        if (fork() == 0) {
            int fd = make(SOCK_STREAM);
            NEED(connect(fd, AT("./s")) == 0);
            pid_t pid = getpid();
            NEED(send(fd, &pid, sizeof pid, 0) == sizeof pid);
            char end;
            NEED(recv(fd, &end, 1, 0) == 0);
            _exit(0);
        }
    }
    int told = 0;
    for (int i = 0; i < 8; i++) {
        int fd = accept(listener, NULL, NULL);
        pid_t pid = 0;
        NEED(recv(fd, &pid, sizeof pid, 0) == sizeof pid);
        struct ucred cred;
        socklen_t len = sizeof cred;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && cred.pid == pid) told++;
        close(fd);
    }
    int failed = 0, status;
    while (wait(&status) > 0) failed += status != 0;
    CHECK(told == 8 && failed == 0);
    // epoll sees what comes in, once for an edge.
    int epoll = epoll_create1(0);
    struct epoll_event event = {EPOLLIN | EPOLLET, {0}};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) == 0);
    SHOW(epoll_wait(epoll, &event, 1, 0));
    int fd = make(SOCK_STREAM);
    CHECK(connect(fd, AT("./s")) == 0);
    SHOW(epoll_wait(epoll, &event, 1, 0));
    printf("%#x\n", event.events);
    SHOW(epoll_wait(epoll, &event, 1, 0));
    struct timeval tv = {0, 30000};
    CHECK(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) == 0);
    CHECK(close(accept(listener, NULL, NULL)) == 0);
    FAILS(accept(listener, NULL, NULL), EAGAIN);
    CHECK(unlink("./s") == 0);
    close(fd);
    close(listener);
    close(epoll);
}

static void datagrams(void) {
    section("datagrams");
    int a = make(SOCK_DGRAM | SOCK_NONBLOCK), b = make(SOCK_DGRAM | SOCK_NONBLOCK), c = make(SOCK_DGRAM | SOCK_NONBLOCK);
    CHECK(bind(a, AT("./a")) == 0 && bind(b, AT("./b")) == 0);
    FAILS(send(a, "x", 1, 0), ENOTCONN);
    FAILS(sendto(a, "x", 1, 0, AT("./none")), ENOENT);
    FAILS(sendto(a, "x", 1, 0, at("./b"), 2), EINVAL);
    FAILS(sendto(a, "x", 1, 0, at("./b"), 200), EINVAL);
    FAILS(sendto(a, "x", 1, 0, (void *)8, 20), EFAULT);
    CHECK(sendto(a, "from a", 6, 0, AT("./b")) == 6);
    CHECK(sendto(c, "from nobody", 11, 0, AT("./b")) == 11);
    CHECK(sendto(b, "from itself", 11, 0, AT("./b")) == 11);
    for (int i = 0; i < 3; i++) {
        struct sockaddr_un un = {0};
        socklen_t len = sizeof un;
        ssize_t n = recvfrom(b, buf, sizeof buf, i == 1 ? MSG_PEEK : 0, (void *)&un, &len);
        printf("%zd: %.*s, %d %s\n", n, (int)n, buf, len, len ? un.sun_path : "");
    }
    FAILS(listen(a, 1), EOPNOTSUPP);
    FAILS(accept(a, NULL, NULL), EOPNOTSUPP);
    CHECK(recv(b, buf, 100, 0) == 11);
    FAILS(recv(b, buf, 100, 0), EAGAIN);
    CHECK(connect(a, AT("./b")) == 0);
    name_of("a's peer", getpeername, a);
    name_of("b's peer", getpeername, b);
    // As many as wait for a receiver.
    int n = 0;
    while (send(a, "x", 1, 0) == 1) n++;
    printf("%d, then %s\n", n, errno_name(errno));
    state("a, and b is full", a);
    FAILS(sendto(c, "x", 1, 0, AT("./b")), EAGAIN);
    struct timeval tv = {0, 30000};
    CHECK(setsockopt(c, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv) == 0 && fcntl(c, F_SETFL, 0) == 0);
    FAILS(sendto(c, "x", 1, 0, AT("./b")), EAGAIN);
    int epoll = epoll_create1(0);
    struct epoll_event event = {EPOLLOUT | EPOLLET, {0}};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, a, &event) == 0);
    SHOW(epoll_wait(epoll, &event, 1, 0));
    CHECK(recv(b, buf, 100, 0) == 1);
    SHOW(epoll_wait(epoll, &event, 1, 0));
    state("a, and b has room", a);
    while (recv(b, buf, 100, 0) == 1) {}
    // b receives from a only.
    CHECK(sendto(c, "kept", 4, 0, AT("./b")) == 4);
    CHECK(connect(b, AT("./a")) == 0);
    SHOW(recv(b, buf, 100, 0));
    FAILS(sendto(c, "x", 1, 0, AT("./b")), EPERM);
    FAILS(connect(c, AT("./b")), EPERM);
    CHECK(send(a, "one", 3, 0) == 3);
    // Another peer: what has come is dropped.
    int d = make(SOCK_DGRAM | SOCK_NONBLOCK);
    CHECK(bind(d, AT("./d")) == 0 && connect(b, AT("./d")) == 0);
    state("b has another peer", b);
    state("a had it", a);
    SHOW(send(a, "x", 1, 0));
    SHOW(send(a, "x", 1, 0));
    to.sun_family = AF_UNSPEC;
    CHECK(connect(b, (void *)&to, 2) == 0);
    FAILS(connect(b, (void *)&to, 1), EINVAL);
    name_of("b's peer", getpeername, b);
    SHOW(send(a, "x", 1, 0));
    SHOW(shutdown(b, SHUT_RD));
    SHOW(send(a, "x", 1, 0));
    SHOW(recv(b, buf, 10, 0));
    SHOW(recv(b, buf, 10, 0));
    close(b);
    SHOW(send(a, "x", 1, 0));
    SHOW(send(a, "x", 1, 0));
    FAILS(sendto(a, "x", 1, 0, AT("./b")), ECONNREFUSED);
    CHECK(unlink("./a") == 0 && unlink("./b") == 0 && unlink("./d") == 0);
    close(a);
    close(c);
    close(d);
    close(epoll);
}

int main(int argc, char **argv) {
    need(chdir(argc > 1 ? argv[1] : "/tmp") == 0, "chdir");
    creation();
    binding();
    abstract_names();
    connections(SOCK_STREAM);
    connections(SOCK_SEQPACKET);
    waits();
    datagrams();
    return 0;
}
