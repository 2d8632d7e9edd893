//! Refuses requests whose head violates HTTP, before any other layer uses it: two parsers might
//! read two different requests from such a head.

use axum::{extract::Request, middleware::Next, response::Response};

use crate::web::{error::Error, extract::head};

/// The layer; see the module's documentation.
pub(in crate::web) async fn check_head(
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    head::check(&mut request)?;
    Ok(next.run(request).await)
}
