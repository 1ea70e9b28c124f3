// Credentials of threads, run by root: who it may become, and what it may do then (credentials(7), capabilities(7)).
#include "guest.h"
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <grp.h>
#include <sys/fsuid.h>

enum { ONE = 60001, OTHER = 60002, GROUP = 60011 };

static struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};

static int held(int set, int cap) {
    struct __user_cap_data_struct data[2];
    header.pid = 0;
    need(syscall(SYS_capget, &header, data) == 0, "capget");
    __u32 sets[] = {data[0].effective, data[0].permitted, data[0].inheritable};
    return sets[set] >> cap & 1;
}

static void state(const char *when) {
    uid_t u[3];
    gid_t g[3], groups[64];
    need(getresuid(u, u + 1, u + 2) == 0 && getresgid(g, g + 1, g + 2) == 0, "getresuid");
    int count = getgroups(64, groups);
    printf("%s: uid %d %d %d %d gid %d %d %d %d groups", when, u[0], u[1], u[2], setfsuid(-1), g[0], g[1], g[2],
           setfsgid(-1));
    for (int i = 0; i < count; i++) printf(" %d", groups[i]);
    printf(" chown %d%d%d keep %d dumpable %d death %d\n", held(0, CAP_CHOWN), held(1, CAP_CHOWN), held(2, CAP_CHOWN),
           prctl(PR_GET_KEEPCAPS), prctl(PR_GET_DUMPABLE) == 1, ({
               int s;
               prctl(PR_GET_PDEATHSIG, &s);
               s;
           }));
    NEED(getuid() == u[0] && geteuid() == u[1] && getgid() == g[0] && getegid() == g[1]);
    fflush(stdout);
}

static void line_of(int pid, const char *name) {
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *f = fopen(path, "r");
    need(f != NULL, path);
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, name, strlen(name))) printf("%s", line);
    fclose(f);
}

static int waited(pid_t pid) {
    int status;
    need(waitpid(pid, &status, 0) == pid, "waitpid");
    return status;
}

// Runs in a process of its own, so that nothing of it is left.
#define APART(name, ...) \
    do { \
        section(name); \
        pid_t apart_ = fork(); \
        if (!apart_) { \
            __VA_ARGS__; \
            fflush(stdout); \
            _exit(0); \
        } \
        int status_ = waited(apart_); \
        if (status_) printf("ended with %#x\n", status_); \
    } while (0)

static void become(uid_t uid, gid_t gid) {
    need(setgroups(0, NULL) == 0 && setresgid(gid, gid, gid) == 0 && setresuid(uid, uid, uid) == 0, "become");
    prctl(PR_SET_DUMPABLE, 1);
}

static void changes(void) {
    APART("setuid", state("before"); SHOW(prctl(PR_SET_PDEATHSIG, SIGUSR1)); SHOW(setuid(-1)); SHOW(setuid(ONE));
          state("after"); SHOW(setuid(0)); SHOW(seteuid(0)); SHOW(setreuid(0, -1)); SHOW(setresuid(-1, -1, 0));
          SHOW(setfsuid(0)); SHOW(setgroups(0, NULL)); SHOW(setgid(0)); SHOW(setgid(ONE)); SHOW(setuid(ONE));
          state("at last"));
    APART("seteuid", SHOW(seteuid(ONE)); state("aside"); SHOW(setuid(OTHER)); SHOW(setuid(ONE)); state("still");
          SHOW(seteuid(0)); state("back"));
    APART("setreuid", SHOW(setreuid(ONE, OTHER)); state("two"); SHOW(setreuid(OTHER, ONE)); state("exchanged");
          SHOW(setreuid(-1, OTHER)); state("saved"); SHOW(setreuid(0, -1)));
    APART("setresuid", SHOW(setresuid(ONE, OTHER, 0)); state("three"); SHOW(setresuid(-1, 5, -1));
          SHOW(setresuid(OTHER, 0, ONE)); state("turned"); SHOW(setresuid(-1, -1, -1)); state("kept"));
    APART("groups", SHOW(setgid(ONE)); state("setgid"); SHOW(setregid(OTHER, GROUP)); state("setregid");
          SHOW(setresgid(1, 2, 3)); state("setresgid"); SHOW(setegid(0)); SHOW(setuid(ONE)); SHOW(setegid(4));
          SHOW(setegid(1)); SHOW(setgid(3)); SHOW(setregid(2, -1)); state("no root"); SHOW(setgid(-1)));
    APART("setgroups", gid_t list[] = {5, 3, 60000, 3}; gid_t wrong = -1; SHOW(setgroups(4, list));
          state("sorted"); SHOW(getgroups(0, NULL)); SHOW(getgroups(2, list)); SHOW(getgroups(-1, list));
          SHOW(setgroups(70000, list)); SHOW(setgroups(1, (void *)8)); SHOW(setgroups(1, &wrong));
          line_of(getpid(), "Groups:"); SHOW(setgroups(0, NULL)); state("none"));
    APART("setfsuid", SHOW(setfsuid(ONE)); SHOW(setfsgid(ONE)); state("files"); line_of(getpid(), "Uid:");
          line_of(getpid(), "Gid:"); SHOW(setfsuid(-1)); SHOW(setfsuid(0)); state("again"));
}

static int set_caps(__u32 effective, __u32 permitted, __u32 inheritable) {
    struct __user_cap_data_struct data[2] = {{effective, permitted, inheritable}, {0, 0, 0}};
    header.pid = 0;
    return syscall(SYS_capset, &header, data);
}

static void capabilities(void) {
    const __u32 chown_ = 1 << CAP_CHOWN, setuid_ = 1 << CAP_SETUID, setpcap = 1 << CAP_SETPCAP;
    APART("keepcaps", SHOW(prctl(PR_SET_KEEPCAPS, 2)); SHOW(prctl(PR_SET_KEEPCAPS, 1)); SHOW(setuid(ONE));
          state("kept"); SHOW(set_caps(chown_, chown_, 0)); state("one"); SHOW(set_caps(chown_ | setuid_, chown_, 0));
          SHOW(set_caps(setuid_, setuid_, 0)); SHOW(set_caps(0, 0, 0)); SHOW(set_caps(0, chown_, 0)));
    APART("capset", SHOW(set_caps(chown_ | setpcap, chown_ | setpcap | setuid_, chown_)); state("fewer");
          SHOW(setuid(ONE)); SHOW(prctl(PR_CAPBSET_READ, CAP_KILL)); SHOW(prctl(PR_CAPBSET_DROP, CAP_KILL));
          SHOW(prctl(PR_CAPBSET_READ, CAP_KILL)); SHOW(prctl(PR_CAPBSET_DROP, 63)); SHOW(prctl(PR_CAPBSET_READ, 63));
          SHOW(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SETUID, 0, 0));
          SHOW(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
          SHOW(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_CHOWN, 0, 0));
          SHOW(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_LOWER, CAP_CHOWN, 0, 0));
          SHOW(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_CHOWN, 0, 0)));
    APART("securebits", SHOW(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED));
          SHOW(prctl(PR_SET_SECUREBITS, 0)); SHOW(prctl(PR_GET_SECUREBITS)); SHOW(prctl(PR_SET_SECUREBITS, 1 << 20));
          SHOW(setuid(ONE)); state("not followed"));
    header.version = 5;
    struct __user_cap_data_struct data[2];
    SHOW(syscall(SYS_capget, &header, data));
    printf("version %#x\n", header.version);
    header.pid = 1 << 30;
    SHOW(syscall(SYS_capget, &header, data));
    header.pid = -1;
    SHOW(syscall(SYS_capget, &header, data));
    header.pid = getppid();
    SHOW(syscall(SYS_capset, &header, data));
    header.pid = 0;
}

// ---- execve(2) ----

static int self;

static void again(const char *word) {
    fflush(stdout);
    char *argv[] = {"creds", (char *)word, NULL};
    syscall(SYS_execveat, self, "", argv, environ, AT_EMPTY_PATH);
    printf("execveat: %s\n", errno_name(errno));
}

static int executed(void) {
    printf("secure %ld uid %ld %ld gid %ld %ld\n", getauxval(AT_SECURE), getauxval(AT_UID), getauxval(AT_EUID),
           getauxval(AT_GID), getauxval(AT_EGID));
    state("executed");
    return 0;
}

static void executions(void) {
    APART("exec as another", become(ONE, GROUP); again("executed"));
    APART("exec of an effective user", SHOW(setresuid(0, ONE, OTHER)); again("executed"));
    APART("exec of an effective group", SHOW(setresgid(0, GROUP, OTHER)); again("executed"));
    APART("exec of effective root", SHOW(setresuid(ONE, 0, OTHER)); again("executed"));
    APART("exec with kept capabilities", prctl(PR_SET_KEEPCAPS, 1); SHOW(setresuid(ONE, ONE, ONE)); again("executed"));
    APART("exec with ambient ones", prctl(PR_SET_KEEPCAPS, 1); SHOW(setresuid(ONE, ONE, ONE));
          SHOW(set_caps(0, 1 << CAP_CHOWN, 1 << CAP_CHOWN));
          SHOW(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0)); again("executed"));
    APART("exec of root without what it has by its id", SHOW(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT));
          again("executed"));
    APART("exec with pdeathsig", SHOW(prctl(PR_SET_PDEATHSIG, SIGUSR1)); SHOW(setresuid(0, ONE, ONE));
          SHOW(prctl(PR_SET_PDEATHSIG, SIGUSR1)); again("executed"));
}

// ---- threads ----

static pthread_barrier_t barrier;

static void *of_other(void *uid) {
    uid_t own = (uid_t)(uintptr_t)uid;
    // Past the C library, which would have every thread do it.
    NEED(syscall(SYS_setresuid, own, own, own) == 0);
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < 200; i++) {
        NEED(getuid() == own && syscall(SYS_getuid) == own && geteuid() == own);
        sched_yield();
    }
    char path[64];
    snprintf(path, sizeof path, "/tmp/creds-%d", own);
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
    struct stat st;
    NEED(fd >= 0 && fstat(fd, &st) == 0 && st.st_uid == own && unlink(path) == 0);
    NEED(syscall(SYS_setresuid, 0, 0, 0) == -1 && errno == EPERM);
    pthread_barrier_wait(&barrier);
    // Now all of them.
    pthread_barrier_wait(&barrier);
    NEED(getegid() == GROUP);
    return NULL;
}

static void threads(void) {
    pthread_t one, other;
    pthread_barrier_init(&barrier, NULL, 3);
    need(pthread_create(&one, NULL, of_other, (void *)(uintptr_t)ONE) == 0, "pthread_create");
    need(pthread_create(&other, NULL, of_other, (void *)(uintptr_t)OTHER) == 0, "pthread_create");
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < 200; i++) {
        NEED(getuid() == 0 && geteuid() == 0);
        sched_yield();
    }
    pthread_barrier_wait(&barrier);
    // Those without the capability have it as a saved one or not at all: all have it before.
    pthread_barrier_wait(&barrier);
    pthread_join(one, NULL);
    pthread_join(other, NULL);
    printf("threads apart\n");
}

static void *reader(void *unused) {
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    NEED(getuid() == ONE && geteuid() == ONE && getegid() == GROUP);
    return unused;
}

static void together(void) {
    pthread_t thread;
    pthread_barrier_init(&barrier, NULL, 2);
    need(pthread_create(&thread, NULL, reader, NULL) == 0, "pthread_create");
    pthread_barrier_wait(&barrier);
    SHOW(setgid(GROUP));
    SHOW(setuid(ONE));
    pthread_barrier_wait(&barrier);
    pthread_join(thread, NULL);
    state("together");
}

// ---- files ----

static void made(const char *path, uid_t uid, gid_t gid, mode_t mode) {
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
    need(fd >= 0 && fchown(fd, uid, gid) == 0 && fchmod(fd, mode) == 0, path);
    close(fd);
}

static void tried(const char *path, int flags) {
    int fd = open(path, flags, 0640);
    struct stat st;
    if (fd < 0) {
        printf("open %s %#o: %s\n", path, flags, errno_name(errno));
    } else {
        need(fstat(fd, &st) == 0, "fstat");
        printf("open %s %#o: %o %d:%d\n", path, flags, st.st_mode, st.st_uid, st.st_gid);
        close(fd);
    }
    fflush(stdout);
}

static void as_one(void) {
    tried("of-one", O_RDWR);
    tried("of-other", O_RDONLY);
    tried("of-group", O_RDONLY);
    tried("of-group", O_WRONLY);
    tried("of-root", O_RDONLY);
    tried("closed/file", O_RDONLY);
    tried("new", O_CREAT | O_EXCL | O_WRONLY);
    tried("grouped/new", O_CREAT | O_EXCL | O_WRONLY);
    SHOW(mkdir("grouped/dir", 02755));
    struct stat st;
    SHOW(stat("grouped/dir", &st));
    printf("%o %d:%d\n", st.st_mode, st.st_uid, st.st_gid);
    SHOW(chown("of-one", OTHER, -1));
    SHOW(chown("of-one", -1, GROUP));
    SHOW(chown("of-one", -1, OTHER));
    SHOW(chmod("of-one", 02775));
    SHOW(stat("of-one", &st));
    printf("%o %d:%d\n", st.st_mode, st.st_uid, st.st_gid);
    SHOW(chmod("of-other", 0777));
    SHOW(utimensat(AT_FDCWD, "of-other", NULL, 0));
    SHOW(unlink("sticky/of-other"));
    SHOW(unlink("sticky/of-one"));
    SHOW(chdir("closed"));
    SHOW(truncate("of-other", 0));
    SHOW(rename("closed/file", "x"));
    SHOW(rename("of-other", "closed/x"));
    SHOW(open("of-group", O_RDONLY | O_NOATIME));
    SHOW(unlink("new"));
    SHOW(rmdir("grouped/dir"));
    SHOW(unlink("grouped/new"));
}

static void files(void) {
    char dir[] = "/tmp/creds-XXXXXX";
    need(mkdtemp(dir) && chdir(dir) == 0 && chmod(dir, 0777) == 0, "a directory");
    umask(022);
    made("of-one", ONE, ONE, 0600);
    made("of-other", OTHER, OTHER, 0600);
    made("of-group", OTHER, GROUP, 0640);
    made("of-root", 0, 0, 0600);
    need(mkdir("closed", 0700) == 0 && mkdir("sticky", 0777) == 0 && mkdir("grouped", 0777) == 0, "mkdir");
    made("closed/file", ONE, ONE, 0644);
    made("sticky/of-one", ONE, ONE, 0600);
    made("sticky/of-other", OTHER, OTHER, 0600);
    need(chmod("sticky", 01777) == 0 && chown("grouped", 0, GROUP) == 0 && chmod("grouped", 02777) == 0, "chmod");
    gid_t group = GROUP;
    APART("files of a user", need(setgroups(1, &group) == 0 && setgid(ONE) == 0 && setuid(ONE) == 0, "user"); as_one());
    APART("access", SHOW(setresuid(ONE, 0, 0)); SHOW(access("of-root", R_OK)); SHOW(access("of-one", R_OK));
          SHOW(faccessat(AT_FDCWD, "of-root", R_OK, AT_EACCESS)); SHOW(access("closed/file", R_OK));
          tried("of-root", O_RDONLY));
    APART("files by setfsuid", SHOW(setfsuid(OTHER)); tried("of-one", O_RDONLY); tried("of-other", O_RDWR);
          tried("of-root", O_RDONLY); SHOW(kill(getppid(), 0)));
    APART("files without capabilities", SHOW(set_caps(0, 0, 0)); tried("of-other", O_RDONLY); tried("of-root", O_RDWR);
          SHOW(chown("of-root", ONE, -1)); SHOW(unlink("sticky/of-other")); SHOW(chmod("of-other", 0600)));
    for (const char *const *name = (const char *const[]){"of-one", "of-other", "of-group", "of-root", "closed/file",
                                                        "sticky/of-other", NULL};
         *name; name++)
        unlink(*name);
    SHOW(rmdir("closed"));
    SHOW(rmdir("sticky"));
    SHOW(rmdir("grouped"));
    SHOW(rmdir(dir));
}

// ---- other processes ----

static pid_t user(uid_t uid, uid_t real) {
    int ready[2];
    need(pipe(ready) == 0, "pipe");
    pid_t pid = fork();
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        need(setgroups(0, NULL) == 0 && setresgid(uid, uid, uid) == 0 && setresuid(real, uid, uid) == 0, "user");
        prctl(PR_SET_DUMPABLE, 1);
        close(ready[0]);
        close(ready[1]);
        for (;;) pause();
    }
    close(ready[1]);
    char byte;
    read(ready[0], &byte, 1);
    close(ready[0]);
    return pid;
}

static char word[16] = "seen";

static void on(const char *whom, pid_t pid) {
    printf("on %s\n", whom);
    SHOW(kill(pid, 0));
    SHOW(kill(pid, SIGCONT));
    SHOW(kill(pid, SIGWINCH));
    SHOW(kill(pid, 100));
    SHOW(syscall(SYS_tgkill, pid, pid, 0));
    union sigval value = {.sival_int = 1};
    SHOW(sigqueue(pid, SIGWINCH, value));
    SHOW(setpriority(PRIO_PROCESS, pid, 0));
    struct sched_param param = {0};
    SHOW(sched_setscheduler(pid, SCHED_OTHER, &param));
    cpu_set_t set;
    SHOW(sched_getaffinity(pid, sizeof set, &set) < 0);
    SHOW(sched_setaffinity(pid, sizeof set, &set));
    struct rlimit limit;
    SHOW(prlimit(pid, RLIMIT_CORE, NULL, &limit));
    SHOW(syscall(SYS_kcmp, getpid(), pid, 1, 0, 0) != 0);
    char got[16] = "";
    struct iovec here = {got, sizeof got}, there = {word, sizeof word};
    // Yama may forbid it among those of one user.
    if (strcmp(whom, "the same")) SHOW(process_vm_readv(pid, &here, 1, &there, 1, 0));
    char path[64], to[256];
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    SHOW(readlink(path, to, sizeof to) < 0);
    snprintf(path, sizeof path, "/proc/%d/fd/0", pid);
    SHOW(readlink(path, to, sizeof to) < 0);
    snprintf(path, sizeof path, "/proc/%d/environ", pid);
    int fd = open(path, O_RDONLY);
    printf("environ: %s\n", fd >= 0 ? "yes" : errno_name(errno));
    close(fd);
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    fd = open(path, O_RDONLY);
    printf("maps: %s\n", fd >= 0 ? "yes" : errno_name(errno));
    close(fd);
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    fd = open(path, O_RDONLY);
    printf("stat: %s\n", fd >= 0 ? "yes" : errno_name(errno));
    close(fd);
    fflush(stdout);
}

static void others(void) {
    pid_t same = user(ONE, ONE), other = user(OTHER, OTHER), mixed = user(OTHER, ONE);
    for (int i = 0; i < 3; i++) {
        pid_t pid = i == 0 ? same : i == 1 ? other : mixed;
        line_of(pid, "Uid:");
        line_of(pid, "Gid:");
        struct stat st;
        char path[64];
        snprintf(path, sizeof path, "/proc/%d", pid);
        need(stat(path, &st) == 0, path);
        printf("%d:%d\n", st.st_uid, st.st_gid);
        SHOW(kill(pid, 0));
    }
    APART("on others", become(ONE, ONE); on("the same", same); on("another", other); on("a mixed one", mixed);
          SHOW(kill(getppid(), 0)); SHOW(kill(1, 0)); SHOW(getpriority(PRIO_USER, 12345)));
    APART("of another session", become(ONE, ONE); setsid(); SHOW(kill(other, SIGCONT)); SHOW(kill(same, SIGCONT)));
    // To a group: it is enough that one gets it.
    APART("on a group", become(OTHER, OTHER); SHOW(kill(0, 0)); SHOW(kill(0, SIGWINCH)));
    siginfo_t info;
    kill(same, SIGTERM);
    need(waitid(P_PID, same, &info, WEXITED | WNOWAIT) == 0, "waitid");
    printf("ended: uid %d\n", info.si_uid);
    line_of(same, "Uid:");
    APART("on a zombie", become(OTHER, OTHER); SHOW(kill(same, 0)));
    waited(same);
    kill(other, SIGKILL);
    kill(mixed, SIGKILL);
    waited(other);
    waited(mixed);
}

static void handler(int signo, siginfo_t *info, void *context) {
    (void)context;
    char line[64];
    int len = snprintf(line, sizeof line, "signal %d from user %d\n", signo, info->si_uid);
    write(1, line, len);
}

static void senders(void) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        // The real user tells who sends: as the one who is signalled.
        NEED(setresuid(0, ONE, ONE) == 0 && kill(getppid(), SIGUSR1) == 0);
        _exit(0);
    }
    waited(pid);
    key_t key = 0x63726564;
    int id = shmget(key, 4096, IPC_CREAT | IPC_EXCL | 0640);
    need(id >= 0, "shmget");
    APART("memory of others", become(ONE, ONE); SHOW(shmget(key, 4096, 0400)); SHOW(shmctl(id, IPC_RMID, NULL)););
    SHOW(shmctl(id, IPC_RMID, NULL));
    int sv[2], on = 1;
    struct ucred cred = {0}, got;
    socklen_t len = sizeof got;
    APART("peers", NEED(setresgid(0, GROUP, 0) == 0 && setresuid(ONE, OTHER, 0) == 0);
          need(socketpair(AF_UNIX, SOCK_STREAM, 0, sv) == 0, "socketpair");
          need(getsockopt(sv[0], SOL_SOCKET, SO_PEERCRED, &got, &len) == 0 && got.pid == getpid(), "SO_PEERCRED");
          printf("peer %d:%d\n", got.uid, got.gid); NEED(setsockopt(sv[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
          char control[CMSG_SPACE(sizeof cred)]; char byte = 'x'; struct iovec iov = {&byte, 1};
          struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control
                                  , .msg_controllen = sizeof control};
          struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
          NEED(send(sv[0], "y", 1, 0) == 1); NEED(recvmsg(sv[1], &msg, 0) == 1);
          memcpy(&got, CMSG_DATA(c), sizeof got); printf("sent by %d:%d\n", got.uid, got.gid);
          for (int i = 0; i < 5; i++) {
              static const uid_t uids[] = {ONE, OTHER, 0, 5, ONE};
              static const gid_t gids[] = {0, GROUP, 0, 0, 5};
              cred = (struct ucred){getpid(), uids[i], gids[i]};
              msg.msg_controllen = sizeof control;
              *c = (struct cmsghdr){CMSG_LEN(sizeof cred), SOL_SOCKET, SCM_CREDENTIALS};
              memcpy(CMSG_DATA(c), &cred, sizeof cred);
              SHOW(sendmsg(sv[0], &msg, 0));
          });
}

int main(int argc, char **argv) {
    (void)argv;
    if (argc > 1) return executed();
    need(geteuid() == 0, "root");
    self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    need(self >= 0, "/proc/self/exe");
    need(setgroups(0, NULL) == 0, "setgroups");
    changes();
    capabilities();
    executions();
    APART("threads", need(setresgid(GROUP, GROUP, GROUP) == 0, "setresgid"); threads());
    APART("all threads", together());
    files();
    section("others");
    others();
    section("senders");
    senders();
    return 0;
}
