//! The VMM's pages in a guest: the stub, its tables and stacks, the vDSO.

use kvmlet_abi::{Gpa, Gva, PAGE_SIZE, layout};
use kvmlet_hv::{KvmKind, VcpuConfig};
use kvmlet_linux::Vdso;
use kvmlet_mem::{GuestMemory, PageSize, PageTables, PteFlags};
use kvmlet_stub::vdso;

use crate::EngineError;

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
    /// The pages of [`layout`]. Before the kind of KVM is known the syscall page is the software form, and the
    /// probe code is there too.
    pub fn place(
        memory: &mut GuestMemory,
        tables: &mut PageTables,
        kvm_kind: Option<KvmKind>,
    ) -> Result<Self, EngineError> {
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
        Ok(Self {
            exc_stack,
            df_stack,
            flush_stack,
            call_page,
            stub_data,
        })
    }

    /// The configuration of a vCPU that begins over these tables.
    pub fn vcpu_config(
        &self,
        memory: &GuestMemory,
        root: Gpa,
        kvm_kind: Option<KvmKind>,
    ) -> Result<VcpuConfig, EngineError> {
        let page = |gpa| {
            memory
                .host_page(gpa)
                .ok_or_else(|| EngineError::Internal("a VMM page has no memory".to_owned()))
        };
        Ok(VcpuConfig {
            cr3: root,
            exc_stack: page(self.exc_stack)?,
            flush_stack: page(self.flush_stack)?,
            call_page: page(self.call_page)?,
            kvm_kind,
        })
    }

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

fn user_flag(kvm_kind: KvmKind) -> PteFlags {
    match kvm_kind {
        KvmKind::Software => PteFlags::USER,
        KvmKind::Hardware => PteFlags::empty(),
    }
}

/// After the probe: takes its code away.
///
/// On hardware, also replaces the syscall page and the task state segment by their forms for it. Only there
/// are the syscall page, its constants and the call page narrowed.
pub(super) fn settle(
    memory: &mut GuestMemory,
    tables: &mut PageTables,
    kvm_kind: KvmKind,
) -> Result<(), EngineError> {
    tables.unmap_range(memory, layout::PROBE_CODE, PAGE_SIZE, |memory, _, leaf| {
        memory.free_frame(leaf.gpa);
    })?;
    if kvm_kind == KvmKind::Software {
        return Ok(());
    }
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

/// Frames of the vDSO: a data page, the image directly behind it, and a page for trampolines.
pub(super) fn place_vdso(memory: &mut GuestMemory) -> Result<Vdso, EngineError> {
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

/// Has the frame behind the vDSO's image hold trampolines, where `syscall` costs more than a polled call.
pub(super) fn place_trampolines(
    memory: &mut GuestMemory,
    vdso: &mut Vdso,
) -> Result<(), EngineError> {
    let trampolines = vdso.data.wrapping_add((vdso.image_pages + 1) * PAGE_SIZE);
    memory.write(trampolines, &kvmlet_stub::trampoline::page_image())?;
    vdso.trampolines = Some(trampolines);
    Ok(())
}
