// Makes kvmlet keep or build as much as it can of one thing, by calls that take little memory here:
// hoard WHAT
//
// Says how far it came on standard error. In the end it takes all memory that it may have, so that the
// limit ends it: what kvmlet keeps for it and has not charged comes on top of that.
#include "hostile.h"
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>

#define LONG_NAME 250

static char name[LONG_NAME + 1];
static char block[1 << 16];

static void reached(const char *what, unsigned long count) {
    fprintf(stderr, "%s: %lu, then %s\n", what, count, strerrorname_np(errno));
}

static unsigned long many_descriptors(void) {
    struct rlimit limit = {1 << 20, 1 << 20};
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
        getrlimit(RLIMIT_NOFILE, &limit);
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    return limit.rlim_cur;
}

// A working directory whose path has `bytes` bytes.
static void go_deep(unsigned bytes) {
    need(chdir("/tmp") == 0, "chdir");
    for (unsigned len = 4; len < bytes; len += LONG_NAME + 1) {
        need(mkdir(name, 0700) == 0, "mkdir");
        if (chdir(name) != 0) break;
    }
}

// All of a file, read in blocks.
static void read_all(const char *path) {
    unsigned long bytes = 0;
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        reached(path, 0);
        return;
    }
    long r;
    while ((r = read(fd, block, sizeof block)) > 0) bytes += (unsigned long)r;
    reached(path, bytes);
    close(fd);
}

static void fill(void) {
    for (;;) {
        char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) p = sbrk(1 << 20);
        // Not even an area more: what was kept for it has taken all there is.
        if (p == (void *)-1) return;
        memset(p, 1, 1 << 20);
    }
}

// A name of 64 KiB, mapped again and again: /proc/self/maps says it each time.
static void maps(void) {
    go_deep(62 << 10);
    int fd = open("f", O_RDWR | O_CREAT, 0600);
    need(fd >= 0, "creating a file");
    ftruncate(fd, PAGE);
    unsigned long n = 0;
    while (n < 3000 && mmap(NULL, PAGE, n & 1 ? PROT_READ : PROT_NONE, MAP_SHARED, fd, 0) != MAP_FAILED) n++;
    reached("maps", n);
    unsigned long bytes = 0;
    int at = open("/proc/self/maps", O_RDONLY);
    long r = at < 0 ? -1 : 0;
    // A part of it is enough: nobody may build more than what is read.
    while (at >= 0 && bytes < 64 << 20 && (r = read(at, block, sizeof block)) > 0) bytes += (unsigned long)r;
    reached("bytes of /proc/self/maps", bytes);
}

// Each mapping with a long name of its own.
static void named_maps(void) {
    go_deep(62 << 10);
    unsigned long n = 0;
    for (; n < 2500; n++) {
        char own[32];
        snprintf(own, sizeof own, "%lu", n);
        int fd = open(own, O_RDWR | O_CREAT, 0600);
        if (fd < 0 || ftruncate(fd, PAGE) != 0) break;
        if (mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED) break;
        close(fd);
    }
    reached("named maps", n);
}

// Each description with a long name.
static void long_names(void) {
    many_descriptors();
    go_deep(62 << 10);
    unsigned long n = 0;
    while (n < 4000 && open("f", O_RDWR | O_CREAT, 0600) >= 0) n++;
    reached("descriptions with long names", n);
}

static void epoll_items(void) {
    many_descriptors();
    unsigned long n = 0;
    int event = eventfd(0, EFD_NONBLOCK), set = -1, first = event;
    for (int i = 0; i < 40; i++) {
        int next = epoll_create1(0);
        set = set < 0 ? next : set;
        for (int fd = first; fd < 1000; fd++) {
            if (i == 0 && fd != event && dup2(event, fd) != fd && fd != set) break;
            struct epoll_event one = {.events = EPOLLIN, .data.u64 = ~0ul};
            n += epoll_ctl(next, EPOLL_CTL_ADD, fd, &one) == 0;
        }
        first = event + 60;
    }
    reached("epoll items", n);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", set);
    read_all(path);
}

// Directories of /proc, each opened with all the names it has.
static void proc_fd(void) {
    many_descriptors();
    unsigned long n = 0, dirs = 0;
    while (n < 500 && dup(0) >= 0) n++;
    while (dirs < 500 && open("/proc/self/fd", O_RDONLY | O_DIRECTORY) >= 0) dirs++;
    reached("directories of descriptors", dirs);
    for (int fd = 3; fd < 1100; fd++)
        if (syscall(SYS_getdents64, fd, block, sizeof block) > 0) dirs++;
    reached("listings", dirs);
}

static void listing(void) {
    unsigned long n = 0;
    mkdir("/tmp/names", 0700);
    need(chdir("/tmp/names") == 0, "chdir");
    for (; n < 8000; n++) {
        char own[LONG_NAME + 1];
        memcpy(own, name, sizeof own);
        own[snprintf(own, sizeof own, "%lu", n)] = '-';
        if (n == 0) close(creat("zero", 0600));
        else if (link("zero", own) != 0) break;
    }
    reached("names", n);
    DIR *dir = opendir(".");
    unsigned long seen = 0;
    while (dir && readdir(dir)) seen++;
    fprintf(stderr, "%lu seen\n", seen);
}

// Directories of the host, each with a listing.
static void host_listings(const char *path) {
    many_descriptors();
    unsigned long n = 0;
    for (; n < 1000; n++) {
        int fd = open(path, O_RDONLY | O_DIRECTORY);
        if (fd < 0) break;
        if (syscall(SYS_getdents64, fd, block, 4096) <= 0) break;
    }
    reached("listings of the host", n);
}

static void denials(void) {
    static char path[4096];
    memset(path, 1, sizeof path - 1);  // shown as six characters each
    memcpy(path, "/etc/shadow", 11);
    for (unsigned at = 11; at < sizeof path - 1; at += 200) path[at] = '/';
    for (unsigned long n = 0; n < 4000; n++) {
        snprintf(path + 4000, 96, "%lu", n);
        open(path, O_RDWR | O_CREAT, 0600);
        mkdir(path, 0700);
    }
    for (unsigned long n = 0; n < 2000; n++) {
        ioctl(0, (unsigned)n * 7919, 0);
        fcntl(0, (int)n + 2000, 0);
        raw6((long)n + 500, n, n, n, n, n, n);
        raw6(SYS_prctl, n + 1000, n, 0, 0, 0, 0);
    }
    reached("refusals", 8000);
}

static void pipes(void) {
    many_descriptors();
    unsigned long n = 0, bytes = 0;
    for (; n < 100000; n++) {
        int fds[2];
        if (pipe2(fds, O_NONBLOCK) < 0) break;
        // Each byte a buffer of its own, where a pipe has packets.
        long w;
        unsigned packets = 0;
        int packet[2];
        if (pipe2(packet, O_NONBLOCK | O_DIRECT) == 0)
            while (packets++ < 4096 && (w = write(packet[1], block, 1)) > 0) bytes += (unsigned long)w;
        w = write(fds[1], block, 1);
    }
    reached("pipes", n);
    fprintf(stderr, "%lu bytes\n", bytes);
}

// As many as there may be, with all that they hold: lines without an end, and echoes that nobody reads.
static void terminals(void) {
    many_descriptors();
    memset(block, 'x', sizeof block);
    unsigned long n = 0, refused = 0;
    for (; n < 100000 && refused < 1000; n++) {
        int master = open("/dev/ptmx", O_RDWR | O_NONBLOCK | O_NOCTTY), zero = 0;
        if (master < 0) { refused++; continue; }
        ioctl(master, TIOCSPTLCK, &zero);
        int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NONBLOCK | O_NOCTTY);
        while (write(master, block, sizeof block) > 0) {}
        while (write(slave, block, sizeof block) > 0) {}
    }
    reached("terminals", n - refused);
}

static void sockets(void) {
    many_descriptors();
    unsigned long n = 0, messages = 0;
    for (; n < 100000; n++) {
        int fds[2];
        if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, fds) < 0) break;
        int size = 1 << 30;
        setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        while (send(fds[0], block, 1, 0) >= 0) messages++;
        while (send(fds[1], block, 8192, 0) >= 0) messages++;
    }
    reached("socket pairs", n);
    fprintf(stderr, "%lu messages\n", messages);
}

// Connections that nobody accepts, each with a single message in it.
static void connections(void) {
    many_descriptors();
    unsigned long n = 0;
    for (unsigned long l = 0; l < 200; l++) {
        struct sockaddr_un at = {.sun_family = AF_UNIX};
        socklen_t len = (socklen_t)(sizeof at.sun_family + 1) + (socklen_t)snprintf(at.sun_path + 1, 32, "l%lu", l);
        int listener = socket(AF_UNIX, SOCK_STREAM, 0), one = 1;
        if (listener < 0 || bind(listener, (struct sockaddr *)&at, len) != 0 || listen(listener, 4096) != 0) break;
        setsockopt(listener, SOL_SOCKET, SO_PASSCRED, &one, sizeof one);
        for (int i = 0; i < 4096; i++, n++) {
            int fd = socket(AF_UNIX, SOCK_STREAM, 0);
            if (fd < 0 || connect(fd, (struct sockaddr *)&at, len) != 0 || send(fd, "y", 1, MSG_DONTWAIT) != 1) {
                reached("connections", n);
                return;
            }
            close(fd);
        }
    }
    reached("connections", n);
}

static void objects(void) {
    many_descriptors();
    unsigned long n = 0;
    for (; n < 400000; n++) {
        int fd = n % 3 == 0 ? eventfd(0, 0) : n % 3 == 1 ? timerfd_create(CLOCK_MONOTONIC, 0) : epoll_create1(0);
        if (fd < 0) break;
        struct itimerspec far = {.it_value.tv_sec = 1000000};
        if (n % 3 == 1) timerfd_settime(fd, 0, &far, NULL);
    }
    reached("objects", n);
}

static void areas(void) {
    unsigned long n = 0;
    while (n < 12000 && mmap(NULL, PAGE, n & 1 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) n++;
    reached("areas", n);
    read_all("/proc/self/maps");
}

// Threads that wait for very many descriptors each.
static struct pollfd *polled;
static unsigned long polled_count;
static void *poll_for_ever(void *unused) {
    (void)unused;
    poll(polled, polled_count, -1);
    return NULL;
}
static void pollers(void) {
    int fds[2];
    need(pipe(fds) == 0, "pipe");
    polled_count = many_descriptors();
    polled_count = polled_count < 60000 ? polled_count : 60000;
    polled = calloc(polled_count, sizeof *polled);
    for (unsigned long i = 0; i < polled_count; i++) polled[i] = (struct pollfd){.fd = fds[0], .events = POLLIN};
    unsigned long n = 0;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 16384);
    for (; n < 400; n++) {
        pthread_t thread;
        errno = pthread_create(&thread, &attr, poll_for_ever, NULL);
        if (errno) break;
        if (n % 16 == 0) sched_yield();
    }
    reached("threads in poll", n);
}

static void *wait_for_ever(void *unused) {
    // Its vector registers are not as they were.
    __asm__ volatile("pcmpeqd %%xmm0, %%xmm0\n\tmovdqa %%xmm0, %%xmm15" ::: "xmm0", "xmm15");
    while (1) pause();
    return unused;
}
static void threads(void) {
    unsigned long n = 0;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 16384);
    for (; n < 40000; n++) {
        pthread_t thread;
        errno = pthread_create(&thread, &attr, wait_for_ever, NULL);
        if (errno) break;
        if (n % 16 == 0) sched_yield();
    }
    reached("threads", n);
    for (int i = 0; i < 100; i++) sched_yield();
    for (int i = 0; i < 20; i++) {
        struct dirent *entry;
        DIR *dir = opendir("/proc/self/task");
        while (dir && (entry = readdir(dir))) n += entry->d_name[0] == 'x';
    }
}

static void queued(void) {
    sigset_t set;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    unsigned long signals = 0, timers = 0, locks = 0;
    union sigval value = {.sival_int = 5};
    while (signals < 20000 && sigqueue(getpid(), SIGRTMIN, value) == 0) signals++;
    reached("signals", signals);
    timer_t id;
    while (timers < 20000 && timer_create(CLOCK_MONOTONIC, NULL, &id) == 0) timers++;
    reached("timers", timers);
    int fd = open("/tmp/locks", O_RDWR | O_CREAT, 0600);
    for (; locks < 20000; locks++) {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)locks * 2, .l_len = 1};
        if (fcntl(fd, F_SETLK, &lock) != 0) break;
    }
    reached("locks", locks);
}

// Arguments and environment as large as may be, a few times over.
static void arguments(const char *round) {
    static char *words[200100], one[100000];
    int left = *round ? atoi(round) : 4;
    if (left == 0) return;
    memset(one, 'a', sizeof one - 1);
    unsigned n = 0;
    char next[16];
    snprintf(next, sizeof next, "%d", left - 1);
    words[n++] = "hoard";
    words[n++] = "arguments";
    words[n++] = next;
    // Few long ones and very many short ones in turn.
    while (n < (left & 1 ? 20 : 180000)) words[n++] = left & 1 ? one : "";
    words[n] = NULL;
    for (int i = 0; i < 3; i++) {
        open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    }
    execve("/proc/self/exe", words, NULL);
    reached("execve", (unsigned long)left);
}

static void links(void) {
    static char target[4096];
    memset(target, 't', sizeof target - 1);
    go_deep(1000);
    unsigned long n = 0;
    for (; n < 8000; n++) {
        char own[32];
        snprintf(own, sizeof own, "%lu", n);
        if (symlink(target, own) != 0) break;
    }
    reached("links", n);
}

static void attributes(void) {
    unsigned long n = 0;
    for (; n < 100000; n++) {
        char own[64];
        snprintf(own, sizeof own, "user.%lu", n);
        if (syscall(SYS_setxattr, "/tmp", own, block, sizeof block, 0) != 0) break;
    }
    reached("attributes", n);
}

// Much memory that the guest has itself, in each of the ways that it is had.
static void pages(void) {
    unsigned long n = 0;
    for (int round = 0; round < 12; round++) {
        char *p = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) break;
        for (unsigned long at = 0; at < 4 << 20; at += PAGE) p[at] = 1, n++;
        if (round % 4) munmap(p, 4 << 20);
        // One page of each two MiB is kept.
        else for (unsigned long at = PAGE; at < 4 << 20; at += 2 << 20) munmap(p + at, (2 << 20) - PAGE);
        int fd = memfd_create("m", 0);
        for (unsigned i = 0; i < 16; i++) write(fd, block, sizeof block);
        if (round % 2) close(fd);
    }
    reached("pages", n);
}

static void vectors(void) {
    static struct iovec parts[1024];
    int zero = open("/dev/zero", O_RDONLY), null = open("/dev/null", O_WRONLY), fds[2];
    char *large = mmap(NULL, 32 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int file = open("/tmp/file", O_RDWR | O_CREAT, 0600);
    need(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0, "socketpair");
    for (unsigned i = 0; i < 1024; i++) parts[i] = (struct iovec){large, 16 << 20};
    fprintf(stderr, "%ld\n", readv(zero, parts, 32));
    fprintf(stderr, "%ld\n", writev(null, parts, 32));
    fprintf(stderr, "%ld\n", writev(fds[0], parts, 1024));
    fprintf(stderr, "%ld\n", readv(fds[1], parts, 1024));
    fprintf(stderr, "%ld\n", (long)write(file, large, 8 << 20));
    fprintf(stderr, "%ld\n", (long)pread(file, large, 8 << 20, 0));
    fprintf(stderr, "%ld\n", (long)syscall(SYS_getrandom, large, 32 << 20, 0));
    fprintf(stderr, "%ld\n", (long)read(open("/dev/urandom", O_RDONLY), large, 32 << 20));
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 1024};
    fprintf(stderr, "%ld\n", sendmsg(fds[0], &message, MSG_DONTWAIT));
    fprintf(stderr, "%ld\n", (long)write(1, large, 0));
}

int main(int argc, char **argv) {
    need(argc >= 2, "arguments");
    const char *what = argv[1], *arg = argc > 2 ? argv[2] : "";
    memset(name, 'n', LONG_NAME);
    if (!strcmp(what, "start")) usleep(200000);
    else if (!strcmp(what, "maps")) maps();
    else if (!strcmp(what, "named-maps")) named_maps();
    else if (!strcmp(what, "long-names")) long_names();
    else if (!strcmp(what, "epoll-items")) epoll_items();
    else if (!strcmp(what, "proc-fd")) proc_fd();
    else if (!strcmp(what, "listing")) listing();
    else if (!strcmp(what, "host-listings")) host_listings(arg);
    else if (!strcmp(what, "denials")) denials();
    else if (!strcmp(what, "pipes")) pipes();
    else if (!strcmp(what, "terminals")) terminals();
    else if (!strcmp(what, "sockets")) sockets();
    else if (!strcmp(what, "connections")) connections();
    else if (!strcmp(what, "objects")) objects();
    else if (!strcmp(what, "areas")) areas();
    else if (!strcmp(what, "pollers")) pollers();
    else if (!strcmp(what, "threads")) threads();
    else if (!strcmp(what, "queued")) queued();
    else if (!strcmp(what, "arguments")) arguments(arg);
    else if (!strcmp(what, "links")) links();
    else if (!strcmp(what, "attributes")) attributes();
    else if (!strcmp(what, "pages")) pages();
    else if (!strcmp(what, "vectors")) vectors();
    else need(0, "what?");
    if (strcmp(what, "start")) fill();
    printf("done\n");
    fflush(stdout);
    _exit(0);
}
