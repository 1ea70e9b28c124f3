//! Memory policies of a machine with one node, and priorities of input and output, which
//! schedule nothing.

use kvmlet_abi::{Errno, Gva, PAGE_SIZE};
use zerocopy::IntoBytes;

use crate::cx::Cx;
use crate::kernel::{MemoryPolicy, Thread, Tid};
use crate::mm;
use crate::outcome::SysResult;
use crate::syscalls::args::{Args, Flags, Int, Len, Ptr, Uint};

// ---- memory policies (mm/mempolicy.c) ----

const MPOL_DEFAULT: u32 = 0;
const MPOL_PREFERRED: u32 = 1;
const MPOL_BIND: u32 = 2;
const MPOL_INTERLEAVE: u32 = 3;
const MPOL_LOCAL: u32 = 4;
const MPOL_PREFERRED_MANY: u32 = 5;
const MPOL_WEIGHTED_INTERLEAVE: u32 = 6;
const MPOL_F_STATIC_NODES: u32 = 1 << 15;
const MPOL_F_RELATIVE_NODES: u32 = 1 << 14;
const MPOL_F_NUMA_BALANCING: u32 = 1 << 13;
const MODE_FLAGS: u32 = MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES | MPOL_F_NUMA_BALANCING;
const MPOL_F_NODE: u64 = 1;
const MPOL_F_ADDR: u64 = 2;
const MPOL_F_MEMS_ALLOWED: u64 = 4;
const MPOL_MF_STRICT: u32 = 1;
const MPOL_MF_MOVE: u32 = 2;
const MPOL_MF_MOVE_ALL: u32 = 4;
/// Bits of a mask of nodes at most: a page.
const MASK_BITS_MAX: u64 = PAGE_SIZE * 8;
const WORD_BITS: u64 = 64;
/// Nodes that a kernel may be built for (MAX_NUMNODES); a mask names none beyond.
const NODES_MAX: u64 = 1024;

/// A mask of nodes in user memory (get_nodes): says if it names any, and if it names ours.
///
/// # Errors
/// `EINVAL` for one that is too long; `EFAULT`.
fn read_nodes(cx: &mut Cx<'_>, mask: Gva, bits: u64) -> Result<(bool, bool), Errno> {
    let bits = bits.wrapping_sub(1);
    if bits == 0 || mask.0 == 0 {
        return Ok((false, false));
    }
    if bits > MASK_BITS_MAX {
        return Err(Errno::EINVAL);
    }
    let len = usize::try_from(bits.div_ceil(WORD_BITS)).map_err(|_| Errno::EINVAL)?;
    let mut words = vec![0u64; len];
    cx.read(mask, words.as_mut_bytes())?;
    if let Some(last) = words.last_mut()
        && !bits.is_multiple_of(WORD_BITS)
    {
        *last &= (1 << (bits % WORD_BITS)) - 1;
    }
    let known = usize::try_from(NODES_MAX / WORD_BITS).unwrap_or(0);
    if words.iter().skip(known).any(|word| *word != 0) {
        return Err(Errno::EINVAL);
    }
    let any = words.iter().any(|word| *word != 0);
    Ok((any, words.first().is_some_and(|word| word & 1 != 0)))
}

/// The policy of these arguments (sanitize_mpol_flags and mpol_new).
///
/// # Errors
/// `EINVAL`
fn policy(mode: u32, (any, ours): (bool, bool)) -> Result<MemoryPolicy, Errno> {
    let flags = mode & MODE_FLAGS;
    let mode = mode & !MODE_FLAGS;
    let both = MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES;
    if mode > MPOL_WEIGHTED_INTERLEAVE || flags & both == both {
        return Err(Errno::EINVAL);
    }
    let balances = flags & MPOL_F_NUMA_BALANCING != 0;
    if balances && !matches!(mode, MPOL_BIND | MPOL_PREFERRED_MANY) {
        return Err(Errno::EINVAL);
    }
    let nodes = match mode {
        MPOL_DEFAULT if any => return Err(Errno::EINVAL),
        // Its flags are lost.
        MPOL_DEFAULT => return Ok(MemoryPolicy::default()),
        MPOL_PREFERRED | MPOL_LOCAL if !any => {
            if flags & both != 0 {
                return Err(Errno::EINVAL);
            }
            return Ok(MemoryPolicy {
                mode: MPOL_LOCAL,
                has_nodes: false,
            });
        }
        MPOL_LOCAL => return Err(Errno::EINVAL),
        _ => ours || flags & MPOL_F_RELATIVE_NODES != 0 && any,
    };
    if !nodes {
        return Err(Errno::EINVAL);
    }
    Ok(MemoryPolicy {
        mode: mode | flags,
        has_nodes: true,
    })
}

/// set_mempolicy(2)
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sys_set_mempolicy(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Flags(mode), Ptr(mask), Len(bits)) = args.decode();
    // The mode is looked at first.
    if mode & !MODE_FLAGS > MPOL_WEIGHTED_INTERLEAVE {
        return Err(Errno::EINVAL);
    }
    let nodes = read_nodes(cx, mask, bits)?;
    cx.thread()?.memory_policy = policy(mode, nodes)?;
    Ok(0)
}

/// get_mempolicy(2)
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sys_get_mempolicy(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(mode_at), Ptr(mask), Len(bits), Ptr(Gva(addr)), Len(flags)) = args.decode();
    if mask.0 != 0 && bits < 1 || flags & !(MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED) != 0 {
        return Err(Errno::EINVAL);
    }
    let own = cx.thread()?.memory_policy;
    let (mode, has_nodes) = if flags & MPOL_F_MEMS_ALLOWED != 0 {
        if flags & (MPOL_F_NODE | MPOL_F_ADDR) != 0 {
            return Err(Errno::EINVAL);
        }
        (MPOL_DEFAULT, true)
    } else if flags & MPOL_F_ADDR != 0 {
        if cx.mm()?.find(addr).is_none() {
            return Err(Errno::EFAULT);
        }
        if flags & MPOL_F_NODE != 0 {
            // The page is brought in first.
            let mut byte = [0u8];
            cx.read(Gva(addr), &mut byte)?;
            (0, own.has_nodes)
        } else {
            (own.mode, own.has_nodes)
        }
    } else if addr != 0 {
        return Err(Errno::EINVAL);
    } else if flags & MPOL_F_NODE != 0 {
        match own.mode & !MODE_FLAGS {
            MPOL_INTERLEAVE | MPOL_WEIGHTED_INTERLEAVE => (0, own.has_nodes),
            _ => return Err(Errno::EINVAL),
        }
    } else {
        (own.mode, own.has_nodes)
    };
    if mode_at.0 != 0 {
        cx.write_struct(mode_at, &mode)?;
    }
    if mask.0 != 0 {
        let bytes = bits.saturating_sub(1).div_ceil(WORD_BITS).saturating_mul(8);
        if bytes > PAGE_SIZE {
            return Err(Errno::EINVAL);
        }
        let mut words = vec![0u8; usize::try_from(bytes).map_err(|_| Errno::EINVAL)?];
        if let Some(first) = words.first_mut() {
            *first = u8::from(has_nodes);
        }
        cx.write(mask, &words)?;
    }
    Ok(0)
}

/// mbind(2). Linux differs: the policy of a range is not told by get_mempolicy(2), which tells the thread's.
///
/// # Errors
/// `EINVAL`, `EPERM`, `EFAULT`.
pub fn sys_mbind(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Ptr(Gva(addr)), Len(len), Flags(mode), Ptr(mask), Len(bits), Flags(flags)) = args.decode();
    if mode & !MODE_FLAGS > MPOL_WEIGHTED_INTERLEAVE {
        return Err(Errno::EINVAL);
    }
    let nodes = read_nodes(cx, mask, bits)?;
    if flags & !(MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & MPOL_MF_MOVE_ALL != 0 {
        return Err(Errno::EPERM);
    }
    let len = kvmlet_abi::addr::page_align_up(len).ok_or(Errno::EINVAL)?;
    let end = addr.checked_add(len).ok_or(Errno::EINVAL)?;
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    policy(mode, nodes)?;
    match mm::covers(cx, addr, end)? {
        true => Ok(0),
        false => Err(Errno::EFAULT),
    }
}

// ---- priorities of input and output (block/ioprio.c) ----

const IOPRIO_WHO_PROCESS: i32 = 1;
const IOPRIO_WHO_PGRP: i32 = 2;
const IOPRIO_WHO_USER: i32 = 3;
const CLASS_SHIFT: u32 = 13;
const CLASS_NONE: u32 = 0;
const CLASS_RT: u32 = 1;
const CLASS_BE: u32 = 2;
const CLASS_IDLE: u32 = 3;
const LEVEL_MASK: u32 = 7;
/// The priority of a thread that has set none (task_nice_ioprio).
fn usual(thread: &Thread) -> u32 {
    let level = thread.nice.abs_diff(-20) / 5;
    CLASS_BE << CLASS_SHIFT | u32::from(level)
}

/// The threads that a call is about.
///
/// # Errors
/// `EINVAL`, `ESRCH`.
fn threads(cx: &mut Cx<'_>, which: i32, who: i32) -> Result<Vec<Tid>, Errno> {
    let own_group = cx.process()?.pgid.0;
    let own = cx.creds();
    let kernel = &*cx.kernel;
    let found: Vec<Tid> = match which {
        IOPRIO_WHO_PROCESS if who == 0 => vec![cx.tid],
        IOPRIO_WHO_PROCESS => kernel
            .threads
            .contains_key(&Tid(who))
            .then_some(Tid(who))
            .into_iter()
            .collect(),
        IOPRIO_WHO_PGRP => {
            let group = if who == 0 { own_group } else { who };
            let members = kernel.processes.values();
            let members = members.filter(|process| process.pgid.0 == group);
            members.map(|process| Tid(process.pid.0)).collect()
        }
        IOPRIO_WHO_USER => {
            let uid = match who {
                0 => own.user.real,
                who => who.cast_unsigned(),
            };
            let of_user = |thread: &&Thread| thread.creds.user.real == uid;
            let threads = kernel.threads.values().filter(of_user);
            threads.map(|thread| thread.tid).collect()
        }
        _ => return Err(Errno::EINVAL),
    };
    if found.is_empty() {
        return Err(Errno::ESRCH);
    }
    Ok(found)
}

/// ioprio_set(2): the priority is kept, and has no effect.
///
/// # Errors
/// `EINVAL`, `EPERM`, `ESRCH`.
pub fn sys_ioprio_set(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(which), Int(who), Uint(priority)) = args.decode();
    match (priority >> CLASS_SHIFT, priority & LEVEL_MASK) {
        (CLASS_RT, _) => return Err(Errno::EPERM),
        (CLASS_BE | CLASS_IDLE, _) | (CLASS_NONE, 0) => {}
        _ => return Err(Errno::EINVAL),
    }
    let own = cx.creds();
    for tid in threads(cx, which, who)? {
        if let Some(thread) = cx.kernel.threads.get_mut(&tid) {
            if !own.may_schedule(&thread.creds) {
                return Err(Errno::EPERM);
            }
            thread.io_priority = priority;
        }
    }
    Ok(0)
}

/// ioprio_get(2)
///
/// # Errors
/// `EINVAL`, `ESRCH`.
pub fn sys_ioprio_get(cx: &mut Cx<'_>, args: &Args) -> SysResult {
    let (Int(which), Int(who)) = args.decode();
    let found = threads(cx, which, who)?;
    let kernel = &*cx.kernel;
    let priorities = found.iter().filter_map(|tid| kernel.threads.get(tid));
    let priorities = priorities.map(|thread| match thread.io_priority {
        set if which == IOPRIO_WHO_PROCESS => set,
        none if none >> CLASS_SHIFT == CLASS_NONE => usual(thread),
        set => set,
    });
    priorities.min().map(u64::from).ok_or(Errno::ESRCH)
}
