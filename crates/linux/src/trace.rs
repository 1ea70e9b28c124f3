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
        line.push_str(&argument(cx, kind, value));
    }
    line.push(')');
    line
}

#[allow(clippy::cast_possible_truncation)]
fn argument(cx: &mut Cx<'_>, kind: char, value: u64) -> String {
    match kind {
        'd' if value as i32 == AT_FDCWD => "AT_FDCWD".to_owned(),
        'i' | 'd' => format!("{}", value as i32),
        'u' => format!("{value}"),
        'o' => format!("{value:#o}"),
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
