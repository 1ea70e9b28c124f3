// The writable tree under /tmp: everything happens in a fresh directory that
// is removed again at the end.
#include "guest.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

static int put(const char *name, const char *text) {
    int fd = open(name, O_CREAT | O_WRONLY | O_TRUNC, 0644);
    if (fd < 0) return -1;
    ssize_t n = write(fd, text, strlen(text));
    close(fd);
    return n == (ssize_t)strlen(text) ? 0 : -1;
}

static const char *get(const char *name) {
    static char buf[4096];
    int fd = open(name, O_RDONLY);
    if (fd < 0) return errno_name(errno);
    ssize_t n = read(fd, buf, sizeof buf - 1);
    close(fd);
    buf[n < 0 ? 0 : n] = 0;
    return buf;
}

static int count(const char *path) {
    DIR *d = opendir(path);
    if (!d) return -1;
    int n = 0;
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

int main(void) {
    struct stat st, st2;
    char buf[8192];
    umask(022);
    char top[] = "/tmp/kvmlet-guest-XXXXXX";
    need(mkdtemp(top) != NULL && chdir(top) == 0, "mkdtemp");
    CHECK(stat(top, &st) == 0 && (st.st_mode & 07777) == 0700);

    section("create and write");
    int fd = open("a", O_CREAT | O_RDWR | O_EXCL, 0666);
    need(fd >= 0, "create a");
    FAILS(open("a", O_CREAT | O_EXCL | O_RDWR, 0666), EEXIST);
    SHOW(write(fd, "hello ", 6));
    SHOW(write(fd, "world", 5));
    SHOW(lseek(fd, 0, SEEK_CUR));
    SHOW(fstat(fd, &st));
    printf("mode %o size %ld nlink %ld\n", st.st_mode, (long)st.st_size, (long)st.st_nlink);
    CHECK(st.st_uid == geteuid() && st.st_gid == getegid());
    SHOW(pwrite(fd, "J", 1, 0));
    SHOW(pwrite(fd, "end", 3, 20));
    SHOW(lseek(fd, 0, SEEK_CUR));
    memset(buf, '?', sizeof buf);
    SHOW(pread(fd, buf, 100, 0));
    for (int i = 0; i < 23; i++) putchar(buf[i] ? buf[i] : '.');
    putchar('\n');
    FAILS(pwrite(fd, "x", 1, -1), EINVAL);
    FAILS(write(fd, (void *)8, 4), EFAULT);
    SHOW(lseek(fd, 0, SEEK_END));
    struct iovec iov[2] = {{(char *)"one", 3}, {(char *)"two", 3}};
    SHOW(writev(fd, iov, 2));
    SHOW(pwritev(fd, iov, 2, 1));
    SHOW(fsync(fd));
    SHOW(fdatasync(fd));
    SHOW(close(fd));

    section("append and truncate");
    put("log", "1");
    int app = open("log", O_WRONLY | O_APPEND);
    SHOW(write(app, "2", 1));
    SHOW(lseek(app, 0, SEEK_SET));
    SHOW(write(app, "3", 1));
    printf("<%s>\n", get("log"));
    FAILS(read(app, buf, 1), EBADF);
    SHOW(ftruncate(app, 2));
    printf("<%s>\n", get("log"));
    SHOW(truncate("log", 5));
    SHOW(stat("log", &st));
    SHOW(st.st_size);
    FAILS(truncate("log", -1), EINVAL);
    FAILS(truncate("missing", 1), ENOENT);
    FAILS(truncate(".", 1), EISDIR);
    close(app);
    fd = open("log", O_RDWR | O_TRUNC);
    SHOW(lseek(fd, 0, SEEK_END));
    close(fd);

    section("a hole of 1 GiB");
    fd = open("sparse", O_CREAT | O_RDWR, 0600);
    SHOW(ftruncate(fd, 1 << 30));
    SHOW(pwrite(fd, "z", 1, (1 << 30) - 1));
    memset(buf, 'q', sizeof buf);
    SHOW(pread(fd, buf, sizeof buf, 500 << 20));
    int zero = 1;
    for (size_t i = 0; i < sizeof buf; i++) zero &= buf[i] == 0;
    CHECK(zero);
    fstat(fd, &st);
    CHECK(st.st_blocks < 1000);
    SHOW(ftruncate(fd, 10));
    SHOW(ftruncate(fd, 20));
    memset(buf, 'q', sizeof buf);
    SHOW(pread(fd, buf, 100, 0));
    SHOW(fallocate(fd, 0, 0, 8192));
    fstat(fd, &st);
    SHOW(st.st_size);
    close(fd);
    unlink("sparse");

    section("a cut tail is gone for good");
    fd = open("tail", O_CREAT | O_RDWR, 0600);
    memset(buf, 'T', sizeof buf);
    SHOW(write(fd, buf, 6000));
    SHOW(ftruncate(fd, 100));
    SHOW(ftruncate(fd, 6000));
    SHOW(pread(fd, buf, 6000, 0));
    int dirty = 0;
    for (int i = 100; i < 6000; i++) dirty |= buf[i];
    CHECK(dirty == 0);
    close(fd);

    section("directories");
    SHOW(mkdir("d", 0777));
    stat("d", &st);
    printf("mode %o nlink %ld\n", st.st_mode, (long)st.st_nlink);
    FAILS(mkdir("d", 0777), EEXIST);
    FAILS(mkdir("a", 0777), EEXIST);
    FAILS(mkdir("missing/x", 0777), ENOENT);
    FAILS(mkdir("a/x", 0777), ENOTDIR);
    SHOW(mkdir("d/e", 0755));
    stat("d", &st);
    SHOW(st.st_nlink);
    FAILS(rmdir("d"), ENOTEMPTY);
    FAILS(rmdir("a"), ENOTDIR);
    FAILS(rmdir("missing"), ENOENT);
    FAILS(rmdir("d/."), EINVAL);
    FAILS(unlink("d"), EISDIR);
    SHOW(put("d/f", "inner"));
    SHOW(count("d"));
    SHOW(rmdir("d/e"));
    SHOW(count("d"));
    char cwd[256];
    SHOW(mkdir("gone", 0755));
    SHOW(chdir("gone"));
    SHOW(rmdir("../gone"));
    CHECK(getcwd(cwd, sizeof cwd) == NULL && errno == ENOENT);
    FAILS(open("x", O_CREAT | O_WRONLY, 0600), ENOENT);
    need(chdir(top) == 0, "chdir back");

    section("many entries");
    mkdir("many", 0755);
    for (int i = 0; i < 500; i++) {
        char name[64];
        snprintf(name, sizeof name, "many/a-name-of-some-length-%04d", i);
        if (put(name, "")) printf("FAIL create %s\n", name);
    }
    SHOW(count("many"));
    // Removing while reading visits every entry once.
    DIR *d = opendir("many");
    struct dirent *e;
    int removed = 0;
    while ((e = readdir(d)))
        if (e->d_name[0] == 'a' && unlinkat(dirfd(d), e->d_name, 0) == 0) removed++;
    closedir(d);
    SHOW(removed);
    SHOW(count("many"));
    SHOW(rmdir("many"));

    section("rename");
    put("x", "x");
    put("y", "y");
    SHOW(rename("x", "y"));
    printf("<%s> <%s>\n", get("x"), get("y"));
    FAILS(rename("missing", "z"), ENOENT);
    SHOW(mkdir("r1", 0755));
    SHOW(mkdir("r2", 0755));
    put("r1/f", "f");
    FAILS(rename("r2", "r1"), ENOTEMPTY);
    FAILS(rename("r1", "r1/sub"), EINVAL);
    FAILS(rename("y", "r1"), EISDIR);
    FAILS(rename("r1", "y"), ENOTDIR);
    SHOW(rename("r1", "r2"));
    printf("<%s>\n", get("r2/f"));
    SHOW(rename("y", "y"));
    FAILS(renameat2(AT_FDCWD, "y", AT_FDCWD, "r2/f", RENAME_NOREPLACE), EEXIST);
    SHOW(renameat2(AT_FDCWD, "y", AT_FDCWD, "r2/f", RENAME_EXCHANGE));
    printf("<%s> <%s>\n", get("y"), get("r2/f"));

    section("links");
    SHOW(link("y", "hard"));
    stat("y", &st);
    stat("hard", &st2);
    CHECK(st.st_ino == st2.st_ino && st.st_nlink == 2);
    FAILS(link("y", "hard"), EEXIST);
    FAILS(link("missing", "z"), ENOENT);
    FAILS(link("r2", "z"), EPERM);
    SHOW(unlink("y"));
    printf("<%s>\n", get("hard"));
    SHOW(symlink("hard", "soft"));
    FAILS(symlink("hard", "soft"), EEXIST);
    FAILS(symlink("", "soft2"), ENOENT);
    memset(buf, 0, 64);
    SHOW(readlink("soft", buf, 64));
    printf("<%s> <%s>\n", buf, get("soft"));
    SHOW(lstat("soft", &st));
    printf("mode %o size %ld\n", st.st_mode, (long)st.st_size);
    symlink("l2", "l1");
    symlink("l1", "l2");
    FAILS(open("l1", O_RDONLY), ELOOP);
    symlink("made", "maker");
    SHOW(put("maker", "made through a link"));
    printf("<%s>\n", get("made"));
    SHOW(unlink("soft"));
    printf("<%s>\n", get("hard"));

    section("unlinked but open");
    put("doomed", "still here");
    fd = open("doomed", O_RDWR);
    SHOW(unlink("doomed"));
    FAILS(open("doomed", O_RDONLY), ENOENT);
    memset(buf, 0, 64);
    SHOW(read(fd, buf, 64));
    printf("<%s>\n", buf);
    fstat(fd, &st);
    SHOW(st.st_nlink);
    SHOW(write(fd, "!", 1));
    close(fd);

    section("O_TMPFILE");
    fd = open(".", O_TMPFILE | O_RDWR, 0600);
    CHECK(fd >= 0);
    SHOW(write(fd, "secret", 6));
    fstat(fd, &st);
    SHOW(st.st_nlink);
    close(fd);

    section("modes and times");
    put("m", "m");
    SHOW(chmod("m", 0640));
    stat("m", &st);
    printf("mode %o\n", st.st_mode);
    fd = open("m", O_RDWR);
    SHOW(fchmod(fd, 0604));
    fstat(fd, &st);
    printf("mode %o\n", st.st_mode);
    struct timespec ts[2] = {{1000, 111}, {2000, 222}};
    SHOW(utimensat(AT_FDCWD, "m", ts, 0));
    stat("m", &st);
    printf("atime %ld.%ld mtime %ld.%ld\n", st.st_atim.tv_sec, st.st_atim.tv_nsec, st.st_mtim.tv_sec,
           st.st_mtim.tv_nsec);
    ts[0].tv_nsec = UTIME_OMIT;
    ts[1].tv_nsec = UTIME_NOW;
    SHOW(futimens(fd, ts));
    stat("m", &st);
    printf("atime %ld.%ld\n", st.st_atim.tv_sec, st.st_atim.tv_nsec);
    CHECK(st.st_mtim.tv_sec > 2000);
    SHOW(chown("m", getuid(), getgid()));
    close(fd);
    SHOW(access("m", W_OK));
    SHOW((int)umask(077));
    put("private", "p");
    close(open("private2", O_CREAT | O_WRONLY, 0666));
    stat("private2", &st);
    printf("mode %o\n", st.st_mode);
    SHOW((int)umask(022));

    section("mapped files");
    fd = open("map", O_CREAT | O_RDWR, 0600);
    SHOW(ftruncate(fd, 8192));
    char *shared = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    need(shared != MAP_FAILED, "mmap shared");
    char *private = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    need(private != MAP_FAILED, "mmap private");
    strcpy(shared + 4096, "by mapping");
    memset(buf, 0, 64);
    SHOW(pread(fd, buf, 10, 4096));
    printf("<%s> <%s>\n", buf, private + 4096);
    SHOW(pwrite(fd, "by write", 8, 0));
    printf("<%.8s> <%.8s>\n", shared, private);
    strcpy(private, "own copy");
    SHOW(pwrite(fd, "again!!!", 8, 0));
    printf("<%.8s> <%.8s>\n", shared, private);
    SHOW(msync(shared, 8192, MS_SYNC));
    char *second = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 4096);
    need(second != MAP_FAILED, "mmap second");
    shared[4096] = 'B';
    printf("<%.10s>\n", second);
    close(fd);
    SHOW(unlink("map"));
    shared[4097] = 'Y';
    printf("<%.10s>\n", second);
    SHOW(munmap(shared, 8192));
    printf("<%.10s>\n", second);
    SHOW(munmap(second, 4096));
    SHOW(munmap(private, 8192));
    fd = open("hard", O_RDONLY);
    CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EACCES);
    CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 1) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(NULL, 0, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EINVAL);
    close(fd);
    fd = open("hard", O_WRONLY);
    CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED && errno == EACCES);
    close(fd);

    section("copying");
    put("src", "some bytes to copy");
    int in = open("src", O_RDONLY), out = open("dst", O_CREAT | O_RDWR, 0600);
    loff_t off = 5;
    ssize_t n = copy_file_range(in, &off, out, NULL, 100, 0);
    printf("copied %zd, offset %ld, <%s>\n", n, (long)off, get("dst"));
    close(in);
    close(out);

    // Root has its own guest: rootfiles.
    int is_root = geteuid() == 0;
    put("shut", "x");
    mkdir("locked", 0755);
    if (!is_root) {
        section("permissions of files");
        SHOW(chmod("shut", 0));
        SHOW(open("shut", O_RDONLY));
        SHOW(access("shut", R_OK));
        put("locked/f", "x");
        SHOW(chmod("locked", 0600));
        SHOW(open("locked/f", O_RDONLY));
        SHOW(chmod("locked", 0500));
        SHOW(open("locked/g", O_CREAT | O_WRONLY, 0600));
        SHOW(unlink("locked/f"));
        SHOW(chmod("locked", 0700));
    }

    section("clean");
    const char *rest[] = {"a", "log", "tail", "d/f", "r2/f", "hard", "l1", "l2", "maker", "made", "m", "private",
                          "private2", "src", "dst", "shut"};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++)
        if (unlink(rest[i])) printf("FAIL unlink %s %s\n", rest[i], errno_name(errno));
    SHOW(rmdir("d"));
    SHOW(rmdir("r2"));
    (void)unlink("locked/f");
    SHOW(rmdir("locked"));
    SHOW(count("."));
    SHOW(chdir("/tmp"));
    SHOW(rmdir(top));
    printf("done\n");
    return 0;
}
