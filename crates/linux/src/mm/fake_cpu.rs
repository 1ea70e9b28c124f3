//! A processor that keeps each translation for as long as a real one may: until that one is flushed.

use std::collections::BTreeMap;

use kvmlet_abi::{Gpa, Gva, HUGE_PAGE_SIZE, PAGE_SIZE};
use kvmlet_mem::{
    GuestMemory, MmId, PageSize, PageTables, PendingFlush, PteFlags, Spaces, TABLE_WINDOW,
};

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const ROOT_LEVEL: u32 = 4;
/// Entries that KVM's shadow paging reads together (PTE_PREFETCH_NUM of arch/x86/kvm/mmu/mmu.c).
const READ_TOGETHER: u64 = 8;
/// Operands of one pass of the flush routine (MAX_FLUSH_PAGES of the stub).
const OPERANDS_MAX: usize = 256;

/// The rules by which translations are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kvm {
    /// Shadow paging. What was read of a table's entry stays, under the frame of that table, until code at CPL
    /// 0 stores there. No change of address space drops it.
    Software,
    /// A TLB. It is emptied by a change of address space, an entry of it by `invlpg`.
    Hardware,
}

/// One virtual CPU.
pub struct Cpu {
    pub kvm: Kvm,
    /// Entries by their place (shadow paging), or by the start of their page and their level (TLB).
    shadow: BTreeMap<u64, u64>,
    tlb: BTreeMap<(u64, u32), u64>,
    loaded: Option<MmId>,
    /// Operands that the next run hands to the flush routine.
    queue: Vec<Gva>,
    /// False to hand out dead tables without the stores that drop their shadows.
    pub drops_dead: bool,
}

const fn span(level: u32) -> u64 {
    1 << (12 + 9 * (level - 1))
}

const fn entry_at(table: u64, gva: u64, level: u32) -> u64 {
    table + gva / span(level) % 512 * 8
}

const fn is_leaf(entry: u64, level: u32) -> bool {
    level == 1 || level == 2 && entry & LARGE != 0
}

fn allows(entry: u64, is_write: bool) -> bool {
    let flags = PteFlags::from_bits_truncate(entry);
    flags.contains(PteFlags::USER) && (!is_write || flags.contains(PteFlags::WRITE))
}

fn gpa_of(entry: u64, gva: u64, level: u32) -> Gpa {
    let inside = span(level) - 1;
    Gpa(entry & FRAME & !inside | gva & inside)
}

/// The entries on the way to an address, upper ones first, up to the leaf; `None` if it is not mapped.
fn path(mem: &GuestMemory, root: Gpa, gva: u64) -> Option<Vec<(u64, u64)>> {
    let (mut table, mut found) = (root.0, Vec::new());
    for level in (1..=ROOT_LEVEL).rev() {
        let at = entry_at(table, gva, level);
        let entry: u64 = mem.read_value(Gpa(at)).unwrap();
        if entry & PRESENT == 0 {
            return None;
        }
        found.push((at, entry));
        if is_leaf(entry, level) {
            break;
        }
        table = entry & FRAME;
    }
    Some(found)
}

impl Cpu {
    pub fn new(kvm: Kvm) -> Self {
        Self {
            kvm,
            shadow: BTreeMap::new(),
            tlb: BTreeMap::new(),
            loaded: None,
            queue: Vec::new(),
            drops_dead: true,
        }
    }

    /// Table slots are deleted and added again.
    pub fn forget_everything(&mut self) {
        self.shadow.clear();
        self.tlb.clear();
        self.queue.clear();
    }

    /// A reset: names from `next` on may be given again.
    pub fn forget_younger_space(&mut self, next: u64) {
        self.loaded = self.loaded.filter(|loaded| loaded.0 < next);
    }

    /// Queues the flush that is due before this address space runs, as the engine does.
    pub fn prepare(&mut self, mem: &mut GuestMemory, spaces: &mut Spaces, id: MmId) {
        if self.loaded != Some(id) {
            self.loaded = Some(id);
            self.tlb.clear();
        }
        let pending = spaces.take_pending(id);
        let operands = match &pending {
            PendingFlush::None => Some(Vec::new()),
            PendingFlush::Entries(entries) if self.kvm == Kvm::Software => {
                Some(mem.flush_stores(entries))
            }
            PendingFlush::Entries(entries) => Some(entries.iter().map(|stale| stale.gva).collect()),
            PendingFlush::All => None,
        };
        let fits = |list: &Vec<Gva>| self.queue.len() + list.len() <= OPERANDS_MAX;
        let Some(operands) = operands.filter(fits) else {
            self.forget_everything();
            spaces.all_flushed(mem);
            mem.flush_discharged(&PendingFlush::All);
            return;
        };
        self.queue.extend(operands);
        if !pending.is_none() || mem.has_freed_frames() {
            mem.flush_discharged(&pending);
        }
        if spaces.has_leaving() && self.queue.is_empty() {
            spaces.dead_flushed(mem);
        }
        if spaces.has_many_dead() {
            let stores = spaces.dead_stores(OPERANDS_MAX - self.queue.len());
            if self.kvm == Kvm::Software && self.drops_dead {
                self.queue.extend(stores);
            } else {
                spaces.dead_flushed(mem);
            }
        }
    }

    /// The flush routine runs, then ring 3.
    pub fn run(&mut self) {
        for operand in core::mem::take(&mut self.queue) {
            match self.kvm {
                Kvm::Software => self.store(operand.0 - TABLE_WINDOW.0),
                Kvm::Hardware => {
                    for level in [1, 2] {
                        let start = operand.0 & !(span(level) - 1);
                        self.tlb.remove(&(start, level));
                    }
                }
            }
        }
    }

    /// A store at CPL 0 in a table: to an entry, or across two.
    fn store(&mut self, at: u64) {
        if at.is_multiple_of(8) {
            self.shadow.remove(&at);
            return;
        }
        let table = at & !(PAGE_SIZE - 1);
        self.shadow
            .retain(|place, entry| place & !(PAGE_SIZE - 1) != table && *entry & FRAME != table);
    }

    /// The leaf that this processor has for an address, and its level.
    fn cached(&self, root: Gpa, gva: u64) -> Option<(u64, u32)> {
        if self.kvm == Kvm::Hardware {
            let of_level = |level| {
                let entry = self.tlb.get(&(gva & !(span(level) - 1), level));
                entry.map(|entry| (*entry, level))
            };
            return of_level(1).or_else(|| of_level(2));
        }
        let mut table = root.0;
        for level in (1..=ROOT_LEVEL).rev() {
            let entry = *self.shadow.get(&entry_at(table, gva, level))?;
            if is_leaf(entry, level) {
                return Some((entry, level));
            }
            table = entry & FRAME;
        }
        None
    }

    /// The place that an access goes to; `None` if it is a page fault. A translation that does not allow it is read anew
    /// first.
    pub fn translate(
        &mut self,
        mem: &GuestMemory,
        tables: &PageTables,
        gva: Gva,
        is_write: bool,
    ) -> Option<Gpa> {
        let root = tables.root();
        if let Some((entry, level)) = self.cached(root, gva.0)
            && allows(entry, is_write)
        {
            return Some(gpa_of(entry, gva.0, level));
        }
        let found = path(mem, root, gva.0)?;
        let level = ROOT_LEVEL + 1 - found.len() as u32;
        let (place, entry) = *found.last()?;
        if !allows(entry, is_write) {
            return None;
        }
        match self.kvm {
            Kvm::Hardware => {
                let start = gva.0 & !(span(level) - 1);
                self.tlb.remove(&(gva.0 & !(span(2) - 1), 2));
                self.tlb.insert((start, level), entry);
            }
            Kvm::Software => self.shadow_path(mem, root, gva.0, &found),
        }
        if self.kvm == Kvm::Software {
            self.read_together(mem, place, level);
        }
        // What was known of the tables above may lead elsewhere.
        let (entry, level) = self.cached(root, gva.0)?;
        Some(gpa_of(entry, gva.0, level))
    }

    /// Shadows what a walk has found. Tables that are known stay as they are.
    fn shadow_path(&mut self, mem: &GuestMemory, root: Gpa, gva: u64, found: &[(u64, u64)]) {
        let (_leaf, links) = found.split_last().unwrap();
        let mut table = root.0;
        let mut level = ROOT_LEVEL;
        for (_, link) in links {
            let place = entry_at(table, gva, level);
            let known = self.shadow.get(&place).copied();
            let known = known.filter(|known| !is_leaf(*known, level));
            let entry = known.unwrap_or(*link);
            self.shadow.insert(place, entry);
            table = entry & FRAME;
            level -= 1;
        }
        let place = entry_at(table, gva, level);
        let (real, entry) = found[found.len() - 1];
        self.shadow.insert(place, entry);
        debug_assert!(mem.read_value::<u64>(Gpa(real)).is_ok());
    }

    /// Shadows the neighbours of an entry that are present.
    fn read_together(&mut self, mem: &GuestMemory, place: u64, level: u32) {
        if level != 1 {
            return;
        }
        let first = place & !(READ_TOGETHER * 8 - 1);
        for at in (0..READ_TOGETHER).map(|index| first + index * 8) {
            let entry: u64 = mem.read_value(Gpa(at)).unwrap();
            if entry & PRESENT != 0 {
                self.shadow.entry(at).or_insert(entry);
            }
        }
    }

    /// Every translation that may be used from now on is what the tables say, or grants less.
    pub fn check(&self, tables: &PageTables, mem: &GuestMemory) {
        match self.kvm {
            Kvm::Software => self.check_under(tables, mem, (tables.root().0, ROOT_LEVEL, 0)),
            Kvm::Hardware => {
                for ((start, level), entry) in &self.tlb {
                    check_leaf(tables, mem, *start, *entry, *level);
                }
            }
        }
    }

    fn check_under(
        &self,
        tables: &PageTables,
        mem: &GuestMemory,
        (table, level, base): (u64, u32, u64),
    ) {
        for (place, entry) in self.shadow.range(table..table + PAGE_SIZE) {
            let gva = base + (place - table) / 8 * span(level);
            if is_leaf(*entry, level) {
                check_leaf(tables, mem, gva, *entry, level);
            } else {
                self.check_under(tables, mem, (entry & FRAME, level - 1, gva));
            }
        }
    }
}

fn check_leaf(tables: &PageTables, mem: &GuestMemory, start: u64, entry: u64, level: u32) {
    let of = format!("{start:#x} has {entry:#x} of level {level}");
    let step = match level {
        1 => PAGE_SIZE,
        _ => HUGE_PAGE_SIZE,
    };
    let leaf = tables.walk(mem, Gva(start));
    let leaf = leaf.unwrap_or_else(|| panic!("nothing is mapped, but {of}"));
    let same_size = (leaf.size == PageSize::Base) == (step == PAGE_SIZE);
    assert!(same_size, "{leaf:?} is there, but {of}");
    assert_eq!(leaf.gpa_of(Gva(start)), gpa_of(entry, start, level), "{of}");
    let grants = |flags: PteFlags| flags ^ PteFlags::NX;
    let had = grants(PteFlags::from_bits_truncate(entry));
    assert!(
        grants(leaf.flags).contains(had),
        "{leaf:?} grants less, but {of}"
    );
}
