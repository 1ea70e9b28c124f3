// Gives the host long work for little of its own: endless WHAT [N]
//
// Each goes on for ever, or for many seconds: a limit of time must end it. It prints "ready" before it begins.
#include "hostile.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#define MIB (1ul << 20)
#define GIB (1ul << 30)
#define RW (PROT_READ | PROT_WRITE)
#define IOVS 1024

static struct iovec iov[IOVS];
static unsigned char *block;

// 2 GiB that are the same 2 MiB.
static void two_gib(void) {
    block = map(2 * MIB, RW);
    memset(block, 'x', 2 * MIB);
    for (unsigned i = 0; i < IOVS; i++) iov[i] = (struct iovec){block, 2 * MIB};
}

static void ready(void) {
    printf("ready\n");
    fflush(stdout);
}

static void start(void *(*body)(void *), long arg) {
    pthread_attr_t small;
    pthread_t thread;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    int error = pthread_create(&thread, &small, body, (void *)arg);
    errno = error;
    need(error == 0, "pthread_create");
}

static void *keep_writing(void *fd) {
    for (;;) need(writev((int)(long)fd, iov, IOVS) > 0, "writev");
    return NULL;
}

static void *keep_receiving(void *fd) {
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = IOVS};
    for (;;) need(recvmsg((int)(long)fd, &message, MSG_WAITALL) > 0, "recvmsg");
    return NULL;
}

// `watchers` instances, each of which watches `fd` as often as there are copies of it.
static void watch(int fd, unsigned copies, unsigned watchers, uint32_t events) {
    int fds[512];
    fds[0] = fd;
    for (unsigned i = 1; i < copies; i++) need((fds[i] = dup(fd)) >= 0, "dup");
    for (unsigned i = 0; i < watchers; i++) {
        int instance = epoll_create1(0);
        need(instance >= 0, "epoll_create1");
        for (unsigned k = 0; k < copies; k++) {
            struct epoll_event event = {.events = events};
            need(epoll_ctl(instance, EPOLL_CTL_ADD, fds[k], &event) == 0, "epoll_ctl");
        }
    }
}

static struct pollfd polled[900];
static void *keep_polling(void *unused) {
    (void)unused;
    for (;;) poll(polled, 900, -1);
    return NULL;
}

static void pairs(unsigned count, const char *how) {
    int first = -1, fds[2];
    two_gib();
    for (unsigned i = 0; i < count; i++) {
        need(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0, "socketpair");
        if (i == 0) first = fds[1];
        start(keep_writing, fds[0]);
        start(keep_receiving, fds[1]);
    }
    if (how && strcmp(how, "epolls") == 0) watch(first, 1, 450, EPOLLIN | EPOLLET);
    if (how && strcmp(how, "polls") == 0) {
        // For what never comes: each wake has all of them looked at again.
        for (unsigned i = 0; i < 900; i++)
            need((polled[i] = (struct pollfd){i < 3 ? first : dup(first), POLLPRI, 0}).fd >= 0, "dup");
        for (unsigned i = 0; i < 100; i++) start(keep_polling, 0);
    }
    ready();
    for (;;) pause();
}

struct kernel_action { uint64_t handler, flags, restorer, mask; };

// A handler that cannot be fetched: each frame is the next signal's stack.
static void frames(void) {
    enum { SLICE = 2 << 20, SLICES = 4000 };
    int fd = memfd_create("stack", 0);
    need(fd >= 0 && ftruncate(fd, SLICE) == 0, "memfd");
    unsigned char *low = mmap(NULL, (size_t)SLICE * SLICES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    need(low != MAP_FAILED, "mmap");
    for (long i = 0; i < SLICES; i++)
        need(mmap(low + i * SLICE, SLICE, RW, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED, "mmap of the stack");
    struct kernel_action action = {1ul << 63, SA_NODEFER | 0x04000000, 1ul << 63, 0};
    need(raw6(SYS_rt_sigaction, SIGSEGV, (uint64_t)(uintptr_t)&action, 0, 8, 0, 0) == 0, "rt_sigaction");
    ready();
    __asm__ volatile("mov %0, %%rsp\n jmp *%1" ::"r"(low + (size_t)SLICE * SLICES - 64), "r"(action.handler));
}

static void reading(const char *path) {
    int fd = open(path, O_RDONLY);
    need(fd >= 0, "open");
    two_gib();
    ready();
    for (;;) need(readv(fd, iov, IOVS) > 0, "readv");
}

// Full: what does not fit is an error, not a wait.
static void datagrams(void) {
    int fds[2];
    need(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, fds) == 0, "socketpair");
    static struct mmsghdr messages[278];
    static struct iovec one = {"x", 1};
    for (unsigned i = 0; i < 278; i++) messages[i].msg_hdr = (struct msghdr){.msg_iov = &one, .msg_iovlen = 1};
    watch(fds[1], 100, 200, EPOLLIN | EPOLLET);
    ready();
    for (char buf[8];;) {
        need(sendmmsg(fds[0], messages, 278, 0) > 0, "sendmmsg");
        while (recv(fds[1], buf, sizeof buf, 0) >= 0) {}
    }
}

static void counters(void) {
    int fd = eventfd(0, EFD_NONBLOCK);
    static uint64_t one = 1;
    for (unsigned i = 0; i < IOVS; i++) iov[i] = (struct iovec){&one, 8};
    watch(fd, 60, 100, EPOLLIN | EPOLLET);
    ready();
    for (;;) need(writev(fd, iov, IOVS) > 0, "writev");
}

// Many timers that expire at once, each with a signal that many watch for.
static void timers(void) {
    sigset_t set;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    watch(signalfd(-1, &set, 0), 100, 100, EPOLLIN | EPOLLET);
    static timer_t ids[900];
    for (unsigned i = 0; i < 900; i++) {
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + (int)(i % 20)};
        need(timer_create(CLOCK_MONOTONIC, &event, &ids[i]) == 0, "timer_create");
    }
    ready();
    for (;;) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        struct itimerspec at = {.it_value = {now.tv_sec, now.tv_nsec + 5000000}};
        if (at.it_value.tv_nsec >= 1000000000) at.it_value.tv_sec++, at.it_value.tv_nsec -= 1000000000;
        for (unsigned i = 0; i < 900; i++) timer_settime(ids[i], TIMER_ABSTIME, &at, NULL);
        struct timespec zero = {0, 0};
        while (sigtimedwait(&set, NULL, &zero) > 0) {}
    }
}

// Closes many sockets at once whose ends are watched by many.
static void closing(void) {
    int watched = epoll_create1(0);
    watch(watched, 60, 100, EPOLLIN | EPOLLET);
    ready();
    for (int first = 0;;) {
        for (unsigned i = 0; i < 250; i++) {
            int fds[2];
            if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) break;
            if (i == 0) first = fds[0];
            struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET};
            epoll_ctl(watched, EPOLL_CTL_ADD, fds[1], &event);
        }
        need(close_range((unsigned)first, ~0u, 0) == 0, "close_range");
    }
}

// A file of the guest's memory, written, copied, given memory, and cut off again.
static void files(const char *how) {
    int fd = memfd_create("file", 0), other = memfd_create("other", 0), null = open("/dev/null", O_WRONLY);
    need(fd >= 0 && other >= 0 && null >= 0, "memfd");
    two_gib();
    ready();
    for (;;) {
        if (strcmp(how, "write") == 0) pwritev(fd, iov, 400, 0);
        if (strcmp(how, "fallocate") == 0) fallocate(fd, 0, 0, 900 * MIB);
        if (strcmp(how, "copy") == 0) {
            need(ftruncate(fd, 900 * MIB) == 0, "ftruncate");
            off_t from = 0, to = 0;
            copy_file_range(fd, &from, other, &to, 900 * MIB, 0);
        }
        if (strcmp(how, "send") == 0) {
            need(ftruncate(fd, 2 * GIB) == 0, "ftruncate");
            off_t from = 0;
            sendfile(null, fd, &from, 2 * GIB);
        }
        ftruncate(fd, 0);
        ftruncate(other, 0);
    }
}

static void memory(const char *how) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    ready();
    for (;;) {
        if (strcmp(how, "populate") == 0) {
            size_t len = 900 * MIB;
            void *at = mmap(NULL, len, RW, flags | MAP_POPULATE, -1, 0);
            need(at != MAP_FAILED, "mmap");
            need(munmap(at, len) == 0, "munmap");
        }
        if (strcmp(how, "mlock") == 0 || strcmp(how, "advise") == 0) {
            size_t len = 900 * MIB;
            void *at = mmap(NULL, len, RW, flags, -1, 0);
            need(at != MAP_FAILED, "mmap");
            if (how[0] == 'm') mlock(at, len);
            else madvise(at, len, MADV_POPULATE_WRITE);
            madvise(at, len, MADV_DONTNEED);
            need(munmap(at, len) == 0, "munmap");
        }
        if (strcmp(how, "sparse") == 0) {
            // A page in each 2 MiB: page tables that take long to walk.
            size_t len = 200 * GIB;
            unsigned char *at = mmap(NULL, len, RW, flags, -1, 0);
            need(at != MAP_FAILED, "mmap");
            madvise(at, len, MADV_NOHUGEPAGE);
            for (size_t i = 0; i < len; i += 2 * MIB) at[i] = 1;
            for (unsigned i = 0; i < 5; i++) {
                mprotect(at, len, PROT_READ);
                mprotect(at, len, RW);
                void *to = mremap(at, len, len, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
                if (to != MAP_FAILED) munmap(to, len);
            }
            need(munmap(at, len) == 0, "munmap");
        }
        if (strcmp(how, "resident") == 0) {
            // Which pages of 64 TiB are there: told to the same 2 MiB again and again.
            enum { SLICES = 8000 };
            size_t len = (size_t)SLICES << 33;
            int fd = memfd_create("vector", 0);
            need(ftruncate(fd, 2 * MIB) == 0, "ftruncate");
            unsigned char *vector = mmap(NULL, (size_t)SLICES << 21, PROT_NONE, flags, -1, 0);
            for (size_t i = 0; i < SLICES; i++)
                need(mmap(vector + (i << 21), 2 * MIB, RW, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED, "mmap");
            void *at = mmap(NULL, len, PROT_NONE, flags, -1, 0);
            need(at != MAP_FAILED, "mmap");
            for (;;) need(mincore(at, len, vector) == 0, "mincore");
        }
    }
}

// Processes with all descriptors that there are end at once, while somebody holds all locks that there are.
static void ending(const char *self) {
    int locked = memfd_create("locked", 0), file = open(self, O_RDONLY);
    need(locked >= 0 && file >= 0, "open");
    for (long at = 0; at < 4000; at++) {
        struct flock lock = {.l_type = F_WRLCK, .l_start = 2 * at, .l_len = 1};
        need(fcntl(locked, F_SETLK, &lock) == 0, "lock");
    }
    for (int number = file + 1; number < 1024; number++) need(dup2(file, number) == number, "dup2");
    int said = 0;
    for (;;) {
        for (int number = 0; number < 254; number++)
            if (fork() == 0)
                for (;;) pause();
        if (!said++) ready();
        kill(-1, SIGKILL);
        while (waitpid(-1, NULL, 0) > 0) {}
    }
}

int main(int argc, char **argv) {
    need(argc >= 2, "endless WHAT");
    const char *what = argv[1], *how = argc > 2 ? argv[2] : "";
    if (strcmp(what, "pairs") == 0) pairs((unsigned)atoi(how), argc > 3 ? argv[3] : NULL);
    if (strcmp(what, "frames") == 0) frames();
    if (strcmp(what, "read") == 0) reading(how);
    if (strcmp(what, "datagrams") == 0) datagrams();
    if (strcmp(what, "counters") == 0) counters();
    if (strcmp(what, "timers") == 0) timers();
    if (strcmp(what, "closing") == 0) closing();
    if (strcmp(what, "file") == 0) files(how);
    if (strcmp(what, "memory") == 0) memory(how);
    if (strcmp(what, "ending") == 0) ending(argv[0]);
    return 98;
}
