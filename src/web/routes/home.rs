//! `/`: a page for people, to try a picture and look at the answer.

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

/// One self-contained file: its own script and style, calls to this service, nothing else.
const PAGE: &str = include_str!("home.html");

/// Where the page is told of the sandbox's sample picture; nothing, where there is no sandbox.
const SAMPLE: &str = "{sample}";

/// Where the page is told of the formats that can be chosen.
const FORMATS: &str = "{formats}";

/// Where the page is told of a name that it may not call the service by; nothing, where it may.
const STRANGE_NAME: &str = "{strange name}";

/// The script and the style are allowed by their hashes, so that nothing that found its way into the
/// page runs, and no script can make markup of a text. The pictures are those of the visitor; `data:`
/// is an empty icon.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src blob: data:; connect-src 'self'; \
         form-action 'none'; base-uri 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        hash_of("script"),
        hash_of("style"),
    );
    // Hashes are ASCII: it is always a header's value. If not, nothing is allowed.
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// By extension as well: not every system knows HEIC by its media type.
static FORMATS_READ: LazyLock<String> = LazyLock::new(|| {
    let name = |format: Format| format!("{},.{}", format.media_type(), format.extension());
    Format::read().map(name).collect::<Vec<_>>().join(",")
});

pub(super) fn router(rules: Arc<PageRules>) -> Router<AppState> {
    let page = move |State(app): State<AppState>, headers: HeaderMap| {
        let page = page(&app, &rules, &headers);
        async move { page }
    };
    Router::new().route("/", get(page))
}

fn page(app: &AppState, rules: &PageRules, headers: &HeaderMap) -> impl IntoResponse + use<> {
    // The name is harmless in HTML: what may be none of a host's characters was left out.
    let strange_name = rules.check_name(headers).err().unwrap_or_default();
    let page = PAGE.replacen(SAMPLE, app.sample.as_deref().unwrap_or_default(), 1);
    let page = page.replacen(FORMATS, &FORMATS_READ, 1).replace(STRANGE_NAME, &strange_name);
    ([(header::CONTENT_SECURITY_POLICY, POLICY.clone())], Html(page))
}

/// What a browser computes of the text inside an element.
fn hash_of(element: &str) -> String {
    let inside = PAGE
        .split_once(&format!("<{element}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{element}>")))
        .map_or("", |(inside, _)| inside);
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(inside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_allows_the_one_script_and_the_one_style_of_the_page_by_their_hashes() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1);
            assert_ne!(hash_of(element), hash_of("nothing"));
            assert!(
                POLICY.to_str().unwrap().contains(&format!("{element}-src '{}'", hash_of(element)))
            );
        }
        assert!(!POLICY.to_str().unwrap().contains("unsafe"));
        assert_eq!((PAGE.matches(SAMPLE).count(), PAGE.matches(STRANGE_NAME).count()), (1, 2));
        assert_eq!(PAGE.matches(FORMATS).count(), 1);
    }
}
