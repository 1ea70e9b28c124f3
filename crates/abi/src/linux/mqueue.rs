//! POSIX message queues (linux/mqueue.h).

/// Priorities are below this.
pub const MQ_PRIO_MAX: u32 = 32_768;
/// si_code of the signal for a message (bits/siginfo-consts.h).
pub const SI_MESGQ: i32 = -3;

guest_struct! {
    /// struct mq_attr
    pub struct MqAttr {
        pub mq_flags: i64, pub mq_maxmsg: i64, pub mq_msgsize: i64, pub mq_curmsgs: i64,
        pub reserved: [i64; 4],
    }
}
