// The price that KVM itself asks, paid by the least program that can: what kvmlet is compared with.
//   kvm_floor exit [BATCHES]   nanoseconds of one exit and re-entry (X) of a bare VM (bare_vm.h)
//   kvm_floor create           nanoseconds of KVM_CREATE_VM + KVM_CREATE_VCPU in a fresh process
#include "bare_vm.h"

static struct batches batches;

static double exit_ns(long rounds)
{
    struct bare_vm bare = open_bare_vm();
    for (long round = 0; round < rounds; round++)
        add(&batches, batch_ns(&bare));
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
