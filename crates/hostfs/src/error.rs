//! Errors of the host.

use kvmlet_abi::Errno;

/// A host error as the guest sees it.
pub(crate) fn errno(error: rustix::io::Errno) -> Errno {
    match error {
        // Its own limit is another matter.
        rustix::io::Errno::MFILE => Errno::ENFILE,
        other => Errno::from_raw(other.raw_os_error()),
    }
}
