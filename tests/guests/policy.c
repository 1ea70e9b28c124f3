// Tries what its arguments say and prints how each attempt ended:
// policy ACTION ARG [ACTION ARG]...
#include "guest.h"
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <dirent.h>

static int attempt(const char *what, const char *arg) {
    struct stat st;
    char buf[4096];
    if (!strcmp(what, "read")) {
        int fd = open(arg, O_RDONLY | O_CLOEXEC);
        if (fd < 0) return -1;
        ssize_t n = read(fd, buf, sizeof buf);
        int e = errno;
        close(fd);
        errno = e;
        return n < 0 ? -1 : n > 0;
    }
    if (!strcmp(what, "write")) return open(arg, O_WRONLY | O_CLOEXEC);
    if (!strcmp(what, "rdwr")) return open(arg, O_RDWR | O_CLOEXEC);
    if (!strcmp(what, "create")) return open(arg, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (!strcmp(what, "truncate")) return truncate(arg, 0);
    if (!strcmp(what, "mkdir")) return mkdir(arg, 0700);
    if (!strcmp(what, "rmdir")) return rmdir(arg);
    if (!strcmp(what, "unlink")) return unlink(arg);
    if (!strcmp(what, "rename")) return rename(arg, "renamed");
    if (!strcmp(what, "symlink")) return symlink("target", arg);
    if (!strcmp(what, "link")) return link(arg, "/tmp/linked");
    if (!strcmp(what, "chmod")) return chmod(arg, 0777);
    if (!strcmp(what, "chown")) return chown(arg, 1, 1);
    if (!strcmp(what, "utimes")) return utimensat(AT_FDCWD, arg, NULL, 0);
    if (!strcmp(what, "mknod")) return mknod(arg, S_IFCHR | 0600, 0x103);
    if (!strcmp(what, "stat")) return stat(arg, &st);
    if (!strcmp(what, "lstat")) return lstat(arg, &st);
    if (!strcmp(what, "access-w")) return access(arg, W_OK);
    if (!strcmp(what, "chdir")) return chdir(arg);
    if (!strcmp(what, "chroot")) return chroot(arg);
    if (!strcmp(what, "readlink")) return readlink(arg, buf, sizeof buf) < 0 ? -1 : 0;
    if (!strcmp(what, "list")) {
        DIR *d = opendir(arg);
        if (!d) return -1;
        int n = 0;
        while (readdir(d)) n++;
        closedir(d);
        return n > 2;
    }
    if (!strcmp(what, "openat-up")) {
        // Climbs from a directory descriptor instead of naming a path.
        int dir = open(".", O_RDONLY | O_DIRECTORY);
        char path[4096] = "";
        for (int i = 0; i < 40; i++) strcat(path, "../");
        strcat(path, arg);
        return openat(dir, path, O_RDONLY);
    }
    if (!strcmp(what, "socket"))
        return socket(!strcmp(arg, "inet") ? AF_INET : !strcmp(arg, "inet6") ? AF_INET6 : !strcmp(arg, "unix") ? AF_UNIX : AF_NETLINK,
                      !strcmp(arg, "netlink") ? SOCK_RAW : SOCK_STREAM, 0);
    if (!strcmp(what, "connect")) {
        struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(80)};
        struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(80)};
        int is_six = inet_pton(AF_INET, arg, &four.sin_addr) != 1;
        if (is_six && inet_pton(AF_INET6, arg, &six.sin6_addr) != 1) return -1;
        int fd = socket(is_six ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
        return is_six ? connect(fd, (void *)&six, sizeof six) : connect(fd, (void *)&four, sizeof four);
    }
    errno = ENOSYS;
    return -1;
}

int main(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        errno = 0;
        int r = attempt(argv[i], argv[i + 1]);
        printf("%s %s: %s\n", argv[i], argv[i + 1], r < 0 ? errno_name(errno) : r == 0 || strcmp(argv[i], "read") ? "ok" : "data");
    }
    return 0;
}
