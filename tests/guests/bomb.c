// Takes and touches memory for ever: bomb [heap|stack-maps|file].
#include "guest.h"
#include <fcntl.h>
#include <sys/mman.h>

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "heap";
    static char chunk[1 << 20];
    memset(chunk, 'x', sizeof chunk);
    if (write(1, "ready\n", 6) != 6) return 1;
    if (!strcmp(mode, "file")) {
        int fd = open("/tmp/bomb", O_CREAT | O_WRONLY, 0600);
        for (;;)
            if (write(fd, chunk, sizeof chunk) < 0) return errno == ENOSPC ? 28 : 2;
    }
    if (!strcmp(mode, "huge")) {
        // One reservation far above any limit, then touched page by page.
        char *p = mmap(NULL, 1ul << 40, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return 3;
        for (unsigned long i = 0;; i += 4096) p[i] = 1;
    }
    for (;;) {
        char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) return 4;
        memset(p, 1, 1 << 20);
    }
}
