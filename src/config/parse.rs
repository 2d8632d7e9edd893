//! Parsers for each kind of value. Each error message continues a sentence that begins with the setting's
//! name, as in "IMAGESVC_PORT must be a whole number".

use std::{
    fmt::Display, net::IpAddr, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration,
};

use ipnet::IpNet;
use url::{Host, Url};

/// Parses a duration of at most 30 days: `10s`, `2m`, `1h 30m`, or a number of seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const MAX: Duration = Duration::from_secs(30 * 24 * 3600);
    let parsed = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text)
            .map_err(|_| "is not a duration; write 10s, 2m or a number of seconds")?,
    };
    if parsed > MAX { Err("is longer than 30 days".into()) } else { Ok(parsed) }
}

/// Parses the age above which saved pictures are removed: a duration that is not zero, without an
/// upper limit.
pub(super) fn age(text: &str) -> Result<Duration, String> {
    const INVALID: &str = "is not a duration; write 90days, 12h or a number of seconds";
    let parsed = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text).map_err(|_| INVALID)?,
    };
    if parsed.is_zero() { Err("must be longer than zero".into()) } else { Ok(parsed) }
}

/// Parses a network, or a single address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let parsed = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    parsed.map_err(|_| "is not a network; write 10.0.0.0/8 or a single address".into())
}

/// Parses a duration that is not zero.
pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than zero".into()),
        positive => Ok(positive),
    }
}

/// Parses a size: `20MiB`, `500kB`, `1GiB`, or a number of bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    const INVALID: &str = "is not a size; write 20MiB, 500kB or a number of bytes";
    let digit_count = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(digit_count);
    let bytes_per_unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000 * 1000,
        "gb" => 1000 * 1000 * 1000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(INVALID.into()),
    };
    let count: u64 = digits.parse().map_err(|_| INVALID)?;
    count.checked_mul(bytes_per_unit).ok_or_else(|| INVALID.into())
}

/// Parses the size above which saved pictures are removed: a size that is not zero.
pub(super) fn max_saved_bytes(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err("must be more than zero; unset it to keep all saved pictures".into()),
        positive => Ok(positive),
    }
}

/// Parses a size within a range of bytes.
pub(super) fn size_within(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    match size(text)? {
        bytes if range.contains(&bytes) => Ok(bytes),
        _ => Err(format!("must be from {} to {} bytes", range.start(), range.end())),
    }
}

/// Parses a whole number within a range.
pub(super) fn number<T>(text: &str, range: RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    match text.parse() {
        Ok(parsed) if range.contains(&parsed) => Ok(parsed),
        _ => Err(format!("must be a whole number from {} to {}", range.start(), range.end())),
    }
}

/// Parses `true` or `false`, and their common spellings.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

/// Parses an address to listen on, or `localhost`.
pub(super) fn host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
        _ => text
            .parse()
            .map_err(|_| "must be an IP address of this machine, such as 0.0.0.0 or ::".into()),
    }
}

/// Parses a host name for `IMAGESVC_HOSTS`, without a port.
pub(super) fn host_name(text: &str) -> Result<String, String> {
    match Host::parse(text) {
        Ok(Host::Domain(name)) if !name.contains('*') => {
            Ok(name.strip_suffix('.').unwrap_or(&name).to_owned())
        }
        _ => Err("is not a host name; write images.example.com, without a port (do not list IP addresses: they always work)".into()),
    }
}

/// Parses the URL of an API: an absolute http or https URL without user name, password, query or
/// fragment.
pub(super) fn endpoint(text: &str) -> Result<Url, String> {
    const INVALID: &str =
        "must be an absolute http or https URL without user name, query or fragment";
    let url = Url::parse(text).map_err(|_| INVALID)?;
    let is_endpoint = matches!(url.scheme(), "http" | "https")
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if is_endpoint { Ok(url) } else { Err(INVALID.into()) }
}

/// Parses a path. Every text is a valid path, even with control characters.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

/// Parses a comma-separated list. Ignores empty items. A list without items is an error.
pub(super) fn list<T>(
    text: &str,
    parse_item: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let items: Vec<T> = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| parse_item(part).map_err(|error| format!("contains {part:?}, which {error}")))
        .collect::<Result<_, _>>()?;
    if items.is_empty() { Err("is a list without an item".into()) } else { Ok(items) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_and_without_a_unit_and_invalid_ones_are_refused() {
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for invalid in ["", "-1", "ten", "10 parsecs", "1e99", "31days", "9999999999999"] {
            assert!(duration(invalid).is_err(), "{invalid:?}");
        }
        assert!(positive_duration("0").is_err());
    }

    #[test]
    fn sizes_are_read_with_and_without_a_unit_and_invalid_ones_are_refused() {
        assert_eq!(size("20MiB"), Ok(20 << 20));
        assert_eq!(size("20 mib"), Ok(20 << 20));
        assert_eq!(size("500kB"), Ok(500_000));
        assert_eq!(size("7"), Ok(7));
        for invalid in ["", "MiB", "-1", "1.5MiB", "20M", "99999999999999999999", "99999999999GiB"]
        {
            assert!(size(invalid).is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn an_endpoint_is_an_http_url_without_user_name_password_query_or_fragment() {
        assert!(endpoint("https://ai.api.nvidia.com/v1/status").is_ok());
        for invalid in [
            "ai.api.nvidia.com",
            "ftp://x/",
            "https://u@x/",
            "https://:p@x/",
            "https://x/?a=b",
            "https://x/#a",
        ] {
            assert!(endpoint(invalid).is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn a_list_skips_empty_items_and_its_error_quotes_an_invalid_item() {
        let ports = |text| list(text, |port| number(port, 1..=65535u16));
        assert_eq!(ports("80, 443,"), Ok(vec![80, 443]));
        assert!(ports("80,http").unwrap_err().contains("\"http\""));
        assert!(ports(",").is_err());
    }
}
