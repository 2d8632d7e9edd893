//! The list of all settings, in the order of the documentation. The flags, `--help`, the known
//! variables, the table in `docs/operating.md` and `.env.example` are generated from this list.

use super::{
    bucket, decoder, embed, fetch, limits, nvidia, server, setting::SettingInfo, store, telemetry,
    upstream, web,
};

/// All settings. If a setting is read but not listed, every test that resolves settings fails. If a
/// setting is listed but never read, the test
/// `an_invalid_value_is_reported_with_the_name_of_its_setting` fails.
pub(super) const SETTINGS: &[SettingInfo] = &[
    upstream::API_KEY.info,
    upstream::API_KEY_FILE.info,
    nvidia::INFER_URL.info,
    nvidia::STATUS_URL.info,
    nvidia::ASSETS_URL.info,
    embed::LARGE_IMAGES.info,
    embed::INLINE_LIMIT.info,
    nvidia::TIMEOUT.info,
    nvidia::MAX_ATTEMPTS.info,
    embed::MAX_CONCURRENCY.info,
    nvidia::REQUESTS_PER_MINUTE.info,
    nvidia::REPLICAS.info,
    nvidia::PROXY.info,
    upstream::SANDBOX.info,
    server::HOST.info,
    server::PORT.info,
    store::DOWNLOADS_DIR.info,
    limits::REQUEST_TIMEOUT.info,
    limits::BODY_TIMEOUT.info,
    server::HEADER_TIMEOUT.info,
    server::DRAIN_DELAY.info,
    server::DRAIN_TIMEOUT.info,
    limits::MAX_IMAGE_BYTES.info,
    limits::MAX_IMAGE_PIXELS.info,
    server::MAX_CONNECTIONS.info,
    server::MAX_CONNECTIONS_PER_PEER.info,
    limits::MAX_IN_FLIGHT.info,
    limits::MAX_BATCH.info,
    limits::MAX_BUFFERED_BYTES.info,
    decoder::MAX_DECODE_BYTES.info,
    server::TRUSTED_PROXIES.info,
    web::HOSTS.info,
    store::MIN_FREE_BYTES.info,
    store::DOWNLOADS_MAX_AGE.info,
    store::DOWNLOADS_MAX_BYTES.info,
    bucket::BUCKET.info,
    bucket::ENDPOINT.info,
    bucket::REGION.info,
    bucket::TIMEOUT.info,
    fetch::TIMEOUT.info,
    fetch::MAX_REDIRECTS.info,
    fetch::PORTS.info,
    fetch::HOSTS.info,
    fetch::EXCEPTIONS.info,
    fetch::USER_AGENT.info,
    web::API_KEYS.info,
    web::API_KEYS_FILE.info,
    web::RATE_LIMIT_PER_MINUTE.info,
    web::CORS_ORIGINS.info,
    embed::CACHE_MEMORY.info,
    embed::CACHE_DISK.info,
    telemetry::LOG.info,
    telemetry::LOG_FORMAT.info,
];

/// Returns the setting with this name, if there is one.
pub(super) fn find(name: &str) -> Option<&'static SettingInfo> {
    SETTINGS.iter().find(|setting| setting.name == name)
}
