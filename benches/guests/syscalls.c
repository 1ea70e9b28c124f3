// syscalls KIND [BATCHES]: nanoseconds per call of one kind, and how many were made.
//
// A batch has as many calls as take about half a millisecond by the way that calls take now: that
// is some ten where each leaves a VM, and some thousand where none does.
#define _GNU_SOURCE
#include "bench.h"
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BLOCK_LEN = 4096, BATCH_NS = 500000, LEAST_CALLS = 8, MOST_CALLS = 4096, CALIBRATIONS = 40 };

static struct batches batches;
static int file, reader, writer;
static char block[BLOCK_LEN], drain[1 << 16];

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void identity(long calls)
{
    for (long i = 0; i < calls; i++)
        syscall(SYS_getpgrp);
}

static void parent(long calls)
{
    for (long i = 0; i < calls; i++)
        syscall(SYS_getppid);
}

static void read_block(long calls)
{
    for (long i = 0; i < calls; i++)
        if (pread(file, block, BLOCK_LEN, 0) != BLOCK_LEN)
            fail("pread");
}

static void status(long calls)
{
    struct stat found;
    for (long i = 0; i < calls; i++)
        if (fstat(file, &found))
            fail("fstat");
}

// Two calls a turn.
static void open_close(long calls)
{
    for (long i = 0; i < calls; i += 2) {
        int opened = openat(AT_FDCWD, "syscalls", O_RDONLY);
        if (opened < 0 || close(opened))
            fail("openat, close");
    }
}

// The pipe holds a batch and more.
static void write_pipe(long calls)
{
    for (long i = 0; i < calls; i++)
        if (write(writer, block, 1) != 1)
            fail("write");
}

static void nothing(void)
{
}

static void drain_pipe(void)
{
    if (read(reader, drain, sizeof drain) < 1)
        fail("read");
}

static const struct kind {
    const char *name;
    void (*calls)(long calls);
    void (*after)(void); // not timed
} kinds[] = {
    {"getpgrp", identity, nothing}, {"getppid", parent, nothing},     {"pread", read_block, nothing},
    {"fstat", status, nothing},     {"open", open_close, nothing},    {"pipe", write_pipe, drain_pipe},
};

static double batch_ns(const struct kind *kind, long calls)
{
    double start = now_ns();
    kind->calls(calls);
    double took = now_ns() - start;
    kind->after();
    return took;
}

int main(int argc, char **argv)
{
    const struct kind *kind = NULL;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (argc > 1 && !strcmp(argv[1], kinds[i].name))
            kind = &kinds[i];
    int ends[2];
    if (!kind) {
        fprintf(stderr, "usage: syscalls getpgrp|getppid|pread|fstat|open|pipe [BATCHES]\n");
        return 2;
    }
    if ((file = open("syscalls", O_RDONLY)) < 0 || pipe(ends))
        fail("set-up");
    reader = ends[0];
    writer = ends[1];

    // The way that calls take may change once it is seen that there are many of them.
    double made = 0;
    long calls = LEAST_CALLS;
    for (int i = 0; i < CALIBRATIONS; i++) {
        double took = batch_ns(kind, calls);
        made += (double)calls;
        calls = (long)((double)calls * BATCH_NS / (took > 1 ? took : 1)) & ~1L;
        calls = calls < LEAST_CALLS ? LEAST_CALLS : calls > MOST_CALLS ? MOST_CALLS : calls;
    }
    long rounds = count_arg(argc, argv, 2, 100);
    for (long round = 0; round < rounds; round++) {
        add(&batches, batch_ns(kind, calls));
        made += (double)calls;
    }
    report("call_ns", undisturbed(&batches) / (double)calls);
    report("calls", made);
    return 0;
}
