// What each protection allows, seen through the signals that refuse it.
#include "faults.h"
#include <fcntl.h>
#include <sys/mman.h>

#define PAGE 4096ul
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

int main(void) {
    catch_faults();
    section("nowhere");
    READ((char *)0);
    READ((char *)4095);
    WRITE((char *)0x12345678);
    READ((char *)((1ul << 47) - 1));

    section("PROT_NONE");
    char *p = mmap(NULL, 4 * PAGE, PROT_NONE, ANON, -1, 0);
    READ(p);
    WRITE(p);
    CALL(p);
    SHOW(mprotect(p, PAGE, PROT_READ));
    READ(p);
    WRITE(p);
    READ(p + PAGE);
    SHOW(mprotect(p, PAGE, RW));
    WRITE(p);
    CHECK(*p == 'w');
    SHOW(mprotect(p, PAGE, PROT_NONE));
    READ(p);
    SHOW(mprotect(p, PAGE, PROT_READ));
    CHECK(*p == 'w');
    WRITE(p);

    section("written, then taken away, then given back");
    char *q = mmap(NULL, 64 * PAGE, RW, ANON, -1, 0);
    for (int i = 0; i < 64; i++) q[i * PAGE] = (char)i;
    SHOW(mprotect(q + 10 * PAGE, 20 * PAGE, PROT_READ));
    WRITE(q + 9 * PAGE);
    WRITE(q + 10 * PAGE);
    WRITE(q + 29 * PAGE);
    WRITE(q + 30 * PAGE);
    SHOW(mprotect(q, 64 * PAGE, PROT_NONE));
    READ(q);
    READ(q + 63 * PAGE);
    SHOW(mprotect(q, 64 * PAGE, RW));
    int same = 1;
    for (int i = 0; i < 64; i++) same &= q[i * PAGE] == (i == 9 || i == 30 ? 'w' : (char)i);
    CHECK(same);
    // The same page refused and allowed many times: no stale translation.
    int wrong = 0;
    for (int i = 0; i < 200; i++) {
        mprotect(q, PAGE, PROT_READ);
        if (strcmp(try_write(q), "SEGV_ACCERR")) wrong++;
        mprotect(q, PAGE, RW);
        if (strcmp(try_write(q), "fine")) wrong++;
    }
    SHOW(wrong);
    for (int i = 0; i < 200; i++) {
        munmap(q + PAGE, PAGE);
        if (strcmp(try_read(q + PAGE), "SEGV_MAPERR")) wrong++;
        mmap(q + PAGE, PAGE, RW, ANON | MAP_FIXED, -1, 0);
        if (q[PAGE] != 0) wrong++;
        q[PAGE] = 1;
    }
    SHOW(wrong);

    section("execution");
    char *x = mmap(NULL, PAGE, RW, ANON, -1, 0);
    x[0] = (char)0xc3;
    CALL(x);
    SHOW(mprotect(x, PAGE, PROT_READ | PROT_EXEC));
    CALL(x);
    WRITE(x);
    SHOW(mprotect(x, PAGE, PROT_READ));
    CALL(x);
    READ(x);
    // Code rewritten between two calls is what runs.
    SHOW(mprotect(x, PAGE, RW | PROT_EXEC));
    int (*f)(void) = (int (*)(void))(void *)x;
    static const unsigned char code[] = {0xb8, 1, 0, 0, 0, 0xc3};
    memcpy(x, code, sizeof code);
    SHOW(f());
    x[1] = 42;
    SHOW(f());
    CHECK(mprotect(x, PAGE, PROT_READ | PROT_EXEC) == 0 && f() == 42);

    section("the data of a file");
    int self = open("/proc/self/exe", O_RDONLY);
    char *d = mmap(NULL, 4 * PAGE, RW, MAP_PRIVATE, self, 0);
    wrong = 0;
    for (int i = 0; i < 200; i++) {
        // One page, or two that do not touch, or all of them.
        d[0] = d[2 * PAGE] = (char)i;
        mprotect(d, i % 3 == 2 ? 4 * PAGE : PAGE, PROT_READ);
        if (i % 3 == 1)
            mprotect(d + 2 * PAGE, PAGE, PROT_READ);
        if (strcmp(try_write(d), "SEGV_ACCERR")) wrong++;
        if (strcmp(try_write(d + 2 * PAGE), i % 3 ? "SEGV_ACCERR" : "fine")) wrong++;
        if (d[0] != (char)i) wrong++;
        mprotect(d, 4 * PAGE, i % 5 ? RW : PROT_NONE);
        if (strcmp(try_write(d + PAGE), i % 5 ? "fine" : "SEGV_ACCERR")) wrong++;
        mprotect(d, 4 * PAGE, RW);
        if (strcmp(try_write(d), "fine") || d[2 * PAGE] != (i % 3 ? (char)i : 'w')) wrong++;
    }
    SHOW(wrong);
    close(self);

    section("bad arguments");
    FAILS(mprotect(p + 1, PAGE, PROT_READ), EINVAL);
    FAILS(mprotect(p, PAGE, 0x1000), EINVAL);
    SHOW(mprotect(p, 0, PROT_READ));
    munmap(p + 2 * PAGE, PAGE);
    FAILS(mprotect(p, 4 * PAGE, RW), ENOMEM);
    // The part before the hole has changed all the same.
    WRITE(p + PAGE);

    section("calls refuse what the program may not touch");
    mprotect(q, PAGE, PROT_READ);
    mprotect(q + 2 * PAGE, PAGE, PROT_NONE);
    int fds[2];
    need(pipe(fds) == 0, "pipe");
    SHOW(write(fds[1], q, 8));
    FAILS(read(fds[0], q, 8), EFAULT);
    FAILS(write(fds[1], q + 2 * PAGE, 8), EFAULT);
    FAILS(write(fds[1], (char *)0x1000, 8), EFAULT);

    section("a text segment stays read-only");
    WRITE((char *)(uintptr_t)&main);
    WRITE((char *)(uintptr_t)"literal");
    printf("done\n");
    return 0;
}
