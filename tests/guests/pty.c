// Pseudo-terminals: pty lines|modes|raw|output|packet|hangup|jobs|names.
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>

static int master, slave;

static int open_master(void) {
    int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    need(fd >= 0 && grantpt(fd) == 0 && unlockpt(fd) == 0, "ptmx");
    return fd;
}

static int open_slave(int of, int flags) {
    int fd = ioctl(of, TIOCGPTPEER, O_RDWR | flags);
    need(fd >= 0, "TIOCGPTPEER");
    return fd;
}

static void open_both(void) {
    master = open_master();
    slave = open_slave(master, O_NOCTTY);
    fcntl(master, F_SETFL, O_NONBLOCK);
    fcntl(slave, F_SETFL, O_NONBLOCK);
}

static void close_both(void) {
    close(slave);
    close(master);
}

static void show_bytes(const char *what, const char *bytes, ssize_t count) {
    int e = errno;
    printf("%s:", what);
    if (count < 0) printf(" %s", errno_name(e));
    for (ssize_t i = 0; i < count; i++) {
        if (bytes[i] >= ' ' && bytes[i] < 127) putchar(bytes[i]);
        else printf("\\%03o", (unsigned char)bytes[i]);
    }
    printf(" (%zd)\n", count);
    fflush(stdout);
}

// The bytes get from one end to the other a moment later on Linux.
static ssize_t patient_read(int fd, char *buf, size_t size) {
    ssize_t count = -1;
    for (int i = 0; i < 40; i++) {
        errno = 0;
        count = read(fd, buf, size);
        if (count >= 0 || errno != EAGAIN) return count;
        pause_ms(2);
    }
    return count;
}

static void show_master(void) {
    char buf[9000];
    size_t total = 0;
    ssize_t count = 0;
    pause_ms(5);
    while (total < sizeof buf && (count = read(master, buf + total, sizeof buf - total)) > 0) {
        total += (size_t)count;
        pause_ms(2);
    }
    show_bytes(" shown", buf, (ssize_t)total);
}

static ssize_t show_slave(size_t size) {
    char buf[9000];
    ssize_t count = patient_read(slave, buf, size);
    show_bytes(" read", buf, count);
    return count;
}

static void type(const char *bytes, size_t count) {
    need(write(master, bytes, count) == (ssize_t)count, "type");
    pause_ms(5);
}
#define TYPE(text) do { printf("type %s\n", #text); type(text, sizeof(text) - 1); } while (0)

static void change(tcflag_t iflag, tcflag_t oflag, tcflag_t lflag, int on) {
    struct termios t;
    need(tcgetattr(slave, &t) == 0, "tcgetattr");
    if (on) { t.c_iflag |= iflag; t.c_oflag |= oflag; t.c_lflag |= lflag; }
    else { t.c_iflag &= ~iflag; t.c_oflag &= ~oflag; t.c_lflag &= ~lflag; }
    need(tcsetattr(slave, TCSANOW, &t) == 0, "tcsetattr");
}

static void special(int which, int byte) {
    struct termios t;
    need(tcgetattr(slave, &t) == 0, "tcgetattr");
    t.c_cc[which] = (cc_t)byte;
    need(tcsetattr(slave, TCSANOW, &t) == 0, "tcsetattr");
}

static void lines(void) {
    int count = 0;
    section("editing");
    open_both();
    TYPE("ab\177c\r"); show_master(); show_slave(100);
    TYPE("one two_2  \027x\n"); show_master(); show_slave(100);
    TYPE("abc\025de\n"); show_master(); show_slave(100);
    TYPE("a\001\177b\n"); show_master(); show_slave(100);
    TYPE("a\026\177b\026\003\n"); show_master(); show_slave(100);
    TYPE("ab\022c\n"); show_master(); show_slave(100);
    TYPE("ab\tc\177\177\177\n"); show_master(); show_slave(100);
    TYPE("\t\tx\177\177\177\n"); show_master(); show_slave(100);
    TYPE("\177\025\027x\n"); show_master(); show_slave(100);
    TYPE("\000a\200\377\n"); show_master(); show_slave(100);
    section("lines and parts of them");
    TYPE("ab\ncd\nef"); show_master();
    SHOW(ioctl(slave, FIONREAD, &count)); SHOW(count);
    show_slave(1); show_slave(1); show_slave(1); show_slave(100); show_slave(100);
    TYPE("\004"); show_master(); show_slave(2); show_slave(2);
    TYPE("\004"); show_slave(10);
    TYPE("a\004b\004"); SHOW(ioctl(slave, FIONREAD, &count)); SHOW(count);
    show_slave(10); show_slave(10); show_slave(10);
    special(VEOL, ';'); special(VEOL2, '!');
    TYPE("a;b!c\n"); show_master(); show_slave(100); show_slave(100); show_slave(100);
    section("a long line");
    change(0, 0, ECHO, 0);
    char big[6000];
    memset(big, 'x', sizeof big);
    type(big, sizeof big);
    show_slave(10);
    TYPE("yz\n");
    char buf[9000];
    ssize_t got = patient_read(slave, buf, sizeof buf);
    SHOW(got);
    if (got > 4) show_bytes(" end", buf + got - 4, 4);
    section("with and without lines");
    TYPE("ab");
    show_slave(10);
    change(0, 0, ICANON, 0); show_slave(1);
    change(0, 0, ICANON, 1); show_slave(10);
    close_both();
}

static void modes(void) {
    static const struct { tcflag_t i, o, l; int on; const char *name; } table[] = {
        {0, 0, ECHO, 0, "-echo"}, {0, 0, ECHOCTL, 0, "-echoctl"}, {0, 0, ECHOE, 0, "-echoe"},
        {0, 0, ECHOK, 0, "-echok"}, {0, 0, ECHOKE, 0, "-echoke"}, {0, 0, ECHOPRT, 1, "echoprt"},
        {0, 0, IEXTEN, 0, "-iexten"}, {INLCR, 0, 0, 1, "inlcr"}, {IGNCR, 0, 0, 1, "igncr"},
        {ICRNL, 0, 0, 0, "-icrnl"}, {ISTRIP, 0, 0, 1, "istrip"}, {IUTF8, 0, 0, 1, "iutf8"},
        {IUCLC, 0, 0, 1, "iuclc"}, {PARMRK, 0, 0, 1, "parmrk"}, {0, OPOST, 0, 0, "-opost"},
        {0, ONLCR, 0, 0, "-onlcr"}, {0, OCRNL, 0, 1, "ocrnl"}, {0, ONOCR, 0, 1, "onocr"},
        {0, ONLRET, 0, 1, "onlret"}, {0, XTABS, 0, 1, "tab3"}, {0, OLCUC, 0, 1, "olcuc"},
        {0, 0, ISIG, 0, "-isig"}, {0, 0, NOFLSH, 1, "noflsh"}, {0, 0, EXTPROC, 1, "extproc"},
    };
    static const char typed[] = "aB\tc\177\177\001x\177\303\251\342\202\254\177d e\027f\025g\026\025h\022\rm\nn\r\n\377\n\003o\n";
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        section(table[i].name);
        open_both();
        change(table[i].i, table[i].o, table[i].l, table[i].on);
        type(typed, sizeof typed - 1);
        show_master();
        // Each look that finds nothing takes its time.
        for (int j = 0; j < 6 && show_slave(100) >= 0; j++) {}
        const char *out = "a\tb\r\nc\n\rd\010e\001";
        SHOW(write(slave, out, strlen(out)));
        show_master();
        close_both();
    }
    section("echonl");
    open_both();
    change(0, 0, ECHO, 0);
    change(0, 0, ECHONL, 1);
    TYPE("a\n"); show_master(); show_slave(10);
    section("stopped output");
    change(0, 0, ECHO, 1);
    TYPE("\023ab"); show_master();
    SHOW(write(slave, "x", 1));
    TYPE("\021"); show_master();
    SHOW(write(slave, "x", 1)); show_master();
    change(IXANY, 0, 0, 1);
    TYPE("\023"); SHOW(write(slave, "x", 1)); TYPE("c"); show_master();
    SHOW(tcflow(slave, TCOOFF)); SHOW(write(slave, "x", 1)); TYPE("\021");
    SHOW(write(slave, "x", 1)); SHOW(tcflow(slave, TCOON)); SHOW(write(slave, "x", 1)); show_master();
    SHOW(tcflow(slave, TCIOFF)); SHOW(tcflow(slave, TCION)); show_master();
    SHOW(tcflow(slave, 7));
    section("flush");
    TYPE("\nab\ncd"); SHOW(tcflush(slave, TCIFLUSH)); show_slave(10);
    TYPE("e\n"); show_slave(10);
    char many[8000];
    for (size_t i = 0; i < sizeof many; i++) many[i] = i % 100 == 99 ? '\n' : 'x';
    change(0, 0, ECHO, 0);
    type(many, sizeof many); SHOW(tcflush(slave, TCIFLUSH)); pause_ms(5); show_slave(200);
    TYPE("new\n"); show_slave(200);
    change(0, 0, ECHO, 1);
    SHOW(tcflush(slave, 9)); SHOW(tcdrain(slave)); SHOW(tcsendbreak(slave, 0));
    struct termios t;
    TYPE("left\n");
    need(tcgetattr(slave, &t) == 0, "tcgetattr");
    SHOW(tcsetattr(slave, TCSAFLUSH, &t)); show_slave(10);
    cfsetspeed(&t, B115200);
    t.c_cflag = (t.c_cflag & ~CSIZE) | CS5 | PARENB;
    SHOW(tcsetattr(slave, TCSADRAIN, &t));
    need(tcgetattr(master, &t) == 0, "tcgetattr");
    SHOW(cfgetospeed(&t) == B115200); SHOW((t.c_cflag & CSIZE) == CS8); SHOW(t.c_cflag & PARENB);
    SHOW(t.c_cflag & CREAD);
    close_both();
}

static volatile int alarms;
static void on_alarm(int signo) { (void)signo; alarms++; }

static long elapsed_tenths(const struct timespec *from) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return ((now.tv_sec - from->tv_sec) * 1000 + (now.tv_nsec - from->tv_nsec) / 1000000) / 100;
}

static void late(const char *bytes, int ms) {
    if (fork() == 0) {
        for (; *bytes; bytes++) {
            pause_ms(ms);
            need(write(master, bytes, 1) == 1, "late");
        }
        _exit(0);
    }
}

static void raw(void) {
    struct termios t;
    struct timespec from;
    char buf[100];
    open_both();
    fcntl(slave, F_SETFL, 0);
    need(tcgetattr(slave, &t) == 0, "tcgetattr");
    cfmakeraw(&t);
    section("bytes as they are");
    need(tcsetattr(slave, TCSANOW, &t) == 0, "tcsetattr");
    TYPE("a\003\r\n\377\000b"); show_master(); show_slave(4); show_slave(100);
    section("VMIN");
    t.c_cc[VMIN] = 3;
    need(tcsetattr(slave, TCSANOW, &t) == 0, "tcsetattr");
    struct pollfd p = {slave, POLLIN | POLLOUT, 0};
    TYPE("ab"); SHOW(poll(&p, 1, 0)); SHOW(p.revents);
    TYPE("c"); SHOW(poll(&p, 1, 0)); SHOW(p.revents);
    show_bytes(" read", buf, read(slave, buf, sizeof buf));
    late("xyz", 20);
    show_bytes(" read", buf, read(slave, buf, sizeof buf));
    late("pq", 20);
    show_bytes(" read", buf, read(slave, buf, 2));
    section("VMIN 0");
    t.c_cc[VMIN] = 0;
    need(tcsetattr(slave, TCSANOW, &t) == 0, "tcsetattr");
    show_bytes(" read", buf, read(slave, buf, sizeof buf));
    section("VTIME");
    t.c_cc[VTIME] = 3;
    need(tcsetattr(slave, TCSANOW, &t) == 0, "tcsetattr");
    clock_gettime(CLOCK_MONOTONIC, &from);
    show_bytes(" read", buf, read(slave, buf, sizeof buf));
    CHECK(elapsed_tenths(&from) >= 3);
    late("k", 30);
    show_bytes(" read", buf, read(slave, buf, sizeof buf));
    section("VMIN and VTIME");
    t.c_cc[VMIN] = 5;
    need(tcsetattr(slave, TCSANOW, &t) == 0, "tcsetattr");
    late("mn", 30);
    clock_gettime(CLOCK_MONOTONIC, &from);
    show_bytes(" read", buf, read(slave, buf, sizeof buf));
    CHECK(elapsed_tenths(&from) >= 3);
    section("signals end a read");
    t.c_cc[VMIN] = 1;
    t.c_cc[VTIME] = 0;
    need(tcsetattr(slave, TCSANOW, &t) == 0, "tcsetattr");
    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &action, NULL);
    alarm(1);
    show_bytes(" read", buf, read(slave, buf, sizeof buf));
    SHOW(alarms);
    section("without waiting");
    fcntl(slave, F_SETFL, O_NONBLOCK);
    show_bytes(" read", buf, read(slave, buf, sizeof buf));
    SHOW(lseek(slave, 0, SEEK_SET));
    SHOW(pread(slave, buf, 1, 0));
    section("poll and epoll");
    int epoll = epoll_create1(0);
    struct epoll_event event = {EPOLLIN | EPOLLET, {.fd = slave}};
    SHOW(epoll_ctl(epoll, EPOLL_CTL_ADD, slave, &event));
    SHOW(epoll_wait(epoll, &event, 1, 0));
    TYPE("a"); SHOW(epoll_wait(epoll, &event, 1, 100)); SHOW(epoll_wait(epoll, &event, 1, 0));
    TYPE("b"); SHOW(epoll_wait(epoll, &event, 1, 100));
    show_slave(10);
    p = (struct pollfd){master, POLLIN | POLLOUT, 0};
    SHOW(poll(&p, 1, 0)); SHOW(p.revents);
    SHOW(write(slave, "out", 3));
    pause_ms(5);
    SHOW(poll(&p, 1, 0)); SHOW(p.revents);
    show_master();
    section("a full terminal");
    char big[4096];
    memset(big, 'x', sizeof big);
    long total = 0;
    int full = 0;
    // Natively somebody else moves bytes on, and makes room for more.
    for (int still = 0; still < 3;) {
        ssize_t n = write(slave, big, sizeof big);
        full = n < 0 ? errno : 0;
        total += n > 0 ? n : 0;
        still = n > 0 ? 0 : still + 1;
        pause_ms(5);
    }
    SHOW(full == EAGAIN); SHOW(total >= 4096 && total < 100000);
    p = (struct pollfd){slave, POLLOUT, 0};
    SHOW(poll(&p, 1, 0));
    long back = 0;
    for (ssize_t n; (n = patient_read(master, big, sizeof big)) > 0;) back += n;
    SHOW(back == total);
    SHOW(poll(&p, 1, 0));
    close_both();
}

static void output(void) {
    section("whole writes to a slow master");
    open_both();
    fcntl(slave, F_SETFL, 0);
    fcntl(master, F_SETFL, 0);
    pid_t child = fork();
    if (!child) {
        static char big[100000];
        close(master);
        for (size_t i = 0; i < sizeof big; i++) big[i] = (char)('a' + i % 26);
        big[50000] = '\n';
        _exit(write(slave, big, sizeof big) == sizeof big ? 0 : 1);
    }
    close(slave);
    char buf[3000];
    long total = 0, sum = 0;
    for (ssize_t n; (n = read(master, buf, sizeof buf)) > 0;) {
        total += n;
        for (ssize_t i = 0; i < n; i++) sum = (sum * 31 + buf[i]) % 1000003;
    }
    int why = errno;
    SHOW(why == EIO); SHOW(total); SHOW(sum);
    int status = -1;
    waitpid(child, &status, 0);
    SHOW(status);
    close(master);
}

static void packet(void) {
    int on = 1, is = -1;
    struct termios t;
    struct pollfd p;
    open_both();
    SHOW(ioctl(slave, TIOCPKT, &on));
    SHOW(ioctl(master, TIOCPKT, &on));
    SHOW(ioctl(master, TIOCGPKT, &is)); SHOW(is);
    p = (struct pollfd){master, POLLIN | POLLPRI, 0};
    char buf[100];
    section("data");
    SHOW(write(slave, "ab\n", 3));
    show_bytes(" read", buf, patient_read(master, buf, 3));
    show_bytes(" read", buf, patient_read(master, buf, sizeof buf));
    section("stop and start");
    SHOW(poll(&p, 1, 0));
    SHOW(tcflow(slave, TCOOFF)); SHOW(poll(&p, 1, 100)); SHOW(p.revents);
    show_bytes(" read", buf, patient_read(master, buf, sizeof buf));
    SHOW(tcflow(slave, TCOON)); show_bytes(" read", buf, patient_read(master, buf, sizeof buf));
    section("modes");
    need(tcgetattr(slave, &t) == 0, "tcgetattr");
    t.c_iflag &= ~IXON;
    SHOW(tcsetattr(slave, TCSANOW, &t)); show_bytes(" read", buf, patient_read(master, buf, sizeof buf));
    t.c_iflag |= IXON;
    SHOW(tcsetattr(slave, TCSANOW, &t)); show_bytes(" read", buf, patient_read(master, buf, sizeof buf));
    t.c_lflag |= EXTPROC;
    SHOW(tcsetattr(slave, TCSANOW, &t)); show_bytes(" read", buf, patient_read(master, buf, sizeof buf));
    section("flush");
    SHOW(tcflush(slave, TCIFLUSH)); show_bytes(" read", buf, patient_read(master, buf, sizeof buf));
    SHOW(tcflush(slave, TCOFLUSH)); show_bytes(" read", buf, patient_read(master, buf, sizeof buf));
    on = 0;
    SHOW(ioctl(master, TIOCPKT, &on));
    SHOW(write(slave, "cd\n", 3)); show_bytes(" read", buf, patient_read(master, buf, sizeof buf));
    close_both();
}

static int poll_bits(int fd) {
    struct pollfd p = {fd, POLLIN | POLLOUT, 0};
    poll(&p, 1, 0);
    return p.revents;
}

static void hangup(void) {
    char buf[100];
    struct termios t;
    struct winsize w;
    int locked = -1, group = -1;
    section("a lock");
    master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    SHOW(ioctl(master, TIOCGPTLCK, &locked)); SHOW(locked);
    FAILS(open(ptsname(master), O_RDWR | O_NOCTTY), EIO);
    SHOW(unlockpt(master));
    fcntl(master, F_SETFL, O_NONBLOCK);
    section("before a slave");
    SHOW(poll_bits(master)); SHOW(read(master, buf, 1)); SHOW(write(master, "early\n", 6));
    slave = open_slave(master, O_NOCTTY);
    show_slave(100); show_master();
    section("after the slave");
    SHOW(write(slave, "bye", 3)); close(slave);
    SHOW(poll_bits(master) & POLLHUP);
    show_bytes(" read", buf, patient_read(master, buf, sizeof buf));
    show_bytes(" read", buf, patient_read(master, buf, sizeof buf));
    SHOW(poll_bits(master));
    slave = open_slave(master, O_NOCTTY);
    SHOW(poll_bits(master)); SHOW(read(master, buf, 1));
    section("after the master");
    char name[64];
    struct stat st;
    snprintf(name, sizeof name, "%s", ptsname(master));
    TYPE("left\n");
    close(master);
    show_bytes(" read", buf, read(slave, buf, sizeof buf));
    SHOW(write(slave, "x", 1)); SHOW(tcgetattr(slave, &t)); SHOW(ioctl(slave, TIOCGWINSZ, &w));
    SHOW(ioctl(slave, TIOCSPGRP, &group)); SHOW(poll_bits(slave)); SHOW(isatty(slave));
    SHOW(stat(name, &st)); SHOW(open(name, O_RDWR)); SHOW(fstat(slave, &st));
    SHOW(S_ISCHR(st.st_mode)); SHOW(major(st.st_rdev));
    close(slave);
    section("a reader is woken");
    open_both();
    fcntl(slave, F_SETFL, 0);
    pid_t child = fork();
    if (!child) {
        pause_ms(50);
        close(master);
        _exit(0);
    }
    close(master);
    // The hang-up is an error for who waits, and the end of the file for who comes later.
    FAILS(read(slave, buf, sizeof buf), EIO);
    SHOW(read(slave, buf, sizeof buf));
    waitpid(child, NULL, 0);
    close(slave);
}

static volatile sig_atomic_t seen;
static void on_signal(int signo) { seen = seen * 100 + signo; }

static void catch(int signo) {
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(signo, &action, NULL);
}

// Runs `act` in a session of its own whose terminal is a new slave, as descriptor 0.
static void in_session(const char *name, int (*act)(void)) {
    section(name);
    master = open_master();
    pid_t child = fork();
    if (!child) {
        seen = 0;
        NEED(setsid() == getpid());
        slave = open_slave(master, O_NOCTTY);
        FAILS(open("/dev/tty", O_RDWR), ENXIO);
        NEED(ioctl(slave, TIOCSCTTY, 0) == 0);
        dup2(slave, 0);
        close(slave);
        close(master);
        _exit(act());
    }
    fcntl(master, F_SETFL, O_NONBLOCK);
}

static void ended(void) {
    int status = -1;
    NEED(wait(&status) > 0);
    printf(" status %#x\n", status);
    fflush(stdout);
}

// Device number and foreground group of the controlling terminal, as /proc tells them.
static void terminal_of_self(int *device, int *group) {
    char buf[512] = "";
    int fd = open("/proc/self/stat", O_RDONLY);
    NEED(read(fd, buf, sizeof buf - 1) > 0);
    close(fd);
    NEED(sscanf(strrchr(buf, ')') + 2, "%*c %*d %*d %*d %d %d", device, group) == 2);
}

static int sessions(void) {
    int none = -1, device = -1, group = -1;
    struct stat own;
    NEED(fstat(0, &own) == 0);
    terminal_of_self(&device, &group);
    SHOW(device == (int)own.st_rdev); SHOW(group == getpid());
    SHOW(tcgetsid(0) == getpid()); SHOW(tcgetpgrp(0) == getpid());
    SHOW(ioctl(0, TIOCSCTTY, 0));
    SHOW(tcsetpgrp(0, 5000000)); SHOW(tcsetpgrp(0, -1)); SHOW(ioctl(0, TIOCSPGRP, NULL));
    int tty = open("/dev/tty", O_RDWR);
    struct stat st;
    SHOW(fstat(tty, &st)); SHOW(major(st.st_rdev)); SHOW(minor(st.st_rdev));
    SHOW(write(tty, "hello\n", 6)); SHOW(isatty(tty));
    SHOW(strcmp(ttyname(tty), "/dev/tty"));
    SHOW(strncmp(ttyname(0), "/dev/pts/", 9));
    int other = open_master();
    int other_slave = open_slave(other, O_NOCTTY);
    SHOW(ioctl(other_slave, TIOCSCTTY, 0)); SHOW(tcgetpgrp(other_slave));
    SHOW(ioctl(other, TIOCGPGRP, &none)); SHOW(none); SHOW(ioctl(other, TIOCGSID, &none));
    SHOW(ioctl(other_slave, TIOCNOTTY)); SHOW(ioctl(other, TIOCNOTTY));
    pid_t child = fork();
    if (!child) {
        NEED(open("/dev/tty", O_RDWR) >= 0);
        NEED(setsid() == getpid());
        FAILS(open("/dev/tty", O_RDWR), ENXIO);
        FAILS(ioctl(0, TIOCSCTTY, 0), EPERM);
        SHOW(tcgetpgrp(0));
        terminal_of_self(&device, &group);
        SHOW(device); SHOW(group);
        // The first terminal that a leader opens is its own.
        int mine = open(ptsname(other), O_RDWR);
        SHOW(tcgetsid(mine) == getpid());
        int got = -1;
        SHOW(ioctl(other, TIOCGSID, &got)); SHOW(got == getpid());
        signal(SIGHUP, SIG_IGN);
        SHOW(ioctl(mine, TIOCNOTTY)); SHOW(tcgetsid(mine)); SHOW(ioctl(mine, TIOCSCTTY, 0));
        _exit(3);
    }
    ended();
    SHOW(ioctl(other, TIOCGSID, &none));
    catch(SIGHUP);
    SHOW(ioctl(0, TIOCNOTTY)); SHOW(seen); SHOW(open("/dev/tty", O_RDWR));
    return 4;
}

static int waits_for_signals(void) {
    catch(SIGINT); catch(SIGQUIT); catch(SIGTSTP); catch(SIGWINCH);
    NEED(write(0, "ready", 5) == 5);
    for (int i = 0, last = 0; i < 4;) {
        pause();
        if (seen != last) { printf(" seen %d\n", (int)seen % 100); fflush(stdout); last = seen; i++; NEED(write(0, "+", 1) == 1); }
    }
    struct winsize w;
    SHOW(ioctl(0, TIOCGWINSZ, &w)); SHOW(w.ws_row); SHOW(w.ws_col); SHOW(w.ws_xpixel);
    return 0;
}

static int stays(void) {
    catch(SIGHUP); catch(SIGCONT);
    NEED(write(0, "ready", 5) == 5);
    // The signals come in any order.
    while (seen != SIGHUP * 100 + SIGCONT && seen != SIGCONT * 100 + SIGHUP) pause();
    char c;
    SHOW(read(0, &c, 1)); SHOW(open("/dev/tty", O_RDWR));
    return 5;
}

static int leaves_a_job(void) {
    int up[2];
    NEED(pipe(up) == 0);
    signal(SIGTTOU, SIG_IGN);
    pid_t child = fork();
    if (!child) {
        catch(SIGHUP);
        setpgid(0, 0);
        NEED(tcsetpgrp(0, getpid()) == 0);
        NEED(write(up[1], "x", 1) == 1);
        while (!seen) pause();
        printf(" seen %d\n", (int)seen);
        FAILS(open("/dev/tty", O_RDWR), ENXIO);
        SHOW(tcgetpgrp(0));
        NEED(write(0, "still", 5) == 5);
        _exit(0);
    }
    char c;
    NEED(read(up[0], &c, 1) == 1);
    return 6;
}

static int background(void) {
    int status = 0;
    char buf[10];
    struct termios t;
    signal(SIGTTOU, SIG_IGN);
    NEED(tcgetattr(0, &t) == 0);
    for (int kind = 0; kind < 7; kind++) {
        pid_t child = fork();
        if (!child) {
            signal(SIGTTOU, SIG_DFL);
            setpgid(0, 0);
            if (kind == 6) fcntl(0, F_SETFL, O_RDWR | O_NONBLOCK);
            if (kind == 3 || kind == 6) { t.c_lflag |= TOSTOP; signal(SIGTTOU, SIG_IGN); tcsetattr(0, TCSANOW, &t); signal(SIGTTOU, SIG_DFL); }
            if (kind == 4) signal(SIGTTIN, SIG_IGN);
            if (kind == 5) { t.c_lflag &= ~TOSTOP; signal(SIGTTOU, SIG_IGN); tcsetattr(0, TCSANOW, &t); signal(SIGTTOU, SIG_DFL); }
            ssize_t r = kind == 0 || kind == 4 ? read(0, buf, sizeof buf)
                : kind == 1 ? tcsetattr(0, TCSANOW, &t) : kind == 2 ? tcsetpgrp(0, getpid()) : write(0, "out", 3);
            printf(" %zd %s\n", r, r < 0 ? errno_name(errno) : "");
            fflush(stdout);
            _exit(kind);
        }
        setpgid(child, child);
        NEED(waitpid(child, &status, WUNTRACED) == child);
        printf("kind %d: status %#x\n", kind, status);
        fflush(stdout);
        if (!WIFSTOPPED(status)) continue;
        NEED(tcsetpgrp(0, child) == 0);
        NEED(kill(-child, SIGCONT) == 0);
        NEED(waitpid(child, &status, 0) == child);
        printf(" then: status %#x\n", status);
        NEED(tcsetpgrp(0, getpgrp()) == 0);
    }
    return 0;
}

static void until_shown(const char *what) {
    char buf[4000] = "";
    size_t total = 0;
    for (int i = 0; i < 1000 && !strstr(buf, what); i++) {
        ssize_t count = read(master, buf + total, sizeof buf - 1 - total);
        if (count > 0) buf[total += (size_t)count] = 0;
        else pause_ms(5);
    }
    if (!strstr(buf, what)) printf("FAIL: %s is not shown\n", what);
}

static void jobs(void) {
    in_session("sessions", sessions);
    ended();
    close(master);
    in_session("signals", waits_for_signals);
    until_shown("ready");
    TYPE("\003"); until_shown("+");
    TYPE("\034"); until_shown("+");
    TYPE("\032"); until_shown("+");
    struct winsize w = {.ws_row = 30, .ws_col = 100, .ws_xpixel = 7};
    // The same size again is no news.
    NEED(ioctl(master, TIOCSWINSZ, &w) == 0);
    NEED(ioctl(master, TIOCSWINSZ, &w) == 0);
    ended();
    close(master);
    in_session("the master closes", stays);
    until_shown("ready");
    close(master);
    ended();
    in_session("the leader ends", leaves_a_job);
    until_shown("still");
    ended();
    close(master);
    in_session("background", background);
    // It reads twice: once from the background, once in the foreground.
    TYPE("line\nmore\n");
    ended();
    close(master);
}

static void names(void) {
    struct stat st, named;
    int number = -1;
    unsigned device = 0;
    open_both();
    SHOW(ioctl(master, TIOCGPTN, &number)); SHOW(ioctl(slave, TIOCGPTN, &number));
    char name[64], link[64], path[64];
    snprintf(name, sizeof name, "/dev/pts/%d", number);
    SHOW(strcmp(name, ptsname(master))); SHOW(strcmp(name, ttyname(slave)));
    SHOW(fstat(slave, &st)); SHOW(stat(name, &named));
    SHOW(st.st_ino == named.st_ino); SHOW(st.st_rdev == named.st_rdev); SHOW(st.st_dev == named.st_dev);
    SHOW(st.st_rdev == makedev(136, number)); SHOW((st.st_mode & S_IRWXU) == (S_IRUSR | S_IWUSR)); SHOW(st.st_uid == getuid());
    SHOW(fstat(master, &st)); SHOW(major(st.st_rdev)); SHOW(minor(st.st_rdev)); printf("%o\n", st.st_mode);
    SHOW(ioctl(slave, TIOCGDEV, &device)); SHOW(device == makedev(136, number));
    snprintf(path, sizeof path, "/proc/self/fd/%d", slave);
    ssize_t count = readlink(path, link, sizeof link - 1);
    need(count > 0, "readlink");
    link[count] = 0;
    SHOW(strcmp(link, name));
    int again = open(path, O_RDWR | O_NOCTTY);
    SHOW(isatty(again)); SHOW(strcmp(ttyname(again), name));
    SHOW(access(name, R_OK | W_OK)); SHOW(access("/dev/ptmx", R_OK | W_OK));
    SHOW(ioctl(slave, TIOCEXCL));
    int exclusive = -1;
    SHOW(ioctl(slave, TIOCGEXCL, &exclusive)); SHOW(exclusive);
    SHOW(ioctl(slave, TIOCNXCL));
    int discipline = -1;
    SHOW(ioctl(slave, TIOCGETD, &discipline)); SHOW(discipline); SHOW(ioctl(slave, TIOCSETD, &discipline));
    SHOW(ioctl(slave, TIOCOUTQ, &discipline)); SHOW(discipline);
    SHOW(ioctl(slave, TIOCGWINSZ, NULL)); SHOW(ioctl(slave, TIOCMGET, &discipline)); SHOW(ioctl(slave, 0x54ff, 0));
    close(again);
    close_both();
    FAILS(open("/dev/pts/nothing", O_RDWR), ENOENT);
    FAILS(open("/dev/pts/4294967296", O_RDWR), ENOENT);
    FAILS(open("/dev/pts/01", O_RDWR), ENOENT);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    alarm(60);
    if (!strcmp(what, "lines")) lines();
    else if (!strcmp(what, "modes")) modes();
    else if (!strcmp(what, "raw")) raw();
    else if (!strcmp(what, "output")) output();
    else if (!strcmp(what, "packet")) packet();
    else if (!strcmp(what, "hangup")) hangup();
    else if (!strcmp(what, "jobs")) jobs();
    else if (!strcmp(what, "names")) names();
    else return 99;
    return 0;
}
