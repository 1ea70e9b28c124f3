// A byte goes round a ring of 64 processes, from pipe to pipe.
// ring [ROUNDS]
#include <sys/wait.h>

#include "guest.h"

enum { PROCESSES = 64 };

// Adds one to each byte, until there are no more.
static void pass_on(int from, int to) {
    unsigned char byte;
    while (read(from, &byte, 1) == 1) {
        byte++;
        if (write(to, &byte, 1) != 1) break;
    }
    _exit(0);
}

int main(int argc, char **argv) {
    long rounds = argc > 1 ? atol(argv[1]) : 10;
    int ends[2];
    if (pipe(ends)) return 1;
    int out = ends[1], from = ends[0];
    for (int number = 1; number < PROCESSES; number++) {
        if (pipe(ends)) return 1;
        pid_t child = fork();
        if (child == -1) return 1;
        if (child == 0) {
            close(out);
            close(ends[0]);
            pass_on(from, ends[1]);
        }
        close(from);
        close(ends[1]);
        from = ends[0];
    }
    unsigned char byte = 0;
    for (long round = 0; round < rounds; round++) {
        if (write(out, &byte, 1) != 1 || read(from, &byte, 1) != 1) return 1;
        byte++;
    }
    close(out);
    int ended = 0, status;
    while (wait(&status) > 0) ended += status == 0;
    printf("%ld rounds, %d at the end, %d ended\n", rounds, byte, ended);
    return 0;
}
