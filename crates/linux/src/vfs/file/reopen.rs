//! open(2) of /proc/self/fd/N.

use std::os::fd::AsFd;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::capability::CAP_DAC_OVERRIDE;
use kvmlet_hostfs::{HostKind, stream};

use super::{hold, is_regular};
use crate::cx::Cx;
use crate::fd::{FileId, FileKind, OpenFile, OpenFlags};
use crate::host::HostId;
use crate::vfs::hosttree;
use crate::vfs::leases;
use crate::vfs::open::{self, Opened};
use crate::vfs::overlay;
use crate::vfs::path::{Found, Node};
use crate::vfs::synth;

/// True if a description's descriptor on the host cannot be read by.
fn is_write_only(cx: &Cx<'_>, host: HostId, file: &OpenFile) -> bool {
    let kind = cx.host.get(host).map(|host| host.kind);
    kind == Ok(HostKind::WritableFile) && !file.flags.readable()
}

/// Opens what /proc/self/fd/N refers to once more.
pub fn reopen(cx: &mut Cx<'_>, call: &str, id: FileId, flags: OpenFlags) -> Result<Opened, Errno> {
    let file = cx.kernel.files.get(&id).ok_or(Errno::ENOENT)?.clone();
    let changes = flags.writable() || flags.contains(OpenFlags::TRUNC);
    if let FileKind::HostFile(host) | FileKind::HostLocation(host) = &file.kind
        && (!changes || hosttree::is_writable(cx.host, &file.path))
        && let Some(until_ns) = leases::broken_by_reopening(cx, *host, flags)?
    {
        return Ok(Opened::Leased(until_ns));
    }
    match &file.kind {
        FileKind::Tmp(inode) => return open::open_tmp(cx, *inode, flags, &file.path),
        FileKind::HostFile(_) | FileKind::HostLocation(_)
            if changes && overlay::is_overlay(cx.host, &file.path) =>
        {
            let inode = overlay::own_path(cx, &file.path)?.ok_or(Errno::ENOENT)?;
            return open::open_tmp(cx, inode, flags, &file.path);
        }
        FileKind::HostFile(host) | FileKind::HostLocation(host)
            if (changes || is_write_only(cx, *host, &file))
                && hosttree::is_writable(cx.host, &file.path) =>
        {
            let fd = cx.host.fd(*host)?;
            let attr = kvmlet_hostfs::attr_of(fd.as_fd())?;
            if attr.is_dir() {
                return Err(Errno::EISDIR);
            }
            // Linux differs: one that has lost one of several names cannot be opened again by that.
            let found = (&*file.path, &attr);
            let kind = hosttree::open_same(cx, call, found, fd.as_fd(), flags)?;
            return Ok(Opened::New(open::description(kind, flags, &file.path)));
        }
        FileKind::HostFile(_) | FileKind::HostDir(_) if changes => {
            return Err(open::deny_write(cx, call, &file.path));
        }
        // One that was opened with O_PATH is opened by its path.
        FileKind::HostLocation(host) => {
            let attr = kvmlet_hostfs::attr_of(cx.host.get(*host)?.fd.as_fd())?;
            if changes {
                return Err(open::deny_write(cx, call, &file.path));
            }
            let kind = open::open_host(cx, call, (&file.path, &attr), None)?;
            if let FileKind::HostFile(id) | FileKind::HostDir(id) = kind {
                // Nothing but the object itself will do.
                let opened = cx
                    .host
                    .fd(id)
                    .and_then(|fd| kvmlet_hostfs::attr_of(fd.as_fd()));
                if !opened.is_ok_and(|opened| kvmlet_hostfs::is_same(&opened, &attr)) {
                    cx.host.decref(id);
                    return Err(Errno::ESTALE);
                }
            }
            return Ok(Opened::New(open::description(kind, flags, &file.path)));
        }
        FileKind::Text(_) if changes => return Err(Errno::EACCES),
        FileKind::HostStream(host) => {
            if flags.readable() && !file.flags.readable()
                || flags.writable() && !file.flags.writable()
            {
                return Err(Errno::EACCES);
            }
            if flags.contains(OpenFlags::TRUNC)
                && flags.writable()
                && cx.host.get(*host)?.kind == HostKind::FileStream
            {
                stream::set_size(cx.host.get(*host)?, 0)?;
            }
            // Linux differs: one that the caller opened to append to is not opened anew, and appends.
            if is_regular(cx, *host) && !stream::appends(cx.host.get(*host)?) {
                hold(cx, &file)?;
                let kind = FileKind::HostFile(*host);
                return Ok(Opened::New(open::description(kind, flags, &file.path)));
            }
        }
        FileKind::Capture(_) | FileKind::Input(_) => {
            if flags.readable() && !file.flags.readable()
                || flags.writable() && !file.flags.writable()
            {
                return Err(Errno::EACCES);
            }
            return Ok(Opened::Existing(id));
        }
        FileKind::Pipe(pipe) => {
            let ends = cx.kernel.pipes.get_mut(*pipe)?;
            if let Some(inode) = ends.inode {
                return open::open_tmp(cx, inode, flags, &file.path);
            }
            if flags.readable() {
                ends.readers = ends.readers.saturating_add(1);
            }
            if flags.writable() {
                ends.writers = ends.writers.saturating_add(1);
            }
        }
        // Their inode is root's, mode 0600: others do not get as far as to learn that it cannot be opened.
        FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Process(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_)
            if cx.creds().user.fs != 0 && !cx.creds().has(CAP_DAC_OVERRIDE) =>
        {
            return Err(Errno::EACCES);
        }
        FileKind::Event(_)
        | FileKind::Mqueue(_)
        | FileKind::Timer(_)
        | FileKind::Epoll(_)
        | FileKind::Process(_)
        | FileKind::Inotify(_)
        | FileKind::Signals(_)
        | FileKind::Socket(_) => return Err(Errno::ENXIO),
        FileKind::Pty(_) | FileKind::SynthLocation => {
            let node = synth::lookup(cx, &file.path).ok_or(Errno::ENOENT)?;
            let found = Found {
                path: file.path.to_vec(),
                node: Node::Synth(node),
            };
            return open::open_found(cx, "open", found, flags);
        }
        FileKind::HostFile(_)
        | FileKind::HostDir(_)
        | FileKind::Text(_)
        | FileKind::Device(_)
        | FileKind::SynthDir(_) => {}
    }
    hold(cx, &file)?;
    Ok(Opened::New(OpenFile {
        flags: flags & OpenFlags::KEPT,
        refs: 0,
        offset: 0,
        ..file
    }))
}
