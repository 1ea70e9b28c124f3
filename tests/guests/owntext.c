// A program that changes its own text, executed again and again: each begins with the text of the file.
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "guest.h"

#define PAGE 4096ul

extern char **environ;

__attribute__((noinline, aligned(4096))) static int answer(void) {
    __asm__ volatile("");
    return 1;
}

static char *page(void) { return (char *)((uintptr_t)&answer & ~(PAGE - 1)); }

// `mov $value, %eax; ret` in place of the function.
static void change(int value) {
    need(mprotect(page(), PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) == 0, "mprotect");
    const unsigned char code[] = {0xb8, (unsigned char)value, 0, 0, 0, 0xc3};
    memcpy((char *)(uintptr_t)&answer, code, sizeof code);
    need(mprotect(page(), PAGE, PROT_READ | PROT_EXEC) == 0, "mprotect");
}

static int run(char *name, char *how) {
    char *argv[] = {name, how, NULL};
    int status = 0;
    pid_t child = *how == 'v' ? vfork() : fork();
    if (child == 0) {
        execve("/proc/self/exe", argv, environ);
        _exit(127);
    }
    need(child > 0 && waitpid(child, &status, 0) == child, "child");
    return WEXITSTATUS(status);
}

int main(int argc, char **argv) {
    int (*volatile ask)(void) = answer;
    if (argc > 1) {
        int before = ask();
        change(2);
        return 10 * before + ask();
    }
    for (int i = 0; i < 6; i++) {
        SHOW(run(argv[0], i % 2 ? "v" : "f"));
        if (i >= 2) change(3 + i);
        SHOW(ask());
    }
    // A copy has the text as it is; it does not share what is changed later.
    pid_t child = fork();
    if (child == 0) {
        int before = ask();
        change(7);
        _exit(10 * before + ask());
    }
    change(9);
    int status = 0;
    need(waitpid(child, &status, 0) == child, "child");
    SHOW(WEXITSTATUS(status));
    SHOW(ask());
    return 0;
}
