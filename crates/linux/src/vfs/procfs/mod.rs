//! The process file system: generated from the kernel value when asked.

mod bare;
mod net;
mod process;
mod system;
mod sysvipc;

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::{S_IFDIR, S_IFLNK, S_IFREG, d_type};

use self::bare::{BARE_FILES, Bare};
use self::net::{NET_FILES, net_text};
use self::process::{PROCESS_FILES, children_of, process_text};
use self::system::{SYS_FILES, TOP_FILES, sys_entry, sys_text, top_text};
use self::sysvipc::{SYSVIPC_FILES, sysvipc_text};
use super::synth::Synth;
use crate::creds::By;
use crate::cx::Cx;
use crate::fd::Text;
use crate::kernel::{Pid, Share, Tid};
use crate::mm;
use crate::mm::smaps::View;

const PROCESS_LINKS: [&[u8]; 3] = [b"cwd", b"exe", b"root"];

/// Files of a process that are for those who may look into it.
const PRIVATE_FILES: [&[u8]; 8] = [
    b"auxv",
    b"environ",
    b"io",
    b"maps",
    b"personality",
    b"smaps",
    b"smaps_rollup",
    b"timers",
];

const PROCESS_DIRS: [&[u8]; 4] = [b"fd", b"fdinfo", b"net", b"task"];

/// A path below /proc, taken apart.
enum Entry<'a> {
    Root,
    Top(&'a [u8]),
    Sys(Vec<u8>),
    /// Lists of System V IPC.
    SysvIpc(Option<&'a [u8]>),
    Process(Pid, Option<Tid>, Vec<&'a [u8]>),
    /// A process without threads and memory.
    Bare(Bare, Vec<&'a [u8]>),
}

fn number(name: &[u8]) -> Option<i32> {
    if name.first().is_none_or(|digit| !digit.is_ascii_digit()) || name.first() == Some(&b'0') {
        return None;
    }
    std::str::from_utf8(name).ok()?.parse().ok()
}

fn entry<'a>(cx: &Cx<'_>, path: &'a [u8]) -> Option<Entry<'a>> {
    let mut parts = path.split(|byte| *byte == b'/').skip(2);
    let Some(first) = parts.next().filter(|name| !name.is_empty()) else {
        return Some(Entry::Root);
    };
    if first == b"sys" {
        let rest: Vec<&[u8]> = parts.collect();
        return Some(Entry::Sys(rest.join(&b'/')));
    }
    if first == b"sysvipc" {
        let name = parts.next();
        return parts.next().is_none().then_some(Entry::SysvIpc(name));
    }
    let Some(pid) = number(first) else {
        return parts.next().is_none().then_some(Entry::Top(first));
    };
    let pid = Pid(pid);
    let mut rest: Vec<&[u8]> = parts.collect();
    if !cx.kernel.processes.contains_key(&pid) {
        let bare = Bare::find(cx, pid)?;
        if rest.first() == Some(&b"task".as_slice()) && rest.len() > 1 {
            // Its only thread has its id.
            number(rest.get(1)?).filter(|tid| *tid == pid.0)?;
            rest.drain(..2);
            if rest.first() == Some(&b"task".as_slice()) {
                return None;
            }
        } else if rest == [b"children".as_slice()] {
            return None;
        }
        return Some(Entry::Bare(bare, rest));
    }
    if rest.first() == Some(&b"task".as_slice()) && rest.len() > 1 {
        let tid = Tid(number(rest.get(1)?)?);
        cx.kernel
            .threads
            .get(&tid)
            .filter(|thread| thread.pid == pid)?;
        rest.drain(..2);
        return Some(Entry::Process(pid, Some(tid), rest));
    }
    Some(Entry::Process(pid, None, rest))
}

/// The process whose directory a path leads into.
fn process_of(path: &[u8]) -> Option<Pid> {
    let name = path.split(|byte| *byte == b'/').nth(2)?;
    number(name).map(Pid)
}

/// User and group that something below /proc belongs to: in a process's directory its effective ones, if it is
/// dumpable; else root (task_dump_owner in fs/proc/base.c).
#[must_use]
pub fn owner(cx: &Cx<'_>, path: &[u8]) -> (u32, u32) {
    let Some(pid) = process_of(path) else {
        return (0, 0);
    };
    let is_dumpable = cx.kernel.processes.get(&pid).is_none_or(|one| one.dumpable);
    // The directory itself can be entered by everybody, and is its user's all the same.
    let is_dir = path.iter().filter(|byte| **byte == b'/').count() == 2;
    let creds = cx.kernel.creds_of(pid);
    match is_dumpable || is_dir {
        true => (creds.user.effective, creds.group.effective),
        false => (0, 0),
    }
}

/// True if the caller may look into a process: at its memory, its environment, its descriptors and what its links
/// lead to (ptrace(2), "Ptrace access mode checking").
fn may_look_into(cx: &Cx<'_>, pid: Pid) -> bool {
    let own = cx.kernel.threads.get(&cx.tid).map(|thread| thread.pid);
    let is_dumpable = cx
        .kernel
        .processes
        .get(&pid)
        .is_some_and(|one| one.dumpable);
    let target = (&**cx.kernel.creds_of(pid), is_dumpable);
    own == Some(pid) || cx.creds().may_look_into(target, By::Files)
}

/// The object at a canonical path below /proc.
#[must_use]
pub fn lookup(cx: &Cx<'_>, path: &[u8]) -> Option<Synth> {
    match entry(cx, path)? {
        Entry::Root => Some(Synth::Dir),
        Entry::Top(b"self") => {
            let pid = cx.kernel.threads.get(&cx.tid)?.pid;
            Some(Synth::Link(pid.0.to_string().into_bytes()))
        }
        Entry::Top(b"thread-self") => {
            let pid = cx.kernel.threads.get(&cx.tid)?.pid;
            Some(Synth::Link(
                format!("{}/task/{}", pid.0, cx.tid.0).into_bytes(),
            ))
        }
        Entry::Top(b"mounts") => Some(Synth::Link(b"self/mounts".to_vec())),
        Entry::Top(b"net") => Some(Synth::Link(b"self/net".to_vec())),
        Entry::Top(name) => TOP_FILES.contains(&name).then_some(Synth::Text),
        Entry::Sys(rest) => sys_entry(&rest),
        Entry::SysvIpc(None) => Some(Synth::Dir),
        Entry::SysvIpc(Some(name)) => SYSVIPC_FILES.contains(&name).then_some(Synth::Text),
        Entry::Process(_, Some(_), rest) if rest == [b"children"] => Some(Synth::Text),
        Entry::Process(pid, tid, rest) => process_entry(cx, pid, tid, &rest),
        Entry::Bare(bare, rest) => match rest.as_slice() {
            [] | [b"task"] => Some(Synth::Dir),
            [b"cwd" | b"exe" | b"root"] => Some(Synth::Sealed(bare.link_error())),
            [b"fd" | b"fdinfo"] => Some(Synth::Closed),
            _ => bare.text(cx, &rest).map(|_| Synth::Text),
        },
    }
}

/// The tables of a process, or of one of its threads.
fn share_of(cx: &Cx<'_>, pid: Pid, tid: Option<Tid>) -> Option<Share> {
    match tid {
        Some(tid) => Some(cx.kernel.threads.get(&tid)?.share),
        None => cx.kernel.share_of(pid),
    }
}

fn process_entry(cx: &Cx<'_>, pid: Pid, tid: Option<Tid>, rest: &[&[u8]]) -> Option<Synth> {
    let process = cx.kernel.processes.get(&pid)?;
    let share = share_of(cx, pid, tid)?;
    match rest {
        [] => Some(Synth::Dir),
        [b"cwd" | b"exe" | b"root"] if !may_look_into(cx, pid) => {
            Some(Synth::Sealed(Errno::EACCES))
        }
        [b"fd" | b"fdinfo", ..] if !may_look_into(cx, pid) => Some(Synth::Closed),
        [name] if PRIVATE_FILES.contains(name) && !may_look_into(cx, pid) => Some(Synth::Private),
        [b"cwd"] => Some(Synth::Link(super::path_text(
            cx,
            &cx.kernel.fs.get(share.fs)?.cwd,
        ))),
        [b"root"] => Some(Synth::Link(b"/".to_vec())),
        [b"exe"] => Some(Synth::Link(process.exe.to_vec())),
        [b"stack"] => Some(Synth::Withheld),
        [name] if PROCESS_FILES.contains(name) => Some(Synth::Text),
        [name] if PROCESS_DIRS.contains(name) => Some(Synth::Dir),
        [b"net", name] => NET_FILES.contains(name).then_some(Synth::Text),
        [b"fd", fd] => {
            let table = cx.kernel.fd_tables.get(share.files)?;
            let found = table.fds.get(&fd_number(fd)?);
            found.map(|fd| Synth::FdLink(fd.file))
        }
        [b"fdinfo", fd] => {
            let table = cx.kernel.fd_tables.get(share.files)?;
            table.fds.get(&fd_number(fd)?).map(|_| Synth::Text)
        }
        _ => None,
    }
}

pub(super) fn fd_number(name: &[u8]) -> Option<i32> {
    if name == b"0" { Some(0) } else { number(name) }
}

/// Names and types in a directory below /proc.
#[must_use]
pub fn list(cx: &Cx<'_>, path: &[u8]) -> Vec<(Vec<u8>, u8)> {
    let (dir, link, file) = (d_type(S_IFDIR), d_type(S_IFLNK), d_type(S_IFREG));
    let mut out: Vec<(Vec<u8>, u8)> = Vec::new();
    let mut add = |names: &mut dyn Iterator<Item = Vec<u8>>, kind: u8| {
        out.extend(names.map(|name| (name, kind)))
    };
    match entry(cx, path) {
        Some(Entry::Root) => {
            add(
                &mut std::iter::once(Pid::INIT)
                    .chain(cx.kernel.kin().map(|one| one.pid))
                    .map(|pid| pid.0.to_string().into_bytes()),
                dir,
            );
            add(
                &mut TOP_FILES
                    .iter()
                    .filter(|name| **name != b"sys")
                    .map(|name| name.to_vec()),
                file,
            );
            add(&mut [b"sys".to_vec(), b"sysvipc".to_vec()].into_iter(), dir);
            add(
                &mut [
                    b"self".to_vec(),
                    b"thread-self".to_vec(),
                    b"mounts".to_vec(),
                    b"net".to_vec(),
                ]
                .into_iter(),
                link,
            );
        }
        Some(Entry::Sys(rest)) => {
            let prefix = if rest.is_empty() {
                Vec::new()
            } else {
                [rest.as_slice(), b"/"].concat()
            };
            let mut names = std::collections::BTreeMap::new();
            for (name, _) in SYS_FILES {
                let Some(below) = name.strip_prefix(prefix.as_slice()) else {
                    continue;
                };
                let mut parts = below.split(|byte| *byte == b'/');
                if let Some(first) = parts.next() {
                    names.insert(
                        first.to_vec(),
                        if parts.next().is_some() { dir } else { file },
                    );
                }
            }
            out.extend(names);
        }
        Some(Entry::SysvIpc(None)) => {
            add(&mut SYSVIPC_FILES.iter().map(|name| name.to_vec()), file);
        }
        Some(Entry::Process(pid, tid, rest)) => match rest.as_slice() {
            [] => {
                add(&mut PROCESS_FILES.iter().map(|name| name.to_vec()), file);
                add(&mut tid.map(|_| b"children".to_vec()).into_iter(), file);
                add(&mut PROCESS_LINKS.iter().map(|name| name.to_vec()), link);
                let dirs = PROCESS_DIRS
                    .iter()
                    .filter(|name| tid.is_none() || **name != b"task");
                add(&mut dirs.map(|name| name.to_vec()), dir);
            }
            [b"fd" | b"fdinfo"] => {
                let share = share_of(cx, pid, tid);
                let table = share.and_then(|share| cx.kernel.fd_tables.get(share.files));
                let fds = table.map(|table| table.fds.clone()).unwrap_or_default();
                let kind = if rest == [b"fd".as_slice()] {
                    link
                } else {
                    file
                };
                add(&mut fds.keys().map(|fd| fd.to_string().into_bytes()), kind);
            }
            [b"net"] => add(&mut NET_FILES.iter().map(|name| name.to_vec()), file),
            [b"task"] => {
                let threads = cx
                    .kernel
                    .threads
                    .values()
                    .filter(|thread| thread.pid == pid);
                add(
                    &mut threads.map(|thread| thread.tid.0.to_string().into_bytes()),
                    dir,
                );
            }
            _ => {}
        },
        Some(Entry::Bare(bare, rest)) => match rest.as_slice() {
            [] => {
                add(&mut BARE_FILES.iter().map(|name| name.to_vec()), file);
                add(&mut PROCESS_LINKS.iter().map(|name| name.to_vec()), link);
                let dirs = [b"fd".to_vec(), b"fdinfo".to_vec(), b"task".to_vec()];
                add(&mut dirs.into_iter(), dir);
            }
            [b"task"] => {
                let tid = bare.kin.pid.0.to_string().into_bytes();
                add(&mut [tid].into_iter(), dir);
            }
            _ => {}
        },
        Some(Entry::Top(_) | Entry::SysvIpc(Some(_))) | None => {}
    }
    out
}

/// The contents of a file below /proc as of now: their start, if they are long.
#[must_use]
pub fn text(cx: &Cx<'_>, path: &[u8]) -> Option<Text> {
    if let Some((view, listing)) = mapped(cx, path) {
        return Some(listing.text(view, (0, 0), 0));
    }
    whole_text(cx, path).map(Text::whole)
}

/// The part after `kept` that has `offset`, or the last one.
#[must_use]
pub fn more_text(cx: &Cx<'_>, path: &[u8], kept: &Text, offset: u64) -> Option<Text> {
    let (view, listing) = mapped(cx, path)?;
    Some(listing.text(view, (kept.next?, kept.end()), offset))
}

/// A list of mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Listing {
    Maps,
    Smaps,
}

impl Listing {
    fn text(self, view: View<'_>, from: (u64, u64), offset: u64) -> Text {
        match self {
            Self::Maps => mm::maps_text(view.mm, from, offset),
            Self::Smaps => view.smaps_text(from, offset),
        }
    }
}

/// The address space of a process.
pub(super) fn view<'a>(cx: &'a Cx<'_>, pid: Pid) -> Option<View<'a>> {
    let process = cx.kernel.processes.get(&pid)?;
    Some(View {
        mm: cx.kernel.mms.get(&process.mm)?,
        tables: cx.machine.spaces.get(process.mm)?,
        memory: &cx.machine.memory,
    })
}

/// The address space that a path shows the mappings of, and the way in which it does.
fn mapped<'a>(cx: &'a Cx<'_>, path: &[u8]) -> Option<(View<'a>, Listing)> {
    let Entry::Process(pid, _, rest) = entry(cx, path)? else {
        return None;
    };
    let listing = match rest.as_slice() {
        [b"maps"] => Listing::Maps,
        [b"smaps"] => Listing::Smaps,
        _ => return None,
    };
    Some((view(cx, pid)?, listing))
}

fn whole_text(cx: &Cx<'_>, path: &[u8]) -> Option<Vec<u8>> {
    match entry(cx, path)? {
        Entry::Root => None,
        Entry::Top(name) => top_text(cx, name).map(String::into_bytes),
        Entry::Sys(rest) => sys_text(&rest).map(String::into_bytes),
        Entry::SysvIpc(name) => sysvipc_text(cx, name?).map(String::into_bytes),
        Entry::Process(pid, tid, rest) => {
            let process = cx.kernel.processes.get(&pid)?;
            let thread = cx.kernel.threads.get(&tid.unwrap_or(Tid(pid.0)));
            let thread =
                thread.or_else(|| cx.kernel.threads.values().find(|thread| thread.pid == pid))?;
            if tid.is_some() && rest == [b"children"] {
                return Some(children_of(cx, pid, thread.tid).into_bytes());
            }
            if let [b"net", name] = rest.as_slice() {
                return net_text(cx, name).map(String::into_bytes);
            }
            process_text(cx, process, (thread, tid), &rest)
        }
        Entry::Bare(bare, rest) => bare.text(cx, &rest),
    }
}
