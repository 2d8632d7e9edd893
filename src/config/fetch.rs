//! Settings for fetching pictures: limits, the User-Agent, and the allowed ports, hosts and addresses.

use std::time::Duration;

use super::{
    parse,
    reader::Reader,
    setting::{OptionalSetting, Setting},
};
use crate::{
    fetch::{
        self, Settings,
        policy::{Exception, HostPattern, Policy},
    },
    shares::Clients,
};

pub(super) const TIMEOUT: Setting<Duration> = Setting::new(
    "IMAGESVC_FETCH_TIMEOUT",
    "10s",
    parse::positive_duration,
    "The longest time to fetch a picture, redirects included",
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

pub(super) const HOSTS: OptionalSetting<Vec<HostPattern>> = OptionalSetting::new(
    "IMAGESVC_FETCH_HOSTS",
    |text| parse::list(text, HostPattern::parse),
    "Fetch only from these hosts (upload.wikimedia.org,*.example.com)",
)
.reject_empty();

pub(super) const EXCEPTIONS: OptionalSetting<Vec<Exception>> = OptionalSetting::new(
    "IMAGESVC_FETCH_ALLOW",
    |text| parse::list(text, Exception::parse),
    "Private addresses that may be fetched from: networks, or host:port",
);

pub(super) const USER_AGENT: OptionalSetting<String> = OptionalSetting::new(
    "IMAGESVC_FETCH_USER_AGENT",
    parse_user_agent,
    "The User-Agent of fetches; it should name a contact (default: `Mozilla/5.0 (compatible; imagesvc/VERSION)`)",
);

/// Reads the settings for fetching.
pub(super) fn resolve(reader: &mut Reader<'_>) -> Settings {
    Settings {
        timeout: reader.value(&TIMEOUT),
        max_redirects: reader.value(&MAX_REDIRECTS),
        user_agent: reader.optional(&USER_AGENT).unwrap_or_else(|| fetch::USER_AGENT.to_owned()),
        policy: Policy {
            ports: reader.value(&PORTS),
            hosts: reader.optional(&HOSTS),
            exceptions: reader.optional(&EXCEPTIONS).unwrap_or_default(),
        },
        clients: Clients::Many, // for `embed` and `nearest`, `Config::for_own_client` sets `One`
    }
}

fn parse_user_agent(text: &str) -> Result<String, String> {
    let is_printable = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if is_printable { Ok(text.to_owned()) } else { Err("must be printable ASCII".into()) }
}
