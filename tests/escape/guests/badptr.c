// Bad pointers and lengths to every call that takes some: badptr DIRECTORY NAME... | badptr --list
//
// Prints the result of each. DIRECTORY is made, and names a place of its own under /tmp.
#include "hostile.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/timerfd.h>
#include <time.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

// kvmlet.h; nobody takes messages of a program that is run as this one is.
#define SYS_kvmlet_receive 7000
#define SYS_kvmlet_send 7001
#define SYS_kvmlet_ask 7003
#define SYS_kvmlet_answer 7004

struct row {
    const char *name;
    long nr;
    const char *kinds, *flags;
    uint64_t args[6];
};

static char path_file[200], path_new[200], path_link[200], path_dir[200];
static int fd_file = -1, fd_read = -1, fd_other = -1, fd_dir = -1, fd_zero = -1, pipe_read = -1, pipe_write = -1;
static int fd_event = -1, fd_timer = -1, fd_epoll = -1, fd_inotify = -1;
static unsigned char *out, *in, *arena, *readonly_page, *none_page, *last_byte;

static void set_up_files(void) {
    unlink(path_new);
    rmdir(path_new);
    unlink(path_file);
    unlink(path_link);
    int fd = open(path_file, O_RDWR | O_CREAT | O_TRUNC, 0600);
    need(fd >= 0, "creating a file");
    if (fd_file >= 0) close(fd_file);
    if (fd_read >= 0) close(fd_read);
    fd_file = fcntl(fd, F_DUPFD, 40);
    close(fd);
    static char text[5000];
    memset(text, 'f', sizeof text);
    need(write(fd_file, text, sizeof text) == sizeof text, "writing a file");
    lseek(fd_file, 0, SEEK_SET);
    fd = open(path_file, O_RDONLY);
    fd_read = fcntl(fd, F_DUPFD, 50);
    close(fd);
    need(symlink("target", path_link) == 0, "symlink");
    lseek(fd_dir, 0, SEEK_SET);
    lseek(fd_other, 0, SEEK_SET);
}

static void empty_pipe(void) {
    char buf[4096];
    while (read(pipe_read, buf, sizeof buf) > 0) {}
    need(write(pipe_write, "0123456789abcdef", 16) == 16, "filling the pipe");
}

static void prepare_memory(void) {
    memset(out, 0, 16 * PAGE);
    memset(in, 0, 16 * PAGE);
    *last_byte = 'x';
    struct iovec *iov = (struct iovec *)(in + PAGE);
    iov[0] = (struct iovec){out, 32};
    iov[1] = (struct iovec){out + 64, 32};
    struct pollfd *p = (struct pollfd *)(in + 2 * PAGE);
    p->fd = -1;
    struct __user_cap_header_struct *caps = (struct __user_cap_header_struct *)(in + 3 * PAGE);
    caps->version = _LINUX_CAPABILITY_VERSION_3;
    memset(in + 4 * PAGE, 0xff, 64);
    struct flock *lock = (struct flock *)(in + 5 * PAGE);
    lock->l_type = F_RDLCK;
    // Limits of core files: nothing.
    memset(in + 6 * PAGE, 0, 16);
}

#define FD ((uint64_t)fd_file)
#define RFD ((uint64_t)fd_read)
#define FD2 ((uint64_t)fd_other)
#define DIRFD ((uint64_t)fd_dir)
#define ZERO ((uint64_t)fd_zero)
#define PIPE_R ((uint64_t)pipe_read)
#define PIPE_W ((uint64_t)pipe_write)
#define EVENT ((uint64_t)fd_event)
#define TIMER ((uint64_t)fd_timer)
#define EPOLL ((uint64_t)fd_epoll)
#define INOTIFY ((uint64_t)fd_inotify)
#define CWD ((uint64_t)AT_FDCWD)
#define SELF ((uint64_t)getpid())
#define U(p) ((uint64_t)(uintptr_t)(p))
#define OUT U(out)
#define OUT2 U(out + 4 * PAGE)
#define OUT3 U(out + 8 * PAGE)
#define IN U(in)
#define ZEROS U(in + 8 * PAGE)
#define ZEROS2 U(in + 9 * PAGE)
#define ZEROS3 U(in + 10 * PAGE)
#define ZEROS4 U(in + 11 * PAGE)
#define WORD U(in + 12 * PAGE)
#define WORD2 U(in + 12 * PAGE + 64)
#define OFFSET U(in + 13 * PAGE)
#define OFFSET2 U(in + 13 * PAGE + 64)
#define IOV U(in + PAGE)
#define POLLFD U(in + 2 * PAGE)
#define CAPS U(in + 3 * PAGE)
#define ONES U(in + 4 * PAGE)
#define FLOCK U(in + 5 * PAGE)
#define LIMITS U(in + 6 * PAGE)
#define ARENA U(arena)
#define PATH_S U(path_file)
#define NEW_S U(path_new)
#define LINK_S U(path_link)
#define DIR_S U(path_dir)
#define NEWNAME_S U("new")
#define NOWHERE_S U("/nowhere/at/all")
#define NAME_S U("user.name")
#define EMPTY_S U("")

struct bad {
    const char *name;
    uint64_t value;
    int readable, area;
};

static void report(const struct row *row, unsigned arg, const char *what, const uint64_t args[6]) {
    prepare_memory();
    if (strchr(row->flags, 'F')) set_up_files();
    if (strchr(row->flags, 'R')) empty_pipe();
    uint64_t a[6];
    memcpy(a, args, sizeof a);
    long r = raw6(row->nr, a[0], a[1], a[2], a[3], a[4], a[5]);
    printf("%s %d %s: ", row->name, arg + 1, what);
    if (strchr(row->flags, 'L')) printf("ran\n");
    else if (r < 0 && r > -4096) printf("%s\n", strerrorname_np((int)-r));
    else if (strchr(row->flags, 'O')) printf("a descriptor\n");
    else if (strchr(row->flags, 'V')) printf("fine\n");
    else printf("%ld\n", r);
    if (r >= 0 && strchr(row->flags, 'O')) close((int)r);
    if (r == 0 && strchr(row->flags, 'P')) {
        int fds[2];
        memcpy(fds, (void *)(uintptr_t)a[0], sizeof fds);
        close(fds[0]);
        close(fds[1]);
    }
}

static void try_row(const struct row *row) {
    const struct bad pointers[] = {
        {"null", 0, 0, 0},
        {"one", 1, 0, 0},
        {"nowhere", 0x12345678, 0, 0},
        {"below the first page", 0xfff0, 0, 0},
        {"unmapped", U(last_byte + 1), 0, 0},
        {"PROT_NONE", U(none_page), 0, 0},
        {"read-only", U(readonly_page), 1, 0},
        {"unaligned", U(out + 1), 1, 0},
        {"last byte of a mapping", U(last_byte), 0, 0},
        {"last user page", 0x7fffffffeff8ul, 0, 1},
        {"the syscall page", SYSCALL_CODE, 0, 1},
        {"the constants page", STUB_DATA, 0, 1},
        {"the exception stack", EXC_STACK, 0, 1},
        {"the GDT", GDT_PAGE, 0, 1},
        {"not canonical", 0x800000000000ul, 0, 0},
        {"not canonical, high", 0x8000000000000000ul, 0, 0},
        {"kernel", 0xffff800000000000ul, 0, 0},
        {"kernel text", 0xffffffff81000000ul, 0, 0},
        {"vsyscall", 0xffffffffff600000ul, 0, 0},
        {"minus eight", (uint64_t)-8, 0, 0},
        {"minus one", (uint64_t)-1, 0, 0},
    };
    const struct bad addresses[] = {
        {"unaligned", ARENA + 1, 0, 0},
        {"not canonical", 0x800000000000ul, 0, 0},
        {"not canonical, high", 0x8000000000000000ul, 0, 0},
        {"kernel", 0xffff800000000000ul, 0, 0},
        {"kernel, unaligned", 0xffff800000000001ul, 0, 0},
        {"last page", (uint64_t)-4096, 0, 0},
    };
    const uint64_t lengths[] = {0x7ffffffffffffffful, ~0ul, 0x80000000ul, 1ul << 47, 0x7ffff000ul, 0xfffffffful, 100000, 0};
    const uint64_t extents[] = {0x7ffffffffffffffful, ~0ul, (uint64_t)-4096, 1ul << 47, (1ul << 63), ~0ul - 4095 - 8192, 0};
    for (unsigned arg = 0; row->kinds[arg]; arg++) {
        uint64_t args[6];
        char what[64];
        memcpy(args, row->args, sizeof args);
        switch (row->kinds[arg]) {
            case 'p': case 'n': case 't':
                for (unsigned i = 0; i < sizeof pointers / sizeof *pointers; i++) {
                    if (row->kinds[arg] == 'n' && pointers[i].readable) continue;
                    if (row->kinds[arg] == 't' && pointers[i].value == 0) continue;
                    if (strchr(row->flags, 'A') && pointers[i].area) continue;
                    args[arg] = pointers[i].value;
                    report(row, arg, pointers[i].name, args);
                }
                break;
            case 'a':
                for (unsigned i = 0; i < sizeof addresses / sizeof *addresses; i++) {
                    args[arg] = addresses[i].value;
                    report(row, arg, addresses[i].name, args);
                }
                break;
            case 'l':
                for (unsigned i = 0; i < sizeof lengths / sizeof *lengths; i++) {
                    args[arg] = lengths[i];
                    snprintf(what, sizeof what, "length %#lx", lengths[i]);
                    report(row, arg, what, args);
                }
                break;
            case 'm':
                for (unsigned i = 0; i < sizeof extents / sizeof *extents; i++) {
                    args[arg] = extents[i];
                    snprintf(what, sizeof what, "extent %#lx", extents[i]);
                    report(row, arg, what, args);
                }
                break;
        }
    }
    if (!row->kinds[0]) report(row, 0, "as it is", row->args);
}

// Vectors whose later parts are bad: what came before counts.
static void try_vectors(void) {
    const uint64_t bases[] = {0, 1, U(readonly_page), U(none_page), U(last_byte), 0x800000000000ul, 0xffff800000000000ul};
    const uint64_t lens[] = {1, 64, 0x7ffff000ul, 0x7ffffffffffffffful, ~0ul, 1ul << 63};
    static const struct { const char *name; long nr; } calls[] = {
        {"readv", SYS_readv}, {"writev", SYS_writev}, {"preadv", SYS_preadv}, {"pwritev", SYS_pwritev}};
    for (unsigned c = 0; c < 4; c++)
        for (unsigned b = 0; b < sizeof bases / sizeof *bases; b++)
            for (unsigned l = 0; l < sizeof lens / sizeof *lens; l++) {
                prepare_memory();
                set_up_files();
                struct iovec *iov = (struct iovec *)(uintptr_t)IOV;
                iov[1] = (struct iovec){(void *)(uintptr_t)bases[b], lens[l]};
                long r = raw6(calls[c].nr, FD, IOV, 2, 0, 0, 0);
                printf("%s second part %u length %#lx: %s\n", calls[c].name, b, lens[l], r < 0 ? strerrorname_np((int)-r) : "fine");
                if (r >= 0) printf("%ld bytes\n", r);
            }
}

// Memory between inaccessible pages: how far a long transfer gets does not depend on the layout.
static unsigned char *map_alone(size_t pages) {
    unsigned char *p = map((pages + 2) * PAGE, PROT_NONE);
    need(mprotect(p + PAGE, pages * PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
    return p + PAGE;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    out = map_alone(16);
    in = map_alone(16);
    // The last pages of it come and go.
    arena = map_alone(16);
    unsigned char *edge = map(3 * PAGE, PROT_READ | PROT_WRITE);
    munmap(edge + PAGE, 2 * PAGE);
    last_byte = edge + PAGE - 1;
    *last_byte = 'x';
    readonly_page = map(PAGE, PROT_READ);
    none_page = map(PAGE, PROT_NONE);
    // Natively it is run without capabilities: those of root inside are given up.
    struct __user_cap_header_struct none = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct nothing[2] = {0};
    need(syscall(SYS_capset, &none, nothing) == 0, "capset");
    int list = argc == 2 && !strcmp(argv[1], "--list");
    if (!list) {
        need(argc > 2, "arguments");
        need(mkdir(argv[1], 0700) == 0, "mkdir");
        snprintf(path_dir, sizeof path_dir, "%s", argv[1]);
        snprintf(path_file, sizeof path_file, "%s/file", argv[1]);
        snprintf(path_new, sizeof path_new, "%s/new", argv[1]);
        snprintf(path_link, sizeof path_link, "%s/link", argv[1]);
        char other[210];
        snprintf(other, sizeof other, "%s/other", argv[1]);
        need((fd_other = open(other, O_RDWR | O_CREAT, 0600)) >= 0, "creating a file");
        need((fd_dir = open(argv[1], O_RDONLY | O_DIRECTORY)) >= 0, "opening the directory");
        need((fd_zero = open("/dev/zero", O_RDONLY)) >= 0, "opening /dev/zero");
        int fds[2];
        need(pipe(fds) == 0, "pipe");
        pipe_read = fds[0];
        pipe_write = fds[1];
        fcntl(pipe_read, F_SETFL, O_NONBLOCK);
        fcntl(pipe_write, F_SETFL, O_NONBLOCK);
        // An instance with an item that is always ready.
        struct epoll_event always = {.events = EPOLLIN};
        need((fd_event = eventfd(1, EFD_NONBLOCK)) >= 0, "eventfd");
        need((fd_timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)) >= 0, "timerfd_create");
        need((fd_epoll = epoll_create1(0)) >= 0, "epoll_create1");
        need(epoll_ctl(fd_epoll, EPOLL_CTL_ADD, fd_event, &always) == 0, "epoll_ctl");
        need((fd_inotify = inotify_init1(IN_NONBLOCK)) >= 0, "inotify_init1");
        prepare_memory();
        set_up_files();
    }
    const struct row rows[] = {
#include "calls.h"
    };
    unsigned count = sizeof rows / sizeof *rows;
    if (list) {
        for (unsigned i = 0; i < count; i++)
            if (i == 0 || strcmp(rows[i].name, rows[i - 1].name)) puts(rows[i].name);
        puts("vectors");
        return 0;
    }
    for (int n = 2; n < argc; n++) {
        int found = !strcmp(argv[n], "vectors");
        if (found) try_vectors();
        for (unsigned i = 0; i < count; i++)
            if (!strcmp(rows[i].name, argv[n])) {
                try_row(&rows[i]);
                found = 1;
            }
        if (!found) printf("FAIL no rows for %s\n", argv[n]);
        fflush(stdout);
    }
    printf("alive\n");
    fflush(stdout);
    _exit(0);
}
