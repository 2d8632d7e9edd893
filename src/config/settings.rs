//! The list of all settings, in the order of the documentation. The flags, `--help`, the recognised
//! variables, the table in `docs/operating.md` and `.env.example` are all made from it.

use super::{
    decoder, embed, fetch, limits, nvidia, row::Row, server, store, telemetry, upstream, web,
};

/// Every setting, once. If a setting is read but missing here, every test that resolves settings
/// fails; if one is listed but never read, `an_invalid_value_is_reported_with_the_name_of_its_setting` fails.
pub(super) const SETTINGS: &[Row] = &[
    upstream::API_KEY.row,
    upstream::API_KEY_FILE.row,
    nvidia::INFER_URL.row,
    nvidia::STATUS_URL.row,
    nvidia::ASSETS_URL.row,
    embed::LARGE_IMAGES.row,
    embed::INLINE_LIMIT.row,
    nvidia::TIMEOUT.row,
    nvidia::MAX_ATTEMPTS.row,
    embed::MAX_CONCURRENCY.row,
    nvidia::REQUESTS_PER_MINUTE.row,
    nvidia::PROXY.row,
    upstream::SANDBOX.row,
    server::HOST.row,
    server::PORT.row,
    store::DOWNLOADS_DIR.row,
    limits::REQUEST_TIMEOUT.row,
    limits::BODY_TIMEOUT.row,
    server::HEADER_TIMEOUT.row,
    server::DRAIN_DELAY.row,
    server::DRAIN_TIMEOUT.row,
    limits::MAX_IMAGE_BYTES.row,
    limits::MAX_IMAGE_PIXELS.row,
    server::MAX_CONNECTIONS.row,
    server::MAX_CONNECTIONS_PER_PEER.row,
    limits::MAX_IN_FLIGHT.row,
    limits::MAX_BATCH.row,
    limits::MAX_BUFFERED_BYTES.row,
    decoder::MAX_DECODE_BYTES.row,
    server::TRUSTED_PROXIES.row,
    web::HOSTS.row,
    store::MIN_FREE_BYTES.row,
    store::DOWNLOADS_MAX_AGE.row,
    store::DOWNLOADS_MAX_BYTES.row,
    fetch::TIMEOUT.row,
    fetch::MAX_REDIRECTS.row,
    fetch::PORTS.row,
    fetch::HOSTS.row,
    fetch::ALLOW.row,
    fetch::USER_AGENT.row,
    web::API_KEYS.row,
    web::API_KEYS_FILE.row,
    web::RATE_LIMIT_PER_MINUTE.row,
    web::CORS_ORIGINS.row,
    embed::CACHE_MEMORY.row,
    embed::CACHE_DISK.row,
    telemetry::LOG.row,
    telemetry::LOG_FORMAT.row,
];

/// Returns the setting with this name, if there is one.
pub(super) fn find(name: &str) -> Option<&'static Row> {
    SETTINGS.iter().find(|row| row.name == name)
}
