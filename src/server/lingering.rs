//! Closes connections in two stages: after the last answer the server stops writing, but goes on
//! reading for a while.
//!
//! Closing a connection while its client sends causes a reset, and the reset discards the answer if
//! the client has not read it yet. A client that sent `Expect: 100-continue` and was refused may
//! send its body all the same (RFC 9110, section 10.1.1). Go's HTTP client does so, and with it
//! programs such as Caddy.

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

/// The longest time to go on reading.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);

/// The most bytes to read after the answer: the largest body that a route accepts.
const MAX_LINGER_BYTES: u64 = 32 << 20;

/// A stream that can linger, such as a `TcpStream`.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// A connection that lingers when dropped, together with the permits that count it as open. The
/// permits are given back only when the connection has lingered.
pub(super) struct Lingering<S: Stream, P: Send + 'static> {
    /// `None` only while `drop` runs.
    open: Option<(S, P)>,
    /// Whether the client has closed its side.
    client_has_ended: bool,
    /// Whether the server's side was shut down in order.
    is_shut_down: bool,
}

impl<S: Stream, P: Send + 'static> Lingering<S, P> {
    pub(super) fn new(stream: S, permits: P) -> Self {
        Self { open: Some((stream, permits)), client_has_ended: false, is_shut_down: false }
    }

    fn poll<T>(
        &mut self,
        poll: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut self.open {
            Some((stream, _)) => poll(Pin::new(stream)),
            // Unreachable: only `drop` takes the stream.
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl<S: Stream, P: Send + 'static> Drop for Lingering<S, P> {
    fn drop(&mut self) {
        let Some((stream, permits)) = self.open.take() else { return };
        // Outside of a runtime, at the end of the process, the connection just closes.
        if let (true, false, Ok(runtime)) =
            (self.is_shut_down, self.client_has_ended, Handle::try_current())
        {
            runtime.spawn(async move {
                // A timeout or an error just closes the connection.
                let mut rest = stream.take(MAX_LINGER_BYTES);
                let _ = timeout(LINGER_TIMEOUT, tokio::io::copy(&mut rest, &mut tokio::io::sink()))
                    .await;
                drop(permits);
            });
        }
    }
}

impl<S: Stream, P: Send + Unpin + 'static> AsyncRead for Lingering<S, P> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = self.poll(|stream| stream.poll_read(context, buffer));
        self.client_has_ended |= match &polled {
            Poll::Ready(Ok(())) => buffer.filled().len() == before && buffer.remaining() > 0,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        polled
    }
}

impl<S: Stream, P: Send + Unpin + 'static> AsyncWrite for Lingering<S, P> {
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

    /// Shuts a connection down while its client may still send. Returns the client's end, and a
    /// channel that closes together with the connection.
    async fn closing() -> (DuplexStream, oneshot::Receiver<()>) {
        let (client, stream) = duplex(64 * 1024);
        let (permits, closed) = oneshot::channel();
        let mut lingering = Lingering::new(stream, permits);
        lingering.shutdown().await.unwrap();
        (client, closed)
    }

    /// How long it takes until the connection is closed. Fails after a minute.
    async fn time_until(closed: oneshot::Receiver<()>) -> Duration {
        let started = Instant::now();
        timeout(Duration::from_secs(60), closed).await.unwrap().unwrap_err();
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stalls_or_trickles_is_waited_for_at_most_five_seconds() {
        let (stalls, closed) = closing().await;
        assert_eq!(time_until(closed).await, LINGER_TIMEOUT);
        drop(stalls);

        let (mut trickles, closed) = closing().await;
        let trickle = tokio::spawn(async move {
            while trickles.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(300)).await;
            }
        });
        assert_eq!(time_until(closed).await, LINGER_TIMEOUT);
        trickle.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_32_mib_are_taken_from_a_closing_connection() {
        let (mut client, closed) = closing().await;
        let piece = [0; 64 * 1024];
        let mut sent = 0;
        while client.write_all(&piece).await.is_ok() {
            sent += piece.len() as u64;
        }
        assert!(
            (MAX_LINGER_BYTES..=MAX_LINGER_BYTES + 2 * piece.len() as u64).contains(&sent),
            "{sent}"
        );
        assert_eq!(time_until(closed).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_ends_its_side_is_not_waited_for() {
        let (client, closed) = closing().await;
        drop(client);
        assert_eq!(time_until(closed).await, Duration::ZERO);
    }
}
