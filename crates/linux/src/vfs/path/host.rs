//! Steps of a walk through the host's files.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::Attr;
use kvmlet_hostfs::{Handle, HostFd};
use kvmlet_policy::{join, parent};

use super::{At, Last, Node, Resolve, Step, Walker};
use crate::vfs::access;

impl Walker<'_, '_> {
    /// Tries the whole run of plain components ahead in one host call. `None` if it is not all in a
    /// readable tree, or a symbolic link lies on the way: then one component at a time.
    pub(super) fn host_run(&mut self, first: &[u8]) -> Result<Option<(Vec<u8>, Step)>, Errno> {
        if self.stepwise || self.request.resolve.contains(Resolve::NO_XDEV) {
            return Ok(None);
        }
        // The last component of a path whose parent is wanted is not looked up.
        let kept = usize::from(self.request.last == Last::Parent);
        let plain = |name: &&Vec<u8>| name.as_slice() != b"." && name.as_slice() != b"..";
        let ahead = self.pending.get(kept..).unwrap_or_default();
        let mut left = kvmlet_hostfs::PATH_MAX.saturating_sub(self.at.path.len());
        let mut path = Vec::new();
        let mut more = 0;
        for name in ahead.iter().rev().take_while(plain) {
            path.push(b'/');
            path.extend_from_slice(name);
            more += 1;
            left = left.saturating_sub(name.len() + 1);
            if left <= first.len() + 1 {
                return Ok(None);
            }
        }
        if more == 0 {
            return Ok(None);
        }
        let ahead_is_all = more == ahead.len() && kept == 0;
        path.splice(..0, join(&self.at.path, first));
        if !self.cx.host.policy.classify(&path).is_on_host() {
            return Ok(None);
        }
        // A missing directory on the way and a missing last component must be told apart when the
        // last one may be missing.
        let step = match self.host_step(&path) {
            Ok(Step::Absent) if self.may_be_missing() => self.absent_run(&path, ahead_is_all),
            step => step.map(Some),
        };
        match step {
            Ok(None) => Ok(None),
            // A link on the way: so its parent's path is not canonical either.
            Err(Errno::ELOOP) => {
                self.stepwise = true;
                Ok(None)
            }
            Ok(Some(step)) => {
                self.pending
                    .truncate(self.pending.len().saturating_sub(more));
                self.at.tmp = None;
                self.open = None;
                Ok(Some((path, step)))
            }
            Err(error) => Err(error),
        }
    }

    /// Nothing is at `path`, the end of a run of components: its directory decides. `None` if more follows.
    fn absent_run(&mut self, path: &[u8], is_all: bool) -> Result<Option<Step>, Errno> {
        let dir = parent(path);
        if !is_all || !self.cx.host.policy.classify(dir).is_on_host() {
            return Ok(None);
        }
        match self.host_step(dir)? {
            Step::Directory(..) => Ok(Some(Step::Absent)),
            Step::Link(..) => Err(Errno::ELOOP),
            Step::Absent => Err(Errno::ENOENT),
            Step::Object(_) | Step::Magic(_) => Err(Errno::ENOTDIR),
        }
    }

    pub(super) fn host_step(&mut self, path: &[u8]) -> Result<Step, Errno> {
        let dir = parent(path);
        // Where a tree begins, the directory may have something else.
        let is_root = self.cx.host.policy.is_mount_point(path);
        let open = self
            .open
            .clone()
            .filter(|_| *dir == *self.at.path && !is_root);
        let who = self.cx.asker();
        let searched = match &open {
            Some(fd) => access::check_search_in(&who, fd.as_fd()),
            None => access::check_search(self.cx.host, &who, path),
        };
        match searched {
            Err(Errno::ENOENT) => return Ok(Step::Absent),
            other => other?,
        }
        if let Some(dir) = &open {
            let step = entry_step(dir, path)?;
            if let Step::Object(Node::Host(_, attr))
            | Step::Directory(_, Some(Node::Host(_, attr))) = &step
            {
                let now = (self.cx.host.now)();
                self.cx.host.lookup_cache.note(dir, path, attr, now);
            }
            return Ok(step);
        }
        if let Some(dir) = self.cx.host.roots.base(dir).filter(|_| !is_root) {
            return entry_step(dir, path);
        }
        let located = match &self.above {
            // One step, however deep it is.
            Some(Node::Host(Handle::Location(fd), _)) if !is_root && *dir == *self.at.path => {
                self.cx.host.roots.locate_in(fd.as_fd(), path)
            }
            _ => self.cx.host.roots.locate(path),
        };
        match located {
            Err(Errno::ENOENT) => Ok(Step::Absent),
            Err(error) => Err(error),
            Ok((fd, attr)) => {
                let call = self.request.call;
                access::refuse_kernel_files(self.cx.host, call, (path, &attr), fd.as_fd())?;
                if attr.is_symlink() {
                    host_link(fd, attr)
                } else {
                    Ok(host_object(path, Handle::Location(fd), attr))
                }
            }
        }
    }
}

/// The step of a symbolic link of the host that is open.
pub(super) fn host_link(fd: OwnedFd, attr: Attr) -> Result<Step, Errno> {
    let target = kvmlet_hostfs::read_link(fd.as_fd())?;
    Ok(Step::Link(
        target,
        Some(Node::Host(Handle::Location(fd), attr)),
    ))
}

/// The step of anything else.
fn host_object(path: &[u8], handle: Handle, attr: Attr) -> Step {
    let node = Node::Host(handle, attr);
    if !attr.is_dir() {
        return Step::Object(node);
    }
    let at = At {
        path: Arc::from(path),
        tmp: None,
    };
    Step::Directory(at, Some(node))
}

/// Looks up what the open directory `dir` has by the name that `path` ends in, without opening it.
fn entry_step(dir: &Arc<HostFd>, path: &[u8]) -> Result<Step, Errno> {
    let attr = match kvmlet_hostfs::attr_in(dir.as_fd(), path) {
        Err(Errno::ENOENT) => return Ok(Step::Absent),
        found => found?,
    };
    let handle = Handle::Entry(Arc::clone(dir));
    if !attr.is_symlink() {
        return Ok(host_object(path, handle, attr));
    }
    match handle.read_link(path) {
        Ok(target) => Ok(Step::Link(target, Some(Node::Host(handle, attr)))),
        Err(Errno::ENOENT) => Ok(Step::Absent),
        // It has been replaced meanwhile.
        Err(Errno::EINVAL) => {
            let (fd, attr) = kvmlet_hostfs::locate_in(dir.as_fd(), path)?;
            if attr.is_symlink() {
                host_link(fd, attr)
            } else {
                Ok(host_object(path, Handle::Location(fd), attr))
            }
        }
        Err(error) => Err(error),
    }
}
