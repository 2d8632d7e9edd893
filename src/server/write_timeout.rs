//! Closes a connection whose client does not read what the server writes.

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

/// How long a client may go without reading a byte of its answer.
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
    /// The operation that is pending, and its timer.
    pending: Option<(Operation, Pin<Box<Sleep>>)>,
}

impl<S> WriteTimeout<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, pending: None }
    }

    fn with_timeout<T>(
        &mut self,
        operation: Operation,
        polled: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            // A finished write is progress, whichever operation was pending. A finished flush may
            // be no progress: hyper flushes before each attempt to shut the stream down.
            if self.pending.as_ref().is_some_and(|(pending_operation, _)| {
                operation == Operation::Write || *pending_operation == operation
            }) {
                self.pending = None;
            }
            return polled;
        }
        let (_, end) = self.pending.get_or_insert_with(|| (operation, Box::pin(sleep(TIMEOUT))));
        ready!(end.as_mut().poll(context));
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
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
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

    /// A client that sends some bytes, and from one kind of operation on reads nothing any more.
    struct Stuck {
        at: Operation,
        sends: &'static [u8],
    }

    impl Stuck {
        fn poll<T>(&self, operation: Operation, outcome: T) -> Poll<io::Result<T>> {
            if self.at == operation { Poll::Pending } else { Poll::Ready(Ok(outcome)) }
        }
    }

    impl AsyncRead for Stuck {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.sends.is_empty() {
                return Poll::Pending;
            }
            buffer.put_slice(std::mem::take(&mut self.sends));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Stuck {
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

    /// How long hyper serves a client that stops reading at this operation.
    async fn served_for(at: Operation) -> Duration {
        let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let stream = TokioIo::new(WriteTimeout::new(Stuck { at, sends: request }));
        let answer = service_fn(async |_| Ok::<_, Infallible>(Response::new(Body::from("ok"))));
        let started = Instant::now();
        let connection = http1::Builder::new().serve_connection(stream, answer);
        let ended = timeout(Duration::from_secs(60), connection).await;
        assert!(ended.is_ok_and(|ended| ended.is_err()));
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_no_byte_is_closed_after_ten_seconds() {
        assert_eq!(served_for(Operation::Write).await, TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_that_gets_stuck_is_ended_after_ten_seconds() {
        assert_eq!(served_for(Operation::Flush).await, TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_that_gets_stuck_is_ended_after_ten_seconds() {
        assert_eq!(served_for(Operation::Shutdown).await, TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_slow_and_steady_gets_all_of_its_answer() {
        let (mut client, stream) = duplex(1);
        let mut stream = WriteTimeout::new(stream);
        let read = async {
            let mut all = Vec::new();
            while all.len() < 20 {
                sleep(TIMEOUT * 9 / 10).await;
                all.push(client.read_u8().await.unwrap());
            }
            all
        };
        let (written, read) = tokio::join!(stream.write_all(&[7; 20]), read);
        written.unwrap();
        assert_eq!(read, [7; 20]);
    }
}
