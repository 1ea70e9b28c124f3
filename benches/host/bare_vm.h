// The least VM that leaves on every `out`: general registers in the shared run page, nothing else done.
// Ring 3, since software KVM emulates ring 0; with IOPL 3 the `out` leaves on hardware as well.
#ifndef BARE_VM_H
#define BARE_VM_H
#include "../guests/bench.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { MEMORY_BYTES = 2 << 20, PML4 = 0x1000, PDPT = 0x2000, PD = 0x3000, TSS = 0x4000, CODE = 0x5000 };
enum { BATCH_EXITS = 20 };

struct bare_vm {
    int vcpu;
    struct kvm_run *run;
};

static inline long checked(long result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}
#define CHECK(call) checked((call), #call)

static inline void copy_cpuid(int kvm, int vcpu)
{
    enum { ENTRIES = 256 };
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + ENTRIES * sizeof cpuid->entries[0]);
    if (!cpuid)
        exit(1);
    cpuid->nent = ENTRIES;
    CHECK(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid));
    CHECK(ioctl(vcpu, KVM_SET_CPUID2, cpuid));
    free(cpuid);
}

// 64-bit ring 3 at CODE, under one user-accessible 2 MiB page over all of the memory.
static inline void enter_ring3(int vcpu, uint8_t *memory)
{
    static const uint8_t loop[] = {0xe6, 0x05, 0xeb, 0xfc}; // 1: out %al,$5; jmp 1b
    memcpy(memory + CODE, loop, sizeof loop);
    *(uint64_t *)(memory + PML4) = PDPT | 7;
    *(uint64_t *)(memory + PDPT) = PD | 7;
    *(uint64_t *)(memory + PD) = 0x87;

    struct kvm_sregs sregs;
    CHECK(ioctl(vcpu, KVM_GET_SREGS, &sregs));
    struct kvm_segment data = {.limit = 0xffffffff, .selector = 0x2b, .type = 3, .present = 1, .dpl = 3, .s = 1, .db = 1, .g = 1};
    struct kvm_segment code = {.limit = 0xffffffff, .selector = 0x33, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1};
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.tr = (struct kvm_segment){.base = TSS, .limit = 0x67, .selector = 0x40, .type = 11, .present = 1};
    sregs.cr0 = 0x80050033; // PG AM WP NE ET MP PE
    sregs.cr3 = PML4;
    sregs.cr4 = 0x620; // PAE OSFXSR OSXMMEXCPT
    sregs.efer = 0xd01; // NXE LMA LME SCE
    CHECK(ioctl(vcpu, KVM_SET_SREGS, &sregs));
    struct kvm_regs regs = {.rip = CODE, .rsp = MEMORY_BYTES, .rflags = 0x3002};
    CHECK(ioctl(vcpu, KVM_SET_REGS, &regs));
}

static inline void one_exit(const struct bare_vm *bare)
{
    // Where a timer of kvmlet's ends, the signal is not for us.
    while (ioctl(bare->vcpu, KVM_RUN, 0) < 0)
        if (errno != EINTR) {
            perror("KVM_RUN");
            exit(1);
        }
    if (bare->run->exit_reason != KVM_EXIT_IO || bare->run->io.port != 5) {
        fprintf(stderr, "bare VM: unexpected exit %u\n", bare->run->exit_reason);
        exit(1);
    }
}

// A VM that has left often enough to be warm.
static inline struct bare_vm open_bare_vm(void)
{
    int kvm = CHECK(open("/dev/kvm", O_RDWR | O_CLOEXEC));
    int vm = CHECK(ioctl(kvm, KVM_CREATE_VM, 0));
    uint8_t *memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        exit(1);
    struct kvm_userspace_memory_region slot = {.memory_size = MEMORY_BYTES, .userspace_addr = (uintptr_t)memory};
    CHECK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot));
    struct bare_vm bare = {.vcpu = CHECK(ioctl(vm, KVM_CREATE_VCPU, 0))};
    long run_bytes = CHECK(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
    bare.run = mmap(NULL, run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, bare.vcpu, 0);
    if (bare.run == MAP_FAILED)
        exit(1);
    copy_cpuid(kvm, bare.vcpu);
    enter_ring3(bare.vcpu, memory);
    bare.run->kvm_valid_regs = KVM_SYNC_X86_REGS;
    for (int i = 0; i < 50; i++)
        one_exit(&bare);
    return bare;
}

// Nanoseconds of a batch of exits.
static inline double batch_ns(const struct bare_vm *bare)
{
    double start = now_ns();
    for (int i = 0; i < BATCH_EXITS; i++)
        one_exit(bare);
    return now_ns() - start;
}
#endif
