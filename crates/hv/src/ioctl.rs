//! KVM ioctls that kvm-ioctls lacks or wraps in a way that costs time on the run path.

use kvm_bindings::{KVMIO, kvm_device_attr, kvm_xsave};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr};

ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);
ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, kvm_xsave);
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);

/// KVM_CAP_BINARY_STATS_FD (linux/kvm.h).
pub const CAP_BINARY_STATS_FD: std::ffi::c_ulong = 203;
