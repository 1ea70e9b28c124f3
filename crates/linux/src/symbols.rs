//! The program's functions by name: the symbols of its executable and of the libraries it has mapped.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use imbl::OrdMap;
use kvmlet_abi::Gva;
use kvmlet_abi::layout::{USER_END, USER_START};
use kvmlet_elf::{Function, Image, Kind, ReadAt, Symbols};
use kvmlet_mem::GuestMemory;

use crate::host::{Host, HostId};
use crate::kernel::{Kernel, Pid};
use crate::mm::{Backing, Prot, Vma};
use crate::personality::Personality;
use crate::vfs::tmpfs::{InodeId, TmpFs};

/// Bytes at the start of a file that hold its program headers.
const HEADERS_LEN: usize = 64 << 10;
/// Bytes read for one lookup at most: the files may be the program's own.
const READ_MAX: u64 = 256 << 20;

/// Why a function has no address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SymbolError {
    /// Nothing of that name.
    #[error(
        "no function {name} in the program or the {libraries} libraries it has loaded: it may be \
         static, stripped, or under a mangled name (C++, Rust: extern \"C\")"
    )]
    NotFound {
        /// The name asked for.
        name: String,
        /// Libraries searched.
        libraries: usize,
    },
    /// An indirect function (STT_GNU_IFUNC): its address is a resolver's.
    #[error("{0} is an indirect function, which has no address of its own: call another")]
    Indirect(String),
    /// The symbol tables are longer than [`READ_MAX`].
    #[error(
        "the symbol tables of the program and its libraries are longer than {} MiB: strip what is \
         not needed of them",
        READ_MAX >> 20
    )]
    TooLong,
    /// The caller did not let it go on.
    #[error("the search for a function was stopped")]
    Stopped,
    /// The program has ended or has no address space yet.
    #[error("there is no running program")]
    NoProgram,
}

/// The bytes of a mapped file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum File {
    Host(HostId),
    Tmp(InodeId),
}

/// A file of which code is mapped.
struct Module {
    file: File,
    name: Arc<[u8]>,
    /// Its mappings in address order.
    vmas: Vec<Vma>,
}

struct Reader<'a, 'b> {
    host: &'a Host,
    tmpfs: &'a TmpFs,
    memory: &'a GuestMemory,
    file: File,
    budget: &'a mut Budget<'b>,
}

/// The amount that a lookup may still read.
struct Budget<'a> {
    left_bytes: u64,
    goes_on: &'a mut dyn FnMut() -> bool,
    /// Why nothing more may be read.
    ended: Option<SymbolError>,
}

impl Budget<'_> {
    /// True if so many bytes may be read now.
    fn take(&mut self, len_bytes: u64) -> bool {
        if self.ended.is_none() {
            match self.left_bytes.checked_sub(len_bytes) {
                None => self.ended = Some(SymbolError::TooLong),
                Some(_) if !(self.goes_on)() => self.ended = Some(SymbolError::Stopped),
                Some(left) => self.left_bytes = left,
            }
        }
        self.ended.is_none()
    }
}

impl Reader<'_, '_> {
    /// Fills as much of `into` as the file has.
    fn read_some(&mut self, offset: u64, into: &mut [u8]) -> usize {
        if !self.budget.take(into.len() as u64) {
            return 0;
        }
        let read = match self.file {
            File::Host(id) => self
                .host
                .fd(id)
                .and_then(|fd| kvmlet_hostfs::read_at(fd.as_fd(), into, offset)),
            File::Tmp(inode) => self.tmpfs.read(self.memory, inode, offset, into),
        };
        read.unwrap_or(0)
    }
}

impl ReadAt for Reader<'_, '_> {
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> bool {
        self.read_some(offset, into) == into.len()
    }
}

impl Personality {
    /// The address of a function of the program's first process: see [`Personality::symbol_in`].
    ///
    /// # Errors
    /// [`SymbolError`]
    pub fn symbol(
        &mut self,
        name: &str,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Gva, SymbolError> {
        self.symbol_in(self.kernel.main, name, goes_on)
    }

    /// The address of one of a process's functions: its executable's, static ones included, else one
    /// that a library exports. It stays valid until the program unmaps the library or executes another.
    /// `goes_on` is asked before each read: the files may be large, and the program's own.
    ///
    /// # Errors
    /// [`SymbolError`]
    pub fn symbol_in(
        &mut self,
        pid: Pid,
        name: &str,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Gva, SymbolError> {
        let (modules, exe) = self.modules_of(pid)?;
        let mut budget = Budget {
            left_bytes: READ_MAX,
            goes_on,
            ended: None,
        };
        let mut indirect = false;
        for module in &modules {
            let mut reader = Reader {
                host: &self.host,
                tmpfs: &self.kernel.tmpfs,
                memory: &self.machine.memory,
                file: module.file,
                budget: &mut budget,
            };
            let symbols = if module.name == exe {
                Symbols::All
            } else {
                Symbols::Exported
            };
            let found = kvmlet_elf::find_function(&mut reader, symbols, name.as_bytes());
            match found {
                Ok(Some(Function::At(address))) => {
                    if let Some(gva) = module.loaded_at(&mut reader, address) {
                        return Ok(gva);
                    }
                }
                Ok(Some(Function::Indirect)) => indirect = true,
                // A file that is no library, or a damaged one.
                Ok(None) | Err(_) => {}
            }
            if let Some(ended) = budget.ended {
                return Err(ended);
            }
        }
        Err(if indirect {
            SymbolError::Indirect(name.to_owned())
        } else {
            SymbolError::NotFound {
                name: name.to_owned(),
                libraries: modules.len().saturating_sub(1),
            }
        })
    }
}

impl Personality {
    /// True if the program has the executable and the mappings of an earlier kernel value, the very same ones. Then
    /// [`Personality::symbol`] would look through the same code.
    #[must_use]
    pub fn has_code_of(&self, before: &Kernel) -> bool {
        type Code<'a> = (&'a Arc<[u8]>, &'a OrdMap<u64, Vma>);
        fn of_main(kernel: &Kernel) -> Option<Code<'_>> {
            let process = kernel.processes.get(&kernel.main)?;
            Some((&process.exe, &kernel.mms.get(&process.mm)?.vmas))
        }
        let both = of_main(&self.kernel).zip(of_main(before));
        self.kernel.end.is_none()
            && both.is_some_and(|((exe, vmas), (exe_then, vmas_then))| {
                Arc::ptr_eq(exe, exe_then) && vmas.ptr_eq(vmas_then)
            })
    }

    /// True if some code of the program's first process is in a file of the memory file system. The program may change
    /// what is in it.
    #[must_use]
    pub fn has_code_of_its_own(&self) -> bool {
        let mm = self.kernel.mm(self.kernel.main);
        mm.is_none_or(|mm| {
            let mut vmas = mm.vmas.values();
            vmas.any(|vma| matches!(vma.backing, Backing::Tmp(_)) && vma.prot.contains(Prot::EXEC))
        })
    }

    /// True if the executable of a process, or a library that it has loaded, uses something of this name that another
    /// file has.
    ///
    /// # Errors
    /// [`SymbolError`]
    pub fn is_imported_in(
        &mut self,
        pid: Pid,
        name: &str,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool, SymbolError> {
        let (modules, _) = self.modules_of(pid)?;
        let mut budget = Budget {
            left_bytes: READ_MAX,
            goes_on,
            ended: None,
        };
        for module in &modules {
            let mut reader = Reader {
                host: &self.host,
                tmpfs: &self.kernel.tmpfs,
                memory: &self.machine.memory,
                file: module.file,
                budget: &mut budget,
            };
            let found = kvmlet_elf::is_imported(&mut reader, name.as_bytes());
            if let Some(ended) = budget.ended {
                return Err(ended);
            }
            // A damaged file, or none that is a library, uses nothing.
            if found == Ok(true) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The files of which a process runs code, and the name of its executable. That one comes first, then the
    /// libraries in the order they were loaded: downwards.
    fn modules_of(&self, pid: Pid) -> Result<(Vec<Module>, Arc<[u8]>), SymbolError> {
        let process = self.kernel.processes.get(&pid);
        let process = process.ok_or(SymbolError::NoProgram)?;
        if self.kernel.end.is_some() {
            return Err(SymbolError::NoProgram);
        }
        let mm = self.kernel.mm(process.pid).ok_or(SymbolError::NoProgram)?;
        let mut modules = modules(mm.vmas.values());
        modules.sort_by_key(|module| {
            let start = module.vmas.first().map_or(0, |vma| vma.start);
            (module.name != process.exe, Reverse(start))
        });
        Ok((modules, Arc::clone(&process.exe)))
    }
}

/// The files of which code is mapped.
fn modules<'a>(vmas: impl Iterator<Item = &'a Vma>) -> Vec<Module> {
    let mut modules: BTreeMap<File, Module> = BTreeMap::new();
    for vma in vmas {
        let file = match vma.backing {
            Backing::File(file) => File::Host(file.host),
            Backing::Tmp(tmp) => File::Tmp(tmp.inode),
            Backing::Anon | Backing::Special(_) => continue,
        };
        let module = modules.entry(file).or_insert_with(|| Module {
            file,
            name: vma.name.clone().unwrap_or_default(),
            vmas: Vec::new(),
        });
        module.vmas.push(vma.clone());
    }
    let is_code = |vma: &Vma| vma.prot.contains(Prot::EXEC);
    modules
        .into_values()
        .filter(|module| module.vmas.iter().any(is_code))
        .collect()
}

impl Module {
    /// The address at which the byte at a link-time address is mapped as code.
    fn loaded_at(&self, reader: &mut Reader<'_, '_>, address: u64) -> Option<Gva> {
        let mut header = vec![0; HEADERS_LEN];
        let len = reader.read_some(0, &mut header);
        header.truncate(len);
        // The file is longer than its headers say if it is longer than what was read: segments that
        // lie outside it were not mapped.
        let image = kvmlet_elf::parse(&header, i64::MAX.unsigned_abs()).ok()?;
        let gva = address.checked_add(self.bias(&image)?)?;
        let user = USER_START.0..USER_END.0;
        user.contains(&gva).then_some(Gva(gva))
    }

    /// The distance that the loader has added to link-time addresses.
    fn bias(&self, image: &Image) -> Option<u64> {
        if image.kind == Kind::Static {
            return Some(0);
        }
        let code = image
            .segments
            .iter()
            .find(|segment| segment.prot.contains(kvmlet_elf::Prot::X) && segment.file_len > 0)?;
        let vma = self
            .vmas
            .iter()
            .find(|vma| vma.prot.contains(Prot::EXEC) && shows(vma, code.file_offset))?;
        let page_offset = Gva(code.file_offset).page_down().0;
        let offset = page_offset.checked_sub(file_offset(vma))?;
        let at = vma.start.checked_add(offset)?;
        at.checked_sub(Gva(code.vaddr).page_down().0)
    }
}

fn file_offset(vma: &Vma) -> u64 {
    match vma.backing {
        Backing::File(file) => file.offset,
        Backing::Tmp(tmp) => tmp.offset,
        Backing::Anon | Backing::Special(_) => 0,
    }
}

/// True if the byte at `offset` of its file is in the mapping.
fn shows(vma: &Vma, offset: u64) -> bool {
    offset
        .checked_sub(file_offset(vma))
        .is_some_and(|into| into < vma.len_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{self, ExecRequest};
    use crate::kernel::End;
    use crate::testing::{Sandbox, TID};

    /// This very test program, loaded into a sandbox.
    #[expect(clippy::disallowed_methods, reason = "the test reads host programs")]
    fn loaded() -> (Personality, Vec<u8>) {
        let path = std::env::current_exe().unwrap();
        let mut sandbox = Sandbox::new(path.parent().unwrap());
        let request = ExecRequest {
            path: path.to_str().unwrap().as_bytes().to_vec(),
            argv: vec![b"test".to_vec()],
            envp: Vec::new(),
        };
        exec::boot(&mut sandbox.cx(), request).unwrap();
        let Sandbox {
            kernel,
            machine,
            host,
            ..
        } = sandbox;
        let bytes = std::fs::read(path).unwrap();
        (Personality::new(kernel, machine, host), bytes)
    }

    /// The bytes that the file has at a link-time address.
    fn in_file(bytes: &[u8], name: &str, symbols: Symbols) -> Vec<u8> {
        let found = kvmlet_elf::find_function(&mut &*bytes, symbols, name.as_bytes());
        let Ok(Some(Function::At(address))) = found else {
            panic!("{found:?}")
        };
        let image = kvmlet_elf::parse(bytes, bytes.len() as u64).unwrap();
        let segments = image.segments.iter();
        let segment = segments.rev().find(|s| s.vaddr <= address).unwrap();
        let at = (address - segment.vaddr + segment.file_offset) as usize;
        bytes[at..at + 32].to_vec()
    }

    fn at(p: &mut Personality, gva: Gva) -> Vec<u8> {
        let mut bytes = vec![0; 32];
        p.cx(TID).read(gva, &mut bytes).unwrap();
        bytes
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test reads host programs")]
    fn addresses_are_where_the_functions_are() {
        let (mut p, bytes) = loaded();
        let main = p.symbol("main", &mut || true).unwrap();
        assert_eq!(at(&mut p, main), in_file(&bytes, "main", Symbols::All));
        // Its dynamic linker is the only library until it runs.
        let linker = p.kernel.processes.values().next().unwrap();
        let mut vmas = p.kernel.mm(linker.pid).unwrap().vmas.values();
        let path = vmas.find_map(|vma| {
            let name = std::str::from_utf8(vma.name.as_deref()?).ok()?;
            name.contains("ld-").then(|| name.to_owned())
        });
        let library = std::fs::read(path.unwrap()).unwrap();
        let found = p.symbol("__tls_get_addr", &mut || true).unwrap();
        let wanted = in_file(&library, "__tls_get_addr", Symbols::Exported);
        assert_eq!(at(&mut p, found), wanted);
    }

    #[test]
    fn code_is_that_of_before_until_a_mapping_changes() {
        let (mut p, _) = loaded();
        let before = p.kernel.clone();
        assert!(p.has_code_of(&before) && !p.has_code_of_its_own());
        let pid = p.kernel.main;
        let mm = p.kernel.mm_mut(pid).unwrap();
        let (start, vma) = mm
            .vmas
            .get_min()
            .map(|(at, vma)| (*at, vma.clone()))
            .unwrap();
        mm.vmas.insert(start, vma);
        assert!(!p.has_code_of(&before), "as it was, but another map");
        p.kernel = before.clone();
        let process = p.kernel.processes.get_mut(&pid).unwrap();
        process.exe = Arc::from(&*process.exe.clone());
        assert!(!p.has_code_of(&before), "another program of that name");
        p.kernel = before.clone();
        assert!(p.has_code_of(&before));
        p.kernel.end = Some(End::Memory);
        assert!(!p.has_code_of(&before));
    }

    #[test]
    fn names_that_nothing_has_say_so() {
        let (mut p, _) = loaded();
        let error = p.symbol("no_such_function", &mut || true).unwrap_err();
        assert_eq!(
            error,
            SymbolError::NotFound {
                name: "no_such_function".to_owned(),
                libraries: 1
            }
        );
        assert!(p.symbol("", &mut || true).is_err() && p.symbol("main\0", &mut || true).is_err());
        p.kernel.end = Some(End::Memory);
        assert_eq!(p.symbol("main", &mut || true), Err(SymbolError::NoProgram));
    }

    #[test]
    fn a_search_can_be_stopped_and_has_a_limit() {
        let (mut p, _) = loaded();
        let mut reads = 0;
        assert!(
            p.symbol("main", &mut || {
                reads += 1;
                true
            })
            .is_ok()
        );
        assert!(reads > 3, "{reads}");
        for most in 0..reads {
            let mut left = most;
            let mut goes_on = || {
                left -= 1;
                left >= 0
            };
            assert_eq!(p.symbol("main", &mut goes_on), Err(SymbolError::Stopped));
        }
    }

    /// Libraries of which each has tables near the limits for one file.
    #[test]
    fn too_long_tables_are_an_error() {
        let (mut p, _) = loaded();
        let process = p.kernel.processes.values().next().unwrap();
        let known: Vec<Vma> = p
            .kernel
            .mm(process.pid)
            .unwrap()
            .vmas
            .values()
            .cloned()
            .collect();
        let code = known
            .iter()
            .find(|vma| vma.prot.contains(Prot::EXEC))
            .unwrap()
            .clone();
        let cut_short = vec![0; 4 << 10];
        for number in 0..8u64 {
            let (start, len) = (0x1_0000_0000 + (number << 20), 4096);
            let inode = long_tables(&mut p, &cut_short);
            let vma = Vma {
                start,
                end: start + len,
                backing: Backing::Tmp(crate::mm::TmpBacking { inode, offset: 0 }),
                name: None,
                ..code.clone()
            };
            let pid = *p.kernel.processes.keys().next().unwrap();
            let mm = p.kernel.mm_mut(pid).unwrap();
            mm.vmas.insert(start, vma);
        }
        let error = p.symbol("no_such_function", &mut || true);
        assert_eq!(error, Err(SymbolError::TooLong));
        assert!(
            SymbolError::TooLong
                .to_string()
                .contains("longer than 256 MiB")
        );
    }

    /// A sparse file with 48 MiB of names.
    fn long_tables(p: &mut Personality, zeros: &[u8]) -> InodeId {
        const NAMES_LEN: u64 = 48 << 20;
        let now = kvmlet_hostfs::attr::FileTime::from_ns(0);
        let attr = crate::vfs::tmpfs::NewAttr {
            mode: 0o600,
            uid: 0,
            gid: 0,
            now,
        };
        let mut bytes = zeros.to_vec();
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[40..48].copy_from_slice(&64u64.to_le_bytes());
        bytes[58] = 64;
        bytes[60] = 3;
        // The names (SHT_STRTAB) and the symbols (SHT_DYNSYM), whose names they are.
        for (at, kind, len) in [(128, 3u32, NAMES_LEN), (192, 11, 24)] {
            bytes[at + 4..at + 8].copy_from_slice(&kind.to_le_bytes());
            bytes[at + 32..at + 40].copy_from_slice(&len.to_le_bytes());
            bytes[at + 40] = 1;
        }
        let memory = &mut p.machine.memory;
        let tmpfs = &mut p.kernel.tmpfs;
        let inode = tmpfs.create_unnamed(memory, 0, attr).unwrap();
        tmpfs.write(memory, inode, 0, &bytes, now).unwrap();
        tmpfs.set_size(memory, inode, NAMES_LEN, now).unwrap();
        inode
    }
}
