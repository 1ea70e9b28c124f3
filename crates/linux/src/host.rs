//! The part of a sandbox that is not a value: host descriptors, the policy in force, limits, reports.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use kvmlet_abi::Errno;
use kvmlet_budget::{Exhausted, Share};
use kvmlet_hostfs::attr::Attr;
use kvmlet_hostfs::locks::HostLocks;
use kvmlet_hostfs::terminal::Settings;
use kvmlet_hostfs::{
    Credentials, Directories, HostFd, HostFile, HostKind, Listing, LookupCache, OpenFiles, Roots,
};
use kvmlet_hostnet::Access;
use kvmlet_policy::Policy;

use crate::budget::Budget;
use crate::clock::{GuestClock, HostClocks};
use crate::console::Console;
pub use crate::id::HostId;
use crate::net::outside::Outside;
use crate::report::Report;
use crate::vfs::access::Searchable;
use crate::vfs::deferred::Deferred;

/// Memory for the names of listed directories, in bytes.
const LISTINGS_MAX_BYTES: usize = 4 << 20;

/// A host descriptor that the kernel value names.
#[derive(Clone, Debug)]
pub struct Referenced {
    /// The descriptor, and what we know of it.
    pub file: HostFile,
    /// Open descriptions and mappings of the kernel value that name it.
    pub refs: u32,
}

/// The place that a captured stream's bytes go to.
#[derive(Debug, Default)]
pub struct Captured {
    /// Bytes written so far to standard output.
    pub stdout: Vec<u8>,
    /// Bytes written so far to standard error.
    pub stderr: Vec<u8>,
    /// Limit on the sum of both, in bytes, without what is streamed.
    pub limit_bytes: u64,
    /// The streams whose bytes go on to the caller while the program runs: standard output and standard error.
    pub streamed: [bool; 2],
}

/// More bytes than this of a streamed stream go to the caller before the program goes on.
pub const STREAMED_BATCH_BYTES: usize = 1 << 20;
/// Bytes of a streamed stream that are held at most.
const STREAMED_MAX_BYTES: usize = 16 << 20;

impl Captured {
    /// The stream of a descriptor, and the bytes that it may still take.
    pub(crate) fn stream(&mut self, number: u8) -> (&mut Vec<u8>, usize) {
        let held = [&self.stdout, &self.stderr].into_iter().zip(self.streamed);
        let held = held.filter(|(_, is_streamed)| !is_streamed);
        let held_bytes = held.fold(0u64, |sum, (bytes, _)| {
            sum.saturating_add(bytes.len() as u64)
        });
        let room = self.limit_bytes.saturating_sub(held_bytes);
        let [of_stdout, of_stderr] = self.streamed;
        let (stream, is_streamed) = match number {
            2 => (&mut self.stderr, of_stderr),
            _ => (&mut self.stdout, of_stdout),
        };
        let room = match is_streamed {
            true => STREAMED_MAX_BYTES.saturating_sub(stream.len()),
            false => usize::try_from(room).unwrap_or(usize::MAX),
        };
        (stream, room)
    }

    /// True if the caller is to be given bytes before the program goes on.
    #[must_use]
    pub fn is_due(&self) -> bool {
        let [of_stdout, of_stderr] = self.streamed;
        of_stdout && self.stdout.len() > STREAMED_BATCH_BYTES
            || of_stderr && self.stderr.len() > STREAMED_BATCH_BYTES
    }
}

/// The host side of one sandbox.
#[derive(Debug)]
pub struct Host {
    /// Open host descriptors.
    pub files: BTreeMap<HostId, Referenced>,
    /// Next unused [`HostId`].
    pub next_id: u64,
    /// The number of them that this sandbox is charged for.
    pub share: Arc<Share>,
    /// Regular files among them, to be found again.
    pub open_files: OpenFiles,
    /// Locks on files that are changed on the host.
    pub locks: HostLocks,
    /// The rules in force, which forks share.
    pub policy: Arc<Policy>,
    /// Directory descriptors that host paths are opened from.
    pub roots: Arc<Roots>,
    /// Who the caller is.
    pub credentials: Credentials,
    /// Host directories known to be searchable, where the host would not refuse it.
    pub searchable: Searchable,
    /// Things that a call has looked at, for the open that may follow.
    pub lookup_cache: LookupCache,
    /// Directories of overlays that were looked at last.
    pub lower_dirs: Directories,
    /// Work that is done as soon as the program has its answer.
    pub deferred: Deferred,
    /// Settings of the caller's terminals that the program has changed.
    pub settings: Settings,
    /// The caller's terminal, if a pseudo-terminal stands for it.
    pub console: Option<Console>,
    /// Connections that lead out of the sandbox.
    pub outside: Outside,
    /// Captured output.
    pub captured: Captured,
    /// Denials, unsupported things met, trace lines.
    pub report: Report,
    /// XSAVE features that the guest uses (XCR0).
    pub xfeatures: u64,
    /// Length of a standard-format XSAVE image with those features, in bytes.
    pub xstate_len: usize,
    /// Guest time.
    pub clock: Box<dyn GuestClock>,
    /// The time of this process, by which what a call has looked at goes out of date.
    pub now: fn() -> Instant,
    /// The time that the work at hand may take.
    pub budget: Budget,
}

impl Host {
    /// The host side of a new sandbox under `policy`, for the calling process's user.
    ///
    /// # Errors
    /// The host's error when `/` cannot be opened.
    pub fn new(policy: Policy, output_limit_bytes: u64) -> Result<Self, Errno> {
        let roots = Arc::new(Roots::open(&policy)?);
        Ok(Self {
            files: BTreeMap::new(),
            next_id: 1,
            share: Arc::default(),
            open_files: OpenFiles::default(),
            locks: HostLocks::default(),
            policy: Arc::new(policy),
            roots,
            credentials: kvmlet_hostfs::caller(),
            searchable: Searchable::default(),
            lookup_cache: LookupCache::default(),
            lower_dirs: Directories::default(),
            deferred: Deferred::default(),
            settings: Settings::default(),
            console: None,
            outside: Outside::default(),
            captured: Captured {
                limit_bytes: output_limit_bytes,
                ..Captured::default()
            },
            report: Report::default(),
            xfeatures: 0,
            xstate_len: 0,
            clock: Box::new(HostClocks),
            now: Instant::now,
            budget: Budget::default(),
        })
    }

    /// Gives it what has been opened for its network.
    pub fn set_access(&mut self, access: Arc<Access>) {
        self.outside = Outside::new(access);
    }

    /// True if the program may reach something outside, or be reached from there.
    #[must_use]
    pub fn has_network(&self) -> bool {
        let has_sockets = self.policy.sockets().next().is_some();
        !self.policy.net().is_empty() || has_sockets || self.outside.is_published()
    }

    /// The host side of a fork: the same descriptors, rules and limits, nothing captured or reported
    /// yet. Its clock is the host's until it is given one.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            files: self.files.clone(),
            next_id: self.next_id,
            share: Arc::default(),
            open_files: OpenFiles::default(),
            locks: HostLocks::default(),
            policy: Arc::clone(&self.policy),
            roots: Arc::clone(&self.roots),
            credentials: self.credentials.clone(),
            searchable: self.searchable.clone(),
            lookup_cache: LookupCache::default(),
            lower_dirs: Directories::default(),
            deferred: Deferred::default(),
            settings: Settings::default(),
            console: None,
            outside: self.outside.fork(),
            captured: Captured {
                limit_bytes: self.captured.limit_bytes,
                ..Captured::default()
            },
            report: Report {
                trace: self.report.trace,
                ..Report::default()
            },
            xfeatures: self.xfeatures,
            xstate_len: self.xstate_len,
            clock: Box::new(HostClocks),
            now: self.now,
            budget: Budget::default(),
        }
    }

    /// Puts descriptors, captured output and reports back to those of `frozen`, which this host side
    /// was forked from. What depends on the host alone, as its clock, stays.
    pub fn reset(&mut self, frozen: &Self) {
        // A program mostly keeps what it had open.
        if !self.files.keys().eq(frozen.files.keys()) {
            self.files.retain(|id, _| frozen.files.contains_key(id));
        }
        for (id, file) in &frozen.files {
            match self.files.get_mut(id) {
                Some(ours) if ours.file.same_objects(&file.file) => {
                    ours.file.kind = file.file.kind;
                    ours.refs = file.refs;
                }
                _ => {
                    self.files.insert(*id, file.clone());
                }
            }
        }
        self.next_id = frozen.next_id;
        self.locks = HostLocks::default();
        self.lookup_cache = LookupCache::default();
        self.lower_dirs = Directories::default();
        self.deferred = Deferred::default();
        self.settings.restore();
        self.outside.reset(&frozen.outside);
        self.captured.stdout.clear();
        self.captured.stderr.clear();
        self.report.reset();
    }

    /// Registers a descriptor that the caller gave, with one reference.
    pub fn insert(&mut self, fd: OwnedFd, kind: HostKind) -> HostId {
        self.insert_stream(fd, None, kind)
    }

    /// Registers what has been opened for the guest, with one reference.
    ///
    /// # Errors
    /// `ENFILE`, recorded, when sandboxes have all the descriptors that they may have; it is closed.
    pub fn insert_opened(&mut self, fd: OwnedFd, kind: HostKind) -> Result<HostId, Errno> {
        match HostFd::of_guest(fd, &self.share) {
            Ok(fd) => Ok(self.register(fd, None, kind)),
            Err(exhausted) => Err(self.too_many_open(exhausted)),
        }
    }

    /// Charges the sandbox for what has been opened for it.
    ///
    /// # Errors
    /// As [`Host::insert_opened`].
    pub fn charge_opened(&mut self, fd: OwnedFd) -> Result<Arc<HostFd>, Errno> {
        match HostFd::of_guest(fd, &self.share) {
            Ok(fd) => Ok(Arc::new(fd)),
            Err(exhausted) => Err(self.too_many_open(exhausted)),
        }
    }

    fn too_many_open(&mut self, exhausted: Exhausted) -> Errno {
        let what = format!("opening a file: {exhausted}");
        self.report.deny(what, Errno::ENFILE, exhausted.into());
        Errno::ENFILE
    }

    /// Uses one descriptor for all that this sandbox has open on the regular file that `id`, just opened,
    /// is on. It has `attr`.
    pub fn share_file(&mut self, id: HostId, attr: &Attr) {
        if let Some(Referenced { file, .. }) = self.files.get_mut(&id)
            && file.kind == HostKind::File
        {
            let own = Arc::clone(&file.fd);
            file.fd = self.open_files.share(own, attr, &self.share);
        }
    }

    /// As [`Host::insert`], for an inherited stream with a description of our own.
    pub fn insert_stream(&mut self, fd: OwnedFd, own: Option<OwnedFd>, kind: HostKind) -> HostId {
        self.register(HostFd::given(fd), own.map(HostFd::given), kind)
    }

    fn register(&mut self, fd: HostFd, own: Option<HostFd>, kind: HostKind) -> HostId {
        let id = HostId(self.next_id);
        self.next_id = self.next_id.saturating_add(1);
        self.files.insert(
            id,
            Referenced {
                file: HostFile {
                    fd: Arc::new(fd),
                    own: own.map(Arc::new),
                    kind,
                    listing: None,
                },
                refs: 1,
            },
        );
        id
    }

    /// The descriptor of `id`.
    ///
    /// # Errors
    /// `EBADF` if it is gone: it was not what it was taken for when it was opened
    /// ([`Host::finish_call`]).
    pub fn get(&self, id: HostId) -> Result<&HostFile, Errno> {
        let found = self.files.get(&id).ok_or(Errno::EBADF)?;
        Ok(&found.file)
    }

    /// A share of the descriptor of `id`.
    ///
    /// # Errors
    /// As [`Host::get`].
    pub fn fd(&self, id: HostId) -> Result<Arc<HostFd>, Errno> {
        Ok(Arc::clone(&self.get(id)?.fd))
    }

    /// Adds a reference.
    pub fn incref(&mut self, id: HostId) {
        if let Some(file) = self.files.get_mut(&id) {
            file.refs = file.refs.saturating_add(1);
        }
    }

    /// Drops a reference; the last one has the descriptor closed by [`Host::finish_call`].
    pub fn decref(&mut self, id: HostId) {
        let Some(file) = self.files.get_mut(&id) else {
            return;
        };
        file.refs = file.refs.saturating_sub(1);
        if file.refs == 0
            && let Some(Referenced { file, .. }) = self.files.remove(&id)
        {
            self.deferred.close(file.fd);
            if let Some(own) = file.own {
                self.deferred.close(own);
            }
        }
    }

    /// Keeps a directory's names for the next call. Over the limit on all of them the others are
    /// dropped, and read again when they are needed.
    pub fn keep_listing(&mut self, id: HostId, listing: &Arc<Listing>) {
        let files = self.files.values().map(|file| &file.file);
        let kept = files.filter_map(|file| file.listing.as_ref());
        let size = kept.fold(listing.size_bytes(), |sum, kept| {
            sum.saturating_add(kept.size_bytes())
        });
        if size > LISTINGS_MAX_BYTES {
            self.files
                .values_mut()
                .for_each(|file| file.file.listing = None);
        }
        if let Some(Referenced { file, .. }) = self.files.get_mut(&id) {
            file.listing = Some(Arc::clone(listing));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_puts_descriptors_back() {
        let policy = Policy::with_working_directory(b"/usr").unwrap();
        let mut frozen = Host::new(policy, 0).unwrap();
        let root = || frozen.roots.locate(b"/");
        let mut roots = [0; 4].map(|_| root().unwrap().0).into_iter();
        let mut open = |host: &mut Host, kind| host.insert(roots.next().unwrap(), kind);
        let changed = open(&mut frozen, HostKind::Directory);
        let closed = open(&mut frozen, HostKind::Directory);
        let listed = open(&mut frozen, HostKind::Directory);
        frozen.keep_listing(listed, &Arc::new(Listing::default()));
        let mut host = frozen.fork();
        host.incref(changed);
        host.keep_listing(changed, &Arc::new(Listing::default()));
        host.files.remove(&closed);
        host.keep_listing(listed, &Arc::new(Listing::default()));
        let opened = open(&mut host, HostKind::File);
        host.reset(&frozen);
        assert!(host.get(opened).is_err());
        assert_eq!(
            (host.files.len(), host.next_id),
            (frozen.files.len(), frozen.next_id)
        );
        for (id, file) in &frozen.files {
            let ours = host.files.get(id).unwrap();
            assert!(ours.file.same_objects(&file.file), "{id:?}");
            assert_eq!((ours.file.kind, ours.refs), (file.file.kind, file.refs));
        }
    }
}
