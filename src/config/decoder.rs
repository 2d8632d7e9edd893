//! Settings for decoding.

use super::{parse, reader::Reader, setting::Setting};
use crate::decoder::Settings;

pub(super) const MAX_DECODE_BYTES: Setting<u64> = Setting::new(
    "IMAGESVC_MAX_DECODE_BYTES",
    "512MiB",
    // Even for the smallest picture, the process that decodes it needs most of these 64 MiB.
    |text| parse::size_within(text, 64 << 20..=1 << 40),
    "The most memory for decoding, for all requests together",
);

/// Reads the settings for decoding.
pub(super) fn resolve(reader: &mut Reader<'_>) -> Settings {
    Settings::new(reader.value(&MAX_DECODE_BYTES))
}
