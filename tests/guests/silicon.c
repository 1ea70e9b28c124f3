// A warmed program for `make bench-silicon`: it writes pages of its heap and makes calls, asked by message or by a
// call of its functions by name.
#include <kvmlet.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { HEAP_PAGES = 1024, PAGE_WORDS = 512 };

static volatile uint64_t (*heap)[PAGE_WORDS];

// Writes a word in each of `count` pages; the sum of what was there.
__attribute__((used, noinline)) long write_pages(long first, long count) {
    uint64_t sum = 0;
    for (long page = first; page < first + count && page < HEAP_PAGES; page++) {
        sum += heap[page][page & (PAGE_WORDS - 1)];
        heap[page][page & (PAGE_WORDS - 1)] = sum + 1;
    }
    return (long)sum;
}

// Makes a call that leaves the VM so many times.
__attribute__((used, noinline)) long call_host(long count) {
    long last = 0;
    for (long i = 0; i < count; i++) last = syscall(SYS_getpgrp);
    return last;
}

int main(void) {
    heap = aligned_alloc(4096, HEAP_PAGES * sizeof *heap);
    if (!heap) return 1;
    for (long page = 0; page < HEAP_PAGES; page++) heap[page][page & (PAGE_WORDS - 1)] = 1;
    long asked[2];
    while (kvmlet_receive(asked, sizeof asked) == sizeof asked) {
        long answer = write_pages(asked[0], asked[1]);
        if (kvmlet_send(&answer, sizeof answer) < 0) return 1;
    }
    return 0;
}
