// mremap(2): grow, shrink, move, fixed.
#include "faults.h"
#include <sys/mman.h>

#define PAGE 4096ul
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static void number(char *p, size_t pages) {
    for (size_t i = 0; i < pages; i++) *(size_t *)(p + i * PAGE) = i + 1;
}

static int numbered(const char *p, size_t from, size_t pages) {
    for (size_t i = 0; i < pages; i++)
        if (*(const size_t *)(p + i * PAGE) != from + i + 1) return 0;
    return 1;
}

int main(void) {
    catch_faults();
    section("shrink");
    char *p = mmap(NULL, 16 * PAGE, RW, ANON, -1, 0);
    number(p, 16);
    CHECK(mremap(p, 16 * PAGE, 8 * PAGE, 0) == p);
    CHECK(numbered(p, 0, 8));
    READ(p + 8 * PAGE);

    section("grow in place");
    CHECK(mremap(p, 8 * PAGE, 12 * PAGE, 0) == p);
    CHECK(numbered(p, 0, 8));
    CHECK(*(size_t *)(p + 8 * PAGE) == 0);

    section("grow where there is no room");
    char *block = mmap(p + 12 * PAGE, PAGE, RW, ANON | MAP_FIXED, -1, 0);
    CHECK(block == p + 12 * PAGE);
    CHECK(mremap(p, 12 * PAGE, 20 * PAGE, 0) == MAP_FAILED && errno == ENOMEM);
    CHECK(numbered(p, 0, 8));
    char *q = mremap(p, 12 * PAGE, 20 * PAGE, MREMAP_MAYMOVE);
    CHECK(q != MAP_FAILED && q != p);
    CHECK(numbered(q, 0, 8));
    CHECK(*(size_t *)(q + 19 * PAGE) == 0);
    READ(p);
    WRITE(q + 19 * PAGE);

    section("to a fixed place");
    char *room = mmap(NULL, 32 * PAGE, RW, ANON, -1, 0);
    memset(room, 'r', 32 * PAGE);
    CHECK(mremap(q, 20 * PAGE, 20 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room + 4 * PAGE) == room + 4 * PAGE);
    CHECK(numbered(room + 4 * PAGE, 0, 8));
    CHECK(room[0] == 'r' && room[25 * PAGE] == 'r');
    READ(q);
    CHECK(mremap(room, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room + PAGE) == MAP_FAILED &&
          errno == EINVAL);
    CHECK(mremap(room, 4 * PAGE, 4 * PAGE, MREMAP_FIXED, room + 8 * PAGE) == MAP_FAILED && errno == EINVAL);

    section("a part out of the middle");
    p = mmap(NULL, 10 * PAGE, RW, ANON, -1, 0);
    number(p, 10);
    q = mremap(p + 3 * PAGE, 4 * PAGE, 6 * PAGE, MREMAP_MAYMOVE);
    CHECK(q != MAP_FAILED && numbered(q, 3, 4));
    CHECK(numbered(p, 0, 3) && numbered(p + 7 * PAGE, 7, 3));
    READ(p + 3 * PAGE);

    section("MREMAP_DONTUNMAP");
    char *r = mremap(q, 6 * PAGE, 6 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    CHECK(r != MAP_FAILED && r != q && numbered(r, 3, 4));
    CHECK(*(size_t *)q == 0);

    section("protection travels");
    p = mmap(NULL, 2 * PAGE, RW, ANON, -1, 0);
    number(p, 2);
    mprotect(p, 2 * PAGE, PROT_READ);
    mmap(p + 2 * PAGE, PAGE, PROT_NONE, ANON | MAP_FIXED_NOREPLACE, -1, 0);
    q = mremap(p, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE);
    CHECK(q != MAP_FAILED && numbered(q, 0, 2));
    WRITE(q);
    WRITE(q + 3 * PAGE);

    section("bad arguments");
    CHECK(mremap(q + 1, PAGE, PAGE, 0) == MAP_FAILED && errno == EINVAL);
    CHECK(mremap(q, PAGE, 0, 0) == MAP_FAILED && errno == EINVAL);
    CHECK(mremap(q, PAGE, PAGE, 64) == MAP_FAILED && errno == EINVAL);
    munmap(q, 4 * PAGE);
    CHECK(mremap(q, PAGE, 2 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT);

    section("64 MiB moved many times keeps its contents");
    size_t len = 64ul << 20;
    p = mmap(NULL, len, RW, ANON, -1, 0);
    number(p, len / PAGE);
    for (int i = 0; i < 10; i++) {
        char *wall = mmap(p + len, PAGE, PROT_NONE, ANON | MAP_FIXED_NOREPLACE, -1, 0);
        char *moved = mremap(p, len, len + PAGE, MREMAP_MAYMOVE);
        if (moved == MAP_FAILED) {
            printf("FAIL mremap %d\n", i);
            break;
        }
        if (wall != MAP_FAILED) munmap(wall, PAGE);
        p = moved;
        len += PAGE;
    }
    CHECK(numbered(p, 0, (64ul << 20) / PAGE));
    printf("done\n");
    return 0;
}
