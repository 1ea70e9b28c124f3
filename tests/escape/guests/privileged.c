// Instructions that ring 3 may not run, or that leave a VM: privileged [loose]
//
// Each prints how it ended, and whether the signal's rip was the instruction. With `loose`, those
// whose outcome depends on the CPU or on who virtualises it.
#include "attempt.h"

static struct attempt_regs base;

static void run(const char *name, const char *code, size_t len) {
    struct attempt_end end = attempt_code(code, len, &base);
    if (end.sig == 0) printf("%s: fine\n", name);
    else
        printf("%s: %s code %d, rip + %ld\n", name, signal_name(end.sig), end.code,
               (long)(end.rip - (uint64_t)(uintptr_t)attempt_page()));
    fflush(stdout);
}
#define TRY(name, code) run(name, code, sizeof(code) - 1)

static void strict(void) {
    TRY("hlt", "\xf4");
    TRY("cli", "\xfa");
    TRY("sti", "\xfb");
    TRY("clts", "\x0f\x06");
    TRY("invd", "\x0f\x08");
    TRY("wbinvd", "\x0f\x09");
    TRY("lgdt", "\x0f\x01\x17");
    TRY("lidt", "\x0f\x01\x1f");
    TRY("lldt", "\x0f\x00\xd0");
    TRY("ltr", "\x0f\x00\xd8");
    TRY("lmsw", "\x0f\x01\xf0");
    TRY("invlpg", "\x0f\x01\x3f");
    TRY("swapgs", "\x0f\x01\xf8");
    TRY("mov %cr0,%rax", "\x0f\x20\xc0");
    TRY("mov %cr2,%rax", "\x0f\x20\xd0");
    TRY("mov %cr3,%rax", "\x0f\x20\xd8");
    TRY("mov %cr4,%rax", "\x0f\x20\xe0");
    TRY("mov %cr8,%rax", "\x44\x0f\x20\xc0");
    TRY("mov %rax,%cr0", "\x0f\x22\xc0");
    TRY("mov %rax,%cr3", "\x0f\x22\xd8");
    TRY("mov %rax,%cr4", "\x0f\x22\xe0");
    TRY("mov %rax,%cr8", "\x44\x0f\x22\xc0");
    TRY("mov %dr0,%rax", "\x0f\x21\xc0");
    TRY("mov %dr7,%rax", "\x0f\x21\xf8");
    TRY("mov %rax,%dr0", "\x0f\x23\xc0");
    TRY("mov %rax,%dr7", "\x0f\x23\xf8");
    for (unsigned i = 0; i < 5; i++) {
        static const uint32_t msrs[] = {0xc0000080, 0xc0000082, 0x1b, 0x174, 0x4b564d01};
        char name[40];
        base.rcx = msrs[i];
        snprintf(name, sizeof name, "wrmsr %#x", msrs[i]);
        TRY(name, "\x0f\x30");
        snprintf(name, sizeof name, "rdmsr %#x", msrs[i]);
        TRY(name, "\x0f\x32");
    }
    base.rcx = 0;
    TRY("xsetbv", "\x0f\x01\xd1");
    TRY("ud0", "\x0f\xff\xc0");
    TRY("ud1", "\x0f\xb9\xc0");
    TRY("ud2", "\x0f\x0b");
    TRY("int3", "\xcc");
    TRY("lock nop", "\xf0\x90");
    TRY("lock add to a register", "\xf0\x01\xc0");
    TRY("fifteen prefixes", "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90");
    TRY("fourteen prefixes", "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90");
    TRY("into (no such instruction here)", "\xce");
    TRY("push %cs", "\x0e");
    TRY("movaps off its alignment", "\x0f\x28\x47\x01");
    TRY("div by zero", "\x48\xf7\xf1");
    base.rdx = 5, base.rcx = 1;
    TRY("div overflow", "\x48\xf7\xf1");
    base.rdx = base.rcx = 0;
    TRY("int 3", "\xcd\x03");
    TRY("int 4", "\xcd\x04");
}

static void loose(void) {
    TRY("int1", "\xf1");
    TRY("sysretq", "\x48\x0f\x07");
    TRY("sysretl", "\x0f\x07");
    TRY("sysexit", "\x0f\x35");
    TRY("xrstors of garbage", "\x0f\xc7\x1f");
    // Software KVM tries to emulate these and gives SIGILL, not SIGSEGV.
    for (unsigned vector = 0; vector < 256; vector++) {
        if (vector == 3 || vector == 4 || vector == 0x80) continue;  // 0x80, 32-bit calls: segments 32-bit
        char code[] = {(char)0xcd, (char)vector}, name[16];
        snprintf(name, sizeof name, "int %#x", vector);
        run(name, code, sizeof code);
    }
    TRY("vmcall", "\x0f\x01\xc1");
    TRY("vmmcall", "\x0f\x01\xd9");
    for (unsigned i = 0; i < 32; i++) {
        // KVM's hypercalls, with arguments that point at kvmlet's pages.
        base.rax = i;
        base.rbx = EXC_STACK;
        base.rcx = 0x1000;
        TRY("vmcall", "\x0f\x01\xc1");
        TRY("vmmcall", "\x0f\x01\xd9");
    }
    base.rax = base.rbx = base.rcx = 0;
    TRY("vmlaunch", "\x0f\x01\xc2");
    TRY("vmresume", "\x0f\x01\xc3");
    TRY("vmxoff", "\x0f\x01\xc4");
    TRY("vmfunc", "\x0f\x01\xd4");
    TRY("vmread", "\x0f\x78\xc0");
    TRY("vmrun", "\x0f\x01\xd8");
    TRY("vmload", "\x0f\x01\xda");
    TRY("vmsave", "\x0f\x01\xdb");
    TRY("stgi", "\x0f\x01\xdc");
    TRY("clgi", "\x0f\x01\xdd");
    TRY("skinit", "\x0f\x01\xde");
    TRY("invlpga", "\x0f\x01\xdf");
    TRY("invept", "\x66\x0f\x38\x80\x07");
    TRY("invpcid", "\x66\x0f\x38\x82\x07");
    TRY("monitor", "\x0f\x01\xc8");
    TRY("mwait", "\x0f\x01\xc9");
    TRY("clac", "\x0f\x01\xca");
    TRY("stac", "\x0f\x01\xcb");
    TRY("encls", "\x0f\x01\xcf");
    TRY("enclu", "\x0f\x01\xd7");
    TRY("rsm", "\x0f\xaa");
    TRY("getsec", "\x0f\x37");
    TRY("rdpmc", "\x0f\x33");
    TRY("rdpru", "\x0f\x01\xfd");
    TRY("sgdt", "\x0f\x01\x07");
    TRY("sidt", "\x0f\x01\x0f");
    TRY("sldt", "\x0f\x00\xc0");
    TRY("str", "\x0f\x00\xc8");
    TRY("smsw", "\x0f\x01\xe0");
    TRY("lar", "\x0f\x02\xc0");
    TRY("lsl", "\x0f\x03\xc0");
    TRY("verr", "\x0f\x00\xe0");
    TRY("verw", "\x0f\x00\xe8");
    TRY("rdpkru", "\x0f\x01\xee");
    base.rax = ~0ul;
    TRY("wrpkru", "\x0f\x01\xef");
    base.rax = 0;
    TRY("wrpkru 0", "\x0f\x01\xef");
    TRY("xgetbv", "\x0f\x01\xd0");
    TRY("cpuid", "\x0f\xa2");
    base.rax = 0x40000000;
    TRY("cpuid of the hypervisor", "\x0f\xa2");
    base.rax = 0;
    TRY("rdtscp", "\x0f\x01\xf9");
    TRY("rdpid", "\xf3\x0f\xc7\xf8");
    TRY("umonitor", "\xf3\x0f\xae\xf7");
    TRY("tpause", "\x66\x0f\xae\xf6");
    TRY("senduipi", "\xf3\x0f\xc7\xf0");
    TRY("clui", "\xf3\x0f\x01\xee");
    TRY("incsspq", "\xf3\x48\x0f\xae\xe8");
    TRY("wrussq", "\x66\x48\x0f\x38\xf5\x07");
    TRY("xsaves", "\x0f\xc7\x2f");
    TRY("cldemote", "\x0f\x1c\x07");
    TRY("movdir64b", "\x66\x0f\x38\xf8\x07");
    TRY("enqcmd", "\xf2\x0f\x38\xf8\x07");
    TRY("xbegin to nowhere", "\xc7\xf8\x00\x00\x00\x00");
    TRY("ptwrite", "\xf3\x48\x0f\xae\xe0");
    TRY("pvalidate", "\xf2\x0f\x01\xff");
    TRY("psmash", "\xf3\x0f\x01\xff");
    TRY("hreset", "\xf3\x0f\x3a\xf0\xc0\x00");
    TRY("tdcall", "\x66\x0f\x01\xcc");
    TRY("far call through memory of zeros", "\xff\x1f");
    // Random bytes: no instruction may harm anybody but this program.
    uint64_t state = 0x9e3779b97f4a7c15ul;
    unsigned ends[65] = {0};
    for (unsigned i = 0; i < 3000; i++) {
        unsigned char code[24];
        for (unsigned j = 0; j < sizeof code; j++) code[j] = (unsigned char)(next_random(&state) >> 32);
        // A transfer to 32-bit code or a 32-bit call is tried elsewhere; a 64-bit call could exit.
        int skip = 0;
        for (unsigned j = 0; j + 1 < sizeof code; j++)
            skip |= (code[j] == 0x0f && (code[j + 1] == 0x05 || code[j + 1] == 0x34)) || code[j] == 0xcd || code[j] == 0xcb ||
                    code[j] == 0xca || code[j] == 0xcf || code[j] == 0xff || code[j] == 0xeb || (code[j] & 0xf0) == 0x70 ||
                    (code[j] & 0xfc) == 0xe0 || code[j] == 0xe9 || code[j] == 0xe8 || code[j] == 0xc3 || code[j] == 0xc2;
        if (skip) continue;
        ends[attempt_code(code, sizeof code, &base).sig]++;
    }
    printf("random code: %u fine, %u SIGSEGV, %u SIGILL\n", ends[0], ends[SIGSEGV], ends[SIGILL]);
}

int main(int argc, char **argv) {
    (void)argv;
    attempt_start();
    base = attempt_tame();
    if (argc > 1) loose();
    else strict();
    printf("alive\n");
    return 0;
}
