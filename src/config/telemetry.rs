//! Settings for the log. Traces have none: `telemetry::otlp` and OpenTelemetry's SDK read `OTEL_*`.

use super::{reader::Reader, setting::Setting};
use crate::telemetry::{Format, Settings, parse_filter};

pub(super) const LOG: Setting<String> = Setting::new(
    "IMAGESVC_LOG",
    "info",
    parse_filter,
    "What to log: a level, or directives such as imagesvc=debug",
);

pub(super) const LOG_FORMAT: Setting<Format> = Setting::new(
    "IMAGESVC_LOG_FORMAT",
    "auto",
    Format::parse,
    "The log's format: text, json, or auto (text on a terminal, JSON otherwise)",
);

/// Reads the settings for the log.
pub(super) fn resolve(reader: &mut Reader<'_>) -> Settings {
    Settings { filter: reader.value(&LOG), format: reader.value(&LOG_FORMAT) }
}
