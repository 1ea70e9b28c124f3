// Says that it runs, then waits: sleeper [sleep|read|pause|futex|threads].
#include "guest.h"
#include <pthread.h>
#include <time.h>

static void *spin(void *arg) {
    for (volatile unsigned long i = 0;; i++) {
    }
    return arg;
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "sleep";
    if (write(1, "ready\n", 6) != 6) return 1;
    if (!strcmp(mode, "read")) {
        char c;
        ssize_t n = read(0, &c, 1);
        return n == 1 ? 0 : 5;
    }
    if (!strcmp(mode, "pause"))
        for (;;) pause();
    if (!strcmp(mode, "futex")) {
        pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
        pthread_mutex_lock(&m);
        pthread_mutex_lock(&m);
    }
    if (!strcmp(mode, "threads")) {
        pthread_t t;
        for (int i = 0; i < 3; i++) pthread_create(&t, NULL, spin, NULL);
    }
    struct timespec ts = {1000000, 0};
    while (nanosleep(&ts, &ts)) {
    }
    return 0;
}
