//! Connections that become something else than HTTP, and hold a fork until they end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;

use crate::answer::{Failure, answer};
use crate::connection::Client;
use crate::exchange::{Account, Answered};
use crate::fork::Ending;
use crate::head::X_REQUEST_ID;
use crate::metrics::{Counted, Outcome};
use crate::response::{AnswerBody, Answering, whole};
use crate::server::Front;
use crate::service::Service;

const BUFFER_BYTES: usize = 16 << 10;

/// Room for one more of them.
pub(crate) fn permit(service: &Service) -> Result<OwnedSemaphorePermit, Failure> {
    Arc::clone(&service.upgrades)
        .try_acquire_owned()
        .map_err(|_| Failure::busy("as many connections hold a fork as may"))
}

/// Has the client and the fork speak to each other from here on.
pub(crate) fn switch(
    front: &Front,
    service: &Arc<Service>,
    client: &Client,
    answered: Answered,
    client_side: hyper::upgrade::OnUpgrade,
    account: Account,
    answering: Option<Answering>,
) -> Response<AnswerBody> {
    let Answered {
        parts,
        course,
        upgrade,
        upgraded,
        ..
    } = answered;
    // Both are there: one that nobody asked for has been refused.
    let (Some(permit), Some(fork_side)) = (upgrade, upgraded) else {
        let failure = Failure::of_ending(&Ending::Done);
        let response = answer(&failure, account.id(), &http::HeaderMap::new());
        account.close(failure.outcome);
        return whole(response, answering);
    };
    let mut response = Response::new(Full::<Bytes>::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    // What the program said of its protocol, such as Sec-WebSocket-Accept.
    for (name, value) in &parts.headers {
        if *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING {
            response.headers_mut().append(name, value.clone());
        }
    }
    let upgrade = HeaderValue::from_static("upgrade");
    response.headers_mut().insert(header::CONNECTION, upgrade);
    let id = account.id();
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().entry(X_REQUEST_ID).or_insert(id);
    }
    course.handle.set_deadline(None);
    client.course.open();
    let service = Arc::clone(service);
    let patience = front.settings.header_timeout;
    tokio::spawn(async move {
        let mut account = account;
        let _counted = Counted::new(&service.metrics.upgrades);
        let idle = service.settings.idle_timeout;
        // The client may be gone before it has the answer's head.
        let both =
            tokio::time::timeout(patience, async { tokio::try_join!(client_side, fork_side) });
        let outcome = match both.await {
            Ok(Ok((client_side, fork_side))) => {
                let ends = (TokioIo::new(client_side), TokioIo::new(fork_side));
                let moved = relay(ends.0, ends.1, idle).await;
                account.add_bytes(moved.to_client);
                Outcome::Ok
            }
            _ => Outcome::Aborted,
        };
        let (ending, work) = course.close(None).await;
        drop(permit);
        account.set_work(work);
        account.close(match ending {
            Ending::Done => outcome,
            ending => Failure::of_ending(&ending).outcome,
        });
    });
    whole(response, answering)
}

/// Bytes that have been moved.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Moved {
    pub(crate) to_client: u64,
    pub(crate) to_program: u64,
}

/// Moves bytes both ways until the program is at its end, either fails, or nothing moves for a time. A client
/// that has shut its half down still gets what the program has to say.
pub(crate) async fn relay<C, P>(client: C, program: P, idle: Duration) -> Moved
where
    C: AsyncRead + AsyncWrite,
    P: AsyncRead + AsyncWrite,
{
    let (from_client, to_client) = tokio::io::split(client);
    let (from_program, to_program) = tokio::io::split(program);
    let (up_bytes, down_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let up = async {
        if copy(from_client, to_program, &up_bytes).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let down = copy(from_program, to_client, &down_bytes);
    let moved = || Moved {
        to_client: down_bytes.load(Ordering::Relaxed),
        to_program: up_bytes.load(Ordering::Relaxed),
    };
    let silence = async {
        loop {
            let before = moved();
            tokio::time::sleep(idle).await;
            if moved() == before {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        _ = down => {}
        () = silence => {}
    }
    moved()
}

/// Moves bytes one way, and tells the end.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved_bytes: &AtomicU64,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
        moved_bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_half_that_is_shut_down_leaves_the_other_open() {
        let (mut client, near) = duplex(64);
        let (far, mut program) = duplex(64);
        let relayed = tokio::spawn(relay(near, far, IDLE));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        program.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        program.write_all(b"answer").await.unwrap();
        drop(program);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        let moved = relayed.await.unwrap();
        assert_eq!((moved.to_program, moved.to_client), (8, 6));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it() {
        let (_client, near) = duplex(64);
        let (far, _program) = duplex(64);
        assert_eq!(relay(near, far, IDLE).await, Moved::default());
    }
}
