//! Receives request bodies within a size and a time.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, stream};
use tokio::time::{Instant, timeout_at};

/// What every body gets, however short it is.
const BASE: Duration = Duration::from_secs(10);
/// Each of these bytes buys a second more: a bad mobile network still gets its photograph through.
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
    /// It ended early, or is not framed as HTTP says.
    #[error("the body broke off")]
    Cut(#[source] axum::Error),
}

/// How a route takes its body.
#[derive(Debug, Clone, Copy)]
pub struct Receiving {
    /// The most bytes.
    pub limit: u64,
    /// What the client is told instead, where the body holds a picture.
    pub picture_limit: Option<u64>,
    /// The longest time.
    pub timeout: Duration,
}

impl Receiving {
    /// How long the body is, by its Content-Length, or may be where it has none.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`]
    pub fn expected(self, body: &Body) -> Result<u64, BodyError> {
        match body.size_hint() {
            hint if hint.lower() > self.limit => Err(self.too_large()),
            hint => Ok(hint.exact().unwrap_or(self.limit)),
        }
    }

    /// The body as it comes. What is known to be too large is refused before the first byte.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`]
    pub fn stream(
        self,
        body: Body,
    ) -> Result<impl Stream<Item = Result<Bytes, BodyError>> + Send + use<>, BodyError> {
        self.expected(&body)?;
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

    /// The whole body, in memory that is asked for once.
    ///
    /// # Errors
    /// [`BodyError`]
    pub async fn read(self, body: Body) -> Result<Vec<u8>, BodyError> {
        let expected = self.expected(&body)?;
        let stream = self.stream(body)?;
        let buffer = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
        stream
            .try_fold(buffer, |mut buffer, bytes| async move {
                buffer.extend_from_slice(&bytes);
                Ok(buffer)
            })
            .await
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
    use futures_util::StreamExt;

    use super::*;

    fn receiving(limit: u64) -> Receiving {
        Receiving { limit, picture_limit: None, timeout: Duration::from_secs(300) }
    }

    #[tokio::test]
    async fn a_body_within_the_limit_is_read_whole() {
        assert_eq!(receiving(5).read(Body::from("hello")).await.unwrap(), b"hello");
    }

    #[tokio::test]
    async fn a_byte_too_many_is_refused_with_and_without_a_declared_length() {
        let error = receiving(4).read(Body::from("hello")).await.unwrap_err();
        assert!(matches!(error, BodyError::TooLarge { limit: 4, picture_limit: None }));
        let chunks = stream::iter(["he", "llo"]).map(Ok::<_, std::io::Error>);
        let error = receiving(4).read(Body::from_stream(chunks)).await.unwrap_err();
        assert!(matches!(error, BodyError::TooLarge { limit: 4, picture_limit: None }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_is_given_up_after_ten_seconds() {
        let started = Instant::now();
        let stalled = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        assert!(matches!(receiving(9).read(stalled).await.unwrap_err(), BodyError::TooSlow));
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
