// The price that KVM itself asks, paid by the least program that can: what kvmlet is compared with.
//   kvm_floor exit [BATCHES]   nanoseconds of one exit and re-entry (X): a ring-3 loop on `out`, general
//                              registers handed over in the shared run page, nothing else done
//   kvm_floor create           nanoseconds of KVM_CREATE_VM + KVM_CREATE_VCPU in a fresh process
// Ring 3, since software KVM emulates ring 0; with IOPL 3 the `out` leaves on hardware as well.
#include "../guests/bench.h"
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { MEMORY_BYTES = 2 << 20, PML4 = 0x1000, PDPT = 0x2000, PD = 0x3000, TSS = 0x4000, CODE = 0x5000 };
enum { BATCH_EXITS = 20 };

static struct batches batches;

static long checked(long result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}
#define CHECK(call) checked((call), #call)

static void copy_cpuid(int kvm, int vcpu)
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
static void enter_ring3(int vcpu, uint8_t *memory)
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

static void one_exit(int vcpu, const struct kvm_run *run)
{
    CHECK(ioctl(vcpu, KVM_RUN, 0));
    if (run->exit_reason != KVM_EXIT_IO || run->io.port != 5) {
        fprintf(stderr, "kvm_floor: unexpected exit %u\n", run->exit_reason);
        exit(1);
    }
}

static double exit_ns(long rounds)
{
    int kvm = CHECK(open("/dev/kvm", O_RDWR | O_CLOEXEC));
    int vm = CHECK(ioctl(kvm, KVM_CREATE_VM, 0));
    uint8_t *memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        exit(1);
    struct kvm_userspace_memory_region slot = {.memory_size = MEMORY_BYTES, .userspace_addr = (uintptr_t)memory};
    CHECK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot));
    int vcpu = CHECK(ioctl(vm, KVM_CREATE_VCPU, 0));
    long run_bytes = CHECK(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
    struct kvm_run *run = mmap(NULL, run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED)
        exit(1);
    copy_cpuid(kvm, vcpu);
    enter_ring3(vcpu, memory);
    run->kvm_valid_regs = KVM_SYNC_X86_REGS;
    for (int i = 0; i < 50; i++)
        one_exit(vcpu, run);
    for (long round = 0; round < rounds; round++) {
        double start = now_ns();
        for (int i = 0; i < BATCH_EXITS; i++)
            one_exit(vcpu, run);
        add(&batches, now_ns() - start);
    }
    return undisturbed(&batches) / BATCH_EXITS;
}

static double create_ns(void)
{
    int kvm = CHECK(open("/dev/kvm", O_RDWR | O_CLOEXEC));
    double start = now_ns();
    int vm = CHECK(ioctl(kvm, KVM_CREATE_VM, 0));
    CHECK(ioctl(vm, KVM_CREATE_VCPU, 0));
    return now_ns() - start;
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "exit"))
        report("x_ns", exit_ns(count_arg(argc, argv, 2, 100)));
    else if (argc > 1 && !strcmp(argv[1], "create"))
        report("create_ns", create_ns());
    else {
        fprintf(stderr, "usage: kvm_floor exit [BATCHES] | create\n");
        return 2;
    }
    return 0;
}
