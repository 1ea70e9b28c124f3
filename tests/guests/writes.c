// A tree of the host's that may be changed: everything happens in the current directory, and stays.
#include "guest.h"
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

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

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void list(DIR *d) {
    char *names[64];
    int n = 0;
    for (struct dirent *e; n < 64 && (e = readdir(d));) names[n++] = strdup(e->d_name);
    qsort(names, n, sizeof *names, by_name);
    for (int i = 0; i < n; i++) printf(" %s", names[i]);
    printf("\n");
}

static void mode_of(const char *name) {
    struct stat st;
    if (lstat(name, &st)) printf("%s: %s\n", name, errno_name(errno));
    else printf("%s: %o, %ld links, %ld bytes\n", name, st.st_mode, (long)st.st_nlink, S_ISDIR(st.st_mode) ? 0 : (long)st.st_size);
}

static void making(void) {
    section("making files");
    umask(022);
    int fd = open("a", O_CREAT | O_RDWR | O_EXCL, 0666);
    need(fd >= 0, "create a");
    FAILS(open("a", O_CREAT | O_EXCL | O_RDWR, 0666), EEXIST);
    SHOW(write(fd, "hello world", 11));
    SHOW(pwrite(fd, "J", 1, 0));
    SHOW(pwrite(fd, "end", 3, 20));
    SHOW(lseek(fd, 0, SEEK_CUR));
    SHOW(lseek(fd, 0, SEEK_END));
    mode_of("a");
    close(fd);
    umask(0);
    close(open("open to all", O_CREAT | O_WRONLY, 0666));
    close(open("odd", O_CREAT | O_WRONLY, 01751));
    mkdir("everybody", 01777);
    mkdir("plain", 0750);
    umask(077);
    close(open("own", O_CREAT | O_RDONLY, 0666));
    mkdir("own directory", 0777);
    umask(022);
    const char *made[] = {"open to all", "odd", "everybody", "plain", "own", "own directory"};
    for (unsigned i = 0; i < 6; i++) mode_of(made[i]);
    mkdir("group", 0755);
    SHOW(chmod("group", 02755));
    mkdir("group/below", 0755);
    mode_of("group/below");
    FAILS(mkdir("plain", 0700), EEXIST);
    FAILS(mkdir("no/where", 0700), ENOENT);
    FAILS(mkdir("a/b", 0700), ENOTDIR);
    FAILS(open("plain", O_WRONLY), EISDIR);
    FAILS(open("plain/", O_CREAT | O_WRONLY, 0600), EISDIR);
    FAILS(open("new/", O_CREAT | O_WRONLY, 0600), EISDIR);
    SHOW(mknod("node", S_IFREG | 0640, 0));
    mode_of("node");
    FAILS(mknod("device", S_IFCHR | 0600, 0x103), EPERM);
    char name[NAME_MAX + 2];
    memset(name, 'n', sizeof name);
    name[NAME_MAX + 1] = 0;
    FAILS(mkdir(name, 0700), ENAMETOOLONG);
    FAILS(open(name, O_CREAT | O_WRONLY, 0600), ENAMETOOLONG);
    name[NAME_MAX] = 0;
    SHOW(mkdir(name, 0700));
    SHOW(mkdir("line\nbreak \033[31m \xff", 0700));
    SHOW(access("a", W_OK));
    SHOW(access("plain", W_OK));
    struct statvfs fs;
    NEED(statvfs(".", &fs) == 0 && !(fs.f_flag & ST_RDONLY));
}

static void writing(void) {
    section("writing");
    struct stat st;
    char buf[64];
    NEED(put("w", "0123456789") == 0);
    int one = open("w", O_WRONLY | O_APPEND), two = open("w", O_RDWR | O_APPEND);
    SHOW(write(one, "abc", 3));
    SHOW(write(two, "def", 3));
    SHOW(lseek(one, 0, SEEK_CUR));
    SHOW(lseek(two, 0, SEEK_CUR));
    SHOW(pwrite(one, "!", 1, 0));
    FAILS(read(one, buf, 1), EBADF);
    SHOW(fcntl(one, F_SETFL, 0));
    SHOW(pwrite(one, "?", 1, 0));
    struct iovec part[2] = {{"xy", 2}, {"z", 1}};
    SHOW(pwritev2(one, part, 2, 0, RWF_APPEND));
    puts(get("w"));
    close(open("w", O_RDONLY | O_TRUNC));
    mode_of("w");
    SHOW(ftruncate(two, 5000));
    SHOW(pread(two, buf, 64, 4990));
    SHOW(truncate("w", 3));
    FAILS(truncate("plain", 3), EISDIR);
    FAILS(truncate("no", 3), ENOENT);
    FAILS(ftruncate(open("w", O_RDONLY), 0), EINVAL);
    FAILS(ftruncate(two, -1), EINVAL);
    SHOW(write(two, "more", 4));
    mode_of("w");
    FAILS(write(open("w", O_RDONLY), "x", 1), EBADF);
    SHOW(fsync(one));
    SHOW(fdatasync(two));
    SHOW(fsync(open(".", O_RDONLY)));
    close(one);
    close(two);

    section("room");
    int fd = open("room", O_CREAT | O_RDWR, 0600);
    SHOW(fallocate(fd, 0, 0, 100000));
    SHOW(fstat(fd, &st));
    NEED(st.st_size == 100000 && st.st_blocks >= 100000 / 512);
    SHOW(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 200000));
    SHOW(pwrite(fd, "x", 1, 50000));
    SHOW(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 40960, 20480));
    SHOW(pread(fd, buf, 1, 50000));
    CHECK(buf[0] == 0);
    FAILS(fallocate(fd, 0, 0, 0), EINVAL);
    FAILS(fallocate(fd, 0, -1, 5), EINVAL);
    mode_of("room");
    SHOW(ftruncate(fd, 10));

    section("copies");
    int from = open("a", O_RDONLY), to = open("copied", O_CREAT | O_RDWR, 0644);
    loff_t at = 6;
    SHOW(copy_file_range(from, &at, to, NULL, 100, 0));
    printf("at %ld\n", (long)at);
    SHOW(sendfile(to, from, NULL, 5));
    mode_of("copied");
    at = 0;
    loff_t into = 2;
    FAILS(copy_file_range(to, &at, to, &into, 10, 0), EINVAL);
    int pipes[2];
    NEED(pipe(pipes) == 0);
    NEED(write(pipes[1], "spliced", 7) == 7);
    SHOW(splice(pipes[0], NULL, to, NULL, 7, 0));
    mode_of("copied");
    close(from);
    close(to);

    section("mappings");
    NEED(put("mapped", "private") == 0);
    fd = open("mapped", O_RDWR);
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    need(map != MAP_FAILED, "map");
    map[0] = 'P';
    puts(get("mapped"));
    char *shared = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    need(shared != MAP_FAILED, "map");
    SHOW(pwrite(fd, "shared!", 7, 0));
    CHECK(memcmp(shared, "shared!", 7) == 0);
    munmap(map, 4096);
    munmap(shared, 4096);
    close(fd);
}

static void naming(void) {
    section("names");
    struct stat st, st2;
    NEED(put("n1", "one") == 0 && put("n2", "two") == 0);
    mkdir("d1", 0755);
    mkdir("d2", 0755);
    NEED(put("d2/f", "in d2") == 0);
    SHOW(link("n1", "n1b"));
    NEED(stat("n1", &st) == 0 && stat("n1b", &st2) == 0 && st.st_ino == st2.st_ino);
    mode_of("n1");
    FAILS(link("n1", "n2"), EEXIST);
    FAILS(link("d1", "d3"), EPERM);
    FAILS(link("no", "no2"), ENOENT);
    SHOW(symlink("n2", "l"));
    SHOW(symlink("nowhere", "dangling"));
    FAILS(symlink("n2", "l"), EEXIST);
    SHOW(linkat(AT_FDCWD, "l", AT_FDCWD, "l2", 0));
    SHOW(linkat(AT_FDCWD, "l", AT_FDCWD, "l3", AT_SYMLINK_FOLLOW));
    mode_of("l2");
    mode_of("l3");
    puts(get("l"));
    FAILS(open("l", O_WRONLY | O_NOFOLLOW), ELOOP);
    NEED(put("l", "by the link") == 0);
    puts(get("n2"));
    NEED(put("dangling", "made by a link") == 0);
    puts(get("nowhere"));
    FAILS(open("dangling", O_CREAT | O_EXCL | O_WRONLY, 0600), EEXIST);
    SHOW(rename("n1b", "n3"));
    SHOW(rename("n1", "n3"));
    mode_of("n1");
    FAILS(syscall(SYS_renameat2, AT_FDCWD, "n2", AT_FDCWD, "n3", RENAME_NOREPLACE), EEXIST);
    SHOW(syscall(SYS_renameat2, AT_FDCWD, "n2", AT_FDCWD, "n3", RENAME_EXCHANGE));
    puts(get("n2"));
    FAILS(rename("d1", "d2"), ENOTEMPTY);
    FAILS(rename("d1", "n2"), ENOTDIR);
    FAILS(rename("n2", "d1"), EISDIR);
    FAILS(rename("d2", "d2/below"), EINVAL);
    FAILS(rename("n2/", "x"), ENOTDIR);
    FAILS(rename("n2", "x/"), ENOTDIR);
    FAILS(rename("d1/.", "x"), EBUSY);
    FAILS(rename("no", "x"), ENOENT);
    SHOW(rename("d2", "d1"));
    puts(get("d1/f"));
    FAILS(unlink("d1"), EISDIR);
    FAILS(unlink("n2/"), ENOTDIR);
    FAILS(rmdir("d1"), ENOTEMPTY);
    FAILS(rmdir("n2"), ENOTDIR);
    FAILS(rmdir("d1/."), EINVAL);
    SHOW(unlink("n3"));
    FAILS(unlink("n3"), ENOENT);

    section("directories that are open, moved and gone");
    int fd = open("d1", O_RDONLY | O_DIRECTORY);
    SHOW(rename("d1", "moved"));
    SHOW(close(openat(fd, "by descriptor", O_CREAT | O_WRONLY, 0644)));
    SHOW(mkdirat(fd, "sub", 0755));
    SHOW(renameat(fd, "f", fd, "sub/f"));
    SHOW(symlinkat("sub/f", fd, "s"));
    SHOW(unlinkat(fd, "s", 0));
    FAILS(unlinkat(fd, "sub", AT_REMOVEDIR), ENOTEMPTY);
    mode_of("moved/by descriptor");
    SHOW(chdir("moved/sub"));
    SHOW(rename("../../moved", "../../moved again"));
    char cwd[PATH_MAX];
    NEED(getcwd(cwd, sizeof cwd) != NULL);
    puts(strrchr(cwd, 'm') ? strstr(cwd, "moved") : cwd);
    NEED(put("here", "in a moved directory") == 0);
    puts(get("f"));
    NEED(chdir("../..") == 0);
    puts(get("moved again/sub/here"));
    DIR *d = opendir("moved again");
    list(d);
    NEED(put("moved again/new", "x") == 0);
    rewinddir(d);
    list(d);
    unlink("moved again/new");
    rewinddir(d);
    list(d);
    closedir(d);
    close(fd);
    int gone = open("w", O_RDWR);
    SHOW(unlink("w"));
    SHOW(fstat(gone, &st));
    printf("%ld links\n", (long)st.st_nlink);
    SHOW(pwrite(gone, "still", 5, 0));
    close(gone);
}

static void attributes(void) {
    section("attributes");
    struct stat st;
    NEED(put("t", "times") == 0);
    symlink("t", "tl");
    struct timespec at[2] = {{1000000000, 5}, {1100000000, 7}};
    SHOW(utimensat(AT_FDCWD, "t", at, 0));
    NEED(stat("t", &st) == 0);
    printf("%ld.%ld %ld.%ld\n", st.st_atim.tv_sec, st.st_atim.tv_nsec, st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    at[0].tv_nsec = UTIME_OMIT;
    at[1].tv_sec = 12;
    SHOW(utimensat(AT_FDCWD, "tl", at, AT_SYMLINK_NOFOLLOW));
    NEED(lstat("tl", &st) == 0);
    printf("%ld\n", st.st_mtim.tv_sec);
    int fd = open("t", O_RDONLY);
    SHOW(futimens(fd, at));
    SHOW(utimensat(AT_FDCWD, ".", at, 0));
    NEED(stat("t", &st) == 0);
    printf("%ld %ld\n", st.st_atim.tv_sec, st.st_mtim.tv_sec);
    SHOW(fchmod(fd, 0640));
    mode_of("t");
    SHOW(chmod("t", 0444));
    SHOW(chmod("tl", 0600));
    mode_of("t");
    SHOW(chmod(".", 0755));
    SHOW(chmod("plain", 0700));
    mode_of("plain");
    SHOW(chown("t", -1, getegid()));
    SHOW(lchown("tl", geteuid(), getegid()));
    SHOW(fchown(fd, -1, -1));
    FAILS(chown("t", 12345, -1), EPERM);
    FAILS(chown("t", -1, 54321), EPERM);
    FAILS(chmod("no", 0600), ENOENT);
    int path = open("t", O_PATH);
    FAILS(fchmod(path, 0600), EBADF);
    SHOW(fchownat(path, "", -1, getegid(), AT_EMPTY_PATH));
    char own[64];
    snprintf(own, sizeof own, "/proc/self/fd/%d", fd);
    int again = open(own, O_WRONLY);
    SHOW(write(again, "T", 1));
    puts(get("t"));
    SHOW(chmod("t", 0400));
    FAILS(open("t", O_WRONLY), EACCES);
    FAILS(truncate("t", 0), EACCES);
    SHOW(chmod("plain", 0500));
    FAILS(open("plain/x", O_CREAT | O_WRONLY, 0600), EACCES);
    FAILS(mkdir("plain/x", 0700), EACCES);
    FAILS(rename("a", "plain/a"), EACCES);
    SHOW(chmod("plain", 0700));
}

static void sharing(void) {
    section("locks and limits");
    int fd = open("lock", O_CREAT | O_RDWR, 0600), other = open("lock", O_RDWR);
    SHOW(flock(fd, LOCK_EX | LOCK_NB));
    FAILS(flock(other, LOCK_EX | LOCK_NB), EAGAIN);
    SHOW(flock(fd, LOCK_UN));
    struct flock all = {.l_type = F_WRLCK};
    SHOW(fcntl(fd, F_SETLK, &all));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        struct flock mine = {.l_type = F_WRLCK};
        FAILS(fcntl(other, F_SETLK, &mine), EAGAIN);
        _exit(0);
    }
    NEED(waitpid(child, NULL, 0) == child);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit limit = {1000, RLIM_INFINITY};
    SHOW(setrlimit(RLIMIT_FSIZE, &limit));
    char block[3000];
    memset(block, 'b', sizeof block);
    SHOW(write(fd, block, sizeof block));
    FAILS(write(fd, block, 1), EFBIG);
    FAILS(ftruncate(fd, 2000), EFBIG);
    FAILS(truncate("lock", 2000), EFBIG);
    FAILS(fallocate(fd, 0, 0, 2000), EFBIG);
    mode_of("lock");
}

int main(void) {
    making();
    writing();
    naming();
    attributes();
    sharing();
    return 0;
}
