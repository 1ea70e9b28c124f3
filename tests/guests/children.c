// Children that end at once, one after another.
// children [COUNT]
#include <sys/wait.h>

#include "guest.h"

int main(int argc, char **argv) {
    long count = argc > 1 ? atol(argv[1]) : 10, well = 0;
    for (long number = 0; number < count; number++) {
        int status;
        pid_t child = fork();
        if (child == -1) return 1;
        if (child == 0) _exit(number % 100);
        if (waitpid(child, &status, 0) != child) return 1;
        well += WIFEXITED(status) && WEXITSTATUS(status) == number % 100;
    }
    printf("%ld of %ld children\n", well, count);
    return 0;
}
