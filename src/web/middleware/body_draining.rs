//! Lets a client see the answer to a request whose body was not read to its end.
//!
//! A client that is still sending when its connection closes sees a broken pipe, or a reset that
//! also throws away the answer that was on its way. So the rest of the body is read and thrown
//! away while the answer goes out, within bounds.

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

/// The most that is thrown away, in bytes: a body of the largest kind.
const MOST: u64 = 32 << 20;
/// The longest that it may take.
const LONGEST: Duration = Duration::from_secs(5);

/// Reads the rest of a request's body and throws it away: see the module.
pub(in crate::web) async fn drain_body(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let waits = waits_for_continue(request.headers());
    let leftover = Leftover::default();
    let request = request.map(|body| {
        Body::new(Watched { body, begun: false, ended: false, leftover: leftover.clone() })
    });
    let mut response = next.run(request).await;
    match leftover.take() {
        None => {}
        // The client has stalled, or was never told to go on: to read now would tell it to. What it
        // sends all the same, the server takes when it closes the connection.
        Some(rest)
            if (waits && !rest.begun) || response.status() == StatusCode::REQUEST_TIMEOUT =>
        {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Some(rest) => drop(tokio::spawn(timeout(LONGEST, discard(rest.body)))),
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
        if discarded > MOST {
            break;
        }
    }
}

/// What a handler left of a body.
#[derive(Default, Clone)]
struct Leftover(Arc<Mutex<Option<Rest>>>);

struct Rest {
    body: Body,
    begun: bool,
}

impl Leftover {
    fn take(&self) -> Option<Rest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body that is kept when it is dropped before its end.
struct Watched {
    body: Body,
    begun: bool,
    ended: bool,
    leftover: Leftover,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.begun = true;
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.ended |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.ended && !self.body.is_end_stream() {
            let rest = Rest { body: std::mem::take(&mut self.body), begun: self.begun };
            *self.leftover.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(rest);
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

    /// Sends a body of such pieces without an end, one after each pause, to a handler that reads
    /// nothing of it. Gives the bytes that were taken, and how long that lasted.
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
        // The body is dropped when its drain ends; a minute would be far too long.
        timeout(Duration::from_secs(60), all).await.unwrap();
        (sum, started.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_stalls_or_trickles_is_read_no_longer_than_five_seconds() {
        assert_eq!(drained(1, Duration::from_secs(3600)).await, (0, LONGEST));
        assert_eq!(drained(1, Duration::from_millis(300)).await, (16, LONGEST));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_read_than_a_body_of_the_largest_kind() {
        let piece = 64 * 1024;
        let (taken, lasted) = drained(piece, Duration::ZERO).await;
        assert_eq!(taken, MOST + piece as u64, "the piece that is too much is the last");
        assert_eq!(lasted, Duration::ZERO);
    }
}
