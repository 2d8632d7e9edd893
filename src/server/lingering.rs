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
    net::TcpStream,
    runtime::Handle,
    time::timeout,
};

/// The longest that is taken what comes.
const LONGEST: Duration = Duration::from_secs(5);

/// The most that is taken, in bytes: a body of the largest kind.
const MOST: u64 = 32 << 20;

/// A connection, and what counts it as open: both are held until it has lingered.
pub(super) struct Lingering<C: Send + 'static> {
    /// Until it is dropped.
    open: Option<(TcpStream, C)>,
    /// Whether the client has ended its side.
    has_ended: bool,
    /// Whether ours was ended in order.
    is_shut_down: bool,
}

impl<C: Send + 'static> Lingering<C> {
    pub(super) fn new(stream: TcpStream, counted: C) -> Self {
        Self { open: Some((stream, counted)), has_ended: false, is_shut_down: false }
    }

    fn poll<T>(
        &mut self,
        poll: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut self.open {
            Some((stream, _)) => poll(Pin::new(stream)),
            // Only `drop` takes it.
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl<C: Send + 'static> Drop for Lingering<C> {
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

impl<C: Send + Unpin + 'static> AsyncRead for Lingering<C> {
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

impl<C: Send + Unpin + 'static> AsyncWrite for Lingering<C> {
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
        true // as TCP's is
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
