/* Children that see each page as it was at their fork, one after another.
 * forkmarks [CHILDREN] [PAGES]: with so many pages more, which each child copies, none leaves its tables to the next. */
#include <sys/mman.h>
#include <sys/wait.h>

#include "guest.h"

#define PAGE 4096UL
#define SPAN (2UL << 20) /* of one page table */
#define TABLES 6
#define PAGES_EACH 8
#define PAGES (TABLES * PAGES_EACH)

static char *area;

static volatile long *mark(long page) {
    return (volatile long *)(area + page / PAGES_EACH * SPAN + page % PAGES_EACH * PAGE);
}

static void write_marks(long first) {
    for (long page = 0; page < PAGES; page++) *mark(page) = first + page;
}

static long wrong_marks(long first) {
    long wrong = 0;
    for (long page = 0; page < PAGES; page++) wrong += *mark(page) != first + page;
    return wrong;
}

/* Some pages below the marks, another number each time: the marks of no child lie where those of the last did. */
static void shift(long child) {
    char *below = area + PAGES_EACH * PAGE;
    madvise(below, SPAN - PAGES_EACH * PAGE, MADV_DONTNEED);
    for (long page = 0; page < child % 7; page++) below[(1 + page) * 32 * PAGE] = 1;
}

int main(int argc, char **argv) {
    long children = argc > 1 ? atol(argv[1]) : 10;
    size_t more = argc > 2 ? (size_t)atol(argv[2]) * PAGE : 0;
    if (more) {
        char *ballast = mmap(NULL, more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (ballast == MAP_FAILED || madvise(ballast, more, MADV_NOHUGEPAGE)) return 1;
        memset(ballast, 1, more);
    }
    long stale = 0, killed = 0;
    char *all = mmap(NULL, (TABLES + 1) * SPAN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return 1;
    area = (char *)(((uintptr_t)all + SPAN - 1) & ~(SPAN - 1));
    if (madvise(all, (TABLES + 1) * SPAN, MADV_NOHUGEPAGE)) return 1;
    for (long child = 1; child <= children; child++) {
        int status;
        shift(child);
        write_marks(child * PAGES);
        pid_t pid = fork();
        if (pid == -1) return 1;
        if (pid == 0) {
            long wrong = wrong_marks(child * PAGES);
            write_marks(-child * PAGES);
            wrong += wrong_marks(-child * PAGES);
            _exit(wrong);
        }
        if (waitpid(pid, &status, 0) != pid) return 1;
        if (WIFEXITED(status)) stale += WEXITSTATUS(status);
        else killed++;
        stale += wrong_marks(child * PAGES);
    }
    printf("%ld children, %ld stale, %ld killed\n", children, stale, killed);
    return 0;
}
