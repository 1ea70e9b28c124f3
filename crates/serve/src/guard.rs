//! Between a client's socket and hyper: time limits, and the strict syntax of [`crate::syntax`].
//!
//! Every byte of HTTP/1 passes here before hyper sees it. A head that is refused is replaced with one that hyper
//! takes. So the answer comes in its turn, after those of the requests before it: [`Course::refusal`] has it
//! then. HTTP/2 and what follows an upgrade pass as they are.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::syntax::{self, Framing, Refusal};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const READ_BYTES: usize = 16 << 10;
/// Answered with the refusal, whatever it asks for.
const REPLACEMENT: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// Limits on a client's time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// From the first byte of a head to its last.
    pub(crate) head: Duration,
    /// Between two requests.
    pub(crate) idle: Duration,
}

/// How far a connection is: told by its guard and by those who answer its requests.
#[derive(Debug, Default)]
pub(crate) struct Course {
    heads: AtomicU64,
    answered: AtomicU64,
    is_open: AtomicBool,
    is_http2: AtomicBool,
    /// The end of the last answer, of HTTP/2.
    quiet_since: Mutex<Option<Instant>>,
    refusal: Mutex<Option<(u64, Refusal)>>,
    /// The guard, while it waits for an answer.
    waiter: Mutex<Option<Waker>>,
}

impl Course {
    /// The refusal of the request with this number, from 1.
    pub(crate) fn refusal(&self, number: u64) -> Option<Refusal> {
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        refusal.filter(|(of, _)| *of == number).map(|(_, it)| it)
    }

    /// One more request of HTTP/2 is there; those of HTTP/1 are counted by the guard.
    pub(crate) fn begun(&self) {
        self.heads.fetch_add(1, Ordering::SeqCst);
    }

    /// One more answer is complete.
    pub(crate) fn answered(&self) {
        if self.is_http2() {
            self.note_quiet();
        }
        self.answered.fetch_add(1, Ordering::SeqCst);
        self.wake();
    }

    pub(crate) fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::SeqCst)
    }

    fn note_quiet(&self) {
        let mut since = (self.quiet_since.lock()).unwrap_or_else(PoisonError::into_inner);
        *since = Some(Instant::now());
    }

    /// Waits until a client of HTTP/2 has asked nothing for a time. The guard does not see its requests, and an answer
    /// to a ping is no request.
    pub(crate) async fn http2_is_idle(&self, time: Duration) {
        loop {
            let since = *(self.quiet_since.lock()).unwrap_or_else(PoisonError::into_inner);
            let quiet = since
                .filter(|_| self.is_idle())
                .map(|since| since.elapsed());
            match quiet {
                Some(quiet) if quiet >= time => return,
                Some(quiet) => tokio::time::sleep(time - quiet).await,
                None => tokio::time::sleep(time).await,
            }
        }
    }

    /// What comes now is not HTTP any more.
    pub(crate) fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        let mut waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiter) = waiter.take() {
            waiter.wake();
        }
    }

    /// The number of answers so far, if none is missing.
    pub(crate) fn idle_since_answer(&self) -> Option<u64> {
        let answered = self.answered.load(Ordering::SeqCst);
        (self.heads.load(Ordering::SeqCst) == answered).then_some(answered)
    }

    fn is_idle(&self) -> bool {
        self.heads.load(Ordering::SeqCst) == self.answered.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
enum State {
    /// The start of a connection, of which it is not known if it is HTTP/2.
    Start,
    Head,
    Length(u64),
    ChunkLine,
    Chunk(u64),
    ChunkEnd,
    Trailer,
    /// After a request for another protocol: what comes next is of that protocol, or a head.
    Upgrade,
    /// Everything passes.
    Open,
    /// Nothing passes any more.
    Refused,
}

/// A client's stream.
#[derive(Debug)]
pub(crate) struct Guard<S> {
    inner: S,
    course: Arc<Course>,
    patience: Patience,
    state: State,
    /// The head or line that is not complete yet.
    partial: Vec<u8>,
    /// Bytes that have passed, from `passed_at`, for hyper to read.
    passed: Vec<u8>,
    passed_at: usize,
    trailer_bytes: usize,
    /// Set when the body of the request that hyper reads is not what it should be.
    broken: Option<Refusal>,
    read_timer: Pin<Box<Sleep>>,
    read_timer_is_of_head: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guard<S> {
    pub(crate) fn new(inner: S, patience: Patience) -> (Self, Arc<Course>) {
        let course = Arc::new(Course::default());
        let guard = Self {
            inner,
            course: Arc::clone(&course),
            patience,
            state: State::Start,
            partial: Vec::new(),
            passed: Vec::new(),
            passed_at: 0,
            trailer_bytes: 0,
            broken: None,
            // A client that has connected and says nothing has as long as one that has begun.
            read_timer: Box::pin(sleep_until(Instant::now() + patience.head)),
            read_timer_is_of_head: false,
        };
        (guard, course)
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.passed.extend_from_slice(bytes);
    }

    /// Refuses the request whose head is being read.
    fn refuse(&mut self, refusal: Refusal) {
        let number = self.course.heads.fetch_add(1, Ordering::SeqCst) + 1;
        let mut known = (self.course.refusal.lock()).unwrap_or_else(PoisonError::into_inner);
        *known = Some((number, refusal));
        drop(known);
        self.partial = Vec::new();
        self.state = State::Refused;
        self.pass(REPLACEMENT);
    }

    /// Refuses the request whose body is being read.
    fn refuse_body(&mut self, refusal: Refusal) {
        let number = self.course.heads.load(Ordering::SeqCst);
        let mut known = (self.course.refusal.lock()).unwrap_or_else(PoisonError::into_inner);
        *known = Some((number, refusal));
        drop(known);
        self.broken = Some(refusal);
        self.state = State::Refused;
    }

    fn begin_head(&mut self) {
        self.state = State::Head;
        self.partial.clear();
        self.partial.shrink_to(1024);
        self.read_timer_is_of_head = false;
        let idle = Instant::now() + self.patience.idle;
        self.read_timer.as_mut().reset(idle);
    }

    /// Looks at what the client has sent.
    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.course.is_open.load(Ordering::SeqCst) {
                self.state = State::Open;
            }
            match self.state {
                State::Open => {
                    self.pass(bytes);
                    return;
                }
                State::Refused => return,
                State::Upgrade => {
                    self.partial.extend_from_slice(bytes);
                    return;
                }
                State::Start => bytes = self.feed_start(bytes),
                State::Head => bytes = self.feed_head(bytes),
                State::Length(left) | State::Chunk(left) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let (body, rest) = bytes.split_at(length);
                    self.pass(body);
                    bytes = rest;
                    let left = left - length as u64;
                    match self.state {
                        State::Length(_) if left == 0 => self.begin_head(),
                        State::Length(_) => self.state = State::Length(left),
                        _ if left == 0 => self.state = State::ChunkEnd,
                        _ => self.state = State::Chunk(left),
                    }
                }
                State::ChunkLine | State::ChunkEnd | State::Trailer => {
                    bytes = self.feed_line(bytes);
                }
            }
        }
    }

    fn feed_start<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let length = bytes.len().min(PREFACE.len() - self.partial.len());
        self.partial.extend_from_slice(&bytes[..length]);
        if self.partial == PREFACE {
            let preface = std::mem::take(&mut self.partial);
            self.pass(&preface);
            self.state = State::Open;
            self.course.is_http2.store(true, Ordering::SeqCst);
            self.course.note_quiet();
        } else if !PREFACE.starts_with(&self.partial) {
            let start = std::mem::take(&mut self.partial);
            self.state = State::Head;
            let rest = self.feed_head(&start);
            // A head is longer than this, or it is refused.
            if matches!(self.state, State::Head) || rest.is_empty() {
                return &bytes[length..];
            }
            let rest = rest.to_vec();
            self.feed(&rest);
        }
        &bytes[length..]
    }

    fn feed_head<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mut bytes = bytes;
        // One empty line before a request is allowed (RFC 9112, 2.2); hyper drops it as well.
        if self.partial.is_empty() {
            if let Some(rest) = bytes.strip_prefix(b"\r\n") {
                bytes = rest;
                if bytes.is_empty() {
                    return bytes;
                }
            }
            let is_begun = |byte: u8| syntax::is_token_byte(byte) || byte == b'\r';
            if !is_begun(bytes[0]) {
                self.refuse(Refusal {
                    status: StatusCode::BAD_REQUEST,
                    reason: "this is not HTTP",
                });
                return &[];
            }
        }
        if !self.read_timer_is_of_head {
            self.read_timer_is_of_head = true;
            let until = Instant::now() + self.patience.head;
            self.read_timer.as_mut().reset(until);
        }
        loop {
            let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
                self.partial.extend_from_slice(bytes);
                if self.partial.len() > syntax::HEAD_BYTES_MAX {
                    self.refuse_long();
                }
                return &[];
            };
            let line_start = self
                .partial
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            self.partial.extend_from_slice(&bytes[..=end]);
            bytes = &bytes[end + 1..];
            if self.partial.len() > syntax::HEAD_BYTES_MAX {
                self.refuse_long();
                return &[];
            }
            let line = match syntax::line_of(&self.partial[line_start..]) {
                Ok(line) => line,
                Err(refusal) => {
                    self.refuse(refusal);
                    return &[];
                }
            };
            if line_start == 0
                && let Err(refusal) = syntax::check_request_line(line)
            {
                self.refuse(refusal);
                return &[];
            }
            if line.is_empty() {
                self.end_head();
                return bytes;
            }
        }
    }

    fn refuse_long(&mut self) {
        let is_in_line = !self.partial.contains(&b'\n');
        self.refuse(if is_in_line {
            Refusal {
                status: StatusCode::URI_TOO_LONG,
                reason: "the request line is too long",
            }
        } else {
            Refusal {
                status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                reason: "the fields are too long",
            }
        });
    }

    fn end_head(&mut self) {
        match syntax::check_head(&self.partial) {
            Err(refusal) => self.refuse(refusal),
            Ok(framing) => {
                self.course.heads.fetch_add(1, Ordering::SeqCst);
                let head = std::mem::take(&mut self.partial);
                self.pass(&head);
                match framing {
                    Framing::Upgrade => self.state = State::Upgrade,
                    Framing::Length(0) => self.begin_head(),
                    Framing::Length(length) => self.state = State::Length(length),
                    Framing::Chunked => self.state = State::ChunkLine,
                }
            }
        }
    }

    fn feed_line<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (line, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
        self.partial.extend_from_slice(line);
        let bytes_max = match self.state {
            State::ChunkEnd => 2,
            State::ChunkLine => syntax::CHUNK_LINE_BYTES_MAX,
            _ => syntax::LINE_BYTES_MAX,
        };
        if self.partial.len() > bytes_max {
            self.refuse_body(Refusal {
                status: StatusCode::BAD_REQUEST,
                reason: "a chunk or a trailer is not what it should be",
            });
            return &[];
        }
        if end.is_none() {
            return rest;
        }
        let whole = std::mem::take(&mut self.partial);
        match self.next_of(&whole) {
            Err(refusal) => {
                self.refuse_body(refusal);
                return &[];
            }
            Ok(next) => {
                self.pass(&whole);
                match next {
                    Some(next) => self.state = next,
                    None => self.begin_head(),
                }
            }
        }
        rest
    }

    /// The state after a line of a chunked body; `None` after its last.
    fn next_of(&mut self, whole: &[u8]) -> Result<Option<State>, Refusal> {
        let line = syntax::line_of(whole)?;
        Ok(match self.state {
            State::ChunkEnd if line.is_empty() => Some(State::ChunkLine),
            State::ChunkLine => match syntax::chunk_size(line)? {
                0 => {
                    self.trailer_bytes = 0;
                    Some(State::Trailer)
                }
                size => Some(State::Chunk(size)),
            },
            State::Trailer if line.is_empty() => None,
            State::Trailer => {
                syntax::check_trailer(line)?;
                self.trailer_bytes += whole.len();
                if self.trailer_bytes > syntax::LINE_BYTES_MAX {
                    return Err(Refusal {
                        status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                        reason: "the trailers are too long",
                    });
                }
                Some(State::Trailer)
            }
            _ => {
                return Err(Refusal {
                    status: StatusCode::BAD_REQUEST,
                    reason: "a chunk is longer than it says",
                });
            }
        })
    }

    /// `Ready(true)` when the client has been idle for too long, and the connection ends.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        loop {
            match self.state {
                State::Start | State::Head => {}
                // Bodies have limits of their own, and what is open has them at its ends.
                _ => return Poll::Pending,
            }
            ready!(self.read_timer.as_mut().poll(context));
            if self.read_timer_is_of_head || !self.partial.is_empty() {
                self.refuse(Refusal {
                    status: StatusCode::REQUEST_TIMEOUT,
                    reason: "the head of the request took too long",
                });
                return Poll::Ready(false);
            }
            if self.course.is_idle() {
                return Poll::Ready(true);
            }
            // An answer is on its way: the client waits for us.
            let later = Instant::now() + self.patience.idle;
            self.read_timer.as_mut().reset(later);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.passed_at < this.passed.len() {
                let ready = &this.passed[this.passed_at..];
                let length = ready.len().min(into.remaining());
                into.put_slice(&ready[..length]);
                this.passed_at += length;
                if this.passed_at == this.passed.len() {
                    this.passed.clear();
                    this.passed_at = 0;
                    this.passed.shrink_to(READ_BYTES);
                }
                return Poll::Ready(Ok(()));
            }
            if let Some(refusal) = this.broken.take() {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    refusal.reason,
                )));
            }
            if matches!(this.state, State::Upgrade) {
                let mut waiter =
                    (this.course.waiter.lock()).unwrap_or_else(PoisonError::into_inner);
                *waiter = Some(context.waker().clone());
                drop(waiter);
                let is_open = this.course.is_open.load(Ordering::SeqCst);
                if !is_open && !this.course.is_idle() {
                    return Poll::Pending;
                }
                let held = std::mem::take(&mut this.partial);
                this.begin_head();
                this.feed(&held);
                continue;
            }
            // hyper closes it after the answer to the replacement.
            if matches!(this.state, State::Refused) {
                return Poll::Pending;
            }
            if this.course.is_open.load(Ordering::SeqCst) {
                this.state = State::Open;
            }
            if matches!(this.state, State::Open) {
                return Pin::new(&mut this.inner).poll_read(context, into);
            }
            let mut space = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut space);
            match Pin::new(&mut this.inner).poll_read(context, &mut read) {
                Poll::Ready(Ok(())) if read.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => this.feed(read.filled()),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => match ready!(this.poll_patience(context)) {
                    true => return Poll::Ready(Ok(())),
                    false => continue,
                },
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(5),
        idle: Duration::from_secs(60),
    };

    fn guarded() -> (DuplexStream, Guard<DuplexStream>, Arc<Course>) {
        let (client, server) = duplex(1 << 20);
        let (guard, course) = Guard::new(server, PATIENCE);
        (client, guard, course)
    }

    /// What hyper would read of `pieces`, each of which comes by itself.
    async fn read(pieces: &[&[u8]]) -> (Vec<u8>, Option<Refusal>, bool) {
        let (mut client, mut guard, course) = guarded();
        let mut all = Vec::new();
        let mut failed = false;
        for piece in pieces {
            client.write_all(piece).await.unwrap();
            let mut space = [0; 4096];
            while let Ok(read) =
                tokio::time::timeout(Duration::from_millis(5), guard.read(&mut space)).await
            {
                match read {
                    Ok(length) => all.extend_from_slice(&space[..length]),
                    Err(_) => failed = true,
                }
            }
        }
        let heads = course.heads.load(Ordering::SeqCst);
        (all, course.refusal(heads), failed)
    }

    #[tokio::test]
    async fn good_requests_pass_as_they_are_however_they_are_cut() {
        let all: &[u8] = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc\
            POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
            3;x=y\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n\
            GET /c HTTP/1.0\r\n\r\n";
        assert_eq!(read(&[all]).await, (all.to_vec(), None, false));
        let bytes: Vec<&[u8]> = all.chunks(1).collect();
        assert_eq!(read(&bytes).await, (all.to_vec(), None, false));
        for cut in [5, 24, 30] {
            let (first, second) = all.split_at(cut);
            assert_eq!(read(&[first, second]).await, (all.to_vec(), None, false));
        }
    }

    #[tokio::test]
    async fn a_bad_head_after_a_good_one_is_replaced_and_nothing_follows() {
        let good: &[u8] = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n";
        let bad: &[u8] = b"GET /b HTTP/1.1\nHost: x\r\n\r\nGET /c HTTP/1.1\r\nHost: x\r\n\r\n";
        let (passed, refusal, failed) = read(&[&[good, bad].concat()]).await;
        assert_eq!(passed, [good, REPLACEMENT].concat());
        assert_eq!(refusal.unwrap().status, 400);
        assert!(!failed);
    }

    #[tokio::test]
    async fn a_bad_chunk_breaks_the_body() {
        let head: &[u8] = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in [
            &b"5\nabcde\r\n"[..],
            b"3\r\nabcd\r\n",
            b"3\r\nabc\n",
            b"-1\r\n",
            b"0\r\nContent-Length: 3\r\n\r\n",
            b"0\r\nX\r\n\r\n",
        ] {
            let (_, refusal, failed) = read(&[head, body]).await;
            assert_eq!(refusal.unwrap().status, 400, "{body:?}");
            assert!(failed);
        }
    }

    #[tokio::test]
    async fn what_is_not_http_is_refused_at_once() {
        for bytes in [
            &b"\x16\x03\x01\x02"[..],
            b"SSH-2.0-x\r\n",
            b"\n",
            b"PRI * HTTP/2.0\r\n\r\nXX",
        ] {
            let (passed, refusal, _) = read(&[bytes]).await;
            assert_eq!(passed, REPLACEMENT, "{bytes:?}");
            assert!(refusal.is_some());
        }
    }

    #[tokio::test]
    async fn what_follows_a_request_for_another_protocol_waits_for_its_answer() {
        let head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: ws\r\n\r\n";
        for is_open in [true, false] {
            let (mut client, mut guard, course) = guarded();
            client
                .write_all(&[&head[..], b"\x01\n\x02"].concat())
                .await
                .unwrap();
            let mut space = [0; 4096];
            let length = guard.read(&mut space).await.unwrap();
            assert_eq!(&space[..length], head);
            let wait = Duration::from_millis(5);
            let early = tokio::time::timeout(wait, guard.read(&mut space)).await;
            assert!(early.is_err());
            if is_open {
                course.open();
            } else {
                course.answered();
            }
            let length = guard.read(&mut space).await.unwrap();
            let passed: &[u8] = if is_open { b"\x01\n\x02" } else { REPLACEMENT };
            assert_eq!(&space[..length], passed);
        }
    }

    #[tokio::test]
    async fn http2_passes() {
        let bytes = [PREFACE, b"\0\0\0anything\n"].concat();
        assert_eq!(read(&[&bytes]).await, (bytes.clone(), None, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_head_is_refused_and_an_idle_client_is_let_go() {
        let (mut client, mut guard, course) = guarded();
        client.write_all(b"GET / HT").await.unwrap();
        let mut space = [0; 4096];
        let length = guard.read(&mut space).await.unwrap();
        assert_eq!(&space[..length], REPLACEMENT);
        assert_eq!(course.refusal(1).unwrap().status, 408);

        let (mut client, mut guard, course) = guarded();
        let good = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        client.write_all(good).await.unwrap();
        let length = guard.read(&mut space).await.unwrap();
        assert_eq!(length, good.len());
        let begun = Instant::now();
        // While it waits for us, it is not idle.
        let wait = tokio::time::timeout(PATIENCE.idle * 3, guard.read(&mut space)).await;
        assert!(wait.is_err());
        course.answered();
        assert_eq!(guard.read(&mut space).await.unwrap(), 0);
        assert!(begun.elapsed() >= PATIENCE.idle * 3);
    }
}
