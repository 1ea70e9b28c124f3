//! A minimal VM over anonymous memory, for probing this machine and for measuring it: the layout of
//! [`kvmlet_abi::layout`], one vCPU, page tables without any policy. Programs do not run in it.

use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, fence};

use kvmlet_abi::layout::{
    DF_STACK, EXC_CODE, EXC_STACK, FLUSH_STACK, GDT, IDT, PROBE_CODE, STUB_DATA, SYSCALL_CODE, TSS,
};
use kvmlet_abi::{Gpa, Gva, SlotAccess, SlotId, SlotSpec};
use kvmlet_stub::pages::CONSTANT_SLOTS;
use kvmlet_stub::{
    World, exception_code, gdt_image, idt_image, probe_code, stub_data_image, syscall_code,
    tss_image,
};

use crate::{HvError, Kvm, Vcpu, VcpuConfig, Vm};

/// Guest-physical memory of the VM, in bytes.
const MEMORY_LEN: usize = 2 << 20;
const PAGE_LEN: usize = 4096;
/// Where the timing loop stands, above anything a caller maps for a test.
const TIMING_CODE: Gva = Gva(0x7000_0000_0000);
/// `1: out %al,$0x40; jmp 1b`: the one port that ring 3 owns on software KVM.
const TIMING_LOOP: [u8; 4] = [0xe6, kvmlet_abi::layout::PORT_SYSCALL as u8, 0xeb, 0xfc];

/// Bits of a page-table entry (SDM vol. 3A, 4.5). Accessed and dirty are always preset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pte(u64);

impl Pte {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const TABLE: u64 = 0x27;
    /// Supervisor, read-only, no execution.
    pub const KERNEL_READ: Self = Self(1 << 63 | 0x21);
    /// Supervisor, writable, no execution.
    pub const KERNEL_WRITE: Self = Self(1 << 63 | 0x63);
    /// Supervisor, executable, read-only.
    pub const KERNEL_CODE: Self = Self(0x21);
    /// User, read-only, no execution.
    pub const USER_READ: Self = Self(1 << 63 | 0x25);
    /// User, writable, no execution.
    pub const USER_WRITE: Self = Self(1 << 63 | 0x67);
    /// User, executable, read-only.
    pub const USER_CODE: Self = Self(0x25);
}

/// Anonymous host memory, unmapped on drop.
struct Memory {
    base: NonNull<u8>,
}

impl Memory {
    fn new() -> Result<Self, HvError> {
        // SAFETY: a fresh anonymous mapping.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                MEMORY_LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(HvError::last("mmap"));
        }
        NonNull::new(base.cast())
            .map(|base| Self { base })
            .ok_or_else(|| HvError::last("mmap"))
    }

    /// Host address of `len` bytes at `gpa`.
    fn at(&self, gpa: Gpa, len: usize) -> *mut u8 {
        let offset = usize::try_from(gpa.0).unwrap_or(usize::MAX);
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= MEMORY_LEN),
            "{gpa:?} lies outside of the memory"
        );
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.base.as_ptr().add(offset) }
    }

    fn read_u64(&self, gpa: Gpa) -> u64 {
        // SAFETY: `at` checked the range; volatile, because the guest may write it.
        unsafe { self.at(gpa, 8).cast::<u64>().read_volatile() }
    }

    fn write_u64(&self, gpa: Gpa, value: u64) {
        // SAFETY: as above.
        unsafe { self.at(gpa, 8).cast::<u64>().write_volatile(value) };
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) {
        let to = self.at(gpa, bytes.len());
        // SAFETY: `at` checked the range; the source is a Rust slice outside of guest memory.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        fence(Ordering::SeqCst);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody uses it any more: the vCPU and the VM are fields
        // that drop earlier.
        unsafe { libc::munmap(self.base.as_ptr().cast(), MEMORY_LEN) };
    }
}

/// A VM of 2 MiB with one vCPU that knows its [`World`].
pub struct BareVm {
    vcpu: Vcpu,
    vm: Vm,
    memory: Memory,
    root: Gpa,
    next_frame: u64,
    world: World,
    stub_data: Gpa,
}

impl BareVm {
    /// Builds the VM and probes the world in it.
    ///
    /// # Errors
    /// Any [`HvError`] of the calls that this takes.
    pub fn new(kvm: &Kvm) -> Result<Self, HvError> {
        let vm = kvm.create_vm()?;
        let memory = Memory::new()?;
        let spec = SlotSpec {
            id: SlotId(0),
            gpa: Gpa(0),
            host_addr: memory.base.as_ptr().expose_provenance(),
            len_bytes: MEMORY_LEN as u64,
            access: SlotAccess::ReadWrite,
        };
        // SAFETY: `memory` outlives the VM and its vCPU: see the order of the fields. It is only
        // accessed through raw pointers.
        unsafe { vm.set_slot(&spec)? };
        let mut build = Tables {
            memory: &memory,
            root: Gpa(0x1000),
            next_frame: 0x2000,
        };
        let mut page = |gva, bytes: &[u8], pte| build.page(gva, bytes, pte);
        page(GDT, &gdt_image(), Pte::KERNEL_READ);
        page(IDT, &idt_image(), Pte::KERNEL_READ);
        let tss = page(TSS, &tss_image(World::Software), Pte::KERNEL_READ);
        let exc_stack = page(EXC_STACK, &[], Pte::KERNEL_WRITE);
        page(DF_STACK, &[], Pte::KERNEL_WRITE);
        let flush_stack = page(FLUSH_STACK, &[], Pte::KERNEL_WRITE);
        page(EXC_CODE, exception_code(), Pte::KERNEL_CODE);
        let syscall_page = page(SYSCALL_CODE, syscall_code(World::Software), Pte::USER_CODE);
        let stub_data = page(STUB_DATA, &[], Pte::USER_READ);
        page(PROBE_CODE, probe_code(), Pte::USER_CODE);
        let (root, next_frame) = (build.root, build.next_frame);
        let config = VcpuConfig {
            cr3: root,
            exc_stack_host: memory.at(exc_stack, PAGE_LEN).expose_provenance(),
            flush_stack_host: memory.at(flush_stack, PAGE_LEN).expose_provenance(),
            world: None,
        };
        // SAFETY: both pages lie in `memory`, which outlives the vCPU.
        let mut vcpu = unsafe { vm.create_vcpu(config)? };
        let world = vcpu.probe_world()?;
        let mut bare = Self {
            vcpu,
            vm,
            memory,
            root,
            next_frame,
            world,
            stub_data,
        };
        if world == World::Hardware {
            bare.memory.write(tss, &tss_image(World::Hardware));
            bare.memory
                .write(syscall_page, syscall_code(World::Hardware));
            bare.set_pte(SYSCALL_CODE, syscall_page, Pte::KERNEL_CODE);
            bare.set_pte(STUB_DATA, stub_data, Pte::KERNEL_READ);
        }
        bare.clear_pte(PROBE_CODE);
        let changed = [SYSCALL_CODE, STUB_DATA, PROBE_CODE];
        // Three pages always fit.
        let _ = bare.vcpu.request_flush(&changed);
        Ok(bare)
    }

    /// Puts `bytes` (at most a page) into a fresh zeroed frame and maps it at `gva`.
    ///
    /// # Panics
    /// When the 2 MiB are used up or `gva` is already mapped: this VM serves fixed programs.
    pub fn map_page(&mut self, gva: Gva, bytes: &[u8], pte: Pte) -> Gpa {
        let mut tables = self.tables();
        let frame = tables.page(gva, bytes, pte);
        self.next_frame = tables.next_frame;
        frame
    }

    /// Changes the entry of a mapped page; the caller flushes.
    pub fn set_pte(&mut self, gva: Gva, frame: Gpa, pte: Pte) {
        let at = self.entry(gva);
        self.memory.write_u64(at, frame.0 & Pte::ADDRESS | pte.0);
    }

    /// Unmaps a page; the caller flushes.
    pub fn clear_pte(&mut self, gva: Gva) {
        let at = self.entry(gva);
        self.memory.write_u64(at, 0);
    }

    fn entry(&mut self, gva: Gva) -> Gpa {
        let mut tables = self.tables();
        let at = tables.entry(gva);
        self.next_frame = tables.next_frame;
        at
    }

    fn tables(&self) -> Tables<'_> {
        Tables {
            memory: &self.memory,
            root: self.root,
            next_frame: self.next_frame,
        }
    }

    /// Reads guest memory.
    #[must_use]
    pub fn read_u64(&self, gpa: Gpa) -> u64 {
        self.memory.read_u64(gpa)
    }

    /// Writes guest memory.
    pub fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        self.memory.write(gpa, bytes);
    }

    /// Sets the answers of the stub.
    pub fn set_constants(&mut self, values: &[u64; CONSTANT_SLOTS]) {
        self.memory.write(self.stub_data, &stub_data_image(values));
    }

    /// The vCPU.
    pub fn vcpu(&mut self) -> &mut Vcpu {
        &mut self.vcpu
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The kind of KVM that the probe found.
    #[must_use]
    pub fn world(&self) -> World {
        self.world
    }

    /// X: microseconds per bare exit and re-entry, the median of `batches` batches of `rounds`.
    ///
    /// # Errors
    /// Any [`HvError`] of running.
    pub fn measure_exit_us(&mut self, batches: u32, rounds: u32) -> Result<f64, HvError> {
        let entry = self.entry(TIMING_CODE);
        if self.memory.read_u64(entry) == 0 {
            let pte = match self.world {
                World::Software => Pte::USER_CODE,
                World::Hardware => Pte::KERNEL_CODE,
            };
            self.map_page(TIMING_CODE, &TIMING_LOOP, pte);
        }
        let mut times = (0..batches.max(1))
            .map(|_| self.vcpu.time_exits(TIMING_CODE, rounds))
            .collect::<Result<Vec<_>, _>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2] / 1000.0)
    }
}

/// Page tables under construction.
struct Tables<'a> {
    memory: &'a Memory,
    root: Gpa,
    next_frame: u64,
}

impl Tables<'_> {
    fn frame(&mut self) -> Gpa {
        let frame = Gpa(self.next_frame);
        self.next_frame += PAGE_LEN as u64;
        // Checks that the frame exists; anonymous memory is zero.
        self.memory.at(frame, PAGE_LEN);
        frame
    }

    fn page(&mut self, gva: Gva, bytes: &[u8], pte: Pte) -> Gpa {
        assert!(bytes.len() <= PAGE_LEN, "more than a page");
        let frame = self.frame();
        self.memory.write(frame, bytes);
        let at = self.entry(gva);
        assert_eq!(self.memory.read_u64(at), 0, "{gva:?} is already mapped");
        self.memory.write_u64(at, frame.0 | pte.0);
        frame
    }

    /// Where the last-level entry of `gva` stands; makes the tables above it.
    fn entry(&mut self, gva: Gva) -> Gpa {
        let mut table = self.root;
        for shift in [39, 30, 21] {
            let at = Gpa(table.0 + (gva.0 >> shift & 511) * 8);
            let entry = self.memory.read_u64(at);
            table = if entry == 0 {
                let next = self.frame();
                self.memory.write_u64(at, next.0 | Pte::TABLE);
                next
            } else {
                Gpa(entry & Pte::ADDRESS)
            };
        }
        Gpa(table.0 + (gva.0 >> 12 & 511) * 8)
    }
}
