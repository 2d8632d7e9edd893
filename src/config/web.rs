//! Settings of who may call the service: keys, the rate limit, origins and host names.

use std::path::PathBuf;

use super::{parse, reader::Reader, row::Optional};
use crate::web::{ClientKeys, Origins, Settings};

pub(super) const API_KEYS: Optional<ClientKeys> = Optional::secret(
    "IMAGESVC_API_KEYS",
    ClientKeys::parse,
    "Keys that clients must send, separated by commas",
)
.reject_empty();

pub(super) const API_KEYS_FILE: Optional<PathBuf> =
    Optional::new("IMAGESVC_API_KEYS_FILE", parse::path, "A file with those keys, one per line")
        .reject_empty();

pub(super) const RATE_LIMIT_PER_MINUTE: Optional<u32> = Optional::new(
    "IMAGESVC_RATE_LIMIT_PER_MINUTE",
    |text| parse::number(text, 1..=1_000_000),
    "POSTs per minute for each client, counted by its key or else its address; bursts of up to a minute's worth are allowed",
)
.reject_empty();

pub(super) const CORS_ORIGINS: Optional<Origins> = Optional::new(
    "IMAGESVC_CORS_ORIGINS",
    |text| Origins::parse(&parse::list(text, |origin| Ok(origin.to_owned()))?),
    "Origins of other web pages that may call the service (https://app.example.com)",
);

pub(super) const HOSTS: Optional<Vec<String>> = Optional::new(
    "IMAGESVC_HOSTS",
    |text| parse::list(text, parse::host_name),
    "Host names that web pages may call the service by when no client keys are set (images.example.com)",
);

/// Reads the settings of who may call the service.
pub(super) fn resolve(read: &mut Reader<'_>) -> Settings {
    Settings {
        keys: read.secret(&API_KEYS, &API_KEYS_FILE).unwrap_or_default(),
        rate_limit: read.optional(&RATE_LIMIT_PER_MINUTE),
        origins: read.optional(&CORS_ORIGINS).unwrap_or_default(),
        hosts: read.optional(&HOSTS).unwrap_or_default(),
    }
}
