//! The table of all settings, grouped by what they are for, in the order of the documentation. The
//! flags, `--help`, the man page, the completions, the tables in `docs/operating.md` and
//! `.env.example` are generated from this table. The warnings about unknown variables also depend on it.

use super::{
    bucket, decoder, embed, fetch, limits, nvidia, server, setting::SettingInfo, store, telemetry,
    upstream, valkey, web,
};

/// Settings for the same purpose.
#[derive(Debug)]
pub(super) struct Group {
    /// What the settings are for, as a heading.
    pub heading: &'static str,
    /// The settings.
    pub settings: &'static [SettingInfo],
}

/// The five settings that a newcomer needs. The short help lists only these.
pub(super) const FIRST: Group = Group {
    heading: "Settings to start with",
    settings: &[
        upstream::NVIDIA_API_KEY.info,
        upstream::SANDBOX.info,
        server::PORT.info,
        store::DOWNLOADS_DIR.info,
        web::API_KEYS.info,
    ],
};

/// All settings. If a setting is read but not listed, every test that resolves settings fails. If a
/// setting is listed but never read, the test
/// `an_invalid_value_is_reported_with_the_name_of_its_setting` fails.
pub(super) const GROUPS: &[Group] = &[
    FIRST,
    Group {
        heading: "Settings for who may call",
        settings: &[
            web::API_KEYS_FILE.info,
            web::RATE_LIMIT_PER_MINUTE.info,
            web::CORS_ORIGINS.info,
            web::HOSTS.info,
            server::TRUSTED_PROXIES.info,
        ],
    },
    Group {
        heading: "Settings for calls to NVIDIA",
        settings: &[
            upstream::NVIDIA_API_KEY_FILE.info,
            nvidia::REQUESTS_PER_MINUTE.info,
            embed::MAX_CONCURRENCY.info,
            nvidia::TIMEOUT.info,
            nvidia::MAX_ATTEMPTS.info,
            embed::LARGE_IMAGES.info,
            embed::INLINE_LIMIT.info,
            nvidia::PROXY.info,
            nvidia::INFER_URL.info,
            nvidia::STATUS_URL.info,
            nvidia::ASSETS_URL.info,
        ],
    },
    Group {
        heading: "Settings for saved pictures",
        settings: &[
            store::DOWNLOADS_MAX_BYTES.info,
            store::DOWNLOADS_MAX_AGE.info,
            store::MIN_FREE_BYTES.info,
        ],
    },
    Group {
        heading: "Settings for a bucket",
        settings: &[
            bucket::BUCKET.info,
            bucket::ENDPOINT.info,
            bucket::REGION.info,
            bucket::WRITE_TIMEOUT.info,
        ],
    },
    Group {
        heading: "Settings for several replicas",
        settings: &[
            nvidia::REPLICAS.info,
            valkey::URL.info,
            valkey::URL_FILE.info,
            valkey::TIMEOUT.info,
        ],
    },
    Group {
        heading: "Settings for cached vectors",
        settings: &[embed::CACHE_MEMORY.info, embed::CACHE_DISK.info],
    },
    Group {
        heading: "Settings for fetching pictures by URL",
        settings: &[
            fetch::USER_AGENT.info,
            fetch::HOSTS.info,
            fetch::EXCEPTIONS.info,
            fetch::PORTS.info,
            fetch::MAX_REDIRECTS.info,
            fetch::TIMEOUT.info,
        ],
    },
    Group {
        heading: "Settings for the size and number of pictures",
        settings: &[
            limits::MAX_IMAGE_BYTES.info,
            limits::MAX_IMAGE_PIXELS.info,
            limits::MAX_BATCH.info,
            limits::MAX_IN_FLIGHT.info,
            limits::MAX_BUFFERED_BYTES.info,
            decoder::MAX_DECODE_BYTES.info,
        ],
    },
    Group {
        heading: "Settings for connections and timeouts",
        settings: &[
            server::HOST.info,
            server::MAX_CONNECTIONS.info,
            server::MAX_CONNECTIONS_PER_PEER.info,
            server::HEADER_TIMEOUT.info,
            limits::BODY_TIMEOUT.info,
            limits::REQUEST_TIMEOUT.info,
            server::DRAIN_DELAY.info,
            server::DRAIN_TIMEOUT.info,
        ],
    },
    Group {
        heading: "Settings for the log",
        settings: &[telemetry::LOG.info, telemetry::LOG_FORMAT.info],
    },
];

/// Returns all settings.
pub(super) fn all() -> impl Iterator<Item = &'static SettingInfo> {
    GROUPS.iter().flat_map(|group| group.settings)
}

/// Returns the setting with this name, if there is one.
pub(super) fn find(name: &str) -> Option<&'static SettingInfo> {
    all().find(|setting| setting.name == name)
}
