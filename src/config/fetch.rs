//! Settings of the fetcher: how pictures are fetched, and which URLs are allowed.

use std::time::Duration;

use super::{
    parse,
    reader::Reader,
    row::{Optional, Setting},
};
use crate::fetch::{
    self, Settings,
    policy::{Exception, HostPattern, Policy},
};

pub(super) const TIMEOUT: Setting<Duration> = Setting::new(
    "IMAGESVC_FETCH_TIMEOUT",
    "10s",
    parse::positive_duration,
    "The longest that fetching a picture by its URL may take in all",
);

pub(super) const MAX_REDIRECTS: Setting<u32> = Setting::new(
    "IMAGESVC_FETCH_MAX_REDIRECTS",
    "3",
    |text| parse::number(text, 0..=20),
    "The most redirects that a fetch follows",
);

pub(super) const PORTS: Setting<Vec<u16>> = Setting::new(
    "IMAGESVC_FETCH_PORTS",
    "80,443",
    |text| parse::list(text, |port| parse::number(port, 1..=65535)),
    "Ports that a fetch may connect to",
);

pub(super) const HOSTS: Optional<Vec<HostPattern>> = Optional::new(
    "IMAGESVC_FETCH_HOSTS",
    |text| parse::list(text, HostPattern::parse),
    "The only hosts to fetch from (upload.wikimedia.org,*.example.com)",
)
.reject_empty();

pub(super) const ALLOW: Optional<Vec<Exception>> = Optional::new(
    "IMAGESVC_FETCH_ALLOW",
    |text| parse::list(text, Exception::parse),
    "Exceptions to the address policy: networks, or host:port",
);

pub(super) const USER_AGENT: Optional<String> = Optional::new(
    "IMAGESVC_FETCH_USER_AGENT",
    header_text,
    "The User-Agent of fetches; put a contact in it (default: `Mozilla/5.0 (compatible; imagesvc/VERSION)`)",
);

/// Reads the settings of the fetcher.
pub(super) fn resolve(read: &mut Reader<'_>) -> Settings {
    Settings {
        timeout: read.value(&TIMEOUT),
        max_redirects: read.value(&MAX_REDIRECTS),
        user_agent: read.optional(&USER_AGENT).unwrap_or_else(|| fetch::USER_AGENT.to_owned()),
        policy: Policy {
            ports: read.value(&PORTS),
            hosts: read.optional(&HOSTS),
            allow: read.optional(&ALLOW).unwrap_or_default(),
        },
    }
}

fn header_text(text: &str) -> Result<String, String> {
    let printable = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if printable { Ok(text.to_owned()) } else { Err("must be printable ASCII".into()) }
}
