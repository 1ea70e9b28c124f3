//! Directories and files that are ours: `/`, parents of visible trees, /dev, /sys.

use std::collections::BTreeMap;

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::{Attr, FileTime, S_IFCHR, S_IFDIR, S_IFLNK, S_IFREG, d_type, makedev};
use kvmlet_policy::{
    DEV, HOSTS, LINKS, PROC, Place, RESOLV_CONF, SYS, beneath, file_name, join, parent,
};

use super::{procfs, sysfs};
use crate::clock;
use crate::cx::Cx;
use crate::fd::{Device, FileId, Text};
use crate::tty::{PtyEnd, SLAVE_GID, SLAVE_MAJOR, SLAVE_MODE, Side};

/// A synthetic object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Synth {
    /// A directory.
    Dir,
    /// A read-only file: [`text`] gives its contents.
    Text,
    /// A symbolic link.
    Link(Vec<u8>),
    /// A symbolic link that is followed by nobody, and why.
    Sealed(Errno),
    /// A directory that nobody opens.
    Closed,
    /// A file that only a privileged caller may read.
    Withheld,
    /// A file that tells of a process, and is not for the caller.
    Private,
    /// A link to an open description (/proc/self/fd).
    FdLink(FileId),
    /// A character device.
    Device(Device),
    /// /dev/tty: the controlling terminal.
    Tty,
    /// /dev/ptmx: a new pseudo-terminal.
    Ptmx,
    /// /dev/pts/N
    Pty(u32),
}

/// Names in /dev.
pub const DEVICES: [(&[u8], Device); 5] = [
    (b"null", Device::Null),
    (b"zero", Device::Zero),
    (b"full", Device::Full),
    (b"random", Device::Random),
    (b"urandom", Device::Urandom),
];

const DEV_LINKS: [(&[u8], &[u8]); 4] = [
    (b"fd", b"/proc/self/fd"),
    (b"stdin", b"/proc/self/fd/0"),
    (b"stdout", b"/proc/self/fd/1"),
    (b"stderr", b"/proc/self/fd/2"),
];

/// The controlling terminal of who opens it.
const TTY: &[u8] = b"/dev/tty";
/// Where slaves are.
const PTS: &[u8] = b"/dev/pts";

/// The path of a slave.
#[must_use]
pub fn slave_path(index: u32) -> Vec<u8> {
    join(PTS, index.to_string().as_bytes())
}
/// The machines that there are: this one.
const HOSTS_TEXT: &[u8] =
    b"127.0.0.1\tlocalhost\n127.0.1.1\tkvmlet\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// No more than one server, which is ours, and no domains to be tried behind a name.
const RESOLV_CONF_TEXT: &[u8] = b"nameserver 127.0.0.53\noptions edns0\n";

/// Files of the host's settings that are ours.
fn made(path: &[u8]) -> Option<&'static [u8]> {
    match path {
        HOSTS => Some(HOSTS_TEXT),
        RESOLV_CONF => Some(RESOLV_CONF_TEXT),
        _ => None,
    }
}

/// Device numbers (Documentation/admin-guide/devices.txt).
#[must_use]
pub fn rdev(device: Device) -> u64 {
    makedev(
        1,
        match device {
            Device::Null => 3,
            Device::Zero => 5,
            Device::Full => 7,
            Device::Random => 8,
            Device::Urandom => 9,
        },
    )
}

/// The path of a device.
#[must_use]
pub fn device_path(device: Device) -> Vec<u8> {
    let known = DEVICES.iter().find(|(_, known)| *known == device);
    join(DEV, known.map_or(b"null", |(name, _)| *name))
}

/// A number for each file system: part of its device number, and its mount id.
#[must_use]
pub fn mount_number(place: Place) -> u64 {
    match place {
        Place::Readable
        | Place::Overlay
        | Place::Writable
        | Place::Leading
        | Place::Outside
        | Place::Made => 1,
        Place::Tmp => 2,
        Place::Proc => 3,
        Place::Dev => 4,
        Place::Sys => 5,
    }
}

/// The synthetic object at canonical `path`, if there is one.
#[must_use]
pub fn lookup(cx: &Cx<'_>, path: &[u8]) -> Option<Synth> {
    if beneath(PROC, path) {
        return procfs::lookup(cx, path);
    }
    if beneath(DEV, path) && path != DEV {
        let name = path.strip_prefix(b"/dev/")?;
        if let Some((_, device)) = DEVICES.iter().find(|(known, _)| *known == name) {
            return Some(Synth::Device(*device));
        }
        if let Some((_, target)) = DEV_LINKS.iter().find(|(known, _)| *known == name) {
            return Some(Synth::Link(target.to_vec()));
        }
        return match name {
            b"tty" => Some(Synth::Tty),
            b"ptmx" => Some(Synth::Ptmx),
            b"pts" => Some(Synth::Dir),
            // The node that devpts has for itself is in the way of nobody (mode 0000), and not shown.
            _ => {
                let index = std::str::from_utf8(name.strip_prefix(b"pts/")?).ok()?;
                let number: u32 = index.parse().ok()?;
                let is_one = cx.kernel.ptys.is_shown(number) && number.to_string() == index;
                is_one.then_some(Synth::Pty(number))
            }
        };
    }
    if beneath(SYS, path) {
        return sysfs::lookup(path);
    }
    if made(path).is_some() {
        return Some(Synth::Text);
    }
    if let Some(target) = cx.host.policy.link(path) {
        return Some(Synth::Link(target.to_vec()));
    }
    (cx.host.policy.classify(path) == Place::Leading || path == DEV).then_some(Synth::Dir)
}

/// The contents of a synthetic file as of now: their start, if they are long.
#[must_use]
pub fn text(cx: &Cx<'_>, path: &[u8]) -> Option<Text> {
    if beneath(PROC, path) {
        return procfs::text(cx, path);
    }
    match made(path) {
        Some(text) => Some(Text::whole(text.to_vec())),
        None => sysfs::text(cx, path),
    }
}

/// The text from which a description that has `kept` answers a read at `offset`. A read at the start sees
/// the contents as of now; another one goes on where the last one was, as Linux's seq_file does.
#[must_use]
pub fn text_at(cx: &Cx<'_>, path: &[u8], kept: &Text, offset: u64) -> Option<Text> {
    let start = if offset == 0 || offset < kept.at {
        text(cx, path)?
    } else {
        kept.clone()
    };
    if start.covers(offset) {
        Some(start)
    } else {
        procfs::more_text(cx, path, &start, offset)
    }
}

/// Names and types (d_type) in a synthetic directory, without `.` and `..`.
#[must_use]
pub fn list(cx: &Cx<'_>, path: &[u8]) -> Vec<(Vec<u8>, u8)> {
    let (dir, link) = (d_type(S_IFDIR), d_type(S_IFLNK));
    if beneath(PROC, path) {
        return procfs::list(cx, path);
    }
    if beneath(SYS, path) {
        return sysfs::list(path);
    }
    let mut names: BTreeMap<Vec<u8>, u8> = BTreeMap::new();
    if path == PTS {
        let shown = cx.kernel.ptys.shown();
        return shown
            .map(|index| (index.to_string().into_bytes(), d_type(S_IFCHR)))
            .collect();
    }
    let children = cx.host.policy.children(path);
    let made = children.iter().filter(|name| {
        let path = join(path, name);
        cx.host.policy.makes(&path)
    });
    names.extend(made.map(|name| (name.clone(), dir)));
    for (name, attr) in cx.host.roots.located(path, children.into_iter()) {
        names.insert(name, d_type(attr.mode));
    }
    if path == b"/" {
        for own in [kvmlet_policy::TMP, PROC, DEV, SYS] {
            names.insert(file_name(own).to_vec(), dir);
        }
    }
    if path == parent(HOSTS) {
        for own in [HOSTS, RESOLV_CONF] {
            names.insert(file_name(own).to_vec(), d_type(S_IFREG));
        }
    }
    let links = LINKS.into_iter().filter(|(at, _)| parent(at) == path);
    for (at, _) in links.filter(|(at, _)| cx.host.policy.link(at).is_some()) {
        names.insert(file_name(at).to_vec(), link);
    }
    if path == DEV {
        names.extend(
            DEVICES
                .iter()
                .map(|(name, _)| (name.to_vec(), d_type(S_IFCHR))),
        );
        names.extend(DEV_LINKS.iter().map(|(name, _)| (name.to_vec(), link)));
        for name in [b"tty".as_slice(), b"ptmx"] {
            names.insert(name.to_vec(), d_type(S_IFCHR));
        }
        names.insert(b"pts".to_vec(), dir);
        names.insert(b"shm".to_vec(), dir);
    }
    names.into_iter().collect()
}

/// The attributes of a synthetic object.
#[must_use]
pub fn attr(cx: &Cx<'_>, path: &[u8], node: &Synth) -> Attr {
    let place = cx.host.policy.classify(path);
    if *node == Synth::Dir
        && place == Place::Leading
        && let Ok((_, attr)) = cx.host.roots.locate(path)
        && attr.is_dir()
    {
        return attr;
    }
    let now = FileTime::from_ns(clock::realtime_ns(cx.host));
    let (mode, rdev, size) = match node {
        Synth::Dir => (S_IFDIR | 0o555, 0, 0),
        Synth::Text => match made(path) {
            Some(text) => (S_IFREG | 0o644, 0, text.len() as u64),
            None => (S_IFREG | 0o444, 0, 0),
        },
        // Linux gives no size for the links of /proc.
        Synth::Link(_) if place == Place::Proc => (S_IFLNK | 0o777, 0, 0),
        Synth::Link(target) => (S_IFLNK | 0o777, 0, target.len() as u64),
        Synth::Sealed(_) => (S_IFLNK | 0o777, 0, 0),
        Synth::Closed => (S_IFDIR | 0o500, 0, 0),
        Synth::Withheld | Synth::Private => (S_IFREG | 0o400, 0, 0),
        Synth::FdLink(_) => (S_IFLNK | 0o700, 0, 64),
        Synth::Device(device) => (S_IFCHR | 0o666, rdev(*device), 0),
        Synth::Tty => (S_IFCHR | 0o666, makedev(5, 0), 0),
        Synth::Ptmx => (S_IFCHR | 0o666, makedev(5, 2), 0),
        Synth::Pty(index) => (S_IFCHR | SLAVE_MODE, makedev(SLAVE_MAJOR, *index), 0),
    };
    let is_slave = matches!(node, Synth::Pty(_));
    let is_sealed = matches!(node, Synth::Sealed(_) | Synth::Closed);
    let (uid, gid) = match is_sealed || is_slave || !beneath(PROC, path) {
        true => (0, 0),
        false => procfs::owner(cx, path),
    };
    Attr {
        dev: makedev(0, 0x70 | u32::try_from(mount_number(place)).unwrap_or(0)),
        ino: inode_number(path),
        mode,
        nlink: if mode & S_IFDIR == S_IFDIR { 2 } else { 1 },
        // Linux differs: a slave belongs to who has opened its master.
        uid: if is_slave {
            cx.kernel.caller.user.real
        } else {
            uid
        },
        gid: if is_slave { SLAVE_GID } else { gid },
        rdev,
        size,
        blksize: if place == Place::Proc { 1024 } else { 4096 },
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: None,
    }
}

/// The attributes of a description of an end of a pseudo-terminal, whose name may have gone.
#[must_use]
pub fn pty_attr(cx: &Cx<'_>, path: &[u8], end: PtyEnd) -> Attr {
    let node = match end.side {
        Side::Master => Synth::Ptmx,
        Side::Slave if path == TTY => Synth::Tty,
        Side::Slave => Synth::Pty(end.index),
    };
    attr(cx, path, &node)
}

/// A stable number for a path (FNV-1a), never 0.
#[must_use]
pub fn inode_number(path: &[u8]) -> u64 {
    let hash = path.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    (hash >> 16) | 1
}

/// The inode number of a directory's entry.
#[must_use]
pub fn entry_number(dir: &[u8], name: &[u8]) -> u64 {
    inode_number(&join(dir, name))
}
