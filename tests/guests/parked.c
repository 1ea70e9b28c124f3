// A program whose threads are all parked when it is frozen: eight on condition variables, one in an
// epoll loop (eventfd, pipe, timerfd), one in nanosleep, one in sigtimedwait, one behind a read of
// a pipe; main waits for messages while an interval timer ticks. "wake N" wakes them all.
#include "service.h"

#include <math.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>

#define WAITERS 8

struct waiter {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t asked, answered;
    long ask, answer, turns;
    int number, tid;
};
static struct waiter waiters[WAITERS];
static __thread long own = 1000;

static pthread_mutex_t seen_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t seen_changed = PTHREAD_COND_INITIALIZER;
static uint64_t seen_event, seen_timer;
static char seen_pipe[64];
static long naps, reader_bytes, signals_taken;
static volatile sig_atomic_t ticks, alarms;
static int event_fd, timer_fd, pipe_fds[2], reader_fds[2];
static timer_t timer;
static pthread_t signal_thread;

// Each thread keeps values in vector registers and on its stack across its wait.
static void *wait_for_ask(void *data) {
    struct waiter *me = data;
    char thread_name[16];
    volatile double kept = sqrt(me->number + 2.0);
    snprintf(thread_name, sizeof thread_name, "waiter%d", me->number);
    prctl(PR_SET_NAME, thread_name);
    me->tid = (int)syscall(SYS_gettid);
    own += me->number;
    pthread_mutex_lock(&me->lock);
    for (;;) {
        me->turns++;
        pthread_cond_broadcast(&me->answered);
        long before = me->ask;
        while (me->ask == before) pthread_cond_wait(&me->asked, &me->lock);
        own += me->ask;
        kept *= 1.5;
        me->answer = own * 1000 + (long)(kept * 100) % 1000;
    }
    return NULL;
}

static void *watch(void *unused) {
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    event.data.fd = event_fd;
    need(epoll_ctl(epoll, EPOLL_CTL_ADD, event_fd, &event) == 0, "epoll eventfd");
    event.events = EPOLLIN | EPOLLET;
    event.data.fd = pipe_fds[0];
    need(epoll_ctl(epoll, EPOLL_CTL_ADD, pipe_fds[0], &event) == 0, "epoll pipe");
    event.events = EPOLLIN;
    event.data.fd = timer_fd;
    need(epoll_ctl(epoll, EPOLL_CTL_ADD, timer_fd, &event) == 0, "epoll timerfd");
    while (unused == NULL) {
        struct epoll_event events[4];
        int count = epoll_wait(epoll, events, 4, -1);
        pthread_mutex_lock(&seen_lock);
        for (int i = 0; i < count; i++) {
            uint64_t value = 0;
            char bytes[32];
            if (events[i].data.fd == event_fd && read(event_fd, &value, 8) == 8) seen_event += value;
            else if (events[i].data.fd == timer_fd && read(timer_fd, &value, 8) == 8) seen_timer += value;
            else if (events[i].data.fd == pipe_fds[0]) {
                ssize_t got = read(pipe_fds[0], bytes, sizeof bytes - 1);
                if (got > 0) bytes[got] = 0, strncat(seen_pipe, bytes, sizeof seen_pipe - strlen(seen_pipe) - 1);
            }
        }
        pthread_cond_broadcast(&seen_changed);
        pthread_mutex_unlock(&seen_lock);
    }
    return NULL;
}

static void *nap(void *unused) {
    while (unused == NULL) {
        struct timespec time = {0, 20000000};
        nanosleep(&time, NULL);
        pthread_mutex_lock(&seen_lock);
        naps++;
        pthread_cond_broadcast(&seen_changed);
        pthread_mutex_unlock(&seen_lock);
    }
    return NULL;
}

static void *read_pipe(void *unused) {
    char bytes[64];
    while (unused == NULL) {
        ssize_t got = read(reader_fds[0], bytes, sizeof bytes);
        pthread_mutex_lock(&seen_lock);
        if (got > 0) reader_bytes += got;
        pthread_cond_broadcast(&seen_changed);
        pthread_mutex_unlock(&seen_lock);
    }
    return NULL;
}

static void *take_signals(void *unused) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    while (unused == NULL) {
        siginfo_t info;
        int number = sigwaitinfo(&set, &info);
        pthread_mutex_lock(&seen_lock);
        if (number == SIGRTMIN + 1) signals_taken += info.si_value.sival_int;
        pthread_cond_broadcast(&seen_changed);
        pthread_mutex_unlock(&seen_lock);
    }
    return NULL;
}

static void on_tick(int number) {
    (void)number;
    ticks++;
}

static void on_alarm(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    if (info->si_code == SI_TIMER && info->si_value.sival_int == 4711) alarms++;
}

// Waits until `*what` is at least `want`, 10 s at most.
static int until_long(const long *what, long want) {
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 10;
    int late = 0;
    while (*what < want && late != ETIMEDOUT) late = pthread_cond_timedwait(&seen_changed, &seen_lock, &end);
    return *what >= want;
}

static int until_tick(volatile sig_atomic_t *what, sig_atomic_t want) {
    for (int i = 0; i < 5000 && *what < want; i++) {
        struct timespec time = {0, 2000000};
        nanosleep(&time, NULL);
    }
    return *what >= want;
}

static void wake(long with) {
    for (int i = 0; i < WAITERS; i++) {
        struct waiter *waiter = &waiters[i];
        pthread_mutex_lock(&waiter->lock);
        long turns = waiter->turns;
        waiter->ask += with;
        pthread_cond_signal(&waiter->asked);
        while (waiter->turns == turns) pthread_cond_wait(&waiter->answered, &waiter->lock);
        say("waiter %d tid %d turns %ld answer %ld\n", i, waiter->tid, waiter->turns, waiter->answer);
        pthread_mutex_unlock(&waiter->lock);
    }
    pthread_mutex_lock(&seen_lock);
    long naps_before = naps, bytes_before = reader_bytes, signals_before = signals_taken;
    sig_atomic_t ticks_before = ticks, alarms_before = alarms;
    uint64_t event_before = seen_event, timer_before = seen_timer, value = (uint64_t)with;
    size_t pipe_before = strlen(seen_pipe);
    pthread_mutex_unlock(&seen_lock);
    write(event_fd, &value, 8);
    write(pipe_fds[1], "edge", 4);
    write(reader_fds[1], "12345", 5);
    struct itimerspec soon = {{0, 0}, {0, 3000000}};
    timerfd_settime(timer_fd, 0, &soon, NULL);
    timer_settime(timer, 0, &soon, NULL);
    pthread_sigqueue(signal_thread, SIGRTMIN + 1, (union sigval){.sival_int = (int)with});
    // What is waited for is read behind the wait: arguments are evaluated in any order.
    int seen;
    pthread_mutex_lock(&seen_lock);
    while (seen_event != event_before + value || seen_timer != timer_before + 1 || strlen(seen_pipe) < pipe_before + 4)
        pthread_cond_wait(&seen_changed, &seen_lock);
    say("epoll event %lu timer %lu pipe %s\n", seen_event, seen_timer, seen_pipe);
    seen = until_long(&reader_bytes, bytes_before + 5);
    say("reader %d %ld\n", seen, reader_bytes);
    seen = until_long(&signals_taken, signals_before + with);
    say("signal %d %ld\n", seen, signals_taken);
    say("naps go on %d\n", until_long(&naps, naps_before + 2));
    pthread_mutex_unlock(&seen_lock);
    seen = until_tick(&alarms, alarms_before + 1);
    say("alarms %d %d\n", seen, alarms);
    say("ticks go on %d\n", until_tick(&ticks, ticks_before + 2));
}

int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    event_fd = eventfd(0, EFD_NONBLOCK);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    need(event_fd >= 0 && timer_fd >= 0 && pipe(pipe_fds) == 0 && pipe(reader_fds) == 0, "descriptors");
    struct sigaction tick = {.sa_handler = on_tick, .sa_flags = SA_RESTART};
    struct sigaction alarm = {.sa_sigaction = on_alarm, .sa_flags = SA_RESTART | SA_SIGINFO};
    sigaction(SIGALRM, &tick, NULL);
    sigaction(SIGRTMIN + 2, &alarm, NULL);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2, .sigev_value.sival_int = 4711};
    need(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
    for (int i = 0; i < WAITERS; i++) {
        struct waiter *waiter = &waiters[i];
        waiter->number = i;
        pthread_mutex_init(&waiter->lock, NULL);
        pthread_cond_init(&waiter->asked, NULL);
        pthread_cond_init(&waiter->answered, NULL);
        pthread_mutex_lock(&waiter->lock);
        need(pthread_create(&waiter->thread, NULL, wait_for_ask, waiter) == 0, "pthread_create");
        while (waiter->turns == 0) pthread_cond_wait(&waiter->answered, &waiter->lock);
        pthread_mutex_unlock(&waiter->lock);
    }
    pthread_t thread;
    need(pthread_create(&thread, NULL, watch, NULL) == 0, "pthread_create");
    need(pthread_create(&thread, NULL, nap, NULL) == 0, "pthread_create");
    need(pthread_create(&thread, NULL, read_pipe, NULL) == 0, "pthread_create");
    need(pthread_create(&signal_thread, NULL, take_signals, NULL) == 0, "pthread_create");
    struct itimerval interval = {{0, 15000}, {0, 15000}};
    setitimer(ITIMER_REAL, &interval, NULL);
    for (;;) {
        char *rest;
        next_request();
        if (is_verb("wake", &rest)) wake(atol(rest));
        else if (is_verb("threads", &rest)) {
            char *names[64], path[64];
            int count = sorted_names("/proc/self/task", names, 64);
            for (int i = 0; i < count; i++) {
                snprintf(path, sizeof path, "/proc/self/task/%s/comm", names[i]);
                free(names[i]);
                say_file(path);
            }
        } else say("what? %s", request_text);
        send_answer();
    }
}
