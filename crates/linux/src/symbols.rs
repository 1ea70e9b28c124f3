//! The program's functions by name: the symbols of its executable and of the libraries it has mapped.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use kvmlet_abi::Gva;
use kvmlet_abi::layout::{USER_END, USER_START};
use kvmlet_elf::{Function, Image, Kind, ReadAt, Symbols};
use kvmlet_mem::GuestMemory;

use crate::host::{Host, HostId};
use crate::mm::{Backing, Prot, Vma};
use crate::personality::Personality;
use crate::vfs::hostfs;
use crate::vfs::tmpfs::{InodeId, TmpFs};

/// Bytes at the start of a file that hold its program headers.
const HEADERS_LEN: usize = 64 << 10;
/// Bytes read for one lookup at most: the files may be the program's own.
const READ_MAX: u64 = 1 << 30;

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

struct Reader<'a> {
    host: &'a Host,
    tmpfs: &'a TmpFs,
    memory: &'a GuestMemory,
    file: File,
    /// Bytes that may still be read.
    left: &'a mut u64,
}

impl Reader<'_> {
    /// Fills as much of `into` as the file has.
    fn read_some(&mut self, offset: u64, into: &mut [u8]) -> usize {
        let Some(left) = self.left.checked_sub(into.len() as u64) else {
            return 0;
        };
        *self.left = left;
        let read = match self.file {
            File::Host(id) => self
                .host
                .fd(id)
                .and_then(|fd| hostfs::read_at(fd.as_fd(), into, offset)),
            File::Tmp(inode) => self.tmpfs.read(self.memory, inode, offset, into),
        };
        read.unwrap_or(0)
    }
}

impl ReadAt for Reader<'_> {
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> bool {
        self.read_some(offset, into) == into.len()
    }
}

impl Personality {
    /// The address of one of the program's functions: its executable's, static ones included, else one
    /// that a library exports. It stays valid until the program unmaps the library or executes another.
    ///
    /// # Errors
    /// [`SymbolError`]
    pub fn symbol(&mut self, name: &str) -> Result<Gva, SymbolError> {
        let process = self.kernel.processes.values().next();
        let process = process.ok_or(SymbolError::NoProgram)?;
        if self.kernel.end.is_some() {
            return Err(SymbolError::NoProgram);
        }
        let mut modules = modules(process.mm.vmas.values());
        // The program first, then the libraries in the order they were loaded: downwards.
        modules.sort_by_key(|module| {
            let start = module.vmas.first().map_or(0, |vma| vma.start);
            (module.name != process.exe, Reverse(start))
        });
        let mut left = READ_MAX;
        let mut indirect = false;
        for module in &modules {
            let mut reader = Reader {
                host: &self.host,
                tmpfs: &self.kernel.tmpfs,
                memory: &self.machine.memory,
                file: module.file,
                left: &mut left,
            };
            let symbols = if module.name == process.exe {
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
    /// Where the byte at a link-time address is mapped as code.
    fn loaded_at(&self, reader: &mut Reader<'_>, address: u64) -> Option<Gva> {
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

    /// What the loader has added to link-time addresses.
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

/// Whether the byte at `offset` of its file is in the mapping.
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
    #[allow(clippy::disallowed_methods)]
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

    /// What the file has at a link-time address.
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
    #[allow(clippy::disallowed_methods)]
    fn addresses_are_where_the_functions_are() {
        let (mut p, bytes) = loaded();
        let main = p.symbol("main").unwrap();
        assert_eq!(at(&mut p, main), in_file(&bytes, "main", Symbols::All));
        // Its dynamic linker is the only library until it runs.
        let linker = p.kernel.processes.values().next().unwrap();
        let mut vmas = linker.mm.vmas.values();
        let path = vmas.find_map(|vma| {
            let name = std::str::from_utf8(vma.name.as_deref()?).ok()?;
            name.contains("ld-").then(|| name.to_owned())
        });
        let library = std::fs::read(path.unwrap()).unwrap();
        let found = p.symbol("__tls_get_addr").unwrap();
        let wanted = in_file(&library, "__tls_get_addr", Symbols::Exported);
        assert_eq!(at(&mut p, found), wanted);
    }

    #[test]
    fn names_that_nothing_has_say_so() {
        let (mut p, _) = loaded();
        let error = p.symbol("no_such_function").unwrap_err();
        assert_eq!(
            error,
            SymbolError::NotFound {
                name: "no_such_function".to_owned(),
                libraries: 1
            }
        );
        assert!(p.symbol("").is_err() && p.symbol("main\0").is_err());
        p.kernel.end = Some(End::Memory);
        assert_eq!(p.symbol("main"), Err(SymbolError::NoProgram));
    }
}
