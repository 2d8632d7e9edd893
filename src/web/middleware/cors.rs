//! Decides which web pages may call the service: the service's own pages, and pages of origins that
//! the operator allows.
//!
//! Without these rules, any web page could make a browser in the service's network call the service
//! and use its NVIDIA key. The rules depend on the headers `Origin` and `Sec-Fetch-Site`, which only
//! browsers send, so they do not restrict other programs.
//!
//! An attacker can also make his own host name resolve to the service's address (DNS rebinding). The
//! browser then treats his page as the service's own page. Therefore, if clients need no key, calls
//! by the service's own pages are accepted only if `Host` contains an IP address, `localhost`, or a
//! host name that the operator has configured.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header, uri::Authority},
    middleware::Next,
    response::Response,
};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::web::{Settings, error::Error};

/// The header that says how the page's site relates to the service's site (W3C Fetch Metadata).
/// Browsers set this header, and pages cannot change it.
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// How long a browser may cache the response to a preflight request.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(3600);

/// How many characters of `Origin` or `Host` an error quotes.
const MAX_QUOTED_CHARS: usize = 100;

/// The headers that pages may send, besides those that need no permission.
const ALLOWED_HEADERS: [HeaderName; 14] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_TYPE,
    HeaderName::from_static("x-request-id"),
    // Pages may trace their calls. Browsers block such calls if these are not allowed.
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    // OpenAI's JavaScript client sends these with every call. The service ignores them.
    HeaderName::from_static("x-stainless-arch"),
    HeaderName::from_static("x-stainless-lang"),
    HeaderName::from_static("x-stainless-os"),
    HeaderName::from_static("x-stainless-package-version"),
    HeaderName::from_static("x-stainless-retry-count"),
    HeaderName::from_static("x-stainless-runtime"),
    HeaderName::from_static("x-stainless-runtime-version"),
    HeaderName::from_static("x-stainless-timeout"),
];

/// The headers of answers that pages may read. OpenAI's JavaScript client reads `x-should-retry`.
const EXPOSED_HEADERS: [HeaderName; 5] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-cache"),
    HeaderName::from_static("x-should-retry"),
    header::RETRY_AFTER,
    header::WWW_AUTHENTICATE,
];

/// The origins whose pages may call the service, besides the service's own origin.
#[derive(Debug, Clone, Default)]
pub struct Origins {
    allows_any: bool,
    /// In lower case, as browsers send them: [`CorsLayer`] compares them case-sensitively.
    allowed: Vec<HeaderValue>,
}

impl Origins {
    /// Parses origins in the form that browsers send, such as `https://app.example.com`,
    /// `capacitor://localhost` or `null`. The item `*` allows all origins.
    ///
    /// # Errors
    /// A message that says what is wrong with the first invalid item.
    pub fn parse(items: &[String]) -> Result<Self, String> {
        let allowed = items.iter().filter(|item| *item != "*").map(|item| {
            let is_origin = match item.split_once("://") {
                Some((scheme, host)) => {
                    !scheme.is_empty() && !host.is_empty() && !host.contains(['/', '?', '#', '*'])
                }
                None => item == "null",
            };
            match HeaderValue::try_from(item.to_ascii_lowercase()) {
                Ok(origin) if is_origin => Ok(origin),
                _ => Err(format!(
                    "contains {item:?}, which is not an origin; write https://app.example.com, without a path"
                )),
            }
        });
        Ok(Self {
            allows_any: items.iter().any(|item| item == "*"),
            allowed: allowed.collect::<Result<_, _>>()?,
        })
    }

    /// Determines which kind of page sent a request.
    ///
    /// # Errors
    /// If the page may not call the service: its origin, or `unknown` if the request has none.
    fn page(&self, headers: &HeaderMap) -> Result<Page, String> {
        let header_text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let origin = headers.get(header::ORIGIN);
        if self.allows_any || origin.is_some_and(|origin| self.allows(origin)) {
            return Ok(Page::AllowedOrigin);
        }
        // Pages of the same site count as the service's own pages. `none` means that the user
        // started the request, for example from the address bar.
        let is_own = match (header_text(SEC_FETCH_SITE), origin) {
            (Some("same-origin" | "same-site" | "none"), _) => true,
            (Some("cross-site"), _) => false,
            (_, None) => return Ok(Page::None),
            // `Sec-Fetch-Site` is unknown or, as from an old browser, missing.
            (_, Some(_)) => is_same_authority(header_text("origin"), header_text("host")),
        };
        if is_own {
            Ok(Page::Own)
        } else {
            Err(header_text("origin").unwrap_or("unknown").chars().take(MAX_QUOTED_CHARS).collect())
        }
    }

    /// The layer that lets pages of these origins read responses. `None` if no origin is allowed.
    pub fn layer(&self) -> Option<CorsLayer> {
        let allowed = if self.allows_any {
            AllowOrigin::any()
        } else if self.allowed.is_empty() {
            return None;
        } else {
            AllowOrigin::list(self.allowed.clone())
        };
        let layer = CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(ALLOWED_HEADERS)
            .expose_headers(EXPOSED_HEADERS)
            .max_age(PREFLIGHT_MAX_AGE);
        Some(layer)
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        self.allowed
            .iter()
            .any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
    }
}

/// The kind of page that sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    /// No page: the client is not a browser.
    None,
    /// A page of the service's site, or no page if the user started the request in a browser. With DNS
    /// rebinding, the browser takes an attacker's page for a page of the service's site.
    Own,
    /// A page of an origin that the operator allows.
    AllowedOrigin,
}

/// Determines which pages may call the service, and by which host names.
#[derive(Debug)]
pub(in crate::web) struct PageRules {
    origins: Origins,
    /// The host names by which the service's own pages may call it, besides IP addresses and
    /// `localhost`. `None` if clients need a key: any host name is then allowed.
    host_names: Option<Vec<String>>,
}

impl PageRules {
    /// The rules by the settings.
    pub(in crate::web) fn new(settings: &Settings) -> Self {
        let host_names = settings.keys.is_empty().then(|| settings.hosts.clone());
        Self { origins: settings.origins.clone(), host_names }
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), Error> {
        match self.origins.page(headers).map_err(Error::CrossOrigin)? {
            Page::Own => self.check_host_name(headers).map_err(Error::UnknownHost),
            Page::None | Page::AllowedOrigin => Ok(()),
        }
    }

    /// Checks whether the service's own pages may call it by the host name in `Host`.
    ///
    /// # Errors
    /// The value of `Host`, reduced to harmless characters, if its host name is not allowed.
    pub(in crate::web) fn check_host_name(&self, headers: &HeaderMap) -> Result<(), String> {
        let Some(host_names) = &self.host_names else { return Ok(()) };
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
        let authority = host.parse::<Authority>().ok();
        let name = authority.as_ref().map_or("", |authority| authority.host());
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let mut allowed = host_names.iter().map(String::as_str).chain(["localhost"]);
        if is_address || allowed.any(|allowed| allowed.eq_ignore_ascii_case(name)) {
            return Ok(());
        }
        let is_harmless = |c: &char| c.is_ascii_alphanumeric() || ".-_:[]".contains(*c);
        let harmless: String = host.chars().filter(is_harmless).take(MAX_QUOTED_CHARS).collect();
        Err(if harmless.is_empty() { "(none)".into() } else { harmless })
    }
}

/// Refuses POST requests of web pages that may not call the service. Requests with other methods
/// are not checked, since they do not use the NVIDIA key.
pub(in crate::web) async fn check_page(
    State(rules): State<Arc<PageRules>>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    if request.method() == Method::POST {
        rules.check(request.headers())?;
    }
    Ok(next.run(request).await)
}

/// Whether the origin's host and port are those in `Host`. The origin may have the scheme `https` although
/// the service receives HTTP, since a proxy may have received the request by HTTPS.
fn is_same_authority(origin: Option<&str>, host: Option<&str>) -> bool {
    let (Some(origin), Some(host)) = (origin, host) else { return false };
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let default_port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    let without_default_port =
        |text: &str| text.strip_suffix(default_port).unwrap_or(text).to_ascii_lowercase();
    without_default_port(authority) == without_default_port(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header_map(headers: &[(&'static str, &str)]) -> HeaderMap {
        let headers = headers.iter().map(|(name, value)| {
            (HeaderName::from_static(name), value.parse::<HeaderValue>().unwrap())
        });
        headers.collect()
    }

    fn check_origin(origins: &[&str], headers: &[(&'static str, &str)]) -> Result<(), String> {
        let items: Vec<_> = origins.iter().map(ToString::to_string).collect();
        Origins::parse(&items).unwrap().page(&header_map(headers)).map(drop)
    }

    #[test]
    fn pages_of_the_service_need_a_known_host_name_unless_clients_need_a_key() {
        let rules = |host_names: Option<&[&str]>| PageRules {
            origins: Origins::parse(&["https://app.example.com".to_owned()]).unwrap(),
            host_names: host_names.map(|names| names.iter().map(ToString::to_string).collect()),
        };
        let from_page_of_service = |host: &str| {
            let origin = format!("http://{host}");
            header_map(&[("host", host), ("origin", &origin), ("sec-fetch-site", "same-origin")])
        };
        let without_client_keys = rules(Some(&["images.example"]));
        let with_client_keys = rules(None);
        for host in [
            "127.0.0.1:8000",
            "192.0.2.7",
            "[::1]:8000",
            "localhost:8000",
            "LOCALHOST",
            "images.example",
            "Images.Example:8000",
            "images.example.:8000",
        ] {
            assert!(without_client_keys.check(&from_page_of_service(host)).is_ok(), "{host}");
        }
        for host in [
            "evil.example:8000",
            "images.example.evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "1", // the system's resolver takes it for 0.0.0.1
        ] {
            let refused = without_client_keys.check(&from_page_of_service(host));
            assert!(matches!(refused, Err(Error::UnknownHost(name)) if name == host), "{host}");
            assert!(with_client_keys.check(&from_page_of_service(host)).is_ok(), "{host}");
        }
        let check_headers =
            |headers: &[(&'static str, &str)]| without_client_keys.check(&header_map(headers));
        assert!(
            check_headers(&[("sec-fetch-site", "none")]).is_err(),
            "a browser's request without a Host must be refused"
        );
        assert!(
            check_headers(&[("host", "evil.example")]).is_ok(),
            "a program must be allowed with any Host"
        );
        let from_app = [("host", "other.example"), ("origin", "https://app.example.com")];
        assert!(
            check_headers(&from_app).is_ok(),
            "an allowed origin must be allowed with any Host"
        );
        // The error contains only the harmless characters of the Host.
        let hostile = check_headers(&[("host", "a<b>&\"'"), ("sec-fetch-site", "none")]);
        assert!(matches!(hostile, Err(Error::UnknownHost(name)) if name == "ab"));
    }

    const HOST: (&str, &str) = ("host", "images.example:8000");

    #[test]
    fn programs_and_pages_of_the_service_may_call_it() {
        for headers in [
            &[HOST][..],
            &[HOST, ("sec-fetch-site", "same-origin"), ("origin", "http://images.example:8000")],
            &[HOST, ("sec-fetch-site", "none")],
            &[HOST, ("sec-fetch-site", "same-site"), ("origin", "https://www.images.example")],
            &[HOST, ("origin", "http://images.example:8000")],
            &[HOST, ("origin", "https://IMAGES.example:8000")],
            &[("host", "images.example"), ("origin", "https://images.example:443")],
            &[("host", "images.example:80"), ("origin", "http://images.example")],
        ] {
            assert_eq!(check_origin(&[], headers), Ok(()), "{headers:?}");
        }
    }

    #[test]
    fn a_page_of_another_origin_is_refused_and_the_error_contains_the_origin() {
        for headers in [
            &[HOST, ("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")][..],
            &[HOST, ("origin", "https://evil.example")],
            &[HOST, ("origin", "https://images.example:8000.evil.example")],
            &[HOST, ("origin", "https://images.example")],
            &[HOST, ("origin", "null")],
            &[HOST, ("origin", "capacitor://localhost")],
            &[HOST, ("sec-fetch-site", "anything"), ("origin", "https://evil.example")],
            &[("origin", "https://evil.example")],
        ] {
            let origin = headers.iter().find(|(name, _)| *name == "origin").unwrap().1;
            assert_eq!(check_origin(&[], headers), Err(origin.to_owned()), "{headers:?}");
        }
        let without_origin = [HOST, ("sec-fetch-site", "cross-site")];
        assert_eq!(check_origin(&[], &without_origin), Err("unknown".to_owned()));
    }

    #[test]
    fn a_page_of_an_allowed_origin_may_call_the_service() {
        let from = |origin| [HOST, ("sec-fetch-site", "cross-site"), ("origin", origin)];
        let allowed = ["https://app.example.com", "capacitor://localhost", "null"];
        for origin in
            ["https://app.example.com", "https://APP.example.com", "capacitor://localhost", "null"]
        {
            assert_eq!(check_origin(&allowed, &from(origin)), Ok(()), "{origin}");
        }
        for origin in [
            "https://app.example.com.evil",
            "http://app.example.com",
            "https://app.example.com:8443",
        ] {
            assert!(check_origin(&allowed, &from(origin)).is_err(), "{origin}");
        }
        assert_eq!(check_origin(&["*"], &from("https://any.example")), Ok(()));
    }

    #[test]
    fn a_malformed_origin_in_the_setting_is_refused() {
        for item in
            ["app.example.com", "https://", "https://a/path", "://a", "https://*.a", "https://a\n"]
        {
            assert!(Origins::parse(&[item.to_owned()]).is_err(), "{item}");
        }
    }
}
