//! Settings for the Valkey.

use std::{path::PathBuf, time::Duration};

use super::{
    parse,
    reader::Reader,
    setting::{OptionalSetting, Setting},
};
use crate::valkey::{Settings, ValkeyUrl};

pub(super) const URL: OptionalSetting<ValkeyUrl> = OptionalSetting::secret(
    "IMAGESVC_VALKEY_URL",
    ValkeyUrl::parse,
    "The Valkey or Redis in which replicas agree on calls and limits: rediss://user:password@host:6379",
);

pub(super) const URL_FILE: OptionalSetting<PathBuf> = OptionalSetting::new(
    "IMAGESVC_VALKEY_URL_FILE",
    parse::path,
    "A file that contains that URL, as an alternative to IMAGESVC_VALKEY_URL (for systemd's LoadCredential)",
);

pub(super) const TIMEOUT: Setting<Duration> = Setting::new(
    "IMAGESVC_VALKEY_TIMEOUT",
    "250ms",
    parse_timeout,
    "The longest time to wait for each answer of the Valkey, at most 10s; after that, the replica decides alone",
);

/// The longest allowed timeout. With a longer one, requests would wait too long for a Valkey that they can
/// do without.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse::positive_duration(text)?;
    if timeout > MAX_TIMEOUT { Err("must be at most 10s".into()) } else { Ok(timeout) }
}

/// Reads the settings for the Valkey. `replicas` is the setting `IMAGESVC_REPLICAS`. Returns `None` if the
/// URL is not set or is invalid. An invalid URL also adds an error.
pub(super) fn resolve(reader: &mut Reader<'_>, replicas: u32) -> Option<Settings> {
    let timeout = reader.value(&TIMEOUT);
    let url = reader.secret(&URL, &URL_FILE)?;
    Some(Settings { url, timeout, replicas })
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, RawSettings};

    fn resolve(pairs: &[(&'static str, &str)]) -> Result<Config, String> {
        let pairs = [("IMAGESVC_SANDBOX", "true")].into_iter().chain(pairs.iter().copied());
        Config::resolve(&RawSettings::from_pairs(pairs)).map_err(|errors| errors.to_string())
    }

    #[test]
    fn the_url_comes_from_a_variable_or_a_file_and_its_password_is_not_printed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("url");
        let url = "rediss://:hunter2@cache.example:6379";
        std::fs::write(&file, format!("{url}\n")).unwrap();
        for setting in
            [("IMAGESVC_VALKEY_URL", url), ("IMAGESVC_VALKEY_URL_FILE", file.to_str().unwrap())]
        {
            let config = resolve(&[setting]).unwrap();
            let valkey = config.valkey.as_ref().unwrap();
            assert_eq!(valkey.url.to_string(), "cache.example:6379");
            assert!(!format!("{config:?}").contains("hunter2"));
        }
        assert!(resolve(&[]).unwrap().valkey.is_none());
    }

    #[test]
    fn a_timeout_of_over_ten_seconds_and_an_invalid_url_are_refused_and_the_url_is_not_printed() {
        let error = resolve(&[("IMAGESVC_VALKEY_TIMEOUT", "11s")]).unwrap_err();
        assert!(error.contains("IMAGESVC_VALKEY_TIMEOUT must be at most 10s"), "{error}");
        let error = resolve(&[("IMAGESVC_VALKEY_URL", "hunter2")]).unwrap_err();
        assert!(error.contains("IMAGESVC_VALKEY_URL") && !error.contains("hunter2"), "{error}");
    }
}
