// Shared by the guest programs: deterministic one-line reports that can be
// compared byte for byte between a native run and a run in a VM.
#ifndef GUEST_H
#define GUEST_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static inline const char *errno_name(int e) {
    static char other[24];
    switch (e) {
#define E(x) case x: return #x
        E(EPERM); E(ENOENT); E(EINTR); E(EIO); E(ENXIO); E(E2BIG); E(ENOEXEC); E(EBADF); E(ECHILD); E(EAGAIN);
        E(ENOMEM); E(EACCES); E(EFAULT); E(EBUSY); E(EEXIST); E(EXDEV); E(ENODEV); E(ENOTDIR); E(EISDIR); E(EINVAL);
        E(ENFILE); E(EMFILE); E(ENOTTY); E(ETXTBSY); E(EFBIG); E(ENOSPC); E(ESPIPE); E(EROFS); E(EMLINK); E(EPIPE);
        E(ERANGE); E(EDEADLK); E(ENAMETOOLONG); E(ENOSYS); E(ENOTEMPTY); E(ELOOP); E(ENODATA); E(EOVERFLOW);
        E(EOPNOTSUPP); E(ETIMEDOUT); E(ESRCH); E(EAFNOSUPPORT); E(EPROTONOSUPPORT); E(ENOTSOCK); E(ENETUNREACH);
#undef E
        case 0: return "0";
    }
    snprintf(other, sizeof other, "errno %d", e);
    return other;
}

// A condition that must hold wherever the program runs. The harness refuses
// any output that contains "FAIL".
#define CHECK(cond) \
    do { \
        int check_errno_ = 0; \
        errno = 0; \
        int check_ok_ = !!(cond); \
        check_errno_ = errno; \
        if (check_ok_) printf("ok %s\n", #cond); \
        else printf("FAIL %s:%d: %s (%s)\n", __FILE__, __LINE__, #cond, errno_name(check_errno_)); \
        fflush(stdout); \
    } while (0)

// As CHECK, and says nothing if all is well: parents and children would say it in any order.
#define NEED(cond) \
    do { \
        errno = 0; \
        if (!(cond)) { \
            printf("FAIL %s:%d: %s (%s)\n", __FILE__, __LINE__, #cond, errno_name(errno)); \
            fflush(stdout); \
        } \
    } while (0)

// The result of a call, and its errno when it failed.
#define SHOW(call) \
    do { \
        errno = 0; \
        long show_r_ = (long)(call); \
        int show_e_ = errno; \
        if (show_r_ == -1) printf("%s = -1 %s\n", #call, errno_name(show_e_)); \
        else printf("%s = %ld\n", #call, show_r_); \
        fflush(stdout); \
    } while (0)

// A call that must fail with this very errno.
#define FAILS(call, want) \
    do { \
        errno = 0; \
        long fails_r_ = (long)(call); \
        int fails_e_ = errno; \
        if (fails_r_ == -1 && fails_e_ == (want)) printf("ok %s: %s\n", #call, #want); \
        else printf("FAIL %s:%d: %s = %ld %s, not %s\n", __FILE__, __LINE__, #call, fails_r_, \
                    errno_name(fails_e_), #want); \
        fflush(stdout); \
    } while (0)

static inline void section(const char *name) {
    printf("# %s\n", name);
    fflush(stdout);
}

// A call without which nothing after it makes sense.
static inline void pause_ms(int ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

static inline void need(int ok, const char *what) {
    if (!ok) {
        printf("FAIL %s: %s\n", what, errno_name(errno));
        fflush(stdout);
        exit(99);
    }
}

#endif
