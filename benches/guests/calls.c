// calls [HOST_CALLS] [STUB_CALLS] [CLOCK_CALLS]: nanoseconds per call.
// The mean over all of them, not the best: what happens once in a while is part of the price.
#define _GNU_SOURCE
#include "bench.h"
#include <sys/syscall.h>
#include <unistd.h>

static double per_call_ns(long number, long calls)
{
    for (long i = 0; i < 10; i++)
        syscall(number, 0, 0, 0);
    double start = now_ns();
    for (long i = 0; i < calls; i++)
        syscall(number, 0, 0, 0);
    return (now_ns() - start) / (double)calls;
}

static double clock_ns(long calls)
{
    struct timespec t;
    for (long i = 0; i < 1000; i++)
        clock_gettime(CLOCK_MONOTONIC, &t);
    double start = now_ns();
    for (long i = 0; i < calls; i++)
        clock_gettime(CLOCK_MONOTONIC, &t);
    return (now_ns() - start) / (double)calls;
}

int main(int argc, char **argv)
{
    // getpgrp changes nothing and blocks on nothing; getpid is a constant of the process.
    report("getpgrp_ns", per_call_ns(SYS_getpgrp, count_arg(argc, argv, 1, 2000)));
    report("getpid_ns", per_call_ns(SYS_getpid, count_arg(argc, argv, 2, 20000)));
    report("clock_ns", clock_ns(count_arg(argc, argv, 3, 2000000)));
    return 0;
}
