// Tries to change what lies outside of the tree that it may change: argument 1 is a file there, argument 2 the
// number of rounds. The current directory is that tree. Every attempt that reaches the file says FAIL.
#include "hostile.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>
#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE 2
#endif

static const char *outside;
static char outside_dir[4096];
static volatile int over;
static int attempts;

// A call that must fail.
#define MUST_FAIL(call) \
    do { \
        attempts++; \
        if ((long)(call) != -1) { \
            printf("FAIL %s\n", #call); \
            fflush(stdout); \
        } \
    } while (0)

#define MUST_WORK(call) \
    do { \
        if ((long)(call) != 0) { \
            printf("FAIL %s: %s\n", #call, strerror(errno)); \
            fflush(stdout); \
        } \
    } while (0)

// Everything that changes something, by one name.
static void change(const char *path) {
    struct timeval times[2] = {{1, 0}, {1, 0}};
    char name[8192];
    MUST_FAIL(open(path, O_WRONLY));
    MUST_FAIL(open(path, O_RDWR | O_TRUNC));
    MUST_FAIL(open(path, O_RDONLY | O_TRUNC));
    MUST_FAIL(open(path, O_WRONLY | O_CREAT | O_APPEND, 0666));
    MUST_FAIL(truncate(path, 0));
    MUST_FAIL(chmod(path, 0777));
    MUST_FAIL(chown(path, getuid(), getgid()));
    MUST_FAIL(utimes(path, times));
    MUST_FAIL(linkat(AT_FDCWD, path, AT_FDCWD, "stolen", AT_SYMLINK_FOLLOW));
    snprintf(name, sizeof name, "%s/new", path);
    MUST_FAIL(mkdir(name, 0777));
}

static void change_directory(const char *dir) {
    char name[8192];
    const char *names[] = {"new", "file", ".", "..", "../x", "./file"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(name, sizeof name, "%s/%s", dir, names[i]);
        MUST_FAIL(mkdir(name, 0777));
        MUST_FAIL(symlink("x", name));
        MUST_FAIL(mknod(name, S_IFREG | 0666, 0));
        MUST_FAIL(mknod(name, S_IFIFO | 0666, 0));
        MUST_FAIL(open(name, O_WRONLY | O_CREAT | O_EXCL, 0666));
        MUST_FAIL(unlink(name));
        MUST_FAIL(rmdir(name));
        MUST_FAIL(rename(name, "here"));
        MUST_FAIL(rename("mine", name));
        MUST_FAIL(syscall(SYS_renameat2, AT_FDCWD, "mine", AT_FDCWD, name, RENAME_EXCHANGE));
        MUST_FAIL(link("mine", name));
    }
}

static void *swaps(void *arg) {
    (void)arg;
    while (!over) syscall(SYS_renameat2, AT_FDCWD, "dir", AT_FDCWD, "way", RENAME_EXCHANGE);
    return NULL;
}

// Whatever name is a link for a moment: the host looks for nothing outside.
static void in_a_race(int rounds) {
    pthread_t thread;
    pthread_create(&thread, NULL, swaps, NULL);
    for (int i = 0; i < rounds; i++) {
        int fd = open("dir/file", O_WRONLY | O_CREAT, 0644);
        if (fd >= 0 && write(fd, "x", 1) == 1) close(fd);
        if (truncate("dir/file", 3) == 0) attempts++;
        chmod("dir/file", 0640);
        mkdir("dir/made", 0755);
        rename("dir/made", "dir/moved");
        rmdir("dir/moved");
        link("mine", "dir/hard");
        unlink("dir/hard");
        symlink("x", "dir/soft");
        unlink("dir/soft");
        unlink("dir/file");
        attempts += 12;
    }
    over = 1;
    pthread_join(thread, NULL);
}

static void special_files(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "socket"};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    // Names of sockets of its own, which lead nowhere on the host.
    MUST_WORK(bind(fd, (void *)&name, sizeof name));
    MUST_WORK(listen(fd, 5));
    MUST_WORK(mknod("no-socket", S_IFSOCK | 0666, 0));
    MUST_FAIL(chmod("socket", S_ISUID | 0777));
    MUST_FAIL(mkfifo("fifo", 0666));
    MUST_FAIL(mknod("null", S_IFCHR | 0666, 0x103));
    MUST_FAIL(mknod("disk", S_IFBLK | 0666, 0x801));
    // Those that the caller has there are not opened.
    MUST_FAIL(open("its-fifo", O_WRONLY | O_NONBLOCK));
    MUST_FAIL(open("its-fifo", O_RDONLY | O_NONBLOCK));
    MUST_FAIL(open("its-fifo", O_RDWR | O_NONBLOCK));
    MUST_FAIL(truncate("its-fifo", 0));
    MUST_FAIL(link("its-fifo", "stolen"));
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strcpy(name.sun_path, "its-socket");
    MUST_FAIL(connect(fd, (void *)&name, sizeof name));
    MUST_FAIL(bind(fd, (void *)&name, sizeof name));
    MUST_FAIL(open("its-socket", O_RDWR));
    // Neither by another name nor as one of its own.
    MUST_WORK(rename("its-socket", "moved") + link("moved", "linked") + unlink("no-socket") + rename("linked", "no-socket"));
    strcpy(name.sun_path, "no-socket");
    MUST_FAIL(connect(fd, (void *)&name, sizeof name));
    MUST_WORK(unlink("no-socket") + rename("moved", "its-socket"));
}

static void descriptors(void) {
    char name[4200];
    int fd = open(outside_dir, O_PATH);
    if (fd >= 0) {
        // Only if it may be read.
        MUST_FAIL(openat(fd, "new", O_CREAT | O_WRONLY, 0666));
        MUST_FAIL(mkdirat(fd, "new", 0777));
        MUST_FAIL(unlinkat(fd, "file", 0));
        MUST_FAIL(renameat(AT_FDCWD, "mine", fd, "file"));
        MUST_FAIL(renameat(fd, "file", AT_FDCWD, "here"));
        MUST_FAIL(linkat(fd, "file", AT_FDCWD, "stolen", 0));
        MUST_FAIL(fchmodat(fd, "file", 0777, 0));
    }
    fd = open(outside, O_RDONLY);
    if (fd >= 0) {
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        MUST_FAIL(open(name, O_WRONLY));
        MUST_FAIL(open(name, O_RDONLY | O_TRUNC));
        MUST_FAIL(linkat(AT_FDCWD, name, AT_FDCWD, "stolen", AT_SYMLINK_FOLLOW));
        MUST_FAIL(linkat(fd, "", AT_FDCWD, "stolen", AT_EMPTY_PATH));
        MUST_FAIL(fchmod(fd, 0777));
        MUST_FAIL(futimens(fd, NULL));
        MUST_FAIL(ftruncate(fd, 0));
        MUST_FAIL(write(fd, "x", 1));
        MUST_FAIL(pwrite(fd, "x", 1, 0));
        MUST_FAIL(fallocate(fd, 0, 0, 10));
        if (mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED) puts("FAIL mapped");
        char *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
        if (map != MAP_FAILED) {
            MUST_FAIL(mprotect(map, 4096, PROT_READ | PROT_WRITE));
            MUST_FAIL(madvise(map, 4096, MADV_REMOVE));
        }
        MUST_FAIL(fsetxattr(fd, "user.evil", "x", 1, 0));
        MUST_FAIL(setxattr(outside, "user.evil", "x", 1, 0));
    }
    fd = open("mine", O_RDWR);
    if (fd < 0) puts("FAIL mine");
    // What is its own may be mapped, and cut off while it is.
    char *own = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (own == MAP_FAILED) puts("FAIL not mapped");
    ftruncate(fd, 4096);
    own[0] = 'x';
    ftruncate(fd, 0);
    MUST_FAIL(write(fd, own, 1));
    fd = open(".", O_TMPFILE | O_RDWR, 0600);
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    char target[PATH_MAX + 8];
    snprintf(target, sizeof target, "%s/made", outside_dir);
    MUST_FAIL(linkat(AT_FDCWD, name, AT_FDCWD, target, AT_SYMLINK_FOLLOW));
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    outside = argv[1];
    strcpy(outside_dir, outside);
    *strrchr(outside_dir, '/') = 0;
    close(open("mine", O_CREAT | O_WRONLY, 0644));
    mkdir("dir", 0755);
    mkdir("dir/below", 0755);
    // Names that lead out, of every kind.
    symlink(outside, "link");
    symlink("link", "link to link");
    symlink(outside_dir, "way");
    char *up = malloc(16384), *at = up;
    for (int i = 0; i < 40; i++) at = stpcpy(at, "../");
    strcpy(at, outside + 1);
    symlink(up, "up");
    change(outside);
    MUST_FAIL(link(outside, "stolen"));
    MUST_FAIL(link("way/file", "stolen"));
    MUST_FAIL(unlink("stolen"));
    change("link");
    change("link to link");
    change("way/file");
    change("up");
    change(up);
    change("dir/below/../../way/file");
    change_directory(outside_dir);
    change_directory("way");
    change_directory("dir/../way");
    special_files();
    descriptors();
    // Where the tree begins.
    MUST_FAIL(rename(".", "x"));
    MUST_FAIL(rename("../inside", "x"));
    MUST_FAIL(rmdir("../inside"));
    MUST_FAIL(rename("mine", "../mine"));
    MUST_FAIL(mkdir("../new", 0777));
    MUST_FAIL(link("mine", "../mine"));
    in_a_race(atoi(argv[2]));
    printf("%d attempts\n", attempts);
    return 0;
}
