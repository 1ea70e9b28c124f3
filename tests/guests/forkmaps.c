// Mappings that exist when the program is frozen: a file, memory files seen twice, 2 MiB pages. Each
// request changes some and says what every one of them shows.
#include "service.h"
#include <sys/mman.h>

#define PAGE 4096
#define HUGE (2 << 20)

static char *shared, *first, *second, *private_view, *file, *code, *large;
static int memory;

static void *map(size_t len, int prot, int flags, int fd) {
    void *at = mmap(NULL, len, prot, flags, fd, 0);
    need(at != MAP_FAILED, "mmap");
    return at;
}

static void look(void) {
    char read_back[2] = {'?', '?'};
    pread(memory, read_back, 1, 0);
    pread(memory, read_back + 1, 1, PAGE);
    say("shared %c %c, file %02x %02x, code %02x, ", shared[0], shared[3 * PAGE], file[0] & 255, file[PAGE] & 255, code[0] & 255);
    say("memory %c%c %c%c %02x %c%c, ", first[0], first[PAGE], second[0], second[PAGE], first[200] & 255, read_back[0], read_back[1]);
    say("private %c%c, large %c %c %c\n", private_view[0], private_view[PAGE], large[0], large[HUGE], large[5 * HUGE - 1]);
}

static void answer(void) {
    const char *text = request_text;
    look();
    if (!strcmp(text, "shared")) {
        shared[0] = '1';
        shared[3 * PAGE] = '2';
    } else if (!strcmp(text, "store")) {
        first[0] = '3';
        look();
        second[PAGE] = '4';
    } else if (!strcmp(text, "pwrite")) {
        pwrite(memory, "5", 1, 0);
        look();
        private_view[0] = '6';
        pwrite(memory, "78", 2, 0);
        look();
        pwrite(memory, "9", 1, PAGE);
    } else if (!strcmp(text, "truncate")) {
        ftruncate(memory, 100);
        ftruncate(memory, 2 * PAGE);
    } else if (!strcmp(text, "hole")) {
        fallocate(memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100, PAGE);
        look();
        fallocate(memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE);
    } else if (!strcmp(text, "remove")) {
        say("%d\n", madvise(second, 2 * PAGE, MADV_REMOVE));
        look();
        first[PAGE] = 'r';
    } else if (!strcmp(text, "multiply")) {
        // One page of a memory file, copied for each of many mappings. A mapping may be what no longer
        // fits: pages of our own are written then, and one of them does not fit either.
        volatile char *copy = NULL;
        for (int i = 0; i < 20000 && copy != MAP_FAILED; i++) {
            copy = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, memory, 0);
            if (copy != MAP_FAILED)
                copy[0] = copy[1];
        }
        for (int i = 0; i < 5 * HUGE && copy == MAP_FAILED; i += PAGE)
            large[i] = 'm';
    } else if (!strcmp(text, "remap")) {
        char *moved = mremap(second, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, map(2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
        need(moved != MAP_FAILED, "mremap");
        moved[0] = 'v';
        say("%c%c ", first[0], private_view[0]);
        second = mmap(second, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED, memory, 0);
        need(second != MAP_FAILED, "mmap");
        second[PAGE] = 'w';
        say("%c%c\n", moved[PAGE], private_view[PAGE]);
    } else if (!strcmp(text, "drop")) {
        say("%d", madvise(file, 2 * PAGE, MADV_DONTNEED));
        say("%d", madvise(private_view, 2 * PAGE, MADV_DONTNEED));
        say("%d\n", madvise(large + HUGE, HUGE, MADV_DONTNEED));
        large[HUGE] = 'n';
        look();
        file[0] = 'Y';
    } else if (!strcmp(text, "write")) {
        file[0] = 'Z';
        file[PAGE] = 'z';
        large[0] = 'a';
        large[HUGE] = 'b';
        large[5 * HUGE - 1] = 'c';
    } else if (!strcmp(text, "protect")) {
        say("%d", mprotect(code, PAGE, PROT_READ | PROT_WRITE));
        code[0] = 'C';
        say("%d\n", mprotect(file, 2 * PAGE, PROT_READ));
    } else if (!strcmp(text, "move")) {
        char *moved = mremap(large + HUGE, HUGE, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, map(HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
        need(moved != MAP_FAILED, "mremap");
        moved[0] = 'm';
        say("%c %c\n", moved[0], moved[HUGE - 1]);
        mmap(large + HUGE, HUGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        large[HUGE] = 'f';
        munmap(file, PAGE);
        mmap(file, PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    look();
}

int main(int argc, char **argv) {
    need(argc > 1, "a file to map");
    int fd = open(argv[1], O_RDONLY);
    need(fd >= 0, "open");
    shared = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    memory = memfd_create("forkmaps", 0);
    need(memory >= 0 && ftruncate(memory, 2 * PAGE) == 0, "memfd");
    first = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory);
    second = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory);
    private_view = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, memory);
    file = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
    code = map(2 * PAGE, PROT_READ, MAP_PRIVATE, fd);
    large = map(5 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    memset(large, 'l', 5 * HUGE);
    shared[0] = shared[3 * PAGE] = 's';
    memset(first, 'f', 2 * PAGE);
    private_view[PAGE] = 'p';
    file[0] = 'X';
    for (;;) {
        next_request();
        answer();
        send_answer();
    }
}
