//! RLIMIT_CPU: a timer on the CPU clock of its process.

use kvmlet_abi::Errno;

use crate::clock::NSEC_PER_SEC;
use crate::kernel::{Kernel, Pid};
use crate::rlimit::{INFINITY, Resource, Rlimit};
use crate::signal::{SI_KERNEL, SigInfo, signo};

impl Kernel {
    /// Sets a limit of a process.
    ///
    /// # Errors
    /// As [`Rlimits::set`]; `ESRCH` if the process is gone.
    pub fn set_rlimit(&mut self, pid: Pid, resource: Resource, new: Rlimit) -> Result<(), Errno> {
        let process = self.processes.get_mut(&pid).ok_or(Errno::ESRCH)?;
        process.rlimits.set(resource, new)?;
        if resource == Resource::Cpu {
            self.arm_cpu_limit(pid);
        }
        Ok(())
    }

    /// Keeps the next time that RLIMIT_CPU has something to do among the timers on the process's CPU clock.
    /// The running thread is then stopped at that time.
    pub(crate) fn arm_cpu_limit(&mut self, pid: Pid) {
        let limit = self.processes.get(&pid);
        let limit = limit.map(|process| process.rlimits.get(Resource::Cpu));
        let at_ns = limit.filter(|limit| limit.soft != INFINITY).map(|limit| {
            let ns = limit.soft.min(limit.hard).saturating_mul(NSEC_PER_SEC);
            i64::try_from(ns).unwrap_or(i64::MAX)
        });
        self.timers.set_cpu_limit(pid, at_ns);
    }

    /// RLIMIT_CPU is reached: SIGKILL at the hard limit, SIGXCPU at the soft one, which rises by a second
    /// then (check_process_timers in kernel/time/posix-cpu-timers.c).
    pub(crate) fn fire_cpu_limit(&mut self, pid: Pid) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return self.timers.set_cpu_limit(pid, None);
        };
        let used_ns = process.cpu_time_ns;
        let reached =
            |seconds: u64| seconds != INFINITY && used_ns >= seconds.saturating_mul(NSEC_PER_SEC);
        let limit = process.rlimits.get(Resource::Cpu);
        let signo = if reached(limit.hard) {
            signo::SIGKILL
        } else if reached(limit.soft) {
            let raised = Rlimit {
                soft: limit.soft.saturating_add(1),
                ..limit
            };
            process.rlimits.put(Resource::Cpu, raised);
            signo::SIGXCPU
        } else {
            return self.arm_cpu_limit(pid);
        };
        if signo == signo::SIGKILL {
            self.timers.set_cpu_limit(pid, None);
        } else {
            self.arm_cpu_limit(pid);
        }
        let info = SigInfo {
            signo,
            code: SI_KERNEL,
            ..SigInfo::default()
        };
        let _ = self.send_to_process(pid, info);
    }
}
