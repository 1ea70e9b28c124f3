// Shared memory and semaphores by name: shm_open, sem_open.
#include "guest.h"
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/stat.h>

static char shm[32], sem[32];

static void *poster(void *arg) {
    sem_t *other = sem_open(sem, 0);
    if (other == SEM_FAILED) return (void *)-1l;
    for (int i = 0; i < 3; i++) {
        (*(volatile int *)arg)++;
        sem_post(other);
    }
    return (void *)(long)sem_close(other);
}

int main(void) {
    struct stat st;
    snprintf(shm, sizeof shm, "/guest-%d", getpid());
    snprintf(sem, sizeof sem, "/sem-%d", getpid());

    section("shared memory");
    FAILS(shm_open(shm, O_RDWR, 0), ENOENT);
    int fd = shm_open(shm, O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0);
    FAILS(shm_open(shm, O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
    SHOW(ftruncate(fd, 8192));
    SHOW(fstat(fd, &st));
    printf("mode %o size %ld\n", st.st_mode, (long)st.st_size);
    char *a = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int second = shm_open(shm, O_RDONLY, 0);
    char *b = mmap(NULL, 8192, PROT_READ, MAP_SHARED, second, 0);
    CHECK(a != MAP_FAILED && b != MAP_FAILED && a != b);
    strcpy(a + 5000, "seen through both");
    printf("%s\n", b + 5000);
    SHOW(fcntl(second, F_GETFD));
    SHOW(shm_unlink(shm));
    FAILS(shm_unlink(shm), ENOENT);
    FAILS(shm_open(shm, O_RDWR, 0), ENOENT);
    strcpy(a, "still there");
    printf("%s\n", b);

    section("a semaphore");
    FAILS(sem_open(sem, 0) == SEM_FAILED ? -1 : 0, ENOENT);
    sem_t *one = sem_open(sem, O_CREAT | O_EXCL, 0600, 0);
    CHECK(one != SEM_FAILED);
    volatile int count = 0;
    pthread_t thread;
    pthread_create(&thread, NULL, poster, (void *)&count);
    for (int i = 0; i < 3; i++) SHOW(sem_wait(one));
    void *result;
    pthread_join(thread, &result);
    SHOW(result == NULL);
    SHOW(count);
    FAILS(sem_trywait(one), EAGAIN);
    struct timespec past = {1, 0};
    FAILS(sem_timedwait(one, &past), ETIMEDOUT);
    SHOW(sem_close(one));
    SHOW(sem_unlink(sem));
    return 0;
}
