//! The name that a program has looked at last. Programs that read many files look at each and then open
//! it. What the look has told need not be asked of the host again.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::attr::{Attr, S_IFDIR, S_IFREG};
use crate::hostfd::HostFd;

/// For how long a look is believed: a few exits from a VM. Only whether to open is taken from it. What has
/// been opened is looked at again.
const FRESH: Duration = Duration::from_micros(200);

/// A regular file or directory that has been found in an open directory.
#[derive(Debug, Default)]
pub struct LookupCache(Option<Look>);

#[derive(Debug)]
struct Look {
    /// Not held open by this.
    dir: Weak<HostFd>,
    path: Vec<u8>,
    attr: Attr,
    at: Instant,
}

impl LookupCache {
    /// Directory `dir` has `attr` by the name that `path` ends in, `now`.
    pub fn note(&mut self, dir: &Arc<HostFd>, path: &[u8], attr: &Attr, now: Instant) {
        if !matches!(attr.kind(), S_IFREG | S_IFDIR) {
            self.0 = None;
            return;
        }
        let mut kept = self.0.take().map(|look| look.path).unwrap_or_default();
        kept.clear();
        kept.extend_from_slice(path);
        self.0 = Some(Look {
            dir: Arc::downgrade(dir),
            path: kept,
            attr: *attr,
            at: now,
        });
    }

    /// The attributes that the last look has told, if it was this one, a moment before `now`. They are
    /// told once.
    pub fn take(&mut self, dir: &Arc<HostFd>, path: &[u8], now: Instant) -> Option<Attr> {
        let look = self.0.take()?;
        // The address cannot be another one's: a weak reference keeps the place.
        let same = std::ptr::eq(look.dir.as_ptr(), Arc::as_ptr(dir)) && look.path == path;
        (same && now.duration_since(look.at) < FRESH).then_some(look.attr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::S_IFIFO;

    fn directory() -> Arc<HostFd> {
        let fd = std::fs::File::open("/").unwrap();
        Arc::new(HostFd::given(fd.into()))
    }

    fn attr(kind: u32) -> Attr {
        Attr {
            mode: kind | 0o644,
            ..Attr::default()
        }
    }

    #[test]
    fn a_look_is_told_once_and_for_its_own_name() {
        let (dir, other) = (directory(), directory());
        let file = attr(S_IFREG);
        let (mut last, now) = (LookupCache::default(), Instant::now());
        last.note(&dir, b"/a/b", &file, now);
        assert_eq!(last.take(&dir, b"/a/b", now), Some(file));
        assert_eq!(last.take(&dir, b"/a/b", now), None);
        last.note(&dir, b"/a/b", &file, now);
        assert_eq!(last.take(&dir, b"/a/c", now), None);
        last.note(&dir, b"/a/b", &file, now);
        assert_eq!(last.take(&other, b"/a/b", now), None);
    }

    #[test]
    fn what_cannot_be_opened_is_not_told() {
        let dir = directory();
        let (mut last, now) = (LookupCache::default(), Instant::now());
        last.note(&dir, b"/a", &attr(S_IFREG), now);
        last.note(&dir, b"/a", &attr(S_IFIFO), now);
        assert_eq!(last.take(&dir, b"/a", now), None);
    }

    #[test]
    fn a_look_is_soon_forgotten() {
        let dir = directory();
        let (mut last, now) = (LookupCache::default(), Instant::now());
        last.note(&dir, b"/a", &attr(S_IFREG), now);
        assert_eq!(last.take(&dir, b"/a", now + FRESH), None);
    }

    #[test]
    fn a_directory_that_was_closed_is_not_kept_open() {
        let dir = directory();
        let (mut last, now) = (LookupCache::default(), Instant::now());
        last.note(&dir, b"/a", &attr(S_IFREG), now);
        assert_eq!(Arc::strong_count(&dir), 1);
    }
}
