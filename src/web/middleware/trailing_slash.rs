//! Removes a trailing slash from paths, so that `/health/` is `/health`.

use axum::{
    extract::Request,
    http::{Uri, uri::PathAndQuery},
};

/// Removes one trailing slash from a request's path. The root keeps its slash, and a path with
/// several trailing slashes stays as it is and is not found.
pub(in crate::web) fn trim_trailing_slash(mut request: Request) -> Request {
    if let Some(uri) = trimmed(request.uri()) {
        *request.uri_mut() = uri;
    }
    request
}

/// The URI without its trailing slash, if it has one.
fn trimmed(uri: &Uri) -> Option<Uri> {
    let path = uri.path().strip_suffix('/').filter(|path| !path.is_empty())?;
    if path.ends_with('/') {
        return None;
    }
    let path_and_query = match uri.query() {
        Some(query) => format!("{path}?{query}").parse::<PathAndQuery>(),
        None => path.parse(),
    };
    let mut parts = uri.clone().into_parts();
    // A part of a valid path is a valid path, so neither of these fails.
    parts.path_and_query = Some(path_and_query.ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_trailing_slash_is_removed_and_nothing_else_changes() {
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
            let trimmed = trimmed(&uri.parse().unwrap());
            assert_eq!(trimmed.map(|uri| uri.to_string()).as_deref(), expected, "{uri}");
        }
    }
}
