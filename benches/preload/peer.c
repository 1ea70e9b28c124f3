// Loaded into the measuring process ahead of everything else (LD_PRELOAD): it sees every ioctl that
// kvmlet makes, and offers what kvmlet is compared with, done by the least code in the same process:
// beside the same live VMs, which make some host calls dearer.
#define _GNU_SOURCE
#include "../host/bare_vm.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_VCPUS = 8192, MAX_PAGES = 8192, PAGE_BYTES = 4096 };

// ---- what kvmlet asks of the host ----

// Sums since the process began.
struct counts {
    uint64_t runs;         // KVM_RUN
    uint64_t slots;        // KVM_SET_USER_MEMORY_REGION
    uint64_t creations;    // KVM_CREATE_VM, KVM_CREATE_VCPU
    uint64_t others;       // other ioctls
    uint64_t slot_ns;      // spent in `slots`
    uint64_t creation_ns;  // spent in `creations`
    uint64_t cpuid_ns;     // spent in KVM_SET_CPUID2, one of `others`
    uint64_t mapping_calls; // calls that change mappings, once peer_watch_mappings was called
};

static struct {
    _Atomic uint64_t runs, slots, creations, others, slot_ns, creation_ns, cpuid_ns, mapping_calls;
} sums;

static _Atomic int vcpu_count;
static int vcpus[MAX_VCPUS];

int ioctl(int fd, unsigned long request, ...)
{
    va_list args;
    va_start(args, request);
    void *argument = va_arg(args, void *);
    va_end(args);
    if (request == KVM_RUN) {
        atomic_fetch_add_explicit(&sums.runs, 1, memory_order_relaxed);
        return (int)syscall(SYS_ioctl, fd, request, argument);
    }
    double start = now_ns();
    int result = (int)syscall(SYS_ioctl, fd, request, argument);
    uint64_t spent_ns = (uint64_t)(now_ns() - start);
    if (request == KVM_SET_USER_MEMORY_REGION) {
        sums.slots++;
        sums.slot_ns += spent_ns;
    } else if (request == KVM_CREATE_VM || request == KVM_CREATE_VCPU) {
        sums.creations++;
        sums.creation_ns += spent_ns;
        int at = request == KVM_CREATE_VCPU && result >= 0 ? atomic_fetch_add(&vcpu_count, 1) : MAX_VCPUS;
        if (at < MAX_VCPUS)
            vcpus[at] = result;
    } else {
        sums.others++;
        if (request == KVM_SET_CPUID2)
            sums.cpuid_ns += spent_ns;
    }
    return result;
}

void peer_counts(struct counts *counts)
{
    *counts = (struct counts){sums.runs,    sums.slots,       sums.creations,    sums.others,
                              sums.slot_ns, sums.creation_ns, sums.cpuid_ns, sums.mapping_calls};
}

// A counter of all vCPUs that kvmlet has open, or -1 where KVM has none of this name.
int64_t peer_kvm_counter(const char *name)
{
    struct {
        uint32_t flags, name_size, num_desc, id_offset, desc_offset, data_offset;
    } header;
    struct {
        uint32_t flags;
        int16_t exponent;
        uint16_t size;
        uint32_t offset, bucket_size;
        char name[256];
    } descriptor;
    int64_t sum = -1;
    int known = vcpu_count < MAX_VCPUS ? vcpu_count : MAX_VCPUS;
    for (int i = 0; i < known; i++) {
        int again = 0;
        for (int j = 0; j < i; j++)
            again |= vcpus[j] == vcpus[i];
        int stats = again ? -1 : (int)syscall(SYS_ioctl, vcpus[i], KVM_GET_STATS_FD, 0);
        if (stats < 0)
            continue;
        if (pread(stats, &header, sizeof header, 0) == sizeof header && header.name_size <= sizeof descriptor.name)
            for (uint32_t d = 0; d < header.num_desc; d++) {
                size_t len_bytes = offsetof(__typeof__(descriptor), name) + header.name_size;
                uint64_t value;
                if (pread(stats, &descriptor, len_bytes, (off_t)(header.desc_offset + d * len_bytes)) == (ssize_t)len_bytes &&
                    !strcmp(descriptor.name, name) &&
                    pread(stats, &value, sizeof value, header.data_offset + descriptor.offset) == sizeof value)
                    sum = (sum < 0 ? 0 : sum) + (int64_t)value;
            }
        close(stats);
    }
    return sum;
}

// ---- calls that change mappings ----

static void *count_mapping_calls(void *listener)
{
    struct seccomp_notif asked;
    for (;;) {
        memset(&asked, 0, sizeof asked);
        if (syscall(SYS_ioctl, (int)(intptr_t)listener, SECCOMP_IOCTL_NOTIF_RECV, &asked))
            continue;
        atomic_fetch_add(&sums.mapping_calls, 1);
        struct seccomp_notif_resp answer = {.id = asked.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
        syscall(SYS_ioctl, (int)(intptr_t)listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    }
    return NULL;
}

static _Atomic int listener = -1;

static void *wait_for_listener(void *nothing)
{
    while (listener < 0)
        usleep(100);
    (void)nothing;
    return count_mapping_calls((void *)(intptr_t)listener);
}

// From now on every thread's mmap, munmap, mprotect, mremap, madvise and brk are counted: a thread
// that makes none hears of each from the kernel and lets it go on. That makes them, and a little also
// all other system calls, slower, and there is no way back. 0, or -1 if the kernel refuses (before
// Linux 5.7).
int peer_watch_mappings(void)
{
    static const uint32_t watched[] = {SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap, SYS_madvise, SYS_brk};
    enum { WATCHED = sizeof watched / sizeof *watched };
    struct sock_filter filter[WATCHED + 3];
    int n = 0;
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < WATCHED; i++)
        filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, watched[i], (uint8_t)(WATCHED - i), 0);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    struct sock_fprog program = {.len = (unsigned short)n, .filter = filter};
    pthread_t thread;
    if (pthread_create(&thread, NULL, wait_for_listener, NULL) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return -1;
    unsigned flags = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
    listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
    return listener < 0 ? -1 : 0;
}

// ---- what kvmlet is compared with ----

// Nanoseconds of one exit and re-entry of a bare VM (X), over `batches` batches.
double peer_exit_ns(int batch_count)
{
    static struct bare_vm bare;
    struct batches *batches = calloc(1, sizeof *batches);
    if (!batches)
        exit(1);
    if (!bare.run)
        bare = open_bare_vm();
    for (int i = 0; i < batch_count; i++)
        add(batches, batch_ns(&bare));
    double least_ns = undisturbed(batches) / BATCH_EXITS;
    free(batches);
    return least_ns;
}

static char *anonymous(size_t len_bytes, int advice)
{
    char *memory = mmap(NULL, len_bytes + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    memory += -(uintptr_t)memory & ((2 << 20) - 1);
    madvise(memory, len_bytes, advice);
    return memory;
}

// Nanoseconds of copying `pages` pages, one by one, from huge pages to small ones, after a word was
// written in each of the first `written`: what a reset can do best.
double peer_copy_ns(int pages, int written)
{
    static char *from, *to;
    if (!from) {
        from = anonymous((size_t)MAX_PAGES * PAGE_BYTES, MADV_HUGEPAGE);
        to = anonymous((size_t)MAX_PAGES * PAGE_BYTES, MADV_NOHUGEPAGE);
        memset(from, 1, (size_t)MAX_PAGES * PAGE_BYTES);
        memset(to, 2, (size_t)MAX_PAGES * PAGE_BYTES);
    }
    for (size_t page = 0; page < (size_t)written; page++)
        *(volatile uint64_t *)(to + page * PAGE_BYTES + (page * 0x9e3779b1u >> 7) % 512 * 8) = page;
    double start = now_ns();
    for (size_t page = 0; page < (size_t)pages; page++) {
        memcpy(to + page * PAGE_BYTES, from + page * PAGE_BYTES, PAGE_BYTES);
        __asm__ volatile("" : : "r"(to) : "memory");
    }
    return now_ns() - start;
}
