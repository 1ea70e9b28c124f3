// A server of several processes that exist when it is frozen: eight workers that answer through pipes, a child that
// is stopped, and one that has ended and not been waited for. Requests fork, execute, kill and leave behind.
#include "service.h"

#include <sys/mman.h>
#include <sys/wait.h>

#define PAGE 4096
#define PAGES 300
#define WORKERS 8

static struct worker {
    pid_t pid;
    int to, from;
} workers[WORKERS];
static pid_t stopped, ended;
static char *shared, *memory, *private;
static int calls;

static void end_with_parent(void) { prctl(PR_SET_PDEATHSIG, SIGKILL); }

static void work(int in, int out) {
    end_with_parent();
    char order;
    while (read(in, &order, 1) == 1) {
        int sum = ++calls;
        switch (order) {
            case 'w': // its own pages
                for (int page = 0; page < PAGES; page += 3) private[page * PAGE]++;
                break;
            case 's': // pages that all see
                shared[PAGE]++;
                memory[0]++;
                break;
            case 'f': { // a child of its own, waited for
                pid_t child = fork();
                if (!child) {
                    private[0] = 9;
                    _exit(private[0] + private[PAGE]);
                }
                int status = 0;
                waitpid(child, &status, 0);
                sum += WEXITSTATUS(status);
                break;
            }
        }
        for (int page = 0; page < PAGES; page++) sum += private[page * PAGE];
        for (int page = 0; page < 3; page++) sum = sum * 7 + shared[page * PAGE];
        sum = sum * 7 + memory[0];
        if (write(out, &sum, sizeof sum) != sizeof sum) break;
    }
    _exit(0);
}

static int ask(int number, char order) {
    int sum = -1;
    if (write(workers[number].to, &order, 1) != 1) return -2;
    if (read(workers[number].from, &sum, sizeof sum) != sizeof sum) return -3;
    return sum;
}

static void look(void) {
    int sum = 0;
    for (int page = 0; page < PAGES; page++) sum += private[page * PAGE];
    say("%d calls, %d, shared %d %d %d, memory %d, workers", calls, sum, shared[0], shared[PAGE], shared[2 * PAGE], memory[0]);
    for (int number = 0; number < WORKERS; number++) say(" %d", workers[number].pid ? ask(number, 'l') : -1);
    siginfo_t info = {0};
    int result = waitid(P_PID, (id_t)ended, &info, WEXITED | WNOWAIT | WNOHANG);
    say(", ended %d %d, stopped %d", result, info.si_status, kill(stopped, 0));
    say(", next %d\n", (calls++, open("/dev/null", O_RDONLY | O_CLOEXEC)));
}

static int status_of(pid_t pid) {
    int status = -1;
    return waitpid(pid, &status, 0) == pid ? status : -1;
}

static void answer(const char *self) {
    const char *text = request_text;
    look();
    if (!strcmp(text, "share")) {
        shared[0]++;
        memory[0]++;
        say("%d ", ask(0, 's'));
        shared[2 * PAGE] = shared[PAGE] + 1;
        say("%d ", ask(1, 's'));
        say("%d\n", shared[PAGE]);
    } else if (!strcmp(text, "write")) {
        say("%d ", ask(0, 'w'));
        say("%d\n", ask(0, 'w'));
        for (int page = 1; page < PAGES; page += 5) private[page * PAGE] = 3;
    } else if (!strcmp(text, "fork")) {
        private[0] = 4;
        pid_t child = fork();
        if (!child) {
            for (int page = 0; page < PAGES; page++) private[page * PAGE]++;
            shared[0] = 5;
            _exit(private[0]);
        }
        int status = status_of(child);
        say("%#x %d ", status, private[0]);
        say("%d\n", ask(1, 'f'));
    } else if (!strcmp(text, "execute")) {
        char line[64] = "";
        FILE *shell = popen("echo $((6*7)) | tr 4 5", "r");
        say("%s", shell && fgets(line, sizeof line, shell) ? line : "none\n");
        say("%#x\n", shell ? pclose(shell) : -1);
        pid_t child = vfork();
        if (!child) {
            execl(self, self, "child", NULL);
            _exit(1);
        }
        say("%#x\n", status_of(child));
    } else if (!strcmp(text, "kill")) {
        kill(workers[0].pid, SIGKILL);
        say("%#x ", status_of(workers[0].pid));
        say("%#x\n", status_of(ended));
        workers[0].pid = 0;
        kill(stopped, SIGCONT);
        say("%#x\n", status_of(stopped));
    } else if (!strcmp(text, "leave")) {
        // A process that nobody waits for, and one that its parent leaves to init.
        pid_t left = fork();
        if (!left) {
            for (int fd = 0; fd < 3; fd++) close(fd);
            if (!fork()) setsid();
            alarm(3);
            private[0] = 8;
            for (;;) pause();
        }
        pid_t child = fork();
        if (!child) {
            if (fork()) _exit(2);
            for (int fd = 0; fd < 3; fd++) close(fd);
            alarm(3);
            for (;;) private[PAGE]++;
        }
        say("%#x\n", status_of(child));
    } else if (!strcmp(text, "replace")) {
        // A worker becomes another program.
        kill(workers[1].pid, SIGUSR1);
        say("%#x\n", status_of(workers[1].pid));
        workers[1].pid = 0;
    }
    look();
}

static const char *own_path;

static void become(int signo) {
    (void)signo;
    execl(own_path, own_path, "child", NULL);
    _exit(1);
}

int main(int argc, char **argv) {
    if (argc > 1) return 42;
    own_path = argv[0];
    signal(SIGUSR1, become);
    shared = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    private = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int file = memfd_create("family", 0);
    need(file >= 0 && ftruncate(file, PAGE) == 0, "memfd");
    memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    need(shared != MAP_FAILED && private != MAP_FAILED && memory != MAP_FAILED, "mmap");
    for (int page = 0; page < PAGES; page++) private[page * PAGE] = 1;
    for (int number = 0; number < WORKERS; number++) {
        int to[2], from[2];
        need(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0, "pipe");
        private[number * PAGE]++;
        workers[number].pid = fork();
        if (!workers[number].pid) {
            close(to[1]);
            close(from[0]);
            work(to[0], from[1]);
        }
        close(to[0]);
        close(from[1]);
        workers[number].to = to[1];
        workers[number].from = from[0];
        need(ask(number, 'w') > 0, "a worker");
    }
    stopped = fork();
    if (!stopped) {
        end_with_parent();
        raise(SIGSTOP);
        _exit(6);
    }
    int status;
    need(waitpid(stopped, &status, WUNTRACED) == stopped && WIFSTOPPED(status), "stopped");
    ended = fork();
    if (!ended) _exit(7);
    siginfo_t info;
    need(waitid(P_PID, (id_t)ended, &info, WEXITED | WNOWAIT) == 0, "ended");
    for (;;) {
        next_request();
        answer(argv[0]);
        send_answer();
    }
}
