//! Extracts the client that limits charge a request to.

use std::convert::Infallible;

use axum::{
    extract::FromRequestParts,
    http::{Extensions, request::Parts},
};

use crate::{server::ClientAddress, shares::ClientNetwork};

/// The client that limits charge a request to. Requests without a connection, as in tests, all
/// count as one client.
pub(crate) fn client_network(extensions: &Extensions) -> ClientNetwork {
    extensions.get::<ClientAddress>().map_or(ClientNetwork::UNKNOWN, |client| client.network())
}

impl<S: Sync> FromRequestParts<S> for ClientNetwork {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(client_network(&parts.extensions))
    }
}
