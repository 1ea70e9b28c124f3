// A small HTTP server that knows nothing of kvmlet: webserver MODE [PORT]. MODE says how it waits for
// connections: accept, poll, select, epoll; threads (four of them in accept); prefork (three children in
// accept, whose parent waits for them); busy (epoll, with a thread that never waits); timers (epoll,
// with one that wakes each 10 ms); unix (on a UNIX socket); two (on two ports); none (it waits and listens on nothing);
// quits (ends before it listens); denied (needs an address that is not there).
//
// GET /count adds to a counter in memory, to a file and to a list on the heap, and tells all three; and
// the client's address. GET /draw answers with a value of a generator in memory that looks out for forks, as those
// of libraries do. Other paths do harm: see serve().
#include "guest.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <kvmlet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#define FILE_NAME "/tmp/count"

struct node {
    struct node *next;
    char text[64];
};
static struct node *list;
static int counter;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int file_bytes(void) {
    struct stat info;
    return stat(FILE_NAME, &info) == 0 ? (int)info.st_size : 0;
}

static void send_all(int fd, const char *bytes, size_t len) {
    while (len > 0) {
        ssize_t count = send(fd, bytes, len, MSG_NOSIGNAL);
        if (count <= 0) return;
        bytes += count;
        len -= (size_t)count;
    }
}

static void respond(int fd, const char *body) {
    char head[128];
    int len = snprintf(head, sizeof head,
                       "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", strlen(body));
    send_all(fd, head, (size_t)len);
    send_all(fd, body, strlen(body));
}

static int forks;
static void on_fork(void) { forks++; }

static uint64_t draw(void) {
    static uint64_t state;
    static int seeded_at = -1;
    if (seeded_at != forks) NEED(getrandom(&state, sizeof state, 0) == sizeof state);
    seeded_at = forks;
    return state = state * 6364136223846793005u + 1442695040888963407u;
}

static void count(int fd, const struct sockaddr_in *peer) {
    pthread_mutex_lock(&lock);
    int seen = ++counter, bytes, items = 0;
    int file = open(FILE_NAME, O_CREAT | O_APPEND | O_WRONLY, 0600);
    write(file, "x", 1);
    close(file);
    bytes = file_bytes();
    struct node *node = malloc(sizeof *node);
    snprintf(node->text, sizeof node->text, "request %d", seen);
    node->next = list;
    list = node;
    for (node = list; node != NULL; node = node->next) items++;
    pthread_mutex_unlock(&lock);
    char body[160], address[INET_ADDRSTRLEN];
    inet_ntop(AF_INET, &peer->sin_addr, address, sizeof address);
    snprintf(body, sizeof body, "counter %d file %d list %d from %s:%d\n", seen, bytes, items, address,
             ntohs(peer->sin_port));
    respond(fd, body);
}

static void *spin(void *unused) {
    for (volatile long turns = 0;; turns++) {}
    return unused;
}

static void *nap(void *unused) {
    for (;;) usleep(10000);
    return unused;
}

static void serve(int fd, const struct sockaddr_in *peer) {
    char request[4096] = "";
    size_t have = 0;
    while (strstr(request, "\r\n\r\n") == NULL && have < sizeof request - 1) {
        ssize_t count = recv(fd, request + have, sizeof request - 1 - have, 0);
        if (count <= 0) return;
        have += (size_t)count;
        request[have] = 0;
    }
    char path[64] = "";
    int number = 0;
    sscanf(request, "%*s /%63[a-z]/%d", path, &number);
    if (strcmp(path, "count") == 0) count(fd, peer);
    // Loops for ever.
    else if (strcmp(path, "loop") == 0) spin(NULL);
    // Never answers.
    else if (strcmp(path, "never") == 0) pause();
    // Eats memory until there is none.
    else if (strcmp(path, "eat") == 0) {
        for (;;) memset(malloc(1 << 20), 7, 1 << 20);
    }
    // Forks until it cannot; the children go on.
    else if (strcmp(path, "forks") == 0) {
        for (int made = 0; made < 30; made++) {
            if (fork() == 0) {
                unlink(FILE_NAME);
                for (;;) pause();
            }
        }
        respond(fd, "forked\n");
    }
    // Kills its server, crashes, ends.
    else if (strcmp(path, "kill") == 0) kill(getppid() == 1 ? getpid() : getppid(), SIGKILL);
    else if (strcmp(path, "crash") == 0) *(volatile int *)8 = 1;
    else if (strcmp(path, "exit") == 0) {
        respond(fd, "last\n");
        exit(3);
    }
    // Answers and never stops.
    else if (strcmp(path, "endless") == 0) {
        for (char junk[4096] = {'z'}; send(fd, junk, sizeof junk, MSG_NOSIGNAL) > 0;) {}
    }
    // A reset instead of an answer.
    else if (strcmp(path, "reset") == 0) {
        struct linger abrupt = {1, 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &abrupt, sizeof abrupt);
    }
    // As many bytes as the number says.
    else if (strcmp(path, "bytes") == 0) {
        char *bytes = malloc((size_t)number);
        for (int at = 0; at < number; at++) bytes[at] = (char)('a' + at % 26);
        send_all(fd, bytes, (size_t)number);
        free(bytes);
    }
    // Adds the number to a sum that is kept by a storage.
    else if (strcmp(path, "tally") == 0) {
        char text[32], sum[32];
        int len = snprintf(text, sizeof text, "%d", number);
        ssize_t got = kvmlet_ask("tally", text, (size_t)len, sum, sizeof sum - 1);
        if (got < 0) snprintf(sum, sizeof sum, "error %d", errno);
        else sum[got] = 0;
        respond(fd, sum);
    }
    else if (strcmp(path, "draw") == 0) {
        char text[32];
        snprintf(text, sizeof text, "%llx", (unsigned long long)draw());
        respond(fd, text);
    }
    // Gives back what follows, until the client ends its side.
    else if (strcmp(path, "echo") == 0) {
        char *rest = strstr(request, "\r\n\r\n") + 4;
        send_all(fd, rest, have - (size_t)(rest - request));
        for (ssize_t count; (count = recv(fd, request, sizeof request, 0)) > 0;) send_all(fd, request, (size_t)count);
    } else respond(fd, "unknown\n");
}

static void take(int listener) {
    struct sockaddr_in peer = {0};
    socklen_t len = sizeof peer;
    int fd = accept(listener, (struct sockaddr *)&peer, &len);
    if (fd < 0) return;
    serve(fd, &peer);
    close(fd);
}

static int listen_at(int port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    NEED(bind(fd, (struct sockaddr *)&address, sizeof address));
    NEED(listen(fd, 16));
    return fd;
}

static void *accept_for_ever(void *data) {
    for (;;) take(*(int *)data);
    return NULL;
}

static int listen_at_path(void) {
    struct sockaddr_un address = {AF_UNIX, "/tmp/webserver.sock"};
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    unlink(address.sun_path);
    NEED(bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
    NEED(listen(listener, 16) == 0);
    return listener;
}

static void start(void *(*body)(void *), void *data) {
    pthread_t thread;
    pthread_create(&thread, NULL, body, data);
}

// Named as the one of OpenSSL: kvmlet calls it before it freezes a server, and in each fork before its first
// connection. In the mode "unseeded" it hangs in forks.
static int is_unseeded, seeded;
int RAND_poll(void) {
    if (is_unseeded && seeded++)
        for (;;) continue;
    return 1;
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "accept";
    int port = argc > 2 ? atoi(argv[2]) : 8080;
    // One that writes to a client that has gone is told so.
    signal(SIGPIPE, SIG_IGN);
    if (strcmp(mode, "quits") == 0) {
        fprintf(stderr, "no configuration\n");
        return 4;
    }
    if (strcmp(mode, "none") == 0) pause();
    is_unseeded = strcmp(mode, "unseeded") == 0;
    if (strcmp(mode, "denied") == 0) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(5432)};
        inet_pton(AF_INET, "192.0.2.7", &address.sin_addr);
        if (connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&address, sizeof address) != 0) {
            perror("the database");
            return 1;
        }
    }
    pthread_atfork(on_fork, on_fork, on_fork);
    int listener = strcmp(mode, "unix") == 0 ? listen_at_path() : listen_at(port);
    if (strcmp(mode, "two") == 0) {
        struct pollfd both[] = {{listener, POLLIN, 0}, {listen_at(port + 1), POLLIN, 0}};
        for (;;) {
            poll(both, 2, -1);
            for (int at = 0; at < 2; at++)
                if (both[at].revents) take(both[at].fd);
        }
    }
    if (strcmp(mode, "poll") == 0) {
        for (struct pollfd one = {listener, POLLIN, 0};; take(listener)) poll(&one, 1, -1);
    }
    if (strcmp(mode, "select") == 0) {
        for (;; take(listener)) {
            fd_set set;
            FD_ZERO(&set);
            FD_SET(listener, &set);
            select(listener + 1, &set, NULL, NULL, NULL);
        }
    }
    if (strcmp(mode, "threads") == 0)
        for (int made = 0; made < 3; made++) start(accept_for_ever, &listener);
    if (strcmp(mode, "prefork") == 0) {
        for (int made = 0; made < 3; made++)
            if (fork() == 0) accept_for_ever(&listener);
        for (;;)
            if (wait(NULL) < 0) return 5;
    }
    if (strcmp(mode, "busy") == 0) start(spin, NULL);
    if (strcmp(mode, "timers") == 0) start(nap, NULL);
    if (strcmp(mode, "epoll") == 0 || strcmp(mode, "busy") == 0 || strcmp(mode, "timers") == 0) {
        int epoll = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
        NEED(epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event));
        for (;;)
            if (epoll_wait(epoll, &event, 1, -1) == 1) take(listener);
    }
    accept_for_ever(&listener);
}
