// Uses its terminal from the background: jobcontrol read|write|set|ignore.
#include "guest.h"
#include <signal.h>
#include <termios.h>

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    char c = 0;
    struct termios t;
    if (!strcmp(mode, "read")) return read(0, &c, 1) == 1 && c == 'x' ? 0 : 5;
    if (!strcmp(mode, "write")) return write(1, "written\n", 8) == 8 ? 0 : 5;
    if (!strcmp(mode, "set")) return tcgetattr(0, &t) || tcsetattr(0, TCSANOW, &t) ? 5 : 0;
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
