//! Layers that handle requests while the service is stopping.

use axum::{
    extract::{Request, State},
    http::{HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{server::Shutdown, web::error::Error};

/// Ends requests that are still running when the drain timeout has passed. Their clients get an error
/// response. Without this layer, their connections would close without a response.
pub(in crate::web) async fn end_after_drain_timeout(
    State(shutdown): State<Shutdown>,
    request: Request,
    next: Next,
) -> Response {
    tokio::select! {
        response = next.run(request) => response,
        () = shutdown.wait_until_requests_must_end() => Error::ShuttingDown.into_response(),
    }
}

/// Makes clients close their connections while the service is stopping. Their next requests then go
/// to another instance.
pub(in crate::web) async fn close_when_stopping(
    State(shutdown): State<Shutdown>,
    mut response: Response,
) -> Response {
    if shutdown.is_stopping() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
