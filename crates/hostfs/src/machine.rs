//! Things that the host tells of itself in files which are out of reach once the second wall stands.

use std::io::Read;
use std::sync::OnceLock;

/// Longest part of /proc/cpuinfo that is read, in bytes: the first processor's.
const CPUINFO_MAX: u64 = 16 << 10;

/// The start of the host's /proc/cpuinfo, read once; empty if it cannot be read.
pub fn cpuinfo() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let mut bytes = Vec::new();
        if let Ok(file) = std::fs::File::open("/proc/cpuinfo") {
            // What could be read is there.
            let _ = file.take(CPUINFO_MAX).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
