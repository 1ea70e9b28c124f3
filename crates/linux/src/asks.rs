//! Questions of the program to others on its host, who answer them outside ([`crate::syscalls::ask`]).
//!
//! A question has a ticket. The program asks for its answer by that, and may wait for several at once.

use std::sync::Arc;

use imbl::{OrdMap, Vector};
use kvmlet_abi::Errno;

/// Questions that are open at most: asked, and the answer not taken.
pub const OPEN_MAX: usize = 64;
/// Bytes of a name at most.
pub const NAME_MAX: usize = 64;

/// An answer, or the reason why there is none.
pub type Answer = Result<Arc<[u8]>, Errno>;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Ask {
    /// The memory that the program is charged for it: its own bytes, then those of the answer.
    charged_bytes: u64,
    answer: Option<Answer>,
    /// The program has given the ticket up.
    is_dropped: bool,
}

/// A question that the host has not seen yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// The number that its answer is asked for by.
    pub ticket: u64,
    /// The place of who is asked among the names.
    pub to: usize,
    /// The question itself.
    pub bytes: Arc<[u8]>,
}

/// The questions of one program.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Asks {
    /// Those who can be asked.
    pub names: Arc<[Box<str>]>,
    last_ticket: u64,
    open: OrdMap<u64, Ask>,
    /// Of those without an answer.
    awaited: usize,
    new: Vector<Question>,
}

impl Asks {
    /// The place of a name.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        self.names.iter().position(|known| known.as_bytes() == name)
    }

    /// True if one more may be asked.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.open.len() < OPEN_MAX
    }

    /// Asks; `bytes` have been charged to the program. The ticket.
    pub fn ask(&mut self, to: usize, bytes: Arc<[u8]>) -> u64 {
        self.last_ticket = self.last_ticket.saturating_add(1);
        let ticket = self.last_ticket;
        let ask = Ask {
            charged_bytes: bytes.len() as u64,
            answer: None,
            is_dropped: false,
        };
        self.open.insert(ticket, ask);
        self.awaited = self.awaited.saturating_add(1);
        self.new.push_back(Question { ticket, to, bytes });
        ticket
    }

    /// Takes a question that the host has not seen yet.
    pub fn take_new(&mut self) -> Option<Question> {
        self.new.pop_front()
    }

    /// True if the host has a question to see.
    #[must_use]
    pub fn has_new(&self) -> bool {
        !self.new.is_empty()
    }

    /// The questions that the host has seen and not answered.
    #[must_use]
    pub fn seen(&self) -> Vec<u64> {
        let is_new = |ticket: u64| self.new.iter().any(|question| question.ticket == ticket);
        let open = self.open.iter().filter(|(_, ask)| ask.answer.is_none());
        open.map(|(ticket, _)| *ticket)
            .filter(|ticket| !is_new(*ticket))
            .collect()
    }

    /// True if an answer is to come.
    #[must_use]
    pub fn are_awaited(&self) -> bool {
        self.awaited > 0
    }

    /// The answer to a question of the program's, `None` if there is none yet.
    ///
    /// # Errors
    /// `EINVAL` for a number that is no ticket.
    pub fn answer_of(&self, ticket: u64) -> Result<Option<&Answer>, Errno> {
        let ask = self.open.get(&ticket).filter(|ask| !ask.is_dropped);
        Ok(ask.ok_or(Errno::EINVAL)?.answer.as_ref())
    }

    /// The bytes that the program is charged for a question whose answer is to come: not any more from here on.
    pub fn uncharge_question(&mut self, ticket: u64) -> u64 {
        let ask = self.open.get_mut(&ticket);
        let ask = ask.filter(|ask| ask.answer.is_none());
        ask.map_or(0, |ask| core::mem::take(&mut ask.charged_bytes))
    }

    /// True if the program still wants the answer to this question, and has none.
    #[must_use]
    pub fn is_wanted(&self, ticket: u64) -> bool {
        let ask = self.open.get(&ticket);
        ask.is_some_and(|ask| ask.answer.is_none() && !ask.is_dropped)
    }

    /// Keeps an answer, for whose bytes the program is charged `charged_bytes`. One that nobody wants ends its
    /// question.
    pub fn answer(&mut self, ticket: u64, answer: Answer, charged_bytes: u64) {
        let Some(ask) = self.open.get_mut(&ticket) else {
            return;
        };
        if ask.answer.is_some() {
            return;
        }
        self.awaited = self.awaited.saturating_sub(1);
        if ask.is_dropped {
            self.open.remove(&ticket);
        } else {
            ask.answer = Some(answer);
            ask.charged_bytes = charged_bytes;
        }
    }

    /// The program wants nothing more of a question: the bytes that it is not charged for any more. One without an
    /// answer stays open until that comes.
    pub fn end(&mut self, ticket: u64) -> u64 {
        let Some(ask) = self.open.get_mut(&ticket) else {
            return 0;
        };
        if ask.answer.is_none() {
            ask.is_dropped = true;
            return 0;
        }
        let charged_bytes = ask.charged_bytes;
        self.open.remove(&ticket);
        charged_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Arc<[u8]> {
        Arc::from(text.as_bytes())
    }

    #[test]
    fn an_answer_comes_by_its_ticket() {
        let mut asks = Asks {
            names: ["cart", "count"].map(Box::<str>::from).into(),
            ..Asks::default()
        };
        assert_eq!((asks.find(b"count"), asks.find(b"other")), (Some(1), None));
        let first = asks.ask(0, text("one"));
        let second = asks.ask(1, text("second"));
        assert!(asks.are_awaited() && asks.has_new());
        let seen: Vec<_> = std::iter::from_fn(|| asks.take_new()).collect();
        assert_eq!(seen.iter().map(|one| one.to).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(asks.answer_of(second), Ok(None));
        assert_eq!(asks.uncharge_question(second), 6);
        asks.answer(second, Ok(text("answer")), 6);
        // The first one counts.
        asks.answer(second, Err(Errno::EPIPE), 0);
        assert_eq!(asks.answer_of(second), Ok(Some(&Ok(text("answer")))));
        assert_eq!(asks.end(second), 6);
        assert_eq!(asks.answer_of(second), Err(Errno::EINVAL));
        asks.answer(first, Err(Errno::EPIPE), 0);
        assert_eq!(asks.answer_of(first), Ok(Some(&Err(Errno::EPIPE))));
        assert!(!asks.are_awaited());
        assert_eq!(asks.answer_of(77), Err(Errno::EINVAL));
    }

    #[test]
    fn those_that_the_host_has_seen() {
        let mut asks = Asks::default();
        let tickets = [text("a"), text("b"), text("c")].map(|text| asks.ask(0, text));
        assert!(asks.seen().is_empty());
        asks.take_new();
        asks.take_new();
        asks.answer(tickets[0], Ok(text("answer")), 0);
        assert_eq!(asks.seen(), [tickets[1]]);
    }

    #[test]
    fn a_question_that_is_given_up_is_open_until_it_is_answered() {
        let mut asks = Asks::default();
        for _ in 0..OPEN_MAX {
            let ticket = asks.ask(0, text("x"));
            assert_eq!(asks.end(ticket), 0);
            assert_eq!(asks.answer_of(ticket), Err(Errno::EINVAL));
        }
        assert!(!asks.has_room() && asks.are_awaited());
        assert!(!asks.is_wanted(1));
        asks.answer(1, Ok(text("late")), 0);
        assert!(asks.has_room());
        for ticket in 2..=OPEN_MAX as u64 {
            asks.answer(ticket, Err(Errno::EPIPE), 0);
        }
        assert!(!asks.are_awaited());
    }
}
