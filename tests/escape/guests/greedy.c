// Takes as much as it can get of everything that could cost its host descriptors or mappings, says how
// far it came, and keeps it: greedy DIRECTORY [leave]
#include "hostile.h"
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static const char *reason(long result) {
    return result < 0 ? strerrorname_np(errno) : "stopped";
}

#define TAKE(what, most, take)                          \
    do {                                                \
        unsigned long n_ = 0;                           \
        long r_ = 0;                                    \
        for (; n_ < (most); n_++)                       \
            if ((r_ = (long)(take)) < 0) break;         \
        printf("%s: %lu, %s\n", what, n_, reason(r_));  \
    } while (0)

// Opens every file of the directory and maps it; the mapping stays when the descriptor is closed.
static void maps_of_files(const char *directory) {
    DIR *dir = opendir(directory);
    need(dir != NULL, "opendir");
    unsigned long n = 0;
    const char *why = "stopped";
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        int fd = openat(dirfd(dir), entry->d_name, O_RDONLY);
        if (fd < 0) {
            why = strerrorname_np(errno);
            break;
        }
        void *at = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
        close(fd);
        if (at == MAP_FAILED) {
            why = strerrorname_np(errno);
            break;
        }
        n++;
    }
    closedir(dir);
    printf("maps of files: %lu, %s\n", n, why);
}

// One file, mapped again and again; each by a descriptor of its own.
static void maps_of_one(void) {
    unsigned long n = 0;
    long r = 0;
    for (; n < 400; n++) {
        int fd = open("/proc/self/exe", O_RDONLY);
        if ((r = fd) < 0) break;
        void *at = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
        close(fd);
        if ((r = at == MAP_FAILED ? -1 : 0) < 0) break;
    }
    printf("opened and mapped: %lu, %s\n", n, reason(r));
}

// Holes in a mapping of a file: each makes two of the host's mappings more, no other call so many.
static void holes(int fd) {
    const unsigned long pages = 40000;
    char *window = mmap(NULL, pages * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    unsigned long n = 0;
    if (window == MAP_FAILED) {
        printf("holes: 0, %s\n", strerrorname_np(errno));
        return;
    }
    long r = 0;
    for (unsigned long page = 1; page < pages; page += 2, n++)
        if ((r = munmap(window + page * PAGE, PAGE)) < 0) break;
    printf("holes: %lu, %s\n", n, reason(r));
    // What has been refused is not had by other ways.
    TAKE("maps", 100, mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0));
    TAKE("longer maps", 100, mremap(window, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    // These take none.
    TAKE("rights", 1, mprotect(window + (pages - 4) * PAGE, PAGE, PROT_NONE));
    TAKE("an end", 1, munmap(window, PAGE));
}

static int sleep_for_ever(void *unused) {
    (void)unused;
    for (;;) pause();
    return 0;
}

static long thread(void) {
    const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    char *stack = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return stack == MAP_FAILED ? -1 : clone(sleep_for_ever, stack + 2 * PAGE, flags, NULL);
}

int main(int argc, char **argv) {
    need(argc >= 2, "arguments");
    setvbuf(stdout, NULL, _IONBF, 0);
    int big = open("/proc/self/exe", O_RDONLY), pair[2];
    maps_of_one();
    maps_of_files(argv[1]);
    holes(big);
    TAKE("directories", 40, open("/usr", O_RDONLY | O_DIRECTORY));
    TAKE("locations", 40, open("/usr/bin", O_PATH));
    TAKE("pipes", 40, pipe(pair));
    TAKE("sockets", 40, socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    TAKE("memfds", 40, syscall(SYS_memfd_create, "m", 0));
    TAKE("shared memory", 40, open("/dev/shm/all", O_RDWR | O_CREAT, 0600));
    TAKE("epolls", 40, epoll_create1(0));
    TAKE("counters", 40, eventfd(0, 0));
    TAKE("watchers", 40, inotify_init1(0));
    TAKE("timers", 40, timerfd_create(CLOCK_MONOTONIC, 0));
    TAKE("threads", 40, thread());
    TAKE("files", 2000, open(argv[0], O_RDONLY));
    printf("has all\n");
    if (argc > 2) _exit(0);
    sleep_for_ever(NULL);
}
