//! A connection between the front, which waits for many things at once, and the thread that runs a fork.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes on their way to the program or from it: the other side waits beyond this.
const WINDOW_BYTES: usize = 256 << 10;
/// Pieces on their way to the client, whatever their size: each takes more than its bytes.
const PIECES_MAX: usize = 1024;

/// The client's part, as the program's side sees it.
#[derive(PartialEq, Eq, Debug)]
pub enum Input {
    /// The next bytes.
    Bytes(Bytes),
    /// None are there yet.
    Pending,
    /// There will be no more: the client has shut its half down.
    End,
}

/// The program's side of a connection.
pub struct Wire {
    shared: Arc<Shared>,
}

/// The front's side: a stream. Dropped, it makes the connection over.
pub(crate) struct FrontEnd {
    shared: Arc<Shared>,
}

/// Lets the front change the course of a connection that is under way.
#[derive(Clone)]
pub(crate) struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    peer: Option<SocketAddr>,
    state: Mutex<State>,
    changed: Condvar,
}

type Wake = Arc<dyn Fn() + Send + Sync>;

struct State {
    to_program: VecDeque<Bytes>,
    to_program_bytes: usize,
    input_has_ended: bool,
    to_client: VecDeque<Bytes>,
    to_client_bytes: usize,
    output_has_ended: bool,
    /// Bytes that the front still reads before it must have found the head of an answer; `None` for no limit.
    head_left_bytes: Option<usize>,
    is_over: bool,
    deadline: Option<Instant>,
    /// The front has done something that the program's side has not looked at.
    has_news: bool,
    /// The program's side has more for the client than there was room for.
    wants_room: bool,
    /// Set while a fork runs for this wire.
    wake: Option<Wake>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// A connection that must be over at `deadline`, if there is one.
pub(crate) fn wire(
    deadline: Option<Instant>,
    peer: Option<SocketAddr>,
) -> (FrontEnd, Handle, Wire) {
    let shared = Arc::new(Shared {
        peer,
        state: Mutex::new(State {
            to_program: VecDeque::new(),
            to_program_bytes: 0,
            input_has_ended: false,
            to_client: VecDeque::new(),
            to_client_bytes: 0,
            output_has_ended: false,
            head_left_bytes: None,
            is_over: false,
            deadline,
            has_news: false,
            wants_room: false,
            wake: None,
            reader: None,
            writer: None,
        }),
        changed: Condvar::new(),
    });
    let front = FrontEnd {
        shared: Arc::clone(&shared),
    };
    let handle = Handle {
        shared: Arc::clone(&shared),
    };
    (front, handle, Wire { shared })
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the program's side that there is something to look at.
    fn tell(&self, mut state: MutexGuard<'_, State>) {
        state.has_news = true;
        let wake = state.wake.clone();
        drop(state);
        self.changed.notify_all();
        if let Some(wake) = wake {
            wake();
        }
    }

    fn end(&self) {
        let mut state = self.lock();
        if state.is_over {
            return;
        }
        state.is_over = true;
        state.input_has_ended = true;
        state.to_program.clear();
        state.to_program_bytes = 0;
        let wakers = [state.reader.take(), state.writer.take()];
        self.tell(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Wire {
    /// The front's part of it, for looking at.
    pub(crate) fn handle(&self) -> Handle {
        Handle {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Says by what the fork is made to look at this wire; `None` when it does not run any more.
    pub(crate) fn set_waker(&self, wake: Option<Wake>) {
        self.shared.lock().wake = wake;
    }

    /// The client's address, if it has one.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.shared.peer
    }

    /// The next bytes for the program, at most `bytes_max`.
    pub fn read(&self, bytes_max: usize) -> Input {
        let mut state = self.shared.lock();
        let Some(first) = state.to_program.front_mut() else {
            return if state.input_has_ended {
                Input::End
            } else {
                Input::Pending
            };
        };
        let length = first.len().min(bytes_max);
        let bytes = first.split_to(length);
        if first.is_empty() {
            state.to_program.pop_front();
        }
        state.to_program_bytes -= length;
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
        Input::Bytes(bytes)
    }

    /// The number of bytes that the client's side takes now. If it is 0, there is news once it is more.
    #[must_use]
    pub fn room(&self) -> usize {
        let mut state = self.shared.lock();
        let room = match state.to_client.len() < PIECES_MAX {
            true => WINDOW_BYTES.saturating_sub(state.to_client_bytes),
            false => 0,
        };
        state.wants_room = room == 0;
        room
    }

    /// Hands on what the program has written.
    pub fn write(&self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        // Nobody will read it.
        if state.is_over {
            return;
        }
        state.to_client_bytes += bytes.len();
        state.to_client.push_back(bytes);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// The program has shut its half down or closed the connection.
    pub fn end_output(&self) {
        let mut state = self.shared.lock();
        state.output_has_ended = true;
        let wakers = [state.reader.take(), state.writer.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// True once the front needs nothing more of the program: it has the whole answer, or the client is gone.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.shared.lock().is_over
    }

    /// The time by which it must be over.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.shared.lock().deadline
    }

    /// True if the front has done something since [`Wire::take_news`].
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.shared.lock().has_news
    }

    /// Forgets the news, to be called before looking.
    pub fn take_news(&self) -> bool {
        std::mem::take(&mut self.shared.lock().has_news)
    }

    /// Waits for news, no longer than `timeout` or the deadline.
    pub fn wait(&self, timeout: Duration) {
        let mut until = Instant::now().checked_add(timeout);
        let mut state = self.shared.lock();
        loop {
            if state.has_news || state.is_over {
                return;
            }
            let now = Instant::now();
            if let Some(deadline) = state.deadline {
                until = Some(until.map_or(deadline, |until| until.min(deadline)));
            }
            let left = until.map_or(Duration::from_secs(3600), |until| {
                until.saturating_duration_since(now)
            });
            if left.is_zero() {
                return;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl Handle {
    /// Nobody needs anything more of the program.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.lock().is_over
    }

    /// Nothing more is needed of the program.
    pub(crate) fn finish(&self) {
        self.shared.end();
    }

    /// Has reading fail after that many bytes, unless [`Handle::has_head`] is called before: a program may send heads
    /// of interim answers for ever, which are skipped as fast as they come.
    pub(crate) fn limit_head(&self, bytes: usize) {
        self.shared.lock().head_left_bytes = Some(bytes);
    }

    /// The head of the answer is there: what follows has no limit.
    pub(crate) fn has_head(&self) {
        self.shared.lock().head_left_bytes = None;
    }

    /// Gives the connection another deadline.
    pub(crate) fn set_deadline(&self, deadline: Option<Instant>) {
        let mut state = self.shared.lock();
        state.deadline = deadline;
        self.shared.tell(state);
    }
}

impl Drop for Wire {
    /// A program that never gets it says nothing to the client.
    fn drop(&mut self) {
        self.end_output();
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl AsyncRead for FrontEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        let Some(first) = state.to_client.front_mut() else {
            if state.output_has_ended || state.is_over {
                return Poll::Ready(Ok(()));
            }
            state.reader = Some(context.waker().clone());
            return Poll::Pending;
        };
        let length = first.len().min(into.remaining());
        into.put_slice(&first[..length]);
        first.advance(length);
        if first.is_empty() {
            state.to_client.pop_front();
        }
        state.to_client_bytes -= length;
        if let Some(left) = state.head_left_bytes {
            let Some(left) = left.checked_sub(length) else {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            };
            state.head_left_bytes = Some(left);
        }
        // Half of it, so that the program does not run for each few bytes.
        let is_half_empty =
            state.to_client_bytes <= WINDOW_BYTES / 2 && state.to_client.len() <= PIECES_MAX / 2;
        if state.wants_room && is_half_empty {
            state.wants_room = false;
            self.shared.tell(state);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FrontEnd {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        if state.is_over || state.input_has_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // It has answered without reading all of it: the answer counts.
        if state.output_has_ended {
            return Poll::Ready(Ok(bytes.len()));
        }
        let room = WINDOW_BYTES.saturating_sub(state.to_program_bytes);
        if room == 0 {
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let length = room.min(bytes.len());
        state.to_program_bytes += length;
        state
            .to_program
            .push_back(Bytes::copy_from_slice(&bytes[..length]));
        self.shared.tell(state);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        if !state.input_has_ended {
            state.input_has_ended = true;
            self.shared.tell(state);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_and_end() {
        let (mut front, _, wire) = wire(None, None);
        front.write_all(b"question").await.unwrap();
        assert_eq!(wire.read(5), Input::Bytes(Bytes::from_static(b"quest")));
        assert_eq!(wire.read(99), Input::Bytes(Bytes::from_static(b"ion")));
        assert_eq!(wire.read(99), Input::Pending);
        front.shutdown().await.unwrap();
        assert_eq!(wire.read(99), Input::End);
        wire.write(Bytes::from_static(b"answer"));
        wire.end_output();
        let mut answer = Vec::new();
        front.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
    }

    #[tokio::test]
    async fn what_no_program_has_taken_ends() {
        let (mut front, _, wire) = wire(None, None);
        drop(wire);
        let mut answer = Vec::new();
        front.read_to_end(&mut answer).await.unwrap();
        assert!(answer.is_empty());
    }

    #[tokio::test]
    async fn neither_side_takes_more_than_the_window() {
        let (mut front, _, wire) = wire(None, None);
        let much = vec![0; 2 * WINDOW_BYTES];
        assert_eq!(front.write(&much).await.unwrap(), WINDOW_BYTES);
        let more = tokio::time::timeout(Duration::from_millis(20), front.write(&much)).await;
        assert!(more.is_err());
        wire.write(much[..WINDOW_BYTES].to_vec().into());
        assert_eq!(wire.room(), 0);
        wire.take_news();
        let mut some = vec![0; WINDOW_BYTES / 2];
        front.read_exact(&mut some).await.unwrap();
        assert!(wire.has_news());
        assert_eq!(wire.room(), WINDOW_BYTES / 2);
    }

    #[tokio::test]
    async fn small_pieces_fill_it_as_well() {
        let (mut front, _, wire) = wire(None, None);
        for _ in 0..PIECES_MAX {
            assert!(wire.room() > 0);
            wire.write(Bytes::from_static(b"x"));
        }
        assert_eq!(wire.room(), 0);
        wire.take_news();
        let mut some = [0; PIECES_MAX / 2];
        front.read_exact(&mut some).await.unwrap();
        assert!(wire.has_news());
        assert!(wire.room() > 0);
    }

    #[tokio::test]
    async fn a_head_without_an_end_is_read_no_further() {
        let (mut front, handle, wire) = wire(None, None);
        handle.limit_head(8);
        wire.write(Bytes::from_static(b"12345678"));
        let mut some = [0; 8];
        front.read_exact(&mut some).await.unwrap();
        wire.write(Bytes::from_static(b"9"));
        assert!(front.read(&mut some).await.is_err());
        handle.has_head();
        wire.write(Bytes::from_static(b"abcdefgh"));
        front.read_exact(&mut some).await.unwrap();
        assert_eq!(&some, b"abcdefgh");
    }

    #[test]
    fn a_front_that_is_gone_makes_it_over_and_wakes_the_fork() {
        let (front, _, wire) = wire(None, None);
        let (woken, is_woken) = std::sync::mpsc::sync_channel(8);
        wire.set_waker(Some(Arc::new(move || woken.try_send(()).unwrap())));
        drop(front);
        is_woken.try_recv().unwrap();
        assert!(wire.is_over());
        wire.wait(Duration::from_secs(60));
        // What comes late is dropped.
        wire.write(Bytes::from_static(b"late"));
    }

    #[test]
    fn a_wait_ends_at_the_deadline() {
        let soon = Instant::now() + Duration::from_millis(10);
        let (_front, handle, wire) = wire(Some(soon), None);
        wire.wait(Duration::from_secs(60));
        assert!(Instant::now() >= soon);
        handle.set_deadline(None);
        assert!(wire.take_news());
        wire.wait(Duration::from_millis(1));
    }
}
