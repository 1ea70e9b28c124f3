// TCP and UDP over the loopback device: names, ports, what each call refuses, ends of connections, what poll(2) shows.
#include "guest.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

union address {
    struct sockaddr any;
    struct sockaddr_in four;
    struct sockaddr_in6 six;
};

static char buf[200000];
static union address to;
static int pipes_broken;

static void on_sigpipe(int s) {
    (void)s;
    pipes_broken++;
}

static void sigpipes(void) {
    printf("SIGPIPE %d\n", pipes_broken);
    pipes_broken = 0;
}

static struct sockaddr *at(const char *ip, int port) {
    memset(&to, 0, sizeof to);
    if (strchr(ip, ':')) {
        to.six.sin6_family = AF_INET6;
        to.six.sin6_port = htons((uint16_t)port);
        inet_pton(AF_INET6, ip, &to.six.sin6_addr);
    } else {
        to.four.sin_family = AF_INET;
        to.four.sin_port = htons((uint16_t)port);
        inet_pton(AF_INET, ip, &to.four.sin_addr);
    }
    return &to.any;
}
#define LEN(ip) (strchr(ip, ':') ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in))
#define AT(ip, port) at(ip, port), (socklen_t)LEN(ip)

static int make(int family, int type) {
    int fd = socket(family, type, 0);
    need(fd >= 0, "socket");
    return fd;
}

static int port_of(int fd) {
    union address name;
    socklen_t len = sizeof name;
    need(getsockname(fd, &name.any, &len) == 0, "getsockname");
    return ntohs(name.any.sa_family == AF_INET ? name.four.sin_port : name.six.sin6_port);
}

// The name of a socket; ports that were chosen for it are all one.
static void show_name(const char *what, const union address *name, socklen_t len, int known) {
    char text[64] = "?";
    int port = ntohs(name->four.sin_port);
    if (name->any.sa_family == AF_INET) inet_ntop(AF_INET, &name->four.sin_addr, text, sizeof text);
    if (name->any.sa_family == AF_INET6) inet_ntop(AF_INET6, &name->six.sin6_addr, text, sizeof text);
    printf("%s: %d bytes, family %d, %s port %s\n", what, len, name->any.sa_family, text,
           port == 0       ? "0"
           : port == known ? "known"
                           : "another");
}

static void name_of(const char *what, int (*ask)(int, struct sockaddr *, socklen_t *), int fd, int known) {
    union address name;
    socklen_t len = sizeof name;
    if (ask(fd, &name.any, &len) != 0)
        printf("%s: %s\n", what, errno_name(errno));
    else
        show_name(what, &name, len, known);
}

static void state(const char *what, int fd) {
    struct pollfd p = {fd, 0x7fff & ~POLLNVAL, 0};
    poll(&p, 1, 0);
    printf("%s: %#x\n", what, p.revents);
}

static int option(int fd, int level, int name) {
    int value = -1;
    socklen_t len = sizeof value;
    return getsockopt(fd, level, name, &value, &len) ? -errno : value;
}

static int set(int fd, int level, int name, int value) { return setsockopt(fd, level, name, &value, sizeof value); }

static int listening(const char *ip, int type) {
    int fd = make(strchr(ip, ':') ? AF_INET6 : AF_INET, SOCK_STREAM | type);
    need(bind(fd, AT(ip, 0)) == 0 && listen(fd, 5) == 0, "listen");
    return fd;
}

static int client, server, listener;

// A connection, whose ends do not wait.
static void fresh(void) {
    close(client);
    close(server);
    client = make(AF_INET, SOCK_STREAM);
    need(connect(client, AT("127.0.0.1", port_of(listener))) == 0, "connect");
    server = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    need(server >= 0, "accept");
    fcntl(client, F_SETFL, O_NONBLOCK);
}

static void creation(void) {
    section("creation");
    FAILS(socket(AF_INET, SOCK_STREAM, IPPROTO_UDP), EPROTONOSUPPORT);
    FAILS(socket(AF_INET, SOCK_DGRAM, IPPROTO_TCP), EPROTONOSUPPORT);
    FAILS(socket(AF_INET, SOCK_SEQPACKET, 0), ESOCKTNOSUPPORT);
    FAILS(socket(AF_INET, SOCK_STREAM, 9999), EINVAL);
    FAILS(socketpair(AF_INET, SOCK_STREAM, 0, (int[2]){0}), EOPNOTSUPP);
    static const int kinds[4][2] = {
        {AF_INET, SOCK_STREAM}, {AF_INET6, SOCK_STREAM}, {AF_INET, SOCK_DGRAM}, {AF_INET6, SOCK_DGRAM}};
    for (int i = 0; i < 4; i++) {
        int fd = make(kinds[i][0], kinds[i][1] | SOCK_NONBLOCK);
        printf("domain %d type %d protocol %d listens %d\n", option(fd, SOL_SOCKET, SO_DOMAIN),
               option(fd, SOL_SOCKET, SO_TYPE), option(fd, SOL_SOCKET, SO_PROTOCOL), option(fd, SOL_SOCKET, SO_ACCEPTCONN));
        state("new", fd);
        name_of("own", getsockname, fd, -1);
        name_of("peer", getpeername, fd, -1);
        SHOW(recv(fd, buf, 1, 0));
        SHOW(send(fd, "x", 1, 0));
        sigpipes();
        SHOW(shutdown(fd, SHUT_WR));
        SHOW(accept(fd, NULL, NULL));
        close(fd);
    }
}

static void binding(void) {
    section("binding");
    int fd = make(AF_INET, SOCK_STREAM), other = make(AF_INET, SOCK_STREAM), six = make(AF_INET6, SOCK_STREAM);
    FAILS(bind(fd, at("127.0.0.1", 0), 15), EINVAL);
    FAILS(bind(six, at("::1", 0), 23), EINVAL);
    FAILS(bind(fd, AT("::1", 0)), EAFNOSUPPORT);
    FAILS(bind(six, AT("127.0.0.1", 0)), EINVAL);
    FAILS(bind(fd, AT("8.8.8.8", 0)), EADDRNOTAVAIL);
    FAILS(bind(six, AT("2001:db8::1", 0)), EADDRNOTAVAIL);
    CHECK(bind(fd, AT("127.0.0.1", 0)) == 0);
    int port = port_of(fd);
    CHECK(port >= 1024);
    name_of("own", getsockname, fd, port);
    FAILS(bind(fd, AT("127.0.0.1", 0)), EINVAL);
    FAILS(bind(other, AT("127.0.0.1", port)), EADDRINUSE);
    FAILS(bind(other, AT("0.0.0.0", port)), EADDRINUSE);
    FAILS(bind(six, AT("::", port)), EADDRINUSE);
    FAILS(bind(six, AT("::ffff:127.0.0.1", port)), EADDRINUSE);
    CHECK(bind(six, AT("::1", port)) == 0);
    CHECK(bind(other, AT("127.0.0.2", port)) == 0);
    close(other);
    close(six);
    six = make(AF_INET6, SOCK_STREAM);
    CHECK(option(six, IPPROTO_IPV6, IPV6_V6ONLY) == 0 && set(six, IPPROTO_IPV6, IPV6_V6ONLY, 1) == 0);
    FAILS(bind(six, AT("::ffff:127.0.0.1", 0)), EINVAL);
    CHECK(bind(six, AT("::", port)) == 0);
    FAILS(set(six, IPPROTO_IPV6, IPV6_V6ONLY, 0), EINVAL);
    close(six);
    // Both may be set to share a port, but not with one that listens.
    CHECK(set(fd, SOL_SOCKET, SO_REUSEADDR, 1) == 0);
    other = make(AF_INET, SOCK_STREAM);
    FAILS(bind(other, AT("127.0.0.1", port)), EADDRINUSE);
    CHECK(set(other, SOL_SOCKET, SO_REUSEADDR, 1) == 0 && bind(other, AT("127.0.0.1", port)) == 0);
    CHECK(listen(fd, 1) == 0);
    FAILS(listen(other, 1), EADDRINUSE);
    close(other);
    other = make(AF_INET, SOCK_STREAM);
    CHECK(set(other, SOL_SOCKET, SO_REUSEADDR, 1) == 0);
    FAILS(bind(other, AT("127.0.0.1", port)), EADDRINUSE);
    close(other);
    close(fd);
    fd = make(AF_INET, SOCK_STREAM);
    other = make(AF_INET, SOCK_STREAM);
    CHECK(set(fd, SOL_SOCKET, SO_REUSEPORT, 1) == 0 && set(other, SOL_SOCKET, SO_REUSEPORT, 1) == 0);
    CHECK(bind(fd, AT("127.0.0.1", 0)) == 0 && bind(other, AT("127.0.0.1", port_of(fd))) == 0);
    CHECK(listen(fd, 1) == 0 && listen(other, 1) == 0);
    close(other);
    close(fd);
    // Unbound, it listens on a port that is chosen for it.
    fd = make(AF_INET, SOCK_STREAM);
    CHECK(listen(fd, 1) == 0 && port_of(fd) > 0);
    name_of("own", getsockname, fd, 0);
    close(fd);
}

static void connecting(void) {
    section("connecting");
    int fd = make(AF_INET, SOCK_STREAM), other = make(AF_INET, SOCK_STREAM);
    need(bind(other, AT("127.0.0.1", 0)) == 0, "bind");
    int port = port_of(other);
    FAILS(connect(fd, AT("127.0.0.1", port)), ECONNREFUSED);
    name_of("own", getsockname, fd, 0);
    state("refused", fd);
    FAILS(connect(fd, at("127.0.0.1", port), 8), EINVAL);
    FAILS(connect(fd, AT("::1", port)), EAFNOSUPPORT);
    FAILS(connect(fd, (void *)8, 16), EFAULT);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    FAILS(connect(fd, AT("127.0.0.1", port)), EINPROGRESS);
    state("refused without waiting", fd);
    CHECK(option(fd, SOL_SOCKET, SO_ERROR) == ECONNREFUSED && option(fd, SOL_SOCKET, SO_ERROR) == 0);
    FAILS(connect(fd, AT("127.0.0.1", port)), ECONNABORTED);
    FAILS(connect(fd, AT("127.0.0.1", port)), EINPROGRESS);
    FAILS(connect(fd, AT("127.0.0.1", port)), ECONNREFUSED);
    int epoll = epoll_create1(0);
    struct epoll_event event = {EPOLLIN | EPOLLOUT | EPOLLET, {0}};
    need(listen(other, 5) == 0, "listen");
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
    SHOW(epoll_wait(epoll, &event, 1, 0));
    printf("%#x\n", event.events);
    FAILS(connect(fd, AT("127.0.0.1", port)), EINPROGRESS);
    SHOW(epoll_wait(epoll, &event, 1, 1000));
    printf("%#x\n", event.events);
    state("connected", fd);
    CHECK(option(fd, SOL_SOCKET, SO_ERROR) == 0);
    CHECK(connect(fd, AT("127.0.0.1", port)) == 0);
    FAILS(connect(fd, AT("127.0.0.1", port)), EISCONN);
    FAILS(listen(fd, 1), EINVAL);
    FAILS(bind(fd, AT("127.0.0.1", 0)), EINVAL);
    FAILS(connect(other, AT("127.0.0.1", port)), EISCONN);
    name_of("own", getsockname, fd, port);
    name_of("peer", getpeername, fd, port);
    union address peer;
    socklen_t len = sizeof peer;
    state("something to accept", other);
    int accepted = accept(other, &peer.any, &len);
    show_name("accepted", &peer, len, port_of(fd));
    name_of("own", getsockname, accepted, port);
    name_of("peer", getpeername, accepted, port_of(fd));
    // No address is this machine.
    int any = make(AF_INET, SOCK_STREAM);
    CHECK(connect(any, AT("0.0.0.0", port)) == 0);
    name_of("own", getsockname, any, 0);
    name_of("peer", getpeername, any, port);
    int far = make(AF_INET, SOCK_STREAM);
    FAILS(connect(far, AT("127.0.0.2", port)), ECONNREFUSED);
    close(far);
    close(any);
    close(accepted);
    close(fd);
    close(other);
    close(epoll);
    // Both families on one socket.
    int dual = listening("::", 0);
    port = port_of(dual);
    for (int i = 0; i < 3; i++) {
        static const char *const names[] = {"127.0.0.1", "::1", "::ffff:127.0.0.1"};
        fd = make(i == 0 ? AF_INET : AF_INET6, SOCK_STREAM);
        CHECK(connect(fd, AT(names[i], port)) == 0);
        len = sizeof peer;
        accepted = accept(dual, &peer.any, &len);
        show_name("accepted", &peer, len, port_of(fd));
        name_of("own", getsockname, accepted, port);
        name_of("client's own", getsockname, fd, 0);
        name_of("client's peer", getpeername, fd, port);
        close(fd);
        close(accepted);
    }
    close(dual);
    dual = listening("::1", 0);
    fd = make(AF_INET, SOCK_STREAM);
    FAILS(connect(fd, AT("127.0.0.1", port_of(dual))), ECONNREFUSED);
    close(fd);
    close(dual);
    // A connection that is still to be accepted goes with its listener.
    dual = listening("127.0.0.1", SOCK_NONBLOCK);
    FAILS(accept(dual, NULL, NULL), EAGAIN);
    state("listens", dual);
    fd = make(AF_INET, SOCK_STREAM);
    CHECK(connect(fd, AT("127.0.0.1", port_of(dual))) == 0 && send(fd, "early", 5, 0) == 5);
    close(dual);
    state("the listener has gone", fd);
    SHOW(recv(fd, buf, 10, 0));
    SHOW(recv(fd, buf, 10, 0));
    close(fd);
    dual = listening("127.0.0.1", SOCK_NONBLOCK);
    SHOW(shutdown(dual, SHUT_WR));
    CHECK(option(dual, SOL_SOCKET, SO_ACCEPTCONN) == 1);
    SHOW(shutdown(dual, SHUT_RD));
    CHECK(option(dual, SOL_SOCKET, SO_ACCEPTCONN) == 0);
    FAILS(accept(dual, NULL, NULL), EINVAL);
    close(dual);
}

static void transfers(void) {
    section("transfers");
    fresh();
    state("new", client);
    SHOW(recv(client, buf, 10, 0));
    CHECK(send(client, "hello ", 6, 0) == 6 && send(client, "world", 5, MSG_MORE) == 5 && send(client, "!", 1, 0) == 1);
    int n = 0;
    struct pollfd p = {server, POLLIN, 0};
    CHECK(poll(&p, 1, 1000) == 1);
    pause_ms(5);
    CHECK(ioctl(server, FIONREAD, &n) == 0 && n == 12);
    SHOW(recv(server, buf, 3, MSG_PEEK));
    union address from;
    socklen_t len = sizeof from;
    memset(&from, '#', sizeof from);
    SHOW(recvfrom(server, buf, 100, 0, &from.any, &len));
    printf("%.12s, from %d bytes\n", buf, len);
    CHECK(sendto(client, "where", 5, 0, AT("127.0.0.9", 9)) == 5);
    SHOW(recv(server, buf, 100, 0));
    FAILS(send(client, (void *)8, 5, 0), EFAULT);
    CHECK(send(client, "abc", 3, 0) == 3);
    FAILS(recv(server, (void *)8, 5, 0), EFAULT);
    SHOW(recv(server, buf, 10, 0));
    // Full, and drained.
    long total = 0;
    for (ssize_t n; (n = send(client, buf, sizeof buf, 0)) > 0;) total += n;
    printf("full: %s, more than 64 KiB: %d\n", errno_name(errno), total > 65536);
    p = (struct pollfd){client, POLLOUT, 0};
    CHECK(poll(&p, 1, 0) == 0);
    while (total > 0) {
        ssize_t n = recv(server, buf, sizeof buf, 0);
        if (n > 0) total -= n;
        else pause_ms(1);
    }
    CHECK(poll(&p, 1, 1000) == 1 && p.revents == POLLOUT);
}

static void ends(void) {
    section("ends");
    fresh();
    CHECK(send(client, "last", 4, 0) == 4 && shutdown(client, SHUT_WR) == 0);
    state("client sends no more", client);
    state("server", server);
    SHOW(recv(server, buf, 10, 0));
    SHOW(recv(server, buf, 10, 0));
    SHOW(send(client, "x", 1, 0));
    sigpipes();
    CHECK(send(server, "back", 4, 0) == 4);
    SHOW(recv(client, buf, 10, 0));
    CHECK(shutdown(server, SHUT_WR) == 0);
    pause_ms(1);
    SHOW(recv(client, buf, 10, 0));
    state("both sent no more", client);
    fresh();
    SHOW(shutdown(server, SHUT_RD));
    state("server reads no more", server);
    SHOW(recv(server, buf, 10, 0));
    CHECK(send(client, "anyway", 6, 0) == 6);
    SHOW(recv(server, buf, 10, 0));
    // The other side is closed.
    fresh();
    close(server);
    pause_ms(1);
    state("server has closed", client);
    SHOW(recv(client, buf, 10, 0));
    CHECK(send(client, "first", 5, 0) == 5);
    pause_ms(1);
    state("sent to nobody", client);
    SHOW(send(client, "second", 6, 0));
    sigpipes();
    SHOW(send(client, "third", 5, 0));
    sigpipes();
    SHOW(recv(client, buf, 10, 0));
    CHECK(option(client, SOL_SOCKET, SO_ERROR) == 0);
    name_of("peer", getpeername, client, -1);
    server = -1;
    // It is closed with something unread.
    fresh();
    CHECK(send(client, "unread", 6, 0) == 6 && send(server, "to read", 7, 0) == 7);
    pause_ms(1);
    close(server);
    pause_ms(1);
    state("server has closed with something unread", client);
    SHOW(recv(client, buf, 10, 0));
    SHOW(recv(client, buf, 10, 0));
    SHOW(recv(client, buf, 10, 0));
    SHOW(send(client, "x", 1, 0));
    sigpipes();
    server = -1;
    fresh();
    struct linger now = {1, 0};
    CHECK(setsockopt(server, SOL_SOCKET, SO_LINGER, &now, sizeof now) == 0);
    close(server);
    pause_ms(1);
    state("server has gone at once", client);
    SHOW(send(client, "x", 1, 0));
    sigpipes();
    SHOW(send(client, "x", 1, MSG_NOSIGNAL));
    SHOW(recv(client, buf, 10, 0));
    server = -1;
    fresh();
    close(server);
    pause_ms(1);
    int one = make(AF_INET, SOCK_STREAM);
    to.any.sa_family = AF_UNSPEC;
    CHECK(connect(client, &to.any, sizeof to) == 0);
    state("no longer connected", client);
    CHECK(connect(client, AT("127.0.0.1", port_of(listener))) == 0 || errno == EINPROGRESS);
    close(one);
    server = accept(listener, NULL, NULL);
}

static void options(void) {
    section("options");
    fresh();
    static const int ints[][3] = {
        {IPPROTO_TCP, TCP_NODELAY, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, 60}, {IPPROTO_TCP, TCP_KEEPINTVL, 5},
        {IPPROTO_TCP, TCP_KEEPCNT, 3}, {IPPROTO_TCP, TCP_USER_TIMEOUT, 1000}, {IPPROTO_TCP, TCP_CORK, 0},
        {IPPROTO_TCP, TCP_SYNCNT, 4}, {SOL_SOCKET, SO_KEEPALIVE, 1}, {IPPROTO_IP, IP_TOS, 16},
        {IPPROTO_IP, IP_TTL, 32}, {SOL_SOCKET, SO_REUSEPORT, 1}, {SOL_SOCKET, SO_REUSEADDR, 1},
    };
    for (unsigned i = 0; i < sizeof ints / sizeof *ints; i++) {
        printf("%d/%d: %d", ints[i][0], ints[i][1], option(client, ints[i][0], ints[i][1]));
        printf(", %d", set(client, ints[i][0], ints[i][1], ints[i][2]));
        printf(", %d\n", option(client, ints[i][0], ints[i][1]));
    }
    FAILS(set(client, IPPROTO_TCP, 999, 1), ENOPROTOOPT);
    FAILS(set(client, IPPROTO_IPV6, IPV6_V6ONLY, 1), ENOPROTOOPT);
    FAILS(set(client, IPPROTO_IP, IP_TTL, 256), EINVAL);
    FAILS(set(client, IPPROTO_TCP, TCP_KEEPCNT, 0), EINVAL);
    char name[32] = {0};
    socklen_t len = sizeof name;
    CHECK(getsockopt(client, IPPROTO_TCP, TCP_CONGESTION, name, &len) == 0 && len == 16);
    FAILS(setsockopt(client, IPPROTO_TCP, TCP_CONGESTION, "none", 4), ENOENT);
    len = sizeof name;
    CHECK(getsockopt(client, SOL_SOCKET, SO_BINDTODEVICE, name, &len) == 0 && len == 0);
    CHECK(option(client, SOL_SOCKET, SO_MARK) == 0);
    struct tcp_info info;
    len = sizeof info;
    CHECK(getsockopt(client, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 && info.tcpi_state == TCP_ESTABLISHED);
    len = sizeof info;
    CHECK(getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 && info.tcpi_state == TCP_LISTEN);
    // What is set on a listener holds for what it accepts.
    CHECK(set(listener, IPPROTO_TCP, TCP_NODELAY, 1) == 0 && set(listener, SOL_SOCKET, SO_KEEPALIVE, 1) == 0);
    fresh();
    CHECK(option(server, IPPROTO_TCP, TCP_NODELAY) == 1 && option(server, SOL_SOCKET, SO_KEEPALIVE) == 1);
}

// A datagram with one wish for its header.
static long send_wish(int fd, int port, const char *ip, int level, int kind, const void *data, size_t len) {
    char control[64] = {0};
    struct iovec iov = {"x", 1};
    at(ip, port);
    struct msghdr msg = {.msg_name = &to, .msg_namelen = (socklen_t)LEN(ip), .msg_iov = &iov, .msg_iovlen = 1,
                         .msg_control = control, .msg_controllen = CMSG_SPACE(len)};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
    *cmsg = (struct cmsghdr){CMSG_LEN(len), level, kind};
    memcpy(CMSG_DATA(cmsg), data, len);
    return sendmsg(fd, &msg, 0);
}

// What comes with the next datagram.
static void show_header(const char *what, int fd) {
    char control[200], bytes[10];
    struct iovec iov = {bytes, sizeof bytes};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t len = recvmsg(fd, &msg, 0);
    printf("%s: %zd bytes, control %zu", what, len, msg.msg_controllen);
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg); cmsg; cmsg = CMSG_NXTHDR(&msg, cmsg)) {
        int value = 0;
        size_t size = cmsg->cmsg_len - CMSG_LEN(0);
        memcpy(&value, CMSG_DATA(cmsg), size < sizeof value ? size : sizeof value);
        printf("; %d %d of %zu", cmsg->cmsg_level, cmsg->cmsg_type, size);
        if (size <= sizeof value) printf(" is %d", value);
    }
    printf("\n");
}

// Hops and class of datagrams: as the socket has them, and as one message has them.
static void headers(int a, int b, int four, int port_b) {
    const char *loopback = four ? "127.0.0.1" : "::1";
    int level = four ? IPPROTO_IP : IPPROTO_IPV6;
    int hops = four ? IP_TTL : IPV6_HOPLIMIT, class = four ? IP_TOS : IPV6_TCLASS;
    CHECK(set(b, level, four ? IP_RECVTTL : IPV6_RECVHOPLIMIT, 1) == 0);
    CHECK(set(b, level, four ? IP_RECVTOS : IPV6_RECVTCLASS, 1) == 0);
    CHECK(sendto(a, "x", 1, 0, AT(loopback, port_b)) == 1);
    show_header("usual", b);
    CHECK(set(a, level, four ? IP_TTL : IPV6_UNICAST_HOPS, 7) == 0 && set(a, level, class, 0x28) == 0);
    CHECK(sendto(a, "x", 1, 0, AT(loopback, port_b)) == 1);
    show_header("set", b);
    int value = 9, most = 255, beyond = 256, none = -1, zero = 0;
    CHECK(send_wish(a, port_b, loopback, level, hops, &value, sizeof value) == 1);
    show_header("hops", b);
    CHECK(send_wish(a, port_b, loopback, level, class, &most, sizeof most) == 1);
    show_header("class", b);
    FAILS(send_wish(a, port_b, loopback, level, hops, &beyond, sizeof beyond), EINVAL);
    FAILS(send_wish(a, port_b, loopback, level, hops, &value, 1), EINVAL);
    FAILS(send_wish(a, port_b, loopback, level, 200, &value, sizeof value), EINVAL);
    FAILS(send_wish(a, port_b, loopback, SOL_SOCKET, 200, &value, sizeof value), EINVAL);
    SHOW(send_wish(a, port_b, loopback, level, hops, &none, sizeof none));
    SHOW(send_wish(a, port_b, loopback, level, hops, &zero, sizeof zero));
    // Descriptors are for AF_UNIX alone.
    SHOW(send_wish(a, port_b, loopback, SOL_SOCKET, SCM_RIGHTS, &a, sizeof a));
    while (recv(b, buf, 10, 0) >= 0) {}
    CHECK(set(a, level, four ? IP_TTL : IPV6_UNICAST_HOPS, -1) == 0 && set(a, level, class, 0) == 0);
    // The address that it comes from.
    struct in_pktinfo from_4 = {.ipi_spec_dst = {htonl(0x7f000005)}};
    struct in6_pktinfo from_6 = {.ipi6_addr = in6addr_loopback};
    int kind = four ? IP_PKTINFO : IPV6_PKTINFO;
    const void *from = four ? (void *)&from_4 : (void *)&from_6;
    size_t from_len = four ? sizeof from_4 : sizeof from_6;
    CHECK(send_wish(a, port_b, loopback, level, kind, from, from_len) == 1);
    union address name;
    socklen_t len = sizeof name;
    CHECK(recvfrom(b, buf, 10, 0, &name.any, &len) == 1);
    show_name("from", &name, len, port_of(a));
    inet_pton(AF_INET, "203.0.113.5", &from_4.ipi_spec_dst);
    inet_pton(AF_INET6, "2001:db8::5", &from_6.ipi6_addr);
    FAILS(send_wish(a, port_b, loopback, level, kind, from, from_len), four ? ENETUNREACH : EINVAL);
}

static void datagrams(int family) {
    printf("# datagrams of family %d\n", family);
    const char *loopback = family == AF_INET ? "127.0.0.1" : "::1", *any = family == AF_INET ? "0.0.0.0" : "::";
    int a = make(family, SOCK_DGRAM | SOCK_NONBLOCK), b = make(family, SOCK_DGRAM | SOCK_NONBLOCK);
    int c = make(family, SOCK_DGRAM | SOCK_NONBLOCK);
    CHECK(bind(a, AT(loopback, 0)) == 0 && bind(b, AT(any, 0)) == 0);
    int port_a = port_of(a), port_b = port_of(b);
    FAILS(bind(c, AT(loopback, port_b)), EADDRINUSE);
    FAILS(send(a, "x", 1, 0), EDESTADDRREQ);
    FAILS(sendto(a, "x", 1, 0, AT(loopback, 0)), EINVAL);
    FAILS(sendto(a, "x", 1, 0, at(loopback, port_b), 8), EINVAL);
    FAILS(sendto(a, buf, 70000, 0, AT(loopback, port_b)), EMSGSIZE);
    FAILS(recv(a, buf, 10, 0), EAGAIN);
    CHECK(sendto(a, "from a", 6, 0, AT(loopback, port_b)) == 6);
    CHECK(sendto(a, "", 0, 0, AT(any, port_b)) == 0);
    CHECK(sendto(c, "from c", 6, 0, AT(loopback, port_b)) == 6);
    name_of("c's own", getsockname, c, 0);
    CHECK(sendto(a, buf, 60000, 0, AT(loopback, port_b)) == 60000);
    int n = -1;
    CHECK(ioctl(b, FIONREAD, &n) == 0 && n == 6);
    state("b has some", b);
    for (int i = 0; i < 5; i++) {
        union address from;
        socklen_t len = sizeof from;
        ssize_t n = recvfrom(b, buf, 10, i == 0 ? MSG_PEEK : i == 4 ? MSG_TRUNC : 0, &from.any, &len);
        printf("%zd %.*s\n", n, n > 6 ? 0 : (int)n, buf);
        show_name("from", &from, len, port_a);
    }
    FAILS(recv(b, buf, 10, 0), EAGAIN);
    // Nobody is there.
    int d = make(family, SOCK_DGRAM | SOCK_NONBLOCK);
    need(bind(d, AT(loopback, 0)) == 0, "bind");
    int port_d = port_of(d);
    close(d);
    CHECK(sendto(a, "x", 1, 0, AT(loopback, port_d)) == 1);
    FAILS(recv(a, buf, 10, 0), EAGAIN);
    CHECK(connect(c, AT(loopback, port_d)) == 0);
    name_of("c's own", getsockname, c, 0);
    name_of("c's peer", getpeername, c, port_d);
    CHECK(send(c, "x", 1, 0) == 1);
    state("c was refused", c);
    FAILS(recv(c, buf, 10, 0), ECONNREFUSED);
    FAILS(recv(c, buf, 10, 0), EAGAIN);
    CHECK(send(c, "x", 1, 0) == 1);
    CHECK(option(c, SOL_SOCKET, SO_ERROR) == ECONNREFUSED);
    CHECK(send(c, "x", 1, 0) == 1);
    FAILS(send(c, "x", 1, 0), ECONNREFUSED);
    // A connected one receives from its peer only.
    CHECK(connect(c, AT(loopback, port_a)) == 0 && send(c, "to a", 4, 0) == 4 && recv(a, buf, 10, 0) == 4);
    CHECK(sendto(b, "not for c", 9, 0, AT(loopback, port_of(c))) == 9);
    FAILS(recv(c, buf, 10, 0), EAGAIN);
    CHECK(sendto(a, "for c", 5, 0, AT(loopback, port_of(c))) == 5 && recv(c, buf, 10, 0) == 5);
    CHECK(sendto(c, "elsewhere", 9, 0, AT(loopback, port_b)) == 9 && recv(b, buf, 10, 0) == 9);
    to.any.sa_family = AF_UNSPEC;
    CHECK(connect(c, &to.any, sizeof to) == 0);
    name_of("c's peer", getpeername, c, -1);
    FAILS(shutdown(c, SHUT_RDWR), ENOTCONN);
    // The address that it was sent to.
    int four = family == AF_INET;
    CHECK(set(b, four ? IPPROTO_IP : IPPROTO_IPV6, four ? IP_PKTINFO : IPV6_RECVPKTINFO, 1) == 0);
    CHECK(sendto(a, "x", 1, 0, AT(loopback, port_b)) == 1);
    char control[100], bytes[10];
    struct iovec iov = {bytes, sizeof bytes};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    CHECK(recvmsg(b, &msg, 0) == 1);
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
    CHECK(cmsg && cmsg->cmsg_level == (four ? IPPROTO_IP : IPPROTO_IPV6) && cmsg->cmsg_type == (four ? IP_PKTINFO : IPV6_PKTINFO));
    if (cmsg && four) {
        struct in_pktinfo info;
        memcpy(&info, CMSG_DATA(cmsg), sizeof info);
        printf("device %d, %s\n", info.ipi_ifindex, inet_ntoa(info.ipi_addr));
    }
    headers(a, b, four, port_b);
    // What has no room is lost.
    n = 0;
    for (int i = 0; i < 1000; i++) n += sendto(a, buf, 4000, 0, AT(loopback, port_b)) == 4000;
    int kept = 0;
    while (recv(b, buf, sizeof buf, 0) > 0) kept++;
    printf("%d sent, some kept %d, not all %d\n", n, kept > 10, kept < 1000);
    // Several messages in one call.
    struct mmsghdr many[3] = {0};
    struct iovec iovs[3] = {{"one", 3}, {"three", 5}, {"eleven bytes", 12}};
    at(loopback, port_b);
    for (int i = 0; i < 3; i++) {
        many[i].msg_hdr.msg_iov = &iovs[i];
        many[i].msg_hdr.msg_iovlen = 1;
        many[i].msg_hdr.msg_name = &to;
        many[i].msg_hdr.msg_namelen = sizeof to;
    }
    SHOW(sendmmsg(a, many, 3, 0));
    struct iovec into[3] = {{buf, 100}, {buf + 100, 100}, {buf + 200, 100}};
    for (int i = 0; i < 3; i++) {
        many[i].msg_hdr = (struct msghdr){.msg_iov = &into[i], .msg_iovlen = 1};
    }
    SHOW(recvmmsg(b, many, 3, 0, NULL));
    printf("%u %u %u\n", many[0].msg_len, many[1].msg_len, many[2].msg_len);
    close(a);
    close(b);
    close(c);
}

static int served;

static void *serve(void *arg) {
    for (int i = 0; i < *(int *)arg; i++) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) break;
        long sum = 0;
        static char part[30000];
        for (ssize_t n; (n = recv(fd, part, sizeof part, 0)) > 0;)
            for (ssize_t k = 0; k < n; k++) sum += (unsigned char)part[k];
        if (send(fd, &sum, sizeof sum, 0) == sizeof sum) served++;
        close(fd);
    }
    return NULL;
}

static void waits(void) {
    section("waits");
    int count = 10;
    pthread_t t;
    pthread_create(&t, NULL, serve, &count);
    long sum = 0;
    for (size_t i = 0; i < sizeof buf; i++) {
        buf[i] = (char)(i * 7);
        sum += (unsigned char)buf[i];
    }
    int right = 0;
    for (int i = 0; i < count; i++) {
        int fd = make(AF_INET, SOCK_STREAM);
        NEED(connect(fd, AT("127.0.0.1", port_of(listener))) == 0);
        for (int k = 0; k < 5; k++) NEED(send(fd, buf, sizeof buf, 0) == sizeof buf);
        NEED(shutdown(fd, SHUT_WR) == 0);
        long answer = 0;
        NEED(recv(fd, &answer, sizeof answer, MSG_WAITALL) == sizeof answer);
        right += answer == 5 * sum;
        close(fd);
    }
    pthread_join(t, NULL);
    CHECK(served == count && right == count);
    fflush(stdout);
    for (int i = 0; i < 8; i++) {
        if (fork() == 0) {
            int fd = make(AF_INET, SOCK_STREAM);
            NEED(connect(fd, AT("127.0.0.1", port_of(listener))) == 0);
            NEED(send(fd, "child", 5, 0) == 5);
            NEED(recv(fd, buf, 10, 0) == 6);
            _exit(0);
        }
    }
    int told = 0;
    for (int i = 0; i < 8; i++) {
        int fd = accept(listener, NULL, NULL);
        NEED(recv(fd, buf, 10, MSG_PEEK) >= 1);
        told += send(fd, "parent", 6, 0) == 6;
        char end[10];
        while (recv(fd, end, sizeof end, 0) > 0) {}
        close(fd);
    }
    int failed = 0, status;
    while (wait(&status) > 0) failed += status != 0;
    CHECK(told == 8 && failed == 0);
    int fd = make(AF_INET, SOCK_DGRAM);
    struct timeval tv = {0, 30000};
    CHECK(bind(fd, AT("127.0.0.1", 0)) == 0 && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) == 0);
    FAILS(recv(fd, buf, 10, 0), EAGAIN);
    close(fd);
}

static void devices(void) {
    section("devices");
    CHECK(if_nametoindex("lo") == 1);
    char name[IF_NAMESIZE];
    CHECK(if_indextoname(1, name) && strcmp(name, "lo") == 0);
    struct ifaddrs *all, *one;
    need(getifaddrs(&all) == 0, "getifaddrs");
    for (one = all; one; one = one->ifa_next) {
        if (strcmp(one->ifa_name, "lo") != 0 || !one->ifa_addr) continue;
        printf("lo: family %d, flags %#x\n", one->ifa_addr->sa_family, one->ifa_flags);
    }
    freeifaddrs(all);
    int fd = make(AF_INET, SOCK_DGRAM);
    struct ifreq req = {.ifr_name = "lo"};
    CHECK(ioctl(fd, SIOCGIFFLAGS, &req) == 0 && (req.ifr_flags & (IFF_UP | IFF_LOOPBACK)) == (IFF_UP | IFF_LOOPBACK));
    CHECK(ioctl(fd, SIOCGIFADDR, &req) == 0 && ((struct sockaddr_in *)&req.ifr_addr)->sin_addr.s_addr == htonl(INADDR_LOOPBACK));
    CHECK(ioctl(fd, SIOCGIFMTU, &req) == 0 && req.ifr_mtu == 65536);
    strcpy(req.ifr_name, "none");
    FAILS(ioctl(fd, SIOCGIFFLAGS, &req), ENODEV);
    close(fd);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, on_sigpipe);
    client = server = -1;
    creation();
    binding();
    connecting();
    listener = listening("127.0.0.1", 0);
    transfers();
    ends();
    options();
    waits();
    datagrams(AF_INET);
    datagrams(AF_INET6);
    devices();
    return 0;
}
