//! Removes the trailing slash from paths, so that `/health/` is the same as `/health`.

use axum::{
    extract::Request,
    http::{Uri, uri::PathAndQuery},
};

/// Removes a single trailing slash from a request's path. The path `/` and paths with several
/// trailing slashes do not change.
pub(in crate::web) fn trim_trailing_slash(mut request: Request) -> Request {
    if let Some(uri) = without_trailing_slash(request.uri()) {
        *request.uri_mut() = uri;
    }
    request
}

/// The URI without its trailing slash, or `None` if it does not change.
fn without_trailing_slash(uri: &Uri) -> Option<Uri> {
    let path = uri.path().strip_suffix('/').filter(|path| !path.is_empty())?;
    if path.ends_with('/') {
        return None;
    }
    let path_and_query = match uri.query() {
        Some(query) => format!("{path}?{query}").parse::<PathAndQuery>(),
        None => path.parse(),
    };
    let mut parts = uri.clone().into_parts();
    // The shorter path is valid too, so neither its parsing above nor `from_parts` fails.
    parts.path_and_query = Some(path_and_query.ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_trailing_slash_is_removed_and_nothing_else_changes() {
        for (uri, expected) in [
            ("/health/", Some("/health")),
            ("/health/?a=/&b", Some("/health?a=/&b")),
            ("/health/?", Some("/health?")),
            ("//health/", Some("//health")),
            (
                "http://images.example:8000/health/?a=b",
                Some("http://images.example:8000/health?a=b"),
            ),
            ("/health", None),
            ("/health?a=/", None),
            ("/", None),
            ("/?a", None),
            ("//", None),
            ("/health//", None),
            ("*", None),
            ("images.example:8000", None),
        ] {
            let changed = without_trailing_slash(&uri.parse().unwrap());
            assert_eq!(changed.map(|uri| uri.to_string()).as_deref(), expected, "{uri}");
        }
    }
}
