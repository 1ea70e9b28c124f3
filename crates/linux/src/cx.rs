//! The things that a handler works on: the value, the guest's memory, the host.

use std::sync::Arc;

use kvmlet_abi::{Errno, Gpa, Gva};
use kvmlet_hostfs::Credentials;
use kvmlet_mem::{GuestMemory, PageTables, Spaces};

use crate::creds::Creds;
use crate::fd::FdTable;
use crate::host::Host;
use crate::kernel::{Fs, Kernel, Process, Thread, Tid};
use crate::mm::{self, Mm};
use crate::vfs::tmpfs::{InodeId, Stale};

/// The physical side of all address spaces: frames and page tables.
#[derive(Debug)]
pub struct Machine {
    /// Guest-physical memory of the VM.
    pub memory: GuestMemory,
    /// Page tables of each address space.
    pub spaces: Spaces,
    /// The vDSO's frames, if there is one.
    pub vdso: Option<Vdso>,
    /// The description of the CPU in the auxiliary vector.
    pub cpu: CpuInfo,
    /// Pages that system calls read often.
    pub hot_pages: mm::HotPages,
    /// Changes of memory files that not every address space has followed yet.
    pub stale_files: Vec<(InodeId, Stale)>,
}

impl Machine {
    /// A machine of which no page has been read yet.
    #[must_use]
    pub fn new(memory: GuestMemory, spaces: Spaces, vdso: Option<Vdso>, cpu: CpuInfo) -> Self {
        Self {
            memory,
            spaces,
            vdso,
            cpu,
            hot_pages: mm::HotPages::default(),
            stale_files: Vec::new(),
        }
    }
}

/// Consecutive frames of the vDSO: its data page, then its image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vdso {
    /// The data page.
    pub data: Gpa,
    /// Pages of the image behind it.
    pub image_pages: u64,
    /// The trampoline page, where text may be changed to jump there ([`crate::mm::Trampolines`]).
    pub trampolines: Option<Gpa>,
}

/// Capability words of the CPU (getauxval(3)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuInfo {
    /// AT_HWCAP: CPUID.01H:EDX.
    pub hwcap: u32,
    /// AT_HWCAP2: bit 1 for FSGSBASE.
    pub hwcap2: u32,
}

/// A handler's context: thread `tid` of `kernel` has made a call.
#[derive(Debug)]
pub struct Cx<'a> {
    /// The kernel value.
    pub kernel: &'a mut Kernel,
    /// Guest memory.
    pub machine: &'a mut Machine,
    /// Host descriptors, clocks, policy, reports.
    pub host: &'a mut Host,
    /// The calling thread.
    pub tid: Tid,
}

impl Cx<'_> {
    /// The calling thread.
    ///
    /// # Errors
    /// `ESRCH` if it is gone (never for a running thread).
    pub fn thread(&mut self) -> Result<&mut Thread, Errno> {
        self.kernel.threads.get_mut(&self.tid).ok_or(Errno::ESRCH)
    }

    /// The calling thread's process.
    ///
    /// # Errors
    /// `ESRCH` if it is gone (never for a running thread).
    pub fn process(&mut self) -> Result<&mut Process, Errno> {
        let pid = self.kernel.threads.get(&self.tid).ok_or(Errno::ESRCH)?.pid;
        self.kernel.processes.get_mut(&pid).ok_or(Errno::ESRCH)
    }

    /// The calling thread's credentials.
    #[must_use]
    pub fn creds(&self) -> Arc<Creds> {
        match self.kernel.threads.get(&self.tid) {
            Some(thread) => Arc::clone(&thread.creds),
            // Never so for a running thread.
            None => Arc::new(Creds::nobody()),
        }
    }

    /// Who asks the host for a file in the calling thread's name.
    #[must_use]
    pub fn asker(&self) -> Credentials {
        let ids = self.creds().for_files();
        Credentials {
            inside: (ids != self.host.credentials.ids).then_some(ids),
            ..self.host.credentials.clone()
        }
    }

    /// The calling thread's descriptors.
    ///
    /// # Errors
    /// `ESRCH` if it is gone (never for a running thread).
    pub fn fds(&mut self) -> Result<&mut FdTable, Errno> {
        let files = self.thread()?.share.files;
        self.kernel.fd_tables.get_mut(files).ok_or(Errno::ESRCH)
    }

    /// The calling thread's working directory and mask.
    ///
    /// # Errors
    /// `ESRCH` if it is gone (never for a running thread).
    pub fn fs(&mut self) -> Result<&mut Fs, Errno> {
        let fs = self.thread()?.share.fs;
        self.kernel.fs.get_mut(fs).ok_or(Errno::ESRCH)
    }

    /// The calling thread's address space.
    ///
    /// # Errors
    /// `ESRCH` if it is gone (never for a running thread).
    pub fn mm(&mut self) -> Result<&mut Mm, Errno> {
        let id = self.process()?.mm;
        self.kernel.mms.get_mut(&id).ok_or(Errno::ESRCH)
    }

    /// The page tables of the calling thread's address space, and the memory that they lie in.
    ///
    /// # Errors
    /// `ESRCH` if the thread is gone (never for a running thread).
    pub fn tables(&mut self) -> Result<(&mut PageTables, &mut GuestMemory), Errno> {
        let id = self.process()?.mm;
        let tables = self.machine.spaces.get_mut(id).ok_or(Errno::ESRCH)?;
        Ok((tables, &mut self.machine.memory))
    }

    /// Copies from user memory, faulting pages in as a user read would.
    ///
    /// # Errors
    /// `EFAULT` where Linux's copy_from_user would give it.
    pub fn read(&mut self, gva: Gva, buf: &mut [u8]) -> Result<(), Errno> {
        mm::user::read(self, gva, buf)
    }

    /// Copies to user memory, faulting pages in (and copying on write) as a user write would.
    ///
    /// # Errors
    /// `EFAULT` where Linux's copy_to_user would give it.
    pub fn write(&mut self, gva: Gva, bytes: &[u8]) -> Result<(), Errno> {
        mm::user::write(self, gva, bytes)
    }

    /// Reads one structure from user memory.
    ///
    /// # Errors
    /// `EFAULT` where Linux's copy_from_user would give it.
    pub fn read_struct<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
        &mut self,
        gva: Gva,
    ) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.read(gva, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes one structure to user memory.
    ///
    /// # Errors
    /// `EFAULT` where Linux's copy_to_user would give it.
    pub fn write_struct<T: zerocopy::IntoBytes + zerocopy::Immutable>(
        &mut self,
        gva: Gva,
        value: &T,
    ) -> Result<(), Errno> {
        self.write(gva, value.as_bytes())
    }

    /// Reads a NUL-terminated string of at most `max_len` bytes, its NUL counted; the answer is
    /// without the NUL.
    ///
    /// # Errors
    /// `EFAULT` for a bad pointer, `ENAMETOOLONG` when no NUL is found within `max_len`.
    pub fn read_cstr(&mut self, gva: Gva, max_len: usize) -> Result<Vec<u8>, Errno> {
        mm::user::read_cstr(self, gva, max_len)
    }
}
