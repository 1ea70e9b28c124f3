// Takes as much as it can get of one thing: hog WHAT
//
// Says how far it came on standard error; ends by itself unless a limit ends it first.
#include "hostile.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define RW (PROT_READ | PROT_WRITE)

static void reached(const char *what, unsigned long count, long result) {
    fprintf(stderr, "%s: %lu, then %s\n", what, count, result < 0 ? strerrorname_np((int)-result) : "stopped");
}

static long raw_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off) {
    return raw6(SYS_mmap, addr, len, (uint64_t)prot, (uint64_t)flags, (uint64_t)fd, off);
}

// All of the address space, nothing touched.
static void everything(void) {
    unsigned long total_gib = 0;
    long r = 0;
    for (uint64_t size = 1ul << 46; size >= PAGE; size >>= 1) {
        unsigned tries = 0;
        while (tries++ < 300 && (r = raw_mmap(0, size, RW, ANON | MAP_NORESERVE, -1, 0)) >= 0) total_gib += size >> 30;
    }
    reached("GiB mapped", total_gib, r);
}

// One page in every `step` bytes: page tables without end.
static void sparse(uint64_t step, int prot) {
    uint64_t base = 0x100000000000ul, len = 0x3fff00000000ul;
    long r = raw_mmap(base, len, prot, ANON | MAP_NORESERVE | MAP_FIXED, -1, 0);
    unsigned long touched = 0;
    if (r < 0) {
        // In smaller parts.
        for (uint64_t at = base; at < base + len && touched < 2000000; at += step, touched++) {
            r = raw_mmap(at, PAGE, prot, ANON | MAP_NORESERVE | MAP_FIXED, -1, 0);
            if (r < 0) break;
            if (prot & PROT_WRITE) *(volatile char *)at = 1;
            else (void)*(volatile char *)at;
        }
        reached("pages touched in parts", touched, r);
        return;
    }
    for (uint64_t at = base; at < base + len && touched < 2000000; at += step, touched++) {
        if (prot & PROT_WRITE) *(volatile char *)at = 1;
        else (void)*(volatile char *)at;
    }
    reached("pages touched", touched, 0);
}

// Areas that cannot be merged.
static void areas(void) {
    unsigned long n = 200000;
    long base = raw_mmap(0, n * PAGE, PROT_READ, ANON | MAP_NORESERVE, -1, 0);
    need(base > 0, "mmap");
    long r = 0;
    unsigned long i = 0;
    for (; i < n; i += 2) {
        r = raw6(SYS_mprotect, (uint64_t)base + i * PAGE, PAGE, RW, 0, 0, 0);
        if (r < 0) break;
    }
    reached("areas", i, r);
    // Everything at once, over all of them.
    r = raw6(SYS_mprotect, (uint64_t)base, n * PAGE, PROT_NONE, 0, 0, 0);
    fprintf(stderr, "mprotect over all: %ld\n", r);
    r = raw6(SYS_munmap, (uint64_t)base, n * PAGE, 0, 0, 0, 0);
    fprintf(stderr, "munmap over all: %ld\n", r);
    unsigned long maps = 0;
    for (; maps < 200000; maps++) {
        r = raw_mmap(0, PAGE, maps & 1 ? PROT_READ : RW, ANON, -1, 0);
        if (r < 0) break;
    }
    reached("mappings", maps, r);
}

static uint32_t never;
static int sleep_for_ever(void *unused) {
    (void)unused;
    for (;;) raw6(SYS_futex, (uint64_t)(uintptr_t)&never, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0);
    return 0;
}
static int spin_for_ever(void *unused) {
    (void)unused;
    for (;;) __asm__ volatile("pause");
    return 0;
}

static void threads(int (*body)(void *), unsigned long most) {
    unsigned long n = 0;
    int r = 0;
    const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    for (; n < most; n++) {
        long stack = raw_mmap(0, 2 * PAGE, RW, ANON | MAP_NORESERVE, -1, 0);
        if (stack < 0) {
            r = (int)stack;
            break;
        }
        r = clone(body, (void *)(stack + 2 * (long)PAGE), flags, NULL);
        if (r < 0) {
            r = -errno;
            break;
        }
        r = 0;
    }
    reached("threads", n, r);
}

// Threads that begin with what no thread should.
static void bad_threads(const char *which) {
    static const uint64_t bad[] = {0, 8, 0x12345678, EXC_STACK + PAGE, SYSCALL_CODE, 0x800000000000ul, 0xffff800000000000ul, ~0ul};
    unsigned i = (unsigned)atoi(which + 1);
    uint64_t value = bad[i % 8];
    const uint64_t flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    unsigned char *stack = map(4 * PAGE, RW);
    uint64_t top = (uint64_t)(uintptr_t)stack + 4 * PAGE;
    uint64_t more = 0, sp = top, ptid = 0, ctid = 0, tls = 0;
    switch (which[0]) {
        case 's': sp = value; break;
        case 'p': more = CLONE_PARENT_SETTID; ptid = value; break;
        case 'c': more = CLONE_CHILD_SETTID; ctid = value; break;
        case 'x': more = CLONE_CHILD_CLEARTID; ctid = value; break;
        case 't': more = CLONE_SETTLS; tls = value; break;
        default: more = value; break;
    }
    // The child leaves at once: mov $60,%eax; syscall, without a stack.
    register uint64_t r10 __asm__("r10") = ctid;
    register uint64_t r8 __asm__("r8") = tls;
    long r;
    __asm__ volatile("syscall\n test %%rax,%%rax\n jnz 1f\n xor %%edi,%%edi\n mov $60,%%eax\n syscall\n ud2\n 1:"
                     : "=a"(r)
                     : "a"(SYS_clone), "D"(flags | more), "S"(sp), "d"(ptid), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    for (int k = 0; k < 20; k++) sched_yield();
    printf("clone %s: %s\n", which, r < 0 ? strerrorname_np((int)-r) : "made");
}

static void descriptors(const char *path, int flags) {
    unsigned long n = 0;
    long r = 0;
    struct rlimit limit = {1 << 20, 1 << 20};
    setrlimit(RLIMIT_NOFILE, &limit);
    for (; n < 300000; n++) {
        r = raw6(SYS_open, (uint64_t)(uintptr_t)path, (uint64_t)flags, 0600, 0, 0, 0);
        if (r < 0) break;
    }
    reached("descriptors", n, r);
    for (n = 0; n < 300000; n++) {
        r = raw6(SYS_dup, 0, 0, 0, 0, 0, 0);
        if (r < 0) break;
    }
    reached("duplicates", n, r);
    r = raw6(SYS_dup2, 0, 0x7fffffff, 0, 0, 0, 0);
    fprintf(stderr, "dup2 to the highest: %ld\n", r);
    r = raw6(SYS_fcntl, 0, F_DUPFD, 0x7ffffffe, 0, 0, 0);
    fprintf(stderr, "F_DUPFD from the highest: %ld\n", r);
}

static void pipes(void) {
    unsigned long n = 0, bytes = 0;
    long r = 0;
    static char block[65536];
    for (; n < 100000; n++) {
        int fds[2];
        r = pipe2(fds, O_NONBLOCK);
        if (r < 0) {
            r = -errno;
            break;
        }
        fcntl(fds[1], F_SETPIPE_SZ, 1 << 20);
        long w;
        while ((w = write(fds[1], block, sizeof block)) > 0) bytes += (unsigned long)w;
        close(fds[0]);  // the reader goes: its bytes may be dropped
        int again[2];
        if (pipe2(again, O_NONBLOCK) == 0)
            while ((w = write(again[1], block, sizeof block)) > 0) bytes += (unsigned long)w;
    }
    reached("pipes", n, r);
    fprintf(stderr, "%lu bytes in pipes\n", bytes);
}

static void fill_tmp(void) {
    static char block[1 << 20];
    memset(block, 'x', sizeof block);
    unsigned long mib = 0;
    int fd = open("/tmp/hog", O_RDWR | O_CREAT, 0600);
    need(fd >= 0, "creating a file");
    long r = 0;
    for (; mib < 100000; mib++) {
        r = write(fd, block, sizeof block);
        if (r < 0) break;
    }
    reached("MiB in a file", mib, -errno);
}

// A file of holes, and what writes at its end, in its middle and beyond the largest do.
static void sparse_file(void) {
    int fd = open("/tmp/hog", O_RDWR | O_CREAT, 0600);
    need(fd >= 0, "creating a file");
    static const uint64_t sizes[] = {1ul << 30, 1ul << 40, 1ul << 50, 1ul << 62, 0x7ffffffffffff000ul, 0x7ffffffffffffffful, 1ul << 63, ~0ul};
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        long r = raw6(SYS_ftruncate, (uint64_t)fd, sizes[i], 0, 0, 0, 0);
        long w = raw6(SYS_pwrite64, (uint64_t)fd, (uint64_t)(uintptr_t)"end", 3, sizes[i] - 3, 0, 0);
        long beyond = raw6(SYS_pwrite64, (uint64_t)fd, (uint64_t)(uintptr_t)"end", 3, sizes[i], 0, 0);
        long reserve = raw6(SYS_fallocate, (uint64_t)fd, 0, 0, sizes[i], 0, 0);
        fprintf(stderr, "size %#lx: %ld %ld %ld %ld\n", sizes[i], r, w, beyond, reserve);
        char c;
        raw6(SYS_pread64, (uint64_t)fd, (uint64_t)(uintptr_t)&c, 1, sizes[i] / 2, 0, 0);
        long m = raw_mmap(0, PAGE, RW, MAP_SHARED, fd, sizes[i] / 2 & ~(PAGE - 1));
        if (m > 0) {
            struct stat st;
            fstat(fd, &st);
            if ((uint64_t)st.st_size > (sizes[i] / 2 & ~(PAGE - 1))) *(volatile char *)m = 'm';
            munmap((void *)m, PAGE);
        }
    }
    for (uint64_t at = 0; at < 1ul << 40; at += 1ul << 21)
        if (pwrite(fd, "x", 1, (off_t)at) != 1) {
            reached("islands", at >> 21, -errno);
            return;
        }
    reached("islands", 1 << 19, 0);
}

// Names without contents.
static void names(const char *what) {
    unsigned long n = 0;
    int r = 0;
    static char target[4000];
    memset(target, 't', sizeof target - 1);
    mkdir("/tmp/names", 0700);
    chdir("/tmp/names");
    for (; n < 3000000 && r == 0; n++) {
        char name[260];
        int at = snprintf(name, sizeof name, "%lu", n);
        memset(name + at, 'n', 240);
        name[240] = 0;
        switch (what[0]) {
            case 'f': { int fd = open(name, O_CREAT | O_RDWR, 0600); r = fd < 0 ? -1 : close(fd); break; }
            case 'd': r = mkdir(name, 0700); break;
            case 's': r = symlink(target, name); break;
            case 'h': r = n == 0 ? close(creat("0", 0600)) : link("0", name); break;
            case 'm': { int fd = (int)syscall(SYS_memfd_create, name, 0); r = fd < 0 ? -1 : 0; break; }
        }
    }
    reached("names", n, -errno);
}

// Vectors that name few pages many times.
static void vectors(void) {
    static struct iovec iov[1025];
    unsigned char *page = map(PAGE, RW);
    int zero = open("/dev/zero", O_RDONLY), null = open("/dev/null", O_WRONLY);
    int file = open("/tmp/hog", O_RDWR | O_CREAT, 0600);
    long r;
    for (int i = 0; i < 1025; i++) iov[i] = (struct iovec){page, PAGE};
#define V(what, call) r = (call); printf("%s: %ld\n", what, r)
    V("1024 times a page from zero", raw6(SYS_readv, (uint64_t)zero, (uint64_t)(uintptr_t)iov, 1024, 0, 0, 0));
    V("1025 parts", raw6(SYS_readv, (uint64_t)zero, (uint64_t)(uintptr_t)iov, 1025, 0, 0, 0));
    V("many", raw6(SYS_readv, (uint64_t)zero, (uint64_t)(uintptr_t)iov, 0x7fffffff, 0, 0, 0));
    V("minus one", raw6(SYS_readv, (uint64_t)zero, (uint64_t)(uintptr_t)iov, ~0ul, 0, 0, 0));
    V("1024 times a page to a file", raw6(SYS_writev, (uint64_t)file, (uint64_t)(uintptr_t)iov, 1024, 0, 0, 0));
    for (int i = 0; i < 1024; i++) iov[i] = (struct iovec){page, 1ul << 30};
    V("1024 times a GiB, one page mapped", raw6(SYS_readv, (uint64_t)zero, (uint64_t)(uintptr_t)iov, 1024, 0, 0, 0));
    V("1024 times a GiB to nothing", raw6(SYS_writev, (uint64_t)null, (uint64_t)(uintptr_t)iov, 1024, 0, 0, 0));
    for (int i = 0; i < 1024; i++) iov[i] = (struct iovec){page, 0x7ffffffffffffffful};
    V("more than any sum", raw6(SYS_readv, (uint64_t)zero, (uint64_t)(uintptr_t)iov, 1024, 0, 0, 0));
    for (int i = 0; i < 1024; i++) iov[i] = (struct iovec){page, ~0ul};
    V("negative lengths", raw6(SYS_readv, (uint64_t)zero, (uint64_t)(uintptr_t)iov, 1024, 0, 0, 0));
    for (int i = 0; i < 1024; i++) iov[i] = (struct iovec){NULL, 0};
    V("empty parts", raw6(SYS_readv, (uint64_t)zero, (uint64_t)(uintptr_t)iov, 1024, 0, 0, 0));
    V("empty parts of nowhere", raw6(SYS_writev, (uint64_t)file, (uint64_t)(uintptr_t)iov, 1024, 0, 0, 0));
    // A mapping much larger than memory, read into as one.
    long big = raw_mmap(0, 1ul << 36, RW, ANON | MAP_NORESERVE, -1, 0);
    if (big > 0) {
        V("a big read of the file", raw6(SYS_pread64, (uint64_t)file, (uint64_t)big, 1ul << 36, 0, 0, 0));
        V("a big write to nothing", raw6(SYS_write, (uint64_t)null, (uint64_t)big, 1ul << 36, 0, 0, 0));
    }
}

static void signal_queue(void) {
    sigset_t set;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    unsigned long n = 0;
    int r = 0;
    for (; n < 2000000; n++) {
        union sigval v = {.sival_int = (int)n};
        r = sigqueue(getpid(), SIGRTMIN + (int)(n % 20), v);
        if (r < 0) break;
    }
    reached("signals", n, r < 0 ? -errno : 0);
}

static void futexes(void) {
    // Words that nobody waits on, in more places than any table should remember.
    unsigned long n = 0;
    long base = raw_mmap(0, 1ul << 32, RW, ANON | MAP_NORESERVE, -1, 0);
    for (; n < 60000; n++) {
        raw6(SYS_futex, (uint64_t)base + n * 4096, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
        raw6(SYS_futex, (uint64_t)base + n * 4, FUTEX_CMP_REQUEUE_PRIVATE, 1, 1000, (uint64_t)base + n * 8, 0);
    }
    reached("futexes", n, 0);
}

static void robust_lists(void) {
    // A list that never ends, for the exit to walk.
    static struct { void *next; long offset; void *pending; } head, entries[3];
    entries[0].next = &entries[1];
    entries[1].next = &entries[0];
    head.next = &entries[0];
    head.offset = 0x7fffffffffffffff;
    raw6(SYS_set_robust_list, (uint64_t)(uintptr_t)&head, 24, 0, 0, 0, 0);
    raw6(SYS_set_tid_address, 0xffff800000000000ul, 0, 0, 0, 0, 0);
}

static void grow(void) {
    // The break, and the stack.
    long brk = raw6(SYS_brk, 0, 0, 0, 0, 0, 0), now = brk;
    unsigned long mib = 0;
    static const uint64_t wild[] = {0, 1, 0x7fffffffffff, VMM_AREA, ~0ul, 0xffff800000000000ul, 1ul << 46};
    for (unsigned i = 0; i < sizeof wild / sizeof *wild; i++) now = raw6(SYS_brk, wild[i], 0, 0, 0, 0, 0);
    raw6(SYS_brk, (uint64_t)brk, 0, 0, 0, 0, 0);
    for (; mib < 100000; mib++) {
        now = raw6(SYS_brk, (uint64_t)brk + ((mib + 1) << 20), 0, 0, 0, 0, 0);
        if (now != brk + (long)((mib + 1) << 20)) break;
        for (uint64_t at = 0; at < 1 << 20; at += PAGE) *(volatile char *)(brk + (long)(mib << 20) + (long)at) = 1;
    }
    reached("MiB of break", mib, now);
}

// Mappings of one page of a file, each touched: page tables and areas, hardly any memory.
static void file_maps(void) {
    int fd = open("/tmp/hog", O_RDWR | O_CREAT, 0600);
    ftruncate(fd, PAGE);
    unsigned long n = 0;
    long r = 0;
    for (; n < 200000; n++) {
        r = raw_mmap(0x100000000000ul + (n << 21), PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0);
        if (r < 0) break;
        *(volatile char *)r = 1;
    }
    reached("maps of one page", n, r);
}

static void churn(void) {
    // Map, touch, move, protect and unmap at random.
    uint64_t state = 88172645463325252ul;
    long base = raw_mmap(0, 1ul << 30, RW, ANON | MAP_NORESERVE, -1, 0);
    unsigned long n = 0;
    for (; n < 20000; n++) {
        uint64_t v = next_random(&state);
        uint64_t at = (uint64_t)base + (v >> 10) % (1ul << 18) * PAGE, len = (v >> 40) % 600 * PAGE;
        switch (v % 6) {
            case 0: raw_mmap(at, len, RW, ANON | MAP_FIXED | MAP_NORESERVE, -1, 0); break;
            case 1: raw6(SYS_munmap, at, len, 0, 0, 0, 0); break;
            case 2: raw6(SYS_mprotect, at, len, v >> 8 & 3, 0, 0, 0); break;
            case 3: raw6(SYS_mremap, at, len, len / 2 + (v >> 50) % 100 * PAGE, MREMAP_MAYMOVE, 0, 0); break;
            case 4: raw6(SYS_madvise, at, len, MADV_DONTNEED, 0, 0, 0); break;
            default: raw6(SYS_getrandom, at, len > 65536 ? 65536 : len, 0, 0, 0, 0);
        }
    }
    reached("changes", n, 0);
}

int main(int argc, char **argv) {
    need(argc >= 2, "arguments");
    const char *what = argv[1], *arg = argc > 2 ? argv[2] : "";
    if (!strcmp(what, "everything")) everything();
    else if (!strcmp(what, "sparse-gib")) sparse(1ul << 30, RW);
    else if (!strcmp(what, "sparse-2mib")) sparse(2ul << 20, RW);
    else if (!strcmp(what, "sparse-read")) sparse(2ul << 20, PROT_READ);
    else if (!strcmp(what, "areas")) areas();
    else if (!strcmp(what, "threads")) threads(sleep_for_ever, 200000);
    else if (!strcmp(what, "spinning-threads")) threads(spin_for_ever, 2000);
    else if (!strcmp(what, "bad-thread")) bad_threads(arg);
    else if (!strcmp(what, "descriptors")) descriptors(arg, arg[1] == 't' ? O_RDWR | O_CREAT : O_RDONLY);
    else if (!strcmp(what, "pipes")) pipes();
    else if (!strcmp(what, "tmp")) fill_tmp();
    else if (!strcmp(what, "sparse-file")) sparse_file();
    else if (!strcmp(what, "names")) names(arg);
    else if (!strcmp(what, "vectors")) vectors();
    else if (!strcmp(what, "signals")) signal_queue();
    else if (!strcmp(what, "futexes")) futexes();
    else if (!strcmp(what, "robust")) robust_lists();
    else if (!strcmp(what, "grow")) grow();
    else if (!strcmp(what, "file-maps")) file_maps();
    else if (!strcmp(what, "churn")) churn();
    else need(0, "what?");
    printf("done\n");
    fflush(stdout);
    _exit(0);
}
