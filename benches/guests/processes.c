// What processes cost: processes WHAT [ROUNDS]
//
//   fork        a child that ends at once, waited for
//   heap        the same with 100 MiB of heap
//   vfork-exec  a child that executes /bin/true, by vfork
//   fork-exec   the same by fork
//   pipe        a byte to a child and another one back: two hand-overs
//   switch      a byte round a ring of 64 processes, each hand-over
#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

enum { HEAP_BYTES = 100 << 20, RING = 64, TURNS = 20 };

extern char **environ;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void wait_for(pid_t child)
{
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status)
        fail("child");
}

static void by_fork(void)
{
    pid_t child = fork();
    if (!child)
        _exit(0);
    wait_for(child);
}

static void execute(pid_t child)
{
    static char *const argv[] = {"true", NULL};
    if (!child) {
        execve("/bin/true", argv, environ);
        _exit(127);
    }
    wait_for(child);
}

static void by_vfork_exec(void) { execute(vfork()); }

static void by_fork_exec(void) { execute(fork()); }

// Passes each byte on, until there are no more.
static void pass_on(int from, int to)
{
    char byte;
    while (read(from, &byte, 1) == 1)
        if (write(to, &byte, 1) != 1)
            break;
    _exit(0);
}

static int ring_in, ring_out;

// A ring of this process and others: what goes into `ring_out` comes out of `ring_in`.
static void make_ring(int others)
{
    int ends[2];
    if (pipe(ends))
        fail("pipe");
    ring_out = ends[1];
    int from = ends[0];
    for (int number = 0; number < others; number++) {
        if (pipe(ends))
            fail("pipe");
        pid_t child = fork();
        if (!child) {
            close(ring_out);
            close(ends[0]);
            pass_on(from, ends[1]);
        }
        close(from);
        close(ends[1]);
        from = ends[0];
    }
    ring_in = from;
}

static void round_once(void)
{
    char byte = 'x';
    for (int turn = 0; turn < TURNS; turn++)
        if (write(ring_out, &byte, 1) != 1 || read(ring_in, &byte, 1) != 1)
            fail("ring");
}

struct kind {
    const char *name;
    void (*once)(void);
    int others; // in the ring
    double operations;
};

static const struct kind kinds[] = {
    {"fork", by_fork, 0, 1},
    {"heap", by_fork, 0, 1},
    {"vfork-exec", by_vfork_exec, 0, 1},
    {"fork-exec", by_fork_exec, 0, 1},
    {"pipe", round_once, 1, 2 * TURNS},
    {"switch", round_once, RING - 1, RING * TURNS},
};

int main(int argc, char **argv)
{
    static struct batches batches;
    const struct kind *kind = NULL;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (argc > 1 && !strcmp(argv[1], kinds[i].name))
            kind = &kinds[i];
    if (!kind) {
        fprintf(stderr, "usage: processes fork|heap|vfork-exec|fork-exec|pipe|switch [ROUNDS]\n");
        return 2;
    }
    if (!strcmp(kind->name, "heap")) {
        char *heap = malloc(HEAP_BYTES);
        if (!heap)
            fail("malloc");
        memset(heap, 1, HEAP_BYTES);
        KEEP(heap);
    }
    if (kind->others)
        make_ring(kind->others);
    long rounds = count_arg(argc, argv, 2, 100);
    for (long round = 0; round < rounds; round++) {
        double start = now_ns();
        kind->once();
        add(&batches, now_ns() - start);
    }
    report("operation_ns", undisturbed(&batches) / kind->operations);
    report("operations", (double)rounds * kind->operations);
    return 0;
}
