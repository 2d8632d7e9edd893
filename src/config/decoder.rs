//! How pictures are decoded.

use super::{parse, reader::Reader, row::Setting};
use crate::decoder::Settings;

pub(super) const MAX_DECODE_BYTES: Setting<u64> = Setting::new(
    "IMAGESVC_MAX_DECODE_BYTES",
    "512MiB",
    // One process needs a part of it to start.
    |text| parse::size_within(text, 64 << 20..=1 << 40),
    "Memory for decoding pictures, all requests together",
);

/// How pictures are decoded.
pub(super) fn resolve(read: &mut Reader<'_>) -> Settings {
    Settings::new(read.value(&MAX_DECODE_BYTES))
}
