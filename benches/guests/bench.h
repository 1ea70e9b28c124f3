// What the measured programs share: a clock, batches, and one "name value" line per result.
//
// Work that can be cut is measured in batches of about a millisecond, and the batch at the tenth
// percentile is reported: batches are shorter than a time slice, and a tenth of them is undisturbed
// even when other programs take the processor, or the other half of its core, most of the time.
// What is too rare to be in most batches is to be seen in the counters.
#ifndef BENCH_H
#define BENCH_H
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MAX_BATCHES = 4096 };

struct batches {
    int count;
    double ns[MAX_BATCHES];
};

// CLOCK_MONOTONIC in nanoseconds.
static inline double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static inline void add(struct batches *batches, double ns)
{
    if (batches->count < MAX_BATCHES)
        batches->ns[batches->count++] = ns;
}

static inline int compare_doubles(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static inline double undisturbed(struct batches *batches)
{
    if (!batches->count)
        return 0;
    qsort(batches->ns, (size_t)batches->count, sizeof batches->ns[0], compare_doubles);
    return batches->ns[batches->count / 10];
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
