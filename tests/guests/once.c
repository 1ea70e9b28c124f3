// Calls with an effect that can be counted, from threads that a timer interrupts: each is made once.
// once [CALLS] [MICROSECONDS BETWEEN TICKS]
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>

#define THREADS 3

static int ends[2];
static long calls;
static volatile sig_atomic_t ticks;

static void tick(int sig) {
    (void)sig;
    ticks++;
}

static void *body(void *arg) {
    long *written = arg;
    for (long i = 0; i < calls; i++) {
        if (write(ends[1], "x", 1) == 1) ++*written;
        // A number, a pointer and a failure: each call's own result.
        char byte;
        if (read(-1, &byte, 1) != -1 || errno != EBADF) printf("FAIL read\n");
        if (syscall(SYS_getpgrp) != getpgid(0)) printf("FAIL getpgrp\n");
        if (i % 8 == 7) {
            char eight[8];
            long left = 8;
            while (left > 0) {
                long n = read(ends[0], eight, (size_t)left);
                if (n > 0) left -= n;
            }
        }
    }
    return NULL;
}

int main(int argc, char **argv) {
    calls = argc > 1 ? atol(argv[1]) : 1000;
    CHECK(pipe(ends) == 0);
    struct sigaction action = {.sa_handler = tick, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    // On a slow machine ticks must leave time for anything else.
    long interval_us = argc > 2 ? atol(argv[2]) : 700;
    struct itimerval often = {{0, interval_us}, {0, interval_us}};
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    pthread_t threads[THREADS];
    long written[THREADS] = {0};
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, body, &written[i]);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    // A fast machine makes few calls between two ticks.
    while (interval_us < 1000 && ticks == 0) usleep(100);
    struct itimerval never = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    long left = 0, sum = 0;
    char byte;
    close(ends[1]);
    while (read(ends[0], &byte, 1) == 1) left++;
    for (int i = 0; i < THREADS; i++) sum += written[i];
    printf("%ld written, %ld left\n", sum, left);
    if (interval_us < 1000) CHECK(ticks > 0);
    return 0;
}
