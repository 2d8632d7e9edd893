//! Refuses requests whose head violates HTTP, before inner layers use the head: a proxy and the
//! service might understand such a head differently. Also refuses bodies with a coding that the
//! service does not decode, and replaces the `Host` with the host in the request line, if any.

use axum::{extract::Request, middleware::Next, response::Response};

use crate::web::{error::Error, extract::head};

/// The layer. The module's documentation describes it.
pub(in crate::web) async fn check_head(
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    head::check_head_and_set_host(&mut request)?;
    Ok(next.run(request).await)
}
