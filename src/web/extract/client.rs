//! The client that limits count a request to, as an extractor.

use std::convert::Infallible;

use axum::{
    extract::FromRequestParts,
    http::{Extensions, request::Parts},
};

use crate::{server::Client, shares::ClientNetwork};

/// Whom limits count a request to. Those that come without a connection count as one client.
pub(crate) fn network(extensions: &Extensions) -> ClientNetwork {
    extensions.get::<Client>().map_or(ClientNetwork::UNKNOWN, |client| client.network())
}

impl<S: Sync> FromRequestParts<S> for ClientNetwork {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(network(&parts.extensions))
    }
}
