// Terminals put to no good use: terminals garbage|loop|lines|again|stopped|signals|sessions
#include "hostile.h"
#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>

static char block[1 << 16];
static unsigned seed = 1;

static unsigned random_number(void) { return seed = seed * 1103515245u + 12345u, seed >> 8; }

static int new_master(void) {
    int master = open("/dev/ptmx", O_RDWR | O_NONBLOCK | O_NOCTTY), zero = 0;
    need(master >= 0 && ioctl(master, TIOCSPTLCK, &zero) == 0, "ptmx");
    return master;
}

static int new_slave(int master) {
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NONBLOCK | O_NOCTTY);
    need(slave >= 0, "TIOCGPTPEER");
    return slave;
}

// Any request with anything as its argument, and bytes in between.
static void garbage(void) {
    signal(SIGHUP, SIG_IGN);
    signal(SIGTTOU, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGQUIT, SIG_IGN);
    signal(SIGTSTP, SIG_IGN);
    // FIOASYNC is among the requests.
    signal(SIGIO, SIG_IGN);
    setsid();
    for (int round = 0; round < 300; round++) {
        int master = new_master(), ends[2] = {master, new_slave(master)};
        for (int i = 0; i < 100; i++) {
            unsigned char arg[64];
            for (unsigned j = 0; j < sizeof arg; j++) arg[j] = (unsigned char)random_number();
            int fd = ends[random_number() % 2];
            unsigned request = random_number() % 3 ? 0x5400 + random_number() % 0x90 : 0x402c5400 + random_number() % 0x90;
            // Neither FIONBIO, which may turn waiting on, nor what opens more.
            if ((request & 0xff) == 0x21 || (request & 0xff) == 0x41) continue;
            switch (random_number() % 4) {
                case 0: write(fd, arg, sizeof arg); break;
                case 1: read(fd, arg, sizeof arg); break;
                case 2: ioctl(fd, request, arg); break;
                case 3: ioctl(fd, request, (unsigned long)random_number() << (random_number() % 40)); break;
            }
        }
        close(ends[random_number() % 2]);
        close(ends[0]);
        close(ends[1]);
    }
}

// What is echoed is typed again.
static void loop(void) {
    int master = new_master(), slave = new_slave(master);
    write(master, "typed\n", 6);
    unsigned long bytes = 0;
    for (int i = 0; i < 400; i++) {
        long r = read(master, block, 4096);
        if (r > 0) bytes += (unsigned long)r, write(master, block, (size_t)r);
        write(master, "x\n", 2);
        while (i % 7 == 0 && read(slave, block, 4096) > 0) {}
    }
    need(bytes > 20000, "echoes");
}

// Lines that take the most work: long ones that are shown again, and tabs that are erased.
static void lines(void) {
    int master = new_master(), slave = new_slave(master);
    memset(block, 'a', 4000);
    for (unsigned i = 4000; i < sizeof block; i += 2) memcpy(block + i, "\t\177", 2);
    for (int round = 0; round < 20; round++) {
        write(master, block, sizeof block);
        while (read(master, block + 4000, 1) > 0 && round < 10) {}
        memset(block + 4000, round % 2 ? 022 : 025, 30000);
    }
    (void)slave;
}

// Lines that are shown again without end, and show nothing.
static void again(void) {
    int master = new_master(), slave = new_slave(master);
    struct termios t;
    need(tcgetattr(slave, &t) == 0, "tcgetattr");
    t.c_iflag = 0;
    t.c_oflag = OPOST | ONOCR | ONLRET;
    t.c_lflag = ICANON | ECHO | IEXTEN;
    need(tcsetattr(slave, TCSANOW, &t) == 0, "tcsetattr");
    memset(block, '\r', 4000);
    need(write(master, block, 4000) == 4000, "line");
    memset(block, 022, sizeof block);
    for (int round = 0; round < 200; round++) {
        need(write(master, block, 16384) == 16384, "again");
        while (read(master, block + 16384, 16384) > 0) {}
    }
}

// Echoes that wait while output is stopped, with nobody who reads them.
static void stopped(void) {
    int master = new_master(), slave = new_slave(master);
    memset(block, 'a', 4100);
    block[0] = 023;
    block[4099] = 021;
    for (int round = 0; round < 1000; round++) need(write(master, block, 4100) == 4100, "stopped");
    unsigned long bytes = 0;
    for (long r; (r = read(master, block, sizeof block)) > 0;) bytes += (unsigned long)r;
    need(bytes <= 16384, "echoes");
    (void)slave;
}

// Signals for many processes, which block them, with each byte.
static void signals(void) {
    int master = new_master(), ready[2];
    sigset_t all;
    need(pipe(ready) == 0, "pipe");
    pid_t leader = fork();
    if (leader == 0) {
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, NULL);
        setsid();
        need(ioctl(new_slave(master), TIOCSCTTY, 0) == 0, "TIOCSCTTY");
        for (int i = 0; i < 200; i++)
            if (fork() == 0) for (;;) pause();
        write(ready[1], "x", 1);
        for (;;) pause();
    }
    need(read(ready[0], block, 1) == 1, "ready");
    for (unsigned i = 0; i < sizeof block; i++) block[i] = "\003\034\032"[i % 3];
    for (int round = 0; round < 10; round++) need(write(master, block, 16384) == 16384, "signals");
    kill(leader, SIGKILL);
}

// Sessions, groups and hang-ups in any order.
static void sessions(void) {
    signal(SIGTTOU, SIG_IGN);
    for (int round = 0; round < 200; round++) {
        int master = new_master(), pids[4];
        for (int i = 0; i < 4; i++) {
            if ((pids[i] = fork())) continue;
            seed = (unsigned)(round * 4 + i);
            if (random_number() % 2) setsid();
            int slave = new_slave(master);
            for (int j = 0; j < 10; j++) {
                int group = random_number() % 2 ? getpid() : (int)random_number() % 100;
                char c;
                switch (random_number() % 8) {
                    case 0: ioctl(slave, TIOCSCTTY, random_number() % 2); break;
                    case 1: ioctl(slave, TIOCSPGRP, &group); break;
                    case 2: setpgid(0, 0); break;
                    case 3: ioctl(slave, TIOCNOTTY); break;
                    case 4: write(master, "\003\034\032", random_number() % 2); break;
                    case 5: read(slave, &c, 1); break;
                    case 6: sched_yield(); break;
                    case 7: if (random_number() % 2) close(master); else open("/dev/tty", O_RDWR); break;
                }
            }
            _exit(0);
        }
        close(master);
        for (int i = 0; i < 4; i++) {
            kill(pids[i], SIGCONT);
            int status;
            while (waitpid(pids[i], &status, WUNTRACED) == pids[i] && WIFSTOPPED(status)) kill(pids[i], SIGKILL);
        }
    }
}

int main(int argc, char **argv) {
    need(argc == 2, "arguments");
    if (!strcmp(argv[1], "garbage")) garbage();
    else if (!strcmp(argv[1], "loop")) loop();
    else if (!strcmp(argv[1], "lines")) lines();
    else if (!strcmp(argv[1], "again")) again();
    else if (!strcmp(argv[1], "stopped")) stopped();
    else if (!strcmp(argv[1], "signals")) signals();
    else if (!strcmp(argv[1], "sessions")) sessions();
    else need(0, "what?");
    // All of it has been given back.
    for (int i = 0; i < 100; i++) {
        int master = new_master(), number = -1;
        need(ioctl(master, TIOCGPTN, &number) == 0 && number < 4, "numbers are used again");
        close(master);
    }
    printf("done\n");
    fflush(stdout);
    _exit(0);
}
