//! Descriptor tables and directories that threads and processes share (clone(2), unshare(2)).

use kvmlet_abi::Errno;
use kvmlet_abi::linux::sched::{CLONE_FILES, CLONE_FS};

use crate::cx::Cx;
use crate::fd;
use crate::id::{FilesId, FsId};
use crate::kernel::Share;
use crate::shared::Left;
use crate::vfs::{Dir, locks};

/// Host memory charged to the program for a descriptor table beside those that processes begin with, whose costs
/// have one: as many descriptors as it may have.
const TABLE_COST_BYTES: u64 = 32 << 10;
/// The same for a directory with a mask: as long as a path may be.
const FS_COST_BYTES: u64 = 8 << 10;

/// Such tables at most: all of them may have to be closed at once. Linux differs: it knows no such limit.
const TABLES_APART_MAX: usize = 64;

/// Says who pays for what is not shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payer {
    /// A process that begins or executes a program: its own cost has it.
    Process,
    /// The program pays for it beside its processes.
    Apart,
}

/// The tables of a new thread of the caller's: shared as `flags` of clone(2) say, else copied.
///
/// # Errors
/// `ENOMEM` at the memory limit, or for more than 64 tables beside those of processes; `ESRCH` if the caller is gone.
/// Nothing has changed then.
pub fn inherit(cx: &mut Cx<'_>, flags: u64, payer: Payer) -> Result<Share, Errno> {
    let share = cx.thread()?.share;
    let (keeps_files, keeps_fs) = (flags & CLONE_FILES != 0, flags & CLONE_FS != 0);
    if payer == Payer::Apart {
        if !keeps_files && cx.kernel.fd_tables.charged() >= TABLES_APART_MAX {
            return Err(Errno::ENOMEM);
        }
        let files_bytes = if keeps_files { 0 } else { TABLE_COST_BYTES };
        let fs_bytes = if keeps_fs { 0 } else { FS_COST_BYTES };
        if !cx
            .machine
            .memory
            .has_room(files_bytes.saturating_add(fs_bytes))
        {
            return Err(Errno::ENOMEM);
        }
    }
    let files = match keeps_files {
        true => {
            cx.kernel.fd_tables.join(share.files);
            share.files
        }
        false => copy_files(cx, share.files, payer)?,
    };
    let fs = match keeps_fs {
        true => {
            cx.kernel.fs.join(share.fs);
            share.fs
        }
        false => copy_fs(cx, share.fs, payer)?,
    };
    Ok(Share { files, fs })
}

fn copy_files(cx: &mut Cx<'_>, files: FilesId, payer: Payer) -> Result<FilesId, Errno> {
    let table = cx.kernel.fd_tables.get(files).ok_or(Errno::ESRCH)?.clone();
    for fd in table.fds.values() {
        if let Some(file) = cx.kernel.files.get_mut(&fd.file) {
            file.refs = file.refs.saturating_add(1);
        }
    }
    let charged_bytes = charge(cx, TABLE_COST_BYTES, payer);
    Ok(cx.kernel.fd_tables.add(table, charged_bytes))
}

fn copy_fs(cx: &mut Cx<'_>, fs: FsId, payer: Payer) -> Result<FsId, Errno> {
    let copy = cx.kernel.fs.get(fs).ok_or(Errno::ESRCH)?.clone();
    if let Dir::Tmp(inode) = copy.cwd {
        cx.kernel.tmpfs.open_ref(inode);
    }
    let charged_bytes = charge(cx, FS_COST_BYTES, payer);
    Ok(cx.kernel.fs.add(copy, charged_bytes))
}

fn charge(cx: &mut Cx<'_>, cost_bytes: u64, payer: Payer) -> u64 {
    match payer {
        Payer::Process => 0,
        Payer::Apart => {
            cx.machine.memory.charge_kernel_anyway(cost_bytes);
            cost_bytes
        }
    }
}

/// Gives the calling thread a descriptor table that no other has (unshare(2), execve(2)).
///
/// # Errors
/// As [`inherit`].
pub fn unshare_files(cx: &mut Cx<'_>, payer: Payer) -> Result<(), Errno> {
    let old = cx.thread()?.share.files;
    if cx.kernel.fd_tables.threads(old) < 2 {
        return Ok(());
    }
    let Share { files, .. } = unshared(cx, CLONE_FS, payer)?;
    cx.thread()?.share.files = files;
    leave_files(cx, old);
    Ok(())
}

/// The same for its directory and its mask.
///
/// # Errors
/// As [`inherit`].
pub fn unshare_fs(cx: &mut Cx<'_>) -> Result<(), Errno> {
    let old = cx.thread()?.share.fs;
    if cx.kernel.fs.threads(old) < 2 {
        return Ok(());
    }
    let Share { fs, .. } = unshared(cx, CLONE_FILES, Payer::Apart)?;
    cx.thread()?.share.fs = fs;
    leave_fs(cx, old);
    Ok(())
}

/// Copies for the calling thread of what `kept` does not name; what it names is counted as before.
fn unshared(cx: &mut Cx<'_>, kept: u64, payer: Payer) -> Result<Share, Errno> {
    let share = inherit(cx, kept, payer)?;
    // It has these already, and others may not have left them: nothing is the last.
    match kept {
        CLONE_FS => drop(cx.kernel.fs.leave(share.fs)),
        _ => drop(cx.kernel.fd_tables.leave(share.files)),
    }
    Ok(share)
}

/// The calling thread ends: what it shares is others', or goes with it.
pub fn leave(cx: &mut Cx<'_>) {
    let Ok(Share { files, fs }) = cx.thread().map(|thread| thread.share) else {
        return;
    };
    leave_files(cx, files);
    leave_fs(cx, fs);
}

fn leave_files(cx: &mut Cx<'_>, files: FilesId) {
    let Some(Left {
        value,
        charged_bytes,
    }) = cx.kernel.fd_tables.leave(files)
    else {
        return;
    };
    cx.machine.memory.uncharge_kernel(charged_bytes);
    locks::table_gone(cx, files);
    // Who hears of several descriptors is woken once.
    cx.kernel.hold_wakes();
    for fd in value.fds.values() {
        fd::unref(cx, fd.file);
    }
    cx.kernel.release_wakes();
}

fn leave_fs(cx: &mut Cx<'_>, fs: FsId) {
    let Some(Left {
        value,
        charged_bytes,
    }) = cx.kernel.fs.leave(fs)
    else {
        return;
    };
    let memory = &mut cx.machine.memory;
    memory.uncharge_kernel(charged_bytes);
    if let Dir::Tmp(inode) = value.cwd {
        cx.kernel.tmpfs.close_ref(memory, inode);
    }
}

#[cfg(test)]
mod tests {
    use kvmlet_abi::linux::sched::{CLONE_SIGHAND, CLONE_THREAD, CLONE_VM};

    use super::*;
    use crate::kernel::{ExitStatus, Pid, Tid};
    use crate::task::exit::{end_process, end_thread};
    use crate::testing::{Sandbox, call};

    const SIGCHLD: u64 = 17;

    /// Tables, directories, descriptions, references to those, and what is charged.
    fn counts(sandbox: &Sandbox) -> (usize, usize, usize, u32, u64) {
        let kernel = &sandbox.kernel;
        (
            kernel.fd_tables.iter().count(),
            kernel.fs.iter().count(),
            kernel.files.len(),
            kernel.files.values().map(|file| file.refs).sum(),
            sandbox.machine.memory.used_bytes(),
        )
    }

    fn branch(sandbox: &mut Sandbox, flags: u64) -> Tid {
        let flags = flags.cast_signed();
        let tid = call!(sandbox, "clone", flags, 0, 0, 0, 0).unwrap();
        Tid(i32::try_from(tid).unwrap())
    }

    fn cx(sandbox: &mut Sandbox, tid: Tid) -> Cx<'_> {
        Cx {
            tid,
            ..sandbox.cx()
        }
    }

    #[test]
    fn nothing_is_left_of_what_threads_and_processes_shared() {
        let mut sandbox = Sandbox::new(std::path::Path::new("/tmp"));
        sandbox.touch_all();
        call!(sandbox, "mkdir", "/tmp/d", 0o700).unwrap();
        call!(sandbox, "chdir", "/tmp/d").unwrap();
        let before = counts(&sandbox);
        const THREAD: u64 = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD;
        for kept in [0, CLONE_FILES, CLONE_FS, CLONE_FILES | CLONE_FS] {
            // A process that has the caller's memory, so that its page tables are not counted.
            for flags in [THREAD | kept, CLONE_VM | kept | SIGCHLD] {
                for unshares in [false, true] {
                    let tid = branch(&mut sandbox, flags);
                    let mut cx = cx(&mut sandbox, tid);
                    if unshares {
                        unshare_files(&mut cx, Payer::Apart).unwrap();
                        unshare_fs(&mut cx).unwrap();
                        // What is its own already is not copied again.
                        let share = cx.thread().unwrap().share;
                        unshare_files(&mut cx, Payer::Apart).unwrap();
                        unshare_fs(&mut cx).unwrap();
                        assert_eq!(cx.thread().unwrap().share, share);
                        fd::close(&mut cx, 0).unwrap();
                    }
                    if flags & CLONE_THREAD != 0 {
                        end_thread(&mut cx, ExitStatus::Exited(0));
                    } else {
                        end_process(&mut cx, Pid(tid.0), ExitStatus::Exited(0));
                    }
                    assert_eq!(counts(&sandbox), before, "{flags:#x} {unshares}");
                }
            }
        }
    }

    #[test]
    fn a_table_lasts_as_long_as_somebody_has_it() {
        let mut sandbox = Sandbox::new(std::path::Path::new("/tmp"));
        let outer = branch(&mut sandbox, CLONE_VM | SIGCHLD);
        let mut of_outer = cx(&mut sandbox, outer);
        let share = inherit(&mut of_outer, CLONE_FILES | CLONE_FS, Payer::Process).unwrap();
        end_process(&mut of_outer, Pid(outer.0), ExitStatus::Exited(0));
        assert_eq!(sandbox.kernel.fd_tables.threads(share.files), 1);
        assert_eq!(sandbox.kernel.fs.threads(share.fs), 1);
        leave_files(&mut sandbox.cx(), share.files);
        assert!(sandbox.kernel.fd_tables.get(share.files).is_none());
    }

    #[test]
    fn copies_that_are_no_processes_are_few() {
        let mut sandbox = Sandbox::new(std::path::Path::new("/tmp"));
        let flags = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD;
        let mut made = 0;
        let error = loop {
            match call!(sandbox, "clone", flags.cast_signed(), 0, 0, 0, 0) {
                Ok(_) => made += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error, Errno::ENOMEM);
        assert_eq!(made, TABLES_APART_MAX);
        let tables = sandbox.kernel.fd_tables.iter().count();
        assert_eq!(tables, made + 1);
        assert_eq!(call!(sandbox, "unshare", 0x400), Ok(0));
    }
}
