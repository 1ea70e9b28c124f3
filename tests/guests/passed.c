// What descriptors that the caller passed are: those of the arguments, each shown and then used.
#include "guest.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

// The kind of text that its link in /proc/self/fd has.
static const char *link_kind(int fd) {
    char name[64], text[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(name, text, sizeof text - 1);
    if (len < 0) return errno_name(errno);
    text[len] = 0;
    return !strncmp(text, "pipe:[", 6) ? "pipe" : !strncmp(text, "socket:[", 8) ? "socket" : "path";
}

static void show(int fd) {
    struct stat st, by_name;
    if (fstat(fd, &st)) {
        printf("fd %d: %s\n", fd, errno_name(errno));
        return;
    }
    int flags = fcntl(fd, F_GETFL);
    char name[64];
    snprintf(name, sizeof name, "/dev/fd/%d", fd);
    int same = !stat(name, &by_name) && by_name.st_ino == st.st_ino && by_name.st_dev == st.st_dev;
    printf("fd %d: mode %o access %d append %d nonblock %d cloexec %d link %s same %d\n", fd, st.st_mode & S_IFMT,
           flags & O_ACCMODE, !!(flags & O_APPEND), !!(flags & O_NONBLOCK), fcntl(fd, F_GETFD), link_kind(fd), same);
    char text[17] = "";
    SHOW(lseek(fd, 0, SEEK_CUR));
    if ((flags & O_ACCMODE) != O_WRONLY) {
        SHOW(read(fd, text, 4));
        printf("read '%s'\n", text);
    } else {
        SHOW(read(fd, text, 4));
    }
    if ((flags & O_ACCMODE) != O_RDONLY) {
        SHOW(write(fd, "new", 3));
    } else {
        SHOW(write(fd, "new", 3));
        SHOW(ftruncate(fd, 0));
    }
    if (S_ISREG(st.st_mode) && (flags & O_ACCMODE) == O_RDONLY) {
        // A name of it opens it anew: its offset is its own.
        memset(text, 0, sizeof text);
        int again = open(name, O_RDONLY);
        SHOW(again >= 0);
        SHOW(read(again, text, 6));
        printf("again '%s'\n", text);
        SHOW(lseek(again, -2, SEEK_END));
        SHOW(close(again));
    }
    SHOW(openat(fd, "x", O_RDONLY));
    SHOW(lseek(fd, 0, SEEK_CUR));
}

// The numbers of all descriptors but that of the listing itself.
static void list(void) {
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *entry;
    printf("open:");
    for (int fd = 0; fd < 4096; fd++)
        if (fd != dirfd(dir) && fcntl(fd, F_GETFD) >= 0) printf(" %d", fd);
    int count = 0;
    while ((entry = readdir(dir))) count += entry->d_name[0] != '.';
    printf("\nlisted: %d\n", count - 1);
    closedir(dir);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IONBF, 0);
    list();
    for (int i = 1; i < argc; i++) show(atoi(argv[i]));
    return 0;
}
