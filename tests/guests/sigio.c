// Signal-driven I/O of pipes and sockets (O_ASYNC in open(2), F_SETOWN in fcntl(2)).
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

static volatile sig_atomic_t signals, code;

static void on_signal(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)context;
    signals++;
    code = info->si_code;
}

// True if a signal has come since this was last asked.
static int came(void) {
    int any = signals > 0;
    signals = 0;
    return any;
}

static void set_async(int fd, int on) { NEED(ioctl(fd, FIOASYNC, &on) == 0); }

int main(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    sigaction(SIGIO, &action, NULL);
    char buf[8];
    int ends[2], pair[2];

    section("owners");
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(fcntl(pair[0], F_GETOWN) == 0);
    CHECK(fcntl(pair[0], F_SETOWN, getpid()) == 0);
    CHECK(fcntl(pair[0], F_GETOWN) == getpid());
    FAILS(fcntl(pair[0], F_SETOWN, 999999), ESRCH);
    FAILS(fcntl(pair[0], F_SETOWN, -999999), ESRCH);
    CHECK(fcntl(pair[0], F_GETOWN) == getpid());
    CHECK(fcntl(pair[0], F_GETSIG) == 0);
    CHECK(fcntl(pair[0], F_SETSIG, 0) == 0);

    section("a socket");
    write(pair[1], "x", 1);
    CHECK(!came());
    set_async(pair[0], 1);
    CHECK(fcntl(pair[0], F_GETFL) & O_ASYNC);
    write(pair[1], "x", 1);
    CHECK(came());
    CHECK(code == SI_KERNEL);
    // What comes from the other end is no news for this one.
    write(pair[0], "x", 1);
    CHECK(!came());
    set_async(pair[0], 0);
    CHECK(!(fcntl(pair[0], F_GETFL) & O_ASYNC));
    write(pair[1], "x", 1);
    CHECK(!came());
    CHECK(fcntl(pair[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0);
    write(pair[1], "x", 1);
    CHECK(came());
    CHECK(fcntl(pair[0], F_SETOWN, 0) == 0);
    write(pair[1], "x", 1);
    CHECK(!came());

    section("a process group");
    CHECK(fcntl(pair[0], F_SETOWN, -getpgrp()) == 0);
    CHECK(fcntl(pair[0], F_GETOWN) == -getpgrp());
    // The others of the group outside know no handler.
    if (getpgrp() != getpid()) NEED(setpgid(0, 0) == 0);
    CHECK(fcntl(pair[0], F_SETOWN, -getpgrp()) == 0);
    write(pair[1], "x", 1);
    CHECK(came());
    close(pair[1]);
    CHECK(came());
    close(pair[0]);

    section("a pipe");
    NEED(pipe(ends) == 0);
    set_async(ends[0], 1);
    NEED(fcntl(ends[0], F_SETOWN, getpid()) == 0);
    write(ends[1], "x", 1);
    CHECK(came());
    read(ends[0], buf, 1);
    CHECK(!came());

    section("an owner that is another process");
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGIO);
    sigprocmask(SIG_BLOCK, &set, NULL);
    pid_t child = fork();
    if (child == 0) _exit(sigwaitinfo(&set, NULL) == SIGIO ? 7 : 8);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    struct f_owner_ex owner = {F_OWNER_PID, child};
    NEED(fcntl(ends[0], F_SETOWN_EX, &owner) == 0);
    memset(&owner, 0, sizeof owner);
    NEED(fcntl(ends[0], F_GETOWN_EX, &owner) == 0);
    CHECK(owner.type == F_OWNER_PID && owner.pid == child);
    write(ends[1], "x", 1);
    int status;
    NEED(waitpid(child, &status, 0) == child);
    CHECK(WEXITSTATUS(status) == 7);
    CHECK(!came());
    // Nobody is left to be told.
    CHECK(fcntl(ends[0], F_GETOWN) == 0);
    write(ends[1], "x", 1);
    CHECK(!came());

    section("files that have none");
    int on = 1, file = open("/tmp", O_RDONLY | O_DIRECTORY);
    FAILS(ioctl(file, FIOASYNC, &on), ENOTTY);
    SHOW(fcntl(file, F_SETFL, O_ASYNC));
    CHECK(!(fcntl(file, F_GETFL) & O_ASYNC));
    return 0;
}
