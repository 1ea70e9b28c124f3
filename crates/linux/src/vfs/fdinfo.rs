//! Texts of /proc/self/fdinfo for objects without a name (proc_pid_fdinfo(5)).

use crate::clock::{self, NSEC_PER_SEC};
use crate::cx::Cx;
use crate::vfs::anon::ObjectId;
use crate::vfs::eventfd::EventMode;
use crate::vfs::inotify::Subject;
use crate::vfs::synth;

/// The lines of an event counter.
#[must_use]
pub fn of_event(cx: &Cx<'_>, id: ObjectId) -> String {
    let events = &cx.kernel.objects.events;
    events.get(&id).map_or_else(String::new, |event| {
        let semaphore = u8::from(event.mode == EventMode::Semaphore);
        format!(
            "eventfd-count: {:16x}\neventfd-id: {}\neventfd-semaphore: {semaphore}\n",
            event.count, id.0
        )
    })
}

/// The lines of a timer.
#[must_use]
pub fn of_timer(cx: &Cx<'_>, id: ObjectId) -> String {
    let Ok(timer) = cx.kernel.objects.timers.get(id) else {
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

/// The lines of an inotify instance. Linux differs: they also have a file handle.
#[must_use]
pub fn of_inotify(cx: &Cx<'_>, id: ObjectId) -> String {
    let line = |(wd, subject, mask): (i32, &Subject, u32)| {
        let (ino, dev) = match subject {
            Subject::Inode(inode) => {
                let inode = cx.kernel.tmpfs.get(*inode);
                inode.map_or((0, 0), |inode| (inode.ino, inode.dev))
            }
            Subject::Path(path) => (synth::inode_number(path), 0),
        };
        format!("inotify wd:{wd:x} ino:{ino:x} sdev:{dev:x} mask:{mask:x} ignored_mask:0 \n")
    };
    cx.kernel.objects.inotifies.watches(id).map(line).collect()
}
