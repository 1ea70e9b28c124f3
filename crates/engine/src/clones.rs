//! Forks of a server that differ: the random generators that a program keeps in its memory are seeded anew in each.
//!
//! An interpreter of Python is told once, before it is frozen, to do so as soon as it goes on (Py_AddPendingCall).
//! In each fork that is before it sees a connection. It is told by calls of its own functions, in all of the program's
//! processes. In other programs that have OpenSSL each fork calls its RAND_poll before its first connection.
//!
//! Generators that look out for a fork have a function registered for it (pthread_atfork(3)), as those of Rust's crate
//! rand 0.8 have. In programs that use such functions each fork calls the C library's fork() before its first
//! connection. It makes no child, but runs what is registered for the parent.
//!
//! A program that has other names for them, or whose main thread is not in a system call, stays as it is.

use std::time::{Duration, Instant};

use kvmlet_abi::Gva;
use kvmlet_linux::{CallArg, CallError, Pid, Returns};

use crate::EngineError;
use crate::run::{Limits, Nobody, Until};
use crate::sandbox::Sandbox;
use crate::time::now_ns;

/// The time on a CPU that one function may take. It is quick, or something is wrong with it.
const CPU_MAX: Duration = Duration::from_secs(1);
/// The time that one may sleep: it waits for nobody.
const IDLE_MAX: Duration = Duration::from_millis(500);
/// The time that all calls before a freeze may take together, on a machine that is busy.
const TIME_MAX: Duration = Duration::from_secs(20);
/// The time that a fork's calls may take together.
const FORK_MAX: Duration = Duration::from_secs(10);
/// Moments that a thread has to go back to its system call, and how long each is.
const TURNS_MAX: u32 = 20;
const TURN: Duration = Duration::from_millis(10);
/// More processes than a server has.
const PROCESSES_MAX: usize = 64;

/// The module that has the function.
const MODULE: &str = include_str!("../../../python/kvmlet/guest/python/kvmlet_reseed.py");
/// The text that each fork runs first. It says nothing and raises nothing.
const AGAIN: &[u8] = b"__import__('sys').modules['kvmlet_reseed'].reseed_quietly()";

/// Registers functions for a fork, in glibc and in others.
const REGISTERS: [&str; 2] = ["__register_atfork", "pthread_atfork"];

/// A function that seeds generators anew, and the process that has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reseeding {
    pid: Pid,
    function: Gva,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// It returns 1.
    Poll,
    /// It is fork(), whose result does not matter.
    Fork,
}

/// The way that a function is called.
enum How<'a> {
    With(&'a [CallArg]),
    /// It gets no child.
    Childless,
}

/// Addresses of functions of an interpreter.
struct Interpreter {
    pid: Pid,
    ensure: Gva,
    release: Gva,
    run: Gva,
    add_pending: Gva,
    duplicate: Gva,
}

/// A call of an interpreter's that is to be pending when it is frozen.
struct PendingCall {
    pid: Pid,
    add_pending: Gva,
    args: [CallArg; 2],
}

/// The text that makes the module. Both texts are ASCII: escapes of Rust are those of Python.
fn definition() -> Vec<u8> {
    let text = format!(
        "import sys, types\nmodule = types.ModuleType('kvmlet_reseed')\nexec({MODULE:?}, module.__dict__)\n\
         sys.modules['kvmlet_reseed'] = module\nmodule.make_ready()"
    );
    format!("__import__('builtins').exec({text:?}, {{}})").into_bytes()
}

impl Sandbox {
    /// Has forks of a server that waits for connections differ from each other. No code of its own runs, but where a
    /// timer is due.
    ///
    /// # Errors
    /// [`EngineError::Unseeded`] for functions that do not return, or threads that never rest.
    pub(crate) fn make_clones_differ(&mut self) -> Result<(), EngineError> {
        let deadline = Instant::now() + TIME_MAX;
        let processes = self.personality.kernel.processes.keys();
        let processes: Vec<Pid> = processes.copied().take(PROCESSES_MAX).collect();
        let mut told = Vec::new();
        for pid in processes {
            if let Some(interpreter) = self.interpreter(pid, deadline) {
                told.extend(self.tell(&interpreter, deadline)?);
            } else {
                for each in self.seeders(pid, deadline) {
                    // Once ahead: what is made at the first call is made once, for all forks.
                    let done = self.seed(each, deadline)?;
                    if matches!(
                        (each.kind, done),
                        (Kind::Poll, Some(1)) | (Kind::Fork, Some(_))
                    ) {
                        self.reseeding.push(each);
                    }
                }
            }
        }
        // One that a timer has woken meanwhile has made its pending call already.
        let mut waiting = told;
        while !waiting.is_empty() {
            if Instant::now() >= deadline {
                return Err(unwilling("its threads do not rest"));
            }
            let mut pending = Vec::new();
            for each in waiting {
                let told =
                    self.call_in(each.pid, each.add_pending, How::With(&each.args), deadline)?;
                pending.push((told.map(|_| self.cpu_time_ns(each.pid)), each));
            }
            waiting = pending
                .into_iter()
                .filter(|(had_ns, each)| Some(self.cpu_time_ns(each.pid)) != *had_ns)
                .map(|(_, each)| each)
                .collect();
        }
        Ok(())
    }

    /// The time that the threads of a process have had.
    fn cpu_time_ns(&self, pid: Pid) -> u64 {
        let kernel = &self.personality.kernel;
        let threads = kernel.threads.values().filter(|thread| thread.pid == pid);
        threads.fold(0, |sum: u64, thread| sum.saturating_add(thread.cpu_time_ns))
    }

    /// In a fork that has had no connection: seeds what its snapshot says. Its program waits as before.
    ///
    /// # Errors
    /// [`EngineError::Unseeded`] if a function does not return, [`EngineError::Ended`] if it ends the program.
    pub(crate) fn reseed(&mut self) -> Result<(), EngineError> {
        let generation = Some(self.generation());
        let Some(frozen) = self.origin.clone() else {
            return Ok(());
        };
        if frozen.reseeding.is_empty() || self.reseeded == generation {
            return Ok(());
        }
        let deadline = Instant::now() + FORK_MAX;
        for each in &frozen.reseeding {
            self.seed(*each, deadline)?;
        }
        // Only now: one that could not be seeded is not used by the next caller either.
        self.reseeded = generation;
        Ok(())
    }

    fn seed(&mut self, it: Reseeding, deadline: Instant) -> Result<Option<u64>, EngineError> {
        let how = match it.kind {
            Kind::Poll => How::With(&[]),
            Kind::Fork => How::Childless,
        };
        self.call_in(it.pid, it.function, how, deadline)
    }

    /// The functions that seed the generators of a process that is no interpreter of Python.
    fn seeders(&mut self, pid: Pid, deadline: Instant) -> Vec<Reseeding> {
        let poll = self.function(pid, "RAND_poll", deadline);
        let mut goes_on = || Instant::now() < deadline;
        let registers = REGISTERS.iter().any(|name| {
            let found = self.personality.is_imported_in(pid, name, &mut goes_on);
            found.unwrap_or(false)
        });
        let fork = match registers {
            true => self.function(pid, "fork", deadline),
            false => None,
        };
        [(poll, Kind::Poll), (fork, Kind::Fork)]
            .into_iter()
            .filter_map(|(function, kind)| {
                let function = function?;
                Some(Reseeding {
                    pid,
                    function,
                    kind,
                })
            })
            .collect()
    }

    fn function(&mut self, pid: Pid, name: &str, deadline: Instant) -> Option<Gva> {
        let mut goes_on = || Instant::now() < deadline;
        self.personality.symbol_in(pid, name, &mut goes_on).ok()
    }

    /// The interpreter of Python that a process is, if it is one.
    fn interpreter(&mut self, pid: Pid, deadline: Instant) -> Option<Interpreter> {
        let mut find = |name: &str| self.function(pid, name, deadline);
        Some(Interpreter {
            pid,
            // One that is no interpreter is known by this.
            add_pending: find("Py_AddPendingCall")?,
            ensure: find("PyGILState_Ensure")?,
            release: find("PyGILState_Release")?,
            run: find("PyRun_SimpleString")?,
            duplicate: find("strdup")?,
        })
    }

    /// Makes the module; the pending call that each fork is to make, if the interpreter could be told.
    fn tell(
        &mut self,
        it: &Interpreter,
        deadline: Instant,
    ) -> Result<Option<PendingCall>, EngineError> {
        let text = |bytes: &[u8]| CallArg::Bytes(bytes.into());
        let gil = self.call_in(it.pid, it.ensure, How::With(&[]), deadline)?;
        let Some(gil) = gil else {
            return Ok(None); // its main thread is not in a system call
        };
        let definition = [text(&definition())];
        self.call_in(it.pid, it.run, How::With(&definition), deadline)?;
        self.call_in(
            it.pid,
            it.release,
            How::With(&[CallArg::Int(gil)]),
            deadline,
        )?;
        let again = How::With(&[text(AGAIN)]);
        let again = self.call_in(it.pid, it.duplicate, again, deadline)?;
        let again = again.filter(|address| *address != 0);
        Ok(again.map(|again| PendingCall {
            pid: it.pid,
            add_pending: it.add_pending,
            args: [CallArg::Int(it.run.0), CallArg::Int(again)],
        }))
    }

    /// Lets the program run until it can be given a function, or for a moment.
    fn take_turn(&mut self, pid: Pid) -> Result<(), EngineError> {
        match self.step(Until::Callable(pid), Some(TURN), &mut Nobody) {
            Ok(()) | Err(EngineError::TimedOut | EngineError::NotReady) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The function's result as it is in rax; None if the process has no thread to call it on.
    fn call_in(
        &mut self,
        pid: Pid,
        function: Gva,
        how: How<'_>,
        deadline: Instant,
    ) -> Result<Option<u64>, EngineError> {
        let mut turns = 0;
        loop {
            let begun = self.guarded(|sandbox| {
                let (personality, cpu) = (&mut sandbox.personality, &mut sandbox.guest.vcpu);
                Ok(match how {
                    How::With(args) => {
                        personality.begin_call_in(pid, function, args, Returns::Integer, cpu)
                    }
                    How::Childless => personality.begin_fork_handlers_in(pid, function, cpu),
                })
            })?;
            match begun {
                Ok(()) => break,
                // A timer has woken the thread: it goes back to waiting.
                Err(CallError::NotReady) if turns < TURNS_MAX => self.take_turn(pid)?,
                Err(CallError::NotReady) => return Ok(None),
                Err(error) => return Err(unwilling(&error.to_string())),
            }
            turns += 1;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let limits = Limits {
            deadline_ns: Some(
                now_ns().saturating_add(left.as_nanos().try_into().unwrap_or(u64::MAX)),
            ),
            cpu_time: Some(CPU_MAX),
            idle: Some(IDLE_MAX),
        };
        self.step_within(Until::Return, limits, &mut Nobody)
            .map_err(|error| match error {
                EngineError::TimedOut | EngineError::Silent => {
                    unwilling("a function of it does not return")
                }
                other => other,
            })?;
        let returned = self.personality.take_return();
        let returned = returned.ok_or_else(|| unwilling("the thread of a function has ended"))?;
        Ok(Some(returned.rax))
    }
}

fn unwilling(why: &str) -> EngineError {
    EngineError::Unseeded(why.to_owned())
}
