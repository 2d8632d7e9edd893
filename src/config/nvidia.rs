//! Settings of the calls to NVIDIA. The key is in `upstream.rs`; what is sent is in `embed.rs`.

use std::time::Duration;

use url::Url;

use super::{
    parse,
    reader::Reader,
    row::{Optional, Setting},
};
use crate::nvidia::{PACE_WINDOW, POLL_INTERVAL, ProxyUrl, RetryPolicy, Settings};

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
    "The URL that pending answers are polled from",
);

pub(super) const ASSETS_URL: Setting<Url> = Setting::new(
    "NVIDIA_ASSETS_URL",
    "https://api.nvcf.nvidia.com/v2/nvcf/assets",
    parse::endpoint,
    "The URL that creates uploads for large pictures",
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
    "The most attempts of a call that fails for a transient reason",
);

pub(super) const REQUESTS_PER_MINUTE: Optional<u32> = Optional::new(
    "NVIDIA_REQUESTS_PER_MINUTE",
    |text| parse::number(text, 1..=100_000),
    "The most inference calls in any 60 s (hosted keys allow about 40)",
);

pub(super) const PROXY: Optional<ProxyUrl> = Optional::new(
    "NVIDIA_PROXY",
    ProxyUrl::parse,
    "A proxy for the calls to NVIDIA: http://host:port",
);

/// Reads the settings of the calls to NVIDIA.
pub(super) fn resolve(read: &mut Reader<'_>) -> Settings {
    Settings {
        infer_url: read.value(&INFER_URL),
        status_url: read.value(&STATUS_URL),
        assets_url: read.value(&ASSETS_URL),
        proxy: read.optional(&PROXY),
        attempt_timeout: read.value(&TIMEOUT),
        requests_per_minute: read.optional(&REQUESTS_PER_MINUTE),
        pace_window: PACE_WINDOW,
        retry: RetryPolicy { max_attempts: read.value(&MAX_ATTEMPTS), ..RetryPolicy::default() },
        poll_interval: POLL_INTERVAL,
    }
}
