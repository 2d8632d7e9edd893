//! Closes a connection whose client takes nothing of what is written to it.

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

/// How long a client may go without taking a byte of its answer.
const LONGEST: Duration = Duration::from_secs(10);

/// What a stream can be kept waiting with.
#[derive(Clone, Copy, PartialEq)]
enum Step {
    Write,
    Flush,
    Shutdown,
}

/// A stream that fails when a step takes too long in which nothing is written.
pub(super) struct WriteTimeout<S> {
    stream: S,
    /// The step that is waited for, and until when.
    waiting: Option<(Step, Pin<Box<Sleep>>)>,
}

impl<S> WriteTimeout<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, waiting: None }
    }

    fn bound<T>(
        &mut self,
        step: Step,
        polled: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            // Bytes that were taken are progress, whatever was waited for. A flush that had nothing
            // to do is none: hyper begins each try to shut a stream down with one.
            if self.waiting.as_ref().is_some_and(|(waits, _)| step == Step::Write || *waits == step)
            {
                self.waiting = None;
            }
            return polled;
        }
        let (_, end) = self.waiting.get_or_insert_with(|| (step, Box::pin(sleep(LONGEST))));
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
        self.bound(Step::Write, polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.bound(Step::Write, polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.bound(Step::Flush, polled, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.bound(Step::Shutdown, polled, context)
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

    /// A client that sends this, and takes nothing any more at one of the steps.
    struct Stuck {
        at: Step,
        sends: &'static [u8],
    }

    impl Stuck {
        fn poll<T>(&self, step: Step, outcome: T) -> Poll<io::Result<T>> {
            if self.at == step { Poll::Pending } else { Poll::Ready(Ok(outcome)) }
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
            self.poll(Step::Write, bytes.len())
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.poll(Step::Flush, ())
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.poll(Step::Shutdown, ())
        }
    }

    /// How long hyper serves a client that gets stuck.
    async fn served_for(at: Step) -> Duration {
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
        assert_eq!(served_for(Step::Write).await, LONGEST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_that_gets_stuck_is_ended_after_ten_seconds() {
        assert_eq!(served_for(Step::Flush).await, LONGEST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_that_gets_stuck_is_ended_after_ten_seconds() {
        assert_eq!(served_for(Step::Shutdown).await, LONGEST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_slow_and_steady_gets_all_of_its_answer() {
        let (mut client, stream) = duplex(1);
        let mut stream = WriteTimeout::new(stream);
        let read = async {
            let mut all = Vec::new();
            while all.len() < 20 {
                sleep(LONGEST * 9 / 10).await;
                all.push(client.read_u8().await.unwrap());
            }
            all
        };
        let (written, read) = tokio::join!(stream.write_all(&[7; 20]), read);
        written.unwrap();
        assert_eq!(read, [7; 20]);
    }
}
