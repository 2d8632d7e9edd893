//! Settings of the decoder.

use super::{parse, reader::Reader, row::Setting};
use crate::decoder::Settings;

pub(super) const MAX_DECODE_BYTES: Setting<u64> = Setting::new(
    "IMAGESVC_MAX_DECODE_BYTES",
    "512MiB",
    // A decoder process needs a part of this just to start.
    |text| parse::size_within(text, 64 << 20..=1 << 40),
    "Memory that decoding pictures may take, for all requests together",
);

/// Reads the settings of the decoder.
pub(super) fn resolve(read: &mut Reader<'_>) -> Settings {
    Settings::new(read.value(&MAX_DECODE_BYTES))
}
