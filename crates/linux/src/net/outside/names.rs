//! Answers for names (RFC 1035): the program's resolver asks 127.0.0.53, which is us.
//!
//! A name that no rule allows does not exist, as far as the program learns. The host is asked for the others. The
//! addresses of an answer are what the rules for that name admit from then on, for as long as the answer holds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use kvmlet_abi::Errno;
use kvmlet_hostnet::{Found, Resolver};
use kvmlet_policy::net::{CALLER, host_name, is_public};

use super::admitted::HOLDS;
use super::reach::{self, CALLERS};
use super::{RESOLVER_TOKEN, udp};
use crate::cx::Cx;
use crate::id::ObjectId;
use crate::net::queue::{self, Ancillary};
use crate::report::Remedy;

/// Names that are looked up at the same time.
const QUESTIONS_MAX: usize = 64;
/// Those who wait for one name.
const WAITERS_MAX: usize = 64;
/// Longest question, in bytes: a name has 255 of them.
const QUESTION_MAX: usize = 1232;
/// Longest answer over UDP to those who name a longer one (DNS flag day 2020), in bytes.
const ANSWER_MAX: u16 = 1232;
/// The code of an answer for a name that no rule allows.
const REFUSED_BY_RULE: &str = "NXDOMAIN";

/// Who waits for an answer.
#[derive(Debug)]
struct Waiter {
    /// Its socket: of the program's for UDP, an end for TCP.
    asker: ObjectId,
    by: By,
    /// The question as it was asked.
    request: Message,
}

/// The way that a question has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    Datagram,
    Stream,
}

/// A name that is being looked up.
#[derive(Debug)]
pub struct Question {
    name: String,
    waiters: Vec<Waiter>,
}

impl Question {
    /// A socket is gone.
    pub(super) fn forget(&mut self, id: ObjectId) {
        self.waiters.retain(|waiter| waiter.asker != id);
    }
}

/// Questions over TCP, each behind its length.
#[derive(Debug, Default)]
pub struct Stream {
    /// What has come of the next one.
    bytes: Vec<u8>,
}

impl Stream {
    /// Takes bytes of questions.
    ///
    /// # Errors
    /// `EMSGSIZE` for one that is too long.
    pub(super) fn take(
        &mut self,
        cx: &mut Cx<'_>,
        id: ObjectId,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        self.bytes.extend_from_slice(bytes);
        while let Some((len, rest)) = self.bytes.split_first_chunk::<2>() {
            let len = usize::from(u16::from_be_bytes(*len));
            if len > QUESTION_MAX {
                return Err(Errno::EMSGSIZE);
            }
            let Some(question) = rest.get(..len) else {
                break;
            };
            let question = question.to_vec();
            self.bytes.drain(..len.saturating_add(2));
            handle(cx, (id, By::Stream), &question);
        }
        Ok(())
    }
}

/// Takes a question that has come as a datagram.
pub fn ask(cx: &mut Cx<'_>, asker: ObjectId, bytes: &[u8]) {
    handle(cx, (asker, By::Datagram), bytes);
}

/// What is known of a question without asking the host.
enum Known {
    /// The answer.
    Code(ResponseCode),
    /// These addresses.
    Addresses(Vec<IpAddr>),
    /// The host is to be asked.
    Unknown(String),
}

fn handle(cx: &mut Cx<'_>, (asker, by): (ObjectId, By), bytes: &[u8]) {
    // What cannot be read has no answer.
    if bytes.len() > QUESTION_MAX {
        return;
    }
    let Ok(mut request) = Message::from_vec(bytes) else {
        return;
    };
    // Kept while it waits: nothing but the question.
    request.answers = Vec::new();
    request.authorities = Vec::new();
    request.additionals = Vec::new();
    request.signature = None;
    request.queries.truncate(2);
    if request.metadata.message_type != MessageType::Query {
        return;
    }
    let waiter = Waiter { asker, by, request };
    match known(cx, &waiter.request) {
        Known::Code(code) => waiter.tell(cx, code, &[]),
        Known::Addresses(addresses) => waiter.tell(cx, ResponseCode::NoError, &addresses),
        Known::Unknown(name) => {
            if let Some(waiter) = look_up(cx, name, waiter) {
                waiter.tell(cx, ResponseCode::ServFail, &[]);
            }
        }
    }
}

fn known(cx: &mut Cx<'_>, request: &Message) -> Known {
    if request.metadata.op_code != OpCode::Query {
        return Known::Code(ResponseCode::NotImp);
    }
    let [query] = request.queries.as_slice() else {
        return Known::Code(ResponseCode::FormErr);
    };
    if query.query_class() != DNSClass::IN {
        return Known::Code(ResponseCode::Refused);
    }
    let Some(name) = host_name(&query.name().to_ascii()) else {
        return Known::Code(ResponseCode::NXDomain);
    };
    if name == "localhost" || name.ends_with(".localhost") {
        let own = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        return Known::Addresses(own.to_vec());
    }
    // Names of addresses are not told: they are of no use to reach anything.
    if query.query_type() == RecordType::PTR || name.ends_with(".arpa") {
        return Known::Code(ResponseCode::NXDomain);
    }
    if !cx.host.policy.net().allows_look_up(&name) {
        let what = format!("resolve {name}");
        cx.host
            .report
            .deny_as(what, REFUSED_BY_RULE, Remedy::Address);
        return Known::Code(ResponseCode::NXDomain);
    }
    if name == CALLER {
        return Known::Addresses(vec![CALLERS.into()]);
    }
    match query.query_type() {
        RecordType::A | RecordType::AAAA => Known::Unknown(name),
        // getaddrinfo(3) knows of nothing else.
        _ => Known::Addresses(Vec::new()),
    }
}

/// Has the host asked for a name, or waits with others for its answer. Gives who asks back if it cannot be asked.
fn look_up(cx: &mut Cx<'_>, name: String, waiter: Waiter) -> Option<Waiter> {
    let host = &mut *cx.host;
    let mut questions = host.outside.questions.values_mut();
    if let Some(question) = questions.find(|question| question.name == name) {
        if question.waiters.len() >= WAITERS_MAX {
            return Some(waiter);
        }
        question.waiters.push(waiter);
        return None;
    }
    if host.outside.questions.len() >= QUESTIONS_MAX || host.keep_rate().is_err() {
        return Some(waiter);
    }
    let outside = &mut host.outside;
    if outside.resolver.is_none() {
        let Ok(resolver) = outside.access.resolver() else {
            return Some(waiter);
        };
        let events = outside.events(&host.share);
        let added = events.and_then(|events| events.add(&resolver, RESOLVER_TOKEN));
        if added.is_err() {
            return Some(waiter);
        }
        outside.resolver = Some(resolver);
    }
    let id = outside.next_question;
    let resolver = outside.resolver.as_ref();
    if resolver.is_none_or(|resolver| resolver.ask(id, &name).is_err()) {
        return Some(waiter);
    }
    outside.next_question = id.wrapping_add(1);
    let question = Question {
        name,
        waiters: vec![waiter],
    };
    outside.questions.insert(id, question);
    None
}

/// Takes the host's answers.
pub(super) fn answers(cx: &mut Cx<'_>) {
    loop {
        let resolver = cx.host.outside.resolver.as_ref();
        match resolver.map(Resolver::answer) {
            None | Some(Ok(None)) => return,
            Some(Ok(Some(answer))) => {
                if let Some(question) = cx.host.outside.questions.remove(&answer.id) {
                    settle(cx, question, answer.found);
                }
            }
            Some(Err(_)) => {
                // Who looks names up is gone. The next question starts another.
                cx.host.outside.resolver = None;
                for question in core::mem::take(&mut cx.host.outside.questions).into_values() {
                    settle(cx, question, Found::Failed);
                }
            }
        }
    }
}

/// Gives an answer to all who wait for it, without the addresses that the rules do not admit.
fn settle(cx: &mut Cx<'_>, question: Question, found: Found) {
    let (code, addresses) = match found {
        Found::Failed => (ResponseCode::ServFail, Vec::new()),
        Found::NoSuchName => (ResponseCode::NXDomain, Vec::new()),
        Found::Addresses(addresses) => {
            let had_some = !addresses.is_empty();
            let kept = admit(cx, &question.name, addresses);
            match had_some && kept.is_empty() {
                true => (ResponseCode::NXDomain, kept),
                false => (ResponseCode::NoError, kept),
            }
        }
    };
    for waiter in question.waiters {
        waiter.tell(cx, code, &addresses);
    }
}

/// The addresses that the program is told of: those of the public internet, and those that a rule names. A name must
/// not lead to what lies beside the host, whoever has the say over it.
fn admit(cx: &mut Cx<'_>, name: &str, addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let now = (cx.host.now)();
    let mut kept = Vec::new();
    for address in addresses {
        let is_admitted = is_public(address) || cx.host.policy.net().names_address(address);
        let admitted = &mut cx.host.outside.admitted;
        admitted.note(address, name, now, !is_admitted);
        if is_admitted {
            kept.push(address);
        } else {
            let what = reach::withheld(name, address);
            cx.host
                .report
                .deny_as(what, REFUSED_BY_RULE, Remedy::Address);
        }
    }
    kept
}

impl Waiter {
    fn tell(self, cx: &mut Cx<'_>, code: ResponseCode, addresses: &[IpAddr]) {
        let Ok(bytes) = self.answer(code, addresses) else {
            return;
        };
        match self.by {
            By::Datagram => {
                let from = SocketAddr::from((reach::NAMES, reach::NAMES_PORT));
                udp::deliver(cx, self.asker, from, &bytes);
            }
            By::Stream => {
                let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
                let bytes = [len.to_be_bytes().as_slice(), &bytes].concat();
                let memory = &mut cx.machine.memory;
                // Who has no room for an answer has asked for more than it reads.
                let none = Ancillary::default();
                let _ = queue::send(
                    cx.kernel,
                    memory,
                    (self.asker, None),
                    bytes.as_slice().into(),
                    &none,
                );
            }
        }
    }

    /// The bytes of an answer.
    fn answer(
        &self,
        code: ResponseCode,
        addresses: &[IpAddr],
    ) -> Result<Vec<u8>, hickory_proto::ProtoError> {
        let request = &self.request;
        let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
        answer.metadata.recursion_desired = request.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.metadata.response_code = code;
        let ttl_s = u32::try_from(HOLDS.as_secs()).unwrap_or(u32::MAX);
        if let Some(query) = request.queries.first() {
            answer.add_query(query.clone());
            let records = addresses.iter().filter_map(|address| data(query, *address));
            let records = records.map(|data| Record::from_rdata(query.name().clone(), ttl_s, data));
            answer.add_answers(records);
        }
        if request.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(ANSWER_MAX);
            answer.set_edns(edns);
        }
        let bytes = answer.to_vec()?;
        let room = usize::from(request.max_payload().min(ANSWER_MAX));
        if self.by == By::Datagram && bytes.len() > room {
            return answer.truncate().to_vec();
        }
        Ok(bytes)
    }
}

fn data(query: &Query, address: IpAddr) -> Option<RData> {
    match (query.query_type(), address) {
        (RecordType::A, IpAddr::V4(four)) => Some(RData::A(A(four))),
        (RecordType::AAAA, IpAddr::V6(six)) => Some(RData::AAAA(AAAA(six))),
        _ => None,
    }
}
