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
