//! The host acts as the holder of a box ([`Holder`]): it starts commands, moves bytes through their pipes, waits for
//! them, and reaches files.
//!
//! All of it is system calls of the holder's thread. Their arguments lie in memory of its own, so that each has the
//! checks, charges and errors that it has for any program.

use kvmlet_abi::linux::Stat;
use kvmlet_abi::linux::fcntl::AT_FDCWD;
use kvmlet_abi::{Errno, Gva, PAGE_SIZE};

use super::{Connection, Personality};
use crate::exec::{self, ExecError, ExecRequest};
use crate::fd::{self, OnExec, OpenFlags};
use crate::kernel::{ExitStatus, Holder, Pid, Tid};
use crate::mm::{self, AslrSeed, Mm, Prot, Region, Source, VmaFlags};
use crate::net::client;
use crate::outcome::{CallState, Outcome, Resume, SysResult, Wait, WaitOn};
use crate::rlimit::Resource;
use crate::sched::Call;
use crate::signal::{SI_USER, SigDetail, SigInfo};
use crate::syscalls::table;
use crate::task::wait::{self, News as ChildNews, Whose};
use crate::task::{exit, spawn};
use crate::vfs::file::{Transfer, transfer};

/// Memory of the holder's: two paths, then data.
const PATHS: [u64; 2] = [0x10_0000, 0x10_1000];
/// PATH_MAX, with the null byte.
const PATH_BYTES: usize = 4096;
const PAGE_BYTES: usize = PAGE_SIZE as usize;
const DATA: u64 = 0x10_2000;
/// Bytes that one call moves at most.
const DATA_BYTES: usize = 128 << 10;
/// Bytes that one request of the host's moves at most: commands run in between.
const MOVED_BYTES_MAX: usize = 1 << 20;
/// Bytes of names that are listed at most.
const NAMES_BYTES_MAX: usize = 64 << 20;

/// Numbers of the calls that the holder makes (arch/x86/entry/syscalls/syscall_64.tbl).
mod nr {
    pub const READ: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const OPEN: u64 = 2;
    pub const CLOSE: u64 = 3;
    pub const STAT: u64 = 4;
    pub const FSTAT: u64 = 5;
    pub const LSTAT: u64 = 6;
    pub const CHDIR: u64 = 80;
    pub const RENAME: u64 = 82;
    pub const MKDIR: u64 = 83;
    pub const RMDIR: u64 = 84;
    pub const UNLINK: u64 = 87;
    pub const GETDENTS64: u64 = 217;
    pub const FCHMODAT: u64 = 268;
    pub const PIPE2: u64 = 293;
}

/// Descriptors that a command starts with: standard streams, and one more that it may answer its starter by.
pub const STREAMS: usize = 4;

/// The place that a descriptor of a command leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stdio {
    /// Nowhere: the command has no such descriptor.
    Absent,
    /// /dev/null.
    Null,
    /// A pipe, whose other end is a descriptor of the holder.
    Pipe,
    /// The place of standard output; for standard error only.
    Stdout,
}

/// A command to start.
#[derive(Clone, Debug)]
pub struct Command {
    /// Arguments; the first names the program, looked up in PATH if it has no slash.
    pub argv: Vec<Vec<u8>>,
    /// Environment.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// The directory that it starts in.
    pub cwd: Vec<u8>,
    /// Standard streams, and descriptor 3, which a pipe makes one that the command writes to.
    pub stdio: [Stdio; STREAMS],
}

/// A command that has been started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spawned {
    /// Its first process.
    pub pid: Pid,
    /// Its number, for [`Personality::end_command`].
    pub command: u64,
    /// The holder's ends of its pipes.
    pub streams: [Option<i32>; STREAMS],
}

/// Why a command cannot be started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SpawnError {
    /// Its directory cannot be entered.
    Directory(Errno),
    /// No such program.
    NotFound,
    /// The program cannot be started.
    Exec(ExecError),
    /// A limit on processes, descriptors or memory.
    Limit(Errno),
}

/// Something that the host waits for: as the holder, or as a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum News {
    /// A pipe has bytes, or no writer any more.
    Readable(i32),
    /// A pipe has room, or no reader any more.
    Writable(i32),
    /// A child has ended.
    Ended(Pid),
    /// There is something to receive from a connection, or it has ended.
    Received(Connection),
    /// Bytes can be sent to a connection, or will never be.
    Sendable(Connection),
    /// Somebody listens on this TCP port.
    Listening(u16),
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

impl From<Stat> for FileInfo {
    fn from(stat: Stat) -> Self {
        Self {
            mode: stat.st_mode,
            size_bytes: stat.st_size.unsigned_abs(),
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
        }
    }
}

impl Personality {
    /// Makes the first process, which has no program, the holder of a box. It starts in `cwd`.
    ///
    /// # Errors
    /// `ENOMEM` at the memory limit, and those of chdir(2).
    pub fn become_holder(&mut self, cwd: &[u8]) -> Result<(), Errno> {
        let tid = self.holder_tid();
        self.kernel.sched.forget(tid);
        let waits = Wait {
            on: WaitOn::Nothing,
            deadline_ns: None,
            resume: Resume::Retry(CallState::default()),
        };
        self.kernel.sched.park(tid, Call::default(), waits);
        self.kernel.holder = Some(Holder::default());
        let mut cx = self.cx(tid);
        cx.thread()?.comm = *b"kvmlet\0\0\0\0\0\0\0\0\0\0";
        let process = cx.process()?;
        process.cmdline = (*b"kvmlet\0").into();
        let stack = process.rlimits.soft(Resource::Stack);
        *cx.mm()? = Mm::new(AslrSeed::default(), stack);
        let len_bytes = (DATA - PATHS[0]).saturating_add(DATA_BYTES as u64);
        mm::map_region(
            &mut cx,
            &Region {
                start: Gva(PATHS[0]),
                len_bytes,
                prot: Prot::READ | Prot::WRITE,
                flags: VmaFlags::MAYWRITE,
                source: Source::Anon,
                offset: 0,
                name: None,
            },
        )?;
        // All of it is there from now on: at the memory limit the host still reads and writes.
        let pages = (PATHS[0]..PATHS[0].saturating_add(len_bytes)).step_by(PAGE_BYTES);
        for page in pages {
            self.put(page, b"\0")?;
        }
        self.change_directory(cwd)
    }

    fn holder_tid(&self) -> Tid {
        Tid(self.kernel.main.0)
    }

    /// A call of the holder's. What would wait gives `EAGAIN`.
    fn holder_call(&mut self, nr: u64, args: &[u64]) -> SysResult {
        let mut call = Call { nr, args: [0; 6] };
        call.args
            .iter_mut()
            .zip(args)
            .for_each(|(to, arg)| *to = *arg);
        let (tid, mut state) = (self.holder_tid(), CallState::default());
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

    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        let tid = self.holder_tid();
        // There is room for it, but perhaps no memory.
        self.cx(tid)
            .write(Gva(at), bytes)
            .map_err(|_| Errno::ENOMEM)
    }

    fn take(&mut self, at: u64, len_bytes: usize) -> Result<Vec<u8>, Errno> {
        let tid = self.holder_tid();
        let mut bytes = vec![0; len_bytes.min(DATA_BYTES)];
        self.cx(tid)
            .read(Gva(at), &mut bytes)
            .map_err(|_| Errno::ENOMEM)?;
        Ok(bytes)
    }

    /// A call whose first argument is a path.
    fn path_call(&mut self, nr: u64, path: &[u8], rest: &[u64]) -> SysResult {
        let at = self.put_path(PATHS[0], path)?;
        self.holder_call(nr, &[&[at], rest].concat())
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

    fn change_directory(&mut self, path: &[u8]) -> Result<(), Errno> {
        self.path_call(nr::CHDIR, path, &[]).map(drop)
    }

    // ---- commands ----

    /// Starts a command.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing is left of it then.
    pub fn spawn(&mut self, command: &Command) -> Result<Spawned, SpawnError> {
        let home = self.kernel.fs_of(self.kernel.main);
        let home = home.map(|fs| fs.cwd.clone());
        self.change_directory(&command.cwd)
            .map_err(SpawnError::Directory)?;
        let (tid, holder) = (self.holder_tid(), self.holder_tid());
        let child = spawn::spawn(&mut self.cx(tid)).map_err(SpawnError::Limit);
        if let Some(home) = home {
            crate::vfs::set_cwd(&mut self.cx(holder), home).map_err(SpawnError::Limit)?;
        }
        let child = child?;
        let mut streams = [None; STREAMS];
        let started = self
            .give_streams(child, &command.stdio, &mut streams)
            .map_err(SpawnError::Limit)
            .and_then(|()| self.load(child, command));
        let pid = Pid(child.0);
        if let Err(error) = started {
            streams
                .into_iter()
                .flatten()
                .for_each(|number| self.close(number));
            self.give_up(child);
            return Err(error);
        }
        self.kernel.sched.make_ready(child);
        let process = self.kernel.processes.get(&pid);
        Ok(Spawned {
            pid,
            command: process.map_or(0, |process| process.command),
            streams,
        })
    }

    /// Takes back a child that has not run.
    fn give_up(&mut self, child: Tid) {
        let pid = Pid(child.0);
        exit::end_process(&mut self.cx(child), pid, ExitStatus::Exited(127));
        let tid = self.holder_tid();
        self.host.finish_call();
        let _ = self.reap(pid, tid);
    }

    fn load(&mut self, child: Tid, command: &Command) -> Result<(), SpawnError> {
        let mut cx = self.cx(child);
        let name = command.argv.first().filter(|name| !name.is_empty());
        let path = command.env.iter().find(|(key, _)| key == b"PATH");
        let path = path.map_or(&b""[..], |(_, value)| value);
        let path = name.and_then(|name| exec::search(&mut cx, name, path));
        let request = ExecRequest {
            path: path.ok_or(SpawnError::NotFound)?,
            argv: command.argv.clone(),
            envp: command
                .env
                .iter()
                .map(|(name, value)| [name.as_slice(), b"=", value.as_slice()].concat())
                .collect(),
        };
        let loaded = exec::boot(&mut cx, request).map_err(SpawnError::Exec);
        self.host.finish_call();
        loaded
    }

    /// Opens descriptors 0 to 3 of a child, and the holder's ends of pipes among them.
    fn give_streams(
        &mut self,
        child: Tid,
        stdio: &[Stdio; STREAMS],
        streams: &mut [Option<i32>; STREAMS],
    ) -> Result<(), Errno> {
        for (number, (stdio, stream)) in (0i32..).zip(stdio.iter().zip(streams)) {
            let theirs = match stdio {
                Stdio::Absent => continue,
                Stdio::Stdout => {
                    let file = fd::id(&mut self.cx(child), 1)?;
                    fd::install_at(&mut self.cx(child), file, number, OnExec::Keep)?;
                    continue;
                }
                Stdio::Null => self.open(b"/dev/null", OpenFlags::RDWR, 0)?,
                Stdio::Pipe => {
                    let [read_end, write_end] = self.pipe()?;
                    let (ours, theirs) = match number {
                        0 => (write_end, read_end),
                        _ => (read_end, write_end),
                    };
                    *stream = Some(ours);
                    let mut cx = self.cx(self.holder_tid());
                    let id = fd::id(&mut cx, ours)?;
                    fd::file_mut(&mut cx, id)?.flags |= OpenFlags::NONBLOCK;
                    theirs
                }
            };
            let file = fd::id(&mut self.cx(self.holder_tid()), theirs);
            let given = file
                .and_then(|file| fd::install_at(&mut self.cx(child), file, number, OnExec::Keep));
            self.close(theirs);
            given?;
        }
        Ok(())
    }

    fn pipe(&mut self) -> Result<[i32; 2], Errno> {
        self.holder_call(nr::PIPE2, &[DATA, u64::from(OpenFlags::CLOEXEC.bits())])?;
        let tid = self.holder_tid();
        self.cx(tid).read_struct(Gva(DATA))
    }

    /// The way that a child has ended, if it has, and if the memory limit has ended a process of its command. Nothing
    /// is left of it then.
    ///
    /// # Errors
    /// `ECHILD` if there is no such child.
    pub fn wait(&mut self, child: Pid) -> Result<Option<ExitStatus>, Errno> {
        self.reap(child, self.holder_tid())
    }

    fn reap(&mut self, child: Pid, holder: Tid) -> Result<Option<ExitStatus>, Errno> {
        let options = kvmlet_abi::linux::wait::WEXITED | kvmlet_abi::linux::wait::__WALL;
        let found = wait::look(&mut self.cx(holder), Whose::Child(child), options)?;
        let Some(found) = found else {
            return Ok(None);
        };
        wait::told(&mut self.kernel, &found);
        match found.news {
            ChildNews::Ended(zombie) => Ok(Some(zombie.status)),
            ChildNews::Stopped(_) | ChildNews::Continued => Ok(None),
        }
    }

    /// Sends a signal to a child from the holder.
    ///
    /// # Errors
    /// `ESRCH`, `EAGAIN` for a full queue.
    pub fn signal(&mut self, child: Pid, signo: u8) -> Result<(), Errno> {
        let detail = SigDetail::Sender {
            pid: self.kernel.main.0,
            uid: self.kernel.caller.user.real,
            value: 0,
        };
        let info = SigInfo {
            signo,
            code: SI_USER,
            detail,
            ..SigInfo::default()
        };
        match self.kernel.processes.contains_key(&child) {
            true => self.kernel.send_to_process(child, info),
            false => Err(Errno::ESRCH),
        }
    }

    /// Ends a command with everything that descends from it, in the next steps.
    pub fn end_command(&mut self, command: u64) {
        self.kernel.end_command(command);
    }

    /// True if the memory limit has ended a process of a command since this was asked last.
    pub fn was_out_of_memory(&mut self, command: u64) -> bool {
        let holder = self.kernel.holder.as_mut();
        holder.is_some_and(|holder| holder.out_of_memory.remove(&command).is_some())
    }

    // ---- news ----

    /// Has threads leave the guest as soon as there is any of these.
    pub fn await_news(&mut self, news: &[News]) {
        self.awaited.clear();
        self.awaited.extend_from_slice(news);
    }

    /// True if there is something that the host waits for.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.awaited.iter().any(|news| self.is_news(*news))
    }

    /// True if something has happened. It has if nothing more can.
    #[must_use]
    pub fn is_news(&self, news: News) -> bool {
        let pipe = |number| {
            let table = self.kernel.fds_of(self.kernel.main)?;
            let file = self.kernel.files.get(&table.fds.get(&number)?.file)?;
            match transfer(&file.kind) {
                Transfer::Pipe(pipe) => self.kernel.pipes.get(pipe).ok(),
                _ => None,
            }
        };
        match news {
            News::Readable(number) => {
                pipe(number).is_none_or(|pipe| !pipe.is_empty() || pipe.writers == 0)
            }
            News::Writable(number) => {
                pipe(number).is_none_or(|pipe| !pipe.is_full() || pipe.readers == 0)
            }
            News::Ended(child) => !self.kernel.processes.contains_key(&child),
            News::Received(Connection(id)) => client::is_readable(&self.kernel, id),
            News::Sendable(Connection(id)) => client::is_writable(&self.kernel, id),
            News::Listening(port) => self.kernel.objects.sockets.is_listening_at(port),
        }
    }

    // ---- files ----

    /// Opens a file for the holder, which nothing keeps waiting.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(&mut self, path: &[u8], flags: OpenFlags, mode: u32) -> Result<i32, Errno> {
        let flags = flags | OpenFlags::CLOEXEC | OpenFlags::NONBLOCK | OpenFlags::NOCTTY;
        let number = self.path_call(nr::OPEN, path, &[u64::from(flags.bits()), u64::from(mode)])?;
        i32::try_from(number).map_err(|_| Errno::EBADF)
    }

    /// Closes a descriptor of the holder's.
    pub fn close(&mut self, number: i32) {
        let _ = self.holder_call(nr::CLOSE, &[word(number)]);
    }

    /// Reads bytes: none at the end of a file, 1 MiB at most.
    ///
    /// # Errors
    /// Those of read(2); `EAGAIN` where nothing is there yet.
    pub fn read(&mut self, number: i32, max_bytes: usize) -> Result<Vec<u8>, Errno> {
        let max_bytes = max_bytes.min(MOVED_BYTES_MAX);
        let mut all = Vec::new();
        while all.len() < max_bytes {
            let wanted = max_bytes.saturating_sub(all.len()).min(DATA_BYTES);
            let count = match self.holder_call(nr::READ, &[word(number), DATA, wanted as u64]) {
                Ok(0) => break,
                Err(_) if !all.is_empty() => break,
                other => usize::try_from(other?).unwrap_or(0),
            };
            all.extend(self.take(DATA, count)?);
        }
        Ok(all)
    }

    /// Writes bytes; the number that has been written: all, unless a limit is reached or a pipe is full.
    ///
    /// # Errors
    /// Those of write(2) if nothing has been written; `EAGAIN` where there is no room.
    pub fn write(&mut self, number: i32, bytes: &[u8]) -> Result<usize, Errno> {
        let mut done = 0usize;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let part = rest.get(..DATA_BYTES).unwrap_or(rest);
            self.put(DATA, part)?;
            match self.holder_call(nr::WRITE, &[word(number), DATA, part.len() as u64]) {
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
        self.path_call(nr, path, &[DATA])?;
        self.stat_of_call()
    }

    /// The attributes of an open file.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn stat_open(&mut self, number: i32) -> Result<FileInfo, Errno> {
        self.holder_call(nr::FSTAT, &[word(number), DATA])?;
        self.stat_of_call()
    }

    fn stat_of_call(&mut self) -> Result<FileInfo, Errno> {
        let tid = self.holder_tid();
        let stat: Stat = self
            .cx(tid)
            .read_struct(Gva(DATA))
            .map_err(|_| Errno::ENOMEM)?;
        Ok(stat.into())
    }

    /// The names in a directory, without `.` and `..`.
    ///
    /// # Errors
    /// Those of open(2) and getdents64(2); `EFBIG` for too many.
    pub fn list(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
        let number = self.open(path, OpenFlags::DIRECTORY, 0)?;
        let names = self.names(number);
        self.close(number);
        names
    }

    fn names(&mut self, number: i32) -> Result<Vec<Vec<u8>>, Errno> {
        /// Offsets of d_reclen and d_name (getdents64(2)).
        const LENGTH_AT: usize = 16;
        const NAME_AT: usize = 19;
        let (mut names, mut total_bytes) = (Vec::new(), 0usize);
        loop {
            let args = [word(number), DATA, DATA_BYTES as u64];
            let count = usize::try_from(self.holder_call(nr::GETDENTS64, &args)?).unwrap_or(0);
            if count == 0 {
                return Ok(names);
            }
            total_bytes = total_bytes.saturating_add(count);
            if total_bytes > NAMES_BYTES_MAX {
                return Err(Errno::EFBIG);
            }
            let entries = self.take(DATA, count)?;
            let mut rest = entries.as_slice();
            while let Some([low, high]) = rest.get(LENGTH_AT..LENGTH_AT + 2) {
                let len = usize::from(u16::from_le_bytes([*low, *high]));
                let name = rest.get(NAME_AT..len).unwrap_or_default();
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                if !matches!(name, b"." | b"..") {
                    names.push(name.to_vec());
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
        let to = self.put_path(PATHS[1], to)?;
        self.path_call(nr::RENAME, from, &[to]).map(drop)
    }

    /// Sets the permissions of a file.
    ///
    /// # Errors
    /// Those of chmod(2).
    pub fn change_mode(&mut self, path: &[u8], mode: u32) -> Result<(), Errno> {
        let at = self.put_path(PATHS[0], path)?;
        let args = [word(AT_FDCWD), at, u64::from(mode)];
        self.holder_call(nr::FCHMODAT, &args).map(drop)
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

/// An `int` as an argument.
fn word(number: i32) -> u64 {
    i64::from(number).cast_unsigned()
}
