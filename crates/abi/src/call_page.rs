//! Calls without exits. The guest posts a system call through a page, and a host thread answers it there.
//! This module has the page and the states of such an exchange.
//!
//! # The page
//!
//! The stub writes the call's number and arguments, then a new ticket ([`POSTED`]). It spins until
//! [`ANSWERED`] holds that ticket, for a bounded time ([`SPIN_TICKS`]). It leaves the VM if the time
//! passes or the host's word is [`Verdict::Leave`]. The host writes the result, then the ticket. On
//! x86 stores of one CPU are seen in their order (SDM vol. 3A, 9.2.2). So a ticket is never seen before
//! what it stands for.
//!
//! On software KVM the page belongs to the program. Any of its threads may write anything there at any
//! time, not only the one that waits. So it is only a hint, and arguments in it are worth as
//! much as registers are. Whose call it is, is known to [`Exchange`], which the guest cannot reach.
//!
//! # The states
//!
//! | state | the vCPU's thread | the poller | next |
//! |---|---|---|---|
//! | [`Exchange::Away`] | has the guest's thread out of ring 3 | claims nothing | `enter`: Running |
//! | [`Exchange::Running`] | is inside KVM_RUN | may claim a ticket that it has not seen | `claim`: Claimed; `close`: Away |
//! | [`Exchange::Claimed`] | is inside KVM_RUN, or waits for the lock | makes the call | `answer`: Running; `leave`: Leaving |
//! | [`Exchange::Leaving`] | is about to leave KVM_RUN | claims nothing | `close`: Away |
//!
//! A lock that only the host has covers every transition and the reading of the ticket for it. Claimed
//! lasts only while the poller holds it: a vCPU's thread that wants its guest's thread back waits there. So a call is made by the
//! poller or by the thread of the vCPU, never by both: `close` says which.

/// Offset of the call number, in bytes like all offsets. The request is one cache line.
pub const NR: u64 = 0;
/// Offset of the six arguments.
pub const ARGS: u64 = 8;
/// Offset of the ticket that the guest has posted last, 32 bits.
pub const POSTED: u64 = 56;
/// Offset of the host's word: the ticket in its low 32 bits, the [`Verdict`] in the others.
pub const ANSWERED: u64 = 64;
/// Offset of the result, to be read once [`ANSWERED`] says [`Verdict::Answer`].
pub const ANSWER: u64 = 72;
/// Offset of the mode, 32 bits: 0 lets every call leave, anything else has them posted.
pub const MODE: u64 = 80;
/// Offset of the longest time to wait for an answer, in ticks of the TSC.
pub const SPIN_TICKS: u64 = 88;
/// Offset of the time at which the guest stops waiting, on its TSC: the stub's own.
pub const DEADLINE: u64 = 128;
/// Offset of the address that the call returns to. On software KVM a call by a `syscall` instruction has
/// one; 0 stands for a call that came by a jump.
pub const CAME_FROM: u64 = 136;
/// Offset of how many more calls the stub answers by itself before it posts one of those, 32 bits: the
/// stub's own, on software KVM.
pub const ASK: u64 = 144;
/// One in so many calls that the stub could answer is posted, so that the host sees where they come from.
pub const ASK_EVERY: u64 = 256;

/// A posted call's number. It only ever tells one post from the one before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ticket(pub u32);

/// The host's word on a posted call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The result is there.
    Answer,
    /// Leave the VM: the rest happens there.
    Leave,
}

/// The value of the host's word [`ANSWERED`].
#[must_use]
pub const fn answered_word(ticket: Ticket, verdict: Verdict) -> u64 {
    let high = match verdict {
        Verdict::Answer => 0,
        Verdict::Leave => 1 << 32,
    };
    ticket.0 as u64 | high
}

/// Whose a call is. See the table at the top.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Exchange {
    /// The guest is not running, or nobody polls.
    #[default]
    Away,
    /// The guest is running.
    Running {
        /// The newest ticket that has been looked at.
        seen: Ticket,
        /// Its result, if it has been answered since the guest was entered.
        answer: Option<u64>,
    },
    /// The poller makes this call.
    Claimed(Ticket),
    /// The guest has been told to leave.
    Leaving(Ticket, Left),
}

/// Progress of a call that makes the guest leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// Nothing has been done.
    Refused,
    /// It has been made; what comes of it is with whoever made it.
    Made,
}

/// State in which the vCPU's thread finds a call when its guest has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closed {
    /// No posted call concerns it, or nobody has looked at it: the exit means what it says.
    Unclaimed,
    /// The call has been looked at and left for here: the exit means what it says.
    Refused,
    /// The call that it left from has been answered: this is its result.
    Answered(u64),
    /// A call has been made and its outcome is still to be applied.
    Made,
    /// As `Made`, but the guest did not wait for it: it did not post by the stub. The result is
    /// nobody's; what else the outcome asks for is still to be done.
    Stray,
}

impl Exchange {
    /// The vCPU's thread enters the guest; `posted` is what the page says now, and is not new.
    pub const fn enter(&mut self, posted: Ticket) {
        *self = Self::Running {
            seen: posted,
            answer: None,
        };
    }

    /// The page says `posted` now, under the lock: whether the poller has to make that call. A ticket that
    /// was read before the lock was taken may be that of a call which has left the VM since.
    #[must_use]
    pub const fn claim(&mut self, posted: Ticket) -> bool {
        match *self {
            Self::Running { seen, .. } if seen.0 != posted.0 => {
                *self = Self::Claimed(posted);
                true
            }
            _ => false,
        }
    }

    /// The claimed call has this result, which the page is about to show. Returns the host's word.
    pub const fn answer(&mut self, result: u64) -> u64 {
        match *self {
            Self::Claimed(seen) => {
                *self = Self::Running {
                    seen,
                    answer: Some(result),
                };
                answered_word(seen, Verdict::Answer)
            }
            other => other.word(),
        }
    }

    /// The claimed call makes the guest leave. Returns the host's word.
    pub const fn leave(&mut self, left: Left) -> u64 {
        if let Self::Claimed(ticket) = *self {
            *self = Self::Leaving(ticket, left);
        }
        self.word()
    }

    const fn word(self) -> u64 {
        match self {
            Self::Running { seen, .. } => answered_word(seen, Verdict::Answer),
            Self::Claimed(ticket) | Self::Leaving(ticket, _) => {
                answered_word(ticket, Verdict::Leave)
            }
            Self::Away => 0,
        }
    }

    /// The guest has left. `waiting` is the ticket that its thread waited for, if it stood in that
    /// part of the stub. Elsewhere it has taken every answer that it was given.
    pub fn close(&mut self, waiting: Option<Ticket>) -> Closed {
        match core::mem::take(self) {
            Self::Running {
                seen,
                answer: Some(result),
            } if waiting == Some(seen) => Closed::Answered(result),
            Self::Leaving(ticket, Left::Made) if waiting == Some(ticket) => Closed::Made,
            Self::Leaving(_, Left::Made) => Closed::Stray,
            Self::Leaving(_, Left::Refused) => Closed::Refused,
            Self::Away | Self::Running { .. } | Self::Claimed(_) => Closed::Unclaimed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(seen: u32) -> Exchange {
        let mut exchange = Exchange::default();
        exchange.enter(Ticket(seen));
        exchange
    }

    #[test]
    fn a_ticket_is_claimed_once() {
        let mut exchange = running(7);
        assert!(!exchange.claim(Ticket(7)), "posted before the entry");
        assert!(exchange.claim(Ticket(8)));
        assert!(!exchange.claim(Ticket(8)), "being made");
        assert_eq!(exchange.answer(42), 8);
        assert!(!exchange.claim(Ticket(8)), "answered");
        assert!(exchange.claim(Ticket(9)));
    }

    #[test]
    fn an_answer_is_for_the_ticket_that_is_waited_for() {
        for (waiting, found) in [
            (Some(Ticket(8)), Closed::Answered(42)),
            (Some(Ticket(9)), Closed::Unclaimed),
            (None, Closed::Unclaimed),
        ] {
            let mut exchange = running(7);
            assert!(exchange.claim(Ticket(8)));
            exchange.answer(42);
            assert_eq!(exchange.close(waiting), found);
            assert_eq!(exchange, Exchange::Away);
            assert!(!exchange.claim(Ticket(10)), "nothing is claimed while away");
        }
    }

    #[test]
    fn a_guest_that_must_leave_posts_nothing_more() {
        for (left, found) in [(Left::Refused, Closed::Refused), (Left::Made, Closed::Made)] {
            let mut exchange = running(0);
            assert!(exchange.claim(Ticket(1)));
            assert_eq!(exchange.leave(left), 1 | 1 << 32);
            assert!(!exchange.claim(Ticket(2)));
            assert_eq!(exchange.close(Some(Ticket(1))), found);
        }
    }

    #[test]
    fn what_is_made_for_nobody_is_nobodys() {
        for waiting in [None, Some(Ticket(2))] {
            let mut exchange = running(0);
            assert!(exchange.claim(Ticket(1)));
            exchange.leave(Left::Made);
            assert_eq!(exchange.close(waiting), Closed::Stray);
        }
    }

    #[test]
    fn answers_out_of_turn_change_nothing() {
        let mut exchange = running(3);
        let before = exchange;
        assert_eq!(exchange.answer(1), 3);
        assert_eq!(exchange.leave(Left::Made), 3);
        assert_eq!(exchange, before);
        assert_eq!(exchange.close(Some(Ticket(3))), Closed::Unclaimed);
    }

    #[test]
    fn the_request_is_one_cache_line() {
        assert_eq!(POSTED / 64, NR / 64);
        assert_eq!(ARGS + 6 * 8, POSTED);
        assert_ne!(ANSWERED / 64, POSTED / 64);
        assert_eq!(SPIN_TICKS / 64, ANSWERED / 64);
        assert_ne!(DEADLINE / 64, ANSWERED / 64);
        assert_eq!(CAME_FROM / 64, DEADLINE / 64);
        assert_eq!(ASK / 64, DEADLINE / 64);
    }
}
