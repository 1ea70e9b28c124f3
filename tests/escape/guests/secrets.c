// A program that a secret goes through: "plant SEED" puts a secret derived from SEED wherever a
// program can put one and leaves it there; "find MASKED" looks for it in all memory and state. The
// seed is masked in the second request, and needles are, so that the search does not find itself.
// argv[1]: threads beside the first.
#define REQUEST_MAX (64 << 10)
#define ANSWER_MAX (256 << 10)
#include "../../guests/service.h"

#include "needles.h"
#include "registers.h"
#include <pthread.h>
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define THREADS_MAX 8
#define PAGE 4096

struct worker {
    pthread_t thread;
    volatile uint32_t go, done, release;
    int number;
    enum { PLANT, FIND } what;
    unsigned char registers[REGISTERS_LEN] __attribute__((aligned(64)));
};

static struct worker workers[THREADS_MAX];
static int worker_count;
static unsigned char main_registers[REGISTERS_LEN] __attribute__((aligned(64)));
static __thread uint64_t own_words[64];
static uint64_t global_words[1024];
static char **arguments;
static int hosted; // messages do not travel by descriptors 0 and 1
static pthread_attr_t small_stack; // all of it is searched

static uint32_t first_pkru;

// Software KVM shows ring 3 the host's protection keys.
static int has_keys(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && c >> 4 & 1;
}

static uint32_t pkru(void) {
    uint32_t value = 0;
    if (has_keys()) __asm__ volatile(".byte 0x0f, 0x01, 0xee" : "=a"(value) : "c"(0) : "rdx");
    return value;
}

static void set_pkru(uint32_t value) {
    if (has_keys()) __asm__ volatile(".byte 0x0f, 0x01, 0xef" : : "a"(value), "c"(0), "d"(0) : "memory");
}

static long futex(volatile uint32_t *word, int op, uint32_t value) { return syscall(SYS_futex, word, op, value, NULL, NULL, 0); }

static void plant_in_thread(void) {
    char thread_name[16];
    snprintf(thread_name, sizeof thread_name, "%.15s", secret.text);
    prctl(PR_SET_NAME, thread_name);
    fill(own_words, sizeof own_words);
    fill_stack(4);
    char *stack = malloc(16384);
    fill(stack, 16384);
    stack_t alternate = {.ss_sp = stack, .ss_size = 16384};
    sigaltstack(&alternate, NULL);
    syscall(SYS_set_robust_list, secret.words[0], 24);
}

static void *work(void *data) {
    struct worker *me = data;
    for (;;) {
        // FUTEX_WAIT_PRIVATE while `go` is 0
        long wait[6] = {SYS_futex, (long)&me->go, 128, 0, 0, 0};
        while (me->go == 0) store_registers(wait, me->registers);
        me->go = 0;
        if (me->what == PLANT) plant_in_thread();
        me->done = 1;
        futex(&me->done, FUTEX_WAKE_PRIVATE, 1);
        // The last two spin: each switch to another thread waits for the end of their turn.
        if (me->what == PLANT) hold_registers(secret.words, &me->release, me->number + 2 >= worker_count);
    }
    return NULL;
}

static void *plant_and_end(void *unused) {
    plant_in_thread();
    return unused;
}

static void run_workers(int what) {
    for (int i = 0; i < worker_count; i++) {
        struct worker *worker = &workers[i];
        worker->release = what == FIND;
        futex(&worker->release, FUTEX_WAKE_PRIVATE, 1);
        worker->what = what;
        worker->go = 1;
        futex(&worker->go, FUTEX_WAKE_PRIVATE, 1);
        while (worker->done == 0) futex(&worker->done, FUTEX_WAIT_PRIVATE, 0);
        worker->done = 0;
    }
}

static void put(int fd) {
    char block[1024];
    fill(block, sizeof block);
    write(fd, block, sizeof block);
}

// Queues, backlogs and names of sockets, a descriptor in a message, a question for a name.
static void plant_in_sockets(void) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0) put(ends[0]);
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0) send(ends[0], secret.words, 16, 0);
    for (int abstract = 0; abstract < 2; abstract++) {
        struct sockaddr_un un = {.sun_family = AF_UNIX};
        snprintf(un.sun_path + abstract, 80, "%ssocket", secret.text);
        int listener = socket(AF_UNIX, SOCK_STREAM, 0), early = socket(AF_UNIX, SOCK_STREAM, 0);
        if (bind(listener, (void *)&un, sizeof un) == 0 && listen(listener, 4) == 0 && connect(early, (void *)&un, sizeof un) == 0)
            put(early);
        close(early);
    }
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int kind = SOCK_STREAM; kind <= SOCK_DGRAM; kind++) {
        socklen_t len = sizeof in;
        in.sin_port = 0;
        int receiver = socket(AF_INET, kind, 0), sender = socket(AF_INET, kind, 0);
        if (bind(receiver, (void *)&in, len) == 0 && getsockname(receiver, (void *)&in, &len) == 0 &&
            (kind == SOCK_DGRAM || listen(receiver, 4) == 0) && connect(sender, (void *)&in, len) == 0)
            put(sender);
    }
    int stream[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0) {
        _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
        struct iovec iov = {secret.words, 16};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        struct cmsghdr *header = CMSG_FIRSTHDR(&msg);
        *header = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(header), &ends[1], sizeof(int));
        sendmsg(stream[0], &msg, 0);
    }
    // A question for the address of SECRET.example (RFC 1035, 4.1).
    unsigned char question[64] = {0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 16};
    memcpy(question + 13, secret.text, 16);
    memcpy(question + 29, "\7example\0\0\1\0\1", 13);
    struct sockaddr_in names = {.sin_family = AF_INET, .sin_port = htons(53), .sin_addr.s_addr = htonl(0x7f000035)};
    sendto(socket(AF_INET, SOCK_DGRAM, 0), question, 42, 0, (void *)&names, sizeof names);
}

struct kernel_action {
    uint64_t handler, flags, restorer, mask;
};

static void plant(const char *seed_text) {
    make_secret(strtoull(seed_text, NULL, 16));
    // Memory of each kind.
    fill(global_words, sizeof global_words);
    for (int i = 0; i < 32; i++) {
        char *kept = malloc((size_t)i * 700 + 64), *freed = malloc((size_t)i * 900 + 64);
        fill(kept, (size_t)i * 700 + 64);
        fill(freed, (size_t)i * 900 + 64);
        free(freed);
    }
    char *fresh = mmap(NULL, 40 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(fresh, 40 * PAGE);
    char *gone = mmap(NULL, 40 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(gone, 40 * PAGE);
    munmap(gone, 40 * PAGE);
    char *huge = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t at = 0; at < 4 << 20; at += 16 * PAGE) fill(huge + at, 64);
    char *hidden = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(hidden, 4 * PAGE);
    mprotect(hidden, 4 * PAGE, PROT_NONE);
    char *shared = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fill(shared, 4 * PAGE);
    fill(sbrk(8 * PAGE), 8 * PAGE);
    fill(sbrk(8 * PAGE), 8 * PAGE);
    sbrk(-8 * PAGE);
    // Code that was written.
    mprotect(spare_code, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    fill(spare_code, PAGE);
    memset(arguments[0], 0, strlen(arguments[0]));
    strncpy(arguments[0], secret.text, 12);
    setenv("SECRET", secret.text, 1);
    setenv(secret.text, "name", 1);
    // Processes: one that has ended and been waited for, one that has not been, one that goes on.
    for (int number = 0; number < 3; number++) {
        pid_t child = fork();
        if (!child) {
            prctl(PR_SET_NAME, secret.text);
            fill(global_words, sizeof global_words);
            fill(mmap(NULL, 40 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 40 * PAGE);
            if (number < 2) _exit(0);
            for (;;) pause();
        }
        if (number == 0) waitpid(child, NULL, 0);
    }
    // Files.
    char path[128];
    snprintf(path, sizeof path, "/tmp/%s", secret.text);
    mkdir(path, 0700);
    chdir(path);
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s%d", secret.text, i);
        int fd = open(path, O_RDWR | O_CREAT, 0600);
        for (int j = 0; j < 20; j++) put(fd);
        if (i == 1) unlink(path);
        if (i == 2) {
            char *mapped = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            fill(mapped, 4 * PAGE);
        }
        if (i != 3) continue;
        ftruncate(fd, 0);
        close(fd);
    }
    symlink(secret.text, "link");
    rename("/tmp/base", secret.text);
    int base = open("/tmp/kept", O_RDWR);
    put(base);
    for (int i = 0; i < 2; i++) {
        int memory = memfd_create(secret.text, 0);
        put(memory);
        if (i) close(memory);
    }
    // What the kernel holds for a program.
    int ends[2];
    if (pipe(ends) == 0) put(ends[1]);
    plant_in_sockets();
    eventfd(0, 0);
    uint64_t counter = secret.words[0] >> 1;
    write(eventfd(0, 0), &counter, 8);
    int epoll = epoll_create1(0);
    struct epoll_event watch = {.events = EPOLLIN, .data.u64 = secret.words[0]};
    epoll_ctl(epoll, EPOLL_CTL_ADD, ends[1], &watch);
    // Signals: a handler, a restorer, a pending value, timers' values.
    for (int number = 40; number < 50; number++) {
        struct kernel_action action = {secret.words[0], 0x04000000, secret.words[1], secret.words[0]};
        syscall(SYS_rt_sigaction, number, &action, NULL, 8);
    }
    sigset_t set;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (int i = 0; i < 4; i++) sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_ptr = (void *)secret.words[0]});
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2, .sigev_value.sival_ptr = (void *)secret.words[0]};
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    struct itimerspec far = {{0, 0}, {1000000, secret.words[0] % 1000000000}};
    timer_settime(timer, 0, &far, NULL);
    setrlimit(RLIMIT_CORE, &(struct rlimit){secret.words[0] >> 1, secret.words[0] >> 1});
    // Threads: those there are, and one that ends.
    pthread_t thread;
    if (pthread_create(&thread, &small_stack, plant_and_end, NULL) == 0) pthread_join(thread, NULL);
    run_workers(PLANT);
    plant_in_thread();
    // To the host: output and a message that it has not taken.
    if (hosted) put(1);
    put(2);
    say("planted");
    uint32_t once = 1;
    hold_registers(secret.words, &once, 1);
    // Key 0, which all memory has, stays open.
    set_pkru((uint32_t)secret.words[0] << 2 | 4);
    send_answer();
    // The host may stop the program at the answer, or let it go on.
    if (hosted) kvmlet_send(&secret, sizeof secret);
    hold_registers(secret.words, &once, 1);
}

// ---- the search ----

static void *fresh_stack(void *unused) {
    char deep[65536];
    __asm__ volatile("" : : "r"(deep) : "memory");
    is_zero("stack of a new thread", deep, sizeof deep - 256);
    return unused;
}

// A signal that would be pending: none is.
static void on_found(int number) { say("signal %d came\n", number), found++; }

static void find(const char *masked) {
    found = 0;
    if (pkru() != first_pkru) say("protection keys\n"), found++;
    make_needles(strtoull(masked, NULL, 16));
    search("registers", main_registers, sizeof main_registers);
    run_workers(FIND);
    for (int i = 0; i < worker_count; i++) search("registers of a thread", workers[i].registers, REGISTERS_LEN);
    search_memory();
    // What is new to the program is zero.
    char *fresh = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    is_zero("new memory", fresh, 1 << 20);
    char *large = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t at = 0; at < 4 << 20; at += PAGE) large[at + 8] = 1, is_zero("new memory", large + at + 9, 100);
    is_zero("grown break", sbrk(16 * PAGE), 16 * PAGE);
    int memory = memfd_create("new", 0);
    ftruncate(memory, 4 * PAGE);
    char *file = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    is_zero("new file", file, 4 * PAGE);
    pthread_t thread;
    if (pthread_create(&thread, &small_stack, fresh_stack, NULL) == 0) pthread_join(thread, NULL);
    // All that it can ask for.
    size_t before = answer_len;
    say_self("");
    size_t len_of_state = answer_len - before;
    static unsigned char state[1 << 18];
    if (len_of_state > sizeof state) found++, len_of_state = sizeof state;
    memcpy(state, answer_text + before, len_of_state);
    answer_len = before;
    search("state", state, len_of_state);
    static const char *const lists[] = {"/proc/net/unix", "/proc/net/tcp", "/proc/net/udp"};
    for (int i = 0; i < 3; i++) {
        int list = open(lists[i], O_RDONLY);
        ssize_t size = read(list, state, sizeof state);
        close(list);
        if (size <= 0 && found++ < 20) say("no %s\n", lists[i]);
        search(lists[i], state, size > 0 ? (size_t)size : 0);
    }
    char names[THREADS_MAX][300];
    for (int i = 0; i < worker_count; i++) {
        memset(names[i], 0, sizeof names[i]);
        pthread_getname_np(workers[i].thread, names[i], 16);
        search("thread name", (unsigned char *)names[i], sizeof names[i]);
    }
    for (int number = 1; number < 65; number++) {
        struct kernel_action action = {0};
        syscall(SYS_rt_sigaction, number, NULL, &action, 8);
        search("signal action", (unsigned char *)&action, sizeof action);
    }
    // Whatever is pending arrives now.
    for (int number = 1; number < 65; number++)
        if (number != SIGKILL && number != SIGSTOP && number != 32 && number != 33) signal(number, on_found);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    say("found %d", found);
    send_answer();
}

static void next(void) {
    long wait[6] = {KVMLET_NR_RECEIVE, (long)request_text, REQUEST_MAX, 0, 0, 0};
    long len = store_registers(wait, main_registers);
    if (len == -ENOSYS) {
        next_request();
        return;
    }
    if (len < 0) exit(98);
    hosted = 1;
    request_len = (size_t)len;
    request_text[len] = 0;
}

int main(int argc, char **argv) {
    arguments = argv;
    first_pkru = pkru();
    worker_count = argc > 1 ? atoi(argv[1]) : 0;
    // No thread takes what is to stay pending.
    sigset_t pending;
    sigemptyset(&pending);
    sigaddset(&pending, SIGRTMIN + 5);
    sigprocmask(SIG_BLOCK, &pending, NULL);
    int fd = open("/tmp/kept", O_RDWR | O_CREAT, 0600);
    write(fd, "kept", 4);
    close(fd);
    close(open("/tmp/base", O_RDWR | O_CREAT, 0600));
    pthread_attr_init(&small_stack);
    pthread_attr_setstacksize(&small_stack, 256 << 10);
    for (int i = 0; i < worker_count; i++) {
        workers[i].number = i;
        need(pthread_create(&workers[i].thread, &small_stack, work, &workers[i]) == 0, "pthread_create");
    }
    for (;;) {
        char *rest;
        next();
        if (is_verb("plant", &rest)) plant(rest);
        else if (is_verb("find", &rest)) find(rest);
        else {
            if (is_verb("see", &rest)) say_self(rest);
            else say("what? %s", request_text);
            send_answer();
        }
    }
}
