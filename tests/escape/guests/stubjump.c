// Jumps into kvmlet's own pages, with forged registers. stubjump PAGE-OFFSET|trampolines FIRST LAST STEP
//
// "trampolines" is the page that hot calls jump through: it is the program's to execute, if it has one. On Linux, and on hardware KVM, nothing is executable there: each jump is a SIGSEGV. On software
// KVM the syscall page is. Whatever happens, this program must get its registers or a signal.
#include "attempt.h"

static unsigned long tried, came_back, signals[65];
// Whether the call page is this program's: there the stub's code finds the number of a call that it had
// posted, which must be one that does nothing.
static int has_call_page;

static void try_jump(uint64_t target, const struct attempt_regs *regs) {
    if (has_call_page) *(volatile uint64_t *)CALL_PAGE = 0x1000;
    struct attempt_end end = attempt_at(target, regs);
    tried++;
    if (end.sig) signals[end.sig]++;
    else came_back++;
}

// The page that calls jump through, with places in use; ends the program where there is none.
static uint64_t trampoline_page(void) {
    char byte;
    for (int i = 0; i < 20000; i++) {
        raw6(SYS_getpgrp, 0, 0, 0, 0, 0, 0);
        syscall(SYS_getpgrp);
        need(read(-1, &byte, 1) < 0 && getpgid(0) >= 0, "calls");
    }
    uint64_t page = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    need(maps != NULL, "maps");
    while (fgets(line, sizeof line, maps))
        if (strstr(line, "[kvmlet]")) page = strtoul(line, NULL, 16);
    fclose(maps);
    if (!page) {
        printf("no page\nalive\n");
        exit(0);
    }
    return page;
}

int main(int argc, char **argv) {
    need(argc == 5, "arguments");
    uint64_t page = strcmp(argv[1], "trampolines") ? VMM_AREA + strtoul(argv[1], NULL, 0) : trampoline_page();
    unsigned first = (unsigned)atoi(argv[2]), last = (unsigned)atoi(argv[3]), step = (unsigned)atoi(argv[4]);
    attempt_start();
    struct attempt_regs probe = attempt_tame();
    probe.rbx = CALL_PAGE;
    has_call_page = attempt_code("\x48\x8b\x03", 3, &probe).sig == 0;  // mov (%rbx),%rax
    uint64_t back = (uint64_t)(uintptr_t)attempt_back;
    // rcx: back here; nowhere; behind user space; not canonical; the kernel's half; the stub's padding.
    uint64_t rcx[] = {back, 0x1000, VMM_AREA, 0x800000000000ul, 0xffffffff81000000ul, SYSCALL_CODE + 0x800};
    // r11: plain; all flags; IOPL, NT and TF; DF and AC; as of a call that jumps; nothing.
    uint64_t r11[] = {0x202, ~0ul, 0x7102, 0x40402, 0xd701, 0};
    // rax: answered in the stub, unknown, wide. Not a call that could block or exit.
    uint64_t rax[] = {39, 186, 0xfffffffful, 0x1000, 0x8000000000000027ul};
    for (unsigned offset = first; offset < last; offset += step) {
        struct attempt_regs regs = attempt_tame();
        uint64_t good = regs.rsp;
        regs.r11 = 0x202;
        regs.rcx = back;
        for (unsigned i = 0; i < sizeof rax / sizeof *rax; i++) {
            regs.rax = rax[i];
            try_jump(page + offset, &regs);
        }
        for (unsigned i = 0; i < sizeof rcx / sizeof *rcx; i++) {
            regs.rcx = rcx[i];
            regs.rax = 39;
            try_jump(page + offset, &regs);
            regs.rax = 0x1000;
            try_jump(page + offset, &regs);
        }
        regs.rcx = back;
        for (unsigned i = 0; i < sizeof r11 / sizeof *r11; i++) {
            regs.r11 = r11[i];
            regs.rax = 39;
            try_jump(page + offset, &regs);
            regs.rax = 0x1000;
            try_jump(page + offset, &regs);
        }
        regs.r11 = 0x202;
        // Wild stacks: the exception stack, the kernel's half, not canonical, nowhere.
        uint64_t stacks[] = {EXC_STACK + PAGE, 0xffff888000000000ul, 0x8000000000000000ul, 8, good};
        for (unsigned i = 0; i < sizeof stacks / sizeof *stacks; i++) {
            regs.rsp = stacks[i];
            try_jump(page + offset, &regs);
        }
    }
    unsigned long other = tried - came_back - signals[SIGSEGV];
    printf("%lu tried\n", tried);
    fprintf(stderr, "%lu came back, %lu SIGSEGV, %lu other signals\n", came_back, signals[SIGSEGV], other);
    // Everything still works.
    need(getpid() == (int)syscall(SYS_getpid) && getpid() > 0, "getpid");
    printf("alive\n");
    return 0;
}
