//! Receives request bodies within a size, a time and a share of the memory.

use std::{pin::pin, time::Duration};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, stream};
use tokio::time::{Instant, timeout_at};

use crate::shares::{Full, SharePermit};

/// What every body gets, however short it is.
const BASE: Duration = Duration::from_secs(10);
/// So many bytes received buy one more second: a bad mobile network still gets its photograph through.
const BYTES_PER_SECOND: u64 = 32 * 1024;

/// The longest pause between two pieces of a body.
const PAUSE: Duration = Duration::from_secs(10);

/// Why a body was not received.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// More bytes than the route takes.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// Bytes that the route takes.
        limit: u64,
        /// Bytes that a picture in it may have, where it holds one.
        picture_limit: Option<u64>,
    },
    /// It did not arrive in time.
    #[error("the body did not arrive in time")]
    TooSlow,
    /// The client's share of the memory for it is used up.
    #[error("there is no memory for the body")]
    NoMemory,
    /// It ended early, or is not framed as HTTP says.
    #[error("the body broke off")]
    Cut(#[source] axum::Error),
}

impl From<Full> for BodyError {
    fn from(_: Full) -> Self {
        Self::NoMemory
    }
}

/// How a route takes its body.
#[derive(Debug, Clone, Copy)]
pub(in crate::web) struct Receiving {
    /// The most bytes.
    pub limit: u64,
    /// What the client is told instead, where the body holds a picture.
    pub picture_limit: Option<u64>,
    /// The longest time.
    pub timeout: Duration,
}

impl Receiving {
    /// How long the body is by its Content-Length, in bytes, and 0 where it has none.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`]
    pub(in crate::web) fn declared(self, body: &Body) -> Result<u64, BodyError> {
        let declared = body.size_hint().lower();
        if declared > self.limit { Err(self.too_large()) } else { Ok(declared) }
    }

    /// The body as it comes. What is known to be too large is refused before the first byte.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`]
    pub(in crate::web) fn stream(
        self,
        body: Body,
    ) -> Result<impl Stream<Item = Result<Bytes, BodyError>> + Send + use<>, BodyError> {
        self.declared(&body)?;
        let started = Instant::now();
        Ok(stream::try_unfold(
            (body.into_data_stream(), 0),
            move |(mut body, received)| async move {
                let deadline = self.deadline(started, received).min(Instant::now() + PAUSE);
                match timeout_at(deadline, body.try_next()).await {
                    Err(_) => Err(BodyError::TooSlow),
                    Ok(Err(error)) => Err(BodyError::Cut(error)),
                    Ok(Ok(None)) => Ok(None),
                    Ok(Ok(Some(bytes))) => match received + bytes.len() as u64 {
                        received if received > self.limit => Err(self.too_large()),
                        received => Ok(Some((bytes, (body, received)))),
                    },
                }
            },
        ))
    }

    /// The whole body, in memory that is counted as it comes.
    ///
    /// # Errors
    /// [`BodyError`]
    pub(in crate::web) async fn read(
        self,
        body: Body,
        memory: &mut SharePermit,
    ) -> Result<Vec<u8>, BodyError> {
        let most = body.size_hint().exact().unwrap_or(self.limit);
        let mut stream = pin!(self.stream(body)?);
        let mut buffer = Vec::new();
        while let Some(bytes) = stream.try_next().await? {
            memory.grow_to((buffer.len() + bytes.len()) as u64)?;
            if buffer.capacity() == 0 {
                // Addresses for all of it, once, instead of copying it as it grows. They cost no
                // memory before something is written there, and by then it is counted.
                let most = usize::try_from(most).unwrap_or(usize::MAX);
                buffer.try_reserve_exact(most).map_err(|_| BodyError::NoMemory)?;
            }
            buffer.extend_from_slice(&bytes);
        }
        Ok(buffer)
    }

    fn too_large(self) -> BodyError {
        BodyError::TooLarge { limit: self.limit, picture_limit: self.picture_limit }
    }

    fn deadline(self, started: Instant, received: u64) -> Instant {
        let earned = Duration::from_secs(received / BYTES_PER_SECOND);
        started + (BASE + earned).min(self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::StreamExt;

    use super::*;
    use crate::shares::{ClientNetwork, Shares};

    fn receiving(limit: u64) -> Receiving {
        Receiving { limit, picture_limit: None, timeout: Duration::from_secs(300) }
    }

    async fn read(limit: u64, body: Body) -> Result<Vec<u8>, BodyError> {
        let memory = Shares::new(1 << 20, 1, 1);
        receiving(limit).read(body, &mut memory.empty(ClientNetwork::UNKNOWN)).await
    }

    #[tokio::test]
    async fn a_body_within_the_limit_is_read_whole() {
        assert_eq!(read(5, Body::from("hello")).await.unwrap(), b"hello");
    }

    #[tokio::test]
    async fn memory_is_taken_as_the_body_comes_and_not_as_it_was_declared() {
        let memory = Shares::new(8, 1, 1);
        let mut held = memory.empty(ClientNetwork::UNKNOWN);
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(1);
        let pieces = stream::poll_fn(move |context| receiver.poll_recv(context));
        let mut reading = Box::pin(receiving(100).read(Body::from_stream(pieces), &mut held));
        assert!(futures_util::poll!(&mut reading).is_pending());
        assert_eq!(memory.in_use(), 0);
        sender.try_send(Ok(Bytes::from_static(b"123"))).unwrap();
        assert!(futures_util::poll!(&mut reading).is_pending());
        assert_eq!(memory.in_use(), 3);
        sender.try_send(Ok(Bytes::from_static(b"456789"))).unwrap();
        assert!(matches!(reading.await, Err(BodyError::NoMemory)));
        drop(held);
        assert_eq!(memory.in_use(), 0);
    }

    #[tokio::test]
    async fn a_byte_too_many_is_refused_with_and_without_a_declared_length() {
        let error = read(4, Body::from("hello")).await.unwrap_err();
        assert!(matches!(error, BodyError::TooLarge { limit: 4, picture_limit: None }));
        let chunks = stream::iter(["he", "llo"]).map(Ok::<_, io::Error>);
        let error = read(4, Body::from_stream(chunks)).await.unwrap_err();
        assert!(matches!(error, BodyError::TooLarge { limit: 4, picture_limit: None }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_is_given_up_after_ten_seconds() {
        let started = Instant::now();
        let stalled = Body::from_stream(stream::pending::<Result<Bytes, io::Error>>());
        assert!(matches!(read(9, stalled).await.unwrap_err(), BodyError::TooSlow));
        assert_eq!(started.elapsed().as_secs(), 10);
    }

    #[test]
    fn received_bytes_buy_time_up_to_the_longest() {
        let started = Instant::now();
        let seconds = |received| (receiving(0).deadline(started, received) - started).as_secs();
        assert_eq!(seconds(0), 10);
        assert_eq!(seconds(5 << 20), 170);
        assert_eq!(seconds(20 << 20), 300);
    }
}
