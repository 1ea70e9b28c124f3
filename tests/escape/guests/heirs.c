// A program whose children put a secret wherever a child can and end, and whose next children look for it.
//
//   end, kill, execute, grow SEED   a child plants the secret derived from SEED, and ends so; `grow`: it was large
//   find MASKED                     this process and two children of it, one after the other, look for it
//
// This process never has the secret. A child that ends leaves its frames and tables, and an address space that is kept
// for the next fork; terminals and pipes that it had are gone.
#define REQUEST_MAX (4 << 10)
#define ANSWER_MAX (64 << 10)
#include "../../guests/service.h"

#include "needles.h"
#include <sys/shm.h>
#include <sys/wait.h>
#include <termios.h>

#define PAGE 4096
#define PAGES 40
#define LARGE (8 << 20)
#define DEEP (20 * PAGE)

// Pages that this process never has, has had since before it was frozen, and writes before each fork.
static char unused[PAGES * PAGE] __attribute__((aligned(PAGE)));
static char frozen[PAGES * PAGE] __attribute__((aligned(PAGE)));
static char written[PAGES * PAGE] __attribute__((aligned(PAGE)));

static char *new_memory(size_t len) {
    char *memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(memory != MAP_FAILED, "mmap");
    return memory;
}

static void put(int fd) {
    char block[1024];
    fill(block, sizeof block);
    write(fd, block, sizeof block);
}

// The secret in each queue of a terminal: typed and not read, half of a line, written and not shown, echoed.
static void plant_in_terminal(void) {
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);
    need(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0, "ptmx");
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_NONBLOCK);
    need(slave >= 0, "TIOCGPTPEER");
    for (int turn = 0; turn < 20; turn++) {
        need(write(master, secret.text, 16) == 16, "typed");
        if (turn % 2) write(master, "\n", 1);
        need(write(slave, secret.text, 16) == 16, "shown");
    }
    struct termios raw;
    tcgetattr(slave, &raw);
    cfmakeraw(&raw);
    tcsetattr(slave, TCSANOW, &raw);
    put(master);
    put(slave);
}

// Reads what a terminal has: nothing but the one line that has been typed.
static void find_in_terminal(void) {
    char text[4096] = "";
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);
    need(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0, "ptmx");
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_NONBLOCK);
    need(slave >= 0, "TIOCGPTPEER");
    if (read(master, text, sizeof text) >= 0 && found++ < 20) say("the master has %s\n", text);
    if (read(slave, text, sizeof text) >= 0 && found++ < 20) say("the slave has %s\n", text);
    write(master, "x\n", 2);
    ssize_t len = read(slave, text, sizeof text);
    if ((len != 2 || memcmp(text, "x\n", 2) != 0) && found++ < 20) say("the slave reads %.*s\n", len > 0 ? (int)len : 0, text);
    len = read(master, text, sizeof text);
    if ((len != 3 || memcmp(text, "x\r\n", 3) != 0) && found++ < 20) say("the echo is %.*s\n", len > 0 ? (int)len : 0, text);
    close(slave);
    close(master);
}

static void plant(int is_large) {
    prctl(PR_SET_NAME, secret.text);
    fill(unused, sizeof unused);
    fill(frozen, sizeof frozen);
    fill(written, sizeof written);
    fill_stack(4);
    for (int i = 0; i < 16; i++) {
        char *kept = malloc((size_t)i * 700 + 64), *freed = malloc((size_t)i * 900 + 64);
        fill(kept, (size_t)i * 700 + 64);
        fill(freed, (size_t)i * 900 + 64);
        free(freed);
    }
    fill(sbrk(8 * PAGE), 8 * PAGE);
    fill(new_memory(PAGES * PAGE), PAGES * PAGE);
    char *gone = new_memory(PAGES * PAGE), *hidden = new_memory(PAGES * PAGE);
    fill(gone, PAGES * PAGE);
    munmap(gone, PAGES * PAGE);
    fill(hidden, PAGES * PAGE);
    mprotect(hidden, PAGES * PAGE, PROT_NONE);
    fill(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 4 * PAGE);
    if (is_large) fill(new_memory(LARGE), LARGE);
    mprotect(spare_code, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    fill(spare_code, PAGE);
    int segment = shmget(IPC_PRIVATE, 4 * PAGE, IPC_CREAT | 0600);
    char *attached = shmat(segment, NULL, 0);
    need(attached != (void *)-1, "shmat");
    fill(attached, 4 * PAGE);
    shmctl(segment, IPC_RMID, NULL);
    put(memfd_create(secret.text, 0));
    int ends[2];
    if (pipe(ends) == 0) put(ends[1]);
    plant_in_terminal();
    // A child of this one, with what it has, ends first.
    pid_t child = fork();
    if (!child) {
        fill(new_memory(PAGES * PAGE), PAGES * PAGE);
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

static void plant_in_child(const char *how, const char *seed_text) {
    uint64_t seed = strtoull(seed_text, NULL, 16);
    memset(request_text, 0, sizeof request_text);
    memset(written, 1, sizeof written);
    int is_execute = !strcmp(how, "execute"), is_kill = !strcmp(how, "kill"), is_grow = !strcmp(how, "grow");
    int ready[2];
    need(pipe(ready) == 0, "pipe");
    pid_t child = fork();
    if (!child) {
        make_secret(seed);
        plant(is_grow);
        if (is_execute) execl("/proc/self/exe", "heirs", "child", NULL);
        write(ready[1], "x", 1);
        while (is_kill) pause();
        _exit(0);
    }
    close(ready[1]);
    char byte;
    ssize_t told = read(ready[0], &byte, 1);
    close(ready[0]);
    if (is_kill) kill(child, SIGKILL);
    int status = -1;
    waitpid(child, &status, 0);
    int expected = is_kill ? SIGKILL : 0;
    say(told == !is_execute && status == expected ? "planted" : "not planted: %zd, %#x", told, status);
}

// Stack that this function has not written.
static __attribute__((noinline)) void search_stack(void) {
    char deep[DEEP];
    __asm__ volatile("" : : "r"(deep) : "memory");
    search("stack", (unsigned char *)deep, sizeof deep);
}

static void look(void) {
    search_memory();
    search_stack();
    // All that a process can add to its memory is zero, wherever it was before.
    is_zero("unused pages", unused, sizeof unused);
    is_zero("grown break", sbrk(8 * PAGE), 8 * PAGE);
    for (int turn = 0; turn < 3; turn++) is_zero("new memory", new_memory(PAGES * PAGE), PAGES * PAGE);
    is_zero("new memory", new_memory(LARGE), LARGE);
    int file = memfd_create("new", 0);
    ftruncate(file, 4 * PAGE);
    is_zero("new file", mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0), 4 * PAGE);
    int segment = shmget(IPC_PRIVATE, 4 * PAGE, IPC_CREAT | 0600);
    is_zero("new segment", shmat(segment, NULL, 0), 4 * PAGE);
    shmctl(segment, IPC_RMID, NULL);
    find_in_terminal();
    char name[16] = "";
    prctl(PR_GET_NAME, name);
    search("name", (unsigned char *)name, sizeof name);
}

// A child looks; its words follow this process's.
static void look_in_child(void) {
    int ends[2];
    need(pipe(ends) == 0, "pipe");
    pid_t child = fork();
    if (!child) {
        answer_len = 0;
        found = 0;
        look();
        write(ends[1], answer_text, answer_len);
        write(ends[1], "", 1);
        _exit(found > 99 ? 99 : found);
    }
    close(ends[1]);
    char words[4096];
    ssize_t got, len = 0;
    while (len < (ssize_t)sizeof words && (got = read(ends[0], words + len, sizeof words - (size_t)len)) > 0) len += got;
    close(ends[0]);
    int status = -1;
    waitpid(child, &status, 0);
    // The last byte says that it got to its end.
    int is_whole = len > 0 && words[len - 1] == 0;
    if (is_whole) say_bytes(words, (size_t)len - 1);
    else found++, say("a child ended: %#x\n", status);
    found += WEXITSTATUS(status);
}

static void find(const char *masked) {
    found = 0;
    make_needles(strtoull(masked, NULL, 16));
    look_in_child();
    look_in_child();
    look();
    say("found %d", found);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "child")) return 0;
    memset(frozen, 1, sizeof frozen);
    memset(written, 1, sizeof written);
    for (;;) {
        next_request();
        char *rest, *space = strchr(request_text, ' ');
        if (is_verb("find", &rest)) find(rest);
        else if (space) {
            char how[16] = "";
            snprintf(how, sizeof how, "%.*s", (int)(space - request_text), request_text);
            plant_in_child(how, space + 1);
        }
        send_answer();
    }
}
