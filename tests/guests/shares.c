// Descriptor tables and directories that processes and threads share: clone(2) with CLONE_FILES and CLONE_FS,
// unshare(2), close_range(2).
#include "guest.h"
#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2u
#endif

static int is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

// As fork(2), with these of the parent's shared.
static pid_t branch(unsigned long flags) {
    fflush(stdout);
    return (pid_t)syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
}

static int end_of(pid_t pid) {
    int status = -1;
    NEED(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

#define IN_CHILD(flags, ...) \
    do { \
        pid_t child_ = branch(flags); \
        NEED(child_ >= 0); \
        if (!child_) { \
            __VA_ARGS__; \
            _exit(0); \
        } \
        NEED(end_of(child_) == 0); \
    } while (0)

static void files(void) {
    int before = open("/dev/null", O_RDONLY);
    CHECK(before >= 0);
    IN_CHILD(CLONE_FILES, NEED(dup2(before, 100) == 100); NEED(close(before) == 0);
             NEED(open("/dev/zero", O_RDONLY) == before); NEED(fcntl(100, F_SETFD, FD_CLOEXEC) == 0));
    CHECK(is_open(100));
    CHECK(fcntl(100, F_GETFD) == FD_CLOEXEC);
    char byte = 1;
    CHECK(read(before, &byte, 1) == 1 && byte == 0);
    // Its directory was its own.
    char here[256], there[256];
    CHECK(getcwd(here, sizeof here) != NULL);
    IN_CHILD(CLONE_FILES, NEED(chdir("/usr") == 0); umask(0));
    CHECK(!strcmp(getcwd(there, sizeof there), here));
    IN_CHILD(0, NEED(close(100) == 0));
    CHECK(is_open(100));
    struct clone_args args = {.flags = CLONE_FILES, .exit_signal = SIGCHLD};
    fflush(stdout);
    pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
    if (!pid) _exit(close(100));
    CHECK(end_of(pid) == 0);
    CHECK(!is_open(100));
    close(before);
}

static void directories(void) {
    char there[256];
    mode_t mask = umask(022);
    IN_CHILD(CLONE_FS, NEED(chdir("/usr/share") == 0); umask(071); NEED(open("/dev/null", O_RDONLY) >= 0));
    CHECK(!strcmp(getcwd(there, sizeof there), "/usr/share"));
    CHECK(umask(022) == 071);
    CHECK(!is_open(3));
    // execve(2) keeps it.
    IN_CHILD(CLONE_FS, execl("/proc/self/exe", "shares", "chdir", NULL); NEED(0));
    CHECK(!strcmp(getcwd(there, sizeof there), "/usr/bin"));
    // A directory in memory is there as long as one of them is in it.
    char name[] = "/tmp/shares-XXXXXX";
    CHECK(mkdtemp(name) != NULL);
    IN_CHILD(CLONE_FS, NEED(chdir(name) == 0); NEED(rmdir(name) == 0));
    SHOW(open("file", O_CREAT | O_RDWR, 0600));
    struct stat st;
    CHECK(stat(".", &st) == 0 && st.st_nlink == 0);
    // Nor does one with a copy take it along.
    for (int i = 0; i < 3; i++) IN_CHILD(0, NEED(stat(".", &st) == 0));
    CHECK(stat(".", &st) == 0 && st.st_nlink == 0);
    CHECK(chdir("/usr/share") == 0);
    umask(mask);
}

// execve(2) leaves the table to those who shared it.
static void programs(void) {
    CHECK(open("/dev/null", O_RDONLY | O_CLOEXEC) == 3);
    CHECK(open("/dev/null", O_RDONLY) == 4);
    IN_CHILD(CLONE_FILES, execl("/proc/self/exe", "shares", "close", NULL); NEED(0));
    CHECK(is_open(3));
    CHECK(is_open(4));
    CHECK(!is_open(5));
    // An execve(2) that fails leaves it shared.
    IN_CHILD(CLONE_FILES, NEED(execl("/usr/share", "x", NULL) == -1); NEED(close(3) == 0));
    CHECK(!is_open(3));
    CHECK(close(4) == 0);
}

// The end of a process closes what nobody else has.
static void ends(void) {
    int data[2], go[2];
    CHECK(pipe(data) == 0 && pipe(go) == 0);
    pid_t first = branch(0);
    if (!first) {
        close(data[0]);
        close(go[1]);
        if (!branch(CLONE_FILES)) {
            char byte;
            // Its parent has ended by then.
            NEED(read(go[0], &byte, 1) == 1);
            NEED(write(data[1], "still", 5) == 5);
            _exit(0);
        }
        _exit(0);
    }
    close(data[1]);
    close(go[0]);
    CHECK(end_of(first) == 0);
    CHECK(write(go[1], "x", 1) == 1);
    char text[8] = "";
    CHECK(read(data[0], text, 8) == 5);
    CHECK(read(data[0], text, 8) == 0);
    close(data[0]);
    close(go[1]);
    // A signal ends one, and the other has its pipe.
    CHECK(pipe(data) == 0);
    pid_t killed = branch(CLONE_FILES);
    if (!killed) {
        NEED(dup2(data[1], 50) == 50);
        raise(SIGKILL);
    }
    CHECK(end_of(killed) == -SIGKILL);
    CHECK(write(50, "x", 1) == 1);
    CHECK(read(data[0], text, 1) == 1);
    close(data[0]);
    close(data[1]);
    close(50);
}

// Who holds the lock of a byte of `fd`, as another process sees it: 0 for nobody.
static int holder_seen(int fd, off_t at) {
    int report[2];
    NEED(pipe(report) == 0);
    IN_CHILD(0, struct flock lock = {.l_type = F_WRLCK, .l_start = at, .l_len = 1}; NEED(fcntl(fd, F_GETLK, &lock) == 0);
             int pid = lock.l_type == F_UNLCK ? 0 : lock.l_pid; NEED(write(report[1], &pid, sizeof pid) == sizeof pid));
    int pid = -1;
    NEED(read(report[0], &pid, sizeof pid) == sizeof pid);
    close(report[0]);
    close(report[1]);
    return pid;
}

// Locks of processes are their table's.
static void locks(void) {
    char name[] = "/tmp/shares-XXXXXX";
    int fd = mkstemp(name);
    CHECK(fd >= 0 && unlink(name) == 0);
    pid_t pid = branch(CLONE_FILES);
    if (!pid) {
        struct flock lock = {.l_type = F_WRLCK, .l_start = 0, .l_len = 10};
        NEED(fcntl(fd, F_SETLK, &lock) == 0);
        _exit(0);
    }
    CHECK(end_of(pid) == 0);
    CHECK(holder_seen(fd, 0) == pid);
    CHECK(holder_seen(fd, 10) == 0);
    struct flock mine = {.l_type = F_WRLCK, .l_start = 5, .l_len = 1};
    CHECK(fcntl(fd, F_GETLK, &mine) == 0 && mine.l_type == F_UNLCK);
    mine.l_type = F_WRLCK;
    CHECK(fcntl(fd, F_SETLK, &mine) == 0);
    // It became a part of that lock.
    CHECK(holder_seen(fd, 5) == pid);
    IN_CHILD(CLONE_FILES, struct flock none = {.l_type = F_UNLCK, .l_start = 0, .l_len = 5};
             NEED(fcntl(fd, F_SETLK, &none) == 0));
    CHECK(holder_seen(fd, 0) == 0);
    CHECK(holder_seen(fd, 6) == pid);
    // Any descriptor of the file that any of them closes takes them.
    IN_CHILD(CLONE_FILES, NEED(close(dup(fd)) == 0));
    CHECK(holder_seen(fd, 6) == 0);
    close(fd);
}

static int kcmp(pid_t one, pid_t other, int kind) { return (int)syscall(SYS_kcmp, one, other, kind, 0L, 0L); }

static void compared(void) {
    static const unsigned long flags[] = {0, CLONE_FILES, CLONE_FS, CLONE_FILES | CLONE_FS};
    for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++) {
        pid_t pid = branch(flags[i]);
        if (!pid) {
            pause();
            _exit(1);
        }
        printf("%lx: files %d fs %d\n", flags[i], !!kcmp(getpid(), pid, KCMP_FILES), !!kcmp(getpid(), pid, KCMP_FS));
        kill(pid, SIGKILL);
        CHECK(end_of(pid) == -SIGKILL);
    }
}

static void unshared(void) {
    SHOW(unshare(0));
    SHOW(unshare(1));
    SHOW(unshare(CLONE_VFORK));
    SHOW(unshare(CLONE_FILES | CLONE_FS | CLONE_SYSVSEM));
    SHOW(unshare(CLONE_THREAD | CLONE_SIGHAND | CLONE_VM));
    CHECK(open("/dev/null", O_RDONLY) == 3);
    char here[256], there[256];
    CHECK(getcwd(here, sizeof here) != NULL);
    IN_CHILD(CLONE_FILES | CLONE_FS, NEED(unshare(CLONE_FILES) == 0); NEED(close(3) == 0); NEED(chdir("/usr") == 0));
    CHECK(is_open(3));
    CHECK(!strcmp(getcwd(there, sizeof there), "/usr"));
    IN_CHILD(CLONE_FILES | CLONE_FS, NEED(unshare(CLONE_FS) == 0); NEED(close(3) == 0); NEED(chdir(here) == 0));
    CHECK(!is_open(3));
    CHECK(!strcmp(getcwd(there, sizeof there), "/usr"));
    CHECK(open("/dev/null", O_RDONLY) == 3);
    IN_CHILD(CLONE_FILES, NEED(syscall(SYS_close_range, 3u, 3u, CLOSE_RANGE_UNSHARE) == 0); NEED(!is_open(3)));
    CHECK(is_open(3));
    IN_CHILD(CLONE_FILES, NEED(syscall(SYS_close_range, 3u, 3u, 0) == 0));
    CHECK(!is_open(3));
}

static void *thread(void *at) {
    char there[256];
    SHOW(unshare(CLONE_THREAD));
    SHOW(unshare(CLONE_VM));
    NEED(unshare(CLONE_FS) == 0);
    NEED(chdir("/usr/share") == 0);
    NEED(unshare(CLONE_FILES) == 0);
    NEED(dup2(0, 60) == 60);
    NEED(!strcmp(getcwd(there, sizeof there), "/usr/share"));
    snprintf(there, sizeof there, "/proc/self/task/%d/fd/60", (int)syscall(SYS_gettid));
    NEED(access(there, F_OK) == 0);
    NEED(access("/proc/self/fd/60", F_OK) == -1);
    // A child has what this thread has.
    IN_CHILD(0, NEED(is_open(60)));
    return at;
}

static volatile int raw_done;
static int raw_thread(void *unused) {
    (void)unused;
    // The C library does not know of this thread.
    syscall(SYS_dup3, 0, 61, 0);
    syscall(SYS_chdir, "/usr/bin");
    __atomic_store_n(&raw_done, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_exit, 0);
    return 0;
}

static void threads(void) {
    char there[256];
    CHECK(chdir("/usr") == 0);
    pthread_t other;
    NEED(pthread_create(&other, NULL, thread, NULL) == 0);
    CHECK(pthread_join(other, NULL) == 0);
    CHECK(!is_open(60));
    CHECK(!strcmp(getcwd(there, sizeof there), "/usr"));
    static char stack[1 << 16] __attribute__((aligned(16)));
    CHECK(clone(raw_thread, stack + sizeof stack, CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, NULL) > 0);
    while (!__atomic_load_n(&raw_done, __ATOMIC_SEQ_CST)) sched_yield();
    CHECK(!is_open(61));
    CHECK(!strcmp(getcwd(there, sizeof there), "/usr"));
}

// Nothing is left of those that have gone: the last of many gets the lowest numbers.
static void many(void) {
    for (int i = 0; i < 40; i++) {
        pid_t outer = branch(i % 2 ? CLONE_FILES : CLONE_FS);
        if (!outer) {
            int made = open("/dev/null", O_RDONLY);
            pid_t inner = branch(i % 3 ? CLONE_FILES | CLONE_FS : 0);
            if (!inner) {
                if (i % 5 == 0) unshare(CLONE_FILES | CLONE_FS);
                close(made);
                _exit(0);
            }
            waitpid(inner, NULL, 0);
            close(made);
            _exit(0);
        }
        NEED(end_of(outer) == 0);
    }
    for (int fd = 3; fd < 200; fd++) NEED(!is_open(fd));
    CHECK(open("/dev/null", O_RDONLY) == 3);
    CHECK(close(3) == 0);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "chdir")) return chdir("/usr/bin");
    if (argc > 1 && !strcmp(argv[1], "close"))
        return !(!is_open(3) && is_open(4) && !close(4) && dup2(0, 4) == 4 && dup2(0, 5) == 5 && !close(4));
    syscall(SYS_close_range, 3u, ~0u, 0);
    files();
    directories();
    programs();
    ends();
    locks();
    compared();
    unshared();
    threads();
    many();
    return 0;
}
