//! Loading a program: a VM, a kernel value, and the program's file in memory.

use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_linux::{
    CpuInfo, Creds, Cx, Dir, ExecRequest, Host, Kernel, NewKernel, Personality, Pid, StdStream, Tid,
};
use kvmlet_mem::GuestMemory;

use crate::error::is_too_few;
use crate::prepare::raise_descriptor_limit;
use crate::sandbox::{Sandbox, Setup};
use crate::time::now_ns;
use crate::{EngineError, Program, Streams, Trace, vm};

/// Smallest memory limit that leaves room for a program.
const MEMORY_MIN_BYTES: u64 = 4 << 20;
/// Largest memory limit: what the guest-physical layout has room for.
const MEMORY_MAX_BYTES: u64 = 1 << 40;
/// Each has a thread, and there are no more threads.
const PROCESSES_MOST: usize = kvmlet_linux::THREADS_MAX;

/// Builds everything up to the program's first instruction. Out of descriptors, the limit on them is
/// raised as far as it may be.
pub(crate) fn build(program: &Program) -> Result<Sandbox, EngineError> {
    match build_once(program) {
        Err(EngineError::Descriptors) if raise_descriptor_limit() => build_once(program),
        other => other,
    }
}

/// Builds a box: everything but a program. Its commands have the directory and the limits of `program`.
pub(crate) fn build_box(program: &Program) -> Result<Sandbox, EngineError> {
    match build_box_once(program) {
        Err(EngineError::Descriptors) if raise_descriptor_limit() => build_box_once(program),
        other => other,
    }
}

fn build_box_once(program: &Program) -> Result<Sandbox, EngineError> {
    let mut sandbox = build_empty(program)?;
    sandbox
        .personality
        .become_holder(&program.cwd)
        .map_err(|errno| match errno {
            Errno::ENOMEM => EngineError::BadArgument("the memory limit is too small".to_owned()),
            errno => EngineError::Host(format!("the box cannot be set up: {errno}")),
        })?;
    Ok(sandbox)
}

fn build_once(program: &Program) -> Result<Sandbox, EngineError> {
    let mut sandbox = build_empty(program)?;
    load(program, &mut sandbox.personality)?;
    sandbox.times.setup_ns = now_ns().saturating_sub(sandbox.started_ns);
    Ok(sandbox)
}

/// Everything but the program.
fn build_empty(program: &Program) -> Result<Sandbox, EngineError> {
    let started_ns = now_ns();
    if !(MEMORY_MIN_BYTES..=MEMORY_MAX_BYTES).contains(&program.memory_bytes) {
        return Err(EngineError::BadArgument(format!(
            "a memory limit of {} bytes is out of range: give between 4m and 1024g",
            program.memory_bytes
        )));
    }
    if !(1..=PROCESSES_MOST).contains(&program.processes_max) {
        return Err(EngineError::BadArgument(format!(
            "a limit of {} processes is out of range: give between 1 and {PROCESSES_MOST}",
            program.processes_max
        )));
    }
    if !(1..=kvmlet_linux::FILES_MOST).contains(&program.files_max) {
        return Err(EngineError::BadArgument(format!(
            "a limit of {} descriptors is out of range: give between 1 and {}",
            program.files_max,
            kvmlet_linux::FILES_MOST
        )));
    }
    let (bound, pages, vdso) = vm::make(program.memory_bytes)?;
    let setup = Setup {
        pages,
        vdso,
        cpu: CpuInfo {
            hwcap: kvmlet_hv::cpuid_1_edx(),
            hwcap2: 2,
        },
        calls: program.calls,
    };
    let host = make_host(program)?;
    let cwd = Dir::Path(Arc::from(program.cwd.as_slice()));
    Sandbox::new(bound, host, &setup, started_ns, |host, memory| {
        first_kernel(cwd, program, host, memory)
    })
}

fn make_host(program: &Program) -> Result<Host, EngineError> {
    let limit = match &program.streams {
        Streams::Capture {
            output_limit_bytes, ..
        } => *output_limit_bytes,
        Streams::Inherit(_) => 0,
    };
    let mut host = Host::new(program.policy.clone(), limit).map_err(|errno| match errno {
        errno if is_too_few(errno) => EngineError::Descriptors,
        errno => EngineError::Host(format!("the file system cannot be opened: {errno}")),
    })?;
    host.set_access(Arc::clone(&program.access));
    host.report.trace = program.trace == Trace::On;
    Ok(host)
}

fn first_kernel(
    cwd: Dir,
    program: &Program,
    host: &Host,
    memory: &mut GuestMemory,
) -> Result<Kernel, EngineError> {
    let mut tmpfs = kvmlet_linux::new_tmpfs(host, memory).map_err(|errno| {
        EngineError::BadArgument(format!("the memory limit is too small: {errno}"))
    })?;
    if let Some(disk) = &program.disk {
        tmpfs.set_disk(disk.clone());
    }
    Ok(Kernel::new(NewKernel {
        cwd,
        caller: Arc::new(Creds::of_caller(&host.credentials.ids)),
        tmpfs,
        processes_max: program.processes_max,
        files_max: program.files_max,
        started_ns: kvmlet_linux::boottime_ns(host),
    }))
}

/// Opens the program's standard streams, finds its file, and puts it where its first thread starts.
fn load(program: &Program, personality: &mut Personality) -> Result<(), EngineError> {
    let Personality {
        kernel,
        machine,
        host,
        ..
    } = personality;
    let streams = match &program.streams {
        Streams::Inherit(inherited) => [0; 3].map(|_| StdStream::Inherit(inherited)),
        Streams::Capture { input, .. } => [
            StdStream::Bytes(Arc::from(input.as_slice())),
            StdStream::Capture,
            StdStream::Capture,
        ],
    };
    kvmlet_linux::set_up_streams(kernel, &mut machine.memory, host, Pid::FIRST, &streams).map_err(
        |errno| match errno {
            errno if is_too_few(errno) => EngineError::Descriptors,
            errno => EngineError::Host(format!("the standard streams cannot be set up: {errno}")),
        },
    )?;
    let mut cx = Cx {
        kernel,
        machine,
        host,
        tid: Tid::FIRST,
    };
    kvmlet_linux::enter_cwd(&mut cx)
        .map_err(|errno| EngineError::Host(format!("the current directory: {errno}")))?;
    let path = find_program(&mut cx, program)?;
    let envp = program
        .env
        .iter()
        .map(|(name, value)| [name.as_slice(), b"=", value.as_slice()].concat())
        .collect();
    kvmlet_linux::load(
        &mut cx,
        ExecRequest {
            path,
            argv: program.argv.clone(),
            envp,
        },
    )?;
    Ok(())
}

/// The program's path: a name without a slash is looked up in the guest's PATH.
fn find_program(cx: &mut Cx<'_>, program: &Program) -> Result<Vec<u8>, EngineError> {
    let name = program
        .argv
        .first()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| EngineError::BadArgument("no program was given".to_owned()))?;
    let path = program
        .env
        .iter()
        .find(|(key, _)| key == b"PATH")
        .map_or(&b""[..], |(_, value)| value);
    kvmlet_linux::search_path(cx, name, path)
        .ok_or_else(|| EngineError::NotFound(String::from_utf8_lossy(name).into_owned()))
}
