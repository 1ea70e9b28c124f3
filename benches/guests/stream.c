// stream [MIB] [PASSES]: fills fresh anonymous memory and sums it; nanoseconds of the pass that
// touches it first, and the mean of the passes after it.
#define _GNU_SOURCE
#include "bench.h"
#include <sys/mman.h>

static uint64_t fill_and_sum(uint64_t *words, size_t count, uint64_t seed)
{
    for (size_t i = 0; i < count; i++)
        words[i] = seed + i;
    // What was stored is read back from memory, not remembered.
    __asm__ volatile("" : : "r"(words) : "memory");
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += words[i];
    return sum;
}

int main(int argc, char **argv)
{
    size_t len_bytes = (size_t)count_arg(argc, argv, 1, 256) << 20;
    long passes = count_arg(argc, argv, 2, 3);
    size_t count = len_bytes / sizeof(uint64_t);

    double start = now_ns();
    uint64_t *words = mmap(NULL, len_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (words == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    uint64_t sum = fill_and_sum(words, count, 1);
    double first_ns = now_ns() - start;
    start = now_ns();
    for (long pass = 0; pass < passes; pass++)
        sum ^= fill_and_sum(words, count, (uint64_t)pass + 2);
    double later_ns = (now_ns() - start) / (double)passes;
    KEEP(sum);
    report("first_ns", first_ns);
    report("later_ns", later_ns);
    return 0;
}
