//! signalfd(2) (linux/signalfd.h).

guest_struct! {
    /// struct signalfd_siginfo (signalfd(2))
    pub struct SignalfdSiginfo {
        pub ssi_signo: u32, pub ssi_errno: i32, pub ssi_code: i32, pub ssi_pid: i32,
        pub ssi_uid: u32, pub ssi_fd: i32, pub ssi_tid: i32, pub ssi_band: u32,
        pub ssi_overrun: i32, pub ssi_trapno: u32, pub ssi_status: i32, pub ssi_int: u32,
        pub ssi_ptr: u64, pub ssi_utime: u64, pub ssi_stime: u64, pub ssi_addr: u64,
        pub pad: [u64; 6],
    }
}
