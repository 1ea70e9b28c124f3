//! A storage: a program that is never reset and answers questions of others, by messages.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::asking::{NoAnswer, Question};
use crate::outcome::Ending;
use crate::run::Until;
use crate::sandbox::Sandbox;
use crate::serving::{Bell, Listener, Waker};
use crate::{EngineError, Owner, Program};

/// The time after which an idle storage looks for questions without being told of any.
const IDLE: Duration = Duration::from_secs(1);
/// The time after which one that runs on is looked at, for what it was denied.
const LOOK: Duration = Duration::from_secs(1);

/// The questions that a storage is asked, and what comes of them.
pub trait Questions {
    /// The next one.
    fn next(&mut self) -> Option<Question>;
    /// One of them has come to its end, this long after the storage was given it. The storage uses so much memory.
    fn done(&mut self, how: Result<(), NoAnswer>, ran: Duration, used_bytes: u64);
    /// The storage has sent a message that answers nothing.
    fn stray(&mut self);
}

/// The reason why a storage does not answer any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// [`Owner::stop_requested`]
    Stopped,
    /// A question has taken too long. The storage is of no use: nobody knows what else it would hold up.
    TimedOut,
    /// The program has ended.
    Ended(Ending),
}

/// A question that the storage has been given.
struct Open {
    number: u64,
    question: Question,
    since: Instant,
}

/// A program that answers questions. It lives on one thread at a time, which runs it.
#[derive(Debug)]
pub struct Storage {
    sandbox: Sandbox,
    bell: Arc<Bell>,
    /// Questions that it is given at one time.
    concurrent: usize,
    timeout: Duration,
    last_number: u64,
}

impl Storage {
    /// Starts a program, and runs it until it waits for a message. It answers `concurrent` questions at one time, each
    /// within `timeout`.
    ///
    /// # Errors
    /// As [`Sandbox::start`] and [`Sandbox::until_ready`].
    pub fn start(
        program: &Program,
        concurrent: usize,
        timeout: Duration,
        boot_timeout: Duration,
        owner: &mut dyn Owner,
    ) -> Result<Self, EngineError> {
        let mut sandbox = Sandbox::start(program)?;
        sandbox.until_ready(Some(boot_timeout), owner)?;
        Ok(Self {
            bell: Bell::new(sandbox.kicker()),
            sandbox,
            concurrent,
            timeout,
            last_number: 0,
        })
    }

    /// Has it look for questions at once, from any thread.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker::of(&self.bell)
    }

    /// The sandbox: for what it was denied.
    pub fn sandbox(&mut self) -> &mut Sandbox {
        &mut self.sandbox
    }

    /// Standard output and error of the program since this was last called.
    pub fn take_output(&mut self) -> (Vec<u8>, Vec<u8>) {
        self.sandbox.take_output()
    }

    /// Answers questions on this thread until one of [`Left`]. Those that it has been given then have no answer.
    /// [`Owner::denied`] is told what the policy refuses meanwhile.
    ///
    /// # Errors
    /// Faults of kvmlet and the host only.
    pub fn answer(
        &mut self,
        questions: &mut dyn Questions,
        owner: &mut dyn Owner,
    ) -> Result<Left, EngineError> {
        let mut open = VecDeque::new();
        let left = self.answer_until(&mut open, questions, owner);
        let why = match left {
            Ok(Left::TimedOut) => NoAnswer::TimedOut,
            _ => NoAnswer::Ended,
        };
        for one in open.drain(..) {
            // The others have been kept from their answers by the one that took too long.
            let why = match one.since.elapsed() < self.timeout {
                true => NoAnswer::Ended,
                false => why,
            };
            self.end(one, Err(why), questions);
        }
        left
    }

    fn answer_until(
        &mut self,
        open: &mut VecDeque<Open>,
        questions: &mut dyn Questions,
        owner: &mut dyn Owner,
    ) -> Result<Left, EngineError> {
        loop {
            // What rings from now on is seen by the step.
            self.bell.answer();
            self.hand_out(open, questions)?;
            if let Some(ending) = self.sandbox.ending() {
                return Ok(Left::Ended(ending));
            }
            if owner.stop_requested() {
                return Ok(Left::Stopped);
            }
            // They were given in this order.
            let oldest = open.front().map(|one| one.since.elapsed());
            let left = oldest.map(|age| self.timeout.saturating_sub(age));
            if left == Some(Duration::ZERO) {
                return Ok(Left::TimedOut);
            }
            match self.step(left, owner) {
                Ok(()) | Err(EngineError::Ended(_) | EngineError::TimedOut) => {}
                Err(EngineError::Interrupted) => {}
                // All of it waits.
                Err(EngineError::Silent) if open.is_empty() => self.bell.wait(IDLE),
                Err(EngineError::Silent) => {
                    for one in open.drain(..) {
                        self.end(one, Err(NoAnswer::Silent), questions);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn step(&mut self, left: Option<Duration>, owner: &mut dyn Owner) -> Result<(), EngineError> {
        let bell = Arc::clone(&self.bell);
        let mut listener = Listener::of(&bell, owner);
        let left = left.map_or(LOOK, |left| left.min(LOOK));
        let done = bell.run(|| self.sandbox.step(Until::Said, Some(left), &mut listener));
        let (denials, _) = self.sandbox.take_report();
        denials.iter().for_each(|one| owner.denied(one));
        done
    }

    fn end(&self, one: Open, answer: Result<Arc<[u8]>, NoAnswer>, questions: &mut dyn Questions) {
        let how = answer.as_ref().map(|_| ()).map_err(|why| *why);
        let used_bytes = self.sandbox.personality.machine.memory.used_bytes();
        questions.done(how, one.since.elapsed(), used_bytes);
        one.question.answer(answer);
    }

    /// Takes answers, and gives the storage as many questions as it may have.
    fn hand_out(
        &mut self,
        open: &mut VecDeque<Open>,
        questions: &mut dyn Questions,
    ) -> Result<(), EngineError> {
        let mut take = |number| {
            let place = open.iter().position(|one| one.number == number)?;
            open.remove(place)
        };
        while let Some((number, bytes)) = self
            .sandbox
            .guarded(|sandbox| Ok(sandbox.personality.take_answer()))?
        {
            match take(number) {
                Some(one) => self.end(one, Ok(bytes), questions),
                None => questions.stray(),
            }
        }
        while let Some(number) = self
            .sandbox
            .guarded(|sandbox| Ok(sandbox.personality.take_unanswered()))?
        {
            if let Some(one) = take(number) {
                self.end(one, Err(NoAnswer::Silent), questions);
            }
        }
        while open.len() < self.concurrent
            && self.sandbox.ending().is_none()
            && let Some(question) = questions.next()
        {
            let Some(bytes) = question.bytes() else {
                continue;
            };
            self.last_number += 1;
            let number = self.last_number;
            let posted = self
                .sandbox
                .guarded(|sandbox| Ok(sandbox.personality.post_question(number, bytes)))?;
            let since = Instant::now();
            let one = Open {
                number,
                question,
                since,
            };
            match posted {
                Ok(()) => open.push_back(one),
                // It does not receive what it was given before.
                Err(_) => self.end(one, Err(NoAnswer::Full), questions),
            }
        }
        Ok(())
    }
}
