// Threads that never call the kernel share the processor all the same.
#include "guest.h"
#include <pthread.h>
#include <stdatomic.h>

static atomic_int stage, stop;
static atomic_long spins[4];

static void *turns(void *arg) {
    // Each thread waits for its turn by spinning, without a system call.
    int id = (int)(long)arg;
    for (int i = 0; i < 5; i++) {
        while (atomic_load(&stage) % 4 != id) {
        }
        atomic_fetch_add(&stage, 1);
    }
    return NULL;
}

static void *spin(void *arg) {
    while (!atomic_load(&stop)) atomic_fetch_add(&spins[(long)arg], 1);
    return NULL;
}

int main(void) {
    pthread_t t[4];
    for (long i = 0; i < 4; i++) need(pthread_create(&t[i], NULL, turns, (void *)i) == 0, "pthread_create");
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    SHOW(atomic_load(&stage));

    for (long i = 0; i < 4; i++) need(pthread_create(&t[i], NULL, spin, (void *)i) == 0, "pthread_create");
    for (int i = 0; i < 4; i++)
        while (atomic_load(&spins[i]) < 1000) {
        }
    atomic_store(&stop, 1);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    printf("every thread ran\n");
    return 0;
}
