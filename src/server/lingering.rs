//! Closes connections in stages: after the last answer nothing more is written, but what the client
//! still sends is taken for a while.
//!
//! A connection that is closed while its client sends is reset, and the reset also throws away the
//! answer that was on its way. Clients that said `Expect: 100-continue` and were refused may send
//! their body all the same (RFC 9110, section 10.1.1): Go's does so, and what is built on it, such as
//! Caddy.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    runtime::Handle,
    time::timeout,
};

/// How long to go on reading.
const LONGEST: Duration = Duration::from_secs(5);

/// The most that is taken, in bytes: a body of the largest kind.
const MOST: u64 = 32 << 20;

/// What can linger: TCP's stream is.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// A connection, and what counts it as open: both are held until it has lingered.
pub(super) struct Lingering<S: Stream, C: Send + 'static> {
    /// Until it is dropped.
    open: Option<(S, C)>,
    /// Whether the client has ended its side.
    has_ended: bool,
    /// Whether ours was ended in order.
    is_shut_down: bool,
}

impl<S: Stream, C: Send + 'static> Lingering<S, C> {
    pub(super) fn new(stream: S, counted: C) -> Self {
        Self { open: Some((stream, counted)), has_ended: false, is_shut_down: false }
    }

    fn poll<T>(
        &mut self,
        poll: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut self.open {
            Some((stream, _)) => poll(Pin::new(stream)),
            // Only `drop` takes it.
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl<S: Stream, C: Send + 'static> Drop for Lingering<S, C> {
    fn drop(&mut self) {
        let Some((stream, counted)) = self.open.take() else { return };
        // At the very end, outside of a runtime, nobody is waited for.
        if let (true, false, Ok(runtime)) =
            (self.is_shut_down, self.has_ended, Handle::try_current())
        {
            runtime.spawn(async move {
                // Whatever has not come by then, or fails, ends with the connection.
                let mut rest = stream.take(MOST);
                let _ = timeout(LONGEST, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
                drop(counted);
            });
        }
    }
}

impl<S: Stream, C: Send + Unpin + 'static> AsyncRead for Lingering<S, C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = self.poll(|stream| stream.poll_read(context, buffer));
        self.has_ended |= match &polled {
            Poll::Ready(Ok(())) => buffer.filled().len() == before && buffer.remaining() > 0,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        polled
    }
}

impl<S: Stream, C: Send + Unpin + 'static> AsyncWrite for Lingering<S, C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(|stream| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(|stream| stream.poll_write_vectored(context, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        self.open.as_ref().is_some_and(|(stream, _)| stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.poll(|stream| stream.poll_shutdown(context));
        self.is_shut_down |= matches!(polled, Poll::Ready(Ok(())));
        polled
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::{
        io::{AsyncWriteExt, DuplexStream, duplex},
        sync::oneshot,
        time::{Instant, sleep},
    };

    use super::*;

    /// A connection that was ended in order while its client may still send, its client, and what
    /// ends with it.
    async fn closing() -> (DuplexStream, oneshot::Receiver<()>) {
        let (client, stream) = duplex(64 * 1024);
        let (counted, closed) = oneshot::channel();
        let mut lingering = Lingering::new(stream, counted);
        lingering.shutdown().await.unwrap();
        (client, closed)
    }

    /// How long it is until a connection is closed. A minute would be far too long.
    async fn time_until(closed: oneshot::Receiver<()>) -> Duration {
        let started = Instant::now();
        timeout(Duration::from_secs(60), closed).await.unwrap().unwrap_err();
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_stalls_or_trickles_is_waited_for_no_longer_than_five_seconds() {
        let (stalls, closed) = closing().await;
        assert_eq!(time_until(closed).await, LONGEST);
        drop(stalls);

        let (mut trickles, closed) = closing().await;
        let trickle = tokio::spawn(async move {
            while trickles.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(300)).await;
            }
        });
        assert_eq!(time_until(closed).await, LONGEST);
        trickle.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_taken_than_a_body_of_the_largest_kind() {
        let (mut client, closed) = closing().await;
        let piece = [0; 64 * 1024];
        let mut sent = 0;
        while client.write_all(&piece).await.is_ok() {
            sent += piece.len() as u64;
        }
        assert!((MOST..=MOST + 2 * piece.len() as u64).contains(&sent), "{sent}");
        assert_eq!(time_until(closed).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_ends_its_side_is_not_waited_for() {
        let (client, closed) = closing().await;
        drop(client);
        assert_eq!(time_until(closed).await, Duration::ZERO);
    }
}
