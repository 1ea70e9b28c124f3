// splice(2), tee(2), vmsplice(2).
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

static int waiting(int fd) {
    int count = -1;
    return ioctl(fd, FIONREAD, &count) == 0 ? count : -1;
}

static const char *next(int fd) {
    static char text[300];
    ssize_t len = read(fd, text, 200);
    if (len < 0) return errno_name(errno);
    text[len] = 0;
    return text;
}

static int a[2], b[2], file, broken;

static void errors(void) {
    section("errors");
    off_t offset = 0;
    struct iovec iov = {(char *)"x", 1}, bad = {(void *)8, 1}, many[1];
    SHOW(splice(99, NULL, 98, NULL, 0, 77));
    FAILS(splice(a[0], NULL, b[1], NULL, 1, 16), EINVAL);
    FAILS(splice(99, NULL, b[1], NULL, 1, 0), EBADF);
    FAILS(splice(a[0], NULL, 99, NULL, 1, 0), EBADF);
    FAILS(splice(a[1], NULL, b[1], NULL, 1, 0), EBADF);
    FAILS(splice(a[0], NULL, b[0], NULL, 1, 0), EBADF);
    FAILS(splice(a[0], &offset, b[1], NULL, 1, 0), ESPIPE);
    FAILS(splice(a[0], NULL, b[1], &offset, 1, 0), ESPIPE);
    FAILS(splice(file, NULL, file, NULL, 1, 0), EINVAL);
    FAILS(splice(a[0], NULL, a[1], NULL, 1, 0), EINVAL);
    FAILS(splice(a[0], NULL, b[1], NULL, 1, SPLICE_F_NONBLOCK), EAGAIN);
    FAILS(splice(a[0], NULL, file, NULL, 1, SPLICE_F_NONBLOCK), EAGAIN);
    FAILS(splice(file, (off_t *)8, a[1], NULL, 1, 0), EFAULT);
    offset = -1;
    FAILS(splice(file, &offset, a[1], NULL, 1, 0), EINVAL);
    SHOW(tee(99, 98, 0, 0));
    FAILS(tee(99, a[1], 1, 0), EBADF);
    FAILS(tee(a[0], file, 1, 0), EINVAL);
    FAILS(tee(a[0], a[1], 1, 0), EINVAL);
    FAILS(tee(a[0], b[1], 1, 16), EINVAL);
    FAILS(tee(a[0], b[1], 1, SPLICE_F_NONBLOCK), EAGAIN);
    FAILS(vmsplice(99, &iov, 1, 0), EBADF);
    FAILS(vmsplice(file, &iov, 1, 0), EBADF);
    FAILS(vmsplice(a[1], &iov, 1, 16), EINVAL);
    FAILS(vmsplice(a[1], (void *)8, 1, 0), EFAULT);
    FAILS(vmsplice(a[1], &bad, 1, 0), EFAULT);
    FAILS(vmsplice(a[1], many, 1025, 0), EINVAL);
    SHOW(vmsplice(a[1], &iov, 0, 0));
    FAILS(vmsplice(a[0], &iov, 1, SPLICE_F_NONBLOCK), EAGAIN);
    signal(SIGPIPE, SIG_IGN);
    FAILS(splice(file, NULL, broken, NULL, 1, 0), EPIPE);
    FAILS(vmsplice(broken, &iov, 1, 0), EPIPE);
    NEED(write(a[1], "left", 4) == 4);
    FAILS(splice(a[0], NULL, broken, NULL, 4, 0), EPIPE);
    FAILS(tee(a[0], broken, 4, 0), EPIPE);
    printf("%s\n", next(a[0]));
    int appending = open("/tmp/splices", O_WRONLY | O_APPEND);
    NEED(write(a[1], "left", 4) == 4);
    FAILS(splice(a[0], NULL, appending, NULL, 4, 0), EINVAL);
    printf("%s\n", next(a[0]));
    close(appending);
}

static void moves(void) {
    section("moves");
    off_t offset = 3;
    SHOW(splice(file, &offset, a[1], NULL, 5, 0));
    printf("at %ld, file at %ld: %s\n", (long)offset, (long)lseek(file, 0, SEEK_CUR), next(a[0]));
    SHOW(splice(file, NULL, a[1], NULL, 4, 0));
    printf("file at %ld: %s\n", (long)lseek(file, 0, SEEK_CUR), next(a[0]));
    offset = 1000;
    SHOW(splice(file, &offset, a[1], NULL, 4, 0));
    SHOW(splice(file, NULL, a[1], NULL, 1000, 0));
    printf("%d wait\n", waiting(a[0]));
    SHOW(tee(a[0], b[1], 10, 0));
    printf("%d and %d wait\n", waiting(a[0]), waiting(b[0]));
    printf("%s\n", next(b[0]));
    SHOW(splice(a[0], NULL, b[1], NULL, 6, 0));
    printf("%d wait: %s\n", waiting(a[0]), next(b[0]));
    // Into another file: the pipe may hold pages of this one.
    int other_file = open("/tmp/splices.other", O_CREAT | O_RDWR | O_TRUNC, 0600);
    NEED(pwrite(other_file, "ABCDEFGHIJKLMNOPQRSTUVWXYZ", 26, 0) == 26);
    SHOW(splice(a[0], NULL, other_file, NULL, 3, 0));
    offset = 20;
    SHOW(splice(a[0], NULL, other_file, &offset, 1000, 0));
    printf("at %ld, file at %ld\n", (long)offset, (long)lseek(other_file, 0, SEEK_CUR));
    char text[100] = "";
    ssize_t len = pread(other_file, text, 99, 0);
    printf("%zd: %s\n", len, text);
    close(other_file);
    unlink("/tmp/splices.other");
    struct iovec parts[2] = {{(char *)"one ", 4}, {(char *)"two", 3}};
    SHOW(vmsplice(a[1], parts, 2, 0));
    char one[3] = "", other[10] = "";
    struct iovec into[2] = {{one, 2}, {other, 9}};
    SHOW(vmsplice(a[0], into, 2, 0));
    printf("%s|%s\n", one, other);
    int sockets[2];
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    NEED(write(a[1], "to a socket", 11) == 11);
    SHOW(splice(a[0], NULL, sockets[0], NULL, 100, 0));
    printf("%s\n", next(sockets[1]));
    int zero = open("/dev/null", O_WRONLY);
    NEED(write(a[1], "to nothing", 10) == 10);
    SHOW(splice(a[0], NULL, zero, NULL, 100, 0));
    printf("%d wait\n", waiting(a[0]));
    close(zero);
}

static void waits(void) {
    section("waits");
    fflush(stdout);
    // Full, then room.
    static char much[65536];
    NEED(write(b[1], much, sizeof much) == sizeof much);
    NEED(write(a[1], "some", 4) == 4);
    FAILS(splice(a[0], NULL, b[1], NULL, 4, SPLICE_F_NONBLOCK), EAGAIN);
    FAILS(tee(a[0], b[1], 4, SPLICE_F_NONBLOCK), EAGAIN);
    FAILS(splice(file, NULL, b[1], NULL, 4, SPLICE_F_NONBLOCK), EAGAIN);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        pause_ms(30);
        _exit(read(b[0], much, sizeof much) != sizeof much);
    }
    SHOW(splice(a[0], NULL, b[1], NULL, 4, 0));
    int status;
    need(waitpid(child, &status, 0) == child && status == 0, "a reader");
    printf("%s\n", next(b[0]));
    // Empty, then not; and the end.
    fflush(stdout);
    child = fork();
    if (!child) {
        pause_ms(30);
        NEED(write(a[1], "late", 4) == 4);
        pause_ms(30);
        NEED(write(a[1], "later", 5) == 5);
        _exit(0);
    }
    SHOW(splice(a[0], NULL, file, NULL, 100, 0));
    SHOW(tee(a[0], b[1], 100, 0));
    need(waitpid(child, &status, 0) == child && status == 0, "a writer");
    close(a[1]);
    SHOW(splice(a[0], NULL, b[1], NULL, 100, 0));
    SHOW(splice(a[0], NULL, b[1], NULL, 100, 0));
    SHOW(splice(a[0], NULL, file, NULL, 100, 0));
    SHOW(tee(a[0], b[1], 100, 0));
    printf("%s\n", next(b[0]));
    // All of a file, as copies are made.
    int from = open("/proc/self/exe", O_RDONLY), to = open("/tmp/splices.copy", O_CREAT | O_RDWR | O_TRUNC, 0600);
    long all = 0;
    for (ssize_t len; (len = splice(from, NULL, b[1], NULL, 1 << 20, 0)) > 0;)
        while (len > 0) {
            ssize_t moved = splice(b[0], NULL, to, NULL, (size_t)len, 0);
            need(moved > 0, "splice");
            len -= moved;
            all += moved;
        }
    CHECK(all == lseek(from, 0, SEEK_END) && all == lseek(to, 0, SEEK_END));
    static char one[1 << 16], other[1 << 16];
    int same = 1;
    for (off_t at = 0; at < all; at += sizeof one) {
        ssize_t got = pread(from, one, sizeof one, at);
        same &= got == pread(to, other, sizeof other, at) && !memcmp(one, other, (size_t)got);
    }
    CHECK(same);
    unlink("/tmp/splices.copy");
}

int main(void) {
    int dead[2];
    need(pipe(a) == 0 && pipe(b) == 0 && pipe(dead) == 0, "pipes");
    close(dead[0]);
    broken = dead[1];
    file = open("/tmp/splices", O_CREAT | O_RDWR | O_TRUNC, 0600);
    need(write(file, "0123456789abcdefghijklmnopqrstuvwxyz", 36) == 36 && lseek(file, 0, SEEK_SET) == 0, "a file");
    errors();
    moves();
    waits();
    unlink("/tmp/splices");
    return 0;
}
