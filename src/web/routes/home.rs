//! `/` is a page on which people can send a picture and see the answer.

use std::sync::{Arc, LazyLock};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{Html, IntoResponse},
    routing::get,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

use crate::{
    image::Format,
    web::{middleware::cors::PageRules, state::AppState},
};

/// The page, with its script and style in one file. It calls only this service.
const PAGE: &str = include_str!("home.html");

/// The placeholder for the URL of the sandbox's sample picture. Without the sandbox, it is replaced
/// by an empty text.
const SAMPLE: &str = "{sample}";

/// The placeholder for the formats that the file chooser offers.
const FORMATS: &str = "{formats}";

/// The placeholder for the host name in the page's URL, if the service refuses calls from pages
/// with this host name. Otherwise it is replaced by an empty text.
const UNKNOWN_HOST: &str = "{unknown host}";

/// The page's content security policy. Allows the script and the style by their hashes, so that
/// injected code does not run. Forbids scripts to turn text into markup. `blob:` is for the
/// visitor's pictures, `data:` for the empty icon.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src blob: data:; connect-src 'self'; \
         form-action 'none'; base-uri 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        hash_of("script"),
        hash_of("style"),
    );
    // The policy is ASCII, so this never fails. The fallback allows nothing.
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// The supported formats, for the file chooser. Each has its media type and its extension, since some
/// systems do not know HEIC's media type.
static ACCEPTED_TYPES: LazyLock<String> = LazyLock::new(|| {
    let types_of = |format: Format| format!("{},.{}", format.media_type(), format.extension());
    Format::supported().map(types_of).collect::<Vec<_>>().join(",")
});

pub(super) fn router(rules: Arc<PageRules>) -> Router<AppState> {
    let handler = move |State(app): State<AppState>, headers: HeaderMap| {
        let response = page(&app, &rules, &headers);
        async move { response }
    };
    Router::new().route("/", get(handler))
}

fn page(app: &AppState, rules: &PageRules, headers: &HeaderMap) -> impl IntoResponse + use<> {
    // The host name is safe in HTML: `check_host_name` returns only harmless characters.
    let unknown_host = rules.check_host_name(headers).err().unwrap_or_default();
    let html = PAGE.replacen(SAMPLE, app.sample_url.as_deref().unwrap_or_default(), 1);
    let html = html.replacen(FORMATS, &ACCEPTED_TYPES, 1).replace(UNKNOWN_HOST, &unknown_host);
    ([(header::CONTENT_SECURITY_POLICY, POLICY.clone())], Html(html))
}

/// The hash of an element's text, in the form that the policy needs.
fn hash_of(element: &str) -> String {
    let (_, rest) = PAGE.split_once(&format!("<{element}>")).unwrap_or_default();
    let (text, _) = rest.split_once(&format!("</{element}>")).unwrap_or_default();
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_allows_the_script_and_the_style_of_the_page_by_their_hashes() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1);
            // An element that the page does not have gets the hash of an empty text.
            assert_ne!(hash_of(element), hash_of("nothing"));
            assert!(
                POLICY.to_str().unwrap().contains(&format!("{element}-src '{}'", hash_of(element)))
            );
        }
        assert!(!POLICY.to_str().unwrap().contains("unsafe"));
        assert_eq!((PAGE.matches(SAMPLE).count(), PAGE.matches(UNKNOWN_HOST).count()), (1, 2));
        assert_eq!(PAGE.matches(FORMATS).count(), 1);
    }
}
