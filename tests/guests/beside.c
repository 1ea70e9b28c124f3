// Two processes hand a byte to and fro by pipes, beside one that computes: beside ROUNDS. Neither waits for the other
// for long.
#include "guest.h"
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

static atomic_long *spins;

static pid_t start(void (*work)(int in, int out), int in, int out) {
    pid_t child = fork();
    need(child >= 0, "fork");
    if (child == 0) {
        work(in, out);
        _exit(0);
    }
    return child;
}

static void compute(int in, int out) {
    (void)in, (void)out;
    for (;;) atomic_fetch_add(spins, 1);
}

static void answer(int in, int out) {
    char byte;
    while (read(in, &byte, 1) == 1 && write(out, &byte, 1) == 1) {}
}

int main(int argc, char **argv) {
    long rounds = argc > 1 ? atol(argv[1]) : 100;
    int there[2], back[2];
    spins = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    need(spins != MAP_FAILED && pipe(there) == 0 && pipe(back) == 0, "memory and pipes");
    pid_t other = start(answer, there[0], back[1]), busy = start(compute, -1, -1);
    while (atomic_load(spins) == 0) pause_ms(1);
    long done = 0;
    for (int half = 1; half <= 2; half++) {
        long before = atomic_load(spins);
        // The one that computes has its turns too.
        while (done < rounds / 2 * half || atomic_load(spins) == before) {
            char byte = 'x';
            need(write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1, "a hand-over");
            done++;
        }
    }
    CHECK(done >= rounds / 2 * 2);
    kill(busy, SIGKILL);
    kill(other, SIGKILL);
    while (wait(NULL) > 0) {}
    return 0;
}
