//! Reads from `Cache-Control` whether a request may be answered from the cache.

use std::convert::Infallible;

use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};

use utoipa::IntoParams;

use crate::embed::CacheMode;

/// The cache mode that the request's `Cache-Control` asks for. With the directive `no-cache`
/// (RFC 9111, section 5.2.1.4), the service calls NVIDIA even if the vector is cached. The new vector
/// then replaces the cached one. All other directives are ignored.
pub(in crate::web) struct CacheControl(pub(in crate::web) CacheMode);

/// Describes the header in the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "describes the header; `CacheControl` reads it")]
pub(in crate::web) struct CacheControlHeader {
    /// With `no-cache` the service calls NVIDIA instead of using its cache.
    #[param(rename = "Cache-Control")]
    cache_control: Option<String>,
}

impl<S: Sync> FromRequestParts<S> for CacheControl {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let values = parts.headers.get_all(header::CACHE_CONTROL).iter();
        let mut directives =
            values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
        let has_no_cache =
            directives.any(|directive| directive.trim().eq_ignore_ascii_case("no-cache"));
        Ok(Self(if has_no_cache { CacheMode::Bypass } else { CacheMode::Use }))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    #[tokio::test]
    async fn only_no_cache_bypasses_the_cache() {
        for (values, expected) in [
            (&[][..], CacheMode::Use),
            (&["no-cache"], CacheMode::Bypass),
            (&["max-age=0, No-Cache"], CacheMode::Bypass),
            (&["no-store", "no-cache"], CacheMode::Bypass),
            (&["max-age=0"], CacheMode::Use),
            (&["no-cached, xno-cache"], CacheMode::Use),
        ] {
            let mut request = Request::new(());
            for value in values {
                request.headers_mut().append(header::CACHE_CONTROL, value.parse().unwrap());
            }
            let mut parts = request.into_parts().0;
            let Ok(CacheControl(mode)) = CacheControl::from_request_parts(&mut parts, &()).await;
            assert_eq!(mode, expected, "{values:?}");
        }
    }
}
