// latency SKIPPED MILLISECONDS: makes getpgrp calls, for so long first without looking, then timing each.
#define _GNU_SOURCE
#include "bench.h"
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_CALLS = 1 << 20 };

int main(int argc, char **argv)
{
    static double took_ns[MAX_CALLS];
    double skipped_ns = (double)count_arg(argc, argv, 1, 500) * 1e6;
    double wanted_ns = (double)count_arg(argc, argv, 2, 2000) * 1e6;
    for (double start = now_ns(); now_ns() - start < skipped_ns;)
        syscall(SYS_getpgrp);
    size_t calls = 0;
    double start = now_ns();
    for (double before = start; before - start < wanted_ns && calls < MAX_CALLS;) {
        syscall(SYS_getpgrp);
        double after = now_ns();
        took_ns[calls++] = after - before;
        before = after;
    }
    qsort(took_ns, calls, sizeof took_ns[0], compare_doubles);
    report("calls", (double)calls);
    report("median_ns", took_ns[calls / 2]);
    report("p999_ns", took_ns[calls - 1 - calls / 1000]);
    report("max_ns", took_ns[calls - 1]);
    return 0;
}
