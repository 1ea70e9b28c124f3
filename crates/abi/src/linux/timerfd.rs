//! Flags of timerfd_settime(2) (linux/timerfd.h).

pub const TFD_TIMER_ABSTIME: u32 = 1;
pub const TFD_TIMER_CANCEL_ON_SET: u32 = 2;
