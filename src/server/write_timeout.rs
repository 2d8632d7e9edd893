//! Closes connections whose clients do not read what the server writes.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// The longest time that a client may take without reading a byte of its response.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The operations that a client can block by not reading.
#[derive(Clone, Copy, PartialEq)]
enum Operation {
    Write,
    Flush,
    Shutdown,
}

/// A stream whose writes, flushes and shutdowns fail after [`TIMEOUT`] without progress.
pub(super) struct WriteTimeout<S> {
    stream: S,
    pending: Option<Pending>,
}

/// An operation that a client blocks.
struct Pending {
    operation: Operation,
    timer: Pin<Box<Sleep>>,
}

impl<S> WriteTimeout<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, pending: None }
    }

    /// `polled` is what polling the operation has returned. Returns it, or an error if the client has
    /// blocked the stream for [`TIMEOUT`].
    fn with_timeout<T>(
        &mut self,
        operation: Operation,
        polled: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            // A write always means progress. A flush or shutdown means progress only if it was pending:
            // hyper flushes before each attempt to shut the stream down, and such a flush must not
            // restart the timer of the shutdown.
            if let Some(pending) = &self.pending
                && (operation == Operation::Write || operation == pending.operation)
            {
                self.pending = None;
            }
            return polled;
        }
        // If the client already blocks another operation, that operation's timer keeps running.
        let pending = self
            .pending
            .get_or_insert_with(|| Pending { operation, timer: Box::pin(sleep(TIMEOUT)) });
        ready!(pending.timer.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.with_timeout(Operation::Write, polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.with_timeout(Operation::Write, polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.with_timeout(Operation::Flush, polled, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.with_timeout(Operation::Shutdown, polled, context)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::convert::Infallible;

    use axum::{body::Body, response::Response};
    use hyper::{server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::{Instant, timeout},
    };

    use super::*;

    /// A stream from a client that sends a request. One kind of operation blocks for ever.
    struct BlockingStream {
        request: &'static [u8],
        blocks_at: Operation,
    }

    impl BlockingStream {
        fn poll<T>(&self, operation: Operation, result: T) -> Poll<io::Result<T>> {
            if operation == self.blocks_at { Poll::Pending } else { Poll::Ready(Ok(result)) }
        }
    }

    impl AsyncRead for BlockingStream {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.request.is_empty() {
                return Poll::Pending;
            }
            buffer.put_slice(std::mem::take(&mut self.request));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for BlockingStream {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll(Operation::Write, bytes.len())
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.poll(Operation::Flush, ())
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.poll(Operation::Shutdown, ())
        }
    }

    /// How long hyper serves a connection on which this operation blocks.
    async fn time_until_closed(blocks_at: Operation) -> Duration {
        let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let stream = TokioIo::new(WriteTimeout::new(BlockingStream { request, blocks_at }));
        let service = service_fn(async |_| Ok::<_, Infallible>(Response::new(Body::from("ok"))));
        let started = Instant::now();
        let connection = http1::Builder::new().serve_connection(stream, service);
        let result = timeout(Duration::from_secs(60), connection).await.unwrap();
        assert!(result.is_err());
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocked_write_fails_after_ten_seconds() {
        assert_eq!(time_until_closed(Operation::Write).await, TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocked_flush_fails_after_ten_seconds() {
        assert_eq!(time_until_closed(Operation::Flush).await, TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocked_shutdown_fails_after_ten_seconds() {
        assert_eq!(time_until_closed(Operation::Shutdown).await, TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_that_keeps_reading_gets_the_whole_response() {
        let (mut client, stream) = duplex(1);
        let mut stream = WriteTimeout::new(stream);
        let read = async {
            let mut received = Vec::new();
            while received.len() < 20 {
                sleep(TIMEOUT * 9 / 10).await;
                received.push(client.read_u8().await.unwrap());
            }
            received
        };
        let (written, received) = tokio::join!(stream.write_all(&[7; 20]), read);
        written.unwrap();
        assert_eq!(received, [7; 20]);
    }
}
