//! Receives request bodies, with limits on their size, time and memory.

use std::{pin::pin, time::Duration};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, stream};
use tokio::time::{Instant, timeout_at};

use crate::shares::{NotEnoughUnits, SharePermit};

/// The time that a body may take before received bytes extend it.
const INITIAL_TIME: Duration = Duration::from_secs(10);
/// The number of received bytes that extend the time by one second. This rate is low enough for a
/// photograph over a bad mobile network.
const MIN_BYTES_PER_SECOND: u64 = 32 * 1024;

/// The longest pause between two chunks of a body.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Why a body was not received.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The body has more bytes than the route accepts.
    #[error("the body is larger than {max_bytes} bytes")]
    TooLarge {
        /// The most bytes of a body that the route accepts.
        max_bytes: u64,
        /// What the body contains.
        content: BodyContent,
    },
    /// The body did not arrive in time.
    #[error("the body did not arrive in time")]
    TooSlow,
    /// This client can get no more memory for bodies.
    #[error("there is no memory for the body")]
    NoMemory,
    /// The body ended early, or violates HTTP's framing.
    #[error("the body ended early")]
    Incomplete(#[source] axum::Error),
}

impl From<NotEnoughUnits> for BodyError {
    fn from(_: NotEnoughUnits) -> Self {
        Self::NoMemory
    }
}

/// What a route's body contains. The message about a body that is too large depends on this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyContent {
    /// A picture.
    Picture {
        /// The most bytes of the picture. The body may be longer: Base64 or a form adds bytes.
        max_picture_bytes: u64,
    },
    /// Several pictures.
    Batch,
    /// No picture, only its URL.
    Url,
}

/// The limits of a route's body.
#[derive(Debug, Clone, Copy)]
pub(in crate::web) struct BodyLimits {
    /// The most bytes of the body.
    pub max_bytes: u64,
    /// What the body contains.
    pub content: BodyContent,
    /// The most time for receiving the body.
    pub timeout: Duration,
}

impl BodyLimits {
    /// Checks the body's Content-Length, and returns it. Returns 0 if the body has none.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`] if the length exceeds the limit.
    pub(in crate::web) fn check_declared_length(self, body: &Body) -> Result<u64, BodyError> {
        let declared = body.size_hint().lower();
        if declared > self.max_bytes { Err(self.too_large()) } else { Ok(declared) }
    }

    /// Streams the body as it arrives.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`] if the declared length exceeds the limit. Later, the stream may return
    /// any [`BodyError`].
    pub(in crate::web) fn stream(
        self,
        body: Body,
    ) -> Result<impl Stream<Item = Result<Bytes, BodyError>> + Send + use<>, BodyError> {
        self.check_declared_length(&body)?;
        let started = Instant::now();
        Ok(stream::try_unfold(
            (body.into_data_stream(), 0),
            move |(mut body, received)| async move {
                let deadline = self.deadline(started, received).min(Instant::now() + MAX_PAUSE);
                match timeout_at(deadline, body.try_next()).await {
                    Err(_) => Err(BodyError::TooSlow),
                    Ok(Err(error)) => Err(BodyError::Incomplete(error)),
                    Ok(Ok(None)) => Ok(None),
                    Ok(Ok(Some(bytes))) => {
                        let received = received + bytes.len() as u64;
                        if received > self.max_bytes {
                            return Err(self.too_large());
                        }
                        Ok(Some((bytes, (body, received))))
                    }
                }
            },
        ))
    }

    /// Receives the whole body into memory. The memory permit grows as bytes arrive.
    ///
    /// # Errors
    /// Any [`BodyError`].
    pub(in crate::web) async fn read(
        self,
        body: Body,
        memory: &mut SharePermit,
    ) -> Result<Vec<u8>, BodyError> {
        let capacity = body.size_hint().exact().unwrap_or(self.max_bytes);
        let mut stream = pin!(self.stream(body)?);
        let mut buffer = Vec::new();
        while let Some(bytes) = stream.try_next().await? {
            memory.grow_to((buffer.len() + bytes.len()) as u64)?;
            if buffer.capacity() == 0 {
                // Reserves address space for the whole body at once. Otherwise the buffer would be
                // copied each time it grows. The reserved bytes take memory only when they are
                // written, and the permit covers the written bytes.
                let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
                buffer.try_reserve_exact(capacity).map_err(|_| BodyError::NoMemory)?;
            }
            buffer.extend_from_slice(&bytes);
        }
        Ok(buffer)
    }

    fn too_large(self) -> BodyError {
        BodyError::TooLarge { max_bytes: self.max_bytes, content: self.content }
    }

    /// The deadline of the whole body after `received` bytes. Further bytes may extend it.
    fn deadline(self, started: Instant, received: u64) -> Instant {
        let extension = Duration::from_secs(received / MIN_BYTES_PER_SECOND);
        started + (INITIAL_TIME + extension).min(self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::StreamExt;

    use super::*;
    use crate::shares::{ClientNetwork, Shares};

    /// The argument `step` of [`Shares::undivided`]. With a step of 1, units are not rounded.
    const STEP: u64 = 1;

    fn body_limits(max_bytes: u64) -> BodyLimits {
        BodyLimits { max_bytes, content: BodyContent::Url, timeout: Duration::from_secs(300) }
    }

    async fn read(max_bytes: u64, body: Body) -> Result<Vec<u8>, BodyError> {
        let memory = Shares::undivided(1 << 20, STEP);
        body_limits(max_bytes).read(body, &mut memory.empty_permit(ClientNetwork::UNKNOWN)).await
    }

    #[tokio::test]
    async fn a_body_with_the_most_allowed_bytes_is_read_completely() {
        assert_eq!(read(5, Body::from("hello")).await.unwrap(), b"hello");
    }

    #[tokio::test]
    async fn the_memory_permit_grows_with_the_received_bytes() {
        // The memory is enough for eight bytes, but nine arrive.
        let memory = Shares::undivided(8, STEP);
        let mut permit = memory.empty_permit(ClientNetwork::UNKNOWN);
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(1);
        let chunks = stream::poll_fn(move |context| receiver.poll_recv(context));
        let mut reading = Box::pin(body_limits(100).read(Body::from_stream(chunks), &mut permit));
        assert!(futures_util::poll!(&mut reading).is_pending());
        assert_eq!(memory.in_use(), 0);
        sender.try_send(Ok(Bytes::from_static(b"123"))).unwrap();
        assert!(futures_util::poll!(&mut reading).is_pending());
        assert_eq!(memory.in_use(), 3);
        sender.try_send(Ok(Bytes::from_static(b"456789"))).unwrap();
        assert!(matches!(reading.await, Err(BodyError::NoMemory)));
        drop(permit);
        assert_eq!(memory.in_use(), 0);
    }

    #[tokio::test]
    async fn a_body_with_one_byte_too_many_is_refused_with_and_without_a_declared_length() {
        let error = read(4, Body::from("hello")).await.unwrap_err();
        assert!(matches!(error, BodyError::TooLarge { max_bytes: 4, .. }));
        let chunks = stream::iter(["he", "llo"]).map(Ok::<_, io::Error>);
        let error = read(4, Body::from_stream(chunks)).await.unwrap_err();
        assert!(matches!(error, BodyError::TooLarge { max_bytes: 4, .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_arriving_is_refused_after_ten_seconds() {
        // The first body may take 10 s. The second one may take 20 s, but pauses for 10 s.
        for sent_bytes in [0, 10 * MIN_BYTES_PER_SECOND as usize] {
            let started = Instant::now();
            let sent = stream::iter([Ok::<_, io::Error>(Bytes::from(vec![0; sent_bytes]))]);
            let stalled = Body::from_stream(sent.chain(stream::pending()));
            assert!(matches!(read(1 << 20, stalled).await.unwrap_err(), BodyError::TooSlow));
            assert_eq!(started.elapsed().as_secs(), 10, "after {sent_bytes} bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_arrives_too_slowly_is_refused_although_it_never_pauses_for_long() {
        let started = Instant::now();
        let slow = Body::from_stream(stream::repeat(()).then(async |()| {
            tokio::time::sleep(Duration::from_millis(700)).await;
            Ok::<_, io::Error>(Bytes::from_static(b"x"))
        }));
        assert!(matches!(read(1 << 20, slow).await.unwrap_err(), BodyError::TooSlow));
        assert_eq!(started.elapsed().as_secs(), 10);
    }

    #[test]
    fn received_bytes_extend_the_deadline_up_to_the_timeout() {
        let started = Instant::now();
        let seconds = |received| (body_limits(0).deadline(started, received) - started).as_secs();
        assert_eq!(seconds(0), 10);
        // 5 MiB extend the 10 s by 160 s.
        assert_eq!(seconds(5 << 20), 170);
        // 20 MiB would extend them by 640 s, but the timeout is 300 s.
        assert_eq!(seconds(20 << 20), 300);
    }
}
