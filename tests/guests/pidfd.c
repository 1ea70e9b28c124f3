// Descriptors of processes: pidfd_open, clone with CLONE_PIDFD, waiting, polling, signals.
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "guest.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static int open_pid(pid_t pid, unsigned flags) { return (int)syscall(SYS_pidfd_open, pid, flags); }

static int send(int fd, int signo, siginfo_t *info, unsigned flags) {
    return (int)syscall(SYS_pidfd_send_signal, fd, signo, info, flags);
}

static pid_t waiting(void) {
    pid_t child = fork();
    if (!child)
        for (;;) pause();
    return child;
}

static int ready(int fd) {
    struct pollfd one = {.fd = fd, .events = POLLIN};
    return poll(&one, 1, 0) < 0 ? -1 : one.revents & POLLIN;
}

static void *thread(void *tid) {
    *(pid_t *)tid = (pid_t)syscall(SYS_gettid);
    // ENOENT since Linux 6.9.
    CHECK(open_pid(*(pid_t *)tid, 0) == -1 && (errno == EINVAL || errno == ENOENT));
    return 0;
}

static void one(void) {
    pid_t child = waiting();
    int fd = open_pid(child, 0);
    CHECK(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
    char text[256] = "", byte;
    snprintf(text, sizeof text, "/proc/self/fdinfo/%d", fd);
    FILE *info = fopen(text, "r");
    int shown = 0;
    while (info && fgets(text, sizeof text, info))
        if (sscanf(text, "Pid: %d", &shown) == 1) break;
    CHECK(shown == child);
    if (info) fclose(info);
    FAILS(read(fd, &byte, 1), EINVAL);
    SHOW(ready(fd));
    SHOW(send(fd, 0, 0, 0));
    FAILS(send(fd, 999, 0, 0), EINVAL);
    FAILS(send(fd, SIGTERM, 0, 8), EINVAL);
    FAILS(send(0, 0, 0, 0), EBADF);
    siginfo_t queued = {.si_signo = SIGTERM, .si_code = SI_QUEUE};
    FAILS(send(fd, SIGUSR1, &queued, 0), EINVAL);
    int events = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = 7}, got = {0};
    CHECK(epoll_ctl(events, EPOLL_CTL_ADD, fd, &event) == 0);
    SHOW(epoll_wait(events, &got, 1, 0));
    CHECK(send(fd, SIGTERM, &queued, 0) == 0);
    SHOW(epoll_wait(events, &got, 1, 10000));
    SHOW(got.data.fd);
    SHOW(ready(fd));
    SHOW(send(fd, SIGTERM, 0, 0));
    siginfo_t ended = {0};
    SHOW(waitid(P_PIDFD, fd, &ended, WEXITED));
    CHECK(ended.si_pid == child);
    SHOW(ended.si_status);
    SHOW(ready(fd));
    FAILS(send(fd, SIGTERM, 0, 0), ESRCH);
    FAILS(waitid(P_PIDFD, fd, &ended, WEXITED), ECHILD);
    FAILS(waitid(P_PIDFD, 0, &ended, WEXITED), EBADF);
    FAILS(waitid(P_PIDFD, -1, &ended, WEXITED), EINVAL);
    FAILS(open_pid(child, 0), ESRCH);
    FAILS(open_pid(0, 0), EINVAL);
    FAILS(open_pid(getpid(), 1), EINVAL);
    close(fd);
    close(events);
}

static void not_waiting(void) {
    pid_t child = waiting();
    int fd = open_pid(child, O_NONBLOCK);
    siginfo_t ended = {0};
    FAILS(waitid(P_PIDFD, fd, &ended, WEXITED), EAGAIN);
    SHOW(waitid(P_PIDFD, fd, &ended, WEXITED | WNOHANG));
    CHECK(kill(child, SIGKILL) == 0);
    while (!ready(fd)) poll(0, 0, 1);
    SHOW(waitid(P_PIDFD, fd, &ended, WEXITED));
    SHOW(ended.si_code);
    close(fd);
}

static void from_clone(void) {
    int fd = -1, status;
    struct clone_args args = {.flags = CLONE_PIDFD, .pidfd = (uintptr_t)&fd, .exit_signal = SIGCHLD};
    pid_t child = (pid_t)syscall(SYS_clone3, &args, sizeof args);
    if (!child) {
        // The descriptor is the parent's alone: this is the lowest number that is free.
        _exit(dup(0));
    }
    CHECK(child > 0 && fd > 2);
    CHECK(waitpid(child, &status, 0) == child);
    SHOW(WEXITSTATUS(status) == fd);
    close(fd);
    fd = -1;
    child = (pid_t)syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, 0, &fd, 0, 0);
    if (!child) _exit(4);
    CHECK(child > 0 && fd > 2);
    siginfo_t ended = {0};
    SHOW(waitid(P_PIDFD, fd, &ended, WEXITED));
    SHOW(ended.si_status);
    close(fd);
    FAILS(syscall(SYS_clone, CLONE_PIDFD | CLONE_PARENT_SETTID | SIGCHLD, 0, &fd, 0, 0), EINVAL);
    FAILS(syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, 0, 8, 0, 0), EFAULT);
    SHOW(dup(0) == fd);
    close(fd);
}

// A directory of /proc stands for its process too, but only to send signals.
static void by_directory(void) {
    pid_t child = fork();
    if (!child) {
        pause();
        _exit(1);
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%d", child);
    int fd = open(path, O_RDONLY | O_DIRECTORY), top = open("/proc", O_RDONLY | O_DIRECTORY), status;
    strcat(path, "/fd");
    int below = open(path, O_RDONLY | O_DIRECTORY);
    CHECK(fd >= 0 && top >= 0 && below >= 0);
    CHECK(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == 0);
    FAILS(syscall(SYS_pidfd_send_signal, top, 0, NULL, 0), EBADF);
    FAILS(syscall(SYS_pidfd_send_signal, below, 0, NULL, 0), EBADF);
    FAILS(waitid(P_PIDFD, (id_t)fd, &(siginfo_t){0}, WEXITED), EBADF);
    CHECK(syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0) == 0);
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    FAILS(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0), ESRCH);
    close(fd), close(top), close(below);
}

int main(void) {
    one();
    not_waiting();
    from_clone();
    by_directory();
    pid_t tid = 0;
    pthread_t other;
    CHECK(pthread_create(&other, 0, thread, &tid) == 0 && pthread_join(other, 0) == 0);
    return 0;
}
