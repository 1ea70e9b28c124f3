// System V IPC without end and without manners: ipc WHAT
#include "hostile.h"
#include <linux/futex.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

union semun {
    int val;
    void *buf;
    unsigned short *array;
};

static void reached(const char *what, long count) { fprintf(stderr, "%s: %ld, then %s\n", what, count, strerrorname_np(errno)); }

static uint64_t state = 88172645463325252ull;
static uint64_t random_word(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

// Ids, sizes and commands from outside every range.
static void numbers(void) {
    static const uint64_t words[] = {0, 1, 2, 3, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 0x7fff, 0x8000, 0x8001, 0xffff, 0x10000,
                                     0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 1ul << 47, 1ul << 62, 1ul << 63, ~0ul};
    static const long calls[] = {SYS_shmget, SYS_shmat, SYS_shmctl, SYS_shmdt, SYS_semget, SYS_semctl, SYS_semtimedop, SYS_msgget,
                                 SYS_msgsnd, SYS_msgrcv, SYS_msgctl, SYS_mq_open, SYS_mq_unlink, SYS_mq_timedsend,
                                 SYS_mq_timedreceive, SYS_mq_notify, SYS_mq_getsetattr};
    char *buffer = map(4 * PAGE, PROT_READ | PROT_WRITE);
    for (int number = 0; number < 4; number++) {
        shmget(IPC_PRIVATE, PAGE, 0600);
        semget(IPC_PRIVATE, 3, 0600);
        msgget(IPC_PRIVATE, 0600);
    }
    alarm(20);
    for (int turn = 0; turn < 60000; turn++) {
        uint64_t args[6];
        for (int at = 0; at < 6; at++) {
            uint64_t word = random_word();
            args[at] = word % 7 == 0 ? (uint64_t)buffer : words[word / 7 % (sizeof words / sizeof *words)];
        }
        long nr = calls[random_word() % (sizeof calls / sizeof *calls)];
        // Nothing that waits, and nothing over this program.
        if (nr == SYS_msgsnd) args[3] |= IPC_NOWAIT;
        if (nr == SYS_msgrcv) args[4] |= IPC_NOWAIT;
        if (nr == SYS_mq_timedsend || nr == SYS_mq_timedreceive) args[4] = (uint64_t)(buffer + 3 * PAGE);
        if (nr == SYS_mq_open && turn % 2) args[1] |= O_CREAT, args[3] = 0, strcpy(buffer, turn % 4 == 1 ? "one" : "two");
        if (nr == SYS_semtimedop) args[3] = (uint64_t)(buffer + 3 * PAGE);
        if (nr == SYS_shmat && args[2] & SHM_REMAP) args[2] &= ~(uint64_t)SHM_REMAP;
        raw6(nr, args[0], args[1], args[2], args[3], args[4], args[5]);
        if (turn % 64 == 0) memset(buffer, 0, 4 * PAGE);
    }
}

static void segments(void) {
    long count = 0;
    for (; shmget(IPC_PRIVATE, 1ul << 20, 0600) >= 0; count++) {}
    reached("segments", count);
    errno = 0;
    long id = shmget(IPC_PRIVATE, ~0ul - (1 << 24), 0600 | 010000);
    reached("huge segment", id);
    // Removed and attached again and again: nothing grows.
    for (int number = 0; number <= 4096; number++) shmctl(number, IPC_RMID, NULL);
    for (int turn = 0; turn < 500; turn++) {
        int one = shmget(IPC_PRIVATE, 16 * PAGE, 0600);
        char *memory = shmat(one, NULL, 0);
        need(one >= 0 && memory != (void *)-1, "a segment");
        memset(memory, 1, 16 * PAGE);
        shmctl(one, IPC_RMID, NULL);
        need(shmdt(memory) == 0, "shmdt");
    }
}

// All that the memory limit lets be.
static void full_segments(void) {
    for (;;) {
        int id = shmget(IPC_PRIVATE, 1 << 20, 0600);
        char *memory = id < 0 ? (void *)-1 : shmat(id, NULL, 0);
        if (memory == (void *)-1) break;
        memset(memory, 1, 1 << 20);
        shmdt(memory);
    }
    reached("full segments", 0);
}

static void attachments(void) {
    int id = shmget(IPC_PRIVATE, PAGE, 0600);
    long count = 0;
    for (; shmat(id, NULL, 0) != (void *)-1; count++) {}
    reached("attachments", count);
    struct shmid_ds ds;
    need(shmctl(id, IPC_STAT, &ds) == 0 && (long)ds.shm_nattch == count, "as many as were attached");
}

static void semaphores(void) {
    long count = 0;
    for (; semget(IPC_PRIVATE, 32000, 0600) >= 0; count++) {}
    reached("semaphore sets", count);
    for (long number = 0; number < 32768; number++) semctl((int)number, 0, IPC_RMID);
    for (count = 0; semget(IPC_PRIVATE, 1, 0600) >= 0; count++) {}
    reached("small semaphore sets", count);
}

// Every semaphore of every set is to be taken back at the end, in many processes.
static void undo(void) {
    int sets[8];
    for (int number = 0; number < 8; number++) sets[number] = semget(IPC_PRIVATE, 32000, 0600);
    long reached_count = 0;
    for (int child = 0; child < 20; child++) {
        if (fork()) continue;
        struct sembuf ops[500];
        long done = 0;
        for (int number = 0; number < 8; number++)
            for (int from = 0; from < 32000; from += 500) {
                for (int at = 0; at < 500; at++) ops[at] = (struct sembuf){(unsigned short)(from + at), 1, SEM_UNDO};
                if (semop(sets[number], ops, 500) == 0) done += 500;
            }
        if (child == 0) reached("adjustments", done);
        if (child % 2) raise(SIGKILL);
        _exit(0);
    }
    while (wait(NULL) > 0) {}
    for (int number = 0; number < 8; number++)
        for (int at = 0; at < 32000; at += 77) reached_count += semctl(sets[number], at, GETVAL);
    need(reached_count == 0, "all of it taken back");
}

// Each that goes on lets the next one, which came before it: as much work as there can be for one call.
static void crowd(void) {
    enum { WAITERS = 200, OPS = 60 };
    int id = semget(IPC_PRIVATE, 2, 0600);
    int lowest = WAITERS, waiters = 0;
    for (int number = WAITERS; number-- > 0;) {
        pid_t child = fork();
        if (child < 0) break;
        if (child) {
            lowest = number;
            waiters++;
            continue;
        }
        struct sembuf ops[OPS];
        for (int at = 0; at < OPS - 2; at++) ops[at] = (struct sembuf){1, at % 2 ? -1 : 1, 0};
        ops[OPS - 2] = (struct sembuf){0, (short)-(number + 1), 0};
        ops[OPS - 1] = (struct sembuf){0, (short)(number + 2), 0};
        semop(id, ops, OPS);
        _exit(0);
    }
    while (semctl(id, 0, GETNCNT) != waiters) {
        struct timespec time = {0, 1000000};
        nanosleep(&time, NULL);
    }
    semctl(id, 0, SETVAL, (union semun){.val = lowest + 1});
    while (wait(NULL) > 0) {}
    need(semctl(id, 0, GETVAL) == WAITERS + 1, "all of them");
}

static void queues(void) {
    static struct {
        long type;
        char text[8192];
    } message = {.type = 1};
    long count = 0, messages = 0;
    int last = -1;
    for (int id; (id = msgget(IPC_PRIVATE, 0600)) >= 0; count++) {
        while (msgsnd(id, &message, 0, IPC_NOWAIT) == 0) messages++;
        last = id;
    }
    reached("queues", count);
    reached("messages", messages);
    need(last >= 0, "a queue");
    // Those with names: more than there may be, and none is left open.
    long named = 0;
    for (;; named++) {
        char name[32];
        snprintf(name, sizeof name, "q%ld", named);
        long queue = syscall(SYS_mq_open, name, O_CREAT | O_RDWR | O_NONBLOCK, 0600, NULL);
        if (queue < 0) break;
        while (syscall(SYS_mq_timedsend, queue, message.text, sizeof message.text, 1, NULL) == 0) {}
        close((int)queue);
    }
    reached("named queues", named);
    // The slowest search there is.
    for (int turn = 0; turn < 2000; turn++) msgrcv(last, &message, 10, 2, IPC_NOWAIT);
}

// Receivers and senders that are killed while they wait.
static void killed(void) {
    int id = msgget(IPC_PRIVATE, 0600), set = semget(IPC_PRIVATE, 1, 0600);
    uint32_t *word = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int turn = 0; turn < 300; turn++) {
        *word = 0;
        if (turn % 2 == 0) need(syscall(SYS_futex, word, FUTEX_LOCK_PI, 0, NULL, NULL, 0) == 0, "a mutex");
        pid_t child = fork();
        if (!child) {
            struct {
                long type;
                char text[10];
            } message = {.type = 1};
            struct sembuf op = {0, -1, SEM_UNDO};
            switch (turn % 5) {
                case 3:
                case 4:
                    // It waits, or has it and dies with it.
                    syscall(SYS_futex, word, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
                    pause();
                    break;
                case 0: msgrcv(id, &message, 10, 0, 0); break;
                case 1: semop(set, &op, 1); break;
                default: op.sem_op = 1, semop(set, &op, 1), op.sem_op = -2, semop(set, &op, 1);
            }
            _exit(0);
        }
        struct timespec time = {0, 300000};
        nanosleep(&time, NULL);
        kill(child, SIGKILL);
        struct {
            long type;
            char text[10];
        } message = {.type = 1};
        msgsnd(id, &message, 10, IPC_NOWAIT);
        while (waitpid(child, NULL, 0) < 0) {}
        while (msgrcv(id, &message, 10, 0, IPC_NOWAIT) >= 0) {}
        need(semctl(set, 0, GETVAL) == 0 && semctl(set, 0, GETNCNT) == 0, "nobody waits");
        if (turn % 2 == 0) need(syscall(SYS_futex, word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0) == 0 && *word == 0, "no waiter");
    }
}

// More than can be copied, from and to itself and a child.
static void copies(void) {
    static struct iovec parts[1024], peers[1024];
    char *buffer = map(1 << 20, PROT_READ | PROT_WRITE);
    pid_t child = fork();
    if (!child)
        for (;;) pause();
    for (int at = 0; at < 1024; at++) {
        parts[at] = (struct iovec){buffer, 1 << 20};
        peers[at] = (struct iovec){buffer + at, (1 << 20) - (size_t)at};
    }
    for (int turn = 0; turn < 2; turn++) {
        long moved = syscall(SYS_process_vm_readv, turn ? child : getpid(), parts, 1024, peers, 1024, 0);
        need(moved > (1 << 30) - (1 << 20), "all of it");
        parts[turn].iov_len = SIZE_MAX / 2;
        moved = syscall(SYS_process_vm_writev, turn ? child : getpid(), peers, 1024, parts, 1024, 0);
        need(moved > 0 || errno == EFAULT || errno == EINVAL, "some of it, or none");
        parts[turn].iov_len = 1 << 20;
    }
    kill(child, SIGKILL);
    while (wait(NULL) > 0) {}
    // A fork takes long enough that the peer ends in the middle.
    child = fork();
    if (!child) {
        usleep(5000);
        _exit(0);
    }
    syscall(SYS_process_vm_readv, child, parts, 1024, peers, 1024, 0);
    while (wait(NULL) > 0) {}
}

// Pipes that feed each other, and lengths beyond all.
static void splices(void) {
    int a[2], b[2];
    need(pipe2(a, O_NONBLOCK) == 0 && pipe2(b, O_NONBLOCK) == 0, "pipes");
    fcntl(a[1], F_SETPIPE_SZ, 1 << 20);
    fcntl(b[1], F_SETPIPE_SZ, 1 << 20);
    int zeros = open("/dev/zero", O_RDWR), file = open("/tmp/spliced", O_CREAT | O_RDWR, 0600);
    need(splice(zeros, NULL, a[1], NULL, SIZE_MAX, 0) > 0, "a source without end");
    for (int turn = 0; turn < 300; turn++) {
        tee(a[0], b[1], SIZE_MAX, 0);
        splice(a[0], NULL, b[1], NULL, SIZE_MAX, 0);
        splice(b[0], NULL, a[1], NULL, SIZE_MAX, 0);
        splice(a[0], NULL, a[1], NULL, SIZE_MAX, 0);
    }
    loff_t offset = INT64_MAX - 5;
    splice(a[0], NULL, file, &offset, SIZE_MAX, 0);
    splice(file, &offset, a[1], NULL, SIZE_MAX, 0);
    for (int turn = 0; turn < 50; turn++) {
        splice(zeros, NULL, a[1], NULL, SIZE_MAX, 0);
        splice(a[0], NULL, file, NULL, 1000, 0);
        splice(a[0], NULL, zeros, NULL, SIZE_MAX, 0);
    }
    unlink("/tmp/spliced");
}

int main(int argc, char **argv) {
    need(argc >= 2, "arguments");
    static const struct {
        const char *name;
        void (*run)(void);
    } all[] = {{"numbers", numbers}, {"segments", segments}, {"full-segments", full_segments}, {"attachments", attachments},
               {"semaphores", semaphores}, {"undo", undo}, {"crowd", crowd}, {"queues", queues}, {"killed", killed}, {"copies", copies}, {"splices", splices}};
    int found = 0;
    for (unsigned at = 0; at < sizeof all / sizeof *all; at++)
        if (!strcmp(argv[1], all[at].name)) all[at].run(), found = 1;
    need(found, "what?");
    printf("done\n");
    fflush(stdout);
    _exit(0);
}
