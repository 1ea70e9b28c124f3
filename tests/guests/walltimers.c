// Timers by the clocks that go on while a program is frozen, and by the one that stands: a service that is asked which
// of them are due. Each is set to two seconds from the start.
#include "service.h"
#include <poll.h>
#include <sys/timerfd.h>

#define SECOND 1000000000L
#define CANCELS (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET)

static struct timespec at(int clock, int flags) {
    struct timespec until = {0, 0};
    if (flags & TIMER_ABSTIME) clock_gettime(clock, &until);
    until.tv_sec += 2;
    return until;
}

static timer_t timer(int clock, int flags, long interval_ns) {
    timer_t id;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct itimerspec new = {.it_value = at(clock, flags), .it_interval = {0, interval_ns}};
    if (timer_create(clock, &event, &id) != 0 || timer_settime(id, flags, &new, NULL) != 0) exit(96);
    return id;
}

static int timer_fd(int clock, int flags) {
    int fd = timerfd_create(clock, TFD_NONBLOCK);
    struct itimerspec new = {.it_value = at(clock, flags & TFD_TIMER_ABSTIME ? TIMER_ABSTIME : 0)};
    if (fd < 0 || timerfd_settime(fd, flags, &new, NULL) != 0) exit(96);
    return fd;
}

// Expired, if it has no interval; a timer that signals reads as disarmed then.
static int is_due(timer_t id) {
    struct itimerspec now;
    return timer_gettime(id, &now) == 0 && now.it_value.tv_sec == 0 && now.it_value.tv_nsec == 0;
}

static void say_read(const char *name, int fd) {
    uint64_t ticks = 0;
    if (read(fd, &ticks, 8) == 8) say("%s %lu ", name, (unsigned long)ticks);
    else say("%s %s ", name, errno == ECANCELED ? "ECANCELED" : errno_name(errno));
}

int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    timer_t day = timer(CLOCK_REALTIME, TIMER_ABSTIME, 0), boot = timer(CLOCK_BOOTTIME, 0, 0);
    timer_t length = timer(CLOCK_REALTIME, 0, 0), steady = timer(CLOCK_MONOTONIC, TIMER_ABSTIME, 0);
    int day_fd = timer_fd(CLOCK_REALTIME, TFD_TIMER_ABSTIME), boot_fd = timer_fd(CLOCK_BOOTTIME, TFD_TIMER_ABSTIME);
    int length_fd = timer_fd(CLOCK_REALTIME, 0), steady_fd = timer_fd(CLOCK_MONOTONIC, TFD_TIMER_ABSTIME);
    // It is not due in time: only the clock that is set makes it readable.
    int cancelled = timer_fd(CLOCK_REALTIME, CANCELS);
    struct itimerspec late = {.it_value = at(CLOCK_REALTIME, TIMER_ABSTIME)};
    late.it_value.tv_sec += 3600;
    if (timerfd_settime(cancelled, CANCELS, &late, NULL) != 0) exit(96);
    for (;;) {
        next_request();
        if (strcmp(request_text, "nap") == 0) {
            nanosleep(&(struct timespec){2, SECOND / 2}, NULL);
            say("napped");
        } else if (strcmp(request_text, "wall") == 0) {
            say("day %d boot %d ", is_due(day), is_due(boot));
            say_read("day", day_fd);
            say_read("boot", boot_fd);
        } else if (strcmp(request_text, "steady") == 0) {
            say("length %d steady %d ", is_due(length), is_due(steady));
            say_read("length", length_fd);
            say_read("steady", steady_fd);
        } else if (strcmp(request_text, "set") == 0) {
            // Readable at once, and told once.
            struct pollfd polled = {cancelled, POLLIN, 0};
            say("readable %d ", poll(&polled, 1, 0));
            say_read("set", cancelled);
            say_read("set", cancelled);
        } else {
            say("? %s", request_text);
        }
        send_answer();
    }
}
