//! The system calls that the process makes once its guest runs: a list of data, each rule with its reason.
//!
//! tests/escape/test_jail.py shows that each rule is used. A call that is missing here kills kvmlet with
//! SIGSYS (status 159 in a shell); `strace -f kvmlet run ...` shows which one it was.

/// A condition on an argument, by its place from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// The argument is this value.
    Is(u8, u32),
    /// Of the argument, the bits of the first value are those of the second.
    Masked(u8, u32, u32),
    /// The argument is this process's id.
    OwnProcess(u8),
    /// The argument is a null pointer.
    Null(u8),
}

/// The kernel's answer to a call that a rule fits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Makes it.
    Allow,
    /// Fails it with ENOSYS, whatever its arguments: who asked has another way.
    NoSuchCall,
}

/// A rule: a call that may be made if all its conditions hold. Of several rules for one call, one must fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// The call's number.
    pub number: i64,
    constant: &'static str,
    /// All of them must hold.
    pub when: &'static [When],
    /// The answer to it.
    pub answer: Answer,
    /// Its purpose.
    pub why: &'static str,
}

impl Call {
    /// The call's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.constant.trim_start_matches("SYS_")
    }
}

use When::{Is, Masked, Null, OwnProcess};

macro_rules! calls {
    ($($number:ident [$($when:expr),*] $answer:ident $why:literal;)*) => {
        &[$(Call {
            number: libc::$number,
            constant: stringify!($number),
            when: &[$($when),*],
            answer: Answer::$answer,
            why: $why,
        }),*]
    };
}

/// What every run takes, whatever its policy. The kernel finds calls without conditions by a table; rules
/// for one call are looked through in this order.
pub(crate) const ALWAYS: &[Call] = calls! {
    // The virtual machine: requests of linux/kvm.h.
    SYS_ioctl [Is(1, KVM_RUN)] Allow "enters the guest";
    SYS_ioctl [Is(1, KVM_GET_XSAVE2)] Allow "a thread leaves the vCPU";
    SYS_ioctl [Is(1, KVM_GET_XSAVE)] Allow "the same before Linux 5.17";
    SYS_ioctl [Is(1, KVM_SET_XSAVE)] Allow "a thread comes to the vCPU";
    SYS_ioctl [Is(1, KVM_SET_USER_MEMORY_REGION)] Allow "gives the guest memory";
    SYS_ioctl [Is(1, KVM_CREATE_VM)] Allow "makes the VM";
    SYS_ioctl [Is(1, KVM_CREATE_VCPU)] Allow "makes its vCPU";
    SYS_ioctl [Is(1, KVM_CHECK_EXTENSION)] Allow "asks for what KVM has";
    SYS_ioctl [Is(1, KVM_GET_VCPU_MMAP_SIZE)] Allow "maps what is shared with a vCPU";
    SYS_ioctl [Is(1, KVM_GET_SUPPORTED_CPUID)] Allow "sets a vCPU up";
    SYS_ioctl [Is(1, KVM_SET_CPUID2)] Allow "sets a vCPU up";
    SYS_ioctl [Is(1, KVM_GET_SREGS)] Allow "sets a vCPU up";
    SYS_ioctl [Is(1, KVM_SET_SREGS)] Allow "sets a vCPU up";
    SYS_ioctl [Is(1, KVM_SET_XCRS)] Allow "sets a vCPU up";
    SYS_ioctl [Is(1, KVM_SET_MSRS)] Allow "sets a vCPU up";
    SYS_ioctl [Is(1, KVM_X86_SET_MSR_FILTER)] Allow "keeps the guest from writing MSRs";
    SYS_ioctl [Is(1, KVM_GET_TSC_KHZ)] Allow "the guest's clock";
    SYS_ioctl [Is(1, KVM_GET_DEVICE_ATTR)] Allow "the guest's clock on hardware";
    SYS_ioctl [Is(1, KVM_GET_VCPU_EVENTS)] Allow "an exception that was on its way";
    SYS_ioctl [Is(1, KVM_SET_VCPU_EVENTS)] Allow "takes such an exception away";
    // Terminals that the caller hands on. Never TIOCSTI, which types for the user.
    SYS_ioctl [Is(1, TCGETS2)] Allow "reads a terminal's settings";
    SYS_ioctl [Is(1, TCSETS2)] Allow "sets them";
    SYS_ioctl [Is(1, TCFLSH)] Allow "drops what was not read or sent";
    SYS_ioctl [Is(1, TIOCGPGRP)] Allow "whose job has a terminal";
    SYS_ioctl [Is(1, TIOCGSID)] Allow "whether a terminal is ours";
    SYS_ioctl [Is(1, TIOCGWINSZ)] Allow "asks for a window's size, and what is a terminal";
    SYS_ioctl [Is(1, TCGETS)] Allow "Python asks what a source file is, for a traceback";
    SYS_ioctl [Is(1, FIONREAD)] Allow "counts what can be read";
    // Memory; nothing of it is ever executed.
    SYS_mmap [Masked(2, PROT_EXEC, 0)] Allow "the guest's memory, files it maps, the heap";
    SYS_mprotect [Masked(2, PROT_EXEC, 0)] Allow "guard pages, what is read only";
    SYS_munmap [] Allow "gives memory back";
    SYS_mremap [] Allow "the heap grows a large block";
    SYS_madvise [] Allow "huge pages, memory that is dropped";
    SYS_brk [] Allow "the heap";
    SYS_process_vm_readv [OwnProcess(0)] Allow "copies from a file's page, which may be gone";
    SYS_process_vm_writev [OwnProcess(0)] Allow "copies to a file's page, which may be gone";
    // Host files: opened for reading only; Landlock says which.
    SYS_openat [Masked(2, OPEN_CHANGES, 0)] Allow "opens a file for the guest";
    SYS_open [Masked(1, OPEN_CHANGES, 0)] Allow "opens a tree's root";
    SYS_openat2 [] Allow "the same; only Landlock can see its flags";
    SYS_close [] Allow "closes it";
    SYS_fstat [] Allow "a file's attributes";
    SYS_newfstatat [] Allow "a file's attributes";
    SYS_statx [] Allow "when a file was created";
    SYS_fstatfs [] Allow "the file system that a file is on";
    SYS_readlinkat [] Allow "a symbolic link";
    SYS_getdents64 [] Allow "a directory's entries";
    SYS_getcwd [] Allow "whether a path is the caller's directory";
    SYS_pread64 [] Allow "reads a file for the guest";
    SYS_flistxattr [] Allow "its extended attributes";
    SYS_fgetxattr [] Allow "one of them";
    // The standard streams, as the caller has opened them.
    SYS_read [] Allow "a stream without a position";
    SYS_write [] Allow "a stream, traces, explanations";
    SYS_preadv2 [] Allow "a stream, without waiting";
    SYS_pwritev2 [] Allow "a stream, without waiting";
    SYS_recvfrom [] Allow "a socket, without waiting";
    SYS_sendto [Null(4)] Allow "the same; never to an address";
    SYS_pwrite64 [] Allow "a file that is a stream, files past memory's share";
    SYS_fallocate [Is(1, PUNCH_HOLE)] Allow "gives room of files past memory's share back";
    SYS_lseek [] Allow "a file that is a stream";
    SYS_ftruncate [] Allow "a file that is a stream";
    SYS_fsync [] Allow "a file that is a stream";
    SYS_fcntl [Is(1, F_DUPFD_CLOEXEC)] Allow "a descriptor of our own for each";
    SYS_fcntl [Is(1, F_GETFL)] Allow "a stream's flags";
    SYS_ppoll [] Allow "waits for streams and deadlines";
    // Time.
    SYS_clock_gettime [] Allow "clocks that the vDSO does not have";
    SYS_clock_getres [] Allow "a clock's resolution, where there is no vDSO";
    SYS_timer_create [] Allow "a run's deadline";
    SYS_timer_settime [] Allow "a run's deadline";
    SYS_timer_delete [] Allow "a run's deadline";
    // Threads, and signals between them.
    SYS_clone [Masked(0, !THREAD_OPTIONS, THREAD)] Allow "starts a poller";
    SYS_clone3 [] NoSuchCall "its flags cannot be seen; the C library then takes clone";
    SYS_rseq [] Allow "a thread starts";
    SYS_set_robust_list [] Allow "a thread starts";
    SYS_prctl [Is(0, PR_SET_NAME)] Allow "names a thread";
    SYS_exit [] Allow "a thread ends";
    SYS_futex [] Allow "locks, and pollers that wait for work";
    SYS_sched_getaffinity [] Allow "which CPUs may be used";
    SYS_sched_setaffinity [] Allow "keeps a poller off its guest's CPU";
    SYS_tgkill [OwnProcess(0)] Allow "stops a vCPU of ours; a fatal error of ours";
    SYS_kill [Is(0, 0), Is(1, SIGTSTP)] Allow "stops the caller's job with the program";
    SYS_rt_sigaction [] Allow "handlers of Python's and of ours";
    SYS_rt_sigprocmask [] Allow "which thread takes a signal";
    SYS_rt_sigreturn [] Allow "ends a handler";
    SYS_restart_syscall [] Allow "a call goes on after a stop for which no handler ran";
    SYS_readlink [] Allow "a panic of ours names its program";
    // Who we are.
    SYS_getppid [] Allow "whether the caller's job is orphaned";
    SYS_getpgrp [] Allow "whose job has a terminal";
    SYS_getsid [] Allow "whether a terminal is ours";
    SYS_getpid [] Allow "the process's id";
    SYS_gettid [] Allow "a thread's id";
    SYS_getuid [] Allow "the guest's user";
    SYS_getgid [] Allow "the guest's group";
    SYS_getgroups [] Allow "the guest's groups";
    SYS_capget [] Allow "which files may be opened";
    SYS_getrandom [] Allow "random bytes";
    SYS_exit_group [] Allow "the end";
};

/// What a run takes besides if its policy lets a program change a tree of the host's. Landlock says which names may
/// be made, removed and opened for writing; of modes, owners and times it knows nothing. A mode is therefore set by a
/// descriptor only, which Landlock has let be opened.
pub(crate) const CHANGES: &[Call] = calls! {
    SYS_openat [Masked(2, UNKNOWN_FLAGS, 0)] Allow "opens a file for writing, makes one, with a name or without";
    SYS_mkdirat [] Allow "makes a directory";
    SYS_mknodat [Masked(2, S_IFMT, S_IFSOCK)] Allow "the name of a socket, which nobody listens at";
    SYS_unlinkat [] Allow "removes a name";
    SYS_renameat2 [] Allow "renames";
    SYS_symlinkat [] Allow "makes a symbolic link";
    SYS_linkat [Is(4, 0)] Allow "makes another name; a link is not followed";
    SYS_linkat [Is(4, AT_SYMLINK_FOLLOW)] Allow "gives a file a name that has none";
    SYS_fchmod [] Allow "sets a mode";
    SYS_fchown [] Allow "sets the group of what is open";
    SYS_fchownat [Is(4, AT_SYMLINK_NOFOLLOW)] Allow "sets the group by a name, of a link too";
    SYS_utimensat [Null(1), Is(3, 0)] Allow "sets the times of what is open";
    SYS_utimensat [Is(3, AT_SYMLINK_NOFOLLOW)] Allow "sets times by a name, of a link too";
    SYS_fallocate [Masked(1, UNKNOWN_MODES, 0)] Allow "gives a file room";
    SYS_fdatasync [] Allow "has written bytes reach the disk";
    SYS_fsetxattr [] Allow "sets an extended attribute of what is open";
    SYS_fremovexattr [] Allow "takes one away";
    SYS_flock [] Allow "a lock against other processes";
    SYS_fcntl [Is(1, F_OFD_SETLK)] Allow "the same on a part of a file; never waited for";
    SYS_fcntl [Is(1, F_OFD_GETLK)] Allow "whose lock is in the way";
};

/// The flags of open(2) that Linux does not know.
const UNKNOWN_FLAGS: u32 = !0o37_777_777;
/// The modes of fallocate(2) that Linux does not know.
const UNKNOWN_MODES: u32 = !0x7f;
const S_IFMT: u32 = libc::S_IFMT;
const S_IFSOCK: u32 = libc::S_IFSOCK;
const AT_SYMLINK_FOLLOW: u32 = libc::AT_SYMLINK_FOLLOW.cast_unsigned();
const AT_SYMLINK_NOFOLLOW: u32 = libc::AT_SYMLINK_NOFOLLOW.cast_unsigned();

/// What serving clients takes besides, all of it with sockets that were made before or come from those.
pub(crate) const OF_SERVER: &[Call] = calls! {
    SYS_accept4 [] Allow "a client";
    SYS_epoll_create1 [] Allow "the threads that serve clients";
    SYS_epoll_ctl [] Allow "which sockets they wait for";
    SYS_epoll_wait [] Allow "waits for clients";
    SYS_eventfd2 [] Allow "wakes such a thread";
    SYS_ioctl [Is(1, KVM_GET_STATS_FD)] Allow "a program is frozen";
    SYS_memfd_create [] Allow "the page tables that forks share; never executed";
    SYS_fcntl [Is(1, F_ADD_SEALS)] Allow "nobody changes those any more";
    SYS_ioctl [Is(1, FIONBIO)] Allow "a listener is not waited for";
    SYS_setsockopt [Is(1, IPPROTO_TCP), Is(2, TCP_NODELAY)] Allow "an answer goes out at once";
    SYS_writev [] Allow "an answer's head and body";
    SYS_shutdown [] Allow "the end of an answer";
    SYS_sched_yield [] Allow "a queue whose other end is in the middle of an entry";
};

/// What a run takes besides whose program may reach a host. Every socket has been allowed by a rule before: of TCP and UDP
/// only, and each has one peer.
pub(crate) const NETWORK: &[Call] = calls! {
    SYS_socket [Masked(0, !AF_INET_BITS, AF_INET), Is(1, SOCK_STREAM)] Allow "a connection";
    SYS_socket [Masked(0, !AF_INET_BITS, AF_INET), Is(1, SOCK_DGRAM)] Allow "datagrams to one host";
    SYS_connect [] Allow "the host that a rule allows";
    SYS_getsockname [] Allow "whether a host is this machine";
    SYS_getpeername [] Allow "whether a connection is there yet";
    SYS_getsockopt [Is(1, SOL_SOCKET), Is(2, SO_ERROR)] Allow "why it is not";
};

/// What a run takes whose program may reach a host or be reached.
pub(crate) const CONNECTIONS: &[Call] = calls! {
    SYS_setsockopt [Is(1, IPPROTO_TCP)] Allow "sends small pieces at once, asks if the other side is there";
    SYS_setsockopt [Is(1, SOL_SOCKET), Is(2, SO_LINGER)] Allow "resets a connection";
    SYS_setsockopt [Is(1, SOL_SOCKET), Is(2, SO_KEEPALIVE)] Allow "asks if the other side is there";
    SYS_shutdown [Is(1, SHUT_WR)] Allow "sends no more";
    SYS_epoll_create1 [] Allow "events of sockets";
    SYS_epoll_ctl [Is(1, EPOLL_CTL_ADD)] Allow "looks out for a socket";
    SYS_epoll_pwait [] Allow "events of sockets";
};

/// What a run takes whose program can be reached by ports of the host.
pub(crate) const PUBLISHED: &[Call] = calls! {
    SYS_accept4 [] Allow "takes a connection from a port that was opened before";
};

/// What a run takes whose program may connect to sockets of the host that have a path. This process makes none: a filter
/// sees no paths.
pub(crate) const UNIX: &[Call] = calls! {
    SYS_recvmsg [Is(2, MSG_FLAGS)] Allow "a connection that a process beside this one has made";
};

const MSG_FLAGS: u32 = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC).cast_unsigned();
const AF_INET: u32 = libc::AF_INET.cast_unsigned();
/// The bits that tell AF_INET and AF_INET6 apart.
const AF_INET_BITS: u32 = (libc::AF_INET ^ libc::AF_INET6).cast_unsigned();
const SOCKET_FLAGS: u32 = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).cast_unsigned();
const SOCK_STREAM: u32 = libc::SOCK_STREAM.cast_unsigned() | SOCKET_FLAGS;
const SOCK_DGRAM: u32 = libc::SOCK_DGRAM.cast_unsigned() | SOCKET_FLAGS;
const SOL_SOCKET: u32 = libc::SOL_SOCKET.cast_unsigned();
const SO_ERROR: u32 = libc::SO_ERROR.cast_unsigned();
const SO_LINGER: u32 = libc::SO_LINGER.cast_unsigned();
const SO_KEEPALIVE: u32 = libc::SO_KEEPALIVE.cast_unsigned();
const SHUT_WR: u32 = libc::SHUT_WR.cast_unsigned();
const EPOLL_CTL_ADD: u32 = libc::EPOLL_CTL_ADD.cast_unsigned();
/// FALLOC_FL_PUNCH_HOLE with FALLOC_FL_KEEP_SIZE, which it takes.
const PUNCH_HOLE: u32 = 3;
const PROT_EXEC: u32 = libc::PROT_EXEC.cast_unsigned();
/// Flags of open(2) that write, create or shorten a file.
const OPEN_CHANGES: u32 =
    (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC).cast_unsigned() | O_TMPFILE;
/// O_TMPFILE without O_DIRECTORY, which it has in it.
const O_TMPFILE: u32 = (libc::O_TMPFILE & !libc::O_DIRECTORY).cast_unsigned();
/// A thread of this process and nothing else.
const THREAD: u32 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD)
    .cast_unsigned();
/// What a C library may add to that.
const THREAD_OPTIONS: u32 = (libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID)
    .cast_unsigned();
const SIGTSTP: u32 = libc::SIGTSTP.cast_unsigned();
const PR_SET_NAME: u32 = libc::PR_SET_NAME.cast_unsigned();
const F_GETFL: u32 = libc::F_GETFL.cast_unsigned();
const F_DUPFD_CLOEXEC: u32 = libc::F_DUPFD_CLOEXEC.cast_unsigned();
const F_OFD_GETLK: u32 = libc::F_OFD_GETLK.cast_unsigned();
const F_OFD_SETLK: u32 = libc::F_OFD_SETLK.cast_unsigned();
const F_ADD_SEALS: u32 = libc::F_ADD_SEALS.cast_unsigned();
const IPPROTO_TCP: u32 = libc::IPPROTO_TCP.cast_unsigned();
const TCP_NODELAY: u32 = libc::TCP_NODELAY.cast_unsigned();

// linux/kvm.h
const KVM_CREATE_VM: u32 = 0xae01;
const KVM_CHECK_EXTENSION: u32 = 0xae03;
const KVM_GET_VCPU_MMAP_SIZE: u32 = 0xae04;
const KVM_GET_SUPPORTED_CPUID: u32 = 0xc008_ae05;
const KVM_CREATE_VCPU: u32 = 0xae41;
const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
const KVM_RUN: u32 = 0xae80;
const KVM_GET_SREGS: u32 = 0x8138_ae83;
const KVM_SET_SREGS: u32 = 0x4138_ae84;
const KVM_SET_MSRS: u32 = 0x4008_ae89;
const KVM_SET_CPUID2: u32 = 0x4008_ae90;
const KVM_GET_VCPU_EVENTS: u32 = 0x8040_ae9f;
const KVM_SET_VCPU_EVENTS: u32 = 0x4040_aea0;
const KVM_GET_TSC_KHZ: u32 = 0xaea3;
const KVM_GET_XSAVE: u32 = 0x9000_aea4;
const KVM_SET_XSAVE: u32 = 0x5000_aea5;
const KVM_SET_XCRS: u32 = 0x4188_aea7;
const KVM_X86_SET_MSR_FILTER: u32 = 0x4188_aec6;
const KVM_GET_XSAVE2: u32 = 0x9000_aecf;
const KVM_GET_STATS_FD: u32 = 0xaece;
const KVM_GET_DEVICE_ATTR: u32 = 0x4018_aee2;

// asm-generic/ioctls.h; the second kind of settings has a speed of any number.
const TCGETS: u32 = 0x5401;
const TCFLSH: u32 = 0x540b;
const TIOCGPGRP: u32 = 0x540f;
const TIOCGWINSZ: u32 = 0x5413;
const FIONREAD: u32 = 0x541b;
const FIONBIO: u32 = 0x5421;
const TIOCGSID: u32 = 0x5429;
const TCGETS2: u32 = 0x802c_542a;
const TCSETS2: u32 = 0x402c_542b;
