// POSIX threads: threads [ROUNDS [TURNS]].
#include "guest.h"
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>

// futex(2)
#ifndef FUTEX_WAIT_PRIVATE
#define FUTEX_WAIT_PRIVATE 128
#define FUTEX_WAKE_PRIVATE 129
#define FUTEX_WAIT_BITSET_PRIVATE 137
#endif

#define THREADS 16

static long rounds = 20000, turns = 20;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static long counter;
static atomic_long atomic_counter;
static __thread long mine;
static long totals[THREADS];

static void *contend(void *arg) {
    long id = (long)arg;
    for (long i = 0; i < rounds; i++) {
        pthread_mutex_lock(&mutex);
        counter++;
        pthread_mutex_unlock(&mutex);
        mine += id;
        atomic_fetch_add(&atomic_counter, 1);
        if (i % 1000 == 0) sched_yield();
    }
    totals[id] = mine;
    return (void *)(id * 100);
}

// A lock made of one futex word (futex(2), "Drepper's mutex 2").
static atomic_int word;
static long futex_counter;

static void lock(void) {
    int c = 0;
    if (atomic_compare_exchange_strong(&word, &c, 1)) return;
    if (c != 2) c = atomic_exchange(&word, 2);
    while (c != 0) {
        syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
        c = atomic_exchange(&word, 2);
    }
}

static void unlock(void) {
    if (atomic_fetch_sub(&word, 1) != 1) {
        atomic_store(&word, 0);
        syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

static void *futex_contend(void *arg) {
    for (long i = 0; i < rounds; i++) {
        lock();
        futex_counter++;
        if (i % 500 == 0) sched_yield();
        unlock();
    }
    return arg;
}

// A ring of threads that pass one token.
static int token;
static long passes;

static void *ring(void *arg) {
    int id = (int)(long)arg;
    for (long i = 0; i < turns; i++) {
        pthread_mutex_lock(&mutex);
        while (token != id) pthread_cond_wait(&cond, &mutex);
        token = (token + 1) % THREADS;
        passes++;
        pthread_cond_broadcast(&cond);
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

static sem_t items, space;
static long queue[8], put_at, take_at, sum;

static void *produce(void *arg) {
    for (long i = 1; i <= 2000; i++) {
        sem_wait(&space);
        queue[put_at++ % 8] = i;
        sem_post(&items);
    }
    return arg;
}

static void *consume(void *arg) {
    for (long i = 1; i <= 2000; i++) {
        sem_wait(&items);
        sum += queue[take_at++ % 8];
        sem_post(&space);
    }
    return arg;
}

static int once_count;
static void once(void) { once_count++; }
static pthread_once_t once_control = PTHREAD_ONCE_INIT;
static pthread_barrier_t barrier;
static atomic_int serial;
static pthread_key_t key;
static atomic_int destroyed;

static void destroy(void *value) { atomic_fetch_add(&destroyed, (int)(long)value); }

static void *meet(void *arg) {
    pthread_once(&once_control, once);
    pthread_setspecific(key, (void *)1);
    for (int i = 0; i < 10; i++)
        if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD) atomic_fetch_add(&serial, 1);
    return arg;
}

static void *quick(void *arg) { return arg; }

// FUTEX_WAKE_OP changes a second word, and wakes there if what it was compares (futex(2)).
#define FUTEX_CMP_REQUEUE_PRIVATE (4 | 128)
#define FUTEX_WAKE_OP_PRIVATE (5 | 128)
static atomic_int first_word, waited_word, second_word;

static void *wait_to_be_moved(void *arg) {
    syscall(SYS_futex, &waited_word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    return arg;
}

static long operate(unsigned op, unsigned operand, unsigned compare, unsigned with, int before) {
    unsigned encoded = op << 28 | compare << 24 | (operand & 0xfff) << 12 | (with & 0xfff);
    pthread_t waiter;
    atomic_store(&second_word, before);
    NEED(pthread_create(&waiter, NULL, wait_to_be_moved, NULL) == 0);
    while (syscall(SYS_futex, &waited_word, FUTEX_CMP_REQUEUE_PRIVATE, 0, 1L, &second_word, 0) != 1) sched_yield();
    long woken = syscall(SYS_futex, &first_word, FUTEX_WAKE_OP_PRIVATE, 1, 1L, &second_word, encoded);
    if (woken != 1) NEED(syscall(SYS_futex, &second_word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) == 1);
    pthread_join(waiter, NULL);
    return woken;
}

static pthread_t handled_by;
static atomic_int handled;
static void on_signal(int sig) {
    (void)sig;
    handled_by = pthread_self();
    atomic_store(&handled, 1);
}

static void *wait_for_signal(void *arg) {
    while (!atomic_load(&handled)) {
        struct timespec ts = {0, 1000000};
        nanosleep(&ts, NULL);
    }
    return arg;
}

static pthread_rwlock_t rw = PTHREAD_RWLOCK_INITIALIZER;
static long rw_value, rw_bad;

static void *readers_writers(void *arg) {
    for (int i = 0; i < 500; i++) {
        if ((long)arg % 4 == 0) {
            pthread_rwlock_wrlock(&rw);
            rw_value++;
            sched_yield();
            rw_value++;
            pthread_rwlock_unlock(&rw);
        } else {
            pthread_rwlock_rdlock(&rw);
            if (rw_value & 1) rw_bad++;
            pthread_rwlock_unlock(&rw);
        }
    }
    return NULL;
}

static void all(void *(*f)(void *)) {
    pthread_t t[THREADS];
    for (long i = 0; i < THREADS; i++) need(pthread_create(&t[i], NULL, f, (void *)i) == 0, "pthread_create");
    for (long i = 0; i < THREADS; i++) pthread_join(t[i], NULL);
}

int main(int argc, char **argv) {
    if (argc > 1) rounds = atol(argv[1]);
    if (argc > 2) turns = atol(argv[2]);

    section("16 threads contend for a mutex");
    pthread_t t[THREADS];
    for (long i = 0; i < THREADS; i++) need(pthread_create(&t[i], NULL, contend, (void *)i) == 0, "pthread_create");
    for (long i = 0; i < THREADS; i++) {
        void *r;
        pthread_join(t[i], &r);
        if (r != (void *)(i * 100) || totals[i] != i * rounds) printf("FAIL thread %ld\n", i);
    }
    CHECK(counter == THREADS * rounds);
    CHECK(atomic_counter == THREADS * rounds);
    CHECK(mine == 0);

    section("and for a futex");
    all(futex_contend);
    CHECK(futex_counter == THREADS * rounds);

    section("a token goes round");
    all(ring);
    SHOW(passes);

    section("producer and consumer");
    sem_init(&items, 0, 0);
    sem_init(&space, 0, 8);
    pthread_t a, b;
    pthread_create(&a, NULL, produce, NULL);
    pthread_create(&b, NULL, consume, NULL);
    pthread_join(a, NULL);
    pthread_join(b, NULL);
    SHOW(sum);

    section("once, barrier, keys");
    pthread_barrier_init(&barrier, NULL, THREADS);
    pthread_key_create(&key, destroy);
    all(meet);
    printf("once %d serial %d destroyed %d\n", once_count, serial, destroyed);

    section("readers and writers");
    all(readers_writers);
    printf("value %ld bad %ld\n", rw_value, rw_bad);

    section("waits that run out");
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    ts.tv_nsec += 20000000;
    if (ts.tv_nsec >= 1000000000) ts.tv_nsec -= 1000000000, ts.tv_sec++;
    pthread_mutex_lock(&mutex);
    CHECK(pthread_cond_timedwait(&cond, &mutex, &ts) == ETIMEDOUT);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    CHECK(now.tv_sec > ts.tv_sec || (now.tv_sec == ts.tv_sec && now.tv_nsec >= ts.tv_nsec));
    pthread_mutex_unlock(&mutex);
    CHECK(sem_timedwait(&items, &ts) == -1 && errno == ETIMEDOUT);
    atomic_int w = 5;
    struct timespec rel = {0, 5000000}, none = {0, 0}, bad = {0, 2000000000};
    FAILS(syscall(SYS_futex, &w, FUTEX_WAIT_PRIVATE, 4, NULL, NULL, 0), EAGAIN);
    FAILS(syscall(SYS_futex, &w, FUTEX_WAIT_PRIVATE, 5, &rel, NULL, 0), ETIMEDOUT);
    FAILS(syscall(SYS_futex, &w, FUTEX_WAIT_PRIVATE, 5, &none, NULL, 0), ETIMEDOUT);
    FAILS(syscall(SYS_futex, &w, FUTEX_WAIT_PRIVATE, 5, &bad, NULL, 0), EINVAL);
    FAILS(syscall(SYS_futex, (char *)&w + 1, FUTEX_WAIT_PRIVATE, 5, NULL, NULL, 0), EINVAL);
    FAILS(syscall(SYS_futex, (char *)8, FUTEX_WAIT_PRIVATE, 5, NULL, NULL, 0), EFAULT);
    FAILS(syscall(SYS_futex, &w, FUTEX_WAIT_BITSET_PRIVATE, 5, NULL, NULL, 0), EINVAL);
    FAILS(syscall(SYS_futex, &w, 127, 5, NULL, NULL, 0), ENOSYS);
    SHOW(syscall(SYS_futex, &w, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0));

    section("an operation on a second futex");
    for (unsigned compare = 0; compare < 6; compare++)
        for (int before = -6; before <= -4; before++)
            printf("%d compared by %u with -5: %ld\n", before, compare, operate(0, 0, compare, -5u, before));
    for (unsigned op = 0; op < 5; op++) {
        operate(op, -7u, 0, 0, 0x5a5a);
        printf("operation %u: %#x", op, (unsigned)second_word);
        operate(op | 8, 6, 0, 0, 0x5a5a);
        printf(", by a shift: %#x\n", (unsigned)second_word);
    }

    section("many short lives");
    int good = 0;
    for (long i = 0; i < 300; i++) {
        void *r = NULL;
        if (pthread_create(&a, NULL, quick, (void *)i) == 0 && pthread_join(a, &r) == 0 && r == (void *)i) good++;
    }
    SHOW(good);
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    good = 0;
    for (int i = 0; i < 50; i++) good += pthread_create(&a, &attr, quick, NULL) == 0;
    SHOW(good);

    section("a signal for one thread");
    struct sigaction sa = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &sa, NULL);
    pthread_create(&a, NULL, wait_for_signal, NULL);
    SHOW(pthread_kill(a, SIGUSR1));
    pthread_join(a, NULL);
    CHECK(pthread_equal(handled_by, a));

    section("ids");
    CHECK(syscall(SYS_gettid) == getpid());
    FAILS(syscall(SYS_tgkill, getpid(), 0x7ffffff0, 0), ESRCH);
    printf("done\n");
    return 0;
}
