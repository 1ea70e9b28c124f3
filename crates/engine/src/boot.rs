//! Building a sandbox: memory, the VMM's pages, a vCPU, the kernel value, the program.

use std::sync::Arc;

use kvmlet_abi::layout;
use kvmlet_abi::vdso_data::{VdsoClock, VdsoTimestamp};
use kvmlet_abi::{Gpa, Gva, PAGE_SIZE};
use kvmlet_hv::{Kvm, KvmKind, Vcpu, VcpuConfig};
use kvmlet_linux::clock::GuestClock;
use kvmlet_linux::cx::{CpuInfo, Cx, Machine, Vdso};
use kvmlet_linux::exec::{self, ExecRequest};
use kvmlet_linux::host::Host;
use kvmlet_linux::kernel::{Ids, Kernel, NewKernel, Pid, Tid};
use kvmlet_linux::personality::Personality;
use kvmlet_linux::vfs::{self, Dir, StdStream};
use kvmlet_mem::{GuestMemory, PageSize, PageTables, PteFlags, ResetReport};
use kvmlet_stub::vdso::{self, ClockConfig, GuestTsc, HostClock};

use crate::error::is_too_few;
use crate::prepare::raise_descriptor_limit;
use crate::run::{Sandbox, VcpuState, now_ns};
use crate::stats::Times;
use crate::transport::{Lendable, Transport};
use crate::{EngineError, Program, Streams, Trace};

/// Smallest memory limit that leaves room for a program.
const MEMORY_MIN_BYTES: u64 = 4 << 20;
/// Largest memory limit: what the guest-physical layout has room for.
const MEMORY_MAX_BYTES: u64 = 1 << 40;

/// Guest time by the TSC, shared by calls and the vDSO.
#[derive(Debug)]
struct TscClock(HostClock);

impl GuestClock for TscClock {
    fn read(&self, clock: VdsoClock) -> VdsoTimestamp {
        self.0.read(clock)
    }

    fn update(&mut self, write: &mut dyn FnMut(usize, &[u8])) {
        self.0.update(write);
    }
}

/// The VMM's pages that something outside refers to later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VmmPages {
    exc_stack: Gpa,
    df_stack: Gpa,
    flush_stack: Gpa,
    call_page: Gpa,
    pub stub_data: Gpa,
}

impl VmmPages {
    /// Pages that hold what a program's registers held.
    pub fn scratch(&self) -> [Gpa; 4] {
        [
            self.exc_stack,
            self.df_stack,
            self.flush_stack,
            self.call_page,
        ]
    }
}

/// Builds everything up to the program's first instruction. Out of descriptors, the limit on them is
/// raised as far as it may be.
pub(crate) fn build(program: &Program) -> Result<Sandbox, EngineError> {
    match build_once(program) {
        Err(EngineError::Descriptors) if raise_descriptor_limit() => build_once(program),
        other => other,
    }
}

fn build_once(program: &Program) -> Result<Sandbox, EngineError> {
    let started_ns = now_ns();
    if !(MEMORY_MIN_BYTES..=MEMORY_MAX_BYTES).contains(&program.memory_bytes) {
        return Err(EngineError::BadArgument(format!(
            "a memory limit of {} bytes is out of range: give between 4m and 1024g",
            program.memory_bytes
        )));
    }
    let kvm = Kvm::open()?;
    let vm = kvm.create_vm()?;
    let mut memory = GuestMemory::new(program.memory_bytes)?;
    let mut tables = PageTables::new(&mut memory)?;
    let known = kvm.known_kvm_kind();
    let pages = map_vmm_pages(&mut memory, &mut tables, known)?;
    let mut vdso_pages = place_vdso(&mut memory)?;
    for slot in memory.take_new_slots() {
        vm.set_slot(slot)?;
    }
    let mut vcpu = vm.create_vcpu(vcpu_config(&memory, &tables, &pages, known)?)?;
    let kvm_kind = match known {
        Some(kvm_kind) => kvm_kind,
        None => {
            let kvm_kind = vcpu.probe_kvm_kind()?;
            tables.unmap_range(
                &mut memory,
                layout::PROBE_CODE,
                PAGE_SIZE,
                |memory, _, leaf| {
                    memory.free_frame(leaf.gpa);
                },
            )?;
            if kvm_kind == KvmKind::Hardware {
                settle_kvm_kind(&mut memory, &mut tables, kvm_kind)?;
            }
            kvm_kind
        }
    };
    if kvm_kind == KvmKind::Software {
        memory.expose_tables()?;
        tables.attach_window(&mut memory);
        let trampolines = trampoline_page(&vdso_pages);
        memory.write(trampolines, &kvmlet_stub::trampoline::page_image())?;
        vdso_pages.trampolines = Some(trampolines);
    }
    let clock = guest_clock(clock(&mut vcpu));
    let xstate = vcpu.xstate_layout();
    let cpu = CpuInfo {
        hwcap: kvmlet_hv::cpuid_1_edx(),
        hwcap2: 2,
    };
    let mut machine = Machine::new(memory, tables, Some(vdso_pages), cpu);
    let (mut host, cwd) = make_host(program)?;
    host.clock = clock;
    host.xfeatures = xstate.xcr0;
    host.xstate_len = xstate.len_bytes;
    let mut kernel = first_kernel(cwd, &host, &mut machine.memory)?;
    start_program(program, &mut kernel, &mut machine, &mut host)?;

    let mut sandbox = Sandbox {
        vcpu: VcpuState::new(vcpu),
        vm,
        personality: Lendable::new(Personality::new(kernel, machine, host)),
        transport: Transport::new(program.calls),
        pages,
        vdso_data: vdso_pages.data,
        times: Times::default(),
        started_ns,
        full_flushes: 0,
        ended: None,
        origin: None,
        is_suspect: false,
        last_reset: ResetReport::default(),
    };
    sandbox.write_constants()?;
    sandbox.times.setup_ns = now_ns().saturating_sub(started_ns);
    Ok(sandbox)
}

/// The clock of a VM. It writes the vDSO's data page before the guest runs.
pub(crate) fn clock(vcpu: &mut Vcpu) -> HostClock {
    HostClock::new(ClockConfig {
        guest_tsc: guest_tsc(vcpu),
        tsc_khz: vcpu.tsc_khz(),
        ..ClockConfig::default()
    })
}

/// The same clock for another VM.
pub(crate) fn clock_for(clock: &HostClock, vcpu: &mut Vcpu) -> Box<dyn GuestClock> {
    let mut clock = clock.clone();
    clock.set_guest_tsc(guest_tsc(vcpu));
    guest_clock(clock)
}

pub(crate) fn guest_clock(clock: HostClock) -> Box<dyn GuestClock> {
    Box::new(TscClock(clock))
}

/// A kernel that cannot say (before 5.16) has the guest ask for the time by calls.
fn guest_tsc(vcpu: &mut Vcpu) -> GuestTsc {
    vcpu.tsc_offset()
        .map_or(GuestTsc::Unrelated, GuestTsc::Offset)
}

/// What a vCPU is made of over these tables.
pub(crate) fn vcpu_config(
    memory: &GuestMemory,
    tables: &PageTables,
    pages: &VmmPages,
    kvm_kind: Option<KvmKind>,
) -> Result<VcpuConfig, EngineError> {
    let page = |gpa| {
        memory
            .host_page(gpa)
            .ok_or_else(|| EngineError::Internal("a VMM page has no memory".to_owned()))
    };
    Ok(VcpuConfig {
        cr3: tables.root(),
        exc_stack: page(pages.exc_stack)?,
        flush_stack: page(pages.flush_stack)?,
        call_page: page(pages.call_page)?,
        kvm_kind,
    })
}

fn place(
    memory: &mut GuestMemory,
    tables: &mut PageTables,
    gva: Gva,
    bytes: &[u8],
    flags: PteFlags,
) -> Result<Gpa, EngineError> {
    let gpa = memory.alloc_table_frame()?;
    memory.write(gpa, bytes)?;
    tables.map(memory, gva, gpa, PageSize::Base, flags)?;
    Ok(gpa)
}

/// The pages of [`layout`]. Before the kind of KVM is known the syscall page is the software form, and the
/// probe code is there too.
fn map_vmm_pages(
    memory: &mut GuestMemory,
    tables: &mut PageTables,
    kvm_kind: Option<KvmKind>,
) -> Result<VmmPages, EngineError> {
    let data = PteFlags::WRITE | PteFlags::NX;
    let code = PteFlags::empty();
    place(memory, tables, layout::GDT, &kvmlet_stub::gdt_image(), data)?;
    place(
        memory,
        tables,
        layout::IDT,
        &kvmlet_stub::idt_image(),
        PteFlags::NX,
    )?;
    let stub_kind = kvm_kind.unwrap_or(KvmKind::Software);
    place(
        memory,
        tables,
        layout::TSS,
        &kvmlet_stub::tss_image(stub_kind),
        data,
    )?;
    let exc_stack = place(memory, tables, layout::EXC_STACK, &[], data)?;
    let df_stack = place(memory, tables, layout::DF_STACK, &[], data)?;
    let flush_stack = place(memory, tables, layout::FLUSH_STACK, &[], data)?;
    place(
        memory,
        tables,
        layout::EXC_CODE,
        kvmlet_stub::exception_code(),
        code,
    )?;
    let syscall = kvmlet_stub::syscall_code(stub_kind);
    let user = user_flag(stub_kind);
    place(memory, tables, layout::SYSCALL_CODE, syscall, code | user)?;
    let stub_data = place(memory, tables, layout::STUB_DATA, &[], PteFlags::NX | user)?;
    let call_page = place(memory, tables, layout::CALL_PAGE, &[], data | user)?;
    if kvm_kind.is_none() {
        place(
            memory,
            tables,
            layout::PROBE_CODE,
            kvmlet_stub::probe_code(),
            code | PteFlags::USER,
        )?;
    }
    Ok(VmmPages {
        exc_stack,
        df_stack,
        flush_stack,
        call_page,
        stub_data,
    })
}

fn user_flag(kvm_kind: KvmKind) -> PteFlags {
    match kvm_kind {
        KvmKind::Software => PteFlags::USER,
        KvmKind::Hardware => PteFlags::empty(),
    }
}

/// After the probe: replaces the syscall page and the task state segment by `kind of KVM`'s forms, and
/// narrows the syscall page, its constants and the call page.
fn settle_kvm_kind(
    memory: &mut GuestMemory,
    tables: &mut PageTables,
    kvm_kind: KvmKind,
) -> Result<(), EngineError> {
    let user = user_flag(kvm_kind);
    if let Some(gpa) = tables.translate(memory, layout::TSS) {
        memory.write(gpa, &kvmlet_stub::tss_image(kvm_kind))?;
    }
    if let Some(gpa) = tables.translate(memory, layout::SYSCALL_CODE) {
        memory.zero(gpa, PAGE_SIZE)?;
        memory.write(gpa, kvmlet_stub::syscall_code(kvm_kind))?;
    }
    tables.protect_range(memory, layout::SYSCALL_CODE, PAGE_SIZE, user)?;
    tables.protect_range(memory, layout::STUB_DATA, PAGE_SIZE, PteFlags::NX | user)?;
    let data = PteFlags::NX | PteFlags::WRITE | user;
    tables.protect_range(memory, layout::CALL_PAGE, PAGE_SIZE, data)?;
    Ok(())
}

/// The frame behind the vDSO's image: the trampoline page, where `syscall` costs more than a polled call.
fn trampoline_page(vdso: &Vdso) -> Gpa {
    vdso.data.wrapping_add((vdso.image_pages + 1) * PAGE_SIZE)
}

/// Frames of the vDSO: a data page, the image directly behind it, and a page for trampolines.
fn place_vdso(memory: &mut GuestMemory) -> Result<Vdso, EngineError> {
    let image = vdso::image();
    let image_pages = (image.len() as u64).div_ceil(PAGE_SIZE);
    // Table frames: each fork has a copy of them in a slot of its own, and writes its data page there.
    let data = memory.alloc_table_run(image_pages + 2)?;
    for (index, page) in image.chunks(PAGE_SIZE as usize).enumerate() {
        memory.write(data.wrapping_add((index as u64 + 1) * PAGE_SIZE), page)?;
    }
    Ok(Vdso {
        data,
        image_pages,
        trampolines: None,
    })
}

fn make_host(program: &Program) -> Result<(Host, Dir), EngineError> {
    let (mut policy, cwd) = vfs::stdio::started_from(&program.cwd);
    for tree in &program.readable {
        policy.allow_tree(tree).map_err(|error| {
            EngineError::BadArgument(format!("{}: {error}", String::from_utf8_lossy(tree)))
        })?;
    }
    let limit = match &program.streams {
        Streams::Capture {
            output_limit_bytes, ..
        } => *output_limit_bytes,
        Streams::Inherit(_) => 0,
    };
    let mut host = Host::new(policy, limit).map_err(|errno| match errno {
        errno if is_too_few(errno) => EngineError::Descriptors,
        errno => EngineError::Host(format!("the file system cannot be opened: {errno}")),
    })?;
    host.report.trace = program.trace == Trace::On;
    Ok((host, cwd))
}

fn first_kernel(cwd: Dir, host: &Host, memory: &mut GuestMemory) -> Result<Kernel, EngineError> {
    let ids = Ids {
        uid: host.credentials.uid,
        gid: host.credentials.gid,
    };
    let tmpfs = vfs::new_tmpfs(host, memory).map_err(|errno| {
        EngineError::BadArgument(format!("the memory limit is too small: {errno}"))
    })?;
    Ok(Kernel::new(NewKernel { cwd, ids, tmpfs }))
}

fn start_program(
    program: &Program,
    kernel: &mut Kernel,
    machine: &mut Machine,
    host: &mut Host,
) -> Result<(), EngineError> {
    let streams = match &program.streams {
        Streams::Inherit(inherited) => [0; 3].map(|_| StdStream::Inherit(inherited)),
        Streams::Capture { input, .. } => [
            StdStream::Bytes(Arc::from(input.as_slice())),
            StdStream::Capture,
            StdStream::Capture,
        ],
    };
    vfs::stdio::set_up(kernel, &mut machine.memory, host, Pid::FIRST, &streams).map_err(
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
    let path = find_program(&mut cx, program)?;
    let envp = program
        .env
        .iter()
        .map(|(name, value)| [name.as_slice(), b"=", value.as_slice()].concat())
        .collect();
    exec::boot(
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
    exec::search(cx, name, path)
        .ok_or_else(|| EngineError::NotFound(String::from_utf8_lossy(name).into_owned()))
}
