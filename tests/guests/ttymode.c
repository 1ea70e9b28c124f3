// Changes the settings of the terminal on descriptor 0, says so, then: ttymode end WAY | min MIN TIME.
//
// end exit|kill|sleep  leaves them changed, and ends or waits.
// min MIN TIME         reads four times with VMIN and VTIME, and shows what each read gave. Each read but one
//                      without both is announced, so that bytes can be typed meanwhile.
#include "guest.h"
#include <signal.h>
#include <termios.h>

static void set(int min, int time) {
    struct termios t;
    need(tcgetattr(0, &t) == 0, "tcgetattr");
    t.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    t.c_oflag &= ~(tcflag_t)OPOST;
    t.c_cc[VMIN] = (cc_t)min;
    t.c_cc[VTIME] = (cc_t)time;
    need(tcsetattr(0, TCSAFLUSH, &t) == 0, "tcsetattr");
}

static void say(const char *text) { need(write(1, text, strlen(text)) > 0, "write"); }

int main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "end")) {
        set(1, 0);
        say("ready\n");
        if (!strcmp(argv[2], "kill")) raise(SIGKILL);
        if (!strcmp(argv[2], "sleep")) sleep(1000);
        return 3;
    }
    if (argc < 4) return 2;
    int min = atoi(argv[2]), time = atoi(argv[3]);
    set(min, time);
    for (int i = 0; i < 4; i++) {
        char buf[8], line[64];
        ssize_t n;
        say("ready\n");
        // Without both a read never waits: the later ones are made until something has been typed.
        do {
            n = read(0, buf, i == 3 ? 2 : sizeof buf);
        } while (n == 0 && i > 0 && !min && !time);
        snprintf(line, sizeof line, "read %zd %.*s %s\n", n, n > 0 ? (int)n : 0, buf, n < 0 ? errno_name(errno) : "");
        say(line);
    }
    return 0;
}
