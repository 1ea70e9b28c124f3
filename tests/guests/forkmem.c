// Memory after fork: large pages that madvise, mlock and mprotect cut, file mappings that were written, grown and
// protected, text that a child shows without the pages of the kernel.
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "guest.h"

#define PAGE 4096UL
#define MIB (1UL << 20)

static int status_of(pid_t child) {
    int status = -1;
    return waitpid(child, &status, 0) == child ? status : -1;
}

static char *large(size_t len) {
    char *raw = mmap(0, len + 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(raw != MAP_FAILED, "mmap");
    char *block = (char *)(((uintptr_t)raw + 2 * MIB - 1) & ~(2 * MIB - 1));
    madvise(block, len, MADV_HUGEPAGE);
    memset(block, 'A', len);
    return block;
}

// Each waits for the other's byte.
static int to_child[2], to_parent[2];

static void tell(int *way) { need(write(way[1], "x", 1) == 1, "tell"); }

static void hear(int *way) {
    char byte;
    need(read(way[0], &byte, 1) == 1, "hear");
}

// A right that mprotect gives back is not one to write what the other process has.
static void protected(char *block) {
    for (int writer = 0; writer < 2; writer++) {
        pid_t child = fork();
        int first = child ? writer == 0 : writer == 1;
        int *mine = child ? to_child : to_parent, *other = child ? to_parent : to_child;
        if (!first) {
            block[0] = 'c'; // divides the block
            tell(mine);
            hear(other);
            CHECK(block[5 * PAGE] == 'A');
        } else {
            hear(other);
            mprotect(block, 2 * MIB, PROT_READ);
            mprotect(block, 2 * MIB, PROT_READ | PROT_WRITE);
            block[5 * PAGE] = 'P';
            tell(mine);
        }
        if (!child) _exit(0);
        SHOW(status_of(child));
        memset(block, 'A', 2 * MIB);
    }
}

// Half of a large page is wiped or left out.
static void advised(char *block) {
    char *half = block + MIB;
    SHOW(madvise(half, MIB, MADV_WIPEONFORK));
    pid_t child = fork();
    if (!child) {
        CHECK(half[PAGE] == 0 && half[MIB - 1] == 0 && half[-1] == 'A');
        _exit(0);
    }
    SHOW(status_of(child));
    SHOW(madvise(half, MIB, MADV_KEEPONFORK));
    SHOW(madvise(half, MIB, MADV_DONTFORK));
    child = fork();
    if (!child) {
        char *fresh = mmap(half, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        CHECK(fresh == half && fresh[PAGE] == 0);
        _exit(0);
    }
    SHOW(status_of(child));
    child = fork();
    if (!child) _exit(*(volatile char *)(half + PAGE));
    SHOW(status_of(child) & 0x7f);
    SHOW(half[PAGE]);
    SHOW(madvise(half, MIB, MADV_DOFORK));
}

// With little memory: what is lost once is missed in the end.
static void again(void) {
    for (int round = 0; round < 12; round++) {
        char *block = large(8 * MIB);
        for (int number = 0; number < 4; number++) mlock(block + 2 * MIB * number + 9 * PAGE, PAGE);
        pid_t child = fork();
        if (!child) {
            memset(block, 'c', 3 * MIB);
            _exit(block[4 * MIB] == 'A' ? 3 : 4);
        }
        int status = status_of(child);
        if (status != 0x300) printf("round %d: %#x\n", round, status);
        munmap(block, 8 * MIB);
    }
    printf("again\n");
}

static void files(const char *path) {
    int fd = open(path, O_RDONLY);
    need(fd >= 0, "open");
    // Written, grown: no leaf shows what was written.
    char *grown = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    grown[0] = grown[PAGE] = 'X';
    grown = mremap(grown, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE);
    pid_t child = fork();
    if (!child) {
        CHECK(grown[0] == 'X' && grown[PAGE] == 'X');
        grown[0] = 'x';
        _exit(0);
    }
    SHOW(status_of(child));
    CHECK(grown[0] == 'X' && grown[PAGE] == 'X');
    // Written, then made read-only, then writable again two processes further.
    char *kept = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    kept[0] = kept[PAGE] = 'Y';
    mprotect(kept, 2 * PAGE, PROT_READ);
    child = fork();
    if (!child) {
        pid_t grandchild = fork();
        mprotect(kept, 2 * PAGE, PROT_READ | PROT_WRITE);
        CHECK(kept[0] == 'Y' && kept[PAGE] == 'Y');
        kept[0] = grandchild ? 'c' : 'g';
        int right = !grandchild || status_of(grandchild) == 0;
        _exit(right && kept[0] == (grandchild ? 'c' : 'g') ? 0 : 1);
    }
    SHOW(status_of(child));
    CHECK(kept[0] == 'Y' && kept[PAGE] == 'Y');
    close(fd);
}

// Programs that cannot be started after the old one has gone leave nothing behind.
static void failing(const char *self) {
    enum { TIMES = 40, BYTES = 4 << 20 };
    int ended = 0;
    for (int number = 0; number < TIMES; number++) {
        char name[64];
        snprintf(name, sizeof name, "/tmp/forkmem-%d", number);
        int from = open(self, O_RDONLY), to = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0700);
        need(from >= 0 && to >= 0, "copy");
        static char bytes[1 << 16];
        for (ssize_t got; (got = read(from, bytes, sizeof bytes)) > 0;) need(write(to, bytes, (size_t)got) == got, "write");
        // It takes memory until it is given up.
        for (size_t done = 0; done < BYTES; done += sizeof bytes) need(write(to, bytes, sizeof bytes) == sizeof bytes, "write");
        close(from);
        close(to);
        pid_t child = fork();
        if (!child) {
            struct rlimit limit = {64 << 10, 64 << 10};
            setrlimit(RLIMIT_AS, &limit);
            execl(name, name, NULL);
            _exit(0);
        }
        int status = status_of(child);
        ended += WIFSIGNALED(status);
        unlink(name);
    }
    SHOW(ended == TIMES);
}

// A child without the kernel's pages makes its calls all the same, whatever its parent's have become.
static void bare_child(void) {
    pid_t child = fork();
    if (!child) {
        FILE *maps = fopen("/proc/self/maps", "r");
        char line[256];
        unsigned long start = 0, end = 0, from, to;
        while (maps && fgets(line, sizeof line, maps))
            if (strstr(line, "[kvmlet]") && sscanf(line, "%lx-%lx", &from, &to) == 2) start = from, end = to;
        if (maps) fclose(maps);
        if (end) munmap((void *)start, end - start);
        tell(to_parent);
        hear(to_child);
        for (int number = 0; number < 100; number++) umask(022);
        _exit(umask(022) == 022 ? 0 : 1);
    }
    hear(to_parent);
    for (int number = 0; number < 5000; number++) umask(022);
    tell(to_child);
    SHOW(status_of(child));
}

int main(int argc, char **argv) {
    need(argc > 1 && pipe(to_child) == 0 && pipe(to_parent) == 0, "start");
    char *block = large(2 * MIB);
    protected(block);
    advised(block);
    again();
    files(argv[1]);
    failing(argv[0]);
    bare_child();
    return 0;
}
