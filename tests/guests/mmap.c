// Anonymous mappings: placement, zeroes, holes, brk, madvise.
#include "faults.h"
#include <sys/mman.h>
#include <sys/syscall.h>

#define PAGE 4096ul
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static int all(const char *p, size_t n, char value) {
    for (size_t i = 0; i < n; i++)
        if (p[i] != value) return 0;
    return 1;
}

int main(void) {
    catch_faults();
    section("anonymous memory is zero and aligned");
    char *p = mmap(NULL, 10 * PAGE, RW, ANON, -1, 0);
    need(p != MAP_FAILED, "mmap");
    CHECK(((uintptr_t)p & (PAGE - 1)) == 0);
    CHECK(all(p, 10 * PAGE, 0));
    memset(p, 7, 10 * PAGE);
    CHECK(all(p, 10 * PAGE, 7));

    section("a hole in the middle");
    SHOW(munmap(p + 3 * PAGE, 2 * PAGE));
    READ(p + 3 * PAGE - 1);
    READ(p + 3 * PAGE);
    WRITE(p + 4 * PAGE);
    READ(p + 5 * PAGE);
    CHECK(all(p, 3 * PAGE, 7) && all(p + 5 * PAGE, 5 * PAGE, 7));
    SHOW(munmap(p + 3 * PAGE, 2 * PAGE));
    FAILS(munmap(p + 1, PAGE), EINVAL);
    FAILS(munmap(p, 0), EINVAL);

    section("fixed placement");
    char *q = mmap(p + 3 * PAGE, 2 * PAGE, RW, ANON | MAP_FIXED, -1, 0);
    CHECK(q == p + 3 * PAGE);
    CHECK(all(q, 2 * PAGE, 0));
    q = mmap(p + 2 * PAGE, 2 * PAGE, RW, ANON | MAP_FIXED, -1, 0);
    CHECK(q == p + 2 * PAGE && all(q, 2 * PAGE, 0) && all(p, 2 * PAGE, 7));
    CHECK(mmap(p, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED && errno == EEXIST);
    CHECK(all(p, 2 * PAGE, 7));
    SHOW(munmap(p, PAGE));
    CHECK(mmap(p, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) == (void *)p);
    CHECK(mmap(p + 1, PAGE, RW, ANON | MAP_FIXED, -1, 0) == MAP_FAILED && errno == EINVAL);
    SHOW(munmap(p, 10 * PAGE));
    // A free address given as a hint is taken.
    q = mmap(p, PAGE, RW, ANON, -1, 0);
    CHECK(q == p);
    char *r = mmap(p, PAGE, RW, ANON, -1, 0);
    CHECK(r != MAP_FAILED && r != p);
    SHOW(munmap(q, PAGE));
    SHOW(munmap(r, PAGE));

    section("bad arguments");
    CHECK(mmap(NULL, 0, RW, ANON, -1, 0) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(NULL, PAGE, RW, MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(NULL, PAGE, RW, MAP_PRIVATE, 99, 0) == MAP_FAILED && errno == EBADF);
    CHECK(mmap(NULL, 1ul << 60, RW, ANON, -1, 0) == MAP_FAILED && errno == ENOMEM);
    CHECK(mmap(NULL, ~0ul, RW, ANON, -1, 0) == MAP_FAILED && errno == ENOMEM);
    CHECK(mmap((void *)(1ul << 47), PAGE, RW, ANON | MAP_FIXED, -1, 0) == MAP_FAILED && errno == ENOMEM);
    CHECK(mmap((void *)-PAGE, PAGE, RW, ANON | MAP_FIXED, -1, 0) == MAP_FAILED);

    section("a large reservation touched here and there");
    size_t big = 8ul << 30;
    char *huge = mmap(NULL, big, RW, ANON | MAP_NORESERVE, -1, 0);
    need(huge != MAP_FAILED, "mmap 8 GiB");
    for (size_t i = 0; i < big; i += 257ul << 20) huge[i] = 'h';
    int good = 1;
    for (size_t i = 0; i < big; i += 257ul << 20) good &= huge[i] == 'h' && huge[i + PAGE] == 0;
    CHECK(good);
    SHOW(munmap(huge, big));
    READ(huge);

    section("madvise");
    p = mmap(NULL, 4 * PAGE, RW, ANON, -1, 0);
    memset(p, 9, 4 * PAGE);
    SHOW(madvise(p + PAGE, 2 * PAGE, MADV_DONTNEED));
    CHECK(all(p, PAGE, 9) && all(p + PAGE, 2 * PAGE, 0) && all(p + 3 * PAGE, PAGE, 9));
    p[PAGE] = 5;
    CHECK(p[PAGE] == 5);
    SHOW(madvise(p, 4 * PAGE, MADV_WILLNEED));
    SHOW(madvise(p, 4 * PAGE, MADV_NORMAL));
    SHOW(madvise(p, 4 * PAGE, MADV_SEQUENTIAL));
    FAILS(madvise(p + 1, PAGE, MADV_DONTNEED), EINVAL);
    FAILS(madvise(p, PAGE, 9999), EINVAL);
    SHOW(madvise(p, 0, MADV_DONTNEED));
    SHOW(munmap(p + 2 * PAGE, PAGE));
    FAILS(madvise(p, 4 * PAGE, MADV_DONTNEED), ENOMEM);
    CHECK(all(p, 2 * PAGE, 0) && all(p + 3 * PAGE, PAGE, 0));
    SHOW(munmap(p, 4 * PAGE));

    section("32 MiB filled, dropped in stripes, filled again");
    size_t len = 32ul << 20;
    p = mmap(NULL, len, RW, ANON, -1, 0);
    memset(p, 1, len);
    for (size_t i = 0; i < len; i += 64 * PAGE)
        if (madvise(p + i, 16 * PAGE, MADV_DONTNEED)) printf("FAIL madvise\n");
    unsigned long sum = 0;
    for (size_t i = 0; i < len; i += 64) sum += (unsigned char)p[i];
    printf("sum %lu\n", sum);
    memset(p, 2, len);
    sum = 0;
    for (size_t i = 0; i < len; i += 64) sum += (unsigned char)p[i];
    printf("sum %lu\n", sum);
    SHOW(munmap(p, len));

    section("brk");
    char *top = (char *)syscall(SYS_brk, 0);
    CHECK(top != NULL);
    char *end = (char *)(((uintptr_t)top + PAGE - 1) & ~(PAGE - 1));
    CHECK((char *)syscall(SYS_brk, end + 4 * PAGE) == end + 4 * PAGE);
    CHECK(all(end, 4 * PAGE, 0));
    memset(end, 3, 4 * PAGE);
    CHECK((char *)syscall(SYS_brk, end + PAGE) == end + PAGE);
    READ(end + PAGE);
    CHECK(all(end, PAGE, 3));
    CHECK((char *)syscall(SYS_brk, end + 4 * PAGE) == end + 4 * PAGE);
    CHECK(all(end + PAGE, 3 * PAGE, 0));
    CHECK((char *)syscall(SYS_brk, 1) == end + 4 * PAGE);
    CHECK((char *)syscall(SYS_brk, 1ul << 62) == end + 4 * PAGE);
    CHECK((char *)syscall(SYS_brk, end) == end);
    READ(end);

    section("many small mappings");
    static char *pages[2000];
    for (int i = 0; i < 2000; i++) {
        pages[i] = mmap(NULL, PAGE, i % 2 ? RW : PROT_READ, ANON, -1, 0);
        if (pages[i] == MAP_FAILED) {
            printf("FAIL mapping %d\n", i);
            break;
        }
        if (i % 2) *(int *)pages[i] = i;
    }
    int right = 1;
    for (int i = 0; i < 2000; i++) right &= *(int *)pages[i] == (i % 2 ? i : 0);
    CHECK(right);
    for (int i = 0; i < 2000; i += 3) munmap(pages[i], PAGE);
    right = 1;
    for (int i = 0; i < 2000; i++)
        if (i % 3) right &= *(int *)pages[i] == (i % 2 ? i : 0);
    CHECK(right);
    READ(pages[0]);

    section("the stack grows");
    volatile char *here = __builtin_frame_address(0);
    int grown = 1;
    volatile char *low = __builtin_alloca(2 << 20);
    for (size_t i = 0; i < 2 << 20; i += PAGE) low[i] = 1;
    for (size_t i = 0; i < 2 << 20; i += PAGE) grown &= low[i] == 1;
    CHECK(grown && low < here);
    printf("done\n");
    return 0;
}
