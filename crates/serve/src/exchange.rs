//! A request and its answer: read from the client, given to a fork, handed back.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, response};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::task::JoinHandle;

use crate::access_log::{Record, Work};
use crate::answer::{Failure, answer};
use crate::body::{RequestBody, read_body, with_length};
use crate::connection::Client;
use crate::fork::Ending;
use crate::head::{self, X_REQUEST_ID};
use crate::id;
use crate::log::To;
use crate::metrics::Outcome;
use crate::pool::{Ended, Lease, NotTaken};
use crate::response::{AnswerBody, Answering, Feeder, pieces, whole};
use crate::server::Front;
use crate::service::Service;
use crate::upgrade;
use crate::wire::{Handle, wire};

/// Time for a fork to say how it ended, beyond its deadline. Only a fault of ours takes as long.
const GRACE: Duration = Duration::from_secs(5);
/// hyper's room for an answer's head, and for a piece of its body.
const ANSWER_BUFFER_BYTES: usize = 128 << 10;
/// An answer's head, all heads of interim answers before it (1xx), and as much of its body as hyper takes ahead.
const HEADS_BYTES_MAX: usize = 1 << 20;
/// Fields of an answer's head.
const ANSWER_FIELDS_MAX: usize = 200;

/// Facts for the log about a request that is being answered.
pub(crate) struct Account {
    front: Arc<Front>,
    /// The program, once it is known.
    service: Option<Arc<Service>>,
    record: Record,
    is_closed: bool,
}

/// The status in the log of a request whose client was gone before it had an answer, as nginx has it.
const CLIENT_GONE: u16 = 499;

impl Drop for Account {
    fn drop(&mut self) {
        if !self.is_closed {
            if self.record.status == 0 {
                self.record.status = CLIENT_GONE;
            }
            self.write(Outcome::Aborted);
        }
    }
}

impl Account {
    fn new(front: &Arc<Front>, client: &Client, request: &Request<Incoming>, id: &str) -> Self {
        let version = match request.version() {
            Version::HTTP_2 => "HTTP/2.0",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        };
        let target = match request.uri().path_and_query() {
            Some(path) => path.as_str().to_owned(),
            None => request.uri().to_string(),
        };
        Self {
            front: Arc::clone(front),
            service: None,
            record: Record {
                program: String::new(),
                peer: client.peer.to_string(),
                method: request.method().to_string(),
                target,
                version,
                begun: SystemTime::now(),
                status: 0,
                bytes: 0,
                id: id.to_owned(),
                outcome: Outcome::Ok,
                work: None,
            },
            is_closed: false,
        }
    }

    pub(crate) fn add_bytes(&mut self, bytes: u64) {
        self.record.bytes += bytes;
    }

    pub(crate) fn id(&self) -> &str {
        &self.record.id
    }

    pub(crate) fn set_work(&mut self, work: Work) {
        self.record.work = Some(work);
    }

    /// Counts the request and writes its line.
    pub(crate) fn close(mut self, outcome: Outcome) {
        self.write(outcome);
    }

    fn write(&mut self, outcome: Outcome) {
        self.is_closed = true;
        self.record.outcome = outcome;
        let metrics = match &self.service {
            Some(service) => &service.metrics,
            None => self.front.unrouted(),
        };
        metrics.count(outcome);
        metrics.program().clone_into(&mut self.record.program);
        if let Some(line) = self.front.settings.access_log.line(&self.record) {
            self.front.log.line(To::Stdout, line);
        }
    }
}

/// Answers a request of a client.
pub(crate) async fn exchange(
    front: Arc<Front>,
    client: Arc<Client>,
    mut request: Request<Incoming>,
) -> Response<AnswerBody> {
    let is_http1 = !client.course.is_http2();
    if !is_http1 {
        client.course.begun();
    }
    let answering = Some(Answering::new(&client.course));
    let number = client.next_number();
    let refusal = client.course.refusal(number).filter(|_| is_http1);
    let id = request_id(&front, &client, &request);
    let mut account = Account::new(&front, &client, &request, &id);
    let accept = accept_of(&request);
    let upgraded = hyper::upgrade::on(&mut request);
    let attempt = match refusal {
        Some(refusal) => Err(refusal.into()),
        None => attempt(&front, &client, number, request, &id, &mut account).await,
    };
    let is_last = front.is_ending();
    match attempt {
        Ok(answered) => {
            let patience = front.settings.header_timeout;
            let mut response = hand_back(front, client, answered, upgraded, account, answering);
            // The guard sees that a client of HTTP/1 takes nothing.
            if !is_http1 {
                response.body_mut().limit_stall(patience);
            } else if is_last && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                say_last(&mut response);
            }
            response
        }
        Err(failure) => {
            account.record.status = failure.status.as_u16();
            let response = answer(&failure, &id, &accept);
            account.add_bytes(response.body().size_hint().lower());
            account.close(failure.outcome);
            let mut response = whole(response, answering);
            // What follows a request that was refused, nobody knows.
            if is_http1 && (is_last || failure.outcome == Outcome::Refused) {
                say_last(&mut response);
            }
            response
        }
    }
}

/// Has the client know that its connection ends with this answer, and ends it.
fn say_last(response: &mut Response<AnswerBody>) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
}

fn request_id(front: &Front, client: &Client, request: &Request<Incoming>) -> String {
    let given = request
        .headers()
        .get(X_REQUEST_ID)
        .map(HeaderValue::as_bytes);
    given
        .filter(|given| client.is_trusted && id::is_usable(given))
        .and_then(|given| std::str::from_utf8(given).ok())
        .map_or_else(|| front.ids.make(), ToOwned::to_owned)
}

fn accept_of(request: &Request<Incoming>) -> HeaderMap {
    let mut accept = HeaderMap::new();
    for value in request.headers().get_all(header::ACCEPT) {
        accept.append(header::ACCEPT, value.clone());
    }
    accept
}

/// An answer whose head has come from a fork.
pub(crate) struct Answered {
    service: Arc<Service>,
    pub(crate) parts: response::Parts,
    pub(crate) body: Incoming,
    pub(crate) course: ForkCourse,
    /// The end of its body is the end of its connection.
    ends_with_connection: bool,
    /// The client's request was for another protocol.
    pub(crate) upgrade: Option<OwnedSemaphorePermit>,
    pub(crate) upgraded: Option<hyper::upgrade::OnUpgrade>,
}

/// A fork that is busy with a request.
pub(crate) struct ForkCourse {
    pub(crate) handle: Handle,
    ended: tokio::sync::oneshot::Receiver<Ended>,
    reset: tokio::sync::oneshot::Receiver<(Duration, u64)>,
    driver: Option<JoinHandle<()>>,
    work: Work,
}

impl ForkCourse {
    /// The end of the fork's part, which is near.
    async fn ending(&mut self) -> Ending {
        match tokio::time::timeout(GRACE, &mut self.ended).await {
            Ok(Ok(ended)) => {
                self.work.ran = ended.ran;
                ended.ending
            }
            Ok(Err(_)) => Ending::Failed("the fork is gone".to_owned()),
            Err(_) => Ending::Failed("the fork does not end".to_owned()),
        }
    }

    /// Needs nothing more of it: waits until it is reset, for the log.
    pub(crate) async fn close(mut self, known: Option<Ending>) -> (Ending, Work) {
        self.handle.finish();
        if let Some(driver) = self.driver.take() {
            driver.abort();
        }
        // The reset comes last: then all is known, and this task wakes once.
        if let Ok(Ok(reset)) = tokio::time::timeout(GRACE, &mut self.reset).await {
            self.work.reset = Some(reset);
        }
        let ending = match known {
            Some(ending) => ending,
            None => self.ending().await,
        };
        (ending, self.work)
    }
}

impl Drop for ForkCourse {
    fn drop(&mut self) {
        self.handle.finish();
        if let Some(driver) = self.driver.take() {
            driver.abort();
        }
    }
}

async fn attempt(
    front: &Arc<Front>,
    client: &Client,
    number: u64,
    request: Request<Incoming>,
    id: &str,
    account: &mut Account,
) -> Result<Answered, Failure> {
    let (parts, mut body) = request.into_parts();
    if parts.method == Method::CONNECT {
        return Err(Failure::new(
            StatusCode::METHOD_NOT_ALLOWED,
            Outcome::Refused,
            "this is not a proxy: there is no CONNECT",
        ));
    }
    // One with a body is answered as if it asked for nothing else (RFC 9110, 7.8).
    let upgrade = head::upgrade(&parts).filter(|_| body.is_end_stream());
    let head = head::for_program(&parts, client.origin(), id, upgrade.as_ref())?;
    drop(parts);
    let host = head.headers().get(header::HOST).map(HeaderValue::to_str);
    let host = host.and_then(Result::ok).unwrap_or_default();
    let service = front.service(host, head.uri().path())?;
    account.service = Some(Arc::clone(&service));
    let permit = match upgrade {
        None => None,
        Some(_) => Some(upgrade::permit(&service)?),
    };
    let body = match read_body(front, service.settings.body_bytes_max, &mut body).await {
        Ok(body) => body,
        // The syntax of a chunk, more exactly.
        Err(failure) => return Err(client.course.refusal(number).map_or(failure, Into::into)),
    };
    let asked = ask(
        &service,
        Ask {
            request: with_length(head, body),
            id,
            peer: client.peer.address(),
            deadline: Instant::now() + service.settings.timeout,
        },
    )
    .await;
    let asked = match asked {
        Ok(answered) if permit.is_none() && answered.upgraded.is_some() => {
            let reason = "the program speaks another protocol, which nobody asked for";
            Err(given_up(answered.course, reason).await)
        }
        asked => asked,
    };
    let mut answered = asked.map_err(|(failure, work)| {
        account.record.work = work;
        failure
    })?;
    answered.upgrade = permit;
    Ok(answered)
}

struct Ask<'a> {
    request: Request<RequestBody>,
    id: &'a str,
    peer: Option<SocketAddr>,
    deadline: Instant,
}

/// Has a fork answer. With a failure comes what the fork did, if it did anything.
async fn ask(service: &Arc<Service>, ask: Ask<'_>) -> Result<Answered, (Failure, Option<Work>)> {
    let is_head = *ask.request.method() == Method::HEAD;
    let (front_end, handle, program_end) = wire(Some(ask.deadline), ask.peer);
    let fault = |_| {
        let reason = "kvmlet could not write the request";
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        (Failure::new(status, Outcome::Error, reason), None)
    };
    let (mut sender, connection) = client_side(front_end).await.map_err(fault)?;
    handle.limit_head(HEADS_BYTES_MAX);
    let mut connection = Some(Box::pin(connection));
    let mut answer = Box::pin(sender.send_request(ask.request));
    // The request is on the wire before the fork starts: it then runs through without a stop.
    let mut early = None;
    poll_fn(|context| {
        if let Poll::Ready(answer) = answer.as_mut().poll(context) {
            early = Some(answer);
        }
        if let Some(driven) = &mut connection
            && driven.as_mut().poll(context).is_ready()
        {
            connection = None;
        }
        Poll::Ready(())
    })
    .await;
    let mut lease = submit(service, program_end, ask.id).map_err(|failure| (failure, None))?;
    let driver = connection.map(|driven| {
        tokio::spawn(async move {
            // Its faults are those of the answer.
            let _ = driven.await;
        })
    });
    let mut course = ForkCourse {
        handle,
        ended: lease.ended,
        reset: lease.reset,
        driver,
        work: Work::default(),
    };
    let patience = tokio::time::Instant::from_std(ask.deadline);
    // A fork that has begun is not waited for: that would wake this task once more. A request that gets none is dropped,
    // which ends its connection.
    let mut response = match early {
        Some(answer) => Ok(answer),
        None => tokio::time::timeout_at(patience, answer.as_mut()).await,
    };
    match lease.started.try_recv() {
        Ok(started) => {
            course.work.fork = started.fork;
            course.work.queued = started.queued;
        }
        Err(TryRecvError::Closed) if Instant::now() < ask.deadline => {
            return Err((Failure::busy("the program is being stopped"), None));
        }
        // The request could not be written, which is told below.
        Err(TryRecvError::Empty) if response.is_ok() => {}
        Err(_) => return Err((Failure::busy("no fork was free in time"), None)),
    }
    if response.is_err() {
        response = tokio::time::timeout_at(patience + GRACE, answer).await;
    }
    match response {
        Ok(Ok(mut response)) => {
            course.handle.has_head();
            let upgraded = (response.status() == StatusCode::SWITCHING_PROTOCOLS)
                .then(|| hyper::upgrade::on(&mut response));
            let (mut parts, body) = response.into_parts();
            let is_framed = parts.headers.contains_key(header::CONTENT_LENGTH)
                || parts.headers.contains_key(header::TRANSFER_ENCODING);
            let length = body.size_hint().exact().filter(|_| !body.is_end_stream());
            if !head::settle_framing(&mut parts, length) {
                let reason = "the program's answer has a transfer coding that is not 'chunked'";
                return Err(given_up(course, reason).await);
            }
            let ends_with_connection = !is_framed && !is_head && !body.is_end_stream();
            Ok(Answered {
                service: Arc::clone(service),
                parts,
                body,
                course,
                ends_with_connection,
                upgrade: None,
                upgraded,
            })
        }
        Ok(Err(error)) => {
            let is_garbled = error.is_parse();
            let (ending, work) = course.close(None).await;
            let failure = match ending {
                Ending::Done if is_garbled => Failure::new(
                    StatusCode::BAD_GATEWAY,
                    Outcome::Invalid,
                    "the program's answer is not HTTP",
                ),
                ending => Failure::of_ending(&ending),
            };
            Err((failure, Some(work)))
        }
        Err(_) => Err((Failure::of_ending(&Ending::TimedOut), None)),
    }
}

/// Ends a fork whose answer is not handed on.
async fn given_up(course: ForkCourse, reason: &str) -> (Failure, Option<Work>) {
    let (_, work) = course.close(Some(Ending::Done)).await;
    let failure = Failure::new(StatusCode::BAD_GATEWAY, Outcome::Invalid, reason);
    (failure, Some(work))
}

type Sender = hyper::client::conn::http1::SendRequest<RequestBody>;

/// A client of HTTP/1.1 on a wire.
async fn client_side(
    front_end: crate::wire::FrontEnd,
) -> hyper::Result<(
    Sender,
    impl Future<Output = hyper::Result<()>> + Send + 'static,
)> {
    let (sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(ANSWER_BUFFER_BYTES)
        .max_headers(ANSWER_FIELDS_MAX)
        .handshake(TokioIo::new(front_end))
        .await?;
    Ok((sender, connection.with_upgrades()))
}

fn submit(service: &Service, program_end: crate::wire::Wire, id: &str) -> Result<Lease, Failure> {
    let mut program_end = program_end;
    // Another pool takes the place of one that is closed, before that is.
    for _ in 0..3 {
        let Some(pool) = service.pool() else { break };
        match pool.submit(program_end, id) {
            Ok(lease) => return Ok(lease),
            Err((NotTaken::Full, _)) => {
                return Err(Failure::busy("as many requests wait as may"));
            }
            Err((NotTaken::Closed, wire)) => program_end = wire,
        }
    }
    Err(Failure::busy("the program is being stopped"))
}

/// Hands the head to the client, and has the body follow.
fn hand_back(
    front: Arc<Front>,
    client: Arc<Client>,
    mut answered: Answered,
    client_upgraded: hyper::upgrade::OnUpgrade,
    mut account: Account,
    answering: Option<Answering>,
) -> Response<AnswerBody> {
    account.record.status = answered.parts.status.as_u16();
    account.record.work = Some(answered.course.work);
    let service = Arc::clone(&answered.service);
    if answered.parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return upgrade::switch(
            &front,
            &service,
            &client,
            answered,
            client_upgraded,
            account,
            answering,
        );
    }
    let parts = &mut answered.parts;
    let is_stream = parts
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    if is_stream && let Ok(permit) = upgrade::permit(&service) {
        // It ends when either side wants it to, and takes a fork until then.
        answered.upgrade = Some(permit);
        answered.course.handle.set_deadline(None);
    } else {
        answered.upgrade = None;
    }
    head::for_client(&mut answered.parts, &account.record.id);
    let (mut feeder, body) = pieces(&front.answers, &client.answers, answering);
    if client.course.is_http2() {
        feeder.give_frames();
    }
    let head = answered.parts.clone();
    if answered.body.is_end_stream() {
        drop(feeder);
        let mut response = Response::from_parts(head, body);
        // The fork is free before the client asks again.
        answered.course.handle.finish();
        if is_bodiless(&response) {
            tokio::spawn(finish(answered, account));
            return response;
        }
        // Its length is 0, which hyper says better than we.
        let empty = Response::new(http_body_util::Full::default());
        *response.body_mut() = whole(empty, None).into_body();
        tokio::spawn(finish(answered, account));
        return response;
    }
    tokio::spawn(pump(answered, feeder, account));
    Response::from_parts(head, body)
}

/// An answer to HEAD keeps the length of the body that it does not have.
fn is_bodiless(response: &Response<AnswerBody>) -> bool {
    response.headers().contains_key(header::CONTENT_LENGTH)
}

/// Ends the fork's part of an answer that is complete.
async fn finish(answered: Answered, mut account: Account) {
    let (_, work) = answered.course.close(Some(Ending::Done)).await;
    account.record.work = Some(work);
    account.close(Outcome::Ok);
}

/// Takes the body out of the fork.
async fn pump(answered: Answered, feeder: Feeder, mut account: Account) {
    let Answered {
        mut body,
        mut course,
        ends_with_connection,
        upgrade,
        service,
        ..
    } = answered;
    let counted = upgrade.as_ref();
    let counted = counted.map(|_| crate::metrics::Counted::new(&service.metrics.upgrades));
    let idle = service.settings.idle_timeout;
    let outcome = loop {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = feeder.gone() => break Err(Outcome::Aborted),
            // A stream of events has no deadline.
            () = tokio::time::sleep(idle), if upgrade.is_some() => break Err(Outcome::Deadline),
        };
        match frame {
            Some(Ok(frame)) => {
                if body.is_end_stream() && !ends_with_connection {
                    // The fork is free before the client has this, and asks again.
                    course.handle.finish();
                }
                account.add_bytes(frame.data_ref().map_or(0, |data| data.len() as u64));
                if !feeder.give(frame).await {
                    break Err(Outcome::Aborted);
                }
            }
            // The connection's end is the body's, unless something else has ended the connection.
            None if ends_with_connection => match course.ending().await {
                Ending::Done => break Ok(Some(Ending::Done)),
                ending => break Err(Failure::of_ending(&ending).outcome),
            },
            None => break Ok(None),
            Some(Err(_)) => {
                course.handle.finish();
                let ending = course.ending().await;
                break Err(Failure::of_ending(&ending).outcome);
            }
        }
    };
    course.handle.finish();
    if matches!(outcome, Err(outcome) if outcome != Outcome::Aborted) {
        feeder.break_off().await;
    }
    drop(feeder);
    drop(counted);
    let known = (!matches!(outcome, Ok(None))).then_some(Ending::Done);
    let (_, work) = course.close(known).await;
    let ran = account.record.work.map_or(Duration::ZERO, |work| work.ran);
    account.record.work = Some(Work {
        ran: work.ran.max(ran),
        ..work
    });
    account.close(outcome.err().unwrap_or(Outcome::Ok));
}

/// Asks the program before it is frozen. The answer's head, and as much of its body as is given back.
pub(crate) async fn ask_directly(
    front_end: crate::wire::FrontEnd,
    request: Request<RequestBody>,
    body_bytes_max: usize,
) -> Result<(response::Parts, Vec<u8>), String> {
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = client_side(front_end).await.map_err(text)?;
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    let answer = async {
        let response = sender.send_request(request).await.map_err(text)?;
        let (parts, mut body) = response.into_parts();
        let mut start = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(text)?;
            if let Some(data) = frame.data_ref() {
                let room = body_bytes_max.saturating_sub(start.len());
                start.extend_from_slice(&data[..data.len().min(room)]);
            }
        }
        Ok((parts, start))
    };
    let answer = answer.await;
    driver.abort();
    answer
}
