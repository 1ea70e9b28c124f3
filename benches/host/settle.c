// settle MIB: touches and gives back as much memory, in huge pages and in small ones.
// A virtual machine's free pages may have been handed back to its own host (free page reporting),
// and then cost some ten times more at their first touch, whoever touches them.
#define _GNU_SOURCE
#include "../guests/bench.h"
#include <string.h>
#include <sys/mman.h>

int main(int argc, char **argv)
{
    size_t len_bytes = (size_t)count_arg(argc, argv, 1, 512) << 20;
    for (int round = 0; round < 2; round++) {
        char *memory = mmap(NULL, len_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            perror("mmap");
            return 1;
        }
        madvise(memory, len_bytes, round ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
        for (size_t at = 0; at < len_bytes; at += 4096)
            ((volatile char *)memory)[at] = 1;
        munmap(memory, len_bytes);
    }
    return 0;
}
