// Reading files: files DIR, where DIR holds what the harness put there:
// text (30 bytes), empty, sub/inner, link -> text, dangling -> nowhere,
// loop -> loop, dirlink -> sub, script (mode 755).
#include "guest.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>

static int by_string(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

// Looks at a name in an open directory, opens it and asks again, as what reads trees does.
static void looked_at(void) {
    struct stat look, opened;
    int dir = open(".", O_RDONLY | O_DIRECTORY);
    need(dir >= 0, "open .");
    for (int i = 0; i < 100; i++) {
        const char *name = i % 2 ? "text" : "script";
        need(fstatat(dir, name, &look, AT_SYMLINK_NOFOLLOW) == 0, "look");
        int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW);
        need(fd > dir && fstat(fd, &opened) == 0, "open");
        CHECK(look.st_ino == opened.st_ino && look.st_size == opened.st_size);
        CHECK(lseek(fd, 0, SEEK_END) == look.st_size);
        need(close(fd) == 0, "close");
        FAILS(fstat(fd, &opened), EBADF);
    }
    // A look is of no use for another name, for writing, or as a directory.
    need(fstatat(dir, "text", &look, AT_SYMLINK_NOFOLLOW) == 0, "look");
    FAILS(openat(dir, "missing", O_RDONLY), ENOENT);
    need(fstatat(dir, "text", &look, AT_SYMLINK_NOFOLLOW) == 0, "look");
    FAILS(openat(dir, "text", O_RDONLY | O_DIRECTORY), ENOTDIR);
    need(fstatat(dir, "text", &look, AT_SYMLINK_NOFOLLOW) == 0, "look");
    FAILS(openat(dir, "text", O_RDONLY | O_CREAT | O_EXCL, 0600), EEXIST);
    need(fstatat(dir, "link", &look, AT_SYMLINK_NOFOLLOW) == 0, "look");
    FAILS(openat(dir, "link", O_RDONLY | O_NOFOLLOW), ELOOP);
    need(fstatat(dir, "sub", &look, AT_SYMLINK_NOFOLLOW) == 0, "look");
    int sub = openat(dir, "sub", O_RDONLY);
    need(sub > dir && fstat(sub, &opened) == 0, "open sub");
    CHECK(S_ISDIR(opened.st_mode));
    close(sub);
    close(dir);
}

static void list(const char *path) {
    DIR *d = opendir(path);
    need(d != NULL, "opendir");
    char *names[64];
    int n = 0;
    struct dirent *e;
    while ((e = readdir(d)) && n < 64) {
        char line[300];
        snprintf(line, sizeof line, "%s type %d", e->d_name, e->d_type);
        names[n++] = strdup(line);
    }
    qsort(names, (size_t)n, sizeof *names, by_string);
    for (int i = 0; i < n; i++) printf("entry %s\n", names[i]);
    rewinddir(d);
    int again = 0;
    while (readdir(d)) again++;
    CHECK(again == n);
    CHECK(readdir(d) == NULL && errno == 0);

    // A position taken in the middle leads back to the same entry.
    rewinddir(d);
    if (n > 2 && readdir(d)) {
        long at = telldir(d);
        char want[256], got[256];
        strcpy(want, readdir(d)->d_name);
        while (readdir(d)) {
        }
        seekdir(d, at);
        strcpy(got, readdir(d)->d_name);
        CHECK(strcmp(want, got) == 0);
    }
    closedir(d);
}

int main(int argc, char **argv) {
    need(argc == 2 && chdir(argv[1]) == 0, "chdir DIR");
    char buf[256];
    struct stat st;

    section("read");
    int fd = open("text", O_RDONLY);
    need(fd >= 0, "open text");
    memset(buf, 0, sizeof buf);
    SHOW(read(fd, buf, 5));
    printf("<%s>\n", buf);
    SHOW(lseek(fd, 0, SEEK_CUR));
    SHOW(lseek(fd, -3, SEEK_END));
    SHOW(read(fd, buf, 100));
    SHOW(read(fd, buf, 100));
    SHOW(lseek(fd, 1000, SEEK_SET));
    SHOW(read(fd, buf, 100));
    FAILS(lseek(fd, -1, SEEK_SET), EINVAL);
    FAILS(lseek(fd, 0, 99), EINVAL);
    SHOW(lseek(fd, 3, SEEK_DATA));
    SHOW(lseek(fd, 3, SEEK_HOLE));
    FAILS(lseek(fd, 1000, SEEK_DATA), ENXIO);
    SHOW(lseek(fd, 7, SEEK_SET));
    memset(buf, 0, sizeof buf);
    SHOW(pread(fd, buf, 4, 10));
    printf("<%s>\n", buf);
    SHOW(pread(fd, buf, 4, 1000));
    FAILS(pread(fd, buf, 4, -1), EINVAL);
    SHOW(lseek(fd, 0, SEEK_CUR));
    FAILS(write(fd, "x", 1), EBADF);
    FAILS(read(fd, (void *)8, 4), EFAULT);
    FAILS(read(99, buf, 4), EBADF);
    FAILS(ftruncate(fd, 0), EINVAL);

    section("vectors");
    char a[4] = "", b[9] = "", c[3] = "";
    struct iovec iov[3] = {{a, 3}, {b, 8}, {c, 2}};
    lseek(fd, 0, SEEK_SET);
    SHOW(readv(fd, iov, 3));
    printf("<%s> <%s> <%s>\n", a, b, c);
    SHOW(preadv(fd, iov, 2, 5));
    printf("<%s> <%s>\n", a, b);
    FAILS(readv(fd, iov, -1), EINVAL);
    FAILS(readv(fd, iov, 1025), EINVAL);
    SHOW(readv(fd, iov, 0));

    section("descriptors");
    lseek(fd, 4, SEEK_SET);
    int dup1 = dup(fd);
    CHECK(dup1 > fd);
    SHOW(lseek(dup1, 0, SEEK_CUR));
    SHOW(lseek(dup1, 9, SEEK_SET));
    SHOW(lseek(fd, 0, SEEK_CUR));
    SHOW(dup2(fd, 40));
    SHOW(dup3(fd, 41, O_CLOEXEC));
    SHOW(fcntl(41, F_GETFD));
    SHOW(fcntl(40, F_GETFD));
    FAILS(dup3(fd, fd, 0), EINVAL);
    SHOW(dup2(fd, fd) == fd);
    FAILS(dup2(99, 3), EBADF);
    FAILS(dup2(fd, -1), EBADF);
    SHOW(fcntl(fd, F_DUPFD, 50));
    SHOW(fcntl(fd, F_DUPFD_CLOEXEC, 50));
    SHOW(fcntl(fd, F_GETFL) & O_ACCMODE);
    SHOW(fcntl(40, F_SETFD, FD_CLOEXEC));
    SHOW(fcntl(40, F_GETFD));
    SHOW(close(40));
    FAILS(close(40), EBADF);
    FAILS(fcntl(40, F_GETFD), EBADF);
    int fresh = open("text", O_RDONLY);
    SHOW(lseek(fresh, 0, SEEK_CUR));
    CHECK(fresh == dup1 + 1);
    close(dup1);
    SHOW(open("text", O_RDONLY) == dup1);

    section("stat");
    need(stat("text", &st) == 0, "stat text");
    printf("text mode %o size %ld nlink %ld blksize>0 %d\n", st.st_mode, (long)st.st_size, (long)st.st_nlink,
           st.st_blksize > 0);
    CHECK(st.st_uid == getuid());
    struct stat st2;
    CHECK(fstat(fd, &st2) == 0 && st2.st_ino == st.st_ino && st2.st_dev == st.st_dev);
    CHECK(st2.st_mtim.tv_sec == st.st_mtim.tv_sec && st2.st_mtim.tv_nsec == st.st_mtim.tv_nsec);
    printf("mtime %ld\n", (long)st.st_mtim.tv_sec);
    need(stat("sub", &st) == 0, "stat sub");
    printf("sub mode %o\n", st.st_mode);
    need(lstat("link", &st) == 0, "lstat link");
    printf("link mode %o size %ld\n", st.st_mode, (long)st.st_size);
    need(stat("link", &st) == 0, "stat link");
    printf("link target mode %o size %ld\n", st.st_mode, (long)st.st_size);
    SHOW(fstatat(AT_FDCWD, "link", &st, AT_SYMLINK_NOFOLLOW));
    SHOW(S_ISLNK(st.st_mode));
    SHOW(fstatat(fd, "", &st, AT_EMPTY_PATH));
    SHOW(st.st_size);
    // The C library makes another call of these.
    FAILS(syscall(SYS_newfstatat, 1 << 20, "", &st, AT_EMPTY_PATH), EBADF);
    FAILS(syscall(SYS_newfstatat, -1, "", &st, AT_EMPTY_PATH), EBADF);
    FAILS(syscall(SYS_newfstatat, fd, (char *)8, &st, AT_EMPTY_PATH), EFAULT);
    FAILS(syscall(SYS_newfstatat, 1 << 20, (char *)8, &st, AT_EMPTY_PATH), EFAULT);
    FAILS(syscall(SYS_newfstatat, fd, "", (struct stat *)8, AT_EMPTY_PATH), EFAULT);
    SHOW(syscall(SYS_newfstatat, AT_FDCWD, "", &st, AT_EMPTY_PATH));
    SHOW(S_ISDIR(st.st_mode));
    FAILS(fstatat(AT_FDCWD, "text", &st, 0x10000000), EINVAL);
    looked_at();
    FAILS(stat("missing", &st), ENOENT);
    FAILS(stat("", &st), ENOENT);
    FAILS(stat("dangling", &st), ENOENT);
    FAILS(stat("loop", &st), ELOOP);
    FAILS(stat("text/x", &st), ENOTDIR);
    FAILS(stat("text/", &st), ENOTDIR);
    FAILS(stat("missing/x", &st), ENOENT);
    FAILS(stat((char *)8, &st), EFAULT);
    FAILS(fstat(99, &st), EBADF);
    struct statx sx;
    SHOW(statx(AT_FDCWD, "text", 0, STATX_BASIC_STATS, &sx));
    printf("statx size %llu mode %o\n", (unsigned long long)sx.stx_size, sx.stx_mode);
    FAILS(statx(AT_FDCWD, "missing", 0, STATX_BASIC_STATS, &sx), ENOENT);
    struct statfs sf;
    SHOW(statfs(".", &sf));
    CHECK(sf.f_bsize > 0 && sf.f_namelen >= 255);

    section("long names");
    static char longname[5000];
    memset(longname, 'a', 300);
    FAILS(open(longname, O_RDONLY), ENAMETOOLONG);
    memset(longname, '/', 4999);
    FAILS(open(longname, O_RDONLY), ENAMETOOLONG);
    memset(longname, 'a', 255);
    longname[255] = 0;
    FAILS(open(longname, O_RDONLY), ENOENT);

    section("open");
    FAILS(open("missing", O_RDONLY), ENOENT);
    FAILS(open("sub", O_WRONLY), EISDIR);
    FAILS(open("sub", O_RDWR), EISDIR);
    FAILS(open("text", O_RDONLY | O_DIRECTORY), ENOTDIR);
    FAILS(open("link", O_RDONLY | O_NOFOLLOW), ELOOP);
    FAILS(open("loop", O_RDONLY), ELOOP);
    FAILS(open("text/", O_RDONLY), ENOTDIR);
    FAILS(open("text", O_RDONLY | O_CREAT | O_EXCL, 0600), EEXIST);
    FAILS(open("link", O_RDONLY | O_CREAT | O_EXCL, 0600), EEXIST);
    int dir = open("sub", O_RDONLY | O_DIRECTORY);
    CHECK(dir >= 0);
    FAILS(read(dir, buf, 10), EISDIR);
    int inner = openat(dir, "inner", O_RDONLY);
    CHECK(inner >= 0);
    memset(buf, 0, sizeof buf);
    SHOW(read(inner, buf, 100));
    printf("<%s>\n", buf);
    FAILS(openat(fd, "inner", O_RDONLY), ENOTDIR);
    FAILS(openat(99, "inner", O_RDONLY), EBADF);
    int up = openat(dir, "../text", O_RDONLY);
    CHECK(up >= 0);
    int through = open("dirlink/inner", O_RDONLY);
    CHECK(through >= 0);
    int dots = open("./sub/.././sub//inner", O_RDONLY);
    CHECK(dots >= 0);
    int path = open("text", O_PATH);
    CHECK(path >= 0);
    FAILS(read(path, buf, 1), EBADF);
    SHOW(fstat(path, &st));
    SHOW(close(path));

    section("directories");
    list(".");
    list("sub");
    SHOW(lseek(dir, 0, SEEK_SET));
    CHECK(syscall(SYS_getdents64, dir, buf, sizeof buf) > 0);
    CHECK(syscall(SYS_getdents64, dir, buf, sizeof buf) == 0);
    lseek(dir, 0, SEEK_SET);
    FAILS(syscall(SYS_getdents64, dir, buf, 4), EINVAL);
    FAILS(syscall(SYS_getdents64, fd, buf, sizeof buf), ENOTDIR);
    CHECK(opendir("missing") == NULL && errno == ENOENT);
    CHECK(opendir("text") == NULL && errno == ENOTDIR);

    section("links");
    memset(buf, 0, sizeof buf);
    SHOW(readlink("link", buf, sizeof buf));
    printf("<%s>\n", buf);
    memset(buf, 0, sizeof buf);
    SHOW(readlink("dangling", buf, 3));
    printf("<%s>\n", buf);
    FAILS(readlink("text", buf, sizeof buf), EINVAL);
    FAILS(readlink("missing", buf, sizeof buf), ENOENT);
    FAILS(readlink("link", buf, 0), EINVAL);

    section("access");
    SHOW(access("text", R_OK));
    SHOW(access("text", F_OK));
    FAILS(access("text", X_OK), EACCES);
    SHOW(access("script", X_OK));
    FAILS(access("missing", F_OK), ENOENT);
    FAILS(access("text", 64), EINVAL);
    SHOW(faccessat(AT_FDCWD, "text", R_OK, AT_EACCESS));

    section("working directory");
    char cwd[4096], cwd2[4096];
    CHECK(getcwd(cwd, sizeof cwd) != NULL);
    SHOW(chdir("sub"));
    CHECK(getcwd(cwd2, sizeof cwd2) != NULL);
    CHECK(strncmp(cwd, cwd2, strlen(cwd)) == 0 && strcmp(cwd2 + strlen(cwd), "/sub") == 0);
    SHOW(access("inner", F_OK));
    SHOW(chdir(".."));
    SHOW(fchdir(dir));
    SHOW(access("inner", F_OK));
    FAILS(fchdir(fd), ENOTDIR);
    FAILS(chdir("inner"), ENOTDIR);
    FAILS(chdir("missing"), ENOENT);
    CHECK(getcwd(cwd2, 2) == NULL && errno == ERANGE);
    SHOW(syscall(SYS_getcwd, cwd2, 4096) == (long)strlen(cwd2) + 1);

    section("descriptor limit");
    int last = -1, opened = 0, e = 0;
    while (opened < 100000) {
        int next = dup(fd);
        if (next < 0) {
            e = errno;
            break;
        }
        last = next;
        opened++;
        if (opened == 200) break;
    }
    CHECK(e == 0 && last > 200);
    SHOW(close_range(60, 1000, 0));
    FAILS(fcntl(last, F_GETFD), EBADF);

    section("pipes");
    int p[2];
    SHOW(pipe2(p, O_CLOEXEC));
    SHOW(write(p[1], "through", 7));
    memset(buf, 0, sizeof buf);
    SHOW(read(p[0], buf, 100));
    printf("<%s>\n", buf);
    FAILS(lseek(p[0], 0, SEEK_SET), ESPIPE);
    FAILS(pread(p[0], buf, 1, 0), ESPIPE);
    FAILS(read(p[1], buf, 1), EBADF);
    FAILS(write(p[0], buf, 1), EBADF);
    SHOW(fcntl(p[0], F_SETFL, O_NONBLOCK));
    FAILS(read(p[0], buf, 1), EAGAIN);
    SHOW(close(p[1]));
    SHOW(read(p[0], buf, 1));
    printf("done\n");
    return 0;
}
