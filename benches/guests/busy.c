// busy MILLISECONDS: alternates getpgrp and a 4 KiB pread for so long; how many, and how long.
#define _GNU_SOURCE
#include "bench.h"
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BLOCK_LEN = 4096 };

int main(int argc, char **argv)
{
    static char block[BLOCK_LEN];
    double wanted_ns = (double)count_arg(argc, argv, 1, 3000) * 1e6;
    int file = open("busy", O_RDONLY);
    double start = now_ns(), took = 0, calls = 0;
    do {
        syscall(SYS_getpgrp);
        if (pread(file, block, BLOCK_LEN, 0) != BLOCK_LEN) {
            perror("pread");
            return 1;
        }
        calls += 2;
        took = now_ns() - start;
    } while (took < wanted_ns);
    report("calls", calls);
    report("took_ns", took);
    return 0;
}
