// No C library: the state a program finds at its first instruction
// (x86-64 psABI, "Process Initialization"), and raw system calls.
#include <stdint.h>

static long call3(long n, long a, long b, long c) {
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return r;
}

static void put(const char *s) {
    long n = 0;
    while (s[n]) n++;
    call3(1, 1, (long)s, n);
}

static void check(int ok, const char *what) {
    put(ok ? "ok " : "FAIL ");
    put(what);
    put("\n");
}

__attribute__((used)) static void run(uint64_t *sp, uint64_t rdx, uint64_t rflags) {
    check(((uintptr_t)sp & 15) == 0, "stack is 16-byte aligned");
    check(sp[0] >= 1, "argc");
    check(sp[1 + sp[0]] == 0, "argv ends with NULL");
    check(rdx == 0, "rdx is zero");
    check((rflags & 0x400) == 0, "direction flag is clear");
    unsigned mxcsr;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    check(mxcsr == 0x1f80, "mxcsr is 0x1f80");
    unsigned short cw;
    __asm__ volatile("fnstcw %0" : "=m"(cw));
    check(cw == 0x37f, "x87 control word is 0x37f");
    uint16_t cs, ss;
    __asm__ volatile("mov %%cs, %0; mov %%ss, %1" : "=r"(cs), "=r"(ss));
    check(cs == 0x33 && ss == 0x2b, "user selectors");

    // All registers but rax, rcx and r11 survive a call; rcx is the return
    // address and r11 the flags (SDM, SYSCALL).
    uint64_t in[12], out[12];
    for (int i = 0; i < 12; i++) in[i] = 0x1111111111111111ull * (i + 1);
    uint64_t rcx, r11, after, ret;
    __asm__ volatile(
        "push %%rbp\n\t"
        "mov 0(%[in]), %%rbx\n\tmov 8(%[in]), %%rdi\n\tmov 16(%[in]), %%rsi\n\tmov 24(%[in]), %%rdx\n\t"
        "mov 32(%[in]), %%r8\n\tmov 40(%[in]), %%r9\n\tmov 48(%[in]), %%r10\n\tmov 56(%[in]), %%rbp\n\t"
        "mov $100000, %%eax\n\tsyscall\n1:\n\t"
        "mov %%rbx, 0(%[out])\n\tmov %%rdi, 8(%[out])\n\tmov %%rsi, 16(%[out])\n\tmov %%rdx, 24(%[out])\n\t"
        "mov %%r8, 32(%[out])\n\tmov %%r9, 40(%[out])\n\tmov %%r10, 48(%[out])\n\tmov %%rbp, 56(%[out])\n\t"
        "mov %%rcx, 64(%[out])\n\tmov %%r11, 72(%[out])\n\tmov %%rax, 80(%[out])\n\t"
        "lea 1b(%%rip), %%rax\n\tmov %%rax, 88(%[out])\n\t"
        "pop %%rbp"
        :
        : [in] "r"((uint64_t *)__builtin_assume_aligned(in, 8)), [out] "r"((uint64_t *)out)
        : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory");
    rcx = out[8], r11 = out[9], ret = out[10], after = out[11];
    int same = 1;
    for (int i = 0; i < 8; i++) same &= in[i] == out[i];
    check(same, "registers survive a call");
    check(rcx == after, "rcx is the return address");
    check((r11 & 0x200) != 0, "r11 holds the flags");
    check((int64_t)ret == -38, "unknown call number is ENOSYS");
    check(call3(-1, 0, 0, 0) == -38, "negative call number is ENOSYS");
    check(call3(1, 1, 8, 1) == -14, "write from a bad pointer is EFAULT");
    check(call3(1, 1, (long)0x8000000000000000ull, 1) == -14, "write from a non-canonical pointer is EFAULT");
    check(call3(1, 1, -4096, 1) == -14, "write from the kernel half is EFAULT");
    check(call3(1, 77, (long)sp, 1) == -9, "write to a closed descriptor is EBADF");
    check(call3(1, 1, (long)sp, 0) == 0, "empty write");
    call3(231, 7, 0, 0);
}

__asm__(
    ".globl _start\n"
    "_start:\n\t"
    "pushf\n\tpop %rax\n\t"
    "mov %rsp, %rdi\n\t"
    "mov %rdx, %rsi\n\t"
    "mov %rax, %rdx\n\t"
    "xor %ebp, %ebp\n\t"
    "call run\n\t"
    "hlt\n");
