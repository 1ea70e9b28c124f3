//! A question about a path, answered by the personality alone: there is no VM and no program.

use std::sync::Arc;

use kvmlet_linux::{
    CpuInfo, Creds, Cx, Dir, Host, Kernel, Machine, NewKernel, Pid, StdStream, Tid, Verdict,
    verdict,
};
use kvmlet_mem::{GuestMemory, PageTables, Spaces};
use kvmlet_policy::Policy;

use crate::EngineError;

/// Enough for the directories that lead to a path.
const MEMORY_BYTES: u64 = 64 << 20;

/// The things that a program under `policy` would meet at absolute `path`.
///
/// # Errors
/// [`EngineError::Host`]
pub fn why(policy: &Policy, path: &[u8]) -> Result<Verdict, EngineError> {
    crate::caught(|| {
        let (mut kernel, mut machine, mut host) =
            parts(policy).map_err(|error| EngineError::Host(error.to_string()))?;
        let mut cx = Cx {
            kernel: &mut kernel,
            machine: &mut machine,
            host: &mut host,
            tid: Tid::FIRST,
        };
        Ok(verdict(&mut cx, path))
    })
}

fn parts(policy: &Policy) -> Result<(Kernel, Machine, Host), Box<dyn std::error::Error>> {
    let mut host = Host::new(policy.clone(), 0)?;
    let mut memory = GuestMemory::new(MEMORY_BYTES)?;
    let spaces = Spaces::new(PageTables::new(&mut memory)?);
    let mut kernel = Kernel::new(NewKernel {
        cwd: Dir::Path(Arc::from(b"/".as_slice())),
        caller: Arc::new(Creds::of_caller(&host.credentials.ids)),
        tmpfs: kvmlet_linux::new_tmpfs(&host, &mut memory)?,
        processes_max: 1,
        files_max: kvmlet_linux::FILES_MOST,
        started_ns: kvmlet_linux::boottime_ns(&host),
    });
    // /dev/stdin and the like lead to them.
    let streams = [
        StdStream::Bytes(Arc::default()),
        StdStream::Capture,
        StdStream::Capture,
    ];
    kvmlet_linux::set_up_streams(&mut kernel, &mut memory, &mut host, Pid::FIRST, &streams)?;
    let machine = Machine::new(memory, spaces, None, CpuInfo::default());
    Ok((kernel, machine, host))
}
