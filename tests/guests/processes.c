/* Processes: fork, vfork, execve in a child, wait, groups, sessions, signals between processes. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "guest.h"

#define PAGES 64
#define PAGE 4096

extern char **environ;

static volatile sig_atomic_t caught;

static void count(int signo) { caught += signo == SIGCHLD ? 1 : 100; }

static void say_status(const char *what, int status) {
    if (WIFEXITED(status)) printf("%s: exited %d\n", what, WEXITSTATUS(status));
    else if (WIFSIGNALED(status)) printf("%s: killed by %d\n", what, WTERMSIG(status));
    else printf("%s: %#x\n", what, status);
    fflush(stdout);
}

static int reap(pid_t pid) {
    int status = -1;
    pid_t got;
    do got = waitpid(pid, &status, 0); while (got < 0 && errno == EINTR);
    NEED(got == pid);
    return status;
}

/* Each side sees its own writes to private memory, and both see those to shared memory. */
static void memory(void) {
    static char data[PAGES * PAGE];
    char *heap = malloc(PAGES * PAGE), stack[8 * PAGE];
    char *private = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *shared = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *areas[] = {data, heap, private, shared};
    NEED(heap && private != MAP_FAILED && shared != MAP_FAILED);
    for (int area = 0; area < 4; area++) memset(areas[area], 1, PAGES * PAGE);
    memset(stack, 1, sizeof stack);
    int ready[2], go[2];
    char byte = 0;
    NEED(pipe(ready) == 0 && pipe(go) == 0);
    pid_t child = fork();
    NEED(child >= 0);
    for (int area = 0; area < 4; area++)
        for (int page = child ? 0 : 1; page < PAGES; page += 2) areas[area][page * PAGE] = child ? 2 : 3;
    stack[child ? 0 : PAGE] = child ? 2 : 3;
    NEED(write(child ? go[1] : ready[1], &byte, 1) == 1);
    NEED(read(child ? ready[0] : go[0], &byte, 1) == 1);
    int sums[5] = {0};
    for (int area = 0; area < 4; area++)
        for (int page = 0; page < PAGES; page++) sums[area] += areas[area][page * PAGE];
    for (int page = 0; page < 8; page++) sums[4] += stack[page * PAGE];
    if (!child) {
        int right = sums[0] == PAGES * 2 && sums[1] == PAGES * 2 && sums[2] == PAGES * 2;
        _exit(right && sums[3] == PAGES / 2 * 5 && sums[4] == 10 ? 0 : 1);
    }
    printf("memory: %d %d %d shared %d stack %d\n", sums[0], sums[1], sums[2], sums[3], sums[4]);
    say_status("memory", reap(child));
    NEED(munmap(private, PAGES * PAGE) == 0 && munmap(shared, PAGES * PAGE) == 0);
    free(heap);
}

/* More private memory than is copied at once. */
static void large(void) {
    size_t len = 24 << 20;
    char *area = mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(area != MAP_FAILED);
    for (size_t at = 0; at < len; at += PAGE) area[at] = (char)(at >> 12);
    for (int round = 0; round < 3; round++) {
        pid_t child = fork();
        NEED(child >= 0);
        size_t own = child ? 0 : PAGE;
        for (size_t at = own; at < len; at += 16 * PAGE) area[at + 1] = child ? 7 : 9;
        int wrong = 0;
        for (size_t at = 0; at < len; at += PAGE) wrong += area[at] != (char)(at >> 12);
        for (size_t at = 0; at < len; at += 16 * PAGE)
            wrong += area[at + 1] != (child || round ? 7 : 0) || area[at + PAGE + 1] != (child ? 0 : 9);
        if (!child) _exit(wrong ? 1 : 0);
        printf("large: %d wrong\n", wrong);
        say_status("large", reap(child));
    }
    NEED(munmap(area, len) == 0);
}

static void ends(void) {
    static const int signals[] = {SIGKILL, SIGTERM, SIGSEGV, SIGABRT};
    for (int status = 0; status < 3; status++) {
        pid_t child = fork();
        if (!child) _exit(status * 100);
        say_status("exit", reap(child));
    }
    for (unsigned at = 0; at < 4; at++) {
        pid_t child = fork();
        if (!child) {
            if (signals[at] == SIGSEGV) *(volatile int *)8 = 1;
            if (signals[at] == SIGABRT) abort();
            for (;;) pause();
        }
        if (at < 2) NEED(kill(child, signals[at]) == 0);
        say_status("signal", reap(child) & ~0x80);
    }
    NEED(waitpid(-1, 0, 0) == -1);
    printf("no child: %s\n", errno_name(errno));
    NEED(waitpid(-1, 0, WNOHANG) == -1 && errno == ECHILD);
}

static void waits(void) {
    siginfo_t info;
    struct rusage usage;
    int hold[2];
    char byte;
    NEED(pipe(hold) == 0);
    pid_t child = fork();
    if (!child) {
        close(hold[1]);
        NEED(read(hold[0], &byte, 1) == 0);
        _exit(5);
    }
    NEED(waitpid(child, 0, WNOHANG) == 0);
    memset(&info, 1, sizeof info);
    NEED(waitid(P_PID, child, &info, WEXITED | WNOHANG) == 0);
    printf("running: %d %d\n", info.si_signo, info.si_pid);
    close(hold[0]);
    close(hold[1]);
    for (int look = 0; look < 2; look++) {
        NEED(waitid(P_ALL, 0, &info, WEXITED | WNOWAIT) == 0);
        printf("ended: %d %d %d %d\n", info.si_signo, info.si_code, info.si_pid == child, info.si_status);
    }
    NEED(kill(child, 0) == 0);
    NEED(wait4(child, 0, 0, &usage) == child);
    NEED(kill(child, 0) == -1 && errno == ESRCH);
    NEED(waitpid(child, 0, 0) == -1 && errno == ECHILD);
    printf("bad options: %d\n", waitpid(-1, 0, 0x100) == -1 ? errno : 0);
}

static void children_signal(void) {
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART}, old;
    sigset_t set, before;
    NEED(sigaction(SIGCHLD, &action, &old) == 0);
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    NEED(sigprocmask(SIG_BLOCK, &set, &before) == 0);
    pid_t child = fork();
    if (!child) _exit(3);
    siginfo_t info;
    NEED(sigwaitinfo(&set, &info) == SIGCHLD);
    printf("SIGCHLD: %d %d %d\n", info.si_code, info.si_pid == child, info.si_status);
    NEED(sigprocmask(SIG_SETMASK, &before, 0) == 0);
    say_status("told", reap(child));
    child = fork();
    if (!child) _exit(4);
    say_status("handled", reap(child));
    printf("handler: %d\n", caught);
    action.sa_handler = SIG_IGN;
    NEED(sigaction(SIGCHLD, &action, 0) == 0);
    child = fork();
    if (!child) _exit(0);
    NEED(waitpid(child, 0, 0) == -1 && errno == ECHILD);
    NEED(sigaction(SIGCHLD, &old, 0) == 0);
}

static void executes(const char *self) {
    char *ways[][4] = {{(char *)self, "child", "a b", 0}, {"/no/such", 0}};
    for (volatile int way = 0; way < 2; way++) {
        pid_t child = vfork();
        if (!child) {
            execv(ways[way][0], ways[way]);
            _exit(127);
        }
        NEED(child > 0);
        say_status("vfork", reap(child));
        child = fork();
        if (!child) {
            execv(ways[way][0], ways[way]);
            _exit(126);
        }
        say_status("fork", reap(child));
        int error = posix_spawn(&child, ways[way][0], 0, 0, ways[way], environ);
        printf("spawn: %s\n", error ? errno_name(error) : "0");
        if (!error) say_status("spawn", reap(child));
    }
    FILE *pipe = popen("printf '%s\\n' one two | tail -n 1", "r");
    char line[16] = "";
    NEED(pipe && fgets(line, sizeof line, pipe));
    printf("popen: %s", line);
    say_status("popen", pclose(pipe));
    say_status("system", system("exit 6"));
}

static void groups(void) {
    printf("groups: %d %d %d\n", getpgrp() == getpgid(0), getsid(0) == getsid(getpid()), setpgid(0, -1) == -1 ? errno : 0);
    int hold[2];
    char byte;
    NEED(pipe(hold) == 0);
    pid_t leader = fork();
    if (!leader) {
        NEED(read(hold[0], &byte, 1) == 1);
        for (;;) pause();
    }
    NEED(setpgid(leader, 0) == 0 && getpgid(leader) == leader);
    pid_t member = fork();
    if (!member)
        for (;;) pause();
    NEED(setpgid(member, leader) == 0);
    NEED(setpgid(member, 1) == -1 && errno == EPERM);
    NEED(write(hold[1], "x", 1) == 1);
    NEED(kill(-leader, SIGTERM) == 0);
    say_status("group", reap(leader));
    int status;
    NEED(waitpid(-leader, &status, 0) == member);
    say_status("group", status);
    NEED(kill(-leader, 0) == -1 && errno == ESRCH);
    pid_t session = fork();
    if (!session) {
        pid_t own = getpid();
        int right = setsid() == own && getpgrp() == own && getsid(0) == own && setsid() == -1 && errno == EPERM;
        _exit(right ? 0 : 1);
    }
    say_status("session", reap(session));
}

/* A grandchild whose parent ends is its nearest subreaper's. */
static void orphans(void) {
    int tell[2], alive[2], status;
    pid_t grandchild = 0;
    char byte;
    NEED(pipe(tell) == 0 && pipe(alive) == 0 && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    pid_t child = fork();
    if (!child) {
        grandchild = fork();
        if (!grandchild) {
            close(alive[1]);
            /* Until nobody has the other end. */
            _exit(read(alive[0], &byte, 1) == 0 ? 8 : 9);
        }
        NEED(write(tell[1], &grandchild, sizeof grandchild) == sizeof grandchild);
        _exit(7);
    }
    close(alive[1]);
    NEED(read(tell[0], &grandchild, sizeof grandchild) == sizeof grandchild);
    say_status("parent", reap(child));
    NEED(waitpid(-1, &status, 0) == grandchild);
    say_status("orphan", status);
    NEED(prctl(PR_SET_CHILD_SUBREAPER, 0) == 0);
}

/* Descriptors have one offset, close-on-exec and locks are each process's own. */
static void files(void) {
    char name[] = "/tmp/processes-XXXXXX", bytes[8] = "";
    int fd = mkstemp(name);
    NEED(fd >= 0 && unlink(name) == 0 && write(fd, "abcdef", 6) == 6 && lseek(fd, 0, SEEK_SET) == 0);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    NEED(fcntl(fd, F_SETLK, &lock) == 0);
    pid_t child = fork();
    if (!child) {
        struct flock other = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        int right = read(fd, bytes, 2) == 2 && fcntl(fd, F_GETLK, &other) == 0 && other.l_type == F_WRLCK;
        _exit(right && other.l_pid == getppid() ? 0 : 1);
    }
    say_status("lock", reap(child));
    NEED(read(fd, bytes, 2) == 2);
    printf("offset: %.2s\n", bytes);
    close(fd);
}

/* A process that is killed in open(2) of a FIFO leaves no end of it open. */
static void fifos(void) {
    char name[64];
    snprintf(name, sizeof name, "/tmp/processes-fifo-%d", getpid());
    for (int way = 0; way < 2; way++) {
        NEED(mkfifo(name, 0600) == 0);
        pid_t child = fork();
        if (!child) _exit(open(name, way ? O_WRONLY : O_RDONLY) < 0);
        usleep(200000);
        NEED(kill(child, way ? SIGTERM : SIGKILL) == 0);
        say_status("opens", reap(child));
        char byte;
        if (way) {
            int fd = open(name, O_RDONLY | O_NONBLOCK);
            NEED(fd >= 0 && read(fd, &byte, 1) == 0 && close(fd) == 0);
        } else {
            NEED(open(name, O_WRONLY | O_NONBLOCK) == -1 && errno == ENXIO);
        }
        NEED(unlink(name) == 0);
    }
}

/* Each waits for the other's lock: the second is told. */
static void deadlock(void) {
    char name[] = "/tmp/processes-XXXXXX", byte;
    int fd = mkstemp(name), held[2], go[2];
    NEED(fd >= 0 && unlink(name) == 0 && pipe(held) == 0 && pipe(go) == 0);
    struct flock first = {.l_type = F_WRLCK, .l_len = 1}, second = {.l_type = F_WRLCK, .l_start = 1, .l_len = 1};
    NEED(fcntl(fd, F_SETLK, &first) == 0);
    pid_t child = fork();
    if (!child) {
        NEED(fcntl(fd, F_SETLK, &second) == 0 && write(held[1], "x", 1) == 1);
        NEED(fcntl(fd, F_SETLKW, &first) == 0);
        _exit(0);
    }
    NEED(read(held[0], &byte, 1) == 1);
    usleep(200000);
    NEED(fcntl(fd, F_SETLKW, &second) == -1 && errno == EDEADLK);
    first.l_type = F_UNLCK;
    NEED(fcntl(fd, F_SETLK, &first) == 0);
    say_status("deadlock", reap(child));
    NEED(fcntl(fd, F_SETLKW, &second) == 0);
    close(fd);
}

struct locks {
    pthread_mutex_t of_other, of_caller;
    sem_t locked;
};

static void *lock_and_stay(void *at) {
    struct locks *locks = at;
    NEED(pthread_mutex_lock(&locks->of_other) == 0 && sem_post(&locks->locked) == 0);
    for (;;) pause();
    return 0;
}

/* What threads hold when one of them executes another program is given up, as at their end. */
static void held_at_exec(const char *self) {
    struct locks *locks = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_mutexattr_t attributes;
    NEED(locks != MAP_FAILED && pthread_mutexattr_init(&attributes) == 0);
    NEED(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) == 0);
    NEED(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST) == 0);
    NEED(pthread_mutex_init(&locks->of_other, &attributes) == 0 && pthread_mutex_init(&locks->of_caller, &attributes) == 0);
    NEED(sem_init(&locks->locked, 1, 0) == 0);
    pid_t child = fork();
    if (!child) {
        pthread_t other;
        NEED(pthread_create(&other, 0, lock_and_stay, locks) == 0 && pthread_mutex_lock(&locks->of_caller) == 0);
        while (sem_wait(&locks->locked) != 0) {}
        execl(self, self, "child", "held", (char *)0);
        _exit(127);
    }
    say_status("held", reap(child));
    printf("held: %d %d\n", pthread_mutex_lock(&locks->of_other) == EOWNERDEAD, pthread_mutex_lock(&locks->of_caller) == EOWNERDEAD);
    NEED(munmap(locks, PAGE) == 0);
}

static void many(void) {
    enum { COUNT = 60 };
    int sum = 0, status;
    for (int number = 0; number < COUNT; number++) {
        pid_t child = fork();
        NEED(child >= 0);
        if (!child) _exit(number);
    }
    for (int number = 0; number < COUNT; number++) {
        NEED(wait(&status) > 0 && WIFEXITED(status));
        sum += WEXITSTATUS(status);
    }
    printf("many: %d\n", sum);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "child")) {
        printf("child: %d %s %d\n", argc, argv[2], getppid() > 0);
        return 42;
    }
    memory();
    large();
    ends();
    waits();
    children_signal();
    executes(argv[0]);
    groups();
    orphans();
    files();
    fifos();
    deadlock();
    held_at_exec(argv[0]);
    many();
    return 0;
}
