//! Bodies of answers, on their way from a fork to a client.
//!
//! A body is taken out of the fork as fast as it comes, so that the fork is free while a slow client still
//! reads. What is waiting has a limit for each answer and one for all of them.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::budget::{Budget, Share};
use crate::guard::Course;

/// What an answer may have waiting, whatever the others have.
const OWN_BYTES: usize = 64 << 10;
/// What all answers of a client may have waiting, whatever other clients have.
pub(crate) const CLIENT_BYTES: usize = 256 << 10;
/// The largest piece of an answer by HTTP/2: hyper takes one for a client that has room for a single byte.
const FRAME_BYTES: usize = 16 << 10;
/// What it may have waiting if there is room for all.
const LARGE_BYTES: usize = 1 << 20;
/// Pieces that wait, whatever their size.
const PIECES_MAX: usize = 256;

/// An answer was broken off.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the answer was broken off")]
pub(crate) struct BrokenOff;

/// Says that the answer is complete, or will not be completed, once it is dropped.
#[derive(Debug)]
pub(crate) struct Answering(Arc<Course>);

impl Answering {
    pub(crate) fn new(course: &Arc<Course>) -> Self {
        Self(Arc::clone(course))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answered();
    }
}

#[derive(Debug)]
enum Source {
    Whole(Full<Bytes>),
    Pieces(Arc<Waiting>),
}

/// Pieces of an answer that its client has not taken.
#[derive(Debug)]
struct Waiting {
    /// `None` once it has been broken off.
    pieces: Mutex<Option<Receiver<Result<Piece, BrokenOff>>>>,
    taken: AtomicU64,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<Receiver<Result<Piece, BrokenOff>>>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The count of pieces taken, if there are others that could be.
    fn taken_of_more(&self) -> Option<u64> {
        let pieces = self.lock();
        let waits = pieces.as_ref().is_some_and(|pieces| !pieces.is_empty());
        waits.then(|| self.taken.load(Ordering::Relaxed))
    }
}

/// The body of an answer, as hyper takes it.
#[derive(Debug)]
pub(crate) struct AnswerBody {
    source: Source,
    /// Dropped with the body.
    watched: Option<oneshot::Sender<()>>,
    _answering: Option<Answering>,
}

impl AnswerBody {
    /// Breaks the body off once its client has taken nothing for a time in which it could have. The connection cannot
    /// tell: a client of HTTP/2 may take nothing of one answer, and all of others.
    pub(crate) fn limit_stall(&mut self, patience: Duration) {
        if let Source::Pieces(waiting) = &self.source {
            let (watched, gone) = oneshot::channel();
            self.watched = Some(watched);
            tokio::spawn(watch(Arc::downgrade(waiting), gone, patience));
        }
    }
}

async fn watch(waiting: Weak<Waiting>, mut gone: oneshot::Receiver<()>, patience: Duration) {
    let mut before = None;
    loop {
        tokio::select! {
            _ = &mut gone => return,
            () = tokio::time::sleep(patience) => {}
        }
        let Some(waiting) = waiting.upgrade() else {
            return;
        };
        let now = waiting.taken_of_more();
        if now.is_some() && now == before {
            *waiting.lock() = None;
            return;
        }
        before = now;
    }
}

#[derive(Debug)]
struct Piece {
    frame: Frame<Bytes>,
    _permits: Permits,
}

#[derive(Debug)]
enum Permits {
    Own {
        _permit: OwnedSemaphorePermit,
        _of_client: OwnedSemaphorePermit,
    },
    Shared {
        _permit: OwnedSemaphorePermit,
        _share: Share,
    },
}

/// The other end of a body, to which its pieces are given.
#[derive(Debug)]
pub(crate) struct Feeder {
    pieces: Sender<Result<Piece, BrokenOff>>,
    own: Arc<Semaphore>,
    /// [`CLIENT_BYTES`]
    of_client: Arc<Semaphore>,
    large: Arc<Semaphore>,
    budget: Budget,
    piece_bytes: usize,
}

/// An answer that is there as a whole.
pub(crate) fn whole(
    response: Response<Full<Bytes>>,
    answering: Option<Answering>,
) -> Response<AnswerBody> {
    response.map(|body| AnswerBody {
        source: Source::Whole(body),
        watched: None,
        _answering: answering,
    })
}

/// A body that comes piece by piece, for a client whose answers share `of_client`.
pub(crate) fn pieces(
    budget: &Budget,
    of_client: &Arc<Semaphore>,
    answering: Option<Answering>,
) -> (Feeder, AnswerBody) {
    let (pieces, source) = channel(PIECES_MAX);
    let feeder = Feeder {
        pieces,
        own: Arc::new(Semaphore::new(OWN_BYTES)),
        of_client: Arc::clone(of_client),
        large: Arc::new(Semaphore::new(LARGE_BYTES)),
        budget: budget.clone(),
        piece_bytes: OWN_BYTES,
    };
    let waiting = Waiting {
        pieces: Mutex::new(Some(source)),
        taken: AtomicU64::new(0),
    };
    let body = AnswerBody {
        source: Source::Pieces(Arc::new(waiting)),
        watched: None,
        _answering: answering,
    };
    (feeder, body)
}

fn permit(semaphore: &Arc<Semaphore>, bytes: u32) -> Option<OwnedSemaphorePermit> {
    Arc::clone(semaphore).try_acquire_many_owned(bytes).ok()
}

impl Feeder {
    /// Has no piece be larger than a frame of HTTP/2.
    pub(crate) fn give_frames(&mut self) {
        self.piece_bytes = FRAME_BYTES;
    }

    /// Hands a frame on, as soon as there is room. False if nobody takes it any more.
    pub(crate) async fn give(&self, mut frame: Frame<Bytes>) -> bool {
        let mut rest = frame.data_mut().map(std::mem::take);
        // A piece is never larger than the room that there always is once the client has taken the others.
        while let Some(bytes) = rest.as_mut().filter(|bytes| bytes.len() > self.piece_bytes) {
            let first = bytes.split_to(self.piece_bytes);
            if !self.give_piece(Frame::data(first)).await {
                return false;
            }
        }
        match rest {
            Some(bytes) if bytes.is_empty() => true,
            Some(bytes) => self.give_piece(Frame::data(bytes)).await,
            None => self.give_piece(frame).await,
        }
    }

    async fn give_piece(&self, frame: Frame<Bytes>) -> bool {
        let length = frame
            .data_ref()
            .map_or_else(|| frame.trailers_ref().map_or(0, trailer_bytes), Bytes::len);
        let length = u32::try_from(length.min(OWN_BYTES)).unwrap_or(u32::MAX);
        let shared = permit(&self.large, length)
            .and_then(|large| Some((large, self.budget.take(length as usize)?)));
        let permits = match shared {
            Some((permit, share)) => Permits::Shared {
                _permit: permit,
                _share: share,
            },
            None => {
                let own = Arc::clone(&self.own).acquire_many_owned(length);
                let of_client = Arc::clone(&self.of_client).acquire_many_owned(length);
                let permits = async { Ok::<_, AcquireError>((own.await?, of_client.await?)) };
                let permits = tokio::select! {
                    permits = permits => permits,
                    () = self.pieces.closed() => return false,
                };
                let Ok((permit, of_client)) = permits else {
                    return false;
                };
                Permits::Own {
                    _permit: permit,
                    _of_client: of_client,
                }
            }
        };
        let piece = Piece {
            frame,
            _permits: permits,
        };
        self.pieces.send(Ok(piece)).await.is_ok()
    }

    /// Has the client see that the answer is not complete.
    pub(crate) async fn break_off(&self) {
        // Nobody may be there to see.
        let _ = self.pieces.send(Err(BrokenOff)).await;
    }

    /// Waits until the client does not take the answer any more.
    pub(crate) async fn gone(&self) {
        self.pieces.closed().await;
    }
}

fn trailer_bytes(trailers: &HeaderMap) -> usize {
    let lines = trailers.iter();
    lines
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum()
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match &mut self.source {
            Source::Whole(body) => Pin::new(body)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
            Source::Pieces(waiting) => {
                let mut pieces = waiting.lock();
                let Some(pieces) = pieces.as_mut() else {
                    return Poll::Ready(Some(Err(BrokenOff)));
                };
                let piece = ready!(pieces.poll_recv(context));
                waiting.taken.fetch_add(1, Ordering::Relaxed);
                // Its permits are free once hyper has it: hyper keeps little.
                Poll::Ready(piece.map(|piece| piece.map(|piece| piece.frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(body) => body.is_end_stream(),
            Source::Pieces(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(body) => body.size_hint(),
            Source::Pieces(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn of_client() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(CLIENT_BYTES))
    }

    #[tokio::test(start_paused = true)]
    async fn answers_of_a_client_that_takes_none_are_bounded_and_broken_off() {
        let (budget, of_client) = (Budget::new(1 << 10), of_client());
        let patience = Duration::from_secs(30);
        let mut bodies = Vec::new();
        let mut feeders = Vec::new();
        let mut given = 0;
        for _ in 0..10 {
            let (feeder, mut body) = pieces(&budget, &of_client, None);
            body.limit_stall(patience);
            let whole = Frame::data(Bytes::from(vec![0; OWN_BYTES]));
            let wait = Duration::from_millis(20);
            if tokio::time::timeout(wait, feeder.give(whole)).await == Ok(true) {
                given += OWN_BYTES;
            }
            bodies.push(body);
            feeders.push(feeder);
        }
        assert_eq!(given, CLIENT_BYTES);
        // One of them takes what it has, and is waited for.
        let mut last = bodies.split_off(1);
        let first = bodies.pop();
        let mut first = first.unwrap();
        assert!(first.frame().await.unwrap().is_ok());
        tokio::time::sleep(3 * patience).await;
        for (body, feeder) in last.iter_mut().zip(&feeders[1..]).take(3) {
            feeder.gone().await;
            assert!(body.frame().await.unwrap().is_err());
        }
        assert_eq!(of_client.available_permits(), CLIENT_BYTES);
        assert!(
            feeders[0]
                .give(Frame::data(Bytes::from_static(b"more")))
                .await
        );
        assert!(first.frame().await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn what_waits_is_bounded_by_the_budget_and_by_the_answer() {
        for (budget_bytes, most) in [(8 << 20, LARGE_BYTES + OWN_BYTES), (1 << 10, OWN_BYTES)] {
            let budget = Budget::new(budget_bytes);
            let (feeder, mut body) = pieces(&budget, &of_client(), None);
            let mut given = 0;
            let piece = Bytes::from(vec![0; 16 << 10]);
            let wait = std::time::Duration::from_millis(20);
            while let Ok(taken) =
                tokio::time::timeout(wait, feeder.give(Frame::data(piece.clone()))).await
            {
                assert!(taken);
                given += piece.len();
            }
            assert_eq!(given, most);
            let first = body.frame().await.unwrap().unwrap();
            assert_eq!(first.into_data().unwrap().len(), piece.len());
            assert!(feeder.give(Frame::data(piece.clone())).await);
            drop(body);
            assert!(!feeder.give(Frame::data(piece)).await);
        }
    }

    #[tokio::test]
    async fn a_large_frame_is_cut() {
        let budget = Budget::new(1 << 10);
        let (feeder, body) = pieces(&budget, &of_client(), None);
        let large = Bytes::from(vec![7; 300 << 10]);
        let giving = tokio::spawn(async move { feeder.give(Frame::data(large)).await });
        let all = body.collect().await.unwrap().to_bytes();
        assert_eq!(all.len(), 300 << 10);
        assert!(giving.await.unwrap());
    }
}
