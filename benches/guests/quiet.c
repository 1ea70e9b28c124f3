// quiet compute|sleep SECONDS: makes no call for so long.
#define _GNU_SOURCE
#include "bench.h"
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    long seconds = count_arg(argc, argv, 2, 5);
    if (argc > 1 && !strcmp(argv[1], "sleep")) {
        sleep((unsigned)seconds);
    } else if (argc > 1 && !strcmp(argv[1], "compute")) {
        uint64_t value = 1;
        for (double end = now_ns() + (double)seconds * 1e9; now_ns() < end;)
            for (int i = 0; i < 1000000; i++) {
                value = value * 6364136223846793005u + 1;
                KEEP(value);
            }
    } else {
        fprintf(stderr, "usage: quiet compute|sleep SECONDS\n");
        return 2;
    }
    return 0;
}
