// A place in the program's text that makes so many calls that it may be given a jump instead of its
// syscall instruction: what a program can see must stay as it was.
// trampoline [CALLS] [MICROSECONDS BETWEEN TICKS]
#include "guest.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>

#define CF 0x1UL
#define PF 0x4UL
#define AF 0x10UL
#define ZF 0x40UL
#define SF 0x80UL
#define TF 0x100UL
#define DF 0x400UL
#define OF 0x800UL
#define SEEN (CF | PF | AF | ZF | SF | DF | OF)

// getpgrp(2), in a page of its own. The number's load and the syscall can also be reached alone.
__asm__(".text\n"
        ".balign 4096\n"
        "site:\n"
        "  nop\n  nop\n  nop\n  nop\n"
        "  mov $111, %eax\n"
        "site_syscall:\n"
        "  syscall\n"
        "site_back:\n"
        "  ret\n"
        "other:\n" // getpid(2), by the same syscall
        "  mov $39, %eax\n"
        "  jmp site_syscall\n"
        // The registers of in[] before, of out[] after: rbx rdi rsi rdx r10 r8 r9 r12 r13 r14 r15 rcx
        "registers:\n"
        "  push %rbx\n  push %rbp\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
        "  push %rsi\n"
        "  mov %rdi, %rbp\n"
        "  mov 0(%rbp), %rbx\n  mov 8(%rbp), %rdi\n  mov 16(%rbp), %rsi\n  mov 24(%rbp), %rdx\n"
        "  mov 32(%rbp), %r10\n  mov 40(%rbp), %r8\n  mov 48(%rbp), %r9\n  mov 56(%rbp), %r12\n"
        "  mov 64(%rbp), %r13\n  mov 72(%rbp), %r14\n  mov 80(%rbp), %r15\n"
        "  call site\n"
        "  mov (%rsp), %rbp\n"
        "  mov %rbx, 0(%rbp)\n  mov %rdi, 8(%rbp)\n  mov %rsi, 16(%rbp)\n  mov %rdx, 24(%rbp)\n"
        "  mov %r10, 32(%rbp)\n  mov %r8, 40(%rbp)\n  mov %r9, 48(%rbp)\n  mov %r12, 56(%rbp)\n"
        "  mov %r13, 64(%rbp)\n  mov %r14, 72(%rbp)\n  mov %r15, 80(%rbp)\n  mov %rcx, 88(%rbp)\n"
        "  pop %rsi\n"
        "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbp\n  pop %rbx\n"
        "  ret\n"
        // The flags rdi before, in rax after.
        "flags:\n"
        "  push %rdi\n  popf\n"
        "  call site\n"
        "  pushf\n  pop %rax\n"
        "  cld\n"
        "  ret\n"
        ".balign 4096\n"
        "site_end:\n");

extern long site(void), other(void);
extern void registers(const uint64_t in[11], uint64_t out[12]);
extern unsigned long flags(unsigned long before);
extern const unsigned char site_syscall[], site_back[], site_end[];

static long calls = 2000, interval_us = 300;
static long group;

// Calls that did not give what they should.
static long wrong(long (*call)(void)) {
    long bad = 0;
    for (long i = 0; i < calls; i++) bad += call() != group;
    return bad;
}

static long wrong_flags(void) {
    static const unsigned long each[] = {CF, PF, AF, ZF, SF, DF, OF};
    long bad = 0;
    for (unsigned set = 0; set < 128; set++) {
        unsigned long before = 0;
        for (int i = 0; i < 7; i++)
            if (set >> i & 1) before |= each[i];
        bad += (flags(before) & SEEN) != before;
    }
    return bad;
}

static long wrong_registers(void) {
    long bad = 0;
    for (int round = 0; round < 50; round++) {
        uint64_t in[11], out[12];
        for (int i = 0; i < 11; i++) in[i] = 0x0101010101010101UL * (unsigned)(round * 11 + i + 1);
        registers(in, out);
        bad += memcmp(in, out, sizeof in) != 0 || out[11] != (uint64_t)site_back;
    }
    return bad;
}

// ---- ticks: where a handler finds the program -----------------------------------------------------

static uintptr_t page, page_end;
static volatile sig_atomic_t ticks, strays;

// The page that jumps lead through, if there is one.
static void find_page(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    while (maps && fgets(line, sizeof line, maps))
        if (strstr(line, "[kvmlet]")) sscanf(line, "%lx-%lx", &page, &page_end);
    if (maps) fclose(maps);
}

static void tick(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)info;
    uintptr_t rip = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    ticks++;
    strays += rip >= page && rip < page_end;
}

static long wrong_under_ticks(void) {
    find_page();
    struct sigaction action = {.sa_sigaction = tick, .sa_flags = SA_RESTART | SA_SIGINFO};
    struct itimerval often = {{0, interval_us}, {0, interval_us}}, never = {{0, 0}, {0, 0}};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    long bad = 0;
    for (int i = 0; i < 3 || ticks < 10; i++) {
        bad += wrong(site) + wrong_registers() + wrong_flags();
        bad += syscall(SYS_getpgrp) != group;
    }
    setitimer(ITIMER_REAL, &never, NULL);
    return bad;
}

// ---- single steps ----------------------------------------------------------------------------------

static volatile sig_atomic_t steps, stray_steps;

static void step(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)info;
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    steps++;
    stray_steps += (uintptr_t)regs[REG_RIP] >= page && (uintptr_t)regs[REG_RIP] < page_end;
    // Whatever goes wrong, it ends.
    if (steps > 10000) regs[REG_EFL] &= ~(greg_t)TF;
}

static void single_steps(void) {
    struct sigaction action = {.sa_sigaction = step, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &action, NULL);
    long got;
    __asm__ volatile("lea -256(%%rsp), %%rsp\n"
                     "pushf\n orq $0x100, (%%rsp)\n popf\n"
                     "call site\n"
                     "mov %%rax, %0\n"
                     "pushf\n andq $~0x100, (%%rsp)\n popf\n"
                     "lea 256(%%rsp), %%rsp\n"
                     : "=r"(got)
                     :
                     : "rax", "rcx", "r11", "memory", "cc");
    CHECK(got == group);
    CHECK(steps >= 5 && steps < 100);
    CHECK(stray_steps == 0);
    char byte = 0;
    ssize_t n = 0;
    int ends[2];
    CHECK(pipe(ends) == 0 && write(ends[1], "x", 1) == 1);
    steps = 0;
    __asm__ volatile("pushf\n orq $0x100, (%%rsp)\n popf\n" ::: "memory", "cc");
    n = read(ends[0], &byte, 1);
    __asm__ volatile("pushf\n andq $~0x100, (%%rsp)\n popf\n" ::: "memory", "cc");
    CHECK(n == 1 && byte == 'x');
    steps = 0;
    __asm__ volatile("pushf\n orq $0x100, (%%rsp)\n popf\n" ::: "memory", "cc");
    long by_number = syscall(SYS_getpgrp);
    __asm__ volatile("pushf\n andq $~0x100, (%%rsp)\n popf\n" ::: "memory", "cc");
    CHECK(by_number == group);
}

// ---- mappings --------------------------------------------------------------------------------------

// This program's file, and where in it the page of `site` lies.
static int file;
static off_t offset;

static void find_site(const char *path) {
    file = open(path, O_RDONLY);
    struct stat stat;
    fstat(file, &stat);
    const unsigned char *all = mmap(NULL, (size_t)stat.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    // The text around the replaced instruction.
    const unsigned char *tail = (const unsigned char *)site_back;
    offset = -1;
    for (off_t at = 0; at + 4096 <= stat.st_size; at += 4096)
        if (!memcmp(all + at + 9, "\x0f\x05", 2) && !memcmp(all + at + 11, tail, 200)) offset = at;
    munmap((void *)all, (size_t)stat.st_size);
}

static void *map_site(void *at) {
    int flags = MAP_PRIVATE | (at ? MAP_FIXED : 0);
    return mmap(at, 4096, PROT_READ | PROT_EXEC, flags, file, offset);
}

static void mappings(const char *path) {
    find_site(path);
    CHECK(offset > 0);
    void *room = mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK((uintptr_t)room % 4096 == 0);
    char *near = room;
    long (*call)(void) = (long (*)(void))map_site(near);
    CHECK(wrong(call) == 0);
    // Moved: the jump's distance would be another.
    char *moved = mremap(near, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, near + 65536);
    CHECK(moved == near + 65536);
    call = (long (*)(void))moved;
    CHECK(call() == group);
    CHECK(wrong(call) == 0);
    CHECK(!memcmp(moved + 9, "\x0f\x05\xc3", 3));
    // Dropped and read again, mapped again, mapped elsewhere.
    CHECK(madvise(moved, 4096, MADV_DONTNEED) == 0);
    CHECK(wrong(call) == 0);
    CHECK(map_site(moved) == moved);
    CHECK(wrong(call) == 0);
    CHECK(munmap(moved, 4096) == 0);
    CHECK(map_site(near + 131072) == near + 131072);
    call = (long (*)(void))(near + 131072);
    CHECK(wrong(call) == 0);
    // Writable, and written: the number of another call that gives the same.
    CHECK(mprotect(near + 131072, 4096, PROT_READ | PROT_WRITE) == 0);
    memcpy(near + 131072 + 4, "\xb8\x6f\0\0\0", 5);
    CHECK(mprotect(near + 131072, 4096, PROT_READ | PROT_EXEC) == 0);
    CHECK(wrong(call) == 0);
    // Another instruction instead of the syscall.
    CHECK(map_site(near) == near);
    call = (long (*)(void))near;
    CHECK(wrong(call) == 0);
    CHECK(mprotect(near, 4096, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
    memcpy(near + 9, "\x90\x90", 2);
    CHECK(call() == SYS_getpgrp);
    // Anonymous memory with the same text.
    void *copy = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pread(file, copy, 4096, offset) == 4096);
    CHECK(wrong((long (*)(void))copy) == 0);
    CHECK(!memcmp(copy, "\x90\x90\x90\x90\xb8\x6f\0\0\0\x0f\x05", 11));
    close(file);
}

// Bytes that did not come through a pipe as they went in.
static long wrong_bytes(void) {
    int ends[2];
    if (pipe(ends)) return 1;
    long bad = 0;
    for (long i = 0; i < calls; i++) {
        char in = (char)i, out = (char)~i;
        bad += write(ends[1], &in, 1) != 1 || read(ends[0], &out, 1) != 1 || in != out;
        bad += syscall(SYS_getpgrp) != group;
    }
    close(ends[0]);
    close(ends[1]);
    return bad;
}

static void *body(void *arg) {
    *(long *)arg = wrong(site) + wrong_registers() + wrong_bytes();
    return NULL;
}

static void threads(void) {
    pthread_t each[4];
    long bad[4], sum = 0;
    for (int i = 0; i < 4; i++) pthread_create(&each[i], NULL, body, &bad[i]);
    for (int i = 0; i < 4; i++) pthread_join(each[i], NULL);
    for (int i = 0; i < 4; i++) sum += bad[i];
    CHECK(sum == 0);
}

int main(int argc, char **argv) {
    if (argc > 1) calls = atol(argv[1]);
    // On a slow machine ticks must leave time for anything else.
    if (argc > 2) interval_us = atol(argv[2]);
    group = getpgid(0);
    CHECK(wrong(site) == 0);
    CHECK(wrong_registers() == 0);
    CHECK(wrong_flags() == 0);
    CHECK(wrong_bytes() == 0);
    CHECK(other() == getpid());
    CHECK(!memcmp(site_syscall, "\x0f\x05\xc3", 3));
    CHECK(wrong_under_ticks() == 0);
    CHECK(strays == 0);
    CHECK(ticks >= 10);
    single_steps();
    threads();
    mappings(argv[0]);
    // Without the page that jumps lead through, if there is one.
    find_page();
    if (page) munmap((void *)page, page_end - page);
    CHECK(wrong(site) == 0 && wrong_bytes() == 0);
    if (argc < 4) {
        char count[24], interval[24];
        snprintf(count, sizeof count, "%ld", calls);
        snprintf(interval, sizeof interval, "%ld", interval_us);
        execl(argv[0], argv[0], count, interval, "again", NULL);
    }
    return 0;
}
