// Copies standard input to standard output with reads of many sizes, then
// says how much there was and that end of file stays end of file.
#include "guest.h"

int main(void) {
    static char buf[65536];
    unsigned long total = 0;
    uint32_t sum = 2166136261u;
    size_t size = 1;
    for (;;) {
        ssize_t n = read(0, buf, size);
        if (n < 0) {
            fprintf(stderr, "read: %s\n", errno_name(errno));
            return 2;
        }
        if (n == 0) break;
        for (ssize_t i = 0; i < n; i++) sum = (sum ^ (unsigned char)buf[i]) * 16777619u;
        for (ssize_t off = 0; off < n;) {
            ssize_t w = write(1, buf + off, (size_t)(n - off));
            if (w < 0) {
                fprintf(stderr, "write: %s\n", errno_name(errno));
                return 3;
            }
            off += w;
        }
        total += (unsigned long)n;
        size = size * 3 % sizeof buf + 1;
    }
    char c;
    fprintf(stderr, "total %lu fnv %08x again %zd\n", total, sum, read(0, &c, 1));
    return 0;
}
