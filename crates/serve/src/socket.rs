//! A client's socket: what was read of it ahead, and the time for which it may take nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::either::Either;

/// A socket as the kernel has it.
pub(crate) type Stream = Either<TcpStream, UnixStream>;

/// A stream of a client. Bytes that were looked at before it was given on are read again, and one that takes no byte
/// for a time is broken.
#[derive(Debug)]
pub(crate) struct Socket<S> {
    inner: S,
    ahead: BytesMut,
    /// The longest time for which it may take nothing; `None` for any.
    stall_max: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub(crate) fn new(inner: S, stall_max: Option<Duration>) -> Self {
        Self {
            inner,
            ahead: BytesMut::new(),
            stall_max,
            timer: None,
        }
    }

    /// Bytes that have been looked at and not been read.
    pub(crate) fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// Looks at more of it; the number of bytes that have come, 0 at its end. `bytes_max` bounds all that is ahead.
    pub(crate) async fn look(&mut self, bytes_max: usize) -> io::Result<usize> {
        let room = bytes_max.saturating_sub(self.ahead.len());
        if room == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut limited = (&mut self.inner).take(room as u64);
        limited.read_buf(&mut self.ahead).await
    }

    /// Forgets the first `count` bytes of what is ahead.
    pub(crate) fn skip(&mut self, count: usize) {
        self.ahead.advance(count.min(self.ahead.len()));
    }

    /// Breaks a stream that takes nothing.
    fn poll_taken<T>(
        &mut self,
        context: &mut Context<'_>,
        taken: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Some(stall_max) = self.stall_max.filter(|_| taken.is_pending()) else {
            self.timer = None;
            return taken;
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + stall_max)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.inner).poll_read(context, into);
        }
        let length = self.ahead.len().min(into.remaining());
        into.put_slice(&self.ahead[..length]);
        self.ahead.advance(length);
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.poll_taken(context, taken)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let taken = Pin::new(&mut self.inner).poll_write_vectored(context, bytes);
        self.poll_taken(context, taken)
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
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    const STALL: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_let_go() {
        let (_client, server) = duplex(16);
        let mut socket = Socket::new(server, Some(STALL));
        let error = socket.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_takes_a_little_is_waited_for() {
        let (mut client, server) = duplex(16);
        let mut socket = Socket::new(server, Some(STALL));
        let writing = tokio::spawn(async move { socket.write_all(&[0; 64]).await });
        for _ in 0..64 {
            tokio::time::sleep(STALL / 2).await;
            client.read_u8().await.unwrap();
        }
        writing.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_was_looked_at_is_read_again() {
        let (mut client, server) = duplex(64);
        let mut socket = Socket::new(server, None);
        client.write_all(b"head and rest").await.unwrap();
        assert_eq!(socket.look(7).await.unwrap(), 7);
        assert_eq!(socket.ahead(), b"head an");
        assert!(socket.look(7).await.is_err());
        socket.skip(5);
        drop(client);
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"and rest");
        assert_eq!(socket.look(7).await.unwrap(), 0);
    }
}
