// canon [emulated]
// The edges of user space: calls that return behind its end, jumps that are not canonical, segment
// bases in the kernel's half.
#include "attempt.h"
#include <sys/auxv.h>

#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define RWX (PROT_READ | PROT_WRITE | PROT_EXEC)

static struct attempt_regs base;
static int emulated;

static void show(const char *name, struct attempt_end end) {
    if (end.sig == 0) printf("%s: fine\n", name);
    else printf("%s: %s code %d\n", name, signal_name(end.sig), end.code);
}
#define CODE(name, code) show(name, attempt_code(code, sizeof(code) - 1, &base))

// The highest page that can be mapped: `syscall` in its last bytes leaves rcx = end of user space.
static void last_page(void) {
    uint64_t at = 0x7ffffffff000ul;
    void *p = MAP_FAILED;
    while (at > 0x7fff00000000ul) {
        at -= PAGE;
        p = mmap((void *)at, PAGE, RWX, ANON | MAP_FIXED_NOREPLACE, -1, 0);
        if (p == (void *)at) break;
        if (p != MAP_FAILED) munmap(p, PAGE);
    }
    need(p == (void *)at, "mapping the last page");
    unsigned char *end = (unsigned char *)at + PAGE;
    static const long calls[] = {SYS_getpid, SYS_gettid, SYS_getuid, SYS_getppid, SYS_close, 0x1000, -1, SYS_sched_yield};
    for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) {
        struct attempt_regs regs = base;
        regs.rax = (uint64_t)calls[i];
        regs.rdi = ~0ul;
        end[-2] = 0x0f, end[-1] = 0x05;
        struct attempt_end e = attempt_at((uint64_t)(uintptr_t)end - 2, &regs);
        printf("call %ld returning behind user space: %s code %d, at the end: %d\n", calls[i], signal_name(e.sig), e.code,
               e.rip == (uint64_t)(uintptr_t)end);
    }
    // An instruction that straddles the end, and one that runs off it.
    end[-1] = 0x0f;
    struct attempt_end e = attempt_at((uint64_t)(uintptr_t)end - 1, &base);
    printf("half an instruction: %s\n", signal_name(e.sig));
    end[-1] = 0x90;
    e = attempt_at((uint64_t)(uintptr_t)end - 1, &base);
    printf("off the end: %s\n", signal_name(e.sig));
    munmap((void *)at, PAGE);
}

static void jumps(void) {
    static const uint64_t targets[] = {0x800000000000ul, 0xffff7ffffffffffful, 0x8000000000000000ul, 0x1234567890abcdeful,
                                       0xffff800000000000ul, 0xfffffffffffffffful, 0};
    for (unsigned i = 0; i < sizeof targets / sizeof *targets; i++) {
        struct attempt_regs regs = base;
        char name[64];
        regs.rax = targets[i];
        snprintf(name, sizeof name, "jmp %#lx", targets[i]);
        show(name, attempt_code("\xff\xe0", 2, &regs));  // jmp *%rax
        snprintf(name, sizeof name, "call %#lx", targets[i]);
        show(name, attempt_code("\xff\xd0", 2, &regs));  // call *%rax
        snprintf(name, sizeof name, "ret %#lx", targets[i]);
        show(name, attempt_code("\x50\xc3", 2, &regs));  // push %rax; ret
        // push $0x2b; push $scratch; pushfq; push $0x33; push %rax; iretq
        regs.rbx = base.rsp;
        snprintf(name, sizeof name, "iretq %#lx", targets[i]);
        if (!emulated) show(name, attempt_code("\x6a\x2b\x53\x9c\x6a\x33\x50\x48\xcf", 9, &regs));
    }
    // Stacks that are not canonical.
    static const uint64_t stacks[] = {0x800000000000ul, 0x8000000000000000ul, 0xffff800000000000ul, 0, 8};
    for (unsigned i = 0; i < sizeof stacks / sizeof *stacks; i++) {
        struct attempt_regs regs = base;
        char name[64];
        regs.rsp = stacks[i];
        snprintf(name, sizeof name, "push at %#lx", stacks[i]);
        show(name, attempt_code("\x50", 1, &regs));
        snprintf(name, sizeof name, "iretq from %#lx", stacks[i]);
        if (!emulated) show(name, attempt_code("\x48\xcf", 2, &regs));
        // A call does not need a stack.
        regs.rax = 0x1000;
        snprintf(name, sizeof name, "a call on stack %#lx", stacks[i]);
        show(name, attempt_code("\x0f\x05", 2, &regs));
        regs.rax = SYS_getpid;
        snprintf(name, sizeof name, "getpid on stack %#lx", stacks[i]);
        show(name, attempt_code("\x0f\x05", 2, &regs));
    }
}

static void bases(void) {
    static const uint64_t values[] = {0xffff800000000000ul, 0xfffffffffffff000ul, 0xffffffff81000000ul, VMM_AREA, SYSCALL_CODE,
                                      0x7ffffffff000ul, 0x800000000000ul, 0x8000000000000000ul, 0};
    int fsgsbase = (getauxval(AT_HWCAP2) & 2) != 0;
    printf("fsgsbase %d\n", fsgsbase);
    for (unsigned i = 0; i < sizeof values / sizeof *values; i++) {
        struct attempt_regs regs = base;
        char name[96];
        uint64_t v = values[i];
        // ARCH_SET_FS refuses what lies above user space; ARCH_SET_GS too.
        uint64_t fs = attempt_fs_base;
        if (v < VMM_AREA || v >= VMM_END) {
            printf("ARCH_SET_GS %#lx = %ld\n", v, raw6(SYS_arch_prctl, 0x1001, v, 0, 0, 0, 0));
            long set = v == 0 ? -1 : raw6(SYS_arch_prctl, 0x1002, v, 0, 0, 0, 0);
            raw6(SYS_arch_prctl, 0x1002, fs, 0, 0, 0, 0);
            printf("ARCH_SET_FS %#lx = %ld\n", v, set);
        }
        // The emulated CPU takes bases that are not canonical.
        if (!fsgsbase || (emulated && v >> 47 && v >> 47 != 0x1ffff)) continue;
        regs.rbx = v;
        regs.rax = 0x1000;
        snprintf(name, sizeof name, "wrgsbase %#lx", v);
        show(name, attempt_code("\xf3\x48\x0f\xae\xdb", 5, &regs));
        snprintf(name, sizeof name, "wrgsbase %#lx; mov %%gs:0,%%rax", v);
        // The syscall page is readable on software KVM.
        if (v != SYSCALL_CODE) show(name, attempt_code("\xf3\x48\x0f\xae\xdb\x65\x48\x8b\x04\x25\x00\x00\x00\x00", 14, &regs));
        snprintf(name, sizeof name, "wrgsbase %#lx; mov %%rax,%%gs:0", v);
        show(name, attempt_code("\xf3\x48\x0f\xae\xdb\x65\x48\x89\x04\x25\x00\x00\x00\x00", 14, &regs));
        snprintf(name, sizeof name, "wrfsbase %#lx", v);
        show(name, attempt_code("\xf3\x48\x0f\xae\xd3", 5, &regs));
        snprintf(name, sizeof name, "wrfsbase %#lx; a call", v);
        show(name, attempt_code("\xf3\x48\x0f\xae\xd3\x0f\x05", 7, &regs));
        snprintf(name, sizeof name, "wrgsbase %#lx; a call; rdgsbase", v);
        // wrgsbase %rbx; syscall; rdgsbase %rax
        struct attempt_end end = attempt_code("\xf3\x48\x0f\xae\xdb\x0f\x05\xf3\x48\x0f\xae\xc8", 12, &regs);
        if (end.sig) show(name, end);
        else printf("%s: %s\n", name, end.rax == v ? "kept" : "changed");
        // A fault with that base in FS: the handler runs with it.
        snprintf(name, sizeof name, "wrfsbase %#lx; ud2", v);
        show(name, attempt_code("\xf3\x48\x0f\xae\xd3\x0f\x0b", 7, &regs));
    }
}

int main(int argc, char **argv) {
    attempt_start();
    emulated = asked(argc, argv, "emulated");
    base = attempt_tame();
    last_page();
    jumps();
    bases();
    printf("alive\n");
    return 0;
}
