// calls [BATCHES]: nanoseconds per call.
#define _GNU_SOURCE
#include "bench.h"
#include <sys/syscall.h>
#include <unistd.h>

static struct batches batches;

static double per_call_ns(long number, long rounds, long calls)
{
    batches.count = 0;
    for (long round = 0; round < rounds; round++) {
        double start = now_ns();
        for (long i = 0; i < calls; i++)
            syscall(number, 0, 0, 0);
        add(&batches, now_ns() - start);
    }
    return undisturbed(&batches) / (double)calls;
}

static double clock_ns(long rounds, long calls)
{
    struct timespec t;
    batches.count = 0;
    for (long round = 0; round < rounds; round++) {
        double start = now_ns();
        for (long i = 0; i < calls; i++)
            clock_gettime(CLOCK_MONOTONIC, &t);
        add(&batches, now_ns() - start);
    }
    return undisturbed(&batches) / (double)calls;
}

int main(int argc, char **argv)
{
    long rounds = count_arg(argc, argv, 1, 100);
    // getpgrp changes nothing and blocks on nothing; getpid is a constant of the process.
    report("getpgrp_ns", per_call_ns(SYS_getpgrp, rounds, 20));
    report("getpid_ns", per_call_ns(SYS_getpid, rounds, 500));
    report("clock_ns", clock_ns(rounds, 30000));
    return 0;
}
