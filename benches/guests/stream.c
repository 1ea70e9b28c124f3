// stream [MIB] [PASSES] [huge]: fills fresh anonymous memory and sums it; nanoseconds of the pass
// that touches it first, whole, and of a pass after it. With "huge", in huge pages where there are.
#define _GNU_SOURCE
#include "bench.h"
#include <string.h>
#include <sys/mman.h>

enum { BATCH_WORDS = (4 << 20) / sizeof(uint64_t) };

static struct batches fills, sums;

static uint64_t fill_and_sum(uint64_t *words, size_t count, uint64_t seed)
{
    uint64_t sum = 0;
    for (size_t from = 0; from < count; from += BATCH_WORDS) {
        double start = now_ns();
        for (size_t i = from; i < from + BATCH_WORDS; i++)
            words[i] = seed + i;
        // What was stored is read back from memory, not remembered.
        __asm__ volatile("" : : "r"(words) : "memory");
        add(&fills, now_ns() - start);
    }
    for (size_t from = 0; from < count; from += BATCH_WORDS) {
        double start = now_ns();
        for (size_t i = from; i < from + BATCH_WORDS; i++)
            sum += words[i];
        KEEP(sum);
        add(&sums, now_ns() - start);
    }
    return sum;
}

int main(int argc, char **argv)
{
    size_t len_bytes = (size_t)count_arg(argc, argv, 1, 256) << 20;
    long passes = count_arg(argc, argv, 2, 3);
    len_bytes -= len_bytes % (BATCH_WORDS * sizeof(uint64_t));
    size_t count = len_bytes / sizeof(uint64_t);

    double start = now_ns();
    uint64_t *words = mmap(NULL, len_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (words == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    if (argc > 3 && !strcmp(argv[3], "huge"))
        madvise(words, len_bytes, MADV_HUGEPAGE);
    uint64_t sum = fill_and_sum(words, count, 1);
    report("first_ns", now_ns() - start);
    fills.count = sums.count = 0;
    for (long pass = 0; pass < passes; pass++)
        sum ^= fill_and_sum(words, count, (uint64_t)pass + 2);
    KEEP(sum);
    report("later_ns", (undisturbed(&fills) + undisturbed(&sums)) * (double)(count / BATCH_WORDS));
    return 0;
}
