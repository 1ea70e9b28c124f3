// A program's own resource limits: rlimits MODE.
#include "guest.h"
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <time.h>

#define MIB (1ul << 20)
#define PAGE 4096ul

static int limit(int resource, rlim_t soft, rlim_t hard) {
    struct rlimit limits = {soft, hard};
    return setrlimit(resource, &limits);
}

static int soften(int resource, rlim_t soft) {
    struct rlimit limits;
    if (getrlimit(resource, &limits)) return -1;
    limits.rlim_cur = soft;
    return setrlimit(resource, &limits);
}

static rlim_t soft_of(int resource) {
    struct rlimit limits = {0, 0};
    getrlimit(resource, &limits);
    return limits.rlim_cur;
}

// A line "Name:   1234 kB" of /proc/self/status, in bytes.
static unsigned long status_bytes(const char *name) {
    char line[256];
    unsigned long kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    need(file != NULL, "/proc/self/status");
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ':') kib = strtoul(line + strlen(name) + 1, NULL, 10);
    fclose(file);
    return kib << 10;
}

static void *map(unsigned long len, int prot, int flags) {
    return mmap(NULL, len, prot, MAP_ANONYMOUS | flags, -1, 0);
}

#define RW (PROT_READ | PROT_WRITE)

static volatile sig_atomic_t taken, last_code, last_is_own;

static void count(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)context;
    taken = taken + 1;
    last_code = info->si_code;
    last_is_own = info->si_pid == getpid() && info->si_uid == getuid();
}

static void catch(int sig) {
    struct sigaction sa = {.sa_sigaction = count, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(sig, &sa, NULL);
}

static int signals_since(void) {
    int count = taken;
    taken = 0;
    return count;
}

static void *other_thread(void *arg) {
    *(int *)arg = (int)syscall(SYS_gettid);
    struct rlimit limits = {7, 9};
    setrlimit(RLIMIT_LOCKS, &limits);
    return NULL;
}

static void errors(void) {
    struct rlimit64 old = {1, 1}, new = {5, 4};
    FAILS(syscall(SYS_getrlimit, 16, &old), EINVAL);
    FAILS(syscall(SYS_setrlimit, 16, &old), EINVAL);
    FAILS(syscall(SYS_prlimit64, 0, -1, NULL, &old), EINVAL);
    FAILS(syscall(SYS_setrlimit, RLIMIT_LOCKS, &new), EINVAL);
    FAILS(syscall(SYS_getrlimit, RLIMIT_LOCKS, NULL), EFAULT);
    FAILS(syscall(SYS_setrlimit, RLIMIT_LOCKS, NULL), EFAULT);
    FAILS(syscall(SYS_prlimit64, 0, RLIMIT_LOCKS, 8, &old), EFAULT);
    // The new limit is read before the process is looked for.
    FAILS(syscall(SYS_prlimit64, INT_MAX, RLIMIT_LOCKS, 8, NULL), EFAULT);
    FAILS(syscall(SYS_prlimit64, INT_MAX, RLIMIT_LOCKS, NULL, &old), ESRCH);
    FAILS(syscall(SYS_prlimit64, -1, RLIMIT_LOCKS, NULL, &old), ESRCH);
    new = (struct rlimit64){20, 30};
    CHECK(syscall(SYS_prlimit64, 0, RLIMIT_LOCKS, &new, NULL) == 0);
    new = (struct rlimit64){10, 30};
    CHECK(syscall(SYS_prlimit64, getpid(), RLIMIT_LOCKS, &new, &old) == 0 && old.rlim_cur == 20 && old.rlim_max == 30);
    new = (struct rlimit64){10, 31};
    FAILS(syscall(SYS_prlimit64, 0, RLIMIT_LOCKS, &new, NULL), EPERM);
    new = (struct rlimit64){31, 30};
    FAILS(syscall(SYS_prlimit64, 0, RLIMIT_LOCKS, &new, NULL), EINVAL);
    FAILS(limit(RLIMIT_LOCKS, 10, RLIM_INFINITY), EPERM);
    CHECK(limit(RLIMIT_LOCKS, 30, 30) == 0 && soft_of(RLIMIT_LOCKS) == 30);
    // Limits are the process's, whichever thread sets them.
    pthread_t thread;
    int tid = 0;
    need(pthread_create(&thread, NULL, other_thread, &tid) == 0, "pthread_create");
    pthread_join(thread, NULL);
    CHECK(soft_of(RLIMIT_LOCKS) == 7);
    FAILS(syscall(SYS_prlimit64, tid, RLIMIT_LOCKS, NULL, &old), ESRCH);
}

static const struct {
    int resource;
    rlim_t soft, hard;
} FIXED[] = {
    {RLIMIT_CPU, 1000, 2000}, {RLIMIT_FSIZE, MIB, 2 * MIB}, {RLIMIT_DATA, 512 * MIB, 1024 * MIB},
    {RLIMIT_STACK, MIB, 4 * MIB}, {RLIMIT_CORE, 0, 0}, {RLIMIT_RSS, 77, RLIM_INFINITY}, {RLIMIT_NPROC, 500, 600},
    {RLIMIT_NOFILE, 64, 128}, {RLIMIT_MEMLOCK, 65536, 65537}, {RLIMIT_AS, 1024 * MIB, 2048 * MIB},
    {RLIMIT_LOCKS, 5, RLIM_INFINITY}, {RLIMIT_SIGPENDING, 10, 20}, {RLIMIT_MSGQUEUE, 1, 2}, {RLIMIT_NICE, 0, 0},
    {RLIMIT_RTPRIO, 0, 0}, {RLIMIT_RTTIME, 1000, 2000},
};

static void show_limits(void) {
    char text[4096];
    int fd = open("/proc/self/limits", O_RDONLY);
    ssize_t len = read(fd, text, sizeof text);
    close(fd);
    fwrite(text, 1, len > 0 ? (size_t)len : 0, stdout);
    fflush(stdout);
}

static void inherit(char **argv) {
    for (unsigned i = 0; i < sizeof FIXED / sizeof *FIXED; i++)
        need(limit(FIXED[i].resource, FIXED[i].soft, FIXED[i].hard) == 0, "setrlimit");
    show_limits();
    execl(argv[0], argv[0], "inherited", NULL);
    need(0, "execl");
}

static void fsize_file(int fd) {
    static char block[5000];
    memset(block, 'x', sizeof block);
    CHECK(write(fd, block, 5000) == 5000);
    CHECK(write(fd, block, 5000) == 3000 && signals_since() == 0);
    CHECK(lseek(fd, 0, SEEK_CUR) == 8000);
    FAILS(write(fd, block, 1), EFBIG);
    CHECK(signals_since() == 1 && last_code == SI_USER && last_is_own);
    CHECK(write(fd, block, 0) == 0 && signals_since() == 0);
    CHECK(pwrite(fd, block, 100, 7990) == 10 && signals_since() == 0);
    FAILS(pwrite(fd, block, 100, 8000), EFBIG);
    FAILS(pwrite(fd, block, 100, 1l << 40), EFBIG);
    CHECK(signals_since() == 2);
    struct iovec parts[3] = {{block, 0}, {block, 30}, {block, 30}};
    CHECK(pwritev(fd, parts, 3, 7960) == 40 && signals_since() == 0);
    FAILS(writev(fd, parts, 3), EFBIG);
    CHECK(signals_since() == 1);
    FAILS(ftruncate(fd, 8001), EFBIG);
    CHECK(signals_since() == 1);
    CHECK(ftruncate(fd, 7000) == 0 && ftruncate(fd, 8000) == 0 && signals_since() == 0);
    CHECK(fcntl(fd, F_SETFL, O_APPEND) == 0 && lseek(fd, 0, SEEK_SET) == 0);
    FAILS(write(fd, block, 10), EFBIG);
    CHECK(signals_since() == 1);
    CHECK(ftruncate(fd, 7995) == 0 && write(fd, block, 10) == 5 && signals_since() == 0);
    CHECK(fcntl(fd, F_SETFL, 0) == 0);
    // A file that is longer already may be cut, and written below the limit.
    need(soften(RLIMIT_FSIZE, RLIM_INFINITY) == 0, "setrlimit");
    CHECK(ftruncate(fd, 20000) == 0);
    need(soften(RLIMIT_FSIZE, 8000) == 0, "setrlimit");
    CHECK(ftruncate(fd, 12000) == 0 && ftruncate(fd, 12000) == 0 && pwrite(fd, block, 10, 0) == 10);
    FAILS(pwrite(fd, block, 10, 11000), EFBIG);
    CHECK(signals_since() == 1);
}

static void fsize(void) {
    catch(SIGXFSZ);
    need(soften(RLIMIT_FSIZE, 8000) == 0, "setrlimit");
    section("memfd");
    int memory = memfd_create("m", 0);
    fsize_file(memory);
    CHECK(ftruncate(memory, 8000) == 0);
    FAILS(fallocate(memory, 0, 7000, 1001), EFBIG);
    FAILS(fallocate(memory, FALLOC_FL_KEEP_SIZE, 8000, 1), EFBIG);
    CHECK(signals_since() == 2);
    CHECK(fallocate(memory, 0, 7000, 1000) == 0 && signals_since() == 0);
    section("file");
    char path[] = "/tmp/rlimits-XXXXXX";
    int file = mkstemp(path);
    fsize_file(file);
    FAILS(truncate(path, 13000), EFBIG);
    CHECK(signals_since() == 1);
    CHECK(truncate(path, 10) == 0 && truncate(path, 8000) == 0 && signals_since() == 0);
    section("copies");
    int from = memfd_create("from", 0);
    static char block[8000];
    need(write(from, block, 8000) == 8000, "write");
    CHECK(ftruncate(memory, 7000) == 0 && lseek(memory, 5000, SEEK_SET) == 5000);
    off_t at = 0;
    SHOW(sendfile(memory, from, &at, 6000));
    SHOW(signals_since());
    SHOW(lseek(memory, 0, SEEK_CUR));
    FAILS(sendfile(memory, from, &at, 10), EFBIG);
    SHOW(signals_since());
    off_t in = 0, out = 7000;
    CHECK(copy_file_range(from, &in, memory, &out, 5000, 0) == 1000 && in == 1000 && out == 8000);
    SHOW(signals_since());
    FAILS(copy_file_range(from, &in, memory, &out, 5000, 0), EFBIG);
    CHECK(signals_since() == 1);
    section("not files");
    int ends[2];
    need(pipe(ends) == 0, "pipe");
    for (int i = 0; i < 3; i++) need(write(ends[1], block, 4000) == 4000, "write to a pipe");
    CHECK(signals_since() == 0);
    unlink(path);
    section("standard output");
    // What the caller gave for standard output may be a file: SIGXFSZ then, but never for a pipe.
    fflush(stdout);
    need(soften(RLIMIT_FSIZE, 0) == 0, "setrlimit");
    CHECK(signals_since() == 0);
    signal(SIGXFSZ, SIG_DFL);
    pwrite(memory, block, 1, 0);
    need(0, "SIGXFSZ");
}

// With standard output a file of 0 bytes: the limit counts for it too.
static void fsize_stdout(void) {
    catch(SIGXFSZ);
    static char block[300];
    memset(block, 'x', sizeof block);
    need(soften(RLIMIT_FSIZE, 1000) == 0, "setrlimit");
    int sum = 0, efbig = 0;
    for (int i = 0; i < 5; i++) {
        ssize_t written = write(1, block, sizeof block);
        if (written > 0) sum += (int)written;
        else efbig += errno == EFBIG;
    }
    int grown = ftruncate(1, 2000) == -1 && errno == EFBIG;
    int at = pwrite(1, block, 300, 900) == 100;
    dprintf(2, "%d bytes, %d EFBIG, %d %d, %d signals\n", sum, efbig, grown, at, signals_since());
}

// Memory that is promised: no more at once than the machine could ever have (overcommit_memory 0).
static void overcommit(void) {
    struct sysinfo info;
    need(sysinfo(&info) == 0, "sysinfo");
    unsigned long total = (info.totalram + info.totalswap) * info.mem_unit, more = (total + 2 * MIB) & -PAGE;
    FAILS(map(more, RW, MAP_PRIVATE), ENOMEM);
    FAILS(map(more, RW, MAP_SHARED), ENOMEM);
    FAILS(map(more, RW, MAP_PRIVATE | MAP_GROWSDOWN), ENOMEM);
    FAILS(sbrk((intptr_t)more), ENOMEM);
    CHECK(malloc(more) == NULL && errno == ENOMEM);
    FAILS(mmap(NULL, more, RW, MAP_PRIVATE, memfd_create("m", 0), 0), ENOMEM);
    char *free = map(more, RW, MAP_PRIVATE | MAP_NORESERVE), *none = map(more, PROT_NONE, MAP_PRIVATE);
    CHECK(free != MAP_FAILED && none != MAP_FAILED);
    CHECK((free[more / 2] = 1) && free[more - 1] == 0);
    CHECK(map(more, PROT_READ, MAP_PRIVATE) != MAP_FAILED);
    FAILS(mprotect(none, more, RW), ENOMEM);
    CHECK(mprotect(none, more, PROT_READ) == 0 && mprotect(none, MIB, RW) == 0 && (none[5] = 1));
    CHECK(mprotect(free, more, PROT_NONE) == 0 && mprotect(free, more, RW) == 0);
    CHECK(mremap(free, more, more + MIB, MREMAP_MAYMOVE) != MAP_FAILED);
    char *small = map(MIB, RW, MAP_PRIVATE);
    FAILS(mremap(small, MIB, more + MIB, MREMAP_MAYMOVE), ENOMEM);
}

static void address_space(void) {
    char *other = map(2 * MIB, PROT_READ, MAP_SHARED);
    need(other != MAP_FAILED, "mmap");
    need(soften(RLIMIT_AS, status_bytes("VmSize") + 64 * MIB) == 0, "setrlimit");
    char *area = map(40 * MIB, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE);
    CHECK(area != MAP_FAILED);
    FAILS(map(40 * MIB, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE), ENOMEM);
    FAILS(map(40 * MIB, PROT_READ, MAP_SHARED), ENOMEM);
    FAILS(mremap(area, 40 * MIB, 80 * MIB, MREMAP_MAYMOVE), ENOMEM);
    FAILS(mremap(other, 0, 32 * MIB, MREMAP_MAYMOVE), ENOMEM);
    FAILS(sbrk(32 * MIB), ENOMEM);
    CHECK(sbrk(4 * MIB) != (void *)-1);
    // What is replaced does not count twice.
    CHECK(mmap(area, 40 * MIB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == area);
    CHECK(mprotect(area, 40 * MIB, RW) == 0);
    CHECK(munmap(area, 40 * MIB) == 0);
    CHECK((area = map(40 * MIB, RW, MAP_PRIVATE)) != MAP_FAILED);
    CHECK(mremap(area, 40 * MIB, 20 * MIB, 0) == area);
    CHECK(malloc(64 * MIB) == NULL && errno == ENOMEM);
    // Below what is in use: what is there stays, nothing comes.
    need(soften(RLIMIT_AS, MIB) == 0, "setrlimit");
    FAILS(map(PAGE, PROT_NONE, MAP_PRIVATE), ENOMEM);
    CHECK((area[5] = 1) && munmap(area, 20 * MIB) == 0);
}

// A program that does not fit is ended by execve, which has nowhere to return to.
static void address_space_exec(char **argv) {
    fflush(stdout);
    need(limit(RLIMIT_AS, 400000, 400000) == 0, "setrlimit");
    execl(argv[0], argv[0], "inherited", NULL);
    need(0, "execl");
}

static void data(void) {
    need(soften(RLIMIT_DATA, status_bytes("VmData") + 32 * MIB) == 0, "setrlimit");
    char *none = map(64 * MIB, PROT_NONE, MAP_PRIVATE), *shared = map(64 * MIB, RW, MAP_SHARED);
    CHECK(none != MAP_FAILED && shared != MAP_FAILED);
    CHECK(map(64 * MIB, PROT_READ, MAP_PRIVATE) != MAP_FAILED);
    FAILS(map(40 * MIB, RW, MAP_PRIVATE), ENOMEM);
    FAILS(map(40 * MIB, RW, MAP_PRIVATE | MAP_NORESERVE), ENOMEM);
    CHECK(map(40 * MIB, RW, MAP_PRIVATE | MAP_GROWSDOWN | MAP_STACK) != MAP_FAILED);
    FAILS(mprotect(none, 40 * MIB, RW), ENOMEM);
    CHECK(mprotect(none, 20 * MIB, RW) == 0);
    FAILS(sbrk(20 * MIB), ENOMEM);
    FAILS(mremap(none, 20 * MIB, 40 * MIB, MREMAP_MAYMOVE), ENOMEM);
    // What is replaced does not count twice.
    CHECK(mmap(none, 20 * MIB, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == none);
    CHECK(mprotect(none, 20 * MIB, PROT_READ) == 0);
    CHECK(sbrk(20 * MIB) != (void *)-1);
}

static sigjmp_buf over;
static uintptr_t fault_at;

static void stack_over(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)context;
    fault_at = (uintptr_t)info->si_addr;
    siglongjmp(over, 1);
}

// Pages of the stack, of which the last one touched is refused.
static long stack_pages(void) {
    unsigned long start = 0, end = 0;
    char line[512];
    FILE *file = fopen("/proc/self/maps", "r");
    need(file != NULL, "/proc/self/maps");
    while (fgets(line, sizeof line, file))
        if (strstr(line, "[stack]")) sscanf(line, "%lx-%lx", &start, &end);
    fclose(file);
    need(start < end, "[stack]");
    static char alternate[65536];
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    sigaltstack(&stack, NULL);
    struct sigaction sa = {.sa_sigaction = stack_over, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(SIGSEGV, &sa, NULL);
    char here;
    if (!sigsetjmp(over, 1))
        for (volatile char *at = &here; (uintptr_t)at > end - 64 * MIB; at -= PAGE) *at = 1;
    signal(SIGSEGV, SIG_DFL);
    return (long)((end - (fault_at & -PAGE)) / PAGE);
}

static void stack(char **argv) {
    need(limit(RLIMIT_STACK, MIB, 4 * MIB) == 0, "setrlimit");
    SHOW(stack_pages());
    need(soften(RLIMIT_STACK, 3 * MIB / 2 + 1000) == 0, "setrlimit");
    SHOW(stack_pages());
    // What the stack has it keeps.
    need(soften(RLIMIT_STACK, MIB / 2) == 0, "setrlimit");
    CHECK(stack_pages() > 128);
    // Arguments: a quarter of the limit, 128 KiB at least.
    static char word[100001];
    char *words[8] = {argv[0], "stack-over"};
    memset(word, 'x', 100000);
    words[2] = words[3] = word;
    FAILS(execv(argv[0], words), E2BIG);
    need(soften(RLIMIT_STACK, MIB) == 0, "setrlimit");
    FAILS(execv(argv[0], (words[4] = word, words)), E2BIG);
    words[4] = NULL;
    execv(argv[0], words);
    need(0, "execv");
}

static void nofile(void) {
    for (int i = 3; i < 100; i++) close(i);
    need(limit(RLIMIT_NOFILE, 20, 30) == 0, "setrlimit");
    int fd, last = -1;
    while ((fd = open("/dev/null", O_RDWR)) >= 0) last = fd;
    printf("then %s, last %d\n", errno_name(errno), last);
    FAILS(dup(0), EMFILE);
    FAILS(dup2(0, 20), EBADF);
    FAILS(dup3(0, 29, O_CLOEXEC), EBADF);
    CHECK(dup2(0, 19) == 19);
    FAILS(fcntl(0, F_DUPFD, 20), EINVAL);
    FAILS(fcntl(0, F_DUPFD_CLOEXEC, 19), EMFILE);
    int ends[2];
    close(18);
    FAILS(pipe(ends), EMFILE);
    FAILS(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), EMFILE);
    CHECK(open("/dev/null", O_RDONLY) == 18);
    FAILS(eventfd(0, 0), EMFILE);
    struct pollfd fds[40];
    for (int i = 0; i < 40; i++) fds[i] = (struct pollfd){.fd = -1};
    FAILS(poll(fds, 21, 0), EINVAL);
    CHECK(poll(fds, 20, 0) == 0);
    CHECK(soften(RLIMIT_NOFILE, 30) == 0 && dup2(0, 29) == 29);
    CHECK(limit(RLIMIT_NOFILE, 5, 30) == 0);
    // Those above a lowered limit stay open.
    CHECK(write(10, "x", 1) == 1 && fcntl(29, F_GETFD) == 0);
    FAILS(dup2(0, 10), EBADF);
    FAILS(dup(0), EMFILE);
    CHECK(close(4) == 0 && dup(0) == 4);
    CHECK(limit(RLIMIT_NOFILE, 0, 30) == 0);
    FAILS(dup(0), EMFILE);
    FAILS(fcntl(0, F_DUPFD, 0), EINVAL);
}

static void memlock(void) {
    need(limit(RLIMIT_MEMLOCK, 16 * PAGE + 100, 16 * PAGE + 100) == 0, "setrlimit");
    char *area = map(64 * PAGE, RW, MAP_PRIVATE);
    CHECK(mlock(area, 16 * PAGE) == 0);
    CHECK(mlock(area + PAGE, 15 * PAGE) == 0);
    FAILS(mlock(area + 16 * PAGE, 1), ENOMEM);
    FAILS(mlock2(area + 16 * PAGE, 1, MLOCK_ONFAULT), ENOMEM);
    FAILS(map(PAGE, RW, MAP_PRIVATE | MAP_LOCKED), EAGAIN);
    FAILS(mlockall(MCL_CURRENT), ENOMEM);
    FAILS(mremap(area, 16 * PAGE, 17 * PAGE, MREMAP_MAYMOVE), EAGAIN);
    CHECK(munlock(area, 2 * PAGE) == 0);
    char *locked = map(PAGE, RW, MAP_PRIVATE | MAP_LOCKED);
    CHECK(locked != MAP_FAILED);
    FAILS(mlock(area, 2 * PAGE), ENOMEM);
    CHECK(mlockall(MCL_FUTURE) == 0);
    FAILS(map(2 * PAGE, RW, MAP_PRIVATE), EAGAIN);
    CHECK(map(PAGE, RW, MAP_PRIVATE) != MAP_FAILED);
    CHECK(munlockall() == 0);
    need(limit(RLIMIT_MEMLOCK, 0, 0) == 0, "setrlimit");
    FAILS(mlock(area, PAGE), EPERM);
    FAILS(mlockall(MCL_FUTURE), EPERM);
    FAILS(map(PAGE, RW, MAP_PRIVATE | MAP_LOCKED), EPERM);
    CHECK(munlock(area, PAGE) == 0 && munlockall() == 0);
}

static void *wait_for_end(void *lock) {
    pthread_mutex_lock(lock);
    pthread_mutex_unlock(lock);
    return NULL;
}

// Alone with its user: natively too, whose other processes count.
static void nproc(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_t threads[4];
    pthread_mutex_lock(&lock);
    need(limit(RLIMIT_NPROC, 4, 5) == 0, "setrlimit");
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, wait_for_end, &lock) == 0);
    CHECK(pthread_create(&threads[3], NULL, wait_for_end, &lock) == EAGAIN);
    need(soften(RLIMIT_NPROC, 5) == 0, "setrlimit");
    CHECK(pthread_create(&threads[3], NULL, wait_for_end, &lock) == 0);
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    CHECK(pthread_create(&threads[0], NULL, wait_for_end, &lock) == 0 && pthread_join(threads[0], NULL) == 0);
}

static void pending_signals(void) {
    need(limit(RLIMIT_SIGPENDING, 4, 5) == 0, "setrlimit");
    sigset_t all, pending;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    union sigval value = {.sival_int = 1};
    CHECK(sigqueue(getpid(), SIGRTMIN, value) == 0 && sigqueue(getpid(), SIGRTMIN, value) == 0);
    // Every signal that is pending counts, whatever it is sent to.
    CHECK(kill(getpid(), SIGUSR1) == 0);
    CHECK(syscall(SYS_tgkill, getpid(), getpid(), SIGRTMIN + 1) == 0);
    FAILS(sigqueue(getpid(), SIGRTMIN, value), EAGAIN);
    FAILS(syscall(SYS_tgkill, getpid(), getpid(), SIGRTMIN + 1), EAGAIN);
    timer_t timer;
    FAILS(timer_create(CLOCK_MONOTONIC, NULL, &timer), EAGAIN);
    // kill() is never refused, and standard signals are not either.
    CHECK(kill(getpid(), SIGRTMIN + 2) == 0 && kill(getpid(), SIGRTMIN + 2) == 0);
    CHECK(kill(getpid(), SIGUSR2) == 0 && sigpending(&pending) == 0);
    CHECK(sigismember(&pending, SIGRTMIN + 2) == 1 && sigismember(&pending, SIGUSR2) == 1);
    int sig, got = 0;
    struct timespec none = {0, 0};
    siginfo_t info;
    while ((sig = sigtimedwait(&all, &info, &none)) > 0) got++;
    printf("%d signals\n", got);
    CHECK(sigqueue(getpid(), SIGRTMIN, value) == 0);
    CHECK(timer_create(CLOCK_MONOTONIC, NULL, &timer) == 0 && timer_delete(timer) == 0);
}

static double cpu_s(void) {
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return ts.tv_sec + ts.tv_nsec * 1e-9;
}

static void *spin(void *arg) {
    for (;;) *(volatile long *)arg += 1;
    return NULL;
}

// Nothing but computing while it waits: a call would show the limit by the way.
static double until_signal(void) {
    while (!taken) {
    }
    double used = cpu_s();
    printf("%d SIGXCPU of the kernel\n", last_code == SI_KERNEL);
    fflush(stdout);
    return used;
}

static void cpu(void) {
    catch(SIGXCPU);
    need(limit(RLIMIT_CPU, 1, 100) == 0, "setrlimit");
    static long turns;
    pthread_t thread;
    need(pthread_create(&thread, NULL, spin, &turns) == 0, "pthread_create");
    double used = until_signal();
    // The process's time: that of both threads. The kernel's own sum runs ahead of the clock, by more on a busy machine.
    CHECK(used > 0.4 && used < 8);
    CHECK(soft_of(RLIMIT_CPU) >= 2);
    // Below what is used already: at once, and the limit rises until it is not any more.
    taken = 0;
    need(soften(RLIMIT_CPU, 0) == 0, "setrlimit");
    until_signal();
    while (soft_of(RLIMIT_CPU) < 2) {
    }
    // The hard limit kills, handler or not.
    need(limit(RLIMIT_CPU, 1, 1) == 0, "setrlimit");
    for (;;) {
    }
}

static void cpu_default(void) {
    need(limit(RLIMIT_CPU, 0, 100) == 0, "setrlimit");
    for (;;) {
    }
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    if (!strcmp(mode, "errors")) errors();
    else if (!strcmp(mode, "inherit")) inherit(argv);
    else if (!strcmp(mode, "inherited")) show_limits();
    else if (!strcmp(mode, "fsize")) fsize();
    else if (!strcmp(mode, "fsize-stdout")) fsize_stdout();
    else if (!strcmp(mode, "as")) address_space();
    else if (!strcmp(mode, "as-exec")) address_space_exec(argv);
    else if (!strcmp(mode, "overcommit")) overcommit();
    else if (!strcmp(mode, "data")) data();
    else if (!strcmp(mode, "stack")) stack(argv);
    else if (!strcmp(mode, "stack-over")) SHOW(stack_pages());
    else if (!strcmp(mode, "nofile")) nofile();
    else if (!strcmp(mode, "memlock")) memlock();
    else if (!strcmp(mode, "nproc")) nproc();
    else if (!strcmp(mode, "sigpending")) pending_signals();
    else if (!strcmp(mode, "cpu")) cpu();
    else if (!strcmp(mode, "cpu-default")) cpu_default();
    else return 2;
    return 0;
}
