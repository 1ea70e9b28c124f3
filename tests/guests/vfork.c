// Parents that wait in vfork(2), and what becomes of them meanwhile.
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#include "guest.h"

static const char *self;

static void say(const char *what, pid_t child) {
    int status = 0;
    pid_t got;
    do got = waitpid(child, &status, 0); while (got < 0 && errno == EINTR);
    if (got != child) printf("%s: %s\n", what, errno_name(errno));
    else if (WIFSIGNALED(status)) printf("%s: killed by %d\n", what, WTERMSIG(status));
    else printf("%s: exited %d\n", what, WEXITSTATUS(status));
    fflush(stdout);
}

static void *replace(void *unused) {
    pause_ms(100);
    execl(self, self, "replaced", (char *)0);
    return unused;
}

// Another thread executes a program, which gets the waiting thread's id. The end of the child is not its business.
static void replaced_while_waiting(void) {
    pid_t parent = fork();
    if (!parent) {
        pthread_t thread;
        NEED(pthread_create(&thread, 0, replace, 0) == 0);
        pid_t child = vfork();
        if (!child) {
            pause_ms(500);
            _exit(0);
        }
        _exit(9);
    }
    say("replaced", parent);
}

static int replaced(void) {
    int ends[2];
    char byte = 0;
    NEED(pipe(ends) == 0);
    if (!fork()) {
        pause_ms(900);
        NEED(write(ends[1], "x", 1) == 1);
        _exit(0);
    }
    ssize_t got = read(ends[0], &byte, 1);
    return got == 1 && byte == 'x' ? 4 : 5;
}

static volatile sig_atomic_t caught;

static void handle(int signo) { caught = signo; }

enum way { BY_TERM, BY_KILL, BY_ALARM, BY_PARENT, BY_CHILD, BY_QUIT, BY_HANDLED, WAYS };

static const char *names[WAYS] = {"SIGTERM", "SIGKILL", "alarm", "parent's end", "child's end", "SIGQUIT", "handled"};

// Ends a parent that waits: all but the last two signals do it although its child goes on.
static void ended_while_waiting(enum way way) {
    int hold[2], told[2], id[2];
    char byte;
    NEED(pipe(hold) == 0 && pipe(told) == 0 && pipe(id) == 0);
    // The subreaper gets what is left of each.
    NEED(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    pid_t between = way == BY_PARENT ? fork() : 0, waiting = 0;
    if (!between) {
        waiting = fork();
        if (!waiting) {
            close(hold[1]);
            if (way == BY_PARENT) NEED(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
            if (way == BY_HANDLED) NEED(signal(SIGTERM, handle) != SIG_ERR);
            if (way == BY_CHILD && !syscall(SYS_clone, SIGTERM, 0, 0, 0, 0)) {
                pause_ms(300);
                _exit(0);
            }
            if (way == BY_ALARM) {
                struct itimerval soon = {.it_value.tv_usec = 200000};
                NEED(setitimer(ITIMER_REAL, &soon, 0) == 0);
            }
            pid_t child = vfork();
            if (!child) {
                NEED(write(told[1], "x", 1) == 1);
                _exit(read(hold[0], &byte, 1) == 0 ? 0 : 1);
            }
            _exit(caught ? 8 : 7);
        }
        if (way == BY_PARENT) {
            NEED(write(id[1], &waiting, sizeof waiting) == sizeof waiting);
            pause_ms(300);
            _exit(0);
        }
    }
    if (way == BY_PARENT) {
        NEED(read(id[0], &waiting, sizeof waiting) == sizeof waiting);
        say("between", between);
    }
    NEED(read(told[0], &byte, 1) == 1);
    pause_ms(100);
    if (way == BY_TERM || way == BY_HANDLED) NEED(kill(waiting, SIGTERM) == 0);
    if (way == BY_KILL) NEED(kill(waiting, SIGKILL) == 0);
    if (way == BY_QUIT) NEED(kill(waiting, SIGQUIT) == 0);
    if (way == BY_QUIT || way == BY_HANDLED) {
        pause_ms(100);
        NEED(waitpid(waiting, 0, WNOHANG) == 0);
        close(hold[1]);
    }
    say(names[way], waiting);
    close(hold[1]);
    while (wait(0) > 0) continue;
    for (int end = 0; end < 2; end++) {
        close(told[end]);
        close(id[end]);
    }
    close(hold[0]);
}

int main(int argc, char **argv) {
    self = argv[0];
    if (argc > 1) return replaced();
    replaced_while_waiting();
    for (enum way way = 0; way < WAYS; way++) ended_while_waiting(way);
    return 0;
}
