// Reads, writes and executes at every page of kvmlet's own area, and beyond user space.
// With an argument, also calls that try to change the area: those are for a VM only.
// Linux maps nothing there: every access is a SIGSEGV.
#include "attempt.h"

static int outcome(const char *code, size_t len, uint64_t address, struct attempt_end *end) {
    struct attempt_regs regs = attempt_tame();
    regs.rbx = address;
    *end = attempt_code(code, len, &regs);
    return end->sig;
}
#define OUTCOME(code, address, end) outcome(code, sizeof(code) - 1, address, end)

int main(int argc, char **argv) {
    (void)argv;
    attempt_start();
    struct attempt_end end;
    unsigned readable = 0, calls_page_writes = 0, writable = 0, executable = 0, wrong = 0;
    for (uint64_t page = VMM_AREA; page < VMM_END; page += PAGE) {
        // On software KVM the call page is the program's: crates/abi/src/call_page.rs.
        unsigned *written = page == CALL_PAGE ? &calls_page_writes : &writable;
        for (uint64_t at = 0; at < PAGE; at += PAGE / 2 - 8) {
            if (OUTCOME("\x48\x8b\x03", page + at, &end) == 0) {  // mov (%rbx),%rax
                if (at == 0) {
                    readable++;
                    fprintf(stderr, "readable %#lx\n", page - VMM_AREA);
                }
            } else if (end.sig != SIGSEGV || end.addr != page + at) wrong++;
            if (OUTCOME("\x88\x03", page + at, &end) == 0) ++*written;  // mov %al,(%rbx)
            else if (end.sig != SIGSEGV || end.addr != page + at) wrong++;
            if (OUTCOME("\xf0\x48\x0f\xc1\x03", page + at, &end) == 0) ++*written;  // lock xadd %rax,(%rbx)
            else if (end.sig != SIGSEGV) wrong++;
            if (OUTCOME("\x48\x87\x03", page + at, &end) == 0) ++*written;  // xchg %rax,(%rbx)
            else if (end.sig != SIGSEGV) wrong++;
        }
        struct attempt_regs regs = attempt_tame();
        regs.rcx = (uint64_t)(uintptr_t)attempt_back;
        regs.r11 = 0x202;
        regs.rax = 0x1000;
        end = attempt_at(page, &regs);
        if (end.sig != SIGSEGV) {
            executable++;
            fprintf(stderr, "executable %#lx\n", page - VMM_AREA);
        }
        // prefetch is harmless everywhere; clflush faults like a read.
        if (OUTCOME("\x0f\x18\x0b", page, &end) != 0) wrong++;  // prefetcht0 (%rbx)
        OUTCOME("\x0f\xae\x3b", page, &end);                    // clflush (%rbx)
    }
    fprintf(stderr, "%u readable, %u executable, %u writes to the call page\n", readable, executable, calls_page_writes);
    printf("%u writes succeeded, %u wrong signals\n", writable, wrong);
    // Calls that could change the area must refuse it, or do nothing to it.
    static const uint64_t pages[] = {VMM_AREA, GDT_PAGE, IDT_PAGE, TSS_PAGE, EXC_STACK, EXC_CODE, SYSCALL_CODE, STUB_DATA, PROBE_CODE, CALL_PAGE};
    int changed = 0;
    if (argc > 1) {  // natively some of these would succeed
        for (unsigned i = 0; i < sizeof pages / sizeof *pages; i++) {
            uint64_t p = pages[i];
            changed += raw6(SYS_mmap, p, PAGE, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, ~0ul, 0) >= 0;
            changed += raw6(SYS_mmap, p, PAGE, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, ~0ul, 0) >= 0;
            changed += raw6(SYS_mprotect, p, PAGE, 7, 0, 0, 0) >= 0;
            raw6(SYS_munmap, p, PAGE, 0, 0, 0, 0);
            raw6(SYS_madvise, p, PAGE, MADV_DONTNEED, 0, 0, 0);
            void *src = map(PAGE, PROT_READ | PROT_WRITE);
            changed += raw6(SYS_mremap, (uint64_t)(uintptr_t)src, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p, 0) >= 0;
            raw6(SYS_munmap, (uint64_t)(uintptr_t)src, PAGE, 0, 0, 0, 0);
            changed += raw6(SYS_mremap, p, PAGE, 2 * PAGE, MREMAP_MAYMOVE, 0, 0) >= 0;
        }
        // Ranges that reach into it.
        changed += raw6(SYS_mmap, VMM_AREA - PAGE, 2 * PAGE, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, ~0ul, 0) >= 0;
        changed += raw6(SYS_mmap, 0x10000, VMM_END - 0x10000, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, ~0ul, 0) >= 0;
        changed += raw6(SYS_mprotect, VMM_AREA - PAGE, 0x200000, 7, 0, 0, 0) >= 0;
    }
    printf("%d changes accepted\n", changed);
    // Beyond: the kernel's half and addresses that are not canonical.
    static const uint64_t beyond[] = {
        0x800000000000ul, 0xffff7ffffffffffful, 0xffff800000000000ul, 0xffff888000000000ul,
        0xffffc90000000000ul, 0xffffea0000000000ul, 0xffffffff80000000ul, 0xfffffffffffffff8ul, 0x8000000000000000ul};
    for (unsigned i = 0; i < sizeof beyond / sizeof *beyond; i++) {
        OUTCOME("\x48\x8b\x03", beyond[i], &end);
        printf("read %#lx: %s code %d\n", beyond[i], signal_name(end.sig), end.code);
        OUTCOME("\x48\x89\x03", beyond[i], &end);
        printf("write %#lx: %s code %d\n", beyond[i], signal_name(end.sig), end.code);
        struct attempt_regs regs = attempt_tame();
        end = attempt_at(beyond[i], &regs);
        printf("jump %#lx: %s code %d\n", beyond[i], signal_name(end.sig), end.code);
    }
    need(getpid() > 0 && getppid() >= 0, "getpid");
    printf("alive\n");
    return 0;
}
