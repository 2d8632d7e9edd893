//! Answers the requests that the end of the drain cuts off, instead of breaking their connection.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// See the module. The token is cancelled when the drain's time is up.
pub async fn cut(
    State(time_is_up): State<Arc<CancellationToken>>,
    request: Request,
    next: Next,
) -> Response {
    tokio::select! {
        response = next.run(request) => response,
        () = time_is_up.cancelled() => Error::ShuttingDown.into_response(),
    }
}
