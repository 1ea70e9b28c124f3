//! The exchange of calls in any order of its transitions, with any tickets. A guest that lies in the call
//! page decides the order and the numbers. It never decides how often a call is made or what another
//! thread gets.
#![allow(clippy::unwrap_used, clippy::panic)] // a test

use kvmlet_abi::call_page::{Closed, Exchange, Left, Ticket, Verdict, answered_word};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Enter(u32),
    Claim(u32),
    Answer(u64),
    Leave(Left),
    Close(Option<u32>),
}

fn step() -> impl Strategy<Value = Step> {
    // Few tickets, so that they come again, and the ends of their range.
    let ticket = prop_oneof![0..4u32, Just(u32::MAX), any::<u32>()];
    let left = prop_oneof![Just(Left::Refused), Just(Left::Made)];
    prop_oneof![
        1 => ticket.clone().prop_map(Step::Enter),
        3 => ticket.clone().prop_map(Step::Claim),
        2 => any::<u64>().prop_map(Step::Answer),
        1 => left.prop_map(Step::Leave),
        1 => proptest::option::of(ticket).prop_map(Step::Close),
    ]
}

/// What the two threads of the host know of it, by plain bookkeeping.
#[derive(Default)]
struct Model {
    inside: bool,
    seen: u32,
    /// The poller has a call.
    claimed: bool,
    /// The last call that it made, while the guest has not left.
    answer: Option<(u32, u64)>,
    left: Option<Left>,
}

proptest! {
    #[test]
    fn a_call_is_claimed_once_and_settled_once(steps in proptest::collection::vec(step(), 0..64)) {
        let mut exchange = Exchange::default();
        let mut model = Model::default();
        for step in steps {
            match step {
                // The vCPU's thread enters only when it has closed.
                Step::Enter(_) if model.inside => {}
                Step::Enter(posted) => {
                    exchange.enter(Ticket(posted));
                    model = Model { inside: true, seen: posted, ..Model::default() };
                }
                Step::Claim(posted) => {
                    let may = model.inside && !model.claimed && model.left.is_none() && posted != model.seen;
                    prop_assert_eq!(exchange.claim(Ticket(posted)), may);
                    if may {
                        model.claimed = true;
                        model.seen = posted;
                        model.answer = None;
                    }
                }
                Step::Answer(result) => {
                    let word = exchange.answer(result);
                    if model.claimed {
                        prop_assert_eq!(word, answered_word(Ticket(model.seen), Verdict::Answer));
                        model.claimed = false;
                        model.answer = Some((model.seen, result));
                    }
                }
                Step::Leave(left) => {
                    let word = exchange.leave(left);
                    if model.claimed {
                        prop_assert_eq!(word, answered_word(Ticket(model.seen), Verdict::Leave));
                        model.claimed = false;
                        model.left = Some(left);
                    }
                }
                // It waits for the lock while a call is claimed.
                Step::Close(_) if model.claimed => {}
                Step::Close(waiting) => {
                    let expected = match (model.left, model.answer) {
                        (Some(Left::Made), _) if waiting == Some(model.seen) => Closed::Made,
                        (Some(Left::Made), _) => Closed::Stray,
                        (Some(Left::Refused), _) => Closed::Refused,
                        (None, Some((ticket, result))) if waiting == Some(ticket) => Closed::Answered(result),
                        _ => Closed::Unclaimed,
                    };
                    prop_assert_eq!(exchange.close(waiting.map(Ticket)), expected);
                    prop_assert_eq!(exchange, Exchange::Away);
                    model = Model::default();
                }
            }
        }
    }
}
