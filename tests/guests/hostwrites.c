// Memory that the kernel alone writes. A message asks for one thing:
//   touch    the program itself writes each place
//   kernel   the kernel writes each place, by another call, and the program does not; the next message is one of them
//   look     the numbers of the places that are not as they were at the start
#include "guest.h"

#include <kvmlet.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>

enum { READ, RANDOM, UNAME, FRAME, FUTEX, ROBUST, CHILD_TID, MESSAGE, REMOTE, PLACES };
enum { PLACE_LEN = 16384 };

static unsigned char (*places)[PLACE_LEN];
static uint32_t robust_tid;
static const char text[] = "from somewhere else";

static unsigned char original(size_t place, size_t at) {
    // The word that the kernel looks at when a thread ends is that thread's id.
    if (place == ROBUST && at < 4) return (unsigned char)(robust_tid >> 8 * at);
    return (unsigned char)(at * 7 + place + 1) | 1;
}

// Goes back without a write to the stack that it was called on.
__attribute__((naked)) static void handler(__attribute__((unused)) int signo) {
    __asm__("add $8, %rsp\n mov $15, %eax\n syscall\n ud2");
}

static long futex(void *word, int op, long value, long value2, void *word2, long value3) {
    return syscall(SYS_futex, word, op, value, value2, word2, value3);
}

static void *end_by_exit(void *unused) {
    syscall(SYS_set_tid_address, places[CHILD_TID]);
    syscall(SYS_exit, 0);
    return unused;
}

static void *end_with_robust_list(void *unused) {
    static struct robust_list_head head;
    static struct robust_list entry;
    entry.next = &head.list;
    head.list.next = &entry;
    head.futex_offset = (long)((char *)places[ROBUST] - (char *)&entry);
    syscall(SYS_set_robust_list, &head, sizeof head);
    return unused;
}

static void *tell_tid(void *unused) {
    robust_tid = (uint32_t)syscall(SYS_gettid);
    return unused;
}

static void by_signal(void) {
    stack_t alternate = {.ss_sp = places[FRAME], .ss_size = PLACE_LEN}, before;
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    NEED(sigaltstack(&alternate, &before) == 0);
    NEED(sigaction(SIGUSR1, &action, NULL) == 0);
    raise(SIGUSR1);
    NEED(sigaltstack(&before, NULL) == 0);
}

static void by_thread(void *(*run)(void *), int is_joined) {
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, run, NULL) == 0);
    if (is_joined) NEED(pthread_join(thread, NULL) == 0);
}

static void by_kernel(void) {
    int ends[2];
    // The first thread to be made is the one whose id the word has.
    by_thread(end_with_robust_list, 1);
    NEED(pipe(ends) == 0);
    NEED(write(ends[1], text, sizeof text) == sizeof text);
    NEED(read(ends[0], places[READ], sizeof text) == sizeof text);
    NEED(syscall(SYS_getrandom, places[RANDOM], 64, 0) == 64);
    NEED(uname((struct utsname *)places[UNAME]) == 0);
    by_signal();
    // FUTEX_WAKE_OP sets the second word to 5.
    static uint32_t word;
    NEED(futex(&word, FUTEX_WAKE_OP_PRIVATE, 1, 1, places[FUTEX], FUTEX_OP(FUTEX_OP_SET, 5, FUTEX_OP_CMP_EQ, 0)) >= 0);
    by_thread(end_by_exit, 0);
    while (*(volatile uint32_t *)places[CHILD_TID]) sched_yield();
    NEED(kvmlet_receive(places[MESSAGE], PLACE_LEN) > 0);
    struct iovec local = {places[REMOTE], sizeof text}, remote = {(void *)(uintptr_t)text, sizeof text};
    NEED(process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == sizeof text);
}

static size_t look(char *answer, size_t len) {
    size_t used = 0;
    for (size_t place = 0; place < PLACES; place++) {
        size_t at = 0;
        while (at < PLACE_LEN && places[place][at] == original(place, at)) at++;
        if (at < PLACE_LEN) used += (size_t)snprintf(answer + used, len - used, "%zu ", place);
    }
    return used;
}

int main(void) {
    places = mmap(NULL, PLACES * PLACE_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (places == MAP_FAILED) return 1;
    by_thread(tell_tid, 1);
    robust_tid++;
    for (size_t place = 0; place < PLACES; place++)
        for (size_t at = 0; at < PLACE_LEN; at++) places[place][at] = original(place, at);
    char request[64], answer[256];
    for (;;) {
        ssize_t len = kvmlet_receive(request, sizeof request - 1);
        if (len < 0) return 0;
        request[len] = 0;
        size_t answer_len = 0;
        if (!strcmp(request, "kernel")) by_kernel();
        for (size_t place = 0; place < PLACES && !strcmp(request, "touch"); place++)
            for (size_t at = 0; at < PLACE_LEN; at += 4096) places[place][at] ^= 0xff;
        if (!strcmp(request, "look")) answer_len = look(answer, sizeof answer);
        if (kvmlet_send(answer, answer_len) < 0) return 1;
    }
}
