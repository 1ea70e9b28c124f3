// System V IPC: shared memory, semaphores, message queues; sysvipc shm|sem|msg
#include "guest.h"
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define PAGE 4096

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
    struct seminfo *info;
};

static key_t a_key(int number) { return (key_t)(0x6b000000 + getpid() * 16 + number); }

static int status_of(pid_t pid) {
    int status = -1;
    return waitpid(pid, &status, 0) == pid ? status : -1;
}

// A child that does this and ends.
#define CHILD(...) ({ \
    pid_t child_ = fork(); \
    if (!child_) { \
        __VA_ARGS__; \
        _exit(0); \
    } \
    child_; })

// ---- shared memory ----

static void show_segment(int id) {
    struct shmid_ds ds;
    if (shmctl(id, IPC_STAT, &ds) != 0) {
        printf("segment: %s\n", errno_name(errno));
        return;
    }
    time_t now = time(NULL);
    printf("segment: %zu bytes, mode %o, %lu attached, key %d, mine %d %d, cpid %d, lpid %s, times %d %d %d\n", ds.shm_segsz,
           ds.shm_perm.mode, ds.shm_nattch, ds.shm_perm.__key != 0, ds.shm_perm.uid == getuid(),
           ds.shm_perm.cgid == getgid(), ds.shm_cpid == getpid(),
           ds.shm_lpid == getpid() ? "own" : ds.shm_lpid ? "another" : "none", ds.shm_atime && now - ds.shm_atime < 60,
           ds.shm_dtime && now - ds.shm_dtime < 60, now - ds.shm_ctime < 60);
    fflush(stdout);
}

static unsigned long attached(int id) {
    struct shmid_ds ds;
    return shmctl(id, IPC_STAT, &ds) == 0 ? ds.shm_nattch : 99;
}

static void shm_errors(void) {
    section("errors");
    key_t key = a_key(1);
    FAILS(shmget(key, PAGE, 0), ENOENT);
    FAILS(shmget(key, 0, IPC_CREAT | 0600), EINVAL);
    FAILS(shmget(key, (size_t)-1, IPC_CREAT | 0600), EINVAL);
    FAILS(shmget(IPC_PRIVATE, SIZE_MAX / 2 + 2, 0600), EINVAL);
    int id = shmget(key, 5000, IPC_CREAT | IPC_EXCL | 0640);
    CHECK(id >= 0);
    FAILS(shmget(key, 5000, IPC_CREAT | IPC_EXCL | 0600), EEXIST);
    FAILS(shmget(key, 5001, 0600), EINVAL);
    FAILS(shmget(key, 5000, 0700), EACCES);
    FAILS(shmget(key, 5000, 0007), EACCES);
    CHECK(shmget(key, 0, 0) == id);
    CHECK(shmget(key, 5000, IPC_CREAT | 0600) == id);
    show_segment(id);
    FAILS((long)shmat(-1, NULL, 0), EINVAL);
    FAILS((long)shmat(id + (1 << 30), NULL, 0), EINVAL);
    FAILS((long)shmat(id, (void *)1, 0), EINVAL);
    FAILS((long)shmat(id, NULL, SHM_REMAP), EINVAL);
    FAILS((long)shmat(id, NULL, SHM_EXEC), EACCES);
    FAILS((long)shmat(id, (void *)-PAGE, 0), EINVAL);
    FAILS((long)shmat(id, (void *)0x7ffffffff000, 0), ENOMEM);
    FAILS(shmdt(NULL), EINVAL);
    FAILS(shmdt((void *)1), EINVAL);
    FAILS(shmctl(-1, IPC_STAT, NULL), EINVAL);
    FAILS(shmctl(id, -1, NULL), EINVAL);
    FAILS(shmctl(id, 77, NULL), EINVAL);
    FAILS(shmctl(id, IPC_STAT | 0x100, NULL), EINVAL);
    FAILS(shmctl(id, IPC_STAT, (void *)8), EFAULT);
    FAILS(shmctl(id, IPC_SET, (void *)8), EFAULT);
    FAILS(shmctl(id + (1 << 30), IPC_RMID, NULL), EINVAL);
    FAILS(shmctl(id + 77, IPC_RMID, NULL), EINVAL);
    struct shmid_ds ds;
    CHECK(shmctl(id, IPC_STAT, &ds) == 0);
    ds.shm_perm.mode = 07777;
    CHECK(shmctl(id, IPC_SET, &ds) == 0);
    show_segment(id);
    ds.shm_perm.uid = (uid_t)-1;
    FAILS(shmctl(id, IPC_SET, &ds), EINVAL);
    CHECK(shmctl(id, IPC_RMID, NULL) == 0);
    FAILS(shmctl(id, IPC_RMID, NULL), EINVAL);
    FAILS(shmctl(id, IPC_STAT, &ds), EINVAL);
    FAILS((long)shmat(id, NULL, 0), EINVAL);
    FAILS(shmget(key, 1, 0), ENOENT);
    // Nobody, its owner among them.
    id = shmget(IPC_PRIVATE, 1, 0);
    FAILS((long)shmat(id, NULL, 0), EACCES);
    FAILS(shmctl(id, IPC_STAT, &ds), EACCES);
    CHECK(shmctl(id, IPC_RMID, NULL) == 0);
}

static void shm_places(void) {
    section("places");
    int id = shmget(IPC_PRIVATE, 3 * PAGE, 0600);
    char *one = shmat(id, NULL, 0), *two = shmat(id, NULL, SHM_RDONLY);
    CHECK(one != (void *)-1 && two != (void *)-1 && one != two);
    strcpy(one + PAGE, "seen twice");
    CHECK(!strcmp(two + PAGE, "seen twice"));
    FAILS(mprotect(two, PAGE, PROT_READ | PROT_WRITE), EACCES);
    CHECK(mprotect(one + PAGE, PAGE, PROT_READ) == 0);
    printf("%lu attached with a hole\n", attached(id));
    FAILS((long)shmat(id, one, 0), EINVAL);
    CHECK(shmat(id, one, SHM_REMAP) == one);
    CHECK(!strcmp(one + PAGE, "seen twice"));
    one[PAGE] = 'S';
    CHECK(two[PAGE] == 'S');
    printf("%lu attached\n", attached(id));
    CHECK(shmdt(two) == 0);
    FAILS(shmdt(two), EINVAL);
    CHECK(shmat(id, two + 77, SHM_RND) == two);
    FAILS(shmdt(two + PAGE), EINVAL);
    // Parts of it, the first one last.
    CHECK(munmap(two + PAGE, PAGE) == 0);
    printf("%lu attached in parts\n", attached(id));
    CHECK(shmdt(two) == 0);
    printf("%lu attached\n", attached(id));
    void *in_its_place = mmap(two + 2 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(in_its_place == two + 2 * PAGE);
    CHECK(munmap(one, PAGE) == 0);
    CHECK(shmdt(one) == 0);
    printf("%lu attached\n", attached(id));
    // What lies in it stays.
    one = shmat(id, NULL, 0);
    CHECK(!strcmp(one + PAGE, "Seen twice"));
    CHECK(shmctl(id, IPC_RMID, NULL) == 0);
    show_segment(id);
    two = shmat(id, NULL, 0);
    CHECK(two != (void *)-1 && two[PAGE] == 'S');
    CHECK(shmdt(one) == 0 && attached(id) == 1);
    CHECK(mremap(two, 3 * PAGE, PAGE, 0) == two);
    CHECK(munmap(two, PAGE) == 0);
    show_segment(id);
}

static void *sleep_on(void *word) {
    syscall(SYS_futex, word, 0 /* FUTEX_WAIT, shared */, 0, NULL, NULL, 0);
    return NULL;
}

static void shm_processes(const char *self) {
    section("processes");
    int id = shmget(IPC_PRIVATE, 64 * PAGE, 0600);
    volatile int *memory = shmat(id, NULL, 0);
    int pipes[2];
    NEED(pipe(pipes) == 0);
    pid_t child = CHILD(memory[0] = 5; char c; read(pipes[0], &c, 1); memory[1024] = (int)attached(id));
    while (memory[0] != 5) pause_ms(1);
    printf("%lu attached by parent and child\n", attached(id));
    NEED(write(pipes[1], "x", 1) == 1);
    NEED(status_of(child) == 0);
    printf("child saw %d; %lu left\n", memory[1024], attached(id));
    show_segment(id);
    child = CHILD(char c; read(pipes[0], &c, 1));
    kill(child, SIGKILL);
    NEED(status_of(child) == SIGKILL);
    printf("%lu after a kill\n", attached(id));
    child = CHILD(char text[20]; snprintf(text, sizeof text, "%d", id); execl(self, self, "count", text, NULL));
    printf("after execve %d\n", WEXITSTATUS(status_of(child)));
    // A word that both wait for.
    child = CHILD(memory[2] = 1; sleep_on((void *)&memory[3]));
    while (memory[2] != 1) pause_ms(1);
    long woken = 0;
    while (woken == 0) woken = syscall(SYS_futex, &memory[3], 1, 10, NULL, NULL, 0);
    NEED(status_of(child) == 0 && woken == 1);
    // The child has it when nobody else does.
    child = CHILD(pause_ms(30); memory[9]++; shmctl(id, IPC_STAT, NULL));
    NEED(shmctl(id, IPC_RMID, NULL) == 0);
    NEED(shmdt((void *)memory) == 0);
    NEED(status_of(child) == 0);
    show_segment(id);
}

static void shm_info(void) {
    section("information");
    struct shminfo limits;
    CHECK(shmctl(0, IPC_INFO, (struct shmid_ds *)&limits) >= 0);
    printf("%lx %lx %lx %lx %lx\n", limits.shmmax, limits.shmmin, limits.shmmni, limits.shmseg, limits.shmall);
    int id = shmget(a_key(2), 3 * PAGE, IPC_CREAT | 0600);
    memset(shmat(id, NULL, 0), 1, 2 * PAGE);
    struct shm_info info;
    int highest = shmctl(0, SHM_INFO, (struct shmid_ds *)&info);
    CHECK(highest >= 0 && info.used_ids >= 1 && info.shm_tot >= 3 && info.shm_rss >= 2);
    int found = 0;
    for (int index = 0; index <= highest; index++) {
        struct shmid_ds ds;
        if (shmctl(index, SHM_STAT, &ds) == id) found++;
    }
    printf("found %d times\n", found);
    FILE *list = fopen("/proc/sysvipc/shm", "r");
    char line[400];
    need(list && fgets(line, sizeof line, list), "a list");
    fputs(line, stdout);
    int key, listed;
    while (fgets(line, sizeof line, list))
        if (sscanf(line, "%d %d", &key, &listed) == 2 && listed == id) {
            CHECK(key == a_key(2));
            printf("%zu long: %.27s\n", strlen(line), line + 22);
        }
    fclose(list);
    CHECK(shmctl(id, SHM_LOCK, NULL) == 0);
    show_segment(id);
    CHECK(shmctl(id, SHM_UNLOCK, NULL) == 0);
    CHECK(shmctl(id, IPC_RMID, NULL) == 0);
    show_segment(id);
    for (int number = 0; number < 7; number++) {
        static const char *const names[] = {"shmmax", "shmall", "shmmni", "sem", "msgmax", "msgmnb", "msgmni"};
        char path[64];
        snprintf(path, sizeof path, "/proc/sys/kernel/%s", names[number]);
        FILE *file = fopen(path, "r");
        need(file && fgets(line, sizeof line, file), path);
        printf("%s %s", names[number], line);
        fclose(file);
    }
}

// ---- semaphores ----

static int operate(int id, int number, int change, int flags) {
    struct sembuf op = {(unsigned short)number, (short)change, (short)flags};
    return semop(id, &op, 1);
}

static void show_set(int id) {
    struct semid_ds ds;
    unsigned short values[8] = {0};
    if (semctl(id, 0, IPC_STAT, (union semun){.buf = &ds}) != 0) {
        printf("set: %s\n", errno_name(errno));
        return;
    }
    printf("set: %lu, mode %o, operated %d, values", (unsigned long)ds.sem_nsems, ds.sem_perm.mode, ds.sem_otime != 0);
    if (ds.sem_nsems <= 8 && semctl(id, 0, GETALL, (union semun){.array = values}) == 0)
        for (unsigned number = 0; number < ds.sem_nsems; number++)
            printf(" %d (%s, %d up, %d zero)", values[number],
                   semctl(id, (int)number, GETPID) == getpid() ? "own" : semctl(id, (int)number, GETPID) ? "other" : "none",
                   semctl(id, (int)number, GETNCNT), semctl(id, (int)number, GETZCNT));
    printf("\n");
    fflush(stdout);
}

static void wait_for(int id, int number, int command, int count) {
    while (semctl(id, number, command) != count) pause_ms(1);
}

static void sem_errors(void) {
    section("errors");
    key_t key = a_key(3);
    struct sembuf ops[501] = {{0, 0, 0}};
    struct timespec bad = {0, 1000000000}, none = {0, 0};
    FAILS(semget(key, 1, 0), ENOENT);
    FAILS(semget(key, -1, IPC_CREAT), EINVAL);
    FAILS(semget(key, 0, IPC_CREAT | 0600), EINVAL);
    FAILS(semget(key, 32001, IPC_CREAT | 0600), EINVAL);
    int id = semget(key, 3, IPC_CREAT | 0600);
    CHECK(id >= 0);
    FAILS(semget(key, 3, IPC_CREAT | IPC_EXCL | 0600), EEXIST);
    FAILS(semget(key, 4, 0600), EINVAL);
    FAILS(semget(key, 3, 0700), EACCES);
    CHECK(semget(key, 0, 0600) == id);
    show_set(id);
    FAILS(semop(id, ops, 0), EINVAL);
    FAILS(semop(id, ops, 501), E2BIG);
    FAILS(semop(-1, ops, 1), EINVAL);
    FAILS(semop(-1, (void *)8, 1), EFAULT);
    FAILS(semop(id, (void *)8, 1), EFAULT);
    FAILS(semop(id + (1 << 30), ops, 1), EINVAL);
    FAILS(operate(id, 3, 0, 0), EFBIG);
    FAILS(operate(id, 0, -1, IPC_NOWAIT), EAGAIN);
    FAILS(semtimedop(id, ops, 1, &bad), EINVAL);
    FAILS(semtimedop(id, ops, 1, (void *)8), EFAULT);
    CHECK(semop(id, ops, 500) == 0);
    ops[0].sem_op = -1;
    FAILS(semtimedop(id, ops, 1, &none), EAGAIN);
    none.tv_nsec = 20000000;
    FAILS(semtimedop(id, ops, 1, &none), EAGAIN);
    FAILS(semctl(id, 0, SETVAL, (union semun){.val = 32768}), ERANGE);
    FAILS(semctl(id, 0, SETVAL, (union semun){.val = -1}), ERANGE);
    FAILS(semctl(id, 3, SETVAL, (union semun){.val = 1}), EINVAL);
    FAILS(semctl(id, -1, GETVAL), EINVAL);
    FAILS(semctl(id, 3, GETVAL), EINVAL);
    FAILS(semctl(id, 3, GETNCNT), EINVAL);
    FAILS(semctl(id, 0, 77), EINVAL);
    FAILS(semctl(-1, 0, GETVAL), EINVAL);
    FAILS(semctl(id, 0, GETALL, (union semun){.array = (void *)8}), EFAULT);
    FAILS(semctl(id, 0, SETALL, (union semun){.array = (void *)8}), EFAULT);
    FAILS(semctl(id, 0, IPC_STAT, (union semun){.buf = (void *)8}), EFAULT);
    unsigned short values[] = {1, 32768, 3};
    FAILS(semctl(id, 0, SETALL, (union semun){.array = values}), ERANGE);
    show_set(id);
    values[1] = 32767;
    CHECK(semctl(id, 0, SETALL, (union semun){.array = values}) == 0);
    show_set(id);
    FAILS(operate(id, 1, 1, 0), ERANGE);
    FAILS(operate(id, 1, -32768, SEM_UNDO | IPC_NOWAIT), EAGAIN);
    // All or nothing, and in order.
    struct sembuf several[] = {{0, -1, 0}, {2, 4, 0}, {0, -1, IPC_NOWAIT}};
    FAILS(semop(id, several, 3), EAGAIN);
    show_set(id);
    several[2].sem_op = 0;
    CHECK(semop(id, several, 3) == 0);
    show_set(id);
    struct semid_ds ds;
    CHECK(semctl(id, 0, IPC_STAT, (union semun){.buf = &ds}) == 0);
    ds.sem_perm.mode = 0400;
    CHECK(semctl(id, 0, IPC_SET, (union semun){.buf = &ds}) == 0);
    FAILS(operate(id, 0, 1, 0), EACCES);
    CHECK(operate(id, 0, 0, 0) == 0);
    FAILS(semctl(id, 0, SETVAL, (union semun){.val = 1}), EACCES);
    CHECK(semctl(id, 0, GETVAL) == 0);
    CHECK(semctl(id, 0, IPC_RMID) == 0);
    FAILS(semctl(id, 0, IPC_RMID), EINVAL);
    FAILS(operate(id, 0, 1, 0), EINVAL);
    struct seminfo info;
    CHECK(semctl(0, 0, IPC_INFO, (union semun){.info = &info}) >= 0);
    printf("%d %d %d %d %d %d %d %d %d %d\n", info.semmap, info.semmni, info.semmns, info.semmnu, info.semmsl, info.semopm,
           info.semume, info.semusz, info.semvmx, info.semaem);
}

static void nothing(int signo) { (void)signo; }

static void sem_waits(void) {
    section("waits");
    int id = semget(IPC_PRIVATE, 2, 0600), done = semget(IPC_PRIVATE, 1, 0600);
    // First come, first served: who asked for much is passed by none who came later for less, if it suits.
    pid_t much = CHILD(NEED(operate(id, 0, -3, 0) == 0));
    wait_for(id, 0, GETNCNT, 1);
    pid_t zero = CHILD(struct sembuf ops[] = {{1, 1, 0}, {0, 0, 0}}; NEED(semop(id, ops, 2) == 0));
    NEED(status_of(zero) == 0);
    NEED(operate(id, 0, 1, 0) == 0);
    zero = CHILD(NEED(operate(id, 0, 0, 0) == 0));
    wait_for(id, 0, GETZCNT, 1);
    show_set(id);
    pid_t one = CHILD(NEED(operate(id, 0, -1, 0) == 0));
    NEED(status_of(one) == 0);
    NEED(status_of(zero) == 0);
    NEED(operate(id, 0, 4, 0) == 0);
    NEED(status_of(much) == 0);
    show_set(id);
    // Handed over: the one who gives cannot take it back.
    NEED(semctl(id, 0, SETVAL, (union semun){.val = 0}) == 0);
    pid_t taker = CHILD(NEED(operate(id, 0, -1, 0) == 0); NEED(operate(done, 0, 1, 0) == 0));
    wait_for(id, 0, GETNCNT, 1);
    NEED(operate(id, 0, 1, 0) == 0);
    FAILS(operate(id, 0, -1, IPC_NOWAIT), EAGAIN);
    NEED(operate(done, 0, -1, 0) == 0);
    NEED(status_of(taker) == 0);
    // SETVAL and SETALL wake too.
    taker = CHILD(NEED(operate(id, 0, -7, 0) == 0));
    wait_for(id, 0, GETNCNT, 1);
    NEED(semctl(id, 0, SETVAL, (union semun){.val = 9}) == 0);
    NEED(status_of(taker) == 0);
    show_set(id);
    taker = CHILD(struct sembuf ops[] = {{0, -5, 0}, {1, -5, 0}}; NEED(semop(id, ops, 2) == 0));
    wait_for(id, 0, GETNCNT, 1);
    unsigned short values[] = {6, 4};
    NEED(semctl(id, 0, SETALL, (union semun){.array = values}) == 0);
    wait_for(id, 1, GETNCNT, 1);
    show_set(id);
    NEED(operate(id, 1, 1, 0) == 0);
    NEED(status_of(taker) == 0);
    show_set(id);
    // A chain: each that goes on lets the next one.
    for (int number = 0; number < 10; number++) {
        int from = number % 2, to = !from;
        NEED(semctl(id, from, SETVAL, (union semun){.val = 0}) == 0);
        NEED(semctl(id, to, SETVAL, (union semun){.val = 0}) == 0);
        pid_t first = CHILD(struct sembuf ops[] = {{(unsigned short)from, -1, 0}, {(unsigned short)to, 1, 0}}; NEED(semop(id, ops, 2) == 0));
        wait_for(id, from, GETNCNT, 1);
        pid_t second = CHILD(NEED(operate(id, to, -1, 0) == 0));
        wait_for(id, to, GETNCNT, 1);
        NEED(operate(id, from, 1, 0) == 0);
        NEED(status_of(first) == 0);
        NEED(status_of(second) == 0);
    }
    show_set(id);

    section("ends of waits");
    struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    taker = CHILD(FAILS(operate(id, 0, -9, 0), EINTR));
    wait_for(id, 0, GETNCNT, 1);
    kill(taker, SIGUSR1);
    NEED(status_of(taker) == 0);
    taker = CHILD(operate(id, 0, -9, 0));
    wait_for(id, 0, GETNCNT, 1);
    kill(taker, SIGKILL);
    NEED(status_of(taker) == SIGKILL);
    wait_for(id, 0, GETNCNT, 0);
    taker = CHILD(FAILS(operate(id, 0, -9, 0), EIDRM));
    wait_for(id, 0, GETNCNT, 1);
    NEED(semctl(id, 0, IPC_RMID) == 0);
    NEED(status_of(taker) == 0);
    show_set(id);
    NEED(semctl(done, 0, IPC_RMID) == 0);
}

static void *undo_here(void *id) {
    NEED(operate(*(int *)id, 0, 5, SEM_UNDO) == 0);
    return NULL;
}

static void sem_undo(const char *self) {
    section("undo");
    int id = semget(IPC_PRIVATE, 2, 0600);
    pid_t child = CHILD(NEED(operate(id, 0, 3, SEM_UNDO) == 0); NEED(operate(id, 1, 2, 0) == 0));
    NEED(status_of(child) == 0);
    show_set(id);
    // Taken, then killed: it comes back, and who waits gets it.
    child = CHILD(NEED(operate(id, 1, -2, SEM_UNDO) == 0); pause());
    wait_for(id, 1, GETVAL, 0);
    pid_t next = CHILD(NEED(operate(id, 1, -1, SEM_UNDO) == 0));
    wait_for(id, 1, GETNCNT, 1);
    kill(child, SIGKILL);
    NEED(status_of(child) == SIGKILL);
    NEED(status_of(next) == 0);
    show_set(id);
    // Not below 0, and not by what SETVAL has forgotten.
    child = CHILD(NEED(operate(id, 0, 9, SEM_UNDO) == 0); NEED(operate(id, 0, -8, 0) == 0));
    NEED(status_of(child) == 0);
    show_set(id);
    child = CHILD(NEED(operate(id, 0, 4, SEM_UNDO) == 0); NEED(operate(id, 1, 4, SEM_UNDO) == 0);
                  NEED(semctl(id, 0, SETVAL, (union semun){.val = 6}) == 0));
    NEED(status_of(child) == 0);
    show_set(id);
    // Not a forked child's, but a program's after execve(2), and all threads'.
    NEED(semctl(id, 0, SETVAL, (union semun){.val = 0}) == 0);
    child = CHILD(NEED(operate(id, 0, 4, SEM_UNDO) == 0); pid_t other = CHILD(); NEED(status_of(other) == 0);
                  NEED(semctl(id, 0, GETVAL) == 4); char text[20]; snprintf(text, sizeof text, "%d", id);
                  execl(self, self, "value", text, NULL));
    printf("value %d\n", WEXITSTATUS(status_of(child)));
    show_set(id);
    child = CHILD(pthread_t thread; pthread_create(&thread, NULL, undo_here, &id); pthread_join(thread, NULL);
                  NEED(semctl(id, 0, GETVAL) == 5));
    NEED(status_of(child) == 0);
    show_set(id);
    // An adjustment has a range too.
    child = CHILD(for (int turn = 0; turn < 2; turn++) {
        errno = 0;
        int result = operate(id, 0, 32767, SEM_UNDO);
        printf("%d %s\n", result, errno_name(errno));
        fflush(stdout);
        NEED(turn || operate(id, 0, -32767, 0) == 0);
    });
    NEED(status_of(child) == 0);
    show_set(id);
    // The set goes first.
    child = CHILD(NEED(operate(id, 0, 1, SEM_UNDO) == 0); NEED(semctl(id, 0, IPC_RMID) == 0));
    NEED(status_of(child) == 0);
    show_set(id);
}

// ---- messages ----

struct text {
    long type;
    char text[8200];
};

static int put(int id, long type, const char *text, int flags) {
    struct text message = {.type = type};
    strcpy(message.text, text);
    return msgsnd(id, &message, strlen(text), flags);
}

static const char *get(int id, long type, int flags) {
    static struct text message;
    memset(&message, 0, sizeof message);
    ssize_t len = msgrcv(id, &message, sizeof message.text - 1, type, flags);
    if (len < 0) return errno_name(errno);
    static char shown[9000];
    snprintf(shown, sizeof shown, "%ld: %s (%zd)", message.type, message.text, len);
    return shown;
}

static void show_queue(int id) {
    struct msqid_ds ds;
    if (msgctl(id, IPC_STAT, &ds) != 0) {
        printf("queue: %s\n", errno_name(errno));
        return;
    }
    printf("queue: %lu messages, %lu of %lu bytes, mode %o, by %s, to %s, times %d %d %d\n", (unsigned long)ds.msg_qnum,
           (unsigned long)ds.__msg_cbytes, (unsigned long)ds.msg_qbytes, ds.msg_perm.mode,
           ds.msg_lspid == getpid() ? "own" : ds.msg_lspid ? "another" : "none",
           ds.msg_lrpid == getpid() ? "own" : ds.msg_lrpid ? "another" : "none", ds.msg_stime != 0, ds.msg_rtime != 0,
           ds.msg_ctime != 0);
    fflush(stdout);
}

static void msg_errors(void) {
    section("errors");
    key_t key = a_key(4);
    static struct text message = {.type = 1};
    FAILS(msgget(key, 0), ENOENT);
    int id = msgget(key, IPC_CREAT | 0600);
    CHECK(id >= 0);
    FAILS(msgget(key, IPC_CREAT | IPC_EXCL), EEXIST);
    FAILS(msgget(key, 0100), EACCES);
    CHECK(msgget(key, 0600) == id);
    show_queue(id);
    FAILS(msgsnd(-1, &message, 1, 0), EINVAL);
    FAILS(msgsnd(id, (void *)8, 1, 0), EFAULT);
    FAILS(msgsnd(id, &message, 8193, 0), EINVAL);
    FAILS(msgsnd(id, &message, (size_t)-1, 0), EINVAL);
    FAILS(put(id, 0, "x", 0), EINVAL);
    FAILS(put(id, -1, "x", 0), EINVAL);
    FAILS(put(id + (1 << 30), 1, "x", 0), EINVAL);
    FAILS(put(id + 77, 1, "x", 0), EINVAL);
    FAILS(msgrcv(id, &message, 10, 0, IPC_NOWAIT), ENOMSG);
    FAILS(msgrcv(id, &message, (size_t)-1, 0, IPC_NOWAIT), EINVAL);
    FAILS(msgrcv(-1, &message, 10, 0, IPC_NOWAIT), EINVAL);
    FAILS(msgrcv(id, &message, 10, 0, MSG_COPY), EINVAL);
    FAILS(msgrcv(id, &message, 10, 0, MSG_COPY | MSG_EXCEPT | IPC_NOWAIT), EINVAL);
    SHOW(put(id, 3, "three", 0));
    SHOW(put(id, 1, "one", 0));
    SHOW(put(id, 2, "two", 0));
    SHOW(put(id, 1, "one more", 0));
    SHOW(put(id, 5, "", 0));
    show_queue(id);
    FAILS(msgrcv(id, &message, 2, 0, 0), E2BIG);
    printf("%s\n", get(id, 9, IPC_NOWAIT));
    printf("%s\n", get(id, -2, 0));
    printf("%s\n", get(id, 1, MSG_EXCEPT));
    printf("%s\n", get(id, LONG_MIN, 0));
    CHECK(msgrcv(id, &message, 10, 1, MSG_COPY | IPC_NOWAIT) == 0 && message.type == 5);
    FAILS(msgrcv(id, &message, 10, 2, MSG_COPY | IPC_NOWAIT), ENOMSG);
    FAILS(msgrcv(id, &message, 10, -1, MSG_COPY | IPC_NOWAIT), ENOMSG);
    CHECK(msgrcv(id, &message, 1, 0, MSG_NOERROR) == 1 && message.text[0] == 't' && message.type == 2);
    printf("%s\n", get(id, 0, 0));
    show_queue(id);
    // One that cannot be written is lost.
    SHOW(put(id, 1, "lost", 0));
    FAILS(msgrcv(id, (void *)8, 10, 0, 0), EFAULT);
    show_queue(id);
    SHOW(msgsnd(id, &message, 8192, IPC_NOWAIT));
    SHOW(msgsnd(id, &message, 8192, IPC_NOWAIT));
    FAILS(msgsnd(id, &message, 1, IPC_NOWAIT), EAGAIN);
    SHOW(msgsnd(id, &message, 0, IPC_NOWAIT));
    show_queue(id);
    struct msqid_ds ds;
    FAILS(msgctl(id, IPC_SET, (void *)8), EFAULT);
    FAILS(msgctl(id, IPC_STAT, (void *)8), EFAULT);
    FAILS(msgctl(id, 77, &ds), EINVAL);
    FAILS(msgctl(-1, IPC_STAT, &ds), EINVAL);
    CHECK(msgctl(id, IPC_STAT, &ds) == 0);
    ds.msg_qbytes = 16385;
    FAILS(msgctl(id, IPC_SET, &ds), EPERM);
    ds.msg_qbytes = 2;
    ds.msg_perm.mode = 0200;
    CHECK(msgctl(id, IPC_SET, &ds) == 0);
    printf("%s\n", get(id, 0, IPC_NOWAIT));
    FAILS(msgctl(id, IPC_STAT, &ds), EACCES);
    CHECK(msgctl(id, IPC_RMID, NULL) == 0);
    FAILS(msgctl(id, IPC_RMID, NULL), EINVAL);
    // Few messages, though empty.
    id = msgget(IPC_PRIVATE, 0600);
    CHECK(msgctl(id, IPC_STAT, &ds) == 0);
    ds.msg_qbytes = 3;
    CHECK(msgctl(id, IPC_SET, &ds) == 0);
    for (int number = 0; number < 4; number++) SHOW(put(id, 1, "", IPC_NOWAIT));
    CHECK(msgctl(id, IPC_RMID, NULL) == 0);
    struct msginfo info;
    CHECK(msgctl(0, IPC_INFO, (struct msqid_ds *)&info) >= 0);
    printf("%d %d %d %d %d %d %d %d\n", info.msgpool, info.msgmap, info.msgmax, info.msgmnb, info.msgmni, info.msgssz,
           info.msgtql, info.msgseg);
}

static void msg_waits(void) {
    section("waits");
    int id = msgget(IPC_PRIVATE, 0600), done = msgget(IPC_PRIVATE, 0600);
    // Receivers come first come, first served, and nobody takes what has been handed to one.
    pid_t children[3];
    for (int number = 0; number < 3; number++) {
        children[number] = CHILD(char text[300]; snprintf(text, sizeof text, "%d got %s", number, get(id, number == 1 ? 7 : 0, 0));
                                 NEED(put(done, 1, text, 0) == 0));
        pause_ms(40);
    }
    NEED(put(id, 1, "first", 0) == 0);
    printf("%s\n", get(id, 0, IPC_NOWAIT));
    printf("%s\n", get(done, 0, 0));
    NEED(put(id, 2, "second", 0) == 0);
    printf("%s\n", get(done, 0, 0));
    NEED(put(id, 2, "third", 0) == 0);
    printf("%s\n", get(id, 0, IPC_NOWAIT));
    NEED(put(id, 7, "fourth", 0) == 0);
    printf("%s\n", get(done, 0, 0));
    for (int number = 0; number < 3; number++) NEED(status_of(children[number]) == 0);
    show_queue(id);
    // Too long for one: it is told, and the next one has it.
    pid_t short_one = CHILD(struct text message; FAILS(msgrcv(id, &message, 2, 0, 0), E2BIG));
    pause_ms(40);
    NEED(put(id, 1, "long", 0) == 0);
    NEED(status_of(short_one) == 0);
    printf("%s\n", get(id, 0, 0));
    // Senders wait for room.
    static struct text full = {.type = 4};
    for (int number = 0; number < 2; number++) NEED(msgsnd(id, &full, 8192, 0) == 0);
    pid_t sender = CHILD(NEED(put(id, 5, "late", 0) == 0));
    pause_ms(30);
    printf("%s\n", get(id, 5, IPC_NOWAIT));
    NEED(msgrcv(id, &full, 8192, 4, 0) == 8192);
    NEED(status_of(sender) == 0);
    printf("%s\n", get(id, 5, IPC_NOWAIT));
    NEED(msgsnd(id, &full, 8192, 0) == 0);

    section("ends of waits");
    struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    sender = CHILD(FAILS(put(id, 5, "late", 0), EINTR));
    pause_ms(50);
    kill(sender, SIGUSR1);
    NEED(status_of(sender) == 0);
    pid_t receiver = CHILD(FAILS(msgrcv(id, &full, 10, 9, 0), EINTR));
    pause_ms(50);
    kill(receiver, SIGUSR1);
    NEED(status_of(receiver) == 0);
    receiver = CHILD(msgrcv(id, &full, 10, 9, 0));
    pause_ms(30);
    kill(receiver, SIGKILL);
    NEED(status_of(receiver) == SIGKILL);
    // Both are woken at once, in no order that could be compared: neither prints.
    sender = CHILD(_exit(put(id, 5, "late", 0) == -1 && errno == EIDRM ? 0 : 1));
    receiver = CHILD(_exit(msgrcv(id, &full, 10, 9, 0) == -1 && errno == EIDRM ? 0 : 1));
    pause_ms(150);
    NEED(msgctl(id, IPC_RMID, NULL) == 0);
    int one = status_of(sender), other = status_of(receiver);
    NEED(one == 0 && other == 0);
    show_queue(id);
    NEED(msgctl(done, IPC_RMID, NULL) == 0);
}

int main(int argc, char **argv) {
    need(argc > 1, "what");
    if (!strcmp(argv[1], "count")) return (int)attached(atoi(argv[2]));
    if (!strcmp(argv[1], "value")) return semctl(atoi(argv[2]), 0, GETVAL);
    if (!strcmp(argv[1], "shm")) {
        shm_errors();
        shm_places();
        shm_processes(argv[0]);
        shm_info();
    } else if (!strcmp(argv[1], "sem")) {
        sem_errors();
        sem_waits();
        sem_undo(argv[0]);
    } else {
        msg_errors();
        msg_waits();
    }
    return 0;
}
