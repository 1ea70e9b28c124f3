// Files of a tree that may be changed: hostfiles mappings|locks|unnamed|attributes|rights. All of it happens in the current
// directory, and stays.
#include "guest.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#define PAGE 4096L
#define RW (PROT_READ | PROT_WRITE)

static sigjmp_buf back;

static void on_bus(int signo, siginfo_t *info, void *context) {
    (void)signo, (void)context;
    siglongjmp(back, info->si_code);
}

// The code of the SIGBUS that touching a byte gives; 0 for none.
static int touch(volatile char *at, int writes) {
    int code = sigsetjmp(back, 1);
    if (code) return code;
    if (writes) *at = 1;
    else (void)*at;
    return 0;
}

static int child_says(int (*says)(void *), void *what) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) _exit(says(what));
    int status;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
    return WEXITSTATUS(status);
}

static int writes_there(void *at) {
    return strcpy(at, "by a child") == at && msync(at, PAGE, MS_SYNC) == 0 ? 7 : 8;
}

static int dies_locked(void *mutex) {
    return pthread_mutex_lock(mutex);
}

static void mappings(void) {
    section("a mapping changes its file");
    struct sigaction bus = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
    NEED(sigaction(SIGBUS, &bus, NULL) == 0);
    int fd = open("mapped", O_CREAT | O_RDWR, 0644);
    NEED(ftruncate(fd, 5 * PAGE) == 0);
    char *m = mmap(NULL, 5 * PAGE, RW, MAP_SHARED, fd, 0);
    need(m != MAP_FAILED, "map");
    strcpy(m, "by mapping");
    m[4 * PAGE + 5] = 'e';
    char buf[64] = {0};
    SHOW(pread(fd, buf, 20, 0));
    puts(buf);
    SHOW(pread(fd, buf, 1, 4 * PAGE + 5));
    CHECK(buf[0] == 'e');
    SHOW(pwrite(fd, "by call", 8, 0));
    puts(m);
    SHOW(msync(m, 5 * PAGE, MS_SYNC));
    SHOW(msync(m, PAGE, MS_ASYNC));
    FAILS(msync(m + 1, PAGE, MS_SYNC), EINVAL);

    section("rights");
    int ro = open("mapped", O_RDONLY), wo = open("mapped", O_WRONLY);
    FAILS((long)mmap(NULL, PAGE, RW, MAP_SHARED, ro, 0), EACCES);
    FAILS((long)mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, wo, 0), EACCES);
    char *r = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ro, 0);
    need(r != MAP_FAILED, "map to read");
    strcpy(m, "seen by both");
    CHECK(strcmp(r, "seen by both") == 0);
    FAILS(mprotect(r, PAGE, RW), EACCES);
    char *later = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, PAGE);
    need(later != MAP_FAILED, "map once more");
    SHOW(mprotect(later, PAGE, RW));
    later[0] = 'L';
    CHECK(m[PAGE] == 'L');
    char *p = mmap(NULL, PAGE, RW, MAP_PRIVATE, fd, 0);
    need(p != MAP_FAILED, "map privately");
    p[0] = 'P';
    CHECK(m[0] == 's');

    section("calls on it");
    int pipes[2];
    NEED(pipe(pipes) == 0);
    SHOW(write(pipes[1], m, 12));
    SHOW(read(pipes[0], m + 2 * PAGE, 12));
    CHECK(strcmp(m + 2 * PAGE, "seen by both") == 0);
    SHOW(pread(fd, m + 3 * PAGE - 6, 12, 0));
    CHECK(memcmp(m + 3 * PAGE - 6, "seen by both", 12) == 0);

    section("processes");
    SHOW(child_says(writes_there, m));
    puts(m);
    pthread_mutexattr_t kind;
    NEED(pthread_mutexattr_init(&kind) == 0);
    NEED(pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED) == 0);
    NEED(pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST) == 0);
    pthread_mutex_t *mutex = (pthread_mutex_t *)(m + 3 * PAGE + 64);
    NEED(pthread_mutex_init(mutex, &kind) == 0);
    SHOW(child_says(dies_locked, mutex));
    CHECK(pthread_mutex_lock(mutex) == EOWNERDEAD);
    CHECK(pthread_mutex_consistent(mutex) == 0);
    CHECK(pthread_mutex_unlock(mutex) == 0);

    section("it grows, moves and shrinks");
    SHOW(ftruncate(fd, 8 * PAGE));
    m = mremap(m, 5 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
    need(m != MAP_FAILED, "mremap");
    puts(m);
    m[7 * PAGE] = '7';
    SHOW(pread(fd, buf, 1, 7 * PAGE));
    CHECK(buf[0] == '7');
    SHOW(ftruncate(fd, PAGE));
    SHOW(touch(m, 1));
    CHECK(touch(m + 2 * PAGE, 0) == BUS_ADRERR);
    CHECK(touch(m + 2 * PAGE, 1) == BUS_ADRERR);
    FAILS(pread(fd, m + 5 * PAGE, 10, 0), EFAULT);
    SHOW(ftruncate(fd, 8 * PAGE));
    CHECK(m[7 * PAGE] == 0);
    SHOW(touch(m + 7 * PAGE, 1));
    strcpy(m + 4 * PAGE, "gone");
    SHOW(madvise(m + 4 * PAGE, PAGE, MADV_REMOVE));
    CHECK(m[4 * PAGE] == 0);
    strcpy(m, "kept");
    SHOW(madvise(m, PAGE, MADV_DONTNEED));
    puts(m);
    SHOW(munmap(m, 3 * PAGE));
    m[5 * PAGE] = '5';
    SHOW(munmap(m + 3 * PAGE, 5 * PAGE));
    SHOW(pread(ro, buf, 5, 0));
    puts(buf);
    SHOW(pread(ro, buf, 1, 5 * PAGE));
    CHECK(buf[0] == '5');
    for (int n = 0; n < 300; n++) {
        char *each = mmap(NULL, 2 * PAGE, RW, MAP_SHARED, fd, PAGE * (n % 4));
        need(each != MAP_FAILED, "map again");
        each[0] = n;
        NEED(munmap(each, 2 * PAGE) == 0);
    }
}

static struct flock range(int type, long start, long len) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    return lock;
}

static int tries(void *wanted) {
    int fd = open("lock", O_RDWR);
    if (fcntl(fd, F_SETLK, wanted) == 0) return 0;
    return errno == EAGAIN || errno == EACCES ? 1 : 2;
}

static int ask(int type, long start, long len) {
    struct flock wanted = range(type, start, len);
    return child_says(tries, &wanted);
}

static void locks(void) {
    section("records");
    int fd = open("lock", O_CREAT | O_RDWR, 0644), ro = open("lock", O_RDONLY), wo = open("lock", O_WRONLY);
    NEED(ftruncate(fd, 100) == 0);
    struct flock lock = range(F_RDLCK, 0, 50);
    SHOW(fcntl(ro, F_SETLK, &lock));
    lock = range(F_WRLCK, 60, 10);
    SHOW(fcntl(wo, F_SETLK, &lock));
    FAILS(fcntl(ro, F_SETLK, &lock), EBADF);
    lock = range(F_RDLCK, 0, 1);
    FAILS(fcntl(wo, F_SETLK, &lock), EBADF);
    SHOW(ask(F_RDLCK, 0, 50));
    SHOW(ask(F_WRLCK, 0, 50));
    SHOW(ask(F_RDLCK, 60, 1));
    SHOW(ask(F_WRLCK, 50, 10));
    lock = range(F_WRLCK, 10, 55);
    SHOW(fcntl(fd, F_SETLK, &lock));
    SHOW(ask(F_RDLCK, 5, 10));
    lock = range(F_UNLCK, 20, 10);
    SHOW(fcntl(fd, F_SETLK, &lock));
    SHOW(ask(F_WRLCK, 20, 10));
    SHOW(ask(F_WRLCK, 19, 10));
    lock = range(F_RDLCK, 10, 10);
    SHOW(fcntl(fd, F_SETLK, &lock));
    SHOW(ask(F_RDLCK, 10, 10));
    // Closing any descriptor of the file gives all of them up.
    SHOW(close(wo));
    SHOW(ask(F_WRLCK, 0, 0));

    section("of descriptions");
    int other = open("lock", O_RDWR);
    lock = range(F_WRLCK, 0, 10);
    SHOW(fcntl(fd, F_OFD_SETLK, &lock));
    FAILS(fcntl(other, F_OFD_SETLK, &lock), EAGAIN);
    FAILS(fcntl(other, F_SETLK, &lock), EAGAIN);
    struct flock met = range(F_RDLCK, 5, 0);
    SHOW(fcntl(other, F_OFD_GETLK, &met));
    printf("%d %ld %ld %d\n", met.l_type == F_WRLCK, (long)met.l_start, (long)met.l_len, met.l_pid);
    met = range(F_WRLCK, 50, 10);
    SHOW(fcntl(other, F_OFD_GETLK, &met));
    CHECK(met.l_type == F_UNLCK);
    SHOW(close(ro));
    SHOW(ask(F_RDLCK, 0, 10));
    SHOW(close(fd));
    SHOW(ask(F_WRLCK, 0, 10));

    section("of whole files");
    int one = open("lock", O_RDONLY), two = open("lock", O_RDONLY), dir = open(".", O_RDONLY);
    SHOW(flock(one, LOCK_SH | LOCK_NB));
    SHOW(flock(two, LOCK_SH | LOCK_NB));
    FAILS(flock(one, LOCK_EX | LOCK_NB), EAGAIN);
    SHOW(flock(two, LOCK_UN));
    SHOW(flock(one, LOCK_EX | LOCK_NB));
    FAILS(flock(two, LOCK_SH | LOCK_NB), EAGAIN);
    SHOW(ask(F_WRLCK, 0, 0));
    SHOW(flock(dir, LOCK_EX | LOCK_NB));
    SHOW(close(one));
    SHOW(flock(two, LOCK_EX));

    section("waiting");
    lock = range(F_WRLCK, 0, 10);
    SHOW(fcntl(other, F_SETLK, &lock));
    fflush(stdout);
    int pipes[2];
    NEED(pipe(pipes) == 0);
    pid_t child = fork();
    if (child == 0) {
        int own = open("lock", O_RDWR);
        NEED(write(pipes[1], "x", 1) == 1);
        NEED(fcntl(own, F_SETLKW, &lock) == 0);
        NEED(flock(own, LOCK_SH) == 0);
        _exit(3);
    }
    char byte;
    NEED(read(pipes[0], &byte, 1) == 1);
    pause_ms(20);
    lock = range(F_UNLCK, 0, 0);
    SHOW(fcntl(other, F_SETLK, &lock));
    pause_ms(20);
    SHOW(flock(two, LOCK_UN));
    int status;
    NEED(waitpid(child, &status, 0) == child);
    printf("%d\n", WEXITSTATUS(status));
}

static void unnamed(void) {
    section("files without a name");
    umask(022);
    int fd = open(".", O_TMPFILE | O_RDWR, 0666);
    need(fd >= 0, "O_TMPFILE");
    struct stat st;
    NEED(fstat(fd, &st) == 0);
    printf("%o, %ld links\n", st.st_mode, (long)st.st_nlink);
    SHOW(write(fd, "content", 7));
    char own[64], buf[64] = {0};
    snprintf(own, sizeof own, "/proc/self/fd/%d", fd);
    int again = open(own, O_RDONLY), more = open(own, O_WRONLY | O_APPEND);
    SHOW(read(again, buf, 64));
    puts(buf);
    SHOW(write(more, "!", 1));
    SHOW(pread(fd, buf, 64, 0));
    puts(buf);
    FAILS(linkat(AT_FDCWD, own, AT_FDCWD, "no/where", AT_SYMLINK_FOLLOW), ENOENT);
    SHOW(linkat(AT_FDCWD, own, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
    FAILS(linkat(AT_FDCWD, own, AT_FDCWD, "named", AT_SYMLINK_FOLLOW), EEXIST);
    NEED(stat("named", &st) == 0);
    printf("%o, %ld links, %ld bytes\n", st.st_mode, (long)st.st_nlink, (long)st.st_size);
    SHOW(write(fd, "?", 1));
    NEED(mkdir("below", 0755) == 0);
    int below = open("below", O_TMPFILE | O_WRONLY | O_EXCL, 0600);
    need(below >= 0, "O_TMPFILE and O_EXCL");
    snprintf(own, sizeof own, "/proc/self/fd/%d", below);
    FAILS(linkat(AT_FDCWD, own, AT_FDCWD, "never", AT_SYMLINK_FOLLOW), ENOENT);
    int gone = open("gone", O_CREAT | O_RDWR, 0600);
    SHOW(unlink("gone"));
    snprintf(own, sizeof own, "/proc/self/fd/%d", gone);
    FAILS(linkat(AT_FDCWD, own, AT_FDCWD, "gone", AT_SYMLINK_FOLLOW), ENOENT);
    FAILS(open(".", O_TMPFILE | O_RDONLY, 0600), EINVAL);
    FAILS(open("named", O_TMPFILE | O_RDWR, 0600), ENOTDIR);
    FAILS(open("nothing", O_TMPFILE | O_RDWR, 0600), ENOENT);
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void list(const char *path) {
    char names[4096], *each[64];
    ssize_t len = listxattr(path, names, sizeof names);
    int n = 0;
    for (char *at = names; at < names + len && n < 64; at += strlen(at) + 1)
        if (strncmp(at, "user.", 5) == 0) each[n++] = at;
    qsort(each, n, sizeof *each, by_name);
    printf("%s:", path);
    for (int i = 0; i < n; i++) {
        char value[256];
        ssize_t size = getxattr(path, each[i], value, sizeof value);
        printf(" %s=%.*s", each[i], (int)size, value);
    }
    puts("");
}

static void attributes(void) {
    section("attributes");
    char buf[64] = {0}, big[70000] = {0}, name[300];
    int fd = open("a", O_CREAT | O_RDWR, 0644);
    NEED(mkdir("d", 0755) == 0 && symlink("a", "l") == 0);
    SHOW(setxattr("a", "user.one", "first", 5, 0));
    SHOW(setxattr("a", "user.two", "", 0, XATTR_CREATE));
    SHOW(fsetxattr(fd, "user.three", "3", 1, 0));
    SHOW(setxattr("l", "user.by link", "yes", 3, 0));
    SHOW(setxattr("d", "user.dir", "directory", 9, 0));
    list("a");
    list("d");
    SHOW(getxattr("a", "user.one", NULL, 0));
    FAILS(getxattr("a", "user.one", buf, 2), ERANGE);
    SHOW(fgetxattr(fd, "user.one", buf, 64));
    puts(buf);
    SHOW(getxattr("a", "user.two", buf, 64));
    FAILS(getxattr("a", "user.none", buf, 64), ENODATA);
    FAILS(setxattr("a", "user.one", "x", 1, XATTR_CREATE), EEXIST);
    FAILS(setxattr("a", "user.none", "x", 1, XATTR_REPLACE), ENODATA);
    SHOW(setxattr("a", "user.one", "second", 6, XATTR_REPLACE));
    FAILS(setxattr("a", "user.one", "x", 1, 8), EINVAL);
    FAILS(setxattr("a", "user.", "x", 1, 0), EINVAL);
    FAILS(setxattr("a", "other.x", "x", 1, 0), EOPNOTSUPP);
    FAILS(setxattr("a", "trusted.x", "x", 1, 0), EPERM);
    FAILS(setxattr("a", "user.big", big, sizeof big, 0), E2BIG);
    FAILS(setxattr("no", "user.x", "x", 1, 0), ENOENT);
    memset(name, 'n', sizeof name);
    memcpy(name, "user.", 5);
    name[256] = 0;
    FAILS(setxattr("a", name, "x", 1, 0), ERANGE);
    name[255] = 0;
    SHOW(setxattr("a", name, "long", 4, 0));
    SHOW(removexattr("a", name));
    FAILS(lsetxattr("l", "user.x", "x", 1, 0), EPERM);
    FAILS(lgetxattr("l", "user.x", buf, 64), ENODATA);
    SHOW(removexattr("a", "user.two"));
    FAILS(removexattr("a", "user.two"), ENODATA);
    SHOW(fremovexattr(fd, "user.three"));
    FAILS(listxattr("a", buf, 3), ERANGE);
    FAILS(fgetxattr(open("a", O_PATH), "user.one", buf, 64), EBADF);
    FAILS(fsetxattr(99, "user.one", "x", 1, 0), EBADF);
    section("names");
    NEED(link("a", "b") == 0 && rename("d", "e") == 0 && rename("a", "c") == 0);
    list("b");
    list("c");
    list("e");
}

// In memory root is not bound by these.
static void rights(void) {
    section("rights of attributes");
    char buf[64] = {0};
    NEED(close(open("c", O_CREAT | O_WRONLY, 0444)) == 0);
    FAILS(setxattr("c", "user.one", "x", 1, 0), EACCES);
    NEED(chmod("c", 0200) == 0);
    FAILS(getxattr("c", "user.one", buf, 64), EACCES);
    SHOW(setxattr("c", "user.one", "third", 5, 0));
    NEED(chmod("c", 0644) == 0);
    list("c");
    int gone = open("gone", O_CREAT | O_RDWR, 0600);
    NEED(unlink("gone") == 0);
    SHOW(fsetxattr(gone, "user.x", "still", 5, 0));
    SHOW(fgetxattr(gone, "user.x", buf, 64));
}

// A word of a file, which one process changes all the time and another one uses as a futex.
static uint32_t *word_of(const char *path) {
    int fd = open(path, O_RDWR);
    uint32_t *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    NEED(fd >= 0 && word != MAP_FAILED);
    return word;
}

static void churn(const char *path) {
    volatile uint32_t *word = word_of(path);
    for (;;) *word += 0x100;
}

static void count(const char *path) {
    uint32_t *word = word_of(path), own = 0;
    for (;;)
        syscall(SYS_futex, &own, FUTEX_WAKE_OP, 1, 1, word, FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_EQ, 0));
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "churn") == 0) churn(argv[2]);
    if (argc == 3 && strcmp(argv[1], "count") == 0) {
        count(argv[2]);
        return 0;
    }
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "mappings") == 0) mappings();
        else if (strcmp(argv[i], "locks") == 0) locks();
        else if (strcmp(argv[i], "unnamed") == 0) unnamed();
        else if (strcmp(argv[i], "attributes") == 0) attributes();
        else if (strcmp(argv[i], "rights") == 0) rights();
    }
    return 0;
}
