// Mutexes with priority inheritance: of threads, of processes, robust ones, and the calls themselves.
#include "guest.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef FUTEX_LOCK_PI2
#define FUTEX_LOCK_PI2 13
#endif

#define THREADS 6
#define ROUNDS 400

static volatile int holds;

static long futex(uint32_t *word, int op, uint32_t value, const struct timespec *timeout) {
    return syscall(SYS_futex, word, op, value, timeout, NULL, 0);
}

static pthread_mutex_t *a_mutex(int type, int robust, int shared) {
    pthread_mutexattr_t attributes;
    pthread_mutex_t *mutex =
        mmap(NULL, sizeof *mutex, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | (shared ? MAP_SHARED : MAP_PRIVATE), -1, 0);
    NEED(pthread_mutexattr_init(&attributes) == 0);
    NEED(pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT) == 0);
    NEED(pthread_mutexattr_settype(&attributes, type) == 0);
    if (robust) NEED(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST) == 0);
    if (shared) NEED(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) == 0);
    NEED(pthread_mutex_init(mutex, &attributes) == 0);
    return mutex;
}

static struct timespec after_ms(clockid_t clock, long ms) {
    struct timespec at;
    clock_gettime(clock, &at);
    at.tv_nsec += ms * 1000000;
    at.tv_sec += at.tv_nsec / 1000000000;
    at.tv_nsec %= 1000000000;
    return at;
}

static volatile long counted;

static void *count(void *mutex) {
    for (int round = 0; round < ROUNDS; round++) {
        NEED(pthread_mutex_lock(mutex) == 0);
        long seen = counted;
        if (round % 8 == 0) sched_yield();
        counted = seen + 1;
        NEED(pthread_mutex_unlock(mutex) == 0);
    }
    return NULL;
}

static void *try(void *mutex) {
    return (void *)(long)pthread_mutex_trylock(mutex);
}

static void *wait_a_while(void *mutex) {
    struct timespec at = after_ms(CLOCK_REALTIME, 30);
    return (void *)(long)pthread_mutex_timedlock(mutex, &at);
}

static void *wait_by_monotonic(void *mutex) {
    struct timespec at = after_ms(CLOCK_MONOTONIC, 30);
    return (void *)(long)pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &at);
}

static void *lock_and_end(void *mutex) {
    return (void *)(long)pthread_mutex_lock(mutex);
}

static long by_thread(void *(*body)(void *), void *argument) {
    pthread_t thread;
    void *answer = NULL;
    NEED(pthread_create(&thread, NULL, body, argument) == 0);
    NEED(pthread_join(thread, &answer) == 0);
    return (long)answer;
}

static void of_threads(void) {
    section("threads");
    pthread_mutex_t *mutex = a_mutex(PTHREAD_MUTEX_ERRORCHECK, 0, 0);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) NEED(pthread_create(&threads[i], NULL, count, mutex) == 0);
    for (int i = 0; i < THREADS; i++) NEED(pthread_join(threads[i], NULL) == 0);
    CHECK(counted == THREADS * ROUNDS);
    CHECK(pthread_mutex_lock(mutex) == 0);
    CHECK(pthread_mutex_lock(mutex) == EDEADLK);
    CHECK(by_thread(try, mutex) == EBUSY);
    CHECK(by_thread(wait_a_while, mutex) == ETIMEDOUT);
    CHECK(by_thread(wait_by_monotonic, mutex) == ETIMEDOUT);
    CHECK(pthread_mutex_unlock(mutex) == 0);
    CHECK(pthread_mutex_unlock(mutex) == EPERM);
    CHECK(by_thread(try, mutex) == 0);
}

static pthread_mutex_t *waited_for;
static int started[2];

static void *lock_in_line(void *number) {
    char byte = 0;
    NEED(write(started[1], &byte, 1) == 1);
    NEED(pthread_mutex_lock(waited_for) == 0);
    printf("%ld has it\n", (long)number);
    fflush(stdout);
    NEED(pthread_mutex_unlock(waited_for) == 0);
    return NULL;
}

static void first_come_first_served(void) {
    section("a line");
    NEED(pipe(started) == 0);
    waited_for = a_mutex(PTHREAD_MUTEX_NORMAL, 0, 0);
    NEED(pthread_mutex_lock(waited_for) == 0);
    pthread_t threads[4];
    for (long i = 0; i < 4; i++) {
        char byte;
        NEED(pthread_create(&threads[i], NULL, lock_in_line, (void *)i) == 0);
        NEED(read(started[0], &byte, 1) == 1);
        usleep(20000);
    }
    NEED(pthread_mutex_unlock(waited_for) == 0);
    for (int i = 0; i < 4; i++) NEED(pthread_join(threads[i], NULL) == 0);
}

static volatile sig_atomic_t handled;
static void on_signal(int signo) { handled += signo == SIGUSR1; }

static void interrupted(void) {
    section("a signal");
    struct sigaction action = {.sa_handler = on_signal};
    NEED(sigaction(SIGUSR1, &action, NULL) == 0);
    waited_for = a_mutex(PTHREAD_MUTEX_NORMAL, 0, 0);
    NEED(pthread_mutex_lock(waited_for) == 0);
    pthread_t thread;
    char byte;
    NEED(pthread_create(&thread, NULL, lock_in_line, (void *)7L) == 0);
    NEED(read(started[0], &byte, 1) == 1);
    usleep(20000);
    NEED(pthread_kill(thread, SIGUSR1) == 0);
    usleep(20000);
    CHECK(handled == 1);
    NEED(pthread_mutex_unlock(waited_for) == 0);
    NEED(pthread_join(thread, NULL) == 0);
}

static void robust(void) {
    section("an owner that ends");
    pthread_mutex_t *mutex = a_mutex(PTHREAD_MUTEX_NORMAL, 1, 0);
    CHECK(by_thread(lock_and_end, mutex) == 0);
    CHECK(pthread_mutex_lock(mutex) == EOWNERDEAD);
    CHECK(pthread_mutex_consistent(mutex) == 0);
    CHECK(pthread_mutex_unlock(mutex) == 0);
    CHECK(by_thread(lock_and_end, mutex) == 0);
    CHECK(pthread_mutex_lock(mutex) == EOWNERDEAD);
    CHECK(pthread_mutex_unlock(mutex) == 0);
    CHECK(pthread_mutex_lock(mutex) == ENOTRECOVERABLE);
}

// A parent and two children wait for a mutex whose owner is killed.
static void of_processes(void) {
    section("processes");
    pthread_mutex_t *mutex = a_mutex(PTHREAD_MUTEX_NORMAL, 1, 1);
    int ready[2], gone[2];
    char byte = 0;
    NEED(pipe(ready) == 0 && pipe(gone) == 0);
    pid_t owner = fork();
    if (!owner) {
        NEED(pthread_mutex_lock(mutex) == 0);
        NEED(write(ready[1], &byte, 1) == 1);
        pause();
        _exit(1);
    }
    NEED(read(ready[0], &byte, 1) == 1);
    pid_t children[2];
    for (int i = 0; i < 2; i++) {
        children[i] = fork();
        if (!children[i]) {
            int error = pthread_mutex_lock(mutex);
            if (error == EOWNERDEAD) NEED(pthread_mutex_consistent(mutex) == 0);
            NEED(error == 0 || error == EOWNERDEAD);
            NEED(pthread_mutex_unlock(mutex) == 0);
            _exit(error == EOWNERDEAD);
        }
    }
    usleep(50000);
    NEED(kill(owner, SIGKILL) == 0);
    int status, found_dead = 0;
    NEED(waitpid(owner, &status, 0) == owner);
    for (int i = 0; i < 2; i++) {
        NEED(waitpid(children[i], &status, 0) == children[i]);
        NEED(WIFEXITED(status));
        found_dead += WEXITSTATUS(status);
    }
    CHECK(found_dead == 1);
    CHECK(pthread_mutex_lock(mutex) == 0);
    CHECK(pthread_mutex_unlock(mutex) == 0);
}

// A family is killed of which one thread has the mutex and another waits for it, before somebody outside.
static void *hold_for_good(void *mutex) {
    NEED(pthread_mutex_lock(mutex) == 0);
    holds = 1;
    pause();
    return NULL;
}

static void of_a_family(void) {
    section("a family");
    pthread_mutex_t *mutex = a_mutex(PTHREAD_MUTEX_NORMAL, 1, 1);
    int ready[2];
    char byte = 0;
    NEED(pipe(ready) == 0);
    pid_t family = fork();
    if (!family) {
        pthread_t thread;
        NEED(pthread_create(&thread, NULL, hold_for_good, mutex) == 0);
        while (!holds) usleep(1000);
        NEED(write(ready[1], &byte, 1) == 1);
        pthread_mutex_lock(mutex);
        _exit(1);
    }
    NEED(read(ready[0], &byte, 1) == 1);
    usleep(20000);
    pid_t outside = fork();
    if (!outside) _exit(pthread_mutex_lock(mutex) == EOWNERDEAD ? 42 : 1);
    usleep(50000);
    int status;
    NEED(kill(family, SIGKILL) == 0 && waitpid(family, &status, 0) == family);
    NEED(waitpid(outside, &status, 0) == outside);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
}

// The owner ends without a list of robust mutexes: who waits gets the word with a mark.
static uint32_t plain;

static void *hold_plain(void *unused) {
    (void)unused;
    NEED(futex(&plain, FUTEX_LOCK_PI, 0, NULL) == 0);
    holds = 1;
    usleep(50000);
    return NULL;
}

static void calls(void) {
    section("calls");
    uint32_t word = 0;
    uint32_t own = (uint32_t)syscall(SYS_gettid);
    struct timespec past = {0, 0};
    CHECK(futex(&word, FUTEX_LOCK_PI, 0, NULL) == 0 && word == own);
    FAILS(futex(&word, FUTEX_LOCK_PI, 0, NULL), EDEADLK);
    FAILS(futex(&word, FUTEX_TRYLOCK_PI, 0, NULL), EDEADLK);
    CHECK(futex(&word, FUTEX_UNLOCK_PI, 0, NULL) == 0 && word == 0);
    FAILS(futex(&word, FUTEX_UNLOCK_PI, 0, NULL), EPERM);
    word = 0x3ffffff0;
    FAILS(futex(&word, FUTEX_LOCK_PI, 0, NULL), ESRCH);
    FAILS(futex(&word, FUTEX_UNLOCK_PI, 0, NULL), EPERM);
    word = FUTEX_OWNER_DIED;
    CHECK(futex(&word, FUTEX_TRYLOCK_PI, 0, NULL) == 0 && word == (own | FUTEX_OWNER_DIED));
    pid_t other = fork();
    if (!other) {
        pause();
        _exit(1);
    }
    word = (uint32_t)other;
    FAILS(futex(&word, FUTEX_LOCK_PI2, 0, &past), ETIMEDOUT);
    CHECK(word == ((uint32_t)other | FUTEX_WAITERS));
    FAILS(futex(&word, FUTEX_TRYLOCK_PI, 0, NULL), EAGAIN);
    NEED(kill(other, SIGKILL) == 0 && waitpid(other, NULL, 0) == other);
    FAILS(futex((uint32_t *)((char *)&word + 1), FUTEX_LOCK_PI, 0, NULL), EINVAL);
    FAILS(futex(NULL, FUTEX_LOCK_PI, 0, NULL), EFAULT);
    pthread_t thread;
    holds = 0;
    NEED(pthread_create(&thread, NULL, hold_plain, NULL) == 0);
    while (!holds) usleep(1000);
    CHECK(futex(&plain, FUTEX_LOCK_PI, 0, NULL) == 0);
    CHECK((plain & ~FUTEX_WAITERS) == (own | FUTEX_OWNER_DIED));
    NEED(pthread_join(thread, NULL) == 0);
}

// Waiters of a word that are moved to a mutex (FUTEX_WAIT_REQUEUE_PI, FUTEX_CMP_REQUEUE_PI).
static long futex_of_two(uint32_t *word, int op, uint32_t value, unsigned long count, uint32_t *second,
                         uint32_t compared) {
    return syscall(SYS_futex, word, op, value, count, second, compared);
}

#define MOVE(count) futex_of_two(&gate, FUTEX_CMP_REQUEUE_PI, 1, count, &owned, 0)

static uint32_t gate, owned, other;
static struct timespec until;
static int answers[4];
// Those who had the mutex, in their order.
static int order[4], had;

static void *wait_to_be_moved(void *number) {
    long own = (long)number;
    char byte = 0;
    struct timespec *end = until.tv_sec ? &until : NULL;
    NEED(write(started[1], &byte, 1) == 1);
    long result = futex_of_two(&gate, FUTEX_WAIT_REQUEUE_PI, 0, (unsigned long)end, &owned, 0);
    answers[own] = result ? errno : 0;
    if (result == 0) {
        NEED((owned & FUTEX_TID_MASK) == (uint32_t)syscall(SYS_gettid));
        order[had++ % 4] = (int)own;
        NEED(futex(&owned, FUTEX_UNLOCK_PI, 0, NULL) == 0);
    }
    return NULL;
}

static void *wait_plainly(void *unused) {
    char byte = 0;
    NEED(write(started[1], &byte, 1) == 1);
    NEED(futex(&gate, FUTEX_WAIT, 0, NULL) == 0);
    return unused;
}

static pthread_t waiters[4];

static void begin_waits(long count) {
    for (long i = 0; i < count; i++) {
        char byte;
        answers[i] = -1;
        NEED(pthread_create(&waiters[i], NULL, wait_to_be_moved, (void *)i) == 0);
        NEED(read(started[0], &byte, 1) == 1);
        usleep(20000);
    }
}

static void end_waits(int count) {
    for (int i = 0; i < count; i++) NEED(pthread_join(waiters[i], NULL) == 0);
    for (int i = 0; i < count; i++) printf("%d: %s\n", i, errno_name(answers[i]));
    for (int i = 0; i < had; i++) printf("%d had it\n", order[i]);
    had = 0;
}

static void moved(void) {
    section("waiters that are moved");
    CHECK(MOVE(10) == 0 && owned == 0);
    NEED(futex(&owned, FUTEX_LOCK_PI, 0, NULL) == 0);
    begin_waits(3);
    CHECK(MOVE(10) == 3);
    CHECK(owned & FUTEX_WAITERS);
    usleep(20000);
    CHECK(answers[0] == -1);
    CHECK(futex(&owned, FUTEX_UNLOCK_PI, 0, NULL) == 0);
    end_waits(3);
    CHECK((owned & FUTEX_TID_MASK) == 0);
    owned = 0;

    section("a mutex that is free");
    begin_waits(3);
    CHECK(MOVE(10) == 3);
    end_waits(3);

    section("one at a time");
    owned = 0;
    NEED(futex(&owned, FUTEX_LOCK_PI, 0, NULL) == 0);
    begin_waits(2);
    FAILS(futex(&gate, FUTEX_WAKE, 1, NULL), EINVAL);
    FAILS(futex_of_two(&gate, FUTEX_CMP_REQUEUE, 1, 1, &other, 0), EINVAL);
    FAILS(futex_of_two(&gate, FUTEX_CMP_REQUEUE_PI, 1, 1, &other, 0), EINVAL);
    FAILS(futex_of_two(&gate, FUTEX_CMP_REQUEUE_PI, 2, 1, &owned, 0), EINVAL);
    FAILS(futex_of_two(&gate, FUTEX_CMP_REQUEUE_PI, 1, 1, &owned, 1), EAGAIN);
    FAILS(futex_of_two(&gate, FUTEX_CMP_REQUEUE_PI, 1, -1, &owned, 0), EINVAL);
    CHECK(MOVE(0) == 1);
    CHECK(MOVE(0) == 1);
    CHECK(MOVE(0) == 0);
    FAILS(futex(&owned, FUTEX_WAKE, 1, NULL), EINVAL);
    CHECK(futex(&owned, FUTEX_UNLOCK_PI, 0, NULL) == 0);
    end_waits(2);

    section("a line of both kinds");
    owned = 0;
    char byte;
    pthread_t first;
    NEED(pthread_create(&first, NULL, wait_plainly, NULL) == 0);
    NEED(read(started[0], &byte, 1) == 1);
    usleep(20000);
    begin_waits(1);
    // The first is moved, and the call stops at the second.
    FAILS(futex_of_two(&gate, FUTEX_REQUEUE, 0, 10, &other, 0), EINVAL);
    CHECK(futex(&other, FUTEX_WAKE, 10, NULL) == 1);
    NEED(pthread_join(first, NULL) == 0);
    CHECK(MOVE(10) == 1);
    end_waits(1);

    section("signals and times");
    owned = 0;
    NEED(futex(&owned, FUTEX_LOCK_PI, 0, NULL) == 0);
    begin_waits(2);
    handled = 0;
    NEED(pthread_kill(waiters[1], SIGUSR1) == 0);
    usleep(20000);
    CHECK(handled == 1 && answers[1] == -1);
    CHECK(MOVE(10) == 2);
    NEED(pthread_kill(waiters[0], SIGUSR1) == 0);
    usleep(20000);
    CHECK(handled == 2 && answers[0] == EAGAIN);
    CHECK(futex(&owned, FUTEX_UNLOCK_PI, 0, NULL) == 0);
    end_waits(2);
    owned = 0;
    NEED(futex(&owned, FUTEX_LOCK_PI, 0, NULL) == 0);
    until = after_ms(CLOCK_MONOTONIC, 200);
    begin_waits(2);
    CHECK(MOVE(0) == 1);
    end_waits(2);
    CHECK(futex(&owned, FUTEX_UNLOCK_PI, 0, NULL) == 0);
    until.tv_sec = 0;

    section("an owner that ends before");
    pthread_t owner;
    holds = 0;
    plain = 0;
    NEED(pthread_create(&owner, NULL, hold_plain, NULL) == 0);
    while (!holds) usleep(1000);
    owned = plain;
    begin_waits(1);
    NEED(pthread_join(owner, NULL) == 0);
    usleep(20000);
    FAILS(MOVE(10), ESRCH);
    owned = 0;
    CHECK(MOVE(10) == 1);
    end_waits(1);

    section("calls that make no sense");
    FAILS(futex_of_two(&gate, FUTEX_WAIT_REQUEUE_PI, 1, 0, &owned, 0), EAGAIN);
    FAILS(futex_of_two(&gate, FUTEX_WAIT_REQUEUE_PI, 0, 0, &gate, 0), EINVAL);
    FAILS(futex_of_two(&gate, FUTEX_CMP_REQUEUE_PI, 1, 1, &gate, 0), EINVAL);
    FAILS(futex_of_two(&gate, FUTEX_WAIT_REQUEUE_PI, 0, 0, NULL, 0), EFAULT);
    FAILS(futex_of_two(&gate, FUTEX_CMP_REQUEUE_PI, 1, 1, NULL, 0), EFAULT);
    FAILS(futex_of_two(&gate, FUTEX_WAIT_REQUEUE_PI, 0, 0, (uint32_t *)((char *)&owned + 1), 0), EINVAL);
    FAILS(futex_of_two(&gate, FUTEX_CMP_REQUEUE_PI | FUTEX_CLOCK_REALTIME, 1, 1, &owned, 0), ENOSYS);
}

// A child waits for a word that it shares, and is moved to a mutex.
static void moved_between_processes(void) {
    section("a child that is moved");
    uint32_t *words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_SHARED, -1, 0);
    NEED(futex(&words[1], FUTEX_LOCK_PI, 0, NULL) == 0);
    pid_t child = fork();
    if (!child) {
        NEED(futex_of_two(&words[0], FUTEX_WAIT_REQUEUE_PI, 0, 0, &words[1], 0) == 0);
        NEED((words[1] & FUTEX_TID_MASK) == (uint32_t)getpid());
        NEED(futex(&words[1], FUTEX_UNLOCK_PI, 0, NULL) == 0);
        _exit(42);
    }
    while (futex_of_two(&words[0], FUTEX_CMP_REQUEUE_PI, 1, 10, &words[1], 0) == 0) usleep(1000);
    CHECK(words[1] == ((uint32_t)getpid() | FUTEX_WAITERS));
    CHECK(futex(&words[1], FUTEX_UNLOCK_PI, 0, NULL) == 0);
    int status;
    NEED(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
    // One that is killed where it has been moved to leaves the mutex to others.
    words[1] = 0;
    NEED(futex(&words[1], FUTEX_LOCK_PI, 0, NULL) == 0);
    child = fork();
    if (!child) _exit((int)futex_of_two(&words[0], FUTEX_WAIT_REQUEUE_PI, 0, 0, &words[1], 0));
    while (futex_of_two(&words[0], FUTEX_CMP_REQUEUE_PI, 1, 10, &words[1], 0) == 0) usleep(1000);
    NEED(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
    CHECK(futex(&words[1], FUTEX_UNLOCK_PI, 0, NULL) == 0);
    CHECK((words[1] & FUTEX_TID_MASK) == 0);
}

int main(void) {
    of_threads();
    first_come_first_served();
    interrupted();
    robust();
    of_processes();
    of_a_family();
    calls();
    moved();
    moved_between_processes();
    return 0;
}
