//! A client's connection, from its first byte to its last.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::sync::{Semaphore, watch};

use crate::arrival::Arrived;
use crate::exchange::exchange;
use crate::guard::{Course, Guard, Patience};
use crate::head::Origin;
use crate::metrics::Counted;
use crate::peer::Peer;
use crate::response::CLIENT_BYTES;
use crate::server::{Front, Phase};
use crate::syntax;

/// Requests that a client of HTTP/2 may have under way.
const STREAMS_MAX: u32 = 100;
/// What hyper keeps of an answer to one of them, beside what waits for it.
const STREAM_BYTES: usize = 64 << 10;
/// hyper's buffer for a head: a little more than the guard lets pass.
const BUFFER_BYTES: usize = syntax::HEAD_BYTES_MAX + (8 << 10);

/// Time for the last request of a client when the server is being stopped.
const LAST_PATIENCE: Duration = Duration::from_millis(500);

/// A client and the state of its connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) peer: Peer,
    pub(crate) is_trusted: bool,
    scheme: &'static str,
    pub(crate) course: Arc<Course>,
    /// Room for answers that it has not taken.
    pub(crate) answers: Arc<Semaphore>,
    requests: AtomicU64,
}

impl Client {
    /// The number of the request that begins now, from 1. HTTP/1 has one at a time.
    pub(crate) fn next_number(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Waits until the client has had time for a request that it had begun to send, and has no more of them. A client
    /// of HTTP/2 is told by hyper in time.
    async fn until_quiet(&self) {
        let course = &self.course;
        while !(course.is_http2() && self.requests.load(Ordering::SeqCst) > 0) {
            let before = course.idle_since_answer();
            tokio::time::sleep(LAST_PATIENCE).await;
            if before.is_some() && course.idle_since_answer() == before {
                return;
            }
        }
    }

    pub(crate) fn origin(&self) -> Origin {
        Origin {
            peer: self.peer,
            is_trusted: self.is_trusted,
            scheme: self.scheme,
        }
    }
}

/// Serves a client by HTTP until it goes, or the server ends.
pub(crate) async fn serve(front: Arc<Front>, arrived: Arrived, mut phase: watch::Receiver<Phase>) {
    let _counted = Counted::new(&front.metrics.connections);
    let patience = Patience {
        head: front.settings.header_timeout,
        idle: front.settings.keepalive,
    };
    let (guard, course) = Guard::new(arrived.stream, patience);
    let client = Arc::new(Client {
        peer: arrived.peer,
        is_trusted: arrived.is_trusted,
        scheme: arrived.scheme,
        course,
        answers: Arc::new(Semaphore::new(CLIENT_BYTES)),
        requests: AtomicU64::new(0),
    });
    let service = service_fn(|request| {
        let (front, client) = (Arc::clone(&front), Arc::clone(&client));
        async move { Ok::<_, Infallible>(exchange(front, client, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // The guard has these limits, and says which was met.
        .header_read_timeout(None)
        .max_buf_size(BUFFER_BYTES)
        .max_headers(syntax::FIELDS_MAX + 8)
        .keep_alive(true)
        // A client that has shut its half down cannot be told from one that is gone, which is to give its fork
        // back.
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_send_buf_size(STREAM_BYTES)
        .max_header_list_size(u32::try_from(syntax::HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(20)
        .keep_alive_interval(front.settings.keepalive)
        .keep_alive_timeout(front.settings.header_timeout);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(guard), service);
    let mut connection = pin!(connection);
    let is_idle = tokio::select! {
        // What went wrong is the client's to know.
        _ = connection.as_mut() => return,
        _ = phase.wait_for(|phase| *phase != Phase::Open) => false,
        () = client.course.http2_is_idle(front.settings.keepalive) => true,
    };
    if !is_idle {
        // A request may be on its way, which hyper would drop. Its answer says that it is the last one.
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = phase.wait_for(|phase| *phase == Phase::Ended) => {}
            () = client.until_quiet() => {}
        }
    }
    connection.as_mut().graceful_shutdown();
    let patience = front.settings.header_timeout;
    tokio::select! {
        _ = connection.as_mut() => {}
        _ = phase.wait_for(|phase| *phase == Phase::Ended) => {}
        // One that is idle may not say that it knows.
        () = tokio::time::sleep(patience), if is_idle => {}
    }
}
