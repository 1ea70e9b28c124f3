// A program that is frozen with a terminal that has unread bytes: "type TEXT", "write TEXT", "shown", "read", "number".
#include "service.h"
#include <pty.h>
#include <termios.h>

int main(void) {
    int master, slave;
    char buf[256];
    struct winsize size = {.ws_row = 20, .ws_col = 50};
    need(openpty(&master, &slave, NULL, NULL, &size) == 0, "openpty");
    fcntl(master, F_SETFL, O_NONBLOCK);
    fcntl(slave, F_SETFL, O_NONBLOCK);
    need(write(master, "kept\nopen", 9) == 9 && write(slave, "out\n", 4) == 4, "write");
    pause_ms(20);
    for (;;) {
        next_request();
        if (!strncmp(request_text, "type ", 5)) {
            say("%zd", write(master, request_text + 5, request_len - 5));
            pause_ms(20);
        } else if (!strncmp(request_text, "write ", 6)) {
            say("%zd", write(slave, request_text + 6, request_len - 6));
            pause_ms(20);
        } else if (!strcmp(request_text, "number")) {
            int one, other;
            need(openpty(&one, &other, buf, NULL, NULL) == 0, "openpty");
            say("%s", strcmp(buf, ttyname(slave)) ? "another" : "the same");
        } else {
            ssize_t count = read(!strcmp(request_text, "shown") ? master : slave, buf, sizeof buf);
            struct winsize now;
            ioctl(slave, TIOCGWINSZ, &now);
            say("%zd %d ", count, now.ws_row);
            if (count > 0) say_bytes(buf, (size_t)count);
            now.ws_row++;
            ioctl(slave, TIOCSWINSZ, &now);
        }
        send_answer();
    }
}
