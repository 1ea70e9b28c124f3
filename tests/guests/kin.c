// Relations of processes: those that have ended, init, new parents, ids of others.
#include "guest.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

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

static void *stay(void *arg) {
    for (;;) pause();
    return arg;
}

// A nice value, and how /proc shows it.
static void inherited_nice(void) {
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        SHOW(nice(7));
        fflush(stdout);
        pid_t grandchild = fork();
        if (!grandchild) {
            char line[1000] = "";
            int fd = open("/proc/self/stat", O_RDONLY), priority = -1, value = -1;
            read(fd, line, sizeof line - 1);
            sscanf(strrchr(line, ')') + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %d %d", &priority, &value);
            printf("priority %d, nice %d, %d\n", priority, value, getpriority(PRIO_PROCESS, 0));
            SHOW(setpriority(PRIO_PROCESS, 0, -21));
            fflush(stdout);
            _exit(0);
        }
        reap(grandchild);
        fflush(stdout);
        _exit(0);
    }
    reap(child);
}

// What is asked of another process by its id.
static void ids_of_others(void) {
    struct rlimit limit, own;
    siginfo_t info = {.si_code = SI_QUEUE};
    cpu_set_t set;
    clockid_t clock;
    struct timespec time;
    pid_t child = fork();
    if (!child) stay(0);
    SHOW(prlimit(child, RLIMIT_NOFILE, 0, &limit));
    limit.rlim_cur = 50;
    SHOW(prlimit(child, RLIMIT_NOFILE, &limit, 0));
    SHOW(prlimit(child, RLIMIT_NOFILE, 0, &limit));
    SHOW(getrlimit(RLIMIT_NOFILE, &own));
    SHOW(limit.rlim_cur == 50 && own.rlim_cur != 50);
    SHOW(getpriority(PRIO_PROCESS, child));
    SHOW(setpriority(PRIO_PROCESS, child, 0));
    SHOW(setpriority(PRIO_PROCESS, child, 5));
    SHOW(getpriority(PRIO_PROCESS, child));
    SHOW(getpriority(PRIO_PROCESS, 0));
    SHOW(setpriority(PRIO_PROCESS, child, 4));
    SHOW(setpriority(PRIO_PROCESS, child, 100));
    SHOW(getpriority(PRIO_PROCESS, child));
    SHOW(getpriority(PRIO_PGRP, child));
    SHOW(getpriority(PRIO_USER, 5000000));
    inherited_nice();
    SHOW(getpriority(PRIO_PROCESS, 5000000));
    SHOW(sched_getscheduler(child));
    SHOW(sched_getaffinity(child, sizeof set, &set));
    SHOW(sched_getscheduler(5000000));
    SHOW(clock_getcpuclockid(child, &clock));
    SHOW(clock_gettime(clock, &time));
    SHOW(clock_getcpuclockid(5000000, &clock) == ESRCH);
    SHOW(kill(child, 100));
    SHOW(kill(5000000, 100));
    SHOW(kill(-5000000, 100));
    SHOW(syscall(SYS_tgkill, child, child, 0));
    SHOW(syscall(SYS_tgkill, child, child, 100));
    SHOW(syscall(SYS_tgkill, 5000000, child, 100));
    SHOW(syscall(SYS_rt_sigqueueinfo, 5000000, 100, &info));
    SHOW(syscall(SYS_rt_sigqueueinfo, child, 100, &info));
    info.si_code = SI_USER;
    SHOW(syscall(SYS_rt_sigqueueinfo, 5000000, 100, &info));
    SHOW(syscall(SYS_rt_sigqueueinfo, child, SIGTERM, 0));
    SHOW(kill(child, SIGKILL));
    SHOW(reap(child));
    child = zombie(0);
    info.si_code = SI_QUEUE;
    SHOW(syscall(SYS_rt_sigqueueinfo, child, SIGTERM, &info));
    SHOW(syscall(SYS_tkill, child, SIGTERM));
    SHOW(kill(child, 100));
    SHOW(sched_getscheduler(child));
    SHOW(getpriority(PRIO_PROCESS, child));
    SHOW(reap(child));
    // The first thread ends before its process.
    child = fork();
    if (!child) {
        pthread_t thread;
        pthread_create(&thread, 0, stay, 0);
        syscall(SYS_exit, 0);
    }
    pause_ms(200);
    SHOW(syscall(SYS_tgkill, child, child, 0));
    SHOW(syscall(SYS_tgkill, child, child, SIGTERM));
    SHOW(waitpid(child, 0, WNOHANG));
    SHOW(kill(child, SIGTERM));
    SHOW(reap(child));
}

static volatile sig_atomic_t told;

static void tell(int signo) { told = signo; }

// A child of a child that ends: it has ended already or ends later, with this signal.
static void inherits(int flags, int later) {
    pid_t between = fork();
    if (!between) {
        signal(SIGCHLD, SIG_DFL);
        if (!syscall(SYS_clone, flags, 0, 0, 0, 0)) {
            pause_ms(later ? 300 : 0);
            _exit(5);
        }
        pause_ms(later ? 0 : 150);
        _exit(0);
    }
    told = 0;
    pause_ms(600);
}

static void new_parents(void) {
    int status = 0;
    signal(SIGCHLD, tell);
    for (int later = 0; later < 2; later++) {
        inherits(0, later);
        SHOW(told == SIGCHLD);
        for (int child = 0; child < 2; child++) {
            pid_t got;
            do got = waitpid(-1, &status, 0); while (got < 0 && errno == EINTR);
            NEED(got > 0);
        }
        SHOW(waitpid(-1, &status, __WALL));
    }
    signal(SIGCHLD, SIG_IGN);
    inherits(SIGCHLD, 0);
    SHOW(waitpid(-1, &status, __WALL));
    signal(SIGCHLD, SIG_DFL);
}

// The signals of clone(2) that are none, and those with CLONE_PARENT.
static void exit_signals(void) {
    struct clone_args args = {.flags = CLONE_PARENT, .exit_signal = SIGCHLD};
    int status = 0;
    SHOW(syscall(SYS_clone3, &args, sizeof args));
    args.flags = 0;
    args.exit_signal = 100;
    SHOW(syscall(SYS_clone3, &args, sizeof args));
    pid_t child = syscall(SYS_clone, 100, 0, 0, 0, 0);
    if (!child) _exit(6);
    SHOW(child > 0);
    SHOW(waitpid(child, &status, 0));
    SHOW(reap(child));
    // Its child is ours, and is told of as it is.
    child = syscall(SYS_clone, 0, 0, 0, 0, 0);
    if (!child) {
        if (!syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0)) _exit(7);
        _exit(8);
    }
    pause_ms(300);
    SHOW(waitpid(-1, &status, WNOHANG));
    SHOW(waitpid(-1, &status, __WCLONE) > 0);
    SHOW(waitpid(-1, &status, __WCLONE) > 0);
}

static char text[8192];

static long slurp(pid_t pid, const char *name) {
    snprintf(text, sizeof text, "/proc/%d/%s", pid, name);
    FILE *file = fopen(text, "r");
    if (!file) return -1;
    size_t len = fread(text, 1, sizeof text - 1, file);
    text[len] = 0;
    fclose(file);
    return (long)len;
}

static int row_is(const char *name, pid_t value) {
    char *row = strstr(text, name);
    return row && atoi(row + strlen(name)) == value;
}

// What /proc says of a child, alive or ended.
static void described(const char *what, pid_t child) {
    char state, comm[20];
    int pid, ppid, pgrp, sid, tty, foreground;
    printf("# %s\n", what);
    SHOW(slurp(child, "stat") > 0);
    NEED(sscanf(text, "%d (%15[^)]) %c %d %d %d %d %d", &pid, comm, &state, &ppid, &pgrp, &sid, &tty, &foreground) == 8);
    printf("stat: %s %c %d\n", comm, state, pid == child && ppid == getpid() && pgrp == getpgid(child) && sid == getsid(child));
    SHOW(slurp(child, "comm"));
    printf("comm: %s", text);
    SHOW(slurp(child, "cmdline") > 0);
    SHOW(slurp(child, "maps") > 0);
    SHOW(slurp(child, "status") > 0);
    SHOW(row_is("\nTgid:\t", child) && row_is("\nPid:\t", child) && row_is("\nPPid:\t", getpid()));
    SHOW(row_is("\nNSpid:\t", child) || !strstr(text, "NSpid"));
    SHOW(row_is("\nThreads:\t", 1));
    char *row = strstr(text, "\nState:\t");
    printf("state: %.10s\n", row ? row + 8 : "");
}

static void proc(void) {
    char name[64];
    pid_t child = fork();
    if (!child) {
        setpgid(0, 0);
        stay(0);
    }
    setpgid(child, child);
    pause_ms(100);
    described("alive", child);
    snprintf(name, sizeof name, "task/%d/children", getpid());
    if (slurp(getpid(), name) >= 0) NEED(atoi(text) == child);
    SHOW(kill(child, SIGKILL));
    SHOW(reap(child));
    SHOW(slurp(child, "stat"));
    child = zombie(1);
    described("ended", child);
    if (slurp(getpid(), name) >= 0) NEED(atoi(text) == child);
    SHOW(reap(child));
    SHOW(slurp(child, "stat"));
}

int main(void) {
    NEED(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    groups_of_the_dead();
    ids_of_others();
    new_parents();
    exit_signals();
    proc();
    return 0;
}
