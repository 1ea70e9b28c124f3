// Leases (F_SETLEASE in fcntl(2)): who gets one, who breaks one, and how each is told.
// lease slow: holders that are told and do nothing, for /proc/sys/fs/lease-break-time.
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

static volatile sig_atomic_t signals, last, code, band, from;

static void on_signal(int signo, siginfo_t *info, void *context) {
    (void)context;
    signals++;
    last = signo;
    code = info->si_code;
    band = (int)info->si_band;
    from = info->si_fd;
}

static void told(void) {
    printf("%d signals", signals);
    if (signals) printf(", the last %d of code %d", last, code);
    if (signals && last != SIGIO) printf(", events %x", band);
    printf("\n");
    fflush(stdout);
    signals = 0;
}

static char path[64];

// The error of an open by another process, which gives up after a while.
static pid_t open_within(int flags, unsigned limit_s) {
    pid_t child = fork();
    if (child) return child;
    // It is to hold nothing open that its parent has open.
    close_range(3, ~0u, 0);
    alarm(limit_s);
    int fd = open(path, flags);
    _exit(fd >= 0 ? 0 : errno);
}

static pid_t open_later(int flags) { return open_within(flags, 20); }

static int error_of(pid_t child) {
    int status;
    NEED(waitpid(child, &status, 0) == child);
    NEED(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void wait_for_signal(void) {
    for (int i = 0; i < 2000 && !signals; i++) usleep(5000);
}

static void asked(void) {
    section("who gets one");
    int reads = open(path, O_RDONLY), writes = open(path, O_RDWR);
    CHECK(fcntl(reads, F_GETLEASE) == F_UNLCK);
    FAILS(fcntl(reads, F_SETLEASE, F_UNLCK), EAGAIN);
    FAILS(fcntl(reads, F_SETLEASE, 7), EINVAL);
    // Somebody has it open to write.
    FAILS(fcntl(reads, F_SETLEASE, F_RDLCK), EAGAIN);
    FAILS(fcntl(reads, F_SETLEASE, F_WRLCK), EAGAIN);
    FAILS(fcntl(writes, F_SETLEASE, F_WRLCK), EAGAIN);
    CHECK(close(writes) == 0);
    CHECK(fcntl(reads, F_SETLEASE, F_RDLCK) == 0);
    CHECK(fcntl(reads, F_GETLEASE) == F_RDLCK);
    CHECK(fcntl(reads, F_GETOWN) == getpid());
    int second = open(path, O_RDONLY);
    CHECK(fcntl(second, F_GETLEASE) == F_UNLCK);
    FAILS(fcntl(second, F_SETLEASE, F_UNLCK), EAGAIN);
    FAILS(fcntl(second, F_SETLEASE, F_WRLCK), EAGAIN);
    CHECK(fcntl(second, F_SETLEASE, F_RDLCK) == 0);
    CHECK(close(second) == 0);
    int copy = dup(reads);
    CHECK(fcntl(copy, F_GETLEASE) == F_RDLCK);
    CHECK(close(reads) == 0);
    CHECK(fcntl(copy, F_GETLEASE) == F_RDLCK);
    CHECK(fcntl(copy, F_SETLEASE, F_WRLCK) == 0);
    CHECK(fcntl(copy, F_GETLEASE) == F_WRLCK);
    CHECK(fcntl(copy, F_SETLEASE, F_UNLCK) == 0);
    CHECK(fcntl(copy, F_GETLEASE) == F_UNLCK && fcntl(copy, F_GETOWN) == 0);
    CHECK(close(copy) == 0);
    char made[] = "/tmp/leaseXXXXXX"; /* of another's the answer is EACCES */
    NEED(mkdtemp(made) != NULL);
    int directory = open(made, O_RDONLY | O_DIRECTORY), ends[2];
    NEED(rmdir(made) == 0);
    FAILS(fcntl(directory, F_SETLEASE, F_RDLCK), EINVAL);
    NEED(pipe(ends) == 0);
    FAILS(fcntl(ends[0], F_SETLEASE, F_RDLCK), EINVAL);
    int location = open(path, O_PATH);
    FAILS(fcntl(location, F_SETLEASE, F_RDLCK), EBADF);
    FAILS(fcntl(location, F_GETLEASE), EBADF);
    close(directory), close(ends[0]), close(ends[1]), close(location);
}

static void broken_by_a_reader(void) {
    section("a reader comes");
    int writes = open(path, O_RDWR);
    CHECK(fcntl(writes, F_SETLEASE, F_WRLCK) == 0);
    FAILS(open(path, O_RDONLY | O_NONBLOCK), EAGAIN);
    wait_for_signal();
    told();
    CHECK(code == SI_KERNEL);
    // It is to become weaker, and is told so.
    CHECK(fcntl(writes, F_GETLEASE) == F_RDLCK);
    FAILS(open(path, O_RDONLY | O_NONBLOCK), EAGAIN);
    CHECK(signals == 0);
    pid_t child = open_later(O_RDONLY);
    usleep(50000);
    CHECK(waitpid(child, NULL, WNOHANG) == 0);
    CHECK(fcntl(writes, F_SETLEASE, F_UNLCK) == 0);
    CHECK(error_of(child) == 0);
    CHECK(fcntl(writes, F_SETLEASE, F_WRLCK) == 0);
    child = open_later(O_RDONLY);
    wait_for_signal();
    told();
    // The description is gone with its last descriptor, and the lease with it.
    CHECK(close(writes) == 0);
    CHECK(error_of(child) == 0);
}

static void broken_by_a_writer(void) {
    section("a writer comes");
    int first = open(path, O_RDONLY), second = open(path, O_RDONLY);
    CHECK(fcntl(first, F_SETLEASE, F_RDLCK) == 0);
    CHECK(fcntl(first, F_SETSIG, SIGRTMIN + 1) == 0 && fcntl(first, F_GETSIG) == SIGRTMIN + 1);
    CHECK(fcntl(second, F_SETLEASE, F_RDLCK) == 0);
    CHECK(fcntl(second, F_SETSIG, SIGUSR1) == 0);
    // A reader is no trouble.
    int third = open(path, O_RDONLY);
    CHECK(third >= 0 && close(third) == 0 && signals == 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    pid_t child = open_later(O_WRONLY);
    siginfo_t info;
    for (int i = 0; i < 2; i++) {
        int signo = sigwaitinfo(&set, &info);
        int expected = signo == SIGUSR1 ? second : first;
        printf("%s, code %d, events %lx, the descriptor: %d\n", signo == SIGUSR1 ? "SIGUSR1" : "SIGRTMIN+1",
               info.si_code, info.si_band, info.si_fd == expected);
    }
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    CHECK(fcntl(first, F_GETLEASE) == F_UNLCK);
    CHECK(fcntl(first, F_SETLEASE, F_UNLCK) == 0);
    usleep(30000);
    CHECK(waitpid(child, NULL, WNOHANG) == 0);
    CHECK(fcntl(second, F_SETLEASE, F_UNLCK) == 0);
    CHECK(error_of(child) == 0);
    CHECK(fcntl(first, F_GETSIG) == 0);
    section("the file is cut off");
    CHECK(fcntl(first, F_SETLEASE, F_RDLCK) == 0);
    child = fork();
    if (!child) {
        alarm(20);
        _exit(truncate(path, 3) ? errno : 0);
    }
    wait_for_signal();
    told();
    CHECK(fcntl(first, F_SETLEASE, F_UNLCK) == 0);
    CHECK(error_of(child) == 0);
    struct stat st;
    CHECK(fstat(first, &st) == 0 && st.st_size == 3);
    section("what breaks none");
    CHECK(fcntl(first, F_SETLEASE, F_RDLCK) == 0);
    CHECK(chmod(path, 0640) == 0);
    char other[80];
    snprintf(other, sizeof other, "%s.other", path);
    CHECK(rename(path, other) == 0 && rename(other, path) == 0);
    CHECK(signals == 0 && fcntl(first, F_GETLEASE) == F_RDLCK);
    close(first), close(second);
}

static void a_child_has_it_too(void) {
    section("by descent");
    int reads = open(path, O_RDONLY);
    CHECK(fcntl(reads, F_SETLEASE, F_RDLCK) == 0);
    pid_t child = fork();
    if (!child) {
        close(reads);
        _exit(0);
    }
    CHECK(error_of(child) == 0);
    CHECK(fcntl(reads, F_GETLEASE) == F_RDLCK);
    child = fork();
    if (!child) _exit(fcntl(reads, F_SETLEASE, F_UNLCK) ? errno : 0);
    CHECK(error_of(child) == 0);
    CHECK(fcntl(reads, F_GETLEASE) == F_UNLCK);
    // The lease of one that has ended is nobody's.
    CHECK(close(reads) == 0);
    int ready[2];
    char byte;
    NEED(pipe(ready) == 0);
    child = fork();
    if (!child) {
        int fd = open(path, O_RDWR);
        _exit(fcntl(fd, F_SETLEASE, F_WRLCK) || write(ready[1], "", 1) != 1);
    }
    NEED(read(ready[0], &byte, 1) == 1);
    CHECK(error_of(child) == 0);
    CHECK(error_of(open_later(O_RDWR | O_NONBLOCK)) == 0);
    // A signal ends the wait of an open.
    int writes = open(path, O_RDWR);
    CHECK(fcntl(writes, F_SETLEASE, F_WRLCK) == 0);
    child = fork();
    if (!child) {
        struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
        sigaction(SIGALRM, &action, NULL);
        alarm(1);
        int fd = open(path, O_RDONLY);
        _exit(fd >= 0 ? 0 : errno);
    }
    CHECK(error_of(child) == EINTR);
    close(writes);
}

// The time that a holder has, in seconds.
static double break_time(void) {
    double time_s = 0;
    FILE *file = fopen("/proc/sys/fs/lease-break-time", "r");
    NEED(file && fscanf(file, "%lf", &time_s) == 1);
    if (file) fclose(file);
    return time_s;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

// A lease that is not given up is taken: weakened for a reader, ended for a writer.
static void taken_from_the_slow(int opened) {
    section(opened == O_RDONLY ? "a reader waits" : "a writer waits");
    double limit_s = break_time(), start = now();
    int fd = open(path, O_RDWR);
    CHECK(fcntl(fd, F_SETLEASE, F_WRLCK) == 0);
    pid_t child = open_within(opened, 200);
    wait_for_signal();
    told();
    usleep(200000);
    CHECK(waitpid(child, NULL, WNOHANG) == 0);
    CHECK(error_of(child) == 0);
    double waited_s = now() - start;
    CHECK(waited_s >= limit_s - 1 && waited_s < limit_s + 15);
    CHECK(fcntl(fd, F_GETLEASE) == (opened == O_RDONLY ? F_RDLCK : F_UNLCK));
    CHECK(signals == 0);
    // What is left of it is a lease like any other.
    if (opened == O_RDONLY) CHECK(error_of(open_later(O_RDONLY | O_NONBLOCK)) == 0);
    if (opened == O_RDONLY) CHECK(error_of(open_later(O_WRONLY | O_NONBLOCK)) == EAGAIN);
    close(fd);
}

static int of_the_slow(void) {
    // Side by side: each waits for most of a minute.
    int ends[2], failed = 0;
    NEED(pipe(ends) == 0);
    pid_t child = fork();
    if (!child) {
        strcat(path, ".second");
        int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
        NEED(fd >= 0 && close(fd) == 0);
        dup2(ends[1], 1);
        taken_from_the_slow(O_WRONLY);
        NEED(unlink(path) == 0);
        fflush(stdout);
        _exit(0);
    }
    taken_from_the_slow(O_RDONLY);
    failed = error_of(child);
    close(ends[1]);
    char text[4096];
    ssize_t count = read(ends[0], text, sizeof text);
    if (count > 0) fwrite(text, 1, (size_t)count, stdout);
    return failed;
}

int main(int argc, char **argv) {
    snprintf(path, sizeof path, "/tmp/kvmlet-lease-%d", getpid());
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    NEED(fd >= 0 && write(fd, "some text", 9) == 9 && close(fd) == 0);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGIO, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGRTMIN + 1, &action, NULL);
    int failed = 0;
    if (argc > 1 && !strcmp(argv[1], "slow")) {
        failed = of_the_slow();
    } else {
        asked();
        broken_by_a_reader();
        broken_by_a_writer();
        a_child_has_it_too();
    }
    NEED(unlink(path) == 0);
    return failed;
}
