//! Trace lines: the table's vocabulary, as strace(1) would print it.

use crate::cx::Cx;
use crate::kernel::Tid;
use crate::outcome::Outcome;
use crate::sched::Call;
use crate::signal::SigInfo;
use crate::syscalls::table::Row;
use kvmlet_abi::linux::fcntl::AT_FDCWD;
use kvmlet_abi::{Errno, Gva};

/// Bytes of a string argument shown.
const STRING_SHOWN: usize = 64;

/// The call with its arguments, before it is made (a call may overwrite its own arguments).
#[must_use]
pub fn entry(cx: &mut Cx<'_>, row: Option<&Row>, call: &Call) -> String {
    let tid = cx.tid.0;
    let Some(row) = row else {
        return format!("[{tid}] syscall_{}({:#x}, ...)", call.nr, call.args[0]);
    };
    let mut line = format!("[{tid}] {}(", row.name);
    for (index, (kind, value)) in row.signature.chars().zip(call.args).enumerate() {
        if index > 0 {
            line.push_str(", ");
        }
        let kind = flags_of(row.name, index).unwrap_or(kind);
        line.push_str(&argument(cx, kind, value));
    }
    line.push(')');
    line
}

/// The kind of an argument that is bits with names: f of open(2), p rights, m of mmap(2).
fn flags_of(call: &str, index: usize) -> Option<char> {
    match (call, index) {
        ("open", 1) | ("openat", 2) => Some('f'),
        ("mmap" | "mprotect" | "pkey_mprotect", 2) => Some('p'),
        ("mmap", 3) => Some('m'),
        _ => None,
    }
}

#[allow(clippy::cast_possible_truncation)]
fn argument(cx: &mut Cx<'_>, kind: char, value: u64) -> String {
    match kind {
        'd' if value as i32 == AT_FDCWD => "AT_FDCWD".to_owned(),
        'i' | 'd' => format!("{}", value as i32),
        'u' => format!("{value}"),
        'o' => format!("{value:#o}"),
        'f' => {
            const ACCESS: [&str; 4] = ["O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"];
            let access = ACCESS.get((value & 3) as usize).unwrap_or(&"O_RDONLY");
            match value as u32 & !3 {
                0 => (*access).to_owned(),
                rest => format!("{access}|{}", names(u64::from(rest), OPEN)),
            }
        }
        'p' if value == 0 => "PROT_NONE".to_owned(),
        'p' => names(value, PROT),
        'm' => names(value, MAP),
        's' if value != 0 => match cx.read_cstr(Gva(value), 4096) {
            Ok(bytes) => {
                let shown = bytes
                    .get(..bytes.len().min(STRING_SHOWN))
                    .unwrap_or_default();
                let more = if bytes.len() > STRING_SHOWN {
                    "..."
                } else {
                    ""
                };
                format!("\"{}\"{more}", shown.escape_ascii())
            }
            Err(_) => format!("{value:#x}"),
        },
        _ if value == 0 => "0".to_owned(),
        _ => format!("{value:#x}"),
    }
}

/// Flags of open(2) beside the access mode. Those that have others in them come first.
const OPEN: &[(u64, &str)] = &[
    (0o20_200_000, "O_TMPFILE"),
    (0o4_010_000, "O_SYNC"),
    (0o100, "O_CREAT"),
    (0o200, "O_EXCL"),
    (0o400, "O_NOCTTY"),
    (0o1000, "O_TRUNC"),
    (0o2000, "O_APPEND"),
    (0o4000, "O_NONBLOCK"),
    (0o10_000, "O_DSYNC"),
    (0o20_000, "O_ASYNC"),
    (0o40_000, "O_DIRECT"),
    (0o100_000, "O_LARGEFILE"),
    (0o200_000, "O_DIRECTORY"),
    (0o400_000, "O_NOFOLLOW"),
    (0o1_000_000, "O_NOATIME"),
    (0o2_000_000, "O_CLOEXEC"),
    (0o10_000_000, "O_PATH"),
];
const PROT: &[(u64, &str)] = &[
    (1, "PROT_READ"),
    (2, "PROT_WRITE"),
    (4, "PROT_EXEC"),
    (0x0100_0000, "PROT_GROWSDOWN"),
    (0x0200_0000, "PROT_GROWSUP"),
];
const MAP: &[(u64, &str)] = &[
    (3, "MAP_SHARED_VALIDATE"),
    (1, "MAP_SHARED"),
    (2, "MAP_PRIVATE"),
    (0x10, "MAP_FIXED"),
    (0x20, "MAP_ANONYMOUS"),
    (0x40, "MAP_32BIT"),
    (0x100, "MAP_GROWSDOWN"),
    (0x800, "MAP_DENYWRITE"),
    (0x2000, "MAP_LOCKED"),
    (0x4000, "MAP_NORESERVE"),
    (0x8000, "MAP_POPULATE"),
    (0x1_0000, "MAP_NONBLOCK"),
    (0x2_0000, "MAP_STACK"),
    (0x4_0000, "MAP_HUGETLB"),
    (0x10_0000, "MAP_FIXED_NOREPLACE"),
];

/// The names of the bits that are set, and the rest as a number.
fn names(value: u64, known: &[(u64, &str)]) -> String {
    let mut left = value;
    let mut found = Vec::new();
    for (bits, name) in known {
        if left & bits == *bits {
            left &= !bits;
            found.push((*name).to_owned());
        }
    }
    if left != 0 || found.is_empty() {
        found.push(format!("{left:#x}"));
    }
    found.join("|")
}

/// The whole line, with the outcome.
#[must_use]
pub fn exit(entry: &str, outcome: &Outcome, first: bool) -> String {
    let resumed = if first { "" } else { " (again)" };
    match outcome {
        Outcome::Done(Ok(value)) if *value < 1 << 20 => format!("{entry}{resumed} = {value}"),
        Outcome::Done(Ok(value)) => format!("{entry}{resumed} = {value:#x}"),
        Outcome::Done(Err(errno)) => format!("{entry}{resumed} = -1 {}", describe(*errno)),
        Outcome::Wait(_) => format!("{entry}{resumed} ... waits"),
        Outcome::Again(_) => format!("{entry}{resumed} ... goes on"),
        Outcome::Registers => format!("{entry}{resumed} = ?"),
        Outcome::Gone => format!("{entry}{resumed} = ? (ended)"),
    }
}

fn describe(errno: Errno) -> &'static str {
    errno.name()
}

/// A signal being delivered.
#[must_use]
pub fn signal(tid: Tid, info: &SigInfo) -> String {
    format!(
        "[{}] --- signal {} (code {}) ---",
        tid.0, info.signo, info.code
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_names() {
        assert_eq!(names(0x22, MAP), "MAP_PRIVATE|MAP_ANONYMOUS");
        assert_eq!(names(0x8000_0003, MAP), "MAP_SHARED_VALIDATE|0x80000000");
        assert_eq!(names(0o20_200_000, OPEN), "O_TMPFILE");
        assert_eq!(names(0, PROT), "0x0");
    }
}
