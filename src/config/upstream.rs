//! Settings of the upstream that computes embeddings: NVIDIA with a key, or the sandbox.

use std::path::PathBuf;

use super::{
    parse,
    reader::Reader,
    row::{Optional, Setting},
};
use crate::nvidia::ApiKey;

pub(super) const API_KEY: Optional<ApiKey> = Optional::secret(
    "NVIDIA_API_KEY",
    ApiKey::parse,
    "The key for NVIDIA's API; required unless --sandbox is set",
);

pub(super) const API_KEY_FILE: Optional<PathBuf> = Optional::new(
    "NVIDIA_API_KEY_FILE",
    parse::path,
    "A file with the key, instead of the key itself (for systemd's LoadCredential)",
);

pub(super) const SANDBOX: Setting<bool> = Setting::switch(
    "IMAGESVC_SANDBOX",
    "Use the built-in stand-in for NVIDIA, which needs no key and no network",
);

/// Where the embeddings are computed.
#[derive(Debug)]
pub enum Upstream {
    /// NVIDIA's hosted API, with this key.
    Nvidia(ApiKey),
    /// The built-in stand-in.
    Sandbox,
}

/// Reads where embeddings are computed. `None` always comes with a fault.
pub(super) fn resolve(read: &mut Reader<'_>) -> Option<Upstream> {
    let has_key = read.is_given(&API_KEY.row) || read.is_given(&API_KEY_FILE.row);
    let (key, file) = (API_KEY.row.name, API_KEY_FILE.row.name);
    if read.value(&SANDBOX) {
        if has_key {
            read.notices.push(format!("sandbox mode: {key} is ignored and sent nowhere"));
        }
        return Some(Upstream::Sandbox);
    }
    if !has_key {
        read.faults.push(format!(
            "{key} is not set: export {key}=\"nvapi-…\" (or name a file in {file}), or run with \
             --{} to try the service without a key",
            SANDBOX.row.flag()
        ));
    }
    read.secret(&API_KEY, &API_KEY_FILE).map(Upstream::Nvidia)
}
