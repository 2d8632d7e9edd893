//! The table of settings: one row each, from which the flags, the variables, `--help` and
//! `.env.example` follow.

/// One setting, readable as a flag and as an environment variable.
#[derive(Debug)]
pub struct Setting {
    /// The environment variable.
    pub name: &'static str,
    /// The value when none is given, as it would be written; `None` where there is none.
    pub default: Option<&'static str>,
    /// How the value may be given.
    pub kind: Kind,
    /// One line for people.
    pub help: &'static str,
}

/// How a setting's value may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As a flag with a value, or as a variable.
    Value,
    /// As a flag alone (`--sandbox`), or as a variable that says `true` or `false`.
    Switch,
    /// As a variable only: flags are readable by every process of the machine.
    Secret,
}

impl Setting {
    /// The flag without its dashes: `IMAGESVC_PORT` is `port`, `NVIDIA_TIMEOUT` is `nvidia-timeout`.
    pub fn flag(&self) -> String {
        let bare = self.name.strip_prefix("IMAGESVC_").unwrap_or(self.name);
        bare.to_ascii_lowercase().replace('_', "-")
    }
}

const fn value(name: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { name, default: Some(default), kind: Kind::Value, help }
}

const fn optional(name: &'static str, help: &'static str) -> Setting {
    Setting { name, default: None, kind: Kind::Value, help }
}

const fn secret(name: &'static str, help: &'static str) -> Setting {
    Setting { name, default: None, kind: Kind::Secret, help }
}

/// Every setting, in the order of the documentation.
pub const SETTINGS: &[Setting] = &[
    secret("NVIDIA_API_KEY", "The key for NVIDIA's API; required without --sandbox"),
    optional(
        "NVIDIA_API_KEY_FILE",
        "A file that holds the key instead (for systemd's LoadCredential)",
    ),
    value(
        "NVIDIA_INFER_URL",
        "https://ai.api.nvidia.com/v1/cv/nvidia/nv-dinov2",
        "Where embeddings are asked for",
    ),
    value(
        "NVIDIA_STATUS_URL",
        "https://ai.api.nvidia.com/v1/status",
        "Where pending answers are polled",
    ),
    value(
        "NVIDIA_ASSETS_URL",
        "https://api.nvcf.nvidia.com/v2/nvcf/assets",
        "Where large pictures are announced",
    ),
    value(
        "NVIDIA_LARGE_IMAGES",
        "asset",
        "asset: upload large pictures (shrink if refused); shrink: never upload",
    ),
    value(
        "NVIDIA_INLINE_LIMIT",
        "200000",
        "Base64 characters from which a picture counts as large",
    ),
    value("NVIDIA_TIMEOUT", "30s", "One attempt at one call"),
    value("NVIDIA_MAX_ATTEMPTS", "3", "Tries of a call that fails in passing"),
    value("NVIDIA_MAX_CONCURRENCY", "32", "Pictures with NVIDIA at once"),
    optional(
        "NVIDIA_REQUESTS_PER_MINUTE",
        "Inference calls in any 60 s window (hosted keys allow about 40)",
    ),
    optional("NVIDIA_PROXY", "A proxy for the calls to NVIDIA, http://host:port"),
    Setting {
        name: "IMAGESVC_SANDBOX",
        default: Some("false"),
        kind: Kind::Switch,
        help: "Run against the built-in stand-in for NVIDIA: no key, no network",
    },
    value("IMAGESVC_HOST", "0.0.0.0", "The address to listen on"),
    value("IMAGESVC_PORT", "8000", "The port to listen on; 0 picks one, and the log names it"),
    value("IMAGESVC_DOWNLOADS_DIR", "downloads", "Where pictures are saved"),
    value("IMAGESVC_REQUEST_TIMEOUT", "60s", "From the whole picture to the answer"),
    value("IMAGESVC_BODY_TIMEOUT", "5m", "The longest that receiving a body may take"),
    value(
        "IMAGESVC_HEADER_TIMEOUT",
        "10s",
        "Receiving a request's header; also idle keep-alive connections",
    ),
    value(
        "IMAGESVC_DRAIN_DELAY",
        "2s",
        "After SIGTERM: how long new connections are still accepted",
    ),
    value(
        "IMAGESVC_DRAIN_TIMEOUT",
        "70s",
        "After that: how long running requests may take to finish",
    ),
    value("IMAGESVC_MAX_IMAGE_BYTES", "20MiB", "The largest picture, in bytes"),
    value("IMAGESVC_MAX_IMAGE_PIXELS", "64000000", "The largest picture, in pixels"),
    value("IMAGESVC_MAX_CONNECTIONS", "1024", "Open connections"),
    value("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "64", "Open connections of one peer"),
    value("IMAGESVC_MAX_IN_FLIGHT", "256", "Received pictures at work"),
    value("IMAGESVC_MAX_BUFFERED_BYTES", "128MiB", "Memory for bodies, all requests together"),
    value(
        "IMAGESVC_MAX_DECODE_BYTES",
        "512MiB",
        "Memory for decoding pictures, all requests together",
    ),
    optional("IMAGESVC_TRUSTED_PROXIES", "Networks whose X-Forwarded-For is believed"),
    value("IMAGESVC_MIN_FREE_BYTES", "256MiB", "Free disk that is never used up"),
    optional("IMAGESVC_DOWNLOADS_MAX_AGE", "Remove saved pictures that are older (90days)"),
    optional(
        "IMAGESVC_DOWNLOADS_MAX_BYTES",
        "Remove the oldest saved pictures beyond this (50GiB)",
    ),
    value("IMAGESVC_FETCH_TIMEOUT", "10s", "Fetching a picture by its address, in all"),
    value("IMAGESVC_FETCH_MAX_REDIRECTS", "3", "Redirects that a fetch follows"),
    value("IMAGESVC_FETCH_PORTS", "80,443", "Ports that a fetch may call"),
    optional(
        "IMAGESVC_FETCH_HOSTS",
        "Only these hosts are fetched from (upload.wikimedia.org,*.example.com)",
    ),
    optional("IMAGESVC_FETCH_ALLOW", "Exceptions to the address policy: networks or host:port"),
    optional(
        "IMAGESVC_FETCH_USER_AGENT",
        "The User-Agent of fetches, with a contact in it (else Mozilla/5.0 (compatible; imagesvc/VERSION))",
    ),
    secret("IMAGESVC_API_KEYS", "Keys that clients must send, comma separated"),
    optional("IMAGESVC_API_KEYS_FILE", "A file with those keys, a line each"),
    optional(
        "IMAGESVC_RATE_LIMIT_PER_MINUTE",
        "POSTs a minute for each client, by key or else by address; a minute's worth may come at once",
    ),
    optional(
        "IMAGESVC_CORS_ORIGINS",
        "Other origins whose web pages may call the service (https://app.example.com)",
    ),
    value("IMAGESVC_CACHE_MEMORY", "64MiB", "Vectors kept in memory; 0 turns it off"),
    value("IMAGESVC_CACHE_DISK", "1GiB", "Vectors kept on disk; 0 turns it off"),
    value("IMAGESVC_LOG", "info", "What is logged: a level, or directives such as imagesvc=debug"),
    value("IMAGESVC_LOG_FORMAT", "auto", "text, json, or auto: text on a terminal, JSON otherwise"),
];
