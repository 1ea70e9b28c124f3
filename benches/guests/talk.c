// talk tcp|unix BLOCK MIB: sends so much to another process in blocks; nanoseconds of a block.
// talk hand-tcp|hand-unix ROUNDS: a byte there and back; nanoseconds of a way.
// talk host ADDRESS:PORT BLOCK MIB: sends so much to a server that reads; nanoseconds of a block.
// talk connect ADDRESS:PORT ROUNDS: connects and closes; nanoseconds of one.
// talk idle ADDRESS:PORT CONNECTIONS SECONDS: has connections, and does nothing.
#define _GNU_SOURCE
#include "bench.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCKS_PER_BATCH = 4, TURNS_PER_BATCH = 20 };

static struct batches batches;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

// Both ends of a new connection.
static void connect_pair(int is_tcp, int ends[2])
{
    if (!is_tcp) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0)
            fail("socketpair");
        return;
    }
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&at, len) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, (void *)&at, &len) != 0 || connect(ends[0], (void *)&at, len) != 0)
        fail("connect");
    ends[1] = accept(listener, NULL, NULL);
    for (int i = 0; i < 2; i++)
        setsockopt(ends[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    close(listener);
}

static int connect_to(const char *place)
{
    char address[64];
    snprintf(address, sizeof address, "%s", place);
    char *port = strchr(address, ':');
    if (!port)
        fail(place);
    *port++ = 0;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (inet_pton(AF_INET, address, &at.sin_addr) != 1 || connect(fd, (void *)&at, sizeof at) != 0)
        fail(place);
    return fd;
}

static void send_blocks(int fd, size_t block_bytes, size_t all_bytes)
{
    char *block = calloc(1, block_bytes);
    for (size_t done = 0; done < all_bytes;) {
        double start = now_ns();
        for (int i = 0; i < BLOCKS_PER_BATCH; i++, done += block_bytes)
            for (size_t sent = 0; sent < block_bytes;) {
                ssize_t n = write(fd, block + sent, block_bytes - sent);
                if (n <= 0)
                    fail("write");
                sent += (size_t)n;
            }
        add(&batches, now_ns() - start);
    }
    report("operation_ns", undisturbed(&batches) / BLOCKS_PER_BATCH);
    report("operations", (double)all_bytes / (double)block_bytes);
}

static void to_a_process(int is_tcp, size_t block_bytes, size_t all_bytes)
{
    int ends[2];
    connect_pair(is_tcp, ends);
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        static char bytes[1 << 20];
        while (read(ends[1], bytes, sizeof bytes) > 0)
            ;
        _exit(0);
    }
    close(ends[1]);
    send_blocks(ends[0], block_bytes, all_bytes);
    close(ends[0]);
    waitpid(child, NULL, 0);
}

static void hand_over(int is_tcp, long rounds)
{
    int ends[2];
    char byte = 'x';
    connect_pair(is_tcp, ends);
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        while (read(ends[1], &byte, 1) == 1 && write(ends[1], &byte, 1) == 1)
            ;
        _exit(0);
    }
    close(ends[1]);
    for (long round = 0; round < rounds; round++) {
        double start = now_ns();
        for (int turn = 0; turn < TURNS_PER_BATCH; turn++)
            if (write(ends[0], &byte, 1) != 1 || read(ends[0], &byte, 1) != 1)
                fail("hand over");
        add(&batches, now_ns() - start);
    }
    report("operation_ns", undisturbed(&batches) / (2 * TURNS_PER_BATCH));
    report("operations", (double)rounds * 2 * TURNS_PER_BATCH);
    close(ends[0]);
    waitpid(child, NULL, 0);
}

int main(int argc, char **argv)
{
    const char *kind = argc > 2 ? argv[1] : "";
    if (!strcmp(kind, "tcp") || !strcmp(kind, "unix")) {
        to_a_process(kind[0] == 't', (size_t)count_arg(argc, argv, 2, 65536), (size_t)count_arg(argc, argv, 3, 64) << 20);
    } else if (!strcmp(kind, "hand-tcp") || !strcmp(kind, "hand-unix")) {
        hand_over(kind[5] == 't', count_arg(argc, argv, 2, 100));
    } else if (!strcmp(kind, "host")) {
        send_blocks(connect_to(argv[2]), (size_t)count_arg(argc, argv, 3, 1 << 20), (size_t)count_arg(argc, argv, 4, 64) << 20);
    } else if (!strcmp(kind, "connect")) {
        long rounds = count_arg(argc, argv, 3, 100);
        for (long round = 0; round < rounds; round++) {
            double start = now_ns();
            int fd = connect_to(argv[2]);
            add(&batches, now_ns() - start);
            close(fd);
        }
        report("operation_ns", undisturbed(&batches));
        report("operations", (double)rounds);
    } else if (!strcmp(kind, "idle")) {
        for (long number = count_arg(argc, argv, 3, 1000); number > 0; number--)
            connect_to(argv[2]);
        sleep((unsigned)count_arg(argc, argv, 4, 5));
    } else {
        fprintf(stderr, "usage: see the top of talk.c\n");
        return 2;
    }
    return 0;
}
