//! System calls that the host makes as one of the program's threads, and files that it reaches by them.
//!
//! Their arguments lie in memory of that thread's, so that each has the checks, charges and errors that it has for any
//! program. In a box the thread is the holder's, which has such memory for good. Of another program it is the first
//! one, and gets that memory for a moment.

use kvmlet_abi::linux::Stat;
use kvmlet_abi::linux::fcntl::AT_FDCWD;
use kvmlet_abi::{Errno, Gva};

use super::Personality;
use crate::fd::OpenFlags;
use crate::kernel::Tid;
use crate::outcome::{CallState, Outcome, Resume, SysResult, Wait};
use crate::sched::Call;
use crate::syscalls::table;

/// The place of the holder's own memory for arguments.
const HOLDER_MEMORY: u64 = 0x10_0000;
/// Offset of the data behind two paths.
const DATA_OFFSET: u64 = 2 * PATH_BYTES as u64;
/// Size of the memory for arguments.
const MEMORY_BYTES: u64 = DATA_OFFSET + DATA_BYTES as u64;
/// PATH_MAX, with the null byte.
const PATH_BYTES: usize = 4096;
/// Bytes that one call moves at most.
const DATA_BYTES: usize = 128 << 10;
/// Bytes that one request of the host's moves at most: commands run in between.
const MOVED_BYTES_MAX: usize = 1 << 20;
/// PROT_READ | PROT_WRITE, and MAP_PRIVATE | MAP_ANONYMOUS (mmap(2)).
const PROT_READ_WRITE: u64 = 3;
const PRIVATE: u64 = 0x22;
/// Bytes of names that are listed at most.
const NAMES_BYTES_MAX: usize = 64 << 20;

/// Numbers of the calls that are made (arch/x86/entry/syscalls/syscall_64.tbl).
pub(super) mod nr {
    pub const READ: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const OPEN: u64 = 2;
    pub const CLOSE: u64 = 3;
    pub const STAT: u64 = 4;
    pub const FSTAT: u64 = 5;
    pub const LSTAT: u64 = 6;
    pub const MMAP: u64 = 9;
    pub const MUNMAP: u64 = 11;
    pub const FCNTL: u64 = 72;
    pub const CHDIR: u64 = 80;
    pub const RENAME: u64 = 82;
    pub const MKDIR: u64 = 83;
    pub const RMDIR: u64 = 84;
    pub const UNLINK: u64 = 87;
    pub const GETDENTS64: u64 = 217;
    pub const INOTIFY_ADD_WATCH: u64 = 254;
    pub const INOTIFY_RM_WATCH: u64 = 255;
    pub const FCHMODAT: u64 = 268;
    pub const PIPE2: u64 = 293;
    pub const INOTIFY_INIT1: u64 = 294;
}

/// The thread that makes the host's calls, and the place of its memory for their arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Acting {
    pub tid: Tid,
    memory: u64,
}

/// The attributes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileInfo {
    /// Type and permissions.
    pub mode: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Last modification: seconds and nanoseconds.
    pub mtime: (u64, u64),
}

/// An entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its name.
    pub name: Vec<u8>,
    /// True for a directory, not for a link to one.
    pub is_directory: bool,
}

impl From<Stat> for FileInfo {
    fn from(stat: Stat) -> Self {
        Self {
            mode: stat.st_mode,
            size_bytes: stat.st_size.unsigned_abs(),
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
        }
    }
}

/// Says if the attributes of a symbolic link are its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Links {
    /// They are those of what it leads to.
    Followed,
    /// They are its own.
    Shown,
}

impl Personality {
    /// The memory of the holder's that arguments lie in: its place and its size.
    pub(super) const HOLDER_MEMORY: (u64, u64) = (HOLDER_MEMORY, MEMORY_BYTES);

    /// The thread that acts for the host.
    pub(super) fn acting(&self) -> Acting {
        self.acting.unwrap_or(Acting {
            tid: Tid(self.kernel.main.0),
            memory: HOLDER_MEMORY,
        })
    }

    /// Lets the host make calls as a program that is no box: as its first process, or another one if that has ended.
    /// The program does not run meanwhile. Descriptors that are opened are among its own.
    ///
    /// # Errors
    /// Those of the work; `ENOMEM`; `ESRCH` if nothing of it is left.
    pub fn as_program<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let threads = &self.kernel.threads;
        let first = Tid(self.kernel.main.0);
        let tid = match threads.contains_key(&first) {
            true => Some(first),
            false => threads.keys().next().copied(),
        };
        let tid = tid.ok_or(Errno::ESRCH)?;
        self.acting = Some(Acting { tid, memory: 0 });
        let args = [0, MEMORY_BYTES, PROT_READ_WRITE, PRIVATE, word(-1), 0];
        let done = self.host_call(nr::MMAP, &args).and_then(|memory| {
            self.acting = Some(Acting { tid, memory });
            let done = work(self);
            let _ = self.host_call(nr::MUNMAP, &[memory, MEMORY_BYTES]);
            done
        });
        self.acting = None;
        done
    }

    fn path_at(&self, which: u64) -> u64 {
        let offset = which.saturating_mul(PATH_BYTES as u64);
        self.acting().memory.saturating_add(offset)
    }

    pub(super) fn data_at(&self) -> u64 {
        self.acting().memory.saturating_add(DATA_OFFSET)
    }

    /// A call of the thread that acts for the host. What would wait gives `EAGAIN`.
    pub(super) fn host_call(&mut self, nr: u64, args: &[u64]) -> SysResult {
        let mut call = Call { nr, args: [0; 6] };
        call.args
            .iter_mut()
            .zip(args)
            .for_each(|(to, arg)| *to = *arg);
        let (tid, mut state) = (self.acting().tid, CallState::default());
        loop {
            self.host.begin_call();
            self.host.budget.begin();
            let outcome = table::call(&mut self.cx(tid), &call, &state);
            self.host.finish_call();
            match outcome {
                Outcome::Done(result) => return result,
                Outcome::Again(next) => state = next,
                Outcome::Wait(Wait {
                    resume: Resume::Retry(state),
                    ..
                }) if state.progress > 0 => return Ok(state.progress),
                Outcome::Wait(_) | Outcome::Registers | Outcome::Gone => return Err(Errno::EAGAIN),
            }
        }
    }

    pub(super) fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        let tid = self.acting().tid;
        // There is room for it, but perhaps no memory.
        self.cx(tid)
            .write(Gva(at), bytes)
            .map_err(|_| Errno::ENOMEM)
    }

    fn take(&mut self, at: u64, len_bytes: usize) -> Result<Vec<u8>, Errno> {
        let tid = self.acting().tid;
        let mut bytes = vec![0; len_bytes.min(DATA_BYTES)];
        self.cx(tid)
            .read(Gva(at), &mut bytes)
            .map_err(|_| Errno::ENOMEM)?;
        Ok(bytes)
    }

    /// A call whose first argument is a path.
    fn path_call(&mut self, nr: u64, path: &[u8], rest: &[u64]) -> SysResult {
        let at = self.put_path(self.path_at(0), path)?;
        self.host_call(nr, &[&[at], rest].concat())
    }

    fn put_path(&mut self, at: u64, path: &[u8]) -> Result<u64, Errno> {
        if path.contains(&0) {
            return Err(Errno::EINVAL);
        }
        if path.len() >= PATH_BYTES {
            return Err(Errno::ENAMETOOLONG);
        }
        self.put(at, &[path, b"\0"].concat())?;
        Ok(at)
    }

    pub(super) fn change_directory(&mut self, path: &[u8]) -> Result<(), Errno> {
        self.path_call(nr::CHDIR, path, &[]).map(drop)
    }

    /// Opens a file, which nothing keeps waiting.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(&mut self, path: &[u8], flags: OpenFlags, mode: u32) -> Result<i32, Errno> {
        let flags = flags | OpenFlags::CLOEXEC | OpenFlags::NONBLOCK | OpenFlags::NOCTTY;
        let number = self.path_call(nr::OPEN, path, &[u64::from(flags.bits()), u64::from(mode)])?;
        i32::try_from(number).map_err(|_| Errno::EBADF)
    }

    /// Closes a descriptor.
    pub fn close(&mut self, number: i32) {
        let _ = self.host_call(nr::CLOSE, &[word(number)]);
    }

    /// Reads bytes: none at the end of a file, 1 MiB at most.
    ///
    /// # Errors
    /// Those of read(2); `EAGAIN` where nothing is there yet.
    pub fn read(&mut self, number: i32, max_bytes: usize) -> Result<Vec<u8>, Errno> {
        let max_bytes = max_bytes.min(MOVED_BYTES_MAX);
        let (mut all, data) = (Vec::new(), self.data_at());
        while all.len() < max_bytes {
            let wanted = max_bytes.saturating_sub(all.len()).min(DATA_BYTES);
            let count = match self.host_call(nr::READ, &[word(number), data, wanted as u64]) {
                Ok(0) => break,
                Err(_) if !all.is_empty() => break,
                other => usize::try_from(other?).unwrap_or(0),
            };
            all.extend(self.take(data, count)?);
        }
        Ok(all)
    }

    /// Writes bytes; the number that has been written: all, unless a limit is reached or a pipe is full.
    ///
    /// # Errors
    /// Those of write(2) if nothing has been written; `EAGAIN` where there is no room, `EPIPE` for a terminal that no
    /// process has any more.
    pub fn write(&mut self, number: i32, bytes: &[u8]) -> Result<usize, Errno> {
        if let Some(master) = self.master_of(number)
            && self.is_hung_up(master)
        {
            return Err(Errno::EPIPE);
        }
        let (mut done, data) = (0usize, self.data_at());
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let part = rest.get(..DATA_BYTES).unwrap_or(rest);
            self.put(data, part)?;
            match self.host_call(nr::WRITE, &[word(number), data, part.len() as u64]) {
                Ok(count) => done = done.saturating_add(usize::try_from(count).unwrap_or(0)),
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
            if done >= MOVED_BYTES_MAX {
                break;
            }
        }
        Ok(done)
    }

    /// The attributes of a file; those of a symbolic link itself if `links` says so.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn stat(&mut self, path: &[u8], links: Links) -> Result<FileInfo, Errno> {
        let nr = match links {
            Links::Followed => nr::STAT,
            Links::Shown => nr::LSTAT,
        };
        self.path_call(nr, path, &[self.data_at()])?;
        self.stat_of_call()
    }

    /// The attributes of an open file.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn stat_open(&mut self, number: i32) -> Result<FileInfo, Errno> {
        self.host_call(nr::FSTAT, &[word(number), self.data_at()])?;
        self.stat_of_call()
    }

    fn stat_of_call(&mut self) -> Result<FileInfo, Errno> {
        let (tid, data) = (self.acting().tid, self.data_at());
        let stat: Stat = self
            .cx(tid)
            .read_struct(Gva(data))
            .map_err(|_| Errno::ENOMEM)?;
        Ok(stat.into())
    }

    /// A descriptor that gives events of what it is told to watch (inotify(7)), which nothing keeps waiting.
    ///
    /// # Errors
    /// `EMFILE`
    pub fn open_watch(&mut self) -> Result<i32, Errno> {
        let flags = OpenFlags::CLOEXEC | OpenFlags::NONBLOCK;
        let number = self.host_call(nr::INOTIFY_INIT1, &[u64::from(flags.bits())])?;
        i32::try_from(number).map_err(|_| Errno::EBADF)
    }

    /// Has such a descriptor give the events `mask` of a path as well; the number of that watch.
    ///
    /// # Errors
    /// Those of inotify_add_watch(2).
    pub fn add_watch(&mut self, number: i32, path: &[u8], mask: u32) -> Result<i32, Errno> {
        let at = self.put_path(self.path_at(0), path)?;
        let args = [word(number), at, u64::from(mask)];
        let watch = self.host_call(nr::INOTIFY_ADD_WATCH, &args)?;
        i32::try_from(watch).map_err(|_| Errno::EBADF)
    }

    /// Gives a watch up.
    ///
    /// # Errors
    /// `EINVAL` if it has gone.
    pub fn remove_watch(&mut self, number: i32, watch: i32) -> Result<(), Errno> {
        let args = [word(number), word(watch)];
        self.host_call(nr::INOTIFY_RM_WATCH, &args).map(drop)
    }

    /// The entries of a directory, without `.` and `..`.
    ///
    /// # Errors
    /// Those of open(2) and getdents64(2); `EFBIG` for too many.
    pub fn list(&mut self, path: &[u8]) -> Result<Vec<Listed>, Errno> {
        let number = self.open(path, OpenFlags::DIRECTORY, 0)?;
        let names = self.names(number);
        self.close(number);
        names
    }

    fn names(&mut self, number: i32) -> Result<Vec<Listed>, Errno> {
        /// Offsets of d_reclen, d_type and d_name (getdents64(2)).
        const LENGTH_AT: usize = 16;
        const TYPE_AT: usize = 18;
        const NAME_AT: usize = 19;
        /// DT_DIR
        const DIRECTORY: u8 = 4;
        let (mut names, mut total_bytes) = (Vec::new(), 0usize);
        loop {
            let args = [word(number), self.data_at(), DATA_BYTES as u64];
            let count = usize::try_from(self.host_call(nr::GETDENTS64, &args)?).unwrap_or(0);
            if count == 0 {
                return Ok(names);
            }
            total_bytes = total_bytes.saturating_add(count);
            if total_bytes > NAMES_BYTES_MAX {
                return Err(Errno::EFBIG);
            }
            let entries = self.take(self.data_at(), count)?;
            let mut rest = entries.as_slice();
            while let Some([low, high]) = rest.get(LENGTH_AT..LENGTH_AT + 2) {
                let len = usize::from(u16::from_le_bytes([*low, *high]));
                let name = rest.get(NAME_AT..len).unwrap_or_default();
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                if !matches!(name, b"." | b"..") {
                    names.push(Listed {
                        name: name.to_vec(),
                        is_directory: rest.get(TYPE_AT) == Some(&DIRECTORY),
                    });
                }
                rest = rest.get(len.max(NAME_AT)..).unwrap_or_default();
            }
        }
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub fn make_directory(&mut self, path: &[u8]) -> Result<(), Errno> {
        self.path_call(nr::MKDIR, path, &[0o777]).map(drop)
    }

    /// Removes a file or an empty directory.
    ///
    /// # Errors
    /// Those of unlink(2) and rmdir(2).
    pub fn remove(&mut self, path: &[u8]) -> Result<(), Errno> {
        match self.path_call(nr::UNLINK, path, &[]) {
            Err(Errno::EISDIR) => self.path_call(nr::RMDIR, path, &[]).map(drop),
            other => other.map(drop),
        }
    }

    /// Renames a file or directory.
    ///
    /// # Errors
    /// Those of rename(2).
    pub fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<(), Errno> {
        let to = self.put_path(self.path_at(1), to)?;
        self.path_call(nr::RENAME, from, &[to]).map(drop)
    }

    /// Sets the permissions of a file.
    ///
    /// # Errors
    /// Those of chmod(2).
    pub fn change_mode(&mut self, path: &[u8], mode: u32) -> Result<(), Errno> {
        let at = self.put_path(self.path_at(0), path)?;
        let args = [word(AT_FDCWD), at, u64::from(mode)];
        self.host_call(nr::FCHMODAT, &args).map(drop)
    }
}

/// An `int` as an argument.
pub(super) fn word(number: i32) -> u64 {
    i64::from(number).cast_unsigned()
}
