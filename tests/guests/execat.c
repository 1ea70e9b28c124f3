// execveat(2) and fexecve(3).
#include "guest.h"
#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

extern char **environ;

static int at(int fd, const char *path, char *const argv[], char *const envp[], int flags) {
    return (int)syscall(SYS_execveat, fd, path, argv, envp, flags);
}

static void child(const char *what, int fd, const char *path, int flags) {
    char *argv[] = {"zero", "say", (char *)what, NULL};
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        at(fd, path, argv, environ, flags);
        printf("%s: %s\n", what, errno_name(errno));
        fflush(stdout);
        _exit(77);
    }
    int status;
    need(waitpid(pid, &status, 0) == pid, "waitpid");
    printf("%s: %#x\n", what, status);
    fflush(stdout);
}

static void copy(int to) {
    char buffer[65536];
    int from = open("/proc/self/exe", O_RDONLY);
    for (ssize_t len; (len = read(from, buffer, sizeof buffer)) > 0;) need(write(to, buffer, (size_t)len) == len, "copy");
    close(from);
}

static int said(int argc, char **argv) {
    char comm[32] = "", exe[200] = "";
    int fd = open("/proc/self/comm", O_RDONLY);
    comm[read(fd, comm, sizeof comm - 1) - 1] = 0;
    close(fd);
    ssize_t len = readlink("/proc/self/exe", exe, sizeof exe - 1);
    char *base = len > 0 ? strrchr(exe, '/') : NULL;
    char *deleted = strstr(exe, " (deleted)");
    if (deleted) *deleted = 0;
    const char *execfn = (const char *)getauxval(AT_EXECFN);
    // The numbers of descriptors are none of its business, nor is the name of the directory.
    if (strncmp(execfn, "/dev/fd/", 8) == 0) execfn += 8 + strspn(execfn + 8, "0123456789");
    else execfn = "a path";
    if (strrchr(argv[0], '/')) argv[0] = strrchr(argv[0], '/');
    printf("%d arguments, %s, %s, comm %s, exe %s, execfn %s\n", argc, argv[0], argc == 3 ? argv[2] : "script", comm,
           base ? base : "-", execfn);
    return 5;
}

int main(int argc, char **argv) {
    if (argc > 1 && (!strcmp(argv[1], "say") || (argc > 2 && !strcmp(argv[2], "say")))) return said(argc, argv);
    char dir[] = "/tmp/execat-XXXXXX";
    need(mkdtemp(dir) != NULL && chdir(dir) == 0, "a directory");
    int file = open("program", O_CREAT | O_WRONLY, 0755);
    copy(file);
    close(file);
    need(symlink("program", "link") == 0, "symlink");
    file = open("plain", O_CREAT | O_WRONLY, 0644);
    close(file);
    file = open("script", O_CREAT | O_WRONLY, 0755);
    dprintf(file, "#!%s/program say\n", dir);
    close(file);
    int here = open(".", O_RDONLY | O_DIRECTORY), program = open("program", O_RDONLY), name = open("program", O_PATH);
    int script = open("script", O_RDONLY), closing = open("script", O_RDONLY | O_CLOEXEC);
    int link = open("link", O_PATH | O_NOFOLLOW), plain = open("plain", O_RDONLY);
    int memory = memfd_create("in memory", MFD_CLOEXEC);
    copy(memory);
    fchmod(memory, 0700);

    section("programs");
    child("by name", here, "program", 0);
    child("by link", here, "link", 0);
    child("by path", here, "./program", AT_SYMLINK_NOFOLLOW);
    child("from here", AT_FDCWD, "program", 0);
    char path[64];
    snprintf(path, sizeof path, "%s/program", dir);
    child("absolute", -1, path, 0);
    child("open", program, "", AT_EMPTY_PATH);
    child("opened as a name", name, "", AT_EMPTY_PATH);
    child("in memory", memory, "", AT_EMPTY_PATH);
    child("script", here, "script", 0);
    child("open script", script, "", AT_EMPTY_PATH);

    section("errors");
    child("link not followed", here, "link", AT_SYMLINK_NOFOLLOW);
    child("open link", link, "", AT_EMPTY_PATH);
    child("script that is closed", closing, "", AT_EMPTY_PATH);
    child("not a program", plain, "", AT_EMPTY_PATH);
    child("directory", here, "", AT_EMPTY_PATH);
    child("working directory", AT_FDCWD, "", AT_EMPTY_PATH);
    child("empty", here, "", 0);
    child("no such name", here, "nothing", 0);
    child("no descriptor", 99, "program", 0);
    child("no descriptor, empty", 99, "", AT_EMPTY_PATH);
    child("no directory", program, "program", 0);
    child("flags", here, "program", 0x800000);
    child("pipe", 0, "", AT_EMPTY_PATH);
    FAILS(at(here, (char *)8, argv, environ, 0), EFAULT);
    FAILS(at(here, "program", (char **)8, environ, 0), EFAULT);

    section("fexecve");
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        char *words[] = {"zero", "say", "by the library", NULL};
        fexecve(program, words, environ);
        _exit(1);
    }
    int status;
    need(waitpid(pid, &status, 0) == pid, "waitpid");
    printf("%#x\n", status);
    chdir("/");
    for (unsigned at = 0; at < 4; at++) {
        static const char *const names[] = {"program", "link", "plain", "script"};
        unlinkat(here, names[at], 0);
    }
    rmdir(dir);
    return 0;
}
