//! Closes connections in two steps. After the last response the server stops writing, but continues
//! to read for a limited time: the connection lingers.
//!
//! If the server closed a connection while the client was still sending, TCP would reset the connection. A
//! reset can discard a response that the client has not read yet. This also concerns a client that
//! sent `Expect: 100-continue` and was refused: it may send its body nevertheless (RFC 9110, section
//! 10.1.1). Go's HTTP client, which Caddy uses, does that.

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

/// The most time that a connection lingers.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);

/// The most bytes to read while a connection lingers. With the default settings, no route accepts a longer
/// body.
const MAX_LINGER_BYTES: u64 = 32 << 20;

/// A stream that can linger, such as a `TcpStream`.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// A connection that lingers when it is dropped, if the server has shut down its side and the client has
/// not closed its own. Its permits for the limits on connections are dropped after it has lingered.
pub(super) struct Lingering<S: Stream, P: Send + 'static> {
    /// `None` only while `drop` runs.
    stream_and_permits: Option<(S, P)>,
    /// Whether the client has closed its side of the connection, or a read has failed.
    client_has_closed: bool,
    /// Whether the server has shut down its own side without an error.
    is_shut_down: bool,
}

impl<S: Stream, P: Send + 'static> Lingering<S, P> {
    pub(super) fn new(stream: S, permits: P) -> Self {
        Self {
            stream_and_permits: Some((stream, permits)),
            client_has_closed: false,
            is_shut_down: false,
        }
    }

    fn poll_stream<T>(
        &mut self,
        poll: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut self.stream_and_permits {
            Some((stream, _)) => poll(Pin::new(stream)),
            // Unreachable, since only `drop` takes the stream.
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl<S: Stream, P: Send + 'static> Drop for Lingering<S, P> {
    fn drop(&mut self) {
        let Some((stream, permits)) = self.stream_and_permits.take() else { return };
        // If the server has not shut down its side, the connection has failed. If the client has
        // closed its side, no bytes can arrive.
        if !self.is_shut_down || self.client_has_closed {
            return;
        }
        // At the end of the process there may be no runtime. The connection then closes at once.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            let (mut rest, mut sink) = (stream.take(MAX_LINGER_BYTES), tokio::io::sink());
            let discard = tokio::io::copy(&mut rest, &mut sink);
            // After a timeout or an error, the connection is closed as well.
            let _ = timeout(LINGER_TIMEOUT, discard).await;
            drop(permits);
        });
    }
}

impl<S: Stream, P: Send + Unpin + 'static> AsyncRead for Lingering<S, P> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = self.poll_stream(|stream| stream.poll_read(context, buffer));
        // A read without an error and without bytes means that the client has closed its side.
        self.client_has_closed |= match &polled {
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
        self.poll_stream(|stream| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_stream(|stream| stream.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream_and_permits.as_ref().is_some_and(|(stream, _)| stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_stream(|stream| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.poll_stream(|stream| stream.poll_shutdown(context));
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

    /// The size of the buffer between the client and the server, in bytes.
    const BUFFER: usize = 64 * 1024;

    /// Makes a connection linger. Returns the client's end, and a channel that closes together with
    /// the connection.
    async fn lingering() -> (DuplexStream, oneshot::Receiver<()>) {
        let (client, stream) = duplex(BUFFER);
        // The sender stands for the permits, which are dropped when the connection closes.
        let (permits, closed) = oneshot::channel();
        let mut connection = Lingering::new(stream, permits);
        connection.shutdown().await.unwrap();
        drop(connection); // now it lingers
        (client, closed)
    }

    /// Returns how long it takes until the connection is closed. Panics after a minute.
    async fn time_until(closed: oneshot::Receiver<()>) -> Duration {
        let started = Instant::now();
        timeout(Duration::from_secs(60), closed).await.unwrap().unwrap_err();
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_lingers_for_at_most_five_seconds() {
        let (idle_client, closed) = lingering().await;
        assert_eq!(time_until(closed).await, LINGER_TIMEOUT);
        drop(idle_client);

        let (mut slow_client, closed) = lingering().await;
        let sending = tokio::spawn(async move {
            while slow_client.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(300)).await;
            }
        });
        assert_eq!(time_until(closed).await, LINGER_TIMEOUT);
        sending.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_lingering_connection_reads_at_most_32_mib() {
        let (mut client, closed) = lingering().await;
        let chunk = [0; BUFFER];
        let mut sent = 0;
        while client.write_all(&chunk).await.is_ok() {
            sent += chunk.len() as u64;
        }
        // The server reads `MAX_LINGER_BYTES`. The client may also have sent the bytes in the buffer.
        let max_sent = MAX_LINGER_BYTES + BUFFER as u64;
        assert!((MAX_LINGER_BYTES..=max_sent).contains(&sent), "{sent}");
        assert_eq!(time_until(closed).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lingering_connection_closes_as_soon_as_the_client_closes_its_side() {
        let (client, closed) = lingering().await;
        drop(client);
        assert_eq!(time_until(closed).await, Duration::ZERO);
    }
}
