//! `/` is a page on which people can send pictures, and see that similar pictures have similar vectors.
//!
//! The page is sent as one file that contains its style and its script. In the sources, these are
//! separate files, so that each stays short.

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

/// The page, with its style and its script. It calls only this service.
static PAGE: LazyLock<String> =
    LazyLock::new(|| MARKUP.replacen("{style}", STYLE, 1).replacen("{script}", SCRIPT, 1));

const MARKUP: &str = include_str!("home/page.html");
const STYLE: &str = include_str!("home/page.css");

/// The files are one script, because they use each other's names.
const SCRIPT: &str = concat!(
    include_str!("home/queue.js"),
    include_str!("home/wall.js"),
    include_str!("home/map.js"),
    include_str!("home/takeaway.js"),
    include_str!("home/input.js"),
);

/// The placeholder for the URL of the sandbox's sample picture. Without the sandbox, an
/// empty text replaces the placeholder.
const SAMPLE_PLACEHOLDER: &str = "{sample}";

/// The placeholder for the formats that the file chooser offers.
const FORMATS_PLACEHOLDER: &str = "{formats}";

/// The placeholder for a refused host. If the service refuses calls by the page because of the host in the
/// page's URL, this host replaces the placeholder. Otherwise, an empty text does.
const UNKNOWN_HOST_PLACEHOLDER: &str = "{unknown host}";

/// The page's content security policy. Allows the script and the style by their hashes, so that
/// injected code does not run. Forbids scripts to turn text into markup. `blob:` is for the
/// visitor's pictures, `data:` for the empty icon.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src blob: data:; connect-src 'self'; \
         form-action 'none'; base-uri 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        hash_of(SCRIPT),
        hash_of(STYLE),
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
    // The error of `check_host_name` is the refused host without any characters that are special in HTML.
    let unknown_host = rules.check_host_name(headers).err().unwrap_or_default();
    let html = PAGE.replacen(SAMPLE_PLACEHOLDER, app.sample_url.as_deref().unwrap_or_default(), 1);
    let html = html
        .replacen(FORMATS_PLACEHOLDER, &ACCEPTED_TYPES, 1)
        .replace(UNKNOWN_HOST_PLACEHOLDER, &unknown_host);
    ([(header::CONTENT_SECURITY_POLICY, POLICY.clone())], Html(html))
}

/// The hash of a style or a script, in the form that the policy needs.
fn hash_of(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_allows_the_script_and_the_style_of_the_page_by_their_hashes() {
        let policy = POLICY.to_str().unwrap();
        for (element, text) in [("script", SCRIPT), ("style", STYLE)] {
            assert!(PAGE.contains(&format!("<{element}>{text}</{element}>")));
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1);
            assert!(policy.contains(&format!("{element}-src '{}';", hash_of(text))), "{policy}");
        }
        assert_ne!(hash_of(SCRIPT), hash_of(STYLE));
        assert!(!policy.contains("unsafe"));
    }

    #[test]
    fn the_page_has_the_placeholders_for_sample_and_formats_once_and_for_the_unknown_host_twice() {
        for (placeholder, count) in
            [(SAMPLE_PLACEHOLDER, 1), (FORMATS_PLACEHOLDER, 1), (UNKNOWN_HOST_PLACEHOLDER, 2)]
        {
            assert_eq!(PAGE.matches(placeholder).count(), count, "{placeholder}");
        }
    }

    #[test]
    fn the_page_is_shorter_than_60_kb() {
        assert!(PAGE.len() < 60_000, "{}", PAGE.len());
    }
}
