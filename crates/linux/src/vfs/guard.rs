//! Protected names in host trees that are changed themselves ([`kvmlet_policy::Guard`]): the changes that are refused.

use std::cell::Cell;
use std::os::fd::BorrowedFd;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::stat::{S_ISGID, S_ISUID};
use kvmlet_hostfs::attr::{Attr, S_IFDIR, S_IFLNK, S_IFREG};
use kvmlet_hostfs::{attr_of, is_same};
use kvmlet_policy::{Guard, parent};

use super::hosttree::deny;
use crate::cx::Cx;
use crate::host::Host;
use crate::report::Remedy;

/// A change that is about to be made at a name, with the kind (S_IFMT) of what is made or is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It is made.
    Made(u32),
    /// Its bytes or attributes become others.
    Changed(u32),
    /// It is taken away.
    Removed(u32),
    /// It leaves for another name, or comes from one.
    Moved(u32),
}

/// The protection of canonical `path`, which lies in a tree that is changed itself, in directory `dir` if that is open.
///
/// # Errors
/// `ESTALE` if that directory is elsewhere by now, and it depends on what is around it. A program has no say in that
/// unless another one, or another view of the tree, has moved it.
pub fn guard_of(host: &Host, path: &[u8], dir: Option<BorrowedFd<'_>>) -> Result<Guard, Errno> {
    let asked = Cell::new(false);
    let guard = host.policy.guard_of(path, |other| {
        asked.set(true);
        host.roots.exists(other)
    });
    if asked.get() {
        is_in_place(host, path, dir)?;
    }
    Ok(guard)
}

fn is_in_place(host: &Host, path: &[u8], dir: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let Some(dir) = dir else { return Ok(()) };
    let (_, there) = host.roots.locate(parent(path))?;
    if is_same(&there, &attr_of(dir)?) {
        Ok(())
    } else {
        Err(Errno::ESTALE)
    }
}

/// Refuses a change at `path`, which has this protection, that would reach or move protected names.
///
/// # Errors
/// `EROFS`, recorded.
pub fn check(
    cx: &mut Cx<'_>,
    call: &str,
    (path, guard): (&[u8], Guard),
    change: Change,
) -> Result<(), Errno> {
    let remedy = match (guard, change) {
        (Guard::Settings | Guard::Whole, _) => Remedy::Protected,
        (Guard::Leading, Change::Moved(_)) => Remedy::LeadsToProtected,
        (Guard::Leading, Change::Made(kind) | Change::Changed(kind) | Change::Removed(kind))
            if kind != S_IFDIR =>
        {
            Remedy::LeadsToProtected
        }
        (Guard::Nested, Change::Made(S_IFLNK)) => Remedy::NestedRepository,
        (Guard::Nested, Change::Moved(kind)) if kind != S_IFREG => Remedy::NestedRepository,
        _ => return Ok(()),
    };
    Err(deny(cx, call, path, (Errno::EROFS, remedy)))
}

/// Refuses to make or take away the last part of a repository, which `path` in the open directory `dir` may be. Settings
/// or hooks beside it would be obeyed then, or not be protected. `happens` says if there is such a change.
///
/// # Errors
/// `EROFS`, recorded; as [`guard_of`].
pub fn check_repository(
    cx: &mut Cx<'_>,
    call: &str,
    (dir, path): (BorrowedFd<'_>, &[u8]),
    happens: impl FnOnce() -> bool,
) -> Result<(), Errno> {
    let host = &*cx.host;
    let asked = Cell::new(false);
    let makes = host.policy.makes_repository(path, |other| {
        asked.set(true);
        host.roots.exists(other)
    });
    if asked.get() {
        is_in_place(host, path, Some(dir))?;
    }
    if makes && happens() {
        return Err(deny(cx, call, path, (Errno::EROFS, Remedy::Protected)));
    }
    Ok(())
}

/// Refuses set-id bits that a file does not have: by them other users of the host would act as the caller.
///
/// # Errors
/// `EPERM`, recorded.
pub fn check_set_id(
    cx: &mut Cx<'_>,
    call: &str,
    (path, old): (&[u8], &Attr),
    mode: u32,
) -> Result<(), Errno> {
    if old.is_dir() || mode & !old.mode & (S_ISUID | S_ISGID) == 0 {
        return Ok(());
    }
    Err(deny(cx, call, path, (Errno::EPERM, Remedy::SetId)))
}
