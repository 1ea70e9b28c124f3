// Arguments, environment and auxiliary vector (getauxval(3)).
#include "guest.h"
#include <elf.h>
#include <sys/auxv.h>

extern char **environ;

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

int main(int argc, char **argv) {
    printf("argc %d\n", argc);
    for (int i = 0; i < argc; i++) printf("argv[%d] = <%s>\n", i, argv[i]);
    CHECK(argv[argc] == NULL);

    int n = 0;
    while (environ[n]) n++;
    char **sorted = malloc(sizeof(char *) * (size_t)(n + 1));
    memcpy(sorted, environ, sizeof(char *) * (size_t)n);
    qsort(sorted, (size_t)n, sizeof(char *), by_name);
    for (int i = 0; i < n; i++) printf("env %s\n", sorted[i]);

    // The vector follows the environment's NULL.
    Elf64_auxv_t *v = (Elf64_auxv_t *)(environ + n + 1);
    int count = 0, seen_null = 0;
    for (; count < 64; count++)
        if (v[count].a_type == AT_NULL) {
            seen_null = 1;
            break;
        }
    CHECK(seen_null);
    printf("pagesz %lu clktck %lu phent %lu secure %lu\n", getauxval(AT_PAGESZ), getauxval(AT_CLKTCK),
           getauxval(AT_PHENT), getauxval(AT_SECURE));
    printf("uid %lu euid %lu gid %lu egid %lu\n", getauxval(AT_UID), getauxval(AT_EUID), getauxval(AT_GID),
           getauxval(AT_EGID));
    CHECK(getauxval(AT_UID) == getuid() && getauxval(AT_GID) == getgid());
    printf("platform %s\n", (char *)getauxval(AT_PLATFORM));
    printf("execfn %s\n", (char *)getauxval(AT_EXECFN));
    printf("phnum %lu\n", getauxval(AT_PHNUM));
    CHECK(getauxval(AT_PHDR) != 0);
    CHECK(getauxval(AT_ENTRY) != 0);
    printf("has base: %d\n", getauxval(AT_BASE) != 0);
    CHECK(getauxval(AT_SYSINFO_EHDR) != 0);

    const unsigned char *random = (const unsigned char *)getauxval(AT_RANDOM);
    CHECK(random != NULL);
    int nonzero = 0;
    for (int i = 0; random && i < 16; i++) nonzero |= random[i];
    CHECK(nonzero != 0);

    // From the vector itself: glibc's getauxval answers with its own words here.
    // CPUID.1:EDX: FPU, TSC, CMOV, FXSR, SSE and SSE2 are part of every x86-64.
    unsigned long hwcap = 0, hwcap2 = 0;
    for (int i = 0; i < count; i++) {
        if (v[i].a_type == AT_HWCAP) hwcap = v[i].a_un.a_val;
        if (v[i].a_type == AT_HWCAP2) hwcap2 = v[i].a_un.a_val;
    }
    const unsigned long always = 1 << 0 | 1 << 4 | 1 << 15 | 1 << 24 | 1 << 25 | 1 << 26;
    CHECK((hwcap & always) == always);
    if (hwcap2 & 2) {
        // The vector says that ring 3 may read its FS base: then it may.
        unsigned long fs, self;
        __asm__ volatile("rdfsbase %0" : "=r"(fs));
        __asm__ volatile("mov %%fs:0, %0" : "=r"(self));
        if (fs != self) printf("FAIL rdfsbase\n");
    }
    printf("done\n");
    return argc - 1;
}
