//! One sandbox's personality: the kernel value, the memory and host side it acts on, and the steps
//! that the engine drives. A step says which thread runs next, or what a trap means.

mod dispatch;
mod fault;
mod files;
mod holder;
#[cfg(test)]
mod holder_tests;
mod terminal;
#[cfg(test)]
mod turn_tests;
mod visitor;

use std::sync::Arc;

use kvmlet_abi::layout::USER_END;

use crate::clock;
use crate::console::Pump;
use crate::cx::{Cx, Machine};
use crate::frame::{self, Delivered};
use crate::host::{Host, HostId};
use crate::kernel::{End, Kernel, Tid, XState};
use crate::mm;
use crate::net::{self, outside};
use crate::outcome::Turn;
use crate::report::Denial;
use crate::sched::{SLICE_NS, Yield};
use crate::signal::SigInfo;
use crate::task;
use crate::timer::Timeline;
use crate::trace;
use crate::vfs::overlay;

pub use dispatch::Made;
pub use files::{FileInfo, Links, Listed};
pub use holder::{Command, News, STREAMS, SpawnError, Spawned, Stdio};
pub use terminal::TerminalSize;
pub use visitor::{Connection, CpuTimes, Door, Shut};

/// The vCPU's extended state, as much as the personality needs of a CPU.
pub trait Cpu {
    /// The state now in the vCPU's registers, as a standard-format XSAVE image.
    fn save_xstate(&mut self) -> Arc<[u8]>;
    /// Loads an image, or the initial state for `None`. The image may be the guest's: an invalid one
    /// is replaced by the initial state.
    fn load_xstate(&mut self, image: Option<&[u8]>);
}

/// The engine's next action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Enter the guest with this thread's registers.
    Run(Tid),
    /// Nothing can run before a host descriptor is ready or this time (guest monotonic ns).
    Idle {
        /// Earliest deadline; `None` for none.
        deadline_ns: Option<u64>,
    },
    /// There is more to do before anything can run. It has taken a while: the engine looks at its limits,
    /// and asks again.
    Again,
    /// The program has ended.
    Ended(End),
}

/// What a virtual CPU is at.
#[derive(Debug, Default)]
struct CpuState {
    /// Thread chosen to run.
    current: Option<Tid>,
    /// Whose extended state is in the vCPU.
    live: Option<Tid>,
    /// When the current thread's slice ends, guest monotonic ns.
    slice_end_ns: u64,
}

/// The kernel value with the memory and the host it acts on.
#[derive(Debug)]
pub struct Personality {
    /// The kernel value.
    pub kernel: Kernel,
    /// Frames and page tables.
    pub machine: Machine,
    /// Host descriptors, policy, reports.
    pub host: Host,
    /// What each virtual CPU is at: there is one.
    cpus: [CpuState; 1],
    /// News that the host waits for as the holder.
    awaited: Vec<News>,
    /// The thread that acts for the host; `None` for the holder's.
    acting: Option<files::Acting>,
}

impl Personality {
    /// Joins a kernel value to its memory and host.
    #[must_use]
    pub fn new(kernel: Kernel, machine: Machine, host: Host) -> Self {
        Self {
            kernel,
            machine,
            host,
            cpus: Default::default(),
            awaited: Vec::new(),
            acting: None,
        }
    }

    /// Takes what was refused, and (name, detail) of what is unsupported. A hidden name that the host does not have either
    /// is no refusal: programs look for many that are nowhere. Nor is one that the program has made in the meantime.
    pub fn take_report(&mut self) -> (Vec<Denial>, Vec<(String, String)>) {
        let (mut denials, events) = self.host.report.take();
        let roots = &self.host.roots;
        denials.retain(|denial| {
            let path = denial.path().filter(|_| denial.remedy.is_hidden());
            !path.is_some_and(|path| roots.is_absent(path))
        });
        let files = &self.kernel.tmpfs;
        let missed = std::mem::take(&mut self.host.report.missed);
        denials.extend(missed.into_iter().filter(|missed| {
            let path = missed.path();
            path.is_some_and(|path| overlay::known(files, path).is_none() && roots.exists(path))
        }));
        (denials, events)
    }

    /// Takes every thread off the vCPU: the kernel value holds all of its state afterwards, as a
    /// freeze needs it.
    pub fn park(&mut self, cpu: &mut dyn Cpu) {
        while self.end_doomed() || net::drop_piece(&mut self.cx(Tid::FIRST)) {}
        self.host.finish_call();
        if let Some(tid) = self.cpus[0].live {
            self.save_xstate(tid, cpu);
        }
        if let Some(tid) = self.cpus[0].current.take() {
            self.kernel.sched.run_queue.push_front(tid);
        }
    }

    /// Goes on from another kernel value in which no thread is on a vCPU: a reset. What the vCPU holds
    /// of the old one's threads is given up.
    pub fn assign(&mut self, kernel: Kernel) {
        self.kernel = kernel;
        self.machine.hot_pages = mm::HotPages::default();
        self.machine.stale_files.clear();
        self.cpus = Default::default();
        self.awaited.clear();
        self.acting = None;
    }

    pub(crate) fn cx(&mut self, tid: Tid) -> Cx<'_> {
        Cx {
            kernel: &mut self.kernel,
            machine: &mut self.machine,
            host: &mut self.host,
            tid,
        }
    }

    /// Decides what runs next, making woken calls again and delivering signals on the way.
    pub fn next(&mut self, cpu: &mut dyn Cpu) -> Step {
        self.host.finish_call();
        self.host.budget.begin();
        if self.has_output() {
            self.console().show();
        }
        // Once each time: a timer of a nanosecond must not keep us from the guest for ever.
        self.expire_timers();
        self.kernel.retarget_signals();
        self.give_up_dear_spares();
        let mut worked = false;
        loop {
            self.follow_files();
            if let Some(end) = self.kernel.end {
                return Step::Ended(end);
            }
            if worked && self.host.budget.is_spent() {
                return Step::Again;
            }
            if self.end_doomed() || net::drop_piece(&mut self.cx(Tid::FIRST)) {
                worked = true;
                continue;
            }
            if outside::work(&mut self.cx(Tid::FIRST)) {
                worked = true;
                continue;
            }
            let Some(tid) = self.choose() else {
                return Step::Idle {
                    deadline_ns: self.earliest_ns(),
                };
            };
            if self.kernel.pipes.is_opening() && self.kernel.is_interrupted(tid) {
                crate::vfs::fifo::abandon(&mut self.cx(tid));
            }
            if let Some((call, state)) = self.kernel.sched.retries.remove(&tid) {
                worked = true;
                let ends = state.turn == Turn::Shared && state.progress > 0;
                if ends && self.kernel.has_signal(tid) {
                    self.done(tid, &state, Ok(state.progress));
                } else {
                    self.retry(tid, call, &state, cpu);
                }
                continue;
            }
            if self.kernel.has_signal(tid) {
                worked = true;
                self.deliver_one(tid, cpu);
                continue;
            }
            let Some(thread) = self.kernel.threads.get_mut(&tid) else {
                self.cpus[0].current = None;
                continue;
            };
            // A signal that another thread took, or that became ignored, leaves no mark on the call.
            if thread.interrupted.is_some() {
                self.kernel.resume_interrupted(tid);
                continue;
            }
            if let Some(mask) = thread.signals.saved_mask.take() {
                thread.signals.mask = mask;
                continue;
            }
            let regs = thread.regs;
            if self.has_returned(tid, &regs) {
                self.finish_call(tid, cpu);
                continue;
            }
            let rip = regs.rip;
            if rip >= USER_END.0 {
                self.fetch_beyond(tid, rip);
                continue;
            }
            self.load_xstate(tid, cpu);
            return Step::Run(tid);
        }
    }

    /// Ends the first of the processes that are doomed; says if there was one. Each may have much to give up: the
    /// engine looks at its limits in between.
    fn end_doomed(&mut self) -> bool {
        let Some(doomed) = self.kernel.doomed.pop_front() else {
            return false;
        };
        if let Some(info) = &doomed.signal {
            self.trace_signal(doomed.tid, info);
        }
        task::exit::end_process(&mut self.cx(doomed.tid), doomed.pid, doomed.status);
        true
    }

    fn trace_signal(&mut self, tid: Tid, info: &SigInfo) {
        if self.host.report.trace {
            self.host.report.trace_lines.push(trace::signal(tid, info));
        }
    }

    /// Memory that nobody uses goes before it is missed.
    fn give_up_dear_spares(&mut self) {
        let Machine { memory, spaces, .. } = &mut self.machine;
        if spaces.has_dear_spares(memory) {
            spaces.give_up_spares(memory, |mem, _, leaf| mem.free_leaf(leaf));
        }
        if !memory.is_plenty() {
            memory.drop_text_copies();
        }
    }

    /// See [`mm::follow_files`].
    fn follow_files(&mut self) {
        if self.machine.stale_files.is_empty() {
            return;
        }
        let Some(tid) = self.kernel.threads.keys().next().copied() else {
            return;
        };
        if mm::follow_files(&mut self.cx(tid)).is_err() {
            self.kernel.end = Some(End::Memory);
        }
    }

    fn expire_timers(&mut self) {
        if self.earliest_ns().is_none() {
            return;
        }
        let now_ns = clock::monotonic_ns(&self.host);
        self.kernel.fire_timerfds(now_ns);
        self.kernel.expire(now_ns);
        self.kernel.fire_due(Timeline::Monotonic, now_ns);
    }

    /// The current thread while it may go on, else the next of the run queue.
    fn choose(&mut self) -> Option<Tid> {
        let yielding = core::mem::take(&mut self.kernel.sched.yielding);
        // It may have ended meanwhile, and another one may get its id.
        let threads = &self.kernel.threads;
        self.cpus[0].current = self.cpus[0].current.filter(|tid| threads.contains_key(tid));
        self.cpus[0].live = self.cpus[0].live.filter(|tid| threads.contains_key(tid));
        if let Some(tid) = self.cpus[0].current {
            let sched = &self.kernel.sched;
            if !sched.has_ready() || sched.keeps_turn(tid) {
                return Some(tid);
            }
            let is_over = clock::monotonic_ns(&self.host) >= self.cpus[0].slice_end_ns;
            match yielding {
                Yield::No if !is_over => return Some(tid),
                Yield::ToChild => self.kernel.sched.make_ready(tid),
                Yield::No | Yield::ToAll => self.kernel.sched.end_slice(tid),
            }
        }
        self.cpus[0].current = None;
        if !self.kernel.sched.has_ready() {
            return None;
        }
        let now_ns = clock::monotonic_ns(&self.host);
        let began_ns = self.cpus[0].slice_end_ns.saturating_sub(SLICE_NS);
        let mut ran_ns = now_ns.saturating_sub(began_ns);
        while let Some(tid) = self.kernel.sched.take_next(ran_ns) {
            if !self.kernel.is_stopped(tid) {
                self.cpus[0].current = Some(tid);
                self.cpus[0].slice_end_ns = now_ns.saturating_add(SLICE_NS);
                break;
            }
            ran_ns = 0;
            self.kernel.sched.stopped.push_back(tid);
        }
        self.cpus[0].current
    }

    fn earliest_ns(&self) -> Option<u64> {
        let timer = self.kernel.timers.earliest_ns(Timeline::Monotonic);
        let timer = timer.map(|at_ns| u64::try_from(at_ns).unwrap_or(0));
        let timerfd = self.kernel.objects.timers.next_ns();
        [self.kernel.sched.next_deadline_ns(), timer, timerfd]
            .into_iter()
            .flatten()
            .min()
    }

    /// The time at which the engine must kick the running thread, guest monotonic nanoseconds.
    ///
    /// It is the end of the thread's slice if others wait for the vCPU or for host descriptors, or the
    /// earliest deadline or timer.
    #[must_use]
    pub fn kick_ns(&self) -> Option<u64> {
        let others = self.kernel.sched.has_ready() || self.kernel.sched.waits_for_host();
        let slice = others.then(|| {
            // A slice that has ended is followed by another: descriptors are looked at once a slice.
            let now = clock::monotonic_ns(&self.host);
            if self.cpus[0].slice_end_ns > now {
                self.cpus[0].slice_end_ns
            } else {
                now.saturating_add(SLICE_NS)
            }
        });
        let cpu = self.cpus[0]
            .current
            .and_then(|tid| self.kernel.cpu_until_expiry_ns(tid))
            .map(|left_ns| clock::monotonic_ns(&self.host).saturating_add(left_ns));
        [self.earliest_ns(), slice, cpu].into_iter().flatten().min()
    }

    /// Host descriptors that parked threads wait for, with their poll(2) events.
    #[must_use]
    pub fn host_waits(&self) -> Vec<(HostId, i16)> {
        let mut waits: Vec<_> = self.kernel.sched.host_sources().into_iter().collect();
        if let Some(console) = &self.host.console {
            waits.extend(console.waits(&self.kernel).into_iter().flatten());
        }
        waits
    }

    /// The console of a program on the caller's terminal, with what it works on.
    pub fn console(&mut self) -> Pump<'_> {
        Pump {
            kernel: &mut self.kernel,
            memory: &mut self.machine.memory,
            host: &mut self.host,
        }
    }

    /// True for a program on the caller's terminal, which a pseudo-terminal stands for.
    #[must_use]
    pub fn has_console(&self) -> bool {
        self.host.console.is_some()
    }

    /// True if the program has written to the caller's terminal what is not shown yet.
    fn has_output(&self) -> bool {
        let console = self.host.console.as_ref();
        console.is_some_and(|console| console.has_news(&self.kernel))
    }

    /// A host descriptor has become ready: calls that wait for it are made again.
    pub fn host_ready(&mut self, id: HostId) {
        if self
            .host
            .console
            .as_ref()
            .is_some_and(|console| console.has(id))
        {
            let now_ns = clock::monotonic_ns(&self.host);
            self.console().ready(now_ns);
            return;
        }
        self.kernel
            .sched
            .wake_source(crate::outcome::Source::Host(id, 0));
    }

    /// Asks the host for events of its sockets.
    pub fn network_ready(&mut self) {
        outside::look(&mut self.cx(Tid::FIRST));
    }

    /// Moves what the program has sent to the host, as far as it takes it at once. True if something is left.
    pub fn drain_network(&mut self) -> bool {
        let mut cx = self.cx(Tid::FIRST);
        cx.host.budget.begin();
        while outside::work(&mut cx) {
            if cx.host.budget.is_spent() {
                return true;
            }
        }
        outside::has_unsent(&cx)
    }

    /// Ends all connections that lead out of the sandbox.
    pub fn drop_connections(&mut self) {
        outside::drop_all(&mut self.cx(Tid::FIRST));
    }

    /// True if a parked thread waits for something of the host's.
    #[must_use]
    pub fn waits_for_host(&self) -> bool {
        self.kernel.sched.waits_for_host()
            || self.host.outside.is_open()
            || self.kernel.channel.asks.are_awaited()
    }

    /// True if the thread on the vCPU must leave the guest before its next instruction.
    ///
    /// The reason is a signal, something that must be flushed or added to the VM, or another thread that
    /// comes first. [`Personality::kick_ns`] tells if it must leave earlier than a kick is set for.
    #[must_use]
    pub fn must_leave(&self, tid: Tid) -> bool {
        let kernel = &self.kernel;
        kernel.end.is_some()
            || kernel.sched.yielding != Yield::No
            || !kernel.doomed.is_empty()
            || kernel.objects.sockets.has_work()
            || self.cpus[0].current != Some(tid)
            || self.is_wanted(tid)
            || self.has_output()
            || self.host.captured.is_due()
            || self.machine.memory.has_new_slots()
            || self.has_news()
    }

    /// True if a thread may not go on: a signal is for it, or translations of its address space are to be
    /// flushed first.
    fn is_wanted(&self, tid: Tid) -> bool {
        let kernel = &self.kernel;
        let thread = kernel.threads.get(&tid);
        let process = thread.and_then(|thread| kernel.processes.get(&thread.pid));
        let (Some(thread), Some(process)) = (thread, process) else {
            return true;
        };
        let tables = self.machine.spaces.get(process.mm);
        kernel.has_signal_of(thread, process)
            || tables.is_none_or(|tables| !tables.pending().is_none())
    }

    pub(crate) fn leave(&mut self, tid: Tid) {
        if self.cpus[0].current == Some(tid) {
            self.cpus[0].current = None;
        }
    }

    /// Brings the thread's extended state out of the vCPU.
    pub(crate) fn save_xstate(&mut self, tid: Tid, cpu: &mut dyn Cpu) {
        if self.cpus[0].live != Some(tid) {
            return;
        }
        self.cpus[0].live = None;
        if let Some(thread) = self.kernel.threads.get_mut(&tid)
            && thread.xstate == XState::Live
        {
            thread.xstate = XState::Saved(cpu.save_xstate());
        }
    }

    /// The thread has been given another extended state than the one in the vCPU, if any.
    pub(crate) fn give_up_live(&mut self, tid: Tid) {
        if self.cpus[0].live == Some(tid) {
            self.cpus[0].live = None;
        }
    }

    /// Puts the thread's extended state into the vCPU, saving whose is there.
    fn load_xstate(&mut self, tid: Tid, cpu: &mut dyn Cpu) {
        if self.cpus[0].live == Some(tid) {
            let live = self
                .kernel
                .threads
                .get(&tid)
                .is_some_and(|thread| thread.xstate == XState::Live);
            if live {
                return;
            }
            // A handler has given the thread another state (rt_sigreturn, execve).
            self.cpus[0].live = None;
        }
        if let Some(owner) = self.cpus[0].live {
            self.save_xstate(owner, cpu);
        }
        if let Some(thread) = self.kernel.threads.get_mut(&tid) {
            match core::mem::replace(&mut thread.xstate, XState::Live) {
                XState::Saved(image) => cpu.load_xstate(Some(&image)),
                XState::Initial | XState::Live => cpu.load_xstate(None),
            }
            self.cpus[0].live = Some(tid);
        }
    }

    fn deliver_one(&mut self, tid: Tid, cpu: &mut dyn Cpu) {
        let now_ns = clock::monotonic_ns(&self.host);
        let Some(info) = self.kernel.take_signal(tid, now_ns) else {
            return;
        };
        self.save_xstate(tid, cpu);
        self.trace_signal(tid, &info);
        match frame::deliver(&mut self.cx(tid), &info) {
            Delivered::Continue => {}
            Delivered::Killed => self.leave(tid),
            Delivered::Stopped => {
                self.leave(tid);
                self.kernel.sched.stopped.push_back(tid);
            }
        }
    }
}
