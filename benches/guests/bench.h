// What the measured programs share: a clock, and one "name value" line per result.
#ifndef BENCH_H
#define BENCH_H
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

// CLOCK_MONOTONIC in nanoseconds.
static inline double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

// Makes the compiler compute `value` and forget where it came from.
#define KEEP(value) __asm__ volatile("" : "+r"(value))

static inline void report(const char *name, double value)
{
    printf("%s %.3f\n", name, value);
}

// argv[index] as a count of at least 1, or `otherwise`.
static inline long count_arg(int argc, char **argv, int index, long otherwise)
{
    long value = argc > index ? atol(argv[index]) : otherwise;
    return value > 0 ? value : 1;
}
#endif
