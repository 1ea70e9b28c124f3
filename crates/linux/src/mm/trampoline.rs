//! Places in a program's text that jump to the stub instead of executing `syscall`
//! ([`kvmlet_stub::trampoline`]). This module says which text may be changed, and keeps the changes in step
//! with mappings.
//!
//! Linux differs: a program that reads such a place in its own text finds a jump there. The file is not
//! touched: the host copies the page, as for any write to a private mapping.

use imbl::Vector;
use kvmlet_abi::layout::{USER_END, USER_START};
use kvmlet_abi::{Errno, Gpa, Gva, PAGE_SIZE, UserRegs};
use kvmlet_stub::trampoline::{JUMP_BYTES, LOOK_BYTES, SLOTS, Site, Stopped, slot_at, slot_offset};

use super::space::{Space, errno};
use super::vma::{Backing, Prot, Vma};
use super::{Mm, Region, Source, VmaFlags, map_region};
use crate::cx::Cx;

/// The changed places of an address space.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trampolines {
    /// The address of the program's trampoline page, if it has one.
    page: Option<Gva>,
    /// By slot. A slot belongs to its site as long as the page is there.
    sites: Vector<Site>,
    /// Number of times that text has been changed. Each time may cost a page that nobody is charged for.
    changes: u32,
}

/// Changes of text in one address space at most.
const CHANGES_MAX: u32 = 4 * SLOTS as u32;

/// Maps the trampoline page, if this VM has one, below a program that is loaded at a fixed address
/// (`below`), or else where mappings go.
///
/// # Errors
/// `ENOMEM` if there is no room.
pub fn map_page(cx: &mut Cx<'_>, below: Option<u64>) -> Result<(), Errno> {
    let Some(gpa) = cx.machine.vdso.and_then(|vdso| vdso.trampolines) else {
        return Ok(());
    };
    if has_others(cx) {
        return Ok(());
    }
    let mm = cx.mm()?;
    let wanted = below.and_then(|end| end.checked_sub(PAGE_SIZE));
    let is_free = |at: u64| at >= USER_START.0 && !mm.any_in(at, at + PAGE_SIZE);
    let at = match wanted.filter(|&at| is_free(at)) {
        Some(at) => at,
        None => mm
            .free_range(0, PAGE_SIZE, super::Low2G::No)
            .ok_or(Errno::ENOMEM)?,
    };
    map_region(
        cx,
        &Region {
            start: Gva(at),
            len_bytes: PAGE_SIZE,
            prot: Prot::READ | Prot::EXEC,
            flags: VmaFlags::empty(),
            source: Source::Special(gpa),
            offset: 0,
            name: Some((*b"[kvmlet]").into()),
        },
    )?;
    cx.mm()?.trampolines.page = Some(Gva(at));
    Ok(())
}

/// True if another address space than the caller's has the trampoline page. There is one page for all: a copy
/// of a program has the same places as the original, and nobody else can have any.
fn has_others(cx: &mut Cx<'_>) -> bool {
    let own = cx.process().map(|process| process.mm);
    let mut others = cx.kernel.mms.iter();
    others.any(|(id, mm)| Ok(*id) != own && mm.trampolines.page.is_some())
}

/// True if the place that makes call `nr` and returns to `back` can be changed. Neither is trusted.
pub(crate) fn can_be_trampoline(cx: &mut Cx<'_>, back: Gva, nr: u64) -> bool {
    let has_page = cx
        .machine
        .vdso
        .is_some_and(|vdso| vdso.trampolines.is_some());
    has_page
        && !has_others(cx)
        && Space::of(cx).is_ok_and(|space| space.change_at(back, nr).is_some())
}

/// Changes the place that makes call `nr` and returns to `back`, so that it jumps from now on. The
/// program is not running. Returns whether it was changed.
pub(crate) fn make_trampoline(cx: &mut Cx<'_>, back: Gva, nr: u64) -> bool {
    let Some(frame) = cx.machine.vdso.and_then(|vdso| vdso.trampolines) else {
        return false;
    };
    if has_others(cx) {
        return false;
    }
    let rips: Vec<u64> = cx
        .kernel
        .threads
        .values()
        .map(|thread| thread.regs.rip)
        .collect();
    let Ok(mut space) = Space::of(cx) else {
        return false;
    };
    // Somebody may stand where the jump will be: another time, then.
    let splits = space
        .site_at(back, nr)
        .is_some_and(|site| rips.iter().any(|&rip| site.splits(rip)));
    !splits && space.make_trampoline(frame, back, nr).is_some()
}

/// A signal handler returns to `regs`. If the thread was interrupted between instructions that have been
/// replaced meanwhile, it goes on before them.
pub(crate) fn realign(cx: &mut Cx<'_>, regs: &mut UserRegs) {
    if let Ok(space) = Space::of(cx) {
        space.realign(regs);
    }
}

/// A changed place as it is in the text.
struct Written {
    at: Gva,
    jump: [u8; JUMP_BYTES],
    /// The bytes that were there before.
    original: [u8; JUMP_BYTES],
}

/// A place and what it needs to jump.
struct Change {
    site: Site,
    index: usize,
    /// For the slot.
    code: Vec<u8>,
    /// For the text.
    jump: [u8; JUMP_BYTES],
}

impl Mm {
    /// Puts a thread that stopped in the trampoline page back into the program.
    pub(crate) fn unwind_trampoline(&self, stopped: Stopped, regs: &mut UserRegs) {
        let Some(page) = self.trampolines.page else {
            return;
        };
        let offset = regs.rip.wrapping_sub(page.0);
        if offset >= PAGE_SIZE {
            return;
        }
        let (index, offset) = slot_at(offset);
        if let Some(site) = self.trampolines.sites.get(index) {
            site.unwind(offset, stopped, regs);
        }
    }
}

impl Space<'_> {
    /// The guest-physical page that shows a page of unwritten program text: of a private file mapping that
    /// may be executed and not be written.
    fn text_page(&self, page: Gva) -> Option<Gpa> {
        let vma = self.mm.find(page.0)?;
        if !vma.prot.contains(Prot::EXEC) || vma.prot.contains(Prot::WRITE) {
            return None;
        }
        let gpa = private_window(vma, page)?;
        (self.tables.translate(self.mem, page) == Some(gpa)).then_some(gpa)
    }

    fn site_at(&self, back: Gva, nr: u64) -> Option<Site> {
        let last = Gva(back.0.checked_sub(1)?);
        let page = last.page_down();
        let text = self.text_page(page)?;
        let end = last.page_offset() + 1;
        let start = end.saturating_sub(LOOK_BYTES as u64);
        let mut bytes = [0; LOOK_BYTES];
        let before = bytes.get_mut(..usize::try_from(end - start).ok()?)?;
        self.mem.read(text.wrapping_add(start), before).ok()?;
        Site::recognise(before, back, nr)
    }

    /// The change that makes the place jump that makes call `nr` and returns to `back`.
    fn change_at(&self, back: Gva, nr: u64) -> Option<Change> {
        let page = self.mm.trampolines.page?;
        if self.mm.trampolines.changes >= CHANGES_MAX {
            return None;
        }
        let site = self.site_at(back, nr)?;
        // A process that shows the same text may have given the trampoline page up.
        if !self
            .mem
            .is_text_of_one(self.text_page(site.start.page_down())?)
        {
            return None;
        }
        let index = self.slot_for(&site)?;
        Some(Change {
            site,
            index,
            code: site.code(page, index)?,
            jump: site.jump(page, index)?,
        })
    }

    /// The slot that this site has, or would have.
    fn slot_for(&self, site: &Site) -> Option<usize> {
        let sites = &self.mm.trampolines.sites;
        let known = sites.iter().position(|known| known == site);
        known.or_else(|| (sites.len() < SLOTS).then_some(sites.len()))
    }

    fn make_trampoline(&mut self, frame: Gpa, back: Gva, nr: u64) -> Option<()> {
        let Change {
            site,
            index,
            code,
            jump,
        } = self.change_at(back, nr)?;
        let at_slot = frame.wrapping_add(slot_offset(index));
        self.mem.write(at_slot, &code).ok()?;
        if index == self.mm.trampolines.sites.len() {
            self.mm.trampolines.sites.push_back(site);
        }
        let text = self.text_page(site.start.page_down())?;
        self.mem.give_up_text(text);
        self.mm.trampolines.changes += 1;
        let at = text.wrapping_add(site.start.page_offset());
        self.mem.write(at, &jump).ok()
    }

    /// The places in a range that have been changed, if nothing else is there now.
    fn written_in(&self, start: u64, end: u64) -> Vec<Written> {
        let Some(page) = self.mm.trampolines.page else {
            return Vec::new();
        };
        let sites = self.mm.trampolines.sites.iter().enumerate();
        sites
            .filter(|(_, site)| (start..end).contains(&site.start.0))
            .filter_map(|(index, site)| {
                Some(Written {
                    at: site.start,
                    jump: site.jump(page, index)?,
                    original: site.original()?,
                })
            })
            .collect()
    }

    /// Takes the changes of a range back: its text is about to be moved, where a jump would lead elsewhere, or
    /// to be written.
    ///
    /// # Errors
    /// `ENOMEM`: a fork copies the pages.
    pub(super) fn undo_trampolines(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        for written in self.written_in(start, end) {
            self.restore(&written)?;
        }
        Ok(())
    }

    /// Prepares for a change of what a range shows. If the trampoline page is in it, nothing may jump there
    /// any more.
    ///
    /// # Errors
    /// As [`Space::undo_trampolines`].
    pub(super) fn retire_trampolines(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let is_page = |page: Gva| page.0 < end && page.0.saturating_add(PAGE_SIZE) > start;
        if self.mm.trampolines.page.is_some_and(is_page) {
            self.undo_trampolines(0, USER_END.0)?;
            self.mm.trampolines = Trampolines::default();
        }
        Ok(())
    }

    /// Restores text wherever it has been changed: in the file's window, and in what is shown instead.
    fn restore(&mut self, written: &Written) -> Result<(), Errno> {
        let page = written.at.page_down();
        let Some(vma) = self.mm.find(page.0).cloned() else {
            return Ok(());
        };
        let Some(window) = private_window(&vma, page) else {
            return Ok(());
        };
        let shown = self.tables.translate(self.mem, page).unwrap_or(window);
        let places = 1 + usize::from(shown != window);
        for gpa in [window, shown].into_iter().take(places) {
            if !self.holds(gpa, written) {
                continue;
            }
            if !self.mem.is_frozen(gpa) {
                self.write_original(gpa, written)?;
            } else if gpa == shown {
                let copy = self.mem.alloc_copy(gpa).map_err(errno)?;
                let restored = self.write_original(copy, written);
                self.replace(page, copy, vma.pte())
                    .map_err(|_| Errno::ENOMEM)?;
                restored?;
            }
            // The guest leaves the VM before it executes this.
            self.tables.require_full_flush();
        }
        Ok(())
    }

    fn holds(&self, page: Gpa, written: &Written) -> bool {
        let mut now = [0; JUMP_BYTES];
        let place = page.wrapping_add(written.at.page_offset());
        self.mem.read(place, &mut now).is_ok() && now == written.jump
    }

    fn write_original(&mut self, page: Gpa, written: &Written) -> Result<(), Errno> {
        let place = page.wrapping_add(written.at.page_offset());
        self.mem.write(place, &written.original).map_err(errno)
    }

    /// The pages of a file's window have been copied and are about to be frozen. They become the file's
    /// again, since nobody could take a change back later.
    pub(super) fn clean_window(&mut self, vma: &Vma) {
        for written in self.written_in(vma.start, vma.end) {
            if let Some(window) = private_window(vma, written.at.page_down())
                && self.holds(window, &written)
            {
                // What cannot be written stays as it is: it is right where it is.
                let _ = self.write_original(window, &written);
            }
        }
    }

    /// See [`realign`].
    fn realign(&self, regs: &mut UserRegs) {
        let site = self
            .mm
            .trampolines
            .sites
            .iter()
            .find(|site| site.splits(regs.rip));
        let Some(start) = site.map(|site| site.start) else {
            return;
        };
        // Whatever else is there now is none of ours.
        let is_there = self.written_in(start.0, start.0 + 1).iter().any(|written| {
            let shown = self.tables.translate(self.mem, start.page_down());
            shown.is_some_and(|shown| self.holds(shown, written))
        });
        if is_there {
            regs.rip = start.0;
        }
    }
}

/// The guest-physical page of a private file mapping that shows a page of it unwritten.
fn private_window(vma: &Vma, page: Gva) -> Option<Gpa> {
    let Backing::File(file) = vma.backing else {
        return None;
    };
    let inside = (vma.start..vma.end).contains(&page.0) && !vma.is_shared();
    let window = file.window.filter(|_| inside)?;
    Some(window.wrapping_add(page.0 - vma.start))
}

#[cfg(test)]
mod tests {
    use super::super::Access;
    use super::super::fixture::{Fixture, MIB};
    use super::super::remap::{RemapFlags, RemapRequest};
    use super::*;

    const READ_EXEC: u32 = 5;
    const PRIVATE: u32 = 2;
    const NR: u64 = 257;
    const SITE: [u8; 10] = [0x90, 0x90, 0x90, 0xb8, 1, 1, 0, 0, 0x0f, 0x05];
    /// Offsets of the sites in the file: inside a page, at its start, across its end.
    const AT: [usize; 3] = [100, 8192 - 3, 4090 - 3];
    /// Go's, with two instructions for a jump to replace, and its offset.
    const SEVERAL: [u8; 14] = [
        0x49, 0x89, 0xf2, 0x48, 0x89, 0xfa, 0x48, 0x89, 0xce, 0x48, 0x89, 0xdf, 0x0f, 0x05,
    ];
    const SEVERAL_AT: usize = 2000;

    struct Text {
        fixture: Fixture,
        /// The address at which the file is mapped.
        start: u64,
        /// The trampoline page's frame.
        frame: Gpa,
    }

    fn contents() -> Vec<u8> {
        let mut contents = vec![0x90; 3 * 4096];
        for at in AT {
            contents[at..at + SITE.len()].copy_from_slice(&SITE);
        }
        contents[SEVERAL_AT..SEVERAL_AT + SEVERAL.len()].copy_from_slice(&SEVERAL);
        contents
    }

    impl Text {
        fn new() -> Self {
            let mut fixture = Fixture::new(8 * MIB);
            let (_, file) = fixture.host_file(&contents());
            let start = fixture
                .map_at(0, 3 * 4096, READ_EXEC, PRIVATE, Some(file), 0)
                .unwrap();
            let frame = fixture.mem.alloc_frame().unwrap();
            // Near: a page that nothing is mapped at.
            fixture.mm.trampolines.page = Some(Gva(start - MIB));
            for page in 0..3 {
                fixture.touch(start + page * 4096, Access::Exec).unwrap();
            }
            Self {
                fixture,
                start,
                frame,
            }
        }

        fn back(&self, at: usize) -> Gva {
            Gva(self.start + (at + SITE.len()) as u64)
        }

        fn change(&mut self, at: usize, nr: u64) -> bool {
            let (frame, back) = (self.frame, self.back(at));
            let could = self.fixture.space().change_at(back, nr).is_some();
            let changed = self
                .fixture
                .space()
                .make_trampoline(frame, back, nr)
                .is_some();
            assert_eq!(could, changed);
            changed
        }

        fn bytes(&mut self, at: u64) -> Vec<u8> {
            let bytes = (0..SITE.len() as u64).map(|delta| self.fixture.load(at + delta));
            bytes.map(Result::unwrap).collect()
        }
    }

    #[test]
    fn text_is_changed_where_it_makes_that_call() {
        let mut text = Text::new();
        assert!(!text.change(AT[0], NR + 1));
        assert!(!text.change(AT[0] + 1, NR));
        assert!(text.change(AT[0], NR));
        let at = text.start + AT[0] as u64;
        let now = text.bytes(at);
        assert_eq!((now[3], &now[8..]), (0xe9, &SITE[8..]));
        assert!(!text.change(AT[0], NR), "it is changed already");
        let mut slot = [0; 3];
        text.fixture.mem.read(text.frame, &mut slot).unwrap();
        assert_eq!(slot, [0x0f, 0x90, 0xc0]);
        // What is before it lies in another page; so does the site itself.
        assert!(!text.change(AT[1], NR));
        assert!(!text.change(AT[2], NR));
        assert!(!text.change(3 * 4096, NR), "behind the mapping");
        assert_eq!(text.fixture.mm.trampolines.sites.len(), 1);
    }

    #[test]
    fn what_is_not_unwritten_text_is_left_alone() {
        for (prot, flags) in [(1, PRIVATE), (3, PRIVATE), (7, PRIVATE), (READ_EXEC, 1)] {
            let mut text = Text::new();
            let (_, file) = text.fixture.host_file(&contents());
            text.start = text
                .fixture
                .map_at(0, 3 * 4096, prot, flags, Some(file), 0)
                .unwrap();
            text.fixture.touch(text.start, Access::Read).unwrap();
            assert!(!text.change(AT[0], NR), "{prot} {flags}");
        }
        // A page that the program has written once.
        let mut text = Text::new();
        let (start, at) = (text.start, text.start + AT[0] as u64);
        text.fixture.space().mprotect(start, 4096, 3).unwrap();
        text.fixture.store(at, 0x90).unwrap();
        text.fixture.space().privatise(Gva(start)).unwrap();
        text.fixture
            .space()
            .mprotect(start, 4096, READ_EXEC)
            .unwrap();
        text.fixture.touch(at, Access::Exec).unwrap();
        assert!(!text.change(AT[0], NR));
        // Anonymous memory.
        let start = text.fixture.map(0, 4096, 7, PRIVATE).unwrap();
        for (delta, byte) in SITE.into_iter().enumerate() {
            text.fixture.store(start + delta as u64, byte).unwrap();
        }
        let mut text = Text { start, ..text };
        assert!(!text.change(0, NR));
    }

    #[test]
    fn text_that_moves_is_as_it_was() {
        let mut text = Text::new();
        assert!(text.change(AT[0], NR));
        let to = text.start - 2 * MIB;
        assert_eq!(moved(&mut text, to), Ok(to));
        assert_eq!(text.bytes(to + AT[0] as u64), SITE);
        text.start = to;
        assert!(text.change(AT[0], NR));
        assert_eq!(text.fixture.mm.trampolines.sites.len(), 2);
    }

    fn moved(text: &mut Text, to: u64) -> Result<u64, Errno> {
        let request = RemapRequest {
            addr: text.start,
            old_len_bytes: 3 * 4096,
            new_len_bytes: 3 * 4096,
            flags: (RemapFlags::MAYMOVE | RemapFlags::FIXED).bits(),
            new_addr: to,
        };
        text.fixture.space().remap(&request)
    }

    #[test]
    fn text_that_moves_in_a_fork_is_as_it_was() {
        for is_touched in [true, false] {
            let mut text = Text::new();
            assert!(text.change(AT[0], NR));
            let Text {
                fixture,
                start,
                frame,
            } = text;
            let mut text = Text {
                fixture: fixture.fork(),
                start,
                frame,
            };
            if !is_touched {
                text.fixture.space().zap(start, start + 4096).unwrap();
            }
            assert_eq!(text.bytes(start + AT[0] as u64)[3], 0xe9);
            if !is_touched {
                text.fixture.space().zap(start, start + 4096).unwrap();
            }
            let to = moved(&mut text, start - 2 * MIB).unwrap();
            assert_eq!(text.bytes(to + AT[0] as u64), SITE);
        }
    }

    #[test]
    fn text_that_was_hidden_when_it_moves_is_as_it_was() {
        for prot in [0, 1, 3] {
            let mut text = Text::new();
            assert!(text.change(AT[0], NR));
            let start = text.start;
            let len = 3 * 4096;
            text.fixture.space().mprotect(start, len, prot).unwrap();
            text.fixture.space().zap(start, start + len).unwrap();
            let to = moved(&mut text, start - 2 * MIB).unwrap();
            text.fixture.space().mprotect(to, len, READ_EXEC).unwrap();
            assert_eq!(text.bytes(to + AT[0] as u64), SITE, "{prot}");
        }
    }

    #[test]
    fn text_that_may_be_written_is_as_it_was() {
        let mut text = Text::new();
        assert!(text.change(AT[0], NR));
        let start = text.start;
        text.fixture.space().mprotect(start, 4096, 7).unwrap();
        assert_eq!(text.bytes(start + AT[0] as u64), SITE);
    }

    #[test]
    fn other_text_at_the_same_address_is_left_alone() {
        let mut text = Text::new();
        assert!(text.change(AT[0], NR));
        let start = text.start;
        let other = vec![0x55; 3 * 4096];
        let (_, file) = text.fixture.host_file(&other);
        let again = text
            .fixture
            .map_at(start, 3 * 4096, READ_EXEC, PRIVATE | 0x10, Some(file), 0);
        assert_eq!(again, Ok(start));
        let to = moved(&mut text, start - 2 * MIB).unwrap();
        assert_eq!(text.bytes(to + AT[0] as u64), [0x55; SITE.len()]);
    }

    #[test]
    fn without_its_page_nothing_jumps() {
        for way in 0..3 {
            let mut text = Text::new();
            let page = text.fixture.mm.trampolines.page.unwrap().0;
            let mapped = text.fixture.map(page, 4096, READ_EXEC, PRIVATE | 0x10);
            // Mapping something at its place is the first way to lose it.
            assert_eq!(
                (mapped, text.fixture.mm.trampolines.page),
                (Ok(page), Some(Gva(page)))
            );
            assert!(text.change(AT[0], NR));
            match way {
                0 => text.fixture.space().munmap(page, 4096).unwrap(),
                1 => text.fixture.space().mprotect(page, 4096, 1).unwrap(),
                _ => {
                    let request = RemapRequest {
                        addr: page,
                        old_len_bytes: 4096,
                        new_len_bytes: 4096,
                        flags: (RemapFlags::MAYMOVE | RemapFlags::FIXED).bits(),
                        new_addr: page - MIB,
                    };
                    text.fixture.space().remap(&request).unwrap();
                }
            }
            assert_eq!(text.bytes(text.start + AT[0] as u64), SITE, "{way}");
            assert_eq!(text.fixture.mm.trampolines, Trampolines::default());
            assert!(!text.change(AT[0], NR));
        }
    }

    #[test]
    fn changes_are_few() {
        let mut text = Text::new();
        let start = text.start;
        let mut changes = 0;
        while text.change(AT[0], NR) {
            changes += 1;
            text.fixture
                .space()
                .undo_trampolines(start, start + 4096)
                .unwrap();
        }
        assert_eq!(changes, CHANGES_MAX);
        assert_eq!(text.fixture.mm.trampolines.sites.len(), 1);
    }

    #[test]
    fn slots_are_few_and_kept() {
        let mut text = Text::new();
        let back = text.back(AT[0]);
        let site = text.fixture.space().site_at(back, NR).unwrap();
        for index in 0..SLOTS as u64 {
            let start = Gva(index);
            text.fixture
                .mm
                .trampolines
                .sites
                .push_back(Site { start, ..site });
        }
        assert!(!text.change(AT[0], NR));
        text.fixture.mm.trampolines.sites.set(7, site);
        assert!(text.change(AT[0], NR));
        assert_eq!(text.fixture.mm.trampolines.sites.len(), SLOTS);
    }

    #[test]
    fn a_handler_returns_before_what_was_replaced_and_nowhere_else() {
        let mut text = Text::new();
        let back = Gva(text.start + (SEVERAL_AT + SEVERAL.len()) as u64);
        let start = back.0 - 8;
        let realigned = |text: &mut Text, rip: u64| {
            let mut regs = UserRegs {
                rip,
                ..UserRegs::default()
            };
            text.fixture.space().realign(&mut regs);
            regs.rip
        };
        assert_eq!(realigned(&mut text, start + 3), start + 3);
        let frame = text.frame;
        assert!(
            text.fixture
                .space()
                .make_trampoline(frame, back, 1)
                .is_some()
        );
        for (rip, expected) in [(0, 0), (3, 0), (5, 5), (6, 6)] {
            assert_eq!(realigned(&mut text, start + rip), start + expected);
        }
        // Other text at the same address.
        let at = text.start;
        let (_, file) = text.fixture.host_file(&contents());
        text.fixture
            .map_at(at, 3 * 4096, READ_EXEC, PRIVATE | 0x10, Some(file), 0)
            .unwrap();
        text.fixture.touch(start, Access::Exec).unwrap();
        assert_eq!(realigned(&mut text, start + 3), start + 3);
    }

    #[test]
    fn a_thread_in_a_slot_is_put_back() {
        let mut text = Text::new();
        assert!(text.change(AT[0], NR));
        let page = text.fixture.mm.trampolines.page.unwrap();
        for (rip, expected) in [
            (page.0, text.back(AT[0]).0 - 2),
            (page.0 + 8, text.back(AT[0]).0 - 2),
            (page.0 - 1, page.0 - 1),
            (page.0 + slot_offset(1), page.0 + slot_offset(1)),
            (page.0 + 4095, page.0 + 4095),
            (page.0 + 4096, page.0 + 4096),
        ] {
            let mut regs = UserRegs {
                rip,
                ..UserRegs::default()
            };
            text.fixture
                .mm
                .unwind_trampoline(Stopped::Otherwise, &mut regs);
            assert_eq!(regs.rip, expected);
        }
    }
}
