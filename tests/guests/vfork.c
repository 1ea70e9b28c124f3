// Parents that wait in vfork(2), and what becomes of them meanwhile.
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "guest.h"

#define NEED(cond) \
    do { \
        errno = 0; \
        if (!(cond)) { \
            printf("FAIL %s:%d: %s (%s)\n", __FILE__, __LINE__, #cond, errno_name(errno)); \
            fflush(stdout); \
        } \
    } while (0)

static const char *self;

static void pause_ms(int ms) {
    struct timespec time = {.tv_nsec = ms * 1000000L};
    nanosleep(&time, 0);
}

static void say(const char *what, pid_t child) {
    int status = 0;
    pid_t got;
    do got = waitpid(child, &status, 0); while (got < 0 && errno == EINTR);
    if (got != child) printf("%s: %s\n", what, errno_name(errno));
    else if (WIFSIGNALED(status)) printf("%s: killed by %d\n", what, WTERMSIG(status));
    else printf("%s: exited %d\n", what, WEXITSTATUS(status));
    fflush(stdout);
}

static void *replace(void *unused) {
    pause_ms(100);
    execl(self, self, "replaced", (char *)0);
    return unused;
}

// Another thread executes a program, which gets the waiting thread's id. The end of the child is not its business.
static void replaced_while_waiting(void) {
    pid_t parent = fork();
    if (!parent) {
        pthread_t thread;
        NEED(pthread_create(&thread, 0, replace, 0) == 0);
        pid_t child = vfork();
        if (!child) {
            pause_ms(500);
            _exit(0);
        }
        _exit(9);
    }
    say("replaced", parent);
}

static int replaced(void) {
    int ends[2];
    char byte = 0;
    NEED(pipe(ends) == 0);
    if (!fork()) {
        pause_ms(900);
        NEED(write(ends[1], "x", 1) == 1);
        _exit(0);
    }
    ssize_t got = read(ends[0], &byte, 1);
    return got == 1 && byte == 'x' ? 4 : 5;
}

int main(int argc, char **argv) {
    self = argv[0];
    if (argc > 1) return replaced();
    replaced_while_waiting();
    return 0;
}
