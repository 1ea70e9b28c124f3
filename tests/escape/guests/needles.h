// A secret derived from a seed, and the search for it. The seed that a search is told is masked, and so are its needles:
// it does not find itself. Included after service.h.
#ifndef NEEDLES_H
#define NEEDLES_H

#include <sys/mman.h>

#define MASK 0x5a5a5a5a5a5a5a5aull

struct secret {
    uint64_t words[2];
    char text[17]; // the first word in hexadecimal
};

static struct secret secret;

static uint64_t mix(uint64_t z) {
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static void make_secret(uint64_t seed) {
    secret.words[0] = mix(seed);
    secret.words[1] = mix(seed + 1);
    snprintf(secret.text, sizeof secret.text, "%016lx", secret.words[0]);
}

static void fill(void *at, size_t len) {
    for (size_t i = 0; i + 16 <= len; i += 16) memcpy((char *)at + i, secret.words, 16);
}

static __attribute__((noinline)) void fill_stack(int depth) {
    char deep[16384];
    fill(deep, sizeof deep);
    __asm__ volatile("" : : "r"(deep) : "memory");
    if (depth > 0) fill_stack(depth - 1);
    __asm__ volatile("" : : "r"(deep) : "memory");
}

// A page of code that nothing executes.
extern char spare_code[];
__asm__(".text; .balign 4096; spare_code: .fill 4096, 1, 0xcc");

enum { NEEDLES = 4 };
static uint64_t needles[NEEDLES]; // masked
static unsigned char filter[1 << 13];

static uint64_t text_needle(uint64_t word) {
    uint64_t text = 0;
    for (int digit = 7; digit >= 0; digit--) {
        uint64_t value = (word >> (60 - 4 * digit)) & 15;
        text = text << 8 | (value < 10 ? '0' + value : 'a' + value - 10);
    }
    return text;
}

static __attribute__((noinline)) void make_needles(uint64_t masked) {
    needles[0] = mix(masked ^ MASK) ^ MASK;
    needles[1] = mix((masked ^ MASK) + 1) ^ MASK;
    needles[2] = text_needle(mix(masked ^ MASK)) ^ MASK;
    needles[3] = text_needle(masked ^ MASK) ^ MASK;
    memset(filter, 0, sizeof filter);
    for (int i = 0; i < NEEDLES; i++) {
        uint16_t low = (uint16_t)(needles[i] ^ MASK);
        filter[low >> 3] |= (unsigned char)(1 << (low & 7));
    }
}

static int found;

static __attribute__((noinline)) void search(const char *what, const unsigned char *from, size_t len) {
    for (size_t i = 0; i + 8 <= len; i++) {
        // Most memory is zeros, which no needle is.
        for (uint64_t pair[2]; i % 8 == 0 && i + 16 <= len; i += 8) {
            memcpy(pair, from + i, 16);
            if (pair[0] | pair[1]) break;
        }
        uint16_t low;
        memcpy(&low, from + i, 2);
        if (!(filter[low >> 3] & (1 << (low & 7)))) continue;
        uint64_t word;
        memcpy(&word, from + i, 8);
        for (int n = 0; n < NEEDLES; n++)
            if ((word ^ MASK) == needles[n] && found++ < 20) say("needle %d in %s at %p + %zu\n", n, what, (void *)from, i);
    }
}

// All that is mapped; the vDSO's pages too.
static void search_memory(void) {
    static char maps[1 << 16];
    int fd = open("/proc/self/maps", O_RDONLY);
    size_t len = 0;
    ssize_t got;
    while (len < sizeof maps - 1 && (got = read(fd, maps + len, sizeof maps - 1 - len)) > 0) len += (size_t)got;
    close(fd);
    maps[len] = 0;
    for (char *line = maps, *end; (end = strchr(line, '\n')); line = end + 1) {
        unsigned long from, to;
        char mode[8];
        *end = 0;
        if (sscanf(line, "%lx-%lx %7s", &from, &to, mode) != 3 || from > 1ul << 47) continue;
        if (mode[0] == 'r' && !strstr(line, "[vvar")) search("memory", (void *)from, to - from);
        // Not what malloc has reserved and never used.
        else if (mode[0] != 'r' && to - from <= 1 << 20 && mprotect((void *)from, to - from, PROT_READ) == 0) search("hidden memory", (void *)from, to - from);
    }
}

static void is_zero(const char *what, const char *from, size_t len) {
    for (size_t i = 0; i < len; i++)
        if (from[i] != 0 && found++ < 20) say("%s: byte %zu is %d\n", what, i, from[i]);
}

#endif
