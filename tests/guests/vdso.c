// The vDSO is an ELF image with the LINUX_2.6 functions (vdso(7)), and calling
// them by their symbols works.
#include "guest.h"
#include <elf.h>
#include <sys/auxv.h>
#include <sys/time.h>
#include <time.h>

static const char *strings;
static Elf64_Sym *symbols;
static Elf64_Half *versym;
static Elf64_Verdef *verdef;
static uintptr_t base;
static size_t symbol_count;

static void *find(const char *name) {
    for (size_t i = 0; i < symbol_count; i++) {
        Elf64_Sym *s = &symbols[i];
        if (s->st_shndx == SHN_UNDEF || strcmp(strings + s->st_name, name)) continue;
        const char *version = "none";
        for (Elf64_Verdef *d = verdef; versym && d;
             d = d->vd_next ? (Elf64_Verdef *)((char *)d + d->vd_next) : NULL)
            if ((versym[i] & 0x7fff) == d->vd_ndx)
                version = strings + ((Elf64_Verdaux *)((char *)d + d->vd_aux))->vda_name;
        printf("%s version %s type %d\n", name, version, ELF64_ST_TYPE(s->st_info));
        return (void *)(base + s->st_value);
    }
    printf("FAIL no symbol %s\n", name);
    return NULL;
}

int main(void) {
    Elf64_Ehdr *eh = (Elf64_Ehdr *)getauxval(AT_SYSINFO_EHDR);
    need(eh != NULL, "AT_SYSINFO_EHDR");
    CHECK(memcmp(eh->e_ident, ELFMAG, SELFMAG) == 0);
    CHECK(eh->e_type == ET_DYN && eh->e_machine == EM_X86_64);
    Elf64_Phdr *ph = (Elf64_Phdr *)((char *)eh + eh->e_phoff);
    Elf64_Dyn *dyn = NULL;
    for (int i = 0; i < eh->e_phnum; i++) {
        if (ph[i].p_type == PT_LOAD && !base) base = (uintptr_t)eh + ph[i].p_offset - ph[i].p_vaddr;
        if (ph[i].p_type == PT_DYNAMIC) dyn = (Elf64_Dyn *)((char *)eh + ph[i].p_offset);
    }
    need(dyn != NULL && base != 0, "segments");
    Elf64_Word *hash = NULL;
    uint32_t *gnu = NULL;
    for (; dyn->d_tag != DT_NULL; dyn++) {
        void *p = (void *)(base + dyn->d_un.d_ptr);
        switch (dyn->d_tag) {
            case DT_STRTAB: strings = p; break;
            case DT_SYMTAB: symbols = p; break;
            case DT_HASH: hash = p; break;
            case DT_GNU_HASH: gnu = p; break;
            case DT_VERSYM: versym = p; break;
            case DT_VERDEF: verdef = p; break;
        }
    }
    need(strings && symbols && (hash || gnu), "dynamic table");
    if (hash) symbol_count = hash[1];
    else {
        uint32_t *buckets = gnu + 4 + gnu[2] * 2, *chain = buckets + gnu[0], top = 0;
        for (uint32_t i = 0; i < gnu[0]; i++)
            if (buckets[i] > top) top = buckets[i];
        if (top >= gnu[1])
            while (!(chain[top - gnu[1]] & 1)) top++;
        symbol_count = top + 1;
    }

    int (*gettime)(clockid_t, struct timespec *) = find("__vdso_clock_gettime");
    int (*getres)(clockid_t, struct timespec *) = find("__vdso_clock_getres");
    int (*gettod)(struct timeval *, void *) = find("__vdso_gettimeofday");
    time_t (*gett)(time_t *) = find("__vdso_time");
    long (*cpu)(unsigned *, unsigned *, void *) = find("__vdso_getcpu");
    if (!gettime || !getres || !gettod || !gett || !cpu) return 1;
    struct timespec a, b;
    CHECK(gettime(CLOCK_MONOTONIC, &a) == 0 && gettime(CLOCK_MONOTONIC, &b) == 0);
    CHECK(b.tv_sec > a.tv_sec || (b.tv_sec == a.tv_sec && b.tv_nsec >= a.tv_nsec));
    CHECK(a.tv_nsec >= 0 && a.tv_nsec < 1000000000);
    CHECK(gettime(77, &a) == -EINVAL);
    CHECK(gettime(CLOCK_PROCESS_CPUTIME_ID, &a) == 0);
    CHECK(getres(CLOCK_MONOTONIC, &a) == 0 && a.tv_nsec > 0);
    CHECK(getres(CLOCK_MONOTONIC, NULL) == 0);
    struct timeval tv;
    CHECK(gettod(&tv, NULL) == 0 && tv.tv_sec > 1600000000);
    time_t t = 0, r = gett(&t);
    CHECK(r == t && r > 1600000000);
    CHECK(gett(NULL) >= r);
    unsigned c = 9999, n = 9999;
    CHECK(cpu(&c, &n, NULL) == 0 && c < 9999 && n < 9999);
    CHECK(cpu(NULL, NULL, NULL) == 0);
    printf("done\n");
    return 0;
}
