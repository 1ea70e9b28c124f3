//! times(2) (linux/times.h).

guest_struct! {
    /// struct tms (times(2))
    pub struct Tms { pub tms_utime: i64, pub tms_stime: i64, pub tms_cutime: i64, pub tms_cstime: i64, }
}
