// A server whose processes share memory, semaphores and a queue when it is frozen: one waits for a semaphore, one for
// a message, and a removed segment lives by its mappings.
#include "service.h"

#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>

#define PAGE 4096

union semun {
    int val;
    struct semid_ds *buf;
};
struct text {
    long type;
    char text[100];
};

static int segment, removed, set, queue;
static volatile int *memory, *removed_memory;

static int operate(int number, int change, int flags) {
    struct sembuf op = {(unsigned short)number, (short)change, (short)flags};
    int result;
    while ((result = semop(set, &op, 1)) == -1 && errno == EINTR) {}
    return result;
}

static void wait_on_semaphore(void) {
    for (;;) {
        if (operate(0, -1, SEM_UNDO) != 0) _exit(0);
        memory[1]++;
        removed_memory[0] += 2;
        if (operate(1, 1, 0) != 0) _exit(0);
    }
}

static void wait_for_message(void) {
    struct text message;
    ssize_t len;
    while ((len = msgrcv(queue, &message, sizeof message.text, 1, 0)) >= 0 || errno == EINTR) {
        if (len < 0) continue;
        memory[2] += (int)len;
        message.type = 2;
        if (msgsnd(queue, &message, (size_t)len, 0) != 0) break;
    }
    _exit(0);
}

static void look(void) {
    struct shmid_ds one = {0}, other = {0};
    struct msqid_ds in_queue = {0};
    // It may be on its way back.
    while (semctl(set, 0, GETNCNT) == 0) pause_ms(1);
    shmctl(segment, IPC_STAT, &one);
    int result = shmctl(removed, IPC_STAT, &other);
    msgctl(queue, IPC_STAT, &in_queue);
    say("segment %zu, %lu attached, removed %d %lu, memory %d %d %d %d, ", one.shm_segsz, one.shm_nattch, result, other.shm_nattch,
        memory[0], memory[1], memory[2], removed_memory[0]);
    say("semaphores %d %d %d, %d wait, queue %lu\n", semctl(set, 0, GETVAL), semctl(set, 1, GETVAL), semctl(set, 2, GETVAL),
        semctl(set, 0, GETNCNT), (unsigned long)in_queue.msg_qnum);
}

static void answer(void) {
    const char *text = request_text;
    struct text message = {.type = 1, .text = "hello"};
    look();
    memory[0]++;
    if (!strcmp(text, "post")) {
        say("%d ", operate(0, 1, 0));
        say("%d ", operate(1, -1, 0));
        say("%d\n", memory[1]);
    } else if (!strcmp(text, "send")) {
        say("%d ", msgsnd(queue, &message, 5, 0));
        memset(&message, 0, sizeof message);
        say("%zd ", msgrcv(queue, &message, sizeof message.text, 2, 0));
        say("%s\n", message.text);
    } else if (!strcmp(text, "undo")) {
        pid_t child = fork();
        if (!child) {
            operate(2, 5, SEM_UNDO);
            _exit(semctl(set, 2, GETVAL));
        }
        int status = -1;
        waitpid(child, &status, 0);
        say("%#x, then %d\n", status, semctl(set, 2, GETVAL));
    } else if (!strcmp(text, "remove")) {
        say("%d %d %d\n", semctl(set, 0, IPC_RMID), msgctl(queue, IPC_RMID, NULL), shmctl(segment, IPC_RMID, NULL));
        while (wait(NULL) > 0) {}
    } else if (!strcmp(text, "new")) {
        int id = shmget(IPC_PRIVATE, 5 * PAGE, 0600);
        volatile int *fresh = shmat(id, NULL, 0);
        int other = semget(IPC_PRIVATE, 3, 0600);
        say("%d", fresh[PAGE / 4]);
        for (int page = 0; page < 5; page++) fresh[page * PAGE / 4] = page + 1;
        operate(2, 1, SEM_UNDO);
        semctl(other, 1, SETVAL, (union semun){.val = 7});
        say(" %d %d\n", fresh[PAGE], semctl(other, 1, GETVAL));
    }
    look();
}

static void clean_up(void) {
    semctl(set, 0, IPC_RMID);
    msgctl(queue, IPC_RMID, NULL);
    shmctl(segment, IPC_RMID, NULL);
}

int main(void) {
    segment = shmget((key_t)(0x6c000000 + getpid()), 3 * PAGE, IPC_CREAT | 0600);
    removed = shmget(IPC_PRIVATE, PAGE, 0600);
    set = semget(IPC_PRIVATE, 3, 0600);
    queue = msgget(IPC_PRIVATE, 0600);
    need(segment >= 0 && removed >= 0 && set >= 0 && queue >= 0, "ids");
    memory = shmat(segment, NULL, 0);
    removed_memory = shmat(removed, NULL, 0);
    need(shmctl(removed, IPC_RMID, NULL) == 0, "removing");
    memory[0] = 3;
    removed_memory[0] = 4;
    if (!fork()) prctl(PR_SET_PDEATHSIG, SIGKILL), wait_on_semaphore();
    if (!fork()) prctl(PR_SET_PDEATHSIG, SIGKILL), wait_for_message();
    while (semctl(set, 0, GETNCNT) != 1) pause_ms(1);
    pause_ms(20);
    atexit(clean_up);
    for (;;) {
        next_request();
        answer();
        send_answer();
    }
}
