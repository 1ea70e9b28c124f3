// What the standard streams are.
#include "guest.h"
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>

int main(void) {
    for (int fd = 0; fd < 4; fd++) {
        struct stat st;
        errno = 0;
        int tty = isatty(fd);
        printf("fd %d isatty %d %s", fd, tty, errno_name(errno));
        if (fstat(fd, &st)) printf(" fstat %s\n", errno_name(errno));
        else {
            int fl = fcntl(fd, F_GETFL);
            printf(" mode %o accmode %d append %d nonblock %d cloexec %d\n", st.st_mode & S_IFMT, fl & O_ACCMODE,
                   !!(fl & O_APPEND), !!(fl & O_NONBLOCK), fcntl(fd, F_GETFD));
        }
    }
    struct winsize ws;
    errno = 0;
    if (ioctl(1, TIOCGWINSZ, &ws)) printf("winsize %s\n", errno_name(errno));
    else printf("winsize %d x %d\n", ws.ws_row, ws.ws_col);
    struct termios t;
    errno = 0;
    if (tcgetattr(0, &t)) printf("termios %s\n", errno_name(errno));
    else printf("termios icanon %d echo %d\n", !!(t.c_lflag & ICANON), !!(t.c_lflag & ECHO));
    errno = 0;
    printf("lseek %d %s\n", (int)lseek(0, 0, SEEK_CUR), errno_name(errno));
    return 0;
}
