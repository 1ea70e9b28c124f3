// Calls on other processes: process_vm_readv(2), process_vm_writev(2), pidfd_getfd(2), kcmp(2). And memory policies and
// priorities of input and output on a machine with one node.
#include "guest.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define PAGE 4096
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

static char *pages;
static pid_t child;
static int to_child[2], from_child[2];

static void order(char what) {
    char reply;
    need(write(to_child[1], &what, 1) == 1 && read(from_child[0], &reply, 1) == 1, "an answer");
}

static void serve(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (char what; read(to_child[0], &what, 1) == 1;) {
        switch (what) {
            case 'f': memset(pages, 'c', 4 * PAGE); break;
            case 'u': munmap(pages + 2 * PAGE, PAGE); break;
            case 'r': mprotect(pages + PAGE, PAGE, PROT_READ); break;
            case 'h': prctl(PR_SET_DUMPABLE, 0); break;
            case 'd': prctl(PR_SET_DUMPABLE, 1); break;
            case 'o': dup2(open("/dev/null", O_RDONLY), 50); break;
            case 'p': dup2(open("/dev", O_PATH), 51); break;
            case 's': dprintf(from_child[1], "%s", ""); printf("child has %.8s %.8s\n", pages, pages + PAGE); fflush(stdout); break;
        }
        if (write(from_child[1], "", 1) != 1) break;
    }
    _exit(0);
}

static long move(int nr, struct iovec own, void *at, size_t len) {
    struct iovec peer = {at, len};
    return syscall(nr, child, &own, 1ul, &peer, 1ul, 0ul);
}

static void memory(void) {
    section("memory");
    static char buffer[8 * PAGE];
    struct iovec own = {buffer, 8}, peer = {pages, 8};
    order('f');
    SHOW(process_vm_readv(child, &own, 1, &peer, 1, 0));
    printf("%.8s here %.8s\n", buffer, pages);
    memcpy(buffer, "written!", 8);
    SHOW(process_vm_writev(child, &own, 1, &peer, 1, 0));
    order('s');
    printf("here %.8s\n", pages);
    // Parts that end in different places.
    struct iovec owns[3] = {{buffer, 3}, {buffer + 100, 0}, {buffer + 3, 4500}}, peers[2] = {{pages, 4090}, {pages + PAGE + 100, 600}};
    memset(buffer, 0, sizeof buffer);
    SHOW(process_vm_readv(child, owns, 3, peers, 2, 0));
    CHECK(!memcmp(buffer, "written!c", 9) && buffer[4502] == 'c' && buffer[4503] == 0);
    // What is missing ends it.
    order('u');
    SHOW(move(SYS_process_vm_readv, (struct iovec){buffer, 4 * PAGE}, pages, 4 * PAGE));
    FAILS(move(SYS_process_vm_readv, (struct iovec){buffer, 10}, pages + 2 * PAGE, 10), EFAULT);
    SHOW(move(SYS_process_vm_readv, (struct iovec){buffer, 10}, pages + 3 * PAGE, 10));
    order('r');
    FAILS(move(SYS_process_vm_writev, (struct iovec){buffer, 10}, pages + PAGE, 10), EFAULT);
    SHOW(move(SYS_process_vm_writev, (struct iovec){buffer, 2 * PAGE}, pages, 2 * PAGE));
    FAILS(move(SYS_process_vm_readv, (struct iovec){(void *)8, 10}, pages, 10), EFAULT);
    FAILS(move(SYS_process_vm_readv, (struct iovec){buffer, 10}, (void *)8, 10), EFAULT);
    SHOW(move(SYS_process_vm_readv, (struct iovec){buffer, 0}, (void *)8, 10));
    SHOW(move(SYS_process_vm_readv, (struct iovec){buffer, 10}, pages, 0));
    FAILS(process_vm_readv(child, &own, 1, &peer, 1, 1), EINVAL);
    FAILS(process_vm_readv(child, &own, 1025, &peer, 1, 0), EINVAL);
    FAILS(process_vm_readv(child, &own, 1, &peer, 1025, 0), EINVAL);
    FAILS(process_vm_readv(child, (void *)8, 1, &peer, 1, 0), EFAULT);
    FAILS(process_vm_readv(child, &own, 1, (void *)8, 1, 0), EFAULT);
    FAILS(process_vm_readv(99999999, &own, 1, &peer, 1, 0), ESRCH);
    FAILS(process_vm_readv(-1, &own, 1, &peer, 1, 0), ESRCH);
    SHOW(process_vm_readv(getpid(), &own, 1, &peer, 1, 0));
    order('h');
    FAILS(process_vm_readv(child, &own, 1, &peer, 1, 0), EPERM);
    FAILS(syscall(SYS_kcmp, child, getpid(), 1, 0, 0), EPERM);
    order('d');
    SHOW(process_vm_readv(child, &own, 1, &peer, 1, 0));
}

static void *compare(void *tid) {
    SHOW(syscall(SYS_kcmp, *(pid_t *)tid, syscall(SYS_gettid), 2, 0, 0));
    return NULL;
}

static int opposite(long one, long other) { return one + other == 3 && one > 0 && other > 0; }

static void descriptors(void) {
    section("descriptors");
    order('o');
    int process = (int)syscall(SYS_pidfd_open, child, 0);
    int got = (int)syscall(SYS_pidfd_getfd, process, 50, 0);
    CHECK(got > 2 && fcntl(got, F_GETFD) == FD_CLOEXEC);
    char path[64], link[64] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", got);
    need(readlink(path, link, 63) > 0, "readlink");
    printf("%s\n", link);
    SHOW(syscall(SYS_kcmp, getpid(), child, 0, got, 50));
    SHOW(syscall(SYS_kcmp, getpid(), child, 0, 0, 0));
    CHECK(opposite(syscall(SYS_kcmp, getpid(), getpid(), 0, got, to_child[0]), syscall(SYS_kcmp, getpid(), getpid(), 0, to_child[0], got)));
    FAILS(syscall(SYS_kcmp, getpid(), child, 0, got, 77), EBADF);
    FAILS(syscall(SYS_kcmp, getpid(), child, 0, 77, 50), EBADF);
    for (int kind = 1; kind < 5; kind++)
        CHECK(opposite(syscall(SYS_kcmp, getpid(), child, kind, 0, 0), syscall(SYS_kcmp, child, getpid(), kind, 0, 0)));
    for (int kind = 1; kind < 7; kind++) SHOW(syscall(SYS_kcmp, getpid(), getpid(), kind, 0, 0));
    FAILS(syscall(SYS_kcmp, getpid(), child, 8, 0, 0), EINVAL);
    FAILS(syscall(SYS_kcmp, getpid(), child, -1, 0, 0), EINVAL);
    FAILS(syscall(SYS_kcmp, getpid(), 99999999, 1, 0, 0), ESRCH);
    pid_t tid = getpid();
    pthread_t thread;
    pthread_create(&thread, NULL, compare, &tid);
    pthread_join(thread, NULL);
    pid_t same = vfork();
    if (!same) {
        long result = syscall(SYS_kcmp, tid, getpid(), 1, 0, 0);
        _exit((int)result);
    }
    int status;
    need(waitpid(same, &status, 0) == same, "waitpid");
    printf("memory of a vfork child: %#x\n", status);
    FAILS(syscall(SYS_pidfd_getfd, process, 50, 1), EINVAL);
    FAILS(syscall(SYS_pidfd_getfd, process, 77, 0), EBADF);
    FAILS(syscall(SYS_pidfd_getfd, process, -1, 0), EBADF);
    FAILS(syscall(SYS_pidfd_getfd, got, 0, 0), EBADF);
    FAILS(syscall(SYS_pidfd_getfd, 99, 0, 0), EBADF);
    order('p');
    int name = (int)syscall(SYS_pidfd_getfd, process, 51, 0);
    CHECK(name > 2 && fcntl(name, F_GETFL) & O_PATH);
    order('h');
    FAILS(syscall(SYS_pidfd_getfd, process, 50, 0), EPERM);
    order('d');
    kill(child, SIGKILL);
    siginfo_t info;
    need(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT) == 0, "waitid");
    FAILS(syscall(SYS_pidfd_getfd, process, 50, 0), ESRCH);
    struct iovec own = {path, 8}, peer = {pages, 8};
    FAILS(process_vm_readv(child, &own, 1, &peer, 1, 0), ESRCH);
    need(waitpid(child, &status, 0) == child, "waitpid");
    FAILS(syscall(SYS_pidfd_getfd, process, 50, 0), ESRCH);
}

static void policies(void) {
    section("memory policies");
    int mode = 77;
    unsigned long mask[4] = {~0ul, ~0ul, ~0ul, ~0ul}, node = 1, other = 2, none = 0;
    SHOW(syscall(SYS_get_mempolicy, &mode, mask, 256, NULL, 0));
    printf("%d %lx %lx\n", mode, mask[0], mask[3]);
    SHOW(syscall(SYS_get_mempolicy, &mode, mask, 256, NULL, 4));
    printf("%d %lx %lx\n", mode, mask[0], mask[3]);
    FAILS(syscall(SYS_get_mempolicy, &mode, mask, 256, NULL, 8), EINVAL);
    FAILS(syscall(SYS_get_mempolicy, &mode, mask, 256, NULL, 5), EINVAL);
    FAILS(syscall(SYS_get_mempolicy, &mode, mask, 256, &mode, 0), EINVAL);
    FAILS(syscall(SYS_get_mempolicy, &mode, mask, 0, NULL, 0), EINVAL);
    FAILS(syscall(SYS_get_mempolicy, &mode, mask, 256, NULL, 1), EINVAL);
    FAILS(syscall(SYS_get_mempolicy, &mode, mask, 256, (void *)8, 2), EFAULT);
    FAILS(syscall(SYS_get_mempolicy, (void *)8, NULL, 0, NULL, 0), EFAULT);
    SHOW(syscall(SYS_get_mempolicy, &mode, NULL, 0, &mode, 3));
    printf("%d\n", mode);
    // Those that every kernel since 5.15 has: newer ones have one more.
    for (int what = 0; what < 6; what++) {
        SHOW(syscall(SYS_set_mempolicy, what, NULL, 0));
        SHOW(syscall(SYS_set_mempolicy, what, &none, 64));
        SHOW(syscall(SYS_set_mempolicy, what, &node, 64));
        mask[0] = 0;
        SHOW(syscall(SYS_get_mempolicy, &mode, mask, 64, NULL, 0));
        printf("%d: %d %lx\n", what, mode, mask[0]);
        SHOW(syscall(SYS_set_mempolicy, what, &other, 64));
    }
    SHOW(syscall(SYS_set_mempolicy, 2 | 1 << 15, &node, 64));
    SHOW(syscall(SYS_get_mempolicy, &mode, mask, 64, NULL, 0));
    printf("%x\n", mode);
    FAILS(syscall(SYS_set_mempolicy, 2 | 3 << 14, &node, 64), EINVAL);
    FAILS(syscall(SYS_set_mempolicy, 2, (void *)8, 64), EFAULT);
    FAILS(syscall(SYS_set_mempolicy, 2, &node, 1ul << 20), EINVAL);
    // A child has it, and a program that it executes.
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0);
        _exit(mode >> 8);
    }
    int status;
    need(waitpid(pid, &status, 0) == pid, "waitpid");
    printf("inherited: %#x\n", status);
    SHOW(syscall(SYS_set_mempolicy, 0, NULL, 0));
    SHOW(syscall(SYS_mbind, pages, PAGE, 2, &node, 64, 1));
    SHOW(syscall(SYS_mbind, pages, 0, 2, &node, 64, 0));
    FAILS(syscall(SYS_mbind, pages + 1, PAGE, 2, &node, 64, 0), EINVAL);
    FAILS(syscall(SYS_mbind, pages, PAGE, 2, &node, 64, 8), EINVAL);
    FAILS(syscall(SYS_mbind, pages, PAGE, 2, &node, 64, 4), EPERM);
    FAILS(syscall(SYS_mbind, pages, PAGE, 2, &other, 64, 0), EINVAL);
    FAILS(syscall(SYS_mbind, (void *)PAGE, PAGE, 2, &node, 64, 0), EFAULT);
    FAILS(syscall(SYS_mbind, pages, PAGE, 9, &node, 64, 0), EINVAL);
    SHOW(syscall(SYS_mbind, pages, PAGE, 0, NULL, 0, 0));

    section("priorities of input and output");
    setpgid(0, 0);
    SHOW(syscall(SYS_ioprio_get, 1, 0));
    SHOW(syscall(SYS_ioprio_get, 2, 0));
    FAILS(syscall(SYS_ioprio_get, 4, 0), EINVAL);
    FAILS(syscall(SYS_ioprio_get, 1, 99999999), ESRCH);
    FAILS(syscall(SYS_ioprio_get, 2, 99999999), ESRCH);
    FAILS(syscall(SYS_ioprio_get, 3, 99999999), ESRCH);
    FAILS(syscall(SYS_ioprio_set, 1, 0, 1 << 13), EPERM);
    FAILS(syscall(SYS_ioprio_set, 1, 0, 4 << 13), EINVAL);
    FAILS(syscall(SYS_ioprio_set, 1, 0, 5), EINVAL);
    SHOW(syscall(SYS_ioprio_set, 1, 0, 3 << 13));
    SHOW(syscall(SYS_ioprio_get, 1, 0));
    SHOW(syscall(SYS_ioprio_set, 2, 0, 2 << 13 | 6));
    SHOW(syscall(SYS_ioprio_get, 1, getpid()));
    SHOW(syscall(SYS_ioprio_get, 2, 0));
    fflush(stdout);
    pid = fork();
    if (!pid) _exit((int)syscall(SYS_ioprio_get, 1, 0) & 0xff);
    need(waitpid(pid, &status, 0) == pid, "waitpid");
    printf("inherited: %#x\n", status);
    SHOW(syscall(SYS_ioprio_set, 1, 0, 0));
    SHOW(syscall(SYS_ioprio_get, 2, 0));
}

int main(void) {
    pages = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(pages, 'p', 4 * PAGE);
    need(pipe(to_child) == 0 && pipe(from_child) == 0, "pipes");
    child = fork();
    if (!child) serve();
    memory();
    descriptors();
    policies();
    return 0;
}
