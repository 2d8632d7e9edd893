//! Decides which web pages may call the service: its own, and those of origins that the operator
//! allows.
//!
//! Otherwise any web page could make a browser inside the network call the service, and spend its
//! NVIDIA key. Programs other than browsers send neither of the headers that are checked here.
//!
//! An attacker can also make a host name of his own resolve to the service's address (DNS
//! rebinding); the browser then takes his page for the service's own. So if clients need no key,
//! pages may call the service only by an IP address, as `localhost`, or by a name that the operator
//! configured.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header, uri::Authority},
    middleware::Next,
    response::Response,
};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::web::{Settings, error::Error};

/// Tells how the page's site relates to the service (W3C Fetch Metadata). Pages cannot forge it.
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// How long a browser may cache the answer to a preflight request.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// The origins whose pages may call the service.
#[derive(Debug, Clone, Default)]
pub struct Origins {
    any: bool,
    named: Vec<HeaderValue>,
}

impl Origins {
    /// Parses origins as browsers send them: `https://app.example.com`, `capacitor://localhost`,
    /// `null`; or `*` for all.
    ///
    /// # Errors
    /// What is wrong with the first invalid one.
    pub fn parse(items: &[String]) -> Result<Self, String> {
        let named = items.iter().filter(|item| *item != "*").map(|item| {
            let is_origin = match item.split_once("://") {
                Some((scheme, host)) => {
                    !scheme.is_empty() && !host.is_empty() && !host.contains(['/', '?', '#', '*'])
                }
                None => item == "null",
            };
            match HeaderValue::try_from(item.to_ascii_lowercase()) {
                Ok(origin) if is_origin => Ok(origin),
                _ => Err(format!(
                    "holds {item:?}, which is not an origin; write https://app.example.com, without a path"
                )),
            }
        });
        Ok(Self {
            any: items.iter().any(|item| item == "*"),
            named: named.collect::<Result<_, _>>()?,
        })
    }

    /// Determines which kind of page sent a request.
    ///
    /// # Errors
    /// The page's origin, if it may not call the service.
    fn check(&self, headers: &HeaderMap) -> Result<Page, String> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let origin = headers.get(header::ORIGIN);
        if self.any || origin.is_some_and(|origin| self.names(origin)) {
            return Ok(Page::Named);
        }
        let is_own = match (text(SEC_FETCH_SITE), origin) {
            (Some("same-origin" | "same-site" | "none"), _) => true,
            (Some("cross-site"), _) => false,
            (_, None) => return Ok(Page::None),
            (_, Some(_)) => is_same_host(text("origin"), text("host")),
        };
        let readable = text("origin").unwrap_or("unknown");
        if is_own { Ok(Page::Own) } else { Err(readable.chars().take(100).collect()) }
    }

    /// Builds the layer that lets browsers show the answers to pages of these origins.
    pub fn layer(&self) -> Option<CorsLayer> {
        let allowed = match self {
            Self { any: true, .. } => AllowOrigin::any(),
            Self { named, .. } if named.is_empty() => return None,
            Self { named, .. } => AllowOrigin::list(named.clone()),
        };
        let names = ["x-request-id", "x-cache", "retry-after", "www-authenticate"];
        let layer = CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers([
                header::AUTHORIZATION,
                header::CACHE_CONTROL,
                header::CONTENT_TYPE,
                HeaderName::from_static("x-request-id"),
                // For pages that trace their calls: without this, browsers block those calls.
                HeaderName::from_static("traceparent"),
                HeaderName::from_static("tracestate"),
            ])
            .expose_headers(names.map(HeaderName::from_static))
            .max_age(REMEMBERED);
        Some(layer)
    }

    fn names(&self, origin: &HeaderValue) -> bool {
        self.named.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
    }
}

/// The kind of page that sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    /// None: the request comes from a program that is not a browser.
    None,
    /// The service's own page, if the `Host` is really a name of the service.
    Own,
    /// A page of an origin that the operator allows.
    Named,
}

/// The rules for which pages may call the service, and by which host names.
#[derive(Debug)]
pub(in crate::web) struct PageRules {
    origins: Origins,
    /// The allowed host names, besides IP addresses and `localhost`. `None` allows any name,
    /// because clients need a key.
    names: Option<Vec<String>>,
}

impl PageRules {
    /// Takes the rules from the settings.
    pub(in crate::web) fn new(settings: &Settings) -> Self {
        let names = settings.keys.is_empty().then(|| settings.hosts.clone());
        Self { origins: settings.origins.clone(), names }
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), Error> {
        match self.origins.check(headers).map_err(Error::CrossOrigin)? {
            Page::Own => self.check_name(headers).map_err(Error::UnknownHost),
            Page::None | Page::Named => Ok(()),
        }
    }

    /// Checks whether the service's own page may call it by the name in `Host`.
    ///
    /// # Errors
    /// The name, reduced to harmless characters, if it is not allowed.
    pub(in crate::web) fn check_name(&self, headers: &HeaderMap) -> Result<(), String> {
        let Some(names) = &self.names else { return Ok(()) };
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
        let authority = host.parse::<Authority>().ok();
        let name = authority.as_ref().map_or("", |authority| authority.host());
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let is_known = names.iter().map(String::as_str).chain(["localhost"]);
        if is_address || is_known.into_iter().any(|known| known.eq_ignore_ascii_case(name)) {
            return Ok(());
        }
        let is_harmless = |c: &char| c.is_ascii_alphanumeric() || ".-_:[]".contains(*c);
        let harmless: String = host.chars().filter(is_harmless).take(100).collect();
        Err(if harmless.is_empty() { "(none)".into() } else { harmless })
    }
}

/// Refuses POST requests of web pages that may not call the service; see the module's
/// documentation. Other methods cost nothing.
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

/// Whether an origin has the host that the request was sent to. The scheme may differ, since a
/// proxy in front may speak https.
fn is_same_host(origin: Option<&str>, host: Option<&str>) -> bool {
    let (Some((scheme, authority)), Some(host)) = (origin.and_then(|o| o.split_once("://")), host)
    else {
        return false;
    };
    let default_port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    let bare = |text: &str| text.strip_suffix(default_port).unwrap_or(text).to_ascii_lowercase();
    bare(authority) == bare(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        let headers = headers.iter().map(|(name, value)| {
            (HeaderName::from_static(name), value.parse::<HeaderValue>().unwrap())
        });
        headers.collect()
    }

    fn check(origins: &[&str], headers: &[(&'static str, &str)]) -> Result<(), String> {
        let items: Vec<_> = origins.iter().map(ToString::to_string).collect();
        Origins::parse(&items).unwrap().check(&map(headers)).map(drop)
    }

    #[test]
    fn a_page_may_call_the_service_by_an_ip_address_or_a_configured_name() {
        let rules = |names: Option<&[&str]>| PageRules {
            origins: Origins::parse(&["https://app.example.com".to_owned()]).unwrap(),
            names: names.map(|names| names.iter().map(ToString::to_string).collect()),
        };
        let own = |host: &str| {
            let origin = format!("http://{host}");
            map(&[("host", host), ("origin", &origin), ("sec-fetch-site", "same-origin")])
        };
        let named = rules(Some(&["images.example"]));
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
            assert!(named.check(&own(host)).is_ok(), "{host}");
        }
        for host in [
            "evil.example:8000",
            "images.example.evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "1",
        ] {
            let refused = named.check(&own(host));
            assert!(matches!(refused, Err(Error::UnknownHost(name)) if name == host), "{host}");
            assert!(rules(None).check(&own(host)).is_ok(), "with client keys, any name: {host}");
        }
        let without_host = map(&[("sec-fetch-site", "none")]);
        assert!(named.check(&without_host).is_err());
        let of_program = map(&[("host", "evil.example")]);
        assert!(named.check(&of_program).is_ok(), "no browser sends this");
        let of_app = map(&[("host", "other.example"), ("origin", "https://app.example.com")]);
        assert!(named.check(&of_app).is_ok());
        let hostile = map(&[("host", "a<b>&\"'"), ("sec-fetch-site", "none")]);
        assert!(matches!(named.check(&hostile), Err(Error::UnknownHost(name)) if name == "ab"));
    }

    const HOST: (&str, &str) = ("host", "images.example:8000");

    #[test]
    fn programs_and_the_services_own_pages_are_allowed() {
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
            assert_eq!(check(&[], headers), Ok(()), "{headers:?}");
        }
    }

    #[test]
    fn a_page_of_another_origin_is_refused_and_its_origin_named() {
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
            assert_eq!(check(&[], headers), Err(origin.to_owned()), "{headers:?}");
        }
        let hidden = [HOST, ("sec-fetch-site", "cross-site")];
        assert_eq!(check(&[], &hidden), Err("unknown".to_owned()));
    }

    #[test]
    fn a_page_of_an_allowed_origin_may_call() {
        let from = |origin| [HOST, ("sec-fetch-site", "cross-site"), ("origin", origin)];
        let named = ["https://app.example.com", "capacitor://localhost", "null"];
        for origin in
            ["https://app.example.com", "https://APP.example.com", "capacitor://localhost", "null"]
        {
            assert_eq!(check(&named, &from(origin)), Ok(()), "{origin}");
        }
        for origin in [
            "https://app.example.com.evil",
            "http://app.example.com",
            "https://app.example.com:8443",
        ] {
            assert!(check(&named, &from(origin)).is_err(), "{origin}");
        }
        assert_eq!(check(&["*"], &from("https://any.example")), Ok(()));
    }

    #[test]
    fn a_malformed_origin_is_a_fault() {
        for item in [
            "app.example.com",
            "https://",
            "https://a/path",
            "://a",
            "https://*.a",
            "https://a b\n",
        ] {
            assert!(Origins::parse(&[item.to_owned()]).is_err(), "{item}");
        }
    }
}
