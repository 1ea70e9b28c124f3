//! A sandbox without KVM: one process with one thread and a stretch of user memory.
#![expect(clippy::disallowed_methods, reason = "tests make their own files")]

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvmlet_abi::linux::{Iovec, Stat};
use kvmlet_abi::{Errno, Gva};
use kvmlet_mem::{GuestMemory, PageTables, Spaces};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::creds::Creds;
use crate::cx::{CpuInfo, Cx, Machine};
use crate::host::Host;
use crate::kernel::{Kernel, NewKernel, Pid, Tid};
use crate::mm::{self, AslrSeed, Mm, Prot, Region, Source, VmaFlags};
use crate::outcome::{CallState, Outcome, SysResult};
use crate::rlimit::Resource;
use crate::sched::{Call, Sched};
use crate::syscalls::table;
use crate::vfs::{self, StdStream};

/// The only process.
pub const PID: Pid = Pid::FIRST;
/// Its only thread.
pub const TID: Tid = Tid::FIRST;
/// Start of user memory.
const ARENA: u64 = 0x10_0000;
/// Bytes of user memory.
const ARENA_BYTES: u64 = 4 << 20;
/// Start of what tests keep; below it, what a single call needs.
const KEPT: u64 = ARENA + (1 << 20);
/// AT_FDCWD
pub const CWD: i64 = -100;

/// A host directory that is removed at the end.
#[derive(Debug)]
pub struct TempTree(pub PathBuf);

impl TempTree {
    /// A fresh directory under /tmp.
    pub fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/tmp/kvmlet-test-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Adds a file.
    pub fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        path
    }

    /// Adds a symbolic link.
    pub fn link(&self, name: &str, target: &str) {
        std::os::unix::fs::symlink(target, self.0.join(name)).unwrap();
    }

    /// Its path as text.
    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempTree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Everything that a [`Cx`] borrows.
pub struct Sandbox {
    pub kernel: Kernel,
    pub machine: Machine,
    pub host: Host,
    next: u64,
}

thread_local! {
    static NOW: Cell<Instant> = Cell::new(Instant::now());
}

/// [`Host::now`] in tests: it stands still until [`pass`].
fn now() -> Instant {
    NOW.get()
}

/// Lets time pass on this thread.
pub fn pass(time: Duration) {
    NOW.set(NOW.get() + time);
}

/// An argument of a call.
pub enum Arg<'a> {
    Int(i64),
    Str(&'a str),
}

impl From<i64> for Arg<'_> {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl<'a> From<&'a str> for Arg<'a> {
    fn from(value: &'a str) -> Self {
        Self::Str(value)
    }
}

/// Makes a call by name: `call!(sandbox, "open", "/tmp/x", 0)`.
macro_rules! call {
    ($sandbox:expr, $name:literal $(, $arg:expr)* $(,)?) => {
        $sandbox.call($name, &[$($crate::testing::Arg::from($arg)),*])
    };
}
pub(crate) use call;

impl Sandbox {
    /// One started from `cwd`, with 64 MiB and captured output.
    pub fn new(cwd: &Path) -> Self {
        Self::with_limits(cwd, 64 << 20, 1 << 20)
    }

    pub fn with_limits(cwd: &Path, memory_bytes: u64, output_bytes: u64) -> Self {
        let (policy, dir) = vfs::started_from(cwd.to_str().unwrap().as_bytes());
        let mut host = Host::new(policy, output_bytes).unwrap();
        host.now = now;
        let mut memory = GuestMemory::new(memory_bytes).unwrap();
        let spaces = Spaces::new(PageTables::new(&mut memory).unwrap());
        let tmpfs = vfs::new_tmpfs(&host, &mut memory).unwrap();
        let caller = Arc::new(Creds::of_caller(&host.credentials.ids));
        let cwd = dir;
        let mut kernel = Kernel::new(NewKernel {
            cwd,
            caller,
            tmpfs,
            processes_max: 256,
            files_max: crate::rlimit::FILES_MOST,
            started_ns: 0,
        });
        // The thread makes calls: it is not in the queue.
        kernel.sched = Sched::default();
        let process = kernel.processes.get_mut(&PID).unwrap();
        let stack = process.rlimits.soft(Resource::Stack);
        process.exe = Arc::from(&b"/usr/bin/test"[..]);
        process.cmdline = Arc::from(&b"test\0-x\0"[..]);
        process.environ = Arc::from(&b"A=1\0"[..]);
        process.auxv = Arc::from(&[0u8; 16][..]);
        *kernel.mm_mut(PID).unwrap() = Mm::new(AslrSeed::default(), stack);
        let thread = kernel.threads.get_mut(&TID).unwrap();
        thread.comm = *b"test\0\0\0\0\0\0\0\0\0\0\0\0";
        let streams = [
            StdStream::Bytes(Arc::from(&b"input\n"[..])),
            StdStream::Capture,
            StdStream::Capture,
        ];
        vfs::stdio::set_up(&mut kernel, &mut memory, &mut host, PID, &streams).unwrap();
        let mut sandbox = Self {
            kernel,
            machine: Machine::new(memory, spaces, None, CpuInfo::default()),
            host,
            next: KEPT,
        };
        let region = Region {
            start: Gva(ARENA),
            len_bytes: ARENA_BYTES,
            prot: Prot::READ | Prot::WRITE,
            flags: VmaFlags::MAYWRITE,
            source: Source::Anon,
            offset: 0,
            name: None,
        };
        mm::map_region(&mut sandbox.cx(), &region).unwrap();
        sandbox
    }

    /// The context of the only thread.
    pub fn cx(&mut self) -> Cx<'_> {
        Cx {
            kernel: &mut self.kernel,
            machine: &mut self.machine,
            host: &mut self.host,
            tid: TID,
        }
    }

    /// Makes a call that may wait.
    pub fn outcome(&mut self, name: &str, args: &[Arg<'_>], state: &CallState) -> Outcome {
        let row = table::rows()
            .iter()
            .find(|row| row.name == name)
            .unwrap_or_else(|| panic!("no call {name}"));
        let mut words = [0u64; 6];
        let mut at = ARENA;
        for (word, arg) in words.iter_mut().zip(args) {
            *word = match arg {
                Arg::Int(value) => value.cast_unsigned(),
                Arg::Str(text) => {
                    let bytes = [text.as_bytes(), b"\0"].concat();
                    self.cx().write(Gva(at), &bytes).unwrap();
                    let here = at;
                    at += bytes.len() as u64;
                    here
                }
            };
        }
        let call = Call {
            nr: u64::from(row.nr),
            args: words,
        };
        self.host.begin_call();
        self.host.budget.begin();
        let mut outcome = table::call(&mut self.cx(), &call, state);
        while let Outcome::Again(state) = outcome {
            self.host.budget.begin();
            outcome = table::call(&mut self.cx(), &call, &state);
        }
        // As before any thread runs.
        while crate::net::drop_piece(&mut self.cx()) {}
        outcome
    }

    /// Makes a call that must not wait.
    pub fn call(&mut self, name: &str, args: &[Arg<'_>]) -> SysResult {
        match self.outcome(name, args, &CallState::default()) {
            Outcome::Done(result) => result,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// Faults all of user memory in, so that what is charged from now on is not memory's.
    pub fn touch_all(&mut self) {
        for at in (ARENA..ARENA + ARENA_BYTES).step_by(4096) {
            self.cx().write(Gva(at), &[0]).unwrap();
        }
    }

    /// Fresh user memory.
    pub fn room(&mut self, len_bytes: u64) -> i64 {
        let at = self.next;
        self.next += len_bytes.next_multiple_of(16);
        assert!(self.next <= ARENA + ARENA_BYTES, "the arena is too small");
        at.cast_signed()
    }

    /// Puts bytes into fresh user memory.
    pub fn put(&mut self, bytes: &[u8]) -> i64 {
        let at = self.room(bytes.len() as u64);
        self.cx().write(Gva(at.cast_unsigned()), bytes).unwrap();
        at
    }

    /// Puts a structure into fresh user memory.
    pub fn put_struct<T: IntoBytes + Immutable>(&mut self, value: &T) -> i64 {
        self.put(value.as_bytes())
    }

    /// Bytes of user memory.
    pub fn get(&mut self, at: i64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.cx().read(Gva(at.cast_unsigned()), &mut bytes).unwrap();
        bytes
    }

    /// A structure in user memory.
    pub fn get_struct<T: FromBytes + IntoBytes>(&mut self, at: i64) -> T {
        self.cx().read_struct(Gva(at.cast_unsigned())).unwrap()
    }

    /// open(2), as a descriptor.
    pub fn open(&mut self, path: &str, flags: i64) -> Result<i64, Errno> {
        call!(self, "open", path, flags, 0o666).map(u64::cast_signed)
    }

    /// read(2) of at most `len` bytes.
    pub fn read(&mut self, fd: i64, len: usize) -> Result<Vec<u8>, Errno> {
        let buf = self.room(len as u64);
        let count = call!(self, "read", fd, buf, len as i64)?;
        Ok(self.get(buf, count as usize))
    }

    /// write(2)
    pub fn write(&mut self, fd: i64, bytes: &[u8]) -> SysResult {
        let buf = self.put(bytes);
        call!(self, "write", fd, buf, bytes.len() as i64)
    }

    /// All of a file.
    pub fn slurp(&mut self, path: &str) -> Result<Vec<u8>, Errno> {
        let fd = self.open(path, 0)?;
        let mut all = Vec::new();
        let buf = self.room(4096);
        loop {
            let count = call!(self, "read", fd, buf, 4096)? as usize;
            if count == 0 {
                break;
            }
            all.extend(self.get(buf, count));
        }
        call!(self, "close", fd)?;
        Ok(all)
    }

    /// Creates a file with these contents.
    pub fn spill(&mut self, path: &str, bytes: &[u8]) -> Result<(), Errno> {
        let fd = self.open(path, 0o1101)?;
        assert_eq!(self.write(fd, bytes)?, bytes.len() as u64);
        call!(self, "close", fd).map(|_| ())
    }

    /// stat(2)
    pub fn stat(&mut self, path: &str) -> Result<Stat, Errno> {
        let buf = self.room(144);
        call!(self, "stat", path, buf)?;
        Ok(self.get_struct(buf))
    }

    /// Names in a directory, in the order given, without `.` and `..`.
    pub fn names(&mut self, path: &str) -> Result<Vec<String>, Errno> {
        let fd = self.open(path, 0o200_000)?;
        let buf = self.room(512);
        let mut names = Vec::new();
        loop {
            let count = call!(self, "getdents64", fd, buf, 512)? as usize;
            if count == 0 {
                break;
            }
            let bytes = self.get(buf, count);
            let mut at = 0;
            while at < count {
                let len = usize::from(u16::from_le_bytes([bytes[at + 16], bytes[at + 17]]));
                let name = &bytes[at + 19..at + len];
                let end = name.iter().position(|byte| *byte == 0).unwrap();
                names.push(String::from_utf8(name[..end].to_vec()).unwrap());
                at += len;
            }
        }
        call!(self, "close", fd)?;
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }

    /// True if a denial of `what` was recorded.
    pub fn denied(&self, what: &str) -> bool {
        self.host
            .report
            .denials
            .iter()
            .any(|denial| denial.what == what)
    }

    /// An array of struct iovec over fresh memory.
    pub fn iovecs(&mut self, parts: &[&[u8]]) -> i64 {
        let bytes: Vec<u8> = parts
            .iter()
            .flat_map(|part| {
                let iov_base = self.put(part).cast_unsigned();
                Iovec {
                    iov_base,
                    iov_len: part.len() as u64,
                }
                .as_bytes()
                .to_vec()
            })
            .collect();
        self.put(&bytes)
    }
}

/// The source files of this crate: the path of each below `src`, and its text.
pub fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut dirs) = (Vec::new(), vec![root.clone()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
            found.push((name.to_owned(), std::fs::read_to_string(&path).unwrap()));
        }
    }
    assert!(found.len() > 50);
    found
}
