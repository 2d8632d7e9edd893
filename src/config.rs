//! Turns flags and variables into one checked [`Config`], or into the list of all their faults.

use std::{fmt, net::SocketAddr, path::PathBuf};

use crate::{
    decoder,
    embed::{self, LargeImages},
    fetch::{self, policy},
    nvidia::{self, ApiKey, ProxyAddress, RetryPolicy},
    pipeline::{self, Limits},
    server::{self, TrustedProxies},
    store, telemetry,
    web::{self, ClientKeys, Origins},
};

mod parse;
mod raw;
pub mod settings;

pub use raw::{Raw, command};
use settings::SETTINGS;

/// Everything the service is told at start, checked.
#[derive(Debug)]
pub struct Config {
    /// Who computes the embeddings.
    pub upstream: Upstream,
    /// How NVIDIA is called.
    pub nvidia: nvidia::Settings,
    /// How a picture becomes an embedding.
    pub embed: embed::Settings,
    /// How pictures are decoded.
    pub decoder: decoder::Settings,
    /// How addresses are fetched.
    pub fetch: fetch::Settings,
    /// Where pictures are saved.
    pub store: store::Settings,
    /// What a request may ask for.
    pub limits: Limits,
    /// Who is let in.
    pub web: web::Settings,
    /// How connections are served.
    pub server: server::Settings,
    /// What is logged, and how.
    pub telemetry: telemetry::Settings,
    /// What the operator should hear at start, although it is no fault.
    pub notices: Vec<String>,
}

/// What the process is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Serve.
    Serve,
    /// Look at all that serving needs.
    Check {
        /// Also make one paid call.
        live: bool,
    },
}

/// Who computes the embeddings.
#[derive(Debug)]
pub enum Upstream {
    /// NVIDIA's hosted API, with this key.
    Nvidia(ApiKey),
    /// The built-in stand-in.
    Sandbox,
}

/// All faults of the settings, each naming its variable.
#[derive(Debug, PartialEq, Eq)]
pub struct Faults(Vec<String>);

impl Faults {
    /// Ends the process with exit code 2: starting again does not help.
    pub fn exit(&self) -> ! {
        // Nothing is logged before the settings stand.
        #[allow(clippy::print_stderr)]
        {
            eprint!("{self}");
        }
        std::process::exit(2)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "imagesvc cannot start with these settings:")?;
        self.0.iter().try_for_each(|fault| writeln!(f, "  - {fault}"))
    }
}

impl std::error::Error for Faults {}

impl Config {
    /// Reads the process: its arguments, its environment, and `.env` in the working directory.
    ///
    /// # Errors
    /// Every fault of the settings at once.
    pub fn from_process() -> Result<(Task, Self), Faults> {
        let matches = command().get_matches();
        // Flags may stand before and behind the subcommand; behind it, all are known.
        let (task, flags) = match matches.subcommand_matches(raw::CHECK) {
            Some(check) => (Task::Check { live: check.get_flag(raw::LIVE) }, check),
            None => (Task::Serve, &matches),
        };
        let raw = Raw::merge(flags, std::env::vars_os(), ".env".as_ref());
        Ok((task, Self::resolve(&raw)?))
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Every fault of the settings at once.
    pub fn resolve(raw: &Raw) -> Result<Self, Faults> {
        let mut read = Reader { raw, faults: raw.unreadable.clone() };
        let mut notices: Vec<String> = raw
            .unknown
            .iter()
            .map(|name| format!("{name} is no setting of this service; is it a typing slip?"))
            .collect();

        let upstream = read.upstream(&mut notices);
        let downloads = read.value("IMAGESVC_DOWNLOADS_DIR", |text| Ok(PathBuf::from(text)));
        let mut config = Self {
            nvidia: nvidia::Settings {
                infer_url: read.value("NVIDIA_INFER_URL", parse::endpoint),
                status_url: read.value("NVIDIA_STATUS_URL", parse::endpoint),
                assets_url: read.value("NVIDIA_ASSETS_URL", parse::endpoint),
                proxy: read.optional("NVIDIA_PROXY", ProxyAddress::parse),
                attempt_timeout: read.value("NVIDIA_TIMEOUT", parse::positive_duration),
                requests_per_minute: read
                    .optional("NVIDIA_REQUESTS_PER_MINUTE", parse::number(1..=100_000)),
                pace_window: nvidia::PACE_WINDOW,
                retry: RetryPolicy {
                    max_attempts: read.value("NVIDIA_MAX_ATTEMPTS", parse::number(1..=10)),
                    ..RetryPolicy::default()
                },
                poll_interval: nvidia::POLL_INTERVAL,
            },
            embed: embed::Settings {
                ask: embed::AskSettings {
                    large_images: read.value("NVIDIA_LARGE_IMAGES", large_images),
                    // Below the minimum even a thumbnail would not fit; NVIDIA's own bound is the default.
                    inline_limit: read
                        .value("NVIDIA_INLINE_LIMIT", parse::number(20_000..=200_000)),
                    max_concurrency: read.value("NVIDIA_MAX_CONCURRENCY", parse::number(1..=1024)),
                    asset_memory: embed::ASSET_MEMORY,
                    outage_memory: embed::OUTAGE_MEMORY,
                },
                cache_memory: read.value("IMAGESVC_CACHE_MEMORY", parse::size),
                cache_disk: read.value("IMAGESVC_CACHE_DISK", parse::size),
                cache_folder: downloads.join(".vectors"),
            },
            decoder: decoder::Settings::new(read.value("IMAGESVC_MAX_DECODE_BYTES", decode_memory)),
            fetch: fetch::Settings {
                timeout: read.value("IMAGESVC_FETCH_TIMEOUT", parse::positive_duration),
                max_redirects: read.value("IMAGESVC_FETCH_MAX_REDIRECTS", parse::number(0..=20)),
                user_agent: read
                    .optional("IMAGESVC_FETCH_USER_AGENT", header_text)
                    .unwrap_or_else(|| fetch::USER_AGENT.to_owned()),
                policy: policy::Policy {
                    ports: read
                        .value("IMAGESVC_FETCH_PORTS", parse::list(parse::number(1..=65535))),
                    hosts: read
                        .optional("IMAGESVC_FETCH_HOSTS", parse::list(policy::HostPattern::parse)),
                    allow: read
                        .optional("IMAGESVC_FETCH_ALLOW", parse::list(policy::Exception::parse))
                        .unwrap_or_default(),
                },
            },
            store: store::Settings {
                folder: downloads,
                min_free_bytes: read.value("IMAGESVC_MIN_FREE_BYTES", parse::size),
                retention: store::Retention {
                    max_age: read.optional("IMAGESVC_DOWNLOADS_MAX_AGE", parse::age),
                    max_bytes: read.optional("IMAGESVC_DOWNLOADS_MAX_BYTES", parse::positive_size),
                },
            },
            limits: Limits {
                max_image_bytes: read.value("IMAGESVC_MAX_IMAGE_BYTES", image_bytes),
                max_image_pixels: read
                    .value("IMAGESVC_MAX_IMAGE_PIXELS", parse::number(1..=1 << 32)),
                max_buffered_bytes: read.value("IMAGESVC_MAX_BUFFERED_BYTES", budget),
                max_in_flight: read.value("IMAGESVC_MAX_IN_FLIGHT", parse::number(1..=1 << 20)),
                request_timeout: read.value("IMAGESVC_REQUEST_TIMEOUT", parse::positive_duration),
                body_timeout: read.value("IMAGESVC_BODY_TIMEOUT", parse::positive_duration),
            },
            web: web::Settings {
                keys: read.client_keys(),
                rate_limit: read
                    .optional("IMAGESVC_RATE_LIMIT_PER_MINUTE", parse::number(1..=1_000_000)),
                origins: read
                    .optional("IMAGESVC_CORS_ORIGINS", |text| {
                        Origins::parse(&parse::list(|item| Ok(item.to_owned()))(text)?)
                    })
                    .unwrap_or_default(),
            },
            server: server::Settings {
                listen: SocketAddr::new(
                    read.value("IMAGESVC_HOST", parse::host),
                    read.value("IMAGESVC_PORT", parse::number(0..=65535)),
                ),
                header_timeout: read.value("IMAGESVC_HEADER_TIMEOUT", parse::positive_duration),
                drain_delay: read.value("IMAGESVC_DRAIN_DELAY", parse::duration),
                drain_timeout: read.value("IMAGESVC_DRAIN_TIMEOUT", parse::duration),
                max_connections_per_peer: read
                    .value("IMAGESVC_MAX_CONNECTIONS_PER_PEER", parse::number(1..=1 << 20)),
                max_connections: read.value("IMAGESVC_MAX_CONNECTIONS", parse::number(1..=1 << 20)),
                trusted_proxies: TrustedProxies::new(
                    read.optional("IMAGESVC_TRUSTED_PROXIES", parse::list(parse::network))
                        .unwrap_or_default(),
                ),
            },
            telemetry: telemetry::Settings {
                filter: read.value("IMAGESVC_LOG", telemetry::parse_filter),
                format: read.value("IMAGESVC_LOG_FORMAT", telemetry::Format::parse),
            },
            upstream: upstream.unwrap_or(Upstream::Sandbox),
            notices,
        };
        read.refuse_contradictions(&config);
        config.add_warnings();
        if read.faults.is_empty() {
            Ok(config)
        } else {
            // A misspelt variable is often what explains a fault.
            Err(Faults([read.faults, config.notices].concat()))
        }
    }
}

impl Config {
    /// What is allowed, and should not come as a surprise.
    fn add_warnings(&mut self) {
        if matches!(self.upstream, Upstream::Nvidia(_)) && self.web.keys.is_empty() {
            self.notices.push(
                "no client keys are set: whoever reaches the port can spend the NVIDIA key; set IMAGESVC_API_KEYS, \
                 or let a firewall admit your own clients only"
                    .into(),
            );
        }
    }
}

/// Reads values one by one and keeps their faults, so that all are reported at once.
struct Reader<'a> {
    raw: &'a Raw,
    faults: Vec<String>,
}

impl Reader<'_> {
    /// A setting that has a default.
    fn value<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        self.optional(name, &parse).unwrap_or_else(|| {
            let default =
                SETTINGS.iter().find(|setting| setting.name == name).and_then(|s| s.default);
            #[allow(clippy::expect_used)]
            default
                .and_then(|text| parse(text).ok())
                .expect("the table's defaults parse: a test resolves the empty settings")
        })
    }

    /// A setting that may be absent.
    fn optional<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.raw.get(name)?) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.faults.push(format!("{name} {fault}"));
                None
            }
        }
    }

    fn refuse_contradictions(&mut self, config: &Config) {
        // The Base64 route holds its whole body: one request must fit into the budget of all.
        let inline = config.embed.ask.inline_memory();
        let needed = pipeline::largest_request(config.limits.max_image_bytes, inline);
        let needed = needed.next_multiple_of(1 << 20);
        if config.limits.max_buffered_bytes < needed {
            self.faults.push(format!(
                "IMAGESVC_MAX_BUFFERED_BYTES must hold one Base64 body of the largest picture: with this \
                 IMAGESVC_MAX_IMAGE_BYTES, at least {}MiB",
                needed >> 20
            ));
        }
    }

    /// A secret that is given itself or in a file, with the name of what it came from.
    fn secret(&mut self, name: &'static str, file: &'static str) -> Option<(&'static str, String)> {
        match (self.raw.get(name), self.raw.get(file)) {
            (None, None) => None,
            (Some(secret), None) => Some((name, secret.to_owned())),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => Some((file, text)),
                Err(error) => {
                    self.faults.push(format!("{file} cannot be read: {}", error.kind()));
                    None
                }
            },
            (Some(_), Some(_)) => {
                self.faults.push(format!("{name} and {file} are both set: keep one"));
                None
            }
        }
    }

    fn client_keys(&mut self) -> ClientKeys {
        let Some((name, text)) = self.secret("IMAGESVC_API_KEYS", "IMAGESVC_API_KEYS_FILE") else {
            return ClientKeys::default();
        };
        ClientKeys::parse(&text).unwrap_or_else(|fault| {
            self.faults.push(format!("{name} {fault}"));
            ClientKeys::default()
        })
    }

    fn upstream(&mut self, notices: &mut Vec<String>) -> Option<Upstream> {
        let is_set = |name| self.raw.get(name).is_some();
        let has_key = is_set("NVIDIA_API_KEY") || is_set("NVIDIA_API_KEY_FILE");
        if self.optional("IMAGESVC_SANDBOX", parse::switch) == Some(true) {
            if has_key {
                notices.push("sandbox mode: NVIDIA_API_KEY is ignored and goes nowhere".into());
            }
            return Some(Upstream::Sandbox);
        }
        if !has_key {
            self.faults.push(
                "NVIDIA_API_KEY is not set: export NVIDIA_API_KEY=\"nvapi-…\" (or name a file in \
                 NVIDIA_API_KEY_FILE), or run with --sandbox to try the service without a key"
                    .into(),
            );
        }
        let (name, text) = self.secret("NVIDIA_API_KEY", "NVIDIA_API_KEY_FILE")?;
        match ApiKey::parse(&text) {
            Ok(key) => Some(Upstream::Nvidia(key)),
            Err(fault) => {
                self.faults.push(format!("{name} {fault}"));
                None
            }
        }
    }
}

fn large_images(text: &str) -> Result<LargeImages, String> {
    match text {
        "asset" => Ok(LargeImages::Asset),
        "shrink" => Ok(LargeImages::Shrink),
        _ => Err("must be asset or shrink".into()),
    }
}

fn header_text(text: &str) -> Result<String, String> {
    let printable = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if printable { Ok(text.to_owned()) } else { Err("must be printable ASCII".into()) }
}

/// A budget of memory: what a semaphore of bytes can count, and no less than does any work.
fn budget(text: &str) -> Result<u64, String> {
    sized(text, 1 << 20..=1 << 40)
}

/// Memory for decoding: one process needs a part of it to start.
fn decode_memory(text: &str) -> Result<u64, String> {
    sized(text, 64 << 20..=1 << 40)
}

fn image_bytes(text: &str) -> Result<u64, String> {
    sized(text, 1..=1 << 30)
}

fn sized(text: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64, String> {
    match parse::size(text)? {
        size if range.contains(&size) => Ok(size),
        _ => Err(format!("must be from {} to {} bytes", range.start(), range.end())),
    }
}

#[cfg(test)]
mod tests;
