// compute [ROUNDS]: nanoseconds of an integer loop and of a vector floating-point loop, neither of
// which leaves the first-level cache or makes a call.
#include "bench.h"

enum { LANES = 2048 };

// A dependent chain of multiply, shift and branch on the data (xorshift64*, Vigna 2016).
static uint64_t integer_loop(long rounds)
{
    uint64_t x = 0x9e3779b97f4a7c15u, sum = 0;
    for (long i = 0; i < rounds * 50000; i++) {
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        uint64_t y = x * 0x2545f4914f6cdd1du;
        if (y & 1)
            sum += y;
        else
            sum ^= y >> 3;
    }
    return sum;
}

// Compiled for the wide vector unit and for the baseline; main chooses by what the processor has.
#define FLOAT_LOOP(name, target)                                                   \
    target static float name(long rounds, float *restrict a, const float *restrict b) \
    {                                                                              \
        for (long r = 0; r < rounds * 1000; r++) {                                  \
            for (int i = 0; i < LANES; i++)                                        \
                a[i] = a[i] * 0.999f + b[i];                                       \
            __asm__ volatile("" : : "r"(a) : "memory");                            \
        }                                                                          \
        return a[LANES / 2];                                                       \
    }
FLOAT_LOOP(float_loop_avx2, __attribute__((target("avx2,fma"), optimize("O3"))))
FLOAT_LOOP(float_loop_sse2, __attribute__((optimize("O3"))))

static float a[LANES] __attribute__((aligned(64))), b[LANES] __attribute__((aligned(64)));

int main(int argc, char **argv)
{
    long rounds = count_arg(argc, argv, 1, 1000);
    double start = now_ns();
    uint64_t sum = integer_loop(rounds);
    KEEP(sum);
    report("integer_ns", now_ns() - start);

    for (int i = 0; i < LANES; i++)
        b[i] = (float)i;
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    start = now_ns();
    volatile float last = avx2 ? float_loop_avx2(rounds, a, b) : float_loop_sse2(rounds, a, b);
    (void)last;
    report("float_ns", now_ns() - start);
    report("avx2", avx2);
    return 0;
}
