//! Refuses requests whose head is not what HTTP wants, before anything else looks at them: two
//! readers of such a head may see two different requests.

use axum::{extract::Request, middleware::Next, response::Response};

use crate::web::{error::Error, extract::head};

/// Checks a request's head: see the module.
pub(in crate::web) async fn check_head(
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    head::check(&mut request)?;
    Ok(next.run(request).await)
}
