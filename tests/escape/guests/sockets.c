// Makes kvmlet keep or look through as much as it can of sockets: sockets WHAT
//
// "backlog", "streams", "datagrams" and "rights" take what they can get. In the end they take all memory that they may
// have, so that the limit ends them: what kvmlet keeps and has not charged comes on top of that. The others go on
// until they are stopped.
#include "hostile.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

static char block[1 << 16];
static _Alignas(struct cmsghdr) char control[1 << 17];

static void ready(void) {
    printf("ready\n");
    fflush(stdout);
}

static void reached(const char *what, unsigned long count) {
    fprintf(stderr, "%s: %lu, then %s\n", what, count, strerrorname_np(errno));
}

static void many_descriptors(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

// All memory that there is.
static void fill(void) {
    for (;;) {
        char *at = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) break;
        for (int i = 0; i < 1 << 20; i += 4096) at[i] = 1;
    }
}

static struct sockaddr_in local(int port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return at;
}

static int pass(int to, int fd, int count) {
    struct iovec iov = {"x", 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
    for (int i = 0; i < count; i++) memcpy(CMSG_DATA(c) + i * (int)sizeof fd, &fd, sizeof fd);
    return (int)sendmsg(to, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

// Listeners, each with all connections that may wait, and with what these have sent. Their clients close at once.
static void backlog(void) {
    many_descriptors();
    unsigned long n = 0, sent = 0;
    for (int port = 1; port < 3000; port++) {
        struct sockaddr_in at = local(port);
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        if (listener < 0 || bind(listener, (void *)&at, sizeof at) != 0 || listen(listener, 1 << 20) != 0) break;
        for (int i = 0; i < 5000; i++) {
            int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
            if (fd < 0) break;
            if (connect(fd, (void *)&at, sizeof at) != 0 && errno != EINPROGRESS) break;
            if (send(fd, block, 100, MSG_NOSIGNAL) == 100) sent++;
            n++;
            close(fd);
        }
    }
    reached("connections", n);
    fprintf(stderr, "%lu messages\n", sent);
}

static void streams(void) {
    many_descriptors();
    struct sockaddr_in at = local(9);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    need(bind(listener, (void *)&at, sizeof at) == 0 && listen(listener, 1 << 20) == 0, "listen");
    unsigned long n = 0, bytes = 0;
    for (;; n++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), size = 1 << 30;
        if (fd < 0 || (connect(fd, (void *)&at, sizeof at) != 0 && errno != EINPROGRESS)) break;
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        ssize_t w;
        while ((w = send(fd, block, n % 2 ? 1 : sizeof block, MSG_NOSIGNAL)) > 0) bytes += (unsigned long)w;
        int other = accept(listener, NULL, NULL);
        if (other < 0) break;
    }
    reached("streams", n);
    fprintf(stderr, "%lu bytes\n", bytes);
}

static void datagrams(void) {
    many_descriptors();
    int sender = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    unsigned long n = 0, sent = 0;
    for (; n < 28000; n++) {
        int fd = socket(AF_INET, SOCK_DGRAM, 0), size = 1 << 30;
        struct sockaddr_in at = local(0);
        socklen_t len = sizeof at;
        if (fd < 0 || bind(fd, (void *)&at, sizeof at) != 0 || getsockname(fd, (void *)&at, &len) != 0) break;
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
        for (int i = 0; i < 600; i++) {
            if (sendto(sender, block, n % 2 ? 1 : 60000, 0, (void *)&at, sizeof at) < 0) break;
            sent++;
        }
    }
    reached("receivers", n);
    fprintf(stderr, "%lu datagrams\n", sent);
}

// Descriptions that only messages have: in one another's queues, in chains, in themselves.
static void rights(void) {
    many_descriptors();
    unsigned long n = 0;
    int last = open("/dev/null", O_RDONLY);
    for (; n < 200000; n++) {
        int sv[2];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, sv) != 0) break;
        int r = pass(sv[0], last, 1);
        pass(sv[0], sv[1], 253);
        pass(sv[1], sv[0], 1);
        close(last);
        close(sv[0]);
        last = sv[1];
        if (r < 0 && errno != ETOOMANYREFS) break;
    }
    reached("sockets in messages", n);
}

// Chains as long as may be, dropped at once, again and again.
static void chains(void) {
    many_descriptors();
    ready();
    for (;;) {
        int last = open("/dev/null", O_RDONLY), refused = 0;
        for (int i = 0; i < 5000 && !refused; i++) {
            int sv[2];
            if (socketpair(AF_UNIX, SOCK_STREAM, 0, sv) != 0) break;
            refused = pass(sv[0], last, 1) < 0;
            close(last);
            close(sv[0]);
            last = sv[1];
        }
        close(last);
    }
}

// Connects and closes; many sockets share the port.
static void storm(void) {
    many_descriptors();
    struct sockaddr_in at = local(9);
    for (int i = 0; i < 2000; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
        setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
        if (bind(fd, (void *)&at, sizeof at) != 0 || listen(fd, 1) != 0) break;
        fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
        if (bind(fd, (void *)&at, sizeof at) != 0) break;
    }
    int sender = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    static struct mmsghdr messages[1000];
    static struct iovec one = {"x", 1};
    for (unsigned i = 0; i < 1000; i++)
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &one, .msg_iovlen = 1, .msg_name = &at, .msg_namelen = sizeof at};
    ready();
    for (;;) {
        for (int i = 0; i < 20; i++) {
            int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
            connect(fd, (void *)&at, sizeof at);
            close(fd);
        }
        sendmmsg(sender, messages, 1000, 0);
    }
}

// Control data as long as may be: headers without end, each of another kind of nonsense.
static void headers(void) {
    int sv[2];
    need(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv) == 0, "socketpair");
    struct iovec iov = {"x", 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ready();
    for (unsigned turn = 0;; turn++) {
        for (size_t at = 0; at + sizeof(struct cmsghdr) <= sizeof control; at += sizeof(struct cmsghdr)) {
            struct cmsghdr *c = (void *)(control + at);
            *c = (struct cmsghdr){turn % 7 == 6 ? at * 77777 : sizeof *c, turn % 3 ? SOL_SOCKET : 99, turn % 5 ? SCM_RIGHTS : 77};
        }
        sendmsg(sv[0], &msg, 0);
        msg.msg_controllen = turn % 11 ? sizeof control : (size_t)-1;
        char byte;
        while (recv(sv[1], &byte, 1, 0) == 1) {}
    }
}

int main(int argc, char **argv) {
    need(argc == 2, "arguments");
    const char *what = argv[1];
    if (!strcmp(what, "backlog")) backlog();
    else if (!strcmp(what, "streams")) streams();
    else if (!strcmp(what, "datagrams")) datagrams();
    else if (!strcmp(what, "rights")) rights();
    else if (!strcmp(what, "chains")) chains();
    else if (!strcmp(what, "storm")) storm();
    else if (!strcmp(what, "headers")) headers();
    else need(0, "what?");
    fill();
    printf("done\n");
    fflush(stdout);
    _exit(0);
}
