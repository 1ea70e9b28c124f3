// Files of others in memory: root changes them as on Linux, and another user does not.
#include "guest.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void show(const char *path) {
    struct stat st;
    if (lstat(path, &st)) {
        printf("%s: %s\n", path, errno_name(errno));
        return;
    }
    unsigned own = st.st_uid == geteuid() && geteuid() != 0;
    printf("%s: %o %d:%d\n", path, st.st_mode, own ? -1 : (int)st.st_uid, own ? -1 : (int)st.st_gid);
}

static void make(const char *path, mode_t mode) {
    int fd = open(path, O_CREAT | O_WRONLY | O_EXCL, 0600);
    need(fd >= 0 && write(fd, "#!/bin/true\n", 12) == 12, path);
    close(fd);
    need(chmod(path, mode) == 0, "chmod");
}

static void run(const char *path) {
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        execl(path, path, (char *)NULL);
        printf("execl %s: %s\n", path, errno_name(errno));
        fflush(stdout);
        _exit(1);
    }
    int status;
    need(waitpid(pid, &status, 0) == pid, "waitpid");
    printf("%s ended with %#x\n", path, status);
}

int main(void) {
    char dir[] = "/tmp/rootfiles-XXXXXX";
    need(mkdtemp(dir) && chdir(dir) == 0, "a directory");
    printf("%s\n", geteuid() == 0 ? "root" : "another user");
    make("given", 06755);
    SHOW(chown("given", 1000, 1001));
    show("given");
    SHOW(chown("given", -1, 1002));
    SHOW(chmod("given", 02711));
    show("given");
    make("closed", 0);
    SHOW(lchown("closed", 1000, 1000));
    SHOW(access("closed", R_OK | W_OK));
    SHOW(access("closed", X_OK));
    int fd = open("closed", O_RDWR | O_APPEND);
    printf("opened: %s\n", fd >= 0 ? "yes" : errno_name(errno));
    if (fd >= 0) {
        SHOW(write(fd, "more", 4));
        SHOW(fchown(fd, 1003, -1));
        SHOW(fchmod(fd, 0100));
        close(fd);
    }
    show("closed");
    SHOW(truncate("closed", 12));
    run("closed");
    SHOW(chmod("closed", 0600));
    run("closed");
    fd = open("closed", O_RDONLY | O_NOATIME);
    printf("O_NOATIME: %s\n", fd >= 0 ? "yes" : errno_name(errno));
    struct timespec times[2] = {{1000, 0}, {2000, 0}};
    SHOW(utimensat(AT_FDCWD, "given", times, 0));
    SHOW(symlink("nowhere", "link"));
    SHOW(lchown("link", 5, 6));
    show("link");
    // A directory of somebody else's, closed to all others, and one whose names belong to their owners.
    SHOW(mkdir("theirs", 0700));
    SHOW(chown("theirs", 1000, 1000));
    SHOW(mkdir("theirs/below", 0700));
    SHOW(chdir("theirs"));
    SHOW(chdir(dir));
    make("sticky", 0644);
    SHOW(mkdir("shared", 0777));
    SHOW(chmod("shared", 01777));
    SHOW(rename("sticky", "shared/sticky"));
    SHOW(chown("shared/sticky", 1000, 1000));
    SHOW(chown("shared", 1001, 1001));
    SHOW(rename("shared/sticky", "shared/other"));
    SHOW(unlink("shared/other"));
    SHOW(rmdir("theirs/below"));
    SHOW(rmdir("theirs"));
    return 0;
}
