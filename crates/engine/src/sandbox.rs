//! A sandbox: one program in one VM.

use std::sync::Arc;

use kvmlet_abi::layout::StubConstant;
use kvmlet_linux::{
    ChangeSet, CpuInfo, Door, Host, Kernel, Machine, Personality, Process, Thread, Vdso,
};
use kvmlet_mem::{GuestMemory, ResetReport};

use crate::EngineError;
use crate::asking::Asking;
use crate::clones::Reseeding;
use crate::outcome::{Ending, RunOutcome};
use crate::snapshot::Frozen;
use crate::stats::{self, Times};
use crate::time::now_ns;
use crate::transport::{Calls, Lendable, Transport};
use crate::vm::{BoundVm, GuestVm, VmmPages};

/// A program in its VM. Any thread may use it, one at a time; the guest runs only inside the methods
/// that say so.
#[derive(Debug)]
pub struct Sandbox {
    pub(crate) guest: GuestVm,
    pub(crate) personality: Lendable,
    /// The way that its calls travel.
    pub(crate) transport: Transport,
    pub(crate) setup: Setup,
    pub(crate) times: Times,
    /// When the build began, on the host's CLOCK_MONOTONIC.
    pub(crate) started_ns: u64,
    pub(crate) full_flushes: u64,
    /// The way that the program has ended.
    pub(crate) ended: Option<Ending>,
    /// The snapshot that this is a fork of.
    pub(crate) origin: Option<Arc<Frozen>>,
    /// True if the vCPU is in a state that nobody knows: it is not used for another program.
    pub(crate) is_suspect: bool,
    /// The report of the last reset.
    pub(crate) last_reset: ResetReport,
    /// The place where the program was last found to wait for connections.
    pub(crate) door: Option<Door>,
    /// The functions that each fork of it is to call first.
    pub(crate) reseeding: Vec<Reseeding>,
    /// The generation in which they were called last.
    pub(crate) reseeded: Option<u64>,
    /// The generation in which it ran last, if it is a fork.
    pub(crate) woken: Option<u64>,
    /// Memory that a fork of it may use beyond what is frozen, if that is not as much as the program may.
    pub(crate) fork_memory_bytes: Option<u64>,
    /// Those whom the program may ask.
    pub(crate) asking: Option<Asking>,
}

/// Things that a sandbox is set up with, and every fork of it again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub pages: VmmPages,
    pub vdso: Vdso,
    pub cpu: CpuInfo,
    /// The way that its calls travel.
    pub calls: Calls,
}

/// The answers that the stub gives for a thread, in the order of [`StubConstant`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StubConstants([u32; Self::SLOTS]);

impl StubConstants {
    const SLOTS: usize = StubConstant::Tid as usize + 1;
    const LEN_BYTES: usize = Self::SLOTS * 8;

    /// Those of a thread of a process.
    pub(crate) fn of(thread: &Thread, process: &Process) -> Self {
        let (user, group) = (thread.creds.user, thread.creds.group);
        let [pid, ppid, tid] =
            [process.pid.0, process.ppid.0, thread.tid.0].map(i32::cast_unsigned);
        Self([
            pid,
            user.real,
            user.effective,
            group.real,
            group.effective,
            ppid,
            tid,
        ])
    }
}

impl Sandbox {
    /// A program, or what will be one, in a VM that has not run. The build began at `started_ns`. `kernel`
    /// makes the kernel value, when `host` has the VM's clock.
    pub(crate) fn new(
        bound: BoundVm,
        mut host: Host,
        setup: &Setup,
        started_ns: u64,
        kernel: impl FnOnce(&Host, &mut GuestMemory) -> Result<Kernel, EngineError>,
    ) -> Result<Self, EngineError> {
        let BoundVm {
            guest,
            mut memory,
            spaces,
            clock,
        } = bound;
        let xstate = guest.vcpu.xstate_layout();
        host.xfeatures = xstate.xcr0;
        host.xstate_len = xstate.len_bytes;
        host.clock = clock;
        let kernel = kernel(&host, &mut memory)?;
        let machine = Machine::new(memory, spaces, Some(setup.vdso), setup.cpu);
        let mut sandbox = Self {
            guest,
            personality: Lendable::new(Personality::new(kernel, machine, host)),
            transport: Transport::new(setup.calls),
            setup: *setup,
            times: Times::default(),
            started_ns,
            full_flushes: 0,
            ended: None,
            origin: None,
            is_suspect: false,
            last_reset: ResetReport::default(),
            door: None,
            reseeding: Vec::new(),
            reseeded: None,
            woken: None,
            fork_memory_bytes: None,
            asking: None,
        };
        sandbox.watch_network();
        Ok(sandbox)
    }

    /// Has each fork of this program, once it is frozen, use `len_bytes` of memory at most beyond what the frozen
    /// program uses. Pages of that which a fork writes do not count.
    pub fn limit_forks(&mut self, len_bytes: u64) {
        self.fork_memory_bytes = Some(len_bytes);
    }

    /// Writes the constants that the stub answers from.
    pub(crate) fn write_constants(&mut self, constants: StubConstants) -> Result<(), EngineError> {
        let mut bytes = [0; StubConstants::LEN_BYTES];
        for (word, value) in bytes.chunks_exact_mut(8).zip(constants.0) {
            word.copy_from_slice(&u64::from(value).to_le_bytes());
        }
        let at = self.setup.pages.stub_data;
        Ok(self.personality.machine.memory.write(at, &bytes)?)
    }

    /// Takes the things that the program left, with its counters.
    pub(crate) fn take_outcome(&mut self, ending: Ending) -> RunOutcome {
        self.times.wall_ns = now_ns().saturating_sub(self.started_ns);
        let (denials, events) = self.personality.take_report();
        let Personality {
            kernel,
            host,
            machine,
            ..
        } = &mut *self.personality;
        let changes = kvmlet_linux::changes(&kernel.tmpfs, &machine.memory, host);
        let mut stats = stats::collect(
            self.guest.vcpu.counters(),
            self.guest.vm.ioctls(),
            self.full_flushes,
            &self.times,
            &self.transport.counts(),
            machine.memory.peak_bytes(),
            &host.report,
        );
        let files = &kernel.tmpfs;
        stats.extend(stats::of_files(files.disk_bytes(), files.refused_pages()));
        let uses = std::mem::take(&mut host.report.uses);
        RunOutcome {
            ending,
            stdout: std::mem::take(&mut host.captured.stdout),
            stderr: std::mem::take(&mut host.captured.stderr),
            denials,
            events,
            changes,
            uses,
            stats,
        }
    }

    /// The changes that the program has made, with their contents. The VM ends.
    pub(crate) fn into_changes(self) -> Result<ChangeSet, EngineError> {
        let Personality {
            kernel,
            machine,
            host,
            ..
        } = self.personality.into_inner()?;
        // Nothing runs any more, and nobody looks.
        drop(self.guest);
        Ok(ChangeSet::take(
            kernel.tmpfs.into_inner(),
            machine.memory,
            host,
        ))
    }
}
