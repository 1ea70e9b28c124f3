// Uses its terminal from the background: jobcontrol read|write|set|ignore. Has jobs of its own: jobcontrol jobs.
#include "guest.h"
#include <signal.h>
#include <sys/wait.h>
#include <termios.h>

// A job of one process, in a group of its own, that reads a line once it is told to.
static pid_t job(int go) {
    pid_t child = fork();
    if (!child) {
        char c = 0;
        signal(SIGTTOU, SIG_DFL);
        setpgid(0, 0);
        if (read(go, &c, 1) != 1) _exit(1);
        if (tcgetpgrp(0) == getpgrp()) printf("type\n");
        fflush(stdout);
        _exit(read(0, &c, 1) == 1 && c == 'x' && read(0, &c, 1) == 1 ? 0 : 2);
    }
    setpgid(child, child);
    return child;
}

static int jobs(void) {
    int go[2], status = 0;
    need(pipe(go) == 0, "pipe");
    signal(SIGTTOU, SIG_IGN);
    SHOW(tcgetpgrp(0) == getpgrp());
    SHOW(tcgetsid(0) == getsid(0));
    SHOW(tcsetpgrp(0, 5000000));
    SHOW(tcsetpgrp(0, -1));
    pid_t child = job(go[0]);
    SHOW(tcsetpgrp(0, child));
    SHOW(tcgetpgrp(0) == child);
    need(write(go[1], "x", 1) == 1, "write");
    SHOW(waitpid(child, &status, WUNTRACED) == child);
    SHOW(status);
    // A leader of a session has nobody who could continue it.
    char c;
    SHOW(read(0, &c, 1));
    SHOW(tcsetpgrp(0, getpgrp()));
    child = job(go[0]);
    need(write(go[1], "x", 1) == 1, "write");
    SHOW(waitpid(child, &status, WUNTRACED) == child);
    SHOW(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTTIN);
    SHOW(tcsetpgrp(0, child));
    printf("type\n");
    fflush(stdout);
    SHOW(kill(-child, SIGCONT));
    SHOW(waitpid(child, &status, WUNTRACED) == child);
    SHOW(status);
    SHOW(tcsetpgrp(0, getpgrp()));
    child = fork();
    if (!child) {
        SHOW(setsid() == getpid());
        SHOW(tcgetpgrp(0));
        SHOW(tcgetsid(0));
        SHOW(tcsetpgrp(0, getpid()));
        need(write(go[1], "x", 1) == 1, "write");
        for (;;) pause();
    }
    need(read(go[0], &c, 1) == 1, "read");
    SHOW(tcsetpgrp(0, child));
    SHOW(kill(child, SIGKILL));
    SHOW(waitpid(child, &status, 0) == child);
    printf("done\n");
    return 0;
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    char c = 0;
    struct termios t;
    if (!strcmp(mode, "read")) return read(0, &c, 1) == 1 && c == 'x' ? 0 : 5;
    if (!strcmp(mode, "write")) return write(1, "written\n", 8) == 8 ? 0 : 5;
    if (!strcmp(mode, "set")) return tcgetattr(0, &t) || tcsetattr(0, TCSANOW, &t) ? 5 : 0;
    if (!strcmp(mode, "jobs")) return jobs();
    // Those who ignore the signals are not stopped; their reads fail.
    signal(SIGTTIN, SIG_IGN);
    signal(SIGTTOU, SIG_IGN);
    SHOW(read(0, &c, 1));
    SHOW(tcgetattr(0, &t));
    SHOW(tcsetattr(0, TCSANOW, &t));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTTIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGTTIN, SIG_DFL);
    SHOW(read(0, &c, 1));
    return 0;
}
