/*
 * kvmlet.h - messages for programs that run in kvmlet. C99, x86-64 Linux, header only.
 *
 * A program takes requests with kvmlet_receive and answers with kvmlet_send. Where it waits for its
 * first message it is ready: its host can freeze it there and give every request to a fresh copy.
 *
 * The same program runs without kvmlet: messages are then read from descriptor 0 and written to
 * descriptor 1, each behind its length as four bytes, least significant first. So keep standard output
 * for messages, and write everything else to standard error:
 *
 *     printf '\5\0\0\0hello' | ./program | od -c
 *
 * Without kvmlet only one thread at a time may receive, and one send.
 */
#ifndef KVMLET_H
#define KVMLET_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

/* System call numbers. Linux does not know them and answers ENOSYS. */
#define KVMLET_NR_RECEIVE 7000    /* (buf, cap, flags, struct kvmlet_fork * or 0) */
#define KVMLET_NR_SEND 7001       /* (buf, len) */
#define KVMLET_NR_GENERATION 7002 /* () */
#define KVMLET_NR_ASK 7003        /* (name, buf, len) */
#define KVMLET_NR_ANSWER 7004     /* (ticket, buf, cap, flags) */

/* Flags of KVMLET_NR_RECEIVE and KVMLET_NR_ANSWER. */
#define KVMLET_NOWAIT 1 /* EAGAIN instead of waiting */
#define KVMLET_PEEK 2   /* only the length: the message stays */
#define KVMLET_DROP 4   /* of KVMLET_NR_ANSWER: the answer is not wanted any more */

/* Bytes of a message at most. */
#define KVMLET_MESSAGE_MAX (16u << 20)
/* Functions that kvmlet_on_fork takes at most. */
#define KVMLET_HOOKS_MAX 8

/* What KVMLET_NR_RECEIVE says about the copy that received. */
struct kvmlet_fork {
    uint64_t generation; /* see kvmlet_generation */
    uint8_t seed[24];    /* random bytes, others each time */
};

/* Not for use outside this header. One for the program: the linker joins those of all its files. */
struct kvmlet_state_ {
    uint64_t generation;
    uint32_t length;
    int has_length;
    int native;
    int hooks;
    struct {
        void (*function)(void *);
        void *argument;
    } hook[KVMLET_HOOKS_MAX];
};
__attribute__((weak)) struct kvmlet_state_ kvmlet_state_;

/* A system call; the answer is a result or a negative error number. */
static inline long kvmlet_call_(long number, const void *a, size_t b, long c, void *d) {
#if defined(__x86_64__) && !defined(__ILP32__)
    long result;
    register long r10 __asm__("r10") = (long)d;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
#else
    (void)number, (void)a, (void)b, (void)c, (void)d;
    return -ENOSYS;
#endif
}

/* Some seccomp filters answer EPERM for numbers they do not know. */
static inline int kvmlet_is_native_(long result) {
    if (result == -ENOSYS || result == -EPERM) kvmlet_state_.native = 1;
    return kvmlet_state_.native;
}

static inline long kvmlet_result_(long result) {
    if (result >= 0) return result;
    errno = (int)-result;
    return -1;
}

/* Reads all of `len` bytes from descriptor 0: ENODATA at the end, EBADMSG for an end amid a message. */
static inline int kvmlet_read_(void *into, size_t len, int amid) {
    size_t done = 0;
    while (done < len) {
        ssize_t got = read(0, (char *)into + done, len - done);
        if (got > 0) {
            done += (size_t)got;
        } else if (got == 0) {
            errno = amid || done ? EBADMSG : ENODATA;
            return -1;
        } else if (errno != EINTR || (!amid && !done)) {
            return -1;
        }
    }
    return 0;
}

static inline int kvmlet_write_(const void *from, size_t len) {
    size_t done = 0;
    while (done < len) {
        ssize_t put = write(1, (const char *)from + done, len - done);
        if (put >= 0)
            done += (size_t)put;
        else if (errno != EINTR)
            return -1;
    }
    return 0;
}

static inline ssize_t kvmlet_native_length_(void) {
    unsigned char prefix[4];
    if (!kvmlet_state_.has_length) {
        if (kvmlet_read_(prefix, sizeof prefix, 0) != 0) return -1;
        kvmlet_state_.length = (uint32_t)prefix[0] | (uint32_t)prefix[1] << 8 | (uint32_t)prefix[2] << 16 |
                               (uint32_t)prefix[3] << 24;
        if (kvmlet_state_.length > KVMLET_MESSAGE_MAX) {
            errno = EBADMSG;
            return -1;
        }
        kvmlet_state_.has_length = 1;
    }
    return (ssize_t)kvmlet_state_.length;
}

static inline ssize_t kvmlet_native_receive_(void *buf, size_t cap) {
    ssize_t len = kvmlet_native_length_();
    if (len < 0) return -1;
    if ((size_t)len > cap) {
        errno = EMSGSIZE;
        return -1;
    }
    if (kvmlet_read_(buf, (size_t)len, 1) != 0) return -1;
    kvmlet_state_.has_length = 0;
    return len;
}

/* Runs the hooks once in each new copy, on one thread. */
static inline void kvmlet_now_(uint64_t generation) {
    if (__atomic_exchange_n(&kvmlet_state_.generation, generation, __ATOMIC_ACQ_REL) == generation) return;
    for (int i = 0; i < kvmlet_state_.hooks; i++) kvmlet_state_.hook[i].function(kvmlet_state_.hook[i].argument);
}

/*
 * Waits for the next message and copies it to `buf`; returns its length, which may be 0. The first
 * time in a new copy it runs the hooks of kvmlet_on_fork before it returns.
 *
 * -1 with errno: EMSGSIZE if it is longer than `cap` (it stays: see kvmlet_next_length), EINTR after a
 * signal handler, EFAULT; without kvmlet also ENODATA at the end of the input, EBADMSG for input that
 * is no message, and the errors of read(2).
 */
static inline ssize_t kvmlet_receive(void *buf, size_t cap) {
    struct kvmlet_fork now;
    long result;
    if (kvmlet_state_.native) return kvmlet_native_receive_(buf, cap);
    result = kvmlet_call_(KVMLET_NR_RECEIVE, buf, cap, 0, &now);
    if (kvmlet_is_native_(result)) return kvmlet_native_receive_(buf, cap);
    if (result >= 0) kvmlet_now_(now.generation);
    return (ssize_t)kvmlet_result_(result);
}

/* Waits for the next message and returns its length; the message stays. -1 as kvmlet_receive. */
static inline ssize_t kvmlet_next_length(void) {
    long result;
    if (kvmlet_state_.native) return kvmlet_native_length_();
    result = kvmlet_call_(KVMLET_NR_RECEIVE, NULL, 0, KVMLET_PEEK, NULL);
    return kvmlet_is_native_(result) ? kvmlet_native_length_() : (ssize_t)kvmlet_result_(result);
}

/*
 * Sends a message; waits while too many are under way. Returns 0, or -1 with errno: EMSGSIZE if it is
 * longer than KVMLET_MESSAGE_MAX, EINTR, EFAULT; without kvmlet the errors of write(2).
 */
static inline int kvmlet_send(const void *buf, size_t len) {
    unsigned char prefix[4];
    if (len > KVMLET_MESSAGE_MAX) {
        errno = EMSGSIZE;
        return -1;
    }
    if (!kvmlet_state_.native) {
        long result = kvmlet_call_(KVMLET_NR_SEND, buf, len, 0, NULL);
        if (!kvmlet_is_native_(result)) return (int)kvmlet_result_(result);
    }
    for (int i = 0; i < 4; i++) prefix[i] = (unsigned char)(len >> (8 * i));
    return kvmlet_write_(prefix, sizeof prefix) == 0 ? kvmlet_write_(buf, len) : -1;
}

/*
 * Which copy of the program this is: 0 in the one that was started (and always without kvmlet), another
 * number in each fork and after each reset.
 */
static inline uint64_t kvmlet_generation(void) {
    long result = -ENOSYS;
    if (!kvmlet_state_.native) result = kvmlet_call_(KVMLET_NR_GENERATION, NULL, 0, 0, NULL);
    return kvmlet_is_native_(result) ? 0 : (uint64_t)result;
}

/*
 * Has `function(argument)` called once in every new copy, before it gets its first message: copies
 * start with the same state of random generators, the same unique ids, the same temporary names.
 * Returns 0, or -1 with ENOMEM after KVMLET_HOOKS_MAX of them.
 */
static inline int kvmlet_on_fork(void (*function)(void *), void *argument) {
    if (kvmlet_state_.hooks == KVMLET_HOOKS_MAX) {
        errno = ENOMEM;
        return -1;
    }
    kvmlet_state_.hook[kvmlet_state_.hooks].function = function;
    kvmlet_state_.hook[kvmlet_state_.hooks].argument = argument;
    kvmlet_state_.hooks++;
    return 0;
}

/*
 * Asks the storage `name`, as `kvmlet serve --storage NAME=CMD` starts it, and returns a ticket for the answer.
 * Several questions may be open at one time. -1 with errno: ENOENT if there is none of that name, ENOSYS without
 * kvmlet, EMSGSIZE, ENOMEM, EFAULT; EINTR after a signal handler, and nothing has been asked.
 */
static inline long kvmlet_ask_begin(const char *name, const void *question, size_t len) {
    if (len > KVMLET_MESSAGE_MAX) {
        errno = EMSGSIZE;
        return -1;
    }
    return kvmlet_result_(kvmlet_call_(KVMLET_NR_ASK, name, (size_t)question, (long)len, NULL));
}

/*
 * Waits for the answer to a question, copies it to `buf` and returns its length. `flags` is 0, KVMLET_NOWAIT,
 * KVMLET_PEEK or KVMLET_DROP.
 *
 * -1 with errno: EMSGSIZE if it is longer than `cap` (it stays: ask by KVMLET_PEEK), EINTR (it stays), EINVAL for no
 * ticket, EFAULT. Where there will be no answer: EPIPE if the storage has ended meanwhile, EPROTO if it has gone on
 * without one, ETIMEDOUT, EBUSY if too many wait for it, ENOMEM.
 */
static inline ssize_t kvmlet_ask_end(long ticket, void *buf, size_t cap, int flags) {
    return (ssize_t)kvmlet_result_(
        kvmlet_call_(KVMLET_NR_ANSWER, (const void *)ticket, (size_t)buf, (long)cap, (void *)(long)flags));
}

/*
 * Asks the storage `name` and waits for its answer: its length. -1 with errno as the two above; EMSGSIZE also if the
 * answer is longer than `cap`, and is lost.
 */
static inline ssize_t kvmlet_ask(const char *name, const void *question, size_t len, void *answer, size_t cap) {
    long ticket;
    ssize_t got;
    do {
        ticket = kvmlet_ask_begin(name, question, len);
    } while (ticket < 0 && errno == EINTR);
    if (ticket < 0) return -1;
    do {
        got = kvmlet_ask_end(ticket, answer, cap, 0);
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
        int why = errno;
        kvmlet_ask_end(ticket, NULL, 0, KVMLET_DROP);
        errno = why;
    }
    return got;
}

/* Runs the hooks if this is a new copy: for functions that the host calls without a message. */
static inline void kvmlet_check_fork(void) { kvmlet_now_(kvmlet_generation()); }

#ifdef __cplusplus
}
#endif

#endif
