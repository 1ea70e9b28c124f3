// Signal-driven I/O of pipes and sockets (O_ASYNC in open(2), F_SETOWN in fcntl(2)).
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

static volatile sig_atomic_t signals, code, last, band, by, own_thread;

static void on_signal(int sig, siginfo_t *info, void *context) {
    (void)context;
    signals++;
    code = info->si_code;
    last = sig;
    band = (int)info->si_band;
    by = info->si_fd;
    own_thread = gettid() != getpid();
}

// True if a signal has come since this was last asked.
static int came(void) {
    int any = signals > 0;
    signals = 0;
    return any;
}

static void set_async(int fd, int on) { NEED(ioctl(fd, FIOASYNC, &on) == 0); }

static volatile int thread_id;

static void *wait_in_thread(void *unused) {
    (void)unused;
    thread_id = gettid();
    for (int i = 0; i < 2000 && !signals; i++) usleep(5000);
    return NULL;
}

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

    section("another signal");
    struct sigaction queued = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    sigaction(SIGRTMIN + 2, &queued, NULL);
    sigaction(SIGCHLD, &queued, NULL);
    close(ends[0]), close(ends[1]);
    NEED(pipe(ends) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(fcntl(ends[0], F_SETSIG, SIGRTMIN + 2) == 0);
    CHECK(fcntl(ends[0], F_GETSIG) == SIGRTMIN + 2);
    FAILS(fcntl(ends[0], F_SETSIG, 65), EINVAL);
    FAILS(fcntl(ends[0], F_SETSIG, -1), EINVAL);
    NEED(fcntl(ends[0], F_SETOWN, getpid()) == 0);
    set_async(ends[0], 1);
    write(ends[1], "x", 1);
    CHECK(came() && last == SIGRTMIN + 2 && code == POLL_IN && by == ends[0]);
    CHECK(band == (POLLIN | POLLRDNORM));
    CHECK(fcntl(ends[1], F_SETSIG, SIGRTMIN + 2) == 0);
    NEED(fcntl(ends[1], F_SETOWN, getpid()) == 0);
    set_async(ends[1], 1);
    set_async(ends[0], 0);
    read(ends[0], buf, 1);
    // Linux tells of room only who has found none.
    while (came()) {}
    // A copy of the descriptor is not told as such.
    int copy = dup(ends[0]);
    set_async(copy, 1);
    set_async(ends[1], 0);
    write(ends[1], "x", 1);
    CHECK(came() && by == copy);
    CHECK(fcntl(ends[0], F_SETSIG, SIGCHLD) == 0);
    write(ends[1], "x", 1);
    CHECK(came() && last == SIGCHLD && code == -5 && by == copy);
    CHECK(fcntl(ends[0], F_SETSIG, SIGIO) == 0);
    write(ends[1], "x", 1);
    CHECK(came() && last == SIGIO && code == POLL_IN && by == copy);
    // Each of them is queued, until there is no room: then it is the plain one.
    CHECK(fcntl(pair[0], F_SETSIG, SIGRTMIN + 2) == 0);
    NEED(fcntl(pair[0], F_SETOWN, getpid()) == 0);
    set_async(pair[0], 1);
    sigset_t both;
    sigemptyset(&both);
    sigaddset(&both, SIGRTMIN + 2);
    sigaddset(&both, SIGIO);
    sigprocmask(SIG_BLOCK, &both, NULL);
    for (int i = 0; i < 3; i++) write(pair[1], "x", 1);
    siginfo_t info;
    struct timespec at_once = {0, 0};
    for (int i = 0; i < 3; i++) CHECK(sigtimedwait(&both, &info, &at_once) == SIGRTMIN + 2 && info.si_code == POLL_IN);
    FAILS(sigtimedwait(&both, &info, &at_once), EAGAIN);
    struct rlimit none = {0, 0}, before;
    NEED(getrlimit(RLIMIT_SIGPENDING, &before) == 0);
    none.rlim_max = before.rlim_max;
    NEED(setrlimit(RLIMIT_SIGPENDING, &none) == 0);
    write(pair[1], "x", 1);
    CHECK(sigtimedwait(&both, &info, &at_once) == SIGIO && info.si_code == SI_KERNEL);
    NEED(setrlimit(RLIMIT_SIGPENDING, &before) == 0);
    close(pair[1]);
    CHECK(sigtimedwait(&both, &info, &at_once) == SIGRTMIN + 2 && info.si_code == POLL_HUP && info.si_fd == pair[0]);
    CHECK(info.si_band == (POLLHUP | POLLERR));
    sigprocmask(SIG_UNBLOCK, &both, NULL);

    section("a thread");
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, wait_in_thread, NULL) == 0);
    while (!thread_id) usleep(1000);
    struct f_owner_ex of_thread = {F_OWNER_TID, thread_id};
    CHECK(fcntl(ends[0], F_SETOWN_EX, &of_thread) == 0);
    memset(&of_thread, 0, sizeof of_thread);
    CHECK(fcntl(ends[0], F_GETOWN_EX, &of_thread) == 0 && of_thread.type == F_OWNER_TID && of_thread.pid == thread_id);
    CHECK(fcntl(ends[0], F_GETOWN) == thread_id);
    write(ends[1], "x", 1);
    NEED(pthread_join(thread, NULL) == 0);
    CHECK(came() && own_thread);
    of_thread.type = F_OWNER_TID, of_thread.pid = 999999;
    FAILS(fcntl(ends[0], F_SETOWN_EX, &of_thread), ESRCH);
    of_thread.type = 9;
    FAILS(fcntl(ends[0], F_SETOWN_EX, &of_thread), EINVAL);

    section("a terminal and a watch");
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    NEED(grantpt(master) == 0 && unlockpt(master) == 0);
    int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    NEED(slave >= 0);
    while (came()) {}
    set_async(slave, 1);
    CHECK(fcntl(slave, F_GETOWN) == getpid());
    write(master, "line\n", 5);
    usleep(20000);
    CHECK(came() && last == SIGIO);
    set_async(slave, 0);
    close(slave), close(master);
    int watch = inotify_init1(0);
    NEED(inotify_add_watch(watch, "/tmp", IN_CREATE) >= 0);
    NEED(fcntl(watch, F_SETOWN, getpid()) == 0);
    set_async(watch, 1);
    char path[64];
    snprintf(path, sizeof path, "/tmp/kvmlet-sigio-%d", getpid());
    close(open(path, O_CREAT | O_RDWR, 0600));
    CHECK(came() && last == SIGIO);
    unlink(path), close(watch);

    section("files that have none");
    int on = 1, file = open("/tmp", O_RDONLY | O_DIRECTORY);
    FAILS(ioctl(file, FIOASYNC, &on), ENOTTY);
    SHOW(fcntl(file, F_SETFL, O_ASYNC));
    CHECK(!(fcntl(file, F_GETFL) & O_ASYNC));
    return 0;
}
