//! The faults that an executable can have, in one line each, and the errno execve(2) gives for it.

use core::fmt;
use object::elf;

/// The errno that `execve(2)` answers for an [`ElfError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Errno {
    /// The file is not in a format that can be executed.
    Enoexec,
    /// Arguments and environment are too large.
    E2big,
    /// A path is longer than [`PATH_MAX`](crate::PATH_MAX).
    Enametoolong,
    /// An argument of the call itself makes no sense (no guest can cause it).
    Einval,
}

impl Errno {
    /// The number of this errno on x86-64.
    #[must_use]
    pub const fn raw(self) -> i32 {
        match self {
            Self::E2big => 7,
            Self::Enoexec => 8,
            Self::Einval => 22,
            Self::Enametoolong => 36,
        }
    }
}

/// `e_machine` of an ELF header; displays as the architecture's usual name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Machine(pub u16);

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match elf::Machine(self.0) {
            elf::EM_NONE => "no architecture",
            elf::EM_386 => "i386",
            elf::EM_X86_64 => "x86_64",
            elf::EM_AARCH64 => "aarch64",
            elf::EM_ARM => "arm",
            elf::EM_RISCV => "riscv",
            elf::EM_PPC => "powerpc",
            elf::EM_PPC64 => "powerpc64",
            elf::EM_S390 => "s390",
            elf::EM_MIPS => "mips",
            elf::EM_SPARC | elf::EM_SPARC32PLUS => "sparc",
            elf::EM_SPARCV9 => "sparc64",
            elf::EM_LOONGARCH => "loongarch",
            elf::EM_IA_64 => "ia64",
            elf::EM_ALPHA => "alpha",
            elf::EM_PARISC => "parisc",
            elf::EM_68K => "m68k",
            elf::EM_SH => "sh",
            elf::EM_BPF => "bpf",
            elf::Machine(number) => return write!(f, "machine number {number}"),
        };
        f.write_str(name)
    }
}

/// Why an executable, a script or a first stack was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// No `\x7fELF` at the start.
    #[error("not an ELF executable and not a script: it starts with neither \\x7fELF nor #!")]
    NotElf,
    /// The file, or the part of it that was read, ends inside `what`.
    #[error("truncated ELF file: {what} ends at byte {end}, the file has {len}")]
    Truncated {
        /// Which part is cut off.
        what: &'static str,
        /// Where that part ends, in bytes from the start of the file.
        end: u64,
        /// Length of the file in bytes.
        len: u64,
    },
    /// The program headers lie past the bytes that were read.
    #[error("ELF program headers end at byte {end}, past the first {len} bytes that are examined")]
    HeadersTooFar {
        /// End of the program headers in the file, in bytes.
        end: u64,
        /// Bytes that were given to [`parse`](crate::parse).
        len: u64,
    },
    /// An x86 program that is not 64-bit (i386, or x32).
    #[error("a 32-bit x86 program; only 64-bit ones can run")]
    ThirtyTwoBit,
    /// Not an x86-64 program.
    #[error("built for {0}, not for x86_64")]
    WrongArchitecture(Machine),
    /// Class, byte order or version in the identification bytes fit no x86-64 file.
    #[error("bad ELF identification: byte {index} is {value}")]
    BadIdent {
        /// Index in `e_ident`.
        index: u8,
        /// The value found there.
        value: u8,
    },
    /// `e_type` is neither executable nor shared object.
    #[error("{}", file_type_message(*.0))]
    BadType(u16),
    /// `e_phentsize` or `e_phnum` is out of range.
    #[error("bad ELF program header table: {count} headers of {entry_size} bytes")]
    BadProgramHeaderTable {
        /// `e_phnum`.
        count: u16,
        /// `e_phentsize`.
        entry_size: u16,
    },
    /// Program header `index` makes no sense.
    #[error("bad ELF program header {index}: {reason}")]
    BadProgramHeader {
        /// Index in the table, from 0.
        index: u16,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Nothing to load.
    #[error("ELF file without a loadable segment")]
    NoSegments,
    /// `e_entry` is outside user space.
    #[error("bad ELF entry point {0:#x}: outside user space")]
    BadEntry(u64),
    /// The image does not fit in user space at this load bias.
    #[error("ELF image cannot be loaded with bias {0:#x}")]
    BadBias(u64),
    /// The interpreter path is empty, not NUL-terminated, or too long.
    #[error("bad ELF interpreter path: {0}")]
    BadInterp(&'static str),
    /// The `#!` line names no interpreter.
    #[error("script without an interpreter on its #! line")]
    ShebangEmpty,
    /// The interpreter's path does not end within the bytes that Linux examines.
    #[error("#! line too long: the interpreter's path must end within 255 bytes")]
    ShebangTooLong,
    /// One string among arguments and environment is longer than Linux allows.
    #[error("argument list too long: one string has {0} bytes, the limit is 131071")]
    StringTooLong(usize),
    /// Arguments, environment and tables do not fit.
    #[error("argument list too long: the first stack needs {needed} bytes, the limit is {limit}")]
    StackTooLarge {
        /// Bytes needed.
        needed: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The path of the executed file is too long.
    #[error("path of the executable too long: {0} bytes, the limit is 4095")]
    PathTooLong(usize),
    /// The symbol tables make no sense.
    #[error("ELF file with symbols {0}")]
    BadSymbols(&'static str),
    /// A string for the first stack contains a NUL byte, which would end it early.
    #[error("{0} contains a NUL byte")]
    InteriorNul(&'static str),
    /// The stack's top is not an address in user space with room below it.
    #[error("stack top {0:#x} is outside user space")]
    BadStackTop(u64),
}

impl ElfError {
    /// The errno that `execve(2)` answers for this error.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::StringTooLong(_) | Self::StackTooLarge { .. } => Errno::E2big,
            Self::PathTooLong(_) => Errno::Enametoolong,
            Self::InteriorNul(_) | Self::BadStackTop(_) | Self::BadBias(_) => Errno::Einval,
            Self::NotElf
            | Self::Truncated { .. }
            | Self::HeadersTooFar { .. }
            | Self::ThirtyTwoBit
            | Self::WrongArchitecture(_)
            | Self::BadIdent { .. }
            | Self::BadType(_)
            | Self::BadProgramHeaderTable { .. }
            | Self::BadProgramHeader { .. }
            | Self::NoSegments
            | Self::BadEntry(_)
            | Self::BadInterp(_)
            | Self::BadSymbols(_)
            | Self::ShebangEmpty
            | Self::ShebangTooLong => Errno::Enoexec,
        }
    }
}

/// The message of [`ElfError::BadType`].
fn file_type_message(file_type: u16) -> String {
    match elf::FileType(file_type) {
        elf::ET_REL => "an object file (.o), not a linked executable".to_owned(),
        elf::ET_CORE => "a core dump, not an executable".to_owned(),
        elf::FileType(other) => format!("ELF file of type {other}, not an executable"),
    }
}
