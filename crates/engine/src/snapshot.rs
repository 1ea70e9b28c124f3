//! Frozen programs: freezing, forking, the VMs kept ready, and what a reset puts back.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvmlet_abi::{Gpa, Gva, PAGE_SIZE};
use kvmlet_hv::{Kvm, KvmKind, VcpuConfig, Vm};
use kvmlet_linux::clock::GuestClock;
use kvmlet_linux::cx::{CpuInfo, Cx, Machine, Vdso};
use kvmlet_linux::host::Host;
use kvmlet_linux::kernel::{Kernel, Tid};
use kvmlet_linux::mm::freeze::{MappedFile, settle};
use kvmlet_linux::personality::Personality;
use kvmlet_mem::{
    FrozenMemory, GuestMemory, HostPage, MemError, PageTables, ResetReport, SlotMemory,
};
use kvmlet_stub::vdso::HostClock;

use crate::boot::{self, VmmPages};
use crate::learned::Learned;
use crate::outcome::Ending;
use crate::prepare::raise_descriptor_limit;
use crate::run::{Sandbox, VcpuState, now_ns};
use crate::stats::Times;
use crate::transport::{Calls, Lendable, Transport, forget_threads};
use crate::{EngineError, Stat};

/// VMs without a program that a process keeps for the next snapshot.
const BLANK_VMS_MAX: usize = 16;
/// Forks that have been given up and wait, clean, to be forks again, unless the owner wants another
/// number.
const READY_KEPT: usize = 8;
/// Private memory that a fork may keep from one request to the next, in bytes; beyond it the fork is
/// built anew.
const KEPT_MAX_BYTES: u64 = 64 << 20;

/// A VM without memory slots, and its vCPU.
#[derive(Debug)]
struct BlankVm {
    vm: Vm,
    vcpu: VcpuState,
}

/// VMs that have been used and hold nothing: creating one costs many times an exit.
static BLANK: Mutex<BlankVms> = Mutex::new(BlankVms {
    process: 0,
    vms: Vec::new(),
});

#[derive(Debug)]
struct BlankVms {
    /// VM descriptors do not survive fork(2): the process that these belong to.
    process: u32,
    vms: Vec<BlankVm>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn blank_vms() -> MutexGuard<'static, BlankVms> {
    let mut blank = lock(&BLANK);
    let process = std::process::id();
    if blank.process != process {
        blank.process = process;
        // Dead copies of the parent's.
        blank.vms.clear();
    }
    blank
}

/// In a child of fork(2): closes the copies of the parent's emptied VMs. Does nothing if another thread
/// of the parent was using them at the fork; they are closed when the child looks for one then.
pub fn forget_vms() {
    forget_threads();
    if let Ok(mut blank) = BLANK.try_lock() {
        blank.vms.clear();
        blank.process = std::process::id();
    }
}

/// A VM with a snapshot's memory and a fork's own, which has not run since it was bound or reset.
#[derive(Debug)]
pub(crate) struct Bound {
    vm: Vm,
    vcpu: VcpuState,
    memory: GuestMemory,
    tables: PageTables,
    clock: Box<dyn GuestClock>,
}

/// What all forks of a snapshot share.
#[derive(Debug)]
pub(crate) struct Frozen {
    process: u32,
    memory: Arc<FrozenMemory>,
    /// What the program used when it was frozen.
    used_bytes: u64,
    pub kernel: Kernel,
    pub host: Host,
    files: Vec<MappedFile>,
    vdso: Vdso,
    /// What the clocks of forks begin as.
    clock: HostClock,
    cpu: CpuInfo,
    pub pages: VmmPages,
    kvm_kind: KvmKind,
    /// How calls of forks travel.
    calls: Calls,
    ready: Mutex<Vec<Bound>>,
    /// How many given-up forks `ready` takes.
    ready_max: AtomicUsize,
    learned: Mutex<Learned>,
    generation: AtomicU64,
    forks: AtomicU64,
}

/// A frozen program: any number of forks can be made of it, one after another or at once.
#[derive(Clone, Debug)]
pub struct Snapshot(Arc<Frozen>);

impl Snapshot {
    /// Freezes `sandbox`, whose guest is not running.
    pub(crate) fn freeze(mut sandbox: Sandbox) -> Result<Self, EngineError> {
        sandbox.personality.park(&mut sandbox.vcpu);
        sandbox.vcpu.check()?;
        let Sandbox {
            personality,
            mut vcpu,
            vm,
            pages,
            transport,
            ..
        } = sandbox;
        let Personality {
            mut kernel,
            mut machine,
            mut host,
            ..
        } = personality.into_inner()?;
        let tid = kernel.threads.keys().next().copied().unwrap_or(Tid(1));
        let mut cx = Cx {
            kernel: &mut kernel,
            machine: &mut machine,
            host: &mut host,
            tid,
        };
        let files = settle(&mut cx).map_err(|errno| {
            EngineError::Host(format!(
                "the program's mapped files cannot be frozen: {errno}"
            ))
        })?;
        let kvm_kind = vcpu.vcpu.kvm_kind().unwrap_or(KvmKind::Hardware);
        let Machine {
            mut memory,
            tables,
            vdso,
            cpu,
            ..
        } = machine;
        transport.detach();
        for gpa in pages.scratch() {
            memory.zero(gpa, PAGE_SIZE)?;
        }
        let vdso =
            vdso.ok_or_else(|| EngineError::Internal("a sandbox without a vDSO".to_owned()))?;
        let clock = boot::clock(&mut vcpu.vcpu);
        // The guest's memory is about to become read-only.
        vm.delete_all_slots()?;
        give_back_blank(vm, vcpu);
        // A fork may take back anything that is charged now.
        let used_bytes = memory.used_bytes();
        let memory = memory.freeze(tables, used_bytes)?;
        let host = host.fork();
        Ok(Self(Arc::new(Frozen {
            process: std::process::id(),
            memory,
            used_bytes,
            kernel,
            host,
            files,
            vdso,
            clock,
            cpu,
            pages,
            kvm_kind,
            calls: transport.mode(),
            ready: Mutex::default(),
            ready_max: AtomicUsize::new(READY_KEPT),
            learned: Mutex::default(),
            generation: AtomicU64::new(0),
            forks: AtomicU64::new(0),
        })))
    }

    /// A sandbox that goes on where this snapshot was frozen.
    ///
    /// # Errors
    /// [`EngineError::Stale`] when a mapped file has changed since the freeze,
    /// [`EngineError::Descriptors`], [`EngineError::Host`] or [`EngineError::Kvm`] when the host
    /// refuses what a VM needs.
    pub fn fork(&self) -> Result<Sandbox, EngineError> {
        let frozen = &self.0;
        frozen.check_process()?;
        frozen.check_files()?;
        let started_ns = now_ns();
        let ready = lock(&frozen.ready).pop();
        let bound = match ready {
            Some(bound) => bound,
            None => frozen.bind()?,
        };
        frozen.forks.fetch_add(1, Ordering::Relaxed);
        Ok(frozen.start(bound, Arc::clone(frozen), started_ns))
    }

    /// Binds VMs ahead, until `count` wait to be forks. From now on as many forks that are given up are
    /// kept, clean, for the next ones.
    ///
    /// # Errors
    /// As [`Snapshot::fork`]; those bound before stay.
    pub fn prepare(&self, count: usize) -> Result<(), EngineError> {
        self.0.check_process()?;
        self.0.ready_max.fetch_max(count, Ordering::Relaxed);
        while lock(&self.0.ready).len() < count {
            let bound = self.0.bind()?;
            lock(&self.0.ready).push(bound);
        }
        Ok(())
    }

    /// Gives up bound VMs beyond `count`, and keeps no more from now on.
    pub fn trim(&self, count: usize) {
        self.0.ready_max.store(count, Ordering::Relaxed);
        let surplus = {
            let mut ready = lock(&self.0.ready);
            let keep = count.min(ready.len());
            ready.split_off(keep)
        };
        for bound in surplus {
            bound.unbind();
        }
    }

    /// Counts, for people and benches.
    #[must_use]
    pub fn stats(&self) -> Vec<(String, Stat)> {
        let frozen = &self.0;
        let ready = lock(&frozen.ready).len() as u64;
        let learned = lock(&frozen.learned).ahead().len() as u64;
        [
            ("forks", frozen.forks.load(Ordering::Relaxed)),
            ("ready", ready),
            ("learned_pages", learned),
            ("frozen_bytes", frozen.used_bytes),
        ]
        .into_iter()
        .map(|(name, count)| (name.to_owned(), Stat::Count(count)))
        .collect()
    }
}

fn give_back_blank(vm: Vm, mut vcpu: VcpuState) {
    // The vCPU lets go of the old program's pages.
    let Ok(page) = HostPage::unbound() else {
        return;
    };
    vcpu.vcpu.rebind(VcpuConfig {
        cr3: Gpa(0),
        exc_stack: page.clone(),
        flush_stack: page.clone(),
        call_page: page,
        kvm_kind: vcpu.vcpu.kvm_kind(),
    });
    start_count(&vm, &mut vcpu);
    let mut blank = blank_vms();
    if blank.vms.len() < BLANK_VMS_MAX {
        blank.vms.push(BlankVm { vm, vcpu });
    }
}

/// What a VM does from now on counts for its next program.
fn start_count(vm: &Vm, vcpu: &mut VcpuState) {
    vcpu.vcpu.reset_counters();
    vm.reset_ioctls();
}

fn set_slots(vm: &Vm, slots: Vec<SlotMemory>) -> Result<(), EngineError> {
    for slot in slots {
        vm.set_slot(slot)?;
    }
    Ok(())
}

impl Bound {
    /// Takes the program out of the VM, which is kept for another.
    fn unbind(self) {
        let Self { vm, vcpu, .. } = self;
        // A VM that cannot be emptied is closed.
        if vm.delete_all_slots().is_ok() {
            give_back_blank(vm, vcpu);
        }
    }
}

impl Frozen {
    fn check_process(&self) -> Result<(), EngineError> {
        if self.process == std::process::id() {
            Ok(())
        } else {
            Err(EngineError::OtherProcess)
        }
    }

    fn check_files(&self) -> Result<(), EngineError> {
        match self
            .files
            .iter()
            .find(|file| !file.is_unchanged(&self.host))
        {
            None => Ok(()),
            Some(file) => Err(EngineError::Stale(
                String::from_utf8_lossy(file.name()).into_owned(),
            )),
        }
    }

    /// A VM with the snapshot's memory: an emptied one or a new one. Out of descriptors, the limit on
    /// them is raised as far as it may be.
    fn bind(&self) -> Result<Bound, EngineError> {
        let caught = std::panic::catch_unwind(AssertUnwindSafe(|| match self.bind_once() {
            Err(EngineError::Descriptors) if raise_descriptor_limit() => self.bind_once(),
            other => other,
        }));
        caught.unwrap_or_else(|panic| Err(EngineError::from_panic(panic.as_ref())))
    }

    fn bind_once(&self) -> Result<Bound, EngineError> {
        let blank = blank_vms().vms.pop();
        let (mut memory, tables) = self.fork_memory()?;
        let slots = memory.take_new_slots();
        let config = boot::vcpu_config(&memory, &tables, &self.pages, Some(self.kvm_kind))?;
        let (vm, mut vcpu) = match blank {
            Some(BlankVm { vm, mut vcpu }) => {
                set_slots(&vm, slots)?;
                vcpu.vcpu.rebind(config);
                (vm, vcpu)
            }
            None => {
                let vm = Kvm::open()?.create_vm()?;
                set_slots(&vm, slots)?;
                let vcpu = VcpuState::new(vm.create_vcpu(config)?);
                (vm, vcpu)
            }
        };
        let clock = boot::clock_for(&self.clock, &mut vcpu.vcpu);
        Ok(Bound {
            vm,
            vcpu,
            memory,
            tables,
            clock,
        })
    }

    /// A fork's memory, with the pages that requests are known to write copied ahead.
    fn fork_memory(&self) -> Result<(GuestMemory, PageTables), EngineError> {
        let (mut memory, mut tables) = self.memory.fork()?;
        let pages = lock(&self.learned).ahead().into_iter().map(Gva);
        tables.copy_ahead(&mut memory, pages, self.copy_keeper())?;
        Ok((memory, tables))
    }

    /// Which copies of frozen pages may stay mapped through a reset.
    fn copy_keeper(&self) -> impl FnMut(Gva) -> bool {
        // Only one process so far: each will have tables of its own.
        let mut keeper = self
            .kernel
            .processes
            .values()
            .next()
            .map(|process| process.mm.copy_keeper());
        move |gva| keeper.as_mut().is_some_and(|keeps| keeps(gva))
    }

    /// The number of the next fork or reset: never 0, which is the program before the freeze.
    fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn next_kernel(&self) -> Kernel {
        let mut kernel = self.kernel.clone();
        kernel.channel.generation = self.next_generation();
        kernel
    }

    fn start(&self, bound: Bound, origin: Arc<Self>, started_ns: u64) -> Sandbox {
        let Bound {
            vm,
            vcpu,
            memory,
            tables,
            clock,
        } = bound;
        let mut host = self.host.fork();
        host.clock = clock;
        // A fork's text would be put back at each reset: what is not direct by now stays so.
        let vdso = Vdso {
            trampolines: None,
            ..self.vdso
        };
        let machine = Machine::new(memory, tables, Some(vdso), self.cpu);
        Sandbox {
            vcpu,
            vm,
            personality: Lendable::new(Personality::new(self.next_kernel(), machine, host)),
            transport: Transport::new(self.calls),
            pages: self.pages,
            vdso_data: self.vdso.data,
            times: Times::default(),
            started_ns,
            full_flushes: 0,
            ended: None,
            origin: Some(origin),
            is_suspect: false,
            last_reset: ResetReport::default(),
        }
    }
}

impl Sandbox {
    /// Puts a fork back to its snapshot's state: nothing of what it did since is left.
    pub(crate) fn reset_to(&mut self, frozen: &Arc<Frozen>) -> Result<(), EngineError> {
        frozen.check_process()?;
        // What ended badly may have left the vCPU or the tables in any state.
        let report = match self.ended {
            Some(_) => None,
            None => self.reset_memory(frozen)?,
        };
        let Some(report) = report else {
            return self.rebuild(frozen);
        };
        for gpa in self.pages.scratch() {
            self.personality.machine.memory.zero(gpa, PAGE_SIZE)?;
        }
        self.vcpu.vcpu.hand_on();
        self.personality.assign(frozen.next_kernel());
        self.personality.host.reset(&frozen.host);
        lock(&frozen.learned).note_pages(
            report.named().map(|page| page.0),
            report.dropped.iter().map(|page| page.0),
        );
        self.last_reset = report;
        Ok(())
    }

    /// `None` if the fork must be built anew.
    fn reset_memory(&mut self, frozen: &Frozen) -> Result<Option<ResetReport>, EngineError> {
        let machine = &mut self.personality.machine;
        // What an unusual request has written would be compared by every later reset.
        if machine.tables.copies() > lock(&frozen.learned).kept_max() {
            let written_pages = machine.tables.written_copies();
            lock(&frozen.learned).note_size(written_pages);
            return Ok(None);
        }
        let reset = machine
            .tables
            .reset(&mut machine.memory, frozen.copy_keeper());
        if let Ok(report) = &reset {
            lock(&frozen.learned).note_size(report.written_pages);
        }
        match reset {
            Ok(report) if machine.memory.private_bytes() <= KEPT_MAX_BYTES => Ok(Some(report)),
            Ok(_) | Err(MemError::NeedsRebuild) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A new fork in the same VM, or in a new one if a fault of ours has left this one in a state that
    /// nobody knows.
    fn rebuild(&mut self, frozen: &Frozen) -> Result<(), EngineError> {
        // Until all is done there is nothing to run.
        let was = self.ended.replace(Ending::Broken);
        let (mut memory, tables) = frozen.fork_memory()?;
        let slots = memory.take_new_slots();
        let config = boot::vcpu_config(&memory, &tables, &frozen.pages, Some(frozen.kvm_kind))?;
        if was == Some(Ending::Broken) || self.is_suspect {
            let vm = Kvm::open()?.create_vm()?;
            set_slots(&vm, slots)?;
            self.vcpu = VcpuState::new(vm.create_vcpu(config)?);
            self.vm = vm;
            self.is_suspect = false;
        } else {
            self.vm.delete_all_slots()?;
            set_slots(&self.vm, slots)?;
            self.vcpu.vcpu.rebind(config);
        }
        self.transport.forget_link();
        let clock = boot::clock_for(&frozen.clock, &mut self.vcpu.vcpu);
        self.personality.machine.memory = memory;
        self.personality.machine.tables = tables;
        self.personality.host.clock = clock;
        self.personality.assign(frozen.next_kernel());
        self.personality.host.reset(&frozen.host);
        self.last_reset = ResetReport::default();
        self.ended = None;
        Ok(())
    }

    /// Ends this sandbox. The VM of a fork is kept: for the next fork of its snapshot if it can be put
    /// back, else for another program.
    pub fn retire(self) {
        // After a fault of ours the VM is closed with the sandbox.
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| self.hand_on()));
    }

    fn hand_on(mut self) {
        let Some(frozen) = self.origin.take() else {
            return;
        };
        let broken = self.is_suspect || self.ended == Some(Ending::Broken);
        if broken || frozen.check_process().is_err() {
            return;
        }
        let clean = self.ended.is_none() && matches!(self.reset_memory(&frozen), Ok(Some(_)));
        let Self {
            vm,
            mut vcpu,
            personality,
            pages,
            ..
        } = self;
        let Ok(personality) = personality.into_inner() else {
            return;
        };
        vcpu.vcpu.hand_on();
        start_count(&vm, &mut vcpu);
        let Machine {
            mut memory, tables, ..
        } = personality.machine;
        let scrubbed = pages
            .scratch()
            .into_iter()
            .all(|gpa| memory.zero(gpa, PAGE_SIZE).is_ok());
        let bound = Bound {
            vm,
            vcpu,
            memory,
            tables,
            clock: personality.host.clock,
        };
        let mut ready = lock(&frozen.ready);
        let room = ready.len() < frozen.ready_max.load(Ordering::Relaxed);
        if clean && scrubbed && room {
            ready.push(bound);
        } else {
            drop(ready);
            bound.unbind();
        }
    }
}
