// Private and shared mappings of files: mmapfile FILE (20000 bytes; the byte
// at offset i is i * 7 mod 251), and of files made under /tmp.
#include "faults.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define PAGE 4096ul
#define RW (PROT_READ | PROT_WRITE)

static int pattern(const char *p, size_t from, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)p[i] != (from + i) * 7 % 251) return 0;
    return 1;
}

int main(int argc, char **argv) {
    need(argc == 2, "mmapfile FILE");
    catch_faults();
    int fd = open(argv[1], O_RDONLY);
    need(fd >= 0, "open FILE");

    section("private, readable");
    char *p = mmap(NULL, 20000, PROT_READ, MAP_PRIVATE, fd, 0);
    need(p != MAP_FAILED, "mmap");
    CHECK(pattern(p, 0, 20000));
    // The rest of the last page is zero; nothing lies behind it.
    CHECK(p[20000] == 0 && p[5 * PAGE - 1] == 0);
    WRITE(p);
    CALL(p);
    char *tail = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE, fd, 3 * PAGE);
    CHECK(pattern(tail, 3 * PAGE, 20000 - 3 * PAGE));

    section("past the end of the file");
    char *beyond = mmap(NULL, 10 * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    READ(beyond + 5 * PAGE - 1);
    READ(beyond + 5 * PAGE);
    READ(beyond + 9 * PAGE);
    READ(beyond + 10 * PAGE - 1);

    section("a call that meets the end of the file");
    int pipefd[2];
    need(pipe(pipefd) == 0, "pipe");
    FAILS(write(pipefd[1], beyond + 6 * PAGE, 10), EFAULT);

    section("private, written");
    char *w = mmap(NULL, 20000, RW, MAP_PRIVATE, fd, 0);
    memset(w + PAGE, 'X', 10);
    CHECK(pattern(w, 0, PAGE) && w[PAGE] == 'X' && pattern(w + PAGE + 10, PAGE + 10, 1000));
    CHECK(pattern(p, 0, 20000));
    SHOW(madvise(w + PAGE, PAGE, MADV_DONTNEED));
    CHECK(pattern(w, 0, 20000));
    SHOW(mprotect(p, PAGE, RW));
    p[0] = 'P';
    CHECK(p[0] == 'P' && pattern(p + 1, 1, 19999) && pattern(w, 0, 20000));

    section("shared, read-only descriptor");
    char *s = mmap(NULL, 20000, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(s != MAP_FAILED && pattern(s, 0, 20000));
    FAILS(mprotect(s, PAGE, RW), EACCES);
    CHECK(mmap(NULL, 20000, RW, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EACCES);
    SHOW(munmap(s, 20000));

    section("after close");
    SHOW(close(fd));
    CHECK(pattern(w, 0, 20000) && pattern(tail, 3 * PAGE, 20000 - 3 * PAGE));
    SHOW(munmap(w, 20000));
    READ(w);

    section("a file under /tmp, cut while it is mapped");
    char name[] = "/tmp/kvmlet-map-XXXXXX";
    fd = mkstemp(name);
    need(fd >= 0, "mkstemp");
    SHOW(ftruncate(fd, 4 * PAGE));
    s = mmap(NULL, 4 * PAGE, RW, MAP_SHARED, fd, 0);
    char *own = mmap(NULL, 4 * PAGE, RW, MAP_PRIVATE, fd, 0);
    memset(s, 's', 4 * PAGE);
    own[3 * PAGE] = 'o';
    SHOW(ftruncate(fd, PAGE + 100));
    READ(s);
    READ(s + 2 * PAGE);
    WRITE(s + 3 * PAGE);
    READ(own + 2 * PAGE);
    CHECK(s[PAGE + 99] == 's' && s[PAGE + 100] == 0);
    SHOW(ftruncate(fd, 4 * PAGE));
    READ(s + 3 * PAGE);
    CHECK(s[3 * PAGE] == 0);
    s[2 * PAGE] = 'n';
    char c = 0;
    SHOW(pread(fd, &c, 1, 2 * PAGE));
    CHECK(c == 'n' && own[2 * PAGE] == 'n');

    section("shared mappings move and shrink");
    char *m = mremap(s, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
    CHECK(m != MAP_FAILED && m[2 * PAGE] == 'n');
    READ(m + 4 * PAGE);
    SHOW(ftruncate(fd, 8 * PAGE));
    WRITE(m + 7 * PAGE);
    SHOW(pread(fd, &c, 1, 7 * PAGE));
    CHECK(c == 'w');
    SHOW(madvise(m, 8 * PAGE, MADV_DONTNEED));
    CHECK(m[7 * PAGE] == 'w' && m[2 * PAGE] == 'n');
    SHOW(msync(m, 8 * PAGE, MS_SYNC));
    FAILS(msync(m + 1, PAGE, MS_SYNC), EINVAL);
    SHOW(unlink(name));
    SHOW(close(fd));
    CHECK(m[7 * PAGE] == 'w');
    SHOW(munmap(m, 8 * PAGE));

    section("shared anonymous memory");
    s = mmap(NULL, 4 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(s != MAP_FAILED && s[0] == 0);
    strcpy(s, "shared");
    SHOW(madvise(s, PAGE, MADV_DONTNEED));
    CHECK(strcmp(s, "shared") == 0);

    section("memfd");
    fd = memfd_create("name", MFD_CLOEXEC);
    CHECK(fd >= 0);
    SHOW(ftruncate(fd, PAGE));
    s = mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0);
    CHECK(s != MAP_FAILED);
    strcpy(s, "through memory");
    char text[32] = "";
    SHOW(pread(fd, text, 14, 0));
    printf("<%s>\n", text);
    SHOW(close(fd));

    section("a file that a read brings straight into its own mapping");
    fd = open(argv[1], O_RDONLY);
    w = mmap(NULL, 20000, RW, MAP_PRIVATE, fd, 0);
    SHOW(pread(fd, w + 100, 8192, 1000));
    CHECK(pattern(w + 100, 1000, 8192) && pattern(w, 0, 100) && pattern(w + 8292, 8292, 1000));
    printf("done\n");
    return 0;
}
