// Stops and continuations of processes, and what wait tells of them.
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "guest.h"

static void say(const char *what, pid_t child, int options) {
    int status = 0;
    pid_t got;
    do got = waitpid(child, &status, options); while (got < 0 && errno == EINTR);
    if (got == 0) printf("%s: nothing\n", what);
    else if (got != child) printf("%s: %s\n", what, errno_name(errno));
    else if (WIFSTOPPED(status)) printf("%s: stopped by %d\n", what, WSTOPSIG(status));
    else if (WIFCONTINUED(status)) printf("%s: continued, %#x\n", what, status);
    else if (WIFSIGNALED(status)) printf("%s: killed by %d\n", what, WTERMSIG(status));
    else printf("%s: exited %d\n", what, WEXITSTATUS(status));
    fflush(stdout);
}

static void once(void) {
    static const int stops[] = {SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU};
    for (int at = 0; at < 4; at++) {
        pid_t child = fork();
        if (!child) {
            setpgid(0, 0);
            raise(stops[at]);
            for (;;) pause();
        }
        say("stop", child, WUNTRACED);
        say("again", child, WUNTRACED | WNOHANG);
        NEED(kill(child, SIGCONT) == 0);
        say("continue", child, WCONTINUED);
        NEED(kill(child, SIGTERM) == 0);
        say("end", child, WUNTRACED | WCONTINUED);
    }
}

static void by_waitid(void) {
    siginfo_t info;
    pid_t child = fork();
    if (!child) {
        raise(SIGSTOP);
        _exit(1);
    }
    for (int look = 0; look < 3; look++) {
        NEED(waitid(P_PID, child, &info, WSTOPPED | (look < 2 ? WNOWAIT : 0) | WEXITED) == 0);
        printf("waitid: %d %d %d %d\n", info.si_signo, info.si_code, info.si_pid == child, info.si_status);
    }
    NEED(waitid(P_PID, child, &info, WSTOPPED | WNOHANG) == 0);
    printf("nothing: %d %d\n", info.si_signo, info.si_pid);
    NEED(kill(child, SIGCONT) == 0);
    NEED(waitid(P_PID, child, &info, WEXITED | WNOWAIT) == 0);
    printf("ended: %d %d\n", info.si_code, info.si_status);
    // Nothing of a child that has ended will ever be told but its end.
    NEED(waitid(P_PID, child, &info, WSTOPPED | WCONTINUED) == -1 && errno == ECHILD);
    say("end", child, 0);
}

static volatile sig_atomic_t told;

static void tell(int signo, siginfo_t *info, void *context) {
    (void)signo;
    (void)context;
    told = told * 10 + info->si_code;
}

static void parents_signal(void) {
    for (int silent = 0; silent < 2; silent++) {
        struct sigaction action = {.sa_sigaction = tell, .sa_flags = SA_SIGINFO | (silent ? SA_NOCLDSTOP : 0)}, old;
        NEED(sigaction(SIGCHLD, &action, &old) == 0);
        told = 0;
        pid_t child = fork();
        if (!child) {
            raise(SIGSTOP);
            for (;;) pause();
        }
        say("stop", child, WUNTRACED);
        NEED(kill(child, SIGCONT) == 0);
        say("continue", child, WCONTINUED);
        // The child reports it by itself, later than wait does.
        while (!silent && told % 10 != CLD_CONTINUED) pause_ms(1);
        NEED(kill(child, SIGTERM) == 0);
        say("end", child, 0);
        while (told % 10 != CLD_KILLED) pause_ms(1);
        printf("told: %d\n", told);
        NEED(sigaction(SIGCHLD, &old, 0) == 0);
    }
}

static volatile sig_atomic_t handled;
static void handle(int signo) { handled = signo; }

// A call that was interrupted goes on, and so does the time it waits for. What comes meanwhile waits.
static void calls(void) {
    int data[2], number = 0;
    NEED(pipe(data) == 0);
    pid_t reader = fork();
    if (!reader) {
        signal(SIGUSR1, handle);
        NEED(read(data[0], &number, sizeof number) == sizeof number);
        _exit(number + handled);
    }
    pid_t sleeper = fork();
    if (!sleeper) {
        pause_ms(300);
        _exit(5);
    }
    pause_ms(50);
    NEED(kill(reader, SIGSTOP) == 0 && kill(sleeper, SIGSTOP) == 0);
    say("reader", reader, WUNTRACED);
    say("sleeper", sleeper, WUNTRACED);
    number = 20;
    NEED(write(data[1], &number, sizeof number) == sizeof number && kill(reader, SIGUSR1) == 0);
    pause_ms(30);
    say("reader", reader, WNOHANG);
    NEED(kill(reader, SIGCONT) == 0 && kill(sleeper, SIGCONT) == 0);
    say("reader", reader, 0);
    say("sleeper", sleeper, 0);
    close(data[0]);
    close(data[1]);
}

static void other_signals(void) {
    pid_t child = fork();
    if (!child)
        for (;;) pause();
    NEED(kill(child, SIGSTOP) == 0);
    say("stop", child, WUNTRACED);
    NEED(kill(child, SIGTERM) == 0);
    pause_ms(20);
    say("terminated", child, WNOHANG);
    NEED(kill(child, SIGCONT) == 0);
    say("terminated", child, 0);
    child = fork();
    if (!child)
        for (;;) pause();
    NEED(kill(child, SIGSTOP) == 0);
    say("stop", child, WUNTRACED);
    NEED(kill(child, SIGKILL) == 0);
    say("killed", child, 0);
    // Handlers stop nothing; SIGCONT may be blocked or ignored and continues all the same.
    for (int way = 0; way < 2; way++) {
        child = fork();
        if (!child) {
            sigset_t set;
            sigemptyset(&set);
            sigaddset(&set, SIGCONT);
            if (way) signal(SIGCONT, SIG_IGN);
            else sigprocmask(SIG_BLOCK, &set, 0);
            signal(SIGTSTP, handle);
            raise(SIGTSTP);
            raise(SIGSTOP);
            sigpending(&set);
            _exit(handled + sigismember(&set, SIGCONT));
        }
        say("stop", child, WUNTRACED);
        NEED(kill(child, SIGCONT) == 0);
        say("end", child, 0);
    }
}

// A pending stop signal takes a pending SIGCONT away, and the other way round.
static void pending(void) {
    sigset_t both, set;
    sigemptyset(&both);
    sigaddset(&both, SIGCONT);
    sigaddset(&both, SIGTSTP);
    NEED(sigprocmask(SIG_BLOCK, &both, 0) == 0);
    signal(SIGCONT, handle);
    static const int order[] = {SIGTSTP, SIGCONT, SIGTSTP, SIGCONT};
    for (int at = 0; at < 4; at++) {
        NEED(at % 2 ? raise(order[at]) == 0 : kill(getpid(), order[at]) == 0);
        NEED(sigpending(&set) == 0);
        printf("pending: stop %d, continue %d\n", sigismember(&set, SIGTSTP), sigismember(&set, SIGCONT));
    }
    NEED(sigprocmask(SIG_UNBLOCK, &both, 0) == 0);
    printf("handled: %d\n", handled);
    signal(SIGCONT, SIG_DFL);
}

static volatile long *counters;

static void *counting(void *at) {
    for (;;) ++*(volatile long *)at;
    return 0;
}

static void threads(void) {
    counters = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    NEED(counters != MAP_FAILED);
    pid_t child = fork();
    if (!child) {
        pthread_t thread;
        pthread_create(&thread, 0, counting, (void *)&counters[1]);
        counting((void *)&counters[0]);
    }
    while (!counters[0] || !counters[1]) pause_ms(1);
    NEED(kill(child, SIGSTOP) == 0);
    say("threads", child, WUNTRACED);
    long first = counters[0], second = counters[1];
    pause_ms(40);
    printf("stand still: %d %d\n", counters[0] == first, counters[1] == second);
    NEED(kill(child, SIGCONT) == 0);
    while (counters[0] == first || counters[1] == second) pause_ms(1);
    NEED(kill(child, SIGKILL) == 0);
    say("threads", child, 0);
}

// Nobody would continue what stops in an orphaned group: the signals of a terminal do nothing there, and what
// was stopped before gets SIGHUP and SIGCONT.
static void orphans(void) {
    pid_t child = fork();
    if (!child) {
        setsid();
        raise(SIGTSTP);
        raise(SIGTTIN);
        raise(SIGTTOU);
        _exit(6);
    }
    say("orphan", child, WUNTRACED);
    int report[2];
    NEED(pipe(report) == 0);
    child = fork();
    if (!child) {
        pid_t grandchild = fork();
        if (!grandchild) {
            signal(SIGHUP, handle);
            setpgid(0, 0);
            raise(SIGSTOP);
            NEED(write(report[1], (int[]){handled}, sizeof(int)) == sizeof(int));
            _exit(0);
        }
        say("grandchild", grandchild, WUNTRACED);
        _exit(7);
    }
    say("parent", child, 0);
    int signo = 0;
    NEED(read(report[0], &signo, sizeof signo) == sizeof signo);
    printf("orphan got %d\n", signo);
}

int main(void) {
    once();
    by_waitid();
    parents_signal();
    calls();
    other_signals();
    pending();
    threads();
    orphans();
    return 0;
}
