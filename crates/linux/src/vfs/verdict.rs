//! The answer to a person who asks what a program would meet at a path. It comes from the walk and the checks that
//! the program's own calls go through, as far as these change nothing on the host.

use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::S_IFIFO;
use kvmlet_policy::{Place, join};

use super::open::{self, OpenRequest};
use super::path::{self, At, Found, Intent, Last, Missing, Node, Request, Resolve, Walked};
use super::{Dir, attr_of, hosttree};
use crate::cx::Cx;
use crate::fd::OpenFlags;
use crate::report::Denial;

/// The call that is asked for, as denials name it.
const CALL: &str = "open";

/// Stands for any name that a program may make in a directory.
const ANY_NAME: &[u8] = b"NAME";

/// The kind of a thing that is asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Thing {
    /// There is none, as far as a program sees.
    Absent,
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// A refusal of a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The call's error.
    pub errno: Errno,
    /// The denial that a run would report, if it is the policy that refuses.
    pub denial: Option<Denial>,
}

/// The things that a program would meet at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The canonical path that it leads to; the one asked for if it leads nowhere.
    pub path: Vec<u8>,
    /// The place of that path; `None` if it leads nowhere.
    pub place: Option<Place>,
    /// The root of the tree that it lies in; `None` in those of our own, and if it leads nowhere.
    pub tree: Option<Vec<u8>>,
    /// The thing there.
    pub thing: Thing,
    /// Opening it for reading, which lists a directory.
    pub read: Result<(), Refusal>,
    /// Opening it for writing, or making it if it is not there. Of a directory: making a file in it.
    pub write: Result<(), Refusal>,
}

/// Asks about absolute `path`. The kernel value is of no use afterwards: references are left in it.
#[must_use]
pub fn verdict(cx: &mut Cx<'_>, path: &[u8]) -> Verdict {
    let read = open::open(cx, reading(path)).map(drop);
    let read = told(cx, read);
    let write = check_write(cx, path);
    let write = told(cx, write);
    let (at, thing) = match path::walk(cx, request(path, Intent::Read)) {
        Ok(Walked::Found(found)) => {
            let is_dir = attr_of(cx, &found).is_ok_and(|attr| attr.is_dir());
            let thing = if is_dir {
                Thing::Directory
            } else {
                Thing::File
            };
            (Some(found.path), thing)
        }
        Ok(Walked::Missing(missing)) => {
            let at = join(&missing.dir.path, &missing.name);
            (Some(at), Thing::Absent)
        }
        Err(_) => (None, Thing::Absent),
    };
    let policy = &cx.host.policy;
    Verdict {
        place: at.as_ref().map(|at| policy.classify(at)),
        tree: at
            .as_ref()
            .and_then(|at| policy.tree_of(at))
            .map(<[u8]>::to_vec),
        path: at.unwrap_or_else(|| path.to_vec()),
        thing,
        read,
        write,
    }
}

/// Adds to an error the denial that came with it.
fn told(cx: &mut Cx<'_>, result: Result<(), Errno>) -> Result<(), Refusal> {
    let denial = std::mem::take(&mut cx.host.report.denials).pop();
    result.map_err(|errno| Refusal { errno, denial })
}

fn root() -> Dir {
    Dir::Path(Arc::from(b"/".as_slice()))
}

fn reading(path: &[u8]) -> OpenRequest<'_> {
    OpenRequest {
        call: CALL,
        start: root().into(),
        path,
        // Nobody is there to wait for the other end of a named pipe, or to have a terminal.
        flags: OpenFlags::NONBLOCK | OpenFlags::NOCTTY,
        mode: 0,
        resolve: Resolve::empty(),
    }
}

/// As open(2) with O_CREAT walks.
fn request(path: &[u8], intent: Intent) -> Request<'_> {
    Request {
        call: CALL,
        start: root().into(),
        path,
        last: Last::Create,
        intent,
        resolve: Resolve::empty(),
    }
}

fn check_write(cx: &mut Cx<'_>, path: &[u8]) -> Result<(), Errno> {
    let found = match path::walk(cx, request(path, Intent::Write))? {
        Walked::Missing(missing) => return check_create(cx, &missing),
        Walked::Found(found) => found,
    };
    let attr = attr_of(cx, &found)?;
    if attr.is_dir() {
        return check_create(cx, &new_name_in(&found));
    }
    if matches!(found.node, Node::Host(..)) && hosttree::is_writable(cx.host, &found.path) {
        return hosttree::check_open(cx, CALL, (&found.path, &attr));
    }
    // Elsewhere an open changes nothing but what is in memory.
    let flags = OpenFlags::WRONLY | OpenFlags::NONBLOCK | OpenFlags::NOCTTY;
    match open::open_found(cx, CALL, found, flags) {
        // A named pipe that nobody reads yet.
        Err(Errno::ENXIO) if attr.kind() == S_IFIFO => Ok(()),
        opened => opened.map(drop),
    }
}

fn new_name_in(dir: &Found) -> Missing {
    let tmp = match dir.node {
        Node::Tmp(inode) => Some(inode),
        Node::Host(..) | Node::Synth(_) | Node::Open(_) => None,
    };
    Missing {
        dir: At {
            path: Arc::from(dir.path.as_slice()),
            tmp,
        },
        open: None,
        name: ANY_NAME.to_vec(),
        slash: false,
    }
}

fn check_create(cx: &mut Cx<'_>, missing: &Missing) -> Result<(), Errno> {
    if hosttree::holds(cx.host, &missing.dir) {
        return hosttree::check_create(cx, CALL, missing);
    }
    open::writable_directory(cx, CALL, &missing.dir, &missing.name).map(drop)
}
