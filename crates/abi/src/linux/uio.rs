//! Arrays of buffers (linux/uio.h).

pub const UIO_MAXIOV: usize = 1024;

guest_struct! {
    /// struct iovec (readv(2))
    pub struct Iovec { pub iov_base: u64, pub iov_len: u64, }
}
