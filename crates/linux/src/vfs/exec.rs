//! Files as programs and as sources of mappings.

use std::os::fd::AsFd;
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::fcntl::AT_FDCWD;
use kvmlet_hostfs::HostKind;
use kvmlet_hostfs::attr::{Attr, MAY_EXEC, S_IFREG};

use super::file::Contents;
use super::open::Opened;
use super::path::{self, Intent, Last, Node, Request, Resolve};
use super::privilege;
use super::{access, attr_of};
use crate::cx::Cx;
use crate::fd::{FileId, OpenFlags};
use crate::mm::{MapFile, Source};
use crate::report::Remedy;

/// A file opened to be executed. It holds a reference to its object until [`close_exec`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExecFile {
    /// The source of its pages.
    pub source: Source,
    /// Its size in bytes.
    pub len_bytes: u64,
    /// Its canonical path.
    pub path: Arc<[u8]>,
}

/// Opens a program by path, relative to the working directory: a regular file that the caller may
/// execute (execve(2)).
///
/// # Errors
/// `EACCES` for what is not an executable regular file; as path resolution.
pub fn open_exec(cx: &mut Cx<'_>, path: &[u8]) -> Result<ExecFile, Errno> {
    open_exec_at(cx, AT_FDCWD, path, Last::Follow)
}

/// As [`open_exec`], relative to a directory that is open (execveat(2)). [`Last::NoFollow`] refuses a symbolic link at
/// the end.
///
/// # Errors
/// As [`open_exec`]; `EBADF`, `ENOTDIR`; `ELOOP` for a symbolic link.
pub fn open_exec_at(
    cx: &mut Cx<'_>,
    dirfd: i32,
    path: &[u8],
    last: Last,
) -> Result<ExecFile, Errno> {
    let start = path::start(cx, dirfd, path)?;
    let request = Request {
        call: "execve",
        start,
        path,
        last,
        intent: Intent::Read,
        resolve: Resolve::empty(),
    };
    let found = path::find(cx, request)?;
    if attr_of(cx, &found)?.is_symlink() {
        return Err(Errno::ELOOP);
    }
    open_found(cx, found)
}

/// As [`open_exec`], of what is open already (execveat(2) with AT_EMPTY_PATH).
///
/// # Errors
/// As [`open_exec`]; `EBADF`; `ELOOP` for a symbolic link.
pub fn open_exec_fd(cx: &mut Cx<'_>, fd: i32) -> Result<ExecFile, Errno> {
    let (id, file) = crate::fd::get(cx, fd)?;
    let found = path::Found {
        path: file.path.to_vec(),
        node: Node::Open(id),
    };
    let attr = super::file::attr(cx, id)?;
    if attr.is_symlink() {
        return Err(Errno::ELOOP);
    }
    if file.flags.contains(OpenFlags::PATH)
        && super::file::contents(cx, &file.kind) == Contents::None
        && is_program(cx, &found, &attr)?
    {
        // It is a name so far.
        let flags = OpenFlags::empty();
        let Opened::New(opened) = super::file::reopen(cx, "execve", id, flags)? else {
            return Err(Errno::EACCES);
        };
        let len_bytes = attr.size;
        return match super::file::contents(cx, &opened.kind) {
            // The reference is the new description's, of which nothing else is left.
            Contents::Host(host) => Ok(ExecFile {
                source: Source::Host(host),
                len_bytes,
                path: opened.path,
            }),
            _ => Err(Errno::EACCES),
        };
    }
    open_found(cx, found)
}

/// True if a path leads to a directory that the program may see.
pub fn is_directory(cx: &mut Cx<'_>, path: &[u8]) -> bool {
    let Ok(start) = cx.fs().map(|fs| fs.cwd.clone()) else {
        return false;
    };
    let request = Request {
        call: "execve",
        start: start.into(),
        path,
        last: Last::Follow,
        intent: Intent::Read,
        resolve: Resolve::empty(),
    };
    path::find(cx, request)
        .and_then(|found| attr_of(cx, &found))
        .is_ok_and(|attr| attr.is_dir())
}

/// True if it may be executed. Linux answers EACCES for a directory too.
fn is_program(cx: &Cx<'_>, found: &path::Found, attr: &Attr) -> Result<bool, Errno> {
    Ok(attr.kind() == S_IFREG && privilege::permits_found(cx, found, attr, MAY_EXEC)?)
}

fn open_found(cx: &mut Cx<'_>, found: path::Found) -> Result<ExecFile, Errno> {
    let mut attr = attr_of(cx, &found)?;
    if !is_program(cx, &found, &attr)? {
        return Err(Errno::EACCES);
    }
    let path: Arc<[u8]> = Arc::from(found.path.as_slice());
    let source = match found.node {
        Node::Host(handle, _) => {
            let (who, dir) = (cx.asker(), handle.directory());
            let fd = match cx.host.roots.open_for_reading(&who, &path, &attr, dir) {
                Ok(fd) => fd,
                Err(errno) => {
                    let what = format!("execve {}", super::printable(&path));
                    cx.host.report.deny(what, errno, Remedy::HiddenTree);
                    return Err(errno);
                }
            };
            attr = access::check_opened(cx.host, &who, fd.as_fd(), &attr)?;
            if attr.kind() != S_IFREG || !who.granted(&attr, MAY_EXEC) {
                return Err(Errno::EACCES);
            }
            let id = cx.host.insert_opened(fd, HostKind::File)?;
            cx.host.share_file(id, &attr);
            Source::Host(id)
        }
        Node::Tmp(inode) => {
            super::overlay::open_lower(cx, inode)?;
            cx.kernel.tmpfs.open_ref(inode);
            Source::Tmp(inode)
        }
        Node::Open(file) => {
            let kind = cx.kernel.files.get(&file).ok_or(Errno::EBADF)?.kind.clone();
            match super::file::contents(cx, &kind) {
                Contents::Host(host) => {
                    cx.host.incref(host);
                    Source::Host(host)
                }
                Contents::Tmp(inode) => {
                    super::overlay::open_lower(cx, inode)?;
                    cx.kernel.tmpfs.open_ref(inode);
                    Source::Tmp(inode)
                }
                Contents::Inherited(_)
                | Contents::Text
                | Contents::Zeros
                | Contents::Directory
                | Contents::None => return Err(Errno::EACCES),
            }
        }
        Node::Synth(_) => return Err(Errno::EACCES),
    };
    Ok(ExecFile {
        source,
        len_bytes: attr.size,
        path,
    })
}

/// Reads at most `len_bytes` at `offset`; short only at the end of the file.
///
/// # Errors
/// The host's; `EIO` for a source without bytes.
pub fn read_exec(
    cx: &mut Cx<'_>,
    file: &ExecFile,
    offset: u64,
    len_bytes: usize,
) -> Result<Vec<u8>, Errno> {
    let left = usize::try_from(file.len_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut bytes = vec![0u8; len_bytes.min(left)];
    let len = match file.source {
        Source::Host(host) => {
            kvmlet_hostfs::read_at(cx.host.get(host)?.fd.as_fd(), &mut bytes, offset)?
        }
        Source::Tmp(inode) => {
            cx.kernel
                .tmpfs
                .read(&cx.machine.memory, inode, offset, &mut bytes)?
        }
        Source::Anon | Source::Special(_) => return Err(Errno::EIO),
    };
    bytes.truncate(len);
    Ok(bytes)
}

/// Gives up an [`ExecFile`]'s reference; mappings made from it keep their own.
pub fn close_exec(cx: &mut Cx<'_>, file: ExecFile) {
    match file.source {
        Source::Host(host) => cx.host.decref(host),
        Source::Tmp(inode) => cx.kernel.tmpfs.close_ref(&mut cx.machine.memory, inode),
        Source::Anon | Source::Special(_) => {}
    }
}

/// The facts about a description that mmap(2) needs. No reference is taken: mappings take their own.
///
/// # Errors
/// `EBADF` for O_PATH; `ENODEV` for what cannot be mapped.
pub fn map_file(cx: &mut Cx<'_>, id: FileId) -> Result<MapFile, Errno> {
    let file = cx.kernel.files.get(&id).ok_or(Errno::EBADF)?.clone();
    if file.flags.contains(OpenFlags::PATH) {
        return Err(Errno::EBADF);
    }
    let mut seals = 0;
    let source = match super::file::contents(cx, &file.kind) {
        Contents::Host(host) | Contents::Inherited(host) => Source::Host(host),
        Contents::Tmp(inode) => {
            seals = cx
                .kernel
                .tmpfs
                .get(inode)?
                .file()
                .map_err(|_| Errno::ENODEV)?
                .seals;
            Source::Tmp(inode)
        }
        Contents::Zeros => Source::Anon,
        Contents::Text | Contents::Directory | Contents::None => return Err(Errno::ENODEV),
    };
    Ok(MapFile {
        source,
        flags: file.flags,
        seals,
        name: Arc::clone(&file.path),
    })
}
