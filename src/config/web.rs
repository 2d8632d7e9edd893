//! Settings for who may call the service: keys, the rate limit, origins and host names.

use std::path::PathBuf;

use super::{parse, reader::Reader, setting::OptionalSetting};
use crate::web::{ClientKeys, Origins, Settings};

pub(super) const API_KEYS: OptionalSetting<ClientKeys> = OptionalSetting::secret(
    "IMAGESVC_API_KEYS",
    ClientKeys::parse,
    "Keys that clients must send, separated by commas",
)
.reject_empty();

pub(super) const API_KEYS_FILE: OptionalSetting<PathBuf> = OptionalSetting::new(
    "IMAGESVC_API_KEYS_FILE",
    parse::path,
    "A file that contains the keys that clients must send, one per line, as an alternative to IMAGESVC_API_KEYS",
)
.reject_empty();

pub(super) const RATE_LIMIT_PER_MINUTE: OptionalSetting<u32> = OptionalSetting::new(
    "IMAGESVC_RATE_LIMIT_PER_MINUTE",
    |text| parse::number(text, 1..=1_000_000),
    "The most POST requests per minute of each client (identified by its key, or by its address if no keys are set); they may all come at once; each picture of a batch counts as a request",
)
.reject_empty();

pub(super) const CORS_ORIGINS: OptionalSetting<Origins> = OptionalSetting::new(
    "IMAGESVC_CORS_ORIGINS",
    |text| Origins::parse(&parse::list(text, |origin| Ok(origin.to_owned()))?),
    "Origins of other sites whose web pages may call the service (https://app.example.com)",
);

pub(super) const HOSTS: OptionalSetting<Vec<String>> = OptionalSetting::new(
    "IMAGESVC_HOSTS",
    |text| parse::list(text, parse::host_name),
    "Host names under which web pages may call the service if no client keys are set (images.example.com)",
);

/// Reads the settings for who may call the service.
pub(super) fn resolve(reader: &mut Reader<'_>) -> Settings {
    Settings {
        keys: reader.secret(&API_KEYS, &API_KEYS_FILE).unwrap_or_default(),
        rate_limit: reader.optional(&RATE_LIMIT_PER_MINUTE),
        origins: reader.optional(&CORS_ORIGINS).unwrap_or_default(),
        hosts: reader.optional(&HOSTS).unwrap_or_default(),
    }
}
