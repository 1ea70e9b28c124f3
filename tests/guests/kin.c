// Relations of processes: those that have ended, init, new parents, ids of others.
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "guest.h"

#define NEED(cond) \
    do { \
        errno = 0; \
        if (!(cond)) { \
            printf("FAIL %s:%d: %s (%s)\n", __FILE__, __LINE__, #cond, errno_name(errno)); \
            fflush(stdout); \
        } \
    } while (0)

static void pause_ms(int ms) {
    struct timespec time = {.tv_nsec = ms * 1000000L};
    nanosleep(&time, 0);
}

// A child that has ended and has not been waited for.
static pid_t zombie(int leads) {
    siginfo_t info;
    pid_t child = fork();
    if (!child) {
        if (leads) setpgid(0, 0);
        _exit(3);
    }
    NEED(waitid(P_PID, child, &info, WEXITED | WNOWAIT) == 0);
    return child;
}

static int reap(pid_t child) {
    int status = -1;
    pid_t got;
    do got = waitpid(child, &status, __WALL); while (got < 0 && errno == EINTR);
    NEED(got == child);
    return status;
}

static void groups_of_the_dead(void) {
    int status = 0;
    pid_t dead = zombie(0), leader = zombie(1);
    SHOW(getpgid(dead) == getpgrp());
    SHOW(getsid(dead) == getsid(0));
    SHOW(setpgid(dead, dead));
    SHOW(getpgid(dead) == dead);
    pid_t child = fork();
    if (!child) _exit(setpgid(0, leader) == 0 && getpgrp() == leader ? 0 : errno);
    SHOW(reap(child));
    SHOW(kill(-leader, 0));
    SHOW(kill(-leader, SIGTERM));
    SHOW(waitpid(-leader, &status, 0) == leader);
    SHOW(kill(-leader, 0));
    reap(dead);
    // A group without its leader's own process is a group all the same.
    child = fork();
    if (!child) {
        setpgid(0, 0);
        pid_t member = zombie(0);
        setpgid(0, getppid());
        NEED(setpgid(0, getpgid(getppid())) == 0);
        SHOW(setsid());
        reap(member);
        SHOW(setsid() == getpid());
        _exit(0);
    }
    reap(child);
}

int main(void) {
    NEED(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    groups_of_the_dead();
    return 0;
}
