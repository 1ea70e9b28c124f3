// Every way to name what must not be read: paths FORBIDDEN CONTENT-PREFIX
//
// FORBIDDEN is a host file outside the readable trees, given absolutely. Nothing may open it.
#include "hostile.h"
#include <fcntl.h>
#include <sys/stat.h>

static unsigned long tried, opened;
static const char *secret;

static void check(long fd, const char *how) {
    tried++;
    if (fd < 0) return;
    char buf[256] = {0};
    long n = pread((int)fd, buf, sizeof buf - 1, 0);
    if (n > 0 && strstr(buf, secret)) {
        opened++;
        printf("FAIL opened by %s\n", how);
    }
    close((int)fd);
}

static void each_way(const char *path) {
    uint64_t p = (uint64_t)(uintptr_t)path;
    check(raw6(SYS_open, p, O_RDONLY, 0, 0, 0, 0), path);
    check(raw6(SYS_open, p, O_RDWR, 0, 0, 0, 0), path);
    check(raw6(SYS_open, p, O_RDONLY | O_NOFOLLOW, 0, 0, 0, 0), path);
    check(raw6(SYS_openat, (uint64_t)AT_FDCWD, p, O_RDONLY, 0, 0, 0), path);
    uint64_t how[3] = {O_RDONLY, 0, 0};
    for (uint64_t resolve = 0; resolve < 0x40; resolve++) {
        how[2] = resolve;
        check(raw6(SYS_openat2, (uint64_t)AT_FDCWD, p, (uint64_t)(uintptr_t)how, 24, 0, 0), path);
    }
    int dirs[] = {open(".", O_RDONLY | O_DIRECTORY), open("/tmp", O_RDONLY | O_DIRECTORY), open("/usr", O_RDONLY | O_DIRECTORY),
                  open("/", O_RDONLY | O_DIRECTORY), open("/etc", O_PATH | O_DIRECTORY), open("/proc/self", O_PATH)};
    for (unsigned i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        check(raw6(SYS_openat, (uint64_t)dirs[i], p, O_RDONLY, 0, 0, 0), path);
        if (dirs[i] >= 0) close(dirs[i]);
    }
    // A mere location first, then again through it.
    long location = raw6(SYS_open, p, O_PATH, 0, 0, 0, 0);
    if (location >= 0) {
        char again[64];
        snprintf(again, sizeof again, "/proc/self/fd/%ld", location);
        check(open(again, O_RDONLY), again);
        snprintf(again, sizeof again, "/dev/fd/%ld", location);
        check(open(again, O_RDONLY), again);
        check(raw6(SYS_openat, (uint64_t)location, (uint64_t)(uintptr_t)"", O_RDONLY, 0, 0, 0), "an empty name");
        char buf[64];
        long n = raw6(SYS_pread64, (uint64_t)location, (uint64_t)(uintptr_t)buf, 64, 0, 0, 0);
        if (n > 0) printf("FAIL read from a location\n");
        if (raw6(SYS_mmap, 0, PAGE, PROT_READ, MAP_PRIVATE, (uint64_t)location, 0) > 0) printf("FAIL mapped a location\n");
        close((int)location);
    }
    // By links made in /tmp.
    unlink("/tmp/paths-link");
    if (symlink(path, "/tmp/paths-link") == 0) {
        check(open("/tmp/paths-link", O_RDONLY), "a symbolic link");
        check(open("/tmp/paths-link", O_RDWR | O_TRUNC), "a symbolic link");
        check(open("/tmp/paths-link/", O_RDONLY), "a symbolic link");
        truncate("/tmp/paths-link", 0);
        chmod("/tmp/paths-link", 0777);
    }
    unlink("/tmp/paths-hard");
    if (link(path, "/tmp/paths-hard") == 0) check(open("/tmp/paths-hard", O_RDONLY), "a hard link");
    if (rename(path, "/tmp/paths-hard") == 0) printf("FAIL renamed %s\n", path);
    if (unlink(path) == 0 && strncmp(path, "/tmp", 4)) printf("FAIL removed %s\n", path);
}

int main(int argc, char **argv) {
    need(argc == 3, "arguments");
    const char *target = argv[1];
    secret = argv[2];
    static char path[20000];
    each_way(target);
    const char *prefixes[] = {"/tmp/..", "/usr/..", "/usr/bin/../..", "/.", "//", "/proc/self/root", "/proc/1/root", "/proc/self/cwd/../../../../../../..",
                              "/proc/thread-self/root", "/dev/fd/../../..", "/proc/self/fd/../../..", "/usr/../usr/../tmp/../", "/../../..", "/tmp/paths-up/../..",
                              "/lib/..", "/bin/../..", "/etc/..", "/etc/alternatives/../..", "/sys/../", "/dev/../", "/var/run/../..", "/root/.."};
    mkdir("/tmp/paths-up", 0700);
    for (unsigned i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        snprintf(path, sizeof path, "%s%s", prefixes[i], target);
        each_way(path);
    }
    // Climbing from here, from deep directories, through links to directories.
    for (int depth = 0; depth < 40; depth++) {
        path[0] = 0;
        for (int i = 0; i < depth; i++) strcat(path, "../");
        strcat(path, target + 1);
        check(open(path, O_RDONLY), path);
        chdir("/tmp");
        check(open(path, O_RDONLY), path);
        chdir("/usr/lib");
        check(open(path, O_RDONLY), path);
    }
    symlink("/", "/tmp/paths-root");
    symlink("..", "/tmp/paths-dotdot");
    symlink("/proc/self/root", "/tmp/paths-proc");
    symlink("/usr/..", "/tmp/paths-usr");
    const char *links[] = {"/tmp/paths-root", "/tmp/paths-dotdot", "/tmp/paths-proc", "/tmp/paths-usr", "/tmp/paths-root/tmp/paths-root"};
    for (unsigned i = 0; i < sizeof links / sizeof *links; i++) {
        snprintf(path, sizeof path, "%s%s", links[i], target);
        each_way(path);
        if (chdir(links[i]) == 0) check(open(target + 1, O_RDONLY), links[i]);
    }
    // Every descriptor that is open, as a directory and as a file.
    for (int fd = 0; fd < 256; fd++) {
        check(raw6(SYS_openat, (uint64_t)fd, (uint64_t)(uintptr_t)(target + 1), O_RDONLY, 0, 0, 0), "a descriptor");
        snprintf(path, sizeof path, "/proc/self/fd/%d%s", fd, target);
        check(open(path, O_RDONLY), path);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        check(open(path, O_RDONLY | O_NONBLOCK), path);
    }
    // Loops and lengths.
    symlink("/tmp/paths-b", "/tmp/paths-a");
    symlink("/tmp/paths-a", "/tmp/paths-b");
    printf("loop: %s\n", strerrorname_np((int)-raw6(SYS_open, (uint64_t)(uintptr_t)"/tmp/paths-a", 0, 0, 0, 0, 0)));
    for (int i = 0; i < 60; i++) {
        char from[64], to[64];
        snprintf(from, sizeof from, "/tmp/paths-chain%d", i);
        snprintf(to, sizeof to, "paths-chain%d", i + 1);
        symlink(to, from);
    }
    close(creat("/tmp/paths-chain60", 0600));
    for (int i = 0; i <= 60; i += 5) {
        snprintf(path, sizeof path, "/tmp/paths-chain%d", i);
        int fd = open(path, O_RDONLY);
        printf("a chain of %d: %s\n", 60 - i, fd < 0 ? strerrorname_np(errno) : "opened");
        if (fd >= 0) close(fd);
    }
    static const unsigned lengths[] = {254, 255, 256, 1000, 4090, 4094, 4095, 4096, 4097, 10000, 19990};
    for (unsigned i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        memset(path, 'n', sizeof path);
        path[lengths[i]] = 0;
        memcpy(path, "/tmp/", 5);
        printf("one name, %u in all: %s\n", lengths[i], strerrorname_np((int)-raw6(SYS_open, (uint64_t)(uintptr_t)path, 0, 0, 0, 0, 0)));
        for (unsigned at = 4; at < lengths[i]; at += 2) path[at] = '/', path[at + 1] = '.';
        path[lengths[i]] = 0;
        struct stat st;
        long r = raw6(SYS_stat, (uint64_t)(uintptr_t)path, (uint64_t)(uintptr_t)&st, 0, 0, 0, 0);
        printf("dots, %u in all: %s\n", lengths[i], r < 0 ? strerrorname_np((int)-r) : "found");
        r = raw6(SYS_symlink, (uint64_t)(uintptr_t)path, (uint64_t)(uintptr_t)"/tmp/paths-long", 0, 0, 0, 0);
        printf("a link of %u: %s\n", lengths[i], r < 0 ? strerrorname_np((int)-r) : "made");
        r = raw6(SYS_stat, (uint64_t)(uintptr_t)"/tmp/paths-long", (uint64_t)(uintptr_t)&st, 0, 0, 0, 0);
        printf("through it: %s\n", r < 0 ? strerrorname_np((int)-r) : "found");
        unlink("/tmp/paths-long");
    }
    // A deep tree, and the way back up.
    chdir("/tmp");
    int depth = 0;
    for (; depth < 2000; depth++)
        if (mkdir("d", 0700) != 0 || chdir("d") != 0) break;
    printf("%d deep\n", depth);
    long r = raw6(SYS_getcwd, (uint64_t)(uintptr_t)path, sizeof path, 0, 0, 0, 0);
    printf("getcwd there: %s\n", r < 0 ? strerrorname_np((int)-r) : "fine");
    r = raw6(SYS_getcwd, (uint64_t)(uintptr_t)path, 100, 0, 0, 0, 0);
    printf("getcwd in little room: %s\n", r < 0 ? strerrorname_np((int)-r) : "fine");
    for (int i = 0; i < depth; i++) need(chdir("..") == 0 && rmdir("d") == 0, "climbing back");
    // A directory moved under itself; the working directory removed.
    mkdir("/tmp/paths-x", 0700);
    mkdir("/tmp/paths-x/y", 0700);
    r = raw6(SYS_rename, (uint64_t)(uintptr_t)"/tmp/paths-x", (uint64_t)(uintptr_t)"/tmp/paths-x/y/z", 0, 0, 0, 0);
    printf("a directory under itself: %s\n", r < 0 ? strerrorname_np((int)-r) : "done");
    chdir("/tmp/paths-x/y");
    rmdir("/tmp/paths-x/y");
    r = raw6(SYS_getcwd, (uint64_t)(uintptr_t)path, sizeof path, 0, 0, 0, 0);
    printf("getcwd of nothing: %s\n", r < 0 ? strerrorname_np((int)-r) : "fine");
    r = raw6(SYS_open, (uint64_t)(uintptr_t)"new", O_CREAT | O_RDWR, 0600, 0, 0, 0);
    printf("create in nothing: %s\n", r < 0 ? strerrorname_np((int)-r) : "fine");
    r = raw6(SYS_open, (uint64_t)(uintptr_t)"../../..", O_RDONLY, 0, 0, 0, 0);
    printf("up from nothing: %s\n", r < 0 ? strerrorname_np((int)-r) : "fine");
    chdir("/tmp");
    printf("%lu opened\n", opened);
    fprintf(stderr, "%lu tried\n", tried);
    return opened != 0;
}
