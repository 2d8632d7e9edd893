//! Discards the rest of a body that no handler has read, so that the client can read the response.
//!
//! If the connection were closed while the client is sending, the client would see a broken pipe,
//! or a reset that discards the response. This layer therefore reads and discards the rest of the
//! body, within limits, while the response is sent.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, HttpBody},
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::timeout;

/// Discarding ends when more than this many bytes of a body are discarded. By default, no route accepts a
/// larger body.
const MAX_DISCARDED_BYTES: u64 = 32 << 20;
/// The most time for discarding a body.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// The layer. The module's documentation describes it.
pub(in crate::web) async fn discard_unread_body(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let is_continue_expected = expects_continue(request.headers());
    let unread = UnreadSlot::default();
    let request = request.map(|body| {
        Body::new(TrackedBody { body, was_polled: false, has_ended: false, unread: unread.clone() })
    });
    let mut response = next.run(request).await;
    match unread.take() {
        None => {}
        // The body is not read here if the client still waits for `100 Continue`, because reading would
        // send that. Nor is it read if it has already arrived too slowly (status 408). A connection with
        // an unread body cannot be used again, so it is closed. If bytes arrive nevertheless,
        // `server::lingering` discards them.
        Some(rest)
            if (is_continue_expected && !rest.was_polled)
                || response.status() == StatusCode::REQUEST_TIMEOUT =>
        {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // Dropping the handle does not end the task.
        Some(rest) => drop(tokio::spawn(timeout(DISCARD_TIMEOUT, discard(rest.body)))),
    }
    response
}

fn expects_continue(headers: &HeaderMap) -> bool {
    match headers.get(header::EXPECT) {
        Some(expect) => expect.as_bytes().eq_ignore_ascii_case(b"100-continue"),
        None => false,
    }
}

async fn discard(mut body: Body) {
    let mut discarded = 0;
    while let Some(Ok(frame)) = body.frame().await {
        discarded += frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
        if discarded > MAX_DISCARDED_BYTES {
            break;
        }
    }
}

/// Receives the unread rest of a body when the handler drops the body.
#[derive(Default, Clone)]
struct UnreadSlot(Arc<Mutex<Option<UnreadBody>>>);

struct UnreadBody {
    body: Body,
    /// Whether the handler has tried to read the body.
    was_polled: bool,
}

impl UnreadSlot {
    fn take(&self) -> Option<UnreadBody> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body that moves its unread rest to an [`UnreadSlot`] when it is dropped before its end.
struct TrackedBody {
    body: Body,
    was_polled: bool,
    /// Whether the body has ended or failed.
    has_ended: bool,
    unread: UnreadSlot,
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.was_polled = true;
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.has_ended |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        if !self.has_ended && !self.body.is_end_stream() {
            let rest =
                UnreadBody { body: std::mem::take(&mut self.body), was_polled: self.was_polled };
            *self.unread.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(rest);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io;

    use axum::{Router, middleware::from_fn, routing::post};
    use futures_util::stream;
    use tokio::{
        sync::mpsc,
        time::{Instant, sleep},
    };
    use tower::ServiceExt;

    use super::*;

    /// Sends an endless body, a chunk after each pause, to a handler that does not read it. Returns
    /// how many bytes were discarded, and how long that took.
    async fn discarded(chunk_bytes: usize, pause: Duration) -> (u64, Duration) {
        let (sender, mut sizes) = mpsc::unbounded_channel();
        let body = Body::from_stream(stream::unfold(sender, move |sender| async move {
            sleep(pause).await;
            sender.send(chunk_bytes as u64).ok()?;
            Some((Ok::<_, io::Error>(vec![0; chunk_bytes]), sender))
        }));
        let router =
            Router::new().route("/", post(async || "ok")).layer(from_fn(discard_unread_body));
        let started = Instant::now();
        let response = router.oneshot(Request::post("/").body(body).unwrap()).await.unwrap();
        // The response does not wait until the body is discarded.
        assert_eq!((response.status(), started.elapsed()), (StatusCode::OK, Duration::ZERO));
        let mut total = 0;
        let add_all = async {
            while let Some(size) = sizes.recv().await {
                total += size;
            }
        };
        // The channel ends when the body is dropped, after the last read.
        timeout(Duration::from_secs(60), add_all).await.unwrap();
        (total, started.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_is_discarded_for_at_most_five_seconds() {
        assert_eq!(discarded(1, Duration::from_secs(3600)).await, (0, DISCARD_TIMEOUT));
        // One byte every 0.3 s: 16 bytes arrive within 5 s.
        assert_eq!(discarded(1, Duration::from_millis(300)).await, (16, DISCARD_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn discarding_ends_with_the_first_chunk_beyond_32_mib() {
        let chunk_bytes = 64 * 1024;
        let (total, elapsed) = discarded(chunk_bytes, Duration::ZERO).await;
        assert_eq!(total, MAX_DISCARDED_BYTES + chunk_bytes as u64);
        assert_eq!(elapsed, Duration::ZERO);
    }
}
