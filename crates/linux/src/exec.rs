//! execve(2): a program file becomes an address space and a thread's first registers.

mod search;

use kvmlet_abi::linux::auxvec::{
    AT_BASE, AT_CLKTCK, AT_EGID, AT_ENTRY, AT_EUID, AT_EXECFN, AT_FLAGS, AT_GID, AT_HWCAP,
    AT_HWCAP2, AT_MINSIGSTKSZ, AT_PAGESZ, AT_PHDR, AT_PHENT, AT_PHNUM, AT_PLATFORM, AT_RANDOM,
    AT_SECURE, AT_SYSINFO_EHDR, AT_UID,
};
use std::sync::Arc;

use kvmlet_abi::addr::page_align_up;
use kvmlet_abi::{Errno, Gpa, Gva, PAGE_SIZE, UserRegs};
use kvmlet_elf::{ElfError, Image, Kind, LoadAction, StackFlags};

use crate::clock;
use crate::cx::Cx;
use crate::kernel::{Thread, Tid};
use crate::mm::{self, AslrSeed, Mm, Prot, Region, Source, VmaFlags};
use crate::rlimit::{self, Resource};
use crate::signal::ThreadSignals;
use crate::task;
use crate::vfs::{self, ExecFile};

pub use search::search;

/// Bytes of a file that must hold its ELF header and program headers.
const HEADER_MAX: usize = 64 << 10;
/// Interpreters in a row (`#!` of `#!`), as Linux's BINPRM limit.
const SCRIPT_DEPTH_MAX: u32 = kvmlet_elf::MAX_INTERPRETER_DEPTH;
/// Free space below the first stack's contents; the stack grows down on demand.
const STACK_INITIAL: u64 = 128 << 10;
/// Arguments and environment: at most a quarter of RLIMIT_STACK and three quarters of its initial
/// value, but always this much (ARG_MAX; bprm_stack_limits in fs/exec.c).
const ARGUMENTS_MIN: u64 = 128 << 10;
const ARGUMENTS_MAX: u64 = 6 << 20;
/// Room for the content of the first stack beside arguments and environment: auxiliary vector, names.
const STACK_EXTRA: u64 = 16 << 10;
/// AT_PLATFORM.
const PLATFORM: &[u8] = b"x86_64";

/// A request of execve(2).
#[derive(Clone, Debug)]
pub struct ExecRequest {
    /// Path as given.
    pub path: Vec<u8>,
    /// Arguments.
    pub argv: Vec<Vec<u8>>,
    /// Environment strings, `NAME=value`.
    pub envp: Vec<Vec<u8>>,
}

/// A program that is open already (execveat(2)).
#[derive(Clone, Debug)]
pub struct OpenProgram {
    /// The file.
    pub file: ExecFile,
    /// Says if the path in the request leads to it once the new program runs.
    pub path: PathAfter,
    /// The file that the thread is named after.
    pub named: Named,
}

/// The file that a thread is named after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Named {
    /// By the path in the request.
    ByPath,
    /// By the program that runs at last.
    ByProgram,
}

/// The fate of the path to a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathAfter {
    /// It leads there.
    Kept,
    /// It leads nowhere, since it names a descriptor that is closed: no interpreter can open it.
    Lost,
}

/// Why a program cannot be started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ExecError {
    /// The file cannot be opened for execution.
    Open {
        /// Its path.
        path: Vec<u8>,
        /// Why.
        errno: Errno,
    },
    /// The file is a directory.
    Directory {
        /// Its path.
        path: Vec<u8>,
    },
    /// The interpreter (of a script, or PT_INTERP) cannot be opened for execution.
    Interpreter {
        /// The program that names it.
        program: Vec<u8>,
        /// The interpreter's path.
        path: Vec<u8>,
        /// Why.
        errno: Errno,
    },
    /// Not a program that this machine runs.
    Format {
        /// The file.
        path: Vec<u8>,
        /// The fault in it.
        error: ElfError,
    },
    /// The address space or the stack cannot be built.
    Build(Errno),
}

impl ExecError {
    /// The error number that execve(2) answers with.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            // execve(2): "The file or a script interpreter is not a regular file."
            Self::Directory { .. } => Errno::EACCES,
            Self::Open { errno, .. } | Self::Interpreter { errno, .. } | Self::Build(errno) => {
                *errno
            }
            Self::Format { error, .. } => Errno::from_raw(error.errno().raw()),
        }
    }
}

impl From<Errno> for ExecError {
    fn from(errno: Errno) -> Self {
        Self::Build(errno)
    }
}

/// A program file looked at: nothing of the caller has changed yet.
struct Loaded {
    file: ExecFile,
    image: Image,
}

struct Program {
    main: Loaded,
    interpreter: Option<Loaded>,
    argv: Vec<Vec<u8>>,
    /// AT_EXECFN: the path as given, of the script if it is one.
    execfn: Vec<u8>,
    /// /proc/self/exe and the thread name.
    exe: Arc<[u8]>,
    comm: [u8; 16],
}

/// Bytes of arguments and environment together, with their pointers, at most.
///
/// # Errors
/// `ESRCH` if the process is gone.
pub fn arguments_max(cx: &mut Cx<'_>) -> Result<u64, Errno> {
    let quarter = rlimit::soft(cx, Resource::Stack)? / 4;
    Ok(quarter.clamp(ARGUMENTS_MIN, ARGUMENTS_MAX))
}

/// Replaces the calling process's program. On error before the point of no return nothing has changed;
/// after it, the program is killed, as in Linux.
///
/// # Errors
/// Those of execve(2).
pub fn replace(
    cx: &mut Cx<'_>,
    request: ExecRequest,
    opened: Option<OpenProgram>,
) -> Result<(), Errno> {
    let words = request.argv.iter().chain(&request.envp);
    let words_bytes: usize = words.map(|word| word.len().saturating_add(1)).sum();
    let envp = request.envp.clone();
    let program = look_up(cx, request, opened).map_err(|error| error.errno())?;
    // For /proc they are kept beside the stack.
    if !cx.machine.memory.has_room(words_bytes as u64) {
        close(cx, program);
        return Err(Errno::ENOMEM);
    }
    let result = commit(cx, &program, &envp);
    close(cx, program);
    if result.is_err() {
        task::exit::kill_self(cx, crate::signal::signo::SIGSEGV);
    }
    Ok(())
}

/// Starts the first program of a sandbox in the calling (still empty) process.
///
/// # Errors
/// Why it cannot be started, in the terms of a person's message.
pub fn boot(cx: &mut Cx<'_>, request: ExecRequest) -> Result<(), ExecError> {
    let envp = request.envp.clone();
    let program = look_up(cx, request, None)?;
    let result = commit(cx, &program, &envp);
    close(cx, program);
    result
}

/// Gives the files of a program up, be it started or not.
fn close(cx: &mut Cx<'_>, program: Program) {
    vfs::close_exec(cx, program.main.file);
    if let Some(interpreter) = program.interpreter {
        vfs::close_exec(cx, interpreter.file);
    }
}

/// Opens the file, follows `#!` lines, reads headers, opens the interpreter.
fn look_up(
    cx: &mut Cx<'_>,
    request: ExecRequest,
    opened: Option<OpenProgram>,
) -> Result<Program, ExecError> {
    let mut argv = request.argv;
    if argv.is_empty() {
        argv.push(Vec::new());
    }
    let mut path = request.path.clone();
    let mut scripted_by: Option<Vec<u8>> = None;
    let (mut first, mut is_lost, mut named) = (None, false, Named::ByPath);
    if let Some(opened) = opened {
        first = Some(opened.file);
        is_lost = opened.path == PathAfter::Lost;
        named = opened.named;
    }
    for _ in 0..=SCRIPT_DEPTH_MAX {
        let file = match first.take() {
            Some(file) => Ok(file),
            None => vfs::open_exec(cx, &path),
        };
        let file = match (file, &scripted_by) {
            (Ok(file), _) => file,
            (Err(Errno::EACCES), None) if vfs::is_directory(cx, &path) => {
                return Err(ExecError::Directory { path });
            }
            (Err(errno), None) => return Err(ExecError::Open { path, errno }),
            (Err(errno), Some(program)) => {
                return Err(ExecError::Interpreter {
                    program: program.clone(),
                    path,
                    errno,
                });
            }
        };
        let head = match vfs::read_exec(cx, &file, 0, HEADER_MAX) {
            Ok(head) => head,
            Err(errno) => {
                vfs::close_exec(cx, file);
                return Err(ExecError::Open { path, errno });
            }
        };
        match kvmlet_elf::parse_shebang(&head) {
            Some(Ok(_)) if is_lost => {
                vfs::close_exec(cx, file);
                let errno = Errno::ENOENT;
                return Err(ExecError::Open { path, errno });
            }
            Some(Ok(script)) => {
                vfs::close_exec(cx, file);
                let mut line = vec![script.interpreter.clone()];
                line.extend(script.arg);
                line.push(path.clone());
                line.extend(argv.drain(..).skip(1));
                argv = line;
                scripted_by = Some(core::mem::replace(&mut path, script.interpreter));
            }
            Some(Err(error)) => {
                vfs::close_exec(cx, file);
                return Err(ExecError::Format { path, error });
            }
            None => {
                let mut program = program(cx, path, file, &head, argv, request.path)?;
                if named == Named::ByProgram {
                    program.comm = comm(&program.exe);
                }
                return Ok(program);
            }
        }
    }
    Err(ExecError::Open {
        path,
        errno: Errno::ELOOP,
    })
}

fn program(
    cx: &mut Cx<'_>,
    path: Vec<u8>,
    file: ExecFile,
    head: &[u8],
    argv: Vec<Vec<u8>>,
    execfn: Vec<u8>,
) -> Result<Program, ExecError> {
    let image = match kvmlet_elf::parse(head, file.len_bytes) {
        Ok(image) => image,
        Err(error) => {
            vfs::close_exec(cx, file);
            return Err(ExecError::Format { path, error });
        }
    };
    let interpreter = match open_interpreter(cx, &path, &file, &image) {
        Ok(interpreter) => interpreter,
        Err(error) => {
            vfs::close_exec(cx, file);
            return Err(error);
        }
    };
    let exe = Arc::clone(&file.path);
    let comm = comm(&execfn);
    Ok(Program {
        main: Loaded { file, image },
        interpreter,
        argv,
        execfn,
        exe,
        comm,
    })
}

/// The name of a thread that runs a program: the end of its path.
fn comm(path: &[u8]) -> [u8; 16] {
    let mut comm = [0u8; 16];
    let base = path.rsplit(|byte| *byte == b'/').next();
    for (to, from) in comm
        .iter_mut()
        .zip(base.unwrap_or_default().iter().take(15))
    {
        *to = *from;
    }
    comm
}

fn open_interpreter(
    cx: &mut Cx<'_>,
    program: &[u8],
    file: &ExecFile,
    image: &Image,
) -> Result<Option<Loaded>, ExecError> {
    let Some(reference) = &image.interp else {
        return Ok(None);
    };
    let format = |error| ExecError::Format {
        path: program.to_vec(),
        error,
    };
    let len = usize::try_from(reference.len)
        .unwrap_or(usize::MAX)
        .min(HEADER_MAX);
    let bytes = vfs::read_exec(cx, file, reference.offset, len)?;
    let path = kvmlet_elf::read_interp(&bytes).map_err(format)?.to_vec();
    let failed = |errno| ExecError::Interpreter {
        program: program.to_vec(),
        path: path.clone(),
        errno,
    };
    let file = vfs::open_exec(cx, &path).map_err(failed)?;
    let parsed = vfs::read_exec(cx, &file, 0, HEADER_MAX)
        .map_err(failed)
        .and_then(|head| {
            kvmlet_elf::parse(&head, file.len_bytes).map_err(|error| ExecError::Format {
                path: path.clone(),
                error,
            })
        });
    match parsed {
        Ok(image) => Ok(Some(Loaded { file, image })),
        Err(error) => {
            vfs::close_exec(cx, file);
            Err(error)
        }
    }
}

/// The point of no return: the old address space goes, the new one comes.
fn commit(cx: &mut Cx<'_>, program: &Program, envp: &[Vec<u8>]) -> Result<(), ExecError> {
    cx.kernel.lose_call(cx.tid);
    become_leader(cx)?;
    let creds = Arc::new(cx.creds().after_exec());
    let process = cx.process()?;
    process.dumpable = creds.is_plain();
    if !creds.is_plain() {
        process.death_signal = 0;
    }
    cx.thread()?.creds = Arc::clone(&creds);
    if !cx.mm()?.vmas.is_empty() {
        mm::start_anew(cx)?;
    }
    let mut seed = [0u8; 32];
    clock::fill_random(&mut seed)?;
    let word = |at: usize| {
        seed.get(at..at.saturating_add(8))
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    };
    let seed = AslrSeed {
        mmap: word(0),
        stack: word(8),
        exe: word(16),
        brk: word(24),
    };
    let mut space = Mm::new(seed, rlimit::soft(cx, Resource::Stack)?);
    space.stack_addr = space.layout.stack_top.saturating_sub(PAGE_SIZE);
    let layout = space.layout;
    *cx.mm()? = space;

    let main = &program.main;
    let bias = match (main.image.kind, &program.interpreter) {
        (Kind::Static, _) => 0,
        (Kind::Dyn, Some(_)) => bias_at(&main.image, layout.exe_base),
        // A static-PIE program or a loader run by hand goes where mappings go, leaving the usual
        // place free for the program that a loader loads.
        (Kind::Dyn, None) => bias_below(&main.image, layout.mmap_top),
    };
    map_image(cx, main, bias)?;
    let format = |loaded: &Loaded, error| ExecError::Format {
        path: loaded.file.path.to_vec(),
        error,
    };
    let entry = main
        .image
        .entry_at(bias)
        .map_err(|error| format(main, error))?;
    let brk_from = main
        .image
        .span_at(bias)
        .map_err(|error| format(main, error))?
        .end;
    cx.mm()?
        .set_brk_start(brk_from.saturating_add(layout.brk_gap));

    let (mut start, mut interpreter_base) = (entry, 0);
    if let Some(interpreter) = &program.interpreter {
        let span = interpreter
            .image
            .load_span
            .end
            .saturating_sub(interpreter.image.load_span.start);
        let top = cx
            .mm()?
            .free_range(0, span, mm::Low2G::No)
            .map(|at| at.saturating_add(span))
            .ok_or(Errno::ENOMEM)?;
        interpreter_base = bias_below(&interpreter.image, top);
        map_image(cx, interpreter, interpreter_base)?;
        start = interpreter
            .image
            .entry_at(interpreter_base)
            .map_err(|error| format(interpreter, error))?;
    }
    let vdso = map_vdso(cx)?;
    let fixed = matches!(
        (main.image.kind, &program.interpreter),
        (Kind::Static, None)
    );
    mm::trampoline::map_page(cx, fixed.then_some(main.image.load_span.start))?;
    let executable = matches!(main.image.stack, StackFlags::Executable);
    let aux = [
        (AT_SYSINFO_EHDR, vdso),
        (AT_HWCAP, u64::from(cx.machine.cpu.hwcap)),
        (AT_PAGESZ, PAGE_SIZE),
        (AT_CLKTCK, 100),
        (AT_PHDR, main.image.phdr_at(bias)),
        (AT_PHENT, 56),
        (AT_PHNUM, u64::from(main.image.phnum)),
        (AT_BASE, interpreter_base),
        (AT_FLAGS, 0),
        (AT_ENTRY, entry),
        (AT_UID, u64::from(creds.user.real)),
        (AT_EUID, u64::from(creds.user.effective)),
        (AT_GID, u64::from(creds.group.real)),
        (AT_EGID, u64::from(creds.group.effective)),
        (AT_SECURE, u64::from(!creds.is_plain())),
        (AT_RANDOM, 0),
        (AT_HWCAP2, u64::from(cx.machine.cpu.hwcap2)),
        (AT_EXECFN, 0),
        (AT_PLATFORM, 0),
        (AT_MINSIGSTKSZ, cx.host.xstate_len as u64 + 1024),
    ];
    let mut random = [0u8; 16];
    clock::fill_random(&mut random)?;
    let argv: Vec<&[u8]> = program.argv.iter().map(Vec::as_slice).collect();
    let env: Vec<&[u8]> = envp.iter().map(Vec::as_slice).collect();
    let stack = kvmlet_elf::build_stack(
        layout.stack_top,
        &argv,
        &env,
        &aux,
        random,
        PLATFORM,
        &program.execfn,
        arguments_max(cx)?.saturating_add(STACK_EXTRA),
    )
    .map_err(|error| format(main, error))?;
    let image_len = layout.stack_top.saturating_sub(stack.base);
    map_stack(cx, layout.stack_top, image_len, executable)?;
    cx.write(Gva(stack.base), &stack.bytes)?;

    let part = |range: core::ops::Range<u64>| -> Arc<[u8]> {
        let at = |gva: u64| usize::try_from(gva.saturating_sub(stack.base)).unwrap_or(0);
        let bytes = stack.bytes.get(at(range.start)..at(range.end));
        Arc::from(bytes.unwrap_or_default())
    };
    let (environ, auxv) = (part(stack.env.clone()), part(stack.auxv.clone()));
    let process = cx.process()?;
    (process.environ, process.auxv) = (environ, auxv);

    finish(
        cx,
        program,
        UserRegs {
            rip: start,
            rsp: stack.sp,
            rflags: 0x202,
            ..UserRegs::default()
        },
    )?;
    Ok(())
}

/// Every other thread ends, and the caller takes the process's id (execve(2)).
fn become_leader(cx: &mut Cx<'_>) -> Result<(), Errno> {
    let pid = cx.process()?.pid;
    let leader = Tid(pid.0);
    let others: Vec<Tid> = cx
        .kernel
        .threads
        .values()
        .filter(|thread| thread.pid == pid && thread.tid != cx.tid)
        .map(|thread| thread.tid)
        .collect();
    // Each leaves its futexes as at its end, while the old memory is there.
    let mut walk = task::robust::Walk::default();
    walk.thread_exit(cx);
    let caller = cx.tid;
    for tid in others {
        cx.tid = tid;
        walk.thread_exit(cx);
        task::share::leave(cx);
        cx.tid = caller;
        task::exit::take_out(cx, tid);
    }
    if cx.tid != leader {
        let mut thread = task::exit::take_out(cx, cx.tid).ok_or(Errno::ESRCH)?;
        thread.tid = leader;
        cx.kernel.threads.insert(leader, thread);
        cx.kernel.sched.make_ready(leader);
        cx.tid = leader;
    }
    Ok(())
}

fn bias_at(image: &Image, address: u64) -> u64 {
    let align = image.max_align.max(PAGE_SIZE);
    (address & !align.wrapping_sub(1)).wrapping_sub(image.load_span.start)
}

fn bias_below(image: &Image, top: u64) -> u64 {
    let span = image.load_span.end.saturating_sub(image.load_span.start);
    bias_at(image, top.saturating_sub(span))
}

fn map_image(cx: &mut Cx<'_>, loaded: &Loaded, bias: u64) -> Result<(), ExecError> {
    let actions = loaded.image.plan(bias).map_err(|error| ExecError::Format {
        path: loaded.file.path.to_vec(),
        error,
    })?;
    for action in actions {
        if let LoadAction::MapFile { len, .. } | LoadAction::MapAnon { len, .. } = action {
            mm::check_address_space(cx, len)?;
        }
        match action {
            LoadAction::MapFile {
                vaddr,
                len,
                file_offset,
                prot,
            } => mm::map_region(
                cx,
                &Region {
                    start: Gva(vaddr),
                    len_bytes: len,
                    prot: Prot::from_bits_truncate(prot.bits()),
                    flags: VmaFlags::MAYWRITE,
                    source: loaded.file.source,
                    offset: file_offset,
                    name: Some(Arc::clone(&loaded.file.path)),
                },
            )?,
            LoadAction::MapAnon { vaddr, len, prot } => mm::map_region(
                cx,
                &Region {
                    start: Gva(vaddr),
                    len_bytes: len,
                    prot: Prot::from_bits_truncate(prot.bits()),
                    flags: VmaFlags::MAYWRITE,
                    source: Source::Anon,
                    offset: 0,
                    name: None,
                },
            )?,
            LoadAction::ZeroTail { vaddr, len } => {
                let zeros = [0u8; PAGE_SIZE as usize];
                let len = usize::try_from(len).unwrap_or(0).min(zeros.len());
                cx.write(Gva(vaddr), zeros.get(..len).unwrap_or_default())?;
            }
        }
    }
    Ok(())
}

/// The vDSO's data page and, directly after it, its image. Returns the image's address.
fn map_vdso(cx: &mut Cx<'_>) -> Result<u64, Errno> {
    let Some(vdso) = cx.machine.vdso else {
        return Ok(0);
    };
    let image_len = vdso.image_pages.saturating_mul(PAGE_SIZE);
    let total = image_len.saturating_add(PAGE_SIZE);
    let data = cx
        .mm()?
        .free_range(0, total, mm::Low2G::No)
        .ok_or(Errno::ENOMEM)?;
    let image = data.saturating_add(PAGE_SIZE);
    let region = |start, len_bytes, prot, gpa: Gpa, name: &[u8]| Region {
        start: Gva(start),
        len_bytes,
        prot,
        flags: VmaFlags::empty(),
        source: Source::Special(gpa),
        offset: 0,
        name: Some(name.into()),
    };
    mm::map_region(
        cx,
        &region(data, PAGE_SIZE, Prot::READ, vdso.data, b"[vvar]"),
    )?;
    let image_gpa = vdso.data.wrapping_add(PAGE_SIZE);
    mm::map_region(
        cx,
        &region(
            image,
            image_len,
            Prot::READ | Prot::EXEC,
            image_gpa,
            b"[vdso]",
        ),
    )?;
    Ok(image)
}

/// The stack as large as what it holds, and some more as RLIMIT_STACK allows (setup_arg_pages).
fn map_stack(cx: &mut Cx<'_>, top: u64, image_len: u64, executable: bool) -> Result<(), Errno> {
    let mut prot = Prot::READ | Prot::WRITE;
    if executable {
        prot |= Prot::EXEC;
    }
    let image_len = page_align_up(image_len).ok_or(Errno::ENOMEM)?;
    let limit = rlimit::soft(cx, Resource::Stack)? & !(PAGE_SIZE - 1);
    let len_bytes = image_len
        .saturating_add(STACK_INITIAL)
        .min(limit)
        .max(image_len);
    mm::check_address_space(cx, len_bytes)?;
    mm::map_region(
        cx,
        &Region {
            start: Gva(top.saturating_sub(len_bytes)),
            len_bytes,
            prot,
            flags: VmaFlags::MAYWRITE | VmaFlags::GROWSDOWN,
            source: Source::Anon,
            offset: 0,
            name: None,
        },
    )
}

/// Makes the other changes of execve(2): registers, signals, descriptors, names.
fn finish(cx: &mut Cx<'_>, program: &Program, regs: UserRegs) -> Result<(), Errno> {
    crate::signal::reset_for_exec(cx)?;
    let tid = cx.tid;
    let thread = cx.thread()?;
    *thread = Thread {
        regs,
        signals: ThreadSignals {
            mask: thread.signals.mask,
            pending: thread.signals.pending.clone(),
            ..ThreadSignals::default()
        },
        comm: program.comm,
        cpu_time_ns: thread.cpu_time_ns,
        io: thread.io,
        ..Thread::new((thread.pid, tid), thread.share, Arc::clone(&thread.creds))
    };
    let mut cmdline = Vec::new();
    for arg in &program.argv {
        cmdline.extend_from_slice(arg);
        cmdline.push(0);
    }
    let process = cx.process()?;
    process.has_execed = true;
    process.exit_signal = crate::signal::signo::SIGCHLD;
    let (pid, waiter) = (process.pid, process.vfork.take());
    cx.kernel.wake_vfork(pid, waiter);
    let process = cx.process()?;
    process.exe = Arc::clone(&program.exe);
    process.cmdline = cmdline.into();
    // What others share stays open for them.
    task::share::unshare_files(cx, task::share::Payer::Process)?;
    let closing: Vec<i32> = cx
        .fds()?
        .fds
        .iter()
        .filter(|(_, fd)| fd.cloexec)
        .map(|(number, _)| *number)
        .collect();
    for number in closing {
        vfs::close_fd(cx, number)?;
    }
    let process = cx.process()?;
    let cost_bytes = process.cost_bytes();
    let old_bytes = core::mem::replace(&mut process.charged_bytes, cost_bytes);
    cx.machine.memory.charge_kernel_anyway(cost_bytes);
    cx.machine.memory.uncharge_kernel(old_bytes);
    Ok(())
}
