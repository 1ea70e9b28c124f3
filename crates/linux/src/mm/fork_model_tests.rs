//! Several address spaces over one memory: random calls and accesses against one entry per page. Programs
//! access it through a processor that keeps each translation for as long as a real one may.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kvmlet_abi::layout::USER_END;
use kvmlet_abi::{Errno, Gpa, Gva, PAGE_SIZE};
use kvmlet_hostfs::attr::FileTime;
use kvmlet_mem::{GuestMemory, Leaf, MmId, PageTables, PendingFlush, PteFlags, Spaces};
use proptest::prelude::*;

use super::fake_cpu::{Cpu, Kvm};
use super::fork_model::*;
use super::*;
use crate::cx::{CpuInfo, Machine};
use crate::fd::OpenFlags;
use crate::kernel::{Kernel, Pid, Process, Thread, Tid};
use crate::testing::{Sandbox, TID};
use crate::vfs::tmpfs::{InodeId, NewAttr, Stale};

/// The program as it was frozen.
#[derive(Clone)]
struct Frozen {
    kernel: Kernel,
    model: Model,
    used_bytes: u64,
}

struct World {
    sandbox: Sandbox,
    cpu: Cpu,
    model: Model,
    frozen: Option<Frozen>,
    /// Bytes in use while there was one process with nothing mapped.
    empty_bytes: u64,
    files: Vec<InodeId>,
    next_file: u64,
    next_pid: i32,
}

/// The references that a frame should have, and the address spaces that show it.
#[derive(Default)]
struct Seen {
    refs: u32,
    spaces: BTreeSet<MmId>,
    private_writable: bool,
}

impl World {
    fn new(kvm: Kvm) -> Self {
        let mut sandbox = Sandbox::new(Path::new("/usr"));
        if kvm == Kvm::Software {
            sandbox.machine.memory.expose_tables().unwrap();
        }
        start_anew(&mut sandbox.cx()).unwrap();
        let mut world = Self {
            sandbox,
            cpu: Cpu::new(kvm),
            model: Model::default(),
            frozen: None,
            empty_bytes: 0,
            files: Vec::new(),
            next_file: 0,
            next_pid: 100,
        };
        world.flush_all();
        world.empty_bytes = world.memory().used_bytes();
        world.model.spaces.insert(world.mm_of(TID), BTreeMap::new());
        for _ in 0..FILES {
            world.create_file();
        }
        world
    }

    fn create_file(&mut self) {
        let now = FileTime::from_ns(0);
        let attr = NewAttr {
            mode: 0o600,
            uid: 0,
            gid: 0,
            now,
        };
        let Kernel { tmpfs, .. } = &mut self.sandbox.kernel;
        let memory = &mut self.sandbox.machine.memory;
        let inode = tmpfs.create_unnamed(memory, 0, attr).unwrap();
        let sized = tmpfs.set_size(memory, inode, FILE_PAGES * PAGE_SIZE, now);
        assert_eq!(sized, Ok(Stale::default()));
        self.model.sizes.insert(self.next_file, FILE_PAGES);
        self.files.push(inode);
        self.next_file += 1;
    }

    fn memory(&self) -> &GuestMemory {
        &self.sandbox.machine.memory
    }

    fn cx(&mut self, tid: Tid) -> Cx<'_> {
        Cx {
            tid,
            ..self.sandbox.cx()
        }
    }

    fn mm_of(&self, tid: Tid) -> MmId {
        self.sandbox.kernel.processes[&Pid(tid.0)].mm
    }

    /// The thread of one of the live processes.
    fn tid(&self, who: usize) -> Tid {
        let pids: Vec<Pid> = self.sandbox.kernel.processes.keys().copied().collect();
        Tid(pids[who % pids.len()].0)
    }

    /// As if everything were flushed: the slots that hold tables deleted and added again.
    fn flush_all(&mut self) {
        self.cpu.forget_everything();
        let Machine { memory, spaces, .. } = &mut self.sandbox.machine;
        spaces.all_flushed(memory);
        memory.flush_discharged(&PendingFlush::All);
    }

    /// Has ring 3 run in an address space: what must be flushed before is.
    fn enter(&mut self, id: MmId) {
        self.prepare(id);
        self.cpu.run();
        let tables = self.sandbox.machine.spaces.get(id).unwrap();
        self.cpu.check(tables, &self.sandbox.machine.memory);
    }

    fn prepare(&mut self, id: MmId) {
        let Machine { memory, spaces, .. } = &mut self.sandbox.machine;
        self.cpu.prepare(memory, spaces, id);
    }

    /// One access as a program makes it: the processor translates, and a fault is handled.
    fn access(&mut self, tid: Tid, page: u64, store: Option<u8>) -> Result<u8, FaultError> {
        let (id, gva) = (self.mm_of(tid), Gva(addr(page)));
        let access = match store {
            Some(_) => Access::Write,
            None => Access::Read,
        };
        for _ in 0..3 {
            self.enter(id);
            let Machine { memory, spaces, .. } = &mut self.sandbox.machine;
            let tables = spaces.get(id).unwrap();
            if let Some(gpa) = self.cpu.translate(memory, tables, gva, store.is_some()) {
                assert_eq!(tables.translate(memory, gva), Some(gpa), "stale at {gva:?}");
                if let Some(byte) = store {
                    memory.write_value(gpa, &byte).unwrap();
                }
                return Ok(memory.read_value(gpa).unwrap());
            }
            fault(&mut self.cx(tid), gva, access)?;
        }
        panic!("the fault at {gva:?} was not resolved");
    }

    fn map(&mut self, tid: Tid, (start, len): (u64, u64), prot: u32, kind: Kind) {
        let map_file = |inode| MapFile {
            source: Source::Tmp(inode),
            flags: OpenFlags::RDWR,
            seals: 0,
            name: Arc::from(&b"/tmp/file"[..]),
        };
        let (flags, number) = match kind {
            Kind::Anon => (PRIVATE | ANONYMOUS, None),
            Kind::SharedAnon => (SHARED | ANONYMOUS, Some(self.next_file)),
            Kind::SharedFile(file) => (SHARED, Some(file)),
            Kind::PrivateFile(file) => (PRIVATE, Some(file)),
        };
        let named = number.and_then(|file| self.files.get(file as usize).copied());
        let request = MapRequest {
            addr: addr(start),
            len_bytes: len * PAGE_SIZE,
            prot,
            flags: flags | FIXED,
            file: named.map(map_file),
            offset: 0,
        };
        assert_eq!(mmap(&mut self.cx(tid), &request), Ok(addr(start)));
        if let Kind::SharedAnon = kind {
            // Numbers of named files come first; nobody looks one of these up.
            self.model.sizes.insert(self.next_file, len);
            self.next_file += 1;
        }
        let pages = self.pages(tid);
        for index in 0..len {
            let page = Page {
                prot,
                file: number.map(|file| FilePage { file, index }),
                shared: flags & SHARED != 0,
                own: None,
                dont_fork: false,
                wipe: false,
            };
            pages.insert(start + index, page);
        }
    }

    /// The model of a process's address space.
    fn pages(&mut self, tid: Tid) -> &mut BTreeMap<u64, Page> {
        let id = self.mm_of(tid);
        self.model.spaces.get_mut(&id).unwrap()
    }

    fn are_mapped(&mut self, tid: Tid, start: u64, len: u64) -> bool {
        let pages = self.pages(tid);
        (start..start + len).all(|page| pages.contains_key(&page))
    }

    fn advise(&mut self, tid: Tid, start: u64, len: u64, advice: Advice) {
        let is_mapped = self.are_mapped(tid, start, len);
        let is_anon = |page: &Page| page.file.is_none();
        let all_anon = self
            .pages(tid)
            .range(start..start + len)
            .all(|(_, page)| is_anon(page));
        if !is_mapped || advice == Advice::WipeOnFork && !all_anon {
            return;
        }
        let mut cx = self.cx(tid);
        let advised = Space::of(&mut cx)
            .unwrap()
            .advise(addr(start), len * PAGE_SIZE, advice);
        assert_eq!(advised, Ok(()));
        for (_, page) in self.pages(tid).range_mut(start..start + len) {
            match advice {
                Advice::DontNeed => page.own = None,
                Advice::DontFork => page.dont_fork = true,
                _ => page.wipe = true,
            }
        }
    }

    fn remove(&mut self, tid: Tid, start: u64, len: u64) {
        let pages = self.pages(tid).range(start..start + len);
        let pages: Vec<Page> = pages.map(|(_, page)| *page).collect();
        let may = |page: &Page| page.shared && page.prot & 2 != 0;
        let removed = advise(
            &mut self.cx(tid),
            addr(start),
            len * PAGE_SIZE,
            Advice::Remove,
        );
        // Parts before the one that refuses are done.
        let done = pages.iter().take_while(|page| may(page));
        let is_whole = pages.len() as u64 == len && pages.iter().all(may);
        assert_eq!(removed.is_ok(), is_whole, "{removed:?}");
        for file in done.filter_map(|page| page.file) {
            self.model.contents.remove(&file);
        }
    }

    /// Changes a memory file as a system call does.
    fn change_file(
        &mut self,
        tid: Tid,
        file: u64,
        change: impl FnOnce(&mut Cx<'_>, InodeId, FileTime) -> Result<Stale, Errno>,
    ) {
        let inode = self.files[file as usize];
        let mut cx = self.cx(tid);
        let stale = change(&mut cx, inode, FileTime::from_ns(0)).unwrap();
        unmap_stale(&mut cx, inode, &stale).unwrap();
    }

    fn new_process(&mut self, parent: Tid, mm: MmId) {
        let (pid, tid) = (Pid(self.next_pid), Tid(self.next_pid));
        self.next_pid += 1;
        let kernel = &mut self.sandbox.kernel;
        let process = Process {
            pid,
            mm,
            ..kernel.processes[&Pid(parent.0)].clone()
        };
        kernel.processes.insert(pid, process);
        let Thread { share, creds, .. } = kernel.threads[&parent].clone();
        let thread = Thread::new((pid, tid), share, creds);
        kernel.threads.insert(tid, thread);
    }

    fn is_full(&self) -> bool {
        self.sandbox.kernel.processes.len() == PROCESSES_MAX
    }

    fn fork(&mut self, tid: Tid, room: Room) {
        let parent = self.mm_of(tid);
        let frames = match room {
            Room::Plenty => u64::MAX,
            Room::Little => 240,
            Room::Frames(frames) => frames,
        };
        let memory = &mut self.sandbox.machine.memory;
        let free = memory.limit_bytes() - memory.used_bytes();
        let ballast = free.saturating_sub(frames.saturating_mul(PAGE_SIZE));
        memory.charge(ballast).unwrap();
        let forked = fork(&mut self.cx(tid));
        self.sandbox.machine.memory.uncharge(ballast);
        match (forked, room) {
            (Ok(child), _) => {
                self.new_process(tid, child);
                self.model.fork(parent, child);
            }
            (Err(Errno::ENOMEM), Room::Frames(_)) => {}
            (Err(error), _) => panic!("fork with {room:?}: {error:?}"),
        }
    }

    /// The end of a process; the last one stays.
    fn exit(&mut self, tid: Tid) {
        if self.sandbox.kernel.processes.len() == 1 {
            return;
        }
        leave(&mut self.cx(tid)).unwrap();
        let kernel = &mut self.sandbox.kernel;
        kernel.processes.remove(&Pid(tid.0));
        kernel.threads.remove(&tid);
        self.forget_spaces();
    }

    fn give_up_spares(&mut self) {
        let Machine { memory, spaces, .. } = &mut self.sandbox.machine;
        spaces.give_up_spares(memory, |mem, _, leaf| mem.free_leaf(leaf));
    }

    fn spares(&self) -> usize {
        self.sandbox.machine.spaces.spares().count()
    }

    /// Drops what the model has of address spaces that no process has.
    fn forget_spaces(&mut self) {
        let processes = self.sandbox.kernel.processes.values();
        let used: BTreeSet<MmId> = processes.map(|process| process.mm).collect();
        self.model.spaces.retain(|id, _| used.contains(id));
    }

    /// Puts a fork of the program as it is now in its place, in a new VM.
    fn freeze(&mut self, tid: Tid) {
        assert!(freeze::settle(&mut self.cx(tid)).unwrap().is_empty());
        for page in self
            .model
            .spaces
            .values_mut()
            .flat_map(BTreeMap::values_mut)
        {
            page.own = page.own.filter(|_| !page.wipe);
        }
        let mut none = GuestMemory::new(PAGE_SIZE).unwrap();
        let tables = PageTables::new(&mut none).unwrap();
        let none = Machine::new(none, Spaces::new(tables), None, CpuInfo::default());
        let Machine { memory, spaces, .. } = core::mem::replace(&mut self.sandbox.machine, none);
        let used_bytes = memory.used_bytes();
        let frozen = memory.freeze(spaces, used_bytes).unwrap();
        let (memory, spaces) = frozen.fork().unwrap();
        self.sandbox.machine = Machine::new(memory, spaces, None, CpuInfo::default());
        self.cpu = Cpu::new(self.cpu.kvm);
        self.frozen = Some(Frozen {
            kernel: self.sandbox.kernel.clone(),
            model: self.model.clone(),
            used_bytes,
        });
    }

    /// Puts a fork back, if this is one.
    fn reset(&mut self) {
        let Some(frozen) = self.frozen.clone() else {
            return;
        };
        let Machine { memory, spaces, .. } = &mut self.sandbox.machine;
        let mms = &frozen.kernel.mms;
        spaces
            .reset(memory, |id, gva| mms[&id].copy_keeper()(gva))
            .unwrap();
        assert_eq!(memory.used_bytes(), frozen.used_bytes);
        self.cpu.forget_younger_space(frozen.kernel.next_mm);
        self.sandbox.kernel = frozen.kernel;
        self.model = frozen.model;
    }

    fn apply(&mut self, who: usize, op: &Op) {
        let tid = self.tid(who);
        let id = self.mm_of(tid);
        match *op {
            Op::Map {
                start,
                len,
                prot,
                kind,
            } => self.map(tid, (start, len), prot, kind),
            Op::Unmap { start, len } => {
                munmap(&mut self.cx(tid), addr(start), len * PAGE_SIZE).unwrap();
                let pages = self.pages(tid);
                pages.retain(|page, _| *page < start || *page >= start + len);
            }
            Op::Protect { start, len, prot } => {
                let result = mprotect(&mut self.cx(tid), addr(start), len * PAGE_SIZE, prot);
                let pages = self.pages(tid);
                let mapped = (start..start + len).take_while(|page| pages.contains_key(page));
                let mapped = mapped.count() as u64;
                for (_, page) in pages.range_mut(start..start + mapped) {
                    page.prot = prot;
                }
                assert_eq!(result.is_ok(), mapped == len, "{result:?}");
            }
            Op::DontNeed { start, len } => self.advise(tid, start, len, Advice::DontNeed),
            Op::DontFork { start, len } => self.advise(tid, start, len, Advice::DontFork),
            Op::WipeOnFork { start, len } => self.advise(tid, start, len, Advice::WipeOnFork),
            Op::Remove { start, len } => self.remove(tid, start, len),
            Op::PopulateWrite { start, len } => {
                let (at, len_bytes) = (addr(start), len * PAGE_SIZE);
                let populated = advise(&mut self.cx(tid), at, len_bytes, Advice::PopulateWrite);
                let mut done = start..start + len;
                let all = done.all(|page| self.model.populate(id, page));
                assert_eq!(populated.is_ok(), all, "{populated:?}");
            }
            Op::Store { page, byte } => {
                let stored = self.access(tid, page, Some(byte));
                assert_eq!(stored, self.model.store(id, page, byte), "{page}");
            }
            Op::Load { page } => {
                let loaded = self.access(tid, page, None);
                assert_eq!(loaded, self.model.load(id, page), "{page}");
            }
            Op::CallStores { page, byte } => {
                let written = self.cx(tid).write(Gva(addr(page)), &[byte]);
                let stored = self.model.store(id, page, byte);
                assert_eq!(written, stored.map(|_| ()).map_err(|_| Errno::EFAULT));
            }
            Op::CallLoads { page } => {
                let mut byte = [0];
                let read = self.cx(tid).read(Gva(addr(page)), &mut byte);
                let read = read.map(|()| byte[0]);
                let loaded = self.model.load(id, page);
                assert_eq!(read, loaded.map_err(|_| Errno::EFAULT));
            }
            Op::WriteFile { file, page, byte } => {
                self.change_file(tid, file, |cx, inode, now| {
                    let (tmpfs, memory) = (&mut cx.kernel.tmpfs, &mut cx.machine.memory);
                    let written = tmpfs.write(memory, inode, page * PAGE_SIZE, &[byte], now);
                    written.map(|(_, stale)| stale)
                });
                self.model
                    .contents
                    .insert(FilePage { file, index: page }, byte);
                let size = self.model.sizes.get_mut(&file).unwrap();
                // One byte of the page is enough: all of it can be accessed.
                *size = (*size).max(page + 1);
            }
            Op::PunchHole { file, page } => {
                self.change_file(tid, file, |cx, inode, now| {
                    let (tmpfs, memory) = (&mut cx.kernel.tmpfs, &mut cx.machine.memory);
                    let (start, end) = (page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
                    tmpfs.punch_hole(memory, inode, start, end, now)
                });
                self.model.contents.remove(&FilePage { file, index: page });
            }
            Op::Resize { file, pages } => {
                self.change_file(tid, file, |cx, inode, now| {
                    let (tmpfs, memory) = (&mut cx.kernel.tmpfs, &mut cx.machine.memory);
                    tmpfs.set_size(memory, inode, pages * PAGE_SIZE, now)
                });
                self.model.resize(file, pages);
            }
            Op::Fork(room) if !self.is_full() => self.fork(tid, room),
            Op::Vfork if !self.is_full() => self.new_process(tid, id),
            Op::Fork(_) | Op::Vfork => {}
            Op::Exec => {
                start_anew(&mut self.cx(tid)).unwrap();
                self.model.spaces.insert(self.mm_of(tid), BTreeMap::new());
                self.forget_spaces();
            }
            Op::Exit => self.exit(tid),
            Op::Kicked => self.prepare(id),
            Op::Freeze => self.freeze(tid),
            Op::Reset => self.reset(),
        }
    }

    fn leaves(&self, id: MmId) -> Vec<(Gva, Leaf)> {
        let mut leaves = Vec::new();
        let tables = self.sandbox.machine.spaces.get(id).unwrap();
        let add = |gva, leaf| leaves.push((gva, leaf));
        tables
            .for_each_leaf(self.memory(), Gva(0), USER_END.0, add)
            .unwrap();
        leaves
    }

    /// Every present page shows what the model has, with no more rights; every frame has the references
    /// that can be seen; private memory that may be written is nobody else's.
    fn check(&self) {
        let ids: Vec<MmId> = self.model.spaces.keys().copied().collect();
        let of_kernel: Vec<MmId> = self.sandbox.kernel.mms.keys().copied().collect();
        let spaces = self.sandbox.machine.spaces.iter();
        let of_machine: Vec<MmId> = spaces.map(|(id, _)| id).collect();
        assert_eq!((&of_kernel, &of_machine), (&ids, &ids));
        let mut frames: BTreeMap<Gpa, Seen> = BTreeMap::new();
        for id in ids {
            let mut present = BTreeSet::new();
            for (gva, leaf) in self.leaves(id) {
                for piece in 0..leaf.size.bytes() / PAGE_SIZE {
                    let page = (gva.0 - BASE) / PAGE_SIZE + piece;
                    let gpa = leaf.gpa.wrapping_add(piece * PAGE_SIZE);
                    let known = self.model.spaces[&id].get(&page);
                    let known = *known.unwrap_or_else(|| panic!("{page} of {id:?}"));
                    self.check_page(id, page, known, Leaf { gpa, ..leaf });
                    present.insert(page);
                    let seen = frames.entry(gpa).or_default();
                    seen.refs += 1;
                    seen.spaces.insert(id);
                    let is_writable = leaf.flags.contains(PteFlags::WRITE);
                    seen.private_writable |= is_writable && !known.shared;
                }
            }
            let absent = |page: &&u64| !present.contains(*page);
            let written = self.model.spaces[&id].iter();
            let written = written.filter(|(_, page)| page.own.is_some_and(|byte| byte != 0));
            let lost: Vec<&u64> = written.map(|(at, _)| at).filter(absent).collect();
            assert!(lost.is_empty(), "{id:?} has lost {lost:?}");
        }
        self.check_references(frames);
    }

    fn check_page(&self, id: MmId, page: u64, known: Page, leaf: Leaf) {
        let of = format!("page {page} of {id:?}: {known:?}, {leaf:x?}");
        let may_write = known.prot & 2 != 0;
        assert!(may_write || !leaf.flags.contains(PteFlags::WRITE), "{of}");
        assert!(
            known.prot != 0 || !leaf.flags.contains(PteFlags::USER),
            "{of}"
        );
        let is_frozen = self.memory().is_frozen(leaf.gpa);
        assert!(!is_frozen || !leaf.flags.contains(PteFlags::WRITE), "{of}");
        if let Some(FilePage { file, index }) = known.file {
            assert!(index < self.model.sizes[&file], "past the end: {of}");
        }
        let byte: u8 = self.memory().read_value(leaf.gpa).unwrap();
        assert_eq!(byte, self.model.byte(known), "{of}");
    }

    fn check_references(&self, mut frames: BTreeMap<Gpa, Seen>) {
        let kernel = &self.sandbox.kernel;
        for spare in self.sandbox.machine.spaces.spares() {
            let add = |_, leaf: Leaf| frames.entry(leaf.gpa).or_default().refs += 1;
            let user = (Gva(0), USER_END.0);
            spare
                .for_each_leaf(self.memory(), user.0, user.1, add)
                .unwrap();
        }
        let vmas = kernel.mms.values().flat_map(|mm| mm.vmas.values());
        let of_vmas = vmas.filter_map(|vma| match vma.backing {
            Backing::Tmp(tmp) => Some(tmp.inode),
            _ => None,
        });
        let inodes: BTreeSet<InodeId> = of_vmas.chain(self.files.iter().copied()).collect();
        for inode in inodes {
            let held = (0..PAGES).filter_map(|page| kernel.tmpfs.page_for_read(inode, page));
            held.for_each(|gpa| frames.entry(gpa).or_default().refs += 1);
        }
        // Frozen address spaces that no process has any more keep their copies of frozen pages.
        let frozen = self
            .frozen
            .iter()
            .flat_map(|frozen| frozen.kernel.mms.keys());
        let detached = frozen.filter(|id| !kernel.mms.contains_key(*id)).count();
        for (gpa, seen) in frames {
            if self.memory().is_frozen(gpa) {
                continue;
            }
            let refs = self.memory().frame_refs(gpa);
            if detached == 0 {
                assert_eq!(refs, seen.refs, "{gpa:?}");
            }
            assert!(refs >= seen.refs, "{gpa:?}");
            let is_alone = refs == 1 && seen.spaces.len() == 1;
            assert!(
                !seen.private_writable || is_alone,
                "{gpa:?} of {:?}",
                seen.spaces
            );
        }
    }

    /// Ends all processes but one, which executes another program: nothing is left of all that.
    fn finish(mut self) {
        self.reset();
        self.check();
        while self.sandbox.kernel.processes.len() > 1 {
            self.exit(self.tid(0));
        }
        let tid = self.tid(0);
        // The spares of the address space that it leaves go with that.
        start_anew(&mut self.cx(tid)).unwrap();
        let memory = &mut self.sandbox.machine.memory;
        for inode in self.files.drain(..) {
            self.sandbox.kernel.tmpfs.close_ref(memory, inode);
        }
        if self.frozen.is_none() {
            self.flush_all();
            assert!(!self.memory().has_quarantine());
            assert_eq!(self.memory().used_bytes(), self.empty_bytes);
        }
    }
}

fn run(kvm: Kvm, is_mapped: bool, steps: &[(usize, Op)]) {
    let mut world = World::new(kvm);
    if is_mapped {
        world.map(TID, (0, PAGES), 3, Kind::Anon);
    }
    for (who, op) in steps {
        world.apply(*who, op);
        world.check();
    }
    world.finish();
}

proptest! {
    // By default 32: each case is long. PROPTEST_CASES is what the default is counted from.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 8))]

    #[test]
    fn address_spaces_agree_with_one_entry_per_page(
        kvm in prop_oneof![Just(Kvm::Software), Just(Kvm::Hardware)],
        is_mapped in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        run(kvm, is_mapped, &steps);
    }
}

/// Children that come and go; each looks at some pages, which lie elsewhere each time.
fn children(kvm: Kvm, drops_dead: bool) {
    let mut world = World::new(kvm);
    world.cpu.drops_dead = drops_dead;
    world.map(TID, (40, 8), 3, Kind::Anon);
    for child in 0..60u64 {
        world.map(TID, (0, 1 + child % 7), 3, Kind::Anon);
        let byte = child as u8;
        for (who, page) in [(0, 0), (0, 40)] {
            world.apply(who, &Op::Store { page, byte });
        }
        world.apply(0, &Op::Fork(Room::Plenty));
        world.apply(1, &Op::Load { page: 40 });
        world.apply(1, &Op::Exit);
        world.check();
        world.give_up_spares();
    }
    world.finish();
}

#[test]
fn tables_that_come_back_show_nothing_of_the_address_space_that_is_gone() {
    children(Kvm::Software, true);
    children(Kvm::Hardware, true);
    // No shadow is left behind on hardware.
    children(Kvm::Hardware, false);
    let kept = std::panic::catch_unwind(|| children(Kvm::Software, false));
    assert!(
        kept.is_err(),
        "this processor would not show a missing store"
    );
}

/// Children that get the tables of those before them: each has what its parent has now, and nothing beside.
fn revived(kvm: Kvm) {
    let mut world = World::new(kvm);
    world.map(TID, (40, 8), 3, Kind::Anon);
    world.map(TID, (60, 4), 3, Kind::SharedFile(0));
    world.map(TID, (70, 4), 3, Kind::PrivateFile(1));
    let loads = [40, 41, 47, 60, 63, 70, 72];
    for child in 0..20u64 {
        let (byte, first) = (child as u8 + 1, child % 5);
        for page in [40 + first, 60 + child % 4, 70 + child % 3] {
            world.apply(0, &Op::Store { page, byte });
        }
        world.apply(0, &Op::Fork(Room::Plenty));
        assert_eq!(world.spares(), 0, "{child}: it was not revived");
        for page in loads {
            world.apply(1, &Op::Load { page });
        }
        // What the next one must not see: in pages, in pages beside, and by other rights.
        for page in [40, 41 + first, 61, 70, 73] {
            world.apply(1, &Op::Store { page, byte: 200 });
        }
        world.map(world.tid(1), (10 + first, 3), 3, Kind::Anon);
        world.apply(
            1,
            &Op::Store {
                page: 11 + first,
                byte: 201,
            },
        );
        let (start, len) = (40, 1 + child % 8);
        world.apply(
            1,
            &Op::Protect {
                start,
                len,
                prot: 1,
            },
        );
        world.check();
        world.apply(1, &Op::Exit);
        assert_eq!(world.spares(), 1, "{child}: it was not kept");
        world.check();
        match child % 6 {
            3 => world.apply(0, &Op::Unmap { start: 44, len: 2 }),
            4 => world.map(TID, (44, 2), 3, Kind::Anon),
            5 => world.apply(
                0,
                &Op::Resize {
                    file: 0,
                    pages: 2 + child % 8,
                },
            ),
            _ => {}
        }
        world.check();
    }
    world.apply(0, &Op::Freeze);
    assert_eq!(world.spares(), 0);
    world.apply(0, &Op::Fork(Room::Plenty));
    world.apply(
        1,
        &Op::Store {
            page: 40,
            byte: 202,
        },
    );
    world.apply(1, &Op::Exit);
    assert_eq!(world.spares(), 1);
    world.check();
    world.apply(0, &Op::Fork(Room::Plenty));
    world.apply(1, &Op::Load { page: 40 });
    world.check();
    world.finish();
}

#[test]
fn a_child_with_the_tables_of_another_has_what_its_parent_has() {
    revived(Kvm::Software);
    revived(Kvm::Hardware);
}

/// Sequences that once went wrong, or that chance seldom finds.
#[test]
fn hard_cases_agree_too() {
    let (start, len) = (0, PAGES);
    let cases: [&[(usize, Op)]; 6] = [
        // A child's child, whose tables are of no use once the child has gone.
        &[
            (0, Op::Unmap { start, len }),
            (
                0,
                Op::Map {
                    start,
                    len: 4,
                    prot: 3,
                    kind: Kind::Anon,
                },
            ),
            (0, Op::Store { page: 0, byte: 1 }),
            (0, Op::Fork(Room::Plenty)),
            (1, Op::Fork(Room::Plenty)),
            (2, Op::Exit),
            (1, Op::Exit),
        ],
        // One 2 MiB page in two mappings, of which one is not for the child.
        &[
            (0, Op::Load { page: 0 }),
            (0, Op::DontFork { start, len: 1 }),
            (0, Op::Fork(Room::Plenty)),
        ],
        // A 2 MiB page of which the child has copied a part.
        &[
            (0, Op::Store { page: 0, byte: 1 }),
            (0, Op::Fork(Room::Plenty)),
            (1, Op::Store { page: 0, byte: 2 }),
            (
                0,
                Op::Protect {
                    start,
                    len,
                    prot: 1,
                },
            ),
            (
                0,
                Op::Protect {
                    start,
                    len,
                    prot: 3,
                },
            ),
            (0, Op::Store { page: 5, byte: 9 }),
        ],
        // Shared memory of two processes of a snapshot, written by one of them.
        &[
            (
                0,
                Op::Map {
                    start,
                    len: 4,
                    prot: 3,
                    kind: Kind::SharedAnon,
                },
            ),
            (0, Op::Store { page: 0, byte: 1 }),
            (0, Op::Fork(Room::Plenty)),
            (0, Op::Freeze),
            (0, Op::Load { page: 0 }),
            (1, Op::Store { page: 0, byte: 2 }),
        ],
        // A hole that one process makes in what another maps too.
        &[
            (
                0,
                Op::Map {
                    start,
                    len: 4,
                    prot: 3,
                    kind: Kind::SharedAnon,
                },
            ),
            (0, Op::Store { page: 0, byte: 1 }),
            (0, Op::Fork(Room::Plenty)),
            (1, Op::Remove { start, len: 4 }),
            (0, Op::Load { page: 0 }),
        ],
        // A frozen address space that ends in a fork and is there again after the reset.
        &[
            (0, Op::Store { page: 0, byte: 1 }),
            (0, Op::Freeze),
            (
                0,
                Op::Map {
                    start,
                    len: 4,
                    prot: 3,
                    kind: Kind::Anon,
                },
            ),
            (0, Op::Store { page: 0, byte: 2 }),
            (0, Op::Exec),
            (0, Op::Reset),
            (0, Op::Load { page: 0 }),
        ],
    ];
    for steps in cases {
        for kvm in [Kvm::Software, Kvm::Hardware] {
            run(kvm, true, steps);
        }
    }
}
