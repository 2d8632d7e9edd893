//! Settings for the calls to NVIDIA. The key is in `upstream.rs`. The settings for how pictures are
//! sent are in `embed.rs`.

use std::{num::NonZeroU32, time::Duration};

use url::Url;

use super::{
    parse,
    reader::Reader,
    setting::{OptionalSetting, Setting},
};
use crate::{
    nvidia::{CallLimit, PACE_WINDOW, POLL_INTERVAL, ProxyUrl, RetryPolicy, Settings},
    shares::Clients,
};

pub(super) const INFER_URL: Setting<Url> = Setting::new(
    "NVIDIA_INFER_URL",
    "https://ai.api.nvidia.com/v1/cv/nvidia/nv-dinov2",
    parse::endpoint,
    "The URL that computes embeddings",
);

pub(super) const STATUS_URL: Setting<Url> = Setting::new(
    "NVIDIA_STATUS_URL",
    "https://ai.api.nvidia.com/v1/status",
    parse::endpoint,
    "The URL from which pending results are polled",
);

pub(super) const ASSETS_URL: Setting<Url> = Setting::new(
    "NVIDIA_ASSETS_URL",
    "https://api.nvcf.nvidia.com/v2/nvcf/assets",
    parse::endpoint,
    "The URL at which uploads of large pictures are created",
);

pub(super) const TIMEOUT: Setting<Duration> = Setting::new(
    "NVIDIA_TIMEOUT",
    "30s",
    parse::positive_duration,
    "The longest time for one attempt of a call",
);

pub(super) const MAX_ATTEMPTS: Setting<u32> = Setting::new(
    "NVIDIA_MAX_ATTEMPTS",
    "3",
    |text| parse::number(text, 1..=10),
    "The most attempts of a call to NVIDIA; only transient errors are retried",
);

pub(super) const REQUESTS_PER_MINUTE: OptionalSetting<u32> = OptionalSetting::new(
    "NVIDIA_REQUESTS_PER_MINUTE",
    |text| parse::number(text, 1..=100_000),
    "The most inference calls in any 60 s (hosted keys allow about 40)",
);

pub(super) const REPLICAS: Setting<NonZeroU32> = Setting::new(
    "IMAGESVC_REPLICAS",
    "1",
    |text| parse::number(text, NonZeroU32::MIN..=MAX_REPLICAS),
    "How many services share the NVIDIA key; each gets an equal part of NVIDIA_REQUESTS_PER_MINUTE; with a Valkey, this number is used only until the Valkey answers for the first time",
);

/// The largest value of [`REPLICAS`]. The compiler evaluates the `unwrap`, so it cannot panic at run time.
const MAX_REPLICAS: NonZeroU32 = NonZeroU32::new(1000).unwrap();

pub(super) const PROXY: OptionalSetting<ProxyUrl> = OptionalSetting::new(
    "NVIDIA_PROXY",
    ProxyUrl::parse,
    "A proxy for the calls to NVIDIA: http://host:port",
);

/// Reads the limit on the calls per minute. Adds an error if the limit leaves this replica
/// without a call. With a Valkey, that cannot happen: the part of a replica is then at least one call.
fn call_limit(reader: &mut Reader<'_>, has_valkey: bool) -> Option<CallLimit> {
    let replicas = reader.value(&REPLICAS);
    let total = reader.optional(&REQUESTS_PER_MINUTE)?;
    let limit = CallLimit { total, replicas, has_valkey };
    if limit.calls_per_minute() == 0 {
        let (name, limit_name) = (REPLICAS.info.name, REQUESTS_PER_MINUTE.info.name);
        reader.errors.push(format!(
            "{name} must be at most {total}, so that each replica may make one of the calls of \
             {limit_name}"
        ));
    }
    Some(limit)
}

/// Reads the settings for the calls to NVIDIA.
pub(super) fn resolve(reader: &mut Reader<'_>, has_valkey: bool) -> Settings {
    Settings {
        infer_url: reader.value(&INFER_URL),
        status_url: reader.value(&STATUS_URL),
        assets_url: reader.value(&ASSETS_URL),
        proxy: reader.optional(&PROXY),
        attempt_timeout: reader.value(&TIMEOUT),
        call_limit: call_limit(reader, has_valkey),
        pace_window: PACE_WINDOW,
        clients: Clients::Many, // for `embed` and `nearest`, `Config::for_own_client` sets `One`
        retry: RetryPolicy { max_attempts: reader.value(&MAX_ATTEMPTS), ..RetryPolicy::default() },
        poll_interval: POLL_INTERVAL,
    }
}
