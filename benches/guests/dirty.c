// dirty [--fork]: a warmed program that answers messages. A request is four 32-bit words, the verb,
// a first page, a count of pages and a seed, and its answer what the program has left behind in them.
//   ECHO    touches nothing
//   DIRTY   writes one word, at a place that depends on the seed, in each of those pages of its heap
//   RESTORE does so too, and then writes what was there before, as reference counts go up and down
// Natively, messages are read from standard input and written to standard output (kvmlet.h); with
// --fork each is answered by a child process of its own, which is what a server without VMs can do
// to give every request clean memory.
#include "bench.h"
#include <errno.h>
#include <kvmlet.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HEAP_PAGES = 8192, PAGE_WORDS = 512 };
enum { ECHO, DIRTY, RESTORE };

struct request {
    uint32_t verb, first, count, seed;
};

static uint64_t (*heap)[PAGE_WORDS];

static void warm_up(void)
{
    heap = aligned_alloc(4096, HEAP_PAGES * sizeof *heap);
    if (!heap)
        exit(1);
    for (size_t page = 0; page < HEAP_PAGES; page++)
        for (size_t word = 0; word < PAGE_WORDS; word++)
            heap[page][word] = page ^ word << 16;
}

// The sum of what the words were found to be, less what the warmed ones are: 0 in a clean program.
static uint64_t dirty(uint32_t first, uint32_t count, uint32_t seed, int restores)
{
    uint64_t left_behind = 0;
    for (size_t i = 0; i < count; i++) {
        size_t page = (first + i) % HEAP_PAGES;
        size_t word = (page * 0x9e3779b1u + seed) >> 7 & (PAGE_WORDS - 1);
        left_behind += heap[page][word] - (page ^ word << 16);
        volatile uint64_t *written = &heap[page][word];
        *written += 1;
        if (restores)
            *written -= 1;
    }
    return left_behind;
}

static uint64_t answer(const struct request *request)
{
    if (request->verb == ECHO)
        return request->seed;
    return dirty(request->first, request->count, request->seed, request->verb == RESTORE);
}

// Called by name.
__attribute__((used, noinline)) int64_t add_one(int64_t number)
{
    return number + 1;
}

static void send_answer(uint64_t value)
{
    if (kvmlet_send(&value, sizeof value) < 0)
        _exit(1);
}

static void answer_in_child(const struct request *request)
{
    pid_t child = fork();
    if (child < 0)
        exit(1);
    if (!child) {
        send_answer(answer(request));
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

int main(int argc, char **argv)
{
    int forks = argc > 1 && !strcmp(argv[1], "--fork");
    struct request request;
    warm_up();
    for (;;) {
        ssize_t len_bytes = kvmlet_receive(&request, sizeof request);
        if (len_bytes < 0 && errno == ENODATA)
            return 0;
        if (len_bytes != sizeof request)
            return 1;
        if (forks)
            answer_in_child(&request);
        else
            send_answer(answer(&request));
    }
}
