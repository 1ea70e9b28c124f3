//! System V IPC (sysvipc(7)).

mod mq;
mod msg;
mod sem;
mod shm;

pub use mq::{
    sys_mq_getsetattr, sys_mq_notify, sys_mq_open, sys_mq_timedreceive, sys_mq_timedsend,
    sys_mq_unlink,
};
pub use msg::{sys_msgctl, sys_msgget, sys_msgrcv, sys_msgsnd};
pub use sem::{sys_semctl, sys_semget, sys_semop, sys_semtimedop};
pub use shm::{sys_shmat, sys_shmctl, sys_shmdt, sys_shmget};

use kvmlet_abi::Errno;
use kvmlet_abi::linux::ipc::{IPC_CREAT, IPC_EXCL, IPC_PRIVATE};

use crate::creds::Creds;
use crate::ipc::ids::Ids;

/// The object that a key names, or `None` if one is to be made (ipcget in ipc/util.c).
///
/// # Errors
/// `ENOENT`, `EEXIST`, `EACCES`; `EINVAL` for one that does not suit.
fn find<T: Clone>(
    ids: &Ids<T>,
    who: &Creds,
    (key, flags): (i32, u32),
    suits: impl Fn(&T) -> bool,
) -> Result<Option<i32>, Errno> {
    if key == IPC_PRIVATE {
        return Ok(None);
    }
    let Some(id) = ids.by_key(key) else {
        return match flags & IPC_CREAT {
            0 => Err(Errno::ENOENT),
            _ => Ok(None),
        };
    };
    if flags & IPC_CREAT != 0 && flags & IPC_EXCL != 0 {
        return Err(Errno::EEXIST);
    }
    let entry = ids.get(id)?;
    if !suits(&entry.object) {
        return Err(Errno::EINVAL);
    }
    entry.perm.check(who, flags)?;
    Ok(Some(id))
}

/// An id as a result.
fn result(id: i32) -> u64 {
    u64::from(id.cast_unsigned())
}

/// A count as a field of a structure.
fn field(count: u64) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
