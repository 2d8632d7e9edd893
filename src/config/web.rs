//! Who may call: keys, the rate limit, other origins.

use std::path::PathBuf;

use super::{parse, reader::Reader, row::Optional};
use crate::web::{ClientKeys, Origins, Settings};

pub(super) const API_KEYS: Optional<ClientKeys> = Optional::secret(
    "IMAGESVC_API_KEYS",
    ClientKeys::parse,
    "Keys that clients must send, comma separated",
)
.guard();

pub(super) const API_KEYS_FILE: Optional<PathBuf> =
    Optional::new("IMAGESVC_API_KEYS_FILE", parse::path, "A file with those keys, a line each")
        .guard();

pub(super) const RATE_LIMIT_PER_MINUTE: Optional<u32> = Optional::new(
    "IMAGESVC_RATE_LIMIT_PER_MINUTE",
    |text| parse::number(text, 1..=1_000_000),
    "POSTs a minute for each client, by key or else by address; a minute's worth may come at once",
)
.guard();

pub(super) const CORS_ORIGINS: Optional<Origins> = Optional::new(
    "IMAGESVC_CORS_ORIGINS",
    |text| Origins::parse(&parse::list(text, |origin| Ok(origin.to_owned()))?),
    "Other origins whose web pages may call the service (https://app.example.com)",
);

pub(super) const HOSTS: Optional<Vec<String>> = Optional::new(
    "IMAGESVC_HOSTS",
    |text| parse::list(text, parse::host_name),
    "Names of the service that browsers may use where there are no client keys (images.example.com)",
);

/// Who is let in.
pub(super) fn resolve(read: &mut Reader<'_>) -> Settings {
    Settings {
        keys: read.secret(&API_KEYS, &API_KEYS_FILE).unwrap_or_default(),
        rate_limit: read.optional(&RATE_LIMIT_PER_MINUTE),
        origins: read.optional(&CORS_ORIGINS).unwrap_or_default(),
        hosts: read.optional(&HOSTS).unwrap_or_default(),
    }
}
