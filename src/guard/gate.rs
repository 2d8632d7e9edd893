//! Who is let in: checked by the header alone, before any of the body is read.

use std::{fmt, sync::Arc, time::Instant};

use axum::{
    extract::{Request, State},
    http::Method,
    middleware::Next,
    response::Response,
};

use super::{
    client::{TrustedProxies, network},
    keys::ClientKeys,
    origin::Origins,
    rate::{Caller, RateLimit},
};
use crate::{error::Error, sandbox::PHOTO_PATH};

/// Who is let in.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The keys of the clients; with none, everybody is let in.
    pub keys: ClientKeys,
    /// Whose word on a client's address is believed.
    pub proxies: TrustedProxies,
    /// Pictures a minute for each client.
    pub rate_limit: Option<u32>,
    /// Other origins whose pages may call.
    pub origins: Origins,
}

/// Lets requests in, or not.
pub struct Gate {
    keys: ClientKeys,
    rate_limit: Option<RateLimit>,
    origins: Origins,
}

impl Gate {
    /// A gate with these settings.
    pub fn new(settings: &Settings) -> Self {
        Self {
            keys: settings.keys.clone(),
            rate_limit: settings.rate_limit.map(RateLimit::per_minute),
            origins: settings.origins.clone(),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        // What a page cannot have sent, and what costs nothing, needs no look.
        let is_post = request.method() == Method::POST;
        if is_post {
            self.origins.check(request.headers()).map_err(Error::CrossOrigin)?;
        }
        let key = self.keys.find(request.headers());
        if !self.keys.is_empty() && key.is_none() && !is_open(request.uri().path()) {
            return Err(Error::Unauthorized);
        }
        if let (true, Some(limit)) = (is_post, &self.rate_limit) {
            let caller =
                key.map_or_else(|| Caller::Network(network(request.extensions())), Caller::Key);
            limit.take(caller, Instant::now()).map_err(Error::RateLimited)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// See the module.
pub async fn gate(
    State(gate): State<Arc<Gate>>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    gate.check(&request)?;
    Ok(next.run(request).await)
}

/// What needs no key: what machines probe, what people read before they have one, and the
/// sandbox's sample picture, which the service itself fetches.
pub fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/health" | "/ready" | "/docs" | "/openapi.json" | PHOTO_PATH)
        || path.starts_with("/docs/")
}
