// All registers at once: filled before a wait, or stored in the instruction after one.
#ifndef REGISTERS_H
#define REGISTERS_H
#include <cpuid.h>
#include <stdint.h>

// 16 general registers, an FXSAVE image, 32 vector registers of 64 bytes, 8 mask registers.
#define REGISTERS_LEN (128 + 512 + 32 * 64 + 64)

enum vectors { SSE, AVX, AVX512 };

static inline enum vectors vectors_here(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) return AVX512;
    return __builtin_cpu_supports("avx") ? AVX : SSE;
}

// hold_*(secret, word, spin): puts the 16 bytes at `secret` into every register, then waits, spinning
// or in futex(2), until `word` is not 0.
void hold_sse(const void *secret, volatile uint32_t *word, long spin);
void hold_avx(const void *secret, volatile uint32_t *word, long spin);
void hold_avx512(const void *secret, volatile uint32_t *word, long spin);

// store_*(args, area): the system call args[0] with arguments args[1..5]; its result. All registers are
// stored in `area`, 64-byte aligned, before anything else runs.
long store_sse(const long *args, void *area);
long store_avx(const long *args, void *area);
long store_avx512(const long *args, void *area);

__asm__(
    ".text\n"
    ".macro FILL_REST\n"
    "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; sub $512, %rsp\n"
    "  fnsave (%rsp)\n"
    "  fninit\n"
    "  .rept 8; fldt (%rdi); .endr\n"
    "  mov (%rdi), %rbx; mov 8(%rdi), %rbp\n"
    "  mov %rbx, %r12; mov %rbp, %r13; mov %rbx, %r14; mov %rbp, %r15\n"
    "  mov %rdx, %rcx\n"
    "  mov %rsi, %rdi; mov $128, %esi; xor %edx, %edx; xor %r10d, %r10d\n"
    "  mov %rbx, %r8; mov %rbp, %r9\n"
    "  test %rcx, %rcx\n"
    "  jnz 2f\n"
    "1: mov $202, %eax\n"
    "  syscall\n"
    "  cmpl $0, (%rdi)\n"
    "  je 1b\n"
    "  jmp 3f\n"
    "2: mov %rbx, %rax; mov %rbp, %rcx; mov %rbx, %rdx; mov %rbp, %rsi; mov %rbx, %r10; mov %rbp, %r11\n"
    "4: cmpl $0, (%rdi)\n"
    "  je 4b\n"
    "3: fninit; frstor (%rsp)\n"
    "  xor %eax, %eax; xor %ecx, %ecx; xor %edx, %edx; xor %esi, %esi; xor %r8d, %r8d; xor %r9d, %r9d\n"
    "  add $512, %rsp; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "  ret\n"
    ".endm\n"
    ".macro STORE_START\n"
    "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rsi\n"
    "  mov (%rdi), %rax; mov 16(%rdi), %rsi; mov 24(%rdi), %rdx; mov 32(%rdi), %r10; mov 40(%rdi), %r8\n"
    "  mov 8(%rdi), %rdi\n"
    "  syscall\n"
    "  xchg %rax, (%rsp)\n"
    "  mov %rbx, (%rax); mov %rcx, 8(%rax); mov %rdx, 16(%rax); mov %rsi, 24(%rax); mov %rdi, 32(%rax)\n"
    "  mov %rbp, 40(%rax); mov %r8, 48(%rax); mov %r9, 56(%rax); mov %r10, 64(%rax); mov %r11, 72(%rax)\n"
    "  mov %r12, 80(%rax); mov %r13, 88(%rax); mov %r14, 96(%rax); mov %r15, 104(%rax)\n"
    "  fxsave64 128(%rax)\n"
    ".endm\n"
    ".macro STORE_END\n"
    "  pop %rax; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "  ret\n"
    ".endm\n"
    "hold_sse:\n"
    "  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n  movups (%rdi), %xmm\\n\n  .endr\n"
    "  FILL_REST\n"
    "hold_avx:\n"
    "  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n  vbroadcastf128 (%rdi), %ymm\\n\n  .endr\n"
    "  FILL_REST\n"
    "hold_avx512:\n"
    "  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
    "  vbroadcasti32x4 (%rdi), %zmm\\n\n  .endr\n"
    "  .irp n, 0,1,2,3,4,5,6,7\n  kmovq (%rdi), %k\\n\n  .endr\n"
    "  FILL_REST\n"
    "store_sse:\n"
    "  STORE_START\n"
    "  STORE_END\n"
    "store_avx:\n"
    "  STORE_START\n"
    "  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n  vmovups %ymm\\n, 640+64*\\n(%rax)\n  .endr\n"
    "  STORE_END\n"
    "store_avx512:\n"
    "  STORE_START\n"
    "  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
    "  vmovups %zmm\\n, 640+64*\\n(%rax)\n  .endr\n"
    "  .irp n, 0,1,2,3,4,5,6,7\n  kmovq %k\\n, 2688+8*\\n(%rax)\n  .endr\n"
    "  STORE_END\n");

static inline void hold_registers(const void *secret, volatile uint32_t *word, long spin) {
    enum vectors vectors = vectors_here();
    (vectors == AVX512 ? hold_avx512 : vectors == AVX ? hold_avx : hold_sse)(secret, word, spin);
}

static inline long store_registers(const long *args, void *area) {
    enum vectors vectors = vectors_here();
    return (vectors == AVX512 ? store_avx512 : vectors == AVX ? store_avx : store_sse)(args, area);
}

#endif
