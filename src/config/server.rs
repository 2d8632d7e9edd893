//! Settings for the TCP server, and for the proxies that it trusts.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use super::{
    parse,
    reader::Reader,
    setting::{OptionalSetting, Setting},
};
use crate::server::{Settings, TrustedProxies};

pub(super) const HOST: Setting<IpAddr> =
    Setting::new("IMAGESVC_HOST", "0.0.0.0", parse::host, "The address to listen on");

pub(super) const PORT: Setting<u16> = Setting::new(
    "IMAGESVC_PORT",
    "8000",
    |text| parse::number(text, 0..=65535),
    "The port to listen on; 0 chooses a free port, which is logged",
);

pub(super) const HEADER_TIMEOUT: Setting<Duration> = Setting::new(
    "IMAGESVC_HEADER_TIMEOUT",
    "10s",
    parse::positive_duration,
    "The longest time to receive a request's header, and to keep an idle connection open",
);

pub(super) const DRAIN_DELAY: Setting<Duration> = Setting::new(
    "IMAGESVC_DRAIN_DELAY",
    "2s",
    parse::duration,
    "How long new connections are still accepted after SIGTERM",
);

pub(super) const DRAIN_TIMEOUT: Setting<Duration> = Setting::new(
    "IMAGESVC_DRAIN_TIMEOUT",
    "70s",
    parse::duration,
    "How long running requests may take after new connections are no longer accepted",
);

pub(super) const MAX_CONNECTIONS: Setting<usize> = Setting::new(
    "IMAGESVC_MAX_CONNECTIONS",
    "1024",
    |text| parse::number(text, 1..=1 << 20),
    "The most open connections",
);

pub(super) const MAX_CONNECTIONS_PER_PEER: Setting<usize> = Setting::new(
    "IMAGESVC_MAX_CONNECTIONS_PER_PEER",
    "64",
    |text| parse::number(text, 1..=1 << 20),
    "The most open connections of one address; trusted proxies are exempt",
);

pub(super) const TRUSTED_PROXIES: OptionalSetting<TrustedProxies> = OptionalSetting::new(
    "IMAGESVC_TRUSTED_PROXIES",
    |text| parse::list(text, parse::network).map(TrustedProxies::new),
    "Networks of proxies whose X-Forwarded-For header is trusted",
);

/// Reads the settings for the server.
pub(super) fn resolve(reader: &mut Reader<'_>) -> Settings {
    Settings {
        listen: SocketAddr::new(reader.value(&HOST), reader.value(&PORT)),
        header_timeout: reader.value(&HEADER_TIMEOUT),
        drain_delay: reader.value(&DRAIN_DELAY),
        drain_timeout: reader.value(&DRAIN_TIMEOUT),
        max_connections_per_peer: reader.value(&MAX_CONNECTIONS_PER_PEER),
        max_connections: reader.value(&MAX_CONNECTIONS),
        trusted_proxies: reader.optional(&TRUSTED_PROXIES).unwrap_or_default(),
        clock: SystemTime::now, // for the header `Date`; only tests use another clock
    }
}
