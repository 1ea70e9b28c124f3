//! Ids, keys and permissions of objects of System V IPC (ipc/util.c).

use imbl::OrdMap;
use kvmlet_abi::Errno;
use kvmlet_abi::linux::ipc::{IPC_PRIVATE, Ipc64Perm};

use crate::creds::Creds;

/// Bits of an id that hold the index; those above hold the sequence number (IPCMNI_SHIFT).
const INDEX_BITS: u32 = 15;
/// Sequence numbers end below this (ipcid_seq_max).
const SEQ_END: u32 = (i32::MAX >> INDEX_BITS).cast_unsigned();
/// Indexes that are gone through before one is used again, at least (ipc_min_cycle).
const CYCLE_MIN: u32 = 64;
/// Permission bits of an object.
pub const MODE_BITS: u32 = 0o777;

/// Key, owner and permissions of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Perm {
    /// Its key; IPC_PRIVATE for none.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Creator.
    pub cuid: u32,
    /// Creator's group.
    pub cgid: u32,
    /// Permission bits, and SHM_DEST and SHM_LOCKED of a segment.
    pub mode: u32,
    /// Sequence number of its id.
    pub seq: u32,
}

impl Perm {
    /// Those of an object that `who` makes. Its id comes later.
    #[must_use]
    pub fn new(who: &Creds, key: i32, mode: u32) -> Self {
        let (uid, gid) = (who.user.effective, who.group.effective);
        Self {
            key,
            uid,
            gid,
            cuid: uid,
            cgid: gid,
            mode: mode & MODE_BITS,
            seq: 0,
        }
    }

    /// Checks the permission bits of any class in `wanted` (ipcperms). Linux differs: nobody has CAP_IPC_OWNER.
    ///
    /// # Errors
    /// `EACCES`
    pub fn check(&self, who: &Creds, wanted: u32) -> Result<(), Errno> {
        let wanted = wanted >> 6 | wanted >> 3 | wanted;
        let granted = if self.is_owned_by(who) {
            self.mode >> 6
        } else if who.is_member(self.cgid) || who.is_member(self.gid) {
            self.mode >> 3
        } else {
            self.mode
        };
        if wanted & !granted & 7 == 0 {
            Ok(())
        } else {
            Err(Errno::EACCES)
        }
    }

    fn is_owned_by(&self, who: &Creds) -> bool {
        [self.cuid, self.uid].contains(&who.user.effective)
    }

    /// Checks that `who` may change or remove the object. Linux differs: nobody has CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// `EPERM`
    pub fn check_owner(&self, who: &Creds) -> Result<(), Errno> {
        if self.is_owned_by(who) {
            Ok(())
        } else {
            Err(Errno::EPERM)
        }
    }

    /// IPC_SET: owner and permission bits (ipc_update_perm).
    ///
    /// # Errors
    /// `EINVAL` for ids that nobody has.
    pub fn update(&mut self, new: &Ipc64Perm) -> Result<(), Errno> {
        if new.uid == u32::MAX || new.gid == u32::MAX {
            return Err(Errno::EINVAL);
        }
        (self.uid, self.gid) = (new.uid, new.gid);
        self.mode = self.mode & !MODE_BITS | new.mode & MODE_BITS;
        Ok(())
    }

    /// As the structure that IPC_STAT tells.
    #[must_use]
    pub fn to_struct(self) -> Ipc64Perm {
        Ipc64Perm {
            key: self.key,
            uid: self.uid,
            gid: self.gid,
            cuid: self.cuid,
            cgid: self.cgid,
            mode: self.mode,
            seq: u16::try_from(self.seq).unwrap_or(0),
            ..Ipc64Perm::default()
        }
    }
}

/// An object with its permissions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry<T> {
    /// Key, owner, permissions.
    pub perm: Perm,
    /// The object.
    pub object: T,
}

/// The objects of one kind, by id and by key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ids<T: Clone> {
    entries: OrdMap<u32, Entry<T>>,
    keys: OrdMap<i32, u32>,
    last: Option<u32>,
    next: u32,
    seq: u32,
}

impl<T: Clone> Default for Ids<T> {
    fn default() -> Self {
        Self {
            entries: OrdMap::new(),
            keys: OrdMap::new(),
            last: None,
            next: 0,
            seq: 0,
        }
    }
}

/// The index in an id.
fn index_of(id: i32) -> u32 {
    id.cast_unsigned() & ((1 << INDEX_BITS) - 1)
}

fn id_of(index: u32, seq: u32) -> i32 {
    (seq << INDEX_BITS | index).cast_signed()
}

impl<T: Clone> Ids<T> {
    /// Adds an object, of which there may be `most`; answers its id.
    ///
    /// # Errors
    /// `ENOSPC` if there are that many.
    pub fn add(&mut self, mut perm: Perm, object: T, most: u32) -> Result<i32, Errno> {
        let used = self.len();
        if used >= most {
            return Err(Errno::ENOSPC);
        }
        let end = (used.saturating_mul(3) / 2).max(CYCLE_MIN).min(most);
        let free = |from: u32, to: u32| {
            let mut free = from;
            for taken in self.entries.range(from..to).map(|(index, _)| *index) {
                if taken != free {
                    break;
                }
                free = free.saturating_add(1);
            }
            (free < to).then_some(free)
        };
        let after = self.next.min(end);
        let index = free(after, end).or_else(|| free(0, end));
        let index = index.ok_or(Errno::ENOSPC)?;
        if self.last.is_some_and(|last| index <= last) {
            self.seq = self.seq.saturating_add(1) % SEQ_END;
        }
        self.last = Some(index);
        self.next = index.saturating_add(1);
        perm.seq = self.seq;
        if perm.key != IPC_PRIVATE {
            self.keys.insert(perm.key, index);
        }
        self.entries.insert(index, Entry { perm, object });
        Ok(id_of(index, perm.seq))
    }

    /// The id of the object with a key.
    #[must_use]
    pub fn by_key(&self, key: i32) -> Option<i32> {
        let index = *self.keys.get(&key)?;
        Some(id_of(index, self.entries.get(&index)?.perm.seq))
    }

    /// The object of an id.
    ///
    /// # Errors
    /// `EINVAL` if there is none.
    pub fn get(&self, id: i32) -> Result<&Entry<T>, Errno> {
        let entry = self.entries.get(&index_of(id)).ok_or(Errno::EINVAL)?;
        if id < 0 || id_of(index_of(id), entry.perm.seq) != id {
            return Err(Errno::EINVAL);
        }
        Ok(entry)
    }

    /// As [`Ids::get`], to be changed.
    ///
    /// # Errors
    /// As [`Ids::get`].
    pub fn get_mut(&mut self, id: i32) -> Result<&mut Entry<T>, Errno> {
        self.get(id)?;
        self.entries.get_mut(&index_of(id)).ok_or(Errno::EINVAL)
    }

    /// The id of the object at the index that an id has, whatever the rest of it (SHM_STAT).
    ///
    /// # Errors
    /// `EINVAL`
    pub fn at_index(&self, id: i32) -> Result<i32, Errno> {
        let index = index_of(id);
        let entry = self.entries.get(&index).ok_or(Errno::EINVAL)?;
        Ok(id_of(index, entry.perm.seq))
    }

    /// Takes an object out.
    pub fn remove(&mut self, id: i32) -> Option<Entry<T>> {
        self.get(id).ok()?;
        self.hide(id);
        self.entries.remove(&index_of(id))
    }

    /// Takes an object's key away: it is found by its id only.
    pub fn hide(&mut self, id: i32) {
        let Ok(entry) = self.get_mut(id) else {
            return;
        };
        let key = core::mem::replace(&mut entry.perm.key, IPC_PRIVATE);
        if key != IPC_PRIVATE {
            self.keys.remove(&key);
        }
    }

    /// Number of objects.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// The highest index in use, or 0: what IPC_INFO answers.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.entries
            .get_max()
            .map_or(0, |(index, _)| u64::from(*index))
    }

    /// All objects with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (i32, &Entry<T>)> {
        self.entries
            .iter()
            .map(|(index, entry)| (id_of(*index, entry.perm.seq), entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn perm(key: i32) -> Perm {
        Perm {
            key,
            uid: 1,
            gid: 2,
            cuid: 1,
            cgid: 2,
            mode: 0o640,
            seq: 0,
        }
    }

    #[test]
    fn an_index_is_used_again_late_and_under_another_id() {
        let mut ids: Ids<u8> = Ids::default();
        let first = ids.add(perm(7), 0, 100).unwrap();
        assert_eq!((first, ids.by_key(7)), (0, Some(0)));
        assert!(ids.remove(first).is_some());
        assert_eq!(ids.get(first).map(|_| ()), Err(Errno::EINVAL));
        for number in 1..64 {
            let id = ids.add(perm(0), 0, 100).unwrap();
            assert_eq!(id, number);
            ids.remove(id).unwrap();
        }
        let again = ids.add(perm(7), 1, 100).unwrap();
        assert_eq!(again, 1 << 15);
        assert_eq!(ids.get(first).map(|_| ()), Err(Errno::EINVAL));
        assert_eq!(ids.get(-5).map(|_| ()), Err(Errno::EINVAL));
        assert_eq!(ids.get(i32::MIN).map(|_| ()), Err(Errno::EINVAL));
        assert_eq!(ids.at_index(first), Ok(again));
        assert_eq!(ids.by_key(7), Some(again));
        ids.hide(again);
        assert_eq!(ids.by_key(7), None);
    }

    #[test]
    fn there_are_as_many_as_may_be() {
        let mut ids: Ids<u8> = Ids::default();
        for _ in 0..200 {
            ids.add(perm(0), 0, 200).unwrap();
        }
        assert_eq!(ids.add(perm(0), 0, 200), Err(Errno::ENOSPC));
        let gone = ids.at_index(150).unwrap();
        ids.remove(gone).unwrap();
        let id = ids.add(perm(0), 0, 200).unwrap();
        assert_eq!(index_of(id), 150);
        assert_eq!((ids.len(), ids.highest()), (200, 199));
    }

    #[test]
    fn permissions_are_those_of_one_class() {
        let who = |uid, gid| {
            Creds::of_caller(&kvmlet_hostfs::Ids {
                uid,
                gid,
                groups: std::sync::Arc::default(),
            })
        };
        let perm = perm(1);
        assert_eq!(perm.check(&who(1, 9), 0o600), Ok(()));
        assert_eq!(perm.check(&who(1, 9), 0o700), Err(Errno::EACCES));
        assert_eq!(perm.check(&who(3, 2), 0o400), Ok(()));
        assert_eq!(perm.check(&who(3, 2), 0o200), Err(Errno::EACCES));
        assert_eq!(perm.check(&who(3, 9), 0o004), Err(Errno::EACCES));
        assert_eq!(perm.check_owner(&who(3, 2)), Err(Errno::EPERM));
    }
}
