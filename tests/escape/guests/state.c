// A program that keeps a number in state of the CPU that C code leaves alone: "fill N" puts N into selectors,
// bases, control words, flags and, where ring 3 has them, tiles; "show" and "show thread" say what they are; "crash" ends the program.
#define REQUEST_MAX (64 << 10)
#define ANSWER_MAX (64 << 10)
#include "../../guests/service.h"

#include <asm/prctl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>

// All that loads in ring 3, wherever the table of descriptors comes from.
static const unsigned selectors[] = {0, 0x2b, 0x33, 0x28, 0x30, 0x2a, 0x31, 1, 2, 3};
enum { SELECTORS = sizeof selectors / sizeof *selectors };

static char thread_text[512];
static volatile uint32_t asked, answered;

// AMX (SDM vol. 1, 18): no guest is told of it, but on software KVM ring 3 runs on the host's XCR0.
static int has_tiles;
static sigjmp_buf without_tiles;

static void no_tiles(int number) { siglongjmp(without_tiles, number); }

static void look_for_tiles(void) {
    unsigned char config[64] = {1, [16] = 64, [48] = 1}, tile[64] = {0};
    signal(SIGILL, no_tiles);
    signal(SIGSEGV, no_tiles);
    if (sigsetjmp(without_tiles, 1) == 0) {
        __asm__ volatile("ldtilecfg %0; tileloadd (%1, %2, 1), %%tmm0; tilerelease" : : "m"(config), "r"(tile), "r"(64L) : "memory");
        has_tiles = 1;
    }
    signal(SIGILL, SIG_DFL);
    signal(SIGSEGV, SIG_DFL);
}

// The palette, columns and rows of the first tile, and its first byte.
static void describe_tiles(unsigned tiles[4]) {
    unsigned char config[64] = {0}, tile[1024] = {0};
    memset(tiles, 0, 4 * sizeof *tiles);
    if (!has_tiles) return;
    __asm__ volatile("sttilecfg %0" : "=m"(config));
    tiles[0] = config[0], tiles[1] = config[16], tiles[2] = config[48];
    if (config[0] == 0) return;
    __asm__ volatile("tilestored %%tmm0, (%0, %1, 1)" : : "r"(tile), "r"(64L) : "memory");
    tiles[3] = tile[0];
}

static void fill_tiles(unsigned long number) {
    unsigned char config[64] = {1}, tile[1024];
    if (!has_tiles) return;
    config[16] = (unsigned char)(4 * (number % 16 + 1));
    config[48] = (unsigned char)(number % 16 + 1);
    memset(tile, (int)(number | 1), sizeof tile);
    __asm__ volatile("ldtilecfg %0; tileloadd (%1, %2, 1), %%tmm0" : : "m"(config), "r"(tile), "r"(64L) : "memory");
}

static void describe(char *text, size_t len) {
    unsigned ds, es, fs, gs, cs, ss, mxcsr, tiles[4];
    uint16_t control, status;
    uint64_t gs_base, flags;
    __asm__ volatile("mov %%ds, %0; mov %%es, %1; mov %%fs, %2; mov %%gs, %3; mov %%cs, %4; mov %%ss, %5"
                     : "=r"(ds), "=r"(es), "=r"(fs), "=r"(gs), "=r"(cs), "=r"(ss));
    __asm__ volatile("stmxcsr %0; fnstcw %1; fnstsw %2" : "=m"(mxcsr), "=m"(control), "=m"(status));
    __asm__ volatile("rdgsbase %0; pushfq; pop %1" : "=r"(gs_base), "=r"(flags));
    describe_tiles(tiles);
    // ID, AC, NT, DF, TF; the others are the last comparison's.
    snprintf(text, len, "ds %#x es %#x fs %#x gs %#x cs %#x ss %#x tiles %u %u %u %#x gs base %#lx mxcsr %#x x87 %#x %#x flags %#lx", ds, es, fs, gs,
             cs, ss, tiles[0], tiles[1], tiles[2], tiles[3], gs_base, mxcsr, control, status, flags & 0x244500);
}

static void fill(unsigned long number) {
    unsigned ds = selectors[number % SELECTORS], es = selectors[number / SELECTORS % SELECTORS];
    unsigned fs = selectors[number / 7 % SELECTORS], gs = selectors[number / 3 % SELECTORS];
    unsigned mxcsr = 0x1f80 | (unsigned)(number & 0x3f) | (unsigned)(number % 3 + 1) << 13;
    uint16_t control = (uint16_t)(0x7f | (number % 3 + 1) << 10);
    uint64_t base;
    fill_tiles(number);
    syscall(SYS_arch_prctl, ARCH_GET_FS, &base);
    __asm__ volatile("mov %0, %%ds; mov %1, %%es; mov %2, %%fs; wrfsbase %4; mov %3, %%gs; wrgsbase %5"
                     : : "r"(ds), "r"(es), "r"(fs), "r"(gs), "r"(base), "r"(0x5000 + number));
    __asm__ volatile("ldmxcsr %0; fldcw %1; fld1; pushfq; orq $0x200000, (%%rsp); popfq" : : "m"(mxcsr), "m"(control) : "cc");
}

static long futex(volatile uint32_t *word, int op, uint32_t value) { return syscall(SYS_futex, word, op, value, NULL, NULL, 0); }

static void *serve(void *unused) {
    for (;;) {
        while (asked == 0) futex(&asked, FUTEX_WAIT_PRIVATE, 0);
        asked = 0;
        describe(thread_text, sizeof thread_text);
        answered = 1;
        futex(&answered, FUTEX_WAKE_PRIVATE, 1);
    }
    return unused;
}

int main(void) {
    pthread_t thread;
    look_for_tiles();
    need(pthread_create(&thread, NULL, serve, NULL) == 0, "pthread_create");
    for (;;) {
        char *rest, own[512];
        next_request();
        describe(own, sizeof own);
        if (is_verb("fill", &rest)) {
            fill(strtoul(rest, NULL, 10));
            describe(own, sizeof own);
            say("%s", own);
        } else if (is_verb("show", &rest) && *rest) {
            asked = 1;
            futex(&asked, FUTEX_WAKE_PRIVATE, 1);
            while (answered == 0) futex(&answered, FUTEX_WAIT_PRIVATE, 0);
            answered = 0;
            say("%s", thread_text);
        } else if (is_verb("show", &rest)) {
            say("%s", own);
        } else if (is_verb("crash", &rest)) {
            __builtin_trap();
        }
        send_answer();
    }
}
