//! What /proc/self/fdinfo says of objects without a name (proc_pid_fdinfo(5)).

use crate::clock::{self, NSEC_PER_SEC};
use crate::cx::Cx;
use crate::fd::FileKind;
use crate::vfs::eventfd::EventMode;

/// The lines after `mnt_id`.
#[must_use]
pub fn text(cx: &Cx<'_>, kind: &FileKind) -> String {
    let objects = &cx.kernel.objects;
    match kind {
        FileKind::Event(id) => objects.events.get(id).map_or_else(String::new, |event| {
            let semaphore = u8::from(event.mode == EventMode::Semaphore);
            format!(
                "eventfd-count: {:16x}\neventfd-id: {}\neventfd-semaphore: {semaphore}\n",
                event.count, id.0
            )
        }),
        FileKind::Timer(id) => {
            let Ok(timer) = objects.timers.get(*id) else {
                return String::new();
            };
            let (left, interval) = timer.setting(clock::monotonic_ns(cx.host));
            let pair = |ns: u64| format!("({}, {})", ns / NSEC_PER_SEC, ns % NSEC_PER_SEC);
            format!(
                "clockid: {}\nticks: {}\nsettime flags: 0{:o}\nit_value: {}\nit_interval: {}\n",
                timer.clock.0,
                timer.ticks(),
                timer.settime_flags,
                pair(left),
                pair(interval)
            )
        }
        FileKind::Epoll(id) => objects.epolls.info(*id),
        FileKind::Signals(mask) => format!("sigmask:\t{mask:016x}\n"),
        _ => String::new(),
    }
}
