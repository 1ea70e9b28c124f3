//! Shared memory: shmget(2), shmat(2), shmdt(2), shmctl(2).

use std::sync::Arc;

use kvmlet_abi::addr::page_align_up;
use kvmlet_abi::linux::ipc::{
    IPC_INFO, IPC_RMID, IPC_SET, IPC_STAT, SHM_EXEC, SHM_HUGETLB, SHM_INFO, SHM_LOCK, SHM_LOCKED,
    SHM_RDONLY, SHM_REMAP, SHM_RND, SHM_STAT, SHM_STAT_ANY, SHM_UNLOCK, ShmInfo, Shmid64Ds,
    Shminfo64,
};
use kvmlet_abi::{Errno, Gva, PAGE_SIZE};
use kvmlet_hostfs::attr::FileTime;

use super::{field, find, result};
use crate::clock;
use crate::cx::Cx;
use crate::fd::OpenFlags;
use crate::ipc::ids::Perm;
use crate::ipc::shm::{self, BYTES_MAX, SEGMENT_COST_BYTES, SEGMENTS_MAX, Segment};
use crate::kernel::Pid;
use crate::mm::{self, Backing, MapFile, MapFlags, MapRequest, Prot, Source};
use crate::outcome::{CallState, Outcome, SysResult};
use crate::rlimit::{self, Resource};
use crate::syscalls::args::{Args, Flags, Int, Len, Ptr};
use crate::vfs::tmpfs::{InodeId, NewAttr, SEAL_SEAL};

const MAP_SHARED: u32 = 1;
/// Permission to execute, of any class (S_IXUGO).
const EXECUTE: u32 = 0o111;
const READ: u32 = 0o444;
const WRITE: u32 = 0o222;
/// SHM_NORESERVE
const NORESERVE: u32 = 0o10000;

/// shmget(2)
///
/// # Errors
/// As the man page has them.
pub fn sys_shmget(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(key), Len(size), Flags(flags)) = args.decode();
    let ids = &cx.kernel.ipc.segments.ids;
    let who = &*cx.creds();
    if let Some(id) = find(ids, who, (key, flags), |segment| segment.size >= size)? {
        return Ok(result(id));
    }
    create(cx, key, size, flags).map(result)
}

fn create(cx: &mut Cx<'_>, key: i32, size: u64, flags: u32) -> Result<i32, Errno> {
    if size == 0 || size > BYTES_MAX {
        return Err(Errno::EINVAL);
    }
    let len = page_align_up(size).ok_or(Errno::ENOSPC)?;
    let pages = total_pages(cx).checked_add(len / PAGE_SIZE);
    if pages.is_none_or(|pages| pages > BYTES_MAX) {
        return Err(Errno::ENOSPC);
    }
    if size > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    if flags & SHM_HUGETLB != 0 {
        // None are reserved.
        cx.host
            .report
            .unsupported("shmget", "huge pages".to_owned());
        return Err(Errno::ENOMEM);
    }
    let creds = cx.creds();
    let memory = &mut cx.machine.memory;
    let is_promised = flags & NORESERVE == 0;
    if is_promised && len > memory.limit_bytes() || !memory.has_room(SEGMENT_COST_BYTES) {
        return Err(Errno::ENOMEM);
    }
    if cx.kernel.ipc.segments.ids.len() >= SEGMENTS_MAX {
        return Err(Errno::ENOSPC);
    }
    let attr = NewAttr {
        mode: 0o777,
        uid: creds.user.effective,
        gid: creds.group.effective,
        now: FileTime::from_ns(clock::realtime_ns(cx.host)),
    };
    let tmpfs = &mut cx.kernel.tmpfs;
    let inode = tmpfs.create_unnamed(memory, SEAL_SEAL, attr);
    let inode = inode.map_err(|_| Errno::ENOMEM)?;
    // It is new: nothing maps it.
    let sized = tmpfs.set_size(memory, inode, size, attr.now);
    let segment = Segment {
        inode,
        size,
        atime: 0,
        dtime: 0,
        ctime: clock::realtime_s(cx.host),
        cpid: Pid(0),
        lpid: Pid(0),
    };
    let perm = Perm::new(&creds, key, flags);
    let cpid = cx.process()?.pid;
    let added = sized.and_then(|_| {
        let segment = Segment { cpid, ..segment };
        cx.kernel.ipc.segments.add(perm, segment)
    });
    let memory = &mut cx.machine.memory;
    match added {
        Ok(_) => memory.charge_kernel_anyway(SEGMENT_COST_BYTES),
        Err(_) => cx.kernel.tmpfs.close_ref(memory, inode),
    }
    added
}

fn total_pages(cx: &Cx<'_>) -> u64 {
    let segments = cx.kernel.ipc.segments.ids.iter();
    segments.fold(0u64, |sum, (_, entry)| {
        sum.saturating_add(entry.object.size.div_ceil(PAGE_SIZE))
    })
}

/// shmat(2)
///
/// # Errors
/// As the man page has them.
pub fn sys_shmat(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(id), Ptr(Gva(addr)), Flags(flags)) = args.decode();
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    let is_replacing = flags & SHM_REMAP != 0;
    let at = match addr % PAGE_SIZE {
        // The place is the kernel's to choose, so nothing is to be replaced.
        _ if addr == 0 => match is_replacing {
            true => return Err(Errno::EINVAL),
            false => 0,
        },
        0 => addr,
        rest if flags & SHM_RND != 0 => {
            let at = addr.saturating_sub(rest);
            if at == 0 && is_replacing {
                return Err(Errno::EINVAL);
            }
            at
        }
        _ => return Err(Errno::EINVAL),
    };
    let (prot, wanted, open) = match flags & SHM_RDONLY {
        0 => (Prot::READ | Prot::WRITE, READ | WRITE, OpenFlags::RDWR),
        _ => (Prot::READ, READ, OpenFlags::empty()),
    };
    let (prot, wanted) = match flags & SHM_EXEC {
        0 => (prot, wanted),
        _ => (prot | Prot::EXEC, wanted | EXECUTE),
    };
    let entry = cx.kernel.ipc.segments.ids.get(id)?;
    entry.perm.check(&cx.creds(), wanted)?;
    let (segment, key) = (entry.object, entry.perm.key);
    if addr != 0 && !is_replacing {
        let end = at.checked_add(segment.size).ok_or(Errno::EINVAL)?;
        if cx.mm()?.any_in(at, end) {
            return Err(Errno::EINVAL);
        }
    }
    let fixed = if addr == 0 { 0 } else { MapFlags::FIXED.bits() };
    let name = format!("/SYSV{key:08x} (deleted)");
    let request = MapRequest {
        addr: at,
        len_bytes: segment.size,
        prot: prot.bits(),
        flags: MAP_SHARED | fixed,
        file: Some(MapFile {
            source: Source::Tmp(segment.inode),
            flags: open,
            seals: 0,
            name: Arc::from(name.as_bytes()),
        }),
        offset: 0,
    };
    mm::mmap(cx, &request)
}

/// shmdt(2)
pub fn sys_shmdt(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let Ptr(Gva(addr)) = args.decode();
    detach(cx, addr, state).unwrap_or_else(|errno| Outcome::Done(Err(errno)))
}

/// Unmaps what is left of the first segment that was attached at `addr`. In hand is its file, once a part of it is
/// gone.
fn detach(cx: &mut Cx<'_>, addr: u64, state: &CallState) -> Result<Outcome, Errno> {
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let mut found = (state.progress != 0).then_some(InodeId(state.progress));
    loop {
        let Some((start, end, inode)) = attached_at(cx, addr, found)? else {
            return Ok(Outcome::Done(match found {
                Some(_) => Ok(0),
                None => Err(Errno::EINVAL),
            }));
        };
        let stop = mm::piece_end(cx, start, end)?;
        mm::munmap(cx, start, stop.saturating_sub(start))?;
        found = Some(inode);
        if cx.host.budget.is_spent() {
            return Ok(Outcome::Again(state.kept(inode.0)));
        }
    }
}

/// The first mapping that has been part of an attachment at `addr`: of any segment, or of this one.
fn attached_at(
    cx: &mut Cx<'_>,
    addr: u64,
    wanted: Option<InodeId>,
) -> Result<Option<(u64, u64, InodeId)>, Errno> {
    let id = cx.process()?.mm;
    let segments = &cx.kernel.ipc.segments;
    let mm = cx.kernel.mms.get(&id).ok_or(Errno::ESRCH)?;
    let from = mm.find_from(addr).map_or(addr, |vma| vma.start);
    let mut parts = mm.vmas.range(from..).filter_map(|(_, vma)| {
        let Backing::Tmp(tmp) = vma.backing else {
            return None;
        };
        let is_at = vma.start.checked_sub(addr) == Some(tmp.offset);
        let is_wanted = match wanted {
            Some(inode) => tmp.inode == inode,
            None => segments.of_inode(tmp.inode).is_some(),
        };
        (is_at && is_wanted).then_some((vma.start, vma.end, tmp.inode))
    });
    Ok(parts.next())
}

/// shmctl(2)
///
/// # Errors
/// As the man page has them.
pub fn sys_shmctl(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(id), Int(command), Ptr(buf)) = args.decode();
    if id < 0 || command < 0 {
        return Err(Errno::EINVAL);
    }
    match command {
        IPC_INFO => {
            let limits = Shminfo64 {
                shmmax: BYTES_MAX,
                shmmin: 1,
                shmmni: u64::from(SEGMENTS_MAX),
                shmseg: u64::from(SEGMENTS_MAX),
                shmall: BYTES_MAX,
                ..Shminfo64::default()
            };
            cx.write_struct(buf, &limits)?;
            Ok(cx.kernel.ipc.segments.ids.highest())
        }
        SHM_INFO => {
            let segments = &cx.kernel.ipc.segments.ids;
            let resident = segments.iter().fold(0u64, |sum, (_, entry)| {
                sum.saturating_add(shm::resident(&cx.kernel.tmpfs, &entry.object))
            });
            let info = ShmInfo {
                used_ids: field(u64::from(segments.len())),
                shm_tot: total_pages(cx),
                shm_rss: resident,
                ..ShmInfo::default()
            };
            cx.write_struct(buf, &info)?;
            Ok(cx.kernel.ipc.segments.ids.highest())
        }
        IPC_STAT | SHM_STAT | SHM_STAT_ANY => {
            let ids = &cx.kernel.ipc.segments.ids;
            let id = match command {
                IPC_STAT => id,
                _ => ids.at_index(id)?,
            };
            let entry = ids.get(id)?;
            if command != SHM_STAT_ANY {
                entry.perm.check(&cx.creds(), READ)?;
            }
            let segment = &entry.object;
            let status = Shmid64Ds {
                shm_perm: entry.perm.to_struct(),
                shm_segsz: segment.size,
                shm_atime: segment.atime,
                shm_dtime: segment.dtime,
                shm_ctime: segment.ctime,
                shm_cpid: segment.cpid.0,
                shm_lpid: segment.lpid.0,
                shm_nattch: shm::attached(&cx.kernel.tmpfs, segment),
                ..Shmid64Ds::default()
            };
            cx.write_struct(buf, &status)?;
            Ok(if command == IPC_STAT { 0 } else { result(id) })
        }
        IPC_SET => {
            let new: Shmid64Ds = cx.read_struct(buf)?;
            let now = clock::realtime_s(cx.host);
            let creds = cx.creds();
            let entry = cx.kernel.ipc.segments.ids.get_mut(id)?;
            entry.perm.check_owner(&creds)?;
            entry.perm.update(&new.shm_perm)?;
            entry.object.ctime = now;
            Ok(0)
        }
        IPC_RMID => {
            let creds = cx.creds();
            let kernel = &mut *cx.kernel;
            let entry = kernel.ipc.segments.ids.get(id)?;
            entry.perm.check_owner(&creds)?;
            let memory = &mut cx.machine.memory;
            kernel.ipc.segments.remove(&mut kernel.tmpfs, memory, id);
            Ok(0)
        }
        SHM_LOCK | SHM_UNLOCK => lock(cx, id, command),
        _ => Err(Errno::EINVAL),
    }
}

/// SHM_LOCK and SHM_UNLOCK: nothing is ever swapped out, but what is locked is counted.
fn lock(cx: &mut Cx<'_>, id: i32, command: i32) -> SysResult {
    let most = rlimit::soft(cx, Resource::Memlock)?;
    let creds = cx.creds();
    let ids = &mut cx.kernel.ipc.segments.ids;
    let locked = ids.iter().fold(0u64, |sum, (_, entry)| {
        let counts = entry.perm.mode & SHM_LOCKED != 0;
        sum.saturating_add(if counts { entry.object.size } else { 0 })
    });
    let entry = ids.get_mut(id)?;
    entry.perm.check_owner(&creds)?;
    if command == SHM_UNLOCK {
        entry.perm.mode &= !SHM_LOCKED;
        return Ok(0);
    }
    if most == 0 {
        return Err(Errno::EPERM);
    }
    if entry.perm.mode & SHM_LOCKED == 0 {
        if locked.saturating_add(entry.object.size) > most {
            return Err(Errno::ENOMEM);
        }
        entry.perm.mode |= SHM_LOCKED;
    }
    Ok(0)
}
