//! The lists of /proc/sysvipc (sysvipc(7)).

use kvmlet_abi::PAGE_SIZE;

use crate::cx::Cx;
use crate::ipc::shm;

pub(super) const SYSVIPC_FILES: [&[u8]; 3] = [b"msg", b"sem", b"shm"];

pub(super) fn sysvipc_text(cx: &Cx<'_>, name: &[u8]) -> Option<String> {
    let ipc = &cx.kernel.ipc;
    let (head, rows): (&str, Vec<String>) = match name {
        b"shm" => (
            "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n",
            ipc.segments
                .ids
                .iter()
                .map(|(id, entry)| {
                    let (perm, segment) = (&entry.perm, &entry.object);
                    format!(
                        "{:10} {id:10}  {:4o} {:21} {:5} {:5}  {:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10} {:21} {:21}\n",
                        perm.key,
                        perm.mode,
                        segment.size,
                        segment.cpid.0,
                        segment.lpid.0,
                        shm::attached(&cx.kernel.tmpfs, segment),
                        perm.uid,
                        perm.gid,
                        perm.cuid,
                        perm.cgid,
                        segment.atime,
                        segment.dtime,
                        segment.ctime,
                        shm::resident(&cx.kernel.tmpfs, segment).saturating_mul(PAGE_SIZE),
                        0,
                    )
                })
                .collect(),
        ),
        b"sem" => (
            "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n",
            ipc.semaphores
                .ids
                .iter()
                .map(|(id, entry)| {
                    let (perm, set) = (&entry.perm, &entry.object);
                    format!(
                        "{:10} {id:10}  {:4o} {:10} {:5} {:5} {:5} {:5} {:10} {:10}\n",
                        perm.key,
                        perm.mode,
                        set.semaphores.len(),
                        perm.uid,
                        perm.gid,
                        perm.cuid,
                        perm.cgid,
                        set.otime,
                        set.ctime,
                    )
                })
                .collect(),
        ),
        b"msg" => (
            "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime\n",
            ipc.queues
                .ids
                .iter()
                .map(|(id, entry)| {
                    let (perm, queue) = (&entry.perm, &entry.object);
                    format!(
                        "{:10} {id:10}  {:4o}  {:10} {:10} {:5} {:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10}\n",
                        perm.key,
                        perm.mode,
                        queue.bytes,
                        queue.messages.len(),
                        queue.sender,
                        queue.receiver,
                        perm.uid,
                        perm.gid,
                        perm.cuid,
                        perm.cgid,
                        queue.stime,
                        queue.rtime,
                        queue.ctime,
                    )
                })
                .collect(),
        ),
        _ => return None,
    };
    Some(std::iter::once(head.to_owned()).chain(rows).collect())
}
