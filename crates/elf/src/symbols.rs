//! Functions by name: the symbol tables that the section headers point to.
//!
//! A file is read in pieces, since those of large programs have hundreds of megabytes.

use object::elf;

use crate::error::ElfError;

/// Bytes of a string table at most.
const STRINGS_MAX: u64 = 64 << 20;
/// Symbols of a table that are looked at.
const SYMBOLS_MAX: u64 = 1 << 22;
/// Section headers that are looked at.
const SECTIONS_MAX: u64 = 65_536;
const HEADER_LEN: usize = 64;
const SECTION_HEADER_LEN: u64 = 64;
const SYMBOL_LEN: u64 = 24;
/// Symbols read at once.
const SYMBOLS_AT_ONCE: u64 = 4096;
/// Bytes read at once, so that a reader can stop between: 1 MiB.
const READ_AT_ONCE: usize = 1 << 20;

const OUTSIDE: ElfError = ElfError::BadSymbols("that lie outside the file");

/// A file that can be read at any place.
pub trait ReadAt {
    /// Fills `into` with the bytes at `offset`; `false` if the file has not that many or cannot be
    /// read.
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> bool;
}

impl ReadAt for &[u8] {
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> bool {
        let found = usize::try_from(offset)
            .ok()
            .and_then(|from| self.get(from..from.checked_add(into.len())?));
        if let Some(bytes) = found {
            into.copy_from_slice(bytes);
        }
        found.is_some()
    }
}

/// Which of a file's symbols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Symbols {
    /// All that are left in it: `.symtab`, or `.dynsym` in a stripped file.
    All,
    /// Those that other files may use: `.dynsym`.
    Exported,
}

/// A function found by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Function {
    /// Its address before the load bias.
    At(u64),
    /// An indirect function: a resolver chooses the real one when the program is loaded.
    Indirect,
}

/// How good a match is; a later one is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// A label without a type, as hand-written assembly has them.
    Label,
    /// A function of one source file; another may have one of the same name.
    Local,
    /// The function of that name.
    Global,
}

#[derive(Debug, Clone, Copy)]
struct Section {
    kind: u32,
    offset: u64,
    len: u64,
    link: u32,
}

/// Looks a function up. `None` if the file has no such function, or no symbols at all.
///
/// # Errors
/// [`ElfError::NotElf`], [`ElfError::BadIdent`], [`ElfError::BadSymbols`] for tables that lie outside
/// the file, are too large or make no sense.
pub fn find_function(
    file: &mut dyn ReadAt,
    symbols: Symbols,
    name: &[u8],
) -> Result<Option<Function>, ElfError> {
    if name.is_empty() || name.contains(&0) {
        return Ok(None);
    }
    let sections = sections(file)?;
    let table = |kind: elf::SectionType| sections.iter().find(|section| section.kind == kind.0);
    let chosen = match symbols {
        Symbols::All => table(elf::SHT_SYMTAB).or_else(|| table(elf::SHT_DYNSYM)),
        Symbols::Exported => table(elf::SHT_DYNSYM),
    };
    let mut best: Option<(Rank, Function)> = None;
    each_named(file, &sections, chosen, name, &mut |symbol| {
        if let Some(found) = function(symbol)
            && best.is_none_or(|(rank, _)| found.0 > rank)
        {
            best = Some(found);
        }
    })?;
    Ok(best.map(|(_, function)| function))
}

/// True if a file uses something of this name that another file has.
///
/// # Errors
/// As [`find_function`].
pub fn is_imported(file: &mut dyn ReadAt, name: &[u8]) -> Result<bool, ElfError> {
    if name.is_empty() || name.contains(&0) {
        return Ok(false);
    }
    let sections = sections(file)?;
    let kind = elf::SHT_DYNSYM.0;
    let table = sections.iter().find(|section| section.kind == kind);
    let mut found = false;
    each_named(file, &sections, table, name, &mut |symbol| {
        found = found || u16_at(symbol, 6) == elf::SHN_UNDEF.0;
    })?;
    Ok(found)
}

/// Calls `seen` for each symbol of that name in a table, if there is one.
fn each_named(
    file: &mut dyn ReadAt,
    sections: &[Section],
    table: Option<&Section>,
    name: &[u8],
    seen: &mut dyn FnMut(&[u8; SYMBOL_LEN as usize]),
) -> Result<(), ElfError> {
    let Some(table) = table else {
        return Ok(());
    };
    let strings = usize::try_from(table.link)
        .ok()
        .and_then(|link| sections.get(link))
        .filter(|section| section.kind == elf::SHT_STRTAB.0)
        .ok_or(ElfError::BadSymbols("without a string table"))?;
    let names = places_of(file, strings, name)?;
    search(file, table, &names, seen)
}

fn sections(file: &mut dyn ReadAt) -> Result<Vec<Section>, ElfError> {
    let mut header = [0u8; HEADER_LEN];
    if !file.read_at(0, &mut header) || !header.starts_with(&elf::ELFMAG) {
        return Err(ElfError::NotElf);
    }
    for (index, wanted) in [(4u8, elf::ELFCLASS64.0), (5, elf::ELFDATA2LSB.0)] {
        let value = header.get(usize::from(index)).copied().unwrap_or_default();
        if value != wanted {
            return Err(ElfError::BadIdent { index, value });
        }
    }
    let offset = u64_at(&header, 40);
    let (entry_len, mut count) = (u16_at(&header, 58), u64::from(u16_at(&header, 60)));
    if offset == 0 {
        return Ok(Vec::new());
    }
    if u64::from(entry_len) != SECTION_HEADER_LEN {
        return Err(ElfError::BadSymbols("with section headers of a wrong size"));
    }
    if count == 0 {
        // With 65,280 sections or more the first header has their number.
        let first = read(file, offset, SECTION_HEADER_LEN)?;
        count = u64_at(&first, 32);
    }
    if count > SECTIONS_MAX {
        return Err(ElfError::BadSymbols("with too many sections"));
    }
    let table = read(file, offset, count.saturating_mul(SECTION_HEADER_LEN))?;
    let (headers, _) = table.as_chunks::<{ SECTION_HEADER_LEN as usize }>();
    Ok(headers
        .iter()
        .map(|header| Section {
            kind: u32_at(header, 4),
            offset: u64_at(header, 24),
            len: u64_at(header, 32),
            link: u32_at(header, 40),
        })
        .collect())
}

/// The places in a string table at which a symbol's name may start to be the one that is looked for: a bit
/// for each byte of the table, which itself may be too long to be kept.
#[derive(Debug)]
struct Places(Vec<u64>);

impl Places {
    fn add(&mut self, at: u64) {
        if let Some(word) = usize::try_from(at / 64)
            .ok()
            .and_then(|word| self.0.get_mut(word))
        {
            *word |= 1 << (at % 64);
        }
    }

    fn has(&self, at: u32) -> bool {
        usize::try_from(at / 64)
            .ok()
            .and_then(|word| self.0.get(word))
            .is_some_and(|word| word & (1 << (at % 64)) != 0)
    }
}

/// Where a string table has `name` with the byte that ends it.
fn places_of(file: &mut dyn ReadAt, strings: &Section, name: &[u8]) -> Result<Places, ElfError> {
    if strings.len > STRINGS_MAX {
        return Err(ElfError::BadSymbols("with too many names"));
    }
    let words = usize::try_from(strings.len.div_ceil(64)).map_err(|_| OUTSIDE)?;
    let mut places = Places(vec![0; words]);
    // The end of what was read before, in which a name may have begun, and what is read now.
    let mut bytes = Vec::new();
    let mut start = 0u64;
    let mut at = 0u64;
    while at < strings.len {
        let len = strings.len.saturating_sub(at).min(READ_AT_ONCE as u64);
        bytes.extend(read(file, strings.offset.saturating_add(at), len)?);
        at = at.saturating_add(len);
        for (end, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == 0) {
            if let Some(before) = bytes.get(..end)
                && before.ends_with(name)
            {
                let into = end.saturating_sub(name.len()) as u64;
                places.add(start.saturating_add(into));
            }
        }
        let done = bytes.len().saturating_sub(name.len());
        bytes.drain(..done);
        start = start.saturating_add(done as u64);
    }
    Ok(places)
}

fn search(
    file: &mut dyn ReadAt,
    table: &Section,
    names: &Places,
    seen: &mut dyn FnMut(&[u8; SYMBOL_LEN as usize]),
) -> Result<(), ElfError> {
    let total = table.len.checked_div(SYMBOL_LEN).unwrap_or(0);
    if total > SYMBOLS_MAX {
        return Err(ElfError::BadSymbols("with too many symbols"));
    }
    let mut at = 0u64;
    while at < total {
        let count = total.saturating_sub(at).min(SYMBOLS_AT_ONCE);
        let offset = table.offset.saturating_add(at.saturating_mul(SYMBOL_LEN));
        let bytes = read(file, offset, count.saturating_mul(SYMBOL_LEN))?;
        let (symbols, _) = bytes.as_chunks::<{ SYMBOL_LEN as usize }>();
        let named = symbols
            .iter()
            .filter(|symbol| names.has(u32_at(*symbol, 0)));
        named.for_each(&mut *seen);
        at = at.saturating_add(count);
    }
    Ok(())
}

/// The function that a symbol defines, if it does.
fn function(symbol: &[u8; SYMBOL_LEN as usize]) -> Option<(Rank, Function)> {
    let info = symbol.get(4).copied()?;
    let (binding, kind) = (elf::SymbolBind(info >> 4), elf::SymbolType(info & 0xf));
    let section = u16_at(symbol, 6);
    // Neither undefined nor a mere number.
    if section == elf::SHN_UNDEF.0 || section == elf::SHN_ABS.0 {
        return None;
    }
    let rank = match kind {
        elf::STT_FUNC | elf::STT_GNU_IFUNC if binding == elf::STB_LOCAL => Rank::Local,
        elf::STT_FUNC | elf::STT_GNU_IFUNC => Rank::Global,
        elf::STT_NOTYPE => Rank::Label,
        _ => return None,
    };
    let function = if kind == elf::STT_GNU_IFUNC {
        Function::Indirect
    } else {
        Function::At(u64_at(symbol, 8))
    };
    Some((rank, function))
}

/// Reads a part that the file must have. Its length is bounded by the caller.
fn read(file: &mut dyn ReadAt, offset: u64, len: u64) -> Result<Vec<u8>, ElfError> {
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| OUTSIDE)?];
    let mut at = offset;
    for chunk in bytes.chunks_mut(READ_AT_ONCE) {
        if !file.read_at(at, chunk) {
            return Err(OUTSIDE);
        }
        at = at.saturating_add(chunk.len() as u64);
    }
    Ok(bytes)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GLOBAL: u8 = 1 << 4;
    const FUNC: u8 = 2;
    const OBJECT: u8 = 1;
    const IFUNC: u8 = 10;

    /// A file with `.dynsym` (exported) and `.symtab` (all), which share their strings.
    fn file(exported: &[(&str, u8, u16, u64)], all: &[(&str, u8, u16, u64)]) -> Vec<u8> {
        let mut names = vec![0u8];
        let mut table = |symbols: &[(&str, u8, u16, u64)]| {
            let mut bytes = vec![0; 24];
            for (name, info, section, value) in symbols {
                bytes.extend((names.len() as u32).to_le_bytes());
                bytes.extend([*info, 0]);
                bytes.extend(section.to_le_bytes());
                bytes.extend(value.to_le_bytes());
                bytes.extend(8u64.to_le_bytes());
                names.extend(name.bytes());
                names.push(0);
            }
            bytes
        };
        let tables = [table(exported), table(all)];
        let parts: Vec<(u32, &[u8])> = vec![(3, &names), (11, &tables[0]), (2, &tables[1])];
        let mut bytes = vec![0u8; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut headers = vec![0u8; 64];
        for (kind, part) in parts {
            let mut header = [0u8; 64];
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(part.len() as u64).to_le_bytes());
            header[40] = 1;
            headers.extend(header);
            bytes.extend(part);
        }
        let offset = bytes.len() as u64;
        bytes[40..48].copy_from_slice(&offset.to_le_bytes());
        bytes[58] = 64;
        bytes[60] = 4;
        bytes.extend(headers);
        bytes
    }

    fn find(bytes: &[u8], symbols: Symbols, name: &str) -> Option<Function> {
        find_function(&mut &*bytes, symbols, name.as_bytes()).unwrap()
    }

    #[test]
    fn functions_are_found_by_name_and_table() {
        let bytes = file(
            &[("run", GLOBAL | FUNC, 1, 0x1000)],
            &[
                ("helper", FUNC, 1, 0x2000),
                ("helper", FUNC, 1, 0x2100),
                ("shared", FUNC, 1, 0x3000),
                ("shared", GLOBAL | FUNC, 1, 0x3100),
                ("_start", GLOBAL, 1, 0x4000),
                ("fast", GLOBAL | IFUNC, 1, 0x5000),
                ("table", GLOBAL | OBJECT, 1, 0x6000),
                ("puts", GLOBAL | FUNC, 0, 0),
                ("number", GLOBAL, 0xfff1, 7),
            ],
        );
        let all = |name| find(&bytes, Symbols::All, name);
        assert_eq!(
            find(&bytes, Symbols::Exported, "run"),
            Some(Function::At(0x1000))
        );
        assert_eq!(find(&bytes, Symbols::Exported, "helper"), None);
        assert_eq!(all("helper"), Some(Function::At(0x2000)));
        assert_eq!(all("shared"), Some(Function::At(0x3100)));
        assert_eq!(all("_start"), Some(Function::At(0x4000)));
        assert_eq!(all("fast"), Some(Function::Indirect));
        for name in ["table", "puts", "number", "help", "elper", "helpers", ""] {
            assert_eq!(all(name), None, "{name}");
        }
        assert_eq!(find(&bytes, Symbols::All, "helper\0shared"), None);
    }

    #[test]
    fn a_stripped_file_has_what_it_exports() {
        let mut bytes = file(&[("run", GLOBAL | FUNC, 1, 0x1000)], &[]);
        let headers = u64_at(&bytes, 40) as usize;
        bytes[headers + 3 * 64 + 4] = 0;
        assert_eq!(
            find(&bytes, Symbols::All, "run"),
            Some(Function::At(0x1000))
        );
        bytes[40..48].fill(0);
        assert_eq!(find(&bytes, Symbols::All, "run"), None);
    }

    #[test]
    fn imports_are_undefined_symbols_for_the_loader() {
        let bytes = file(
            &[
                ("run", GLOBAL | FUNC, 1, 0x1000),
                ("fork", GLOBAL | FUNC, 0, 0),
            ],
            &[("puts", GLOBAL | FUNC, 0, 0)],
        );
        let imported = |name: &str| is_imported(&mut bytes.as_slice(), name.as_bytes());
        assert_eq!(imported("fork"), Ok(true));
        for other in ["run", "puts", "ork", "for", "", "a\0"] {
            assert_eq!(imported(other), Ok(false), "{other:?}");
        }
        assert_eq!(
            is_imported(&mut b"text".as_slice(), b"fork"),
            Err(ElfError::NotElf)
        );
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn this_very_program_has_a_main_function() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        assert!(matches!(
            find(&bytes, Symbols::All, "main"),
            Some(Function::At(_))
        ));
        assert_eq!(find(&bytes, Symbols::All, "kvmlet_elf_no_such"), None);
    }

    /// A name that lies across two reads, the end of another name, and tables of many equal names.
    #[test]
    fn names_are_found_wherever_they_lie() {
        for before in READ_AT_ONCE - 12..READ_AT_ONCE + 4 {
            let long = "x".repeat(before);
            let symbols = [
                (long.as_str(), GLOBAL | FUNC, 1, 0x1000),
                ("function", GLOBAL | FUNC, 1, 0x2000),
                ("other", GLOBAL | FUNC, 1, 0x3000),
            ];
            let bytes = file(&symbols, &[]);
            let found = |name| find(&bytes, Symbols::Exported, name);
            assert_eq!(found("function"), Some(Function::At(0x2000)), "{before}");
            assert_eq!(found(&long), Some(Function::At(0x1000)));
            assert_eq!((found("unction"), found("x")), (None, None));
        }
    }

    #[test]
    fn tables_outside_the_file_are_errors() {
        let good = file(&[], &[("run", GLOBAL | FUNC, 1, 0x1000)]);
        for len in 64..good.len() {
            let cut = &good[..len];
            assert!(find_function(&mut &*cut, Symbols::All, b"run").is_err());
        }
        let short: &[u8] = b"\x7fELF";
        assert_eq!(
            find_function(&mut &*short, Symbols::All, b"run"),
            Err(ElfError::NotElf)
        );
    }

    proptest! {
        #[test]
        fn damaged_files_are_answered(at in 0usize..800, value: u8, name in "[a-z]{1,6}") {
            let mut bytes = file(
                &[("run", GLOBAL | FUNC, 1, 0x1000)],
                &[("helper", FUNC, 1, 0x2000)],
            );
            let len = bytes.len();
            bytes[at % len] = value;
            for symbols in [Symbols::All, Symbols::Exported] {
                let _ = find_function(&mut &*bytes, symbols, name.as_bytes());
            }
        }
    }
}
