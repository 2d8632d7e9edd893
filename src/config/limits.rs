//! Settings for the limits of one request, and of all requests together.

use std::time::Duration;

use super::{parse, reader::Reader, setting::Setting};
use crate::{pipeline::Limits, shares::Clients};

pub(super) const REQUEST_TIMEOUT: Setting<Duration> = Setting::new(
    "IMAGESVC_REQUEST_TIMEOUT",
    "60s",
    parse::positive_duration,
    "The longest time from receiving the whole picture to the answer",
);

pub(super) const BODY_TIMEOUT: Setting<Duration> = Setting::new(
    "IMAGESVC_BODY_TIMEOUT",
    "5m",
    parse::positive_duration,
    "The longest time to receive a request's body",
);

pub(super) const MAX_IMAGE_BYTES: Setting<u64> = Setting::new(
    "IMAGESVC_MAX_IMAGE_BYTES",
    "20MiB",
    |text| parse::size_within(text, 1..=1 << 30),
    "The largest picture, in bytes",
);

pub(super) const MAX_IMAGE_PIXELS: Setting<u64> = Setting::new(
    "IMAGESVC_MAX_IMAGE_PIXELS",
    "64000000",
    |text| parse::number(text, 1..=1 << 32),
    "The largest picture, in pixels",
);

pub(super) const MAX_IN_FLIGHT: Setting<usize> = Setting::new(
    "IMAGESVC_MAX_IN_FLIGHT",
    "256",
    |text| parse::number(text, 1..=1 << 20),
    "The most pictures that are processed at once, after they are received",
);

pub(super) const MAX_BATCH: Setting<usize> = Setting::new(
    "IMAGESVC_MAX_BATCH",
    "32",
    |text| parse::number(text, 1..=1000),
    "The most pictures in one request to /v1/embeddings; the limit is lower if IMAGESVC_MAX_IN_FLIGHT or IMAGESVC_MAX_BUFFERED_BYTES allows one client fewer pictures",
);

pub(super) const MAX_BUFFERED_BYTES: Setting<u64> = Setting::new(
    "IMAGESVC_MAX_BUFFERED_BYTES",
    "128MiB",
    // `Config::check_combinations` also demands enough for a Base64 request with the largest picture.
    |text| parse::size_within(text, 1 << 20..=1 << 40),
    "The most memory for bodies, for all requests together",
);

/// Reads the limits.
pub(super) fn resolve(reader: &mut Reader<'_>) -> Limits {
    Limits {
        max_image_bytes: reader.value(&MAX_IMAGE_BYTES),
        max_image_pixels: reader.value(&MAX_IMAGE_PIXELS),
        max_buffered_bytes: reader.value(&MAX_BUFFERED_BYTES),
        max_at_work: reader.value(&MAX_IN_FLIGHT),
        max_batch: reader.value(&MAX_BATCH),
        request_timeout: reader.value(&REQUEST_TIMEOUT),
        body_timeout: reader.value(&BODY_TIMEOUT),
        clients: Clients::Many, // for `embed` and `nearest`, `Config::for_own_client` sets `One`
    }
}
