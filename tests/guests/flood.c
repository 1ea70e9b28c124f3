// Writes N bytes (or for ever when N is 0) to descriptor FD.
#include "guest.h"

int main(int argc, char **argv) {
    static char buf[65536];
    int fd = argc > 1 ? atoi(argv[1]) : 1;
    unsigned long left = argc > 2 ? strtoul(argv[2], NULL, 0) : 0;
    int forever = left == 0;
    for (size_t i = 0; i < sizeof buf; i++) buf[i] = i % 64 == 63 ? '\n' : (char)('a' + i % 26);
    while (forever || left) {
        size_t n = forever || left > sizeof buf ? sizeof buf : left;
        ssize_t w = write(fd, buf, n);
        if (w < 0) return 2;
        if (!forever) left -= (size_t)w;
    }
    return 0;
}
