//! The host acts as the holder of a box ([`Holder`]): it starts commands, moves bytes through their pipes, and waits
//! for them.

use kvmlet_abi::{Errno, Gva, PAGE_SIZE};

use super::files::nr;
use super::terminal::TerminalSize;
use super::{Connection, Personality};
use crate::exec::{self, ExecError, ExecRequest};
use crate::fd::{self, FileKind, OnExec, OpenFlags};
use crate::kernel::{ExitStatus, Holder, Pid, Tid};
use crate::mm::{self, AslrSeed, Mm, Prot, Region, Source, VmaFlags};
use crate::net::client;
use crate::outcome::{CallState, Resume, Wait, WaitOn};
use crate::rlimit::Resource;
use crate::sched::Call;
use crate::signal::{SI_USER, SigDetail, SigInfo};
use crate::task::wait::{self, News as ChildNews, Whose};
use crate::task::{exit, spawn};
use crate::vfs::file::{Transfer, transfer};
use crate::vfs::pipe::Pipe;

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
    /// The size of a terminal of its own, which the standard streams lead to instead.
    pub terminal: Option<TerminalSize>,
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
    /// A pipe or a terminal has bytes, or nobody that writes any more; a watch has events.
    Readable(i32),
    /// A pipe or a terminal has room, or nobody that reads any more.
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

impl Personality {
    /// Makes the first process, which has no program, the holder of a box. It starts in `cwd`.
    ///
    /// # Errors
    /// `ENOMEM` at the memory limit, and those of chdir(2).
    pub fn become_holder(&mut self, cwd: &[u8]) -> Result<(), Errno> {
        let tid = self.acting().tid;
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
        let (start, len_bytes) = Self::HOLDER_MEMORY;
        mm::map_region(
            &mut cx,
            &Region {
                start: Gva(start),
                len_bytes,
                prot: Prot::READ | Prot::WRITE,
                flags: VmaFlags::MAYWRITE,
                source: Source::Anon,
                offset: 0,
                name: None,
            },
        )?;
        // All of it is there from now on: at the memory limit the host still reads and writes.
        let pages = (start..start.saturating_add(len_bytes)).step_by(PAGE_SIZE as usize);
        for page in pages {
            self.put(page, b"\0")?;
        }
        self.change_directory(cwd)
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
        let (tid, holder) = (self.acting().tid, self.acting().tid);
        let child = spawn::spawn(&mut self.cx(tid)).map_err(SpawnError::Limit);
        if let Some(home) = home {
            crate::vfs::set_cwd(&mut self.cx(holder), home).map_err(SpawnError::Limit)?;
        }
        let child = child?;
        let mut streams = [None; STREAMS];
        let started = self
            .give_streams(child, command, &mut streams)
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
        let tid = self.acting().tid;
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
        command: &Command,
        streams: &mut [Option<i32>; STREAMS],
    ) -> Result<(), Errno> {
        let mut given = 0;
        if let Some(size) = command.terminal {
            self.give_terminal(child, size, streams)?;
            given = 3;
        }
        let each = (0i32..).zip(command.stdio.iter().zip(streams));
        for (number, (stdio, stream)) in each.skip(given) {
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
                    let mut cx = self.cx(self.acting().tid);
                    let id = fd::id(&mut cx, ours)?;
                    fd::file_mut(&mut cx, id)?.flags |= OpenFlags::NONBLOCK;
                    theirs
                }
            };
            let file = fd::id(&mut self.cx(self.acting().tid), theirs);
            let given = file
                .and_then(|file| fd::install_at(&mut self.cx(child), file, number, OnExec::Keep));
            self.close(theirs);
            given?;
        }
        Ok(())
    }

    fn pipe(&mut self) -> Result<[i32; 2], Errno> {
        let (tid, data) = (self.acting().tid, self.data_at());
        self.host_call(nr::PIPE2, &[data, u64::from(OpenFlags::CLOEXEC.bits())])?;
        self.cx(tid).read_struct(Gva(data))
    }

    /// The way that a child has ended, if it has, and if the memory limit has ended a process of its command. Nothing
    /// is left of it then.
    ///
    /// # Errors
    /// `ECHILD` if there is no such child.
    pub fn wait(&mut self, child: Pid) -> Result<Option<ExitStatus>, Errno> {
        self.reap(child, self.acting().tid)
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
        match news {
            News::Readable(number) => self.is_readable(number),
            News::Writable(number) => self.is_writable(number),
            News::Ended(child) => !self.kernel.processes.contains_key(&child),
            News::Received(Connection(id)) => client::is_readable(&self.kernel, id),
            News::Sendable(Connection(id)) => client::is_writable(&self.kernel, id),
            News::Listening(port) => self.kernel.objects.sockets.is_listening_at(port),
        }
    }

    /// The kind of file that a descriptor of who acts for the host leads to.
    pub(super) fn kind_of(&self, number: i32) -> Option<&FileKind> {
        let pid = self.kernel.threads.get(&self.acting().tid)?.pid;
        let table = self.kernel.fds_of(pid)?;
        let file = self.kernel.files.get(&table.fds.get(&number)?.file)?;
        Some(&file.kind)
    }

    fn pipe_of(&self, kind: &FileKind) -> Option<&Pipe> {
        match transfer(kind) {
            Transfer::Pipe(pipe) => self.kernel.pipes.get(pipe).ok(),
            _ => None,
        }
    }

    /// True if there is something to read: bytes, an end, or an error.
    fn is_readable(&self, number: i32) -> bool {
        let Some(kind) = self.kind_of(number) else {
            return true;
        };
        match (kind, self.master_of(number)) {
            (_, Some(master)) => self.is_shown(master),
            (FileKind::Inotify(id), None) => self.kernel.objects.inotifies.readable_bytes(*id) > 0,
            (kind, None) => self
                .pipe_of(kind)
                .is_none_or(|pipe| !pipe.is_empty() || pipe.writers == 0),
        }
    }

    /// True if there is room to write, or an error to be met.
    fn is_writable(&self, number: i32) -> bool {
        if let Some(master) = self.master_of(number) {
            return self.takes_keys(master);
        }
        let pipe = self.kind_of(number).and_then(|kind| self.pipe_of(kind));
        pipe.is_none_or(|pipe| !pipe.is_full() || pipe.readers == 0)
    }
}
