//! Who may call: keys, trusted proxies, the rate limit, other origins.

use std::path::PathBuf;

use super::{parse, reader::Reader, setting::Optional};
pub(super) use crate::guard::gate::Settings;
use crate::guard::{client::TrustedProxies, keys::ClientKeys, origin::Origins};

pub(super) const API_KEYS: Optional<ClientKeys> = Optional::secret(
    "IMAGESVC_API_KEYS",
    ClientKeys::parse,
    "Keys that clients must send, comma separated",
);

pub(super) const API_KEYS_FILE: Optional<PathBuf> =
    Optional::new("IMAGESVC_API_KEYS_FILE", parse::path, "A file with those keys, a line each");

pub(super) const TRUSTED_PROXIES: Optional<TrustedProxies> = Optional::new(
    "IMAGESVC_TRUSTED_PROXIES",
    |text| parse::list(text, parse::network).map(TrustedProxies::new),
    "Networks whose X-Forwarded-For is believed",
);

pub(super) const RATE_LIMIT_PER_MINUTE: Optional<u32> = Optional::new(
    "IMAGESVC_RATE_LIMIT_PER_MINUTE",
    |text| parse::number(text, 1..=1_000_000),
    "POSTs a minute for each client, by key or else by address; a minute's worth may come at once",
);

pub(super) const CORS_ORIGINS: Optional<Origins> = Optional::new(
    "IMAGESVC_CORS_ORIGINS",
    |text| Origins::parse(&parse::list(text, |origin| Ok(origin.to_owned()))?),
    "Other origins whose web pages may call the service (https://app.example.com)",
);

pub(super) fn resolve(read: &mut Reader<'_>) -> Settings {
    Settings {
        keys: read.secret(&API_KEYS, &API_KEYS_FILE).unwrap_or_default(),
        proxies: read.optional(&TRUSTED_PROXIES).unwrap_or_default(),
        rate_limit: read.optional(&RATE_LIMIT_PER_MINUTE),
        origins: read.optional(&CORS_ORIGINS).unwrap_or_default(),
    }
}
