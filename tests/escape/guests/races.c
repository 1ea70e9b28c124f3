// A thread that rewrites, unmaps or protects what another's call is reading: races ROUNDS
//
// Every result must be one that some order of the two gives, and nothing forbidden may come back.
#include "hostile.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/uio.h>

static volatile int stop;
static char *volatile shared_path;
static struct iovec *volatile shared_iov;
static unsigned char *moving;
static unsigned long forbidden, surprises;

static void *rewrite_path(void *unused) {
    (void)unused;
    while (!stop) {
        memcpy(shared_path, "/tmp/races-file", 16);
        memcpy(shared_path, "/etc/shadow\0\0\0\0", 16);
        memcpy(shared_path, "/tmp/../etc/shadow", 19);
        memcpy(shared_path, "/etc/passwd\0\0\0\0", 16);
    }
    return NULL;
}

static void *rewrite_iov(void *unused) {
    (void)unused;
    while (!stop) {
        shared_iov[1].iov_base = (void *)0xffff800000000000ul;
        shared_iov[1].iov_len = ~0ul;
        shared_iov[0].iov_base = (void *)SYSCALL_CODE;
        shared_iov[1].iov_base = moving;
        shared_iov[0].iov_len = 1ul << 40;
        shared_iov[1].iov_len = 64;
        shared_iov[0].iov_base = moving;
        shared_iov[0].iov_len = 64;
    }
    return NULL;
}

static void *remap(void *unused) {
    (void)unused;
    while (!stop) {
        mprotect(moving, 4 * PAGE, PROT_NONE);
        mprotect(moving, 4 * PAGE, PROT_READ | PROT_WRITE);
        munmap(moving, 4 * PAGE);
        mmap(moving, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        mprotect(moving + PAGE, PAGE, PROT_READ);
        madvise(moving, 4 * PAGE, MADV_DONTNEED);
    }
    return NULL;
}

static void *close_and_open(void *unused) {
    (void)unused;
    while (!stop) {
        close(30);
        int fd = open("/tmp/races-file", O_RDWR);
        if (fd >= 0) {
            dup2(fd, 30);
            close(fd);
        }
        ftruncate(30, 0);
        ftruncate(30, 100000);
    }
    return NULL;
}

static int fine(long r, const int *allowed) {
    if (r >= 0) return 1;
    for (; *allowed; allowed++)
        if (r == -*allowed) return 1;
    return 0;
}

int main(int argc, char **argv) {
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 0) : 1000;
    shared_path = map(PAGE, PROT_READ | PROT_WRITE);
    shared_iov = map(PAGE, PROT_READ | PROT_WRITE);
    moving = map(4 * PAGE, PROT_READ | PROT_WRITE);
    int fd = open("/tmp/races-file", O_RDWR | O_CREAT | O_TRUNC, 0600);
    need(fd >= 0, "creating a file");
    static char text[100000];
    memset(text, 'r', sizeof text);
    need(write(fd, text, sizeof text) == sizeof text, "writing it");
    memcpy(shared_path, "/tmp/races-file", 16);
    pthread_t threads[4];
    void *(*bodies[4])(void *) = {rewrite_path, rewrite_iov, remap, close_and_open};
    for (int i = 0; i < 4; i++) need(pthread_create(&threads[i], NULL, bodies[i], NULL) == 0, "pthread_create");
    for (unsigned long i = 0; i < rounds; i++) {
        static const int on_path[] = {ENOENT, EACCES, ENOTDIR, EMFILE, 0};
        long r = raw6(SYS_open, (uint64_t)(uintptr_t)shared_path, O_RDONLY, 0, 0, 0, 0);
        if (!fine(r, on_path)) surprises++;
        if (r >= 0) {
            char line[64];
            long n = read((int)r, line, sizeof line);
            if (n > 0 && !memcmp(line, "root:", 5) && memcmp(line, "root:x:", 7)) forbidden++;
            close((int)r);
        }
        struct stat st;
        r = raw6(SYS_stat, (uint64_t)(uintptr_t)shared_path, (uint64_t)(uintptr_t)&st, 0, 0, 0, 0);
        if (!fine(r, on_path)) surprises++;
        static const int on_memory[] = {EFAULT, EINVAL, EBADF, 0};
        r = raw6(SYS_preadv, (uint64_t)fd, (uint64_t)(uintptr_t)shared_iov, 2, 0, 0, 0);
        if (!fine(r, on_memory)) surprises++;
        r = raw6(SYS_pwritev, (uint64_t)fd, (uint64_t)(uintptr_t)shared_iov, 2, 0, 0, 0);
        if (!fine(r, on_memory)) surprises++;
        r = raw6(SYS_read, 30, (uint64_t)(uintptr_t)moving, 4 * PAGE, 0, 0, 0);
        if (!fine(r, on_memory)) surprises++;
        r = raw6(SYS_pwrite64, 30, (uint64_t)(uintptr_t)moving, 4 * PAGE, 0, 0, 0);
        if (!fine(r, on_memory)) surprises++;
        r = raw6(SYS_getcwd, (uint64_t)(uintptr_t)moving + PAGE - 2, 4096, 0, 0, 0, 0);
        if (!fine(r, on_memory)) surprises++;
        if (i % 8 == 0) sched_yield();
    }
    stop = 1;
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    printf("%lu forbidden, %lu surprises\n", forbidden, surprises);
    unlink("/tmp/races-file");
    return forbidden != 0;
}
