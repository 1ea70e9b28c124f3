//! Names in host trees that are changed themselves, of the program's AF_UNIX sockets.
//!
//! The host has a socket by that name which nobody listens at. Its programs are refused there (ECONNREFUSED), and no
//! connection crosses the border by it. Here it is known which file that is, and so the program's own socket behind it.

use imbl::{OrdMap, Vector};
use kvmlet_hostfs::attr::{Attr, FileTime, S_IFMT, S_IFSOCK};

use crate::id::ObjectId;
use crate::vector;

/// Names of sockets that are closed and were not removed. Of more, the oldest are as the host's own.
const CLOSED_MAX: usize = 1024;

/// A file of the host's. Its number becomes another one's once it is removed, the time of its creation does not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    dev: u64,
    ino: u64,
    btime: Option<FileTime>,
}

impl Place {
    /// The file with these attributes, if it is a socket; `birth` asks when it was created.
    #[must_use]
    pub fn of(attr: &Attr, birth: impl FnOnce() -> Option<FileTime>) -> Option<Self> {
        (attr.kind() == S_IFSOCK).then(|| Self {
            dev: attr.dev,
            ino: attr.ino,
            btime: attr.btime.or_else(birth),
        })
    }
}

/// The state of such a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct HostName {
    /// Nobody's once it is closed.
    socket: Option<ObjectId>,
    /// Permission bits, as the program has set them. The host's file keeps those that it was made with.
    mode: u32,
}

/// All names in host trees that the program has given its sockets and that it has not taken away.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostNames {
    names: OrdMap<Place, HostName>,
    /// Those without a socket, oldest first; some may have been taken away since.
    closed: Vector<Place>,
}

impl HostNames {
    /// A name has been made. It is `socket`'s, or nobody's.
    pub fn add(&mut self, place: Place, socket: Option<ObjectId>, mode: u32) {
        // One that has been taken away may have had the same place.
        vector::retain(&mut self.closed, |closed| *closed != place);
        self.names.insert(place, HostName { socket, mode });
        if socket.is_none() {
            self.note_closed(place);
        }
    }

    fn note_closed(&mut self, place: Place) {
        self.closed.push_back(place);
        while self.closed.len() > CLOSED_MAX {
            if let Some(oldest) = self.closed.pop_front()
                && self
                    .names
                    .get(&oldest)
                    .is_some_and(|name| name.socket.is_none())
            {
                self.names.remove(&oldest);
            }
        }
    }

    /// The socket `id` goes.
    pub(super) fn close(&mut self, place: Place, id: ObjectId) {
        let Some(name) = self.names.get_mut(&place) else {
            return;
        };
        if name.socket == Some(id) {
            name.socket = None;
            self.note_closed(place);
        }
    }

    /// The sockets that have one.
    pub(super) fn sockets(&self) -> impl Iterator<Item = ObjectId> {
        self.names.values().filter_map(|name| name.socket)
    }

    /// The file has lost its last name.
    pub fn forget(&mut self, place: Place) {
        self.names.remove(&place);
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The socket behind a name that the program has made: `Some(None)` for one that is closed.
    #[must_use]
    pub fn socket(&self, place: Place) -> Option<Option<ObjectId>> {
        self.names.get(&place).map(|name| name.socket)
    }

    /// Sets the permission bits of a name that the program has made; `false` for another.
    pub fn set_mode(&mut self, place: Place, mode: u32) -> bool {
        let name = self.names.get_mut(&place);
        name.map(|name| name.mode = mode).is_some()
    }

    /// Attributes of the host's as the program sees them.
    #[must_use]
    pub fn shown(&self, attr: Attr, birth: impl FnOnce() -> Option<FileTime>) -> Attr {
        if self.names.is_empty() {
            return attr;
        }
        let place = Place::of(&attr, birth);
        let name = place.and_then(|place| self.names.get(&place));
        let mode = name.map_or(attr.mode, |name| attr.mode & S_IFMT | name.mode);
        Attr { mode, ..attr }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(ino: u64) -> Place {
        let attr = Attr {
            ino,
            mode: S_IFSOCK | 0o755,
            ..Attr::default()
        };
        Place::of(&attr, || None).unwrap()
    }

    #[test]
    fn names_of_closed_sockets_are_bounded() {
        let mut names = HostNames::default();
        names.add(place(0), Some(ObjectId(1)), 0o700);
        for ino in 1..5000 {
            names.add(place(ino), Some(ObjectId(2)), 0o700);
            names.close(place(ino), ObjectId(2));
        }
        assert_eq!(names.socket(place(0)), Some(Some(ObjectId(1))));
        assert_eq!(names.socket(place(1)), None);
        assert_eq!(names.socket(place(4999)), Some(None));
        assert_eq!(names.names.len(), CLOSED_MAX + 1);
        for ino in 1..5000 {
            names.add(place(ino), None, 0);
            names.forget(place(ino));
        }
        assert!(names.closed.len() <= CLOSED_MAX);
    }

    #[test]
    fn a_name_that_another_socket_has_stays_open() {
        let mut names = HostNames::default();
        names.add(place(1), Some(ObjectId(1)), 0o700);
        names.forget(place(1));
        names.add(place(1), Some(ObjectId(2)), 0o700);
        names.close(place(1), ObjectId(1));
        assert_eq!(names.socket(place(1)), Some(Some(ObjectId(2))));
    }

    #[test]
    fn only_the_file_that_was_made_is_shown_otherwise() {
        let mut names = HostNames::default();
        names.add(place(1), None, 0o700);
        let attr = |ino, mode| Attr {
            ino,
            mode,
            ..Attr::default()
        };
        let shown = |attr| names.shown(attr, || None).mode;
        assert_eq!(shown(attr(1, S_IFSOCK | 0o755)), S_IFSOCK | 0o700);
        assert_eq!(shown(attr(2, S_IFSOCK | 0o755)), S_IFSOCK | 0o755);
        assert_eq!(shown(attr(1, 0o100_644)), 0o100_644);
        let later = Some(FileTime { sec: 1, nsec: 0 });
        assert_eq!(
            names.shown(attr(1, S_IFSOCK | 0o755), || later).mode,
            S_IFSOCK | 0o755
        );
    }
}
