//! Drains the unread rest of a request's body, so that the client sees its answer.
//!
//! If the connection closed while a client is still sending, the client would see a broken pipe, or
//! a reset that discards the answer. So this layer reads and discards the rest of the body, within
//! limits, while the answer goes out.

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

/// The most bytes to discard: the largest body that a route accepts.
const MAX_DRAINED_BYTES: u64 = 32 << 20;
/// The longest time to drain a body.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The layer; see the module's documentation.
pub(in crate::web) async fn drain_body(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let waits = waits_for_continue(request.headers());
    let unread = UnreadSlot::default();
    let request = request.map(|body| {
        Body::new(TrackedBody { body, was_polled: false, has_ended: false, unread: unread.clone() })
    });
    let mut response = next.run(request).await;
    match unread.take() {
        None => {}
        // The client has stalled, or still waits for `100 Continue`, which reading would send. If
        // it sends its body all the same, the server discards that when it closes the connection.
        Some(rest)
            if (waits && !rest.was_polled) || response.status() == StatusCode::REQUEST_TIMEOUT =>
        {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Some(rest) => drop(tokio::spawn(timeout(DRAIN_TIMEOUT, discard(rest.body)))),
    }
    response
}

fn waits_for_continue(headers: &HeaderMap) -> bool {
    headers
        .get(header::EXPECT)
        .is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

async fn discard(mut body: Body) {
    let mut discarded = 0;
    while let Some(Ok(frame)) = body.frame().await {
        discarded += frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
        if discarded > MAX_DRAINED_BYTES {
            break;
        }
    }
}

/// Holds the part of a body that the handler did not read, once the handler has dropped the body.
#[derive(Default, Clone)]
struct UnreadSlot(Arc<Mutex<Option<UnreadBody>>>);

struct UnreadBody {
    body: Body,
    was_polled: bool,
}

impl UnreadSlot {
    fn take(&self) -> Option<UnreadBody> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body that moves its unread part to an [`UnreadSlot`] when dropped before its end.
struct TrackedBody {
    body: Body,
    was_polled: bool,
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

    /// Sends an endless body, a piece after each pause, to a handler that reads none of it. Returns
    /// how many bytes were drained, and how long that took.
    async fn drained(piece: usize, pause: Duration) -> (u64, Duration) {
        let (taken, mut pieces) = mpsc::unbounded_channel();
        let body = Body::from_stream(stream::unfold(taken, move |taken| async move {
            sleep(pause).await;
            taken.send(piece as u64).ok()?;
            Some((Ok::<_, io::Error>(vec![0; piece]), taken))
        }));
        let router = Router::new().route("/", post(async || "ok")).layer(from_fn(drain_body));
        let started = Instant::now();
        let answer = router.oneshot(Request::post("/").body(body).unwrap()).await.unwrap();
        assert_eq!((answer.status(), started.elapsed()), (StatusCode::OK, Duration::ZERO));
        let mut sum = 0;
        let all = async {
            while let Some(piece) = pieces.recv().await {
                sum += piece;
            }
        };
        // The body is dropped when the drain ends.
        timeout(Duration::from_secs(60), all).await.unwrap();
        (sum, started.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stalls_or_trickles_is_read_for_at_most_five_seconds() {
        assert_eq!(drained(1, Duration::from_secs(3600)).await, (0, DRAIN_TIMEOUT));
        assert_eq!(drained(1, Duration::from_millis(300)).await, (16, DRAIN_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_32_mib_of_an_unread_body_are_drained() {
        let piece = 64 * 1024;
        let (taken, lasted) = drained(piece, Duration::ZERO).await;
        assert_eq!(
            taken,
            MAX_DRAINED_BYTES + piece as u64,
            "the piece that exceeds the limit is the last"
        );
        assert_eq!(lasted, Duration::ZERO);
    }
}
