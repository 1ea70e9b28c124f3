// Every way to end: exits MODE [N].
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>

static int code;

static void *exit_from_thread(void *arg) {
    (void)arg;
    exit(code);
}

static void *return_later(void *arg) {
    (void)arg;
    struct timespec ts = {0, 20000000};
    nanosleep(&ts, NULL);
    printf("last thread\n");
    fflush(stdout);
    return NULL;
}

static void at_exit(void) { printf("atexit ran\n"); }

__attribute__((noinline)) static int deep(volatile char *up) {
    volatile char here[4096];
    here[0] = up ? up[0] : 1;
    return deep(here) + here[0];
}

static void *nothing(void *arg) {
    for (;;) pause();
    return arg;
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    code = argc > 2 ? atoi(argv[2]) : 0;
    printf("mode %s\n", mode);
    fflush(stdout);
    pthread_t t;
    if (!strcmp(mode, "return")) return code;
    if (!strcmp(mode, "exit")) {
        atexit(at_exit);
        exit(code);
    }
    if (!strcmp(mode, "quick")) _exit(code);
    if (!strcmp(mode, "exit-thread-only")) syscall(SYS_exit, code);
    if (!strcmp(mode, "abort")) abort();
    volatile uintptr_t at = 0;
    if (!strcmp(mode, "null")) *(volatile int *)at = 1;
    if (!strcmp(mode, "null-call")) {
        at = 16;
        ((void (*)(void))at)();
    }
    if (!strcmp(mode, "noncanonical")) {
        at = 0x8000000000000000ull;
        *(volatile int *)at = 1;
    }
    if (!strcmp(mode, "kernel-half")) {
        at = 0xffffffff80000000ull;
        *(volatile int *)at = 1;
    }
    if (!strcmp(mode, "readonly")) {
        at = (uintptr_t)"x";
        *(volatile char *)at = 'y';
    }
    if (!strcmp(mode, "overflow")) return deep(NULL);
    if (!strcmp(mode, "div")) {
        volatile int five = 5, zero = 0;
        return five / zero;
    }
    if (!strcmp(mode, "ud2")) __asm__ volatile("ud2");
    if (!strcmp(mode, "int3")) __asm__ volatile("int3");
    if (!strcmp(mode, "hlt")) __asm__ volatile("hlt");
    if (!strcmp(mode, "raise")) {
        raise(code);
        printf("still here\n");
        return 0;
    }
    if (!strcmp(mode, "kill")) {
        kill(getpid(), code);
        printf("still here\n");
        return 0;
    }
    if (!strcmp(mode, "thread")) {
        pthread_create(&t, NULL, exit_from_thread, NULL);
        for (;;) pause();
    }
    if (!strcmp(mode, "group")) {
        for (int i = 0; i < 4; i++) pthread_create(&t, NULL, nothing, NULL);
        _exit(code);
    }
    if (!strcmp(mode, "main-first")) {
        pthread_create(&t, NULL, return_later, NULL);
        pthread_exit(NULL);
    }
    if (!strcmp(mode, "default-ignored")) {
        raise(SIGCHLD);
        raise(SIGURG);
        raise(SIGWINCH);
        raise(SIGCONT);
        printf("still here\n");
        return 0;
    }
    return 98;
}
