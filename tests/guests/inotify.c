// inotify(7): each event, limits, watches that end, waiting.
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>

static int in;
static uint32_t cookie;

static void name_of(uint32_t mask) {
    static const struct {
        uint32_t bit;
        const char *name;
    } names[] = {{IN_ACCESS, "ACCESS"}, {IN_MODIFY, "MODIFY"}, {IN_ATTRIB, "ATTRIB"},
                 {IN_CLOSE_WRITE, "CLOSE_WRITE"}, {IN_CLOSE_NOWRITE, "CLOSE_NOWRITE"}, {IN_OPEN, "OPEN"},
                 {IN_MOVED_FROM, "MOVED_FROM"}, {IN_MOVED_TO, "MOVED_TO"}, {IN_CREATE, "CREATE"},
                 {IN_DELETE, "DELETE"}, {IN_DELETE_SELF, "DELETE_SELF"}, {IN_MOVE_SELF, "MOVE_SELF"},
                 {IN_UNMOUNT, "UNMOUNT"}, {IN_Q_OVERFLOW, "Q_OVERFLOW"}, {IN_IGNORED, "IGNORED"},
                 {IN_ISDIR, "ISDIR"}};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (mask & names[i].bit) {
            printf(" %s", names[i].name);
            mask &= ~names[i].bit;
        }
    if (mask) printf(" FAIL %#x", mask);
}

// Reads and prints all that there is.
static void drain(const char *what) {
    char buf[8192] __attribute__((aligned(8)));
    int waiting = 0;
    need(ioctl(in, FIONREAD, &waiting) == 0, "FIONREAD");
    printf("%s: %d bytes\n", what, waiting);
    ssize_t got;
    int total = 0;
    while ((got = read(in, buf, sizeof buf)) > 0) {
        total += got;
        for (char *at = buf; at < buf + got;) {
            struct inotify_event *e = (void *)at;
            printf("  %d", e->wd);
            name_of(e->mask);
            if (e->len) printf(" '%s' of %u", e->name, e->len);
            if (e->mask & IN_MOVED_FROM) cookie = e->cookie;
            if (e->mask & IN_MOVED_TO) printf(e->cookie == cookie ? " same cookie" : " new cookie");
            if (!!e->cookie != !!(e->mask & IN_MOVE)) printf(" FAIL cookie");
            printf("\n");
            at += sizeof *e + e->len;
        }
    }
    if (got < 0 && errno != EAGAIN) printf("FAIL %s\n", errno_name(errno));
    if (total != waiting) printf("FAIL %d bytes, not %d\n", total, waiting);
    fflush(stdout);
}

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0666);
    need(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && close(fd) == 0, path);
}

static void arguments(void) {
    section("arguments");
    FAILS(inotify_init1(1), EINVAL);
    int fd = inotify_init1(IN_CLOEXEC);
    CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) && fcntl(fd, F_GETFL) == O_RDONLY);
    CHECK((fcntl(in, F_GETFL) & O_NONBLOCK) != 0);
    char link[64] = {0}, name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    need(readlink(name, link, 63) > 0, "readlink");
    printf("%s\n", link);
    char buf[64];
    FAILS(read(in, buf, sizeof buf), EAGAIN);
    FAILS(write(in, buf, 1), EBADF);
    FAILS(pread(in, buf, 64, 0), ESPIPE);
    SHOW(lseek(in, 0, SEEK_SET));
    FAILS(inotify_add_watch(-1, "d", IN_OPEN), EBADF);
    FAILS(inotify_add_watch(0, "d", IN_OPEN), EINVAL);
    FAILS(inotify_add_watch(in, "d", 0), EINVAL);
    FAILS(inotify_add_watch(in, "d", IN_OPEN | IN_MASK_ADD | IN_MASK_CREATE), EINVAL);
    FAILS(inotify_add_watch(in, (char *)8, IN_OPEN), EFAULT);
    FAILS(inotify_add_watch(in, "", IN_OPEN), ENOENT);
    FAILS(inotify_add_watch(in, "none", IN_OPEN), ENOENT);
    FAILS(inotify_rm_watch(in, 1), EINVAL);
    FAILS(inotify_rm_watch(in, -1), EINVAL);
    FAILS(inotify_rm_watch(0, 1), EINVAL);
    FAILS(inotify_rm_watch(-1, 1), EBADF);
    put("f", "x");
    FAILS(inotify_add_watch(in, "f", IN_OPEN | IN_ONLYDIR), ENOTDIR);
    chmod("f", 0);
    if (geteuid()) FAILS(inotify_add_watch(in, "f", IN_OPEN), EACCES);
    else printf("ok inotify_add_watch(in, \"f\", IN_OPEN): EACCES\n");
    unlink("f");
    close(fd);
}

static void files(void) {
    section("files");
    int d = inotify_add_watch(in, "d", IN_ALL_EVENTS);
    SHOW(d);
    put("d/f", "one");
    drain("create and write");
    put("d/f", "two");
    put("d/f", "three");
    drain("append twice");
    int f = inotify_add_watch(in, "d/f", IN_ALL_EVENTS);
    SHOW(f);
    SHOW(inotify_add_watch(in, "d/../d/f", IN_ALL_EVENTS));
    char buf[16];
    int fd = open("d/f", O_RDWR);
    drain("open");
    need(read(fd, buf, 3) == 3 && read(fd, buf, 3) == 3, "read");
    drain("two reads are one event");
    need(pread(fd, buf, 1, 0) == 1 && read(fd, buf, 16) > 0 && read(fd, buf, 16) == 0, "pread");
    drain("reads up to the end");
    need(pwrite(fd, "x", 1, 0) == 1 && write(fd, "", 0) == 0, "pwrite");
    drain("pwrite, and write of nothing");
    need(ftruncate(fd, 2) == 0, "ftruncate");
    drain("ftruncate");
    need(posix_fallocate(fd, 0, 100) == 0, "fallocate");
    drain("fallocate");
    fchmod(fd, 0600);
    drain("fchmod");
    int same = dup(fd);
    close(fd);
    drain("close of one of two");
    close(same);
    drain("close of the last");
    chmod("d/f", 0644);
    drain("chmod");
    SHOW(chown("d/f", -1, -1));
    drain("chown of nothing");
    SHOW(chown("d/f", getuid(), -1));
    drain("chown");
    utimes("d/f", NULL);
    drain("utimes");
    struct timespec only[2] = {{1, UTIME_OMIT}, {1, 0}};
    utimensat(AT_FDCWD, "d/f", only, 0);
    drain("modification time");
    only[0].tv_nsec = 0, only[1].tv_nsec = UTIME_OMIT;
    utimensat(AT_FDCWD, "d/f", only, 0);
    drain("access time");
    truncate("d/f", 1);
    drain("truncate");
    int at = open("d/f", O_PATH);
    close(at);
    drain("O_PATH");
    link("d/f", "d/g");
    drain("link");
    rename("d/g", "d/h");
    drain("rename");
    rename("d/h", "h");
    drain("rename out of it");
    rename("h", "d/i");
    drain("rename into it");
    unlink("d/i");
    drain("unlink of one of two names");
    fd = open("d/f", O_RDONLY);
    unlink("d/f");
    drain("unlink while it is open");
    need(read(fd, buf, 1) == 1, "read");
    drain("read without a name");
    close(fd);
    drain("close without a name");
    FAILS(inotify_rm_watch(in, f), EINVAL);
    symlink("none", "d/s");
    mkfifo("d/p", 0666);
    drain("symlink and fifo");
    SHOW(inotify_add_watch(in, "d/s", IN_ALL_EVENTS | IN_DONT_FOLLOW) > 0);
    unlink("d/s");
    drain("unlink of a watched link");
    fd = open("d/p", O_RDWR);
    // Newer kernels raise no events for what goes through it.
    close(fd);
    unlink("d/p");
    drain("fifo");
    struct sockaddr_un name = {AF_UNIX, "d/u"};
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    need(bind(s, (void *)&name, sizeof name) == 0, "bind");
    close(s);
    unlink("d/u");
    drain("socket");
    SHOW(inotify_rm_watch(in, d));
    drain("rm_watch");
    FAILS(inotify_rm_watch(in, d), EINVAL);
    put("d/f", "x");
    unlink("d/f");
    drain("nobody watches");
}

static void directories(void) {
    section("directories");
    int d = inotify_add_watch(in, "d", IN_ALL_EVENTS | IN_ONLYDIR);
    mkdir("d/e", 0777);
    drain("mkdir");
    int e = inotify_add_watch(in, "d/e", IN_ALL_EVENTS);
    int fd = open("d/e", O_RDONLY);
    char buf[4096];
    need(syscall(SYS_getdents64, fd, buf, sizeof buf) > 0, "getdents64");
    close(fd);
    drain("list");
    chmod("d/e", 0700);
    drain("chmod");
    put("d/e/f", "x");
    drain("a file in it");
    rename("d/e", "d/g");
    drain("rename");
    put("d/g/f", "x");
    drain("a file in it by its new name");
    rename("d/g/f", "d/f");
    drain("between two watched directories");
    mkdir("d/x", 0777);
    drain("mkdir");
    SHOW(syscall(SYS_renameat2, AT_FDCWD, "d/f", AT_FDCWD, "d/x", 2));
    drain("exchange");
    put("d/new", "x");
    drain("a new file");
    int n = inotify_add_watch(in, "d/x", IN_ALL_EVENTS);
    rename("d/new", "d/x");
    drain("rename over a watched file");
    FAILS(inotify_rm_watch(in, n), EINVAL);
    rmdir("d/f");
    rmdir("d/g");
    drain("rmdir");
    FAILS(inotify_rm_watch(in, e), EINVAL);
    unlink("d/x");
    inotify_rm_watch(in, d);
    drain("rm_watch");
}

static void masks(void) {
    section("masks");
    int d = inotify_add_watch(in, "d", IN_CREATE);
    put("d/f", "x");
    drain("IN_CREATE only");
    CHECK(inotify_add_watch(in, "d", IN_DELETE | IN_MASK_ADD) == d);
    put("d/g", "x");
    unlink("d/g");
    drain("and IN_DELETE");
    CHECK(inotify_add_watch(in, "d", IN_MODIFY) == d);
    put("d/g", "x");
    unlink("d/g");
    drain("IN_MODIFY instead");
    FAILS(inotify_add_watch(in, "d", IN_MODIFY | IN_MASK_CREATE), EEXIST);
    inotify_rm_watch(in, d);
    drain("rm_watch");
    d = inotify_add_watch(in, "d", IN_OPEN | IN_ONESHOT);
    put("d/f", "x");
    put("d/f", "x");
    drain("IN_ONESHOT");
    FAILS(inotify_rm_watch(in, d), EINVAL);
    d = inotify_add_watch(in, "d", IN_ALL_EVENTS | IN_EXCL_UNLINK);
    int fd = open("d/f", O_WRONLY);
    unlink("d/f");
    write(fd, "x", 1);
    close(fd);
    drain("IN_EXCL_UNLINK");
    fd = open("d", O_TMPFILE | O_RDWR, 0666);
    if (fd >= 0) close(fd);
    inotify_rm_watch(in, d);
    drain("a file without a name");
    symlink("d", "l");
    d = inotify_add_watch(in, "l", IN_CREATE | IN_DONT_FOLLOW);
    CHECK(inotify_add_watch(in, "l", IN_CREATE) != d);
    FAILS(inotify_add_watch(in, "l", IN_CREATE | IN_DONT_FOLLOW | IN_ONLYDIR), ENOTDIR);
    put("l/f", "x");
    drain("by a link");
    unlink("l");
    inotify_rm_watch(in, d + 1);
    drain("unlink of the link");
}

static void copies(void) {
    section("copies");
    put("d/a", "0123456789");
    put("d/b", "0123456789");
    int d = inotify_add_watch(in, "d", IN_ACCESS | IN_MODIFY);
    int a = open("d/a", O_RDWR), b = open("d/b", O_RDWR), pipes[2];
    need(pipe(pipes) == 0, "pipe");
    need(sendfile(b, a, NULL, 4) == 4, "sendfile");
    drain("sendfile");
    need(splice(a, NULL, pipes[1], NULL, 3, 0) == 3 && splice(pipes[0], NULL, b, NULL, 3, 0) == 3, "splice");
    drain("splice");
    char one[2], two[2];
    struct iovec parts[] = {{one, 2}, {two, 2}};
    need(lseek(a, 0, SEEK_SET) == 0 && readv(a, parts, 2) == 4 && writev(b, parts, 2) == 4, "readv");
    drain("vectors");
    close(a), close(b), close(pipes[0]), close(pipes[1]);
    inotify_rm_watch(in, d);
    drain("rm_watch");
}

static void *later(void *arg) {
    pause_ms(30);
    put(arg, "x");
    return NULL;
}

static void waiting(void) {
    section("waiting");
    int d = inotify_add_watch(in, "d", IN_CREATE), same = dup(in);
    struct pollfd p = {in, POLLIN | POLLOUT, 0};
    SHOW(poll(&p, 1, 0));
    int ep = epoll_create1(0);
    struct epoll_event e = {EPOLLIN | EPOLLET, {.u32 = 7}};
    need(epoll_ctl(ep, EPOLL_CTL_ADD, in, &e) == 0, "epoll_ctl");
    SHOW(epoll_wait(ep, &e, 1, 0));
    pthread_t t;
    pthread_create(&t, NULL, later, "d/1");
    SHOW(epoll_wait(ep, &e, 1, -1));
    pthread_join(t, NULL);
    SHOW(epoll_wait(ep, &e, 1, 0));
    SHOW(poll(&p, 1, 0));
    printf("%#x\n", p.revents);
    char buf[64];
    FAILS(read(in, buf, 31), EINVAL);
    SHOW(read(in, buf, 32));
    fcntl(in, F_SETFL, 0);
    pthread_create(&t, NULL, later, "d/2");
    SHOW(read(in, buf, sizeof buf));
    pthread_join(t, NULL);
    // A child has the same instance.
    put("d/3", "x");
    pid_t child = fork();
    if (child == 0) _exit(read(in, buf, sizeof buf) == 32 ? 0 : 1);
    int status = -1;
    waitpid(child, &status, 0);
    SHOW(status);
    fcntl(in, F_SETFL, O_NONBLOCK);
    drain("the child has read it");
    close(same);
    inotify_rm_watch(in, d);
    drain("rm_watch");
    close(ep);
}

static void overflow(void) {
    section("overflow");
    char text[64] = {0};
    int fd = open("/proc/sys/fs/inotify/max_queued_events", O_RDONLY);
    need(read(fd, text, 63) > 0, "max_queued_events");
    close(fd);
    long max = atol(text);
    int d = inotify_add_watch(in, "d", IN_OPEN | IN_CLOSE);
    for (long i = 0; i < max / 2 + 10; i++) close(open("d/1", O_RDONLY));
    int bytes;
    ioctl(in, FIONREAD, &bytes);
    // Events of 32 bytes and the last, which has no name.
    CHECK(bytes == max * 32 + 16);
    char buf[4096];
    long count = 0;
    struct inotify_event *e = (void *)buf;
    while (read(in, buf, 32) == 32 && e->mask != IN_Q_OVERFLOW) count++;
    CHECK(count == max);
    CHECK(e->mask == IN_Q_OVERFLOW && e->wd == -1 && e->len == 0);
    drain("after the overflow");
    close(open("d/1", O_RDONLY));
    drain("and on");
    inotify_rm_watch(in, d);
    drain("rm_watch");
}

int main(void) {
    char dir[] = "/tmp/inotify-XXXXXX", gone[128];
    need(mkdtemp(dir) && chdir(dir) == 0 && mkdir("d", 0777) == 0, "directory");
    umask(022);
    in = inotify_init1(IN_NONBLOCK);
    need(in >= 0, "inotify_init1");
    arguments();
    files();
    directories();
    masks();
    copies();
    waiting();
    overflow();
    snprintf(gone, sizeof gone, "rm -r %s", dir);
    chdir("/");
    system(gone);
    return 0;
}
