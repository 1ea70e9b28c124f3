//! A program in memory, and forks of it.

use std::sync::Arc;

use kvmlet_abi::{Gpa, Gva, HUGE_PAGE_SIZE, PAGE_SIZE, SlotAccess};
use kvmlet_mem::{
    FrozenMemory, GuestMemory, Leaf, MmId, PageSize, PageTables, PteFlags, ResetReport, Spaces,
};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const DATA: PteFlags = PteFlags::USER.union(PteFlags::WRITE).union(PteFlags::NX);
pub(crate) const READ_ONLY: PteFlags = PteFlags::USER.union(PteFlags::NX);
pub(crate) const LIMIT: u64 = 64 * MIB;

/// Where the program has 16 base pages, one 2 MiB page, and a page of the VMM.
pub(crate) const BASE: Gva = Gva(0x40_0000);
pub(crate) const BASE_PAGES: u64 = 16;
pub(crate) const HUGE: Gva = Gva(0x1000_0000);
pub(crate) const VMM: Gva = Gva(0x7fff_ffff_e000);
/// Where nothing is.
pub(crate) const FREE: Gva = Gva(0x2000_0000);

pub(crate) fn page(index: u64) -> Gva {
    BASE.wrapping_add(index * PAGE_SIZE)
}

/// A program in memory: word 0 of base page `i` is `i + 1`, word 0 of page `i` of the 2 MiB page is
/// `1000 + i`.
pub(crate) fn program(limit_bytes: u64) -> (GuestMemory, PageTables) {
    let mut mem = GuestMemory::new(limit_bytes).unwrap();
    let mut tables = PageTables::new(&mut mem).unwrap();
    let vmm = mem.alloc_table_frame().unwrap();
    mem.write_value(vmm, &0x0077_u64).unwrap();
    let kernel = PteFlags::WRITE | PteFlags::NX;
    tables
        .map(&mut mem, VMM, vmm, PageSize::Base, kernel)
        .unwrap();
    for index in 0..BASE_PAGES {
        let gpa = mem.alloc_frame().unwrap();
        mem.write_value(gpa, &(index + 1)).unwrap();
        tables
            .map(&mut mem, page(index), gpa, PageSize::Base, DATA)
            .unwrap();
    }
    let block = mem.alloc_huge().unwrap();
    for index in 0..HUGE_PAGE_SIZE / PAGE_SIZE {
        let at = block.wrapping_add(index * PAGE_SIZE);
        mem.write_value(at, &(1000 + index)).unwrap();
    }
    tables
        .map(&mut mem, HUGE, block, PageSize::Huge, DATA)
        .unwrap();
    (mem, tables)
}

pub(crate) fn frozen() -> Arc<FrozenMemory> {
    let (mem, tables) = program(LIMIT);
    mem.freeze(Spaces::new(tables), 0).unwrap()
}

/// Pages of the first address space.
pub(crate) fn named<const N: usize>(pages: [Gva; N]) -> Vec<(MmId, Gva)> {
    pages.map(|page| (MmId::FIRST, page)).to_vec()
}

/// The frame of the VMM's page in a fork that has not run.
pub(crate) fn fork_vmm(frozen: &Arc<FrozenMemory>) -> Gpa {
    let (mem, spaces) = frozen.fork().unwrap();
    first(&spaces).translate(&mem, VMM).unwrap()
}

pub(crate) fn first(spaces: &Spaces) -> &PageTables {
    spaces.get(MmId::FIRST).unwrap()
}

pub(crate) fn first_mut(spaces: &mut Spaces) -> &mut PageTables {
    spaces.get_mut(MmId::FIRST).unwrap()
}

pub(crate) struct Fork {
    pub(crate) mem: GuestMemory,
    pub(crate) spaces: Spaces,
}

impl Fork {
    pub(crate) fn of(frozen: &Arc<FrozenMemory>) -> Self {
        let (mem, spaces) = frozen.fork().unwrap();
        Self { mem, spaces }
    }

    pub(crate) fn word(&self, gva: Gva) -> u64 {
        let mut bytes = [0; 8];
        let outcome = first(&self.spaces).copy_in(&self.mem, gva, &mut bytes);
        assert_eq!(outcome.stop, None, "{gva:?}");
        u64::from_ne_bytes(bytes)
    }

    /// Writes as a program does: a frozen page is copied first.
    pub(crate) fn set(&mut self, gva: Gva, value: u64) {
        let leaf = first(&self.spaces).walk(&self.mem, gva).unwrap();
        if self.mem.is_frozen(leaf.gpa) {
            let flags = leaf.flags | PteFlags::WRITE;
            first_mut(&mut self.spaces)
                .copy_frozen(&mut self.mem, gva, flags)
                .unwrap();
        }
        let bytes = value.to_ne_bytes();
        let outcome = first(&self.spaces).copy_out(&mut self.mem, gva, &bytes);
        assert_eq!(outcome.stop, None, "{gva:?}");
    }

    /// Writes as a program does; whether that copied a frozen page.
    pub(crate) fn set_counting(&mut self, gva: Gva, value: u64) -> bool {
        let copies = self.spaces.copies();
        self.set(gva, value);
        self.spaces.copies() > copies
    }

    /// New memory at a free place.
    pub(crate) fn add(&mut self, gva: Gva, value: u64) -> Gpa {
        let gpa = self.mem.alloc_frame().unwrap();
        assert_eq!(self.mem.read_value::<u64>(gpa).unwrap(), 0);
        self.mem.write_value(gpa, &value).unwrap();
        let old = first_mut(&mut self.spaces)
            .map(&mut self.mem, gva, gpa, PageSize::Base, DATA)
            .unwrap();
        assert_eq!(old, None);
        gpa
    }

    pub(crate) fn reset(&mut self) -> ResetReport {
        self.spaces.reset(&mut self.mem, |_, _| true).unwrap()
    }

    pub(crate) fn flush(&mut self) {
        let pending = first_mut(&mut self.spaces).take_pending();
        self.mem.flush_discharged(&pending);
    }

    pub(crate) fn leaf(&self, gva: Gva) -> Option<Leaf> {
        first(&self.spaces).walk(&self.mem, gva)
    }

    /// The frames of private program memory that hold something, by brute force.
    pub(crate) fn dirty_frames(&self) -> Vec<Gpa> {
        let mut dirty = Vec::new();
        let tables: Vec<_> = self.mem.table_slots().map(|spec| spec.id).collect();
        for spec in self.mem.slots() {
            if spec.access == SlotAccess::ReadOnly || tables.contains(&spec.id) {
                continue;
            }
            for at in (0..spec.len_bytes).step_by(PAGE_SIZE as usize) {
                let gpa = spec.gpa.wrapping_add(at);
                let mut bytes = [0; PAGE_SIZE as usize];
                let read = self.mem.read(gpa, &mut bytes);
                if read.is_ok() && bytes.iter().any(|&byte| byte != 0) {
                    dirty.push(gpa);
                }
            }
        }
        dirty
    }
}
