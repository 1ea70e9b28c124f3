//! Credentials of threads (credentials(7), capabilities(7)) as values.
//!
//! The program of a caller who is root begins as root, with the capabilities of root in a container. It may become any
//! user: a user is a value here, and no more of the host may be reached by becoming one. Any other program has no
//! capability, so that its ids stay the caller's.
//!
//! Linux differs: a program has no_new_privs from the start. The set-user-ID bits of programs are for nobody, and
//! execve(2) never gives a capability back.

use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::capability::{
    CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_KILL,
    CAP_LAST_CAP, CAP_LINUX_IMMUTABLE, CAP_MAC_OVERRIDE, CAP_MKNOD, CAP_NET_BIND_SERVICE,
    CAP_SETGID, CAP_SETPCAP, CAP_SETUID, SECBIT_KEEP_CAPS, SECBIT_KEEP_CAPS_LOCKED,
    SECBIT_NO_CAP_AMBIENT_RAISE, SECBIT_NO_SETUID_FIXUP, SECBIT_NOROOT, SECURE_ALL_BITS,
    SECURE_ALL_LOCKS,
};
use kvmlet_hostfs::Ids;

/// Groups of setgroups(2) at most. Linux differs: it takes 65536; these are the host's memory, for every thread.
pub const GROUPS_MAX: usize = 1024;

/// An id that stays as it is (-1).
const KEPT: u32 = u32::MAX;

/// A set of capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caps(u64);

impl Caps {
    /// Those that can be named.
    const VALID: Self = Self((1 << (CAP_LAST_CAP + 1)) - 1);
    /// Those of a root inside: what root has in a container by custom, without those that would have no effect.
    const ROOT: Self = Self::of(&[
        CAP_CHOWN,
        CAP_DAC_OVERRIDE,
        CAP_FOWNER,
        CAP_FSETID,
        CAP_KILL,
        CAP_SETGID,
        CAP_SETUID,
        CAP_SETPCAP,
        CAP_NET_BIND_SERVICE,
    ]);
    /// Those that follow the file system user id (CAP_FS_SET in linux/capability.h).
    const OF_FILES: Self = Self::of(&[
        CAP_CHOWN,
        CAP_MKNOD,
        CAP_DAC_OVERRIDE,
        CAP_DAC_READ_SEARCH,
        CAP_FOWNER,
        CAP_FSETID,
        CAP_LINUX_IMMUTABLE,
        CAP_MAC_OVERRIDE,
    ]);

    const fn of(caps: &[u8]) -> Self {
        let mut bits = 0;
        let mut rest = caps;
        while let [first, others @ ..] = rest {
            bits |= 1u64.wrapping_shl(*first as u32);
            rest = others;
        }
        Self(bits)
    }

    /// From the words of capset(2); what cannot be named is left out.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits & Self::VALID.0)
    }

    /// As the words of capget(2) and /proc/PID/status have it.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// True if it has this one.
    #[must_use]
    pub fn has(self, cap: u8) -> bool {
        self.0 & Self::bit(cap).0 != 0
    }

    fn bit(cap: u8) -> Self {
        Self(1u64.checked_shl(u32::from(cap)).unwrap_or(0))
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn is_within(self, other: Self) -> bool {
        self.without(other) == Self::default()
    }
}

/// The four ids of one kind that a thread has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quad {
    /// Whose it is.
    pub real: u32,
    /// Whose rights it has.
    pub effective: u32,
    /// The one that it may go back to.
    pub saved: u32,
    /// The one for files.
    pub fs: u32,
}

impl Quad {
    fn all(id: u32) -> Self {
        Self {
            real: id,
            effective: id,
            saved: id,
            fs: id,
        }
    }

    fn three(self) -> [u32; 3] {
        [self.real, self.effective, self.saved]
    }

    /// setuid(2)
    fn set(self, id: u32, may: bool) -> Result<Self, Errno> {
        match may {
            true => Ok(Self::all(id)),
            false if id == self.real || id == self.saved => Ok(Self {
                effective: id,
                fs: id,
                ..self
            }),
            false => Err(Errno::EPERM),
        }
    }

    /// setreuid(2)
    fn set_two(self, real: u32, effective: u32, may: bool) -> Result<Self, Errno> {
        let mut new = self;
        if real != KEPT {
            if !may && real != self.real && real != self.effective {
                return Err(Errno::EPERM);
            }
            new.real = real;
        }
        if effective != KEPT {
            if !may && !self.three().contains(&effective) {
                return Err(Errno::EPERM);
            }
            new.effective = effective;
        }
        if real != KEPT || effective != KEPT && effective != self.real {
            new.saved = new.effective;
        }
        new.fs = new.effective;
        Ok(new)
    }

    /// setresuid(2)
    fn set_three(self, wanted: [u32; 3], may: bool) -> Result<Self, Errno> {
        let is_own = |id: &u32| *id == KEPT || self.three().contains(id);
        if !may && !wanted.iter().all(is_own) {
            return Err(Errno::EPERM);
        }
        let [real, effective, saved] = wanted;
        let or = |id: u32, old: u32| if id == KEPT { old } else { id };
        let effective = or(effective, self.effective);
        Ok(Self {
            real: or(real, self.real),
            effective,
            saved: or(saved, self.saved),
            fs: effective,
        })
    }

    /// setfsuid(2), which fails silently.
    fn set_fs(self, id: u32, may: bool) -> Self {
        match id != KEPT && (may || id == self.fs || self.three().contains(&id)) {
            true => Self { fs: id, ..self },
            false => self,
        }
    }
}

/// A change of ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// setuid(2), setgid(2)
    One(u32),
    /// setreuid(2), setregid(2)
    Two(u32, u32),
    /// setresuid(2), setresgid(2)
    Three([u32; 3]),
    /// setfsuid(2), setfsgid(2)
    Fs(u32),
}

impl Change {
    fn apply(self, old: Quad, may: bool) -> Result<Quad, Errno> {
        match self {
            // An id that nobody has.
            Self::One(KEPT) => Err(Errno::EINVAL),
            Self::One(id) => old.set(id, may),
            Self::Two(real, effective) => old.set_two(real, effective, may),
            Self::Three(wanted) => old.set_three(wanted, may),
            Self::Fs(id) => Ok(old.set_fs(id, may)),
        }
    }
}

/// A thread's credentials.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Creds {
    /// User ids.
    pub user: Quad,
    /// Group ids.
    pub group: Quad,
    /// Supplementary groups.
    pub groups: Arc<[u32]>,
    /// Capabilities in force.
    pub effective: Caps,
    /// Those that may be put in force.
    pub permitted: Caps,
    /// Those that execve(2) keeps.
    pub inheritable: Caps,
    /// Those that execve(2) gives to root at most.
    pub bounding: Caps,
    /// Those that execve(2) gives to others.
    pub ambient: Caps,
    /// SECBIT_*.
    pub securebits: u32,
}

impl Creds {
    /// Those that a caller's first program has.
    #[must_use]
    pub fn of_caller(ids: &Ids) -> Self {
        let caps = match ids.uid {
            0 => Caps::ROOT,
            _ => Caps::default(),
        };
        Self {
            user: Quad::all(ids.uid),
            group: Quad::all(ids.gid),
            groups: Arc::clone(&ids.groups),
            effective: caps,
            permitted: caps,
            inheritable: Caps::default(),
            bounding: caps,
            ambient: Caps::default(),
            securebits: 0,
        }
    }

    /// Those that permit nothing, for a thread that is gone.
    #[must_use]
    pub fn nobody() -> Self {
        const NOBODY: u32 = 65_534;
        Self::of_caller(&Ids {
            uid: NOBODY,
            gid: NOBODY,
            groups: Arc::default(),
        })
    }

    /// A user who is in no group but its own.
    #[cfg(test)]
    pub fn of_user(uid: u32) -> Self {
        Self::of_caller(&Ids {
            uid,
            gid: uid,
            groups: Arc::default(),
        })
    }

    /// True if the capability is in force.
    #[must_use]
    pub fn has(&self, cap: u8) -> bool {
        self.effective.has(cap)
    }

    /// The ids that file permissions are checked against.
    #[must_use]
    pub fn for_files(&self) -> Ids {
        Ids {
            uid: self.user.fs,
            gid: self.group.fs,
            groups: Arc::clone(&self.groups),
        }
    }

    /// True if the thread is in a group, for files and for System V IPC (in_group_p in kernel/groups.c).
    #[must_use]
    pub fn is_member(&self, gid: u32) -> bool {
        self.group.fs == gid || self.groups.contains(&gid)
    }

    /// True if the effective user is the real one and so is the group. A program that begins otherwise is told not to
    /// trust its environment (AT_SECURE).
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.user.effective == self.user.real && self.group.effective == self.group.real
    }

    fn is_secure(&self, bit: u32) -> bool {
        self.securebits & bit != 0
    }

    // ---- changes ----

    /// A change of user ids, with what it does to capabilities.
    ///
    /// # Errors
    /// `EPERM`; `EINVAL` for -1 where it does not mean that an id stays.
    pub fn with_user(&self, change: Change) -> Result<Self, Errno> {
        let mut new = self.clone();
        new.user = change.apply(self.user, self.has(CAP_SETUID))?;
        if self.is_secure(SECBIT_NO_SETUID_FIXUP) {
            return Ok(new);
        }
        match change {
            Change::Fs(_) => new.follow_fs(self.user.fs),
            _ => new.follow_user(self.user),
        }
        Ok(new)
    }

    /// A change of group ids.
    ///
    /// # Errors
    /// As [`Creds::with_user`].
    pub fn with_group(&self, change: Change) -> Result<Self, Errno> {
        let group = change.apply(self.group, self.has(CAP_SETGID))?;
        Ok(Self {
            group,
            ..self.clone()
        })
    }

    /// setgroups(2), of a list in any order.
    ///
    /// # Errors
    /// `EPERM`
    pub fn with_groups(&self, mut groups: Vec<u32>) -> Result<Self, Errno> {
        if !self.has(CAP_SETGID) {
            return Err(Errno::EPERM);
        }
        groups.sort_unstable();
        Ok(Self {
            groups: groups.into(),
            ..self.clone()
        })
    }

    /// Capabilities after a change of user ids from `old` (cap_emulate_setxuid in security/commoncap.c).
    fn follow_user(&mut self, old: Quad) {
        let was_root = old.three().contains(&0);
        let is_root = self.user.three().contains(&0);
        if was_root && !is_root {
            if !self.is_secure(SECBIT_KEEP_CAPS) {
                (self.permitted, self.effective) = Default::default();
            }
            self.ambient = Caps::default();
        }
        match (old.effective == 0, self.user.effective == 0) {
            (true, false) => self.effective = Caps::default(),
            (false, true) => self.effective = self.permitted,
            _ => {}
        }
    }

    /// Capabilities after a change of the user id for files (cap_task_fix_setuid).
    fn follow_fs(&mut self, old: u32) {
        match (old == 0, self.user.fs == 0) {
            (true, false) => self.effective = self.effective.without(Caps::OF_FILES),
            (false, true) => {
                let gained = self.permitted.and(Caps::OF_FILES);
                self.effective = self.effective.or(gained);
            }
            _ => {}
        }
    }

    /// capset(2) (cap_capset).
    ///
    /// # Errors
    /// `EPERM`
    pub fn with_caps(
        &self,
        (effective, permitted, inheritable): (Caps, Caps, Caps),
    ) -> Result<Self, Errno> {
        let is_free = self.has(CAP_SETPCAP);
        let own = self.inheritable.or(self.permitted);
        if !is_free && !inheritable.is_within(own)
            || !inheritable.is_within(self.inheritable.or(self.bounding))
            || !permitted.is_within(self.permitted)
            || !effective.is_within(permitted)
        {
            return Err(Errno::EPERM);
        }
        Ok(Self {
            effective,
            permitted,
            inheritable,
            ambient: self.ambient.and(permitted).and(inheritable),
            ..self.clone()
        })
    }

    /// PR_CAPBSET_DROP
    ///
    /// # Errors
    /// `EPERM`; `EINVAL` for what is no capability.
    pub fn without_bound(&self, cap: u64) -> Result<Self, Errno> {
        if !self.has(CAP_SETPCAP) {
            return Err(Errno::EPERM);
        }
        Ok(Self {
            bounding: self.bounding.without(Caps::bit(capability(cap)?)),
            ..self.clone()
        })
    }

    /// PR_CAP_AMBIENT_RAISE
    ///
    /// # Errors
    /// `EPERM`; `EINVAL` for what is no capability.
    pub fn with_ambient(&self, cap: u64) -> Result<Self, Errno> {
        let cap = capability(cap)?;
        let is_held = self.permitted.has(cap) && self.inheritable.has(cap);
        if !is_held || self.is_secure(SECBIT_NO_CAP_AMBIENT_RAISE) {
            return Err(Errno::EPERM);
        }
        Ok(Self {
            ambient: self.ambient.or(Caps::bit(cap)),
            ..self.clone()
        })
    }

    /// PR_CAP_AMBIENT_LOWER
    ///
    /// # Errors
    /// `EINVAL` for what is no capability.
    pub fn without_ambient(&self, cap: u64) -> Result<Self, Errno> {
        Ok(Self {
            ambient: self.ambient.without(Caps::bit(capability(cap)?)),
            ..self.clone()
        })
    }

    /// PR_SET_SECUREBITS
    ///
    /// # Errors
    /// `EPERM` without CAP_SETPCAP, for what is locked, and for what is unknown.
    pub fn with_securebits(&self, wanted: u64) -> Result<Self, Errno> {
        let wanted = u32::try_from(wanted).map_err(|_| Errno::EPERM)?;
        let locks = self.securebits & SECURE_ALL_LOCKS;
        if locks >> 1 & (self.securebits ^ wanted) != 0
            || locks & !wanted != 0
            || wanted & !(SECURE_ALL_LOCKS | SECURE_ALL_BITS) != 0
            || !self.has(CAP_SETPCAP)
        {
            return Err(Errno::EPERM);
        }
        Ok(Self {
            securebits: wanted,
            ..self.clone()
        })
    }

    /// PR_SET_KEEPCAPS
    ///
    /// # Errors
    /// `EINVAL` for more than 1; `EPERM` if it is locked.
    pub fn with_keepcaps(&self, keeps: u64) -> Result<Self, Errno> {
        let bits = match keeps {
            0 => self.securebits & !SECBIT_KEEP_CAPS,
            1 => self.securebits | SECBIT_KEEP_CAPS,
            _ => return Err(Errno::EINVAL),
        };
        if self.is_secure(SECBIT_KEEP_CAPS_LOCKED) {
            return Err(Errno::EPERM);
        }
        Ok(Self {
            securebits: bits,
            ..self.clone()
        })
    }

    /// After execve(2) (cap_bprm_creds_from_file): of a program without capabilities and set-id bits of its own.
    /// Root has what it had, as with no_new_privs; others have what is ambient.
    #[must_use]
    pub fn after_exec(&self) -> Self {
        let has_root = !self.is_secure(SECBIT_NOROOT);
        let is_root = has_root && self.user.effective == 0;
        let of_root = match is_root || has_root && self.user.real == 0 {
            true => self.bounding.or(self.inheritable).and(self.permitted),
            false => Caps::default(),
        };
        let permitted = of_root.or(self.ambient);
        let keep = |ids: Quad| Quad {
            saved: ids.effective,
            fs: ids.effective,
            ..ids
        };
        Self {
            user: keep(self.user),
            group: keep(self.group),
            effective: if is_root { permitted } else { self.ambient },
            permitted,
            securebits: self.securebits & !SECBIT_KEEP_CAPS,
            ..self.clone()
        }
    }

    /// For access(2): those of the real user (access_override_creds in fs/open.c).
    #[must_use]
    pub fn of_real(&self) -> Self {
        let mut new = self.clone();
        (new.user.fs, new.group.fs) = (self.user.real, self.group.real);
        if !self.is_secure(SECBIT_NO_SETUID_FIXUP) {
            new.effective = match self.user.real {
                0 => self.permitted,
                _ => Caps::default(),
            };
        }
        new
    }

    /// True if going from `old` to these makes a process's memory its own (commit_creds in kernel/cred.c).
    #[must_use]
    pub fn closes_memory(&self, old: &Self) -> bool {
        let ids = |one: &Self| {
            let (user, group) = (one.user, one.group);
            (user.effective, group.effective, user.fs, group.fs)
        };
        ids(self) != ids(old) || !self.permitted.is_within(old.permitted)
    }

    // ---- on other processes ----

    /// kill(2)
    #[must_use]
    pub fn may_signal(&self, target: &Self) -> bool {
        let theirs = [target.user.saved, target.user.real];
        self.has(CAP_KILL)
            || theirs.contains(&self.user.effective)
            || theirs.contains(&self.user.real)
    }

    /// sched_setaffinity(2), sched_setscheduler(2) (check_same_owner in kernel/sched/syscalls.c), setpriority(2) and
    /// ioprio_set(2). Linux differs: nobody has CAP_SYS_NICE.
    #[must_use]
    pub fn may_schedule(&self, target: &Self) -> bool {
        [target.user.effective, target.user.real].contains(&self.user.effective)
    }

    /// prlimit(2) (check_prlimit_permission). Linux differs: nobody has CAP_SYS_RESOURCE.
    #[must_use]
    pub fn may_limit(&self, target: &Self) -> bool {
        target.user.three() == [self.user.real; 3] && target.group.three() == [self.group.real; 3]
    }

    /// Looking into another process (__ptrace_may_access in kernel/ptrace.c): by the ids for files, as /proc does, or
    /// by the real ones. Linux differs: nobody has CAP_SYS_PTRACE.
    #[must_use]
    pub fn may_look_into(&self, (target, dumpable): (&Self, bool), by: By) -> bool {
        let (uid, gid, caps) = match by {
            By::Files => (self.user.fs, self.group.fs, self.effective),
            By::Real => (self.user.real, self.group.real, self.permitted),
        };
        let is_own = target.user.three() == [uid; 3] && target.group.three() == [gid; 3];
        let has_no_less = target.permitted.is_within(caps);
        is_own && dumpable && has_no_less
    }
}

/// The ids by which a thread looks into another process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// For files (PTRACE_MODE_FSCREDS).
    Files,
    /// Real (PTRACE_MODE_REALCREDS).
    Real,
}

/// The capability of this number.
///
/// # Errors
/// `EINVAL` if there is none.
pub fn capability(number: u64) -> Result<u8, Errno> {
    let number = u8::try_from(number).ok();
    number
        .filter(|number| *number <= CAP_LAST_CAP)
        .ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests;
