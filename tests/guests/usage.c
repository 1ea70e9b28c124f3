// What processes are told to have used: bytes moved (/proc/PID/io), memory at most (getrusage(2), wait4(2),
// /proc/PID/status), and the CPU time of children (times(2)).
#include "guest.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/times.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define MIB (1 << 20)

struct io { long rchar, wchar, syscr, syscw; };

// The counters of a process or thread. The calls that read them count too, after what they read.
static struct io io_of(const char *path) {
    char text[512] = "";
    struct io io = {-1, -1, -1, -1};
    int fd = open(path, O_RDONLY);
    ssize_t len = read(fd, text, sizeof text - 1);
    NEED(len > 0 && close(fd) == 0);
    NEED(sscanf(text, "rchar: %ld wchar: %ld syscr: %ld syscw: %ld", &io.rchar, &io.wchar, &io.syscr, &io.syscw) == 4);
    return io;
}

static long text_len(const char *path) {
    char text[512];
    int fd = open(path, O_RDONLY);
    ssize_t len = read(fd, text, sizeof text);
    close(fd);
    return len;
}

static long kib(const char *path, const char *name) {
    char line[256];
    long found = -1;
    FILE *file = fopen(path, "r");
    if (!file) return -1;
    while (fgets(line, sizeof line, file)) {
        size_t len = strlen(name);
        if (!strncmp(line, name, len) && line[len] == ':') found = atol(line + len + 1);
    }
    fclose(file);
    return found;
}

#define OWN "/proc/self/io"

// What `calls` moves, told by its own process.
#define MOVES(calls) \
    do { \
        long text_ = text_len(OWN); \
        struct io was_ = io_of(OWN); \
        calls; \
        struct io now_ = io_of(OWN); \
        /* The first reading counts in the second; numbers may have grown by a digit. */ \
        long read_ = now_.rchar - was_.rchar - text_; \
        printf("%s: %ld in, %ld out, %ld and %ld calls\n", #calls, read_ < 0 || read_ > 9 ? read_ / 10 * 10 : 0, \
               now_.wchar - was_.wchar, now_.syscr - was_.syscr - 1, now_.syscw - was_.syscw); \
        fflush(stdout); \
    } while (0)

static char buffer[MIB];

static void moved(void) {
    section("bytes that are moved");
    char path[64];
    snprintf(path, sizeof path, "/tmp/kvmlet-usage-%d", getpid());
    int file = open(path, O_RDWR | O_CREAT | O_EXCL, 0600), ends[2], pair[2];
    NEED(file >= 0 && pipe(ends) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    struct iovec parts[2] = {{buffer, 1000}, {buffer + 1000, 500}};
    MOVES(write(file, buffer, 100000));
    MOVES(pwrite(file, buffer, 5000, 10));
    MOVES(writev(file, parts, 2));
    MOVES(pread(file, buffer, 70000, 0));
    MOVES(lseek(file, 0, SEEK_SET));
    MOVES(read(file, buffer, 500000));
    MOVES(read(file, buffer, 10));
    MOVES(readv(file, parts, 2));
    MOVES(preadv(file, parts, 2, 0));
    MOVES(write(ends[1], buffer, 3000));
    MOVES(read(ends[0], buffer, 4000));
    MOVES(write(pair[1], buffer, 2000));
    MOVES(read(pair[0], buffer, 2000));
    MOVES(send(pair[1], buffer, 2000, 0));
    MOVES(recv(pair[0], buffer, 2000, 0));
    MOVES(read(-1, buffer, 10));
    MOVES(fcntl(ends[0], F_SETFL, O_NONBLOCK));
    MOVES(read(ends[0], buffer, 10));
    MOVES(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0));
    lseek(file, 0, SEEK_SET);
    MOVES(sendfile(ends[1], file, NULL, 6000));
    close(file), unlink(path), close(ends[0]), close(ends[1]), close(pair[0]), close(pair[1]);
}

static void *write_some(void *ends) {
    char path[64];
    NEED(write(((int *)ends)[1], buffer, 20000) == 20000);
    snprintf(path, sizeof path, "/proc/self/task/%d/io", gettid());
    return (void *)io_of(path).wchar;
}

static void by_whom(void) {
    section("by whom");
    int ends[2];
    void *own;
    pthread_t thread;
    NEED(pipe(ends) == 0);
    struct io before = io_of(OWN);
    NEED(pthread_create(&thread, NULL, write_some, ends) == 0 && pthread_join(thread, &own) == 0);
    struct io after = io_of(OWN);
    printf("of the thread %ld, of the process %ld\n", (long)own, after.wchar - before.wchar);
    fflush(stdout);
    NEED(read(ends[0], buffer, 20000) == 20000);
    before = io_of(OWN);
    pid_t child = fork();
    if (!child) {
        struct io begin = io_of(OWN);
        NEED(begin.wchar == 0 && begin.syscw == 0 && begin.rchar < 500);
        NEED(write(ends[1], buffer, 30000) == 30000);
        _exit(0);
    }
    NEED(waitid(P_PID, (id_t)child, &(siginfo_t){0}, WEXITED | WNOWAIT) == 0);
    CHECK(io_of(OWN).wchar == before.wchar);
    NEED(waitpid(child, NULL, 0) == child);
    // Its line above counts, and "ok" is not much.
    after = io_of(OWN);
    CHECK(after.wchar - before.wchar >= 30000 && after.wchar - before.wchar < 30200);
    close(ends[0]), close(ends[1]);
}

static void use(size_t bytes) {
    char *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    NEED(pages != MAP_FAILED);
    memset(pages, 1, bytes);
    NEED(munmap(pages, bytes) == 0);
}

static int near(long kib_found, long kib_wanted) {
    long apart = kib_found - kib_wanted;
    if (apart > -3000 && apart < 3000) return 1;
    printf("%ld KiB, not %ld\n", kib_found, kib_wanted);
    return 0;
}

static long peak(int who) {
    struct rusage usage;
    NEED(getrusage(who, &usage) == 0);
    return usage.ru_maxrss;
}

static void memory(void) {
    section("memory at most");
    const char *status = "/proc/self/status";
    long base = peak(RUSAGE_SELF), size = kib(status, "VmPeak");
    CHECK(peak(RUSAGE_CHILDREN) >= 0);
    CHECK(size >= kib(status, "VmSize") && kib(status, "VmHWM") >= kib(status, "VmRSS"));
    use(24 * MIB);
    CHECK(near(peak(RUSAGE_SELF), base + 24 * 1024));
    CHECK(near(peak(RUSAGE_THREAD), base + 24 * 1024));
    CHECK(near(kib(status, "VmHWM"), base + 24 * 1024));
    CHECK(near(kib(status, "VmRSS"), base));
    CHECK(near(kib(status, "VmPeak"), size + 24 * 1024));
    CHECK(near(kib(status, "VmSize"), size));
    // A child has none of its parent's past, but of its own.
    struct rusage usage;
    long children = peak(RUSAGE_CHILDREN);
    pid_t child = fork();
    if (!child) {
        NEED(near(kib(status, "VmHWM"), kib(status, "VmRSS")));
        NEED(near(kib(status, "VmPeak"), kib(status, "VmSize")));
        NEED(peak(RUSAGE_CHILDREN) == 0);
        use(48 * MIB);
        _exit(0);
    }
    NEED(wait4(child, NULL, 0, &usage) == child);
    CHECK(near(usage.ru_maxrss, base + 48 * 1024));
    CHECK(near(peak(RUSAGE_CHILDREN), base + 48 * 1024) && peak(RUSAGE_CHILDREN) > children);
    CHECK(near(peak(RUSAGE_SELF), base + 24 * 1024));
    // A smaller one changes nothing, nor does what it runs.
    child = fork();
    if (!child) {
        execl("/bin/true", "true", NULL);
        _exit(1);
    }
    NEED(wait4(child, NULL, 0, &usage) == child);
    CHECK(usage.ru_maxrss > 0 && usage.ru_maxrss < base + 8 * 1024);
    CHECK(near(peak(RUSAGE_CHILDREN), base + 48 * 1024));
    // That of a grandchild counts for the child that has waited for it.
    child = fork();
    if (!child) {
        pid_t own = fork();
        if (!own) {
            use(64 * MIB);
            _exit(0);
        }
        _exit(waitpid(own, NULL, 0) != own);
    }
    NEED(wait4(child, NULL, 0, &usage) == child);
    CHECK(near(usage.ru_maxrss, base + 64 * 1024));
}

static void time_of_children(void) {
    section("time of children");
    struct tms before, after;
    times(&before);
    pid_t child = fork();
    if (!child) {
        struct rusage usage;
        do getrusage(RUSAGE_SELF, &usage);
        while (usage.ru_utime.tv_sec == 0 && usage.ru_utime.tv_usec + usage.ru_stime.tv_usec < 100000);
        _exit(0);
    }
    NEED(waitpid(child, NULL, 0) == child);
    times(&after);
    clock_t ticks = after.tms_cutime + after.tms_cstime - before.tms_cutime - before.tms_cstime;
    CHECK(ticks >= 9 && ticks < 100);
}

int main(void) {
    moved();
    by_whom();
    // A program counts what its process had before execve(2) too: this one's caller may have had much.
    pid_t child = fork();
    if (!child) {
        memory();
        _exit(0);
    }
    NEED(waitpid(child, NULL, 0) == child);
    time_of_children();
    return 0;
}
