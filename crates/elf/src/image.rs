//! ELF headers to a validated [`Image`], and an image to page-granular [`LoadAction`]s.

use core::ops::Range;

use bitflags::bitflags;
use object::LittleEndian as LE;
use object::elf;
use object::pod;

use crate::error::{ElfError, Machine};
use crate::{PAGE_SIZE, PATH_MAX, USER_END, USER_START, page_down, page_offset, page_up};

type Header = elf::FileHeader64<LE>;
type ProgramHeader = elf::ProgramHeader64<LE>;

/// Size of an ELF64 file header, in bytes.
const HEADER_LEN: u64 = size_of::<Header>() as u64;
/// Size of an ELF64 program header, in bytes; the only `e_phentsize` that Linux accepts.
const PROGRAM_HEADER_LEN: u64 = size_of::<ProgramHeader>() as u64;
/// Largest program header table that Linux accepts, in bytes (`load_elf_phdrs`).
const MAX_TABLE_LEN: u64 = 65536;

bitflags! {
    /// Access rights of a segment, with the bit values of `mmap(2)`'s `PROT_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Prot: u32 {
        /// `PROT_READ`
        const R = 1;
        /// `PROT_WRITE`
        const W = 2;
        /// `PROT_EXEC`
        const X = 4;
    }
}

/// Addresses at which an image may be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `ET_EXEC`: linked for fixed addresses, load bias 0.
    Static,
    /// `ET_DYN`: position-independent (PIE, static PIE, or a dynamic linker).
    Dyn,
}

/// Wish of `PT_GNU_STACK` for the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StackFlags {
    /// Read and write: also without the header, as Linux does for 64-bit x86.
    NonExecutable,
    /// Read, write and execute.
    Executable,
}

/// Place of the interpreter's path (`PT_INTERP`) in the file, NUL included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InterpRef {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length in bytes, 2 to [`PATH_MAX`].
    pub len: u64,
}

/// One validated `PT_LOAD`. Addresses are link-time ones, before the load bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    /// First address.
    pub vaddr: u64,
    /// Place of its bytes in the file.
    pub file_offset: u64,
    /// Number of bytes that come from the file; at most `mem_len`.
    pub file_len: u64,
    /// Number of bytes it has in memory; those after `file_len` are zero. Never 0.
    pub mem_len: u64,
    /// Access rights.
    pub prot: Prot,
}

/// A validated executable: what it wants in memory and how it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Fixed or position-independent.
    pub kind: Kind,
    /// Entry point before the load bias; see [`Image::entry_at`].
    pub entry: u64,
    /// Offset of the program header table in the file, in bytes.
    pub phoff: u64,
    /// Number of program headers (`AT_PHNUM`).
    pub phnum: u16,
    /// Bytes per program header (`AT_PHENT`).
    pub phentsize: u16,
    /// Address of the program header table before the load bias (`AT_PHDR`), if a segment maps it.
    pub phdr_vaddr: Option<u64>,
    /// Segments by ascending address, without overlap; at least one.
    pub segments: Vec<Segment>,
    /// The dynamic linker's path, if the program wants one.
    pub interp: Option<InterpRef>,
    /// May the stack be executed?
    pub stack: StackFlags,
    /// From the page of the first segment to the end of the last one's page, before the load bias.
    pub load_span: Range<u64>,
    /// Largest alignment a segment asks for, in bytes: a power of two, at least [`PAGE_SIZE`].
    /// A load bias that is a multiple of it honours all of them.
    pub max_align: u64,
}

/// One step of loading, at final addresses. The steps are to be done in order; a later mapping
/// replaces what an earlier one left in the same page (as `MAP_FIXED` does).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LoadAction {
    /// Map the file privately; whole pages. Past the end of the file the last page is zero.
    MapFile {
        /// Page-aligned address.
        vaddr: u64,
        /// Length in bytes, whole pages.
        len: u64,
        /// Page-aligned offset in the file, in bytes.
        file_offset: u64,
        /// Access rights.
        prot: Prot,
    },
    /// Zero the rest of a page mapped by the step before, from the end of the file's bytes.
    /// Only asked for in writable segments, as in Linux.
    ZeroTail {
        /// First byte to zero, within a page.
        vaddr: u64,
        /// Length in bytes, to the end of that page.
        len: u64,
    },
    /// Map zero pages; whole pages.
    MapAnon {
        /// Page-aligned address.
        vaddr: u64,
        /// Length in bytes, whole pages.
        len: u64,
        /// Access rights: always read and write, like Linux's `vm_brk_flags`.
        prot: Prot,
    },
}

/// Reads the headers of an ELF executable.
///
/// `header` holds the first bytes of the file, program headers included (64 KiB are plenty);
/// `file_len` is the length of the whole file in bytes.
///
/// Linux differs: it also runs files whose class and byte order fields are wrong. Their segments may be
/// out of order, overlap, or lie past the end of the file (an access there is SIGBUS).
///
/// # Errors
/// An [`ElfError`] of class ENOEXEC that says what is wrong with the file.
pub fn parse(header: &[u8], file_len: u64) -> Result<Image, ElfError> {
    let bytes = match usize::try_from(file_len) {
        Ok(len) => header.get(..len).unwrap_or(header),
        Err(_) => header,
    };
    if !bytes.starts_with(&elf::ELFMAG) {
        return Err(ElfError::NotElf);
    }
    let (file, _) = pod::from_bytes::<Header>(bytes)
        .map_err(|()| cut_off("the ELF header", HEADER_LEN, bytes, file_len))?;
    check_ident(file)?;
    let kind = match file.e_type.get(LE) {
        elf::ET_EXEC => Kind::Static,
        elf::ET_DYN => Kind::Dyn,
        other => return Err(ElfError::BadType(other.0)),
    };
    let table = program_headers(file, bytes, file_len)?;

    let mut builder = Builder::new(kind, file_len);
    for (index, header) in (0u16..).zip(table) {
        builder.add(index, header)?;
    }
    builder.finish(file)
}

/// Checks the path read from an [`InterpRef`]: it must end in NUL, and is returned up to its
/// first NUL.
///
/// # Errors
/// [`ElfError::BadInterp`] if it is empty, longer than [`PATH_MAX`] or without a NUL at its end.
pub fn read_interp(bytes: &[u8]) -> Result<&[u8], ElfError> {
    if bytes.len() > PATH_MAX {
        return Err(ElfError::BadInterp("longer than PATH_MAX"));
    }
    if bytes.last() != Some(&0) {
        return Err(ElfError::BadInterp("not NUL-terminated"));
    }
    match bytes.split(|&byte| byte == 0).next() {
        // Linux differs: it takes the empty path for the current directory: EACCES.
        None | Some([]) => Err(ElfError::BadInterp("empty")),
        Some(path) => Ok(path),
    }
}

impl Image {
    /// The steps that load this image at `bias`, which is added to link-time addresses modulo
    /// 2^64 (so an image linked high can be moved down).
    ///
    /// # Errors
    /// [`ElfError::BadBias`] if `bias` is not page-aligned, not 0 for [`Kind::Static`], or puts a
    /// part of the image outside [`USER_START`]..[`USER_END`].
    pub fn plan(&self, bias: u64) -> Result<Vec<LoadAction>, ElfError> {
        self.span_at(bias)?;
        let bad = ElfError::BadBias(bias);
        let mut actions = Vec::with_capacity(self.segments.len().saturating_mul(2));
        for segment in &self.segments {
            let start = segment.vaddr.wrapping_add(bias);
            let file_end = start.checked_add(segment.file_len).ok_or(bad)?;
            let end = start.checked_add(segment.mem_len).ok_or(bad)?;
            let mut zero_start = page_down(start);
            if segment.file_len > 0 {
                let mapped_end = page_up(file_end).ok_or(bad)?;
                actions.push(LoadAction::MapFile {
                    vaddr: zero_start,
                    len: mapped_end.saturating_sub(zero_start),
                    file_offset: page_down(segment.file_offset),
                    prot: segment.prot,
                });
                if segment.mem_len > segment.file_len
                    && segment.prot.contains(Prot::W)
                    && mapped_end > file_end
                {
                    actions.push(LoadAction::ZeroTail {
                        vaddr: file_end,
                        len: mapped_end.saturating_sub(file_end),
                    });
                }
                zero_start = mapped_end;
            }
            let zero_end = page_up(end).ok_or(bad)?;
            if zero_end > zero_start {
                actions.push(LoadAction::MapAnon {
                    vaddr: zero_start,
                    len: zero_end.saturating_sub(zero_start),
                    prot: Prot::R | Prot::W | (segment.prot & Prot::X),
                });
            }
        }
        Ok(actions)
    }

    /// The addresses that this image covers at `bias`, whole pages. The end is where the program
    /// break starts.
    ///
    /// # Errors
    /// As [`Image::plan`].
    pub fn span_at(&self, bias: u64) -> Result<Range<u64>, ElfError> {
        let bad = ElfError::BadBias(bias);
        if page_offset(bias) != 0 || (self.kind == Kind::Static && bias != 0) {
            return Err(bad);
        }
        let len = self.load_span.end.saturating_sub(self.load_span.start);
        let start = self.load_span.start.wrapping_add(bias);
        match start.checked_add(len) {
            Some(end) if start >= USER_START && end <= USER_END => Ok(start..end),
            _ => Err(bad),
        }
    }

    /// The entry point at `bias`. It need not be inside a segment (such a program faults at its
    /// first instruction).
    ///
    /// # Errors
    /// [`ElfError::BadEntry`] if it is outside user space.
    pub fn entry_at(&self, bias: u64) -> Result<u64, ElfError> {
        let entry = self.entry.wrapping_add(bias);
        if entry < USER_END {
            Ok(entry)
        } else {
            Err(ElfError::BadEntry(entry))
        }
    }

    /// `AT_PHDR` at `bias`; 0 if no segment maps the program headers.
    #[must_use]
    pub fn phdr_at(&self, bias: u64) -> u64 {
        self.phdr_vaddr
            .map_or(0, |address| address.wrapping_add(bias))
    }
}

/// The error for a part of the file that ends at `end`, past `bytes`: is the file short, or
/// were too few bytes given?
fn cut_off(what: &'static str, end: u64, bytes: &[u8], file_len: u64) -> ElfError {
    if end > file_len {
        ElfError::Truncated {
            what,
            end,
            len: file_len,
        }
    } else {
        ElfError::HeadersTooFar {
            end,
            len: bytes.len() as u64,
        }
    }
}

/// Is this a 64-bit little-endian x86 file? The machine is looked at first, so that a foreign
/// program is called by its architecture's name.
fn check_ident(file: &Header) -> Result<(), ElfError> {
    let ident = &file.e_ident;
    let little = file.e_machine.get(LE);
    let machine = if ident.data == elf::ELFDATA2MSB {
        elf::Machine(little.0.swap_bytes())
    } else {
        little
    };
    match machine {
        elf::EM_386 => return Err(ElfError::ThirtyTwoBit),
        elf::EM_X86_64 if ident.class == elf::ELFCLASS32 => return Err(ElfError::ThirtyTwoBit),
        elf::EM_X86_64 => {}
        other => return Err(ElfError::WrongArchitecture(Machine(other.0))),
    }
    let bad = |index, value| Err(ElfError::BadIdent { index, value });
    if ident.class != elf::ELFCLASS64 {
        return bad(4, ident.class.0);
    }
    if ident.data != elf::ELFDATA2LSB {
        return bad(5, ident.data.0);
    }
    Ok(())
}

/// The program header table (`load_elf_phdrs`).
fn program_headers<'a>(
    file: &Header,
    bytes: &'a [u8],
    file_len: u64,
) -> Result<&'a [ProgramHeader], ElfError> {
    let count = file.e_phnum.get(LE);
    let entry_size = file.e_phentsize.get(LE);
    let len = u64::from(count).saturating_mul(PROGRAM_HEADER_LEN);
    if u64::from(entry_size) != PROGRAM_HEADER_LEN || count == 0 || len > MAX_TABLE_LEN {
        return Err(ElfError::BadProgramHeaderTable { count, entry_size });
    }
    let offset = file.e_phoff.get(LE);
    let end = offset.saturating_add(len);
    let table = usize::try_from(offset)
        .ok()
        .and_then(|offset| bytes.get(offset..))
        .and_then(|rest| pod::slice_from_bytes::<ProgramHeader>(rest, count.into()).ok());
    match table {
        Some((table, _)) => Ok(table),
        None => Err(cut_off("its program header table", end, bytes, file_len)),
    }
}

/// Collects program headers into an [`Image`].
struct Builder {
    kind: Kind,
    file_len: u64,
    segments: Vec<Segment>,
    interp: Option<InterpRef>,
    stack: StackFlags,
    max_align: u64,
}

impl Builder {
    fn new(kind: Kind, file_len: u64) -> Self {
        Self {
            kind,
            file_len,
            segments: Vec::new(),
            interp: None,
            stack: StackFlags::NonExecutable,
            max_align: PAGE_SIZE,
        }
    }

    fn add(&mut self, index: u16, header: &ProgramHeader) -> Result<(), ElfError> {
        match header.p_type.get(LE) {
            elf::PT_LOAD => self.add_segment(index, header),
            // Linux takes the first one and does not look at others.
            elf::PT_INTERP if self.interp.is_none() => self.add_interp(index, header),
            elf::PT_GNU_STACK => {
                let executable = header.p_flags.get(LE).0 & elf::PF_X.0 != 0;
                self.stack = if executable {
                    StackFlags::Executable
                } else {
                    StackFlags::NonExecutable
                };
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn add_interp(&mut self, index: u16, header: &ProgramHeader) -> Result<(), ElfError> {
        let offset = header.p_offset.get(LE);
        let len = header.p_filesz.get(LE);
        if !(2..=PATH_MAX as u64).contains(&len) {
            return Err(ElfError::BadProgramHeader {
                index,
                reason: "the interpreter's path must have 2 to 4096 bytes",
            });
        }
        self.check_in_file("the interpreter's path", offset, len)?;
        self.interp = Some(InterpRef { offset, len });
        Ok(())
    }

    fn add_segment(&mut self, index: u16, header: &ProgramHeader) -> Result<(), ElfError> {
        let bad = |reason| ElfError::BadProgramHeader { index, reason };
        let segment = Segment {
            vaddr: header.p_vaddr.get(LE),
            file_offset: header.p_offset.get(LE),
            file_len: header.p_filesz.get(LE),
            mem_len: header.p_memsz.get(LE),
            prot: prot_of(header.p_flags.get(LE).0),
        };
        if segment.file_len > segment.mem_len {
            return Err(bad("more bytes in the file than in memory"));
        }
        let align = header.p_align.get(LE);
        if align.is_power_of_two() {
            // Linux ignores other values, and so does this.
            if align > USER_END {
                return Err(bad("alignment larger than user space"));
            }
            self.max_align = self.max_align.max(align);
        }
        if segment.mem_len == 0 {
            return Ok(());
        }
        if segment
            .vaddr
            .checked_add(segment.mem_len)
            .is_none_or(|end| end > USER_END)
        {
            return Err(bad("it ends outside user space"));
        }
        if self.kind == Kind::Static && segment.vaddr < USER_START {
            return Err(bad("linked below 64 KiB, where nothing can be mapped"));
        }
        if segment.file_len > 0 {
            if page_offset(segment.file_offset) != page_offset(segment.vaddr) {
                return Err(bad("file offset and address differ within the page"));
            }
            self.check_in_file("a segment", segment.file_offset, segment.file_len)?;
        }
        if let Some(last) = self.segments.last()
            && segment.vaddr < last.vaddr.saturating_add(last.mem_len)
        {
            return Err(bad("segments overlap or are not in ascending order"));
        }
        self.segments.push(segment);
        Ok(())
    }

    fn check_in_file(&self, what: &'static str, offset: u64, len: u64) -> Result<(), ElfError> {
        let end = offset.saturating_add(len);
        if end > self.file_len {
            return Err(ElfError::Truncated {
                what,
                end,
                len: self.file_len,
            });
        }
        Ok(())
    }

    fn finish(self, file: &Header) -> Result<Image, ElfError> {
        let (Some(first), Some(last)) = (self.segments.first(), self.segments.last()) else {
            return Err(ElfError::NoSegments);
        };
        let start = page_down(first.vaddr);
        let end = page_up(last.vaddr.saturating_add(last.mem_len)).unwrap_or(USER_END);
        let entry = file.e_entry.get(LE);
        if entry >= USER_END {
            return Err(ElfError::BadEntry(entry));
        }
        let phoff = file.e_phoff.get(LE);
        // The last segment that holds the table's start, as in `load_elf_binary`.
        let phdr_vaddr = self.segments.iter().rev().find_map(|segment| {
            let into = phoff.checked_sub(segment.file_offset)?;
            (into < segment.file_len).then(|| segment.vaddr.saturating_add(into))
        });
        Ok(Image {
            kind: self.kind,
            entry,
            phoff,
            phnum: file.e_phnum.get(LE),
            phentsize: file.e_phentsize.get(LE),
            phdr_vaddr,
            load_span: start..end,
            segments: self.segments,
            interp: self.interp,
            stack: self.stack,
            max_align: self.max_align,
        })
    }
}

/// `PF_*` to `PROT_*` (Linux's `make_prot`).
fn prot_of(flags: u32) -> Prot {
    let mut prot = Prot::empty();
    prot.set(Prot::R, flags & elf::PF_R.0 != 0);
    prot.set(Prot::W, flags & elf::PF_W.0 != 0);
    prot.set(Prot::X, flags & elf::PF_X.0 != 0);
    prot
}
