//! Questions of a program to storages: programs that are not reset, which the forks of a server share.
//!
//! A question leaves the sandbox when its program has asked and comes back as an answer, whatever thread that comes
//! from. Its bytes belong to the sandbox that asks: they are gone with its reset, and who is asked finds nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use kvmlet_abi::Errno;
use kvmlet_linux::Answer;

use crate::sandbox::Sandbox;

/// Those whom a program may ask.
pub trait Storages: Send + Sync + fmt::Debug {
    /// Their names, none of them twice.
    fn names(&self) -> Vec<String>;
    /// Takes a question for the one with this place among the names. It never waits.
    fn ask(&self, to: usize, question: Question);
}

/// The reason why a question has no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoAnswer {
    /// Too many wait already.
    Full,
    /// Who was asked has ended meanwhile.
    Ended,
    /// Who was asked goes on without an answer.
    Silent,
    /// It took too long.
    TimedOut,
}

impl NoAnswer {
    fn errno(self) -> Errno {
        match self {
            Self::Full => Errno::EBUSY,
            Self::Ended => Errno::EPIPE,
            Self::Silent => Errno::EPROTO,
            Self::TimedOut => Errno::ETIMEDOUT,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Ring = Arc<dyn Fn() + Send + Sync>;

/// A sandbox's questions that are under way.
#[derive(Default)]
struct Desk {
    papers: Mutex<Papers>,
    has_answers: AtomicBool,
    /// Has the thread that runs the sandbox look for answers.
    ring: Mutex<Option<Ring>>,
}

#[derive(Default)]
struct Papers {
    /// Numbers of the desk's are not used again: an answer that comes after a reset finds nothing.
    last: u64,
    /// The program's ticket and the bytes of each question.
    open: BTreeMap<u64, (u64, Arc<[u8]>)>,
    answers: Vec<(u64, Answer)>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Desk {
    fn begin(self: &Arc<Self>, ticket: u64, bytes: Arc<[u8]>) -> Question {
        let mut papers = lock(&self.papers);
        papers.last += 1;
        let number = papers.last;
        papers.open.insert(number, (ticket, bytes));
        Question {
            desk: Arc::downgrade(self),
            number,
        }
    }

    fn answer(&self, number: u64, answer: Answer) {
        let mut papers = lock(&self.papers);
        let Some((ticket, _)) = papers.open.remove(&number) else {
            return;
        };
        papers.answers.push((ticket, answer));
        self.has_answers.store(true, Ordering::Release);
        drop(papers);
        let ring = lock(&self.ring).clone();
        if let Some(ring) = ring {
            ring();
        }
    }

    fn take_answers(&self) -> Vec<(u64, Answer)> {
        let mut papers = lock(&self.papers);
        self.has_answers.store(false, Ordering::Release);
        std::mem::take(&mut papers.answers)
    }

    fn clear(&self) {
        let mut papers = lock(&self.papers);
        papers.open.clear();
        papers.answers.clear();
        self.has_answers.store(false, Ordering::Release);
    }
}

/// A question on its way. One that is dropped is answered with [`NoAnswer::Ended`].
#[derive(Debug)]
pub struct Question {
    desk: Weak<Desk>,
    number: u64,
}

impl Question {
    /// The question itself, `None` if nobody waits for its answer any more.
    #[must_use]
    pub fn bytes(&self) -> Option<Arc<[u8]>> {
        let desk = self.desk.upgrade()?;
        let papers = lock(&desk.papers);
        let (_, bytes) = papers.open.get(&self.number)?;
        Some(Arc::clone(bytes))
    }

    /// True if somebody waits for its answer.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        let desk = self.desk.upgrade();
        desk.is_some_and(|desk| lock(&desk.papers).open.contains_key(&self.number))
    }

    /// Answers it.
    pub fn answer(self, answer: Result<Arc<[u8]>, NoAnswer>) {
        self.settle(answer.map_err(NoAnswer::errno));
    }

    fn settle(&self, answer: Answer) {
        if let Some(desk) = self.desk.upgrade() {
            desk.answer(self.number, answer);
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // One that has been answered is not there any more.
        self.settle(Err(NoAnswer::Ended.errno()));
    }
}

/// The storages that a program may ask, and its questions.
#[derive(Debug)]
pub(crate) struct Asking {
    pub storages: Arc<dyn Storages>,
    desk: Arc<Desk>,
}

impl Asking {
    pub fn of(storages: Arc<dyn Storages>) -> Self {
        Self {
            storages,
            desk: Arc::default(),
        }
    }

    /// Says how the thread is called that runs the sandbox from here on.
    pub fn rings(&self, ring: impl Fn() + Send + Sync + 'static) {
        *lock(&self.desk.ring) = Some(Arc::new(ring));
    }

    /// Nobody waits for the answers any more.
    pub fn forget(&self) {
        self.desk.clear();
    }
}

impl Sandbox {
    /// Has the program, and each fork of it, ask these.
    pub fn let_ask(&mut self, storages: Arc<dyn Storages>) {
        self.personality.let_ask(storages.names());
        self.asking = Some(Asking::of(storages));
        self.ring_by_kicks();
    }

    /// An answer comes to the guest by a kick, while no exchange has a bell for it.
    pub(crate) fn ring_by_kicks(&self) {
        if let Some(asking) = &self.asking {
            let kicker = self.kicker();
            asking.rings(move || kicker.kick());
        }
    }

    /// Hands on what the program has asked, and gives it the answers that have come.
    pub(crate) fn exchange_questions(&mut self) {
        let Some(asking) = &self.asking else { return };
        while self.personality.has_question()
            && let Some(question) = self.personality.take_question()
        {
            let asked = asking.desk.begin(question.ticket, question.bytes);
            asking.storages.ask(question.to, asked);
        }
        if asking.desk.has_answers.load(Ordering::Acquire) {
            for (ticket, answer) in asking.desk.take_answers() {
                self.personality.answer(ticket, answer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_finds_its_question_and_rings() {
        let desk = Arc::new(Desk::default());
        let rings = Arc::new(AtomicBool::new(false));
        let rung = Arc::clone(&rings);
        *lock(&desk.ring) = Some(Arc::new(move || rung.store(true, Ordering::SeqCst)));
        let first = desk.begin(7, Arc::from(&b"one"[..]));
        let second = desk.begin(8, Arc::from(&b"two"[..]));
        assert_eq!(second.bytes().as_deref(), Some(&b"two"[..]));
        second.answer(Ok(Arc::from(&b"answer"[..])));
        assert!(rings.load(Ordering::SeqCst) && desk.has_answers.load(Ordering::SeqCst));
        drop(first);
        let answers = desk.take_answers();
        let ended = Err(Errno::EPIPE);
        assert_eq!(answers, [(8, Ok(Arc::from(&b"answer"[..]))), (7, ended)]);
        assert!(!desk.has_answers.load(Ordering::SeqCst));
    }

    #[test]
    fn a_question_whose_asker_is_gone_has_no_bytes_and_no_answer() {
        let desk = Arc::new(Desk::default());
        let question = desk.begin(1, Arc::from(&b"one"[..]));
        desk.clear();
        assert!(!question.is_wanted() && question.bytes().is_none());
        question.answer(Ok(Arc::from(&b"late"[..])));
        assert!(desk.take_answers().is_empty());
        let question = desk.begin(1, Arc::from(&b"two"[..]));
        drop(desk);
        assert!(!question.is_wanted());
        question.answer(Err(NoAnswer::Full));
    }
}
