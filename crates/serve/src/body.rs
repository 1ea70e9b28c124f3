//! Bodies of requests: read as a whole, within their limits, before a fork is taken.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::answer::Failure;
use crate::budget::Share;
use crate::metrics::Outcome;
use crate::server::Front;
use crate::syntax;

/// A body that comes slower than this many bytes per second has no more patience than a head.
const SLOWEST_BYTES_PER_S: u64 = 1 << 10;
/// Parts that a body is kept in. Chunks of a byte each would take many times their size by themselves.
const PART_BYTES: usize = 64 << 10;

/// A request as the fork gets it: its body is there as a whole.
#[derive(Debug, Default)]
pub(crate) struct RequestBody {
    parts: VecDeque<BytesMut>,
    length: u64,
    trailers: Option<HeaderMap>,
    /// Given back once the fork has taken all of it.
    share: Share,
}

impl RequestBody {
    /// Of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut body = Self::default();
        body.push(bytes);
        body
    }

    fn push(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = match self.parts.back() {
                Some(part) if part.len() < PART_BYTES => PART_BYTES - part.len(),
                _ => {
                    self.parts.push_back(BytesMut::new());
                    PART_BYTES
                }
            };
            let (now, later) = rest.split_at(room.min(rest.len()));
            if let Some(part) = self.parts.back_mut() {
                part.extend_from_slice(now);
            }
            rest = later;
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(part) = self.parts.pop_front() {
            self.length -= part.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(part.freeze()))));
        }
        let trailers = self.trailers.take();
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.trailers {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(self.length),
        }
    }
}

/// Says how long the body is. hyper does so as well, but not for methods that have none usually.
pub(crate) fn with_length(head: Request<()>, body: RequestBody) -> Request<RequestBody> {
    let (mut parts, ()) = head.into_parts();
    match &body.trailers {
        Some(trailers) => {
            let names: Vec<&str> = trailers.keys().map(http::HeaderName::as_str).collect();
            if let Ok(names) = HeaderValue::from_str(&names.join(", ")) {
                parts.headers.insert(header::TRAILER, names);
            }
        }
        None if body.length > 0 => {
            parts
                .headers
                .insert(header::CONTENT_LENGTH, body.length.into());
        }
        None => {}
    }
    Request::from_parts(parts, body)
}

/// The time that a client has for its body. It has as long as for a head, again and again, for as many bytes as the
/// slowest client sends in that time: one that was fast has earned no time in which it may hold its part of the
/// budget.
struct Pace {
    patience: Duration,
    begun: Instant,
    bytes: u64,
}

impl Pace {
    fn new(patience: Duration) -> Self {
        Self {
            patience,
            begun: Instant::now(),
            bytes: 0,
        }
    }

    fn left(&self) -> Duration {
        self.patience.saturating_sub(self.begun.elapsed())
    }

    fn has_read(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        let least_bytes = u128::from(SLOWEST_BYTES_PER_S) * self.patience.as_millis() / 1000;
        if u128::from(self.bytes) >= least_bytes.max(1) {
            self.begun = Instant::now();
            self.bytes = 0;
        }
    }
}

/// Reads a body as a whole, within its limits: `bytes_max` and those of the front.
pub(crate) async fn read_body(
    front: &Front,
    bytes_max: u64,
    body: &mut Incoming,
) -> Result<RequestBody, Failure> {
    let refused = |status, reason: String| Failure::new(status, Outcome::Refused, reason);
    let too_large = || {
        refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body has more than the {bytes_max} bytes that it may have"),
        )
    };
    if body.size_hint().lower() > bytes_max {
        return Err(too_large());
    }
    let mut read = RequestBody::default();
    let mut pace = Pace::new(front.settings.header_timeout);
    loop {
        let frame = tokio::time::timeout(pace.left(), body.frame())
            .await
            .map_err(|_| {
                let reason = "the body of the request took too long".to_owned();
                refused(StatusCode::REQUEST_TIMEOUT, reason)
            })?;
        let Some(frame) = frame else {
            return Ok(read);
        };
        let frame = frame.map_err(|_| {
            let reason = "the body of the request is not complete".to_owned();
            refused(StatusCode::BAD_REQUEST, reason)
        })?;
        match frame.into_data() {
            Ok(bytes) => {
                if read.length + bytes.len() as u64 > bytes_max {
                    return Err(too_large());
                }
                if !front.bodies.extend(&mut read.share, bytes.len()) {
                    return Err(Failure::busy(
                        "there is no memory for more bodies of requests",
                    ));
                }
                pace.has_read(bytes.len());
                // A copy: a small piece is not to keep a large buffer of hyper's alive.
                read.push(&bytes);
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    // Those of HTTP/2 have not passed the guard.
                    for name in trailers.keys() {
                        syntax::check_trailer_name(name.as_str())?;
                    }
                    read.trailers = Some(trailers);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_pieces_are_kept_together() {
        let mut body = RequestBody::default();
        for number in 0..2 * PART_BYTES + 3 {
            body.push(&[number as u8]);
        }
        body.push(&[]);
        assert_eq!(body.parts.len(), 3);
        assert_eq!(body.size_hint().exact(), Some(2 * PART_BYTES as u64 + 3));
        let all = body.collect().await.unwrap().to_bytes();
        assert!((0..).zip(&all).all(|(at, byte)| *byte == at as u8));
        assert_eq!(RequestBody::of(&vec![7; 3 * PART_BYTES]).parts.len(), 3);
    }

    #[test]
    fn a_fast_start_earns_no_time() {
        let mut pace = Pace::new(Duration::from_secs(10));
        pace.has_read(64 << 20);
        assert!(pace.left() <= Duration::from_secs(10));
        let begun = pace.begun;
        pace.has_read(9 << 10);
        assert_eq!(pace.begun, begun);
        pace.has_read(1 << 10);
        assert_ne!(pace.begun, begun);
    }
}
