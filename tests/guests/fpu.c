// Each thread keeps its own vector registers, rounding mode and x87 state
// while others run in between.
#include "guest.h"
#include <cpuid.h>
#include <fenv.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define THREADS 6

static int rounds = 40;
static atomic_int bad_sse, bad_avx, bad_x87, bad_mode, bad_sum;
static int has_avx;

static void hold_sse(uint64_t seed, long turns) {
    uint64_t in[32], out[32];
    for (int i = 0; i < 32; i++) in[i] = seed * 0x9e3779b97f4a7c15ull + (uint64_t)i;
#define LD(n) "movdqu " #n "*16(%[in]), %%xmm" #n "\n\t"
#define ST(n) "movdqu %%xmm" #n ", " #n "*16(%[out])\n\t"
#define ALL(x) x(0) x(1) x(2) x(3) x(4) x(5) x(6) x(7) x(8) x(9) x(10) x(11) x(12) x(13) x(14) x(15)
    __asm__ volatile(ALL(LD) "1: dec %[n]\n\tjnz 1b\n\t" ALL(ST)
                     : [n] "+r"(turns)
                     : [in] "r"(in), [out] "r"(out)
                     : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    if (memcmp(in, out, sizeof in)) atomic_fetch_add(&bad_sse, 1);
}

__attribute__((target("avx"))) static void hold_avx(uint64_t seed, long turns) {
    uint64_t in[64], out[64];
    for (int i = 0; i < 64; i++) in[i] = seed * 0xd1b54a32d192ed03ull + (uint64_t)i;
#define LDY(n) "vmovdqu " #n "*32(%[in]), %%ymm" #n "\n\t"
#define STY(n) "vmovdqu %%ymm" #n ", " #n "*32(%[out])\n\t"
    __asm__ volatile(ALL(LDY) "1: dec %[n]\n\tjnz 1b\n\t" ALL(STY) "vzeroupper"
                     : [n] "+r"(turns)
                     : [in] "r"(in), [out] "r"(out)
                     : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    if (memcmp(in, out, sizeof in)) atomic_fetch_add(&bad_avx, 1);
}

static void hold_x87(long id, long turns) {
    double in = 1000.0 + (double)id, out;
    long double top;
    __asm__ volatile("fldl %[in]\n\tfld1\n\tfldpi\n\t1: dec %[n]\n\tjnz 1b\n\tfstp %%st(0)\n\tfstp %%st(0)\n\tfstpl %[out]"
                     : [n] "+r"(turns), [out] "=m"(out)
                     : [in] "m"(in)
                     : "cc");
    top = out;
    if (top != in) atomic_fetch_add(&bad_x87, 1);
}

static const int modes[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};

static void *work(void *arg) {
    long id = (long)arg;
    fesetround(modes[id % 4]);
    volatile double one = 1.0, three = 3.0;
    double third = one / three;
    uint64_t sum = 0;
    for (int i = 0; i < rounds; i++) {
        long turns = 300000 + id * 1000;
        hold_sse((uint64_t)(id * 1000 + i + 1), turns);
        if (has_avx) hold_avx((uint64_t)(id * 7777 + i + 1), turns);
        hold_x87(id, turns);
        if (fegetround() != modes[id % 4] || one / three != third) atomic_fetch_add(&bad_mode, 1);
        if (i % 8 == id % 8) {
            struct timespec ts = {0, 100000};
            nanosleep(&ts, NULL);
        }
        sum += (uint64_t)i;
    }
    if (sum != (uint64_t)rounds * (uint64_t)(rounds - 1) / 2) atomic_fetch_add(&bad_sum, 1);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc > 1) rounds = atoi(argv[1]);
    // The processor has AVX and the kernel has switched it on (SDM, XGETBV).
    __builtin_cpu_init();
    has_avx = __builtin_cpu_supports("avx") != 0;
    pthread_t t[THREADS];
    for (long i = 0; i < THREADS; i++) need(pthread_create(&t[i], NULL, work, (void *)i) == 0, "pthread_create");
    for (int i = 0; i < THREADS; i++) pthread_join(t[i], NULL);
    printf("has avx %d avx2 %d avx512f %d\n", has_avx, !!__builtin_cpu_supports("avx2"), !!__builtin_cpu_supports("avx512f"));
    printf("sse %d avx %d x87 %d mode %d sum %d\n", bad_sse, bad_avx, bad_x87, bad_mode, bad_sum);
    CHECK(bad_sse + bad_avx + bad_x87 + bad_mode + bad_sum == 0);
    volatile double x = 2.0;
    printf("%.17g %.17g %.17g\n", sqrt(x), sin(x), pow(x, 0.3));
    return 0;
}
