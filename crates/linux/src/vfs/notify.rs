//! Tells inotify instances what happens to files, and the record of what is learned. Nothing is looked up while nothing
//! is watched and nothing learned.

use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::inotify::{
    IN_ACCESS, IN_ATTRIB, IN_CLOSE_NOWRITE, IN_CLOSE_WRITE, IN_CREATE, IN_DELETE, IN_DELETE_SELF,
    IN_ISDIR, IN_MODIFY, IN_MOVE_SELF, IN_MOVED_FROM, IN_MOVED_TO, IN_OPEN,
};
use kvmlet_hostfs::PATH_MAX;
use kvmlet_policy::{Place, file_name, parent};

use super::anon::ObjectId;
use super::file;
use super::inotify::{Happened, Subject};
use super::learn::{self, Use};
use super::overlay;
use super::path::{Found, Node};
use super::ready::{POLLIN, POLLRDNORM};
use super::tmpfs::InodeId;
use crate::cx::Cx;
use crate::fd::{FileId, FileKind, OpenFile, OpenFlags};
use crate::outcome::Source;

/// An object that something happens to.
struct Object<'a> {
    subject: Subject,
    /// The path of a name of it.
    path: &'a [u8],
    is_dir: bool,
}

/// Says if an object still has a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    Still,
    NoMore,
}

fn is_idle(cx: &Cx<'_>) -> bool {
    cx.kernel.objects.inotifies.is_idle()
}

fn is_dir(cx: &Cx<'_>, inode: InodeId) -> bool {
    let inode = cx.kernel.tmpfs.get(inode);
    inode.is_ok_and(|inode| inode.dir().is_ok())
}

/// An open description has been made.
pub fn opened(cx: &mut Cx<'_>, id: FileId) {
    if let Some(path) = learning(cx, id, OpenFlags::writable) {
        learn::used(cx, &path, Use::CHANGED);
    }
    of_file(cx, id, IN_OPEN);
}

/// An open description is about to go.
pub fn closed(cx: &mut Cx<'_>, id: FileId) {
    if is_idle(cx) {
        return;
    }
    let flags = cx.kernel.files.get(&id).map(|file| file.flags);
    let writes = flags.is_some_and(OpenFlags::writable);
    of_file(
        cx,
        id,
        if writes {
            IN_CLOSE_WRITE
        } else {
            IN_CLOSE_NOWRITE
        },
    );
}

/// Something has been done by an open description.
pub fn of_file(cx: &mut Cx<'_>, id: FileId, mask: u32) {
    if mask & (IN_MODIFY | IN_ATTRIB) != 0
        && let Some(path) = learning(cx, id, |_| true)
    {
        learn::used(cx, &path, Use::CHANGED);
    }
    if is_idle(cx) {
        return;
    }
    let Some(file) = cx.kernel.files.get(&id).cloned() else {
        return;
    };
    if file.flags.contains(OpenFlags::PATH) {
        return;
    }
    if let Some(object) = object_of(cx, &file) {
        let named = match object.subject {
            Subject::Inode(inode) => match cx.kernel.tmpfs.get(inode) {
                Ok(inode) if inode.nlink == 0 => Named::NoMore,
                _ => Named::Still,
            },
            Subject::Path(_) => Named::Still,
        };
        tell_object(cx, &object, mask, named);
    }
}

/// The path of an open description with such flags, while the program's needs are learned.
fn learning(cx: &Cx<'_>, id: FileId, fits: impl Fn(OpenFlags) -> bool) -> Option<Arc<[u8]>> {
    if !cx.host.policy.is_learning() {
        return None;
    }
    let file = cx.kernel.files.get(&id)?;
    (matches!(file.kind, FileKind::Tmp(_)) && fits(file.flags)).then(|| Arc::clone(&file.path))
}

/// A directory's names have been read.
pub fn listed(cx: &mut Cx<'_>, id: FileId) {
    if let Some(path) = learning(cx, id, |_| true) {
        learn::used(cx, &path, Use::LISTED);
    }
    of_file(cx, id, IN_ACCESS);
}

fn object_of<'a>(cx: &Cx<'_>, file: &'a OpenFile) -> Option<Object<'a>> {
    let subject = file::watchable(cx, file)?;
    let is_dir = match subject {
        Subject::Inode(inode) => is_dir(cx, inode),
        Subject::Path(_) => file::directory(cx, file).is_some(),
    };
    Some(Object {
        subject,
        path: &file.path,
        is_dir,
    })
}

/// The subject of a watch on something found.
#[must_use]
pub fn subject_of(cx: &Cx<'_>, found: &Found) -> Option<Subject> {
    match &found.node {
        Node::Tmp(inode) => Some(Subject::Inode(*inode)),
        Node::Host(..) | Node::Synth(_) => Some(Subject::Path(Arc::from(found.path.as_slice()))),
        Node::Open(id) => file::watchable(cx, cx.kernel.files.get(id)?),
    }
}

/// An inode has changed, or an open description of one, that `found` led to. It may have become an inode by that.
pub fn changed(cx: &mut Cx<'_>, found: &Found, inode: InodeId, mask: u32) {
    match found.node {
        Node::Open(id) => of_file(cx, id, mask),
        Node::Host(..) | Node::Tmp(_) | Node::Synth(_) => at(cx, &found.path, inode, mask),
    }
}

/// The inode at canonical `path` has changed.
pub fn at(cx: &mut Cx<'_>, path: &[u8], inode: InodeId, mask: u32) {
    learn::used(cx, path, Use::CHANGED);
    if is_idle(cx) {
        return;
    }
    let object = Object {
        subject: Subject::Inode(inode),
        path,
        is_dir: is_dir(cx, inode),
    };
    tell_object(cx, &object, mask, Named::Still);
}

/// Its directory is told first, then who watches it itself (fsnotify in fs/notify/fsnotify.c).
fn tell_object(cx: &mut Cx<'_>, object: &Object<'_>, mask: u32, named: Named) {
    let mask = mask | if object.is_dir { IN_ISDIR } else { 0 };
    let happened = Happened {
        mask,
        cookie: 0,
        name: b"",
        is_unlinked: named == Named::NoMore,
    };
    if let Some(dir) = directory_of(cx, object) {
        let name = file_name(object.path);
        tell(cx, &dir, Happened { name, ..happened });
    }
    tell(cx, &object.subject, happened);
}

/// The directory that an object's path names it in, if it can be watched.
/// Linux differs: one whose path is longer than PATH_MAX is not told of what is in it.
fn directory_of(cx: &Cx<'_>, object: &Object<'_>) -> Option<Subject> {
    let tmpfs = &cx.kernel.tmpfs;
    if let Subject::Inode(inode) = object.subject
        && tmpfs.is_root(inode)
    {
        return None;
    }
    // A memfd shows a name that no directory has.
    let is_named = object.path.len() > 1 && !object.path.starts_with(b"/memfd:");
    if !is_named || object.path.len() >= PATH_MAX {
        return None;
    }
    let path = parent(object.path);
    match cx.host.policy.classify(path) {
        Place::Tmp | Place::Overlay => overlay::known(tmpfs, path).map(Subject::Inode),
        Place::Readable
        | Place::Writable
        | Place::Leading
        | Place::Proc
        | Place::Dev
        | Place::Sys
        | Place::Made
        | Place::Outside => Some(Subject::Path(Arc::from(path))),
    }
}

/// A directory's entry has come (IN_CREATE).
pub fn created(cx: &mut Cx<'_>, dir: InodeId, name: &[u8], inode: InodeId) {
    in_directory(cx, (dir, name), IN_CREATE, inode);
}

/// A file has got another name.
pub fn linked(cx: &mut Cx<'_>, dir: InodeId, name: &[u8], inode: InodeId) {
    itself(cx, inode, IN_ATTRIB);
    created(cx, dir, name, inode);
}

fn in_directory(cx: &mut Cx<'_>, (dir, name): (InodeId, &[u8]), mask: u32, inode: InodeId) {
    learn::named(cx, dir, name);
    if is_idle(cx) {
        return;
    }
    let kind = if is_dir(cx, inode) { IN_ISDIR } else { 0 };
    let happened = Happened {
        mask: mask | kind,
        cookie: 0,
        name,
        is_unlinked: false,
    };
    tell(cx, &Subject::Inode(dir), happened);
}

/// Something has happened to an inode, whatever its names.
fn itself(cx: &mut Cx<'_>, inode: InodeId, mask: u32) {
    if is_idle(cx) {
        return;
    }
    let happened = Happened {
        mask,
        cookie: 0,
        name: b"",
        is_unlinked: false,
    };
    tell(cx, &Subject::Inode(inode), happened);
}

/// Says if what had a name was a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Was {
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

impl Was {
    /// That of an inode.
    #[must_use]
    pub fn of(cx: &Cx<'_>, inode: InodeId) -> Self {
        if is_dir(cx, inode) {
            Self::Directory
        } else {
            Self::File
        }
    }

    fn bit(self) -> u32 {
        match self {
            Self::Directory => IN_ISDIR,
            Self::File => 0,
        }
    }
}

/// A name has been removed. The inode may be gone with it.
pub fn removed(cx: &mut Cx<'_>, (dir, name): (InodeId, &[u8]), inode: InodeId, was: Was) {
    learn::named(cx, dir, name);
    if is_idle(cx) {
        return;
    }
    if was == Was::File {
        itself(cx, inode, IN_ATTRIB);
    }
    settle(cx);
    let happened = Happened {
        mask: IN_DELETE | was.bit(),
        cookie: 0,
        name,
        is_unlinked: false,
    };
    tell(cx, &Subject::Inode(dir), happened);
}

/// A name has become another, at which `replaced` was until then (fsnotify_move in linux/fsnotify.h).
pub fn renamed(
    cx: &mut Cx<'_>,
    (from, old): (InodeId, &[u8]),
    (to, new): (InodeId, &[u8]),
    inode: InodeId,
    replaced: Option<InodeId>,
) {
    learn::named(cx, from, old);
    learn::named(cx, to, new);
    if is_idle(cx) {
        return;
    }
    let kind = Was::of(cx, inode).bit();
    let cookie = cx.kernel.objects.inotifies.next_cookie();
    for (dir, name, mask) in [(from, old, IN_MOVED_FROM), (to, new, IN_MOVED_TO)] {
        let happened = Happened {
            mask: mask | kind,
            cookie,
            name,
            is_unlinked: false,
        };
        tell(cx, &Subject::Inode(dir), happened);
    }
    if let Some(replaced) = replaced {
        itself(cx, replaced, IN_ATTRIB);
    }
    itself(cx, inode, IN_MOVE_SELF);
}

/// Tells of watched inodes that are gone, with whose end their watches end.
pub fn settle(cx: &mut Cx<'_>) {
    while let Some(inode) = cx.kernel.tmpfs.take_gone() {
        let subject = Subject::Inode(inode);
        itself(cx, inode, IN_DELETE_SELF);
        for id in cx.kernel.objects.inotifies.watchers_of(&subject) {
            if let Some(wd) = cx.kernel.objects.inotifies.watch_on(id, &subject) {
                // Never fails: there is such a watch.
                let _ = unwatch(cx, id, wd);
            }
        }
    }
}

/// Adds or changes a watch (inotify_add_watch(2)).
///
/// # Errors
/// `EEXIST`, `ENOSPC`, `ENOMEM`.
pub fn watch(cx: &mut Cx<'_>, id: ObjectId, subject: Subject, asked: u32) -> Result<i32, Errno> {
    let memory = &mut cx.machine.memory;
    let inotifies = &mut cx.kernel.objects.inotifies;
    let wd = inotifies.watch(memory, id, subject.clone(), asked)?;
    follow(cx, &subject);
    Ok(wd)
}

/// Ends a watch (inotify_rm_watch(2)).
///
/// # Errors
/// `EINVAL` if there is no such watch.
pub fn unwatch(cx: &mut Cx<'_>, id: ObjectId, wd: i32) -> Result<(), Errno> {
    let memory = &mut cx.machine.memory;
    let subject = cx.kernel.objects.inotifies.unwatch(memory, id, wd)?;
    follow(cx, &subject);
    cx.kernel.wake(Source::Object(id), POLLIN | POLLRDNORM);
    Ok(())
}

/// An instance goes.
pub fn released(cx: &mut Cx<'_>, id: ObjectId) {
    let memory = &mut cx.machine.memory;
    for subject in cx.kernel.objects.inotifies.released(memory, id) {
        follow(cx, &subject);
    }
}

/// Has the memory file system know if somebody is to be told of an inode's end.
fn follow(cx: &mut Cx<'_>, subject: &Subject) {
    if let Subject::Inode(inode) = subject {
        if cx.kernel.objects.inotifies.is_watched(subject) {
            cx.kernel.tmpfs.watch_end(*inode);
        } else {
            cx.kernel.tmpfs.unwatch_end(*inode);
        }
    }
}

fn tell(cx: &mut Cx<'_>, subject: &Subject, happened: Happened<'_>) {
    for id in cx.kernel.objects.inotifies.watchers_of(subject) {
        let memory = &mut cx.machine.memory;
        let inotifies = &mut cx.kernel.objects.inotifies;
        if inotifies.raise(memory, (id, subject), happened) {
            follow(cx, subject);
            cx.kernel.wake(Source::Object(id), POLLIN | POLLRDNORM);
        }
    }
}
