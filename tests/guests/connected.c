// Sockets that exist at the freeze: a listener, a connection with bytes on the way, a descriptor in a message,
// datagrams that wait, an epoll instance that watches them and has told of a part, a child that waits in accept(2).
// Each answer says what a request finds of them.
#include "service.h"
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#define PATH "/tmp/connected"
#define CHILD_PATH "/tmp/child"

static int listener, client, server, passed[2], receiver, sender, tcp_listener, tcp_client, tcp_server;
static int udp_receiver, udp_sender, epoll;
static struct sockaddr_in tcp;

static struct sockaddr *at(const char *path) {
    static struct sockaddr_un un;
    un = (struct sockaddr_un){.sun_family = AF_UNIX};
    strcpy(un.sun_path, path);
    return (void *)&un;
}

static int connected(const char *path) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, at(path), sizeof(struct sockaddr_un)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static int listening(const char *path) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(fd >= 0, "socket");
    unlink(path);
    need(bind(fd, at(path), sizeof(struct sockaddr_un)) == 0 && listen(fd, 4) == 0, "listen");
    return fd;
}

static int pass(int to, int fd) {
    static _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {"passed", 6};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    return (int)sendmsg(to, &msg, 0);
}

static int take(int from) {
    static _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    char bytes[16];
    struct iovec iov = {bytes, 6};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(from, &msg, MSG_DONTWAIT);
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    int fd = -1;
    if (n > 0 && c) memcpy(&fd, CMSG_DATA(c), sizeof fd);
    say("message %zd, descriptor %s\n", n, fd >= 0 ? "there" : "none");
    return fd;
}

static void say_received(const char *what, int fd, size_t len) {
    char bytes[64];
    ssize_t n = recv(fd, bytes, len, MSG_DONTWAIT);
    if (n < 0)
        say("%s: %s\n", what, errno_name(errno));
    else
        say("%s: %zd %.*s\n", what, n, (int)n, bytes);
}

static void say_state(const char *what, int fd) {
    struct pollfd p = {fd, POLLIN | POLLOUT, 0};
    poll(&p, 1, 0);
    say("%s: %#x\n", what, p.revents);
}

enum { EVENTS = 8 };
static const char *const watched[] = {"TCP server", "TCP client", "UDP", "listener", "server", "receiver"};

static void watch(uint32_t number, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u32 = number};
    need(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
}

// Says what the instance tells of.
static void say_events(const char *what) {
    struct epoll_event ready[EVENTS];
    int n = epoll_wait(epoll, ready, EVENTS, 0);
    say("%s: %d events\n", what, n);
    for (int i = 0; i < n; i++) say("  %s: %#x\n", watched[ready[i].data.u32], ready[i].events);
}

// Accepts connections and gives back what they send, for as long as they send.
static void serve(int fd, pid_t parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(0);
    for (int count = 0;; count++) {
        int one = accept(fd, NULL, NULL);
        char bytes[64];
        for (ssize_t n; (n = recv(one, bytes, sizeof bytes - 1, 0)) > 0;) {
            bytes[n] = (char)('0' + count);
            if (send(one, bytes, (size_t)n + 1, MSG_NOSIGNAL) < 0) break;
        }
        close(one);
    }
}

static void answer(void) {
    char *rest;
    if (is_verb("look", &rest)) {
        say_state("listener", listener);
        say_state("client", client);
        say_state("server", server);
        say_state("receiver", receiver);
        say_state("TCP listener", tcp_listener);
        say_state("TCP client", tcp_client);
    } else if (is_verb("receive", &rest)) {
        say_received("queued", server, 6);
        int fd = take(server);
        say_received("through what was passed", fd, 10);
        close(fd);
        say_received("datagram", receiver, 10);
        say_received("another", receiver, 10);
    } else if (is_verb("accept", &rest)) {
        int one = accept(listener, NULL, NULL), other = connected(PATH);
        say_received("sent before it was accepted", one, 10);
        say("%d\n", (int)send(other, "more", 4, 0));
        close(one);
        one = accept(listener, NULL, NULL);
        say_received("sent since", one, 10);
        close(one);
        close(other);
    } else if (is_verb("ask", &rest)) {
        int one = connected(CHILD_PATH);
        say("%d\n", (int)send(one, "asked", 5, 0));
        char bytes[16];
        ssize_t n = recv(one, bytes, 6, MSG_WAITALL);
        say("%.*s\n", (int)(n < 0 ? 0 : n), bytes);
        close(one);
    } else if (is_verb("close", &rest)) {
        close(listener);
        close(server);
        say_received("the server has gone", client, 10);
        say_received("and is gone", client, 10);
        say("%d\n", connected(PATH) < 0 ? errno : 0);
    } else if (is_verb("tcp", &rest)) {
        say_received("queued", tcp_server, 10);
        int one = accept(tcp_listener, NULL, NULL), other = socket(AF_INET, SOCK_STREAM, 0);
        say_received("sent before it was accepted", one, 10);
        say("%d\n", connect(other, (void *)&tcp, sizeof tcp));
        say("%d\n", (int)send(other, "more", 4, 0));
        close(one);
        one = accept(tcp_listener, NULL, NULL);
        say_received("sent since", one, 10);
        close(one);
        close(other);
        close(tcp_server);
        say_received("the server has gone", tcp_client, 10);
    } else if (is_verb("events", &rest)) {
        say_events("at first");
        say("%d\n", (int)send(tcp_client, "more", 4, 0));
        say("%d\n", (int)send(udp_sender, "more", 4, 0));
        say_events("after more");
        say_received("of TCP", tcp_server, 60);
        struct epoll_event event = {.events = EPOLLOUT | EPOLLONESHOT, .data.u32 = 1};
        say("%d\n", epoll_ctl(epoll, EPOLL_CTL_MOD, tcp_client, &event));
        close(udp_receiver);
        say_events("after a close");
        say_events("again");
    } else if (is_verb("udp", &rest)) {
        say_received("queued", udp_receiver, 10);
        say_received("another", udp_receiver, 10);
        say_received("no more", udp_receiver, 10);
        say("%d\n", (int)send(udp_sender, "since", 5, 0));
        say_received("sent since", udp_receiver, 3);
    } else if (is_verb("unlink", &rest)) {
        say("%d\n", unlink(PATH));
        say("%s\n", connected(PATH) < 0 ? errno_name(errno) : "connected");
        say("%d\n", (int)send(sender, "x", 1, MSG_DONTWAIT));
    }
}

int main(void) {
    listener = listening(PATH);
    client = connected(PATH);
    server = accept(listener, NULL, NULL);
    need(client >= 0 && server >= 0, "a connection");
    need(socketpair(AF_UNIX, SOCK_STREAM, 0, passed) == 0, "socketpair");
    need(send(client, "queued", 6, 0) == 6 && pass(client, passed[0]) == 6, "send");
    need(send(passed[1], "across", 6, 0) == 6, "send");
    close(passed[0]);
    // It waits to be accepted for good.
    int waiting = connected(PATH);
    need(waiting >= 0 && send(waiting, "early", 5, 0) == 5, "send");
    receiver = socket(AF_UNIX, SOCK_DGRAM, 0);
    sender = socket(AF_UNIX, SOCK_DGRAM, 0);
    // By a name that nobody has: natively, a child of the run before may still be there.
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    socklen_t len = sizeof un;
    need(bind(receiver, (void *)&un, 2) == 0 && getsockname(receiver, (void *)&un, &len) == 0, "a name");
    need(connect(sender, (void *)&un, len) == 0, "datagrams");
    need(send(sender, "datagram", 8, 0) == 8, "send");
    tcp_listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    tcp.sin_family = AF_INET;
    tcp.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    len = sizeof tcp;
    need(bind(tcp_listener, (void *)&tcp, len) == 0 && listen(tcp_listener, 4) == 0, "listen");
    need(getsockname(tcp_listener, (void *)&tcp, &len) == 0, "getsockname");
    tcp_client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(connect(tcp_client, (void *)&tcp, len) == 0, "connect");
    tcp_server = accept(tcp_listener, NULL, NULL);
    need(send(tcp_client, "queued", 6, 0) == 6, "send");
    waiting = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(connect(waiting, (void *)&tcp, len) == 0 && send(waiting, "early", 5, 0) == 5, "connect");
    udp_receiver = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    udp_sender = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in udp = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    len = sizeof udp;
    need(bind(udp_receiver, (void *)&udp, len) == 0 && getsockname(udp_receiver, (void *)&udp, &len) == 0, "bind");
    need(connect(udp_sender, (void *)&udp, len) == 0, "connect");
    need(send(udp_sender, "one", 3, 0) == 3 && send(udp_sender, "two", 3, 0) == 3, "send");
    epoll = epoll_create1(EPOLL_CLOEXEC);
    watch(0, tcp_server, EPOLLIN | EPOLLRDHUP | EPOLLET);
    watch(1, tcp_client, EPOLLOUT | EPOLLONESHOT);
    watch(2, udp_receiver, EPOLLIN);
    watch(3, listener, EPOLLIN | EPOLLEXCLUSIVE);
    watch(4, server, EPOLLIN | EPOLLET);
    watch(5, receiver, EPOLLIN | EPOLLONESHOT);
    // Of an edge and of a oneshot it has told at the freeze; the others are told of again.
    struct epoll_event told[2];
    need(epoll_wait(epoll, told, 2, 0) == 2, "epoll_wait");
    int theirs = listening(CHILD_PATH);
    pid_t parent = getpid();
    if (fork() == 0) serve(theirs, parent);
    for (;;) {
        next_request();
        answer();
        send_answer();
    }
}
