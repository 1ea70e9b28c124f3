// Shared by the programs that serve messages: text commands in, text out, and a look at everything
// that a program can see of itself.
//
// Natively the same programs read length-prefixed messages from descriptor 0 and write them to 1.
#ifndef SERVICE_H
#define SERVICE_H
#include "guest.h"

#include <dirent.h>
#include <fcntl.h>
#include <kvmlet.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>

#ifndef REQUEST_MAX
#define REQUEST_MAX (1 << 20)
#define ANSWER_MAX (4 << 20)
#endif

static char request_text[REQUEST_MAX + 1];
static size_t request_len;
static char answer_text[ANSWER_MAX];
static size_t answer_len;

static inline __attribute__((format(printf, 1, 2))) void say(const char *format, ...) {
    va_list args;
    va_start(args, format);
    int len = vsnprintf(answer_text + answer_len, ANSWER_MAX - answer_len, format, args);
    va_end(args);
    if (len > 0) answer_len += (size_t)len;
    if (answer_len >= ANSWER_MAX) answer_len = ANSWER_MAX - 1;
}

static inline void say_bytes(const void *data, size_t len) {
    if (len > ANSWER_MAX - 1 - answer_len) len = ANSWER_MAX - 1 - answer_len;
    memcpy(answer_text + answer_len, data, len);
    answer_len += len;
}

// The next request, null-terminated; the program ends when there are no more (natively).
static inline void next_request(void) {
    // Without what differs in each fork: kvmlet_receive leaves a number and random bytes in memory.
    ssize_t len = kvmlet_call_(KVMLET_NR_RECEIVE, request_text, REQUEST_MAX, 0, NULL);
    if (len == -EINTR) return next_request();
    if (len == -ENOSYS) len = kvmlet_receive(request_text, REQUEST_MAX);
    if (len < 0) exit(errno == ENODATA ? 0 : 98);
    request_len = (size_t)len;
    request_text[len] = 0;
}

static inline void send_answer(void) {
    if (kvmlet_send(answer_text, answer_len) != 0) exit(97);
    answer_len = 0;
}

// Whether the request is `verb`, alone or followed by a space; `*rest` is what follows.
static inline int is_verb(const char *verb, char **rest) {
    size_t len = strlen(verb);
    if (request_len < len || memcmp(request_text, verb, len) != 0) return 0;
    if (request_text[len] != 0 && request_text[len] != ' ') return 0;
    *rest = request_text + len + (request_text[len] == ' ');
    return 1;
}

static inline uint64_t fnv(uint64_t hash, const void *data, size_t len) {
    const unsigned char *bytes = data;
    for (size_t i = 0; i < len; i++) hash = (hash ^ bytes[i]) * 0x100000001b3ull;
    return hash;
}
#define FNV_START 0xcbf29ce484222325ull

// A hash of whole words: memory is large.
static inline uint64_t hash_words(const void *data, size_t len) {
    const uint64_t *words = data;
    uint64_t hash = FNV_START;
    for (size_t i = 0; i < len / 8; i++) hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15ull + (hash >> 29);
    return hash;
}

// A file's text. The lines and fields that count CPU time are left out: they are never the same.
static inline void say_file(const char *path) {
    static char text[1 << 16];
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        say("%s: %s\n", path, errno_name(errno));
        return;
    }
    size_t len = 0;
    ssize_t got;
    while (len < sizeof text - 1 && (got = read(fd, text + len, sizeof text - 1 - len)) > 0) len += (size_t)got;
    close(fd);
    text[len] = 0;
    size_t path_len = strlen(path);
    if (path_len > 5 && strcmp(path + path_len - 5, "/stat") == 0) {
        char *field = strrchr(text, ')');
        for (int number = 2; field && *field; number++) {
            char *end = strchr(field, ' ');
            if (!end) end = field + strlen(field);
            if (number < 14 || number > 17) say("%.*s ", (int)(end - field), field);
            field = *end ? end + 1 : NULL;
        }
        memset(text, 0, sizeof text);
        return;
    }
    for (char *line = text, *end; *line; line = end) {
        end = strchr(line, '\n');
        end = end ? end + 1 : line + strlen(line);
        if (strncmp(line, "voluntary_ctxt", 14) != 0 && strncmp(line, "nonvoluntary_ctxt", 17) != 0)
            say("%.*s", (int)(end - line), line);
    }
    memset(text, 0, sizeof text);
}

static inline int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

// Names in a directory, sorted.
static inline int sorted_names(const char *path, char **names, int max) {
    DIR *dir = opendir(path);
    int count = 0;
    if (!dir) return -1;
    for (struct dirent *entry; count < max && (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) names[count++] = strdup(entry->d_name);
    closedir(dir);
    qsort(names, (size_t)count, sizeof *names, by_name);
    return count;
}

// What a tree holds: names, kinds, modes, sizes, and a hash of each file's bytes.
// Not into another file system: where the host's working directory lies in /tmp, it holds any number of files.
static inline void say_tree(const char *path) {
    char *names[512], below[1024], bytes[4096];
    struct stat top;
    if (lstat(path, &top) != 0) return;
    int count = sorted_names(path, names, 512);
    for (int i = 0; i < count; i++) {
        struct stat stat;
        snprintf(below, sizeof below, "%s/%s", path, names[i]);
        free(names[i]);
        if (lstat(below, &stat) != 0) continue;
        say("%s %o %ld", below, stat.st_mode, S_ISREG(stat.st_mode) ? (long)stat.st_size : 0);
        if (S_ISREG(stat.st_mode)) {
            uint64_t hash = FNV_START;
            int fd = open(below, O_RDONLY);
            ssize_t got;
            while (fd >= 0 && (got = read(fd, bytes, sizeof bytes)) > 0) hash = fnv(hash, bytes, (size_t)got);
            if (fd >= 0) close(fd);
            say(" %016llx mtime %ld.%09ld", (unsigned long long)hash, stat.st_mtim.tv_sec, stat.st_mtim.tv_nsec);
        }
        say("\n");
        if (S_ISDIR(stat.st_mode) && stat.st_dev == top.st_dev) say_tree(below);
    }
}

static inline void say_descriptors(void) {
    char *names[512], path[300], target[300];
    int count = sorted_names("/proc/self/fd", names, 512);
    for (int i = 0; i < count; i++) {
        int fd = atoi(names[i]);
        snprintf(path, sizeof path, "/proc/self/fd/%s", names[i]);
        free(names[i]);
        ssize_t len = readlink(path, target, sizeof target - 1);
        if (len < 0) continue; // the descriptor that listed them
        target[len] = 0;
        int waiting = -1;
        if (ioctl(fd, FIONREAD, &waiting) != 0) waiting = -1;
        say("fd %d %s fl %x fdfl %x at %ld waiting %d\n", fd, target, fcntl(fd, F_GETFL), fcntl(fd, F_GETFD),
            (long)lseek(fd, 0, SEEK_CUR), waiting);
    }
}

// A hash of every mapping that can be read, without the kernel's own pages: they hold the time.
static inline void say_memory(void) {
    static char maps[1 << 16];
    int fd = open("/proc/self/maps", O_RDONLY);
    size_t len = 0;
    ssize_t got;
    while (len < sizeof maps - 1 && (got = read(fd, maps + len, sizeof maps - 1 - len)) > 0) len += (size_t)got;
    close(fd);
    maps[len] = 0;
    for (char *line = maps, *end; (end = strchr(line, '\n')); line = end + 1) {
        *end = 0;
        unsigned long from, to;
        char mode[8];
        if (sscanf(line, "%lx-%lx %7s", &from, &to, mode) != 3 || mode[0] != 'r' || strstr(line, "[v")) continue;
        say("%lx-%lx %016llx\n", from, to, (unsigned long long)hash_words((void *)from, to - from));
    }
}

extern char **environ;

// Everything that a program can see of itself, and of a tree of files ("": /tmp). Equal in every fork
// and after every reset.
static inline void say_self(const char *tree) {
    static const char *const files[] = {"maps", "status", "statm", "stat", "limits", "cmdline", "comm", "mounts"};
    char path[300];
    say_descriptors();
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "/proc/self/%s", files[i]);
        say("== %s\n", path);
        say_file(path);
        say("\n");
    }
    char *names[512];
    int count = sorted_names("/proc/self/task", names, 512);
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", names[i]);
        free(names[i]);
        say("%s ", path);
        say_file(path);
    }
    if (!*tree) tree = "/tmp";
    say("== %s\n", tree);
    say_tree(tree);
    say("== self\n");
    char cwd[300];
    mode_t mask = umask(0);
    umask(mask);
    say("cwd %s umask %o pid %d ppid %d\n", getcwd(cwd, sizeof cwd) ? cwd : "-", mask, getpid(), getppid());
    for (int number = 1; number < 65; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0 && (action.sa_handler != SIG_DFL || action.sa_flags))
            say("signal %d handler %p flags %x\n", number, (void *)action.sa_handler, action.sa_flags);
    }
    sigset_t blocked, pending;
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    sigpending(&pending);
    say("blocked %016lx pending %016lx\n", *(unsigned long *)&blocked, *(unsigned long *)&pending);
    stack_t alternate;
    sigaltstack(NULL, &alternate);
    say("altstack %p %zu %d\n", alternate.ss_sp, alternate.ss_size, alternate.ss_flags);
    for (int which = 0; which < 3; which++) {
        struct itimerval timer;
        getitimer(which, &timer);
        say("itimer %d every %ld.%06ld %s\n", which, timer.it_interval.tv_sec, timer.it_interval.tv_usec,
            timer.it_value.tv_sec || timer.it_value.tv_usec ? "armed" : "off");
    }
    for (int number = 0; number < 16; number++) {
        struct rlimit limit;
        if (getrlimit(number, &limit) == 0) say("limit %d %lx %lx\n", number, (long)limit.rlim_cur, (long)limit.rlim_max);
    }
    for (char **variable = environ; *variable; variable++) say("%p %s\n", (void *)*variable, *variable);
    unsigned mxcsr;
    unsigned short control;
    unsigned long fs_word;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    __asm__ volatile("fnstcw %0" : "=m"(control));
    __asm__ volatile("mov %%fs:0, %0" : "=r"(fs_word));
    void *fresh = malloc(100), *large = malloc(1 << 20);
    say("mxcsr %x fcw %x fs %lx brk %p stack %p malloc %p %p\n", mxcsr, control, fs_word, sbrk(0), (void *)&mxcsr, fresh,
        large);
    free(large);
    free(fresh);
    int next = dup(0);
    say("next descriptor %d\n", next);
    if (next >= 0) close(next);
    say("== memory\n");
    say_memory();
}

#endif
