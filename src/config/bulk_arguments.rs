//! The arguments that `embed` and `nearest` have in common.

use clap::Arg;

use super::{parse, raw::RawSettings, telemetry, upstream};

/// Which messages the log contains unless `IMAGESVC_LOG` is set. The commands report every failure
/// themselves. The messages of `imagesvc::web` would only repeat these reports.
const LOG_FILTER: &str = "error,imagesvc::web=off";

/// An argument with a name and a value.
pub(super) fn value(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value_name).help(help)
}

/// The argument for the prefix of the names of the fields that `embed` adds.
pub(super) fn prefix() -> Arg {
    value("prefix", "TEXT", "What the names of the added fields begin with; by default nothing")
        .default_value("")
        .hide_default_value(true)
}

/// The argument with the URL of a running service, which the command then uses.
pub(super) fn to() -> Arg {
    value("to", "URL", "Use this running service; its key is in IMAGESVC_API_KEY")
        .value_parser(parse::endpoint)
}

/// Adapts the settings to the command. A command that starts no service needs no key for NVIDIA. For such a
/// command, this function turns on sandbox mode, only so that no key is required.
pub(super) fn adapt_settings(raw: &mut RawSettings, starts_service: bool) {
    if !starts_service {
        raw.values.insert(upstream::SANDBOX.info.name, "true".into());
    }
    raw.values.entry(telemetry::LOG.info.name).or_insert_with(|| LOG_FILTER.into());
}
