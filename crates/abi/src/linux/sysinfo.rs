//! sysinfo(2) (linux/sysinfo.h).

guest_struct! {
    /// struct sysinfo (sysinfo(2)), x86-64
    pub struct Sysinfo {
        pub uptime: i64, pub loads: [u64; 3], pub totalram: u64, pub freeram: u64,
        pub sharedram: u64, pub bufferram: u64, pub totalswap: u64, pub freeswap: u64,
        pub procs: u16, pub pad: u16, pub pad1: u32, pub totalhigh: u64, pub freehigh: u64,
        pub mem_unit: u32, pub pad2: u32,
    }
}
