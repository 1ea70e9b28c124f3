//! Open descriptions of a host file that has become an inode.

use std::os::fd::AsFd;
use std::sync::Arc;

use kvmlet_hostfs::attr::Attr;
use kvmlet_hostfs::{HostFd, HostKind};

use super::{host, is_of_host_tree, is_regular};
use crate::cx::Cx;
use crate::fd::FileKind;
use crate::vfs::tmpfs::InodeId;

/// Has the descriptions of the file at canonical `path`, which has `attr`, refer to its inode. A descriptor of
/// the host's for reading it, if one of them had that.
pub fn follow(
    cx: &mut Cx<'_>,
    path: &[u8],
    (attr, inode): (&Attr, InodeId),
) -> Option<Arc<HostFd>> {
    // Another name of the file may have been opened, if it has several.
    let files =
        cx.kernel.files.iter().filter(|(_, file)| {
            is_of_host_tree(&file.kind) && (*file.path == *path || attr.nlink > 1)
        });
    let opened: Vec<_> = files
        .filter_map(|(id, file)| Some((*id, host(&file.kind)?)))
        .collect();
    let mut readable = None;
    for (id, host) in opened {
        let Ok(fd) = cx.host.fd(host) else { continue };
        // One of the caller's is of no tree, whatever its file.
        if is_regular(cx, host) {
            continue;
        }
        let same = kvmlet_hostfs::attr_of(fd.as_fd())
            .is_ok_and(|opened| kvmlet_hostfs::is_same(&opened, attr));
        if !same {
            continue;
        }
        if cx
            .host
            .get(host)
            .is_ok_and(|host| host.kind == HostKind::File)
        {
            readable = Some(fd);
        }
        if let Some(file) = cx.kernel.files.get_mut(&id) {
            file.kind = FileKind::Tmp(inode);
            cx.kernel.tmpfs.open_ref(inode);
            cx.host.decref(host);
        }
    }
    readable
}
