//! Stopping a running vCPU: a byte that KVM reads before it enters the guest, and a signal that
//! brings it out.

use std::cell::Cell;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU32, Ordering, compiler_fence,
};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libc::c_int;

use crate::HvError;

/// First real-time signal tried, counted from SIGRTMIN; low ones are popular with runtimes.
const FIRST_SIGNAL: c_int = 6;
/// How many are tried.
const SIGNAL_TRIES: c_int = 20;

/// What the signal handler of a thread needs. Const-initialised and without a destructor, so that
/// reading it in a handler neither allocates nor runs code.
struct ThreadKick {
    /// `kvm_run.immediate_exit` of the vCPU this thread is running, null outside of the run call.
    immediate_exit: AtomicPtr<AtomicU8>,
    /// A kick came while no vCPU was running here.
    pending: AtomicBool,
    /// The thread's id once it is prepared for kicks, else 0.
    tid: Cell<i32>,
    /// [`FORKS`] when `tid` was taken.
    forks: Cell<u32>,
}

/// How often this process's line has forked: a child inherits the thread-local values of the thread
/// that forked, but not its id.
static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_fork_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// The number of forks in this process's line: a parent and its child do not have it in common. A child that was made
/// without the C library has it, but KVM refuses it its parent's VMs.
pub fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

impl ThreadKick {
    /// The thread's id, after letting the kick signal through.
    fn prepared_tid(&self, signal: c_int) -> i32 {
        let forks = FORKS.load(Ordering::Relaxed);
        if self.tid.get() == 0 || self.forks.get() != forks {
            self.tid.set(prepare_thread(signal));
            self.forks.set(forks);
        }
        self.tid.get()
    }
}

thread_local! {
    static THREAD: ThreadKick = const {
        ThreadKick {
            immediate_exit: AtomicPtr::new(ptr::null_mut()),
            pending: AtomicBool::new(false),
            tid: Cell::new(0),
            forks: Cell::new(0),
        }
    };
}

extern "C" fn on_kick(_signal: c_int) {
    THREAD.with(|thread| {
        let flag = thread.immediate_exit.load(Ordering::Relaxed);
        if flag.is_null() {
            thread.pending.store(true, Ordering::Relaxed);
        } else {
            // SAFETY: `Running` sets the pointer for the time in which the mapping is borrowed, on
            // this very thread.
            unsafe { (*flag).store(1, Ordering::SeqCst) };
        }
    });
}

/// The signal that carries kicks, its handler installed on first use. Without SA_RESTART, so that a
/// deadline also ends a host call that sleeps.
fn kick_signal() -> Result<c_int, HvError> {
    static SIGNAL: OnceLock<Result<c_int, i32>> = OnceLock::new();
    let install = || {
        let first = libc::SIGRTMIN() + FIRST_SIGNAL;
        for signal in first..first + SIGNAL_TRIES {
            // SAFETY: sigaction is plain data; a null new action only queries.
            let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: as above.
            if unsafe { libc::sigaction(signal, ptr::null(), &mut old) } != 0 {
                break;
            }
            if old.sa_sigaction != libc::SIG_DFL {
                continue;
            }
            // SAFETY: sigaction is plain data.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = on_kick as extern "C" fn(c_int) as usize;
            // SAFETY: the handler only touches atomics of its own thread.
            if unsafe { libc::sigaction(signal, &action, ptr::null_mut()) } == 0 {
                // SAFETY: the handler only increments an atomic.
                unsafe { libc::pthread_atfork(None, None, Some(on_fork_child)) };
                return Ok(signal);
            }
        }
        Err(io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EBUSY))
    };
    (*SIGNAL.get_or_init(install)).map_err(|errno| HvError::Call {
        what: "installing the kick signal",
        source: io::Error::from_raw_os_error(errno),
    })
}

/// `kvm_run.immediate_exit` as other threads write it.
#[derive(Debug)]
struct ExitFlag(NonNull<AtomicU8>);
// SAFETY: the target is an atomic in a mapping that outlives every use: `Shared::detach` takes the
// pointer away, under the lock that guards each use, before it is unmapped.
unsafe impl Send for ExitFlag {}

/// What a vCPU and its kickers share.
#[derive(Debug)]
pub(crate) struct Shared {
    flag: Mutex<Option<ExitFlag>>,
    /// Thread that last ran the vCPU, 0 for none.
    tid: AtomicI32,
    signal: c_int,
}

impl Shared {
    /// For the vCPU whose `immediate_exit` is `flag`.
    pub(crate) fn new(flag: NonNull<AtomicU8>) -> Result<Arc<Self>, HvError> {
        Ok(Arc::new(Self {
            flag: Mutex::new(Some(ExitFlag(flag))),
            tid: AtomicI32::new(0),
            signal: kick_signal()?,
        }))
    }

    /// Ends all kicking; afterwards the mapping may go.
    pub(crate) fn detach(&self) {
        *self.flag.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Stops a vCPU from any thread. Clones are cheap; one that outlives its vCPU does nothing.
#[derive(Clone, Debug)]
pub struct Kicker(pub(crate) Arc<Shared>);

impl Kicker {
    /// Makes the vCPU's current run return [`kvmlet_abi::Trap::Interrupted`], or its next one if it
    /// is not running: a kick is never lost. Several before that return count as one.
    ///
    /// The thread that last ran the vCPU gets a signal, so that a host call it sleeps in fails with
    /// EINTR as well.
    pub fn kick(&self) {
        let flag = self.0.flag.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(flag) = &*flag else { return };
        // SAFETY: the mapping is there while the lock is held and the flag is present.
        unsafe { flag.0.as_ref() }.store(1, Ordering::SeqCst);
        // KVM reads the flag after the thread has published its id, so one of the two is seen.
        let tid = self.0.tid.load(Ordering::SeqCst);
        if tid != 0 {
            // SAFETY: a signal to a thread of this process; a thread that is gone gives ESRCH.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, self.0.signal) };
        }
    }
}

/// The time in which the current thread runs a vCPU and its kicks reach that vCPU.
pub(crate) struct Running<'a> {
    flag: &'a AtomicU8,
}

impl<'a> Running<'a> {
    pub(crate) fn enter(shared: &Shared, flag: &'a AtomicU8) -> Self {
        THREAD.with(|thread| {
            thread
                .immediate_exit
                .store(ptr::from_ref(flag).cast_mut(), Ordering::Relaxed);
            // The handler runs on this thread: only the compiler could reorder.
            compiler_fence(Ordering::SeqCst);
            let tid = thread.prepared_tid(shared.signal);
            if shared.tid.load(Ordering::Relaxed) != tid {
                shared.tid.store(tid, Ordering::SeqCst);
            }
        });
        Self { flag }
    }

    /// Takes a kick that has arrived, if any.
    pub(crate) fn take_kick(&self) -> bool {
        let pending = THREAD.with(|thread| {
            let pending = thread.pending.load(Ordering::Relaxed);
            if pending {
                thread.pending.store(false, Ordering::Relaxed);
            }
            pending
        });
        // A kick between the two instructions merges with the one taken here.
        let flagged = self.flag.load(Ordering::SeqCst) != 0;
        if flagged {
            self.flag.store(0, Ordering::SeqCst);
        }
        pending || flagged
    }

    /// Makes the next run return at once.
    pub(crate) fn put_back_kick(&self) {
        self.flag.store(1, Ordering::SeqCst);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        THREAD.with(|thread| {
            thread
                .immediate_exit
                .store(ptr::null_mut(), Ordering::Relaxed)
        });
    }
}

/// Lets the kick signal through and returns the thread's id.
fn prepare_thread(signal: c_int) -> i32 {
    // SAFETY: sigset_t is plain data, filled by sigemptyset; the calls only change this thread's mask.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
        libc::gettid()
    }
}

/// Blocks signals on this thread: those to the process go to threads that expect them. Not those of job
/// control, for which a terminal is asked on behalf of whoever blocks none (tcsetattr(3)).
pub fn block_signals() {
    // SAFETY: sigset_t is plain data, filled by sigfillset; the call only changes this thread's mask.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        for signal in [libc::SIGTTIN, libc::SIGTTOU, libc::SIGTSTP] {
            libc::sigdelset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut());
    }
}

/// A POSIX timer that kicks the thread it was armed on (timer_create(2), SIGEV_THREAD_ID).
#[derive(Default)]
pub(crate) struct Deadline {
    timer: Option<(libc::timer_t, i32)>,
}

// SAFETY: a timer id may be used from any thread of the process.
unsafe impl Send for Deadline {}

impl Deadline {
    /// Kicks the current thread at `deadline_ns` on CLOCK_MONOTONIC, at once if that has passed;
    /// `None` disarms.
    pub(crate) fn arm(&mut self, deadline_ns: Option<u64>) -> Result<(), HvError> {
        if deadline_ns.is_none() && self.timer.is_none() {
            return Ok(());
        }
        let signal = kick_signal()?;
        let tid = THREAD.with(|thread| thread.prepared_tid(signal));
        let timer = match self.timer {
            Some((timer, owner)) if owner == tid => timer,
            _ => {
                self.delete();
                let timer = create_timer(signal, tid)?;
                self.timer = Some((timer, tid));
                timer
            }
        };
        // An all-zero time disarms, so an absolute deadline of 0 becomes 1 ns.
        let at = deadline_ns.map_or(0, |ns| ns.max(1));
        // SAFETY: itimerspec is plain data.
        let mut spec: libc::itimerspec = unsafe { std::mem::zeroed() };
        spec.it_value.tv_sec =
            libc::time_t::try_from(at / 1_000_000_000).unwrap_or(libc::time_t::MAX);
        spec.it_value.tv_nsec = (at % 1_000_000_000) as libc::c_long;
        // SAFETY: `timer` is a live timer of this process.
        let ret =
            unsafe { libc::timer_settime(timer, libc::TIMER_ABSTIME, &spec, ptr::null_mut()) };
        if ret == 0 {
            Ok(())
        } else {
            Err(HvError::last("timer_settime"))
        }
    }

    fn delete(&mut self) {
        if let Some((timer, _)) = self.timer.take() {
            // SAFETY: the timer is ours and not used again.
            unsafe { libc::timer_delete(timer) };
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.delete();
    }
}

fn create_timer(signal: c_int, tid: i32) -> Result<libc::timer_t, HvError> {
    // SAFETY: sigevent is plain data.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = signal;
    event.sigev_notify_thread_id = tid;
    let mut timer: libc::timer_t = ptr::null_mut();
    // SAFETY: both pointers are valid for the call.
    let ret = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) };
    if ret == 0 {
        Ok(timer)
    } else {
        Err(HvError::last("timer_create"))
    }
}
