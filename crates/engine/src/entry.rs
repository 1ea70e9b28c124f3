//! Entering the guest, and what a posted call has come to when it has left.

use kvmlet_abi::call_page::Closed;
use kvmlet_abi::{Trap, UserRegs};
use kvmlet_linux::{Made, Personality, SIGBUS, Tid};
use kvmlet_mem::MmId;

use crate::run::Drive;
use crate::sandbox::{Sandbox, StubConstants};
use crate::time::{host_time_ns, now_ns};
use crate::transport::{Busy, Link, Returned, Waited};
use crate::{EngineError, flush};

/// The state in which a thread has left the guest.
#[derive(Debug)]
pub(crate) struct Left {
    pub tid: Tid,
    pub regs: UserRegs,
    pub trap: Trap,
    pub posted: Posted,
    /// When it entered, on the host's CLOCK_MONOTONIC.
    pub before_ns: u64,
    /// When it left.
    pub after_ns: u64,
}

/// The outcome of a run of the guest, besides its trap.
#[derive(Debug)]
pub(crate) struct Posted {
    pub waited: Waited,
    /// Until when the thread has been charged for its CPU time.
    pub charged_ns: u64,
    closed: Closed,
    made: Option<Made>,
}

impl Sandbox {
    /// Runs a thread in ring 3 until it leaves.
    pub(crate) fn enter(&mut self, tid: Tid, drive: &mut Drive<'_>) -> Result<Left, EngineError> {
        let space = self.load_space(tid, drive)?;
        self.prepare_entry(space)?;
        let before_ns = now_ns();
        self.arm(drive, before_ns)?;
        let Some(mut regs) = self.personality.kernel.threads.get(&tid).map(|t| t.regs) else {
            return Err(EngineError::Internal(
                "the chosen thread is gone".to_owned(),
            ));
        };
        let kick_ns = drive.armed_ns.unwrap_or(0);
        let (trap, posted) = self.run_vcpu(tid, &mut regs, kick_ns, before_ns)?;
        Ok(Left {
            tid,
            regs,
            trap,
            posted,
            before_ns,
            after_ns: now_ns(),
        })
    }

    /// Has the vCPU enter the address space of a thread's process, and the stub answer for that thread.
    fn load_space(&mut self, tid: Tid, drive: &mut Drive<'_>) -> Result<MmId, EngineError> {
        let Personality {
            kernel, machine, ..
        } = &*self.personality;
        let thread = kernel.threads.get(&tid);
        let process = thread.and_then(|thread| kernel.processes.get(&thread.pid));
        let space = process.zip(thread).and_then(|(process, thread)| {
            let tables = machine.spaces.get(process.mm)?;
            let constants = StubConstants::of(thread, process);
            Some((process.mm, tables.root(), constants))
        });
        let Some((id, root, running)) = space else {
            return Err(EngineError::Internal(
                "the chosen thread has no address space".to_owned(),
            ));
        };
        self.guest.vcpu.load_space(id.0, root);
        if drive.running != Some(running) {
            self.write_constants(running)?;
            drive.running = Some(running);
        }
        Ok(id)
    }

    /// Makes true what must be so before ring 3 runs: slots known, stale translations gone, clock fresh.
    fn prepare_entry(&mut self, space: MmId) -> Result<(), EngineError> {
        let Personality { host, machine, .. } = &mut *self.personality;
        for slot in machine.memory.take_new_slots() {
            self.guest.vm.set_slot(slot)?;
        }
        if flush::discharge(&mut self.guest, machine, space)? {
            self.full_flushes = self.full_flushes.saturating_add(1);
        }
        let (memory, data) = (&mut machine.memory, self.setup.vdso.data);
        host.clock.update(&mut |offset, bytes| {
            // The page is the VM's own and always present: a failed write cannot happen.
            let _ = memory.write(data.wrapping_add(offset as u64), bytes);
        });
        Ok(())
    }

    /// Sets the kick for the earliest thing that must interrupt the guest. The timer is left alone
    /// while it fires early enough: an early kick costs little, a host call at every entry much.
    fn arm(&mut self, drive: &mut Drive<'_>, now_ns: u64) -> Result<(), EngineError> {
        let due_ns = drive.limit.due_ns().unwrap_or(u64::MAX);
        let mut wanted_ns = drive.tick_ns.min(due_ns);
        if let Some(kick_ns) = self.personality.kick_ns() {
            wanted_ns = wanted_ns.min(host_time_ns(&self.personality, kick_ns, now_ns));
        }
        let armed_ns = drive.armed_ns;
        if armed_ns.is_none_or(|armed_ns| armed_ns > wanted_ns || armed_ns <= now_ns) {
            self.guest.vcpu.arm(Some(wanted_ns))?;
            drive.armed_ns = Some(wanted_ns);
        }
        Ok(())
    }

    /// One KVM_RUN. Where a poller serves this sandbox, it answers the thread's calls meanwhile.
    fn run_vcpu(
        &mut self,
        tid: Tid,
        regs: &mut UserRegs,
        kick_ns: u64,
        now_ns: u64,
    ) -> Result<(Trap, Posted), EngineError> {
        let vcpu = &mut self.guest.vcpu;
        let link = match self.personality.host.report.trace {
            true => None,
            false => self
                .transport
                .link_for_entry(vcpu.call_page(), || vcpu.tsc_khz()),
        };
        let busy = Busy::enter();
        if let Some(link) = link {
            return self.run_served(&link, tid, regs, kick_ns, now_ns, busy);
        }
        let trap = vcpu.run(regs);
        let waited = match vcpu.waiting() {
            Some(_) => Waited::Unclaimed,
            None => Waited::No,
        };
        let posted = Posted {
            waited,
            charged_ns: now_ns,
            closed: Closed::Unclaimed,
            made: None,
        };
        Ok((trap, posted))
    }

    /// One KVM_RUN with the personality lent to a poller.
    fn run_served(
        &mut self,
        link: &Link,
        tid: Tid,
        regs: &mut UserRegs,
        kick_ns: u64,
        now_ns: u64,
        busy: Busy,
    ) -> Result<(Trap, Posted), EngineError> {
        let vcpu = &mut self.guest.vcpu;
        let Some(personality) = self.personality.lend() else {
            return Err(EngineError::Internal("the personality is lent".to_owned()));
        };
        link.lend(personality, tid, kick_ns, now_ns);
        let trap = vcpu.run(regs);
        drop(busy);
        let Returned {
            personality,
            charged_ns,
            closed,
            made,
            failed,
        } = link.take_back(vcpu.waiting())?;
        self.personality.give_back(personality);
        if let Some(error) = failed {
            return Err(error);
        }
        let waited = match (vcpu.waiting(), closed) {
            (None, _) => Waited::No,
            (Some(_), Closed::Unclaimed) => {
                link.note_stall();
                Waited::Unclaimed
            }
            (Some(_), Closed::Answered(_) | Closed::Made | Closed::Stray | Closed::Refused) => {
                Waited::Claimed
            }
        };
        let posted = Posted {
            waited,
            charged_ns,
            closed,
            made,
        };
        Ok((trap, posted))
    }

    /// Does what a posted call has come to. Returns the trap that is still to be handled. A guest that
    /// left from a call which has been made meanwhile has nothing else to say.
    pub(crate) fn settle_posted(&mut self, tid: Tid, trap: Trap, posted: Posted) -> Option<Trap> {
        match (posted.closed, posted.made) {
            // It was told to leave, and went where a slot is still missing: its own doing.
            (Closed::Made | Closed::Stray, _) if matches!(trap, Trap::Broken { .. }) => {
                self.is_suspect = true;
                self.personality.kernel.kill_all(SIGBUS);
                None
            }
            _ if matches!(trap, Trap::Broken { .. }) => Some(trap),
            (Closed::Answered(result), _) => {
                if let Some(thread) = self.personality.kernel.threads.get_mut(&tid) {
                    thread.regs.rax = result;
                }
                None
            }
            (Closed::Stray, Some(made)) if made.is_done() => Some(trap),
            (Closed::Made | Closed::Stray, Some(made)) => {
                self.personality.finish(tid, made);
                None
            }
            (Closed::Made | Closed::Stray, None) | (Closed::Unclaimed | Closed::Refused, _) => {
                Some(trap)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kvmlet_linux::Call;

    use super::*;
    use crate::{Calls, Program, Streams, Trace, Trees, policy_for};

    fn sandbox() -> Sandbox {
        let (policy, cwd) = policy_for(b"/", Trees::default()).unwrap();
        let program = Program {
            argv: vec![b"/bin/true".to_vec()],
            env: Vec::new(),
            policy,
            access: Default::default(),
            cwd,
            streams: Streams::Capture {
                input: Vec::new(),
                output_limit_bytes: 1 << 20,
            },
            timeout: None,
            cpu_time: None,
            memory_bytes: 64 << 20,
            disk: None,
            processes_max: 256,
            files_max: kvmlet_linux::FILES_MOST,
            trace: Trace::Off,
            calls: Calls::Exit,
        };
        Sandbox::start(&program).unwrap()
    }

    /// The trap that is left of a run of the first thread, and its `rax`, which was 77.
    fn settled(closed: Closed) -> (Option<Trap>, u64) {
        const GETPGRP: u64 = 111;
        let mut sandbox = sandbox();
        let tid = Tid::FIRST;
        let call = Call {
            nr: GETPGRP,
            args: [0; 6],
        };
        let made = sandbox.personality.make(tid, call, None, 0, |_| false);
        let threads = &mut sandbox.personality.kernel.threads;
        threads.get_mut(&tid).unwrap().regs.rax = 77;
        let posted = Posted {
            waited: Waited::Claimed,
            charged_ns: 0,
            closed,
            made: Some(made.unwrap_err()),
        };
        let trap = sandbox.settle_posted(tid, Trap::Interrupted, posted);
        (
            trap,
            sandbox
                .personality
                .kernel
                .threads
                .get(&tid)
                .unwrap()
                .regs
                .rax,
        )
    }

    #[test]
    fn a_result_is_for_a_thread_that_waits_for_it() {
        let (trap, rax) = settled(Closed::Made);
        assert_eq!(trap, None);
        assert_ne!(rax, 77);
        assert_eq!(settled(Closed::Stray), (Some(Trap::Interrupted), 77));
    }
}
