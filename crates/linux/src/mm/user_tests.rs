//! Copies, strings, futex words and memory calls through a handler's context.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvmlet_abi::layout::USER_END;
use kvmlet_abi::{Errno, Gva, PAGE_SIZE};
use kvmlet_hostfs::HostKind;
use kvmlet_mem::{GuestMemory, PageTables, Spaces};
use kvmlet_policy::Policy;

use super::fixture::MIB;
use super::{AslrSeed, FaultError, Mm, Source, user};
use crate::creds::Creds;
use crate::cx::{CpuInfo, Cx, Machine};
use crate::fd::{Fd, FileId, FileKind, OpenFile, OpenFlags, Text};
use crate::host::Host;
use crate::kernel::{End, Kernel, MmId, NewKernel, Pid, Tid};
use crate::outcome::{CallState, FutexKey, Outcome, SysResult};
use crate::sched::Sched;
use crate::syscalls::args::Args;
use crate::syscalls::mem;
use crate::vfs;

const RW: u64 = 3;
const SHARED: u64 = 0x21;
const PRIVATE: u64 = 0x22;
const NORESERVE: u64 = 0x4000;
const PID: Pid = Pid::FIRST;

struct Guest {
    kernel: Kernel,
    machine: Machine,
    host: Host,
}

impl Guest {
    fn new(limit_bytes: u64) -> Self {
        let mut memory = GuestMemory::new(limit_bytes).unwrap();
        let spaces = Spaces::new(PageTables::new(&mut memory).unwrap());
        let host = Host::new(Policy::with_working_directory(b"/usr").unwrap(), 0).unwrap();
        let mut kernel = Kernel::new(NewKernel {
            cwd: vfs::Dir::Path(Arc::from(&b"/usr"[..])),
            caller: Arc::new(Creds::of_user(0)),
            tmpfs: vfs::new_tmpfs(&host, &mut memory).unwrap(),
            processes_max: 1,
            files_max: crate::rlimit::FILES_MOST,
            started_ns: 0,
        });
        // The thread makes calls: it is not in the queue.
        kernel.sched = Sched::default();
        *kernel.mm_mut(PID).unwrap() = Mm::new(AslrSeed::default(), 8 << 20);
        let machine = Machine::new(memory, spaces, None, CpuInfo::default());
        Self {
            kernel,
            machine,
            host,
        }
    }

    fn cx(&mut self) -> Cx<'_> {
        Cx {
            kernel: &mut self.kernel,
            machine: &mut self.machine,
            host: &mut self.host,
            tid: Tid(PID.0),
        }
    }

    fn map(&mut self, len: u64, prot: u64, flags: u64) -> u64 {
        mem::sys_mmap(
            &mut self.cx(),
            Args::of(&[0, len, prot, flags, u64::MAX, 0]),
        )
        .unwrap()
    }

    fn open(&mut self, kind: FileKind, flags: OpenFlags) -> u64 {
        let number = self.kernel.next_file as i32;
        let id = FileId(self.kernel.next_file);
        self.kernel.next_file += 1;
        let path = Arc::from(&b"/usr/file"[..]);
        self.kernel.files.insert(
            id,
            OpenFile {
                kind,
                offset: 0,
                flags,
                refs: 1,
                path,
            },
        );
        let table = self.kernel.fds_of_mut(PID).unwrap();
        table.fds.insert(
            number,
            Fd {
                file: id,
                cloexec: false,
            },
        );
        number as u64
    }

    fn open_host(&mut self, contents: &[u8]) -> u64 {
        use std::io::Write as _;
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(fd);
        file.write_all(contents).unwrap();
        let host = self.host.insert(OwnedFd::from(file), HostKind::File);
        self.open(FileKind::HostFile(host), OpenFlags::empty())
    }
}

type Parted = fn(&mut Cx<'_>, &Args, &CallState) -> Outcome;

/// Makes a call that may stop between two pieces, to its end.
fn whole(call: Parted, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let mut state = CallState::default();
    loop {
        cx.host.budget.begin();
        match call(cx, Args::of(args), &state) {
            Outcome::Done(result) => return result,
            Outcome::Again(next) => state = next,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn copies_cross_pages_and_stop_at_what_is_not_mapped() {
    let mut guest = Guest::new(64 * MIB);
    let at = guest.map(2 * PAGE_SIZE, RW, PRIVATE);
    let mut cx = guest.cx();
    let bytes: Vec<u8> = (0..=255).cycle().take(2 * PAGE_SIZE as usize).collect();
    cx.write(Gva(at), &bytes).unwrap();
    let mut back = vec![0; 300];
    cx.read(Gva(at + PAGE_SIZE - 100), &mut back).unwrap();
    assert_eq!(back, bytes[PAGE_SIZE as usize - 100..][..300]);
    let end = Gva(at + 2 * PAGE_SIZE - 10);
    assert_eq!(cx.read(end, &mut [0; 11]), Err(Errno::EFAULT));
    assert_eq!(user::read_some(&mut cx, end, &mut [0; 11]), Ok(10));
    assert_eq!(user::write_some(&mut cx, end, &[1; 11]), Ok(10));
    assert_eq!(
        user::write_some(&mut cx, Gva(at + 2 * PAGE_SIZE), &[1; 11]),
        Err(Errno::EFAULT)
    );
    for bad in [
        0,
        at - 1,
        USER_END.0 - 4,
        USER_END.0,
        1 << 47,
        u64::MAX,
        u64::MAX << 47,
    ] {
        assert_eq!(
            cx.read(Gva(bad), &mut [0; 8]),
            Err(Errno::EFAULT),
            "{bad:#x}"
        );
        assert_eq!(cx.write(Gva(bad), &[0; 8]), Err(Errno::EFAULT), "{bad:#x}");
        assert_eq!(cx.read(Gva(bad), &mut []), Ok(()));
    }
}

#[test]
fn rights_hold_for_system_calls_too() {
    let mut guest = Guest::new(64 * MIB);
    let at = guest.map(PAGE_SIZE, RW, PRIVATE);
    let mut cx = guest.cx();
    cx.write(Gva(at), b"x").unwrap();
    whole(mem::sys_mprotect, &mut cx, &[at, PAGE_SIZE, 1, 0, 0, 0]).unwrap();
    assert_eq!(cx.write(Gva(at), b"y"), Err(Errno::EFAULT));
    cx.read(Gva(at), &mut [0]).unwrap();
    whole(mem::sys_mprotect, &mut cx, &[at, PAGE_SIZE, 0, 0, 0, 0]).unwrap();
    assert_eq!(cx.read(Gva(at), &mut [0]), Err(Errno::EFAULT));
    whole(mem::sys_mprotect, &mut cx, &[at, PAGE_SIZE, 4, 0, 0, 0]).unwrap();
    cx.read(Gva(at), &mut [0]).unwrap();
}

#[test]
fn strings_end_at_their_nul() {
    let mut guest = Guest::new(64 * MIB);
    let at = guest.map(2 * PAGE_SIZE, RW, PRIVATE);
    let mut cx = guest.cx();
    let start = Gva(at + PAGE_SIZE - 3);
    cx.write(start, b"hello\0world").unwrap();
    assert_eq!(cx.read_cstr(start, 4096), Ok(b"hello".to_vec()));
    assert_eq!(cx.read_cstr(start, 6), Ok(b"hello".to_vec()));
    assert_eq!(cx.read_cstr(start, 5), Err(Errno::ENAMETOOLONG));
    cx.write(Gva(at + 2 * PAGE_SIZE - 4), b"tail").unwrap();
    assert_eq!(
        cx.read_cstr(Gva(at + 2 * PAGE_SIZE - 4), 4096),
        Err(Errno::EFAULT)
    );
    assert_eq!(
        cx.read_cstr(Gva(at + 2 * PAGE_SIZE - 4), 4),
        Err(Errno::ENAMETOOLONG)
    );
    assert_eq!(cx.read_cstr(Gva(0), 10), Err(Errno::EFAULT));
    assert_eq!(cx.read_cstr(Gva(u64::MAX), 10), Err(Errno::EFAULT));
    // Strings come in parts, which end here and there.
    for before_page_end in [1, 127, 128, 129, 4096] {
        for len in [0, 1, 126, 127, 128, 129, 255, 256, 4000, 4095] {
            let start = Gva(at + PAGE_SIZE - before_page_end);
            let text: Vec<u8> = (0..len).map(|i| b'a' + (i % 26) as u8).collect();
            cx.write(start, &text).unwrap();
            cx.write(Gva(start.0 + len), b"\0").unwrap();
            let found = cx.read_cstr(start, 4096);
            assert_eq!(found, Ok(text), "{before_page_end} {len}");
        }
    }
    // To the last byte of memory.
    for len in [127, 128, 129, 4095] {
        let text = vec![b'x'; len];
        let start = Gva(at + 2 * PAGE_SIZE - len as u64);
        cx.write(start, &text).unwrap();
        assert_eq!(cx.read_cstr(start, 4096), Err(Errno::EFAULT), "{len}");
        assert_eq!(cx.read_cstr(start, len), Err(Errno::ENAMETOOLONG), "{len}");
    }
}

#[test]
fn running_out_of_memory_in_a_call_ends_the_run() {
    let mut guest = Guest::new(8 * MIB);
    let at = guest.map(16 * MIB, RW, PRIVATE | NORESERVE);
    let mut cx = guest.cx();
    let zeros = vec![0; 16 << 20];
    assert!(cx.write(Gva(at), &zeros).is_err());
    assert_eq!(guest.kernel.end, Some(End::Memory));
}

#[test]
fn futex_words_are_updated_atomically_wherever_they_lie() {
    let mut guest = Guest::new(64 * MIB);
    let anon = guest.map(PAGE_SIZE, RW, PRIVATE);
    let number = guest.open_host(&[7, 0, 0, 0, 9]);
    let mut cx = guest.cx();
    let file = mem::sys_mmap(&mut cx, Args::of(&[0, PAGE_SIZE, RW, 2, number, 0])).unwrap();
    assert_eq!(user::load_u32(&mut cx, Gva(anon)), Ok(0));
    assert_eq!(
        user::compare_exchange_u32(&mut cx, Gva(anon), 1, 2),
        Ok(false)
    );
    assert_eq!(
        user::compare_exchange_u32(&mut cx, Gva(anon), 0, 2),
        Ok(true)
    );
    assert_eq!(user::load_u32(&mut cx, Gva(anon)), Ok(2));
    assert_eq!(user::load_u32(&mut cx, Gva(file)), Ok(7));
    assert_eq!(
        user::compare_exchange_u32(&mut cx, Gva(file), 7, 8),
        Ok(true)
    );
    let mut bytes = [0; 5];
    cx.read(Gva(file), &mut bytes).unwrap();
    assert_eq!(bytes, [8, 0, 0, 0, 9], "the rest of the page came along");
    assert_eq!(user::load_u32(&mut cx, Gva(anon + 2)), Err(Errno::EINVAL));
    assert_eq!(user::load_u32(&mut cx, Gva(8)), Err(Errno::EFAULT));
    whole(mem::sys_mprotect, &mut cx, &[anon, PAGE_SIZE, 1, 0, 0, 0]).unwrap();
    assert_eq!(
        user::compare_exchange_u32(&mut cx, Gva(anon), 2, 3),
        Err(Errno::EFAULT)
    );
}

#[test]
fn futexes_in_shared_memory_are_known_by_place() {
    let mut guest = Guest::new(64 * MIB);
    let private = guest.map(PAGE_SIZE, RW, PRIVATE);
    let shared = guest.map(PAGE_SIZE, RW, SHARED);
    let mut cx = guest.cx();
    let again = mem::sys_mremap(&mut cx, Args::of(&[shared, 0, PAGE_SIZE, 1, 0, 0])).unwrap();
    let key = |cx: &mut Cx<'_>, at| user::futex_key(cx, Gva(at)).unwrap();
    assert_eq!(
        key(&mut cx, private + 4),
        FutexKey::Private(MmId::FIRST, private + 4)
    );
    assert!(matches!(key(&mut cx, shared + 4), FutexKey::Shared(..)));
    assert_eq!(key(&mut cx, shared + 4), key(&mut cx, again + 4));
    assert_ne!(key(&mut cx, shared + 4), key(&mut cx, shared + 8));
    assert_eq!(user::futex_key(&mut cx, Gva(16)), Err(Errno::EFAULT));
}

#[test]
fn mmap_takes_descriptors_as_linux_does() {
    let mut guest = Guest::new(64 * MIB);
    let number = guest.open_host(&[1; 10]);
    let listing = guest.open(
        FileKind::Text(Text::whole(b"x".to_vec())),
        OpenFlags::empty(),
    );
    let zero = guest.open(FileKind::Device(crate::fd::Device::Zero), OpenFlags::RDWR);
    let mut cx = guest.cx();
    let mut map = |fd: u64, flags: u64, offset: u64| {
        mem::sys_mmap(&mut cx, Args::of(&[0, PAGE_SIZE, 1, flags, fd, offset]))
    };
    assert_eq!(map(99, 2, 0), Err(Errno::EBADF));
    assert_eq!(map(u64::MAX, 2, 0), Err(Errno::EBADF));
    assert_eq!(map(number, 2, 1), Err(Errno::EINVAL));
    assert_eq!(map(number, 2, 1 << 63), Err(Errno::EOVERFLOW));
    assert_eq!(map(listing, 2, 0), Err(Errno::ENODEV));
    assert!(map(number, 2, 0).is_ok());
    assert!(
        map(number, 2, PAGE_SIZE).is_ok(),
        "past the end: SIGBUS when touched"
    );
    assert!(map(zero, 2, 0).is_ok());
    let host_refs = guest.host.files.values().map(|file| file.refs).sum::<u32>();
    assert_eq!(host_refs, 3, "the descriptor and two mappings");
    super::start_anew(&mut guest.cx()).unwrap();
    let host_refs = guest.host.files.values().map(|file| file.refs).sum::<u32>();
    assert_eq!(host_refs, 1);
}

#[test]
fn mincore_writes_a_byte_per_page() {
    let mut guest = Guest::new(64 * MIB);
    let at = guest.map(4 * PAGE_SIZE, RW, PRIVATE);
    let vector = guest.map(PAGE_SIZE, RW, PRIVATE);
    let mut cx = guest.cx();
    whole(mem::sys_madvise, &mut cx, &[at, 4 * PAGE_SIZE, 15, 0, 0, 0]).unwrap();
    assert_eq!(
        whole(
            mem::sys_mincore,
            &mut cx,
            &[at, 4 * PAGE_SIZE, vector, 0, 0, 0]
        ),
        Ok(0)
    );
    cx.write(Gva(at), b"x").unwrap();
    assert_eq!(
        whole(
            mem::sys_mincore,
            &mut cx,
            &[at, 4 * PAGE_SIZE - 1, vector, 0, 0, 0]
        ),
        Ok(0)
    );
    let mut states = [9; 5];
    cx.read(Gva(vector), &mut states).unwrap();
    assert_eq!(states, [1, 1, 1, 1, 0]);
    assert_eq!(
        whole(mem::sys_mincore, &mut cx, &[at + 1, 1, vector, 0, 0, 0]),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        whole(mem::sys_mincore, &mut cx, &[at, PAGE_SIZE, 8, 0, 0, 0]),
        Err(Errno::EFAULT)
    );
    let beyond = whole(mem::sys_mincore, &mut cx, &[at, u64::MAX, vector, 0, 0, 0]);
    assert_eq!(beyond, Err(Errno::ENOMEM));
}

#[test]
fn calls_that_no_cpu_here_supports() {
    let mut guest = Guest::new(64 * MIB);
    let at = guest.map(PAGE_SIZE, RW, PRIVATE);
    let mut cx = guest.cx();
    assert_eq!(
        mem::sys_pkey_alloc(&mut cx, Args::of(&[0; 6])),
        Err(Errno::ENOSPC)
    );
    assert_eq!(
        mem::sys_pkey_alloc(&mut cx, Args::of(&[1, 0, 0, 0, 0, 0])),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        mem::sys_pkey_free(&mut cx, Args::of(&[1; 6])),
        Err(Errno::EINVAL)
    );
    let protect = |key: u64| [at, PAGE_SIZE, 1, key, 0, 0];
    assert_eq!(
        whole(mem::sys_pkey_mprotect, &mut cx, &protect(0)),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        whole(mem::sys_pkey_mprotect, &mut cx, &protect(u64::MAX)),
        Ok(0)
    );
    assert_eq!(cx.write(Gva(at), b"x"), Err(Errno::EFAULT));
    let advice = |number: u64| [at, PAGE_SIZE, number, 0, 0, 0];
    assert_eq!(
        whole(mem::sys_madvise, &mut cx, &advice(77)),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        guest.host.report.events.len(),
        3,
        "both refusals and the unknown advice are recorded"
    );
}

#[test]
fn exec_regions_are_mapped_where_they_belong() {
    let mut guest = Guest::new(64 * MIB);
    let number = guest.open_host(&[5; 100]);
    let (id, _) = crate::fd::get(&mut guest.cx(), number as i32).unwrap();
    let source = vfs::map_file(&mut guest.cx(), id).unwrap().source;
    assert!(matches!(source, Source::Host(_)));
    let region = super::Region {
        start: Gva(0x40_0000),
        len_bytes: PAGE_SIZE,
        prot: super::Prot::READ | super::Prot::EXEC,
        flags: super::VmaFlags::MAYWRITE,
        source,
        offset: 0,
        name: None,
    };
    let mut cx = guest.cx();
    super::map_region(&mut cx, &region).unwrap();
    super::fault(&mut cx, Gva(0x40_0010), super::Access::Exec).unwrap();
    let denied = super::fault(&mut cx, Gva(0x40_0010), super::Access::Write);
    assert_eq!(
        denied,
        Err(FaultError::Segv {
            code: super::SEGV_ACCERR
        })
    );
    let outside = super::Region {
        start: Gva(USER_END.0 - PAGE_SIZE),
        len_bytes: 2 * PAGE_SIZE,
        ..region
    };
    assert_eq!(super::map_region(&mut cx, &outside), Err(Errno::EINVAL));
}

#[test]
fn a_page_of_a_file_that_calls_read_often_becomes_ours() {
    const READ: u64 = 1;
    const READ_EXEC: u64 = 5;
    const SHARED: u64 = 1;
    const PRIVATE_FILE: u64 = 2;
    let mut guest = Guest::new(64 * MIB);
    for (prot, flags, is_taken) in [
        (READ, PRIVATE_FILE, true),
        (READ, SHARED, false),
        (READ_EXEC, PRIVATE_FILE, false),
    ] {
        let number = guest.open_host(b"name\0");
        let mut cx = guest.cx();
        let file =
            mem::sys_mmap(&mut cx, Args::of(&[0, PAGE_SIZE, prot, flags, number, 0])).unwrap();
        let is_file = |cx: &mut Cx<'_>| {
            let (tables, memory) = cx.tables().unwrap();
            let gpa = tables.translate(memory, Gva(file));
            gpa.is_some_and(|gpa| memory.is_file_backed(gpa))
        };
        let mut reads = 0u64;
        while reads < 100 && (reads == 0 || is_file(&mut cx)) {
            let name = cx.read_cstr(Gva(file + reads % 2), 100).unwrap();
            assert_eq!(name, b"name"[reads as usize % 2..]);
            reads += 1;
        }
        assert_eq!(reads < 100, is_taken, "{prot} {flags}");
        // Once is not often.
        assert!(reads > 8);
        assert_eq!(cx.read_cstr(Gva(file), 100), Ok(b"name".to_vec()));
    }
}
