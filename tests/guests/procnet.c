// /proc of sockets, of a process that has ended and of pid 1; small things about sockets.
#include "guest.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

static unsigned long inode_of(int fd) {
    struct stat st;
    need(fstat(fd, &st) == 0, "fstat");
    return st.st_ino;
}

// Fields of the line of a socket in a list, without what is the machine's own.
static void line_of(const char *list, unsigned long inode) {
    char path[64], line[512], local[64], remote[64];
    snprintf(path, sizeof path, "/proc/net/%s", list);
    FILE *file = fopen(path, "r");
    need(file != NULL, path);
    need(fgets(line, sizeof line, file) != NULL, "title");
    if (list[0] != 'u' || list[1] != 'n') printf("%s", line);
    int found = 0;
    while (fgets(line, sizeof line, file)) {
        unsigned state, queue, unread, uid, timeout;
        unsigned long number;
        if (sscanf(line, " %*d: %63s %63s %x %x:%x %*x:%*x %*x %u %u %lu", local, remote, &state, &queue, &unread,
                   &uid, &timeout, &number) == 8 &&
            number == inode) {
            found = 1;
            printf("%s state %u unread %u own %d\n", list, state, unread, uid == getuid());
            printf("addresses of %zu and %zu\n", strlen(local), strlen(remote));
        }
    }
    if (!found) printf("FAIL no line in %s\n", list);
    fclose(file);
    fflush(stdout);
}

static void ip(void) {
    section("ip");
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    need(bind(listener, (void *)&at, len) == 0 && listen(listener, 5) == 0, "listen");
    need(getsockname(listener, (void *)&at, &len) == 0, "getsockname");
    need(connect(client, (void *)&at, len) == 0, "connect");
    int server = accept(listener, NULL, NULL);
    need(server >= 0 && write(client, "hello", 5) == 5, "write");
    struct pollfd p = {server, POLLIN, 0};
    need(poll(&p, 1, 1000) == 1, "poll");
    line_of("tcp", inode_of(listener));
    line_of("tcp", inode_of(client));
    line_of("tcp", inode_of(server));
    int udp = socket(AF_INET6, SOCK_DGRAM, 0);
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    if (udp >= 0 && bind(udp, (void *)&any, sizeof any) == 0) line_of("udp6", inode_of(udp));
    else printf("FAIL udp6\n");
    close(listener), close(client), close(server), close(udp);
}

static void unix_names(void) {
    section("unix");
    struct sockaddr_un name = {AF_UNIX, "/tmp/procnet-socket"};
    unlink(name.sun_path);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    need(bind(s, (void *)&name, sizeof name) == 0 && listen(s, 1) == 0, "listen");
    char line[512], path[128];
    FILE *file = fopen("/proc/net/unix", "r");
    need(file && fgets(line, sizeof line, file), "title");
    printf("%s", line);
    while (fgets(line, sizeof line, file)) {
        unsigned references, flags, type, state;
        unsigned long number;
        if (sscanf(line, "%*[^:]: %x %*x %x %x %x %lu %127s", &references, &flags, &type, &state, &number, path) == 6 &&
            number == inode_of(s))
            printf("%u %x %u %u %s\n", references, flags, type, state, path);
    }
    fclose(file);
    unlink(name.sun_path);
    struct stat st;
    SHOW(fchmod(s, 0600));
    need(fstat(s, &st) == 0, "fstat");
    printf("%o\n", st.st_mode);
    SHOW(fchown(s, -1, -1));
    SHOW(fchown(s, getuid(), getgid()));
    if (geteuid()) FAILS(fchown(s, getuid() + 1, -1), EPERM);
    else printf("ok fchown(s, getuid() + 1, -1): EPERM\n");
    close(s);
}

static void others(void) {
    section("others");
    char path[64], to[64];
    pid_t child = fork();
    if (child == 0) _exit(3);
    siginfo_t info;
    need(waitid(P_PID, child, &info, WEXITED | WNOWAIT) == 0, "waitid");
    static const char *const links[] = {"exe", "cwd", "root"};
    for (unsigned i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", child, links[i]);
        FAILS(readlink(path, to, sizeof to), ENOENT);
        struct stat st;
        CHECK(lstat(path, &st) == 0 && S_ISLNK(st.st_mode));
        FAILS(stat(path, &st), ENOENT);
    }
    static const char *const files[] = {"cmdline", "statm", "wchan", "cgroup"};
    for (unsigned i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", child, files[i]);
        char text[128] = {0};
        int fd = open(path, O_RDONLY);
        CHECK(fd >= 0 && read(fd, text, 127) >= 0);
        printf("%s '%s'\n", files[i], text);
        close(fd);
    }
    waitpid(child, NULL, 0);
    snprintf(path, sizeof path, "/proc/%d/exe", child);
    FAILS(readlink(path, to, sizeof to), ENOENT);
    FAILS(readlink("/proc/1/exe", to, sizeof to), EACCES);
    FAILS(readlink("/proc/1/cwd", to, sizeof to), EACCES);
    FAILS(open("/proc/1/root/etc", O_RDONLY), EACCES);
}

// When a process began, in seconds before now.
static void start(void) {
    section("start");
    pid_t child = fork();
    if (child == 0) pause();
    char path[64], text[1024] = {0};
    snprintf(path, sizeof path, "/proc/%d/stat", child);
    int fd = open(path, O_RDONLY);
    need(read(fd, text, 1023) > 0, "stat");
    close(fd);
    unsigned long long ticks = 0;
    need(sscanf(strrchr(text, ')') + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                &ticks) == 1,
         "starttime");
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    long long age = (long long)now.tv_sec * 100 + now.tv_nsec / 10000000 - (long long)ticks;
    CHECK(age >= 0 && age < 3000);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

static void *raise_later(void *arg) {
    pause_ms(50);
    int big = 200000;
    setsockopt(*(int *)arg, SOL_SOCKET, SO_SNDBUF, &big, sizeof big);
    return NULL;
}

static void room(void) {
    section("room");
    int pair[2], small = 0;
    char buf[4096] = {0};
    need(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    while (send(pair[0], buf, sizeof buf, MSG_DONTWAIT) > 0) {}
    struct pollfd p = {pair[0], POLLOUT, 0};
    SHOW(poll(&p, 1, 0));
    pthread_t t;
    pthread_create(&t, NULL, raise_later, pair);
    SHOW(poll(&p, 1, 10000));
    pthread_join(t, NULL);
    close(pair[0]), close(pair[1]);
}

static void descriptors_without_bytes(void) {
    section("descriptors without bytes");
    int pair[2];
    need(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    char control[CMSG_SPACE(sizeof(int))] = {0}, byte = 'x';
    struct iovec one = {&byte, 1};
    struct msghdr m = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &pair[0], sizeof(int));
    SHOW(sendmsg(pair[0], &m, 0));
    m.msg_iovlen = 0, m.msg_controllen = sizeof control;
    SHOW(recvmsg(pair[1], &m, 0));
    printf("%d of control\n", (int)m.msg_controllen);
    m.msg_iovlen = 1, m.msg_controllen = sizeof control;
    SHOW(recvmsg(pair[1], &m, MSG_DONTWAIT));
    printf("%d of control\n", (int)m.msg_controllen);
    close(pair[0]), close(pair[1]);
}

int main(void) {
    ip();
    unix_names();
    others();
    start();
    room();
    descriptors_without_bytes();
    return 0;
}
