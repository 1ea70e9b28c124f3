// A server of HTTP in one thread: "hello" for /, a page that takes some milliseconds for /page.
//
//     web PORT [ROUNDS]     serve; a page takes ROUNDS rounds of work
//     web calibrate         print the rounds that take 5 ms here
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench.h"

enum { EVENTS = 64, REQUEST_BYTES = 4096, PAGE_BYTES = 8192, PAGE_MS = 5 };

static long rounds;
static char page[PAGE_BYTES];

// Work as a template engine has it: numbers and bytes, all in memory.
static void render(long count)
{
    uint32_t state = 1;
    for (long done = 0; done < count; done++) {
        state = state * 1664525 + 1013904223;
        page[state % PAGE_BYTES] = (char)('a' + (state >> 16) % 26);
    }
}

static void answer(int client, const char *body, size_t length, int keep)
{
    char head[160];
    int count = snprintf(head, sizeof head,
                         "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: %s\r\n\r\n", length,
                         keep ? "keep-alive" : "close");
    char all[160 + PAGE_BYTES];
    memcpy(all, head, (size_t)count);
    memcpy(all + count, body, length);
    for (size_t sent = 0, size = (size_t)count + length; sent < size;) {
        ssize_t more = write(client, all + sent, size - sent);
        if (more <= 0)
            return;
        sent += (size_t)more;
    }
}

// One request of a client; requests that come together or in pieces are none of wrk's.
static int serve(int client)
{
    char request[REQUEST_BYTES + 1];
    ssize_t length = read(client, request, REQUEST_BYTES);
    if (length <= 0)
        return 0;
    request[length] = 0;
    int keep = !strcasestr(request, "connection: close");
    if (!strncmp(request, "GET /page ", 10)) {
        render(rounds);
        answer(client, page, PAGE_BYTES, keep);
    } else {
        answer(client, "hello\n", 6, keep);
    }
    return keep;
}

static int listen_on(long port)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 512))
        return -1;
    return listener;
}

int main(int argc, char **argv)
{
    memset(page, ' ', sizeof page);
    if (argc > 1 && !strcmp(argv[1], "calibrate")) {
        struct batches batches = {0};
        long probe = 100000;
        for (int batch = 0; batch < 50; batch++) {
            double start = now_ns();
            render(probe);
            KEEP(page[7]);
            add(&batches, now_ns() - start);
        }
        report("rounds", PAGE_MS * 1e6 / undisturbed(&batches) * (double)probe);
        return 0;
    }
    rounds = count_arg(argc, argv, 2, 1);
    int listener = listen_on(count_arg(argc, argv, 1, 8000));
    if (listener < 0) {
        perror("web");
        return 1;
    }
    int waits = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, come[EVENTS];
    epoll_ctl(waits, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(waits, come, EVENTS, -1);
        for (int at = 0; at < count; at++) {
            int fd = come[at].data.fd, one = 1;
            if (fd == listener) {
                event.data.fd = accept(listener, NULL, NULL);
                setsockopt(event.data.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                epoll_ctl(waits, EPOLL_CTL_ADD, event.data.fd, &event);
            } else if (!serve(fd)) {
                close(fd);
            }
        }
    }
}
