// compute [BATCHES]: nanoseconds of an integer loop and of a vector floating-point loop, neither of
// which leaves the first-level cache or makes a call.
#include "bench.h"

enum { LANES = 2048 };

static struct batches batches;

// A dependent chain of multiply, shift and branch on the data (xorshift64*, Vigna 2016).
static uint64_t integer_loop(uint64_t x, uint64_t *sum)
{
    for (long i = 0; i < 400000; i++) {
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        uint64_t y = x * 0x2545f4914f6cdd1du;
        if (y & 1)
            *sum += y;
        else
            *sum ^= y >> 3;
    }
    return x;
}

// Compiled for the wide vector unit and for the baseline; main chooses by what the processor has.
#define FLOAT_LOOP(name, target)                                      \
    target static void name(float *restrict a, const float *restrict b) \
    {                                                                 \
        for (int r = 0; r < 10000; r++) {                             \
            for (int i = 0; i < LANES; i++)                           \
                a[i] = a[i] * 0.999f + b[i];                          \
            __asm__ volatile("" : : "r"(a) : "memory");               \
        }                                                             \
    }
FLOAT_LOOP(float_loop_avx2, __attribute__((target("avx2,fma"), optimize("O3"))))
FLOAT_LOOP(float_loop_sse2, __attribute__((optimize("O3"))))

static float a[LANES] __attribute__((aligned(64))), b[LANES] __attribute__((aligned(64)));

int main(int argc, char **argv)
{
    long rounds = count_arg(argc, argv, 1, 100);
    uint64_t x = 0x9e3779b97f4a7c15u, sum = 0;
    for (long round = 0; round < rounds; round++) {
        double start = now_ns();
        x = integer_loop(x, &sum);
        add(&batches, now_ns() - start);
    }
    KEEP(sum);
    report("integer_ns", undisturbed(&batches));

    for (int i = 0; i < LANES; i++)
        b[i] = (float)i;
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    batches.count = 0;
    for (long round = 0; round < rounds; round++) {
        double start = now_ns();
        if (avx2)
            float_loop_avx2(a, b);
        else
            float_loop_sse2(a, b);
        add(&batches, now_ns() - start);
    }
    report("float_ns", undisturbed(&batches));
    report("avx2", avx2);
    return 0;
}
