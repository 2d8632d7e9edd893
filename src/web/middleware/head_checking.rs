//! Refuses requests whose head violates HTTP, before inner layers use the head. Two parsers may read
//! different requests from such a head.

use axum::{extract::Request, middleware::Next, response::Response};

use crate::web::{error::Error, extract::head};

/// The layer. The module's documentation describes it.
pub(in crate::web) async fn check_head(
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    head::check(&mut request)?;
    Ok(next.run(request).await)
}
