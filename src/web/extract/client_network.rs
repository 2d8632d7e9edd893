//! Extracts the client network of a request.

use std::convert::Infallible;

use axum::{
    extract::FromRequestParts,
    http::{Extensions, request::Parts},
};

use crate::{server::ClientAddress, shares::ClientNetwork};

/// Returns the network whose limits a request counts toward. All requests without a client's address
/// (as in tests) have the same network.
pub(crate) fn client_network(extensions: &Extensions) -> ClientNetwork {
    match extensions.get::<ClientAddress>() {
        Some(address) => address.network(),
        None => ClientNetwork::UNKNOWN,
    }
}

impl<S: Sync> FromRequestParts<S> for ClientNetwork {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(client_network(&parts.extensions))
    }
}
