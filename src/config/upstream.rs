//! Settings for the upstream that computes embeddings: NVIDIA with a key, or the sandbox.

use std::path::PathBuf;

use super::{
    parse,
    reader::Reader,
    setting::{OptionalSetting, Setting},
};
use crate::nvidia::ApiKey;

pub(super) const NVIDIA_API_KEY: OptionalSetting<ApiKey> = OptionalSetting::secret(
    "NVIDIA_API_KEY",
    ApiKey::parse,
    "The key for NVIDIA's API; required unless it is in a file or --sandbox is set",
);

pub(super) const NVIDIA_API_KEY_FILE: OptionalSetting<PathBuf> = OptionalSetting::new(
    "NVIDIA_API_KEY_FILE",
    parse::path,
    "A file that contains the key, as an alternative to NVIDIA_API_KEY (for systemd's LoadCredential)",
);

pub(super) const SANDBOX: Setting<bool> = Setting::switch(
    "IMAGESVC_SANDBOX",
    "Use the built-in stand-in for NVIDIA, which needs no key and no network",
);

/// What computes the embeddings.
#[derive(Debug)]
pub enum Upstream {
    /// NVIDIA's hosted API, with this key.
    Nvidia(ApiKey),
    /// The built-in stand-in.
    Sandbox,
}

/// Reads the settings, and returns what computes the embeddings. If this returns `None`, it has added an
/// error to `reader.errors`.
pub(super) fn resolve(reader: &mut Reader<'_>) -> Option<Upstream> {
    let has_key = reader.is_set(&NVIDIA_API_KEY.info) || reader.is_set(&NVIDIA_API_KEY_FILE.info);
    let (key_variable, file_variable) = (NVIDIA_API_KEY.info.name, NVIDIA_API_KEY_FILE.info.name);
    if reader.value(&SANDBOX) {
        if has_key {
            reader.warnings.push(format!("sandbox mode: {key_variable} is ignored and not sent"));
        }
        return Some(Upstream::Sandbox);
    }
    if !has_key {
        reader.errors.push(format!(
            "{key_variable} is not set: export {key_variable}=\"nvapi-…\" (or set {file_variable} to \
             the path of a file with the key), or run with --{} to try the service without a key",
            SANDBOX.info.flag()
        ));
    }
    reader.secret(&NVIDIA_API_KEY, &NVIDIA_API_KEY_FILE).map(Upstream::Nvidia)
}
