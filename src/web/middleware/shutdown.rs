//! Layers that handle requests while the service is stopping.

use axum::{
    extract::{Request, State},
    http::{HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{server::Shutdown, web::error::Error};

/// Answers requests that still run when the drain's time is up. Otherwise their connections would
/// just break.
pub(in crate::web) async fn end_with_drain(
    State(shutdown): State<Shutdown>,
    request: Request,
    next: Next,
) -> Response {
    tokio::select! {
        response = next.run(request) => response,
        () = shutdown.requests_must_end() => Error::ShuttingDown.into_response(),
    }
}

/// Closes each connection after its answer once the stop is announced, so that clients open new
/// ones to another instance.
pub(in crate::web) async fn close_when_draining(
    State(shutdown): State<Shutdown>,
    mut response: Response,
) -> Response {
    if shutdown.is_draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
